/* user_graph_read.c - nodes, edges and events, copied out under the readers' lock. */
#include "models/user_graph_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static pthread_rwlock_t *reading(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)&g->lock;
    pthread_rwlock_rdlock(lock);
    return lock;
}

int32_t mx_user_graph_nodes(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = reading(g);
    int32_t n = g->base->head.nodes + g->late.count;
    pthread_rwlock_unlock(lock);
    return n;
}

int32_t mx_user_graph_find(const mx_user_graph *g, int32_t type, const char *key)
{
    if (strnlen(key, MX_KEY_MOST + 1) > MX_KEY_MOST) return -1;
    pthread_rwlock_t *lock = reading(g);
    int32_t node = mx_node_find(g, type, key);
    pthread_rwlock_unlock(lock);
    return node;
}

bool mx_user_graph_node(const mx_user_graph *g, int32_t node, int32_t *type, char key[MX_KEY_MOST + 1])
{
    size_t len;
    pthread_rwlock_t *lock = reading(g);
    const char *k = mx_node_key(g, node, type, &len);
    if (k) {
        memcpy(key, k, len);
        key[len] = 0;
    }
    pthread_rwlock_unlock(lock);
    return k != NULL;
}

/* ---- edges ----------------------------------------------------------------------------- */

void mx_user_edges_free(mx_user_edges *l)
{
    free(l->edge);
    *l = (mx_user_edges){0};
}

/* exp(-x) for x >= 0 from additions and multiplications alone, so that no library's rounding counts:
 * 2^-k times a series for the rest, which is at most ln(2)/2. */
static double decay(double x)
{
    static const double ln2 = 0.69314718055994530942, factorial[] = {479001600., 39916800., 3628800., 362880., 40320., 5040., 720., 120., 24., 6., 2., 1., 1.};
    if (!(x < 700)) return 0;
    double k = floor(x / ln2 + 0.5), r = k * ln2 - x, sum = 0;
    for (int i = 0; i < 13; i++) sum = sum * r + 1 / factorial[i];
    return ldexp(sum, -(int)k);
}

float mx_user_edge_decayed(float weight, uint32_t time_s, int64_t as_of_ms, double tau_s)
{
    double age = (double)as_of_ms / 1000 - (double)time_s;
    return tau_s > 0 ? (float)((double)weight * decay((age > 0 ? age : 0) / tau_s)) : weight;
}

typedef struct placed { mx_user_edge edge; uint64_t at; } placed;

static int by_time(const void *a, const void *b)
{
    const placed *x = a, *y = b;
    if (x->edge.time_s != y->edge.time_s) return x->edge.time_s < y->edge.time_s ? -1 : 1;
    return x->at < y->at ? -1 : x->at > y->at;
}

static mx_status edges_room(mx_user_edges *l, int64_t more, mx_error *err)
{
    if (l->count + more <= l->room) return MX_OK;
    int64_t room = 2 * l->room > l->count + more ? 2 * l->room : l->count + more;
    mx_user_edge *grown = realloc(l->edge, sizeof *grown * (size_t)room);
    if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld edges", (long long)room);
    l->edge = grown;
    l->room = room;
    return MX_OK;
}

/* Fresh edges are few: they are sorted, then merged into the base's from behind. */
static mx_status add_fresh(const mx_user_graph *g, int32_t node, bool in, uint32_t until, const uint64_t *base_at, int64_t first, mx_user_edges *l, mx_error *err)
{
    int64_t n = 0, k = 0;
    if (node >= g->heads) return MX_OK;
    for (uint32_t i = in ? g->in_head[node] : g->out_head[node]; i; i = in ? g->fresh[i - 1].next_in : g->fresh[i - 1].next_out) n++;
    if (!n) return MX_OK;
    placed *p = malloc(sizeof *p * (size_t)n);
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld edges", (long long)n);
    for (uint32_t i = in ? g->in_head[node] : g->out_head[node]; i;) {
        const mx_fresh *f = &g->fresh[i - 1];
        i = in ? f->next_in : f->next_out;
        int32_t other = in ? (int32_t)f->subject : mx_edge_node(f->other);
        if (f->time_s > until || other == MX_NO_NODE) continue;
        p[k++] = (placed){{.other = other, .type = mx_edge_type(f->other), .time_s = f->time_s, .weight = f->weight, .in = in}, f->at};
    }
    if (k) qsort(p, (size_t)k, sizeof *p, by_time);
    mx_status st = edges_room(l, k, err);
    if (!st) {
        int64_t a = l->count - first, b = k;
        for (int64_t to = l->count + k - 1; b; to--) {
            const mx_user_edge *e = a ? &l->edge[first + a - 1] : NULL;
            bool old = e && (e->time_s != p[b - 1].edge.time_s ? e->time_s > p[b - 1].edge.time_s : base_at[a - 1] > p[b - 1].at);
            l->edge[to] = old ? *e : p[b - 1].edge;
            if (old) a--;
            else b--;
        }
        l->count += k;
    }
    free(p);
    return st;
}

