/* test_graph.c - rows out of edge lists, whatever order the edges come in. */
#include "models/graph.h"
#include "tests/test.h"

static uint64_t state = 20260401;

enum { NODES = 97, EDGES = 3001 };

typedef struct list {
    int32_t from[EDGES], to[EDGES];
    float   weight[EDGES];
} list;

static mx_edge_list view(const list *l, bool weights)
{
    return (mx_edge_list){l->from, l->to, weights ? l->weight : NULL, EDGES};
}

static void fill(list *l)
{
    for (int i = 0; i < EDGES; i++) {
        l->from[i] = (int32_t)(test_random(&state) % NODES);
        l->to[i] = (int32_t)(test_random(&state) % (i % 7 ? NODES : 3));       /* some rows are long, most short */
        l->weight[i] = (float)(test_random(&state) % 5) * 0.25f;
    }
}

static void shuffle(list *l)
{
    for (int i = EDGES - 1; i > 0; i--) {
        int j = (int)(test_random(&state) % (unsigned)(i + 1));
        int32_t a = l->from[i], b = l->to[i];
        float w = l->weight[i];
        l->from[i] = l->from[j], l->to[i] = l->to[j], l->weight[i] = l->weight[j];
        l->from[j] = a, l->to[j] = b, l->weight[j] = w;
    }
}

static bool equal(const mx_csr *a, const mx_csr *b)
{
    size_t n = (size_t)a->begin[NODES];
    return !memcmp(a->begin, b->begin, (NODES + 1) * sizeof *a->begin) && !memcmp(a->ids, b->ids, n * sizeof *a->ids) &&
           !a->weight == !b->weight && (!a->weight || !memcmp(a->weight, b->weight, n * sizeof *a->weight));
}

/* Every edge is in its row, as often as it was given. */
static void edges_are_in_their_rows(void)
{
    list l;
    mx_error err = {0};
    fill(&l);
    for (int weights = 0; weights < 2; weights++) {
        mx_graph_store g;
        mx_edge_list lists[2] = {view(&l, weights), {0}};
        int counts[NODES][NODES] = {{0}};
        double sums[NODES][NODES] = {{0}};
        CHECK_OK(mx_graph_build(&g, NODES, NULL, lists, 2, NULL, &err), err);
        CHECK_OK(mx_graph_check(&g.view, &err), err);
        CHECK(g.edges == EDGES);
        for (int i = 0; i < EDGES; i++) counts[l.to[i]][l.from[i]]++, sums[l.to[i]][l.from[i]] += (double)l.weight[i];
        int64_t degrees = 0;
        for (int32_t v = 0; v < NODES; v++) {
            mx_neighbours n = mx_graph_row(&g.view, 0, v);
            for (int32_t i = 0; i < n.n; i++) {
                counts[v][n.ids[i]]--;
                if (weights) sums[v][n.ids[i]] -= (double)n.weight[i];
            }
            CHECK(mx_graph_row(&g.view, 1, v).n == 0);
            degrees += mx_graph_degree(&g.view, v);
        }
        CHECK(degrees == EDGES);
        for (int v = 0; v < NODES; v++)
            for (int u = 0; u < NODES; u++) CHECK(counts[v][u] == 0 && (!weights || fabs(sums[v][u]) < 1e-9));
        mx_graph_close(&g);
    }
}

static void the_order_of_the_edges_does_not_matter(void)
{
    list l;
    mx_error err = {0};
    fill(&l);
    for (int o = 0; o < 8; o++) {
        mx_graph_options opt = {o & 1, o & 2, o & 4};
        mx_graph_store a, b;
        mx_edge_list lists = view(&l, true);
        CHECK_OK(mx_graph_build(&a, NODES, NULL, &lists, 1, &opt, &err), err);
        shuffle(&l);
        CHECK_OK(mx_graph_build(&b, NODES, NULL, &lists, 1, &opt, &err), err);
        CHECK(equal(&a.csr[0], &b.csr[0]));
        CHECK_OK(mx_graph_check(&b.view, &err), err);
        if (!opt.once) CHECK(a.edges == EDGES * (opt.both_ways ? 2 : 1) + (opt.self_loops ? NODES : 0));
        mx_graph_close(&a), mx_graph_close(&b);
    }
}

