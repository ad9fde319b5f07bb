/* decoder_config_internal.h - between the readers of a decoder's description
 * (config.json, GGUF metadata), its checks and its rotary frequencies.  Only
 * decoder_config*.c include it. */
#ifndef MX_DECODER_CONFIG_INTERNAL_H
#define MX_DECODER_CONFIG_INTERNAL_H

#include "models/decoder_config.h"

/* What fields may hold.  The products below stay far inside 63 bits: the
 * largest, layers * d_ff * d_model, is 2^47. */
#define MX_MAX_LAYERS    1024
#define MX_MAX_CHANNELS  (1 << 17)      /* d_model, and heads * head_dim */
#define MX_MAX_HEADS     4096
#define MX_MAX_FF        (1 << 20)
#define MX_MAX_VOCAB     (1 << 24)
#define MX_MAX_POSITIONS (1 << 30)

/* What some scalings need beyond mx_decoder_config, from the file. */
typedef struct mx_rope_extra {
    double mscale, mscale_all_dim;      /* YaRN; 0: not given                                */
    bool   round_range;                 /* YaRN's correction range in whole dims ("truncate") */
    bool   given_attention_factor;      /* else it follows from factor                       */
    float  divide[MX_DECODER_MAX_HEAD_DIM / 2];   /* LongRoPE's short_factor, GGUF's rope_freqs */
    int    n_divide;                    /* 0: none, else head_dim / 2                        */
} mx_rope_extra;

/* The families' limits and agreements between fields, then `parameters`. */
mx_status mx_decoder_config_check(mx_decoder_config *c, const char *file, mx_error *err);

/* rope_freq and rope_magnitude of a checked config.  Inconsistent: MX_ERR_FORMAT. */
mx_status mx_rope_frequencies(mx_decoder_config *c, const mx_rope_extra *extra, const char *file, mx_error *err);

#endif
