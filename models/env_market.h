/* env_market.h - the world `market` of models/env.h: a row prices one brand in one store.
 *
 * Each week a step of the ladder (models/price.h) is taken from last week's price,
 * feasible under guardrails (65 to 135 % of the pair's mean price, a margin of 3 %);
 * then demand is drawn from the market's equations (models/market.h) and served from
 * stock, which is filled up every second week to three weeks' mean sales.  What is
 * earned is margin less the keeping of what is left (0.25 % of its cost a week).  The
 * reward is what the week earns in the mean of its error, over what the reference price
 * would with plenty of stock, in mean weekly margins of the pair.  A row sees
 * MX_PRICE_SEEN numbers (models/price_seen.h), among them its own belief about demand,
 * which the pair's logged weeks before the episode have taught and each week's sales
 * teach.  26 weeks, then truncated.
 *
 * market:PANEL.csv for the stores to learn in, market:PANEL.csv,choose for those to choose
 * by, market:PANEL.csv,held-out for the rest. */
#ifndef MX_ENV_MARKET_H
#define MX_ENV_MARKET_H

#include "models/env.h"
#include "models/market.h"
#include "models/price.h"

enum { MX_MARKET_WEEKS = 26, MX_MARKET_DELIVERY = 2 };

typedef struct mx_market_shelf {          /* the state of a row */
    int64_t pair, week;           /* week: the next to be sold in, in the pair's           */
    int64_t price, before;        /* cents; of the last week and the one before it         */
    double  stock, surprise, margin;      /* margin: cents, of this episode                */
    mx_demand_belief belief;
} mx_market_shelf;

/* What stands behind "market:": which stores, and the length of the panel's path. */
mx_market_stores mx_market_stores_of(const char *arguments, size_t *path);
/* Week w of shelf s at a price, with the error z of ln units: moves the shelf on, and
 * returns cents.  teach: the belief learns too. */
double    mx_market_sell(const mx_market *m, mx_market_shelf *s, int64_t price, double z, bool teach);
/* The rungs, and which are feasible (at least one is). */
void      mx_market_ladder(const mx_market *m, const mx_market_shelf *s, int64_t price[MX_LADDER], uint8_t feasible[MX_LADDER]);
/* The error that the row's step `ahead` from now will draw. */
double    mx_market_error(const mx_env *e, int64_t row, uint32_t ahead);
static inline const mx_market *mx_market_of(const mx_env *e) { return e->world; }
static inline const mx_market_shelf *mx_market_shelf_of(const mx_env *e, int64_t row) { return (const mx_market_shelf *)e->state + row; }

/* ---- yardsticks (market_rules.c) ------------------------------------------------------ */

/* Each has a price in mind and takes the feasible rung nearest to it. */
typedef enum mx_market_rule {
    MX_MARKET_FIXED,              /* the pair's mean price                                            */
    MX_MARKET_COST_PLUS,          /* cost and the brand's mean markup                                 */
    MX_MARKET_ELASTICITY,         /* cost e/(e+1), e as it is usually fitted (OLS) on the training stores */
    MX_MARKET_GALLEGO,            /* the same, or the run-out price where stock is short (Gallego and van Ryzin 1994, section 3.2) */
    MX_MARKET_THOMPSON,           /* the best rung under a draw of the belief                         */
    MX_MARKET_ORACLE,             /* knows the equations and what chance will bring; looks three weeks ahead */
    MX_MARKET_BELIEF,             /* no yardstick, a diagnosis: as Gallego and van Ryzin, with the elasticity that the row's own belief
                                     has come to, all that a learned policy knows, and no learning of how to act          */
    MX_MARKET_RULES
} mx_market_rule;
const char *mx_market_rule_name(mx_market_rule r);
int32_t   mx_market_act(const mx_env *e, int64_t row, mx_market_rule r);

#endif
