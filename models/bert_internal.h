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

/* bert_pass.c; attribution.c walks the same pass */
typedef struct bert_kept {                 /* what a layer's backward pass reads              */
    mx_tensor in, qkv, y, lse, sum1, mid, up, act, sum2;     /* sum: before its norm    */
} bert_kept;

typedef struct bert_work {
    mx_tensor ids, positions, types, begin, targets, rows;   /* rows: those that are judged */
    bert_kept *layer;                  /* [layers]; with recompute all but `in` are shared */
    mx_tensor e, x, branch;           /* embeddings before their norm; the last layer's output; what a dropped gradient was */
    mx_tensor last, pre, hidden, normed, logits, loss, sum, best, best_logprob;     /* a part of the head */
    mx_tensor dx, dh, dqkv, dy, dup, dact, dlast, dpre, dnormed;
} bert_work;

typedef struct bert_pass {
    const mx_bert *m;
    mx_stream     *s;
    bert_work w;
    uint64_t       seed;
    float          dropout;           /* 0 when nothing is learned                       */
    bool           learn;
    int32_t        layer;
    int32_t        longest;           /* rows of a sequence, of a batch that trains; 0: what is served */
} bert_pass;

typedef struct bert_part {
    mx_tensor rows, targets, loss, last, pre, hidden, normed, logits, dlast, dpre, dnormed, best, best_logprob;
    uint64_t  drop;
} bert_part;

void      bert_lay_out(const mx_bert *m, mx_stream *s, size_t *sum, bert_work *w, int64_t N, int64_t counted, bool learn);
void      bert_layers(bert_pass *p);                          /* from w.layer[0].in to w.x                 */
void      bert_layers_back(bert_pass *p, const mx_pass *q);   /* w.dx: of w.x before, of w.layer[0].in after; q NULL: nobody to tell */
bert_part bert_part_of(const bert_pass *p, int64_t at, int64_t n);
void      bert_head_forward(const bert_pass *p, const bert_part *t);
void      bert_head_backward(const bert_pass *p, const bert_part *t);      /* from the gradient in t->logits to w.dx */
mx_status bert_run(void *network, mx_stream *s, mx_pass *p, mx_error *err);
size_t    bert_scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn);

#endif
