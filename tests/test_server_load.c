/* test_server_load.c - crowds, cancel storms, vanished and slow clients. */
#include "tests/server_storm.h"

static void test_storms(void)
{
    enum { CALLS = 10000 };
    int total = SANITIZED ? CALLS / 5 : CALLS;
    fixture f;
    mx_fake_options o = fake_defaults();
    mx_server_options so = mx_server_defaults();
    o.queue_limit = 4000;
    o.max_jobs = 64;
    so.threads = 2;
    if (!fixture_open(&f, &o, &so)) return;
    packed p = generate_bytes("A storm", 4000); /* would take 0.8 s each; nobody waits for it */
    storm s;
    storm_open(&s, 64);
    /* Warm: pools, arenas and gRPC's own caches reach their size. */
    cancel_storm(f.client, &s, total / 10, &p);
    vanish_storm(mx_server_port(f.server), total / 10, &p);
    CHECK(fixture_quiet(&f, 20000));
    long before = heap_kb();
    int files = open_files();
    uint64_t start = now_ms();
    cancel_storm(f.client, &s, total / 2, &p);
    CHECK_MSG(fixture_quiet(&f, 20000), "%d generations, %d calls", fixture_running(&f),
              mx_server_inflight(f.server));
    uint64_t middle = now_ms();
    int sent = vanish_storm(mx_server_port(f.server), total / 2, &p);
    CHECK_MSG(sent == total / 2, "%d sent", sent);
    CHECK_MSG(fixture_quiet(&f, 20000), "%d generations, %d calls", fixture_running(&f),
              mx_server_inflight(f.server));
    /* The last of them may still stand in the listener's queue. */
    for (int i = 0; i < 1000 && open_files() > files + 2; i++) nap_ms(10);
    CHECK_MSG(fixture_quiet(&f, 20000), "%d generations, %d calls", fixture_running(&f),
              mx_server_inflight(f.server));
    long grown = heap_kb() - before;
    printf("  %d cancelled in %llu ms, %d vanished in %llu ms; heap %ld kB, grown %ld kB\n", total / 2,
           (unsigned long long)(middle - start), sent, (unsigned long long)(now_ms() - middle), heap_kb(), grown);
    CHECK_MSG(SANITIZED || grown < 2048, "%ld kB grown", grown);
    CHECK_MSG(open_files() <= files + 2, "%d files, were %d", open_files(), files);
    CHECK(fixture_pages(&f) == 0);
    storm_close(&s, false);
    free(p.data);
    fixture_close(&f);
}

/* ---- a crowd ---------------------------------------------------------------------------------- */

typedef struct crowd {
    pthread_mutex_t lock;
    pthread_cond_t news;
    int left, ok, exhausted, other, no_retry;
    size_t replies;
} crowd;

static void crowd_message(void *user, const uint8_t *msg, size_t len)
{
    crowd *c = user;
    Merx__V1__GenerateResponse *r = merx__v1__generate_response__unpack(NULL, len, msg);
    pthread_mutex_lock(&c->lock);
    c->replies += r && r->n_candidates == 1 && strlen(r->candidates[0]->text) == 100;
    pthread_mutex_unlock(&c->lock);
    if (r) merx__v1__generate_response__free_unpacked(r, NULL);
}

static void crowd_done(void *user, const mx_rpc_status *st)
{
    crowd *c = user;
    pthread_mutex_lock(&c->lock);
    if (st->code == MX_RPC_OK)
        c->ok++;
    else if (st->code == MX_RPC_RESOURCE_EXHAUSTED)
        c->exhausted++;
    else {
        c->other++;
        fprintf(stderr, "  %s: %s\n", mx_rpc_code_name(st->code), st->text);
    }
    c->no_retry += st->code == MX_RPC_RESOURCE_EXHAUSTED && !st->retry_ms;
    c->left--;
    pthread_cond_signal(&c->news);
    pthread_mutex_unlock(&c->lock);
}

static void test_crowd(void)
{
    enum { CLIENTS = 256 };
    fixture f;
    mx_error err;
    static mx_client *clients[CLIENTS];
    mx_fake_options o = fake_defaults();
    o.queue_limit = 64;
    o.max_jobs = 4;
    o.turn_us = 300;
    if (!fixture_open(&f, &o, NULL)) return;
    packed p = generate_bytes("A crowd", 100);
    for (int i = 0; i < CLIENTS; i++)
        CHECK_OK(mx_client_open(&clients[i], mx_server_address(f.server), NULL, &err), err);
    crowd c = {.left = CLIENTS * 2};
    pthread_mutex_init(&c.lock, NULL);
    pthread_cond_init(&c.news, NULL);
    mx_client_calls calls = {.unary = true, .message = crowd_message, .done = crowd_done, .user = &c};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < CLIENTS; i++)
            CHECK(!mx_client_start(clients[i], NULL, RPC("Generate"), p.data, p.len, 60000, &calls));
    pthread_mutex_lock(&c.lock);
    while (c.left) pthread_cond_wait(&c.news, &c.lock);
    pthread_mutex_unlock(&c.lock);
    printf("  %d calls of %d clients on a queue of 64: %d OK, %d RESOURCE_EXHAUSTED\n", CLIENTS * 2, CLIENTS, c.ok,
           c.exhausted);
    CHECK(c.other == 0 && c.no_retry == 0);
    CHECK(c.ok >= 64 && c.exhausted > 0 && c.ok + c.exhausted == CLIENTS * 2);
    CHECK_MSG(c.replies == (size_t)c.ok, "%zu whole replies of %d", c.replies, c.ok);
    CHECK(fixture_quiet(&f, 5000));
    for (int i = 0; i < CLIENTS; i++) mx_client_close(clients[i]);
    pthread_mutex_destroy(&c.lock);
    pthread_cond_destroy(&c.news);
    free(p.data);
    fixture_close(&f);
}

