/* test_scheduler_share.c - who comes next: classes, tenants, rates, deadlines, replicas,
 * express lanes, the budget of rows; and what is promised about waiting, over many seeds.
 *
 * The real scheduler, a fake run() and a clock that moves when told.  MX_TEST_SEED sets
 * the first seed, MX_TEST_WORLDS how many follow (100000 is the long form).
 * tests/scheduler_faults.sh plants faults and wants them found here. */
#include "runtime/scheduler.h"
#include "tests/test.h"

#include <inttypes.h>

static uint64_t time_ns;

static uint64_t fake_now(void *ctx)
{
    return *(uint64_t *)ctx;
}

static const mx_clock fake_clock = {fake_now, &time_ns};
static mx_device devs[3];
static mx_error  err;

static mx_scheduler *open_stepped(int n)
{
    mx_scheduler *s = NULL;
    if (!devs[0].ops) {
        mx_device *d;
        int count;
        CHECK_OK(mx_devices_open(&d, &count, &(mx_device_options){.cpu_threads = 1}, &err), err);
        for (int i = 0; i < 3; i++) devs[i] = d[0];
        free(d);                             /* the table only: the device lives on in devs */
    }
    time_ns = 1000000000;
    CHECK_OK(mx_scheduler_open_stepped(&s, devs, n, &fake_clock, &err), err);
    return s;
}

/* What a lane costs: its turns take `turn` and `row` for each row. */
typedef struct cost {
    uint64_t turn_ns, row_ns;
    uint32_t turns, rows, last_rows;
    uint64_t of[MX_TENANTS];
    void   (*during)(void *user);            /* in the middle of a turn */
    void    *user;
} cost;

typedef struct task {
    mx_job   job;
    char     name;
    uint32_t prompt, turns;      /* rows that may come in over many turns; then a row a turn */
    int      times_done;
} task;

static char story[4096];

static void tell(char c)
{
    size_t n = strlen(story);
    if (n + 2 > sizeof story) return;
    story[n] = c;
    story[n + 1] = '\0';
}

static void run(void *model, mx_stream *s, mx_job **jobs, int n)
{
    cost *c = model;
    (void)s;
    c->last_rows = 0;
    for (int i = 0; i < n; i++) {
        task *t = (task *)jobs[i];
        if (t->name) tell(t->name);
        c->last_rows += jobs[i]->granted;
        c->of[jobs[i]->tenant] += jobs[i]->granted;
        if (t->prompt) t->prompt -= jobs[i]->granted < t->prompt ? jobs[i]->granted : t->prompt;
        else if (t->turns) t->turns--;
        jobs[i]->splits = t->prompt > 0;
        jobs[i]->rows = t->prompt ? t->prompt : 1;
        jobs[i]->verdict = t->prompt || t->turns ? MX_AGAIN : MX_DONE;
    }
    c->turns++;
    c->rows += c->last_rows;
    uint64_t took = c->turn_ns + c->row_ns * c->last_rows;
    time_ns += took / 2;
    if (c->during) c->during(c->user);
    time_ns += took - took / 2;
}

static void on_done(mx_job *j)
{
    ((task *)j)->times_done++;
}

static task make(char name, uint8_t tenant, uint8_t priority, uint32_t prompt, uint32_t turns)
{
    return (task){.job = {.tenant = tenant, .priority = priority, .rows = prompt ? prompt : 1, .splits = prompt > 0, .done = on_done},
                  .name = name, .prompt = prompt, .turns = turns};
}

static void add_lane(mx_scheduler *s, mx_lane_config c, cost *k)
{
    c.run = run;
    c.model = k;
    if (!c.queue_limit) c.queue_limit = 100000;
    CHECK_OK(mx_scheduler_lane(s, &c, &err), err);
}

static void submit(mx_scheduler *s, const char *lane, task *t)
{
    CHECK_OK(mx_scheduler_submit(s, lane, &t->job, &err), err);
}

static int run_all(mx_scheduler *s, int device)
{
    int n = 0;
    while (n < 100000 && mx_scheduler_step(s, device, NULL)) n++;
    return n;
}

/* ---- classes ------------------------------------------------------------------------ */

