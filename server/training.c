/* training.c - the jobs, their files, and the thread that runs them. */
#include "server/training.h"

#include "models/env_market.h"
#include "runtime/clock.h"
#include "runtime/log.h"
#include "server/dqn_run.h"
#include "server/profiles.h"
#include "server/settings.h"
#include "server/train_run.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MOST_WAITING = 256, MOST_SETTINGS = 512 };

typedef struct job {
    struct job *next;                /* rising ids                                         */
    mx_training_view v;
    char       *folder;              /* FOLDER/job-000001                                  */
    json_t     *settings;            /* [[name, value], ...]                               */
    bool        cancel;
} job;

typedef struct watcher {
    struct watcher *next;
    const job *of;
    void     (*wake)(void *ctx);
    void      *ctx;
} watcher;

struct mx_training {
    mx_app         *app;
    char            folder[PATH_MAX];
    char          **roots;           /* resolved                                           */
    int             n_roots;
    pthread_mutex_t lock;
    pthread_cond_t  change;
    pthread_t       thread;
    bool            started, stop, turn_over;      /* turn_over: the lane gave the run back */
    job            *jobs;
    watcher        *watchers;
    int64_t         last_id;
};

/* One run on its way through the lane. */
typedef struct turns {
    mx_job        job;
    mx_device     dev;               /* the app's, of whose memory the job has an account  */
    mx_device_account account;
    mx_training  *t;
    job          *of;
    mx_train_run  run;
    mx_dqn       *dqn;               /* of the kind "dqn"; else NULL                       */
    mx_status     st;
    mx_error      err;
    bool          finished;          /* its last step was made, or its patience ran out    */
} turns;

/* ---- files ---------------------------------------------------------------------------- */

static const char *const state_names[] = {"", "queued", "running", "done", "failed", "cancelled"};

static mx_status save(const job *j, mx_error *err)
{
    char path[PATH_MAX], beside[PATH_MAX + 8];
    json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:O, s:I, s:I, s:I, s:I, s:I, s:f, s:f}", "id", j->v.id, "name", j->v.name, "kind", j->v.kind,
                          "state", state_names[j->v.state], "message", j->v.message, "settings", j->settings, "created_ms",
                          (json_int_t)j->v.created_ms, "started_ms", (json_int_t)j->v.started_ms, "ended_ms", (json_int_t)j->v.ended_ms, "step",
                          (json_int_t)j->v.step, "steps", (json_int_t)j->v.steps, "loss", j->v.loss, "eval_loss", j->v.eval_loss);
    char *text = o ? json_dumps(o, JSON_INDENT(1)) : NULL;
    snprintf(path, sizeof path, "%s/job.json", j->folder);
    snprintf(beside, sizeof beside, "%s.new", path);
    mx_status st = text ? mx_write_file(beside, text, strlen(text), err) : mx_fail(err, MX_ERR_NO_MEMORY, "%s", path);
    if (!st && rename(beside, path)) st = mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    free(text);
    json_decref(o);
    return st;
}

/* A state that could not be written is told: after a restart the job would run again. */
static void save_or_log(const job *j)
{
    mx_error err = {0};
    if (save(j, &err)) mx_log(MX_LOG_ERROR, "training", "%s: %s", j->v.id, err.text);
}

static void free_job(job *j)
{
    json_decref(j->settings);
    free(j->folder);
    free(j);
}

static job *new_job(const mx_training *t, const char *id)
{
    job *j = calloc(1, sizeof *j);
    size_t n = strlen(t->folder) + 32;
    if (!j || !(j->folder = malloc(n))) {
        free(j);
        return NULL;
    }
    snprintf(j->folder, n, "%s/%s", t->folder, id);
    snprintf(j->v.id, sizeof j->v.id, "%s", id);
    snprintf(j->v.folder, sizeof j->v.folder, "%s/run", j->folder);
    return j;
}

static void add_job(mx_training *t, job *j)
{
    job **at = &t->jobs;
    while (*at && strcmp((*at)->v.id, j->v.id) < 0) at = &(*at)->next;
    j->next = *at;
    *at = j;
}

static void copy_text(char *to, size_t size, const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));
    snprintf(to, size, "%s", s ? s : "");
}

