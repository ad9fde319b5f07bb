/* test_pricing.c - the Pricing service through real gRPC: quotes stay feasible, are on
 * disk before they are said, and what was learned replays bit for bit. */
#include "proto/merx.pb-c.h"
#include "server/pricing.h"
#include "server/rpc.h"
#include "tests/test.h"
#include "runtime/slab.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct fixture {
    mx_app     app;
    mx_server *server;
    mx_client *client;
} fixture;

static char file[256];
static uint64_t state = 99;

static double uniform(void)
{
    return (double)(test_random(&state) >> 11) * 0x1p-53;
}

static void fresh_file(void)
{
    static const char *const tails[] = {"", "-wal", "-shm"};
    char path[300];
    snprintf(file, sizeof file, MX_BINARY_DIR "/test_pricing.%d.db", (int)getpid());
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", file, tails[i]);
        unlink(path);
    }
}

static bool fixture_open(fixture *f, double exploration)
{
    mx_error err = {0};
    mx_server_options so = mx_server_defaults();
    so.listen = "127.0.0.1:0";
    so.threads = 2;
    memset(f, 0, sizeof *f);
    CHECK_OK(mx_app_open(&f->app, NULL, &err), err);
    CHECK_OK(mx_pricing_open(&f->app.pricing, file, exploration, &err), err);
    CHECK_OK(mx_server_open(&f->server, &f->app, &so, &err), err);
    atomic_store(&f->app.state, MX_APP_SERVING);
    if (f->server) CHECK_OK(mx_client_open(&f->client, mx_server_address(f->server), NULL, &err), err);
    return f->client != NULL && f->app.pricing != NULL;
}

static void fixture_close(fixture *f)
{
    mx_client_close(f->client);
    mx_server_close(f->server);
    mx_app_close(&f->app, 0);
}

static mx_rpc_status st;

static void *call(fixture *f, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type)
{
    char path[100];
    size_t len = protobuf_c_message_get_packed_size(q), n = 0;
    uint8_t *data = malloc(len + 1), *bytes = NULL;
    ProtobufCMessage *reply = NULL;
    snprintf(path, sizeof path, "/merx.v1.Pricing/%s", method);
    protobuf_c_message_pack(q, data);
    st = (mx_rpc_status){0};
    CHECK(mx_client_unary(f->client, path, data, len, 20000, &bytes, &n, &st) == MX_OK);
    if (!st.code) reply = protobuf_c_message_unpack(type, NULL, n, bytes);
    free(bytes);
    free(data);
    return reply;
}

#define FREE(m) do { if (m) protobuf_c_message_free_unpacked(&(m)->base, NULL); } while (0)

static Merx__V1__PriceItem item(const char *sku, const char *channel)
{
    Merx__V1__PriceItem m = MERX__V1__PRICE_ITEM__INIT;
    m.sku = (char *)(uintptr_t)sku;
    m.channel = (char *)(uintptr_t)channel;
    m.currency = "EUR";
    m.cost = 500;
    m.reference_price = 1000;
    return m;
}

/* The item's status code. */
static int put(fixture *f, Merx__V1__PriceItem m)
{
    Merx__V1__PriceItem *list[] = {&m};
    Merx__V1__PutItemsRequest q = MERX__V1__PUT_ITEMS_REQUEST__INIT;
    q.items = list;
    q.n_items = 1;
    Merx__V1__PutItemsResponse *r = call(f, "PutItems", &q.base, &merx__v1__put_items_response__descriptor);
    int code = r && r->n_statuses == 1 ? r->statuses[0]->code : -1;
    if (r && code) snprintf(st.text, sizeof st.text, "%s", r->statuses[0]->message);
    FREE(r);
    return code;
}

static Merx__V1__QuoteResponse *ask(fixture *f, const char *sku, const char *channel, bool live)
{
    Merx__V1__QuoteRequest q = MERX__V1__QUOTE_REQUEST__INIT;
    q.sku = (char *)(uintptr_t)sku;
    q.channel = (char *)(uintptr_t)channel;
    q.mode = live ? MERX__V1__QUOTE_MODE__QUOTE_LIVE : MERX__V1__QUOTE_MODE__QUOTE_PREVIEW;
    return call(f, "Quote", &q.base, &merx__v1__quote_response__descriptor);
}