static void edges_of_a_pair_become_one(void)
{
    mx_error err = {0};
    mx_graph_store g;
    int32_t from[] = {2, 0, 2, 1, 0, 2}, to[] = {1, 1, 1, 0, 1, 1};
    float weight[] = {0.5f, 1, 0.25f, 3, 2, 0.125f};
    mx_edge_list l = {from, to, weight, 6};
    mx_graph_options once = {.once = true};
    CHECK_OK(mx_graph_build(&g, 3, (const uint8_t[]){7, 8, 9}, &l, 1, &once, &err), err);
    mx_neighbours n = mx_graph_row(&g.view, 0, 1);
    CHECK(n.n == 2 && n.ids[0] == 0 && n.ids[1] == 2 && n.weight[0] == 3 && n.weight[1] == 0.875f && g.view.type[2] == 9);
    CHECK(mx_graph_row(&g.view, 0, 0).n == 1 && mx_graph_row(&g.view, 0, 2).n == 0);
    mx_graph_close(&g);
}

static void turned_round_twice_is_the_same(void)
{
    list l;
    mx_error err = {0};
    mx_graph_store g;
    fill(&l);
    mx_edge_list lists = view(&l, true);
    CHECK_OK(mx_graph_build(&g, NODES, NULL, &lists, 1, NULL, &err), err);
    static int32_t begin[NODES + 1], ids[EDGES], edge[EDGES], again[NODES + 1], back[EDGES];
    mx_csr_transpose(g.csr[0].begin, g.csr[0].ids, NODES, NODES, begin, ids, edge);
    for (int u = 0; u < NODES; u++)
        for (int32_t e = begin[u]; e < begin[u + 1]; e++) {
            int32_t f = edge[e];
            CHECK(g.csr[0].ids[f] == u && f >= g.csr[0].begin[ids[e]] && f < g.csr[0].begin[ids[e] + 1]);
            CHECK(e == begin[u] || edge[e] > edge[e - 1]);
        }
    mx_csr_transpose(begin, ids, NODES, NODES, again, back, NULL);
    CHECK(!memcmp(again, g.csr[0].begin, sizeof again) && !memcmp(back, g.csr[0].ids, sizeof back));
    mx_graph_close(&g);
}

/* Rows that lie elsewhere. */
static void a_row(const void *ctx, int32_t relation, int32_t node, mx_neighbours *out)
{
    static const int32_t good[] = {1, 2}, bad[] = {2, 1};
    (void)relation;
    *out = (mx_neighbours){node == *(const int32_t *)ctx ? bad : good, NULL, 2};
}

#define REFUSED(call, code, words)                                                                   \
    do {                                                                                             \
        err.text[0] = 0;                                                                             \
        CHECK((call) == (code));                                                                     \
        CHECK_MSG(strstr(err.text, words), "\"%s\" lacks \"%s\"", err.text, words);                  \
    } while (0)

static void what_is_no_graph_is_refused(void)
{
    mx_error err = {0};
    mx_graph_store g;
    int32_t from[] = {0, 1}, to[] = {1, 3};
    float weight[] = {1, NAN};
    mx_edge_list l = {from, to, NULL, 2}, many = {from, to, NULL, (int64_t)INT32_MAX + 1};
    REFUSED(mx_graph_build(&g, 3, NULL, &l, 1, NULL, &err), MX_ERR_ARG, "relation 0, edge 1: from 1 to 3");
    REFUSED(mx_graph_build(&g, 0, NULL, &l, 1, NULL, &err), MX_ERR_ARG, "nodes is 0");
    REFUSED(mx_graph_build(&g, 4, NULL, &l, 65, NULL, &err), MX_ERR_ARG, "relations is 65");
    REFUSED(mx_graph_build(&g, 4, NULL, &many, 1, NULL, &err), MX_ERR_ARG, "2147483648 edges");
    l.weight = weight;
    REFUSED(mx_graph_build(&g, 4, NULL, &l, 1, NULL, &err), MX_ERR_ARG, "edge 1: its weight");
    int32_t wrong = 2;
    mx_graph other = {.nodes = 3, .relations = 1, .row = a_row, .ctx = &wrong};
    REFUSED(mx_graph_check(&other, &err), MX_ERR_FORMAT, "node 2: its row is not in order");
    other.nodes = 2;
    REFUSED(mx_graph_check(&other, &err), MX_ERR_FORMAT, "a source 2");
    wrong = 5, other.nodes = 3;
    CHECK_OK(mx_graph_check(&other, &err), err);
}

MX_TESTS(TEST(edges_are_in_their_rows), TEST(the_order_of_the_edges_does_not_matter), TEST(edges_of_a_pair_become_one),
         TEST(turned_round_twice_is_the_same), TEST(what_is_no_graph_is_refused))
