/* test_cuda_learn.c - many steps of training on the GPU (simulated, or for bench/gpu.sh a real
 * one) beside the CPU, from the same seeds: graph networks through the trainer, deep Q-learning through its worlds.
 * Weights stay equal to within rounding. */
#include "models/dqn_internal.h"
#include "models/gnn.h"
#include "models/trainer.h"
#include "tests/test.h"

#include <unistd.h>

#ifdef MX_TEST_SIMULATED
#include "cudasim.h"
#endif

static mx_device *devs;
static int n_devs;

static bool devices(void)
{
    mx_error err = {0};
    if (!devs) CHECK_OK(mx_devices_open(&devs, &n_devs, &(mx_device_options){.cpu_threads = 1}, &err), err);
    if (n_devs < 2) TEST_SKIP("no GPU here");
    return n_devs >= 2;
}

static float *fetched(const mx_params *p)
{
    mx_error err = {0};
    mx_stream s;
    float *host = calloc(p->count + 1, sizeof *host);
    CHECK_OK(mx_stream_open(&s, p->dev, 0, &err), err);
    s.dev->ops->download(&s, host, p->value.base, p->value.size);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
    return host;
}

/* Largest difference over the root mean square, and how far they went from where they began. */
static double apart(const mx_params *a, const mx_params *b)
{
    float *x = fetched(a), *y = fetched(b);
    double worst = 0, squares = 1e-30;
    for (int i = 0; i < a->n; i++)
        for (size_t k = a->param[i].offset, end = k + (size_t)(a->param[i].rows * a->param[i].cols); k < end; k++) {
            worst = fmax(worst, fabs((double)x[k] - (double)y[k]));
            squares += (double)x[k] * (double)x[k] / (double)a->elements;
        }
    free(x), free(y);
    return worst / sqrt(squares);
}

/* ---- graphs -------------------------------------------------------------------------------- */

enum { NODES = 60, EDGES = 300, FEATURES = 11, CLASSES = 4 };

typedef struct world {
    mx_graph_store g;
    float   features[NODES * FEATURES];
    int32_t node[NODES], label[NODES];
} world;

static void world_open(world *w)
{
    static int32_t from[EDGES], to[EDGES];
    mx_error err = {0};
    uint64_t state = 9;
    for (int i = 0; i < EDGES; i++) from[i] = (int32_t)(test_random(&state) % NODES), to[i] = (int32_t)(test_random(&state) % NODES);
    for (int i = 0; i < NODES * FEATURES; i++) w->features[i] = (float)((double)(int64_t)test_random(&state) * 0x1p-62);
    for (int i = 0; i < NODES; i++) w->node[i] = i, w->label[i] = (w->features[i * FEATURES] > 0) + 2 * (w->features[i * FEATURES + 1] > 0);
    mx_edge_list l = {from, to, NULL, EDGES};
    CHECK_OK(mx_graph_build(&w->g, NODES, NULL, &l, 1, NULL, &err), err);
}

static mx_gnn *gnn_learned(mx_device *dev, const world *w, const mx_gnn_config *c, double *loss)
{
    mx_error err = {0};
    mx_gnn *m = NULL;
    mx_learner l = {0};
    mx_batches b = {0};
    mx_trainer *t = NULL;
    mx_train_report r = {0};
    mx_train_options opt = mx_train_defaults();
    mx_gnn_data d = {.graph = &w->g.view, .features = w->features, .targets = NODES, .node = w->node, .label = w->label};
    char run[] = "/tmp/merx-cuda-learn-XXXXXX", command[64];
    bool done = false;
    opt.batch = opt.micro_rows = 20, opt.warmup = 0, opt.lr = 0.02f, opt.epochs = 3;
    CHECK(mkdtemp(run) != NULL);
    CHECK_OK(mx_gnn_create(&m, dev, c, 1, &err), err);
    CHECK_OK(mx_gnn_learner(m, &d, &(mx_gnn_learning){.fanout = {4, 3}, .seed = 1}, &l, &err), err);
    CHECK_OK(mx_batches_open_range(&b, 0, NODES, 7, 1, true, &err), err);
    CHECK_OK(mx_trainer_open(&t, run, &l, &b, NULL, &opt, NULL, &err), err);
    for (int i = 0; i < 9 && t; i++) CHECK_OK(mx_trainer_step(t, &r, &done, &err), err);
    *loss = r.loss;
    CHECK(r.step == 9 && done);
    mx_trainer_close(t);
    mx_batches_close(&b);
    snprintf(command, sizeof command, "rm -r %s", run);
    CHECK(system(command) == 0);
    return m;
}

