/* profile_lesson.c - a file to learn a graph network from: what was joined before, to tell what came after. */
#include "models/profile_graph.h"

#include "models/params.h"

#include <stdlib.h>
#include <string.h>

enum { LEAST_PAIRS = 20 };

typedef struct pair { int32_t user, item; int64_t ts_ms, at; } pair;
typedef struct lesson {
    mx_profile_follower f;
    int32_t  item;                    /* node type                                        */
    pair    *pair;
    int64_t  n, room, train;          /* [0, train) are learned, the rest is held back     */
    pair    *held;                    /* by user and item                                 */
    int64_t  n_held, cut_ms;
    mx_graph_store graph;
    int32_t *edges, *relation, *pairs, *index, *type;
    float   *weight, *features;
} lesson;

static mx_status take(void *ctx, int32_t type, int32_t subject, int32_t object, float weight, int64_t ts_ms, mx_error *err)
{
    lesson *l = ctx;
    mx_event_type t;
    (void)weight;
    if (!mx_user_graph_event_type(l->f.graph, type, &t) || t.object != l->item) return MX_OK;
    if (l->n == l->room) {
        int64_t room = l->room ? 2 * l->room : 4096;
        pair *grown = realloc(l->pair, (size_t)room * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "pairs to learn from");
        l->pair = grown, l->room = room;
    }
    l->pair[l->n++] = (pair){subject, object, ts_ms, l->f.sequence};
    return MX_OK;
}

static int by_ends(const void *x, const void *y)
{
    const pair *a = x, *b = y;
    if (a->user != b->user) return a->user < b->user ? -1 : 1;
    if (a->item != b->item) return a->item < b->item ? -1 : 1;
    return a->ts_ms < b->ts_ms ? -1 : a->ts_ms > b->ts_ms;
}

static uint64_t mix(const pair *p)
{
    uint64_t h = ((uint64_t)(uint32_t)p->user << 32 | (uint32_t)p->item) * 0x9e3779b97f4a7c15u;
    return (h ^ h >> 29) * 0xbf58476d1ce4e5b9u;
}

/* Where times say nothing, a draw does. */
static int by_time(const void *x, const void *y)
{
    const pair *a = x, *b = y;
    if (a->ts_ms != b->ts_ms) return a->ts_ms < b->ts_ms ? -1 : 1;
    uint64_t h = mix(a), k = mix(b);
    return h != k ? h < k ? -1 : 1 : by_ends(x, y);
}

static mx_status find_pairs(lesson *l, mx_error *err)
{
    l->item = mx_user_graph_find_node_type(l->f.graph, "item");
    l->f.edge = take, l->f.ctx = l;
    MX_TRY(mx_profile_follow(&l->f, err));
    int64_t n = 0, once = 0;
    for (int64_t i = 0; i < l->n; i++)
        if (l->pair[i].at > l->f.dropped[l->pair[i].user]) l->pair[n++] = l->pair[i];
    if (n) qsort(l->pair, (size_t)n, sizeof *l->pair, by_ends);
    for (int64_t i = 0; i < n; i++)
        if (!i || l->pair[i].user != l->pair[i - 1].user || l->pair[i].item != l->pair[i - 1].item) l->pair[once++] = l->pair[i];
    if (once < LEAST_PAIRS)
        return mx_fail(err, MX_ERR_STATE, "profiles: %lld pairs of user and item; a network learns from %d at least", (long long)once, LEAST_PAIRS);
    qsort(l->pair, (size_t)once, sizeof *l->pair, by_time);
    l->n = once;
    l->n_held = once / 10;
    l->train = once - l->n_held;
    l->cut_ms = l->pair[l->train].ts_ms;
    l->held = malloc((size_t)l->n_held * sizeof *l->held);
    if (!l->held) return mx_fail(err, MX_ERR_NO_MEMORY, "pairs to learn from");
    memcpy(l->held, l->pair + l->train, (size_t)l->n_held * sizeof *l->held);
    qsort(l->held, (size_t)l->n_held, sizeof *l->held, by_ends);
    return MX_OK;
}

static bool is_held(void *ctx, int32_t user, int32_t item)
{
    const lesson *l = ctx;
    int64_t low = 0, high = l->n_held;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        const pair *p = &l->held[middle];
        if (p->user < user || (p->user == user && p->item < item)) low = middle + 1;
        else high = middle;
    }
    return low < l->n_held && l->held[low].user == user && l->held[low].item == item;
}

