/* training.h - training runs as jobs of a server.
 *
 * A job is a list of settings of `merx train`, a state, and a folder:
 * FOLDER/job-000001/job.json and FOLDER/job-000001/run (checkpoints, metrics.jsonl).
 * One thread opens the runs, one after the other; their turns, a micro-batch (dqn: an update) each,
 * are the lane "training" of the scheduler, behind all that is served.  job.json is
 * written beside and renamed whenever the state changes, so jobs outlive the
 * server: what was queued or running then is queued now, and goes on from its
 * newest checkpoint.
 *
 * THREADS: any thread may call; views are copies. */
#ifndef MX_TRAINING_H
#define MX_TRAINING_H

#include "server/app.h"

typedef struct mx_training mx_training;

typedef enum mx_training_state {
    MX_TRAINING_QUEUED = 1, MX_TRAINING_RUNNING, MX_TRAINING_DONE, MX_TRAINING_FAILED, MX_TRAINING_CANCELLED
} mx_training_state;

typedef struct mx_training_view {
    char    id[32], name[128], kind[16], message[512], folder[1100];    /* folder: of checkpoints */
    mx_training_state state;
    int64_t step, steps, created_ms, started_ms, ended_ms;
    double  loss, eval_loss, best_loss, lr, tokens_per_s, seconds_left;
    double  eval_return, best_return;              /* of a policy */
} mx_training_view;

/* roots: folders that runs may read, beside `folder`.  Errors: MX_ERR_IO (a folder
 * that is not there or cannot be written), MX_ERR_NO_MEMORY. */
mx_status mx_training_open(mx_training **out, mx_app *app, const char *folder, const char *const *roots, int n_roots, mx_error *err);
/* The running job writes a checkpoint and stays to be gone on with.  NULL is fine; before the scheduler closes. */
void      mx_training_close(mx_training *t);

typedef struct mx_training_spec {
    const char *kind, *name;                       /* "lm", "encoder", "dqn"               */
    const char *const (*settings)[2];              /* [n] name, value; model, data and eval-data among them */
    int         n;
} mx_training_spec;
/* Checks settings and paths.  Errors: MX_ERR_ARG names the setting; MX_ERR_BUSY: too many jobs wait. */
mx_status mx_training_submit(mx_training *t, const mx_training_spec *spec, mx_training_view *out, mx_error *err);
/* MX_ERR_NOT_FOUND: no such job. */
mx_status mx_training_get(mx_training *t, const char *id, mx_training_view *out, mx_error *err);
mx_status mx_training_cancel(mx_training *t, const char *id, mx_training_view *out, mx_error *err);
/* All jobs, oldest first; malloc'ed, NULL: out of memory. */
mx_training_view *mx_training_list(mx_training *t, int *n);

/* wake(ctx) after every step and change of the job, under a lock: it must not call back.
 * MX_ERR_NOT_FOUND, MX_ERR_NO_MEMORY. */
mx_status mx_training_watch(mx_training *t, const char *id, void (*wake)(void *ctx), void *ctx, mx_error *err);
void      mx_training_unwatch(mx_training *t, void *ctx);

/* path, with links resolved, and whether it lies in one of the n folders, which are resolved already.
 * Errors: MX_ERR_ARG names `what`. */
mx_status mx_path_inside(const char *const *roots, int n, const char *what, const char *path, char out[1024], bool *inside, mx_error *err);
/* path, with links resolved, if it lies in a folder that may be read.  Errors: MX_ERR_ARG names `what`. */
mx_status mx_training_path(const mx_training *t, const char *what, const char *path, char out[1024], mx_error *err);
/* The newest whole checkpoint of a job.  Errors: MX_ERR_NOT_FOUND, MX_ERR_STATE (it has none yet). */
mx_status mx_training_checkpoint(mx_training *t, const char *id, char out[1024], mx_error *err);

#endif
