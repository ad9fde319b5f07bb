/* app.c - devices, scheduler and models, made and closed in order. */
#include "server/app.h"

#include "models/profile_net.h"
#include "server/experiments.h"
#include "server/explain.h"
#include "server/pricing.h"
#include "server/profiles.h"
#include "server/remember.h"
#include "server/rpc.h"
#include "server/training.h"

#include "runtime/log.h"
#include "runtime/slab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mx_status load_later(mx_app *app, const char *name, const char *path, const char *adapter_of, mx_loaded *out, mx_error *err);
static mx_status unload_later(mx_app *app, const char *name, uint32_t drain_ms, mx_error *err);

/* A short text's p99 beside saturated generation stays within a fifth of what it is alone (1.07 and 1.17; at 5 it is 1.4 and more), and a
 * tenth of its speed stays with generation where somebody else wants every processor without end: bench/isolation.c tries others. */
enum { GENERATION_NICE = 10 };

/* --devices, or the one device of --device. */
static mx_status open_devices(mx_app *app, const mx_config *config, bool serving, mx_error *err)
{
    mx_device_options opt = {.bind = true, .spin_us = 50, .plan = &app->plan};
    const char *one = "auto", *many = NULL;
    mx_plan_settings s = {0};
    mx_plan_gpu gpus[64];
    if (config) {
        one = mx_config_string(config, "device");
        many = mx_config_string(config, "devices");
        s.threads = (int)mx_config_int(config, "threads");
        s.rpc_threads = (int)mx_config_int(config, "rpc-threads");
        opt.bind = mx_config_bool(config, "bind");
        if (serving && mx_config_bool(config, "isolate")) opt.nice = GENERATION_NICE;
    }
    s.devices = many ? many : "auto";
    MX_TRY(mx_plan_make(&app->plan, app->topology, gpus, mx_device_gpus(gpus, 64), &s, err));
    app->bound = opt.bind;
    MX_TRY(mx_devices_open(&app->devices, &app->n_devices, &opt, err));
    if (!many) {
        MX_TRY(mx_device_find(app->devices, app->n_devices, one, &app->device, err));
        for (int i = 0; i < app->n_devices; i++) app->devices[i].serves = i == app->device;
        return MX_OK;
    }
    while (app->device < app->n_devices - 1 && !app->devices[app->device].serves) app->device++;
    return MX_OK;
}

/* What models may take: the memory of their device; of the host's, what calls may come to hold, and leave in slabs, is left out. */
static size_t budget_of(const mx_app *app, const mx_config *config, bool serving)
{
    const mx_device *d = &app->devices[app->device];
    size_t all = d->kind == MX_CPU ? mx_topology_memory(app->topology) : d->memory, calls = 0;
    if (serving && d->kind == MX_CPU && config) 
        calls = mx_calls_bytes(mx_server_defaults().max_calls, (size_t)mx_config_int(config, "max-message-bytes")) + mx_slab_most();
    return all > calls ? all - calls : 1;
}

static mx_status open_app(mx_app *app, mx_config *config, bool serving, mx_error *err)
{
    *app = (mx_app){.config = config, .defaults = mx_generator_defaults(), .load = load_later, .unload = unload_later};
    app->serving = serving;
    pthread_mutex_init(&app->loading, NULL);
    mx_status st;
    MX_TRY_GOTO(st, mx_topology_open(&app->topology, NULL, err), fail);
    MX_TRY_GOTO(st, open_devices(app, config, serving, err), fail);
    MX_TRY_GOTO(st, mx_metrics_open(&app->metrics, err), fail);
    MX_TRY_GOTO(st, mx_scheduler_open(&app->scheduler, app->devices, app->n_devices, NULL, err), fail);
    MX_TRY_GOTO(st, mx_registry_open(&app->registry, app->scheduler, app->metrics, budget_of(app, config, serving), err), fail);
    atomic_store(&app->state, MX_APP_STARTING);
    return MX_OK;
fail:
    mx_app_close(app, 0);
    return st;
}

