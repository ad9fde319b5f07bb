/* test_refresh.c - after each of a thousand events the refreshed embeddings are those of a graph built and
 * computed anew, bit for bit: GraphSAGE (mean, maximum, sampled), GCN, GAT, over two relations. */
#include "kernels/ops.h"
#include "models/gnn.h"
#include "models/refresh.h"
#include "tests/test.h"

enum { IN = 5, HID = 8, HEADS = 2, START = 30, MOST = 90, EVENTS = 1000, FAN_OUT = 3 };
typedef enum kind { SAGE_MEAN, SAGE_MAX, SAGE_SAMPLED, GCN, GAT, KINDS } kind;
static const char *const kind_name[] = {"GraphSAGE mean", "GraphSAGE max", "GraphSAGE sampled", "GCN", "GAT"};

static mx_device *devices;
static int        n_devices;

/* ---- a network of two layers, out of ops ----------------------------------------------------- */

typedef struct net {
    kind  of;
    float self[2][HID * HID], other[2][2][HID * HID], to[2][HID], from[2][HID];      /* [layer][relation] */
} net;

static void draw(float *w, size_t n, uint64_t *seed)
{
    for (size_t i = 0; i < n; i++) w[i] = (float)((double)(test_random(seed) % 2001) / 1000 - 1) * 0.5f;
}

static mx_tensor matrix(const void *p, mx_dtype t, int64_t rows, int64_t cols) { return mx_tensor_of((void *)(uintptr_t)p, t, rows, cols); }

/* What op sample_neighbours leaves of every row. */
static mx_status sampled(mx_stream *s, const mx_graph *g, int32_t relation, int32_t layer, const int32_t *nodes, int32_t n, mx_rows_of *b, mx_error *err)
{
    int32_t begin[MOST + 1], edge[MOST * FAN_OUT], to = 0;
    begin[0] = 0;
    for (int32_t v = 0; v < g->nodes; v++) begin[v + 1] = begin[v] + mx_graph_row(g, relation, v).n;
    mx_sample_neighbours(s, matrix(edge, MX_I32, n, FAN_OUT), matrix(nodes, MX_I32, n, 1), matrix(begin, MX_I32, g->nodes + 1, 1),
                         (mx_sample_key){.seed = 7, .layer = (uint32_t)layer});
    MX_TRY(mx_stream_sync(s, err));
    MX_TRY(mx_rows_gather(g, relation, nodes, n, b, err));
    for (int32_t i = 0; i < n; i++) {
        mx_neighbours w = mx_graph_row(g, relation, nodes[i]);
        b->begin[i] = to;
        for (int32_t k = 0; k < FAN_OUT && edge[i * FAN_OUT + k] >= 0; k++) b->ids[to++] = w.ids[edge[i * FAN_OUT + k] - begin[nodes[i]]];
    }
    b->begin[n] = to;
    b->edges = to;
    return MX_OK;
}

static void gcn_weights(const mx_graph *g, const int32_t *nodes, int32_t n, mx_rows_of *b)
{
    for (int32_t i = 0; i < n; i++)
        for (int32_t e = b->begin[i]; e < b->begin[i + 1]; e++)
            b->weight[e] = 1 / sqrtf((float)(1 + mx_graph_degree(g, nodes[i])) * (float)(1 + mx_graph_degree(g, b->ids[e])));
}

