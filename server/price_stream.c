/* price_stream.c - calls of Pricing that take many messages: quotes one by one in their
 * order, and feeds that are answered once, with the sum of what they did.
 *
 * Each message is one operation of server/pricing.h.  A feed's next message is read when
 * the last one is on disk; of quotes up to WINDOW are under way, so that they share
 * transactions, and a client that does not read its answers stops being read. */
#include "server/pricing.h"

#include "runtime/slab.h"
#include "server/rpc.h"
#include "server/services.h"

#include <stdlib.h>
#include <string.h>

enum { WINDOW = 256 };

typedef struct feed feed;

typedef struct entry {
    mx_pricing_op op;
    feed       *f;
    mx_arena    decoded;
    atomic_bool over;
    struct entry *next;
} entry;

typedef struct feed_kind {
    const ProtobufCMessageDescriptor *type;
    mx_pricing_run *run;
    const ProtobufCMessageDescriptor *sum;    /* all int32; NULL: an answer for each message, a quote */
    const char *nothing;                      /* the error of a feed without a message; NULL: it is fine */
} feed_kind;

struct feed {
    const feed_kind *kind;
    mx_app    *app;
    mx_call   *call;
    size_t     budget;
    entry     *first, **last;
    int        open;
    bool       ended, any;        /* ended: the client has sent its last                  */
    mx_status  st;                /* why it ends early                                    */
    mx_error   err;
    union {
        ProtobufCMessage base;
        Merx__V1__ReportSalesResponse sales;
        Merx__V1__FeedResponse feed;
    } sum;
};

static void done(mx_pricing_op *op)
{
    entry *e = (entry *)op;
    mx_call *call = e->f->call;
    atomic_store(&e->over, true);
    mx_call_wake(call);
}

static void entry_close(entry *e)
{
    mx_slab_free(e->op.answer);
    mx_arena_close(&e->decoded);
    mx_slab_free(e);
}

static void feed_closed(void *user)
{
    mx_slab_free(user);
}

static void fail(feed *f, mx_status st, const char *text)
{
    if (!f->st) f->st = mx_fail(&f->err, st, "%s", text);
}

/* ---- messages come --------------------------------------------------------------------------- */

static void feed_pump(mx_call *call, void *user, mx_arena *scratch);

static void feed_message(mx_call *call, void *user, const uint8_t *msg, size_t len, mx_arena *scratch)
{
    feed *f = user;
    ProtobufCMessage *m;
    mx_error err = {0};
    if (!msg) {
        f->ended = true;
        feed_pump(call, f, scratch);
        return;
    }
    entry *e = mx_slab_zeroed(sizeof *e);
    if (e) mx_arena_open(&e->decoded, f->budget);
    mx_status st = e ? mx_message_decode(&e->decoded, f->kind->type, msg, len, &m, &err) : mx_fail(&err, MX_ERR_NO_MEMORY, "no memory for the message");
    if (st) {
        if (e) entry_close(e);
        fail(f, st, err.text);
        mx_call_hold(call);
        feed_pump(call, f, scratch);
        return;
    }
    f->any = true;
    e->f = f;
    e->op = (mx_pricing_op){.run = f->kind->run, .done = done, .request = m};
    *f->last = e;
    f->last = &e->next;
    if (++f->open >= (f->kind->sum ? 1 : WINDOW)) mx_call_hold(call);
    mx_pricing_submit(f->app->pricing, &e->op);
}

/* ---- answers go ------------------------------------------------------------------------------- */

static void add_up(feed *f, const entry *e)
{
    const ProtobufCMessageDescriptor *d = f->kind->sum;
    ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, e->op.size, e->op.answer);
    if (!m) {
        fail(f, MX_ERR_NO_MEMORY, "no memory for the answer");
        return;
    }
    for (unsigned k = 0; k < d->n_fields; k++) {
        size_t at = d->fields[k].offset;
        *(int32_t *)(void *)((char *)&f->sum + at) += *(int32_t *)(void *)((char *)m + at);
    }
    protobuf_c_message_free_unpacked(m, NULL);
}

