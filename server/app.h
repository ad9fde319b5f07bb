/* app.h - everything a running program has: devices, scheduler, models.
 *
 * Made by main.c, passed to every service; nothing here is global.  Models are
 * opened before the server starts and closed after the scheduler. */
#ifndef MX_APP_H
#define MX_APP_H

#include "models/embed.h"
#include "models/generate.h"
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

enum { MX_APP_MODELS = 64 };      /* of each kind, at most */

typedef struct mx_app mx_app;
struct mx_app {
    mx_config     *config;
    mx_topology   *topology;
    mx_plan        plan;          /* what runs where; empty in tests */
    bool           bound;         /* and threads are bound to it     */
    mx_device     *devices;
    int            n_devices;
    int            device;        /* which of them models run on */
    mx_scheduler  *scheduler;
    mx_metrics    *metrics;
    mx_generator **models;        /* the first is the default */
    atomic_int     n_models;      /* grows while the server runs: read it once */
    mx_embedder  **encoders;      /* the first is the default */
    atomic_int     n_encoders;
    atomic_int     state;         /* mx_app_state             */
    mx_generator_options defaults;   /* of models that are loaded later */
    pthread_mutex_t loading;      /* one model at a time      */
    struct mx_training *training; /* NULL: off                */
    struct mx_experiments *experiments;
    struct mx_pricing *pricing;
    struct mx_profiles *profiles;
    struct mx_explainer *explainer;
    /* mx_app_load with the defaults; services call it through here. */
    mx_status    (*load)(mx_app *app, const char *spec, mx_error *err);
};

/* Devices, scheduler and metrics from the config (NULL: defaults); no models yet. */
mx_status mx_app_open(mx_app *app, mx_config *config, mx_error *err);
/* The same for a server: --isolate counts, the CPU's compute threads give way to those that answer. */
mx_status mx_app_open_serving(mx_app *app, mx_config *config, mx_error *err);
/* spec: "name=path" or "path" (the name is then the folder's or file's).  A BERT's folder becomes an encoder.
 * While a server runs only one thread at a time may load (app->loading). */
mx_status mx_app_load(mx_app *app, const char *spec, const mx_generator_options *opt, mx_error *err);
/* Give running work grace_ms, then close everything in order.  A zeroed app is fine. */
void      mx_app_close(mx_app *app, uint32_t grace_ms);

/* name "" or NULL: the first model.  NULL: no such model. */
mx_generator *mx_app_model(const mx_app *app, const char *name);

#endif
