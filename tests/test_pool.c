/* test_pool.c - every part exactly once, whatever threads there are. */
#include "runtime/clock.h"
#include "runtime/pool.h"
#include "tests/test.h"

#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define MOST 3000

typedef struct counted {
    uint8_t     times[MOST];       /* plain bytes: a part taken twice at once is a race for TSan to see */
    uint64_t    sum[64 * 8];       /* per thread, a line apart */
    atomic_int  inside[64];        /* threads inside fn with this index */
    atomic_bool wrong;
    int         threads;
} counted;

static void count(void *ctx, int64_t part, int thread)
{
    counted *c = ctx;
    if (thread < 0 || thread >= c->threads || atomic_fetch_add(&c->inside[thread], 1) != 0) {
        atomic_store(&c->wrong, true);
        return;
    }
    c->times[part]++;
    c->sum[thread * 8] += (uint64_t)part;
    atomic_fetch_sub(&c->inside[thread], 1);
}

static mx_pool *open_pool(int threads, uint32_t spin_us, const int *cpus)
{
    mx_pool *p;
    mx_error err = {0};
    mx_pool_config c = {.threads = threads, .spin_us = spin_us, .cpus = cpus};
    CHECK_OK(mx_pool_open(&p, &c, &err), err);
    return p;
}

static void each_part_once(void)
{
    static const int64_t sizes[] = {0, 1, 2, 3, 5, 17, 257, MOST};
    static const uint32_t spins[] = {0, 1, 50};
    static counted c;
    for (int threads = 1; threads <= 5; threads++)
        for (size_t k = 0; k < 3; k++) {
            mx_pool *p = open_pool(threads, spins[k], NULL);
            if (!p) return;
            CHECK(mx_pool_threads(p) == threads);
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                memset(&c, 0, sizeof c);
                c.threads = threads;
                mx_pool_run(p, sizes[i], count, &c);
                uint64_t sum = 0, wrong = 0;
                for (int t = 0; t < threads; t++) sum += c.sum[t * 8];
                for (int64_t part = 0; part < MOST; part++) wrong += c.times[part] != (part < sizes[i]);
                CHECK_MSG(!wrong && !c.wrong, "threads %d parts %d", threads, (int)sizes[i]);
                CHECK(sum == (uint64_t)(sizes[i] * (sizes[i] - 1) / 2));
            }
            mx_pool_close(p);
        }
}

/* Many short regions, with pauses that let helpers fall asleep in all phases. */
static void many_regions(void)
{
    const char *text = getenv("MX_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 7, state = seed;
    printf("  MX_TEST_SEED=%" PRIu64 "\n", seed);
    static counted c;
    for (uint32_t spin = 0; spin <= 20; spin += 20) {
        mx_pool *p = open_pool(3, spin, NULL);
        if (!p) return;
        memset(&c, 0, sizeof c);
        c.threads = 3;
        uint64_t want = 0;
        for (int i = 0; i < 5000; i++) {
            int64_t parts = 1 + (int64_t)(test_random(&state) % 9);
            want += (uint64_t)(parts * (parts - 1) / 2);
            mx_pool_run(p, parts, count, &c);
            if (test_random(&state) % 50 == 0) nanosleep(&(struct timespec){.tv_nsec = 60000}, NULL);
        }
        CHECK(c.sum[0] + c.sum[8] + c.sum[16] == want && !c.wrong);
        mx_pool_close(p);
    }
}

/* A region must end although a helper's core is taken by somebody else. */
static void *burn(void *arg)
{
    atomic_bool *stop = arg;
    while (!atomic_load(stop)) {}
    return NULL;
}

static void busy_cores(void)
{
    atomic_bool stop = false;
    pthread_t other[2];
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&other[i], NULL, burn, &stop) == 0);
    mx_pool *p = open_pool(2, 20, NULL);
    static counted c;
    memset(&c, 0, sizeof c);
    c.threads = 2;
    for (int i = 0; p && i < 200; i++) mx_pool_run(p, 4, count, &c);
    CHECK(c.times[0] == 200 && c.times[3] == 200 && !c.wrong);
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) pthread_join(other[i], NULL);
    mx_pool_close(p);
}

static void *run_bound(void *arg)
{
    mx_pool *p = arg;
    mx_pool_bind_caller(p);
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    CHECK(CPU_COUNT(&set) == 1);
    return NULL;
}

static void binding(void)
{
    cpu_set_t allowed;
    CHECK(sched_getaffinity(0, sizeof allowed, &allowed) == 0);
    int cpu = 0;
    while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &allowed)) cpu++;
    int cpus[2] = {cpu, cpu};
    mx_pool *p = open_pool(2, 0, cpus);
    if (!p) return;
    static counted c;
    memset(&c, 0, sizeof c);
    c.threads = 2;
    pthread_t t;
    CHECK(pthread_create(&t, NULL, run_bound, p) == 0);
    pthread_join(t, NULL);
    mx_pool_run(p, 100, count, &c);
    CHECK(c.times[99] == 1);
    mx_pool_close(p);
}

