/* learn.c - what a training step and an encoder's batch cost, with random weights.
 *
 *     learn train  [--device NAME] [--dtype bf16|f32] [--rows N] [--length T] [--layers L] [--width C] [--peak TFLOPS]
 *     learn encode [the same]
 *
 * train: GPT-2's shape (12 layers, 768 channels, 50,257 tokens) over packed sequences
 * of T tokens, N rows a micro-batch: forward, backward, the norm of the gradients,
 * AdamW; --cudnn on: attention goes through cuDNN.  encode: BERT-base's shape, pooled vectors of texts of T tokens.  Each figure
 * is the median of the calls' times.  MFU counts 6 FLOP a weight that multiplies and
 * 6 L C T for causal attention, of the peak (989 TFLOP/s unless given). */
#include "models/bert.h"
#include "models/encoder.h"
#include "models/lm.h"
#include "runtime/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>


typedef struct bench {
    mx_device  *dev;
    mx_dtype    dtype;
    int32_t     rows, length, layers, width;
    double      peak;          /* FLOP/s */
    char        folder[64];
} bench;

static mx_status write_config(const bench *b, bool encoder, mx_error *err)
{
    char path[128];
    snprintf(path, sizeof path, "%s/config.json", b->folder);
    FILE *f = fopen(path, "we");
    if (!f) return mx_fail(err, MX_ERR_IO, "%s: cannot be written", path);
    if (encoder)
        fprintf(f, "{\"architectures\": [\"BertModel\"], \"model_type\": \"bert\", \"vocab_size\": 30522, \"hidden_size\": %d, \"num_hidden_layers\": %d,"
                   " \"num_attention_heads\": %d, \"intermediate_size\": %d, \"hidden_act\": \"gelu\", \"max_position_embeddings\": 512,"
                   " \"type_vocab_size\": 2, \"layer_norm_eps\": 1e-12}\n", b->width, b->layers, b->width / 64, 4 * b->width);
    else
        fprintf(f, "{\"architectures\": [\"GPT2LMHeadModel\"], \"model_type\": \"gpt2\", \"vocab_size\": 50257, \"n_positions\": 1024, \"n_ctx\": 1024,"
                   " \"n_embd\": %d, \"n_layer\": %d, \"n_head\": %d, \"layer_norm_epsilon\": 1e-05, \"activation_function\": \"gelu_new\","
                   " \"eos_token_id\": 50256, \"bos_token_id\": 50256}\n", b->width, b->layers, b->width / 64);
    return fclose(f) ? mx_fail(err, MX_ERR_IO, "%s: cannot be written", path) : MX_OK;
}

