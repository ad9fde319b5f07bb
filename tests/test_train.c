/* test_train.c - ten steps against PyTorch (tests/golden/make_train_golden.py),
 * and what a run promises: the same bits for any number of threads, with and
 * without recomputation, and after it was broken off and went on. */
#include "models/lm.h"
#include "tests/test.h"

#include <ftw.h>
#include <jansson.h>
#include <unistd.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif

typedef struct setup {
    const char *model;
    int         threads;
    int32_t     micro_rows;
    int64_t     steps, save_every;
    mx_lm_options lm;
    bool        keep_folder;
} setup;

typedef struct rig {
    mx_device  *devs;
    int         n_devs;
    mx_lm      *lm;
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
    snprintf(out, size, MX_BINARY_DIR "/test_train.%d.%d", (int)getpid(), n++);
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
    mx_learner learner = mx_lm_learner(r->lm);
    mx_train_options o = train_options(s);
    return mx_trainer_open(&r->trainer, r->run, &learner, &r->batches, NULL, &o, NULL, err);
}

static bool rig_open(rig *r, const setup *s, const char *run)
{
    char path[512], data[512];
    const char *paths[] = {data};
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = s->threads ? s->threads : 2};
    mx_text_to_ids ids = {.vocab = 131, .end = -1};
    mx_dataset_options dopt = {0};
    *r = (rig){0};
    if (run) snprintf(r->run, sizeof r->run, "%s", run);
    else run_folder(r->run, sizeof r->run);
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/decoder/%s", s->model);
    snprintf(data, sizeof data, MX_SOURCE_DIR "/tests/golden/train/%s/data.safetensors", s->model);
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &opt, &err), err);
    CHECK_OK(mx_lm_open(&r->lm, &r->devs[MX_TEST_DEVICE], path, &s->lm, &err), err);
    CHECK_OK(mx_dataset_open(&r->data, paths, 1, &ids, &dopt, &err), err);
    if (!r->lm || !r->data) return false;
    CHECK_OK(mx_batches_open(&r->batches, r->data, MX_PACK_DOCUMENTS, 96, 1, false, true, &err), err);
    CHECK_OK(rig_trainer(r, s, &err), err);
    return r->trainer != NULL;
}

static void rig_close(rig *r, bool keep)
{
    mx_trainer_close(r->trainer);
    mx_batches_close(&r->batches);
    mx_dataset_close(r->data);
    mx_lm_close(r->lm);
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
        if (!want || strstr(q->name, "k_proj.bias") || strstr(q->name, "c_attn.bias")) continue;
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
    mx_learner l = mx_lm_learner(r->lm);
    for (int i = 0; i < 3; i++) CHECK_OK(mx_batches_take(&r->batches, i, &b, &err), err);
    CHECK_OK(mx_stream_open(&stream, &r->devs[MX_TEST_DEVICE], l.scratch(l.network, b.rows, b.spans, b.longest, true), &err), err);
    mx_pass p = {.batch = &b, .learn = true, .seed = 1};
    memset(l.params->grad.base, 0, l.params->grad.size);
    CHECK_OK(l.run(l.network, &stream, &p, &err), err);
    compare(l.params, &l.params->grad, s->model, "grad.safetensors", 1.0f / (float)p.counted, 1e-5);
    mx_stream_close(&stream);
    mx_batch_free(&b);
}

static void ten_steps(const char *model)
{
    setup s = {.model = model, .steps = 10, .lm = {.compute = MX_F32}};
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
        compare(mx_lm_params(r.lm), &mx_lm_params(r.lm)->value, model, "weights.safetensors", 1, 1e-4);
    }
    json_decref(log);
    rig_close(&r, false);
}

static void gpt2(void)
{
    ten_steps("gpt2");
}

static void llama(void)
{
    ten_steps("llama");
}

static void qwen2(void)
{
    ten_steps("qwen2");
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
        const mx_params *p = mx_lm_params(r.lm);
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
    setup one = {.model = "llama", .threads = 1, .steps = 5, .lm = {.compute = MX_F32}}, three = one;
    three.threads = 3;
    same_bits("1 and 3 threads, f32", &one, &three);
    one.lm.compute = three.lm.compute = MX_BF16;
    one.model = three.model = "gpt2";
    same_bits("1 and 3 threads, bf16", &one, &three);
}

static void recompute(void)
{
    setup kept = {.model = "gpt2", .steps = 5, .lm = {.compute = MX_F32, .dropout = 0.1f}}, again = kept;
    again.lm.recompute = true;
    same_bits("kept and recomputed, GPT-2 with dropout", &kept, &again);
    kept.model = again.model = "qwen2";
    kept.lm.lora = again.lm.lora = (mx_lora_options){.rank = 4, .alpha = 8, .dropout = 0.1f, .targets = 127};
    same_bits("kept and recomputed, Qwen2 with adapters", &kept, &again);
}

static void micro_batches(void)
{
    setup whole = {.model = "llama", .steps = 5, .lm = {.compute = MX_F32}}, parts = whole;
    parts.micro_rows = 96;
    size_t n = 0, m = 0;
    float *x = run_all(&whole, NULL, -1, &n), *y = run_all(&parts, NULL, -1, &m);
    CHECK(x && y && n == m);
    if (x && y) CHECK_MSG(max_error(x, y, n) < 1e-4, "gradient accumulation is off by %.2g", max_error(x, y, n));
    free(x);
    free(y);
}

