/* train_graph.c - a graph network from settings. */
#include "server/train_graph.h"

#include "models/snapshot.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static mx_status fanout(const mx_config *c, int32_t layers, int32_t out[MX_GNN_LAYERS], mx_error *err)
{
    const char *const *items;
    int n = mx_config_list(c, "fanout", &items);
    if (n && n != layers) return mx_fail(err, MX_ERR_ARG, "fanout: %d numbers for %d layers; give one for each, the layer next to the input first", n, layers);
    for (int i = 0; i < n; i++) {
        char *end;
        errno = 0;
        long v = strtol(items[i], &end, 10);
        if (errno || *end || end == items[i] || v < 0 || v > 4096) return mx_fail(err, MX_ERR_ARG, "fanout: \"%s\" is not a number from 0 (all) to 4096", items[i]);
        out[i] = (int32_t)v;
    }
    return MX_OK;
}

static mx_gnn_config describe(const mx_train_run *t)
{
    const mx_config *c = t->config;
    const mx_gnn_file *f = &t->graph_file;
    mx_gnn_config g = {.task = f->task, .layers = (int32_t)mx_config_int(c, "layers"), .features = f->features, .hidden = (int32_t)mx_config_int(c, "hidden-size"),
                       .outputs = f->classes, .id_cols = (int32_t)mx_config_int(c, "id-cols"), .act = MX_ACT_RELU, .max = !strcmp(mx_config_string(c, "aggregate"), "max"),
                       .unit = mx_config_bool(c, "unit-rows"), .max_degree = (int32_t)mx_config_int(c, "max-degree")};
    for (int k = 0; k < MX_GNN_KINDS; k++)
        if (!strcmp(mx_config_string(c, "network"), mx_gnn_kind_name((mx_gnn_kind)k))) g.kind = (mx_gnn_kind)k;
    if (f->task == MX_GNN_LINKS) {
        g.outputs = (int32_t)mx_config_int(c, "outputs");
        if (!strcmp(mx_config_string(c, "pair-loss"), "bpr")) g.task = MX_GNN_RANKING;
    }
    if (g.kind == MX_GNN_LIGHTGCN) g.features = 0, g.id_cols = g.outputs;
    if (g.id_cols) g.id_nodes = f->graph.view.nodes;
    if (g.kind == MX_GNN_GAT) g.heads = (int32_t)mx_config_int(c, "heads"), g.out_heads = (int32_t)mx_config_int(c, "out-heads"), g.act = MX_ACT_ELU;
    if (g.kind == MX_GNN_RGCN) g.relations = f->graph.view.relations;
    g.store = t->store_print;
    if (f->features > mx_profile_inputs(0)) g.texts = t->texts_print;
    return g;
}

/* A folder that was saved, into a network that may learn on. */
static mx_status open_saved(mx_train_run *t, const char *folder, mx_error *err)
{
    mx_gnn *saved;
    mx_learner l;
    mx_gnn_config c;
    MX_TRY(mx_gnn_open(&saved, t->dev, folder, err));
    c = *mx_gnn_config_of(saved);
    mx_gnn_close(saved);
    MX_TRY(mx_gnn_create(&t->gnn, t->dev, &c, 1, err));
    if ((c.task == MX_GNN_RANKING ? MX_GNN_LINKS : c.task) != t->graph_file.task)
        return mx_fail(err, MX_ERR_ARG, "model: it was made for %s, and the data has %s", mx_gnn_task_name(c.task), mx_gnn_task_name(t->graph_file.task));
    MX_TRY(mx_gnn_learner(t->gnn, &t->graph_file.data, &t->graph_learning, &l, err));
    return l.load(l.network, folder, err);
}

static mx_status open_range(mx_train_run *t, mx_batches *b, mx_gnn_split s, bool shuffle, mx_error *err)
{
    const mx_gnn_file *f = &t->graph_file;
    return mx_batches_open_range(b, f->first[s], f->first[s + 1] - f->first[s], f->hash, t->graph_learning.seed, shuffle, err);
}

