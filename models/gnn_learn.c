/* gnn_learn.c - a graph network as the trainer sees it: targets in, gradients out. */
#include "models/gnn_internal.h"

#include "runtime/random.h"

#include <math.h>
#include <stdlib.h>

static const mx_tensor none;

typedef struct pass {
    mx_gnn    *m;
    mx_stream *s;
    mx_pass   *p;
    bool       full;
    int32_t    seeds;             /* rows of the last layer                            */
    int32_t    rows;              /* targets                                           */
    int32_t   *node;              /* [pairs or rows] nodes; then their local numbers   */
    int32_t   *local;
    gnn_step   step[MX_GNN_LAYERS];
    mx_tensor  h[MX_GNN_LAYERS + 1];         /* after l layers, before dropout         */
    mx_tensor  out;
} pass;

static bool pairs(const mx_gnn *m)
{
    return m->config.task == MX_GNN_LINKS || m->config.task == MX_GNN_RANKING;
}

/* Nodes that a target brings: itself; or from, to and what is drawn against it. */
static int32_t nodes_of_target(const mx_gnn *m)
{
    if (!pairs(m)) return 1;
    return m->config.task == MX_GNN_RANKING ? 3 : 2 + m->opt.negatives;
}

static bool is_full(const mx_gnn *m)
{
    for (int32_t l = 0; l < m->config.layers; l++)
        if (m->opt.fanout[l]) return false;
    return true;
}

/* ---- negatives ----------------------------------------------------------------------------- */

static bool heard(const mx_graph *g, int32_t from, int32_t to)
{
    mx_neighbours row = mx_graph_row(g, 0, from);
    int32_t low = 0, high = row.n;
    while (low < high) {
        int32_t middle = low + (high - low) / 2;
        if (row.ids[middle] < to) low = middle + 1;
        else high = middle;
    }
    return low < row.n && row.ids[low] == to;
}

/* A node of to's type that `from` is not joined to; after a hundred tries any. */
static int32_t against(const mx_gnn *m, uint64_t seed, int32_t row, int32_t k, int32_t from, int32_t to)
{
    const mx_graph *known = m->data.known ? m->data.known : m->data.graph;
    int32_t type = m->data.graph->type ? m->data.graph->type[to] : 0, first = m->pool_begin[type], n = m->pool_begin[type + 1] - first, v = to;
    for (uint32_t t = 0; t < 100; t++) {
        v = m->pool[first + (int32_t)(mx_uniform(seed, (uint32_t)row, (uint32_t)k, t, 0x6e656761u) * (double)n)];
        if (v != to && !heard(known, from, v)) break;
    }
    return v;
}

static mx_status open_pool(mx_gnn *m, mx_error *err)
{
    const mx_graph *g = m->data.graph;
    m->pool = malloc((size_t)g->nodes * 4 + 4);
    m->pool_begin = calloc(257, 4);
    if (!m->pool || !m->pool_begin) return mx_fail(err, MX_ERR_NO_MEMORY, "nodes by type");
    for (int32_t v = 0; v < g->nodes; v++) m->pool_begin[(g->type ? g->type[v] : 0) + 1]++;
    for (int i = 0; i < 256; i++) m->pool_begin[i + 1] += m->pool_begin[i];
    int32_t next[256];
    memcpy(next, m->pool_begin, sizeof next);
    for (int32_t v = 0; v < g->nodes; v++) m->pool[next[g->type ? g->type[v] : 0]++] = v;
    return MX_OK;
}

/* ---- which nodes, and whom they hear from ----------------------------------------------------- */

static mx_status collect(pass *c, mx_error *err)
{
    mx_gnn *m = c->m;
    int32_t per = nodes_of_target(m);
    int64_t n = (int64_t)c->rows * per;
    if (m->list_room < 3 * n) {
        free(m->list);
        m->list = malloc((size_t)n * 12 + 12);
        m->list_room = m->list ? (int32_t)(3 * n) : 0;
        if (!m->list) return mx_fail(err, MX_ERR_NO_MEMORY, "a batch of %lld nodes", (long long)n);
    }
    c->node = m->list, c->local = m->list + n;
    for (int32_t i = 0; i < c->rows; i++) {
        int32_t target = c->p->batch->ids[i], *to = c->node + (int64_t)i * per;
        if (target < 0 || target >= m->data.targets) return mx_fail(err, MX_ERR_ARG, "target %d: there are %lld", target, (long long)m->data.targets);
        if (!pairs(m)) {
            to[0] = m->data.node[target];
            continue;
        }
        to[0] = m->data.node[2 * (int64_t)target], to[1] = m->data.node[2 * (int64_t)target + 1];
        for (int32_t k = 2; k < per; k++) to[k] = against(m, c->p->seed ^ m->opt.seed, target, k, to[0], to[1]);
    }
    return MX_OK;
}

