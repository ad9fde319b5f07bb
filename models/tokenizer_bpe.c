/* tokenizer_bpe.c - byte pair encoding: the merge table and the merging of one word.
 *
 * Sennrich, Haddow, Birch: Neural Machine Translation of Rare Words with Subword
 * Units (ACL 2016), section 3.2.  Always the adjacent pair of lowest rank, the
 * leftmost of equals.  A short word is scanned; a long one keeps its pairs in a
 * heap over a linked list, so that n symbols cost O(n log n). */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>

#define NONE UINT32_MAX
enum { SHORT_WORD = 24 };          /* symbols; below it a scan beats the heap */

static inline uint32_t pair_hash(const mx_merges *m, uint32_t left, uint32_t right)
{
    return (uint32_t)(((uint64_t)left << 32 | right) * 0x9e3779b97f4a7c15u >> m->shift);
}

mx_status mx_merges_reserve(mx_merges *m, size_t count)
{
    size_t n = 64;
    int bits = 6;
    if (count > (size_t)1 << 26) return MX_ERR_NO_MEMORY;
    while (n < count * 2) n *= 2, bits++;
    if (n <= m->n_slots) return MX_OK;
    mx_pair *old = m->slot;
    uint32_t n_old = m->n_slots;
    mx_pair *slot = malloc(n * sizeof *slot);
    if (!slot) return MX_ERR_NO_MEMORY;
    memset(slot, 0xff, n * sizeof *slot);
    m->slot = slot;
    m->n_slots = (uint32_t)n;
    m->shift = 64 - bits;
    m->n_used = 0;
    for (uint32_t i = 0; i < n_old; i++)
        if (old[i].id != NONE) mx_merges_put(m, old[i].left, old[i].right, old[i].rank, old[i].id);
    free(old);
    return MX_OK;
}

/* A pair that is listed twice has its last rank, as in Hugging Face's hash map. */
void mx_merges_put(mx_merges *m, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    uint32_t at = pair_hash(m, left, right);
    while (m->slot[at].id != NONE && (m->slot[at].left != left || m->slot[at].right != right))
        at = (at + 1) & (m->n_slots - 1);
    if (m->slot[at].id == NONE) m->n_used++;
    m->slot[at] = (mx_pair){left, right, rank, id};
}

void mx_merges_free(mx_merges *m)
{
    free(m->slot);
    memset(m, 0, sizeof *m);
}

static int shown(size_t n)                 /* of a string in an error */
{
    return n < 60 ? (int)n : 60;
}

mx_status mx_merges_add(mx_tokenizer *t, const char *left, size_t n_left, const char *right, size_t n_right,
                        uint32_t rank, const char *what, mx_error *err)
{
    char small[256], *both = small;
    size_t n;
    if (!n_left || !n_right)
        return mx_fail(err, MX_ERR_FORMAT, "%s: merge %u has an empty part", what, rank);
    if (!mx_add_size(n_left, n_right, &n))
        return mx_fail(err, MX_ERR_FORMAT, "%s: merge %u is too long", what, rank);
    if (n > sizeof small && !(both = mx_slab_alloc(n)))
        return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for merge %u", what, rank);
    memcpy(both, left, n_left);
    memcpy(both + n_left, right, n_right);
    int32_t l = mx_vocab_find(&t->vocab, left, n_left), r = mx_vocab_find(&t->vocab, right, n_right);
    int32_t id = mx_vocab_find(&t->vocab, both, n);
    if (both != small) mx_slab_free(both);
    if (l < 0 || r < 0)
        return mx_fail(err, MX_ERR_FORMAT, "%s: merge %u refers to \"%.*s\", which is not in the vocabulary", what, rank,
                       shown(l < 0 ? n_left : n_right), l < 0 ? left : right);
    if (id < 0)
        return mx_fail(err, MX_ERR_FORMAT, "%s: merge %u makes \"%.*s%.*s\", which is not in the vocabulary", what, rank,
                       shown(n_left), left, shown(n_right), right);
    if (t->merges.n_used * 2 >= t->merges.n_slots && mx_merges_reserve(&t->merges, (size_t)t->merges.n_used + 64))
        return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for the merges", what);
    mx_merges_put(&t->merges, (uint32_t)l, (uint32_t)r, rank, (uint32_t)id);
    return MX_OK;
}

static inline const mx_pair *find_pair(const mx_merges *m, uint32_t left, uint32_t right)
{
    uint32_t at = pair_hash(m, left, right);
    for (;; at = (at + 1) & (m->n_slots - 1)) {
        const mx_pair *p = &m->slot[at];
        if (p->left == left && p->right == right && p->id != NONE) return p;
        if (p->id == NONE) return NULL;
    }
}

/* ---- scratch ---- */

void mx_bpe_scratch_free(mx_bpe_scratch *s)
{
    mx_slab_free(s->id);
    mx_slab_free(s->prev);
    mx_slab_free(s->next);
    mx_slab_free(s->heap);
    memset(s, 0, sizeof *s);
}

