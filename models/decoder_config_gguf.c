/* decoder_config_gguf.c - a decoder's description from GGUF metadata.
 *
 * Keys are "<architecture>.<field>" (ggml's docs/gguf.md).  Mistral's files say
 * "llama".  Their converter permutes the q and k rows of the llama architecture
 * so that channel pairs lie side by side; those of others stay apart. */
#include "models/decoder_config_internal.h"

#include <math.h>
#include <stdio.h>

typedef struct meta {
    const mx_checkpoint *gguf;
    const char *arch, *file;
    mx_status st; /* the first failure */
    mx_error *err;
} meta;

#define REFUSE(m, status, ...)                                                                                       \
    do {                                                                                                             \
        if (!(m)->st) (m)->st = mx_fail((m)->err, (status), __VA_ARGS__);                                            \
    } while (0)

static void key_of(const meta *m, const char *field, char *key, size_t room)
{
    snprintf(key, room, "%s.%s", m->arch, field);
}

/* fallback < 0: the key must be there. */
static int32_t int_key(meta *m, const char *field, int32_t fallback, int32_t least, int32_t most)
{
    char key[96];
    int64_t v;
    double real;
    size_t len;
    key_of(m, field, key, sizeof key);
    if (mx_gguf_int(m->gguf, key, &v)) {
        if (v >= least && v <= most) return (int32_t)v;
        REFUSE(m, MX_ERR_FORMAT, "%.250s: %s is %lld, allowed: an integer from %d to %d", m->file, key, (long long)v,
               least, most);
    } else if (mx_gguf_array_count(m->gguf, key) >= 0) {
        REFUSE(m, MX_ERR_ARG, "%.250s: %s: a value per layer is not supported", m->file, key);
    } else if (mx_gguf_float(m->gguf, key, &real) || mx_gguf_string(m->gguf, key, &len)) {
        REFUSE(m, MX_ERR_FORMAT, "%.250s: %s is not an integer", m->file, key);
    } else if (fallback < 0) {
        REFUSE(m, MX_ERR_FORMAT, "%.250s: %s is missing", m->file, key);
    }
    return fallback < least ? least : fallback;
}

static double real_key(meta *m, const char *field, double fallback, double least, double most)
{
    char key[96];
    double v;
    key_of(m, field, key, sizeof key);
    if (!mx_gguf_float(m->gguf, key, &v)) return fallback;
    if (v >= least && v <= most) return v;
    REFUSE(m, MX_ERR_FORMAT, "%.250s: %s is %g, allowed: a number from %g to %g", m->file, key, v, least, most);
    return fallback;
}

static bool text_is(const char *text, size_t len, const char *want)
{
    return text && len == strlen(want) && memcmp(text, want, len) == 0;
}

/* ---- rotary embedding ------------------------------------------------------------------- */

/* Factors that divide the frequencies: Llama 3.1's, LongRoPE's. */
static void read_factors(meta *m, const mx_decoder_config *c, const mx_blob *b, mx_rope_extra *extra)
{
    const int pairs = c->head_dim / 2;
    if (b->dtype != MX_FILE_F32 || b->rows != 1 || b->cols != pairs) {
        REFUSE(m, MX_ERR_FORMAT, "%.250s: offset %llu: %s is %s[%lld, %lld], wanted F32[%d]", m->file,
               (unsigned long long)b->offset, b->name, mx_file_dtype_name(b->dtype), (long long)b->rows,
               (long long)b->cols, pairs);
        return;
    }
    mx_blob_read(b, 0, 1, extra->divide);
    extra->n_divide = pairs;
    for (int i = 0; i < pairs; i++) {
        if (!(extra->divide[i] >= 1e-6f && extra->divide[i] <= 1e9f)) {
            REFUSE(m, MX_ERR_FORMAT, "%.250s: offset %llu: %s[%d] is %g, allowed: 1e-6 to 1e9", m->file,
                   (unsigned long long)b->offset, b->name, i, (double)extra->divide[i]);
        }
    }
}