static mx_status one_way(const mx_user_graph *g, int32_t node, bool in, uint32_t until, mx_user_edges *l, mx_error *err)
{
    const mx_base *b = g->base;
    bool there = node < b->head.nodes;
    uint32_t e = !there ? 0 : in ? b->in_begin[node] : b->out_begin[node], end = !there ? 0 : in ? b->in_begin[node + 1] : b->out_begin[node + 1];
    int64_t first = l->count, n = 0;
    MX_TRY(edges_room(l, end - e, err));
    uint64_t few[256], *at = end - e > 256 ? malloc(8 * (size_t)(end - e)) : few;
    if (!at) return mx_fail(err, MX_ERR_NO_MEMORY, "%u edges", end - e);
    for (; e < end; e++) {
        uint32_t event = in ? b->in_ref[e] : e, word = in ? b->in_other[e] : b->out_other[e];
        if (b->out_time[event] > until) break;
        if (mx_edge_node(word) == MX_NO_NODE) continue;
        at[n++] = b->out_at[event];
        l->edge[l->count++] = (mx_user_edge){.other = mx_edge_node(word), .type = mx_edge_type(word), .time_s = b->out_time[event], .weight = b->out_weight[event], .in = in};
    }
    mx_status st = add_fresh(g, node, in, until, at, first, l, err);
    if (at != few) free(at);
    return st;
}

mx_status mx_user_graph_edges(const mx_user_graph *g, int32_t node, mx_direction d, int64_t as_of_ms, mx_user_edges *out, mx_error *err)
{
    out->count = 0;
    if (as_of_ms < 0) return MX_OK;
    uint32_t until = as_of_ms / 1000 > UINT32_MAX ? UINT32_MAX : (uint32_t)(as_of_ms / 1000);
    pthread_rwlock_t *lock = reading(g);
    mx_status st = MX_OK;
    if (node >= 0 && node < g->base->head.nodes + g->late.count) {
        if (d & MX_EDGES_OUT) st = one_way(g, node, false, until, out, err);
        if (!st && d & MX_EDGES_IN) st = one_way(g, node, true, until, out, err);
    }
    pthread_rwlock_unlock(lock);
    return st;
}

/* ---- events -------------------------------------------------------------------------------- */

typedef struct found { const void *data; size_t size; int64_t ts_ms; uint64_t at; } found;

void mx_event_list_free(mx_event_list *l)
{
    free(l->event);
    free(l->bytes);
    free(l->found);
    *l = (mx_event_list){0};
}

static mx_status bytes_room(void *array, size_t *room, size_t want, mx_error *err)
{
    void *p;
    if (want <= *room) return MX_OK;
    want += want / 2;
    memcpy(&p, array, sizeof p);
    p = realloc(p, want);
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu bytes of events", want);
    memcpy(array, &p, sizeof p);
    *room = want;
    return MX_OK;
}

static int newest_first(const void *a, const void *b)
{
    const found *x = a, *y = b;
    if (x->ts_ms != y->ts_ms) return x->ts_ms > y->ts_ms ? -1 : 1;
    return x->at > y->at ? -1 : x->at < y->at;
}

/* Blanked records are of a subject that is being erased: not there any more. */
static mx_status look(const mx_user_graph *g, uint64_t at, int64_t as_of_ms, mx_event_list *l, int64_t *n, mx_error *err)
{
    found f = {.at = at};
    MX_TRY(mx_event_log_read(g->log, at, &f.data, &f.size, err));
    f.ts_ms = mx_event_record_time(f.data, f.size);
    if (f.ts_ms < 0 || f.ts_ms > as_of_ms) return MX_OK;
    MX_TRY(bytes_room(&l->found, &l->found_room, sizeof f * (size_t)(*n + 1), err));
    ((found *)l->found)[(*n)++] = f;
    return MX_OK;
}

