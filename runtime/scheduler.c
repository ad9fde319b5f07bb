/* scheduler.c - the turn rule of scheduler.h.
 *
 * One mutex guards all queues and is never held while run() or done() works.
 * A lane has two lists: `waiting`, which submit fills, and `running`, which
 * only its worker touches and which stays in order of admission: a job keeps
 * its place from its first turn to its last, and `missed` says who goes first. */
#include "runtime/scheduler.h"

#include "runtime/log.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NEVER     UINT64_MAX
#define MOST_JOBS 65536u        /* of one lane at once: bounds the turn array */

typedef struct queue {
    mx_job  *head, *last;
    uint32_t n;
} queue;

typedef struct lane lane;
struct lane {
    lane          *next;             /* of the same worker                                  */
    mx_lane_config c;
    queue          waiting, running;
    uint64_t       waiting_rows;
    uint64_t       next_deadline;    /* no waiting job has an earlier one                   */
    uint64_t       served;           /* number of the worker's turn that it had last        */
    mx_job       **turn;             /* max_jobs entries, the worker's                      */
    uint64_t       turns, rows, done, refused, busy_ns, last_turn_ns;
    uint64_t       spent_ns;         /* in run() since a job was last done                  */
    uint64_t       job_ns;           /* moving average of the above for each job done       */
};

typedef struct worker {
    mx_scheduler  *s;
    mx_device     *dev;
    lane          *lanes;
    mx_stream      stream;
    mx_buffer      bigger;           /* scratch for a new lane, put in place before a turn  */
    size_t         scratch;          /* bytes of the larger of the two                      */
    uint64_t       turns;
    pthread_t      thread;
    pthread_cond_t wake;
    bool           has_wake, started, asleep;
    bool           sweep;            /* look at every waiting job: somebody was cancelled   */
} worker;

struct mx_scheduler {
    pthread_mutex_t lock;
    pthread_cond_t  empty;           /* live fell to 0                                      */
    mx_clock        clock;
    bool            real_clock;
    bool            draining, cancel_all, stop;
    uint64_t        live;            /* jobs taken and not yet given back                   */
    int             n_workers;
    worker         *workers;
};

/* ---- queues ---------------------------------------------------------------- */

static void push(queue *q, mx_job *j)
{
    j->next = NULL;
    if (q->last) q->last->next = j;
    else q->head = j;
    q->last = j;
    q->n++;
}

/* Takes out the job after `before` (NULL: the first) and returns it. */
static mx_job *take_after(queue *q, mx_job *before)
{
    mx_job *j = before ? before->next : q->head;
    if (before) before->next = j->next;
    else q->head = j->next;
    if (q->last == j) q->last = before;
    j->next = NULL;
    q->n--;
    return j;
}

static uint32_t rows_of(const mx_job *j)
{
    return j->rows ? j->rows : 1;
}

static bool is_cancelled(mx_job *j)
{
    return atomic_load_explicit(&j->cancelled, memory_order_acquire);
}

/* ---- giving back between turns ---------------------------------------------- */

/* True, and the reason in j->error, when the job must not have another turn. */
static bool must_leave(mx_scheduler *s, mx_job *j, uint64_t now)
{
    if (is_cancelled(j)) mx_fail(&j->error, MX_ERR_CANCELLED, "cancelled by the client");
    else if (s->cancel_all) mx_fail(&j->error, MX_ERR_CANCELLED, "cancelled: the server stops");
    else if (j->deadline_ns && j->deadline_ns <= now)
        mx_fail(&j->error, MX_ERR_DEADLINE, "deadline passed %s", j->running ? "while it ran" : "while it waited");
    else return false;
    return true;
}

static void sweep_queue(mx_scheduler *s, queue *q, uint64_t now, queue *out)
{
    for (mx_job *before = NULL, *j = q->head; j; j = before ? before->next : q->head) {
        if (must_leave(s, j, now)) push(out, take_after(q, before));
        else before = j;
    }
}