/* y += what a relation brings. */
static void relation_adds(net *k, mx_stream *s, int32_t layer, int32_t relation, int32_t c, mx_tensor y, mx_tensor h, mx_tensor own, const mx_rows_of *b)
{
    static float agg[MOST * HID], z[4096 * HID], src[4096 * HEADS], dst[MOST * HEADS], zd[MOST * HID], lse[MOST * HEADS], att[MOST * HID];
    int64_t n = y.rows, edges = b->edges;
    mx_tensor w = matrix(k->other[layer][relation], MX_F32, HID, c), none = {0};
    mx_tensor begin = matrix(b->begin, MX_I32, n + 1, 1), ids = matrix(b->ids, MX_I32, edges, 1);
    if (!edges) return;
    if (k->of == GAT) {
        int32_t place[4096];
        float gathered[4096 * HID];
        for (int32_t e = 0; e < edges; e++) place[e] = e;
        mx_embed(s, matrix(gathered, MX_F32, edges, c), h, ids, false);
        mx_product(s, matrix(z, MX_F32, edges, HID), matrix(gathered, MX_F32, edges, c), w, none, MX_F32, false);
        mx_product(s, matrix(zd, MX_F32, n, HID), own, w, none, MX_F32, false);
        mx_dot(s, matrix(src, MX_F32, edges, HEADS), matrix(z, MX_F32, edges, HID), matrix(k->from[relation], MX_F32, 1, HID));
        mx_dot(s, matrix(dst, MX_F32, n, HEADS), matrix(zd, MX_F32, n, HID), matrix(k->to[relation], MX_F32, 1, HID));
        mx_graph_attention(s, matrix(att, MX_F32, n, HID), matrix(lse, MX_F32, n, HEADS), matrix(z, MX_F32, edges, HID), matrix(src, MX_F32, edges, HEADS),
                           matrix(dst, MX_F32, n, HEADS), matrix(place, MX_I32, edges, 1), begin, (mx_graph_heads){.heads = HEADS, .slope = 0.2f});
        mx_add(s, y, y, matrix(att, MX_F32, n, HID));
        return;
    }
    mx_reduce how = k->of == SAGE_MAX ? MX_REDUCE_MAX : k->of == GCN ? MX_REDUCE_SUM : MX_REDUCE_MEAN;
    mx_aggregate(s, matrix(agg, MX_F32, n, c), h, ids, begin, how == MX_REDUCE_MAX || k->of == SAGE_SAMPLED ? none : matrix(b->weight, MX_F32, edges, 1), how);
    mx_product(s, y, matrix(agg, MX_F32, n, c), w, none, MX_F32, true);
}

static mx_status run(void *ctx, mx_stream *s, int32_t layer, const mx_graph *g, const int32_t *nodes, int32_t n, const float *in, float *out, mx_error *err)
{
    static mx_rows_of b;
    net *k = ctx;
    float own[MOST * HID];
    int32_t c = layer ? HID : IN;
    mx_tensor h = matrix(in, MX_F32, g->nodes, c), mine = matrix(own, MX_F32, n, c), y = matrix(out, MX_F32, n, HID), none = {0};
    mx_embed(s, mine, h, matrix(nodes, MX_I32, n, 1), false);
    mx_product(s, y, mine, matrix(k->self[layer], MX_F32, HID, c), none, MX_F32, false);
    for (int32_t r = 0; r < g->relations; r++) {
        if (k->of == SAGE_SAMPLED) MX_TRY(sampled(s, g, r, layer, nodes, n, &b, err));
        else MX_TRY(mx_rows_gather(g, r, nodes, n, &b, err));
        if (k->of == GCN) gcn_weights(g, nodes, n, &b);
        relation_adds(k, s, layer, r, c, y, h, mine, &b);
        MX_TRY(mx_stream_sync(s, err));                    /* b is filled anew */
    }
    mx_activate(s, y, y, MX_ACT_RELU);
    return mx_stream_sync(s, err);
}

/* ---- all events so far, for graphs built anew --------------------------------------------------- */

typedef struct world {
    int32_t  nodes, n[2], from[2][4096], to[2][4096];
    float    weight[2][4096], input[MOST * IN];
    uint64_t seed;
} world;

static void world_edge(world *w, int32_t r, int32_t to, int32_t from, float weight)
{
    w->from[r][w->n[r]] = from;
    w->to[r][w->n[r]] = to;
    w->weight[r][w->n[r]++] = weight;
}

static mx_live_graph *build(const world *w)
{
    mx_error err = {0};
    mx_graph_store g = {0};
    mx_live_graph *l = NULL;
    mx_edge_list lists[2] = {{w->from[0], w->to[0], w->weight[0], w->n[0]}, {w->from[1], w->to[1], NULL, w->n[1]}};
    mx_graph_options o = {0};
    CHECK_OK(mx_graph_build(&g, w->nodes, NULL, lists, 2, &o, &err), err);
    CHECK_OK(mx_live_graph_open(&l, &g, &err), err);
    return l;
}

static bool rows_equal(const mx_graph *a, const mx_graph *b)
{
    if (a->nodes != b->nodes) return false;
    for (int32_t r = 0; r < 2; r++)
        for (int32_t v = 0; v < a->nodes; v++) {
            mx_neighbours x = mx_graph_row(a, r, v), y = mx_graph_row(b, r, v);
            if (x.n != y.n || (x.n && memcmp(x.ids, y.ids, 4 * (size_t)x.n))) return false;
            if (r == 0 && x.n && memcmp(x.weight, y.weight, 4 * (size_t)x.n)) return false;
        }
    return true;
}

