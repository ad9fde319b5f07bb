/* decoder.c - loading and running a decoder-only transformer. */
#include "models/decoder.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- names of the tensors in each kind of file --------------------------------- */

/* What a layer's tensors are called; %d is the layer.  q, k, v: either one name
 * holds all three, or there are three.  The same for gate and up. */
typedef struct name_table {
    const char *prefix;                     /* tried in front of every name, then without it */
    const char *tokens, *positions, *final_norm, *head;
    const char *norm1, *norm2, *qkv, *q, *k, *v, *out, *gate, *up, *down;
    bool        conv1d;                     /* matrices are stored [in,out]                  */
} name_table;

static const name_table names[] = {
    [MX_NAMES_HF_GPT2] = {"transformer.", "wte", "wpe", "ln_f", "lm_head", "h.%d.ln_1", "h.%d.ln_2",
                          "h.%d.attn.c_attn", NULL, NULL, NULL, "h.%d.attn.c_proj", NULL, "h.%d.mlp.c_fc",
                          "h.%d.mlp.c_proj", true},
    [MX_NAMES_HF_LLAMA] = {"model.", "embed_tokens", NULL, "norm", "lm_head", "layers.%d.input_layernorm",
                           "layers.%d.post_attention_layernorm", NULL, "layers.%d.self_attn.q_proj",
                           "layers.%d.self_attn.k_proj", "layers.%d.self_attn.v_proj", "layers.%d.self_attn.o_proj",
                           "layers.%d.mlp.gate_proj", "layers.%d.mlp.up_proj", "layers.%d.mlp.down_proj", false},
    [MX_NAMES_GGUF] = {"", "token_embd", "position_embd", "output_norm", "output", "blk.%d.attn_norm",
                       "blk.%d.ffn_norm", "blk.%d.attn_qkv", "blk.%d.attn_q", "blk.%d.attn_k", "blk.%d.attn_v",
                       "blk.%d.attn_output", "blk.%d.ffn_gate", "blk.%d.ffn_up", "blk.%d.ffn_down", false},
};

static const mx_blob *find(const mx_decoder *m, const char *pattern, int layer, const char *suffix, char *full, size_t size)
{
    const name_table *t = &names[m->config.names];
    if (!pattern) return NULL;
    char base[160];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(base, sizeof base, pattern, layer);
#pragma GCC diagnostic pop
    snprintf(full, size, "%s%s.%s", t->prefix, base, suffix);
    const mx_blob *b = mx_checkpoint_find(m->file, full);
    if (!b && t->prefix[0]) b = mx_checkpoint_find(m->file, full + strlen(t->prefix));
    return b;
}

/* The tensor, or an error that names it and what was expected. */
static mx_status want(const mx_decoder *m, const char *pattern, int layer, const char *suffix, int64_t rows, int64_t cols,
                      const mx_blob **out, mx_error *err)
{
    char full[256];
    const mx_blob *b = find(m, pattern, layer, suffix, full, sizeof full);
    if (!b) return mx_fail(err, MX_ERR_FORMAT, "tensor %s is missing; the config asks for [%lld, %lld]", full, (long long)rows, (long long)cols);
    if (b->dtype == MX_FILE_OTHER)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu has a dtype that Merx cannot read", b->file, b->name,
                       (unsigned long long)b->offset);
    if (b->rows != rows || b->cols != cols)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu is [%lld, %lld]; the config asks for [%lld, %lld]",
                       b->file, b->name, (unsigned long long)b->offset, (long long)b->rows, (long long)b->cols,
                       (long long)rows, (long long)cols);
    *out = b;
    return MX_OK;
}

/* ---- loading --------------------------------------------------------------------- */

static mx_tensor vector_room(mx_decoder *m, int64_t n)
{
    mx_tensor t = mx_tensor_of((float *)m->vectors.base + m->vectors_used, MX_F32, 1, n);
    m->vectors_used += (size_t)n;
    return t;
}

static mx_status load_vector(mx_decoder *m, const char *pattern, int layer, const char *suffix, mx_tensor into, mx_error *err)
{
    const mx_blob *b = NULL;
    MX_TRY(want(m, pattern, layer, suffix, 1, into.cols, &b, err));
    mx_blob_read(b, 0, 1, m->vector_stage + ((float *)into.data - (float *)m->vectors.base));
    return MX_OK;
}

