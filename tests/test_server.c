/* test_server.c - every method and every error of the server, through real gRPC. */
#include "tests/server_fixture.h"

#include "proto/health.pb-c.h"

#define GENERATED &merx__v1__generate_response__descriptor

static void test_generate(void)
{
    fixture f;
    if (!fixture_open(&f, NULL, NULL)) return;
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    Merx__V1__GenerateResponse *r = NULL;
    request_init(&q, &s, "Say something", 40);
    q.request_id = "id-1";
    s.n = 2;
    s._logprobs_case = MERX__V1__SAMPLING___LOGPROBS_LOGPROBS;
    s.logprobs = 3;
    CHECK(call(f.client, RPC("Generate"), &q, GENERATED, &r, NULL) == MX_RPC_OK);
    if (r) {
        CHECK_STR(r->model, "fake");
        CHECK_STR(r->request_id, "id-1");
        CHECK(r->seed == 7);
        CHECK(r->n_candidates == 2);
        CHECK(r->usage && r->usage->prompt_tokens == 14 && r->usage->output_tokens == 80);
        CHECK(r->timings && r->timings->total_ms > 0 && r->timings->decode_ms > 0 &&
              r->timings->tokens_per_second > 0);
        CHECK(r->timings && r->timings->first_token_ms > 0 && r->timings->first_token_ms <= r->timings->total_ms);
        for (size_t i = 0; i < r->n_candidates; i++) {
            Merx__V1__Candidate *c = r->candidates[i];
            CHECK(c->index == (int)i && strlen(c->text) == 40 && c->n_ids == 40);
            CHECK(c->finish == MERX__V1__FINISH_REASON__FINISH_LENGTH);
            CHECK(c->n_logprobs == 40 && c->logprobs[39]->n_top_id == 3 && c->logprobs[39]->n_top_token == 3);
            CHECK(c->n_logprobs == 40 && c->logprobs[5]->token.len == 1 &&
                  c->logprobs[5]->token.data[0] == c->text[5]);
        }
        CHECK(strcmp(r->candidates[0]->text, r->candidates[1]->text) != 0);
        merx__v1__generate_response__free_unpacked(r, NULL);
    }
    /* A stop string, the second model, ids as input. */
    int32_t ids[] = {72, 105};
    char *stop[] = {" "};
    Merx__V1__TokenIds in = MERX__V1__TOKEN_IDS__INIT;
    in.n_ids = 2;
    in.ids = ids;
    request_init(&q, &s, "", 500);
    q.input_case = MERX__V1__GENERATE_REQUEST__INPUT_IDS;
    q.ids = &in;
    q.model = "plain";
    s.n_stop = 1;
    s.stop = stop;
    CHECK(call(f.client, RPC("Generate"), &q, GENERATED, &r, NULL) == MX_RPC_OK);
    if (r) {
        CHECK_STR(r->model, "plain");
        CHECK(r->n_candidates == 1 && r->candidates[0]->finish == MERX__V1__FINISH_REASON__FINISH_STOP);
        CHECK_STR(r->candidates[0]->stop, " ");
        CHECK(strchr(r->candidates[0]->text, ' ') == NULL);
        CHECK(r->usage->prompt_tokens == 2);
        merx__v1__generate_response__free_unpacked(r, NULL);
    }
    fixture_close(&f);
}

/* Reads a stream to its end; text[candidate] grows. Returns the code. */
static int read_stream(fixture *f, const Merx__V1__GenerateRequest *q, char text[][4096], int *events, int *lasts,
                       mx_rpc_status *st)
{
    mx_client_call *call;
    packed p = pack(&q->base);
    const uint8_t *msg;
    size_t len;
    if (mx_client_stream(f->client, &call, RPC("Stream"), p.data, p.len, 20000)) return -1;
    free(p.data);
    bool after_last = false;
    while (mx_client_next(call, &msg, &len)) {
        Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, msg);
        CHECK(e != NULL && !after_last);
        if (!e) break;
        ++*events;
        strcat(text[e->index], e->text);
        if (e->last) {
            ++*lasts;
            after_last = true;
            CHECK(e->usage && e->timings && e->usage->output_tokens > 0 && e->timings->total_ms > 0);
            CHECK_STR(e->model, "fake");
            CHECK_STR(e->request_id, q->request_id);
        }
        merx__v1__generate_event__free_unpacked(e, NULL);
    }
    mx_client_finish(call, st);
    mx_client_end(call);
    return st->code;
}

