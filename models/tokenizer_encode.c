/* tokenizer_encode.c - text to ids: added tokens, normalisers, split stages, merges, BOS and EOS. */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>
#include <utf8proc.h>

/* ---- ids ---- */

static mx_status ids_reserve(mx_ids *ids, size_t more)
{
    size_t need;
    if (!mx_add_size((size_t)ids->count, more, &need) || need > INT32_MAX) return MX_ERR_NO_MEMORY;
    if (need <= (size_t)ids->room) return MX_OK;
    size_t room = need + need / 2 + 16;
    if (room > INT32_MAX) room = INT32_MAX;
    int32_t *id = mx_slab_grow(ids->id, room * sizeof *id);
    if (!id) return MX_ERR_NO_MEMORY;
    ids->id = id;
    ids->room = (int32_t)room;
    return MX_OK;
}

mx_status mx_ids_push(mx_ids *ids, int32_t id)
{
    MX_TRY(ids_reserve(ids, 1));
    ids->id[ids->count++] = id;
    return MX_OK;
}

void mx_ids_free(mx_ids *ids)
{
    mx_slab_free(ids->id);
    memset(ids, 0, sizeof *ids);
}

/* ---- one call ---- */

/* Words repeat: a call remembers the short ones it has merged.  One word, one slot; the last one stays. */
enum { CACHED_WORD = 22, CACHED_IDS = 10, MOST_SLOTS = 4096 };
typedef struct cached {
    uint8_t n, n_ids;                      /* n 0: empty */
    char    word[CACHED_WORD];
    int32_t id[CACHED_IDS];
} cached;

typedef struct encoder {
    const mx_tokenizer *t;
    bool           parse_special;
    mx_ids        *out;
    mx_error      *err;
    mx_bpe_scratch bpe;
    mx_split_run   run;
    cached        *cache;
    uint32_t       n_slots;
} encoder;

static mx_status no_memory(const encoder *e)
{
    return mx_fail(e->err, MX_ERR_NO_MEMORY, "no memory to encode the text");
}

static mx_status no_token(const encoder *e, const char *s, size_t n)
{
    char hex[3 * 4 + 1] = "";
    for (size_t i = 0; i < n && i < 4; i++) snprintf(hex + 3 * i, 4, "%s%02x", i ? " " : "", (uint8_t)s[i]);
    return mx_fail(e->err, MX_ERR_ARG, "the vocabulary has no token for the bytes %s of the text", hex);
}

/* ---- words ---- */

/* Symbols of a word; *n_out counts them. */
static mx_status symbols(encoder *e, const char *s, size_t n, size_t *n_out)
{
    const mx_tokenizer *t = e->t;
    size_t k = 0;
    bool was_unknown = false;
    if (mx_bpe_reserve(&e->bpe, n)) return no_memory(e);
    uint32_t *id = e->bpe.id;
    for (size_t i = 0, len; i < n; i += len) {
        int32_t found;
        len = 1;
        if (t->byte_level) {
            found = t->byte_id[(uint8_t)s[i]];
        } else if ((uint8_t)s[i] < 0x80) {
            found = t->ascii_id[(uint8_t)s[i]];
        } else {
            uint32_t c;
            bool cut;
            int w = mx_utf8_next(s + i, n - i, &c, &cut);
            len = w > 0 ? (size_t)w : 1;
            found = w > 0 ? mx_vocab_find(&t->vocab, s + i, len) : -1;
        }
        bool all = found < 0 && t->byte_fallback;
        for (size_t j = 0; j < len && all; j++) all = t->byte_id[(uint8_t)s[i + j]] >= 0;
        if (found >= 0) {
            id[k++] = (uint32_t)found;
        } else if (all) {
            for (size_t j = 0; j < len; j++) id[k++] = (uint32_t)t->byte_id[(uint8_t)s[i + j]];
        } else if (t->unknown < 0) {
            return no_token(e, s + i, len);
        } else if (!was_unknown || !t->fuse_unknown) {
            id[k++] = (uint32_t)t->unknown;
        }
        was_unknown = found < 0 && !all;
    }
    *n_out = k;
    return MX_OK;
}