static void sweep_lane(worker *w, lane *l, uint64_t now, queue *out)
{
    uint32_t before = out->n;
    sweep_queue(w->s, &l->running, now, out);
    if (l->waiting.n && (w->sweep || w->s->cancel_all || now >= l->next_deadline)) {
        sweep_queue(w->s, &l->waiting, now, out);
        l->next_deadline = NEVER;
        l->waiting_rows = 0;
        for (mx_job *j = l->waiting.head; j; j = j->next) {
            l->waiting_rows += rows_of(j);
            if (j->deadline_ns && j->deadline_ns < l->next_deadline) l->next_deadline = j->deadline_ns;
        }
    }
    l->done += out->n - before;
}

/* Called and left with the lock held; done() runs without it. */
static void give_back(mx_scheduler *s, queue *out)
{
    uint32_t n = out->n;
    if (!n) return;
    uint64_t now = mx_now_ns(&s->clock);
    pthread_mutex_unlock(&s->lock);
    for (mx_job *j = out->head, *next; j; j = next) {
        next = j->next;                      /* done() may free the job */
        j->next = NULL;
        j->done_ns = now;
        j->done(j);
    }
    pthread_mutex_lock(&s->lock);
    s->live -= n;
    if (!s->live) pthread_cond_broadcast(&s->empty);
}

/* ---- forming a turn ---------------------------------------------------------- */

/* One turn while it is filled. */
typedef struct filling {
    lane    *l;
    uint32_t left;         /* rows not yet granted */
    uint32_t n;            /* jobs in l->turn      */
} filling;

/* Puts j into the turn if it fits; the first job always does. */
static bool grant(filling *f, mx_job *j)
{
    uint32_t rows = rows_of(j);
    if (j->splits && rows > f->left) rows = f->left;
    if (!rows || (f->n && rows > f->left)) return false;
    j->granted = rows;
    f->left -= rows < f->left ? rows : f->left;
    f->l->turn[f->n++] = j;
    return true;
}

/* Those that missed turns, the longest first and the older of equals; it takes
 * one walk for each distinct count, and nobody misses a turn unless the lane
 * runs more jobs than it has rows. */
static void grant_missed(filling *f, uint32_t most)
{
    for (uint32_t missed = most, lower; missed; missed = lower) {
        lower = 0;
        for (mx_job *j = f->l->running.head; j; j = j->next) {
            if (j->missed == missed) grant(f, j);
            else if (j->missed < missed && j->missed > lower) lower = j->missed;
        }
    }
}

static void grant_running(filling *f)
{
    uint32_t most = 0;
    for (mx_job *j = f->l->running.head; j; j = j->next) {
        j->granted = 0;
        if (j->missed > most) most = j->missed;
    }
    grant_missed(f, most);
    for (int splits = 0; splits < 2; splits++)
        for (mx_job *j = f->l->running.head; j; j = j->next)
            if (!j->missed && j->splits == (splits != 0)) grant(f, j);
    for (mx_job *j = f->l->running.head; j; j = j->next) j->missed = j->granted ? 0 : j->missed + 1;
}

/* In order of arrival; the first that does not fit keeps those behind it
 * waiting.  One that was cancelled without a word to us leaves here. */
static void grant_newcomers(filling *f, queue *out, uint64_t now)
{
    lane *l = f->l;
    while (l->waiting.n && l->running.n < l->c.max_jobs) {
        mx_job *j = l->waiting.head;
        bool leaves = is_cancelled(j);
        if (!leaves && !grant(f, j)) break;
        take_after(&l->waiting, NULL);
        l->waiting_rows -= rows_of(j);
        if (leaves) {
            mx_fail(&j->error, MX_ERR_CANCELLED, "cancelled by the client");
            push(out, j);
            l->done++;
            continue;
        }
        j->running = true;
        j->started_ns = now;
        push(&l->running, j);
    }
    if (!l->waiting.n) l->next_deadline = NEVER;
}

/* A lane whose jobs all wait may wait for company, not longer than until *when. */
static bool is_ripe(const mx_scheduler *s, const lane *l, uint64_t now, uint64_t *when)
{
    if (l->running.n || s->draining) return true;
    if (l->waiting.n >= l->c.max_jobs || l->waiting_rows >= l->c.max_rows) return true;
    *when = l->waiting.head->queued_ns + (uint64_t)l->c.max_wait_us * 1000;
    return now >= *when;
}

