/* tokenizer.c - byte-level BPE: split, merge, and back. */
#include "models/tokenizer_internal.h"

#include <stdlib.h>

const char *const tok_gpt2_pattern = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const char *const tok_llama3_pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
                                       "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const char *const tok_qwen2_pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| "
                                      "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* ---- small things ---------------------------------------------------------------------- */

mx_status mx_ids_push(mx_ids *ids, int32_t id)
{
    if (ids->count == ids->room) {
        if (ids->room > INT32_MAX / 2) return MX_ERR_NO_MEMORY;
        int32_t room = ids->room ? 2 * ids->room : 64;
        int32_t *grown = realloc(ids->id, (size_t)room * sizeof *grown);
        if (!grown) return MX_ERR_NO_MEMORY;
        ids->id = grown;
        ids->room = room;
    }
    ids->id[ids->count++] = id;
    return MX_OK;
}

void mx_ids_free(mx_ids *ids)
{
    free(ids->id);
    *ids = (mx_ids){0};
}

/* Bytes of the valid character at p (RFC 3629), 0 when there is none. */
static size_t utf8_length(const unsigned char *p, size_t left)
{
    if (p[0] < 0x80) return 1;
    size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (p[0] < 0xc2 || p[0] > 0xf4 || left < n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) || (p[0] == 0xf0 && p[1] < 0x90) ||
        (p[0] == 0xf4 && p[1] > 0x8f))
        return 0;
    return n;
}

bool mx_utf8_valid(const char *text, size_t len, size_t *bad)
{
    for (size_t i = 0, n; i < len; i += n) {
        n = utf8_length((const unsigned char *)text + i, len - i);
        if (n) continue;
        if (bad) *bad = i;
        return false;
    }
    return true;
}

static uint32_t hash_bytes(const char *p, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 0x100000001b3u;
    return (uint32_t)(h ^ h >> 29);
}

int32_t tok_find_bytes(const mx_tokenizer *t, const char *bytes, size_t len)
{
    if (!t->by_bytes_size) return -1;
    for (uint32_t h = hash_bytes(bytes, len) & (t->by_bytes_size - 1); t->by_bytes[h] >= 0; h = (h + 1) & (t->by_bytes_size - 1)) {
        const tok_piece *p = &t->piece[t->by_bytes[h]];
        if (p->len == len && !memcmp(p->bytes, bytes, len)) return t->by_bytes[h];
    }
    return -1;
}

static uint32_t hash_pair(int32_t left, int32_t right)
{
    uint64_t h = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(h >> 32);
}

static const tok_merge *find_merge(const mx_tokenizer *t, int32_t left, int32_t right)
{
    if (!t->merge_size) return NULL;
    for (uint32_t h = hash_pair(left, right) & (t->merge_size - 1); t->merge[h].left >= 0; h = (h + 1) & (t->merge_size - 1))
        if (t->merge[h].left == left && t->merge[h].right == right) return &t->merge[h];
    return NULL;
}

/* ---- merging one piece -------------------------------------------------------------------- */

typedef struct symbol { int32_t id, prev, next; } symbol;
typedef struct candidate { int32_t rank, at, left, right; } candidate;     /* merge symbol `at` with its next */

typedef struct merger {                 /* memory of one encode call */
    symbol    *sym;
    candidate *heap;
    int32_t    room, n_heap;
    pcre2_match_data *match;
} merger;

