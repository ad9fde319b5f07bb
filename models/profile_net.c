/* profile_net.c - events in, vectors out. */
#include "models/profile_net.h"

#include "models/snapshot.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH = 4096 };

struct mx_profile_net {
    pthread_mutex_t lock;
    char           *folder;
    const mx_user_graph *graph;
    const mx_text_store *texts;
    mx_gnn         *gnn;
    mx_gnn_config   config;
    uint64_t        print;
    int32_t         text_dim, relations, user, item;      /* user, item: node types */
    mx_profile_follower follower;
    mx_live_graph  *live;
    mx_refresh     *refresh;
    mx_vectors     *users, *items;
    mx_stream       stream;
    bool            stream_opened;
    mx_event_list   events;
    float          *input;            /* [width(0)] and the features before it               */
    int32_t        *due, n_due, due_room;
    uint8_t        *is_due;
    atomic_ullong   watermark;
};

mx_profile_net_info mx_profile_net_about(const mx_profile_net *p)
{
    return (mx_profile_net_info){p->folder, p->config.kind, p->config.task, p->config.layers, mx_gnn_width(&p->config, p->config.layers), p->text_dim, p->print};
}

uint64_t mx_profile_net_watermark(const mx_profile_net *p) { return atomic_load(&p->watermark); }
bool mx_profile_net_get(const mx_profile_net *p, int32_t user, float *to) { return mx_vectors_get(p->users, user, to); }
const mx_vectors *mx_profile_net_users(const mx_profile_net *p) { return p->users; }
const mx_vectors *mx_profile_net_items(const mx_profile_net *p) { return p->items; }
const int32_t *mx_profile_net_changed(const mx_profile_net *p, int32_t *n) { return mx_refresh_changed(p->refresh, n); }

/* ---- inputs ---------------------------------------------------------------------------------- */

static bool is_there(const mx_profile_net *p, int32_t node, int32_t *type)
{
    char key[MX_KEY_MOST + 1];
    return mx_user_graph_node(p->graph, node, type, key) && !(node < p->follower.nodes && p->follower.absent[node]);
}

/* Into p->input. */
static mx_status read_input(mx_profile_net *p, int32_t node, mx_error *err)
{
    int32_t type, F = p->config.features, width = mx_gnn_width(&p->config, 0);
    float *features = p->input + width;
    memset(p->input, 0, 4 * (size_t)(width + F));
    if (!is_there(p, node, &type)) return MX_OK;
    if (F && type == p->user) MX_TRY(mx_profile_input(p->graph, p->texts, p->text_dim, node, MX_TIME_ANY, &p->events, features, err));
    return mx_gnn_input(p->gnn, features, &node, 1, p->input, err);
}

static mx_status mark_due(mx_profile_net *p, int32_t node, mx_error *err)
{
    if (node >= p->due_room) {
        int32_t room = node + node / 2 + 64;
        int32_t *due = realloc(p->due, 4 * (size_t)room);
        if (due) p->due = due;
        uint8_t *is = realloc(p->is_due, (size_t)room);
        if (is) p->is_due = is;
        if (!due || !is) return mx_fail(err, MX_ERR_NO_MEMORY, "%d nodes", room);
        memset(is + p->due_room, 0, (size_t)(room - p->due_room));
        p->due_room = room;
    }
    if (p->is_due[node]) return MX_OK;
    p->is_due[node] = 1;
    p->due[p->n_due++] = node;
    return MX_OK;
}

/* ---- following ---------------------------------------------------------------------------------- */

/* New nodes have no words yet, but may have what a table learned: none, for they are new; zeros do. */
static mx_status add_nodes(mx_profile_net *p, int32_t upto, mx_error *err)
{
    int32_t node, width = mx_gnn_width(&p->config, 0);
    while (mx_live_graph_view(p->live)->nodes < upto) {
        memset(p->input, 0, 4 * (size_t)width);
        MX_TRY(mx_refresh_add_node(p->refresh, 0, p->input, &node, err));
    }
    return MX_OK;
}

static mx_status on_edge(void *ctx, int32_t type, int32_t subject, int32_t object, float weight, int64_t ts_ms, mx_error *err)
{
    mx_profile_net *p = ctx;
    int32_t in, out;
    (void)ts_ms;
    MX_TRY(add_nodes(p, (subject > object ? subject : object) + 1, err));
    if (!mx_profile_relation(type, p->relations, &in, &out)) return MX_OK;
    MX_TRY(mx_refresh_add_edge(p->refresh, in, object, subject, weight, err));
    return mx_refresh_add_edge(p->refresh, out, subject, object, weight, err);
}

