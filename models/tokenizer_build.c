/* tokenizer_build.c - putting a vocabulary together, checked entry by entry. */
#include "models/tokenizer_internal.h"

#include <stdlib.h>

static uint32_t table_size(int64_t n)
{
    uint32_t size = 64;
    while (size < 2 * n) size *= 2;
    return size;
}

mx_status tok_new(mx_tokenizer **out, int32_t vocab, mx_error *err)
{
    if (vocab < 1 || vocab > 1 << 24) return mx_fail(err, MX_ERR_FORMAT, "vocabulary of %d tokens; from 1 to %d are allowed", vocab, 1 << 24);
    mx_tokenizer *t = calloc(1, sizeof *t);
    if (t) t->piece = calloc((size_t)vocab, sizeof *t->piece);
    if (!t || !t->piece) {
        free(t);
        return mx_fail(err, MX_ERR_NO_MEMORY, "a vocabulary of %d tokens", vocab);
    }
    t->vocab = vocab;
    t->bos = t->eos = -1;
    memset(t->byte_id, 0xff, sizeof t->byte_id);
    *out = t;
    return MX_OK;
}

/* GPT-2 spells each byte as a printable character; code point back to byte, -1: not of the alphabet. */
static int byte_of(uint32_t point)
{
    if ((point >= 33 && point <= 126) || (point >= 161 && point <= 172) || (point >= 174 && point <= 255)) return (int)point;
    if (point < 256 || point > 323) return -1;
    int n = (int)point - 256;
    for (int b = 0; b < 256; b++) {
        bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
        if (!printable && n-- == 0) return b;
    }
    return -1;
}

/* From the alphabet to bytes, in place behind out; false: some character is not of it. */
static bool unspell(const char *text, size_t len, char *out, size_t *n)
{
    *n = 0;
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)text[i];
        uint32_t point = c;
        size_t k = 1;
        if (c >= 0x80) {
            if (c < 0xc2 || c > 0xc5 || i + 1 >= len) return false;
            point = (uint32_t)(c & 31) << 6 | ((unsigned char)text[i + 1] & 63);
            k = 2;
        }
        int b = byte_of(point);
        if (b < 0) return false;
        out[(*n)++] = (char)b;
        i += k;
    }
    return true;
}

mx_status tok_set(mx_tokenizer *t, int32_t id, const char *text, size_t len, bool raw, const char *file, mx_error *err)
{
    if (id < 0 || id >= t->vocab) return mx_fail(err, MX_ERR_FORMAT, "%s: token id %d is outside 0..%d", file, id, t->vocab - 1);
    tok_piece *p = &t->piece[id];
    if (p->present) return mx_fail(err, MX_ERR_FORMAT, "%s: token id %d is given twice", file, id);
    p->bytes = malloc(len + 1);
    if (!p->bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "token %d", id);
    size_t n = 0;
    if (raw || !unspell(text, len, p->bytes, &n)) {       /* control tokens may hold any character */
        if (len) memcpy(p->bytes, text, len);
        n = len;
    }
    p->bytes[n] = 0;
    p->len = (uint32_t)n;
    p->present = true;
    if (n == 1 && !raw && t->byte_id[(unsigned char)p->bytes[0]] < 0) t->byte_id[(unsigned char)p->bytes[0]] = id;
    return MX_OK;
}

mx_status tok_add_added(mx_tokenizer *t, int32_t id, const char *text, size_t len, bool special, mx_error *err)
{
    if (!len) return MX_OK;
    if (t->n_added == t->added_room) {
        int32_t room = t->added_room ? 2 * t->added_room : 32;
        tok_added *grown = realloc(t->added, (size_t)room * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "added tokens");
        t->added = grown;
        t->added_room = room;
    }
    char *own = malloc(len + 1);
    if (!own) return mx_fail(err, MX_ERR_NO_MEMORY, "added token %d", id);
    memcpy(own, text, len);
    own[len] = 0;
    t->added[t->n_added++] = (tok_added){own, len, id, special};
    t->added_first[(unsigned char)own[0]] = true;
    t->piece[id].special = special;
    return MX_OK;
}

static int longer_first(const void *a, const void *b)
{
    const tok_added *x = a, *y = b;
    return x->len != y->len ? (x->len < y->len ? 1 : -1) : (x->id > y->id) - (x->id < y->id);
}

