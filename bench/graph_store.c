/* graph_store.c - the store of events and the refresh of embeddings on a power-law graph.
 *
 *     build/graph_store [EVENTS [USERS [ITEMS [FOLDER]]]]      10m 800k 200k; --small: 200k 16k 4k
 *
 * Loads random events (users uniform, items by a power law), and tells events/s, memory per edge, the time of a
 * snapshot and of a start; acknowledged single puts by 1 and 4 threads; profile reads/s; then embeddings of GraphSAGE (mean, two
 * layers of 64) kept right after single events between any two nodes and between a user and an item as popular as those of
 * the load, with all neighbours and with 32 at most: latency and rows computed, in percentiles, for a popular item is heard by many. */
#include "models/behaviour.h"
#include "models/refresh.h"
#include "models/user_graph.h"
#include "runtime/clock.h"

#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { BATCH = 8192, WIDTH = 64 };

static int64_t  n_events = 10000000, n_users = 800000, n_items = 200000;
static uint64_t seed = 1;

static double now(void) { return (double)mx_now_ns(&mx_clock_monotonic) / 1e9; }

static uint64_t draw(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Rank r with a chance like 1/r^0.75. */
static int64_t power_law(uint64_t *s, int64_t n)
{
    double u = (double)(draw(s) >> 11) / 9007199254740992.0;
    int64_t i = (int64_t)(pow(u, 4) * (double)n);
    return i < n ? i : n - 1;
}

static int check(mx_status st, const mx_error *err)
{
    if (st) fprintf(stderr, "graph_store: %s\n", err->text);
    return st != MX_OK;
}

typedef struct texts { char id[32], subject[32], object[32]; } texts;

static mx_event event_of(texts *t, int64_t i, uint64_t *s)
{
    mx_event e = mx_event_defaults();
    snprintf(t->id, sizeof t->id, "e%lld", (long long)i);
    snprintf(t->subject, sizeof t->subject, "user%lld", (long long)(draw(s) % (uint64_t)n_users));
    snprintf(t->object, sizeof t->object, "item%lld", (long long)power_law(s, n_items));
    e.id = t->id, e.subject = t->subject, e.object = t->object;
    e.type = (int32_t)(draw(s) % 3);
    e.ts_ms = 1700000000000 + i * 100;
    e.price_minor = 100 + (int64_t)(draw(s) % 10000);
    return e;
}

static int load(mx_user_graph *g)
{
    texts    *t = malloc(sizeof *t * BATCH);
    mx_event *e = malloc(sizeof *e * BATCH);
    mx_put_ack ack;
    mx_error err = {0};
    int bad = !t || !e;
    double start = now();
    for (int64_t i = 0; !bad && i < n_events; i += BATCH) {
        int32_t n = n_events - i < BATCH ? (int32_t)(n_events - i) : BATCH;
        for (int32_t k = 0; k < n; k++) e[k] = event_of(&t[k], i + k, &seed);
        bad = check(mx_user_graph_put(g, e, n, 0, NULL, &ack, &err), &err);
    }
    double loaded = now();
    bad = bad || check(mx_user_graph_merge(g, &err), &err);
    if (!bad) printf("load               %.0f events/s, %.1f s with merges; last snapshot %.2f s\n", (double)n_events / (loaded - start), now() - start, now() - loaded);
    free(t);
    free(e);
    return bad;
}

static void memory(const mx_user_graph *g)
{
    mx_user_graph_stats s;
    mx_user_graph_statistics(g, &s);
    printf("graph              %lld nodes, %lld edges; log %.0f MB, snapshot %.0f MB\n", (long long)s.nodes, (long long)s.edges, (double)s.log_bytes / 1e6, (double)s.snapshot_bytes / 1e6);
    printf("memory             %.1f bytes an edge (both directions, time, weight, type), %.1f an event (index, ids), %.1f a node (key)\n", (double)s.edge_bytes / (double)s.edges,
           (double)s.event_bytes / (double)s.events, (double)s.node_bytes / (double)s.nodes);
}

typedef struct single { mx_user_graph *g; atomic_llong *next, *done; double until; } single;

static void *put_single(void *ctx)
{
    single *s = ctx;
    mx_error err = {0};
    mx_put_ack ack;
    while (now() < s->until) {
        texts t;
        int64_t i = atomic_fetch_add(s->next, 1);
        uint64_t own = (uint64_t)i * 7919;
        mx_event e = event_of(&t, i, &own);
        if (mx_user_graph_put(s->g, &e, 1, 0, NULL, &ack, &err)) break;
        atomic_fetch_add(s->done, 1);
    }
    return NULL;
}

static void singles(mx_user_graph *g, atomic_llong *next)
{
    for (int threads = 1; threads <= 16; threads *= 4) {
        pthread_t t[16];
        atomic_llong done = 0;
        double start = now();
        single s = {g, next, &done, start + 2};
        for (int i = 0; i < threads; i++) pthread_create(&t[i], NULL, put_single, &s);
        for (int i = 0; i < threads; i++) pthread_join(t[i], NULL);
        printf("acknowledged       %.0f single events/s on disk, %d threads\n", (double)atomic_load(&done) / (now() - start), threads);
    }
}

static int reads(mx_user_graph *g)
{
    mx_event_list list = {0};
    mx_user_edges edges = {0};
    mx_behaviour b;
    mx_error err = {0};
    int64_t n = 0, events = 0;
    int bad = 0;
    double start = now();
    for (; !bad && now() - start < 2; n++) {
        int32_t user = (int32_t)(draw(&seed) % (uint64_t)n_users);
        bad = check(mx_behaviour_of(g, user, NULL, MX_TIME_MOST, &list, &b, &err), &err);
        events += list.count;
    }
    printf("behaviour          %.0f subjects/s, %.1f events each, 1 thread\n", (double)n / (now() - start), (double)events / (double)n);
    start = now();
    for (n = 0; !bad && now() - start < 2; n++) bad = check(mx_user_graph_edges(g, (int32_t)(draw(&seed) % (uint64_t)n_users), MX_EDGES_OUT, MX_TIME_ANY, &edges, &err), &err);
    printf("neighbours         %.0f nodes/s, 1 thread\n", (double)n / (now() - start));
    mx_event_list_free(&list);
    mx_user_edges_free(&edges);
    return bad;
}

/* ---- refresh ------------------------------------------------------------------------------------ */

static mx_live_graph *live_of(const mx_user_graph *g, mx_error *err)
{
    int32_t nodes = mx_user_graph_nodes(g), *from = malloc(4 * (size_t)n_events), *to = malloc(4 * (size_t)n_events);
    mx_user_edges l = {0};
    mx_graph_store store = {0};
    mx_live_graph *live = NULL;
    int64_t n = 0;
    mx_status st = from && to ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "edges");
    for (int32_t i = 0; !st && i < nodes; i++) {
        st = mx_user_graph_edges(g, i, MX_EDGES_OUT, MX_TIME_ANY, &l, err);
        for (int64_t e = 0; !st && e < l.count && n < n_events; e++, n++) from[n] = l.edge[e].other, to[n] = i;
    }
    mx_edge_list list = {from, to, NULL, n};
    mx_graph_options o = {.both_ways = true};
    if (!st) st = mx_graph_build(&store, nodes, NULL, &list, 1, &o, err);
    if (!st) st = mx_live_graph_open(&live, &store, err);
    mx_user_edges_free(&l);
    free(from);
    free(to);
    return live;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The two ends of an event: any two nodes; or a user and an item as they were loaded, which a popular item often is. */
typedef struct ends { int32_t a, b; } ends;

static ends any_two(const mx_user_graph *g)
{
    uint64_t n = (uint64_t)mx_user_graph_nodes(g);
    return (ends){(int32_t)(draw(&seed) % n), (int32_t)(draw(&seed) % n)};
}

static ends as_loaded(const mx_user_graph *g)
{
    texts t;
    ends e = {-1, -1};
    while (e.a < 0 || e.b < 0) {
        event_of(&t, 0, &seed);
        e = (ends){mx_user_graph_find(g, 0, t.subject), mx_user_graph_find(g, 1, t.object)};
    }
    return e;
}

static int events_one_by_one(const mx_user_graph *g, mx_refresh *r, mx_stream *s, ends (*next)(const mx_user_graph *), const char *what, mx_error *err)
{
    enum { TIMES = 500 };
    double took[TIMES], rows[TIMES], from = now();
    int n = 0, bad = 0;
    for (; !bad && n < TIMES && (n < 10 || now() - from < 10); n++) {
        mx_refresh_stats stat;
        ends e = next(g);
        double start = now();
        bad = check(mx_refresh_add_edge(r, 0, e.a, e.b, 1, err), err) || check(mx_refresh_add_edge(r, 0, e.b, e.a, 1, err), err) || check(mx_refresh_run(r, s, &stat, err), err);
        took[n] = now() - start;
        rows[n] = (double)(stat.computed[0] + stat.computed[1]);
    }
    qsort(took, (size_t)n, sizeof *took, by_value), qsort(rows, (size_t)n, sizeof *rows, by_value);
    printf("    %-19s%d events: median %.2f ms, p95 %.2f, p99 %.2f, most %.2f; rows %.0f, %.0f, %.0f, %.0f\n", what, n, took[n / 2] * 1e3, took[n * 95 / 100] * 1e3,
           took[n * 99 / 100] * 1e3, took[n - 1] * 1e3, rows[n / 2], rows[n * 95 / 100], rows[n * 99 / 100], rows[n - 1]);
    return bad;
}

static int refresh(const mx_user_graph *g, int32_t max_degree)
{
    mx_error err = {0};
    mx_device *dev = NULL;
    mx_stream s = {0};
    mx_refresh *r = NULL;
    mx_gnn *m = NULL;
    int n_dev = 0, bad;
    mx_device_options o = {0};
    mx_gnn_config c = {.kind = MX_GNN_SAGE, .layers = 2, .features = WIDTH, .hidden = WIDTH, .outputs = WIDTH, .act = MX_ACT_RELU, .max_degree = max_degree};
    int32_t nodes = mx_user_graph_nodes(g);
    float *input = malloc(4 * (size_t)nodes * WIDTH);
    for (size_t i = 0; input && i < (size_t)nodes * WIDTH; i++) input[i] = (float)(draw(&seed) % 1000) / 1000;
    mx_live_graph *live = live_of(g, &err);
    bad = !input || !live || check(mx_devices_open(&dev, &n_dev, &o, &err), &err) || check(mx_stream_open(&s, dev, 1 << 20, &err), &err) ||
          check(mx_gnn_create(&m, dev, &c, 1, &err), &err);
    mx_refresh_net net = {0};
    if (!bad) net = mx_refresh_net_of(m, 4096);
    bad = bad || check(mx_refresh_open(&r, live, &net, input, &err), &err);
    double start = now();
    bad = bad || check(mx_refresh_run(r, &s, NULL, &err), &err);
    if (!bad) printf("refresh            max degree %d%s: all embeddings %.2f s of %d nodes, 2 layers of %d; live graph %.0f MB\n", max_degree, max_degree ? "" : " (all)", now() - start,
                     nodes, WIDTH, (double)mx_live_graph_bytes(live) / 1e6);
    bad = bad || events_one_by_one(g, r, &s, any_two, "any two nodes", &err) || events_one_by_one(g, r, &s, as_loaded, "a user and an item", &err);
    mx_refresh_close(r);
    mx_gnn_close(m);
    mx_live_graph_close(live);
    mx_stream_close(&s);
    if (dev) mx_devices_close(dev, n_dev);
    free(input);
    return bad;
}

int main(int argc, char **argv)
{
    const char *folder = argc > 4 ? argv[4] : "graph-store-bench";
    mx_error err = {0};
    mx_user_graph *g = NULL;
    if (argc > 1 && !strcmp(argv[1], "--small")) n_events = 200000, n_users = 16000, n_items = 4000;
    else {
        if (argc > 1) n_events = atoll(argv[1]);
        if (argc > 2) n_users = atoll(argv[2]);
        if (argc > 3) n_items = atoll(argv[3]);
    }
    if (n_events < 1 || n_users < 1 || n_items < 1) return 2;
    if (!mkdir(folder, 0700)) printf("in                 %s, to be removed by hand\n", folder);
    if (check(mx_user_graph_open(&g, folder, NULL, &err), &err) || check(mx_user_graph_declare_usual(g, &err), &err)) return 1;
    if (mx_user_graph_watermark(g)) {
        fprintf(stderr, "graph_store: %s is not empty\n", folder);
        return 1;
    }
    atomic_llong next = n_events;
    if (load(g)) return 1;
    memory(g);
    mx_user_graph_close(g);
    double start = now();
    if (check(mx_user_graph_open(&g, folder, NULL, &err), &err)) return 1;
    printf("start              %.3f s\n", now() - start);
    singles(g, &next);
    int bad = reads(g) || refresh(g, 0) || refresh(g, 32);
    mx_user_graph_close(g);
    return bad;
}
