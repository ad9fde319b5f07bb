/* dqn_internal.h - a run's memory; dqn*.c only. */
#ifndef MX_DQN_INTERNAL_H
#define MX_DQN_INTERNAL_H

#include "models/dqn.h"
#include "models/replay.h"
#include "models/transitions.h"

#include <stdio.h>

#define DQN_RECENT 100                /* episodes whose mean return is told */

typedef struct dqn_counts {           /* of the run, plain data                             */
    int64_t step, turn, updates, episodes;
    double  recent[DQN_RECENT];
    double  loss, grad_norm, best_return;
    int64_t best_step;
} dqn_counts;

typedef struct dqn_worlds {           /* those that the device steps; zeros: the host does   */
    mx_buffer memory;
    mx_tensor state, at, ended, reward, next, seen;       /* of mx_world_step()             */
    int32_t  *host;
} dqn_worlds;

struct mx_dqn {
    mx_dqn_options o;
    mx_device     *dev;
    char           name[256], judge[256], run[MX_PATH], resumed[MX_PATH];
    mx_env         env;
    dqn_worlds     worlds;
    mx_qnet       *online, *target;
    mx_replay     *replay;
    mx_buffer      m, v, sum;
    mx_stream      stream;
    FILE          *log;
    mx_transitions *data;            /* offline; else NULL                                  */
    mx_buffer      ban;              /* [n, actions] f32: what infeasible actions have added */
    double         gap;
    dqn_counts     at;
    int64_t        saved_step, resumed_from;
    uint64_t       began_ns;
    int64_t        began_step, began_updates;
    /* [envs] of what the worlds show */
    float         *seen, *next, *reward, *uniform;
    uint8_t       *mask, *next_mask, *ends;
    int32_t       *action;
};

/* dqn_world.c: after choosing what explores, d->action[r] < 0 for the `greedy` others. */
mx_status dqn_worlds_open(mx_dqn *d, mx_error *err);
void      dqn_worlds_close(mx_dqn *d);
mx_status dqn_worlds_write(mx_dqn *d, mx_error *err);
mx_status dqn_worlds_read(mx_dqn *d, mx_error *err);
mx_status dqn_worlds_step(mx_dqn *d, int64_t greedy, mx_error *err);
/* dqn_state.c */
mx_status dqn_resume(mx_dqn *d, mx_error *err);
void      dqn_log(mx_dqn *d, const mx_dqn_report *r);
/* dqn.c, the halves of an update (the tests give them their own batch): the gradients of
 * a batch, its loss to d->sum, and the errors[B,1]; then clipping, Adam and the target. */
mx_tensor dqn_gradients(mx_dqn *d, const mx_replay_batch *b);
mx_status dqn_apply(mx_dqn *d, mx_error *err);
/* dqn_offline.c: read d->o.data (before anything is opened); carry it to the replay memory. */
mx_status dqn_offline_open(mx_dqn *d, mx_error *err);
mx_status dqn_offline_fill(mx_dqn *d, mx_error *err);
bool      dqn_cloning(const mx_dqn *d);
/* The gradient[B,A], times scale, of the cross-entropy of q's feasible actions with the
 * logged ones; its sum to d->sum at `slot`. */
mx_tensor dqn_pull(mx_dqn *d, const mx_replay_batch *b, mx_tensor q, float scale, int slot, mx_tensor *loss);
mx_status dqn_offline_measure(mx_dqn *d, mx_dqn_report *r, mx_error *err);

#endif
