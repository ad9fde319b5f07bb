/* test_attribution.c - integrated gradients add up, equal finite differences, and are the
 * same bits again; on the tiny BERT, and on MiniLM where it is installed. */
#include "models/attribution.h"
#include "models/embed.h"
#include "models/model_files.h"
#include "models/params.h"
#include "tests/test.h"

#include <sched.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

static void quadrature(void)
{
    for (int n = 1; n <= 64; n = 2 * n) {
        double at[64], weight[64];
        mx_gauss_legendre(n, at, weight);
        for (int power = 0; power < 2 * n; power += 1 + power / 4) {        /* exact up to degree 2n-1 */
            double sum = 0;
            for (int i = 0; i < n; i++) sum += weight[i] * pow(at[i], power);
            CHECK_MSG(fabs(sum - 1.0 / (power + 1)) < 1e-13, "n %d, power %d: %.16g", n, power, sum);
        }
    }
}

static const char bert[] = MX_SOURCE_DIR "/tests/golden/encoder/bert";

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif

typedef struct rig {
    mx_device *devs;
    int n_devs;
    mx_attributor *a;
} rig;

static bool rig_open(rig *r, const char *folder, int threads)
{
    mx_error err = {0};
    mx_device_options o = {.cpu_threads = threads};
    *r = (rig){0};
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &o, &err), err);
    CHECK_OK(mx_attributor_open(&r->a, &r->devs[MX_TEST_DEVICE], folder, &err), err);
    return r->a != NULL;
}

static void rig_close(rig *r)
{
    mx_attributor_close(r->a);
    mx_devices_close(r->devs, r->n_devs);
}

static double total(const mx_attribution *t)
{
    double sum = t->base;
    for (int32_t i = 0; i < t->n; i++) sum += t->token[i].weight;
    return sum;
}

/* Every class, short and long texts: base + weights = score to 1e-3. */
static void classes_add_up(void)
{
    static const char *const texts[] = {"w5 w6 w7", "w9", "w10 w11 w12 w13 w14 w15 w90 w91 w92 w93 w5 w5 w6 w40 w41 w42", ""};
    mx_error err = {0};
    rig r;
    if (!rig_open(&r, bert, 2)) return;
    CHECK(mx_attributor_classes(r.a));
    for (int i = 0; i < 4; i++) {
        double logits = 0;
        for (int c = 0; c < 3; c++) {
            mx_attribution t;
            mx_attribution_ask ask = {.class_index = c};
            CHECK_OK(mx_attribute(r.a, texts[i], strlen(texts[i]), &ask, &t, &err), err);
            CHECK_MSG(fabs(total(&t) - t.score) <= 1e-3 && fabs(total(&t) + t.residual - t.score) < 1e-9, "text %d, class %d: %g, score %g", i, c, total(&t), t.score);
            CHECK(t.n >= 2 && t.token[0].weight == 0 && t.token[t.n - 1].weight == 0);      /* [CLS], [SEP] */
            if (i < 3) CHECK(fabs(t.score - t.base) > 1e-6);
            logits += t.score;
            mx_attribution_free(&t);
        }
        CHECK(fabs(logits) < 1e-4);                         /* each is against the mean of the others */
    }
    rig_close(&r);
}

static atomic_bool classified;

static void done(mx_embedding *m, const mx_error *err)
{
    (void)m;
    CHECK(!err->code);
    atomic_store(&classified, true);
}

