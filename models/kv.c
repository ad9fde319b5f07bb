/* kv.c - pages, sequences, shared prefixes. */
#include "models/kv.h"

#include "runtime/slab.h"

#include <stdlib.h>

struct mx_kv_page {
    int32_t  holders;              /* sequences that have it                       */
    int32_t  prev, next;           /* in the free list, or among the released      */
    int32_t  chain;                /* next page of the same bucket                 */
    uint64_t content, parent;      /* index key; content 0: not indexed            */
};

/* ---- open and close ----------------------------------------------------------- */

size_t mx_kv_page_bytes(int32_t layers, int32_t page_tokens, int32_t kv_heads, int32_t head_dim, mx_dtype dtype)
{
    size_t n = (size_t)layers;
    if (!mx_mul_size(n, 2 * (size_t)page_tokens, &n) || !mx_mul_size(n, (size_t)kv_heads, &n) ||
        !mx_mul_size(n, (size_t)head_dim, &n) || !mx_mul_size(n, mx_dtype_size(dtype), &n))
        return 0;
    return n;
}

mx_status mx_kv_open(mx_kv_cache *c, mx_device *d, int32_t layers, int32_t pages, int32_t page_tokens,
                     int32_t kv_heads, int32_t head_dim, mx_dtype dtype, bool share, mx_error *err)
{
    *c = (mx_kv_cache){.layers = layers, .pages = pages, .page_tokens = page_tokens, .share = share};
    c->page_bytes = mx_kv_page_bytes(layers, page_tokens, kv_heads, head_dim, dtype);
    size_t total;
    if (pages < 1 || page_tokens < 1 || !c->page_bytes || (int64_t)pages * page_tokens > INT32_MAX ||
        !mx_mul_size(c->page_bytes, (size_t)pages, &total))
        return mx_fail(err, MX_ERR_ARG, "KV cache of %d pages of %d tokens: too large", pages, page_tokens);
    mx_status st;
    MX_TRY_GOTO(st, mx_buffer_open(&c->memory, d, total, err), fail);

    c->buckets = 16;
    while (c->buckets < (uint32_t)pages) c->buckets *= 2;
    c->layer = calloc((size_t)layers, sizeof *c->layer);
    c->page = calloc((size_t)pages, sizeof *c->page);
    c->tokens = calloc((size_t)pages * (size_t)page_tokens, sizeof *c->tokens);
    c->bucket = malloc(c->buckets * sizeof *c->bucket);
    if (!c->layer || !c->page || !c->tokens || !c->bucket) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "KV cache: tables of %d pages", pages);
        goto fail;
    }
    size_t half = c->page_bytes / 2 / (size_t)layers * (size_t)pages;     /* k or v of one layer */
    for (int32_t l = 0; l < layers; l++)
        c->layer[l] = (mx_kv){.k = (char *)c->memory.base + 2 * (size_t)l * half,
                              .v = (char *)c->memory.base + (2 * (size_t)l + 1) * half,
                              .dtype = dtype, .pages = pages, .page_tokens = page_tokens,
                              .kv_heads = kv_heads, .head_dim = head_dim};
    for (uint32_t b = 0; b < c->buckets; b++) c->bucket[b] = -1;
    for (int32_t p = 0; p < pages; p++) c->page[p].next = p + 1 < pages ? p + 1 : -1;
    c->old_head = c->old_tail = -1;
    atomic_store(&c->available, pages);
    return MX_OK;
fail:
    mx_kv_close(c);
    return st;
}

void mx_kv_close(mx_kv_cache *c)
{
    free(c->bucket);
    free(c->tokens);
    free(c->page);
    free(c->layer);
    mx_buffer_close(&c->memory);
    *c = (mx_kv_cache){0};
}

/* ---- the index ------------------------------------------------------------------ */

static uint32_t bucket_of(const mx_kv_cache *c, uint64_t parent, const int32_t *ids)
{
    uint64_t h = parent * 0x9e3779b97f4a7c15u + 0x632be59bd9b4e019u;
    for (int32_t i = 0; i < c->page_tokens; i++) {
        h = (h ^ (uint32_t)ids[i]) * 0xff51afd7ed558ccdu;
        h ^= h >> 32;
    }
    return (uint32_t)h & (c->buckets - 1);
}

static int32_t *page_tokens(const mx_kv_cache *c, int32_t p)
{
    return c->tokens + (size_t)p * (size_t)c->page_tokens;
}

static int32_t index_find(const mx_kv_cache *c, uint64_t parent, const int32_t *ids)
{
    for (int32_t p = c->bucket[bucket_of(c, parent, ids)]; p >= 0; p = c->page[p].chain)
        if (c->page[p].parent == parent && !memcmp(page_tokens(c, p), ids, (size_t)c->page_tokens * sizeof *ids))
            return p;
    return -1;
}

static void index_remove(mx_kv_cache *c, int32_t p)
{
    int32_t *at = &c->bucket[bucket_of(c, c->page[p].parent, page_tokens(c, p))];
    while (*at != p) at = &c->page[*at].chain;
    *at = c->page[p].chain;
    c->page[p].content = 0;
}

/* ---- pages ------------------------------------------------------------------------ */

