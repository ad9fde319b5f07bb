/* user_graph_base.c - a snapshot: one file, mapped, its arrays one behind the other. */
#include "models/user_graph_internal.h"

#include "runtime/log.h"
#include "runtime/tensor.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define SNAPSHOT "snapshot"
#define MAKING ".snapshot"
#define HEAD_BYTES 8192u
static const char magic[8] = "MERXGRF1";

static mx_status io(const char *what, const char *path, mx_error *err) { return mx_fail(err, MX_ERR_IO, "%s: %s: %s", path, what, strerror(errno)); }

mx_base *mx_base_empty(mx_error *err)
{
    static const uint32_t none[1];
    static uint64_t no_key[1];
    mx_base *b = calloc(1, sizeof *b);
    if (!b) {
        mx_fail(err, MX_ERR_NO_MEMORY, "an empty graph");
        return NULL;
    }
    b->key_begin = no_key;
    b->out_begin = b->in_begin = (uint32_t *)none;
    return b;
}

void mx_base_close(mx_base *b)
{
    if (!b) return;
    if (b->map) munmap(b->map, b->mapped);
    free(b);
}

/* Where the arrays stand; the file's size in the end.  The sizes fit: nodes < 2^27, counts < 2^32. */
static size_t lay_out(mx_base *b)
{
    const mx_base_head *h = &b->head;
    size_t at = HEAD_BYTES, nodes = (size_t)h->nodes;
    char *map = b->map;
    const struct { void *array; size_t bytes; } part[] = {
        {&b->key_begin, 8 * (nodes + 1)}, {&b->keys, h->key_bytes}, {&b->node_type, nodes}, {&b->key_slot, 4 * (size_t)h->key_slots},
        {&b->out_begin, 4 * (nodes + 1)}, {&b->in_begin, 4 * (nodes + 1)}, {&b->out_other, 4 * (size_t)h->events}, {&b->out_time, 4 * (size_t)h->events},
        {&b->out_weight, 4 * (size_t)h->events}, {&b->out_at, 8 * (size_t)h->events}, {&b->in_other, 4 * (size_t)h->edges},
        {&b->in_ref, 4 * (size_t)h->edges}, {&b->seen, 8 * h->seen_slots}, {&b->gone, sizeof(mx_digest) * (size_t)h->erased},
    };
    for (size_t i = 0; i < sizeof part / sizeof *part; i++) {
        char *p = map ? map + at : NULL;
        memcpy(part[i].array, &p, sizeof p);
        at += (part[i].bytes + 63) / 64 * 64;
    }
    return at;
}

static uint32_t head_crc(const mx_base_head *h)
{
    size_t skip = offsetof(mx_base_head, crc_body);
    return mx_crc32c(0, (const char *)h + skip, sizeof *h - skip);
}

static bool head_sound(const mx_base_head *h, size_t size)
{
    mx_base b = {.head = *h};
    if (memcmp(h->magic, magic, 8) || h->crc_head != head_crc(h)) return false;
    return h->nodes >= 0 && h->nodes <= MX_NODE_MOST && h->erased >= 0 && h->key_bytes < size && h->seen_slots < size && h->size == size && lay_out(&b) == size;
}

