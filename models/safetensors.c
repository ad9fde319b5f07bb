/* safetensors.c - the safetensors container, one file or sharded.
 *
 * Layout: u64 little-endian length of the header, the header (JSON: name ->
 * dtype, shape, data_offsets from the end of the header), the data.  Unlike the
 * reference reader we allow holes between tensors; overlap, and sizes that do
 * not follow from dtype and shape, are refused. */
#include "models/checkpoint_internal.h"

#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#define MAX_HEADER 100000000u /* the reference implementation's own limit */
#define MAX_INDEX  (64u << 20)
#define MAX_DIMS   32

typedef struct dtype_entry {
    const char *name;
    mx_file_dtype dtype;
    unsigned bits;
} dtype_entry;
static const dtype_entry dtypes[] = {
    {"F32", MX_FILE_F32, 32},      {"F16", MX_FILE_F16, 16},      {"BF16", MX_FILE_BF16, 16},
    {"F64", MX_FILE_OTHER, 64},    {"I64", MX_FILE_OTHER, 64},    {"U64", MX_FILE_OTHER, 64},
    {"C64", MX_FILE_OTHER, 64},    {"I32", MX_FILE_OTHER, 32},    {"U32", MX_FILE_OTHER, 32},
    {"I16", MX_FILE_OTHER, 16},    {"U16", MX_FILE_OTHER, 16},    {"I8", MX_FILE_OTHER, 8},
    {"U8", MX_FILE_OTHER, 8},      {"BOOL", MX_FILE_OTHER, 8},    {"F8_E4M3", MX_FILE_OTHER, 8},
    {"F8_E5M2", MX_FILE_OTHER, 8}, {"F8_E8M0", MX_FILE_OTHER, 8}, {"F6_E2M3", MX_FILE_OTHER, 6},
    {"F6_E3M2", MX_FILE_OTHER, 6}, {"F4", MX_FILE_OTHER, 4},
};

static mx_status no_memory(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
}

/* ---- one tensor ----------------------------------------------------------------- */

typedef struct section {
    const mx_mapping *file;
    uint64_t begin, size;
    mx_error *err;
} section;

static mx_status bad(const section *s, const char *name, const char *what)
{
    return mx_fail(s->err, MX_ERR_FORMAT, "%s: offset 8: tensor %.100s: %s", s->file->path, name, what);
}

static mx_status read_shape(const section *s, mx_blob *b, const json_t *shape, uint64_t *elements)
{
    uint64_t dims[MAX_DIMS];
    size_t n = json_array_size(shape);
    if (!json_is_array(shape)) return bad(s, b->name, "shape is not an array");
    if (n > MAX_DIMS) return bad(s, b->name, "shape has more than 32 dims");
    for (size_t i = 0; i < n; i++) {
        const json_t *dim = json_array_get(shape, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0)
            return bad(s, b->name, "shape holds what is not a count");
        dims[i] = (uint64_t)json_integer_value(dim);
    }
    if (!mx_blob_set_shape(b, dims, n, elements)) return bad(s, b->name, "shape overflows");
    return MX_OK;
}

static mx_status read_offsets(const section *s, mx_blob *b, const json_t *offsets)
{
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end)) {
        return bad(s, b->name, "data_offsets is not [begin, end]");
    }
    const json_int_t from = json_integer_value(begin), to = json_integer_value(end);
    if (from < 0 || to < from || (uint64_t)to > s->size) {
        return mx_fail(s->err, MX_ERR_FORMAT,
                       "%s: tensor %.100s: data_offsets [%lld, %lld] are not inside the file's %llu bytes of data "
                       "(which start at %llu)",
                       s->file->path, b->name, (long long)from, (long long)to, (unsigned long long)s->size,
                       (unsigned long long)s->begin);
    }
    b->offset = s->begin + (uint64_t)from;
    b->size = (size_t)(to - from);
    b->data = s->file->data + b->offset;
    return MX_OK;
}

static mx_status read_tensor(const section *s, mx_checkpoint *c, const char *name, const json_t *entry)
{
    uint64_t elements, bits;
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    mx_blob *b = mx_checkpoint_add(c);
    if (!b) return no_memory(s->err);
    b->file = s->file->path;
    b->name = mx_checkpoint_keep(c, name, strlen(name));
    if (!b->name) return no_memory(s->err);
    if (!dtype) return bad(s, name, "dtype is not a string");
    MX_TRY(read_shape(s, b, json_object_get(entry, "shape"), &elements));
    MX_TRY(read_offsets(s, b, json_object_get(entry, "data_offsets")));
    b->dtype = MX_FILE_OTHER;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtype, dtypes[i].name) != 0) continue;
        b->dtype = dtypes[i].dtype;
        if (__builtin_mul_overflow(elements, dtypes[i].bits, &bits)) return bad(s, name, "its size overflows");
        if (bits / 8 != b->size || bits % 8) {
            return mx_fail(s->err, MX_ERR_FORMAT,
                           "%s: offset %llu: tensor %.100s: its shape in %s takes %llu bytes, data_offsets give %zu",
                           s->file->path, (unsigned long long)b->offset, name, dtype, (unsigned long long)(bits / 8),
                           b->size);
        }
    }
    return MX_OK;
}

/* ---- one file ------------------------------------------------------------------- */

