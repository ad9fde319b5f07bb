/* profile_network.c - the graph network behind the answers: its thread, and what it and features are together. */
#include "server/profiles_internal.h"

#include "runtime/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { AT_ONCE = 64 };                /* users whose profiles are made anew between two operations */

typedef struct moved {
    mx_profiles_op op;
    space         *of;
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
    space *s = m->of;
    mx_profiles *p = s->p;
    if (op->st) mx_log(MX_LOG_ERROR, "profiles", "%s", op->err.text);
    pthread_mutex_lock(&s->lock);
    bool over = op->st || m->at == m->n || s->closing;
    if (over) s->moving = false;
    if (over) pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);                          /* if it is over the space may be gone */
    if (over) free(m);
    else m->op = (mx_profiles_op){.run = touch_moved, .done = moved_done}, mx_profiles_submit(p, &m->op);
}

static void send_moved(space *s)
{
    mx_profiles *p = s->p;
    int32_t n, type;
    char key[MX_KEY_MOST + 1];
    const int32_t *changed = mx_profile_net_changed(s->net, &n);
    moved *m = n ? malloc(sizeof *m + (size_t)n * sizeof *m->node) : NULL;
    if (n && !m) mx_log(MX_LOG_ERROR, "profiles", "no memory to make profiles anew: they follow at their users' next events");
    if (!m) return;
    *m = (moved){.op = {.run = touch_moved, .done = moved_done}, .of = s};
    for (int32_t i = 0; i < n; i++)
        if (mx_user_graph_node(p->graph, changed[i], &type, key) && type == p->user) m->node[m->n++] = changed[i];
    pthread_mutex_lock(&s->lock);
    s->moving = m->n > 0;
    pthread_mutex_unlock(&s->lock);
    if (m->n) mx_profiles_submit(p, &m->op);
    else free(m);
}

/* ---- the thread ---------------------------------------------------------------------------------- */

static void *work(void *arg)
{
    space *s = arg;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->closing && (!s->work || s->moving)) pthread_cond_wait(&s->news, &s->lock);
        if (s->closing) break;
        int32_t *noted = s->noted, n = s->n_noted;
        uint64_t upto = s->upto;
        s->noted = NULL, s->n_noted = s->noted_room = 0;
        s->work = false;
        s->stepping = true;
        bool current = s->current;
        pthread_mutex_unlock(&s->lock);
        mx_error err = {0};
        if (mx_profile_net_step(s->net, noted, n, upto, NULL, &err)) mx_log(MX_LOG_ERROR, "profiles", "the network: %s", err.text);
        else if (current) send_moved(s);
        free(noted);
        pthread_mutex_lock(&s->lock);
        if (err.code) s->err = err;
        s->stepping = false;
        pthread_cond_broadcast(&s->news);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static mx_status append(int32_t **list, int32_t *n, int32_t *room, int32_t node, mx_error *err)
{
    if (*n == *room) {
        int32_t more = *room ? 2 * *room : 256, *grown = realloc(*list, (size_t)more * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%d users", more);
        *list = grown, *room = more;
    }
    (*list)[(*n)++] = node;
    return MX_OK;
}

mx_status profile_note(mx_profiles *p, int32_t node, mx_error *err)
{
    space *both[] = {p->space, p->arriving};
    mx_status st = MX_OK;
    for (int i = 0; i < 2 && !st; i++) {
        space *s = both[i];
        if (!s || !(s->net || s == p->arriving)) continue;
        pthread_mutex_lock(&s->lock);
        st = append(&s->noted, &s->n_noted, &s->noted_room, node, err);
        pthread_mutex_unlock(&s->lock);
    }
    return st;
}

static void hand_over(space *s, uint64_t upto)
{
    if (!s || !s->net) return;
    pthread_mutex_lock(&s->lock);
    s->work |= s->n_noted || s->upto != upto;
    s->upto = upto;
    if (s->work) pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);
}

void profile_hand_over(mx_profiles *p, uint64_t upto)
{
    hand_over(p->space, upto);
    hand_over(p->arriving, upto);
}

