/* gnn_file.c - a graph, features, labels and splits out of a safetensors file; recall of what was held back. */
#include "models/gnn_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const splits[MX_GNN_SPLITS] = {"train", "valid", "test"};

/* A tensor of 4-byte elements with `cols` columns (1: a vector); NULL and *st untouched: it is not there. */
static const mx_blob *find(const mx_gnn_file *f, const char *name, bool floats, int64_t rows, int64_t cols, mx_status *st, mx_error *err)
{
    const mx_blob *b = mx_checkpoint_find(f->file, name);
    if (!b || *st) return NULL;
    bool vector = b->n_dims == 1;
    int64_t n = vector ? b->cols : b->rows, width = vector ? 1 : b->cols;
    bool type = floats ? b->dtype == MX_FILE_F32 : b->dtype == MX_FILE_OTHER;
    if (type && b->size == (size_t)n * (size_t)width * 4 && (rows < 0 || n == rows) && (cols < 0 || width == cols) && b->n_dims <= 2) return b;
    char want[64] = "rows";
    if (rows >= 0) snprintf(want, sizeof want, "%lld rows", (long long)rows);
    *st = mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s must be %s with %s%s", b->file, name, floats ? "F32" : "I32", want,
                  cols == 2 ? " of 2 columns" : cols == 1 ? " of 1 column" : "");
    return NULL;
}

static int64_t rows_of(const mx_blob *b)
{
    return !b ? 0 : b->n_dims == 1 ? b->cols : b->rows;
}

static mx_status no_memory(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "a graph's lists");
}

/* ---- the graph ---------------------------------------------------------------------------- */

/* Edges in the order of their relations. */
static mx_status build_lists(mx_gnn_file *f, int32_t nodes, const uint8_t *type, const mx_blob *edges, const mx_blob *relation, const mx_blob *weight,
                             bool both_ways, mx_error *err)
{
    int64_t n = rows_of(edges), next[MX_GRAPH_RELATIONS + 1] = {0};
    const int32_t *pair = edges->data, *of = relation ? relation->data : NULL;
    int32_t relations = 1, *from = malloc((size_t)n * 4 + 4), *to = malloc((size_t)n * 4 + 4);
    float *w = weight ? malloc((size_t)n * 4 + 4) : NULL;
    mx_edge_list lists[MX_GRAPH_RELATIONS] = {{0}};
    mx_status st = from && to && (!weight || w) ? MX_OK : no_memory(err);
    for (int64_t i = 0; i < n && !st && of; i++) {
        if (of[i] < 0 || of[i] >= MX_GRAPH_RELATIONS) st = mx_fail(err, MX_ERR_FORMAT, "%s: edge %lld has relation %d; up to 63 are known", edges->file, (long long)i, of[i]);
        else if (of[i] + 1 > relations) relations = of[i] + 1;
    }
    for (int64_t i = 0; i < n && !st; i++) next[(of ? of[i] : 0) + 1]++;
    for (int32_t r = 0; r < relations; r++) {
        next[r + 1] += next[r];
        lists[r] = (mx_edge_list){from + next[r], to + next[r], w ? w + next[r] : NULL, next[r + 1] - next[r]};
    }
    for (int64_t i = 0; i < n && !st; i++) {
        int64_t at = next[of ? of[i] : 0]++;
        from[at] = pair[2 * i], to[at] = pair[2 * i + 1];
        if (w) w[at] = ((const float *)weight->data)[i];
    }
    if (!st) st = mx_graph_build(&f->graph, nodes, type, lists, relations, &(mx_graph_options){.both_ways = both_ways}, err);
    free(from), free(to), free(w);
    return st;
}

static mx_status open_graph(mx_gnn_file *f, mx_error *err)
{
    mx_status st = MX_OK;
    const mx_blob *edges = find(f, "edges", false, -1, 2, &st, err), *relation = find(f, "relation", false, rows_of(edges), 1, &st, err);
    const mx_blob *weight = find(f, "weight", true, rows_of(edges), 1, &st, err), *x = find(f, "features", true, -1, -1, &st, err);
    const mx_blob *types = find(f, "type", false, -1, 1, &st, err), *label = find(f, "label", false, -1, 1, &st, err);
    const mx_blob *labels = find(f, "labels", true, -1, -1, &st, err), *count = find(f, "nodes", false, 1, 1, &st, err);
    const mx_blob *both = find(f, "both_ways", false, 1, 1, &st, err);
    MX_TRY(st);
    if (!edges) return mx_fail(err, MX_ERR_FORMAT, "the graph's file has no tensor \"edges\"");
    const mx_blob *each[] = {x, types, label, labels};
    int64_t nodes = count ? *(const int32_t *)count->data : -1;
    for (int i = 0; i < 4; i++) {
        if (each[i] && nodes >= 0 && rows_of(each[i]) != nodes)
            return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s has %lld rows; there are %lld nodes", each[i]->file, each[i]->name, (long long)rows_of(each[i]), (long long)nodes);
        if (each[i]) nodes = rows_of(each[i]);
    }
    if (nodes < 1 || nodes >= INT32_MAX) return mx_fail(err, MX_ERR_FORMAT, "%s: how many nodes there are must follow from features, type, label or nodes", edges->file);
    uint8_t *type = types ? malloc((size_t)nodes) : NULL;
    if (types && !type) return no_memory(err);
    for (int64_t i = 0; i < nodes && types && !st; i++) {
        int32_t t = ((const int32_t *)types->data)[i];
        if (t < 0 || t > 255) st = mx_fail(err, MX_ERR_FORMAT, "%s: node %lld has type %d; it must be from 0 to 255", types->file, (long long)i, t);
        else type[i] = (uint8_t)t;
    }
    if (!st) st = build_lists(f, (int32_t)nodes, type, edges, relation, weight, both && *(const int32_t *)both->data, err);
    free(type);
    f->features = x ? (int32_t)(x->n_dims == 1 ? 1 : x->cols) : 0;
    f->data.features = x ? x->data : NULL;
    f->data.graph = &f->graph.view;
    return st;
}

