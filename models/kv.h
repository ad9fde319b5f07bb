/* kv.h - the paged KV cache: pages, sequences, shared prefixes.
 *
 * Pages of page_tokens tokens cover all layers at once: page p is the same index
 * in every layer's mx_kv.  A page is held by as many sequences as share it
 * (vLLM's PagedAttention, Kwon et al. 2023).  A full page whose tokens are known
 * is put in an index, keyed by the page before it and its own tokens, so that a
 * later prompt with the same beginning finds it (compared token by token: a hash
 * never decides).  A page nobody holds stays in the index until memory is
 * needed; the least recently released goes first.
 *
 * THREADS: one, the device's worker.  The counters at the end are read by
 * anybody. */
#ifndef MX_KV_CACHE_H
#define MX_KV_CACHE_H

#include "kernels/ops.h"

#include <stdatomic.h>

typedef struct mx_kv_page mx_kv_page;

typedef struct mx_kv_cache {
    mx_buffer   memory;
    mx_kv      *layer;             /* [layers]                                          */
    int32_t     layers, pages, page_tokens;
    size_t      page_bytes;        /* of one page in all layers                         */
    bool        share;             /* prefix index on                                   */
    mx_kv_page *page;              /* [pages]                                           */
    int32_t    *tokens;            /* [pages][page_tokens]: what an indexed page holds  */
    int32_t    *bucket;            /* hash heads of the index                           */
    uint32_t    buckets;           /* a power of two                                    */
    int32_t     free_head;         /* pages with nothing in them                        */
    int32_t     old_head, old_tail;/* released pages still in the index, oldest first   */
    uint64_t    next_content;      /* names the content of an indexed page, never reused */
    atomic_int  available;         /* pages nobody holds                                */
} mx_kv_cache;

/* What one sequence has: its pages and how many tokens they hold.  Zero it. */
typedef struct mx_kv_seq {
    int32_t *page;
    int32_t  n_pages, room;
    int32_t  n_tokens;             /* computed or being computed in this turn            */
    int32_t  n_indexed;            /* leading pages already offered to the index         */
    uint64_t content;              /* of the last of those; 0: none                      */
} mx_kv_seq;

typedef struct mx_kv_copies {      /* page copies a turn must make before it writes      */
    int32_t *from_to;              /* [n][2], room for `room` */
    int32_t  n, room;
} mx_kv_copies;

/* Errors: MX_ERR_ARG, MX_ERR_NO_MEMORY. */
mx_status mx_kv_open(mx_kv_cache *c, mx_device *d, int32_t layers, int32_t pages, int32_t page_tokens,
                     int32_t kv_heads, int32_t head_dim, mx_dtype dtype, bool share, mx_error *err);
void      mx_kv_close(mx_kv_cache *c);
size_t    mx_kv_page_bytes(int32_t layers, int32_t page_tokens, int32_t kv_heads, int32_t head_dim, mx_dtype dtype);

/* Take the longest indexed prefix of ids[0..n) (whole pages) into an empty
 * sequence; returns its tokens.  MX_ERR_NO_MEMORY of the host is "nothing found". */
int32_t   mx_kv_match(mx_kv_cache *c, mx_kv_seq *s, const int32_t *ids, int32_t n);

/* Make room to write tokens s->n_tokens .. n_tokens-1: new pages, and a private
 * copy of a shared last page (recorded in copies).  On false nothing has changed:
 * pages (or host memory) are out. */
bool      mx_kv_reserve(mx_kv_cache *c, mx_kv_seq *s, int32_t n_tokens, mx_kv_copies *copies);

/* The first n of its tokens are computed and are ids: index the pages that are full of them. */
void      mx_kv_commit(mx_kv_cache *c, mx_kv_seq *s, const int32_t *ids, int32_t n);

/* dst (empty) holds the same pages as src; who writes first copies. */
bool      mx_kv_fork(mx_kv_cache *c, mx_kv_seq *dst, const mx_kv_seq *src);

/* Give the pages back and zero the sequence. */
void      mx_kv_release(mx_kv_cache *c, mx_kv_seq *s);

static inline int32_t mx_kv_slot(const mx_kv_cache *c, const mx_kv_seq *s, int32_t position)
{
    return s->page[position / c->page_tokens] * c->page_tokens + position % c->page_tokens;
}

#endif