static void resume(void)
{
    char folder[256];
    size_t n = 0, m = 0;
    setup s = {.model = "gpt2", .steps = 9, .save_every = 2, .lm = {.compute = MX_F32, .dropout = 0.1f}};
    run_folder(folder, sizeof folder);
    float *whole = run_all(&s, NULL, -1, &n);
    free(run_all(&s, folder, 5, &m));                 /* stops behind the checkpoint of step 4 */
    float *resumed = run_all(&s, folder, -1, &m);
    CHECK(whole && resumed && n == m && !memcmp(whole, resumed, n * sizeof *whole));
    free(resumed);
    free(whole);
    remove_tree(folder);
}

/* The newest checkpoint is torn: it is named, and the one before it is used. */
static void torn(void)
{
    char folder[256], path[512];
    size_t n = 0, m = 0;
    setup s = {.model = "llama", .steps = 6, .save_every = 2, .lm = {.compute = MX_F32}};
    run_folder(folder, sizeof folder);
    float *whole = run_all(&s, folder, -1, &n);
    snprintf(path, sizeof path, "%s/checkpoint-00000006/model.safetensors", folder);
    CHECK(truncate(path, 4096) == 0);
    float *resumed = run_all(&s, folder, -1, &m);
    CHECK(whole && resumed && !memcmp(whole, resumed, n * sizeof *whole));
    mx_error err = {0};
    char found[MX_PATH];
    int64_t step = 0;
    CHECK_OK(mx_snapshot_latest(folder, found, &step, NULL, NULL, &err), err);
    CHECK(step == 6);
    free(resumed);
    free(whole);
    remove_tree(folder);
}

static void other_settings(void)
{
    char folder[256];
    size_t n = 0;
    mx_error err = {0};
    rig r;
    setup s = {.model = "llama", .steps = 4, .save_every = 2, .lm = {.compute = MX_F32}};
    run_folder(folder, sizeof folder);
    free(run_all(&s, folder, -1, &n));
    if (rig_open(&r, &s, folder)) {
        mx_trainer *other = NULL;
        mx_train_options o = train_options(&s);
        mx_learner l = mx_lm_learner(r.lm);
        o.batch = 5;
        CHECK(mx_trainer_open(&other, folder, &l, &r.batches, NULL, &o, NULL, &err) == MX_ERR_STATE);
        CHECK_MSG(strstr(err.text, "batch 3") && strstr(err.text, "now it is 5"), "%s", err.text);
        o.batch = 3;
        o.lr = NAN;
        CHECK(mx_trainer_open(&other, folder, &l, &r.batches, NULL, &o, NULL, &err) == MX_ERR_ARG);
        CHECK_MSG(strstr(err.text, "lr"), "%s", err.text);
    }
    rig_close(&r, false);
}

static void diverges(void)
{
    setup s = {.model = "llama", .steps = 9, .lm = {.compute = MX_F32}};
    rig r;
    if (rig_open(&r, &s, NULL)) {
        mx_error err = {0};
        mx_train_report t;
        bool done;
        const mx_params *p = mx_lm_params(r.lm);
        ((float *)p->value.base)[p->param[mx_params_find(p, "model.norm.weight")].offset + 5] = NAN;
        CHECK(mx_trainer_step(r.trainer, &t, &done, &err) == MX_ERR_STATE);
        CHECK_MSG(strstr(err.text, "step 1") && strstr(err.text, "loss"), "%s", err.text);
    }
    rig_close(&r, false);
}

/* An adapter begins as nothing, learns, and leaves the base as it is. */
static void adapter(void)
{
    setup plain = {.model = "llama", .steps = 8, .lm = {.compute = MX_F32}}, lora = plain;
    lora.lm.lora = (mx_lora_options){.rank = 4, .alpha = 8};
    rig a, b;
    bool open = rig_open(&a, &plain, NULL);
    if (rig_open(&b, &lora, NULL) && open) {
        mx_error err = {0};
        mx_train_report x, y;
        bool done;
        CHECK_OK(mx_trainer_step(a.trainer, &x, &done, &err), err);
        CHECK_OK(mx_trainer_step(b.trainer, &y, &done, &err), err);
        CHECK_MSG(fabs(x.loss - y.loss) < 1e-6, "%.9g %.9g", x.loss, y.loss);
        CHECK(mx_lm_params(b.lm)->n == 2 * 2 * 2);
        double first = y.loss;
        for (int i = 0; i < 7; i++) CHECK_OK(mx_trainer_step(b.trainer, &y, &done, &err), err);
        CHECK_MSG(y.loss < first + 0.5 && y.grad_norm > 0, "%.4f to %.4f", first, y.loss);
    }
    rig_close(&b, false);
    rig_close(&a, false);
}

MX_TESTS(TEST(gpt2), TEST(llama), TEST(qwen2), TEST(threads), TEST(recompute), TEST(micro_batches),
         TEST(resume), TEST(torn), TEST(other_settings), TEST(diverges), TEST(adapter))