static void classes(void)
{
    mx_scheduler *s = open_stepped(1);
    cost k = {.turn_ns = 1000};
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 1}, &k);
    task t[5] = {make('d', 0, 3, 0, 1), make('c', 0, 2, 0, 1), make('b', 0, 1, 0, 1), make('a', 0, 0, 0, 1), make('x', 0, 0, 0, 1)};
    *story = 0;
    for (int i = 0; i < 5; i++) submit(s, "l", &t[i]);
    run_all(s, 0);
    CHECK_STR(story, "axbcd");
    /* Patience: of many interactive jobs one batch job waits for MX_PATIENCE, not for all. */
    static task many[40];
    *story = 0;
    t[0] = make('d', 0, MX_PRIORITY_BATCH, 0, 1);
    submit(s, "l", &t[0]);
    for (int i = 0; i < 40; i++) {
        many[i] = make('i', 0, 0, 0, 1);
        submit(s, "l", &many[i]);
    }
    run_all(s, 0);
    CHECK(strchr(story, 'd') - story == MX_PATIENCE);
    t[0].job.priority = MX_PRIORITIES;
    CHECK(mx_scheduler_submit(s, "l", &t[0].job, &err) == MX_ERR_ARG && strstr(err.text, "priority"));
    mx_scheduler_close(s, 0);
}

/* Batch work fills three quarters of the places: an interactive text begins at once. */
static void places(void)
{
    mx_scheduler *s = open_stepped(1);
    cost k = {.turn_ns = 1000};
    mx_lane_stats st;
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 8, .max_rows = 8}, &k);
    static task b[12], a[3];
    for (int i = 0; i < 12; i++) {
        b[i] = make(0, 0, MX_PRIORITY_BATCH, 0, 100);
        submit(s, "l", &b[i]);
    }
    mx_scheduler_step(s, 0, NULL);
    CHECK(mx_scheduler_stats(s, "l", &st) && st.running == 6 && st.waiting == 6);
    for (int i = 0; i < 3; i++) {
        a[i] = make(0, 0, MX_PRIORITY_INTERACTIVE, 0, 3);
        submit(s, "l", &a[i]);
    }
    mx_scheduler_step(s, 0, NULL);
    CHECK(mx_scheduler_stats(s, "l", &st) && st.running == 8 && a[0].job.started_ns && a[1].job.started_ns && !a[2].job.started_ns);
    run_all(s, 0);
    for (int i = 0; i < 12; i++) CHECK(b[i].times_done == 1);
    /* The same between tenants, once there are some: nobody holds every place. */
    CHECK_OK(mx_scheduler_tenant(s, 1, &(mx_tenant_config){.weight = 1}, &err), err);
    for (int i = 0; i < 12; i++) {
        b[i] = make(0, 1, 0, 0, 100);
        submit(s, "l", &b[i]);
    }
    mx_scheduler_step(s, 0, NULL);
    CHECK(mx_scheduler_stats(s, "l", &st) && st.running == 7);
    a[0] = make(0, 2, 0, 0, 1);
    submit(s, "l", &a[0]);
    mx_scheduler_step(s, 0, NULL);
    CHECK(a[0].times_done == 1);
    mx_tenant_stats ts;
    mx_scheduler_tenant_stats(s, 1, &ts);
    CHECK(ts.running == 7 && ts.waiting == 5 && ts.rows == 14 && !ts.refused);
    mx_scheduler_close(s, 0);
}

/* ---- fair shares ----------------------------------------------------------------------- */

enum { QUEUED = 6 };

/* Tenants that always want more, with jobs of random lengths, on `replicas` devices.  Returns the
 * largest error of a share, relative. */
static double share_error(uint64_t seed, const double *weight, int tenants, int replicas, uint32_t max_jobs, uint32_t max_rows)
{
    mx_scheduler *s = open_stepped(replicas);
    static task all[8][QUEUED * 3 + 64];
    cost k = {.turn_ns = 1000, .row_ns = 100};
    uint64_t state = seed;
    double sum = 0, total = 0, worst = 0;
    for (int i = 0; i < replicas; i++) add_lane(s, (mx_lane_config){.name = "l", .device = i, .max_jobs = max_jobs, .max_rows = max_rows}, &k);
    for (int t = 0; t < tenants; t++) {
        CHECK_OK(mx_scheduler_tenant(s, (uint8_t)t, &(mx_tenant_config){.weight = weight[t]}, &err), err);
        sum += weight[t];
        for (size_t i = 0; i < QUEUED * 3 + 64; i++) all[t][i] = (task){.times_done = 1};
    }
    for (int turn = 0; turn < 60000; turn++) {
        for (int t = 0; t < tenants; t++) {
            mx_tenant_stats ts;
            mx_scheduler_tenant_stats(s, (uint8_t)t, &ts);
            for (size_t i = 0; ts.waiting < QUEUED * (uint32_t)replicas && i < QUEUED * 3 + 64; i++) {
                if (!all[t][i].times_done) continue;
                all[t][i] = make(0, (uint8_t)t, 0, test_random(&state) % 3 ? 0 : 1 + (uint32_t)(test_random(&state) % 20),
                                 1 + (uint32_t)(test_random(&state) % (t % 2 ? 5 : 30)));
                submit(s, "l", &all[t][i]);
                ts.waiting++;
            }
        }
        mx_scheduler_step(s, turn % replicas, NULL);
        if (turn == 2000) memset(k.of, 0, sizeof k.of);       /* begun */
    }
    for (int t = 0; t < tenants; t++) total += (double)k.of[t];
    for (int t = 0; t < tenants; t++) {
        double part = (double)k.of[t] / total, want = weight[t] / sum, e = fabs(part / want - 1);
        if (e > worst) worst = e;
    }
    mx_scheduler_close(s, 0);
    return worst;
}