mx_status mx_app_open(mx_app *app, mx_config *config, mx_error *err)
{
    return open_app(app, config, false, err);
}

mx_status mx_app_open_serving(mx_app *app, mx_config *config, mx_error *err)
{
    return open_app(app, config, true, err);
}

/* "name=path", or the last part of a path without its ending. */
mx_status mx_app_split_spec(const char *spec, char *name, size_t size, const char **path, mx_error *err)
{
    const char *eq = strchr(spec, '='), *slash;
    *path = spec;
    if (eq && !memchr(spec, '/', (size_t)(eq - spec))) {
        *path = eq + 1;
        snprintf(name, size, "%.*s", (int)(eq - spec), spec);
    } else {
        size_t len = strlen(spec);
        while (len > 1 && spec[len - 1] == '/') len--;
        slash = memrchr(spec, '/', len);
        const char *base = slash ? slash + 1 : spec;
        snprintf(name, size, "%.*s", (int)(len - (size_t)(base - spec)), base);
        char *dot = strrchr(name, '.');
        if (dot && (!strcmp(dot, ".gguf") || !strcmp(dot, ".safetensors"))) *dot = 0;
    }
    if (!name[0] || !**path) return mx_fail(err, MX_ERR_ARG, "model \"%s\": write NAME=PATH or PATH", spec);
    return MX_OK;
}

/* ---- opening ------------------------------------------------------------------------------- */

static mx_embedder_options encoder_options(const mx_generator_options *o, int32_t version)
{
    return (mx_embedder_options){.dtype = o->dtype, .max_len = o->max_model_len, .max_batched_tokens = o->max_batched_tokens,
                                 .max_queued = o->max_queued, .version = version};
}

/* On every further device that the plan gives to models. */
static mx_status replicate(mx_app *app, mx_generator *g, mx_error *err)
{
    for (int i = 0; i < app->n_devices; i++)
        if (app->devices[i].serves && i != app->device) MX_TRY(mx_generator_replicate(g, app->devices, i, err));
    return MX_OK;
}

/* What a model will take of the memory that the first device's models share. */
static mx_status footprint_of(const mx_app *app, const char *path, bool encoder, const mx_generator_options *o, mx_footprint *f, mx_error *err)
{
    const mx_device *d = &app->devices[app->device];
    if (encoder) {
        mx_embedder_options e = encoder_options(o, 1);
        return mx_embedder_footprint(f, path, d, &e, err);
    }
    MX_TRY(mx_generator_footprint(f, path, d, o, err));
    size_t kv = f->kv, host = f->host;
    for (int i = 0; i < app->n_devices; i++)
        if (app->devices[i].serves && i != app->device && mx_device_shares(d, &app->devices[i])) f->kv += kv, f->host += host;
    return MX_OK;
}

typedef struct opened { mx_generator *g; mx_embedder *e; char lane[96]; } opened;

static void close_opened(mx_app *app, opened *m)
{
    if (*m->lane) mx_scheduler_lane_close(app->scheduler, m->lane);
    mx_generator_close(m->g);
    mx_embedder_close(m->e);
    *m = (opened){0};
}

static mx_status open_encoder(mx_app *app, const char *name, const char *path, const mx_generator_options *opt, opened *m, mx_error *err)
{
    mx_embedder_options o = encoder_options(opt, opt->version);
    mx_embedder_info info;
    MX_TRY(mx_embedder_open(&m->e, name, path, app->devices, app->device, app->scheduler, &o, err));
    mx_embedder_info_get(m->e, &info);
    snprintf(m->lane, sizeof m->lane, "%s", info.lane);
    mx_log(MX_LOG_INFO, "model", "%s: bert, %.1f M parameters, %s in the file, %s in memory (%.0f MiB), %d classes, loaded in %.2f s", name,
           (double)info.parameters * 1e-6, info.quantization, mx_dtype_name(info.dtype), (double)info.weight_bytes / (1 << 20), info.classes,
           info.load_seconds);
    return MX_OK;
}

