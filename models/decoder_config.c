/* decoder_config.c - a decoder's description from Hugging Face's config.json.
 *
 * Absent fields take the defaults of transformers' configuration class of the
 * family.  Reading is sticky: the first wrong field is what the error says. */
#include "models/decoder_config_internal.h"

#include "models/config_fields.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_CONFIG (4u << 20)
#define SUPPORTED  "gpt2, llama, qwen2, mistral"

/* ---- end and begin of a text ----------------------------------------------------------- */

/* -1 stands for none in some configs; ids that the vocabulary does not have can
 * never come and are dropped, as small test models carry their big brothers'. */
static int32_t id_value(const mx_fields *f, const char *name, const json_t *v)
{
    double x = json_number_value(v);
    if (json_is_integer(v) && x >= -1 && x < MX_MAX_VOCAB) return (int32_t)x;
    mx_field_refuse(f, name, v, "a token's id");
    return -1;
}

static void read_ends(const mx_fields *f, mx_decoder_config *c, int32_t default_bos, int32_t default_eos)
{
    static const char bos[] = "bos_token_id", eos[] = "eos_token_id";
    const json_t *begin = json_object_get(f->object, bos), *end = json_object_get(f->object, eos);
    int32_t id = begin ? (json_is_null(begin) ? -1 : id_value(f, bos, begin)) : default_bos;
    c->bos = id < c->vocab ? id : -1;
    c->n_eos = 0;
    size_t n = json_is_array(end) ? json_array_size(end) : 1;
    if (n > MX_DECODER_MAX_EOS) mx_field_refuse(f, eos, end, "at most 8 ids");
    for (size_t i = 0; i < n && !*f->st; i++) {
        const json_t *v = json_is_array(end) ? json_array_get(end, i) : end;
        id = v ? (json_is_null(v) ? -1 : id_value(f, eos, v)) : default_eos;
        if (id >= 0 && id < c->vocab) c->eos[c->n_eos++] = id;
    }
}

/* ---- rotary embedding --------------------------------------------------------------------- */

static void read_short_factors(const mx_fields *f, const mx_decoder_config *c, mx_rope_extra *extra)
{
    const json_t *list = mx_field(f, "short_factor");
    size_t n = json_array_size(list);
    if (!n || n != (size_t)c->head_dim / 2 || n > sizeof extra->divide / sizeof *extra->divide) {
        mx_field_refuse(f, "short_factor", list, "an array of head_dim / 2 numbers");
        return;
    }
    for (size_t i = 0; i < n; i++) {
        double x = json_number_value(json_array_get(list, i));
        if (!(x >= 1e-6 && x <= 1e9))
            mx_field_refuse(f, "short_factor", json_array_get(list, i), "a number from 1e-6 to 1e9");
        extra->divide[i] = (float)x;
    }
    extra->n_divide = (int)n;
}

static double required_factor(const mx_fields *f, const char *name)
{
    if (!mx_field(f, name)) MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: %s%s is missing", f->file, f->prefix, name);
    return mx_field_real(f, name, 1, 1e-6, 1e9);
}

/* Where transformers takes it from when the field is absent: max_positions' ratio. */
static double derived_factor(const mx_fields *f, const mx_decoder_config *c)
{
    double ratio = (double)c->max_positions / c->rope_original_positions;
    return mx_field_real(f, "factor", ratio, 1e-6, 1e9);
}

static bool rope_type(const mx_fields *f, mx_rope_scaling *type)
{
    static const struct {
        const char *name;
        mx_rope_scaling type;
    } known[] = {
        {"default", MX_ROPE_NONE},  {"linear", MX_ROPE_LINEAR}, {"dynamic", MX_ROPE_DYNAMIC},
        {"llama3", MX_ROPE_LLAMA3}, {"yarn", MX_ROPE_YARN},     {"longrope", MX_ROPE_LONGROPE},
        {"su", MX_ROPE_LONGROPE},
    };
    const char *name = mx_field_text(f, "rope_type", NULL);
    if (!name) name = mx_field_text(f, "type", "default");
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(name, known[i].name) == 0) {
            *type = known[i].type;
            return true;
        }
    }
    MX_REFUSE(f, MX_ERR_ARG,
           "%.250s: %srope_type %.60s is not supported (default, linear, dynamic, llama3, yarn, longrope are)",
           f->file, f->prefix, name);
    return false;
}

