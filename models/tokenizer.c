/* tokenizer.c - a tokenizer's life: made empty, filled by a reader, sealed, closed. */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>
#include <unistd.h>

mx_tokenizer *mx_tokenizer_new(void)
{
    mx_tokenizer *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    t->unknown = t->bos = t->eos = -1;
    return t;
}

void mx_tokenizer_close(mx_tokenizer *t)
{
    if (!t) return;
    for (int i = 0; i < t->n_norms; i++) mx_normalizer_free(&t->norm[i]);
    for (int i = 0; i < t->n_splits; i++) mx_split_free(&t->split[i]);
    mx_split_free_limits(t);
    mx_trie_free(&t->trie);
    mx_trie_free(&t->trie_normalized);
    mx_merges_free(&t->merges);
    mx_vocab_free(&t->vocab);
    free(t->added);
    free(t->template_text);
    free(t->chat_system);
    free(t->chat_date);
    free(t->chat_system_head);
    free(t);
}

mx_status mx_tokenizer_add_added(mx_tokenizer *t, const mx_added *a, const char *s, size_t n, const char *what,
                                 mx_error *err)
{
    MX_TRY(mx_vocab_add(&t->vocab, a->id, s, n, what, err));
    mx_token *k = &t->vocab.token[a->id];
    if (k->flags & MX_TOKEN_ADDED) return MX_OK;
    if (t->n_added == t->room_added) {
        int32_t room = t->room_added * 2 + 32;
        mx_added *added = realloc(t->added, (size_t)room * sizeof *added);
        if (!added) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for the added tokens", what);
        t->added = added;
        t->room_added = room;
    }
    t->added[t->n_added++] = *a;
    k->flags |= MX_TOKEN_ADDED | (a->special ? MX_TOKEN_SPECIAL : 0u);
    return MX_OK;
}

/* ---- sealing ---- */

/* The bytes that a token of byte-level BPE stands for; a token that has a character outside the byte alphabet
 * stands for itself. */
static mx_status raw_byte_level(mx_vocab *v, int32_t id, char *scratch)
{
    mx_token *k = &v->token[id];
    const char *s = v->bytes + k->written;
    size_t n = 0;
    for (size_t i = 0; i < k->n_written;) {
        uint32_t c;
        bool cut;
        int len = mx_utf8_next(s + i, k->n_written - i, &c, &cut), byte = len > 0 ? mx_char_byte(c) : -1;
        if (byte < 0) return MX_OK;
        scratch[n++] = (char)byte;
        i += (size_t)len;
    }
    return mx_vocab_set_raw(v, id, scratch, n);
}

/* "<0x41>" stands for a byte, U+2581 for a space. */
static int byte_token(const char *s, size_t n)
{
    static const char digits[] = "0123456789ABCDEF";
    if (n != 6 || memcmp(s, "<0x", 3) || s[5] != '>') return -1;
    const char *hi = memchr(digits, s[3], 16), *lo = memchr(digits, s[4], 16);
    return hi && lo ? (int)((hi - digits) * 16 + (lo - digits)) : -1;
}

static mx_status raw_spaced(mx_vocab *v, int32_t id, bool byte_fallback, char *scratch)
{
    mx_token *k = &v->token[id];
    const char *s = v->bytes + k->written;
    size_t n = 0;
    int byte = byte_fallback ? byte_token(s, k->n_written) : -1;
    if (byte >= 0) {
        scratch[n++] = (char)byte;
        return mx_vocab_set_raw(v, id, scratch, n);
    }
    for (size_t i = 0; i < k->n_written;) {
        if (k->n_written - i >= 3 && !memcmp(s + i, "\xe2\x96\x81", 3)) {
            scratch[n++] = ' ';
            i += 3;
        } else {
            scratch[n++] = s[i++];
        }
    }
    return mx_vocab_set_raw(v, id, scratch, n);
}

/* A piece that begins a word has a space before it. */
static mx_status raw_piece(const mx_tokenizer *t, mx_vocab *v, int32_t id, char *scratch)
{
    const mx_token *k = &v->token[id];
    const char *s = v->bytes + k->written, *prefix = t->wordpiece.prefix;
    size_t n = strlen(prefix), inside = n && k->n_written > n && !memcmp(s, prefix, n) ? n : 0;
    if (!inside) *scratch = ' ';
    memcpy(scratch + !inside, s + inside, k->n_written - inside);
    return mx_vocab_set_raw(v, id, scratch, k->n_written - inside + !inside);
}

static mx_status seal_vocab(mx_tokenizer *t)
{
    mx_vocab *v = &t->vocab;
    t->longest = 0;
    for (int32_t id = 0; id < v->n_tokens; id++)
        if (v->token[id].n_written > t->longest) t->longest = v->token[id].n_written;
    char *scratch = malloc((size_t)t->longest + 1);
    mx_status st = scratch ? MX_OK : MX_ERR_NO_MEMORY;
    for (int32_t id = 0; id < v->n_tokens && !st; id++) {
        uint32_t flags = v->token[id].flags;
        if (!flags || (flags & (t->byte_level ? MX_TOKEN_ADDED : MX_TOKEN_SPECIAL))) continue;
        st = t->wordpiece.on ? raw_piece(t, v, id, scratch)
           : t->byte_level ? raw_byte_level(v, id, scratch) : raw_spaced(v, id, t->byte_fallback, scratch);
    }
    free(scratch);
    for (int b = 0; b < 256; b++) {
        char s[8];
        int n = t->byte_level ? mx_utf8_put(s, mx_byte_char((uint8_t)b)) : snprintf(s, sizeof s, "<0x%02X>", (unsigned)b);
        t->byte_id[b] = mx_vocab_find(v, s, (size_t)n);
        s[0] = (char)b;
        if (b < 128) t->ascii_id[b] = mx_vocab_find(v, s, 1);
    }
    return st;
}

