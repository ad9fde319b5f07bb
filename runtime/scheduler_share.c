/* scheduler_share.c - whose job comes next: classes, tenants, rates. */
#include "runtime/scheduler_core.h"

/* ---- queues ---------------------------------------------------------------- */

void mx_queue_push(mx_queue *q, mx_job *j)
{
    j->next = NULL;
    if (q->last) q->last->next = j;
    else q->head = j;
    q->last = j;
    q->n++;
}

mx_job *mx_queue_take_after(mx_queue *q, mx_job *before)
{
    mx_job *j = before ? before->next : q->head;
    if (before) before->next = j->next;
    else q->head = j->next;
    if (q->last == j) q->last = before;
    j->next = NULL;
    q->n--;
    return j;
}

void mx_waiting_push(mx_waiting *w, mx_job *j)
{
    mx_queue_push(&w->q[j->priority][j->tenant], j);
    w->set[j->priority][j->tenant / 64] |= (uint64_t)1 << j->tenant % 64;
    w->n++;
    w->of[j->priority]++;
    w->rows += mx_rows_of(j);
}

mx_job *mx_waiting_take(mx_waiting *w, int priority, int tenant)
{
    mx_queue *q = &w->q[priority][tenant];
    mx_job *j = mx_queue_take_after(q, NULL);
    if (!q->n) w->set[priority][tenant / 64] &= ~((uint64_t)1 << tenant % 64);
    w->n--;
    w->of[priority]--;
    w->rows -= mx_rows_of(j);
    return j;
}

/* The first set bit of `words` from `from` on; MX_TENANTS: none. */
static int next_bit(const uint64_t *words, int from)
{
    for (int i = from / 64; i < MX_WORDS; i++) {
        uint64_t bits = i == from / 64 ? words[i] & (~(uint64_t)0 << from % 64) : words[i];
        if (bits) return 64 * i + __builtin_ctzll(bits);
    }
    return MX_TENANTS;
}

bool mx_waiting_next(const mx_waiting *w, int *priority, int *tenant)
{
    for (; *priority < MX_PRIORITIES; (*priority)++, *tenant = 0) {
        *tenant = w->of[*priority] ? next_bit(w->set[*priority], *tenant) : MX_TENANTS;
        if (*tenant < MX_TENANTS) return true;
    }
    return false;
}

uint64_t mx_waiting_oldest(const mx_waiting *w)
{
    uint64_t oldest = MX_NEVER;
    for (int p = 0, t = 0; mx_waiting_next(w, &p, &t); t++)
        if (w->q[p][t].head->queued_ns < oldest) oldest = w->q[p][t].head->queued_ns;
    return oldest;
}

/* ---- who is next -------------------------------------------------------------- */

/* Batch leaves a quarter of the places to the others, and where there are several tenants
 * each leaves an eighth: who comes then begins at once, not when a long text ends. */
static bool has_place(const mx_lane *l, int priority, int tenant)
{
    uint32_t most = l->c.max_jobs;
    if (l->running.n >= most) return false;
    if (priority == MX_PRIORITY_BATCH && l->running_batch >= most - most / 4) return false;
    return !l->worker->s->shares || l->running_of[tenant] < most - most / 8;
}

/* The tenant of this class that is most behind; of equals, whose job came first. */
static int behind(const mx_lane *l, int priority)
{
    const mx_waiting *w = &l->waiting;
    const double *vtime = l->group->vtime;
    int best = MX_TENANTS;
    if (!w->of[priority]) return best;
    for (int t = next_bit(w->set[priority], 0); t < MX_TENANTS; t = next_bit(w->set[priority], t + 1)) {
        if (has_place(l, priority, t) &&
            (best == MX_TENANTS || vtime[t] < vtime[best] ||
             (vtime[t] == vtime[best] && w->q[priority][t].head->queued_ns < w->q[priority][best].head->queued_ns)))
            best = t;
    }
    return best;
}

bool mx_share_next(const mx_lane *l, int *priority, int *tenant)
{
    int patient = -1;
    for (int p = 0; p < MX_PRIORITIES; p++)
        if (l->waiting.of[p] && l->passed[p] >= MX_PATIENCE && (patient < 0 || l->passed[p] > l->passed[patient]))
            patient = p;
    for (int i = patient < 0 ? 0 : -1; i < MX_PRIORITIES; i++) {
        *priority = i < 0 ? patient : i;
        *tenant = behind(l, *priority);
        if (*tenant < MX_TENANTS) return true;
    }
    return false;
}

void mx_share_admitted(mx_lane *l, const mx_job *j)
{
    for (int p = j->priority + 1; p < MX_PRIORITIES; p++)
        if (l->waiting.of[p]) l->passed[p]++;
    l->passed[j->priority] = 0;
    l->running_of[j->tenant]++;
    l->running_batch += j->priority == MX_PRIORITY_BATCH;
}

/* ---- virtual time ----------------------------------------------------------------- */