/* ---- targets ---------------------------------------------------------------------------------- */

static mx_status count_splits(mx_gnn_file *f, const mx_blob *of[MX_GNN_SPLITS], mx_error *err)
{
    mx_status st = MX_OK;
    for (int s = 0; s < MX_GNN_SPLITS; s++) {
        of[s] = find(f, splits[s], false, -1, 1, &st, err);
        f->first[s + 1] = f->first[s] + rows_of(of[s]);
    }
    f->data.targets = f->first[MX_GNN_SPLITS];
    if (!st && !f->first[1]) st = mx_fail(err, MX_ERR_FORMAT, "the graph's file has no tensor \"train\", or an empty one");
    return st;
}

/* Targets in the order of the splits; per: numbers of each. */
static mx_status place_targets(mx_gnn_file *f, const mx_blob *of[MX_GNN_SPLITS], const mx_blob *label, const mx_blob *labels, const mx_blob *pairs, mx_error *err)
{
    int64_t n = f->data.targets, rows = pairs ? rows_of(pairs) : f->graph.view.nodes, at = 0;
    f->node = malloc((size_t)n * 8 + 8);
    f->label = label ? malloc((size_t)n * 4 + 4) : NULL;
    f->labels = labels ? malloc((size_t)n * (size_t)f->classes * 4 + 4) : NULL;
    if (!f->node || (label && !f->label) || (labels && !f->labels)) return no_memory(err);
    for (int s = 0; s < MX_GNN_SPLITS; s++)
        for (int64_t i = 0; i < rows_of(of[s]); i++, at++) {
            int32_t v = ((const int32_t *)of[s]->data)[i];
            if (v < 0 || v >= rows) return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s, row %lld: %d, and there are %lld", of[s]->file, splits[s], (long long)i, v, (long long)rows);
            if (pairs) memcpy(f->node + 2 * at, (const int32_t *)pairs->data + 2 * (int64_t)v, 8);
            else f->node[at] = v;
            if (label) f->label[at] = ((const int32_t *)label->data)[v];
            if (labels) memcpy(f->labels + at * f->classes, (const float *)labels->data + (int64_t)v * f->classes, (size_t)f->classes * 4);
        }
    f->data.node = f->node, f->data.label = f->label, f->data.labels = f->labels;
    return MX_OK;
}

static mx_status open_known(mx_gnn_file *f, mx_error *err)
{
    int64_t n = f->first[1];
    int32_t *from = malloc((size_t)n * 8 + 8), *to = from ? from + n : NULL;
    if (!from) return no_memory(err);
    for (int64_t i = 0; i < n; i++) from[i] = f->node[2 * i], to[i] = f->node[2 * i + 1];
    /* a row lies at who chose: its sources are what was chosen */
    mx_edge_list l = {to, from, NULL, n};
    mx_status st = mx_graph_build(&f->known, f->graph.view.nodes, NULL, &l, 1, &(mx_graph_options){.once = true}, err);
    free(from);
    f->data.known = &f->known.view;
    return st;
}

static mx_status open_targets(mx_gnn_file *f, mx_error *err)
{
    mx_status st = MX_OK;
    const mx_blob *of[MX_GNN_SPLITS], *label = find(f, "label", false, -1, 1, &st, err), *labels = find(f, "labels", true, -1, -1, &st, err);
    const mx_blob *pairs = find(f, "pairs", false, -1, 2, &st, err);
    MX_TRY(st);
    if (!!label + !!labels + !!pairs != 1) return mx_fail(err, MX_ERR_FORMAT, "the graph's file needs one of the tensors label, labels and pairs");
    f->task = label ? MX_GNN_CLASSES : labels ? MX_GNN_LABELS : MX_GNN_LINKS;
    MX_TRY(count_splits(f, of, err));
    for (int64_t i = 0; label && i < rows_of(label); i++)
        if (((const int32_t *)label->data)[i] >= f->classes) f->classes = ((const int32_t *)label->data)[i] + 1;
    if (labels) f->classes = (int32_t)(labels->n_dims == 1 ? 1 : labels->cols);
    MX_TRY(place_targets(f, of, label, labels, pairs, err));
    return pairs ? open_known(f, err) : MX_OK;
}