static void test_stream_equals_generate(void)
{
    fixture f;
    if (!fixture_open(&f, NULL, NULL)) return;
    static char text[3][4096];
    memset(text, 0, sizeof text);
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    Merx__V1__GenerateResponse *r = NULL;
    mx_rpc_status st;
    int events = 0, lasts = 0;
    request_init(&q, &s, "The same words", 100);
    q.request_id = "stream";
    s.n = 3;
    CHECK(read_stream(&f, &q, text, &events, &lasts, &st) == MX_RPC_OK);
    CHECK_MSG(events >= 3 && lasts == 1, "%d events, %d last", events, lasts);
    CHECK(call(f.client, RPC("Generate"), &q, GENERATED, &r, NULL) == MX_RPC_OK);
    for (size_t i = 0; r && i < r->n_candidates; i++) CHECK_STR(text[i], r->candidates[i]->text);
    if (r) merx__v1__generate_response__free_unpacked(r, NULL);
    fixture_close(&f);
}

static void test_batch(void)
{
    enum { N = 100 };
    fixture f;
    mx_fake_options o = fake_defaults();
    o.queue_limit = 4; /* far smaller than the batch */
    o.max_jobs = 2;
    if (!fixture_open(&f, &o, NULL)) return;
    static Merx__V1__GenerateRequest q[N];
    static Merx__V1__Sampling s[N];
    Merx__V1__GenerateRequest *list[N];
    Merx__V1__GenerateBatchRequest b = MERX__V1__GENERATE_BATCH_REQUEST__INIT;
    for (int i = 0; i < N; i++) {
        request_init(&q[i], &s[i], i == 3 ? "" : "One of many", 5 + i % 7);
        if (i == 10) s[i]._temperature_case = MERX__V1__SAMPLING___TEMPERATURE_TEMPERATURE, s[i].temperature = -1;
        if (i == 20) q[i].model = "nobody";
        if (i == 30) q[i].prompt = "!fail!!";
        list[i] = &q[i];
    }
    b.n_requests = N;
    b.requests = list;
    Merx__V1__GenerateBatchResponse *r = NULL;
    CHECK(call(f.client, RPC("GenerateBatch"), &b, &merx__v1__generate_batch_response__descriptor, &r, NULL) ==
          MX_RPC_OK);
    CHECK(r && r->n_items == N);
    for (int i = 0; r && i < (int)r->n_items; i++) {
        Merx__V1__GenerateBatchItem *it = r->items[i];
        int want = i == 10   ? MX_RPC_INVALID_ARGUMENT
                   : i == 20 ? MX_RPC_NOT_FOUND
                   : i == 30 ? MX_RPC_INTERNAL
                             : MX_RPC_OK;
        CHECK_MSG(it->status && it->status->code == want, "item %d: %d %s", i, it->status->code, it->status->message);
        CHECK((it->response != NULL) == (want == MX_RPC_OK));
        if (it->response) CHECK(it->response->candidates[0]->n_ids == (size_t)(5 + i % 7));
    }
    if (r) CHECK_STR(r->items[10]->status->message, "temperature: -1 is not in 0..100");
    if (r) merx__v1__generate_batch_response__free_unpacked(r, NULL);
    fixture_close(&f);
}

