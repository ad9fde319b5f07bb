/* params.h - all the weights of a network that learns, in one allocation.
 *
 * A network lists its weights once.  The list decides the layout; values,
 * gradients and the moments of AdamW are buffers of that same layout, f32, so
 * "clear the gradients", "reduce over processes" and "one optimizer step" are
 * one call each, and a checkpoint is the list written as a safetensors header.  Weights that one product multiplies by (q, k and v; gate and up) are
 * joined: they lie one behind the other, and mx_params_view() shows them as one
 * matrix while the file keeps its authors' names. */
#ifndef MX_PARAMS_H
#define MX_PARAMS_H

#include "models/checkpoint.h"

#define MX_PARAM_NAME 96

typedef enum mx_param_flags {
    MX_PARAM_CONV1D = 1,      /* the file holds the transposed matrix, [cols, rows] */
    MX_PARAM_VECTOR = 2,      /* one dimension in the file; never decayed           */
    MX_PARAM_JOIN   = 4,      /* begins where the one before it ends                */
    MX_PARAM_NO_DECAY = 8     /* a matrix that is not decayed                       */
} mx_param_flags;

typedef struct mx_param {
    char     name[MX_PARAM_NAME];
    int64_t  rows, cols;
    unsigned flags;
    size_t   offset;          /* elements from the start of each buffer             */
} mx_param;

typedef struct mx_params {
    mx_device *dev;
    mx_param  *param;         /* in layout order                                    */
    int        n, room;
    size_t     count;         /* elements of a buffer, gaps included                */
    size_t     elements;      /* of the parameters alone: for people                */
    mx_buffer  value, grad;   /* grad: base NULL unless they learn                  */
} mx_params;

/* Append one parameter; returns its index, or -1 and *err (MX_ERR_ARG: name too
 * long or twice, a size that overflows; MX_ERR_NO_MEMORY).  The first call may be
 * on a zeroed struct.  Groups begin at multiples of 64 bytes. */
int       mx_params_add(mx_params *p, const char *name, int64_t rows, int64_t cols, unsigned flags, mx_error *err);
/* After the last add: memory for the values and, if they learn, the gradients. */
mx_status mx_params_alloc(mx_params *p, mx_device *d, bool learn, mx_error *err);
void      mx_params_close(mx_params *p);

/* Views into one of the buffers: `n` parameters from index i as one matrix
 * (joined, equal cols; vectors: as one row). */
mx_tensor mx_params_view(const mx_params *p, const mx_buffer *in, int i, int n);
int       mx_params_find(const mx_params *p, const char *name);      /* -1: none */

/* Read every value from c: a tensor of another shape or one that is missing is
 * MX_ERR_FORMAT and names it.  A name is also looked for without `prefix` (as
 * GPT-2's own files are written); NULL: no other place. */
mx_status mx_params_load(mx_params *p, const mx_checkpoint *c, const char *prefix, mx_error *err);
/* One value from one tensor; b NULL: it is missing. */
mx_status mx_params_load_blob(mx_params *p, int i, const mx_blob *b, mx_error *err);
/* One of the buffers, as mx_params_save_as() wrote it with own_orientation. */
mx_status mx_params_load_own(mx_params *p, const mx_buffer *into, const mx_checkpoint *c, mx_error *err);
/* Normal(0, std), drawn by (seed, parameter's name, element), so the order of
 * the list changes nothing; or one value. */
mx_status mx_params_init(mx_params *p, int i, float std, uint64_t seed, mx_error *err);
mx_status mx_params_fill(mx_params *p, int i, float value, mx_error *err);

/* ---- learning -------------------------------------------------------------------- */

typedef struct mx_adamw_options {
    float   lr, beta1, beta2, eps, decay;
    int64_t step;             /* from 1: of the bias correction                     */
    float   scale;            /* gradients are multiplied by it first               */
} mx_adamw_options;

/* Elements [begin, end) of all buffers, which need not be whole parameters; m and
 * v hold just these.  Weight decay on matrices that do not forbid it. */
mx_status mx_params_adamw(mx_params *p, mx_stream *s, const mx_buffer *m, const mx_buffer *v, size_t begin, size_t end,
                          const mx_adamw_options *o, mx_error *err);
/* Sum of the gradients' squares, in double, in an order that depends on begin and end alone. */
mx_status mx_params_square_norm(const mx_params *p, mx_stream *s, size_t begin, size_t end, double *sum, mx_error *err);

/* ---- writing safetensors ------------------------------------------------------ */

typedef enum mx_save_type { MX_SAVE_F32, MX_SAVE_BF16, MX_SAVE_F16, MX_SAVE_I32, MX_SAVE_I64, MX_SAVE_U8 } mx_save_type;

/* One tensor of a file to be written; data is host memory, row-major: f32 for
 * the first three types, else what the type says. */
typedef struct mx_save {
    const char  *name;
    mx_save_type as;
    int          n_dims;
    int64_t      dims[4];
    const void  *data;
    bool         transposed;        /* write the transpose of data[dims[0], dims[1]]; dims are data's */
} mx_save;

/* metadata: pairs key, value; n_metadata pairs.  The file is written whole and
 * fsynced; on an error it is removed.  Errors: MX_ERR_IO (path and what the
 * system said), MX_ERR_NO_MEMORY. */
mx_status mx_safetensors_write(const char *path, const mx_save *tensors, int n, const char *const *metadata, int n_metadata,
                               mx_error *err);
/* One of the buffers under the parameters' names, as f32, bf16 or f16; in the
 * orientation of the authors' files unless `own_orientation`. */
mx_status mx_params_save_as(const mx_params *p, const mx_buffer *which, const char *path, mx_save_type as, bool own_orientation,
                            const char *const *metadata, int n_metadata, mx_error *err);

#endif
