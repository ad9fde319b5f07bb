/* ope.h - what another policy would have earned, from what one has logged.
 *
 * Rows of a log: reward r, the probability mu with which the logged policy took its
 * action, the probability pi with which the other one would have.  w = min(pi/mu,
 * clip).  Inverse propensity score mean(w r) (Horvitz and Thompson 1952),
 * self-normalized sum(w r)/sum(w) (Swaminathan and Joachims 2015), direct method
 * mean(v), doubly robust mean(v + w (r - q)) (Dudik, Langford, Li 2011), where q is a
 * model's guess of the logged action's reward and v that of the other policy. */
#ifndef MX_OPE_H
#define MX_OPE_H

#include "runtime/status.h"

#include <stddef.h>

typedef struct mx_ope_row {
    double reward, mu, pi;
    double q, v;                  /* of the reward model; 0 without one */
} mx_ope_row;

typedef struct mx_ope {
    double ips, snips, dm, dr;
    double ips_error, snips_error, dr_error;     /* standard errors                        */
    double ess;                   /* effective sample size (sum w)^2 / sum w^2             */
    double largest;               /* weight                                                */
} mx_ope;

/* clip <= 0: none.  Errors: MX_ERR_ARG (no row; a row's field that is no probability,
 * mu = 0 where pi > 0, a number that is not finite: by row). */
mx_status mx_ope_estimate(const mx_ope_row *rows, size_t n, double clip, mx_ope *out, mx_error *err);

#endif
