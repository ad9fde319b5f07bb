/* test_gnn.c - graph networks beside PyTorch Geometric's, in parts beside in whole, and learning. */
#include "models/gnn_file.h"
#include "tests/test.h"

#include <unistd.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif
#define GOLDEN MX_SOURCE_DIR "/tests/golden/gnn/"

static const char *const names[] = {"sage", "sage-max", "sage-unit", "gcn", "gat", "rgcn", "lightgcn"};
enum { NAMES = sizeof names / sizeof *names };

typedef struct rig {
    mx_device     *devs;
    int            count;
    mx_gnn        *m;
    mx_graph_store g;
    mx_checkpoint *data, *want, *grad;
    int32_t       *label, *node, n;
    float         *features;
} rig;

static mx_checkpoint *file(const char *name, const char *part)
{
    char path[512];
    mx_error err = {0};
    mx_checkpoint *c = NULL;
    snprintf(path, sizeof path, GOLDEN "%s/%s.safetensors", name, part);
    CHECK_OK(mx_checkpoint_open(&c, path, &err), err);
    return c;
}

static void rig_close(rig *g)
{
    mx_gnn_close(g->m);
    mx_graph_close(&g->g);
    mx_checkpoint_close(g->data), mx_checkpoint_close(g->want), mx_checkpoint_close(g->grad);
    free(g->label), free(g->node), free(g->features);
    if (g->devs) mx_devices_close(g->devs, g->count);
}

static bool rig_graph(rig *g)
{
    mx_error err = {0};
    const mx_blob *edges = mx_checkpoint_find(g->data, "edges"), *relation = mx_checkpoint_find(g->data, "relation");
    const mx_blob *weight = mx_checkpoint_find(g->data, "weight"), *label = mx_checkpoint_find(g->data, "label"), *x = mx_checkpoint_find(g->data, "features");
    mx_edge_list lists[MX_GRAPH_RELATIONS] = {{0}};
    static int32_t from[8][512], to[8][512];
    static float w[8][512];
    int32_t relations = 1;
    for (int64_t e = 0; e < edges->rows; e++) {
        int32_t r = ((const int32_t *)relation->data)[e], k = (int32_t)lists[r].n++;
        from[r][k] = ((const int32_t *)edges->data)[2 * e], to[r][k] = ((const int32_t *)edges->data)[2 * e + 1];
        if (weight) w[r][k] = ((const float *)weight->data)[e];
        if (r + 1 > relations) relations = r + 1;
    }
    for (int r = 0; r < relations; r++) lists[r].from = from[r], lists[r].to = to[r], lists[r].weight = weight ? w[r] : NULL;
    g->n = (int32_t)label->cols;
    CHECK_OK(mx_graph_build(&g->g, g->n, NULL, lists, relations, NULL, &err), err);
    g->label = malloc((size_t)g->n * 4), g->node = malloc((size_t)g->n * 4);
    g->features = x ? malloc(x->size) : NULL;
    memcpy(g->label, label->data, (size_t)g->n * 4);
    if (x) memcpy(g->features, x->data, x->size);
    for (int32_t i = 0; i < g->n; i++) g->node[i] = i;
    return g->g.edges > 0;
}

/* learn: fresh gradients beside the golden weights */
static bool rig_open(rig *g, const char *name, int threads, bool learn)
{
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = threads};
    char folder[512];
    memset(g, 0, sizeof *g);
    snprintf(folder, sizeof folder, GOLDEN "%s", name);
    CHECK_OK(mx_devices_open(&g->devs, &g->count, &opt, &err), err);
    g->data = file(name, "data"), g->want = file(name, "want"), g->grad = file(name, "grad");
    if (!g->devs || !g->data || !g->want || !g->grad || !rig_graph(g)) return false;
    CHECK_OK(mx_gnn_open(&g->m, &g->devs[MX_TEST_DEVICE], folder, &err), err);
    if (!g->m || !learn) return g->m != NULL;
    mx_gnn_config c = *mx_gnn_config_of(g->m);
    mx_gnn *fresh = NULL;
    mx_learner l = {0};
    mx_gnn_data d = {.graph = &g->g.view, .features = g->features, .targets = g->n, .node = g->node, .label = g->label};
    CHECK_OK(mx_gnn_create(&fresh, &g->devs[MX_TEST_DEVICE], &c, 1, &err), err);
    mx_gnn_close(g->m);
    g->m = fresh;
    if (!fresh) return false;
    CHECK_OK(mx_gnn_learner(g->m, &d, &(mx_gnn_learning){0}, &l, &err), err);
    CHECK_OK(l.load(l.network, folder, &err), err);
    return true;
}