/* To the device: the whole of a host image, in one go. */
static mx_status send(mx_device *dev, void *dst, const void *host, size_t n, mx_error *err)
{
    mx_stream s;
    MX_TRY(mx_stream_open(&s, dev, 0, err));
    dev->ops->upload(&s, dst, host, n);
    mx_status st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

/* A linear layer whose rows are stacked from up to three tensors. */
static mx_status load_linear(mx_decoder *m, mx_weight *w, mx_tensor *bias, int layer, const char *const *patterns,
                             const int64_t *rows, int n, int64_t cols, bool with_bias, mx_error *err)
{
    bool conv1d = names[m->config.names].conv1d;
    mx_row_source parts[3];
    int64_t total = 0;
    for (int i = 0; i < n; i++) {
        const mx_blob *b = NULL;
        MX_TRY(want(m, patterns[i], layer, "weight", conv1d ? cols : rows[i], conv1d ? rows[i] : cols, &b, err));
        if (conv1d && b->dtype > MX_FILE_BF16)
            return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s: %s cannot be stored transposed", b->file, b->name,
                           mx_file_dtype_name(b->dtype));
        parts[i] = conv1d ? mx_blob_rows_transposed(b) : mx_blob_rows(b);
        if (!m->quantization) m->quantization = mx_file_dtype_name(b->dtype);
        total += rows[i];
    }
    MX_TRY(mx_weight_open(w, m->dev, parts, n, m->dtype, err));
    m->weight_bytes += w->bytes;
    if (!with_bias) return MX_OK;
    *bias = vector_room(m, total);
    int64_t at = 0;
    for (int i = 0; i < n; at += rows[i], i++)
        MX_TRY(load_vector(m, patterns[i], layer, "bias", mx_tensor_cols(*bias, at, rows[i]), err));
    return MX_OK;
}

static mx_status load_norm(mx_decoder *m, const char *pattern, int layer, mx_tensor *gain, mx_tensor *bias, mx_error *err)
{
    *gain = vector_room(m, m->config.d_model);
    MX_TRY(load_vector(m, pattern, layer, "weight", *gain, err));
    if (m->config.rms_norm) return MX_OK;
    *bias = vector_room(m, m->config.d_model);
    return load_vector(m, pattern, layer, "bias", *bias, err);
}

static mx_status load_layer(mx_decoder *m, int l, mx_error *err)
{
    const mx_decoder_config *c = &m->config;
    const name_table *t = &names[c->names];
    mx_decoder_layer *w = &m->layer[l];
    int64_t C = c->d_model, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, F = c->d_ff;
    char full[256];
    bool one = find(m, t->qkv, l, "weight", full, sizeof full) != NULL || !t->q;

    MX_TRY(load_norm(m, t->norm1, l, &w->norm1_gain, &w->norm1_bias, err));
    MX_TRY(load_norm(m, t->norm2, l, &w->norm2_gain, &w->norm2_bias, err));
    MX_TRY(one ? load_linear(m, &w->qkv, &w->qkv_bias, l, (const char *[]){t->qkv}, (int64_t[]){q + 2 * kv}, 1, C, c->qkv_bias, err)
               : load_linear(m, &w->qkv, &w->qkv_bias, l, (const char *[]){t->q, t->k, t->v}, (int64_t[]){q, kv, kv}, 3, C,
                             c->qkv_bias, err));
    MX_TRY(load_linear(m, &w->out, &w->out_bias, l, (const char *[]){t->out}, (int64_t[]){C}, 1, q, c->out_bias, err));
    MX_TRY(c->gated ? load_linear(m, &w->up, &w->up_bias, l, (const char *[]){t->gate, t->up}, (int64_t[]){F, F}, 2, C, c->mlp_bias, err)
                    : load_linear(m, &w->up, &w->up_bias, l, (const char *[]){t->up}, (int64_t[]){F}, 1, C, c->mlp_bias, err));
    return load_linear(m, &w->down, &w->down_bias, l, (const char *[]){t->down}, (int64_t[]){C}, 1, F, c->mlp_bias, err);
}

static size_t vector_floats(const mx_decoder_config *c)
{
    size_t C = (size_t)c->d_model, qkv = (size_t)(c->heads + 2 * c->kv_heads) * (size_t)c->head_dim;
    size_t per_layer = 4 * C + qkv + C + 2 * (size_t)c->d_ff + C;
    return (size_t)c->layers * per_layer + 2 * C + (size_t)c->head_dim;
}

