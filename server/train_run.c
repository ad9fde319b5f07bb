/* train_run.c - a training run from its settings: for the command line, and for the server's jobs. */
#include "server/train_graph.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void note(const mx_train_run *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void note(const mx_train_run *t, const char *fmt, ...)
{
    char text[512];
    va_list ap;
    if (!t->note) return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    t->note(t->ctx, text);
}

mx_status mx_train_run_tokenizer(mx_train_run *t, mx_error *err)
{
    const char *const *models;
    int n = mx_config_list(t->config, "model", &models);
    if (n != 1) return mx_fail(err, MX_ERR_ARG, "model: give one Hugging Face folder with --model FOLDER");
    return mx_tokenizer_open_folder(&t->tokenizer, models[0], err);
}

mx_status mx_train_run_data(mx_train_run *t, const char *setting, mx_dataset **out, mx_error *err)
{
    const char *const *files;
    int n = mx_config_list(t->config, setting, &files);
    mx_text_to_ids ids = t->encoder ? mx_text_for_encoder(t->tokenizer) : mx_text_for_lm(t->tokenizer);
    mx_dataset_options o = {.text_field = mx_config_string(t->config, "text-field"), .lines = mx_config_bool(t->config, "lines"),
                            .skip_bad = mx_config_bool(t->config, "skip-bad-lines"), .learn_prompts = mx_config_bool(t->config, "learn-prompts"),
                            .classes = t->classify ? t->classes : 0, .progress = t->reading, .ctx = t->ctx};
    if (!n) return mx_fail(err, MX_ERR_ARG, "no data: give files with --%s FILE (.jsonl, .txt, or shards of merx tokenize)", setting);
    MX_TRY(mx_dataset_open(out, files, n, &ids, &o, err));
    if (mx_dataset_skipped(*out)) note(t, "%lld lines of --%s were left out because they do not parse", (long long)mx_dataset_skipped(*out), setting);
    return MX_OK;
}

static mx_status lora_targets(const mx_config *c, const mx_decoder_config *model, unsigned *out, mx_error *err)
{
    const char *const *items;
    int n = mx_config_list(c, "lora-targets", &items);
    *out = 0;
    for (int i = 0; i < n; i++) {
        bool known = false;
        for (int t = 0; mx_lora_target(model, t); t++) {
            const char *name = mx_lora_target(model, t), *dot = strrchr(name, '.');
            if (strcmp(items[i], "all") && strcmp(items[i], name) && !(dot && !strcmp(items[i], dot + 1))) continue;
            *out |= 1u << t;
            known = true;
        }
        if (!known)
            return mx_fail(err, MX_ERR_ARG, "lora-targets: this model has no \"%s\"; it has %s, %s ... or all", items[i], mx_lora_target(model, 0),
                           mx_lora_target(model, 1));
    }
    return MX_OK;
}

mx_status mx_train_run_seed(const mx_config *c, uint64_t *out, mx_error *err)
{
    const char *text = mx_config_string(c, "seed");
    char *end;
    *out = 1;
    if (!text) return MX_OK;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return errno || *end || !*text || *text == '-' ? mx_fail(err, MX_ERR_ARG, "seed: \"%s\" is not a number from 0 to 2^64-1", text) : MX_OK;
}

/* What an encoder is to learn, before its data is read. */
static mx_status open_task(mx_train_run *t, mx_error *err)
{
    const mx_config *c = t->config;
    const char *const *items;
    if (!t->encoder) return MX_OK;
    mx_config_list(c, "model", &items);
    MX_TRY(mx_encoder_config_folder(&t->encoder_config, items[0], err));
    if (mx_tokenizer_vocab(t->tokenizer) > t->encoder_config.vocab)
        return mx_fail(err, MX_ERR_ARG, "model: its tokenizer has %d ids, its config says vocab_size %d", mx_tokenizer_vocab(t->tokenizer),
                       t->encoder_config.vocab);
    t->classify = !strcmp(mx_config_string(c, "task"), "classify");
    int n = mx_config_list(c, "label-names", &items);
    t->classes = (int32_t)mx_config_int(c, "classes");
    if (n && t->classes && n != t->classes) return mx_fail(err, MX_ERR_ARG, "label-names: %d names for %d classes", n, t->classes);
    if (n) t->classes = n;
    for (int i = 0; i < n; i++)
        if (strlen(items[i]) >= MX_ENCODER_LABEL) return mx_fail(err, MX_ERR_ARG, "label-names: \"%s\" is longer than %d bytes", items[i], MX_ENCODER_LABEL - 1);
    if (!t->classes) t->classes = t->encoder_config.classes;
    if (strcmp(mx_config_string(c, "packing"), "documents"))
        return mx_fail(err, MX_ERR_ARG, "packing is %s; an encoder learns whole documents", mx_config_string(c, "packing"));
    return MX_OK;
}

