/* test_generate.c - the generation engine on a small real network: greedy text
 * as transformers', the same tokens alone and in any company (chunks, shared
 * prefixes, candidates, preemption), stop rules, bans, errors, no page lost. */
#include "tests/generate_rig.h"
#ifdef MX_TEST_SIMULATED
#include "cudasim.h"
#endif

static mx_generator_options small(int32_t rows, size_t pages, bool share)
{
    mx_generator_options o = mx_generator_defaults();
    o.max_batched_tokens = rows;
    o.page_tokens = 4;
    o.max_num_seqs = 16;
    o.kv_bytes = pages * 2 * 2 * 4 * 2 * 8 * sizeof(float);      /* llama: 2 layers, k and v, 4 tokens, 2 heads x 8 */
    o.prefix_caching = share;
    return o;
}

static void greedy_as_transformers(void)
{
    static const char *const models[] = {"gpt2", "llama"};
    for (int m = 0; m < 2; m++) {
        mx_generator_options o = mx_generator_defaults();
        mx_sampling p = mx_sampling_defaults();
        rig r;
        request q;
        p.temperature = 0;
        p.max_tokens = 64;
        p.ignore_eos = true;
        if (rig_open(&r, models[m], &o) && !rig_start(&r, &q, golden_ids, PROMPT, &p)) {
            rig_wait(&q);
            const mx_candidate *c = mx_generation_candidate(q.g, 0);
            CHECK(c->n_ids == 64 && c->finish == MX_FINISH_LENGTH && c->text_len == q.streamed);
            CHECK(c->n_ids == 64 && !memcmp(c->ids, golden_ids + PROMPT, sizeof(int32_t) * 64));
#ifdef MX_TEST_SIMULATED
            /* 63 turns of a row each: one as it comes, one recorded, the others replayed */
            CHECK_MSG(cudasim_stats.graphs <= (unsigned long)(m + 1) * 2 && cudasim_stats.replays >= (unsigned long)(m + 1) * 60,
                      "%lu graphs, %lu replays", cudasim_stats.graphs, cudasim_stats.replays);
#endif
            mx_generation_close(q.g);
        }
        rig_close(&r);
    }
}

enum { REQUESTS = MX_TEST_REQUESTS, CANDIDATES = 3, LONGEST = 40 };
static int32_t alone[REQUESTS][CANDIDATES][LONGEST];

static mx_sampling sampling_of(int i)
{
    mx_sampling p = mx_sampling_defaults();
    p.temperature = i % 3 == 0 ? 0.0f : 1.3f;
    p.top_k = i % 2 ? 20 : 0;
    p.repetition_penalty = i % 4 == 1 ? 1.3f : 1.0f;
    p.seeded = true;
    p.seed = 1000u + (unsigned)i;
    p.n = 1 + i % CANDIDATES;
    p.max_tokens = 10 + 3 * i;
    p.ignore_eos = true;
    return p;
}

/* All requests, `together` at once; the first time the answers are kept. */
static int32_t play(const mx_generator_options *o, int together, bool keep, const char *what)
{
    rig r;
    request q[REQUESTS];
    if (!rig_open(&r, "llama", o)) return 0;
    for (int first = 0; first < REQUESTS; first += together) {
        for (int i = first; i < first + together && i < REQUESTS; i++) {
            mx_sampling p = sampling_of(i);
            rig_start(&r, &q[i], golden_ids + i % 3, 12 + i, &p);
        }
        for (int i = first; i < first + together && i < REQUESTS; i++) {
            rig_wait(&q[i]);
            for (int k = 0; k < mx_generation_count(q[i].g); k++) {
                const mx_candidate *c = mx_generation_candidate(q[i].g, k);
                size_t bytes = (size_t)c->n_ids * sizeof(int32_t);
                CHECK(c->n_ids == 10 + 3 * i);
                if (keep) memcpy(alone[i][k], c->ids, bytes);
                else CHECK_MSG(!memcmp(alone[i][k], c->ids, bytes), "%s: request %d candidate %d", what, i, k);
            }
            mx_generation_close(q[i].g);
        }
    }
    return (int32_t)rig_close(&r).preemptions;
}

static void same_tokens_in_any_company(void)
{
    mx_generator_options plain = small(64, 400, false);
    play(&plain, 1, true, "alone");
    for (int share = 0; share < 2; share++)
        for (int rows = 3; rows <= 64; rows = rows * 2 + 1) {
            mx_generator_options wide = small(rows < CANDIDATES ? CANDIDATES : rows, 400, share), tight = small(rows, REQUESTS > 5 ? 48 : 24, share);
            CHECK(play(&wide, REQUESTS, false, "together") == 0);
            CHECK_MSG(play(&tight, REQUESTS, false, "few pages") > 0, "nothing was preempted: rows %d", rows);
        }
}