mx_status mx_tokenizer_seal(mx_tokenizer *t, const char *what, mx_error *err)
{
    mx_vocab *v = &t->vocab;
    if (!v->n_tokens) return mx_fail(err, MX_ERR_FORMAT, "%s: the vocabulary is empty", what);
    mx_status st = seal_vocab(t);
    for (int32_t i = 0; i < t->n_added && !st; i++) {
        const mx_added *a = &t->added[i];
        const char *s = v->bytes + v->token[a->id].written;
        size_t n = v->token[a->id].n_written;
        char *made = NULL;
        /* `tokenizers` looks for these in normalised text, so their own text is normalised too */
        if (a->normalized && mx_utf8_valid(s, n, NULL)) st = mx_normalize(t->norm, t->n_norms, true, s, n, &made, &n);
        if (!st) st = mx_trie_add(a->normalized ? &t->trie_normalized : &t->trie, made ? made : s, n, i);
        mx_slab_free(made);
    }
    if (st) return mx_fail(err, st, "%s: no memory for the vocabulary", what);
    const int32_t named[] = {t->unknown, t->bos, t->eos};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        if (named[i] >= 0 && (named[i] >= v->n_tokens || !v->token[named[i]].flags))
            return mx_fail(err, MX_ERR_FORMAT, "%s: the %s token's id %d is not in the vocabulary", what,
                           (const char *[]){"unknown", "BOS", "EOS"}[i], named[i]);
    return MX_OK;
}

static int without(int32_t *ids, int n, int32_t id)
{
    int k = 0;
    for (int i = 0; i < n; i++)
        if (ids[i] != id) ids[k++] = ids[i];
    return k;
}

void mx_tokenizer_set_bos_eos(mx_tokenizer *t, const bool *add_bos, const bool *add_eos)
{
    if (add_bos && t->bos >= 0) {
        t->n_before = without(t->before, t->n_before, t->bos);
        if (*add_bos && t->n_before < MX_TOKENIZER_MOST_EXTRA) {
            memmove(t->before + 1, t->before, (size_t)t->n_before * sizeof *t->before);
            t->before[0] = t->bos;
            t->n_before++;
        }
    }
    if (add_eos && t->eos >= 0) {
        t->n_after = without(t->after, t->n_after, t->eos);
        if (*add_eos && t->n_after < MX_TOKENIZER_MOST_EXTRA) t->after[t->n_after++] = t->eos;
    }
}

/* ---- a folder ---- */

/* The first of the names that is there; *text stays NULL when none is. */
static mx_status read_first(const char *folder, const char *const *names, char **text, size_t *len, mx_error *err)
{
    for (; *names; names++) {
        char path[4096];
        int n = snprintf(path, sizeof path, "%s/%s", folder, *names);
        if (n < 0 || (size_t)n >= sizeof path) return mx_fail(err, MX_ERR_ARG, "%.100s...: the path is too long", folder);
        if (!access(path, F_OK)) return mx_read_file(path, MX_TOKENIZER_MOST_BYTES, text, len, err);
    }
    return MX_OK;
}

mx_status mx_tokenizer_open_folder(mx_tokenizer **out, const char *folder, mx_error *err)
{
    static const char *const names[][3] = {
        {"tokenizer.json"},
        {"tokenizer_config.json"},
        {"chat_template.jinja"},
        {"vocab.json", "encoder.json"},
        {"merges.txt", "vocab.bpe"},
        {"vocab.txt"},
    };
    char *text[6] = {0};
    size_t len[6] = {0};
    mx_status st = MX_OK;
    *out = NULL;
    for (int i = 0; i < 6 && !st; i++)
        if (i < 3 || !text[0]) st = read_first(folder, names[i], &text[i], &len[i], err);
    if (st) goto done;
    if (!text[0] && (!text[3] || !text[4]) && !text[5]) {
        st = mx_fail(err, MX_ERR_IO, "%s: neither tokenizer.json nor vocab.json with merges.txt nor BERT's vocab.txt", folder);
        goto done;
    }
    mx_tokenizer_files f = {
        .name = folder,
        .json = text[0], .config = text[1], .jinja = text[2], .vocab = text[3], .merges = text[4], .pieces = text[5],
        .n_json = len[0], .n_config = len[1], .n_jinja = len[2], .n_vocab = len[3], .n_merges = len[4], .n_pieces = len[5],
    };
    st = mx_tokenizer_parse(out, &f, err);
done:
    for (int i = 0; i < 6; i++) free(text[i]);
    return st;
}
