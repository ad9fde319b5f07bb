/* training_service.c - the service Training. */
#include "server/services.h"
#include "server/training.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mx_status is_on(const mx_app *app, mx_error *err)
{
    return app->training ? MX_OK : mx_fail(err, MX_ERR_STATE, "training is off: start the server with --training-folder");
}

static mx_status too_large(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
}

static void fill(Merx__V1__TrainingJob *m, mx_training_view *v)
{
    merx__v1__training_job__init(m);
    m->id = v->id;
    m->name = v->name;
    m->kind = v->kind;
    m->state = (Merx__V1__TrainingState)v->state;
    mx_text_clean(v->message);
    m->message = v->message;
    m->step = v->step;
    m->steps = v->steps;
    m->loss = v->loss;
    m->eval_loss = v->eval_loss;
    m->best_loss = v->best_loss;
    m->lr = v->lr;
    m->tokens_per_s = v->tokens_per_s;
    m->seconds_left = v->seconds_left;
    m->folder = v->folder;
    m->created_ms = v->created_ms;
    m->started_ms = v->started_ms;
    m->ended_ms = v->ended_ms;
    m->eval_return = v->eval_return;
    m->best_return = v->best_return;
}

static mx_status answer(mx_call *call, mx_training_view *v, mx_error *err)
{
    Merx__V1__TrainingJob m;
    fill(&m, v);
    if (!mx_call_send(call, &m.base, false)) return too_large(err);
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}

/* ---- Submit, Get, List, Cancel ------------------------------------------------------------ */

MX_METHOD(mx_training_submit_begin)
{
    ProtobufCMessage *m;
    mx_training_view v;
    MX_TRY(is_on(app, err));
    MX_TRY(mx_message_decode(scratch, &merx__v1__submit_training_request__descriptor, msg, len, &m, err));
    const Merx__V1__SubmitTrainingRequest *q = (const Merx__V1__SubmitTrainingRequest *)m;
    size_t n = 0, most = 1 + q->n_data + q->n_eval_data + q->n_settings;
    const char *(*settings)[2] = mx_arena_array(scratch, most, sizeof *settings);
    if (!settings || most > INT32_MAX) return mx_fail(err, MX_ERR_NO_MEMORY, "settings: over the request's memory budget");
    for (size_t i = 0; i < q->n_settings; i++) {
        const char *name = q->settings[i]->name;
        if (!strcmp(name, "model") || !strcmp(name, "data") || !strcmp(name, "eval-data"))
            return mx_fail(err, MX_ERR_ARG, "settings: %s has a field of its own", name);
        settings[n][0] = name;
        settings[n++][1] = q->settings[i]->value;
    }
    if (*q->model) settings[n][0] = "model", settings[n++][1] = q->model;
    for (size_t i = 0; i < q->n_data; i++) settings[n][0] = "data", settings[n++][1] = q->data[i];
    for (size_t i = 0; i < q->n_eval_data; i++) settings[n][0] = "eval-data", settings[n++][1] = q->eval_data[i];
    mx_training_spec spec = {.kind = q->kind, .name = q->name, .settings = (const char *const (*)[2])settings, .n = (int)n};
    MX_TRY(mx_training_submit(app->training, &spec, &v, err));
    return answer(call, &v, err);
}

MX_METHOD(mx_training_get_begin)
{
    ProtobufCMessage *m;
    mx_training_view v;
    MX_TRY(is_on(app, err));
    MX_TRY(mx_message_decode(scratch, &merx__v1__get_training_request__descriptor, msg, len, &m, err));
    MX_TRY(mx_training_get(app->training, ((const Merx__V1__GetTrainingRequest *)m)->id, &v, err));
    return answer(call, &v, err);
}

MX_METHOD(mx_training_cancel_begin)
{
    ProtobufCMessage *m;
    mx_training_view v;
    MX_TRY(is_on(app, err));
    MX_TRY(mx_message_decode(scratch, &merx__v1__cancel_training_request__descriptor, msg, len, &m, err));
    MX_TRY(mx_training_cancel(app->training, ((const Merx__V1__CancelTrainingRequest *)m)->id, &v, err));
    return answer(call, &v, err);
}

MX_METHOD(mx_training_list_begin)
{
    ProtobufCMessage *m;
    int n;
    MX_TRY(is_on(app, err));
    MX_TRY(mx_message_decode(scratch, &merx__v1__list_training_request__descriptor, msg, len, &m, err));
    mx_training_view *v = mx_training_list(app->training, &n);
    Merx__V1__TrainingJob *jobs = mx_arena_array(scratch, (size_t)n, sizeof *jobs);
    Merx__V1__ListTrainingResponse r = MERX__V1__LIST_TRAINING_RESPONSE__INIT;
    r.jobs = mx_arena_array(scratch, (size_t)n, sizeof *r.jobs);
    bool ok = v && jobs && r.jobs;
    for (int i = 0; ok && i < n; i++) {
        fill(&jobs[i], &v[i]);
        r.jobs[i] = &jobs[i];
    }
    r.n_jobs = (size_t)n;
    ok = ok && mx_call_send(call, &r.base, false);
    free(v);
    if (!ok) return too_large(err);
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}

