/* price_policy.h - a learned price policy at work: a network (models/qnet.h) over the
 * numbers of models/price_seen.h that gives a value to every rung of the ladder.
 *
 * It runs on a CPU device of its own, one thread: a quote is a few microseconds, and
 * waits for nobody.  THREADS: one at a time. */
#ifndef MX_PRICE_POLICY_H
#define MX_PRICE_POLICY_H

#include "models/price.h"
#include "models/price_seen.h"

typedef struct mx_price_policy mx_price_policy;

/* path: a folder of mx_qnet_save().  Errors: of mx_qnet_open(); MX_ERR_ARG (a network that
 * sees something else, or chooses among another number of actions). */
mx_status mx_price_policy_open(mx_price_policy **out, const char *path, mx_error *err);
void      mx_price_policy_close(mx_price_policy *p);

/* value[n][MX_LADDER] of seen[n][MX_PRICE_SEEN]. */
mx_status mx_price_policy_values(mx_price_policy *p, const float *seen, int64_t n, float *value, mx_error *err);
/* The best feasible rung (of equals the lowest); where none is feasible, of all. */
int32_t   mx_price_policy_best(const float value[MX_LADDER], const uint8_t feasible[MX_LADDER]);

/* Exact Shapley values of what is seen, over all 4,096 subsets: what the rungs and the
 * rules are stays, and a feature that is not in a subset has its neutral value, 0.
 * base + all contributions = the price of the rung that is best. */
mx_status mx_price_policy_explain(mx_price_policy *p, const float seen[MX_PRICE_SEEN], const int64_t price[MX_LADDER], const uint8_t feasible[MX_LADDER],
                                  double *base, double contribution[MX_PRICE_SEEN], mx_error *err);

#endif
