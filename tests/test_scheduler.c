/* test_scheduler.c - the turn rule, with a fake run() and a clock that stands
 * still, stepped one decision at a time. */
#include "runtime/scheduler.h"
#include "tests/test.h"

#include <inttypes.h>

/* A clock that moves when told. */
static uint64_t time_ns;

static uint64_t fake_now(void *ctx)
{
    return *(uint64_t *)ctx;
}

static const mx_clock fake_clock = {fake_now, &time_ns};

/* One CPU device with one thread, seen as several. */
static mx_device devs[3];

static void open_devices(void)
{
    if (devs[0].ops) return;
    mx_device *d;
    int n;
    mx_error err = {0};
    CHECK_OK(mx_devices_open(&d, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    for (int i = 0; i < 3; i++) devs[i] = d[0];
    free(d);                                 /* the table only: the device lives on in devs */
}

/* A job with a script: `prompt` rows that may come in over many turns, then
 * `turns` turns of `width` rows each. */
typedef struct script {
    mx_job   job;
    char     name;
    uint32_t prompt, turns, width;
    bool     fails;              /* in its last turn */
    int      times_done;
    uint32_t last_turn, longest_gap;     /* in turns of its lane */
} script;

#define MOST_TURNS 4096
/* What a lane did, as text: "a1 b4|a1 c1" is two turns. */
static char story[MOST_TURNS];
static size_t story_len;
static char ended[256];          /* names in order of done() */

static void forget(void)
{
    story_len = 0;
    story[0] = '\0';
    ended[0] = '\0';
    time_ns = 1000000000;
}

static void tell(const char *fmt, char name, uint32_t rows)
{
    if (story_len + 16 > sizeof story) return;
    story_len += (size_t)snprintf(story + story_len, 16, fmt, name, rows);
}

static void on_done(mx_job *j)
{
    script *t = (script *)j;
    t->times_done++;
    size_t n = strlen(ended);
    if (n + 2 <= sizeof ended) {
        ended[n] = t->name;
        ended[n + 1] = '\0';
    }
}

static void advance_script(script *t)
{
    mx_job *j = &t->job;
    if (t->prompt) t->prompt -= j->granted < t->prompt ? j->granted : t->prompt;
    else if (t->turns) t->turns--;
    j->splits = t->prompt > 0;
    j->rows = t->prompt ? t->prompt : t->width;
    j->verdict = t->prompt || t->turns ? MX_AGAIN : MX_DONE;
    if (j->verdict == MX_DONE && t->fails) mx_fail(&j->error, MX_ERR_ARG, "script %c fails", t->name);
}

static void run_scripts(void *model, mx_stream *s, mx_job **jobs, int n)
{
    (void)model, (void)s;
    for (int i = 0; i < n; i++) {
        script *t = (script *)jobs[i];
        tell(i ? " %c%u" : "%c%u", t->name, jobs[i]->granted);
        advance_script(t);
    }
    if (story_len + 2 < sizeof story) {
        story[story_len++] = '|';
        story[story_len] = '\0';
    }
    time_ns += 1000;
}

/* Prompts split; a job without a prompt has rows from the start. */
static script make(char name, uint32_t prompt, uint32_t turns, uint32_t width)
{
    return (script){.job = {.rows = prompt ? prompt : width, .splits = prompt > 0, .done = on_done}, .name = name,
                    .prompt = prompt, .turns = turns, .width = width};
}

static mx_scheduler *open_stepped(int n_devs)
{
    open_devices();
    mx_scheduler *s = NULL;
    mx_error err = {0};
    CHECK_OK(mx_scheduler_open_stepped(&s, devs, n_devs, &fake_clock, &err), err);
    return s;
}

static void add_lane(mx_scheduler *s, mx_lane_config c)
{
    mx_error err = {0};
    if (!c.run) c.run = run_scripts;
    if (!c.queue_limit) c.queue_limit = 1000;
    CHECK_OK(mx_scheduler_lane(s, &c, &err), err);
}

static void submit(mx_scheduler *s, const char *lane, script *t)
{
    mx_error err = {0};
    CHECK_OK(mx_scheduler_submit(s, lane, &t->job, &err), err);
}

static int run_all(mx_scheduler *s, int device)
{
    int n = 0;
    while (n < 10000 && mx_scheduler_step(s, device, NULL)) n++;
    return n;
}

/* ---- the rule, turn by turn ------------------------------------------------- */

static void order(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 3, .max_rows = 8});
    forget();
    script a = make('a', 0, 3, 1), b = make('b', 0, 1, 1), c = make('c', 0, 2, 1), d = make('d', 0, 1, 1);
    submit(s, "l", &a);
    submit(s, "l", &b);
    submit(s, "l", &c);
    submit(s, "l", &d);
    run_all(s, 0);
    CHECK_STR(story, "a1 b1 c1|a1 c1 d1|a1|");
    CHECK_STR(ended, "bcda");
    mx_lane_stats st;
    CHECK(mx_scheduler_stats(s, "l", &st));
    CHECK(st.turns == 3 && st.rows == 7 && st.done == 4 && !st.waiting && !st.running && !st.refused);
    CHECK(st.busy_ns == 3000 && st.last_turn_ns == time_ns);
    CHECK(!mx_scheduler_stats(s, "m", &st) && !st.turns);
    mx_scheduler_close(s, 0);
}

