/* live_graph.c - rows that grow: compressed ones until they change. */
#include "models/live_graph.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct row { int32_t *ids; float *weight; int32_t n, room; } row;      /* weight NULL: 1 each */
typedef struct rows { int32_t *own; row *row; int32_t count, room; } rows;     /* own[node]: its changed row + 1, or 0 */

struct mx_live_graph {
    mx_graph        view;
    mx_graph_store  base;
    int32_t         first_nodes, room;        /* of the base; of type and own */
    uint8_t        *type;
    rows            hears[MX_GRAPH_RELATIONS];
    int32_t        *turned_begin[MX_GRAPH_RELATIONS], *turned[MX_GRAPH_RELATIONS];    /* who hears from a node, in the base */
    rows            heard[MX_GRAPH_RELATIONS];                                           /* ... the whole list, once it changed */
};

static void base_row(const mx_live_graph *l, int32_t relation, int32_t node, mx_neighbours *out)
{
    const mx_csr *c = &l->base.csr[relation];
    *out = (mx_neighbours){0};
    if (node >= l->first_nodes) return;
    int32_t from = c->begin[node];
    *out = (mx_neighbours){c->ids + from, c->weight ? c->weight + from : NULL, c->begin[node + 1] - from};
}

static void base_heard(const mx_live_graph *l, int32_t relation, int32_t node, mx_neighbours *out)
{
    const int32_t *b = l->turned_begin[relation];
    *out = (mx_neighbours){0};
    if (node < l->first_nodes) *out = (mx_neighbours){l->turned[relation] + b[node], NULL, b[node + 1] - b[node]};
}

static void live_row(const void *ctx, int32_t relation, int32_t node, mx_neighbours *out)
{
    const mx_live_graph *l = ctx;
    const rows *r = &l->hears[relation];
    if (!r->own[node]) {
        base_row(l, relation, node, out);
        return;
    }
    const row *w = &r->row[r->own[node] - 1];
    *out = (mx_neighbours){w->ids, w->weight, w->n};
}

static void heard_row(const mx_live_graph *l, int32_t relation, int32_t node, mx_neighbours *out)
{
    const rows *r = &l->heard[relation];
    if (!r->own[node]) {
        base_heard(l, relation, node, out);
        return;
    }
    *out = (mx_neighbours){r->row[r->own[node] - 1].ids, NULL, r->row[r->own[node] - 1].n};
}

static void rows_free(rows *r)
{
    for (int32_t i = 0; i < r->count; i++) {
        free(r->row[i].ids);
        free(r->row[i].weight);
    }
    free(r->row);
    free(r->own);
}

static bool grow(void *array, size_t bytes)
{
    void *p;
    memcpy(&p, array, sizeof p);
    p = realloc(p, bytes);
    if (p) memcpy(array, &p, sizeof p);
    return p != NULL;
}

static bool nodes_room(mx_live_graph *l, int32_t room)
{
    if (!grow(&l->type, (size_t)room)) return false;
    for (int32_t i = 0; i < l->view.relations; i++) {
        if (!grow(&l->hears[i].own, 4 * (size_t)room) || !grow(&l->heard[i].own, 4 * (size_t)room)) return false;
        memset(l->hears[i].own + l->room, 0, 4 * (size_t)(room - l->room));
        memset(l->heard[i].own + l->room, 0, 4 * (size_t)(room - l->room));
    }
    l->room = room;
    l->view.type = l->type;
    return true;
}

