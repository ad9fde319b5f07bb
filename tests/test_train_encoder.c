/* test_train_encoder.c - a BERT's ten steps against PyTorch
 * (tests/golden/make_encoder_golden.py), both tasks; the same bits for any number
 * of threads, with and without recomputation, and after a run went on. */
#include "models/bert.h"
#include "tests/test.h"

#include <ftw.h>
#include <jansson.h>
#include <unistd.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif

typedef struct setup {
    mx_bert_task task;
    int         threads;
    int32_t     micro_rows;
    int64_t     steps, save_every;
    mx_bert_options bert;
    bool        keep_folder;
} setup;

typedef struct rig {
    mx_device  *devs;
    int         n_devs;
    mx_tokenizer *tokenizer;
    mx_bert    *bert;
    mx_dataset *data;
    mx_batches  batches;
    mx_trainer *trainer;
    char        run[256];
} rig;

static int remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

static void remove_tree(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void run_folder(char *out, size_t size)
{
    static int n;
    snprintf(out, size, MX_BINARY_DIR "/test_train_encoder.%d.%d", (int)getpid(), n++);
}

static mx_train_options train_options(const setup *s)
{
    mx_train_options o = mx_train_defaults();
    o.steps = s->steps;
    o.batch = 3;
    o.micro_rows = s->micro_rows ? s->micro_rows : 4096;
    o.lr = 1e-2f;
    o.warmup = 3;
    o.schedule = MX_SCHEDULE_CONSTANT;
    o.save_every = s->save_every;
    return o;
}

static mx_status rig_trainer(rig *r, const setup *s, mx_error *err)
{
    mx_learner learner = mx_bert_learner(r->bert);
    mx_train_options o = train_options(s);
    return mx_trainer_open(&r->trainer, r->run, &learner, &r->batches, NULL, &o, NULL, err);
}

static const char *name_of(mx_bert_task task)
{
    return task == MX_BERT_CLASSIFY ? "bert-classify" : "bert-masked-words";
}

static bool rig_open(rig *r, const setup *s, const char *run)
{
    static const char folder[] = MX_SOURCE_DIR "/tests/golden/encoder/bert";
    char data[512];
    const char *paths[] = {data};
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = s->threads ? s->threads : 2};
    mx_dataset_options dopt = {.classes = s->task == MX_BERT_CLASSIFY ? 3 : 0};
    *r = (rig){0};
    if (run) snprintf(r->run, sizeof r->run, "%s", run);
    else run_folder(r->run, sizeof r->run);
    snprintf(data, sizeof data, MX_SOURCE_DIR "/tests/golden/train/%s/data.safetensors", name_of(s->task));
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &opt, &err), err);
    CHECK_OK(mx_tokenizer_open_folder(&r->tokenizer, folder, &err), err);
    if (!r->tokenizer) return false;
    mx_bert_options b = s->bert;
    b.task = s->task;
    b.tokenizer = r->tokenizer;
    b.mask_rate = 0.15f;
    mx_text_to_ids ids = mx_text_for_encoder(r->tokenizer);
    CHECK_OK(mx_bert_open(&r->bert, &r->devs[MX_TEST_DEVICE], folder, &b, &err), err);
    CHECK_OK(mx_dataset_open(&r->data, paths, 1, &ids, &dopt, &err), err);
    if (!r->bert || !r->data) return false;
    CHECK_OK(mx_batches_open(&r->batches, r->data, MX_PACK_DOCUMENTS, 96, 1, false, false, &err), err);
    CHECK_OK(rig_trainer(r, s, &err), err);
    return r->trainer != NULL;
}

static void rig_close(rig *r, bool keep)
{
    mx_trainer_close(r->trainer);
    mx_batches_close(&r->batches);
    mx_dataset_close(r->data);
    mx_bert_close(r->bert);
    mx_tokenizer_close(r->tokenizer);
    mx_devices_close(r->devs, r->n_devs);
    if (!keep) remove_tree(r->run);
}

static double max_error(const float *got, const float *want, size_t n)
{
    double worst = 0, most = 1e-30;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)got[i] - (double)want[i]);
        if (!(e <= worst)) worst = e;
        if (fabs((double)want[i]) > most) most = fabs((double)want[i]);
    }
    return worst / most;
}

