/* pricing_ope.c - from the log: what a policy would have earned, and its steps for training elsewhere. */
#include "server/pricing_internal.h"

#include "models/fqe.h"
#include "models/ope.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DISCOUNT   0.9
#define LEAST_ROWS 100            /* quotes with sales, for a gate */
#define LEAST_ESS  30.0
#define MOST_RATIO 10.0           /* of a margin over the reference margin: more is this */

enum { MOST_ROWS = 200000 };

/* A logged decision that was published, and what it sold. */
typedef struct step {
    int64_t id, item;             /* item: a hash of sku, channel, segment              */
    float   seen[MX_PRICE_SEEN];
    double  margin[MX_LADDER];    /* of every rung, expected, over the reference margin */
    uint8_t feasible[MX_LADDER];
    int32_t action, sales, next;  /* next: the item's next step, -1: none               */
    bool    first;
    double  propensity, earned;   /* earned: mean over its sales, over the reference margin */
    double  cost, unit;           /* unit: the reference margin                          */
} step;

typedef struct steps {
    step    *at;
    int32_t  n;
    size_t   room;
    int64_t  before;              /* what the log had before this id                     */
    int64_t *later;               /* decisions that were approved after it, ascending    */
    size_t   n_later, room_later;
} steps;

static int64_t hash_of(const Merx__V1__QuoteResponse *d)
{
    uint64_t h = 0xcbf29ce484222325u;
    const char *const part[] = {d->sku, d->channel, d->segment};
    for (int k = 0; k < 3; k++) {
        for (const char *c = part[k]; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
        h = (h ^ 0xff) * 0x100000001b3u;
    }
    return (int64_t)(h >> 1);
}

static int by_number(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static mx_status take_later(void *ctx, const mx_log_row *row, mx_error *err)
{
    steps *s = ctx;
    if (row->id < s->before) return MX_OK;
    if (s->n_later == s->room_later) {
        size_t more = s->room_later ? 2 * s->room_later : 64;
        int64_t *grown = realloc(s->later, more * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu approvals", more);
        s->later = grown;
        s->room_later = more;
    }
    Merx__V1__DecideRequest *m = merx__v1__decide_request__unpack(NULL, row->size, row->data);
    if (!m) return mx_fail(err, MX_ERR_FORMAT, "log %lld is no approval", (long long)row->id);
    s->later[s->n_later++] = *m->decision_id == 'p' ? strtoll(m->decision_id + 1, NULL, 10) : 0;
    merx__v1__decide_request__free_unpacked(m, NULL);
    return MX_OK;
}

static mx_status take_decision(void *ctx, const mx_log_row *row, mx_error *err)
{
    steps *s = ctx;
    if (row->id >= s->before) return MX_OK;
    Merx__V1__QuoteResponse *d = merx__v1__quote_response__unpack(NULL, row->size, row->data);
    if (!d) return mx_fail(err, MX_ERR_FORMAT, "log %lld is no decision", (long long)row->id);
    bool fits = s->n < MOST_ROWS && d->n_seen == MX_PRICE_SEEN && d->n_ladder == MX_LADDER && d->action >= 0 && d->action < MX_LADDER && d->propensity > 0 && d->propensity <= 1 &&
                d->cost > 0 && d->reference_margin > 0 && (!strcmp(d->status, "published") || (!strcmp(d->status, "approved") && !(s->n_later && bsearch(&row->id, s->later, s->n_later, sizeof *s->later, by_number))));
    if (fits && (size_t)s->n == s->room) {
        size_t more = s->room ? 2 * s->room : 1024;
        step *grown = realloc(s->at, more * sizeof *grown);
        if (!grown) {
            merx__v1__quote_response__free_unpacked(d, NULL);
            return mx_fail(err, MX_ERR_NO_MEMORY, "%zu logged decisions", more);
        }
        s->at = grown;
        s->room = more;
    }
    if (fits) {
        step *t = &s->at[s->n++];
        *t = (step){.id = row->id, .item = hash_of(d), .action = d->action, .next = -1, .propensity = d->propensity, .cost = (double)d->cost, .unit = d->reference_margin};
        memcpy(t->seen, d->seen, sizeof t->seen);
        for (int k = 0; k < MX_LADDER; k++) {
            t->margin[k] = fmin(fmax(d->ladder[k]->margin / d->reference_margin, -MOST_RATIO), MOST_RATIO);
            t->feasible[k] = d->ladder[k]->feasible != 0;
        }
    }
    merx__v1__quote_response__free_unpacked(d, NULL);
    return MX_OK;
}

static step *step_of(steps *s, int64_t id)
{
    int32_t low = 0, high = s->n - 1;
    while (low <= high) {
        int32_t middle = (low + high) / 2;
        if (s->at[middle].id == id) return &s->at[middle];
        if (s->at[middle].id < id) low = middle + 1;
        else high = middle - 1;
    }
    return NULL;
}

static mx_status take_sale(void *ctx, const mx_log_row *row, mx_error *err)
{
    if (row->id >= ((steps *)ctx)->before) return MX_OK;
    Merx__V1__SaleObservation *o = merx__v1__sale_observation__unpack(NULL, row->size, row->data);
    if (!o) return mx_fail(err, MX_ERR_FORMAT, "log %lld is no sale", (long long)row->id);
    step *t = *o->decision_id == 'p' && !o->stockout ? step_of(ctx, strtoll(o->decision_id + 1, NULL, 10)) : NULL;
    if (t) {
        double margin = o->units / (o->periods > 0 ? o->periods : 1) * ((double)o->price - t->cost) / t->unit;
        t->earned += (fmin(fmax(margin, -MOST_RATIO), MOST_RATIO) - t->earned) / ++t->sales;
    }
    merx__v1__sale_observation__free_unpacked(o, NULL);
    return MX_OK;
}

static int by_item(const void *a, const void *b)
{
    const step *x = a, *y = b;
    if (x->item != y->item) return x->item < y->item ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Decisions with sales, item by item in their order. */
static mx_status read_steps(mx_store *store, int64_t before, steps *s, mx_error *err)
{
    int32_t n = 0;
    *s = (steps){.before = before};
    mx_status st = mx_store_each_log(store, "price_approved", take_later, s, err);
    if (!st && s->n_later) qsort(s->later, s->n_later, sizeof *s->later, by_number);
    if (!st) st = mx_store_each_log(store, "price_decision", take_decision, s, err);
    if (!st) st = mx_store_each_log(store, "sale", take_sale, s, err);
    for (int32_t i = 0; !st && i < s->n; i++)
        if (s->at[i].sales) s->at[n++] = s->at[i];
    s->n = n;
    free(s->later);
    if (st) {
        free(s->at);
        return st;
    }
    if (n) qsort(s->at, (size_t)n, sizeof *s->at, by_item);
    for (int32_t i = 0; i < n; i++) {
        s->at[i].first = !i || s->at[i - 1].item != s->at[i].item;
        s->at[i].next = i + 1 < n && s->at[i + 1].item == s->at[i].item ? i + 1 : -1;
    }
    return MX_OK;
}

/* ---- evidence for and against a policy ------------------------------------------------------------- */

/* target[n][MX_LADDER]: what the policy does in every step. */
static mx_status targets_of(mx_price_policy *net, const steps *s, double *target, double *logged, mx_error *err)
{
    float *seen = malloc(((size_t)s->n + 1) * MX_PRICE_SEEN * sizeof *seen), *value = malloc(((size_t)s->n + 1) * MX_LADDER * sizeof *value);
    mx_status st = seen && value ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%d logged decisions", s->n);
    for (int32_t i = 0; !st && i < s->n; i++) memcpy(seen + (size_t)i * MX_PRICE_SEEN, s->at[i].seen, sizeof s->at[i].seen);
    if (!st) st = mx_price_policy_values(net, seen, s->n, value, err);
    for (int32_t i = 0; !st && i < s->n; i++) {
        target[(size_t)i * MX_LADDER + (size_t)mx_price_policy_best(value + (size_t)i * MX_LADDER, s->at[i].feasible)] = 1;
        logged[(size_t)i * MX_LADDER + (size_t)s->at[i].action] = 1;
    }
    free(seen), free(value);
    return st;
}

static mx_status fqe_of(const steps *s, const double *target, double *value, mx_error *err)
{
    mx_fqe out;
    mx_logged_step *l = calloc((size_t)s->n + 1, sizeof *l);
    if (!l) return mx_fail(err, MX_ERR_NO_MEMORY, "%d logged decisions", s->n);
    for (int32_t i = 0; i < s->n; i++) {
        const step *t = &s->at[i];
        l[i] = (mx_logged_step){.seen = t->seen, .next = t->next < 0 ? NULL : s->at[t->next].seen, .action = t->action, .reward = t->earned, .target = target + (size_t)i * MX_LADDER,
                                .target_next = t->next < 0 ? NULL : target + (size_t)t->next * MX_LADDER, .first = t->first};
    }
    mx_status st = mx_fqe_linear(l, (size_t)s->n, MX_PRICE_SEEN, MX_LADDER, DISCOUNT, &out, err);
    *value = out.value;
    free(l);
    return st;
}

static mx_status weigh(const steps *s, const double *target, const double *logged, mx_ope_row *rows, Merx__V1__PolicyEvidence *e, mx_error *err)
{
    double sum = 0, gain = 0, squares = 0, n = (double)s->n;
    mx_ope o;
    for (int32_t i = 0; i < s->n; i++) {
        const step *t = &s->at[i];
        const double *pi = target + (size_t)i * MX_LADDER;
        rows[i] = (mx_ope_row){.reward = t->earned, .mu = t->propensity, .pi = pi[t->action], .q = t->margin[t->action]};
        for (int k = 0; k < MX_LADDER; k++) rows[i].v += pi[k] * t->margin[k];
        double d = rows[i].v + rows[i].pi / rows[i].mu * (rows[i].reward - rows[i].q) - rows[i].reward;
        sum += t->earned, gain += d, squares += d * d;
    }
    MX_TRY(mx_ope_estimate(rows, (size_t)s->n, 0, &o, err));
    e->rows = s->n;
    e->ess = o.ess, e->ips = o.ips, e->snips = o.snips, e->dr = o.dr;
    e->earned = sum / n;
    e->gain = gain / n;
    e->gain_low = e->gain - 1.6448536269514722 * sqrt(fmax(0, squares / n - e->gain * e->gain) / fmax(n - 1, 1));
    MX_TRY(fqe_of(s, target, &e->fqe, err));
    return fqe_of(s, logged, &e->fqe_logged, err);
}

mx_status price_evidence(mx_pricing *p, mx_price_policy *net, int64_t before, Merx__V1__PolicyEvidence *e, mx_error *err)
{
    steps s;
    MX_TRY(read_steps(p->store, before, &s, err));
    double *target = calloc(((size_t)s.n + 1) * MX_LADDER, sizeof *target), *logged = calloc(((size_t)s.n + 1) * MX_LADDER, sizeof *logged);
    mx_ope_row *rows = calloc((size_t)s.n + 1, sizeof *rows);
    mx_status st = target && logged && rows ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%d logged decisions", s.n);
    if (!st && s.n < LEAST_ROWS)
        st = mx_fail(err, MX_ERR_STATE, "gate: %d logged quotes have sales, %d are needed; force goes round it", s.n, LEAST_ROWS);
    if (!st) st = targets_of(net, &s, target, logged, err);
    if (!st) st = weigh(&s, target, logged, rows, e, err);
    free(s.at), free(target), free(logged), free(rows);
    return st;
}

mx_status price_evidence_gate(mx_pricing *p, price_policy *q, mx_error *err)
{
    Merx__V1__PolicyEvidence *e = q->m->evidence;
    MX_TRY(price_evidence(p, q->net, INT64_MAX, e, err));
    q->changed = true;
    MX_TRY(price_policy_log(p, q, err));
    if (e->ess < LEAST_ESS)
        return mx_fail(err, MX_ERR_STATE, "gate: the log knows too little of what %s@%lld would do (effective sample %.1f of %lld, %.0f needed): serve with --price-exploration; force goes round it",
                       q->m->name, (long long)q->m->version, e->ess, (long long)e->rows, LEAST_ESS);
    if (e->gain_low < 0 || e->fqe < e->fqe_logged)
        return mx_fail(err, MX_ERR_STATE, "gate: %s@%lld would have earned %.4f of the reference margin a quote, what decided %.4f; the gain's lower bound is %.4f, in the long run (FQE) %.4f against %.4f; force goes round it",
                       q->m->name, (long long)q->m->version, e->dr, e->earned, e->gain_low, e->fqe, e->fqe_logged);
    return MX_OK;
}

/* ---- steps for training elsewhere --------------------------------------------------------------------- */

static json_t *floats(const float *x, int n)
{
    json_t *a = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(a, json_real((double)x[i]));
    return a;
}

static json_t *mask_of(const uint8_t *x)
{
    json_t *a = json_array();
    for (int i = 0; i < MX_LADDER; i++) json_array_append_new(a, json_integer(x[i]));
    return a;
}

mx_status mx_pricing_transitions(const char *path, FILE *to, int64_t *n, mx_error *err)
{
    mx_store *store;
    steps s;
    *n = 0;
    MX_TRY(mx_store_open(&store, path, err));
    mx_status st = read_steps(store, INT64_MAX, &s, err);
    mx_store_close(store);
    MX_TRY(st);
    for (int32_t i = 0; !st && i < s.n; i++) {
        const step *t = &s.at[i], *next = t->next < 0 ? NULL : &s.at[t->next];
        json_t *o = json_pack("{s:I, s:b, s:o, s:o, s:i, s:f, s:f}", "decision", (json_int_t)t->id, "first", t->first, "state", floats(t->seen, MX_PRICE_SEEN), "mask",
                              mask_of(t->feasible), "action", t->action, "propensity", t->propensity, "reward", t->earned);
        if (o && next) {
            json_object_set_new(o, "next", floats(next->seen, MX_PRICE_SEEN));
            json_object_set_new(o, "next_mask", mask_of(next->feasible));
        }
        char *line = o ? json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
        if (!line) st = mx_fail(err, MX_ERR_NO_MEMORY, "a transition");
        else if (fprintf(to, "%s\n", line) < 0) st = mx_fail(err, MX_ERR_IO, "transitions: they could not be written");
        free(line);
        json_decref(o);
        *n += !st;
    }
    free(s.at);
    return st;
}
