/* gguf.c - the GGUF container, versions 2 and 3, little-endian.
 *
 * Layout (ggml's docs/gguf.md): magic, version, tensor count, key count; the
 * keys with typed values; the tensors' names, dims, types and offsets; padding
 * to general.alignment; the data.  Lengths are 64 bits and come from outside:
 * each is compared with what is left of the file before it is used, so memory
 * taken is at most a small multiple of the file's size.  Numbers are read from
 * the mapping as they lie; all hosts that Merx builds for are little-endian. */
#include "models/checkpoint_internal.h"

#include <limits.h>
#include <stdlib.h>

enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64,
    GGUF_TYPES
};
static const uint8_t type_size[GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

#define GGUF_MAX_DIMS 4

/* Tensor types by ggml's number: values and bytes of a block (ggml-common.h).
 * Those that Merx cannot read are still measured, so that overlap is seen; a
 * number that is not here has size 0. */
typedef struct tensor_type {
    mx_file_dtype dtype;
    uint16_t values, bytes;
} tensor_type;
static const tensor_type tensor_types[] = {
    [0] = {MX_FILE_F32, 1, 4},       [1] = {MX_FILE_F16, 1, 2},        [2] = {MX_FILE_Q4_0, 32, 18},
    [3] = {MX_FILE_Q4_1, 32, 20},    [6] = {MX_FILE_OTHER, 32, 22},    [7] = {MX_FILE_OTHER, 32, 24}, /* Q5_0, Q5_1 */
    [8] = {MX_FILE_Q8_0, 32, 34},    [9] = {MX_FILE_OTHER, 32, 36},                                   /* Q8_1 */
    [10] = {MX_FILE_OTHER, 256, 84}, [11] = {MX_FILE_OTHER, 256, 110},                                /* Q2_K, Q3_K */
    [12] = {MX_FILE_Q4_K, 256, 144}, [13] = {MX_FILE_OTHER, 256, 176},                                /* Q5_K */
    [14] = {MX_FILE_Q6_K, 256, 210}, [15] = {MX_FILE_OTHER, 256, 292},                                /* Q8_K */
    [16] = {MX_FILE_OTHER, 256, 66}, [17] = {MX_FILE_OTHER, 256, 74},  /* IQ2_XXS, IQ2_XS */
    [18] = {MX_FILE_OTHER, 256, 98}, [19] = {MX_FILE_OTHER, 256, 50},  /* IQ3_XXS, IQ1_S */
    [20] = {MX_FILE_OTHER, 32, 18},  [21] = {MX_FILE_OTHER, 256, 110}, /* IQ4_NL, IQ3_S */
    [22] = {MX_FILE_OTHER, 256, 82}, [23] = {MX_FILE_OTHER, 256, 136}, /* IQ2_S, IQ4_XS */
    [24] = {MX_FILE_OTHER, 1, 1},    [25] = {MX_FILE_OTHER, 1, 2},     /* I8, I16 */
    [26] = {MX_FILE_OTHER, 1, 4},    [27] = {MX_FILE_OTHER, 1, 8},     /* I32, I64 */
    [28] = {MX_FILE_OTHER, 1, 8},    [29] = {MX_FILE_OTHER, 256, 56},  /* F64, IQ1_M */
    [30] = {MX_FILE_BF16, 1, 2},     [34] = {MX_FILE_OTHER, 256, 54},  /* TQ1_0 */
    [35] = {MX_FILE_OTHER, 256, 66}, [39] = {MX_FILE_OTHER, 32, 17},   /* TQ2_0, MXFP4 */
};

/* ---- reading ------------------------------------------------------------------ */

typedef struct reader {
    const uint8_t *data;
    size_t size, at;
    const char *file;
    mx_error *err;
} reader;

static mx_status bad(const reader *r, const char *what)
{
    return mx_fail(r->err, MX_ERR_FORMAT, "%s: offset %zu: %s", r->file, r->at, what);
}

static mx_status no_memory(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
}

static mx_status read_bytes(reader *r, void *to, size_t n, const char *what)
{
    if (r->size - r->at < n) {
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: offset %zu: the file ends inside %s", r->file, r->at, what);
    }
    memcpy(to, r->data + r->at, n);
    r->at += n;
    return MX_OK;
}

static mx_status read_u32(reader *r, uint32_t *to, const char *what)
{
    return read_bytes(r, to, sizeof *to, what);
}

static mx_status read_u64(reader *r, uint64_t *to, const char *what)
{
    return read_bytes(r, to, sizeof *to, what);
}

static mx_status skip(reader *r, uint64_t n, const char *what)
{
    if (n > r->size - r->at) {
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: offset %zu: %s takes %llu bytes, but %zu are left", r->file, r->at,
                       what, (unsigned long long)n, r->size - r->at);
    }
    r->at += n;
    return MX_OK;
}

