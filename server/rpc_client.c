/* rpc_client.c - the client over gRPC's C core.
 *
 * One connection, one completion queue, one thread that turns its events into
 * callbacks.  The blocking calls are made of the others: a call's lock and
 * condition stand between the queue's thread and the caller.
 *
 * LIFETIME: a call has one reference for each batch on its way and, when its owner
 * must end it (mx_client_stream), one more. */
#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#ifdef __has_include
#if __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#endif

#include "server/auth.h"
#include "server/messages.h"
#include "server/rpc.h"
#include "server/rpc_core.h"

#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As in rpc_core.h: set with release before each batch, read with acquire by the queue's thread. */
typedef struct tag tag;
typedef void (*event)(tag *t, bool ok);
struct tag {
    _Atomic(event) fn;
};

#define OF(t, type, member) ((type *)(void *)((char *)(t)-offsetof(type, member)))

struct mx_client {
    grpc_channel *channel;
    grpc_completion_queue *queue;
    pthread_t thread;
    bool started, wait_for_ready;
    char *bearer; /* "Bearer ..."; NULL: none */
    pthread_mutex_t lock;
    pthread_cond_t quiet; /* live has become 0 */
    int live;
    mx_client_call *calls; /* that run; linked by newer, older */
};

struct mx_client_call {
    tag on_start, on_message, on_over;
    mx_client *client;
    mx_client_call *newer, *older;
    grpc_call *core;
    mx_client_calls calls;
    bool iterates; /* replies are read when asked for            */
    atomic_int refs;
    grpc_metadata_array initial, trailing;
    grpc_byte_buffer *payload;
    grpc_status_code code;
    grpc_slice details;
    mx_rpc_status status;
    /* Iterators, under lock: */
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool asked, no_more, over;
    grpc_slice reply;
    bool has_reply;
};

static grpc_slice read_all(grpc_byte_buffer *b)
{
    grpc_byte_buffer_reader reader;
    if (!grpc_byte_buffer_reader_init(&reader, b)) return grpc_empty_slice();
    grpc_slice s = grpc_byte_buffer_reader_readall(&reader);
    grpc_byte_buffer_reader_destroy(&reader);
    return s;
}

/* The last batch is through: tell, and go. */
static void unref(mx_client_call *call)
{
    if (atomic_fetch_sub(&call->refs, 1) != 1) return;
    mx_client *c = call->client;
    if (call->calls.done) call->calls.done(call->calls.user, &call->status);
    pthread_mutex_lock(&c->lock); /* out of the list first: mx_client_close() cancels what is in it */
    if (call->newer)
        call->newer->older = call->older;
    else
        c->calls = call->older;
    if (call->older) call->older->newer = call->newer;
    pthread_mutex_unlock(&c->lock);
    grpc_call_unref(call->core);
    grpc_metadata_array_destroy(&call->initial);
    grpc_metadata_array_destroy(&call->trailing);
    if (call->payload) grpc_byte_buffer_destroy(call->payload);
    grpc_slice_unref(call->details);
    if (call->has_reply) grpc_slice_unref(call->reply);
    pthread_mutex_destroy(&call->lock);
    pthread_cond_destroy(&call->news);
    pthread_mutex_lock(&c->lock);
    if (--c->live == 0) pthread_cond_broadcast(&c->quiet);
    pthread_mutex_unlock(&c->lock);
    free(call);
}

static bool batch(mx_client_call *call, const grpc_op *ops, size_t n, tag *t, event fn)
{
    atomic_store_explicit(&t->fn, fn, memory_order_release);
    atomic_fetch_add(&call->refs, 1);
    if (grpc_call_start_batch(call->core, ops, n, t, NULL) == GRPC_CALL_OK) return true;
    atomic_fetch_sub(&call->refs, 1);
    return false;
}

static void on_message(tag *t, bool ok);

static void ask(mx_client_call *call)
{
    grpc_op op;
    memset(&op, 0, sizeof op);
    op.op = GRPC_OP_RECV_MESSAGE;
    op.data.recv_message.recv_message = &call->payload;
    batch(call, &op, 1, &call->on_message, on_message);
}

static void on_start(tag *t, bool ok)
{
    (void)ok;
    unref(OF(t, mx_client_call, on_start));
}

static void deliver(mx_client_call *call)
{
    if (!call->payload) return;
    grpc_slice s = read_all(call->payload);
    grpc_byte_buffer_destroy(call->payload);
    call->payload = NULL;
    if (call->calls.message) call->calls.message(call->calls.user, GRPC_SLICE_START_PTR(s), GRPC_SLICE_LENGTH(s));
    grpc_slice_unref(s);
}

