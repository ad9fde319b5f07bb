/* cli_train.c - merx train lm and encoder, merx tokenize, merx merge, merx plot. */
#include "server/cli_parts.h"

#include "models/bert.h"
#include "models/lm.h"
#include "runtime/log.h"
#include "runtime/topology.h"
#include "server/plot.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* All that a run holds, closed in reverse. */
typedef struct run {
    mx_config     *config;
    sigset_t       held;
    mx_comm       *comm;
    mx_topology   *topology;
    mx_device     *devices;
    int            n_devices;
    mx_tokenizer  *tokenizer;
    mx_dataset    *data, *eval;
    bool           encoder, classify;     /* else a language model                  */
    mx_encoder_config encoder_config;
    int32_t        classes;
    mx_lm         *lm;
    mx_bert       *bert;
    mx_batches     batches, eval_batches;
    mx_trainer    *trainer;
    cli_progress   progress;
    bool           first, quiet, interrupted;
} run;

static void close_run(run *r)
{
    cli_progress_clear(&r->progress);
    mx_trainer_close(r->trainer);
    mx_batches_close(&r->eval_batches);
    mx_batches_close(&r->batches);
    mx_bert_close(r->bert);
    mx_lm_close(r->lm);
    mx_encoder_config_close(&r->encoder_config);
    mx_dataset_close(r->eval);
    mx_dataset_close(r->data);
    mx_tokenizer_close(r->tokenizer);
    if (r->devices) mx_devices_close(r->devices, r->n_devices);
    if (r->topology) mx_topology_close(r->topology);
    mx_comm_close(r->comm);
}

/* ---- reading data --------------------------------------------------------------------- */

static bool reading(void *ctx, uint64_t done, uint64_t total)
{
    run *r = ctx;
    if (!r->interrupted) r->interrupted = cli_signal_pending(&r->held);
    if (r->first) cli_progress_figures(&r->progress, total ? (double)done / (double)total : 1, "reading, %.1f of %.1f MB", (double)done * 1e-6, (double)total * 1e-6);
    return !r->interrupted;
}

static mx_status open_data(run *r, const char *setting, mx_dataset **out, mx_error *err)
{
    const char *const *files;
    int n = mx_config_list(r->config, setting, &files);
    mx_text_to_ids ids = r->encoder ? mx_text_for_encoder(r->tokenizer) : mx_text_for_lm(r->tokenizer);
    mx_dataset_options o = {.text_field = mx_config_string(r->config, "text-field"), .lines = mx_config_bool(r->config, "lines"),
                            .skip_bad = mx_config_bool(r->config, "skip-bad-lines"), .learn_prompts = mx_config_bool(r->config, "learn-prompts"),
                            .classes = r->classify ? r->classes : 0, .progress = reading, .ctx = r};
    if (!n) return mx_fail(err, MX_ERR_ARG, "no data: give files with --%s FILE (.jsonl, .txt, or shards of merx tokenize)", setting);
    MX_TRY(mx_dataset_open(out, files, n, &ids, &o, err));
    cli_progress_clear(&r->progress);
    if (r->first && mx_dataset_skipped(*out))
        fprintf(stderr, "merx: %lld lines of --%s were left out because they do not parse\n", (long long)mx_dataset_skipped(*out), setting);
    return MX_OK;
}

static mx_status open_tokenizer(run *r, mx_error *err)
{
    const char *const *models;
    int n = mx_config_list(r->config, "model", &models);
    if (n != 1) return mx_fail(err, MX_ERR_ARG, "model: give one Hugging Face folder with --model FOLDER");
    return mx_tokenizer_open_folder(&r->tokenizer, models[0], err);
}

/* ---- options ------------------------------------------------------------------------------ */

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

