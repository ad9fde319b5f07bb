/* user_graph_erase.c - a subject goes: from the log, the graph and the snapshot.
 *
 * First its digest is written to the log: from then on events of it are refused, and an erasure that
 * was broken off is finished at the next start.  Then its records are blanked, and a snapshot is made that
 * leaves it out.  Each of these may be done again. */
#include "models/user_graph_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct places { uint64_t *at; int64_t count, room; } places;

static mx_status place_add(places *p, uint64_t at, mx_error *err)
{
    if (p->count == p->room) {
        int64_t room = p->room ? 2 * p->room : 64;
        uint64_t *grown = realloc(p->at, sizeof *grown * (size_t)room);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld records to erase", (long long)room);
        p->at = grown;
        p->room = room;
    }
    p->at[p->count++] = at;
    return MX_OK;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void unique(places *p)
{
    int64_t n = 0;
    if (p->count) qsort(p->at, (size_t)p->count, sizeof *p->at, by_value);
    for (int64_t i = 0; i < p->count; i++)
        if (!n || p->at[n - 1] != p->at[i]) p->at[n++] = p->at[i];
    p->count = n;
}

/* Where the records of and about a node are. */
static mx_status places_of(const mx_user_graph *g, int32_t node, places *p, mx_error *err)
{
    const mx_base *b = g->base;
    p->count = 0;
    if (node < b->head.nodes) {
        for (uint32_t e = b->out_begin[node]; e < b->out_begin[node + 1]; e++) MX_TRY(place_add(p, b->out_at[e], err));
        for (uint32_t e = b->in_begin[node]; e < b->in_begin[node + 1]; e++) MX_TRY(place_add(p, b->out_at[b->in_ref[e]], err));
    }
    if (node < g->heads) {
        for (uint32_t i = g->out_head[node]; i; i = g->fresh[i - 1].next_out) MX_TRY(place_add(p, g->fresh[i - 1].at, err));
        for (uint32_t i = g->in_head[node]; i; i = g->fresh[i - 1].next_in) MX_TRY(place_add(p, g->fresh[i - 1].at, err));
    }
    unique(p);
    return MX_OK;
}

/* What of it is still there. */
static mx_status weigh(const mx_user_graph *g, const places *p, mx_erasure *out, mx_error *err)
{
    for (int64_t i = 0; i < p->count; i++) {
        const void *data;
        size_t size;
        mx_event e;
        MX_TRY(mx_event_log_read(g->log, p->at[i], &data, &size, err));
        if (!size) continue;
        out->events++;
        out->bytes += (int64_t)size;
        out->edges += mx_event_decode(&g->schema, data, size, &e) && e.object;
    }
    return MX_OK;
}

typedef struct going { int32_t *node; int32_t count; places all; } going;

static mx_status going_add(going *q, const mx_user_graph *g, int32_t node, mx_erasure *out, mx_error *err)
{
    places p = {0};
    q->node[q->count++] = node;
    mx_status st = places_of(g, node, &p, err);
    if (!st && out) st = weigh(g, &p, out, err);
    for (int64_t i = 0; !st && i < p.count; i++) st = place_add(&q->all, p.at[i], err);
    free(p.at);
    return st;
}

static int by_node(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

/* With `merging` held: nothing new can come about these nodes, and the base stays. */
static mx_status carry_out(mx_user_graph *g, going *q, mx_error *err)
{
    int64_t bytes = 0;
    unique(&q->all);
    if (q->count) qsort(q->node, (size_t)q->count, sizeof *q->node, by_node);
    MX_TRY(mx_event_log_blank(g->log, q->all.at, q->all.count, &bytes, err));
    return mx_merge(g, q->node, q->count, err);
}

static void receipt(mx_erasure *e)
{
    char text[256];
    uint8_t sum[32];
    int n = snprintf(text, sizeof text, "%s %" PRId64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRIu64, e->subject, e->events, e->edges, e->bytes, e->erased_ms,
                     e->watermark);
    mx_sha256(text, (size_t)n, sum);
    mx_hex(sum, sizeof sum, e->receipt);
}

/* The mark, durable, and what there is to remove.  With `write` held. */
static mx_status mark(mx_user_graph *g, int32_t type, const char *key, int64_t now_ms, going *q, mx_erasure *out, mx_error *err)
{
    mx_digest d;
    uint8_t text[1 + sizeof d + 8] = {MX_RECORD_ERASED};
    mx_record r = {.data = text, .size = sizeof text};
    *out = (mx_erasure){.erased_ms = now_ms, .watermark = g->watermark};
    mx_subject_digest(g, type, key, &d);
    mx_hex(d.byte, sizeof d.byte, out->subject);
    memcpy(text + 1, &d, sizeof d);
    memcpy(text + 1 + sizeof d, &now_ms, 8);
    MX_TRY(mx_event_log_append(g->log, &r, 1, err));
    MX_TRY(mx_gone_add(g, &d, err));
    int32_t node = mx_node_find(g, type, key);
    for (int32_t i = 0; i < q->count; i++)
        if (q->node[i] == node) return MX_OK;             /* named twice: the first has its figures */
    return node < 0 ? MX_OK : going_add(q, g, node, out, err);
}

mx_status mx_user_graph_erase(mx_user_graph *g, int32_t type, const char *const *keys, int32_t n, int64_t now_ms, mx_erasure *out, mx_error *err)
{
    going q = {0};
    if (type < 0 || type >= mx_user_graph_node_types(g)) return mx_fail(err, MX_ERR_ARG, "node type %d is not declared", type);
    for (int32_t i = 0; i < n; i++)
        if (!*keys[i] || strnlen(keys[i], MX_KEY_MOST + 1) > MX_KEY_MOST) return mx_fail(err, MX_ERR_ARG, "key %d is not 1 to %d bytes", i, MX_KEY_MOST);
    q.node = malloc(sizeof *q.node * ((size_t)n + 1));
    if (!q.node) return mx_fail(err, MX_ERR_NO_MEMORY, "erasing %d subjects", n);
    pthread_mutex_lock(&g->merging);
    pthread_mutex_lock(&g->write);
    mx_status st = MX_OK;
    for (int32_t i = 0; !st && i < n; i++) st = mark(g, type, keys[i], now_ms, &q, &out[i], err);
    pthread_mutex_unlock(&g->write);
    if (!st) st = mx_event_log_sync(g->log, err);
    if (!st) st = carry_out(g, &q, err);
    pthread_mutex_unlock(&g->merging);
    for (int32_t i = 0; i < n; i++) receipt(&out[i]);
    free(q.all.at);
    free(q.node);
    return st;
}

mx_status mx_erase_finish(mx_user_graph *g, mx_error *err)
{
    int32_t nodes = g->base->head.nodes + g->late.count, type;
    char key[MX_KEY_MOST + 1];
    size_t len;
    going q = {.node = malloc(sizeof *q.node * ((size_t)nodes + 1))};
    mx_status st = q.node ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "finishing an erasure");
    for (int32_t i = 0; !st && i < nodes; i++) {
        const char *k = mx_node_key(g, i, &type, &len);
        if (!k) continue;
        memcpy(key, k, len);
        key[len] = 0;
        if (mx_gone_has(g, type, key)) st = going_add(&q, g, i, NULL, err);
    }
    pthread_mutex_lock(&g->merging);
    if (!st) st = carry_out(g, &q, err);
    pthread_mutex_unlock(&g->merging);
    free(q.all.at);
    free(q.node);
    return st;
}
