/* test_generate_text.c - what a caller is told: log-probabilities, echo, stop
 * strings wherever they begin and end, text held back, ends and limits. */
#include "tests/generate_rig.h"
#include "tests/model_files.h"

static double log_softmax(const float *row, int32_t id)
{
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < VOCAB; i++) max = fmax(max, (double)row[i]);
    for (int i = 0; i < VOCAB; i++) sum += exp((double)row[i] - max);
    return (double)row[id] - max - log(sum);
}

/* Entry i of the request's logprobs against the distribution of a row of transformers' logits. */
static void check_entry(const request *q, int i, const float *row, int k)
{
    double error = fabs((double)q->lp[i] - log_softmax(row, q->lp_id[i]));
    CHECK(q->n_top[i] == k);
    for (int t = 0; t < q->n_top[i]; t++) {
        error = fmax(error, fabs((double)q->top_lp[i][t] - log_softmax(row, q->top_id[i][t])));
        int above = 0;
        for (int v = 0; v < VOCAB; v++) above += row[v] > row[q->top_id[i][t]];
        CHECK_MSG(above == t, "entry %d: place %d is %d in transformers' row", i, t, above);
    }
    CHECK_MSG(error <= 1e-5, "entry %d is off by %g", i, error);
}

static void logprobs_as_transformers(void)
{
    static const char *const models[] = {"gpt2", "llama"};
    for (int m = 0; m < 2; m++) {
        mx_generator_options o = mx_generator_defaults();
        mx_sampling p = mx_sampling_defaults();
        rig r;
        request q;
        o.max_batched_tokens = 7; /* the prompt's rows come in several turns */
        p.temperature = 0;
        p.max_tokens = 20;
        p.ignore_eos = p.echo = true;
        p.logprobs = 5;
        if (rig_open(&r, models[m], &o) && rig_generate(&r, &q, golden_ids, PROMPT, &p)) {
            const mx_candidate *c = mx_generation_candidate(q.g, 0);
            double sum = 0;
            CHECK(q.n_lp == PROMPT + 20 && q.n_ids == 20 && q.n_top[0] == 0);
            for (int i = 1; i <= PROMPT; i++) check_entry(&q, i, golden_logits[i - 1], 5);
            for (int i = 0; i < PROMPT; i++) CHECK(q.lp_id[i] == golden_ids[i]);
            for (int i = PROMPT; i < q.n_lp; i++) sum += (double)q.lp[i];
            CHECK_MSG(fabs(sum - c->logprob_sum) < 1e-9, "sum %.9g, told %.9g", sum, c->logprob_sum);
            mx_generation_close(q.g);
        }
        rig_close(&r);
    }
}

/* What a sampled text was told about itself is what its ids say as a prompt: the model's own
 * distribution, whatever the penalties were; bit for bit, though the rows come in other turns. */
static void echo_is_teacher_forced(void)
{
    mx_generator_options o = mx_generator_defaults();
    rig r;
    request q, again;
    o.max_batched_tokens = 11;
    if (rig_open(&r, "llama", &o))
        for (int k = 0; k <= MX_MAX_TOP_LOGPROBS; k += 4) {
            mx_sampling p = mx_sampling_defaults();
            int32_t ids[40];
            p.max_tokens = 30;
            p.logprobs = k;
            p.ignore_eos = p.seeded = true;
            p.seed = 40u + (unsigned)k;
            p.repetition_penalty = 1.5f;
            p.top_k = 40;
            if (!rig_generate(&r, &q, golden_ids, 10, &p)) continue;
            memcpy(ids, golden_ids, 10 * sizeof *ids);
            memcpy(ids + 10, q.ids, 30 * sizeof *ids);
            p.echo = true;
            p.max_tokens = 1;
            if (rig_generate(&r, &again, ids, 40, &p)) {
                CHECK(q.n_lp == 30 && again.n_lp == 41);
                for (int i = 0; i < 30; i++) {
                    CHECK(q.lp_id[i] == again.lp_id[10 + i] && !memcmp(&q.lp[i], &again.lp[10 + i], sizeof(float)));
                    CHECK(!memcmp(q.top_id[i], again.top_id[10 + i], sizeof *q.top_id) &&
                          !memcmp(q.top_lp[i], again.top_lp[10 + i], sizeof *q.top_lp));
                }
                mx_generation_close(again.g);
            }
            mx_generation_close(q.g);
        }
    rig_close(&r);
}