static double apart(const float *got, const mx_blob *want)
{
    double squares = 1e-30, worst = 0;
    int64_t n = want->rows * want->cols;
    const float *w = want->data;
    for (int64_t i = 0; i < n; i++) squares += (double)w[i] * (double)w[i] / (double)n;
    for (int64_t i = 0; i < n; i++) worst = fmax(worst, fabs((double)got[i] - (double)w[i]));
    return worst / sqrt(squares);
}

static float *infer(rig *g)
{
    mx_error err = {0};
    float *out = malloc((size_t)g->n * 64 * 4);
    CHECK_OK(mx_gnn_infer(g->m, &g->g.view, g->features, out, NULL, NULL, &err), err);
    return out;
}

static void outputs_equal_those_of_pytorch_geometric(void)
{
    for (int i = 0; i < NAMES; i++) {
        rig g;
        if (rig_open(&g, names[i], 1, false)) {
            float *out = infer(&g);
            double d = apart(out, mx_checkpoint_find(g.want, "out"));
            CHECK_MSG(d < 1e-5, "%s: %.2e apart", names[i], d);
            free(out);
        }
        rig_close(&g);
    }
}

/* One pass over all nodes: its loss, and its gradients in the parameters. */
static double pass(rig *g, const mx_gnn_learning *o, int64_t *counted, double *right, bool learn)
{
    mx_error err = {0};
    mx_gnn_data d = {.graph = &g->g.view, .features = g->features, .targets = g->n, .node = g->node, .label = g->label};
    mx_learner l = {0};
    mx_batches b = {0};
    mx_batch batch = {0};
    mx_stream s;
    CHECK_OK(mx_gnn_learner(g->m, &d, o, &l, &err), err);
    CHECK_OK(mx_batches_open_range(&b, 0, g->n, 7, 1, true, &err), err);
    for (int32_t i = 0; i < g->n; i++) CHECK_OK(mx_batches_take(&b, i, &batch, &err), err);
    CHECK_OK(mx_stream_open(&s, &g->devs[MX_TEST_DEVICE], l.scratch(l.network, g->n, g->n, 1, learn), &err), err);
    if (learn) s.dev->ops->clear(&s, l.params->grad.base, l.params->grad.size);
    mx_pass p = {.batch = &batch, .learn = learn, .seed = 5};
    CHECK_OK(l.run(l.network, &s, &p, &err), err);
    CHECK(s.scratch_peak <= s.scratch.size);
    mx_stream_close(&s);
    mx_batch_free(&batch);
    mx_batches_close(&b);
    *counted = p.counted;
    *right = p.extra;
    return p.loss;
}

/* One of the buffers of all parameters, on the host; free it. */
static float *fetched(const mx_params *p, const mx_buffer *b)
{
    mx_error err = {0};
    mx_stream s;
    float *host = malloc(b->size);
    CHECK_OK(mx_stream_open(&s, p->dev, 0, &err), err);
    s.dev->ops->download(&s, host, b->base, b->size);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
    return host;
}

static void gradients_equal_those_of_pytorch_geometric(void)
{
    for (int i = 0; i < NAMES; i++)
        for (int drawn = 0; drawn < 2; drawn++) {              /* all edges, or so many draws that all are drawn */
            rig g;
            if (rig_open(&g, names[i], 2, true)) {
                int64_t counted;
                double right, loss = pass(&g, &(mx_gnn_learning){.fanout = {drawn * 64, drawn * 64}}, &counted, &right, true);
                double want = (double)*(const float *)mx_checkpoint_find(g.want, "loss")->data;
                mx_params *p = mx_gnn_params(g.m);
                float *grad = fetched(p, &p->grad);
                CHECK_MSG(fabs(loss - want) < 1e-5 * want && counted == g.n, "%s: loss %.7f, want %.7f", names[i], loss, want);
                for (int k = 0; k < p->n; k++) {
                    double d = apart(grad + p->param[k].offset, mx_checkpoint_find(g.grad, p->param[k].name));
                    CHECK_MSG(d < 1e-5, "%s, %s, drawn %d: %.2e apart", names[i], p->param[k].name, drawn, d);
                }
                free(grad);
            }
            rig_close(&g);
        }
}

