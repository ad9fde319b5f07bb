/* test_price.c - the belief against least squares, the ladder, and reasons that add up. */
#include "models/price.h"
#include "tests/test.h"

static uint64_t state = 5;

static double uniform(void)
{
    return (double)(test_random(&state) >> 11) * 0x1p-53;
}

static double normal(void)
{
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

static void elasticity_is_learned(void)
{
    mx_demand_belief b = mx_demand_prior();
    mx_error err = {0};
    double mean[2], deviation[2], inside = 0;
    mx_demand_moments(&b, mean, deviation);
    CHECK(mean[1] == MX_ELASTICITY_MEAN && fabs(deviation[1] - MX_ELASTICITY_SIGMA) < 1e-12);
    for (int round = 0; round < 200; round++) {
        double truth = MX_ELASTICITY_MEAN + MX_ELASTICITY_SIGMA * normal();
        b = mx_demand_prior();
        for (int i = 0; i < 40; i++) {
            double p = 800 + 400 * uniform();
            CHECK_OK(mx_demand_observe(&b, p, 1000, exp(3 + truth * log(p / 1000) + MX_DEMAND_SIGMA * normal()), 1, &err), err);
        }
        mx_demand_moments(&b, mean, deviation);
        inside += fabs(mean[1] - truth) < 1.959964 * deviation[1];
    }
    CHECK_MSG(inside >= 180 && inside <= 199, "%.0f of 200 truths in the 95 %% interval", inside);
    CHECK(fabs(mx_demand_units(&b, 1000, 1000) - exp(3 + 0.0)) < 6);
    CHECK(mx_demand_observe(&b, 0, 1000, 1, 1, &err) == MX_ERR_ARG && mx_demand_observe(&b, 1, 1000, 0, 1, &err) == MX_ERR_ARG && strstr(err.text, "units"));
    CHECK(mx_demand_observe(&b, 1, 1000, 1, NAN, &err) == MX_ERR_ARG && strstr(err.text, "periods"));
}

static mx_price_inputs item(double elasticity, int64_t published)
{
    mx_price_inputs in = {.published = published, .reference = 1000, .cost = 500, .belief = mx_demand_prior()};
    mx_error err = {0};
    for (int i = 0; i < 400; i++) {
        double p = 700 + 600 * (i % 20) / 19.0;
        mx_demand_observe(&in.belief, p, 1000, exp(3 + elasticity * log(p / 1000)), 1, &err);
    }
    return in;
}

/* The best price under elasticity e is cost e/(e+1): the ladder goes towards it. */
static void the_ladder_goes_to_the_optimum(void)
{
    const struct { double e; double best; } known[] = {{-2, 1000}, {-3, 750}, {-1.5, 1500}};
    for (size_t i = 0; i < 3; i++) {
        int64_t price = 1000;
        for (int step = 0; step < 30; step++) {
            mx_price_inputs in = item(known[i].e, price);
            mx_ladder_rung rung[MX_LADDER];
            int32_t best = mx_price_ladder(&in, rung);
            for (int32_t k = 0; k < MX_LADDER; k++) CHECK(rung[k].margin <= rung[best].margin);
            price = rung[best].price;
        }
        CHECK_MSG(fabs((double)price - known[i].best) < 0.05 * known[i].best, "e %g: %lld, the optimum is %.0f", known[i].e, (long long)price, known[i].best);
    }
}

static void reasons_add_up(void)
{
    for (int i = 0; i < 500; i++) {
        mx_price_inputs in = item(-1.2 - 3 * uniform(), 500 + (int64_t)(1000 * uniform()));
        mx_ladder_rung rung[MX_LADDER];
        mx_price_reasons r;
        in.cost = 100 + (int64_t)(600 * uniform());
        mx_price_explain(&in, &r);
        double sum = r.base;
        for (int f = 0; f < MX_PRICE_FEATURES; f++) sum += r.contribution[f];
        CHECK_MSG(fabs(sum - (double)rung[mx_price_ladder(&in, rung)].price) < 1e-9, "%.6f", sum);
    }
    mx_price_inputs same = {.published = 1000, .reference = 1000, .cost = 700, .belief = mx_demand_prior()};
    mx_price_reasons r;
    mx_price_explain(&same, &r);
    for (int f = 0; f < MX_PRICE_FEATURES; f++) CHECK(r.contribution[f] == 0);
}

MX_TESTS(TEST(elasticity_is_learned), TEST(the_ladder_goes_to_the_optimum), TEST(reasons_add_up))
