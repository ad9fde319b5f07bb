/* test_server_engine.c - the whole house: the real engine on a tiny model with seeded
 * weights, behind the real server. */
#include "tests/house.h"

enum { NEW = 64 };

static int used_pages(const house *h)
{
    mx_generator_info info;
    mx_generator_info_get(mx_app_model(&h->app), &info);
    return info.kv_pages - info.kv_pages_free;
}

static bool quiet(const house *h)
{
    uint64_t start = now_ms();
    while (used_pages(h) || mx_server_inflight(h->server)) {
        if (now_ms() - start > 20000) return false;
        nap_ms(2);
    }
    return true;
}

/* The ids that a stream brings are those of the unary call, with sampling and a seed. */
static void test_stream_equals_generate(void)
{
    house h;
    if (!house_open(&h, &(house_options){.seqs = 16, .queue = 2000})) return;
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    Merx__V1__GenerateResponse *r = NULL;
    mx_client_call *c;
    mx_rpc_status st;
    const uint8_t *msg;
    size_t len, got = 0, wrong = 0;
    house_request(&q, &s, NEW);
    CHECK(call(h.client, RPC("Generate"), &q, &merx__v1__generate_response__descriptor, &r, &st) == MX_RPC_OK);
    CHECK_MSG(r && r->n_candidates == 1 && r->candidates[0]->n_ids > 0, "%s", st.text);
    CHECK(r && r->usage && r->usage->prompt_tokens == HOUSE_PROMPT && r->timings && r->timings->decode_ms > 0);
    packed p = pack(&q.base);
    CHECK(!mx_client_stream(h.client, &c, RPC("Stream"), p.data, p.len, 20000));
    while (mx_client_next(c, &msg, &len)) {
        Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, msg);
        for (size_t i = 0; e && r && i < e->n_ids; i++, got++)
            wrong += got >= r->candidates[0]->n_ids || e->ids[i] != r->candidates[0]->ids[got];
        if (e) merx__v1__generate_event__free_unpacked(e, NULL);
    }
    mx_client_finish(c, &st);
    CHECK_MSG(st.code == MX_RPC_OK && r && got == r->candidates[0]->n_ids && !wrong, "%zu ids, %zu differ, %s", got,
              wrong, st.text);
    mx_client_end(c);
    if (r) merx__v1__generate_response__free_unpacked(r, NULL);
    free(p.data);
    CHECK(quiet(&h));
    house_close(&h);
}

static void test_storm_leaves_every_page(void)
{
    int total = SANITIZED ? 1000 : 10000;
    house h;
    storm s;
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling t;
    if (!house_open(&h, &(house_options){.seqs = 16, .queue = 2000})) return;
    house_request(&q, &t, 80);
    t.ignore_eos = true;
    packed p = pack(&q.base);
    storm_open(&s, 64);
    cancel_storm(h.client, &s, total / 10, &p);
    vanish_storm(mx_server_port(h.server), total / 10, &p);
    CHECK_MSG(quiet(&h), "%d pages, %d calls", used_pages(&h), mx_server_inflight(h.server));
    long before = heap_kb();
    int files = open_files();
    cancel_storm(h.client, &s, total / 2, &p);
    CHECK_MSG(quiet(&h), "%d pages, %d calls", used_pages(&h), mx_server_inflight(h.server));
    CHECK(vanish_storm(mx_server_port(h.server), total / 2, &p) == total / 2);
    for (int i = 0; i < 1000 && open_files() > files + 2; i++) nap_ms(10);
    CHECK_MSG(quiet(&h), "%d pages, %d calls", used_pages(&h), mx_server_inflight(h.server));
    long grown = heap_kb() - before;
    printf("  %d streams; heap %ld kB, grown %ld kB\n", total, heap_kb(), grown);
    CHECK_MSG(SANITIZED || grown < 2048, "%ld kB grown", grown);
    storm_close(&s, true);
    free(p.data);
    house_close(&h);
}

/* ---- a crowd ------------------------------------------------------------------------ */

enum { CLIENTS = 256, SEEDS = 8, CROWD_TOKENS = 24 };

typedef struct crowd {
    pthread_mutex_t lock;
    pthread_cond_t  news;
    int             left, ok, exhausted, other, wrong;
    int32_t         alone[SEEDS][CROWD_TOKENS];      /* what each seed gives on an empty server */
} crowd;