/* Each node once, in order of appearance; local numbers of all. */
static void distinct(pass *c, int32_t *unique)
{
    int32_t n = c->rows * nodes_of_target(c->m);
    c->seeds = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t *at = &c->m->map.at[c->node[i]];
        if (*at < 0) {
            unique[c->seeds] = c->node[i];
            *at = c->seeds++;
        }
        c->local[i] = *at;
    }
    for (int32_t i = 0; i < c->seeds; i++) c->m->map.at[unique[i]] = -1;
}

static mx_status build(pass *c, mx_error *err)
{
    mx_gnn *m = c->m;
    const mx_graph *g = m->data.graph;
    int32_t L = m->config.layers, n = c->rows * nodes_of_target(m), *unique = m->list + 2 * (int64_t)n;
    if (c->full) {
        memcpy(c->local, c->node, (size_t)n * 4);
        c->seeds = g->nodes;
        if (m->block[0].dst != g->nodes || m->block[0].nodes || !m->block[0].sets)      /* one for all layers, and for all passes */
            MX_TRY(gnn_block_build(&m->block[0], &m->map, g, &m->config, NULL, 0, true, NULL, err));
        return MX_OK;
    }
    distinct(c, unique);
    const int32_t *nodes = unique;
    n = c->seeds;
    for (int32_t l = L - 1; l >= 0; l--) {
        gnn_drawing d = {c->s, m->begin, m->opt.fanout[l],
                         {m->opt.seed, (uint32_t)l, (uint32_t)(c->p->seed ^ c->p->seed >> 32)}};
        MX_TRY(gnn_block_build(&m->block[l], &m->map, g, &m->config, nodes, n, true, d.fanout ? &d : NULL, err));
        nodes = m->block[l].nodes;
        n = m->block[l].src;
    }
    return MX_OK;
}

static const gnn_block *block_of(const pass *c, int32_t l)
{
    return &c->m->block[c->full ? 0 : l];
}

/* ---- forward ------------------------------------------------------------------------------------- */

static mx_tensor on_device(pass *c, mx_dtype t, int64_t n, const void *host)
{
    return c->s->dev->kind == MX_CPU ? mx_tensor_of((void *)(uintptr_t)host, t, n, 1) : mx_stream_upload(c->s, t, n, 1, host);
}

/* Rows of the block's nodes: features, then the table's. */
static mx_status input(pass *c, mx_error *err)
{
    mx_gnn *m = c->m;
    const gnn_block *b = block_of(c, 0);
    int64_t F = m->config.features, E = m->config.id_cols;
    if (m->sparse.n) return MX_OK;
    mx_tensor x = mx_stream_tensor(c->s, MX_F32, b->src, F + E);
    if (F && c->s->dev->kind == MX_CPU) {
        mx_tensor all = mx_tensor_of((void *)(uintptr_t)m->data.features, MX_F32, m->data.graph->nodes, F);
        if (b->nodes) mx_embed(c->s, mx_tensor_cols(x, 0, F), all, on_device(c, MX_I32, b->src, b->nodes), false);
        else mx_scale(c->s, mx_tensor_cols(x, 0, F), all, 1);
    } else if (F) {                                     /* a GPU gets the rows that it needs */
        if (m->floats_room < b->src * F) {
            free(m->floats);
            m->floats = malloc((size_t)(b->src * F) * 4);
            m->floats_room = m->floats ? b->src * F : 0;
            if (!m->floats) return mx_fail(err, MX_ERR_NO_MEMORY, "features of %d nodes", b->src);
        }
        for (int64_t i = 0; i < b->src; i++) memcpy(m->floats + i * F, m->data.features + (b->nodes ? b->nodes[i] : i) * F, (size_t)F * 4);
        mx_scale(c->s, mx_tensor_cols(x, 0, F), mx_stream_upload(c->s, MX_F32, b->src, F, m->floats), 1);
    }
    mx_tensor table = E ? mx_params_view(&m->params, &m->params.value, m->table, 1) : none;
    if (E && b->nodes) mx_embed(c->s, mx_tensor_cols(x, F, E), table, on_device(c, MX_I32, b->src, b->nodes), false);
    else if (E) mx_scale(c->s, mx_tensor_cols(x, F, E), mx_tensor_rows(table, 0, b->src), 1);
    c->h[0] = x;
    return MX_OK;
}

