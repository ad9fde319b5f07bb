/* test_checkpoint.c - model files: what is right reads exactly, what is wrong
 * is refused with words, and no byte of a file can make the reader crash. */
#include "models/checkpoint_internal.h"
#include "tests/model_files.h"

#define GOLDEN MX_SOURCE_DIR "/tests/golden/checkpoint/"

/* ---- reading everything ------------------------------------------------------------ */

static uint64_t sum; /* so that no read is optimised away */

static void touch(const void *data, size_t n)
{
    const uint8_t *p = data;
    for (size_t i = 0; i < n; i++) sum += p[i];
}

static void touch_values(const mx_checkpoint *c)
{
    for (int i = 0; i < c->n_values; i++) {
        const char *key = c->values[i].key;
        int64_t whole = 0;
        double real = 0;
        size_t len = 0;
        const char *text = mx_gguf_string(c, key, &len);
        if (text) touch(text, len);
        mx_gguf_int(c, key, &whole);
        mx_gguf_float(c, key, &real);
        for (int64_t j = 0, n = mx_gguf_array_count(c, key); j < n; j++) {
            text = mx_gguf_array_string(c, key, j, &len);
            if (text) touch(text, len);
            mx_gguf_array_int(c, key, j, &whole);
            mx_gguf_array_float(c, key, j, &real);
        }
    }
}

/* What a caller may do with any checkpoint that opened. */
static void touch_all(const mx_checkpoint *c)
{
    for (int i = 0; i < mx_checkpoint_count(c); i++) {
        const mx_blob *b = mx_checkpoint_at(c, i);
        touch(b->data, b->size);
        CHECK(mx_checkpoint_find(c, b->name) == b);
        if (b->dtype == MX_FILE_OTHER || b->rows * b->cols > 1 << 20) continue;
        float *f = malloc(sizeof *f * (size_t)(b->rows * b->cols + 1));
        mx_blob_read(b, 0, b->rows, f);
        if (b->dtype <= MX_FILE_BF16) mx_blob_read_transposed(b, 0, b->cols, f);
        free(f);
    }
    touch_values(c);
}

/* A copy of exactly n bytes, so that the address sanitizer sees a byte too far. */
static mx_status open_copy(const uint8_t *data, size_t n, mx_error *err)
{
    uint8_t *copy = malloc(n ? n : 1);
    mx_checkpoint *c;
    memcpy(copy, data, n);
    mx_status st = mx_checkpoint_open_memory(&c, copy, n, "file", err);
    if (!st) touch_all(c);
    mx_checkpoint_close(c);
    free(copy);
    return st;
}

static void expect_refusal(const bytes *b, const char *words)
{
    mx_error err = {0};
    mx_status st = open_copy(b->data, b->size, &err);
    CHECK_MSG(st == MX_ERR_FORMAT && strstr(err.text, words), "wanted \"%s\", got %s: %s", words, mx_status_name(st),
              err.text);
}

static void every_truncation(const bytes *b)
{
    int opened = 0;
    for (size_t n = 0; n < b->size; n++) {
        mx_error err = {0};
        mx_status st = open_copy(b->data, n, &err);
        opened += st == MX_OK;
        CHECK_MSG(st == MX_OK || (st == MX_ERR_FORMAT && err.text[0]), "%zu bytes: %s", n, mx_status_name(st));
    }
    CHECK(opened == 0);
}

static void every_corruption(const bytes *b)
{
    uint8_t *copy = malloc(b->size);
    for (size_t i = 0; i < b->size; i++) {
        for (int v = 0; v < 256; v += v < 16 || v > 238 ? 1 : 17) {
            mx_error err = {0};
            memcpy(copy, b->data, b->size);
            copy[i] = (uint8_t)v;
            mx_status st = open_copy(copy, b->size, &err);
            CHECK_MSG(st == MX_OK || (st == MX_ERR_FORMAT && err.text[0]), "byte %zu = %d: %s", i, v,
                      mx_status_name(st));
        }
    }
    free(copy);
}