static void fair_shares(void)
{
    static const double even[4] = {1, 1, 1, 1}, steep[4] = {1, 2, 4, 8}, two[2] = {3, 1};
    double worst = 0;
    for (uint64_t seed = 1; seed <= 3; seed++) {
        double e[] = {share_error(seed, even, 4, 1, 8, 8), share_error(seed, steep, 4, 1, 16, 64), share_error(seed, two, 2, 1, 4, 6),
                      share_error(seed, steep, 4, 2, 8, 16)};
        for (int i = 0; i < 4; i++) {
            CHECK_MSG(e[i] <= 0.01, "seed %" PRIu64 ", case %d: %.2f %%", seed, i, 100 * e[i]);
            if (e[i] > worst) worst = e[i];
        }
    }
    printf("  largest error of a tenant's share: %.2f %%\n", 100 * worst);
}

/* Who was away does not catch up: from its return on it has its share, no more. */
static void no_credit(void)
{
    mx_scheduler *s = open_stepped(1);
    cost k = {.turn_ns = 1000};
    static task t[3000];
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 1}, &k);
    for (int i = 0; i < 3000; i++) t[i] = make(0, i < 2000 ? 1 : 2, 0, 0, 1);
    for (int i = 0; i < 2000; i++) submit(s, "l", &t[i]);
    for (int i = 0; i < 1000; i++) mx_scheduler_step(s, 0, NULL);
    for (int i = 2000; i < 3000; i++) submit(s, "l", &t[i]);
    for (int i = 0; i < 200; i++) mx_scheduler_step(s, 0, NULL);
    CHECK_MSG(k.of[1] == 1100 && k.of[2] == 100, "%" PRIu64 ", %" PRIu64, k.of[1], k.of[2]);
    mx_scheduler_close(s, 0);
}

static void rates(void)
{
    mx_scheduler *s = open_stepped(1);
    cost k = {.turn_ns = 1000000};
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 4, .max_rows = 64}, &k);
    CHECK_OK(mx_scheduler_tenant(s, 1, &(mx_tenant_config){.weight = 1, .rows_per_second = 1000, .burst_rows = 100}, &err), err);
    uint64_t start = time_ns;
    int refused = 0;
    while (time_ns < start + 2000000000) {
        task a = make(0, 1, 0, 10, 5), b = make(0, 2, 0, 0, 1);
        mx_status st = mx_scheduler_submit(s, "l", &a.job, &err);
        if (st) {
            refused++;
            CHECK_MSG(st == MX_ERR_BUSY && err.retry_ms >= 1 && err.retry_ms < 200 && strstr(err.text, "rate"), "%s, %u", err.text, err.retry_ms);
        }
        submit(s, "l", &b);                  /* others do not feel it */
        run_all(s, 0);
        CHECK(b.times_done == 1 && !b.job.error.code);
    }
    double seconds = (double)(time_ns - start) * 1e-9, rows = (double)k.of[1];
    CHECK_MSG(refused > 10 && fabs(rows - (1000 * seconds + 100)) < 30, "%.0f rows in %.2f s, %d refused", rows, seconds, refused);
    time_ns += 3600000000000;                /* an idle hour saves no more than the burst */
    uint64_t had = k.of[1];
    for (int i = 0; i < 60; i++) {
        task a = make(0, 1, 0, 10, 0);
        time_ns++;
        if (!mx_scheduler_submit(s, "l", &a.job, &err)) run_all(s, 0);
        time_ns -= k.turn_ns;
    }
    CHECK_MSG(k.of[1] - had >= 100 && k.of[1] - had <= 110, "%" PRIu64 " rows at once", k.of[1] - had);
    CHECK_OK(mx_scheduler_tenant(s, 3, &(mx_tenant_config){.weight = 1, .max_waiting = 2}, &err), err);
    task q[3] = {make(0, 3, 0, 0, 1), make(0, 3, 0, 0, 1), make(0, 3, 0, 0, 1)};
    submit(s, "l", &q[0]);
    submit(s, "l", &q[1]);
    CHECK(mx_scheduler_submit(s, "l", &q[2].job, &err) == MX_ERR_BUSY && strstr(err.text, "tenant"));
    mx_tenant_stats ts;
    mx_scheduler_tenant_stats(s, 3, &ts);
    CHECK(ts.refused == 1 && ts.waiting == 2);
    const mx_tenant_config bad[] = {{.weight = 0}, {.weight = NAN}, {.weight = 1, .rows_per_second = -1}, {.weight = 1, .burst_rows = NAN}};
    const char *words[] = {"weight", "weight", "rows_per_second", "burst_rows"};
    for (int i = 0; i < 4; i++) CHECK(mx_scheduler_tenant(s, 4, &bad[i], &err) == MX_ERR_ARG && strstr(err.text, words[i]));
    mx_scheduler_close(s, 0);
}

