/* tokenizer_json.c - a folder's files: tokenizer.json, or vocab.json and merges.txt, or vocab.txt; tokenizer_config.json. */
#include "models/tokenizer_internal.h"

#include <jansson.h>
#include <stdlib.h>

typedef struct reader {
    mx_tokenizer *t;
    const char   *folder, *file;   /* file: that is being read */
    mx_error     *err;
    char          what[600];       /* "folder/file: field", for errors */
    int32_t       n_vocab;         /* the largest id of the vocabulary's own tokens, + 1 */
    mx_status     flags;           /* sticky: a flag that is not a boolean */
} reader;

static const char *what(reader *r, const char *file, const char *field)
{
    snprintf(r->what, sizeof r->what, "%.400s/%.100s%s%.80s", r->folder, file, *field ? ": " : "", field);
    return r->what;
}

static const char *in_json(reader *r, const char *field)
{
    return what(r, r->file, field);
}

static mx_status wrong(reader *r, const char *field, const char *why)
{
    return mx_fail(r->err, MX_ERR_FORMAT, "%s: %s", in_json(r, field), why);
}

static mx_status unsupported(reader *r, const char *field, const char *name)
{
    return mx_fail(r->err, MX_ERR_ARG, "%s: \"%.60s\" is not one that Merx has", in_json(r, field), name);
}

/* The root must be an object. */
static mx_status parse(reader *r, const char *file, const char *text, size_t n, json_t **out)
{
    json_error_t e;
    *out = json_loadb(text, n, JSON_ALLOW_NUL | JSON_REJECT_DUPLICATES, &e);
    if (!*out)
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: offset %d: %s", what(r, file, ""), e.position, e.text);
    if (!json_is_object(*out)) return mx_fail(r->err, MX_ERR_FORMAT, "%s: not an object", what(r, file, ""));
    return MX_OK;
}

static const char *type_of(const json_t *j)
{
    const char *s = json_string_value(json_object_get(j, "type"));
    return s ? s : "";
}

/* A boolean, or `otherwise` where there is none; what else stands there is kept in r->flags. */
static bool flag(reader *r, const json_t *j, const char *key, bool otherwise)
{
    const json_t *v = json_object_get(j, key);
    if (v && !json_is_null(v) && !json_is_boolean(v) && !r->flags) r->flags = wrong(r, key, "neither true nor false");
    return json_is_boolean(v) ? json_is_true(v) : otherwise;
}

/* ---- vocabulary and merges ---- */

static mx_status read_vocab(reader *r, const char *w, json_t *vocab, size_t more)
{
    const char *key;
    json_t *value;
    if (!json_is_object(vocab)) return mx_fail(r->err, MX_ERR_FORMAT, "%s: not an object", w);
    size_t n = json_object_size(vocab);
    if (mx_vocab_reserve(&r->t->vocab, n + more, (n + more) * 16))
        return mx_fail(r->err, MX_ERR_NO_MEMORY, "%s: no memory for %zu tokens", w, n);
    for (void *i = json_object_iter(vocab); i; i = json_object_iter_next(vocab, i)) {
        key = json_object_iter_key(i);
        value = json_object_iter_value(i);
        if (!json_is_integer(value))
            return mx_fail(r->err, MX_ERR_FORMAT, "%s: the id of \"%.60s\" is not an integer", w, key);
        MX_TRY(mx_vocab_add(&r->t->vocab, json_integer_value(value), key, json_object_iter_key_len(i), w, r->err));
    }
    r->n_vocab = r->t->vocab.n_tokens;
    return MX_OK;
}

/* Ids that nobody has, between the vocabulary and the added tokens, are padding; within the vocabulary they say
 * that the file has lost something. */
static mx_status check_holes(reader *r, const char *w)
{
    for (int32_t id = 0; id < r->n_vocab; id++)
        if (!r->t->vocab.token[id].flags)
            return mx_fail(r->err, MX_ERR_FORMAT, "%s: a hole: no token has id %d, but others go up to %d", w, id,
                           r->n_vocab - 1);
    return MX_OK;
}

