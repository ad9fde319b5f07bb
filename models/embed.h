/* embed.h - texts to vectors and classes, as jobs: one text is one mx_job.
 *
 * An embedder is one encoder ready to serve on one device: weights, tokenizer and
 * a lane of the scheduler, "<name>.embed", of a later version "<name>@<version>.embed".  A turn takes as many texts as its rows
 * hold, packed without padding; each text is done in one turn, and its numbers do
 * not depend on its company.
 *
 * A folder is that of a BERT, or of sentence-transformers, whose modules say how
 * tokens become one vector and whether it is normalized.
 *
 * THREADS: open and submit may be called from any thread; done() comes from the
 * device's worker. */
#ifndef MX_EMBED_H
#define MX_EMBED_H

#include "models/encoder.h"
#include "models/tokenizer.h"
#include "runtime/scheduler.h"

typedef struct mx_embedder mx_embedder;

typedef struct mx_embedder_options {
    mx_dtype dtype;               /* of the weights: MX_F32, MX_BF16, MX_I8                 */
    int32_t  max_len;             /* tokens of a text; 0: what the model was made for       */
    int32_t  max_batched_tokens;  /* rows of one turn (at least one text's)                 */
    int32_t  max_queued;          /* texts waiting; beyond it MX_ERR_BUSY                   */
    int32_t  version;             /* of the name, from 1 on; 0 is 1                         */
} mx_embedder_options;
mx_embedder_options mx_embedder_defaults(void);

typedef struct mx_embedder_info {
    const char *name, *path, *quantization, *lane;
    int32_t  version;
    mx_dtype dtype;
    int64_t  parameters;
    int32_t  layers, d_model, heads, vocab, max_len;
    int32_t  classes;             /* 0: no classification head                              */
    bool     pooler, normalize;   /* normalize: what the folder says                        */
    mx_pooling pooling;           /* what the folder says                                   */
    size_t   weight_bytes, scratch_bytes;
    double   load_seconds;
} mx_embedder_info;

/* Whether path is the folder of an encoder (its config.json, or sentence-transformers' modules.json, says so).
 * Errors: MX_ERR_NO_MEMORY. */
mx_status mx_is_encoder(const char *path, bool *is, mx_error *err);

/* The scheduler, or the lane, must be closed before the embedder.  Errors: those of checkpoint.h,
 * tokenizer.h, encoder_config.h; MX_ERR_FORMAT (tensors, modules: by name); MX_ERR_ARG. */
mx_status mx_embedder_open(mx_embedder **out, const char *name, const char *path, mx_device *devs, int device, mx_scheduler *sched,
                           const mx_embedder_options *opt, mx_error *err);
void      mx_embedder_close(mx_embedder *e);
/* What open() will take; reads the file's header and its description, no weight.  Errors: as above. */
mx_status mx_embedder_footprint(mx_footprint *out, const char *path, const mx_device *dev, const mx_embedder_options *opt, mx_error *err);
void      mx_embedder_info_get(const mx_embedder *e, mx_embedder_info *out);
const char *mx_embedder_label(const mx_embedder *e, int32_t class_index);      /* "LABEL_1" when the model names none */
const mx_tokenizer *mx_embedder_tokenizer(const mx_embedder *e);

/* ---- a request -------------------------------------------------------------------- */

typedef struct mx_embedding_request {
    bool       embed, classify;   /* what is wanted; at least one                           */
    mx_pooling pooling;           /* embed                                                  */
    bool       normalize;         /* embed: to Euclidean length 1                           */
    bool       truncate;          /* a longer text is cut; else MX_ERR_ARG                  */
} mx_embedding_request;
mx_embedding_request mx_embedding_defaults(const mx_embedder *e);   /* embed, as the folder says */

typedef struct mx_embedding mx_embedding;
typedef void mx_embedding_done(mx_embedding *m, const mx_error *err);

/* Errors: MX_ERR_ARG (too long, nothing asked for), MX_ERR_STATE (the model has no
 * pooler or classes), MX_ERR_NO_MEMORY. */
mx_status mx_embedding_open(mx_embedding **out, mx_embedder *e, const char *text, size_t len, const mx_embedding_request *q,
                            mx_embedding_done *done, void *user, uint64_t deadline_ns, mx_error *err);
void      mx_embedding_close(mx_embedding *m);        /* before submit, or in or after done() */
/* As mx_scheduler_submit: on MX_OK the worker owns it until done(), which comes once. */
mx_status mx_embedding_submit(mx_embedding *m, mx_error *err);
void      mx_embedding_cancel(mx_embedding *m);       /* any thread, between submit and done() */

mx_job      *mx_embedding_job(mx_embedding *m);       /* its priority and tenant, before submit */
void        *mx_embedding_user(const mx_embedding *m);
int32_t      mx_embedding_tokens(const mx_embedding *m);
const float *mx_embedding_values(const mx_embedding *m);          /* [d_model]; NULL: not asked for */
const float *mx_embedding_probabilities(const mx_embedding *m);   /* [classes]; NULL: not asked for */

#endif
