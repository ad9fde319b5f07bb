/* rpc_call.c - a call's life: armed, requested, begun, turns of sending, closed.
 *
 * Facts of gRPC that shape the code: re-arm before anything else, or the method
 * queues up; only one SEND_MESSAGE may be out; GRPC_WRITE_BUFFER_HINT on the
 * message that goes with the initial metadata never leaves the buffer; `cancelled`
 * of RECV_CLOSE may be read only when its tag fires; a byte buffer is emptied by
 * sending it; once a call is dead, sending to it is optional. */
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>

#include "server/rpc_core.h"

#include "runtime/log.h"
#include "runtime/slab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void turn(mx_call *c);
static void on_received(mx_rpc_tag *t, bool ok);

/* ---- call objects ------------------------------------------------------------------------ */

static mx_call *take(mx_rpc_worker *w)
{
    mx_call *c = w->pool;
    if (c) {
        w->pool = c->next;
        w->pooled--;
    } else {
        c = malloc(sizeof *c);
        if (!c) return NULL;
    }
    memset(c, 0, offsetof(mx_call, request_id));
    c->request_id[0] = c->trace[0] = c->parent[0] = c->text[0] = 0;
    c->worker = w;
    grpc_metadata_array_init(&c->metadata);
    return c;
}

/* Back to the pool of its thread, which is the thread that calls this. */
static void put(mx_call *c)
{
    mx_rpc_worker *w = c->worker;
    if (c->m == NULL) grpc_call_details_destroy(&c->details);
    grpc_metadata_array_destroy(&c->metadata);
    if (c->payload) grpc_byte_buffer_destroy(c->payload);
    if (w->pooled >= MX_RPC_POOLED) {
        free(c);
        return;
    }
    c->next = w->pool;
    w->pool = c;
    w->pooled++;
}

static void unwatch(mx_call *c)
{
    if (!c->watching) return;
    for (mx_call **p = &c->worker->watchers; *p; p = &(*p)->next) {
        if (*p != c) continue;
        *p = c->next;
        break;
    }
    c->watching = false;
}

static void unref(mx_call *c)
{
    if (atomic_fetch_sub(&c->refs, 1) != 1) return;
    mx_server *s = c->worker->server;
    mx_rpc_account(c);
    if (c->handler) c->handler->closed(c->user);
    if (c->has_out) grpc_slice_unref(c->out);
    unwatch(c);
    grpc_call_unref(c->core);
    bool counted = c->counted;
    put(c);
    if (counted) atomic_fetch_sub(&s->inflight, 1);
    atomic_fetch_sub(&s->live, 1);
}

/* ---- what services call --------------------------------------------------------------------- */

void mx_call_attach(mx_call *c, const mx_call_handler *handler, void *user)
{
    c->handler = handler;
    c->user = user;
}

bool mx_call_send(mx_call *c, const ProtobufCMessage *m, bool more)
{
    size_t n = protobuf_c_message_get_packed_size(m);
    if (c->has_out || n > INT32_MAX) return false;
    c->out = grpc_slice_malloc(n);
    protobuf_c_message_pack(m, GRPC_SLICE_START_PTR(c->out));
    c->has_out = true;
    c->more = more;
    return true;
}

bool mx_call_send_packed(mx_call *c, uint8_t *bytes, size_t n, bool more)
{
    if (c->has_out || n > INT32_MAX) {
        mx_slab_free(bytes);
        return false;
    }
    c->out = grpc_slice_new(bytes, n, mx_slab_free);
    c->has_out = true;
    c->more = more;
    return true;
}

void mx_call_finish(mx_call *c, mx_status st, const char *text)
{
    if (c->end) return;
    c->end = true;
    c->status = st;
    if (!text) return;
    snprintf(c->text, sizeof c->text, "%s", text);
    mx_text_clean(c->text);
}

void mx_call_retry_after(mx_call *c, uint32_t ms)
{
    c->retry_ms = ms;
}

uint64_t mx_call_accepted_ns(const mx_call *c)
{
    return c->accepted_ns;
}

uint64_t mx_call_deadline_ns(const mx_call *c)
{
    return c->deadline_ns;
}

void mx_call_turn(mx_call *c, uint64_t from_ns, uint64_t to_ns)
{
    c->turn_from_ns = from_ns;
    c->turn_to_ns = to_ns;
}