static Merx__V1__PriceItem *look(fixture *f, const char *sku, const char *channel)
{
    Merx__V1__ItemKey q = MERX__V1__ITEM_KEY__INIT;
    q.sku = (char *)(uintptr_t)sku;
    q.channel = (char *)(uintptr_t)channel;
    return call(f, "GetItem", &q.base, &merx__v1__price_item__descriptor);
}

static int64_t rules(fixture *f, Merx__V1__GuardrailSet m)
{
    Merx__V1__GuardrailSet *r = call(f, "PutGuardrails", &m.base, &merx__v1__guardrail_set__descriptor);
    int64_t version = r ? r->version : -1;
    FREE(r);
    return version;
}

static Merx__V1__GuardrailSet set_of(const char *id)
{
    Merx__V1__GuardrailSet m = MERX__V1__GUARDRAIL_SET__INIT;
    m.id = (char *)(uintptr_t)id;
    return m;
}

static Merx__V1__ReportSalesResponse sell(fixture *f, const char *id, const char *sku, int64_t price, double units, int64_t ts, bool stockout)
{
    Merx__V1__SaleObservation s = MERX__V1__SALE_OBSERVATION__INIT, *list[] = {&s};
    Merx__V1__ReportSalesRequest q = MERX__V1__REPORT_SALES_REQUEST__INIT;
    Merx__V1__ReportSalesResponse copy = MERX__V1__REPORT_SALES_RESPONSE__INIT;
    s.sale_id = (char *)(uintptr_t)id;
    s.sku = (char *)(uintptr_t)sku;
    s.price = price;
    s.units = units;
    s.ts_ms = ts;
    s.stockout = stockout;
    q.sales = list;
    q.n_sales = 1;
    Merx__V1__ReportSalesResponse *r = call(f, "ReportSales", &q.base, &merx__v1__report_sales_response__descriptor);
    if (r) copy.accepted = r->accepted, copy.duplicate = r->duplicate, copy.late = r->late, copy.unknown = r->unknown, copy.wrong = r->wrong;
    FREE(r);
    return copy;
}

/* Sales of an elasticity of -3: the price falls step by step to cost * 3/2 and no further. */
static void learned_priced_and_replayed(void)
{
    fixture f;
    mx_error err = {0};
    mx_pricing_replayed again_all;
    fresh_file();
    if (!fixture_open(&f, 0)) return;
    CHECK(put(&f, item("tea", "")) == 0);
    for (int i = 0; i < 200; i++) {
        char id[32];
        int64_t price = 700 + (int64_t)(600 * uniform());
        snprintf(id, sizeof id, "s%d", i);
        CHECK(sell(&f, id, "tea", price, 30 * pow((double)price / 1000, -3), 0, false).accepted == 1);
    }
    CHECK(sell(&f, "s0", "tea", 900, 5, 0, false).duplicate == 1);
    CHECK(sell(&f, "out", "tea", 900, 1, 0, true).accepted == 1);
    CHECK(sell(&f, "late", "tea", 900, 1, 1000, false).late == 1 && sell(&f, "x", "coffee", 900, 1, 0, false).unknown == 1);
    CHECK(sell(&f, "", "tea", 900, 1, 0, false).wrong == 1 && sell(&f, "y", "tea", 0, 1, 0, false).wrong == 1 && sell(&f, "z", "tea", 900, NAN, 0, false).wrong == 1);
    Merx__V1__PriceItem *i = look(&f, "tea", "");
    CHECK(i && i->sales == 200 && i->elasticity < -2.5 && i->elasticity > -3.5 && i->elasticity_low < -3 && i->elasticity_high > -3 && i->published == 1000);
    FREE(i);
    for (int k = 0; k < 12; k++) {
        Merx__V1__QuoteResponse *q = ask(&f, "tea", "", true);
        CHECK_MSG(q, "%s", st.text);
        if (!q) break;
        double sum = q->reason_base;
        for (size_t r = 0; r < q->n_reasons; r++) sum += q->reasons[r]->contribution;
        CHECK(fabs(sum - (double)q->raw_price) < 1e-6 && q->n_ladder == 7 && q->propensity == 1 && q->price == q->raw_price);
        for (size_t r = 0; r < q->n_ladder; r++) CHECK(q->ladder[r]->q <= q->ladder[q->action]->q);
        CHECK(q->expected_margin > 0 && fabs(q->expected_revenue - q->expected_units * (double)q->price) < 1e-6);
        CHECK_STR(q->status, "published");
        FREE(q);
    }
    i = look(&f, "tea", "");
    CHECK_MSG(i && i->published > 715 && i->published < 790, "%lld", i ? (long long)i->published : 0);
    CHECK_OK(mx_pricing_replay(f.app.pricing, &again_all, &err), err);
    CHECK_MSG(!again_all.differs[0] && again_all.items == 1 && again_all.sales == 201, "%s", again_all.differs);
    fixture_close(&f);
    if (!fixture_open(&f, 0)) return;
    Merx__V1__PriceItem *again = look(&f, "tea", "");
    CHECK(i && again && again->published == i->published && again->elasticity == i->elasticity && again->n_history == i->n_history && again->sales == 200);
    CHECK_OK(mx_pricing_replay(f.app.pricing, &again_all, &err), err);
    CHECK_MSG(!again_all.differs[0] && again_all.items == 1 && again_all.sales == 201, "%s", again_all.differs);
    FREE(i);
    FREE(again);
    fixture_close(&f);
    fresh_file();
}