mx_status mx_live_graph_open(mx_live_graph **out, mx_graph_store *base, mx_error *err)
{
    mx_live_graph *l = calloc(1, sizeof *l);
    *out = NULL;
    if (!l) return mx_fail(err, MX_ERR_NO_MEMORY, "a live graph");
    int32_t n = base->view.nodes;
    l->view = base->view;
    l->first_nodes = n;
    bool ok = nodes_room(l, n + 1);
    if (ok) {
        if (base->view.type) memcpy(l->type, base->view.type, (size_t)n);
        else memset(l->type, 0, (size_t)n);
    }
    for (int32_t i = 0; ok && i < l->view.relations; i++) {
        const mx_csr *c = &base->csr[i];
        l->turned_begin[i] = malloc(4 * ((size_t)n + 1));
        l->turned[i] = malloc(4 * (size_t)c->begin[n] + 4);
        ok = l->turned_begin[i] && l->turned[i];
        if (ok) mx_csr_transpose(c->begin, c->ids, n, n, l->turned_begin[i], l->turned[i], NULL);
    }
    if (!ok) {
        mx_live_graph_close(l);
        return mx_fail(err, MX_ERR_NO_MEMORY, "a live graph of %d nodes", n);
    }
    l->base = *base;
    *base = (mx_graph_store){0};
    l->view.csr = NULL;
    l->view.row = live_row;
    l->view.ctx = l;
    *out = l;
    return MX_OK;
}

void mx_live_graph_close(mx_live_graph *l)
{
    if (!l) return;
    for (int32_t i = 0; i < l->view.relations; i++) {
        rows_free(&l->hears[i]);
        rows_free(&l->heard[i]);
        free(l->turned_begin[i]);
        free(l->turned[i]);
    }
    mx_graph_close(&l->base);
    free(l->type);
    free(l);
}

const mx_graph *mx_live_graph_view(const mx_live_graph *l) { return &l->view; }

mx_status mx_live_graph_add_node(mx_live_graph *l, uint8_t type, int32_t *node, mx_error *err)
{
    if (l->view.nodes >= INT32_MAX - 1) return mx_fail(err, MX_ERR_ARG, "the graph has 2^31 - 1 nodes already");
    if (l->view.nodes == l->room) {
        int32_t room = l->room < INT32_MAX / 2 ? l->room + l->room / 2 + 16 : INT32_MAX;
        if (!nodes_room(l, room)) return mx_fail(err, MX_ERR_NO_MEMORY, "%d nodes", room);
    }
    l->type[l->view.nodes] = type;
    *node = l->view.nodes++;
    return MX_OK;
}

/* The node's own row, with room for one more; `was` is what it holds so far. */
static row *own_row(rows *r, int32_t node, const mx_neighbours *was, bool weighted)
{
    if (!r->own[node]) {
        if (r->count == r->room) {
            int32_t room = r->room ? 2 * r->room : 64;
            if (!grow(&r->row, sizeof *r->row * (size_t)room)) return NULL;
            r->room = room;
        }
        row *w = &r->row[r->count];
        *w = (row){.room = was->n + 4};
        w->ids = malloc(4 * (size_t)w->room);
        w->weight = weighted ? malloc(4 * (size_t)w->room) : NULL;
        if (!w->ids || (weighted && !w->weight)) {
            free(w->ids);
            free(w->weight);
            return NULL;
        }
        w->n = was->n;
        if (w->n) memcpy(w->ids, was->ids, 4 * (size_t)w->n);
        if (w->n && weighted) memcpy(w->weight, was->weight, 4 * (size_t)w->n);
        r->own[node] = ++r->count;
    }
    row *w = &r->row[r->own[node] - 1];
    if (w->n < w->room) return w;
    int32_t room = w->room + w->room / 2 + 4;
    if (!grow(&w->ids, 4 * (size_t)room) || (weighted && !grow(&w->weight, 4 * (size_t)room))) return NULL;
    w->room = room;
    return w;
}

static void insert(row *w, int32_t id, float weight)
{
    int32_t lo = 0, hi = w->n;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (w->ids[mid] < id || (w->ids[mid] == id && (!w->weight || w->weight[mid] <= weight))) lo = mid + 1;
        else hi = mid;
    }
    memmove(w->ids + lo + 1, w->ids + lo, 4 * (size_t)(w->n - lo));
    w->ids[lo] = id;
    if (w->weight) {
        memmove(w->weight + lo + 1, w->weight + lo, 4 * (size_t)(w->n - lo));
        w->weight[lo] = weight;
    }
    w->n++;
}