static mx_status open_encoder(mx_train_run *t, mx_error *err)
{
    const mx_config *c = t->config;
    const char *const *models, *const *labels;
    mx_bert_options o = {.task = t->classify ? MX_BERT_CLASSIFY : MX_BERT_MASKED_WORDS, .scratch_init = mx_config_bool(c, "from-scratch"),
                         .recompute = mx_config_bool(c, "recompute"), .dropout = (float)mx_config_float(c, "dropout"),
                         .mask_rate = (float)mx_config_float(c, "mask-rate"), .tokenizer = t->tokenizer, .classes = t->classes};
    mx_config_list(c, "model", &models);
    if (mx_config_list(c, "label-names", &labels)) o.labels = labels;
    if (mx_config_int(c, "lora-rank")) return mx_fail(err, MX_ERR_ARG, "lora-rank: adapters to encoders are not known here");
    if (!mx_dtype_parse(mx_config_string(c, "compute"), &o.compute)) return mx_fail(err, MX_ERR_ARG, "compute");
    MX_TRY(mx_train_run_seed(c, &o.seed, err));
    MX_TRY(mx_bert_open(&t->bert, t->dev, models[0], &o, err));
    if (mx_bert_fresh(t->bert)) note(t, "the head begins fresh: the model's file lacks %d tensors of it", mx_bert_fresh(t->bert));
    return MX_OK;
}

static mx_status open_model(mx_train_run *t, mx_error *err)
{
    if (t->encoder) return open_encoder(t, err);
    const mx_config *c = t->config;
    const char *const *models;
    mx_decoder_config model;
    mx_lm_options o = {.scratch_init = mx_config_bool(c, "from-scratch"), .recompute = mx_config_bool(c, "recompute"),
                       .dropout = (float)mx_config_float(c, "dropout")};
    mx_config_list(c, "model", &models);
    if (!mx_dtype_parse(mx_config_string(c, "compute"), &o.compute)) return mx_fail(err, MX_ERR_ARG, "compute");
    o.lora = (mx_lora_options){.rank = (int32_t)mx_config_int(c, "lora-rank"), .alpha = (float)mx_config_float(c, "lora-alpha"),
                               .dropout = (float)mx_config_float(c, "lora-dropout")};
    MX_TRY(mx_train_run_seed(c, &o.seed, err));
    MX_TRY(mx_decoder_config_folder(&model, models[0], err));
    MX_TRY(lora_targets(c, &model, &o.lora.targets, err));
    if (mx_tokenizer_vocab(t->tokenizer) > model.vocab)
        return mx_fail(err, MX_ERR_ARG, "model: its tokenizer has %d ids, its config says vocab_size %d", mx_tokenizer_vocab(t->tokenizer), model.vocab);
    return mx_lm_open(&t->lm, t->dev, models[0], &o, err);
}

static mx_status open_batches(mx_train_run *t, mx_error *err)
{
    const mx_config *c = t->config;
    const char *how = mx_config_string(c, "packing");
    mx_packing packing = !strcmp(how, "documents") ? MX_PACK_DOCUMENTS : !strcmp(how, "blocks") ? MX_PACK_BLOCKS : MX_PACK_BLOCKS_MASKED;
    int32_t length = (int32_t)mx_config_int(c, "length"), most = t->encoder ? t->encoder_config.max_positions : mx_lm_config(t->lm)->max_positions;
    uint64_t seed;
    MX_TRY(mx_train_run_seed(c, &seed, err));
    if (!length) length = most;
    if (length > most) return mx_fail(err, MX_ERR_ARG, "length is %d; the model was made for %d", length, most);
    if (t->data) MX_TRY(mx_batches_open(&t->batches, t->data, packing, length, seed, true, !t->encoder, err));
    return t->eval ? mx_batches_open(&t->eval_batches, t->eval, packing, length, seed, false, !t->encoder, err) : MX_OK;
}

