/* transitions.h - logged steps of a policy that acted elsewhere, to learn from offline.
 *
 * A file of JSON lines, one a step, the steps of an episode one after the other:
 *     {"first": true, "state": [..], "mask": [1,0,..], "action": 3, "reward": 0.5,
 *      "next": [..], "next_mask": [..], "terminated": false, "truncated": false}
 * mask: 1 where an action was feasible.  "terminated": the episode ended, what follows
 * has no value, next may be absent.  "truncated": it was cut off, next keeps its value;
 * so is an episode whose last step says neither.  A step with neither next nor
 * "terminated" (the newest decision of a log, whose successor is not there yet) cannot
 * be learned from and is left out; the step before it is then the last one.  Other
 * fields are passed over. */
#ifndef MX_TRANSITIONS_H
#define MX_TRANSITIONS_H

#include "models/fqe.h"

typedef struct mx_transitions {
    int32_t  observation, actions;
    int64_t  n, starts;               /* steps, episodes                                 */
    uint64_t digest;                  /* of all of them                                  */
    float   *state, *next;            /* [n][observation]; next: zeros where terminated  */
    uint8_t *mask, *next_mask;        /* [n][actions]; next_mask: ones where terminated  */
    int32_t *action;
    float   *reward;
    uint8_t *first, *terminated, *truncated;     /* one of the last two ends an episode  */
} mx_transitions;

/* Errors: MX_ERR_IO; MX_ERR_FORMAT names file, line and field; MX_ERR_NO_MEMORY. */
mx_status mx_transitions_open(mx_transitions **out, const char *path, mx_error *err);
void      mx_transitions_close(mx_transitions *t);

/* What the policy that takes best[n] in every state and best_next[n] in every next one
 * would earn from the first steps on, by fitted Q evaluation.  Errors: of mx_fqe_linear(). */
mx_status mx_transitions_worth(const mx_transitions *t, const int32_t *best, const int32_t *best_next, double discount, mx_fqe *out, mx_error *err);

#endif
