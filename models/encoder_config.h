/* encoder_config.h - one description of a BERT encoder (Devlin et al. 2018).
 *
 * Post-norm layers, learned positions and token types; read from a Hugging Face
 * config.json of model_type "bert" and checked: every field has a range, and
 * heads and sizes must agree. */
#ifndef MX_ENCODER_CONFIG_H
#define MX_ENCODER_CONFIG_H

#include "models/checkpoint.h"

#define MX_ENCODER_MAX_CLASSES 4096
#define MX_ENCODER_LABEL 64

typedef struct mx_encoder_config {
    int32_t layers, d_model, heads, head_dim, d_ff, vocab;
    int32_t max_positions;         /* the longest text, in tokens             */
    int32_t types;                 /* token types; texts here are all type 0  */
    float   norm_eps;
    mx_activation act;
    float   init_range;            /* standard deviation of fresh weights     */
    int32_t classes;               /* of a classification head: num_labels    */
    char  (*label)[MX_ENCODER_LABEL];   /* [classes] names; NULL: none were given  */
    int64_t parameters;            /* of the encoder without heads: for people */
} mx_encoder_config;

/* c->label is the caller's to free with mx_encoder_config_close.  Errors: MX_ERR_IO,
 * MX_ERR_FORMAT (field, what it holds, what is allowed), MX_ERR_ARG (another model_type). */
mx_status mx_encoder_config_folder(mx_encoder_config *c, const char *folder, mx_error *err);
/* From the text of config.json alone (fuzzed). */
mx_status mx_encoder_config_json(mx_encoder_config *c, const char *json, size_t len, const char *file, mx_error *err);
void      mx_encoder_config_close(mx_encoder_config *c);

#endif
