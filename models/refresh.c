/* refresh.c - what is due, layer by layer. */
#include "models/refresh.h"

#include <stdlib.h>
#include <string.h>

typedef struct set { int32_t *node; int32_t count, room; uint8_t *has; bool failed; } set;     /* has[nodes] */

struct mx_refresh {
    mx_live_graph *graph;
    mx_refresh_net net;
    int32_t        nodes, room;
    float         *h[MX_REFRESH_LAYERS + 1];          /* [room, width] */
    set            input, row;                        /* whose input, whose row changed since the last run */
    set            moved, next;                       /* of one run: whose h changed; who is computed */
    set            told;                              /* whose embedding changed since the last run that went well */
    float         *mean;                              /* [room, width[0]], or NULL                    */
    int32_t       *last;
    int32_t        last_count;
    float         *out;                               /* [batch, widest] */
};

static mx_status gnn_layer(void *ctx, mx_stream *s, int32_t layer, const mx_graph *g, const int32_t *nodes, int32_t n, const float *in, float *out, mx_error *err)
{
    (void)s;
    return mx_gnn_layer(ctx, g, layer, in, nodes, n, out, err);
}

mx_refresh_net mx_refresh_net_of(mx_gnn *m, int32_t batch)
{
    const mx_gnn_config *c = mx_gnn_config_of(m);
    mx_refresh_net net = {.layers = c->layers, .degrees = c->kind == MX_GNN_GCN || c->kind == MX_GNN_LIGHTGCN, .mean = c->kind == MX_GNN_LIGHTGCN, .run = gnn_layer,
                          .ctx = m, .batch = batch};
    for (int32_t k = 0; k <= c->layers; k++) net.width[k] = mx_gnn_width(c, k);
    return net;
}

/* ---- sets of nodes ------------------------------------------------------------------------ */

static void set_free(set *s)
{
    free(s->node);
    free(s->has);
}

static bool set_room(set *s, int32_t was, int32_t nodes)
{
    int32_t *node = realloc(s->node, 4 * (size_t)nodes);
    if (node) s->node = node;
    uint8_t *has = realloc(s->has, (size_t)nodes);
    if (has) {
        s->has = has;
        memset(has + was, 0, (size_t)(nodes - was));
    }
    return node && has;
}

static void set_add(void *ctx, int32_t node)
{
    set *s = ctx;
    if (s->has[node]) return;
    s->has[node] = 1;
    s->node[s->count++] = node;
}

static void set_clear(set *s)
{
    for (int32_t i = 0; i < s->count; i++) s->has[s->node[i]] = 0;
    s->count = 0;
}

static int by_number(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* Of many, marks are quicker to read off than to sort. */
static void set_sort(set *s, int32_t nodes)
{
    if (s->count < nodes / 16) {
        if (s->count) qsort(s->node, (size_t)s->count, sizeof *s->node, by_number);
        return;
    }
    s->count = 0;
    for (int32_t i = 0; i < nodes; i++)
        if (s->has[i]) s->node[s->count++] = i;
}

/* ---- opening ---------------------------------------------------------------------------------- */

static bool room_for(mx_refresh *r, int32_t nodes)
{
    if (nodes <= r->room) return true;
    int32_t room = nodes < INT32_MAX / 3 * 2 ? nodes + nodes / 8 + 16 : INT32_MAX;
    set *sets[] = {&r->input, &r->row, &r->moved, &r->next, &r->told};
    for (int i = 0; i < 5; i++)
        if (!set_room(sets[i], r->room, room)) return false;
    int32_t *last = realloc(r->last, 4 * (size_t)room);
    if (!last) return false;
    r->last = last;
    for (int32_t k = 0; k <= r->net.layers + (r->net.mean ? 1 : 0); k++) {
        float **at = k > r->net.layers ? &r->mean : &r->h[k];
        size_t row = 4 * (size_t)r->net.width[k > r->net.layers ? 0 : k], bytes;
        if (!mx_mul_size(row, (size_t)room, &bytes)) return false;
        float *h = realloc(*at, bytes);
        if (!h) return false;
        *at = h;
        memset((char *)h + row * (size_t)r->room, 0, bytes - row * (size_t)r->room);
    }
    r->room = room;
    return true;
}

mx_status mx_refresh_open(mx_refresh **out, mx_live_graph *graph, const mx_refresh_net *net, const float *input, mx_error *err)
{
    int32_t widest = 1;
    *out = NULL;
    if (net->layers < 1 || net->layers > MX_REFRESH_LAYERS) return mx_fail(err, MX_ERR_ARG, "refresh: %d layers are not 1 to %d", net->layers, MX_REFRESH_LAYERS);
    for (int32_t k = 0; k <= net->layers; k++) {
        if (net->width[k] < 1) return mx_fail(err, MX_ERR_ARG, "refresh: layer %d is %d wide", k, net->width[k]);
        if (net->width[k] > widest) widest = net->width[k];
        if (net->mean && net->width[k] != net->width[0]) return mx_fail(err, MX_ERR_ARG, "refresh: layer %d is %d wide; a mean is of equal ones", k, net->width[k]);
    }
    if (net->batch < 1) return mx_fail(err, MX_ERR_ARG, "refresh: batches of %d nodes", net->batch);
    mx_refresh *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "refresh");
    r->graph = graph;
    r->net = *net;
    r->nodes = mx_live_graph_view(graph)->nodes;
    r->out = malloc(4 * (size_t)widest * (size_t)net->batch);
    if (!r->out || !room_for(r, r->nodes + 1)) {
        mx_refresh_close(r);
        return mx_fail(err, MX_ERR_NO_MEMORY, "embeddings of %d nodes", r->nodes);
    }
    if (r->nodes) memcpy(r->h[0], input, 4 * (size_t)r->nodes * (size_t)net->width[0]);
    mx_refresh_all(r);
    *out = r;
    return MX_OK;
}