/* All fresh ones, and from the base the newest until there are enough; all of the last one's second,
 * for the order within it is decided below. */
static mx_status collect(const mx_user_graph *g, int32_t node, int64_t as_of_ms, int32_t limit, mx_event_list *l, int64_t *n, mx_error *err)
{
    const mx_base *b = g->base;
    int64_t from_base = 0;
    if (node < g->heads)
        for (uint32_t i = g->out_head[node]; i; i = g->fresh[i - 1].next_out) MX_TRY(look(g, g->fresh[i - 1].at, as_of_ms, l, n, err));
    if (node >= b->head.nodes) return MX_OK;
    int64_t before = *n;
    for (uint32_t first = b->out_begin[node], e = b->out_begin[node + 1]; e-- > first; from_base = *n - before) {
        if (limit && from_base >= limit && b->out_time[e] != b->out_time[e + 1]) break;
        if (((int64_t)b->out_time[e] - 1) * 1000 >= as_of_ms) continue;
        MX_TRY(look(g, b->out_at[e], as_of_ms, l, n, err));
    }
    return MX_OK;
}

static mx_status copy_out(const mx_user_graph *g, const found *f, mx_event_list *l, mx_error *err)
{
    size_t bytes = 0, room = sizeof *l->event * (size_t)l->room, at = 0;
    for (int32_t i = 0; i < l->count; i++) bytes += f[i].size;
    MX_TRY(bytes_room(&l->bytes, &l->bytes_room, bytes, err));
    MX_TRY(bytes_room(&l->event, &room, sizeof *l->event * (size_t)l->count, err));
    l->room = (int32_t)(room / sizeof *l->event);
    for (int32_t i = 0; i < l->count; i++) {
        memcpy(l->bytes + at, f[i].data, f[i].size);
        if (!mx_event_decode(&g->schema, l->bytes + at, f[i].size, &l->event[i]))
            return mx_fail(err, MX_ERR_FORMAT, "event log: position %llu is no event of this store", (unsigned long long)f[i].at);
        at += f[i].size;
    }
    return MX_OK;
}

mx_status mx_user_graph_events(const mx_user_graph *g, int32_t subject, int64_t as_of_ms, int32_t limit, mx_event_list *out, mx_error *err)
{
    int64_t n = 0;
    mx_status st = MX_OK;
    out->count = 0;
    pthread_rwlock_t *lock = reading(g);
    if (subject >= 0 && subject < g->base->head.nodes + g->late.count) st = collect(g, subject, as_of_ms, limit, out, &n, err);
    if (!st && n) {
        qsort(out->found, (size_t)n, sizeof(found), newest_first);
        out->count = limit && n > limit ? limit : n > INT32_MAX ? INT32_MAX : (int32_t)n;
        st = copy_out(g, out->found, out, err);
    }
    pthread_rwlock_unlock(lock);
    if (st) out->count = 0;
    return st;
}

/* ---- all of them ----------------------------------------------------------------------------- */

enum { AT_ONCE = 1024 };

/* Nothing is blanked while `merging` is held. */
static mx_status some(const mx_user_graph *g, uint64_t *cursor, bool *more, mx_status (*each)(void *ctx, const mx_event *e, mx_error *err), void *ctx, mx_error *err)
{
    *more = true;
    for (int i = 0; i < AT_ONCE; i++) {
        const void *data;
        size_t size;
        uint64_t next;
        mx_event e;
        MX_TRY(mx_event_log_next(g->log, cursor, &next, &data, &size, more, err));
        if (!*more) return MX_OK;
        if (size && *(const uint8_t *)data == MX_RECORD_EVENT) {
            if (!mx_event_decode(&g->schema, data, size, &e))
                return mx_fail(err, MX_ERR_FORMAT, "event log: position %llu is no event of this store", (unsigned long long)*cursor);
            MX_TRY(each(ctx, &e, err));
        }
        *cursor = next;
    }
    return MX_OK;
}

mx_status mx_user_graph_each(const mx_user_graph *g, uint64_t *cursor, mx_status (*each)(void *ctx, const mx_event *e, mx_error *err), void *ctx, mx_error *err)
{
    pthread_mutex_t *merging = (pthread_mutex_t *)&g->merging;
    mx_status st = MX_OK;
    for (bool more = true; more && !st;) {
        pthread_mutex_lock(merging);
        st = some(g, cursor, &more, each, ctx, err);
        pthread_mutex_unlock(merging);
    }
    return st;
}
