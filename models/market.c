/* market.c - from a panel's rows to equations of demand, and weeks to act in. */
#include "models/market.h"

#include "models/demand.h"
#include "models/market_panel.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CARTON 64.0               /* ounces */
#define CENTS  (100 * CARTON)     /* of a carton, for a dollar an ounce */

enum { PARTS = 4, LEAST_ROWS = 200 };

/* ---- the stores ------------------------------------------------------------------------------------ */

typedef struct stores {
    int32_t *number;              /* ascending */
    int32_t n;
} stores;

static mx_status find_stores(stores *s, const mx_panel *p, mx_error *err)
{
    *s = (stores){.number = malloc(((size_t)p->n + 1) * sizeof *s->number)};
    if (!s->number) return mx_fail(err, MX_ERR_NO_MEMORY, "a panel's stores");
    for (int64_t i = 0; i < p->n && p->row[i].brand == 0; i++)
        if (!s->n || s->number[s->n - 1] != p->row[i].store) s->number[s->n++] = p->row[i].store;
    return s->n >= PARTS ? MX_OK : mx_fail(err, MX_ERR_ARG, "a market needs at least %d stores that sell brand 1; the panel has %d", PARTS, s->n);
}

static int32_t rank_of(const stores *s, int32_t number)
{
    int32_t low = 0, high = s->n - 1;
    while (low <= high) {
        int32_t middle = (low + high) / 2;
        if (s->number[middle] == number) return middle;
        if (s->number[middle] < number) low = middle + 1;
        else high = middle - 1;
    }
    return -1;
}

/* A store's place among all; -1: not of the kind. */
static int32_t chosen(const stores *s, int32_t number, mx_market_stores which)
{
    static const mx_market_stores kind[PARTS] = {MX_MARKET_LEARN, MX_MARKET_HELD_OUT, MX_MARKET_LEARN, MX_MARKET_CHOOSE};
    int32_t r = rank_of(s, number);
    return r >= 0 && kind[r % PARTS] == which ? r : -1;
}

/* ---- equations of a brand ------------------------------------------------------------------------------ */

typedef struct sample {
    double *y, *x;                /* x: K ln prices, ln own price before, deal, feat          */
    int32_t *group;
    const mx_panel_row **row;
    int64_t n;
    int32_t k;
} sample;

static void sample_close(sample *s)
{
    free(s->y), free(s->x), free(s->group), free(s->row);
    *s = (sample){0};
}

static bool follows(const mx_panel_row *a, const mx_panel_row *b)
{
    return a->brand == b->brand && a->store == b->store && a->week + 1 == b->week;
}

/* Weeks of a brand whose week before is there too. */
static mx_status sample_take(sample *s, const mx_panel *p, const stores *all, int32_t brand, mx_market_stores which, bool before, mx_error *err)
{
    size_t most = (size_t)p->n + 1;
    *s = (sample){.k = p->brands + 2 + before};
    s->y = malloc(most * sizeof *s->y);
    s->x = malloc(most * (size_t)s->k * sizeof *s->x);
    s->group = malloc(most * sizeof *s->group);
    s->row = malloc(most * sizeof *s->row);
    if (!s->y || !s->x || !s->group || !s->row) {
        sample_close(s);
        return mx_fail(err, MX_ERR_NO_MEMORY, "%zu rows of a panel", most);
    }
    for (int64_t i = 1; i < p->n; i++) {
        const mx_panel_row *r = &p->row[i];
        int32_t group = r->brand == brand && follows(r - 1, r) ? chosen(all, r->store, which) : -1;
        if (group < 0) continue;
        double *x = s->x + s->n * s->k;
        for (int32_t b = 0; b < p->brands; b++) *x++ = log((double)r->price[b]);
        if (before) *x++ = log((double)r[-1].price[brand]);
        *x++ = (double)r->deal;
        *x = (double)r->feat;
        s->y[s->n] = (double)r->move - log(CARTON);
        s->group[s->n] = group;
        s->row[s->n++] = r;
    }
    if (s->n >= LEAST_ROWS) return MX_OK;
    mx_fail(err, MX_ERR_ARG, "brand %d has %lld weeks that follow one another, too few for a market (%d)", brand + 1, (long long)s->n, LEAST_ROWS);
    sample_close(s);
    return MX_ERR_ARG;
}

