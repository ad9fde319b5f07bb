/* user_graph_put.c - events come in: checked, appended to the log, linked, flushed. */
#include "models/user_graph_internal.h"

#include <stdlib.h>
#include <stdio.h>
#include <string.h>

enum { CHUNK = 2048 };
#define CHUNK_BYTES ((size_t)4 << 20)

typedef struct chunk {
    mx_record record[CHUNK];
    uint64_t  print[CHUNK];
    int32_t   event[CHUNK];
    int32_t   count;
    size_t    bytes;
    int64_t   newest_ms;                  /* of the store and of what the chunk has so far */
} chunk;

static mx_put_code judge(const mx_user_graph *g, int64_t newest_ms, const mx_event *e, int64_t now_ms, char reason[128])
{
    reason[0] = 0;
    if (!mx_event_check(&g->schema, e, now_ms, reason)) return MX_PUT_MALFORMED;
    const mx_event_type *k = &g->schema.event_type[e->type];
    bool subject = mx_gone_has(g, k->subject, e->subject);
    if (subject || (k->object >= 0 && mx_gone_has(g, k->object, e->object))) {
        snprintf(reason, 128, "its %s was erased", subject ? "subject" : "object");
        return MX_PUT_ERASED;
    }
    return e->ts_ms < newest_ms - g->opt.late_ms ? MX_PUT_LATE : MX_PUT_ACCEPTED;
}

static void tally(mx_put_ack *a, mx_put_code code)
{
    a->accepted += code == MX_PUT_ACCEPTED || code == MX_PUT_LATE;
    a->late += code == MX_PUT_LATE;
    a->duplicates += code == MX_PUT_DUPLICATE;
    a->malformed += code == MX_PUT_MALFORMED;
    a->erased += code == MX_PUT_ERASED;
}

static mx_status room_for(mx_user_graph *g, size_t bytes, mx_error *err)
{
    if (bytes <= g->encode_room) return MX_OK;
    uint8_t *grown = realloc(g->encode, bytes + bytes / 2);
    if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu bytes of events", bytes);
    g->encode = grown;
    g->encode_room = bytes + bytes / 2;
    return MX_OK;
}

/* Takes events from *i on until the chunk is full. */
static mx_status fill(mx_user_graph *g, chunk *c, const mx_event *e, int32_t n, int32_t *i, int64_t now_ms, mx_put_result *result, mx_put_ack *ack, mx_error *err)
{
    c->count = 0;
    c->bytes = 0;
    c->newest_ms = g->newest_ms;
    int32_t most = n - *i < CHUNK ? n - *i : CHUNK;
    pthread_rwlock_wrlock(&g->lock);
    mx_status st = mx_fresh_reserve(g, most, (size_t)most * 2 * MX_KEY_MOST, err);
    pthread_rwlock_unlock(&g->lock);
    for (; !st && *i < n && c->count < CHUNK; ++*i) {
        mx_put_result ignored, *r = result ? &result[*i] : &ignored;
        r->subject = r->object = -1;
        r->code = judge(g, c->newest_ms, &e[*i], now_ms, r->reason);
        bool good = r->code <= MX_PUT_LATE;
        uint64_t print = good ? mx_id_print(g, e[*i].id) : 0;
        size_t size = good ? mx_event_record_size(&e[*i]) : 0;
        if (good && c->count && c->bytes + size > CHUNK_BYTES) break;
        if (good && (mx_base_seen(g->base, print) || !mx_prints_add(&g->prints, print))) r->code = MX_PUT_DUPLICATE;
        tally(ack, r->code);
        if (r->code > MX_PUT_LATE) continue;
        st = room_for(g, c->bytes + size, err);
        if (st) {
            mx_prints_remove(&g->prints, print);
            break;
        }
        mx_event_encode(&e[*i], g->encode + c->bytes);
        c->record[c->count] = (mx_record){.size = size};
        c->print[c->count] = print;
        c->event[c->count++] = *i;
        c->bytes += size;
        if (e[*i].ts_ms > c->newest_ms) c->newest_ms = e[*i].ts_ms;
    }
    return st;
}

static mx_status append(mx_user_graph *g, chunk *c, mx_error *err)
{
    size_t at = 0;
    for (int32_t i = 0; i < c->count; i++) {
        c->record[i].data = g->encode + at;
        at += c->record[i].size;
    }
    return mx_event_log_append(g->log, c->record, c->count, err);
}

static mx_status put_chunk(mx_user_graph *g, chunk *c, const mx_event *e, int32_t n, int32_t *i, int64_t now_ms, mx_put_result *result, mx_put_ack *ack,
                           mx_error *err)
{
    mx_status st = fill(g, c, e, n, i, now_ms, result, ack, err);
    if (!st) st = append(g, c, err);
    if (st) {
        for (int32_t k = 0; k < c->count; k++) mx_prints_remove(&g->prints, c->print[k]);
        return st;
    }
    pthread_rwlock_wrlock(&g->lock);
    for (int32_t k = 0; k < c->count; k++) {
        int32_t subject, object;
        mx_fresh_link(g, &e[c->event[k]], c->record[k].at, c->print[k], &subject, &object);
        if (!result) continue;
        result[c->event[k]].subject = subject;
        result[c->event[k]].object = object;
    }
    pthread_rwlock_unlock(&g->lock);
    return MX_OK;
}

mx_status mx_user_graph_put(mx_user_graph *g, const mx_event *e, int32_t n, int64_t now_ms, mx_put_result *result, mx_put_ack *ack, mx_error *err)
{
    mx_status st = MX_OK;
    *ack = (mx_put_ack){0};
    chunk *c = malloc(sizeof *c);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "%d events", n);
    for (int32_t i = 0; !st && i < n;) {
        pthread_mutex_lock(&g->write);
        st = put_chunk(g, c, e, n, &i, now_ms, result, ack, err);
        if (g->opt.merge_events && g->n_fresh >= g->opt.merge_events) pthread_cond_signal(&g->wake);
        ack->watermark = g->watermark;
        pthread_mutex_unlock(&g->write);
    }
    free(c);
    if (!n) ack->watermark = mx_user_graph_watermark(g);
    return st ? st : mx_event_log_sync(g->log, err);
}

uint64_t mx_user_graph_watermark(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)&g->lock;
    pthread_rwlock_rdlock(lock);
    uint64_t w = g->watermark;
    pthread_rwlock_unlock(lock);
    return w;
}

int64_t mx_user_graph_newest_ms(const mx_user_graph *g)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)&g->lock;
    pthread_rwlock_rdlock(lock);
    int64_t ms = g->newest_ms;
    pthread_rwlock_unlock(lock);
    return ms;
}