static mx_status on_withdrawn(void *ctx, int32_t node, mx_error *err)
{
    mx_profile_net *p = ctx;
    MX_TRY(add_nodes(p, node + 1, err));
    return mx_refresh_erase(p->refresh, node, err);
}

static mx_status on_acted(void *ctx, int32_t subject, mx_error *err) { return mark_due(ctx, subject, err); }

static mx_status publish(mx_profile_net *p, int32_t node, mx_error *err)
{
    int32_t type;
    char key[MX_KEY_MOST + 1];
    bool known = mx_user_graph_node(p->graph, node, &type, key);
    mx_vectors *in = !known ? NULL : type == p->user ? p->users : type == p->item ? p->items : NULL;
    if (!known) mx_vectors_remove(p->users, node), mx_vectors_remove(p->items, node);
    return in ? mx_vectors_put(in, node, mx_refresh_embedding(p->refresh, node), err) : MX_OK;
}

static mx_status run(mx_profile_net *p, mx_refresh_stats *stats, mx_error *err)
{
    int32_t n;
    MX_TRY(mx_refresh_run(p->refresh, &p->stream, stats, err));
    const int32_t *changed = mx_refresh_changed(p->refresh, &n);
    for (int32_t i = 0; i < n; i++) MX_TRY(publish(p, changed[i], err));
    return MX_OK;
}

mx_status mx_profile_net_step(mx_profile_net *p, const int32_t *touched, int32_t n, uint64_t watermark, mx_refresh_stats *stats, mx_error *err)
{
    mx_status st = MX_OK;
    pthread_mutex_lock(&p->lock);
    for (int32_t i = 0; !st && i < n; i++) st = mark_due(p, touched[i], err);
    if (!st) st = mx_profile_follow(&p->follower, err);
    if (!st) st = add_nodes(p, mx_user_graph_nodes(p->graph), err);
    for (int32_t i = 0; !st && i < p->n_due; i++) {
        st = read_input(p, p->due[i], err);
        if (!st) st = mx_refresh_set_input(p->refresh, p->due[i], p->input, err);
    }
    for (int32_t i = 0; !st && i < p->n_due; i++) p->is_due[p->due[i]] = 0;
    if (!st) p->n_due = 0;
    if (!st) st = run(p, stats, err);
    if (!st) atomic_store(&p->watermark, watermark);
    pthread_mutex_unlock(&p->lock);
    return st;
}

/* ---- opening ---------------------------------------------------------------------------------------- */

static mx_status check(mx_profile_net *p, mx_error *err)
{
    const mx_gnn_config *c = &p->config;
    int32_t figures = mx_profile_inputs(0), dim = p->texts ? mx_text_store_dim(p->texts) : 0;
    p->text_dim = c->features ? c->features - figures : 0;
    if (c->features && p->text_dim < 0)
        return mx_fail(err, MX_ERR_ARG, "network: %s takes %d features; of a store of events there are %d and those of texts (merx train gnn --profiles)", p->folder, c->features, figures);
    if (p->text_dim && p->text_dim != dim)
        return mx_fail(err, MX_ERR_ARG, "network: %s takes texts' vectors of %d numbers; here they have %d", p->folder, p->text_dim, dim);
    if (p->text_dim && c->texts && c->texts != mx_text_store_print(p->texts)) return mx_fail(err, MX_ERR_ARG, "network: %s was made with another encoder of texts", p->folder);
    if (c->id_nodes && c->store && c->store != mx_user_graph_print(p->graph)) return mx_fail(err, MX_ERR_ARG, "network: the users and items of %s are another store's", p->folder);
    if (c->id_nodes > mx_user_graph_nodes(p->graph))
        return mx_fail(err, MX_ERR_ARG, "network: %s knows %d nodes by number, and the store has %d", p->folder, c->id_nodes, mx_user_graph_nodes(p->graph));
    return MX_OK;
}

/* Beside, then in place of what is there: a crash leaves the one or the other. */
static mx_status write_folder(const mx_profile_net *p, mx_error *err)
{
    static const char *const files[] = {"model.safetensors", "config.json"};
    char made[MX_PATH], from[MX_PATH], to[MX_PATH];
    MX_TRY(mx_path_join(made, p->folder, ".erasing", err));
    if (mkdir(made, 0777) && errno != EEXIST) return mx_fail(err, MX_ERR_IO, "%s: %s", made, strerror(errno));
    MX_TRY(mx_gnn_save(p->gnn, made, err));
    for (int i = 0; i < 2; i++) {
        MX_TRY(mx_path_join(from, made, files[i], err));
        MX_TRY(mx_path_join(to, p->folder, files[i], err));
        if (rename(from, to)) return mx_fail(err, MX_ERR_IO, "%s: %s", to, strerror(errno));
    }
    return rmdir(made) ? mx_fail(err, MX_ERR_IO, "%s: %s", made, strerror(errno)) : MX_OK;
}

