/* event_log.c - segments of checksummed records.
 *
 * A segment is HEAD bytes (magic, position it begins at) and records: size, CRC, how far back the
 * log was durable, payload.  The CRC covers all of that and the record's position, so bytes that
 * were copied from elsewhere (an event's text may quote a log) are no record.  A blanked record has a
 * payload of zeros; no other record begins with one. */
#include "models/event_log.h"

#include "models/snapshot.h"
#include "runtime/log.h"
#include "runtime/tensor.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#ifdef __SSE4_2__
#include <immintrin.h>
#endif

#define HEAD 16u
#define RECORD 12u                        /* bytes before a payload                  */
#define SLACK ((size_t)8 << 20)           /* an append over the segment's size       */
#define JOURNAL "blanking"
static const char magic[8] = "MERXLOG1";

typedef struct segment {
    uint64_t base;
    _Atomic size_t size;                  /* written so far                          */
    size_t   mapped;
    int      fd;
    uint8_t *map;
} segment;

/* Readers look at a table without a lock: one that grew out stays until close. */
typedef struct table { struct table *older; _Atomic int32_t count; int32_t room; segment *at[]; } table;

struct mx_event_log {
    char             folder[MX_PATH];
    int64_t          segment_bytes;
    _Atomic(table *) table;
    pthread_mutex_t  lock;
    pthread_cond_t   synced;
    uint64_t         end, durable, cut;
    bool             syncing, failed;
    uint8_t         *buffer;
    size_t           buffer_room;
};

/* ---- CRC32C ---------------------------------------------------------------------------- */

#ifdef __SSE4_2__
uint32_t mx_crc32c(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;
    uint64_t c = ~crc;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        c = _mm_crc32_u64(c, v);
    }
    for (; n; n--) c = _mm_crc32_u8((uint32_t)c, *p++);
    return ~(uint32_t)c;
}
#else
uint32_t mx_crc32c(uint32_t crc, const void *data, size_t n)
{
    const uint8_t *p = data;
    crc = ~crc;
    for (; n; n--) {
        crc ^= *p++;
        for (int i = 0; i < 8; i++) crc = crc >> 1 ^ (0x82f63b78u & -(crc & 1u));
    }
    return ~crc;
}
#endif

static uint32_t record_crc(uint64_t at, const uint8_t *record, size_t size)
{
    uint32_t c = mx_crc32c(0, &at, sizeof at);
    c = mx_crc32c(c, record, 4);
    c = mx_crc32c(c, record + 8, 4);
    return mx_crc32c(c, record + RECORD, size);
}

static uint32_t word(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* ---- segments ---------------------------------------------------------------------------- */

static mx_status io(const char *what, const char *path, mx_error *err)
{
    return mx_fail(err, MX_ERR_IO, "%s: %s: %s", path, what, strerror(errno));
}

static void segment_name(char to[32], uint64_t base) { snprintf(to, 32, "log-%016" PRIx64, base); }

static mx_status damaged(uint64_t base, uint64_t at, const char *why, mx_error *err)
{
    return mx_fail(err, MX_ERR_FORMAT, "event log: segment log-%016" PRIx64 ", offset %" PRIu64 ": %s", base, at - base, why);
}

static mx_status sync_folder(const char *folder, mx_error *err)
{
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return io("open", folder, err);
    mx_status st = fsync(fd) ? io("fsync", folder, err) : MX_OK;
    close(fd);
    return st;
}

static void segment_close(segment *s)
{
    if (!s) return;
    if (s->map) munmap(s->map, s->mapped);
    if (s->fd >= 0) close(s->fd);
    free(s);
}

static mx_status segment_open(segment **out, const mx_event_log *l, uint64_t base, bool create, mx_error *err)
{
    char name[32], path[MX_PATH];
    struct stat info;
    segment_name(name, base);
    MX_TRY(mx_path_join(path, l->folder, name, err));
    segment *s = calloc(1, sizeof *s);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "a segment of the event log");
    s->base = base;
    s->fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
    mx_status st = s->fd < 0 || fstat(s->fd, &info) ? io("open", path, err) : MX_OK;
    if (!st) {
        s->size = (size_t)info.st_size;
        s->mapped = (size_t)l->segment_bytes + SLACK;
        if (s->mapped < s->size) s->mapped = s->size;
        void *map = mmap(NULL, s->mapped, PROT_READ, MAP_SHARED, s->fd, 0);
        if (map == MAP_FAILED) st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: mmap: %s", path, strerror(errno));
        else s->map = map;
    }
    if (st) segment_close(s);
    else *out = s;
    return st;
}