void profile_wait_idle(space *s, uint64_t upto)
{
    pthread_mutex_lock(&s->lock);
    while (s->runs && !s->closing && (s->work || s->stepping) && mx_profile_net_watermark(s->net) < upto) pthread_cond_wait(&s->news, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

/* ---- spaces ------------------------------------------------------------------------------------------ */

static void name_it(space *s, const char *name, const char *folder)
{
    size_t n = strlen(folder);
    while (n && folder[n - 1] == '/') n--;
    size_t from = n;
    while (from && folder[from - 1] != '/') from--;
    if (from > 1 && !strncmp(folder + from, "checkpoint-", 11))      /* which says little without its run */
        for (from--; from && folder[from - 1] != '/';) from--;
    snprintf(s->name, sizeof s->name, "%.*s", name ? (int)strlen(name) : (int)strcspn(folder + from, "/"), name ? name : folder + from);
}

mx_status profile_make_space(mx_profiles *p, const char *name, int32_t version, const char *folder, space **out, mx_error *err)
{
    static atomic_ullong serial;
    space *s = *out = calloc(1, sizeof *s);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "an index of users");
    s->p = p;
    s->version = version;
    s->serial = atomic_fetch_add(&serial, 1) + 1;
    pthread_mutex_init(&s->lock, NULL), pthread_cond_init(&s->news, NULL);
    if (folder) name_it(s, name, folder);
    return MX_OK;
}

mx_status profile_open_parts(mx_profiles *p, const char *folder, space_parts *out, mx_error *err)
{
    int32_t dim = MX_FEATURES + p->dim;
    *out = (space_parts){0};
    if (folder) {
        if (!p->device) return mx_fail(err, MX_ERR_ARG, "network: there is no device to run it on");
        MX_TRY(mx_profile_net_open(&out->net, folder, p->device, p->graph, p->texts, err));
        dim += mx_profile_net_about(out->net).dim;
    }
    mx_status st = p->device ? mx_vectors_open(&out->fused, dim, err) : MX_OK;
    if (st) profile_close_parts(out);
    return st;
}

void profile_close_parts(space_parts *t)
{
    mx_profile_net_close(t->net);
    mx_vectors_close(t->fused);
    *t = (space_parts){0};
}

mx_status profile_start_space(space *s, space_parts *parts, mx_error *err)
{
    mx_profile_net *net = s->net = parts->net;
    s->fused = parts->fused;
    *parts = (space_parts){0};
    if (!net) return MX_OK;
    mx_profile_net_info about = mx_profile_net_about(net);
    s->dim = about.dim;
    snprintf(s->print, sizeof s->print, "%016llx", (unsigned long long)about.print);
    s->upto = mx_profile_net_watermark(net);
    int64_t rows = 0;
    for (int32_t i = 0; i < s->n_gone; i++) MX_TRY(mx_profile_net_erase(net, s->gone[i], &rows, err));
    s->work = s->n_noted > 0;
    if (pthread_create(&s->thread, NULL, work, s)) return mx_fail(err, MX_ERR_NO_MEMORY, "the network's thread");
    s->runs = true;
    return MX_OK;
}

void profile_take_space(mx_profiles *p, space *s, float *z)
{
    free(p->story->z);
    p->story->z = z;
    pthread_mutex_lock(&s->lock);
    s->current = true;
    pthread_mutex_unlock(&s->lock);
    for (int i = 0; i < DOORS; i++) pthread_mutex_lock(&p->door[i]);
    p->space = s;
    for (int i = DOORS; i-- > 0;) pthread_mutex_unlock(&p->door[i]);
}

void profile_stop_space(space *s)
{
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->closing = true;
    pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);
    if (s->runs) pthread_join(s->thread, NULL);
    s->runs = false;
}

void profile_close_space(space *s)
{
    if (!s) return;
    profile_stop_space(s);
    pthread_mutex_lock(&s->lock);
    while (s->refs || s->moving) pthread_cond_wait(&s->news, &s->lock);
    pthread_mutex_unlock(&s->lock);
    mx_profile_net_close(s->net);
    mx_vectors_close(s->fused);
    pthread_mutex_destroy(&s->lock), pthread_cond_destroy(&s->news);
    free(s->noted), free(s->gone);
    free(s);
}