static uint64_t layer_seed(const pass *c, int32_t l, uint64_t what)
{
    return (c->p->seed ^ c->m->opt.seed) + 0x9e3779b97f4a7c15u * (uint64_t)(2 * l + 1) + what;
}

static void forward(pass *c)
{
    mx_gnn *m = c->m;
    int32_t L = m->config.layers;
    bool light = m->config.kind == MX_GNN_LIGHTGCN;
    float share = 1 / (float)(L + 1);
    for (int32_t l = 0; l < L; l++) {
        gnn_step *t = &c->step[l];
        const gnn_block *b = block_of(c, l);
        bool sparse = !l && m->sparse.n, drops = c->p->learn && m->opt.dropout > 0;
        t->dropout = drops ? m->opt.dropout : 0, t->dropout_seed = layer_seed(c, l, 0);
        drops &= !sparse;
        t->x = drops ? mx_stream_tensor(c->s, MX_F32, b->src, c->h[l].cols) : c->h[l];
        if (drops) mx_dropout(c->s, t->x, c->h[l], m->opt.dropout, layer_seed(c, l, 0));
        t->edge_dropout = c->p->learn ? m->opt.edge_dropout : 0;
        t->value_dropout = c->p->learn ? m->opt.value_dropout : 0;
        t->seed = layer_seed(c, l, 1);
        if (!c->full || !l) gnn_upload(m, c->s, l, b, c->p->learn, t);
        else {
            memcpy(t->edges, c->step[0].edges, sizeof t->edges);
            t->zeros = c->step[0].zeros;
        }
        gnn_forward(m, c->s, l, b, t);
        c->h[l + 1] = t->y;
    }
    c->out = c->h[L];
    if (!light) return;
    c->out = mx_stream_tensor(c->s, MX_F32, c->seeds, c->h[0].cols);
    mx_tensor part = mx_stream_tensor(c->s, MX_F32, c->seeds, c->h[0].cols);
    for (int32_t l = 0; l <= L; l++) {
        mx_scale(c->s, l ? part : c->out, mx_tensor_rows(c->h[l], 0, c->seeds), share);
        if (l) mx_add(c->s, c->out, c->out, part);
    }
}

/* ---- losses: they turn `out` into its gradient, or give it ---------------------------------------- */

static void add_up(pass *c, mx_tensor loss)
{
    mx_tensor sum = mx_stream_tensor(c->s, MX_I32, 1, 2);
    mx_sum(c->s, sum, loss, false);
    if (!c->s->error.code) c->s->dev->ops->download(c->s, &c->p->loss, sum.data, sizeof c->p->loss);
}

static mx_tensor class_loss(pass *c, int32_t *label, mx_error *err)
{
    mx_gnn *m = c->m;
    mx_tensor loss = mx_stream_tensor(c->s, MX_F32, c->seeds, 1), target, guess = mx_stream_tensor(c->s, MX_I32, c->seeds, 1);
    mx_tensor chance = mx_stream_tensor(c->s, MX_F32, c->seeds, 1);
    int32_t *top = label + c->seeds;
    for (int32_t i = 0; i < c->seeds; i++) label[i] = -1;
    for (int32_t i = 0; i < c->rows; i++) {
        c->p->counted += label[c->local[i]] < 0;
        label[c->local[i]] = m->data.label[c->p->batch->ids[i]];
    }
    if (!c->p->learn) mx_logprobs(c->s, none, none, guess, chance, c->out);
    target = mx_stream_upload(c->s, MX_I32, c->seeds, 1, label);
    mx_cross_entropy(c->s, loss, c->out, target, 1, c->p->learn);
    add_up(c, loss);
    if (!c->p->learn && !c->s->error.code) c->s->dev->ops->download(c->s, top, guess.data, (size_t)c->seeds * 4);
    if (mx_stream_sync(c->s, err)) return none;
    for (int32_t i = 0; i < c->seeds && !c->p->learn; i++) c->p->extra += label[i] >= 0 && label[i] == top[i];
    return c->out;
}

