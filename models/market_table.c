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

/* Cents of every store in by_store[pairs], by the place of its first pair. */
static mx_status play_all(const mx_qnet *q, mx_stream *s, int rule, const char *env, int64_t rows, uint64_t seed, double *by_pair, mx_error *err)
{
    play p;
    mx_status st = MX_OK;
    MX_TRY(play_open(&p, env, rows, seed, err));
    for (int w = 0; !st && w < MX_MARKET_WEEKS; w++) {
        if (rule < 0) st = act(&p, q, s, err);
        for (int64_t i = 0; rule >= 0 && i < rows; i++) p.action[i] = mx_market_act(&p.e, i, (mx_market_rule)rule);
        if (!st) mx_env_step(&p.e, 0, rows, p.action, p.reward, p.over, p.over + rows);
    }
    int64_t pairs = mx_market_of(&p.e)->n_pairs;
    memset(by_pair, 0, (size_t)pairs * sizeof *by_pair);
    for (int64_t i = 0; !st && i < rows; i++) {
        const mx_market_shelf *shelf = mx_market_shelf_of(&p.e, i);
        by_pair[shelf->pair] += shelf->margin / MX_MARKET_WEEKS * (double)pairs / (double)rows;
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

static mx_status compare(const mx_qnet *q, const mx_env *e, const char *env, int32_t episodes, uint64_t seed, mx_market_score *out, int *n, mx_error *err)
{
    const mx_market *m = mx_market_of(e);
    mx_stream s = {0};
    size_t pairs = (size_t)m->n_pairs;
    double *cents = calloc(pairs * (MX_MARKET_SCORES + 1), sizeof *cents);
    mx_status st = cents ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%zu pairs", pairs);
    if (!st && q) st = mx_stream_open(&s, mx_qnet_device(q), mx_qnet_scratch(q, CHUNK, false) + 4 * mx_stream_tensor_bytes(MX_F32, CHUNK, MX_PRICE_SEEN), err);
    *n = 0;
    for (int rule = q ? -1 : 0; !st && rule < MX_MARKET_RULES; rule++) {
        double *own = cents + pairs * (size_t)*n;
        mx_market_score *r = &out[(*n)++];
        st = play_all(q, &s, rule, env, m->n_pairs * episodes, seed, own, err);
        *r = (mx_market_score){.name = rule < 0 ? "learned" : mx_market_rule_name((mx_market_rule)rule)};
        over_stores(m, own, NULL, &r->margin, &r->error);
        over_stores(m, cents, own, &r->ahead, &r->ahead_error);
        r->ahead *= 100 / r->margin, r->ahead_error *= 100 / r->margin;
    }
    if (q) mx_stream_close(&s);
    free(cents);
    return st;
}

mx_status mx_market_compare(const mx_qnet *q, const char *env, int32_t episodes, uint64_t seed, mx_market_score out[MX_MARKET_SCORES], int *n, mx_error *err)
{
    mx_env e;
    if (strncmp(env, "market:", 7)) return mx_fail(err, MX_ERR_ARG, "env: \"%.40s\" is no market:PANEL.csv", env);
    if (episodes < 1 || episodes > 4096) return mx_fail(err, MX_ERR_ARG, "episodes is %d; it must be from 1 to 4096", episodes);
    if (q && (mx_qnet_config_of(q)->observation != MX_PRICE_SEEN || mx_qnet_config_of(q)->actions != MX_LADDER))
        return mx_fail(err, MX_ERR_ARG, "model: a network from %d numbers to %d actions; a price policy has %d and %d", mx_qnet_config_of(q)->observation, mx_qnet_config_of(q)->actions, MX_PRICE_SEEN, MX_LADDER);
    MX_TRY(mx_env_open(&e, env, 1, seed, err));
    mx_status st = compare(q, &e, env, episodes, seed, out, n, err);
    mx_env_close(&e);
    return st;
}