/* Slopes of the stores' residuals on ln price, drawn in; into slope[stores]. */
static double store_slopes(const sample *s, const mx_ols *m, int32_t brand, int32_t n_stores, double *slope)
{
    double *sums = calloc((size_t)n_stores * 4, sizeof *sums), all = 0, noise = 0, tau = 0;      /* n, x, xx, xr */
    int32_t used = 0;
    if (!sums) return -1;
    for (int64_t i = 0; i < s->n; i++) {
        double x = s->x[i * s->k + brand], r = s->y[i] - mx_ols_predict(m, s->x + i * s->k, s->group[i]), *q = sums + 4 * s->group[i];
        q[0]++, q[1] += x, q[2] += x * x, q[3] += x * r;              /* residuals have no mean in a store */
    }
    for (int32_t g = 0; g < n_stores; g++) {
        double *q = sums + 4 * g, xx = q[0] > 0 ? q[2] - q[1] * q[1] / q[0] : 0;
        slope[g] = xx > 1e-9 ? q[3] / xx : 0;
        q[2] = xx > 1e-9 ? m->sigma * m->sigma / xx : 0;              /* its variance */
        if (xx > 1e-9) all += slope[g] * slope[g], noise += q[2], used++;
    }
    if (used) tau = fmax(0, (all - noise) / used);
    for (int32_t g = 0; g < n_stores; g++) slope[g] *= sums[4 * g + 2] > 0 ? tau / (tau + sums[4 * g + 2]) : 0;
    free(sums);
    return sqrt(tau);
}

static double mean_markup(const sample *s, int32_t brand)
{
    double price = 0, cost = 0;
    for (int64_t i = 0; i < s->n; i++) {
        double p = (double)s->row[i]->price[brand];
        price += p;
        cost += p * (1 - (double)s->row[i]->profit / 100);
    }
    return cost > 0 ? price / cost - 1 : 0;
}

/* One brand of one kind of stores: coefficients, and (slope not NULL) its stores' slopes and constants. */
static mx_status fit_brand(mx_market_brand *out, const mx_panel *p, const stores *all, int32_t brand, mx_market_stores which, double *slope, double *constant, mx_error *err)
{
    sample s;
    mx_ols m;
    MX_TRY(sample_take(&s, p, all, brand, which, false, err));
    mx_status st = mx_ols_fit(&m, s.y, s.x, s.group, s.n, s.k, all->n, err);
    if (!st) out->plain = m.beta[brand];
    if (!st) mx_ols_close(&m);
    sample_close(&s);
    MX_TRY(st);
    MX_TRY(sample_take(&s, p, all, brand, which, true, err));
    st = mx_ols_fit(&m, s.y, s.x, s.group, s.n, s.k, all->n, err);
    if (!st) {
        memcpy(out->rival, m.beta, (size_t)p->brands * sizeof *m.beta);
        out->own = m.beta[brand];
        out->rival[brand] = 0;
        out->before = m.beta[p->brands];
        out->deal = m.beta[p->brands + 1];
        out->feat = m.beta[p->brands + 2];
        out->sigma = m.sigma;
        out->markup = mean_markup(&s, brand);
        out->spread = store_slopes(&s, &m, brand, all->n, slope);
        if (out->spread < 0) st = mx_fail(err, MX_ERR_NO_MEMORY, "%d stores", all->n);
        memcpy(constant, m.constant, (size_t)all->n * sizeof *constant);
        mx_ols_close(&m);
    }
    sample_close(&s);
    return st;
}

/* ---- pairs and their weeks ---------------------------------------------------------------------------------- */

static void fill_week(mx_market_week *w, const mx_market *m, const mx_panel_row *r)
{
    const mx_market_brand *own = &m->brand[r->brand], *known = &m->known[r->brand];
    double rest = own->deal * (double)r->deal + own->feat * (double)r->feat, seen = 0, rivals = 0;
    for (int32_t b = 0; b < m->brands; b++) {
        rest += own->rival[b] * log((double)r->price[b]);
        seen += known->rival[b] * log((double)r->price[b]);
        if (b != r->brand) rivals += (double)r->price[b];
    }
    double promotion = known->deal * (double)r->deal + known->feat * (double)r->feat, price = (double)r->price[r->brand] * CENTS;
    *w = (mx_market_week){.week = r->week, .logged = (float)price, .sold = (float)(exp((double)r->move) / CARTON), .cost = (float)(price * (1 - (double)r->profit / 100)), .rest = (float)rest,
                          .rivals = (float)(m->brands > 1 ? rivals * CENTS / (m->brands - 1) : 0), .known = (float)(seen + promotion), .promotion = (float)promotion};
}