static mx_status seed_of(const mx_config *c, uint64_t *out, mx_error *err)
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
static mx_status open_task(run *r, mx_error *err)
{
    const mx_config *c = r->config;
    const char *const *items;
    if (!r->encoder) return MX_OK;
    mx_config_list(c, "model", &items);
    MX_TRY(mx_encoder_config_folder(&r->encoder_config, items[0], err));
    if (mx_tokenizer_vocab(r->tokenizer) > r->encoder_config.vocab)
        return mx_fail(err, MX_ERR_ARG, "model: its tokenizer has %d ids, its config says vocab_size %d", mx_tokenizer_vocab(r->tokenizer),
                       r->encoder_config.vocab);
    r->classify = !strcmp(mx_config_string(c, "task"), "classify");
    int n = mx_config_list(c, "label-names", &items);
    r->classes = (int32_t)mx_config_int(c, "classes");
    if (n && r->classes && n != r->classes) return mx_fail(err, MX_ERR_ARG, "label-names: %d names for %d classes", n, r->classes);
    if (n) r->classes = n;
    for (int i = 0; i < n; i++)
        if (strlen(items[i]) >= MX_ENCODER_LABEL) return mx_fail(err, MX_ERR_ARG, "label-names: \"%s\" is longer than %d bytes", items[i], MX_ENCODER_LABEL - 1);
    if (!r->classes) r->classes = r->encoder_config.classes;
    if (strcmp(mx_config_string(c, "packing"), "documents"))
        return mx_fail(err, MX_ERR_ARG, "packing is %s; an encoder learns whole documents", mx_config_string(c, "packing"));
    return MX_OK;
}

static mx_status open_encoder(run *r, mx_error *err)
{
    const mx_config *c = r->config;
    const char *const *models, *const *labels;
    mx_bert_options o = {.task = r->classify ? MX_BERT_CLASSIFY : MX_BERT_MASKED_WORDS, .scratch_init = mx_config_bool(c, "from-scratch"),
                         .recompute = mx_config_bool(c, "recompute"), .dropout = (float)mx_config_float(c, "dropout"),
                         .mask_rate = (float)mx_config_float(c, "mask-rate"), .tokenizer = r->tokenizer, .classes = r->classes};
    int device;
    mx_config_list(c, "model", &models);
    if (mx_config_list(c, "label-names", &labels)) o.labels = labels;
    if (mx_config_int(c, "lora-rank")) return mx_fail(err, MX_ERR_ARG, "lora-rank: adapters to encoders are not known here");
    if (!mx_dtype_parse(mx_config_string(c, "compute"), &o.compute)) return mx_fail(err, MX_ERR_ARG, "compute");
    MX_TRY(seed_of(c, &o.seed, err));
    MX_TRY(mx_device_find(r->devices, r->n_devices, mx_config_string(c, "device"), &device, err));
    MX_TRY(mx_bert_open(&r->bert, &r->devices[device], models[0], &o, err));
    if (r->first && !r->quiet && mx_bert_fresh(r->bert))
        fprintf(stderr, "merx: the head begins fresh: the model's file lacks %d tensors of it\n", mx_bert_fresh(r->bert));
    return MX_OK;
}

static mx_status open_model(run *r, mx_error *err)
{
    if (r->encoder) return open_encoder(r, err);
    const mx_config *c = r->config;
    const char *const *models;
    mx_decoder_config model;
    mx_lm_options o = {.scratch_init = mx_config_bool(c, "from-scratch"), .recompute = mx_config_bool(c, "recompute"),
                       .dropout = (float)mx_config_float(c, "dropout")};
    mx_config_list(c, "model", &models);
    if (!mx_dtype_parse(mx_config_string(c, "compute"), &o.compute)) return mx_fail(err, MX_ERR_ARG, "compute");
    o.lora = (mx_lora_options){.rank = (int32_t)mx_config_int(c, "lora-rank"), .alpha = (float)mx_config_float(c, "lora-alpha"),
                               .dropout = (float)mx_config_float(c, "lora-dropout")};
    MX_TRY(seed_of(c, &o.seed, err));
    MX_TRY(mx_decoder_config_folder(&model, models[0], err));
    MX_TRY(lora_targets(c, &model, &o.lora.targets, err));
    if (mx_tokenizer_vocab(r->tokenizer) > model.vocab)
        return mx_fail(err, MX_ERR_ARG, "model: its tokenizer has %d ids, its config says vocab_size %d", mx_tokenizer_vocab(r->tokenizer), model.vocab);
    int device;
    MX_TRY(mx_device_find(r->devices, r->n_devices, mx_config_string(c, "device"), &device, err));
    return mx_lm_open(&r->lm, &r->devices[device], models[0], &o, err);
}

