/* test_server_rate.c - how many small calls a second, and how long one takes.  As a
 * test it runs briefly and only asks that the answers are right; MX_BENCH_MS=2000
 * makes it a measurement, MX_RATE_TARGET=127.0.0.1:50051 measures another process. */
#include "tests/server_fixture.h"

enum { MOST = 1 << 20 };

typedef struct rate {
    pthread_mutex_t lock;
    pthread_cond_t quiet;
    mx_client *client;
    const char *method;
    packed request;
    uint64_t end_ns;
    int running, bad;
    size_t n, events;
    uint32_t *took_ns;
} rate;

typedef struct loop {
    rate *r;
    uint64_t start_ns;
    bool unary;
} loop;

static void loop_start(loop *l);

static void loop_message(void *user, const uint8_t *msg, size_t len)
{
    loop *l = user;
    (void)msg, (void)len;
    l->r->events++; /* one client thread */
}

static void loop_done(void *user, const mx_rpc_status *st)
{
    loop *l = user;
    rate *r = l->r;
    uint64_t now = mx_now_ns(&mx_clock_monotonic);
    r->bad += st->code != MX_RPC_OK;
    if (r->n < MOST) r->took_ns[r->n++] = (uint32_t)(now - l->start_ns);
    if (now < r->end_ns) {
        loop_start(l);
        return;
    }
    pthread_mutex_lock(&r->lock);
    r->running--;
    pthread_cond_signal(&r->quiet);
    pthread_mutex_unlock(&r->lock);
}

static void loop_start(loop *l)
{
    mx_client_calls calls = {.unary = l->unary, .message = loop_message, .done = loop_done, .user = l};
    l->start_ns = mx_now_ns(&mx_clock_monotonic);
    mx_client_start(l->r->client, NULL, l->r->method, l->r->request.data, l->r->request.len, 0, &calls);
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static void measure(fixture *f, const char *method, packed request, int in_flight, bool unary)
{
    const char *env = getenv("MX_BENCH_MS");
    uint64_t ms = env ? strtoull(env, NULL, 10) : 100;
    static loop loops[256];
    rate r = {.client = f->client, .method = method, .request = request, .running = in_flight};
    r.took_ns = malloc(MOST * sizeof *r.took_ns);
    pthread_mutex_init(&r.lock, NULL);
    pthread_cond_init(&r.quiet, NULL);
    uint64_t start = mx_now_ns(&mx_clock_monotonic);
    r.end_ns = start + ms * 1000000u;
    for (int i = 0; i < in_flight; i++) {
        loops[i] = (loop){.r = &r, .unary = unary};
        loop_start(&loops[i]);
    }
    pthread_mutex_lock(&r.lock);
    while (r.running) pthread_cond_wait(&r.quiet, &r.lock);
    pthread_mutex_unlock(&r.lock);
    double seconds = (double)(mx_now_ns(&mx_clock_monotonic) - start) / 1e9;
    qsort(r.took_ns, r.n, sizeof *r.took_ns, by_value);
    CHECK_MSG(r.bad == 0 && r.n > 0, "%s: %d of %zu calls failed", method, r.bad, r.n);
    if (r.n)
        printf("  %-34s %3d in flight: %8.0f calls/s, %8.0f messages/s, p50 %5.0f us, p99 %5.0f us\n", method,
               in_flight, (double)r.n / seconds, (double)r.events / seconds, r.took_ns[r.n / 2] / 1e3,
               r.took_ns[r.n * 99 / 100] / 1e3);
    free(r.took_ns);
    pthread_mutex_destroy(&r.lock);
    pthread_cond_destroy(&r.quiet);
}

static void test_rates(void)
{
    fixture f;
    mx_fake_options o = fake_defaults();
    mx_server_options so = mx_server_defaults();
    so.threads = 1;
    o.turn_us = 0;
    o.max_jobs = 64;
    if (!fixture_open(&f, &o, &so)) return;
    const char *target = getenv("MX_RATE_TARGET");
    mx_error err;
    if (target) {
        mx_client_close(f.client);
        CHECK_OK(mx_client_open(&f.client, target, NULL, &err), err);
    }
    uint8_t text[] = "A short line of copy for sunscreen";
    Merx__V1__TokenizeRequest t = MERX__V1__TOKENIZE_REQUEST__INIT;
    t.input_case = MERX__V1__TOKENIZE_REQUEST__INPUT_TEXT;
    t.text = (ProtobufCBinaryData){.data = text, .len = sizeof text - 1};
    packed tokenize = pack(&t.base), none = {.data = (uint8_t *)"", .len = 0};
    packed one = generate_bytes("Hello", 1), hundred = generate_bytes("Hello", 200);
    static const int in_flight[] = {1, 16, 64};
    for (int i = 0; i < 3; i++) {
        measure(&f, RPC("Tokenize"), tokenize, in_flight[i], true);
        measure(&f, RPC("ListModels"), none, in_flight[i], true);
        measure(&f, RPC("Generate"), one, in_flight[i], true);
        measure(&f, RPC("Stream"), hundred, in_flight[i], false);
    }
    free(tokenize.data);
    free(one.data);
    free(hundred.data);
    fixture_close(&f);
}

MX_TESTS(TEST(test_rates))
