/* http.c - /metrics, /healthz and /readyz over libmicrohttpd.
 *
 * One thread answers, and one takes the pulse of the device's lanes ten times in
 * stall_ms, so that a probe need not come twice to learn that nothing moves. */
#include "server/http.h"
#include "server/services.h"
#include "server/spans.h"

#include "runtime/log.h"

#include <dirent.h>
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS = 64, IDLE_SECONDS = 10, LANE_NAME = 160 };

struct mx_http {
    mx_app    *app;
    mx_server *server;
    struct MHD_Daemon *daemon;
    int        port;
    uint32_t   stall_ms;
    pthread_t  thread;
    pthread_mutex_t lock;
    pthread_cond_t  news;
    bool       started, stop;
    double     began;
    uint64_t   steps, since_ns;     /* the watcher's: since when steps are what they are, with jobs there */
    atomic_uint_least64_t stuck_ms; /* 0: lives                                              */
};

/* ---- the pulse --------------------------------------------------------------------------- */

/* What the app serves at a moment: its versions are held until it is given back. */
typedef struct served {
    const mx_app  *app;
    mx_served_view list[MX_MODELS];
    int            n;
} served;

static void served_take(served *s, const mx_app *app)
{
    s->app = app;
    s->n = mx_registry_list(app->registry, s->list);
}

static void served_free(served *s)
{
    mx_registry_list_free(s->list, s->n);
}

/* Lane i of it, from 0 on; false: there are no more. */
static bool lane_at(const served *s, int i, char *name, size_t size, mx_lane_stats *out)
{
    mx_embedder_info e;
    mx_generator_info g;
    *name = 0;                         /* a version that loads has none yet */
    if (i < s->n && s->list[i].generator) {
        mx_generator_info_get(s->list[i].generator, &g);
        snprintf(name, size, "%s", g.lane);
    } else if (i < s->n && s->list[i].encoder) {
        mx_embedder_info_get(s->list[i].encoder, &e);
        snprintf(name, size, "%s", e.lane);
    } else if (i == s->n && s->app->training) {
        snprintf(name, size, "training");
    } else if (i >= s->n) {
        return false;
    }
    if (!mx_scheduler_stats(s->app->scheduler, name, out)) *out = (mx_lane_stats){0};
    return true;
}

/* A step is a turn, or a job given back between turns. */
static void take_pulse(mx_http *h)
{
    uint64_t now = mx_now_ns(&mx_clock_monotonic), steps = 0, jobs = 0;
    char name[LANE_NAME];
    mx_lane_stats s;
    served all;
    served_take(&all, h->app);
    for (int i = 0; lane_at(&all, i, name, sizeof name, &s); i++) {
        steps += s.turns + s.done;
        jobs += s.waiting + s.running;
    }
    served_free(&all);
    if (steps != h->steps || !jobs || !h->since_ns) {
        h->steps = steps;
        h->since_ns = now;
    }
    uint64_t still_ms = (now - h->since_ns) / 1000000u;
    bool stuck = still_ms >= h->stall_ms;
    if (stuck && !atomic_load(&h->stuck_ms))
        mx_log(MX_LOG_ERROR, "health", "%llu jobs, no step for %llu ms", (unsigned long long)jobs, (unsigned long long)still_ms);
    if (!stuck && atomic_load(&h->stuck_ms)) mx_log(MX_LOG_INFO, "health", "the device goes on");
    atomic_store(&h->stuck_ms, stuck ? still_ms : 0);
}

static void *watch(void *arg)
{
    mx_http *h = arg;
    long nap_ms = h->stall_ms / 10 ? (long)(h->stall_ms / 10) : 1;
    pthread_mutex_lock(&h->lock);
    while (!h->stop) {
        struct timespec until;
        take_pulse(h);
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += nap_ms / 1000;
        until.tv_nsec += nap_ms % 1000 * 1000000;
        if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&h->news, &h->lock, &until);
    }
    pthread_mutex_unlock(&h->lock);
    return NULL;
}

/* ---- what is told -------------------------------------------------------------------------- */

static void put_family(FILE *out, const char *name, const char *kind, const char *help)
{
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind);
}