/* The lane that goes next, or NULL and in *next_ns when to look again. */
static lane *pick_lane(worker *w, uint64_t now, uint64_t *next_ns)
{
    lane *best = NULL;
    *next_ns = NEVER;
    for (lane *l = w->lanes; l; l = l->next) {
        uint64_t when = NEVER;
        if (!l->running.n && !l->waiting.n) continue;
        if (l->next_deadline < *next_ns) *next_ns = l->next_deadline;
        if (!is_ripe(w->s, l, now, &when)) {
            if (when < *next_ns) *next_ns = when;
            continue;
        }
        if (!best || l->c.priority < best->c.priority ||
            (l->c.priority == best->c.priority && l->served < best->served))
            best = l;
    }
    return best;
}

/* ---- running a turn ---------------------------------------------------------- */

static void use_bigger_scratch(worker *w, mx_buffer bigger)
{
    mx_error err;
    if (mx_stream_sync(&w->stream, &err)) mx_log(MX_LOG_WARN, "scheduler", "before a new lane: %s", err.text);
    mx_buffer_close(&w->stream.scratch);
    w->stream.scratch = bigger;
}

static void run_lane(worker *w, lane *l, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        l->turn[i]->verdict = MX_DONE;
        l->turn[i]->error.code = MX_OK;
    }
    mx_stream_rewind(&w->stream);
    l->c.run(l->c.model, &w->stream, l->turn, (int)n);
    if (!w->stream.error.code) return;
    mx_error err = {0};
    mx_stream_sync(&w->stream, &err);
    for (uint32_t i = 0; i < n; i++)
        if (!l->turn[i]->error.code) l->turn[i]->error = err;
}

/* After the turn: who is done leaves the lane. */
static void collect(lane *l, queue *out)
{
    uint32_t before = out->n;
    for (mx_job *last = NULL, *j = l->running.head; j; j = last ? last->next : l->running.head) {
        if (j->granted && (j->verdict == MX_DONE || j->error.code)) push(out, take_after(&l->running, last));
        else last = j;
    }
    uint32_t n = out->n - before;
    l->done += n;
    if (!n) return;
    uint64_t each = l->spent_ns / n;
    l->job_ns = l->job_ns ? l->job_ns - l->job_ns / 8 + each / 8 : each;
    l->spent_ns = 0;
}

/* Called and left with the lock held. */
static void take_turn(worker *w, lane *l, uint64_t now)
{
    mx_scheduler *s = w->s;
    queue out = {0};
    filling f = {.l = l, .left = l->c.max_rows};
    grant_running(&f);
    grant_newcomers(&f, &out, now);
    if (f.n) {
        mx_buffer bigger = w->bigger;
        w->bigger = (mx_buffer){0};
        l->served = ++w->turns;
        pthread_mutex_unlock(&s->lock);
        if (bigger.base) use_bigger_scratch(w, bigger);
        uint64_t rows = 0;
        for (uint32_t i = 0; i < f.n; i++) rows += l->turn[i]->granted;
        run_lane(w, l, f.n);
        uint64_t end = mx_now_ns(&s->clock), took = end > now ? end - now : 0;
        pthread_mutex_lock(&s->lock);
        l->turns++;
        l->rows += rows;
        l->busy_ns += took;
        l->spent_ns += took;
        l->last_turn_ns = end;
        collect(l, &out);
    }
    give_back(s, &out);
}

/* One decision. Called and left with the lock held; false: nothing to do. */
static bool advance(worker *w, uint64_t *next_ns)
{
    uint64_t now = mx_now_ns(&w->s->clock);
    queue out = {0};
    for (lane *l = w->lanes; l; l = l->next) sweep_lane(w, l, now, &out);
    w->sweep = false;
    if (out.n) {
        give_back(w->s, &out);
        return true;
    }
    lane *l = pick_lane(w, now, next_ns);
    if (l) take_turn(w, l, now);
    return l != NULL;
}

/* ---- the worker thread -------------------------------------------------------- */

/* Only the real clock can be waited for; another one moves when a test says so
 * and calls mx_scheduler_wake(). */
