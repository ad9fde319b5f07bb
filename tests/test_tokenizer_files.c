/* test_tokenizer_files.c - tokenizer files that lie, break off or are of a kind that Merx does not have: a status
 * and words that name file and field, never a crash. */
#include "models/tokenizer_internal.h"
#include "tests/model_files.h"
#include "tests/test.h"

/* ---- tokenizer.json ---- */

/* A whole file with room for one wrong part. */
#define JSON(added, normalizer, pre, post, decoder, model)                                                           \
    "{\"added_tokens\":[" added "],\"normalizer\":" normalizer ",\"pre_tokenizer\":" pre ",\"post_processor\":" post \
    ",\"decoder\":" decoder ",\"model\":" model "}"
#define BPE(vocab, merges, more) "{\"type\":\"BPE\"" more ",\"vocab\":{" vocab "},\"merges\":[" merges "]}"
#define VOCAB "\"a\":0,\"b\":1,\"ab\":2"
#define MODEL BPE(VOCAB, "\"a b\"", "")
#define BYTES "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define WITH_MODEL(model) JSON("", "null", BYTES, "null", "null", model)
#define WITH_ADDED(added) JSON(added, "null", BYTES, "null", "null", MODEL)
#define WITH_NORM(n)      JSON("", n, BYTES, "null", "null", MODEL)
#define WITH_PRE(pre)     JSON("", "null", pre, "null", "null", MODEL)
#define WITH_POST(post)   JSON("", "null", BYTES, post, "null", MODEL)
#define TIMES4(s)         s s s s
#define NEST16(a, x, b)   TIMES4(TIMES4(a)) x TIMES4(TIMES4(b))

typedef struct bad {
    const char *text;
    mx_status   status;
    const char *says[3];               /* all within the error's words */
} bad;