/* Any changes, several at once. */
static void random_corruption(const bytes *b, int rounds)
{
    const char *given = getenv("MX_TEST_SEED");
    uint64_t state = given ? strtoull(given, NULL, 0) : 20240607;
    printf("  seed %llu\n", (unsigned long long)state);
    uint8_t *copy = malloc(b->size);
    for (int i = 0; i < rounds; i++) {
        memcpy(copy, b->data, b->size);
        for (int j = 0; j < 4; j++) copy[test_random(&state) % b->size] = (uint8_t)test_random(&state);
        mx_error err = {0};
        mx_status st = open_copy(copy, b->size, &err);
        CHECK_MSG(st == MX_OK || (st == MX_ERR_FORMAT && err.text[0]), "round %d: %s", i, mx_status_name(st));
    }
    free(copy);
}

/* ---- numbers ------------------------------------------------------------------------ */

static void halves_are_exact(void)
{
    uint16_t all[65536];
    float *got = malloc(sizeof all / sizeof *all * sizeof *got);
    for (int i = 0; i < 65536; i++) all[i] = (uint16_t)i;
    mx_blob b = {.dtype = MX_FILE_F16, .rows = 1, .cols = 65536, .data = all, .size = sizeof all};
    mx_blob_read(&b, 0, 1, got);
    for (int i = 0; i < 65536; i++) {
        float want = mx_f16_to_f32((uint16_t)i);
        bool same = memcmp(&got[i], &want, sizeof want) == 0 || (isnan(want) && isnan(got[i]));
        if (!same) CHECK_MSG(same, "half %04x: got %a, want %a", i, (double)got[i], (double)want);
    }
    CHECK(got[0x3c00] == 1.0f);
    free(got);
}

static void blocks_equal_the_reference(void)
{
    static const char *const names[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q4_k", "q6_k"};
    mx_error err = {0};
    mx_checkpoint *c;
    CHECK_OK(mx_checkpoint_open(&c, GOLDEN "blocks.gguf", &err), err);
    if (!c) return;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char twin[32];
        snprintf(twin, sizeof twin, "%s.f32", names[i]);
        const mx_blob *b = mx_checkpoint_find(c, names[i]), *want = mx_checkpoint_find(c, twin);
        CHECK(b && want && b->rows == want->rows && b->cols == want->cols && want->dtype == MX_FILE_F32);
        if (!b || !want) continue;
        float *got = malloc(want->size + 4);
        got[want->size / 4] = 12345;
        mx_blob_read(b, 0, b->rows, got);
        CHECK_MSG(memcmp(got, want->data, want->size) == 0, "%s", names[i]);
        CHECK(got[want->size / 4] == 12345);
        /* one row alone is the same */
        mx_row_source rows = mx_blob_rows(b);
        rows.read(rows.ctx, b->rows - 1, 1, got);
        CHECK(memcmp(got, (const float *)want->data + (b->rows - 1) * b->cols, (size_t)b->cols * 4) == 0);
        free(got);
    }
    const mx_blob *other = mx_checkpoint_find(c, "q5_0"), *cube = mx_checkpoint_find(c, "cube");
    CHECK(other && other->dtype == MX_FILE_OTHER && other->size == 3 * 512 / 32 * 22);
    CHECK(cube && cube->n_dims == 3 && cube->dims[0] == 2 && cube->dims[1] == 3 && cube->dims[2] == 4);
    CHECK(cube && cube->rows == 6 && cube->cols == 4);
    CHECK(!mx_checkpoint_find(c, "nothing"));
    CHECK(!mx_checkpoint_at(c, -1) && !mx_checkpoint_at(c, mx_checkpoint_count(c)));
    mx_checkpoint_close(c);
}

