/* bert_params.c - the names and places of an encoder's weights, and its files. */
#include "models/bert_internal.h"

#include "models/model_files.h"

#include <stdio.h>

/* ---- the list ------------------------------------------------------------------------ */

/* layer < 0: stem is the whole name before the suffix. */
static mx_status add(mx_bert *m, int32_t layer, const char *stem, const char *suffix, int64_t rows, int64_t cols, unsigned flags, mx_error *err)
{
    char name[MX_PARAM_NAME];
    if (layer < 0) snprintf(name, sizeof name, "%s.%s", stem, suffix);
    else snprintf(name, sizeof name, "bert.encoder.layer.%d.%s.%s", layer, stem, suffix);
    return mx_params_add(&m->params, name, rows, cols, flags, err) < 0 ? err ? err->code : MX_ERR_ARG : MX_OK;
}

static mx_status add_gain(mx_bert *m, bert_gain *g, int32_t layer, const char *stem, mx_error *err)
{
    g->at = m->params.n;
    MX_TRY(add(m, layer, stem, "weight", 1, m->config.d_model, MX_PARAM_VECTOR, err));
    return add(m, layer, stem, "bias", 1, m->config.d_model, MX_PARAM_VECTOR, err);
}

static mx_status add_product(mx_bert *m, bert_product *p, int32_t layer, const char *const *stems, int parts, int64_t rows, int64_t cols,
                             mx_error *err)
{
    p->at = m->params.n;
    p->parts = parts;
    for (int i = 0; i < parts; i++) MX_TRY(add(m, layer, stems[i], "weight", rows, cols, i ? MX_PARAM_JOIN : 0, err));
    for (int i = 0; i < parts; i++) MX_TRY(add(m, layer, stems[i], "bias", 1, rows, MX_PARAM_VECTOR | (i ? MX_PARAM_JOIN : 0), err));
    return MX_OK;
}

static mx_status add_table(mx_bert *m, bert_product *p, const char *stem, int64_t rows, mx_error *err)
{
    p->at = m->params.n;
    p->parts = 1;
    return add(m, -1, stem, "weight", rows, m->config.d_model, 0, err);
}

static mx_status list_layer(mx_bert *m, int32_t l, mx_error *err)
{
    static const char *const qkv[] = {"attention.self.query", "attention.self.key", "attention.self.value"};
    int64_t C = m->config.d_model, F = m->config.d_ff;
    bert_layer *w = &m->layer[l];
    MX_TRY(add_product(m, &w->qkv, l, qkv, 3, C, C, err));
    MX_TRY(add_product(m, &w->out, l, (const char *[]){"attention.output.dense"}, 1, C, C, err));
    MX_TRY(add_gain(m, &w->norm1, l, "attention.output.LayerNorm", err));
    MX_TRY(add_product(m, &w->up, l, (const char *[]){"intermediate.dense"}, 1, F, C, err));
    MX_TRY(add_product(m, &w->down, l, (const char *[]){"output.dense"}, 1, C, F, err));
    return add_gain(m, &w->norm2, l, "output.LayerNorm", err);
}

static mx_status list_head(mx_bert *m, mx_error *err)
{
    int64_t C = m->config.d_model;
    m->first_head = m->params.n;
    if (m->opt.task == MX_BERT_CLASSIFY) {
        MX_TRY(add_product(m, &m->transform, -1, (const char *[]){"bert.pooler.dense"}, 1, C, C, err));
        return add_product(m, &m->head, -1, (const char *[]){"classifier"}, 1, m->opt.classes, C, err);
    }
    MX_TRY(add_product(m, &m->transform, -1, (const char *[]){"cls.predictions.transform.dense"}, 1, C, C, err));
    MX_TRY(add_gain(m, &m->head_norm, -1, "cls.predictions.transform.LayerNorm", err));
    m->head.at = m->params.n;
    return add(m, -1, "cls.predictions", "bias", 1, m->config.vocab, MX_PARAM_VECTOR, err);
}

mx_status bert_list(mx_bert *m, mx_error *err)
{
    MX_TRY(add_table(m, &m->tokens, "bert.embeddings.word_embeddings", m->config.vocab, err));
    MX_TRY(add_table(m, &m->positions, "bert.embeddings.position_embeddings", m->config.max_positions, err));
    MX_TRY(add_table(m, &m->types, "bert.embeddings.token_type_embeddings", m->config.types, err));
    MX_TRY(add_gain(m, &m->norm, -1, "bert.embeddings.LayerNorm", err));
    for (int32_t l = 0; l < m->config.layers; l++) MX_TRY(list_layer(m, l, err));
    return list_head(m, err);
}

/* ---- views ------------------------------------------------------------------------------ */

static void bind_weights(const mx_params *p, bert_product *w)
{
    w->w = mx_params_view(p, &p->value, w->at, w->parts);
    w->dw = mx_params_view(p, &p->grad, w->at, w->parts);
}

static void bind_product(const mx_params *p, bert_product *w)
{
    bind_weights(p, w);
    w->b = mx_params_view(p, &p->value, w->at + w->parts, w->parts);
    w->db = mx_params_view(p, &p->grad, w->at + w->parts, w->parts);
}

static void bind_gain(const mx_params *p, bert_gain *g)
{
    g->g = mx_params_view(p, &p->value, g->at, 1);
    g->dg = mx_params_view(p, &p->grad, g->at, 1);
    g->b = mx_params_view(p, &p->value, g->at + 1, 1);
    g->db = mx_params_view(p, &p->grad, g->at + 1, 1);
}