static mx_status write_all(int fd, const void *data, size_t n, size_t at)
{
    const char *p = data;
    while (n) {
        ssize_t w = pwrite(fd, p, n, (off_t)at);
        if (w < 0 && errno == EINTR) continue;
        if (w <= 0) return MX_ERR_IO;
        p += w;
        at += (size_t)w;
        n -= (size_t)w;
    }
    return MX_OK;
}

static mx_status table_add(mx_event_log *l, segment *s, mx_error *err)
{
    table *t = atomic_load(&l->table);
    if (!t || t->count == t->room) {
        int32_t room = t ? 2 * t->room : 16;
        table *grown = malloc(sizeof *grown + (size_t)room * sizeof *grown->at);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "the event log's segments");
        grown->older = t;
        grown->room = room;
        if (t) memcpy(grown->at, t->at, (size_t)t->count * sizeof *t->at);
        grown->count = t ? t->count : 0;
        grown->at[grown->count++] = s;
        atomic_store(&l->table, grown);
        return MX_OK;
    }
    t->at[t->count] = s;
    t->count++;
    return MX_OK;
}

static segment *last_segment(const mx_event_log *l)
{
    table *t = atomic_load(&l->table);
    return t && t->count ? t->at[t->count - 1] : NULL;
}

/* A new, empty last segment; the one before is durable. */
static mx_status segment_begin(mx_event_log *l, uint64_t base, mx_error *err)
{
    uint8_t head[HEAD];
    segment *s = NULL;
    char name[32], path[MX_PATH];
    memcpy(head, magic, 8);
    memcpy(head + 8, &base, 8);
    MX_TRY(segment_open(&s, l, base, true, err));
    segment_name(name, base);
    mx_status st = mx_path_join(path, l->folder, name, err);
    if (!st && write_all(s->fd, head, HEAD, 0)) st = io("write", path, err);
    if (!st && fdatasync(s->fd)) st = io("fdatasync", path, err);
    if (!st) st = sync_folder(l->folder, err);
    if (!st) st = table_add(l, s, err);
    if (st) {
        unlink(path);
        segment_close(s);
        return st;
    }
    s->size = HEAD;
    l->end = base + HEAD;
    return MX_OK;
}

static segment *segment_of(const mx_event_log *l, uint64_t at)
{
    table *t = atomic_load(&l->table);
    int32_t lo = 0, hi = t ? t->count : 0;
    while (hi - lo > 1) {
        int32_t mid = (lo + hi) / 2;
        if (t->at[mid]->base <= at) lo = mid;
        else hi = mid;
    }
    return hi && t->at[lo]->base <= at ? t->at[lo] : NULL;
}

/* ---- reading -------------------------------------------------------------------------------- */

/* Is there a sound record at an offset?  *back: how far behind it the log was durable. */
static bool sound(const segment *s, size_t offset, size_t *size, uint32_t *back)
{
    if (offset + RECORD > s->size) return false;
    const uint8_t *r = s->map + offset;
    size_t n = word(r);
    if (!n || n > MX_RECORD_MOST || n > s->size - offset - RECORD) return false;
    if (record_crc(s->base + offset, r, n) != word(r + 4)) return false;
    *size = n;
    *back = word(r + 8);
    return true;
}

/* Does a sound record behind `offset` know that the log was durable beyond it? */
static bool was_acknowledged(const segment *s, size_t offset)
{
    size_t n;
    uint32_t back;
    for (size_t q = offset + 1; q + RECORD < s->size; q++) {
        if (!sound(s, q, &n, &back)) continue;
        if (back <= q && q - back > offset) return true;
        q += RECORD + n - 1;
    }
    return false;
}