static void read_scaling(meta *m, mx_decoder_config *c, mx_rope_extra *extra)
{
    char key[96];
    size_t len = 0;
    key_of(m, "rope.scaling.type", key, sizeof key);
    const char *type = mx_gguf_string(m->gguf, key, &len);
    const mx_blob *freqs = mx_checkpoint_find(m->gguf, "rope_freqs.weight");
    const mx_blob *factors = mx_checkpoint_find(m->gguf, "rope_factors_short.weight");
    c->rope_original_positions =
        int_key(m, "rope.scaling.original_context_length", c->max_positions, 2, MX_MAX_POSITIONS);
    c->rope_attention_factor = real_key(m, "rope.scaling.attn_factor", 1, 0, 1e6);
    double old = real_key(m, "rope.scale_linear", 0, 0, 1e9); /* before rope.scaling.* */
    c->rope_factor = real_key(m, "rope.scaling.factor", old > 0 ? old : 1, 0, 1e9);
    if (c->rope_factor <= 0) c->rope_factor = 1; /* 0 is "none" there      */
    if (!type || text_is(type, len, "none")) {
        c->rope_scaling = !type && old > 0 ? MX_ROPE_LINEAR : MX_ROPE_NONE;
    } else if (text_is(type, len, "linear")) {
        c->rope_scaling = MX_ROPE_LINEAR;
    } else if (text_is(type, len, "yarn")) {
        c->rope_scaling = MX_ROPE_YARN;
        c->rope_beta_fast = real_key(m, "rope.scaling.yarn_beta_fast", 32, 1e-6, 1e9);
        c->rope_beta_slow = real_key(m, "rope.scaling.yarn_beta_slow", 1, 1e-6, 1e9);
        extra->round_range = true;
        extra->given_attention_factor = true;
        if (c->rope_factor > 1) c->rope_attention_factor *= 1 + 0.1 * log(c->rope_factor);
    } else if (text_is(type, len, "longrope") && factors) {
        c->rope_scaling = MX_ROPE_LONGROPE;
        extra->given_attention_factor = true;
        read_factors(m, c, factors, extra);
    } else {
        REFUSE(m, MX_ERR_ARG, "%.250s: %s %.*s is not supported (none, linear, yarn, longrope with its factors are)",
               m->file, key, (int)(len < 40 ? len : 40), type);
    }
    if (freqs && c->rope_scaling != MX_ROPE_LONGROPE) {
        read_factors(m, c, freqs, extra);
        if (c->rope_scaling != MX_ROPE_NONE) return;
        c->rope_scaling = MX_ROPE_LLAMA3;
        for (int i = 0; i < extra->n_divide; i++) c->rope_factor = fmax(c->rope_factor, extra->divide[i]);
    }
}

static void read_rope(meta *m, mx_decoder_config *c)
{
    mx_rope_extra extra = {0};
    int32_t turned = int_key(m, "rope.dimension_count", c->head_dim, 1, MX_DECODER_MAX_HEAD_DIM);
    if (turned != c->head_dim) {
        REFUSE(m, MX_ERR_ARG, "%.250s: %s.rope.dimension_count %d of %d channels is not supported", m->file, m->arch,
               turned, c->head_dim);
    }
    c->rope_theta = real_key(m, "rope.freq_base", 10000, 1 + 1e-6, 1e15);
    c->rope_interleaved = strcmp(m->arch, "llama") == 0;
    read_scaling(m, c, &extra);
    if (!m->st) m->st = mx_rope_frequencies(c, &extra, m->file, m->err);
}

/* ---- the rest ------------------------------------------------------------------------------ */

static void read_ends(const meta *m, mx_decoder_config *c)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                       "tokenizer.ggml.eom_token_id"};
    int64_t id;
    c->bos = mx_gguf_int(m->gguf, "tokenizer.ggml.bos_token_id", &id) && id >= 0 && id < c->vocab ? (int32_t)id : -1;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        if (!mx_gguf_int(m->gguf, keys[i], &id) || id < 0 || id >= c->vocab) continue;
        bool there = false;
        for (int j = 0; j < c->n_eos; j++) there |= c->eos[j] == id;
        if (!there) c->eos[c->n_eos++] = (int32_t)id;
    }
}

/* The embedding's rows are the truth; a file without it is refused later, by who loads the weights. */
static int32_t read_vocab(meta *m)
{
    const mx_blob *table = mx_checkpoint_find(m->gguf, "token_embd.weight");
    int64_t n = table ? table->rows : mx_gguf_array_count(m->gguf, "tokenizer.ggml.tokens");
    if (n < 0) return int_key(m, "vocab_size", -1, 1, MX_MAX_VOCAB);
    if (n >= 1 && n <= MX_MAX_VOCAB) return (int32_t)n;
    REFUSE(m, MX_ERR_FORMAT, "%.250s: a vocabulary of %lld, allowed: 1 to %d", m->file, (long long)n, MX_MAX_VOCAB);
    return 1;
}