static const bad jsons[] = {
    {"", MX_ERR_FORMAT, {"tokenizer.json", "offset"}},
    {"[1]", MX_ERR_FORMAT, {"tokenizer.json", "object"}},
    {"{\"model\":{\"type\":\"BPE\",", MX_ERR_FORMAT, {"tokenizer.json", "offset 23"}},
    {"{}", MX_ERR_FORMAT, {"tokenizer.json", "model"}},
    {"{\"model\":7}", MX_ERR_FORMAT, {"model", "object"}},
    {"{\"model\":{\"type\":\"Unigram\",\"vocab\":[]}}", MX_ERR_ARG, {"model.type", "Unigram"}},
    {"{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", MX_ERR_FORMAT, {"model.unk_token"}},
    {WITH_MODEL("{\"type\":\"BPE\",\"vocab\":[],\"merges\":[]}"), MX_ERR_FORMAT, {"model.vocab", "object"}},
    {WITH_MODEL("{\"type\":\"BPE\",\"vocab\":{\"a\":0}}"), MX_ERR_FORMAT, {"model.merges", "array"}},
    {WITH_MODEL(BPE("", "", "")), MX_ERR_FORMAT, {"tokenizer.json", "empty"}},
    {WITH_MODEL(BPE("\"a\":\"0\"", "", "")), MX_ERR_FORMAT, {"model.vocab", "\"a\"", "integer"}},
    {WITH_MODEL(BPE("\"a\":0.5", "", "")), MX_ERR_FORMAT, {"model.vocab", "integer"}},
    {WITH_MODEL(BPE("\"a\":-1", "", "")), MX_ERR_FORMAT, {"model.vocab", "-1"}},
    {WITH_MODEL(BPE("\"a\":4000000000", "", "")), MX_ERR_FORMAT, {"model.vocab", "4000000000"}},
    {WITH_MODEL(BPE("\"a\":99999999999999999999", "", "")), MX_ERR_FORMAT, {"tokenizer.json", "offset"}},
    {WITH_MODEL(BPE("\"a\":0,\"b\":0", "", "")), MX_ERR_FORMAT, {"model.vocab", "id 0", "both"}},
    {WITH_MODEL(BPE("\"a\":0,\"a\":1", "", "")), MX_ERR_FORMAT, {"tokenizer.json", "duplicate"}},
    {WITH_MODEL(BPE("\"a\":0,\"b\":1,\"c\":4", "", "")), MX_ERR_FORMAT, {"model.vocab", "hole", "id 2"}},
    {WITH_MODEL(BPE(VOCAB, "\"a\"", "")), MX_ERR_FORMAT, {"model.merges", "merge 0"}},
    {WITH_MODEL(BPE(VOCAB, "\"a b\",\"a b c\"", "")), MX_ERR_FORMAT, {"model.merges", "merge 1"}},
    {WITH_MODEL(BPE(VOCAB, "\"a c\"", "")), MX_ERR_FORMAT, {"model.merges", "\"c\"", "not in the vocabulary"}},
    {WITH_MODEL(BPE(VOCAB, "\"b a\"", "")), MX_ERR_FORMAT, {"model.merges", "makes \"ba\""}},
    {WITH_MODEL(BPE(VOCAB, "[\"a\",\"\"]", "")), MX_ERR_FORMAT, {"model.merges", "empty"}},          /* a cycle: a makes a */
    {WITH_MODEL(BPE(VOCAB, "[\"\",\"\"]", "")), MX_ERR_FORMAT, {"model.merges", "empty"}},
    {WITH_MODEL(BPE(VOCAB, "[\"a\",\"b\",\"c\"]", "")), MX_ERR_FORMAT, {"model.merges", "merge 0"}},
    {WITH_MODEL(BPE(VOCAB, "{}", "")), MX_ERR_FORMAT, {"model.merges", "merge 0"}},
    {WITH_MODEL(BPE(VOCAB, "", ",\"unk_token\":\"<unk>\"")), MX_ERR_FORMAT, {"model.unk_token"}},
    {WITH_MODEL(BPE(VOCAB, "", ",\"byte_fallback\":\"yes\"")), MX_ERR_FORMAT, {"byte_fallback", "true nor false"}},
    {WITH_MODEL(BPE(VOCAB, "", ",\"ignore_merges\":1")), MX_ERR_FORMAT, {"ignore_merges", "true nor false"}},
    {WITH_MODEL(BPE(VOCAB, "", ",\"dropout\":0.1")), MX_ERR_ARG, {"dropout"}},
    {WITH_MODEL(BPE(VOCAB, "", ",\"end_of_word_suffix\":\"</w>\"")), MX_ERR_ARG, {"end_of_word_suffix"}},
    {WITH_ADDED("{\"content\":\"x\"}"), MX_ERR_FORMAT, {"added_tokens[0]", "id"}},
    {WITH_ADDED("{\"id\":3}"), MX_ERR_FORMAT, {"added_tokens[0]", "content"}},
    {WITH_ADDED("7"), MX_ERR_FORMAT, {"added_tokens[0]"}},
    {WITH_ADDED("{\"id\":3,\"content\":\"x\"},{\"id\":3,\"content\":\"y\"}"), MX_ERR_FORMAT, {"added_tokens[1]", "both"}},
    {WITH_ADDED("{\"id\":3,\"content\":\"x\"},{\"id\":4,\"content\":\"x\"}"), MX_ERR_FORMAT, {"added_tokens[1]", "two ids"}},
    {WITH_ADDED("{\"id\":4294967296,\"content\":\"x\"}"), MX_ERR_FORMAT, {"added_tokens[0]", "4294967296"}},
    {WITH_ADDED("{\"id\":3,\"content\":\"x\",\"special\":\"no\"}"), MX_ERR_FORMAT, {"special", "true nor false"}},
    {WITH_NORM("{\"type\":\"Precompiled\"}"), MX_ERR_ARG, {"normalizer.type", "Precompiled"}},
    {WITH_NORM("[]"), MX_ERR_ARG, {"normalizer"}},
    {WITH_NORM("{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}"), MX_ERR_ARG, {"normalizer.pattern", "Regex"}},
    {WITH_NORM("{\"type\":\"Prepend\"}"), MX_ERR_FORMAT, {"normalizer.prepend"}},
    {WITH_NORM("{\"type\":\"Sequence\"}"), MX_ERR_FORMAT, {"normalizer", "Sequence"}},
    {WITH_NORM(NEST16("{\"type\":\"Sequence\",\"normalizers\":[", "null", "]}")), MX_ERR_FORMAT, {"normalizer", "too deep"}},
    {WITH_NORM("{\"type\":\"Sequence\",\"normalizers\":[" TIMES4("{\"type\":\"NFC\"},{\"type\":\"NFC\"},{\"type\":\"NFC\"},") "null]}"),
     MX_ERR_FORMAT, {"normalizer", "too many"}},
    {WITH_PRE("{\"type\":\"UnicodeScripts\"}"), MX_ERR_ARG, {"pre_tokenizer.type", "UnicodeScripts"}},
    {WITH_PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":\"Isolated\"}"), MX_ERR_FORMAT, {"pre_tokenizer.pattern", "compile"}},
    {WITH_PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":\"Isolated\"}"), MX_ERR_ARG, {"pre_tokenizer.pattern", "set operations"}},
    {WITH_PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":\"Sideways\"}"), MX_ERR_ARG, {"behavior", "Sideways"}},
    {WITH_PRE("{\"type\":\"Split\",\"behavior\":\"Isolated\"}"), MX_ERR_FORMAT, {"pre_tokenizer.pattern"}},
    {WITH_PRE("{\"type\":\"Metaspace\",\"replacement\":\"ab cd\"}"), MX_ERR_FORMAT, {"pre_tokenizer.replacement"}},
    {WITH_PRE("{\"type\":\"ByteLevel\",\"add_prefix_space\":\"yes\"}"), MX_ERR_FORMAT, {"add_prefix_space"}},
    {WITH_PRE(NEST16("{\"type\":\"Sequence\",\"pretokenizers\":[", "null", "]}")), MX_ERR_FORMAT, {"pre_tokenizer", "too deep"}},
    {WITH_PRE("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTES ",{\"type\":\"Digits\"}]}"), MX_ERR_ARG, {"pre_tokenizer", "behind ByteLevel"}},
    {WITH_POST("{\"type\":\"Mystery\"}"), MX_ERR_ARG, {"post_processor.type", "Mystery"}},
    {WITH_POST("{\"type\":\"TemplateProcessing\",\"single\":{}}"), MX_ERR_FORMAT, {"post_processor.single"}},
    {WITH_POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{}}"), MX_ERR_FORMAT, {"post_processor.special_tokens"}},
    {WITH_POST("{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[99]}}}"),
     MX_ERR_FORMAT, {"post_processor", "not in the vocabulary"}},
    {WITH_POST("{\"type\":\"BertProcessing\"}"), MX_ERR_FORMAT, {"post_processor", "cls"}},
    {WITH_POST(NEST16("{\"type\":\"Sequence\",\"processors\":[", "null", "]}")), MX_ERR_FORMAT, {"post_processor", "too deep"}},
};

