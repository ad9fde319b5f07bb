/* cli_dqn.c - merx train dqn, and merx evaluate. */
#include "server/cli_market.h"
#include "server/cli_parts.h"
#include "server/dqn_run.h"
#include "server/pricing.h"
#include "server/train_run.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

typedef struct run {
    mx_dqn      *d;
    mx_device   *devices;
    int          n_devices;
    sigset_t     held;
    cli_progress progress;
    bool         quiet, interrupted, worth;     /* worth: there is no world to evaluate in */
} run;

static mx_status open_device(run *r, const mx_config *c, mx_device **dev, mx_error *err)
{
    mx_device_options o = {.cpu_threads = (int)mx_config_int(c, "threads"), .bind = mx_config_bool(c, "bind"), .spin_us = 50};
    int at;
    MX_TRY(mx_devices_open(&r->devices, &r->n_devices, &o, err));
    MX_TRY(mx_device_find(r->devices, r->n_devices, mx_config_string(c, "device"), &at, err));
    *dev = &r->devices[at];
    return MX_OK;
}

/* ---- merx train dqn -------------------------------------------------------------------- */

static mx_status open_run(run *r, const mx_config *c, mx_error *err)
{
    const char *folder = mx_config_string(c, "run"), *from;
    mx_device *dev;
    if (!folder) return mx_fail(err, MX_ERR_ARG, "run: say with --run FOLDER where checkpoints and metrics go");
    MX_TRY(open_device(r, c, &dev, err));
    MX_TRY(mx_dqn_run_open(&r->d, c, dev, folder, err));
    int64_t step = mx_dqn_resumed_from(r->d, &from);
    if (!r->quiet) fprintf(stderr, "merx: %zu weights learn\n", mx_qnet_params(mx_dqn_network(r->d))->elements);
    if (!r->quiet && step >= 0) fprintf(stderr, "merx: goes on from step %lld (%s)\n", (long long)step, from);
    return MX_OK;
}

static void show(run *r, const mx_dqn_report *t)
{
    char left[24], earned[32] = "-";
    cli_clock(t->seconds_left, left, sizeof left);
    if (t->offline) {
        cli_progress_figures(&r->progress, (double)t->step / (double)t->steps, "%lld/%lld %s, loss %.4f, gap %.4f, lr %.2e, %.0f updates/s, %s left", (long long)t->step,
                             (long long)t->steps, t->cloning ? "clones" : "learns", t->loss, t->gap, t->lr, t->updates_per_s, left);
        if (!r->quiet && isfinite(t->mean_value)) {
            cli_progress_clear(&r->progress);
            fprintf(stderr, "merx: step %lld: loss %.4f, gap to what was logged %.4f, mean value %.4f\n", (long long)t->step, t->loss, t->gap, t->mean_value);
        }
    }
    if (isfinite(t->mean_return)) snprintf(earned, sizeof earned, "%.2f", t->mean_return);
    if (!t->offline)
        cli_progress_figures(&r->progress, (double)t->step / (double)t->steps, "%lld/%lld return %s, loss %.4f, lr %.2e, explores %.2f, %.0f steps/s, %.0f updates/s, %s left",
                             (long long)t->step, (long long)t->steps, earned, t->loss, t->lr, t->epsilon, t->steps_per_s, t->updates_per_s, left);
    if (!t->evaluated || r->quiet) return;
    cli_progress_clear(&r->progress);
    fprintf(stderr, "merx: step %lld: %s %.2f +- %.2f%s\n", (long long)t->step, r->worth ? "worth by fitted Q evaluation" : "greedy return", t->eval_return, t->eval_error,
            t->best_step == t->step ? ", the best so far" : "");
}

