/* demand.h - how many units a price sells, fitted from sales; and the yardsticks that
 * every learned price policy is shown beside.
 *
 * ln q = a_group + sum_b e_b ln p_b + sum_c beta_c x_c: ordinary least squares with one
 * constant for each group (store), which is taken out by subtracting group means
 * (Frisch, Waugh, Lovell), so that a thousand stores cost no columns. */
#ifndef MX_DEMAND_H
#define MX_DEMAND_H

#include "runtime/status.h"

#include <stddef.h>
#include <stdint.h>

#define MX_OLS_COLUMNS 256

typedef struct mx_ols {
    int32_t k, n_groups;
    int64_t n;
    double *beta, *error;         /* [k] coefficients and their standard errors          */
    double *constant;             /* [n_groups]                                          */
    double *covariance;           /* [k][k] of beta                                      */
    double  r2, sigma;            /* sigma: of the residuals                             */
} mx_ols;

/* y[n], x[n][k] row by row, group[n] in 0..n_groups-1.  Errors: MX_ERR_ARG (sizes, a
 * number that is not finite: by row and column; fewer rows than coefficients; columns
 * that depend on each other: by column), MX_ERR_NO_MEMORY. */
mx_status mx_ols_fit(mx_ols *m, const double *y, const double *x, const int32_t *group, int64_t n, int32_t k, int32_t n_groups, mx_error *err);
void      mx_ols_close(mx_ols *m);
/* Of ln q. */
double    mx_ols_predict(const mx_ols *m, const double *x, int32_t group);
/* Standard error of a prediction's mean, group constants taken as known. */
double    mx_ols_predict_error(const mx_ols *m, const double *x);

/* ---- yardsticks --------------------------------------------------------------------------- */

/* The price of most margin under constant elasticity e < -1: cost e/(e+1).  NAN: there is none. */
double    mx_price_of_elasticity(double cost, double elasticity);
/* Selling n units in time t to buyers that come with rate a exp(-price) (Gallego and van
 * Ryzin 1994, section 2.3): expected revenue J*(n,t) = ln sum_{i<=n} (l t)^i / i!, l = a/e,
 * and the price now, J*(n,t) - J*(n-1,t) + 1. */
double    mx_gallego_van_ryzin(int32_t n, double t, double a, double *price);

#endif
