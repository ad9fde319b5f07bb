/* tokenizer_gguf.c - the tokenizer in a GGUF file's metadata (tokenizer.ggml.*). */
#include "models/tokenizer_internal.h"

#include <stdlib.h>

/* token_type values, as llama.cpp's gguf format names them */
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN = 2, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_UNUSED = 5, TYPE_BYTE = 6 };

#define KEY(name) "tokenizer.ggml." name

static bool is(const char *s, size_t n, const char *name)
{
    return s && n == strlen(name) && !memcmp(s, name, n);
}

static int64_t type_of(const mx_checkpoint *c, int64_t i)
{
    int64_t type = TYPE_NORMAL;
    return mx_gguf_array_int(c, KEY("token_type"), i, &type) ? type : TYPE_NORMAL;
}

static mx_status read_tokens(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    int64_t n = mx_gguf_array_count(c, KEY("tokens"));
    int64_t n_types = mx_gguf_array_count(c, KEY("token_type"));
    if (n <= 0 || n > MX_TOKENIZER_MOST_IDS)
        return mx_fail(err, MX_ERR_FORMAT, KEY("tokens") ": %lld tokens, 1..%d are allowed", (long long)n,
                       MX_TOKENIZER_MOST_IDS);
    if (n_types >= 0 && n_types != n)
        return mx_fail(err, MX_ERR_FORMAT, KEY("token_type") ": %lld entries for %lld tokens", (long long)n_types,
                       (long long)n);
    if (mx_vocab_reserve(&t->vocab, (size_t)n, (size_t)n * 16))
        return mx_fail(err, MX_ERR_NO_MEMORY, KEY("tokens") ": no memory for %lld tokens", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        const char *s = mx_gguf_array_string(c, KEY("tokens"), i, &len);
        int64_t type = type_of(c, i);
        if (!s) return mx_fail(err, MX_ERR_FORMAT, KEY("tokens") ": entry %lld is not a string", (long long)i);
        if (type == TYPE_CONTROL || type == TYPE_UNKNOWN || type == TYPE_USER) {
            mx_added a = {.id = (int32_t)i, .special = type != TYPE_USER};
            MX_TRY(mx_tokenizer_add_added(t, &a, s, len, KEY("tokens"), err));
        } else {
            MX_TRY(mx_vocab_add(&t->vocab, i, s, len, KEY("tokens"), err));
        }
    }
    return MX_OK;
}

static mx_status read_merges(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    int64_t n = mx_gguf_array_count(c, KEY("merges"));
    if (n < 0) return mx_fail(err, MX_ERR_FORMAT, KEY("merges") ": missing");
    if (n > UINT32_MAX || mx_merges_reserve(&t->merges, (size_t)n))
        return mx_fail(err, MX_ERR_NO_MEMORY, KEY("merges") ": no memory for %lld merges", (long long)n);
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        const char *s = mx_gguf_array_string(c, KEY("merges"), i, &len);
        /* a token may itself begin with a space in some files, so the first is at least one byte */
        const char *space = s && len > 1 ? memchr(s + 1, ' ', len - 1) : NULL;
        if (!space)
            return mx_fail(err, MX_ERR_FORMAT, KEY("merges") ": entry %lld is not two tokens with a space between",
                           (long long)i);
        MX_TRY(mx_merges_add(t, s, (size_t)(space - s), space + 1, (size_t)(s + len - space - 1), (uint32_t)i,
                             KEY("merges"), err));
    }
    return MX_OK;
}

/* ---- SentencePiece: scores in place of merges ---- */

typedef struct scored { double score; int32_t id; } scored;

