/* graph.c - edge lists become rows. */
#include "models/graph.h"

#include "runtime/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- rows by rising source, then rising weight ------------------------------------- */

static bool before(const int32_t *ids, const float *weight, int64_t a, int32_t id, float w)
{
    return ids[a] != id ? ids[a] < id : weight && weight[a] < w;
}

static void swap(int32_t *ids, float *weight, int64_t a, int64_t b)
{
    int32_t id = ids[a];
    ids[a] = ids[b];
    ids[b] = id;
    if (!weight) return;
    float w = weight[a];
    weight[a] = weight[b];
    weight[b] = w;
}

static void sift(int32_t *ids, float *weight, int64_t at, int64_t n)
{
    for (int64_t child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(ids, weight, child, ids[child + 1], weight ? weight[child + 1] : 0)) child++;
        if (!before(ids, weight, at, ids[child], weight ? weight[child] : 0)) return;
        swap(ids, weight, at, child);
    }
}

/* Short rows by insertion, long ones by heap (Williams 1964): no memory, and no bad case. */
static void sort_row(int32_t *ids, float *weight, int64_t n)
{
    if (n > 32) {
        for (int64_t i = n / 2; i-- > 0;) sift(ids, weight, i, n);
        for (int64_t i = n; i-- > 1;) {
            swap(ids, weight, 0, i);
            sift(ids, weight, 0, i);
        }
        return;
    }
    for (int64_t i = 1; i < n; i++) {
        int32_t id = ids[i];
        float w = weight ? weight[i] : 0;
        int64_t at = i;
        for (; at > 0 && !before(ids, weight, at - 1, id, w) && (ids[at - 1] != id || (weight && weight[at - 1] != w)); at--) {
            ids[at] = ids[at - 1];
            if (weight) weight[at] = weight[at - 1];
        }
        ids[at] = id;
        if (weight) weight[at] = w;
    }
}

/* Edges of one pair become one; returns how many are left. */
static int64_t join_row(int32_t *ids, float *weight, int64_t n)
{
    int64_t to = 0;
    for (int64_t i = 0; i < n; i++) {
        if (to && ids[to - 1] == ids[i]) {
            if (weight) weight[to - 1] += weight[i];
            continue;
        }
        ids[to] = ids[i];
        if (weight) weight[to] = weight[i];
        to++;
    }
    return to;
}

/* ---- building ---------------------------------------------------------------------------- */

typedef struct csr_rows {
    int32_t *begin, *ids;
    float   *weight;
} csr_rows;

static mx_status check_list(const mx_edge_list *l, int32_t relation, int32_t nodes, mx_error *err)
{
    for (int64_t i = 0; i < l->n; i++) {
        if (l->from[i] < 0 || l->from[i] >= nodes || l->to[i] < 0 || l->to[i] >= nodes)
            return mx_fail(err, MX_ERR_ARG, "relation %d, edge %lld: from %d to %d, and there are %d nodes", relation, (long long)i, l->from[i],
                           l->to[i], nodes);
        if (l->weight && !isfinite(l->weight[i]))
            return mx_fail(err, MX_ERR_ARG, "relation %d, edge %lld: its weight is not a number", relation, (long long)i);
    }
    return MX_OK;
}

static void place(csr_rows *r, int32_t *next, int32_t from, int32_t to, float weight)
{
    int32_t at = next[to]++;
    r->ids[at] = from;
    if (r->weight) r->weight[at] = weight;
}

/* begin[v+1] counts, then is the place where the next edge of v goes, then the end of v. */
static void fill(csr_rows *r, const mx_edge_list *l, int32_t nodes, const mx_graph_options *o)
{
    int32_t *next = r->begin + 1;
    for (int64_t i = 0; i < l->n; i++) {
        r->begin[l->to[i] + 1]++;
        if (o->both_ways) r->begin[l->from[i] + 1]++;
    }
    int32_t at = 0;
    for (int32_t v = 0; v < nodes; v++) {
        int32_t n = r->begin[v + 1] + o->self_loops;
        r->begin[v + 1] = at;
        at += n;
    }
    for (int32_t v = 0; o->self_loops && v < nodes; v++) place(r, next, v, v, 1);
    for (int64_t i = 0; i < l->n; i++) {
        float w = l->weight ? l->weight[i] : 1;
        place(r, next, l->from[i], l->to[i], w);
        if (o->both_ways) place(r, next, l->to[i], l->from[i], w);
    }
}

static void order(csr_rows *r, int32_t nodes, bool once)
{
    int64_t to = 0;
    for (int32_t v = 0; v < nodes; v++) {
        int64_t from = r->begin[v], n = r->begin[v + 1] - from;
        if (v) r->begin[v] = (int32_t)to;               /* the end of v-1, if rows have become shorter */
        float *w = r->weight ? r->weight + from : NULL;
        sort_row(r->ids + from, w, n);
        if (once) n = join_row(r->ids + from, w, n);
        if (to != from) {
            memmove(r->ids + to, r->ids + from, (size_t)n * sizeof *r->ids);
            if (w) memmove(r->weight + to, w, (size_t)n * sizeof *w);
        }
        to += n;
        if (v == nodes - 1) r->begin[nodes] = (int32_t)to;
    }
}

