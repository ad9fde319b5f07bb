/* profile_graph.c - events become rows of a graph, and users' inputs. */
#include "models/profile_graph.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define TAU_MS (90.0 * 86400000.0)        /* how events age, against the user's newest */

double mx_event_fade(int64_t age_ms)
{
    double w = exp(-(double)age_ms / TAU_MS);
    return w < 1e-30 ? 1e-30 : w;
}

void mx_text_mean(const float *weight, const float *const *vector, int32_t n, int32_t dim, float *out)
{
    double sum = MX_TEXT_STRENGTH;
    for (int32_t i = 0; i < n; i++) sum += vector[i] ? (double)weight[i] : 0;
    for (int32_t c = 0; c < dim; c++) out[c] = 0;
    for (int32_t i = 0; i < n; i++)
        for (int32_t c = 0; vector[i] && c < dim; c++) out[c] += (float)((double)weight[i] / sum) * vector[i][c];
}

/* ---- input ---------------------------------------------------------------------------------- */

int32_t mx_profile_inputs(int32_t text_dim) { return text_dim + mx_behaviour_width(MX_EVENT_TYPES); }

static mx_status words(const mx_text_store *texts, int32_t dim, const mx_event_list *l, float *out, mx_error *err)
{
    const float *vector[MX_PROFILE_TEXTS];
    float weight[MX_PROFILE_TEXTS], *room = malloc((size_t)dim * MX_PROFILE_TEXTS * sizeof *room);
    int32_t n = 0, seen = 0;
    if (!room) return mx_fail(err, MX_ERR_NO_MEMORY, "a user's words");
    for (int32_t i = 0; i < l->count && i < MX_PROFILE_EVENTS && seen < MX_PROFILE_TEXTS; i++) {
        const mx_event *e = &l->event[i];
        mx_text_row row;
        if (!e->text || !*e->text) continue;
        seen++;
        if (!mx_text_store_get(texts, mx_text_event(e->id), &row, room + (size_t)n * (size_t)dim) || !row.has_vector) continue;
        vector[n] = room + (size_t)n * (size_t)dim;
        weight[n++] = (float)mx_event_fade(l->event[0].ts_ms - e->ts_ms);
    }
    mx_text_mean(weight, vector, n, dim, out);
    free(room);
    return MX_OK;
}

mx_status mx_profile_input(const mx_user_graph *g, const mx_text_store *texts, int32_t text_dim, int32_t node, int64_t as_of_ms, mx_event_list *list,
                           float *out, mx_error *err)
{
    mx_behaviour b;
    memset(out, 0, sizeof *out * (size_t)mx_profile_inputs(text_dim));
    MX_TRY(mx_user_graph_events(g, node, as_of_ms, 0, list, err));
    if (!list->count) return MX_OK;
    if (text_dim) MX_TRY(words(texts, text_dim, list, out, err));
    mx_behaviour_from(g, list->event, list->count, NULL, list->event[0].ts_ms, &b);
    mx_behaviour_vector(&b, MX_EVENT_TYPES, out + text_dim);
    return MX_OK;
}

/* ---- following ---------------------------------------------------------------------------------- */

static bool grow(void *array, size_t bytes)
{
    void **at = array, *grown = realloc(*at, bytes);
    if (grown) *at = grown;
    return grown != NULL;
}

static mx_status room_for(mx_profile_follower *f, int32_t nodes, mx_error *err)
{
    if (nodes <= f->nodes) return MX_OK;
    int32_t room = nodes < INT32_MAX / 2 ? nodes + nodes / 2 + 64 : INT32_MAX;
    size_t n = (size_t)room, was = (size_t)f->nodes;
    if (!grow(&f->consent_ms, 8 * n) || !grow(&f->dropped, 8 * n) || !grow(&f->absent, n)) return mx_fail(err, MX_ERR_NO_MEMORY, "a graph of %d nodes", nodes);
    memset(f->consent_ms + was, 0, 8 * (n - was));
    memset(f->dropped + was, 0, 8 * (n - was));
    memset(f->absent + was, 0, n - was);
    f->nodes = room;
    return MX_OK;
}

static mx_status consents(mx_profile_follower *f, int32_t node, const mx_event *e, mx_error *err)
{
    bool leaves = !(e->weight > 0);
    if (e->ts_ms < f->consent_ms[node]) return MX_OK;      /* a later word is known */
    f->consent_ms[node] = e->ts_ms;
    if (leaves == f->absent[node]) return MX_OK;
    f->absent[node] = leaves;
    if (!leaves) return MX_OK;
    f->dropped[node] = f->sequence;
    return f->withdrawn ? f->withdrawn(f->ctx, node, err) : MX_OK;
}

static mx_status one(void *ctx, const mx_event *e, mx_error *err)
{
    mx_profile_follower *f = ctx;
    mx_event_type t;
    if (!mx_user_graph_event_type(f->graph, e->type, &t)) return MX_OK;
    int32_t subject = mx_user_graph_find(f->graph, t.subject, e->subject), object = -1;
    if (t.object >= 0 && e->object) object = mx_user_graph_find(f->graph, t.object, e->object);
    f->sequence++;
    if (subject < 0) return MX_OK;                         /* erased meanwhile */
    MX_TRY(room_for(f, (subject > object ? subject : object) + 1, err));
    if (e->type == f->consent) MX_TRY(consents(f, subject, e, err));
    if (f->acted) MX_TRY(f->acted(f->ctx, subject, err));
    if (object < 0 || f->absent[subject] || f->absent[object] || !f->edge) return MX_OK;
    return f->edge(f->ctx, e->type, subject, object, e->weight, e->ts_ms, err);
}

