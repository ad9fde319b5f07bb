/* test_generate_ahead.c - a turn issued before the tokens of the one before are read
 * changes nothing that a caller can see: random requests with stops, penalties,
 * candidates, beams, bans, log-probabilities, joined and cancelled in between, against
 * the same ones alone and read turn by turn; and the host does run ahead. */
#include "tests/generate_rig.h"
#ifdef MX_TEST_SIMULATED
#include "cudasim.h"
#endif

enum { KINDS = 24, MOST = 3, LONGEST = 40 };

typedef struct answer {
    int32_t n_ids[MOST], ids[MOST][LONGEST], n_lp;
    float   lp[LONGEST];
    size_t  len[MOST];
    char    text[MOST][256];
    mx_finish finish[MOST];
} answer;

static answer expected[KINDS];
static char   stop_text[2][3];

static mx_generator_options options(int ahead, int32_t rows, size_t pages)
{
    mx_generator_options o = mx_generator_defaults();
    o.max_batched_tokens = rows;
    o.page_tokens = 4;
    o.max_num_seqs = 16;
    o.kv_bytes = pages * 2 * 2 * 4 * 2 * 8 * sizeof(float);      /* llama: 2 layers, k and v, 4 tokens, 2 heads x 8 */
    o.ahead = ahead;
    return o;
}

/* Request i: what it asks for follows from i alone. */
static mx_sampling kind(int i)
{
    static const char *const stops[2] = {stop_text[0], stop_text[1]};
    static const char *const banned[1] = {"e"};
    static const int32_t ids[3] = {5, 17, 90}, ends[2] = {7, 40};
    static const float bias[3] = {2.5f, -3, 1};
    mx_sampling p = mx_sampling_defaults();
    p.temperature = i % 5 == 0 ? 0.0f : 1.2f;
    p.seeded = true;
    p.seed = 77u + (unsigned)i;
    p.max_tokens = 5 + i % 7 * 5;
    p.ignore_eos = i % 3 != 1;
    p.top_k = i % 4 == 2 ? 15 : 0;
    p.top_p = i % 6 == 3 ? 0.8f : 1;
    if (i % 2) p.repetition_penalty = 1.4f, p.presence_penalty = 0.3f, p.frequency_penalty = 0.2f;
    if (i % 4 == 1) p.logprobs = 2;
    if (i % 3 == 0) p.stops = stops, p.n_stops = 2;
    if (i % 5 == 2) p.stop_ids = ends, p.n_stop_ids = 2;
    if (i % 7 == 3) p.bias_ids = ids, p.bias = bias, p.n_bias = 3;
    if (i % 8 == 4) p.min_tokens = 4;
    if (i % 9 == 5) p.n = MOST;
    if (i == 10 || i == 22) p.no_repeat_ngram = 2;
    if (i == 16) p.banned = banned, p.n_banned = 1;
    if (i == 20) {
        p = mx_sampling_defaults();
        p.beams = MOST;
        p.max_tokens = 12;
    }
    return p;
}

static int prompt_of(int i) { return 3 + i * 5 % 23; }

static void keep(answer *a, const request *q)
{
    for (int k = 0; k < mx_generation_count(q->g); k++) {
        const mx_candidate *c = mx_generation_candidate(q->g, k);
        a->n_ids[k] = c->n_ids;
        memcpy(a->ids[k], c->ids, (size_t)c->n_ids * sizeof(int32_t));
        a->len[k] = c->text_len;
        memcpy(a->text[k], c->text, c->text_len < 256 ? c->text_len : 256);
        a->finish[k] = c->finish;
    }
    a->n_lp = q->n_lp;
    memcpy(a->lp, q->lp, (size_t)q->n_lp * sizeof *a->lp);
}

/* The same texts, tokens, reasons and log-probabilities, and all of them told. */
static void compare(int i, const request *q, const char *what)
{
    answer got = {0};
    size_t told = 0;
    keep(&got, q);
    CHECK_MSG(!memcmp(&got, &expected[i], sizeof got), "%s: request %d is not what it is alone", what, i);
    for (int k = 0; k < MOST; k++) told += got.len[k];
    CHECK_MSG(told == q->streamed, "%s: request %d: %zu of %zu bytes were told", what, i, q->streamed, told);
}

static void alone(int ahead, bool first)
{
    mx_generator_options o = options(ahead, 64, 400);
    rig r;
    request q;
    if (rig_open(&r, "llama", &o))
        for (int i = 0; i < KINDS; i++) {
            mx_sampling p = kind(i);
            if (rig_start(&r, &q, golden_ids + i % 3, prompt_of(i), &p)) continue;
            rig_wait(&q);
            if (first) keep(&expected[i], &q);
            else compare(i, &q, "alone");
            mx_generation_close(q.g);
        }
    mx_generator_info info = rig_close(&r);
    CHECK(first ? info.turns_ahead == 0 : info.turns_ahead > info.turns / 2);
}