static mx_status add_merge_line(reader *r, const char *w, const char *s, size_t n, uint32_t rank)
{
    const char *space = n > 1 ? memchr(s + 1, ' ', n - 1) : NULL;
    if (!space || memchr(space + 1, ' ', (size_t)(s + n - space - 1)))
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: merge %u is not two tokens with a space between: \"%.*s\"", w, rank,
                       (int)(n > 60 ? 60 : n), s);
    return mx_merges_add(r->t, s, (size_t)(space - s), space + 1, (size_t)(s + n - space - 1), rank, w, r->err);
}

static mx_status read_merges(reader *r, const char *w, const json_t *merges)
{
    size_t n = json_array_size(merges);
    if (!json_is_array(merges)) return mx_fail(r->err, MX_ERR_FORMAT, "%s: not an array", w);
    if (mx_merges_reserve(&r->t->merges, n)) return mx_fail(r->err, MX_ERR_NO_MEMORY, "%s: no memory for %zu merges", w, n);
    for (size_t i = 0; i < n; i++) {
        const json_t *m = json_array_get(merges, i), *a = json_array_get(m, 0), *b = json_array_get(m, 1);
        if (json_is_string(m)) {
            MX_TRY(add_merge_line(r, w, json_string_value(m), json_string_length(m), (uint32_t)i));
        } else if (json_array_size(m) == 2 && json_is_string(a) && json_is_string(b)) {
            MX_TRY(mx_merges_add(r->t, json_string_value(a), json_string_length(a), json_string_value(b),
                                 json_string_length(b), (uint32_t)i, w, r->err));
        } else {
            return mx_fail(r->err, MX_ERR_FORMAT, "%s: merge %zu is neither a string nor two strings", w, i);
        }
    }
    return MX_OK;
}

static mx_status read_unknown(reader *r, const json_t *model)
{
    const json_t *unknown = json_object_get(model, "unk_token");
    if (!json_is_string(unknown)) return MX_OK;
    r->t->unknown = mx_vocab_find(&r->t->vocab, json_string_value(unknown), json_string_length(unknown));
    return r->t->unknown < 0 ? wrong(r, "model.unk_token", "not in the vocabulary") : MX_OK;
}

static mx_status read_wordpiece(reader *r, const json_t *model, size_t n_added)
{
    const json_t *most = json_object_get(model, "max_input_chars_per_word"), *prefix = json_object_get(model, "continuing_subword_prefix");
    mx_wordpiece *p = &r->t->wordpiece;
    char w[600];
    *p = (mx_wordpiece){.on = true, .most_chars = 100, .prefix = "##"};
    if (most && (!json_is_integer(most) || json_integer_value(most) < 1 || json_integer_value(most) > MX_WORDPIECE_MOST_CHARS))
        return wrong(r, "model.max_input_chars_per_word", "not from 1 to 1000");
    if (most) p->most_chars = (int32_t)json_integer_value(most);
    if (prefix && (!json_is_string(prefix) || json_string_length(prefix) >= sizeof p->prefix))
        return wrong(r, "model.continuing_subword_prefix", "not a string of up to 15 bytes");
    if (prefix) snprintf(p->prefix, sizeof p->prefix, "%s", json_string_value(prefix));
    snprintf(w, sizeof w, "%s", in_json(r, "model.vocab"));
    MX_TRY(read_vocab(r, w, json_object_get(model, "vocab"), n_added));
    MX_TRY(read_unknown(r, model));
    r->t->strip_first_space = true;
    return r->t->unknown < 0 ? wrong(r, "model.unk_token", "missing") : MX_OK;
}

static mx_status read_model(reader *r, const json_t *model, size_t n_added)
{
    const char *type = type_of(model);
    char w[600];
    if (!json_is_object(model)) return wrong(r, "model", "missing or not an object");
    if (!strcmp(type, "WordPiece")) return read_wordpiece(r, model, n_added);
    if (*type ? strcmp(type, "BPE") != 0 : !json_object_get(model, "merges")) return unsupported(r, "model.type", type);
    static const char *const affix[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; i++) {
        const char *s = json_string_value(json_object_get(model, affix[i]));
        if (s && *s) return unsupported(r, "model", affix[i]);
    }
    if (json_number_value(json_object_get(model, "dropout")) > 0) return unsupported(r, "model", "dropout");
    r->t->byte_fallback = flag(r, model, "byte_fallback", false);
    r->t->fuse_unknown = flag(r, model, "fuse_unk", false);
    r->t->ignore_merges = flag(r, model, "ignore_merges", false);
    snprintf(w, sizeof w, "%s", in_json(r, "model.vocab"));
    MX_TRY(read_vocab(r, w, json_object_get(model, "vocab"), n_added));
    snprintf(w, sizeof w, "%s", in_json(r, "model.merges"));
    MX_TRY(read_merges(r, w, json_object_get(model, "merges")));
    return read_unknown(r, model);
}

