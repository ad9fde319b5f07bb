/* bandit.h - which variant to show: policies that learn from what was shown, and say
 * with what probability they showed it.
 *
 * The probability of every arm is computed, not estimated by drawing: for Thompson
 * sampling it is the probability that the arm's draw is the largest, by quadrature
 * (Gauss-Legendre on pieces laid round every arm's mass; relative error below
 * 1e-9).  The arm is then drawn from these probabilities with the caller's uniform
 * number, so a choice follows from (state, context, number), and its propensity is
 * what an off-policy estimate needs.
 *
 * Beta-Thompson (Thompson 1933; Chapelle and Li 2011), UCB1 (Auer et al. 2002),
 * LinUCB with disjoint arms (Li et al. 2010, algorithm 1), linear Thompson sampling
 * (Agrawal and Goyal 2013).
 *
 * THREADS: one at a time. */
#ifndef MX_BANDIT_H
#define MX_BANDIT_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MX_BANDIT_ARMS 64
#define MX_BANDIT_DIM  512

typedef enum mx_bandit_policy { MX_BANDIT_BETA_THOMPSON, MX_BANDIT_UCB1, MX_BANDIT_LINUCB, MX_BANDIT_LIN_THOMPSON, MX_BANDIT_POLICIES } mx_bandit_policy;
const char *mx_bandit_policy_name(mx_bandit_policy p);     /* "beta_thompson", ... */

typedef struct mx_bandit_options {
    mx_bandit_policy policy;
    int32_t arms;                 /* 2..MX_BANDIT_ARMS                                      */
    int32_t dim;                  /* of contexts: linear policies only, 1..MX_BANDIT_DIM    */
    double  prior_a, prior_b;     /* Beta's; never discounted                               */
    double  alpha;                /* LinUCB: width of the bound                             */
    double  lambda;               /* linear: ridge                                          */
    double  v;                    /* linear Thompson: how wide draws scatter                */
    double  discount;             /* of what was learned, per day; 1: never.  Not for linear policies */
    double  floor;                /* every arm's share at least floor / arms; 0..1          */
} mx_bandit_options;
mx_bandit_options mx_bandit_defaults(void);                /* Beta-Thompson, 2 arms, uniform prior, no floor */

typedef struct mx_bandit mx_bandit;

/* Errors: MX_ERR_ARG (field and limit), MX_ERR_NO_MEMORY. */
mx_status mx_bandit_open(mx_bandit **out, const mx_bandit_options *o, mx_error *err);
void      mx_bandit_close(mx_bandit *b);
const mx_bandit_options *mx_bandit_options_of(const mx_bandit *b);

/* The probability of every arm: p[arms], sums to 1.  context[dim] for linear
 * policies, else NULL.  Errors: MX_ERR_ARG (a context that is not finite). */
mx_status mx_bandit_propensities(mx_bandit *b, const double *context, double *p, mx_error *err);
/* Draw from them: uniform in [0,1). */
int32_t   mx_bandit_draw(const double *p, int32_t arms, double uniform);

/* reward in [0,1] for Beta-Thompson and UCB1 (a fraction counts in part), any finite
 * number for the linear ones; at day `now` (any origin, never backwards).  Errors: MX_ERR_ARG. */
mx_status mx_bandit_learn(mx_bandit *b, int32_t arm, const double *context, double reward, double now, mx_error *err);

typedef struct mx_bandit_arm {
    double n, mean;               /* rewards seen (discounted), and their mean or the posterior's */
    double low, high;             /* central 95 % of the posterior (Beta-Thompson); else of the bound */
} mx_bandit_arm;
void      mx_bandit_arm_get(const mx_bandit *b, int32_t arm, mx_bandit_arm *out);

/* The state as bytes, little-endian doubles: equal states, equal bytes.  Errors of
 * load: MX_ERR_FORMAT (another size, numbers that are not finite). */
size_t    mx_bandit_state_size(const mx_bandit *b);
void      mx_bandit_state_save(const mx_bandit *b, void *to);
mx_status mx_bandit_state_load(mx_bandit *b, const void *from, size_t size, mx_error *err);

/* ---- experiments -------------------------------------------------------------------- */

/* P(X2 > X1) of two independent Betas. */
double    mx_beta_better(double a1, double b1, double a2, double b2);
/* Sample-ratio check: the p-value of counts[n] against shares[n] (chi-square, n-1
 * degrees).  A tiny one says that the assignment, not the arms, is broken. */
double    mx_sample_ratio(const double *counts, const double *shares, int n);
/* An interval of the mean of n numbers in [0,1] that holds at all times together with
 * probability 1-alpha, so it may be looked at after every one of them: normal mixture
 * of Howard, Ramdas, McAuliffe and Sekhon (2021), proposition 5, tightest near n = 1,000. */
void      mx_always_valid(double mean, double n, double alpha, double *low, double *high);

#endif
