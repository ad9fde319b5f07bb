/* embed.c - an encoder made ready to serve, and its turns. */
#include "models/embed_modules.h"

#include "runtime/slab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define MOST_TEXTS 256            /* of a turn */

struct mx_embedder {
    char          name[64], lane[96], path[MX_PATH];
    mx_embed_modules modules;
    mx_embedder_options opt;
    mx_encoder    model;
    mx_tokenizer *tokenizer;
    mx_device    *dev;
    mx_scheduler *sched;
    size_t        scratch_bytes;
    double        load_seconds;
    /* a turn's host memory */
    int32_t       max_rows, *ids, *positions, *zeros, *begin;
    float        *pooled[MX_POOL_COUNT], *logits;
    char        (*label)[MX_ENCODER_LABEL];     /* [classes] */
};

struct mx_embedding {
    mx_job        job;            /* first: it is what the scheduler sees */
    mx_embedder  *of;
    mx_embedding_request q;
    mx_ids        ids;
    float        *values, *probabilities;
    mx_embedding_done *done;
    void         *user;
};

mx_embedder_options mx_embedder_defaults(void)
{
    return (mx_embedder_options){.dtype = MX_F32, .max_batched_tokens = 512, .max_queued = 256};
}

/* ---- a turn ------------------------------------------------------------------------------ */

static void pack(mx_embedder *e, mx_job **jobs, int n, mx_encoder_batch *b, unsigned *asked, bool *classify)
{
    int32_t row = 0;
    for (int i = 0; i < n; i++) {
        const mx_embedding *m = (const mx_embedding *)jobs[i];
        e->begin[i] = row;
        for (int32_t t = 0; t < m->ids.count; t++, row++) {
            e->ids[row] = m->ids.id[t];
            e->positions[row] = t;
        }
        if (m->q.embed) *asked |= 1u << m->q.pooling;
        *classify |= m->q.classify;
    }
    e->begin[n] = row;
    *b = (mx_encoder_batch){.n_rows = row, .n_texts = n, .ids = e->ids, .positions = e->positions, .begin = e->begin, .zeros = e->zeros};
}

static void take_values(mx_embedding *m, const float *from)
{
    int32_t n = m->of->model.config.d_model;
    double square = 0;
    for (int32_t i = 0; i < n; i++) square += (double)from[i] * (double)from[i];
    double scale = m->q.normalize ? 1 / fmax(sqrt(square), 1e-12) : 1;
    for (int32_t i = 0; i < n; i++) m->values[i] = (float)(from[i] * scale);
}

static void take_classes(mx_embedding *m, const float *logits)
{
    int32_t n = m->of->model.config.classes;
    double most = -INFINITY, sum = 0;
    for (int32_t i = 0; i < n; i++) most = fmax(most, logits[i]);
    for (int32_t i = 0; i < n; i++) sum += exp(logits[i] - most);
    for (int32_t i = 0; i < n; i++) m->probabilities[i] = (float)(exp(logits[i] - most) / sum);
}

static void run(void *model, mx_stream *s, mx_job **jobs, int n)
{
    mx_embedder *e = model;
    mx_encoder_batch b;
    mx_encoder_out out;
    mx_error err = {0};
    unsigned asked = 0;
    bool classify = false;
    size_t C = (size_t)e->model.config.d_model, K = (size_t)e->model.config.classes;
    pack(e, jobs, n, &b, &asked, &classify);
    mx_encoder_forward(&e->model, s, &b, asked, classify, &out);
    for (int p = 0; p < MX_POOL_COUNT && !s->error.code; p++)
        if (asked >> p & 1) s->dev->ops->download(s, e->pooled[p], out.pooled[p].data, (size_t)n * C * sizeof(float));
    if (classify && !s->error.code) s->dev->ops->download(s, e->logits, out.logits.data, (size_t)n * K * sizeof(float));
    mx_status st = mx_stream_sync(s, &err);
    for (int i = 0; i < n; i++) {
        mx_embedding *m = (mx_embedding *)jobs[i];
        m->job.verdict = MX_DONE;
        if (st) m->job.error = err;
        if (!st && m->q.embed) take_values(m, e->pooled[m->q.pooling] + (size_t)i * C);
        if (!st && m->q.classify) take_classes(m, e->logits + (size_t)i * K);
    }
    mx_stream_rewind(s);
}

/* ---- opening ------------------------------------------------------------------------------- */