static void read_scaling(const mx_fields *f, const mx_fields *top, mx_decoder_config *c, mx_rope_extra *extra)
{
    static const char original[] = "original_max_position_embeddings";
    if (!rope_type(f, &c->rope_scaling)) return;
    const mx_fields *where = mx_field(top, original) ? top : f; /* transformers' own precedence */
    c->rope_original_positions = mx_field_int(where, original, c->max_positions, 2, MX_MAX_POSITIONS);
    extra->given_attention_factor = mx_field(f, "attention_factor");
    c->rope_attention_factor = 1;
    switch (c->rope_scaling) {
    case MX_ROPE_NONE: break;
    case MX_ROPE_LINEAR:
    case MX_ROPE_DYNAMIC: c->rope_factor = required_factor(f, "factor"); break;
    case MX_ROPE_LLAMA3:
        c->rope_factor = required_factor(f, "factor");
        c->rope_low_freq = required_factor(f, "low_freq_factor");
        c->rope_high_freq = required_factor(f, "high_freq_factor");
        if (c->rope_high_freq <= c->rope_low_freq) {
            mx_field_refuse(f, "high_freq_factor", mx_field(f, "high_freq_factor"), "more than low_freq_factor");
        }
        break;
    case MX_ROPE_YARN:
        c->rope_factor = derived_factor(f, c);
        c->rope_beta_fast = mx_field_real(f, "beta_fast", 32, 0, 1e9);
        c->rope_beta_slow = mx_field_real(f, "beta_slow", 1, 0, 1e9);
        if (c->rope_beta_fast == 0) c->rope_beta_fast = 32;
        if (c->rope_beta_slow == 0) c->rope_beta_slow = 1;
        extra->mscale = mx_field_real(f, "mscale", 0, -1e6, 1e6);
        extra->mscale_all_dim = mx_field_real(f, "mscale_all_dim", 0, -1e6, 1e6);
        extra->round_range = mx_field_bool(f, "truncate", true);
        c->rope_attention_factor = mx_field_real(f, "attention_factor", 1, 0, 1e6);
        break;
    case MX_ROPE_LONGROPE:
        c->rope_factor = derived_factor(f, c);
        read_short_factors(f, c, extra);
        c->rope_attention_factor = mx_field_real(f, "attention_factor", 1, 0, 1e6);
        break;
    }
}

/* Old configs hold rope_theta beside rope_scaling; transformers 5 writes
 * rope_parameters with both. */
static void read_rope(const mx_fields *f, mx_decoder_config *c)
{
    mx_rope_extra extra = {0};
    bool old = json_object_size(mx_field(f, "rope_scaling")) > 0;
    mx_fields rope = *f;
    rope.object = old ? mx_field(f, "rope_scaling") : mx_field(f, "rope_parameters");
    rope.prefix = old ? "rope_scaling." : "rope_parameters.";
    if (rope.object && !json_is_object(rope.object)) mx_field_refuse(f, "rope_parameters", rope.object, "an object");
    if (mx_field(f, "rope_scaling") && !json_is_object(mx_field(f, "rope_scaling"))) {
        mx_field_refuse(f, "rope_scaling", mx_field(f, "rope_scaling"), "an object");
    }
    if (json_is_object(mx_field(&rope, "full_attention")) || json_is_object(mx_field(&rope, "sliding_attention"))) {
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: rope_parameters by layer type are not supported", f->file);
    }
    const mx_fields *theta = mx_field(&rope, "rope_theta") ? &rope : f;
    c->rope_theta = mx_field_real(theta, "rope_theta", 10000, 1 + 1e-6, 1e15);
    const mx_fields *partial = mx_field(&rope, "partial_rotary_factor") ? &rope : f;
    if (mx_field_real(partial, "partial_rotary_factor", 1, 0, 1) != 1) {
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: partial_rotary_factor below 1 is not supported", f->file);
    }
    read_scaling(&rope, f, c, &extra);
    if (!*f->st) *f->st = mx_rope_frequencies(c, &extra, f->file, f->err);
}

