/* batches.c - sequences of an epoch, and how they are packed. */
#include "models/batches.h"

#include <stdlib.h>

/* ---- the permutation ------------------------------------------------------------ */

static uint64_t mix(uint64_t x)                        /* SplitMix64's finaliser */
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

int64_t mx_permute(uint64_t seed, uint64_t epoch, int64_t n, int64_t i)
{
    int half = 1;
    while ((uint64_t)1 << (2 * half) < (uint64_t)n) half++;
    uint64_t mask = ((uint64_t)1 << half) - 1, key = mix(seed + 0x9e3779b97f4a7c15u * (epoch + 1)), x = (uint64_t)i;
    do {                                                /* at most 4 times too large: a few walks */
        uint64_t left = x >> half, right = x & mask;
        for (uint64_t round = 0; round < 4; round++) {
            uint64_t next = left ^ (mix(right + key + 0x632be59bd9b4e019u * (round + 1)) & mask);
            left = right;
            right = next;
        }
        x = left << half | right;
    } while (x >= (uint64_t)n);
    return (int64_t)x;
}

/* ---- sequences ---------------------------------------------------------------------- */

static int64_t pieces(const mx_batches *b, int64_t document)
{
    /* A language model's last token has no target: n tokens give n-1 rows. */
    int64_t rows = mx_dataset_at(b->data, document).n - (b->shifted ? 1 : 0);
    if (rows <= 0) return 0;
    return b->shifted ? (rows + b->length - 1) / b->length : 1;
}

static mx_status count_documents(mx_batches *b, mx_error *err)
{
    int64_t n = mx_dataset_count(b->data);
    b->first = malloc((size_t)(n + 1) * sizeof *b->first);
    if (!b->first) return mx_fail(err, MX_ERR_NO_MEMORY, "an index of %lld documents", (long long)n);
    b->first[0] = 0;
    for (int64_t i = 0; i < n; i++) b->first[i + 1] = b->first[i] + pieces(b, i);
    b->count = b->first[n];
    if (!b->count) return mx_fail(err, MX_ERR_ARG, "data: no document has two tokens");
    return MX_OK;
}

mx_status mx_batches_open(mx_batches *b, const mx_dataset *d, mx_packing packing, int32_t length, uint64_t seed, bool shuffle,
                          bool shifted, mx_error *err)
{
    *b = (mx_batches){.data = d, .packing = packing, .length = length, .seed = seed, .shuffle = shuffle, .shifted = shifted};
    if (length < 1) return mx_fail(err, MX_ERR_ARG, "length: %d is not positive", length);
    if (packing == MX_PACK_DOCUMENTS) return count_documents(b, err);
    int64_t rows = mx_dataset_tokens(d) - (shifted ? 1 : 0);
    b->count = rows / length;
    if (!b->count)
        return mx_fail(err, MX_ERR_ARG, "data: %lld tokens are fewer than one block of %d", (long long)mx_dataset_tokens(d), length);
    if (packing == MX_PACK_BLOCKS_MASKED) {
        int64_t n = mx_dataset_count(d), at = 0;
        b->first = malloc((size_t)(n + 1) * sizeof *b->first);
        if (!b->first) return mx_fail(err, MX_ERR_NO_MEMORY, "an index of %lld documents", (long long)n);
        for (int64_t i = 0; i < n; i++) {
            b->first[i] = at;
            at += mx_dataset_at(d, i).n;
        }
        b->first[n] = at;
    }
    return MX_OK;
}

mx_status mx_batches_open_range(mx_batches *b, int64_t first, int64_t count, uint64_t hash, uint64_t seed, bool shuffle, mx_error *err)
{
    *b = (mx_batches){.length = 1, .seed = seed, .shuffle = shuffle, .count = count, .range_first = first, .range_hash = hash};
    if (count < 1 || first < 0 || first > INT32_MAX - count)
        return mx_fail(err, MX_ERR_ARG, "data: %lld targets from %lld on; there must be at least one, and less than 2147483647", (long long)count, (long long)first);
    return MX_OK;
}

int64_t mx_batches_tokens(const mx_batches *b)
{
    return b->data ? mx_dataset_tokens(b->data) : b->count;
}

uint64_t mx_batches_hash(const mx_batches *b)
{
    return b->data ? mx_dataset_hash(b->data) : b->range_hash;
}

void mx_batches_close(mx_batches *b)
{
    free(b->first);
    *b = (mx_batches){0};
}

/* The document that holds place x: the last with first <= x, so never one without rows. */
static int64_t document_of(const mx_batches *b, int64_t x)
{
    int64_t low = 0, high = mx_dataset_count(b->data);
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (b->first[middle] <= x) low = middle;
        else high = middle;
    }
    return low;
}

typedef struct place {
    const int32_t *ids;
    const uint8_t *learn;
    int64_t        token;         /* BLOCKS: of the whole text */
    int32_t        rows, label;
    int32_t        last;          /* >= 0: an encoder's document was cut, and ends with this id */
} place;

