/* gnn_block.c - some nodes, whom they hear from, and with what weight. */
#include "models/gnn_internal.h"

#include <math.h>
#include <stdlib.h>

static mx_status grow(void *list, size_t n, size_t element, mx_error *err)
{
    void **p = list, *grown = n <= SIZE_MAX / element ? realloc(*p, n * element + 1) : NULL;
    if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "a part of a graph: %zu numbers", n);
    *p = grown;
    return MX_OK;
}

static mx_status grow_edges(gnn_edges *e, int64_t more, bool turned, mx_error *err)
{
    int64_t need = e->n + more, room;
    if (need > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "graph: %lld edges at once; up to 2147483647 fit", (long long)need);
    if (need <= e->room && (!turned || e->t_span)) return MX_OK;
    room = need + need / 2 + 64;
    if (room < e->room) room = e->room;
    MX_TRY(grow(&e->ids, (size_t)room, 4, err));
    MX_TRY(grow(&e->weight, (size_t)room, 4, err));
    if (turned || e->t_span) {
        MX_TRY(grow(&e->t_span, (size_t)room, 4, err));
        MX_TRY(grow(&e->t_edge, (size_t)room, 4, err));
        MX_TRY(grow(&e->t_weight, (size_t)room, 4, err));
    }
    e->room = room;
    return MX_OK;
}

void gnn_block_close(gnn_block *b)
{
    for (int32_t i = 0; i < b->sets; i++) {
        gnn_edges *e = &b->set[i];
        free(e->begin), free(e->ids), free(e->weight), free(e->t_begin), free(e->t_span), free(e->t_edge), free(e->t_weight);
    }
    free(b->set);
    free(b->nodes);
    *b = (gnn_block){0};
}

void gnn_map_close(gnn_map *m)
{
    free(m->at);
    *m = (gnn_map){0};
}

static mx_status open_map(gnn_map *m, int32_t nodes, mx_error *err)
{
    if (m->size >= nodes) return MX_OK;
    MX_TRY(grow(&m->at, (size_t)nodes, 4, err));
    for (int32_t i = m->size; i < nodes; i++) m->at[i] = -1;
    m->size = nodes;
    return MX_OK;
}

static mx_status open_block(gnn_block *b, int32_t sets, mx_error *err)
{
    if (b->sets != sets) {
        gnn_block_close(b);
        b->set = calloc((size_t)sets, sizeof *b->set);
        if (!b->set) return mx_fail(err, MX_ERR_NO_MEMORY, "%d relations", sets);
        b->sets = sets;
    }
    for (int32_t i = 0; i < sets; i++) b->set[i].n = 0;
    return MX_OK;
}

static mx_status open_dst(gnn_block *b, int32_t n, mx_error *err)
{
    b->dst = n;
    if (n + 1 <= b->dst_room) return MX_OK;
    for (int32_t i = 0; i < b->sets; i++) MX_TRY(grow(&b->set[i].begin, (size_t)n + 1, 4, err));
    b->dst_room = n + 1;
    return MX_OK;
}

/* ---- gathering -------------------------------------------------------------------------- */

static mx_status local_of(gnn_block *b, gnn_map *map, int32_t node, int32_t *out, mx_error *err)
{
    if (!b->nodes) {
        *out = node;
        return MX_OK;
    }
    if (map->at[node] < 0) {
        if (b->src == b->nodes_room) {
            int32_t room = b->nodes_room < INT32_MAX / 2 ? b->nodes_room * 2 : INT32_MAX;
            MX_TRY(grow(&b->nodes, (size_t)room, 4, err));
            b->nodes_room = room;
        }
        b->nodes[b->src] = node;
        map->at[node] = b->src++;
    }
    *out = map->at[node];
    return MX_OK;
}

static uint32_t mixed(int32_t node, int32_t source)
{
    uint64_t z = ((uint64_t)(uint32_t)node << 32 | (uint32_t)source) + 0x9e3779b97f4a7c15u;       /* SplitMix64's finish */
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 32);
}

