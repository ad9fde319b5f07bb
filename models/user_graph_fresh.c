/* user_graph_fresh.c - what came since the base: events in lists by node, new nodes, ids. */
#include "models/user_graph_internal.h"

#include "runtime/tensor.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

/* ---- hashes ------------------------------------------------------------------------------ */

__extension__ typedef unsigned __int128 wide;

static uint64_t fold(uint64_t a, uint64_t b)
{
    wide w = (wide)a * b;
    return (uint64_t)w ^ (uint64_t)(w >> 64);
}

/* Words multiplied into each other, 128 bits folded to 64 (as in wyhash, Wang Yi 2019). */
static uint64_t hash_bytes(uint64_t seed, const char *p, size_t n)
{
    uint64_t h = fold(seed ^ 0xa0761d6478bd642fu, n ^ 0xe7037ed1a0b428dbu);
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        h = fold(h ^ v ^ 0x8ebc6af09c88c6e3u, 0x589965cc75374cc3u ^ (h >> 32));
    }
    uint64_t v = 0;
    memcpy(&v, p, n);
    h = fold(h ^ v, 0x1d8e4e27c47d124fu);
    return fold(h ^ 0xeb44accab455d165u, h | 1);
}

uint64_t mx_key_hash(int32_t type, const char *key, size_t len) { return hash_bytes((uint64_t)type, key, len); }

/* Keyed by the store's salt: nobody can choose ids that collide. */
uint64_t mx_id_print(const mx_user_graph *g, const char *id)
{
    uint64_t a, b;
    memcpy(&a, g->salt, 8);
    memcpy(&b, g->salt + 8, 8);
    uint64_t h = fold(hash_bytes(a, id, strlen(id)) ^ b, b | 1);
    return h ? h : 1;
}

bool mx_sha256(const void *data, size_t n, uint8_t out[32])
{
    unsigned len = 0;
    return EVP_Digest(data, n, out, &len, EVP_sha256(), NULL) == 1;
}

void mx_subject_digest(const mx_user_graph *g, int32_t type, const char *key, mx_digest *out)
{
    uint8_t text[16 + 1 + MX_KEY_MOST];
    size_t n = strlen(key);
    memcpy(text, g->salt, 16);
    text[16] = (uint8_t)type;
    memcpy(text + 17, key, n);
    mx_sha256(text, 17 + n, out->byte);
}

void mx_hex(const uint8_t *bytes, size_t n, char *to)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        to[2 * i] = digit[bytes[i] >> 4];
        to[2 * i + 1] = digit[bytes[i] & 15];
    }
    to[2 * n] = 0;
}

/* ---- ids that were seen ---------------------------------------------------------------------- */

bool mx_prints_add(mx_prints *p, uint64_t print)
{
    size_t i = (size_t)print & (p->slots - 1);
    for (; p->slot[i]; i = (i + 1) & (p->slots - 1))
        if (p->slot[i] == print) return false;
    p->slot[i] = print;
    p->count++;
    return true;
}

/* What stands behind and would no longer be found moves forward. */
void mx_prints_remove(mx_prints *p, uint64_t print)
{
    size_t mask = p->slots - 1, i = (size_t)print & mask;
    while (p->slot[i] && p->slot[i] != print) i = (i + 1) & mask;
    if (!p->slot[i]) return;
    p->count--;
    for (size_t j = (i + 1) & mask; p->slot[j]; j = (j + 1) & mask) {
        size_t home = (size_t)p->slot[j] & mask;
        if (((j - home) & mask) < ((j - i) & mask)) continue;
        p->slot[i] = p->slot[j];
        i = j;
    }
    p->slot[i] = 0;
}

static mx_status prints_reserve(mx_prints *p, size_t more, mx_error *err)
{
    if (p->slots && 2 * (p->count + more) <= p->slots) return MX_OK;
    mx_prints grown = {.slots = p->slots ? p->slots : 1024};
    while (2 * (p->count + more) > grown.slots) grown.slots *= 2;
    grown.slot = calloc(grown.slots, sizeof *grown.slot);
    if (!grown.slot) return mx_fail(err, MX_ERR_NO_MEMORY, "the ids of %zu events", p->count + more);
    for (size_t i = 0; i < p->slots; i++)
        if (p->slot[i]) mx_prints_add(&grown, p->slot[i]);
    free(p->slot);
    *p = grown;
    return MX_OK;
}

/* ---- nodes --------------------------------------------------------------------------------------- */

static void late_place(mx_late_nodes *l, int32_t i)
{
    uint64_t h = mx_key_hash(l->type[i], l->keys + l->begin[i], (size_t)(l->begin[i + 1] - l->begin[i]));
    uint32_t mask = l->slots - 1, at = (uint32_t)h & mask;
    while (l->slot[at]) at = (at + 1) & mask;
    l->slot[at] = (uint32_t)i + 1;
}