static void test_tokens_and_models(void)
{
    fixture f;
    if (!fixture_open(&f, NULL, NULL)) return;
    Merx__V1__TokenizeRequest q = MERX__V1__TOKENIZE_REQUEST__INIT;
    Merx__V1__TokenizeResponse *r = NULL;
    uint8_t any[] = {'a', 0xff, 0, 'z'};
    q.input_case = MERX__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    q.text = (ProtobufCBinaryData){.data = any, .len = sizeof any};
    q.add_special = true;
    CHECK(call(f.client, RPC("Tokenize"), &q, &merx__v1__tokenize_response__descriptor, &r, NULL) == MX_RPC_OK);
    CHECK(r && r->n_ids == 5 && r->ids[0] == 256 && r->ids[2] == 0xff && r->n_tokens == 5 && r->tokens[3].len == 1);
    Merx__V1__DetokenizeRequest dq = MERX__V1__DETOKENIZE_REQUEST__INIT;
    Merx__V1__DetokenizeResponse *dr = NULL;
    dq.skip_special = true;
    dq.n_ids = r ? r->n_ids : 0;
    dq.ids = r ? r->ids : NULL;
    CHECK(call(f.client, RPC("Detokenize"), &dq, &merx__v1__detokenize_response__descriptor, &dr, NULL) == MX_RPC_OK);
    CHECK(dr && dr->text.len == sizeof any && memcmp(dr->text.data, any, sizeof any) == 0);
    if (r) merx__v1__tokenize_response__free_unpacked(r, NULL);
    if (dr) merx__v1__detokenize_response__free_unpacked(dr, NULL);

    Merx__V1__ListModelsRequest lq = MERX__V1__LIST_MODELS_REQUEST__INIT;
    Merx__V1__ListModelsResponse *lr = NULL;
    CHECK(call(f.client, RPC("ListModels"), &lq, &merx__v1__list_models_response__descriptor, &lr, NULL) ==
          MX_RPC_OK);
    CHECK(lr && lr->n_models == 2);
    if (lr && lr->n_models == 2) {
        CHECK_STR(lr->models[0]->name, "fake");
        CHECK_STR(lr->models[0]->dtype, "f32");
        CHECK_STR(lr->models[0]->chat_template, "chatml");
        CHECK_STR(lr->models[1]->name, "plain");
        CHECK(lr->models[0]->max_model_len == 4096 && lr->models[0]->kv_usage == 0);
    }
    if (lr) merx__v1__list_models_response__free_unpacked(lr, NULL);
    fixture_close(&f);
}

/* ---- errors --------------------------------------------------------------------------- */

typedef struct bad_case {
    const char *what;
    void (*spoil)(Merx__V1__GenerateRequest *q, Merx__V1__Sampling *s);
    int code;
    const char *text; /* is part of the message */
} bad_case;

static Merx__V1__Chat bad_chat;
static Merx__V1__ChatMessage bad_message, *bad_messages[1] = {&bad_message};
static Merx__V1__TokenIds bad_ids;
static int32_t id_list[] = {1, 2, 260};
static char *stop_list[100];

static void with_chat(Merx__V1__GenerateRequest *q, const char *role, size_t n)
{
    merx__v1__chat__init(&bad_chat);
    merx__v1__chat_message__init(&bad_message);
    bad_message.role = (char *)(uintptr_t)role;
    bad_chat.n_messages = n;
    bad_chat.messages = bad_messages;
    q->input_case = MERX__V1__GENERATE_REQUEST__INPUT_CHAT;
    q->chat = &bad_chat;
}
#define SPOIL(name) static void name(Merx__V1__GenerateRequest *q, Merx__V1__Sampling *s)
SPOIL(no_input)
{
    (void)s;
    q->input_case = MERX__V1__GENERATE_REQUEST__INPUT__NOT_SET;
}
SPOIL(no_model)
{
    (void)s;
    q->model = "nobody";
}
SPOIL(nan_temperature)
{
    (void)q;
    s->_temperature_case = 1;
    s->temperature = NAN;
}
SPOIL(many_candidates)
{
    (void)q;
    s->n = 65;
}
SPOIL(negative_n)
{
    (void)q;
    s->n = -1;
}
SPOIL(negative_tokens)
{
    (void)q;
    s->max_tokens = -5;
}
SPOIL(negative_logprobs)
{
    (void)q;
    s->_logprobs_case = MERX__V1__SAMPLING___LOGPROBS_LOGPROBS;
    s->logprobs = -1;
}
SPOIL(bad_utf8)
{
    (void)s;
    q->prompt = "ok \xff";
}
SPOIL(bad_role)
{
    (void)s;
    with_chat(q, "robot", 1);
}
SPOIL(empty_chat)
{
    (void)s;
    with_chat(q, "user", 0);
}
SPOIL(no_template)
{
    (void)s;
    with_chat(q, "user", 1);
    q->model = "plain";
}
SPOIL(device_fails)
{
    (void)s;
    q->prompt = "!broken";
}
SPOIL(id_outside)
{
    (void)s;
    merx__v1__token_ids__init(&bad_ids);
    bad_ids.n_ids = 3;
    bad_ids.ids = id_list;
    q->input_case = MERX__V1__GENERATE_REQUEST__INPUT_IDS;
    q->ids = &bad_ids;
}
SPOIL(no_ids)
{
    (void)s;
    merx__v1__token_ids__init(&bad_ids);
    q->input_case = MERX__V1__GENERATE_REQUEST__INPUT_IDS;
    q->ids = &bad_ids;
}
SPOIL(many_stops)
{
    (void)q;
    for (int i = 0; i < 100; i++) stop_list[i] = "x";
    s->n_stop = 100;
    s->stop = stop_list;
}
SPOIL(stop_utf8)
{
    many_stops(q, s);
    s->n_stop = 3;
    stop_list[2] = "a\xc3";
}
SPOIL(long_prompt)
{
    static char text[5000];
    (void)s;
    memset(text, 'x', sizeof text - 1);
    q->prompt = text;
}
SPOIL(long_id)
{
    static char text[300];
    (void)s;
    memset(text, 'x', sizeof text - 1);
    q->request_id = text;
}

