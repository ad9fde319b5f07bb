/* profile_recommend.c - items for a user: by the network's vectors, by who has the same, or by what most have. */
#include "server/profiles_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- recommending: three steps in the graph of users and items ----------------------------------- */

/* score(i) = the sum over the user's items j and their users v of 1 / (sqrt(d_u d_j) sqrt(d_j d_v) sqrt(d_v d_i)),
 * d counting distinct neighbours among those that are looked at: LightGCN's propagation (He et al. 2020) from one-hot
 * embeddings, so each own item's part of a score is exact. */
enum { OWN_ITEMS = 64, ITEM_USERS = 128, USER_ITEMS = 64, REASONS = 3 };

/* What is asked for, and what the user has. */
typedef struct chosen {
    int32_t count, n_own, n_sorted;
    int32_t own[OWN_ITEMS];           /* the newest                                       */
    int32_t *sorted;                  /* all, by number                                   */
    bool    seen;                     /* its own count too                                */
} chosen;

static bool is_own(const chosen *c, int32_t item)
{
    int32_t low = 0, high = c->n_sorted;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (c->sorted[middle] < item) low = middle + 1;
        else high = middle;
    }
    return !c->seen && low < c->n_sorted && c->sorted[low] == item;
}

typedef struct walk {
    mx_profiles  *p;
    int32_t       item;               /* type of items                                    */
    mx_user_edges  edges;
} walk;

/* The distinct neighbours of a type, newest first; -1: out of memory. */
static int32_t neighbours(walk *w, int32_t node, mx_direction d, int32_t type, int32_t most, int32_t *out, mx_error *err)
{
    int32_t n = 0;
    if (mx_user_graph_edges(w->p->graph, node, d, MX_TIME_ANY, &w->edges, err)) return -1;
    for (int64_t i = w->edges.count - 1; i >= 0 && n < most; i--) {
        const mx_user_edge *e = &w->edges.edge[i];
        mx_event_type t;
        if (!mx_user_graph_event_type(w->p->graph, e->type, &t) || (d == MX_EDGES_OUT ? t.object : t.subject) != type) continue;
        if (!profile_among(out, (size_t)n, e->other)) out[n++] = e->other;
    }
    return n;
}

/* Sums by item in a table with open addressing. */
typedef struct tally { int32_t node; double score, part[OWN_ITEMS]; } tally;
typedef struct table { tally **slot; uint32_t room, n; } table;

static tally *entry(table *t, int32_t node)
{
    if (4 * (t->n + 1) > 3 * t->room) {
        uint32_t room = t->room ? 2 * t->room : 1024;
        tally **slot = calloc(room, sizeof *slot);
        if (!slot) return NULL;
        for (uint32_t i = 0; i < t->room; i++) {
            if (!t->slot[i]) continue;
            uint32_t at = (uint32_t)t->slot[i]->node * 2654435761u % room;
            while (slot[at]) at = (at + 1) % room;
            slot[at] = t->slot[i];
        }
        free(t->slot);
        t->slot = slot, t->room = room;
    }
    uint32_t at = (uint32_t)node * 2654435761u % t->room;
    while (t->slot[at] && t->slot[at]->node != node) at = (at + 1) % t->room;
    if (t->slot[at]) return t->slot[at];
    tally *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return NULL;
    fresh->node = node;
    t->n++;
    return t->slot[at] = fresh;
}

static mx_status spread(walk *w, int32_t user, const int32_t *own, int32_t n_own, table *t, mx_error *err)
{
    int32_t users[ITEM_USERS], items[USER_ITEMS];
    for (int32_t j = 0; j < n_own; j++) {
        int32_t n_users = neighbours(w, own[j], MX_EDGES_IN, w->p->user, ITEM_USERS, users, err);
        if (n_users < 0) return err->code;
        for (int32_t v = 0; v < n_users; v++) {
            if (users[v] == user) continue;
            int32_t n_items = neighbours(w, users[v], MX_EDGES_OUT, w->item, USER_ITEMS, items, err);
            if (n_items < 0) return err->code;
            double part = 1 / (sqrt((double)n_own) * n_users * n_items);
            for (int32_t i = 0; i < n_items; i++) {
                tally *e = entry(t, items[i]);
                if (!e) return mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
                e->part[j] += part;
            }
        }
    }
    return MX_OK;
}

static int better(const void *x, const void *y)
{
    const tally *a = *(tally *const *)x, *b = *(tally *const *)y;
    if (a->score != b->score) return a->score < b->score ? 1 : -1;
    return (a->node > b->node) - (a->node < b->node);
}