static mx_status read_added(reader *r, const char *w, const json_t *j, int64_t id)
{
    const json_t *content = json_object_get(j, "content");
    mx_added a = {
        .id = (int32_t)id,
        .special = flag(r, j, "special", false),
        .lstrip = flag(r, j, "lstrip", false),
        .rstrip = flag(r, j, "rstrip", false),
        .single_word = flag(r, j, "single_word", false),
    };
    a.normalized = flag(r, j, "normalized", !a.special);
    if (!json_is_string(content)) return mx_fail(r->err, MX_ERR_FORMAT, "%s: a token without content", w);
    if (id < 0 || id >= MX_TOKENIZER_MOST_IDS)
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: id %lld is outside 0..%d", w, (long long)id, MX_TOKENIZER_MOST_IDS - 1);
    return mx_tokenizer_add_added(r->t, &a, json_string_value(content), json_string_length(content), w, r->err);
}

static mx_status read_added_list(reader *r, const json_t *list)
{
    char w[600], field[40];
    if (list && !json_is_array(list) && !json_is_null(list)) return wrong(r, "added_tokens", "not an array");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *j = json_array_get(list, i), *id = json_object_get(j, "id");
        snprintf(field, sizeof field, "added_tokens[%zu]", i);
        if (!json_is_integer(id)) return wrong(r, field, "the id is missing or not an integer");
        snprintf(w, sizeof w, "%s", in_json(r, field));
        MX_TRY(read_added(r, w, j, json_integer_value(id)));
    }
    return MX_OK;
}

/* ---- normalizer ---- */

static mx_status copy(reader *r, const json_t *j, const char *field, char **s, size_t *n)
{
    if (!json_is_string(j)) return wrong(r, field, "not a string");
    *n = json_string_length(j);
    *s = malloc(*n + 1);
    if (!*s) return mx_fail(r->err, MX_ERR_NO_MEMORY, "%s: no memory", in_json(r, field));
    memcpy(*s, json_string_value(j), *n + 1);
    return MX_OK;
}

static mx_status read_normalizer(reader *r, const json_t *j, int depth)
{
    static const char *const forms[] = {"NFC", "NFD", "NFKC", "NFKD"};
    const char *type = type_of(j), *field = "normalizer";
    mx_normalizer n = {0};
    mx_status st = MX_OK;
    if (!j || json_is_null(j)) return MX_OK;
    if (depth > MX_TOKENIZER_MOST_NEST) return wrong(r, field, "Sequence within Sequence, too deep");
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(j, "normalizers");
        if (!json_is_array(list)) return wrong(r, field, "a Sequence without normalizers");
        for (size_t i = 0; i < json_array_size(list); i++) MX_TRY(read_normalizer(r, json_array_get(list, i), depth + 1));
        return MX_OK;
    }
    if (r->t->n_norms == MX_TOKENIZER_MOST_NORMS) return wrong(r, field, "too many stages");
    for (int i = 0; i < 4; i++) {
        if (strcmp(type, forms[i])) continue;
        n.kind = (mx_norm_kind)(MX_NORM_NFC + i);
        r->t->norm[r->t->n_norms++] = n;
        return MX_OK;
    }
    if (!strcmp(type, "Prepend")) {
        n.kind = MX_NORM_PREPEND;
        st = copy(r, json_object_get(j, "prepend"), "normalizer.prepend", &n.to, &n.n_to);
    } else if (!strcmp(type, "Replace")) {
        const json_t *from = json_object_get(json_object_get(j, "pattern"), "String");
        if (!from) return unsupported(r, "normalizer.pattern", "Regex");
        n.kind = MX_NORM_REPLACE;
        st = copy(r, from, "normalizer.pattern", &n.from, &n.n_from);
        if (!st) st = copy(r, json_object_get(j, "content"), "normalizer.content", &n.to, &n.n_to);
    } else if (!strcmp(type, "BertNormalizer")) {
        n.kind = MX_NORM_BERT;
        n.clean = flag(r, j, "clean_text", true);
        n.cjk = flag(r, j, "handle_chinese_chars", true);
        n.lowercase = flag(r, j, "lowercase", true);
        n.accents = flag(r, j, "strip_accents", n.lowercase);
    } else if (!strcmp(type, "Lowercase")) {
        n.kind = MX_NORM_BERT;
        n.lowercase = true;
    } else if (!strcmp(type, "Strip")) {
        n.kind = MX_NORM_STRIP;
        n.left = flag(r, j, "strip_left", true);
        n.right = flag(r, j, "strip_right", true);
    } else {
        return unsupported(r, "normalizer.type", type);
    }
    if (st) mx_normalizer_free(&n);
    else r->t->norm[r->t->n_norms++] = n;
    return st;
}

