/* encoder.c - a BERT's weights, and its list of ops. */
#include "models/encoder.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

const char *mx_pooling_name(mx_pooling p)
{
    static const char *const names[] = {"mean", "cls", "pooler"};
    return (unsigned)p < MX_POOL_COUNT ? names[p] : "?";
}

/* ---- finding tensors ---------------------------------------------------------------- */

/* BertModel's own files lack "bert."; the first BERTs say gamma and beta. */
static const mx_blob *find(const mx_checkpoint *c, const char *name)
{
    char other[192];
    const mx_blob *b = mx_checkpoint_find(c, name);
    if (!b && !strncmp(name, "bert.", 5)) b = mx_checkpoint_find(c, name + 5);
    const char *norm = strstr(name, "LayerNorm.");
    if (b || !norm) return b;
    snprintf(other, sizeof other, "%.*sLayerNorm.%s", (int)(norm - name), name, strcmp(norm + 10, "weight") ? "beta" : "gamma");
    b = mx_checkpoint_find(c, other);
    return b || strncmp(other, "bert.", 5) ? b : mx_checkpoint_find(c, other + 5);
}

static mx_status want(const mx_encoder *m, const char *name, int64_t rows, int64_t cols, const mx_blob **out, mx_error *err)
{
    const mx_blob *b = *out = find(m->file, name);
    if (!b) return mx_fail(err, MX_ERR_FORMAT, "tensor %s is missing; the config asks for [%lld, %lld]", name, (long long)rows, (long long)cols);
    if (b->dtype == MX_FILE_OTHER)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu has a dtype that Merx cannot read", b->file, b->name, (unsigned long long)b->offset);
    if (b->rows != rows || b->cols != cols)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu is [%lld, %lld]; the config asks for [%lld, %lld]", b->file, b->name,
                       (unsigned long long)b->offset, (long long)b->rows, (long long)b->cols, (long long)rows, (long long)cols);
    return MX_OK;
}

/* ---- loading ------------------------------------------------------------------------- */

static mx_status load_vector(mx_encoder *m, const char *name, int64_t n, mx_tensor *out, mx_error *err)
{
    const mx_blob *b;
    MX_TRY(want(m, name, 1, n, &b, err));
    if (!out->data) {
        *out = mx_tensor_of((float *)m->vectors.base + m->vectors_used, MX_F32, 1, n);
        m->vectors_used += (size_t)n;
    }
    mx_blob_read(b, 0, 1, m->vector_stage + ((float *)out->data - (float *)m->vectors.base));
    return MX_OK;
}

static void spell(char out[192], int layer, const char *stem, const char *suffix)
{
    if (layer < 0) snprintf(out, 192, "%s.%s", stem, suffix);
    else snprintf(out, 192, "bert.encoder.layer.%d.%s.%s", layer, stem, suffix);
}

static mx_status load_norm(mx_encoder *m, int layer, const char *stem, mx_tensor *gain, mx_tensor *bias, mx_error *err)
{
    char name[192];
    spell(name, layer, stem, "weight");
    MX_TRY(load_vector(m, name, m->config.d_model, gain, err));
    spell(name, layer, stem, "bias");
    return load_vector(m, name, m->config.d_model, bias, err);
}

/* Stacked from n tensors of `rows` rows each, up to 3. */
static mx_status load_linear(mx_encoder *m, mx_encoder_linear *to, int layer, const char *const *stems, int n, int64_t rows, int64_t cols,
                             mx_dtype as, mx_error *err)
{
    mx_row_source parts[3];
    char name[192];
    for (int i = 0; i < n; i++) {
        const mx_blob *b;
        spell(name, layer, stems[i], "weight");
        MX_TRY(want(m, name, rows, cols, &b, err));
        parts[i] = mx_blob_rows(b);
        if (!m->quantization) m->quantization = mx_file_dtype_name(b->dtype);
    }
    MX_TRY(mx_weight_open(&to->w, m->dev, parts, n, as, err));
    m->weight_bytes += to->w.bytes;
    to->b = mx_tensor_of((float *)m->vectors.base + m->vectors_used, MX_F32, 1, n * rows);
    m->vectors_used += (size_t)(n * rows);
    for (int i = 0; i < n; i++) {
        mx_tensor part = mx_tensor_cols(to->b, i * rows, rows);
        spell(name, layer, stems[i], "bias");
        MX_TRY(load_vector(m, name, rows, &part, err));
    }
    return MX_OK;
}