static bool before(const candidate *a, const candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(merger *m, candidate c)
{
    int32_t i = m->n_heap++;
    for (; i > 0 && before(&c, &m->heap[(i - 1) / 2]); i = (i - 1) / 2) m->heap[i] = m->heap[(i - 1) / 2];
    m->heap[i] = c;
}

static candidate heap_pop(merger *m)
{
    candidate top = m->heap[0], last = m->heap[--m->n_heap];
    int32_t i = 0;
    for (int32_t child; (child = 2 * i + 1) < m->n_heap; i = child) {
        if (child + 1 < m->n_heap && before(&m->heap[child + 1], &m->heap[child])) child++;
        if (!before(&m->heap[child], &last)) break;
        m->heap[i] = m->heap[child];
    }
    m->heap[i] = last;
    return top;
}

static void offer(const mx_tokenizer *t, merger *m, int32_t at)
{
    if (at < 0 || m->sym[at].next < 0) return;
    int32_t right = m->sym[m->sym[at].next].id;
    const tok_merge *g = find_merge(t, m->sym[at].id, right);
    if (g) heap_push(m, (candidate){g->rank, at, m->sym[at].id, right});
}

/* Byte-pair merging in order of rank (Sennrich et al. 2016), with a heap: n log n for a piece of n bytes. */
static mx_status merge_piece(const mx_tokenizer *t, merger *m, const char *text, size_t len, mx_ids *out, mx_error *err)
{
    int32_t whole = len == 1 || t->ignore_merges ? tok_find_bytes(t, text, len) : -1;
    if (whole >= 0) return mx_ids_push(out, whole) ? mx_fail(err, MX_ERR_NO_MEMORY, "ids") : MX_OK;
    if (len > (size_t)m->room) {
        if (len > INT32_MAX / 4) return mx_fail(err, MX_ERR_ARG, "a word of %zu bytes", len);
        symbol *sym = realloc(m->sym, len * sizeof *sym);
        if (sym) m->sym = sym;
        candidate *heap = realloc(m->heap, 3 * len * sizeof *heap);     /* n-1 first, two more a merge */
        if (heap) m->heap = heap;
        if (!sym || !heap) return mx_fail(err, MX_ERR_NO_MEMORY, "a word of %zu bytes", len);
        m->room = (int32_t)len;
    }
    int32_t n = (int32_t)len;
    for (int32_t i = 0; i < n; i++) {
        int32_t id = t->byte_id[(unsigned char)text[i]];
        if (id < 0) return mx_fail(err, MX_ERR_ARG, "the vocabulary has no token for byte 0x%02x", (unsigned char)text[i]);
        m->sym[i] = (symbol){id, i - 1, i + 1 < n ? i + 1 : -1};
    }
    m->n_heap = 0;
    for (int32_t i = 0; i + 1 < n; i++) offer(t, m, i);
    while (m->n_heap) {
        candidate c = heap_pop(m);
        symbol *s = &m->sym[c.at];
        if (s->id != c.left || s->next < 0 || m->sym[s->next].id != c.right) continue;      /* merged meanwhile */
        int32_t gone = s->next;
        s->id = find_merge(t, c.left, c.right)->id;
        s->next = m->sym[gone].next;
        m->sym[gone].id = -1;
        if (s->next >= 0) m->sym[s->next].prev = c.at;
        offer(t, m, s->prev);
        offer(t, m, c.at);
    }
    for (int32_t i = 0; i >= 0; i = m->sym[i].next)
        if (mx_ids_push(out, m->sym[i].id)) return mx_fail(err, MX_ERR_NO_MEMORY, "ids");
    return MX_OK;
}

/* ---- splitting ------------------------------------------------------------------------------ */

/* Valid UTF-8: cut by the pattern of this stage; what lies between matches is a piece too ("Isolated"). */
static mx_status split(const mx_tokenizer *t, int stage, merger *m, const char *text, size_t len, mx_ids *out,
                       mx_error *err)
{
    if (!len) return MX_OK;
    if (stage == t->n_stages) return merge_piece(t, m, text, len, out, err);
    size_t at = 0;
    while (at < len) {
        /* The subject begins at the piece: a pattern never looks behind it.  Valid UTF-8 was checked already. */
        int rc = pcre2_match(t->stage[stage], (PCRE2_SPTR)text, len, at, PCRE2_NO_UTF_CHECK, m->match, NULL);
        size_t *span = pcre2_get_ovector_pointer(m->match), from = rc >= 0 ? span[0] : len, to = rc >= 0 ? span[1] : len;
        if (rc < 0 && rc != PCRE2_ERROR_NOMATCH) return mx_fail(err, MX_ERR_ARG, "the split pattern gave up on a text of %zu bytes", len);
        if (rc >= 0 && to == from) {              /* an empty match would not end */
            from = to = at + utf8_length((const unsigned char *)text + at, len - at);
        }
        MX_TRY(split(t, stage + 1, m, text + at, from - at, out, err));
        MX_TRY(split(t, stage + 1, m, text + from, to - from, out, err));
        at = to;
    }
    return MX_OK;
}

/* Any bytes: runs of valid UTF-8 go through the patterns, the others are merged as bytes. */
static mx_status encode_plain(const mx_tokenizer *t, merger *m, const char *text, size_t len, mx_ids *out, mx_error *err)
{
    for (size_t at = 0; at < len;) {
        size_t good = 0, wrong = 0;
        if (mx_utf8_valid(text + at, len - at, &good)) good = len - at;
        MX_TRY(split(t, 0, m, text + at, good, out, err));
        at += good;
        while (at + wrong < len && !utf8_length((const unsigned char *)text + at + wrong, len - at - wrong)) wrong++;
        if (wrong) MX_TRY(merge_piece(t, m, text + at, wrong, out, err));
        at += wrong;
    }
    return MX_OK;
}

static const tok_added *added_at(const mx_tokenizer *t, const char *text, size_t len, bool parse_special)
{
    if (!t->added_first[(unsigned char)text[0]]) return NULL;
    for (int32_t i = 0; i < t->n_added; i++) {
        const tok_added *a = &t->added[i];
        if ((parse_special || !a->special) && a->len <= len && !memcmp(a->text, text, a->len)) return a;
    }
    return NULL;
}

mx_status mx_tokenizer_encode(const mx_tokenizer *t, const char *text, size_t len, bool add_special, bool parse_special,
                              mx_ids *out, mx_error *err)
{
    if (len > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "a text of %zu bytes; at most %d are allowed", len, INT32_MAX);
    merger m = {.match = pcre2_match_data_create(1, NULL)};
    if (!m.match) return mx_fail(err, MX_ERR_NO_MEMORY, "regex match");
    mx_status st = MX_OK;
    if (add_special && t->add_bos && t->bos >= 0 && mx_ids_push(out, t->bos)) st = mx_fail(err, MX_ERR_NO_MEMORY, "ids");
    size_t from = 0;
    for (size_t i = 0; i < len && !st; i++) {
        const tok_added *a = added_at(t, text + i, len - i, parse_special);
        if (!a) continue;
        st = encode_plain(t, &m, text + from, i - from, out, err);
        if (!st && mx_ids_push(out, a->id)) st = mx_fail(err, MX_ERR_NO_MEMORY, "ids");
        from = i + a->len;
        i = from - 1;
    }
    if (!st && from < len) st = encode_plain(t, &m, text + from, len - from, out, err);
    if (!st && add_special && t->add_eos && t->eos >= 0 && mx_ids_push(out, t->eos)) st = mx_fail(err, MX_ERR_NO_MEMORY, "ids");
    pcre2_match_data_free(m.match);
    free(m.heap);
    free(m.sym);
    return st;
}

/* ---- and back ---------------------------------------------------------------------------------- */

int32_t mx_tokenizer_vocab(const mx_tokenizer *t) { return t->vocab; }
int32_t mx_tokenizer_bos(const mx_tokenizer *t) { return t->bos; }
int32_t mx_tokenizer_eos(const mx_tokenizer *t) { return t->eos; }

const char *mx_tokenizer_piece(const mx_tokenizer *t, int32_t id, size_t *len)
{
    if (id < 0 || id >= t->vocab || !t->piece[id].present) return NULL;
    *len = t->piece[id].len;
    return t->piece[id].bytes;
}

bool mx_tokenizer_is_special(const mx_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->vocab && t->piece[id].special;
}

int32_t mx_tokenizer_find(const mx_tokenizer *t, const char *token)
{
    size_t len = strlen(token);
    for (int32_t i = 0; i < t->n_added; i++)
        if (t->added[i].len == len && !memcmp(t->added[i].text, token, len)) return t->added[i].id;
    return tok_find_bytes(t, token, len);
}

mx_status mx_tokenizer_decode(const mx_tokenizer *t, const int32_t *ids, int32_t n, bool skip_special, char **text, size_t *len,
                              mx_error *err)
{
    size_t total = 0, piece_len;
    for (int32_t i = 0; i < n; i++)
        if (mx_tokenizer_piece(t, ids[i], &piece_len) && !(skip_special && t->piece[ids[i]].special)) total += piece_len;
    *text = malloc(total + 1);
    if (!*text) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu bytes of text", total);
    *len = 0;
    for (int32_t i = 0; i < n; i++) {
        const char *p = mx_tokenizer_piece(t, ids[i], &piece_len);
        if (!p || (skip_special && t->piece[ids[i]].special)) continue;
        memcpy(*text + *len, p, piece_len);
        *len += piece_len;
    }
    (*text)[*len] = 0;
    return MX_OK;
}

void mx_detokenizer_open(mx_detokenizer *d, const mx_tokenizer *t, bool skip_special)
{
    *d = (mx_detokenizer){.tokenizer = t, .skip_special = skip_special};
}

void mx_detokenizer_close(mx_detokenizer *d)
{
    free(d->text);
    *d = (mx_detokenizer){0};
}

/* Could more bytes make p[0..n) the start of a valid character? */
static bool may_become(const unsigned char *p, size_t n)
{
    static const unsigned char ends[2] = {0x80, 0xbf};
    if (p[0] < 0xc2 || p[0] > 0xf4) return false;
    size_t need = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    if (n >= need) return false;
    for (int e = 0; e < 2; e++) {
        unsigned char full[4];
        memcpy(full, p, n);
        for (size_t i = n; i < need; i++) full[i] = ends[e];
        if (utf8_length(full, need)) return true;
    }
    return false;
}

/* Held bytes and p[0..n) to d->text as whole characters; the rest is held, or replaced when `last`. */
static const char *emit(mx_detokenizer *d, const char *p, size_t n, bool last, size_t *len)
{
    size_t have = (size_t)d->n_held + n, most = 3 * have + 1;
    if (most > d->room) {
        char *grown = realloc(d->text, 2 * most);
        if (!grown) return NULL;
        d->text = grown;
        d->room = 2 * most;
    }
    char *in = d->text + 2 * have;               /* the input stands behind the output, which never overtakes it ... */
    memcpy(in, d->held, (size_t)d->n_held);
    if (n) memcpy(in + d->n_held, p, n);
    size_t out = 0, at = 0;
    d->n_held = 0;
    while (at < have) {
        const unsigned char *c = (const unsigned char *)in + at;
        size_t k = utf8_length(c, have - at);
        if (k) {
            memmove(d->text + out, c, k);
            out += k;
            at += k;
        } else if (!last && may_become(c, have - at)) {
            d->n_held = (int)(have - at);
            memmove(d->held, c, have - at);
            at = have;
        } else {                                 /* ... as one bad byte becomes the three of U+FFFD */
            memcpy(d->text + out, "\xef\xbf\xbd", 3);
            out += 3;
            at++;
        }
    }
    *len = out;
    d->started = true;
    return d->text;
}

const char *mx_detokenizer_push(mx_detokenizer *d, int32_t id, size_t *len)
{
    size_t n = 0;
    const char *p = mx_tokenizer_piece(d->tokenizer, id, &n);
    if (!p || (d->skip_special && mx_tokenizer_is_special(d->tokenizer, id))) n = 0;
    return emit(d, p, n, false, len);
}

const char *mx_detokenizer_finish(mx_detokenizer *d, size_t *len)
{
    return emit(d, NULL, 0, true, len);
}

void mx_tokenizer_close(mx_tokenizer *t)
{
    if (!t) return;
    for (int i = 0; i < t->n_stages; i++) pcre2_code_free(t->stage[i]);
    for (int32_t i = 0; i < t->n_added; i++) free(t->added[i].text);
    for (int32_t i = 0; t->piece && i < t->vocab; i++) free(t->piece[i].bytes);
    free(t->chat_template);
    free(t->added);
    free(t->merge);
    free(t->by_bytes);
    free(t->piece);
    free(t);
}