static uint64_t hash_file(const mx_checkpoint *c)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < mx_checkpoint_count(c); i++) {
        const mx_blob *b = mx_checkpoint_at(c, i);
        for (size_t k = 0; k < b->size; k++) h = (h ^ ((const unsigned char *)b->data)[k]) * 0x100000001b3u;      /* FNV-1a */
    }
    return h;
}

mx_status mx_gnn_file_open(mx_gnn_file *f, const char *path, mx_error *err)
{
    memset(f, 0, sizeof *f);
    MX_TRY(mx_checkpoint_open(&f->file, path, err));
    mx_status st = open_graph(f, err);
    if (!st) st = open_targets(f, err);
    f->hash = hash_file(f->file);
    if (st) mx_gnn_file_close(f);
    return st;
}

void mx_gnn_file_close(mx_gnn_file *f)
{
    free(f->node), free(f->label), free(f->labels);
    mx_graph_close(&f->known);
    mx_graph_close(&f->graph);
    mx_checkpoint_close(f->file);
    *f = (mx_gnn_file){0};
}

/* ---- what was held back, found again -------------------------------------------------------------- */

typedef struct ranked { float score; int32_t node; } ranked;

/* The k largest of the nodes of type t, by score, ties by number; known ones left out. */
static int32_t best(const mx_gnn_file *f, const float *z, int32_t cols, int32_t user, int t, int32_t k, ranked *top)
{
    const mx_graph *g = &f->graph.view;
    mx_neighbours seen = mx_graph_row(&f->known.view, 0, user);
    int32_t n = 0, at = 0;
    for (int32_t v = 0; v < g->nodes; v++) {
        while (at < seen.n && seen.ids[at] < v) at++;
        if ((g->type ? g->type[v] : 0) != t || v == user || (at < seen.n && seen.ids[at] == v)) continue;
        const float *a = z + (int64_t)user * cols, *b = z + (int64_t)v * cols;
        float s = 0;
#pragma omp simd reduction(+ : s)
        for (int32_t c = 0; c < cols; c++) s += a[c] * b[c];
        if (n == k && s <= top[k - 1].score) continue;
        int32_t i = n < k ? n++ : k - 1;
        for (; i > 0 && top[i - 1].score < s; i--) top[i] = top[i - 1];
        top[i] = (ranked){s, v};
    }
    return n;
}

mx_status mx_gnn_rank(const mx_gnn_file *f, mx_gnn_split split, const float *z, int32_t cols, int32_t k, double *recall, double *ndcg, mx_error *err)
{
    const mx_graph *g = &f->graph.view;
    mx_graph_store held;
    int64_t n = f->first[split + 1] - f->first[split], users = 0;
    int32_t *from = malloc((size_t)n * 8 + 8), *to = from ? from + n : NULL;
    ranked *top = malloc((size_t)k * sizeof *top);
    *recall = *ndcg = 0;
    mx_status st = from && top ? MX_OK : no_memory(err);
    for (int64_t i = 0; i < n && !st; i++) from[i] = f->node[2 * (f->first[split] + i)], to[i] = f->node[2 * (f->first[split] + i) + 1];
    mx_edge_list l = {to, from, NULL, n};
    if (!st) st = mx_graph_build(&held, g->nodes, NULL, &l, 1, &(mx_graph_options){.once = true}, err);
    free(from);
    for (int32_t u = 0; u < g->nodes && !st; u++) {
        mx_neighbours want = mx_graph_row(&held.view, 0, u);
        if (!want.n) continue;
        int32_t found = best(f, z, cols, u, g->type ? g->type[want.ids[0]] : 0, k, top), hits = 0;
        double gain = 0, ideal = 0;
        for (int32_t i = 0; i < found; i++) {
            bool hit = false;
            for (int32_t w = 0; w < want.n && !hit; w++) hit = want.ids[w] == top[i].node;
            hits += hit;
            if (hit) gain += 1 / log2(i + 2.0);
        }
        for (int32_t i = 0; i < want.n && i < k; i++) ideal += 1 / log2(i + 2.0);
        *recall += (double)hits / want.n;
        *ndcg += gain / ideal;
        users++;
    }
    if (!st) mx_graph_close(&held);
    free(top);
    if (st) return st;
    if (!users) return mx_fail(err, MX_ERR_ARG, "no pair is held back in %s", splits[split]);
    *recall /= (double)users, *ndcg /= (double)users;
    return MX_OK;
}