static void metadata_of_every_type(void)
{
    mx_error err = {0};
    mx_checkpoint *c;
    CHECK_OK(mx_checkpoint_open(&c, GOLDEN "blocks.gguf", &err), err);
    if (!c) return;
    static const struct {
        const char *key;
        int64_t want;
    } ints[] = {
        {"t.u8", 200},        {"t.i8", -100},          {"t.u16", 60000},
        {"t.i16", -30000},    {"t.u32", 4000000000},   {"t.i32", -2000000000},
        {"t.u64", 1ll << 62}, {"t.i64", -(1ll << 62)}, {"t.bool", 1},
    };
    int64_t whole;
    double real;
    size_t len;
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        CHECK_MSG(mx_gguf_int(c, ints[i].key, &whole) && whole == ints[i].want, "%s", ints[i].key);
        CHECK(mx_gguf_float(c, ints[i].key, &real) && real == (double)ints[i].want);
    }
    CHECK(mx_gguf_float(c, "t.f32", &real) && real == (double)0.1f);
    CHECK(mx_gguf_float(c, "t.f64", &real) && real == 0.1);
    CHECK(!mx_gguf_int(c, "t.f32", &whole) && !mx_gguf_int(c, "t.string", &whole) &&
          !mx_gguf_int(c, "t.ints", &whole));
    const char *s = mx_gguf_string(c, "t.string", &len);
    CHECK(s && len == strlen("夏季 sunscreen") && memcmp(s, "夏季 sunscreen", len) == 0);
    CHECK(!mx_gguf_string(c, "t.u8", &len) && !mx_gguf_string(c, "t.strings", &len) &&
          !mx_gguf_string(c, "none", &len));
    static const char *const strings[] = {"a", "", "中文", "<|im_end|>"};
    CHECK(mx_gguf_array_count(c, "t.strings") == 4);
    for (int i = 0; i < 4; i++) {
        s = mx_gguf_array_string(c, "t.strings", i, &len);
        CHECK(s && len == strlen(strings[i]) && memcmp(s, strings[i], len) == 0);
    }
    CHECK(!mx_gguf_array_string(c, "t.strings", 4, &len) && !mx_gguf_array_string(c, "t.strings", -1, &len));
    CHECK(!mx_gguf_array_string(c, "t.ints", 0, &len) && !mx_gguf_array_int(c, "t.strings", 0, &whole));
    CHECK(mx_gguf_array_count(c, "t.ints") == 5 && mx_gguf_array_int(c, "t.ints", 3, &whole) && whole == -1);
    CHECK(mx_gguf_array_float(c, "t.floats", 1, &real) && real == -1.5 &&
          !mx_gguf_array_int(c, "t.floats", 1, &whole));
    CHECK(mx_gguf_array_count(c, "t.u8") == -1 && mx_gguf_array_count(c, "none") == -1);
    CHECK(mx_checkpoint_is_gguf(c));
    mx_checkpoint_close(c);
}

static void transposed_equals_the_loop(void)
{
    enum { ROWS = 131, COLS = 53 };
    static float data[ROWS * COLS], got[COLS * ROWS + 1];
    static uint16_t half[ROWS * COLS];
    uint64_t state = 7;
    for (int i = 0; i < ROWS * COLS; i++) {
        half[i] = (uint16_t)(test_random(&state) & 0x7bff);
        data[i] = (float)i;
    }
    for (int f16 = 0; f16 < 2; f16++) {
        mx_blob b = {
            .dtype = f16 ? MX_FILE_F16 : MX_FILE_F32, .rows = ROWS, .cols = COLS, .data = f16 ? (void *)half : data};
        mx_row_source s = mx_blob_rows_transposed(&b);
        CHECK(s.rows == COLS && s.cols == ROWS);
        for (int first = 0; first < COLS; first += 17) {
            int n = COLS - first < 19 ? COLS - first : 19, wrong = 0;
            got[n * ROWS] = -3;
            s.read(s.ctx, first, n, got);
            for (int i = 0; i < n; i++) {
                for (int r = 0; r < ROWS; r++) {
                    int at = r * COLS + first + i;
                    wrong += got[i * ROWS + r] != (f16 ? mx_f16_to_f32(half[at]) : data[at]);
                }
            }
            CHECK(wrong == 0 && got[n * ROWS] == -3);
        }
    }
}

/* ---- GGUF: right ones from above, wrong ones from here ------------------------------- */