static void guarded(void)
{
    fixture f;
    fresh_file();
    if (!fixture_open(&f, 0)) return;
    Merx__V1__PriceItem shoes = item("shoe-1", "web");
    Merx__V1__Competitor rival = MERX__V1__COMPETITOR__INIT, *rivals[] = {&rival};
    rival.name = "other";
    rival.price = 1010;
    shoes.competitors = rivals;
    shoes.n_competitors = 1;
    CHECK(put(&f, shoes) == 0);
    Merx__V1__PriceEnding ninety_nine = MERX__V1__PRICE_ENDING__INIT, *endings[] = {&ninety_nine};
    ninety_nine.modulus = 100;
    ninety_nine.remainder = 99;
    Merx__V1__GuardrailSet all = set_of("all"), shoe = set_of("shoes");
    all.max_change_pct_step = 3;
    all.min_margin_pct = 20;
    CHECK(rules(&f, all) == 1);
    shoe.sku_prefix = "shoe";
    shoe.endings = endings;
    shoe.n_endings = 1;
    shoe.competitor_high_pct = 100;
    CHECK(rules(&f, shoe) == 1);
    Merx__V1__QuoteResponse *q = ask(&f, "shoe-1", "web", true);
    CHECK_MSG(q, "%s", st.text);
    if (q) {
        CHECK_MSG(q->price == 999 && q->n_applied >= 1 && q->n_guardrails == 2, "%lld", (long long)q->price);
        CHECK_STR(q->guardrails[0], "all@1");
        CHECK_STR(q->applied[q->n_applied - 1]->rule, "ending");
        Merx__V1__GetDecisionRequest d = MERX__V1__GET_DECISION_REQUEST__INIT;
        d.decision_id = q->decision_id;
        Merx__V1__QuoteResponse *same = call(&f, "GetDecision", &d.base, &merx__v1__quote_response__descriptor);
        CHECK(same && same->price == 999 && same->ts_ms == q->ts_ms && same->n_ladder == 7);
        FREE(same);
    }
    FREE(q);
    /* a set that leaves nothing: told by name, nothing is quoted, and validation says so beforehand */
    Merx__V1__GuardrailSet tight = set_of("tight");
    tight.floor = 1200;
    Merx__V1__ValidateGuardrailsResponse *v = call(&f, "ValidateGuardrails", &tight.base, &merx__v1__validate_guardrails_response__descriptor);
    CHECK(v && v->matching == 1 && v->infeasible == 1 && v->n_problems == 1 && strstr(v->problems[0], "shoe-1/web") && strstr(v->problems[0], "floor"));
    FREE(v);
    CHECK(rules(&f, tight) == 1);
    q = ask(&f, "shoe-1", "web", true);
    CHECK_MSG(!q && st.code == MX_RPC_FAILED_PRECONDITION && strstr(st.text, "floor") && strstr(st.text, "competitor_band"), "%s", st.text);
    FREE(q);
    tight.valid_to_ms = 2;
    CHECK(rules(&f, tight) == 2);                      /* no longer valid */
    q = ask(&f, "shoe-1", "web", false);
    CHECK(q && !strcmp(q->status, "preview"));
    FREE(q);
    Merx__V1__GetGuardrailsRequest g = MERX__V1__GET_GUARDRAILS_REQUEST__INIT;
    Merx__V1__GetGuardrailsResponse *sets = call(&f, "GetGuardrails", &g.base, &merx__v1__get_guardrails_response__descriptor);
    CHECK(sets && sets->n_sets == 3 && sets->sets[1]->n_endings == 1);
    FREE(sets);
    tight.floor = -1;
    CHECK(rules(&f, tight) == -1 && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "floor"));
    fixture_close(&f);
    fresh_file();
}