typedef struct voice { crowd *of; int seed; } voice;

static void voice_message(void *user, const uint8_t *msg, size_t len)
{
    const voice *v = user;
    Merx__V1__GenerateResponse *r = merx__v1__generate_response__unpack(NULL, len, msg);
    bool right = r && r->n_candidates == 1 && r->candidates[0]->n_ids == CROWD_TOKENS &&
                 !memcmp(r->candidates[0]->ids, v->of->alone[v->seed], sizeof v->of->alone[0]);
    pthread_mutex_lock(&v->of->lock);
    v->of->wrong += !right;
    pthread_mutex_unlock(&v->of->lock);
    if (r) merx__v1__generate_response__free_unpacked(r, NULL);
}

static void voice_done(void *user, const mx_rpc_status *st)
{
    crowd *c = ((voice *)user)->of;
    pthread_mutex_lock(&c->lock);
    c->ok += st->code == MX_RPC_OK;
    c->exhausted += st->code == MX_RPC_RESOURCE_EXHAUSTED && st->retry_ms;
    c->other += st->code != MX_RPC_OK && (st->code != MX_RPC_RESOURCE_EXHAUSTED || !st->retry_ms);
    c->left--;
    pthread_cond_signal(&c->news);
    pthread_mutex_unlock(&c->lock);
}

static void crowd_request(Merx__V1__GenerateRequest *q, Merx__V1__Sampling *s, int seed)
{
    house_request(q, s, CROWD_TOKENS);
    s->ignore_eos = true;
    s->_seed_case = MERX__V1__SAMPLING___SEED_SEED;
    s->seed = (uint64_t)seed;
}

/* Everybody is served or told to come again, and who is served gets what a lone
 * caller gets: the same tokens in whatever company. */
static void test_crowd_gets_the_same_texts(void)
{
    house h;
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    mx_rpc_status st;
    mx_error err;
    static mx_client *clients[CLIENTS];
    static voice voices[CLIENTS];
    static crowd c;
    if (!house_open(&h, &(house_options){.seqs = 16, .queue = 64})) return;
    c = (crowd){.left = CLIENTS, .lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};
    packed p[SEEDS];
    for (int i = 0; i < SEEDS; i++) {
        Merx__V1__GenerateResponse *r = NULL;
        crowd_request(&q, &s, i);
        p[i] = pack(&q.base);
        CHECK(call(h.client, RPC("Generate"), &q, &merx__v1__generate_response__descriptor, &r, &st) == MX_RPC_OK);
        CHECK(r && r->candidates[0]->n_ids == CROWD_TOKENS);
        if (r && r->candidates[0]->n_ids == CROWD_TOKENS) memcpy(c.alone[i], r->candidates[0]->ids, sizeof c.alone[i]);
        if (r) merx__v1__generate_response__free_unpacked(r, NULL);
    }
    CHECK(memcmp(c.alone[0], c.alone[1], sizeof c.alone[0]) != 0);
    for (int i = 0; i < CLIENTS; i++) CHECK_OK(mx_client_open(&clients[i], mx_server_address(h.server), NULL, &err), err);
    for (int i = 0; i < CLIENTS; i++) {
        voices[i] = (voice){&c, i % SEEDS};
        mx_client_calls calls = {.unary = true, .message = voice_message, .done = voice_done, .user = &voices[i]};
        CHECK(!mx_client_start(clients[i], NULL, RPC("Generate"), p[i % SEEDS].data, p[i % SEEDS].len, 60000, &calls));
    }
    pthread_mutex_lock(&c.lock);
    while (c.left) pthread_cond_wait(&c.news, &c.lock);
    pthread_mutex_unlock(&c.lock);
    printf("  %d clients on a queue of 64: %d OK, %d RESOURCE_EXHAUSTED\n", CLIENTS, c.ok, c.exhausted);
    CHECK_MSG(c.other == 0 && c.wrong == 0, "%d of another status, %d other texts", c.other, c.wrong);
    CHECK(c.ok >= 64 && c.ok + c.exhausted == CLIENTS);
    CHECK(quiet(&h));
    for (int i = 0; i < CLIENTS; i++) mx_client_close(clients[i]);
    for (int i = 0; i < SEEDS; i++) free(p[i].data);
    house_close(&h);
}

MX_TESTS(TEST(test_crowd_gets_the_same_texts), TEST(test_stream_equals_generate), TEST(test_storm_leaves_every_page))
