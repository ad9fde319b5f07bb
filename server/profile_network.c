/* profile_network.c - the graph network behind the answers: its thread, and what it and features are together. */
#include "server/profiles_internal.h"

#include "runtime/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AT_ONCE = 64 };                /* users whose profiles are made anew between two operations */

struct network_thread {
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  more;
    int32_t        *noted, n_noted, noted_room;
    uint64_t        upto;             /* events up to here are there to be taken in          */
    bool            work, moving, closing, runs;      /* moving: profiles are being made anew   */
};

typedef struct moved {
    mx_profiles_op op;
    mx_profiles   *p;
    int32_t        at, n, node[];
} moved;

/* ---- what moved ------------------------------------------------------------------------------ */

static mx_status touch_moved(mx_profiles *p, mx_profiles_op *op)
{
    moved *m = (moved *)op;
    for (int32_t i = 0; i < AT_ONCE && m->at < m->n; i++, m->at++)
        if (profile_subject(p, m->node[m->at])) MX_TRY(profile_touch(p, m->node[m->at], &op->err));
    return MX_OK;
}

/* The next some come behind what arrived meanwhile. */
static void moved_done(mx_profiles_op *op)
{
    moved *m = (moved *)op;
    struct network_thread *t = m->p->network;
    if (op->st) mx_log(MX_LOG_ERROR, "profiles", "%s", op->err.text);
    pthread_mutex_lock(&t->lock);
    bool over = op->st || m->at == m->n || t->closing;
    if (over) t->moving = false;
    if (over) pthread_cond_signal(&t->more);
    pthread_mutex_unlock(&t->lock);
    if (over) free(m);
    else m->op = (mx_profiles_op){.run = touch_moved, .done = moved_done}, mx_profiles_submit(m->p, &m->op);
}

static void send_moved(mx_profiles *p)
{
    struct network_thread *t = p->network;
    int32_t n, type;
    char key[MX_KEY_MOST + 1];
    const int32_t *changed = mx_profile_net_changed(p->net, &n);
    moved *m = n ? malloc(sizeof *m + (size_t)n * sizeof *m->node) : NULL;
    if (n && !m) mx_log(MX_LOG_ERROR, "profiles", "no memory to make profiles anew: they follow at their users' next events");
    if (!m) return;
    *m = (moved){.op = {.run = touch_moved, .done = moved_done}, .p = p};
    for (int32_t i = 0; i < n; i++)
        if (mx_user_graph_node(p->graph, changed[i], &type, key) && type == p->user) m->node[m->n++] = changed[i];
    pthread_mutex_lock(&t->lock);
    t->moving = m->n > 0;
    pthread_mutex_unlock(&t->lock);
    if (m->n) mx_profiles_submit(p, &m->op);
    else free(m);
}

/* ---- the thread ---------------------------------------------------------------------------------- */

