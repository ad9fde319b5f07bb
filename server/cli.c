/* cli.c - what the commands share, and serve. */
#include "server/cli_parts.h"

#include "runtime/log.h"
#include "server/experiments.h"
#include "server/explain.h"
#include "server/pricing.h"
#include "server/profiles.h"
#include "server/remember.h"
#include "server/rpc.h"
#include "server/training.h"

#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int cli_failed(const mx_error *err)
{
    fprintf(stderr, "merx: %s: %s\n", mx_status_name(err->code), err->text);
    return err->code == MX_ERR_ARG ? CLI_USAGE : CLI_FAILED;
}

int cli_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("merx: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return CLI_USAGE;
}

void cli_hold_signals(sigset_t *held)
{
    sigemptyset(held);
    sigaddset(held, SIGINT);
    sigaddset(held, SIGTERM);
    pthread_sigmask(SIG_BLOCK, held, NULL);
}

bool cli_signal_pending(const sigset_t *held)
{
    static const struct timespec now;
    return sigtimedwait(held, NULL, &now) > 0;
}

static mx_dtype dtype_of(const mx_config *c, const char *name)
{
    mx_dtype t = MX_F32;
    const char *text = mx_config_string(c, name);
    if (strcmp(text, "auto")) mx_dtype_parse(text, &t);
    return t;
}

static mx_generator_options options_of(const mx_config *c)
{
    mx_generator_options o = mx_generator_defaults();
    o.dtype = dtype_of(c, "dtype");
    o.kv_dtype = dtype_of(c, "kv-cache-dtype");
    o.kv_bytes = (size_t)mx_config_int(c, "kv-cache-bytes");
    o.page_tokens = (int32_t)mx_config_int(c, "page-tokens");
    o.max_model_len = (int32_t)mx_config_int(c, "max-model-len");
    o.max_num_seqs = (int32_t)mx_config_int(c, "max-num-seqs");
    o.max_batched_tokens = (int32_t)mx_config_int(c, "max-num-batched-tokens");
    o.max_queued = (int32_t)mx_config_int(c, "max-num-queued-reqs");
    o.prefix_caching = mx_config_bool(c, "prefix-caching");
    o.n_adapters = mx_config_list(c, "lora-modules", &o.adapters);
    return o;
}

mx_status cli_open_app(mx_app *app, mx_config *c, bool serving, mx_error *err)
{
    const char *const *specs;
    int n = mx_config_list(c, "model", &specs);
    if (!n && !mx_config_string(c, "training-folder") && !mx_config_string(c, "experiments") && !mx_config_string(c, "pricing") && !mx_config_string(c, "profiles") && !(serving && mx_config_string(c, "models-state"))) return mx_fail(err, MX_ERR_ARG, "no model: give one with --model PATH (a Hugging Face folder or a .gguf file)");
    mx_generator_options o = options_of(c);
    MX_TRY(serving ? mx_app_open_serving(app, c, err) : mx_app_open(app, c, err));
    app->defaults = o;
    app->defaults.n_adapters = 0;
    const char *state = serving ? mx_config_string(c, "models-state") : NULL;
    mx_status st = state ? mx_remember_open(app, state, err) : MX_OK;
    for (int i = 0; !st && i < n; i++) st = mx_remember_load(app, specs[i], &o, err);
    if (st) mx_app_close(app, 0);
    return st;
}

/* ---- serve ---------------------------------------------------------------------------- */

static mx_status open_training(mx_app *app, const mx_config *c, mx_error *err)
{
    const char *const *roots, *folder = mx_config_string(c, "training-folder");
    int n = mx_config_list(c, "training-data", &roots);
    if (folder) return mx_training_open(&app->training, app, folder, roots, n, err);
    return n ? mx_fail(err, MX_ERR_ARG, "training-data: say with --training-folder where the jobs' runs go") : MX_OK;
}

static mx_status open_experiments(mx_app *app, const mx_config *c, mx_error *err)
{
    const char *file = mx_config_string(c, "experiments");
    return file ? mx_experiments_open(&app->experiments, file, err) : MX_OK;
}

static mx_status open_pricing(mx_app *app, const mx_config *c, mx_error *err)
{
    const char *file = mx_config_string(c, "pricing");
    if (!file) return MX_OK;
    MX_TRY(mx_pricing_open(&app->pricing, file, mx_config_float(c, "price-exploration"), err));
    if (mx_config_bool(c, "price-discounts")) mx_pricing_allow_discounts(app->pricing);
    const char *policy = mx_config_string(c, "price-policy"), *path = policy ? strchr(policy, '=') : NULL;
    char name[64];
    if (!policy) return MX_OK;
    if (!path || path - policy >= (ptrdiff_t)sizeof name) return mx_fail(err, MX_ERR_ARG, "price-policy: NAME=FOLDER, the name up to 63 bytes, not \"%.60s\"", policy);
    snprintf(name, sizeof name, "%.*s", (int)(path - policy), policy);
    return mx_pricing_live_policy(app->pricing, name, path + 1, err);
}

/* gRPC starts threads of its own from here: they stay on the processors of those that answer. */
static void bind_to_rpc(const mx_plan *p)
{
    int n = 0, *all = NULL;
    for (int i = 0; i < p->n_rpc; i++) n += p->rpc[i].n_cpus;
    all = malloc((size_t)n * sizeof *all);
    if (!all) return;
    n = 0;
    for (int i = 0; i < p->n_rpc; i++)
        for (int k = 0; k < p->rpc[i].n_cpus; k++) all[n++] = p->rpc[i].cpus[k];
    if (n) mx_thread_bind(all, n);
    free(all);
}