static void latencies(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 1});
    forget();
    script a = make('a', 0, 2, 1), b = make('b', 0, 1, 1);
    submit(s, "l", &a);
    time_ns += 7;
    submit(s, "l", &b);
    uint64_t t = time_ns;
    run_all(s, 0);
    CHECK(a.job.queued_ns == t - 7 && a.job.started_ns == t && a.job.done_ns == t + 2000);
    CHECK(b.job.queued_ns == t && b.job.started_ns == t + 2000 && b.job.done_ns == t + 3000);
    mx_scheduler_close(s, 0);
}

/* Long prompts come in beside running texts, which never miss a turn. */
static void splits(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 4, .max_rows = 8});
    forget();
    script p = make('p', 20, 2, 1), a = make('a', 0, 6, 1), q = make('q', 5, 1, 1);
    submit(s, "l", &a);
    submit(s, "l", &p);
    submit(s, "l", &q);
    run_all(s, 0);
    CHECK_STR(story, "a1 p7|a1 p7|a1 p6 q1|a1 p1 q4|a1 p1 q1|a1|");
    mx_scheduler_close(s, 0);
}

static void oversize(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 4, .max_rows = 4});
    forget();
    script a = make('a', 0, 1, 3), big = make('B', 0, 1, 9), c = make('c', 0, 1, 1), z = make('z', 0, 1, 0);
    submit(s, "l", &a);
    submit(s, "l", &big);          /* does not fit beside a, and keeps c waiting: order of arrival */
    submit(s, "l", &c);
    submit(s, "l", &z);            /* no rows counts as one */
    run_all(s, 0);
    CHECK_STR(story, "a3|B9|c1 z1|");
    script p = make('p', 9, 0, 0);
    forget();
    submit(s, "l", &p);
    run_all(s, 0);
    CHECK_STR(story, "p4|p4|p1|");
    mx_scheduler_close(s, 0);
}

/* More running jobs than rows: whoever missed a turn goes first in the next. */
static void fairness(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 3, .max_rows = 2});
    forget();
    script a = make('a', 0, 3, 1), b = make('b', 0, 2, 1), c = make('c', 0, 2, 2);
    submit(s, "l", &c);
    CHECK(mx_scheduler_step(s, 0, NULL));
    submit(s, "l", &a);
    submit(s, "l", &b);
    run_all(s, 0);
    CHECK_STR(story, "c2|c2|a1 b1|a1 b1|a1|");
    forget();
    script d = make('d', 0, 3, 1), e = make('e', 0, 3, 1), f = make('f', 4, 0, 0);
    submit(s, "l", &f);            /* a prompt that the two texts would starve */
    CHECK(mx_scheduler_step(s, 0, NULL));
    CHECK_STR(story, "f2|");
    f.prompt = 4;
    f.job.rows = 4;
    d.job.rows = e.job.rows = 1;
    submit(s, "l", &d);
    submit(s, "l", &e);
    run_all(s, 0);
    CHECK_STR(story, "f2|f2|f2|d1 e1|d1 e1|d1 e1|");
    mx_scheduler_close(s, 0);
}