/* Every tensor of a golden file against the buffer of that layout, error over
 * the tensor's largest value.  A bias of keys shifts all scores of a query
 * alike: its gradient is 0 but for rounding, which AdamW then blows up. */
static void compare(const mx_params *p, const mx_buffer *b, const char *model, const char *file, float scale, double limit)
{
    char path[512];
    mx_error err = {0};
    mx_checkpoint *c = NULL;
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/train/%s/%s", model, file);
    CHECK_OK(mx_checkpoint_open(&c, path, &err), err);
    for (int i = 0; c && i < p->n; i++) {
        const mx_param *q = &p->param[i];
        const mx_blob *want = mx_checkpoint_find(c, q->name);
        size_t n = (size_t)q->rows * (size_t)q->cols;
        CHECK_MSG(want, "%s", q->name);
        if (!want || strstr(q->name, "self.key.bias")) continue;
        float *w = malloc(n * sizeof *w), *g = malloc(n * sizeof *g);
        if (q->flags & MX_PARAM_CONV1D) mx_blob_read_transposed(want, 0, q->rows, w);
        else mx_blob_read(want, 0, q->rows, w);
        for (size_t k = 0; k < n; k++) g[k] = ((const float *)b->base)[q->offset + k] * scale;
        double e = max_error(g, w, n);
        CHECK_MSG(e <= limit, "%s %s: %s is off by %.2g", model, file, q->name, e);
        free(g);
        free(w);
    }
    mx_checkpoint_close(c);
}

static void check_gradients(rig *r, const setup *s)
{
    mx_error err = {0};
    mx_batch b = {0};
    mx_stream stream;
    mx_learner l = mx_bert_learner(r->bert);
    for (int i = 0; i < 3; i++) CHECK_OK(mx_batches_take(&r->batches, i, &b, &err), err);
    CHECK_OK(mx_stream_open(&stream, &r->devs[MX_TEST_DEVICE], l.scratch(l.network, b.rows, b.spans, b.longest, true), &err), err);
    mx_pass p = {.batch = &b, .learn = true, .seed = 1};
    memset(l.params->grad.base, 0, l.params->grad.size);
    CHECK_OK(l.run(l.network, &stream, &p, &err), err);
    compare(l.params, &l.params->grad, name_of(s->task), "grad.safetensors", 1.0f / (float)p.counted, 1e-5);
    mx_stream_close(&stream);
    mx_batch_free(&b);
}

static void ten_steps(mx_bert_task task)
{
    setup s = {.task = task, .steps = 10, .bert = {.compute = MX_F32}};
    const char *model = name_of(task);
    rig r;
    char path[512];
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/train/%s/steps.json", model);
    json_t *log = json_load_file(path, 0, NULL);
    CHECK(json_array_size(log) == 10);
    if (rig_open(&r, &s, NULL)) {
        check_gradients(&r, &s);
        bool done = false;
        for (size_t i = 0; !done && i < 20; i++) {
            mx_error err = {0};
            mx_train_report t;
            mx_status st = mx_trainer_step(r.trainer, &t, &done, &err);
            CHECK_OK(st, err);
            if (st) break;
            const json_t *want = json_array_get(log, i);
            double loss = json_number_value(json_object_get(want, "loss")), norm = json_number_value(json_object_get(want, "grad_norm"));
            CHECK_MSG(fabs(t.loss - loss) <= 1e-5 * loss, "%s step %zu: loss %.9g, PyTorch %.9g", model, i + 1, t.loss, loss);
            CHECK_MSG(fabs(t.grad_norm - norm) <= 2e-5 * norm, "%s step %zu: norm %.9g, PyTorch %.9g", model, i + 1, t.grad_norm, norm);
            CHECK(fabs(t.lr - json_number_value(json_object_get(want, "lr"))) < 1e-9);
        }
        compare(mx_bert_params(r.bert), &mx_bert_params(r.bert)->value, model, "weights.safetensors", 1, 1e-4);
    }
    json_decref(log);
    rig_close(&r, false);
}

static void masked_words(void)
{
    ten_steps(MX_BERT_MASKED_WORDS);
}

static void classify(void)
{
    ten_steps(MX_BERT_CLASSIFY);
}

/* ---- the same bits -------------------------------------------------------------------- */

