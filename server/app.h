/* app.h - everything a running program has: devices, scheduler, models.
 *
 * Made by main.c, passed to every service; nothing here is global.  Models are
 * opened before the server starts and closed after the scheduler. */
#ifndef MX_APP_H
#define MX_APP_H

#include "server/registry.h"

#include "runtime/config.h"
#include "runtime/topology.h"

#include <pthread.h>
#include <stdatomic.h>

typedef enum mx_app_state { MX_APP_STARTING, MX_APP_SERVING, MX_APP_DRAINING } mx_app_state;

struct mx_training;
struct mx_experiments;
struct mx_pricing;
struct mx_profiles;
struct mx_explainer;
struct mx_remember;

typedef struct mx_app mx_app;

typedef struct mx_loaded {
    int32_t version, replaced;    /* of an adapter: 0 */
} mx_loaded;

struct mx_app {
    mx_config     *config;
    mx_topology   *topology;
    mx_plan        plan;          /* what runs where; empty in tests */
    bool           bound;         /* and threads are bound to it     */
    bool           serving;       /* models are tried out before anybody asks them */
    mx_device     *devices;
    int            n_devices;
    int            device;        /* which of them models run on */
    mx_scheduler  *scheduler;
    mx_metrics    *metrics;
    mx_registry   *registry;      /* the models                */
    atomic_int     state;         /* mx_app_state             */
    mx_generator_options defaults;   /* of models that are loaded later */
    pthread_mutex_t loading;      /* one model or adapter comes or goes at a time */
    struct mx_training *training; /* NULL: off                */
    struct mx_experiments *experiments;
    struct mx_pricing *pricing;
    struct mx_profiles *profiles;
    struct mx_explainer *explainer;
    struct mx_remember *remember; /* NULL: what is loaded is forgotten at a restart */
    /* While it serves; services call these through here.  load: a model, or with adapter_of not "" an adapter
     * beside that one, or a graph network of the profiles; a name that is served already is replaced.  Errors: those of opening and of
     * mx_registry_begin; nothing has changed then.  unload: mx_registry_unload, or of an adapter. */
    mx_status    (*load)(mx_app *app, const char *name, const char *path, const char *adapter_of, mx_loaded *out, mx_error *err);
    mx_status    (*unload)(mx_app *app, const char *name, uint32_t drain_ms, mx_error *err);
};

/* What calls may come to hold: MX_CALL_BYTES each, with its message, as measured; and messages on their way. */
enum { MX_CALL_BYTES = 32 << 10, MX_MESSAGES = 8 };
static inline size_t mx_calls_bytes(int32_t max_calls, size_t max_message_bytes) { return (size_t)max_calls * MX_CALL_BYTES + MX_MESSAGES * max_message_bytes; }

/* Devices, scheduler and metrics from the config (NULL: defaults); no models yet. */
mx_status mx_app_open(mx_app *app, mx_config *config, mx_error *err);
/* The same for a server: --isolate counts, the CPU's compute threads give way to those that answer. */
mx_status mx_app_open_serving(mx_app *app, mx_config *config, mx_error *err);
/* Before it serves.  spec: "name=path" or "path" (the name is then the folder's or file's).  A BERT's folder
 * becomes an encoder.  A name twice is MX_ERR_ARG. */
mx_status mx_app_load(mx_app *app, const char *spec, const mx_generator_options *opt, mx_error *err);
/* Before it serves: the network that the profiles were opened with, if any, among the models. */
mx_status mx_app_list_network(mx_app *app, const char *folder, mx_error *err);
/* Its name[size] and path.  Errors: MX_ERR_ARG. */
mx_status mx_app_split_spec(const char *spec, char *name, size_t size, const char **path, mx_error *err);
/* Give running work grace_ms, then close everything in order.  A zeroed app is fine. */
void      mx_app_close(mx_app *app, uint32_t grace_ms);

/* For programs whose models do not change: the first generator, the first encoder; NULL: there is none. */
mx_generator *mx_app_model(const mx_app *app);
mx_embedder  *mx_app_encoder(const mx_app *app);

#endif
