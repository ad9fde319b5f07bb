/* app.c - devices, scheduler and models, made and closed in order. */
#include "server/app.h"

#include "server/experiments.h"
#include "server/explain.h"
#include "server/pricing.h"
#include "server/profiles.h"
#include "server/training.h"

#include "runtime/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mx_status load_later(mx_app *app, const char *spec, mx_error *err)
{
    pthread_mutex_lock(&app->loading);
    mx_status st = mx_app_load(app, spec, &app->defaults, err);
    pthread_mutex_unlock(&app->loading);
    return st;
}

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
        opt.background = serving && mx_config_bool(config, "isolate");
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

static mx_status open_app(mx_app *app, mx_config *config, bool serving, mx_error *err)
{
    *app = (mx_app){.config = config, .defaults = mx_generator_defaults(), .load = load_later};
    pthread_mutex_init(&app->loading, NULL);
    mx_status st;
    MX_TRY_GOTO(st, mx_topology_open(&app->topology, NULL, err), fail);
    MX_TRY_GOTO(st, open_devices(app, config, serving, err), fail);
    MX_TRY_GOTO(st, mx_metrics_open(&app->metrics, err), fail);
    MX_TRY_GOTO(st, mx_scheduler_open(&app->scheduler, app->devices, app->n_devices, NULL, err), fail);
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
static mx_status split_spec(const char *spec, char *name, size_t size, const char **path, mx_error *err)
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

static bool taken(const mx_app *app, const char *name)
{
    mx_embedder_info e;
    if (app->n_models && mx_app_model(app, name)) return true;
    for (int i = 0; i < app->n_encoders; i++) {
        mx_embedder_info_get(app->encoders[i], &e);
        if (!strcmp(e.name, name)) return true;
    }
    return false;
}

/* A list never moves, so that it can be read while it grows. */
static mx_status room_for(void **list, int n, const char *name, mx_error *err)
{
    if (n >= MX_APP_MODELS) return mx_fail(err, MX_ERR_ARG, "model %s: %d models are loaded; there is no room for more", name, n);
    if (!*list) *list = calloc(MX_APP_MODELS, sizeof(void *));
    return *list ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "model %s", name);
}

static mx_status load_encoder(mx_app *app, const char *name, const char *path, const mx_generator_options *opt, mx_error *err)
{
    mx_embedder_options o = {.dtype = opt->dtype, .max_len = opt->max_model_len, .max_batched_tokens = opt->max_batched_tokens,
                             .max_queued = opt->max_queued};
    MX_TRY(room_for((void **)&app->encoders, app->n_encoders, name, err));
    MX_TRY(mx_embedder_open(&app->encoders[app->n_encoders], name, path, app->devices, app->device, app->scheduler, &o, err));
    mx_embedder_info info;
    mx_embedder_info_get(app->encoders[app->n_encoders], &info);
    app->n_encoders++;
    mx_log(MX_LOG_INFO, "model", "%s: bert, %.1f M parameters, %s in the file, %s in memory (%.0f MiB), %d classes, loaded in %.2f s", name,
           (double)info.parameters * 1e-6, info.quantization, mx_dtype_name(info.dtype), (double)info.weight_bytes / (1 << 20), info.classes,
           info.load_seconds);
    return MX_OK;
}

/* On every further device that the plan gives to models. */
static mx_status replicate(mx_app *app, mx_generator *g, mx_error *err)
{
    for (int i = 0; i < app->n_devices; i++)
        if (app->devices[i].serves && i != app->device) MX_TRY(mx_generator_replicate(g, app->devices, i, err));
    return MX_OK;
}

mx_status mx_app_load(mx_app *app, const char *spec, const mx_generator_options *opt, mx_error *err)
{
    char name[64];
    const char *path;
    MX_TRY(split_spec(spec, name, sizeof name, &path, err));
    if (taken(app, name)) return mx_fail(err, MX_ERR_ARG, "model \"%s\" is given twice", name);
    if (mx_is_encoder(path)) return load_encoder(app, name, path, opt, err);
    MX_TRY(room_for((void **)&app->models, app->n_models, name, err));
    mx_generator_options own = *opt;
    if (app->n_models) own.n_adapters = 0;             /* they stand beside the first model */
    MX_TRY(mx_generator_open(&app->models[app->n_models], name, path, app->devices, app->device, app->scheduler, app->metrics, &own, err));
    mx_status st = replicate(app, app->models[app->n_models], err);
    if (st) {
        char lane[80];
        snprintf(lane, sizeof lane, "%s.generate", name);
        mx_scheduler_lane_close(app->scheduler, lane);
        mx_generator_close(app->models[app->n_models]);
        return st;
    }
    mx_generator_info info;
    mx_generator_info_get(app->models[app->n_models], &info);
    app->n_models++;
    if (info.replicas > 1) mx_log(MX_LOG_INFO, "model", "%s: on %d devices", name, info.replicas);
    mx_log(MX_LOG_INFO, "model", "%s: %s, %.1f M parameters, %s in the file, %s in memory (%.0f MiB), KV cache %d pages of %d tokens (%.0f MiB), loaded in %.2f s",
           name, info.architecture, (double)info.parameters * 1e-6, info.quantization, mx_dtype_name(info.dtype),
           (double)info.weight_bytes / (1 << 20), info.kv_pages, info.page_tokens, (double)info.kv_bytes / (1 << 20), info.load_seconds);
    return MX_OK;
}

void mx_app_close(mx_app *app, uint32_t grace_ms)
{
    mx_training_close(app->training);
    mx_experiments_close(app->experiments);
    mx_pricing_close(app->pricing);
    mx_profiles_close(app->profiles);
    mx_explainer_close(app->explainer);
    if (app->scheduler) mx_scheduler_close(app->scheduler, grace_ms);
    for (int i = 0; i < app->n_models; i++) mx_generator_close(app->models[i]);
    for (int i = 0; i < app->n_encoders; i++) mx_embedder_close(app->encoders[i]);
    free(app->encoders);
    free(app->models);
    if (app->metrics) mx_metrics_close(app->metrics);
    if (app->devices) mx_devices_close(app->devices, app->n_devices);
    mx_plan_free(&app->plan);
    if (app->topology) mx_topology_close(app->topology);
    memset(app, 0, sizeof *app);
}

mx_generator *mx_app_model(const mx_app *app, const char *name)
{
    if (!name || !name[0]) return app->n_models ? app->models[0] : NULL;
    for (int i = 0; i < app->n_models; i++) {
        mx_generator_info info;
        mx_generator_info_get(app->models[i], &info);
        if (!strcmp(info.name, name)) return app->models[i];
    }
    return NULL;
}