/* All weights after a run; malloc'ed. */
static float *run_all(const setup *s, const char *folder, int stop_at, size_t *n)
{
    rig r;
    float *copy = NULL;
    bool done = false;
    if (rig_open(&r, s, folder)) {
        mx_error err = {0};
        mx_train_report t = {0};
        for (int i = 0; !done && (stop_at < 0 || t.step < stop_at); i++) {
            mx_status st = mx_trainer_step(r.trainer, &t, &done, &err);
            CHECK_OK(st, err);
            if (st) break;
        }
        const mx_params *p = mx_bert_params(r.bert);
        *n = p->count;
        copy = malloc(p->count * sizeof *copy);
        memcpy(copy, p->value.base, p->count * sizeof *copy);
    }
    rig_close(&r, folder != NULL);
    return copy;
}

static void same_bits(const char *what, const setup *a, const setup *b)
{
    size_t n = 0, m = 0;
    float *x = run_all(a, NULL, -1, &n), *y = run_all(b, NULL, -1, &m);
    CHECK_MSG(x && y && n == m && !memcmp(x, y, n * sizeof *x), "%s", what);
    free(x);
    free(y);
}

static void threads(void)
{
    setup one = {.task = MX_BERT_MASKED_WORDS, .threads = 1, .steps = 5, .bert = {.compute = MX_F32}}, three = one;
    three.threads = 3;
    same_bits("1 and 3 threads, f32", &one, &three);
    one.bert.compute = three.bert.compute = MX_BF16;
    one.task = three.task = MX_BERT_CLASSIFY;
    same_bits("1 and 3 threads, bf16", &one, &three);
}

static void recompute(void)
{
    setup kept = {.task = MX_BERT_MASKED_WORDS, .steps = 5, .bert = {.compute = MX_F32, .dropout = 0.1f}}, again = kept;
    again.bert.recompute = true;
    same_bits("kept and recomputed, with dropout", &kept, &again);
    kept.task = again.task = MX_BERT_CLASSIFY;
    same_bits("kept and recomputed, classes", &kept, &again);
}

static void resume(void)
{
    char folder[256];
    size_t n = 0, m = 0;
    setup s = {.task = MX_BERT_CLASSIFY, .steps = 9, .save_every = 2, .bert = {.compute = MX_F32, .dropout = 0.1f}};
    run_folder(folder, sizeof folder);
    float *whole = run_all(&s, NULL, -1, &n);
    free(run_all(&s, folder, 5, &m));                 /* stops behind the checkpoint of step 4 */
    float *resumed = run_all(&s, folder, -1, &m);
    CHECK(whole && resumed && n == m && !memcmp(whole, resumed, n * sizeof *whole));
    free(resumed);
    free(whole);
    remove_tree(folder);
}

/* What is saved has the labels' names and opens again, head and all. */
static void saved(void)
{
    char folder[256];
    mx_error err = {0};
    rig r;
    mx_bert *again = NULL;
    const char *const names[] = {"bad", "so-so", "good"};
    setup s = {.task = MX_BERT_CLASSIFY, .steps = 2, .bert = {.compute = MX_F32, .labels = names, .classes = 3}};
    run_folder(folder, sizeof folder);
    if (rig_open(&r, &s, NULL)) {
        mx_learner l = mx_bert_learner(r.bert);
        CHECK_OK(mx_snapshot_prepare(folder, &err), err);
        CHECK_OK(l.save(l.network, folder, &err), err);
        mx_bert_options o = {.task = MX_BERT_CLASSIFY, .compute = MX_F32};
        CHECK_OK(mx_bert_open(&again, r.devs, folder, &o, &err), err);
        if (again) {
            const mx_params *p = mx_bert_params(again), *q = mx_bert_params(r.bert);
            CHECK(mx_bert_fresh(again) == 0 && p->count == q->count && !memcmp(p->value.base, q->value.base, p->count * sizeof(float)));
            CHECK(mx_bert_config(again)->classes == 3 && !strcmp(mx_bert_config(again)->label[1], "so-so"));
        }
        mx_bert_close(again);
    }
    rig_close(&r, false);
    remove_tree(folder);
}

