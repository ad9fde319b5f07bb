/* experiment_service.c - the service Experiments: requests become operations of
 * server/experiments.h, which are answered when they are on disk. */
#include "server/experiments.h"
#include "server/services.h"
#include "server/store.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One call and its operation.  done() comes from the experiments' thread. */
typedef struct work {
    mx_experiment_op op;
    mx_call    *call;
    mx_arena    decoded;              /* the request: the operation points into it */
    mx_experiment_spec spec;
    atomic_bool over;
    bool      (*answer)(struct work *w, mx_arena *scratch);
} work;

static void done(mx_experiment_op *op)
{
    work *w = (work *)op;
    mx_call *call = w->call;
    atomic_store(&w->over, true);
    mx_call_wake(call);
}

static void pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    if (!atomic_load(&w->over)) return;
    mx_call_turn(call, w->op.began_ns, w->op.ended_ns);
    if (w->op.st) mx_call_finish(call, w->op.st, w->op.err.text);
    else if (w->answer(w, scratch)) mx_call_finish(call, MX_OK, NULL);
    else mx_call_finish(call, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
}

static void closed(void *user)
{
    work *w = user;
    mx_experiment_view_close(&w->op.view);
    free(w->spec.arm);
    mx_arena_close(&w->decoded);
    free(w);
}

