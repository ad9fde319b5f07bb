/* registry.c - see registry.h. */
#include "server/registry.h"

#include "runtime/clock.h"
#include "runtime/log.h"

#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct mx_registry {
    pthread_mutex_t lock;
    pthread_cond_t  news;              /* for the thread, and for those that wait for a version's end */
    pthread_t       thread;
    mx_scheduler   *sched;
    mx_metrics     *metrics;
    mx_served      *first;
    size_t          budget, scratch[2];      /* scratch: the largest yet, for a worker keeps it; [1]: encoders' */
    size_t          others;            /* of the budget: what is no model */
    uint64_t        serial;
    int             n;
    bool            started, stop;
};

const char *mx_served_state_name(mx_served_state s)
{
    static const char *const names[] = {"loading", "serving", "draining"};
    return (unsigned)s < sizeof names / sizeof *names ? names[s] : "?";
}

const char *mx_served_kind_name(mx_served_kind k)
{
    static const char *const names[] = {"generator", "encoder", "network"};
    return (unsigned)k < sizeof names / sizeof *names ? names[k] : "?";
}

/* "": a network has none. */
static void lane_of(const mx_served *s, char lane[96])
{
    mx_generator_info g;
    mx_embedder_info e;
    *lane = 0;
    if (s->generator) mx_generator_info_get(s->generator, &g), snprintf(lane, 96, "%s", g.lane);
    if (s->encoder) mx_embedder_info_get(s->encoder, &e), snprintf(lane, 96, "%s", e.lane);
}

/* ---- the thread that gives back what nobody holds ------------------------------------------- */

static void unlink_it(mx_registry *r, mx_served *s)
{
    mx_served **at = &r->first;
    while (*at != s) at = &(*at)->next;
    *at = s->next;
    r->n--;
    free(s->path);
    free(s);
    pthread_cond_broadcast(&r->news);
}

/* With the lock held, so that no version of the name begins meanwhile: those share the series. */
static void forget_name(mx_registry *r, const mx_served *last)
{
    char label[160];
    for (const mx_served *s = r->first; s; s = s->next)
        if (s != last && !strcmp(s->name, last->name)) return;
    mx_metrics_label(label, sizeof label, "model", last->name);
    if (r->metrics) mx_metrics_remove(r->metrics, label);
}

static mx_served *over(const mx_registry *r)
{
    for (mx_served *s = r->first; s; s = s->next)
        if (s->state == MX_SERVED_DRAINING && !s->references) return s;
    return NULL;
}

static void *reap(void *arg)
{
    mx_registry *r = arg;
    pthread_mutex_lock(&r->lock);
    while (!r->stop) {
        mx_served *s = over(r);
        if (!s) {
            pthread_cond_wait(&r->news, &r->lock);
            continue;
        }
        s->references = -1;            /* nobody finds it, and it is this thread's */
        pthread_mutex_unlock(&r->lock);
        char lane[96];
        lane_of(s, lane);
        if (*lane) mx_scheduler_lane_close(r->sched, lane);
        mx_generator_close(s->generator);
        mx_embedder_close(s->encoder);
#ifdef __GLIBC__
        malloc_trim(0);                /* tokenizers and tables lie in small pieces */
#endif
        mx_log(MX_LOG_INFO, "model", "%s: version %d has gone, %.0f MiB are free again", s->name, s->version,
               (double)(s->footprint.weights + s->footprint.kv) / (1 << 20));
        pthread_mutex_lock(&r->lock);
        forget_name(r, s);
        unlink_it(r, s);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

mx_status mx_registry_open(mx_registry **out, mx_scheduler *sched, mx_metrics *metrics, size_t budget, mx_error *err)
{
    pthread_condattr_t attr;
    mx_registry *r = *out = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "the list of models");
    pthread_mutex_init(&r->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&r->news, &attr);
    pthread_condattr_destroy(&attr);
    r->sched = sched;
    r->metrics = metrics;
    r->budget = budget;
    r->started = !pthread_create(&r->thread, NULL, reap, r);
    if (r->started) return MX_OK;
    mx_registry_close(r);
    *out = NULL;
    return mx_fail(err, MX_ERR_NO_MEMORY, "the thread of the list of models");
}

void mx_registry_stop(mx_registry *r)
{
    if (!r || !r->started) return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->thread, NULL);
    r->started = false;
}