static mx_status parse(const mx_tokenizer_files *f, mx_error *err)
{
    mx_tokenizer *t = NULL;
    mx_status st = mx_tokenizer_parse(&t, f, err);
    CHECK((st == MX_OK) == (t != NULL));
    if (t) {                           /* what opens must work */
        mx_ids ids = {0};
        mx_error inner = {0};
        char *text = NULL;
        size_t n;
        mx_status one = mx_tokenizer_encode(t, "abba \xe4\xb8\xad\xff <s>x", 15, true, true, &ids, &inner);
        CHECK(one == MX_OK || one == MX_ERR_ARG);
        CHECK(mx_tokenizer_decode(t, ids.id, ids.count, false, &text, &n, &inner) == MX_OK);
        free(text);
        mx_ids_free(&ids);
    }
    mx_tokenizer_close(t);
    return st;
}

static mx_status parse_json(const char *text, size_t n, mx_error *err)
{
    return parse(&(mx_tokenizer_files){.name = "folder", .json = text, .n_json = n}, err);
}

static void check_bad(const bad *b, mx_status st, const mx_error *err)
{
    CHECK_MSG(st == b->status, "%.300s: %s, want %s (%s)", b->text, mx_status_name(st), mx_status_name(b->status), err->text);
    CHECK_MSG(!st || strstr(err->text, "folder/"), "%s: no file", err->text);
    for (int i = 0; i < 3 && b->says[i]; i++)
        CHECK_MSG(strstr(err->text, b->says[i]), "\"%s\" does not say \"%s\"", err->text, b->says[i]);
}

