/* remember.c - see remember.h. */
#include "server/remember.h"

#include "proto/merx.pb-c.h"
#include "runtime/log.h"
#include "server/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct memory {
    struct memory *next;               /* in the order of names                            */
    Merx__V1__LoadModelRequest *m;     /* source path; "": it was unloaded                 */
    bool done;                         /* the start has seen to it                         */
} memory;

struct mx_remember {
    pthread_mutex_t lock;              /* of the store                                     */
    mx_store *store;
    memory   *list;                    /* what was there at open                           */
    mx_status (*load)(mx_app *app, const char *name, const char *path, const char *adapter_of, mx_loaded *out, mx_error *err);
    mx_status (*unload)(mx_app *app, const char *name, uint32_t drain_ms, mx_error *err);
};

static mx_status take(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    mx_remember *r = ctx;
    memory **at = &r->list, *e = calloc(1, sizeof *e);
    if (!e) return mx_fail(err, MX_ERR_NO_MEMORY, "a remembered model");
    e->m = merx__v1__load_model_request__unpack(NULL, size, data);
    if (!e->m || e->m->source_case != MERX__V1__LOAD_MODEL_REQUEST__SOURCE_PATH) {
        if (e->m) merx__v1__load_model_request__free_unpacked(e->m, NULL);
        free(e);
        mx_log(MX_LOG_ERROR, "model", "what is remembered of \"%.60s\" cannot be read: it is left out", key);
        return MX_OK;
    }
    while (*at) at = &(*at)->next;
    *at = e;
    return MX_OK;
}

/* path "": it is not to be served. */
static mx_status put(mx_remember *r, const char *name, const char *path, const char *adapter_of, mx_error *err)
{
    Merx__V1__LoadModelRequest m = MERX__V1__LOAD_MODEL_REQUEST__INIT;
    uint8_t bytes[4096];
    m.name = (char *)(uintptr_t)name;
    m.source_case = MERX__V1__LOAD_MODEL_REQUEST__SOURCE_PATH;
    m.path = (char *)(uintptr_t)path;
    m.adapter_of = (char *)(uintptr_t)adapter_of;
    if (merx__v1__load_model_request__get_packed_size(&m) > sizeof bytes) return mx_fail(err, MX_ERR_ARG, "path: longer than %zu bytes", sizeof bytes - 256);
    size_t n = merx__v1__load_model_request__pack(&m, bytes);
    return mx_store_put_document(r->store, "model", name, bytes, n, err);
}

typedef struct gone { mx_remember *r; const char *base; } gone;

/* Adapters go with their base. */
static mx_status forget_adapter(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    const gone *g = ctx;
    Merx__V1__LoadModelRequest *m = merx__v1__load_model_request__unpack(NULL, size, data);
    bool its = m && m->source_case == MERX__V1__LOAD_MODEL_REQUEST__SOURCE_PATH && !strcmp(m->adapter_of, g->base);
    mx_status st = its ? put(g->r, key, "", "", err) : MX_OK;
    if (m) merx__v1__load_model_request__free_unpacked(m, NULL);
    return st;
}

static mx_status write_down(mx_remember *r, const char *name, const char *path, const char *adapter_of, mx_error *err)
{
    gone g = {r, name};
    pthread_mutex_lock(&r->lock);
    mx_status st = mx_store_begin(r->store, err);
    if (!st) st = put(r, name, path, adapter_of, err);
    if (!st && !*path) st = mx_store_each_document(r->store, "model", forget_adapter, &g, err);
    if (!st) st = mx_store_commit(r->store, err);
    if (st) mx_store_rollback(r->store);
    pthread_mutex_unlock(&r->lock);
    return st;
}

static mx_status load(mx_app *app, const char *name, const char *path, const char *adapter_of, mx_loaded *out, mx_error *err)
{
    mx_error why = {0};
    mx_remember *r = app->remember;
    MX_TRY(r->load(app, name, path, adapter_of, out, err));
    mx_status st = write_down(r, name, path, adapter_of, &why);
    return st ? mx_fail(err, st, "%s serves, but a restart would not know it: %s", name, why.text) : MX_OK;
}

