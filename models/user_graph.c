/* user_graph.c - a store opened and closed, its types, its figures. */
#include "models/user_graph_internal.h"

#include "runtime/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

mx_user_graph_options mx_user_graph_defaults(void)
{
    return (mx_user_graph_options){.segment_bytes = 64 << 20, .merge_events = 1 << 20, .late_ms = 86400000};
}

/* ---- types ------------------------------------------------------------------------------- */

typedef struct type_record { int32_t subject, object; uint32_t flags; } type_record;

static bool name_sound(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (!(name[i] >= 'a' && name[i] <= 'z') && !(name[i] >= '0' && name[i] <= '9') && name[i] != '_' && name[i] != '-') return false;
    return len > 0 && len <= MX_TYPE_MOST;
}

static int32_t find_node_type(const mx_schema *s, const char *name)
{
    for (int32_t i = 0; i < s->node_types; i++)
        if (!strcmp(s->node_type[i], name)) return i;
    return -1;
}

static int32_t find_event_type(const mx_schema *s, const char *name)
{
    for (int32_t i = 0; i < s->event_types; i++)
        if (!strcmp(s->event_type[i].name, name)) return i;
    return -1;
}

static bool take_node_type(mx_schema *s, const char *name, size_t len)
{
    if (!name_sound(name, len) || s->node_types == MX_NODE_TYPES) return false;
    memcpy(s->node_type[s->node_types], name, len);
    s->node_type[s->node_types++][len] = 0;
    return true;
}

static bool take_event_type(mx_schema *s, const type_record *r, const char *name, size_t len)
{
    if (!name_sound(name, len) || s->event_types == MX_EVENT_TYPES) return false;
    if (r->subject < 0 || r->subject >= s->node_types || r->object < -1 || r->object >= s->node_types) return false;
    mx_event_type *t = &s->event_type[s->event_types++];
    *t = (mx_event_type){.subject = r->subject, .object = r->object, .flags = r->flags};
    memcpy(t->name, name, len);
    return true;
}

static mx_status append_one(mx_user_graph *g, const void *data, size_t size, mx_error *err)
{
    mx_record r = {.data = data, .size = size};
    MX_TRY(mx_event_log_append(g->log, &r, 1, err));
    return mx_event_log_sync(g->log, err);
}

static mx_status declare_node(mx_user_graph *g, const char *name, int32_t *type, mx_error *err)
{
    uint8_t text[1 + MX_TYPE_MOST] = {MX_RECORD_NODE_TYPE};
    size_t len = strnlen(name, MX_TYPE_MOST + 1);
    *type = find_node_type(&g->schema, name);
    if (*type >= 0) return MX_OK;
    if (!name_sound(name, len)) return mx_fail(err, MX_ERR_ARG, "node type \"%.40s\": a name is 1 to %d of a-z, 0-9, _ and -", name, MX_TYPE_MOST);
    if (g->schema.node_types == MX_NODE_TYPES) return mx_fail(err, MX_ERR_ARG, "node type %s: %d are declared already", name, MX_NODE_TYPES);
    memcpy(text + 1, name, len);
    MX_TRY(append_one(g, text, 1 + len, err));
    pthread_rwlock_wrlock(&g->lock);
    *type = g->schema.node_types;
    take_node_type(&g->schema, name, len);
    pthread_rwlock_unlock(&g->lock);
    return MX_OK;
}

static mx_status declare_event(mx_user_graph *g, const mx_event_type *t, int32_t *type, mx_error *err)
{
    type_record r = {t->subject, t->object, t->flags};
    uint8_t text[1 + sizeof r + MX_TYPE_MOST] = {MX_RECORD_EVENT_TYPE};
    size_t len = strnlen(t->name, sizeof t->name);
    *type = find_event_type(&g->schema, t->name);
    if (*type >= 0) {
        const mx_event_type *was = &g->schema.event_type[*type];
        if (was->subject == t->subject && was->object == t->object && was->flags == t->flags) return MX_OK;
        return mx_fail(err, MX_ERR_ARG, "event type %s is declared otherwise already", t->name);
    }
    if (!name_sound(t->name, len)) return mx_fail(err, MX_ERR_ARG, "event type \"%.40s\": a name is 1 to %d of a-z, 0-9, _ and -", t->name, MX_TYPE_MOST);
    if (g->schema.event_types == MX_EVENT_TYPES) return mx_fail(err, MX_ERR_ARG, "event type %s: %d are declared already", t->name, MX_EVENT_TYPES);
    if (t->subject < 0 || t->subject >= g->schema.node_types || t->object < -1 || t->object >= g->schema.node_types)
        return mx_fail(err, MX_ERR_ARG, "event type %s: its subject or object is no declared node type", t->name);
    memcpy(text + 1, &r, sizeof r);
    memcpy(text + 1 + sizeof r, t->name, len);
    MX_TRY(append_one(g, text, 1 + sizeof r + len, err));
    pthread_rwlock_wrlock(&g->lock);
    *type = g->schema.event_types;
    take_event_type(&g->schema, &r, t->name, len);
    pthread_rwlock_unlock(&g->lock);
    return MX_OK;
}

