/* gnn_config.c - what a graph network is: its description, weights and files. */
#include "models/gnn_internal.h"

#include "models/config_fields.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const kinds[MX_GNN_KINDS] = {"sage", "gcn", "gat", "rgcn", "lightgcn"};
static const char *const tasks[MX_GNN_TASKS] = {"classes", "labels", "links", "ranking"};
static const struct { const char *name; mx_activation act; } acts[] = {{"relu", MX_ACT_RELU}, {"elu", MX_ACT_ELU}, {"none", MX_ACT_NONE}};
enum { N_ACTS = sizeof acts / sizeof *acts };

const char *mx_gnn_kind_name(mx_gnn_kind k) { return (unsigned)k < MX_GNN_KINDS ? kinds[k] : NULL; }
const char *mx_gnn_task_name(mx_gnn_task t) { return (unsigned)t < MX_GNN_TASKS ? tasks[t] : NULL; }

/* ---- the description ------------------------------------------------------------------ */

int32_t mx_gnn_width(const mx_gnn_config *c, int32_t layer)
{
    if (layer == 0 || c->kind == MX_GNN_LIGHTGCN) return c->features + c->id_cols;
    return layer == c->layers ? c->outputs : c->hidden;
}

mx_status mx_gnn_config_check(const mx_gnn_config *c, mx_error *err)
{
    bool gat = c->kind == MX_GNN_GAT, light = c->kind == MX_GNN_LIGHTGCN;
    const struct { const char *name; int64_t value; bool ok; const char *must; } rules[] = {
        {"kind", c->kind, (unsigned)c->kind < MX_GNN_KINDS, "one of sage, gcn, gat, rgcn, lightgcn"},
        {"task", c->task, (unsigned)c->task < MX_GNN_TASKS, "one of classes, labels, links, ranking"},
        {"layers", c->layers, c->layers >= 1 && c->layers <= MX_GNN_LAYERS, "from 1 to 8"},
        {"features", c->features, c->features >= 0 && c->features <= 65536, "from 0 to 65536"},
        {"id_nodes", c->id_nodes, c->id_nodes >= 0 && (c->id_nodes > 0) == (c->id_cols > 0), "over 0 exactly when id_cols is"},
        {"id_cols", c->id_cols, c->id_cols >= 0 && c->id_cols <= 65536, "from 0 to 65536"},
        {"features", c->features, c->features + c->id_cols > 0, "over 0, or id_cols is: a node needs an input"},
        {"features", c->features, !light || !c->features, "0: lightgcn learns from ids alone"},
        {"hidden", c->hidden, light || c->layers == 1 || (c->hidden >= 1 && c->hidden <= 65536), "from 1 to 65536"},
        {"outputs", c->outputs, c->outputs >= 1 && c->outputs <= 65536, "from 1 to 65536"},
        {"outputs", c->outputs, !light || c->outputs == c->id_cols, "id_cols for lightgcn"},
        {"heads", c->heads, !gat || (c->heads >= 1 && c->heads <= 64 && c->hidden % c->heads == 0), "from 1 to 64, and divide hidden"},
        {"out_heads", c->out_heads, !gat || (c->out_heads >= 1 && c->out_heads <= 64), "from 1 to 64"},
        {"max_degree", c->max_degree, c->max_degree >= 0 && c->max_degree <= MX_GNN_DEGREE, "from 0 (all) to 4096"},
        {"relations", c->relations, c->kind != MX_GNN_RGCN || (c->relations >= 1 && c->relations <= MX_GRAPH_RELATIONS), "from 1 to 64"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!rules[i].ok) return mx_fail(err, MX_ERR_ARG, "gnn: %s is %lld; it must be %s", rules[i].name, (long long)rules[i].value, rules[i].must);
    for (int i = 0; i < N_ACTS; i++)
        if (acts[i].act == c->act) return MX_OK;
    return mx_fail(err, MX_ERR_ARG, "gnn: activation must be relu, elu or none");
}

/* ---- weights ----------------------------------------------------------------------------- */

static mx_status add(mx_gnn *m, int *at, int32_t layer, const char *name, int64_t rows, int64_t cols, unsigned flags, mx_error *err)
{
    char full[MX_PARAM_NAME];
    snprintf(full, sizeof full, "convs.%d.%s", layer, name);
    *at = mx_params_add(&m->params, full, rows, cols, flags, err);
    return *at < 0 ? MX_ERR_ARG : MX_OK;
}

static mx_status list_layer(mx_gnn *m, int32_t l, mx_error *err)
{
    const mx_gnn_config *c = &m->config;
    gnn_weights *w = &m->layer[l];
    int64_t in = mx_gnn_width(c, l), out = mx_gnn_width(c, l + 1), wide = out;
    *w = (gnn_weights){-1, -1, -1, -1, -1};
    switch (c->kind) {
    case MX_GNN_SAGE:
        MX_TRY(add(m, &w->near, l, "lin_l.weight", out, in, 0, err));
        MX_TRY(add(m, &w->bias, l, "lin_l.bias", 1, out, MX_PARAM_VECTOR, err));
        return add(m, &w->self, l, "lin_r.weight", out, in, 0, err);
    case MX_GNN_GCN:
        MX_TRY(add(m, &w->near, l, "lin.weight", out, in, 0, err));
        return add(m, &w->bias, l, "bias", 1, out, MX_PARAM_VECTOR, err);
    case MX_GNN_GAT:
        if (l == c->layers - 1) wide *= c->out_heads;
        MX_TRY(add(m, &w->near, l, "lin.weight", wide, in, 0, err));
        MX_TRY(add(m, &w->src, l, "att_src", 1, wide, 0, err));
        MX_TRY(add(m, &w->dst, l, "att_dst", 1, wide, 0, err));
        return add(m, &w->bias, l, "bias", 1, out, MX_PARAM_VECTOR, err);
    case MX_GNN_RGCN:
        for (int32_t r = 0, at; r < c->relations; r++) {
            char name[24];
            snprintf(name, sizeof name, "weight.%d", r);
            MX_TRY(add(m, &at, l, name, out, in, 0, err));
            if (!r) w->near = at;
        }
        MX_TRY(add(m, &w->self, l, "root", out, in, 0, err));
        return add(m, &w->bias, l, "bias", 1, out, MX_PARAM_VECTOR, err);
    default: return MX_OK;
    }
}

mx_status gnn_new(mx_gnn **out, mx_device *dev, const mx_gnn_config *c, bool learn, mx_error *err)
{
    mx_status st;
    *out = NULL;
    MX_TRY(mx_gnn_config_check(c, err));
    mx_gnn *m = calloc(1, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "a graph network");
    m->config = *c;
    m->table = -1;
    if (c->id_nodes && (m->table = mx_params_add(&m->params, "embedding.weight", c->id_nodes, c->id_cols, 0, err)) < 0) {
        mx_gnn_close(m);
        return MX_ERR_ARG;
    }
    for (int32_t l = 0; l < c->layers; l++) MX_TRY_GOTO(st, list_layer(m, l, err), fail);
    MX_TRY_GOTO(st, mx_params_alloc(&m->params, dev, learn, err), fail);
    *out = m;
    return MX_OK;
fail:
    mx_gnn_close(m);
    return st;
}

/* The layer of parameter i: the last whose weights begin at it or before. */
static int32_t layer_of(const mx_gnn *m, int i)
{
    int32_t l = m->config.layers - 1;
    while (l > 0 && m->layer[l].near > i) l--;
    return l;
}

mx_status mx_gnn_create(mx_gnn **out, mx_device *dev, const mx_gnn_config *c, uint64_t seed, mx_error *err)
{
    mx_status st = MX_OK;
    mx_gnn *m;
    MX_TRY(gnn_new(&m, dev, c, true, err));
    for (int i = 0; i < m->params.n && !st; i++) {
        const mx_param *p = &m->params.param[i];
        double glorot = sqrt(2.0 / (double)(p->rows + p->cols));
        if (i == m->layer[layer_of(m, i)].src || i == m->layer[layer_of(m, i)].dst) {                 /* attention's vectors: heads by channels */
            int64_t heads = layer_of(m, i) == c->layers - 1 ? c->out_heads : c->heads;
            glorot = sqrt(2.0 / (double)(heads + p->cols / heads));
        }
        if (p->flags & MX_PARAM_VECTOR) st = mx_params_fill(&m->params, i, 0, err);
        else st = mx_params_init(&m->params, i, i == m->table ? 0.1f : (float)glorot, seed, err);
    }
    if (st) mx_gnn_close(m);
    else *out = m;
    return st;
}

void mx_gnn_close(mx_gnn *m)
{
    if (!m) return;
    for (int i = 0; i < MX_GNN_LAYERS; i++) gnn_block_close(&m->block[i]);
    for (int i = 0; i < MX_GRAPH_RELATIONS; i++) mx_buffer_close(&m->begin_memory[i]);
    gnn_map_close(&m->map);
    gnn_sparse_close(m);
    gnn_block_close(&m->asked);
    mx_stream_close(&m->stream);
    mx_params_close(&m->params);
    free(m->pool), free(m->pool_begin), free(m->list), free(m->floats);
    free(m);
}

const mx_gnn_config *mx_gnn_config_of(const mx_gnn *m) { return &m->config; }
mx_params *mx_gnn_params(mx_gnn *m) { return &m->params; }

uint64_t mx_gnn_print(const mx_gnn *m)
{
    uint64_t h = 0xcbf29ce484222325u ^ (uint64_t)m->config.kind << 32 ^ (uint64_t)m->config.layers << 16 ^ (uint64_t)m->config.outputs ^ m->config.store;
    for (int i = 0; i < m->params.n; i++) {
        mx_tensor t = mx_params_view(&m->params, &m->params.value, i, 1);
        for (int64_t r = 0; r < t.rows && i != m->table; r++)
            for (int64_t c = 0; c < t.cols; c++) {
                uint32_t bits;
                memcpy(&bits, (const float *)t.data + r * t.stride + c, sizeof bits);
                h = (h ^ bits) * 0x100000001b3u;
            }
    }
    return h;
}

bool mx_gnn_forget(mx_gnn *m, int32_t node)
{
    if (m->table < 0 || node < 0 || node >= m->config.id_nodes || m->params.dev->kind != MX_CPU) return false;
    mx_tensor row = mx_tensor_rows(mx_params_view(&m->params, &m->params.value, m->table, 1), node, 1);
    float *x = row.data;
    bool told = false;
    for (int64_t c = 0; c < row.cols; c++) {
        told |= x[c] != 0;
        x[c] = 0;
    }
    return told;
}

/* ---- files ----------------------------------------------------------------------------------- */

static const char *act_name(mx_activation a)
{
    for (int i = 0; i < N_ACTS; i++)
        if (acts[i].act == a) return acts[i].name;
    return "none";
}

mx_status mx_gnn_save(const mx_gnn *m, const char *folder, mx_error *err)
{
    const mx_gnn_config *c = &m->config;
    char path[MX_PATH], texts[20], store[20];
    snprintf(texts, sizeof texts, "%016llx", (unsigned long long)c->texts);
    snprintf(store, sizeof store, "%016llx", (unsigned long long)c->store);
    json_t *o = json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:s, s:s*, s:s*}", "model_type", "merx_gnn", "kind", kinds[c->kind],
                          "task", tasks[c->task], "layers", c->layers, "features", c->features, "id_nodes", c->id_nodes, "id_cols", c->id_cols, "hidden",
                          c->hidden, "outputs", c->outputs, "heads", c->heads, "out_heads", c->out_heads, "relations", c->relations, "max_degree", c->max_degree, "max", c->max, "unit",
                          c->unit, "activation", act_name(c->act), "texts", c->texts ? texts : NULL, "store", c->store ? store : NULL);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    mx_status st = text ? mx_path_join(path, folder, "config.json", err) : mx_fail(err, MX_ERR_NO_MEMORY, "a network's description");
    if (!st) st = mx_write_file(path, text, strlen(text), err);
    free(text);
    json_decref(o);
    MX_TRY(st);
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    return mx_params_save_as(&m->params, &m->params.value, path, MX_SAVE_F32, false, (const char *[]){"format", "pt"}, 1, err);
}