static void frozen_approved_rolled_back(void)
{
    fixture f;
    fresh_file();
    if (!fixture_open(&f, 0)) return;
    Merx__V1__PriceItem a = item("x", "web"), b = item("x", "app");
    a.parity_group = b.parity_group = "x";
    a.cost = b.cost = 700;
    CHECK(put(&f, a) == 0 && put(&f, b) == 0);
    Merx__V1__GuardrailSet ask_first = set_of("ask");
    ask_first.approval_pct = 1;
    CHECK(rules(&f, ask_first) == 1);
    Merx__V1__QuoteResponse *q = ask(&f, "x", "web", true);
    CHECK_MSG(q && q->requires_approval && !strcmp(q->status, "pending") && q->price == 1100, "%s", st.text);
    Merx__V1__PriceItem *i = look(&f, "x", "web");
    CHECK(i && i->published == 1000);
    FREE(i);
    Merx__V1__DecideRequest d = MERX__V1__DECIDE_REQUEST__INIT;
    d.decision_id = q ? q->decision_id : "p1";
    d.by = "kim";
    Merx__V1__QuoteResponse *r = call(&f, "Approve", &d.base, &merx__v1__quote_response__descriptor);
    CHECK_MSG(r && !strcmp(r->status, "approved") && !strcmp(r->settled_by, "kim") && q && r->settled_ms >= q->ts_ms, "%s", st.text);
    FREE(r);
    CHECK(!call(&f, "Reject", &d.base, &merx__v1__quote_response__descriptor) && st.code == MX_RPC_FAILED_PRECONDITION && strstr(st.text, "approved"));
    FREE(q);
    i = look(&f, "x", "app");
    CHECK(i && i->published == 1100);                   /* one price in all channels */
    FREE(i);
    Merx__V1__ItemKey key = MERX__V1__ITEM_KEY__INIT;
    key.sku = "x";
    key.channel = "web";
    i = call(&f, "Rollback", &key.base, &merx__v1__price_item__descriptor);
    CHECK_MSG(i && i->published == 1000 && i->n_history == 3, "%s", st.text);
    FREE(i);
    Merx__V1__FreezeRequest z = MERX__V1__FREEZE_REQUEST__INIT, one = MERX__V1__FREEZE_REQUEST__INIT;
    one.channel = "app";                                /* a channel, and only that */
    one.frozen = true;
    Merx__V1__FreezeResponse *some = call(&f, "Freeze", &one.base, &merx__v1__freeze_response__descriptor);
    i = look(&f, "x", "web");
    Merx__V1__PriceItem *app = look(&f, "x", "app");
    CHECK(some && some->items == 1 && i && !i->frozen && app && app->frozen);
    FREE(some);
    FREE(i);
    FREE(app);
    one.channel = "nowhere";
    CHECK(!call(&f, "Freeze", &one.base, &merx__v1__freeze_response__descriptor) && st.code == MX_RPC_NOT_FOUND);
    z.frozen = true;
    Merx__V1__FreezeResponse *all = call(&f, "Freeze", &z.base, &merx__v1__freeze_response__descriptor);
    CHECK(all && all->items == 2);
    FREE(all);
    fixture_close(&f);
    if (!fixture_open(&f, 0)) return;                   /* a kill switch outlives the server */
    q = ask(&f, "x", "web", true);
    CHECK(q && q->price == 1000 && !strcmp(q->fallback, "freeze") && !strcmp(q->status, "frozen"));
    FREE(q);
    fixture_close(&f);
    fresh_file();
}

