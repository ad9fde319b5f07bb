/* text_store.c - a log of rows, and where each event's stands. */
#include "models/text_store.h"

#include "models/event_log.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SEGMENT ((int64_t)64 << 20)

typedef struct head { char what[8]; uint64_t print; int32_t dim, zero; } head;
typedef struct record { uint32_t flags; float positive; uint64_t event; int32_t subject, object; } record;      /* the vector behind it */
enum { HAS_VECTOR = 1, FELT = 2, IS_ROW = 4 };      /* a log's record begins with a byte that is not 0 */
typedef struct place { uint64_t event, at; int32_t subject, object; } place;      /* event 0: free; at 0: gone */

struct mx_text_store {
    pthread_mutex_t lock;
    mx_event_log   *log;
    place          *slot;
    int64_t         room, used, rows;
    uint64_t        print, first;     /* first: where the head stands                       */
    int32_t         dim;
    bool            known;            /* the head was read                                  */
    bool            other;            /* ... and is another encoder's                       */
    bool            readers_only;
};

uint64_t mx_text_event(const char *id)
{
    uint64_t h = 0xcbf29ce484222325u;                   /* FNV-1a */
    for (; *id; id++) h = (h ^ (unsigned char)*id) * 0x100000001b3u;
    return h ? h : 1;
}

/* ---- the index --------------------------------------------------------------------------- */

static place *slot_of(const mx_text_store *t, uint64_t event)
{
    uint64_t at = event * 0x9e3779b97f4a7c15u >> 20 & (uint64_t)(t->room - 1);
    while (t->slot[at].event && t->slot[at].event != event) at = (at + 1) & (uint64_t)(t->room - 1);
    return &t->slot[at];
}

static bool grow(mx_text_store *t)
{
    if (4 * (t->used + 1) <= 3 * t->room) return true;
    place *old = t->slot;
    int64_t was = t->room, room = was ? 2 * was : 1024;
    place *fresh = calloc((size_t)room, sizeof *fresh);
    if (!fresh) return false;
    t->slot = fresh, t->room = room;
    for (int64_t i = 0; i < was; i++)
        if (old[i].event) *slot_of(t, old[i].event) = old[i];
    free(old);
    return true;
}

static bool point(mx_text_store *t, const record *r, uint64_t at)
{
    if (!grow(t)) return false;
    place *p = slot_of(t, r->event);
    t->used += !p->event;
    t->rows += !p->event || !p->at;
    *p = (place){r->event, at, r->subject, r->object};
    return true;
}

/* ---- opening ------------------------------------------------------------------------------ */

static mx_status take(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err)
{
    mx_text_store *t = ctx;
    record r;
    if (!size || t->other) return MX_OK;
    if (!t->known) {
        head h;
        if (size != sizeof h) return mx_fail(err, MX_ERR_FORMAT, "texts' vectors: the log does not begin with its head");
        memcpy(&h, data, sizeof h);
        if (memcmp(h.what, "mxtexts1", 8) || h.dim < 0 || h.dim > 65536) return mx_fail(err, MX_ERR_FORMAT, "texts' vectors: the log's head is not one");
        t->other = !t->readers_only && (h.print != t->print || h.dim != t->dim);
        t->known = true;
        if (t->readers_only) t->print = h.print, t->dim = h.dim;
        return MX_OK;
    }
    memcpy(&r, data, size < sizeof r ? size : sizeof r);
    if (size != sizeof r + (r.flags & HAS_VECTOR ? 4 * (size_t)t->dim : 0)) return mx_fail(err, MX_ERR_FORMAT, "texts' vectors: a row of %zu bytes", size);
    return point(t, &r, at) ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "texts' vectors");
}

static mx_status clear_folder(const char *folder, mx_error *err)
{
    char path[4096];
    DIR *d = opendir(folder);
    if (!d) return mx_fail(err, MX_ERR_IO, "%s: %s", folder, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.' && (!e->d_name[1] || (e->d_name[1] == '.' && !e->d_name[2]))) continue;
        snprintf(path, sizeof path, "%s/%.255s", folder, e->d_name);
        if (unlink(path) && errno != ENOENT) mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    }
    closedir(d);
    return MX_OK;
}

static mx_status append(mx_text_store *t, const void *data, size_t size, uint64_t *at, mx_error *err)
{
    mx_record r = {data, size, 0};
    MX_TRY(mx_event_log_append(t->log, &r, 1, err));
    *at = r.at;
    return MX_OK;
}

static mx_status open_log(mx_text_store *t, const char *folder, mx_error *err)
{
    head h = {"", t->print, t->dim, 0};
    memcpy(h.what, "mxtexts1", 8);
    if (mkdir(folder, 0777) && errno != EEXIST) return mx_fail(err, MX_ERR_IO, "%s: %s", folder, strerror(errno));
    MX_TRY(mx_event_log_open(&t->log, folder, SEGMENT, 0, take, t, err));
    if (t->other) {
        mx_event_log_close(t->log);
        t->log = NULL;
        t->known = t->other = false;
        MX_TRY(clear_folder(folder, err));
        MX_TRY(mx_event_log_open(&t->log, folder, SEGMENT, 0, take, t, err));
    }
    return t->known || t->readers_only ? MX_OK : append(t, &h, sizeof h, &t->first, err);
}