static void read_job(mx_training *t, const char *id)
{
    char path[PATH_MAX], state[16];
    json_error_t why;
    job *j = new_job(t, id);
    if (!j) return;
    snprintf(path, sizeof path, "%s/job.json", j->folder);
    json_t *o = json_load_file(path, 0, &why), *settings = json_object_get(o, "settings");
    copy_text(state, sizeof state, o, "state");
    for (int s = MX_TRAINING_QUEUED; s <= MX_TRAINING_CANCELLED; s++)
        if (!strcmp(state, state_names[s])) j->v.state = (mx_training_state)s;
    if (!json_is_array(settings) || !j->v.state) {
        if (access(path, F_OK) == 0) mx_log(MX_LOG_WARN, "training", "%s is no job: it is left alone", path);
        json_decref(o);
        free_job(j);
        return;
    }
    j->settings = json_incref(settings);
    copy_text(j->v.name, sizeof j->v.name, o, "name");
    copy_text(j->v.kind, sizeof j->v.kind, o, "kind");
    copy_text(j->v.message, sizeof j->v.message, o, "message");
    j->v.created_ms = json_integer_value(json_object_get(o, "created_ms"));
    j->v.started_ms = json_integer_value(json_object_get(o, "started_ms"));
    j->v.ended_ms = json_integer_value(json_object_get(o, "ended_ms"));
    j->v.step = json_integer_value(json_object_get(o, "step"));
    j->v.steps = json_integer_value(json_object_get(o, "steps"));
    j->v.loss = json_number_value(json_object_get(o, "loss"));
    j->v.eval_loss = json_number_value(json_object_get(o, "eval_loss"));
    if (j->v.state == MX_TRAINING_RUNNING) j->v.state = MX_TRAINING_QUEUED;
    json_decref(o);
    add_job(t, j);
}

static mx_status read_jobs(mx_training *t, mx_error *err)
{
    DIR *d = opendir(t->folder);
    if (!d) return mx_fail(err, MX_ERR_IO, "training-folder: %s: %s", t->folder, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        char *end;
        if (strncmp(e->d_name, "job-", 4) || strlen(e->d_name) > 20) continue;
        int64_t id = strtoll(e->d_name + 4, &end, 10);
        if (*end || id < 1) continue;
        if (id > t->last_id) t->last_id = id;
        read_job(t, e->d_name);
    }
    closedir(d);
    return MX_OK;
}

/* ---- settings ---------------------------------------------------------------------------- */

static bool is_path_setting(const char *name)
{
    return !strcmp(name, "model") || !strcmp(name, "data") || !strcmp(name, "eval-data");
}

/* What the server decides itself. */
static bool is_servers(const char *name)
{
    static const char *const own[] = {"run", "restart", "device", "threads", "bind", "config", "log-level", "log-json", "quiet", "json", "eval-only"};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        if (!strcmp(name, own[i])) return true;
    return false;
}

static mx_status set_one(mx_config *c, const char *name, const char *value, mx_error *err)
{
    for (int i = 0; i < mx_settings_count; i++)
        if (!strcmp(mx_settings[i].name, name) && (mx_settings[i].commands & MX_CMD_TRAIN) && !is_servers(name))
            return mx_config_set(c, name, value, "settings", err);
    return mx_fail(err, MX_ERR_ARG, "settings: \"%.60s\" is no setting of a training job", name);
}

static mx_status config_of(const json_t *settings, mx_config **out, mx_error *err)
{
    mx_status st = MX_OK;
    MX_TRY(mx_config_open(out, mx_settings, mx_settings_count, err));
    for (size_t i = 0; !st && i < json_array_size(settings); i++) {
        const json_t *pair = json_array_get(settings, i);
        const char *name = json_string_value(json_array_get(pair, 0)), *value = json_string_value(json_array_get(pair, 1));
        st = name && value ? set_one(*out, name, value, err) : mx_fail(err, MX_ERR_FORMAT, "settings: entry %zu is no pair of texts", i);
    }
    if (st) {
        mx_config_close(*out);
        *out = NULL;
    }
    return st;
}