static void test_json(void)
{
    mx_error err = {0};
    const char *good = WITH_ADDED("{\"id\":9,\"content\":\"<s>\",\"special\":true}");     /* padding before it is fine */
    CHECK_OK(parse_json(good, strlen(good), &err), err);
    for (size_t i = 0; i < sizeof jsons / sizeof *jsons; i++) {
        err = (mx_error){0};
        mx_status st = parse_json(jsons[i].text, strlen(jsons[i].text), &err);
        check_bad(&jsons[i], st, &err);
        CHECK(parse_json(jsons[i].text, strlen(jsons[i].text), NULL) == st);
    }
}

/* ---- vocab.json, merges.txt, tokenizer_config.json ---- */

static void test_merges(void)
{
    static const struct { const char *vocab, *merges, *config; bad b; } cases[] = {
        {"{" VOCAB "}", "#version: 0.2\na b\n", NULL, {"whole", MX_OK, {0}}},
        {"{" VOCAB "}", "#version: 0.2\r\na b\r\n\r\n", NULL, {"CRLF", MX_OK, {0}}},
        {"{" VOCAB "}", "", NULL, {"no merges", MX_OK, {0}}},
        {"{" VOCAB "}", "#version: 0.2\na b\na\n", NULL, {"one part", MX_ERR_FORMAT, {"merges.txt", "merge 1", "offset 18"}}},
        {"{" VOCAB "}", "a c\n", NULL, {"unknown", MX_ERR_FORMAT, {"merges.txt", "\"c\"", "offset 0"}}},
        {"{" VOCAB "}", "a b b\n", NULL, {"three parts", MX_ERR_FORMAT, {"merges.txt", "merge 0"}}},
        {"{\"a\":0,\"b\":2}", "", NULL, {"hole", MX_ERR_FORMAT, {"vocab.json", "hole", "id 1"}}},
        {"{\"a\":0,", "", NULL, {"cut", MX_ERR_FORMAT, {"vocab.json", "offset 7"}}},
        {"{" VOCAB "}", "a b\n", "{", {"cut config", MX_ERR_FORMAT, {"tokenizer_config.json", "offset"}}},
        {"{" VOCAB "}", "a b\n", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"y\"}}}",
         {"name for an id", MX_ERR_FORMAT, {"tokenizer_config.json", "added_tokens_decoder"}}},
        {"{" VOCAB "}", "a b\n", "{\"added_tokens_decoder\":{\"1\":{\"content\":\"y\"}}}",
         {"taken id", MX_ERR_FORMAT, {"tokenizer_config.json", "both"}}},
        {"{" VOCAB "}", "a b\n", "{\"added_tokens_decoder\":{\"3\":{\"content\":\"y\",\"lstrip\":0}}}",
         {"flag", MX_ERR_FORMAT, {"tokenizer_config.json", "lstrip"}}},
        {"{" VOCAB "}", "a b\n", "{\"chat_template\":7,\"bos_token\":[],\"eos_token\":{\"content\":9}}", {"odd config", MX_OK, {0}}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_error err = {0};
        const char *c = cases[i].config;
        mx_tokenizer_files f = {.name = "folder", .vocab = cases[i].vocab, .merges = cases[i].merges, .config = c};
        f.n_vocab = strlen(f.vocab);
        f.n_merges = strlen(f.merges);
        f.n_config = c ? strlen(c) : 0;
        check_bad(&cases[i].b, parse(&f, &err), &err);
    }
}

/* ---- files on disk ---- */

static void test_folders(void)
{
    folder f = folder_make();
    mx_tokenizer *t = NULL;
    mx_error err = {0};
    CHECK(mx_tokenizer_open_folder(&t, f.path, &err) == MX_ERR_IO && strstr(err.text, "merges.txt") && !t);
    CHECK(mx_tokenizer_open_folder(&t, "no/such/folder", &err) == MX_ERR_IO && !t);
    folder_text(&f, "vocab.json", "{}");
    CHECK(mx_tokenizer_open_folder(&t, f.path, &err) == MX_ERR_IO && !t);
    folder_text(&f, "tokenizer.json", "{\"model\":{}}");
    CHECK(mx_tokenizer_open_folder(&t, f.path, &err) != MX_OK && strstr(err.text, f.path) && !t);
    /* a file that says to be larger than any tokenizer */
    FILE *file = fopen(folder_file(&f, "tokenizer.json"), "wb");
    CHECK(file && !ftruncate(fileno(file), (off_t)MX_TOKENIZER_MOST_BYTES + 1) && !fclose(file));
    CHECK(mx_tokenizer_open_folder(&t, f.path, &err) == MX_ERR_FORMAT && strstr(err.text, "tokenizer.json") && !t);
    FOLDER_REMOVE(&f, "vocab.json", "tokenizer.json");
}

/* Every golden tokenizer.json, cut and with bytes changed: a status, no crash. */
static void test_damage(void)
{
    static const char *const names[] = {"llama2", "llama3", "qwen2", "stages"};
    const char *s = getenv("MX_TEST_SEED");
    uint64_t seed = s ? strtoull(s, NULL, 0) : 1, refused = 0, opened = 0;
    printf("  MX_TEST_SEED=%llu\n", (unsigned long long)seed);
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        char path[600], *text = NULL;
        size_t n = 0;
        mx_error err = {0};
        snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/tokenizer/%s/tokenizer.json", names[k]);
        CHECK_OK(mx_read_file(path, 1 << 24, &text, &n, &err), err);
        for (size_t cut = 0; cut < n; cut += 997) CHECK(parse_json(text, cut, &err) == MX_ERR_FORMAT);
        for (int i = 0; text && i < 60; i++) {
            uint64_t state = seed + (uint64_t)i;
            size_t at = test_random(&state) % n;
            char old = text[at];
            text[at] = (char)test_random(&state);
            if (parse_json(text, n, &err)) refused++;
            else opened++;
            text[at] = old;
        }
        free(text);
    }
    CHECK(refused && opened);
}

