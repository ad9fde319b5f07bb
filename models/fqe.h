/* fqe.h - fitted Q evaluation: what a policy would earn in the long run, from logged
 * steps of another one (Le, Voloshin and Yue 2019; with linear functions its limit is
 * the solution of LSTD-Q: Lagoudakis and Parr 2003).
 *
 * q(s,a) = w_a . (1, s): a row of weights for each action.  They solve, with a small
 * ridge, E[x(s,a) (x(s,a) - discount x(s', pi(s')))'] w = E[x(s,a) r]; the value is the
 * mean of q(s0, pi(s0)) over first steps. */
#ifndef MX_FQE_H
#define MX_FQE_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mx_logged_step {
    const float *seen, *next;     /* [observation]; next NULL: nothing follows           */
    int32_t action;
    double  reward;
    const double *target;         /* [actions]: the evaluated policy's probabilities in seen */
    const double *target_next;    /* in next                                              */
    bool    first;                /* of an episode                                        */
} mx_logged_step;

typedef struct mx_fqe {
    double value;                 /* discounted sum from a first step on                  */
    double error;                 /* standard error over first steps, weights taken as known */
    int64_t starts;
} mx_fqe;

/* discount in 0..1.  Errors: MX_ERR_ARG (sizes, no first step, a step's field by number),
 * MX_ERR_NO_MEMORY, MX_ERR_STATE (the steps do not determine it). */
mx_status mx_fqe_linear(const mx_logged_step *steps, size_t n, int32_t observation, int32_t actions, double discount, mx_fqe *out, mx_error *err);

#endif