static void on_message(tag *t, bool ok)
{
    mx_client_call *call = OF(t, mx_client_call, on_message);
    (void)ok;
    if (!call->iterates) {
        bool more = call->payload != NULL;
        deliver(call);
        if (more) ask(call);
    } else {
        pthread_mutex_lock(&call->lock);
        call->asked = false;
        if (call->payload) {
            call->reply = read_all(call->payload);
            grpc_byte_buffer_destroy(call->payload);
            call->payload = NULL;
            call->has_reply = true;
        } else {
            call->no_more = true;
        }
        pthread_cond_broadcast(&call->news);
        pthread_mutex_unlock(&call->lock);
    }
    unref(call);
}

static void on_over(tag *t, bool ok)
{
    mx_client_call *call = OF(t, mx_client_call, on_over);
    mx_rpc_status *st = &call->status;
    (void)ok;
    if (call->calls.unary) deliver(call); /* it came in the same batch */
    st->code = (int)call->code;
    snprintf(st->text, sizeof st->text, "%.*s", (int)GRPC_SLICE_LENGTH(call->details),
             (const char *)GRPC_SLICE_START_PTR(call->details));
    for (size_t i = 0; i < call->trailing.count; i++) {
        const grpc_metadata *m = &call->trailing.metadata[i];
        if (grpc_slice_str_cmp(m->key, "grpc-status-details-bin") != 0) continue;
        mx_retry_decode(GRPC_SLICE_START_PTR(m->value), GRPC_SLICE_LENGTH(m->value), &st->retry_ms);
    }
    if (call->iterates) {
        pthread_mutex_lock(&call->lock);
        call->over = true;
        pthread_cond_broadcast(&call->news);
        pthread_mutex_unlock(&call->lock);
    }
    unref(call);
}

static void *serve(void *arg)
{
    mx_client *c = arg;
    for (;;) {
        grpc_event ev = grpc_completion_queue_next(c->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (ev.type == GRPC_QUEUE_SHUTDOWN) return NULL;
        tag *t = ev.tag;
        if (ev.type == GRPC_OP_COMPLETE) atomic_load_explicit(&t->fn, memory_order_acquire)(t, ev.success);
    }
}

/* ---- the connection -------------------------------------------------------------------- */

static grpc_arg integer(const char *key, int value)
{
    grpc_arg a;
    memset(&a, 0, sizeof a);
    a.type = GRPC_ARG_INTEGER;
    a.key = (char *)(uintptr_t)key; /* gRPC copies it */
    a.value.integer = value;
    return a;
}

static mx_status credentials_of(const mx_client_options *o, grpc_channel_credentials **out, mx_error *err)
{
    char *ca = NULL, *cert = NULL, *key = NULL;
    mx_status st = MX_OK;
    if (!o->tls && !o->tls_ca && !o->tls_cert) {
        *out = grpc_insecure_credentials_create();
        return MX_OK;
    }
    if (!o->tls_cert != !o->tls_key) return mx_fail(err, MX_ERR_ARG, "tls-cert, tls-key: one without the other");
    if (o->tls_ca) st = mx_pem_read(o->tls_ca, &ca, err);
    if (!st && o->tls_cert) st = mx_pem_read(o->tls_cert, &cert, err);
    if (!st && o->tls_key) st = mx_pem_read(o->tls_key, &key, err);
    if (!st) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = key, .cert_chain = cert};
        *out = grpc_ssl_credentials_create(ca, cert ? &pair : NULL, NULL, NULL);
        if (!*out) st = mx_fail(err, MX_ERR_FORMAT, "tls: the certificates cannot be used");
    }
    free(ca);
    free(cert);
    free(key);
    return st;
}

mx_status mx_client_open(mx_client **out, const char *target, const mx_client_options *opt, mx_error *err)
{
    mx_client_options o = opt ? *opt : (mx_client_options){0};
    *out = NULL;
    if (!target || !*target) return mx_fail(err, MX_ERR_ARG, "target: an address such as 127.0.0.1:50051 is needed");
    if (!o.max_message_bytes) o.max_message_bytes = 64 << 20;
    if (o.max_message_bytes > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "max-message-bytes: over 2 GiB");
    mx_client *c = calloc(1, sizeof *c);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the client");
    c->wait_for_ready = o.wait_for_ready;
    if (o.token) {
        size_t n = strlen(o.token) + sizeof "Bearer ";
        c->bearer = malloc(n);
        if (c->bearer) snprintf(c->bearer, n, "Bearer %s", o.token);
    }
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->quiet, NULL);
    mx_rpc_library_open();
    grpc_arg args[6];
    size_t n = 0;
    /* Else clients of one program with equal arguments share one connection. */
    args[n++] = integer(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args[n++] = integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)o.max_message_bytes);
    args[n++] = integer(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
    args[n++] = integer("grpc.initial_reconnect_backoff_ms", 100);
    if (o.window_bytes) {
        args[n++] = integer(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, o.window_bytes);
        args[n++] = integer(GRPC_ARG_HTTP2_BDP_PROBE, 0);
    }
    grpc_channel_credentials *how = NULL;
    mx_status st = credentials_of(&o, &how, err);
    if (how) c->channel = grpc_channel_create(target, how, &(grpc_channel_args){.num_args = n, .args = args});
    if (how) grpc_channel_credentials_release(how);
    c->queue = grpc_completion_queue_create_for_next(NULL);
    c->started = c->channel && (c->bearer || !o.token) && pthread_create(&c->thread, NULL, serve, c) == 0;
    if (!c->started) {
        mx_client_close(c);
        return st ? st : mx_fail(err, MX_ERR_NO_MEMORY, "the client could not be started");
    }
    *out = c;
    return MX_OK;
}