static int rising(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

/* at[most] = which of the row's sources hash least with the node (equal ones: the first), rising. */
static void least_of(mx_neighbours row, int32_t node, int32_t most, int32_t *at)
{
    uint64_t heap[MX_GNN_DEGREE];                       /* hash and place, the largest at the top */
    for (int32_t i = 0; i < row.n; i++) {
        uint64_t v = (uint64_t)mixed(node, row.ids[i]) << 32 | (uint32_t)i;
        int32_t k = i;
        if (i < most) {
            for (; k > 0 && heap[(k - 1) / 2] < v; k = (k - 1) / 2) heap[k] = heap[(k - 1) / 2];
        } else if (v < heap[0]) {
            k = 0;
            for (int32_t child; (child = 2 * k + 1) < most; k = child) {
                if (child + 1 < most && heap[child + 1] > heap[child]) child++;
                if (heap[child] <= v) break;
                heap[k] = heap[child];
            }
        } else continue;
        heap[k] = v;
    }
    for (int32_t i = 0; i < most; i++) at[i] = (int32_t)(uint32_t)heap[i];
    qsort(at, (size_t)most, sizeof *at, rising);
}

/* One node's row of a relation: all of it, what it hears at most, or the edges that were drawn. */
static mx_status take_row(gnn_block *b, gnn_map *map, gnn_edges *e, mx_neighbours row, int32_t node, int32_t most, const int32_t *drawn, int32_t n, int32_t first,
                          mx_error *err)
{
    int32_t chosen[MX_GNN_DEGREE];
    if (!drawn && most && row.n > most) {
        least_of(row, node, most, chosen);
        drawn = chosen, n = most, first = 0;
    }
    int32_t many = drawn ? n : row.n;
    MX_TRY(grow_edges(e, many + 1, false, err));
    for (int32_t i = 0; i < many && (!drawn || drawn[i] >= 0); i++) {
        int32_t at = drawn ? drawn[i] - first : i;
        MX_TRY(local_of(b, map, row.ids[at], &e->ids[e->n], err));
        e->weight[e->n++] = row.weight ? row.weight[at] : 1;
    }
    return MX_OK;
}

static mx_status gather(gnn_block *b, gnn_map *map, const mx_graph *g, const mx_gnn_config *c, int32_t *const *drawn, int32_t fanout, mx_error *err)
{
    bool apart = c->kind == MX_GNN_RGCN, self = c->kind == MX_GNN_GCN || c->kind == MX_GNN_GAT;
    for (int32_t i = 0; i < b->dst; i++) {
        int32_t v = b->nodes ? b->nodes[i] : i;
        for (int32_t r = 0; r < g->relations; r++) {
            gnn_edges *e = &b->set[apart ? r : 0];
            if (apart || !r) e->begin[i] = (int32_t)e->n;
            MX_TRY(take_row(b, map, e, mx_graph_row(g, r, v), v, c->max_degree, drawn ? drawn[r] + (size_t)i * fanout : NULL, fanout,
                            drawn ? g->csr[r].begin[v] : 0, err));
        }
        gnn_edges *e = &b->set[0];
        bool has = !self;
        for (int64_t k = e->begin[i]; k < e->n && !has; k++) has = e->ids[k] == i;      /* dst i is src i */
        if (has) continue;
        e->ids[e->n] = i;
        e->weight[e->n++] = 1;
    }
    for (int32_t r = 0; r < b->sets; r++) b->set[r].begin[b->dst] = (int32_t)b->set[r].n;
    return MX_OK;
}

/* ---- weights ------------------------------------------------------------------------------ */

/* w over the row's sum of weights */
static void as_means(gnn_block *b)
{
    for (int32_t r = 0; r < b->sets; r++)
        for (int32_t i = 0; i < b->dst; i++) {
            gnn_edges *e = &b->set[r];
            float sum = 0;
            for (int32_t k = e->begin[i]; k < e->begin[i + 1]; k++) sum += e->weight[k];
            for (int32_t k = e->begin[i]; k < e->begin[i + 1] && sum != 0; k++) e->weight[k] /= sum;
        }
}

/* d of a node: of its whole row in the graph, drawn or not; self: an edge to itself among them. */
static float weight_of(const mx_graph *g, int32_t v, bool self)
{
    float sum = 0;
    bool has = !self;
    for (int32_t r = 0; r < g->relations; r++) {
        mx_neighbours row = mx_graph_row(g, r, v);
        for (int32_t i = 0; i < row.n; i++) {
            sum += row.weight ? row.weight[i] : 1;
            has |= row.ids[i] == v;
        }
    }
    return has ? sum : sum + 1;
}

/* w / sqrt(d_u d_v) */
static mx_status as_symmetric(gnn_block *b, const mx_graph *g, bool self, mx_error *err)
{
    gnn_edges *e = &b->set[0];
    float *root = malloc((size_t)b->src * sizeof *root + 1);
    if (!root) return mx_fail(err, MX_ERR_NO_MEMORY, "degrees of %d nodes", b->src);
    for (int32_t i = 0; i < b->src; i++) {
        float d = weight_of(g, b->nodes ? b->nodes[i] : i, self);
        root[i] = d > 0 ? 1 / sqrtf(d) : 0;
    }
    for (int32_t i = 0; i < b->dst; i++)
        for (int32_t k = e->begin[i]; k < e->begin[i + 1]; k++) e->weight[k] *= root[i] * root[e->ids[k]];
    free(root);
    return MX_OK;
}

static mx_status turn(gnn_block *b, mx_error *err)
{
    for (int32_t r = 0; r < b->sets; r++) {
        gnn_edges *e = &b->set[r];
        MX_TRY(grow_edges(e, 0, true, err));
        if (b->src + 1 > b->src_room || !e->t_begin) MX_TRY(grow(&e->t_begin, (size_t)b->src + 1, 4, err));
        mx_csr_transpose(e->begin, e->ids, b->dst, b->src, e->t_begin, e->t_span, e->t_edge);
        for (int64_t k = 0; k < e->n; k++) e->t_weight[k] = e->weight[e->t_edge[k]];
    }
    if (b->src + 1 > b->src_room) b->src_room = b->src + 1;
    return MX_OK;
}

/* ---- drawing -------------------------------------------------------------------------------- */

/* drawn[r][n * fanout]: edges of each node, -1 after the last */
static mx_status draw_all(const gnn_drawing *d, const mx_graph *g, const int32_t *nodes, int32_t n, int32_t **drawn, mx_error *err)
{
    for (int32_t r = 0; r < g->relations; r++) {
        MX_TRY(grow(&drawn[r], (size_t)n * (size_t)d->fanout, 4, err));
        mx_sample_key key = d->key;
        key.layer = key.layer * MX_GRAPH_RELATIONS + (uint32_t)r;
        mx_tensor edge = mx_stream_tensor(d->s, MX_I32, n, d->fanout), at = mx_stream_upload(d->s, MX_I32, n, 1, nodes);
        mx_sample_neighbours(d->s, edge, at, d->begin[r], key);
        if (!d->s->error.code) d->s->dev->ops->download(d->s, drawn[r], edge.data, (size_t)n * (size_t)d->fanout * 4);
    }
    return mx_stream_sync(d->s, err);
}

static mx_status place_dst(gnn_block *b, gnn_map *map, const mx_graph *g, const int32_t *nodes, int32_t n, mx_error *err)
{
    if (b->nodes_room < n + 64) {
        MX_TRY(grow(&b->nodes, (size_t)n + 64, 4, err));
        b->nodes_room = n + 64;
    }
    b->src = n;
    for (int32_t i = 0; i < n; i++) {
        if (nodes[i] < 0 || nodes[i] >= g->nodes || map->at[nodes[i]] >= 0) {
            for (int32_t k = 0; k < i; k++) map->at[nodes[k]] = -1;
            b->src = 0;
            return nodes[i] < 0 || nodes[i] >= g->nodes ? mx_fail(err, MX_ERR_ARG, "node %d: the graph has %d", nodes[i], g->nodes)
                                                        : mx_fail(err, MX_ERR_ARG, "node %d is asked for twice", nodes[i]);
        }
        map->at[nodes[i]] = i;
        b->nodes[i] = nodes[i];
    }
    return MX_OK;
}

mx_status gnn_block_build(gnn_block *b, gnn_map *map, const mx_graph *g, const mx_gnn_config *c, const int32_t *nodes, int32_t n, bool turned,
                          const gnn_drawing *draw, mx_error *err)
{
    int32_t *drawn[MX_GRAPH_RELATIONS] = {0};
    mx_status st = MX_OK;
    bool symmetric = c->kind == MX_GNN_GCN || c->kind == MX_GNN_LIGHTGCN;
    if (g->relations < 1 || g->relations > MX_GRAPH_RELATIONS || (c->kind == MX_GNN_RGCN && g->relations != c->relations))
        return mx_fail(err, MX_ERR_ARG, "graph: %d relations; the network knows %d", g->relations, c->kind == MX_GNN_RGCN ? c->relations : MX_GRAPH_RELATIONS);
    MX_TRY(open_block(b, c->kind == MX_GNN_RGCN ? g->relations : 1, err));
    MX_TRY(open_map(map, g->nodes, err));
    if (!nodes) {
        free(b->nodes);
        b->nodes = NULL;
        b->nodes_room = 0;
        n = b->src = g->nodes;
    } else MX_TRY(place_dst(b, map, g, nodes, n, err));
    st = open_dst(b, n, err);
    if (!st && draw) st = draw_all(draw, g, nodes, n, drawn, err);
    if (!st) st = gather(b, map, g, c, draw ? drawn : NULL, draw ? draw->fanout : 0, err);
    for (int32_t i = 0; nodes && i < b->src; i++) map->at[b->nodes[i]] = -1;
    for (int32_t r = 0; r < g->relations; r++) free(drawn[r]);
    if (!st && (c->kind == MX_GNN_RGCN || c->kind == MX_GNN_SAGE)) as_means(b);
    if (!st && symmetric) st = as_symmetric(b, g, c->kind == MX_GNN_GCN, err);
    if (!st && turned) st = turn(b, err);
    return st;
}