/* ---- from a store of events ----------------------------------------------------------------------- */

/* Once for a run, which goes on with what it began with while events arrive. */
static mx_status write_lesson(mx_train_run *t, const mx_user_graph *g, const mx_text_store *texts, const char *path, mx_error *err)
{
    char made[MX_PATH + 8], text[200];
    mx_profile_lesson l;
    bool rgcn = !strcmp(mx_config_string(t->config, "network"), "rgcn");
    t->store_print = mx_user_graph_print(g), t->texts_print = mx_text_store_print(texts);
    if (mx_config_bool(t->config, "restart")) unlink(path);
    if (!access(path, R_OK)) return MX_OK;
    snprintf(made, sizeof made, "%s.new", path);
    MX_TRY(mx_profile_lesson_write(g, texts, rgcn ? 2 * mx_user_graph_event_types(g) : 1, made, &l, err));
    if (rename(made, path)) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    snprintf(text, sizeof text, "%d nodes, %lld edges, %lld pairs of user and item (%lld held back: the latest), %d numbers a user", l.nodes, (long long)l.edges,
             (long long)l.pairs, (long long)l.held, l.features);
    if (t->note) t->note(t->ctx, text);
    return MX_OK;
}

static mx_status open_profiles(mx_train_run *t, const char *folder, const char *path, mx_error *err)
{
    mx_user_graph *g = NULL;
    mx_text_store *texts = NULL;
    char words[MX_PATH];
    if (t->events) return write_lesson(t, t->events, t->texts, path, err);
    MX_TRY(mx_path_join(words, folder, "texts", err));
    mx_status st = mx_user_graph_open(&g, folder, NULL, err);
    if (!st) st = mx_user_graph_declare_usual(g, err);
    if (!st) st = mx_text_store_open(&texts, words, 0, 0, g, err);
    if (!st) st = write_lesson(t, g, texts, path, err);
    mx_text_store_close(texts);
    mx_user_graph_close(g);
    return st;
}

static mx_status open_data(mx_train_run *t, mx_error *err)
{
    const char *const *files, *profiles = mx_config_string(t->config, "profiles");
    char path[MX_PATH];
    int n = mx_config_list(t->config, "data", &files);
    if (profiles && n) return mx_fail(err, MX_ERR_ARG, "data: a graph comes from --data or from --profiles, not from both");
    if (!profiles && n != 1) return mx_fail(err, MX_ERR_ARG, "data: give one graph file with --data FILE.safetensors, or a store of events with --profiles FOLDER");
    if (!profiles) return mx_gnn_file_open(&t->graph_file, files[0], err);
    if (!t->folder) return mx_fail(err, MX_ERR_ARG, "run: say with --run FOLDER where the graph and what is learned go");
    if (mkdir(t->folder, 0777) && errno != EEXIST) return mx_fail(err, MX_ERR_IO, "%s: %s", t->folder, strerror(errno));
    MX_TRY(mx_path_join(path, t->folder, "lesson.safetensors", err));
    MX_TRY(open_profiles(t, profiles, path, err));
    return mx_gnn_file_open(&t->graph_file, path, err);
}