static void priorities(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "train", .priority = 9, .max_jobs = 1, .max_rows = 1});
    add_lane(s, (mx_lane_config){.name = "x", .priority = 1, .max_jobs = 1, .max_rows = 1});
    add_lane(s, (mx_lane_config){.name = "y", .priority = 1, .max_jobs = 1, .max_rows = 1});
    forget();
    script t = make('t', 0, 4, 1), x = make('x', 0, 3, 1), y = make('y', 0, 2, 1);
    submit(s, "train", &t);
    CHECK(mx_scheduler_step(s, 0, NULL));
    submit(s, "y", &y);
    submit(s, "x", &x);
    run_all(s, 0);
    CHECK_STR(story, "t1|x1|y1|x1|y1|x1|t1|t1|t1|");
    mx_scheduler_close(s, 0);
}

static void company(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 3, .max_rows = 10, .max_wait_us = 50});
    forget();
    script a = make('a', 0, 1, 1), b = make('b', 0, 2, 1), c = make('c', 0, 1, 1), d = make('d', 0, 1, 1);
    uint64_t next = 0, t0 = time_ns;
    submit(s, "l", &a);
    CHECK(!mx_scheduler_step(s, 0, &next) && next == t0 + 50000);
    time_ns += 20000;
    submit(s, "l", &b);
    CHECK(!mx_scheduler_step(s, 0, &next) && next == t0 + 50000);
    time_ns = t0 + 50000;
    CHECK(mx_scheduler_step(s, 0, NULL));
    CHECK_STR(story, "a1 b1|");
    submit(s, "l", &c);            /* b runs: nobody waits for company */
    CHECK(mx_scheduler_step(s, 0, NULL));
    CHECK_STR(story, "a1 b1|b1 c1|");
    CHECK(!mx_scheduler_step(s, 0, &next) && next == UINT64_MAX);
    a = make('a', 0, 1, 1), b = make('b', 0, 1, 1), c = make('c', 0, 1, 1);
    submit(s, "l", &a);
    submit(s, "l", &b);
    CHECK(!mx_scheduler_step(s, 0, NULL));
    submit(s, "l", &c);            /* max_jobs: full at once */
    CHECK(mx_scheduler_step(s, 0, NULL));
    a = make('a', 10, 0, 0);
    submit(s, "l", &a);            /* max_rows: full at once */
    CHECK(mx_scheduler_step(s, 0, NULL));
    submit(s, "l", &d);
    CHECK(!mx_scheduler_step(s, 0, NULL));
    mx_scheduler_drain(s);         /* nobody comes any more */
    CHECK(mx_scheduler_step(s, 0, NULL) && d.times_done == 1);
    mx_scheduler_close(s, 0);
}

/* ---- leaving early ------------------------------------------------------------ */

static void deadlines(void)
{
    mx_scheduler *s = open_stepped(1);
    mx_error err = {0};
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 4, .max_wait_us = 100});
    forget();
    uint64_t next, t0 = time_ns;
    script a = make('a', 0, 9, 1), b = make('b', 0, 1, 1), c = make('c', 0, 1, 1);
    a.job.deadline_ns = t0 + 5500;
    b.job.deadline_ns = t0 + 2500;
    submit(s, "l", &a);
    submit(s, "l", &b);
    submit(s, "l", &c);
    for (int i = 0; i < 3; i++) CHECK(mx_scheduler_step(s, 0, NULL));        /* turns end at 1000, 2000, 3000 */
    CHECK(b.times_done == 0);
    CHECK(mx_scheduler_step(s, 0, NULL) && b.times_done == 1);               /* given back although it only waited */
    CHECK(b.job.error.code == MX_ERR_DEADLINE && !b.job.started_ns && b.job.done_ns == t0 + 3000);
    run_all(s, 0);
    CHECK(a.times_done == 1 && a.job.error.code == MX_ERR_DEADLINE && a.turns == 3 && a.job.started_ns);
    CHECK(c.times_done == 1 && !c.job.error.code);

    script d = make('d', 0, 1, 1);
    d.job.deadline_ns = time_ns;
    CHECK(mx_scheduler_submit(s, "l", &d.job, &err) == MX_ERR_DEADLINE && !d.times_done);

    /* A worker that sleeps must wake for it. */
    add_lane(s, (mx_lane_config){.name = "slow", .max_jobs = 2, .max_rows = 4, .max_wait_us = 1000});
    d.job.deadline_ns = time_ns + 77;
    submit(s, "slow", &d);
    CHECK(!mx_scheduler_step(s, 0, &next) && next == time_ns + 77);
    time_ns = next;
    CHECK(mx_scheduler_step(s, 0, NULL) && d.times_done == 1 && d.job.error.code == MX_ERR_DEADLINE);
    mx_scheduler_close(s, 0);
}

