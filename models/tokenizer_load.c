/* tokenizer_load.c - vocabularies from tokenizer.json, vocab.json + merges.txt, and GGUF. */
#include "models/tokenizer_internal.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { MOST_JSON = 256 << 20 };

static mx_status read_json(const char *folder, const char *name, json_t **out, mx_error *err)
{
    char path[1024], *text = NULL;
    size_t len;
    json_error_t e;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    MX_TRY(mx_read_file(path, MOST_JSON, &text, &len, err));
    *out = json_loadb(text, len, JSON_ALLOW_NUL, &e);
    free(text);
    return *out ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "%s: %s at line %d", path, e.text, e.line);
}

static bool is_type(const json_t *o, const char *type)
{
    const char *t = json_string_value(json_object_get(o, "type"));
    return t && !strcmp(t, type);
}

/* ---- how text is split -------------------------------------------------------------------- */

static mx_status read_stage(mx_tokenizer *t, const json_t *o, const char *file, mx_error *err)
{
    const char *type = json_string_value(json_object_get(o, "type"));
    if (!type) return mx_fail(err, MX_ERR_FORMAT, "%s: pre_tokenizer.type is missing", file);
    if (!strcmp(type, "Sequence")) {
        size_t i;
        json_t *one, *list = json_object_get(o, "pretokenizers");
        json_array_foreach(list, i, one) {
            if (is_type(one, "Sequence")) return mx_fail(err, MX_ERR_FORMAT, "%s: pre_tokenizer: a Sequence in a Sequence", file);
            MX_TRY(read_stage(t, one, file, err));
        }
        return MX_OK;
    }
    if (!strcmp(type, "ByteLevel")) {
        if (json_is_true(json_object_get(o, "add_prefix_space"))) t->prefix_space = true;
        if (json_is_false(json_object_get(o, "use_regex"))) return MX_OK;
        return tok_add_stage(t, tok_gpt2_pattern, strlen(tok_gpt2_pattern), file, err);
    }
    if (!strcmp(type, "Digits"))
        return json_is_true(json_object_get(o, "individual_digits")) ? tok_add_stage(t, "\\p{N}", 5, file, err)
                                                                     : tok_add_stage(t, "\\p{N}+", 6, file, err);
    if (!strcmp(type, "Split")) {
        json_t *pattern = json_object_get(json_object_get(o, "pattern"), "Regex");
        const char *how = json_string_value(json_object_get(o, "behavior"));
        if (!json_is_string(pattern) || !how || strcmp(how, "Isolated") || json_is_true(json_object_get(o, "invert")))
            return mx_fail(err, MX_ERR_ARG, "%s: pre_tokenizer Split: only an isolating Regex is supported", file);
        return tok_add_stage(t, json_string_value(pattern), json_string_length(pattern), file, err);
    }
    return mx_fail(err, MX_ERR_ARG, "%s: pre_tokenizer \"%s\" is not supported; Merx has ByteLevel, Digits, Split, Sequence", file, type);
}

/* ---- vocabulary and merges ------------------------------------------------------------------ */

static mx_status highest_id(const json_t *vocab, const json_t *added, const char *file, int32_t *most, mx_error *err)
{
    const char *key;
    json_t *v;
    size_t i;
    json_int_t top = -1;
    json_object_foreach((json_t *)vocab, key, v) {
        if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) >= 1 << 24)
            return mx_fail(err, MX_ERR_FORMAT, "%s: vocab[\"%.60s\"] is not an id from 0 to %d", file, key, (1 << 24) - 1);
        if (json_integer_value(v) > top) top = json_integer_value(v);
    }
    json_array_foreach(added, i, v) {
        json_t *id = json_object_get(v, "id");
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= 1 << 24)
            return mx_fail(err, MX_ERR_FORMAT, "%s: added_tokens[%zu].id is not an id from 0 to %d", file, i, (1 << 24) - 1);
        if (json_integer_value(id) > top) top = json_integer_value(id);
    }
    *most = (int32_t)top;
    return MX_OK;
}