static bytes small_gguf(void)
{
    bytes b = {0};
    gguf_header(&b, 3, 2, 4);
    gguf_string(&b, "general.architecture", "llama");
    gguf_u32(&b, "general.alignment", 64);
    gguf_key(&b, "words", G_ARRAY);
    put_u32(&b, G_STRING);
    put_u64(&b, 3);
    put_string(&b, "one");
    put_string(&b, "");
    put_string(&b, "three");
    gguf_key(&b, "ids", G_ARRAY);
    put_u32(&b, G_I32);
    put_u64(&b, 2);
    put_u32(&b, 1);
    put_u32(&b, 2);
    gguf_tensor(&b, "w", 2, 32, 3, 0);
    gguf_tensor(&b, "v", 0, 3, 0, 64);
    put_padding(&b, 64);
    for (int i = 0; i < 64 + 12; i++) put_u8(&b, (uint8_t)(i * 3));
    return b;
}

static void gguf_survives_any_byte(void)
{
    bytes b = small_gguf();
    mx_error err = {0};
    CHECK_OK(open_copy(b.data, b.size, &err), err);
    every_truncation(&b);
    every_corruption(&b);
    random_corruption(&b, 20000);
    bytes_free(&b);
}

static void gguf_one(const char *words, uint64_t n_tensors, uint64_t n_keys, const bytes *body)
{
    bytes b = {0};
    gguf_header(&b, 3, n_tensors, n_keys);
    put(&b, body->data, body->size);
    put_padding(&b, 32);
    for (int i = 0; i < 256; i++) put_u8(&b, 0);
    expect_refusal(&b, words);
    bytes_free(&b);
}

/* body: a list of statements that put bytes into b */
#define GGUF_BAD(words, n_tensors, n_keys, ...)                                                                      \
    do {                                                                                                             \
        bytes b_ = {0}, *b = &b_;                                                                                    \
        __VA_ARGS__;                                                                                                 \
        gguf_one(words, n_tensors, n_keys, b);                                                                       \
        bytes_free(b);                                                                                               \
    } while (0)

static void gguf_lies_are_refused(void)
{
    GGUF_BAD("more tensors", UINT64_MAX, 0, (void)b);
    GGUF_BAD("more keys", 0, UINT64_MAX, (void)b);
    GGUF_BAD("more keys", 0, 1000, (void)b);
    GGUF_BAD("a key takes", 0, 1, put_u64(b, UINT64_MAX));
    GGUF_BAD("unknown type", 0, 1, gguf_key(b, "k", 13); put_u64(b, 0));
    GGUF_BAD("there twice", 0, 2, gguf_u32(b, "k", 1); gguf_u32(b, "k", 2));
    GGUF_BAD("zero byte", 0, 1, put_u64(b, 3); put(b, "a\0b", 3); put_u32(b, G_U32); put_u32(b, 0));
    GGUF_BAD("arrays of arrays", 0, 1, gguf_key(b, "k", G_ARRAY); put_u32(b, G_ARRAY); put_u64(b, 1));
    GGUF_BAD("too long", 0, 1, gguf_key(b, "k", G_ARRAY); put_u32(b, G_U32); put_u64(b, UINT64_MAX / 2));
    GGUF_BAD("an array takes", 0, 1, gguf_key(b, "k", G_ARRAY); put_u32(b, G_U32); put_u64(b, 1u << 30));
    GGUF_BAD("more strings", 0, 1, gguf_key(b, "k", G_ARRAY); put_u32(b, G_STRING); put_u64(b, UINT64_MAX / 8));
    GGUF_BAD("a string of an array", 0, 1, gguf_key(b, "k", G_ARRAY); put_u32(b, G_STRING); put_u64(b, 1);
             put_u64(b, 1 << 20));
    GGUF_BAD("power of two", 0, 1, gguf_u32(b, "general.alignment", 24));
    GGUF_BAD("power of two", 0, 1, gguf_u32(b, "general.alignment", 0));
    GGUF_BAD("power of two", 0, 1, gguf_string(b, "general.alignment", "32"));
    GGUF_BAD("more than 4 dims", 1, 0, put_string(b, "t"); put_u32(b, 5); put_u64(b, 1); put_u64(b, 1);
             put_u64(b, 1));
    GGUF_BAD("shape overflows", 1, 0, gguf_tensor(b, "t", 1ull << 32, 1ull << 32, 0, 0));
    GGUF_BAD("shape overflows", 1, 0, gguf_tensor(b, "t", 0, UINT64_MAX, 0, 0));
    GGUF_BAD("size overflows", 1, 0, gguf_tensor(b, "t", 1ull << 31, 1ull << 31, 28, 0));
    GGUF_BAD("not inside the file", 1, 0, gguf_tensor(b, "t", 0, 1u << 20, 0, 0));
    GGUF_BAD("not inside the file", 1, 0, gguf_tensor(b, "t", 0, 4, 0, 0xffffffffffffffe0u));
    GGUF_BAD("not inside the file", 1, 0, gguf_tensor(b, "t", 0, 4, 200, 1u << 20));
    GGUF_BAD("not aligned", 1, 0, gguf_tensor(b, "t", 0, 4, 0, 8));
    GGUF_BAD("whole blocks of 32", 1, 0, gguf_tensor(b, "t", 2, 48, 3, 0));
    GGUF_BAD("whole blocks of 256", 1, 0, gguf_tensor(b, "t", 0, 32, 12, 0));
    GGUF_BAD("overlap", 2, 0, gguf_tensor(b, "t", 0, 32, 0, 0); gguf_tensor(b, "u", 0, 8, 0, 96));
    GGUF_BAD("listed twice", 2, 0, gguf_tensor(b, "t", 0, 8, 0, 0); gguf_tensor(b, "t", 0, 8, 0, 32));
    bytes b = {0};
    gguf_header(&b, 1, 0, 0);
    expect_refusal(&b, "GGUF version 1");
    bytes_free(&b);
    gguf_header(&b, 0x03000000, 0, 0);
    expect_refusal(&b, "big-endian");
    bytes_free(&b);
}