uint8_t mx_call_tenant(const mx_call *c)
{
    return c->tenant ? c->tenant->number : 0;
}

void mx_call_watch_state(mx_call *c)
{
    if (c->watching) return;
    c->watching = true;
    c->next = c->worker->watchers;
    c->worker->watchers = c;
}

void mx_rpc_ring(mx_rpc_worker *w) /* with w->lock held: it also keeps the doorbell to one thread */
{
    if (w->rung) return;
    w->rung = true;
    grpc_call_start_batch(w->doorbell, NULL, 0, mx_rpc_tag_set(&w->on_doorbell, mx_rpc_doorbell), NULL);
}

void mx_call_wake(mx_call *c)
{
    mx_rpc_worker *w = c->worker;
    pthread_mutex_lock(&w->lock);
    if (!c->woken) {
        c->woken = true;
        c->wake_next = NULL;
        atomic_fetch_add(&c->refs, 1);
        if (w->woken)
            w->woken_last->wake_next = c;
        else
            w->woken = c;
        w->woken_last = c;
        mx_rpc_ring(w);
    }
    pthread_mutex_unlock(&w->lock);
}

/* ---- a call's turns -------------------------------------------------------------------------- */

static void on_sent(mx_rpc_tag *t, bool ok)
{
    mx_call *c = MX_RPC_OF(t, mx_call, on_sent);
    (void)ok; /* false: the call is dead, which its close tells too */
    if (!c->close_asked && c->close_cancelled) c->cancelled = true;
    if (!c->end) {
        c->again = true;
        turn(c);
    }
    unref(c);
}

/* What the callback left goes to the wire.  False: nothing went, since the client
 * is gone; the call goes on unless it has ended. */
static bool transmit(mx_call *c)
{
    if (c->cancelled) {
        if (c->has_out) grpc_slice_unref(c->out);
        c->has_out = false;
        c->again = true;
        return false;
    }
    grpc_op ops[4];
    size_t n = 0, n_headers = 0, retry = 0;
    bool first = !c->headers_sent;
    grpc_byte_buffer *buffer = NULL;
    grpc_slice text = grpc_empty_slice();
    grpc_metadata detail, headers[2];
    uint8_t bytes[1024];
    memset(ops, 0, sizeof ops);
    memset(&detail, 0, sizeof detail);
    if (first) {
        ops[n].op = GRPC_OP_SEND_INITIAL_METADATA;
        ops[n].data.send_initial_metadata.count = n_headers = mx_rpc_headers(c, headers);
        ops[n++].data.send_initial_metadata.metadata = headers;
    }
    c->headers_sent = true;
    if (c->has_out && !(c->end && c->status != MX_OK && first)) {
        buffer = grpc_raw_byte_buffer_create(&c->out, 1);
        ops[n].op = GRPC_OP_SEND_MESSAGE;
        ops[n].data.send_message.send_message = buffer;
        if (c->more && !first && !c->end) ops[n].flags = GRPC_WRITE_BUFFER_HINT;
        n++;
    }
    if (c->end) {
        if (c->turn_from_ns || c->traced) c->answered_ns = mx_now_ns(&mx_clock_monotonic);
        ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
        ops[n].data.send_status_from_server.status = c->status == MX_RPC_UNKNOWN_METHOD
                                                         ? GRPC_STATUS_UNIMPLEMENTED
                                                         : (grpc_status_code)mx_rpc_code_of(c->status);
        if (c->status != MX_OK) {
            text = grpc_slice_from_copied_string(c->text);
            ops[n].data.send_status_from_server.status_details = &text;
        }
        if (c->retry_ms && c->status == MX_ERR_BUSY)
            retry = mx_retry_encode(bytes, sizeof bytes, MX_RPC_RESOURCE_EXHAUSTED, c->text, c->retry_ms);
        if (retry) {
            detail.key = grpc_slice_from_static_string("grpc-status-details-bin");
            detail.value = grpc_slice_from_copied_buffer((const char *)bytes, retry);
            ops[n].data.send_status_from_server.trailing_metadata = &detail;
            ops[n].data.send_status_from_server.trailing_metadata_count = 1;
        }
        n++;
    }
    if (!c->close_asked) {
        /* It did not wait: the whole answer and the end of the call are one batch. */
        ops[n].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
        ops[n++].data.recv_close_on_server.cancelled = &c->close_cancelled;
    }
    atomic_fetch_add(&c->refs, 1);
    grpc_call_error e = grpc_call_start_batch(c->core, ops, n, mx_rpc_tag_set(&c->on_sent, on_sent), NULL);
    if (e != GRPC_CALL_OK) {
        mx_log(MX_LOG_ERROR, "rpc", "%s: gRPC refused a batch (error %d)", c->m ? c->m->path : "unknown method",
               (int)e);
        c->cancelled = true;
        atomic_fetch_sub(&c->refs, 1);
    }
    if (buffer) grpc_byte_buffer_destroy(buffer);
    if (c->has_out) grpc_slice_unref(c->out);
    c->has_out = false;
    grpc_slice_unref(text);
    while (n_headers) grpc_slice_unref(headers[--n_headers].value);
    if (retry) grpc_slice_unref(detail.value);
    if (e != GRPC_CALL_OK) c->again = true;
    return e == GRPC_CALL_OK;
}

