/* test_price_policy.c - learned policies at work: a network's quotes under guardrails, its
 * exact reasons, shadow, canary and live, a canary taken back, the gate, steps from the log. */
#include "models/transitions.h"
#include "models/price_policy.h"
#include "models/qnet.h"
#include "server/pricing.h"
#include "server/store.h"
#include "tests/test.h"
#include "runtime/slab.h"

#include <jansson.h>
#include <semaphore.h>
#include <sys/stat.h>
#include <unistd.h>

static char file[256], folder[256];
static int sales, sold_before;    /* sold_before: in files before this one */

static void fresh_file(void)
{
    static const char *const tails[] = {"", "-wal", "-shm"};
    char path[300];
    snprintf(file, sizeof file, MX_BINARY_DIR "/test_price_policy.%d.db", (int)getpid());
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", file, tails[i]);
        unlink(path);
    }
    sold_before = sales;
}

/* A network in `folder` whose head prefers the rung `always` (-1: it is as it was drawn). */
static void save_network(int always, int32_t observation)
{
    mx_device *devices;
    int n;
    mx_device_options cpu = {.cpu_threads = 1};
    mx_qnet_config c = {.observation = observation, .actions = MX_LADDER, .layers = 2, .hidden = {16, 16}, .activation = MX_ACT_RELU, .atoms = 1};
    mx_qnet *q = NULL;
    mx_error err = {0};
    snprintf(folder, sizeof folder, MX_BINARY_DIR "/test_price_policy.%d.net", (int)getpid());
    mkdir(folder, 0755);
    CHECK_OK(mx_devices_open(&devices, &n, &cpu, &err), err);
    CHECK_OK(mx_qnet_create(&q, &devices[0], &c, false, 7, &err), err);
    mx_params *p = q ? mx_qnet_params(q) : NULL;
    int head = p ? mx_params_find(p, "head.bias") : -1;
    CHECK(head >= 0);
    if (head >= 0 && always >= 0) ((float *)mx_params_view(p, &p->value, head, 1).data)[always] = 100;
    if (q) CHECK_OK(mx_qnet_save(q, folder, &err), err);
    mx_qnet_close(q);
    mx_devices_close(devices, n);
}

static void drop_network(void)
{
    static const char *const files[] = {"config.json", "model.safetensors"};
    char path[300];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
}

typedef struct call {
    mx_pricing_op op;
    sem_t over;
} call;

static void done(mx_pricing_op *op) { sem_post(&((call *)op)->over); }

static mx_error last;

/* NULL: an error, in `last`. */
static void *run(mx_pricing *p, mx_pricing_run *what, const ProtobufCMessage *q)
{
    call c = {.op = {.run = what, .done = done, .request = q}};
    sem_init(&c.over, 0, 0);
    mx_pricing_submit(p, &c.op);
    sem_wait(&c.over);
    sem_destroy(&c.over);
    last = c.op.err;
    void *answer = c.op.st ? NULL : protobuf_c_message_unpack(c.op.type, NULL, c.op.size, c.op.answer);
    mx_slab_free(c.op.answer);
    return answer;
}

#define FREE(m) do { if (m) protobuf_c_message_free_unpacked(&(m)->base, NULL); } while (0)

static bool put(mx_pricing *p, const char *sku, int64_t cost)
{
    Merx__V1__PriceItem m = MERX__V1__PRICE_ITEM__INIT, *list[] = {&m};
    Merx__V1__PutItemsRequest q = MERX__V1__PUT_ITEMS_REQUEST__INIT;
    m.sku = (char *)(uintptr_t)sku, m.currency = "EUR", m.cost = cost, m.reference_price = 1000;
    q.items = list, q.n_items = 1;
    Merx__V1__PutItemsResponse *r = run(p, mx_pricing_put_items, &q.base);
    bool ok = r && r->statuses[0]->code == 0;
    FREE(r);
    return ok;
}

/* Sales wait, so that many share a transaction. */
enum { WAIT = 400 };
static Merx__V1__SaleObservation sale[WAIT], *waiting[WAIT];
static char sale_text[WAIT][3][32];
static int n_waiting;

