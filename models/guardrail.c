/* guardrail.c - intervals met in order of precedence, then the nearest ending. */
#include "models/guardrail.h"

#include <math.h>
#include <string.h>

const char *mx_rule_name(mx_rule r)
{
    static const char *const names[] = {"legal_floor", "legal_ceiling", "floor", "min_margin", "map_price", "ceiling", "competitor_band",
                                        "blackout", "min_dwell", "parity", "max_change_step", "max_change_day", "ending"};
    return (unsigned)r < MX_RULES ? names[r] : "?";
}

/* ---- checking ----------------------------------------------------------------------------- */

mx_status mx_guardrails_check(const mx_guardrails *g, mx_error *err)
{
    const struct { const char *name; double value, least, most; } limits[] = {
        {"legal_floor", (double)g->legal_floor, 0, (double)MX_PRICE_MOST}, {"legal_ceiling", (double)g->legal_ceiling, 0, (double)MX_PRICE_MOST},
        {"floor", (double)g->floor, 0, (double)MX_PRICE_MOST}, {"ceiling", (double)g->ceiling, 0, (double)MX_PRICE_MOST},
        {"map_price", (double)g->map_price, 0, (double)MX_PRICE_MOST}, {"min_margin_pct", g->min_margin_pct, 0, 99.99},
        {"max_change_pct_step", g->max_change_pct_step, 0, 1000}, {"max_change_pct_day", g->max_change_pct_day, 0, 1000},
        {"min_dwell_ms", (double)g->min_dwell_ms, 0, 1e12}, {"competitor_low_pct", g->competitor_low_pct, 0, 1000},
        {"competitor_high_pct", g->competitor_high_pct, 0, 1000}, {"approval_pct", g->approval_pct, 0, 1000},
        {"endings", g->n_endings, 0, MX_ENDINGS}, {"blackouts", g->n_blackouts, 0, 1024},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!(limits[i].value >= limits[i].least && limits[i].value <= limits[i].most))
            return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be from %g to %g", limits[i].name, limits[i].value, limits[i].least, limits[i].most);
    if (g->floor && g->ceiling && g->floor > g->ceiling)
        return mx_fail(err, MX_ERR_ARG, "floor is %lld, over the ceiling %lld", (long long)g->floor, (long long)g->ceiling);
    if (g->legal_floor && g->legal_ceiling && g->legal_floor > g->legal_ceiling)
        return mx_fail(err, MX_ERR_ARG, "legal_floor is %lld, over legal_ceiling %lld", (long long)g->legal_floor, (long long)g->legal_ceiling);
    for (int32_t i = 0; i < g->n_endings; i++)
        if (g->ending[i].modulus < 1 || g->ending[i].modulus > MX_PRICE_MOST || g->ending[i].remainder < 0 || g->ending[i].remainder >= g->ending[i].modulus)
            return mx_fail(err, MX_ERR_ARG, "endings[%d] is %lld of %lld", i, (long long)g->ending[i].remainder, (long long)g->ending[i].modulus);
    for (int32_t i = 0; i < g->n_blackouts; i++)
        if (g->blackout[i].from_ms >= g->blackout[i].to_ms) return mx_fail(err, MX_ERR_ARG, "blackouts[%d] ends before it begins", i);
    return MX_OK;
}

static mx_status check_state(const mx_price_state *s, int64_t raw, mx_error *err)
{
    const struct { const char *name; int64_t value; } all[] = {{"published", s->published}, {"day_open", s->day_open}, {"cost", s->cost}, {"parity_price", s->parity_price}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].value < 0 || all[i].value > MX_PRICE_MOST) return mx_fail(err, MX_ERR_ARG, "%s is %lld; it must be from 0 to %lld", all[i].name, (long long)all[i].value, (long long)MX_PRICE_MOST);
    for (int32_t i = 0; i < s->n_competitors; i++)
        if (s->competitors[i] < 1 || s->competitors[i] > MX_PRICE_MOST) return mx_fail(err, MX_ERR_ARG, "competitors[%d] is %lld", i, (long long)s->competitors[i]);
    if (raw < 1 || raw > MX_PRICE_MOST) return mx_fail(err, MX_ERR_ARG, "price is %lld; it must be from 1 to %lld", (long long)raw, (long long)MX_PRICE_MOST);
    return MX_OK;
}

/* ---- intervals --------------------------------------------------------------------------------- */

typedef struct interval { int64_t low, high; } interval;