/* How a table is kept; true: where it lies in the file, because ops can read it there. */
static bool stays_in_file(const mx_device *dev, const mx_blob *b, mx_dtype *type)
{
    static const mx_dtype plain[] = {[MX_FILE_F32] = MX_F32, [MX_FILE_F16] = MX_F16, [MX_FILE_BF16] = MX_BF16};
    *type = b->dtype <= MX_FILE_BF16 ? plain[b->dtype] : MX_F32;
    return b->dtype <= MX_FILE_BF16 && dev->kind == MX_CPU && (uintptr_t)b->data % mx_dtype_size(*type) == 0;
}

static mx_status load_table(mx_decoder *m, const mx_blob *b, mx_buffer *memory, mx_tensor *table, mx_error *err)
{
    mx_dtype type;
    if (stays_in_file(m->dev, b, &type)) {
        *table = mx_tensor_of((void *)(uintptr_t)b->data, type, b->rows, b->cols);
        return MX_OK;
    }
    bool as_it_is = b->dtype <= MX_FILE_BF16;
    size_t n;
    if (!mx_mul_size((size_t)b->rows, (size_t)b->cols * mx_dtype_size(type), &n))
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s: size overflows", b->file, b->name);
    MX_TRY(mx_buffer_open(memory, m->dev, n, err));
    m->weight_bytes += n;
    *table = mx_tensor_of(memory->base, type, b->rows, b->cols);
    if (as_it_is) return send(m->dev, memory->base, b->data, n, err);
    float *rows = malloc(n);
    if (!rows) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: tensor %s: no %zu bytes to load it with", b->file, b->name, n);
    mx_blob_read(b, 0, b->rows, rows);
    mx_status st = send(m->dev, memory->base, rows, n, err);
    free(rows);
    return st;
}

static mx_status load_tables(mx_decoder *m, mx_error *err)
{
    const mx_decoder_config *c = &m->config;
    const name_table *t = &names[c->names];
    const mx_blob *tokens = NULL, *positions = NULL, *head;
    char full[256];

    MX_TRY(want(m, t->tokens, 0, "weight", c->vocab, c->d_model, &tokens, err));
    MX_TRY(load_table(m, tokens, &m->token_memory, &m->tokens, err));
    if (c->learned_positions) {
        MX_TRY(want(m, t->positions, 0, "weight", c->max_positions, c->d_model, &positions, err));
        MX_TRY(load_table(m, positions, &m->position_memory, &m->positions, err));
    }
    head = tokens;
    if (!c->tied || find(m, t->head, 0, "weight", full, sizeof full)) {
        /* A tied model whose file stores the head all the same: the same numbers. */
        if (!c->tied) MX_TRY(want(m, t->head, 0, "weight", c->vocab, c->d_model, &head, err));
    }
    mx_row_source rows = mx_blob_rows(head);
    MX_TRY(mx_weight_open(&m->head, m->dev, &rows, 1, m->dtype, err));
    m->weight_bytes += m->head.bytes;

    MX_TRY(load_norm(m, t->final_norm, 0, &m->final_gain, &m->final_bias, err));
    m->rope_freq = vector_room(m, c->head_dim / 2);
    memcpy(m->vector_stage + ((float *)m->rope_freq.data - (float *)m->vectors.base), c->rope_freq, (size_t)(c->head_dim / 2) * sizeof(float));
    return send(m->dev, m->vectors.base, m->vector_stage, m->vectors.size, err);
}

static bool count_table(mx_footprint *f, const mx_device *dev, const mx_blob *b)
{
    mx_dtype type;
    size_t n;
    if (!b || b->dtype == MX_FILE_OTHER) return false;
    if (stays_in_file(dev, b, &type)) return true;
    if (!mx_mul_size((size_t)b->rows, (size_t)b->cols * mx_dtype_size(type), &n) || !mx_add_size(f->weights, n, &f->weights)) return false;
    if (b->dtype > MX_FILE_BF16 && n > f->loading) f->loading = n;
    return true;
}