static const bad_case bad_cases[] = {
    {"no input", no_input, MX_RPC_INVALID_ARGUMENT, "input: one of prompt"},
    {"unknown model", no_model, MX_RPC_NOT_FOUND, "\"nobody\""},
    {"NaN temperature", nan_temperature, MX_RPC_INVALID_ARGUMENT, "temperature"},
    {"too many candidates", many_candidates, MX_RPC_INVALID_ARGUMENT, "n: 65"},
    {"negative n", negative_n, MX_RPC_INVALID_ARGUMENT, "n: -1"},
    {"negative max_tokens", negative_tokens, MX_RPC_INVALID_ARGUMENT, "max_tokens"},
    {"negative logprobs", negative_logprobs, MX_RPC_INVALID_ARGUMENT, "logprobs"},
    {"prompt not UTF-8", bad_utf8, MX_RPC_INVALID_ARGUMENT, "prompt: not valid UTF-8 at byte 3"},
    {"unknown role", bad_role, MX_RPC_INVALID_ARGUMENT, "chat.messages[0].role"},
    {"empty chat", empty_chat, MX_RPC_INVALID_ARGUMENT, "chat.messages: empty"},
    {"no chat template", no_template, MX_RPC_FAILED_PRECONDITION, "chat template"},
    {"id outside the vocabulary", id_outside, MX_RPC_INVALID_ARGUMENT, "ids[2]: 260"},
    {"no ids", no_ids, MX_RPC_INVALID_ARGUMENT, "prompt: empty"},
    {"too many stops", many_stops, MX_RPC_INVALID_ARGUMENT, "sampling.stop: 100"},
    {"stop string not UTF-8", stop_utf8, MX_RPC_INVALID_ARGUMENT, "sampling.stop[2]: not valid UTF-8 at byte 1"},
    {"prompt over the context", long_prompt, MX_RPC_INVALID_ARGUMENT, "prompt: 5000 tokens"},
    {"long request id", long_id, MX_RPC_INVALID_ARGUMENT, "request_id"},
    {"the device fails", device_fails, MX_RPC_INTERNAL, "fake device"},
};

static void test_errors(void)
{
    fixture f;
    if (!fixture_open(&f, NULL, NULL)) return;
    for (size_t i = 0; i < sizeof bad_cases / sizeof *bad_cases; i++) {
        const bad_case *c = &bad_cases[i];
        for (int stream = 0; stream < 2; stream++) {
            Merx__V1__GenerateRequest q;
            Merx__V1__Sampling s;
            mx_rpc_status st;
            static char text[64][4096];
            int events = 0, lasts = 0;
            request_init(&q, &s, "Hello", 10);
            c->spoil(&q, &s);
            int code = stream ? read_stream(&f, &q, text, &events, &lasts, &st)
                              : call(f.client, RPC("Generate"), &q, GENERATED, NULL, &st);
            CHECK_MSG(code == c->code && strstr(st.text, c->text), "%s (%s): %s: %s", c->what,
                      stream ? "Stream" : "Generate", mx_rpc_code_name(code), st.text);
        }
    }
    mx_rpc_status st;
    CHECK(call_bytes(f.client, RPC("Nothing"), (const uint8_t *)"", 0, 5000, GENERATED, NULL, &st) ==
          MX_RPC_UNIMPLEMENTED);
    CHECK(call_bytes(f.client, "/nobody.Service/X", (const uint8_t *)"", 0, 5000, GENERATED, NULL, &st) ==
          MX_RPC_UNIMPLEMENTED);
    fixture_close(&f);
}