typedef struct scanning {
    mx_status (*each)(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err);
    void *ctx;
} scanning;

static mx_status scan_segment(mx_event_log *l, segment *s, size_t offset, bool last, const scanning *k, mx_error *err)
{
    while (offset < s->size) {
        size_t n;
        uint32_t back;
        if (!sound(s, offset, &n, &back)) {
            if (!last) return damaged(s->base, s->base + offset, "a record does not match its checksum", err);
            if (was_acknowledged(s, offset)) return damaged(s->base, s->base + offset, "a record does not match its checksum, and records behind it are whole", err);
            l->cut = s->size - offset;
            mx_log(MX_LOG_WARN, "event log", "segment log-%016" PRIx64 ": %" PRIu64 " bytes at offset %zu were being written when the program ended; cut off",
                   s->base, l->cut, offset);
            s->size = offset;
            if (ftruncate(s->fd, (off_t)offset)) return io("ftruncate", l->folder, err);
            return MX_OK;
        }
        const uint8_t *data = s->map + offset + RECORD;
        MX_TRY(k->each(k->ctx, s->base + offset, data, *data ? n : 0, err));
        offset += RECORD + n;
    }
    return MX_OK;
}

static int by_base(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static mx_status list_segments(const char *folder, uint64_t **out, int32_t *n, mx_error *err)
{
    DIR *d = opendir(folder);
    int32_t room = 0;
    if (!d) return io("open", folder, err);
    mx_status st = MX_OK;
    for (struct dirent *e; !st && (e = readdir(d));) {
        uint64_t base;
        char name[32];
        if (sscanf(e->d_name, "log-%16" SCNx64, &base) != 1) continue;
        segment_name(name, base);
        if (strcmp(name, e->d_name)) continue;
        if (*n == room) {
            uint64_t *grown = realloc(*out, sizeof **out * (size_t)(room = room ? 2 * room : 16));
            if (!grown) {
                st = mx_fail(err, MX_ERR_NO_MEMORY, "the event log's segments");
                break;
            }
            *out = grown;
        }
        (*out)[(*n)++] = base;
    }
    closedir(d);
    if (*n) qsort(*out, (size_t)*n, sizeof **out, by_base);
    return st;
}

static bool head_is(const segment *s)
{
    return s->size >= HEAD && !memcmp(s->map, magic, 8) && !memcmp(s->map + 8, &s->base, 8);
}

/* The last segment may have been in the making when the program ended. */
static mx_status repair_head(segment *s, mx_error *err)
{
    uint8_t head[HEAD];
    if (s->size > HEAD) return damaged(s->base, s->base, "its head is not that of a segment", err);
    memcpy(head, magic, 8);
    memcpy(head + 8, &s->base, 8);
    if (write_all(s->fd, head, HEAD, 0)) return io("write", "event log", err);
    s->size = HEAD;
    return MX_OK;
}

static mx_status open_segments(mx_event_log *l, mx_error *err)
{
    uint64_t *base = NULL;
    int32_t n = 0;
    mx_status st = list_segments(l->folder, &base, &n, err);
    for (int32_t i = 0; !st && i < n; i++) {
        segment *s = NULL;
        st = segment_open(&s, l, base[i], false, err);
        if (!st && !head_is(s)) st = i == n - 1 ? repair_head(s, err) : damaged(base[i], base[i], "its head is not that of a segment", err);
        if (!st && i < n - 1 && base[i] + s->size != base[i + 1])
            st = damaged(base[i], base[i] + s->size, "the next segment does not follow: one is missing, or this one was cut", err);
        if (!st && i == 0 && base[0]) st = damaged(base[0], base[0], "the segments before it are missing", err);
        if (!st) st = table_add(l, s, err);
        if (st) segment_close(s);
    }
    free(base);
    return st;
}

static mx_status scan(mx_event_log *l, uint64_t from, const scanning *k, mx_error *err)
{
    table *t = atomic_load(&l->table);
    for (int32_t i = 0; t && i < t->count; i++) {
        segment *s = t->at[i];
        if (i < t->count - 1 && s->base + s->size <= from) continue;
        size_t offset = from > s->base + HEAD ? (size_t)(from - s->base) : HEAD;
        if (offset > s->size) return damaged(s->base, s->base + s->size, "the log ends before what the snapshot has seen of it", err);
        MX_TRY(scan_segment(l, s, offset, i == t->count - 1, k, err));
    }
    segment *s = last_segment(l);
    if (!s) return segment_begin(l, 0, err);
    l->end = s->base + s->size;
    return fdatasync(s->fd) ? io("fdatasync", l->folder, err) : MX_OK;
}

static mx_status finish_blanking(mx_event_log *l, mx_error *err);

mx_status mx_event_log_open(mx_event_log **out, const char *folder, int64_t segment_bytes, uint64_t from,
                            mx_status (*each)(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err), void *ctx, mx_error *err)
{
    mx_event_log *l = calloc(1, sizeof *l);
    scanning k = {each, ctx};
    *out = NULL;
    if (!l) return mx_fail(err, MX_ERR_NO_MEMORY, "the event log");
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->synced, NULL);
    l->segment_bytes = segment_bytes;
    mx_status st = strlen(folder) < sizeof l->folder ? MX_OK : mx_fail(err, MX_ERR_ARG, "event log: the folder's name is too long");
    if (!st) {
        strcpy(l->folder, folder);
        st = open_segments(l, err);
    }
    if (!st) st = finish_blanking(l, err);
    if (!st) st = scan(l, from, &k, err);
    l->durable = l->end;
    if (st) mx_event_log_close(l);
    else *out = l;
    return st;
}