static void graph_networks(void)
{
    static const mx_gnn_config kinds[] = {
        {.kind = MX_GNN_SAGE, .act = MX_ACT_RELU}, {.kind = MX_GNN_SAGE, .max = true, .unit = true, .act = MX_ACT_RELU},
        {.kind = MX_GNN_GCN, .act = MX_ACT_RELU}, {.kind = MX_GNN_GAT, .heads = 2, .out_heads = 1, .act = MX_ACT_ELU},
    };
    world *w = calloc(1, sizeof *w);
    if (!devices() || !w) return;
    world_open(w);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        mx_gnn_config c = kinds[i];
        c.layers = 2, c.features = FEATURES, c.hidden = 16, c.outputs = CLASSES;
        double loss[2];
        mx_gnn *on[2] = {gnn_learned(&devs[0], w, &c, &loss[0]), gnn_learned(&devs[1], w, &c, &loss[1])};
        double d = apart(mx_gnn_params(on[0]), mx_gnn_params(on[1]));
        CHECK_MSG(d < 1e-5 && fabs(loss[0] - loss[1]) < 1e-5 * loss[0], "kind %zu: weights %.1e apart, losses %.7f and %.7f", i, d, loss[0], loss[1]);
        mx_gnn_close(on[0]);
        mx_gnn_close(on[1]);
    }
    mx_graph_close(&w->g);
    free(w);
}

/* ---- worlds --------------------------------------------------------------------------------- */

static mx_dqn *dqn_learned(mx_device *dev, const char *env, const mx_dqn_options *o, mx_dqn_report *r)
{
    mx_error err = {0};
    mx_dqn *d = NULL;
    bool done = false;
    CHECK_OK(mx_dqn_open(&d, dev, env, NULL, o, &err), err);
    for (int i = 0; i < 1000 && d && !done; i++) CHECK_OK(mx_dqn_turn(d, r, &done, &err), err);
    return d;
}

#ifdef MX_TEST_SIMULATED
static const bool exact = true;
#else
static const bool exact = false;         /* sines are rounded otherwise, and two links are chaotic */
#endif

/* The same worlds, to the bit, whoever stepped them, and what the replay memory holds of them. */
static void same_worlds(mx_dqn *host, mx_dqn *device, int kind)
{
    mx_replay_image a = {0}, b = {0};
    mx_error err = {0};
    CHECK(!host->worlds.memory.base && device->worlds.memory.base && host->at.episodes > 2);
    CHECK_OK(dqn_worlds_read(device, &err), err);
    CHECK_MSG(!memcmp(host->env.memory, device->env.memory, host->env.memory_bytes), "kind %d: other worlds", kind);
    CHECK_OK(mx_replay_save(host->replay, &host->stream, &a, &err), err);
    CHECK_OK(mx_replay_save(device->replay, &device->stream, &b, &err), err);
    CHECK_MSG(a.ring_bytes == b.ring_bytes && !memcmp(a.ring, b.ring, a.ring_bytes) && !memcmp(a.window, b.window, a.window_bytes), "kind %d: other transitions", kind);
    mx_replay_image_free(&a);
    mx_replay_image_free(&b);
}

/* Worlds are explored at random, so that both devices see the same ones. */
static void q_learning(void)
{
    if (!devices()) return;
    for (int kind = 0; kind < 3; kind++) {
        mx_dqn_options o = mx_dqn_defaults("cartpole");
        mx_dqn_report r[2] = {{0}, {0}};
        o.steps = 400, o.envs = 4, o.buffer = 256, o.learn_starts = 200, o.batch = 16, o.train_every = 40, o.updates = 3;
        o.epsilon = 1, o.epsilon_part = 0, o.n_step = kind ? 3 : 1, o.double_q = true, o.prioritized = kind > 0, o.target_every = 6, o.episodes = 2;
        o.lr = o.min_lr = 1e-3f;
        o.net = (mx_qnet_config){.layers = 2, .hidden = {24, 24}, .activation = MX_ACT_RELU, .atoms = kind == 2 ? 11 : 1, .dueling = kind > 0,
                                 .low = 0, .high = 20};
        const char *env = kind == 1 && exact ? "acrobot" : "cartpole";
        if (kind == 1 && exact) o.steps = 2200, o.learn_starts = 2000, o.buffer = 2048;      /* an episode of 500 steps ends */
        mx_dqn *on[2] = {dqn_learned(&devs[0], env, &o, &r[0]), dqn_learned(&devs[1], env, &o, &r[1])};
        if (on[0] && on[1]) {
            double d = apart(mx_qnet_params(mx_dqn_network(on[0])), mx_qnet_params(mx_dqn_network(on[1])));
            CHECK_MSG(d < 1e-5, "kind %d: weights %.1e apart", kind, d);
            CHECK_MSG(r[0].updates == r[1].updates && r[0].updates >= 12 && fabs(r[0].loss - r[1].loss) < 1e-5 * r[0].loss,
                      "kind %d: %lld and %lld updates, losses %.8f and %.8f", kind, (long long)r[0].updates, (long long)r[1].updates, r[0].loss, r[1].loss);
            if (exact) same_worlds(on[0], on[1], kind);
        }
        mx_dqn_close(on[0]);
        mx_dqn_close(on[1]);
    }
}

static void closing(void)
{
    mx_devices_close(devs, n_devs);
#ifdef MX_TEST_SIMULATED
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
#endif
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {TEST(graph_networks), TEST(q_learning), TEST(closing)};
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
