/* rpc.c - the gRPC server over the C core: queues, threads, drain.
 *
 * N completion queues, each with one thread that takes its events (two at once measured
 * slower) and one that stands by.  Threads from outside - a device's worker - only put a call on its
 * thread's list of woken calls and ring the doorbell: an empty batch on a client
 * call that goes nowhere, of which gRPC says "the tag is put in the completion queue
 * immediately".  It is the one public way to post an event to a queue. */
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#ifdef __has_include
#if __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#endif

#include "server/rpc_core.h"

#include "runtime/log.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* String constants that some versions do not name. */
#ifndef GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET
#define GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET "grpc.compression_enabled_algorithms_bitset"
#endif
#ifndef GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS
#define GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS "grpc.http2.min_ping_interval_without_data_ms"
#endif

/* ---- threads ------------------------------------------------------------------------------------ */

/* One event; false: the queue is shut.  With the duty held, except while waiting. */
static bool next_event(mx_rpc_worker *w)
{
    gpr_timespec until = gpr_inf_future(GPR_CLOCK_MONOTONIC);
    if (w->watchers)
        until = gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC), gpr_time_from_millis(MX_RPC_WATCH_MS, GPR_TIMESPAN));
    pthread_mutex_unlock(&w->duty);
    grpc_event ev = grpc_completion_queue_next(w->queue, until, NULL);
    pthread_mutex_lock(&w->duty);
    if (ev.type == GRPC_QUEUE_SHUTDOWN) return false;
    if (ev.type == GRPC_OP_COMPLETE) mx_rpc_tag_call(ev.tag, ev.success);
    if (w->watchers) mx_rpc_tell_watchers(w);
    return true;
}

static void call_relief(const mx_rpc_worker *w, long ns)
{
    timerfd_settime(w->relief, 0, &(struct itimerspec){.it_value.tv_nsec = ns}, NULL);
}

static void *serve(void *arg)
{
    struct mx_rpc_thread *t = arg;
    mx_rpc_worker *w = t->w;
    const mx_plan *p = &w->server->app->plan;
    int me = (int)(t - w->thread);
    char name[16];
    snprintf(name, sizeof name, "merx-rpc%d", (int)(w - w->server->workers) % 1000);
    if (t->started) pthread_setname_np(pthread_self(), name);
    if (w->server->app->bound && p->n_rpc) {
        const mx_plan_rpc *at = &p->rpc[(w - w->server->workers) % p->n_rpc];
        mx_thread_bind(at->cpus, at->n_cpus);
    }
    pthread_mutex_lock(&w->duty);
    while (!w->over) {
        if (w->poller < 0) w->poller = me;
        if (w->poller == me) {
            if (next_event(w)) continue;
            w->over = true;
            call_relief(w, 1);
        } else {
            uint64_t times;
            w->standing_by++;
            pthread_mutex_unlock(&w->duty);
            while (read(w->relief, &times, sizeof times) < 0 && errno == EINTR) {}
            pthread_mutex_lock(&w->duty);
            w->standing_by--;
        }
    }
    pthread_mutex_unlock(&w->duty);
    return NULL;
}

bool mx_call_can_leave(const mx_call *c)
{
    return c->worker->standing_by > 0;
}

void mx_call_leave(mx_call *c)
{
    mx_rpc_worker *w = c->worker;
    w->poller = -1;
    call_relief(w, MX_RPC_RELIEF_NS);
    pthread_mutex_unlock(&w->duty);
}

void mx_call_return(mx_call *c)
{
    pthread_mutex_lock(&c->worker->duty);
}

static void nap_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static uint64_t now_ms(void)
{
    return mx_now_ns(&mx_clock_monotonic) / 1000000u;
}

/* ---- opening -------------------------------------------------------------------------------------- */

mx_server_options mx_server_defaults(void)
{
    return (mx_server_options){
        .listen = "127.0.0.1:50051",
        .max_message_bytes = 4 << 20,
        .max_concurrent_streams = 1024,
        .max_calls = 4096,
        .keepalive_ms = 30000,
        .keepalive_timeout_ms = 10000,
    };
}