mx_status mx_safetensors_parse(mx_checkpoint *c, const mx_mapping *file, mx_error *err)
{
    uint64_t len;
    if (file->size < sizeof len) {
        return mx_fail(err, MX_ERR_FORMAT, "%s: offset 0: %zu bytes are neither safetensors nor GGUF", file->path,
                       file->size);
    }
    memcpy(&len, file->data, sizeof len);
    if (len > MAX_HEADER || len > file->size - sizeof len) {
        return mx_fail(
            err, MX_ERR_FORMAT,
            "%s: offset 0: neither GGUF nor safetensors: a header of %llu bytes does not fit (file: %zu, most: %u)",
            file->path, (unsigned long long)len, file->size, MAX_HEADER);
    }
    json_error_t why;
    json_t *header = json_loadb((const char *)file->data + 8, len, JSON_REJECT_DUPLICATES, &why);
    if (!header) {
        return mx_fail(err, MX_ERR_FORMAT, "%s: offset %d: the header is not JSON: %s", file->path, why.position + 8,
                       why.text);
    }
    section s = {.file = file, .begin = len + 8, .size = file->size - 8 - len, .err = err};
    mx_status st = MX_OK;
    int first = c->n_blobs;
    const char *name;
    json_t *entry;
    if (!json_is_object(header))
        st = mx_fail(err, MX_ERR_FORMAT, "%s: offset 8: the header is not an object", file->path);
    json_object_foreach(header, name, entry)
    {
        if (st) break;
        if (strcmp(name, "__metadata__") == 0) continue;
        st = read_tensor(&s, c, name, entry);
    }
    if (!st) st = mx_checkpoint_check_overlap(c, first, err);
    json_decref(header);
    return st;
}

/* ---- shards ----------------------------------------------------------------------- */

/* A shard lies in the folder of its index and nowhere else. */
static bool plain_file_name(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n < 256 && name[0] != '.' && !strpbrk(name, "/\\");
}

/* Keep only what weight_map says is in this shard: another copy may be stale. */
static void drop_unlisted(mx_checkpoint *c, int first, const json_t *map, const char *shard)
{
    int kept = first;
    for (int i = first; i < c->n_blobs; i++) {
        const char *where = json_string_value(json_object_get(map, c->blobs[i].name));
        if (where && strcmp(where, shard) == 0) c->blobs[kept++] = c->blobs[i];
    }
    c->n_blobs = kept;
}

static mx_status open_shard(mx_checkpoint *c, const char *folder, const char *shard, const json_t *map,
                            const char *index_path, mx_error *err)
{
    char *path = NULL;
    int first = c->n_blobs;
    if (asprintf(&path, "%s/%s", folder, shard) < 0) return no_memory(err);
    mx_error why = {0};
    mx_status st = mx_checkpoint_map(c, path, &why);
    if (st) {
        st = mx_fail(err, st, "%.250s (a shard that %.150s names)", why.text, index_path);
    } else {
        st = mx_safetensors_parse(c, &c->files[c->n_files - 1], err);
    }
    if (!st) drop_unlisted(c, first, map, shard);
    free(path);
    return st;
}

static mx_status check_all_found(mx_checkpoint *c, json_t *map, const char *index_path, mx_error *err)
{
    if ((size_t)c->n_blobs == json_object_size(map)) return MX_OK;
    mx_name_index index = {0};
    int twice;
    if (mx_name_index_build(&index, c->blobs, c->n_blobs, sizeof *c->blobs, &twice)) return no_memory(err);
    mx_status st = MX_OK;
    const char *name;
    json_t *shard;
    json_object_foreach(map, name, shard)
    {
        if (mx_name_index_find(&index, c->blobs, sizeof *c->blobs, name) >= 0) continue;
        st = mx_fail(err, MX_ERR_FORMAT, "%.200s: tensor %.100s is not in %.100s", index_path, name,
                     json_string_value(shard));
        break;
    }
    free(index.slot);
    return st;
}

static mx_status read_shards(mx_checkpoint *c, const char *folder, json_t *map, const char *index_path, mx_error *err)
{
    json_t *seen = json_object(), *shard;
    const char *name;
    mx_status st = seen ? MX_OK : no_memory(err);
    if (!st && !json_object_size(map)) {
        st = mx_fail(err, MX_ERR_FORMAT, "%s: weight_map is missing or empty", index_path);
    }
    json_object_foreach(map, name, shard)
    {
        if (st) break;
        const char *file = json_string_value(shard);
        if (!file || !plain_file_name(file)) {
            st = mx_fail(err, MX_ERR_FORMAT,
                         "%.200s: weight_map: %.100s: %.100s is not the name of a file in the folder", index_path,
                         name, file ? file : "what is there");
        } else if (!json_object_get(seen, file)) {
            st = json_object_set_new(seen, file, json_true()) ? no_memory(err)
                                                              : open_shard(c, folder, file, map, index_path, err);
        }
    }
    if (!st) st = check_all_found(c, map, index_path, err);
    json_decref(seen);
    return st;
}

mx_status mx_safetensors_open_shards(mx_checkpoint *c, const char *folder, const char *index_path, mx_error *err)
{
    char *text;
    size_t len;
    json_error_t why;
    MX_TRY(mx_read_file(index_path, MAX_INDEX, &text, &len, err));
    json_t *index = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    free(text);
    if (!index) return mx_fail(err, MX_ERR_FORMAT, "%s: offset %d: not JSON: %s", index_path, why.position, why.text);
    mx_status st = read_shards(c, folder, json_object_get(index, "weight_map"), index_path, err);
    json_decref(index);
    return st;
}