void mx_registry_close(mx_registry *r)
{
    if (!r) return;
    mx_registry_stop(r);
    for (mx_served *s = r->first, *next; s; s = next) {
        next = s->next;
        mx_generator_close(s->generator);
        mx_embedder_close(s->encoder);
        free(s->path);
        free(s);
    }
    pthread_cond_destroy(&r->news);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

/* ---- requests ---------------------------------------------------------------------------- */

/* With the lock held: of this name, or of any. */
static mx_served *serving(const mx_registry *r, const char *name, mx_served_kind kind)
{
    for (mx_served *s = r->first; s; s = s->next)
        if (s->state == MX_SERVED_SERVING && s->kind == kind && (!*name || !strcmp(s->name, name))) return s;
    return NULL;
}

static mx_status find(mx_registry *r, const char *name, mx_served_kind kind, mx_served **out, mx_error *err)
{
    bool encoder = kind == MX_SERVED_ENCODER;
    pthread_mutex_lock(&r->lock);
    mx_served *s = *out = serving(r, name, kind);
    if (s) s->references++;
    bool any = s || serving(r, "", kind);
    pthread_mutex_unlock(&r->lock);
    if (s) return MX_OK;
    if (!any) return mx_fail(err, MX_ERR_STATE, "no %s is loaded", encoder ? "encoder" : "model");
    return mx_fail(err, MX_ERR_NOT_FOUND, encoder ? "model: there is no encoder \"%.100s\"; ListModels tells which there are"
                                                  : "model: there is no \"%.100s\"; ListModels tells which there are", name);
}

mx_status mx_registry_generator(mx_registry *r, const char *name, mx_served **out, mx_error *err)
{
    return find(r, name, MX_SERVED_GENERATOR, out, err);
}

mx_status mx_registry_encoder(mx_registry *r, const char *name, mx_served **out, mx_error *err)
{
    return find(r, name, MX_SERVED_ENCODER, out, err);
}

mx_served *mx_registry_network(mx_registry *r)
{
    mx_served *found = NULL;
    pthread_mutex_lock(&r->lock);
    for (mx_served *s = r->first; s && !found; s = s->next)
        if (s->kind == MX_SERVED_NETWORK && s->state != MX_SERVED_DRAINING) found = s;
    if (found) found->references++;
    pthread_mutex_unlock(&r->lock);
    return found;
}

mx_served *mx_registry_adapter(mx_registry *r, const char *name, int32_t *id)
{
    mx_served *found = NULL;
    *id = 0;
    if (!*name) return NULL;
    pthread_mutex_lock(&r->lock);
    for (mx_served *s = r->first; s && !found; s = s->next)
        if (s->state == MX_SERVED_SERVING && s->generator && (*id = mx_generator_adapter_take(s->generator, name)) != 0) {
            s->references++;
            found = s;
        }
    pthread_mutex_unlock(&r->lock);
    return found;
}

void mx_registry_release(mx_served *s)
{
    if (!s) return;
    mx_registry *r = s->of;
    pthread_mutex_lock(&r->lock);
    if (!--s->references && s->state == MX_SERVED_DRAINING) pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->lock);
}

void mx_registry_pin(mx_served *s)
{
    pthread_mutex_lock(&s->of->lock);
    s->pinned = true;
    pthread_mutex_unlock(&s->of->lock);
}

/* ---- versions ------------------------------------------------------------------------------ */

/* With one of footprint f beside them.  Lanes of a worker share the largest scratch; encoders have their own. */
static size_t held_by(const mx_registry *r, const mx_footprint *f, mx_served_kind kind)
{
    bool encodes = kind == MX_SERVED_ENCODER;
    size_t all = f->weights + f->kv + f->host + f->loading, scratch[2] = {r->scratch[0], r->scratch[1]};
    for (const mx_served *s = r->first; s; s = s->next) {
        size_t weights = s->footprint.weights;
        mx_generator_info g;
        if (s->generator && s->references >= 0) {      /* adapters have come beside it; below 0 it is being closed */
            mx_generator_info_get(s->generator, &g);
            if (g.weight_bytes > weights) weights = g.weight_bytes;
        }
        all += weights + s->footprint.kv + s->footprint.host;
        if (s->state == MX_SERVED_LOADING) all += s->footprint.loading;
    }
    if (f->scratch > scratch[encodes]) scratch[encodes] = f->scratch;
    return all + scratch[0] + scratch[1] + r->others;
}