static int32_t late_find(const mx_late_nodes *l, int32_t type, const char *key, size_t len, uint64_t hash)
{
    if (!l->count) return -1;
    uint32_t mask = l->slots - 1;
    for (uint32_t at = (uint32_t)hash & mask; l->slot[at]; at = (at + 1) & mask) {
        int32_t i = (int32_t)l->slot[at] - 1;
        if (l->type[i] == type && l->begin[i + 1] - l->begin[i] == len && !memcmp(l->keys + l->begin[i], key, len)) return i;
    }
    return -1;
}

int32_t mx_node_find(const mx_user_graph *g, int32_t type, const char *key)
{
    size_t len = strlen(key);
    uint64_t h = mx_key_hash(type, key, len);
    int32_t node = mx_base_find(g->base, type, key, len, h);
    if (node >= 0) return node;
    node = late_find(&g->late, type, key, len, h);
    return node < 0 ? -1 : node + g->base->head.nodes;
}

const char *mx_node_key(const mx_user_graph *g, int32_t node, int32_t *type, size_t *len)
{
    const mx_base *b = g->base;
    int32_t n = b->head.nodes;
    if (node < 0 || node >= n + g->late.count) return NULL;
    *type = node < n ? b->node_type[node] : g->late.type[node - n];
    const uint64_t *begin = node < n ? b->key_begin + node : g->late.begin + (node - n);
    *len = (size_t)(begin[1] - begin[0]);
    return *type == (int32_t)MX_TYPE_GONE ? NULL : (node < n ? b->keys : g->late.keys) + begin[0];
}

static int32_t intern(mx_user_graph *g, int32_t type, const char *key)
{
    int32_t node = mx_node_find(g, type, key);
    if (node >= 0) return node;
    mx_late_nodes *l = &g->late;
    size_t len = strlen(key);
    int32_t i = l->count;
    l->type[i] = (uint8_t)type;
    memcpy(l->keys + l->begin[i], key, len);
    l->begin[i + 1] = l->begin[i] + len;
    late_place(l, i);
    l->count++;
    return i + g->base->head.nodes;
}

static bool grow(void *array, size_t bytes)
{
    void *old, *grown;
    memcpy(&old, array, sizeof old);
    grown = realloc(old, bytes);
    if (!grown) return false;
    memcpy(array, &grown, sizeof grown);
    return true;
}

static mx_status nodes_reserve(mx_user_graph *g, int32_t more, size_t key_bytes, mx_error *err)
{
    mx_late_nodes *l = &g->late;
    int64_t all = (int64_t)g->base->head.nodes + l->count + more;
    if (all > MX_NODE_MOST) return mx_fail(err, MX_ERR_ARG, "the graph has no more than %d nodes", MX_NODE_MOST);
    if (l->count + more > l->room) {
        int32_t room = 2 * l->room > l->count + more ? 2 * l->room : l->count + more;
        bool first = !l->begin;
        if (!grow(&l->begin, 8 * ((size_t)room + 1)) || !grow(&l->type, (size_t)room)) return mx_fail(err, MX_ERR_NO_MEMORY, "%d new nodes", room);
        if (first) l->begin[0] = 0;
        l->room = room;
    }
    size_t keys = (size_t)l->begin[l->count] + key_bytes;
    if (keys > l->keys_room) {
        if (!grow(&l->keys, 2 * keys)) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu bytes of keys", 2 * keys);
        l->keys_room = 2 * keys;
    }
    if (2 * (uint64_t)(l->count + more) > l->slots) {
        uint32_t slots = l->slots ? l->slots : 1024;
        while (2 * (uint64_t)(l->count + more) > slots) slots *= 2;
        uint32_t *fresh = calloc(slots, sizeof *fresh);
        if (!fresh) return mx_fail(err, MX_ERR_NO_MEMORY, "%d new nodes", more);
        free(l->slot);
        l->slot = fresh;
        l->slots = slots;
        for (int32_t i = 0; i < l->count; i++) late_place(l, i);
    }
    if (all > g->heads) {
        int32_t room = all + all / 4 < MX_NODE_MOST ? (int32_t)(all + all / 4) : MX_NODE_MOST;
        if (!grow(&g->out_head, 4 * (size_t)room) || !grow(&g->in_head, 4 * (size_t)room)) return mx_fail(err, MX_ERR_NO_MEMORY, "%d nodes", room);
        memset(g->out_head + g->heads, 0, 4 * (size_t)(room - g->heads));
        memset(g->in_head + g->heads, 0, 4 * (size_t)(room - g->heads));
        g->heads = room;
    }
    return MX_OK;
}

/* ---- events ---------------------------------------------------------------------------------------- */

mx_status mx_fresh_reserve(mx_user_graph *g, int32_t events, size_t key_bytes, mx_error *err)
{
    uint64_t all = (uint64_t)g->n_fresh + (uint32_t)events;
    if (all + g->base->head.events > UINT32_MAX - 1) return mx_fail(err, MX_ERR_ARG, "the graph has no more than 2^32 events");
    if (all > g->fresh_room) {
        uint64_t room = 2 * (uint64_t)g->fresh_room > all ? 2 * (uint64_t)g->fresh_room : all;
        if (!grow(&g->fresh, room * sizeof *g->fresh)) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld events", (long long)room);
        g->fresh_room = (uint32_t)room;
    }
    MX_TRY(prints_reserve(&g->prints, (size_t)events, err));
    return nodes_reserve(g, 2 * events, key_bytes, err);
}