static mx_tensor label_loss(pass *c, float *label, mx_error *err)
{
    mx_gnn *m = c->m;
    int64_t O = c->out.cols, n = c->seeds * O;
    float *said = label + n;
    mx_tensor loss = mx_stream_tensor(c->s, MX_F32, c->seeds, 1);
    for (int64_t i = 0; i < n; i++) label[i] = -1;
    for (int32_t i = 0; i < c->rows; i++) memcpy(label + c->local[i] * O, m->data.labels + c->p->batch->ids[i] * O, (size_t)O * 4);
    for (int64_t i = 0; i < n; i++) c->p->counted += label[i] >= 0;
    if (!c->p->learn && !c->s->error.code) c->s->dev->ops->download(c->s, said, c->out.data, (size_t)n * 4);
    if (mx_stream_sync(c->s, err)) return none;
    for (int64_t i = 0; i < n && !c->p->learn; i++) c->p->extra += label[i] >= 0 && (said[i] > 0) == (label[i] > 0.5f);
    mx_logistic(c->s, loss, c->out, mx_stream_upload(c->s, MX_F32, c->seeds, O, label), 1, c->p->learn);
    add_up(c, loss);
    return mx_stream_sync(c->s, err) ? none : c->out;
}

/* ids[i] = local[i * per + k] */
static mx_tensor side(pass *c, int32_t *room, int32_t per, int32_t k, const int32_t *of)
{
    for (int32_t i = 0; i < c->rows; i++) room[i] = of[(int64_t)i * per + k];
    return mx_stream_upload(c->s, MX_I32, c->rows, 1, room);
}

static mx_tensor gathered(pass *c, mx_tensor ids)
{
    mx_tensor y = mx_stream_tensor(c->s, MX_F32, c->rows, c->out.cols);
    mx_embed(c->s, y, c->out, ids, false);
    return y;
}

/* The table's rows of a batch are drawn to zero. */
static void shrink_rows(pass *c, int32_t *room, int32_t per)
{
    mx_gnn *m = c->m;
    if (m->table < 0 || m->opt.l2_rows <= 0 || !c->p->learn) return;
    mx_tensor table = mx_params_view(&m->params, &m->params.value, m->table, 1), rows = mx_stream_tensor(c->s, MX_F32, c->rows, table.cols);
    for (int32_t k = 0; k < per; k++) {
        mx_tensor ids = side(c, room, per, k, c->node);
        mx_embed(c->s, rows, table, ids, false);
        mx_scale(c->s, rows, rows, m->opt.l2_rows);
        mx_embed_back(c->s, mx_params_view(&m->params, &m->params.grad, m->table, 1), rows, ids);
    }
}

/* Scores of pairs under the logistic function: each against its negatives (ranking: of the difference). */
static mx_tensor pair_loss(pass *c, int32_t *room, mx_error *err)
{
    mx_gnn *m = c->m;
    mx_stream *s = c->s;
    bool ranking = m->config.task == MX_GNN_RANKING;
    int32_t per = nodes_of_target(m), terms = ranking ? 1 : per - 1;
    float *host = (float *)(room + c->rows), *said = host + (int64_t)c->rows * terms;
    mx_tensor from = side(c, room, per, 0, c->local), zf = gathered(c, from), dzf = mx_stream_tensor(s, MX_F32, c->rows, c->out.cols);
    mx_tensor score = mx_stream_tensor(s, MX_F32, c->rows, terms), loss = mx_stream_tensor(s, MX_F32, c->rows, 1), target, to[66], z[66];
    mx_tensor dz = c->p->learn ? mx_stream_tensor(s, MX_F32, c->seeds, c->out.cols) : none;
    mx_tensor one = mx_stream_tensor(s, MX_F32, c->rows, 1), d = mx_stream_tensor(s, MX_F32, c->rows, c->out.cols);
    for (int32_t k = 1; k < per; k++) to[k] = side(c, room, per, k, c->local), z[k] = gathered(c, to[k]);
    if (ranking) mx_scale(s, z[2], z[2], -1), mx_add(s, z[1], z[1], z[2]);
    for (int32_t k = 0; k < terms; k++) mx_dot(s, one, zf, z[k + 1]), mx_scale(s, mx_tensor_cols(score, k, 1), one, 1);
    for (int64_t i = 0; i < (int64_t)c->rows * terms; i++) host[i] = i % terms == 0;
    target = mx_stream_upload(s, MX_F32, c->rows, terms, host);
    if (!c->p->learn && !s->error.code) s->dev->ops->download(s, said, score.data, (size_t)c->rows * (size_t)terms * 4);
    mx_logistic(s, loss, score, target, 1, c->p->learn);
    add_up(c, loss);
    c->p->counted = c->rows;
    if (mx_stream_sync(s, err)) return none;
    for (int64_t i = 0; i < c->rows && !c->p->learn; i++)
        for (int32_t k = 0; k < (ranking ? 1 : terms - 1); k++)
            c->p->extra += (ranking ? said[i] > 0 : said[i * terms] > said[i * terms + k + 1]) / (double)(ranking ? 1 : terms - 1);
    if (!c->p->learn) return none;
    s->dev->ops->clear(s, dz.data, (size_t)c->seeds * (size_t)c->out.cols * 4);
    for (int32_t k = 0; k < terms; k++) {
        mx_scale(s, one, mx_tensor_cols(score, k, 1), 1);
        mx_dot_back(s, dzf, none, one, zf, z[k + 1], k > 0);
        mx_dot_back(s, none, d, one, zf, z[k + 1], false);
        mx_embed_back(s, dz, d, to[k + 1]);
        if (ranking) mx_scale(s, d, d, -1), mx_embed_back(s, dz, d, to[2]);
    }
    mx_embed_back(s, dz, dzf, from);
    shrink_rows(c, room, per);
    return dz;
}