mx_status mx_live_graph_add(mx_live_graph *l, int32_t relation, int32_t to, int32_t from, float weight, mx_error *err)
{
    mx_neighbours was;
    if (relation < 0 || relation >= l->view.relations) return mx_fail(err, MX_ERR_ARG, "relation %d is not from 0 to %d", relation, l->view.relations - 1);
    if (to < 0 || to >= l->view.nodes || from < 0 || from >= l->view.nodes) return mx_fail(err, MX_ERR_ARG, "an edge from %d to %d: no such node", from, to);
    if (!isfinite(weight)) return mx_fail(err, MX_ERR_ARG, "an edge's weight is not finite");
    live_row(l, relation, to, &was);
    row *hears = own_row(&l->hears[relation], to, &was, l->base.csr[relation].weight != NULL);
    heard_row(l, relation, from, &was);
    row *heard = hears ? own_row(&l->heard[relation], from, &was, false) : NULL;
    if (!heard) return mx_fail(err, MX_ERR_NO_MEMORY, "an edge of a live graph");
    insert(hears, from, weight);
    insert(heard, to, 1);
    return MX_OK;
}

void mx_live_graph_heard_by(const mx_live_graph *l, int32_t node, void (*each)(void *ctx, int32_t who), void *ctx)
{
    for (int32_t r = 0; r < l->view.relations; r++) {
        mx_neighbours n;
        heard_row(l, r, node, &n);
        for (int32_t i = 0; i < n.n; i++) each(ctx, n.ids[i]);
    }
}

static void take_out(row *w, int32_t id)
{
    int32_t n = 0;
    for (int32_t i = 0; i < w->n; i++) {
        if (w->ids[i] == id) continue;
        w->ids[n] = w->ids[i];
        if (w->weight) w->weight[n] = w->weight[i];
        n++;
    }
    w->n = n;
}

mx_status mx_live_graph_isolate(mx_live_graph *l, int32_t node, void (*told)(void *ctx, int32_t who), void *ctx, mx_error *err)
{
    for (int32_t r = 0; r < l->view.relations; r++) {
        mx_neighbours mine, other;
        bool weighted = l->base.csr[r].weight != NULL;
        heard_row(l, r, node, &mine);
        for (int32_t i = 0; i < mine.n; i++) {
            live_row(l, r, mine.ids[i], &other);
            row *w = mine.ids[i] == node ? NULL : own_row(&l->hears[r], mine.ids[i], &other, weighted);
            if (mine.ids[i] != node && !w) return mx_fail(err, MX_ERR_NO_MEMORY, "taking a node out");
            if (w) take_out(w, node);
            if (w && told) told(ctx, mine.ids[i]);
        }
        live_row(l, r, node, &mine);
        for (int32_t i = 0; i < mine.n; i++) {
            heard_row(l, r, mine.ids[i], &other);
            row *w = mine.ids[i] == node ? NULL : own_row(&l->heard[r], mine.ids[i], &other, false);
            if (mine.ids[i] != node && !w) return mx_fail(err, MX_ERR_NO_MEMORY, "taking a node out");
            if (w) take_out(w, node);
        }
        mx_neighbours none = {0};
        row *hears = own_row(&l->hears[r], node, &none, weighted), *heard = hears ? own_row(&l->heard[r], node, &none, false) : NULL;
        if (!heard) return mx_fail(err, MX_ERR_NO_MEMORY, "taking a node out");
        hears->n = heard->n = 0;
    }
    return MX_OK;
}

size_t mx_live_graph_bytes(const mx_live_graph *l)
{
    size_t bytes = l->base.bytes + (size_t)l->room * (1 + 8 * (size_t)l->view.relations);
    for (int32_t r = 0; r < l->view.relations; r++) {
        bytes += 4 * ((size_t)l->first_nodes + 1 + (size_t)l->base.csr[r].begin[l->first_nodes]);
        for (int32_t i = 0; i < l->hears[r].count; i++) bytes += (l->hears[r].row[i].weight ? 8u : 4u) * (size_t)l->hears[r].row[i].room;
        for (int32_t i = 0; i < l->heard[r].count; i++) bytes += 4 * (size_t)l->heard[r].row[i].room;
        bytes += sizeof(row) * (size_t)(l->hears[r].room + l->heard[r].room);
    }
    return bytes;
}
