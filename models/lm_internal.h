/* lm_internal.h - the trained decoder's memory; lm*.c only. */
#ifndef MX_LM_INTERNAL_H
#define MX_LM_INTERNAL_H

#include "models/lm.h"

/* One adapter beside (a part of) a product; a.data NULL: none. */
typedef struct lm_lora {
    mx_tensor a, da, b, db;           /* [rank,C], [O,rank]                             */
    int64_t   first, rows;            /* which outputs of the product                   */
    int       slot;                   /* where its x A^T is kept                        */
} lm_lora;

typedef struct lm_product {
    mx_tensor w, dw, b, db;           /* d: data NULL when it does not learn            */
    lm_lora   lora[3];
    int       n_lora;
} lm_product;

typedef struct lm_gain {
    mx_tensor g, dg, b, db;
} lm_gain;

typedef struct lm_layer {
    lm_gain    norm1, norm2;
    lm_product qkv, out, up, down;
} lm_layer;

struct mx_lm {
    mx_decoder_config config;
    mx_lm_options     opt;
    mx_device        *dev;
    char              folder[MX_PATH];
    mx_params         base, adapter;  /* adapter: of LoRA; then base does not learn     */
    mx_buffer         freq_memory;
    mx_tensor         rope_freq;
    lm_layer         *layer;
    lm_gain           final;
    lm_product        tokens, positions, head;      /* tied: head is tokens             */
    int               lora_slots;     /* of a layer                                     */
};

/* lm_params.c: the list of weights, views into the buffers, adapters. */
mx_status lm_list(mx_lm *m, mx_error *err);
void      lm_bind(mx_lm *m);
mx_status lm_init(mx_lm *m, mx_error *err);
mx_status lm_list_adapter(mx_lm *m, mx_error *err);
mx_status lm_save(const void *network, const char *folder, mx_error *err);
mx_status lm_load(void *network, const char *folder, mx_error *err);

/* lm_pass.c */
mx_status lm_run(void *network, mx_stream *s, mx_pass *p, mx_error *err);
size_t    lm_scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn);

#endif
