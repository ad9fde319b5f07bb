/* env_market.c - shelves that sell week by week. */
#include "models/env_market.h"

#include "models/guardrail.h"
#include "models/price_seen.h"
#include "runtime/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define KEEPING 0.0025            /* of the cost of what is left, a week */

enum { STOCK_WEEKS = 3 };

static const mx_market_pair *pair_of(const mx_market *m, const mx_market_shelf *s)
{
    return &m->pair[s->pair];
}

static const mx_market_week *week_of(const mx_market *m, const mx_market_shelf *s, int64_t ahead)
{
    const mx_market_pair *q = pair_of(m, s);
    int64_t w = s->week + ahead;
    return &m->week[q->first + (w < q->weeks ? w : q->weeks - 1)];
}

void mx_market_ladder(const mx_market *m, const mx_market_shelf *s, int64_t price[MX_LADDER], uint8_t feasible[MX_LADDER])
{
    const mx_market_pair *q = pair_of(m, s);
    mx_guardrails g = {.floor = (int64_t)round(0.65 * q->reference), .ceiling = (int64_t)round(1.35 * q->reference), .min_margin_pct = 3};
    mx_price_state now = {.published = s->price, .cost = (int64_t)round((double)week_of(m, s, 0)->cost)};
    int32_t nearest = 0;
    if (now.cost < 1) now.cost = 1;
    mx_price_rungs(s->price, price);
    if (mx_guard_mask(&g, &now, price, MX_LADDER, feasible)) return;
    /* the price has been left behind by its cost: one step towards what is feasible, or as near as can be */
    double least = fmax((double)g.floor, (double)now.cost / 0.97), target = least <= (double)g.ceiling ? fmin(fmax((double)s->price, least), (double)g.ceiling) : (double)g.ceiling;
    for (int32_t k = 1; k < MX_LADDER; k++)
        if (fabs((double)price[k] - target) < fabs((double)price[nearest] - target)) nearest = k;
    feasible[nearest] = 1;
}

/* Units a seller expects this week at a price. */
static double expected(const mx_market *m, const mx_market_shelf *s, double price)
{
    const mx_market_pair *q = pair_of(m, s);
    double before = m->known[q->brand].before * log((double)s->price / q->reference);
    return mx_demand_units(&s->belief, price, q->reference) * exp((double)week_of(m, s, 0)->known + before);
}

/* Units of which half the weeks sell more. */
static double median(const mx_market *m, const mx_market_shelf *s, double price, double before)
{
    const mx_market_pair *q = pair_of(m, s);
    const double dollars = 1.0 / 6400;
    return exp(q->own * log(price * dollars) + m->brand[q->brand].before * log(before * dollars) + (double)week_of(m, s, 0)->rest);
}

/* What a seller makes of units sold in a week at a price: those that the week explains are taken out. */
static void learn(const mx_market *m, mx_market_shelf *s, const mx_market_week *w, double price, double before, double sold)
{
    const mx_market_pair *q = pair_of(m, s);
    mx_error none;
    double usual = exp((double)w->known + m->known[q->brand].before * log(before / q->reference));
    mx_demand_observe(&s->belief, price, q->reference, fmin(fmax(sold, 0.1) / usual, 1e9), 1, &none);
}

static double normal(double x)
{
    return 0.5 * erfc(-x * 0.7071067811865476);
}

/* Of a price now, what the week will earn in the mean of its error, over what the reference price would, were there always
 * enough.  A learner that is told this in place of what chance brought learns the same values, from a fraction of the
 * weeks: the mean is E[min(u exp(sigma z), stock)], and what the week has whatever is asked cannot change a choice. */
static double promise(const mx_market *m, const mx_market_shelf *s, double price)
{
    const mx_market_pair *q = pair_of(m, s);
    const mx_market_week *w = week_of(m, s, 0);
    double sigma = fmax(m->brand[q->brand].sigma, 1e-6), mean = exp(0.5 * sigma * sigma), u = median(m, s, price, (double)s->price), sold = 0;
    if (s->stock > 0) {
        double z = log(s->stock / u) / sigma;
        sold = u * mean * normal(z - sigma) + s->stock * normal(-z);
    }
    double usual = median(m, s, q->reference, q->reference) * mean * (q->reference - (double)w->cost);
    return sold * (price - (double)w->cost) - KEEPING * (double)w->cost * (s->stock - sold) - usual;
}

double mx_market_sell(const mx_market *m, mx_market_shelf *s, int64_t price, double z, bool teach)
{
    const mx_market_pair *q = pair_of(m, s);
    const mx_market_week *w = week_of(m, s, 0);
    double p = (double)price, guess = teach ? expected(m, s, p) : 0;
    double units = median(m, s, p, (double)s->price) * exp(m->brand[q->brand].sigma * z), sold = fmin(units, s->stock);
    if (teach) {
        bool out = units >= s->stock;                   /* what would have sold is not known */
        s->surprise = out ? 0 : log(fmax(sold, 0.1) / guess);
        if (!out) learn(m, s, w, p, (double)s->price, sold);
    }
    s->stock -= sold;
    double earned = sold * (p - (double)w->cost) - KEEPING * (double)w->cost * s->stock;
    s->margin += earned;
    s->before = s->price;
    s->price = price;
    s->week++;
    if (s->week % MX_MARKET_DELIVERY == 0) s->stock = fmax(s->stock, STOCK_WEEKS * q->units);
    return earned;
}