static void test_no_model(void)
{
    fixture f;
    if (!fixture_open(&f, NULL, NULL)) return;
    packed p = generate_bytes("Hello", 5);
    mx_rpc_status st;
    mx_error err = {0};
    CHECK_OK(mx_registry_unload(f.app.app.registry, "fake", 1000, &err), err);
    CHECK_OK(mx_registry_unload(f.app.app.registry, "plain", 1000, &err), err);
    f.app.models[0] = f.app.models[1] = NULL;
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 5000, GENERATED, NULL, &st) ==
          MX_RPC_FAILED_PRECONDITION);
    free(p.data);
    fixture_close(&f);
}

static void test_malformed(void)
{
    static const char *const methods[] = {RPC("Generate"), RPC("Stream"),     RPC("GenerateBatch"),
                                          RPC("Tokenize"), RPC("Detokenize"), "/grpc.health.v1.Health/Check"};
    const char *env = getenv("MX_TEST_SEED");
    uint64_t seed = env ? strtoull(env, NULL, 0) : 20240607;
    fixture f;
    if (!fixture_open(&f, NULL, NULL)) return;
    printf("  seed %llu\n", (unsigned long long)seed);
    packed good = generate_bytes("Hello there", 3);
    int refused = 0;
    for (int i = 0; i < 600; i++) {
        uint8_t bytes[200];
        size_t n;
        if (i % 2) { /* a good one, damaged */
            n = good.len;
            memcpy(bytes, good.data, n);
            bytes[test_random(&seed) % n] = (uint8_t)test_random(&seed);
            if (i % 4 == 3) n = test_random(&seed) % n;
        } else {
            n = test_random(&seed) % sizeof bytes;
            for (size_t k = 0; k < n; k++) bytes[k] = (uint8_t)test_random(&seed);
        }
        mx_rpc_status st;
        mx_client_call *call;
        if (mx_client_stream(f.client, &call, methods[i % 6], bytes, n, 10000)) break;
        mx_client_finish(call, &st);
        mx_client_end(call);
        refused += st.code == MX_RPC_INVALID_ARGUMENT;
        CHECK_MSG(st.code == MX_RPC_OK || st.code == MX_RPC_INVALID_ARGUMENT || st.code == MX_RPC_NOT_FOUND,
                  "%s: %s: %s", methods[i % 6], mx_rpc_code_name(st.code), st.text);
    }
    CHECK_MSG(refused > 100, "%d of 600 refused", refused);
    /* The last byte's length is too long by far. */
    mx_rpc_status st;
    CHECK(call_bytes(f.client, RPC("Generate"),
                     (const uint8_t *)"\x12\x7f"
                                      "abc",
                     5, 5000, GENERATED, NULL, &st) == MX_RPC_INVALID_ARGUMENT);
    CHECK_MSG(strstr(st.text, "malformed merx.v1.GenerateRequest"), "%s", st.text);
    CHECK(call_bytes(f.client, RPC("Generate"),
                     (const uint8_t *)"\x12\x03"
                                      "a\0b",
                     5, 5000, GENERATED, NULL, &st) == MX_RPC_INVALID_ARGUMENT);
    CHECK_STR(st.text, "prompt: a NUL character at byte 1");
    CHECK(call_bytes(f.client, RPC("Generate"), good.data, good.len, 5000, GENERATED, NULL, &st) == MX_RPC_OK);
    free(good.data);
    fixture_close(&f);
}