mx_status mx_user_graph_declare_node(mx_user_graph *g, const char *name, int32_t *type, mx_error *err)
{
    pthread_mutex_lock(&g->write);
    mx_status st = declare_node(g, name, type, err);
    pthread_mutex_unlock(&g->write);
    return st;
}

mx_status mx_user_graph_declare_event(mx_user_graph *g, const mx_event_type *t, int32_t *type, mx_error *err)
{
    pthread_mutex_lock(&g->write);
    mx_status st = declare_event(g, t, type, err);
    pthread_mutex_unlock(&g->write);
    return st;
}

mx_status mx_user_graph_declare_usual(mx_user_graph *g, mx_error *err)
{
    static const char *const nodes[] = {"user", "item", "community", "shop"};
    static const struct { const char *name; int32_t object; uint32_t flags; } events[] = {
        {"view", 1, 0}, {"cart", 1, 0}, {"buy", 1, MX_TYPE_PURCHASE}, {"rate", 1, 0}, {"review", 1, MX_TYPE_SOCIAL}, {"search", -1, 0},
        {"visit", 3, 0}, {"follow", 0, MX_TYPE_SOCIAL}, {"join", 2, MX_TYPE_SOCIAL}, {"share", -1, MX_TYPE_SOCIAL},
    };
    int32_t node[4], type;
    for (int i = 0; i < 4; i++) MX_TRY(mx_user_graph_declare_node(g, nodes[i], &node[i], err));
    for (size_t i = 0; i < sizeof events / sizeof *events; i++) {
        mx_event_type t = {.subject = node[0], .object = events[i].object < 0 ? -1 : node[events[i].object], .flags = events[i].flags};
        strcpy(t.name, events[i].name);
        MX_TRY(mx_user_graph_declare_event(g, &t, &type, err));
    }
    return MX_OK;
}

static pthread_rwlock_t *reading(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)&g->lock;
    pthread_rwlock_rdlock(lock);
    return lock;
}

int32_t mx_user_graph_node_types(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = reading(g);
    int32_t n = g->schema.node_types;
    pthread_rwlock_unlock(lock);
    return n;
}

int32_t mx_user_graph_event_types(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = reading(g);
    int32_t n = g->schema.event_types;
    pthread_rwlock_unlock(lock);
    return n;
}

int32_t mx_user_graph_find_node_type(const mx_user_graph *g, const char *name)
{
    pthread_rwlock_t *lock = reading(g);
    int32_t type = find_node_type(&g->schema, name);
    pthread_rwlock_unlock(lock);
    return type;
}

int32_t mx_user_graph_find_event_type(const mx_user_graph *g, const char *name)
{
    pthread_rwlock_t *lock = reading(g);
    int32_t type = find_event_type(&g->schema, name);
    pthread_rwlock_unlock(lock);
    return type;
}

bool mx_user_graph_node_type(const mx_user_graph *g, int32_t type, char name[MX_TYPE_MOST + 1])
{
    pthread_rwlock_t *lock = reading(g);
    bool there = type >= 0 && type < g->schema.node_types;
    if (there) strcpy(name, g->schema.node_type[type]);
    pthread_rwlock_unlock(lock);
    return there;
}

bool mx_user_graph_event_type(const mx_user_graph *g, int32_t type, mx_event_type *out)
{
    pthread_rwlock_t *lock = reading(g);
    bool there = type >= 0 && type < g->schema.event_types;
    if (there) *out = g->schema.event_type[type];
    pthread_rwlock_unlock(lock);
    return there;
}

/* ---- opening: the snapshot, then the log behind it -------------------------------------------- */

static mx_status replay_event(mx_user_graph *g, uint64_t at, const void *data, size_t size, mx_error *err)
{
    mx_event e;
    int32_t subject, object;
    if (!mx_event_decode(&g->schema, data, size, &e)) return mx_fail(err, MX_ERR_FORMAT, "event log: position %llu is no event of this store", (unsigned long long)at);
    MX_TRY(mx_fresh_reserve(g, 1, 2 * MX_KEY_MOST, err));
    uint64_t print = mx_id_print(g, e.id);
    if (mx_base_seen(g->base, print) || !mx_prints_add(&g->prints, print)) return MX_OK;
    mx_fresh_link(g, &e, at, print, &subject, &object);
    return MX_OK;
}