static mx_status check_options(const mx_embedder_options *o, mx_error *err)
{
    const struct { const char *name; int64_t value, least, most; } limits[] = {
        {"max-model-len", o->max_len, 0, 1 << 20}, {"max-num-batched-tokens", o->max_batched_tokens, 1, 1 << 20},
        {"max-num-queued-reqs", o->max_queued, 1, 1 << 24},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].value < limits[i].least || limits[i].value > limits[i].most)
            return mx_fail(err, MX_ERR_ARG, "%s is %lld; it must be from %lld to %lld", limits[i].name, (long long)limits[i].value,
                           (long long)limits[i].least, (long long)limits[i].most);
    return MX_OK;
}

/* What the folder says; e's texts and turns have their lengths then. */
static mx_status read_folder(mx_embedder *e, mx_encoder_config *config, mx_error *err)
{
    MX_TRY(mx_embed_modules_read(&e->modules, e->path, err));
    MX_TRY(mx_encoder_config_folder(config, e->modules.folder, err));
    int32_t most = config->max_positions;
    if (e->opt.max_len > most) {
        mx_encoder_config_close(config);
        return mx_fail(err, MX_ERR_ARG, "max-model-len is %d; this model was made for %d tokens", e->opt.max_len, most);
    }
    if (!e->opt.max_len) e->opt.max_len = e->modules.max_len && e->modules.max_len < most ? e->modules.max_len : most;
    e->max_rows = e->opt.max_batched_tokens > e->opt.max_len ? e->opt.max_batched_tokens : e->opt.max_len;
    return MX_OK;
}

static mx_status open_model(mx_embedder *e, mx_error *err)
{
    mx_encoder_config config;
    mx_checkpoint *file = NULL;
    MX_TRY(read_folder(e, &config, err));
    mx_status st = mx_tokenizer_open_folder(&e->tokenizer, e->modules.folder, err);
    if (!st && mx_tokenizer_vocab(e->tokenizer) > config.vocab)
        st = mx_fail(err, MX_ERR_FORMAT, "%s: the tokenizer has %d ids, the config says vocab_size %d", e->path, mx_tokenizer_vocab(e->tokenizer), config.vocab);
    if (!st) st = mx_checkpoint_open(&file, e->modules.folder, err);
    if (!st) st = mx_encoder_open(&e->model, e->dev, file, &config, e->opt.dtype, err);      /* takes the file */
    mx_encoder_config_close(&config);
    return st;
}

static mx_status open_memory(mx_embedder *e, mx_error *err)
{
    int32_t rows = e->max_rows;
    size_t n = (size_t)rows, C = (size_t)e->model.config.d_model, K = (size_t)e->model.config.classes;
    bool ok = true;
    e->ids = calloc(n, sizeof *e->ids);
    e->positions = calloc(n, sizeof *e->positions);
    e->zeros = calloc(n, sizeof *e->zeros);
    e->begin = calloc(MOST_TEXTS + 1, sizeof *e->begin);
    e->logits = calloc(MOST_TEXTS * K, sizeof *e->logits);
    e->label = calloc(K, sizeof *e->label);
    for (int p = 0; p < MX_POOL_COUNT; p++) ok &= (e->pooled[p] = calloc(MOST_TEXTS * C, sizeof(float))) != NULL;
    if (!ok || !e->ids || !e->positions || !e->zeros || !e->begin || !e->logits || !e->label)
        return mx_fail(err, MX_ERR_NO_MEMORY, "host memory of a turn of %d rows", rows);
    for (size_t i = 0; i < K; i++) {
        if (e->model.config.label) snprintf(e->label[i], sizeof e->label[i], "%s", e->model.config.label[i]);
        else snprintf(e->label[i], sizeof e->label[i], "LABEL_%zu", i);
    }
    e->scratch_bytes = mx_encoder_scratch(&e->model, rows, MOST_TEXTS);
    return e->scratch_bytes ? MX_OK : mx_fail(err, MX_ERR_ARG, "model %s: scratch of a turn overflows", e->name);
}