mx_status mx_path_inside(const char *const *roots, int n, const char *what, const char *path, char out[1024], bool *inside, mx_error *err)
{
    char real[PATH_MAX];
    *inside = false;
    if (!realpath(path, real)) return mx_fail(err, MX_ERR_ARG, "%s: %.200s: %s", what, path, strerror(errno));
    if (strlen(real) >= 1024) return mx_fail(err, MX_ERR_ARG, "%s: the path is longer than 1023 bytes", what);
    for (int i = 0; i < n && !*inside; i++) {
        size_t len = strlen(roots[i]);
        *inside = !strncmp(real, roots[i], len) && (!real[len] || real[len] == '/' || len == 1);
    }
    snprintf(out, 1024, "%s", real);
    return MX_OK;
}

mx_status mx_training_path(const mx_training *t, const char *what, const char *path, char out[1024], mx_error *err)
{
    bool inside;
    MX_TRY(mx_path_inside((const char *const *)t->roots, t->n_roots, what, path, out, &inside, err));
    return inside ? MX_OK : mx_fail(err, MX_ERR_ARG, "%s: %.200s is not inside --training-data or --training-folder", what, path);
}

/* ---- the lane -------------------------------------------------------------------------------- */

static void wake_watchers(mx_training *t, const job *j)
{
    for (watcher *w = t->watchers; w; w = w->next)
        if (w->of == j) w->wake(w->ctx);
}

static void show(mx_training *t, job *j, const mx_train_report *r)
{
    pthread_mutex_lock(&t->lock);
    j->v.step = r->step;
    j->v.steps = r->steps;
    j->v.loss = r->loss;
    j->v.lr = r->lr;
    j->v.tokens_per_s = r->tokens_per_s;
    j->v.seconds_left = r->seconds_left;
    if (r->evaluated) j->v.eval_loss = r->eval_loss;
    if (r->evaluated) j->v.best_loss = r->best_loss;
    wake_watchers(t, j);
    pthread_mutex_unlock(&t->lock);
}

/* The worth of a policy is its return; there is no loss to compare. */
static void show_policy(mx_training *t, job *j, const mx_dqn_report *r)
{
    pthread_mutex_lock(&t->lock);
    j->v.step = r->step;
    j->v.steps = r->steps;
    j->v.loss = r->loss;
    j->v.lr = r->lr;
    j->v.seconds_left = r->seconds_left;
    if (r->best_step >= 0) j->v.best_return = r->best_return;
    if (r->evaluated) j->v.eval_return = r->eval_return;
    wake_watchers(t, j);
    pthread_mutex_unlock(&t->lock);
}

static bool must_stop(const turns *u)
{
    pthread_mutex_lock(&u->t->lock);
    bool stop = u->t->stop || u->of->cancel;
    pthread_mutex_unlock(&u->t->lock);
    return stop;
}

static void policy_turn(turns *u, bool *done)
{
    mx_dqn_report r;
    u->st = mx_dqn_turn(u->dqn, &r, done, &u->err);
    if (!u->st) show_policy(u->t, u->of, &r);
}

static void batch_turn(turns *u, bool *done)
{
    mx_train_report r;
    bool stepped = false;
    u->st = mx_trainer_turn(u->run.trainer, &r, &stepped, done, &u->err);
    if (!u->st && stepped) show(u->t, u->of, &r);
}

/* One micro-batch, the last one of a step being also its optimizer, evaluation and checkpoint; or the steps of
 * a policy up to its next update, and that. */
static void run_turn(void *model, mx_stream *s, mx_job **jobs, int n)
{
    (void)model, (void)s, (void)n;
    turns *u = (turns *)jobs[0];
    bool done = false;
    u->job.verdict = MX_DONE;
    if (must_stop(u)) {
        u->st = u->dqn ? mx_dqn_save(u->dqn, &u->err) : mx_trainer_save(u->run.trainer, &u->err);
        return;
    }
    if (u->dqn) policy_turn(u, &done);
    else batch_turn(u, &done);
    if (u->st) return;
    u->finished = done;
    if (!done) u->job.verdict = MX_AGAIN;
}

static void turns_done(mx_job *m)
{
    turns *u = (turns *)m;
    if (!u->st && m->error.code) {
        u->err = m->error;
        u->st = m->error.code;
    }
    pthread_mutex_lock(&u->t->lock);
    u->t->turn_over = true;
    pthread_cond_broadcast(&u->t->change);
    pthread_mutex_unlock(&u->t->lock);
}

/* ---- the thread -------------------------------------------------------------------------------- */

