/* lm_params.c - the names and places of a decoder's weights, and its files. */
#include "models/lm_internal.h"

#include "models/model_files.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct names {
    const char *tokens, *positions, *norm1, *norm2, *final, *head;
    const char *qkv[3], *out, *up[2], *down;           /* qkv: one name or three; up: one, or gate and up */
} names;

static const names gpt2 = {"transformer.wte", "transformer.wpe", "transformer.h.%d.ln_1", "transformer.h.%d.ln_2", "transformer.ln_f", "lm_head",
                           {"transformer.h.%d.attn.c_attn"}, "transformer.h.%d.attn.c_proj", {"transformer.h.%d.mlp.c_fc"},
                           "transformer.h.%d.mlp.c_proj"};
static const names llama = {"model.embed_tokens", NULL, "model.layers.%d.input_layernorm", "model.layers.%d.post_attention_layernorm",
                            "model.norm", "lm_head",
                            {"model.layers.%d.self_attn.q_proj", "model.layers.%d.self_attn.k_proj", "model.layers.%d.self_attn.v_proj"},
                            "model.layers.%d.self_attn.o_proj", {"model.layers.%d.mlp.gate_proj", "model.layers.%d.mlp.up_proj"},
                            "model.layers.%d.mlp.down_proj"};

static const names *names_of(const mx_lm *m)
{
    return m->config.names == MX_NAMES_HF_GPT2 ? &gpt2 : &llama;
}

static void spell(char out[MX_PARAM_NAME], const char *before, const char *pattern, int32_t layer, const char *suffix)
{
    const char *mark = strstr(pattern, "%d");
    if (mark) snprintf(out, MX_PARAM_NAME, "%s%.*s%d%s.%s", before, (int)(mark - pattern), pattern, layer, mark + 2, suffix);
    else snprintf(out, MX_PARAM_NAME, "%s%s.%s", before, pattern, suffix);
}

/* ---- the list ------------------------------------------------------------------------ */

static mx_status add(mx_lm *m, const char *pattern, int32_t layer, const char *suffix, int64_t rows, int64_t cols, unsigned flags,
                     mx_error *err)
{
    char name[MX_PARAM_NAME];
    spell(name, "", pattern, layer, suffix);
    return mx_params_add(&m->base, name, rows, cols, flags, err) < 0 ? err ? err->code : MX_ERR_ARG : MX_OK;
}

static mx_status add_gain(mx_lm *m, const char *pattern, int32_t layer, mx_error *err)
{
    MX_TRY(add(m, pattern, layer, "weight", 1, m->config.d_model, MX_PARAM_VECTOR, err));
    return m->config.rms_norm ? MX_OK : add(m, pattern, layer, "bias", 1, m->config.d_model, MX_PARAM_VECTOR, err);
}

static mx_status add_product(mx_lm *m, const char *const *patterns, int n, const int64_t *rows, int64_t cols, int32_t layer, bool bias,
                             mx_error *err)
{
    unsigned conv = m->config.names == MX_NAMES_HF_GPT2 ? MX_PARAM_CONV1D : 0;
    for (int i = 0; i < n; i++) MX_TRY(add(m, patterns[i], layer, "weight", rows[i], cols, conv | (i ? MX_PARAM_JOIN : 0), err));
    for (int i = 0; bias && i < n; i++)
        MX_TRY(add(m, patterns[i], layer, "bias", 1, rows[i], MX_PARAM_VECTOR | (i ? MX_PARAM_JOIN : 0), err));
    return MX_OK;
}

static int qkv_parts(const names *t, const mx_decoder_config *c, int64_t rows[3])
{
    int64_t q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim;
    rows[0] = t->qkv[1] ? q : q + 2 * g;
    rows[1] = rows[2] = g;
    return t->qkv[1] ? 3 : 1;
}