static bool same(mx_refresh *r, const world *w, const mx_refresh_net *like, mx_stream *s)
{
    mx_error err = {0};
    mx_live_graph *l = build(w);
    mx_refresh_net like_all = *like;
    mx_refresh *all = NULL;
    like_all.batch = MOST;                                      /* other batches too */
    CHECK_OK(mx_refresh_open(&all, l, &like_all, w->input, &err), err);
    CHECK_OK(mx_refresh_run(all, s, NULL, &err), err);
    bool equal = true;
    for (int32_t v = 0; v < w->nodes; v++) equal &= !memcmp(mx_refresh_embedding(r, v), mx_refresh_embedding(all, v), 4 * HID);
    mx_refresh_close(all);
    mx_live_graph_close(l);
    return equal;
}

/* One event: mostly an edge both ways, at times a new node with its first edge, at times another input. */
static void event(mx_refresh *r, world *w)
{
    mx_error err = {0};
    int what = (int)(test_random(&w->seed) % 20);
    int32_t a = (int32_t)(test_random(&w->seed) % (uint64_t)w->nodes), b = (int32_t)(test_random(&w->seed) % (uint64_t)w->nodes), rel = (int32_t)(test_random(&w->seed) % 2), v;
    float weight = rel ? 1 : (float)(1 + test_random(&w->seed) % 4) / 4;
    if (what == 0) {
        draw(w->input + a * IN, IN, &w->seed);
        CHECK_OK(mx_refresh_set_input(r, a, w->input + a * IN, &err), err);
        return;
    }
    if (what == 1 && w->nodes < MOST) {
        draw(w->input + w->nodes * IN, IN, &w->seed);
        CHECK_OK(mx_refresh_add_node(r, 0, w->input + w->nodes * IN, &v, &err), err);
        CHECK(v == w->nodes);
        a = w->nodes++;
    }
    CHECK_OK(mx_refresh_add_edge(r, rel, a, b, weight, &err), err);
    world_edge(w, rel, a, b, weight);
    CHECK_OK(mx_refresh_add_edge(r, rel, b, a, weight, &err), err);
    world_edge(w, rel, b, a, weight);
}

static void thousand(kind of)
{
    static world w;
    static net k;
    mx_error err = {0};
    mx_stream s = {0};
    w = (world){.nodes = START, .seed = 11 + (uint64_t)of};
    k.of = of;
    draw(k.self[0], sizeof k.self / 4, &w.seed);
    draw(k.other[0][0], sizeof k.other / 4, &w.seed);
    draw(k.to[0], sizeof k.to / 4, &w.seed);
    draw(k.from[0], sizeof k.from / 4, &w.seed);
    draw(w.input, START * IN, &w.seed);
    for (int i = 0; i < 30; i++) world_edge(&w, i % 2, (int32_t)(test_random(&w.seed) % START), (int32_t)(test_random(&w.seed) % START), 1);
    CHECK_OK(mx_stream_open(&s, devices, 1 << 20, &err), err);
    mx_live_graph *l = build(&w);
    mx_refresh_net like = {.layers = 2, .width = {IN, HID, HID}, .degrees = of == GCN, .run = run, .ctx = &k, .batch = 7};
    mx_refresh *r = NULL;
    mx_refresh_stats stat;
    CHECK_OK(mx_refresh_open(&r, l, &like, w.input, &err), err);
    CHECK_OK(mx_refresh_run(r, &s, &stat, &err), err);
    CHECK(stat.computed[0] == START && stat.computed[1] == START);
    int64_t rows = 0;
    int right = 0;
    for (int i = 0; i < EVENTS; i++) {
        event(r, &w);
        if (i % 10 == 9) event(r, &w);                      /* two at once */
        CHECK_OK(mx_refresh_run(r, &s, &stat, &err), err);
        rows += stat.computed[1];
        right += same(r, &w, &like, &s);
    }
    CHECK_MSG(right == EVENTS, "%s: %d of %d refreshes equal computing all anew", kind_name[of], right, EVENTS);
    mx_live_graph *anew = build(&w);
    CHECK(rows_equal(mx_live_graph_view(l), mx_live_graph_view(anew)));
    CHECK_OK(mx_refresh_run(r, &s, &stat, &err), err);
    CHECK(stat.computed[0] == 0 && stat.computed[1] == 0);
    printf("  %s: %d events, %.1f of %d nodes computed each\n", kind_name[of], EVENTS, (double)rows / EVENTS, w.nodes);
    mx_live_graph_close(anew);
    mx_refresh_close(r);
    mx_live_graph_close(l);
    mx_stream_close(&s);
}

