/* user_graph_merge.c - base and fresh events become the next base.
 *
 * A node's old list and its new events are both in the order of (second, position in the log), so they are
 * merged in one pass; so are the fingerprints of ids.  Readers and writers go on meanwhile: the old base
 * does not change, and what is merged of the fresh ones was copied. */
#include "models/user_graph_internal.h"

#include "runtime/clock.h"

#include <stdlib.h>
#include <string.h>

typedef struct job {
    mx_base_head head;                    /* of the new base */
    const mx_base *old;
    mx_base     *new;
    mx_fresh    *fresh;
    uint32_t     m;
    mx_late_nodes late;
    mx_digest   *gone;
    uint8_t     *left_out;                /* [nodes], or NULL */
    uint32_t    *begin, *order;           /* fresh ones by node: [nodes+1], [m] */
    uint32_t    *moved;                   /* [old events + m]: their new numbers, UINT32_MAX: left out */
    uint64_t    *prints;
} job;

static void *copy_of(const void *p, size_t n)
{
    void *q = malloc(n + 1);
    if (q && n) memcpy(q, p, n);
    return q;
}

/* With `write` held. */
static mx_status freeze(const mx_user_graph *g, job *j, mx_error *err)
{
    const mx_late_nodes *l = &g->late;
    j->old = g->base;
    j->m = g->n_fresh;
    j->late.count = l->count;
    j->fresh = copy_of(g->fresh, j->m * sizeof *j->fresh);
    j->late.begin = l->begin ? copy_of(l->begin, 8 * ((size_t)l->count + 1)) : calloc(1, 8);
    j->late.type = copy_of(l->type, (size_t)l->count);
    if (j->late.begin) j->late.keys = copy_of(l->keys, (size_t)j->late.begin[l->count]);
    j->gone = copy_of(g->gone, (size_t)g->n_gone * sizeof *g->gone);
    if (!j->fresh || !j->late.begin || !j->late.type || !j->late.keys || !j->gone) return mx_fail(err, MX_ERR_NO_MEMORY, "merging %u events", j->m);
    j->head = (mx_base_head){.nodes = g->base->head.nodes + l->count, .erased = g->n_gone, .log_at = mx_event_log_end(g->log),
                             .watermark = g->watermark, .newest_ms = g->newest_ms, .schema = g->schema};
    memcpy(j->head.salt, g->salt, sizeof g->salt);
    return MX_OK;
}

static bool out_of(const job *j, uint32_t subject, uint32_t other)
{
    int32_t node = mx_edge_node(other);
    return j->left_out && (j->left_out[subject] || (node != MX_NO_NODE && j->left_out[node]));
}

static bool is_gone(const job *j, int32_t node)
{
    if (j->left_out && j->left_out[node]) return true;
    return node < j->old->head.nodes && j->old->node_type[node] == MX_TYPE_GONE;
}

static const char *key_of(const job *j, int32_t node, size_t *len)
{
    int32_t n = j->old->head.nodes;
    const uint64_t *b = node < n ? j->old->key_begin + node : j->late.begin + (node - n);
    *len = is_gone(j, node) ? 0 : (size_t)(b[1] - b[0]);
    return (node < n ? j->old->keys : j->late.keys) + b[0];
}

/* What the new base will hold. */
static void count(job *j)
{
    mx_base_head *h = &j->head;
    const mx_base *o = j->old;
    size_t len;
    h->events = o->head.events + j->m;
    h->edges = o->head.edges;
    for (uint32_t i = 0; i < j->m; i++) {
        bool out = out_of(j, j->fresh[i].subject, j->fresh[i].other), edge = mx_edge_node(j->fresh[i].other) != MX_NO_NODE;
        h->events -= out;
        h->edges += edge && !out;
    }
    for (int32_t node = 0; j->left_out && node < o->head.nodes; node++)
        for (uint32_t e = o->out_begin[node]; e < o->out_begin[node + 1]; e++)
            if (out_of(j, (uint32_t)node, o->out_other[e])) {
                h->events--;
                h->edges -= mx_edge_node(o->out_other[e]) != MX_NO_NODE;
            }
    for (int32_t node = 0; node < h->nodes; node++) {
        key_of(j, node, &len);
        h->key_bytes += len;
    }
    for (h->key_slots = 16; 3 * (uint64_t)h->key_slots < 4 * (uint64_t)h->nodes;) h->key_slots *= 2;
}

/* ---- fresh events by node ------------------------------------------------------------------------ */

static bool before(const mx_fresh *a, const mx_fresh *b) { return a->time_s != b->time_s ? a->time_s < b->time_s : a->at < b->at; }

static int by_time(const void *a, const void *b, void *ctx)
{
    const mx_fresh *f = ctx;
    const mx_fresh *x = &f[*(const uint32_t *)a], *y = &f[*(const uint32_t *)b];
    return before(x, y) ? -1 : before(y, x);
}