static mx_status read_vocab(mx_tokenizer **out, json_t *vocab, json_t *added, const char *file, mx_error *err)
{
    int32_t most = -1;
    const char *key;
    json_t *v;
    size_t i;
    if (!json_is_object(vocab)) return mx_fail(err, MX_ERR_FORMAT, "%s: vocab is not an object", file);
    MX_TRY(highest_id(vocab, added, file, &most, err));
    MX_TRY(tok_new(out, most + 1, err));
    mx_tokenizer *t = *out;
    json_array_foreach(added, i, v) {
        json_t *content = json_object_get(v, "content");
        int32_t id = (int32_t)json_integer_value(json_object_get(v, "id"));
        if (!json_is_string(content)) return mx_fail(err, MX_ERR_FORMAT, "%s: added_tokens[%zu].content is not a string", file, i);
        MX_TRY(tok_set(t, id, json_string_value(content), json_string_length(content), true, file, err));
        MX_TRY(tok_add_added(t, id, json_string_value(content), json_string_length(content), json_is_true(json_object_get(v, "special")), err));
    }
    json_object_foreach(vocab, key, v) {
        int32_t id = (int32_t)json_integer_value(v);
        if (t->piece[id].present) {
            bool same = false;                       /* an added token may stand in vocab too */
            for (int32_t k = 0; k < t->n_added; k++) same |= t->added[k].id == id;
            if (same) continue;
        }
        MX_TRY(tok_set(t, id, key, strlen(key), false, file, err));
    }
    tok_sort_added(t);
    return tok_index(t, err);
}

static mx_status read_merges(mx_tokenizer *t, const json_t *merges, const char *file, mx_error *err)
{
    size_t i;
    json_t *m;
    if (!json_is_array(merges)) return mx_fail(err, MX_ERR_FORMAT, "%s: model.merges is not an array", file);
    MX_TRY(tok_merges_room(t, (int64_t)json_array_size(merges), err));
    json_array_foreach(merges, i, m) {
        const char *left = json_string_value(json_is_array(m) ? json_array_get(m, 0) : m), *right = json_string_value(json_array_get(m, 1));
        size_t n_left = left ? strlen(left) : 0;
        if (!json_is_array(m) && left) {
            const char *space = strchr(left + (left[0] == ' '), ' ');
            right = space ? space + 1 : NULL;
            n_left = space ? (size_t)(space - left) : 0;
        }
        if (!left || !right) return mx_fail(err, MX_ERR_FORMAT, "%s: model.merges[%zu] is not a pair of tokens", file, i);
        MX_TRY(tok_add_merge(t, (int32_t)i, left, n_left, right, strlen(right), file, err));
    }
    return MX_OK;
}

/* <bos> $A <eos>: which special ids stand round a single text. */
static void read_template(mx_tokenizer *t, const json_t *post)
{
    size_t i;
    json_t *item, *parts = json_object_get(post, "processors");
    if (is_type(post, "Sequence")) {
        json_array_foreach(parts, i, item) read_template(t, item);
        return;
    }
    bool text_seen = false;
    json_array_foreach(json_object_get(post, "single"), i, item) {
        const char *id = json_string_value(json_object_get(json_object_get(item, "SpecialToken"), "id"));
        if (!id) {
            text_seen = true;
            continue;
        }
        int32_t n = mx_tokenizer_find(t, id);
        if (n < 0) continue;
        if (text_seen) {
            t->eos = n;
            t->add_eos = true;
        } else {
            t->bos = n;
            t->add_bos = true;
        }
    }
}

static mx_status from_tokenizer_json(mx_tokenizer **out, json_t *root, const char *file, mx_error *err)
{
    json_t *model = json_object_get(root, "model"), *pre = json_object_get(root, "pre_tokenizer"), *norm = json_object_get(root, "normalizer");
    const char *type = json_string_value(json_object_get(model, "type"));
    if (!model || (type && strcmp(type, "BPE")))
        return mx_fail(err, MX_ERR_ARG, "%s: model.type \"%s\" is not supported; Merx has BPE", file, type ? type : "none");
    if (json_is_true(json_object_get(model, "byte_fallback")))
        return mx_fail(err, MX_ERR_ARG, "%s: SentencePiece-style BPE (byte_fallback) is not supported; Merx has byte-level BPE", file);
    if (norm && !json_is_null(norm))
        return mx_fail(err, MX_ERR_ARG, "%s: normalizer \"%s\" is not supported", file, json_string_value(json_object_get(norm, "type")));
    MX_TRY(read_vocab(out, json_object_get(model, "vocab"), json_object_get(root, "added_tokens"), file, err));
    MX_TRY(read_merges(*out, json_object_get(model, "merges"), file, err));
    (*out)->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    if (pre && !json_is_null(pre)) MX_TRY(read_stage(*out, pre, file, err));
    read_template(*out, json_object_get(root, "post_processor"));
    return MX_OK;
}