static void sage_mean(void) { thousand(SAGE_MEAN); }
static void sage_max(void) { thousand(SAGE_MAX); }
static void sage_sampled(void) { thousand(SAGE_SAMPLED); }
static void gcn(void) { thousand(GCN); }
static void gat(void) { thousand(GAT); }

/* ---- the networks of gnn.h ---------------------------------------------------------------------------- */

static void trained_kind(const char *name, mx_gnn_kind k, bool max, bool unit)
{
    static world w;
    mx_error err = {0};
    mx_gnn *m = NULL;
    mx_gnn_config c = {.kind = k, .task = MX_GNN_LINKS, .layers = 2, .features = IN, .hidden = HID, .outputs = HID, .heads = 2, .out_heads = 2, .relations = k == MX_GNN_RGCN ? 2 : 0,
                       .max = max, .unit = unit, .act = MX_ACT_RELU};
    w = (world){.nodes = START, .seed = 31 + (uint64_t)k};
    draw(w.input, START * IN, &w.seed);
    for (int i = 0; i < 30; i++) world_edge(&w, i % 2, (int32_t)(test_random(&w.seed) % START), (int32_t)(test_random(&w.seed) % START), 1);
    if (k != MX_GNN_GAT) c.heads = c.out_heads = 0;
    CHECK_OK(mx_gnn_create(&m, devices, &c, 5, &err), err);
    if (!m) return;
    mx_live_graph *l = build(&w);
    mx_refresh_net like = mx_refresh_net_of(m, 7);
    mx_refresh *r = NULL;
    CHECK_OK(mx_refresh_open(&r, l, &like, w.input, &err), err);
    CHECK_OK(mx_refresh_run(r, NULL, NULL, &err), err);
    int right = 0, inferred = 0, events = EVENTS;
    for (int i = 0; i < events; i++) {
        static float all[MOST * HID];
        event(r, &w);
        CHECK_OK(mx_refresh_run(r, NULL, NULL, &err), err);
        right += same(r, &w, &like, NULL);
        CHECK_OK(mx_gnn_infer(m, mx_live_graph_view(l), w.input, all, NULL, NULL, &err), err);
        bool equal = true;
        for (int32_t v = 0; v < w.nodes; v++) equal &= !memcmp(mx_refresh_embedding(r, v), all + (size_t)v * HID, 4 * HID);
        inferred += equal;
    }
    CHECK_MSG(right == events, "%s: %d of %d refreshes equal computing all anew", name, right, events);
    if (k != MX_GNN_LIGHTGCN) CHECK_MSG(inferred == events, "%s: %d of %d refreshes equal inference", name, inferred, events);
    mx_refresh_close(r);
    mx_live_graph_close(l);
    mx_gnn_close(m);
}

static void networks(void)
{
    trained_kind("sage mean", MX_GNN_SAGE, false, false);
    trained_kind("sage max, unit rows", MX_GNN_SAGE, true, true);
    trained_kind("gcn", MX_GNN_GCN, false, false);
    trained_kind("gat", MX_GNN_GAT, false, false);
    trained_kind("rgcn", MX_GNN_RGCN, false, false);
}

/* ---- the rest --------------------------------------------------------------------------------------- */