static void put_lanes(FILE *out, const served *all)
{
    static const struct { const char *name, *kind, *help; } family[] = {
        {"merx_lane_waiting", "gauge", "Jobs that have had no turn yet."},
        {"merx_lane_running", "gauge", "Jobs between their first and last turn."},
        {"merx_lane_turns_total", "counter", "Turns."},
        {"merx_lane_rows_total", "counter", "Rows computed."},
        {"merx_lane_jobs_total", "counter", "Jobs given back, for whatever reason."},
        {"merx_lane_refused_total", "counter", "Jobs refused because the queue was full."},
        {"merx_lane_busy_seconds_total", "counter", "Time in turns."},
    };
    for (size_t k = 0; k < sizeof family / sizeof *family; k++) {
        put_family(out, family[k].name, family[k].kind, family[k].help);
        mx_lane_stats s;
        char name[LANE_NAME], lane[2 * LANE_NAME];
        for (int i = 0; lane_at(all, i, name, sizeof name, &s); i++) {
            if (!*name) continue;
            const double value[] = {s.waiting, s.running, (double)s.turns, (double)s.rows, (double)s.done, (double)s.refused,
                                    (double)s.busy_ns * 1e-9};
            mx_metrics_label(lane, sizeof lane, "lane", name);
            fprintf(out, "%s{%s} %.15g\n", family[k].name, lane, value[k]);
        }
    }
}

static void put_models(FILE *out, const served *all)
{
    static const char *const name[] = {"merx_model_state", "merx_model_references"};
    put_family(out, name[0], "gauge", "Versions of models: 0 loading, 1 serving, 2 draining.");
    for (int k = 0; k < 2; k++) {
        if (k) put_family(out, name[1], "gauge", "Requests that hold a version.");
        for (int i = 0; i < all->n; i++) {
            char label[LANE_NAME];
            const mx_served_view *v = &all->list[i];
            mx_metrics_label(label, sizeof label, "model", v->served->name);
            fprintf(out, "%s{%s,version=\"%d\"} %d\n", name[k], label, v->served->version, k ? v->references : (int)v->state);
        }
    }
}

static void put_devices(FILE *out, mx_app *app)
{
    static const struct { const char *name, *kind, *help; } family[] = {
        {"merx_device_busy_seconds_total", "counter", "Time in turns of the device's lanes."},
        {"merx_device_turns_total", "counter", "Turns of the device's lanes."},
        {"merx_device_rows_total", "counter", "Rows computed."},
        {"merx_device_waiting", "gauge", "Jobs of the device's lanes that have had no turn yet."},
        {"merx_device_running", "gauge", "Jobs of the device's lanes between their first and last turn."},
        {"merx_device_memory_bytes", "gauge", "Memory of the device."},
        {"merx_device_held_bytes", "gauge", "Memory that weights, caches and scratch hold."},
    };
    for (size_t k = 0; k < sizeof family / sizeof *family; k++) {
        put_family(out, family[k].name, family[k].kind, family[k].help);
        for (int i = 0; i < app->n_devices; i++) {
            const mx_device *d = &app->devices[i];
            mx_lane_stats s;
            char name[160], as[100];
            mx_scheduler_device_stats(app->scheduler, i, &s);
            const double value[] = {(double)s.busy_ns * 1e-9, (double)s.turns, (double)s.rows, s.waiting, s.running, (double)d->memory, (double)mx_device_held(d)};
            snprintf(as, sizeof as, "%s:%d", d->kind == MX_CPU ? "cpu" : "cuda", d->index);
            mx_metrics_label(name, sizeof name, "device", as);
            fprintf(out, "%s{%s} %.15g\n", family[k].name, name, value[k]);
        }
    }
}

