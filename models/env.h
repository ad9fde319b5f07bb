/* env.h - worlds to act in: many rows stepped at once, behind one small interface.
 *
 * A row is one world with its own episode: a cart, a product in a store.  Every
 * row has `observation` numbers to see and `actions` to choose from, some of
 * which may be infeasible (the mask).  An episode ends in two ways that learning
 * must not confuse: TERMINATED, there is nothing after it and its value is 0;
 * TRUNCATED, it was only cut off (a time limit), and what would have followed
 * still has its value (Pardo et al. 2018).
 *
 * All of a world's memory that changes is `memory`, plain data without pointers:
 * copied away and back is saved and restored, to the bit.  What is random is
 * drawn by mx_env_draw() from (seed, row, episode, step), so a row's course
 * depends on its seed, its number and its own actions alone.
 *
 * A NEW KIND: a file env_x.c that fills an mx_env in its open function (state
 * struct, three functions), and a row in env.c's table.  See env_cartpole.c.
 *
 * THREADS: calls for different rows may run at once; a group of rows whose
 * worlds touch (`group`) goes to one of them. */
#ifndef MX_ENV_H
#define MX_ENV_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mx_env mx_env;

typedef struct mx_env_ops {
    /* Begin an episode: write the row's state. */
    void (*begin)(mx_env *e, int64_t row);
    /* Rows first..first+n-1 take action[i] (feasible, in 0..actions-1): the states
     * move on, reward[i] and terminated[i] (0 or 1) are written. */
    void (*step)(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated);
    /* What rows first..first+n-1 see now: observation[n][e->observation]; mask[n][e->actions],
     * 1 where an action is feasible, at least one in a row whose episode goes on. */
    void (*observe)(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask);
    void (*close)(mx_env *e);              /* releases `world`; may be NULL */
} mx_env_ops;

/* Of every row, kept by env.c. */
typedef struct mx_env_row {
    double   earned;              /* sum of the episode's rewards                            */
    uint32_t episode;             /* of this row, from 0                                     */
    uint32_t step;                /* of this episode, from 0                                 */
} mx_env_row;

struct mx_env {
    /* filled by the kind's open function before mx_env_alloc() */
    const char *kind;             /* "cartpole"                                              */
    const mx_env_ops *ops;
    int64_t     rows, group;      /* group: so many neighbouring rows are one world; rows is a multiple */
    int32_t     observation, actions;
    int32_t     limit;            /* steps until an episode is truncated; 0: never           */
    uint64_t    seed;
    int         device_world;     /* 1 + the mx_world (kernels/ops.h) that has these numbers and this state on a device; 0: none */
    void       *world;            /* what does not change: fitted demand, prices; owned      */
    /* filled by mx_env_alloc() */
    mx_env_row *row;
    void       *state;            /* [rows] structs of the kind                              */
    void       *memory;           /* row and state: all that changes                         */
    size_t      memory_bytes;
};

/* NAME or NAME:ARGUMENTS, as in the table of env.c (mx_env_kinds).  Errors: MX_ERR_ARG
 * names what there is; MX_ERR_NO_MEMORY.  *e is closed by mx_env_close(). */
mx_status mx_env_open(mx_env *e, const char *name, int64_t rows, uint64_t seed, mx_error *err);
void      mx_env_close(mx_env *e);

/* For the kinds' open functions: memory for rows of state_bytes each, and the first
 * episode of every row begun.  On an error e is closed. */
mx_status mx_env_alloc(mx_env *e, size_t state_bytes, mx_error *err);

/* mask may be NULL. */
void      mx_env_observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask);
/* A step of rows first..first+n-1 (whole groups).  The episodes that ended stay
 * where they ended until mx_env_begin(): what they saw last can still be asked for. */
void      mx_env_step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated,
                      uint8_t *truncated);
/* The next episode of a row. */
void      mx_env_begin(mx_env *e, int64_t row);

/* Uniform on [0,1): draw number k of this step of this row.  Draws of begin() and
 * of step() differ. */
double    mx_env_draw(const mx_env *e, int64_t row, uint32_t k);

typedef struct mx_env_kind {
    const char *name, *help;
    /* arguments: what stood behind the colon, or NULL */
    mx_status (*open)(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err);
} mx_env_kind;
extern const mx_env_kind mx_env_kinds[];       /* ended by a name of NULL */

/* What stands behind the colon where a kind takes nothing. */
mx_status mx_env_no_arguments(const char *kind, const char *arguments, mx_error *err);

mx_status mx_env_cartpole(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err);
mx_status mx_env_acrobot(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err);
mx_status mx_env_gvr(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err);
mx_status mx_env_market(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err);

#endif