static mx_status replay(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err)
{
    mx_user_graph *g = ctx;
    const uint8_t *p = data;
    type_record r;
    mx_digest d;
    bool sound = false;
    if (!size) return MX_OK;
    switch (*p) {
    case MX_RECORD_EVENT: return replay_event(g, at, data, size, err);
    case MX_RECORD_NODE_TYPE: sound = take_node_type(&g->schema, (const char *)p + 1, size - 1); break;
    case MX_RECORD_EVENT_TYPE:
        sound = size > 1 + sizeof r;
        if (sound) {
            memcpy(&r, p + 1, sizeof r);
            sound = take_event_type(&g->schema, &r, (const char *)p + 1 + sizeof r, size - 1 - sizeof r);
        }
        break;
    case MX_RECORD_ERASED:
        sound = size == 1 + sizeof d + 8;
        if (!sound) break;
        memcpy(&d, p + 1, sizeof d);
        g->erasing = true;
        return mx_gone_add(g, &d, err);
    case MX_RECORD_SALT:
        sound = size == 1 + sizeof g->salt;
        if (sound) memcpy(g->salt, p + 1, sizeof g->salt);
        g->salted = sound;
        break;
    default: break;
    }
    return sound ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "event log: position %llu: a record of kind %u that is not understood", (unsigned long long)at, *p);
}

static mx_status open_base(mx_user_graph *g, mx_error *err)
{
    MX_TRY(mx_base_open(&g->base, g->folder, err));
    if (!g->base) return (g->base = mx_base_empty(err)) ? MX_OK : MX_ERR_NO_MEMORY;
    const mx_base_head *h = &g->base->head;
    g->schema = h->schema;
    g->watermark = h->watermark;
    g->newest_ms = h->newest_ms;
    memcpy(g->salt, h->salt, sizeof g->salt);
    g->salted = true;
    for (int32_t i = 0; i < h->erased; i++) MX_TRY(mx_gone_add(g, &g->base->gone[i], err));
    return MX_OK;
}

static mx_status add_salt(mx_user_graph *g, mx_error *err)
{
    uint8_t text[1 + sizeof g->salt] = {MX_RECORD_SALT};
    if (g->salted) return MX_OK;
    if (getrandom(g->salt, sizeof g->salt, 0) != (ssize_t)sizeof g->salt) return mx_fail(err, MX_ERR_IO, "no random bytes: %s", strerror(errno));
    memcpy(text + 1, g->salt, sizeof g->salt);
    g->salted = true;
    return append_one(g, text, sizeof text, err);
}

uint64_t mx_user_graph_print(const mx_user_graph *g)
{
    uint64_t h = 0xcbf29ce484222325u;                   /* FNV-1a */
    for (size_t i = 0; i < sizeof g->salt; i++) h = (h ^ g->salt[i]) * 0x100000001b3u;
    return h ? h : 1;
}

static mx_status lock_folder(mx_user_graph *g, mx_error *err)
{
    char path[MX_PATH];
    MX_TRY(mx_path_join(path, g->folder, "lock", err));
    g->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (g->lock_fd < 0) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    if (!flock(g->lock_fd, LOCK_EX | LOCK_NB)) return MX_OK;
    return errno == EWOULDBLOCK ? mx_fail(err, MX_ERR_STATE, "%s is open in another process", g->folder) : mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
}

/* ---- the merger -------------------------------------------------------------------------------- */

static bool merge_due(const mx_user_graph *g, uint32_t least)
{
    return g->n_fresh >= least && g->n_fresh >= g->opt.merge_events && g->n_fresh >= g->base->head.events / 4;
}

static void *merger(void *ctx)
{
    mx_user_graph *g = ctx;
    uint32_t least = 0;
    pthread_mutex_lock(&g->write);
    while (!g->stop) {
        if (!merge_due(g, least)) {
            pthread_cond_wait(&g->wake, &g->write);
            continue;
        }
        mx_error err = {0};
        pthread_mutex_unlock(&g->write);
        mx_status st = mx_user_graph_merge(g, &err);
        pthread_mutex_lock(&g->write);
        if (st) mx_log(MX_LOG_WARN, "graph", "merge: %s; tried again later", err.text);
        least = st ? g->n_fresh + g->n_fresh / 4 : 0;
    }
    pthread_mutex_unlock(&g->write);
    return NULL;
}

mx_status mx_user_graph_merge(mx_user_graph *g, mx_error *err)
{
    pthread_mutex_lock(&g->merging);
    mx_status st = mx_merge(g, NULL, 0, err);
    pthread_mutex_unlock(&g->merging);
    return st;
}