static void put_calls(FILE *out, const mx_server *s)
{
    const char *method;
    int code;
    uint64_t n;
    put_family(out, "merx_rpc_total", "counter", "Calls that have ended, by their code.");
    for (int i = 0; mx_server_ended(s, i, &method, &code, &n); i++)
        fprintf(out, "merx_rpc_total{method=\"%s\",code=\"%s\"} %llu\n", method, mx_rpc_code_name(code), (unsigned long long)n);
    put_family(out, "merx_rpc_inflight", "gauge", "Calls that a shutdown would wait for.");
    fprintf(out, "merx_rpc_inflight %d\n", mx_server_inflight(s));
    const mx_spans *spans = mx_server_spans(s);
    if (!spans) return;
    put_family(out, "merx_spans_written_total", "counter", "Calls told as spans.");
    fprintf(out, "merx_spans_written_total %llu\n", (unsigned long long)mx_spans_written(spans));
    put_family(out, "merx_spans_dropped_total", "counter", "Calls whose spans could not be kept or written.");
    fprintf(out, "merx_spans_dropped_total %llu\n", (unsigned long long)mx_spans_dropped(spans));
}

static int open_files(void)
{
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return n > 3 ? n - 3 : 0;                                  /* ".", "..", and this one */
}

/* The names every Prometheus client library has. */
static void put_process(FILE *out, const mx_http *h)
{
    unsigned long long pages = 0;
    struct rusage u;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%*s %llu", &pages) != 1) pages = 0;
    if (f) fclose(f);
    getrusage(RUSAGE_SELF, &u);
    put_family(out, "process_resident_memory_bytes", "gauge", "Resident memory.");
    fprintf(out, "process_resident_memory_bytes %llu\n", pages * (unsigned long long)sysconf(_SC_PAGESIZE));
    put_family(out, "process_cpu_seconds_total", "counter", "User and system time.");
    fprintf(out, "process_cpu_seconds_total %.6f\n", (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
            (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6);
    put_family(out, "process_open_fds", "gauge", "Open files and sockets.");
    fprintf(out, "process_open_fds %d\n", open_files());
    put_family(out, "process_start_time_seconds", "gauge", "When the server started, since 1970.");
    fprintf(out, "process_start_time_seconds %.3f\n", h->began);
    put_family(out, "merx_ready", "gauge", "1 while requests are taken.");
    fprintf(out, "merx_ready %d\n", atomic_load(&h->app->state) == MX_APP_SERVING);
}

static char *render(const mx_http *h, size_t *len)
{
    char *text = NULL, *registered;
    size_t n = 0;
    FILE *out = open_memstream(&text, len);
    if (!out) return NULL;
    served all;
    served_take(&all, h->app);
    for (int i = 0; i < all.n; i++)
        if (all.list[i].state == MX_SERVED_SERVING && all.list[i].generator) mx_generator_gauges(all.list[i].generator);
    registered = mx_metrics_render(h->app->metrics, &n);
    if (registered) fwrite(registered, 1, n, out);
    free(registered);
    put_lanes(out, &all);
    put_models(out, &all);
    put_devices(out, h->app);
    served_free(&all);
    if (h->server) put_calls(out, h->server);
    put_process(out, h);
    bool failed = ferror(out) != 0;
    if (!fclose(out) && !failed) return text;
    free(text);
    return NULL;
}

static char *health(mx_http *h, unsigned *status)
{
    unsigned long long ms = atomic_load(&h->stuck_ms);
    char *text = NULL;
    if (!ms) return strdup("ok\n");
    *status = MHD_HTTP_SERVICE_UNAVAILABLE;
    return asprintf(&text, "jobs wait, and none has moved for %llu ms\n", ms) < 0 ? NULL : text;
}

static char *ready(mx_http *h, unsigned *status)
{
    static const char *const says[] = {[MX_APP_STARTING] = "starting\n", [MX_APP_SERVING] = "ok\n", [MX_APP_DRAINING] = "draining\n"};
    int state = atomic_load(&h->app->state);
    if (state != MX_APP_SERVING) *status = MHD_HTTP_SERVICE_UNAVAILABLE;
    return strdup(says[state]);
}

/* ---- HTTP ------------------------------------------------------------------------------------ */

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, char *text, size_t len, const char *type)
{
    if (!text) return MHD_NO;
    struct MHD_Response *r = MHD_create_response_from_buffer(len, text, MHD_RESPMEM_MUST_FREE);
    if (!r) {
        free(text);
        return MHD_NO;
    }
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result ok = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return ok;
}

static enum MHD_Result on_request(void *user, struct MHD_Connection *c, const char *url, const char *method, const char *version,
                                  const char *upload, size_t *upload_len, void **state)
{
    mx_http *h = user;
    unsigned status = MHD_HTTP_OK;
    size_t len = 0;
    (void)version;
    (void)upload;
    (void)upload_len;
    (void)state;
    char *text;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        status = MHD_HTTP_METHOD_NOT_ALLOWED;
        text = strdup("GET and HEAD only\n");
    } else if (!strcmp(url, "/metrics")) {
        text = render(h, &len);
        return answer(c, status, text, len, "text/plain; version=0.0.4; charset=utf-8");
    } else if (!strcmp(url, "/healthz")) {
        text = health(h, &status);
    } else if (!strcmp(url, "/readyz")) {
        text = ready(h, &status);
    } else {
        status = MHD_HTTP_NOT_FOUND;
        text = strdup("/metrics, /healthz and /readyz are here\n");
    }
    return answer(c, status, text, text ? strlen(text) : 0, "text/plain; charset=utf-8");
}

