/* gnn_layer.c - one layer, forward and back. */
#include "models/gnn_internal.h"

#include <stdlib.h>

static const mx_tensor none;

static mx_tensor value(const mx_gnn *m, int at)
{
    return at < 0 ? none : mx_params_view(&m->params, &m->params.value, at, 1);
}

static mx_tensor gradient(const mx_gnn *m, int at)
{
    return at < 0 ? none : mx_params_view(&m->params, &m->params.grad, at, 1);
}

static bool last(const mx_gnn *m, int32_t layer)
{
    return layer == m->config.layers - 1;
}

/* gat: side by side, or their mean */
static int32_t heads_of(const mx_gnn *m, int32_t layer)
{
    return last(m, layer) ? m->config.out_heads : m->config.heads;
}

static bool averages(const mx_gnn *m, int32_t layer)
{
    return m->config.kind == MX_GNN_GAT && last(m, layer) && m->config.out_heads > 1;
}

static int64_t columns(const mx_gnn *m, int32_t layer)      /* of all heads */
{
    int64_t o = mx_gnn_width(&m->config, layer + 1);
    return averages(m, layer) ? o * m->config.out_heads : o;
}

/* ---- the edges on the device --------------------------------------------------------------- */

static mx_tensor there(mx_stream *s, mx_dtype t, int64_t n, const void *host)
{
    if (s->dev->kind == MX_CPU) return mx_tensor_of((void *)(uintptr_t)host, t, n, 1);      /* the block outlives the pass */
    return mx_stream_upload(s, t, n, 1, host);
}

void gnn_upload(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, bool turned, gnn_step *t)
{
    for (int32_t r = 0; r < b->sets; r++) {
        const gnn_edges *e = &b->set[r];
        gnn_edge_tensors *to = &t->edges[r];
        to->begin = there(s, MX_I32, (int64_t)b->dst + 1, e->begin);
        to->ids = there(s, MX_I32, e->n, e->ids);
        to->weight = there(s, MX_F32, e->n, e->weight);
        if (!turned) continue;
        to->t.begin = there(s, MX_I32, (int64_t)b->src + 1, e->t_begin);
        to->t.span = there(s, MX_I32, e->n, e->t_span);
        to->t.edge = there(s, MX_I32, e->n, e->t_edge);
        to->t_weight = there(s, MX_F32, e->n, e->t_weight);
    }
    t->zeros = none;
    if (m->layer[layer].bias < 0) return;
    t->zeros = mx_stream_tensor(s, MX_I32, b->dst, 1);
    if (!s->error.code) s->dev->ops->clear(s, t->zeros.data, (size_t)b->dst * 4);
}

/* counts[i] = i * step: spans of `step` rows, n of them; or each of n rows `step` times */
static mx_tensor counted(mx_stream *s, int64_t n, int32_t step, bool repeated)
{
    int64_t rows = repeated ? n * step : n + 1;
    int32_t *host = malloc((size_t)rows * 4);
    mx_tensor t = none;
    if (!host) mx_stream_fail(s, MX_ERR_NO_MEMORY, "gnn: %lld numbers", (long long)rows);
    else {
        for (int64_t i = 0; i < rows; i++) host[i] = (int32_t)(repeated ? i / step : i * step);
        t = mx_stream_upload(s, MX_I32, rows, 1, host);
    }
    free(host);
    return t;
}

/* ---- forward ---------------------------------------------------------------------------------- */

static void sage(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t)
{
    const gnn_weights *w = &m->layer[layer];
    const gnn_edge_tensors *e = &t->edges[0];
    t->near[0] = mx_stream_tensor(s, MX_F32, b->dst, t->x.cols);
    mx_aggregate(s, t->near[0], t->x, e->ids, e->begin, m->config.max ? none : e->weight, m->config.max ? MX_REDUCE_MAX : MX_REDUCE_SUM);
    mx_product(s, t->pre, t->near[0], value(m, w->near), value(m, w->bias), MX_F32, false);
    mx_product(s, t->pre, mx_tensor_rows(t->x, 0, b->dst), value(m, w->self), none, MX_F32, true);
    if (!m->config.unit) return;
    t->raw = t->pre;
    t->pre = mx_stream_tensor(s, MX_F32, b->dst, t->raw.cols);
    mx_unit_rows(s, t->pre, t->raw, 1e-12f);
}

