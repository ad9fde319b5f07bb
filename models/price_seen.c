/* price_seen.c - an item as numbers of about -2..2. */
#include "models/price_seen.h"

#include "models/demand.h"

#include <math.h>

const char *const mx_price_seen_name[MX_PRICE_SEEN] = {
    "price_to_cost", "price_to_reference", "last_change", "price_to_competitors", "elasticity", "elasticity_deviation",
    "stock_cover", "delivery", "price_to_belief", "next_demand", "surprise", "stockpiling",
};

#define COVER_MOST 8.0            /* periods: more is plenty */

static float within(double x, double most)
{
    return (float)(x > most ? most : x < -most ? -most : x);
}

static double ln_ratio(double a, double b)
{
    return a > 0 && b > 0 ? log(a / b) : 0;
}

/* The price of most margin under the belief, in the long run: what is laid in now is not bought later. */
static double asked(const mx_price_view *v)
{
    double e = v->elasticity + v->stockpiling;
    return mx_price_of_elasticity(v->cost, e < -1.1 ? e : -1.1);
}

void mx_price_see(const mx_price_view *v, float seen[MX_PRICE_SEEN])
{
    double cover = v->cover < 0 || v->cover > COVER_MOST ? COVER_MOST : v->cover;
    seen[0] = within(3 * (ln_ratio(v->price, v->cost) - 0.35), 3);
    seen[1] = within(3 * ln_ratio(v->price, v->reference), 3);
    seen[2] = within(10 * ln_ratio(v->price, v->before), 3);
    seen[3] = within(3 * ln_ratio(v->price, v->rivals), 3);
    seen[4] = within(v->elasticity + 2.5, 3);
    seen[5] = within(2 * v->deviation, 3);
    seen[6] = within(log1p(cover) - 1, 3);
    seen[7] = within(v->delivery, 3);
    seen[8] = within(3 * ln_ratio(v->price, asked(v)), 3);
    seen[9] = within(ln_ratio(v->demand_next, 1), 3);
    seen[10] = within(v->surprise, 2);
    seen[11] = within(2 * v->stockpiling, 3);
}