/* merges.txt: a pair a line, "#version" lines apart. */
static mx_status merges_text(mx_tokenizer *t, char *text, const char *file, mx_error *err)
{
    int64_t lines = 0;
    for (const char *p = text; *p; p++) lines += *p == '\n';
    MX_TRY(tok_merges_room(t, lines + 1, err));
    int32_t rank = 0;
    for (char *line = text, *end; line && *line; line = end ? end + 1 : NULL) {
        end = strchr(line, '\n');
        if (end) *end = 0;
        size_t len = strlen(line);
        if (len && line[len - 1] == '\r') line[--len] = 0;
        if (!len || !strncmp(line, "#version", 8)) continue;
        char *space = strchr(line, ' ');
        if (!space) return mx_fail(err, MX_ERR_FORMAT, "%s: merge %d is not a pair of tokens", file, rank);
        MX_TRY(tok_add_merge(t, rank++, line, (size_t)(space - line), space + 1, strlen(space + 1), file, err));
    }
    return MX_OK;
}

static mx_status from_vocab_merges(mx_tokenizer **out, const char *folder, mx_error *err)
{
    json_t *vocab = NULL;
    char path[1024], *text = NULL;
    size_t len;
    MX_TRY(read_json(folder, "vocab.json", &vocab, err));
    mx_status st = read_vocab(out, vocab, NULL, "vocab.json", err);
    json_decref(vocab);
    if (st) return st;
    snprintf(path, sizeof path, "%s/merges.txt", folder);
    MX_TRY(mx_read_file(path, MOST_JSON, &text, &len, err));
    st = merges_text(*out, text, path, err);
    free(text);
    if (st) return st;
    mx_tokenizer *t = *out;
    t->bos = t->eos = tok_find_bytes(t, "<|endoftext|>", 13);
    if (t->eos >= 0) MX_TRY(tok_add_added(t, t->eos, "<|endoftext|>", 13, true, err));
    return tok_add_stage(t, tok_gpt2_pattern, strlen(tok_gpt2_pattern), path, err);
}

static int32_t named_token(const mx_tokenizer *t, const json_t *config, const char *key)
{
    json_t *v = json_object_get(config, key);
    const char *name = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
    return name ? mx_tokenizer_find(t, name) : -1;
}

mx_status mx_tokenizer_open_folder(mx_tokenizer **out, const char *folder, mx_error *err)
{
    char path[1024];
    json_t *root = NULL;
    mx_status st;
    *out = NULL;
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    if (access(path, R_OK) == 0) {
        MX_TRY(read_json(folder, "tokenizer.json", &root, err));
        st = from_tokenizer_json(out, root, path, err);
        json_decref(root);
    } else {
        st = from_vocab_merges(out, folder, err);
    }
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    if (!st && access(path, R_OK) == 0) {
        json_t *config = NULL;
        st = read_json(folder, "tokenizer_config.json", &config, err);
        if (!st) {
            mx_tokenizer *t = *out;
            const char *chat = json_string_value(json_object_get(config, "chat_template"));
            if (chat) t->chat_template = strdup(chat);
            if (t->bos < 0) t->bos = named_token(t, config, "bos_token");
            if (t->eos < 0) t->eos = named_token(t, config, "eos_token");
            json_decref(config);
        }
    }
    if (st) {
        mx_tokenizer_close(*out);
        *out = NULL;
    }
    return st;
}

/* ---- GGUF ---------------------------------------------------------------------------------------- */

static mx_status gguf_patterns(mx_tokenizer *t, const char *pre, size_t len, mx_error *err)
{
    static const struct { const char *name, *first; const char *const *then; bool ignore_merges; } known[] = {
        {"default", NULL, &tok_gpt2_pattern, false}, {"gpt-2", NULL, &tok_gpt2_pattern, false},
        {"smollm", "\\p{N}", &tok_gpt2_pattern, false}, {"llama-bpe", NULL, &tok_llama3_pattern, true},
        {"qwen2", NULL, &tok_qwen2_pattern, false},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strlen(known[i].name) != len || memcmp(known[i].name, pre, len)) continue;
        if (known[i].first) MX_TRY(tok_add_stage(t, known[i].first, strlen(known[i].first), "GGUF", err));
        t->ignore_merges = known[i].ignore_merges;
        return tok_add_stage(t, *known[i].then, strlen(*known[i].then), "GGUF", err);
    }
    return mx_fail(err, MX_ERR_ARG, "GGUF: tokenizer.ggml.pre \"%.*s\" is not supported", (int)len, pre);
}