/* Cancel one of three jobs after every possible number of steps. */
static void cancel_at_every_turn(void)
{
    for (int who = 0; who < 4; who++)
        for (int when = 0; when < 14; when++)
            for (int wake = 0; wake < 2; wake++) {
                mx_scheduler *s = open_stepped(1);
                add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 2, .max_rows = 4});
                forget();
                script t[4] = {make('a', 6, 3, 1), make('b', 0, 4, 1), make('c', 9, 2, 1), make('d', 0, 2, 3)};
                for (int i = 0; i < 4; i++) submit(s, "l", &t[i]);
                for (int i = 0; i < when; i++) mx_scheduler_step(s, 0, NULL);
                bool was_done = t[who].times_done;
                atomic_store(&t[who].job.cancelled, true);
                if (wake) mx_scheduler_wake(s);
                bool had_started = t[who].job.started_ns;
                size_t told = story_len;
                mx_scheduler_step(s, 0, NULL);
                /* It leaves before another turn; without a wake one that waits leaves when its turn comes. */
                if ((wake || had_started) && !was_done) CHECK(t[who].times_done == 1 && story_len == told);
                run_all(s, 0);
                for (int i = 0; i < 4; i++) {
                    CHECK(t[i].times_done == 1);
                    mx_status want = i == who && !was_done ? MX_ERR_CANCELLED : MX_OK;
                    CHECK_MSG(t[i].job.error.code == want, "job %d of cancelled %d at %d", i, who, when);
                    if (!want) CHECK(!t[i].turns && !t[i].prompt);
                }
                mx_lane_stats st;
                CHECK(mx_scheduler_stats(s, "l", &st) && st.done == 4 && !st.waiting && !st.running);
                mx_scheduler_close(s, 0);
            }
}

static void failures(void)
{
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 2, .max_rows = 4});
    forget();
    script a = make('a', 0, 2, 1), b = make('b', 0, 1, 1);
    b.fails = true;
    submit(s, "l", &a);
    submit(s, "l", &b);
    run_all(s, 0);
    CHECK(b.times_done == 1 && b.job.error.code == MX_ERR_ARG);
    CHECK_STR(b.job.error.text, "script b fails");
    CHECK(a.times_done == 1 && !a.job.error.code);
    mx_scheduler_close(s, 0);
}

static void run_broken(void *model, mx_stream *s, mx_job **jobs, int n)
{
    int *turn = model;
    run_scripts(NULL, s, jobs, n);
    if (++*turn != 2) return;
    mx_fail(&jobs[0]->error, MX_ERR_ARG, "its own");
    mx_stream_fail(s, MX_ERR_DEVICE, "linear: lost");
}

/* A turn whose stream failed fails its jobs, and no others. */
static void stream_errors(void)
{
    int turn = 0;
    mx_scheduler *s = open_stepped(1);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 2, .max_rows = 4, .run = run_broken, .model = &turn});
    forget();
    script a = make('a', 0, 9, 1), b = make('b', 0, 9, 1), c = make('c', 0, 2, 1);
    submit(s, "l", &a);
    submit(s, "l", &b);
    submit(s, "l", &c);
    run_all(s, 0);
    CHECK_STR(story, "a1 b1|a1 b1|c1|c1|");
    CHECK(a.job.error.code == MX_ERR_ARG && b.job.error.code == MX_ERR_DEVICE && !c.job.error.code);
    CHECK_STR(b.job.error.text, "linear: lost");
    CHECK(a.times_done == 1 && b.times_done == 1 && c.times_done == 1);
    mx_scheduler_close(s, 0);
}

