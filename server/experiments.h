/* experiments.h - experiments whose arms a bandit chooses: choices, outcomes, figures.
 *
 * One thread owns the store and the bandits.  It takes all operations that wait,
 * carries them out in one transaction, and answers them after the commit: so what
 * was acknowledged is on disk, and a hundred waiting choices cost one fsync.  When a
 * commit fails nobody in it is acknowledged, and the bandits are read again.
 *
 * A choice follows from (seed, number of the choice, state); the state follows from
 * the learned outcomes in their order (mx_experiments_replay). */
#ifndef MX_EXPERIMENTS_H
#define MX_EXPERIMENTS_H

#include "models/bandit.h"
#include "models/ope.h"

typedef struct mx_experiments mx_experiments;

enum { MX_EXPERIMENT_ID = 64, MX_UNIT = 256, MX_OUTCOME_KEY = 128, MX_OUTCOMES = 4096 };

typedef struct mx_experiment_spec {
    char     id[MX_EXPERIMENT_ID];
    mx_bandit_options bandit;
    char   (*arm)[MX_EXPERIMENT_ID];     /* [bandit.arms] names; malloc'ed           */
    double   holdout;             /* share of units that always see arm 0, and teach nothing */
    bool     sticky;              /* a unit keeps its first arm                       */
    double   window_days;         /* outcomes later than this after the choice are refused */
    uint64_t seed;
} mx_experiment_spec;

typedef struct mx_experiment_arm {
    mx_bandit_arm  learned;
    double         choices, expected;    /* made by the policy, and the sum of their propensities */
    double         share;         /* propensity now (not for linear policies)         */
    double         low, high;     /* always-valid 95 % interval of the mean reward     */
    mx_ope         always;        /* what always showing it would have earned          */
} mx_experiment_arm;

typedef struct mx_experiment_view {
    mx_experiment_spec spec;      /* spec.arm is malloc'ed                            */
    mx_experiment_arm *arm;       /* [bandit.arms], malloc'ed                         */
    bool    paused;
    int32_t promoted;             /* -1: none                                         */
    int64_t created_ms, version, choices;
    double  ratio_p;              /* sample-ratio check of choices against propensities */
} mx_experiment_view;
void mx_experiment_view_close(mx_experiment_view *v);

typedef struct mx_selection {
    int64_t decision;
    int32_t arm, flags;           /* MX_DECISION_...                                   */
    char    arm_name[MX_EXPERIMENT_ID];
    double  propensity;
    int64_t version;
    mx_bandit_arm posterior;
    mx_bandit_policy policy;
} mx_selection;

typedef struct mx_outcome {
    int64_t decision, ts_ms;      /* ts_ms 0: now                                      */
    double  value;
    const char *key;              /* another outcome of the same decision needs another */
} mx_outcome;
typedef struct mx_outcome_counts { int32_t accepted, duplicate, late, unknown, wrong; } mx_outcome_counts;

/* One operation; embed it, fill it, submit it.  done() comes once, from the thread. */
typedef enum mx_experiment_kind { MX_EXPERIMENT_CREATE, MX_EXPERIMENT_VIEW, MX_EXPERIMENT_SELECT, MX_EXPERIMENT_OUTCOMES, MX_EXPERIMENT_SET } mx_experiment_kind;
typedef struct mx_experiment_op mx_experiment_op;
struct mx_experiment_op {
    mx_experiment_op *next;       /* the queue's                                       */
    mx_experiment_kind kind;
    void      (*done)(mx_experiment_op *op);
    mx_status   st;
    mx_error    err;
    uint64_t    began_ns, ended_ns;      /* its transaction, from the first step to the commit */
    /* in */
    const char *id, *unit;
    const double *context;
    int32_t     n_context;
    mx_experiment_spec *spec;     /* CREATE: its arm is taken                          */
    const mx_outcome *outcomes;
    int32_t     n_outcomes;
    int32_t     pause, promote;   /* SET: -1 leaves pause as it is; promote: -2 leaves, -1 nobody, an arm */
    /* out */
    mx_selection selection;
    mx_outcome_counts counts;
    mx_experiment_view view;      /* VIEW, CREATE, SET: the caller's to close          */
};

/* Errors: MX_ERR_IO, MX_ERR_FORMAT (a file that is not ours). */
mx_status mx_experiments_open(mx_experiments **out, const char *path, mx_error *err);
/* What waits is carried out first. */
void      mx_experiments_close(mx_experiments *x);
void      mx_experiments_submit(mx_experiments *x, mx_experiment_op *op);
/* Names of all, oldest first, one behind the other, each with its NUL; malloc'ed. */
char     *mx_experiments_names(mx_experiments *x, int *n);

/* The bandit made anew from the logged outcomes: *same, if its state has the same
 * bytes.  Not while operations run.  Errors: MX_ERR_NOT_FOUND, MX_ERR_IO. */
mx_status mx_experiments_replay(mx_experiments *x, const char *id, bool *same, mx_error *err);

#endif
