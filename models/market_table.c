/* market_table.c - everybody plays the same weeks. */
#include "models/market_table.h"

#include "models/price_seen.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK = 4096 };

typedef struct play {
    mx_env   e;
    int64_t  rows;
    int32_t *action;
    float   *reward, *seen;
    uint8_t *mask, *over;         /* over: [2][rows] */
} play;

static void play_close(play *p)
{
    free(p->action), free(p->reward), free(p->seen), free(p->mask), free(p->over);
    if (p->e.world) mx_env_close(&p->e);
    *p = (play){0};
}

static mx_status play_open(play *p, const char *env, int64_t rows, uint64_t seed, mx_error *err)
{
    size_t n = (size_t)rows;
    *p = (play){.rows = rows};
    MX_TRY(mx_env_open(&p->e, env, rows, seed, err));
    p->action = malloc(n * sizeof *p->action);
    p->reward = malloc(n * sizeof *p->reward);
    p->seen = malloc(n * MX_PRICE_SEEN * sizeof *p->seen);
    p->mask = malloc(n * MX_LADDER);
    p->over = malloc(2 * n);
    if (p->action && p->reward && p->seen && p->mask && p->over) return MX_OK;
    play_close(p);
    return mx_fail(err, MX_ERR_NO_MEMORY, "%lld rows of a market", (long long)rows);
}

/* What the network does in every row: its best feasible rung. */
static mx_status act(play *p, const mx_qnet *q, mx_stream *s, mx_error *err)
{
    mx_env_observe(&p->e, 0, p->rows, p->seen, p->mask);
    for (int64_t at = 0; at < p->rows; at += CHUNK) {
        int64_t n = p->rows - at < CHUNK ? p->rows - at : CHUNK;
        mx_tensor x = mx_stream_upload(s, MX_F32, n, MX_PRICE_SEEN, p->seen + at * MX_PRICE_SEEN), m = mx_stream_upload(s, MX_I8, n, MX_LADDER, p->mask + at * MX_LADDER);
        mx_tensor best = mx_qnet_best(s, mx_qnet_values(q, s, x), m);
        s->dev->ops->download(s, p->action + at, best.data, (size_t)n * sizeof *p->action);
        mx_status st = mx_stream_sync(s, err);
        mx_stream_rewind(s);
        if (st) return st;
    }
    return MX_OK;
}

typedef struct bout { const mx_market_trial *t; mx_stream s; int64_t weeks, rows; } bout;      /* weeks: played so far, of all */

/* Adds the cents a week of every pair to by_pair[pairs], times share.  q NULL: the rule plays. */
static mx_status play_all(bout *b, const mx_qnet *q, mx_market_rule rule, double share, double *by_pair, mx_error *err)
{
    const mx_market_trial *t = b->t;
    play p;
    mx_status st = MX_OK;
    MX_TRY(play_open(&p, t->env, b->rows, t->seed, err));
    for (int w = 0; !st && w < MX_MARKET_WEEKS; w++) {
        if (q) st = act(&p, q, &b->s, err);
        for (int64_t i = 0; !q && i < b->rows; i++) p.action[i] = mx_market_act(&p.e, i, rule);
        if (!st) mx_env_step(&p.e, 0, b->rows, p.action, p.reward, p.over, p.over + b->rows);
        b->weeks++;
        if (!st && t->progress && !t->progress(t->ctx, b->weeks, (int64_t)(t->n + MX_MARKET_RULES) * MX_MARKET_WEEKS)) st = mx_fail(err, MX_ERR_CANCELLED, "stopped");
    }
    int64_t pairs = mx_market_of(&p.e)->n_pairs;
    for (int64_t i = 0; !st && i < b->rows; i++) {
        const mx_market_shelf *shelf = mx_market_shelf_of(&p.e, i);
        by_pair[shelf->pair] += share * shelf->margin / MX_MARKET_WEEKS * (double)pairs / (double)b->rows;
    }
    play_close(&p);
    return st;
}