bool mx_decoder_footprint(mx_footprint *out, const mx_device *dev, const mx_checkpoint *file, const mx_decoder_config *config, mx_dtype dtype)
{
    const mx_decoder_config *c = config;
    mx_decoder m = {.config = *config, .file = (mx_checkpoint *)(uintptr_t)file};       /* only looked into */
    const name_table *t = &names[c->names];
    int64_t C = c->d_model, q = (int64_t)c->heads * c->head_dim, kv = (int64_t)c->kv_heads * c->head_dim, F = c->d_ff;
    const int64_t matrix[][3] = {{c->layers, q + 2 * kv, C}, {c->layers, C, q}, {c->layers, c->gated ? 2 * F : F, C}, {c->layers, C, F}, {1, c->vocab, C}};
    char full[256];
    size_t threads = dev->pool ? (size_t)mx_pool_threads(dev->pool) : 1;
    *out = (mx_footprint){.weights = vector_floats(c) * sizeof(float)};
    for (size_t i = 0; i < sizeof matrix / sizeof *matrix; i++) {
        size_t n = mx_weight_bytes(dev, matrix[i][1], matrix[i][2], dtype), stage = threads * 64 * (size_t)matrix[i][2] * sizeof(float);
        if (!n || !mx_mul_size(n, (size_t)matrix[i][0], &n) || !mx_add_size(out->weights, n, &out->weights)) return false;
        if (stage > out->loading) out->loading = stage;
    }
    if (!count_table(out, dev, find(&m, t->tokens, 0, "weight", full, sizeof full))) return false;
    if (c->learned_positions && !count_table(out, dev, find(&m, t->positions, 0, "weight", full, sizeof full))) return false;
    out->loading += vector_floats(c) * sizeof(float);
    return true;
}

mx_status mx_decoder_open(mx_decoder *m, mx_device *dev, mx_checkpoint *file, const mx_decoder_config *config,
                          mx_dtype dtype, mx_error *err)
{
    *m = (mx_decoder){.config = *config, .dev = dev, .file = file, .dtype = dtype};
    mx_status st;
    MX_TRY_GOTO(st, mx_buffer_open(&m->vectors, dev, vector_floats(config) * sizeof(float), err), fail);
    m->weight_bytes = m->vectors.size;
    m->layer = calloc((size_t)config->layers, sizeof *m->layer);
    m->adapter = calloc(MX_ADAPTERS, sizeof *m->adapter);
    if (config->names != MX_NAMES_GGUF) m->adapter_rank = MX_ADAPTER_RANK;
    m->vector_stage = calloc(1, m->vectors.size);
    if (!m->layer || !m->adapter || !m->vector_stage) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%d layers", config->layers);
        goto fail;
    }
    for (int l = 0; l < config->layers; l++) MX_TRY_GOTO(st, load_layer(m, l, err), fail);
    MX_TRY_GOTO(st, load_tables(m, err), fail);
    free(m->vector_stage);
    m->vector_stage = NULL;
    return MX_OK;
fail:
    mx_decoder_close(m);
    return st;
}

void mx_decoder_close(mx_decoder *m)
{
    for (int i = 0; m->adapter && i < MX_ADAPTERS; i++) mx_adapter_close(&m->adapter[i]);
    free(m->adapter);
    mx_weight_close(&m->head);
    for (int l = 0; m->layer && l < m->config.layers; l++) {
        mx_weight_close(&m->layer[l].down);
        mx_weight_close(&m->layer[l].up);
        mx_weight_close(&m->layer[l].out);
        mx_weight_close(&m->layer[l].qkv);
    }
    free(m->layer);
    free(m->vector_stage);
    mx_buffer_close(&m->position_memory);
    mx_buffer_close(&m->token_memory);
    mx_buffer_close(&m->vectors);
    mx_checkpoint_close(m->file);
    *m = (mx_decoder){0};
}

/* ---- the forward pass ---------------------------------------------------------------- */

typedef mx_decoder_turn turn;

static void norm(const mx_decoder *m, mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias)
{
    if (m->config.rms_norm) mx_rms_norm(s, y, x, gain, m->config.norm_eps);
    else mx_norm(s, y, x, gain, bias, m->config.norm_eps);
}