static mx_status load_layer(mx_encoder *m, int l, mx_error *err)
{
    static const char *const qkv[] = {"attention.self.query", "attention.self.key", "attention.self.value"};
    mx_encoder_layer *w = &m->layer[l];
    int64_t C = m->config.d_model, F = m->config.d_ff;
    /* int8 would lose most at GELU's output, whose few large values carry a text's meaning (docs/precision.md) */
    mx_dtype as = m->dtype, down = as == MX_I8 ? MX_BF16 : as;
    MX_TRY(load_linear(m, &w->qkv, l, qkv, 3, C, C, as, err));
    MX_TRY(load_linear(m, &w->out, l, (const char *[]){"attention.output.dense"}, 1, C, C, as, err));
    MX_TRY(load_norm(m, l, "attention.output.LayerNorm", &w->norm1_gain, &w->norm1_bias, err));
    MX_TRY(load_linear(m, &w->up, l, (const char *[]){"intermediate.dense"}, 1, F, C, as, err));
    MX_TRY(load_linear(m, &w->down, l, (const char *[]){"output.dense"}, 1, C, F, down, err));
    return load_norm(m, l, "output.LayerNorm", &w->norm2_gain, &w->norm2_bias, err);
}

static mx_status send(mx_device *dev, void *dst, const void *host, size_t n, mx_error *err)
{
    mx_stream s;
    MX_TRY(mx_stream_open(&s, dev, 0, err));
    dev->ops->upload(&s, dst, host, n);
    mx_status st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

/* How a table is kept; true: where it lies in the file, because ops can read it there. */
static bool stays_in_file(const mx_device *dev, const mx_blob *b, mx_dtype *type)
{
    static const mx_dtype plain[] = {[MX_FILE_F32] = MX_F32, [MX_FILE_F16] = MX_F16, [MX_FILE_BF16] = MX_BF16};
    *type = b->dtype <= MX_FILE_BF16 ? plain[b->dtype] : MX_F32;
    return b->dtype <= MX_FILE_BF16 && dev->kind == MX_CPU && (uintptr_t)b->data % mx_dtype_size(*type) == 0;
}

static mx_status load_table(mx_encoder *m, const char *stem, int64_t rows, mx_buffer *memory, mx_tensor *table, mx_error *err)
{
    char name[192];
    const mx_blob *b;
    mx_dtype type;
    spell(name, -1, stem, "weight");
    MX_TRY(want(m, name, rows, m->config.d_model, &b, err));
    bool as_it_is = b->dtype <= MX_FILE_BF16;
    if (stays_in_file(m->dev, b, &type)) {
        *table = mx_tensor_of((void *)(uintptr_t)b->data, type, b->rows, b->cols);
        return MX_OK;
    }
    size_t n;
    if (!mx_mul_size((size_t)b->rows, (size_t)b->cols * mx_dtype_size(type), &n)) return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s: size overflows", b->file, b->name);
    MX_TRY(mx_buffer_open(memory, m->dev, n, err));
    m->weight_bytes += n;
    *table = mx_tensor_of(memory->base, type, b->rows, b->cols);
    if (as_it_is) return send(m->dev, memory->base, b->data, n, err);
    float *host = malloc(n);
    if (!host) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: tensor %s: no %zu bytes to load it with", b->file, b->name, n);
    mx_blob_read(b, 0, b->rows, host);
    mx_status st = send(m->dev, memory->base, host, n, err);
    free(host);
    return st;
}

static mx_status load_all(mx_encoder *m, mx_error *err)
{
    const mx_encoder_config *c = &m->config;
    MX_TRY(load_table(m, "bert.embeddings.word_embeddings", c->vocab, &m->table_memory[0], &m->tokens, err));
    MX_TRY(load_table(m, "bert.embeddings.position_embeddings", c->max_positions, &m->table_memory[1], &m->positions, err));
    MX_TRY(load_table(m, "bert.embeddings.token_type_embeddings", c->types, &m->table_memory[2], &m->types, err));
    MX_TRY(load_norm(m, -1, "bert.embeddings.LayerNorm", &m->norm_gain, &m->norm_bias, err));
    for (int l = 0; l < c->layers; l++) MX_TRY(load_layer(m, l, err));
    if (find(m->file, "bert.pooler.dense.weight"))
        MX_TRY(load_linear(m, &m->pooler, -1, (const char *[]){"bert.pooler.dense"}, 1, c->d_model, c->d_model, m->dtype, err));
    if (m->pooler.w.dev && find(m->file, "classifier.weight"))
        MX_TRY(load_linear(m, &m->classifier, -1, (const char *[]){"classifier"}, 1, c->classes, c->d_model, m->dtype, err));
    return send(m->dev, m->vectors.base, m->vector_stage, m->vectors.size, err);
}

static size_t vector_bytes(const mx_encoder_config *c)
{
    size_t C = (size_t)c->d_model;
    return (2 * C + (size_t)c->layers * (9 * C + (size_t)c->d_ff) + C + (size_t)c->classes) * sizeof(float);
}

bool mx_encoder_footprint(mx_footprint *out, const mx_device *dev, const mx_checkpoint *file, const mx_encoder_config *c, mx_dtype dtype)
{
    static const char *const tables[] = {"bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"};
    int64_t C = c->d_model, F = c->d_ff;
    bool pooler = find(file, "bert.pooler.dense.weight") != NULL, head = pooler && find(file, "classifier.weight");
    mx_dtype down = dtype == MX_I8 ? MX_BF16 : dtype, type;
    const struct { int64_t n, rows, cols; mx_dtype as; } matrix[] = {
        {c->layers, 3 * C, C, dtype}, {c->layers, C, C, dtype}, {c->layers, F, C, dtype}, {c->layers, C, F, down}, {pooler, C, C, dtype}, {head, c->classes, C, dtype},
    };
    size_t threads = dev->pool ? (size_t)mx_pool_threads(dev->pool) : 1;
    *out = (mx_footprint){.weights = vector_bytes(c)};
    for (size_t i = 0; i < sizeof matrix / sizeof *matrix; i++) {
        if (!matrix[i].n) continue;
        size_t n = mx_weight_bytes(dev, matrix[i].rows, matrix[i].cols, matrix[i].as), stage = threads * 64 * (size_t)matrix[i].cols * sizeof(float);
        if (!n || !mx_mul_size(n, (size_t)matrix[i].n, &n) || !mx_add_size(out->weights, n, &out->weights)) return false;
        if (stage > out->loading) out->loading = stage;
    }
    for (int i = 0; i < 3; i++) {
        const mx_blob *b = find(file, tables[i]);
        if (!b || b->dtype == MX_FILE_OTHER) return false;
        if (!stays_in_file(dev, b, &type)) out->weights += (size_t)b->rows * (size_t)b->cols * mx_dtype_size(type);
    }
    out->loading += vector_bytes(c);
    return true;
}

mx_status mx_encoder_open(mx_encoder *m, mx_device *dev, mx_checkpoint *file, mx_encoder_config *config, mx_dtype dtype, mx_error *err)
{
    mx_status st;
    *m = (mx_encoder){.config = *config, .dev = dev, .file = file, .dtype = dtype};
    config->label = NULL;
    MX_TRY_GOTO(st, mx_buffer_open(&m->vectors, dev, vector_bytes(config), err), fail);
    m->weight_bytes = m->vectors.size;
    m->layer = calloc((size_t)config->layers, sizeof *m->layer);
    m->vector_stage = calloc(1, m->vectors.size);
    if (!m->layer || !m->vector_stage) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%d layers", config->layers);
        goto fail;
    }
    MX_TRY_GOTO(st, load_all(m, err), fail);
    free(m->vector_stage);
    m->vector_stage = NULL;
    return MX_OK;
fail:
    mx_encoder_close(m);
    return st;
}