/* Some nodes from the rows that are kept, on any number of threads: the same bits. */
static void a_part_is_the_whole(void)
{
    for (int i = 0; i < NAMES; i++) {
        rig g, other;
        mx_error err = {0};
        if (rig_open(&g, names[i], 1, false) && rig_open(&other, names[i], 2, false)) {
            const mx_gnn_config *c = mx_gnn_config_of(g.m);
            int64_t in = mx_gnn_width(c, 0), out = mx_gnn_width(c, 1);
            float *before = malloc((size_t)(g.n * in) * 4), *all = malloc((size_t)(g.n * out) * 4), *some = malloc((size_t)(g.n * out) * 4);
            int32_t nodes[] = {17, 3, 22, 0, 8};
            CHECK_OK(mx_gnn_input(g.m, g.features, NULL, g.n, before, &err), err);
            CHECK_OK(mx_gnn_layer(g.m, &g.g.view, 0, before, NULL, g.n, all, &err), err);
            CHECK_OK(mx_gnn_layer(other.m, &g.g.view, 0, before, nodes, 5, some, &err), err);
            for (int k = 0; k < 5; k++) CHECK(!memcmp(some + k * out, all + nodes[k] * out, (size_t)out * 4));
            nodes[1] = 17;
            CHECK(mx_gnn_layer(g.m, &g.g.view, 0, before, nodes, 5, some, &err) == MX_ERR_ARG && strstr(err.text, "node 17"));
            nodes[1] = 23;
            CHECK(mx_gnn_layer(g.m, &g.g.view, 0, before, nodes, 5, some, &err) == MX_ERR_ARG && strstr(err.text, "node 23"));
            free(before), free(all), free(some);
            rig_close(&other);
        }
        rig_close(&g);
    }
}

/* At most so many sources, and always the same: as many as there are is all; one edge more seldom matters. */
static void a_degree_has_its_bound(void)
{
    enum { HUB = 1000, MOST = 10 };
    static int32_t from[HUB], to[HUB];
    static float x[HUB];
    mx_error err = {0};
    mx_device *devs = NULL;
    int count = 0, changes = 0;
    float before[1] = {0}, after[1] = {0};
    CHECK_OK(mx_devices_open(&devs, &count, &(mx_device_options){.cpu_threads = 1}, &err), err);
    for (int bound = 0; devs && bound < 2; bound++) {
        mx_gnn *m = NULL;
        mx_gnn_config c = {.kind = MX_GNN_SAGE, .layers = 1, .features = 1, .outputs = 1, .act = MX_ACT_NONE, .max_degree = bound ? MOST : 0};
        CHECK_OK(mx_gnn_create(&m, &devs[MX_TEST_DEVICE], &c, 3, &err), err);
        int differs = 0;
        for (int32_t i = 0; i < HUB; i++) from[i] = i, to[i] = 0, x[i] = (float)((i * 7919) % 1009) / 1009;
        for (int32_t n = 1; n <= HUB && m; n += n < 12 ? 1 : 13) {
            mx_graph_store g = {0};
            mx_edge_list l = {from, to, NULL, n};
            int32_t hub = 0;
            CHECK_OK(mx_graph_build(&g, HUB, NULL, &l, 1, NULL, &err), err);
            CHECK_OK(mx_gnn_layer(m, &g.view, 0, x, &hub, 1, after, &err), err);
            differs += n > 1 && before[0] != after[0];
            before[0] = after[0];
            mx_graph_close(&g);
        }
        if (!bound) changes = differs;
        else CHECK_MSG(differs >= 9 && differs < 70 && changes > 80, "%d of %d", differs, changes);
        mx_gnn_close(m);
    }
    CHECK(mx_gnn_create(&(mx_gnn *){NULL}, &devs[0], &(mx_gnn_config){.kind = MX_GNN_SAGE, .layers = 1, .features = 1, .outputs = 1, .max_degree = 5000}, 1, &err) == MX_ERR_ARG &&
          strstr(err.text, "max_degree"));
    for (int i = 0; i < NAMES; i++) {                   /* some nodes are what all of them are */
        rig g;
        if (rig_open(&g, names[i], 2, false)) {
            mx_gnn_config c = *mx_gnn_config_of(g.m);
            mx_gnn *m = NULL;
            int32_t nodes[] = {17, 3, 0, 22};
            int32_t in = mx_gnn_width(&c, 0), out = mx_gnn_width(&c, 1);
            float *h = malloc((size_t)(g.n * in) * 4), *all = malloc((size_t)(g.n * out) * 4), *some = malloc((size_t)(4 * out) * 4);
            c.max_degree = 2;
            CHECK_OK(mx_gnn_create(&m, &g.devs[MX_TEST_DEVICE], &c, 1, &err), err);
            CHECK_OK(mx_gnn_input(m, g.features, NULL, g.n, h, &err), err);
            CHECK_OK(mx_gnn_layer(m, &g.g.view, 0, h, NULL, g.n, all, &err), err);
            CHECK_OK(mx_gnn_layer(m, &g.g.view, 0, h, nodes, 4, some, &err), err);
            for (int k = 0; k < 4; k++) CHECK_MSG(!memcmp(some + k * out, all + nodes[k] * out, (size_t)out * 4), "%s, node %d", names[i], nodes[k]);
            free(h), free(all), free(some);
            mx_gnn_close(m);
        }
        rig_close(&g);
    }
    if (devs) mx_devices_close(devs, count);
}

