/* test_encoder.c - an encoder that serves: against transformers' BERT
 * (tests/golden/make_encoder_golden.py), alone and in company, and what is refused. */
#include "models/embed.h"
#include "tests/test.h"

#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif

#define FOLDER MX_SOURCE_DIR "/tests/golden/encoder/bert"
enum { C = 32, K = 3 };

typedef struct rig {
    mx_device *devs;
    int        n_devs;
    mx_encoder model;
    mx_stream  s;
} rig;

static bool rig_open(rig *r, int threads, mx_dtype dtype)
{
    mx_device_options opt = {.cpu_threads = threads};
    mx_encoder_config config;
    mx_checkpoint *file = NULL;
    mx_error err = {0};
    *r = (rig){0};
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &opt, &err), err);
    CHECK_OK(mx_encoder_config_folder(&config, FOLDER, &err), err);
    CHECK_OK(mx_checkpoint_open(&file, FOLDER, &err), err);
    if (!file) return false;
    CHECK_OK(mx_encoder_open(&r->model, &r->devs[MX_TEST_DEVICE], file, &config, dtype, &err), err);
    CHECK_OK(mx_stream_open(&r->s, &r->devs[MX_TEST_DEVICE], mx_encoder_scratch(&r->model, 512, 16), &err), err);
    return r->model.dev != NULL;
}

static void rig_close(rig *r)
{
    mx_stream_close(&r->s);
    mx_encoder_close(&r->model);
    mx_devices_close(r->devs, r->n_devs);
}

typedef struct answer {
    float hidden[512][C], pooled[MX_POOL_COUNT][16][C], logits[16][K];
} answer;

/* texts of the given lengths, one behind the other */
static void forward(rig *r, const int32_t *ids, const int32_t *lengths, int n, answer *a)
{
    int32_t positions[512], zeros[512] = {0}, begin[17] = {0};
    mx_error err = {0};
    mx_encoder_out out;
    for (int i = 0; i < n; i++) {
        begin[i + 1] = begin[i] + lengths[i];
        for (int t = 0; t < lengths[i]; t++) positions[begin[i] + t] = t;
    }
    mx_encoder_batch b = {.n_rows = begin[n], .n_texts = n, .ids = ids, .positions = positions, .begin = begin, .zeros = zeros};
    mx_stream_rewind(&r->s);
    mx_encoder_forward(&r->model, &r->s, &b, 7, true, &out);
    CHECK(!r->s.error.code);
    if (!r->s.error.code) {
        r->s.dev->ops->download(&r->s, a->hidden, out.hidden.data, (size_t)begin[n] * C * sizeof(float));
        for (int p = 0; p < MX_POOL_COUNT; p++) r->s.dev->ops->download(&r->s, a->pooled[p], out.pooled[p].data, (size_t)n * C * sizeof(float));
        r->s.dev->ops->download(&r->s, a->logits, out.logits.data, (size_t)n * K * sizeof(float));
    }
    CHECK_OK(mx_stream_sync(&r->s, &err), err);
}

static float *golden(const char *name, int64_t *rows)
{
    mx_checkpoint *c = NULL;
    mx_error err = {0};
    CHECK_OK(mx_checkpoint_open(&c, FOLDER "/logits.safetensors", &err), err);
    const mx_blob *b = c ? mx_checkpoint_find(c, name) : NULL;
    CHECK_MSG(b, "%s", name);
    if (!b) return NULL;
    *rows = b->rows;
    float *v = malloc((size_t)(b->rows * b->cols) * sizeof *v);
    mx_blob_read(b, 0, b->rows, v);
    mx_checkpoint_close(c);
    return v;
}

static double off(const float *got, const float *want, int64_t n)
{
    double worst = 0, most = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)got[i] - (double)want[i]));
        most = fmax(most, fabs((double)want[i]));
    }
    return worst / most;
}

static int32_t *golden_ids(int32_t *n)
{
    int64_t rows = 0;
    mx_checkpoint *c = NULL;
    mx_error err = {0};
    CHECK_OK(mx_checkpoint_open(&c, FOLDER "/logits.safetensors", &err), err);
    const mx_blob *b = c ? mx_checkpoint_find(c, "ids") : NULL;
    CHECK(b);
    if (!b) return NULL;
    rows = b->rows * b->cols;
    int32_t *ids = malloc((size_t)rows * sizeof *ids);
    memcpy(ids, b->data, (size_t)rows * sizeof *ids);
    *n = (int32_t)rows;
    mx_checkpoint_close(c);
    return ids;
}