/* ---- the sliding window ---------------------------------------------------------------------- */

/* One window for all layers, or none: what Merx computes.  Windows that the
 * context cannot reach are none. */
static void read_window(const mx_fields *f, mx_decoder_config *c, int32_t fallback)
{
    const json_t *given = json_object_get(f->object, "sliding_window"), *types = mx_field(f, "layer_types");
    int32_t sliding = 0,
            window = given && json_is_null(given) ? 0 : mx_field_int(f, "sliding_window", fallback, 0, MX_MAX_POSITIONS);
    bool qwen2 = strcmp(c->architecture, "qwen2") == 0;
    if (qwen2 && !mx_field_bool(f, "use_sliding_window", false)) window = 0;
    if (json_is_array(types)) {
        for (size_t i = 0; i < json_array_size(types); i++) {
            const char *type = json_string_value(json_array_get(types, i));
            if (!type || (strcmp(type, "sliding_attention") != 0 && strcmp(type, "full_attention") != 0)) {
                mx_field_refuse(f, "layer_types", json_array_get(types, i), "full_attention, sliding_attention");
            } else if (strcmp(type, "sliding_attention") == 0) {
                sliding++;
            }
        }
        if (json_array_size(types) != (size_t)c->layers) mx_field_refuse(f, "layer_types", types, "one entry per layer");
    } else if (qwen2) {
        int32_t full = mx_field_int(f, "max_window_layers", 28, 0, INT32_MAX);
        sliding = full < c->layers ? c->layers - full : 0;
    } else {
        sliding = c->layers;
    }
    if (!sliding || window >= c->max_positions) window = 0;
    if (window && sliding != c->layers) {
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: a sliding window in %d of %d layers is not supported", f->file, sliding,
               c->layers);
    }
    c->window = window;
}

/* ---- families --------------------------------------------------------------------------------- */

static void read_gpt2(const mx_fields *f, mx_decoder_config *c)
{
    c->names = MX_NAMES_HF_GPT2;
    c->layers = mx_field_int(f, "n_layer", 12, 1, MX_MAX_LAYERS);
    c->d_model = mx_field_int(f, "n_embd", 768, 1, MX_MAX_CHANNELS);
    c->heads = c->kv_heads = mx_field_int(f, "n_head", 12, 1, MX_MAX_HEADS);
    c->d_ff = mx_field_int(f, "n_inner", 4 * c->d_model, 1, MX_MAX_FF);
    c->vocab = mx_field_int(f, "vocab_size", 50257, 1, MX_MAX_VOCAB);
    c->max_positions = mx_field_int(f, "n_positions", 1024, 1, MX_MAX_POSITIONS);
    c->norm_eps = (float)mx_field_real(f, "layer_norm_epsilon", 1e-5, 0, 1);
    c->act = mx_field_activation(f, "activation_function", "gelu_new");
    c->learned_positions = c->qkv_bias = c->out_bias = c->mlp_bias = true;
    c->tied = mx_field_bool(f, "tie_word_embeddings", true);
    if (c->d_model % c->heads) {
        MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: n_embd %d is not a multiple of n_head %d", f->file, c->d_model, c->heads);
    }
    c->head_dim = c->d_model / c->heads;
    c->attention_scale = mx_field_bool(f, "scale_attn_weights", true) ? 0 : 1;
    if (mx_field_bool(f, "scale_attn_by_inverse_layer_idx", false)) {
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: scale_attn_by_inverse_layer_idx is not supported", f->file);
    }
    if (mx_field_bool(f, "add_cross_attention", false)) {
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: add_cross_attention is not supported", f->file);
    }
    read_ends(f, c, 50256, 50256);
}

/* What the configuration classes of the Llama family differ in. */
typedef struct family {
    const char *name;
    int32_t vocab, d_ff, kv_heads, max_positions, window, bos, eos; /* kv_heads 0: as many as heads */
} family;
static const family families[] = {
    {"llama", 32000, 11008, 0, 2048, 0, 1, 2},
    {"qwen2", 151936, 22016, 32, 32768, 4096, -1, -1},
    {"mistral", 32000, 14336, 8, 131072, 4096, 1, 2},
};

