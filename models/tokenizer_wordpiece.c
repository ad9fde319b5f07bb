/* tokenizer_wordpiece.c - BERT's tokenizer: its normaliser, its words, and
 * WordPiece, the longest piece of the vocabulary first (Devlin et al. 2018; Wu
 * et al. 2016).  Ids equal those of `tokenizers` (BertNormalizer,
 * BertPreTokenizer, WordPiece), but for characters whose category changed
 * between the two libraries' versions of Unicode. */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>
#include <utf8proc.h>

/* ---- normaliser ---- */

static bool is_cjk(uint32_t c)
{
    return (c >= 0x4e00 && c <= 0x9fff) || (c >= 0x3400 && c <= 0x4dbf) || (c >= 0x20000 && c <= 0x2a6df) ||
           (c >= 0x2a700 && c <= 0x2b73f) || (c >= 0x2b740 && c <= 0x2b81f) || (c >= 0x2b920 && c <= 0x2ceaf) ||
           (c >= 0xf900 && c <= 0xfaff) || (c >= 0x2f800 && c <= 0x2fa1f);
}

/* What clean_text drops: controls, formats, private characters. */
static bool is_dropped(uint32_t c)
{
    if (c == '\t' || c == '\n' || c == '\r') return false;
    if (c == 0xfffd) return true;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_CC || k == UTF8PROC_CATEGORY_CF || k == UTF8PROC_CATEGORY_CO;
}

/* text[n] is valid UTF-8.  A character grows to five bytes at most (CJK between
 * spaces), so out[2n+1] has room. */
static size_t clean(const mx_normalizer *r, const char *s, size_t n, char *out)
{
    size_t k = 0;
    for (size_t i = 0, len; i < n; i += len) {
        uint32_t c;
        bool cut;
        int w = mx_utf8_next(s + i, n - i, &c, &cut);
        len = w > 0 ? (size_t)w : 1;
        if (r->clean && is_dropped(c)) continue;
        if (r->clean && mx_is_space(c)) {
            out[k++] = ' ';
            continue;
        }
        bool alone = r->cjk && is_cjk(c);
        if (alone) out[k++] = ' ';
        memcpy(out + k, s + i, len);
        k += len;
        if (alone) out[k++] = ' ';
    }
    return k;
}

static bool all_ascii(const char *s, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) any |= (uint8_t)s[i];
    return any < 0x80;
}

/* NFD, then without the marks that take no room. */
static mx_status strip_accents(char **text, size_t *n)
{
    utf8proc_uint8_t *p = NULL;
    if (all_ascii(*text, *n)) return MX_OK;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)*text, (utf8proc_ssize_t)*n, &p, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
    if (len < 0) return MX_ERR_NO_MEMORY;
    size_t k = 0;
    for (size_t i = 0, w; i < (size_t)len; i += w) {
        uint32_t c;
        bool cut;
        int step = mx_utf8_next((const char *)p + i, (size_t)len - i, &c, &cut);
        w = step > 0 ? (size_t)step : 1;
        if (utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_MN) continue;
        memmove(p + k, p + i, w);
        k += w;
    }
    char *bare = mx_text_of_utf8proc(p, k);
    if (!bare) return MX_ERR_NO_MEMORY;
    mx_slab_free(*text);
    *text = bare;
    *n = k;
    return MX_OK;
}

