/* price_service.c - the service Pricing: each call is one operation of server/pricing.h. */
#include "server/pricing.h"

#include "runtime/slab.h"
#include "server/services.h"
#include "server/training.h"

#include <stdlib.h>

typedef struct work {
    mx_pricing_op op;
    mx_call    *call;
    mx_arena    decoded;              /* the request */
    atomic_bool over;
    bool        away;                 /* from the queue, until the commit is through */
} work;

/* A quote that finds nothing else to do is carried out by the call's own thread, which goes on with it: nobody is woken. */
static void done_here(mx_pricing_op *op)
{
    atomic_store(&((work *)op)->over, true);
}

static void leave(mx_pricing_op *op)
{
    work *w = (work *)op;
    w->away = true;
    mx_call_leave(w->call);
}

static void done(mx_pricing_op *op)
{
    work *w = (work *)op;
    mx_call *call = w->call;
    atomic_store(&w->over, true);
    mx_call_wake(call);
}

static void pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    (void)scratch;
    if (!atomic_load(&w->over)) return;
    mx_call_turn(call, w->op.began_ns, w->op.ended_ns);
    if (w->op.st) {
        mx_call_finish(call, w->op.st, w->op.err.text);
        return;
    }
    bool sent = mx_call_send_packed(call, w->op.answer, w->op.size, false);
    w->op.answer = NULL;
    mx_call_finish(call, sent ? MX_OK : MX_ERR_NO_MEMORY, sent ? NULL : "the answer is over the server's memory budget for a message");
}

static void closed(void *user)
{
    work *w = user;
    mx_slab_free(w->op.answer);
    mx_arena_close(&w->decoded);
    mx_slab_free(w);
}

static mx_status begin(mx_app *app, mx_call *call, const uint8_t *msg, size_t len, mx_arena *scratch, const ProtobufCMessageDescriptor *type,
                       mx_pricing_run *run, mx_error *err)
{
    static const mx_call_handler handler = {.pump = pump, .closed = closed};
    ProtobufCMessage *m;
    if (!app->pricing) return mx_fail(err, MX_ERR_STATE, "pricing is off: start the server with --pricing");
    mx_message_ahead(type);
    mx_pricing_ahead(app->pricing);
    work *w = mx_slab_alloc(sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    w->op.answer = NULL;                /* the rest of it is said below: an error's text is not to be cleared for each call */
    mx_arena_open(&w->decoded, scratch->budget);
    mx_status st = mx_message_decode(&w->decoded, type, msg, len, &m, err);
    if (st) {
        closed(w);
        return st;
    }
    w->call = call;
    mx_pricing_op_init(&w->op, run, done, m);
    atomic_init(&w->over, false);
    w->away = false;
    mx_call_attach(call, &handler, w);
    if (run != mx_pricing_quote || !mx_call_can_leave(call) || !mx_pricing_claim(app->pricing)) {
        mx_pricing_submit(app->pricing, &w->op);
        return MX_OK;
    }
    w->op.done = done_here;
    w->op.commits = leave;
    mx_pricing_carry_out(app->pricing, &w->op);
    if (w->away) mx_call_return(call);
    pump(call, w, scratch);
    return MX_OK;
}

#define PRICE_METHOD(name, message, run)                                                                       \
    MX_METHOD(name)                                                                                            \
    {                                                                                                          \
        return begin(app, call, msg, len, scratch, &merx__v1__##message##__descriptor, run, err);              \
    }

PRICE_METHOD(mx_price_items_begin, put_items_request, mx_pricing_put_items)
PRICE_METHOD(mx_price_item_begin, item_key, mx_pricing_get_item)
PRICE_METHOD(mx_quote_begin, quote_request, mx_pricing_quote)
PRICE_METHOD(mx_batch_quote_begin, batch_quote_request, mx_pricing_batch)
PRICE_METHOD(mx_put_guardrails_begin, guardrail_set, mx_pricing_put_guardrails)
PRICE_METHOD(mx_get_guardrails_begin, get_guardrails_request, mx_pricing_get_guardrails)
PRICE_METHOD(mx_validate_guardrails_begin, guardrail_set, mx_pricing_validate)
PRICE_METHOD(mx_price_approve_begin, decide_request, mx_pricing_approve)
PRICE_METHOD(mx_price_reject_begin, decide_request, mx_pricing_reject)
PRICE_METHOD(mx_price_rollback_begin, item_key, mx_pricing_rollback)
PRICE_METHOD(mx_price_freeze_begin, freeze_request, mx_pricing_freeze)
PRICE_METHOD(mx_price_decision_begin, get_decision_request, mx_pricing_decision)
PRICE_METHOD(mx_simulate_ladder_begin, simulate_ladder_request, mx_pricing_simulate)
PRICE_METHOD(mx_elasticity_begin, item_key, mx_pricing_elasticity)
PRICE_METHOD(mx_explain_decision_begin, get_decision_request, mx_pricing_explain)
PRICE_METHOD(mx_promote_policy_begin, promote_policy_request, mx_pricing_promote_policy)
PRICE_METHOD(mx_list_policies_begin, list_policies_request, mx_pricing_list_policies)

/* Folders that clients may name are those of training. */
MX_METHOD(mx_load_policy_begin)
{
    ProtobufCMessage *m;
    char path[1024];
    if (!app->training) return mx_fail(err, MX_ERR_STATE, "path: say with --training-folder where policies lie");
    MX_TRY(mx_message_decode(scratch, &merx__v1__load_policy_request__descriptor, msg, len, &m, err));
    MX_TRY(mx_training_path(app->training, "path", ((const Merx__V1__LoadPolicyRequest *)m)->path, path, err));
    mx_arena_reset(scratch);
    return begin(app, call, msg, len, scratch, &merx__v1__load_policy_request__descriptor, mx_pricing_load_policy, err);
}