/* A key or a tensor's name, kept with a NUL behind it. */
static mx_status read_name(reader *r, mx_checkpoint *c, const char **to, const char *what)
{
    uint64_t len = 0;
    MX_TRY(read_u64(r, &len, what));
    const char *text = (const char *)r->data + r->at;
    MX_TRY(skip(r, len, what));
    if (memchr(text, 0, len)) return bad(r, "a name holds a zero byte");
    *to = mx_checkpoint_keep(c, text, len);
    return *to ? MX_OK : no_memory(r->err);
}

/* ---- keys and values ------------------------------------------------------------ */

static mx_status read_strings(reader *r, mx_gguf_value *v)
{
    size_t start = r->at;
    if (v->count > (r->size - r->at) / 8) return bad(r, "an array has more strings than the file has room for");
    v->begin = malloc((v->count + 1) * sizeof *v->begin);
    if (!v->begin) return no_memory(r->err);
    for (uint64_t i = 0; i < v->count; i++) {
        uint64_t len = 0;
        v->begin[i] = r->at - start;
        MX_TRY(read_u64(r, &len, "a string's length"));
        MX_TRY(skip(r, len, "a string of an array"));
    }
    v->begin[v->count] = r->at - start;
    return MX_OK;
}

static mx_status read_value(reader *r, mx_gguf_value *v)
{
    MX_TRY(read_u32(r, &v->type, "a value's type"));
    if (v->type >= GGUF_TYPES) return bad(r, "a value has an unknown type");
    if (v->type == GGUF_STRING) {
        MX_TRY(read_u64(r, &v->count, "a string's length"));
        v->data = r->data + r->at;
        return skip(r, v->count, "a string");
    }
    if (v->type != GGUF_ARRAY) {
        v->data = r->data + r->at;
        return skip(r, type_size[v->type], "a value");
    }
    MX_TRY(read_u32(r, &v->element, "an array's type"));
    MX_TRY(read_u64(r, &v->count, "an array's length"));
    if (v->element == GGUF_ARRAY) return bad(r, "arrays of arrays are not supported");
    if (v->element >= GGUF_TYPES) return bad(r, "an array has an unknown type");
    v->data = r->data + r->at;
    if (v->element == GGUF_STRING) return read_strings(r, v);
    uint64_t bytes;
    if (v->count > INT64_MAX || __builtin_mul_overflow(v->count, type_size[v->element], &bytes)) {
        return bad(r, "an array is too long");
    }
    return skip(r, bytes, "an array");
}

static mx_status read_values(reader *r, mx_checkpoint *c, uint64_t n)
{
    /* the shortest: an empty key (8), its type (4), one byte */
    if (n > (r->size - r->at) / 13 || n > INT_MAX) return bad(r, "more keys than the file has room for");
    c->values = calloc(n + 1, sizeof *c->values);
    if (!c->values) return no_memory(r->err);
    for (uint64_t i = 0; i < n; i++) {
        mx_gguf_value *v = &c->values[i];
        MX_TRY(read_name(r, c, &v->key, "a key"));
        c->n_values++; /* before read_value: what it takes is freed with c */
        MX_TRY(read_value(r, v));
    }
    int twice;
    if (mx_name_index_build(&c->value_index, c->values, c->n_values, sizeof *c->values, &twice)) {
        return no_memory(r->err);
    }
    if (twice >= 0) {
        return mx_fail(r->err, MX_ERR_FORMAT, "%s: offset %zu: key %.100s is there twice", r->file, r->at,
                       c->values[twice].key);
    }
    return MX_OK;
}

/* ---- tensors -------------------------------------------------------------------- */

