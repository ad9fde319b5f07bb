/* test_generate_golden.c - sampling and beam search against transformers:
 * tests/golden/make_generate_golden.py made the files. */
#include "kernels/ops.h"
#include "tests/generate_rig.h"

enum { V = 128, MOST = 192 };

/* One line "kind key=value ..." of a golden file. */
typedef struct line {
    char *kind, *key[32], *value[32];
    int n;
} line;

static char *next_line(char **at, line *l)
{
    char *start = *at, *end = strchr(start, '\n');
    *l = (line){0};
    if (!end) return NULL;
    *at = end + 1;
    *end = 0;
    l->kind = strtok_r(start, " ", &start);
    return start;
}

static void split_words(line *l, char *words)
{
    for (char *w = strtok_r(words, " ", &words); w && l->n < 32; w = strtok_r(NULL, " ", &words), l->n++) {
        l->key[l->n] = w;
        l->value[l->n] = strchr(w, '=');
        if (l->value[l->n]) *l->value[l->n]++ = 0;
    }
}

static const char *word(const line *l, const char *key)
{
    for (int i = 0; i < l->n; i++)
        if (!strcmp(l->key[i], key)) return l->value[i];
    return NULL;
}

static double number(const line *l, const char *key, double otherwise)
{
    const char *w = word(l, key);
    return w ? strtod(w, NULL) : otherwise;
}

/* "id:x,id:x" */
static int32_t pairs(const char *at, int32_t *id, double *x, int32_t room)
{
    int32_t n = 0;
    for (; at && *at && n < room; n++) {
        char *end;
        id[n] = (int32_t)strtol(at, &end, 10);
        x[n] = strtod(end + 1, &end);
        at = *end ? end + 1 : end;
    }
    return n;
}

static int32_t list(const char *at, int32_t *id, int32_t room)
{
    int32_t n = 0;
    while (at && *at && n < room) {
        char *end;
        id[n++] = (int32_t)strtol(at, &end, 10);
        if (*end != ',') break;
        at = end + 1;
    }
    return n;
}

static char *golden_file(const char *name)
{
    char path[512], *text = NULL;
    size_t len;
    mx_error err = {0};
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/generate/%s", name);
    CHECK_OK(mx_read_file(path, 1 << 22, &text, &len, &err), err);
    return text;
}

/* ---- processors: the distribution that is left -------------------------------------------------- */

/* Numbers in [0,1) that must draw token i of the wanted order: both ends of its share, less
 * what the probabilities may be off (1e-6), and for the last token the largest number of all. */
enum { PROBES = 2 * V + 2 };
static int probes(const double *p, int32_t n, double *u, int32_t *token)
{
    const double slack = 0.5e-6; /* at either end of a share of the cumulative distribution */
    double run = 0;
    int k = 0;
    u[k] = 0;
    token[k++] = 0;
    for (int32_t i = 0; i < n; i++) {
        if (p[i] > 2 * slack) {
            u[k] = run + (i ? slack : 0);
            token[k++] = i;
            u[k] = run + p[i] - slack;
            token[k++] = i;
        }
        run += p[i];
    }
    if (p[n - 1] > 1e-12) {
        u[k] = 1 - 0x1p-53;
        token[k++] = n - 1;
    }
    return k;
}

static void one_distribution(mx_stream *s, const float *row, const line *l, int at)
{
    static float logits[PROBES][V];
    mx_sample_row rows[PROBES];
    int32_t id[V], seen[V], count[V], bias_id[V], token[PROBES], drawn[PROBES];
    double want[V], x[V], u[PROBES];
    float bias[V];
    mx_error err = {0};
    int32_t n = pairs(word(l, "want"), id, want, V), n_seen = pairs(word(l, "seen"), seen, x, V);
    for (int32_t i = 0; i < n_seen; i++) count[i] = (int32_t)x[i];
    int32_t n_bias = pairs(word(l, "bias"), bias_id, x, V);
    for (int32_t i = 0; i < n_bias; i++) bias[i] = (float)x[i];
    CHECK(n > 0);
    if (!n) return;
    int k = probes(want, n, u, token);
    int32_t bias_begin[2] = {0, n_bias};
    mx_seat seat = {.n_seen = n_seen};
    mx_seats seats = {.seat = &seat, .seen_id = seen, .seen_count = count, .count = 1, .seen_most = V};
    mx_sample_row r = {.temperature = (float)number(l, "temperature", 1),
                       .top_k = (int32_t)number(l, "top_k", 0),
                       .top_p = (float)number(l, "top_p", 1),
                       .min_p = (float)number(l, "min_p", 0),
                       .typical_p = (float)number(l, "typical_p", 1),
                       .repetition_penalty = (float)number(l, "repetition_penalty", 1),
                       .presence_penalty = (float)number(l, "presence_penalty", 0),
                       .frequency_penalty = (float)number(l, "frequency_penalty", 0)};
    mx_logit_lists lists = {.bias_begin = bias_begin,
                            .bias_id = bias_id,
                            .bias = bias};
    memcpy(logits[0], row, sizeof *logits);
    mx_tensor first = {.data = logits, .dtype = MX_F32, .rows = 1, .cols = V, .stride = V};
    mx_logits_process(s, first, &r, &lists, &seats);
    for (int i = 0; i < k; i++) {
        rows[i] = r;
        rows[i].uniform = u[i];
        if (i) memcpy(logits[i], logits[0], sizeof *logits);
    }
    mx_tensor all = {.data = logits, .dtype = MX_F32, .rows = k, .cols = V, .stride = V};
    mx_tensor out = {.data = drawn, .dtype = MX_I32, .rows = k, .cols = 1, .stride = 1};
    mx_sample(s, out, all, rows, NULL);
    CHECK_OK(mx_stream_sync(s, &err), err);
    for (int i = 0; i < k; i++)
        CHECK_MSG(drawn[i] == id[token[i]], "case %d: u %.17g draws %d, not %d (place %d of %d, p %g)", at, u[i],
                  drawn[i], id[token[i]], token[i], n, want[token[i]]);
}

