/* market_rules.c - what a price policy has to beat. */
#include "models/demand.h"
#include "models/env_market.h"

#include <math.h>

enum { AHEAD = 3, HOLD = 3 };

const char *mx_market_rule_name(mx_market_rule r)
{
    static const char *const names[] = {"fixed", "cost-plus", "elasticity", "gallego-van-ryzin", "thompson", "oracle", "belief"};
    return (unsigned)r < MX_MARKET_RULES ? names[r] : "?";
}

static int32_t nearest(const int64_t price[MX_LADDER], const uint8_t feasible[MX_LADDER], double target)
{
    int32_t best = -1;
    for (int32_t k = 0; k < MX_LADDER; k++)
        if (feasible[k] && (best < 0 || fabs(log((double)price[k] / target)) < fabs(log((double)price[best] / target)))) best = k;
    return best;
}

static double of_elasticity(double cost, double elasticity, double reference)
{
    double p = mx_price_of_elasticity(cost, elasticity);
    return isnan(p) || p > 2 * reference ? 2 * reference : p;       /* the guardrails say where it ends */
}

/* The price at which what is expected to sell until more comes is what is there; 0: enough is there at any. */
static double run_out(const mx_market *m, const mx_market_shelf *s, double elasticity)
{
    const mx_market_pair *q = &m->pair[s->pair];
    double units = 0;
    for (int64_t w = s->week; w < q->weeks; w++) {
        units += exp(q->level + (double)m->week[q->first + w].known);
        if ((w + 1) % MX_MARKET_DELIVERY == 0) break;
    }
    return s->stock > 0 && units > 0 ? q->reference * pow(s->stock / units, 1 / elasticity) : 0;
}

static double gallego(const mx_market *m, const mx_market_shelf *s, double cost, double elasticity)
{
    return fmax(of_elasticity(cost, elasticity, m->pair[s->pair].reference), run_out(m, s, elasticity));
}

static double gaussian(const mx_env *e, int64_t row, uint32_t k)
{
    return sqrt(-2 * log(1 - mx_env_draw(e, row, k))) * cos(6.283185307179586 * mx_env_draw(e, row, k + 1));
}

static int32_t thompson(const mx_env *e, int64_t row, const mx_market_shelf *s, const int64_t price[MX_LADDER], const uint8_t feasible[MX_LADDER], double cost)
{
    double mean[2], deviation[2], most = -INFINITY;
    int32_t best = -1;
    mx_demand_moments(&s->belief, mean, deviation);
    double elasticity = mean[1] + deviation[1] * gaussian(e, row, 8);
    for (int32_t k = 0; k < MX_LADDER; k++) {
        double margin = pow((double)price[k] / (double)s->price, elasticity) * ((double)price[k] - cost);
        if (feasible[k] && margin > most) most = margin, best = k;
    }
    return best;
}

/* The best of all ways of `depth` steps, then the price is held; the first step of it in *step. */
static double look_ahead(const mx_env *e, int64_t row, const mx_market_shelf *s, uint32_t week, int32_t *step)
{
    const mx_market *m = e->world;
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER];
    double most = -INFINITY;
    if (week == AHEAD) {
        mx_market_shelf hold = *s;
        double sum = 0;
        for (uint32_t k = 0; k < HOLD; k++) sum += mx_market_sell(m, &hold, hold.price, mx_market_error(e, row, week + k + 1), false);
        return sum;
    }
    mx_market_ladder(m, s, price, feasible);
    for (int32_t k = 0; k < MX_LADDER; k++) {
        if (!feasible[k]) continue;
        mx_market_shelf next = *s;
        double now = mx_market_sell(m, &next, price[k], mx_market_error(e, row, week + 1), false);
        double all = now + look_ahead(e, row, &next, week + 1, NULL);
        if (all > most) {
            most = all;
            if (step) *step = k;
        }
    }
    return most;
}

int32_t mx_market_act(const mx_env *e, int64_t row, mx_market_rule rule)
{
    const mx_market *m = mx_market_of(e);
    const mx_market_shelf *s = mx_market_shelf_of(e, row);
    const mx_market_pair *q = &m->pair[s->pair];
    const mx_market_brand *known = &m->known[q->brand];
    double cost = (double)m->week[q->first + s->week].cost, target = q->reference, mean[2], deviation[2];
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER];
    int32_t step = 0;
    mx_market_ladder(m, s, price, feasible);
    switch (rule) {
    case MX_MARKET_COST_PLUS: target = cost * (1 + known->markup); break;
    case MX_MARKET_ELASTICITY: target = of_elasticity(cost, known->plain, q->reference); break;
    case MX_MARKET_GALLEGO: target = gallego(m, s, cost, known->plain); break;
    case MX_MARKET_BELIEF:
        mx_demand_moments(&s->belief, mean, deviation);
        target = gallego(m, s, cost, mean[1] + known->before);         /* in the long run */
        break;
    case MX_MARKET_THOMPSON: return thompson(e, row, s, price, feasible, cost);
    case MX_MARKET_ORACLE: look_ahead(e, row, s, 0, &step); return step;
    default: break;
    }
    return nearest(price, feasible, target);
}
