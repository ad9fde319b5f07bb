/* test_scheduler_threads.c - the same scheduler under real threads: every job
 * given back exactly once, sleepers wake, closing leaves nobody behind. */
#include "runtime/scheduler.h"
#include "tests/test.h"

#include <inttypes.h>
#include <pthread.h>
#include <time.h>

static mx_device devs[2];

static void open_devices(void)
{
    if (devs[0].ops) return;
    mx_device *d;
    int n;
    mx_error err = {0};
    CHECK_OK(mx_devices_open(&d, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    devs[0] = devs[1] = d[0];
    free(d);
}

/* Each job is its own allocation, freed by done(): a second done(), or a touch
 * after it, is a use after free for the sanitizer to see. */
typedef struct task task;

typedef struct tally {
    mx_scheduler *s;
    atomic_int    taken, refused, done, cancelled, late, failed, resubmitted;
    atomic_bool   inside[2];       /* a worker runs one turn at a time */
    atomic_int    overlaps;
    atomic_bool   stop;
} tally;

struct task {
    mx_job  job;
    tally  *all;
    int     turns, again;          /* again: submit another when done */
};

static void task_done(mx_job *j);

static mx_status send(tally *all, int turns, int again, uint64_t deadline_ns, bool cancelled)
{
    task *t = calloc(1, sizeof *t);
    if (!t) return MX_ERR_NO_MEMORY;
    *t = (task){.job = {.rows = 1, .done = task_done, .deadline_ns = deadline_ns}, .all = all, .turns = turns,
                .again = again};
    atomic_store(&t->job.cancelled, cancelled);
    mx_status st = mx_scheduler_submit(all->s, "l", &t->job, NULL);
    if (st) free(t);
    atomic_fetch_add(st ? &all->refused : &all->taken, 1);
    return st;
}

static void task_done(mx_job *j)
{
    task *t = (task *)j;
    tally *all = t->all;
    atomic_fetch_add(&all->done, 1);
    if (j->error.code == MX_ERR_CANCELLED) atomic_fetch_add(&all->cancelled, 1);
    else if (j->error.code == MX_ERR_DEADLINE) atomic_fetch_add(&all->late, 1);
    else if (j->error.code) atomic_fetch_add(&all->failed, 1);
    if (t->again && !send(all, 2, t->again - 1, 0, false)) atomic_fetch_add(&all->resubmitted, 1);
    free(t);
}

static void run_tasks(void *model, mx_stream *s, mx_job **jobs, int n)
{
    atomic_bool *inside = model;
    (void)s;
    for (int i = 0; i < n; i++) {
        task *t = (task *)jobs[i];
        if (!i && atomic_exchange(inside, true)) atomic_fetch_add(&t->all->overlaps, 1);
        jobs[i]->verdict = --t->turns > 0 ? MX_AGAIN : MX_DONE;
    }
    atomic_store(inside, false);
}

static void *client(void *arg)
{
    tally *all = arg;
    uint64_t state = (uint64_t)(uintptr_t)&state;
    for (int i = 0; i < 1500; i++) {
        uint64_t dice = test_random(&state) % 16, now = mx_now_ns(&mx_clock_monotonic);
        uint64_t deadline = dice == 0 ? now + 20000 : dice == 1 ? now + 1000000 : dice == 2 ? 1 : 0;
        send(all, 1 + (int)(test_random(&state) % 5), dice == 3 ? 3 : 0, deadline, dice == 4);
        if (dice == 5) mx_scheduler_wake(all->s);
        if (dice == 6) {
            mx_lane_stats st;
            mx_scheduler_stats(all->s, "l", &st);
        }
        if (dice == 7) nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
    }
    return NULL;
}

static mx_scheduler *open_threads(tally *all, int n_devs, uint32_t wait_us, const mx_clock *clock)
{
    open_devices();
    memset(all, 0, sizeof *all);
    mx_error err = {0};
    CHECK_OK(mx_scheduler_open(&all->s, devs, n_devs, clock, &err), err);
    for (int i = 0; all->s && i < n_devs; i++) {
        mx_lane_config c = {.name = "l", .device = i, .max_jobs = 4, .max_rows = 3, .max_wait_us = wait_us,
                            .queue_limit = 64, .run = run_tasks, .model = &all->inside[i], .scratch_bytes = 4096};
        CHECK_OK(mx_scheduler_lane(all->s, &c, &err), err);
    }
    return all->s;
}

static void storm(void)
{
    for (uint32_t grace = 0; grace <= 10000; grace += 10000) {
        tally all;
        if (!open_threads(&all, 2, grace ? 30 : 0, NULL)) return;
        pthread_t clients[4];
        for (int i = 0; i < 4; i++) CHECK(pthread_create(&clients[i], NULL, client, &all) == 0);
        /* A lane that comes while others run, with more scratch. */
        mx_error err = {0};
        mx_lane_config more = {.name = "more", .max_jobs = 1, .max_rows = 1, .queue_limit = 1, .run = run_tasks,
                               .model = &all.inside[0], .scratch_bytes = 3u << 20};
        CHECK_OK(mx_scheduler_lane(all.s, &more, &err), err);
        for (int i = 0; i < 4; i++) pthread_join(clients[i], NULL);
        mx_scheduler_close(all.s, grace);
        printf("  taken %d, refused %d, cancelled %d, late %d, from done() %d\n", all.taken, all.refused,
               all.cancelled, all.late, all.resubmitted);
        CHECK(all.taken == all.done && all.taken > 0 && !all.failed && !all.overlaps && all.resubmitted > 0);
        if (grace) CHECK(all.late > 0 && all.cancelled > 0);
    }
}

static bool comes_true(atomic_int *what, int want)
{
    struct timespec ms = {.tv_nsec = 1000000};
    for (int i = 0; i < 5000 && atomic_load(what) < want; i++) nanosleep(&ms, NULL);
    return atomic_load(what) == want;
}

/* Nobody comes: the worker must wake by itself at the end of the wait for
 * company, and at the deadline when that is earlier. */
static void sleepers_wake(void)
{
    tally all;
    if (!open_threads(&all, 1, 20000, NULL)) return;
    uint64_t t0 = mx_now_ns(&mx_clock_monotonic);
    CHECK(!send(&all, 1, 0, 0, false));
    CHECK(comes_true(&all.done, 1) && !all.late);
    CHECK(mx_now_ns(&mx_clock_monotonic) - t0 >= 20000000);
    mx_scheduler_close(all.s, 0);

    if (!open_threads(&all, 1, 60000000, NULL)) return;
    CHECK(!send(&all, 1, 0, mx_now_ns(&mx_clock_monotonic) + 10000000, false));
    CHECK(comes_true(&all.late, 1));
    CHECK(!send(&all, 1, 0, 0, true));          /* cancelled before anybody looked */
    mx_scheduler_wake(all.s);
    CHECK(comes_true(&all.cancelled, 1));
    CHECK(!send(&all, 1, 0, 0, false));
    mx_scheduler_drain(all.s);                  /* ends the wait for company */
    CHECK(comes_true(&all.done, 3));
    CHECK(send(&all, 1, 0, 0, false) == MX_ERR_UNAVAILABLE);
    mx_scheduler_close(all.s, 0);
}

static atomic_uint_least64_t still_ns = 1000;

static uint64_t still_now(void *ctx)
{
    (void)ctx;
    return atomic_load(&still_ns);
}

/* With a clock that stands still nothing waits for real time. */
static void clock_of_a_test(void)
{
    static const mx_clock still = {still_now, NULL};
    tally all;
    if (!open_threads(&all, 1, 100, &still)) return;
    CHECK(!send(&all, 1, 0, 0, false));
    CHECK(!send(&all, 1, 0, 5000, false));
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    CHECK(all.done == 0);
    atomic_store(&still_ns, 6000);
    mx_scheduler_wake(all.s);
    CHECK(comes_true(&all.late, 1) && all.done == 1);
    atomic_store(&still_ns, 1000 + 100000);
    mx_scheduler_wake(all.s);
    CHECK(comes_true(&all.done, 2));
    mx_scheduler_close(all.s, 0);
}

/* Closing without grace cuts an endless job off between turns; with grace it
 * is given that long. */
static void closing(void)
{
    for (uint32_t grace = 0; grace <= 20; grace += 20) {
        tally all;
        if (!open_threads(&all, 1, 0, NULL)) return;
        CHECK(!send(&all, INT32_MAX, 0, 0, false));
        CHECK(!send(&all, 1, 5, 0, false));
        uint64_t t0 = mx_now_ns(&mx_clock_monotonic);
        mx_scheduler_close(all.s, grace);
        uint64_t took = mx_now_ns(&mx_clock_monotonic) - t0;
        CHECK_MSG(took >= grace * 1000000u, "closed after %" PRIu64 " ns", took);
        CHECK(all.taken == all.done && all.cancelled >= 1);
    }
}

/* From submit to done() of an empty turn: what the scheduler adds. */
static void latency(void)
{
    tally all;
    if (!open_threads(&all, 1, 0, NULL)) return;
    uint64_t total = 0;
    enum { JOBS = 500 };
    for (int i = 0; i < JOBS; i++) {
        uint64_t t0 = mx_now_ns(&mx_clock_monotonic);
        CHECK(!send(&all, 1, 0, 0, false));
        while (atomic_load(&all.done) <= i) {}
        total += mx_now_ns(&mx_clock_monotonic) - t0;
    }
    printf("  submit to done: mean %.1f us, worker asleep at submit\n", (double)total / JOBS / 1e3);
    mx_scheduler_close(all.s, 0);
}

static void last(void)
{
    if (devs[0].ops) devs[0].ops->close(&devs[0]);
    CHECK(true);
}

MX_TESTS(TEST(storm), TEST(sleepers_wake), TEST(clock_of_a_test), TEST(closing), TEST(latency), TEST(last))
