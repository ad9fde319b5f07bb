/* experiments.c - the thread that owns the bandits and their log. */
#include "server/experiments.h"

#include "runtime/clock.h"
#include "runtime/log.h"
#include "server/store.h"

#include <jansson.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DAY_MS 86400000.0

typedef struct experiment {
    struct experiment *next;
    mx_experiment_spec spec;
    mx_bandit *bandit;
    char      *json;
    bool       paused, changed;
    int32_t    promoted;
    int64_t    created_ms, version, choices;      /* version: outcomes learned */
    double     made[MX_BANDIT_ARMS], expected[MX_BANDIT_ARMS];
} experiment;

struct mx_experiments {
    mx_store        *store;
    experiment      *list;            /* the thread's own, but for names under the lock */
    pthread_mutex_t  lock;
    pthread_cond_t   news;
    pthread_t        thread;
    bool             started, stop;
    mx_experiment_op *first, **last;
};

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static double uniform(uint64_t x)
{
    return (double)(mix(x) >> 11) * 0x1p-53;
}

static uint64_t hash_text(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;                   /* FNV-1a */
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

/* ---- a description as JSON -------------------------------------------------------------------- */

static char *spec_json(const mx_experiment_spec *s)
{
    const mx_bandit_options *o = &s->bandit;
    char seed[24];
    json_t *arms = json_array();
    for (int32_t i = 0; i < o->arms; i++) json_array_append_new(arms, json_string(s->arm[i]));
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)s->seed);
    json_t *j = json_pack("{s:s, s:o, s:i, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:b, s:f, s:s}", "policy", mx_bandit_policy_name(o->policy), "arms",
                          arms, "dim", o->dim, "prior_a", o->prior_a, "prior_b", o->prior_b, "alpha", o->alpha, "lambda", o->lambda, "v", o->v,
                          "discount", o->discount, "floor", o->floor, "holdout", s->holdout, "sticky", s->sticky, "window_days", s->window_days,
                          "seed", seed);
    char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    json_decref(j);
    return text;
}

static double number(const json_t *j, const char *key)
{
    return json_number_value(json_object_get(j, key));
}

static mx_status spec_read(mx_experiment_spec *s, const char *id, const char *text, mx_error *err)
{
    json_t *j = json_loads(text, 0, NULL);
    const json_t *arms = json_object_get(j, "arms");
    const char *policy = json_string_value(json_object_get(j, "policy")), *seed = json_string_value(json_object_get(j, "seed"));
    size_t n = json_array_size(arms);
    *s = (mx_experiment_spec){.holdout = number(j, "holdout"), .sticky = json_is_true(json_object_get(j, "sticky")), .window_days = number(j, "window_days")};
    s->bandit = (mx_bandit_options){.policy = MX_BANDIT_POLICIES, .arms = (int32_t)n, .dim = (int32_t)number(j, "dim"), .prior_a = number(j, "prior_a"),
                                    .prior_b = number(j, "prior_b"), .alpha = number(j, "alpha"), .lambda = number(j, "lambda"),
                                    .v = number(j, "v"), .discount = number(j, "discount"), .floor = number(j, "floor")};
    for (int p = 0; policy && p < MX_BANDIT_POLICIES; p++)
        if (!strcmp(policy, mx_bandit_policy_name((mx_bandit_policy)p))) s->bandit.policy = (mx_bandit_policy)p;
    snprintf(s->id, sizeof s->id, "%s", id);
    s->seed = seed ? strtoull(seed, NULL, 10) : 0;
    s->arm = n && n <= MX_BANDIT_ARMS ? calloc(n, sizeof *s->arm) : NULL;
    for (size_t i = 0; s->arm && i < n; i++) {
        const char *name = json_string_value(json_array_get(arms, i));
        snprintf(s->arm[i], sizeof s->arm[i], "%s", name ? name : "");
    }
    json_decref(j);
    return s->arm ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "experiment %s: its description is broken", id);
}

/* ---- experiments in memory ---------------------------------------------------------------------- */

static void free_experiment(experiment *e)
{
    mx_bandit_close(e->bandit);
    free(e->spec.arm);
    free(e->json);
    free(e);
}

static void free_all(mx_experiments *x)
{
    for (experiment *e = x->list, *next; e; e = next) {
        next = e->next;
        free_experiment(e);
    }
    x->list = NULL;
}