void mx_event_log_close(mx_event_log *l)
{
    if (!l) return;
    table *t = atomic_load(&l->table);
    for (int32_t i = 0; t && i < t->count; i++) segment_close(t->at[i]);
    while (t) {
        table *older = t->older;
        free(t);
        t = older;
    }
    pthread_cond_destroy(&l->synced);
    pthread_mutex_destroy(&l->lock);
    free(l->buffer);
    free(l);
}

mx_status mx_event_log_read(const mx_event_log *l, uint64_t at, const void **data, size_t *size, mx_error *err)
{
    const segment *s = segment_of(l, at);
    uint32_t back;
    if (!s || !sound(s, (size_t)(at - s->base), size, &back)) return damaged(s ? s->base : 0, at, "a record does not match its checksum", err);
    const uint8_t *p = s->map + (at - s->base) + RECORD;
    *data = p;
    if (!*p) *size = 0;
    return MX_OK;
}

mx_status mx_event_log_next(const mx_event_log *l, uint64_t *at, uint64_t *next, const void **data, size_t *size, bool *more, mx_error *err)
{
    const segment *s = segment_of(l, *at);
    *more = false;
    if (s && *at >= s->base + s->size) s = segment_of(l, *at + HEAD) == s ? NULL : segment_of(l, *at + HEAD);
    if (!s) return MX_OK;
    if (*at < s->base + HEAD) *at = s->base + HEAD;
    if (*at >= s->base + s->size) return MX_OK;
    MX_TRY(mx_event_log_read(l, *at, data, size, err));
    *next = *at + RECORD + word(s->map + (*at - s->base));
    *more = true;
    return MX_OK;
}

/* ---- writing -------------------------------------------------------------------------------------- */

static mx_status need(mx_event_log *l, size_t bytes, mx_error *err)
{
    if (bytes <= l->buffer_room) return MX_OK;
    uint8_t *grown = realloc(l->buffer, bytes + bytes / 2);
    if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "event log: %zu bytes to write", bytes);
    l->buffer = grown;
    l->buffer_room = bytes + bytes / 2;
    return MX_OK;
}