static void what_is_saved_opens_again(void)
{
    for (int i = 0; i < NAMES; i++) {
        rig g;
        mx_error err = {0};
        char folder[] = "/tmp/merx-gnn-XXXXXX";
        if (rig_open(&g, names[i], 1, false) && mkdtemp(folder)) {
            float *a = infer(&g);
            CHECK_OK(mx_gnn_save(g.m, folder, &err), err);
            mx_gnn_close(g.m);
            CHECK_OK(mx_gnn_open(&g.m, &g.devs[0], folder, &err), err);
            float *b = infer(&g);
            CHECK(!memcmp(a, b, (size_t)(g.n * mx_gnn_config_of(g.m)->outputs) * 4));
            free(a), free(b);
            char path[600];
            snprintf(path, sizeof path, "rm -r %s", folder);
            CHECK(system(path) == 0);
        }
        rig_close(&g);
    }
}

/* Draws, dropout and L2 are the same on one thread and on two; steps against the gradient lower the loss. */
static void learning_does_not_depend_on_threads(void)
{
    rig a, b;
    mx_gnn_learning o = {.dropout = 0.3f, .edge_dropout = 0.2f, .value_dropout = 0.2f, .l2 = 1e-3f, .fanout = {2, 3}, .seed = 9};
    int64_t counted;
    double right;
    for (int i = 0; i < NAMES; i++) {
        bool ok = rig_open(&a, names[i], 1, true);
        ok = rig_open(&b, names[i], 2, true) && ok;
        if (ok) {
            double x = pass(&a, &o, &counted, &right, true), y = pass(&b, &o, &counted, &right, true);
            mx_params *p = mx_gnn_params(a.m), *q = mx_gnn_params(b.m);
            CHECK_MSG(x == y && !memcmp(p->grad.base, q->grad.base, p->grad.size), "%s: %.9g and %.9g", names[i], x, y);
            mx_gnn_learning all = {0};
            double first = pass(&a, &all, &counted, &right, true), last = first;
            for (int step = 0; step < 20; step++) {
                for (size_t k = 0; k < p->count; k++) ((float *)p->value.base)[k] -= 0.003f * ((float *)p->grad.base)[k];
                last = pass(&a, &all, &counted, &right, true);
            }
            CHECK_MSG(last < first, "%s: from %.5g to %.5g", names[i], first, last);
            pass(&a, &all, &counted, &right, false);
            CHECK(right > 0 && right <= a.n);
        }
        rig_close(&a), rig_close(&b);
    }
}

