/* cli_train.c - merx train lm, encoder and gnn, merx tokenize, merx merge, merx plot. */
#include "server/cli_parts.h"

#include "runtime/log.h"
#include "runtime/topology.h"
#include "server/plot.h"
#include "server/train_graph.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* All that a run holds, closed in reverse. */
typedef struct run {
    mx_train_run   t;
    sigset_t       held;
    mx_comm       *comm;
    mx_topology   *topology;
    mx_device     *devices;
    int            n_devices;
    cli_progress   progress;
    bool           first, quiet, interrupted;
} run;

static void close_run(run *r)
{
    cli_progress_clear(&r->progress);
    mx_train_run_close(&r->t);
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

static void told(void *ctx, const char *text)
{
    run *r = ctx;
    if (!r->first || r->quiet) return;
    cli_progress_clear(&r->progress);
    fprintf(stderr, "merx: %s\n", text);
}

static void prepare(run *r, mx_config *c)
{
    r->t = (mx_train_run){.config = c, .encoder = r->t.encoder, .graph = r->t.graph, .folder = mx_config_string(c, "run"), .reading = reading, .note = told, .ctx = r};
}

/* Processes of one machine that were not told which GPU take one each. */
static int share_devices(const run *r, int device)
{
    int gpus = r->n_devices - 1;
    bool named = strchr(mx_config_string(r->t.config, "device"), ':') != NULL;
    if (named || mx_comm_size(r->comm) == 1 || r->devices[device].kind == MX_CPU || gpus < 2) return device;
    return 1 + mx_comm_local_rank(r->comm) % gpus;
}

static mx_cudnn cudnn_of(const mx_config *c)
{
    const char *how = mx_config_string(c, "cudnn");
    return !strcmp(how, "on") ? MX_CUDNN_ON : !strcmp(how, "auto") ? MX_CUDNN_AUTO : MX_CUDNN_OFF;
}

/* All but the trainer; learning: its data too. */
static mx_status open_parts(run *r, bool learning, mx_error *err)
{
    mx_config *c = r->t.config;
    mx_device_options devices = {.cpu_threads = (int)mx_config_int(c, "threads"), .bind = mx_config_bool(c, "bind"), .spin_us = 50,
                                 .cudnn = cudnn_of(c)};
    int device;
    MX_TRY(mx_comm_open(&r->comm, err));
    r->t.comm = r->comm;
    r->first = mx_comm_rank(r->comm) == 0;
    cli_progress_open(&r->progress, r->quiet || !r->first, 0);
    MX_TRY(mx_topology_open(&r->topology, NULL, err));
    MX_TRY(mx_devices_open(&r->devices, &r->n_devices, &devices, err));
    MX_TRY(mx_device_find(r->devices, r->n_devices, mx_config_string(c, "device"), &device, err));
    r->t.dev = &r->devices[share_devices(r, device)];
    mx_status st = mx_train_run_open(&r->t, learning, err);
    cli_progress_clear(&r->progress);
    return st;
}

static mx_status open_run(run *r, mx_error *err)
{
    const char *folder = mx_config_string(r->t.config, "run");
    if (!folder) return mx_fail(err, MX_ERR_ARG, "run: say with --run FOLDER where checkpoints and metrics go");
    MX_TRY(open_parts(r, true, err));
    return mx_train_run_start(&r->t, folder, err);
}

/* ---- what a person sees ---------------------------------------------------------------------- */

static double mib(size_t bytes)
{
    return (double)bytes / (1 << 20);
}

static void show_plan(const run *r)
{
    mx_train_plan p;
    mx_trainer_plan(r->t.trainer, &p);
    if (r->quiet || !r->first) return;
    if (r->t.graph)
        fprintf(stderr, "merx: %.3f M parameters learn; %d nodes, %lld edges, %lld targets; %lld steps", (double)p.parameters * 1e-6,
                r->t.graph_file.graph.view.nodes, (long long)r->t.graph_file.graph.edges, (long long)p.sequences, (long long)p.steps);
    else
        fprintf(stderr, "merx: %.1f M parameters learn; %lld tokens in %lld sequences; %lld steps", (double)p.parameters * 1e-6,
                (long long)p.tokens, (long long)p.sequences, (long long)p.steps);
    if (mx_comm_size(r->comm) > 1) fprintf(stderr, " by %d processes", mx_comm_size(r->comm));
    if (r->t.graph) {
        fprintf(stderr, "\nmerx: memory: weights %.0f MiB, gradients and moments %.0f MiB, a pass %.0f MiB\n", mib(p.weights), mib(p.optimizer), mib(p.scratch));
    } else fprintf(stderr, "\nmerx: memory: weights %.0f MiB, gradients and moments %.0f MiB, a micro-batch of %d tokens %.0f MiB; up to %d tokens fit %.1f GiB\n",
            mib(p.weights), mib(p.optimizer), p.micro_rows, mib(p.scratch), p.most_rows, (double)p.memory / (1 << 30));
    if (p.resumed_from >= 0) fprintf(stderr, "merx: goes on from step %lld (%s)\n", (long long)p.resumed_from, p.folder);
}

static void show_step(run *r, const mx_train_report *t, double eval)
{
    char left[24], val[32] = "";
    if (!r->first) return;
    cli_clock(t->seconds_left, left, sizeof left);
    if (eval > 0) snprintf(val, sizeof val, ", val %.4f", eval);
    cli_progress_figures(&r->progress, (double)t->step / (double)t->steps, "%lld/%lld loss %.4f%s, lr %.2e, |g| %.2f, %.0f %s/s, %.0f MiB, %s left",
                         (long long)t->step, (long long)t->steps, t->loss, val, t->lr, t->grad_norm, t->tokens_per_s, r->t.graph ? "targets" : "tok", mib(t->memory), left);
}

static void show_evaluation(run *r, const mx_train_report *t)
{
    if (r->quiet || !r->first) return;
    cli_progress_clear(&r->progress);
    fprintf(stderr, "merx: step %lld, epoch %.2f: loss %.4f, validation loss %.4f, %s %.*f%s\n", (long long)t->step, t->epoch, t->loss,
            t->eval_loss, r->t.graph ? r->t.graph_learner.metric : r->t.classify ? "accuracy" : "perplexity", r->t.classify || r->t.graph ? 4 : 2, t->eval_extra, t->best_step == t->step ? ", the best so far" : "");
}

/* A run with patience has learned past its best: what it answers with is the best checkpoint. */
static mx_status take_best(run *r, const mx_train_report *t, mx_error *err)
{
    char folder[MX_PATH];
    if (!mx_config_int(r->t.config, "patience")) return MX_OK;
    MX_TRY(mx_trainer_restore_best(r->t.trainer, folder, err));
    if (!r->quiet && r->first) fprintf(stderr, "merx: the best was step %lld, validation loss %.4f: %s\n", (long long)t->best_step, t->best_loss, folder);
    return MX_OK;
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
            return mx_trainer_save(r->t.trainer, err);
        }
        MX_TRY(mx_trainer_step(r->t.trainer, &t, &done, err));
        if (t.evaluated) {
            eval = t.eval_loss;
            show_evaluation(r, &t);
        }
        show_step(r, &t, eval);
    }
    cli_progress_clear(&r->progress);
    if (!r->quiet && r->first) fprintf(stderr, "merx: %lld steps are done; the last loss was %.4f\n", (long long)t.step, t.loss);
    MX_TRY(take_best(r, &t, err));
    return r->t.graph && r->first ? mx_train_graph_report(&r->t, stdout, err) : MX_OK;
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
    if (r->t.graph) return mx_train_graph_report(&r->t, stdout, err);
    mx_learner l = mx_train_run_learner(&r->t);
    MX_TRY(mx_evaluate(&l, &r->t.eval_batches, (int32_t)mx_config_int(r->t.config, "micro-rows"), measuring, r, &loss, &extra, err));
    cli_progress_clear(&r->progress);
    printf("{\"sequences\": %lld, \"loss\": %.6f, \"%s\": %.6f}\n", (long long)r->t.eval_batches.count, loss, l.metric ? l.metric : "perplexity", extra);
    return MX_OK;
}