static void lay_out(mx_event_log *l, mx_record *r, int64_t n)
{
    uint8_t *p = l->buffer;
    uint64_t at = l->end;
    for (int64_t i = 0; i < n; i++) {
        uint64_t far = at - l->durable;
        uint32_t size = (uint32_t)r[i].size, back = far < UINT32_MAX ? (uint32_t)far : UINT32_MAX;
        memcpy(p, &size, 4);
        memcpy(p + 8, &back, 4);
        memcpy(p + RECORD, r[i].data, size);
        uint32_t crc = record_crc(at, p, size);
        memcpy(p + 4, &crc, 4);
        r[i].at = at;
        at += RECORD + size;
        p += RECORD + size;
    }
}

static mx_status append(mx_event_log *l, mx_record *r, int64_t n, size_t bytes, mx_error *err)
{
    segment *s = last_segment(l);
    if (l->failed) return mx_fail(err, MX_ERR_IO, "event log: an earlier write failed; open the store again");
    MX_TRY(need(l, bytes, err));
    if (s->size > HEAD && s->size + bytes > (size_t)l->segment_bytes) {
        if (fdatasync(s->fd)) {
            l->failed = true;
            return io("fdatasync", l->folder, err);
        }
        l->durable = l->end;
        MX_TRY(segment_begin(l, l->end, err));
        s = last_segment(l);
    }
    lay_out(l, r, n);
    if (write_all(s->fd, l->buffer, bytes, s->size)) {
        mx_status st = io("write", l->folder, err);
        if (ftruncate(s->fd, (off_t)s->size)) l->failed = true;
        return st;
    }
    s->size += bytes;
    l->end += bytes;
    return MX_OK;
}

mx_status mx_event_log_append(mx_event_log *l, mx_record *r, int64_t n, mx_error *err)
{
    size_t bytes = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!r[i].size || r[i].size > MX_RECORD_MOST || !*(const uint8_t *)r[i].data)
            return mx_fail(err, MX_ERR_ARG, "event log: a record of %zu bytes", r[i].size);
        if (!mx_add_size(bytes, r[i].size + RECORD, &bytes) || bytes > SLACK) return mx_fail(err, MX_ERR_ARG, "event log: more than %zu bytes in one append", SLACK);
    }
    pthread_mutex_lock(&l->lock);
    mx_status st = n ? append(l, r, n, bytes, err) : MX_OK;
    pthread_mutex_unlock(&l->lock);
    return st;
}

mx_status mx_event_log_sync(mx_event_log *l, mx_error *err)
{
    pthread_mutex_lock(&l->lock);
    uint64_t want = l->end;
    while (l->durable < want && !l->failed) {
        if (l->syncing) {
            pthread_cond_wait(&l->synced, &l->lock);
            continue;
        }
        uint64_t end = l->end;
        int fd = last_segment(l)->fd;
        l->syncing = true;
        pthread_mutex_unlock(&l->lock);
        int bad = fdatasync(fd);
        pthread_mutex_lock(&l->lock);
        l->syncing = false;
        if (bad) l->failed = true;
        else if (end > l->durable) l->durable = end;
        pthread_cond_broadcast(&l->synced);
    }
    bool ok = l->durable >= want;
    pthread_mutex_unlock(&l->lock);
    return ok ? MX_OK : mx_fail(err, MX_ERR_IO, "%s: fdatasync failed; open the store again", l->folder);
}

/* ---- blanking ------------------------------------------------------------------------------------------ */

static mx_status blank_one(segment *s, uint64_t at, uint8_t *zeros, int64_t *bytes, mx_error *err)
{
    size_t offset = (size_t)(at - s->base);
    const uint8_t *r = s->map + offset;
    if (offset + RECORD > s->size || !word(r) || word(r) > s->size - offset - RECORD || word(r) > MX_RECORD_MOST)
        return damaged(s->base, at, "no record to blank", err);
    uint32_t n = word(r);
    memset(zeros, 0, RECORD + n);
    memcpy(zeros, r, RECORD);
    uint32_t crc = record_crc(at, zeros, n);
    memcpy(zeros + 4, &crc, 4);
    *bytes += n;
    return write_all(s->fd, zeros, RECORD + n, offset) ? io("write", "event log", err) : MX_OK;
}

