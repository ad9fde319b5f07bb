/* profile_find.c - users who are alike, and items that users alike have. */
#include "server/profiles_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- similar users: an exact scan ------------------------------------------------------------ */

enum { MOST_FOUND = 1000 };

typedef struct ruler { double mean[MX_FEATURES], scale[MX_FEATURES]; } ruler;

static bool counts(const subject *s)
{
    return s && s->now && s->bin[0] >= 0;
}

static ruler measure(mx_profiles *p, int32_t nodes)
{
    ruler r = {0};
    double n = 0;
    for (int32_t i = 0; i < nodes; i++) {
        const subject *s = profile_subject(p, i);
        if (!counts(s)) continue;
        n++;
        for (int32_t f = 0; f < MX_FEATURES; f++) r.mean[f] += (double)s->feature[f], r.scale[f] += (double)s->feature[f] * (double)s->feature[f];
    }
    for (int32_t f = 0; f < MX_FEATURES && n > 0; f++) {
        r.mean[f] /= n;
        double deviation = sqrt(fmax(r.scale[f] / n - r.mean[f] * r.mean[f], 0));
        r.scale[f] = deviation > 1e-6 ? 1 / deviation : 0;
    }
    return r;
}

/* Standardized features beside the texts' vector, which counts as much as two features. */
static void place(const mx_profiles *p, const ruler *r, const subject *s, double weight, double *out)
{
    for (int32_t f = 0; f < MX_FEATURES; f++) out[f] += weight * ((double)s->feature[f] - r->mean[f]) * r->scale[f];
    for (int32_t c = 0; c < p->dim && s->text; c++) out[MX_FEATURES + c] += weight * sqrt(2) * (double)s->text[c];
}

typedef struct found { int32_t node; double similarity; } found;

static int nearer(const void *x, const void *y)
{
    const found *a = x, *b = y;
    if (a->similarity != b->similarity) return a->similarity < b->similarity ? 1 : -1;
    return (a->node > b->node) - (a->node < b->node);
}

static bool among(const int32_t *list, size_t n, int32_t node)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == node) return true;
    return false;
}

static mx_status answer_found(mx_profiles *p, mx_profiles_op *op, const found *list, size_t n)
{
    Merx__V1__SimilarUsersResponse r = MERX__V1__SIMILAR_USERS_RESPONSE__INIT;
    int32_t type;
    mx_arena_reset(&p->arena);
    Merx__V1__SimilarUser *u = mx_arena_array(&p->arena, n + 1, sizeof *u);
    char (*key)[MX_KEY_MOST + 1] = mx_arena_array(&p->arena, n + 1, sizeof *key);
    r.users = mx_arena_array(&p->arena, n + 1, sizeof *r.users);
    if (!u || !key || !r.users) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "an answer");
    for (size_t i = 0; i < n; i++) {
        merx__v1__similar_user__init(&u[i]);
        if (!mx_user_graph_node(p->graph, list[i].node, &type, key[i])) continue;
        u[i].user = key[i];
        u[i].similarity = list[i].similarity;
        r.users[r.n_users++] = &u[i];
    }
    return profile_answer(op, &r.base);
}

static mx_status nearest(mx_profiles *p, mx_profiles_op *op, const int32_t *from, size_t n_from, int32_t count)
{
    int32_t nodes = mx_user_graph_nodes(p->graph), n = 0, d = MX_FEATURES + p->dim;
    ruler r = measure(p, nodes);
    double *center = calloc(2 * (size_t)d, sizeof *center), *at = center + d, square = 0;
    found *all = calloc((size_t)nodes + 1, sizeof *all);
    mx_status st = center && all ? MX_OK : mx_fail(&op->err, MX_ERR_NO_MEMORY, "%d users", nodes);
    for (size_t i = 0; !st && i < n_from; i++) place(p, &r, profile_subject(p, from[i]), 1.0 / (double)n_from, center);
    for (int32_t c = 0; !st && c < d; c++) square += center[c] * center[c];
    for (int32_t i = 0; !st && i < nodes; i++) {
        const subject *s = profile_subject(p, i);
        double dot = 0, own = 0;
        if (!counts(s) || among(from, n_from, i)) continue;
        memset(at, 0, (size_t)d * sizeof *at);
        place(p, &r, s, 1, at);
        for (int32_t c = 0; c < d; c++) dot += center[c] * at[c], own += at[c] * at[c];
        all[n++] = (found){i, dot / fmax(sqrt(square * own), 1e-12)};
    }
    if (!st) qsort(all, (size_t)n, sizeof *all, nearer);
    if (!st) st = answer_found(p, op, all, (size_t)(n < count ? n : count));
    free(center), free(all);
    return st;
}

static mx_status known(mx_profiles *p, const char *field, const char *user, int32_t *node, mx_error *err)
{
    *node = mx_user_graph_find(p->graph, p->user, user);
    if (counts(profile_subject(p, *node))) return MX_OK;
    return mx_fail(err, MX_ERR_NOT_FOUND, "%s: nothing is known of \"%.128s\"", field, user);
}