mx_status lm_list(mx_lm *m, mx_error *err)
{
    const mx_decoder_config *c = &m->config;
    const names *t = names_of(m);
    int64_t C = c->d_model, q = (int64_t)c->heads * c->head_dim, F = c->d_ff, rows[3];
    int parts = qkv_parts(t, c, rows);
    MX_TRY(add(m, t->tokens, 0, "weight", c->vocab, C, 0, err));
    if (c->learned_positions) MX_TRY(add(m, t->positions, 0, "weight", c->max_positions, C, 0, err));
    for (int32_t l = 0; l < c->layers; l++) {
        MX_TRY(add_gain(m, t->norm1, l, err));
        MX_TRY(add_product(m, t->qkv, parts, rows, C, l, c->qkv_bias, err));
        MX_TRY(add_product(m, &t->out, 1, &C, q, l, c->out_bias, err));
        MX_TRY(add_gain(m, t->norm2, l, err));
        MX_TRY(add_product(m, t->up, c->gated ? 2 : 1, (int64_t[]){F, F}, C, l, c->mlp_bias, err));
        MX_TRY(add_product(m, &t->down, 1, &C, F, l, c->mlp_bias, err));
    }
    MX_TRY(add_gain(m, t->final, 0, err));
    return c->tied ? MX_OK : add(m, t->head, 0, "weight", c->vocab, C, 0, err);
}

/* ---- views ------------------------------------------------------------------------------ */

static void bind(const mx_params *p, int *next, int n, mx_tensor *value, mx_tensor *grad)
{
    *value = mx_params_view(p, &p->value, *next, n);
    *grad = mx_params_view(p, &p->grad, *next, n);
    *next += n;
}

static void bind_gain(mx_lm *m, int *next, lm_gain *g)
{
    bind(&m->base, next, 1, &g->g, &g->dg);
    if (!m->config.rms_norm) bind(&m->base, next, 1, &g->b, &g->db);
}

static void bind_product(mx_lm *m, int *next, int parts, bool bias, lm_product *w)
{
    bind(&m->base, next, parts, &w->w, &w->dw);
    if (bias) bind(&m->base, next, parts, &w->b, &w->db);
}