/* ---- deadlines at submit ------------------------------------------------------------------ */

static void admission(void)
{
    mx_scheduler *s = open_stepped(1);
    cost k = {.turn_ns = 1000000};
    static task t[60];
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 1}, &k);
    for (int i = 0; i < MX_MEASURED_JOBS; i++) {
        t[i] = make(0, 0, 0, 0, 1);
        submit(s, "l", &t[i]);
    }
    task late = make(0, 0, 0, 0, 1);
    late.job.deadline_ns = time_ns + 5000000;
    CHECK_OK(mx_scheduler_submit(s, "l", &late.job, &err), err);     /* no pace is known yet */
    run_all(s, 0);
    CHECK(late.job.error.code == MX_ERR_DEADLINE && !late.job.started_ns);
    for (int i = 0; i < 10; i++) {
        t[i] = make(0, 0, 1, 0, 1);
        submit(s, "l", &t[i]);
    }
    late = make(0, 0, 1, 0, 1);
    late.job.deadline_ns = time_ns + 10500000;                        /* 10 before it and its own: 11 ms */
    CHECK(mx_scheduler_submit(s, "l", &late.job, &err) == MX_ERR_DEADLINE && strstr(err.text, "10 requests wait"));
    late.job.priority = 0;                                            /* nobody is before it now */
    CHECK_OK(mx_scheduler_submit(s, "l", &late.job, &err), err);
    task fits = make(0, 0, 1, 0, 1);
    fits.job.deadline_ns = time_ns + 13500000;
    CHECK_OK(mx_scheduler_submit(s, "l", &fits.job, &err), err);
    run_all(s, 0);
    CHECK(late.times_done == 1 && !late.job.error.code && fits.times_done == 1 && !fits.job.error.code);
    mx_scheduler_close(s, 0);
}

/* ---- replicas --------------------------------------------------------------------------------- */

static int where(mx_scheduler *s, task *t, int devices)
{
    for (int d = 0; d < devices; d++) {
        int before = t->times_done;
        run_all(s, d);
        if (t->times_done != before) return d;
    }
    return -1;
}

static void affinity(void)
{
    mx_scheduler *s = open_stepped(3);
    cost k = {.turn_ns = 1000};
    for (int i = 0; i < 3; i++) add_lane(s, (mx_lane_config){.name = "l", .device = i, .max_jobs = 8, .max_rows = 8}, &k);
    task a = make(0, 0, 0, 0, 1), b;
    for (int i = 0; i < 3; i++) {                                     /* each has a pace */
        static task w[3];
        w[i] = make(0, 0, 0, 0, 1);
        submit(s, "l", &w[i]);
    }
    for (int i = 0; i < 3; i++) run_all(s, i);
    a.job.affinity = 77;
    submit(s, "l", &a);
    int home = where(s, &a, 3);
    static task rest[6];
    for (int i = 0; i < 2; i++) {                                     /* two jobs more than elsewhere are no reason to leave */
        rest[i] = make(0, 0, 0, 0, 50);
        rest[i].job.affinity = 77;
        submit(s, "l", &rest[i]);
        mx_scheduler_step(s, home, NULL);
        CHECK(rest[i].job.started_ns);
    }
    b = make(0, 0, 0, 0, 1);
    submit(s, "l", &b);                                               /* without affinity: the least loaded */
    CHECK(where(s, &b, 3) != -1);
    for (int i = 2; i < 6; i++) {
        rest[i] = make(0, 0, 0, 0, 50);
        rest[i].job.affinity = 77;
        submit(s, "l", &rest[i]);
        mx_scheduler_step(s, home, NULL);
    }
    CHECK(rest[2].job.started_ns && !rest[5].job.started_ns);         /* too far behind: it went elsewhere */
    for (int i = 0; i < 3; i++) run_all(s, i);
    for (int i = 0; i < 6; i++) CHECK(rest[i].times_done == 1);
    mx_scheduler_close(s, 0);
}