/* ---- pre_tokenizer ---- */

static mx_status add_pattern(reader *r, const char *s, size_t n, bool literal, mx_split_how how, bool invert)
{
    char w[600];
    snprintf(w, sizeof w, "%s", in_json(r, "pre_tokenizer.pattern"));
    return mx_split_add_pattern(r->t, s, n, literal, how, invert, w, r->err);
}

static mx_status read_how(reader *r, const json_t *j, mx_split_how *out)
{
    static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"};
    const char *s = json_string_value(json_object_get(j, "behavior"));
    for (int i = 0; s && i < 5; i++) {
        if (strcmp(s, names[i])) continue;
        *out = (mx_split_how)i;
        return MX_OK;
    }
    return unsupported(r, "pre_tokenizer.behavior", s ? s : "");
}

static mx_status read_split(reader *r, const json_t *j)
{
    const json_t *p = json_object_get(j, "pattern"), *literal = json_object_get(p, "String");
    const json_t *s = literal ? literal : json_object_get(p, "Regex");
    mx_split_how how;
    if (!json_is_string(s)) return wrong(r, "pre_tokenizer.pattern", "neither a String nor a Regex");
    MX_TRY(read_how(r, j, &how));
    return add_pattern(r, json_string_value(s), json_string_length(s), literal, how, flag(r, j, "invert", false));
}

static mx_status read_metaspace(reader *r, const json_t *j)
{
    const char *space = json_string_value(json_object_get(j, "replacement"));
    const char *scheme = json_string_value(json_object_get(j, "prepend_scheme"));
    mx_split s = {.kind = MX_SPLIT_METASPACE, .prepend = MX_PREPEND_ALWAYS};
    if (!space || !*space || strlen(space) >= sizeof s.space) return wrong(r, "pre_tokenizer.replacement", "not a character");
    memcpy(s.space, space, strlen(space) + 1);
    if (scheme && !strcmp(scheme, "first")) s.prepend = MX_PREPEND_FIRST;
    if ((scheme && !strcmp(scheme, "never")) || (!scheme && !flag(r, j, "add_prefix_space", true)))
        s.prepend = MX_PREPEND_NEVER;
    MX_TRY(mx_split_add(r->t, &s, in_json(r, "pre_tokenizer"), r->err));
    if (!flag(r, j, "split", true)) return MX_OK;
    return add_pattern(r, s.space, strlen(s.space), true, MX_MERGED_NEXT, false);
}

static mx_status read_byte_level(reader *r, const json_t *j)
{
    r->t->byte_level = true;
    if (flag(r, j, "add_prefix_space", true)) {
        mx_split s = {.kind = MX_SPLIT_PREFIX_SPACE};
        MX_TRY(mx_split_add(r->t, &s, in_json(r, "pre_tokenizer"), r->err));
    }
    if (!flag(r, j, "use_regex", true)) return MX_OK;
    return mx_split_preset(r->t, "gpt-2", 5, in_json(r, "pre_tokenizer"), r->err);
}