static mx_status check_options(const mx_server_options *o, mx_error *err)
{
    if (!o->listen || !*o->listen || strlen(o->listen) > 255)
        return mx_fail(err, MX_ERR_ARG, "listen: an address such as 127.0.0.1:50051 is needed");
    if (o->threads < 0 || o->threads > 256)
        return mx_fail(err, MX_ERR_ARG, "rpc-threads: %d is not in 0..256", o->threads);
    if (o->max_message_bytes < 1024 || o->max_message_bytes > 1 << 30)
        return mx_fail(err, MX_ERR_ARG, "max-message-bytes: %zu is not in 1024..1073741824", o->max_message_bytes);
    if (o->decode_budget > (size_t)1 << 36)
        return mx_fail(err, MX_ERR_ARG, "decode-budget: %zu is over 64 GiB", o->decode_budget);
    if (o->max_concurrent_streams < 1)
        return mx_fail(err, MX_ERR_ARG, "max-concurrent-streams: %d is not positive", o->max_concurrent_streams);
    if (o->max_calls < 1 || o->max_calls > 1 << 24)
        return mx_fail(err, MX_ERR_ARG, "max-calls: %d is not in 1..16777216", o->max_calls);
    if (!o->tls_cert != !o->tls_key) return mx_fail(err, MX_ERR_ARG, "tls-cert, tls-key: one without the other");
    if (o->tls_client_ca && !o->tls_cert) return mx_fail(err, MX_ERR_ARG, "tls-client-ca: needs tls-cert and tls-key");
    if (o->keepalive_ms < 0 || o->keepalive_timeout_ms < 0)
        return mx_fail(err, MX_ERR_ARG, "keepalive-ms, keepalive-timeout-ms: negative");
    return MX_OK;
}

/* gRPC says only that binding failed; bind once more by hand to hear why. */
static void explain_bind(const char *address, char *out, size_t size)
{
    char host[256];
    snprintf(out, size, "the address cannot be bound");
    snprintf(host, sizeof host, "%s", address);
    char *colon = strrchr(host, ':');
    if (strncmp(address, "unix:", 5) == 0 || !colon) return;
    *colon = 0;
    char *name = host;
    size_t n = strlen(name);
    if (n > 1 && name[0] == '[' && name[n - 1] == ']') {
        name[n - 1] = 0;
        name++;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    int e = getaddrinfo(*name ? name : NULL, colon + 1, &hints, &found);
    if (e) {
        snprintf(out, size, "%s", gai_strerror(e));
        return;
    }
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        int on = 1;
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (bind(fd, found->ai_addr, found->ai_addrlen) || listen(fd, 1)) snprintf(out, size, "%s", strerror(errno));
        close(fd);
    }
    freeaddrinfo(found);
}

static mx_status listen_on(mx_server *s, mx_error *err)
{
    const char *at = s->opt.listen;
    grpc_server_credentials *how = NULL;
    if (s->opt.tls_cert) MX_TRY(mx_tls_open(&s->tls, &how, &s->opt, err));
    if (!how) how = grpc_insecure_server_credentials_create();
    s->port = grpc_server_add_http2_port(s->core, at, how);
    grpc_server_credentials_release(how);
    if (!s->port) {
        char why[200];
        explain_bind(at, why, sizeof why);
        return mx_fail(err, MX_ERR_IO, "listen %s: %s", at, why);
    }
    const char *colon = strrchr(at, ':');
    if (strncmp(at, "unix:", 5) == 0 || !colon) {
        snprintf(s->address, sizeof s->address, "%s", at);
        return MX_OK;
    }
    int n = (int)(colon - at);
    if (n == 7 && strncmp(at, "0.0.0.0", 7) == 0) at = "127.0.0.1", n = 9;
    if (n == 4 && strncmp(at, "[::]", 4) == 0) at = "[::1]", n = 5;
    snprintf(s->address, sizeof s->address, "%.*s:%d", n, at, s->port);
    return MX_OK;
}

static grpc_arg integer(const char *key, int value)
{
    grpc_arg a;
    memset(&a, 0, sizeof a);
    a.type = GRPC_ARG_INTEGER;
    a.key = (char *)(uintptr_t)key; /* gRPC copies it */
    a.value.integer = value;
    return a;
}