void mx_encoder_close(mx_encoder *m)
{
    mx_weight_close(&m->classifier.w);
    mx_weight_close(&m->pooler.w);
    for (int l = 0; m->layer && l < m->config.layers; l++) {
        mx_weight_close(&m->layer[l].down.w);
        mx_weight_close(&m->layer[l].up.w);
        mx_weight_close(&m->layer[l].out.w);
        mx_weight_close(&m->layer[l].qkv.w);
    }
    free(m->layer);
    free(m->vector_stage);
    for (int i = 0; i < 3; i++) mx_buffer_close(&m->table_memory[i]);
    mx_buffer_close(&m->vectors);
    mx_checkpoint_close(m->file);
    mx_encoder_config_close(&m->config);
    *m = (mx_encoder){0};
}

/* ---- the forward pass ---------------------------------------------------------------- */

typedef struct rows {
    mx_tensor x, qkv, y, lse, act, begin;
} rows;

static void linear(mx_stream *s, mx_tensor y, mx_tensor x, const mx_encoder_linear *w, mx_activation act, bool add)
{
    mx_linear(s, y, x, &w->w, w->b, act, add);
}

static void block(const mx_encoder *m, mx_stream *s, const mx_encoder_layer *w, const rows *t)
{
    const mx_encoder_config *c = &m->config;
    int64_t C = c->d_model;
    mx_attention_shape shape = {.heads = c->heads, .kv_heads = c->heads, .scale = (float)(1 / sqrt((double)c->head_dim)),
                                .as = m->dtype == MX_F32 ? MX_F32 : MX_BF16};
    linear(s, t->qkv, t->x, &w->qkv, MX_ACT_NONE, false);
    mx_attention(s, t->y, t->lse, mx_tensor_cols(t->qkv, 0, C), mx_tensor_cols(t->qkv, C, C), mx_tensor_cols(t->qkv, 2 * C, C), t->begin, shape);
    linear(s, t->x, t->y, &w->out, MX_ACT_NONE, true);
    mx_norm(s, t->x, t->x, w->norm1_gain, w->norm1_bias, c->norm_eps);
    linear(s, t->act, t->x, &w->up, c->act, false);
    linear(s, t->x, t->act, &w->down, MX_ACT_NONE, true);
    mx_norm(s, t->x, t->x, w->norm2_gain, w->norm2_bias, c->norm_eps);
}