static mx_status read_pre_tokenizer(reader *r, const json_t *j, int depth)
{
    static const struct { const char *type, *pattern; mx_split_how how; bool invert; } simple[] = {
        {"Whitespace", "\\w+|[^\\w\\s]+", MX_REMOVED, true},
        {"WhitespaceSplit", "\\s+", MX_REMOVED, false},
    };
    const char *type = type_of(j), *field = "pre_tokenizer";
    if (!j || json_is_null(j)) return MX_OK;
    if (depth > MX_TOKENIZER_MOST_NEST) return wrong(r, field, "Sequence within Sequence, too deep");
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(j, "pretokenizers");
        if (!json_is_array(list)) return wrong(r, field, "a Sequence without pretokenizers");
        for (size_t i = 0; i < json_array_size(list); i++)
            MX_TRY(read_pre_tokenizer(r, json_array_get(list, i), depth + 1));
        return MX_OK;
    }
    /* ByteLevel rewrites the text in its byte alphabet: a stage behind it would cut that, not the text. */
    if (r->t->byte_level) return unsupported(r, field, "a stage behind ByteLevel");
    if (!strcmp(type, "ByteLevel")) return read_byte_level(r, j);
    if (!strcmp(type, "BertPreTokenizer")) return mx_split_add(r->t, &(mx_split){.kind = MX_SPLIT_BERT}, in_json(r, field), r->err);
    if (!strcmp(type, "Split")) return read_split(r, j);
    if (!strcmp(type, "Metaspace")) return read_metaspace(r, j);
    if (!strcmp(type, "Digits")) {
        const char *p = flag(r, j, "individual_digits", false) ? "\\p{N}" : "\\p{N}+";
        return add_pattern(r, p, strlen(p), false, MX_ISOLATED, false);
    }
    if (!strcmp(type, "Punctuation")) {
        static const char p[] = "[\\p{P}$+<=>^`|~]";
        mx_split_how how = MX_ISOLATED;
        if (json_object_get(j, "behavior")) MX_TRY(read_how(r, j, &how));
        return add_pattern(r, p, sizeof p - 1, false, how, false);
    }
    for (size_t i = 0; i < sizeof simple / sizeof *simple; i++)
        if (!strcmp(type, simple[i].type))
            return add_pattern(r, simple[i].pattern, strlen(simple[i].pattern), false, simple[i].how, simple[i].invert);
    return unsupported(r, "pre_tokenizer.type", type);
}

/* ---- post_processor, decoder ---- */

static mx_status add_extra(reader *r, bool behind, int64_t id)
{
    mx_tokenizer *t = r->t;
    int *n = behind ? &t->n_after : &t->n_before;
    if (id < 0 || id >= t->vocab.n_tokens || !t->vocab.token[id].flags)
        return wrong(r, "post_processor", "a special token's id is not in the vocabulary");
    if (*n == MX_TOKENIZER_MOST_EXTRA) return wrong(r, "post_processor", "too many special tokens");
    (behind ? t->after : t->before)[(*n)++] = (int32_t)id;
    return MX_OK;
}

static mx_status read_template(reader *r, const json_t *j)
{
    const json_t *single = json_object_get(j, "single"), *tokens = json_object_get(j, "special_tokens");
    bool behind = false;
    if (!json_is_array(single)) return wrong(r, "post_processor.single", "not an array");
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *special = json_object_get(json_array_get(single, i), "SpecialToken");
        if (!special) {
            behind = true;
            continue;
        }
        const char *name = json_string_value(json_object_get(special, "id"));
        const json_t *ids = name ? json_object_get(json_object_get(tokens, name), "ids") : NULL;
        if (!json_is_array(ids)) return wrong(r, "post_processor.special_tokens", "a token of the template is missing");
        for (size_t k = 0; k < json_array_size(ids); k++) {
            if (!json_is_integer(json_array_get(ids, k)))
                return wrong(r, "post_processor.special_tokens", "an id is not an integer");
            MX_TRY(add_extra(r, behind, json_integer_value(json_array_get(ids, k))));
        }
    }
    return MX_OK;
}