/* Texts of `length` tokens, ids at random, each token's target the next. */
static mx_status fill(mx_batch *t, const bench *b, int32_t vocab, mx_error *err)
{
    size_t n = (size_t)b->rows + 1;
    uint32_t state = 1;
    t->ids = malloc(n * sizeof *t->ids);
    t->targets = malloc(n * sizeof *t->targets);
    t->positions = malloc(n * sizeof *t->positions);
    t->begin = malloc(n * sizeof *t->begin);
    t->label = calloc(n, sizeof *t->label);
    if (!t->ids || !t->targets || !t->positions || !t->begin || !t->label) return mx_fail(err, MX_ERR_NO_MEMORY, "%d rows", b->rows);
    t->rows = t->counted = t->rows_room = b->rows;
    t->spans = t->spans_room = b->rows / b->length;
    t->longest = b->length;
    for (int32_t i = 0; i < b->rows; i++) {
        state = state * 1664525u + 1013904223u;
        t->ids[i] = t->targets[i] = (int32_t)(state >> 8) % vocab;
        t->positions[i] = i % b->length;
    }
    for (int32_t i = 0; i <= t->spans; i++) t->begin[i] = i * b->length;
    return MX_OK;
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

enum { CALLS = 12, WARM = 2 };

/* Seconds of the median call of run(ctx). */
static mx_status median(mx_status (*run)(void *ctx, mx_error *err), void *ctx, double *seconds, mx_error *err)
{
    double times[CALLS];
    for (int i = -WARM; i < CALLS; i++) {
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        MX_TRY(run(ctx, err));
        if (i >= 0) times[i] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9;
    }
    qsort(times, CALLS, sizeof *times, by_time);
    *seconds = times[CALLS / 2];
    return MX_OK;
}

/* ---- training ------------------------------------------------------------------------- */

typedef struct training {
    mx_learner learner;
    mx_stream  s;
    mx_buffer  m, v;
    mx_batch   batch;
    int64_t    step;
} training;

static mx_status train_step(void *ctx, mx_error *err)
{
    training *t = ctx;
    mx_params *p = t->learner.params;
    mx_pass pass = {.batch = &t->batch, .learn = true, .seed = 1};
    double squares;
    mx_stream_rewind(&t->s);
    t->s.dev->ops->clear(&t->s, p->grad.base, p->grad.size);
    MX_TRY(t->learner.run(t->learner.network, &t->s, &pass, err));
    MX_TRY(mx_params_square_norm(p, &t->s, 0, p->count, &squares, err));
    mx_adamw_options o = {1e-4f, 0.9f, 0.95f, 1e-8f, 0.1f, ++t->step, 1.0f / (float)t->batch.counted};
    MX_TRY(mx_params_adamw(p, &t->s, &t->m, &t->v, 0, p->count, &o, err));
    return mx_stream_sync(&t->s, err);
}

static mx_status train(const bench *b, mx_error *err)
{
    mx_lm *lm = NULL;
    training t = {0};
    double seconds = 0;
    mx_lm_options o = {.compute = b->dtype, .scratch_init = true, .seed = 1};
    mx_status st;
    MX_TRY_GOTO(st, write_config(b, false, err), done);
    MX_TRY_GOTO(st, mx_lm_open(&lm, b->dev, b->folder, &o, err), done);
    t.learner = mx_lm_learner(lm);
    MX_TRY_GOTO(st, fill(&t.batch, b, 50257, err), done);
    size_t scratch = t.learner.scratch(t.learner.network, b->rows, t.batch.spans, b->length, true), bytes = t.learner.params->count * sizeof(float);
    MX_TRY_GOTO(st, mx_stream_open(&t.s, b->dev, scratch, err), done);
    MX_TRY_GOTO(st, mx_buffer_open(&t.m, b->dev, bytes, err), done);
    MX_TRY_GOTO(st, mx_buffer_open(&t.v, b->dev, bytes, err), done);
    MX_TRY_GOTO(st, median(train_step, &t, &seconds, err), done);
    double weights = (double)t.learner.params->elements - 1024.0 * b->width;
    double flop = b->rows * (6 * weights + 6.0 * b->layers * b->width * b->length);
    printf("train  rows %6d  length %5d  compute %-4s  %10.1f us a step  %12.0f tokens/s  %6.2f TFLOP/s  %5.1f %% of peak\n", b->rows, b->length,
           mx_dtype_name(b->dtype), seconds * 1e6, b->rows / seconds, flop / seconds * 1e-12, flop / seconds / b->peak * 100);
done:
    mx_buffer_close(&t.v);
    mx_buffer_close(&t.m);
    mx_stream_close(&t.s);
    mx_batch_free(&t.batch);
    mx_lm_close(lm);
    return st;
}

/* ---- encoding ---------------------------------------------------------------------------- */

typedef struct encoding {
    mx_encoder m;
    mx_stream  s;
    mx_batch   texts;
    int32_t   *zeros;
    float     *vectors;
} encoding;

static mx_status encode_batch(void *ctx, mx_error *err)
{
    encoding *e = ctx;
    mx_encoder_batch b = {e->texts.rows, e->texts.spans, e->texts.ids, e->texts.positions, e->texts.begin, e->zeros};
    mx_encoder_out out;
    mx_encoder_forward(&e->m, &e->s, &b, 1u << MX_POOL_MEAN, false, &out);
    mx_tensor y = out.pooled[MX_POOL_MEAN];
    if (y.data) e->s.dev->ops->download(&e->s, e->vectors, y.data, (size_t)y.rows * (size_t)y.cols * sizeof(float));
    mx_status st = mx_stream_sync(&e->s, err);
    mx_stream_rewind(&e->s);
    return st;
}

/* A BERT with random weights, written as a file, for the encoder to load. */
static mx_status write_bert(const bench *b, mx_error *err)
{
    mx_bert *bert = NULL;
    mx_bert_options o = {.task = MX_BERT_CLASSIFY, .compute = MX_F32, .scratch_init = true, .seed = 1, .classes = 2, .frozen = true};
    MX_TRY(write_config(b, true, err));
    MX_TRY(mx_bert_open(&bert, b->dev, b->folder, &o, err));
    mx_learner l = mx_bert_learner(bert);
    mx_status st = l.save(l.network, b->folder, err);
    mx_bert_close(bert);
    return st;
}

static mx_status encode(const bench *b, mx_error *err)
{
    encoding e = {0};
    mx_checkpoint *file = NULL;
    mx_encoder_config config;
    double seconds = 0;
    mx_status st;
    MX_TRY_GOTO(st, write_bert(b, err), done);
    MX_TRY_GOTO(st, mx_checkpoint_open(&file, b->folder, err), done);
    st = mx_encoder_config_folder(&config, b->folder, err);
    if (st) {
        mx_checkpoint_close(file);
        goto done;
    }
    MX_TRY_GOTO(st, mx_encoder_open(&e.m, b->dev, file, &config, b->dtype, err), done);
    MX_TRY_GOTO(st, fill(&e.texts, b, 30522, err), done);
    e.zeros = calloc((size_t)b->rows, sizeof *e.zeros);
    e.vectors = malloc((size_t)e.texts.spans * (size_t)b->width * sizeof *e.vectors);
    if (!e.zeros || !e.vectors) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%d rows", b->rows);
        goto done;
    }
    MX_TRY_GOTO(st, mx_stream_open(&e.s, b->dev, mx_encoder_scratch(&e.m, b->rows, e.texts.spans), err), done);
    MX_TRY_GOTO(st, median(encode_batch, &e, &seconds, err), done);
    printf("encode  texts %5d  length %5d  weights %-4s  %10.1f us a batch  %12.0f texts/s\n", e.texts.spans, b->length, mx_dtype_name(b->dtype),
           seconds * 1e6, e.texts.spans / seconds);
done:
    mx_stream_close(&e.s);
    mx_encoder_close(&e.m);
    mx_batch_free(&e.texts);
    free(e.vectors);
    free(e.zeros);
    return st;
}

