/* gnn.c - inference, layer by layer. */
#include "models/gnn_internal.h"

#include <stdlib.h>

static mx_status no_memory(mx_error *err, int64_t rows, int64_t cols)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "rows of %lld nodes, %lld columns", (long long)rows, (long long)cols);
}

/* cols values of n rows to where the host's rows are `pitch` apart */
static void fetch(mx_stream *s, float *host, int64_t pitch, mx_tensor t)
{
    for (int64_t r = 0; r < t.rows && !s->error.code; r++)
        s->dev->ops->download(s, host + r * pitch, (float *)t.data + r * t.stride, (size_t)t.cols * sizeof *host);
}

static mx_status table_rows(mx_gnn *m, const int32_t *nodes, int32_t n, float *out, mx_error *err)
{
    mx_stream s;
    int64_t E = m->config.id_cols;
    mx_tensor table = mx_params_view(&m->params, &m->params.value, m->table, 1);
    int32_t *ids = malloc((size_t)n * 8 + 8);
    float *known = malloc((size_t)n * 4 + 4);
    mx_status st = ids && known ? mx_stream_open(&s, m->params.dev, (size_t)n * ((size_t)E + 4) * 4 + 4096, err) : no_memory(err, n, E);
    if (st) goto done;
    for (int32_t i = 0; i <= n; i++) {
        int32_t v = i < n ? nodes ? nodes[i] : i : 0;
        ids[n + i] = i;                                  /* a span a node: its row, or nothing of it */
        if (i == n) break;
        ids[i] = v < m->config.id_nodes ? v : 0;
        known[i] = v < m->config.id_nodes ? 1 : 0;
    }
    mx_tensor y = mx_stream_tensor(&s, MX_F32, n, E), at = mx_stream_upload(&s, MX_I32, n, 1, ids);
    mx_tensor begin = mx_stream_upload(&s, MX_I32, (int64_t)n + 1, 1, ids + n), w = mx_stream_upload(&s, MX_F32, n, 1, known);
    mx_aggregate(&s, y, table, at, begin, w, MX_REDUCE_SUM);
    fetch(&s, out, m->config.features + E, y);
    st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
done:
    free(ids), free(known);
    return st;
}

mx_status mx_gnn_input(mx_gnn *m, const float *features, const int32_t *nodes, int32_t n, float *out, mx_error *err)
{
    int64_t F = m->config.features, width = F + m->config.id_cols;
    for (int64_t i = 0; i < n && F; i++) memcpy(out + i * width, features + i * F, (size_t)F * sizeof *out);
    return m->config.id_cols && n ? table_rows(m, nodes, n, out + F, err) : MX_OK;
}

static mx_status open_stream(mx_gnn *m, size_t scratch, mx_error *err)
{
    if (m->stream.dev && m->stream.scratch.size >= scratch) {
        mx_stream_rewind(&m->stream);
        return MX_OK;
    }
    mx_stream_close(&m->stream);
    return mx_stream_open(&m->stream, m->params.dev, scratch, err);
}

static mx_status run_layer(mx_gnn *m, int32_t layer, const gnn_block *b, const float *before, float *out, mx_error *err)
{
    mx_stream *s = &m->stream;
    int64_t C = mx_gnn_width(&m->config, layer), edges = 0;
    bool cpu = m->params.dev->kind == MX_CPU;
    float *rows = NULL;
    gnn_step *t = calloc(1, sizeof *t);
    if (!t || (b->nodes && !(rows = malloc((size_t)b->src * (size_t)C * sizeof *rows + 1)))) {
        free(t);
        return no_memory(err, b->src, C);
    }
    for (int32_t i = 0; i < b->sets; i++) edges += b->set[i].n;
    for (int64_t i = 0; rows && i < b->src; i++) memcpy(rows + i * C, before + (int64_t)b->nodes[i] * C, (size_t)C * sizeof *rows);
    mx_status st = open_stream(m, gnn_layer_scratch(m, layer, b->dst, b->src, edges, false), err);
    if (!st) {
        const float *x = rows ? rows : before;
        t->x = cpu ? mx_tensor_of((void *)(uintptr_t)x, MX_F32, b->src, C) : mx_stream_upload(s, MX_F32, b->src, C, x);
        gnn_upload(m, s, layer, b, false, t);
        gnn_forward(m, s, layer, b, t);
        if (!s->error.code) s->dev->ops->download(s, out, t->y.data, (size_t)b->dst * (size_t)t->y.cols * sizeof *out);
        st = mx_stream_sync(s, err);
        if (st) mx_stream_close(s);
    }
    free(rows);
    free(t);
    return st;
}

mx_status mx_gnn_layer(mx_gnn *m, const mx_graph *g, int32_t layer, const float *before, const int32_t *nodes, int32_t n, float *out,
                       mx_error *err)
{
    gnn_block *b = &m->asked;
    if (layer < 0 || layer >= m->config.layers) return mx_fail(err, MX_ERR_ARG, "layer %d: the network has %d", layer, m->config.layers);
    if (n < 1) return MX_OK;
    MX_TRY(gnn_block_build(b, &m->map, g, &m->config, nodes, n, false, NULL, err));
    return run_layer(m, layer, b, before, out, err);
}

mx_status mx_gnn_infer(mx_gnn *m, const mx_graph *g, const float *features, float *out, bool (*progress)(void *ctx, int32_t layer),
                       void *ctx, mx_error *err)
{
    const mx_gnn_config *c = &m->config;
    int64_t N = g->nodes, widest = 0, O = mx_gnn_width(c, c->layers);
    for (int32_t l = 0; l <= c->layers; l++) widest = mx_gnn_width(c, l) > widest ? mx_gnn_width(c, l) : widest;
    float *a = malloc((size_t)N * (size_t)widest * sizeof *a), *b = malloc((size_t)N * (size_t)widest * sizeof *b);
    mx_status st = a && b ? mx_gnn_input(m, features, NULL, g->nodes, a, err) : no_memory(err, N, widest);
    bool light = c->kind == MX_GNN_LIGHTGCN;
    if (!st) st = gnn_block_build(&m->asked, &m->map, g, c, NULL, 0, false, NULL, err);      /* one for all layers */
    float share = 1 / (float)(c->layers + 1);
    for (int64_t i = 0; !st && light && i < N * O; i++) out[i] = share * a[i];
    for (int32_t l = 0; l < c->layers && !st; l++) {
        if (progress && !progress(ctx, l)) {
            st = mx_fail(err, MX_ERR_CANCELLED, "stopped");
            break;
        }
        st = run_layer(m, l, &m->asked, a, b, err);
        float *t = a;
        a = b;
        b = t;
        for (int64_t i = 0; !st && light && i < N * O; i++) out[i] += share * a[i];
    }
    if (!st && !light) memcpy(out, a, (size_t)(N * O) * sizeof *out);
    free(a), free(b);
    return st;
}