static void pool(const mx_encoder *m, mx_stream *s, const rows *t, int32_t texts, unsigned asked, bool classify, mx_encoder_out *out)
{
    int64_t C = m->config.d_model;
    mx_tensor none = {0};
    bool pooler = asked >> MX_POOL_POOLER & 1 || classify;
    if ((pooler && !m->pooler.w.dev) || (classify && !m->classifier.w.dev)) {
        mx_stream_fail(s, MX_ERR_STATE, "this model has no %s", classify ? "classification head" : "pooler");
        return;
    }
    if (asked >> MX_POOL_MEAN & 1) {
        out->pooled[MX_POOL_MEAN] = mx_stream_tensor(s, MX_F32, texts, C);
        mx_aggregate(s, out->pooled[MX_POOL_MEAN], t->x, none, t->begin, none, MX_REDUCE_MEAN);
    }
    if (!(asked >> MX_POOL_CLS & 1) && !pooler) return;
    out->pooled[MX_POOL_CLS] = mx_stream_tensor(s, MX_F32, texts, C);
    mx_embed(s, out->pooled[MX_POOL_CLS], t->x, mx_tensor_rows(t->begin, 0, texts), false);
    if (!pooler) return;
    out->pooled[MX_POOL_POOLER] = mx_stream_tensor(s, MX_F32, texts, C);
    linear(s, out->pooled[MX_POOL_POOLER], out->pooled[MX_POOL_CLS], &m->pooler, MX_ACT_TANH, false);
    if (!classify) return;
    out->logits = mx_stream_tensor(s, MX_F32, texts, m->config.classes);
    linear(s, out->logits, out->pooled[MX_POOL_POOLER], &m->classifier, MX_ACT_NONE, false);
}

void mx_encoder_forward(const mx_encoder *m, mx_stream *s, const mx_encoder_batch *b, unsigned asked, bool classify, mx_encoder_out *out)
{
    const mx_encoder_config *c = &m->config;
    int64_t N = b->n_rows, C = c->d_model;
    mx_tensor ids = mx_stream_upload(s, MX_I32, N, 1, b->ids), positions = mx_stream_upload(s, MX_I32, N, 1, b->positions);
    mx_tensor types = mx_stream_upload(s, MX_I32, N, 1, b->zeros);
    rows t = {.x = mx_stream_tensor(s, MX_F32, N, C), .qkv = mx_stream_tensor(s, MX_F32, N, 3 * C), .y = mx_stream_tensor(s, MX_F32, N, C),
              .lse = mx_stream_tensor(s, MX_F32, N, c->heads), .act = mx_stream_tensor(s, MX_F32, N, c->d_ff),
              .begin = mx_stream_upload(s, MX_I32, (int64_t)b->n_texts + 1, 1, b->begin)};
    *out = (mx_encoder_out){.hidden = t.x};
    mx_embed(s, t.x, m->tokens, ids, false);
    mx_embed(s, t.x, m->positions, positions, true);
    mx_embed(s, t.x, m->types, types, true);
    mx_norm(s, t.x, t.x, m->norm_gain, m->norm_bias, c->norm_eps);
    for (int32_t l = 0; l < c->layers; l++) block(m, s, &m->layer[l], &t);
    pool(m, s, &t, b->n_texts, asked, classify, out);
}

size_t mx_encoder_scratch(const mx_encoder *m, int32_t n, int32_t texts)
{
    const mx_encoder_config *c = &m->config;
    int64_t C = c->d_model;
    size_t total = 0, parts[] = {
        3 * mx_stream_tensor_bytes(MX_I32, n, 1), mx_stream_tensor_bytes(MX_I32, (int64_t)texts + 1, 1),
        2 * mx_stream_tensor_bytes(MX_F32, n, C), mx_stream_tensor_bytes(MX_F32, n, 3 * C), mx_stream_tensor_bytes(MX_F32, n, c->heads),
        mx_stream_tensor_bytes(MX_F32, n, c->d_ff), 3 * mx_stream_tensor_bytes(MX_F32, texts, C),
        mx_stream_tensor_bytes(MX_F32, texts, c->classes),
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!mx_add_size(total, parts[i], &total)) return 0;
    return total;
}
