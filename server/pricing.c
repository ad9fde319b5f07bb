/* pricing.c - items and sales, and the thread that owns them. */
#include "server/pricing_internal.h"

#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/slab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LATE_MS (30 * PRICE_DAY_MS)

enum { TURN = 2000 };

mx_status price_answer(mx_pricing_op *op, const ProtobufCMessage *m)
{
    op->type = m->descriptor;
    op->size = protobuf_c_message_get_packed_size(m);
    op->answer = mx_slab_alloc(op->size + 1);
    if (!op->answer) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "no memory for an answer");
    protobuf_c_message_pack(m, op->answer);
    return MX_OK;
}

/* What is to be stored with this transaction. */
void price_mark(mx_pricing *p, price_item *i)
{
    if (i->changed) return;
    i->changed = true;
    i->next_changed = p->changed;
    p->changed = i;
}

/* ---- items ---------------------------------------------------------------------------------- */

static uint32_t bucket_of(const char *sku, const char *channel, const char *segment)
{
    const char *const part[] = {sku, channel, segment};
    uint64_t h = 0xcbf29ce484222325u;                   /* FNV-1a */
    for (int k = 0; k < 3; k++) {
        for (const char *c = part[k]; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
        h = (h ^ 0xff) * 0x100000001b3u;
    }
    return (uint32_t)(h ^ h >> 32) % PRICE_BUCKETS;
}

price_item *price_look_up(const mx_pricing *p, const char *sku, const char *channel, const char *segment)
{
    for (price_item *i = p->bucket[bucket_of(sku, channel, segment)]; i; i = i->next)
        if (!strcmp(i->m->sku, sku) && !strcmp(i->m->channel, channel) && !strcmp(i->m->segment, segment)) return i;
    return NULL;
}

price_item *price_find(mx_pricing *p, const char *sku, const char *channel, const char *segment, mx_error *err)
{
    price_item *i = price_look_up(p, sku, channel, segment);
    if (!i && *segment) i = price_look_up(p, sku, channel, "");
    if (!i) mx_fail(err, MX_ERR_NOT_FOUND, "sku: there is no \"%.60s\" in channel \"%.40s\"; PutItems first", sku, channel);
    return i;
}

static void free_item(price_item *i)
{
    if (i->m) merx__v1__price_item__free_unpacked(i->m, NULL);
    free(i);
}

/* A message as protobuf-c would have made it, so that free_unpacked() fits. */
static Merx__V1__PriceItem *own_copy(const Merx__V1__PriceItem *m)
{
    size_t n = merx__v1__price_item__get_packed_size(m);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return NULL;
    merx__v1__price_item__pack(m, bytes);
    Merx__V1__PriceItem *copy = merx__v1__price_item__unpack(NULL, n, bytes);
    free(bytes);
    return copy;
}

void price_elasticity(const price_item *i, double *mean, double *low, double *high)
{
    double m[2], d[2];
    mx_demand_moments(&i->belief, m, d);
    *mean = m[1];
    *low = m[1] - 1.959963984540054 * d[1];
    *high = m[1] + 1.959963984540054 * d[1];
}

/* The message's own fields that follow from the belief. */
static mx_status refresh(mx_pricing *p, price_item *i, mx_error *err)
{
    const mx_demand_belief *b = &i->belief;
    const double all[5] = {b->p11, b->p12, b->p22, b->h1, b->h2};
    if (i->m->n_belief != 5) {
        free(i->m->belief);
        i->m->belief = malloc(sizeof all);
        i->m->n_belief = i->m->belief ? 5 : 0;
        if (!i->m->belief) return mx_fail(err, MX_ERR_NO_MEMORY, "an item");
    }
    memcpy(i->m->belief, all, sizeof all);
    i->m->sales = b->n;
    price_elasticity(i, &i->m->elasticity, &i->m->elasticity_low, &i->m->elasticity_high);
    price_mark(p, i);
    return MX_OK;
}

static mx_status store_item(mx_pricing *p, price_item *i, mx_error *err)
{
    char key[3 * PRICE_TEXT + 3];
    size_t n = merx__v1__price_item__get_packed_size(i->m);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "an item");
    merx__v1__price_item__pack(i->m, bytes);
    snprintf(key, sizeof key, "%s\n%s%s%s", i->m->sku, i->m->channel, *i->m->segment ? "\n" : "", i->m->segment);
    mx_status st = mx_store_put_document(p->store, "price_item", key, bytes, n, err);
    free(bytes);
    i->changed = false;
    return st;
}

