/* tokenizer_normalize.c - what happens to text before it is split: Unicode normal forms by utf8proc, and the
 * literal replacements of SentencePiece-style tokenizers. */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>
#include <utf8proc.h>

void mx_normalizer_free(mx_normalizer *n)
{
    free(n->from);
    free(n->to);
    n->from = n->to = NULL;
}

/* True when the text is surely in NFC: no character decomposes, reorders, or composes with one before it.
 * (UAX #15, section 9; false for some text that is in NFC, which then takes the slow way to itself.) */
static bool surely_nfc(const char *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        if ((uint8_t)s[i] < 0x80) {
            i++;
            continue;
        }
        uint32_t c;
        bool cut;
        int len = mx_utf8_next(s + i, n - i, &c, &cut);
        if (len < 0) return false;
        i += (size_t)len;
        if (c < 0x300 || (c >= 0x4e00 && c <= 0x9fff) || (c >= 0xac00 && c <= 0xd7a3))
            continue;                      /* Latin, CJK and Hangul syllables: all NFC_QC=Yes, class 0 */
        if (c >= 0x1100 && c <= 0x11ff) return false;
        const utf8proc_property_t *p = utf8proc_get_property((utf8proc_int32_t)c);
        bool second = p->comb_index != UINT16_MAX && p->comb_index >= 0x8000;
        if (p->combining_class || p->decomp_seqindex != UINT16_MAX || second) return false;
    }
    return true;
}

static bool all_ascii(const char *s, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++) any |= (uint8_t)s[i];
    return any < 0x80;
}

/* utf8proc's own memory as ours. */
char *mx_text_of_utf8proc(utf8proc_uint8_t *p, size_t n)
{
    char *text = mx_slab_alloc(n + 1);
    if (text) memcpy(text, p, n);
    free(p);
    return text;
}

static mx_status normal_form(mx_norm_kind kind, const char *s, size_t n, char **out, size_t *n_out)
{
    if (kind == MX_NORM_NFC ? surely_nfc(s, n) : all_ascii(s, n)) return MX_OK;
    int how = UTF8PROC_STABLE;
    if (kind == MX_NORM_NFC || kind == MX_NORM_NFKC) how |= UTF8PROC_COMPOSE;
    else how |= UTF8PROC_DECOMPOSE;
    if (kind == MX_NORM_NFKC || kind == MX_NORM_NFKD) how |= UTF8PROC_COMPAT;
    utf8proc_uint8_t *p = NULL;
    utf8proc_ssize_t len = utf8proc_map((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, &p, (utf8proc_option_t)how);
    if (len < 0) return len == UTF8PROC_ERROR_INVALIDUTF8 ? MX_OK : MX_ERR_NO_MEMORY;
    *out = mx_text_of_utf8proc(p, (size_t)len);
    *n_out = (size_t)len;
    return *out ? MX_OK : MX_ERR_NO_MEMORY;
}

static mx_status replace(const mx_normalizer *r, const char *s, size_t n, char **out, size_t *n_out)
{
    size_t hits = 0, size, grown;
    if (!r->n_from) return MX_OK;
    for (const char *p = s; (p = memmem(p, (size_t)(s + n - p), r->from, r->n_from)); p += r->n_from) hits++;
    if (!hits) return MX_OK;
    if (!mx_mul_size(hits, r->n_to, &grown) || !mx_add_size(n - hits * r->n_from, grown, &size) ||
        !mx_add_size(size, 1, &grown))
        return MX_ERR_NO_MEMORY;
    char *w = mx_slab_alloc(grown);
    if (!w) return MX_ERR_NO_MEMORY;
    *out = w;
    *n_out = size;
    for (const char *p = s;;) {
        const char *hit = memmem(p, (size_t)(s + n - p), r->from, r->n_from);
        size_t plain = (size_t)((hit ? hit : s + n) - p);
        memcpy(w, p, plain);
        w += plain;
        if (!hit) break;
        memcpy(w, r->to, r->n_to);
        w += r->n_to;
        p = hit + r->n_from;
    }
    *w = 0;
    return MX_OK;
}

static mx_status prepend(const mx_normalizer *r, const char *s, size_t n, char **out, size_t *n_out)
{
    size_t size;
    if (!mx_add_size(n, r->n_to + 1, &size)) return MX_ERR_NO_MEMORY;
    char *w = mx_slab_alloc(size);
    if (!w) return MX_ERR_NO_MEMORY;
    memcpy(w, r->to, r->n_to);
    if (n) memcpy(w + r->n_to, s, n);
    w[size - 1] = 0;
    *out = w;
    *n_out = size - 1;
    return MX_OK;
}

static mx_status strip(const mx_normalizer *r, const char *s, size_t n, char **out, size_t *n_out)
{
    size_t begin = 0, end = n;
    uint32_t c;
    bool cut;
    for (int len; r->left && begin < end; begin += (size_t)len) {
        len = mx_utf8_next(s + begin, end - begin, &c, &cut);
        if (len < 0 || !mx_is_space(c)) break;
    }
    while (r->right && begin < end) {
        size_t at = end - 1;
        while (at > begin && ((uint8_t)s[at] & 0xc0) == 0x80) at--;
        if (mx_utf8_next(s + at, end - at, &c, &cut) < 0 || !mx_is_space(c)) break;
        end = at;
    }
    if (begin == 0 && end == n) return MX_OK;
    *out = mx_slab_alloc(end - begin + 1);
    if (!*out) return MX_ERR_NO_MEMORY;
    memcpy(*out, s + begin, end - begin);
    (*out)[end - begin] = 0;
    *n_out = end - begin;
    return MX_OK;
}

mx_status mx_normalize(const mx_normalizer *norms, int n_norms, bool first, const char *text, size_t n, char **out,
                       size_t *n_out)
{
    *out = NULL;
    *n_out = n;
    for (int i = 0; i < n_norms; i++) {
        const mx_normalizer *r = &norms[i];
        const char *s = *out ? *out : text;
        char *made = NULL;
        size_t n_made = *n_out;
        mx_status st = MX_OK;
        switch (r->kind) {
        case MX_NORM_PREPEND: st = first ? prepend(r, s, *n_out, &made, &n_made) : MX_OK; break;
        case MX_NORM_REPLACE: st = replace(r, s, *n_out, &made, &n_made); break;
        case MX_NORM_BERT: st = mx_bert_normalize(r, s, *n_out, &made, &n_made); break;
        case MX_NORM_STRIP: st = strip(r, s, *n_out, &made, &n_made); break;
        default: st = normal_form(r->kind, s, *n_out, &made, &n_made); break;
        }
        if (made) {
            mx_slab_free(*out);
            *out = made;
            *n_out = n_made;
        }
        if (st) {
            mx_slab_free(*out);
            *out = NULL;
            return st;
        }
    }
    return MX_OK;
}
