/* profile_streams.c - Profiling's calls of many messages: events in, profiles out, changes. */
#include "server/profiles.h"

#include "runtime/slab.h"
#include "server/rpc.h"
#include "server/services.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- PutEvents and StreamProfiles: one operation at a time --------------------------------- */

typedef struct stream {
    mx_profiles_op op;
    mx_app     *app;
    mx_call    *call;
    mx_arena    decoded;              /* the message that is being carried out            */
    bool        running, profiles, cancelled;
    atomic_bool over;
} stream;

static void op_done(mx_profiles_op *op)
{
    stream *s = (stream *)op;
    mx_call *call = s->call;
    atomic_store(&s->over, true);
    mx_call_wake(call);
}

static void start(stream *s, mx_profiles_run *run, const ProtobufCMessage *m)
{
    s->op = (mx_profiles_op){.run = run, .done = op_done, .request = m};
    s->running = true;
    atomic_store(&s->over, false);
    mx_call_hold(s->call);                                   /* the next message comes after this one's answer */
    mx_profiles_submit(s->app->profiles, &s->op);
}

static bool send_packed(mx_call *call, const ProtobufCMessageDescriptor *type, const uint8_t *bytes, size_t size)
{
    ProtobufCMessage *m = protobuf_c_message_unpack(type, NULL, size, bytes);
    bool sent = m && mx_call_send(call, m, false);
    if (m) protobuf_c_message_free_unpacked(m, NULL);
    return sent;
}

