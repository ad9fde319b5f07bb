/* fake_app.c - an app with fake models, for tests of the services. */
#include "tests/fake_app.h"

#include <string.h>

mx_generator *mx_app_model(const mx_app *app, const char *name)
{
    for (int i = 0; i < app->n_models; i++) {
        mx_generator_info info;
        mx_generator_info_get(app->models[i], &info);
        if (!name || !*name || strcmp(name, info.name) == 0) return app->models[i];
    }
    return NULL;
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
    f->app.models = f->models;
    f->app.n_models = 2;
    atomic_store(&f->app.state, MX_APP_SERVING);
    return MX_OK;
}

void mx_fake_app_close(mx_fake_app *f)
{
    if (f->app.scheduler) mx_scheduler_close(f->app.scheduler, 0);
    for (int i = 0; i < 2; i++) mx_generator_close(f->models[i]);
    mx_devices_close(f->app.devices, f->app.n_devices);
    mx_metrics_close(f->app.metrics);
    memset(f, 0, sizeof *f);
}