static mx_status list_graph(lesson *l, mx_error *err)
{
    const mx_graph *g = &l->graph.view;
    int64_t n = l->graph.edges, at = 0;
    l->edges = malloc((size_t)n * 8 + 8), l->relation = malloc((size_t)n * 4 + 4), l->weight = malloc((size_t)n * 4 + 4);
    l->type = malloc((size_t)g->nodes * 4), l->pairs = malloc((size_t)l->n * 8), l->index = malloc((size_t)l->n * 4);
    if (!l->edges || !l->relation || !l->weight || !l->type || !l->pairs || !l->index) return mx_fail(err, MX_ERR_NO_MEMORY, "a graph to learn from");
    for (int32_t r = 0; r < g->relations; r++)
        for (int32_t v = 0; v < g->nodes; v++) {
            mx_neighbours row = mx_graph_row(g, r, v);
            for (int32_t i = 0; i < row.n; i++, at++) l->edges[2 * at] = row.ids[i], l->edges[2 * at + 1] = v, l->relation[at] = r, l->weight[at] = row.weight[i];
        }
    for (int32_t v = 0; v < g->nodes; v++) l->type[v] = g->type[v];
    for (int64_t i = 0; i < l->n; i++) l->pairs[2 * i] = l->pair[i].user, l->pairs[2 * i + 1] = l->pair[i].item;
    for (int64_t i = 0; i < l->train; i++) l->index[i] = (int32_t)i;
    int64_t half = (l->n_held + 1) / 2;                     /* in turn: to watch, to judge by */
    for (int64_t i = 0; i < l->n_held; i++) l->index[l->train + (i % 2 ? half + i / 2 : i / 2)] = (int32_t)(l->train + i);
    return MX_OK;
}

static mx_status find_inputs(lesson *l, const mx_text_store *texts, mx_error *err)
{
    int32_t dim = texts ? mx_text_store_dim(texts) : 0, nodes = l->graph.view.nodes, user = mx_user_graph_find_node_type(l->f.graph, "user");
    size_t width = (size_t)mx_profile_inputs(dim);
    mx_event_list list = {0};
    mx_status st = MX_OK;
    l->features = calloc((size_t)nodes * width, sizeof *l->features);
    if (!l->features) return mx_fail(err, MX_ERR_NO_MEMORY, "%d nodes' inputs of %zu numbers", nodes, width);
    for (int32_t v = 0; !st && v < nodes; v++)
        if (l->type[v] == user && !(v < l->f.nodes && l->f.absent[v])) st = mx_profile_input(l->f.graph, texts, dim, v, l->cut_ms, &list, l->features + (size_t)v * width, err);
    mx_event_list_free(&list);
    return st;
}

static mx_status write(const lesson *l, int32_t features, const char *path, mx_error *err)
{
    int64_t E = l->graph.edges, N = l->graph.view.nodes, half = (l->n_held + 1) / 2;
    const mx_save t[] = {
        {.name = "edges", .as = MX_SAVE_I32, .n_dims = 2, .dims = {E, 2}, .data = l->edges},
        {.name = "relation", .as = MX_SAVE_I32, .n_dims = 1, .dims = {E}, .data = l->relation},
        {.name = "weight", .as = MX_SAVE_F32, .n_dims = 1, .dims = {E}, .data = l->weight},
        {.name = "type", .as = MX_SAVE_I32, .n_dims = 1, .dims = {N}, .data = l->type},
        {.name = "features", .as = MX_SAVE_F32, .n_dims = 2, .dims = {N, features}, .data = l->features},
        {.name = "pairs", .as = MX_SAVE_I32, .n_dims = 2, .dims = {l->n, 2}, .data = l->pairs},
        {.name = "train", .as = MX_SAVE_I32, .n_dims = 1, .dims = {l->train}, .data = l->index},
        {.name = "valid", .as = MX_SAVE_I32, .n_dims = 1, .dims = {half}, .data = l->index + l->train},
        {.name = "test", .as = MX_SAVE_I32, .n_dims = 1, .dims = {l->n_held - half}, .data = l->index + l->train + half},
    };
    return mx_safetensors_write(path, t, sizeof t / sizeof *t, NULL, 0, err);
}

mx_status mx_profile_lesson_write(const mx_user_graph *g, const mx_text_store *texts, int32_t relations, const char *path, mx_profile_lesson *out, mx_error *err)
{
    lesson l = {.f = {.graph = g}};
    mx_profile_follower again = {.graph = g};
    int32_t features = mx_profile_inputs(texts ? mx_text_store_dim(texts) : 0);
    mx_status st = find_pairs(&l, err);
    mx_profile_graph_options o = {.relations = relations, .until_ms = l.cut_ms, .without = is_held, .ctx = &l};
    if (!st) st = mx_profile_graph_build(&l.graph, &again, &o, err);
    if (!st) st = list_graph(&l, err);
    if (!st) st = find_inputs(&l, texts, err);
    if (!st) st = write(&l, features, path, err);
    if (!st) *out = (mx_profile_lesson){l.n, l.n_held, l.graph.edges, l.graph.view.nodes, features};
    mx_profile_follower_close(&l.f), mx_profile_follower_close(&again);
    mx_graph_close(&l.graph);
    free(l.pair), free(l.held), free(l.edges), free(l.relation), free(l.weight), free(l.type), free(l.features), free(l.pairs), free(l.index);
    return st;
}