/* begin[node] .. begin[node+1]: its fresh events, in the order they came. */
static void group(job *j, bool in)
{
    int32_t n = j->head.nodes;
    memset(j->begin, 0, 4 * ((size_t)n + 1));
    for (uint32_t i = 0; i < j->m; i++) {
        uint32_t node = in ? (uint32_t)mx_edge_node(j->fresh[i].other) : j->fresh[i].subject;
        if (node != MX_NO_NODE) j->begin[node]++;
    }
    for (int32_t node = 1; node <= n; node++) j->begin[node] += j->begin[node - 1];
    for (uint32_t i = j->m; i-- > 0;) {
        uint32_t node = in ? (uint32_t)mx_edge_node(j->fresh[i].other) : j->fresh[i].subject;
        if (node != MX_NO_NODE) j->order[--j->begin[node]] = i;
    }
}

static void sort_group(job *j, uint32_t first, uint32_t last)
{
    bool sorted = true;
    for (uint32_t i = first + 1; i < last; i++) sorted &= !before(&j->fresh[j->order[i]], &j->fresh[j->order[i - 1]]);
    if (!sorted) qsort_r(j->order + first, last - first, sizeof *j->order, by_time, j->fresh);
}

/* ---- the arrays --------------------------------------------------------------------------------------- */

static void put_old(job *j, uint32_t from, uint32_t to)
{
    const mx_base *o = j->old;
    mx_base *b = j->new;
    b->out_other[to] = o->out_other[from];
    b->out_time[to] = o->out_time[from];
    b->out_weight[to] = o->out_weight[from];
    b->out_at[to] = o->out_at[from];
    j->moved[from] = to;
}

static void put_fresh(job *j, uint32_t i, uint32_t to)
{
    const mx_fresh *f = &j->fresh[i];
    mx_base *b = j->new;
    b->out_other[to] = f->other;
    b->out_time[to] = f->time_s;
    b->out_weight[to] = f->weight;
    b->out_at[to] = f->at;
    j->moved[j->old->head.events + i] = to;
}

static bool old_first(const job *j, uint32_t old, uint32_t i)
{
    const mx_base *o = j->old;
    const mx_fresh *f = &j->fresh[i];
    return o->out_time[old] != f->time_s ? o->out_time[old] < f->time_s : o->out_at[old] < f->at;
}

static void merge_out(job *j)
{
    const mx_base *o = j->old;
    uint32_t to = 0;
    group(j, false);
    for (int32_t node = 0; node < j->head.nodes; node++) {
        bool was = node < o->head.nodes;
        uint32_t a = was ? o->out_begin[node] : 0, a_end = was ? o->out_begin[node + 1] : 0, b = j->begin[node], b_end = j->begin[node + 1];
        j->new->out_begin[node] = to;
        sort_group(j, b, b_end);
        while (a < a_end || b < b_end) {
            bool old = b == b_end || (a < a_end && old_first(j, a, j->order[b]));
            uint32_t other = old ? o->out_other[a] : j->fresh[j->order[b]].other;
            if (out_of(j, (uint32_t)node, other)) j->moved[old ? a : o->head.events + j->order[b]] = UINT32_MAX;
            else if (old) put_old(j, a, to++);
            else put_fresh(j, j->order[b], to++);
            if (old) a++;
            else b++;
        }
    }
    j->new->out_begin[j->head.nodes] = to;
}

static void merge_in(job *j)
{
    const mx_base *o = j->old;
    mx_base *n = j->new;
    uint32_t to = 0;
    group(j, true);
    for (int32_t node = 0; node < j->head.nodes; node++) {
        bool was = node < o->head.nodes;
        uint32_t a = was ? o->in_begin[node] : 0, a_end = was ? o->in_begin[node + 1] : 0, b = j->begin[node], b_end = j->begin[node + 1];
        n->in_begin[node] = to;
        sort_group(j, b, b_end);
        while (a < a_end || b < b_end) {
            bool old = b == b_end || (a < a_end && old_first(j, o->in_ref[a], j->order[b]));
            uint32_t ref = j->moved[old ? o->in_ref[a] : o->head.events + j->order[b]];
            const mx_fresh *f = &j->fresh[old ? 0 : j->order[b]];
            if (ref != UINT32_MAX) {
                n->in_other[to] = old ? o->in_other[a] : mx_edge_word((int32_t)f->subject, mx_edge_type(f->other));
                n->in_ref[to++] = ref;
            }
            if (old) a++;
            else b++;
        }
    }
    n->in_begin[j->head.nodes] = to;
}