static mx_status bind_to(const char *listen_at, int *out, int *port, mx_error *err)
{
    char host[256];
    struct sockaddr_storage at;
    socklen_t len = sizeof at;
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *found = NULL;
    snprintf(host, sizeof host, "%s", listen_at);
    char *colon = strrchr(host, ':'), *name = host;
    if (!colon) return mx_fail(err, MX_ERR_ARG, "http-listen %s: HOST:PORT is needed", listen_at);
    *colon = 0;
    if (name[0] == '[' && colon > host && colon[-1] == ']') colon[-1] = 0, name++;
    int e = getaddrinfo(*name ? name : NULL, colon + 1, &hints, &found), on = 1;
    if (e) return mx_fail(err, MX_ERR_ARG, "http-listen %s: %s", listen_at, gai_strerror(e));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    bool ok = fd >= 0 && !bind(fd, found->ai_addr, found->ai_addrlen) && !listen(fd, 128) &&
              !getsockname(fd, (struct sockaddr *)&at, &len);
    freeaddrinfo(found);
    if (!ok) {
        mx_fail(err, MX_ERR_IO, "http-listen %s: %s", listen_at, strerror(errno));
        if (fd >= 0) close(fd);
        return MX_ERR_IO;
    }
    *port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&at)->sin6_port : ((struct sockaddr_in *)(void *)&at)->sin_port);
    *out = fd;
    return MX_OK;
}

static double wall_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

mx_status mx_http_open(mx_http **out, mx_app *app, mx_server *server, const mx_http_options *o, mx_error *err)
{
    int fd = -1;
    pthread_condattr_t attr;
    *out = NULL;
    mx_http *h = calloc(1, sizeof *h);
    if (!h) return mx_fail(err, MX_ERR_NO_MEMORY, "http");
    h->app = app;
    h->server = server;
    h->stall_ms = o->stall_ms ? o->stall_ms : 1;
    h->began = wall_clock();
    pthread_mutex_init(&h->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&h->news, &attr);
    pthread_condattr_destroy(&attr);
    mx_status st = bind_to(o->listen, &fd, &h->port, err);
    if (!st) {
        h->daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, on_request, h, MHD_OPTION_LISTEN_SOCKET, fd,
                                     MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT,
                                     o->idle_s ? (unsigned)o->idle_s : (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)16384, MHD_OPTION_END);
        if (!h->daemon) {
            close(fd);
            st = mx_fail(err, MX_ERR_NO_MEMORY, "the HTTP server could not be started");
        }
    }
    if (!st && pthread_create(&h->thread, NULL, watch, h)) st = mx_fail(err, MX_ERR_NO_MEMORY, "a thread could not start");
    if (st) {
        mx_http_close(h);
        return st;
    }
    h->started = true;
    *out = h;
    return MX_OK;
}

int mx_http_port(const mx_http *h)
{
    return h->port;
}

void mx_http_close(mx_http *h)
{
    if (!h) return;
    if (h->daemon) MHD_stop_daemon(h->daemon);
    pthread_mutex_lock(&h->lock);
    h->stop = true;
    pthread_cond_signal(&h->news);
    pthread_mutex_unlock(&h->lock);
    if (h->started) pthread_join(h->thread, NULL);
    pthread_cond_destroy(&h->news);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
