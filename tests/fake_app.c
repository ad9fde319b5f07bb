/* fake_app.c - an app with fake models, for tests of the services. */
#include "tests/fake_app.h"

#include <string.h>

/* Put in as if it had been loaded. */
static mx_status serve(mx_fake_app *f, mx_generator *g, mx_error *err)
{
    static const mx_footprint none;
    mx_generator_info info;
    mx_served *s;
    mx_generator_info_get(g, &info);
    MX_TRY(mx_registry_begin(f->app.registry, info.name, MX_SERVED_GENERATOR, false, &none, &s, err));
    mx_registry_commit(s, g, NULL);
    return MX_OK;
}

mx_status mx_fake_app_open(mx_fake_app *f, const mx_fake_options *o, mx_error *err)
{
    mx_device_options cpu = {.cpu_threads = 1};
    memset(f, 0, sizeof *f);
    MX_TRY(mx_devices_open(&f->app.devices, &f->app.n_devices, &cpu, err));
    MX_TRY(mx_metrics_open(&f->app.metrics, err));
    MX_TRY(mx_scheduler_open(&f->app.scheduler, f->app.devices, 1, NULL, err));
    MX_TRY(mx_fake_open(&f->models[0], "fake", f->app.scheduler, o, err));
    mx_fake_options plain = *o;
    plain.chat = false;
    MX_TRY(mx_fake_open(&f->models[1], "plain", f->app.scheduler, &plain, err));
    MX_TRY(mx_registry_open(&f->app.registry, f->app.scheduler, f->app.metrics, 0, err));
    for (int i = 0; i < 2; i++) MX_TRY(serve(f, f->models[i], err));
    atomic_store(&f->app.state, MX_APP_SERVING);
    return MX_OK;
}

void mx_fake_app_close(mx_fake_app *f)
{
    mx_registry_stop(f->app.registry);
    if (f->app.scheduler) mx_scheduler_close(f->app.scheduler, 0);
    mx_registry_close(f->app.registry);
    mx_devices_close(f->app.devices, f->app.n_devices);
    mx_metrics_close(f->app.metrics);
    memset(f, 0, sizeof *f);
}