/* ---- publishing --------------------------------------------------------------------------------- */

static mx_status remember(Merx__V1__PriceItem *m, int64_t price, int64_t now, const char *decision, mx_error *err)
{
    Merx__V1__PriceChange *c = malloc(sizeof *c);
    char *id = *decision ? strdup(decision) : NULL;
    if (!c || (*decision && !id)) {
        free(c);
        return mx_fail(err, MX_ERR_NO_MEMORY, "a price's history");
    }
    merx__v1__price_change__init(c);
    c->price = price;
    c->ts_ms = now;
    if (id) c->decision_id = id;
    if (m->n_history == PRICE_HISTORY) {
        merx__v1__price_change__free_unpacked(m->history[0], NULL);
        memmove(m->history, m->history + 1, (PRICE_HISTORY - 1) * sizeof *m->history);
        m->n_history--;
    } else {
        Merx__V1__PriceChange **grown = realloc(m->history, (m->n_history + 1) * sizeof *grown);
        if (!grown) {
            merx__v1__price_change__free_unpacked(c, NULL);
            return mx_fail(err, MX_ERR_NO_MEMORY, "a price's history");
        }
        m->history = grown;
    }
    m->history[m->n_history++] = c;
    return MX_OK;
}

static mx_status publish_one(mx_pricing *p, price_item *i, int64_t price, const char *decision, mx_error *err)
{
    int64_t now = mx_wall_ms(), day = now / PRICE_DAY_MS;
    if (i->m->day != day || !i->m->day_open) {
        i->m->day = day;
        i->m->day_open = i->m->published ? i->m->published : price;
    }
    price_mark(p, i);
    if (i->m->published == price) return MX_OK;
    MX_TRY(remember(i->m, price, now, decision, err));
    i->m->published = price;
    i->m->published_ms = now;
    return MX_OK;
}

mx_status price_publish(mx_pricing *p, price_item *i, int64_t price, const char *decision, mx_error *err)
{
    MX_TRY(publish_one(p, i, price, decision, err));
    for (uint32_t b = 0; *i->m->parity_group && b < PRICE_BUCKETS; b++)       /* one price in all channels */
        for (price_item *o = p->bucket[b]; o; o = o->next)
            if (o != i && !strcmp(o->m->parity_group, i->m->parity_group) && !strcmp(o->m->sku, i->m->sku)) MX_TRY(publish_one(p, o, price, decision, err));
    return MX_OK;
}

/* ---- PutItems, GetItem, Rollback, Freeze --------------------------------------------------------------- */