static bool reading(void *ctx, uint64_t done, uint64_t total)
{
    (void)done, (void)total;
    return !must_stop(ctx);
}

static void noted(void *ctx, const char *text)
{
    const turns *u = ctx;
    mx_log(MX_LOG_INFO, "training", "%s: %s", u->of->v.id, text);
}

static mx_status take_memory(void *ctx, size_t bytes, mx_error *err)
{
    const turns *u = ctx;
    return mx_registry_take(u->t->app->registry, u->of->v.id, bytes, err);
}

static void give_memory(void *ctx, size_t bytes)
{
    const turns *u = ctx;
    mx_registry_give(u->t->app->registry, bytes);
}

/* What a job takes is of the budget that models have: weights, gradients, moments and work are refused before they are there. */
static void open_account(turns *u)
{
    size_t held, budget;
    mx_app *app = u->t->app;
    u->account = (mx_device_account){take_memory, give_memory, u};
    mx_device_for(&u->dev, &app->devices[app->device], &u->account);
    mx_registry_memory(app->registry, &held, &budget);
    if (budget) u->dev.memory = budget > held ? budget - held : 1;
}

static mx_status open_run(turns *u, mx_config **config, mx_error *err)
{
    mx_training *t = u->t;
    MX_TRY(config_of(u->of->settings, config, err));
    open_account(u);
    if (!strcmp(u->of->v.kind, "dqn")) return mx_dqn_run_open(&u->dqn, *config, &u->dev, u->of->v.folder, err);
    u->run = (mx_train_run){.config = *config, .encoder = !strcmp(u->of->v.kind, "encoder"), .graph = !strcmp(u->of->v.kind, "gnn"), .dev = &u->dev,
                            .folder = u->of->v.folder, .reading = reading, .note = noted, .ctx = u};
    if (mx_config_given(*config, "profiles")) {
        if (!t->app->profiles) return mx_fail(err, MX_ERR_STATE, "profiles are off: start the server with --profiles");
        u->run.events = mx_profiles_graph(t->app->profiles), u->run.texts = mx_profiles_texts(t->app->profiles);
    }
    MX_TRY(mx_train_run_open(&u->run, true, err));
    return mx_train_run_start(&u->run, u->of->v.folder, err);
}

static void plan_of(const turns *u, mx_train_plan *p)
{
    const char *folder;
    *p = (mx_train_plan){0};
    if (!u->dqn) mx_trainer_plan(u->run.trainer, p);
    else *p = (mx_train_plan){.steps = mx_dqn_steps(u->dqn), .resumed_from = mx_dqn_resumed_from(u->dqn, &folder)};
}