/* Scores are 1.5 times differences of what the serving encoder's probabilities say (3 classes). */
static void score_is_the_classifiers(void)
{
    rig r;
    mx_error err = {0};
    mx_scheduler *sched = NULL;
    mx_embedder *e = NULL;
    mx_embedding *m = NULL;
    mx_embedder_options o = mx_embedder_defaults();
    mx_embedding_request q = {.classify = true};
    double score[3];
    if (!rig_open(&r, bert, 1)) return;
    CHECK_OK(mx_scheduler_open(&sched, r.devs, r.n_devs, NULL, &err), err);
    CHECK_OK(mx_embedder_open(&e, "b", bert, r.devs, 0, sched, &o, &err), err);
    CHECK_OK(mx_embedding_open(&m, e, "w5 w6 w7", 8, &q, done, NULL, 0, &err), err);
    CHECK_OK(mx_embedding_submit(m, &err), err);
    while (!atomic_load(&classified)) sched_yield();
    for (int c = 0; c < 3; c++) {
        mx_attribution t;
        CHECK_OK(mx_attribute(r.a, "w5 w6 w7", 8, &(mx_attribution_ask){.class_index = c}, &t, &err), err);
        score[c] = t.score;
        mx_attribution_free(&t);
    }
    const float *p = mx_embedding_probabilities(m);
    for (int c = 1; c < 3; c++) CHECK(fabs(score[c] - score[0] - 1.5 * (log((double)p[c]) - log((double)p[0]))) < 1e-4);
    mx_embedding_close(m);
    mx_scheduler_close(sched, 0);
    mx_embedder_close(e);
    rig_close(&r);
}

static void same_bits(void)
{
    mx_attribution t[2];
    mx_error err = {0};
    for (int k = 0; k < 2; k++) {
        rig r;
        mx_attribution_ask ask = {.class_index = 2};
        if (!rig_open(&r, bert, k + 1)) return;
        if (k) {                                            /* something else went before */
            mx_attribution other;
            CHECK_OK(mx_attribute(r.a, "w77", 3, &ask, &other, &err), err);
            mx_attribution_free(&other);
        }
        CHECK_OK(mx_attribute(r.a, "w5 w6 w7 w8", 11, &ask, &t[k], &err), err);
        for (int32_t i = 0; i < t[k].n; i++) t[k].token[i].piece = NULL;
        rig_close(&r);
    }
    CHECK(t[0].n == t[1].n && t[0].score == t[1].score && !memcmp(t[0].token, t[1].token, (size_t)t[0].n * sizeof *t[0].token));
    mx_attribution_free(&t[0]), mx_attribution_free(&t[1]);
}

/* The tiny BERT is smooth; with twenty times its queries, attention jumps from word to word on the path. */
static bool make_jumpy(const char *to)
{
    enum { MOST = 64 };
    mx_checkpoint *c = NULL;
    mx_error err = {0};
    mx_save save[MOST];
    char path[400];
    snprintf(path, sizeof path, "%s/model.safetensors", bert);
    CHECK_OK(mx_checkpoint_open(&c, path, &err), err);
    int n = c ? mx_checkpoint_count(c) : 0;
    CHECK(n > 0 && n <= MOST);
    float *all = calloc(200000, sizeof *all);
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        const mx_blob *b = mx_checkpoint_at(c, i);
        save[i] = (mx_save){.name = b->name, .as = MX_SAVE_F32, .n_dims = b->n_dims, .data = all + at};
        memcpy(save[i].dims, b->dims, sizeof save[i].dims);
        size_t count = b->size / sizeof *all;
        memcpy(all + at, b->data, b->size);
        for (size_t k = 0; strstr(b->name, "self.query") && k < count; k++) all[at + k] *= 20;
        at += count;
    }
    mkdir(to, 0777);
    snprintf(path, sizeof path, "%s/model.safetensors", to);
    CHECK_OK(mx_safetensors_write(path, save, n, NULL, 0, &err), err);
    CHECK_OK(mx_model_copy_config(bert, to, NULL, &err), err);
    CHECK_OK(mx_model_copy_tokenizer(bert, to, &err), err);
    mx_checkpoint_close(c);
    free(all);
    return !err.code;
}