/* ---- stop strings, on a vocabulary of several letters a token --------------------------------------- */

/* The llama of the goldens with other words: one to four letters, and halves of characters. */
static folder words_folder(void)
{
    /* "\u00e4\u00b8\u0143" is 中 in the alphabet of byte-level BPE (bytes e4 b8 ad) */
    static const char *const odd[] = {"<pad>",   "<|endoftext|>",   "\\u00e4\\u00b8",        "\\u0143",
                                      "\\u00e4", "\\u00b8\\u0143a", "b\\u00e4\\u00b8\\u0143"};
    static const char *const letter[] = {"a", "b", "c", "\\u0120"};
    folder f = folder_make();
    bytes vocab = {0};
    char line[128], from[512], to[512];
    for (int i = 0; i < VOCAB; i++) {
        char word[64] = "";
        if (i < 7)
            snprintf(word, sizeof word, "%s", odd[i]);
        else {
            int rest = i - 7, letters = 1;
            for (int all = 4; rest >= all; all *= 4, letters++) rest -= all;
            for (; letters; letters--, rest /= 4) strcat(word, letter[rest % 4]);
        }
        snprintf(line, sizeof line, "%s\"%s\": %d", i ? ", " : "{", word, i);
        put_text(&vocab, line);
    }
    put_text(&vocab, "}");
    folder_write(&f, "vocab.json", vocab.data, vocab.size);
    bytes_free(&vocab);
    static const char *const same[] = {"config.json", "model.safetensors", "merges.txt"};
    for (int i = 0; i < 3; i++) {
        snprintf(from, sizeof from, MX_SOURCE_DIR "/tests/golden/decoder/llama/%s", same[i]);
        snprintf(to, sizeof to, "%s/%s", f.path, same[i]);
        CHECK(symlink(from, to) == 0);
    }
    return f;
}

enum { TOKENS = 31, STOPS = 3 };

/* The longest end of text[0..len) that begins a stop string without being one. */
static size_t naive_held(const char *text, size_t len, char stops[][16], int n)
{
    size_t most = 0;
    for (int s = 0; s < n; s++)
        for (size_t k = 1; k < strlen(stops[s]) && k <= len; k++)
            if (!memcmp(text + len - k, stops[s], k) && k > most) most = k;
    return most;
}

/* Where the text is cut when token i is in: the first occurrence that ends behind `before`. */
static size_t naive_cut(const char *text, size_t before, size_t len, char stops[][16], int n, int *which)
{
    for (size_t at = 0; at < len; at++)
        for (int s = 0; s < n; s++) {
            size_t end = at + strlen(stops[s]);
            if (end > before && end <= len && !memcmp(text + at, stops[s], end - at)) {
                *which = s;
                return at;
            }
        }
    *which = -1;
    return len;
}

/* Pieces of the plain text, whole characters; now and then one that it does not have. */
static int make_stops(const char *text, size_t len, char stops[][16], uint64_t *seed)
{
    int n = 1 + (int)(test_random(seed) % STOPS);
    for (int s = 0; s < n; s++) {
        size_t from = test_random(seed) % len, k = 1 + test_random(seed) % 8;
        while (from && ((unsigned char)text[from] & 0xc0) == 0x80) from--;
        if (k > len - from) k = len - from;
        while (from + k < len && ((unsigned char)text[from + k] & 0xc0) == 0x80) k++;
        memcpy(stops[s], text + from, k);
        stops[s][k] = 0;
        if (test_random(seed) % 8 == 0) stops[s][k - 1] = stops[s][k - 1] & 0x80 ? stops[s][k - 1] : 'x';
    }
    return n;
}