/* Two may be of one folder, while one takes the other's place. */
static mx_status save(const mx_profile_net *p, mx_error *err)
{
    static pthread_mutex_t saving = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&saving);
    mx_status st = write_folder(p, err);
    pthread_mutex_unlock(&saving);
    return st;
}

static mx_status forget_erased(mx_profile_net *p, mx_error *err)
{
    int32_t type;
    char key[MX_KEY_MOST + 1];
    bool told = false;
    for (int32_t i = 0; i < p->config.id_nodes; i++)
        if (!mx_user_graph_node(p->graph, i, &type, key)) told |= mx_gnn_forget(p->gnn, i);
    return told ? save(p, err) : MX_OK;
}

static mx_status open_rows(mx_profile_net *p, mx_error *err)
{
    mx_graph_store base = {0};
    mx_refresh_net net = mx_refresh_net_of(p->gnn, BATCH);
    int32_t width = mx_gnn_width(&p->config, 0);
    MX_TRY(mx_profile_graph_build(&base, &p->follower, &(mx_profile_graph_options){.relations = p->relations, .until_ms = MX_TIME_ANY}, err));
    int32_t nodes = base.view.nodes;
    float *input = calloc((size_t)nodes * (size_t)width, sizeof *input);
    mx_status st = input ? mx_live_graph_open(&p->live, &base, err) : mx_fail(err, MX_ERR_NO_MEMORY, "inputs of %d nodes", nodes);
    mx_graph_close(&base);
    for (int32_t i = 0; !st && i < nodes; i++) {
        st = read_input(p, i, err);
        if (!st) memcpy(input + (size_t)i * (size_t)width, p->input, 4 * (size_t)width);
    }
    if (!st) st = mx_refresh_open(&p->refresh, p->live, &net, input, err);
    free(input);
    return st;
}

static mx_status open_parts(mx_profile_net *p, const char *folder, mx_device *dev, mx_error *err)
{
    p->folder = strdup(folder);
    if (!p->folder) return mx_fail(err, MX_ERR_NO_MEMORY, "a network");
    if (dev->kind != MX_CPU) return mx_fail(err, MX_ERR_ARG, "network: profiles' networks run on a CPU device");
    MX_TRY(mx_gnn_open(&p->gnn, dev, folder, err));
    p->config = *mx_gnn_config_of(p->gnn);
    p->print = mx_gnn_print(p->gnn);
    p->relations = p->config.kind == MX_GNN_RGCN ? p->config.relations : 1;
    p->user = mx_user_graph_find_node_type(p->graph, "user"), p->item = mx_user_graph_find_node_type(p->graph, "item");
    MX_TRY(check(p, err));
    MX_TRY(forget_erased(p, err));
    int32_t dim = mx_gnn_width(&p->config, p->config.layers);
    MX_TRY(mx_vectors_open(&p->users, dim, err));
    MX_TRY(mx_vectors_open(&p->items, dim, err));
    p->input = calloc((size_t)(mx_gnn_width(&p->config, 0) + p->config.features), sizeof *p->input);
    if (!p->input) return mx_fail(err, MX_ERR_NO_MEMORY, "a network");
    MX_TRY(mx_stream_open(&p->stream, dev, 0, err));
    p->stream_opened = true;
    uint64_t watermark = mx_user_graph_watermark(p->graph);
    MX_TRY(open_rows(p, err));
    p->follower.edge = on_edge, p->follower.withdrawn = on_withdrawn, p->follower.acted = on_acted, p->follower.ctx = p;
    MX_TRY(run(p, NULL, err));
    atomic_store(&p->watermark, watermark);
    return MX_OK;
}

mx_status mx_profile_net_open(mx_profile_net **out, const char *folder, mx_device *dev, const mx_user_graph *g, const mx_text_store *texts, mx_error *err)
{
    *out = NULL;
    mx_profile_net *p = calloc(1, sizeof *p);
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "a network");
    pthread_mutex_init(&p->lock, NULL);
    p->graph = p->follower.graph = g, p->texts = texts;
    mx_status st = open_parts(p, folder, dev, err);
    if (st) mx_profile_net_close(p);
    else *out = p;
    return st;
}