/* Behind a door. */
static space *hold(space *s)
{
    pthread_mutex_lock(&s->lock);
    s->refs++;
    pthread_mutex_unlock(&s->lock);
    return s;
}

space *profile_hold_space(mx_profiles *p)
{
    pthread_mutex_lock(&p->door[0]);
    space *s = hold(p->space);
    pthread_mutex_unlock(&p->door[0]);
    return s;
}

void profile_release_space(space *s)
{
    pthread_mutex_lock(&s->lock);
    if (!--s->refs) pthread_cond_broadcast(&s->news);
    pthread_mutex_unlock(&s->lock);
}

/* ---- features, words and network together --------------------------------------------------------------- */

mx_status profile_fuse_into(space *in, int32_t node, const subject *s, mx_error *err)
{
    const mx_profiles *p = in->p;
    int32_t d = MX_FEATURES + p->dim + in->dim;
    if (!in->fused) return MX_OK;
    float *x = calloc((size_t)d, sizeof *x);
    if (!x) return mx_fail(err, MX_ERR_NO_MEMORY, "a vector");
    float *z = x + MX_FEATURES + p->dim;
    for (int32_t f = 0; f < MX_FEATURES; f++) x[f] = FEATURE_SCALE * (s->feature[f] - (float)p->prior.mean[f]);
    for (int32_t c = 0; s->text && c < p->dim; c++) x[MX_FEATURES + c] = TEXT_PART * s->text[c];
    if (in->net && mx_profile_net_get(in->net, node, z)) {
        double square = 0;
        for (int32_t c = 0; c < in->dim; c++) square += (double)z[c] * (double)z[c];
        for (int32_t c = 0; c < in->dim; c++) z[c] = square > 0 ? (float)((double)NET_PART * (double)z[c] / sqrt(square)) : 0;
    }
    mx_status st = mx_vectors_put(in->fused, node, x, err);
    free(x);
    return st;
}

mx_status profile_fuse(mx_profiles *p, int32_t node, const subject *s, mx_error *err)
{
    MX_TRY(profile_fuse_into(p->space, node, s, err));
    return p->arriving ? profile_fuse_into(p->arriving, node, s, err) : MX_OK;
}

void profile_unfuse(mx_profiles *p, int32_t node)
{
    space *both[] = {p->space, p->arriving};
    for (int i = 0; i < 2; i++)
        if (both[i] && both[i]->fused) mx_vectors_remove(both[i]->fused, node);
}