/* ---- Watch ---------------------------------------------------------------------------------- */

/* What is told stands in the run's metrics.jsonl; a watcher reads it at its own pace. */
typedef struct watch {
    mx_training *t;
    mx_call     *call;
    char         id[32];
    int64_t      from_step;
    FILE        *file;
    bool         watching, cancelled, told_job;
} watch;

static void wake(void *ctx)
{
    mx_call_wake(((watch *)ctx)->call);
}

static void stop_watching(watch *w)
{
    if (w->watching) mx_training_unwatch(w->t, w);
    w->watching = false;
}

static bool read_line(watch *w, char *line, size_t size)
{
    long at = ftell(w->file);
    clearerr(w->file);
    if (fgets(line, (int)size, w->file) && strchr(line, '\n')) return true;
    fseek(w->file, at, SEEK_SET);                   /* half a line: the rest comes */
    return false;
}

static double number(const json_t *o, const char *key)
{
    return json_number_value(json_object_get(o, key));
}

/* The next step that is to be told; false: none yet. */
static bool next_event(watch *w, const char *folder, Merx__V1__TrainingEvent *e)
{
    char path[1200], line[2048];
    snprintf(path, sizeof path, "%s/metrics.jsonl", folder);
    if (!w->file) w->file = fopen(path, "re");
    while (w->file && read_line(w, line, sizeof line)) {
        json_t *o = json_loads(line, 0, NULL);
        merx__v1__training_event__init(e);
        e->step = (int64_t)number(o, "step");
        e->epoch = number(o, "epoch");
        e->tokens = (int64_t)number(o, "tokens");
        e->loss = number(o, "loss");
        e->lr = number(o, "lr");
        e->grad_norm = number(o, "grad_norm");
        e->tokens_per_s = number(o, "tokens_per_s");
        e->seconds = number(o, "seconds");
        e->memory_bytes = (int64_t)number(o, "memory");
        if (json_object_get(o, "eval_loss")) {
            bool classes = json_object_get(o, "accuracy") != NULL;
            e->_eval_loss_case = MERX__V1__TRAINING_EVENT___EVAL_LOSS_EVAL_LOSS;
            e->eval_loss = number(o, "eval_loss");
            e->metric = (char *)(uintptr_t)(classes ? "accuracy" : "perplexity");
            e->metric_value = number(o, classes ? "accuracy" : "perplexity");
        }
        bool wanted = o && e->step >= w->from_step;
        json_decref(o);
        if (wanted) return true;
    }
    return false;
}

static void watch_pump(mx_call *call, void *user, mx_arena *scratch)
{
    watch *w = user;
    mx_training_view v;
    mx_error err = {0};
    Merx__V1__TrainingEvent e;
    Merx__V1__TrainingJob j;
    (void)scratch;
    if (w->cancelled || w->told_job) {
        stop_watching(w);
        mx_call_finish(call, w->cancelled ? MX_ERR_CANCELLED : MX_OK, w->cancelled ? "cancelled" : NULL);
        return;
    }
    mx_status st = mx_training_get(w->t, w->id, &v, &err);       /* before the file: what ended has said all */
    bool ended = st || v.state >= MX_TRAINING_DONE, more = !st && next_event(w, v.folder, &e);
    if (!more && !ended) return;
    if (!more && !st) {
        merx__v1__training_event__init(&e);
        fill(&j, &v);
        e.job = &j;
        w->told_job = true;
    }
    if (!st && mx_call_send(call, &e.base, false)) return;
    stop_watching(w);
    mx_call_finish(call, st ? st : MX_ERR_NO_MEMORY, st ? err.text : "no memory for an event");
}

static void watch_cancelled(mx_call *call, void *user)
{
    ((watch *)user)->cancelled = true;
    mx_call_wake(call);
}

static void watch_closed(void *user)
{
    watch *w = user;
    stop_watching(w);
    if (w->file) fclose(w->file);
    free(w);
}

MX_METHOD(mx_training_watch_begin)
{
    static const mx_call_handler handler = {.pump = watch_pump, .cancelled = watch_cancelled, .closed = watch_closed};
    ProtobufCMessage *m;
    MX_TRY(is_on(app, err));
    MX_TRY(mx_message_decode(scratch, &merx__v1__watch_training_request__descriptor, msg, len, &m, err));
    const Merx__V1__WatchTrainingRequest *q = (const Merx__V1__WatchTrainingRequest *)m;
    watch *w = calloc(1, sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the watch");
    w->t = app->training;
    w->call = call;
    w->from_step = q->from_step;
    snprintf(w->id, sizeof w->id, "%s", q->id);
    mx_status st = mx_training_watch(w->t, q->id, wake, w, err);
    if (st) {
        free(w);
        return st;
    }
    w->watching = true;
    mx_call_attach(call, &handler, w);
    watch_pump(call, w, scratch);
    return MX_OK;
}