mx_status mx_bpe_reserve(mx_bpe_scratch *s, size_t n)
{
    if (n <= s->room) return MX_OK;
    if (n > INT32_MAX) return MX_ERR_NO_MEMORY;
    size_t room = n + n / 2 + 64;
    uint32_t *id = mx_slab_grow(s->id, room * sizeof *id);
    if (id) s->id = id;
    int32_t *prev = mx_slab_grow(s->prev, room * sizeof *prev);
    if (prev) s->prev = prev;
    int32_t *next = mx_slab_grow(s->next, room * sizeof *next);
    if (next) s->next = next;
    if (!id || !prev || !next) return MX_ERR_NO_MEMORY;
    s->room = room;
    return MX_OK;
}

/* ---- merging ---- */

static size_t merge_short(const mx_merges *m, uint32_t *id, size_t n)
{
    uint32_t rank[SHORT_WORD], made[SHORT_WORD];       /* of the pair (i, i+1) */
    for (size_t i = 0; i + 1 < n; i++) {
        const mx_pair *p = find_pair(m, id[i], id[i + 1]);
        rank[i] = p ? p->rank : NONE;
        made[i] = p ? p->id : NONE;
    }
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NONE) break;
        id[best] = made[best];
        n--;
        for (size_t i = best + 1; i < n; i++) id[i] = id[i + 1];
        for (size_t i = best; i + 1 < n; i++) rank[i] = rank[i + 1], made[i] = made[i + 1];
        for (size_t i = best ? best - 1 : 0; i <= best && i + 1 < n; i++) {
            const mx_pair *p = find_pair(m, id[i], id[i + 1]);
            rank[i] = p ? p->rank : NONE;
            made[i] = p ? p->id : NONE;
        }
    }
    return n;
}

static inline bool earlier(const mx_heap_entry *a, const mx_heap_entry *b)
{
    return a->rank < b->rank || (a->rank == b->rank && a->at < b->at);
}

static void heap_push(mx_bpe_scratch *s, mx_heap_entry e)
{
    size_t i = s->n_heap++;
    for (; i; i = (i - 1) / 2) {
        mx_heap_entry *up = &s->heap[(i - 1) / 2];
        if (!earlier(&e, up)) break;
        s->heap[i] = *up;
    }
    s->heap[i] = e;
}

static mx_heap_entry heap_pop(mx_bpe_scratch *s)
{
    mx_heap_entry top = s->heap[0], e = s->heap[--s->n_heap];
    size_t i = 0;
    for (;;) {
        size_t c = 2 * i + 1;
        if (c >= s->n_heap) break;
        if (c + 1 < s->n_heap && earlier(&s->heap[c + 1], &s->heap[c])) c++;
        if (!earlier(&s->heap[c], &e)) break;
        s->heap[i] = s->heap[c];
        i = c;
    }
    s->heap[i] = e;
    return top;
}

static void push_pair(const mx_merges *m, mx_bpe_scratch *s, int32_t left, int32_t right)
{
    const mx_pair *p = find_pair(m, s->id[left], s->id[right]);
    if (p) heap_push(s, (mx_heap_entry){p->rank, (uint32_t)left, p->left, p->right, p->id});
}

static mx_status merge_long(const mx_merges *m, mx_bpe_scratch *s, size_t n, size_t *n_out)
{
    /* n-1 pairs at first, two more for each of at most n-1 merges */
    size_t need;
    if (!mx_mul_size(n, 3, &need)) return MX_ERR_NO_MEMORY;
    if (need > s->room_heap) {
        size_t bytes;
        if (!mx_mul_size(need, sizeof *s->heap, &bytes)) return MX_ERR_NO_MEMORY;
        mx_slab_free(s->heap);
        s->heap = mx_slab_alloc(bytes);
        s->room_heap = s->heap ? need : 0;
        if (!s->heap) return MX_ERR_NO_MEMORY;
    }
    s->n_heap = 0;
    for (size_t i = 0; i < n; i++) {
        s->prev[i] = (int32_t)i - 1;
        s->next[i] = i + 1 < n ? (int32_t)i + 1 : -1;
    }
    for (size_t i = 0; i + 1 < n; i++) push_pair(m, s, (int32_t)i, (int32_t)i + 1);
    while (s->n_heap) {
        mx_heap_entry e = heap_pop(s);
        int32_t right = s->next[e.at];
        /* A symbol that was merged away has id NONE: such entries are stale and fall out here. */
        if (s->id[e.at] != e.left || right < 0 || s->id[right] != e.right) continue;
        s->id[e.at] = e.id;
        s->id[right] = NONE;
        int32_t after = s->next[right];
        s->next[e.at] = after;
        if (after >= 0) s->prev[after] = (int32_t)e.at;
        if (s->prev[e.at] >= 0) push_pair(m, s, s->prev[e.at], (int32_t)e.at);
        if (after >= 0) push_pair(m, s, (int32_t)e.at, after);
    }
    size_t k = 0;
    for (size_t i = 0; i < n; i++)
        if (s->id[i] != NONE) s->id[k++] = s->id[i];
    *n_out = k;
    return MX_OK;
}

mx_status mx_bpe_merge(const mx_merges *m, mx_bpe_scratch *s, size_t n, size_t *n_out)
{
    *n_out = n;
    if (n < 2 || !m->n_slots) return MX_OK;
    if (n > SHORT_WORD) return merge_long(m, s, n, n_out);
    *n_out = merge_short(m, s->id, n);
    return MX_OK;
}