static mx_status blank(mx_text_store *t, bool (*gone)(const place *p, const void *ctx), const void *ctx, int64_t *rows, mx_error *err)
{
    int64_t n = 0, bytes = 0;
    uint64_t *at = malloc((size_t)t->rows * sizeof *at + sizeof *at);
    if (!at) return mx_fail(err, MX_ERR_NO_MEMORY, "texts' vectors");
    for (int64_t i = 0; i < t->room; i++)
        if (t->slot[i].event && t->slot[i].at && gone(&t->slot[i], ctx)) at[n++] = t->slot[i].at;
    mx_status st = n ? mx_event_log_blank(t->log, at, n, &bytes, err) : MX_OK;
    for (int64_t i = 0; !st && n && i < t->room; i++)
        if (t->slot[i].event && t->slot[i].at && gone(&t->slot[i], ctx)) t->slot[i].at = 0, t->rows--;
    if (!st) *rows += n;
    free(at);
    return st;
}

static bool is_no_node(const place *p, const void *graph)
{
    int32_t type;
    char key[MX_KEY_MOST + 1];
    return !mx_user_graph_node(graph, p->subject, &type, key) || (p->object >= 0 && !mx_user_graph_node(graph, p->object, &type, key));
}

mx_status mx_text_store_open(mx_text_store **out, const char *folder, uint64_t print, int32_t dim, const mx_user_graph *graph, mx_error *err)
{
    int64_t rows = 0;
    *out = NULL;
    mx_text_store *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "texts' vectors");
    pthread_mutex_init(&t->lock, NULL);
    t->print = print, t->dim = dim;
    t->readers_only = !print;
    mx_status st = open_log(t, folder, err);
    if (!st) st = blank(t, is_no_node, graph, &rows, err);
    if (st) mx_text_store_close(t);
    else *out = t;
    return st;
}

void mx_text_store_close(mx_text_store *t)
{
    if (!t) return;
    if (t->log && !t->readers_only) mx_event_log_sync(t->log, NULL);
    mx_event_log_close(t->log);
    pthread_mutex_destroy(&t->lock);
    free(t->slot);
    free(t);
}

int32_t mx_text_store_dim(const mx_text_store *t) { return t->dim; }
uint64_t mx_text_store_print(const mx_text_store *t) { return t->print; }

int64_t mx_text_store_rows(const mx_text_store *t)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&t->lock;
    pthread_mutex_lock(lock);
    int64_t n = t->rows;
    pthread_mutex_unlock(lock);
    return n;
}

/* ---- rows ----------------------------------------------------------------------------------- */

bool mx_text_store_get(const mx_text_store *t, uint64_t event, mx_text_row *row, float *vector)
{
    pthread_mutex_t *lock = (pthread_mutex_t *)&t->lock;
    const void *data;
    size_t size;
    record r;
    pthread_mutex_lock(lock);
    const place *p = t->room ? slot_of(t, event) : NULL;
    bool there = p && p->event && p->at && !mx_event_log_read(t->log, p->at, &data, &size, NULL) && size >= sizeof r;
    if (there) {
        memcpy(&r, data, sizeof r);
        *row = (mx_text_row){event, r.subject, r.object, (r.flags & HAS_VECTOR) != 0, (r.flags & FELT) != 0, r.positive};
        if (vector && row->has_vector) memcpy(vector, (const char *)data + sizeof r, 4 * (size_t)t->dim);
    }
    pthread_mutex_unlock(lock);
    return there;
}

mx_status mx_text_store_put(mx_text_store *t, const mx_text_row *row, const float *vector, mx_error *err)
{
    record r = {IS_ROW | (row->has_vector ? HAS_VECTOR : 0u) | (row->felt ? FELT : 0u), row->positive, row->event, row->subject, row->object};
    size_t floats = row->has_vector ? (size_t)t->dim : 0;
    uint64_t at;
    if (t->readers_only) return mx_fail(err, MX_ERR_STATE, "texts' vectors: no encoder is told, so none are taken in");
    uint8_t *bytes = malloc(sizeof r + 4 * floats);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a text's vector");
    memcpy(bytes, &r, sizeof r);
    if (floats) memcpy(bytes + sizeof r, vector, 4 * floats);
    pthread_mutex_lock(&t->lock);
    const place *p = t->room ? slot_of(t, row->event) : NULL;
    uint64_t old = p && p->event ? p->at : 0;
    int64_t blanked = 0;
    mx_status st = append(t, bytes, sizeof r + 4 * floats, &at, err);
    if (!st && !point(t, &r, at)) st = mx_fail(err, MX_ERR_NO_MEMORY, "texts' vectors");
    if (!st && old) st = mx_event_log_blank(t->log, &old, 1, &blanked, err);      /* what no index leads to, nobody could erase */
    pthread_mutex_unlock(&t->lock);
    free(bytes);
    return st;
}

mx_status mx_text_store_sync(mx_text_store *t, mx_error *err) { return t->readers_only ? MX_OK : mx_event_log_sync(t->log, err); }

static bool is_of(const place *p, const void *node) { return p->subject == *(const int32_t *)node || p->object == *(const int32_t *)node; }

mx_status mx_text_store_erase(mx_text_store *t, int32_t node, int64_t *rows, mx_error *err)
{
    pthread_mutex_lock(&t->lock);
    mx_status st = blank(t, is_of, &node, rows, err);
    pthread_mutex_unlock(&t->lock);
    return st;
}