/* A device that is three times as quick gets three times the jobs. */
static void unequal_devices(void)
{
    mx_scheduler *s = open_stepped(2);
    cost k[2] = {{.turn_ns = 1000000}, {.turn_ns = 3000000}};
    static task t[4000];
    uint64_t busy[2] = {0};
    int n = 0;
    for (int i = 0; i < 2; i++) add_lane(s, (mx_lane_config){.name = "l", .device = i, .max_jobs = 1, .max_rows = 1}, &k[i]);
    uint64_t start = time_ns;
    for (uint64_t now = start; now < start + 2000000000; now += 250000) {
        mx_lane_stats st;
        mx_scheduler_stats(s, "l", &st);
        for (; st.waiting < 16; st.waiting++) {
            t[n] = make(0, 0, 0, 0, 1);
            submit(s, "l", &t[n++]);
        }
        for (int d = 0; d < 2; d++) {                                 /* each device has its own time */
            if (busy[d] > now) continue;
            time_ns = now;
            if (mx_scheduler_step(s, d, NULL)) busy[d] = time_ns;
        }
        time_ns = now;
    }
    double ratio = (double)k[0].turns / k[1].turns;
    CHECK_MSG(ratio > 2.7 && ratio < 3.3, "%u and %u turns", k[0].turns, k[1].turns);
    mx_scheduler_close(s, 0);
}

/* ---- lanes beside each other ---------------------------------------------------------------------- */

static void express(void)
{
    mx_scheduler *s = open_stepped(1);
    cost k = {.turn_ns = 1000}, x = {.turn_ns = 10};
    add_lane(s, (mx_lane_config){.name = "slow", .priority = 0, .max_jobs = 1, .max_rows = 1}, &k);
    add_lane(s, (mx_lane_config){.name = "quick", .priority = 9, .max_jobs = 1, .max_rows = 1, .express = true}, &x);
    task a = make('s', 0, 0, 0, 2), b = make('q', 0, 0, 0, 2);
    *story = 0;
    submit(s, "slow", &a);
    submit(s, "quick", &b);
    run_all(s, 0);
    CHECK_STR(story, "qqss");                /* its own worker: the lane's priority says nothing */
    CHECK(mx_scheduler_lane_close(s, "quick") && !mx_scheduler_lane_close(s, "quick"));
    CHECK(mx_scheduler_submit(s, "quick", &b.job, &err) == MX_ERR_NOT_FOUND);
    add_lane(s, (mx_lane_config){.name = "quick", .max_jobs = 1, .max_rows = 1, .express = true}, &x);
    b = make('q', 0, 0, 0, 1);
    submit(s, "quick", &b);
    CHECK(mx_scheduler_lane_close(s, "quick") && b.times_done == 1 && !b.job.error.code);
    mx_scheduler_close(s, 0);
}

/* A training lane beside a lane that never rests has its least share, no more than twice that. */
static void least_share(void)
{
    mx_scheduler *s = open_stepped(1);
    cost serve = {.turn_ns = 2000000}, train = {.turn_ns = 20000000};
    add_lane(s, (mx_lane_config){.name = "serve", .priority = 2, .max_jobs = 1, .max_rows = 1}, &serve);
    add_lane(s, (mx_lane_config){.name = "train", .priority = 9, .max_jobs = 1, .max_rows = 1}, &train);
    task a = make(0, 0, 0, 0, UINT32_MAX), b = make(0, 0, 0, 0, UINT32_MAX);
    submit(s, "serve", &a);
    submit(s, "train", &b);
    for (int i = 0; i < 50000; i++) mx_scheduler_step(s, 0, NULL);
    double part = (double)train.turns * 20 / ((double)train.turns * 20 + (double)serve.turns * 2);
    CHECK_MSG(part > 0.9 / MX_LEAST_SHARE && part < 2.0 / MX_LEAST_SHARE, "%.4f", part);
    mx_scheduler_close(s, 0);
}

typedef struct arrival {
    mx_scheduler *s;
    task          t;
    bool          comes;
} arrival;

static void arrive(void *user)
{
    arrival *a = user;
    if (!a->comes) return;
    a->t = make(0, 0, 0, 0, 1);
    submit(a->s, "quick", &a->t);
}