void mx_client_close(mx_client *c)
{
    if (!c) return;
    pthread_mutex_lock(&c->lock);
    for (mx_client_call *call = c->calls; call; call = call->older) grpc_call_cancel(call->core, NULL);
    while (c->live) pthread_cond_wait(&c->quiet, &c->lock);
    pthread_mutex_unlock(&c->lock);
    if (c->channel) grpc_channel_destroy(c->channel);
    grpc_completion_queue_shutdown(c->queue);
    if (c->started)
        pthread_join(c->thread, NULL);
    else
        serve(c); /* empties the queue */
    grpc_completion_queue_destroy(c->queue);
    pthread_cond_destroy(&c->quiet);
    pthread_mutex_destroy(&c->lock);
    free(c->bearer);
    free(c);
    grpc_shutdown_blocking();
}

/* ---- calls ------------------------------------------------------------------------------- */

static mx_client_call *create(mx_client *c, const char *method, uint32_t timeout_ms, const mx_client_calls *calls)
{
    mx_client_call *call = calloc(1, sizeof *call);
    if (!call) return NULL;
    gpr_timespec deadline = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (timeout_ms)
        deadline = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(timeout_ms, GPR_TIMESPAN));
    call->client = c;
    if (calls) call->calls = *calls;
    call->iterates = !calls;
    atomic_store(&call->refs, 1);
    grpc_metadata_array_init(&call->initial);
    grpc_metadata_array_init(&call->trailing);
    call->details = grpc_empty_slice();
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->news, NULL);
    grpc_slice path = grpc_slice_from_copied_string(method);
    call->core =
        grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->queue, path, NULL, deadline, NULL);
    grpc_slice_unref(path);
    pthread_mutex_lock(&c->lock);
    call->older = c->calls;
    if (c->calls) c->calls->newer = call;
    c->calls = call;
    c->live++;
    pthread_mutex_unlock(&c->lock);
    return call;
}

/* The request and the half-close; for a unary call everything else too. */
static bool begin(mx_client_call *call, const uint8_t *msg, size_t len)
{
    grpc_op ops[6], status;
    size_t n = 0;
    grpc_slice s = grpc_slice_from_copied_buffer((const char *)msg, len);
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&s, 1);
    memset(ops, 0, sizeof ops);
    memset(&status, 0, sizeof status);
    grpc_metadata bearer;
    memset(&bearer, 0, sizeof bearer);
    if (call->client->bearer) {
        bearer.key = grpc_slice_from_static_string("authorization");
        bearer.value = grpc_slice_from_static_string(call->client->bearer);
        ops[n].data.send_initial_metadata.count = 1;
        ops[n].data.send_initial_metadata.metadata = &bearer;
    }
    ops[n].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[n++].flags = call->client->wait_for_ready ? GRPC_INITIAL_METADATA_WAIT_FOR_READY : 0;
    ops[n].op = GRPC_OP_SEND_MESSAGE;
    ops[n++].data.send_message.send_message = b;
    ops[n++].op = GRPC_OP_SEND_CLOSE_FROM_CLIENT;
    ops[n].op = GRPC_OP_RECV_INITIAL_METADATA;
    ops[n++].data.recv_initial_metadata.recv_initial_metadata = &call->initial;
    status.op = GRPC_OP_RECV_STATUS_ON_CLIENT;
    status.data.recv_status_on_client.trailing_metadata = &call->trailing;
    status.data.recv_status_on_client.status = &call->code;
    status.data.recv_status_on_client.status_details = &call->details;
    bool ok;
    if (call->calls.unary) {
        ops[n].op = GRPC_OP_RECV_MESSAGE;
        ops[n++].data.recv_message.recv_message = &call->payload;
        ops[n++] = status;
        ok = batch(call, ops, n, &call->on_over, on_over);
    } else {
        ok = batch(call, &status, 1, &call->on_over, on_over) && batch(call, ops, n, &call->on_start, on_start);
        if (ok && !call->iterates) ask(call);
    }
    grpc_byte_buffer_destroy(b);
    grpc_slice_unref(s);
    return ok;
}