/* What adapters add to out = x w^T, in their rows. */
static void adapt(const mx_decoder *m, mx_stream *s, const turn *t, mx_adapter_place place, mx_tensor out, mx_tensor x)
{
    for (int32_t i = 0; i < t->batch->n_spans; i++) {
        const mx_adapter_span *p = &t->batch->spans[i];
        mx_adapter_add(&m->adapter[p->adapter], s, t->layer, place, mx_tensor_rows(out, p->first, p->n), mx_tensor_rows(x, p->first, p->n), t->low);
    }
}

/* An activation that was fused into the product comes too early for an adapter: its rows are computed again. */
static void adapt_activated(const mx_decoder *m, mx_stream *s, const turn *t, const mx_decoder_layer *w)
{
    for (int32_t i = 0; i < t->batch->n_spans; i++) {
        const mx_adapter_span *p = &t->batch->spans[i];
        if (!mx_adapter_at(&m->adapter[p->adapter], t->layer, MX_PLACE_UP)) continue;
        mx_tensor y = mx_tensor_rows(t->act, p->first, p->n), x = mx_tensor_rows(t->h, p->first, p->n);
        mx_linear(s, y, x, &w->up, w->up_bias, MX_ACT_NONE, false);
        mx_adapter_add(&m->adapter[p->adapter], s, t->layer, MX_PLACE_UP, y, x, t->low);
        mx_activate(s, y, y, m->config.act);
    }
}

static void block(const mx_decoder *m, mx_stream *s, const mx_decoder_layer *w, const mx_kv *kv, const turn *t)
{
    const mx_decoder_config *c = &m->config;
    int64_t q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim;

    norm(m, s, t->h, t->x, w->norm1_gain, w->norm1_bias);
    mx_linear(s, t->qkv, t->h, &w->qkv, w->qkv_bias, MX_ACT_NONE, false);
    adapt(m, s, t, MX_PLACE_QKV, t->qkv, t->h);
    if (c->learned_positions) mx_kv_write(s, kv, mx_tensor_cols(t->qkv, q, g), mx_tensor_cols(t->qkv, q + g, g), t->slots);
    else mx_rope_kv_write(s, t->qkv, t->positions, m->rope_freq, c->rope_magnitude, c->heads, c->rope_interleaved, kv, t->slots);
    mx_attention_paged(s, t->y, mx_tensor_cols(t->qkv, 0, q), kv, t->pages, t->at, c->heads, c->attention_scale, c->window);
    mx_linear(s, t->x, t->y, &w->out, w->out_bias, MX_ACT_NONE, true);
    adapt(m, s, t, MX_PLACE_OUT, t->x, t->y);

    norm(m, s, t->h, t->x, w->norm2_gain, w->norm2_bias);
    if (c->gated) {
        mx_linear(s, t->up, t->h, &w->up, w->up_bias, MX_ACT_NONE, false);
        adapt(m, s, t, MX_PLACE_UP, t->up, t->h);
        mx_gated(s, t->act, t->up, c->act);
    } else {
        mx_linear(s, t->act, t->h, &w->up, w->up_bias, c->act, false);
        adapt_activated(m, s, t, w);
    }
    mx_linear(s, t->x, t->act, &w->down, w->down_bias, MX_ACT_NONE, true);
    adapt(m, s, t, MX_PLACE_DOWN, t->x, t->act);
}

/* Of a batch that the host describes: what it says.  With seats: room for what they will say. */
static mx_tensor given(mx_stream *s, const mx_decoder_batch *b, int64_t rows, int64_t cols, const int32_t *host)
{
    return b->seats ? mx_stream_tensor(s, MX_I32, rows, cols) : mx_stream_upload(s, MX_I32, rows, cols, host);
}