static char *key_of(mx_profiles *p, int32_t node, mx_arena *a)
{
    char *key = mx_arena_alloc(a, MX_KEY_MOST + 1);
    int32_t type;
    return key && mx_user_graph_node(p->graph, node, &type, key) ? key : NULL;
}

static bool write_item(mx_profiles *p, const tally *t, const int32_t *own, int32_t n_own, mx_arena *a, Merx__V1__Recommendation *r)
{
    Merx__V1__Evidence *e = mx_arena_array(a, REASONS, sizeof *e);
    merx__v1__recommendation__init(r);
    r->reasons = mx_arena_array(a, REASONS, sizeof *r->reasons);
    r->item = key_of(p, t->node, a);
    if (!e || !r->reasons || !r->item) return false;
    r->score = t->score;
    bool told[OWN_ITEMS] = {false};
    for (int k = 0; k < REASONS; k++) {
        int32_t best = -1;
        for (int32_t j = 0; j < n_own; j++)
            if (!told[j] && t->part[j] > 0 && (best < 0 || t->part[j] > t->part[best])) best = j;
        if (best < 0) break;
        told[best] = true;
        merx__v1__evidence__init(&e[k]);
        e[k].kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR;
        e[k].weight = t->part[best];
        e[k].ref = key_of(p, own[best], a);
        if (!e[k].ref) return false;
        e[k].text = mx_arena_alloc(a, MX_KEY_MOST + 40);
        if (!e[k].text) return false;
        snprintf(e[k].text, MX_KEY_MOST + 40, "users who have %s have it too", e[k].ref);
        r->reasons[r->n_reasons++] = &e[k];
    }
    return true;
}

/* by score; those of the user itself only when they are asked for */
static int32_t rank(table *t, const chosen *c)
{
    int32_t n = 0;
    for (uint32_t i = 0; i < t->room; i++) {
        tally *e = t->slot[i];
        t->slot[i] = NULL;
        if (!e) continue;
        for (int32_t j = 0; j < c->n_own; j++) e->score += e->part[j];
        if (is_own(c, e->node)) free(e);
        else t->slot[n++] = e;
    }
    if (n) qsort(t->slot, (size_t)n, sizeof(tally *), better);
    return n;
}

/* By who has the same items; *n stays 0 when nobody has. */
static mx_status by_neighbours(mx_profiles *p, walk *w, int32_t user, const chosen *c, mx_arena *a, Merx__V1__RecommendResponse *out, mx_error *err)
{
    table t = {0};
    int32_t n_own = c->n_own < OWN_ITEMS ? c->n_own : OWN_ITEMS, n = 0;
    mx_status st = spread(w, user, c->own, n_own, &t, err);
    if (!st) n = rank(&t, c);
    if (!st && n) {
        size_t shown = (size_t)(n < c->count ? n : c->count);
        Merx__V1__Recommendation *r = mx_arena_array(a, shown, sizeof *r);
        out->items = mx_arena_array(a, shown, sizeof *out->items);
        for (size_t i = 0; !st && i < shown; i++) {
            if (!r || !out->items || !write_item(p, t.slot[i], c->own, n_own, a, &r[i])) st = mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
            else out->items[out->n_items++] = &r[i];
        }
        out->method = (char *)(uintptr_t)"neighbours";
    }
    for (uint32_t i = 0; i < t.room; i++) free(t.slot[i]);
    free(t.slot);
    return st;
}

/* ---- by the network ----------------------------------------------------------------------------------- */

static bool admitted(void *ctx, int32_t item) { return !is_own(ctx, item); }

static bool write_reason(mx_profiles *p, int32_t node, double weight, mx_arena *a, Merx__V1__Evidence *e)
{
    int32_t type;
    merx__v1__evidence__init(e);
    e->kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR;
    e->weight = weight;
    e->ref = key_of(p, node, a);
    e->text = mx_arena_alloc(a, MX_KEY_MOST + 40);
    char key[MX_KEY_MOST + 1];
    if (!e->ref || !e->text || !mx_user_graph_node(p->graph, node, &type, key)) return false;
    snprintf(e->text, MX_KEY_MOST + 40, type == p->user ? "follows %s" : "has %s", e->ref);
    return true;
}