static void wait_for_work(worker *w, uint64_t next_ns)
{
    mx_scheduler *s = w->s;
    w->asleep = true;
    if (s->real_clock && next_ns != NEVER) {
        struct timespec t = {.tv_sec = (time_t)(next_ns / 1000000000u), .tv_nsec = (long)(next_ns % 1000000000u)};
        pthread_cond_timedwait(&w->wake, &s->lock, &t);
    } else {
        pthread_cond_wait(&w->wake, &s->lock);
    }
    w->asleep = false;
}

static void *worker_main(void *arg)
{
    worker *w = arg;
    mx_scheduler *s = w->s;
    w->dev->ops->enter(w->dev);
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        uint64_t next_ns;
        if (!advance(w, &next_ns) && !s->stop) wait_for_work(w, next_ns);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void rouse(worker *w)
{
    if (!w->asleep) return;
    w->asleep = false;                       /* one signal is enough until it sleeps again */
    pthread_cond_signal(&w->wake);
}

static void rouse_all(mx_scheduler *s)
{
    for (int i = 0; i < s->n_workers; i++) rouse(&s->workers[i]);
}

/* Workers take no signals: those belong to the main thread. */
static mx_status start_worker(worker *w, int index, mx_error *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e) return mx_fail(err, MX_ERR_NO_MEMORY, "scheduler: worker %d did not start: %s", index, strerror(e));
    w->started = true;
    char name[16];
    snprintf(name, sizeof name, "merx-turns%d", index % 1000);
    pthread_setname_np(w->thread, name);
    return MX_OK;
}

/* ---- open and close ------------------------------------------------------------ */

static void free_all(mx_scheduler *s)
{
    for (int i = 0; i < s->n_workers; i++) {
        worker *w = &s->workers[i];
        for (lane *l = w->lanes, *next; l; l = next) {
            next = l->next;
            free(l->turn);
            free(l);
        }
        mx_buffer_close(&w->bigger);
        mx_stream_close(&w->stream);
        if (w->has_wake) pthread_cond_destroy(&w->wake);
    }
    free(s->workers);
    pthread_cond_destroy(&s->empty);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

static void stop_workers(mx_scheduler *s)
{
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    rouse_all(s);
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < s->n_workers; i++)
        if (s->workers[i].started) pthread_join(s->workers[i].thread, NULL);
}

static int open_cond(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    int e = pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
    return e;
}

static mx_status open_scheduler(mx_scheduler **out, mx_device *devs, int n_devs, const mx_clock *clock, bool threads,
                                mx_error *err)
{
    *out = NULL;
    if (!devs || n_devs < 1) return mx_fail(err, MX_ERR_ARG, "scheduler: %d devices", n_devs);
    mx_scheduler *s = calloc(1, sizeof *s);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "scheduler: out of memory");
    s->clock = clock ? *clock : mx_clock_monotonic;
    s->real_clock = s->clock.now_ns == mx_clock_monotonic.now_ns;
    pthread_mutex_init(&s->lock, NULL);
    open_cond(&s->empty);
    mx_status st = MX_OK;
    s->workers = calloc((size_t)n_devs, sizeof *s->workers);
    if (!s->workers) st = mx_fail(err, MX_ERR_NO_MEMORY, "scheduler: out of memory");
    for (int i = 0; i < n_devs && !st; i++) {
        worker *w = &s->workers[i];
        w->s = s;
        w->dev = &devs[i];
        s->n_workers = i + 1;
        open_cond(&w->wake);
        w->has_wake = true;
        st = mx_stream_open(&w->stream, w->dev, 0, err);
    }
    for (int i = 0; threads && i < n_devs && !st; i++) st = start_worker(&s->workers[i], i, err);
    if (st) {
        stop_workers(s);
        free_all(s);
        return st;
    }
    *out = s;
    return MX_OK;
}

mx_status mx_scheduler_open(mx_scheduler **out, mx_device *devs, int n_devs, const mx_clock *clock, mx_error *err)
{
    return open_scheduler(out, devs, n_devs, clock, true, err);
}

mx_status mx_scheduler_open_stepped(mx_scheduler **out, mx_device *devs, int n_devs, const mx_clock *clock,
                                    mx_error *err)
{
    return open_scheduler(out, devs, n_devs, clock, false, err);
}