/* Features that are mostly zeros take another way: drawing more edges than there are takes the dense one. */
static void sparse_features_equal_dense_ones(void)
{
    static const char *const some[] = {"gcn", "gat"};
    for (int i = 0; i < 2; i++) {
        rig g;
        if (rig_open(&g, some[i], 2, true)) {
            int64_t counted, F = mx_gnn_config_of(g.m)->features;
            double right[2], loss[2];
            float *grad[2];
            mx_params *p = mx_gnn_params(g.m);
            for (int64_t k = 0; k < g.n * F; k++) g.features[k] = k % 11 ? 0 : g.features[k];
            for (int drawn = 0; drawn < 2; drawn++) {
                loss[drawn] = pass(&g, &(mx_gnn_learning){.fanout = {drawn * 64, drawn * 64}}, &counted, &right[drawn], true);
                grad[drawn] = fetched(p, &p->grad);
            }
            CHECK_MSG(fabs(loss[0] - loss[1]) < 1e-5 * loss[1], "%s: loss %.7f, dense %.7f", some[i], loss[0], loss[1]);
            for (int k = 0; k < p->n; k++) {
                mx_blob want = {.rows = p->param[k].rows, .cols = p->param[k].cols, .data = grad[1] + p->param[k].offset};
                CHECK_MSG(apart(grad[0] + p->param[k].offset, &want) < 1e-5, "%s, %s", some[i], p->param[k].name);
            }
            pass(&g, &(mx_gnn_learning){0}, &counted, &right[0], false);
            pass(&g, &(mx_gnn_learning){.fanout = {64, 64}}, &counted, &right[1], false);
            CHECK(right[0] == right[1]);
            free(grad[0]), free(grad[1]);
        }
        rig_close(&g);
    }
}

/* Every kind of dropout at once: the gradient along itself beside the loss a little further and a little back. */
static void gradients_under_dropout_are_slopes(void)
{
    mx_gnn_learning o = {.dropout = 0.3f, .edge_dropout = 0.3f, .value_dropout = 0.3f, .seed = 4};
    for (int zeros = 0; zeros < 2; zeros++) {
        rig g;
        if (rig_open(&g, "gat", 2, true)) {
            int64_t counted;
            double right, loss[2], square = 0, h = 2e-3;
            mx_params *p = mx_gnn_params(g.m);
            for (int64_t k = 0; k < g.n * (int64_t)mx_gnn_config_of(g.m)->features && zeros; k++) g.features[k] = k % 9 ? 0 : 3 * g.features[k];
            pass(&g, &o, &counted, &right, true);
            float *grad = fetched(p, &p->grad), *value = fetched(p, &p->value), *moved = malloc(p->value.size);
            for (size_t k = 0; k < p->count; k++) square += (double)grad[k] * (double)grad[k];
            for (int side = 0; side < 2; side++) {
                mx_error err = {0};
                mx_stream s;
                for (size_t k = 0; k < p->count; k++) moved[k] = value[k] + (float)((side ? h : -h) * (double)grad[k] / sqrt(square));
                CHECK_OK(mx_stream_open(&s, p->dev, 0, &err), err);
                s.dev->ops->upload(&s, p->value.base, moved, p->value.size);
                CHECK_OK(mx_stream_sync(&s, &err), err);
                mx_stream_close(&s);
                loss[side] = pass(&g, &o, &counted, &right, true);
            }
            double slope = (loss[1] - loss[0]) / (2 * h);
            CHECK_MSG(fabs(slope - sqrt(square)) < 0.01 * sqrt(square), "zeros %d: slope %.5f, gradient %.5f", zeros, slope, sqrt(square));
            free(grad), free(value), free(moved);
        }
        rig_close(&g);
    }
}

/* ---- pairs, ranking, labels -------------------------------------------------------------------- */

enum { USERS = 12, ITEMS = 20, LINKS = 60 };

/* Two circles of users with their own items. */
static void circles(mx_graph_store *g, int32_t pair[LINKS][2])
{
    int32_t from[2 * LINKS], to[2 * LINKS];
    uint8_t type[USERS + ITEMS];
    mx_error err = {0};
    uint64_t state = 3;
    for (int i = 0; i < USERS + ITEMS; i++) type[i] = i >= USERS;
    for (int i = 0; i < LINKS; i++) {
        int u = (int)(test_random(&state) % USERS), v = (int)(test_random(&state) % (ITEMS / 2)) * 2 + u % 2;
        pair[i][0] = u, pair[i][1] = USERS + v;
        from[i] = u, to[i] = USERS + v;
    }
    mx_edge_list l = {from, to, NULL, LINKS};
    CHECK_OK(mx_graph_build(g, USERS + ITEMS, type, &l, 1, &(mx_graph_options){.both_ways = true, .once = true}, &err), err);
}

