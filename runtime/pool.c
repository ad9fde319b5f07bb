/* pool.c - parallel regions on plain threads, woken by futex.
 *
 * A region is a countdown: `unclaimed` starts at `parts` and every fetch_sub
 * that returns r > 0 owns part (parts - r).  Whoever owns a part keeps the
 * region open, because the caller returns only when `finished` has reached
 * `parts`; so fn, ctx and parts may be read after a successful claim and are
 * stable until it is reported.  A thread that comes late, or is not scheduled
 * at all because another thread has its core, claims nothing and is not waited
 * for: the region ends when its parts are done, not when its threads have met.
 * That is what keeps a small machine, where RPC threads compete for the same
 * cores, from stalling at every join. */
#include "runtime/pool.h"

#include "runtime/clock.h"
#include "runtime/log.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LINE 64              /* bytes of a cache line: what is written by different threads stands apart */
#define MOST_THREADS 4096

typedef struct helper {
    pthread_t thread;
    mx_pool  *pool;
    int       index;
} helper;

struct mx_pool {
    pthread_mutex_t turn;      /* one region at a time */
    /* Written by the caller before a region opens. */
    void      (*fn)(void *ctx, int64_t part, int thread);
    void       *ctx;
    int64_t     parts;
    int         threads, started;
    uint64_t    spin_ns;
    int         nice;
    bool        prompt;
    int        *cpus;          /* threads entries, or NULL */
    helper     *helpers;       /* threads - 1 entries */

    _Alignas(LINE) _Atomic int64_t unclaimed;
    _Alignas(LINE) _Atomic int64_t finished;
    _Alignas(LINE) atomic_uint opened;     /* futex: regions opened so far; helpers sleep on it */
    atomic_int  sleepers;                  /* helpers that sleep or are about to */
    atomic_bool closing;
    _Alignas(LINE) atomic_uint closed;     /* futex: regions finished so far; the caller sleeps on it */
    atomic_bool caller_sleeps;
};

_Static_assert(sizeof(atomic_uint) == 4, "a futex is 32 bits");

static void futex_wait(atomic_uint *word, unsigned seen)
{
    syscall(SYS_futex, (unsigned *)word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake(atomic_uint *word, int n)
{
    syscall(SYS_futex, (unsigned *)word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

/* Spins until *word differs from `seen`, at most `ns`.  The clock is read once
 * in 32 pauses: it costs as much as a few of them. */
static bool spin_until_changed(const atomic_uint *word, unsigned seen, uint64_t ns)
{
    if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
    if (!ns) return false;
    uint64_t end = mx_now_ns(&mx_clock_monotonic) + ns;
    do {
        for (int i = 0; i < 32; i++) {
            cpu_relax();
            if (atomic_load_explicit(word, memory_order_acquire) != seen) return true;
        }
    } while (mx_now_ns(&mx_clock_monotonic) < end);
    return false;
}

/* Takes parts until none is left, then reports them all at once.  A claim may
 * well succeed in a later region than the one the thread was woken for. */
static void work(mx_pool *p, int thread)
{
    int64_t mine = 0, parts = 0;
    for (;;) {
        int64_t r = atomic_fetch_sub_explicit(&p->unclaimed, 1, memory_order_acq_rel);
        if (r <= 0) break;
        parts = p->parts;
        p->fn(p->ctx, parts - r, thread);
        mine++;
    }
    if (!mine) return;
    if (atomic_fetch_add_explicit(&p->finished, mine, memory_order_acq_rel) + mine < parts) return;
    atomic_fetch_add(&p->closed, 1);             /* seq_cst, like the caller's flag: one of the two sees the other */
    if (atomic_load(&p->caller_sleeps)) futex_wake(&p->closed, 1);
}

void mx_thread_bind(const int *cpus, int n)
{
    int most = 0;
    for (int i = 0; i < n; i++)
        if (cpus[i] > most) most = cpus[i];
    size_t size = CPU_ALLOC_SIZE(most + 1);
    cpu_set_t *set = CPU_ALLOC(most + 1);
    if (!set) return;
    CPU_ZERO_S(size, set);
    for (int i = 0; i < n; i++) CPU_SET_S(cpus[i], size, set);
    int e = pthread_setaffinity_np(pthread_self(), size, set);
    if (e) mx_log(MX_LOG_WARN, "pool", "thread not bound to processor %d%s: %s", cpus[0], n > 1 ? " and others" : "", strerror(e));
    CPU_FREE(set);
}

void mx_thread_prompt(void)
{
    struct {                             /* struct sched_attr, first version; glibc 2.36 has none */
        uint32_t size, policy;
        uint64_t flags;
        int32_t  nice;
        uint32_t priority;
        uint64_t runtime, deadline, period;
    } a = {.size = sizeof a, .nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid)), .runtime = 100000};
    _Static_assert(sizeof a == 48, "as the kernel has it");
    syscall(SYS_sched_setattr, 0, &a, 0u);       /* an older kernel ignores the slice, or says no */
}

/* The calling thread is the pool's thread `index`. */
static void settle(const mx_pool *p, int index)
{
    if (p->cpus) mx_thread_bind(&p->cpus[index], 1);
    if (p->prompt) mx_thread_prompt();
    if (!p->nice) return;
    id_t self = (id_t)syscall(SYS_gettid);       /* nice is a thread's, on Linux */
    int nice = getpriority(PRIO_PROCESS, self) + p->nice;
    int e = p->nice == MX_NICE_IDLE ? sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){0}) : setpriority(PRIO_PROCESS, self, nice < 19 ? nice : 19);
    if (e) mx_log(MX_LOG_WARN, "pool", "thread not in the background: %s", strerror(errno));
}