bool mx_scheduler_step(mx_scheduler *s, int device, uint64_t *next_ns)
{
    uint64_t next = NEVER;
    if (device < 0 || device >= s->n_workers) return false;
    pthread_mutex_lock(&s->lock);
    bool did = advance(&s->workers[device], &next);
    pthread_mutex_unlock(&s->lock);
    if (next_ns) *next_ns = next;
    return did;
}

void mx_scheduler_drain(mx_scheduler *s)
{
    pthread_mutex_lock(&s->lock);
    s->draining = true;
    rouse_all(s);
    pthread_mutex_unlock(&s->lock);
}

/* With the lock held: steps or waits until no job is left, at most until `end`
 * on the real clock. */
static void let_finish(mx_scheduler *s, uint64_t end)
{
    while (s->live && mx_now_ns(&mx_clock_monotonic) < end) {
        if (!s->workers[0].started) {
            uint64_t next;
            for (int i = 0; i < s->n_workers; i++) advance(&s->workers[i], &next);
        } else if (end == NEVER) {
            pthread_cond_wait(&s->empty, &s->lock);
        } else {
            struct timespec t = {.tv_sec = (time_t)(end / 1000000000u), .tv_nsec = (long)(end % 1000000000u)};
            pthread_cond_timedwait(&s->empty, &s->lock, &t);
        }
    }
}

void mx_scheduler_close(mx_scheduler *s, uint32_t grace_ms)
{
    if (!s) return;
    mx_scheduler_drain(s);
    pthread_mutex_lock(&s->lock);
    if (grace_ms) let_finish(s, mx_now_ns(&mx_clock_monotonic) + (uint64_t)grace_ms * 1000000);
    s->cancel_all = true;
    rouse_all(s);
    let_finish(s, NEVER);
    pthread_mutex_unlock(&s->lock);
    stop_workers(s);
    free_all(s);
}

/* ---- lanes and jobs ------------------------------------------------------------- */

static lane *find_lane(worker *w, const char *name)
{
    for (lane *l = w->lanes; l; l = l->next)
        if (strcmp(l->c.name, name) == 0) return l;
    return NULL;
}

/* The scratch of a device must hold the largest turn of its lanes.  Memory is
 * got here, where failing is an answer; the worker puts it in place. */
static mx_status grow_scratch(mx_scheduler *s, worker *w, size_t size, mx_error *err)
{
    pthread_mutex_lock(&s->lock);
    size_t have = w->scratch;
    pthread_mutex_unlock(&s->lock);
    if (size <= have) return MX_OK;
    mx_buffer b, other;
    MX_TRY(mx_buffer_open(&b, w->dev, size, err));
    pthread_mutex_lock(&s->lock);
    if (w->scratch < size) {
        other = w->bigger;
        w->bigger = b;
        w->scratch = size;
    } else {
        other = b;                           /* another lane came first with more */
    }
    pthread_mutex_unlock(&s->lock);
    mx_buffer_close(&other);
    return MX_OK;
}

mx_status mx_scheduler_lane(mx_scheduler *s, const mx_lane_config *c, mx_error *err)
{
    if (!c->name || !*c->name) return mx_fail(err, MX_ERR_ARG, "lane: no name");
    if (c->device < 0 || c->device >= s->n_workers)
        return mx_fail(err, MX_ERR_ARG, "lane %s: device %d of %d", c->name, c->device, s->n_workers);
    if (!c->run) return mx_fail(err, MX_ERR_ARG, "lane %s: no run()", c->name);
    if (c->max_jobs < 1 || c->max_jobs > MOST_JOBS)
        return mx_fail(err, MX_ERR_ARG, "lane %s: max_jobs %u, must be 1 to %u", c->name, c->max_jobs, MOST_JOBS);
    if (c->max_rows < 1) return mx_fail(err, MX_ERR_ARG, "lane %s: max_rows 0", c->name);
    if (c->queue_limit < 1) return mx_fail(err, MX_ERR_ARG, "lane %s: queue_limit 0", c->name);

    worker *w = &s->workers[c->device];
    lane *l = calloc(1, sizeof *l);
    if (l) l->turn = calloc(c->max_jobs, sizeof(mx_job *));
    mx_status st = l && l->turn ? grow_scratch(s, w, c->scratch_bytes, err)
                                : mx_fail(err, MX_ERR_NO_MEMORY, "lane %s: out of memory", c->name);
    if (!st) {
        l->c = *c;
        l->next_deadline = NEVER;
        pthread_mutex_lock(&s->lock);
        if (find_lane(w, c->name)) {
            st = mx_fail(err, MX_ERR_ARG, "lane %s: device %d has one of that name", c->name, c->device);
        } else {
            lane **end = &w->lanes;
            while (*end) end = &(*end)->next;
            *end = l;
        }
        pthread_mutex_unlock(&s->lock);
    }
    if (st && l) {
        free(l->turn);
        free(l);
    }
    return st;
}