static mx_train_options train_options(const mx_config *c)
{
    mx_train_options o = mx_train_defaults();
    const char *schedule = mx_config_string(c, "schedule"), *stop = mx_config_string(c, "stop-on");
    o.steps = mx_config_int(c, "steps");
    o.epochs = mx_config_float(c, "epochs");
    o.batch = (int32_t)mx_config_int(c, "batch");
    o.micro_rows = (int32_t)mx_config_int(c, "micro-rows");
    o.lr = (float)mx_config_float(c, "lr");
    o.min_lr = mx_config_given(c, "min-lr") ? (float)mx_config_float(c, "min-lr") : o.lr / 10;
    o.warmup = mx_config_int(c, "warmup");
    o.schedule = !strcmp(schedule, "cosine") ? MX_SCHEDULE_COSINE : !strcmp(schedule, "linear") ? MX_SCHEDULE_LINEAR : MX_SCHEDULE_CONSTANT;
    o.beta1 = (float)mx_config_float(c, "beta1");
    o.beta2 = (float)mx_config_float(c, "beta2");
    o.eps = (float)mx_config_float(c, "adam-eps");
    o.weight_decay = (float)mx_config_float(c, "weight-decay");
    o.clip = (float)mx_config_float(c, "clip");
    o.eval_every = mx_config_int(c, "eval-every");
    o.eval_sequences = mx_config_int(c, "eval-sequences");
    o.patience = (int32_t)mx_config_int(c, "patience");
    o.stop_on = !strcmp(stop, "both") ? MX_STOP_BOTH : !strcmp(stop, "metric") ? MX_STOP_METRIC : MX_STOP_LOSS;
    o.save_every = mx_config_int(c, "save-every");
    o.keep = (int32_t)mx_config_int(c, "keep");
    o.restart = mx_config_bool(c, "restart");
    return o;
}

mx_learner mx_train_run_learner(mx_train_run *t)
{
    if (t->graph) return t->graph_learner;
    return t->encoder ? mx_bert_learner(t->bert) : mx_lm_learner(t->lm);
}

mx_status mx_train_run_open(mx_train_run *t, bool learning, mx_error *err)
{
    mx_config *c = t->config;
    if (t->graph) return mx_train_graph_open(t, learning, err);
    MX_TRY(mx_train_run_tokenizer(t, err));
    MX_TRY(open_task(t, err));
    if (learning) MX_TRY(mx_train_run_data(t, "data", &t->data, err));
    if (!learning || mx_config_given(c, "eval-data")) MX_TRY(mx_train_run_data(t, "eval-data", &t->eval, err));
    MX_TRY(open_model(t, err));
    return open_batches(t, err);
}

mx_status mx_train_run_start(mx_train_run *t, const char *folder, mx_error *err)
{
    mx_learner learner = mx_train_run_learner(t);
    mx_train_options o = train_options(t->config);
    MX_TRY(mx_train_run_seed(t->config, &o.seed, err));
    if (t->graph) mx_train_graph_options(t, &o);
    return mx_trainer_open(&t->trainer, folder, &learner, &t->batches, t->eval_batches.count ? &t->eval_batches : NULL, &o, t->comm, err);
}

void mx_train_run_close(mx_train_run *t)
{
    mx_trainer_close(t->trainer);
    mx_train_graph_close(t);
    mx_batches_close(&t->eval_batches);
    mx_batches_close(&t->batches);
    mx_bert_close(t->bert);
    mx_lm_close(t->lm);
    mx_encoder_config_close(&t->encoder_config);
    mx_dataset_close(t->eval);
    mx_dataset_close(t->data);
    mx_tokenizer_close(t->tokenizer);
    *t = (mx_train_run){0};
}