static mx_status open_generator(mx_app *app, const char *name, const char *path, const mx_generator_options *opt, opened *m, mx_error *err)
{
    mx_generator_info info;
    MX_TRY(mx_generator_open(&m->g, name, path, app->devices, app->device, app->scheduler, NULL, opt, err));
    mx_generator_info_get(m->g, &info);
    snprintf(m->lane, sizeof m->lane, "%s", info.lane);
    MX_TRY(replicate(app, m->g, err));
    mx_generator_info_get(m->g, &info);
    if (info.replicas > 1) mx_log(MX_LOG_INFO, "model", "%s: on %d devices", name, info.replicas);
    mx_log(MX_LOG_INFO, "model", "%s: %s, %.1f M parameters, %s in the file, %s in memory (%.0f MiB), KV cache %d pages of %d tokens (%.0f MiB), loaded in %.2f s",
           name, info.architecture, (double)info.parameters * 1e-6, info.quantization, mx_dtype_name(info.dtype),
           (double)info.weight_bytes / (1 << 20), info.kv_pages, info.page_tokens, (double)info.kv_bytes / (1 << 20), info.load_seconds);
    return MX_OK;
}

/* ---- the first words of a version: before anybody asks it, and counted nowhere --------------------- */

typedef struct trial {
    pthread_mutex_t lock;
    pthread_cond_t  news;
    int             left;
    mx_error        err;
} trial;

static void trial_begins(trial *t, int by)
{
    pthread_mutex_lock(&t->lock);
    t->left += by;
    pthread_mutex_unlock(&t->lock);
}

static void trial_over(trial *t, const mx_error *err)
{
    pthread_mutex_lock(&t->lock);
    if (err) t->err = *err;
    t->left--;
    pthread_cond_signal(&t->news);
    pthread_mutex_unlock(&t->lock);
}

static void trial_text_over(mx_generation *g, const mx_error *err)
{
    trial_over(mx_generation_user(g), err);
}

static void trial_vector_over(mx_embedding *m, const mx_error *err)
{
    trial_over(mx_embedding_user(m), err);
}

static mx_status wait_trial(trial *t, mx_error *err)
{
    pthread_mutex_lock(&t->lock);
    while (t->left) pthread_cond_wait(&t->news, &t->lock);
    pthread_mutex_unlock(&t->lock);
    if (t->err.code) *err = t->err;
    return t->err.code;
}

/* A text on every device that it is on. */
static mx_status try_words(const opened *m, trial *t, mx_error *err)
{
    enum { PROMPT = 32, MOST = 64 };
    int32_t prompt[PROMPT], n = 0, replicas, words;
    mx_generation *g[MOST] = {0};
    mx_generator_info info;
    mx_sampling s = mx_sampling_defaults();
    mx_generation_calls calls = {.done = trial_text_over, .user = t};
    mx_status st = MX_OK;
    mx_generator_info_get(m->g, &info);
    replicas = info.replicas < MOST ? info.replicas : MOST;
    words = info.max_model_len > 2 * PROMPT ? PROMPT : 1;
    s.max_tokens = words == 1 ? 1 : 2;
    s.temperature = 0;
    s.ignore_eos = true;
    for (; !st && n < replicas; n++) {
        for (int32_t i = 0; i < words; i++) prompt[i] = (n * PROMPT + i) % info.vocab;
        MX_TRY_GOTO(st, mx_generation_open(&g[n], m->g, prompt, words, &s, &calls, 0, err), over);
        trial_begins(t, 1);
        st = mx_generation_submit(g[n], err);
        if (st) trial_begins(t, -1);
    }
over:;
    mx_error why = {0};
    mx_status ran = wait_trial(t, &why);
    for (int32_t i = 0; i < replicas; i++) mx_generation_close(g[i]);
    if (!st && ran) *err = why;
    return st ? st : ran;
}