static void flush(mx_pricing *p)
{
    Merx__V1__ReportSalesRequest q = MERX__V1__REPORT_SALES_REQUEST__INIT;
    if (!n_waiting) return;
    q.sales = waiting, q.n_sales = (size_t)n_waiting;
    Merx__V1__ReportSalesResponse *r = run(p, mx_pricing_sales, &q.base);
    CHECK(r && r->accepted == n_waiting);
    FREE(r);
    n_waiting = 0;
}

static void sell(mx_pricing *p, const char *sku, int64_t price, double units, const char *decision)
{
    int k = n_waiting++;
    merx__v1__sale_observation__init(&sale[k]);
    snprintf(sale_text[k][0], 32, "s%d", sales++);
    snprintf(sale_text[k][1], 32, "%s", sku);
    snprintf(sale_text[k][2], 32, "%s", decision);
    sale[k].sale_id = sale_text[k][0], sale[k].sku = sale_text[k][1], sale[k].decision_id = sale_text[k][2], sale[k].price = price, sale[k].units = units;
    waiting[k] = &sale[k];
    if (n_waiting == WAIT) flush(p);
}

/* A live quote of i0..i(n-1) each, in one call. */
static Merx__V1__BatchQuoteResponse *quote_all(mx_pricing *p, int n)
{
    static char sku[WAIT][24];
    Merx__V1__QuoteRequest q[WAIT], *list[WAIT];
    Merx__V1__BatchQuoteRequest all = MERX__V1__BATCH_QUOTE_REQUEST__INIT;
    for (int i = 0; i < n; i++) {
        merx__v1__quote_request__init(&q[i]);
        snprintf(sku[i], sizeof sku[i], "i%d", i);
        q[i].sku = sku[i], q[i].mode = MERX__V1__QUOTE_MODE__QUOTE_LIVE;
        list[i] = &q[i];
    }
    all.requests = list, all.n_requests = (size_t)n;
    flush(p);
    return run(p, mx_pricing_batch, &all.base);
}

static Merx__V1__QuoteResponse *quote(mx_pricing *p, const char *sku, Merx__V1__QuoteMode mode)
{
    Merx__V1__QuoteRequest q = MERX__V1__QUOTE_REQUEST__INIT;
    q.sku = (char *)(uintptr_t)sku, q.mode = mode;
    flush(p);
    return run(p, mx_pricing_quote, &q.base);
}

static bool load(mx_pricing *p, const char *name)
{
    Merx__V1__LoadPolicyRequest q = MERX__V1__LOAD_POLICY_REQUEST__INIT;
    q.name = (char *)(uintptr_t)name, q.path = folder;
    Merx__V1__PricePolicy *r = run(p, mx_pricing_load_policy, &q.base);
    bool ok = r != NULL;
    FREE(r);
    return ok;
}

static Merx__V1__PricePolicy *promote(mx_pricing *p, const char *name, Merx__V1__PolicyStage stage, double pct, bool force)
{
    Merx__V1__PromotePolicyRequest q = MERX__V1__PROMOTE_POLICY_REQUEST__INIT;
    q.name = (char *)(uintptr_t)name, q.stage = stage, q.canary_pct = pct, q.force = force;
    return run(p, mx_pricing_promote_policy, &q.base);
}

static Merx__V1__PolicyStage stage_of(mx_pricing *p, const char *name, char note[300])
{
    Merx__V1__ListPoliciesRequest q = MERX__V1__LIST_POLICIES_REQUEST__INIT;
    Merx__V1__ListPoliciesResponse *r = run(p, mx_pricing_list_policies, &q.base);
    Merx__V1__PolicyStage stage = MERX__V1__POLICY_STAGE__POLICY_LOADED;
    for (size_t i = 0; r && i < r->n_policies; i++) {
        if (strcmp(r->policies[i]->name, name)) continue;
        stage = r->policies[i]->stage;
        if (note) snprintf(note, 300, "%s", r->policies[i]->note);
        break;
    }
    FREE(r);
    return stage;
}