static void gguf_unknown_types_are_listed(void)
{
    bytes b = {0};
    gguf_header(&b, 2, 2, 0);
    gguf_tensor(&b, "new", 0, 7, 4000, 0);
    gguf_tensor(&b, "i32", 0, 8, 26, 32);
    put_padding(&b, 32);
    for (int i = 0; i < 64; i++) put_u8(&b, 1);
    mx_checkpoint *c;
    mx_error err = {0};
    CHECK_OK(mx_checkpoint_open_memory(&c, b.data, b.size, "file", &err), err);
    if (c) {
        const mx_blob *x = mx_checkpoint_find(c, "new"), *y = mx_checkpoint_find(c, "i32");
        CHECK(x && x->dtype == MX_FILE_OTHER && x->size == 0 && y && y->dtype == MX_FILE_OTHER && y->size == 32);
        float unchanged = 3;
        mx_blob_read(x, 0, 1, &unchanged);
        CHECK(unchanged == 3);
    }
    mx_checkpoint_close(c);
    bytes_free(&b);
}

/* ---- safetensors ------------------------------------------------------------------------ */

static void safetensors_of_the_package(void)
{
    mx_error err = {0};
    mx_checkpoint *c;
    CHECK_OK(mx_checkpoint_open(&c, GOLDEN "plain.safetensors", &err), err);
    if (!c) return;
    CHECK(mx_checkpoint_count(c) == 6 && !mx_checkpoint_is_gguf(c));
    static const char *const names[] = {"x", "half", "brain"};
    for (int k = 0; k < 3; k++) {
        const mx_blob *b = mx_checkpoint_find(c, names[k]);
        float got[24];
        CHECK(b && (int)b->dtype == k && b->rows == 4 && b->cols == 6 && b->n_dims == 2);
        if (!b || b->size > sizeof got) continue;
        mx_blob_read(b, 0, 4, got);
        for (int i = 0; i < 24; i++) {
            float x = (float)(i - 12) / 3.0f;
            float want = k == 0 ? x : k == 1 ? mx_f16_to_f32(mx_f32_to_f16(x)) : mx_bf16_to_f32(mx_f32_to_bf16(x));
            CHECK_MSG(got[i] == want, "%s[%d]: %a, want %a", names[k], i, (double)got[i], (double)want);
        }
    }
    const mx_blob *mask = mx_checkpoint_find(c, "mask"), *scalar = mx_checkpoint_find(c, "scalar");
    const mx_blob *none = mx_checkpoint_find(c, "none");
    CHECK(mask && mask->dtype == MX_FILE_OTHER && mask->size == 40 && mask->rows == 1 && mask->cols == 5);
    CHECK(scalar && scalar->rows == 1 && scalar->cols == 1 && scalar->n_dims == 1);
    CHECK(none && none->rows == 0 && none->cols == 3 && none->size == 0);
    CHECK_STR(scalar ? scalar->file : NULL, GOLDEN "plain.safetensors");
    mx_checkpoint_close(c);
}

