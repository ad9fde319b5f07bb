/* cli_bench.c - merx bench serve: a load on a running server. */
#include "server/cli_parts.h"

#include "server/loadgen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

typedef struct watcher {
    cli_progress bar;
    sigset_t     held;
} watcher;

static void progress(void *user, double part, int64_t done, int64_t failed, double seconds)
{
    watcher *w = user;
    cli_progress_figures(&w->bar, part, "%lld requests, %lld failed, %.0f/s", (long long)done, (long long)failed,
                         seconds > 0 ? (double)done / seconds : 0);
}

static bool interrupted(void *user)
{
    return cli_signal_pending(&((watcher *)user)->held);
}

/* "generate", or "generate=1" "quote=100": names and how often beside the others. */
static mx_status read_shares(mx_load_options *o, const mx_config *c, mx_error *err)
{
    const char *const *list;
    int n = mx_config_list(c, "workload", &list);
    if (!n) o->share[MX_LOAD_GENERATE] = 1;
    for (int i = 0; i < n; i++) {
        char name[32], *end = NULL;
        const char *eq = strchr(list[i], '=');
        snprintf(name, sizeof name, "%.*s", eq ? (int)(eq - list[i]) : 31, list[i]);
        int kind = mx_load_kind_find(name);
        double share = eq ? strtod(eq + 1, &end) : 1;
        if (kind < 0 || !(share > 0) || (eq && (*end || end == eq + 1)))
            return mx_fail(err, MX_ERR_ARG, "workload %s: generate, embed, quote or echo, and perhaps =SHARE above 0", list[i]);
        o->share[kind] = share;
    }
    return MX_OK;
}

/* As vLLM writes them: ttft:200 tpot:50 e2el:2000, in milliseconds. */
static mx_status read_goodput(mx_load_options *o, const mx_config *c, mx_error *err)
{
    const char *const *list;
    int n = mx_config_list(c, "goodput", &list);
    for (int i = 0; i < n; i++) {
        char *end = NULL;
        const char *colon = strchr(list[i], ':');
        double value = colon ? strtod(colon + 1, &end) * 1e-3 : 0;
        size_t len = colon ? (size_t)(colon - list[i]) : 0;
        double *to = len == 4 && !strncmp(list[i], "ttft", 4) ? &o->slo_ttft : len == 4 && !strncmp(list[i], "tpot", 4) ? &o->slo_tpot
                     : len == 4 && !strncmp(list[i], "e2el", 4) ? &o->slo_e2e : NULL;
        if (!to || !(value > 0) || *end) return mx_fail(err, MX_ERR_ARG, "goodput %s: ttft:MS, tpot:MS or e2el:MS", list[i]);
        *to = value;
    }
    return MX_OK;
}

static mx_status read_options(mx_load_options *o, const mx_config *c, mx_error *err)
{
    const char *const *models;
    const char *seed = mx_config_string(c, "seed");
    o->server = mx_config_string(c, "server");
    o->model = mx_config_list(c, "model", &models) ? models[0] : NULL;
    o->sku = mx_config_string(c, "sku");
    o->channel = mx_config_string(c, "channel");
    o->trace = mx_config_string(c, "trace");
    o->client = cli_client_options(c);
    o->rate = mx_config_float(c, "request-rate");
    o->even = !strcmp(mx_config_string(c, "arrivals"), "even");
    o->seconds = mx_config_float(c, "duration");
    o->requests = mx_config_int(c, "num-prompts");
    if (!mx_config_given(c, "num-prompts") && (o->seconds > 0 || o->trace)) o->requests = 0;
    o->concurrency = (int32_t)mx_config_int(c, "max-concurrency");
    if (!o->concurrency && o->rate <= 0) o->concurrency = 8;
    o->connections = (int32_t)mx_config_int(c, "connections");
    o->warmups = (int32_t)mx_config_int(c, "num-warmups");
    o->input_words = (int32_t)mx_config_int(c, "input-words");
    o->output_tokens = (int32_t)mx_config_int(c, "output-len");
    o->timeout_ms = (uint32_t)mx_config_int(c, "timeout") * 1000;
    o->seed = seed ? strtoull(seed, NULL, 10) : 0;
    MX_TRY(read_shares(o, c, err));
    return read_goodput(o, c, err);
}

static mx_status write_to(const char *path, const mx_load_result *r, bool html, mx_error *err)
{
    if (!path) return MX_OK;
    FILE *f = fopen(path, "we");
    if (!f) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    mx_status st = MX_OK;
    if (html) mx_load_html(f, r);
    else st = mx_load_json(f, r, err);
    bool bad = ferror(f) != 0;
    if ((fclose(f) || bad) && !st) st = mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    return st;
}

int mx_cli_bench(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_load_options o = {0};
    mx_load_result *r = NULL;
    watcher w;
    if (n != 1 || strcmp(rest[0], "serve") != 0) return cli_usage("bench takes one word, serve");
    if (read_options(&o, c, &err)) return cli_failed(&err);
    cli_hold_signals(&w.held);
    cli_progress_open(&w.bar, mx_config_bool(c, "quiet"), 0);
    o.progress = progress;
    o.stop = interrupted;
    o.user = &w;
    mx_status st = mx_load_run(&r, &o, &err);
    cli_progress_clear(&w.bar);
    if (!st && mx_config_bool(c, "json")) st = mx_load_json(stdout, r, &err);
    else if (!st) mx_load_print(stdout, r);
    if (!st) st = write_to(mx_config_string(c, "result"), r, false, &err);
    if (!st) st = write_to(mx_config_string(c, "report"), r, true, &err);
    uint64_t done = 0;
    for (int k = 0; r && k < MX_LOAD_KINDS; k++) done += r->kind[k].done;
    free(r);
    if (st) return cli_failed(&err);
    return done ? CLI_OK : CLI_FAILED;
}