static void refusals(void)
{
    mx_scheduler *s = open_stepped(2);
    mx_error err = {0};
    mx_lane_config good = {.name = "l", .max_jobs = 1, .max_rows = 1, .queue_limit = 2, .run = run_scripts}, c;
    CHECK_OK(mx_scheduler_lane(s, &good, &err), err);
    CHECK(mx_scheduler_lane(s, &good, &err) == MX_ERR_ARG);
    static const char *const words[] = {"name", "name", "device", "device", "run", "max_jobs", "max_jobs", "max_rows",
                                        "queue_limit"};
    for (int i = 0; i < 9; i++) {
        c = good;
        c.device = 1;
        if (i == 0) c.name = NULL;
        if (i == 1) c.name = "";
        if (i == 2) c.device = 2;
        if (i == 3) c.device = -1;
        if (i == 4) c.run = NULL;
        if (i == 5) c.max_jobs = 0;
        if (i == 6) c.max_jobs = 1u << 31;
        if (i == 7) c.max_rows = 0;
        if (i == 8) c.queue_limit = 0;
        CHECK(mx_scheduler_lane(s, &c, &err) == MX_ERR_ARG && strstr(err.text, words[i]));
    }
    c = good;
    c.device = 1;
    c.name = "huge";
    c.scratch_bytes = SIZE_MAX / 2;
    CHECK(mx_scheduler_lane(s, &c, &err) == MX_ERR_NO_MEMORY);

    forget();
    script a = make('a', 0, 1, 1), b = make('b', 0, 1, 1), x = make('x', 0, 1, 1);
    CHECK(mx_scheduler_submit(s, "m", &x.job, &err) == MX_ERR_NOT_FOUND && strstr(err.text, "\"m\""));
    CHECK(mx_scheduler_submit(s, "huge", &x.job, NULL) == MX_ERR_NOT_FOUND);
    submit(s, "l", &a);
    submit(s, "l", &b);
    CHECK(mx_scheduler_submit(s, "l", &x.job, &err) == MX_ERR_BUSY && err.retry_ms == 1000);
    CHECK(mx_scheduler_submit(s, "l", &x.job, NULL) == MX_ERR_BUSY);
    run_all(s, 0);
    a = make('a', 0, 1, 1), b = make('b', 0, 1, 1);
    submit(s, "l", &a);
    submit(s, "l", &b);
    CHECK(mx_scheduler_submit(s, "l", &x.job, &err) == MX_ERR_BUSY && err.retry_ms == 1);   /* 1 us a job */
    mx_job no_done = {.rows = 1};
    CHECK(mx_scheduler_submit(s, "l", &no_done, &err) == MX_ERR_ARG);
    mx_lane_stats st;
    CHECK(mx_scheduler_stats(s, "l", &st) && st.refused == 3 && st.waiting == 2);
    mx_scheduler_drain(s);
    CHECK(mx_scheduler_submit(s, "l", &x.job, &err) == MX_ERR_UNAVAILABLE);
    CHECK(!x.times_done);
    mx_scheduler_close(s, 1000);
    CHECK(a.times_done == 1 && !a.job.error.code && b.times_done == 1 && !b.job.error.code);
    CHECK(mx_scheduler_open_stepped(&s, devs, 0, NULL, &err) == MX_ERR_ARG && !s);
    mx_scheduler_close(NULL, 0);
}

static void replicas(void)
{
    mx_scheduler *s = open_stepped(3);
    for (int i = 0; i < 3; i++)
        add_lane(s, (mx_lane_config){.name = "l", .device = i, .max_jobs = 1, .max_rows = 1, .queue_limit = 2});
    forget();
    script t[7];
    mx_error err = {0};
    for (int i = 0; i < 6; i++) {
        t[i] = make((char)('a' + i), 0, 2, 1);
        submit(s, "l", &t[i]);
    }
    t[6] = make('g', 0, 1, 1);
    CHECK(mx_scheduler_submit(s, "l", &t[6].job, &err) == MX_ERR_BUSY);
    CHECK(mx_scheduler_step(s, 1, NULL));              /* b has started on device 1 and stays there */
    CHECK_STR(story, "b1|");
    submit(s, "l", &t[6]);                             /* only there is a place free */
    run_all(s, 1);
    CHECK_STR(story, "b1|b1|e1|e1|g1|");
    mx_lane_stats st;
    CHECK(mx_scheduler_stats(s, "l", &st) && st.waiting == 4 && st.done == 3 && st.refused == 1);
    run_all(s, 0);
    run_all(s, 2);
    CHECK_STR(ended, "begadcf");
    CHECK(!mx_scheduler_step(s, 3, NULL) && !mx_scheduler_step(s, -1, NULL));
    mx_scheduler_close(s, 0);
}