/* With the lock held. */
static mx_status admit(const mx_registry *r, const char *name, mx_served_kind kind, bool replace, const mx_footprint *f, int32_t *version, mx_error *err)
{
    static const mx_footprint nothing;
    const mx_served *draining = NULL;
    *version = 1;
    for (const mx_served *s = r->first; s; s = s->next) {
        if (s->state == MX_SERVED_DRAINING) draining = s;
        if (strcmp(s->name, name)) continue;
        if (s->version >= *version) *version = s->version + 1;
        if (s->state == MX_SERVED_DRAINING) continue;
        if (!replace) return mx_fail(err, MX_ERR_ARG, "model \"%s\" is given twice", name);
        if (s->state == MX_SERVED_LOADING) return mx_fail(err, MX_ERR_STATE, "model %s: version %d is being loaded", name, s->version);
        if (s->pinned) return mx_fail(err, MX_ERR_STATE, "model %s: the profiles read with it; it stays while the server runs", name);
        if (s->kind != kind)
            return mx_fail(err, MX_ERR_ARG, "model %s: it is the name of a model of another kind (%s), the new version is of kind %s", name, mx_served_kind_name(s->kind), mx_served_kind_name(kind));
    }
    if (r->n >= MX_MODELS) return mx_fail(err, MX_ERR_STATE, "model %s: %d models are there; there is no room for more", name, r->n);
    size_t all = held_by(r, f, kind), now = held_by(r, &nothing, kind);
    if (!r->budget || all <= r->budget) return MX_OK;
    char why[128] = "";
    if (draining) snprintf(why, sizeof why, "; version %d of %s still drains", draining->version, draining->name);
    return mx_fail(err, MX_ERR_NO_MEMORY, "model %s needs %zu bytes (weights %zu, KV cache %zu, scratch %zu, host tables %zu, while loading %zu); %zu of %zu are held, it is %zu short%s",
                   name, all - now, f->weights, f->kv, f->scratch, f->host, f->loading, now, r->budget, all - r->budget, why);
}

mx_status mx_registry_room(mx_registry *r, const char *what, size_t bytes, mx_error *err)
{
    size_t held, budget;
    mx_registry_memory(r, &held, &budget);
    if (!budget || held + bytes <= budget) return MX_OK;
    return mx_fail(err, MX_ERR_NO_MEMORY, "%s needs %zu bytes; %zu of %zu are held, it is %zu short", what, bytes, held, budget, held + bytes - budget);
}

mx_status mx_registry_take(mx_registry *r, const char *what, size_t bytes, mx_error *err)
{
    static const mx_footprint nothing;
    pthread_mutex_lock(&r->lock);
    size_t held = held_by(r, &nothing, MX_SERVED_GENERATOR);
    bool fits = !r->budget || (held <= r->budget && bytes <= r->budget - held);
    if (fits) r->others += bytes;
    pthread_mutex_unlock(&r->lock);
    if (fits) return MX_OK;
    return mx_fail(err, MX_ERR_NO_MEMORY, "%s needs %zu bytes more; %zu of %zu are held, it is %zu short", what, bytes, held, r->budget, held + bytes - r->budget);
}

void mx_registry_give(mx_registry *r, size_t bytes)
{
    pthread_mutex_lock(&r->lock);
    r->others -= bytes;
    pthread_mutex_unlock(&r->lock);
}

mx_status mx_registry_begin(mx_registry *r, const char *name, mx_served_kind kind, bool replace, const mx_footprint *f, mx_served **out, mx_error *err)
{
    mx_served *s = calloc(1, sizeof *s), *before;
    *out = NULL;
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "model %s", name);
    *s = (mx_served){.footprint = *f, .kind = kind, .of = r, .state = MX_SERVED_LOADING, .since_ms = mx_wall_ms()};
    snprintf(s->name, sizeof s->name, "%s", name);
    pthread_mutex_lock(&r->lock);
    mx_status st = admit(r, name, kind, replace, f, &s->version, err);
    if (!st) {                         /* where its name stands, or at the end */
        mx_served **at = &r->first;
        before = serving(r, name, kind);
        while (*at && *at != before) at = &(*at)->next;
        s->next = *at;
        *at = s;
        s->serial = ++r->serial;
        bool encoder = kind == MX_SERVED_ENCODER;
        if (f->scratch > r->scratch[encoder]) r->scratch[encoder] = f->scratch;
        r->n++;
        *out = s;
    }
    pthread_mutex_unlock(&r->lock);
    if (st) free(s);
    return st;
}

/* With the lock held. */
static void drain(mx_served *s)
{
    s->state = MX_SERVED_DRAINING;
    s->since_ms = mx_wall_ms();
    pthread_cond_broadcast(&s->of->news);
}

static int32_t commit(mx_served *s, mx_generator *g, mx_embedder *e, char *path)
{
    mx_registry *r = s->of;
    pthread_mutex_lock(&r->lock);
    mx_served *before = serving(r, s->name, s->kind);
    int32_t version = before ? before->version : 0;
    s->generator = g;
    s->encoder = e;
    s->path = path;
    s->state = MX_SERVED_SERVING;
    s->since_ms = mx_wall_ms();
    if (before) drain(before);
    pthread_mutex_unlock(&r->lock);
    return version;
}

int32_t mx_registry_commit(mx_served *s, mx_generator *g, mx_embedder *e) { return commit(s, g, e, NULL); }
int32_t mx_registry_commit_network(mx_served *s, char *path) { return commit(s, NULL, NULL, path); }