static void explored(void)
{
    enum { N = 600 };
    fixture f;
    double seen[7] = {0}, odd = 0;
    fresh_file();
    if (!fixture_open(&f, 0.5)) return;
    Merx__V1__GuardrailSet still = set_of("band");
    still.floor = 950;
    still.ceiling = 1050;
    CHECK(rules(&f, still) == 1);
    for (int k = 0; k < N; k++) {
        char sku[32];
        snprintf(sku, sizeof sku, "i%d", k);
        Merx__V1__PriceItem m = item(sku, "");
        m.cost = 700;
        CHECK(put(&f, m) == 0);
        Merx__V1__QuoteResponse *q = ask(&f, sku, "", true);
        if (!q) continue;
        seen[q->action]++;
        odd += q->exploration;
        CHECK(q->price >= 950 && q->price <= 1050);
        CHECK(fabs(q->propensity - (q->exploration ? 0.1 : 0.5 + (q->ladder[q->action]->feasible ? 0.1 : 0))) < 1e-12);
        FREE(q);
    }
    CHECK_MSG(odd > 0.4 * N && odd < 0.6 * N && seen[0] == 0, "%.0f of %d", odd, N);      /* -10 % is not feasible: never tried */
    fixture_close(&f);
    fresh_file();
}

static void batches_and_refusals(void)
{
    fixture f;
    fresh_file();
    if (!fixture_open(&f, 0)) return;
    put(&f, item("a", ""));
    Merx__V1__QuoteRequest q[3], *list[3];
    Merx__V1__BatchQuoteRequest b = MERX__V1__BATCH_QUOTE_REQUEST__INIT;
    for (int i = 0; i < 3; i++) {
        merx__v1__quote_request__init(&q[i]);
        q[i].sku = i == 1 ? "nobody" : "a";
        q[i].request_id = i ? "" : "first";
        list[i] = &q[i];
    }
    q[2].user_id = "alice";
    b.requests = list;
    b.n_requests = 3;
    Merx__V1__BatchQuoteResponse *r = call(&f, "BatchQuote", &b.base, &merx__v1__batch_quote_response__descriptor);
    CHECK(r && r->n_items == 3 && r->items[0]->status->code == 0 && r->items[0]->quote && !strcmp(r->items[0]->quote->request_id, "first"));
    CHECK(r && r->items[1]->status->code == MX_RPC_NOT_FOUND && !r->items[1]->quote && r->items[2]->status->code == MX_RPC_INVALID_ARGUMENT);
    CHECK(r && strstr(r->items[2]->status->message, "user_id"));
    FREE(r);
    b.n_requests = 0;
    CHECK(!call(&f, "BatchQuote", &b.base, &merx__v1__batch_quote_response__descriptor) && st.code == MX_RPC_INVALID_ARGUMENT);
    Merx__V1__PriceItem bad = item("b", "");
    bad.currency = "euro";
    CHECK(put(&f, bad) == 3 && strstr(st.text, "currency"));
    bad = item("b", "");
    bad.reference_price = 0;
    CHECK(put(&f, bad) == 3 && strstr(st.text, "reference_price"));
    bad = item("b", "");
    bad.cost = -1;
    CHECK(put(&f, bad) == 3 && strstr(st.text, "cost"));
    bad = item("a", "");
    bad.currency = "USD";
    CHECK(put(&f, bad) == 3 && strstr(st.text, "EUR"));
    Merx__V1__PriceItem no_cost = item("c", "");
    no_cost.cost = 0;
    CHECK(put(&f, no_cost) == 0);
    Merx__V1__QuoteResponse *last = ask(&f, "c", "", true);
    CHECK(last && last->price == 1000 && !strcmp(last->fallback, "last_good"));
    FREE(last);
    mx_pricing *on = f.app.pricing;
    f.app.pricing = NULL;
    CHECK(!ask(&f, "a", "", false) && st.code == MX_RPC_FAILED_PRECONDITION && strstr(st.text, "--pricing"));
    f.app.pricing = on;
    fixture_close(&f);
    fresh_file();
}