static mx_status open_batches(run *r, mx_error *err)
{
    const mx_config *c = r->config;
    const char *how = mx_config_string(c, "packing");
    mx_packing packing = !strcmp(how, "documents") ? MX_PACK_DOCUMENTS : !strcmp(how, "blocks") ? MX_PACK_BLOCKS : MX_PACK_BLOCKS_MASKED;
    int32_t length = (int32_t)mx_config_int(c, "length"), most = r->encoder ? r->encoder_config.max_positions : mx_lm_config(r->lm)->max_positions;
    uint64_t seed;
    MX_TRY(seed_of(c, &seed, err));
    if (!length) length = most;
    if (length > most) return mx_fail(err, MX_ERR_ARG, "length is %d; the model was made for %d", length, most);
    if (r->data) MX_TRY(mx_batches_open(&r->batches, r->data, packing, length, seed, true, !r->encoder, err));
    return r->eval ? mx_batches_open(&r->eval_batches, r->eval, packing, length, seed, false, !r->encoder, err) : MX_OK;
}

static mx_train_options train_options(const mx_config *c)
{
    mx_train_options o = mx_train_defaults();
    const char *schedule = mx_config_string(c, "schedule");
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
    o.save_every = mx_config_int(c, "save-every");
    o.keep = (int32_t)mx_config_int(c, "keep");
    o.restart = mx_config_bool(c, "restart");
    return o;
}

static mx_learner learner_of(run *r)
{
    return r->encoder ? mx_bert_learner(r->bert) : mx_lm_learner(r->lm);
}

/* All but the trainer; learning: its data too. */
static mx_status open_parts(run *r, bool learning, mx_error *err)
{
    mx_config *c = r->config;
    mx_device_options devices = {.cpu_threads = (int)mx_config_int(c, "threads"), .bind = mx_config_bool(c, "bind"), .spin_us = 50};
    MX_TRY(mx_comm_open(&r->comm, err));
    r->first = mx_comm_rank(r->comm) == 0;
    cli_progress_open(&r->progress, r->quiet || !r->first, 0);
    MX_TRY(mx_topology_open(&r->topology, NULL, err));
    MX_TRY(mx_devices_open(&r->devices, &r->n_devices, &devices, err));
    MX_TRY(open_tokenizer(r, err));
    MX_TRY(open_task(r, err));
    if (learning) MX_TRY(open_data(r, "data", &r->data, err));
    if (!learning || mx_config_given(c, "eval-data")) MX_TRY(open_data(r, "eval-data", &r->eval, err));
    MX_TRY(open_model(r, err));
    return open_batches(r, err);
}

static mx_status open_run(run *r, mx_error *err)
{
    const char *folder = mx_config_string(r->config, "run");
    if (!folder) return mx_fail(err, MX_ERR_ARG, "run: say with --run FOLDER where checkpoints and metrics go");
    MX_TRY(open_parts(r, true, err));
    mx_learner learner = learner_of(r);
    mx_train_options o = train_options(r->config);
    MX_TRY(seed_of(r->config, &o.seed, err));
    return mx_trainer_open(&r->trainer, folder, &learner, &r->batches, r->eval ? &r->eval_batches : NULL, &o, r->comm, err);
}

/* ---- what a person sees ---------------------------------------------------------------------- */