static const interval everything = {1, MX_PRICE_MOST};

/* Whole prices from x down to the allowed, and up: percents are of finite precision, a hair is not a cent. */
static int64_t up(double x)
{
    double r = ceil(x - 1e-6);
    return r < 1 ? 1 : r > (double)MX_PRICE_MOST ? MX_PRICE_MOST : (int64_t)r;
}

static int64_t down(double x)
{
    double r = floor(x + 1e-6);
    return r < 0 ? 0 : r > (double)MX_PRICE_MOST ? MX_PRICE_MOST : (int64_t)r;
}

static interval round_about(int64_t price, double pct)
{
    return (interval){up((double)price * (1 - pct / 100)), down((double)price * (1 + pct / 100))};
}

static interval competitors(const mx_guardrails *g, const mx_price_state *s)
{
    interval r = everything;
    if (!s->n_competitors) return r;
    int64_t least = s->competitors[0], most = least;
    for (int32_t i = 1; i < s->n_competitors; i++) {
        if (s->competitors[i] < least) least = s->competitors[i];
        if (s->competitors[i] > most) most = s->competitors[i];
    }
    if (g->competitor_low_pct > 0) r.low = up((double)least * g->competitor_low_pct / 100);
    if (g->competitor_high_pct > 0) r.high = down((double)most * g->competitor_high_pct / 100);
    return r;
}

static bool in_blackout(const mx_guardrails *g, int64_t now)
{
    for (int32_t i = 0; i < g->n_blackouts; i++)
        if (now >= g->blackout[i].from_ms && now < g->blackout[i].to_ms) return true;
    return false;
}

static interval only(int64_t price)
{
    return (interval){price, price};
}

/* What a rule leaves; `everything` when it does not apply. */
static interval allowed(const mx_guardrails *g, const mx_price_state *s, mx_rule r)
{
    interval i = everything;
    switch (r) {
    case MX_RULE_LEGAL_FLOOR: if (g->legal_floor) i.low = g->legal_floor; return i;
    case MX_RULE_LEGAL_CEILING: if (g->legal_ceiling) i.high = g->legal_ceiling; return i;
    case MX_RULE_FLOOR: if (g->floor) i.low = g->floor; return i;
    case MX_RULE_MARGIN: if (g->min_margin_pct > 0) i.low = up((double)s->cost / (1 - g->min_margin_pct / 100)); return i;
    case MX_RULE_MAP: if (g->map_price) i.low = g->map_price; return i;
    case MX_RULE_CEILING: if (g->ceiling) i.high = g->ceiling; return i;
    case MX_RULE_COMPETITORS: return competitors(g, s);
    case MX_RULE_BLACKOUT: return s->published && in_blackout(g, s->now_ms) ? only(s->published) : i;
    case MX_RULE_DWELL: return s->published && g->min_dwell_ms && s->now_ms - s->changed_ms < g->min_dwell_ms ? only(s->published) : i;
    case MX_RULE_PARITY: return s->parity_price ? only(s->parity_price) : i;
    case MX_RULE_CHANGE_STEP: return s->published && g->max_change_pct_step > 0 ? round_about(s->published, g->max_change_pct_step) : i;
    case MX_RULE_CHANGE_DAY: return s->day_open && g->max_change_pct_day > 0 ? round_about(s->day_open, g->max_change_pct_day) : i;
    default: return i;
    }
}

static int64_t clamp(int64_t x, interval i)
{
    return x < i.low ? i.low : x > i.high ? i.high : x;
}

/* The nearest price of an allowed ending inside i; 0: there is none. */
static int64_t nearest_ending(const mx_guardrails *g, interval i, int64_t x)
{
    int64_t best = 0;
    for (int32_t k = 0; k < g->n_endings; k++) {
        int64_t m = g->ending[k].modulus, below = x - (x - g->ending[k].remainder) % m;
        if (below > x) below -= m;
        int64_t low = i.low + ((g->ending[k].remainder - i.low) % m + m) % m, high = i.high - ((i.high - g->ending[k].remainder) % m + m) % m;
        int64_t candidates[] = {below, below + m, low, high};
        for (int c = 0; c < 4; c++) {
            int64_t p = candidates[c];
            if (p < i.low || p > i.high) continue;
            int64_t far = p > x ? p - x : x - p, best_far = best > x ? best - x : x - best;
            if (!best || far < best_far || (far == best_far && p < best)) best = p;
        }
    }
    return best;
}