static void numbers_equal_transformers(void)
{
    const struct { mx_dtype dtype; double limit; } kinds[] = {{MX_F32, 2e-5}, {MX_BF16, 3e-2}, {MX_I8, 6e-2}};
    static answer a;
    int64_t rows;
    int32_t n = 0, *ids = golden_ids(&n);
    float *hidden = golden("hidden", &rows), *pooled = golden("pooled", &rows), *logits = golden("classify", &rows);
    for (size_t k = 0; k < 3 && ids && hidden && pooled && logits; k++) {
        rig r;
        if (!rig_open(&r, 2, kinds[k].dtype)) continue;
        forward(&r, ids, &n, 1, &a);
        CHECK_MSG(off(a.hidden[0], hidden, (int64_t)n * C) < kinds[k].limit, "%s hidden %.2g", mx_dtype_name(kinds[k].dtype), off(a.hidden[0], hidden, (int64_t)n * C));
        CHECK_MSG(off(a.pooled[MX_POOL_POOLER][0], pooled, C) < kinds[k].limit, "pooled %.2g", off(a.pooled[MX_POOL_POOLER][0], pooled, C));
        CHECK_MSG(off(a.logits[0], logits, K) < 2 * kinds[k].limit, "logits %.2g", off(a.logits[0], logits, K));
        CHECK(!memcmp(a.pooled[MX_POOL_CLS][0], a.hidden[0], sizeof a.hidden[0]));
        rig_close(&r);
    }
    free(ids), free(hidden), free(pooled), free(logits);
}

/* A text alone, and among others, on 1 and 3 threads: equal as bytes. */
static void company_changes_nothing(void)
{
    static answer together, alone;
    static const int32_t lengths[] = {7, 1, 40, 96, 3, 17};
    static const mx_dtype kinds[] = {MX_F32, MX_BF16, MX_I8};
    int32_t ids[512], at = 0;
    for (int i = 0; i < 512; i++) ids[i] = (i * 37 + 5) % 131;
    for (size_t k = 0; k < 3; k++) {
        rig all, one;
        at = 0;
        bool ready = rig_open(&all, 3, kinds[k]);
        if (!rig_open(&one, 1, kinds[k]) || !ready) return;
        forward(&all, ids, lengths, 6, &together);
        for (int i = 0; i < 6; at += lengths[i++]) {
            forward(&one, ids + at, &lengths[i], 1, &alone);
            CHECK(!memcmp(alone.hidden, together.hidden[at], (size_t)lengths[i] * sizeof *alone.hidden));
            for (int p = 0; p < MX_POOL_COUNT; p++) CHECK(!memcmp(alone.pooled[p][0], together.pooled[p][i], sizeof alone.pooled[p][0]));
            CHECK(!memcmp(alone.logits[0], together.logits[i], sizeof alone.logits[0]));
        }
        rig_close(&one);
        rig_close(&all);
    }
}

/* ---- jobs ---------------------------------------------------------------------------- */

typedef struct waiter {
    pthread_mutex_t lock;
    pthread_cond_t  over;
    int             done, failed;
} waiter;