/* When the jobs that wait now will have been served, at the lane's pace; a
 * second when it has no pace yet. */
static uint32_t retry_ms(const lane *l)
{
    if (!l->job_ns) return 1000;
    double ms = (double)l->job_ns * l->waiting.n / 1e6;
    return ms < 1 ? 1 : ms > 30000 ? 30000 : (uint32_t)ms;
}

static void enqueue(worker *w, lane *l, mx_job *j, uint64_t now)
{
    j->granted = j->missed = 0;
    j->running = false;
    j->verdict = MX_DONE;
    j->error.code = MX_OK;
    j->error.retry_ms = 0;
    j->error.text[0] = '\0';
    j->queued_ns = now;
    j->started_ns = j->done_ns = 0;
    push(&l->waiting, j);
    l->waiting_rows += rows_of(j);
    if (j->deadline_ns && j->deadline_ns < l->next_deadline) l->next_deadline = j->deadline_ns;
    w->s->live++;
    rouse(w);
}

mx_status mx_scheduler_submit(mx_scheduler *s, const char *name, mx_job *job, mx_error *err)
{
    if (!job->done) return mx_fail(err, MX_ERR_ARG, "job: no done()");
    lane *best = NULL, *full = NULL;
    worker *owner = NULL;
    uint64_t backlog = NEVER;
    mx_status st = MX_OK;
    pthread_mutex_lock(&s->lock);
    uint64_t now = mx_now_ns(&s->clock);
    for (int i = 0; i < s->n_workers; i++) {
        lane *l = find_lane(&s->workers[i], name);
        if (!l) continue;
        uint64_t load = (uint64_t)l->waiting.n + l->running.n;
        if (l->waiting.n >= l->c.queue_limit) {
            full = l;
        } else if (load < backlog) {
            best = l;
            owner = &s->workers[i];
            backlog = load;
        }
    }
    lane *counts = best ? best : full;
    if (!counts) st = mx_fail(err, MX_ERR_NOT_FOUND, "no lane \"%s\"", name);
    else if (s->draining) st = mx_fail(err, MX_ERR_UNAVAILABLE, "%s: the server is shutting down", name);
    else if (job->deadline_ns && job->deadline_ns <= now)
        st = mx_fail(err, MX_ERR_DEADLINE, "%s: the deadline had passed when the request came", name);
    else if (!best) {
        st = mx_fail(err, MX_ERR_BUSY, "%s: %u requests wait already", name, full->waiting.n);
        if (err) err->retry_ms = retry_ms(full);
    } else enqueue(owner, best, job, now);
    if (st && counts) counts->refused++;
    pthread_mutex_unlock(&s->lock);
    return st;
}

void mx_scheduler_wake(mx_scheduler *s)
{
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++) s->workers[i].sweep = true;
    rouse_all(s);
    pthread_mutex_unlock(&s->lock);
}

bool mx_scheduler_stats(mx_scheduler *s, const char *name, mx_lane_stats *out)
{
    *out = (mx_lane_stats){0};
    bool found = false;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++) {
        lane *l = find_lane(&s->workers[i], name);
        if (!l) continue;
        found = true;
        out->waiting += l->waiting.n;
        out->running += l->running.n;
        out->turns += l->turns;
        out->rows += l->rows;
        out->done += l->done;
        out->refused += l->refused;
        out->busy_ns += l->busy_ns;
        if (l->last_turn_ns > out->last_turn_ns) out->last_turn_ns = l->last_turn_ns;
    }
    pthread_mutex_unlock(&s->lock);
    return found;
}