static void read_llama(const mx_fields *f, mx_decoder_config *c, const family *of)
{
    c->names = MX_NAMES_HF_LLAMA;
    c->rms_norm = c->gated = true;
    c->layers = mx_field_int(f, "num_hidden_layers", 32, 1, MX_MAX_LAYERS);
    c->d_model = mx_field_int(f, "hidden_size", 4096, 1, MX_MAX_CHANNELS);
    c->heads = mx_field_int(f, "num_attention_heads", 32, 1, MX_MAX_HEADS);
    /* an explicit null is "as many as heads"; an absent field the family's default */
    bool silent = !json_object_get(f->object, "num_key_value_heads") && of->kv_heads;
    c->kv_heads = mx_field_int(f, "num_key_value_heads", silent ? of->kv_heads : c->heads, 1, MX_MAX_HEADS);
    if (!mx_field(f, "head_dim") && c->d_model % c->heads) {
        MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: hidden_size %d is not a multiple of num_attention_heads %d", f->file,
               c->d_model, c->heads);
    }
    c->head_dim = mx_field_int(f, "head_dim", c->d_model / c->heads, 1, MX_DECODER_MAX_HEAD_DIM);
    c->d_ff = mx_field_int(f, "intermediate_size", of->d_ff, 1, MX_MAX_FF);
    c->vocab = mx_field_int(f, "vocab_size", of->vocab, 1, MX_MAX_VOCAB);
    c->max_positions = mx_field_int(f, "max_position_embeddings", of->max_positions, 1, MX_MAX_POSITIONS);
    c->norm_eps = (float)mx_field_real(f, "rms_norm_eps", 1e-6, 0, 1);
    c->act = mx_field_activation(f, "hidden_act", "silu");
    c->tied = mx_field_bool(f, "tie_word_embeddings", false);
    if (strcmp(of->name, "llama") == 0) {
        c->qkv_bias = c->out_bias = mx_field_bool(f, "attention_bias", false);
        c->mlp_bias = mx_field_bool(f, "mlp_bias", false);
    } else {
        c->qkv_bias = strcmp(of->name, "qwen2") == 0;
        read_window(f, c, of->window);
    }
    read_ends(f, c, of->bos, of->eos);
}

static void read_family(const mx_fields *f, mx_decoder_config *c)
{
    const char *type = mx_field_text(f, "model_type", NULL);
    const json_t *packed = mx_field(f, "quantization_config");
    const family *of = NULL;
    if (!type) MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: model_type is missing", f->file);
    for (size_t i = 0; type && i < sizeof families / sizeof *families; i++) {
        if (strcmp(type, families[i].name) == 0) of = &families[i];
    }
    if (type && !of && strcmp(type, "gpt2") != 0) {
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: model_type %.60s is not supported (%s are)", f->file, type, SUPPORTED);
    }
    if (packed) {
        const char *method = json_string_value(json_object_get(packed, "quant_method"));
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: quantization_config: weights packed by %.60s are not supported", f->file,
               method ? method : "another program");
    }
    if (*f->st) return;
    snprintf(c->architecture, sizeof c->architecture, "%s", type);
    if (of) {
        read_llama(f, c, of);
    } else {
        read_gpt2(f, c);
    }
    if (!*f->st) *f->st = mx_decoder_config_check(c, f->file, f->err);
    if (of && !*f->st) read_rope(f, c);
}

/* ---- what all families must satisfy ------------------------------------------------------------- */

static int64_t count_parameters(const mx_decoder_config *c)
{
    const int64_t d = c->d_model, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim;
    const int64_t norm = c->rms_norm ? d : 2 * d, table = (int64_t)c->vocab * d;
    int64_t layer = 2 * norm + d * (q + 2 * kv) + q * d + (c->gated ? 3 : 2) * d * c->d_ff;
    if (c->qkv_bias) layer += q + 2 * kv;
    if (c->out_bias) layer += d;
    if (c->mlp_bias) layer += (c->gated ? 2 : 1) * (int64_t)c->d_ff + d;
    return table + (c->learned_positions ? (int64_t)c->max_positions * d : 0) + c->layers * layer + norm +
           (c->tied ? 0 : table);
}