static mx_status read_post_processor(reader *r, const json_t *j, int depth)
{
    const char *type = type_of(j), *field = "post_processor";
    if (!j || json_is_null(j) || !strcmp(type, "ByteLevel")) return MX_OK;
    if (depth > MX_TOKENIZER_MOST_NEST) return wrong(r, field, "Sequence within Sequence, too deep");
    if (!strcmp(type, "TemplateProcessing")) return read_template(r, j);
    if (!strcmp(type, "Sequence")) {
        const json_t *list = json_object_get(j, "processors");
        if (!json_is_array(list)) return wrong(r, field, "a Sequence without processors");
        for (size_t i = 0; i < json_array_size(list); i++)
            MX_TRY(read_post_processor(r, json_array_get(list, i), depth + 1));
        return MX_OK;
    }
    if (!strcmp(type, "RobertaProcessing") || !strcmp(type, "BertProcessing")) {
        const json_t *cls = json_array_get(json_object_get(j, "cls"), 1), *sep = json_array_get(json_object_get(j, "sep"), 1);
        if (!json_is_integer(cls) || !json_is_integer(sep)) return wrong(r, field, "cls or sep has no id");
        MX_TRY(add_extra(r, false, json_integer_value(cls)));
        return add_extra(r, true, json_integer_value(sep));
    }
    return unsupported(r, "post_processor.type", type);
}

/* Bytes come from the vocabulary; what is left to know is whether the space put in front is taken off again. */
static mx_status read_decoder(reader *r, const json_t *j, int depth)
{
    const char *type = type_of(j);
    if (!j || json_is_null(j)) return MX_OK;
    if (depth > MX_TOKENIZER_MOST_NEST) return wrong(r, "decoder", "Sequence within Sequence, too deep");
    const json_t *list = json_object_get(j, "decoders");
    for (size_t i = 0; !strcmp(type, "Sequence") && i < json_array_size(list); i++)
        MX_TRY(read_decoder(r, json_array_get(list, i), depth + 1));
    if (!strcmp(type, "Strip") && json_integer_value(json_object_get(j, "start")) > 0) r->t->strip_first_space = true;
    if (!strcmp(type, "Metaspace")) {
        const char *scheme = json_string_value(json_object_get(j, "prepend_scheme"));
        r->t->strip_first_space = scheme ? strcmp(scheme, "never") != 0 : flag(r, j, "add_prefix_space", true);
    }
    return MX_OK;
}

static mx_status read_tokenizer_json(reader *r, const mx_tokenizer_files *f)
{
    json_t *root = NULL;
    mx_status st;
    MX_TRY_GOTO(st, parse(r, "tokenizer.json", f->json, f->n_json, &root), done);
    const json_t *added = json_object_get(root, "added_tokens");
    MX_TRY_GOTO(st, read_model(r, json_object_get(root, "model"), json_array_size(added)), done);
    MX_TRY_GOTO(st, read_added_list(r, added), done);
    MX_TRY_GOTO(st, check_holes(r, in_json(r, "model.vocab")), done);
    MX_TRY_GOTO(st, read_normalizer(r, json_object_get(root, "normalizer"), 0), done);
    MX_TRY_GOTO(st, read_pre_tokenizer(r, json_object_get(root, "pre_tokenizer"), 0), done);
    MX_TRY_GOTO(st, read_post_processor(r, json_object_get(root, "post_processor"), 0), done);
    MX_TRY_GOTO(st, read_decoder(r, json_object_get(root, "decoder"), 0), done);
    if (r->t->n_before) r->t->bos = r->t->before[0];
done:
    json_decref(root);
    return st;
}

/* ---- vocab.json and merges.txt ---- */

static mx_status read_merges_text(reader *r, const char *s, size_t n)
{
    char w[600];
    const char *end = s + n;
    size_t lines = 0;
    uint32_t rank = 0;
    snprintf(w, sizeof w, "%s", what(r, "merges.txt", ""));
    for (const char *p = s; (p = memchr(p, '\n', (size_t)(end - p))); p++) lines++;
    if (mx_merges_reserve(&r->t->merges, lines + 1)) return mx_fail(r->err, MX_ERR_NO_MEMORY, "%s: no memory", w);
    for (const char *p = s, *next; p < end; p = next) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        size_t len = (size_t)((eol ? eol : end) - p);
        next = eol ? eol + 1 : end;
        if (len && p[len - 1] == '\r') len--;
        if (!len || (p == s && len >= 8 && !memcmp(p, "#version", 8))) continue;
        mx_status st = add_merge_line(r, w, p, len, rank++);
        if (st) {
            mx_error inner = r->err ? *r->err : (mx_error){0};
            return mx_fail(r->err, st, "%.400s (offset %zu)", inner.text, (size_t)(p - s));
        }
    }
    return MX_OK;
}