static mx_status check_item(const Merx__V1__PriceItem *m, mx_error *err)
{
    const struct { const char *name; int64_t value; } money[] = {{"cost", m->cost}, {"reference_price", m->reference_price}, {"published", m->published}};
    if (!*m->sku || strlen(m->sku) >= PRICE_TEXT) return mx_fail(err, MX_ERR_ARG, "sku: 1 to %d bytes", PRICE_TEXT - 1);
    if (strlen(m->channel) >= PRICE_TEXT) return mx_fail(err, MX_ERR_ARG, "channel: at most %d bytes", PRICE_TEXT - 1);
    if (strlen(m->segment) >= PRICE_TEXT) return mx_fail(err, MX_ERR_ARG, "segment: at most %d bytes", PRICE_TEXT - 1);
    if (strchr(m->sku, '\n') || strchr(m->channel, '\n') || strchr(m->segment, '\n')) return mx_fail(err, MX_ERR_ARG, "sku, channel, segment: no line breaks");
    if (strlen(m->parity_group) >= PRICE_TEXT) return mx_fail(err, MX_ERR_ARG, "parity_group: at most %d bytes", PRICE_TEXT - 1);
    if (strlen(m->currency) != 3) return mx_fail(err, MX_ERR_ARG, "currency: \"%.10s\" is no ISO 4217 code", m->currency);
    for (int i = 0; i < 3; i++)
        if (money[i].value < 0 || money[i].value > MX_PRICE_MOST) return mx_fail(err, MX_ERR_ARG, "%s is %lld; it must be from 0 to %lld", money[i].name, (long long)money[i].value, (long long)MX_PRICE_MOST);
    const struct { const char *name; double value, least, most; } seen[] = {{"demand", m->demand, 0, 1000}, {"demand_next", m->demand_next, 0, 1000},
        {"stockpiling", m->stockpiling, -10, 10}, {"delivery_periods", m->delivery_periods, 0, 1000}};
    for (int i = 0; i < 4; i++)
        if (!(seen[i].value >= seen[i].least && seen[i].value <= seen[i].most)) return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be from %g to %g", seen[i].name, seen[i].value, seen[i].least, seen[i].most);
    if (m->reference_price < 1) return mx_fail(err, MX_ERR_ARG, "reference_price: needed, over 0");
    if (m->n_competitors > 64) return mx_fail(err, MX_ERR_ARG, "competitors: %zu of them, at most 64", m->n_competitors);
    for (size_t i = 0; i < m->n_competitors; i++)
        if (m->competitors[i]->price < 1 || m->competitors[i]->price > MX_PRICE_MOST) return mx_fail(err, MX_ERR_ARG, "competitors[%zu].price is %lld", i, (long long)m->competitors[i]->price);
    return MX_OK;
}

/* The new message takes over what the server tells of the old one. */
static void keep_own(Merx__V1__PriceItem *to, Merx__V1__PriceItem *from)
{
    int64_t put = to->published;
    to->published = from->published;
    to->published_ms = from->published_ms;
    to->day_open = from->day_open;
    to->day = from->day;
    to->frozen = from->frozen;
    to->surprise = from->surprise;
    Merx__V1__PriceChange **history = to->history;
    size_t n = to->n_history;
    to->history = from->history, to->n_history = from->n_history;
    from->history = history, from->n_history = n;
    from->published = put;                              /* for the caller: what was asked for */
}

static mx_status put_item(mx_pricing *p, const Merx__V1__PriceItem *given, mx_error *err)
{
    MX_TRY(check_item(given, err));
    price_item *i = price_look_up(p, given->sku, given->channel, given->segment);
    if (i && strcmp(i->m->currency, given->currency)) return mx_fail(err, MX_ERR_ARG, "currency: the item is priced in %s", i->m->currency);
    if (i && i->m->reference_price != given->reference_price)
        return mx_fail(err, MX_ERR_ARG, "reference_price: it is %lld, and what was learned is measured against it", (long long)i->m->reference_price);
    Merx__V1__PriceItem bare = *given;
    bare.n_history = bare.n_belief = 0;
    bare.published_ms = bare.day = bare.day_open = 0;
    bare.surprise = 0;
    bare.frozen = false;
    Merx__V1__PriceItem *m = own_copy(&bare);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "an item");
    int64_t price = given->published;
    if (i) {
        keep_own(m, i->m);
        merx__v1__price_item__free_unpacked(i->m, NULL);
        i->m = m;
    } else {
        i = calloc(1, sizeof *i);
        if (!i) {
            merx__v1__price_item__free_unpacked(m, NULL);
            return mx_fail(err, MX_ERR_NO_MEMORY, "an item");
        }
        uint32_t b = bucket_of(m->sku, m->channel, m->segment);
        i->m = m;
        m->published = 0;
        i->belief = mx_demand_prior();
        i->next = p->bucket[b];
        p->bucket[b] = i;
        if (!price) price = m->reference_price;
    }
    MX_TRY(refresh(p, i, err));
    return price ? price_publish(p, i, price, "", err) : MX_OK;
}