/* A whole word that is a token, as the vocabulary writes it; -1: none. */
static int32_t whole(const mx_tokenizer *t, const char *s, size_t n)
{
    char written[512];
    if (!t->byte_level) return n <= t->longest ? mx_vocab_find(&t->vocab, s, n) : -1;
    if (n > t->longest || n > sizeof written / 2) return -1;
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += (size_t)mx_utf8_put(written + k, mx_byte_char((uint8_t)s[i]));
    return mx_vocab_find(&t->vocab, written, k);
}

static uint32_t word_slot(const encoder *e, const char *s, size_t n)
{
    uint64_t a = 0, b = 0, c = 0;          /* n <= 22 */
    memcpy(&a, s, n < 8 ? n : 8);
    if (n > 8) memcpy(&b, s + 8, n - 8 < 8 ? n - 8 : 8);
    if (n > 16) memcpy(&c, s + 16, n - 16);
    uint64_t h = (a ^ (b * 0x9e3779b97f4a7c15u) ^ (c * 0x94d049bb133111ebu) ^ n) * 0xbf58476d1ce4e5b9u;
    return (uint32_t)(h >> 40) & (e->n_slots - 1);
}

static mx_status word(encoder *e, const char *s, size_t n)
{
    const mx_tokenizer *t = e->t;
    cached *slot = NULL;
    size_t k;
    if (e->n_slots && n <= CACHED_WORD) {
        slot = &e->cache[word_slot(e, s, n)];
        if (slot->n == n && !memcmp(slot->word, s, n)) {
            if (ids_reserve(e->out, slot->n_ids)) return no_memory(e);
            memcpy(e->out->id + e->out->count, slot->id, slot->n_ids * sizeof *slot->id);
            e->out->count += slot->n_ids;
            return MX_OK;
        }
    }
    if (t->ignore_merges) {
        int32_t id = whole(t, s, n);
        if (id >= 0) return mx_ids_push(e->out, id) ? no_memory(e) : MX_OK;
    }
    if (t->wordpiece.on) {
        int32_t from = e->out->count;
        if (mx_wordpiece_word(t, s, n, e->out)) return no_memory(e);
        k = (size_t)(e->out->count - from);
    } else {
        MX_TRY(symbols(e, s, n, &k));
        if (mx_bpe_merge(&t->merges, &e->bpe, k, &k) || ids_reserve(e->out, k)) return no_memory(e);
        for (size_t i = 0; i < k; i++) e->out->id[e->out->count++] = (int32_t)e->bpe.id[i];
    }
    if (slot && k <= CACHED_IDS) {
        slot->n = (uint8_t)n;
        slot->n_ids = (uint8_t)k;
        memcpy(slot->word, s, n);
        memcpy(slot->id, e->out->id + e->out->count - k, k * sizeof *slot->id);
    }
    return MX_OK;
}

/* ---- split stages, depth first: no list of pieces is kept ---- */

static mx_status stage(mx_split_run *r, int i, const char *s, size_t n, bool at_start);

static mx_status metaspace(encoder *e, int i, const char *s, size_t n, bool at_start)
{
    const mx_split *p = &e->t->split[i];
    size_t n_space = strlen(p->space), spaces = 0, size;
    for (size_t j = 0; j < n; j++) spaces += s[j] == ' ';
    if (!mx_mul_size(spaces, n_space, &size) || !mx_add_size(size, n - spaces + n_space, &size)) return no_memory(e);
    char *w = malloc(size ? size : 1);
    if (!w) return no_memory(e);
    size_t k = 0;
    bool starts = n && (s[0] == ' ' || (n >= n_space && !memcmp(s, p->space, n_space)));
    if (!starts && (p->prepend == MX_PREPEND_ALWAYS || (p->prepend == MX_PREPEND_FIRST && at_start))) {
        memcpy(w, p->space, n_space);
        k = n_space;
    }
    for (size_t j = 0; j < n; j++) {
        if (s[j] == ' ') {
            memcpy(w + k, p->space, n_space);
            k += n_space;
        } else {
            w[k++] = s[j];
        }
    }
    mx_status st = stage(&e->run, i + 1, w, k, at_start);
    free(w);
    return st;
}