static const char small_header[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
    "\"b.c\":{\"dtype\":\"BF16\",\"shape\":[1,4],\"data_offsets\":[24,32]},"
    "\"m\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[32,40]}}  ";

static void safetensors_survive_any_byte(void)
{
    bytes b = safetensors(small_header, 40);
    mx_error err = {0};
    CHECK_OK(open_copy(b.data, b.size, &err), err);
    every_truncation(&b);
    every_corruption(&b);
    random_corruption(&b, 20000);
    bytes_free(&b);
}

static void safetensors_lies_are_refused(void)
{
    static const struct {
        const char *header, *words;
    } cases[] = {
        {"", "not JSON"},
        {"[]", "not an object"},
        {"{\"a\":1", "not JSON"},
        {"{\"a\":1}", "dtype"},
        {"{\"a\":{},\"a\":{}}", "duplicate"},
        {"{\"a\\u0000b\":{}}", "not JSON"},
        {"{\"\xff\":{}}", "not JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":2,\"data_offsets\":[0,8]}}", "shape is not an array"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-2],\"data_offsets\":[0,8]}}", "not a count"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2.0],\"data_offsets\":[0,8]}}", "not a count"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0]}}", "[begin, end]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", "[begin, end]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,\"8\"]}}", "[begin, end]"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[-8,0]}}", "not inside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[16,8]}}", "not inside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[20],\"data_offsets\":[0,80]}}", "not inside"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[0,8]}}", "takes 12 bytes"},
        {"{\"a\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,8]}}", "takes 6 bytes"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,8]}}", "shape overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[0,4294967296,4294967296],\"data_offsets\":[0,0]},\"b\":7}", "dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,8]}}", "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[99999999999999999999],\"data_offsets\":[0,8]}}", "not JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[12,28]}}",
         "overlap"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        bytes b = safetensors(cases[i].header, 40);
        expect_refusal(&b, cases[i].words);
        bytes_free(&b);
    }
    bytes b = {0};
    put_u64(&b, 100000001);
    expect_refusal(&b, "does not fit");
    b.data[7] = 0xff;
    expect_refusal(&b, "does not fit");
    bytes_free(&b);
}

static void holes_and_new_dtypes_are_read(void)
{
    bytes b = safetensors("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[8,16]},"
                          "\"n\":{\"dtype\":\"F5_NEW\",\"shape\":[7],\"data_offsets\":[20,23]},"
                          "\"wide\":{\"dtype\":\"F32\",\"shape\":[0,1152921504606846976],\"data_offsets\":[0,0]},"
                          "\"tall\":{\"dtype\":\"F32\",\"shape\":[1152921504606846976,0],\"data_offsets\":[0,0]},"
                          "\"five\":{\"dtype\":\"U8\",\"shape\":[1,2,2,1,3],\"data_offsets\":[24,36]}}",
                          40);
    mx_checkpoint *c;
    mx_error err = {0};
    CHECK_OK(mx_checkpoint_open_memory(&c, b.data, b.size, "file", &err), err);
    if (c) {
        const mx_blob *n = mx_checkpoint_find(c, "n"), *five = mx_checkpoint_find(c, "five");
        CHECK(n && n->dtype == MX_FILE_OTHER && n->size == 3);
        touch_all(c); /* shapes without elements cost no time, however large a dim is */
        CHECK(five && five->n_dims == 4 && five->dims[0] == 2 && five->dims[1] == 2 && five->dims[3] == 3 &&
              five->rows == 4);
    }
    mx_checkpoint_close(c);
    bytes_free(&b);
}

