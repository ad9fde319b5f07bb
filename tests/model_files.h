/* model_files.h - small model files made by hand, right or wrong in any byte.
 *
 * A growing byte buffer with the words of GGUF and safetensors on top, and a
 * scratch folder below the build folder.  Header-only: each test that includes
 * it uses what it needs. */
#ifndef MX_MODEL_FILES_H
#define MX_MODEL_FILES_H

#include "tests/test.h"

#include <stdarg.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct bytes {
    uint8_t *data;
    size_t size, room;
} bytes;

static inline void put(bytes *b, const void *data, size_t n)
{
    if (b->room - b->size < n) {
        size_t room = 2 * (b->size + n) + 64;
        uint8_t *more = realloc(b->data, room);
        if (!more) {
            perror("model_files.h");
            exit(2);
        }
        b->data = more;
        b->room = room;
    }
    if (n) memcpy(b->data + b->size, data, n);
    b->size += n;
}

static inline void put_u8(bytes *b, uint8_t v)
{
    put(b, &v, sizeof v);
}
static inline void put_u32(bytes *b, uint32_t v)
{
    put(b, &v, sizeof v);
}
static inline void put_u64(bytes *b, uint64_t v)
{
    put(b, &v, sizeof v);
}
static inline void put_f32(bytes *b, float v)
{
    put(b, &v, sizeof v);
}
static inline void put_text(bytes *b, const char *s)
{
    put(b, s, strlen(s));
}
static inline void put_string(bytes *b, const char *s) /* GGUF's */
{
    put_u64(b, strlen(s));
    put_text(b, s);
}
static inline void put_padding(bytes *b, size_t alignment)
{
    while (b->size % alignment) put_u8(b, 0);
}
static inline void bytes_free(bytes *b)
{
    free(b->data);
    *b = (bytes){0};
}

/* ---- GGUF -------------------------------------------------------------------- */

enum { G_U32 = 4, G_I32 = 5, G_F32 = 6, G_BOOL = 7, G_STRING = 8, G_ARRAY = 9 };

static inline void gguf_header(bytes *b, uint32_t version, uint64_t n_tensors, uint64_t n_keys)
{
    put_text(b, "GGUF");
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_keys);
}
static inline void gguf_key(bytes *b, const char *key, uint32_t type)
{
    put_string(b, key);
    put_u32(b, type);
}
static inline void gguf_u32(bytes *b, const char *key, uint32_t v)
{
    gguf_key(b, key, G_U32);
    put_u32(b, v);
}
static inline void gguf_f32(bytes *b, const char *key, float v)
{
    gguf_key(b, key, G_F32);
    put_f32(b, v);
}
static inline void gguf_string(bytes *b, const char *key, const char *v)
{
    gguf_key(b, key, G_STRING);
    put_string(b, v);
}
/* rows 0: a vector */
static inline void gguf_tensor(bytes *b, const char *name, uint64_t rows, uint64_t cols, uint32_t type,
                               uint64_t offset)
{
    put_string(b, name);
    put_u32(b, rows ? 2 : 1);
    put_u64(b, cols);
    if (rows) put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

/* ---- safetensors -------------------------------------------------------------- */

static inline bytes safetensors(const char *header, size_t data_bytes)
{
    bytes b = {0};
    put_u64(&b, strlen(header));
    put_text(&b, header);
    for (size_t i = 0; i < data_bytes; i++) put_u8(&b, (uint8_t)i);
    return b;
}

/* ---- folders -------------------------------------------------------------------- */

typedef struct folder {
    char path[400];
} folder;

static inline folder folder_make(void)
{
    folder f;
    snprintf(f.path, sizeof f.path, "%s/scratch-XXXXXX", MX_BINARY_DIR);
    if (!mkdtemp(f.path)) {
        perror(f.path);
        exit(2);
    }
    return f;
}
/* A static buffer: good until the next call. */
static inline const char *folder_file(const folder *f, const char *name)
{
    static char path[700];
    snprintf(path, sizeof path, "%s/%s", f->path, name);
    return path;
}
static inline void folder_write(const folder *f, const char *name, const void *data, size_t n)
{
    FILE *file = fopen(folder_file(f, name), "wb");
    if (!file || fwrite(data, 1, n, file) != n || fclose(file)) {
        perror(name);
        exit(2);
    }
}
static inline void folder_text(const folder *f, const char *name, const char *text)
{
    folder_write(f, name, text, strlen(text));
}
/* The names it held, then itself. */
static inline void folder_remove(const folder *f, const char *const *names, size_t n)
{
    for (size_t i = 0; i < n; i++) unlink(folder_file(f, names[i]));
    rmdir(f->path);
}
#define FOLDER_REMOVE(f, ...)                                                                                        \
    do {                                                                                                             \
        static const char *const names_[] = {__VA_ARGS__};                                                           \
        folder_remove((f), names_, sizeof names_ / sizeof *names_);                                                  \
    } while (0)

#endif