/* All of them in random order, some cancelled at a random moment, few pages or many. */
static void together(uint64_t seed, int32_t rows, size_t pages)
{
    mx_generator_options o = options(1, rows, pages);
    uint64_t state = seed;
    int order[KINDS];
    rig r;
    static request q[KINDS];
    bool cancel[KINDS] = {0};
    for (int i = 0; i < KINDS; i++) {
        int j = (int)(test_random(&state) % (unsigned)(i + 1));
        order[i] = order[j];
        order[j] = i;
    }
    if (rig_open(&r, "llama", &o)) {
        for (int n = 0; n < KINDS; n++) {
            int i = order[n];
            mx_sampling p = kind(i);
            rig_start(&r, &q[i], golden_ids + i % 3, prompt_of(i), &p);
            cancel[i] = test_random(&state) % 5 == 0;
            if (test_random(&state) % 3 == 0) sched_yield();
            if (n && cancel[order[n - 1]]) mx_generation_cancel(q[order[n - 1]].g);
        }
        if (cancel[order[KINDS - 1]]) mx_generation_cancel(q[order[KINDS - 1]].g);
        for (int i = 0; i < KINDS; i++) {
            while (!atomic_load(&q[i].done)) sched_yield();
            CHECK_MSG(!q[i].err.code || (cancel[i] && q[i].err.code == MX_ERR_CANCELLED), "request %d: %s", i, q[i].err.text);
            if (!q[i].err.code) compare(i, &q[i], pages < 100 ? "few pages" : "together");
            mx_generation_close(q[i].g);
        }
    }
    rig_close(&r);                       /* no page is lost */
}

static void nothing_changes(void)
{
    snprintf(stop_text[0], sizeof stop_text[0], "t");
    snprintf(stop_text[1], sizeof stop_text[1], "a ");
    alone(-1, true);
    int stopped = 0;
    for (int i = 0; i < KINDS; i++) stopped += expected[i].finish[0] == MX_FINISH_STOP;
    CHECK_MSG(stopped >= 3 && stopped <= KINDS - 3, "%d of %d requests end at a stop", stopped, KINDS);
    alone(1, false);
    for (uint64_t round = 0; round < (MX_TEST_REQUESTS > 5 ? 8 : 3); round++)
        together(1000 + round, round % 2 ? 11 : 64, round % 3 == 2 ? 48 : 400);
}

/* While a text is generated the host waits for the turn before, never for all that was issued. */
static void host_runs_ahead(void)
{
    mx_generator_options o = options(1, 64, 400);
    mx_sampling p = mx_sampling_defaults();
    rig r;
    request q;
    p.temperature = 0;
    p.max_tokens = 60;
    p.ignore_eos = true;
    if (rig_open(&r, "llama", &o)) {
#ifdef MX_TEST_SIMULATED
        unsigned long waits = cudasim_stats.waits;
#endif
        if (!rig_start(&r, &q, golden_ids, PROMPT, &p)) {
            rig_wait(&q);
            CHECK(mx_generation_candidate(q.g, 0)->n_ids == 60 && !memcmp(mx_generation_candidate(q.g, 0)->ids, golden_ids + PROMPT, 60 * sizeof(int32_t)));
            mx_generation_close(q.g);
        }
#ifdef MX_TEST_SIMULATED
        CHECK_MSG(cudasim_stats.waits - waits <= 2, "the host waited for the whole stream %lu times", cudasim_stats.waits - waits);
#endif
    }
    mx_generator_info info = rig_close(&r);
    CHECK_MSG(info.turns == 60 && info.turns_ahead == 59, "%llu turns, %llu ahead", (unsigned long long)info.turns, (unsigned long long)info.turns_ahead);
}

#ifdef MX_TEST_SIMULATED
/* Penalties, random numbers and positions are the device's: three candidates that go on together send nothing. */
static void steady_turns_send_nothing(void)
{
    enum { N = 3, TOKENS = 30 };
    mx_generator_options o = options(1, 64, 400);
    mx_sampling p = kind(1);
    rig r;
    request q;
    o.page_tokens = 64;                  /* no new page on the way */
    o.kv_bytes *= 16;
    p.n = N, p.max_tokens = TOKENS, p.ignore_eos = true, p.n_stops = 0;
    if (rig_open(&r, "llama", &o)) {
        unsigned long uploads = cudasim_stats.uploads;
        size_t bytes = cudasim_stats.uploaded;
        if (!rig_start(&r, &q, golden_ids, PROMPT, &p)) rig_wait(&q);
        mx_generation_close(q.g);
        uploads = cudasim_stats.uploads - uploads, bytes = cudasim_stats.uploaded - bytes;
        /* the prompt: seat, what it has seen, pages, rows, picks, wanted rows; two candidates more, copies of their page */
        CHECK_MSG(uploads <= 26 && bytes < 4000, "%lu uploads, %zu bytes", uploads, bytes);
        printf("  %lu uploads, %zu bytes\n", uploads, bytes);
    }
    mx_generator_info info = rig_close(&r);
    CHECK_MSG(info.turns == TOKENS && info.thrown_away == 0, "%llu turns, %llu tokens thrown away", (unsigned long long)info.turns, (unsigned long long)info.thrown_away);
}
#else
static void steady_turns_send_nothing(void) { TEST_SKIP("no device counts what is sent here"); }
#endif

MX_TESTS(TEST(nothing_changes), TEST(host_runs_ahead), TEST(steady_turns_send_nothing))