/* A lower-case letter may be longer in UTF-8: two bytes become three at most. */
static mx_status lower(char **text, size_t *n)
{
    if (all_ascii(*text, *n)) {
        for (size_t i = 0; i < *n; i++)
            if ((*text)[i] >= 'A' && (*text)[i] <= 'Z') (*text)[i] = (char)((*text)[i] + 32);
        return MX_OK;
    }
    size_t size, k = 0;
    if (!mx_mul_size(*n, 2, &size) || !mx_add_size(size, 1, &size)) return MX_ERR_NO_MEMORY;
    char *out = mx_slab_alloc(size);
    if (!out) return MX_ERR_NO_MEMORY;
    for (size_t i = 0, w; i < *n; i += w) {
        uint32_t c;
        bool cut;
        int step = mx_utf8_next(*text + i, *n - i, &c, &cut);
        w = step > 0 ? (size_t)step : 1;
        if (c == 0x130) {                                 /* the one letter whose lower case is two characters */
            memcpy(out + k, "i\xcc\x87", 3);
            k += 3;
        } else {
            k += (size_t)mx_utf8_put(out + k, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
        }
    }
    mx_slab_free(*text);
    *text = out;
    *n = k;
    return MX_OK;
}

mx_status mx_bert_normalize(const mx_normalizer *r, const char *s, size_t n, char **out, size_t *n_out)
{
    size_t size;
    mx_status st = MX_OK;
    if (!mx_mul_size(n, 2, &size) || !mx_add_size(size, 1, &size)) return MX_ERR_NO_MEMORY;
    char *text = mx_slab_alloc(size);
    if (!text) return MX_ERR_NO_MEMORY;
    size_t k = clean(r, s, n, text);
    if (r->accents) st = strip_accents(&text, &k);
    if (!st && r->lowercase) st = lower(&text, &k);
    if (st) {
        mx_slab_free(text);
        return st;
    }
    *out = text;
    *n_out = k;
    return MX_OK;
}

/* ---- words ---- */

static bool is_punctuation(uint32_t c)
{
    if (c < 128) return (c >= 33 && c <= 47) || (c >= 58 && c <= 64) || (c >= 91 && c <= 96) || (c >= 123 && c <= 126);
    switch (utf8proc_category((utf8proc_int32_t)c)) {
    case UTF8PROC_CATEGORY_PC: case UTF8PROC_CATEGORY_PD: case UTF8PROC_CATEGORY_PS: case UTF8PROC_CATEGORY_PE:
    case UTF8PROC_CATEGORY_PI: case UTF8PROC_CATEGORY_PF: case UTF8PROC_CATEGORY_PO: return true;
    default: return false;
    }
}

mx_status mx_bert_words(mx_split_run *r, int stage, const char *s, size_t n, bool at_start)
{
    size_t begun = 0;                                     /* of the word that is open */
    for (size_t i = 0, w; i < n; i += w) {
        uint32_t c;
        bool cut;
        int step = mx_utf8_next(s + i, n - i, &c, &cut);
        w = step > 0 ? (size_t)step : 1;
        bool space = mx_is_space(c), mark = !space && is_punctuation(c);
        if (!space && !mark) continue;
        if (i > begun) MX_TRY(r->emit(r, stage + 1, s + begun, i - begun, at_start && !begun));
        if (mark) MX_TRY(r->emit(r, stage + 1, s + i, w, at_start && !i));
        begun = i + w;
    }
    return begun < n ? r->emit(r, stage + 1, s + begun, n - begun, at_start && !begun) : MX_OK;
}

/* ---- pieces ---- */

static size_t characters(const char *s, size_t n)
{
    size_t k = 0;
    for (size_t i = 0; i < n; i++) k += ((uint8_t)s[i] & 0xc0) != 0x80;
    return k;
}

mx_status mx_wordpiece_word(const mx_tokenizer *t, const char *s, size_t n, mx_ids *out)
{
    char piece[4 * MX_WORDPIECE_MOST_CHARS + MX_WORDPIECE_MOST_PREFIX];
    int32_t before = out->count;
    size_t prefix = strlen(t->wordpiece.prefix);
    if (n > 4 * MX_WORDPIECE_MOST_CHARS || characters(s, n) > (size_t)t->wordpiece.most_chars) return mx_ids_push(out, t->unknown);
    memcpy(piece, t->wordpiece.prefix, prefix);
    for (size_t at = 0, end; at < n; at = end) {
        size_t before_piece = at ? prefix : 0, most = t->longest > before_piece ? t->longest - before_piece : 0;
        int32_t id = -1;
        end = n - at > most ? at + most : n;
        for (; end > at; end--) {
            if (end < n && ((uint8_t)s[end] & 0xc0) == 0x80) continue;      /* inside a character */
            memcpy(piece + prefix, s + at, end - at);
            id = mx_vocab_find(&t->vocab, piece + prefix - before_piece, before_piece + end - at);
            if (id >= 0) break;
        }
        if (id < 0) {                                     /* no piece: the whole word is unknown */
            out->count = before;
            return mx_ids_push(out, t->unknown);
        }
        MX_TRY(mx_ids_push(out, id));
    }
    return MX_OK;
}

/* ---- words, where they stand ---- */

typedef struct finder {
    const mx_tokenizer *t;
    const mx_normalizer *norm;
    mx_word_at *word;
    int32_t     n, room;
    char       *open;                 /* the word so far, as normalised                     */
    size_t      n_open, begin, end;
    mx_ids      ids;
} finder;

static mx_status close_word(finder *f)
{
    if (!f->n_open) return MX_OK;
    if (f->n == f->room) {
        int32_t room = f->room ? 2 * f->room : 64;
        mx_word_at *grown = realloc(f->word, (size_t)room * sizeof *grown);
        if (!grown) return MX_ERR_NO_MEMORY;
        f->word = grown, f->room = room;
    }
    f->ids.count = 0;
    MX_TRY(mx_wordpiece_word(f->t, f->open, f->n_open, &f->ids));
    f->word[f->n++] = (mx_word_at){f->begin, f->end, f->ids.count};
    f->n_open = 0;
    return MX_OK;
}

/* What the character text[at, at + w) becomes, alone: the normaliser looks at no neighbours but to order marks, which it drops. */
static mx_status take_character(finder *f, const char *text, size_t at, size_t w)
{
    char *s;
    size_t n;
    MX_TRY(mx_bert_normalize(f->norm, text + at, w, &s, &n));
    mx_status st = MX_OK;
    if (!n && f->n_open) f->end = at + w;                   /* its accent */
    for (size_t i = 0, len; !st && i < n; i += len) {
        uint32_t c;
        bool cut;
        int step = mx_utf8_next(s + i, n - i, &c, &cut);
        len = step > 0 ? (size_t)step : 1;
        bool space = mx_is_space(c), mark = !space && is_punctuation(c);
        if (space || mark) st = close_word(f);
        if (st || space) continue;
        if (!f->n_open) f->begin = at;
        memcpy(f->open + f->n_open, s + i, len);
        f->n_open += len, f->end = at + w;
        if (mark) st = close_word(f);
    }
    mx_slab_free(s);
    return st;
}

mx_status mx_tokenizer_words(const mx_tokenizer *t, const char *text, size_t len, mx_word_at **out, int32_t *n, mx_error *err)
{
    finder f = {.t = t, .norm = &t->norm[0]};
    size_t size;
    *out = NULL, *n = 0;
    if (!t->wordpiece.on || t->n_norms != 1 || t->norm[0].kind != MX_NORM_BERT || t->n_splits != 1 || t->split[0].kind != MX_SPLIT_BERT || !mx_utf8_valid(text, len, NULL)) return MX_OK;
    if (!mx_mul_size(len, 6, &size) || !mx_add_size(size, 16, &size) || !(f.open = malloc(size))) return mx_fail(err, MX_ERR_NO_MEMORY, "the words of a text of %zu bytes", len);
    mx_status st = MX_OK;
    for (size_t i = 0, w; !st && i < len; i += w) {
        uint32_t c;
        bool cut;
        int step = mx_utf8_next(text + i, len - i, &c, &cut);
        w = step > 0 ? (size_t)step : 1;
        st = take_character(&f, text, i, w);
    }
    if (!st) st = close_word(&f);
    free(f.open);
    mx_ids_free(&f.ids);
    if (st) free(f.word);
    else *out = f.word, *n = f.n;
    return st ? mx_fail(err, st, "the words of a text of %zu bytes", len) : MX_OK;
}