static void refused(void)
{
    mx_pool *p;
    mx_error err = {0};
    CHECK(mx_pool_open(&p, &(mx_pool_config){.threads = 0}, &err) == MX_ERR_ARG && !p);
    CHECK(mx_pool_open(&p, &(mx_pool_config){.threads = -3}, &err) == MX_ERR_ARG && !p);
    CHECK(mx_pool_open(&p, &(mx_pool_config){.threads = 1 << 20}, &err) == MX_ERR_ARG && !p);
    int cpus[] = {-1};
    CHECK(mx_pool_open(&p, &(mx_pool_config){.threads = 1, .cpus = cpus}, &err) == MX_ERR_ARG && !p);
    mx_pool_close(NULL);
}

/* What a region of two parts of PART_NS costs above PART_NS, for whoever reads
 * the log; nothing is asserted, because a shared machine promises nothing. */
#define PART_NS 20000u
#define REGIONS 1000

static void busy_part(void *ctx, int64_t part, int thread)
{
    (void)ctx, (void)part, (void)thread;
    uint64_t end = mx_now_ns(&mx_clock_monotonic) + PART_NS;
    while (mx_now_ns(&mx_clock_monotonic) < end) {}
}

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void dispatch_cost(void)
{
    static uint64_t took[REGIONS];
    for (uint32_t spin = 0; spin <= 100; spin += 100) {
        mx_pool *p = open_pool(2, spin, NULL);
        if (!p) return;
        for (int i = 0; i < REGIONS; i++) {
            uint64_t t0 = mx_now_ns(&mx_clock_monotonic);
            mx_pool_run(p, 2, busy_part, NULL);
            took[i] = mx_now_ns(&mx_clock_monotonic) - t0;
        }
        qsort(took, REGIONS, sizeof *took, by_size);
        printf("  2 threads, spin %3u us: dispatch and join median %.2f us, p99 %.2f us\n", spin,
               ((double)took[REGIONS / 2] - PART_NS) / 1e3, ((double)took[REGIONS * 99 / 100] - PART_NS) / 1e3);
        CHECK(took[0] >= PART_NS);
        mx_pool_close(p);
    }
}

/* A model is loaded, or a training run opened, while the device's worker computes: regions take turns. */
enum { CALLER_REGIONS = 20000, CALLER_PARTS = 64 };

typedef struct caller {
    mx_pool *pool;
    counted  c;
    uint64_t wrong;
} caller;

static void *call_often(void *arg)
{
    caller *a = arg;
    for (int r = 0; r < CALLER_REGIONS; r++) {
        memset(&a->c, 0, sizeof a->c);
        a->c.threads = mx_pool_threads(a->pool);
        mx_pool_run(a->pool, CALLER_PARTS, count, &a->c);
        for (int part = 0; part < CALLER_PARTS; part++) a->wrong += a->c.times[part] != 1;
        a->wrong += atomic_load(&a->c.wrong);
    }
    return NULL;
}

static void two_callers(void)
{
    static caller a[2];
    pthread_t other;
    mx_pool *p = open_pool(3, 50, NULL);
    if (!p) return;
    for (int i = 0; i < 2; i++) a[i] = (caller){.pool = p};
    CHECK(!pthread_create(&other, NULL, call_often, &a[1]));
    call_often(&a[0]);
    pthread_join(other, NULL);
    CHECK_MSG(!a[0].wrong && !a[1].wrong, "%" PRIu64 " and %" PRIu64 " wrong", a[0].wrong, a[1].wrong);
    mx_pool_close(p);
}

/* ---- how nice its threads are ------------------------------------------------------------- */

static int nice_of_caller(void)
{
    return getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
}

typedef struct nices { atomic_int least, most, seen; } nices;

static void look(void *ctx, int64_t part, int thread)
{
    nices *n = ctx;
    (void)part;
    nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);      /* so that the caller does not take them all */
    if (!thread) return;                             /* the caller itself */
    int now = nice_of_caller();
    atomic_store(now < atomic_load(&n->least) ? &n->least : &n->most, now);
    atomic_fetch_add(&n->seen, 1);
}

static void helpers_are_nice(void)
{
    mx_error err = {0};
    mx_pool *p;
    nices n = {.least = 99, .most = -99};
    int own = nice_of_caller(), wanted = own + 3 < 19 ? own + 3 : 19;
    mx_pool_config c = {.threads = 3, .spin_us = 50, .nice = 3, .prompt = true};
    CHECK_OK(mx_pool_open(&p, &c, &err), err);
    for (int i = 0; i < 20000 && atomic_load(&n.seen) < 3; i++) mx_pool_run(p, 8, look, &n);
    CHECK(atomic_load(&n.seen) >= 3);
    CHECK_MSG(atomic_load(&n.least) == wanted && (atomic_load(&n.most) == wanted || atomic_load(&n.most) == -99), "%d to %d, not %d", atomic_load(&n.least),
              atomic_load(&n.most), wanted);
    CHECK(nice_of_caller() == own);
    mx_pool_close(p);
}

MX_TESTS(TEST(helpers_are_nice), TEST(each_part_once), TEST(many_regions), TEST(busy_cores), TEST(binding), TEST(refused), TEST(two_callers),
         TEST(dispatch_cost))