static void test_sizes(void)
{
    fixture f;
    mx_server_options o = mx_server_defaults();
    o.max_message_bytes = 64 << 10;
    if (!fixture_open(&f, NULL, &o)) return;
    size_t n = 100 << 10;
    uint8_t *big = calloc(1, n);
    mx_rpc_status st;
    CHECK(call_bytes(f.client, RPC("Tokenize"), big, n, 5000, GENERATED, NULL, &st) == MX_RPC_RESOURCE_EXHAUSTED);
    CHECK_MSG(strstr(st.text, "larger than max"), "%s", st.text);
    /* 60 kB of empty sub-messages would unfold to some 4 MB: over the budget of 8 times the message. */
    for (size_t i = 0; i + 1 < 60000; i += 2) big[i] = 0x0a, big[i + 1] = 0;
    CHECK(call_bytes(f.client, RPC("GenerateBatch"), big, 60000, 5000, GENERATED, NULL, &st) ==
          MX_RPC_RESOURCE_EXHAUSTED);
    CHECK_MSG(strstr(st.text, "in memory"), "%s", st.text);
    free(big);
    fixture_close(&f);
}

/* ---- state, deadlines, drain --------------------------------------------------------------- */

static int health(fixture *f, const char *service, int *code)
{
    Grpc__Health__V1__HealthCheckRequest q = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
    Grpc__Health__V1__HealthCheckResponse *r = NULL;
    q.service = (char *)(uintptr_t)service;
    *code = call(f->client, "/grpc.health.v1.Health/Check", &q, &grpc__health__v1__health_check_response__descriptor,
                 &r, NULL);
    int status = r ? (int)r->status : -1;
    if (r) grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    return status;
}

static void test_health(void)
{
    fixture f;
    int code;
    if (!fixture_open(&f, NULL, NULL)) return;
    CHECK(health(&f, "", &code) == 1 && code == 0);
    CHECK(health(&f, "merx.v1.Generation", &code) == 1 && code == 0);
    CHECK(health(&f, "grpc.health.v1.Health", &code) == 1 && code == 0);
    CHECK(health(&f, "nobody", &code) == -1 && code == MX_RPC_NOT_FOUND);
    atomic_store(&f.app.app.state, MX_APP_STARTING);
    CHECK(health(&f, "", &code) == 2);
    CHECK(health(&f, "merx.v1.Generation", &code) == 2);
    packed p = generate_bytes("Hello", 3);
    mx_rpc_status st;
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 5000, GENERATED, NULL, &st) == MX_RPC_UNAVAILABLE);
    CHECK_STR(st.text, "the server is starting");
    atomic_store(&f.app.app.state, MX_APP_SERVING);
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 5000, GENERATED, NULL, &st) == MX_RPC_OK);
    free(p.data);
    fixture_close(&f);
}

static atomic_bool device_gone;
static void never_runs(void *model, mx_stream *s, mx_job **jobs, int n) { (void)model, (void)s, (void)jobs, (void)n; }
static bool is_gone(mx_device *d) { return (void)d, atomic_load(&device_gone); }

/* Health of what the device served, and what its callers hear; the process and the rest live. */
static void test_lost_device(void)
{
    fixture f;
    int code;
    mx_error err = {0};
    mx_rpc_status st;
    if (!fixture_open(&f, NULL, NULL)) return;
    mx_device_ops ops = *f.app.app.devices[0].ops;
    ops.lost = is_gone;
    f.app.app.devices[0].ops = &ops;
    CHECK(health(&f, "merx.v1.Generation", &code) == 1);
    atomic_store(&device_gone, true);
    mx_scheduler_wake(f.app.app.scheduler);
    packed p = generate_bytes("Hello", 3);
    for (int i = 0; i < 500 && health(&f, "merx.v1.Generation", &code) != 2; i++) nap_ms(10);
    CHECK(health(&f, "merx.v1.Generation", &code) == 2 && health(&f, "", &code) == 2);
    CHECK(health(&f, "merx.v1.Embeddings", &code) == 1);
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 5000, GENERATED, NULL, &st) == MX_RPC_UNAVAILABLE);
    CHECK_MSG(strstr(st.text, "lost"), "%s", st.text);
    CHECK(call_bytes(f.client, RPC("ListModels"), (const uint8_t *)"", 0, 3000, &merx__v1__list_models_response__descriptor, NULL, &st) == MX_RPC_OK);
    mx_lane_config other = {.name = "other.embed", .device = 0, .max_jobs = 1, .max_rows = 1, .queue_limit = 1, .run = never_runs};
    CHECK_OK(mx_scheduler_lane(f.app.app.scheduler, &other, &err), err);
    CHECK(health(&f, "merx.v1.Embeddings", &code) == 2);
    atomic_store(&device_gone, false);
    free(p.data);
    fixture_close(&f);
}