void lm_bind(mx_lm *m)
{
    const mx_decoder_config *c = &m->config;
    int64_t rows[3];
    int next = 0, parts = qkv_parts(names_of(m), c, rows);
    bind(&m->base, &next, 1, &m->tokens.w, &m->tokens.dw);
    if (c->learned_positions) bind(&m->base, &next, 1, &m->positions.w, &m->positions.dw);
    for (int32_t l = 0; l < c->layers; l++) {
        lm_layer *w = &m->layer[l];
        bind_gain(m, &next, &w->norm1);
        bind_product(m, &next, parts, c->qkv_bias, &w->qkv);
        bind_product(m, &next, 1, c->out_bias, &w->out);
        bind_gain(m, &next, &w->norm2);
        bind_product(m, &next, c->gated ? 2 : 1, c->mlp_bias, &w->up);
        bind_product(m, &next, 1, c->mlp_bias, &w->down);
    }
    bind_gain(m, &next, &m->final);
    m->head = m->tokens;
    if (!c->tied) bind(&m->base, &next, 1, &m->head.w, &m->head.dw);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

/* As GPT-2 was: normal, 0.02; what is added to the stream smaller by the root
 * of the number of times that is done (Radford et al. 2019, 2.3). */
mx_status lm_init(mx_lm *m, mx_error *err)
{
    float small = 0.02f / sqrtf(2 * (float)m->config.layers);
    for (int i = 0; i < m->base.n; i++) {
        const mx_param *p = &m->base.param[i];
        bool residual = ends_with(p->name, "c_proj.weight") || ends_with(p->name, "o_proj.weight") || ends_with(p->name, "down_proj.weight");
        if (p->flags & MX_PARAM_VECTOR) MX_TRY(mx_params_fill(&m->base, i, ends_with(p->name, ".weight") ? 1 : 0, err));
        else MX_TRY(mx_params_init(&m->base, i, residual ? small : 0.02f, m->opt.seed, err));
    }
    return MX_OK;
}

/* ---- adapters --------------------------------------------------------------------------- */

typedef struct target {
    const char *pattern;
    lm_product *product;
    int64_t     first, rows, cols;
} target;

/* All products of a layer that an adapter may stand beside; returns how many. */
static int targets_of(mx_lm *m, int32_t l, target t[MX_LORA_TARGETS])
{
    const mx_decoder_config *c = &m->config;
    const names *n = names_of(m);
    lm_layer *w = m->layer ? &m->layer[l] : NULL;
    int64_t rows[3], C = c->d_model, q = (int64_t)c->heads * c->head_dim, F = c->d_ff, at = 0;
    int k = 0, parts = qkv_parts(n, c, rows);
    for (int i = 0; i < parts; at += rows[i++]) t[k++] = (target){n->qkv[i], &w->qkv, at, rows[i], C};
    t[k++] = (target){n->out, &w->out, 0, C, q};
    t[k++] = (target){n->up[0], &w->up, 0, F, C};
    if (c->gated) t[k++] = (target){n->up[1], &w->up, F, F, C};
    t[k++] = (target){n->down, &w->down, 0, C, F};
    return k;
}

static unsigned default_targets(const mx_decoder_config *c)
{
    return c->names == MX_NAMES_HF_GPT2 ? 1u : 1u << 0 | 1u << 2;
}

mx_status lm_list_adapter(mx_lm *m, mx_error *err)
{
    mx_lora_options *o = &m->opt.lora;
    if (o->rank < 1 || o->rank > 1024) return mx_fail(err, MX_ERR_ARG, "lora-rank is %d; it must be from 1 to 1024", o->rank);
    if (!(o->alpha > 0) || !isfinite(o->alpha)) return mx_fail(err, MX_ERR_ARG, "lora-alpha is %g; it must be over 0", (double)o->alpha);
    if (!(o->dropout >= 0 && o->dropout < 1)) return mx_fail(err, MX_ERR_ARG, "lora-dropout is %g; it must be in [0, 1)", (double)o->dropout);
    if (!o->targets) o->targets = default_targets(&m->config);
    for (int32_t l = 0; l < m->config.layers; l++) {
        target t[MX_LORA_TARGETS];
        int n = targets_of(m, l, t), slot = 0;
        for (int i = 0; i < n; i++) {
            if (!(o->targets >> i & 1)) continue;
            char a[MX_PARAM_NAME], b[MX_PARAM_NAME];
            spell(a, "base_model.model.", t[i].pattern, l, "lora_A.weight");
            spell(b, "base_model.model.", t[i].pattern, l, "lora_B.weight");
            if (mx_params_add(&m->adapter, a, o->rank, t[i].cols, 0, err) < 0) return err->code;
            if (mx_params_add(&m->adapter, b, t[i].rows, o->rank, 0, err) < 0) return err->code;
            slot++;
        }
        m->lora_slots = slot;
    }
    MX_TRY(mx_params_alloc(&m->adapter, m->dev, true, err));
    int next = 0;
    for (int32_t l = 0; l < m->config.layers; l++) {
        target t[MX_LORA_TARGETS];
        int n = targets_of(m, l, t), slot = 0;
        for (int i = 0; i < n; i++) {
            if (!(o->targets >> i & 1)) continue;
            lm_lora *a = &t[i].product->lora[t[i].product->n_lora++];
            *a = (lm_lora){.first = t[i].first, .rows = t[i].rows, .slot = slot};
            slot++;
            /* the variance of PEFT's uniform(-1/sqrt(C), 1/sqrt(C)); B begins at 0, so the model does too */
            MX_TRY(mx_params_init(&m->adapter, next, 1 / sqrtf(3 * (float)t[i].cols), m->opt.seed, err));
            bind(&m->adapter, &next, 1, &a->a, &a->da);
            bind(&m->adapter, &next, 1, &a->b, &a->db);
        }
    }
    return MX_OK;
}

/* ---- files ---------------------------------------------------------------------------------- */

static mx_status save_adapter(const mx_lm *m, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    const mx_lora_options *o = &m->opt.lora;
    json_t *targets = json_array();
    for (int i = 0; mx_lora_target(&m->config, i); i++)
        if (o->targets >> i & 1) json_array_append_new(targets, json_string(mx_lora_target(&m->config, i)));
    json_t *c = json_pack("{s:s, s:s, s:s, s:i, s:f, s:f, s:o, s:s, s:b, s:b}", "peft_type", "LORA", "task_type", "CAUSAL_LM",
                          "base_model_name_or_path", m->folder, "r", o->rank, "lora_alpha", (double)o->alpha, "lora_dropout",
                          (double)o->dropout, "target_modules", targets, "bias", "none", "fan_in_fan_out",
                          m->config.names == MX_NAMES_HF_GPT2, "inference_mode", 1);
    MX_TRY(mx_model_write_json(c, folder, "adapter_config.json", err));
    MX_TRY(mx_path_join(path, folder, "adapter_model.safetensors", err));
    return mx_params_save_as(&m->adapter, &m->adapter.value, path, MX_SAVE_F32, false, (const char *[]){"format", "pt"}, 1, err);
}

mx_status lm_save(const void *network, const char *folder, mx_error *err)
{
    const mx_lm *m = network;
    char path[MX_PATH];
    if (m->lora_slots) return save_adapter(m, folder, err);
    MX_TRY(mx_model_copy_config(m->folder, folder, NULL, err));
    MX_TRY(mx_model_copy_tokenizer(m->folder, folder, err));
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    return mx_params_save_as(&m->base, &m->base.value, path, MX_SAVE_F32, false, (const char *[]){"format", "pt"}, 1, err);
}

mx_status lm_load(void *network, const char *folder, mx_error *err)
{
    mx_lm *m = network;
    char path[MX_PATH];
    mx_checkpoint *c = NULL;
    MX_TRY(mx_path_join(path, folder, m->lora_slots ? "adapter_model.safetensors" : "model.safetensors", err));
    MX_TRY(mx_checkpoint_open(&c, path, err));
    mx_status st = mx_params_load(m->lora_slots ? &m->adapter : &m->base, c, NULL, err);
    mx_checkpoint_close(c);
    return st;
}

/* ---- merging ------------------------------------------------------------------------------- */

/* w += alpha/rank * B A, in f64 sums. */
static void merge_one(const lm_product *p, const lm_lora *a, float factor)
{
    int64_t rank = a->a.rows, cols = a->a.cols;
    for (int64_t o = 0; o < a->rows; o++) {
        float *w = (float *)p->w.data + (a->first + o) * p->w.stride;
        const float *b = (const float *)a->b.data + o * a->b.stride;
        for (int64_t c = 0; c < cols; c++) {
            double sum = 0;
            for (int64_t r = 0; r < rank; r++) sum += (double)b[r] * (double)((const float *)a->a.data)[r * a->a.stride + c];
            w[c] += factor * (float)sum;
        }
    }
}

mx_status mx_lm_merge(mx_device *dev, const char *base, const char *adapter, const char *out, mx_error *err)
{
    mx_decoder_config config;
    mx_lm_options o = {.compute = MX_F32};
    mx_lm *m = NULL;
    mx_status st;
    if (dev->kind != MX_CPU) return mx_fail(err, MX_ERR_ARG, "merge runs on the CPU device");
    MX_TRY(mx_decoder_config_folder(&config, base, err));
    MX_TRY(mx_lora_read(adapter, &config, &o.lora, err));
    MX_TRY(mx_lm_open(&m, dev, base, &o, err));
    MX_TRY_GOTO(st, lm_load(m, adapter, err), done);
    for (int32_t l = 0; l < m->config.layers; l++) {
        lm_product *all[] = {&m->layer[l].qkv, &m->layer[l].out, &m->layer[l].up, &m->layer[l].down};
        for (int i = 0; i < 4; i++)
            for (int k = 0; k < all[i]->n_lora; k++) merge_one(all[i], &all[i]->lora[k], o.lora.alpha / (float)o.lora.rank);
    }
    m->lora_slots = 0;                    /* what is saved now is the base */
    MX_TRY_GOTO(st, mx_snapshot_prepare(out, err), done);
    st = lm_save(m, out, err);
done:
    mx_lm_close(m);
    return st;
}