#define SHADOW  MERX__V1__POLICY_STAGE__POLICY_SHADOW
#define CANARY  MERX__V1__POLICY_STAGE__POLICY_CANARY
#define LIVE    MERX__V1__POLICY_STAGE__POLICY_LIVE
#define RETIRED MERX__V1__POLICY_STAGE__POLICY_RETIRED
#define PREVIEW MERX__V1__QUOTE_MODE__QUOTE_PREVIEW

/* Any network's reasons add up, and are those of the definition: the mean over orders in which features come. */
static void exact_reasons(void)
{
    mx_price_policy *p = NULL;
    mx_error err = {0};
    uint64_t state = 3;
    save_network(-1, MX_PRICE_SEEN);
    CHECK_OK(mx_price_policy_open(&p, folder, &err), err);
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER] = {1, 1, 0, 1, 1, 1, 1};
    mx_price_rungs(1000, price);
    int moved = 0;
    for (int round = 0; p && round < 10; round++) {
        float seen[MX_PRICE_SEEN], value[MX_LADDER];
        double base, c[MX_PRICE_SEEN], sum, mean[MX_PRICE_SEEN] = {0};
        for (int k = 0; k < MX_PRICE_SEEN; k++) seen[k] = (float)(test_random(&state) >> 40) * 0x1p-23f - 1;
        CHECK_OK(mx_price_policy_explain(p, seen, price, feasible, &base, c, &err), err);
        CHECK_OK(mx_price_policy_values(p, seen, 1, value, &err), err);
        sum = base;
        for (int k = 0; k < MX_PRICE_SEEN; k++) sum += c[k], moved += c[k] != 0;
        int32_t best = mx_price_policy_best(value, feasible);
        CHECK_MSG(fabs(sum - (double)price[best]) < 1e-6 && feasible[best], "%.6f, not %lld", sum, (long long)price[best]);
        for (int n = 0; round == 0 && n < 4000; n++) {             /* orders drawn */
            int order[MX_PRICE_SEEN];
            float x[MX_PRICE_SEEN + 1][MX_PRICE_SEEN] = {{0}}, v[MX_PRICE_SEEN + 1][MX_LADDER];
            for (int k = 0; k < MX_PRICE_SEEN; k++) order[k] = k;
            for (int k = MX_PRICE_SEEN - 1; k > 0; k--) {
                int j = (int)(test_random(&state) % (uint64_t)(k + 1)), t = order[k];
                order[k] = order[j], order[j] = t;
            }
            for (int k = 0; k < MX_PRICE_SEEN; k++) {
                memcpy(x[k + 1], x[k], sizeof x[0]);
                x[k + 1][order[k]] = seen[order[k]];
            }
            CHECK(mx_price_policy_values(p, x[0], MX_PRICE_SEEN + 1, v[0], &err) == MX_OK);
            for (int k = 0; k < MX_PRICE_SEEN; k++)
                mean[order[k]] += (double)(price[mx_price_policy_best(v[k + 1], feasible)] - price[mx_price_policy_best(v[k], feasible)]) / 4000;
        }
        for (int k = 0; round == 0 && k < MX_PRICE_SEEN; k++) CHECK_MSG(fabs(mean[k] - c[k]) < 5, "%s: %.2f drawn, %.2f", mx_price_seen_name[k], mean[k], c[k]);
    }
    CHECK(moved > 5);
    mx_price_policy_close(p);
    save_network(-1, 5);
    CHECK(mx_price_policy_open(&p, folder, &err) == MX_ERR_ARG && strstr(err.text, "5 numbers"));
    CHECK(mx_price_policy_open(&p, "/nowhere", &err) != MX_OK);
    drop_network();
}