mx_status mx_embedder_footprint(mx_footprint *out, const char *path, const mx_device *dev, const mx_embedder_options *opt, mx_error *err)
{
    enum { TOKEN = 300 };
    mx_checkpoint *file = NULL;
    mx_status st;
    *out = (mx_footprint){0};
    MX_TRY(check_options(opt, err));
    if (strlen(path) >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "model: the path is longer than %d bytes", MX_PATH - 1);
    mx_embedder *e = calloc(1, sizeof *e);           /* only its measures count */
    if (!e) return mx_fail(err, MX_ERR_NO_MEMORY, "model %s", path);
    e->opt = *opt;
    snprintf(e->path, sizeof e->path, "%s", path);
    MX_TRY_GOTO(st, read_folder(e, &e->model.config, err), done);
    MX_TRY_GOTO(st, mx_checkpoint_open(&file, e->modules.folder, err), config);
    if (!mx_encoder_footprint(out, dev, file, &e->model.config, opt->dtype))
        st = mx_fail(err, MX_ERR_FORMAT, "%s: a table of embeddings is missing or too large", path);
    out->scratch = mx_encoder_scratch(&e->model, e->max_rows, MOST_TEXTS);
    out->host = (size_t)e->max_rows * 12 + (size_t)MOST_TEXTS * (size_t)(MX_POOL_COUNT * e->model.config.d_model + e->model.config.classes) * sizeof(float) +
                (size_t)e->model.config.vocab * TOKEN;
    mx_checkpoint_close(file);
config:
    mx_encoder_config_close(&e->model.config);
done:
    free(e);
    return st;
}

mx_status mx_embedder_open(mx_embedder **out, const char *name, const char *path, mx_device *devs, int device, mx_scheduler *sched,
                           const mx_embedder_options *opt, mx_error *err)
{
    mx_status st;
    uint64_t began = mx_now_ns(&mx_clock_monotonic);
    *out = NULL;
    MX_TRY(check_options(opt, err));
    if (!name[0] || strlen(name) >= sizeof((mx_embedder *)0)->name)
        return mx_fail(err, MX_ERR_ARG, "model name \"%.80s\": must have 1 to 63 bytes", name);
    if (strlen(path) >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "model: the path is longer than %d bytes", MX_PATH - 1);
    mx_embedder *e = calloc(1, sizeof *e);
    if (!e) return mx_fail(err, MX_ERR_NO_MEMORY, "model %s", name);
    e->opt = *opt;
    e->dev = &devs[device];
    e->sched = sched;
    snprintf(e->name, sizeof e->name, "%s", name);
    if (opt->version < 2) snprintf(e->lane, sizeof e->lane, "%s.embed", name);
    else snprintf(e->lane, sizeof e->lane, "%s@%d.embed", name, opt->version);
    snprintf(e->path, sizeof e->path, "%s", path);
    MX_TRY_GOTO(st, open_model(e, err), fail);
    MX_TRY_GOTO(st, open_memory(e, err), fail);
    mx_lane_config lane = {.name = e->lane, .device = device, .priority = 1, .max_jobs = MOST_TEXTS, .max_rows = (uint32_t)e->max_rows,
                           .queue_limit = (uint32_t)e->opt.max_queued, .run = run, .model = e, .scratch_bytes = e->scratch_bytes,
                           .express = true};
    MX_TRY_GOTO(st, mx_scheduler_lane(sched, &lane, err), fail);
    e->load_seconds = (double)(mx_now_ns(&mx_clock_monotonic) - began) * 1e-9;
    *out = e;
    return MX_OK;
fail:
    mx_embedder_close(e);
    return st;
}

void mx_embedder_close(mx_embedder *e)
{
    if (!e) return;
    if (e->model.dev) mx_encoder_close(&e->model);
    mx_tokenizer_close(e->tokenizer);
    void *all[] = {e->ids, e->positions, e->zeros, e->begin, e->logits, e->label, e->pooled[0], e->pooled[1], e->pooled[2]};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    free(e);
}

void mx_embedder_info_get(const mx_embedder *e, mx_embedder_info *out)
{
    const mx_encoder_config *c = &e->model.config;
    *out = (mx_embedder_info){.name = e->name, .path = e->path, .lane = e->lane, .version = e->opt.version < 1 ? 1 : e->opt.version, .quantization = e->model.quantization, .dtype = e->opt.dtype,
                              .parameters = c->parameters, .layers = c->layers, .d_model = c->d_model, .heads = c->heads, .vocab = c->vocab,
                              .max_len = e->opt.max_len, .classes = e->model.classifier.w.dev ? c->classes : 0,
                              .pooler = e->model.pooler.w.dev != NULL, .normalize = e->modules.normalize, .pooling = e->modules.pooling,
                              .weight_bytes = e->model.weight_bytes, .scratch_bytes = e->scratch_bytes, .load_seconds = e->load_seconds};
}