static void closing(void)
{
    mx_scheduler *s = open_stepped(2);
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 1});
    add_lane(s, (mx_lane_config){.name = "m", .device = 1, .max_jobs = 1, .max_rows = 1, .max_wait_us = 1000000});
    forget();
    script endless = make('e', 0, UINT32_MAX, 1), waits = make('w', 0, 1, 1), other = make('o', 0, 3, 1);
    submit(s, "l", &endless);
    submit(s, "l", &waits);
    submit(s, "m", &other);
    mx_scheduler_step(s, 0, NULL);
    mx_scheduler_close(s, 5);
    CHECK(endless.times_done == 1 && endless.job.error.code == MX_ERR_CANCELLED);
    CHECK(waits.times_done == 1 && waits.job.error.code == MX_ERR_CANCELLED);
    CHECK(other.times_done == 1 && other.job.error.code == MX_OK);
}

/* ---- the stream ------------------------------------------------------------------ */

static void run_with_scratch(void *model, mx_stream *s, mx_job **jobs, int n)
{
    size_t *want = model;
    CHECK(s->scratch_used == 0);
    CHECK(mx_stream_tensor(s, MX_I8, 1, (int64_t)*want).data != NULL);
    run_scripts(NULL, s, jobs, n);
}

static void scratch(void)
{
    mx_scheduler *s = open_stepped(1);
    static size_t sizes[3] = {1 << 12, 1 << 20, 1 << 16};
    static const char *const names[3] = {"small", "large", "middle"};
    forget();
    for (int i = 0; i < 3; i++) {
        add_lane(s, (mx_lane_config){.name = names[i], .max_jobs = 1, .max_rows = 1, .run = run_with_scratch,
                                     .model = &sizes[i], .scratch_bytes = sizes[i]});
        for (int k = 0; k <= i; k++) {
            script t = make('t', 0, 2, 1);
            submit(s, names[k], &t);
            run_all(s, 0);
            CHECK(t.times_done == 1 && !t.job.error.code);
        }
    }
    mx_scheduler_close(s, 0);
}

/* ---- properties, over many seeds --------------------------------------------------- */

typedef struct world {
    mx_scheduler  *s;
    mx_lane_config lanes[3];
    uint32_t       turns[3];         /* of each lane */
    uint32_t       arrived[3], admitted[3];
    uint64_t       state;
    uint32_t       worst_gap;        /* longest time without rows, in turns, over max_jobs */
    int            bad;
} world;

typedef struct actor {
    script   t;
    world   *w;
    int      lane;
    uint32_t arrival;                /* in its lane, from 0 */
    bool     cancelled;              /* and the scheduler was woken */
} actor;

static void expect(world *w, bool ok, const char *what)
{
    if (ok) return;
    if (!w->bad++) fprintf(stderr, "  %s\n", what);
}

/* The lane is the model: run() sees what the rule promised. */
typedef struct stage {
    world *w;
    int    lane;
} stage;