static void forget(const char *folder)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char path[128];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

int main(int argc, char **argv)
{
    bench b = {.dtype = MX_BF16, .rows = 8192, .length = 0, .layers = 12, .width = 768, .peak = 989e12, .folder = "/tmp/merx-learn-XXXXXX"};
    mx_device_options opt = {.bind = true, .spin_us = 50};
    mx_device *devs = NULL;
    mx_error err = {0};
    const char *device = "auto", *mode = argc > 1 ? argv[1] : "";
    int count = 0, at = 0;
    bool learning = !strcmp(mode, "train");
    if (!learning && strcmp(mode, "encode") != 0) return fputs("usage: learn train|encode [--device NAME] [--dtype bf16|f32] [--rows N] [--length T] [--layers L] [--width C]\n", stderr), 2;
    for (int i = 2; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--device")) device = value;
        else if (!strcmp(argv[i], "--rows")) b.rows = atoi(value);
        else if (!strcmp(argv[i], "--cudnn")) opt.cudnn = !strcmp(value, "on") ? MX_CUDNN_ON : MX_CUDNN_OFF;
        else if (!strcmp(argv[i], "--length")) b.length = atoi(value);
        else if (!strcmp(argv[i], "--layers")) b.layers = atoi(value);
        else if (!strcmp(argv[i], "--width")) b.width = atoi(value);
        else if (!strcmp(argv[i], "--peak")) b.peak = atof(value) * 1e12;
        else if (strcmp(argv[i], "--dtype") != 0 || !mx_dtype_parse(value, &b.dtype)) return fprintf(stderr, "learn: what is %s %s?\n", argv[i], value), 2;
    }
    if (!b.length) b.length = learning ? 1024 : 128;
    if (b.rows < b.length || b.rows % b.length || b.layers < 1 || b.width % 64 || b.width < 64)
        return fputs("learn: rows must be a multiple of length, width of 64\n", stderr), 2;
    if (!mkdtemp(b.folder)) return perror("learn"), 1;
    mx_status st = mx_devices_open(&devs, &count, &opt, &err);
    if (!st) st = mx_device_find(devs, count, device, &at, &err);
    if (!st) {
        b.dev = &devs[at];
        printf("device  %s\n", b.dev->name);
        st = learning ? train(&b, &err) : encode(&b, &err);
    }
    if (st) fprintf(stderr, "learn: %s\n", err.text);
    mx_devices_close(devs, count);
    forget(b.folder);
    return st != MX_OK;
}