static void put_keys(job *j)
{
    mx_base *b = j->new;
    uint64_t at = 0;
    uint32_t mask = j->head.key_slots - 1;
    int32_t old = j->old->head.nodes;
    for (int32_t node = 0; node < j->head.nodes; node++) {
        size_t len;
        const char *key = key_of(j, node, &len);
        b->node_type[node] = is_gone(j, node) ? (uint8_t)MX_TYPE_GONE : node < old ? j->old->node_type[node] : j->late.type[node - old];
        b->key_begin[node] = at;
        memcpy(b->keys + at, key, len);
        at += len;
        if (b->node_type[node] == MX_TYPE_GONE) continue;
        uint32_t slot = (uint32_t)mx_key_hash(b->node_type[node], key, len) & mask;
        while (b->key_slot[slot]) slot = (slot + 1) & mask;
        b->key_slot[slot] = (uint32_t)node + 1;
    }
    b->key_begin[j->head.nodes] = at;
}

/* ---- fingerprints: old and new in rising order, each as near as can be to where it belongs ----------------- */

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* to NULL: only how many slots it takes. */
static uint64_t put_prints(const job *j, uint64_t range, uint64_t *to)
{
    const mx_base *o = j->old;
    uint64_t next = 0, a = 0;
    uint32_t b = 0;
    for (;;) {
        while (a < o->head.seen_slots && !o->seen[a]) a++;
        bool more = a < o->head.seen_slots;
        if (!more && b == j->m) return next;
        uint64_t v = more && (b == j->m || o->seen[a] < j->prints[b]) ? o->seen[a++] : j->prints[b++];
        uint64_t home = mx_seen_home(v, range);
        if (home > next) next = home;
        if (to) to[next] = v;
        next++;
    }
}

static mx_status size_prints(job *j, mx_error *err)
{
    j->prints = malloc(8 * (size_t)j->m + 8);
    if (!j->prints) return mx_fail(err, MX_ERR_NO_MEMORY, "the ids of %u events", j->m);
    for (uint32_t i = 0; i < j->m; i++) j->prints[i] = j->fresh[i].print;
    qsort(j->prints, j->m, sizeof *j->prints, by_value);
    j->head.seen = j->old->head.seen + j->m;
    j->head.seen_range = j->head.seen + j->head.seen / 3 + 1;
    j->head.seen_slots = put_prints(j, j->head.seen_range, NULL);
    return MX_OK;
}

/* ---- all of it ------------------------------------------------------------------------------------------------ */

static mx_status build(mx_user_graph *g, job *j, const int32_t *gone, int32_t n_gone, mx_error *err)
{
    size_t nodes = (size_t)j->head.nodes;
    j->left_out = n_gone ? calloc(nodes + 1, 1) : NULL;
    j->begin = malloc(4 * (nodes + 1));
    j->order = malloc(4 * (size_t)j->m + 4);
    j->moved = malloc(4 * ((size_t)j->old->head.events + j->m) + 4);
    if ((n_gone && !j->left_out) || !j->begin || !j->order || !j->moved) return mx_fail(err, MX_ERR_NO_MEMORY, "merging %u events", j->m);
    for (int32_t i = 0; i < n_gone; i++) j->left_out[gone[i]] = 1;
    count(j);
    MX_TRY(size_prints(j, err));
    MX_TRY(mx_base_create(&j->new, g->folder, &j->head, err));
    put_keys(j);
    merge_out(j);
    merge_in(j);
    put_prints(j, j->head.seen_range, j->new->seen);
    memcpy(j->new->gone, j->gone, sizeof *j->gone * (size_t)j->head.erased);
    return mx_base_publish(j->new, g->folder, err);
}

static void job_free(job *j)
{
    free(j->fresh);
    free(j->late.begin);
    free(j->late.type);
    free(j->late.keys);
    free(j->gone);
    free(j->left_out);
    free(j->begin);
    free(j->order);
    free(j->moved);
    free(j->prints);
}

mx_status mx_merge(mx_user_graph *g, const int32_t *gone, int32_t n_gone, mx_error *err)
{
    job j = {0};
    uint64_t start = mx_now_ns(&mx_clock_monotonic);
    pthread_mutex_lock(&g->write);
    mx_status st = freeze(g, &j, err);
    pthread_mutex_unlock(&g->write);
    if (!st) st = mx_event_log_sync(g->log, err);         /* the snapshot knows nothing that the disk does not */
    if (!st) st = build(g, &j, gone, n_gone, err);
    if (st && j.new) mx_base_abandon(j.new, g->folder);
    if (!st) {
        mx_base *old = g->base;
        pthread_mutex_lock(&g->write);
        pthread_rwlock_wrlock(&g->lock);
        g->base = j.new;
        mx_fresh_drop(g, j.m, j.late.count);
        g->merge_s = (double)(mx_now_ns(&mx_clock_monotonic) - start) / 1e9;
        g->merges++;
        pthread_rwlock_unlock(&g->lock);
        pthread_mutex_unlock(&g->write);
        mx_base_close(old);
    }
    job_free(&j);
    return st;
}