static void rgcn(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t)
{
    const gnn_weights *w = &m->layer[layer];
    mx_product(s, t->pre, mx_tensor_rows(t->x, 0, b->dst), value(m, w->self), value(m, w->bias), MX_F32, false);
    for (int32_t r = 0; r < b->sets; r++) {
        t->near[r] = mx_stream_tensor(s, MX_F32, b->dst, t->x.cols);
        mx_aggregate(s, t->near[r], t->x, t->edges[r].ids, t->edges[r].begin, t->edges[r].weight, MX_REDUCE_SUM);
        mx_product(s, t->pre, t->near[r], value(m, w->near + r), none, MX_F32, true);
    }
}

static void project(mx_gnn *m, mx_stream *s, int32_t layer, gnn_step *t)
{
    mx_tensor w = value(m, m->layer[layer].near);
    if (t->x.data) mx_product(s, t->z, t->x, w, none, MX_F32, false);
    else gnn_sparse_forward(m, s, t, w);
}

static void gcn(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t)
{
    const gnn_weights *w = &m->layer[layer];
    t->z = mx_stream_tensor(s, MX_F32, b->src, t->pre.cols);
    project(m, s, layer, t);
    mx_aggregate(s, t->pre, t->z, t->edges[0].ids, t->edges[0].begin, t->edges[0].weight, MX_REDUCE_SUM);
    mx_embed(s, t->pre, value(m, w->bias), t->zeros, true);
}

static void gat(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t)
{
    const gnn_weights *w = &m->layer[layer];
    int32_t heads = heads_of(m, layer);
    mx_graph_heads a = {heads, 0.2f, t->edge_dropout, t->seed};
    t->z = mx_stream_tensor(s, MX_F32, b->src, columns(m, layer));
    t->e_src = mx_stream_tensor(s, MX_F32, b->src, heads);
    t->e_dst = mx_stream_tensor(s, MX_F32, b->dst, heads);
    t->lse = mx_stream_tensor(s, MX_F32, b->dst, heads);
    t->heads = averages(m, layer) ? mx_stream_tensor(s, MX_F32, b->dst, t->z.cols) : mx_stream_tensor(s, MX_F32, b->dst, t->pre.cols);
    project(m, s, layer, t);
    mx_dot(s, t->e_src, t->z, value(m, w->src));
    mx_dot(s, t->e_dst, mx_tensor_rows(t->z, 0, b->dst), value(m, w->dst));
    t->taken = t->value_dropout > 0 ? mx_stream_tensor(s, MX_F32, b->src, t->z.cols) : t->z;
    if (t->value_dropout > 0) mx_dropout(s, t->taken, t->z, t->value_dropout, ~t->seed);
    mx_graph_attention(s, t->heads, t->lse, t->taken, t->e_src, t->e_dst, t->edges[0].ids, t->edges[0].begin, a);
    if (averages(m, layer)) {
        mx_tensor rows = mx_tensor_of(t->heads.data, MX_F32, (int64_t)b->dst * heads, t->pre.cols);
        mx_aggregate(s, t->pre, rows, none, counted(s, b->dst, heads, false), none, MX_REDUCE_MEAN);
    } else mx_scale(s, t->pre, t->heads, 1);
    mx_embed(s, t->pre, value(m, w->bias), t->zeros, true);
}