static double steps(mx_learner *l, mx_device *dev, int64_t n, int count, float lr, double *right)
{
    mx_error err = {0};
    mx_batches b = {0};
    mx_batch batch = {0};
    mx_stream s;
    CHECK_OK(mx_batches_open_range(&b, 0, n, 7, 1, true, &err), err);
    for (int32_t i = 0; i < n; i++) CHECK_OK(mx_batches_take(&b, i, &batch, &err), err);
    CHECK_OK(mx_stream_open(&s, dev, l->scratch(l->network, (int32_t)n, (int32_t)n, 1, true), &err), err);
    double loss = 0;
    for (int i = 0; i < count; i++) {
        memset(l->params->grad.base, 0, l->params->grad.size);
        mx_pass p = {.batch = &batch, .learn = i < count - 1, .seed = (uint64_t)i};
        mx_stream_rewind(&s);
        CHECK_OK(l->run(l->network, &s, &p, &err), err);
        loss = p.loss / (double)p.counted;
        *right = p.extra / (double)p.counted;
        float *w = l->params->value.base, *g = l->params->grad.base;
        for (size_t k = 0; k < l->params->count && p.learn; k++) w[k] -= lr * g[k];
    }
    mx_stream_close(&s);
    mx_batch_free(&batch);
    mx_batches_close(&b);
    return loss;
}

static void links_and_rankings_are_learnt(void)
{
    mx_device *devs = NULL;
    int count = 0;
    mx_error err = {0};
    mx_graph_store g;
    int32_t pair[LINKS][2];
    CHECK_OK(mx_devices_open(&devs, &count, &(mx_device_options){.cpu_threads = 2}, &err), err);
    circles(&g, pair);
    for (int i = 0; i < 4 && devs; i++) {
        bool ranking = i < 2;
        mx_gnn_config c = {.kind = ranking ? MX_GNN_LIGHTGCN : MX_GNN_SAGE, .task = ranking ? MX_GNN_RANKING : MX_GNN_LINKS, .layers = 2,
                           .id_nodes = USERS + ITEMS, .id_cols = 8, .hidden = 8, .outputs = 8, .unit = !ranking, .act = MX_ACT_RELU};
        mx_gnn_learning o = {.negatives = 3, .l2_rows = ranking ? 1e-3f : 0, .fanout = {i % 2 * 3, i % 2 * 3}};
        mx_gnn_data d = {.graph = &g.view, .targets = LINKS, .node = pair[0]};
        mx_gnn *m = NULL;
        mx_learner l;
        double right = 0;
        CHECK_OK(mx_gnn_create(&m, &devs[0], &c, 5, &err), err);
        CHECK_OK(mx_gnn_learner(m, &d, &o, &l, &err), err);
        double loss = steps(&l, &devs[0], LINKS, ranking ? 60 : 200, ranking ? 0.05f : 0.01f, &right);
        CHECK_MSG(right > 0.85, "%d: loss %.4f, %.3f above their negatives", i, loss, right);
        mx_gnn_close(m);
    }
    mx_graph_close(&g);
    mx_devices_close(devs, count);
}