static mx_status read_vocab_and_merges(reader *r, const mx_tokenizer_files *f, const json_t *config)
{
    static const char end[] = "<|endoftext|>";
    json_t *vocab = NULL;
    char w[600];
    mx_status st;
    json_t *added = json_object_get(config, "added_tokens_decoder");
    const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
    const char *preset = class && !strncmp(class, "Qwen2", 5) ? "qwen2" : "gpt-2";
    MX_TRY_GOTO(st, parse(r, "vocab.json", f->vocab, f->n_vocab, &vocab), done);
    snprintf(w, sizeof w, "%s", what(r, "vocab.json", ""));
    MX_TRY_GOTO(st, read_vocab(r, w, vocab, json_object_size(added)), done);
    MX_TRY_GOTO(st, read_merges_text(r, f->merges, f->n_merges), done);
    r->file = "tokenizer_config.json";
    snprintf(w, sizeof w, "%s", in_json(r, "added_tokens_decoder"));
    for (void *i = json_object_iter(added); i && !st; i = json_object_iter_next(added, i)) {
        char *rest;
        int64_t id = strtoll(json_object_iter_key(i), &rest, 10);
        st = *rest ? wrong(r, "added_tokens_decoder", "an id is not a number")
                   : read_added(r, w, json_object_iter_value(i), id);
    }
    if (!st) st = check_holes(r, what(r, "vocab.json", ""));
    mx_added a = {.id = mx_vocab_find(&r->t->vocab, end, sizeof end - 1), .special = true};
    if (!st && a.id >= 0) st = mx_tokenizer_add_added(r->t, &a, end, sizeof end - 1, w, r->err);
    if (!st) st = mx_split_preset(r->t, preset, 5, what(r, "merges.txt", ""), r->err);
    r->t->byte_level = true;
    if (!strcmp(preset, "gpt-2")) r->t->bos = a.id;
    r->t->eos = a.id;
done:
    json_decref(vocab);
    return st;
}

/* ---- BERT's vocab.txt: a token a line, its number is its id ---- */

/* A token of tokenizer_config.json by its role, else as BERT writes it. */
static mx_status add_bert_token(reader *r, const json_t *config, const char *key, const char *otherwise, int32_t *id)
{
    const json_t *j = json_object_get(config, key);
    if (json_is_object(j)) j = json_object_get(j, "content");
    const char *s = json_is_string(j) ? json_string_value(j) : otherwise;
    mx_added a = {.special = true, .id = mx_vocab_find(&r->t->vocab, s, strlen(s))};
    *id = a.id;
    if (a.id < 0) return MX_OK;
    return mx_tokenizer_add_added(r->t, &a, s, strlen(s), what(r, "vocab.txt", key), r->err);
}

static mx_status read_pieces(reader *r, const mx_tokenizer_files *f, const json_t *config)
{
    char w[600];
    const char *end = f->pieces + f->n_pieces;
    size_t lines = 1;
    int32_t cls, sep, mask, pad;
    int64_t id = 0;
    snprintf(w, sizeof w, "%s", what(r, "vocab.txt", ""));
    for (const char *p = f->pieces; (p = memchr(p, '\n', (size_t)(end - p))); p++) lines++;
    if (mx_vocab_reserve(&r->t->vocab, lines, f->n_pieces + lines)) return mx_fail(r->err, MX_ERR_NO_MEMORY, "%s: no memory for %zu tokens", w, lines);
    for (const char *p = f->pieces, *next; p < end; p = next) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        size_t n = (size_t)((eol ? eol : end) - p);
        next = eol ? eol + 1 : end;
        if (n && p[n - 1] == '\r') n--;
        MX_TRY(mx_vocab_add(&r->t->vocab, id++, p, n, w, r->err));
    }
    r->n_vocab = r->t->vocab.n_tokens;
    r->file = "tokenizer_config.json";
    r->t->wordpiece = (mx_wordpiece){.on = true, .most_chars = 100, .prefix = "##"};
    r->t->strip_first_space = true;
    mx_normalizer n = {.kind = MX_NORM_BERT, .clean = true};
    n.lowercase = flag(r, config, "do_lower_case", true);
    n.accents = flag(r, config, "strip_accents", n.lowercase);
    n.cjk = flag(r, config, "tokenize_chinese_chars", true);
    r->t->norm[r->t->n_norms++] = n;
    MX_TRY(mx_split_add(r->t, &(mx_split){.kind = MX_SPLIT_BERT}, w, r->err));
    MX_TRY(add_bert_token(r, config, "unk_token", "[UNK]", &r->t->unknown));
    MX_TRY(add_bert_token(r, config, "cls_token", "[CLS]", &cls));
    MX_TRY(add_bert_token(r, config, "sep_token", "[SEP]", &sep));
    MX_TRY(add_bert_token(r, config, "mask_token", "[MASK]", &mask));
    MX_TRY(add_bert_token(r, config, "pad_token", "[PAD]", &pad));
    if (r->t->unknown < 0 || cls < 0 || sep < 0)
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: the unknown token, [CLS] or [SEP] is missing", w);
    r->t->before[r->t->n_before++] = cls;
    r->t->after[r->t->n_after++] = sep;
    r->t->bos = cls;
    return MX_OK;
}