static void go_through_lane(turns *u)
{
    mx_training *t = u->t;
    u->job.done = turns_done;
    t->turn_over = false;
    u->st = mx_scheduler_submit(t->app->scheduler, "training", &u->job, &u->err);
    if (u->st) return;
    pthread_mutex_lock(&t->lock);
    while (!t->turn_over) pthread_cond_wait(&t->change, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

static void run_job(mx_training *t, job *j)
{
    turns *u = calloc(1, sizeof *u);
    mx_config *config = NULL;
    mx_error err = {0};
    mx_status st = u ? MX_OK : mx_fail(&err, MX_ERR_NO_MEMORY, "a run");
    if (u) {
        u->t = t;
        u->of = j;
        st = open_run(u, &config, &err);
    }
    if (!st) {
        mx_train_plan plan;
        plan_of(u, &plan);
        pthread_mutex_lock(&t->lock);
        j->v.steps = plan.steps;
        if (plan.resumed_from >= 0) j->v.step = plan.resumed_from;
        pthread_mutex_unlock(&t->lock);
        mx_log(MX_LOG_INFO, "training", "%s: %lld steps, from step %lld", j->v.id, (long long)plan.steps, (long long)j->v.step);
        go_through_lane(u);
        st = u->st;
        err = u->err;
    }
    bool finished = u && u->finished;
    if (u) mx_train_run_close(&u->run), mx_dqn_close(u->dqn);
    if (config) mx_config_close(config);
    free(u);
    pthread_mutex_lock(&t->lock);
    bool stopped = t->stop && !j->cancel && !finished && (!st || st == MX_ERR_CANCELLED);
    if (!stopped) {
        j->v.state = finished ? MX_TRAINING_DONE : j->cancel ? MX_TRAINING_CANCELLED : MX_TRAINING_FAILED;
        if (j->v.state == MX_TRAINING_FAILED) snprintf(j->v.message, sizeof j->v.message, "%s", err.text);
        j->v.ended_ms = mx_wall_ms();
    }
    save_or_log(j);
    mx_log(j->v.state == MX_TRAINING_FAILED ? MX_LOG_ERROR : MX_LOG_INFO, "training", "%s: %s%s%s", j->v.id,
           stopped ? "stops with the server" : state_names[j->v.state], *j->v.message ? ": " : "", j->v.message);
    wake_watchers(t, j);
    pthread_mutex_unlock(&t->lock);
}

static void *thread_main(void *ctx)
{
    mx_training *t = ctx;
    pthread_mutex_lock(&t->lock);
    while (!t->stop) {
        job *j = t->jobs;
        while (j && j->v.state != MX_TRAINING_QUEUED) j = j->next;
        if (!j) {
            pthread_cond_wait(&t->change, &t->lock);
            continue;
        }
        j->v.state = MX_TRAINING_RUNNING;
        if (!j->v.started_ms) j->v.started_ms = mx_wall_ms();
        save_or_log(j);
        wake_watchers(t, j);
        pthread_mutex_unlock(&t->lock);
        run_job(t, j);
        pthread_mutex_lock(&t->lock);
    }
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* ---- open and close --------------------------------------------------------------------------------- */

static mx_status add_root(mx_training *t, const char *what, const char *path, mx_error *err)
{
    char *real = realpath(path, NULL);
    if (!real) return mx_fail(err, MX_ERR_IO, "%s: %s: %s", what, path, strerror(errno));
    t->roots[t->n_roots++] = real;
    return MX_OK;
}

mx_status mx_training_open(mx_training **out, mx_app *app, const char *folder, const char *const *roots, int n_roots, mx_error *err)
{
    mx_status st;
    *out = NULL;
    mx_training *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "training");
    t->app = app;
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->change, NULL);
    t->roots = calloc((size_t)n_roots + 1, sizeof *t->roots);
    if (!t->roots) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "training");
        goto fail;
    }
    MX_TRY_GOTO(st, mx_snapshot_prepare(folder, err), fail);
    MX_TRY_GOTO(st, add_root(t, "training-folder", folder, err), fail);
    snprintf(t->folder, sizeof t->folder, "%s", t->roots[0]);
    for (int i = 0; i < n_roots; i++) MX_TRY_GOTO(st, add_root(t, "training-data", roots[i], err), fail);
    MX_TRY_GOTO(st, read_jobs(t, err), fail);
    mx_lane_config lane = {.name = "training", .device = app->device, .priority = 9, .max_jobs = 1, .max_rows = 1, .queue_limit = 1, .run = run_turn, .model = t};
    MX_TRY_GOTO(st, mx_scheduler_lane(app->scheduler, &lane, err), fail);
    if (pthread_create(&t->thread, NULL, thread_main, t)) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "training: a thread could not start");
        goto fail;
    }
    t->started = true;
    *out = t;
    return MX_OK;
fail:
    mx_training_close(t);
    return st;
}

void mx_training_close(mx_training *t)
{
    if (!t) return;
    pthread_mutex_lock(&t->lock);
    t->stop = true;
    pthread_cond_broadcast(&t->change);
    pthread_mutex_unlock(&t->lock);
    if (t->started) pthread_join(t->thread, NULL);
    for (job *j = t->jobs, *next; j; j = next) {
        next = j->next;
        free_job(j);
    }
    for (int i = 0; i < t->n_roots; i++) free(t->roots[i]);
    free(t->roots);
    pthread_cond_destroy(&t->change);
    pthread_mutex_destroy(&t->lock);
    free(t);
}

/* ---- submitting ----------------------------------------------------------------------------------------- */