static mx_status measure(reader *r, mx_blob *b, uint32_t type, uint64_t elements)
{
    tensor_type t = {MX_FILE_OTHER, 0, 0};
    if (type < sizeof tensor_types / sizeof *tensor_types && tensor_types[type].values) t = tensor_types[type];
    b->dtype = t.dtype;
    if (!t.values) return MX_OK;
    if (b->cols % t.values) {
        return mx_fail(r->err, MX_ERR_FORMAT,
                       "%s: offset %zu: tensor %.100s: rows of %lld values are not whole blocks of %d", r->file,
                       r->at, b->name, (long long)b->cols, t.values);
    }
    if (__builtin_mul_overflow(elements / t.values, t.bytes, &b->size)) return bad(r, "a tensor's size overflows");
    return MX_OK;
}

static mx_status read_tensor(reader *r, mx_checkpoint *c)
{
    uint32_t n_dims = 0, type = 0;
    uint64_t ne[GGUF_MAX_DIMS] = {0}, dims[GGUF_MAX_DIMS], elements;
    mx_blob *b = mx_checkpoint_add(c);
    if (!b) return no_memory(r->err);
    b->file = r->file;
    MX_TRY(read_name(r, c, &b->name, "a tensor's name"));
    MX_TRY(read_u32(r, &n_dims, "a tensor's dims"));
    if (n_dims > GGUF_MAX_DIMS) return bad(r, "a tensor has more than 4 dims");
    MX_TRY(read_bytes(r, ne, n_dims * sizeof *ne, "a tensor's dims"));
    for (uint32_t i = 0; i < n_dims; i++) dims[i] = ne[n_dims - 1 - i]; /* ne[0] is the innermost */
    if (!mx_blob_set_shape(b, dims, n_dims, &elements)) return bad(r, "a tensor's shape overflows");
    MX_TRY(read_u32(r, &type, "a tensor's type"));
    MX_TRY(read_u64(r, &b->offset, "a tensor's offset"));
    return measure(r, b, type, elements);
}

static mx_status read_alignment(reader *r, const mx_checkpoint *c, uint64_t *alignment)
{
    int64_t wanted = 32;
    bool given = mx_name_index_find(&c->value_index, c->values, sizeof *c->values, "general.alignment") >= 0;
    if (given && (!mx_gguf_int(c, "general.alignment", &wanted) || wanted < 1 || wanted > 1 << 20 ||
                  (wanted & (wanted - 1)))) {
        return bad(r, "general.alignment is not a power of two from 1 to 1048576");
    }
    *alignment = (uint64_t)wanted;
    return MX_OK;
}

/* From offsets in the data section to places in the file. */
static mx_status place(reader *r, mx_blob *b, uint64_t section, uint64_t alignment)
{
    uint64_t relative = b->offset, begin, end;
    if (relative % alignment || __builtin_add_overflow(section, relative, &begin) ||
        __builtin_add_overflow(begin, b->size, &end) || end > r->size) {
        return mx_fail(
            r->err, MX_ERR_FORMAT,
            "%s: tensor %.100s: %zu bytes at offset %llu of the data section (which starts at %llu) are %s", r->file,
            b->name, b->size, (unsigned long long)relative, (unsigned long long)section,
            relative % alignment ? "not aligned" : "not inside the file");
    }
    b->offset = begin;
    b->data = r->data + begin;
    return MX_OK;
}

mx_status mx_gguf_parse(mx_checkpoint *c, const mx_mapping *file, mx_error *err)
{
    reader r = {.data = file->data, .size = file->size, .at = 4, .file = file->path, .err = err};
    uint32_t version = 0;
    uint64_t n_tensors = 0, n_values = 0, alignment = 0;
    MX_TRY(read_u32(&r, &version, "the version"));
    if (version == 0x02000000u || version == 0x03000000u) return bad(&r, "a big-endian GGUF is not supported");
    if (version != 2 && version != 3) {
        return mx_fail(err, MX_ERR_FORMAT, "%s: offset 4: GGUF version %u, supported are 2 and 3", r.file, version);
    }
    MX_TRY(read_u64(&r, &n_tensors, "the tensor count"));
    MX_TRY(read_u64(&r, &n_values, "the key count"));
    MX_TRY(read_values(&r, c, n_values));
    MX_TRY(read_alignment(&r, c, &alignment));
    /* the shortest: an empty name (8), n_dims (4), type (4), offset (8) */
    if (n_tensors > (r.size - r.at) / 24 || n_tensors > INT_MAX) {
        return bad(&r, "more tensors than the file has room for");
    }
    int first = c->n_blobs;
    for (uint64_t i = 0; i < n_tensors; i++) MX_TRY(read_tensor(&r, c));
    uint64_t section = (r.at + alignment - 1) & ~(alignment - 1);
    for (int i = first; i < c->n_blobs; i++) MX_TRY(place(&r, &c->blobs[i], section, alignment));
    return mx_checkpoint_check_overlap(c, first, err);
}

