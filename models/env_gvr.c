/* env_gvr.c - n units to sell in time t while customers come with the rate
 * 10 exp(-p) of a Poisson process (Gallego and van Ryzin 1994, section 2.3, whose
 * optimum is known: J*(n,t) = ln sum_{i<=n} (10t/e)^i / i!).
 *
 * Decided are prices 1.0, 1.2 .. 2.8, each for a twentieth of the time; with
 * the best of these an episode still earns more than 99.5 % of J* (dynamic
 * programming).  Within a step demand is Poisson, cut off at the stock.
 * Observation: stock / 25, time left, and their logarithms, which is where the
 * price depends on them.  An episode begins with 1..25 units and 1..20 twentieths,
 * drawn; gvr:UNITS,TIME begins every one there. */
#include "models/env.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRICES = 10, STEPS = 20, MOST = 25 };

typedef struct shelf {
    int32_t units, steps;         /* left */
} shelf;

typedef struct start {
    int32_t units, steps;         /* 0: drawn */
} start;

static double price(int32_t action)
{
    return 1.0 + 0.2 * action;
}

/* Half of the episodes begin with few units, where prices differ most. */
static void begin(mx_env *e, int64_t row)
{
    const start *w = e->world;
    shelf *s = (shelf *)e->state + row;
    *s = (shelf){w->units, w->steps};
    if (w->units) return;
    int32_t most = mx_env_draw(e, row, 2) < 0.5 ? 6 : MOST;
    s->units = 1 + (int32_t)(mx_env_draw(e, row, 0) * most);
    s->steps = 1 + (int32_t)(mx_env_draw(e, row, 1) * STEPS);
}

/* The number of customers by inversion of Poisson's distribution, at most `most`. */
static int32_t poisson(double mean, double u, int32_t most)
{
    int32_t k = 0;
    double p = exp(-mean), sum = p;
    while (k < most && u >= sum) {
        p *= mean / ++k;
        sum += p;
    }
    return k;
}

static void step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated)
{
    for (int64_t i = 0; i < n; i++) {
        shelf *s = (shelf *)e->state + first + i;
        double p = price(action[i]);
        int32_t sold = poisson(10 * exp(-p) / STEPS, mx_env_draw(e, first + i, 0), s->units);
        s->units -= sold;
        s->steps--;
        reward[i] = (float)(p * sold);
        terminated[i] = s->units < 1 || s->steps < 1;
    }
}

static void observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    for (int64_t i = 0; i < n; i++) {
        const shelf *s = (const shelf *)e->state + first + i;
        float *o = observation + 4 * i;
        o[0] = (float)s->units / MOST;
        o[1] = (float)s->steps / STEPS;
        o[2] = logf((float)(s->units + 1)) - 1;
        o[3] = logf((float)(s->steps + 1)) - 2;
    }
    if (mask) memset(mask, 1, PRICES * (size_t)n);
}

static void close_world(mx_env *e)
{
    free(e->world);
}

static const mx_env_ops ops = {begin, step, observe, close_world};

mx_status mx_env_gvr(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err)
{
    int units = 0, end = 0;
    double time = 0, steps = 0;
    if (arguments) {
        bool ok = sscanf(arguments, "%d,%lf%n", &units, &time, &end) == 2 && !arguments[end] && units >= 1 && units <= MOST;
        steps = time * STEPS;
        if (!ok || !(steps >= 1 && steps <= STEPS) || fabs(steps - round(steps)) > 1e-6)
            return mx_fail(err, MX_ERR_ARG, "env: gvr:UNITS,TIME takes 1 to %d units and a time of 0.05 to 1 in steps of 0.05, not \"%.40s\"", MOST, arguments);
    }
    start *w = malloc(sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "env: gvr");
    *w = (start){units, (int32_t)round(steps)};
    *e = (mx_env){.kind = "gvr", .ops = &ops, .rows = rows, .observation = 4, .actions = PRICES, .seed = seed, .world = w};
    return mx_env_alloc(e, sizeof(shelf), err);
}
