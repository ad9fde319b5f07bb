/* price.h - the price that a belief about demand asks for, and why.
 *
 * Demand has constant elasticity: ln q = a + e ln(p / reference), observed with a
 * normal error of known size; the belief about (a, e) is normal, so each sale updates
 * it exactly (Bayesian linear regression).  A ladder of relative steps round the
 * published price is valued by expected margin a period, E[q] (p - cost), with the
 * belief's uncertainty in it: E[q] = exp(mean + variance/2).
 *
 * A price's explanation is the exact Shapley value of each feature (Shapley 1953),
 * over all subsets: base + sum of contributions = the model's price. */
#ifndef MX_PRICE_H
#define MX_PRICE_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

#define MX_LADDER 7               /* -10, -5, -2, 0, +2, +5, +10 percent */
extern const double mx_ladder_steps[MX_LADDER];

typedef struct mx_demand_belief { /* precision matrix and precision times mean       */
    double p11, p12, p22, h1, h2; /* of a and e                                      */
    int64_t n;                    /* observations                                    */
} mx_demand_belief;

#define MX_DEMAND_SIGMA 0.5       /* of ln q round its mean                          */
#define MX_ELASTICITY_MEAN (-2.0) /* before any sale                                 */
#define MX_ELASTICITY_SIGMA 1.0

mx_demand_belief mx_demand_prior(void);
/* units > 0 sold in `periods` at `price`.  Errors: MX_ERR_ARG. */
mx_status mx_demand_observe(mx_demand_belief *b, double price, double reference, double units, double periods, mx_error *err);
/* Mean and deviation of a and e. */
void      mx_demand_moments(const mx_demand_belief *b, double mean[2], double deviation[2]);
/* Expected units a period at a price. */
double    mx_demand_units(const mx_demand_belief *b, double price, double reference);
/* 95 % of it, from what is not known of a and e. */
void      mx_demand_range(const mx_demand_belief *b, double price, double reference, double *low, double *high);

/* What a rung is worth, a period. */
typedef enum mx_price_objective { MX_OBJECTIVE_MARGIN, MX_OBJECTIVE_REVENUE, MX_OBJECTIVE_UNITS, MX_OBJECTIVE_BLEND, MX_OBJECTIVES } mx_price_objective;

typedef struct mx_price_inputs {
    int64_t published, reference, cost;       /* minor units, over 0 (cost: 0 where it is not needed) */
    mx_demand_belief belief;
    mx_price_objective objective;
    double revenue_share;         /* BLEND: so much of the revenue, the rest of the margin */
} mx_price_inputs;

/* The rungs' prices round the published one, whole and over 0. */
void      mx_price_rungs(int64_t published, int64_t price[MX_LADDER]);
typedef struct mx_ladder_rung { int64_t price; double units, revenue, margin, value; } mx_ladder_rung;
mx_ladder_rung mx_price_rung(const mx_price_inputs *in, int64_t price);
/* All rungs, and the best one's index (of equals the one nearest to the published price). */
int32_t   mx_price_ladder(const mx_price_inputs *in, mx_ladder_rung out[MX_LADDER]);

/* Contributions of cost, elasticity and published price to the model's price, against a
 * base of (cost 70 % of the reference, the prior's elasticity, the reference price). */
enum { MX_PRICE_FEATURES = 3 };
extern const char *const mx_price_feature[MX_PRICE_FEATURES];
typedef struct mx_price_reasons { double base, contribution[MX_PRICE_FEATURES]; } mx_price_reasons;
void      mx_price_explain(const mx_price_inputs *in, mx_price_reasons *out);

#endif