/* rows: the pair's weeks.  slope, constant: of its store's. */
static void fill_pair(mx_market *m, const mx_panel_row *rows, int64_t n, double slope, double constant)
{
    mx_market_pair *q = &m->pair[m->n_pairs];
    mx_market_week *w = m->week + q->first;
    const mx_market_brand *known = &m->known[rows->brand];
    double price = 0, cost = 0, units = 0, seen = 0, promotion = 0, level = 0;
    q->store = rows->store, q->brand = rows->brand, q->weeks = n;
    q->own = m->brand[rows->brand].own + slope;
    for (int64_t i = 0; i < n; i++) {
        fill_week(&w[i], m, &rows[i]);
        /* a store whose customers mind prices more has them at the same mean price: its constant moves with its slope */
        w[i].rest += (float)constant;
        price += (double)w[i].logged, cost += (double)w[i].cost, units += (double)w[i].sold;
        seen += (double)w[i].known, promotion += (double)w[i].promotion;
    }
    q->reference = price / (double)n, q->cost = cost / (double)n, q->units = units / (double)n;
    seen /= (double)n, promotion /= (double)n;
    for (int64_t i = 0; i < n; i++) {
        double x = log((double)w[i].logged / q->reference), before = i ? log((double)w[i - 1].logged / q->reference) : x;
        w[i].known -= (float)seen, w[i].promotion -= (float)promotion;
        level += (double)rows[i].move - log(CARTON) - known->own * x - known->before * before - (double)w[i].known;
    }
    q->level = level / (double)n;
    for (int64_t i = 0; i < n; i++) w[i].rest -= (float)(slope * log(q->reference / CENTS));
    m->n_pairs++;
}

static void fill_pairs(mx_market *m, const mx_panel *p, const stores *all, mx_market_stores which, int32_t least, const double *slope, const double *constant)
{
    int64_t used = 0;
    for (int64_t i = 0, end; i < p->n; i = end) {
        for (end = i + 1; end < p->n && p->row[end].brand == p->row[i].brand && p->row[end].store == p->row[i].store;) end++;
        int32_t g = chosen(all, p->row[i].store, which);
        if (g < 0 || end - i < least) continue;
        m->pair[m->n_pairs].first = used;
        used += end - i;
        fill_pair(m, p->row + i, end - i, slope[p->row[i].brand * all->n + g], constant[p->row[i].brand * all->n + g]);
    }
}

mx_status mx_market_open(mx_market *m, const char *path, mx_market_stores which, int32_t least, mx_error *err)
{
    mx_panel p;
    stores all = {0};
    mx_status st;
    double *slope = NULL, *constant = NULL;
    *m = (mx_market){0};
    MX_TRY(mx_panel_read(&p, path, err));
    MX_TRY_GOTO(st, find_stores(&all, &p, err), out);
    size_t cells = (size_t)p.brands * (size_t)all.n;
    slope = calloc(cells, sizeof *slope);
    constant = calloc(cells, sizeof *constant);
    m->brands = p.brands;
    m->brand = calloc((size_t)p.brands, sizeof *m->brand);
    m->known = calloc((size_t)p.brands, sizeof *m->known);
    m->pair = calloc(cells, sizeof *m->pair);
    m->week = calloc((size_t)p.n, sizeof *m->week);
    if (!slope || !constant || !m->brand || !m->known || !m->pair || !m->week) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "a market of %lld rows", (long long)p.n);
        goto out;
    }
    for (int32_t b = 0; b < p.brands; b++) {
        double *s = slope + b * all.n, *c = constant + b * all.n;
        MX_TRY_GOTO(st, fit_brand(&m->known[b], &p, &all, b, MX_MARKET_LEARN, s, c, err), out);
        m->brand[b] = m->known[b];
        if (which != MX_MARKET_LEARN) MX_TRY_GOTO(st, fit_brand(&m->brand[b], &p, &all, b, which, s, c, err), out);
    }
    fill_pairs(m, &p, &all, which, least, slope, constant);
    if (!m->n_pairs) st = mx_fail(err, MX_ERR_ARG, "%s: no store has %d weeks of a brand", path, least);
out:
    free(slope), free(constant), free(all.number);
    mx_panel_close(&p);
    if (st) mx_market_close(m);
    return st;
}

void mx_market_close(mx_market *m)
{
    free(m->brand), free(m->known), free(m->pair), free(m->week);
    *m = (mx_market){0};
}