/* ---- kill -9 in a storm of live quotes ------------------------------------------------------------- */

typedef struct waiting { mx_pricing_op op; int over; } waiting;

static void over(mx_pricing_op *op)
{
    __atomic_store_n(&((waiting *)op)->over, 1, __ATOMIC_RELEASE);
}

static mx_status carry_out(mx_pricing *p, waiting *w, mx_pricing_run *run, const ProtobufCMessage *q)
{
    *w = (waiting){.op = {.run = run, .request = q, .done = over}};
    mx_pricing_submit(p, &w->op);
    while (!__atomic_load_n(&w->over, __ATOMIC_ACQUIRE)) usleep(20);
    return w->op.st;
}

enum { SELLERS = 4, TOLD = 200000 };

typedef struct told { int32_t who, sale; int64_t id, price; } told;       /* who's sale number `sale` (from 0) of decision `id` at `price` is acknowledged */

typedef struct seller { mx_pricing *p; int out, who, next; } seller;

/* accepted, or a duplicate: 1, 2; anything else: -1. */
static int report_sale(mx_pricing *p, int who, int number, int64_t decision, int64_t price)
{
    waiting w;
    char sale_id[32], id[24];
    Merx__V1__SaleObservation o = MERX__V1__SALE_OBSERVATION__INIT, *list[] = {&o};
    Merx__V1__ReportSalesRequest q = MERX__V1__REPORT_SALES_REQUEST__INIT;
    snprintf(sale_id, sizeof sale_id, "%d-%d", who, number);
    snprintf(id, sizeof id, "p%lld", (long long)decision);
    o.sale_id = sale_id, o.sku = "k", o.decision_id = decision ? id : "", o.price = price, o.units = 1 + number % 7;
    q.sales = list, q.n_sales = 1;
    int what = -1;
    if (carry_out(p, &w, mx_pricing_sales, &q.base)) return -1;
    Merx__V1__ReportSalesResponse *r = merx__v1__report_sales_response__unpack(NULL, w.op.size, w.op.answer);
    if (r && r->accepted + r->duplicate == 1) what = r->accepted ? 1 : 2;
    if (r) merx__v1__report_sales_response__free_unpacked(r, NULL);
    mx_slab_free(w.op.answer);
    return what;
}

/* A quote and its sale, again and again.  The first sale is the one that was not acknowledged when the last
 * process was killed: it may have been counted, and is reported again. */
static void *sell_on(void *ctx)
{
    seller *s = ctx;
    waiting w;
    Merx__V1__QuoteRequest q = MERX__V1__QUOTE_REQUEST__INIT;
    q.sku = "k";
    q.mode = MERX__V1__QUOTE_MODE__QUOTE_LIVE;
    for (bool again = true;; again = false) {
        if (carry_out(s->p, &w, mx_pricing_quote, &q.base)) _exit(4);
        Merx__V1__QuoteResponse *r = merx__v1__quote_response__unpack(NULL, w.op.size, w.op.answer);
        told t = {s->who, s->next, strtoll(r->decision_id + 1, NULL, 10), r->price};
        merx__v1__quote_response__free_unpacked(r, NULL);
        mx_slab_free(w.op.answer);
        int what = report_sale(s->p, s->who, s->next, t.id, t.price);
        if (what != 1 && !(what == 2 && again)) _exit(5);
        s->next++;
        if (write(s->out, &t, sizeof t) != sizeof t) _exit(6);
    }
}

static void storm(int out, const int next[SELLERS])
{
    mx_error err = {0};
    seller s[SELLERS];
    pthread_t thread;
    mx_pricing *p;
    if (mx_pricing_open(&p, file, 0.5, &err)) _exit(3);
    for (int k = 0; k < SELLERS; k++) {
        s[k] = (seller){p, out, k, next[k]};
        if (pthread_create(&thread, NULL, sell_on, &s[k])) _exit(7);
    }
    for (;;) pause();
}