/* ---- back ------------------------------------------------------------------------------------------- */

/* grad += factor * value of parameter i */
static void shrink(pass *c, int i, float factor)
{
    const mx_params *p = &c->m->params;
    if (factor == 0) return;
    mx_tensor w = mx_params_view(p, &p->value, i, 1), g = mx_params_view(p, &p->grad, i, 1);
    mx_tensor part = mx_stream_tensor(c->s, MX_F32, w.rows, w.cols);
    mx_scale(c->s, part, w, factor);
    mx_add(c->s, g, g, part);
}

static void backward(pass *c, mx_tensor dy)
{
    mx_gnn *m = c->m;
    int32_t L = m->config.layers;
    int64_t F = m->config.features, E = m->config.id_cols;
    bool light = m->config.kind == MX_GNN_LIGHTGCN;
    mx_tensor each = dy;
    if (light) {
        each = mx_stream_tensor(c->s, MX_F32, dy.rows, dy.cols);
        mx_scale(c->s, each, dy, 1 / (float)(L + 1));
        dy = each;
    }
    for (int32_t l = L - 1; l >= 0; l--) {
        const gnn_block *b = block_of(c, l);
        mx_tensor dx = gnn_backward(m, c->s, l, b, &c->step[l], dy, l > 0 || E > 0);
        if (dx.data && c->p->learn && m->opt.dropout > 0) mx_dropout(c->s, dx, dx, m->opt.dropout, layer_seed(c, l, 0));
        if (light && dx.data) mx_add(c->s, mx_tensor_rows(dx, 0, c->seeds), mx_tensor_rows(dx, 0, c->seeds), each);
        dy = dx;
    }
    if (E && !c->s->error.code) {
        const gnn_block *b = block_of(c, 0);
        mx_tensor table = mx_params_view(&m->params, &m->params.grad, m->table, 1), dx = mx_tensor_cols(dy, F, E);
        if (b->nodes) mx_embed_back(c->s, table, dx, on_device(c, MX_I32, b->src, b->nodes));
        else mx_add(c->s, mx_tensor_rows(table, 0, b->src), mx_tensor_rows(table, 0, b->src), dx);
    }
    for (int i = 0; i < m->params.n; i++) {
        bool first = !strncmp(m->params.param[i].name, "convs.0.", 8);
        if (i != m->table) shrink(c, i, (m->opt.l2 + (first ? m->opt.l2_first : 0)) * (float)c->p->counted);
    }
}

