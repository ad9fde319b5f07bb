/* lora.h - low-rank adapters (Hu et al. 2021) in PEFT's files.
 *
 * Beside a product y = x w^T stands y += alpha/rank * (x A^T) B^T with A[rank,C]
 * and B[O,rank].  Trained by models/lm.h, merged into a base there, or served
 * beside it here: a batch may hold rows of the base and of several adapters, and
 * each row's bits are those it has alone. */
#ifndef MX_LORA_H
#define MX_LORA_H

#include "kernels/ops.h"
#include "models/decoder_config.h"

#define MX_ADAPTERS     64        /* beside one base                                      */
#define MX_ADAPTER_RANK 256       /* that a base which serves has room for                */
#define MX_LORA_TARGETS 7         /* q k v o gate up down; GPT-2: c_attn, attn c_proj, c_fc, mlp c_proj */

typedef struct mx_lora_options {
    int32_t  rank;                /* 0: no adapter                                       */
    float    alpha, dropout;
    unsigned targets;             /* bit i: target i of mx_lora_target(); 0: q and v (GPT-2: c_attn) */
} mx_lora_options;

/* "q_proj" ... of the model's family, or NULL beyond the last. */
const char *mx_lora_target(const mx_decoder_config *c, int i);
/* adapter_config.json.  Errors: MX_ERR_FORMAT (field), MX_ERR_ARG (an adapter of another kind, by name), MX_ERR_IO. */
mx_status   mx_lora_read(const char *folder, const mx_decoder_config *c, mx_lora_options *o, mx_error *err);

/* ---- served -------------------------------------------------------------------------- */

typedef struct mx_adapter_part {
    mx_weight a, b;               /* b holds alpha/rank; a.dev NULL: no such target      */
    int64_t   first;              /* of the product's outputs                            */
} mx_adapter_part;

typedef enum mx_adapter_place { MX_PLACE_QKV, MX_PLACE_OUT, MX_PLACE_UP, MX_PLACE_DOWN, MX_PLACES } mx_adapter_place;

typedef struct mx_adapter {
    char             name[64];
    int32_t          rank, layers;
    mx_adapter_part *part;        /* [layers][MX_LORA_TARGETS]                           */
    unsigned char    place[MX_LORA_TARGETS];    /* which product a target stands beside  */
    size_t           bytes;
} mx_adapter;

/* folder: adapter_config.json and adapter_model.safetensors, of a base with this
 * config.  f32.  Errors: those of mx_lora_read; MX_ERR_FORMAT (a tensor missing or of
 * another shape, by name); MX_ERR_ARG (a GGUF base: its rows lie otherwise). */
mx_status mx_adapter_open(mx_adapter *a, mx_device *dev, const mx_decoder_config *c, const char *name, const char *folder, mx_error *err);
void      mx_adapter_close(mx_adapter *a);
/* The device memory that open() will take. */
mx_status mx_adapter_bytes(size_t *out, const mx_device *dev, const mx_decoder_config *c, const char *folder, mx_error *err);

/* y += what the adapter adds at this place of the layer to x's product; low[N,>=rank] is scratch. */
void      mx_adapter_add(const mx_adapter *a, mx_stream *s, int32_t layer, mx_adapter_place place, mx_tensor y, mx_tensor x, mx_tensor low);
bool      mx_adapter_at(const mx_adapter *a, int32_t layer, mx_adapter_place place);

#endif