static int64_t sales_of_k(mx_pricing *p)
{
    waiting w;
    Merx__V1__ItemKey key = MERX__V1__ITEM_KEY__INIT;
    key.sku = "k";
    if (carry_out(p, &w, mx_pricing_get_item, &key.base)) return -1;
    Merx__V1__PriceItem *i = merx__v1__price_item__unpack(NULL, w.op.size, w.op.answer);
    int64_t n = i ? i->sales : -1;
    FREE(i);
    mx_slab_free(w.op.answer);
    return n;
}

/* Every acknowledged decision is in the log as it was told, and every sale counts once. */
static void check_after_storm(const told *all, int64_t count, const int next[SELLERS])
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    mx_pricing_replayed same;
    waiting w;
    int64_t sold = 0;
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    if (!p) return;
    for (int64_t i = 0; i < count; i++) {
        char id[24];
        Merx__V1__GetDecisionRequest d = MERX__V1__GET_DECISION_REQUEST__INIT;
        snprintf(id, sizeof id, "p%lld", (long long)all[i].id);
        d.decision_id = id;
        CHECK_MSG(carry_out(p, &w, mx_pricing_decision, &d.base) == MX_OK, "%s: %s", id, w.op.err.text);
        Merx__V1__QuoteResponse *r = w.op.answer ? merx__v1__quote_response__unpack(NULL, w.op.size, w.op.answer) : NULL;
        CHECK(r && r->price == all[i].price);
        FREE(r);
        mx_slab_free(w.op.answer);
        CHECK(report_sale(p, all[i].who, all[i].sale, all[i].id, all[i].price) == 2);      /* said again: nothing new */
    }
    for (int k = 0; k < SELLERS; k++) {
        CHECK(report_sale(p, k, next[k], 0, 900) > 0);      /* what the last kill left open */
        sold += next[k] + 1;
    }
    CHECK_MSG(sales_of_k(p) == sold, "%lld sales, %lld counted", (long long)sold, (long long)sales_of_k(p));
    CHECK_OK(mx_pricing_replay(p, &same, &err), err);
    CHECK_MSG(!same.differs[0] && same.sales == sold, "%s, %lld sales", same.differs, (long long)same.sales);
    mx_pricing_close(p);
}

static void killed_in_a_storm(void)
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    waiting w;
    int64_t count = 0;
    int next[SELLERS] = {0};
    told *all = calloc(TOLD, sizeof *all);
    Merx__V1__PriceItem m = item("k", ""), *list[] = {&m};
    Merx__V1__PutItemsRequest put_all = MERX__V1__PUT_ITEMS_REQUEST__INIT;
    fresh_file();
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    if (!p || !all) return;
    put_all.items = list;
    put_all.n_items = 1;
    CHECK(carry_out(p, &w, mx_pricing_put_items, &put_all.base) == MX_OK);
    mx_slab_free(w.op.answer);
    mx_pricing_close(p);
    for (int round = 0; round < 6; round++) {
        int pipes[2], status;
        told t;
        CHECK(pipe(pipes) == 0);
        pid_t child = fork();
        if (!child) storm(pipes[1], next);
        close(pipes[1]);
        for (int n = 0; read(pipes[0], &t, sizeof t) == sizeof t && count < TOLD; n++) {
            if (n == 5) {                               /* the storm is on */
                usleep((useconds_t)(uniform() * 60000));
                kill(child, SIGKILL);
            }
            CHECK_MSG(t.sale == next[t.who], "sale %d of %d, not %d", t.sale, t.who, next[t.who]);
            next[t.who] = t.sale + 1;
            all[count++] = t;
        }
        close(pipes[0]);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        CHECK_MSG(WIFSIGNALED(status), "a seller ended with %d", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
    }
    CHECK_MSG(count > 20, "only %lld", (long long)count);
    check_after_storm(all, count, next);
    free(all);
    fresh_file();
}

MX_TESTS(TEST(killed_in_a_storm), TEST(learned_priced_and_replayed), TEST(guarded), TEST(frozen_approved_rolled_back), TEST(explored),
         TEST(batches_and_refusals))