void gnn_forward(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t)
{
    t->pre = mx_stream_tensor(s, MX_F32, b->dst, mx_gnn_width(&m->config, layer + 1));
    switch (m->config.kind) {
    case MX_GNN_SAGE: sage(m, s, layer, b, t); break;
    case MX_GNN_GCN: gcn(m, s, layer, b, t); break;
    case MX_GNN_GAT: gat(m, s, layer, b, t); break;
    case MX_GNN_RGCN: rgcn(m, s, layer, b, t); break;
    default: mx_aggregate(s, t->pre, t->x, t->edges[0].ids, t->edges[0].begin, t->edges[0].weight, MX_REDUCE_SUM);
    }
    t->y = t->pre;
    if (last(m, layer) || m->config.kind == MX_GNN_LIGHTGCN || m->config.act == MX_ACT_NONE) return;
    t->y = mx_stream_tensor(s, MX_F32, b->dst, t->pre.cols);
    mx_activate(s, t->y, t->pre, m->config.act);
}

/* ---- back ------------------------------------------------------------------------------------------ */

static void sage_back(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t, mx_tensor dy, mx_tensor dx)
{
    const gnn_weights *w = &m->layer[layer];
    const gnn_edge_tensors *e = &t->edges[0];
    mx_tensor dnear = dx.data ? mx_stream_tensor(s, MX_F32, b->dst, t->x.cols) : none;
    if (m->config.unit) mx_unit_rows_back(s, dy, dy, t->raw, 1e-12f);
    mx_product_back(s, dnear, gradient(m, w->near), gradient(m, w->bias), dy, t->near[0], value(m, w->near), MX_F32, false);
    if (dx.data && m->config.max) mx_aggregate_max_back(s, dx, dnear, t->x, t->near[0], e->ids, e->begin, e->t);
    else if (dx.data) mx_aggregate(s, dx, dnear, e->t.span, e->t.begin, e->t_weight, MX_REDUCE_SUM);
    mx_product_back(s, dx.data ? mx_tensor_rows(dx, 0, b->dst) : none, gradient(m, w->self), none, dy, mx_tensor_rows(t->x, 0, b->dst),
                    value(m, w->self), MX_F32, true);
}

static void rgcn_back(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t, mx_tensor dy, mx_tensor dx)
{
    const gnn_weights *w = &m->layer[layer];
    mx_tensor dnear = dx.data ? mx_stream_tensor(s, MX_F32, b->dst, t->x.cols) : none, part = dx.data ? mx_stream_tensor(s, MX_F32, b->src, t->x.cols) : none;
    for (int32_t r = 0; r < b->sets; r++) {
        const gnn_edge_tensors *e = &t->edges[r];
        mx_product_back(s, dnear, gradient(m, w->near + r), none, dy, t->near[r], value(m, w->near + r), MX_F32, false);
        if (!dx.data) continue;
        mx_aggregate(s, r ? part : dx, dnear, e->t.span, e->t.begin, e->t_weight, MX_REDUCE_SUM);
        if (r) mx_add(s, dx, dx, part);
    }
    mx_product_back(s, dx.data ? mx_tensor_rows(dx, 0, b->dst) : none, gradient(m, w->self), gradient(m, w->bias), dy,
                    mx_tensor_rows(t->x, 0, b->dst), value(m, w->self), MX_F32, true);
}

static void project_back(mx_gnn *m, mx_stream *s, int32_t layer, gnn_step *t, mx_tensor dz, mx_tensor dx)
{
    int near = m->layer[layer].near;
    if (t->x.data) mx_product_back(s, dx, gradient(m, near), none, dz, t->x, value(m, near), MX_F32, false);
    else gnn_sparse_backward(m, s, t, dz, gradient(m, near));
}

static void gcn_back(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t, mx_tensor dy, mx_tensor dx)
{
    const gnn_weights *w = &m->layer[layer];
    const gnn_edge_tensors *e = &t->edges[0];
    mx_tensor dz = mx_stream_tensor(s, MX_F32, b->src, dy.cols);
    mx_embed_back(s, gradient(m, w->bias), dy, t->zeros);
    mx_aggregate(s, dz, dy, e->t.span, e->t.begin, e->t_weight, MX_REDUCE_SUM);
    project_back(m, s, layer, t, dz, dx);
}

