/* bert_internal.h - the trained encoder's memory; bert*.c only. */
#ifndef MX_BERT_INTERNAL_H
#define MX_BERT_INTERNAL_H

#include "models/bert.h"

typedef struct bert_product {
    int       at, parts;              /* in the list: weights, then as many biases */
    mx_tensor w, dw, b, db;
} bert_product;

typedef struct bert_gain {
    int       at;
    mx_tensor g, dg, b, db;
} bert_gain;

typedef struct bert_layer {
    bert_product qkv, out, up, down;
    bert_gain    norm1, norm2;
} bert_layer;

struct mx_bert {
    mx_encoder_config config;
    mx_bert_options   opt;
    mx_device        *dev;
    char              folder[MX_PATH];
    mx_params         params;
    bert_product      tokens, positions, types;   /* tables: weights only                     */
    bert_gain         norm;                       /* of the embeddings                        */
    bert_layer       *layer;
    size_t           *layer_first;                /* [layers+1] where its gradients lie       */
    int               first_head;                 /* in the list                              */
    int               fresh;
    bert_product      transform;                  /* masked words' transform, or the pooler   */
    bert_gain         head_norm;                  /* masked words                             */
    bert_product      head;                       /* classifier; masked words: bias only, the table is shared */
    int32_t           mask, n_ids;                /* masked words: [MASK]; ids of the vocabulary */
};

/* bert_params.c */
mx_status bert_list(mx_bert *m, mx_error *err);
void      bert_bind(mx_bert *m);
mx_status bert_init(mx_bert *m, mx_error *err);
mx_status bert_read(mx_bert *m, mx_error *err);
mx_status bert_save(const void *network, const char *folder, mx_error *err);
mx_status bert_load(void *network, const char *folder, mx_error *err);

/* bert_pass.c */
mx_status bert_run(void *network, mx_stream *s, mx_pass *p, mx_error *err);
size_t    bert_scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn);

#endif