/* The bytes of a message, where they lie or, of one that came in pieces, joined: *joined is the caller's to unref. */
static const uint8_t *read_payload(const grpc_byte_buffer *payload, size_t *len, grpc_slice *joined)
{
    grpc_byte_buffer_reader reader;
    const grpc_slice_buffer *b = &payload->data.raw.slice_buffer;
    *joined = grpc_empty_slice();
    if (payload->type == GRPC_BB_RAW && payload->data.raw.compression == GRPC_COMPRESS_NONE && b->count == 1) {
        *len = GRPC_SLICE_LENGTH(b->slices[0]);
        return GRPC_SLICE_START_PTR(b->slices[0]);
    }
    if (grpc_byte_buffer_reader_init(&reader, (grpc_byte_buffer *)(uintptr_t)payload)) {
        *joined = grpc_byte_buffer_reader_readall(&reader);
        grpc_byte_buffer_reader_destroy(&reader);
    }
    *len = GRPC_SLICE_LENGTH(*joined);
    return GRPC_SLICE_START_PTR(*joined);
}

static void receive(mx_call *c)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &c->payload;
    atomic_fetch_add(&c->refs, 1);
    if (grpc_call_start_batch(c->core, &op, 1, mx_rpc_tag_set(&c->on_received, on_received), NULL) != GRPC_CALL_OK)
        atomic_fetch_sub(&c->refs, 1);
}

static void deliver(mx_call *c)
{
    mx_arena *scratch = &c->worker->scratch;
    if (!c->payload) {
        c->half_closed = true;
        c->handler->message(c, c->user, NULL, 0, scratch);
        return;
    }
    grpc_slice joined;
    size_t len;
    grpc_byte_buffer *payload = c->payload;
    const uint8_t *msg = read_payload(payload, &len, &joined);
    c->payload = NULL;
    c->handler->message(c, c->user, msg, len, scratch);
    grpc_slice_unref(joined);
    grpc_byte_buffer_destroy(payload);
}

void mx_call_hold(mx_call *c)
{
    c->held = true;
}

void mx_call_read(mx_call *c)
{
    if (!c->held) return;
    c->held = false;
    if (!c->end && !c->half_closed) receive(c);
}

/* The call is busy and ours: send what is there, else ask for more, until there is
 * nothing to do or something is on the wire (on_sent then takes over). */
static void turn(mx_call *c)
{
    c->busy = true;
    for (;;) {
        if (c->has_out || c->end) {
            bool sent = transmit(c);
            if (c->end) {
                unref(c); /* the service's; busy stays, so that nothing is asked any more */
                return;
            }
            if (sent) return;
        }
        if (c->inbox) {
            c->inbox = false;
            deliver(c);
            if (!c->end && !c->half_closed && !c->held) receive(c);
        } else if (c->again && c->handler) {
            c->again = false;
            c->handler->pump(c, c->user, &c->worker->scratch);
        } else {
            break;
        }
        mx_arena_reset(&c->worker->scratch);
    }
    c->again = false;
    c->busy = false;
}

static void on_received(mx_rpc_tag *t, bool ok)
{
    mx_call *c = MX_RPC_OF(t, mx_call, on_received);
    (void)ok;
    if (!c->end) {
        c->inbox = true;
        if (!c->busy) turn(c);
    }
    unref(c);
}