/* A learned policy's quotes: the same bits alone and in a batch, and reasons that add up to the raw price when asked. */
static void explained_quotes(mx_pricing *p)
{
    Merx__V1__QuoteRequest q[130], *list[130];
    Merx__V1__BatchQuoteRequest all = MERX__V1__BATCH_QUOTE_REQUEST__INIT;
    for (int i = 0; i < 130; i++) {
        merx__v1__quote_request__init(&q[i]);
        q[i].sku = (char *)(uintptr_t)(i == 7 ? "nothing" : i % 2 ? "cup" : "tea");
        q[i].explain = i < 3 ? MERX__V1__QUOTE_EXPLAIN__EXPLAIN_FULL : MERX__V1__QUOTE_EXPLAIN__EXPLAIN_DEFAULT;
        q[i].mode = i == 1 ? MERX__V1__QUOTE_MODE__QUOTE_LIVE : PREVIEW;      /* what is seen of "cup" changes on the way */
        list[i] = &q[i];
    }
    all.requests = list, all.n_requests = 130;
    Merx__V1__BatchQuoteResponse *r = run(p, mx_pricing_batch, &all.base);
    CHECK(r && r->n_items == 130 && r->items[7]->status->code == 5 && !r->items[7]->quote && strstr(r->items[7]->status->message, "nothing"));
    for (size_t i = 0; r && i < r->n_items; i++) {
        Merx__V1__QuoteResponse *one = r->items[i]->quote, *alone;
        if (i == 7) continue;
        CHECK(one && r->items[i]->status && !r->items[i]->status->code && !strcmp(one->policy, "up") && one->n_reasons == (i < 3 ? MX_PRICE_SEEN + (size_t)one->exploration : 0));
        if (!one) continue;
        double sum = one->reason_base;
        for (size_t k = 0; k < one->n_reasons; k++) sum += one->reasons[k]->contribution;
        CHECK_MSG(i >= 3 || fabs(sum - (double)one->raw_price) < 1e-6, "%.6f, not %lld", sum, (long long)one->raw_price);
        if (i < 120) continue;
        alone = run(p, mx_pricing_quote, &q[i].base);
        CHECK(alone && alone->price == one->price && alone->n_seen == one->n_seen && !memcmp(alone->seen, one->seen, one->n_seen * sizeof *one->seen));
        for (size_t k = 0; alone && k < MX_LADDER; k++) CHECK(!memcmp(&alone->ladder[k]->q, &one->ladder[k]->q, sizeof(double)));
        FREE(alone);
    }
    FREE(r);
    for (int i = 0; i < 65; i++) q[i].explain = MERX__V1__QUOTE_EXPLAIN__EXPLAIN_FULL;
    CHECK(!run(p, mx_pricing_batch, &all.base) && strstr(last.text, "EXPLAIN_FULL"));
    q[0].explain = (Merx__V1__QuoteExplain)2;
    CHECK(!run(p, mx_pricing_quote, &q[0].base) && strstr(last.text, "explain"));
}