static experiment *find(const mx_experiments *x, const char *id)
{
    for (experiment *e = x->list; e; e = e->next)
        if (!strcmp(e->spec.id, id)) return e;
    return NULL;
}

static void append(mx_experiments *x, experiment *e)
{
    experiment **at = &x->list;
    while (*at) at = &(*at)->next;
    *at = e;
}

/* The blob: version, choices, made[], expected[], then the bandit's own state. */
static size_t head_size(const experiment *e)
{
    return (2 + 2 * (size_t)e->spec.bandit.arms) * sizeof(double);
}

static mx_status put(mx_experiments *x, experiment *e, mx_error *err)
{
    size_t K = (size_t)e->spec.bandit.arms, head = head_size(e), size = head + mx_bandit_state_size(e->bandit);
    double *blob = malloc(size);
    if (!blob) return mx_fail(err, MX_ERR_NO_MEMORY, "the state of experiment %s", e->spec.id);
    blob[0] = (double)e->version;
    blob[1] = (double)e->choices;
    memcpy(blob + 2, e->made, K * sizeof *blob);
    memcpy(blob + 2 + K, e->expected, K * sizeof *blob);
    mx_bandit_state_save(e->bandit, (char *)blob + head);
    mx_experiment_row r = {e->spec.id, e->json, e->created_ms, e->paused, e->promoted, blob, size};
    mx_status st = mx_store_put_experiment(x->store, &r, err);
    free(blob);
    e->changed = false;
    return st;
}

static mx_status take(void *ctx, const mx_experiment_row *r, mx_error *err)
{
    mx_experiments *x = ctx;
    mx_status st;
    experiment *e = calloc(1, sizeof *e);
    if (!e) return mx_fail(err, MX_ERR_NO_MEMORY, "experiment %s", r->id);
    e->created_ms = r->created_ms;
    e->paused = r->paused != 0;
    e->promoted = r->promoted;
    e->json = strdup(r->spec);
    MX_TRY_GOTO(st, spec_read(&e->spec, r->id, r->spec, err), fail);
    MX_TRY_GOTO(st, mx_bandit_open(&e->bandit, &e->spec.bandit, err), fail);
    size_t K = (size_t)e->spec.bandit.arms, head = head_size(e);
    if (r->state_size < head || !e->json) {
        st = mx_fail(err, MX_ERR_FORMAT, "experiment %s: its state is broken", r->id);
        goto fail;
    }
    double numbers[2];
    memcpy(numbers, r->state, sizeof numbers);
    e->version = (int64_t)numbers[0];
    e->choices = (int64_t)numbers[1];
    memcpy(e->made, (const char *)r->state + sizeof numbers, K * sizeof(double));
    memcpy(e->expected, (const char *)r->state + sizeof numbers + K * sizeof(double), K * sizeof(double));
    MX_TRY_GOTO(st, mx_bandit_state_load(e->bandit, (const char *)r->state + head, r->state_size - head, err), fail);
    append(x, e);
    return MX_OK;
fail:
    free_experiment(e);
    return st;
}

static mx_status read_all(mx_experiments *x, mx_error *err)
{
    free_all(x);
    return mx_store_each_experiment(x->store, take, x, err);
}

/* ---- creating ------------------------------------------------------------------------------------- */