/* The neighbours of the user whose parts of its vector point to the item most. */
static bool write_reasons(mx_profiles *p, const space *in, const mx_net_parts *t, const float *z, mx_arena *a, Merx__V1__Recommendation *r)
{
    double part[MX_NET_PARTS + 1];
    bool told[MX_NET_PARTS + 1] = {false};
    Merx__V1__Evidence *e = mx_arena_array(a, REASONS, sizeof *e);
    r->reasons = mx_arena_array(a, REASONS, sizeof *r->reasons);
    if (!e || !r->reasons) return false;
    for (int32_t i = 0; i < t->n; i++) {
        part[i] = 0;
        for (int32_t c = 0; c < in->dim; c++) part[i] += (double)t->part[i * in->dim + c] * (double)z[c];
    }
    for (int k = 0; k < REASONS; k++) {
        int32_t best = -1;
        for (int32_t i = 0; i < t->n; i++)
            if (!told[i] && t->node[i] >= 0 && part[i] > 0 && (best < 0 || part[i] > part[best])) best = i;
        if (best < 0) break;
        told[best] = true;
        if (!write_reason(p, t->node[best], part[best], a, &e[r->n_reasons])) continue;      /* it was erased a moment ago */
        r->reasons[r->n_reasons] = &e[r->n_reasons];
        r->n_reasons++;
    }
    return true;
}

/* Products of the user's vector with the items'; a user without one, or of zeros, is left to the other ways. */
static mx_status by_network(mx_profiles *p, const space *in, int32_t user, const chosen *c, mx_arena *a, Merx__V1__RecommendResponse *out, mx_error *err)
{
    mx_profile_net_info about = mx_profile_net_about(in->net);
    int32_t found = 0;
    float *z = mx_arena_array(a, 2 * (size_t)in->dim, sizeof *z);
    mx_hit *hit = mx_arena_array(a, (size_t)c->count, sizeof *hit);
    bool says = false;
    if (!z || !hit) return mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
    if ((about.task != MX_GNN_LINKS && about.task != MX_GNN_RANKING) || !mx_profile_net_get(in->net, user, z)) return MX_OK;
    for (int32_t i = 0; i < in->dim; i++) says |= z[i] != 0;
    if (!says) return MX_OK;
    MX_TRY(mx_vectors_search(mx_profile_net_items(in->net), profile_stream(p), z, 1, c->count, MX_LIKE_DOT, admitted, (void *)(uintptr_t)c, hit, &found, err));
    mx_net_parts t;
    MX_TRY(mx_profile_net_parts(in->net, user, &t, err));
    Merx__V1__Recommendation *r = mx_arena_array(a, (size_t)found + 1, sizeof *r);
    out->items = mx_arena_array(a, (size_t)found + 1, sizeof *out->items);
    bool ok = r && out->items;
    for (int32_t i = 0; ok && i < found; i++) {
        Merx__V1__Recommendation *to = &r[out->n_items];
        merx__v1__recommendation__init(to);
        if (!(to->item = key_of(p, hit[i].id, a))) continue;
        to->score = (double)hit[i].score;
        ok = !mx_vectors_get(mx_profile_net_items(in->net), hit[i].id, z + in->dim) || write_reasons(p, in, &t, z + in->dim, a, to);
        out->items[out->n_items++] = to;
    }
    mx_net_parts_free(&t);
    out->method = (char *)(uintptr_t)"network";
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
}

/* ---- by what most have ------------------------------------------------------------------------------------ */

void profile_count_item(mx_profiles *p, const mx_event *e, int32_t by)
{
    mx_event_type t;
    int32_t item = mx_user_graph_find_node_type(p->graph, "item");
    if (!e->object || !mx_user_graph_event_type(p->graph, e->type, &t) || t.object != item) return;
    int32_t node = mx_user_graph_find(p->graph, item, e->object);
    pthread_mutex_lock(&p->popular_lock);
    if (node >= p->popular_room) {
        int32_t room = node + node / 2 + 1024;
        uint32_t *grown = realloc(p->popular, (size_t)room * sizeof *grown);
        if (grown) memset(grown + p->popular_room, 0, (size_t)(room - p->popular_room) * sizeof *grown), p->popular = grown, p->popular_room = room;
    }
    if (node >= 0 && node < p->popular_room) p->popular[node] += (uint32_t)by;
    pthread_mutex_unlock(&p->popular_lock);
}

