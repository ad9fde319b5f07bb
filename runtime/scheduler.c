/* scheduler.c - workers, lanes and what callers say to them. */
#include "runtime/scheduler_core.h"

#include "runtime/log.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST_JOBS 65536u        /* of one lane at once: bounds the turn array */

/* ---- the worker thread -------------------------------------------------------- */

/* Only the real clock can be waited for; another one moves when a test says so
 * and calls mx_scheduler_wake(). */
static void wait_for_work(mx_worker *w, uint64_t next_ns)
{
    mx_scheduler *s = w->s;
    w->asleep = true;
    if (s->real_clock && next_ns != MX_NEVER) {
        struct timespec t = {.tv_sec = (time_t)(next_ns / 1000000000u), .tv_nsec = (long)(next_ns % 1000000000u)};
        pthread_cond_timedwait(&w->wake, &s->lock, &t);
    } else {
        pthread_cond_wait(&w->wake, &s->lock);
    }
    w->asleep = false;
}

static void *worker_main(void *arg)
{
    mx_worker *w = arg;
    mx_scheduler *s = w->s;
    mx_device_enter(w->dev);
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        uint64_t next_ns;
        if (!mx_worker_advance(w, &next_ns) && !s->stop) wait_for_work(w, next_ns);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static void rouse(mx_worker *w)
{
    if (!w->asleep) return;
    w->asleep = false;                       /* one signal is enough until it sleeps again */
    pthread_cond_signal(&w->wake);
}

static void rouse_all(mx_scheduler *s)
{
    for (int i = 0; i < s->n_workers; i++)
        if (s->workers[i].open) rouse(&s->workers[i]);
}

/* Workers take no signals: those belong to the main thread. */
static mx_status start_worker(mx_worker *w, int index, mx_error *err)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int e = pthread_create(&w->thread, NULL, worker_main, w);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (e) return mx_fail(err, MX_ERR_NO_MEMORY, "scheduler: worker %d did not start: %s", index, strerror(e));
    w->started = true;
    char name[16];
    snprintf(name, sizeof name, "merx-%s%d", index < w->s->n_devices ? "turns" : "fast", index % w->s->n_devices % 1000);
    pthread_setname_np(w->thread, name);
    return MX_OK;
}

/* ---- open and close ------------------------------------------------------------ */

static void free_all(mx_scheduler *s)
{
    for (int i = 0; i < s->n_workers; i++) {
        mx_worker *w = &s->workers[i];
        for (mx_lane *l = w->lanes, *next; l; l = next) {
            next = l->next;
            free(l->turn);
            free(l);
        }
        mx_buffer_close(&w->bigger);
        mx_stream_close(&w->stream);
        if (w->dev == &w->twin) mx_device_twin_close(&w->twin);
        if (w->s) pthread_cond_destroy(&w->wake);
    }
    for (mx_lane_group *g = s->groups, *next; g; g = next) {
        next = g->next;
        free(g);
    }
    free(s->workers);
    pthread_cond_destroy(&s->empty);
    pthread_mutex_destroy(&s->opening);
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

static void open_cond(pthread_cond_t *c)
{
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);             /* does not fail on Linux */
    pthread_condattr_destroy(&attr);
}

static mx_status open_worker(mx_worker *w, mx_scheduler *s, mx_device *dev, bool express, mx_error *err)
{
    w->s = s;
    open_cond(&w->wake);
    if (express) MX_TRY(mx_device_twin(&w->twin, dev, err));
    w->dev = express ? &w->twin : dev;
    MX_TRY(mx_stream_open(&w->stream, w->dev, 0, err));
    return MX_OK;
}