void mx_refresh_close(mx_refresh *r)
{
    if (!r) return;
    set_free(&r->input);
    set_free(&r->row);
    set_free(&r->moved);
    set_free(&r->next);
    set_free(&r->told);
    free(r->mean);
    for (int32_t k = 0; k <= MX_REFRESH_LAYERS; k++) free(r->h[k]);
    free(r->last);
    free(r->out);
    free(r);
}

/* ---- changes ------------------------------------------------------------------------------------- */

static float *row_of(const mx_refresh *r, int32_t layer, int32_t node) { return r->h[layer] + (size_t)node * (size_t)r->net.width[layer]; }

mx_status mx_refresh_add_node(mx_refresh *r, uint8_t type, const float *input, int32_t *node, mx_error *err)
{
    if (!room_for(r, r->nodes + 1)) return mx_fail(err, MX_ERR_NO_MEMORY, "embeddings of %d nodes", r->nodes + 1);
    MX_TRY(mx_live_graph_add_node(r->graph, type, node, err));
    r->nodes++;
    memcpy(row_of(r, 0, *node), input, 4 * (size_t)r->net.width[0]);
    set_add(&r->row, *node);
    if (r->net.mean) set_add(&r->told, *node);
    return MX_OK;
}

mx_status mx_refresh_add_edge(mx_refresh *r, int32_t relation, int32_t to, int32_t from, float weight, mx_error *err)
{
    MX_TRY(mx_live_graph_add(r->graph, relation, to, from, weight, err));
    set_add(&r->row, to);
    return MX_OK;
}

static mx_status check_node(const mx_refresh *r, int32_t node, mx_error *err)
{
    return node >= 0 && node < r->nodes ? MX_OK : mx_fail(err, MX_ERR_ARG, "refresh: no node %d", node);
}

mx_status mx_refresh_set_input(mx_refresh *r, int32_t node, const float *input, mx_error *err)
{
    size_t bytes = 4 * (size_t)r->net.width[0];
    MX_TRY(check_node(r, node, err));
    if (!memcmp(row_of(r, 0, node), input, bytes)) return MX_OK;
    memcpy(row_of(r, 0, node), input, bytes);
    set_add(&r->input, node);
    return MX_OK;
}

mx_status mx_refresh_erase(mx_refresh *r, int32_t node, mx_error *err)
{
    MX_TRY(check_node(r, node, err));
    set_add(&r->row, node);
    set_add(&r->input, node);
    memset(row_of(r, 0, node), 0, 4 * (size_t)r->net.width[0]);
    return mx_live_graph_isolate(r->graph, node, set_add, &r->row, err);
}

void mx_refresh_all(mx_refresh *r)
{
    for (int32_t i = 0; i < r->nodes; i++) {
        set_add(&r->row, i);
        if (r->net.mean) set_add(&r->told, i);            /* a mean is due where no layer's row will move */
    }
}

int64_t mx_refresh_due(const mx_refresh *r) { return (int64_t)r->row.count + r->input.count; }

/* ---- a run ------------------------------------------------------------------------------------------- */

/* Computes `next` at a layer; `moved` becomes those whose output is not what it was. */
static mx_status run_layer(mx_refresh *r, mx_stream *s, int32_t layer, mx_error *err)
{
    size_t bytes = 4 * (size_t)r->net.width[layer + 1];
    set_sort(&r->next, r->nodes);
    for (int32_t at = 0; at < r->next.count; at += r->net.batch) {
        int32_t n = r->next.count - at < r->net.batch ? r->next.count - at : r->net.batch;
        const int32_t *nodes = r->next.node + at;
        MX_TRY(r->net.run(r->net.ctx, s, layer, mx_live_graph_view(r->graph), nodes, n, r->h[layer], r->out, err));
        for (int32_t i = 0; i < n; i++) {
            float *to = row_of(r, layer + 1, nodes[i]);
            const float *from = r->out + (size_t)i * (size_t)r->net.width[layer + 1];
            if (!memcmp(to, from, bytes)) continue;
            memcpy(to, from, bytes);
            set_add(&r->moved, nodes[i]);
        }
    }
    return MX_OK;
}