static void labels_are_learnt_and_what_is_wrong_is_named(void)
{
    mx_device *devs = NULL;
    int count = 0;
    mx_error err = {0};
    mx_graph_store g;
    int32_t pair[LINKS][2], node[USERS];
    float label[USERS][2];
    CHECK_OK(mx_devices_open(&devs, &count, &(mx_device_options){.cpu_threads = 1}, &err), err);
    circles(&g, pair);
    for (int i = 0; i < USERS; i++) node[i] = i, label[i][0] = (float)(i % 2), label[i][1] = i % 3 ? (float)(1 - i % 2) : -1;
    mx_gnn_config c = {.kind = MX_GNN_SAGE, .task = MX_GNN_LABELS, .layers = 1, .id_nodes = USERS + ITEMS, .id_cols = 6, .outputs = 2, .act = MX_ACT_RELU};
    mx_gnn_data d = {.graph = &g.view, .targets = USERS, .node = node, .labels = label[0]};
    mx_gnn_learning o = {.fanout = {0}};
    mx_gnn *m = NULL;
    mx_learner l;
    double right = 0;
    CHECK_OK(mx_gnn_create(&m, &devs[0], &c, 5, &err), err);
    CHECK_OK(mx_gnn_learner(m, &d, &o, &l, &err), err);
    steps(&l, &devs[0], USERS, 60, 0.05f, &right);
    CHECK_MSG(right > 0.95, "%.3f right", right);
    node[3] = 99;
    CHECK(mx_gnn_learner(m, &d, &o, &l, &err) == MX_ERR_ARG && strstr(err.text, "target 3: node 99"));
    o.dropout = 1;
    CHECK(mx_gnn_learner(m, &d, &o, &l, &err) == MX_ERR_ARG && strstr(err.text, "dropout"));
    mx_gnn_close(m);
    m = NULL;
    c.outputs = 0;
    CHECK(mx_gnn_create(&m, &devs[0], &c, 5, &err) == MX_ERR_ARG && strstr(err.text, "outputs is 0"));
    c.outputs = 2, c.id_nodes = 0;
    CHECK(mx_gnn_create(&m, &devs[0], &c, 5, &err) == MX_ERR_ARG && strstr(err.text, "id_nodes"));
    mx_graph_close(&g);
    mx_devices_close(devs, count);
}

/* ---- a run ------------------------------------------------------------------------------------- */

/* Six steps at once, or three, a checkpoint, and three by a network that knows nothing: the same bits. */
static void train(rig *g, const char *run, int steps, bool last, float *out)
{
    mx_error err = {0};
    mx_gnn_config c = *mx_gnn_config_of(g->m);
    mx_gnn_learning o = {.dropout = 0.2f, .edge_dropout = 0.1f, .fanout = {2, 3}, .seed = 9};
    mx_gnn_data d = {.graph = &g->g.view, .features = g->features, .targets = g->n, .node = g->node, .label = g->label};
    mx_train_options t = mx_train_defaults();
    mx_trainer *trainer = NULL;
    mx_train_report r;
    mx_batches b;
    mx_learner l;
    mx_gnn *m = NULL;
    bool done = false;
    t.steps = 6, t.batch = t.micro_rows = 7, t.warmup = 0, t.lr = 0.01f;
    CHECK_OK(mx_gnn_create(&m, &g->devs[MX_TEST_DEVICE], &c, 4, &err), err);
    CHECK_OK(mx_gnn_learner(m, &d, &o, &l, &err), err);
    CHECK_OK(mx_batches_open_range(&b, 0, g->n, 7, 1, true, &err), err);
    CHECK_OK(mx_trainer_open(&trainer, run, &l, &b, NULL, &t, NULL, &err), err);
    for (int i = 0; i < steps && trainer; i++) CHECK_OK(mx_trainer_step(trainer, &r, &done, &err), err);
    CHECK(done == last);
    if (trainer && !last) CHECK_OK(mx_trainer_save(trainer, &err), err);
    memcpy(out, l.params->value.base, l.params->value.size);
    mx_trainer_close(trainer);
    mx_batches_close(&b);
    mx_gnn_close(m);
}

static void a_run_that_was_broken_off_goes_on_bit_for_bit(void)
{
    char folder[] = "/tmp/merx-gnn-run-XXXXXX", whole[64], parts[64], command[80];
    CHECK(mkdtemp(folder) != NULL);
    for (int i = 0; i < NAMES; i++) {
        rig g;
        if (rig_open(&g, names[i], 2, false)) {
            size_t size = mx_gnn_params(g.m)->value.size;
            float *a = malloc(size), *b = malloc(size), *c = malloc(size);
            snprintf(whole, sizeof whole, "%s/%s-whole", folder, names[i]);
            snprintf(parts, sizeof parts, "%s/%s-parts", folder, names[i]);
            train(&g, whole, 6, true, a);
            train(&g, parts, 3, false, b);
            train(&g, parts, 3, true, c);
            CHECK_MSG(!memcmp(a, c, size) && memcmp(a, b, size), "%s", names[i]);
            free(a), free(b), free(c);
        }
        rig_close(&g);
    }
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
}