static void on_close(mx_rpc_tag *t, bool ok)
{
    mx_call *c = MX_RPC_OF(t, mx_call, on_close);
    (void)ok; /* always true */
    if (c->close_cancelled) {
        c->cancelled = true;
        if (c->handler && c->handler->cancelled && !c->end) c->handler->cancelled(c, c->user);
    }
    unref(c);
}

void mx_rpc_tell_watchers(mx_rpc_worker *w)
{
    int state = atomic_load(&w->server->app->state);
    if (state == w->state) return;
    w->state = state;
    for (mx_call *c = w->watchers, *next; c; c = next) {
        next = c->next;
        c->again = true;
        if (!c->busy) turn(c);
    }
}

void mx_rpc_doorbell(mx_rpc_tag *t, bool ok)
{
    mx_rpc_worker *w = MX_RPC_OF(t, mx_rpc_worker, on_doorbell);
    (void)ok;
    pthread_mutex_lock(&w->lock);
    mx_call *c = w->woken;
    w->woken = w->woken_last = NULL;
    w->rung = false;
    pthread_mutex_unlock(&w->lock);
    for (mx_call *next; c; c = next) {
        next = c->wake_next;
        pthread_mutex_lock(&w->lock);
        c->woken = false; /* from here on it may be queued anew */
        pthread_mutex_unlock(&w->lock);
        c->again = true;
        if (!c->busy) turn(c);
        unref(c);
    }
    mx_rpc_tell_watchers(w);
}

/* ---- a request arrives ------------------------------------------------------------------------ */

static void set_times(mx_call *c)
{
    c->accepted_ns = mx_now_ns(&mx_clock_monotonic);
    if (c->deadline.tv_sec == INT64_MAX) return;         /* gRPC's infinite future */
    gpr_timespec d = c->deadline;                        /* gRPC's monotonic clock is ours */
    if (d.clock_type != GPR_CLOCK_MONOTONIC) d = gpr_convert_clock_type(d, GPR_CLOCK_MONOTONIC);
    c->deadline_ns = d.tv_sec < 0 ? 1 : d.tv_sec > INT64_MAX / 4000000000 ? UINT64_MAX / 4 : (uint64_t)d.tv_sec * 1000000000u + (uint64_t)d.tv_nsec;
}

/* False: refused, and finished. */
static bool admit(mx_call *c)
{
    mx_server *s = c->worker->server;
    if (c->m->flags & MX_METHOD_ALWAYS) {
        /* Nobody waits for these, but watchers without end would still take all memory. */
        if (!(c->m->flags & MX_METHOD_WAITS) || atomic_load(&s->live) <= 2 * s->opt.max_calls) return true;
        mx_call_finish(c, MX_ERR_BUSY, "the server has too many calls open");
        return false;
    }
    /* Counted first, looked at the state second: mx_server_drain() does it the other way
     * round, so a call is either counted there or refused here. */
    c->counted = true;
    int running = atomic_fetch_add(&s->inflight, 1);
    int state = atomic_load(&s->app->state);
    if (state == MX_APP_STARTING) {
        mx_call_finish(c, MX_ERR_UNAVAILABLE, "the server is starting");
    } else if (state == MX_APP_DRAINING) {
        mx_call_finish(c, MX_ERR_UNAVAILABLE, "the server is shutting down");
    } else if (running >= s->opt.max_calls) {
        char text[100];
        snprintf(text, sizeof text, "the server has %d calls, its limit (max-calls)", s->opt.max_calls);
        mx_call_retry_after(c, 1000);
        mx_call_finish(c, MX_ERR_BUSY, text);
    }
    return !c->end;
}

static void begin(mx_call *c, const grpc_byte_buffer *payload)
{
    mx_rpc_worker *w = c->worker;
    mx_error err = {.code = MX_OK};
    mx_status st = MX_OK;
    if (!mx_rpc_identify(c) || !admit(c)) return;
    if (c->m->flags & MX_METHOD_BIDI) {
        st = c->m->begin(w->server->app, c, NULL, 0, &w->scratch, &err);
        if (!st) receive(c);
    } else if (!payload) {
        st = mx_fail(&err, MX_ERR_ARG, "the call carries no message");
    } else {
        grpc_slice joined;
        size_t len;
        const uint8_t *bytes = read_payload(payload, &len, &joined);
        st = c->m->begin(w->server->app, c, bytes, len, &w->scratch, &err);
        grpc_slice_unref(joined);
    }
    if (st) {
        if (c->has_out) grpc_slice_unref(c->out);
        c->has_out = false;
        if (err.retry_ms) mx_call_retry_after(c, err.retry_ms);
        mx_call_finish(c, st, err.text);
    } else if (!c->end && !(c->m->flags & MX_METHOD_WAITS)) {
        mx_call_finish(c, MX_ERR_INTERNAL, "the service gave no answer");
    }
    mx_arena_reset(&w->scratch);
}