static void spread(const mx_refresh *r, const set *from, set *to, bool themselves)
{
    for (int32_t i = 0; i < from->count; i++) {
        if (themselves) set_add(to, from->node[i]);
        mx_live_graph_heard_by(r->graph, from->node[i], set_add, to);
    }
}

static void keep_last(mx_refresh *r)
{
    set_sort(&r->told, r->nodes);
    r->last_count = r->told.count;
    if (r->last_count) memcpy(r->last, r->told.node, 4 * (size_t)r->last_count);
    set_clear(&r->told);
}

static void tell(mx_refresh *r)
{
    for (int32_t i = 0; i < r->moved.count; i++) set_add(&r->told, r->moved.node[i]);
}

/* In the order of mx_gnn_infer(). */
static void take_means(mx_refresh *r)
{
    int32_t c = r->net.width[0];
    float share = 1 / (float)(r->net.layers + 1);
    for (int32_t i = 0; r->net.mean && i < r->told.count; i++) {
        float *to = r->mean + (size_t)r->told.node[i] * (size_t)c;
        for (int32_t k = 0; k <= r->net.layers; k++) {
            const float *from = row_of(r, k, r->told.node[i]);
            for (int32_t j = 0; j < c; j++) to[j] = k ? to[j] + share * from[j] : share * from[j];
        }
    }
}

mx_status mx_refresh_run(mx_refresh *r, mx_stream *s, mx_refresh_stats *stats, mx_error *err)
{
    mx_refresh_stats ignored;
    mx_status st = MX_OK;
    if (!stats) stats = &ignored;
    *stats = (mx_refresh_stats){0};
    set_clear(&r->moved);
    for (int32_t i = 0; i < r->input.count; i++) set_add(&r->moved, r->input.node[i]);
    for (int32_t k = 0; !st && k < r->net.layers; k++) {
        if (r->net.mean) tell(r);
        set_clear(&r->next);
        spread(r, &r->moved, &r->next, true);
        for (int32_t i = 0; i < r->row.count; i++) set_add(&r->next, r->row.node[i]);
        if (r->net.degrees) spread(r, &r->row, &r->next, false);
        set_clear(&r->moved);
        st = run_layer(r, s, k, err);
        stats->computed[k] = r->next.count;
        stats->changed[k] = r->moved.count;
    }
    tell(r);                                              /* of a run that failed too */
    if (st) {
        /* Rows that did change would look unchanged next time: all is due again. */
        mx_refresh_all(r);
        return st;
    }
    take_means(r);
    keep_last(r);
    set_clear(&r->input);
    set_clear(&r->row);
    return MX_OK;
}

const float *mx_refresh_embedding(const mx_refresh *r, int32_t node)
{
    if (node < 0 || node >= r->nodes) return NULL;
    return r->net.mean ? r->mean + (size_t)node * (size_t)r->net.width[0] : row_of(r, r->net.layers, node);
}

float *mx_refresh_rows(mx_refresh *r, int32_t layer) { return r->h[layer]; }

const int32_t *mx_refresh_changed(const mx_refresh *r, int32_t *n)
{
    *n = r->last_count;
    return r->last;
}

/* ---- rows side by side ---------------------------------------------------------------------------------- */

void mx_rows_of_free(mx_rows_of *b)
{
    free(b->begin);
    free(b->ids);
    free(b->weight);
    *b = (mx_rows_of){0};
}

mx_status mx_rows_gather(const mx_graph *g, int32_t relation, const int32_t *nodes, int32_t n, mx_rows_of *b, mx_error *err)
{
    int64_t edges = 0;
    for (int32_t i = 0; i < n; i++) edges += mx_graph_row(g, relation, nodes[i]).n;
    if (edges > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "%d rows have %lld edges", n, (long long)edges);
    if (n + 1 > b->begin_room || edges > b->ids_room) {
        mx_rows_of_free(b);
        b->begin_room = n + 1;
        b->ids_room = edges + edges / 4 + 16;
        b->begin = malloc(4 * (size_t)b->begin_room);
        b->ids = malloc(4 * (size_t)b->ids_room);
        b->weight = malloc(4 * (size_t)b->ids_room);
        if (!b->begin || !b->ids || !b->weight) {
            mx_rows_of_free(b);
            return mx_fail(err, MX_ERR_NO_MEMORY, "rows of %lld edges", (long long)edges);
        }
    }
    int32_t at = 0;
    for (int32_t i = 0; i < n; i++) {
        mx_neighbours w = mx_graph_row(g, relation, nodes[i]);
        b->begin[i] = at;
        if (w.n) memcpy(b->ids + at, w.ids, 4 * (size_t)w.n);
        for (int32_t e = 0; e < w.n; e++) b->weight[at + e] = w.weight ? w.weight[e] : 1;
        at += w.n;
    }
    b->begin[n] = at;
    b->edges = at;
    return MX_OK;
}
