/* test_train.c - ten steps against PyTorch (tests/golden/make_train_golden.py),
 * and what a run promises: the same bits for any number of threads, with and
 * without recomputation, and after it was broken off and went on. */
#include "tests/train_rig.h"

#ifdef MX_TEST_SIMULATED
#include "cudasim.h"
#endif

static void rig_network(rig *r, const setup *s, mx_text_to_ids *ids, mx_dataset_options *data)
{
    char path[512];
    mx_error err = {0};
    mx_lm *lm = NULL;
    (void)data;
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/decoder/%s", s->model);
    CHECK_OK(mx_lm_open(&lm, &r->devs[MX_TEST_DEVICE], path, &s->lm, &err), err);
    if (lm) r->learner = mx_lm_learner(lm);
    r->targets = true;
    *ids = (mx_text_to_ids){.vocab = 131, .end = -1};
}

static void rig_network_close(rig *r)
{
    mx_lm_close(r->learner.network);
}

static void gpt2(void)
{
    ten_steps((setup){.model = "gpt2", .lm = {.compute = MX_F32}});
}

/* bf16 with attention through cuDNN, on a GPU that has it: close to our own kernels, and a run goes on with the same bits. */
static void gpt2_through_cudnn(void)
{
    setup ours = {.model = "gpt2", .steps = 5, .lm = {.compute = MX_BF16}}, theirs = ours;
    theirs.cudnn = MX_CUDNN_ON;
    size_t n = 0, m = 0;
#ifdef MX_TEST_SIMULATED
    unsigned long before = cudasim_stats.fused;
#endif
    float *x = run_all(&ours, NULL, -1, &n), *y = run_all(&theirs, NULL, -1, &m);
#ifdef MX_TEST_SIMULATED
    CHECK(cudasim_stats.fused > before);
#endif
    CHECK(x && y && n == m);
    double apart = 0, all = 1e-30;      /* not the largest: AdamW makes a step of a bias of keys, whose gradient is 0 but for rounding */
    for (size_t i = 0; x && y && i < n; i++) apart += pow((double)(x[i] - y[i]), 2), all += pow((double)x[i], 2);
    CHECK_MSG(apart < 1e-4 * all, "weights are %.2g apart", sqrt(apart / all));
    free(x);
    free(y);
    theirs.lm.dropout = 0.1f;
    resume_of(theirs);
}

static void llama(void)
{
    ten_steps((setup){.model = "llama", .lm = {.compute = MX_F32}});
}

static void qwen2(void)
{
    ten_steps((setup){.model = "qwen2", .lm = {.compute = MX_F32}});
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
    resume_of((setup){.model = "gpt2", .lm = {.compute = MX_F32, .dropout = 0.1f}});
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
        o.batch = 5;
        CHECK(mx_trainer_open(&other, folder, &r.learner, &r.batches, NULL, &o, NULL, &err) == MX_ERR_STATE);
        CHECK_MSG(strstr(err.text, "batch 3") && strstr(err.text, "now it is 5"), "%s", err.text);
        o.batch = 3;
        o.lr = NAN;
        CHECK(mx_trainer_open(&other, folder, &r.learner, &r.batches, NULL, &o, NULL, &err) == MX_ERR_ARG);
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
        const mx_params *p = r.learner.params;
        put_weight(&p->value, p->param[mx_params_find(p, "model.norm.weight")].offset + 5, NAN);
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
        CHECK(b.learner.params->n == 2 * 2 * 2);
        double first = y.loss;
        for (int i = 0; i < 7; i++) CHECK_OK(mx_trainer_step(b.trainer, &y, &done, &err), err);
        CHECK_MSG(y.loss < first + 0.5 && y.grad_norm > 0, "%.4f to %.4f", first, y.loss);
    }
    rig_close(&b, false);
    rig_close(&a, false);
}

MX_TESTS(TEST(gpt2), TEST(gpt2_through_cudnn), TEST(llama), TEST(qwen2), TEST(threads), TEST(recompute), TEST(micro_batches),
         TEST(resume), TEST(torn), TEST(other_settings), TEST(diverges), TEST(adapter))
