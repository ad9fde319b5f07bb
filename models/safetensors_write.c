/* safetensors_write.c - writing the safetensors container.
 *
 * Names in order, the header padded so that the data begins at a multiple of
 * 64 bytes: what we write can be mapped and read in place. */
#include "models/params.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define STAGE_ELEMENTS 65536

static const struct { const char *name; size_t size; } types[] = {
    [MX_SAVE_F32] = {"F32", 4}, [MX_SAVE_BF16] = {"BF16", 2}, [MX_SAVE_F16] = {"F16", 2},
    [MX_SAVE_I32] = {"I32", 4}, [MX_SAVE_I64] = {"I64", 8},   [MX_SAVE_U8] = {"U8", 1},
};

static size_t elements(const mx_save *t)
{
    size_t n = 1;
    for (int i = 0; i < t->n_dims; i++) n *= (size_t)t->dims[i];
    return n;
}

static int add_entry(json_t *header, const mx_save *t, uint64_t begin, uint64_t end)
{
    json_t *shape = json_array();
    for (int i = 0; i < t->n_dims; i++) {
        int at = t->transposed ? t->n_dims - 1 - i : i;
        if (json_array_append_new(shape, json_integer(t->dims[at]))) return -1;
    }
    json_t *entry = json_pack("{s:s, s:o, s:[I,I]}", "dtype", types[t->as].name, "shape", shape, "data_offsets",
                              (json_int_t)begin, (json_int_t)end);
    return entry ? json_object_set_new(header, t->name, entry) : -1;
}

static char *make_header(const mx_save *tensors, int n, const char *const *metadata, int n_metadata)
{
    json_t *header = json_object(), *meta = json_object();
    uint64_t at = 0;
    char *text = NULL;
    int bad = !header || !meta;
    for (int i = 0; !bad && i < n_metadata; i++) bad = json_object_set_new(meta, metadata[2 * i], json_string(metadata[2 * i + 1]));
    if (!bad && n_metadata) bad = json_object_set(header, "__metadata__", meta);
    for (int i = 0; !bad && i < n; i++) {
        uint64_t size = elements(&tensors[i]) * types[tensors[i].as].size;
        bad = add_entry(header, &tensors[i], at, at + size);
        at += size;
    }
    if (!bad) text = json_dumps(header, JSON_COMPACT);
    json_decref(meta);
    json_decref(header);
    return text;
}

/* Elements [first, first+n) of what the file shall hold, as f32. */
static void gather(const mx_save *t, size_t first, size_t n, float *out)
{
    const float *x = t->data;
    if (!t->transposed) {
        memcpy(out, x + first, n * sizeof *out);
        return;
    }
    size_t rows = (size_t)t->dims[0], cols = (size_t)t->dims[1];      /* the file's are cols x rows */
    for (size_t k = 0; k < n; k++) out[k] = x[(first + k) % rows * cols + (first + k) / rows];
}

static bool write_tensor(FILE *f, const mx_save *t, void *stage)
{
    size_t n = elements(t), size = types[t->as].size;
    if (t->as > MX_SAVE_F16) return fwrite(t->data, size, n, f) == n;
    float *wide = stage;
    uint16_t *narrow = (uint16_t *)(wide + STAGE_ELEMENTS);
    for (size_t at = 0; at < n;) {
        size_t k = n - at < STAGE_ELEMENTS ? n - at : STAGE_ELEMENTS;
        gather(t, at, k, wide);
        if (t->as == MX_SAVE_BF16)
            for (size_t i = 0; i < k; i++) narrow[i] = mx_f32_to_bf16(wide[i]);
        if (t->as == MX_SAVE_F16)
            for (size_t i = 0; i < k; i++) narrow[i] = mx_f32_to_f16(wide[i]);
        if (fwrite(t->as == MX_SAVE_F32 ? stage : (void *)narrow, size, k, f) != k) return false;
        at += k;
    }
    return true;
}

mx_status mx_safetensors_write(const char *path, const mx_save *tensors, int n, const char *const *metadata, int n_metadata,
                               mx_error *err)
{
    static const char spaces[64] = "                                                               ";
    mx_status st = MX_OK;
    FILE *f = NULL;
    char *header = make_header(tensors, n, metadata, n_metadata);
    void *stage = malloc(STAGE_ELEMENTS * (sizeof(float) + sizeof(uint16_t)));
    if (!header || !stage) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory to write it", path);
        goto done;
    }
    uint64_t len = strlen(header), padding = (64 - (8 + len) % 64) % 64, total = len + padding;
    unsigned char count[8];
    for (int i = 0; i < 8; i++) count[i] = (unsigned char)(total >> (8 * i));
    f = fopen(path, "wb");
    bool ok = f && fwrite(count, 8, 1, f) == 1 && fwrite(header, len, 1, f) == 1 && fwrite(spaces, 1, padding, f) == padding;
    for (int i = 0; ok && i < n; i++) ok = write_tensor(f, &tensors[i], stage);
    ok = ok && !fflush(f) && !fsync(fileno(f));
    int why = errno;
    if (f && fclose(f) && ok) ok = false, why = errno;
    if (!ok) {
        st = mx_fail(err, MX_ERR_IO, "%s: cannot be written: %s", path, strerror(why));
        unlink(path);
    }
done:
    free(stage);
    free(header);
    return st;
}