static void check_stopped(const request *plain, const request *q, char stops[][16], int n, int min_tokens, int *kinds)
{
    const mx_candidate *c = mx_generation_candidate(q->g, 0);
    int which = -1, i = 0;
    size_t cut = plain->streamed;
    for (; i < TOKENS && which < 0; i++)
        if (i + 1 >= min_tokens)
            cut = naive_cut(plain->text, i ? plain->upto[i - 1] : 0, plain->upto[i], stops, n, &which);
    if (which >= 0 && i == TOKENS) return; /* the last text holds what the end set free */
    CHECK_MSG(q->n_ids == i && c->n_ids == i && !memcmp(c->ids, plain->ids, (size_t)i * sizeof *c->ids),
              "%d ids, want %d", c->n_ids, i);
    CHECK(c->finish == (which < 0 ? MX_FINISH_LENGTH : MX_FINISH_STOP) && q->finish == c->finish);
    CHECK_MSG(c->text_len == cut && q->streamed == cut && !memcmp(c->text, plain->text, cut) &&
                  !memcmp(q->text, plain->text, cut),
              "\"%s\" told, want the first %zu of \"%s\"", q->text, cut, plain->text);
    CHECK(which < 0 ? !c->stop : c->stop && !strcmp(c->stop, stops[which]));
    for (int k = 0; k + 1 < i && k < q->calls; k++)
        CHECK(q->upto[k] == plain->upto[k] - naive_held(plain->text, plain->upto[k], stops, n));
    if (which < 0) return;
    size_t start = i > 1 ? plain->upto[i - 2] : 0, end = cut + strlen(stops[which]);
    kinds[0] += cut < start;              /* begins in an earlier token */
    kinds[1] += cut > start;              /* begins in the middle of a token */
    kinds[2] += end < plain->upto[i - 1]; /* ends in the middle of one */
}