static mx_status by_events(mx_profiles *p, const chosen *c, mx_arena *a, Merx__V1__RecommendResponse *out, mx_error *err)
{
    mx_hit *top = mx_arena_array(a, (size_t)c->count, sizeof *top);
    Merx__V1__Recommendation *r = mx_arena_array(a, (size_t)c->count, sizeof *r);
    int32_t n = 0;
    out->items = mx_arena_array(a, (size_t)c->count, sizeof *out->items);
    if (!top || !r || !out->items) return mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
    pthread_mutex_lock(&p->popular_lock);
    for (int32_t i = 0; i < p->popular_room; i++) {
        float events = (float)p->popular[i];
        if (!p->popular[i] || (n == c->count && events <= top[n - 1].score) || is_own(c, i)) continue;
        int32_t at = n < c->count ? n++ : n - 1;
        for (; at && top[at - 1].score < events; at--) top[at] = top[at - 1];
        top[at] = (mx_hit){i, events};
    }
    pthread_mutex_unlock(&p->popular_lock);
    for (int32_t i = 0; i < n; i++) {
        Merx__V1__Recommendation *to = &r[out->n_items];
        merx__v1__recommendation__init(to);
        if (!(to->item = key_of(p, top[i].id, a))) continue;
        to->score = (double)top[i].score;
        out->items[out->n_items++] = to;
    }
    out->method = (char *)(uintptr_t)"popular";
    return MX_OK;
}

/* ---- the operation ------------------------------------------------------------------------------------------- */

static mx_status check_consent(mx_profiles *p, const char *user, mx_error *err)
{
    const mx_profile_view *v;
    MX_TRY(mx_profiles_get(p, user, &v, err));
    Merx__V1__Profile *m = merx__v1__profile__unpack(NULL, v->size, v->bytes);
    bool consent = m && m->consent;
    if (m) merx__v1__profile__free_unpacked(m, NULL);
    mx_profile_release(v);
    return consent ? MX_OK : mx_fail(err, MX_ERR_STATE, "user: \"%.128s\" has withdrawn consent; nothing is inferred", user);
}

static int rising(const void *x, const void *y)
{
    int32_t a = *(const int32_t *)x, b = *(const int32_t *)y;
    return (a > b) - (a < b);
}

/* All items of the user: newest first, and by number. */
static mx_status read_own(walk *w, int32_t user, chosen *c, mx_error *err)
{
    int64_t n = 0;
    MX_TRY(mx_user_graph_edges(w->p->graph, user, MX_EDGES_OUT, MX_TIME_ANY, &w->edges, err));
    c->sorted = malloc((size_t)(w->edges.count + 1) * sizeof *c->sorted);
    if (!c->sorted) return mx_fail(err, MX_ERR_NO_MEMORY, "a user's items");
    for (int64_t i = 0; i < w->edges.count; i++) {
        mx_event_type t;
        if (mx_user_graph_event_type(w->p->graph, w->edges.edge[i].type, &t) && t.object == w->item) c->sorted[n++] = w->edges.edge[i].other;
    }
    if (n) qsort(c->sorted, (size_t)n, sizeof *c->sorted, rising);
    for (int64_t i = 0; i < n; i++)
        if (!c->n_sorted || c->sorted[c->n_sorted - 1] != c->sorted[i]) c->sorted[c->n_sorted++] = c->sorted[i];
    c->n_own = neighbours(w, user, MX_EDGES_OUT, w->item, OWN_ITEMS, c->own, err);
    return c->n_own < 0 ? err->code : MX_OK;
}

mx_status mx_profiles_recommend(mx_profiles *p, mx_profiles_op *op)
{
    const Merx__V1__RecommendRequest *q = (const Merx__V1__RecommendRequest *)op->request;
    Merx__V1__RecommendResponse r = MERX__V1__RECOMMEND_RESPONSE__INIT;
    walk w = {.p = p, .item = mx_user_graph_find_node_type(p->graph, "item")};
    chosen c = {.count = q->count, .seen = q->include_seen};
    mx_error *err = &op->err;
    mx_arena a;
    MX_TRY(profile_check_count(&c.count, err));
    MX_TRY(check_consent(p, q->user, err));
    int32_t user = mx_user_graph_find(p->graph, p->user, q->user);
    if (user < 0) return mx_fail(err, MX_ERR_NOT_FOUND, "user: nothing is known of \"%.128s\"", q->user);
    mx_arena_open(&a, (size_t)64 << 20);
    mx_status st = read_own(&w, user, &c, err);
    space *in = profile_hold_space(p);
    if (!st && in->net && !(r.network = profile_network_state(in, &a))) st = mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
    if (!st && in->net) st = by_network(p, in, user, &c, &a, &r, err);
    profile_release_space(in);
    if (!st && !r.n_items) st = by_neighbours(p, &w, user, &c, &a, &r, err);
    if (!st && !r.n_items) st = by_events(p, &c, &a, &r, err);
    if (!st) st = profile_answer(op, &r.base);
    mx_arena_close(&a);
    mx_user_edges_free(&w.edges);
    free(c.sorted);
    return st;
}
