/* decoder.h - the forward pass of a decoder-only transformer.
 *
 * One list of ops serves GPT-2 and the Llama family; what differs stands in
 * mx_decoder_config.  Weights are packed once at open; embedding tables in a
 * plain dtype stay in the mapped file. */
#ifndef MX_DECODER_H
#define MX_DECODER_H

#include "models/decoder_config.h"
#include "models/footprint.h"
#include "models/kv.h"
#include "models/lora.h"

typedef struct mx_decoder_layer {
    mx_tensor norm1_gain, norm1_bias, norm2_gain, norm2_bias;    /* [1,C]                         */
    mx_weight qkv, out, up, down;        /* [(H+2G)D,C] [C,HD] [2F or F,C] [C,F]; up: gate above up */
    mx_tensor qkv_bias, out_bias, up_bias, down_bias;            /* data NULL: none               */
} mx_decoder_layer;

typedef struct mx_decoder {
    mx_decoder_config  config;
    mx_device         *dev;
    mx_checkpoint     *file;             /* owned: tables may point into it                      */
    mx_buffer          vectors;          /* gains and biases, f32                                */
    size_t             vectors_used;     /* floats                                               */
    float             *vector_stage;     /* host image of them, while loading                    */
    mx_buffer          token_memory, position_memory;   /* when a table could not stay in the file */
    mx_tensor          tokens, positions;               /* [V,C], [max_positions,C]              */
    mx_tensor          rope_freq;                       /* [1,D/2]                               */
    mx_tensor          final_gain, final_bias;
    mx_weight          head;             /* [V,C]                                                */
    mx_decoder_layer  *layer;
    mx_adapter        *adapter;          /* [MX_ADAPTERS], served beside the base; zeros: none.  Whoever fills one
                                            does it before the first batch that names it         */
    int32_t            adapter_rank;     /* the largest that scratch is kept for                 */
    mx_dtype           dtype;
    const char        *quantization;     /* name of the file's dtype of the matrices             */
    size_t             weight_bytes;     /* device memory of all of it, mapped tables left out   */
} mx_decoder;

/* Takes the checkpoint: it is closed with the decoder, or here on an error.
 * Errors: MX_ERR_FORMAT (a tensor missing, of the wrong shape or dtype: by
 * name), MX_ERR_NO_MEMORY, MX_ERR_ARG. */
mx_status mx_decoder_open(mx_decoder *m, mx_device *dev, mx_checkpoint *file, const mx_decoder_config *config,
                          mx_dtype dtype, mx_error *err);
void      mx_decoder_close(mx_decoder *m);
/* What open() will take: weights, loading.  False: it overflows, or the file lacks its tables (open says which). */
bool      mx_decoder_footprint(mx_footprint *out, const mx_device *dev, const mx_checkpoint *file, const mx_decoder_config *config, mx_dtype dtype);

/* Neighbouring rows that go through an adapter. */
typedef struct mx_adapter_span { int32_t adapter, first, n; } mx_adapter_span;

/* One turn's rows, packed; host memory. */
typedef struct mx_decoder_batch {
    int32_t        n_rows, n_seqs, n_logits;
    int32_t        table_cols;           /* pages of the longest sequence          */
    const int32_t *ids;                  /* [n_rows]                               */
    const int32_t *positions;            /* [n_rows]                               */
    const int32_t *slots;                /* [n_rows]     where k and v go          */
    const int32_t *at;                   /* [n_rows,2]   sequence, position        */
    const int32_t *pages;                /* [n_seqs,table_cols]                    */
    const int32_t *logit_rows;           /* [n_logits]   rows whose logits are wanted; may repeat */
    const mx_kv_copies *copies;          /* page copies to make first              */
    const mx_adapter_span *spans;        /* [n_spans]; rows in none are the base's */
    int32_t        n_spans;
    /* Or, instead of ids .. logit_rows: seats, and on the device what mx_seat_rows() makes them of. */
    const mx_seats *seats;               /* NULL: none                             */
    mx_tensor      rows, picks, wanted;  /* [n_rows,4], [n_logits,4], [n_logits,1] = logit_rows; i32 */
} mx_decoder_batch;

/* A batch on its way: what was uploaded, and the scratch of its pass.  n_logits 0: logits.data is NULL. */
typedef struct mx_decoder_turn {
    mx_tensor ids, positions, slots, at, pages, logit_rows;
    mx_tensor choices;                   /* with seats: the mx_sample_rows of the logits   */
    mx_tensor x, h, qkv, y, up, act;     /* residual stream; normed; ...                   */
    mx_tensor low;                       /* x A^T of an adapter                            */
    mx_tensor last, logits;              /* [n_logits,C]; [n_logits,V] f32                 */
    const mx_decoder_batch *batch;
    int32_t   layer;
} mx_decoder_turn;

/* Upload b (which must live until run() returns), copy pages, take the scratch. */
void      mx_decoder_begin(const mx_decoder *m, mx_stream *s, const mx_kv_cache *kv, const mx_decoder_batch *b, mx_decoder_turn *t);
/* The pass itself.  It depends on t's addresses and shapes and on b's spans, so it may stand in a section (device.h). */
void      mx_decoder_run(const mx_decoder *m, mx_stream *s, const mx_kv_cache *kv, mx_decoder_turn *t);

/* Both: logits[n_logits,V] f32 in stream scratch.  Errors stick to the stream. */
mx_tensor mx_decoder_forward(const mx_decoder *m, mx_stream *s, const mx_kv_cache *kv, const mx_decoder_batch *b);

/* Scratch that forward() needs for such a batch, logits included; 0 when it overflows. */
size_t    mx_decoder_scratch(const mx_decoder *m, int32_t rows, int32_t seqs, int32_t table_cols, int32_t logits);

#endif
