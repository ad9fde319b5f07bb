/* models_service.c - the service Models: versions come in, are listed and go while others serve. */
#include "server/services.h"
#include "server/training.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mx_status too_large(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
}

/* ---- Load and Unload: neither an RPC thread nor the device waits for them ----------------------- */

typedef struct change {
    mx_app     *app;
    mx_call    *call;
    bool        unload;
    char        name[64], path[1024], adapter_of[64];
    uint32_t    drain_ms;
    mx_loaded   loaded;
    mx_error    err;
    mx_status   st;
    double      seconds;
    atomic_bool over;
} change;

static void *change_main(void *user)
{
    change *w = user;
    uint64_t began = mx_now_ns(&mx_clock_monotonic);
    w->st = w->unload ? w->app->unload(w->app, w->name, w->drain_ms, &w->err)
                      : w->app->load(w->app, w->name, w->path, w->adapter_of, &w->loaded, &w->err);
    w->seconds = (double)(mx_now_ns(&mx_clock_monotonic) - began) * 1e-9;
    mx_call *call = w->call;
    atomic_store(&w->over, true);
    mx_call_wake(call);
    return NULL;
}

static bool send_change(mx_call *call, const change *w)
{
    Merx__V1__LoadModelResponse loaded = MERX__V1__LOAD_MODEL_RESPONSE__INIT;
    Merx__V1__UnloadModelResponse gone = MERX__V1__UNLOAD_MODEL_RESPONSE__INIT;
    loaded.name = (char *)(uintptr_t)w->name;
    loaded.path = (char *)(uintptr_t)w->path;
    loaded.version = w->loaded.version;
    loaded.replaced = w->loaded.replaced;
    loaded.seconds = gone.seconds = w->seconds;
    return mx_call_send(call, w->unload ? &gone.base : &loaded.base, false);
}

static void change_pump(mx_call *call, void *user, mx_arena *scratch)
{
    change *w = user;
    (void)scratch;
    if (!atomic_load(&w->over)) return;
    if (w->st) mx_call_finish(call, w->st, w->err.text);
    else if (send_change(call, w)) mx_call_finish(call, MX_OK, NULL);
    else mx_call_finish(call, MX_ERR_NO_MEMORY, "no memory for the answer");
}

/* Takes w. */
static mx_status start(mx_call *call, change *w, mx_error *err)
{
    static const mx_call_handler handler = {.pump = change_pump, .closed = free};
    pthread_t thread;
    mx_call_attach(call, &handler, w);
    if (pthread_create(&thread, NULL, change_main, w)) return mx_fail(err, MX_ERR_NO_MEMORY, "a thread could not start");
    pthread_detach(thread);
    return MX_OK;
}

