/* bert.h - a BERT encoder that learns (Devlin et al. 2018).
 *
 * Two tasks: masked words (a share of the tokens is to be guessed: four fifths
 * of them show [MASK], a tenth another token, a tenth themselves), and classes
 * of texts (the first token through pooler and classifier).  Weights and names
 * are those of BertForMaskedLM and BertForSequenceClassification, so what is
 * saved opens in transformers.  Over packed sequences, without padding; with
 * `recompute` only each layer's input is kept (Chen et al. 2016). */
#ifndef MX_BERT_H
#define MX_BERT_H

#include "models/encoder_config.h"
#include "models/trainer.h"

typedef enum mx_bert_task { MX_BERT_MASKED_WORDS, MX_BERT_CLASSIFY } mx_bert_task;

typedef struct mx_bert_options {
    mx_bert_task task;
    mx_dtype compute;             /* MX_F32, or MX_BF16: products' inputs are rounded    */
    bool     scratch_init;        /* random weights instead of the folder's              */
    uint64_t seed;                /* of them                                             */
    bool     recompute;
    bool     frozen;              /* no gradients of weights: for attribution             */
    float    dropout;             /* of embeddings, of what branches add, of the pooled text */
    float    mask_rate;           /* masked words: share of tokens to guess              */
    const mx_tokenizer *tokenizer;      /* masked words: what is special; outlives the network */
    int32_t  classes;             /* classify; 0: as many as the folder's config says    */
    const char *const *labels;    /* [classes] names for the config, or NULL             */
} mx_bert_options;

typedef struct mx_bert mx_bert;

/* folder: config.json, weights (unless scratch_init), tokenizer files.  A head
 * that the file does not have begins fresh.  Errors: those of encoder_config.h and
 * checkpoint.h; MX_ERR_ARG names the option; MX_ERR_NO_MEMORY. */
mx_status mx_bert_open(mx_bert **out, mx_device *dev, const char *folder, const mx_bert_options *opt, mx_error *err);
void      mx_bert_close(mx_bert *m);
const mx_encoder_config *mx_bert_config(const mx_bert *m);
mx_params *mx_bert_params(mx_bert *m);
int        mx_bert_fresh(const mx_bert *m);       /* tensors of the head that the file lacked */

/* For the trainer; m outlives it.  extra: right guesses of the class. */
mx_learner mx_bert_learner(mx_bert *m);

#endif