static place find(const mx_batches *b, int64_t at)
{
    uint64_t epoch = (uint64_t)(at / b->count);
    int64_t i = at % b->count;
    if (b->shuffle) i = mx_permute(b->seed, epoch, b->count, i);
    if (b->packing == MX_PACK_DOCUMENTS) {
        int64_t d = document_of(b, i);
        mx_document doc = mx_dataset_at(b->data, d);
        int64_t from = (i - b->first[d]) * b->length, rows = doc.n - (b->shifted ? 1 : 0) - from;
        bool cut = !b->shifted && rows > b->length;
        return (place){doc.ids + from, doc.learn ? doc.learn + from : NULL, 0, (int32_t)(rows < b->length ? rows : b->length), doc.label,
                       cut ? doc.ids[doc.n - 1] : -1};
    }
    int64_t spare = mx_dataset_tokens(b->data) - (b->shifted ? 1 : 0) - b->count * b->length;
    int64_t shift = b->shuffle ? (int64_t)(mix(b->seed ^ mix(epoch + 1)) % (uint64_t)((spare < b->length ? spare : b->length - 1) + 1)) : 0;
    int64_t from = shift + i * b->length;
    mx_document text = mx_dataset_at(b->data, 0);       /* documents lie one behind the other */
    return (place){text.ids + from, text.learn ? text.learn + from : NULL, from, b->length, -1, -1};
}

int32_t mx_batches_length(const mx_batches *b, int64_t at)
{
    return b->data ? find(b, at).rows : 1;
}

/* ---- packing ------------------------------------------------------------------------- */

static mx_status grow(mx_batch *o, int32_t rows, int32_t spans, mx_error *err)
{
    if (o->rows + rows > o->rows_room) {
        int32_t room = o->rows + rows + 1024;
        int32_t **all[] = {&o->ids, &o->targets, &o->positions};
        for (int i = 0; i < 3; i++) {
            int32_t *p = realloc(*all[i], (size_t)room * sizeof *p);
            if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "a batch of %d rows", room);
            *all[i] = p;
        }
        o->rows_room = room;
    }
    if (o->spans + spans + 1 > o->spans_room) {
        int32_t room = o->spans + spans + 65;
        int32_t **all[] = {&o->begin, &o->label};
        for (int i = 0; i < 2; i++) {
            int32_t *p = realloc(*all[i], (size_t)room * sizeof *p);
            if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "a batch of %d sequences", room);
            *all[i] = p;
        }
        o->spans_room = room;
    }
    return MX_OK;
}

void mx_batch_free(mx_batch *b)
{
    free(b->ids);
    free(b->targets);
    free(b->positions);
    free(b->begin);
    free(b->label);
    *b = (mx_batch){0};
}

void mx_batch_clear(mx_batch *b)
{
    b->rows = b->spans = b->longest = b->counted = 0;
}

static void end_span(mx_batch *o, int32_t rows, int32_t label)
{
    o->label[o->spans] = label;
    o->begin[o->spans++] = o->rows;
    o->rows += rows;
    o->begin[o->spans] = o->rows;
    if (rows > o->longest) o->longest = rows;
}

static void copy_rows(const mx_batches *b, const place *p, int32_t from, int32_t n, bool last_is_end, mx_batch *o)
{
    for (int32_t r = 0; r < n; r++) {
        int32_t to = o->rows + r, at = from + r;
        o->ids[to] = p->ids[at];
        o->positions[to] = r;
        o->targets[to] = -1;
        if (!b->shifted) continue;
        bool counts = (!p->learn || p->learn[at + 1]) && !(last_is_end && r == n - 1);
        if (counts) o->targets[to] = p->ids[at + 1], o->counted++;
    }
}

static mx_status take_number(const mx_batches *b, int64_t at, mx_batch *out, mx_error *err)
{
    int64_t i = at % b->count;
    MX_TRY(grow(out, 1, 1, err));
    if (b->shuffle) i = mx_permute(b->seed, (uint64_t)(at / b->count), b->count, i);
    out->ids[out->rows] = (int32_t)(b->range_first + i);
    out->targets[out->rows] = -1;
    out->positions[out->rows] = 0;
    end_span(out, 1, -1);
    return MX_OK;
}

mx_status mx_batches_take(const mx_batches *b, int64_t at, mx_batch *out, mx_error *err)
{
    if (!b->data) return take_number(b, at, out, err);
    place p = find(b, at);
    if (b->packing != MX_PACK_BLOCKS_MASKED) {
        MX_TRY(grow(out, p.rows, 1, err));
        copy_rows(b, &p, 0, p.rows, false, out);
        if (p.last >= 0) out->ids[out->rows + p.rows - 1] = p.last;
        end_span(out, p.rows, p.label);
        return MX_OK;
    }
    /* Spans end with their document; its last token's target is another one's first word. */
    int64_t d = document_of(b, p.token);
    for (int32_t from = 0; from < p.rows; d++) {
        int64_t left = b->first[d + 1] - (p.token + from);
        if (left <= 0) continue;
        bool ends = left <= p.rows - from;
        int32_t n = ends ? (int32_t)left : p.rows - from;
        MX_TRY(grow(out, n, 1, err));
        copy_rows(b, &p, from, n, ends, out);
        end_span(out, n, -1);
        from += n;
    }
    return MX_OK;
}