/* ---- GGUF ---- */

typedef struct gguf_case {
    const char *name, *model, *pre, *merge;
    int32_t     n_tokens, n_types, n_scores, bos;
    float       score;
    mx_status   status;
    const char *says[2];
} gguf_case;

static void gguf_array(bytes *b, const char *key, uint32_t type, int32_t n)
{
    gguf_key(b, key, G_ARRAY);
    put_u32(b, type);
    put_u64(b, (uint64_t)n);
}

static bytes gguf_of(const gguf_case *c)
{
    static const char *const tokens[] = {"<unk>", "<s>", "a", "b", "ab", "a"};
    bytes b = {0};
    uint64_t keys = 1u + (c->pre != NULL) + (c->n_tokens >= 0) + (c->n_types >= 0) + (c->n_scores >= 0) + (c->merge != NULL) + (c->bos >= 0);
    gguf_header(&b, 3, 0, keys);
    gguf_string(&b, "tokenizer.ggml.model", c->model);
    if (c->pre) gguf_string(&b, "tokenizer.ggml.pre", c->pre);
    if (c->bos >= 0) gguf_u32(&b, "tokenizer.ggml.bos_token_id", (uint32_t)c->bos);
    if (c->n_tokens >= 0) gguf_array(&b, "tokenizer.ggml.tokens", G_STRING, c->n_tokens);
    for (int32_t i = 0; i < c->n_tokens; i++) put_string(&b, tokens[i]);
    if (c->n_types >= 0) gguf_array(&b, "tokenizer.ggml.token_type", G_I32, c->n_types);
    for (int32_t i = 0; i < c->n_types; i++) put_u32(&b, i ? i == 1 ? 3 : 1 : 2);
    if (c->n_scores >= 0) gguf_array(&b, "tokenizer.ggml.scores", G_F32, c->n_scores);
    for (int32_t i = 0; i < c->n_scores; i++) put_f32(&b, c->score);
    if (c->merge) {
        gguf_array(&b, "tokenizer.ggml.merges", G_STRING, 1);
        put_string(&b, c->merge);
    }
    put_padding(&b, 32);
    return b;
}