/* ---- folders and files --------------------------------------------------------------------- */

#define ONE(name) "{\"" name "\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"

static void write_shard(const folder *f, const char *file, const char *header)
{
    bytes b = safetensors(header, 8);
    folder_write(f, file, b.data, b.size);
    bytes_free(&b);
}

static void expect_index(const folder *f, const char *index, mx_status want, const char *words)
{
    mx_error err = {0};
    mx_checkpoint *c;
    folder_text(f, "model.safetensors.index.json", index);
    mx_status st = mx_checkpoint_open(&c, f->path, &err);
    CHECK_MSG(st == want && (!words || strstr(err.text, words)), "%s: wanted \"%s\", got %s: %s", index,
              words ? words : "", mx_status_name(st), err.text);
    if (!st) touch_all(c);
    mx_checkpoint_close(c);
}

static void shards_are_joined_and_checked(void)
{
    folder f = folder_make();
    write_shard(&f, "model-1.safetensors", ONE("a"));
    write_shard(&f, "model-2.safetensors", ONE("b"));
    expect_index(&f, "{\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\"}}", MX_OK, NULL);
    mx_checkpoint *c;
    mx_error err = {0};
    CHECK_OK(mx_checkpoint_open(&c, f.path, &err), err);
    CHECK(c && mx_checkpoint_count(c) == 2 && mx_checkpoint_find(c, "a") && mx_checkpoint_find(c, "b"));
    mx_checkpoint_close(c);
    expect_index(&f, "{\"weight_map\":{\"a\":\"model-1.safetensors\"}}", MX_OK, NULL);
    expect_index(&f, "{\"weight_map\":{\"a\":\"model-3.safetensors\"}}", MX_ERR_IO,
                 "model-3.safetensors: No such file");
    expect_index(&f, "{\"weight_map\":{\"z\":\"model-1.safetensors\"}}", MX_ERR_FORMAT, "tensor z is not in model-1");
    expect_index(&f, "{\"weight_map\":{\"a\":\"../model-1.safetensors\"}}", MX_ERR_FORMAT, "not the name of a file");
    expect_index(&f, "{\"weight_map\":{\"a\":\"/etc/passwd\"}}", MX_ERR_FORMAT, "not the name of a file");
    expect_index(&f, "{\"weight_map\":{\"a\":\"..\"}}", MX_ERR_FORMAT, "not the name of a file");
    expect_index(&f, "{\"weight_map\":{\"a\":\"\"}}", MX_ERR_FORMAT, "not the name of a file");
    expect_index(&f, "{\"weight_map\":{\"a\":3}}", MX_ERR_FORMAT, "not the name of a file");
    expect_index(&f, "{\"weight_map\":{}}", MX_ERR_FORMAT, "missing or empty");
    expect_index(&f, "{}", MX_ERR_FORMAT, "missing or empty");
    expect_index(&f, "[]", MX_ERR_FORMAT, "missing or empty");
    expect_index(&f, "{\"weight_map\":", MX_ERR_FORMAT, "not JSON");
    /* the single file wins over the index, as in transformers */
    write_shard(&f, "model.safetensors", ONE("single"));
    CHECK_OK(mx_checkpoint_open(&c, f.path, &err), err);
    CHECK(c && mx_checkpoint_count(c) == 1 && mx_checkpoint_find(c, "single"));
    mx_checkpoint_close(c);
    FOLDER_REMOVE(&f, "model-1.safetensors", "model-2.safetensors", "model.safetensors",
                  "model.safetensors.index.json");
}