/* Rows of every layer, published vectors, and edges both ways with room to grow. */
mx_status mx_profile_net_footprint(const char *folder, const mx_user_graph *g, size_t *weights, size_t *rows, mx_error *err)
{
    enum { EDGE = 3 * (sizeof(int32_t) + sizeof(float)) };
    char path[MX_PATH];
    mx_gnn_config c;
    mx_user_graph_stats s;
    struct stat file;
    MX_TRY(mx_gnn_read_config(&c, folder, err));
    MX_TRY(mx_path_join(path, folder, "model.safetensors", err));
    if (stat(path, &file)) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    mx_user_graph_statistics(g, &s);
    size_t width = (size_t)mx_gnn_width(&c, c.layers);
    for (int32_t k = 0; k <= c.layers; k++) width += (size_t)mx_gnn_width(&c, k);
    *weights = (size_t)file.st_size;
    *rows = (size_t)s.nodes * width * sizeof(float) + (size_t)s.edges * EDGE;
    return MX_OK;
}

void mx_profile_net_close(mx_profile_net *p)
{
    if (!p) return;
    mx_refresh_close(p->refresh);
    mx_live_graph_close(p->live);
    mx_vectors_close(p->users), mx_vectors_close(p->items);
    if (p->stream_opened) mx_stream_close(&p->stream);
    mx_gnn_close(p->gnn);
    mx_profile_follower_close(&p->follower);
    mx_event_list_free(&p->events);
    pthread_mutex_destroy(&p->lock);
    free(p->due), free(p->is_due), free(p->input), free(p->folder);
    free(p);
}

mx_status mx_profile_net_erase(mx_profile_net *p, int32_t node, int64_t *rows, mx_error *err)
{
    mx_status st = MX_OK;
    pthread_mutex_lock(&p->lock);
    int32_t before = mx_vectors_count(p->users) + mx_vectors_count(p->items);
    if (node < mx_live_graph_view(p->live)->nodes) st = mx_refresh_erase(p->refresh, node, err);
    mx_vectors_remove(p->users, node), mx_vectors_remove(p->items, node);
    *rows += before - mx_vectors_count(p->users) - mx_vectors_count(p->items);
    if (!st && mx_gnn_forget(p->gnn, node)) st = save(p, err);
    pthread_mutex_unlock(&p->lock);
    return st;
}

/* ---- whom a vector comes from ---------------------------------------------------------------------------- */

typedef struct near { int32_t node; double weight; } near;

static int by_node(const void *x, const void *y)
{
    const near *a = x, *b = y;
    return (a->node > b->node) - (a->node < b->node);
}

static int weightier(const void *x, const void *y)
{
    const near *a = x, *b = y;
    if (a->weight != b->weight) return a->weight < b->weight ? 1 : -1;
    return by_node(x, y);
}

/* Each neighbour once, the weightiest first; -1: out of memory. */
static int32_t list_neighbours(const mx_profile_net *p, int32_t node, near **out)
{
    const mx_graph *g = mx_live_graph_view(p->live);
    int32_t n = 0, once = 0;
    near *l = malloc(sizeof *l * (size_t)(mx_graph_degree(g, node) + 1));
    *out = l;
    if (!l) return -1;
    for (int32_t r = 0; r < g->relations; r++) {
        mx_neighbours row = mx_graph_row(g, r, node);
        for (int32_t i = 0; i < row.n; i++)
            if (row.ids[i] != node) l[n++] = (near){row.ids[i], row.weight ? (double)row.weight[i] : 1};
    }
    if (n) qsort(l, (size_t)n, sizeof *l, by_node);
    for (int32_t i = 0; i < n; i++) {
        if (once && l[once - 1].node == l[i].node) l[once - 1].weight += l[i].weight;
        else l[once++] = l[i];
    }
    if (once) qsort(l, (size_t)once, sizeof *l, weightier);
    return once;
}

typedef struct taking {               /* rows that are zeros for a while                  */
    mx_profile_net *p;
    int32_t first, layers, node;      /* layers first .. layers - 1 take part             */
    float  *kept;                     /* [rows, their widths side by side]                */
    int32_t *who, n;
    size_t  width;
    float  *out;                      /* [dim]                                            */
} taking;

static void take_away(taking *t, int32_t node)
{
    float *to = t->kept + t->width * (size_t)t->n;
    t->who[t->n++] = node;
    for (int32_t k = t->first; k < t->layers; k++) {
        size_t w = (size_t)mx_gnn_width(&t->p->config, k);
        float *row = mx_refresh_rows(t->p->refresh, k) + (size_t)node * w;
        memcpy(to, row, 4 * w);
        memset(row, 0, 4 * w);
        to += w;
    }
}