static int named(const mx_fields *f, const char *field, const char *const *names, int n, const char *allowed)
{
    const char *text = mx_field_text(f, field, "");
    for (int i = 0; i < n; i++)
        if (text && !strcmp(text, names[i])) return i;
    mx_field_refuse(f, field, mx_field(f, field), allowed);
    return 0;
}

/* The object in folder/config.json, whose path is told. */
static mx_status read_json(json_t **out, char path[MX_PATH], const char *folder, mx_error *err)
{
    char *text = NULL;
    size_t len = 0;
    json_error_t why;
    *out = NULL;
    MX_TRY(mx_path_join(path, folder, "config.json", err));
    MX_TRY(mx_read_file(path, (size_t)1 << 20, &text, &len, err));
    json_t *o = json_loadb(text, len, 0, &why);
    free(text);
    if (!json_is_object(o)) {
        json_decref(o);
        return mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", path, why.line, o ? "not an object" : why.text);
    }
    *out = o;
    return MX_OK;
}

bool mx_gnn_is(const char *folder)
{
    char path[MX_PATH];
    json_t *o;
    mx_error none;
    if (read_json(&o, path, folder, &none)) return false;
    const char *type = json_string_value(json_object_get(o, "model_type"));
    bool is = type && !strcmp(type, "merx_gnn");
    json_decref(o);
    return is;
}