int mx_cli_train(mx_config *c, int n, char **rest)
{
    run r = {.quiet = mx_config_bool(c, "quiet")};
    mx_error err = {0};
    bool only = mx_config_bool(c, "eval-only");
    if (n == 1 && !strcmp(rest[0], "dqn")) return cli_train_dqn(c);
    if (n != 1 || (strcmp(rest[0], "lm") && strcmp(rest[0], "encoder") && strcmp(rest[0], "gnn")))
        return cli_usage("train what? merx train lm (or encoder, gnn) --model FOLDER --data FILE --run FOLDER, or merx train dqn --env NAME --run FOLDER");
    r.t.encoder = !strcmp(rest[0], "encoder");
    r.t.graph = !strcmp(rest[0], "gnn");
    prepare(&r, c);
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
    const char *prefix = mx_config_string(r->t.config, "output");
    int64_t most = mx_config_int(r->t.config, "shard-tokens"), count = mx_dataset_count(r->t.data);
    for (int64_t first = 0, n; first < count; first += n) {
        char path[MX_PATH];
        n = shard_documents(r->t.data, first, most);
        if (snprintf(path, sizeof path, "%s-%05d.safetensors", prefix, *written) >= (int)sizeof path)
            return mx_fail(err, MX_ERR_ARG, "output: the path is longer than %d bytes", MX_PATH - 1);
        if (cli_signal_pending(&r->held)) return mx_fail(err, MX_ERR_CANCELLED, "stopped");
        MX_TRY(mx_dataset_write(r->t.data, first, n, path, err));
        ++*written;
        cli_progress_figures(&r->progress, (double)(first + n) / (double)count, "writing, %d shards", *written);
    }
    return MX_OK;
}

int mx_cli_tokenize(mx_config *c, int n, char **rest)
{
    run r = {.quiet = mx_config_bool(c, "quiet"), .first = true};
    mx_error err = {0};
    int written = 0;
    if (n) return cli_usage("tokenize takes settings only, not \"%s\"", rest[0]);
    if (!mx_config_given(c, "output")) return cli_usage("tokenize: say with --output PREFIX where the shards go");
    cli_hold_signals(&r.held);
    cli_progress_open(&r.progress, r.quiet, 0);
    prepare(&r, c);
    mx_status st = mx_train_run_tokenizer(&r.t, &err);
    r.t.encoder = !st && mx_tokenizer_find(r.t.tokenizer, "[MASK]") >= 0;      /* BERT's: each document between [CLS] and [SEP] */
    if (!st) st = mx_train_run_data(&r.t, "data", &r.t.data, &err);
    if (!st) st = write_shards(&r, &written, &err);
    cli_progress_clear(&r.progress);
    int status = st == MX_ERR_CANCELLED ? CLI_INTERRUPTED : st ? cli_failed(&err) : CLI_OK;
    if (!st && !r.quiet)
        fprintf(stderr, "merx: %lld tokens of %lld documents in %d shards\n", (long long)mx_dataset_tokens(r.t.data), (long long)mx_dataset_count(r.t.data), written);
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