static void run_actors(void *model, mx_stream *s, mx_job **jobs, int n)
{
    (void)s;
    stage *at = model;
    world *w = at->w;
    const mx_lane_config *c = &w->lanes[at->lane];
    uint32_t turn = ++w->turns[at->lane];
    uint64_t rows = 0;
    bool newcomers = false;
    mx_lane_stats st;
    mx_scheduler_stats(w->s, c->name, &st);
    expect(w, st.budget >= 1 && st.budget <= c->max_rows, "rows a turn may have now");
    expect(w, n >= 1 && (uint32_t)n <= c->max_jobs, "jobs of a turn");
    for (int i = 0; i < n; i++) {
        actor *a = (actor *)jobs[i];
        mx_job *j = jobs[i];
        expect(w, a->lane == at->lane, "lane");
        expect(w, !a->cancelled, "a cancelled job had a turn");
        expect(w, !j->deadline_ns || j->deadline_ns > time_ns, "a late job had a turn");
        uint32_t wants = j->rows ? j->rows : 1;
        if (j->splits) expect(w, j->granted >= 1 && j->granted <= wants && j->granted <= c->max_rows, "grant");
        else expect(w, j->granted == wants, "all rows or none");
        if (j->splits && j->granted < wants) expect(w, rows + j->granted == st.budget, "it gets what is left");
        rows += j->granted;
        if (!a->t.last_turn) {
            newcomers = true;
            expect(w, a->arrival >= w->admitted[at->lane], "order of arrival");   /* some left while they waited */
            w->admitted[at->lane] = a->arrival + 1;
        } else {
            expect(w, !newcomers, "AGAIN jobs first");
            uint32_t gap = turn - a->t.last_turn;
            expect(w, gap <= c->max_jobs, "starvation bound");
            if (gap > w->worst_gap) w->worst_gap = gap;
        }
        a->t.last_turn = turn;
        advance_script(&a->t);
    }
    expect(w, rows <= st.budget || n == 1, "budget of rows");
    time_ns += 100 + test_random(&w->state) % 5000;
}

static void actor_done(mx_job *j)
{
    actor *a = (actor *)j;
    a->t.times_done++;
    switch (j->error.code) {
    case MX_OK: expect(a->w, !a->t.prompt && !a->t.turns, "done is done"); break;
    case MX_ERR_CANCELLED: expect(a->w, atomic_load(&j->cancelled), "cancelled by somebody"); break;
    case MX_ERR_DEADLINE: expect(a->w, j->deadline_ns && j->deadline_ns <= time_ns, "past its deadline"); break;
    default: expect(a->w, false, "an error nobody made"); break;
    }
}

static void lay_lanes(world *w, stage *stages)
{
    static const char *const names[3] = {"a", "b", "c"};
    for (int i = 0; i < 3; i++) {
        stages[i] = (stage){w, i};
        w->lanes[i] = (mx_lane_config){
            .name = names[i], .device = i == 2, .priority = (int)(test_random(&w->state) % 2),
            .max_jobs = 1 + (uint32_t)(test_random(&w->state) % 6),
            .max_rows = 1 + (uint32_t)(test_random(&w->state) % (test_random(&w->state) % 2 ? 3 : 12)),
            .max_wait_us = test_random(&w->state) % 2 ? 20 : 0, .queue_limit = 8,
            .run = run_actors, .model = &stages[i],
        };
        mx_error err = {0};
        expect(w, !mx_scheduler_lane(w->s, &w->lanes[i], &err), err.text);
    }
}

#define ACTORS 24

/* One random schedule; returns the number of broken promises. */
static int one_world(uint64_t seed, uint32_t *worst_gap)
{
    world w = {.state = seed};
    static actor actors[ACTORS];
    stage stages[3];
    mx_error err = {0};
    time_ns = 1000000;
    if (mx_scheduler_open_stepped(&w.s, devs, 2, &fake_clock, &err)) return 1;
    lay_lanes(&w, stages);
    int n = 0, idle = 0;
    while (idle < 3) {
        uint64_t dice = test_random(&w.state) % 8;
        if (dice < 3 && n < ACTORS) {
            actor *a = &actors[n];
            uint32_t prompt = test_random(&w.state) % 3 ? 0 : 1 + (uint32_t)(test_random(&w.state) % 30);
            *a = (actor){.t = make('s', prompt, (uint32_t)(test_random(&w.state) % 8),
                                   (uint32_t)(test_random(&w.state) % (dice ? 2 : 6))),
                         .w = &w, .lane = (int)(test_random(&w.state) % 3)};
            a->t.job.done = actor_done;
            a->t.turns += !prompt;
            a->arrival = w.arrived[a->lane];
            if (test_random(&w.state) % 6 == 0) a->t.job.deadline_ns = time_ns + 1 + test_random(&w.state) % 60000;
            mx_status st = mx_scheduler_submit(w.s, w.lanes[a->lane].name, &a->t.job, &err);
            expect(&w, st == MX_OK || (st == MX_ERR_BUSY && err.retry_ms), "submit");
            if (!st) {
                w.arrived[a->lane]++;
                n++;
            }
        } else if (dice == 3 && n) {
            actor *a = &actors[test_random(&w.state) % (unsigned)n];
            atomic_store(&a->t.job.cancelled, true);
            a->cancelled = true;
            mx_scheduler_wake(w.s);
        }
        uint64_t next[2] = {0, 0};
        int device = (int)(test_random(&w.state) % 2);
        bool did = mx_scheduler_step(w.s, device, &next[device]);
        if (!did) did = mx_scheduler_step(w.s, !device, &next[!device]);
        if (did) idle = 0;
        else if (next[0] != UINT64_MAX || next[1] != UINT64_MAX) time_ns = next[0] < next[1] ? next[0] : next[1];
        else idle += n == ACTORS;
    }
    for (int i = 0; i < n; i++) expect(&w, actors[i].t.times_done == 1, "done() once");
    mx_scheduler_close(w.s, 0);
    for (int i = 0; i < n; i++) expect(&w, actors[i].t.times_done == 1, "done() once, after close");
    if (w.worst_gap > *worst_gap) *worst_gap = w.worst_gap;
    return w.bad;
}