static mx_status create_core(mx_server *s, mx_error *err)
{
    const mx_server_options *o = &s->opt;
    grpc_arg args[8];
    size_t n = 0;
    /* 0: else two servers on one port both start, and share the calls by chance. */
    args[n++] = integer(GRPC_ARG_ALLOW_REUSEPORT, 0);
    args[n++] = integer(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, (int)o->max_message_bytes);
    args[n++] = integer(GRPC_ARG_MAX_CONCURRENT_STREAMS, o->max_concurrent_streams);
    /* Identity only: a compressed request could unfold without limit. */
    args[n++] = integer(GRPC_COMPRESSION_CHANNEL_ENABLED_ALGORITHMS_BITSET, 1);
    args[n++] = integer(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    if (o->keepalive_ms) {
        args[n++] = integer(GRPC_ARG_KEEPALIVE_TIME_MS, o->keepalive_ms);
        args[n++] = integer(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, o->keepalive_timeout_ms);
        args[n++] = integer(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    }
    s->core = grpc_server_create(&(grpc_channel_args){.num_args = n, .args = args}, NULL);
    if (!s->core) return mx_fail(err, MX_ERR_NO_MEMORY, "the gRPC server could not be created");
    for (int i = 0; i < mx_methods_count; i++) {
        bool bidi = mx_methods[i].flags & MX_METHOD_BIDI;
        s->handles[i] =
            grpc_server_register_method(s->core, mx_methods[i].path, NULL,
                                        bidi ? GRPC_SRM_PAYLOAD_NONE : GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
        if (!s->handles[i])
            return mx_fail(err, MX_ERR_INTERNAL, "the method %s cannot be registered", mx_methods[i].path);
        char label[200];
        mx_metrics_label(label, sizeof label, "method", mx_methods[i].path + 1);
        if (s->app->metrics)
            s->seconds[i] = mx_metrics_add(s->app->metrics, MX_HISTOGRAM, "merx_rpc_duration_seconds", label,
                                           "From a call's arrival to its end.");
    }
    return MX_OK;
}

static mx_status open_workers(mx_server *s, mx_error *err)
{
    grpc_channel *nowhere = grpc_lame_client_channel_create("doorbell", GRPC_STATUS_UNAVAILABLE, "a doorbell");
    if (!nowhere) return mx_fail(err, MX_ERR_NO_MEMORY, "the doorbell could not be created");
    for (int i = 0; i < s->n_workers; i++) {
        mx_rpc_worker *w = &s->workers[i];
        w->server = s;
        w->state = atomic_load(&s->app->state);
        w->relief = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
        w->called = calloc((size_t)mx_methods_count + 1, sizeof *w->called);
        if (!w->called || w->relief < 0) {
            grpc_channel_destroy(nowhere);
            return mx_fail(err, MX_ERR_NO_MEMORY, "an RPC thread");
        }
        pthread_mutex_init(&w->lock, NULL);
        pthread_mutex_init(&w->duty, NULL);
        w->poller = -1;
        mx_arena_open(&w->scratch, s->opt.decode_budget);
        w->queue = grpc_completion_queue_create_for_next(NULL);
        grpc_server_register_completion_queue(s->core, w->queue, NULL);
        w->doorbell = grpc_channel_create_call(nowhere, NULL, GRPC_PROPAGATE_DEFAULTS, w->queue,
                                               grpc_slice_from_static_string("/doorbell"), NULL,
                                               gpr_inf_future(GPR_CLOCK_REALTIME), NULL);
    }
    grpc_channel_destroy(nowhere);
    return MX_OK;
}

static mx_status start_workers(mx_server *s, mx_error *err)
{
    grpc_server_start(s->core);
    for (int i = 0; i < s->n_workers; i++) {
        mx_rpc_worker *w = &s->workers[i];
        for (int m = -1; m < mx_methods_count; m++) mx_rpc_arm(w, m);
        for (int k = 0; k < MX_RPC_SHIFTS; k++) {
            struct mx_rpc_thread *t = &w->thread[k];
            *t = (struct mx_rpc_thread){.w = w, .started = true};      /* the thread reads it: before it is there */
            if (!pthread_create(&t->id, NULL, serve, t)) continue;
            t->started = false;
            return mx_fail(err, MX_ERR_NO_MEMORY, "an RPC thread could not be started");
        }
    }
    return MX_OK;
}

mx_status mx_server_open(mx_server **out, mx_app *app, const mx_server_options *opt, mx_error *err)
{
    mx_server_options o = opt ? *opt : mx_server_defaults();
    *out = NULL;
    MX_TRY(check_options(&o, err));
    if (!o.threads) o.threads = app->plan.n_rpc ? app->plan.n_rpc : 1;
    if (!o.decode_budget) o.decode_budget = 8 * o.max_message_bytes + 65536;
    mx_server *s = calloc(1, sizeof *s);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the server");
    s->app = app;
    s->opt = o;
    s->n_workers = o.threads;
    s->workers = calloc((size_t)o.threads, sizeof *s->workers);
    s->handles = calloc((size_t)mx_methods_count, sizeof *s->handles);
    s->ended = calloc((size_t)(mx_methods_count + 1) * MX_RPC_CODE_COUNT, sizeof *s->ended);
    s->seconds = calloc((size_t)mx_methods_count, sizeof *s->seconds);
    s->told = calloc((size_t)mx_methods_count, sizeof *s->told);
    mx_rpc_library_open();
    mx_status st = MX_OK;
    if (!s->workers || !s->handles || !s->ended || !s->seconds || !s->told) st = mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the server");
    if (!st) st = create_core(s, err);
    if (!st) st = open_workers(s, err);
    if (!st) st = listen_on(s, err);
    if (!st) st = start_workers(s, err);
    if (st) {
        mx_server_close(s);
        return st;
    }
    *out = s;
    return MX_OK;
}

int mx_server_port(const mx_server *s)
{
    return s->port;
}

const char *mx_server_address(const mx_server *s)
{
    return s->address;
}

const struct mx_spans *mx_server_spans(const mx_server *s)
{
    return s->opt.spans;
}

int mx_server_inflight(const mx_server *s)
{
    return atomic_load(&((mx_server *)(uintptr_t)s)->inflight);
}

bool mx_server_ended(const mx_server *s, int i, const char **method, int *code, uint64_t *calls)
{
    mx_server *own = (mx_server *)(uintptr_t)s;
    for (int at = 0; at < (mx_methods_count + 1) * MX_RPC_CODE_COUNT; at++) {
        *calls = atomic_load_explicit(&own->ended[at], memory_order_relaxed);
        if (!*calls || i--) continue;
        int m = at / MX_RPC_CODE_COUNT;
        *method = m < mx_methods_count ? mx_methods[m].path + 1 : "unknown";
        *code = at % MX_RPC_CODE_COUNT;
        return true;
    }
    return false;
}

/* ---- closing ------------------------------------------------------------------------------------- */

void mx_server_state_changed(mx_server *s)
{
    for (int i = 0; i < s->n_workers; i++) {
        mx_rpc_worker *w = &s->workers[i];
        pthread_mutex_lock(&w->lock);
        mx_rpc_ring(w);
        pthread_mutex_unlock(&w->lock);
    }
}

static void on_shutdown(mx_rpc_tag *t, bool ok)
{
    (void)ok;
    atomic_store(&MX_RPC_OF(t, mx_server, on_shutdown)->shut, true);
}

int mx_server_drain(mx_server *s, uint32_t grace_ms)
{
    if (s->drained) return 0;
    s->drained = true;
    atomic_store(&s->app->state, MX_APP_DRAINING);
    mx_server_state_changed(s);
    /* The listener stays open meanwhile: health says NOT_SERVING, calls hear UNAVAILABLE. */
    uint64_t start = now_ms();
    while (atomic_load(&s->inflight) && now_ms() - start < grace_ms) nap_ms(2);
    int cut = atomic_load(&s->inflight);
    grpc_server_shutdown_and_notify(s->core, s->workers[0].queue, mx_rpc_tag_set(&s->on_shutdown, on_shutdown));
    /* The shutdown completes when every connection is gone, and an idle client may take
     * seconds to go: cut it.  Watchers of health end here too. */
    start = now_ms();
    while (!atomic_load(&s->shut) && !cut && now_ms() - start < MX_RPC_LAST_WORDS_MS) nap_ms(2);
    grpc_server_cancel_all_calls(s->core);
    start = now_ms();
    uint64_t warned = start;
    while (!atomic_load(&s->shut) || atomic_load(&s->live)) {
        nap_ms(2);
        if (now_ms() - warned < 5000) continue;
        warned = now_ms();
        mx_log(MX_LOG_WARN, "rpc", "%d calls have not ended %llu s after they were cancelled", atomic_load(&s->live),
               (unsigned long long)((warned - start) / 1000));
    }
    return cut;
}

void mx_server_close(mx_server *s)
{
    if (!s) return;
    bool running = s->n_workers && s->workers && s->workers[0].thread[0].started;
    if (running) mx_server_drain(s, 0);
    for (int i = 0; s->workers && i < s->n_workers; i++) {
        mx_rpc_worker *w = &s->workers[i];
        if (w->doorbell) grpc_call_unref(w->doorbell);
        if (w->queue) grpc_completion_queue_shutdown(w->queue);
    }
    for (int i = 0; s->workers && i < s->n_workers; i++) {
        mx_rpc_worker *w = &s->workers[i];
        for (int k = 0; k < MX_RPC_SHIFTS; k++)
            if (w->thread[k].started) pthread_join(w->thread[k].id, NULL);
        if (w->queue && !w->over) {
            w->thread[0] = (struct mx_rpc_thread){.w = w};
            serve(&w->thread[0]); /* empties the queue */
        }
    }
    if (s->core) grpc_server_destroy(s->core);
    for (int i = 0; s->workers && i < s->n_workers; i++) {
        mx_rpc_worker *w = &s->workers[i];
        if (w->queue) grpc_completion_queue_destroy(w->queue);
        mx_rpc_free_pool(w);
        mx_arena_close(&w->scratch);
        free(w->called);
        if (w->queue) {
            pthread_mutex_destroy(&w->lock);
            pthread_mutex_destroy(&w->duty);
            if (w->relief >= 0) close(w->relief);
        }
    }
    grpc_shutdown_blocking();
    mx_tls_close(s->tls);
    free(s->workers);
    free(s->handles);
    free(s->ended);
    free(s->seconds);
    free(s->told);
    free(s);
}
