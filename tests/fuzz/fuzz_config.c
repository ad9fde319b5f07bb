/* fuzz_config.c - any text as config.json.  What is accepted keeps its word:
 * sizes in range, heads that agree, finite frequencies. */
#include "models/decoder_config.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mx_decoder_config c;
    mx_error err = {0};
    if (mx_decoder_config_json(&c, (const char *)data, size, "config.json", &err)) return 0;
    if (c.layers < 1 || c.vocab < 1 || c.d_model < 1 || c.d_ff < 1 || c.max_positions < 1 || c.parameters < 1 ||
        c.kv_heads < 1 || c.heads % c.kv_heads || c.head_dim % 2 || c.head_dim < 2 ||
        c.head_dim > MX_DECODER_MAX_HEAD_DIM || c.n_eos > MX_DECODER_MAX_EOS || !(c.norm_eps >= 0)) {
        __builtin_trap();
    }
    for (int i = 0; !c.learned_positions && i < c.head_dim / 2; i++) {
        if (!isfinite(c.rope_freq[i])) __builtin_trap();
    }
    return 0;
}