double mx_market_error(const mx_env *e, int64_t row, uint32_t ahead)
{
    uint32_t at = e->row[row].step + ahead, episode = e->row[row].episode;
    double u = mx_uniform(e->seed, (uint32_t)row, episode, at, 0), v = mx_uniform(e->seed, (uint32_t)row, episode, at, 1);
    return sqrt(-2 * log(1 - u)) * cos(6.283185307179586 * v);        /* Box and Muller 1958 */
}

/* ---- the world -------------------------------------------------------------------------------------- */

/* A belief with what the training stores say about the brand, and the pair's past about its level. */
static mx_demand_belief prior(const mx_market_brand *known, double level)
{
    double pe = 1 / (0.1 + known->spread * known->spread), pa = 1 / (0.2 * 0.2);
    return (mx_demand_belief){.p11 = pa, .p22 = pe, .h1 = pa * level, .h2 = pe * known->own, .n = 1};
}

static void begin(mx_env *e, int64_t row)
{
    const mx_market *m = e->world;
    mx_market_shelf *s = (mx_market_shelf *)e->state + row;
    *s = (mx_market_shelf){.pair = row % m->n_pairs};
    const mx_market_pair *q = pair_of(m, s);
    s->week = 2 + (int64_t)(mx_env_draw(e, row, 0) * (double)(q->weeks - MX_MARKET_WEEKS - 2));
    s->price = (int64_t)round((double)week_of(m, s, -1)->logged);
    s->before = (int64_t)round((double)week_of(m, s, -2)->logged);
    s->stock = STOCK_WEEKS * q->units * (s->week % MX_MARKET_DELIVERY == 0 ? 1 : 0.6);
    s->belief = prior(&m->known[q->brand], q->level);
    const mx_market_week *w = &m->week[q->first];
    for (int64_t i = 1; i < s->week; i++) learn(m, s, &w[i], (double)w[i].logged, (double)w[i - 1].logged, (double)w[i].sold);
}

static void step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated)
{
    const mx_market *m = e->world;
    for (int64_t i = 0; i < n; i++) {
        mx_market_shelf *s = (mx_market_shelf *)e->state + first + i;
        const mx_market_pair *q = pair_of(m, s);
        int64_t price[MX_LADDER];
        mx_price_rungs(s->price, price);
        reward[i] = (float)(promise(m, s, (double)price[action[i]]) / (q->units * (q->reference - q->cost)));
        mx_market_sell(m, s, price[action[i]], mx_market_error(e, first + i, 0), true);
        terminated[i] = 0;
    }
}

static void observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    const mx_market *m = e->world;
    for (int64_t i = 0; i < n; i++) {
        const mx_market_shelf *s = (const mx_market_shelf *)e->state + first + i;
        const mx_market_pair *q = pair_of(m, s);
        const mx_market_week *w = week_of(m, s, 0);
        double mean[2], deviation[2], units = expected(m, s, (double)s->price);
        int64_t price[MX_LADDER];
        mx_demand_moments(&s->belief, mean, deviation);
        mx_price_see(&(mx_price_view){.price = (double)s->price, .cost = (double)w->cost, .reference = q->reference, .before = (double)s->before, .rivals = (double)w->rivals,
                                      .elasticity = mean[1], .deviation = deviation[1], .cover = s->stock / fmax(units, 1e-9),
                                      .delivery = MX_MARKET_DELIVERY - 1 - (double)(s->week % MX_MARKET_DELIVERY), .demand = exp((double)w->known),
                                      .demand_next = exp((double)week_of(m, s, 1)->promotion), .surprise = s->surprise, .stockpiling = m->known[q->brand].before},
                     observation + MX_PRICE_SEEN * i);
        if (mask) mx_market_ladder(m, s, price, mask + MX_LADDER * i);
    }
}

static void close_world(mx_env *e)
{
    if (e->world) mx_market_close(e->world);
    free(e->world);
}

static const mx_env_ops ops = {begin, step, observe, close_world};

mx_market_stores mx_market_stores_of(const char *arguments, size_t *path)
{
    static const struct { const char *tail; mx_market_stores which; } kinds[] = {{",choose", MX_MARKET_CHOOSE}, {",held-out", MX_MARKET_HELD_OUT}};
    *path = strlen(arguments);
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(kinds[i].tail);
        if (*path < n || strcmp(arguments + *path - n, kinds[i].tail)) continue;
        *path -= n;
        return kinds[i].which;
    }
    return MX_MARKET_LEARN;
}

mx_status mx_env_market(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err)
{
    char path[1024];
    size_t len;
    mx_market_stores which = mx_market_stores_of(arguments ? arguments : "", &len);
    if (!len || len >= sizeof path) return mx_fail(err, MX_ERR_ARG, "env: market:PANEL.csv takes the path of a scanner panel, and behind it ,choose or ,held-out for the stores not learned from");
    memcpy(path, arguments, len);
    path[len] = 0;
    mx_market *m = calloc(1, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "env: market");
    mx_status st = mx_market_open(m, path, which, MX_MARKET_WEEKS + 4, err);
    if (st) {
        free(m);
        return st;
    }
    *e = (mx_env){.kind = "market", .ops = &ops, .rows = rows, .observation = MX_PRICE_SEEN, .actions = MX_LADDER, .limit = MX_MARKET_WEEKS, .seed = seed, .world = m};
    return mx_env_alloc(e, sizeof(mx_market_shelf), err);
}
