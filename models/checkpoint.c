/* checkpoint.c - opening model files: mapping, names, and what both formats share. */
#include "models/checkpoint_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct mx_name_chunk {
    mx_name_chunk *next;
    size_t used, room;
    char text[];
};

/* ---- memory that grows ------------------------------------------------------ */

const char *mx_checkpoint_keep(mx_checkpoint *c, const char *name, size_t len)
{
    mx_name_chunk *chunk = c->chunks;
    size_t need;
    if (!mx_add_size(len, 1, &need)) return NULL;
    if (!chunk || chunk->room - chunk->used < need) {
        size_t room = need > 16384 ? need : 16384, bytes;
        if (!mx_add_size(sizeof *chunk, room, &bytes)) return NULL;
        chunk = malloc(bytes);
        if (!chunk) return NULL;
        *chunk = (mx_name_chunk){.next = c->chunks, .room = room};
        c->chunks = chunk;
    }
    char *copy = chunk->text + chunk->used;
    memcpy(copy, name, len);
    copy[len] = '\0';
    chunk->used += need;
    return copy;
}

mx_blob *mx_checkpoint_add(mx_checkpoint *c)
{
    if (c->n_blobs == c->blob_room) {
        if (c->blob_room > INT_MAX / 2) return NULL;
        int room = c->blob_room ? 2 * c->blob_room : 64;
        mx_blob *more = reallocarray(c->blobs, (size_t)room, sizeof *more);
        if (!more) return NULL;
        c->blobs = more;
        c->blob_room = room;
    }
    mx_blob *b = &c->blobs[c->n_blobs++];
    *b = (mx_blob){0};
    return b;
}

/* ---- names -------------------------------------------------------------------- */

static uint32_t hash_name(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u; /* FNV-1a */
    for (; *name; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
    return (uint32_t)(h ^ (h >> 32));
}

static const char *record_name(const void *records, size_t stride, uint32_t i)
{
    const char *name;
    memcpy(&name, (const char *)records + stride * i, sizeof name);
    return name;
}

mx_status mx_name_index_build(mx_name_index *index, const void *records, int n, size_t stride, int *twice)
{
    *twice = -1;
    uint32_t room = 16;
    while (room < (uint32_t)n * 2 && room < 1u << 31) room *= 2;
    uint32_t *slot = calloc(room, sizeof *slot);
    if (!slot) return MX_ERR_NO_MEMORY;
    for (uint32_t i = 0; i < (uint32_t)n && *twice < 0; i++) {
        const char *name = record_name(records, stride, i);
        uint32_t at = hash_name(name) & (room - 1);
        for (; slot[at]; at = (at + 1) & (room - 1)) {
            if (strcmp(record_name(records, stride, slot[at] - 1), name) == 0) *twice = (int)i;
        }
        slot[at] = i + 1;
    }
    index->slot = slot;
    index->mask = room - 1;
    return MX_OK;
}

int mx_name_index_find(const mx_name_index *index, const void *records, size_t stride, const char *name)
{
    if (!index->slot) return -1;
    for (uint32_t at = hash_name(name) & index->mask; index->slot[at]; at = (at + 1) & index->mask) {
        uint32_t i = index->slot[at] - 1;
        if (strcmp(record_name(records, stride, i), name) == 0) return (int)i;
    }
    return -1;
}

/* ---- shapes ------------------------------------------------------------------- */

bool mx_blob_set_shape(mx_blob *b, const uint64_t *dims, size_t n, uint64_t *elements)
{
    int64_t rows = 1, folded = 1, all;
    for (size_t i = 0; i < n; i++) {
        if (dims[i] > INT64_MAX) return false;
        if (i + 1 < n && __builtin_mul_overflow(rows, (int64_t)dims[i], &rows)) return false;
        if (i + 4 <= n && __builtin_mul_overflow(folded, (int64_t)dims[i], &folded)) return false;
    }
    b->rows = rows;
    b->cols = n ? (int64_t)dims[n - 1] : 1;
    if (__builtin_mul_overflow(b->rows, b->cols, &all)) return false;
    b->n_dims = n > 4 ? 4 : (int)n;
    for (int i = 0; i < b->n_dims; i++) b->dims[i] = (int64_t)dims[n - (size_t)b->n_dims + (size_t)i];
    if (n > 4) b->dims[0] = folded;
    if (n == 0) {
        b->n_dims = 1;
        b->dims[0] = 1;
    }
    *elements = (uint64_t)all;
    return true;
}

static int by_offset(const void *x, const void *y)
{
    const mx_blob *a = *(const mx_blob *const *)x, *b = *(const mx_blob *const *)y;
    return (a->offset > b->offset) - (a->offset < b->offset);
}

mx_status mx_checkpoint_check_overlap(const mx_checkpoint *c, int first, mx_error *err)
{
    size_t n = 0;
    const mx_blob **order = malloc(sizeof *order * ((size_t)(c->n_blobs - first) + 1));
    if (!order) return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    for (int i = first; i < c->n_blobs; i++) {
        if (c->blobs[i].size) order[n++] = &c->blobs[i];
    }
    qsort(order, n, sizeof *order, by_offset);
    mx_status st = MX_OK;
    for (size_t i = 1; i < n && !st; i++) {
        const mx_blob *a = order[i - 1], *b = order[i];
        if (b->offset - a->offset >= a->size) continue;
        st = mx_fail(err, MX_ERR_FORMAT, "%s: offset %llu: tensors %.80s and %.80s overlap", b->file,
                     (unsigned long long)b->offset, a->name, b->name);
    }
    free(order);
    return st;
}

/* ---- files -------------------------------------------------------------------- */

/* Opened so that a pipe or a device in the file's place cannot make us wait. */
static mx_status open_regular(const char *path, int *fd, struct stat *info, mx_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0 || fstat(*fd, info) < 0) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    if (S_ISDIR(info->st_mode)) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(EISDIR));
    if (!S_ISREG(info->st_mode)) return mx_fail(err, MX_ERR_IO, "%s: not a regular file", path);
    return MX_OK;
}

