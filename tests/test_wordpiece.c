/* test_wordpiece.c - BERT's tokenizer against transformers
 * (tests/golden/make_wordpiece_golden.py), and what is refused. */
#include "models/tokenizer_internal.h"
#include "tests/test.h"

#include <jansson.h>

static bool same(const mx_ids *got, const json_t *want)
{
    if ((size_t)got->count != json_array_size(want)) return false;
    for (int32_t i = 0; i < got->count; i++)
        if (got->id[i] != json_integer_value(json_array_get(want, (size_t)i))) return false;
    return true;
}

/* A word cut out of its text has the ids that it has there. */
static void check_words(const mx_tokenizer *t, const char *name, size_t row, const char *text, size_t len)
{
    mx_error err = {0};
    mx_ids all = {0}, own = {0};
    mx_word_at *word = NULL;
    int32_t n = 0, at = 0;
    size_t end = 0;
    CHECK_OK(mx_tokenizer_encode(t, text, len, false, false, &all, &err), err);
    CHECK_OK(mx_tokenizer_words(t, text, len, &word, &n, &err), err);
    CHECK_MSG(n > 0 || !all.count || !mx_utf8_valid(text, len, NULL), "%s: case %zu: no words", name, row);
    for (int32_t i = 0; i < n; i++) {
        own.count = 0;
        CHECK_OK(mx_tokenizer_encode(t, text + word[i].begin, word[i].end - word[i].begin, false, false, &own, &err), err);
        bool same_ids = own.count == word[i].ids && at + own.count <= all.count && !memcmp(own.id, all.id + at, (size_t)own.count * sizeof *own.id);
        CHECK_MSG(same_ids && word[i].begin >= end && word[i].end > word[i].begin && word[i].end <= len, "%s: case %zu, word %d at %zu: \"%.*s\"", name, row, i, word[i].begin,
                  (int)(word[i].end - word[i].begin), text + word[i].begin);
        at += word[i].ids;
        end = word[i].end;
    }
    CHECK_MSG(!n || at == all.count, "%s: case %zu: %d of %d ids", name, row, at, all.count);
    free(word);
    mx_ids_free(&all), mx_ids_free(&own);
}

static void compare(const char *name)
{
    char path[512];
    json_error_t why;
    mx_error err = {0};
    mx_tokenizer *t = NULL;
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/wordpiece/%s/cases.json", name);
    json_t *cases = json_load_file(path, JSON_ALLOW_NUL, &why);
    *strrchr(path, '/') = 0;
    CHECK_OK(mx_tokenizer_open_folder(&t, path, &err), err);
    CHECK(json_array_size(cases) > 20);
    for (size_t i = 0; t && i < json_array_size(cases); i++) {
        const json_t *row = json_array_get(cases, i), *text = json_object_get(row, "text");
        mx_ids ids = {0};
        CHECK_OK(mx_tokenizer_encode(t, json_string_value(text), json_string_length(text), true, true, &ids, &err), err);
        CHECK_MSG(same(&ids, json_object_get(row, "ids")), "%s: case %zu with special tokens", name, i);
        ids.count = 0;
        CHECK_OK(mx_tokenizer_encode(t, json_string_value(text), json_string_length(text), false, true, &ids, &err), err);
        CHECK_MSG(same(&ids, json_object_get(row, "words")), "%s: case %zu", name, i);
        mx_ids_free(&ids);
        check_words(t, name, i, json_string_value(text), json_string_length(text));
    }
    mx_tokenizer_close(t);
    json_decref(cases);
}

static void ids_equal_transformers(void)
{
    static const char *const names[] = {"uncased", "cased", "words", "uncased-json", "cased-json", "words-json"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) compare(names[i]);
}

static void special_tokens_in_a_text_are_plain_unless_asked_for(void)
{
    mx_error err = {0};
    mx_tokenizer *t = NULL;
    mx_ids ids = {0};
    CHECK_OK(mx_tokenizer_open_folder(&t, MX_SOURCE_DIR "/tests/golden/wordpiece/uncased", &err), err);
    CHECK_OK(mx_tokenizer_encode(t, "[SEP]", 5, false, false, &ids, &err), err);
    for (int32_t i = 0; i < ids.count; i++) CHECK(ids.id[i] != mx_tokenizer_find(t, "[SEP]"));
    mx_ids_free(&ids);
    mx_tokenizer_close(t);
}

static void decoding_joins_pieces(void)
{
    mx_error err = {0};
    mx_tokenizer *t = NULL;
    mx_ids ids = {0};
    char *text = NULL;
    size_t len = 0;
    CHECK_OK(mx_tokenizer_open_folder(&t, MX_SOURCE_DIR "/tests/golden/wordpiece/uncased", &err), err);
    CHECK_OK(mx_tokenizer_encode(t, "The running SHOES", 17, true, false, &ids, &err), err);
    CHECK_OK(mx_tokenizer_decode(t, ids.id, ids.count, true, &text, &len, &err), err);
    CHECK_MSG(text && !strcmp(text, "the running shoes"), "%s", text);
    free(text);
    mx_ids_free(&ids);
    mx_tokenizer_close(t);
}

static void refused(const char *pieces, const char *json, const char *config, const char *part)
{
    mx_error err = {0};
    mx_tokenizer *t = NULL;
    mx_tokenizer_files f = {.name = "model", .pieces = pieces, .json = json, .config = config, .n_pieces = pieces ? strlen(pieces) : 0,
                            .n_json = json ? strlen(json) : 0, .n_config = config ? strlen(config) : 0};
    CHECK(mx_tokenizer_parse(&t, &f, &err) != MX_OK);
    CHECK_MSG(strstr(err.text, part), "%s", err.text);
    mx_tokenizer_close(t);
}

static void bad_files_are_refused_by_name(void)
{
    refused("a\nb\n", NULL, NULL, "vocab.txt");
    refused("[UNK]\n[CLS]\n[SEP]\na\na\n", NULL, NULL, "vocab.txt");
    refused("[UNK]\n[CLS]\n[SEP]\n", NULL, "{\"do_lower_case\": 3}", "do_lower_case");
    refused(NULL, "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}}}", NULL, "unk_token");
    refused(NULL, "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}, \"unk_token\": \"b\"}}", NULL, "unk_token");
    refused(NULL, "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}, \"unk_token\": \"a\", \"max_input_chars_per_word\": 5000}}", NULL,
            "max_input_chars_per_word");
    refused(NULL, "{\"model\": {\"type\": \"WordPiece\", \"vocab\": {\"a\": 0}, \"unk_token\": \"a\", \"continuing_subword_prefix\": \"0123456789abcdef\"}}",
            NULL, "continuing_subword_prefix");
}

MX_TESTS(TEST(ids_equal_transformers),
         TEST(special_tokens_in_a_text_are_plain_unless_asked_for),
         TEST(decoding_joins_pieces),
         TEST(bad_files_are_refused_by_name))