const char *mx_embedder_label(const mx_embedder *e, int32_t class_index)
{
    return class_index >= 0 && class_index < e->model.config.classes ? e->label[class_index] : "";
}

const mx_tokenizer *mx_embedder_tokenizer(const mx_embedder *e) { return e->tokenizer; }

/* ---- a request --------------------------------------------------------------------------- */

mx_embedding_request mx_embedding_defaults(const mx_embedder *e)
{
    return (mx_embedding_request){.embed = true, .pooling = e->modules.pooling, .normalize = e->modules.normalize};
}

static mx_status check_request(const mx_embedder *e, const mx_embedding_request *q, mx_error *err)
{
    if (!q->embed && !q->classify) return mx_fail(err, MX_ERR_ARG, "neither a vector nor a class is asked for");
    if (q->embed && (unsigned)q->pooling >= MX_POOL_COUNT) return mx_fail(err, MX_ERR_ARG, "pooling: %d is none", (int)q->pooling);
    if (q->embed && q->pooling == MX_POOL_POOLER && !e->model.pooler.w.dev) return mx_fail(err, MX_ERR_STATE, "pooling: model %s has no pooler", e->name);
    if (q->classify && !e->model.classifier.w.dev) return mx_fail(err, MX_ERR_STATE, "model %s has no classification head", e->name);
    return MX_OK;
}

static mx_status tokens_of(mx_embedding *m, const char *text, size_t len, mx_error *err)
{
    int32_t most = m->of->opt.max_len;
    MX_TRY(mx_tokenizer_encode(m->of->tokenizer, text, len, true, false, &m->ids, err));
    if (!m->ids.count) return mx_fail(err, MX_ERR_ARG, "the text has no token");
    if (m->ids.count <= most) return MX_OK;
    if (!m->q.truncate) return mx_fail(err, MX_ERR_ARG, "the text has %d tokens, the model takes %d; truncate cuts it", m->ids.count, most);
    m->ids.id[most - 1] = m->ids.id[m->ids.count - 1];            /* [SEP] stays the last one */
    m->ids.count = most;
    return MX_OK;
}

static void job_done(mx_job *job)
{
    mx_embedding *m = (mx_embedding *)job;
    m->done(m, &job->error);
}

mx_status mx_embedding_open(mx_embedding **out, mx_embedder *e, const char *text, size_t len, const mx_embedding_request *q,
                            mx_embedding_done *done, void *user, uint64_t deadline_ns, mx_error *err)
{
    mx_status st;
    *out = NULL;
    MX_TRY(check_request(e, q, err));
    mx_embedding *m = mx_slab_zeroed(sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "a text");
    *m = (mx_embedding){.of = e, .q = *q, .done = done, .user = user};
    MX_TRY_GOTO(st, tokens_of(m, text, len, err), fail);
    if (q->embed) m->values = mx_slab_zeroed((size_t)e->model.config.d_model * sizeof *m->values);
    if (q->classify) m->probabilities = mx_slab_zeroed((size_t)e->model.config.classes * sizeof *m->probabilities);
    if ((q->embed && !m->values) || (q->classify && !m->probabilities)) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "a text's numbers");
        goto fail;
    }
    m->job.rows = (uint32_t)m->ids.count;
    m->job.deadline_ns = deadline_ns;
    m->job.done = job_done;
    *out = m;
    return MX_OK;
fail:
    mx_embedding_close(m);
    return st;
}

void mx_embedding_close(mx_embedding *m)
{
    if (!m) return;
    mx_ids_free(&m->ids);
    mx_slab_free(m->values);
    mx_slab_free(m->probabilities);
    mx_slab_free(m);
}

mx_status mx_embedding_submit(mx_embedding *m, mx_error *err)
{
    return mx_scheduler_submit(m->of->sched, m->of->lane, &m->job, err);
}

void mx_embedding_cancel(mx_embedding *m)
{
    mx_scheduler *s = m->of->sched;
    atomic_store(&m->job.cancelled, true);
    mx_scheduler_wake(s);
}

void *mx_embedding_user(const mx_embedding *m) { return m->user; }
int32_t mx_embedding_tokens(const mx_embedding *m) { return m->ids.count; }
const float *mx_embedding_values(const mx_embedding *m) { return m->values; }
const float *mx_embedding_probabilities(const mx_embedding *m) { return m->probabilities; }

mx_job *mx_embedding_job(mx_embedding *m) { return &m->job; }
