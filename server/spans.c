/* spans.c - a ring of spans, and the thread that writes them. */
#include "server/spans.h"

#include "runtime/log.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RING = 4096, LINE = 64, NAP_MS = 250 };    /* LINE: spans of one line */

struct mx_spans {
    FILE     *file;
    double    share;
    mx_span  *ring;
    uint64_t  first, next;          /* under lock: ring[first % RING] is the oldest, next - first of them */
    bool      stop, failing;
    atomic_uint_least64_t written, dropped;
    pthread_mutex_t lock;
    pthread_cond_t  news;
    pthread_t thread;
    bool      started;
};

static void put_text(FILE *out, const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') fprintf(out, "\\%c", c);
        else if (c < 0x20) fprintf(out, "\\u%04x", c);
        else fputc(c, out);
    }
}

static void put_attribute(FILE *out, const char *key, const char *value)
{
    if (!*value) return;
    fprintf(out, ",{\"key\":\"%s\",\"value\":{\"stringValue\":\"", key);
    put_text(out, value);
    fputs("\"}}", out);
}

static void put_times(FILE *out, uint64_t from, uint64_t to)
{
    fprintf(out, "\"startTimeUnixNano\":\"%" PRIu64 "\",\"endTimeUnixNano\":\"%" PRIu64 "\"", from, to);
}

/* The turn's id is the call's, turned over: unlike it, and nothing to draw. */
static void put_turn(FILE *out, const mx_span *s)
{
    char id[17];
    for (int i = 0; i < 16; i++) id[i] = s->id[15 - i];
    id[16] = 0;
    if (!strcmp(id, s->id)) id[0] = id[0] == '1' ? '2' : '1';
    fprintf(out, ",{\"traceId\":\"%s\",\"spanId\":\"%s\",\"parentSpanId\":\"%s\",\"name\":\"turn\",\"kind\":1,", s->trace, id, s->id);
    put_times(out, s->turn_from_ns, s->turn_to_ns);
    fputc('}', out);
}

static void put_span(FILE *out, const mx_span *s)
{
    const char *slash = strchr(s->method, '/');
    int service = slash ? (int)(slash - s->method) : (int)strlen(s->method);
    fprintf(out, "{\"traceId\":\"%s\",\"spanId\":\"%s\",", s->trace, s->id);
    if (s->parent[0]) fprintf(out, "\"parentSpanId\":\"%s\",", s->parent);
    fprintf(out, "\"name\":\"%s\",\"kind\":2,", s->method);
    put_times(out, s->from_ns, s->to_ns);
    fprintf(out, ",\"attributes\":[{\"key\":\"rpc.system\",\"value\":{\"stringValue\":\"grpc\"}},{\"key\":\"rpc.service\",\"value\":{\"stringValue\":\"%.*s\"}},"
            "{\"key\":\"rpc.method\",\"value\":{\"stringValue\":\"%s\"}},{\"key\":\"rpc.grpc.status_code\",\"value\":{\"intValue\":\"%d\"}}",
            service, s->method, slash ? slash + 1 : "", s->code);
    put_attribute(out, "merx.tenant", s->tenant);
    put_attribute(out, "merx.request_id", s->request_id);
    fputs("],\"status\":{", out);
    if (s->code) {
        fputs("\"code\":2,\"message\":\"", out);
        put_text(out, s->text);
        fputc('"', out);
    }
    fputs("}}", out);
    if (s->turn_from_ns) put_turn(out, s);
}

static void write_line(mx_spans *s, const mx_span *spans, int n)
{
    FILE *out = s->file;
    fputs("{\"resourceSpans\":[{\"resource\":{\"attributes\":[{\"key\":\"service.name\",\"value\":{\"stringValue\":\"merx\"}}]},"
          "\"scopeSpans\":[{\"scope\":{\"name\":\"merx\"},\"spans\":[", out);
    for (int i = 0; i < n; i++) {
        if (i) fputc(',', out);
        put_span(out, &spans[i]);
    }
    fputs("]}]}]}\n", out);
    bool bad = fflush(out) || ferror(out);
    if (bad && !s->failing) mx_log(MX_LOG_ERROR, "spans", "spans cannot be written (%s); they are dropped and counted", strerror(errno));
    s->failing = bad;
    clearerr(out);
    atomic_fetch_add(bad ? &s->dropped : &s->written, (uint64_t)n);
}

static void *write_all(void *arg)
{
    mx_spans *s = arg;
    static const long nap_ns = NAP_MS * 1000000L;
    mx_span batch[LINE];
    pthread_mutex_lock(&s->lock);
    while (!s->stop || s->next != s->first) {
        if (s->next == s->first) {
            struct timespec until;
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += nap_ns;
            if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
            pthread_cond_timedwait(&s->news, &s->lock, &until);
            continue;
        }
        int n = 0;
        for (; n < LINE && s->first != s->next; n++, s->first++) batch[n] = s->ring[s->first % RING];
        pthread_mutex_unlock(&s->lock);
        write_line(s, batch, n);
        pthread_mutex_lock(&s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

mx_status mx_spans_open(mx_spans **out, const char *file, double share, mx_error *err)
{
    pthread_condattr_t attr;
    *out = NULL;
    mx_spans *s = calloc(1, sizeof *s);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "spans");
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->news, &attr);
    pthread_condattr_destroy(&attr);
    s->share = share;
    s->ring = calloc(RING, sizeof *s->ring);
    s->file = fopen(file, "ae");
    mx_status st = s->ring ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "spans");
    if (!st && !s->file) st = mx_fail(err, MX_ERR_IO, "spans %s: %s", file, strerror(errno));
    if (!st && pthread_create(&s->thread, NULL, write_all, s)) st = mx_fail(err, MX_ERR_NO_MEMORY, "spans: a thread could not start");
    s->started = !st;
    *out = s;
    if (st) {
        mx_spans_close(s);
        *out = NULL;
    }
    return st;
}

void mx_spans_close(mx_spans *s)
{
    if (!s) return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->news);
    pthread_mutex_unlock(&s->lock);
    if (s->started) pthread_join(s->thread, NULL);
    if (s->file) fclose(s->file);
    pthread_cond_destroy(&s->news);
    pthread_mutex_destroy(&s->lock);
    free(s->ring);
    free(s);
}

bool mx_spans_wanted(const mx_spans *s, uint64_t chance)
{
    return s && (double)(chance >> 11) * 0x1p-53 < s->share;
}

/* Nobody is woken: the writer comes by itself, and a call is not to pay for it. */
void mx_spans_put(mx_spans *s, const mx_span *span)
{
    pthread_mutex_lock(&s->lock);
    bool room = s->next - s->first < RING;
    if (room) s->ring[s->next++ % RING] = *span;
    pthread_mutex_unlock(&s->lock);
    if (!room) atomic_fetch_add(&s->dropped, 1);
}

uint64_t mx_spans_written(const mx_spans *s) { return atomic_load(&((mx_spans *)(uintptr_t)s)->written); }
uint64_t mx_spans_dropped(const mx_spans *s) { return atomic_load(&((mx_spans *)(uintptr_t)s)->dropped); }
