/* dqn.h - learning to act: deep Q-learning over any world of env.h.
 *
 * Mnih et al. 2015 with what Rainbow (Hessel et al. 2018) added to it: double
 * (van Hasselt et al. 2016), dueling, n-step returns, prioritized replay, noisy
 * weights, distributions over atoms; each an option.  Infeasible actions are masked
 * in acting and in the target, and a truncated episode keeps its value.
 *
 * OFFLINE, from logged steps (transitions.h) instead of a world: conservative Q-learning,
 * CQL(H) of Kumar et al. 2020, equation 4: beside the temporal difference the mean of
 *     cql_alpha * (log sum over feasible a of exp Q(s,a) - Q(s, the action logged))
 * keeps down the values of what was never tried; before it, for clone_steps updates, the
 * policy that was logged is cloned: cross-entropy of softmax(Q) over feasible actions.
 * A step is then an update.
 *
 * A run is a folder as trainer.h's are: metrics.jsonl, checkpoints, and a link `best` to the
 * one whose policy was evaluated best.  A checkpoint
 * holds the network as qnet.h opens it, and all that the run needs to go on: target,
 * moments, replay memory, worlds and counts.  What is random follows from (seed,
 * step), so a run that was stopped or killed gives the bits of one that was not. */
#ifndef MX_DQN_H
#define MX_DQN_H

#include "models/env.h"
#include "models/qnet.h"
#include "models/trainer.h"

typedef struct mx_dqn_options {
    const char *eval_env;             /* the world to evaluate in; NULL: the one learned in  */
    const char *data;                 /* offline: a file of transitions.h, read at opening; NULL: act in env */
    float    cql_alpha;               /* with data                                           */
    int64_t  clone_steps;             /* with data                                           */
    int64_t  steps;                   /* of all worlds together                              */
    int32_t  envs;                    /* worlds that act at once                             */
    int64_t  buffer;                  /* transitions kept                                    */
    int64_t  learn_starts;            /* steps before the first update                       */
    int32_t  batch, train_every, updates;      /* so many updates after every train_every steps */
    float    lr, min_lr;              /* linear from one to the other over the run           */
    float    gamma, huber, clip;      /* clip: largest norm of the gradient; 0: any          */
    int32_t  n_step;
    int64_t  target_every;            /* updates until the target is copied                  */
    float    tau;                     /* under 1: the target follows by so much at every one */
    float    epsilon, epsilon_part;   /* from 1 to epsilon in this part of the steps         */
    bool     double_q, prioritized;
    float    alpha, beta;             /* of priorities; beta rises to 1 over the run         */
    mx_qnet_config net;               /* its observation, actions and env are filled in      */
    int64_t  eval_every;              /* steps; 0: at the end only                           */
    int32_t  episodes;                /* of an evaluation                                    */
    int64_t  save_every;              /* steps; 0: at the end only                           */
    int32_t  keep;                    /* checkpoints that stay beside the best; 0: all       */
    uint64_t seed;
    bool     restart;
} mx_dqn_options;

/* What was found to work for a world (bench/results/dqn-*.md); a sensible start for others. */
mx_dqn_options mx_dqn_defaults(const char *env);
/* For learning from data; env ("": none) gives the discount alone. */
mx_dqn_options mx_dqn_offline_defaults(const char *env);

typedef struct mx_dqn_report {
    int64_t step, steps, updates, episodes;
    double  mean_return;              /* of the last 100 episodes; NAN: none has ended       */
    double  loss, grad_norm, lr, epsilon;      /* of the last update                         */
    double  steps_per_s, updates_per_s, seconds_left;
    size_t  memory;                   /* bytes of the device                                 */
    bool    logged, evaluated, saved; /* since the call before                               */
    double  eval_return, eval_error;  /* mean and half width of its 95 % interval; offline without a
                                         world: of the discounted worth by fitted Q evaluation (fqe.h) */
    bool    offline, cloning;
    double  gap;                      /* offline: log sum exp - Q(logged action), of the last update */
    double  mean_value;               /* offline, when evaluated: of the best feasible Q in the states of the data */
    double  best_return;              /* of all evaluations                                  */
    int64_t best_step;
} mx_dqn_report;

typedef struct mx_dqn mx_dqn;

/* Makes or goes on with `run` (a folder; NULL: no folder, nothing is kept).  With data, env
 * is the world to evaluate in, or "".  Errors: those of mx_transitions_open();
 * MX_ERR_ARG names the option and its limits; MX_ERR_STATE: the folder holds a run
 * with other settings, says which; MX_ERR_IO; MX_ERR_NO_MEMORY. */
mx_status mx_dqn_open(mx_dqn **out, mx_device *dev, const char *env, const char *run, const mx_dqn_options *o, mx_error *err);
void      mx_dqn_close(mx_dqn *d);
/* train_every steps, and the updates after them.  Evaluates, logs and saves when it
 * is time.  Errors: MX_ERR_STATE (a gradient is not a number), MX_ERR_IO. */
mx_status mx_dqn_turn(mx_dqn *d, mx_dqn_report *r, bool *done, mx_error *err);
/* A checkpoint now, unless this step has one. */
mx_status mx_dqn_save(mx_dqn *d, mx_error *err);
mx_qnet  *mx_dqn_network(mx_dqn *d);
int64_t   mx_dqn_steps(const mx_dqn *d);
/* -1: a new run.  The folder stays d's. */
int64_t   mx_dqn_resumed_from(const mx_dqn *d, const char **folder);

/* ---- measuring ------------------------------------------------------------------------- */

typedef struct mx_dqn_score {
    int64_t episodes;
    double  mean, deviation, error;   /* error: half width of the mean's 95 % interval       */
    double  least, most, length;      /* length: mean steps                                  */
} mx_dqn_score;
/* `episodes` worlds play one episode each, greedily.  returns[episodes] may be NULL.
 * progress (may be NULL): episodes that are over; false stops.
 * Errors: MX_ERR_ARG (the network does not fit the world), MX_ERR_STATE (an episode of
 * over 100,000 steps), MX_ERR_CANCELLED. */
mx_status mx_dqn_evaluate(const mx_qnet *q, const char *env, int64_t episodes, uint64_t seed, double *returns, mx_dqn_score *out,
                          bool (*progress)(void *ctx, int64_t done, int64_t all), void *ctx, mx_error *err);

#endif