/* Who comes back does not bring the time that it was away. */
void mx_share_enter(mx_lane *l, const mx_job *j)
{
    mx_lane_group *g = l->group;
    int t = j->tenant;
    if (g->jobs[t]++) return;
    double least = -1;
    for (int i = next_bit(g->active, 0); i < MX_TENANTS; i = next_bit(g->active, i + 1))
        if (least < 0 || g->vtime[i] < least) least = g->vtime[i];
    if (g->vtime[t] < least) g->vtime[t] = least;
    g->active[t / 64] |= (uint64_t)1 << t % 64;
}

void mx_share_leave(mx_lane *l, const mx_job *j)
{
    mx_lane_group *g = l->group;
    int t = j->tenant;
    if (j->running) {
        l->running_of[t]--;
        l->running_batch -= j->priority == MX_PRIORITY_BATCH;
    }
    if (!--g->jobs[t]) g->active[t / 64] &= ~((uint64_t)1 << t % 64);
}

/* ---- rates -------------------------------------------------------------------------- */

static double weight_of(const mx_tenant *t)
{
    return t->c.weight > 0 ? t->c.weight : 1;
}

static double burst_of(const mx_tenant *t)
{
    return t->c.burst_rows > 0 ? t->c.burst_rows : t->c.rows_per_second;
}

static void fill(mx_tenant *t, uint64_t now)
{
    if (now > t->filled_ns) t->level += (double)(now - t->filled_ns) * 1e-9 * t->c.rows_per_second;
    if (t->level > burst_of(t)) t->level = burst_of(t);
    t->filled_ns = now;
}

void mx_share_charge(mx_lane *l, mx_job *j)
{
    mx_tenant *t = &l->worker->s->tenant[j->tenant];
    l->group->vtime[j->tenant] += j->granted / weight_of(t);
    t->rows += j->granted;
    uint32_t paid = j->prepaid < j->granted ? j->prepaid : j->granted;
    j->prepaid -= paid;
    if (t->c.rows_per_second > 0) t->level -= j->granted - paid;
}

mx_status mx_share_admit(mx_scheduler *s, const mx_lane *l, mx_job *j, uint64_t now, mx_error *err)
{
    mx_tenant *t = &s->tenant[j->tenant];
    uint32_t waiting = 0;
    j->prepaid = 0;
    for (int p = 0; t->c.max_waiting && p < MX_PRIORITIES; p++) waiting += l->waiting.q[p][j->tenant].n;
    if (t->c.max_waiting && waiting >= t->c.max_waiting) {
        t->refused++;
        return mx_fail(err, MX_ERR_BUSY, "%s: %u requests of this tenant wait already", l->c.name, waiting);
    }
    if (!(t->c.rows_per_second > 0)) return MX_OK;
    fill(t, now);
    if (t->level <= 0) {
        t->refused++;
        double ms = 1 - t->level / t->c.rows_per_second * 1000;
        mx_status st = mx_fail(err, MX_ERR_BUSY, "%s: the tenant's rate of %.0f rows a second is used up", l->c.name, t->c.rows_per_second);
        if (err) err->retry_ms = ms > 30000 ? 30000 : (uint32_t)ms;
        return st;
    }
    j->prepaid = mx_rows_of(j);
    t->level -= j->prepaid;
    return MX_OK;
}

mx_status mx_scheduler_tenant(mx_scheduler *s, uint8_t tenant, const mx_tenant_config *c, mx_error *err)
{
    if (!(c->weight > 0 && c->weight <= 1e6)) return mx_fail(err, MX_ERR_ARG, "tenant %u: weight %g, must be over 0 to 1e6", tenant, c->weight);
    if (!(c->rows_per_second >= 0 && c->rows_per_second <= 1e12))
        return mx_fail(err, MX_ERR_ARG, "tenant %u: rows_per_second %g, must be 0 to 1e12", tenant, c->rows_per_second);
    if (!(c->burst_rows >= 0 && c->burst_rows <= 1e12))
        return mx_fail(err, MX_ERR_ARG, "tenant %u: burst_rows %g, must be 0 to 1e12", tenant, c->burst_rows);
    pthread_mutex_lock(&s->lock);
    mx_tenant *t = &s->tenant[tenant];
    bool had_rate = t->c.rows_per_second > 0;
    if (had_rate) fill(t, mx_now_ns(&s->clock));
    t->c = *c;
    if (!had_rate) {
        t->level = burst_of(t);
        t->filled_ns = mx_now_ns(&s->clock);
    }
    s->shares = true;
    pthread_mutex_unlock(&s->lock);
    return MX_OK;
}

void mx_scheduler_tenant_stats(mx_scheduler *s, uint8_t tenant, mx_tenant_stats *out)
{
    pthread_mutex_lock(&s->lock);
    *out = (mx_tenant_stats){.rows = s->tenant[tenant].rows, .refused = s->tenant[tenant].refused};
    for (int i = 0; i < s->n_workers; i++)
        for (mx_lane *l = s->workers[i].lanes; l; l = l->next) {
            out->running += l->running_of[tenant];
            for (int p = 0; p < MX_PRIORITIES; p++) out->waiting += l->waiting.q[p][tenant].n;
        }
    pthread_mutex_unlock(&s->lock);
}