mx_status mx_decoder_config_check(mx_decoder_config *c, const char *file, mx_error *err)
{
    if (c->head_dim < 2 || c->head_dim % 2 || c->head_dim > MX_DECODER_MAX_HEAD_DIM) {
        return mx_fail(err, MX_ERR_FORMAT, "%.250s: head_dim is %d, allowed: an even number from 2 to %d", file,
                       c->head_dim, MX_DECODER_MAX_HEAD_DIM);
    }
    if (c->heads % c->kv_heads) {
        return mx_fail(err, MX_ERR_FORMAT, "%.250s: %d heads cannot share %d key/value heads", file, c->heads,
                       c->kv_heads);
    }
    if ((int64_t)c->heads * c->head_dim > MX_MAX_CHANNELS) {
        return mx_fail(err, MX_ERR_FORMAT, "%.250s: %d heads of %d channels: more than %d in all", file, c->heads,
                       c->head_dim, MX_MAX_CHANNELS);
    }
    if (c->attention_scale == 0) c->attention_scale = (float)(1 / sqrt(c->head_dim));
    c->rope_magnitude = 1;
    c->rope_attention_factor = 1;
    c->parameters = count_parameters(c);
    return MX_OK;
}

/* ---- files ---------------------------------------------------------------------------------------- */

mx_status mx_decoder_config_json(mx_decoder_config *c, const char *json, size_t len, const char *file, mx_error *err)
{
    json_error_t why;
    mx_status st = MX_OK;
    *c = (mx_decoder_config){.bos = -1};
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &why);
    mx_fields f = {.object = root, .prefix = "", .file = file, .st = &st, .err = err};
    if (!root) {
        st = mx_fail(err, MX_ERR_FORMAT, "%.250s: offset %d: not JSON: %s", file, why.position, why.text);
    } else if (!json_is_object(root)) {
        st = mx_fail(err, MX_ERR_FORMAT, "%.250s: offset 0: not an object", file);
    } else {
        read_family(&f, c);
    }
    json_decref(root);
    return st;
}

/* generation_config.json says where texts begin and end when it says anything. */
static mx_status read_generation(mx_decoder_config *c, const char *path, mx_error *err)
{
    char *text;
    size_t len;
    json_error_t why;
    mx_status st = MX_OK;
    MX_TRY(mx_read_file(path, MAX_CONFIG, &text, &len, err));
    json_t *root = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    mx_fields f = {.object = root, .prefix = "", .file = path, .st = &st, .err = err};
    mx_decoder_config said = *c;
    if (!root) {
        st = mx_fail(err, MX_ERR_FORMAT, "%.250s: offset %d: not JSON: %s", path, why.position, why.text);
    } else {
        read_ends(&f, &said, -1, -1);
        if (mx_field(&f, "bos_token_id")) c->bos = said.bos;
        if (mx_field(&f, "eos_token_id")) {
            c->n_eos = said.n_eos;
            memcpy(c->eos, said.eos, sizeof c->eos);
        }
    }
    json_decref(root);
    free(text);
    return st;
}

mx_status mx_decoder_config_folder(mx_decoder_config *c, const char *folder, mx_error *err)
{
    char *path = NULL, *generation = NULL, *text = NULL;
    size_t len;
    mx_status st;
    *c = (mx_decoder_config){.bos = -1};
    if (asprintf(&path, "%s/config.json", folder) < 0) path = NULL;
    if (asprintf(&generation, "%s/generation_config.json", folder) < 0) generation = NULL;
    if (!path || !generation) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
        goto done;
    }
    MX_TRY_GOTO(st, mx_read_file(path, MAX_CONFIG, &text, &len, err), done);
    MX_TRY_GOTO(st, mx_decoder_config_json(c, text, len, path, err), done);
    if (access(generation, F_OK) == 0) st = read_generation(c, generation, err);
done:
    free(text);
    free(generation);
    free(path);
    return st;
}
