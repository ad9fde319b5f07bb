/* networks.c - rates of the small networks on one device, with random weights.
 *
 *     networks [--device NAME] [--nodes N]
 *
 * gnn: GraphSAGE, two layers of 128 over N nodes with ten edges each and 64 columns,
 * steps of the trainer over 512 nodes with 25 and 10 drawn neighbours.  q: values and
 * the best action of 65,536 states (a policy's quotes).  cartpole, acrobot: steps of
 * 65,536 worlds that the device moves itself.  dqn: steps of CartPole's worlds and
 * updates a second, together.  quote-alone, -express, -beside: values for 256 states
 * alone, on a stream of an express lane while products of 4,096^3 fill another one, and
 * on a stream like theirs (GPUs only).  Each figure is a median, dqn's a mean. */
#include "models/dqn.h"
#include "models/gnn.h"
#include "models/trainer.h"
#include "runtime/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { FEATURES = 64, CLASSES = 16, DEGREE = 10, STEPS = 30, STATES = 65536 };

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *t, int n)
{
    qsort(t, (size_t)n, sizeof *t, by_time);
    return t[n / 2];
}

typedef struct graph_bench {
    mx_graph_store g;
    int32_t *from, *to, *node, *label;
    float   *features;
} graph_bench;

static mx_status graph_open(graph_bench *b, int32_t nodes, mx_error *err)
{
    size_t n = (size_t)nodes, edges = n * DEGREE;
    uint32_t state = 1;
    b->from = malloc(edges * sizeof *b->from);
    b->to = malloc(edges * sizeof *b->to);
    b->node = malloc(n * sizeof *b->node);
    b->label = malloc(n * sizeof *b->label);
    b->features = malloc(n * FEATURES * sizeof *b->features);
    if (!b->from || !b->to || !b->node || !b->label || !b->features) return mx_fail(err, MX_ERR_NO_MEMORY, "%d nodes", nodes);
    for (size_t i = 0; i < edges; i++) {
        state = state * 1664525u + 1013904223u;
        b->from[i] = (int32_t)(state >> 8) % nodes;
        b->to[i] = (int32_t)(i / DEGREE);
    }
    for (int32_t i = 0; i < nodes; i++) b->node[i] = i, b->label[i] = i % CLASSES;
    for (size_t i = 0; i < n * FEATURES; i++) b->features[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
    mx_edge_list l = {b->from, b->to, NULL, (int64_t)edges};
    return mx_graph_build(&b->g, nodes, NULL, &l, 1, NULL, err);
}

static void graph_close(graph_bench *b)
{
    mx_graph_close(&b->g);
    free(b->from), free(b->to), free(b->node), free(b->label), free(b->features);
}

static mx_status gnn(mx_device *dev, int32_t nodes, mx_error *err)
{
    graph_bench b = {0};
    mx_gnn *m = NULL;
    mx_learner l;
    mx_batches train = {0};
    mx_trainer *t = NULL;
    mx_train_report r;
    mx_train_options opt = mx_train_defaults();
    mx_gnn_config c = {.kind = MX_GNN_SAGE, .layers = 2, .features = FEATURES, .hidden = 128, .outputs = CLASSES, .act = MX_ACT_RELU};
    char run[] = "/tmp/merx-networks-XXXXXX", command[64];
    double times[STEPS];
    bool done = false;
    mx_status st;
    opt.batch = opt.micro_rows = 512, opt.warmup = 0, opt.steps = STEPS + 1;
    if (!mkdtemp(run)) return mx_fail(err, MX_ERR_IO, "no temporary folder");
    MX_TRY_GOTO(st, graph_open(&b, nodes, err), done);
    mx_gnn_data d = {.graph = &b.g.view, .features = b.features, .targets = nodes, .node = b.node, .label = b.label};
    MX_TRY_GOTO(st, mx_gnn_create(&m, dev, &c, 1, err), done);
    MX_TRY_GOTO(st, mx_gnn_learner(m, &d, &(mx_gnn_learning){.fanout = {25, 10}, .seed = 1}, &l, err), done);
    MX_TRY_GOTO(st, mx_batches_open_range(&train, 0, nodes, 7, 1, true, err), done);
    MX_TRY_GOTO(st, mx_trainer_open(&t, run, &l, &train, NULL, &opt, NULL, err), done);
    for (int i = 0; i < STEPS; i++) {
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        MX_TRY_GOTO(st, mx_trainer_step(t, &r, &done, err), done);
        times[i] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9;
    }
    double seconds = median(times, STEPS);
    printf("gnn     nodes %8d  batch %5d  %10.1f us a step  %12.0f nodes/s\n", nodes, opt.batch, seconds * 1e6, opt.batch / seconds);
done:
    mx_trainer_close(t);
    mx_batches_close(&train);
    mx_gnn_close(m);
    graph_close(&b);
    snprintf(command, sizeof command, "rm -r %s", run);
    return system(command) && !st ? mx_fail(err, MX_ERR_IO, "%s cannot be removed", run) : st;
}

static mx_status quotes(mx_device *dev, mx_error *err)
{
    mx_qnet_config c = {.observation = 12, .actions = 9, .layers = 2, .hidden = {64, 64}, .activation = MX_ACT_RELU, .atoms = 1};
    mx_qnet *q = NULL;
    mx_stream s = {0};
    float *x = malloc((size_t)STATES * 12 * sizeof *x);
    int32_t *best = malloc((size_t)STATES * sizeof *best);
    double times[STEPS];
    mx_status st = x && best ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%d states", STATES);
    for (size_t i = 0; i < (size_t)STATES * 12 && x; i++) x[i] = (float)(i * 2654435761u % 1024) / 512 - 1;
    MX_TRY_GOTO(st, st, done);
    MX_TRY_GOTO(st, mx_qnet_create(&q, dev, &c, false, 1, err), done);
    MX_TRY_GOTO(st, mx_stream_open(&s, dev, mx_qnet_scratch(q, STATES, false) + ((size_t)STATES * 16 + 4096) * sizeof *x, err), done);
    for (int i = 0; i < STEPS; i++) {
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        mx_stream_rewind(&s);
        mx_tensor in = mx_stream_upload(&s, MX_F32, STATES, 12, x), out = mx_qnet_best(&s, mx_qnet_values(q, &s, in), (mx_tensor){0});
        dev->ops->download(&s, best, out.data, (size_t)STATES * sizeof *best);
        MX_TRY_GOTO(st, mx_stream_sync(&s, err), done);
        times[i] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9;
    }
    double seconds = median(times, STEPS);
    printf("q       states %7d  %10.1f us a pass  %12.0f decisions/s\n", STATES, seconds * 1e6, STATES / seconds);
done:
    mx_stream_close(&s);
    mx_qnet_close(q);
    free(best);
    free(x);
    return st;
}

/* Environments that the device steps by itself. */
static mx_status worlds(mx_device *dev, const char *kind, mx_world w, mx_error *err)
{
    enum { TURNS = 20 };
    mx_env e;
    mx_stream s = {0};
    double times[STEPS];
    MX_TRY(mx_env_open(&e, kind, STATES, 1, err));
    int32_t *at = calloc(STATES, 4 * sizeof *at), *action = at ? at + 3 * STATES : NULL;
    mx_status st = at ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%d worlds", STATES);
    MX_TRY_GOTO(st, st, done);
    for (int r = 0; r < STATES; r++) at[3 * r] = r, action[r] = r % e.actions;
    MX_TRY_GOTO(st, mx_stream_open(&s, dev, (size_t)STATES * 32 * sizeof(float), err), done);
    mx_tensor state = mx_stream_upload(&s, MX_I32, STATES, 8, e.state), place = mx_stream_upload(&s, MX_I32, STATES, 3, at);
    mx_tensor take = mx_stream_upload(&s, MX_I32, STATES, 1, action), reward = mx_stream_tensor(&s, MX_F32, STATES, 1), ended = mx_stream_tensor(&s, MX_I32, STATES, 1);
    mx_tensor next = mx_stream_tensor(&s, MX_F32, STATES, e.observation), seen = mx_stream_tensor(&s, MX_F32, STATES, e.observation);
    for (int i = 0; i < STEPS; i++) {
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        for (int k = 0; k < TURNS; k++) mx_world_step(&s, w, state, place, take, reward, ended, next, seen, 1, e.limit);
        MX_TRY_GOTO(st, mx_stream_sync(&s, err), done);
        times[i] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9 / TURNS;
    }
    double seconds = median(times, STEPS);
    printf("%-7s worlds  %7d  %10.1f us a turn  %12.0f steps/s\n", e.kind, STATES, seconds * 1e6, STATES / seconds);
done:
    mx_stream_close(&s);
    mx_env_close(&e);
    free(at);
    return st;
}

/* Values for a few states while another stream has products to do; busy NULL: it has none. */
static mx_status wait_of(const char *what, const mx_qnet *q, mx_device *dev, mx_stream *busy, mx_error *err)
{
    enum { FEW = 256, WIDE = 4096, PRODUCTS = 40 };
    static float x[FEW * 12];
    int32_t best[FEW];
    double times[STEPS];
    mx_stream s = {0};
    mx_status st = mx_stream_open(&s, dev, mx_qnet_scratch(q, FEW, false) + ((size_t)FEW * 16 + 4096) * sizeof *x, err);
    for (int i = 0; i < STEPS && !st; i++) {
        mx_tensor big[3];
        for (int k = 0; k < 3 && busy; k++) big[k] = mx_stream_tensor(busy, k == 2 ? MX_BF16 : MX_F32, WIDE, WIDE);
        for (int k = 0; k < PRODUCTS && busy; k++) mx_product(busy, big[0], big[1], big[2], (mx_tensor){0}, MX_BF16, false);
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        mx_stream_rewind(&s);
        mx_tensor in = mx_stream_upload(&s, MX_F32, FEW, 12, x), out = mx_qnet_best(&s, mx_qnet_values(q, &s, in), (mx_tensor){0});
        dev->ops->download(&s, best, out.data, sizeof best);
        st = mx_stream_sync(&s, err);
        times[i] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9;
        if (busy && !st) st = mx_stream_sync(busy, err);
        if (busy) mx_stream_rewind(busy);
    }
    if (!st) printf("%-13s states %5d  %12.1f us\n", what, FEW, median(times, STEPS) * 1e6);
    mx_stream_close(&s);
    return st;
}

static mx_status priorities(mx_device *dev, mx_error *err)
{
    mx_qnet_config c = {.observation = 12, .actions = 9, .layers = 2, .hidden = {64, 64}, .activation = MX_ACT_RELU, .atoms = 1};
    mx_qnet *q = NULL;
    mx_stream busy = {0};
    mx_device twin = {0};
    mx_status st;
    if (dev->kind == MX_CPU) return MX_OK;
    MX_TRY_GOTO(st, mx_device_twin(&twin, dev, err), done);
    MX_TRY_GOTO(st, mx_qnet_create(&q, dev, &c, false, 1, err), done);
    MX_TRY_GOTO(st, mx_stream_open(&busy, dev, (size_t)4096 * 4096 * 10 + 4096, err), done);
    MX_TRY_GOTO(st, wait_of("quote-alone", q, &twin, NULL, err), done);
    MX_TRY_GOTO(st, wait_of("quote-express", q, &twin, &busy, err), done);
    MX_TRY_GOTO(st, wait_of("quote-beside", q, dev, &busy, err), done);
done:
    mx_stream_close(&busy);
    mx_qnet_close(q);
    mx_device_twin_close(&twin);
    return st;
}

static mx_status dqn(mx_device *dev, mx_error *err)
{
    mx_dqn *d = NULL;
    mx_dqn_report r = {0};
    mx_dqn_options o = mx_dqn_defaults("cartpole");
    bool done = false;
    o.steps = 20000, o.envs = 64, o.learn_starts = 1000, o.train_every = 256, o.updates = 128, o.episodes = 1;
    MX_TRY(mx_dqn_open(&d, dev, "cartpole", NULL, &o, err));
    mx_status st = MX_OK;
    uint64_t from = mx_now_ns(&mx_clock_monotonic);
    while (!st && !done) st = mx_dqn_turn(d, &r, &done, err);
    double seconds = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9;
    if (!st) printf("dqn     worlds %4d  batch %5d  %12.0f steps/s  %10.0f updates/s\n", o.envs, o.batch, (double)r.step / seconds, (double)r.updates / seconds);
    mx_dqn_close(d);
    return st;
}

int main(int argc, char **argv)
{
    mx_device_options opt = {.bind = true, .spin_us = 50};
    mx_device *devs = NULL;
    mx_error err = {0};
    const char *device = "auto";
    int count = 0, at = 0, nodes = 100000;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--device")) device = argv[i + 1];
        else if (!strcmp(argv[i], "--nodes")) nodes = atoi(argv[i + 1]);
    }
    if (argc % 2 == 0 || nodes < 1000 || nodes > 10000000) return fputs("usage: networks [--device NAME] [--nodes 1000..10000000]\n", stderr), 2;
    mx_status st = mx_devices_open(&devs, &count, &opt, &err);
    if (!st) st = mx_device_find(devs, count, device, &at, &err);
    if (!st) printf("device  %s\n", devs[at].name);
    if (!st) st = gnn(&devs[at], nodes, &err);
    if (!st) st = quotes(&devs[at], &err);
    if (!st) st = worlds(&devs[at], "cartpole", MX_WORLD_CARTPOLE, &err);
    if (!st) st = worlds(&devs[at], "acrobot", MX_WORLD_ACROBOT, &err);
    if (!st) st = priorities(&devs[at], &err);
    if (!st) st = dqn(&devs[at], &err);
    if (st) fprintf(stderr, "networks: %s\n", err.text);
    mx_devices_close(devs, count);
    return st != MX_OK;
}
