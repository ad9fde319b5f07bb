/* gnn_sparse.c - features that are mostly zeros, multiplied by what is not zero.
 *
 * X W^T is rows of W^T gathered over the columns that a node has, and the way back the
 * same over the nodes that a column has, so words of a document cost what there is of
 * them.  Used where a layer projects first (gcn, gat) and a pass is over all nodes. */
#include "models/gnn_internal.h"

#include <stdlib.h>

enum { SHARE = 8 };               /* at most one of so many is not zero */

static bool fits(const mx_gnn *m, int64_t *values)
{
    const mx_gnn_config *c = &m->config;
    int64_t all = (int64_t)m->data.graph->nodes * c->features;
    *values = 0;
    if ((c->kind != MX_GNN_GCN && c->kind != MX_GNN_GAT) || c->id_cols) return false;
    for (int32_t l = 0; l < c->layers; l++)
        if (m->opt.fanout[l]) return false;
    for (int64_t i = 0; i < all; i++) *values += m->data.features[i] != 0;
    return *values > 0 && *values <= all / SHARE && *values <= INT32_MAX - 64;
}

mx_status gnn_sparse_open(mx_gnn *m, mx_error *err)
{
    gnn_edges *e = &m->sparse;
    int64_t N = m->data.graph->nodes, F = m->config.features, n;
    gnn_sparse_close(m);
    if (!fits(m, &n)) return MX_OK;
    size_t room = (size_t)(n + 64) / 64 * 64;             /* whole rows for the draws of dropout */
    e->begin = malloc(((size_t)N + 1) * 4), e->t_begin = malloc(((size_t)F + 1) * 4);
    e->ids = malloc(room * 4), e->t_span = malloc(room * 4), e->t_edge = malloc(room * 4), e->weight = calloc(room, 4);
    if (!e->begin || !e->t_begin || !e->ids || !e->t_span || !e->t_edge || !e->weight) return mx_fail(err, MX_ERR_NO_MEMORY, "features of %lld nodes", (long long)N);
    for (int64_t v = 0; v < N; v++) {
        e->begin[v] = (int32_t)e->n;
        for (int64_t f = 0; f < F; f++) {
            float x = m->data.features[v * F + f];
            if (x != 0) e->ids[e->n] = (int32_t)f, e->weight[e->n++] = x;
        }
    }
    e->begin[N] = (int32_t)e->n;
    e->room = (int64_t)room;
    mx_csr_transpose(e->begin, e->ids, (int32_t)N, (int32_t)F, e->t_begin, e->t_span, e->t_edge);
    return MX_OK;
}

void gnn_sparse_close(mx_gnn *m)
{
    gnn_edges *e = &m->sparse;
    free(e->begin), free(e->ids), free(e->weight), free(e->t_begin), free(e->t_span), free(e->t_edge);
    *e = (gnn_edges){0};
}

/* turned[F,O] = w[O,F]^T, or back: w += turned^T.  A row of w is a column of the other. */
static void turn(mx_stream *s, mx_tensor turned, mx_tensor w, bool back)
{
    for (int64_t o = 0; o < w.rows; o++) {
        mx_tensor column = mx_tensor_cols(turned, o, 1), row = mx_tensor_of((float *)w.data + o * w.stride, MX_F32, w.cols, 1);
        if (back) mx_add(s, row, row, column);
        else mx_scale(s, column, row, 1);
    }
}

void gnn_sparse_forward(const mx_gnn *m, mx_stream *s, gnn_step *t, mx_tensor w)
{
    const gnn_edges *e = &m->sparse;
    mx_tensor turned = mx_stream_tensor(s, MX_F32, w.cols, w.rows), values = mx_stream_tensor(s, MX_F32, e->room / 64, 64);
    t->values = mx_stream_upload(s, MX_F32, e->room / 64, 64, e->weight);
    if (t->dropout > 0) mx_dropout(s, values, t->values, t->dropout, t->dropout_seed), t->values = values;
    t->values = mx_tensor_of(t->values.data, MX_F32, e->n, 1);
    turn(s, turned, w, false);
    mx_aggregate(s, t->z, turned, mx_stream_upload(s, MX_I32, e->n, 1, e->ids), mx_stream_upload(s, MX_I32, t->z.rows + 1, 1, e->begin), t->values, MX_REDUCE_SUM);
}

void gnn_sparse_backward(const mx_gnn *m, mx_stream *s, const gnn_step *t, mx_tensor dz, mx_tensor dw)
{
    const gnn_edges *e = &m->sparse;
    mx_tensor turned = mx_stream_tensor(s, MX_F32, dw.cols, dw.rows), values = mx_stream_tensor(s, MX_F32, e->n, 1);
    mx_embed(s, values, t->values, mx_stream_upload(s, MX_I32, e->n, 1, e->t_edge), false);
    mx_aggregate(s, turned, dz, mx_stream_upload(s, MX_I32, e->n, 1, e->t_span), mx_stream_upload(s, MX_I32, dw.cols + 1, 1, e->t_begin), values, MX_REDUCE_SUM);
    turn(s, turned, dw, true);
}

int64_t gnn_sparse_scratch(const mx_gnn *m, int64_t outputs)
{
    return 7 * m->sparse.room + m->data.graph->nodes + m->config.features * (2 * outputs + 1) + 16 * 64;
}