static mx_status try_vector(const opened *m, trial *t, mx_error *err)
{
    static const char text[] = "light running shoes for the rain and for the road";
    mx_embedding_request q = mx_embedding_defaults(m->e);
    mx_embedding *v = NULL;
    q.truncate = true;
    MX_TRY(mx_embedding_open(&v, m->e, text, sizeof text - 1, &q, trial_vector_over, t, 0, err));
    trial_begins(t, 1);
    mx_status st = mx_embedding_submit(v, err);
    if (!st) st = wait_trial(t, err);
    mx_embedding_close(v);
    return st;
}

/* Its memory has been touched, and what cannot run is found before it is served. */
static mx_status try_out(mx_app *app, const opened *m, mx_error *err)
{
    trial t = {.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};
    mx_status st = m->g ? try_words(m, &t, err) : try_vector(m, &t, err);
    if (m->e) mx_scheduler_lane_forget(app->scheduler, m->lane);
    return st;
}

/* ---- loading and unloading ---------------------------------------------------------------------- */

static mx_status load(mx_app *app, const char *name, const char *path, const mx_generator_options *opt, bool later, mx_loaded *out, mx_error *err)
{
    mx_footprint f;
    mx_served *s;
    opened m = {0};
    mx_generator_options own = *opt;
    bool encoder;
    MX_TRY(mx_is_encoder(path, &encoder, err));
    MX_TRY(footprint_of(app, path, encoder, opt, &f, err));
    MX_TRY(mx_registry_begin(app->registry, name, encoder ? MX_SERVED_ENCODER : MX_SERVED_GENERATOR, later, &f, &s, err));
    own.version = s->version;
    mx_status st = encoder ? open_encoder(app, name, path, &own, &m, err) : open_generator(app, name, path, &own, &m, err);
    if (!st && (later || app->serving)) st = try_out(app, &m, err);
    if (!st && m.g) mx_generator_count(m.g, app->metrics);
    if (st) {
        close_opened(app, &m);
        mx_registry_abort(s);
        return st;
    }
    out->version = own.version;
    out->replaced = mx_registry_commit(s, m.g, m.e);
    if (later) mx_log(MX_LOG_INFO, "model", out->replaced ? "%s: version %d serves, version %d drains" : "%s: version %d serves", name, out->version, out->replaced);
    return MX_OK;
}

mx_status mx_app_load(mx_app *app, const char *spec, const mx_generator_options *opt, mx_error *err)
{
    char name[64];
    const char *path;
    mx_loaded out;
    mx_generator_options own = *opt;
    MX_TRY(mx_app_split_spec(spec, name, sizeof name, &path, err));
    if (mx_app_model(app)) own.n_adapters = 0;         /* they stand beside the first model */
    return load(app, name, path, &own, false, &out, err);
}

/* The adapters beside a version, for the one that replaces it; [n] "name=folder", malloc'ed in one piece. */
static mx_status adapters_of(const mx_generator *g, const char *const **out, int32_t *n, mx_error *err)
{
    enum { SPEC = sizeof((mx_adapter_info *)0)->name + sizeof((mx_adapter_info *)0)->folder + 1 };
    mx_adapter_info a;
    *n = 0;
    while (mx_generator_adapter_at(g, *n, &a)) ++*n;
    char **list = calloc((size_t)*n + 1, sizeof *list + SPEC), *text = (char *)(list + *n);
    if (!list) return mx_fail(err, MX_ERR_NO_MEMORY, "the list of adapters");
    for (int32_t i = 0; i < *n && mx_generator_adapter_at(g, i, &a); i++) {
        list[i] = text + (size_t)i * SPEC;
        snprintf(list[i], SPEC, "%s=%s", a.name, a.folder);
    }
    *out = (const char *const *)list;
    return MX_OK;
}