static void *helper_main(void *arg)
{
    helper *h = arg;
    mx_pool *p = h->pool;
    settle(p, h->index);
    unsigned seen = 0;
    for (;;) {
        if (!spin_until_changed(&p->opened, seen, p->spin_ns)) {
            atomic_fetch_add(&p->sleepers, 1);
            while (atomic_load(&p->opened) == seen) futex_wait(&p->opened, seen);
            atomic_fetch_sub(&p->sleepers, 1);
        }
        seen = atomic_load(&p->opened);
        if (atomic_load(&p->closing)) return NULL;
        work(p, h->index);
    }
}

/* Helpers take no signals: those belong to the thread that waits for them. */
static int start_helper(helper *h)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(&h->thread, NULL, helper_main, h);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e) return e;
    char name[16];
    snprintf(name, sizeof name, "merx-cpu%d", h->index);
    pthread_setname_np(h->thread, name);
    return 0;
}

mx_status mx_pool_open(mx_pool **out, const mx_pool_config *c, mx_error *err)
{
    *out = NULL;
    if (c->threads < 1 || c->threads > MOST_THREADS)
        return mx_fail(err, MX_ERR_ARG, "thread pool: %d threads, must be 1 to %d", c->threads, MOST_THREADS);
    for (int i = 0; c->cpus && i < c->threads; i++)
        if (c->cpus[i] < 0 || c->cpus[i] >= INT_MAX / 2)
            return mx_fail(err, MX_ERR_ARG, "thread pool: processor number %d", c->cpus[i]);

    size_t n = (size_t)c->threads;
    mx_pool *p = aligned_alloc(LINE, sizeof *p);     /* a multiple of LINE by its own alignment */
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "thread pool: out of memory");
    memset(p, 0, sizeof *p);
    pthread_mutex_init(&p->turn, NULL);
    p->threads = c->threads;
    p->started = 1;
    p->nice = c->nice;
    p->prompt = c->prompt;
    p->spin_ns = (uint64_t)c->spin_us * 1000;
    p->helpers = calloc(n, sizeof *p->helpers);
    if (c->cpus) p->cpus = malloc(n * sizeof *p->cpus);
    if (!p->helpers || (c->cpus && !p->cpus)) {
        mx_pool_close(p);
        return mx_fail(err, MX_ERR_NO_MEMORY, "thread pool: out of memory");
    }
    if (c->cpus) memcpy(p->cpus, c->cpus, n * sizeof *p->cpus);
    for (; p->started < p->threads; p->started++) {
        helper *h = &p->helpers[p->started - 1];
        *h = (helper){.pool = p, .index = p->started};
        int e = start_helper(h);
        if (!e) continue;
        mx_fail(err, MX_ERR_NO_MEMORY, "thread pool: thread %d of %d did not start: %s",
                p->started, p->threads, strerror(e));
        mx_pool_close(p);
        return MX_ERR_NO_MEMORY;
    }
    *out = p;
    return MX_OK;
}

void mx_pool_close(mx_pool *p)
{
    if (!p) return;
    atomic_store(&p->closing, true);
    atomic_fetch_add(&p->opened, 1);
    futex_wake(&p->opened, INT_MAX);
    for (int i = 1; i < p->started; i++) pthread_join(p->helpers[i - 1].thread, NULL);
    free(p->cpus);
    free(p->helpers);
    pthread_mutex_destroy(&p->turn);
    free(p);
}

const int *mx_pool_cpus(const mx_pool *p)
{
    return p->cpus;
}

uint32_t mx_pool_spin_us(const mx_pool *p)
{
    return (uint32_t)(p->spin_ns / 1000);
}

int mx_pool_threads(const mx_pool *p)
{
    return p->threads;
}

void mx_pool_bind_caller(mx_pool *p)
{
    settle(p, 0);
}

void mx_pool_run(mx_pool *p, int64_t parts, void (*fn)(void *ctx, int64_t part, int thread), void *ctx)
{
    if (p->threads == 1 || parts == 1) {
        for (int64_t i = 0; i < parts; i++) fn(ctx, i, 0);
        return;
    }
    if (parts <= 0) return;
    pthread_mutex_lock(&p->turn);
    unsigned before = atomic_load_explicit(&p->closed, memory_order_relaxed);
    p->fn = fn;
    p->ctx = ctx;
    p->parts = parts;
    atomic_store_explicit(&p->finished, 0, memory_order_relaxed);
    atomic_store_explicit(&p->unclaimed, parts, memory_order_release);
    atomic_fetch_add(&p->opened, 1);             /* seq_cst, like the count of sleepers */
    if (atomic_load(&p->sleepers)) {
        int64_t helpers = parts - 1 < p->threads - 1 ? parts - 1 : p->threads - 1;
        futex_wake(&p->opened, (int)helpers);
    }
    work(p, 0);
    if (!spin_until_changed(&p->closed, before, p->spin_ns)) {
        atomic_store(&p->caller_sleeps, true);
        while (atomic_load(&p->closed) == before) futex_wait(&p->closed, before);
        atomic_store(&p->caller_sleeps, false);
    }
    pthread_mutex_unlock(&p->turn);
}