static void read_sizes(meta *m, mx_decoder_config *c)
{
    c->layers = int_key(m, "block_count", -1, 1, MX_MAX_LAYERS);
    c->d_model = int_key(m, "embedding_length", -1, 1, MX_MAX_CHANNELS);
    c->heads = int_key(m, "attention.head_count", -1, 1, MX_MAX_HEADS);
    c->kv_heads = int_key(m, "attention.head_count_kv", c->heads, 1, MX_MAX_HEADS);
    c->d_ff = int_key(m, "feed_forward_length", -1, 1, MX_MAX_FF);
    c->max_positions = int_key(m, "context_length", -1, 1, MX_MAX_POSITIONS);
    c->vocab = read_vocab(m);
    c->head_dim = int_key(m, "attention.key_length", c->d_model / c->heads, 1, MX_DECODER_MAX_HEAD_DIM);
    if (c->head_dim == c->d_model / c->heads && c->d_model % c->heads) {
        REFUSE(m, MX_ERR_FORMAT, "%.250s: embedding_length %d is not a multiple of head_count %d", m->file,
               c->d_model, c->heads);
    }
    if (int_key(m, "attention.value_length", c->head_dim, 1, MX_MAX_CHANNELS) != c->head_dim) {
        REFUSE(m, MX_ERR_ARG, "%.250s: values of another length than keys are not supported", m->file);
    }
    if (int_key(m, "expert_count", 0, 0, INT32_MAX) > 0) {
        REFUSE(m, MX_ERR_ARG, "%.250s: mixtures of experts are not supported", m->file);
    }
    c->attention_scale = (float)real_key(m, "attention.scale", 0, 0, 1e6); /* 0: 1/sqrt(head_dim) */
    int32_t window = int_key(m, "attention.sliding_window", 0, 0, MX_MAX_POSITIONS);
    c->window = window < c->max_positions ? window : 0;
}

mx_status mx_decoder_config_gguf(mx_decoder_config *c, const mx_checkpoint *gguf, mx_error *err)
{
    static const char *const supported[] = {"gpt2", "llama", "qwen2"};
    const mx_blob *any = mx_checkpoint_at(gguf, 0);
    meta m = {.gguf = gguf, .file = any ? any->file : "GGUF", .err = err};
    size_t len = 0;
    const char *arch = mx_gguf_string(gguf, "general.architecture", &len);
    *c = (mx_decoder_config){.bos = -1};
    if (!arch) return mx_fail(err, MX_ERR_FORMAT, "%.250s: general.architecture is missing", m.file);
    for (size_t i = 0; i < sizeof supported / sizeof *supported; i++) {
        if (text_is(arch, len, supported[i])) m.arch = supported[i];
    }
    if (!m.arch) {
        return mx_fail(err, MX_ERR_ARG, "%.250s: architecture %.*s is not supported (gpt2, llama, qwen2 are)", m.file,
                       (int)(len < 60 ? len : 60), arch);
    }
    bool gpt2 = strcmp(m.arch, "gpt2") == 0;
    snprintf(c->architecture, sizeof c->architecture, "%s", m.arch);
    c->names = MX_NAMES_GGUF;
    c->rms_norm = c->gated = !gpt2;
    c->learned_positions = gpt2;
    c->act = gpt2 ? MX_ACT_GELU_TANH : MX_ACT_SILU;
    read_sizes(&m, c);
    c->norm_eps = (float)real_key(&m, gpt2 ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon",
                                  gpt2 ? 1e-5 : 1e-6, 0, 1);
    c->tied = !mx_checkpoint_find(gguf, "output.weight");
    c->qkv_bias = mx_checkpoint_find(gguf, gpt2 ? "blk.0.attn_qkv.bias" : "blk.0.attn_q.bias");
    c->out_bias = mx_checkpoint_find(gguf, "blk.0.attn_output.bias");
    c->mlp_bias = mx_checkpoint_find(gguf, "blk.0.ffn_down.bias");
    read_ends(&m, c);
    if (!m.st) m.st = mx_decoder_config_check(c, m.file, err);
    if (!m.st && !gpt2) read_rope(&m, c);
    return m.st;
}