/* MX_TEST_SEED sets the first seed, MX_TEST_WORLDS how many follow. */
static void many_worlds(void)
{
    open_devices();
    const char *first = getenv("MX_TEST_SEED"), *count = getenv("MX_TEST_WORLDS");
    uint64_t seed = first ? strtoull(first, NULL, 0) : 1;
    int worlds = count ? atoi(count) : 20000, bad = 0;
    uint32_t worst_gap = 0;
    printf("  MX_TEST_SEED=%" PRIu64 ", %d schedules\n", seed, worlds);
    for (int i = 0; i < worlds && bad < 5; i++) {
        int broken = one_world(seed + (uint64_t)i, &worst_gap);
        CHECK_MSG(!broken, "MX_TEST_SEED=%" PRIu64 " MX_TEST_WORLDS=1 shows it", seed + (uint64_t)i);
        bad += broken != 0;
    }
    printf("  longest wait of a running job for rows: %u turns\n", worst_gap);
    CHECK_MSG(worst_gap > 1, "the schedules never had more jobs than rows: they prove nothing");
}

static void last(void)
{
    if (devs[0].ops) devs[0].ops->close(&devs[0]);
    CHECK(true);
}

/* A lane that is cut ends what runs and what waits, once each, and takes nothing more; its neighbour goes on. */
static void cut(void)
{
    mx_scheduler *s = open_stepped(1);
    mx_error err = {0};
    add_lane(s, (mx_lane_config){.name = "l", .max_jobs = 1, .max_rows = 4});
    add_lane(s, (mx_lane_config){.name = "other", .max_jobs = 1, .max_rows = 4});
    forget();
    script a = make('a', 0, 50, 1), b = make('b', 0, 1, 1), c = make('c', 0, 3, 1), late = make('d', 0, 1, 1);
    submit(s, "l", &a);
    submit(s, "l", &b);
    submit(s, "other", &c);
    for (int i = 0; i < 3; i++) mx_scheduler_step(s, 0, NULL);
    CHECK(a.job.running && !a.times_done);
    mx_scheduler_lane_cut(s, "l");
    CHECK(mx_scheduler_submit(s, "l", &late.job, &err) == MX_ERR_UNAVAILABLE);
    run_all(s, 0);
    CHECK(a.times_done == 1 && b.times_done == 1 && a.job.error.code == MX_ERR_UNAVAILABLE && b.job.error.code == MX_ERR_UNAVAILABLE);
    CHECK(c.times_done == 1 && !c.job.error.code);
    CHECK(mx_scheduler_lane_close(s, "l") && mx_scheduler_submit(s, "l", &late.job, &err) == MX_ERR_NOT_FOUND);
    mx_scheduler_close(s, 0);
}

MX_TESTS(TEST(order), TEST(latencies), TEST(splits), TEST(oversize), TEST(fairness), TEST(priorities), TEST(company),
         TEST(deadlines), TEST(cancel_at_every_turn), TEST(failures), TEST(stream_errors), TEST(refusals),
         TEST(replicas), TEST(closing), TEST(cut), TEST(scratch), TEST(many_worlds), TEST(last))