mx_status mx_pricing_put_items(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__PutItemsRequest *q = (const Merx__V1__PutItemsRequest *)op->request;
    Merx__V1__PutItemsResponse r = MERX__V1__PUT_ITEMS_RESPONSE__INIT;
    size_t n = q->n_items;
    if (!n || n > PRICE_BATCH) return mx_fail(&op->err, MX_ERR_ARG, "items: %zu of them, 1..%d are allowed", n, PRICE_BATCH);
    Merx__V1__ItemStatus *s = calloc(n, sizeof *s), **list = calloc(n, sizeof *list);
    mx_error *words = calloc(n, sizeof *words);
    mx_status st = s && list && words ? MX_OK : mx_fail(&op->err, MX_ERR_NO_MEMORY, "%zu items", n);
    for (size_t i = 0; !st && i < n; i++) {
        merx__v1__item_status__init(&s[i]);
        mx_status one = put_item(p, q->items[i], &words[i]);
        if (one == MX_ERR_NO_MEMORY) st = mx_fail(&op->err, one, "%s", words[i].text);
        s[i].code = one ? one == MX_ERR_ARG ? 3 : 13 : 0;            /* google.rpc.Code */
        s[i].message = words[i].text;
        list[i] = &s[i];
    }
    r.n_statuses = n;
    r.statuses = list;
    if (!st) st = price_answer(op, &r.base);
    free(s), free(list), free(words);
    return st;
}

mx_status mx_pricing_get_item(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__ItemKey *q = (const Merx__V1__ItemKey *)op->request;
    price_item *i = price_find(p, q->sku, q->channel, q->segment, &op->err);
    return i ? price_answer(op, &i->m->base) : MX_ERR_NOT_FOUND;
}

static mx_status freeze_channel(mx_pricing *p, mx_pricing_op *op, const Merx__V1__FreezeRequest *q)
{
    Merx__V1__FreezeResponse r = MERX__V1__FREEZE_RESPONSE__INIT;
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++)
        for (price_item *i = p->bucket[b]; i; i = i->next) {
            if (strcmp(i->m->channel, q->channel) || (*q->segment && strcmp(i->m->segment, q->segment))) continue;
            i->m->frozen = q->frozen;
            price_mark(p, i);
            r.items++;
        }
    return r.items ? price_answer(op, &r.base) : mx_fail(&op->err, MX_ERR_NOT_FOUND, "channel: there is no item in \"%.60s\"", q->channel);
}

mx_status mx_pricing_freeze(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__FreezeRequest *q = (const Merx__V1__FreezeRequest *)op->request;
    Merx__V1__FreezeResponse r = MERX__V1__FREEZE_RESPONSE__INIT;
    if (*q->sku) {
        price_item *i = price_find(p, q->sku, q->channel, q->segment, &op->err);
        if (!i) return MX_ERR_NOT_FOUND;
        i->m->frozen = q->frozen;
        price_mark(p, i);
        r.items = 1;
        return price_answer(op, &r.base);
    }
    if (*q->channel) return freeze_channel(p, op, q);
    p->frozen = q->frozen;
    MX_TRY(mx_store_put_document(p->store, "price_frozen", "all", q->frozen ? "1" : "0", 1, &op->err));
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++)
        for (price_item *i = p->bucket[b]; i; i = i->next) r.items++;
    return price_answer(op, &r.base);
}

/* ---- sales ------------------------------------------------------------------------------------------------ */

mx_status price_teach(price_item *i, const Merx__V1__SaleObservation *s, mx_error *err)
{
    double periods = s->periods > 0 ? s->periods : 1, price = (double)s->price, reference = (double)i->m->reference_price, units = s->units > 0 ? s->units : 0.5;
    if (s->stockout) return MX_OK;                      /* what would have sold is not known */
    if (i->belief.n) i->m->surprise = log(fmax(s->units, 0.5) / (mx_demand_units(&i->belief, price, reference) * periods));
    return mx_demand_observe(&i->belief, price, reference, units, periods, err);
}