static void put_back(taking *t)
{
    for (int32_t i = 0; i < t->n; i++) {
        const float *from = t->kept + t->width * (size_t)i;
        for (int32_t k = t->first; k < t->layers; k++) {
            size_t w = (size_t)mx_gnn_width(&t->p->config, k);
            memcpy(mx_refresh_rows(t->p->refresh, k) + (size_t)t->who[i] * w, from, 4 * w);
            from += w;
        }
    }
}

/* What the node's vector is with the rows as they are. */
static mx_status look(taking *t, float *to, mx_error *err)
{
    const mx_gnn_config *c = &t->p->config;
    bool mean = t->first == 0 && c->kind == MX_GNN_LIGHTGCN;
    size_t dim = (size_t)mx_gnn_width(c, c->layers);
    float share = mean ? 1 / (float)(c->layers + 1) : 1;
    const float *own = mx_refresh_rows(t->p->refresh, 0) + (size_t)t->node * dim;
    for (size_t i = 0; i < dim; i++) to[i] = mean ? share * own[i] : 0;
    for (int32_t k = t->first; k < t->layers; k++) {
        MX_TRY(mx_gnn_layer(t->p->gnn, mx_live_graph_view(t->p->live), k, mx_refresh_rows(t->p->refresh, k), &t->node, 1, t->out, err));
        for (size_t i = 0; i < dim; i++) to[i] = mean ? to[i] + share * t->out[i] : t->out[i];
    }
    return MX_OK;
}

static mx_status share_out(taking *t, const near *l, int32_t n, mx_net_parts *out, mx_error *err)
{
    size_t dim = (size_t)mx_gnn_width(&t->p->config, t->p->config.layers);
    float *before = out->own, *after = out->base;            /* until they are their own */
    MX_TRY(look(t, out->z, err));
    memcpy(before, out->z, 4 * dim);
    for (int32_t i = 0; i < n; out->n++) {
        bool rest = out->n == MX_NET_PARTS;
        out->node[out->n] = rest ? -1 : l[i].node;
        do take_away(t, l[i++].node);
        while (rest && i < n);
        MX_TRY(look(t, after, err));
        for (size_t c = 0; c < dim; c++) out->part[(size_t)out->n * dim + c] = before[c] - after[c];
        memcpy(before, after, 4 * dim);
    }
    take_away(t, t->node);
    MX_TRY(look(t, after, err));
    for (size_t c = 0; c < dim; c++) out->own[c] -= out->base[c];
    return MX_OK;
}

mx_status mx_profile_net_parts(mx_profile_net *p, int32_t node, mx_net_parts *out, mx_error *err)
{
    near *l = NULL;
    size_t dim = (size_t)mx_gnn_width(&p->config, p->config.layers);
    taking t = {.p = p, .first = p->config.kind == MX_GNN_LIGHTGCN ? 0 : p->config.layers - 1, .layers = p->config.layers, .node = node};
    *out = (mx_net_parts){0};
    pthread_mutex_lock(&p->lock);
    mx_status st = node >= 0 && node < mx_live_graph_view(p->live)->nodes ? MX_OK : mx_fail(err, MX_ERR_ARG, "network: no node %d", node);
    int32_t n = st ? 0 : list_neighbours(p, node, &l);
    for (int32_t k = t.first; k < t.layers; k++) t.width += (size_t)mx_gnn_width(&p->config, k);
    if (!st && n >= 0) {
        t.kept = malloc(4 * t.width * (size_t)(n + 1)), t.who = malloc(4 * (size_t)(n + 1)), t.out = malloc(4 * dim);
        out->part = malloc(4 * dim * (MX_NET_PARTS + 1)), out->own = malloc(4 * dim), out->base = malloc(4 * dim), out->z = malloc(4 * dim);
    }
    if (!st && (n < 0 || !t.kept || !t.who || !t.out || !out->part || !out->own || !out->base || !out->z)) st = mx_fail(err, MX_ERR_NO_MEMORY, "a vector's parts");
    if (!st) {
        st = share_out(&t, l, n, out, err);
        put_back(&t);
    }
    pthread_mutex_unlock(&p->lock);
    free(t.kept), free(t.who), free(t.out), free(l);
    if (st) mx_net_parts_free(out);
    return st;
}

void mx_net_parts_free(mx_net_parts *t)
{
    free(t->part), free(t->own), free(t->base), free(t->z);
    *t = (mx_net_parts){0};
}
