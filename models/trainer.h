/* trainer.h - the loop that makes any network learn.
 *
 * A trainer owns the optimizer, the schedule, the data's cursor and the run's
 * folder; of the network it knows five functions.  One call of
 * mx_trainer_step() is one step: gradients of a whole batch, in packed
 * micro-batches that fit the memory, reduced over processes, clipped, AdamW.  So
 * a command-line run is a loop, and a run inside the server is a job whose every
 * turn is a micro-batch.
 *
 * Whatever is random follows from (seed, step, sequence), so the state of a run
 * is its weights, moments, and a few counts: a run that is killed and goes on
 * gives the same bits as one that was not.
 *
 * AdamW: Loshchilov and Hutter 2019, algorithm 2, decay on matrices only.
 * Gradients are clipped by their global norm (Pascanu et al. 2013). */
#ifndef MX_TRAINER_H
#define MX_TRAINER_H

#include "models/batches.h"
#include "models/params.h"
#include "models/snapshot.h"
#include "runtime/comm.h"

/* ---- the network, as the trainer sees it ------------------------------------------ */

typedef struct mx_pass {
    const mx_batch *batch;
    bool     learn;                   /* false: the loss only (evaluation)                   */
    uint64_t seed;                    /* of dropout and masks; differs for every batch       */
    /* learn: called from the backward pass when gradients [first, first+n) are final; may be NULL */
    void   (*ready)(void *ctx, size_t first, size_t n);
    void    *ctx;
    double   loss, extra;             /* out: sum over counted targets; right answers of a classifier */
    int64_t  counted;                 /* out                                                 */
} mx_pass;

typedef struct mx_learner {
    void      *network;
    mx_params *params;                /* what learns; gradients are added to                 */
    /* Adds d(sum of losses)/dw to the gradients.  Errors: what the stream met. */
    mx_status (*run)(void *network, mx_stream *s, mx_pass *p, mx_error *err);
    size_t    (*scratch)(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn);
    /* Everything that a user needs to load it again: weights, config, tokenizer. */
    mx_status (*save)(const void *network, const char *folder, mx_error *err);
    /* The weights that save() wrote, into the network that is open. */
    mx_status (*load)(void *network, const char *folder, mx_error *err);
    const char *metric;               /* name of `extra` / counted; NULL: perplexity is reported */
} mx_learner;

/* ---- the run --------------------------------------------------------------------------- */

typedef enum mx_schedule { MX_SCHEDULE_COSINE, MX_SCHEDULE_LINEAR, MX_SCHEDULE_CONSTANT } mx_schedule;

/* What has to get better.  BOTH: patience starts anew when either is no worse than the best
 * seen, and the best evaluation is the last at which neither is (Velickovic et al. 2018, section 3.3). */
typedef enum mx_stop_on { MX_STOP_LOSS, MX_STOP_METRIC, MX_STOP_BOTH } mx_stop_on;

typedef struct mx_train_options {
    int64_t  steps;                   /* in all; 0: as many as `epochs` need                 */
    double   epochs;
    int32_t  batch;                   /* sequences of a step, over all processes             */
    int32_t  micro_rows;              /* tokens computed at once on one process              */
    float    lr, min_lr;              /* min_lr: where cosine and linear end                 */
    int64_t  warmup;                  /* steps from 0 to lr                                  */
    mx_schedule schedule;
    float    beta1, beta2, eps, weight_decay;
    float    clip;                    /* global norm; 0: never                               */
    int64_t  eval_every;              /* steps; 0: at the end only                           */
    int64_t  eval_sequences;          /* 0: all of them                                      */
    int32_t  patience;                /* evaluations without a better one before it stops; 0: never */
    mx_stop_on stop_on;               /* what is better, for patience and the best checkpoint; not LOSS: the learner has a metric */
    int64_t  save_every;              /* steps; 0: at the end only                           */
    int32_t  keep;                    /* checkpoints that stay; 0: all.  The best one always stays */
    uint64_t seed;
    bool     restart;                 /* a folder that holds a run: begin anew instead of going on */
} mx_train_options;
mx_train_options mx_train_defaults(void);