/* A world's name whose file, if it is made from one, the server may read: market:FILE[,choose|,held-out]. */
static mx_status env_path(mx_training *t, const char *name, const char *value, char *out, size_t room, mx_error *err)
{
    static const char market[] = "market:";
    char path[1024], real[1024];
    size_t len;
    if (strncmp(value, market, sizeof market - 1)) {
        if (snprintf(out, room, "%s", value) >= (int)room) return mx_fail(err, MX_ERR_ARG, "%s: longer than %zu bytes", name, room - 1);
        return MX_OK;
    }
    const char *file = value + sizeof market - 1;
    mx_market_stores_of(file, &len);
    if (len >= sizeof path) return mx_fail(err, MX_ERR_ARG, "%s: the path is longer than 1023 bytes", name);
    snprintf(path, sizeof path, "%.*s", (int)len, file);
    MX_TRY(mx_training_path(t, name, path, real, err));
    snprintf(out, room, "%s%s%s", market, real, file + len);
    return MX_OK;
}

static mx_status read_spec(mx_training *t, const mx_training_spec *spec, json_t *settings, mx_error *err)
{
    bool saves = false, profiles = false;
    int models = 0, data = 0;
    bool policy = !strcmp(spec->kind, "dqn");
    if (!policy && strcmp(spec->kind, "lm") && strcmp(spec->kind, "encoder") && strcmp(spec->kind, "gnn")) return mx_fail(err, MX_ERR_ARG, "kind: \"%.40s\" is none of lm, encoder, gnn, dqn", spec->kind);
    if (strlen(spec->name) >= sizeof((mx_training_view *)0)->name) return mx_fail(err, MX_ERR_ARG, "name: longer than 127 bytes");
    if (spec->n > MOST_SETTINGS) return mx_fail(err, MX_ERR_ARG, "settings: %d of them, at most %d", spec->n, MOST_SETTINGS);
    for (int i = 0; i < spec->n; i++) {
        char real[1200];
        const char *name = spec->settings[i][0], *value = spec->settings[i][1];
        if (is_path_setting(name)) {
            MX_TRY(mx_training_path(t, name, value, real, err));
            value = real;
        }
        if (!strcmp(name, "env") || !strcmp(name, "eval-env")) {
            MX_TRY(env_path(t, name, value, real, sizeof real, err));
            value = real;
        }
        saves |= !strcmp(name, "save-every");
        models += !strcmp(name, "model");
        data += !strcmp(name, "data");
        if (!strcmp(name, "profiles")) {
            if (strcmp(value, "served") != 0 || strcmp(spec->kind, "gnn") != 0)
                return mx_fail(err, MX_ERR_ARG, "profiles: \"served\" is what a job of kind gnn learns from: the events that this server has");
            if (!t->app->profiles) return mx_fail(err, MX_ERR_STATE, "profiles are off: start the server with --profiles");
            profiles = true;
        }
        if (json_array_append_new(settings, json_pack("[s, s]", name, value))) return mx_fail(err, MX_ERR_NO_MEMORY, "a job");
    }
    if (policy && models) return mx_fail(err, MX_ERR_ARG, "model: a policy begins fresh; give the setting env, or data");
    if (!policy && (models > 1 || (!models && strcmp(spec->kind, "gnn")))) return mx_fail(err, MX_ERR_ARG, "model: one folder is needed");      /* a graph network may begin fresh */
    if (!policy && !data && !profiles) return mx_fail(err, MX_ERR_ARG, "data: a file is needed");
    if (!saves) json_array_append_new(settings, json_pack("[s, s]", "save-every", policy ? "10000" : "100"));
    mx_config *c;
    const char *env;
    mx_dqn_options o;
    MX_TRY(config_of(settings, &c, err));
    mx_status st = policy ? mx_dqn_run_options(c, &env, &o, err) : MX_OK;
    mx_config_close(c);
    return st;
}