static void processors(void)
{
    char *text = golden_file("processors.txt"), *at = text, *words;
    float row[V] = {0};
    mx_device *devs = NULL;
    int n_devs = 0, cases = 0;
    mx_stream s = {0};
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = 2};
    line l;
    CHECK_OK(mx_devices_open(&devs, &n_devs, &opt, &err), err);
    CHECK_OK(mx_stream_open(&s, devs, 1 << 20, &err), err);
    while (text && !err.code && (words = next_line(&at, &l))) {
        if (!strcmp(l.kind, "row")) {
            for (int i = 0; i < V; i++) row[i] = strtof(words, &words);
        } else {
            split_words(&l, words);
            one_distribution(&s, row, &l, cases++);
        }
    }
    CHECK_MSG(cases >= 250, "%d cases", cases);
    mx_stream_close(&s);
    mx_devices_close(devs, n_devs);
    free(text);
}

/* ---- whole texts ------------------------------------------------------------------------------------ */

typedef struct lists {
    int32_t stop_ids[64], bias_ids[64];
    float bias[64];
    char words[16][8];
    const char *banned[16];
} lists;

static mx_sampling sampling_of(const line *l, lists *at, const mx_tokenizer *t)
{
    mx_sampling p = mx_sampling_defaults();
    double x[64];
    p.ignore_eos = true;
    p.max_tokens = (int32_t)number(l, "max_tokens", 0);
    p.min_tokens = (int32_t)number(l, "min_tokens", 0);
    p.temperature = (float)number(l, "temperature", 1);
    p.top_k = (int32_t)number(l, "top_k", 0);
    p.top_p = (float)number(l, "top_p", 1);
    p.min_p = (float)number(l, "min_p", 0);
    p.typical_p = (float)number(l, "typical_p", 1);
    p.repetition_penalty = (float)number(l, "repetition_penalty", 1);
    p.presence_penalty = (float)number(l, "presence_penalty", 0);
    p.frequency_penalty = (float)number(l, "frequency_penalty", 0);
    p.no_repeat_ngram = (int32_t)number(l, "no_repeat_ngram", 0);
    p.beams = (int32_t)number(l, "beams", 1);
    p.n = (int32_t)number(l, "n", 1);
    p.length_penalty = (float)number(l, "length_penalty", 1);
    p.seeded = true;
    if (word(l, "seed")) p.seed = strtoull(word(l, "seed"), NULL, 10);
    p.stop_ids = at->stop_ids;
    p.n_stop_ids = list(word(l, "stop_ids"), at->stop_ids, 64);
    p.bias_ids = at->bias_ids;
    p.bias = at->bias;
    p.n_bias = pairs(word(l, "bias"), at->bias_ids, x, 64);
    for (int32_t i = 0; i < p.n_bias; i++) at->bias[i] = (float)x[i];
    p.banned = at->banned;
    for (const char *w = word(l, "banned"); w && *w && p.n_banned < 16; p.n_banned++) { /* "id+id,id+id" */
        char *end, *to = at->words[p.n_banned];
        do {
            size_t len;
            const char *piece = mx_tokenizer_piece(t, (int32_t)strtol(w, &end, 10), &len);
            CHECK(piece && len == 1);
            if (piece) *to++ = *piece;
            w = end + (*end != 0);
        } while (*end == '+');
        *to = 0;
        at->banned[p.n_banned] = at->words[p.n_banned];
    }
    return p;
}