static void test_max_calls(void)
{
    fixture f;
    mx_rpc_status st;
    mx_client_call *calls[8];
    mx_server_options so = mx_server_defaults();
    so.max_calls = 8;
    if (!fixture_open(&f, NULL, &so)) return;
    packed p = generate_bytes("Hello", 4000);
    for (int i = 0; i < 8; i++) {
        CHECK(!mx_client_stream(f.client, &calls[i], RPC("Stream"), p.data, p.len, 0));
        CHECK(mx_client_next(calls[i], NULL, NULL));
    }
    CHECK(call_bytes(f.client, RPC("ListModels"), (const uint8_t *)"", 0, 5000,
                     &merx__v1__list_models_response__descriptor, NULL, &st) == MX_RPC_RESOURCE_EXHAUSTED);
    CHECK(st.retry_ms == 1000 && strstr(st.text, "max-calls"));
    for (int i = 0; i < 8; i++) mx_client_end(calls[i]);
    CHECK(fixture_quiet(&f, 5000));
    CHECK(call_bytes(f.client, RPC("ListModels"), (const uint8_t *)"", 0, 5000,
                     &merx__v1__list_models_response__descriptor, NULL, &st) == MX_RPC_OK);
    free(p.data);
    fixture_close(&f);
}

/* ---- a slow reader -------------------------------------------------------------------------------- */

/* Until no lane has a job: all texts are written, whoever has read them. */
static void wait_until_written(const fixture *f, uint64_t limit_ms)
{
    uint64_t start = now_ms();
    mx_lane_stats lane = {.running = 1};
    while (now_ms() - start < limit_ms && (!mx_scheduler_stats(f->app.app.scheduler, "fake.generate", &lane) || lane.running || lane.waiting)) nap_ms(5);
}

static void test_slow_reader(void)
{
    enum { TOKENS = 6000, VOICES = 4 };
    fixture f;
    mx_error err;
    mx_client *slow;
    mx_client_call *call;
    mx_rpc_status st;
    mx_fake_options o = fake_defaults();
    o.turn_us = 50;
    o.max_model_len = 8192;
    if (!fixture_open(&f, &o, NULL)) return;
    mx_client_options narrow = {.window_bytes = 65535};
    CHECK_OK(mx_client_open(&slow, mx_server_address(f.server), &narrow, &err), err);
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    request_init(&q, &s, "Slowly", TOKENS);
    s.n = VOICES;
    s._logprobs_case = MERX__V1__SAMPLING___LOGPROBS_LOGPROBS;
    s.logprobs = 20; /* some 250 bytes a token: 6 MB in all, far over the window */
    packed p = pack(&q.base);
    CHECK(!mx_client_stream(slow, &call, RPC("Stream"), p.data, p.len, 0));
    CHECK(mx_client_next(call, NULL, NULL));
    free(p.data);
    /* Others are not held up by it. */
    p = generate_bytes("Quickly", 500);
    uint64_t start = now_ms();
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 20000, &merx__v1__generate_response__descriptor, NULL,
                     &st) == MX_RPC_OK);
    CHECK_MSG(now_ms() - start < 10000, "%llu ms", (unsigned long long)(now_ms() - start));
    free(p.data);
    wait_until_written(&f, 60000);
    const uint8_t *msg;
    size_t len, events = 1, letters[VOICES] = {0}, lasts = 0, logprobs = 0;
    while (mx_client_next(call, &msg, &len)) {
        Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, msg);
        CHECK(e != NULL);
        if (!e) break;
        events++;
        letters[e->index] += strlen(e->text);
        logprobs += e->n_logprobs;
        lasts += e->last != 0;
        merx__v1__generate_event__free_unpacked(e, NULL);
    }
    mx_client_finish(call, &st);
    CHECK_MSG(st.code == MX_RPC_OK, "%s: %s", mx_rpc_code_name(st.code), st.text);
    size_t all = letters[0] + letters[1] + letters[2] + letters[3];
    /* The first event was read before counting: it held one candidate's first letters. */
    CHECK_MSG(all > VOICES * TOKENS - 200 && all < VOICES * TOKENS && lasts == 1, "%zu letters, %zu last events", all,
              lasts);
    CHECK(logprobs == all);
    printf("  %d tokens came in %zu events\n", VOICES * TOKENS, events);
    CHECK_MSG(events < VOICES * TOKENS / 4, "%zu events: not gathered", events);
    mx_client_end(call);
    mx_client_close(slow);
    fixture_close(&f);
}

MX_TESTS(TEST(test_storms), TEST(test_crowd), TEST(test_max_calls), TEST(test_slow_reader))