/* Rows of a turn shrink while a lane before it has to wait, and grow back when nobody does. */
static void budget(void)
{
    mx_scheduler *s = open_stepped(1);
    arrival a = {.s = s, .comes = true};
    cost quick = {.turn_ns = 1000000}, bulk = {.turn_ns = 100000, .row_ns = 20000, .during = arrive, .user = &a};
    mx_lane_stats st;
    add_lane(s, (mx_lane_config){.name = "quick", .priority = 1, .max_jobs = 1, .max_rows = 1}, &quick);
    add_lane(s, (mx_lane_config){.name = "bulk", .priority = 2, .max_jobs = 4, .max_rows = 512}, &bulk);
    task big = make(0, 0, 0, 1u << 30, 1);
    submit(s, "bulk", &big);
    mx_scheduler_step(s, 0, NULL);
    CHECK(bulk.last_rows == 512);
    uint64_t waited = 0;
    for (int i = 0; i < 20; i++) {
        mx_scheduler_step(s, 0, NULL);                      /* quick */
        CHECK(a.t.times_done == 1);
        waited = a.t.job.started_ns - a.t.job.queued_ns;
        mx_scheduler_step(s, 0, NULL);                      /* bulk, in whose middle another one comes */
    }
    CHECK_MSG(waited <= 200000, "%" PRIu64 " ns behind a turn", waited);      /* a fifth of its own turn */
    CHECK(bulk.last_rows >= 8 && bulk.last_rows <= 16);
    mx_scheduler_stats(s, "bulk", &st);
    CHECK(st.budget == bulk.last_rows && st.replicas == 1);
    a.comes = false;
    for (int i = 0; i < 40; i++) mx_scheduler_step(s, 0, NULL);
    CHECK(bulk.last_rows == 512);
    mx_scheduler_close(s, 0);
}

/* ---- many schedules ---------------------------------------------------------------------------------- */

enum { LANES = 4, ACTORS = 100 };

typedef struct world world;

typedef struct stage {                       /* a lane as its run() sees it */
    world   *w;
    mx_lane_config c;
    uint32_t turns, live, batch;             /* jobs taken and not done; running batch jobs */
    uint32_t passed[MX_PRIORITIES], waits[MX_PRIORITIES];
    uint64_t waited_ns, longest_ns, rows;     /* waited: in turns of other lanes of its worker */
} stage;

typedef struct actor {
    task     t;
    stage   *at;
    uint32_t last_turn;
    bool     told;                           /* cancelled, and the scheduler was woken */
} actor;

struct world {
    mx_scheduler *s;
    stage    stages[LANES];
    actor    actors[ACTORS];
    int      n, bad;
    uint64_t state, longest_ns;
    bool     closed;                         /* lane "b" */
    bool     tenants, replicas;              /* where jobs of replicas are, only run() learns */
    uint32_t worst_gap, worst_passed;
    uint64_t worst_wait;
};

static void expect(world *w, bool ok, const char *what)
{
    if (!ok && !w->bad++) fprintf(stderr, "  %s\n", what);
}

static void actor_done(mx_job *j)
{
    actor *a = (actor *)j;
    world *w = a->at->w;
    a->t.times_done++;
    a->at->live -= !w->replicas;
    if (w->replicas) {}
    else if (!a->last_turn) a->at->waits[j->priority]--;
    else if (j->priority == MX_PRIORITY_BATCH) a->at->batch--;
    if (!j->error.code) expect(w, !a->t.prompt && !a->t.turns, "done is done");
    else if (j->error.code == MX_ERR_CANCELLED) expect(w, atomic_load(&j->cancelled), "cancelled by somebody");
    else expect(w, j->error.code == MX_ERR_DEADLINE && j->deadline_ns && j->deadline_ns <= time_ns, "past its deadline");
}

static void come(world *w)
{
    if (w->n == ACTORS) return;
    actor *a = &w->actors[w->n];
    stage *at = &w->stages[test_random(&w->state) % 3 ? 0 : test_random(&w->state) % LANES];
    uint32_t prompt = test_random(&w->state) % 3 ? 0 : 1 + (uint32_t)(test_random(&w->state) % 40);
    bool endless = test_random(&w->state) % 8 == 0;
    *a = (actor){.t = make(0, w->tenants ? (uint8_t)(test_random(&w->state) % 3) : 0, (uint8_t)(test_random(&w->state) % MX_PRIORITIES), prompt,
                           1 + (uint32_t)(test_random(&w->state) % (endless ? 200 : 6))), .at = at};
    a->t.job.done = actor_done;
    a->t.job.affinity = test_random(&w->state) % 4;
    if (test_random(&w->state) % 8 == 0) a->t.job.deadline_ns = time_ns + 1 + test_random(&w->state) % 400000000;
    mx_status st = mx_scheduler_submit(w->s, at->c.name, &a->t.job, &err);
    expect(w, !st || (st == MX_ERR_BUSY && err.retry_ms) || (st == MX_ERR_DEADLINE && a->t.job.deadline_ns) ||
               (st == MX_ERR_NOT_FOUND && w->closed && at == &w->stages[1]), "submit");
    if (st) return;
    w->n++;
    if (w->replicas) return;
    if (!at->live++) at->waited_ns = 0;
    at->waits[a->t.job.priority]++;
}