/* ---- tokenizer_config.json ---- */

static int32_t named_token(const reader *r, const json_t *config, const char *key, int32_t otherwise)
{
    const json_t *j = json_object_get(config, key);
    if (json_is_object(j)) j = json_object_get(j, "content");
    if (!json_is_string(j)) return otherwise;
    int32_t id = mx_vocab_find(&r->t->vocab, json_string_value(j), json_string_length(j));
    return id >= 0 ? id : otherwise;
}

static mx_status read_config(reader *r, const json_t *config, const mx_tokenizer_files *f)
{
    mx_tokenizer *t = r->t;
    bool on = true, off = false;
    const json_t *bos = json_object_get(config, "add_bos_token"), *eos = json_object_get(config, "add_eos_token");
    t->bos = named_token(r, config, "bos_token", t->bos);
    t->eos = named_token(r, config, "eos_token", t->eos);
    if (t->eos < 0) t->eos = mx_vocab_find(&t->vocab, "</s>", 4);
    if (t->eos < 0) t->eos = mx_vocab_find(&t->vocab, "<|endoftext|>", 13);
    mx_tokenizer_set_bos_eos(t, json_is_boolean(bos) ? (json_is_true(bos) ? &on : &off) : NULL,
                             json_is_boolean(eos) ? (json_is_true(eos) ? &on : &off) : NULL);
    const json_t *chat = json_object_get(config, "chat_template");
    for (size_t i = 0; json_is_array(chat) && i < json_array_size(chat); i++) {
        const json_t *one = json_array_get(chat, i);
        const char *name = json_string_value(json_object_get(one, "name"));
        if (name && !strcmp(name, "default")) chat = json_object_get(one, "template");
    }
    mx_status st = MX_OK;
    if (f->jinja) st = mx_tokenizer_set_template(t, f->jinja, f->n_jinja);
    else if (json_is_string(chat)) st = mx_tokenizer_set_template(t, json_string_value(chat), json_string_length(chat));
    return st ? mx_fail(r->err, st, "%s: no memory", what(r, "tokenizer_config.json", "chat_template")) : MX_OK;
}

mx_status mx_tokenizer_parse(mx_tokenizer **out, const mx_tokenizer_files *f, mx_error *err)
{
    reader r = {.t = mx_tokenizer_new(), .folder = f->name, .file = "tokenizer.json", .err = err};
    json_t *config = NULL;
    mx_status st = MX_OK;
    *out = NULL;
    if (!r.t) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for the tokenizer", f->name);
    if (f->config) MX_TRY_GOTO(st, parse(&r, "tokenizer_config.json", f->config, f->n_config, &config), done);
    MX_TRY_GOTO(st, f->json ? read_tokenizer_json(&r, f) : f->vocab && f->merges ? read_vocab_and_merges(&r, f, config)
                                                                             : read_pieces(&r, f, config), done);
    MX_TRY_GOTO(st, r.flags, done);
    MX_TRY_GOTO(st, read_config(&r, config, f), done);
    st = mx_tokenizer_seal(r.t, what(&r, f->json ? "tokenizer.json" : f->vocab && f->merges ? "vocab.json" : "vocab.txt", ""), err);
done:
    json_decref(config);
    if (st) mx_tokenizer_close(r.t);
    else *out = r.t;
    return st;
}