static mx_status prefix_space(encoder *e, int i, const char *s, size_t n, bool at_start)
{
    size_t size;
    if (n && s[0] == ' ') return stage(&e->run, i + 1, s, n, at_start);
    if (!mx_add_size(n, 1, &size)) return no_memory(e);
    char *w = malloc(size);
    if (!w) return no_memory(e);
    w[0] = ' ';
    memcpy(w + 1, s, n);
    mx_status st = stage(&e->run, i + 1, w, size, at_start);
    free(w);
    return st;
}

static mx_status stage(mx_split_run *r, int i, const char *s, size_t n, bool at_start)
{
    encoder *e = r->ctx;
    if (!n) return MX_OK;
    if (i == e->t->n_splits) return word(e, s, n);
    switch (e->t->split[i].kind) {
    case MX_SPLIT_METASPACE: return metaspace(e, i, s, n, at_start);
    case MX_SPLIT_PREFIX_SPACE: return prefix_space(e, i, s, n, at_start);
    case MX_SPLIT_BERT: return mx_bert_words(r, i, s, n, at_start);
    default: return mx_split_pattern(e->t, r, i, s, n, at_start);
    }
}

/* ---- added tokens ---- */

/* A character of \w: letters, marks, decimal and letter numbers, connectors. */
static bool is_word(uint32_t c)
{
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_LU: case UTF8PROC_CATEGORY_LL: case UTF8PROC_CATEGORY_LT: case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO: case UTF8PROC_CATEGORY_MN: case UTF8PROC_CATEGORY_MC: case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND: case UTF8PROC_CATEGORY_NL: case UTF8PROC_CATEGORY_PC: return true;
    default: return c == 0x200c || c == 0x200d;
    }
}

/* The character that ends at s[end] (its beginning in *begin), or that begins there; false: none or not UTF-8. */
static bool char_before(const char *s, size_t end, uint32_t *c, size_t *begin)
{
    bool cut;
    if (!end) return false;
    size_t at = end - 1;
    while (at > 0 && end - at < 4 && ((uint8_t)s[at] & 0xc0) == 0x80) at--;
    *begin = at;
    return mx_utf8_next(s + at, end - at, c, &cut) == (int)(end - at);
}

static bool char_after(const char *s, size_t n, size_t at, uint32_t *c, size_t *end)
{
    bool cut;
    if (at >= n) return false;
    int len = mx_utf8_next(s + at, n - at, c, &cut);
    *end = at + (size_t)(len > 0 ? len : 1);
    return len > 0;
}

/* The longest added token at s[at] that may be taken; -1: none. */
static int32_t match_added(const encoder *e, const mx_trie *trie, const char *s, size_t n, size_t at, size_t *end)
{
    int32_t best = -1, node = 0;
    for (size_t i = at; i < n; i++) {
        int32_t c = trie->node[node].child;
        while (c >= 0 && trie->node[c].byte != (uint8_t)s[i]) c = trie->node[c].sibling;
        if (c < 0) break;
        node = c;
        int32_t a = trie->node[c].added;
        if (a >= 0 && (e->parse_special || !e->t->added[a].special)) {
            best = a;
            *end = i + 1;
        }
    }
    return best;
}

typedef mx_status (*part_fn)(encoder *e, const char *s, size_t n, bool at_start);

/* Cut s[n] at added tokens; what lies between goes to plain. */
static mx_status each_added(encoder *e, const mx_trie *trie, const char *s, size_t n, bool at_start, part_fn plain)
{
    size_t done = 0, at = 0, end = 0, edge;
    uint32_t c;
    while (trie->n && at < n) {
        int32_t i = trie->first[(uint8_t)s[at]] ? match_added(e, trie, s, n, at, &end) : -1;
        if (i < 0) {
            at++;
            continue;
        }
        const mx_added *a = &e->t->added[i];
        size_t begin = at, resume = end;
        at = resume;
        if (a->single_word && ((char_before(s, begin, &c, &edge) && is_word(c)) ||
                               (char_after(s, n, end, &c, &edge) && is_word(c))))
            continue;
        if (begin < done) continue;                      /* within the space that the last token took */
        while (a->lstrip && begin > done && char_before(s, begin, &c, &edge) && mx_is_space(c)) begin = edge;
        if (begin < done) begin = done;
        while (a->rstrip && char_after(s, n, end, &c, &edge) && mx_is_space(c)) end = edge;
        if (begin > done) MX_TRY(plain(e, s + done, begin - done, at_start && !done));
        if (mx_ids_push(e->out, a->id)) return no_memory(e);
        done = end;
    }
    return done < n ? plain(e, s + done, n - done, at_start && !done) : MX_OK;
}