static mx_status open_change(mx_app *app, mx_call *call, const char *name, change **out, mx_error *err)
{
    if (!*name || strlen(name) > 63 || strpbrk(name, "/=")) return mx_fail(err, MX_ERR_ARG, "name: 1 to 63 bytes without / and =");
    change *w = *out = calloc(1, sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    w->app = app;
    w->call = call;
    snprintf(w->name, sizeof w->name, "%s", name);
    return MX_OK;
}

/* Inside a folder that the operator named. */
static mx_status allowed(const mx_app *app, const char *path, char out[1024], mx_error *err)
{
    const char *const *folders = NULL;
    int n = app->config ? mx_config_list(app->config, "models-folder", &folders) : 0;
    bool inside = false;
    for (int i = 0; i < n && !inside; i++) {
        char *real = realpath(folders[i], NULL);
        mx_status st = real ? mx_path_inside((const char *const[]){real}, 1, "path", path, out, &inside, err) : MX_OK;
        free(real);
        if (st) return st;
    }
    if (inside) return MX_OK;
    if (app->training) return mx_training_path(app->training, "path", path, out, err);
    return mx_fail(err, MX_ERR_ARG, "path: %.200s is not inside --models-folder", path);
}

static mx_status source_of(const mx_app *app, const Merx__V1__LoadModelRequest *q, char out[1024], mx_error *err)
{
    if (q->source_case == MERX__V1__LOAD_MODEL_REQUEST__SOURCE_PATH) return allowed(app, q->path, out, err);
    if (q->source_case != MERX__V1__LOAD_MODEL_REQUEST__SOURCE_TRAINING_JOB) return mx_fail(err, MX_ERR_ARG, "source: one of path and training_job is required");
    if (!app->training) return mx_fail(err, MX_ERR_STATE, "training is off: start the server with --training-folder");
    return mx_training_checkpoint(app->training, q->training_job, out, err);
}

MX_METHOD(mx_load_begin)
{
    ProtobufCMessage *m;
    change *w;
    MX_TRY(mx_message_decode(scratch, &merx__v1__load_model_request__descriptor, msg, len, &m, err));
    const Merx__V1__LoadModelRequest *q = (const Merx__V1__LoadModelRequest *)m;
    if (!app->load) return mx_fail(err, MX_ERR_STATE, "this server loads no models");
    if (strlen(q->adapter_of) > 63) return mx_fail(err, MX_ERR_ARG, "adapter_of: longer than 63 bytes");
    MX_TRY(open_change(app, call, q->name, &w, err));
    snprintf(w->adapter_of, sizeof w->adapter_of, "%s", q->adapter_of);
    mx_status st = source_of(app, q, w->path, err);
    if (!st) return start(call, w, err);
    free(w);
    return st;
}

MX_METHOD(mx_unload_begin)
{
    enum { DRAIN_SECONDS = 30, MOST_SECONDS = 86400 };
    ProtobufCMessage *m;
    change *w;
    MX_TRY(mx_message_decode(scratch, &merx__v1__unload_model_request__descriptor, msg, len, &m, err));
    const Merx__V1__UnloadModelRequest *q = (const Merx__V1__UnloadModelRequest *)m;
    double seconds = q->_drain_seconds_case ? q->drain_seconds : DRAIN_SECONDS;
    if (!app->unload) return mx_fail(err, MX_ERR_STATE, "this server unloads no models");
    if (!(seconds >= 0 && seconds <= MOST_SECONDS)) return mx_fail(err, MX_ERR_ARG, "drain_seconds: %g is not in 0..%d", seconds, MOST_SECONDS);
    MX_TRY(open_change(app, call, q->name, &w, err));
    w->unload = true;
    w->drain_ms = (uint32_t)(seconds * 1000);
    return start(call, w, err);
}

/* ---- List ----------------------------------------------------------------------------------------- */

static char *keep(mx_arena *a, const char *text)
{
    char *copy = mx_arena_array(a, strlen(text) + 1, 1);
    return copy ? strcpy(copy, text) : NULL;
}

static bool describe_adapters(const mx_generator *g, Merx__V1__ModelVersion *m, mx_arena *a)
{
    mx_adapter_info info;
    size_t n = 0;
    while (mx_generator_adapter_at(g, (int32_t)n, &info)) n++;
    Merx__V1__AdapterInfo *all = mx_arena_array(a, n, sizeof *all);
    m->adapters = mx_arena_array(a, n, sizeof *m->adapters);
    if (n && (!all || !m->adapters)) return false;
    for (size_t i = 0; i < n && mx_generator_adapter_at(g, (int32_t)i, &info); i++) {
        merx__v1__adapter_info__init(&all[i]);
        all[i].name = keep(a, info.name);
        all[i].path = keep(a, info.folder);
        all[i].rank = info.rank;
        all[i].bytes = (int64_t)info.bytes;
        all[i].references = info.references;
        if (!all[i].name || !all[i].path) return false;
        m->adapters[m->n_adapters++] = &all[i];
    }
    return true;
}

/* Names and paths are the version's, which is held until the answer is packed. */
static bool describe(const mx_app *app, const mx_served_view *v, Merx__V1__ModelVersion *m, mx_arena *a)
{
    const mx_footprint *f = &v->served->footprint;
    mx_lane_stats lane = {0};
    mx_generator_info g;
    mx_embedder_info e;
    merx__v1__model_version__init(m);
    m->name = v->served->name;
    m->version = v->served->version;
    m->state = (Merx__V1__ModelState)v->state;
    m->kind = (char *)(uintptr_t)mx_served_kind_name(v->served->kind);
    m->weight_bytes = (int64_t)f->weights;
    m->kv_bytes = (int64_t)f->kv;
    m->scratch_bytes = (int64_t)f->scratch;
    m->host_bytes = (int64_t)f->host;
    m->references = v->references;
    m->since_ms = v->since_ms;
    m->pinned = v->pinned;
    if (v->generator) {
        mx_generator_info_get(v->generator, &g);
        mx_scheduler_stats(app->scheduler, g.lane, &lane);
        m->path = (char *)(uintptr_t)g.path;
        m->weight_bytes = (int64_t)g.weight_bytes;
        if (!describe_adapters(v->generator, m, a)) return false;
    }
    if (v->encoder) {
        mx_embedder_info_get(v->encoder, &e);
        mx_scheduler_stats(app->scheduler, e.lane, &lane);
        m->path = (char *)(uintptr_t)e.path;
    }
    if (v->served->kind == MX_SERVED_NETWORK && v->state != MX_SERVED_LOADING) m->path = v->served->path;
    m->running = (int32_t)lane.running;
    m->waiting = (int32_t)lane.waiting;
    return true;
}

MX_METHOD(mx_list_versions_begin)
{
    ProtobufCMessage *m;
    mx_served_view list[MX_MODELS];
    size_t held, budget;
    MX_TRY(mx_message_decode(scratch, &merx__v1__list_versions_request__descriptor, msg, len, &m, err));
    mx_registry_memory(app->registry, &held, &budget);
    int n = mx_registry_list(app->registry, list);
    Merx__V1__ListVersionsResponse r = MERX__V1__LIST_VERSIONS_RESPONSE__INIT;
    Merx__V1__ModelVersion *all = mx_arena_array(scratch, (size_t)n, sizeof *all);
    r.versions = mx_arena_array(scratch, (size_t)n, sizeof *r.versions);
    r.held_bytes = (int64_t)held;
    r.budget_bytes = (int64_t)budget;
    bool ok = all && r.versions;
    for (int i = 0; ok && i < n; i++) {
        ok = describe(app, &list[i], &all[i], scratch);
        r.versions[r.n_versions++] = &all[i];
    }
    ok = ok && mx_call_send(call, &r.base, false);
    mx_registry_list_free(list, n);
    if (!ok) return too_large(err);
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}