static mx_status unload(mx_app *app, const char *name, uint32_t drain_ms, mx_error *err)
{
    mx_error why = {0};
    mx_remember *r = app->remember;
    MX_TRY(r->unload(app, name, drain_ms, err));
    mx_status st = write_down(r, name, "", "", &why);
    return st ? mx_fail(err, st, "%s has gone, but a restart would serve it again: %s", name, why.text) : MX_OK;
}

mx_status mx_remember_open(mx_app *app, const char *file, mx_error *err)
{
    mx_remember *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "the memory of models");
    pthread_mutex_init(&r->lock, NULL);
    mx_status st = mx_store_open(&r->store, file, err);
    if (!st) st = mx_store_each_document(r->store, "model", take, r, err);
    if (st) {
        mx_remember_close(r);
        return st;
    }
    r->load = app->load, r->unload = app->unload;
    app->remember = r, app->load = load, app->unload = unload;
    return MX_OK;
}

void mx_remember_close(mx_remember *r)
{
    if (!r) return;
    for (memory *e = r->list, *next; e; e = next) {
        next = e->next;
        merx__v1__load_model_request__free_unpacked(e->m, NULL);
        free(e);
    }
    mx_store_close(r->store);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

static memory *find(const mx_app *app, const char *name)
{
    for (memory *e = app->remember ? app->remember->list : NULL; e; e = e->next)
        if (!strcmp(e->m->name, name) && !*e->m->adapter_of) return e;
    return NULL;
}

mx_status mx_remember_load(mx_app *app, const char *spec, const mx_generator_options *opt, mx_error *err)
{
    char name[64], last[4096 + 64];
    const char *path;
    mx_error why = {0};
    MX_TRY(mx_app_split_spec(spec, name, sizeof name, &path, err));
    memory *e = find(app, name);
    if (!e) return mx_app_load(app, spec, opt, err);
    e->done = true;
    if (!*e->m->path) {
        mx_log(MX_LOG_WARN, "model", "%s was unloaded before the restart: %s is not served; load it, or leave out --models-state", name, path);
        return MX_OK;
    }
    snprintf(last, sizeof last, "%s=%s", name, e->m->path);
    if (!mx_app_load(app, last, opt, &why)) {
        if (strcmp(path, e->m->path) != 0) mx_log(MX_LOG_INFO, "model", "%s: from %s, as before the restart, and not from %s", name, e->m->path, path);
        return MX_OK;
    }
    mx_log(MX_LOG_ERROR, "model", "%s: %s, as before the restart, cannot be served: %s; %s is instead", name, e->m->path, why.text, path);
    return mx_app_load(app, spec, opt, err);
}

/* An adapter that is given at the start, and was unloaded, goes again. */
static void restore_one(mx_app *app, const memory *e)
{
    mx_error err = {0};
    mx_loaded out;
    const Merx__V1__LoadModelRequest *m = e->m;
    if (!*m->path) {
        if (!app->remember->unload(app, m->name, 0, &err)) mx_log(MX_LOG_WARN, "model", "%s was unloaded before the restart, and has gone again", m->name);
    } else if (app->remember->load(app, m->name, m->path, m->adapter_of, &out, &err)) {
        mx_log(MX_LOG_ERROR, "model", "%s: %s, loaded before the restart, cannot be served: %s", m->name, m->path, err.text);
    } else {
        mx_log(MX_LOG_INFO, "model", "%s: %s serves again, as before the restart", m->name, m->path);
    }
}

void mx_remember_restore(mx_app *app)
{
    if (!app->remember) return;
    for (int adapters = 0; adapters < 2; adapters++)       /* after what they stand beside */
        for (memory *e = app->remember->list; e; e = e->next) {
            if (e->done || (*e->m->adapter_of != 0) != adapters) continue;
            e->done = true;
            restore_one(app, e);
        }
}