mx_status mx_client_start(mx_client *c, mx_client_call **out, const char *method, const uint8_t *msg, size_t len,
                          uint32_t timeout_ms, const mx_client_calls *calls)
{
    mx_client_call *call = create(c, method, timeout_ms, calls);
    if (!call) return MX_ERR_NO_MEMORY;
    if (out) *out = call; /* before the first callback */
    bool ok = begin(call, msg, len);
    if (!ok) {
        call->calls.done = NULL; /* the caller hears of it here */
        grpc_call_cancel(call->core, NULL);
    }
    unref(call);
    return ok ? MX_OK : MX_ERR_INTERNAL;
}

mx_status mx_client_stream(mx_client *c, mx_client_call **out, const char *method, const uint8_t *msg, size_t len,
                           uint32_t timeout_ms)
{
    *out = create(c, method, timeout_ms, NULL);
    if (!*out) return MX_ERR_NO_MEMORY;
    if (begin(*out, msg, len)) return MX_OK;
    mx_client_end(*out);
    *out = NULL;
    return MX_ERR_INTERNAL;
}

bool mx_client_next(mx_client_call *call, const uint8_t **reply, size_t *len)
{
    pthread_mutex_lock(&call->lock);
    if (call->has_reply && reply) {
        grpc_slice_unref(call->reply);
        call->has_reply = false;
    }
    if (!call->has_reply && !call->asked && !call->no_more) {
        call->asked = true;
        ask(call);
    }
    while (!call->has_reply && !call->no_more) pthread_cond_wait(&call->news, &call->lock);
    bool got = call->has_reply;
    if (got && reply) {
        *reply = GRPC_SLICE_START_PTR(call->reply);
        *len = GRPC_SLICE_LENGTH(call->reply);
    } else if (got) {
        grpc_slice_unref(call->reply);
        call->has_reply = false;
    }
    pthread_mutex_unlock(&call->lock);
    return got;
}

void mx_client_finish(mx_client_call *call, mx_rpc_status *st)
{
    while (mx_client_next(call, NULL, NULL)) {
    } /* what nobody reads would keep the status back */
    pthread_mutex_lock(&call->lock);
    while (!call->over) pthread_cond_wait(&call->news, &call->lock);
    if (st) *st = call->status;
    pthread_mutex_unlock(&call->lock);
}

void mx_client_cancel(mx_client_call *call)
{
    grpc_call_cancel(call->core, NULL);
}

void mx_client_end(mx_client_call *call)
{
    if (!call) return;
    grpc_call_cancel(call->core, NULL);
    unref(call);
}

/* ---- one request, one reply ---------------------------------------------------------------- */

typedef struct answer {
    pthread_mutex_t lock;
    pthread_cond_t news;
    bool over;
    uint8_t *reply;
    size_t len;
    mx_rpc_status status;
} answer;

static void keep_reply(void *user, const uint8_t *reply, size_t len)
{
    answer *a = user;
    a->reply = malloc(len + 1);
    if (a->reply) memcpy(a->reply, reply, len);
    a->len = len;
}

static void keep_status(void *user, const mx_rpc_status *st)
{
    answer *a = user;
    pthread_mutex_lock(&a->lock);
    a->status = *st;
    a->over = true;
    pthread_cond_signal(&a->news);
    pthread_mutex_unlock(&a->lock);
}

mx_status mx_client_unary(mx_client *c, const char *method, const uint8_t *msg, size_t len, uint32_t timeout_ms,
                          uint8_t **reply, size_t *reply_len, mx_rpc_status *st)
{
    answer a = {.over = false};
    mx_client_calls calls = {.unary = true, .message = keep_reply, .done = keep_status, .user = &a};
    pthread_mutex_init(&a.lock, NULL);
    pthread_cond_init(&a.news, NULL);
    *reply = NULL;
    *reply_len = 0;
    mx_status e = mx_client_start(c, NULL, method, msg, len, timeout_ms, &calls);
    pthread_mutex_lock(&a.lock);
    while (!e && !a.over) pthread_cond_wait(&a.news, &a.lock);
    pthread_mutex_unlock(&a.lock);
    if (!e) *st = a.status;
    if (!e && st->code == MX_RPC_OK && a.reply) {
        *reply = a.reply;
        *reply_len = a.len;
    } else {
        free(a.reply);
        if (!e && st->code == MX_RPC_OK) e = MX_ERR_NO_MEMORY;
    }
    pthread_cond_destroy(&a.news);
    pthread_mutex_destroy(&a.lock);
    return e;
}
