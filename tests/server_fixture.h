/* server_fixture.h - a real server of fake models on a free port, and a client of it. */
#ifndef MX_SERVER_FIXTURE_H
#define MX_SERVER_FIXTURE_H

#include "proto/merx.pb-c.h"
#include "server/rpc.h"
#include "tests/fake_app.h"
#include "tests/test.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define RPC(name) "/merx.v1.Generation/" name

typedef struct fixture {
    mx_fake_app app;
    mx_server *server;
    mx_client *client;
} fixture;

static inline mx_fake_options fake_defaults(void)
{
    return (mx_fake_options){.turn_us = 200, .max_jobs = 8, .queue_limit = 64, .max_model_len = 4096, .chat = true};
}

static inline bool fixture_open(fixture *f, const mx_fake_options *o, const mx_server_options *so)
{
    mx_error err = {.text = ""};
    mx_fake_options fake = o ? *o : fake_defaults();
    mx_server_options opt = so ? *so : mx_server_defaults();
    memset(f, 0, sizeof *f);
    if (!so) opt.threads = 2;
    opt.listen = "127.0.0.1:0";
    CHECK_OK(mx_fake_app_open(&f->app, &fake, &err), err);
    CHECK_OK(mx_server_open(&f->server, &f->app.app, &opt, &err), err);
    if (f->server) CHECK_OK(mx_client_open(&f->client, mx_server_address(f->server), NULL, &err), err);
    return f->client != NULL;
}

/* Without the models that were unloaded (NULL). */
static inline int fixture_running(const fixture *f)
{
    int n = 0;
    for (int i = 0; i < 2; i++) n += f->app.models[i] ? mx_fake_open_generations(f->app.models[i]) : 0;
    return n;
}

static inline int fixture_pages(const fixture *f)
{
    mx_generator_info info;
    if (!f->app.models[0]) return 0;
    mx_generator_info_get(f->app.models[0], &info);
    return info.kv_pages - info.kv_pages_free;
}

static inline void fixture_close(fixture *f)
{
    mx_client_close(f->client);
    mx_server_close(f->server);
    CHECK_MSG(fixture_running(f) == 0, "%d generations left", fixture_running(f));
    CHECK_MSG(fixture_pages(f) == 0, "%d pages left", fixture_pages(f));
    mx_fake_app_close(&f->app);
}

static inline void nap_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static inline uint64_t now_ms(void)
{
    return mx_now_ns(&mx_clock_monotonic) / 1000000u;
}

/* Waits until nothing is generated any more; false after limit_ms. */
static inline bool fixture_quiet(const fixture *f, uint64_t limit_ms)
{
    uint64_t start = now_ms();
    while (fixture_running(f) || mx_server_inflight(f->server)) {
        if (now_ms() - start > limit_ms) return false;
        nap_ms(2);
    }
    return true;
}

typedef struct packed {
    uint8_t *data;
    size_t len;
} packed;

static inline packed pack(const ProtobufCMessage *m)
{
    packed p = {.len = protobuf_c_message_get_packed_size(m)};
    p.data = malloc(p.len + 1);
    protobuf_c_message_pack(m, p.data);
    return p;
}

/* One unary call; *reply (may be NULL) is freed with protobuf_c_message_free_unpacked. */
static inline int call_bytes(mx_client *c, const char *method, const uint8_t *data, size_t len, uint32_t timeout_ms,
                             const ProtobufCMessageDescriptor *type, void *reply, mx_rpc_status *st)
{
    uint8_t *bytes;
    size_t n;
    mx_rpc_status own;
    ProtobufCMessage *m = NULL;
    if (!st) st = &own;
    memset(st, 0, sizeof *st);
    if (mx_client_unary(c, method, data, len, timeout_ms, &bytes, &n, st)) return -1;
    if (st->code == 0) {
        m = protobuf_c_message_unpack(type, NULL, n, bytes);
        CHECK_MSG(m != NULL, "%s: the reply does not parse", method);
    }
    free(bytes);
    if (reply)
        *(ProtobufCMessage **)reply = m;
    else if (m)
        protobuf_c_message_free_unpacked(m, NULL);
    return st->code;
}

static inline int call(mx_client *c, const char *method, const void *request, const ProtobufCMessageDescriptor *type,
                       void *reply, mx_rpc_status *st)
{
    packed p = pack(request);
    int code = call_bytes(c, method, p.data, p.len, 20000, type, reply, st);
    free(p.data);
    return code;
}

/* A request of max_tokens letters; sampling is the caller's to fill further. */
static inline void request_init(Merx__V1__GenerateRequest *q, Merx__V1__Sampling *s, const char *prompt,
                                int max_tokens)
{
    merx__v1__generate_request__init(q);
    merx__v1__sampling__init(s);
    q->input_case = MERX__V1__GENERATE_REQUEST__INPUT_PROMPT;
    q->prompt = (char *)(uintptr_t)prompt;
    s->max_tokens = max_tokens;
    s->_seed_case = MERX__V1__SAMPLING___SEED_SEED;
    s->seed = 7;
    q->sampling = s;
}

static inline packed generate_bytes(const char *prompt, int max_tokens)
{
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    request_init(&q, &s, prompt, max_tokens);
    return pack(&q.base);
}

#endif