static mx_status gguf_vocab(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    for (int32_t id = 0; id < t->vocab; id++) {
        size_t len;
        int64_t type = 1;
        const char *text = mx_gguf_array_string(c, "tokenizer.ggml.tokens", id, &len);
        if (!text) return mx_fail(err, MX_ERR_FORMAT, "GGUF: tokenizer.ggml.tokens[%d] is not a string", id);
        mx_gguf_array_int(c, "tokenizer.ggml.token_type", id, &type);
        bool added = type == 3 || type == 4;                   /* control, user-defined */
        MX_TRY(tok_set(t, id, text, len, added, "GGUF tokenizer.ggml.tokens", err));
        if (added) MX_TRY(tok_add_added(t, id, text, len, type == 3, err));
    }
    tok_sort_added(t);
    return tok_index(t, err);
}

static mx_status gguf_merges(mx_tokenizer *t, const mx_checkpoint *c, mx_error *err)
{
    int64_t n = mx_gguf_array_count(c, "tokenizer.ggml.merges");
    if (n < 0) return mx_fail(err, MX_ERR_FORMAT, "GGUF: tokenizer.ggml.merges is missing");
    MX_TRY(tok_merges_room(t, n, err));
    for (int64_t i = 0; i < n; i++) {
        size_t len;
        const char *m = mx_gguf_array_string(c, "tokenizer.ggml.merges", i, &len);
        const char *space = m ? memchr(m, ' ', len) : NULL;
        if (!space) return mx_fail(err, MX_ERR_FORMAT, "GGUF: tokenizer.ggml.merges[%lld] is not a pair of tokens", (long long)i);
        size_t left = (size_t)(space - m);
        MX_TRY(tok_add_merge(t, (int32_t)i, m, left, space + 1, len - left - 1, "GGUF", err));
    }
    return MX_OK;
}

static mx_status from_gguf(mx_tokenizer **out, const mx_checkpoint *c, mx_error *err)
{
    size_t len, n_pre;
    const char *model = mx_gguf_string(c, "tokenizer.ggml.model", &len), *pre = mx_gguf_string(c, "tokenizer.ggml.pre", &n_pre);
    int64_t count = mx_gguf_array_count(c, "tokenizer.ggml.tokens"), id;
    if (!model || len != 4 || memcmp(model, "gpt2", 4))
        return mx_fail(err, MX_ERR_ARG, "GGUF: tokenizer.ggml.model \"%.*s\" is not supported; Merx has gpt2 (byte-level BPE)",
                       model ? (int)len : 4, model ? model : "none");
    if (count < 1 || count > 1 << 24) return mx_fail(err, MX_ERR_FORMAT, "GGUF: tokenizer.ggml.tokens has %lld entries", (long long)count);
    MX_TRY(tok_new(out, (int32_t)count, err));
    mx_tokenizer *t = *out;
    MX_TRY(gguf_vocab(t, c, err));
    MX_TRY(gguf_merges(t, c, err));
    MX_TRY(gguf_patterns(t, pre ? pre : "default", pre ? n_pre : 7, err));
    if (mx_gguf_int(c, "tokenizer.ggml.bos_token_id", &id) && id >= 0 && id < count) t->bos = (int32_t)id;
    if (mx_gguf_int(c, "tokenizer.ggml.eos_token_id", &id) && id >= 0 && id < count) t->eos = (int32_t)id;
    if (mx_gguf_int(c, "tokenizer.ggml.add_bos_token", &id)) t->add_bos = id != 0;
    if (mx_gguf_int(c, "tokenizer.ggml.add_eos_token", &id)) t->add_eos = id != 0;
    const char *chat = mx_gguf_string(c, "tokenizer.chat_template", &len);
    if (chat) t->chat_template = strndup(chat, len);
    return MX_OK;
}

mx_status mx_tokenizer_open_gguf(mx_tokenizer **out, const mx_checkpoint *gguf, mx_error *err)
{
    *out = NULL;
    mx_status st = from_gguf(out, gguf, err);
    if (st) {
        mx_tokenizer_close(*out);
        *out = NULL;
    }
    return st;
}