static void gat_back(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t, mx_tensor dy, mx_tensor dx)
{
    const gnn_weights *w = &m->layer[layer];
    const gnn_edge_tensors *e = &t->edges[0];
    int32_t heads = heads_of(m, layer);
    mx_tensor dheads = dy, dz = mx_stream_tensor(s, MX_F32, b->src, t->z.cols);
    mx_tensor dsrc = mx_stream_tensor(s, MX_F32, b->src, heads), ddst = mx_stream_tensor(s, MX_F32, b->dst, heads);
    mx_embed_back(s, gradient(m, w->bias), dy, t->zeros);
    if (averages(m, layer)) {
        dheads = mx_stream_tensor(s, MX_F32, b->dst, t->z.cols);
        mx_tensor rows = mx_tensor_of(dheads.data, MX_F32, (int64_t)b->dst * heads, dy.cols);
        mx_embed(s, rows, dy, counted(s, b->dst, heads, true), false);
        mx_scale(s, dheads, dheads, 1 / (float)heads);
    }
    mx_graph_attention_back(s, dz, dsrc, ddst, dheads, t->heads, t->lse, t->taken, t->e_src, t->e_dst, e->ids, e->begin, e->t,
                            (mx_graph_heads){heads, 0.2f, t->edge_dropout, t->seed});
    if (t->value_dropout > 0) mx_dropout(s, dz, dz, t->value_dropout, ~t->seed);
    mx_dot_back(s, dz, gradient(m, w->src), dsrc, t->z, value(m, w->src), true);
    mx_dot_back(s, mx_tensor_rows(dz, 0, b->dst), gradient(m, w->dst), ddst, mx_tensor_rows(t->z, 0, b->dst), value(m, w->dst), true);
    project_back(m, s, layer, t, dz, dx);
}

mx_tensor gnn_backward(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t, mx_tensor dy, bool input)
{
    mx_tensor dx = input ? mx_stream_tensor(s, MX_F32, b->src, t->x.cols) : none;
    if (t->y.data != t->pre.data) mx_activate_back(s, dy, dy, t->pre, m->config.act);
    switch (m->config.kind) {
    case MX_GNN_SAGE: sage_back(m, s, layer, b, t, dy, dx); break;
    case MX_GNN_GCN: gcn_back(m, s, layer, b, t, dy, dx); break;
    case MX_GNN_GAT: gat_back(m, s, layer, b, t, dy, dx); break;
    case MX_GNN_RGCN: rgcn_back(m, s, layer, b, t, dy, dx); break;
    default: if (input) mx_aggregate(s, dx, dy, t->edges[0].t.span, t->edges[0].t.begin, t->edges[0].t_weight, MX_REDUCE_SUM);
    }
    return dx;
}

/* ---- memory ------------------------------------------------------------------------------------------- */

size_t gnn_layer_scratch(const mx_gnn *m, int32_t layer, int64_t dst, int64_t src, int64_t edges, bool learn)
{
    const mx_gnn_config *c = &m->config;
    bool gathers = c->kind == MX_GNN_SAGE || c->kind == MX_GNN_RGCN, projects = c->kind == MX_GNN_GCN || c->kind == MX_GNN_GAT;
    bool sparse = !layer && m->sparse.n;
    int64_t C = sparse && learn ? 0 : mx_gnn_width(c, layer), O = columns(m, layer), sets = c->kind == MX_GNN_RGCN ? c->relations : 1;
    int64_t heads = c->kind == MX_GNN_GAT ? heads_of(m, layer) : 0;
    int64_t of_dst = 4 * O + 2 * heads + 2 + (gathers ? sets * C : 0), of_src = C + (projects ? O : 0) + heads;
    if (learn) of_dst += 3 * O + 3 * heads + (gathers ? C : 0), of_src += 2 * C + (projects ? 2 * O : 0) + heads + (gathers ? C : 0);
    int64_t words = dst * of_dst + src * of_src + (m->params.dev->kind == MX_CPU ? 0 : (dst + 1) * sets + edges * (learn ? 5 : 2) + (src + 1) * sets);
    if (sparse) words += gnn_sparse_scratch(m, O);
    return (size_t)words * 4 + (size_t)(64 + 8 * sets) * 256;
}