static void *work(void *arg)
{
    mx_profiles *p = arg;
    struct network_thread *t = p->network;
    pthread_mutex_lock(&t->lock);
    for (;;) {
        while (!t->closing && (!t->work || t->moving)) pthread_cond_wait(&t->more, &t->lock);
        if (t->closing) break;
        int32_t *noted = t->noted, n = t->n_noted;
        uint64_t upto = t->upto;
        t->noted = NULL, t->n_noted = t->noted_room = 0;
        t->work = false;
        pthread_mutex_unlock(&t->lock);
        mx_error err = {0};
        if (mx_profile_net_step(p->net, noted, n, upto, NULL, &err)) mx_log(MX_LOG_ERROR, "profiles", "the network: %s", err.text);
        else send_moved(p);
        free(noted);
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

mx_status profile_note(mx_profiles *p, int32_t node, mx_error *err)
{
    struct network_thread *t = p->network;
    mx_status st = MX_OK;
    if (!t) return MX_OK;
    pthread_mutex_lock(&t->lock);
    if (t->n_noted == t->noted_room) {
        int32_t room = t->noted_room ? 2 * t->noted_room : 256, *grown = realloc(t->noted, (size_t)room * sizeof *grown);
        if (grown) t->noted = grown, t->noted_room = room;
        else st = mx_fail(err, MX_ERR_NO_MEMORY, "%d users", room);
    }
    if (!st) t->noted[t->n_noted++] = node;
    pthread_mutex_unlock(&t->lock);
    return st;
}

void profile_hand_over(mx_profiles *p, uint64_t upto)
{
    struct network_thread *t = p->network;
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    t->work |= t->n_noted || t->upto != upto;
    t->upto = upto;
    if (t->work) pthread_cond_signal(&t->more);
    pthread_mutex_unlock(&t->lock);
}

mx_status profile_open_network(mx_profiles *p, const char *folder, mx_error *err)
{
    if (!p->device) return mx_fail(err, MX_ERR_ARG, "network: there is no device to run it on");
    MX_TRY(mx_profile_net_open(&p->net, folder, p->device, p->graph, p->texts, err));
    mx_profile_net_info about = mx_profile_net_about(p->net);
    size_t n = strlen(folder);
    while (n && folder[n - 1] == '/') n--;
    size_t from = n;
    while (from && folder[from - 1] != '/') from--;
    if (from > 1 && !strncmp(folder + from, "checkpoint-", 11))      /* which says little without its run */
        for (from--; from && folder[from - 1] != '/';) from--;
    snprintf(p->net_name, sizeof p->net_name, "%.*s", (int)(n - from), folder + from);
    snprintf(p->net_print, sizeof p->net_print, "%016llx", (unsigned long long)about.print);
    p->net_dim = about.dim;
    if (!(p->story->z = calloc((size_t)p->net_dim, sizeof *p->story->z))) return mx_fail(err, MX_ERR_NO_MEMORY, "a network's vector");
    p->network = calloc(1, sizeof *p->network);
    if (!p->network) return mx_fail(err, MX_ERR_NO_MEMORY, "the network's thread");
    pthread_mutex_init(&p->network->lock, NULL);
    pthread_cond_init(&p->network->more, NULL);
    p->network->upto = mx_profile_net_watermark(p->net);
    if (pthread_create(&p->network->thread, NULL, work, p)) return mx_fail(err, MX_ERR_NO_MEMORY, "the network's thread");
    p->network->runs = true;
    return MX_OK;
}

void profile_stop_network(mx_profiles *p)
{
    struct network_thread *t = p->network;
    if (!t || !t->runs) return;
    pthread_mutex_lock(&t->lock);
    t->closing = true;
    pthread_cond_signal(&t->more);
    pthread_mutex_unlock(&t->lock);
    pthread_join(t->thread, NULL);
    t->runs = false;
}

void profile_close_network(mx_profiles *p)
{
    struct network_thread *t = p->network;
    if (t) {
        pthread_mutex_destroy(&t->lock), pthread_cond_destroy(&t->more);
        free(t->noted);
        free(t);
    }
    p->network = NULL;
    mx_profile_net_close(p->net);
    p->net = NULL;
}

/* ---- features, words and network together --------------------------------------------------------------- */

mx_status profile_fuse(mx_profiles *p, int32_t node, const subject *s, mx_error *err)
{
    int32_t d = MX_FEATURES + p->dim + p->net_dim;
    if (!p->fused) return MX_OK;
    float *x = calloc((size_t)d, sizeof *x);
    if (!x) return mx_fail(err, MX_ERR_NO_MEMORY, "a vector");
    float *z = x + MX_FEATURES + p->dim;
    for (int32_t f = 0; f < MX_FEATURES; f++) x[f] = FEATURE_SCALE * (s->feature[f] - (float)p->prior.mean[f]);
    for (int32_t c = 0; s->text && c < p->dim; c++) x[MX_FEATURES + c] = TEXT_PART * s->text[c];
    if (p->net && mx_profile_net_get(p->net, node, z)) {
        double square = 0;
        for (int32_t c = 0; c < p->net_dim; c++) square += (double)z[c] * (double)z[c];
        for (int32_t c = 0; c < p->net_dim; c++) z[c] = square > 0 ? (float)((double)NET_PART * (double)z[c] / sqrt(square)) : 0;
    }
    mx_status st = mx_vectors_put(p->fused, node, x, err);
    free(x);
    return st;
}

static bool copy_floats(mx_arena *a, const float *x, int32_t n, float by, float **out, size_t *count)
{
    float *to = mx_arena_array(a, (size_t)n + 1, sizeof *to);
    if (!to) return false;
    for (int32_t i = 0; i < n; i++) to[i] = x[i] * by;
    *out = to;
    *count = (size_t)n;
    return true;
}

static bool write_embedding(mx_profiles *p, int32_t node, mx_arena *a, Merx__V1__Profile *out)
{
    int32_t d = MX_FEATURES + p->dim + p->net_dim;
    Merx__V1__ProfileEmbedding *e = mx_arena_array(a, 1, sizeof *e);
    float *x = mx_arena_array(a, (size_t)d + (size_t)p->net_dim + 1, sizeof *x);
    if (!e || !x) return false;
    float *z = x + d;
    if (!p->fused || node < 0 || !mx_vectors_get(p->fused, node, x)) return true;
    merx__v1__profile_embedding__init(e);
    out->embedding = e;
    bool there = p->net && mx_profile_net_get(p->net, node, z);
    return copy_floats(a, x, d, 1, &e->fused, &e->n_fused) && copy_floats(a, x + MX_FEATURES, p->dim, 1 / TEXT_PART, &e->text, &e->n_text) &&
           copy_floats(a, z, there ? p->net_dim : 0, 1, &e->graph, &e->n_graph);
}

bool mx_profiles_now(mx_profiles *p, const char *user, bool embedding, mx_arena *a, Merx__V1__Profile *out)
{
    merx__v1__profile__init(out);
    if (p->net && !(out->network = profile_network_state(p, a))) return false;
    return !embedding || write_embedding(p, mx_user_graph_find(p->graph, p->user, user), a, out);
}

Merx__V1__NetworkState *profile_network_state(mx_profiles *p, mx_arena *a)
{
    Merx__V1__NetworkState *n = mx_arena_array(a, 1, sizeof *n);
    if (!n) return NULL;
    merx__v1__network_state__init(n);
    n->name = p->net_name;
    n->kind = (char *)(uintptr_t)mx_gnn_kind_name(mx_profile_net_about(p->net).kind);
    n->watermark = mx_profile_net_watermark(p->net);
    return n;
}

/* ---- what the network said when users' histories were half as long ---------------------------------------- */

static mx_status find_halves(mx_profiles *p, int64_t *until, int32_t nodes, mx_error *err)
{
    mx_event_list l = {0};
    mx_status st = MX_OK;
    for (int32_t i = 0; !st && i < nodes; i++) {
        until[i] = MX_TIME_ANY;
        st = mx_user_graph_events(p->graph, i, MX_TIME_ANY, EVENTS, &l, err);
        if (st || l.count < 2) continue;
        int32_t half = l.count / 2;                           /* newest first */
        int64_t later = l.event[half - 1].ts_ms, earlier = l.event[half].ts_ms;
        until[i] = earlier < later ? earlier : later - 1;
    }
    mx_event_list_free(&l);
    return st;
}

static mx_status infer_earlier(mx_profiles *p, mx_gnn *m, const int64_t *until, int32_t n_until, float **z, int32_t *nodes, mx_error *err)
{
    const mx_gnn_config *c = mx_gnn_config_of(m);
    mx_profile_follower f = {.graph = p->graph};
    mx_graph_store g = {0};
    mx_event_list l = {0};
    size_t F = (size_t)c->features;
    mx_profile_graph_options o = {.relations = c->kind == MX_GNN_RGCN ? c->relations : 1, .until_ms = MX_TIME_ANY, .until = until, .n_until = n_until};
    mx_status st = mx_profile_graph_build(&g, &f, &o, err);
    float *features = st ? NULL : calloc((size_t)g.view.nodes * F + 1, sizeof *features);
    *nodes = g.view.nodes;
    *z = features ? malloc((size_t)g.view.nodes * (size_t)p->net_dim * sizeof **z) : NULL;
    if (!st && !*z) st = mx_fail(err, MX_ERR_NO_MEMORY, "vectors of %d nodes", g.view.nodes);
    for (int32_t i = 0; !st && i < g.view.nodes; i++) {
        if (g.type[i] == 255 || f.absent[i]) mx_gnn_forget(m, i);
        else if (F && g.type[i] == p->user && i < n_until)
            st = mx_profile_input(p->graph, p->texts, mx_profile_net_about(p->net).text_dim, i, until[i], &l, features + (size_t)i * F, err);
    }
    if (!st) st = mx_gnn_infer(m, &g.view, features, *z, NULL, NULL, err);
    mx_event_list_free(&l);
    mx_profile_follower_close(&f);
    mx_graph_close(&g);
    free(features);
    if (st) free(*z), *z = NULL;
    return st;
}

mx_status profile_earlier(mx_profiles *p, float **z, int32_t *n, mx_error *err)
{
    int32_t nodes = mx_user_graph_nodes(p->graph);
    mx_gnn *m = NULL;
    int64_t *until = malloc((size_t)nodes * sizeof *until + 1);
    mx_status st = until ? mx_gnn_open(&m, p->device, mx_profile_net_about(p->net).folder, err) : mx_fail(err, MX_ERR_NO_MEMORY, "%d users", nodes);
    if (!st) st = find_halves(p, until, nodes, err);
    if (!st) st = infer_earlier(p, m, until, nodes, z, n, err);
    mx_gnn_close(m);
    free(until);
    return st;
}