static int next_health(mx_client_call *w)
{
    const uint8_t *msg;
    size_t len;
    if (!mx_client_next(w, &msg, &len)) return -1;
    Grpc__Health__V1__HealthCheckResponse *r = grpc__health__v1__health_check_response__unpack(NULL, len, msg);
    int status = r ? (int)r->status : -1;
    if (r) grpc__health__v1__health_check_response__free_unpacked(r, NULL);
    return status;
}

static void test_watch(void)
{
    fixture f;
    mx_client_call *w, *unknown;
    if (!fixture_open(&f, NULL, NULL)) return;
    CHECK(!mx_client_stream(f.client, &w, "/grpc.health.v1.Health/Watch", (const uint8_t *)"", 0, 0));
    CHECK(!mx_client_stream(f.client, &unknown, "/grpc.health.v1.Health/Watch", (const uint8_t *)"\x0a\x01x", 3, 0));
    CHECK(next_health(w) == 1);
    CHECK(next_health(unknown) == 3);
    atomic_store(&f.app.app.state, MX_APP_STARTING); /* nobody tells the server */
    CHECK(next_health(w) == 2);
    atomic_store(&f.app.app.state, MX_APP_SERVING);
    mx_server_state_changed(f.server);
    CHECK(next_health(w) == 1);
    CHECK(mx_server_inflight(f.server) == 0); /* watchers hold no drain up */
    CHECK(mx_server_drain(f.server, 5000) == 0);
    CHECK(next_health(w) == 2);
    CHECK(next_health(w) == -1);
    mx_client_end(w);
    mx_client_end(unknown);
    fixture_close(&f);
}

static void test_deadline(void)
{
    fixture f;
    mx_fake_options o = fake_defaults();
    o.turn_us = 5000;
    o.max_jobs = 1;
    if (!fixture_open(&f, &o, NULL)) return;
    packed p = generate_bytes("Hello", 4000);
    mx_rpc_status st;
    uint64_t start = now_ms();
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 150, GENERATED, NULL, &st) ==
          MX_RPC_DEADLINE_EXCEEDED);
    CHECK_MSG(now_ms() - start < 2000, "%llu ms", (unsigned long long)(now_ms() - start));
    CHECK(fixture_quiet(&f, 3000));
    CHECK(fixture_pages(&f) == 0);
    free(p.data);
    /* A pace to measure, then a queue that is too long for the deadline: refused at once. */
    p = generate_bytes("Hello", 1);
    for (int i = 0; i < 40; i++) call_bytes(f.client, RPC("Generate"), p.data, p.len, 5000, GENERATED, NULL, &st);
    free(p.data);
    mx_client_call *calls[41];
    p = generate_bytes("Hello", 200);
    for (int i = 0; i < 41; i++) CHECK(!mx_client_stream(f.client, &calls[i], RPC("Stream"), p.data, p.len, 0));
    nap_ms(50);
    start = now_ms();
    int code = call_bytes(f.client, RPC("Generate"), p.data, p.len, 100, GENERATED, NULL, &st);
    CHECK_MSG(code == MX_RPC_DEADLINE_EXCEEDED && strstr(st.text, "requests wait"), "%s: %s", mx_rpc_code_name(code),
              st.text);
    for (int i = 0; i < 41; i++) mx_client_end(calls[i]);
    free(p.data);
    CHECK(fixture_quiet(&f, 3000));
    fixture_close(&f);
}