mx_status mx_profile_follow(mx_profile_follower *f, mx_error *err)
{
    f->consent = mx_user_graph_find_event_type(f->graph, "consent");
    return mx_user_graph_each(f->graph, &f->cursor, one, f, err);
}

void mx_profile_follower_close(mx_profile_follower *f)
{
    free(f->consent_ms), free(f->dropped), free(f->absent);
    *f = (mx_profile_follower){0};
}

/* ---- all at once ------------------------------------------------------------------------------------ */

bool mx_profile_relation(int32_t type, int32_t relations, int32_t *to_object, int32_t *to_subject)
{
    *to_object = relations > 1 ? 2 * type : 0;
    *to_subject = relations > 1 ? 2 * type + 1 : 0;
    return *to_subject < relations;
}

typedef struct pile { int32_t *from, *to; float *weight; int64_t *at, n, room; } pile;
typedef struct piles { mx_profile_follower *f; const mx_profile_graph_options *o; pile of[MX_GRAPH_RELATIONS]; } piles;

static bool push(pile *p, int32_t from, int32_t to, float weight, int64_t at)
{
    if (p->n == p->room) {
        int64_t room = p->room ? 2 * p->room : 4096;
        if (!grow(&p->from, 4 * (size_t)room) || !grow(&p->to, 4 * (size_t)room) || !grow(&p->weight, 4 * (size_t)room) || !grow(&p->at, 8 * (size_t)room)) return false;
        p->room = room;
    }
    p->from[p->n] = from, p->to[p->n] = to, p->weight[p->n] = weight, p->at[p->n++] = at;
    return true;
}

static mx_status take_edge(void *ctx, int32_t type, int32_t subject, int32_t object, float weight, int64_t ts_ms, mx_error *err)
{
    piles *p = ctx;
    const mx_profile_graph_options *o = p->o;
    int32_t in, out;
    if (!mx_profile_relation(type, o->relations, &in, &out) || ts_ms > o->until_ms || (o->until && (subject >= o->n_until || ts_ms > o->until[subject])) ||
        (o->without && o->without(o->ctx, subject, object)))
        return MX_OK;
    return push(&p->of[in], subject, object, weight, p->f->sequence) && push(&p->of[out], object, subject, weight, p->f->sequence) ? MX_OK
               : mx_fail(err, MX_ERR_NO_MEMORY, "edges of a graph");
}

/* Those of who withdrew later, and of who was erased meanwhile. */
static void drop(const mx_profile_follower *f, pile *p)
{
    int64_t n = 0;
    for (int64_t i = 0; i < p->n; i++) {
        if (p->at[i] <= f->dropped[p->from[i]] || p->at[i] <= f->dropped[p->to[i]]) continue;
        p->from[n] = p->from[i], p->to[n] = p->to[i], p->weight[n++] = p->weight[i];
    }
    p->n = n;
}

mx_status mx_profile_graph_build(mx_graph_store *out, mx_profile_follower *f, const mx_profile_graph_options *o, mx_error *err)
{
    static const float none[1];           /* a relation without edges has weights too */
    piles *p = calloc(1, sizeof *p);
    mx_edge_list lists[MX_GRAPH_RELATIONS] = {0};
    mx_profile_follower own = *f;
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "a graph");
    p->f = f, p->o = o;
    f->edge = take_edge, f->withdrawn = NULL, f->acted = NULL, f->ctx = p;
    mx_status st = mx_profile_follow(f, err);
    f->edge = own.edge, f->withdrawn = own.withdrawn, f->acted = own.acted, f->ctx = own.ctx;
    int32_t given = mx_user_graph_nodes(f->graph), nodes = given > 0 ? given : 1, type;      /* the first to come is number 0 */
    uint8_t *types = calloc((size_t)nodes, 1);
    char key[MX_KEY_MOST + 1];
    if (!st && !types) st = mx_fail(err, MX_ERR_NO_MEMORY, "a graph of %d nodes", nodes);
    if (!st) st = room_for(f, nodes, err);
    for (int32_t i = 0; !st && i < nodes; i++) types[i] = mx_user_graph_node(f->graph, i, &type, key) ? (uint8_t)type : 255;
    for (int32_t r = 0; !st && r < o->relations; r++) {
        drop(f, &p->of[r]);
        lists[r] = (mx_edge_list){p->of[r].from, p->of[r].to, p->of[r].n ? p->of[r].weight : none, p->of[r].n};
    }
    if (!st) st = mx_graph_build(out, nodes, types, lists, o->relations, NULL, err);
    for (int32_t r = 0; r < MX_GRAPH_RELATIONS; r++) free(p->of[r].from), free(p->of[r].to), free(p->of[r].weight), free(p->of[r].at);
    free(types);
    free(p);
    return st;
}