/* The first express lane of a device brings its worker; s->opening is held. */
static mx_status open_express(mx_scheduler *s, int device, mx_error *err)
{
    int index = s->n_devices + device;
    mx_worker *w = &s->workers[index];
    if (w->open) return MX_OK;
    mx_status st = open_worker(w, s, s->workers[device].dev, true, err);
    if (!st && s->threads) st = start_worker(w, index, err);
    if (!st) {
        pthread_mutex_lock(&s->lock);
        w->open = true;
        pthread_mutex_unlock(&s->lock);
        return MX_OK;
    }
    mx_stream_close(&w->stream);
    if (w->dev) mx_device_twin_close(&w->twin);
    pthread_cond_destroy(&w->wake);
    *w = (mx_worker){0};
    return st;
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
    s->threads = threads;
    s->n_devices = n_devs;
    pthread_mutex_init(&s->lock, NULL);
    pthread_mutex_init(&s->opening, NULL);
    open_cond(&s->empty);
    mx_status st = MX_OK;
    s->workers = calloc(2 * (size_t)n_devs, sizeof *s->workers);
    if (!s->workers) st = mx_fail(err, MX_ERR_NO_MEMORY, "scheduler: out of memory");
    else s->n_workers = 2 * n_devs;
    for (int i = 0; i < n_devs && !st; i++) {
        st = open_worker(&s->workers[i], s, &devs[i], false, err);
        s->workers[i].open = !st;
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
    uint64_t next = MX_NEVER;
    if (device < 0 || device >= s->n_devices) return false;
    mx_worker *w = &s->workers[device], *express = &s->workers[s->n_devices + device];
    uint64_t later = MX_NEVER;
    pthread_mutex_lock(&s->lock);
    bool did = (express->open && mx_worker_advance(express, &later)) || mx_worker_advance(w, &next);
    pthread_mutex_unlock(&s->lock);
    if (later < next) next = later;
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

static void step_all(mx_scheduler *s)
{
    uint64_t next;
    for (int i = 0; i < s->n_workers; i++)
        if (s->workers[i].open) mx_worker_advance(&s->workers[i], &next);
}

/* With the lock held: steps or waits until no job is left, at most until `end`
 * on the real clock. */
static void let_finish(mx_scheduler *s, uint64_t end)
{
    while (s->live && mx_now_ns(&mx_clock_monotonic) < end) {
        if (!s->threads) {
            step_all(s);
        } else if (end == MX_NEVER) {
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
    let_finish(s, MX_NEVER);
    pthread_mutex_unlock(&s->lock);
    stop_workers(s);
    free_all(s);
}

/* ---- lanes and jobs ------------------------------------------------------------- */

static mx_lane *find_lane(mx_worker *w, const char *name)
{
    for (mx_lane *l = w->lanes; l; l = l->next)
        if (!l->closing && strcmp(l->c.name, name) == 0) return l;
    return NULL;
}

/* The scratch of a device must hold the largest turn of its lanes.  Memory is
 * got here, where failing is an answer; the worker puts it in place. */
static mx_status grow_scratch(mx_scheduler *s, mx_worker *w, size_t size, mx_error *err)
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

static mx_lane_group *group_of(mx_scheduler *s, const char *name)
{
    for (int i = 0; i < s->n_workers; i++) {
        mx_lane *l = find_lane(&s->workers[i], name);
        if (l) return l->group;
    }
    return NULL;
}

static void free_lane(mx_lane *l)
{
    if (l) free(l->turn);
    free(l);
}

static mx_status add_lane(mx_scheduler *s, mx_worker *w, const mx_lane_config *c, mx_error *err)
{
    mx_lane *l = calloc(1, sizeof *l);
    mx_lane_group *fresh = calloc(1, sizeof *fresh);
    if (l) l->turn = calloc(c->max_jobs, sizeof(mx_job *));
    mx_status st = l && l->turn && fresh ? grow_scratch(s, w, c->scratch_bytes, err)
                                         : mx_fail(err, MX_ERR_NO_MEMORY, "lane %s: out of memory", c->name);
    if (!st) {
        l->c = *c;
        l->worker = w;
        l->budget = c->max_rows;
        l->next_deadline = MX_NEVER;
        pthread_mutex_lock(&s->lock);
        l->group = group_of(s, c->name);
        if (find_lane(w, c->name)) {
            st = mx_fail(err, MX_ERR_ARG, "lane %s: device %d has one of that name", c->name, c->device);
        } else {
            if (!l->group) {
                l->group = fresh;
                fresh->next = s->groups;
                s->groups = fresh;
                fresh = NULL;
            }
            l->group->replicas++;
            mx_lane **end = &w->lanes;
            while (*end) end = &(*end)->next;
            *end = l;
        }
        pthread_mutex_unlock(&s->lock);
    }
    free(fresh);
    if (st) free_lane(l);
    return st;
}

static mx_lane *find_closing(mx_worker *w, const char *name)
{
    for (mx_lane *l = w->lanes; l; l = l->next)
        if (l->closing && strcmp(l->c.name, name) == 0) return l;
    return NULL;
}

static void remove_lane(mx_scheduler *s, mx_worker *w, mx_lane *l)
{
    mx_lane_group *g = l->group;
    for (mx_lane **at = &w->lanes; *at; at = &(*at)->next)
        if (*at == l) {
            *at = l->next;
            break;
        }
    if (w->last == l) w->last = NULL;
    for (int i = 0; i < MX_AFFINITIES; i++)
        if (g->near[i].where == l) g->near[i].where = NULL;
    if (!--g->replicas) {
        mx_lane_group **at = &s->groups;
        while (*at != g) at = &(*at)->next;
        *at = g->next;
        free(g);
    }
    free_lane(l);
}

mx_status mx_scheduler_lane(mx_scheduler *s, const mx_lane_config *c, mx_error *err)
{
    if (!c->name || !*c->name) return mx_fail(err, MX_ERR_ARG, "lane: no name");
    if (c->device < 0 || c->device >= s->n_devices)
        return mx_fail(err, MX_ERR_ARG, "lane %s: device %d of %d", c->name, c->device, s->n_devices);
    if (!c->run) return mx_fail(err, MX_ERR_ARG, "lane %s: no run()", c->name);
    if (c->max_jobs < 1 || c->max_jobs > MOST_JOBS)
        return mx_fail(err, MX_ERR_ARG, "lane %s: max_jobs %u, must be 1 to %u", c->name, c->max_jobs, MOST_JOBS);
    if (c->max_rows < 1) return mx_fail(err, MX_ERR_ARG, "lane %s: max_rows 0", c->name);
    if (c->queue_limit < 1) return mx_fail(err, MX_ERR_ARG, "lane %s: queue_limit 0", c->name);

    pthread_mutex_lock(&s->opening);
    mx_status st = c->express ? open_express(s, c->device, err) : MX_OK;
    if (!st) st = add_lane(s, &s->workers[c->express ? s->n_devices + c->device : c->device], c, err);
    pthread_mutex_unlock(&s->opening);
    return st;
}

bool mx_scheduler_lane_close(mx_scheduler *s, const char *name)
{
    bool found = false;
    pthread_mutex_lock(&s->opening);
    pthread_mutex_lock(&s->lock);
    s->closers++;
    for (int i = 0; i < s->n_workers; i++) {
        mx_worker *w = &s->workers[i];
        mx_lane *l = find_lane(w, name);
        if (!l) continue;
        found = l->closing = true;
        if (s->threads) rouse(w);
    }
    for (int i = 0; found && i < s->n_workers; i++) {
        mx_worker *w = &s->workers[i];
        mx_lane *l = w->open ? find_closing(w, name) : NULL;
        while (l && (l->running.n || l->waiting.n || w->giving || w->unsettled == l)) {
            if (s->threads) pthread_cond_wait(&s->empty, &s->lock);
            else step_all(s);
        }
        if (l) remove_lane(s, w, l);
    }
    s->closers--;
    pthread_mutex_unlock(&s->lock);
    pthread_mutex_unlock(&s->opening);
    return found;
}

void mx_scheduler_lane_cut(mx_scheduler *s, const char *name)
{
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++)
        for (mx_lane *l = s->workers[i].lanes; l; l = l->next)
            if (strcmp(l->c.name, name) == 0) l->cut = true;
    rouse_all(s);
    pthread_mutex_unlock(&s->lock);
}

/* When the jobs that wait now will have been served, at the lane's pace; a
 * second when it has no pace yet. */
static uint32_t retry_ms(const mx_lane *l)
{
    if (!l->job_ns) return 1000;
    double ms = (double)l->job_ns * l->waiting.n / 1e6;
    return ms < 1 ? 1 : ms > 30000 ? 30000 : (uint32_t)ms;
}

static void enqueue(mx_lane *l, mx_job *j, uint64_t now)
{
    j->granted = j->missed = 0;
    j->running = false;
    j->verdict = MX_DONE;
    j->error.code = MX_OK;
    j->error.retry_ms = 0;
    j->error.text[0] = '\0';
    j->queued_ns = now;
    j->started_ns = j->done_ns = 0;
    if (!l->waiting.n && !l->running.n) l->ready_ns = now;
    mx_waiting_push(&l->waiting, j);
    mx_share_enter(l, j);
    if (j->deadline_ns && j->deadline_ns < l->next_deadline) l->next_deadline = j->deadline_ns;
    l->worker->s->live++;
    rouse(l->worker);
}

/* Jobs, or the time they will take where every replica's pace is known: devices differ. */
static uint64_t load_of(const mx_lane *l, bool paced)
{
    uint64_t jobs = (uint64_t)l->waiting.n + l->running.n;
    return paced ? (jobs + 1) * l->job_ns : jobs;
}

static mx_lane *least_loaded(mx_scheduler *s, const char *name, mx_lane **full, bool *paced)
{
    mx_lane *best = NULL;
    *paced = true;
    for (int i = 0; i < s->n_workers; i++) {
        mx_lane *l = find_lane(&s->workers[i], name);
        if (l && !l->job_ns && !s->workers[i].lost) *paced = false;
    }
    for (int i = 0; i < s->n_workers; i++) {
        mx_lane *l = find_lane(&s->workers[i], name);
        if (!l || s->workers[i].lost) continue;
        if (l->waiting.n >= l->c.queue_limit) *full = l;
        else if (!best || load_of(l, *paced) < load_of(best, *paced)) best = l;
    }
    return best;
}

/* Where its kind went last, when that replica is hardly busier than the least loaded. */
static mx_lane *near_kv(mx_lane *best, const mx_job *j, bool paced)
{
    mx_lane_group *g = best->group;
    if (!j->affinity || g->replicas < 2) return best;
    mx_lane *was = g->near[j->affinity % MX_AFFINITIES].where;
    if (g->near[j->affinity % MX_AFFINITIES].key == j->affinity && was && !was->closing && !was->worker->lost && was->waiting.n < was->c.queue_limit) {
        uint64_t slack = (was->c.max_jobs + 3) / 4 * (paced ? was->job_ns : 1);
        if (load_of(was, paced) <= load_of(best, paced) + slack) return was;
    }
    g->near[j->affinity % MX_AFFINITIES].key = j->affinity;
    g->near[j->affinity % MX_AFFINITIES].where = best;
    return best;
}

/* Refuse now what would be too late anyway: those before it at the measured pace, and a turn. */
static mx_status check_deadline(const mx_lane *l, const mx_job *j, uint64_t now, mx_error *err)
{
    if (!j->deadline_ns) return MX_OK;
    if (j->deadline_ns <= now) return mx_fail(err, MX_ERR_DEADLINE, "%s: the deadline had passed when the request came", l->c.name);
    uint32_t before = 0;
    for (int p = 0; p <= j->priority; p++) before += l->waiting.of[p];
    if (l->done < MX_MEASURED_JOBS || !before) return MX_OK;
    double wait_ns = (double)l->job_ns * before + (double)l->turn_ns, left_ns = (double)(j->deadline_ns - now);
    if (wait_ns < left_ns) return MX_OK;
    return mx_fail(err, MX_ERR_DEADLINE, "%s: %u requests wait, about %.0f ms; the deadline is in %.0f ms", l->c.name, before,
                   wait_ns / 1e6, left_ns / 1e6);
}

mx_status mx_scheduler_submit(mx_scheduler *s, const char *name, mx_job *job, mx_error *err)
{
    if (!job->done) return mx_fail(err, MX_ERR_ARG, "job: no done()");
    if (job->priority >= MX_PRIORITIES) return mx_fail(err, MX_ERR_ARG, "job: priority %d, must be 0 to %d", job->priority, MX_PRIORITIES - 1);
    mx_lane *full = NULL;
    bool paced;
    mx_status st = MX_OK;
    pthread_mutex_lock(&s->lock);
    uint64_t now = mx_now_ns(&s->clock);
    mx_lane *best = least_loaded(s, name, &full, &paced), *counts = best ? best : full;
    if (!counts && group_of(s, name)) st = mx_fail(err, MX_ERR_UNAVAILABLE, "%s: its device is lost", name);
    else if (!counts) st = mx_fail(err, MX_ERR_NOT_FOUND, "no lane \"%s\"", name);
    else if (s->draining) st = mx_fail(err, MX_ERR_UNAVAILABLE, "%s: the server is shutting down", name);
    else if (counts->cut) st = mx_fail(err, MX_ERR_UNAVAILABLE, "%s: the model is no longer served", name);
    else if (best) {
        best = near_kv(best, job, paced);
        st = check_deadline(best, job, now, err);
        if (!st) st = mx_share_admit(s, best, job, now, err);
        if (!st) enqueue(best, job, now);
    } else {
        st = mx_fail(err, MX_ERR_BUSY, "%s: %u requests wait already", name, full->waiting.n);
        if (err) err->retry_ms = retry_ms(full);
    }
    if (st && counts) counts->refused++;
    pthread_mutex_unlock(&s->lock);
    return st;
}

bool mx_scheduler_serves(mx_scheduler *s, const char *ending)
{
    size_t n = strlen(ending);
    int lanes = 0, lost = 0;
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++)
        for (const mx_lane *l = s->workers[i].lanes; l; l = l->next) {
            size_t len = strlen(l->c.name);
            if (l->closing || len < n || strcmp(l->c.name + len - n, ending) != 0) continue;
            lanes++;
            lost += s->workers[i].lost;
        }
    pthread_mutex_unlock(&s->lock);
    return !lost || lost < lanes;
}

void mx_scheduler_wake(mx_scheduler *s)
{
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++) s->workers[i].sweep = true;
    rouse_all(s);
    pthread_mutex_unlock(&s->lock);
}

static void count_lane(mx_lane_stats *out, const mx_lane *l)
{
    out->waiting += l->waiting.n;
    out->running += l->running.n;
    out->turns += l->turns;
    out->rows += l->rows;
    out->done += l->done;
    out->refused += l->refused;
    out->busy_ns += l->busy_ns;
    out->replicas++;
    out->lost += l->worker->lost;
    out->budget += l->budget;
    if (l->last_turn_ns > out->last_turn_ns) out->last_turn_ns = l->last_turn_ns;
}

void mx_scheduler_lane_forget(mx_scheduler *s, const char *name)
{
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++) {
        mx_lane *l = find_lane(&s->workers[i], name);
        if (l) l->turns = l->rows = l->done = l->refused = l->busy_ns = l->job_ns = 0;
    }
    pthread_mutex_unlock(&s->lock);
}

bool mx_scheduler_stats(mx_scheduler *s, const char *name, mx_lane_stats *out)
{
    *out = (mx_lane_stats){0};
    pthread_mutex_lock(&s->lock);
    for (int i = 0; i < s->n_workers; i++) {
        mx_lane *l = find_lane(&s->workers[i], name);
        if (l) count_lane(out, l);
    }
    pthread_mutex_unlock(&s->lock);
    return out->replicas > 0;
}

void mx_scheduler_device_stats(mx_scheduler *s, int device, mx_lane_stats *out)
{
    *out = (mx_lane_stats){0};
    pthread_mutex_lock(&s->lock);
    for (int i = device; i < s->n_workers; i += s->n_devices)      /* its worker, and its express one */
        for (const mx_lane *l = s->workers[i].lanes; l; l = l->next) count_lane(out, l);
    pthread_mutex_unlock(&s->lock);
}