static int by_score(const void *a, const void *b)
{
    const scored *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Every cut of a piece into two pieces is a merge that makes it. */
static mx_status add_cuts(mx_tokenizer *t, int32_t id, uint32_t rank)
{
    enum { MOST_PIECE = 1024 };            /* bytes; a longer piece is never made by merging */
    const mx_token *k = &t->vocab.token[id];
    const char *s = t->vocab.bytes + k->written;
    if (k->n_written > MOST_PIECE) return MX_OK;
    for (size_t cut = 1; cut < k->n_written; cut++) {
        if (((uint8_t)s[cut] & 0xc0) == 0x80) continue;
        int32_t l = mx_vocab_find(&t->vocab, s, cut);
        int32_t r = l < 0 ? -1 : mx_vocab_find(&t->vocab, s + cut, k->n_written - cut);
        if (r < 0 || (t->vocab.token[l].flags & MX_TOKEN_SPECIAL) || (t->vocab.token[r].flags & MX_TOKEN_SPECIAL)) continue;
        if (t->merges.n_used * 2 >= t->merges.n_slots && mx_merges_reserve(&t->merges, (size_t)t->merges.n_used + 64))
            return MX_ERR_NO_MEMORY;
        mx_merges_put(&t->merges, (uint32_t)l, (uint32_t)r, rank, (uint32_t)id);
    }
    return MX_OK;
}

/* SentencePiece merges the pair whose piece has the best score (Kudo, Richardson 2018); pieces in the order of
 * their scores are ranks, equal scores equal ranks, so that one merging serves both families. */
static mx_status rank_scores(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    int32_t n = t->vocab.n_tokens, k = 0;
    if (mx_gguf_array_count(c, KEY("scores")) != n)
        return mx_fail(err, MX_ERR_FORMAT, KEY("scores") ": %lld entries for %d tokens",
                       (long long)mx_gguf_array_count(c, KEY("scores")), n);
    scored *list = malloc((size_t)n * sizeof *list);
    mx_status st = list ? mx_merges_reserve(&t->merges, (size_t)n * 3) : MX_ERR_NO_MEMORY;
    for (int32_t i = 0; i < n && !st; i++) {
        int64_t type = type_of(c, i);
        if (type != TYPE_NORMAL && type != TYPE_USER) continue;
        list[k].id = i;
        if (!mx_gguf_array_float(c, KEY("scores"), i, &list[k].score) || list[k].score != list[k].score) {
            st = mx_fail(err, MX_ERR_FORMAT, KEY("scores") ": entry %d is not a number", i);
            goto done;
        }
        k++;
    }
    if (!st) qsort(list, (size_t)k, sizeof *list, by_score);
    uint32_t rank = 0;
    for (int32_t i = 0; i < k && !st; i++) {
        if (i && list[i].score != list[i - 1].score) rank++;
        st = add_cuts(t, list[i].id, rank);
    }
    if (st) mx_fail(err, st, KEY("scores") ": no memory for the merges");
done:
    free(list);
    return st;
}


static mx_status read_spaced(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    static const char block[] = "\xe2\x96\x81";            /* U+2581 stands for a space */
    int64_t prefix = 1;
    mx_gguf_int(c, KEY("add_space_prefix"), &prefix);
    t->byte_fallback = t->fuse_unknown = true;
    t->strip_first_space = prefix != 0;
    if (prefix) t->norm[t->n_norms++] = (mx_normalizer){.kind = MX_NORM_PREPEND, .to = strdup(block), .n_to = 3};
    t->norm[t->n_norms++] =
        (mx_normalizer){.kind = MX_NORM_REPLACE, .from = strdup(" "), .n_from = 1, .to = strdup(block), .n_to = 3};
    for (int i = 0; i < t->n_norms; i++)
        if (!t->norm[i].to || (t->norm[i].kind == MX_NORM_REPLACE && !t->norm[i].from))
            return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the tokenizer");
    return rank_scores(t, c, err);
}

/* ---- the whole ---- */

static mx_status read_id(const mx_checkpoint *c, const char *key, int32_t otherwise, int32_t n, int32_t *out,
                         mx_error *err)
{
    int64_t id;
    *out = otherwise < n ? otherwise : -1;
    if (!mx_gguf_int(c, key, &id)) return MX_OK;
    if (id < 0 || id >= n) return mx_fail(err, MX_ERR_FORMAT, "%s: %lld is not in the vocabulary", key, (long long)id);
    *out = (int32_t)id;
    return MX_OK;
}

static mx_status read_all(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    size_t n_model, n_pre = 7, n_chat;
    const char *model = mx_gguf_string(c, KEY("model"), &n_model);
    const char *pre = mx_gguf_string(c, KEY("pre"), &n_pre);
    const char *chat = mx_gguf_string(c, "tokenizer.chat_template", &n_chat);
    if (!model) return mx_fail(err, MX_ERR_FORMAT, KEY("model") ": missing");
    bool spaced = is(model, n_model, "llama");
    if (!spaced && !is(model, n_model, "gpt2"))
        return mx_fail(err, MX_ERR_ARG, KEY("model") ": tokenizer \"%.*s\" is not one that Merx has",
                       (int)(n_model > 60 ? 60 : n_model), model);
    t->byte_level = !spaced;
    MX_TRY(read_tokens(t, c, err));
    int32_t n = t->vocab.n_tokens, unknown;
    MX_TRY(read_id(c, KEY("bos_token_id"), spaced ? 1 : -1, n, &t->bos, err));
    MX_TRY(read_id(c, KEY("eos_token_id"), spaced ? 2 : -1, n, &t->eos, err));
    MX_TRY(read_id(c, KEY("unknown_token_id"), spaced ? 0 : -1, n, &unknown, err));
    if (spaced) {
        /* byte-level text needs no unknown token: what a file names there would stand for a lost byte */
        t->unknown = unknown;
        MX_TRY(read_spaced(t, c, err));
    } else {
        MX_TRY(read_merges(t, c, err));
        MX_TRY(mx_split_preset(t, pre ? pre : "default", pre ? n_pre : 7, KEY("pre"), err));
    }
    int64_t bos = spaced || is(pre, n_pre, "llama-bpe") || is(pre, n_pre, "llama3") || is(pre, n_pre, "llama-v3"), eos = 0;
    mx_gguf_int(c, KEY("add_bos_token"), &bos);
    mx_gguf_int(c, KEY("add_eos_token"), &eos);
    mx_tokenizer_set_bos_eos(t, &(bool){bos != 0}, &(bool){eos != 0});
    if (chat && mx_tokenizer_set_template(t, chat, n_chat))
        return mx_fail(err, MX_ERR_NO_MEMORY, "tokenizer.chat_template: no memory");
    return mx_tokenizer_seal(t, KEY("tokens"), err);
}

mx_status mx_tokenizer_open_gguf(mx_tokenizer **out, const mx_checkpoint *gguf, mx_error *err)
{
    const mx_blob *any = mx_checkpoint_count(gguf) ? mx_checkpoint_at(gguf, 0) : NULL;
    mx_tokenizer *t = mx_tokenizer_new();
    mx_error inner = {0};
    *out = NULL;
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the tokenizer");
    mx_status st = read_all(t, gguf, &inner);
    if (st) {
        mx_tokenizer_close(t);
        return mx_fail(err, st, "%.200s: %.280s", any ? any->file : "GGUF", inner.text);
    }
    *out = t;
    return MX_OK;
}