static void stops_and_bans(void)
{
    mx_generator_options o = small(64, 400, true);
    mx_sampling p = mx_sampling_defaults();
    rig r;
    request q;
    p.seeded = true;
    p.seed = 5;
    p.max_tokens = 40;
    p.ignore_eos = true;
    if (rig_open(&r, "llama", &o) && !rig_start(&r, &q, golden_ids, 10, &p)) {
        rig_wait(&q);
        char stop[3] = {0}, text[512];
        snprintf(text, sizeof text, "%s", mx_generation_candidate(q.g, 0)->text);
        mx_generation_close(q.g);
        size_t at = 4;
        while (text[at] && (text[at] < 33 || text[at + 1] < 33)) at++;           /* two plain characters in a row */
        memcpy(stop, text + at, 2);
        const char *list[] = {stop};
        p.stops = list;
        p.n_stops = 1;
        rig_start(&r, &q, golden_ids, 10, &p);
        rig_wait(&q);
        const mx_candidate *c = mx_generation_candidate(q.g, 0);
        CHECK(c->finish == MX_FINISH_STOP && c->stop && !strcmp(c->stop, stop) && q.streamed == c->text_len);
        CHECK_MSG(!strstr(c->text, stop) && !strncmp(c->text, text, c->text_len), "\"%s\" cut at \"%s\"", c->text, stop);
        mx_generation_close(q.g);
        p.n_stops = 0;
        p.banned = list;
        p.n_banned = 1;
        rig_start(&r, &q, golden_ids, 10, &p);
        rig_wait(&q);
        CHECK(!strstr(mx_generation_candidate(q.g, 0)->text, stop) && mx_generation_candidate(q.g, 0)->n_ids == 40);
        mx_generation_close(q.g);
    }
    rig_close(&r);
}

static void cancelled_gives_pages_back(void)
{
    mx_generator_options o = small(64, 400, true);
    rig r;
    request q[8];
    if (rig_open(&r, "llama", &o))
        for (int round = 0; round < 5 * MX_TEST_REQUESTS; round++) {
            for (int i = 0; i < 8; i++) {
                mx_sampling p = sampling_of(i);
                p.max_tokens = 60;
                rig_start(&r, &q[i], golden_ids, 12 + i, &p);
            }
            for (int i = 0; i < 8; i++) mx_generation_cancel(q[i].g);
            for (int i = 0; i < 8; i++) {
                while (!atomic_load(&q[i].done)) sched_yield();
                CHECK(q[i].err.code == MX_OK || q[i].err.code == MX_ERR_CANCELLED);
                mx_generation_close(q[i].g);
            }
        }
    rig_close(&r);
}

static void refuses(rig *r, int n_prompt, const mx_sampling *p, const char *field)
{
    mx_error err = {0};
    mx_generation *g = NULL;
    mx_generation_calls calls = {NULL, rig_on_done, NULL};
    CHECK(mx_generation_open(&g, r->gen, golden_ids, n_prompt, p, &calls, 0, &err) == MX_ERR_ARG);
    CHECK_MSG(strstr(err.text, field), "\"%s\" does not name %s", err.text, field);
    mx_generation_close(g);
}

static void bad_requests(void)
{
    mx_generator_options o = small(64, 40, true);
    rig r;
    if (rig_open(&r, "llama", &o)) {
        mx_sampling p = mx_sampling_defaults();
        refuses(&r, 0, &p, "prompt");
        refuses(&r, 93, (p.n = 16, &p), "KV pages");
        p = mx_sampling_defaults();
        p.temperature = NAN;
        refuses(&r, 5, &p, "temperature");
        p = mx_sampling_defaults();
        p.top_p = 0;
        refuses(&r, 5, &p, "top_p");
        p = mx_sampling_defaults();
        p.n = 65;
        refuses(&r, 5, &p, "n is 65");
        p = mx_sampling_defaults();
        p.beams = 4;
        p.echo = true;
        refuses(&r, 5, &p, "echo");
        p = mx_sampling_defaults();
        p.stop_ids = (int32_t[]){VOCAB};
        p.n_stop_ids = 1;
        refuses(&r, 5, &p, "stop_ids");
    }
    rig_close(&r);
}

MX_TESTS(TEST(greedy_as_transformers), TEST(same_tokens_in_any_company), TEST(stops_and_bans), TEST(cancelled_gives_pages_back),
         TEST(bad_requests))
