/* price.c - a belief about demand, the ladder's values, exact Shapley values. */
#include "models/price.h"

#include <math.h>

const double mx_ladder_steps[MX_LADDER] = {-0.10, -0.05, -0.02, 0, 0.02, 0.05, 0.10};
const char *const mx_price_feature[MX_PRICE_FEATURES] = {"cost", "elasticity", "published_price"};

mx_demand_belief mx_demand_prior(void)
{
    double pe = 1 / (MX_ELASTICITY_SIGMA * MX_ELASTICITY_SIGMA), pa = 1e-4;      /* a: next to nothing is known */
    return (mx_demand_belief){.p11 = pa, .p22 = pe, .h2 = pe * MX_ELASTICITY_MEAN};
}

mx_status mx_demand_observe(mx_demand_belief *b, double price, double reference, double units, double periods, mx_error *err)
{
    if (!(price > 0 && reference > 0)) return mx_fail(err, MX_ERR_ARG, "price is %g, reference %g; both must be over 0", price, reference);
    if (!(units > 0 && units < 1e12)) return mx_fail(err, MX_ERR_ARG, "units is %g; it must be over 0", units);
    if (!(periods > 0 && periods < 1e6)) return mx_fail(err, MX_ERR_ARG, "periods is %g; it must be over 0", periods);
    double x = log(price / reference), y = log(units / periods), w = 1 / (MX_DEMAND_SIGMA * MX_DEMAND_SIGMA);
    b->p11 += w;
    b->p12 += w * x;
    b->p22 += w * x * x;
    b->h1 += w * y;
    b->h2 += w * x * y;
    b->n++;
    return MX_OK;
}

static double covariance(const mx_demand_belief *b, double v[3])
{
    double det = b->p11 * b->p22 - b->p12 * b->p12;
    v[0] = b->p22 / det;
    v[1] = -b->p12 / det;
    v[2] = b->p11 / det;
    return det;
}

void mx_demand_moments(const mx_demand_belief *b, double mean[2], double deviation[2])
{
    double v[3];
    covariance(b, v);
    mean[0] = v[0] * b->h1 + v[1] * b->h2;
    mean[1] = v[1] * b->h1 + v[2] * b->h2;
    deviation[0] = sqrt(v[0]);
    deviation[1] = sqrt(v[2]);
}

void mx_demand_range(const mx_demand_belief *b, double price, double reference, double *low, double *high)
{
    double mean[2], deviation[2], v[3], x = log(price / reference);
    mx_demand_moments(b, mean, deviation);
    covariance(b, v);
    double d = 1.959963984540054 * sqrt(fmin(fmax(v[0] + 2 * v[1] * x + v[2] * x * x, 0), 25));
    *low = exp(mean[0] + mean[1] * x - d);
    *high = exp(mean[0] + mean[1] * x + d);
}

double mx_demand_units(const mx_demand_belief *b, double price, double reference)
{
    double mean[2], deviation[2], v[3], x = log(price / reference);
    mx_demand_moments(b, mean, deviation);
    covariance(b, v);
    double variance = b->n ? v[0] + 2 * v[1] * x + v[2] * x * x : 0;       /* with no sale the level is not known at all: shape only */
    return exp(mean[0] + mean[1] * x + fmin(variance, 4) / 2);
}

void mx_price_rungs(int64_t published, int64_t price[MX_LADDER])
{
    for (int32_t i = 0; i < MX_LADDER; i++) {
        double p = round((double)published * (1 + mx_ladder_steps[i]));
        price[i] = p < 1 ? 1 : (int64_t)p;
    }
}

mx_ladder_rung mx_price_rung(const mx_price_inputs *in, int64_t price)
{
    mx_ladder_rung r = {.price = price, .units = mx_demand_units(&in->belief, (double)price, (double)in->reference)};
    r.revenue = r.units * (double)price;
    r.margin = r.units * (double)(price - in->cost);
    switch (in->objective) {
    case MX_OBJECTIVE_REVENUE: r.value = r.revenue; break;
    case MX_OBJECTIVE_UNITS: r.value = r.units; break;
    case MX_OBJECTIVE_BLEND: r.value = in->revenue_share * r.revenue + (1 - in->revenue_share) * r.margin; break;
    default: r.value = r.margin;
    }
    return r;
}

int32_t mx_price_ladder(const mx_price_inputs *in, mx_ladder_rung out[MX_LADDER])
{
    int64_t price[MX_LADDER];
    int32_t best = MX_LADDER / 2;
    mx_price_rungs(in->published, price);
    for (int32_t i = 0; i < MX_LADDER; i++) out[i] = mx_price_rung(in, price[i]);
    static const int32_t from_the_middle[MX_LADDER] = {3, 2, 4, 1, 5, 0, 6};
    for (int32_t k = 0; k < MX_LADDER; k++)
        if (out[from_the_middle[k]].value > out[best].value) best = from_the_middle[k];
    return best;
}

static double price_of(const mx_price_inputs *in, const mx_price_inputs *base, unsigned known)
{
    mx_ladder_rung rung[MX_LADDER];
    mx_price_inputs x = *base;
    x.objective = in->objective, x.revenue_share = in->revenue_share;
    if (known & 1) x.cost = in->cost;
    if (known & 2) x.belief = in->belief;
    if (known & 4) x.published = in->published;
    return (double)rung[mx_price_ladder(&x, rung)].price;
}

void mx_price_explain(const mx_price_inputs *in, mx_price_reasons *out)
{
    /* |S|! (n-|S|-1)! / n! for n = 3 */
    static const double weight[MX_PRICE_FEATURES] = {1.0 / 3, 1.0 / 6, 1.0 / 3};
    mx_price_inputs base = {.published = in->reference, .reference = in->reference, .cost = (int64_t)round(0.7 * (double)in->reference), .belief = mx_demand_prior()};
    double price[1 << MX_PRICE_FEATURES];
    if (base.cost < 1) base.cost = 1;
    for (unsigned s = 0; s < 1u << MX_PRICE_FEATURES; s++) price[s] = price_of(in, &base, s);
    out->base = price[0];
    for (int f = 0; f < MX_PRICE_FEATURES; f++) {
        out->contribution[f] = 0;
        for (unsigned s = 0; s < 1u << MX_PRICE_FEATURES; s++)
            if (!(s >> f & 1)) out->contribution[f] += weight[__builtin_popcount(s)] * (price[s | 1u << f] - price[s]);
    }
}