/* ---- the price ---------------------------------------------------------------------------------------- */

static mx_status conflict(mx_rule a, interval x, mx_rule b, interval y, mx_error *err)
{
    return mx_fail(err, MX_ERR_STATE, "no price is feasible: %s allows %lld..%lld, %s allows %lld..%lld", mx_rule_name(a), (long long)x.low, (long long)x.high,
                   mx_rule_name(b), (long long)y.low, (long long)y.high);
}

/* The intersection of all intervals, and which rule set each of its bounds. */
static mx_status meet(const mx_guardrails *g, const mx_price_state *s, interval rule[MX_RULES], interval *all, mx_error *err)
{
    mx_rule low_of = MX_RULE_LEGAL_FLOOR, high_of = MX_RULE_LEGAL_CEILING;
    *all = everything;
    for (mx_rule r = 0; r < MX_RULE_ENDING; r++) {
        rule[r] = allowed(g, s, r);
        if (rule[r].low > rule[r].high)
            return mx_fail(err, MX_ERR_STATE, "no price is feasible: %s allows %lld..%lld", mx_rule_name(r), (long long)rule[r].low, (long long)rule[r].high);
        if (rule[r].low > all->high) return conflict(high_of, rule[high_of], r, rule[r], err);
        if (rule[r].high < all->low) return conflict(low_of, rule[low_of], r, rule[r], err);
        if (rule[r].low > all->low) all->low = rule[r].low, low_of = r;
        if (rule[r].high < all->high) all->high = rule[r].high, high_of = r;
    }
    return MX_OK;
}

static mx_status needs(const mx_guardrails *g, const mx_price_state *s, mx_error *err)
{
    if (g->min_margin_pct > 0 && !s->cost) return mx_fail(err, MX_ERR_STATE, "min_margin: the item's cost is not known");
    return MX_OK;
}

mx_status mx_guard(const mx_guardrails *g, const mx_price_state *s, int64_t raw, mx_guarded *out, mx_error *err)
{
    interval rule[MX_RULES], all;
    MX_TRY(mx_guardrails_check(g, err));
    MX_TRY(check_state(s, raw, err));
    MX_TRY(needs(g, s, err));
    MX_TRY(meet(g, s, rule, &all, err));
    *out = (mx_guarded){.raw = raw};
    int64_t price = clamp(raw, all), ended = g->n_endings ? nearest_ending(g, all, price) : price;
    if (g->n_endings) {                       /* the nearest to what was wanted, not to where the bounds moved it */
        ended = nearest_ending(g, all, raw);
        if (!ended) return mx_fail(err, MX_ERR_STATE, "no price is feasible: none of the endings lies in %lld..%lld, which the other rules leave", (long long)all.low, (long long)all.high);
    }
    int64_t x = raw;
    for (int r = MX_RULE_ENDING - 1; r >= 0; r--) {          /* from the weakest rule on: the last word is the strongest's */
        int64_t next = clamp(x, rule[r]);
        bool binding = (rule[r].low == ended && rule[r].low > everything.low) || (rule[r].high == ended && rule[r].high < everything.high);
        if (next != x || binding) out->applied[out->n_applied++] = (mx_applied){(mx_rule)r, x, next, rule[r].low, rule[r].high, binding};
        x = next;
    }
    if (ended != x) out->applied[out->n_applied++] = (mx_applied){MX_RULE_ENDING, x, ended, all.low, all.high, true};
    out->price = ended;
    out->needs_approval = g->approval_pct > 0 && s->published && fabs((double)(ended - s->published)) > (double)s->published * g->approval_pct / 100 + 1e-6;
    return MX_OK;
}

int32_t mx_guard_mask(const mx_guardrails *g, const mx_price_state *s, const int64_t *price, int32_t n, uint8_t *feasible)
{
    interval rule[MX_RULES], all;
    mx_error none;
    int32_t count = 0;
    memset(feasible, 0, (size_t)n);
    if (mx_guardrails_check(g, &none) || check_state(s, 1, &none) || needs(g, s, &none) || meet(g, s, rule, &all, &none)) return 0;
    for (int32_t i = 0; i < n; i++) {
        bool ends = !g->n_endings;
        for (int32_t k = 0; k < g->n_endings; k++) ends |= price[i] % g->ending[k].modulus == g->ending[k].remainder;
        feasible[i] = ends && price[i] >= all.low && price[i] <= all.high;
        count += feasible[i];
    }
    return count;
}