static void shadow_and_live(void)
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    fresh_file();
    save_network(6, MX_PRICE_SEEN);
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    CHECK(put(p, "tea", 500) && put(p, "new", 500) && put(p, "costless", 0));
    for (int i = 0; i < 40; i++) sell(p, "tea", 900 + 5 * i, 30, ""), sell(p, "costless", 900 + 5 * i, 30, "");
    CHECK(!load(p, "a@b") && strstr(last.text, "name") && load(p, "up"));
    CHECK(!quote(p, "tea", MERX__V1__QUOTE_MODE__QUOTE_SHADOW) && strstr(last.text, "shadow"));
    Merx__V1__PricePolicy *m = promote(p, "up", SHADOW, 0, false);
    CHECK(m && m->stage == SHADOW);
    FREE(m);
    Merx__V1__QuoteResponse *q = quote(p, "tea", MERX__V1__QUOTE_MODE__QUOTE_SHADOW);
    CHECK(q && q->price == 1100 && !strcmp(q->status, "shadow") && !strcmp(q->policy, "up") && q->policy_version == 1 && q->action == 6 && q->n_reasons == 0 && q->n_seen == MX_PRICE_SEEN);
    CHECK(q && q->ladder[6]->q > q->ladder[5]->q + 50);
    FREE(q);
    q = quote(p, "tea", PREVIEW);                       /* elasticity still decides; the shadow is told beside it */
    CHECK(q && !strcmp(q->policy, "elasticity-ladder") && !strcmp(q->shadow_policy, "up@1") && q->shadow_price == 1100 && !strcmp(q->stage, "live"));
    FREE(q);
    CHECK(!promote(p, "up", LIVE, 0, false) && strstr(last.text, "canary"));
    m = promote(p, "up", LIVE, 0, true);
    CHECK(m && m->stage == LIVE && !strcmp(m->note, "forced"));
    FREE(m);
    CHECK(put(p, "cup", 400));
    sell(p, "cup", 1000, 20, "");
    flush(p);
    explained_quotes(p);
    Merx__V1__GuardrailSet g = MERX__V1__GUARDRAIL_SET__INIT;
    g.id = "all", g.ceiling = 1050;
    Merx__V1__GuardrailSet *set = run(p, mx_pricing_put_guardrails, &g.base);
    FREE(set);
    q = quote(p, "tea", MERX__V1__QUOTE_MODE__QUOTE_LIVE);       /* its best rung is not feasible: the best of those that are */
    CHECK(q && !q->ladder[6]->feasible && q->action != 6 && q->ladder[q->action]->feasible && q->price == q->raw_price && q->price <= 1050 && q->propensity == 1);
    for (int k = 0; q && k < MX_LADDER; k++) CHECK(!q->ladder[k]->feasible || q->ladder[k]->q <= q->ladder[q->action]->q);
    Merx__V1__GetDecisionRequest d = MERX__V1__GET_DECISION_REQUEST__INIT;
    if (q) d.decision_id = q->decision_id;
    Merx__V1__ExplainDecisionResponse *e = run(p, mx_pricing_explain, &d.base);
    double sum = e ? e->base_price + e->residual : 0;
    for (size_t k = 0; e && k < e->n_features; k++) sum += e->features[k]->contribution;
    CHECK(e && e->n_features == MX_PRICE_SEEN && q && fabs(sum - (double)q->price) < 1e-6 && fabs(e->residual) < 1e-6);
    FREE(e);
    FREE(q);
    q = quote(p, "new", PREVIEW);                       /* nothing sold yet: what it sees is not known */
    CHECK(q && !strcmp(q->fallback, "elasticity") && !strcmp(q->policy, "elasticity-ladder"));
    FREE(q);
    q = quote(p, "costless", PREVIEW);
    CHECK(q && !strcmp(q->fallback, "last_good") && q->price == 1000);
    FREE(q);
    mx_pricing_close(p);
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);       /* live after a restart */
    q = quote(p, "tea", PREVIEW);
    CHECK(q && !strcmp(q->policy, "up"));
    FREE(q);
    CHECK(load(p, "up"));
    m = promote(p, "up", LIVE, 0, true);
    CHECK(m && m->version == 2);
    FREE(m);
    mx_pricing_close(p);
    drop_network();                                     /* its folder is gone: elasticity, and the quote says so */
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    q = quote(p, "tea", PREVIEW);
    CHECK(q && !strcmp(q->fallback, "elasticity") && !strcmp(q->policy, "elasticity-ladder"));
    FREE(q);
    mx_pricing_close(p);
    fresh_file();
}

/* RUN/best moves on while a run learns; a version stays the network that the link led to. */
static void a_link_is_followed(void)
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    char link[300];
    fresh_file();
    save_network(0, MX_PRICE_SEEN);
    snprintf(link, sizeof link, "%s.link", folder);
    unlink(link);
    CHECK(symlink(folder, link) == 0);
    for (int k = 0; k < 2; k++) {                        /* a restart is no new version */
        CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
        CHECK_OK(mx_pricing_live_policy(p, "m", link, &err), err);
        Merx__V1__ListPoliciesRequest q = MERX__V1__LIST_POLICIES_REQUEST__INIT;
        Merx__V1__ListPoliciesResponse *r = run(p, mx_pricing_list_policies, &q.base);
        CHECK(r && r->n_policies == 1 && r->policies[0]->version == 1);
        if (r) CHECK_STR(r->policies[0]->path, folder);
        FREE(r);
        CHECK(mx_pricing_live_policy(p, "other", "/nowhere", &err) == MX_ERR_IO);
        mx_pricing_close(p);
    }
    unlink(link);
    drop_network();
    fresh_file();
}