static mx_status one_sale(mx_pricing *p, const Merx__V1__SaleObservation *s, Merx__V1__ReportSalesResponse *r, mx_error *err)
{
    mx_error why = {0};
    bool duplicate;
    int64_t now = mx_wall_ms(), ts = s->ts_ms ? s->ts_ms : now;
    price_item *i = price_find(p, s->sku, s->channel, s->segment, &why);
    if (!i) return r->unknown++, MX_OK;
    if (now - ts > LATE_MS) return r->late++, MX_OK;
    if (!*s->sale_id || strlen(s->sale_id) >= PRICE_TEXT || s->price < 1 || s->price > MX_PRICE_MOST || !(s->units >= 0 && s->units < 1e12) || !(s->periods >= 0 && s->periods < 1e6))
        return r->wrong++, MX_OK;
    Merx__V1__SaleObservation own = *s;
    own.segment = i->m->segment;                        /* whose belief it teaches, whatever items there will be */
    size_t n = merx__v1__sale_observation__get_packed_size(&own);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a sale");
    merx__v1__sale_observation__pack(&own, bytes);
    mx_log_row row = {.id = p->last_id + 1, .ts_ms = ts, .kind = "sale", .key = s->sale_id, .data = bytes, .size = n};
    mx_status st = mx_store_add_log(p->store, &row, &duplicate, err);
    free(bytes);
    MX_TRY(st);
    if (duplicate) return r->duplicate++, MX_OK;
    p->last_id++;
    r->accepted++;
    MX_TRY(price_canary_sale(p, &own, err));
    if (s->stockout) return MX_OK;
    if (price_teach(i, s, &why)) return mx_fail(err, MX_ERR_INTERNAL, "%s", why.text);
    return refresh(p, i, err);
}

mx_status mx_pricing_sales(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__ReportSalesRequest *q = (const Merx__V1__ReportSalesRequest *)op->request;
    Merx__V1__ReportSalesResponse r = MERX__V1__REPORT_SALES_RESPONSE__INIT;
    if (!q->n_sales || q->n_sales > PRICE_BATCH) return mx_fail(&op->err, MX_ERR_ARG, "sales: %zu of them, 1..%d are allowed", q->n_sales, PRICE_BATCH);
    for (size_t i = 0; i < q->n_sales; i++) MX_TRY(one_sale(p, q->sales[i], &r, &op->err));
    return price_answer(op, &r.base);
}

/* ---- memory from the store --------------------------------------------------------------------------------------- */

static mx_status take_item(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    mx_pricing *p = ctx;
    price_item *i = calloc(1, sizeof *i);
    if (!i) return mx_fail(err, MX_ERR_NO_MEMORY, "an item");
    i->m = merx__v1__price_item__unpack(NULL, size, data);
    if (!i->m || i->m->n_belief != 5) {
        free_item(i);
        return mx_fail(err, MX_ERR_FORMAT, "the stored item \"%.60s\" is broken", key);
    }
    const double *b = i->m->belief;
    i->belief = (mx_demand_belief){b[0], b[1], b[2], b[3], b[4], i->m->sales};
    uint32_t at = bucket_of(i->m->sku, i->m->channel, i->m->segment);
    i->next = p->bucket[at];
    p->bucket[at] = i;
    return MX_OK;
}

static mx_status take_rules(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    mx_pricing *p = ctx;
    price_rules *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "a set of guardrails");
    r->m = merx__v1__guardrail_set__unpack(NULL, size, data);
    if (!r->m) {
        free(r);
        return mx_fail(err, MX_ERR_FORMAT, "the stored guardrails \"%.60s\" are broken", key);
    }
    price_rules **at = &p->rules;
    while (*at) at = &(*at)->next;
    *at = r;
    return MX_OK;
}