/* An admission: classes behind it that wait were passed over once more. */
static void admitted(stage *at, actor *a)
{
    world *w = at->w;
    int p = a->t.job.priority;
    if (w->replicas) return;
    at->waits[p]--;
    at->passed[p] = 0;
    for (int q = p + 1; q < MX_PRIORITIES; q++) {
        bool may = at->waits[q] && !w->tenants && (q != MX_PRIORITY_BATCH || at->batch < at->c.max_jobs - at->c.max_jobs / 4);
        at->passed[q] = may ? at->passed[q] + 1 : 0;
        expect(w, at->passed[q] <= MX_PATIENCE + MX_PRIORITIES, "a class was passed over for longer than promised");
        if (at->passed[q] > w->worst_passed) w->worst_passed = at->passed[q];
    }
    if (p == MX_PRIORITY_BATCH) expect(w, ++at->batch <= at->c.max_jobs - at->c.max_jobs / 4, "batch took the last places");
}

/* Nobody on the device waits beyond its least share, give or take the turns that run just then. */
static void check_waits(stage *at, uint64_t took)
{
    world *w = at->w;
    for (int i = 0; i < LANES; i++) {
        stage *o = &w->stages[i];
        if (w->replicas || o == at || !o->live || o->c.device != at->c.device || o->c.express != at->c.express) continue;
        uint64_t turn = o->longest_ns > 1000000 ? o->longest_ns : 1000000;
        o->waited_ns += took;
        expect(w, o->waited_ns <= MX_LEAST_SHARE * turn + LANES * w->longest_ns, "a lane starves");
        if (o->waited_ns / turn > w->worst_wait) w->worst_wait = o->waited_ns / turn;
    }
}

static void run_actors(void *model, mx_stream *s, mx_job **jobs, int n)
{
    stage *at = model;
    world *w = at->w;
    uint32_t turn = ++at->turns, rows = 0;
    (void)s;
    expect(w, n >= 1 && (uint32_t)n <= at->c.max_jobs, "jobs of a turn");
    for (int i = 0; i < n; i++) {
        actor *a = (actor *)jobs[i];
        expect(w, !a->told && (!jobs[i]->deadline_ns || jobs[i]->deadline_ns > time_ns), "a cancelled or late job had a turn");
        rows += jobs[i]->granted;
        if (!a->last_turn) admitted(at, a);
        else {
            uint32_t gap = turn - a->last_turn;
            expect(w, gap <= at->c.max_jobs, "a running job starves");
            if (gap > w->worst_gap) w->worst_gap = gap;
        }
        a->last_turn = turn;
        a->at = at;
        if (a->t.prompt) a->t.prompt -= jobs[i]->granted < a->t.prompt ? jobs[i]->granted : a->t.prompt;
        else a->t.turns--;
        jobs[i]->splits = a->t.prompt > 0;
        jobs[i]->rows = a->t.prompt ? a->t.prompt : 1;
        jobs[i]->verdict = a->t.prompt || a->t.turns ? MX_AGAIN : MX_DONE;
    }
    expect(w, rows <= at->c.max_rows || n == 1, "budget of rows");
    at->rows += rows;
    uint64_t took = 100000 + test_random(&w->state) % 8000000;
    time_ns += took / 2;
    if (test_random(&w->state) % 4 == 0) come(w);           /* while the turn runs */
    time_ns += took - took / 2;
    if (took > at->longest_ns) at->longest_ns = took;
    if (took > w->longest_ns) w->longest_ns = took;
    at->waited_ns = 0;
    check_waits(at, took);
}

static void lay_lanes(world *w)
{
    static const char *const names[LANES] = {"a", "b", "c", "d"};
    for (int i = 0; i < LANES; i++) {
        stage *at = &w->stages[i];
        *at = (stage){.w = w, .c = {.name = names[i == 3 && w->replicas ? 0 : i], .device = i == 3, .priority = (int)(test_random(&w->state) % 3),
                                    .max_jobs = 1 + (uint32_t)(test_random(&w->state) % 8), .max_rows = 1 + (uint32_t)(test_random(&w->state) % 12),
                                    .max_wait_us = test_random(&w->state) % 4 ? 0 : 20, .queue_limit = 30, .run = run_actors, .model = at,
                                    .express = i == 2 && test_random(&w->state) % 4 == 0}};
        expect(w, !mx_scheduler_lane(w->s, &at->c, &err), err.text);
    }
}

static void disturb(world *w)
{
    uint64_t dice = test_random(&w->state) % 40;
    if (dice < 12) come(w);
    else if (dice == 12 && w->n) {
        actor *a = &w->actors[test_random(&w->state) % (unsigned)w->n];
        atomic_store(&a->t.job.cancelled, true);
        a->told = true;
        mx_scheduler_wake(w->s);
    }
}