static void count(mx_embedding *m, const mx_error *err)
{
    waiter *w = mx_embedding_user(m);
    pthread_mutex_lock(&w->lock);
    w->done++;
    w->failed += err->code != MX_OK;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

static void texts_as_jobs(void)
{
    enum { N = 200 };
    mx_device_options cpu = {.cpu_threads = 2};
    mx_device *devs = NULL;
    int n_devs;
    mx_scheduler *sched = NULL;
    mx_embedder *e = NULL;
    mx_error err = {0};
    mx_embedding *m[N] = {0};
    waiter w = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
    mx_embedder_options o = mx_embedder_defaults();
    o.max_batched_tokens = 50;
    CHECK_OK(mx_devices_open(&devs, &n_devs, &cpu, &err), err);
    CHECK_OK(mx_scheduler_open(&sched, devs, n_devs, NULL, &err), err);
    CHECK_OK(mx_embedder_open(&e, "tiny", FOLDER, devs, MX_TEST_DEVICE, sched, &o, &err), err);
    if (!e) return;
    mx_embedder_info info;
    mx_embedder_info_get(e, &info);
    CHECK(info.classes == K && info.d_model == C && info.max_len == 96 && info.pooling == MX_POOL_MEAN && !info.normalize);
    mx_embedding_request q = mx_embedding_defaults(e);
    q.classify = q.normalize = true;
    int sent = 0;
    for (int i = 0; i < N; i++) {
        char text[64];
        snprintf(text, sizeof text, "w%d w%d w%d", 5 + i % 9, 7 + i % 20, 9 + i % 3);
        if (i % 2) *strrchr(text, ' ') = 0;
        CHECK_OK(mx_embedding_open(&m[i], e, text, strlen(text), &q, count, &w, 0, &err), err);
        if (m[i] && !mx_embedding_submit(m[i], &err)) sent++;
    }
    pthread_mutex_lock(&w.lock);
    while (w.done < sent) pthread_cond_wait(&w.over, &w.lock);
    pthread_mutex_unlock(&w.lock);
    CHECK(sent == N && w.failed == 0);
    for (int i = 0; i < N; i++) {
        double square = 0, sum = 0;
        for (int k = 0; k < C; k++) square += (double)mx_embedding_values(m[i])[k] * (double)mx_embedding_values(m[i])[k];
        for (int k = 0; k < K; k++) sum += (double)mx_embedding_probabilities(m[i])[k];
        CHECK(fabs(square - 1) < 1e-5 && fabs(sum - 1) < 1e-5 && mx_embedding_tokens(m[i]) == (i % 2 ? 4 : 5));
        if (i >= 180) CHECK(!memcmp(mx_embedding_values(m[i]), mx_embedding_values(m[i - 180]), C * sizeof(float)));
    }
    char longer[1000] = "";
    mx_embedding *extra = NULL;
    for (int i = 0; i < 120; i++) strcat(longer, "w9 ");
    CHECK(mx_embedding_open(&extra, e, longer, strlen(longer), &q, count, &w, 0, &err) == MX_ERR_ARG && strstr(err.text, "122") && strstr(err.text, "96"));
    q.truncate = true;
    CHECK_OK(mx_embedding_open(&extra, e, longer, strlen(longer), &q, count, &w, 0, &err), err);
    CHECK(extra && mx_embedding_tokens(extra) == 96);
    mx_embedding_close(extra);
    q.embed = q.classify = false;
    CHECK(mx_embedding_open(&extra, e, "w9", 2, &q, count, &w, 0, &err) == MX_ERR_ARG);
    for (int i = 0; i < N; i++) mx_embedding_close(m[i]);
    mx_scheduler_close(sched, 0);
    mx_embedder_close(e);
    mx_devices_close(devs, n_devs);
}

/* ---- folders ---------------------------------------------------------------------------- */

static void put(const char *folder, const char *name, const char *text)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "w");
    CHECK(f != NULL);
    if (!f) return;
    fputs(text, f);
    fclose(f);
}

static void refused(const char *modules, const char *pooling, const char *part)
{
    char root[256], sub[300];
    mx_device_options cpu = {.cpu_threads = 1};
    mx_device *devs = NULL;
    int n_devs;
    mx_scheduler *sched = NULL;
    mx_embedder *e = NULL;
    mx_error err = {0};
    mx_embedder_options o = mx_embedder_defaults();
    snprintf(root, sizeof root, MX_BINARY_DIR "/test_encoder.%d", (int)getpid());
    snprintf(sub, sizeof sub, "%s/1_Pooling", root);
    mkdir(root, 0700);
    mkdir(sub, 0700);
    put(root, "modules.json", modules);
    put(sub, "config.json", pooling);
    CHECK_OK(mx_devices_open(&devs, &n_devs, &cpu, &err), err);
    CHECK_OK(mx_scheduler_open(&sched, devs, n_devs, NULL, &err), err);
    bool is;
    CHECK(!mx_is_encoder(root, &is, &err) && is == (modules[0] == '['));
    CHECK(mx_embedder_open(&e, "x", root, devs, 0, sched, &o, &err) != MX_OK && !e);
    CHECK_MSG(strstr(err.text, part), "%s", err.text);
    mx_scheduler_close(sched, 0);
    mx_devices_close(devs, n_devs);
    for (const char *const *f = (const char *const[]){"1_Pooling/config.json", "modules.json", NULL}; *f; f++) {
        char path[600];
        snprintf(path, sizeof path, "%s/%s", root, *f);
        unlink(path);
    }
    rmdir(sub);
    rmdir(root);
}

static void modules_are_refused_by_name(void)
{
    static const char mean[] = "{\"pooling_mode_mean_tokens\": true}";
#define M(type, path) "[{\"type\": \"sentence_transformers.models." type "\", \"path\": \"" path "\"}]"
    refused("{", mean, "not JSON");
    refused(M("Dense", "2_Dense"), mean, "Dense");
    refused(M("Pooling", "1_Pooling"), "{\"pooling_mode_max_tokens\": true}", "pooling_mode_max_tokens");
    refused(M("Pooling", "1_Pooling"), "{\"pooling_mode_max_tokens\": false}", "0 poolings");
    refused(M("Pooling", "../1_Pooling"), mean, "inside the folder");
    refused(M("Pooling", "1_Pooling"), mean, "config.json");
#undef M
}

MX_TESTS(TEST(numbers_equal_transformers), TEST(company_changes_nothing), TEST(texts_as_jobs), TEST(modules_are_refused_by_name))