static mx_status take_frozen(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    (void)key, (void)err;
    ((mx_pricing *)ctx)->frozen = size == 1 && *(const char *)data == '1';
    return MX_OK;
}

static void forget(mx_pricing *p)
{
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++) {
        for (price_item *i = p->bucket[b], *next; i; i = next) {
            next = i->next;
            free_item(i);
        }
        p->bucket[b] = NULL;
    }
    for (price_rules *r = p->rules, *next; r; r = next) {
        next = r->next;
        merx__v1__guardrail_set__free_unpacked(r->m, NULL);
        free(r);
    }
    p->rules = NULL;
    p->changed = NULL;
    p->frozen = false;
}

static mx_status read_all(mx_pricing *p, mx_error *err)
{
    forget(p);
    MX_TRY(mx_store_each_document(p->store, "price_item", take_item, p, err));
    MX_TRY(mx_store_each_document(p->store, "guardrails", take_rules, p, err));
    MX_TRY(mx_store_each_document(p->store, "price_frozen", take_frozen, p, err));
    MX_TRY(mx_store_each_document(p->store, "price_policy", price_policy_take, p, err));
    return mx_store_last_log(p->store, &p->last_id, err);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------ */

static void carry_out_all(mx_pricing *p, mx_pricing_op *batch)
{
    mx_error err = {0}, again_err = {0};
    uint64_t began = mx_now_ns(&mx_clock_monotonic), ended;
    mx_status disk = mx_store_begin(p->store, &err);
    price_foresee(p, batch);
    for (mx_pricing_op *op = batch; op && !disk; op = op->next) {
        op->st = op->run(p, op);
        if (op->st == MX_ERR_IO || op->st == MX_ERR_NO_MEMORY) disk = mx_fail(&err, op->st, "%s", op->err.text);
    }
    for (; p->changed && !disk; p->changed = p->changed->next_changed) disk = store_item(p, p->changed, &err);
    for (price_policy *q = p->policies; q && !disk; q = q->next)
        if (q->changed) disk = price_policy_store(p, q, &err);
    if (!disk && batch->commits) batch->commits(batch);
    if (!disk) disk = mx_store_commit(p->store, &err);
    if (disk) {
        mx_log(MX_LOG_ERROR, "pricing", "%s: nothing of this batch is acknowledged", err.text);
        mx_store_rollback(p->store);
        if (read_all(p, &again_err)) mx_log(MX_LOG_ERROR, "pricing", "%s", again_err.text);
        for (price_policy **at = &p->policies, *q; (q = *at);) {       /* those that never were on disk */
            if (!q->changed) {
                at = &q->next;
                continue;
            }
            *at = q->next;
            price_policy_free(q);
        }
    }
    ended = mx_now_ns(&mx_clock_monotonic);
    for (mx_pricing_op *op = batch, *next; op; op = next) {
        next = op->next;
        op->began_ns = began;
        op->ended_ns = ended;
        if (disk) {
            mx_slab_free(op->answer);
            op->answer = NULL;
            op->st = disk;
            op->err = err;
        }
        op->done(op);
    }
}

/* What goes into the next transaction: all that waits, up to so many quotes that their answers are on their way while the
 * next are made. */
static mx_pricing_op *take(mx_pricing *p)
{
    mx_pricing_op *batch = p->first, **at = &p->first;
    for (size_t n = 0; *at && n < TURN; at = &(*at)->next) n += (*at)->run == mx_pricing_batch ? ((const Merx__V1__BatchQuoteRequest *)(*at)->request)->n_requests : 1;
    p->first = *at;
    *at = NULL;
    if (!p->first) p->last = &p->first;
    return batch;
}

static void *thread_main(void *ctx)
{
    mx_pricing *p = ctx;
    pthread_mutex_lock(&p->lock);
    while (!p->stop || p->first) {
        if (!p->first || p->busy) {
            pthread_cond_wait(&p->news, &p->lock);
            continue;
        }
        mx_pricing_op *batch = take(p);
        p->busy = true;
        pthread_mutex_unlock(&p->lock);
        carry_out_all(p, batch);
        pthread_mutex_lock(&p->lock);
        p->busy = false;
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void mx_pricing_op_init(mx_pricing_op *op, mx_pricing_run *run, void (*done)(mx_pricing_op *op), const ProtobufCMessage *request)
{
    op->run = run;
    op->done = done;
    op->request = request;
    op->answer = NULL;
    op->size = 0;
    op->st = MX_OK;
    op->commits = NULL;
    op->err.code = MX_OK;
    op->err.retry_ms = 0;
    op->err.text[0] = 0;
}

void mx_pricing_ahead(const mx_pricing *p)
{
    __builtin_prefetch(&p->lock, 1);
    __builtin_prefetch(&p->busy, 1);
    __builtin_prefetch(&p->first);
}

void mx_pricing_submit(mx_pricing *p, mx_pricing_op *op)
{
    op->next = NULL;
    pthread_mutex_lock(&p->lock);
    *p->last = op;
    p->last = &op->next;
    pthread_cond_signal(&p->news);
    pthread_mutex_unlock(&p->lock);
}

bool mx_pricing_claim(mx_pricing *p)
{
    pthread_mutex_lock(&p->lock);
    bool mine = !p->busy && !p->first;
    if (mine) p->busy = true;
    pthread_mutex_unlock(&p->lock);
    return mine;
}

void mx_pricing_carry_out(mx_pricing *p, mx_pricing_op *op)
{
    op->next = NULL;
    carry_out_all(p, op);
    pthread_mutex_lock(&p->lock);
    p->busy = false;
    if (p->first || p->stop) pthread_cond_signal(&p->news);
    pthread_mutex_unlock(&p->lock);
}

/* The statements of a first quote are made, and their pages read, before somebody waits for it. */
static mx_status warm_up(mx_pricing *p, mx_error *err)
{
    bool duplicate, found;
    mx_log_row row = {.id = p->last_id + 1, .ts_ms = 1, .kind = "price_decision", .data = "", .size = 0};
    mx_status st = mx_store_begin(p->store, err);
    if (!st) st = mx_store_add_log(p->store, &row, &duplicate, err);
    if (!st) st = mx_store_find_log(p->store, "price_decision", "no request's id", &row, &found, err);
    if (!st) st = mx_store_put_document(p->store, "price_item", "", "", 0, err);
    mx_store_rollback(p->store);
    return st;
}

mx_status mx_pricing_open(mx_pricing **out, const char *path, double exploration, mx_error *err)
{
    mx_status st;
    *out = NULL;
    if (!(exploration >= 0 && exploration <= 1)) return mx_fail(err, MX_ERR_ARG, "price-exploration is %g; it must be from 0 to 1", exploration);
    mx_pricing *p = calloc(1, sizeof *p);
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "pricing");
    p->exploration = exploration;
    p->last = &p->first;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->news, NULL);
    MX_TRY_GOTO(st, mx_store_open(&p->store, path, err), fail);
    MX_TRY_GOTO(st, read_all(p, err), fail);
    MX_TRY_GOTO(st, warm_up(p, err), fail);
    if (pthread_create(&p->thread, NULL, thread_main, p)) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "pricing: a thread could not start");
        goto fail;
    }
    p->started = true;
    *out = p;
    return MX_OK;
fail:
    mx_pricing_close(p);
    return st;
}

void mx_pricing_allow_discounts(mx_pricing *p)
{
    p->discounts = true;
}

void mx_pricing_close(mx_pricing *p)
{
    if (!p) return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    pthread_cond_signal(&p->news);
    pthread_mutex_unlock(&p->lock);
    if (p->started) pthread_join(p->thread, NULL);
    forget(p);
    for (price_policy *q = p->policies, *next; q; q = next) {
        next = q->next;
        price_policy_free(q);
    }
    mx_store_close(p->store);
    free(p->paper), free(p->desk);
    pthread_cond_destroy(&p->news);
    pthread_mutex_destroy(&p->lock);
    free(p);
}