/* To hear when the client goes: of a call that has not got its whole answer at once. */
static void ask_close(mx_call *c)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    op.data.recv_close_on_server.cancelled = &c->close_cancelled;
    c->close_asked = true;
    atomic_fetch_add(&c->refs, 1);
    if (grpc_call_start_batch(c->core, &op, 1, mx_rpc_tag_set(&c->on_close, on_close), NULL) != GRPC_CALL_OK)
        atomic_fetch_sub(&c->refs, 1);
}

/* A method that is called for the first time gets its further places.  (gRPC as distributions build it looks
 * through all that waits in a queue, for each event: what nobody calls should not wait many times.) */
static void rearm(mx_rpc_worker *w, int method)
{
    bool *called = &w->called[method + 1];
    for (int k = *called ? MX_RPC_ARMED - 1 : 0; k < MX_RPC_ARMED; k++) mx_rpc_arm(w, method);
    *called = true;
}

/* A call that comes alone finds the caches full of others' things: what it will read is asked for at once, instead of one
 * piece after the other as it is come upon. */
static void fetch_ahead(mx_server *s, mx_call *c)
{
    __builtin_prefetch(c->m);
    __builtin_prefetch(&s->inflight, 1);
    __builtin_prefetch(&s->opt.max_calls);
    __builtin_prefetch(&s->opt.auth);
    __builtin_prefetch((const void *)&s->app->state);
    __builtin_prefetch(&s->app->pricing);
    __builtin_prefetch(c->trace, 1);
    __builtin_prefetch(c->request_id, 1);
}

static void on_request(mx_rpc_tag *t, bool ok)
{
    mx_call *c = MX_RPC_OF(t, mx_call, on_request);
    mx_rpc_worker *w = c->worker;
    if (!ok) { /* the server is shutting down */
        put(c);
        return;
    }
    fetch_ahead(w->server, c);
    set_times(c);
    atomic_fetch_add(&w->server->live, 1);
    atomic_store(&c->refs, 1);
    c->busy = true;
    grpc_byte_buffer *payload = c->payload;      /* of a bidirectional call: not there yet */
    c->payload = NULL;
    int method = c->method;
    bool first = !w->called[method + 1];
    if (first) rearm(w, method);        /* else there are more places, and this call goes before the next one */
    if (c->m) begin(c, payload);
    else mx_call_finish(c, MX_RPC_UNKNOWN_METHOD, "this server has no such method");
    if (!c->end) ask_close(c);
    turn(c);                            /* after it c may be another call's */
    if (payload) grpc_byte_buffer_destroy(payload);
    if (!first) rearm(w, method);
}

void mx_rpc_arm(mx_rpc_worker *w, int method)
{
    mx_server *s = w->server;
    mx_call *c = take(w);
    if (!c) {
        mx_log(MX_LOG_ERROR, "rpc", "out of memory: one request fewer can wait");
        return;
    }
    c->method = method;
    c->m = method < 0 ? NULL : &mx_methods[method];
    mx_rpc_tag_set(&c->on_request, on_request);
    grpc_call_error e;
    if (!c->m) {
        grpc_call_details_init(&c->details);
        e = grpc_server_request_call(s->core, &c->core, &c->details, &c->metadata, w->queue, w->queue,
                                     &c->on_request);
    } else {
        e = grpc_server_request_registered_call(s->core, s->handles[method], &c->core, &c->deadline, &c->metadata,
                                                c->m->flags & MX_METHOD_BIDI ? NULL : &c->payload, w->queue, w->queue,
                                                &c->on_request);
    }
    if (e != GRPC_CALL_OK) put(c); /* shutting down */
}

void mx_rpc_free_pool(mx_rpc_worker *w)
{
    for (mx_call *c = w->pool, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    w->pool = NULL;
}