static mx_status map_file(mx_base **out, int fd, const char *path, size_t size, bool fill, mx_error *err)
{
    mx_base *b = calloc(1, sizeof *b);
    void *map = b ? mmap(NULL, size, fill ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (map == MAP_FAILED) {
        free(b);
        return mx_fail(err, MX_ERR_NO_MEMORY, "%s: %zu bytes cannot be mapped", path, size);
    }
    b->map = map;
    b->mapped = size;
    *out = b;
    return MX_OK;
}

mx_status mx_base_open(mx_base **out, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    struct stat info;
    mx_base *b = NULL;
    *out = NULL;
    MX_TRY(mx_path_join(path, folder, SNAPSHOT, err));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? MX_OK : io("open", path, err);
    mx_status st = fstat(fd, &info) ? io("stat", path, err) : MX_OK;
    bool whole = !st && (size_t)info.st_size >= HEAD_BYTES;
    if (whole) st = map_file(&b, fd, path, (size_t)info.st_size, false, err);
    close(fd);
    if (!st && whole) {
        memcpy(&b->head, b->map, sizeof b->head);
        whole = head_sound(&b->head, b->mapped) && mx_crc32c(0, (char *)b->map + HEAD_BYTES, b->mapped - HEAD_BYTES) == b->head.crc_body;
        if (whole) lay_out(b);
    }
    if (st || whole) {
        *out = b;
        return st;
    }
    mx_log(MX_LOG_WARN, "graph", "%s is damaged; the graph is made again from its log", path);
    mx_base_close(b);
    return MX_OK;
}

mx_status mx_base_create(mx_base **out, const char *folder, const mx_base_head *head, mx_error *err)
{
    char path[MX_PATH];
    mx_base sizes = {.head = *head};
    size_t size = lay_out(&sizes);
    _Static_assert(sizeof(mx_base_head) <= HEAD_BYTES, "the head has its pages");
    MX_TRY(mx_path_join(path, folder, MAKING, err));
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0) return io("open", path, err);
    errno = posix_fallocate(fd, 0, (off_t)size);
    mx_status st = errno ? io("no room", path, err) : MX_OK;
    if (!st) st = map_file(out, fd, path, size, true, err);
    close(fd);
    if (st) {
        unlink(path);
        return st;
    }
    (*out)->head = *head;
    (*out)->head.size = size;
    memcpy((*out)->head.magic, magic, 8);
    lay_out(*out);
    return MX_OK;
}

mx_status mx_base_publish(mx_base *b, const char *folder, mx_error *err)
{
    char from[MX_PATH], to[MX_PATH];
    b->head.crc_body = mx_crc32c(0, (char *)b->map + HEAD_BYTES, b->mapped - HEAD_BYTES);
    b->head.crc_head = head_crc(&b->head);
    memcpy(b->map, &b->head, sizeof b->head);
    MX_TRY(mx_path_join(from, folder, MAKING, err));
    MX_TRY(mx_path_join(to, folder, SNAPSHOT, err));
    int fd = open(from, O_RDONLY | O_CLOEXEC), dir = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    mx_status st = fd < 0 || dir < 0 || fsync(fd) || rename(from, to) || fsync(dir) ? io("write", to, err) : MX_OK;
    if (fd >= 0) close(fd);
    if (dir >= 0) close(dir);
    return st;
}

void mx_base_abandon(mx_base *b, const char *folder)
{
    char path[MX_PATH];
    mx_base_close(b);
    if (!mx_path_join(path, folder, MAKING, NULL)) unlink(path);
}

/* ---- looking up ----------------------------------------------------------------------------- */

__extension__ typedef unsigned __int128 wide;

int32_t mx_base_find(const mx_base *b, int32_t type, const char *key, size_t len, uint64_t hash)
{
    if (!b->head.key_slots) return -1;
    uint32_t mask = b->head.key_slots - 1;
    for (uint32_t i = (uint32_t)hash & mask; b->key_slot[i]; i = (i + 1) & mask) {
        int32_t node = (int32_t)b->key_slot[i] - 1;
        const char *k = b->keys + b->key_begin[node];
        if (b->node_type[node] == type && b->key_begin[node + 1] - b->key_begin[node] == len && !memcmp(k, key, len)) return node;
    }
    return -1;
}

uint64_t mx_seen_home(uint64_t print, uint64_t range) { return (uint64_t)((wide)print * range >> 64); }

bool mx_base_seen(const mx_base *b, uint64_t print)
{
    if (!b->head.seen) return false;
    for (uint64_t i = mx_seen_home(print, b->head.seen_range); i < b->head.seen_slots && b->seen[i]; i++)
        if (b->seen[i] >= print) return b->seen[i] == print;
    return false;
}
