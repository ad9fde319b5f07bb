/* scheduler_turn.c - the turn rule of scheduler.h: what a worker does next.
 *
 * A lane's `running` list stays in order of admission: a job keeps its place from
 * its first turn to its last, and `missed` says who goes first. */
#include "runtime/scheduler_core.h"

#include "runtime/log.h"

static bool is_cancelled(mx_job *j)
{
    return atomic_load_explicit(&j->cancelled, memory_order_acquire);
}

/* ---- giving back between turns ---------------------------------------------- */

/* True, and the reason in j->error, when the job must not have another turn. */
static bool must_leave(const mx_lane *l, mx_job *j, uint64_t now)
{
    const mx_scheduler *s = l->worker->s;
    if (l->worker->lost) mx_fail(&j->error, MX_ERR_UNAVAILABLE, "%s is lost", l->worker->dev->name);
    else if (is_cancelled(j)) mx_fail(&j->error, MX_ERR_CANCELLED, "cancelled by the client");
    else if (s->cancel_all) mx_fail(&j->error, MX_ERR_CANCELLED, "cancelled: the server stops");
    else if (l->cut) mx_fail(&j->error, MX_ERR_UNAVAILABLE, "%s: the model is no longer served", l->c.name);
    else if (j->deadline_ns && j->deadline_ns <= now)
        mx_fail(&j->error, MX_ERR_DEADLINE, "deadline passed %s", j->running ? "while it ran" : "while it waited");
    else return false;
    return true;
}

static void leave(mx_lane *l, mx_job *j, mx_queue *out)
{
    mx_share_leave(l, j);
    l->done++;
    mx_queue_push(out, j);
}

static void sweep_waiting(mx_lane *l, uint64_t now, mx_queue *out)
{
    mx_waiting *w = &l->waiting;
    l->next_deadline = MX_NEVER;
    for (int p = 0, t = 0; mx_waiting_next(w, &p, &t); t++)
        for (uint32_t i = 0, n = w->q[p][t].n; i < n; i++) {        /* once round */
            mx_job *j = mx_waiting_take(w, p, t);
            if (must_leave(l, j, now)) {
                leave(l, j, out);
                continue;
            }
            mx_waiting_push(w, j);
            if (j->deadline_ns && j->deadline_ns < l->next_deadline) l->next_deadline = j->deadline_ns;
        }
}

static void sweep_lane(mx_lane *l, uint64_t now, mx_queue *out)
{
    for (mx_job *before = NULL, *j = l->running.head; j; j = before ? before->next : l->running.head) {
        if (must_leave(l, j, now)) leave(l, mx_queue_take_after(&l->running, before), out);
        else before = j;
    }
    if (l->waiting.n && (l->worker->sweep || l->cut || l->worker->s->cancel_all || now >= l->next_deadline)) sweep_waiting(l, now, out);
}

/* done() runs without the lock. */
static void give_back(mx_worker *w, mx_queue *out)
{
    mx_scheduler *s = w->s;
    uint32_t n = out->n;
    if (!n) return;
    uint64_t now = mx_now_ns(&s->clock);
    w->giving = true;
    pthread_mutex_unlock(&s->lock);
    for (mx_job *j = out->head, *next; j; j = next) {
        next = j->next;                      /* done() may free the job */
        j->next = NULL;
        j->done_ns = now;
        j->done(j);
    }
    pthread_mutex_lock(&s->lock);
    w->giving = false;
    s->live -= n;
    if (!s->live || s->closers) pthread_cond_broadcast(&s->empty);
}

/* ---- forming a turn ---------------------------------------------------------- */

/* One turn while it is filled. */
typedef struct filling {
    mx_lane *l;
    uint32_t left;         /* rows not yet granted */
    uint32_t n;            /* jobs in l->turn      */
} filling;

/* Puts j into the turn if it fits; the first job always does. */
static bool grant(filling *f, mx_job *j)
{
    uint32_t rows = mx_rows_of(j);
    if (j->splits && rows > f->left) rows = f->left;
    if (!rows || (f->n && rows > f->left)) return false;
    j->granted = rows;
    f->left -= rows < f->left ? rows : f->left;
    f->l->turn[f->n++] = j;
    mx_share_charge(f->l, j);
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
        for (int batch = 0; batch < (f->l->running_batch ? 2 : 1); batch++)
            for (mx_job *j = f->l->running.head; j; j = j->next)
                if (!j->missed && j->splits == (splits != 0) && (j->priority == MX_PRIORITY_BATCH) == (batch != 0)) grant(f, j);
    for (mx_job *j = f->l->running.head; j; j = j->next) j->missed = j->granted ? 0 : j->missed + 1;
}

/* The first that does not fit keeps the others waiting.  One that was cancelled
 * without a word to us leaves here. */
static void grant_newcomers(filling *f, mx_queue *out, uint64_t now)
{
    mx_lane *l = f->l;
    int p, t;
    while (l->waiting.n && mx_share_next(l, &p, &t)) {
        mx_job *j = l->waiting.q[p][t].head;
        bool leaves = is_cancelled(j);
        if (!leaves && !grant(f, j)) break;
        mx_waiting_take(&l->waiting, p, t);
        if (leaves) {
            mx_fail(&j->error, MX_ERR_CANCELLED, "cancelled by the client");
            leave(l, j, out);
            continue;
        }
        mx_share_admitted(l, j);
        j->running = true;
        j->started_ns = now;
        mx_queue_push(&l->running, j);
    }
    if (!l->waiting.n) l->next_deadline = MX_NEVER;
}

/* ---- which lane ----------------------------------------------------------------- */