/* One that is on its way forgets, too: what it cannot is why it does not come. */
mx_status profile_erase_vectors(mx_profiles *p, int32_t node, int64_t *vectors, mx_error *err)
{
    space *s = p->space, *next = p->arriving;
    int64_t none = 0;
    int32_t before = s->fused ? mx_vectors_count(s->fused) : 0;
    mx_error why = {0};
    profile_unfuse(p, node);
    if (s->fused) *vectors += before - mx_vectors_count(s->fused);
    if (next && next->net) mx_profile_net_erase(next->net, node, &none, &why);
    else if (next) append(&next->gone, &next->n_gone, &next->gone_room, node, &why);
    if (why.code) {
        pthread_mutex_lock(&next->lock);
        next->err = why;
        pthread_mutex_unlock(&next->lock);
    }
    return s->net ? mx_profile_net_erase(s->net, node, vectors, err) : MX_OK;
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

static bool write_embedding(const mx_profiles *p, const space *s, int32_t node, mx_arena *a, Merx__V1__Profile *out)
{
    int32_t d = MX_FEATURES + p->dim + s->dim;
    Merx__V1__ProfileEmbedding *e = mx_arena_array(a, 1, sizeof *e);
    float *x = mx_arena_array(a, (size_t)d + (size_t)s->dim + 1, sizeof *x);
    if (!e || !x) return false;
    float *z = x + d;
    if (!s->fused || !mx_vectors_get(s->fused, node, x)) return true;
    merx__v1__profile_embedding__init(e);
    out->embedding = e;
    bool there = s->net && mx_profile_net_get(s->net, node, z);
    return copy_floats(a, x, d, 1, &e->fused, &e->n_fused) && copy_floats(a, x + MX_FEATURES, p->dim, 1 / TEXT_PART, &e->text, &e->n_text) &&
           copy_floats(a, z, there ? s->dim : 0, 1, &e->graph, &e->n_graph);
}

bool mx_profiles_now(mx_profiles *p, const mx_profile_view *v, bool embedding, mx_arena *a, Merx__V1__Profile *out)
{
    int32_t node = ((const snapshot *)(const void *)v)->node;
    merx__v1__profile__init(out);
    pthread_mutex_lock(&p->door[node % DOORS]);
    space *s = p->space;
    bool ok = !s->net || (out->network = profile_network_state(s, a));
    if (embedding) hold(s);
    pthread_mutex_unlock(&p->door[node % DOORS]);
    if (!embedding) return ok;
    ok = ok && write_embedding(p, s, node, a, out);
    profile_release_space(s);
    return ok;
}

Merx__V1__NetworkState *profile_network_state(const space *s, mx_arena *a)
{
    Merx__V1__NetworkState *n = mx_arena_array(a, 1, sizeof *n);
    char *name = mx_arena_alloc(a, sizeof s->name);
    if (!n || !name) return NULL;
    merx__v1__network_state__init(n);
    n->name = memcpy(name, s->name, sizeof s->name);         /* another may be current when this is sent */
    n->version = s->version;
    n->kind = (char *)(uintptr_t)mx_gnn_kind_name(mx_profile_net_about(s->net).kind);
    n->watermark = mx_profile_net_watermark(s->net);
    return n;
}

/* ---- what the network said when users' histories were half as long ---------------------------------------- */

static mx_status find_halves(const mx_profiles *p, int64_t *until, int32_t nodes, mx_error *err)
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

static mx_status infer_earlier(const space *s, mx_gnn *m, const int64_t *until, int32_t n_until, float **z, int32_t *nodes, mx_error *err)
{
    const mx_profiles *p = s->p;
    const mx_gnn_config *c = mx_gnn_config_of(m);
    mx_profile_follower f = {.graph = p->graph};
    mx_graph_store g = {0};
    mx_event_list l = {0};
    size_t F = (size_t)c->features;
    mx_profile_graph_options o = {.relations = c->kind == MX_GNN_RGCN ? c->relations : 1, .until_ms = MX_TIME_ANY, .until = until, .n_until = n_until};
    mx_status st = mx_profile_graph_build(&g, &f, &o, err);
    float *features = st ? NULL : calloc((size_t)g.view.nodes * F + 1, sizeof *features);
    *nodes = g.view.nodes;
    *z = features ? malloc((size_t)g.view.nodes * (size_t)s->dim * sizeof **z) : NULL;
    if (!st && !*z) st = mx_fail(err, MX_ERR_NO_MEMORY, "vectors of %d nodes", g.view.nodes);
    for (int32_t i = 0; !st && i < g.view.nodes; i++) {
        if (g.type[i] == 255 || f.absent[i]) mx_gnn_forget(m, i);
        else if (F && g.type[i] == p->user && i < n_until)
            st = mx_profile_input(p->graph, p->texts, mx_profile_net_about(s->net).text_dim, i, until[i], &l, features + (size_t)i * F, err);
    }
    if (!st) st = mx_gnn_infer(m, &g.view, features, *z, NULL, NULL, err);
    mx_event_list_free(&l);
    mx_profile_follower_close(&f);
    mx_graph_close(&g);
    free(features);
    if (st) free(*z), *z = NULL;
    return st;
}

mx_status profile_earlier(const space *s, float **z, int32_t *n, mx_error *err)
{
    const mx_profiles *p = s->p;
    int32_t nodes = mx_user_graph_nodes(p->graph);
    mx_gnn *m = NULL;
    int64_t *until = malloc((size_t)nodes * sizeof *until + 1);
    mx_status st = until ? mx_gnn_open(&m, p->device, mx_profile_net_about(s->net).folder, err) : mx_fail(err, MX_ERR_NO_MEMORY, "%d users", nodes);
    if (!st) st = find_halves(p, until, nodes, err);
    if (!st) st = infer_earlier(s, m, until, nodes, z, n, err);
    mx_gnn_close(m);
    free(until);
    return st;
}