static mx_status load_adapter(mx_app *app, const char *name, const char *path, const char *base, mx_error *err)
{
    mx_served *s, *other;
    int32_t id;
    size_t bytes;
    MX_TRY(mx_registry_generator(app->registry, base, &s, err));
    mx_status st = mx_registry_health(app->registry, name) >= 0 ? mx_fail(err, MX_ERR_ARG, "name: \"%s\" is a model's", name) : MX_OK;
    if (!st && (other = mx_registry_adapter(app->registry, name, &id)) != NULL) {
        if (other != s) st = mx_fail(err, MX_ERR_ARG, "name: \"%s\" is an adapter beside %s", name, other->name);
        mx_generator_adapter_release(other->generator, id);
        mx_registry_release(other);
    }
    if (!st) st = mx_generator_adapter_bytes(s->generator, path, &bytes, err);
    if (!st) st = mx_registry_room(app->registry, name, bytes, err);
    if (!st) st = mx_generator_adapter_load(s->generator, name, path, err);
    if (!st) mx_log(MX_LOG_INFO, "model", "%s: adapter %s serves", s->name, name);
    mx_registry_release(s);
    return st;
}

/* ---- the network of the profiles ------------------------------------------------------------------ */

/* Beside what models hold, where they lie in the host's memory too. */
static mx_status network_footprint(const mx_app *app, const char *path, mx_footprint *f, mx_error *err)
{
    size_t weights, rows;
    *f = (mx_footprint){0};
    MX_TRY(mx_profile_net_footprint(path, mx_profiles_graph(app->profiles), &weights, &rows, err));
    if (app->devices[app->device].kind == MX_CPU) f->weights = weights, f->host = rows;
    return MX_OK;
}

mx_status mx_app_list_network(mx_app *app, const char *folder, mx_error *err)
{
    char name[MX_NETWORK_NAME], *path;
    mx_footprint f;
    mx_served *s;
    if (!app->profiles || !mx_profiles_network(app->profiles, name)) return MX_OK;
    MX_TRY(network_footprint(app, folder, &f, err));
    MX_TRY(mx_registry_begin(app->registry, name, MX_SERVED_NETWORK, false, &f, &s, err));
    path = strdup(folder);
    if (path) mx_registry_commit_network(s, path);
    else mx_registry_abort(s);
    return path ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "model %s", name);
}

/* There is one: under its name comes the next version, under another nothing. */
static mx_status load_network(mx_app *app, const char *name, const char *path, mx_loaded *out, mx_error *err)
{
    mx_footprint f;
    mx_served *s, *now = mx_registry_network(app->registry);
    mx_status st = MX_OK;
    if (!app->profiles) st = mx_fail(err, MX_ERR_STATE, "%s is a network of profiles, and profiles are off: start the server with --profiles", path);
    if (!st && now && strcmp(now->name, name) != 0)
        st = mx_fail(err, MX_ERR_ARG, "name: the profiles have one network, and it is \"%s\"; load its next version under that name, or unload it first", now->name);
    mx_registry_release(now);
    if (!st) st = network_footprint(app, path, &f, err);
    if (!st) st = mx_registry_begin(app->registry, name, MX_SERVED_NETWORK, true, &f, &s, err);
    MX_TRY(st);
    char *copy = strdup(path);
    st = copy ? mx_profiles_swap(app->profiles, name, s->version, path, err) : mx_fail(err, MX_ERR_NO_MEMORY, "model %s", name);
    if (st) {
        free(copy);
        mx_registry_abort(s);
        return st;
    }
    out->version = s->version;
    out->replaced = mx_registry_commit_network(s, copy);
    mx_log(MX_LOG_INFO, "model", out->replaced ? "%s: network version %d speaks in profiles, version %d has gone" : "%s: network version %d speaks in profiles", name, out->version, out->replaced);
    return MX_OK;
}