static mx_status learn(run *r, const char *folder, mx_error *err)
{
    bool done = false;
    mx_dqn_report t = {0};
    while (!done) {
        if (cli_signal_pending(&r->held)) {
            r->interrupted = true;
            return mx_dqn_save(r->d, err);
        }
        MX_TRY(mx_dqn_turn(r->d, &t, &done, err));
        show(r, &t);
    }
    cli_progress_clear(&r->progress);
    if (!r->quiet && t.best_step >= 0)
        fprintf(stderr, "merx: %lld steps are done; the best policy, with %.2f, is %s/checkpoint-%08lld\n", (long long)t.step, t.best_return, folder,
                (long long)t.best_step);
    return MX_OK;
}

static void close_run(run *r)
{
    cli_progress_clear(&r->progress);
    mx_dqn_close(r->d);
    if (r->devices) mx_devices_close(r->devices, r->n_devices);
}

/* Beside its name first: a file that is there is whole. */
static mx_status export_to(const char *from, const char *path, int64_t *n, mx_error *err)
{
    char partial[MX_PATH];
    if (snprintf(partial, sizeof partial, "%s.partial", path) >= (int)sizeof partial) return mx_fail(err, MX_ERR_ARG, "export: the path is longer than %d bytes", MX_PATH - 9);
    if (access(from, R_OK)) return mx_fail(err, MX_ERR_IO, "pricing: %s: %s", from, strerror(errno));
    FILE *f = fopen(partial, "we");
    if (!f) return mx_fail(err, MX_ERR_IO, "export: %s: %s", partial, strerror(errno));
    mx_status st = mx_pricing_transitions(from, f, n, err);
    if (fclose(f) && !st) st = mx_fail(err, MX_ERR_IO, "export: %s: %s", partial, strerror(errno));
    if (!st && !*n) st = mx_fail(err, MX_ERR_STATE, "pricing: %s has no published decision with sales", from);
    if (!st && rename(partial, path)) st = mx_fail(err, MX_ERR_IO, "export: %s: %s", path, strerror(errno));
    if (st) remove(partial);
    return st;
}

static int export_steps(const mx_config *c, bool quiet)
{
    mx_error err = {0};
    int64_t n = 0;
    const char *from = mx_config_string(c, "pricing"), *path = mx_config_string(c, "export");
    mx_status st = from ? export_to(from, path, &n, &err) : mx_fail(&err, MX_ERR_ARG, "pricing: say with --pricing FILE whose log --export writes");
    if (st) return cli_failed(&err);
    if (!quiet) fprintf(stderr, "merx: %lld steps are in %s\n", (long long)n, path);
    return CLI_OK;
}

int cli_train_dqn(mx_config *c)
{
    run r = {.quiet = mx_config_bool(c, "quiet")};
    mx_error err = {0};
    if (mx_config_given(c, "export")) return export_steps(c, r.quiet);
    r.worth = !mx_config_given(c, "env");
    cli_hold_signals(&r.held);
    cli_progress_open(&r.progress, r.quiet, 0);
    mx_status st = open_run(&r, c, &err);
    if (!st) st = learn(&r, mx_config_string(c, "run"), &err);
    cli_progress_clear(&r.progress);
    int status = r.interrupted ? CLI_INTERRUPTED : CLI_OK;
    if (st) status = cli_failed(&err);
    else if (r.interrupted) fputs("merx: stopped; the same command goes on from there\n", stderr);
    else if (!r.quiet) fprintf(stderr, "merx: checkpoints and metrics.jsonl are in %s\n", mx_config_string(c, "run"));
    close_run(&r);
    return status;
}

/* ---- merx evaluate ----------------------------------------------------------------------- */

enum { MARKET_EPISODES = 8, MOST_POLICIES = 64 };      /* MARKET_EPISODES: of every brand in every store, for the yardsticks */

static bool played(void *ctx, int64_t done, int64_t all)
{
    run *r = ctx;
    cli_progress_figures(&r->progress, (double)done / (double)all, "%lld/%lld %s", (long long)done, (long long)all, r->worth ? "weeks beside the yardsticks" : "episodes");
    if (!r->interrupted) r->interrupted = cli_signal_pending(&r->held);
    return !r->interrupted;
}