/* ---- a file ------------------------------------------------------------------------------------ */

#define REFUSED(words)                                                                               \
    do {                                                                                             \
        CHECK(mx_safetensors_write(path, t, n, NULL, 0, &err) == MX_OK);                             \
        CHECK(mx_gnn_file_open(&f, path, &err) != MX_OK);                                            \
        CHECK_MSG(strstr(err.text, words), "\"%s\" lacks \"%s\"", err.text, words);                  \
    } while (0)

static void a_file_is_read_and_checked(void)
{
    char path[] = "/tmp/merx-graph-XXXXXX.safetensors";
    int32_t edges[][2] = {{0, 3}, {1, 3}, {0, 4}, {2, 5}}, pairs[][2] = {{0, 3}, {1, 3}, {0, 4}, {2, 5}, {1, 5}}, type[] = {0, 0, 0, 1, 1, 1}, both = 1;
    int32_t train[] = {0, 1, 2, 3}, test[] = {4};
    mx_save t[] = {{"edges", MX_SAVE_I32, 2, {4, 2}, edges, false}, {"pairs", MX_SAVE_I32, 2, {5, 2}, pairs, false}, {"type", MX_SAVE_I32, 1, {6}, type, false},
                   {"both_ways", MX_SAVE_I32, 1, {1}, &both, false}, {"train", MX_SAVE_I32, 1, {4}, train, false}, {"test", MX_SAVE_I32, 1, {1}, test, false}};
    int n = 6, fd = mkstemps(path, 12);
    mx_gnn_file f;
    mx_error err = {0};
    CHECK(fd >= 0);
    CHECK_OK(mx_safetensors_write(path, t, n, NULL, 0, &err), err);
    CHECK_OK(mx_gnn_file_open(&f, path, &err), err);
    CHECK(f.graph.edges == 8 && f.task == MX_GNN_LINKS && f.first[1] == 4 && f.first[2] == 4 && f.first[3] == 5 && mx_graph_row(&f.known.view, 0, 0).n == 2);
    /* user 1 knows node 3; of 4 and 5 it likes 5 more */
    float z[] = {1, 0, 0, 1, 0, 0, 9, 9, 0.5f, 0.1f, 0.2f, 0.9f};
    double recall, ndcg;
    CHECK_OK(mx_gnn_rank(&f, MX_GNN_TEST, z, 2, 1, &recall, &ndcg, &err), err);
    CHECK(recall == 1 && ndcg == 1);
    z[9] = 1;
    CHECK_OK(mx_gnn_rank(&f, MX_GNN_TEST, z, 2, 1, &recall, &ndcg, &err), err);
    CHECK(recall == 0 && ndcg == 0);
    CHECK_OK(mx_gnn_rank(&f, MX_GNN_TEST, z, 2, 2, &recall, &ndcg, &err), err);
    CHECK(recall == 1 && fabs(ndcg - 1 / log2(3)) < 1e-12);
    mx_gnn_file_close(&f);
    test[0] = 5;
    REFUSED("tensor test, row 0: 5");
    test[0] = 4, edges[2][1] = 6;
    REFUSED("edge 2: from 0 to 6");
    edges[2][1] = 4, type[1] = 256;
    REFUSED("node 1 has type 256");
    type[1] = 0, t[1].name = "ways";
    REFUSED("one of the tensors label, labels and pairs");
    t[1].name = "pairs", t[0].dims[0] = 8, t[0].n_dims = 1;
    REFUSED("tensor edges must be I32");
    remove(path);
    close(fd);
}

MX_TESTS(TEST(outputs_equal_those_of_pytorch_geometric), TEST(gradients_equal_those_of_pytorch_geometric), TEST(a_part_is_the_whole), TEST(a_degree_has_its_bound),
         TEST(what_is_saved_opens_again), TEST(learning_does_not_depend_on_threads), TEST(sparse_features_equal_dense_ones),
         TEST(gradients_under_dropout_are_slopes), TEST(links_and_rankings_are_learnt),
         TEST(labels_are_learnt_and_what_is_wrong_is_named), TEST(a_run_that_was_broken_off_goes_on_bit_for_bit), TEST(a_file_is_read_and_checked))