static bool send_quote(mx_call *call, const entry *e)
{
    bool more = e->next && atomic_load(&e->next->over);
    if (!e->op.st) {
        uint8_t *bytes = mx_slab_alloc(e->op.size + MX_QUOTE_HEAD);
        if (!bytes) return false;
        size_t n = mx_pricing_item_head(bytes, e->op.size);
        memcpy(bytes + n, e->op.answer, e->op.size);
        return mx_call_send_packed(call, bytes, n + e->op.size, more);
    }
    Merx__V1__BatchQuoteItem item = MERX__V1__BATCH_QUOTE_ITEM__INIT;
    Merx__V1__ItemStatus status = MERX__V1__ITEM_STATUS__INIT;
    item.status = &status;
    status.code = mx_rpc_code_of(e->op.st);
    status.message = (char *)(uintptr_t)e->op.err.text;
    return mx_call_send(call, &item.base, more);
}

/* The oldest operation is over: its answer.  True: a message was sent. */
static bool take_first(feed *f, mx_call *call)
{
    entry *e = f->first;
    bool sent = false;
    if (f->kind->sum) {
        if (e->op.st) fail(f, e->op.st, e->op.err.text);
        else add_up(f, e);
    } else if (!f->st) {
        sent = send_quote(call, e);
        if (!sent) fail(f, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
    }
    f->first = e->next;
    if (!f->first) f->last = &f->first;
    f->open--;
    entry_close(e);
    if (!f->st) mx_call_read(call);
    return sent;
}

static void feed_pump(mx_call *call, void *user, mx_arena *scratch)
{
    feed *f = user;
    (void)scratch;
    while (f->first && atomic_load(&f->first->over))
        if (take_first(f, call)) return;
    if (f->first) return;                     /* the operations point here */
    if (!f->st && f->ended && f->kind->sum && !f->any && f->kind->nothing) fail(f, MX_ERR_ARG, f->kind->nothing);
    if (!f->st && f->ended && f->kind->sum && !mx_call_send(call, &f->sum.base, false)) fail(f, MX_ERR_NO_MEMORY, "no memory for the answer");
    if (f->st || f->ended) mx_call_finish(call, f->st, f->st ? f->err.text : NULL);
}

static void feed_cancelled(mx_call *call, void *user)
{
    fail(user, MX_ERR_CANCELLED, "cancelled");
    mx_call_wake(call);
}

static mx_status begin(mx_app *app, mx_call *call, mx_arena *scratch, const feed_kind *kind, mx_error *err)
{
    static const mx_call_handler handler = {.pump = feed_pump, .message = feed_message, .cancelled = feed_cancelled, .closed = feed_closed};
    if (!app->pricing) return mx_fail(err, MX_ERR_STATE, "pricing is off: start the server with --pricing");
    feed *f = mx_slab_zeroed(sizeof *f);
    if (!f) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the call");
    f->kind = kind;
    f->app = app;
    f->call = call;
    f->budget = scratch->budget;
    f->last = &f->first;
    if (kind->sum) kind->sum->message_init(&f->sum.base);
    mx_call_attach(call, &handler, f);
    return MX_OK;
}

#define FEED_METHOD(name, request, run, sum, nothing)                                                          \
    MX_METHOD(name)                                                                                            \
    {                                                                                                          \
        static const feed_kind kind = {&merx__v1__##request##__descriptor, run, sum, nothing};                 \
        (void)msg, (void)len;                                                                                  \
        return begin(app, call, scratch, &kind, err);                                                          \
    }

FEED_METHOD(mx_stream_quotes_begin, quote_request, mx_pricing_quote, NULL, NULL)
FEED_METHOD(mx_report_sales_begin, report_sales_request, mx_pricing_sales, &merx__v1__report_sales_response__descriptor, "sales: no message")
FEED_METHOD(mx_competitor_prices_begin, competitor_prices, mx_pricing_competitors, &merx__v1__feed_response__descriptor, NULL)
FEED_METHOD(mx_inventory_begin, inventory_levels, mx_pricing_inventory, &merx__v1__feed_response__descriptor, NULL)
