/* health.c - grpc.health.v1: what the app says of itself, per service and for all ("").
 *
 * The services stand and fall together: all of them serve when the app does, but
 * those whose models have no device left (scheduler.h, lost devices) do not.
 * "models/NAME" is a model: it serves while a version of it takes requests.
 * Health and reflection answer always, so they are SERVING while anyone can ask. */
#include "server/services.h"

#include "proto/health.pb-c.h"

#include <stdlib.h>
#include <string.h>

typedef Grpc__Health__V1__HealthCheckResponse reply_message;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving;

#define SERVING         GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
#define NOT_SERVING     GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING
#define SERVICE_UNKNOWN GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVICE_UNKNOWN

static serving state_of(mx_app *app, const char *service)
{
    if (!strncmp(service, "models/", 7)) {
        int is = mx_registry_health(app->registry, service + 7);
        if (is < 0) return SERVICE_UNKNOWN;
        return is && atomic_load(&app->state) == MX_APP_SERVING ? SERVING : NOT_SERVING;
    }
    if (*service && !mx_service_known(service)) return SERVICE_UNKNOWN;
    if (strncmp(service, "grpc.", 5) == 0) return SERVING;
    static const struct { const char *service, *lanes; } needs[] = {
        {"", ""}, {"merx.v1.Generation", ".generate"}, {"merx.v1.Embeddings", ".embed"},
    };
    if (atomic_load(&app->state) != MX_APP_SERVING) return NOT_SERVING;
    for (size_t i = 0; app->scheduler && i < sizeof needs / sizeof *needs; i++)
        if (!strcmp(service, needs[i].service) && !mx_scheduler_serves(app->scheduler, needs[i].lanes)) return NOT_SERVING;
    return SERVING;
}

static mx_status read_service(mx_arena *a, const uint8_t *msg, size_t len, const char **service, mx_error *err)
{
    ProtobufCMessage *m;
    MX_TRY(mx_message_decode(a, &grpc__health__v1__health_check_request__descriptor, msg, len, &m, err));
    *service = ((Grpc__Health__V1__HealthCheckRequest *)m)->service;
    return MX_OK;
}

static bool send_state(mx_call *call, serving state)
{
    reply_message m = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    m.status = state;
    return mx_call_send(call, &m.base, false);
}

MX_METHOD(mx_health_check_begin)
{
    const char *service;
    MX_TRY(read_service(scratch, msg, len, &service, err));
    serving state = state_of(app, service);
    if (state == SERVICE_UNKNOWN)
        return mx_fail(err, MX_ERR_NOT_FOUND, "service: \"%.100s\" is not served here", service);
    send_state(call, state);
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}

/* ---- Watch ------------------------------------------------------------------------ */

typedef struct watch {
    mx_app *app;
    bool sent, cancelled;
    serving last;
    char service[];
} watch;

static void watch_pump(mx_call *call, void *user, mx_arena *scratch)
{
    watch *w = user;
    (void)scratch;
    if (w->cancelled) {
        mx_call_finish(call, MX_ERR_CANCELLED, "cancelled");
        return;
    }
    serving state = state_of(w->app, w->service);
    if (w->sent && state == w->last) return;
    w->sent = true;
    w->last = state;
    send_state(call, state);
}

static void watch_cancelled(mx_call *call, void *user)
{
    ((watch *)user)->cancelled = true;
    mx_call_wake(call);
}

MX_METHOD(mx_health_watch_begin)
{
    static const mx_call_handler handler = {.pump = watch_pump, .cancelled = watch_cancelled, .closed = free};
    const char *service;
    MX_TRY(read_service(scratch, msg, len, &service, err));
    size_t n = strlen(service) + 1;
    watch *w = calloc(1, sizeof *w + n);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the watch");
    w->app = app;
    memcpy(w->service, service, n);
    mx_call_attach(call, &handler, w);
    mx_call_watch_state(call);
    watch_pump(call, w, scratch);
    return MX_OK;
}