static mx_status run(void *network, mx_stream *s, mx_pass *p, mx_error *err)
{
    mx_gnn *m = network;
    pass *c = calloc(1, sizeof *c);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "a pass");
    *c = (pass){.m = m, .s = s, .p = p, .full = is_full(m), .rows = p->batch->rows};
    p->loss = p->extra = 0;
    p->counted = 0;
    void *room = NULL;
    mx_status st = collect(c, err);
    if (!st) st = build(c, err);
    if (!st) st = input(c, err);
    if (!st) {
        int64_t columns = m->config.task == MX_GNN_LABELS ? m->config.outputs : 1;
        size_t words = pairs(m) ? (size_t)c->rows * (size_t)(2 * nodes_of_target(m) + 1) : 2 * (size_t)c->seeds * (size_t)columns;
        mx_tensor dy = none;
        forward(c);
        room = malloc(words * 4 + 16);
        if (!room) st = mx_fail(err, MX_ERR_NO_MEMORY, "labels of %d nodes", c->seeds);
        else if (m->config.task == MX_GNN_CLASSES) dy = class_loss(c, room, err);
        else if (m->config.task == MX_GNN_LABELS) dy = label_loss(c, room, err);
        else dy = pair_loss(c, room, err);
        if (!st && p->learn && dy.data) backward(c, dy);
        if (!st && err && !s->error.code && p->learn && !dy.data) st = err->code;
        mx_status end = mx_stream_sync(s, st ? NULL : err);
        if (!st) st = end;
    }
    if (!st && p->learn && p->ready) p->ready(p->ctx, 0, m->params.count);
    free(room);
    free(c);
    return st;
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static size_t scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn)
{
    const mx_gnn *m = network;
    const mx_graph *g = m->data.graph;
    int64_t all = 0, N = g->nodes, dst = is_full(m) ? N : least((int64_t)rows * nodes_of_target(m), N), per = nodes_of_target(m);
    int64_t first = m->sparse.n ? 0 : mx_gnn_width(&m->config, 0), C = mx_gnn_width(&m->config, m->config.layers), last = dst, sets = m->config.kind == MX_GNN_RGCN ? m->config.relations : 1;
    double bytes = 1 << 20;
    (void)spans, (void)longest;
    for (int32_t v = 0; v < g->relations; v++) all += g->csr ? g->csr[v].begin[N] : 0;
    if (is_full(m)) dst = N;
    for (int32_t l = m->config.layers - 1; l >= 0; l--) {
        int64_t f = m->opt.fanout[l], edges = f ? least(dst * f * g->relations, all) + dst : all + N, src = is_full(m) ? N : least(dst + edges, N);
        bytes += (double)gnn_layer_scratch(m, l, dst, src, edges, learn) + (double)src * 2 * 4 * (double)(l ? mx_gnn_width(&m->config, l) : first);
        bytes += 4.0 * ((double)dst * (double)(f + 2) * g->relations + (double)src * 2) + 4096.0 * (double)sets;
        dst = src;
    }
    bytes += 4.0 * (double)dst * (double)first * 3;
    bytes += 4.0 * ((double)last * (double)(6 * C + 8) + (pairs(m) ? (double)rows * (double)per * (double)(4 * C + 8) : 0));
    bytes += m->opt.l2_rows > 0 ? 4.0 * (double)rows * (double)(m->config.id_cols + 8) * (double)per : 0;
    bytes += m->opt.l2 != 0 || m->opt.l2_first != 0 ? 4.0 * (double)m->params.elements + 16384 : 0;
    return bytes < 0x1p62 ? (size_t)bytes : 0;
}

static mx_status save(const void *network, const char *folder, mx_error *err)
{
    return mx_gnn_save(network, folder, err);
}

static mx_status load(void *network, const char *folder, mx_error *err)
{
    mx_gnn *m = network;
    char path[MX_PATH];
    mx_checkpoint *file = NULL;
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    MX_TRY(mx_checkpoint_open(&file, path, err));
    mx_status st = mx_params_load(&m->params, file, NULL, err);
    mx_checkpoint_close(file);
    return st;
}

/* ---- opening --------------------------------------------------------------------------------------------- */