/* The mapping is private and read-only.  Should somebody truncate the file
 * while it is mapped, reading past the new end raises SIGBUS: a model folder is
 * replaced by renaming a new one into its place, never by writing into it. */
static mx_status map_file(mx_mapping *m, const char *path, mx_error *err)
{
    int fd = -1;
    struct stat info;
    mx_status st;
    MX_TRY_GOTO(st, open_regular(path, &fd, &info, err), done);
    if (info.st_size == 0) {
        st = mx_fail(err, MX_ERR_FORMAT, "%s: offset 0: the file is empty", path);
        goto done;
    }
    m->path = strdup(path);
    if (!m->path) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
        goto done;
    }
    void *data = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        st = mx_fail(err, MX_ERR_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        goto done;
    }
    madvise(data, (size_t)info.st_size, MADV_WILLNEED); /* a hint; no harm when refused */
    m->data = data;
    m->size = (size_t)info.st_size;
    m->mapped = true;
done:
    if (fd >= 0) close(fd);
    return st;
}

static mx_mapping *add_file(mx_checkpoint *c, mx_error *err)
{
    mx_mapping *more = reallocarray(c->files, (size_t)c->n_files + 1, sizeof *more);
    if (!more) {
        mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
        return NULL;
    }
    c->files = more;
    c->files[c->n_files] = (mx_mapping){0};
    return &c->files[c->n_files++];
}

mx_status mx_checkpoint_map(mx_checkpoint *c, const char *path, mx_error *err)
{
    mx_mapping *m = add_file(c, err);
    return m ? map_file(m, path, err) : MX_ERR_NO_MEMORY;
}

mx_status mx_read_file(const char *path, size_t most, char **out, size_t *len, mx_error *err)
{
    int fd = -1;
    struct stat info;
    char *text = NULL;
    size_t used = 0, room;
    mx_status st;
    *out = NULL;
    *len = 0;
    MX_TRY_GOTO(st, open_regular(path, &fd, &info, err), done);
    if ((uint64_t)info.st_size > most || !mx_add_size((size_t)info.st_size, 1, &room)) {
        st = mx_fail(err, MX_ERR_FORMAT, "%s: %lld bytes, at most %zu are allowed", path, (long long)info.st_size,
                     most);
        goto done;
    }
    text = malloc(room);
    if (!text) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
        goto done;
    }
    while (used < room - 1) {
        ssize_t got = read(fd, text + used, room - 1 - used);
        if (got == 0) break;
        if (got > 0) {
            used += (size_t)got;
        } else if (errno != EINTR) {
            st = mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
            goto done;
        }
    }
    text[used] = '\0';
    *out = text;
    *len = used;
    text = NULL;