/* The path is halved where it bends until the sum is as close as was asked; and tokens say which word they are of. */
static void as_close_as_asked(void)
{
    static const char text[] = "W5 w6, w7 \xe9\x95\xbf w9999 w12 w13 w14 w15";
    static const char *const words[] = {"W5", "w6", ",", "w7", "\xe9\x95\xbf", "w9999", "w12", "w13", "w14", "w15"};
    rig r;
    mx_error err = {0};
    int32_t points = 0;
    char jumpy[300], path[400];
    static const char *const files[] = {"config.json", "vocab.txt", "tokenizer_config.json", "model.safetensors"};
    snprintf(jumpy, sizeof jumpy, MX_BINARY_DIR "/test_attribution.%d", (int)getpid());
    if (!make_jumpy(jumpy) || !rig_open(&r, jumpy, 1)) return;
    for (double asked = 1e-1; asked > 1e-5; asked /= 10) {
        mx_attribution t;
        CHECK_OK(mx_attribute(r.a, text, strlen(text), &(mx_attribution_ask){.class_index = 1, .tolerance = asked}, &t, &err), err);
        CHECK_MSG(fabs(t.residual) <= asked && fabs(total(&t) + t.residual - t.score) < 1e-9 && t.points >= points, "%g: %g, %d points", asked, t.residual, t.points);
        points = t.points;
        size_t n = 0;
        for (int32_t i = 0; i < t.n; i++) {
            const mx_attributed_token *k = &t.token[i];
            if (!k->end || (k->begin == k[-1].begin && k->end == k[-1].end)) continue;
            CHECK_MSG(n < 10 && k->end - k->begin == strlen(words[n]) && !memcmp(text + k->begin, words[n], strlen(words[n])), "%zu", n);
            n++;
        }
        CHECK_MSG(n == 10 && !t.token[0].end && !t.token[t.n - 1].end && t.token[t.n - 1].weight == 0, "%zu words", n);
        mx_attribution_free(&t);
    }
    CHECK_MSG(points > 16, "%d points: nothing was halved", points);
    rig_close(&r);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) snprintf(path, sizeof path, "%s/%s", jumpy, files[i]), unlink(path);
    rmdir(jumpy);
}

static void refusals(void)
{
    rig r;
    mx_error err = {0};
    mx_attribution t;
    if (!rig_open(&r, bert, 1)) return;
    CHECK(mx_attribute(r.a, "w5", 2, &(mx_attribution_ask){.class_index = 3}, &t, &err) == MX_ERR_ARG && strstr(err.text, "3 classes"));
    CHECK(mx_attribute(r.a, "w5", 2, &(mx_attribution_ask){.class_index = -1}, &t, &err) == MX_ERR_ARG);
    rig_close(&r);
    mx_attributor *a;
    mx_device_options o = {.cpu_threads = 1};
    mx_device *devs;
    int n;
    CHECK_OK(mx_devices_open(&devs, &n, &o, &err), err);
    CHECK(mx_attributor_open(&a, devs, "/nowhere", &err) != MX_OK && !a);
    mx_devices_close(devs, n);
}

/* Directions: the vector's product with itself is 1 and is fully shared out. */
static void directions(const char *folder, const char *const *texts, int n)
{
    rig r;
    mx_error err = {0};
    if (!rig_open(&r, folder, 2)) return;
    int32_t C = mx_attributor_config(r.a)->d_model;
    float *v = calloc((size_t)C, sizeof *v);
    uint64_t seed = 5;
    for (int32_t i = 0; i < C; i++) v[i] = (float)((double)(test_random(&seed) >> 11) * 0x1p-52 - 1);
    for (int i = 0; i < n; i++) {
        mx_attribution t;
        mx_attribution_ask ask = {.class_index = -1, .direction = v};
        CHECK_OK(mx_attribute(r.a, texts[i], strlen(texts[i]), &ask, &t, &err), err);
        CHECK_MSG(fabs(total(&t) - t.score) <= 1e-3, "text %d: %g, score %g, %d points", i, total(&t), t.score, t.points);
        mx_attribution_free(&t);
    }
    free(v);
    rig_close(&r);
}

static void directions_add_up(void)
{
    static const char *const texts[] = {"w5 w6 w7", "w20 w21 w22 w23 w24 w25 w26"};
    directions(bert, texts, 2);
}

static void minilm(void)
{
    static const char *const texts[] = {"The shoes fell apart after a week, terrible quality.", "Cheap and fast delivery, I love this discount shop!"};
    const char *folder = getenv("MX_MINILM");
    if (!folder) {
        TEST_SKIP("MX_MINILM names no folder of MiniLM");
        return;
    }
    directions(folder, texts, 2);
}

MX_TESTS(TEST(quadrature), TEST(classes_add_up), TEST(score_is_the_classifiers), TEST(same_bits), TEST(as_close_as_asked), TEST(refusals), TEST(directions_add_up), TEST(minilm))