static void old_unlink(mx_kv_cache *c, int32_t p)
{
    mx_kv_page *g = &c->page[p];
    if (g->prev >= 0) c->page[g->prev].next = g->next;
    else c->old_head = g->next;
    if (g->next >= 0) c->page[g->next].prev = g->prev;
    else c->old_tail = g->prev;
}

static void hold(mx_kv_cache *c, int32_t p)
{
    if (c->page[p].holders++ == 0) {           /* it was waiting among the released */
        old_unlink(c, p);
        atomic_fetch_sub(&c->available, 1);
    }
}

static int32_t take(mx_kv_cache *c)
{
    int32_t p = c->free_head;
    if (p >= 0) {
        c->free_head = c->page[p].next;
    } else {
        p = c->old_head;
        if (p < 0) return -1;
        old_unlink(c, p);
        index_remove(c, p);
    }
    c->page[p].holders = 1;
    atomic_fetch_sub(&c->available, 1);
    return p;
}

static void drop(mx_kv_cache *c, int32_t p)
{
    mx_kv_page *g = &c->page[p];
    if (--g->holders) return;
    atomic_fetch_add(&c->available, 1);
    if (!g->content) {
        g->next = c->free_head;
        c->free_head = p;
        return;
    }
    g->prev = c->old_tail;
    g->next = -1;
    if (c->old_tail >= 0) c->page[c->old_tail].next = p;
    else c->old_head = p;
    c->old_tail = p;
}

/* ---- sequences ---------------------------------------------------------------------- */

static bool seq_room(mx_kv_seq *s, int32_t pages)
{
    if (pages <= s->room) return true;
    int32_t room = s->room ? s->room : 8;
    while (room < pages) room *= 2;
    int32_t *grown = mx_slab_grow(s->page, (size_t)room * sizeof *grown);
    if (!grown) return false;
    s->page = grown;
    s->room = room;
    return true;
}

int32_t mx_kv_match(mx_kv_cache *c, mx_kv_seq *s, const int32_t *ids, int32_t n)
{
    if (!c->share || s->n_pages) return 0;
    while (s->n_tokens + c->page_tokens <= n) {
        int32_t p = index_find(c, s->content, ids + s->n_tokens);
        if (p < 0 || !seq_room(s, s->n_pages + 1)) break;
        hold(c, p);
        s->page[s->n_pages++] = p;
        s->n_tokens += c->page_tokens;
        s->n_indexed++;
        s->content = c->page[p].content;
    }
    return s->n_tokens;
}

bool mx_kv_reserve(mx_kv_cache *c, mx_kv_seq *s, int32_t n_tokens, mx_kv_copies *copies)
{
    if (n_tokens <= s->n_tokens) return true;
    int32_t pages = (n_tokens + c->page_tokens - 1) / c->page_tokens;
    int32_t last = s->n_tokens / c->page_tokens;          /* the page that is written first */
    bool    copy = last < s->n_pages && c->page[s->page[last]].holders > 1;
    int32_t need = pages - s->n_pages + copy;
    if (need > atomic_load(&c->available) || (copy && copies->n == copies->room) || !seq_room(s, pages)) return false;
    if (copy) {
        int32_t fresh = take(c), shared = s->page[last];
        copies->from_to[2 * copies->n] = shared;
        copies->from_to[2 * copies->n + 1] = fresh;
        copies->n++;
        s->page[last] = fresh;
        drop(c, shared);
    }
    while (s->n_pages < pages) s->page[s->n_pages++] = take(c);
    s->n_tokens = n_tokens;
    return true;
}

void mx_kv_commit(mx_kv_cache *c, mx_kv_seq *s, const int32_t *ids, int32_t n)
{
    if (!c->share) return;
    if (n > s->n_tokens) n = s->n_tokens;
    for (; (s->n_indexed + 1) * c->page_tokens <= n; s->n_indexed++) {
        int32_t p = s->page[s->n_indexed];
        const int32_t *own = ids + s->n_indexed * c->page_tokens;
        mx_kv_page *g = &c->page[p];
        if (!g->content) {
            int32_t twin = index_find(c, s->content, own);
            if (twin >= 0) {                   /* somebody computed the same meanwhile: keep the first */
                s->content = c->page[twin].content;
                continue;
            }
            uint32_t b = bucket_of(c, s->content, own);
            memcpy(page_tokens(c, p), own, (size_t)c->page_tokens * sizeof *own);
            g->parent = s->content;
            g->content = ++c->next_content;
            g->chain = c->bucket[b];
            c->bucket[b] = p;
        }
        s->content = g->content;
    }
}

bool mx_kv_fork(mx_kv_cache *c, mx_kv_seq *dst, const mx_kv_seq *src)
{
    if (!seq_room(dst, src->n_pages)) return false;
    for (int32_t i = 0; i < src->n_pages; i++) {
        dst->page[i] = src->page[i];
        hold(c, src->page[i]);
    }
    dst->n_pages = src->n_pages;
    dst->n_tokens = src->n_tokens;
    dst->n_indexed = src->n_indexed;
    dst->content = src->content;
    return true;
}

void mx_kv_release(mx_kv_cache *c, mx_kv_seq *s)
{
    /* From the end: a prefix is useful without its continuation, not the other way round. */
    for (int32_t i = s->n_pages - 1; i >= 0; i--) drop(c, s->page[i]);
    mx_slab_free(s->page);
    *s = (mx_kv_seq){0};
}
