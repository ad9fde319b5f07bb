/* generate_style.c - a generation in the style that an experiment chooses: the arm is asked
 * of server/experiments.h, is on disk before the text begins, and its words are put round
 * the prompt. */
#include "server/experiments.h"
#include "server/services.h"
#include "server/store.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mx_style {
    mx_experiment_op op;
    mx_call    *call;
    atomic_bool over;
    char       *experiment, *unit;
    double     *context;
    char        decision[24];
};

static void done(mx_experiment_op *op)
{
    mx_style *s = (mx_style *)op;
    mx_call *call = s->call;
    atomic_store(&s->over, true);
    mx_call_wake(call);
}

static mx_status check(const mx_app *app, const Merx__V1__StyleChoice *q, mx_error *err)
{
    if (!app->experiments) return mx_fail(err, MX_ERR_STATE, "style: experiments are off: start the server with --experiments");
    if (!*q->experiment_id || !*q->unit_id) return mx_fail(err, MX_ERR_ARG, "style: experiment_id and unit_id are needed");
    if (strlen(q->experiment_id) >= MX_EXPERIMENT_ID || strlen(q->unit_id) >= MX_UNIT)
        return mx_fail(err, MX_ERR_ARG, "style: experiment_id has at most %d bytes, unit_id %d", MX_EXPERIMENT_ID - 1, MX_UNIT - 1);
    if (q->n_context > MX_BANDIT_DIM) return mx_fail(err, MX_ERR_ARG, "style.context: %zu numbers, at most %d", q->n_context, MX_BANDIT_DIM);
    if (q->n_styles > MX_BANDIT_ARMS) return mx_fail(err, MX_ERR_ARG, "style.styles: %zu of them, at most %d", q->n_styles, MX_BANDIT_ARMS);
    for (size_t i = 0; i < q->n_styles; i++)
        for (size_t j = 0; j <= i; j++)
            if (j < i ? !strcmp(q->styles[j]->arm, q->styles[i]->arm) : !*q->styles[i]->arm)
                return mx_fail(err, MX_ERR_ARG, "style.styles[%zu]: %s", i, j < i ? "its arm has a style already" : "arm is empty");
    return MX_OK;
}

mx_status mx_style_ask(mx_style **out, const mx_app *app, mx_call *call, const Merx__V1__StyleChoice *q, mx_error *err)
{
    MX_TRY(check(app, q, err));
    mx_style *s = calloc(1, sizeof *s);
    if (s) {
        s->experiment = strdup(q->experiment_id);
        s->unit = strdup(q->unit_id);
        s->context = malloc((q->n_context + 1) * sizeof *s->context);
    }
    if (!s || !s->experiment || !s->unit || !s->context) {
        mx_style_close(s);
        return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    }
    if (q->n_context) memcpy(s->context, q->context, q->n_context * sizeof *s->context);
    s->call = call;
    s->op = (mx_experiment_op){.kind = MX_EXPERIMENT_SELECT, .done = done, .id = s->experiment, .unit = s->unit, .context = s->context, .n_context = (int32_t)q->n_context};
    *out = s;
    mx_experiments_submit(app->experiments, &s->op);
    return MX_OK;
}

bool mx_style_ready(const mx_style *s)
{
    return atomic_load(&s->over);
}

void mx_style_close(mx_style *s)
{
    if (!s) return;
    free(s->experiment), free(s->unit), free(s->context);
    free(s);
}

static char *join(mx_arena *a, const char *before, const char *between, const char *behind)
{
    size_t n = strlen(before) + strlen(between) + strlen(behind) + 1;
    char *all = mx_arena_alloc(a, n);
    if (all) snprintf(all, n, "%s%s%s", before, between, behind);
    return all;
}

/* A chat with the style's system words first and its prefix and suffix round the last message. */
static Merx__V1__Chat *style_chat(mx_arena *a, const Merx__V1__Chat *chat, const Merx__V1__Style *style)
{
    size_t n = chat->n_messages, extra = *style->system && (!n || strcmp(chat->messages[0]->role, "system"));
    Merx__V1__Chat *out = mx_arena_alloc(a, sizeof *out);
    Merx__V1__ChatMessage *m = mx_arena_array(a, n + 1, sizeof *m), **list = mx_arena_array(a, n + 1, sizeof *list);
    if (!out || !m || !list) return NULL;
    merx__v1__chat__init(out);
    for (size_t i = 0; i < n; i++) m[i + extra] = *chat->messages[i];
    if (extra) {
        merx__v1__chat_message__init(&m[0]);
        m[0].role = (char *)(uintptr_t) "system";
        m[0].content = style->system;
    } else if (*style->system) {
        m[0].content = join(a, m[0].content, "\n", style->system);
    }
    if (n) m[n + extra - 1].content = join(a, style->prefix, m[n + extra - 1].content, style->suffix);
    for (size_t i = 0; i < n + extra; i++) {
        if (!m[i].content) return NULL;
        list[i] = &m[i];
    }
    out->messages = list;
    out->n_messages = n + extra;
    return out;
}

mx_status mx_style_apply(const mx_style *s, mx_arena *a, const Merx__V1__GenerateRequest *m, Merx__V1__GenerateRequest *out, mx_error *err)
{
    const Merx__V1__Style *style = NULL;
    *out = *m;
    if (s->op.st) return mx_fail(err, s->op.st, "style: %s", s->op.err.text);
    for (size_t i = 0; i < m->style->n_styles && !style; i++)
        if (!strcmp(m->style->styles[i]->arm, s->op.selection.arm_name)) style = m->style->styles[i];
    if (!style) return MX_OK;                 /* an arm without words of its own: as it is asked */
    if (*style->model) out->model = style->model;
    bool words = *style->prefix || *style->suffix || *style->system;
    if (!words) return MX_OK;
    switch ((int)m->input_case) {
    case MERX__V1__GENERATE_REQUEST__INPUT_PROMPT:
        if (*style->system) return mx_fail(err, MX_ERR_ARG, "style.styles: system is for a chat; a prompt takes prefix and suffix");
        out->prompt = join(a, style->prefix, m->prompt, style->suffix);
        return out->prompt ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "style: over the request's memory budget");
    case MERX__V1__GENERATE_REQUEST__INPUT_CHAT:
        out->chat = style_chat(a, m->chat, style);
        return out->chat ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "style: over the request's memory budget");
    default: return mx_fail(err, MX_ERR_ARG, "style.styles: token ids take no prefix, suffix or system; only a model");
    }
}

bool mx_style_told(mx_style *s, mx_arena *a, Merx__V1__StyleChosen **out)
{
    const mx_selection *c = &s->op.selection;
    Merx__V1__StyleChosen *m = mx_arena_alloc(a, sizeof *m);
    *out = m;
    if (!m) return false;
    merx__v1__style_chosen__init(m);
    snprintf(s->decision, sizeof s->decision, "d%lld", (long long)c->decision);
    m->decision_id = s->decision;
    m->experiment_id = s->experiment;
    m->arm = (char *)(uintptr_t)c->arm_name;
    m->propensity = c->propensity;
    m->holdout = c->flags & MX_DECISION_HOLDOUT;
    m->sticky = c->flags & MX_DECISION_STICKY;
    m->fixed = c->flags & MX_DECISION_FIXED;
    m->version = c->version;
    return true;
}