static void erased_node(void)
{
    static world w;
    static net k = {.of = GCN};
    mx_error err = {0};
    mx_stream s = {0};
    w = (world){.nodes = START, .seed = 5};
    draw(k.self[0], sizeof k.self / 4, &w.seed);
    draw(k.other[0][0], sizeof k.other / 4, &w.seed);
    draw(w.input, START * IN, &w.seed);
    for (int i = 0; i < 200; i++) world_edge(&w, i % 2, (int32_t)(test_random(&w.seed) % START), (int32_t)(test_random(&w.seed) % START), 1);
    CHECK_OK(mx_stream_open(&s, devices, 1 << 20, &err), err);
    mx_live_graph *l = build(&w);
    mx_refresh_net like = {.layers = 2, .width = {IN, HID, HID}, .degrees = true, .run = run, .ctx = &k, .batch = 64};
    mx_refresh *r = NULL;
    CHECK_OK(mx_refresh_open(&r, l, &like, w.input, &err), err);
    CHECK_OK(mx_refresh_run(r, &s, NULL, &err), err);
    CHECK_OK(mx_refresh_erase(r, 4, &err), err);
    CHECK_OK(mx_refresh_run(r, &s, NULL, &err), err);
    memset(w.input + 4 * IN, 0, 4 * IN);
    for (int rel = 0; rel < 2; rel++) {
        int32_t n = 0;
        for (int32_t e = 0; e < w.n[rel]; e++) {
            if (w.from[rel][e] == 4 || w.to[rel][e] == 4) continue;
            w.from[rel][n] = w.from[rel][e], w.to[rel][n] = w.to[rel][e], w.weight[rel][n++] = w.weight[rel][e];
        }
        w.n[rel] = n;
    }
    CHECK(same(r, &w, &like, &s));
    mx_live_graph *anew = build(&w);
    CHECK(rows_equal(mx_live_graph_view(l), mx_live_graph_view(anew)));
    CHECK(mx_refresh_add_edge(r, 2, 0, 0, 1, &err) == MX_ERR_ARG && mx_refresh_add_edge(r, 0, 0, START, 1, &err) == MX_ERR_ARG);
    CHECK(mx_refresh_add_edge(r, 0, 0, 1, NAN, &err) == MX_ERR_ARG && mx_refresh_set_input(r, -1, w.input, &err) == MX_ERR_ARG);
    mx_live_graph_close(anew);
    mx_refresh_close(r);
    mx_live_graph_close(l);
    mx_stream_close(&s);
}

/* A run that fails leaves everything due, and the next one makes it right. */
typedef struct failing { net *k; int calls, fail_at; } failing;
static mx_status run_failing(void *ctx, mx_stream *s, int32_t layer, const mx_graph *g, const int32_t *nodes, int32_t n, const float *in, float *out, mx_error *err)
{
    failing *f = ctx;
    if (++f->calls == f->fail_at) return mx_fail(err, MX_ERR_DEVICE, "not today");
    return run(f->k, s, layer, g, nodes, n, in, out, err);
}

static void broken_off(void)
{
    static world w;
    static net k = {.of = SAGE_MEAN};
    mx_error err = {0};
    mx_stream s = {0};
    w = (world){.nodes = START, .seed = 6};
    draw(k.self[0], sizeof k.self / 4, &w.seed);
    draw(k.other[0][0], sizeof k.other / 4, &w.seed);
    draw(w.input, START * IN, &w.seed);
    for (int i = 0; i < 100; i++) world_edge(&w, i % 2, (int32_t)(test_random(&w.seed) % START), (int32_t)(test_random(&w.seed) % START), 1);
    CHECK_OK(mx_stream_open(&s, devices, 1 << 20, &err), err);
    mx_live_graph *l = build(&w);
    failing f = {.k = &k};
    mx_refresh_net like = {.layers = 2, .width = {IN, HID, HID}, .run = run_failing, .ctx = &f, .batch = 3}, plain = like;
    plain.run = run;
    plain.ctx = &k;
    mx_refresh *r = NULL;
    CHECK_OK(mx_refresh_open(&r, l, &like, w.input, &err), err);
    CHECK_OK(mx_refresh_run(r, &s, NULL, &err), err);
    for (int i = 1; i < 8; i++) {
        event(r, &w);
        f.calls = 0;
        f.fail_at = i;
        mx_status st = mx_refresh_run(r, &s, NULL, &err);
        f.fail_at = -1;
        CHECK(st == MX_OK || st == MX_ERR_DEVICE);
        CHECK_OK(mx_refresh_run(r, &s, NULL, &err), err);
        CHECK(same(r, &w, &plain, &s));
    }
    mx_refresh_close(r);
    mx_live_graph_close(l);
    mx_stream_close(&s);
}

static void open_devices(void)
{
    mx_error err = {0};
    mx_device_options o = {.cpu_threads = 2};
    CHECK_OK(mx_devices_open(&devices, &n_devices, &o, &err), err);
}

static void close_devices(void) { mx_devices_close(devices, n_devices); }

MX_TESTS(TEST(open_devices), TEST(sage_mean), TEST(sage_max), TEST(sage_sampled), TEST(gcn), TEST(gat), TEST(networks), TEST(erased_node), TEST(broken_off), TEST(close_devices))