static void test_drain(void)
{
    fixture f;
    mx_client_call *a;
    mx_rpc_status st;
    if (!fixture_open(&f, NULL, NULL)) return;
    packed p = generate_bytes("Hello", 300);
    CHECK(!mx_client_stream(f.client, &a, RPC("Stream"), p.data, p.len, 0));
    CHECK(mx_client_next(a, NULL, NULL)); /* it runs */
    uint64_t start = now_ms();
    CHECK(mx_server_drain(f.server, 20000) == 0); /* lets it finish */
    mx_client_finish(a, &st);
    CHECK_MSG(st.code == MX_RPC_OK, "%s: %s", mx_rpc_code_name(st.code), st.text);
    CHECK_MSG(now_ms() - start < 10000, "%llu ms", (unsigned long long)(now_ms() - start));
    mx_client_end(a);
    int code = call_bytes(f.client, RPC("Generate"), p.data, p.len, 2000, GENERATED, NULL, &st);
    CHECK_MSG(code == MX_RPC_UNAVAILABLE, "%s: %s", mx_rpc_code_name(code), st.text);
    free(p.data);
    fixture_close(&f);
}

static void *drain_slowly(void *arg)
{
    fixture *f = arg;
    return (void *)(intptr_t)mx_server_drain(f->server, 600);
}

static void test_drain_cuts(void)
{
    fixture f;
    mx_client_call *a;
    mx_rpc_status st;
    pthread_t thread;
    void *cut;
    int code;
    mx_fake_options o = fake_defaults();
    o.turn_us = 5000;
    if (!fixture_open(&f, &o, NULL)) return;
    packed p = generate_bytes("Hello", 4000); /* 20 s of work */
    CHECK(!mx_client_stream(f.client, &a, RPC("Stream"), p.data, p.len, 0));
    CHECK(mx_client_next(a, NULL, NULL));
    pthread_create(&thread, NULL, drain_slowly, &f);
    nap_ms(150);
    /* Within the grace: health answers and says no, new calls are refused, the old one runs. */
    CHECK(health(&f, "", &code) == 2);
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 2000, GENERATED, NULL, &st) == MX_RPC_UNAVAILABLE);
    CHECK_STR(st.text, "the server is shutting down");
    CHECK(mx_client_next(a, NULL, NULL));
    pthread_join(thread, &cut);
    CHECK((intptr_t)cut == 1);
    mx_client_finish(a, &st);
    CHECK_MSG(st.code == MX_RPC_UNAVAILABLE || st.code == MX_RPC_CANCELLED, "%s: %s", mx_rpc_code_name(st.code),
              st.text);
    mx_client_end(a);
    free(p.data);
    fixture_close(&f);
}

static void test_open_errors(void)
{
    fixture f;
    mx_server *second = NULL;
    mx_error err;
    if (!fixture_open(&f, NULL, NULL)) return;
    mx_server_options o = mx_server_defaults();
    o.listen = mx_server_address(f.server);
    CHECK(mx_server_open(&second, &f.app.app, &o, &err) == MX_ERR_IO && !second);
    CHECK_MSG(strstr(err.text, "Address already in use") && strstr(err.text, o.listen), "%s", err.text);
    o.listen = "203.0.113.1:0";
    CHECK(mx_server_open(&second, &f.app.app, &o, &err) == MX_ERR_IO);
    o = mx_server_defaults();
    o.max_message_bytes = 10;
    CHECK(mx_server_open(&second, &f.app.app, &o, &err) == MX_ERR_ARG && strstr(err.text, "max-message-bytes"));
    fixture_close(&f);
    /* Nobody there. */
    mx_client *c;
    mx_rpc_status st;
    CHECK(!mx_client_open(&c, "127.0.0.1:1", NULL, &err));
    CHECK(call_bytes(c, RPC("ListModels"), (const uint8_t *)"", 0, 3000, GENERATED, NULL, &st) == MX_RPC_UNAVAILABLE);
    mx_client_close(c);
}

MX_TESTS(TEST(test_generate), TEST(test_stream_equals_generate), TEST(test_batch), TEST(test_tokens_and_models),
         TEST(test_errors), TEST(test_no_model), TEST(test_malformed), TEST(test_sizes), TEST(test_health), TEST(test_lost_device),
         TEST(test_watch), TEST(test_deadline), TEST(test_drain), TEST(test_drain_cuts), TEST(test_open_errors))