static mx_status check_spec(const mx_experiment_spec *s, mx_error *err)
{
    size_t n = strlen(s->id);
    if (!n || strspn(s->id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") != n)
        return mx_fail(err, MX_ERR_ARG, "id: 1 to %d letters, digits and . _ -", MX_EXPERIMENT_ID - 1);
    if (!(s->holdout >= 0 && s->holdout < 1)) return mx_fail(err, MX_ERR_ARG, "holdout is %g; it must be in [0, 1)", s->holdout);
    if (!(s->window_days > 0 && s->window_days <= 3650)) return mx_fail(err, MX_ERR_ARG, "window_days is %g; it must be over 0, at most 3650", s->window_days);
    for (int32_t i = 0; i < s->bandit.arms; i++) {
        if (!s->arm[i][0]) return mx_fail(err, MX_ERR_ARG, "arms[%d]: empty", i);
        for (int32_t k = 0; k < i; k++)
            if (!strcmp(s->arm[i], s->arm[k])) return mx_fail(err, MX_ERR_ARG, "arms[%d]: \"%s\" is there twice", i, s->arm[i]);
    }
    return MX_OK;
}

static mx_status create(mx_experiments *x, mx_experiment_op *op)
{
    mx_bandit *bandit = NULL;
    MX_TRY(mx_bandit_open(&bandit, &op->spec->bandit, &op->err));
    mx_status st = check_spec(op->spec, &op->err);
    if (!st && find(x, op->spec->id)) st = mx_fail(&op->err, MX_ERR_ARG, "id: there is an experiment \"%s\" already", op->spec->id);
    experiment *e = st ? NULL : calloc(1, sizeof *e);
    if (!st && !e) st = mx_fail(&op->err, MX_ERR_NO_MEMORY, "an experiment");
    if (st) {
        mx_bandit_close(bandit);
        return st;
    }
    e->spec = *op->spec;
    op->spec->arm = NULL;
    e->bandit = bandit;
    e->promoted = -1;
    e->created_ms = mx_wall_ms();
    e->json = spec_json(&e->spec);
    if (!e->json) {
        free_experiment(e);
        return mx_fail(&op->err, MX_ERR_NO_MEMORY, "an experiment");
    }
    st = put(x, e, &op->err);                          /* at once: choices refer to it */
    pthread_mutex_lock(&x->lock);
    append(x, e);
    pthread_mutex_unlock(&x->lock);
    op->id = e->spec.id;
    return st;
}

/* ---- choosing ---------------------------------------------------------------------------------------- */

static mx_status decide(mx_experiments *x, experiment *e, mx_experiment_op *op, mx_decision_row *d)
{
    mx_decision_row earlier;
    bool found = false;
    double p[MX_BANDIT_ARMS];
    const double *context = op->n_context ? op->context : NULL;
    int32_t dim = e->spec.bandit.policy >= MX_BANDIT_LINUCB ? e->spec.bandit.dim : 0;
    if (op->n_context != dim) return mx_fail(&op->err, MX_ERR_ARG, "context: %d numbers; the experiment has %d", op->n_context, dim);
    d->arm = 0;
    d->propensity = 1;
    if (e->promoted >= 0 || e->paused) {
        d->arm = e->promoted >= 0 ? e->promoted : 0;
        d->flags = MX_DECISION_FIXED;
        return MX_OK;
    }
    if (uniform(e->spec.seed ^ hash_text(op->unit)) < e->spec.holdout) {
        d->flags = MX_DECISION_HOLDOUT;
        return MX_OK;
    }
    MX_TRY(mx_bandit_propensities(e->bandit, context, p, &op->err));        /* checks the context too */
    if (e->spec.sticky) MX_TRY(mx_store_first_decision(x->store, e->spec.id, op->unit, &earlier, &found, &op->err));
    if (found) {
        d->arm = earlier.arm;
        d->propensity = earlier.propensity;
        d->flags = MX_DECISION_STICKY;
        return MX_OK;
    }
    d->arm = mx_bandit_draw(p, e->spec.bandit.arms, uniform(mix(e->spec.seed) + (uint64_t)e->choices));
    d->propensity = p[d->arm];
    for (int32_t i = 0; i < e->spec.bandit.arms; i++) e->expected[i] += p[i];
    e->made[d->arm]++;
    e->choices++;
    e->changed = true;
    return MX_OK;
}

static mx_status select_arm(mx_experiments *x, mx_experiment_op *op)
{
    experiment *e = find(x, op->id);
    if (!e) return mx_fail(&op->err, MX_ERR_NOT_FOUND, "experiment_id: there is no \"%.100s\"", op->id);
    if (!*op->unit || strlen(op->unit) >= MX_UNIT) return mx_fail(&op->err, MX_ERR_ARG, "unit_id: 1 to %d bytes", MX_UNIT - 1);
    mx_decision_row d = {.experiment = e->spec.id, .unit = op->unit, .version = e->version, .ts_ms = mx_wall_ms(), .context = op->context, .n_context = op->n_context};
    MX_TRY(decide(x, e, op, &d));
    MX_TRY(mx_store_add_decision(x->store, &d, &op->err));
    op->selection = (mx_selection){.decision = d.id, .arm = d.arm, .flags = d.flags, .propensity = d.propensity, .version = d.version, .policy = e->spec.bandit.policy};
    snprintf(op->selection.arm_name, sizeof op->selection.arm_name, "%s", e->spec.arm[d.arm]);
    mx_bandit_arm_get(e->bandit, d.arm, &op->selection.posterior);
    return MX_OK;
}

/* ---- outcomes -------------------------------------------------------------------------------------------- */

static mx_status one_outcome(mx_experiments *x, const mx_outcome *o, mx_outcome_counts *c, mx_error *err)
{
    mx_decision_row d;
    bool found, duplicate;
    mx_error why = {0};
    int64_t ts = o->ts_ms ? o->ts_ms : mx_wall_ms();
    MX_TRY(mx_store_get_decision(x->store, o->decision, &d, &found, err));
    experiment *e = found ? find(x, d.experiment) : NULL;
    if (!e) return c->unknown++, MX_OK;
    bool taught = !(d.flags & (MX_DECISION_HOLDOUT | MX_DECISION_FIXED));
    if ((double)(ts - d.ts_ms) > e->spec.window_days * DAY_MS) return c->late++, MX_OK;
    bool unit = e->spec.bandit.policy < MX_BANDIT_LINUCB;
    if (unit ? !(o->value >= 0 && o->value <= 1) : !(fabs(o->value) <= 1e9)) return c->wrong++, MX_OK;
    MX_TRY(mx_store_add_outcome(x->store, o->decision, o->key, o->value, ts, taught, &duplicate, err));
    if (duplicate) return c->duplicate++, MX_OK;
    if (taught) {
        mx_status st = mx_bandit_learn(e->bandit, d.arm, d.context, o->value, (double)ts / DAY_MS, &why);
        if (st) return mx_fail(err, st, "%s", why.text);
        e->version++;
        e->changed = true;
    }
    c->accepted++;
    return MX_OK;
}

static mx_status outcomes(mx_experiments *x, mx_experiment_op *op)
{
    if (op->n_outcomes < 1 || op->n_outcomes > MX_OUTCOMES) return mx_fail(&op->err, MX_ERR_ARG, "outcomes: %d of them, 1..%d are allowed", op->n_outcomes, MX_OUTCOMES);
    for (int32_t i = 0; i < op->n_outcomes; i++) {
        if (strlen(op->outcomes[i].key) >= MX_OUTCOME_KEY) return mx_fail(&op->err, MX_ERR_ARG, "outcomes[%d].key: over %d bytes", i, MX_OUTCOME_KEY - 1);
        MX_TRY(one_outcome(x, &op->outcomes[i], &op->counts, &op->err));
    }
    return MX_OK;
}

/* ---- figures ------------------------------------------------------------------------------------------------ */

typedef struct gather { mx_ope_row *row; int32_t *arm; size_t n, room; } gather;

static mx_status gather_one(void *ctx, const mx_decision_row *d, double value, int64_t ts_ms, mx_error *err)
{
    gather *g = ctx;
    (void)ts_ms;
    if (g->n == g->room) {
        size_t room = g->room ? 2 * g->room : 1024;
        mx_ope_row *row = realloc(g->row, room * sizeof *row);
        if (row) g->row = row;
        int32_t *arm = row ? realloc(g->arm, room * sizeof *arm) : NULL;
        if (arm) g->arm = arm;
        if (!arm) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu outcomes", room);
        g->room = room;
    }
    g->arm[g->n] = d->arm;
    g->row[g->n++] = (mx_ope_row){.reward = value, .mu = d->propensity};
    return MX_OK;
}

static mx_status off_policy(mx_experiments *x, const experiment *e, mx_experiment_view *v, mx_error *err)
{
    gather g = {0};
    mx_error none = {0};
    mx_status st = mx_store_each_outcome(x->store, e->spec.id, gather_one, &g, err);
    for (int32_t a = 0; !st && g.n && a < e->spec.bandit.arms; a++) {
        for (size_t i = 0; i < g.n; i++) g.row[i].pi = g.arm[i] == a;
        mx_ope_estimate(g.row, g.n, 0, &v->arm[a].always, &none);
    }
    free(g.row);
    free(g.arm);
    return st;
}

static mx_status show(mx_experiments *x, mx_experiment_op *op)
{
    const experiment *e = find(x, op->id);
    mx_experiment_view *v = &op->view;
    double p[MX_BANDIT_ARMS] = {0};
    if (!e) return mx_fail(&op->err, MX_ERR_NOT_FOUND, "experiment_id: there is no \"%.100s\"", op->id);
    int32_t K = e->spec.bandit.arms;
    *v = (mx_experiment_view){.spec = e->spec, .paused = e->paused, .promoted = e->promoted, .created_ms = e->created_ms, .version = e->version, .choices = e->choices};
    v->spec.arm = malloc((size_t)K * sizeof *v->spec.arm);
    v->arm = calloc((size_t)K, sizeof *v->arm);
    if (!v->spec.arm || !v->arm) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "an experiment's figures");
    memcpy(v->spec.arm, e->spec.arm, (size_t)K * sizeof *v->spec.arm);
    if (e->spec.bandit.policy < MX_BANDIT_LINUCB) MX_TRY(mx_bandit_propensities(e->bandit, NULL, p, &op->err));
    for (int32_t i = 0; i < K; i++) {
        mx_experiment_arm *a = &v->arm[i];
        mx_bandit_arm_get(e->bandit, i, &a->learned);
        a->choices = e->made[i];
        a->expected = e->expected[i];
        a->share = p[i];
    }
    v->ratio_p = mx_sample_ratio(e->made, e->expected, K);
    MX_TRY(off_policy(x, e, v, &op->err));
    for (int32_t i = 0; i < K; i++) mx_always_valid(v->arm[i].always.snips, v->arm[i].always.ess, 0.05, &v->arm[i].low, &v->arm[i].high);
    return MX_OK;
}

static mx_status set(mx_experiments *x, mx_experiment_op *op)
{
    experiment *e = find(x, op->id);
    if (!e) return mx_fail(&op->err, MX_ERR_NOT_FOUND, "experiment_id: there is no \"%.100s\"", op->id);
    if (op->promote >= e->spec.bandit.arms) return mx_fail(&op->err, MX_ERR_ARG, "arm is %d; there are %d", op->promote, e->spec.bandit.arms);
    if (op->pause >= 0) e->paused = op->pause != 0;
    if (op->promote >= -1) e->promoted = op->promote;
    MX_TRY(put(x, e, &op->err));
    return show(x, op);
}

void mx_experiment_view_close(mx_experiment_view *v)
{
    free(v->spec.arm);
    free(v->arm);
    *v = (mx_experiment_view){0};
}

/* ---- the thread -------------------------------------------------------------------------------------------------- */

static mx_status carry_out(mx_experiments *x, mx_experiment_op *op)
{
    switch (op->kind) {
    case MX_EXPERIMENT_CREATE: {
        mx_status st = create(x, op);
        return st ? st : show(x, op);
    }
    case MX_EXPERIMENT_VIEW: return show(x, op);
    case MX_EXPERIMENT_SELECT: return select_arm(x, op);
    case MX_EXPERIMENT_OUTCOMES: return outcomes(x, op);
    default: return set(x, op);
    }
}

/* All of a batch in one transaction; a failure of the disk is everybody's. */
static void carry_out_all(mx_experiments *x, mx_experiment_op *batch)
{
    mx_error err = {0}, again = {0};
    uint64_t began = mx_now_ns(&mx_clock_monotonic), ended;
    mx_status disk = mx_store_begin(x->store, &err);
    for (mx_experiment_op *op = batch; op && !disk; op = op->next) {
        op->st = carry_out(x, op);
        if (op->st == MX_ERR_IO) disk = mx_fail(&err, MX_ERR_IO, "%s", op->err.text);
    }
    for (experiment *e = x->list; e && !disk; e = e->next)
        if (e->changed) disk = put(x, e, &err);
    if (!disk) disk = mx_store_commit(x->store, &err);
    if (disk) {
        mx_log(MX_LOG_ERROR, "experiments", "%s: nothing of this batch is acknowledged", err.text);
        mx_store_rollback(x->store);
        pthread_mutex_lock(&x->lock);
        if (read_all(x, &again)) mx_log(MX_LOG_ERROR, "experiments", "%s", again.text);
        pthread_mutex_unlock(&x->lock);
    }
    ended = mx_now_ns(&mx_clock_monotonic);
    for (mx_experiment_op *op = batch, *next; op; op = next) {
        next = op->next;
        op->began_ns = began;
        op->ended_ns = ended;
        if (disk) {
            op->st = MX_ERR_IO;
            op->err = err;
        }
        op->done(op);
    }
}

static void *thread_main(void *ctx)
{
    mx_experiments *x = ctx;
    pthread_mutex_lock(&x->lock);
    while (!x->stop || x->first) {
        mx_experiment_op *batch = x->first;
        if (!batch) {
            pthread_cond_wait(&x->news, &x->lock);
            continue;
        }
        x->first = NULL;
        x->last = &x->first;
        pthread_mutex_unlock(&x->lock);
        carry_out_all(x, batch);
        pthread_mutex_lock(&x->lock);
    }
    pthread_mutex_unlock(&x->lock);
    return NULL;
}

void mx_experiments_submit(mx_experiments *x, mx_experiment_op *op)
{
    op->next = NULL;
    op->err = (mx_error){0};
    pthread_mutex_lock(&x->lock);
    *x->last = op;
    x->last = &op->next;
    pthread_cond_signal(&x->news);
    pthread_mutex_unlock(&x->lock);
}

mx_status mx_experiments_open(mx_experiments **out, const char *path, mx_error *err)
{
    mx_status st;
    *out = NULL;
    mx_experiments *x = calloc(1, sizeof *x);
    if (!x) return mx_fail(err, MX_ERR_NO_MEMORY, "experiments");
    pthread_mutex_init(&x->lock, NULL);
    pthread_cond_init(&x->news, NULL);
    x->last = &x->first;
    MX_TRY_GOTO(st, mx_store_open(&x->store, path, err), fail);
    MX_TRY_GOTO(st, read_all(x, err), fail);
    if (pthread_create(&x->thread, NULL, thread_main, x)) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "experiments: a thread could not start");
        goto fail;
    }
    x->started = true;
    *out = x;
    return MX_OK;
