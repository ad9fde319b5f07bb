/* gnn.c - graph networks on a graph's file: a full layer, drawn edges a second, an epoch with drawn neighbours.
 *     build/gnn GRAPH.safetensors [THREADS]     bench/peers/gnn.py makes the file and runs this beside PyTorch Geometric. */
#include "models/gnn_file.h"
#include "runtime/clock.h"

#include <stdio.h>
#include <stdlib.h>

typedef struct bench {
    mx_device  *devs;
    int         count;
    mx_gnn_file f;
    mx_gnn     *m;
} bench;

static double now(void)
{
    return (double)mx_now_ns(&mx_clock_monotonic) * 1e-9;
}

/* The second time: the first one touches new memory. */
static mx_status full_layer(bench *b, double *seconds, mx_error *err)
{
    int32_t N = b->f.graph.view.nodes;
    float *out = malloc((size_t)N * (size_t)mx_gnn_width(mx_gnn_config_of(b->m), 1) * sizeof *out);
    mx_status st = out ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "rows of %d nodes", N);
    for (int i = 0; i < 2 && !st; i++) {
        double from = now();
        st = mx_gnn_layer(b->m, &b->f.graph.view, 0, b->f.data.features, NULL, N, out, err);
        *seconds = now() - from;
    }
    free(out);
    return st;
}

/* Nodes by local numbers, each once, as a batch needs them; returns how many there are now. */
static int32_t renumber(int32_t *local, int32_t *nodes, int32_t n, const int32_t *edge, int64_t edges, const int32_t *ids, int32_t *out, int64_t *drawn)
{
    for (int64_t e = 0; e < edges; e++) {
        if (edge[e] < 0) continue;
        int32_t u = ids[edge[e]];
        if (local[u] < 0) local[u] = n, nodes[n++] = u;
        out[(*drawn)++] = local[u];
    }
    return n;
}

/* As the epoch draws, 10 and then 25 for each node of the batch, and what PyG's sampler gives: edges by local numbers. */
static mx_status drawn_edges(bench *b, double *per_second, mx_error *err)
{
    mx_stream s;
    const mx_graph *g = &b->f.graph.view;
    int64_t total = 0, most = 512 * 11;
    int32_t *nodes = malloc((size_t)most * 26 * 4), *edge = malloc((size_t)most * 25 * 4), *out = malloc((size_t)most * 26 * 4), *local = malloc((size_t)g->nodes * 4);
    mx_status st = nodes && edge && out && local ? mx_stream_open(&s, &b->devs[0], 0, err) : mx_fail(err, MX_ERR_NO_MEMORY, "edges");
    mx_tensor begin = mx_tensor_of((void *)(uintptr_t)g->csr[0].begin, MX_I32, (int64_t)g->nodes + 1, 1);
    for (int32_t i = 0; i < g->nodes && !st; i++) local[i] = -1;
    double from = now();
    for (int64_t at = 0; at < b->f.first[1] && !st; at += 512) {
        int32_t n = (int32_t)(b->f.first[1] - at < 512 ? b->f.first[1] - at : 512);
        int64_t drawn = 0;
        for (int32_t i = 0; i < n; i++) nodes[i] = b->f.node[at + i], local[nodes[i]] = i;
        for (uint32_t layer = 0; layer < 2 && !st; layer++) {
            int32_t fan = layer ? 25 : 10;
            mx_sample_neighbours(&s, mx_tensor_of(edge, MX_I32, n, fan), mx_tensor_of(nodes, MX_I32, n, 1), begin, (mx_sample_key){1, layer, 0});
            st = mx_stream_sync(&s, err);
            if (!st) n = renumber(local, nodes, n, edge, (int64_t)n * fan, g->csr[0].ids, out, &drawn);
        }
        for (int32_t i = 0; i < n; i++) local[nodes[i]] = -1;
        total += drawn;
    }
    *per_second = (double)total / (now() - from);
    if (!st) mx_stream_close(&s);
    free(nodes), free(edge), free(out), free(local);
    return st;
}

static mx_status epoch(bench *b, double *seconds, mx_error *err)
{
    mx_batches train = {0};
    mx_trainer *t = NULL;
    mx_train_report r;
    mx_learner l;
    mx_gnn_learning o = {.fanout = {25, 10}, .seed = 1};
    mx_train_options opt = mx_train_defaults();
    char run[] = "/tmp/merx-bench-gnn-XXXXXX", command[64];
    bool done = false;
    opt.batch = opt.micro_rows = 512, opt.warmup = 0, opt.clip = 0, opt.weight_decay = 0, opt.lr = 0.01f;
    if (!mkdtemp(run)) return mx_fail(err, MX_ERR_IO, "no temporary folder");
    MX_TRY(mx_gnn_learner(b->m, &b->f.data, &o, &l, err));
    MX_TRY(mx_batches_open_range(&train, 0, b->f.first[1], b->f.hash, 1, true, err));
    mx_status st = mx_trainer_open(&t, run, &l, &train, NULL, &opt, NULL, err);
    double from = now(), last = from;
    while (!st && !done) {
        last = now();                                   /* the last step writes a checkpoint beside */
        st = mx_trainer_step(t, &r, &done, err);
    }
    *seconds = last - from + r.seconds;
    mx_trainer_close(t);
    mx_batches_close(&train);
    snprintf(command, sizeof command, "rm -r %s", run);
    return system(command) ? mx_fail(err, MX_ERR_IO, "%s cannot be removed", run) : st;
}

int main(int argc, char **argv)
{
    bench b = {0};
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = argc > 2 ? atoi(argv[2]) : 0, .spin_us = 50};
    double layer = 0, drawn = 0, pass = 0;
    if (argc < 2) return fprintf(stderr, "gnn GRAPH.safetensors [THREADS]\n"), 2;
    mx_status st = mx_devices_open(&b.devs, &b.count, &opt, &err);
    if (!st) st = mx_gnn_file_open(&b.f, argv[1], &err);
    mx_gnn_config c = {.kind = MX_GNN_SAGE, .layers = 2, .features = b.f.features, .hidden = 64, .outputs = b.f.classes, .act = MX_ACT_RELU};
    if (!st) st = mx_gnn_create(&b.m, &b.devs[0], &c, 1, &err);
    if (!st) st = full_layer(&b, &layer, &err);
    if (!st) st = drawn_edges(&b, &drawn, &err);
    if (!st) st = epoch(&b, &pass, &err);
    if (st) fprintf(stderr, "gnn: %s\n", err.text);
    else
        printf("{\"layer_s\": %.4f, \"sampled_edges_per_s\": %.0f, \"epoch_s\": %.4f, \"bytes_per_edge\": %.2f}\n", layer, drawn, pass,
               (double)b.f.graph.bytes / (double)b.f.graph.edges);
    mx_gnn_close(b.m);
    mx_gnn_file_close(&b.f);
    mx_devices_close(b.devs, b.count);
    return st != MX_OK;
}