mx_status mx_train_graph_open(mx_train_run *t, bool learning, mx_error *err)
{
    const mx_config *c = t->config;
    const char *const *models;
    MX_TRY(open_data(t, err));
    t->graph_learning = (mx_gnn_learning){.dropout = (float)mx_config_float(c, "dropout"), .edge_dropout = (float)mx_config_float(c, "edge-dropout"),
                                          .value_dropout = (float)mx_config_float(c, "value-dropout"), .l2 = (float)mx_config_float(c, "l2"), .l2_first = (float)mx_config_float(c, "l2-first"),
                                          .l2_rows = (float)mx_config_float(c, "l2-rows"), .negatives = (int32_t)mx_config_int(c, "negatives")};
    MX_TRY(mx_train_run_seed(c, &t->graph_learning.seed, err));
    if (mx_config_list(c, "model", &models) == 1) MX_TRY(open_saved(t, models[0], err));
    else {
        mx_gnn_config g = describe(t);
        if (!learning) return mx_fail(err, MX_ERR_ARG, "model: say with --model FOLDER what to measure");
        MX_TRY(mx_gnn_create(&t->gnn, t->dev, &g, t->graph_learning.seed, err));
    }
    MX_TRY(fanout(c, mx_gnn_config_of(t->gnn)->layers, t->graph_learning.fanout, err));
    MX_TRY(mx_gnn_learner(t->gnn, &t->graph_file.data, &t->graph_learning, &t->graph_learner, err));
    MX_TRY(open_range(t, &t->batches, MX_GNN_TRAIN, true, err));
    return t->graph_file.first[MX_GNN_VALID + 1] > t->graph_file.first[MX_GNN_VALID] ? open_range(t, &t->eval_batches, MX_GNN_VALID, false, err) : MX_OK;
}

void mx_train_graph_options(const mx_train_run *t, mx_train_options *o)
{
    const mx_config *c = t->config;
    if (!mx_config_given(c, "weight-decay")) o->weight_decay = 0;
    if (!mx_config_given(c, "clip")) o->clip = 0;
    if (!mx_config_given(c, "warmup")) o->warmup = 0;
    if (!mx_config_given(c, "schedule")) o->schedule = MX_SCHEDULE_CONSTANT;
    if (!mx_config_given(c, "beta2")) o->beta2 = 0.999f;
    if (!mx_config_given(c, "lr")) o->lr = 0.01f;
    if (!mx_config_given(c, "batch")) o->batch = (int32_t)t->batches.count;
    o->micro_rows = o->batch;             /* a step is one pass */
}

static mx_status report_split(mx_train_run *t, mx_gnn_split s, const char *name, FILE *out, mx_error *err)
{
    mx_batches b;
    double loss = 0, extra = 0;
    const mx_gnn_file *f = &t->graph_file;
    if (f->first[s + 1] == f->first[s]) return MX_OK;
    MX_TRY(open_range(t, &b, s, false, err));
    int32_t rows = (int32_t)(b.count < 65536 ? b.count : 65536);
    MX_TRY(mx_evaluate(&t->graph_learner, &b, rows, NULL, NULL, &loss, &extra, err));
    fprintf(out, "{\"split\": \"%s\", \"targets\": %lld, \"loss\": %.6f, \"%s\": %.6f", name, (long long)b.count, loss, t->graph_learner.metric, extra);
    mx_batches_close(&b);
    if (f->task == MX_GNN_LINKS && s != MX_GNN_TRAIN) {
        int32_t cols = mx_gnn_config_of(t->gnn)->outputs;
        double recall = 0, ndcg = 0;
        float *z = malloc((size_t)f->graph.view.nodes * (size_t)cols * sizeof *z);
        mx_status st = z ? mx_gnn_infer(t->gnn, &f->graph.view, f->data.features, z, NULL, NULL, err) : mx_fail(err, MX_ERR_NO_MEMORY, "vectors of all nodes");
        if (!st) st = mx_gnn_rank(f, s, z, cols, 20, &recall, &ndcg, err);
        free(z);
        MX_TRY(st);
        fprintf(out, ", \"recall@20\": %.6f, \"ndcg@20\": %.6f", recall, ndcg);
    }
    fputs("}\n", out);
    return MX_OK;
}

mx_status mx_train_graph_report(mx_train_run *t, FILE *out, mx_error *err)
{
    MX_TRY(report_split(t, MX_GNN_VALID, "valid", out, err));
    return report_split(t, MX_GNN_TEST, "test", out, err);
}

void mx_train_graph_close(mx_train_run *t)
{
    mx_gnn_close(t->gnn);
    mx_gnn_file_close(&t->graph_file);
}