static double mib(size_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void show_plan(const run *r)
{
    mx_train_plan p;
    mx_trainer_plan(r->trainer, &p);
    if (r->quiet || !r->first) return;
    fprintf(stderr, "merx: %.1f M parameters learn; %lld tokens in %lld sequences; %lld steps", (double)p.parameters * 1e-6,
            (long long)p.tokens, (long long)p.sequences, (long long)p.steps);
    if (mx_comm_size(r->comm) > 1) fprintf(stderr, " by %d processes", mx_comm_size(r->comm));
    fprintf(stderr, "\nmerx: memory: weights %.0f MiB, gradients and moments %.0f MiB, a micro-batch of %d tokens %.0f MiB; up to %d tokens fit %.1f GiB\n",
            mib(p.weights), mib(p.optimizer), p.micro_rows, mib(p.scratch), p.most_rows, (double)p.memory / (1 << 30));
    if (p.resumed_from >= 0) fprintf(stderr, "merx: goes on from step %lld (%s)\n", (long long)p.resumed_from, p.folder);
}

static void show_step(run *r, const mx_train_report *t, double eval)
{
    char left[24], val[32] = "";
    if (!r->first) return;
    cli_clock(t->seconds_left, left, sizeof left);
    if (eval > 0) snprintf(val, sizeof val, ", val %.4f", eval);
    cli_progress_figures(&r->progress, (double)t->step / (double)t->steps, "%lld/%lld loss %.4f%s, lr %.2e, |g| %.2f, %.0f tok/s, %.0f MiB, %s left",
                         (long long)t->step, (long long)t->steps, t->loss, val, t->lr, t->grad_norm, t->tokens_per_s, mib(t->memory), left);
}

static void show_evaluation(run *r, const mx_train_report *t)
{
    if (r->quiet || !r->first) return;
    cli_progress_clear(&r->progress);
    fprintf(stderr, "merx: step %lld, epoch %.2f: loss %.4f, validation loss %.4f, %s %.*f%s\n", (long long)t->step, t->epoch, t->loss,
            t->eval_loss, r->classify ? "accuracy" : "perplexity", r->classify ? 4 : 2, t->eval_extra, t->eval_loss <= t->best_loss ? ", the best so far" : "");
}

static mx_status learn(run *r, mx_error *err)
{
    bool done = false;
    double eval = 0;
    mx_train_report t = {0};
    while (!done) {
        double stop = cli_signal_pending(&r->held);
        MX_TRY(mx_comm_sum_doubles(r->comm, &stop, 1, err));         /* everybody stops at the same step */
        if (stop > 0) {
            r->interrupted = true;
            return mx_trainer_save(r->trainer, err);
        }
        MX_TRY(mx_trainer_step(r->trainer, &t, &done, err));
        if (t.evaluated) {
            eval = t.eval_loss;
            show_evaluation(r, &t);
        }
        show_step(r, &t, eval);
    }
    cli_progress_clear(&r->progress);
    if (!r->quiet && r->first) fprintf(stderr, "merx: %lld steps are done; the last loss was %.4f\n", (long long)t.step, t.loss);
    return MX_OK;
}

/* ---- --eval-only: measure, learn nothing ------------------------------------------------------- */

static bool measuring(void *ctx, int64_t done, int64_t all)
{
    run *r = ctx;
    cli_progress_figures(&r->progress, (double)done / (double)all, "measuring, %lld of %lld sequences", (long long)done, (long long)all);
    r->interrupted = cli_signal_pending(&r->held);
    return !r->interrupted;
}

static mx_status measure(run *r, mx_error *err)
{
    double loss = 0, extra = 0;
    MX_TRY(open_parts(r, false, err));
    if (mx_comm_size(r->comm) > 1) return mx_fail(err, MX_ERR_ARG, "eval-only: one process measures");
    mx_learner l = learner_of(r);
    MX_TRY(mx_evaluate(&l, &r->eval_batches, (int32_t)mx_config_int(r->config, "micro-rows"), measuring, r, &loss, &extra, err));
    cli_progress_clear(&r->progress);
    printf("{\"sequences\": %lld, \"loss\": %.6f, \"%s\": %.6f}\n", (long long)r->eval_batches.count, loss, l.metric ? l.metric : "perplexity", extra);
    return MX_OK;
}

int mx_cli_train(mx_config *c, int n, char **rest)
{
    run r = {.config = c, .quiet = mx_config_bool(c, "quiet")};
    mx_error err = {0};
    bool only = mx_config_bool(c, "eval-only");
    if (n != 1 || (strcmp(rest[0], "lm") && strcmp(rest[0], "encoder")))
        return cli_usage("train what? merx train lm (or encoder) --model FOLDER --data FILE --run FOLDER");
    r.encoder = !strcmp(rest[0], "encoder");
    cli_hold_signals(&r.held);
    mx_status st = only ? measure(&r, &err) : open_run(&r, &err);
    if (!st && !only) {
        show_plan(&r);
        st = learn(&r, &err);
    }
    cli_progress_clear(&r.progress);
    int status = st == MX_ERR_CANCELLED || r.interrupted ? CLI_INTERRUPTED : CLI_OK;
    if (st && st != MX_ERR_CANCELLED) status = cli_failed(&err);
    else if (r.interrupted && r.first && !only) fputs("merx: stopped; the same command goes on from there\n", stderr);
    else if (!r.quiet && r.first && !only) fprintf(stderr, "merx: checkpoints and metrics.jsonl are in %s\n", mx_config_string(c, "run"));
    close_run(&r);
    return status;
}

/* ---- merx tokenize ------------------------------------------------------------------------------ */

/* Documents from `first` on whose tokens fill a shard; at least one. */
static int64_t shard_documents(const mx_dataset *d, int64_t first, int64_t most)
{
    int64_t n = 0, tokens = 0, count = mx_dataset_count(d);
    while (first + n < count && (!n || tokens + mx_dataset_at(d, first + n).n <= most)) tokens += mx_dataset_at(d, first + n++).n;
    return n;
}

static mx_status write_shards(run *r, int *written, mx_error *err)
{
    const char *prefix = mx_config_string(r->config, "output");
    int64_t most = mx_config_int(r->config, "shard-tokens"), count = mx_dataset_count(r->data);
    for (int64_t first = 0, n; first < count; first += n) {
        char path[MX_PATH];
        n = shard_documents(r->data, first, most);
        if (snprintf(path, sizeof path, "%s-%05d.safetensors", prefix, *written) >= (int)sizeof path)
            return mx_fail(err, MX_ERR_ARG, "output: the path is longer than %d bytes", MX_PATH - 1);
        if (cli_signal_pending(&r->held)) return mx_fail(err, MX_ERR_CANCELLED, "stopped");
        MX_TRY(mx_dataset_write(r->data, first, n, path, err));
        ++*written;
        cli_progress_figures(&r->progress, (double)(first + n) / (double)count, "writing, %d shards", *written);
    }
    return MX_OK;
}

int mx_cli_tokenize(mx_config *c, int n, char **rest)
{
    run r = {.config = c, .quiet = mx_config_bool(c, "quiet"), .first = true};
    mx_error err = {0};
    int written = 0;
    if (n) return cli_usage("tokenize takes settings only, not \"%s\"", rest[0]);
    if (!mx_config_given(c, "output")) return cli_usage("tokenize: say with --output PREFIX where the shards go");
    cli_hold_signals(&r.held);
    cli_progress_open(&r.progress, r.quiet, 0);
    mx_status st = open_tokenizer(&r, &err);
    r.encoder = !st && mx_tokenizer_find(r.tokenizer, "[MASK]") >= 0;      /* BERT's: each document between [CLS] and [SEP] */
    if (!st) st = open_data(&r, "data", &r.data, &err);
    if (!st) st = write_shards(&r, &written, &err);
    cli_progress_clear(&r.progress);
    int status = st == MX_ERR_CANCELLED ? CLI_INTERRUPTED : st ? cli_failed(&err) : CLI_OK;
    if (!st && !r.quiet)
        fprintf(stderr, "merx: %lld tokens of %lld documents in %d shards\n", (long long)mx_dataset_tokens(r.data), (long long)mx_dataset_count(r.data), written);
    close_run(&r);
    return status;
}

/* ---- merx merge ---------------------------------------------------------------------------------- */

int mx_cli_merge(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_device *devices = NULL;
    int n_devices = 0;
    const char *const *models, *adapter = mx_config_string(c, "adapter"), *out = mx_config_string(c, "output");
    if (n) return cli_usage("merge takes settings only, not \"%s\"", rest[0]);
    if (mx_config_list(c, "model", &models) != 1 || !adapter || !mx_config_given(c, "output"))
        return cli_usage("merge: give --model FOLDER --adapter FOLDER --output FOLDER");
    mx_device_options o = {.cpu_threads = (int)mx_config_int(c, "threads")};
    mx_status st = mx_devices_open(&devices, &n_devices, &o, &err);
    if (!st) st = mx_lm_merge(devices, models[0], adapter, out, &err);
    if (devices) mx_devices_close(devices, n_devices);
    return st ? cli_failed(&err) : CLI_OK;
}

/* ---- merx plot ----------------------------------------------------------------------------------- */

int mx_cli_plot(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    const char *path = mx_config_string(c, "output");
    bool file = strcmp(path, "-") != 0;
    mx_plot_options o = {.title = mx_config_string(c, "title"), .width = (int)mx_config_int(c, "width"), .height = (int)mx_config_int(c, "height"),
                         .log_x = mx_config_bool(c, "log-x"), .log_y = mx_config_bool(c, "log-y")};
    if (!n) return cli_usage("plot what? merx plot runs/copy/metrics.jsonl -o loss.svg");
    FILE *out = file ? fopen(path, "w") : stdout;
    if (!out) return mx_fail(&err, MX_ERR_IO, "%s: %s", path, strerror(errno)), cli_failed(&err);
    mx_status st = mx_plot(out, (const char *const *)rest, n, &o, &err);
    bool bad = ferror(out) != 0;
    if (file) bad |= fclose(out) != 0;
    if (!st && bad) st = mx_fail(&err, MX_ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    return st ? cli_failed(&err) : CLI_OK;
}