void mx_decoder_begin(const mx_decoder *m, mx_stream *s, const mx_kv_cache *kv, const mx_decoder_batch *b, mx_decoder_turn *t)
{
    const mx_decoder_config *c = &m->config;
    int64_t N = b->n_rows, C = c->d_model, q = (int64_t)c->heads * c->head_dim;
    *t = (turn){
        .ids = given(s, b, N, 1, b->ids),
        .positions = given(s, b, N, 1, b->positions),
        .slots = given(s, b, N, 1, b->slots),
        .at = given(s, b, N, 2, b->at),
        .pages = b->seats ? mx_tensor_cols(b->seats->pages, 0, b->table_cols) : given(s, b, b->n_seqs, b->table_cols, b->pages),
        .x = mx_stream_tensor(s, MX_F32, N, C),
        .h = mx_stream_tensor(s, MX_F32, N, C),
        .qkv = mx_stream_tensor(s, MX_F32, N, q + 2 * (int64_t)c->kv_heads * c->head_dim),
        .y = mx_stream_tensor(s, MX_F32, N, q),
        .act = mx_stream_tensor(s, MX_F32, N, c->d_ff),
        .batch = b,
    };
    if (b->seats) t->choices = mx_stream_tensor(s, MX_I32, b->n_logits, sizeof(mx_sample_row) / sizeof(int32_t));
    if (c->gated) t->up = mx_stream_tensor(s, MX_F32, N, 2 * (int64_t)c->d_ff);
    if (m->adapter_rank) t->low = mx_stream_tensor(s, MX_F32, N, m->adapter_rank);
    if (b->n_logits) {
        t->logit_rows = b->seats ? b->wanted : given(s, b, b->n_logits, 1, b->logit_rows);
        t->last = mx_stream_tensor(s, MX_F32, b->n_logits, C);
        t->logits = mx_stream_tensor(s, MX_F32, b->n_logits, c->vocab);
    }
    if (!b->copies || !b->copies->n) return;
    mx_tensor moves = mx_stream_upload(s, MX_I32, b->copies->n, 2, b->copies->from_to);
    for (int32_t l = 0; l < c->layers; l++) mx_kv_copy(s, &kv->layer[l], moves);
}

void mx_decoder_run(const mx_decoder *m, mx_stream *s, const mx_kv_cache *kv, mx_decoder_turn *t)
{
    const mx_decoder_config *c = &m->config;
    const mx_decoder_batch *b = t->batch;
    if (b->seats) mx_seat_rows(s, t->ids, t->positions, t->slots, t->at, b->rows, kv->page_tokens, b->seats, t->choices, b->picks);
    mx_embed(s, t->x, m->tokens, t->ids, false);
    if (c->learned_positions) mx_embed(s, t->x, m->positions, t->positions, true);
    for (t->layer = 0; t->layer < c->layers; t->layer++) block(m, s, &m->layer[t->layer], &kv->layer[t->layer], t);
    if (!t->batch->n_logits) return;
    mx_embed(s, t->last, t->x, t->logit_rows, false);        /* pick rows */
    norm(m, s, t->last, t->last, m->final_gain, m->final_bias);
    mx_linear(s, t->logits, t->last, &m->head, (mx_tensor){0}, MX_ACT_NONE, false);
}

mx_tensor mx_decoder_forward(const mx_decoder *m, mx_stream *s, const mx_kv_cache *kv, const mx_decoder_batch *b)
{
    turn t;
    mx_decoder_begin(m, s, kv, b, &t);
    mx_decoder_run(m, s, kv, &t);
    return t.logits;
}

size_t mx_decoder_scratch(const mx_decoder *m, int32_t rows, int32_t seqs, int32_t table_cols, int32_t logits)
{
    const mx_decoder_config *c = &m->config;
    int64_t C = c->d_model, q = (int64_t)c->heads * c->head_dim;
    size_t parts[] = {
        5 * mx_stream_tensor_bytes(MX_I32, rows, 1),                      /* at has two of them */
        mx_stream_tensor_bytes(MX_I32, rows, 2),                          /* copies */
        mx_stream_tensor_bytes(MX_I32, seqs, table_cols),
        2 * mx_stream_tensor_bytes(MX_F32, rows, C),
        2 * mx_stream_tensor_bytes(MX_F32, rows, q),
        mx_stream_tensor_bytes(MX_F32, rows, 2 * (int64_t)c->kv_heads * c->head_dim),
        3 * mx_stream_tensor_bytes(MX_F32, rows, c->d_ff),
        mx_stream_tensor_bytes(MX_F32, logits, C),
        mx_stream_tensor_bytes(MX_F32, logits, c->vocab),
        mx_stream_tensor_bytes(MX_I32, logits, 1),
        mx_stream_tensor_bytes(MX_I32, logits, sizeof(mx_sample_row) / sizeof(int32_t)),
        m->adapter_rank ? mx_stream_tensor_bytes(MX_F32, rows, m->adapter_rank) : 0,
    };
    size_t total = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!mx_add_size(total, parts[i], &total)) return 0;
    return total;
}