static void chain(mx_user_graph *g, uint32_t i)
{
    mx_fresh *f = &g->fresh[i];
    int32_t other = mx_edge_node(f->other);
    f->next_out = g->out_head[f->subject];
    g->out_head[f->subject] = i + 1;
    f->next_in = 0;
    if (other == MX_NO_NODE) return;
    f->next_in = g->in_head[other];
    g->in_head[other] = i + 1;
}

void mx_fresh_link(mx_user_graph *g, const mx_event *e, uint64_t at, uint64_t print, int32_t *subject, int32_t *object)
{
    const mx_event_type *k = &g->schema.event_type[e->type];
    *subject = intern(g, k->subject, e->subject);
    *object = k->object < 0 ? -1 : intern(g, k->object, e->object);
    g->fresh[g->n_fresh] = (mx_fresh){.other = mx_edge_word(*object < 0 ? MX_NO_NODE : *object, e->type), .time_s = mx_second_up(e->ts_ms),
                                      .subject = (uint32_t)*subject, .weight = e->weight, .at = at, .print = print};
    chain(g, g->n_fresh++);
    g->fresh_edges += *object >= 0;
    g->watermark++;
    if (e->ts_ms > g->newest_ms) g->newest_ms = e->ts_ms;
}

void mx_fresh_drop(mx_user_graph *g, uint32_t m, int32_t nodes)
{
    mx_late_nodes *l = &g->late;
    g->n_fresh -= m;
    if (g->n_fresh) memmove(g->fresh, g->fresh + m, g->n_fresh * sizeof *g->fresh);
    if (g->heads) {
        memset(g->out_head, 0, 4 * (size_t)g->heads);
        memset(g->in_head, 0, 4 * (size_t)g->heads);
    }
    if (g->prints.slots) memset(g->prints.slot, 0, 8 * g->prints.slots);
    g->prints.count = 0;
    g->fresh_edges = 0;
    if (!g->n_fresh) {                    /* what a load needed is given back */
        free(g->fresh);
        free(g->prints.slot);
        g->fresh = NULL;
        g->fresh_room = 0;
        g->prints = (mx_prints){0};
    }
    for (uint32_t i = 0; i < g->n_fresh; i++) {
        chain(g, i);
        mx_prints_add(&g->prints, g->fresh[i].print);
        g->fresh_edges += mx_edge_node(g->fresh[i].other) != MX_NO_NODE;
    }
    if (!nodes) return;
    uint64_t cut = l->begin[nodes], all = l->begin[l->count];
    memmove(l->keys, l->keys + cut, (size_t)(all - cut));
    memmove(l->type, l->type + nodes, (size_t)(l->count - nodes));
    l->count -= nodes;
    for (int32_t i = 0; i <= l->count; i++) l->begin[i] = l->begin[i + nodes] - cut;
    memset(l->slot, 0, 4 * (size_t)l->slots);
    for (int32_t i = 0; i < l->count; i++) late_place(l, i);
}

void mx_fresh_free(mx_user_graph *g)
{
    free(g->fresh);
    free(g->out_head);
    free(g->in_head);
    free(g->prints.slot);
    free(g->late.begin);
    free(g->late.type);
    free(g->late.keys);
    free(g->late.slot);
    free(g->gone);
}

/* ---- who was erased ------------------------------------------------------------------------------------- */

static int32_t gone_place(const mx_user_graph *g, const mx_digest *d, bool *there)
{
    int32_t lo = 0, hi = g->n_gone;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (memcmp(&g->gone[mid], d, sizeof *d) < 0) lo = mid + 1;
        else hi = mid;
    }
    *there = lo < g->n_gone && !memcmp(&g->gone[lo], d, sizeof *d);
    return lo;
}

mx_status mx_gone_add(mx_user_graph *g, const mx_digest *d, mx_error *err)
{
    bool there;
    int32_t at = gone_place(g, d, &there);
    if (there) return MX_OK;
    if (g->n_gone == g->gone_room) {
        int32_t room = g->gone_room ? 2 * g->gone_room : 16;
        if (!grow(&g->gone, sizeof *g->gone * (size_t)room)) return mx_fail(err, MX_ERR_NO_MEMORY, "%d erased subjects", room);
        g->gone_room = room;
    }
    memmove(g->gone + at + 1, g->gone + at, (size_t)(g->n_gone++ - at) * sizeof *g->gone);
    g->gone[at] = *d;
    return MX_OK;
}

bool mx_gone_has(const mx_user_graph *g, int32_t type, const char *key)
{
    mx_digest d;
    bool there;
    if (!g->n_gone) return false;
    mx_subject_digest(g, type, key, &d);
    gone_place(g, &d, &there);
    return there;
}