/* Canaries, what took them back and what the gate was shown follow from the log. */
static void check_replay(mx_pricing *p, int64_t policies)
{
    mx_pricing_replayed r;
    mx_error err = {0};
    CHECK_OK(mx_pricing_replay(p, &r, &err), err);
    CHECK_MSG(!r.differs[0], "%s", r.differs);
    CHECK(r.sales == sales - sold_before && r.policies == policies);
}

/* Another number of units in a sale of the canary's time: a replay must come to other counts. */
static void forge_a_sale(void)
{
    mx_store *store = NULL;
    mx_error err = {0};
    mx_log_row row;
    bool found = false;
    char key[32];
    snprintf(key, sizeof key, "s%d", sales - 45);
    CHECK_OK(mx_store_open(&store, file, &err), err);
    CHECK_OK(mx_store_find_log(store, "sale", key, &row, &found, &err), err);
    CHECK(found);
    Merx__V1__SaleObservation *s = found ? merx__v1__sale_observation__unpack(NULL, row.size, row.data) : NULL;
    uint8_t bytes[1000];
    if (s) {
        s->units = 0;
        CHECK_OK(mx_store_replace_log(store, row.id, bytes, merx__v1__sale_observation__pack(s, bytes), &err), err);
    }
    FREE(s);
    mx_store_close(store);
}

/* A canary that prices half of the items too low is taken back by its sales; nobody asks. */
static void a_canary_taken_back(void)
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    char sku[24], note[300] = "";
    int canary = 0, live = 0, rounds = 0;
    fresh_file();
    save_network(0, MX_PRICE_SEEN);
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    Merx__V1__GuardrailSet g = MERX__V1__GUARDRAIL_SET__INIT;
    g.id = "all", g.floor = 700;
    Merx__V1__GuardrailSet *set = run(p, mx_pricing_put_guardrails, &g.base);
    FREE(set);
    for (int i = 0; i < 20; i++) {
        snprintf(sku, sizeof sku, "i%d", i);
        CHECK(put(p, sku, 650));
        for (int k = 0; k < 10; k++) sell(p, sku, 950 + 10 * k, 30, "");
    }
    CHECK(load(p, "down"));
    CHECK(!promote(p, "down", CANARY, 50, false) && strstr(last.text, "gate") && strstr(last.text, "0 logged"));
    CHECK(!promote(p, "down", CANARY, 80, true) && strstr(last.text, "canary_pct"));
    Merx__V1__PricePolicy *m = promote(p, "down", CANARY, 50, true);
    CHECK(m && m->canary_pct == 50);
    FREE(m);
    for (; stage_of(p, "down", note) == CANARY && rounds < 100; rounds++) {
        Merx__V1__BatchQuoteResponse *r = quote_all(p, 20);
        for (size_t i = 0; r && i < r->n_items; i++) {
            const Merx__V1__QuoteResponse *q = r->items[i]->quote;
            CHECK_MSG(q, "%s", r->items[i]->status->message);
            if (!q) continue;
            if (rounds == 0) !strcmp(q->stage, "canary") ? canary++ : live++;
            sell(p, q->sku, q->price, 30, q->decision_id);       /* demand does not mind: a low price only costs */
        }
        FREE(r);
        flush(p);
    }
    CHECK_MSG(canary > 3 && live > 3, "%d canary, %d live", canary, live);
    CHECK_MSG(stage_of(p, "down", note) == RETIRED && strstr(note, "rolled back") && rounds < 100, "%s after %d rounds", note, rounds);
    Merx__V1__QuoteResponse *q = quote(p, "i0", PREVIEW);
    CHECK(q && !strcmp(q->stage, "live") && !strcmp(q->policy, "elasticity-ladder"));
    FREE(q);
    mx_pricing_close(p);
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    CHECK(stage_of(p, "down", note) == RETIRED && strstr(note, "rolled back"));
    check_replay(p, 1);
    mx_pricing_close(p);
    forge_a_sale();
    CHECK_OK(mx_pricing_open(&p, file, 0, &err), err);
    mx_pricing_replayed r;
    CHECK_OK(mx_pricing_replay(p, &r, &err), err);
    CHECK_MSG(strstr(r.differs, "canary's"), "%s", r.differs);
    mx_pricing_close(p);
    drop_network();
    fresh_file();
}

