/* trainer_internal.h - a trainer's memory; trainer*.c only. */
#ifndef MX_TRAINER_INTERNAL_H
#define MX_TRAINER_INTERNAL_H

#include "models/trainer.h"
#include "runtime/clock.h"

#include <stdio.h>

struct mx_trainer {
    mx_learner        learner;
    const mx_batches *train, *eval;
    mx_train_options  opt;
    mx_comm          *comm;
    mx_stream         stream;
    mx_batch          batch;          /* the micro-batch being computed               */
    int32_t           rows;           /* of a micro-batch                             */
    size_t            shard_begin, shard_end;      /* elements whose moments are ours */
    mx_buffer         m, v;           /* the moments of [shard_begin, shard_end)      */
    char              run[MX_PATH];
    FILE             *log;            /* metrics.jsonl; the first process's           */
    mx_train_plan     plan;
    /* the run's state: this, the weights and the moments are a checkpoint */
    int64_t           steps, step, tokens;
    double            best_loss, best_extra;       /* of the best evaluation          */
    double            least_loss, most_extra;      /* of all; they may be of two evaluations */
    int64_t           best_step, saved_step;
    int32_t           waited;         /* evaluations without a better one             */
    mx_train_report   report;         /* of the last step                             */
    double            seconds_per_step;
    /* a step that is under way */
    bool              in_step;
    int64_t           micro_at, micro_last;
    double            loss, extra;
    int64_t           counted, tokens_in;
    uint64_t          step_ns;        /* time spent in its turns                      */
};

/* trainer_state.c: go on from the newest whole checkpoint, if there is one. */
mx_status mx_trainer_resume(mx_trainer *t, mx_error *err);
/* One line of metrics.jsonl. */
void      mx_trainer_log(mx_trainer *t, const mx_train_report *r);

#endif