/* Mean of x - y over stores of their pairs' means (y NULL: 0), and half its interval. */
static void over_stores(const mx_market *m, const double *x, const double *y, double *mean, double *error)
{
    double sum = 0, squares = 0, n = 0;
    for (int64_t i = 0; i < m->n_pairs; i++) {
        double d = 0, pairs = 0;
        bool first = true;
        for (int64_t j = 0; j < m->n_pairs; j++) {
            if (m->pair[j].store != m->pair[i].store) continue;
            first &= j >= i;
            d += x[j] - (y ? y[j] : 0);
            pairs++;
        }
        if (!first) continue;
        d /= pairs;
        sum += d, squares += d * d, n++;
    }
    *mean = sum / n;
    *error = n > 1 ? 1.959963984540054 * sqrt(fmax(0, squares / n - *mean * *mean) / (n - 1)) : INFINITY;
}

static mx_status compare(const mx_market_trial *t, const mx_env *e, mx_market_score *out, int *n, mx_error *err)
{
    const mx_market *m = mx_market_of(e);
    bout b = {.t = t, .rows = m->n_pairs * t->episodes};
    size_t pairs = (size_t)m->n_pairs, scratch = 0;
    double *cents = calloc(pairs * (MX_MARKET_SCORES + 1), sizeof *cents);
    mx_status st = cents ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%zu pairs", pairs);
    for (int k = 0; k < t->n; k++)
        if (mx_qnet_scratch(t->policies[k], CHUNK, false) > scratch) scratch = mx_qnet_scratch(t->policies[k], CHUNK, false);
    if (!st && t->n) st = mx_stream_open(&b.s, mx_qnet_device(t->policies[0]), scratch + 4 * mx_stream_tensor_bytes(MX_F32, CHUNK, MX_PRICE_SEEN), err);
    *n = 0;
    for (int rule = t->n ? -1 : 0; !st && rule < MX_MARKET_RULES; rule++) {
        double *own = cents + pairs * (size_t)*n;
        mx_market_score *r = &out[(*n)++];
        for (int k = 0; rule < 0 && !st && k < t->n; k++) st = play_all(&b, t->policies[k], 0, 1.0 / t->n, own, err);
        if (rule >= 0) st = play_all(&b, NULL, (mx_market_rule)rule, 1, own, err);
        *r = (mx_market_score){.name = rule < 0 ? "learned" : mx_market_rule_name((mx_market_rule)rule)};
        over_stores(m, own, NULL, &r->margin, &r->error);
        over_stores(m, cents, own, &r->ahead, &r->ahead_error);
        r->ahead *= 100 / r->margin, r->ahead_error *= 100 / r->margin;
    }
    if (t->n) mx_stream_close(&b.s);
    free(cents);
    return st;
}

mx_status mx_market_compare(const mx_market_trial *t, mx_market_score out[MX_MARKET_SCORES], int *n, mx_error *err)
{
    mx_env e;
    if (strncmp(t->env, "market:", 7)) return mx_fail(err, MX_ERR_ARG, "env: \"%.40s\" is no market:PANEL.csv", t->env);
    if (t->episodes < 1 || t->episodes > 4096) return mx_fail(err, MX_ERR_ARG, "episodes is %d; it must be from 1 to 4096", t->episodes);
    for (int k = 0; k < t->n; k++) {
        const mx_qnet_config *c = mx_qnet_config_of(t->policies[k]);
        if (c->observation != MX_PRICE_SEEN || c->actions != MX_LADDER)
            return mx_fail(err, MX_ERR_ARG, "model: a network from %d numbers to %d actions; a price policy has %d and %d", c->observation, c->actions, MX_PRICE_SEEN, MX_LADDER);
    }
    MX_TRY(mx_env_open(&e, t->env, 1, t->seed, err));
    mx_status st = compare(t, &e, out, n, err);
    mx_env_close(&e);
    return st;
}
