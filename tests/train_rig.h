/* train_rig.h - a small network of tests/golden in training: ten steps against
 * PyTorch, and runs to the end whose weights are compared bit for bit.  What
 * network it is, the file that includes this says with rig_network(). */
#ifndef MX_TRAIN_RIG_H
#define MX_TRAIN_RIG_H

#include "models/bert.h"
#include "models/lm.h"
#include "tests/test.h"

#include <ftw.h>
#include <jansson.h>
#include <unistd.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif

typedef struct setup {
    const char *model;                /* a folder of tests/golden/train                     */
    int         threads;              /* 0: 2                                               */
    int32_t     micro_rows;           /* 0: a step at once                                  */
    int64_t     steps, save_every;
    mx_cudnn    cudnn;
    mx_lm_options   lm;               /* one of the two, as rig_network() wants it          */
    mx_bert_options bert;
} setup;

typedef struct rig {
    mx_device  *devs;
    int         n_devs;
    mx_tokenizer *tokenizer;          /* of an encoder                                      */
    mx_learner  learner;              /* .network: what rig_network() opened                */
    bool        targets;              /* the next token is what a token learns              */
    mx_dataset *data;
    mx_batches  batches;
    mx_trainer *trainer;
    char        run[256];
} rig;

/* Opens the network into r->learner, and says how texts become ids.  Failures
 * are checks that failed; then r->learner.network stays NULL. */
static void rig_network(rig *r, const setup *s, mx_text_to_ids *ids, mx_dataset_options *data);
static void rig_network_close(rig *r);

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
    snprintf(out, size, MX_BINARY_DIR "/train_rig.%d.%d", (int)getpid(), n++);
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

static bool rig_open(rig *r, const setup *s, const char *run)
{
    char data[512];
    const char *paths[] = {data};
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = s->threads ? s->threads : 2, .cudnn = s->cudnn};
    mx_text_to_ids ids = {0};
    mx_dataset_options dopt = {0};
    *r = (rig){0};
    if (run) snprintf(r->run, sizeof r->run, "%s", run);
    else run_folder(r->run, sizeof r->run);
    snprintf(data, sizeof data, MX_SOURCE_DIR "/tests/golden/train/%s/data.safetensors", s->model);
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &opt, &err), err);
    rig_network(r, s, &ids, &dopt);
    if (!r->learner.network) return false;
    CHECK_OK(mx_dataset_open(&r->data, paths, 1, &ids, &dopt, &err), err);
    if (!r->data) return false;
    CHECK_OK(mx_batches_open(&r->batches, r->data, MX_PACK_DOCUMENTS, 96, 1, false, r->targets, &err), err);
    mx_train_options o = train_options(s);
    CHECK_OK(mx_trainer_open(&r->trainer, r->run, &r->learner, &r->batches, NULL, &o, NULL, &err), err);
    return r->trainer != NULL;
}

static void rig_close(rig *r, bool keep)
{
    mx_trainer_close(r->trainer);
    mx_batches_close(&r->batches);
    mx_dataset_close(r->data);
    rig_network_close(r);
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

/* A buffer's memory, wherever it is; malloc'ed. */
static float *fetched(const mx_buffer *b)
{
    mx_error err = {0};
    mx_stream s;
    float *host = calloc(1, b->size + 1);
    CHECK_OK(mx_stream_open(&s, b->dev, 0, &err), err);
    s.dev->ops->download(&s, host, b->base, b->size);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
    return host;
}

/* One number of it is another. */
static inline void put_weight(const mx_buffer *b, size_t at, float value)
{
    mx_error err = {0};
    mx_stream s;
    CHECK_OK(mx_stream_open(&s, b->dev, 0, &err), err);
    s.dev->ops->upload(&s, (float *)b->base + at, &value, sizeof value);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
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
    float *got = fetched(b);
    for (int i = 0; c && i < p->n; i++) {
        const mx_param *q = &p->param[i];
        const mx_blob *want = mx_checkpoint_find(c, q->name);
        size_t n = (size_t)q->rows * (size_t)q->cols;
        CHECK_MSG(want, "%s", q->name);
        if (!want || strstr(q->name, "k_proj.bias") || strstr(q->name, "c_attn.bias") || strstr(q->name, "self.key.bias")) continue;
        float *w = malloc(n * sizeof *w), *g = malloc(n * sizeof *g);
        if (q->flags & MX_PARAM_CONV1D) mx_blob_read_transposed(want, 0, q->rows, w);
        else mx_blob_read(want, 0, q->rows, w);
        for (size_t k = 0; k < n; k++) g[k] = got[q->offset + k] * scale;
        double e = max_error(g, w, n);
        CHECK_MSG(e <= limit, "%s %s: %s is off by %.2g", model, file, q->name, e);
        free(g);
        free(w);
    }
    free(got);
    mx_checkpoint_close(c);
}

static void check_gradients(rig *r, const setup *s)
{
    mx_error err = {0};
    mx_batch b = {0};
    mx_stream stream;
    const mx_learner l = r->learner;
    for (int i = 0; i < 3; i++) CHECK_OK(mx_batches_take(&r->batches, i, &b, &err), err);
    CHECK_OK(mx_stream_open(&stream, &r->devs[MX_TEST_DEVICE], l.scratch(l.network, b.rows, b.spans, b.longest, true), &err), err);
    mx_pass p = {.batch = &b, .learn = true, .seed = 1};
    stream.dev->ops->clear(&stream, l.params->grad.base, l.params->grad.size);
    CHECK_OK(l.run(l.network, &stream, &p, &err), err);
    compare(l.params, &l.params->grad, s->model, "grad.safetensors", 1.0f / (float)p.counted, 1e-5);
    mx_stream_close(&stream);
    mx_batch_free(&b);
}

static void ten_steps(setup s)
{
    const char *model = s.model;
    s.steps = 10;
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
        compare(r.learner.params, &r.learner.params->value, model, "weights.safetensors", 1, 1e-4);
    }
    json_decref(log);
    rig_close(&r, false);
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
        const mx_params *p = r.learner.params;
        *n = p->count;
        copy = fetched(&p->value);
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

static void resume_of(setup s)
{
    char folder[256];
    size_t n = 0, m = 0;
    s.steps = 9;
    s.save_every = 2;
    run_folder(folder, sizeof folder);
    float *whole = run_all(&s, NULL, -1, &n);
    free(run_all(&s, folder, 5, &m));                 /* stops behind the checkpoint of step 4 */
    float *resumed = run_all(&s, folder, -1, &m);
    CHECK(whole && resumed && n == m && !memcmp(whole, resumed, n * sizeof *whole));
    free(resumed);
    free(whole);
    remove_tree(folder);
}

#endif
