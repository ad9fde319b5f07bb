/* rpc_meta.c - what stands around a call's message: its caller's token, its id, its
 * trace; and what is told of it at its end.
 *
 * A trace is W3C's (Trace Context, section 3.2): "00-<trace id>-<span id>-<flags>".  The
 * call keeps the trace id and flags and has a span id of its own; logs and the
 * answer's metadata carry that. */
#include <grpc/grpc.h>
#include <grpc/slice.h>

#include "server/rpc_core.h"

#include "runtime/log.h"
#include "server/spans.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { TRACE = 55 };                  /* bytes of a traceparent of version 00 */

static inline bool is_key(const grpc_metadata *m, const char *key)
{
    size_t n = strlen(key);
    return GRPC_SLICE_LENGTH(m->key) == n && memcmp(GRPC_SLICE_START_PTR(m->key), key, n) == 0;
}

/* splitmix64 (Steele et al. 2014) over time and address: unlike each other, not secret. */
static uint64_t unlike(const mx_call *c)
{
    static atomic_uint_least64_t calls;
    uint64_t z = c->accepted_ns + (uint64_t)(uintptr_t)c + atomic_fetch_add(&calls, 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static bool good_trace(const char *t, size_t len)
{
    static const uint8_t dashes[] = {2, 35, 52};
    bool trace = false, span = false;
    if (len != TRACE || memcmp(t, "00", 2) != 0) return false;
    for (size_t i = 0, d = 0; i < TRACE; i++) {
        if (d < 3 && i == dashes[d]) {
            if (t[i] != '-') return false;
            d++;
            continue;
        }
        if (!isdigit((unsigned char)t[i]) && !(t[i] >= 'a' && t[i] <= 'f')) return false;
        trace |= i > 2 && i < 35 && t[i] != '0';
        span |= i > 35 && i < 52 && t[i] != '0';
    }
    return trace && span;             /* all zeros are no ids */
}

/* Sixteen digits.  (printf takes a microsecond when a call is alone and finds nothing of it in the caches.) */
static void put_hex(char *to, uint64_t id)
{
    for (int i = 15; i >= 0; i--, id >>= 4) to[i] = "0123456789abcdef"[id & 15];
}

static void keep_trace(mx_call *c, const char *t, size_t len)
{
    if (!good_trace(t, len)) return;
    uint64_t span = unlike(c);
    memcpy(c->trace, t, TRACE);
    put_hex(c->trace + 36, span ? span : 1);
    c->trace[TRACE] = 0;
    memcpy(c->parent, t + 36, 16);
    c->parent[16] = 0;
}

/* Who came with a trace has decided whether it is recorded (W3C's flag "sampled"); others get one by chance. */
static void choose_trace(mx_call *c)
{
    const mx_spans *spans = c->worker->server->opt.spans;
    if (!spans) return;
    if (c->trace[0]) {
        c->traced = c->trace[54] & 1;        /* a hex digit's lowest bit: 1, 3, ... 9, b, d, f */
        if (c->trace[54] >= 'a') c->traced = !c->traced;
        return;
    }
    uint64_t a = unlike(c);
    if (!mx_spans_wanted(spans, a)) return;
    memcpy(c->trace, "00-................................-................-01", TRACE + 1);
    put_hex(c->trace + 3, a ? a : 1);
    put_hex(c->trace + 19, unlike(c));
    put_hex(c->trace + 36, unlike(c) | 1);
    c->traced = true;
}

/* Ids come back in metadata and logs: what is not printable ASCII is not kept. */
static void keep_id(mx_call *c, const char *t, size_t len)
{
    if (!len || len >= sizeof c->request_id) return;
    for (size_t i = 0; i < len; i++)
        if (t[i] <= ' ' || t[i] > '~') return;
    memcpy(c->request_id, t, len);
    c->request_id[len] = 0;
}

static bool is_of(const mx_call *c, const char *package)
{
    return strncmp(c->m->path, package, strlen(package)) == 0;
}

static bool refuse(mx_call *c, mx_status st, const mx_error *err)
{
    if (err->retry_ms) mx_call_retry_after(c, err->retry_ms);
    mx_call_finish(c, st, err->text);
    return false;
}

bool mx_rpc_identify(mx_call *c)
{
    const mx_server_options *o = &c->worker->server->opt;
    const char *token = NULL;
    size_t len = 0;
    mx_error err = {0};
    for (size_t i = 0; i < c->metadata.count; i++) {
        const grpc_metadata *m = &c->metadata.metadata[i];
        const char *value = (const char *)GRPC_SLICE_START_PTR(m->value);
        size_t n = GRPC_SLICE_LENGTH(m->value);
        if (is_key(m, "authorization") && n > 7 && strncasecmp(value, "Bearer ", 7) == 0) token = value + 7, len = n - 7;
        else if (is_key(m, "x-request-id")) keep_id(c, value, n);
        else if (is_key(m, "traceparent")) keep_trace(c, value, n);
    }
    choose_trace(c);
    if (o->no_reflection && is_of(c, "/grpc.reflection."))
        return refuse(c, MX_ERR_DENIED, &(mx_error){.text = "reflection is switched off"});
    if (!o->auth || is_of(c, "/grpc.health.")) return true;           /* probes have no token */
    mx_status st = mx_auth_check(o->auth, token, len, c->m->path, c->accepted_ns, &c->tenant, &err);
    return st ? refuse(c, st, &err) : true;
}

size_t mx_rpc_headers(mx_call *c, grpc_metadata out[2])
{
    size_t n = 0;
    memset(out, 0, 2 * sizeof *out);
    if (c->request_id[0]) {
        out[n].key = grpc_slice_from_static_string("x-request-id");
        out[n++].value = grpc_slice_from_copied_string(c->request_id);
    }
    if (c->trace[0]) {
        out[n].key = grpc_slice_from_static_string("traceparent");
        out[n++].value = grpc_slice_from_copied_string(c->trace);
    }
    return n;
}

/* Monotonic times as those of the wall, by what both clocks say now. */
static void tell_span(const mx_call *c, int code, uint64_t now)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    uint64_t ahead = (uint64_t)wall.tv_sec * 1000000000u + (uint64_t)wall.tv_nsec - now;
    mx_span s = {.method = c->m->path + 1, .code = code, .from_ns = c->accepted_ns + ahead, .to_ns = (c->answered_ns ? c->answered_ns : now) + ahead};
    if (c->turn_from_ns) s.turn_from_ns = c->turn_from_ns + ahead, s.turn_to_ns = c->turn_to_ns + ahead;
    snprintf(s.trace, sizeof s.trace, "%.32s", c->trace + 3);
    snprintf(s.id, sizeof s.id, "%.16s", c->trace + 36);
    memcpy(s.parent, c->parent, sizeof s.parent);
    snprintf(s.tenant, sizeof s.tenant, "%s", c->tenant ? c->tenant->name : "");
    memcpy(s.request_id, c->request_id, sizeof s.request_id);
    snprintf(s.text, sizeof s.text, "%.*s", (int)sizeof s.text - 1, code ? c->text : "");
    mx_spans_put(c->worker->server->opt.spans, &s);
}

static bool has_turn(const mx_call *c)
{
    return c->turn_from_ns && c->answered_ns;
}

static double seconds_of(uint64_t from, uint64_t to)
{
    return to > from ? (double)(to - from) * 1e-9 : 0;
}

/* Most methods have no turn, so their series are made when one is told. */
static void tell_turn(const mx_call *c)
{
    static const struct { const char *name, *help; } of[MX_RPC_TOLD] = {
        [MX_RPC_QUEUE] = {"merx_rpc_queue_seconds", "From a call's arrival to its turn: reading it, and waiting."},
        [MX_RPC_TURN] = {"merx_rpc_turn_seconds", "A call's turn: what a device computed for it, or its transaction."},
        [MX_RPC_BESIDE] = {"merx_rpc_beside_turn_seconds", "From a call's arrival to its answer's handing-over, less its turn: what the server adds."},
    };
    mx_server *s = c->worker->server;
    if (!has_turn(c) || !s->app->metrics) return;
    double queue = seconds_of(c->accepted_ns, c->turn_from_ns), turn = seconds_of(c->turn_from_ns, c->turn_to_ns);
    const double value[MX_RPC_TOLD] = {queue, turn, fmax(seconds_of(c->accepted_ns, c->answered_ns) - turn, 0)};
    for (int i = 0; i < MX_RPC_TOLD; i++) {
        mx_metric *m = atomic_load(&s->told[c->method][i]);
        if (!m) {
            char label[200];
            mx_metrics_label(label, sizeof label, "method", c->m->path + 1);
            m = mx_metrics_add(s->app->metrics, MX_HISTOGRAM, of[i].name, label, of[i].help);
            atomic_store(&s->told[c->method][i], m);
        }
        mx_metric_observe(m, value[i]);
    }
}

void mx_rpc_account(mx_call *c)
{
    mx_server *s = c->worker->server;
    int code = c->cancelled ? MX_RPC_CANCELLED
               : c->status == MX_RPC_UNKNOWN_METHOD ? MX_RPC_UNIMPLEMENTED : mx_rpc_code_of(c->status);
    int method = c->m ? c->method : mx_methods_count;
    uint64_t now = mx_now_ns(&mx_clock_monotonic);
    double seconds = (double)(now - c->accepted_ns) * 1e-9;
    atomic_fetch_add_explicit(&s->ended[method * MX_RPC_CODE_COUNT + code], 1, memory_order_relaxed);
    if (c->m) {
        mx_metric_observe(s->seconds[method], seconds);
        tell_turn(c);
        if (c->traced) tell_span(c, code, now);
    }
    mx_log_level level = s->opt.log_calls ? MX_LOG_INFO : MX_LOG_DEBUG;
    if (!mx_log_enabled(level)) return;
    char took[32], queue[32] = "", turn[32] = "", trace_id[33] = "", span_id[17] = "";
    snprintf(took, sizeof took, "%.3f", seconds * 1e3);
    if (has_turn(c)) {
        snprintf(queue, sizeof queue, "%.3f", seconds_of(c->accepted_ns, c->turn_from_ns) * 1e3);
        snprintf(turn, sizeof turn, "%.3f", seconds_of(c->turn_from_ns, c->turn_to_ns) * 1e3);
    }
    if (c->trace[0]) {
        snprintf(trace_id, sizeof trace_id, "%.32s", c->trace + 3);
        snprintf(span_id, sizeof span_id, "%.16s", c->trace + 36);
    }
    const mx_log_field fields[] = {
        {"method", c->m ? c->m->path : "unknown"}, {"code", mx_rpc_code_name(code)}, {"ms", took}, {"queue_ms", queue}, {"turn_ms", turn},
        {"tenant", c->tenant ? c->tenant->name : NULL}, {"request_id", c->request_id},
        {"trace_id", trace_id}, {"span_id", span_id},
    };
    mx_log_with(level, "rpc", fields, sizeof fields / sizeof *fields, "%s", code ? c->text : "call");
}