/* An answer of the stream: the profile, or why there is none. */
static void send_profile(stream *s, const Merx__V1__GetProfileRequest *q, mx_arena *scratch)
{
    Merx__V1__ProfileAnswer r;
    const mx_profile_view *v = NULL;
    bool sent = mx_profile_answer(s->app->profiles, q, scratch, &r, &v) && mx_call_send(s->call, &r.base, false);
    if (v) mx_profile_release(v);
    if (!sent) mx_call_finish(s->call, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
}

static void stream_pump(mx_call *call, void *user, mx_arena *scratch)
{
    stream *s = user;
    if (s->running && !atomic_load(&s->over)) return;
    bool finished = s->running;
    s->running = false;
    if (finished) mx_call_read(call);
    if (s->cancelled) {
        mx_call_finish(call, MX_ERR_CANCELLED, "cancelled");
    } else if (finished && s->profiles) {
        send_profile(s, (const Merx__V1__GetProfileRequest *)s->op.request, scratch);
    } else if (finished) {
        mx_status st = s->op.st;
        if (!st && !send_packed(call, s->op.type, s->op.answer, s->op.size)) st = mx_fail(&s->op.err, MX_ERR_NO_MEMORY, "an acknowledgement is over the server's memory budget");
        mx_slab_free(s->op.answer);
        s->op.answer = NULL;
        if (st) mx_call_finish(call, st, s->op.err.text);
    }
}

static void events_message(mx_call *call, void *user, const uint8_t *msg, size_t len, mx_arena *scratch)
{
    stream *s = user;
    mx_error err = {.code = MX_OK};
    ProtobufCMessage *m;
    (void)scratch;
    if (!msg) {
        mx_call_finish(call, MX_OK, NULL);
        return;
    }
    mx_arena_reset(&s->decoded);
    mx_status st = mx_message_decode(&s->decoded, &merx__v1__put_events_request__descriptor, msg, len, &m, &err);
    if (st) mx_call_finish(call, st, err.text);
    else start(s, mx_profiles_put, m);
}

static void profiles_message(mx_call *call, void *user, const uint8_t *msg, size_t len, mx_arena *scratch)
{
    stream *s = user;
    mx_error err = {.code = MX_OK};
    ProtobufCMessage *m;
    if (!msg) {
        mx_call_finish(call, MX_OK, NULL);
        return;
    }
    mx_arena_reset(&s->decoded);
    mx_status st = mx_message_decode(&s->decoded, &merx__v1__get_profile_request__descriptor, msg, len, &m, &err);
    if (st) {
        mx_call_finish(call, st, err.text);
        return;
    }
    const Merx__V1__GetProfileRequest *q = (const Merx__V1__GetProfileRequest *)m;
    uint64_t w = q->min_watermark;
    if (w > mx_profiles_visible(s->app->profiles) && w <= mx_profiles_watermark(s->app->profiles)) start(s, mx_profiles_wait, m);
    else send_profile(s, q, scratch);
}

static void stream_cancelled(mx_call *call, void *user)
{
    ((stream *)user)->cancelled = true;
    mx_call_wake(call);
}

static void stream_closed(void *user)
{
    stream *s = user;
    mx_slab_free(s->op.answer);
    mx_arena_close(&s->decoded);
    mx_slab_free(s);
}

static mx_status open_stream(mx_app *app, mx_call *call, bool profiles, size_t budget, const mx_call_handler *handler, mx_error *err)
{
    if (!app->profiles) return mx_fail(err, MX_ERR_STATE, "profiles are off: start the server with --profiles");
    stream *s = mx_slab_zeroed(sizeof *s);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the call");
    s->app = app, s->call = call, s->profiles = profiles;
    mx_arena_open(&s->decoded, budget);
    mx_call_attach(call, handler, s);
    return MX_OK;
}

MX_METHOD(mx_put_events_begin)
{
    static const mx_call_handler handler = {.pump = stream_pump, .message = events_message, .cancelled = stream_cancelled, .closed = stream_closed};
    (void)msg, (void)len;
    return open_stream(app, call, false, scratch->budget, &handler, err);
}

MX_METHOD(mx_stream_profiles_begin)
{
    static const mx_call_handler handler = {.pump = stream_pump, .message = profiles_message, .cancelled = stream_cancelled, .closed = stream_closed};
    (void)msg, (void)len;
    return open_stream(app, call, true, scratch->budget, &handler, err);
}

/* ---- WatchProfile --------------------------------------------------------------------------------- */

typedef struct watcher {
    mx_profile_watch  watch;
    mx_app           *app;
    mx_call          *call;
    Merx__V1__Profile *last;          /* what the client knows; NULL: nothing yet         */
    atomic_bool       changed;
    bool              cancelled;
} watcher;

static void woke(void *ctx)
{
    watcher *w = ctx;
    atomic_store(&w->changed, true);
    mx_call_wake(w->call);
}

static const Merx__V1__Tag *tag_of(const Merx__V1__Profile *p, const char *name)
{
    for (size_t i = 0; i < p->n_tags; i++)
        if (!strcmp(p->tags[i]->name, name)) return p->tags[i];
    return NULL;
}

/* False: nothing that would interest anybody. */
static bool differs(const Merx__V1__Profile *last, const Merx__V1__Profile *now, mx_arena *a, Merx__V1__ProfileDelta *d)
{
    d->tags = mx_arena_array(a, now->n_tags + 1, sizeof *d->tags);
    d->removed = mx_arena_array(a, last->n_tags + 1, sizeof *d->removed);
    if (!d->tags || !d->removed) return false;
    for (size_t i = 0; i < now->n_tags; i++) {
        const Merx__V1__Tag *t = now->tags[i], *old = tag_of(last, t->name);
        if (!old || old->state != t->state || old->version != t->version || fabs(old->probability - t->probability) > 1e-6) d->tags[d->n_tags++] = now->tags[i];
    }
    for (size_t i = 0; i < last->n_tags; i++)
        if (!tag_of(now, last->tags[i]->name)) d->removed[d->n_removed++] = last->tags[i]->name;
    return d->n_tags || d->n_removed;
}

static void stop(watcher *w, mx_status st, const char *text)
{
    mx_profiles_unwatch(w->app->profiles, &w->watch);        /* nobody wakes a call that has finished */
    mx_call_finish(w->call, st, text);
}

static void send_change(mx_call *call, watcher *w, mx_arena *scratch)
{
    Merx__V1__ProfileDelta d = MERX__V1__PROFILE_DELTA__INIT;
    const mx_profile_view *v;
    mx_error err = {0};
    mx_status st = mx_profiles_get(w->app->profiles, w->watch.user, &v, &err);
    if (st && w->last) {
        stop(w, MX_ERR_NOT_FOUND, "the user was forgotten");
        return;
    }
    if (st) return;                                          /* nothing is known yet: wait for it */
    Merx__V1__Profile *now = merx__v1__profile__unpack(NULL, v->size, v->bytes);
    mx_profile_release(v);
    if (!now) {
        stop(w, MX_ERR_NO_MEMORY, "no memory for a profile");
        return;
    }
    d.watermark = now->watermark;
    d.as_of_ms = now->as_of_ms;
    bool send = true;
    if (w->last) send = differs(w->last, now, scratch, &d);
    else d.profile = now;
    if (send && !mx_call_send(call, &d.base, false)) stop(w, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
    if (w->last) merx__v1__profile__free_unpacked(w->last, NULL);
    w->last = now;
}

static void watch_pump(mx_call *call, void *user, mx_arena *scratch)
{
    watcher *w = user;
    if (w->cancelled) {
        stop(w, MX_ERR_CANCELLED, "cancelled");
    } else if (atomic_load(&w->app->state) == MX_APP_DRAINING) {
        stop(w, MX_ERR_UNAVAILABLE, "the server is going down");
    } else if (atomic_exchange(&w->changed, false)) {
        send_change(call, w, scratch);
    }
}

static void watch_cancelled(mx_call *call, void *user)
{
    ((watcher *)user)->cancelled = true;
    mx_call_wake(call);
}

static void watch_closed(void *user)
{
    watcher *w = user;
    mx_profiles_unwatch(w->app->profiles, &w->watch);
    if (w->last) merx__v1__profile__free_unpacked(w->last, NULL);
    mx_slab_free(w);
}

MX_METHOD(mx_watch_profile_begin)
{
    static const mx_call_handler handler = {.pump = watch_pump, .cancelled = watch_cancelled, .closed = watch_closed};
    ProtobufCMessage *m;
    if (!app->profiles) return mx_fail(err, MX_ERR_STATE, "profiles are off: start the server with --profiles");
    MX_TRY(mx_message_decode(scratch, &merx__v1__watch_profile_request__descriptor, msg, len, &m, err));
    const char *user = ((const Merx__V1__WatchProfileRequest *)m)->user;
    watcher *w = mx_slab_zeroed(sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the call");
    if (!*user || strlen(user) >= sizeof w->watch.user) {
        mx_slab_free(w);
        return mx_fail(err, MX_ERR_ARG, "user: 1 to 128 bytes");
    }
    w->app = app, w->call = call;
    strcpy(w->watch.user, user);
    w->watch.woke = woke, w->watch.ctx = w;
    atomic_store(&w->changed, true);
    mx_call_attach(call, &handler, w);
    mx_call_watch_state(call);
    mx_profiles_watch(app->profiles, &w->watch);
    watch_pump(call, w, scratch);
    return MX_OK;
}
