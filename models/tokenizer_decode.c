/* tokenizer_decode.c - ids to text, whole or as a stream. */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>

static const mx_token *token_at(const mx_tokenizer *t, int32_t id)
{
    if (id < 0 || id >= t->vocab.n_tokens || !t->vocab.token[id].flags) return NULL;
    return &t->vocab.token[id];
}

mx_status mx_tokenizer_decode(const mx_tokenizer *t, const int32_t *ids, int32_t n, bool skip_special, char **text,
                              size_t *len, mx_error *err)
{
    size_t size = 0, k = 0;
    *text = NULL;
    *len = 0;
    for (int32_t i = 0; i < n; i++) {
        const mx_token *p = token_at(t, ids[i]);
        if (p && !(skip_special && (p->flags & MX_TOKEN_SPECIAL)) && !mx_add_size(size, p->n_raw, &size))
            return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the text of %d ids", n);
    }
    char *out = size < SIZE_MAX ? malloc(size + 1) : NULL;
    if (!out) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the text of %d ids", n);
    bool first = t->strip_first_space;
    for (int32_t i = 0; i < n; i++) {
        const mx_token *p = token_at(t, ids[i]);
        if (!p || (skip_special && (p->flags & MX_TOKEN_SPECIAL)) || !p->n_raw) continue;
        size_t skip = first && t->vocab.bytes[p->raw] == ' ';
        memcpy(out + k, t->vocab.bytes + p->raw + skip, p->n_raw - skip);
        k += p->n_raw - skip;
        first = false;
    }
    out[k] = 0;
    *text = out;
    *len = k;
    return MX_OK;
}

/* ---- stream ---- */

void mx_detokenizer_open(mx_detokenizer *d, const mx_tokenizer *t, bool skip_special)
{
    memset(d, 0, sizeof *d);
    d->tokenizer = t;
    d->skip_special = skip_special;
}

void mx_detokenizer_close(mx_detokenizer *d)
{
    mx_slab_free(d->text);
    memset(d, 0, sizeof *d);
}

/* held + s[n] as valid UTF-8 into d->text; an unfinished character is held back unless last.  Each longest
 * beginning of a character that does not become one is one U+FFFD (Unicode 15, section 3.9). */
static const char *put_valid(mx_detokenizer *d, const char *s, size_t n, bool last, size_t *len)
{
    size_t room, k = 0;
    *len = 0;
    /* a bad byte becomes three, and the held bytes come first */
    if (!mx_add_size(n, sizeof d->held, &room) || !mx_mul_size(room, 4, &room)) return NULL;
    if (room > d->room) {
        char *text = mx_slab_grow(d->text, room);
        if (!text) return NULL;
        d->text = text;
        d->room = room;
    }
    char *in = d->text + room - n - (size_t)d->n_held;    /* the output cannot overtake the input: 3 for 1 at most */
    memcpy(in, d->held, (size_t)d->n_held);
    if (n) memcpy(in + d->n_held, s, n);
    n += (size_t)d->n_held;
    d->n_held = 0;
    for (size_t i = 0; i < n;) {
        uint32_t c;
        bool cut;
        int w = mx_utf8_next(in + i, n - i, &c, &cut);
        if (w > 0) {
            memmove(d->text + k, in + i, (size_t)w);
            k += (size_t)w;
        } else if (cut && !last) {
            memcpy(d->held, in + i, (size_t)-w);
            d->n_held = -w;
        } else {
            memcpy(d->text + k, "\xef\xbf\xbd", 3);
            k += 3;
        }
        i += (size_t)(w > 0 ? w : -w);
    }
    d->text[k] = 0;
    *len = k;
    return d->text;
}

const char *mx_detokenizer_push(mx_detokenizer *d, int32_t id, size_t *len)
{
    const mx_tokenizer *t = d->tokenizer;
    const mx_token *p = token_at(t, id);
    if (!p || (d->skip_special && (p->flags & MX_TOKEN_SPECIAL))) return put_valid(d, "", 0, false, len);
    size_t skip = !d->started && t->strip_first_space && p->n_raw && t->vocab.bytes[p->raw] == ' ';
    d->started |= p->n_raw > 0;
    return put_valid(d, t->vocab.bytes + p->raw + skip, p->n_raw - skip, false, len);
}

const char *mx_detokenizer_finish(mx_detokenizer *d, size_t *len)
{
    return put_valid(d, "", 0, true, len);
}

/* ---- lookups ---- */

int32_t mx_tokenizer_vocab(const mx_tokenizer *t)
{
    return t->vocab.n_tokens;
}

const char *mx_tokenizer_piece(const mx_tokenizer *t, int32_t id, size_t *len)
{
    const mx_token *p = token_at(t, id);
    *len = p ? p->n_raw : 0;
    return p ? t->vocab.bytes + p->raw : NULL;
}

int32_t mx_tokenizer_find(const mx_tokenizer *t, const char *token)
{
    return mx_vocab_find(&t->vocab, token, strlen(token));
}

bool mx_tokenizer_is_special(const mx_tokenizer *t, int32_t id)
{
    const mx_token *p = token_at(t, id);
    return p && (p->flags & MX_TOKEN_SPECIAL);
}

int32_t mx_tokenizer_bos(const mx_tokenizer *t)
{
    return t->bos;
}

int32_t mx_tokenizer_eos(const mx_tokenizer *t)
{
    return t->eos;
}