done:
    free(text);
    if (fd >= 0) close(fd);
    return st;
}

/* ---- open and close ----------------------------------------------------------- */

static mx_status finish(mx_checkpoint *c, mx_error *err)
{
    int twice;
    if (mx_name_index_build(&c->blob_index, c->blobs, c->n_blobs, sizeof *c->blobs, &twice)) {
        return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    }
    if (twice >= 0) {
        return mx_fail(err, MX_ERR_FORMAT, "%s: offset %llu: tensor %.100s is listed twice", c->blobs[twice].file,
                       (unsigned long long)c->blobs[twice].offset, c->blobs[twice].name);
    }
    return MX_OK;
}

static mx_status parse_one(mx_checkpoint *c, mx_error *err)
{
    const mx_mapping *m = &c->files[0];
    c->gguf = m->size >= 4 && memcmp(m->data, "GGUF", 4) == 0;
    return c->gguf ? mx_gguf_parse(c, m, err) : mx_safetensors_parse(c, m, err);
}

/* transformers' order: the single file, then the index. */
static mx_status open_folder(mx_checkpoint *c, const char *folder, mx_error *err)
{
    char *single = NULL, *index = NULL;
    mx_status st;
    if (asprintf(&single, "%s/model.safetensors", folder) < 0) single = NULL;
    if (asprintf(&index, "%s/model.safetensors.index.json", folder) < 0) index = NULL;
    if (!single || !index) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    } else if (access(single, F_OK) == 0) {
        st = mx_checkpoint_map(c, single, err);
        if (!st) st = parse_one(c, err);
    } else if (access(index, F_OK) == 0) {
        st = mx_safetensors_open_shards(c, folder, index, err);
    } else {
        st = mx_fail(err, MX_ERR_IO, "%s: holds neither model.safetensors nor model.safetensors.index.json", folder);
    }
    free(index);
    free(single);
    return st;
}

mx_status mx_checkpoint_open(mx_checkpoint **out, const char *path, mx_error *err)
{
    struct stat info;
    mx_status st;
    *out = NULL;
    if (stat(path, &info) < 0) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    mx_checkpoint *c = calloc(1, sizeof *c);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    if (S_ISDIR(info.st_mode)) {
        st = open_folder(c, path, err);
    } else {
        st = mx_checkpoint_map(c, path, err);
        if (!st) st = parse_one(c, err);
    }
    if (!st) st = finish(c, err);
    if (st) {
        mx_checkpoint_close(c);
        c = NULL;
    }
    *out = c;
    return st;
}

mx_status mx_checkpoint_open_memory(mx_checkpoint **out, const void *data, size_t size, const char *name,
                                    mx_error *err)
{
    *out = NULL;
    mx_checkpoint *c = calloc(1, sizeof *c);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    mx_status st = MX_ERR_NO_MEMORY;
    mx_mapping *m = add_file(c, err);
    if (m) {
        *m = (mx_mapping){.path = strdup(name), .data = data, .size = size};
        st = m->path ? parse_one(c, err) : mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    }
    if (!st) st = finish(c, err);
    if (st) {
        mx_checkpoint_close(c);
        c = NULL;
    }
    *out = c;
    return st;
}

void mx_checkpoint_close(mx_checkpoint *c)
{
    if (!c) return;
    mx_gguf_free(c);
    free(c->blob_index.slot);
    free(c->blobs);
    while (c->chunks) {
        mx_name_chunk *next = c->chunks->next;
        free(c->chunks);
        c->chunks = next;
    }
    for (int i = 0; i < c->n_files; i++) {
        if (c->files[i].mapped) munmap((void *)(uintptr_t)c->files[i].data, c->files[i].size);
        free(c->files[i].path);
    }
    free(c->files);
    free(c);
}

int mx_checkpoint_count(const mx_checkpoint *c)
{
    return c->n_blobs;
}

const mx_blob *mx_checkpoint_at(const mx_checkpoint *c, int i)
{
    return i >= 0 && i < c->n_blobs ? &c->blobs[i] : NULL;
}

const mx_blob *mx_checkpoint_find(const mx_checkpoint *c, const char *name)
{
    int i = mx_name_index_find(&c->blob_index, c->blobs, sizeof *c->blobs, name);
    return i < 0 ? NULL : &c->blobs[i];
}

bool mx_checkpoint_is_gguf(const mx_checkpoint *c)
{
    return c->gguf;
}