mx_status mx_training_submit(mx_training *t, const mx_training_spec *spec, mx_training_view *out, mx_error *err)
{
    char id[32];
    json_t *settings = json_array();
    mx_status st = settings ? read_spec(t, spec, settings, err) : mx_fail(err, MX_ERR_NO_MEMORY, "a job");
    job *j = NULL;
    pthread_mutex_lock(&t->lock);
    int waiting = 0;
    for (const job *k = t->jobs; k; k = k->next) waiting += k->v.state == MX_TRAINING_QUEUED;
    if (!st && waiting >= MOST_WAITING) st = mx_fail(err, MX_ERR_BUSY, "%d training jobs wait", waiting);
    if (!st) {
        snprintf(id, sizeof id, "job-%06lld", (long long)t->last_id + 1);
        j = new_job(t, id);
        if (!j) st = mx_fail(err, MX_ERR_NO_MEMORY, "a job");
    }
    if (!st) {
        snprintf(j->v.name, sizeof j->v.name, "%s", spec->name);
        snprintf(j->v.kind, sizeof j->v.kind, "%s", spec->kind);
        j->v.state = MX_TRAINING_QUEUED;
        j->v.created_ms = mx_wall_ms();
        j->settings = json_incref(settings);
        if (mkdir(j->folder, 0777)) st = mx_fail(err, MX_ERR_IO, "%s: %s", j->folder, strerror(errno));
        if (!st) st = save(j, err);
    }
    if (!st) {
        t->last_id++;
        add_job(t, j);
        *out = j->v;
        pthread_cond_broadcast(&t->change);
    } else if (j) {
        rmdir(j->folder);
        free_job(j);
    }
    pthread_mutex_unlock(&t->lock);
    json_decref(settings);
    return st;
}

/* ---- asking ------------------------------------------------------------------------------------------------ */

static job *find(mx_training *t, const char *id, mx_error *err)
{
    for (job *j = t->jobs; j; j = j->next)
        if (!strcmp(j->v.id, id)) return j;
    mx_fail(err, MX_ERR_NOT_FOUND, "id: there is no training job \"%.40s\"", id);
    return NULL;
}

mx_status mx_training_get(mx_training *t, const char *id, mx_training_view *out, mx_error *err)
{
    pthread_mutex_lock(&t->lock);
    const job *j = find(t, id, err);
    if (j) *out = j->v;
    pthread_mutex_unlock(&t->lock);
    return j ? MX_OK : MX_ERR_NOT_FOUND;
}

mx_status mx_training_cancel(mx_training *t, const char *id, mx_training_view *out, mx_error *err)
{
    pthread_mutex_lock(&t->lock);
    job *j = find(t, id, err);
    if (j && j->v.state == MX_TRAINING_QUEUED) {
        j->v.state = MX_TRAINING_CANCELLED;
        j->v.ended_ms = mx_wall_ms();
        save_or_log(j);
        wake_watchers(t, j);
    }
    if (j && j->v.state == MX_TRAINING_RUNNING) j->cancel = true;
    if (j) *out = j->v;
    pthread_mutex_unlock(&t->lock);
    return j ? MX_OK : MX_ERR_NOT_FOUND;
}

mx_training_view *mx_training_list(mx_training *t, int *n)
{
    pthread_mutex_lock(&t->lock);
    *n = 0;
    for (const job *j = t->jobs; j; j = j->next) ++*n;
    mx_training_view *v = malloc(((size_t)*n + 1) * sizeof *v);
    int i = 0;
    for (const job *j = t->jobs; v && j; j = j->next) v[i++] = j->v;
    pthread_mutex_unlock(&t->lock);
    return v;
}

mx_status mx_training_watch(mx_training *t, const char *id, void (*wake)(void *ctx), void *ctx, mx_error *err)
{
    watcher *w = calloc(1, sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "a watcher");
    pthread_mutex_lock(&t->lock);
    const job *j = find(t, id, err);
    *w = (watcher){t->watchers, j, wake, ctx};
    if (j) t->watchers = w;
    pthread_mutex_unlock(&t->lock);
    if (!j) free(w);
    return j ? MX_OK : MX_ERR_NOT_FOUND;
}

void mx_training_unwatch(mx_training *t, void *ctx)
{
    pthread_mutex_lock(&t->lock);
    for (watcher **at = &t->watchers; *at;) {
        watcher *w = *at;
        if (w->ctx != ctx) {
            at = &w->next;
            continue;
        }
        *at = w->next;
        free(w);
    }
    pthread_mutex_unlock(&t->lock);
}

mx_status mx_training_checkpoint(mx_training *t, const char *id, char out[1024], mx_error *err)
{
    mx_training_view v;
    int64_t step;
    mx_error why = {0};
    MX_TRY(mx_training_get(t, id, &v, err));
    if (mx_snapshot_latest(v.folder, out, &step, NULL, NULL, &why)) return mx_fail(err, MX_ERR_STATE, "training_job: %s has no checkpoint yet", id);
    return MX_OK;
}