static mx_status evaluate_one(run *r, const mx_qnet *q, const char *path, const char *env, int64_t episodes, uint64_t seed, mx_error *err)
{
    mx_dqn_score s;
    MX_TRY(mx_dqn_evaluate(q, env, episodes, seed, NULL, &s, played, r, err));
    cli_progress_clear(&r->progress);
    return cli_json_print(stdout, json_pack("{s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:f}", "model", path, "env", env, "episodes", (json_int_t)s.episodes, "return", s.mean,
                                            "error", s.error, "deviation", s.deviation, "least", s.least, "most", s.most, "length", s.length), err);
}

static mx_status evaluate_all(run *r, const mx_config *c, const char *const *models, mx_qnet **q, int n, mx_error *err)
{
    const char *env = mx_config_string(c, "env");
    int64_t episodes = mx_config_given(c, "episodes") ? mx_config_int(c, "episodes") : 100;
    uint64_t seed;
    MX_TRY(mx_train_run_seed(c, &seed, err));
    if (!env) env = mx_qnet_config_of(q[0])->env;
    if (!*env) return mx_fail(err, MX_ERR_ARG, "env: the model does not say what world it is for; give --env NAME");
    for (int k = 0; k < n; k++) MX_TRY(evaluate_one(r, q[k], models[k], env, episodes, seed, err));
    if (strncmp(env, "market:", 7)) return MX_OK;
    mx_market_trial t = {(const mx_qnet *const *)q, n, env, MARKET_EPISODES, seed, played, r};
    r->worth = true;
    mx_status st = cli_market_table(&t, stdout, err);
    cli_progress_clear(&r->progress);
    return st;
}

static mx_status evaluate(run *r, const mx_config *c, mx_error *err)
{
    const char *const *models;
    mx_device *dev;
    mx_qnet *q[MOST_POLICIES] = {0};
    int n = mx_config_list(c, "model", &models);
    if (n < 1 || n > MOST_POLICIES) return mx_fail(err, MX_ERR_ARG, "model: give a folder of merx train dqn, or a Stable-Baselines3 .zip, with --model PATH; several are policies of several seeds, at most %d", MOST_POLICIES);
    MX_TRY(open_device(r, c, &dev, err));
    mx_status st = MX_OK;
    for (int k = 0; !st && k < n; k++) st = mx_qnet_open(&q[k], dev, models[k], false, err);
    if (!st) st = evaluate_all(r, c, models, q, n, err);
    for (int k = 0; k < n; k++) mx_qnet_close(q[k]);
    return st;
}

/* No server may write the file meanwhile. */
static int replay(const char *path)
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    mx_pricing_replayed r = {0};
    mx_status st = access(path, R_OK | W_OK) ? mx_fail(&err, MX_ERR_IO, "pricing: %s: %s", path, strerror(errno)) : mx_pricing_open(&p, path, 0, &err);
    if (!st) st = mx_pricing_replay(p, &r, &err);
    mx_pricing_close(p);
    if (!st) st = cli_json_print(stdout, json_pack("{s:s, s:I, s:I, s:I, s:b, s:s}", "pricing", path, "sales", (json_int_t)r.sales, "items", (json_int_t)r.items, "policies",
                                                   (json_int_t)r.policies, "same", !r.differs[0], "differs", r.differs), &err);
    return st ? cli_failed(&err) : r.differs[0] ? CLI_FAILED : CLI_OK;
}

int mx_cli_evaluate(mx_config *c, int n, char **rest)
{
    run r = {.quiet = mx_config_bool(c, "quiet")};
    mx_error err = {0};
    if (!n && mx_config_given(c, "pricing")) return replay(mx_config_string(c, "pricing"));
    if (n) return cli_usage("evaluate takes settings only, not \"%s\"", rest[0]);
    cli_hold_signals(&r.held);
    cli_progress_open(&r.progress, r.quiet, 0);
    mx_status st = evaluate(&r, c, &err);
    close_run(&r);
    if (r.interrupted) return CLI_INTERRUPTED;
    return st ? cli_failed(&err) : CLI_OK;
}