mx_status mx_gnn_read_config(mx_gnn_config *c, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    json_t *o;
    mx_status st = MX_OK;
    MX_TRY(read_json(&o, path, folder, err));
    const mx_fields f = {o, "", path, &st, err};
    const char *act_names[N_ACTS];
    for (int i = 0; i < N_ACTS; i++) act_names[i] = acts[i].name;
    if (named(&f, "model_type", (const char *[]){"merx_gnn"}, 1, "merx_gnn")) st = MX_ERR_FORMAT;
    const int32_t most = 65536;
    *c = (mx_gnn_config){.kind = (mx_gnn_kind)named(&f, "kind", kinds, MX_GNN_KINDS, "sage, gcn, gat, rgcn or lightgcn"),
                         .task = (mx_gnn_task)named(&f, "task", tasks, MX_GNN_TASKS, "classes, labels, links or ranking"),
                         .layers = mx_field_int(&f, "layers", 2, 1, MX_GNN_LAYERS), .features = mx_field_int(&f, "features", 0, 0, most),
                         .id_nodes = mx_field_int(&f, "id_nodes", 0, 0, INT32_MAX), .id_cols = mx_field_int(&f, "id_cols", 0, 0, most),
                         .hidden = mx_field_int(&f, "hidden", 0, 0, most), .outputs = mx_field_int(&f, "outputs", 0, 1, most),
                         .heads = mx_field_int(&f, "heads", 0, 0, 64), .out_heads = mx_field_int(&f, "out_heads", 0, 0, 64),
                         .relations = mx_field_int(&f, "relations", 0, 0, MX_GRAPH_RELATIONS), .max_degree = mx_field_int(&f, "max_degree", 0, 0, MX_GNN_DEGREE), .max = mx_field_bool(&f, "max", false),
                         .texts = strtoull(mx_field_text(&f, "texts", "0"), NULL, 16), .store = strtoull(mx_field_text(&f, "store", "0"), NULL, 16),
                         .unit = mx_field_bool(&f, "unit", false), .act = acts[named(&f, "activation", act_names, N_ACTS, "relu, elu or none")].act};
    json_decref(o);
    if (!st && mx_gnn_config_check(c, err)) st = err ? err->code = MX_ERR_FORMAT : MX_ERR_FORMAT;
    return st;
}

mx_status mx_gnn_open(mx_gnn **out, mx_device *dev, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    mx_gnn_config c;
    mx_checkpoint *file = NULL;
    mx_gnn *m;
    *out = NULL;
    MX_TRY(mx_gnn_read_config(&c, folder, err));
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    MX_TRY(mx_checkpoint_open(&file, path, err));
    mx_status st = gnn_new(&m, dev, &c, false, err);
    if (!st) {
        st = mx_params_load(&m->params, file, NULL, err);
        if (st) mx_gnn_close(m);
        else *out = m;
    }
    mx_checkpoint_close(file);
    return st;
}