/* The request, decoded into memory of the work; on an error there is no work. */
static mx_status open_work(work **out, mx_app *app, const ProtobufCMessageDescriptor *type, const uint8_t *msg, size_t len, mx_arena *scratch,
                           ProtobufCMessage **m, mx_error *err)
{
    *out = NULL;
    if (!app->experiments) return mx_fail(err, MX_ERR_STATE, "experiments are off: start the server with --experiments");
    work *w = calloc(1, sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    mx_arena_open(&w->decoded, scratch->budget);
    mx_status st = mx_message_decode(&w->decoded, type, msg, len, m, err);
    if (st) closed(w);
    else *out = w;
    return st;
}

static mx_status go(mx_app *app, mx_call *call, work *w, mx_experiment_kind kind, bool (*answer)(work *, mx_arena *))
{
    static const mx_call_handler handler = {.pump = pump, .closed = closed};
    w->call = call;
    w->answer = answer;
    w->op.kind = kind;
    w->op.done = done;
    mx_call_attach(call, &handler, w);
    mx_experiments_submit(app->experiments, &w->op);
    return MX_OK;
}

/* ---- an experiment as a message ------------------------------------------------------------ */

static void fill_arm(Merx__V1__ExperimentArm *m, const mx_experiment_arm *a, char *name)
{
    merx__v1__experiment_arm__init(m);
    m->name = name;
    m->choices = a->choices;
    m->expected = a->expected;
    m->outcomes = a->learned.n;
    m->mean = a->learned.mean;
    m->low = a->learned.low;
    m->high = a->learned.high;
    m->share = a->share;
    m->always_mean = a->always.snips;
    m->always_low = a->low;
    m->always_high = a->high;
    m->always_ess = a->always.ess;
}

static bool answer_view(work *w, mx_arena *scratch)
{
    mx_experiment_view *v = &w->op.view;
    size_t n = (size_t)v->spec.bandit.arms;
    Merx__V1__Experiment r = MERX__V1__EXPERIMENT__INIT;
    Merx__V1__ExperimentArm *arms = mx_arena_array(scratch, n, sizeof *arms);
    r.arms = mx_arena_array(scratch, n, sizeof *r.arms);
    if (!arms || !r.arms) return false;
    for (size_t i = 0; i < n; i++) {
        fill_arm(&arms[i], &v->arm[i], v->spec.arm[i]);
        r.arms[i] = &arms[i];
    }
    r.n_arms = n;
    r.id = v->spec.id;
    r.policy = (char *)(uintptr_t)mx_bandit_policy_name(v->spec.bandit.policy);
    r.paused = v->paused;
    if (v->promoted >= 0) r.promoted = v->spec.arm[v->promoted];
    r.created_ms = v->created_ms;
    r.version = v->version;
    r.choices = v->choices;
    r.ratio_p = v->ratio_p;
    r.holdout = v->spec.holdout;
    r.sticky = v->spec.sticky;
    r.floor = v->spec.bandit.floor;
    return mx_call_send(w->call, &r.base, false);
}

/* ---- CreateExperiment ------------------------------------------------------------------------ */

static mx_status read_spec(const Merx__V1__CreateExperimentRequest *q, mx_experiment_spec *s, mx_error *err)
{
    mx_bandit_options *o = &s->bandit;
    *o = mx_bandit_defaults();
    if (q->n_arms < 2 || q->n_arms > MX_BANDIT_ARMS) return mx_fail(err, MX_ERR_ARG, "arms: %zu of them, 2..%d are allowed", q->n_arms, MX_BANDIT_ARMS);
    if (strlen(q->id) >= sizeof s->id) return mx_fail(err, MX_ERR_ARG, "id: longer than %d bytes", MX_EXPERIMENT_ID - 1);
    snprintf(s->id, sizeof s->id, "%s", q->id);
    int p = 0;
    while (*q->policy && p < MX_BANDIT_POLICIES && strcmp(q->policy, mx_bandit_policy_name((mx_bandit_policy)p))) p++;
    if (p == MX_BANDIT_POLICIES) return mx_fail(err, MX_ERR_ARG, "policy: \"%.60s\" is none of beta_thompson, ucb1, linucb, linear_thompson", q->policy);
    o->policy = (mx_bandit_policy)p;
    o->arms = (int32_t)q->n_arms;
    o->dim = q->dim;
    o->floor = q->floor;
    if (q->discount != 0) o->discount = q->discount;
    if (q->_prior_a_case) o->prior_a = q->prior_a;
    if (q->_prior_b_case) o->prior_b = q->prior_b;
    if (q->_alpha_case) o->alpha = q->alpha;
    if (q->_v_case) o->v = q->v;
    if (q->_lambda_case) o->lambda = q->lambda;
    s->holdout = q->holdout;
    s->sticky = q->sticky;
    s->window_days = q->window_days != 0 ? q->window_days : 30;
    s->seed = q->seed;
    s->arm = calloc(q->n_arms, sizeof *s->arm);
    if (!s->arm) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    for (size_t i = 0; i < q->n_arms; i++) {
        if (strlen(q->arms[i]) >= sizeof *s->arm) return mx_fail(err, MX_ERR_ARG, "arms[%zu]: longer than %d bytes", i, MX_EXPERIMENT_ID - 1);
        snprintf(s->arm[i], sizeof *s->arm, "%s", q->arms[i]);
    }
    return MX_OK;
}

MX_METHOD(mx_experiment_create_begin)
{
    ProtobufCMessage *m;
    work *w;
    MX_TRY(open_work(&w, app, &merx__v1__create_experiment_request__descriptor, msg, len, scratch, &m, err));
    mx_status st = read_spec((const Merx__V1__CreateExperimentRequest *)m, &w->spec, err);
    if (st) {
        closed(w);
        return st;
    }
    w->op.spec = &w->spec;
    return go(app, call, w, MX_EXPERIMENT_CREATE, answer_view);
}

/* ---- Get, List, Promote, Pause ------------------------------------------------------------------ */

MX_METHOD(mx_experiment_get_begin)
{
    ProtobufCMessage *m;
    work *w;
    MX_TRY(open_work(&w, app, &merx__v1__get_experiment_request__descriptor, msg, len, scratch, &m, err));
    w->op.id = ((const Merx__V1__GetExperimentRequest *)m)->id;
    return go(app, call, w, MX_EXPERIMENT_VIEW, answer_view);
}

MX_METHOD(mx_experiment_list_begin)
{
    ProtobufCMessage *m;
    int n;
    if (!app->experiments) return mx_fail(err, MX_ERR_STATE, "experiments are off: start the server with --experiments");
    MX_TRY(mx_message_decode(scratch, &merx__v1__list_experiments_request__descriptor, msg, len, &m, err));
    Merx__V1__ListExperimentsResponse r = MERX__V1__LIST_EXPERIMENTS_RESPONSE__INIT;
    char *names = mx_experiments_names(app->experiments, &n), *at = names;
    r.ids = mx_arena_array(scratch, (size_t)n, sizeof *r.ids);
    r.n_ids = (size_t)n;
    for (int i = 0; r.ids && i < n; i++, at += strlen(at) + 1) r.ids[i] = at;
    bool ok = names && r.ids && mx_call_send(call, &r.base, false);
    free(names);
    if (!ok) return mx_fail(err, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}

/* An arm's index by its name is known to the thread alone: it is looked up with a view first. */
typedef struct promotion {
    mx_experiment_op op;              /* the view   */
    work *then;
    mx_app *app;
    const char *arm;
} promotion;

static void promote_named(mx_experiment_op *op)
{
    promotion *p = (promotion *)op;
    work *w = p->then;
    int32_t arm = -2;
    for (int32_t i = 0; !op->st && i < op->view.spec.bandit.arms; i++)
        if (!strcmp(op->view.spec.arm[i], p->arm)) arm = i;
    w->op.st = op->st;
    w->op.err = op->err;
    if (!op->st && arm < 0) w->op.st = mx_fail(&w->op.err, MX_ERR_NOT_FOUND, "arm: the experiment has no \"%.60s\"", p->arm);
    w->op.promote = arm;
    mx_experiments *x = p->app->experiments;
    bool failed = w->op.st != MX_OK;
    mx_experiment_view_close(&op->view);
    free(p);
    if (failed) done(&w->op);
    else mx_experiments_submit(x, &w->op);
}

MX_METHOD(mx_experiment_promote_begin)
{
    ProtobufCMessage *m;
    work *w;
    MX_TRY(open_work(&w, app, &merx__v1__promote_request__descriptor, msg, len, scratch, &m, err));
    const Merx__V1__PromoteRequest *q = (const Merx__V1__PromoteRequest *)m;
    w->op.id = q->id;
    w->op.pause = -1;
    w->op.promote = -1;
    if (q->clear) return go(app, call, w, MX_EXPERIMENT_SET, answer_view);
    promotion *p = calloc(1, sizeof *p);
    if (!p) {
        closed(w);
        return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    }
    static const mx_call_handler handler = {.pump = pump, .closed = closed};
    w->call = call;
    w->answer = answer_view;
    w->op.kind = MX_EXPERIMENT_SET;
    w->op.done = done;
    *p = (promotion){.op = {.kind = MX_EXPERIMENT_VIEW, .done = promote_named, .id = q->id}, .then = w, .app = app, .arm = q->arm};
    mx_call_attach(call, &handler, w);
    mx_experiments_submit(app->experiments, &p->op);
    return MX_OK;
}

MX_METHOD(mx_experiment_pause_begin)
{
    ProtobufCMessage *m;
    work *w;
    MX_TRY(open_work(&w, app, &merx__v1__pause_request__descriptor, msg, len, scratch, &m, err));
    const Merx__V1__PauseRequest *q = (const Merx__V1__PauseRequest *)m;
    w->op.id = q->id;
    w->op.pause = q->paused;
    w->op.promote = -2;
    return go(app, call, w, MX_EXPERIMENT_SET, answer_view);
}

/* ---- Select, ReportOutcome --------------------------------------------------------------------------- */

static bool answer_selection(work *w, mx_arena *scratch)
{
    mx_selection *s = &w->op.selection;
    char id[24];
    (void)scratch;
    Merx__V1__Selection r = MERX__V1__SELECTION__INIT;
    snprintf(id, sizeof id, "d%lld", (long long)s->decision);
    r.decision_id = id;
    r.arm = s->arm_name;
    r.arm_index = s->arm;
    r.propensity = s->propensity;
    r.policy = (char *)(uintptr_t)mx_bandit_policy_name(s->policy);
    r.holdout = (s->flags & MX_DECISION_HOLDOUT) != 0;
    r.sticky = (s->flags & MX_DECISION_STICKY) != 0;
    r.fixed = (s->flags & MX_DECISION_FIXED) != 0;
    r.version = s->version;
    r.posterior_mean = s->posterior.mean;
    r.posterior_low = s->posterior.low;
    r.posterior_high = s->posterior.high;
    r.posterior_n = s->posterior.n;
    return mx_call_send(w->call, &r.base, false);
}

MX_METHOD(mx_experiment_select_begin)
{
    ProtobufCMessage *m;
    work *w;
    MX_TRY(open_work(&w, app, &merx__v1__select_request__descriptor, msg, len, scratch, &m, err));
    const Merx__V1__SelectRequest *q = (const Merx__V1__SelectRequest *)m;
    w->op.id = q->experiment_id;
    w->op.unit = q->unit_id;
    w->op.context = q->context;
    w->op.n_context = q->n_context > MX_BANDIT_DIM ? MX_BANDIT_DIM + 1 : (int32_t)q->n_context;
    return go(app, call, w, MX_EXPERIMENT_SELECT, answer_selection);
}

static bool answer_counts(work *w, mx_arena *scratch)
{
    const mx_outcome_counts *c = &w->op.counts;
    (void)scratch;
    Merx__V1__ReportOutcomeResponse r = MERX__V1__REPORT_OUTCOME_RESPONSE__INIT;
    r.accepted = c->accepted;
    r.duplicate = c->duplicate;
    r.late = c->late;
    r.unknown = c->unknown;
    r.wrong = c->wrong;
    return mx_call_send(w->call, &r.base, false);
}

/* -1: no id of ours, so an unknown decision. */
static int64_t decision_of(const char *id)
{
    char *end;
    if (id[0] != 'd' || !id[1] || strlen(id) > 20) return -1;
    int64_t n = strtoll(id + 1, &end, 10);
    return *end || n < 1 ? -1 : n;
}

MX_METHOD(mx_experiment_outcome_begin)
{
    ProtobufCMessage *m;
    work *w;
    MX_TRY(open_work(&w, app, &merx__v1__report_outcome_request__descriptor, msg, len, scratch, &m, err));
    const Merx__V1__ReportOutcomeRequest *q = (const Merx__V1__ReportOutcomeRequest *)m;
    mx_outcome *list = q->n_outcomes <= MX_OUTCOMES ? mx_arena_array(&w->decoded, q->n_outcomes + 1, sizeof *list) : NULL;
    for (size_t i = 0; list && i < q->n_outcomes; i++)
        list[i] = (mx_outcome){decision_of(q->outcomes[i]->decision_id), q->outcomes[i]->ts_ms, q->outcomes[i]->value, q->outcomes[i]->key};
    if (!list) {
        mx_status st = q->n_outcomes > MX_OUTCOMES ? mx_fail(err, MX_ERR_ARG, "outcomes: %zu of them, 1..%d are allowed", q->n_outcomes, MX_OUTCOMES)
                                                   : mx_fail(err, MX_ERR_NO_MEMORY, "outcomes: over the request's memory budget");
        closed(w);
        return st;
    }
    w->op.outcomes = list;
    w->op.n_outcomes = (int32_t)q->n_outcomes;
    return go(app, call, w, MX_EXPERIMENT_OUTCOMES, answer_counts);
}