static mx_status check(const mx_gnn *m, const mx_gnn_data *d, const mx_gnn_learning *o, mx_error *err)
{
    const mx_gnn_config *c = &m->config;
    bool draws = false;
    if (!m->params.grad.base) return mx_fail(err, MX_ERR_STATE, "gnn: the network was opened to infer, not to learn");
    if (c->features && !d->features) return mx_fail(err, MX_ERR_ARG, "features: the network wants %d columns for each node", c->features);
    if (c->id_nodes && c->id_nodes < d->graph->nodes)
        return mx_fail(err, MX_ERR_ARG, "id_nodes is %d; the graph has %d nodes, and each needs its row to learn", c->id_nodes, d->graph->nodes);
    for (int i = 0; i < 3; i++) {
        const float share[] = {o->dropout, o->edge_dropout, o->value_dropout};
        if (!(share[i] >= 0 && share[i] < 1)) return mx_fail(err, MX_ERR_ARG, "%sdropout is %g; it must be in [0, 1)", (const char *[]){"", "edge ", "value "}[i], (double)share[i]);
    }
    if (o->l2 < 0 || o->l2_first < 0 || o->l2_rows < 0) return mx_fail(err, MX_ERR_ARG, "l2 must be 0 or more");
    if (c->task == MX_GNN_LINKS && (o->negatives < 1 || o->negatives > 64)) return mx_fail(err, MX_ERR_ARG, "negatives is %d; it must be from 1 to 64", o->negatives);
    for (int32_t l = 0; l < c->layers; l++) {
        if (o->fanout[l] < 0 || o->fanout[l] > 4096) return mx_fail(err, MX_ERR_ARG, "fanout is %d; it must be from 0 (all) to 4096", o->fanout[l]);
        draws |= o->fanout[l] > 0;
    }
    if (draws && !d->graph->csr) return mx_fail(err, MX_ERR_ARG, "fanout: neighbours are drawn from a graph whose rows lie in one piece");
    for (int64_t i = 0; i < d->targets; i++) {
        for (int k = 0; k < (pairs(m) ? 2 : 1); k++) {
            int32_t v = d->node[pairs(m) ? 2 * i + k : i];
            if (v < 0 || v >= d->graph->nodes) return mx_fail(err, MX_ERR_ARG, "target %lld: node %d, and the graph has %d", (long long)i, v, d->graph->nodes);
        }
        if (c->task == MX_GNN_CLASSES && (d->label[i] < 0 || d->label[i] >= c->outputs))
            return mx_fail(err, MX_ERR_ARG, "target %lld: class %d, and the network has %d", (long long)i, d->label[i], c->outputs);
    }
    return MX_OK;
}

/* What drawing reads, where the network computes. */
static mx_status place_begins(mx_gnn *m, mx_error *err)
{
    const mx_graph *g = m->data.graph;
    mx_stream s;
    if (is_full(m)) return MX_OK;
    MX_TRY(mx_stream_open(&s, m->params.dev, 0, err));
    mx_status st = MX_OK;
    for (int32_t r = 0; r < g->relations && !st; r++) {
        size_t bytes = ((size_t)g->nodes + 1) * 4;
        mx_buffer_close(&m->begin_memory[r]);
        const void *at = g->csr[r].begin;
        if (s.dev->kind != MX_CPU) {
            st = mx_buffer_open(&m->begin_memory[r], s.dev, bytes, err);
            if (st) break;
            s.dev->ops->upload(&s, m->begin_memory[r].base, at, bytes);
            at = m->begin_memory[r].base;
        }
        m->begin[r] = mx_tensor_of((void *)(uintptr_t)at, MX_I32, (int64_t)g->nodes + 1, 1);
    }
    if (!st) st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

mx_status mx_gnn_learner(mx_gnn *m, const mx_gnn_data *data, const mx_gnn_learning *opt, mx_learner *out, mx_error *err)
{
    static const char *const metrics[MX_GNN_TASKS] = {"accuracy", "accuracy", "above_negatives", "above_negatives"};
    MX_TRY(check(m, data, opt, err));
    m->data = *data;
    m->opt = *opt;
    free(m->pool), free(m->pool_begin);
    m->pool = m->pool_begin = NULL;
    for (int i = 0; i < MX_GNN_LAYERS; i++) gnn_block_close(&m->block[i]);
    if (pairs(m)) MX_TRY(open_pool(m, err));
    MX_TRY(place_begins(m, err));
    MX_TRY(gnn_sparse_open(m, err));
    gnn_map_close(&m->map);
    m->map.at = malloc((size_t)data->graph->nodes * 4);
    if (!m->map.at) return mx_fail(err, MX_ERR_NO_MEMORY, "a map of %d nodes", data->graph->nodes);
    memset(m->map.at, 0xff, (size_t)data->graph->nodes * 4);
    m->map.size = data->graph->nodes;
    *out = (mx_learner){.network = m, .params = &m->params, .run = run, .scratch = scratch, .save = save, .load = load, .metric = metrics[m->config.task]};
    return MX_OK;
}