static mx_status build_one(mx_csr *out, int32_t relation, int32_t nodes, const mx_edge_list *l, const mx_graph_options *o, mx_error *err)
{
    if (l->n < 0 || l->n > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "relation %d: %lld edges; up to 2147483647 fit", relation, (long long)l->n);
    int64_t edges = l->n * (o->both_ways ? 2 : 1) + (o->self_loops ? nodes : 0);
    if (edges > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "relation %d: %lld edges; up to 2147483647 fit", relation, (long long)edges);
    MX_TRY(check_list(l, relation, nodes, err));
    csr_rows r = {calloc((size_t)nodes + 1, sizeof *r.begin), malloc(((size_t)edges + 1) * sizeof *r.ids),
              l->weight ? malloc(((size_t)edges + 1) * sizeof *r.weight) : NULL};
    *out = (mx_csr){r.begin, r.ids, r.weight};          /* mx_graph_close() frees them */
    if (!r.begin || !r.ids || (l->weight && !r.weight))
        return mx_fail(err, MX_ERR_NO_MEMORY, "relation %d: %lld edges of %d nodes", relation, (long long)edges, nodes);
    fill(&r, l, nodes, o);
    order(&r, nodes, o->once);
    return MX_OK;
}

mx_status mx_graph_build(mx_graph_store *g, int32_t nodes, const uint8_t *type, const mx_edge_list *lists, int32_t relations,
                         const mx_graph_options *opt, mx_error *err)
{
    mx_graph_options o = opt ? *opt : (mx_graph_options){0};
    memset(g, 0, sizeof *g);
    if (nodes < 1 || nodes == INT32_MAX) return mx_fail(err, MX_ERR_ARG, "nodes is %d; it must be from 1 to 2147483646", nodes);
    if (relations < 1 || relations > MX_GRAPH_RELATIONS)
        return mx_fail(err, MX_ERR_ARG, "relations is %d; it must be from 1 to %d", relations, MX_GRAPH_RELATIONS);
    mx_status st = MX_OK;
    if (type && !(g->type = malloc((size_t)nodes))) st = mx_fail(err, MX_ERR_NO_MEMORY, "types of %d nodes", nodes);
    if (g->type) memcpy(g->type, type, (size_t)nodes);
    for (int32_t i = 0; !st && i < relations; i++) {
        st = build_one(&g->csr[i], i, nodes, &lists[i], &o, err);
        if (st) break;
        g->edges += g->csr[i].begin[nodes];
        g->bytes += ((size_t)nodes + 1) * sizeof(int32_t) + (size_t)g->csr[i].begin[nodes] * (g->csr[i].weight ? 8 : 4);
    }
    g->view = (mx_graph){.nodes = nodes, .relations = relations, .type = g->type, .csr = g->csr};
    g->bytes += type ? (size_t)nodes : 0;
    if (st) mx_graph_close(g);
    return st;
}

void mx_graph_close(mx_graph_store *g)
{
    for (int i = 0; i < MX_GRAPH_RELATIONS; i++) {
        free((void *)g->csr[i].begin);
        free((void *)g->csr[i].ids);
        free((void *)g->csr[i].weight);
    }
    free(g->type);
    memset(g, 0, sizeof *g);
}

/* ---- reading --------------------------------------------------------------------------------- */

static mx_status check_row(const mx_graph *g, int32_t relation, int32_t v, mx_error *err)
{
    mx_neighbours n = mx_graph_row(g, relation, v);
    if (n.n < 0) return mx_fail(err, MX_ERR_FORMAT, "relation %d, node %d: a row of %d edges", relation, v, n.n);
    for (int32_t i = 0; i < n.n; i++) {
        if (n.ids[i] < 0 || n.ids[i] >= g->nodes)
            return mx_fail(err, MX_ERR_FORMAT, "relation %d, node %d: a source %d, and there are %d nodes", relation, v, n.ids[i], g->nodes);
        if (n.weight && !isfinite(n.weight[i]))
            return mx_fail(err, MX_ERR_FORMAT, "relation %d, node %d: the weight of source %d is not a number", relation, v, n.ids[i]);
        if (i && (n.ids[i] < n.ids[i - 1] || (n.weight && n.ids[i] == n.ids[i - 1] && n.weight[i] < n.weight[i - 1])))
            return mx_fail(err, MX_ERR_FORMAT, "relation %d, node %d: its row is not in order", relation, v);
    }
    return MX_OK;
}

mx_status mx_graph_check(const mx_graph *g, mx_error *err)
{
    for (int32_t r = 0; r < g->relations; r++)
        for (int32_t v = 0; v < g->nodes; v++) MX_TRY(check_row(g, r, v, err));
    return MX_OK;
}

int64_t mx_graph_degree(const mx_graph *g, int32_t node)
{
    int64_t n = 0;
    for (int32_t r = 0; r < g->relations; r++) n += mx_graph_row(g, r, node).n;
    return n;
}

void mx_csr_transpose(const int32_t *begin, const int32_t *ids, int32_t rows, int32_t columns, int32_t *t_begin, int32_t *t_ids,
                      int32_t *edge)
{
    memset(t_begin, 0, ((size_t)columns + 1) * sizeof *t_begin);
    for (int32_t e = begin[0]; e < begin[rows]; e++) t_begin[ids[e] + 1]++;
    int32_t at = 0;
    for (int32_t c = 0; c < columns; c++) {
        int32_t n = t_begin[c + 1];
        t_begin[c + 1] = at;
        at += n;
    }
    for (int32_t r = 0; r < rows; r++)
        for (int32_t e = begin[r]; e < begin[r + 1]; e++) {
            int32_t to = t_begin[ids[e] + 1]++;
            t_ids[to] = r;
            if (edge) edge[to] = e;
        }
}