static void bad_options(void)
{
    static const char folder[] = MX_SOURCE_DIR "/tests/golden/encoder/bert";
    const struct { mx_bert_options o; const char *part; } bad[] = {
        {{.task = MX_BERT_CLASSIFY, .compute = MX_I8}, "compute"},
        {{.task = MX_BERT_CLASSIFY, .dropout = 1}, "dropout"},
        {{.task = MX_BERT_CLASSIFY, .classes = 1 << 20}, "classes"},
        {{.task = MX_BERT_CLASSIFY, .classes = 5}, "classifier.weight"},
        {{.task = MX_BERT_MASKED_WORDS, .mask_rate = 0}, "mask-rate"},
        {{.task = MX_BERT_MASKED_WORDS, .mask_rate = 0.5f}, "tokenizer"},
    };
    mx_device_options opt = {.cpu_threads = 1};
    mx_device *devs = NULL;
    mx_error err = {0};
    int n;
    CHECK_OK(mx_devices_open(&devs, &n, &opt, &err), err);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_bert *m = NULL;
        CHECK(mx_bert_open(&m, devs, folder, &bad[i].o, &err) != MX_OK && !m);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
    mx_devices_close(devs, n);
}

static void bad_configs(void)
{
    const struct { const char *json, *part; } bad[] = {
        {"{", "not JSON"}, {"[]", "not an object"}, {"{}", "model_type"}, {"{\"model_type\": \"gpt2\"}", "gpt2"},
        {"{\"model_type\": \"bert\", \"hidden_size\": 0}", "hidden_size"},
        {"{\"model_type\": \"bert\", \"hidden_size\": 33, \"num_attention_heads\": 2}", "multiple"},
        {"{\"model_type\": \"bert\", \"position_embedding_type\": \"relative_key\"}", "relative_key"},
        {"{\"model_type\": \"bert\", \"id2label\": {\"0\": \"a\", \"2\": \"b\"}}", "id2label"},
        {"{\"model_type\": \"bert\", \"id2label\": []}", "id2label"},
        {"{\"model_type\": \"bert\", \"vocab_size\": 1e99}", "vocab_size"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_encoder_config c;
        mx_error err = {0};
        CHECK(mx_encoder_config_json(&c, bad[i].json, strlen(bad[i].json), "config.json", &err) != MX_OK);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
}

/* A document longer than a sequence is cut, and still ends with [SEP]. */
static void long_documents(void)
{
    rig r;
    mx_error err = {0};
    mx_batches b = {0};
    mx_batch batch = {0};
    setup s = {.task = MX_BERT_CLASSIFY, .steps = 1, .bert = {.compute = MX_F32}};
    if (rig_open(&r, &s, NULL)) {
        CHECK_OK(mx_batches_open(&b, r.data, MX_PACK_DOCUMENTS, 12, 1, false, false, &err), err);
        CHECK(b.count == mx_dataset_count(r.data));
        for (int64_t i = 0; i < b.count; i++) {
            mx_batch_clear(&batch);
            CHECK_OK(mx_batches_take(&b, i, &batch, &err), err);
            CHECK(batch.rows <= 12 && batch.ids[0] == 2 && batch.ids[batch.rows - 1] == 3 && batch.label[0] == mx_dataset_at(r.data, i).label);
        }
        mx_batch_free(&batch);
        mx_batches_close(&b);
    }
    rig_close(&r, false);
}

static void measured(void)
{
    rig r;
    mx_error err = {0};
    double loss = 0, accuracy = -1;
    setup s = {.task = MX_BERT_CLASSIFY, .steps = 1, .bert = {.compute = MX_F32}};
    if (rig_open(&r, &s, NULL)) {
        mx_learner l = mx_bert_learner(r.bert);
        double few = 0, share = 0;
        CHECK_OK(mx_evaluate(&l, &r.batches, 4096, NULL, NULL, &loss, &accuracy, &err), err);
        CHECK_OK(mx_evaluate(&l, &r.batches, 96, NULL, NULL, &few, &share, &err), err);
        CHECK(loss > 0 && fabs(loss - few) < 1e-6 && accuracy == share && accuracy >= 0 && accuracy <= 1);
    }
    rig_close(&r, false);
}

MX_TESTS(TEST(masked_words), TEST(classify), TEST(threads), TEST(recompute), TEST(resume), TEST(saved), TEST(bad_options),
         TEST(bad_configs), TEST(long_documents), TEST(measured))