static void test_gguf(void)
{
    static const gguf_case cases[] = {
        {"good gpt2", "gpt2", "gpt-2", "a b", 5, 5, -1, 1, 0, MX_OK, {0}},
        {"no pre", "gpt2", NULL, "a b", 5, -1, -1, -1, 0, MX_OK, {0}},
        {"good llama", "llama", NULL, NULL, 5, 5, 5, 1, -1, MX_OK, {0}},
        {"unknown pre", "gpt2", "gpt-9", "a b", 5, 5, -1, 1, 0, MX_ERR_ARG, {"tokenizer.ggml.pre", "gpt-9"}},
        {"unknown model", "t5", NULL, NULL, 5, 5, 5, 1, 0, MX_ERR_ARG, {"tokenizer.ggml.model", "t5"}},
        {"no tokens", "gpt2", "gpt-2", "a b", -1, -1, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.tokens"}},
        {"zero tokens", "gpt2", "gpt-2", "a b", 0, -1, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.tokens"}},
        {"twice", "gpt2", "gpt-2", "a b", 6, 6, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.tokens", "two ids"}},
        {"few types", "gpt2", "gpt-2", "a b", 5, 4, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.token_type", "4 entries"}},
        {"no merges", "gpt2", "gpt-2", NULL, 5, 5, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.merges", "missing"}},
        {"one part", "gpt2", "gpt-2", "ab", 5, 5, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.merges", "entry 0"}},
        {"bad merge", "gpt2", "gpt-2", "b a", 5, 5, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.merges", "\"ba\""}},
        {"bad bos", "gpt2", "gpt-2", "a b", 5, 5, -1, 99, 0, MX_ERR_FORMAT, {"tokenizer.ggml.bos_token_id", "99"}},
        {"no scores", "llama", NULL, NULL, 5, 5, -1, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.scores"}},
        {"few scores", "llama", NULL, NULL, 5, 5, 4, 1, 0, MX_ERR_FORMAT, {"tokenizer.ggml.scores", "4 entries"}},
        {"NaN score", "llama", NULL, NULL, 5, 5, 5, 1, NAN, MX_ERR_FORMAT, {"tokenizer.ggml.scores", "entry 2"}},
    };
    folder f = folder_make();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const gguf_case *c = &cases[i];
        bytes b = gguf_of(c);
        mx_error err = {0};
        mx_checkpoint *file = NULL;
        mx_tokenizer *t = NULL;
        folder_write(&f, "model.gguf", b.data, b.size);
        CHECK_OK(mx_checkpoint_open(&file, folder_file(&f, "model.gguf"), &err), err);
        mx_status st = file ? mx_tokenizer_open_gguf(&t, file, &err) : MX_ERR_INTERNAL;
        CHECK_MSG(st == c->status && !st == (t != NULL), "%s: %s: %s", c->name, mx_status_name(st), err.text);
        for (int k = 0; k < 2 && c->says[k]; k++)
            CHECK_MSG(strstr(err.text, c->says[k]), "%s: \"%s\" does not say \"%s\"", c->name, err.text, c->says[k]);
        mx_tokenizer_close(t);
        mx_checkpoint_close(file);
        bytes_free(&b);
    }
    FOLDER_REMOVE(&f, "model.gguf");
}

MX_TESTS(TEST(test_json), TEST(test_merges), TEST(test_folders), TEST(test_damage), TEST(test_gguf))