void mx_registry_abort(mx_served *s)
{
    mx_registry *r = s->of;
    pthread_mutex_lock(&r->lock);
    while (s->references) pthread_cond_wait(&r->news, &r->lock);      /* of lists */
    forget_name(r, s);
    unlink_it(r, s);
    pthread_mutex_unlock(&r->lock);
}

static bool drained(const mx_registry *r, uint64_t serial)
{
    for (const mx_served *s = r->first; s; s = s->next)
        if (s->serial == serial) return false;
    return true;
}

/* With the lock held; false: the time is over. */
static bool wait_news(mx_registry *r, uint64_t end_ns)
{
    struct timespec t = {.tv_sec = (time_t)(end_ns / 1000000000u), .tv_nsec = (long)(end_ns % 1000000000u)};
    return !pthread_cond_timedwait(&r->news, &r->lock, &t);
}

static bool wait_drained(mx_registry *r, uint64_t serial, uint32_t ms)
{
    uint64_t end = mx_now_ns(&mx_clock_monotonic) + (uint64_t)ms * 1000000u;
    while (!drained(r, serial))
        if (!wait_news(r, end)) return drained(r, serial);
    return true;
}

mx_status mx_registry_unload(mx_registry *r, const char *name, uint32_t drain_ms, mx_error *err)
{
    enum { LAST_MS = 5000 };           /* jobs end within a turn; then callers take their answers */
    char lane[96];
    mx_status st = MX_OK;
    pthread_mutex_lock(&r->lock);
    mx_served *s = NULL;
    for (int k = MX_SERVED_GENERATOR; *name && !s && k <= MX_SERVED_NETWORK; k++) s = serving(r, name, (mx_served_kind)k);
    if (!s) st = mx_fail(err, MX_ERR_NOT_FOUND, "model: there is no \"%.100s\"", name);
    else if (s->pinned) st = mx_fail(err, MX_ERR_STATE, "model %s: the profiles read with it; it stays while the server runs", name);
    if (!st) {
        uint64_t serial = s->serial;
        lane_of(s, lane);
        drain(s);
        if (!wait_drained(r, serial, drain_ms)) {
            if (*lane) mx_scheduler_lane_cut(r->sched, lane);
            if (!wait_drained(r, serial, LAST_MS))
                st = mx_fail(err, MX_ERR_DEADLINE, "model %s: it is not served any more, but callers have not taken their answers' ends; its memory is free when they have", name);
        }
    }
    pthread_mutex_unlock(&r->lock);
    return st;
}

bool mx_registry_settle(mx_registry *r, uint32_t ms)
{
    uint64_t end = mx_now_ns(&mx_clock_monotonic) + (uint64_t)ms * 1000000u;
    bool draining = true;
    pthread_mutex_lock(&r->lock);
    for (bool more = true; more;) {
        draining = false;
        for (const mx_served *s = r->first; s; s = s->next) draining |= s->state == MX_SERVED_DRAINING;
        more = draining && wait_news(r, end);
    }
    pthread_mutex_unlock(&r->lock);
    return !draining;
}

/* ---- looking ----------------------------------------------------------------------------------- */

int mx_registry_list(mx_registry *r, mx_served_view out[MX_MODELS])
{
    int n = 0;
    if (!r) return 0;
    pthread_mutex_lock(&r->lock);
    for (mx_served *s = r->first; s && n < MX_MODELS; s = s->next) {
        if (s->references < 0) continue;
        out[n++] = (mx_served_view){.served = s, .generator = s->generator, .encoder = s->encoder, .state = s->state, .references = s->references, .pinned = s->pinned, .since_ms = s->since_ms};
        s->references++;
    }
    pthread_mutex_unlock(&r->lock);
    return n;
}

void mx_registry_list_free(mx_served_view *list, int n)
{
    if (!n) return;
    mx_registry *r = list[0].served->of;
    pthread_mutex_lock(&r->lock);
    for (int i = 0; i < n; i++) list[i].served->references--;
    pthread_cond_broadcast(&r->news);
    pthread_mutex_unlock(&r->lock);
}

int mx_registry_health(mx_registry *r, const char *name)
{
    int is = -1;
    pthread_mutex_lock(&r->lock);
    for (const mx_served *s = r->first; s && is < 1; s = s->next)
        if (!strcmp(s->name, name)) is = s->state == MX_SERVED_SERVING;
    pthread_mutex_unlock(&r->lock);
    return is;
}

void mx_registry_memory(mx_registry *r, size_t *held, size_t *budget)
{
    static const mx_footprint nothing;
    pthread_mutex_lock(&r->lock);
    *held = held_by(r, &nothing, MX_SERVED_GENERATOR);
    *budget = r->budget;
    pthread_mutex_unlock(&r->lock);
}