static mx_status check_count(int32_t *count, mx_error *err)
{
    if (*count < 0 || *count > MOST_FOUND) return mx_fail(err, MX_ERR_ARG, "count is %d; it must be from 0 to %d", *count, MOST_FOUND);
    if (!*count) *count = 10;
    return MX_OK;
}

mx_status mx_profiles_similar(mx_profiles *p, mx_profiles_op *op)
{
    const Merx__V1__SimilarUsersRequest *q = (const Merx__V1__SimilarUsersRequest *)op->request;
    int32_t count = q->count, node;
    MX_TRY(check_count(&count, &op->err));
    MX_TRY(known(p, "user", q->user, &node, &op->err));
    return nearest(p, op, &node, 1, count);
}

mx_status mx_profiles_look_alike(mx_profiles *p, mx_profiles_op *op)
{
    const Merx__V1__LookAlikeRequest *q = (const Merx__V1__LookAlikeRequest *)op->request;
    int32_t count = q->count, node[MOST_FOUND];
    MX_TRY(check_count(&count, &op->err));
    if (!q->n_users || q->n_users > MOST_FOUND) return mx_fail(&op->err, MX_ERR_ARG, "users: %zu of them, 1..%d are allowed", q->n_users, MOST_FOUND);
    for (size_t i = 0; i < q->n_users; i++) MX_TRY(known(p, "users", q->users[i], &node[i], &op->err));
    return nearest(p, op, node, q->n_users, count);
}

/* ---- recommending: three steps in the graph of users and items ----------------------------------- */

/* score(i) = the sum over the user's items j and their users v of 1 / (sqrt(d_u d_j) sqrt(d_j d_v) sqrt(d_v d_i)),
 * d counting distinct neighbours among those that are looked at: LightGCN's propagation (He et al. 2020) from one-hot
 * embeddings, so each own item's part of a score is exact. */
enum { OWN_ITEMS = 64, ITEM_USERS = 128, USER_ITEMS = 64, REASONS = 3 };

typedef struct reach { int32_t node; double weight; } reach;
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
        if (!among(out, (size_t)n, e->other)) out[n++] = e->other;
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
static int32_t rank(table *t, const int32_t *own, int32_t n_own, bool seen)
{
    int32_t n = 0;
    for (uint32_t i = 0; i < t->room; i++) {
        tally *e = t->slot[i];
        t->slot[i] = NULL;
        if (!e) continue;
        for (int32_t j = 0; j < n_own; j++) e->score += e->part[j];
        if (!seen && among(own, (size_t)n_own, e->node)) free(e);
        else t->slot[n++] = e;
    }
    qsort(t->slot, (size_t)n, sizeof(tally *), better);
    return n;
}

mx_status mx_profiles_recommend(mx_profiles *p, const Merx__V1__RecommendRequest *q, mx_arena *a, Merx__V1__RecommendResponse *out, mx_error *err)
{
    walk w = {.p = p, .item = mx_user_graph_find_node_type(p->graph, "item")};
    table t = {0};
    int32_t count = q->count, own[OWN_ITEMS], n_own, n = 0;
    MX_TRY(check_count(&count, err));
    const mx_profile_view *v;
    MX_TRY(mx_profiles_get(p, q->user, &v, err));
    Merx__V1__Profile *m = merx__v1__profile__unpack(NULL, v->size, v->bytes);
    bool consent = m && m->consent;
    if (m) merx__v1__profile__free_unpacked(m, NULL);
    mx_profile_release(v);
    if (!consent) return mx_fail(err, MX_ERR_STATE, "user: \"%.128s\" has withdrawn consent; nothing is inferred", q->user);
    int32_t user = mx_user_graph_find(p->graph, p->user, q->user);
    n_own = user < 0 ? 0 : neighbours(&w, user, MX_EDGES_OUT, w.item, OWN_ITEMS, own, err);
    mx_status st = n_own < 0 ? err->code : spread(&w, user, own, n_own, &t, err);
    if (!st) n = rank(&t, own, n_own, q->include_seen);
    if (!st && n) {
        size_t shown = (size_t)(n < count ? n : count);
        Merx__V1__Recommendation *r = mx_arena_array(a, shown, sizeof *r);
        out->items = mx_arena_array(a, shown, sizeof *out->items);
        for (size_t i = 0; !st && i < shown; i++) {
            if (!r || !out->items || !write_item(p, t.slot[i], own, n_own, a, &r[i])) st = mx_fail(err, MX_ERR_NO_MEMORY, "recommendations");
            else out->items[out->n_items++] = &r[i];
        }
    }
    for (uint32_t i = 0; i < t.room; i++) free(t.slot[i]);
    free(t.slot);
    mx_user_edges_free(&w.edges);
    return st;
}