static mx_status load_later(mx_app *app, const char *name, const char *path, const char *adapter_of, mx_loaded *out, mx_error *err)
{
    mx_served *before = NULL, *beside = NULL;
    mx_error none;
    const char *const *adapters = NULL;
    int32_t id;
    mx_status st = MX_OK;
    *out = (mx_loaded){0};
    pthread_mutex_lock(&app->loading);
    mx_generator_options own = app->defaults;
    if (*adapter_of) {
        st = load_adapter(app, name, path, adapter_of, err);
    } else {
        if ((beside = mx_registry_adapter(app->registry, name, &id)) != NULL) {
            st = mx_fail(err, MX_ERR_ARG, "name: \"%s\" is an adapter beside %s", name, beside->name);
            mx_generator_adapter_release(beside->generator, id);
            mx_registry_release(beside);
        }
        if (!st && !mx_registry_generator(app->registry, name, &before, &none)) st = adapters_of(before->generator, &adapters, &own.n_adapters, err);
        own.adapters = adapters;
        if (!st) st = mx_gnn_is(path) ? load_network(app, name, path, out, err) : load(app, name, path, &own, true, out, err);
        free((void *)(uintptr_t)adapters);
        mx_registry_release(before);
    }
    pthread_mutex_unlock(&app->loading);
    return st;
}

/* Profiles go on without one.  *is false: it is no network's name. */
static mx_status unload_network(mx_app *app, const char *name, bool *is, mx_error *err)
{
    mx_served *now = mx_registry_network(app->registry);
    *is = now && !strcmp(now->name, name);
    mx_registry_release(now);
    if (!*is) return MX_OK;
    MX_TRY(mx_profiles_swap(app->profiles, NULL, 1, NULL, err));
    return mx_registry_unload(app->registry, name, 0, err);
}

static mx_status unload_later(mx_app *app, const char *name, uint32_t drain_ms, mx_error *err)
{
    int32_t id;
    bool network;
    pthread_mutex_lock(&app->loading);
    mx_status st = unload_network(app, name, &network, err);
    pthread_mutex_unlock(&app->loading);
    if (st || network) return st;
    mx_served *s = mx_registry_health(app->registry, name) > 0 ? NULL : mx_registry_adapter(app->registry, name, &id);
    if (!s) return mx_registry_unload(app->registry, name, drain_ms, err);
    mx_generator_adapter_release(s->generator, id);
    pthread_mutex_lock(&app->loading);
    bool found = mx_generator_adapter_unload(s->generator, name);
    pthread_mutex_unlock(&app->loading);
    if (found) mx_log(MX_LOG_INFO, "model", "%s: adapter %s has gone", s->name, name);
    mx_registry_release(s);
    return found ? MX_OK : mx_fail(err, MX_ERR_NOT_FOUND, "model: there is no \"%.100s\"", name);
}

void mx_app_close(mx_app *app, uint32_t grace_ms)
{
    mx_training_close(app->training);
    mx_experiments_close(app->experiments);
    mx_pricing_close(app->pricing);
    mx_profiles_close(app->profiles);
    mx_explainer_close(app->explainer);
    mx_remember_close(app->remember);
    mx_registry_stop(app->registry);
    if (app->scheduler) mx_scheduler_close(app->scheduler, grace_ms);
    mx_registry_close(app->registry);
    if (app->metrics) mx_metrics_close(app->metrics);
    if (app->devices) mx_devices_close(app->devices, app->n_devices);
    mx_plan_free(&app->plan);
    if (app->topology) mx_topology_close(app->topology);
    memset(app, 0, sizeof *app);
}

mx_generator *mx_app_model(const mx_app *app)
{
    mx_served *s;
    mx_error none;
    if (mx_registry_generator(app->registry, "", &s, &none)) return NULL;
    mx_registry_release(s);
    return s->generator;
}

mx_embedder *mx_app_encoder(const mx_app *app)
{
    mx_served *s;
    mx_error none;
    if (mx_registry_encoder(app->registry, "", &s, &none)) return NULL;
    mx_registry_release(s);
    return s->encoder;
}
