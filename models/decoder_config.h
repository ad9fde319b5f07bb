/* decoder_config.h - one description of a decoder-only transformer.
 *
 * It covers GPT-2 (learned positions, LayerNorm, GELU-tanh, Conv1D weights,
 * tied head) and the Llama family (RoPE, RMSNorm, SwiGLU, grouped-query
 * attention, optional biases as in Qwen2; Mistral's sliding window).  It is read
 * from a Hugging Face config.json or from GGUF metadata, and checked: every
 * field has a range, and heads, dims and sizes must agree.
 *
 * A model has one set of rotary frequencies for all lengths, since they are in
 * every key of the KV cache.  So "dynamic" scaling, which starts beyond
 * max_positions, leaves them as they are, and LongRoPE takes its short factors
 * and lowers max_positions to the original context. */
#ifndef MX_DECODER_CONFIG_H
#define MX_DECODER_CONFIG_H

#include "models/checkpoint.h"

typedef enum mx_rope_scaling {
    MX_ROPE_NONE, MX_ROPE_LINEAR, MX_ROPE_DYNAMIC, MX_ROPE_LLAMA3, MX_ROPE_YARN, MX_ROPE_LONGROPE
} mx_rope_scaling;

typedef enum mx_weight_names { MX_NAMES_HF_GPT2, MX_NAMES_HF_LLAMA, MX_NAMES_GGUF } mx_weight_names;

#define MX_DECODER_MAX_EOS 8
#define MX_DECODER_MAX_HEAD_DIM 256

typedef struct mx_decoder_config {
    char    architecture[32];      /* "gpt2", "llama", "qwen2", "mistral" */
    mx_weight_names names;
    int32_t layers, d_model, heads, kv_heads, head_dim, d_ff, vocab;
    int32_t max_positions;         /* the model's own context length       */
    float   norm_eps;
    bool    rms_norm;              /* false: LayerNorm with bias           */
    bool    gated;                 /* SwiGLU; false: one up projection     */
    mx_activation act;
    bool    learned_positions;     /* false: RoPE                          */
    bool    qkv_bias, out_bias, mlp_bias;
    bool    tied;                  /* lm_head is the embedding             */
    int32_t window;                /* sliding window, 0: none              */
    float   attention_scale;       /* 1/sqrt(head_dim) unless the config says otherwise */

    double  rope_theta;
    bool    rope_interleaved;      /* GGUF of the llama architecture       */
    mx_rope_scaling rope_scaling;
    double  rope_factor, rope_low_freq, rope_high_freq, rope_beta_fast, rope_beta_slow, rope_attention_factor;
    int32_t rope_original_positions;
    float   rope_freq[MX_DECODER_MAX_HEAD_DIM / 2];  /* inverse frequencies, scaling applied */
    float   rope_magnitude;                          /* of cos and sin; 1 but for YaRN and LongRoPE */

    int32_t bos, n_eos, eos[MX_DECODER_MAX_EOS];     /* -1: none; generation_config.json wins over config.json */
    int64_t parameters;                              /* for people         */
} mx_decoder_config;

/* Errors: MX_ERR_IO, MX_ERR_FORMAT (names the field, what it holds, what is
 * allowed), MX_ERR_ARG (an architecture that Merx does not have, by name). */
mx_status mx_decoder_config_folder(mx_decoder_config *c, const char *folder, mx_error *err);
mx_status mx_decoder_config_gguf(mx_decoder_config *c, const mx_checkpoint *gguf, mx_error *err);
/* From the text of config.json alone (fuzzed). */
mx_status mx_decoder_config_json(mx_decoder_config *c, const char *json, size_t len, const char *file, mx_error *err);

#endif