/* Logged with exploration, in a market where dear is better: the policy that goes up passes, the
 * one that goes down does not; and the steps in the log are those that were taken. */
static void the_gate(void)
{
    mx_pricing *p = NULL;
    mx_error err = {0};
    char sku[24];
    int64_t n = 0;
    fresh_file();
    save_network(6, MX_PRICE_SEEN);
    CHECK_OK(mx_pricing_open(&p, file, 0.7, &err), err);
    for (int i = 0; i < 30; i++) {
        snprintf(sku, sizeof sku, "i%d", i);
        CHECK(put(p, sku, 650));
        for (int k = 0; k < 6; k++) sell(p, sku, 900 + 40 * k, 30 * pow((900 + 40 * k) / 1000.0, -3.2), "");       /* so it is believed */
    }
    for (int round = 0; round < 12; round++) {
        Merx__V1__BatchQuoteResponse *r = quote_all(p, 30);
        for (size_t i = 0; r && i < r->n_items; i++) {
            const Merx__V1__QuoteResponse *q = r->items[i]->quote;
            CHECK_MSG(q, "%s", r->items[i]->status->message);
            if (q) sell(p, q->sku, q->price, 30, q->decision_id);       /* and so it is */
        }
        FREE(r);
        flush(p);
    }
    CHECK(load(p, "up"));
    Merx__V1__PricePolicy *m = promote(p, "up", CANARY, 10, false);
    CHECK_MSG(m, "%s", last.text);
    if (m) CHECK(m->evidence->rows == 360 && m->evidence->ess > 30 && m->evidence->gain_low > 0 && m->evidence->dr > m->evidence->earned && m->evidence->fqe > m->evidence->fqe_logged && strstr(m->note, "gate"));
    FREE(m);
    drop_network();
    save_network(0, MX_PRICE_SEEN);
    CHECK(load(p, "down") && !promote(p, "down", CANARY, 10, false) && strstr(last.text, "lower bound"));
    check_replay(p, 2);
    mx_pricing_close(p);
    FILE *f = tmpfile();
    CHECK_OK(mx_pricing_transitions(file, f, &n, &err), err);
    CHECK_MSG(n == 360, "%lld", (long long)n);
    rewind(f);
    int firsts = 0, lasts = 0, lines = 0;
    for (char line[4096]; fgets(line, sizeof line, f); lines++) {
        json_t *j = json_loads(line, 0, NULL);
        CHECK(json_array_size(json_object_get(j, "state")) == MX_PRICE_SEEN && json_array_size(json_object_get(j, "mask")) == MX_LADDER);
        firsts += json_is_true(json_object_get(j, "first"));
        lasts += !json_object_get(j, "next");
        double mu = json_number_value(json_object_get(j, "propensity"));
        CHECK(mu >= 0.7 / 7 - 1e-9 && mu <= 1);
        json_decref(j);
    }
    CHECK(firsts == 30 && lasts == 30 && lines == 360);
    fclose(f);
    /* and a policy can learn from them: all but the newest decision of each item */
    char steps[] = "/tmp/merx-steps-XXXXXX";
    int fd = mkstemp(steps);
    mx_transitions *t = NULL;
    f = fdopen(fd, "w");
    CHECK_OK(mx_pricing_transitions(file, f, &n, &err), err);
    fclose(f);
    CHECK_OK(mx_transitions_open(&t, steps, &err), err);
    if (t) CHECK(t->n == 330 && t->starts == 30 && t->observation == MX_PRICE_SEEN && t->actions == MX_LADDER);
    mx_transitions_close(t);
    remove(steps);
    drop_network();
    fresh_file();
}

MX_TESTS(TEST(exact_reasons), TEST(a_link_is_followed), TEST(shadow_and_live), TEST(a_canary_taken_back), TEST(the_gate))