/* A lane whose jobs all wait may wait for company, not longer than until *when. */
static bool is_ripe(const mx_lane *l, uint64_t now, uint64_t *when)
{
    if (l->running.n || l->worker->s->draining || l->closing || !l->c.max_wait_us) return true;
    if (l->waiting.n >= l->c.max_jobs || l->waiting.rows >= l->c.max_rows) return true;
    *when = mx_waiting_oldest(&l->waiting) + (uint64_t)l->c.max_wait_us * 1000;
    return now >= *when;
}

/* When a lane has been passed over for so long that its least share is due. */
static uint64_t due_ns(const mx_lane *l)
{
    enum { UNKNOWN_TURN_NS = 1000000 };
    uint64_t turn = l->turn_ns > UNKNOWN_TURN_NS ? l->turn_ns : UNKNOWN_TURN_NS;
    return l->ready_ns + MX_LEAST_SHARE * turn;
}

/* The lane that goes next, or NULL and in *next_ns when to look again. */
static mx_lane *pick_lane(mx_worker *w, uint64_t now, uint64_t *next_ns)
{
    mx_lane *best = NULL, *due = NULL;
    *next_ns = MX_NEVER;
    for (mx_lane *l = w->lanes; l; l = l->next) {
        uint64_t when = MX_NEVER;
        if (!l->running.n && !l->waiting.n) continue;
        if (l->next_deadline < *next_ns) *next_ns = l->next_deadline;
        if (!is_ripe(l, now, &when)) {
            if (when < *next_ns) *next_ns = when;
            continue;
        }
        if (due_ns(l) <= now && (!due || due_ns(l) < due_ns(due))) due = l;
        if (!best || l->c.priority < best->c.priority || (l->c.priority == best->c.priority && l->served < best->served)) best = l;
    }
    return due ? due : best;
}

/* The lane that had the last turn hears whether that was too long for the one that comes now. */
static void adapt_budget(mx_worker *w, const mx_lane *next)
{
    mx_lane *before = w->last;
    w->last = NULL;
    if (!before) return;
    uint32_t most = before->c.max_rows, least = most / 64 ? most / 64 : 1, step = most / 16 ? most / 16 : 1;
    if (next->c.priority >= before->c.priority) {
        before->budget = most - before->budget > step ? before->budget + step : most;
        return;
    }
    uint64_t waited = w->last_end_ns > next->ready_ns ? w->last_end_ns - next->ready_ns : 0;
    if (next->turn_ns && waited > next->turn_ns / 5) before->budget = before->budget / 2 > least ? before->budget / 2 : least;
}

/* ---- running a turn ---------------------------------------------------------- */

static void use_bigger_scratch(mx_worker *w, mx_buffer bigger)
{
    mx_error err;
    if (mx_stream_sync(&w->stream, &err)) mx_log(MX_LOG_WARN, "scheduler", "before a new lane: %s", err.text);
    mx_buffer_close(&w->stream.scratch);
    w->stream.scratch = bigger;
}

static void run_lane(mx_worker *w, mx_lane *l, uint32_t n)
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

static uint64_t average(uint64_t have, uint64_t now)
{
    return have ? have - have / 8 + now / 8 : now;
}

/* After the turn: who is done leaves the lane. */
static void collect(mx_lane *l, mx_queue *out)
{
    uint32_t before = out->n;
    for (mx_job *last = NULL, *j = l->running.head; j; j = last ? last->next : l->running.head) {
        if (j->granted && (j->verdict == MX_DONE || j->error.code)) leave(l, mx_queue_take_after(&l->running, last), out);
        else last = j;
    }
    uint32_t n = out->n - before;
    if (!n) return;
    l->job_ns = average(l->job_ns, l->spent_ns / n);
    l->spent_ns = 0;
}

static void take_turn(mx_worker *w, mx_lane *l, uint64_t now)
{
    mx_scheduler *s = w->s;
    mx_queue out = {0};
    filling f = {.l = l, .left = l->budget};
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
        l->turn_ns = average(l->turn_ns, took);
        l->last_turn_ns = l->ready_ns = w->last_end_ns = end;
        w->last = l;
        w->unsettled = l->c.settle ? l : NULL;
        collect(l, &out);
    }
    give_back(w, &out);
}

/* Before anybody else has the stream, and before the worker sleeps: the lane takes what its last turn left there. */
static void settle(mx_worker *w)
{
    mx_scheduler *s = w->s;
    mx_lane *l = w->unsettled;
    w->unsettled = NULL;
    w->giving = true;
    pthread_mutex_unlock(&s->lock);
    l->c.settle(l->c.model, &w->stream);
    pthread_mutex_lock(&s->lock);
    w->giving = false;
    if (s->closers) pthread_cond_broadcast(&s->empty);
}

bool mx_worker_advance(mx_worker *w, uint64_t *next_ns)
{
    uint64_t now = mx_now_ns(&w->s->clock);
    mx_queue out = {0};
    if (!w->lost && w->dev->ops->lost(w->dev)) {
        mx_log(MX_LOG_ERROR, "scheduler", "%s is lost: its jobs end, what else there is goes on", w->dev->name);
        w->lost = w->sweep = true;
    }
    for (mx_lane *l = w->lanes; l; l = l->next) sweep_lane(l, now, &out);
    w->sweep = false;
    if (out.n) {
        give_back(w, &out);
        return true;
    }
    mx_lane *l = pick_lane(w, now, next_ns);
    if (w->unsettled && w->unsettled != l) {
        settle(w);
        return true;
    }
    if (!l) return false;
    adapt_budget(w, l);
    take_turn(w, l, now);
    return true;
}
