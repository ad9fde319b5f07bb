/* encoder.h - the forward pass of a BERT encoder that serves.
 *
 * Weights are packed once at open, tables stay in the mapped file where they can;
 * texts are packed one behind the other, without padding.  A text's numbers do
 * not depend on the others in its batch (kernels/ops.h, the invariance rule). */
#ifndef MX_ENCODER_H
#define MX_ENCODER_H

#include "kernels/ops.h"
#include "models/encoder_config.h"
#include "models/footprint.h"

typedef enum mx_pooling {
    MX_POOL_MEAN,                 /* of all tokens' outputs                                   */
    MX_POOL_CLS,                  /* the first token's                                        */
    MX_POOL_POOLER,               /* tanh(W cls + b): what BERT's next-sentence head saw      */
    MX_POOL_COUNT
} mx_pooling;
const char *mx_pooling_name(mx_pooling p);          /* "mean", "cls", "pooler" */

typedef struct mx_encoder_linear {
    mx_weight w;                  /* w.dev NULL: the file has none                            */
    mx_tensor b;
} mx_encoder_linear;

typedef struct mx_encoder_layer {
    mx_encoder_linear qkv, out, up, down;            /* [3C,C] [C,C] [F,C] [C,F]              */
    mx_tensor norm1_gain, norm1_bias, norm2_gain, norm2_bias;
} mx_encoder_layer;

typedef struct mx_encoder {
    mx_encoder_config config;     /* config.label is the encoder's                            */
    mx_device        *dev;
    mx_checkpoint    *file;       /* owned: tables may point into it                          */
    mx_buffer         vectors;    /* gains and biases, f32                                    */
    size_t            vectors_used;
    float            *vector_stage;
    mx_buffer         table_memory[3];
    mx_tensor         tokens, positions, types;      /* [V,C] [P,C] [T,C]                     */
    mx_tensor         norm_gain, norm_bias;
    mx_encoder_layer *layer;
    mx_encoder_linear pooler, classifier;
    mx_dtype          dtype;
    const char       *quantization;                  /* the file's dtype of the matrices      */
    size_t            weight_bytes;
} mx_encoder;

/* Takes the checkpoint and config->label: both go with the encoder, or here on an
 * error.  Errors: MX_ERR_FORMAT (a tensor missing, of the wrong shape or dtype: by
 * name), MX_ERR_NO_MEMORY. */
mx_status mx_encoder_open(mx_encoder *m, mx_device *dev, mx_checkpoint *file, mx_encoder_config *config, mx_dtype dtype, mx_error *err);
void      mx_encoder_close(mx_encoder *m);
/* What open() will take: weights, loading.  False: it overflows, or the file lacks its tables (open says which). */
bool      mx_encoder_footprint(mx_footprint *out, const mx_device *dev, const mx_checkpoint *file, const mx_encoder_config *config, mx_dtype dtype);

/* Packed texts; host memory. */
typedef struct mx_encoder_batch {
    int32_t        n_rows, n_texts;
    const int32_t *ids, *positions;  /* [n_rows]                    */
    const int32_t *begin;            /* [n_texts+1] first row, last n_rows */
    const int32_t *zeros;            /* [n_rows] token types        */
} mx_encoder_batch;

typedef struct mx_encoder_out {      /* in stream scratch           */
    mx_tensor hidden;                /* [n_rows,C]                  */
    mx_tensor pooled[MX_POOL_COUNT]; /* [n_texts,C]; those asked for */
    mx_tensor logits;                /* [n_texts,classes]           */
} mx_encoder_out;

/* pool: bit p asks for pooling p.  Asking for a pooler or classes that the file does
 * not have is an error of the stream; errors stick to it. */
void      mx_encoder_forward(const mx_encoder *m, mx_stream *s, const mx_encoder_batch *b, unsigned pool, bool classify, mx_encoder_out *out);
/* Scratch for such a batch, everything asked for; 0 when it overflows. */
size_t    mx_encoder_scratch(const mx_encoder *m, int32_t rows, int32_t texts);

#endif