static void check_beams(const request *q, const line *l, int at)
{
    const char *want = word(l, "want");
    int32_t ids[MOST];
    for (int i = 0; i < mx_generation_count(q->g); i++) {
        const mx_candidate *c = mx_generation_candidate(q->g, i);
        char *end;
        double score = strtod(want, &end);
        int32_t n = list(end + 1, ids, MOST);
        CHECK_MSG(c->n_ids == n && !memcmp(c->ids, ids, (size_t)n * sizeof *ids),
                  "line %d: beam %d of length %d, not %d", at, i, c->n_ids, n);
        CHECK_MSG(fabs(c->score - score) <= 2e-5 * fabs(score), "line %d: beam %d scores %.9g, not %.9g", at, i,
                  c->score, score);
        want = strchr(want, ';');
        want = want ? want + 1 : "";
    }
}

static void texts(void)
{
    char *text = golden_file("texts.txt"), *at = text, *words;
    const char *open = "";
    int lines = 0, sampled = 0, searched = 0;
    mx_generator_options o = mx_generator_defaults();
    rig r = {0};
    line l;
    while (text && (words = next_line(&at, &l))) {
        split_words(&l, words);
        lines++;
        if (strcmp(open, word(&l, "model"))) {
            if (*open) rig_close(&r);
            open = word(&l, "model");
            if (!rig_open(&r, open, &o)) break;
        }
        lists own;
        request q;
        mx_sampling p = sampling_of(&l, &own, mx_generator_tokenizer(r.gen));
        const mx_candidate *c = rig_generate(&r, &q, golden_ids, (int)number(&l, "prompt", 0), &p);
        if (!c) continue;
        if (!strcmp(l.kind, "beam")) {
            check_beams(&q, &l, lines);
            searched++;
        } else {
            int32_t ids[MOST], n = list(word(&l, "want"), ids, MOST), same = 0;
            while (same < n && same < c->n_ids && ids[same] == c->ids[same]) same++;
            CHECK_MSG(same == n && c->n_ids == n, "line %d: %d of %d ids as transformers', %d here", lines, same, n,
                      c->n_ids);
            sampled++;
        }
        mx_generation_close(q.g);
    }
    CHECK_MSG(sampled >= 50 && searched >= 90, "%d texts, %d searches", sampled, searched);
    rig_close(&r);
    free(text);
}

/* ---- frequencies -------------------------------------------------------------------------------------- */

/* First tokens of many requests against the softmax of the golden logits: Pearson's chi-square,
 * tokens expected less than 10 times taken together.  The mean of the statistic is its degrees of
 * freedom, the variance twice that; 5 standard deviations above have a chance of about 1e-5. */
static void frequencies(void)
{
    mx_generator_options o = mx_generator_defaults();
    const char *given = getenv("MX_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 20240;
    rig r;
    printf("  seed %llu\n", (unsigned long long)seed);
    if (rig_open(&r, "llama", &o))
        for (int kind = 0; kind < 3; kind++) {
            enum { REQUESTS = 500 };
            mx_sampling p = mx_sampling_defaults();
            p.max_tokens = 1;
            p.n = MX_MAX_CANDIDATES;
            p.ignore_eos = p.seeded = true;
            p.temperature = kind == 1 ? 2.0f : 1.0f;
            p.top_k = kind == 2 ? 20 : 0;
            double share[VOCAB], sum = 0, chi = 0, rest = 0, cut = -INFINITY;
            int drawn[VOCAB] = {0}, rest_drawn = 0, cells = 0;
            const float *row = golden_logits[20];
            for (int i = 0; kind == 2 && i < VOCAB; i++) {
                int above = 0;
                for (int k = 0; k < VOCAB; k++) above += row[k] > row[i];
                if (above == 19) cut = (double)row[i];
            }
            for (int i = 0; i < VOCAB; i++)
                sum += share[i] = (double)row[i] >= cut ? exp((double)row[i] / (double)p.temperature) : 0;
            for (int k = 0; k < REQUESTS; k++) {
                request q;
                p.seed = test_random(&seed);
                if (!rig_generate(&r, &q, golden_ids, 21, &p)) continue;
                for (int i = 0; i < p.n; i++) drawn[mx_generation_candidate(q.g, i)->ids[0]]++;
                mx_generation_close(q.g);
            }
            for (int i = 0; i < VOCAB; i++) {
                double expected = share[i] / sum * REQUESTS * MX_MAX_CANDIDATES;
                CHECK(share[i] > 0 || !drawn[i]);
                if (expected < 10) {
                    rest += expected;
                    rest_drawn += drawn[i];
                } else {
                    chi += (drawn[i] - expected) * (drawn[i] - expected) / expected;
                    cells++;
                }
            }
            if (rest >= 10) {
                chi += (rest_drawn - rest) * (rest_drawn - rest) / rest;
                cells++;
            }
            printf("  kind %d: chi-square %.1f in %d cells\n", kind, chi, cells);
            CHECK_MSG(cells > 5 && chi < cells - 1 + 5 * sqrt(2.0 * (cells - 1)),
                      "kind %d: chi-square %g in %d cells", kind, chi, cells);
        }
    rig_close(&r);
}

MX_TESTS(TEST(processors), TEST(texts), TEST(frequencies))