static void stop_strings(void)
{
    const char *given = getenv("MX_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 31;
    mx_generator_options o = mx_generator_defaults();
    folder words = words_folder();
    int kinds[3] = {0};
    rig r;
    printf("  seed %llu\n", (unsigned long long)seed);
    if (rig_open_at(&r, "llama", words.path, &o))
        for (int round = 0; round < 300; round++) {
            static request plain, q;
            char stops[STOPS][16];
            const char *list[STOPS];
            mx_sampling p = mx_sampling_defaults();
            p.max_tokens = TOKENS;
            p.ignore_eos = p.seeded = true;
            p.seed = test_random(&seed);
            if (!rig_generate(&r, &plain, golden_ids, 8, &p)) continue;
            if (plain.upto[TOKENS - 2] > 0) {
                p.n_stops = make_stops(plain.text, plain.upto[TOKENS - 2], stops, &seed);
                for (int s = 0; s < p.n_stops; s++) list[s] = stops[s];
                p.stops = list;
                p.min_tokens = test_random(&seed) % 2 ? 0 : (int32_t)(test_random(&seed) % TOKENS);
                if (rig_generate(&r, &q, golden_ids, 8, &p)) {
                    check_stopped(&plain, &q, stops, p.n_stops, p.min_tokens, kinds);
                    mx_generation_close(q.g);
                }
            }
            mx_generation_close(plain.g);
        }
    printf("  stop strings that began in an earlier token: %d, in the middle of one: %d, ended in the middle: %d\n",
           kinds[0], kinds[1], kinds[2]);
    CHECK(kinds[0] > 20 && kinds[1] > 20 && kinds[2] > 20);
    rig_close(&r);
    FOLDER_REMOVE(&words, "vocab.json", "config.json", "model.safetensors", "merges.txt");
}

/* Banned texts, however the tokens spell them; what is left keeps its shares: the first token's
 * frequencies against the softmax without the banned ones. */
static void banned_texts(void)
{
    static const char *const banned[] = {"ab", "c b", "\xe4\xb8\xad", "bbbb"};
    mx_generator_options o = mx_generator_defaults();
    folder words = words_folder();
    rig r;
    if (rig_open_at(&r, "llama", words.path, &o)) {
        const mx_tokenizer *t = mx_generator_tokenizer(r.gen);
        mx_sampling p = mx_sampling_defaults();
        double share[VOCAB], sum = 0, chi = 0;
        int drawn[VOCAB] = {0}, total = 0, cells = 0;
        p.ignore_eos = p.seeded = true;
        p.banned = banned;
        p.n_banned = 4;
        p.n = 32;
        p.max_tokens = 20;
        for (int round = 0; round < 400; round++) {
            request q;
            p.seed = 900u + (unsigned)round;
            if (!rig_generate(&r, &q, golden_ids, 21, &p)) continue;
            for (int i = 0; i < p.n; i++, total++) {
                const mx_candidate *c = mx_generation_candidate(q.g, i);
                drawn[c->ids[0]]++;
                CHECK(c->n_ids == 20);
                for (int b = 0; b < 4; b++)
                    CHECK_MSG(!strstr(c->text, banned[b]), "\"%s\" has \"%s\"", c->text, banned[b]);
            }
            mx_generation_close(q.g);
        }
        for (int i = 0; i < VOCAB; i++) {
            size_t len;
            const char *piece = mx_tokenizer_piece(t, i, &len);
            share[i] = exp((double)golden_logits[20][i]);
            for (int b = 0; b < 4; b++)
                if (memmem(piece, len, banned[b], strlen(banned[b]))) share[i] = 0;
            sum += share[i];
        }
        for (int i = 0; i < VOCAB; i++) {
            double expected = share[i] / sum * total;
            CHECK(share[i] > 0 || !drawn[i]);
            if (expected < 10) continue;
            chi += (drawn[i] - expected) * (drawn[i] - expected) / expected;
            cells++;
        }
        printf("  chi-square %.1f in %d cells of %d draws\n", chi, cells, total);
        CHECK_MSG(chi < cells + 5 * sqrt(2.0 * cells), "chi-square %g in %d cells", chi, cells);
    }
    rig_close(&r);
    FOLDER_REMOVE(&words, "vocab.json", "config.json", "model.safetensors", "merges.txt");
}

/* ---- ends and limits ---------------------------------------------------------------------------------- */

static void ends_and_limits(void)
{
    mx_generator_options o = mx_generator_defaults();
    rig r;
    request q;
    if (rig_open(&r, "llama", &o)) {
        const int32_t eos = 1;
        const float push = 100;
        mx_sampling p = mx_sampling_defaults();
        p.temperature = 0;
        p.bias_ids = &eos; /* the end token is always the best */
        p.bias = &push;
        p.n_bias = 1;
        const mx_candidate *c = rig_generate(&r, &q, golden_ids, 10, &p);
        CHECK(c && c->finish == MX_FINISH_STOP && c->n_ids == 1 && c->ids[0] == eos && !c->text_len && !c->stop &&
              q.calls == 1);
        mx_generation_close(q.g);
        p.min_tokens = 5;
        c = rig_generate(&r, &q, golden_ids, 10, &p);
        CHECK(c && c->finish == MX_FINISH_STOP && c->n_ids == 6 && c->ids[5] == eos && c->ids[4] != eos);
        mx_generation_close(q.g);
        p.ignore_eos = true;
        p.max_tokens = 7;
        c = rig_generate(&r, &q, golden_ids, 10, &p); /* an ordinary token then, without a text */
        CHECK(c && c->finish == MX_FINISH_LENGTH && c->n_ids == 7 && c->ids[0] == eos && c->ids[6] == eos &&
              !c->text_len);
        mx_generation_close(q.g);
        p.stop_ids = &eos;
        p.n_stop_ids = 1;
        c = rig_generate(&r, &q, golden_ids, 10, &p); /* a stop id counts all the same */
        CHECK(c && c->finish == MX_FINISH_STOP && c->n_ids == 6 && c->ids[5] == eos);
        mx_generation_close(q.g);

        p = mx_sampling_defaults();
        p.temperature = 0;
        p.ignore_eos = true;
        for (int k = 0; k < 2; k++) { /* 96 positions in all */
            p.max_tokens = k ? 1000 : 0;
            c = rig_generate(&r, &q, golden_ids, PROMPT, &p);
            CHECK(c && c->finish == MX_FINISH_LENGTH && c->n_ids == 96 - PROMPT &&
                  !memcmp(c->ids, golden_ids + PROMPT, GREEDY * sizeof *c->ids));
            mx_generation_close(q.g);
        }
        int32_t full[96];
        for (int i = 0; i < 96; i++) full[i] = golden_ids[i % PROMPT];
        c = rig_generate(&r, &q, full, 95, &p);
        CHECK(c && c->finish == MX_FINISH_LENGTH && c->n_ids == 1);
        mx_generation_close(q.g);
        mx_generation *g = NULL;
        mx_error err = {0};
        mx_generation_calls calls = {NULL, rig_on_done, NULL};
        CHECK(mx_generation_open(&g, r.gen, full, 96, &p, &calls, 0, &err) == MX_ERR_ARG && strstr(err.text, "96"));
    }
    rig_close(&r);
}

MX_TESTS(TEST(logprobs_as_transformers), TEST(echo_is_teacher_forced), TEST(stop_strings), TEST(banned_texts),
         TEST(ends_and_limits))