static void expect_open(const char *path, mx_status want, const char *words)
{
    mx_error err = {0};
    mx_checkpoint *c;
    mx_status st = mx_checkpoint_open(&c, path, &err);
    CHECK_MSG(st == want && strstr(err.text, words) && !c, "%s: wanted \"%s\", got %s: %s", path, words,
              mx_status_name(st), err.text);
}

static void files_that_cannot_be_opened(void)
{
    folder f = folder_make();
    expect_open(f.path, MX_ERR_IO, "holds neither");
    expect_open(folder_file(&f, "none.gguf"), MX_ERR_IO, "No such file");
    folder_text(&f, "empty.gguf", "");
    expect_open(folder_file(&f, "empty.gguf"), MX_ERR_FORMAT, "empty");
    folder_text(&f, "short", "GGU");
    expect_open(folder_file(&f, "short"), MX_ERR_FORMAT, "neither");
    CHECK(mkfifo(folder_file(&f, "pipe"), 0600) == 0);
    expect_open(folder_file(&f, "pipe"), MX_ERR_IO, "not a regular file");
    CHECK(mkdir(folder_file(&f, "model.safetensors"), 0700) == 0);
    expect_open(f.path, MX_ERR_IO, "directory");
    CHECK(rmdir(folder_file(&f, "model.safetensors")) == 0);
    if (geteuid() != 0) {
        folder_text(&f, "locked", "x");
        CHECK(chmod(folder_file(&f, "locked"), 0) == 0);
        expect_open(folder_file(&f, "locked"), MX_ERR_IO, "Permission denied");
    } else {
        TEST_SKIP("permissions: root may read every file");
    }
    char *text;
    size_t len;
    mx_error err = {0};
    CHECK_OK(mx_read_file(folder_file(&f, "short"), 3, &text, &len, &err), err);
    CHECK(len == 3 && text && strcmp(text, "GGU") == 0);
    free(text);
    CHECK(mx_read_file(folder_file(&f, "short"), 2, &text, &len, &err) == MX_ERR_FORMAT && !text);
    CHECK(mx_read_file(folder_file(&f, "none"), 2, &text, &len, &err) == MX_ERR_IO && !text);
    CHECK(mx_read_file(f.path, 100, &text, &len, &err) == MX_ERR_IO && strstr(err.text, "directory"));
    CHECK_OK(mx_read_file(folder_file(&f, "empty.gguf"), 0, &text, &len, &err), err);
    CHECK(len == 0 && text && !*text);
    free(text);
    FOLDER_REMOVE(&f, "empty.gguf", "short", "pipe", "locked");
}

/* A real model, when the machine has one: MX_GGUF=path. */
static void a_real_file(void)
{
    const char *path = getenv("MX_GGUF");
    if (!path) {
        TEST_SKIP("MX_GGUF names no file");
        return;
    }
    mx_error err = {0};
    mx_checkpoint *c;
    CHECK_OK(mx_checkpoint_open(&c, path, &err), err);
    for (int i = 0; c && i < mx_checkpoint_count(c); i++) {
        const mx_blob *b = mx_checkpoint_at(c, i);
        float *row = malloc(sizeof *row * (size_t)b->cols);
        mx_blob_read(b, b->rows - 1, 1, row);
        for (int64_t j = 0; b->dtype != MX_FILE_OTHER && j < b->cols; j++) {
            if (!isfinite(row[j])) CHECK_MSG(isfinite(row[j]), "%s[%lld]", b->name, (long long)j);
        }
        free(row);
    }
    mx_checkpoint_close(c);
}

MX_TESTS(TEST(halves_are_exact), TEST(blocks_equal_the_reference), TEST(metadata_of_every_type),
         TEST(transposed_equals_the_loop), TEST(gguf_survives_any_byte), TEST(gguf_lies_are_refused),
         TEST(gguf_unknown_types_are_listed), TEST(safetensors_of_the_package), TEST(safetensors_survive_any_byte),
         TEST(safetensors_lies_are_refused), TEST(holes_and_new_dtypes_are_read), TEST(shards_are_joined_and_checked),
         TEST(files_that_cannot_be_opened), TEST(a_real_file))