void bert_bind(mx_bert *m)
{
    const mx_params *p = &m->params;
    bind_weights(p, &m->tokens);
    bind_weights(p, &m->positions);
    bind_weights(p, &m->types);
    bind_gain(p, &m->norm);
    for (int32_t l = 0; l < m->config.layers; l++) {
        bert_layer *w = &m->layer[l];
        bind_product(p, &w->qkv);
        bind_product(p, &w->out);
        bind_gain(p, &w->norm1);
        bind_product(p, &w->up);
        bind_product(p, &w->down);
        bind_gain(p, &w->norm2);
        m->layer_first[l] = p->param[w->qkv.at].offset;
    }
    m->layer_first[m->config.layers] = p->param[m->first_head].offset;
    bind_product(p, &m->transform);
    if (m->opt.task == MX_BERT_CLASSIFY) {
        bind_product(p, &m->head);
        return;
    }
    bind_gain(p, &m->head_norm);
    m->head.w = m->tokens.w;
    m->head.dw = m->tokens.dw;
    m->head.b = mx_params_view(p, &p->value, m->head.at, 1);
    m->head.db = mx_params_view(p, &p->grad, m->head.at, 1);
}

/* ---- values ------------------------------------------------------------------------------ */

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

mx_status bert_init(mx_bert *m, mx_error *err)
{
    for (int i = 0; i < m->params.n; i++) {
        const mx_param *p = &m->params.param[i];
        if (p->flags & MX_PARAM_VECTOR) MX_TRY(mx_params_fill(&m->params, i, ends_with(p->name, "LayerNorm.weight") ? 1 : 0, err));
        else MX_TRY(mx_params_init(&m->params, i, m->config.init_range, m->opt.seed, err));
    }
    return MX_OK;
}

/* As named, without "bert." (BertModel's own files), or with gamma and beta (the first BERTs). */
static const mx_blob *find(const mx_checkpoint *c, const char *name)
{
    char old[MX_PARAM_NAME + 8];
    const mx_blob *b = mx_checkpoint_find(c, name);
    if (!b && !strncmp(name, "bert.", 5)) b = mx_checkpoint_find(c, name + 5);
    if (b || !strstr(name, "LayerNorm.")) return b;
    int stem = (int)(strrchr(name, '.') - name);
    snprintf(old, sizeof old, "%.*s.%s", stem, name, ends_with(name, "weight") ? "gamma" : "beta");
    b = mx_checkpoint_find(c, old);
    return b || strncmp(old, "bert.", 5) ? b : mx_checkpoint_find(c, old + 5);
}

static mx_status read_all(mx_bert *m, const mx_checkpoint *c, bool heads_may_lack, mx_error *err)
{
    m->fresh = 0;
    for (int i = 0; i < m->params.n; i++) {
        const mx_blob *b = find(c, m->params.param[i].name);
        if (!b && heads_may_lack && i >= m->first_head) m->fresh++;
        else MX_TRY(mx_params_load_blob(&m->params, i, b, err));
    }
    return MX_OK;
}

mx_status bert_read(mx_bert *m, mx_error *err)
{
    mx_checkpoint *c = NULL;
    MX_TRY(mx_checkpoint_open(&c, m->folder, err));
    mx_status st = read_all(m, c, true, err);
    mx_checkpoint_close(c);
    return st;
}

/* ---- files ---------------------------------------------------------------------------------- */

static json_t *labels_of(const mx_bert *m)
{
    json_t *to = json_object(), *from = json_object(), *set = json_object();
    bool own = !m->opt.labels && m->config.label && m->opt.classes == m->config.classes;
    for (int32_t i = 0; i < m->opt.classes; i++) {
        char key[16], name[MX_ENCODER_LABEL];
        snprintf(key, sizeof key, "%d", i);
        if (m->opt.labels) snprintf(name, sizeof name, "%s", m->opt.labels[i]);
        else if (own) snprintf(name, sizeof name, "%s", m->config.label[i]);
        else snprintf(name, sizeof name, "LABEL_%d", i);
        json_object_set_new(to, key, json_string(name));
        json_object_set_new(from, name, json_integer(i));
    }
    json_object_set_new(set, "id2label", to);
    json_object_set_new(set, "label2id", from);
    json_object_set_new(set, "architectures", json_pack("[s]", "BertForSequenceClassification"));
    return set;
}

mx_status bert_save(const void *network, const char *folder, mx_error *err)
{
    const mx_bert *m = network;
    char path[MX_PATH];
    json_t *set = m->opt.task == MX_BERT_CLASSIFY ? labels_of(m) : json_pack("{s:[s]}", "architectures", "BertForMaskedLM");
    mx_status st = mx_model_copy_config(m->folder, folder, set, err);
    json_decref(set);
    MX_TRY(st);
    MX_TRY(mx_model_copy_tokenizer(m->folder, folder, err));
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    return mx_params_save_as(&m->params, &m->params.value, path, MX_SAVE_F32, false, (const char *[]){"format", "pt"}, 1, err);
}

mx_status bert_load(void *network, const char *folder, mx_error *err)
{
    mx_bert *m = network;
    char path[MX_PATH];
    mx_checkpoint *c = NULL;
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    MX_TRY(mx_checkpoint_open(&c, path, err));
    mx_status st = read_all(m, c, false, err);
    mx_checkpoint_close(c);
    return st;
}