fail:
    mx_experiments_close(x);
    return st;
}

void mx_experiments_close(mx_experiments *x)
{
    if (!x) return;
    pthread_mutex_lock(&x->lock);
    x->stop = true;
    pthread_cond_signal(&x->news);
    pthread_mutex_unlock(&x->lock);
    if (x->started) pthread_join(x->thread, NULL);
    free_all(x);
    mx_store_close(x->store);
    pthread_cond_destroy(&x->news);
    pthread_mutex_destroy(&x->lock);
    free(x);
}

char *mx_experiments_names(mx_experiments *x, int *n)
{
    size_t size = 1;
    pthread_mutex_lock(&x->lock);
    *n = 0;
    for (const experiment *e = x->list; e; e = e->next) size += strlen(e->spec.id) + 1;
    char *names = malloc(size), *at = names;
    for (const experiment *e = x->list; names && e; e = e->next, ++*n) at = stpcpy(at, e->spec.id) + 1;
    pthread_mutex_unlock(&x->lock);
    return names;
}

/* ---- replay -------------------------------------------------------------------------------------------------------- */

static mx_status learn_again(void *ctx, const mx_decision_row *d, double value, int64_t ts_ms, mx_error *err)
{
    return mx_bandit_learn(ctx, d->arm, d->context, value, (double)ts_ms / DAY_MS, err);
}

mx_status mx_experiments_replay(mx_experiments *x, const char *id, bool *same, mx_error *err)
{
    mx_bandit *b = NULL;
    const experiment *e = find(x, id);
    if (!e) return mx_fail(err, MX_ERR_NOT_FOUND, "there is no experiment \"%.100s\"", id);
    MX_TRY(mx_bandit_open(&b, &e->spec.bandit, err));
    mx_status st = mx_store_each_outcome(x->store, id, learn_again, b, err);
    size_t size = mx_bandit_state_size(b);
    char *one = malloc(size), *two = malloc(size);
    if (!st && (!one || !two)) st = mx_fail(err, MX_ERR_NO_MEMORY, "a state");
    if (!st) {
        mx_bandit_state_save(e->bandit, one);
        mx_bandit_state_save(b, two);
        *same = !memcmp(one, two, size);
    }
    free(one);
    free(two);
    mx_bandit_close(b);
    return st;
}