static mx_status normalized(encoder *e, const char *s, size_t n, bool at_start)
{
    return stage(&e->run, 0, s, n, at_start);
}

/* Valid UTF-8; first: it begins a stretch between added tokens. */
static mx_status valid(encoder *e, const char *s, size_t n, bool at_start, bool first)
{
    char *made = NULL;
    if (mx_normalize(e->t->norm, e->t->n_norms, first, s, n, &made, &n)) return no_memory(e);
    mx_status st = each_added(e, &e->t->trie_normalized, made ? made : s, n, at_start, normalized);
    mx_slab_free(made);
    return st;
}

/* Any bytes: those that are not UTF-8 go past the patterns, each as its own token. */
static mx_status stretch(encoder *e, const char *s, size_t n, bool at_start)
{
    for (size_t at = 0; at < n;) {
        size_t good = n - at;
        mx_utf8_valid(s + at, n - at, &good);
        if (good || !at) MX_TRY(valid(e, s + at, good, at_start && !at, !at));
        at += good;
        if (at == n) break;
        uint32_t c;
        bool cut;
        for (int bad = -mx_utf8_next(s + at, n - at, &c, &cut); bad > 0; bad--, at++) {
            int32_t id = e->t->byte_id[(uint8_t)s[at]];
            if (id < 0) id = e->t->unknown;
            if (id < 0) return no_token(e, s + at, 1);
            if (mx_ids_push(e->out, id)) return no_memory(e);
        }
    }
    return MX_OK;
}

/* ---- entry ---- */

mx_status mx_tokenizer_encode_part(const mx_tokenizer *t, const char *text, size_t len, bool at_start,
                                   bool parse_special, mx_ids *out, mx_error *err)
{
    encoder e = {.t = t, .parse_special = parse_special, .out = out, .err = err};
    int32_t before = out->count;
    mx_status st;
    if (len > INT32_MAX)
        return mx_fail(err, MX_ERR_ARG, "a text of %zu bytes; at most %d are allowed", len, INT32_MAX);
    e.run = (mx_split_run){.emit = stage, .ctx = &e, .err = err};
    MX_TRY_GOTO(st, mx_split_run_open(&e.run) ? no_memory(&e) : MX_OK, done);
    if (len >= 256) {
        uint32_t n = 16;
        while (n < MOST_SLOTS && n < len / 16) n *= 2;
        e.cache = mx_slab_zeroed(n * sizeof *e.cache);         /* without it all is merely slower */
        e.n_slots = e.cache ? n : 0;
    }
    if (ids_reserve(out, len / 4 + 4)) st = no_memory(&e);
    else st = each_added(&e, &t->trie, text, len, at_start, stretch);
done:
    if (st) out->count = before;
    mx_split_run_close(&e.run);
    mx_bpe_scratch_free(&e.bpe);
    mx_slab_free(e.cache);
    return st;
}

mx_status mx_tokenizer_encode(const mx_tokenizer *t, const char *text, size_t len, bool add_special,
                              bool parse_special, mx_ids *out, mx_error *err)
{
    int32_t before = out->count;
    mx_status st = MX_OK;
    for (int i = 0; add_special && i < t->n_before && !st; i++) st = mx_ids_push(out, t->before[i]);
    if (!st) MX_TRY_GOTO(st, mx_tokenizer_encode_part(t, text, len, true, parse_special, out, err), done);
    for (int i = 0; add_special && i < t->n_after && !st; i++) st = mx_ids_push(out, t->after[i]);
    if (st) mx_fail(err, st, "no memory to encode the text");
done:
    if (st) out->count = before;
    return st;
}