/* Vectors of one space are kept: their encoder stays what it is. */
static mx_status keep_encoder(mx_app *app, const char *name, mx_embedder **out, mx_error *err)
{
    mx_served *s;
    MX_TRY(mx_registry_encoder(app->registry, name, &s, err));
    mx_registry_pin(s);
    *out = s->encoder;
    mx_registry_release(s);
    return MX_OK;
}

/* FOLDER or NAME=FOLDER. */
static mx_status network_of(const mx_config *c, mx_profiles_options *o, char name[MX_NETWORK_NAME], mx_error *err)
{
    const char *given = mx_config_string(c, "profiles-network"), *eq = given ? strchr(given, '=') : NULL;
    o->network = given;
    if (!eq || memchr(given, '/', (size_t)(eq - given))) return MX_OK;
    if (eq == given || eq - given >= MX_NETWORK_NAME || !eq[1]) return mx_fail(err, MX_ERR_ARG, "profiles-network: FOLDER or NAME=FOLDER, the name up to 63 bytes, not \"%.100s\"", given);
    snprintf(name, MX_NETWORK_NAME, "%.*s", (int)(eq - given), given);
    o->network_name = name;
    o->network = eq + 1;
    return MX_OK;
}

static mx_status open_profiles(mx_app *app, const mx_config *c, mx_error *err)
{
    const char *folder = mx_config_string(c, "profiles"), *encoder = mx_config_string(c, "profiles-encoder"), *sentiment = mx_config_string(c, "profiles-sentiment");
    mx_profiles_options o = {.device = &app->devices[0]};
    char name[MX_NETWORK_NAME];
    MX_TRY(network_of(c, &o, name, err));
    MX_TRY(mx_explainer_open(&app->explainer, &app->devices[app->device], err));
    if (!folder) return encoder || sentiment || o.network ? mx_fail(err, MX_ERR_ARG, "profiles-encoder, profiles-sentiment, profiles-network: say with --profiles where the profiles are") : MX_OK;
    if (encoder) MX_TRY(keep_encoder(app, encoder, &o.encoder, err));
    if (sentiment) MX_TRY(keep_encoder(app, sentiment, &o.sentiment, err));
    MX_TRY(mx_profiles_open(&app->profiles, folder, &o, err));
    return mx_app_list_network(app, o.network, err);
}

/* The program's own code and that of its libraries, before a first call comes upon each page of it. */
static int read_code(struct dl_phdr_info *info, size_t size, void *user)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    (void)size, (void)user;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t from = (info->dlpi_addr + p->p_vaddr) & ~page;
        if (p->p_type == PT_LOAD && (p->p_flags & PF_X)) madvise((void *)from, info->dlpi_addr + p->p_vaddr + p->p_memsz - from, MADV_POPULATE_READ);
    }
    return 0;
}

/* What is no model is of the same memory; where models lie on a GPU, profiles are of the host's and are not. */
static mx_status share_memory(mx_app *app, const mx_config *c, mx_error *err)
{
    mx_explainer_limit(app->explainer, app->registry, (size_t)mx_config_int(c, "explain-bytes"));
    return app->profiles && app->devices[app->device].kind == MX_CPU ? mx_profiles_limit(app->profiles, app->registry, err) : MX_OK;
}

int mx_cli_serve(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_app app;
    mx_server *server = NULL;
    cli_operations ops = {0};
    sigset_t stop;
    if (n) return cli_usage("serve takes settings only, not \"%s\"", rest[0]);
    cli_hold_signals(&stop);
    sigaddset(&stop, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (cli_open_app(&app, c, true, &err)) return cli_failed(&err);
    if (open_training(&app, c, &err) || open_experiments(&app, c, &err) || open_pricing(&app, c, &err) || open_profiles(&app, c, &err) || share_memory(&app, c, &err)) {
        mx_app_close(&app, 0);
        return cli_failed(&err);
    }
    mx_remember_restore(&app);
    dl_iterate_phdr(read_code, NULL);        /* before it listens: whom it heard it would have to send away */
    if (app.bound) bind_to_rpc(&app.plan);
    if (mx_config_bool(c, "isolate")) mx_thread_prompt();       /* RPC threads are started from here */
    mx_server_options o = mx_server_defaults();
    o.listen = mx_config_string(c, "listen");
    o.threads = (int32_t)mx_config_int(c, "rpc-threads");
    o.max_message_bytes = (size_t)mx_config_int(c, "max-message-bytes");
    if (cli_operations_open(&ops, &app, c, &o, &err) || mx_server_open(&server, &app, &o, &err) ||
        cli_operations_watch(&ops, &app, server, &err)) {
        cli_operations_close(&ops);
        mx_server_close(server);
        cli_operations_free(&ops);
        mx_app_close(&app, 0);
        return cli_failed(&err);
    }
    atomic_store(&app.state, MX_APP_SERVING);
    mx_server_state_changed(server);
    mx_log(MX_LOG_INFO, "server", "serving on %s", mx_server_address(server));
    int got = cli_operations_wait(&ops, &stop);
    uint32_t grace = (uint32_t)mx_config_int(c, "shutdown-timeout") * 1000;
    mx_log(MX_LOG_INFO, "server", "%s: draining %d calls", got == SIGTERM ? "SIGTERM" : "SIGINT", mx_server_inflight(server));
    int cut = mx_server_drain(server, grace);
    if (cut) mx_log(MX_LOG_WARN, "server", "%d calls were cut off", cut);
    cli_operations_close(&ops);
    mx_server_close(server);
    cli_operations_free(&ops);
    mx_app_close(&app, 0);
    return CLI_OK;
}
