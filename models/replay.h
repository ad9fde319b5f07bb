/* replay.h - what was lived through, to learn from again: a ring of transitions in
 * device memory, drawn evenly or by priority (Schaul et al. 2016).
 *
 * A transition spans up to n steps (Sutton 1988): the state, the action, the
 * discounted sum of the rewards, the state after them, what is feasible there, and
 * the discount of its value: gamma^n, or 0 where the episode terminated.  At the end
 * of an episode the last transitions span fewer steps; one that was only truncated
 * keeps the value of the state it was cut off in.
 *
 * A transition is one row of a matrix, so that a batch is one gather:
 *     state[D] next[D] return discount weight action mask[ceil(A/4)]
 * (action: the bits of an i32; mask: A bytes).  All calls are of one thread. */
#ifndef MX_REPLAY_H
#define MX_REPLAY_H

#include "kernels/ops.h"

typedef struct mx_replay_shape {
    int64_t capacity, rows;           /* transitions kept; worlds that act at once       */
    int32_t observation, actions, n_step;
    float   gamma;
    bool    prioritized;
} mx_replay_shape;

/* One step of one world, with the worth of it: host memory. */
typedef struct mx_replay_step {
    const float   *state, *next;      /* [D]                                             */
    const uint8_t *mask;              /* [A]: feasible in next                           */
    int32_t        action;
    float          reward;
    bool           terminated, truncated;
} mx_replay_step;

/* A batch as the losses of kernels/ops.h take it: views into scratch. */
typedef struct mx_replay_batch {
    mx_tensor state, next;            /* [B,D]                                           */
    mx_tensor step;                   /* [B,3]: return, discount, weight                 */
    mx_tensor action;                 /* [B,1] i32                                       */
    mx_tensor mask;                   /* [B,A] i8                                        */
    mx_tensor ids;                    /* [B,1] i32: whom mx_replay_errors() is told of   */
} mx_replay_batch;

typedef struct mx_replay mx_replay;

/* Errors: MX_ERR_ARG names the field, MX_ERR_NO_MEMORY. */
mx_status mx_replay_open(mx_replay **out, mx_device *dev, const mx_replay_shape *shape, mx_error *err);
void      mx_replay_close(mx_replay *r);
int64_t   mx_replay_count(const mx_replay *r);
size_t    mx_replay_bytes(const mx_replay *r);       /* of device memory */
/* Of scratch for a batch. */
size_t    mx_replay_scratch(const mx_replay *r, int64_t batch);

/* World `row` has made a step; the transitions that are complete wait for mx_replay_flush(). */
void      mx_replay_add(mx_replay *r, int64_t row, const mx_replay_step *t);
/* Those that wait go into the ring, as new ones with the largest priority there was.  The
 * memory they are copied from is free after the stream's next sync. */
void      mx_replay_flush(mx_replay *r, mx_stream *s);
/* uniform[B] in [0,1).  beta: how much of the bias the weights take back; without priorities weights are 1. */
void      mx_replay_draw(mx_replay *r, mx_stream *s, const float *uniform, int64_t batch, float beta, mx_replay_batch *out);
/* The errors[B,1] of a batch become its priorities, to the power alpha. */
void      mx_replay_errors(mx_replay *r, mx_stream *s, const mx_replay_batch *b, mx_tensor errors, float alpha);

/* All of it in host memory, for a checkpoint: sizes, then copies.  The stream is waited for. */
typedef struct mx_replay_image {
    void   *ring, *tree, *window;     /* malloc'ed; release with mx_replay_image_free()  */
    size_t  ring_bytes, tree_bytes, window_bytes;
    int64_t head, count;
} mx_replay_image;
mx_status mx_replay_save(mx_replay *r, mx_stream *s, mx_replay_image *to, mx_error *err);
/* Errors: MX_ERR_FORMAT when a size is not this replay's. */
mx_status mx_replay_restore(mx_replay *r, mx_stream *s, const mx_replay_image *from, mx_error *err);
void      mx_replay_image_free(mx_replay_image *i);

#endif