static mx_status check_options(const mx_user_graph_options *o, mx_error *err)
{
    if (o->segment_bytes < 4096 || o->segment_bytes > (int64_t)1 << 30) return mx_fail(err, MX_ERR_ARG, "segment_bytes %lld is not from 4096 to 2^30", (long long)o->segment_bytes);
    if (o->merge_events < 0 || o->merge_events > UINT32_MAX / 2) return mx_fail(err, MX_ERR_ARG, "merge_events %lld is not from 0 to 2^31", (long long)o->merge_events);
    return o->late_ms < 0 ? mx_fail(err, MX_ERR_ARG, "late_ms %lld is below 0", (long long)o->late_ms) : MX_OK;
}

mx_status mx_user_graph_open(mx_user_graph **out, const char *folder, const mx_user_graph_options *o, mx_error *err)
{
    mx_user_graph *g = calloc(1, sizeof *g);
    *out = NULL;
    if (!g) return mx_fail(err, MX_ERR_NO_MEMORY, "%s", folder);
    g->lock_fd = -1;
    g->opt = o ? *o : mx_user_graph_defaults();
    pthread_mutex_init(&g->merging, NULL);
    pthread_mutex_init(&g->write, NULL);
    pthread_cond_init(&g->wake, NULL);
    pthread_rwlockattr_t writer_first;
    pthread_rwlockattr_init(&writer_first);
    pthread_rwlockattr_setkind_np(&writer_first, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&g->lock, &writer_first);
    pthread_rwlockattr_destroy(&writer_first);
    mx_status st = check_options(&g->opt, err);
    if (!st) st = mx_path_join(g->folder, folder, ".", err);
    if (!st && mkdir(folder, 0700) && errno != EEXIST) st = mx_fail(err, MX_ERR_IO, "%s: %s", folder, strerror(errno));
    if (!st) st = lock_folder(g, err);
    if (!st) st = open_base(g, err);
    if (!st) st = mx_event_log_open(&g->log, g->folder, g->opt.segment_bytes, g->base->head.log_at, replay, g, err);
    if (!st) st = add_salt(g, err);
    if (!st && g->erasing) st = mx_erase_finish(g, err);
    if (!st && g->opt.merge_events) {
        g->merger_runs = !pthread_create(&g->merger, NULL, merger, g);
        if (!g->merger_runs) st = mx_fail(err, MX_ERR_NO_MEMORY, "the thread that merges");
    }
    if (st) mx_user_graph_close(g);
    else *out = g;
    return st;
}

void mx_user_graph_close(mx_user_graph *g)
{
    if (!g) return;
    if (g->merger_runs) {
        pthread_mutex_lock(&g->write);
        g->stop = true;
        pthread_cond_signal(&g->wake);
        pthread_mutex_unlock(&g->write);
        pthread_join(g->merger, NULL);
    }
    mx_event_log_close(g->log);
    mx_fresh_free(g);
    mx_base_close(g->base);
    free(g->encode);
    if (g->lock_fd >= 0) close(g->lock_fd);
    pthread_rwlock_destroy(&g->lock);
    pthread_cond_destroy(&g->wake);
    pthread_mutex_destroy(&g->write);
    pthread_mutex_destroy(&g->merging);
    free(g);
}

void mx_user_graph_statistics(const mx_user_graph *g, mx_user_graph_stats *out)
{
    pthread_rwlock_t *lock = reading(g);
    const mx_base_head *h = &g->base->head;
    size_t nodes = (size_t)h->nodes;
    *out = (mx_user_graph_stats){
        .watermark = g->watermark, .log_bytes = mx_event_log_end(g->log), .snapshot_bytes = h->size,
        .nodes = h->nodes + g->late.count, .events = (int64_t)h->events + g->n_fresh, .edges = (int64_t)h->edges + g->fresh_edges, .pending = g->n_fresh,
        .erased = g->n_gone, .merge_s = g->merge_s, .merges = g->merges, .cut_bytes = mx_event_log_cut(g->log),
    };
    out->edge_bytes = 12 * (size_t)h->events + 8 * (size_t)h->edges + 8 * (nodes + 1) + sizeof *g->fresh * (size_t)g->fresh_room + 8 * (size_t)g->heads;
    out->event_bytes = 8 * (size_t)h->events + 8 * h->seen_slots + 8 * g->prints.slots;
    out->node_bytes = 8 * (nodes + 1) + h->key_bytes + nodes + 4 * (size_t)h->key_slots + g->late.keys_room + 9 * (size_t)g->late.room + 4 * (size_t)g->late.slots;
    pthread_rwlock_unlock(lock);
}