/* After a step, or an evaluation. */
typedef struct mx_train_report {
    int64_t  step, steps, tokens, sequences;
    double   epoch, loss, lr, grad_norm, seconds, tokens_per_s;     /* seconds: of this step; tokens_per_s: a moving mean */
    bool     evaluated;
    double   eval_loss, eval_extra;   /* eval_extra: perplexity, or the learner's own metric */
    double   best_loss, best_extra;   /* of the best evaluation                              */
    int64_t  best_step;               /* -1: none yet                                        */
    bool     saved;
    size_t   memory;                  /* bytes of device memory that the run holds           */
    double   seconds_left;
} mx_train_report;

typedef struct mx_trainer mx_trainer;

/* Makes or goes on with `run` (a folder).  train is required, eval may be NULL.
 * Everything given stays the caller's.  Errors: MX_ERR_ARG names the option;
 * MX_ERR_STATE: the folder holds a run with other data or other settings, says
 * which; MX_ERR_IO; MX_ERR_NO_MEMORY says what is needed and what would fit. */
mx_status mx_trainer_open(mx_trainer **out, const char *run, const mx_learner *learner, const mx_batches *train,
                          const mx_batches *eval, const mx_train_options *opt, mx_comm *comm, mx_error *err);
void      mx_trainer_close(mx_trainer *t);

/* One step.  *done: that was the last one (or patience ran out).  Evaluates and
 * saves when it is time.  Errors: MX_ERR_STATE (the loss or a gradient is not a
 * number: the step, and what to try), MX_ERR_IO (a checkpoint could not be
 * written: the earlier ones stay), what the network said. */
mx_status mx_trainer_step(mx_trainer *t, mx_train_report *r, bool *done, mx_error *err);
/* A part of a step: one micro-batch; the last of them makes the step, and then
 * *stepped is true and *r filled.  So a server that shares a device with a run
 * waits for a micro-batch, not for a step. */
mx_status mx_trainer_turn(mx_trainer *t, mx_train_report *r, bool *stepped, bool *done, mx_error *err);
/* A checkpoint now, unless this step has one (for Ctrl-C). */
mx_status mx_trainer_save(mx_trainer *t, mx_error *err);
mx_status mx_trainer_evaluate(mx_trainer *t, double *loss, double *extra, mx_error *err);
/* The weights of the best evaluation's checkpoint into the network; for a run that is done.
 * folder: where it lies.  Errors: MX_ERR_STATE (nothing was evaluated, or not saved). */
mx_status mx_trainer_restore_best(mx_trainer *t, char folder[MX_PATH], mx_error *err);

/* Measure a network on data, without a run: `rows` tokens at a time.  progress (may
 * be NULL): sequences done of all; false stops with MX_ERR_CANCELLED.  loss: mean
 * over what is counted; extra: the learner's metric, or perplexity. */
mx_status mx_evaluate(const mx_learner *l, const mx_batches *b, int32_t rows, bool (*progress)(void *ctx, int64_t done, int64_t all),
                      void *ctx, double *loss, double *extra, mx_error *err);

typedef struct mx_train_plan {       /* before the first step                              */
    int64_t  parameters, steps, sequences, tokens, resumed_from;    /* resumed_from: -1: a new run */
    size_t   weights, optimizer, scratch, memory;                   /* bytes; memory: of the device */
    int32_t  micro_rows, most_rows;   /* most_rows: the largest micro-batch that still fits */
    char     folder[MX_PATH];         /* of the checkpoint it goes on from                  */
} mx_train_plan;
void      mx_trainer_plan(const mx_trainer *t, mx_train_plan *out);
/* Of step `step` (from 0). */
double    mx_schedule_lr(const mx_train_options *o, int64_t steps, int64_t step);

#endif