static mx_status blank_all(mx_event_log *l, const uint64_t *at, int64_t n, int64_t *bytes, mx_error *err)
{
    uint8_t *zeros = malloc(RECORD + MX_RECORD_MOST);
    mx_status st = zeros ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "blanking records");
    for (int64_t i = 0; !st && i < n; i++) {
        segment *s = segment_of(l, at[i]);
        st = s ? blank_one(s, at[i], zeros, bytes, err) : damaged(0, at[i], "no record to blank", err);
        bool left = i == n - 1 || segment_of(l, at[i + 1]) != s;
        if (!st && left && fdatasync(s->fd)) st = io("fdatasync", l->folder, err);
    }
    free(zeros);
    return st;
}

/* The journal: count, positions, CRC.  While it is there, what it names is not yet surely blank. */
mx_status mx_event_log_blank(mx_event_log *l, const uint64_t *at, int64_t n, int64_t *bytes, mx_error *err)
{
    char made[MX_PATH], path[MX_PATH];
    if (!n) return MX_OK;
    size_t size = 8 * (size_t)(n + 1) + 4;
    uint8_t *text = malloc(size);
    if (!text) return mx_fail(err, MX_ERR_NO_MEMORY, "blanking %lld records", (long long)n);
    memcpy(text, &n, 8);
    memcpy(text + 8, at, 8 * (size_t)n);
    uint32_t crc = mx_crc32c(0, text, size - 4);
    memcpy(text + size - 4, &crc, 4);
    mx_status st = mx_path_join(made, l->folder, "." JOURNAL, err);
    if (!st) st = mx_path_join(path, l->folder, JOURNAL, err);
    if (!st) st = mx_write_file(made, (const char *)text, size, err);
    if (!st && rename(made, path)) st = io("rename", path, err);
    if (!st) st = sync_folder(l->folder, err);
    free(text);
    if (!st) st = blank_all(l, at, n, bytes, err);
    if (!st && unlink(path)) st = io("unlink", path, err);
    return st ? st : sync_folder(l->folder, err);
}

static mx_status finish_blanking(mx_event_log *l, mx_error *err)
{
    char path[MX_PATH];
    struct stat info;
    int64_t n = 0, bytes = 0;
    MX_TRY(mx_path_join(path, l->folder, JOURNAL, err));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? MX_OK : io("open", path, err);
    mx_status st = fstat(fd, &info) ? io("stat", path, err) : MX_OK;
    size_t size = st ? 0 : (size_t)info.st_size;
    uint8_t *text = malloc(size + 1);
    if (!st && !text) st = mx_fail(err, MX_ERR_NO_MEMORY, "%s", path);
    if (!st && pread(fd, text, size, 0) != (ssize_t)size) st = io("read", path, err);
    if (!st && size >= 12) memcpy(&n, text, 8);
    if (!st && (size < 12 || (uint64_t)n != (size - 12) / 8 || size != 8 * (size_t)(n + 1) + 4 || mx_crc32c(0, text, size - 4) != word(text + size - 4)))
        st = mx_fail(err, MX_ERR_FORMAT, "%s is damaged", path);
    uint64_t *at = st ? NULL : malloc(8 * (size_t)n + 1);
    if (!st && !at) st = mx_fail(err, MX_ERR_NO_MEMORY, "%s", path);
    if (!st) {
        memcpy(at, text + 8, 8 * (size_t)n);
        st = blank_all(l, at, n, &bytes, err);
    }
    if (!st && unlink(path)) st = io("unlink", path, err);
    free(at);
    free(text);
    close(fd);
    return st;
}

/* ---- figures --------------------------------------------------------------------------------------------- */

uint64_t mx_event_log_end(const mx_event_log *l)
{
    pthread_mutex_lock((pthread_mutex_t *)&l->lock);
    uint64_t end = l->end;
    pthread_mutex_unlock((pthread_mutex_t *)&l->lock);
    return end;
}

uint64_t mx_event_log_cut(const mx_event_log *l) { return l->cut; }