/* One random schedule; returns the number of broken promises. */
static int one_world(uint64_t seed, world *sums)
{
    static world w;
    memset(&w, 0, sizeof w);
    w.state = seed;
    w.s = open_stepped(2);
    if (!w.s) return 1;
    w.tenants = test_random(&w.state) % 3 == 0;
    w.replicas = test_random(&w.state) % 4 == 0;
    lay_lanes(&w);
    for (uint8_t t = 0; w.tenants && t < 3; t++)
        mx_scheduler_tenant(w.s, t, &(mx_tenant_config){.weight = 1 + (double)(test_random(&w.state) % 5),
                                                        .rows_per_second = t == 2 ? 5000 : 0}, &err);
    bool closes = test_random(&w.state) % 4 == 0;
    for (int idle = 0, steps = 0; idle < 3 && steps < 20000; steps++) {
        disturb(&w);
        if (closes && steps == 100) {
            w.closed = true;
            expect(&w, mx_scheduler_lane_close(w.s, "b"), "closing a lane");
        }
        uint64_t next[2] = {0, 0};
        int device = (int)(test_random(&w.state) % 2);
        bool did = mx_scheduler_step(w.s, device, &next[device]);
        if (!did) did = mx_scheduler_step(w.s, !device, &next[!device]);
        if (did) idle = 0;
        else if (next[0] != UINT64_MAX || next[1] != UINT64_MAX) time_ns = next[0] < next[1] ? next[0] : next[1];
        else if (w.n == ACTORS) idle++;
        else time_ns += 100000, come(&w), idle += test_random(&w.state) % 200 == 0;
    }
    uint64_t lanes = 0, tenants = 0;
    for (int i = 0; i < LANES; i++) lanes += w.stages[i].rows;
    for (uint8_t t = 0; t < 3; t++) {
        mx_tenant_stats ts;
        mx_scheduler_tenant_stats(w.s, t, &ts);
        tenants += ts.rows;
        expect(&w, !ts.waiting && !ts.running, "nobody is left");
    }
    uint64_t done = 0;
    for (int i = 0; i < LANES; i++) {
        mx_lane_stats st;
        if ((!w.replicas || i < 3) && mx_scheduler_stats(w.s, w.stages[i].c.name, &st)) done += st.done;
    }
    expect(&w, w.closed || done == (uint64_t)w.n, "jobs that lanes count as done");
    expect(&w, lanes == tenants, "rows of lanes are rows of tenants");
    mx_scheduler_close(w.s, 0);
    for (int i = 0; i < w.n; i++) expect(&w, w.actors[i].t.times_done == 1, "done() once");
    if (w.worst_gap > sums->worst_gap) sums->worst_gap = w.worst_gap;
    if (w.worst_passed > sums->worst_passed) sums->worst_passed = w.worst_passed;
    if (w.worst_wait > sums->worst_wait) sums->worst_wait = w.worst_wait;
    return w.bad;
}

static void many_worlds(void)
{
    const char *first = getenv("MX_TEST_SEED"), *count = getenv("MX_TEST_WORLDS");
    uint64_t seed = first ? strtoull(first, NULL, 0) : 1;
    int worlds = count ? atoi(count) : 3000, bad = 0;
    static world sums;
    for (int i = 0; i < worlds && bad < 5; i++) {
        int broken = one_world(seed + (uint64_t)i, &sums);
        CHECK_MSG(!broken, "MX_TEST_SEED=%" PRIu64 " MX_TEST_WORLDS=1 shows it", seed + (uint64_t)i);
        bad += broken != 0;
    }
    printf("  MX_TEST_SEED=%" PRIu64 ", %d schedules: at most %u turns without rows, %u admissions past a class, %" PRIu64 " turns of its own past a lane\n",
           seed, worlds, sums.worst_gap, sums.worst_passed, sums.worst_wait);
    if (worlds >= 1000) CHECK_MSG(sums.worst_gap > 1 && sums.worst_passed >= MX_PATIENCE && sums.worst_wait >= MX_LEAST_SHARE - 1,
                                  "nobody ever waited as long as is allowed: this proves nothing");
}

static void last(void)
{
    if (devs[0].ops) devs[0].ops->close(&devs[0]);
    CHECK(true);
}

MX_TESTS(TEST(classes), TEST(places), TEST(fair_shares), TEST(no_credit), TEST(rates), TEST(admission), TEST(affinity), TEST(unequal_devices),
         TEST(express), TEST(least_share), TEST(budget), TEST(many_worlds), TEST(last))