void mx_gguf_free(mx_checkpoint *c)
{
    for (int i = 0; i < c->n_values; i++) free(c->values[i].begin);
    free(c->values);
    free(c->value_index.slot);
}

/* ---- what the rest of models/ asks ------------------------------------------------ */

static const mx_gguf_value *find_value(const mx_checkpoint *c, const char *key)
{
    int i = mx_name_index_find(&c->value_index, c->values, sizeof *c->values, key);
    return i < 0 ? NULL : &c->values[i];
}

static bool load_int(uint32_t type, const uint8_t *at, int64_t *out)
{
    switch (type) {
    case GGUF_U8: *out = *at; return true;
    case GGUF_BOOL: *out = *at != 0; return true;
    case GGUF_I8: *out = (int8_t)*at; return true;
    case GGUF_U16: {
        uint16_t v;
        memcpy(&v, at, sizeof v);
        *out = v;
        return true;
    }
    case GGUF_I16: {
        int16_t v;
        memcpy(&v, at, sizeof v);
        *out = v;
        return true;
    }
    case GGUF_U32: {
        uint32_t v;
        memcpy(&v, at, sizeof v);
        *out = v;
        return true;
    }
    case GGUF_I32: {
        int32_t v;
        memcpy(&v, at, sizeof v);
        *out = v;
        return true;
    }
    case GGUF_I64: memcpy(out, at, sizeof *out); return true;
    case GGUF_U64: memcpy(out, at, sizeof *out); return *out >= 0;
    default: return false;
    }
}

static bool load_float(uint32_t type, const uint8_t *at, double *out)
{
    int64_t whole;
    float single;
    if (type == GGUF_F32) {
        memcpy(&single, at, sizeof single);
        *out = single;
        return true;
    }
    if (type == GGUF_F64) {
        memcpy(out, at, sizeof *out);
        return true;
    }
    if (!load_int(type, at, &whole)) return false;
    *out = (double)whole;
    return true;
}

bool mx_gguf_int(const mx_checkpoint *c, const char *key, int64_t *out)
{
    const mx_gguf_value *v = find_value(c, key);
    int64_t got;
    if (!v || !load_int(v->type, v->data, &got)) return false;
    *out = got;
    return true;
}

bool mx_gguf_float(const mx_checkpoint *c, const char *key, double *out)
{
    const mx_gguf_value *v = find_value(c, key);
    return v && load_float(v->type, v->data, out);
}

const char *mx_gguf_string(const mx_checkpoint *c, const char *key, size_t *len)
{
    const mx_gguf_value *v = find_value(c, key);
    if (!v || v->type != GGUF_STRING) return NULL;
    *len = v->count;
    return (const char *)v->data;
}

static const mx_gguf_value *find_array(const mx_checkpoint *c, const char *key, int64_t i)
{
    const mx_gguf_value *v = find_value(c, key);
    return v && v->type == GGUF_ARRAY && i >= 0 && (uint64_t)i < v->count ? v : NULL;
}

int64_t mx_gguf_array_count(const mx_checkpoint *c, const char *key)
{
    const mx_gguf_value *v = find_value(c, key);
    return v && v->type == GGUF_ARRAY ? (int64_t)v->count : -1;
}

const char *mx_gguf_array_string(const mx_checkpoint *c, const char *key, int64_t i, size_t *len)
{
    const mx_gguf_value *v = find_array(c, key, i);
    if (!v || v->element != GGUF_STRING) return NULL;
    *len = v->begin[i + 1] - v->begin[i] - 8;
    return (const char *)v->data + v->begin[i] + 8;
}

bool mx_gguf_array_int(const mx_checkpoint *c, const char *key, int64_t i, int64_t *out)
{
    const mx_gguf_value *v = find_array(c, key, i);
    int64_t got;
    if (!v || !load_int(v->element, v->data + (size_t)i * type_size[v->element], &got)) return false;
    *out = got;
    return true;
}

bool mx_gguf_array_float(const mx_checkpoint *c, const char *key, int64_t i, double *out)
{
    const mx_gguf_value *v = find_array(c, key, i);
    return v && load_float(v->element, v->data + (size_t)i * type_size[v->element], out);
}