void tok_sort_added(mx_tokenizer *t)
{
    if (t->n_added) qsort(t->added, (size_t)t->n_added, sizeof *t->added, longer_first);
}

static uint32_t hash_of(const tok_piece *p)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (uint32_t i = 0; i < p->len; i++) h = (h ^ (unsigned char)p->bytes[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 29);
}

mx_status tok_index(mx_tokenizer *t, mx_error *err)
{
    t->by_bytes_size = table_size(t->vocab);
    t->by_bytes = malloc(t->by_bytes_size * sizeof *t->by_bytes);
    if (!t->by_bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a vocabulary of %d tokens", t->vocab);
    memset(t->by_bytes, 0xff, t->by_bytes_size * sizeof *t->by_bytes);
    for (int32_t id = 0; id < t->vocab; id++) {
        if (!t->piece[id].present || t->piece[id].special) continue;
        uint32_t h = hash_of(&t->piece[id]) & (t->by_bytes_size - 1);
        while (t->by_bytes[h] >= 0) h = (h + 1) & (t->by_bytes_size - 1);
        t->by_bytes[h] = id;
    }
    return MX_OK;
}

mx_status tok_merges_room(mx_tokenizer *t, int64_t n, mx_error *err)
{
    if (n < 0 || n > 1 << 24) return mx_fail(err, MX_ERR_FORMAT, "%lld merges; at most %d are allowed", (long long)n, 1 << 24);
    t->merge_size = table_size(n);
    t->merge = malloc(t->merge_size * sizeof *t->merge);
    if (!t->merge) {
        t->merge_size = 0;
        return mx_fail(err, MX_ERR_NO_MEMORY, "%lld merges", (long long)n);
    }
    for (uint32_t i = 0; i < t->merge_size; i++) t->merge[i].left = -1;
    return MX_OK;
}

mx_status tok_add_merge(mx_tokenizer *t, int32_t rank, const char *left, size_t n_left, const char *right, size_t n_right,
                        const char *file, mx_error *err)
{
    char both[4096];
    size_t a = 0, b = 0;
    if (n_left + n_right > sizeof both) return mx_fail(err, MX_ERR_FORMAT, "%s: merge %d is longer than %zu bytes", file, rank, sizeof both);
    if (!unspell(left, n_left, both, &a) || !unspell(right, n_right, both + a, &b))
        return mx_fail(err, MX_ERR_FORMAT, "%s: merge %d has a character outside the byte alphabet", file, rank);
    int32_t l = tok_find_bytes(t, both, a), r = tok_find_bytes(t, both + a, b), id = tok_find_bytes(t, both, a + b);
    if (l < 0 || r < 0 || id < 0)
        return mx_fail(err, MX_ERR_FORMAT, "%s: merge %d (\"%.*s\" + \"%.*s\") names a token that the vocabulary lacks", file, rank,
                       (int)(n_left < 40 ? n_left : 40), left, (int)(n_right < 40 ? n_right : 40), right);
    uint64_t key = ((uint64_t)(uint32_t)l << 32 | (uint32_t)r) * 0x9e3779b97f4a7c15u;
    uint32_t h = (uint32_t)(key >> 32) & (t->merge_size - 1);
    for (; t->merge[h].left >= 0; h = (h + 1) & (t->merge_size - 1))
        if (t->merge[h].left == l && t->merge[h].right == r) return MX_OK;      /* the first one counts */
    t->merge[h] = (tok_merge){l, r, rank, id};
    return MX_OK;
}

mx_status tok_add_stage(mx_tokenizer *t, const char *pattern, size_t len, const char *file, mx_error *err)
{
    int code;
    size_t at;
    if (t->n_stages == TOK_MAX_STAGES) return mx_fail(err, MX_ERR_FORMAT, "%s: more than %d split patterns", file, TOK_MAX_STAGES);
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, len, PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &code, &at, NULL);
    if (!re) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof text);
        return mx_fail(err, MX_ERR_FORMAT, "%s: split pattern: %s at %zu", file, (char *)text, at);
    }
    pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);            /* without JIT it is only slower */
    t->stage[t->n_stages++] = re;
    return MX_OK;
}
