/* pricing_policy.c - learned policies: loaded, in the shadow, as a canary, live; and what
 * takes a canary back. */
#include "server/pricing_internal.h"

#include "models/bandit.h"
#include "runtime/clock.h"
#include "runtime/log.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CANARY_PCT   5.0
#define CANARY_LEAST 30           /* sales before a canary may go live */

/* ---- what a policy sees of an item ------------------------------------------------------------- */

void price_see_item(const price_item *i, float seen[MX_PRICE_SEEN])
{
    const Merx__V1__PriceItem *m = i->m;
    mx_price_view v = {.price = (double)m->published, .cost = (double)m->cost, .reference = (double)m->reference_price, .cover = -1, .delivery = m->delivery_periods,
                       .demand = m->demand, .demand_next = m->demand_next, .surprise = m->surprise, .stockpiling = m->stockpiling};
    double mean[2], deviation[2];
    mx_demand_moments(&i->belief, mean, deviation);
    v.elasticity = mean[1];
    v.deviation = deviation[1];
    if (m->n_history > 1) v.before = (double)m->history[m->n_history - 2]->price;
    for (size_t k = 0; k < m->n_competitors; k++) v.rivals += (double)m->competitors[k]->price / (double)m->n_competitors;
    if (m->_inventory_case && i->belief.n) v.cover = (double)m->inventory / fmax(mx_demand_units(&i->belief, v.price, v.reference) * (m->demand > 0 ? m->demand : 1), 1e-9);
    mx_price_see(&v, seen);
}

/* ---- which one decides ---------------------------------------------------------------------------- */

price_policy *price_policy_at(const mx_pricing *p, Merx__V1__PolicyStage stage)
{
    for (price_policy *q = p->policies; q; q = q->next)
        if (q->m->stage == stage) return q;
    return NULL;
}

static price_policy *newest(const mx_pricing *p, const char *name)
{
    price_policy *best = NULL;
    for (price_policy *q = p->policies; q; q = q->next)
        if (!strcmp(q->m->name, name) && (!best || q->m->version > best->m->version)) best = q;
    return best;
}

price_policy *price_policy_of(const mx_pricing *p, const char *name, int64_t version)
{
    for (price_policy *q = p->policies; q; q = q->next)
        if (q->m->version == version && !strcmp(q->m->name, name)) return q;
    return NULL;
}

/* An item is the canary's or not as long as the canary is there: the same share of items, whoever asks. */
price_policy *price_policy_for(const mx_pricing *p, const price_item *i)
{
    price_policy *canary = price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_CANARY);
    if (canary) {
        uint64_t h = 0x9e3779b97f4a7c15u * (uint64_t)(canary->m->since + 1);
        const char *const part[] = {i->m->sku, i->m->channel, i->m->segment};
        for (int k = 0; k < 3; k++)
            for (const char *c = part[k]; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
        if ((double)((h ^ h >> 29) % 10000) < 100 * canary->m->canary_pct) return canary;
    }
    return price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_LIVE);
}

/* ---- memory and disk ------------------------------------------------------------------------------- */

void price_policy_free(price_policy *q)
{
    if (!q) return;
    if (q->m) merx__v1__price_policy__free_unpacked(q->m, NULL);
    mx_price_policy_close(q->net);
    free(q);
}

mx_status price_policy_store(mx_pricing *p, price_policy *q, mx_error *err)
{
    char key[96];
    size_t n = merx__v1__price_policy__get_packed_size(q->m);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a policy");
    merx__v1__price_policy__pack(q->m, bytes);
    snprintf(key, sizeof key, "%.63s@%lld", q->m->name, (long long)q->m->version);
    mx_status st = mx_store_put_document(p->store, "price_policy", key, bytes, n, err);
    free(bytes);
    q->changed = false;
    return st;
}

/* A stored policy: its figures anew, its network if it is not there yet. */
mx_status price_policy_take(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    mx_pricing *p = ctx;
    mx_error why = {0};
    Merx__V1__PricePolicy *m = merx__v1__price_policy__unpack(NULL, size, data);
    if (!m || !m->canary || !m->control || !m->evidence) {
        if (m) merx__v1__price_policy__free_unpacked(m, NULL);
        return mx_fail(err, MX_ERR_FORMAT, "the stored policy \"%.60s\" is broken", key);
    }
    price_policy *q = price_policy_of(p, m->name, m->version);
    if (!q) {
        q = calloc(1, sizeof *q);
        if (!q) {
            merx__v1__price_policy__free_unpacked(m, NULL);
            return mx_fail(err, MX_ERR_NO_MEMORY, "a policy");
        }
        if (m->stage != MERX__V1__POLICY_STAGE__POLICY_RETIRED && mx_price_policy_open(&q->net, m->path, &why))
            mx_log(MX_LOG_ERROR, "pricing", "policy %s@%lld: %s: elasticity prices in its place", m->name, (long long)m->version, why.text);
        q->next = p->policies;
        p->policies = q;
    } else {
        merx__v1__price_policy__free_unpacked(q->m, NULL);
    }
    q->m = m;
    q->changed = false;
    return MX_OK;
}

static bool set_text(char **at, const char *text)
{
    char *own = strdup(text);
    if (!own) return false;
    if (*at && *at != protobuf_c_empty_string) free(*at);
    *at = own;
    return true;
}

mx_status price_policy_log(mx_pricing *p, price_policy *q, mx_error *err)
{
    bool duplicate;
    size_t n = merx__v1__price_policy__get_packed_size(q->m);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a policy");
    merx__v1__price_policy__pack(q->m, bytes);
    mx_log_row row = {.id = p->last_id + 1, .ts_ms = mx_wall_ms(), .kind = "price_policy", .data = bytes, .size = n};
    mx_status st = mx_store_add_log(p->store, &row, &duplicate, err);
    free(bytes);
    if (!st) p->last_id++;
    return st;
}

static mx_status set_stage(mx_pricing *p, price_policy *q, Merx__V1__PolicyStage stage, const char *note, mx_error *err)
{
    if (!set_text(&q->m->note, note)) return mx_fail(err, MX_ERR_NO_MEMORY, "a policy");
    q->m->stage = stage;
    q->m->ts_ms = mx_wall_ms();
    q->changed = true;
    return price_policy_log(p, q, err);
}

/* ---- LoadPolicy, ListPolicies -------------------------------------------------------------------------- */

static Merx__V1__PricePolicy *new_message(const char *name, int64_t version, const char *path)
{
    Merx__V1__PricePolicy bare = MERX__V1__PRICE_POLICY__INIT;
    Merx__V1__PolicyTally tally = MERX__V1__POLICY_TALLY__INIT;
    Merx__V1__PolicyEvidence evidence = MERX__V1__POLICY_EVIDENCE__INIT;
    bare.name = (char *)(uintptr_t)name;
    bare.version = version;
    bare.path = (char *)(uintptr_t)path;
    bare.canary = bare.control = &tally;
    bare.evidence = &evidence;
    bare.ts_ms = mx_wall_ms();
    size_t n = merx__v1__price_policy__get_packed_size(&bare);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return NULL;
    merx__v1__price_policy__pack(&bare, bytes);
    Merx__V1__PricePolicy *m = merx__v1__price_policy__unpack(NULL, n, bytes);
    free(bytes);
    return m;
}

mx_status price_policy_load(mx_pricing *p, const char *name, const char *path, price_policy **out, mx_error *err)
{
    if (!*name || strlen(name) > 63 || strpbrk(name, "@=/")) return mx_fail(err, MX_ERR_ARG, "name: 1 to 63 bytes without @, = and /");
    const price_policy *before = newest(p, name);
    char real[PATH_MAX];
    if (!realpath(path, real)) return mx_fail(err, MX_ERR_IO, "path: %.200s: %s", path, strerror(errno));
    price_policy *q = calloc(1, sizeof *q);
    if (q) q->m = new_message(name, before ? before->m->version + 1 : 1, real);      /* where a link led to: a version is one network */
    mx_status st = q && q->m ? mx_price_policy_open(&q->net, real, err) : mx_fail(err, MX_ERR_NO_MEMORY, "a policy");
    if (st) {
        price_policy_free(q);
        return st;
    }
    q->changed = true;
    q->next = p->policies;
    p->policies = q;
    *out = q;
    return MX_OK;
}

mx_status mx_pricing_load_policy(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__LoadPolicyRequest *r = (const Merx__V1__LoadPolicyRequest *)op->request;
    price_policy *q;
    MX_TRY(price_policy_load(p, r->name, r->path, &q, &op->err));
    MX_TRY(price_policy_log(p, q, &op->err));
    return price_answer(op, &q->m->base);
}

mx_status mx_pricing_list_policies(mx_pricing *p, mx_pricing_op *op)
{
    Merx__V1__ListPoliciesResponse r = MERX__V1__LIST_POLICIES_RESPONSE__INIT;
    size_t n = 0;
    for (const price_policy *q = p->policies; q; q = q->next) n++;
    r.policies = calloc(n + 1, sizeof *r.policies);
    if (!r.policies) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "policies");
    for (const price_policy *q = p->policies; q; q = q->next) r.policies[r.n_policies++] = q->m;
    mx_status st = price_answer(op, &r.base);
    free(r.policies);
    return st;
}

mx_status mx_pricing_live_policy(mx_pricing *p, const char *name, const char *path, mx_error *err)
{
    price_policy *q = newest(p, name), *before = price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_LIVE);
    char real[PATH_MAX];
    if (q && q == before && q->net && realpath(path, real) && !strcmp(q->m->path, real)) return MX_OK;      /* after a restart */
    MX_TRY(mx_store_begin(p->store, err));
    mx_status st = price_policy_load(p, name, path, &q, err);
    if (!st && before) st = set_stage(p, before, MERX__V1__POLICY_STAGE__POLICY_RETIRED, "another policy took its place", err);
    if (!st) st = set_stage(p, q, MERX__V1__POLICY_STAGE__POLICY_LIVE, "given with --price-policy", err);
    for (q = p->policies; q && !st; q = q->next)
        if (q->changed) st = price_policy_store(p, q, err);
    if (!st) return mx_store_commit(p->store, err);
    mx_store_rollback(p->store);
    return st;
}

/* ---- PromotePolicy ---------------------------------------------------------------------------------------- */

static mx_status gate(mx_pricing *p, price_policy *q, Merx__V1__PolicyStage to, mx_error *err)
{
    const Merx__V1__PolicyTally *a = q->m->canary, *b = q->m->control;
    bool canary = q->m->stage == MERX__V1__POLICY_STAGE__POLICY_CANARY;
    if (to == MERX__V1__POLICY_STAGE__POLICY_LIVE && (!canary || a->n < CANARY_LEAST))
        return mx_fail(err, MX_ERR_STATE, "stage: %s@%lld goes live from a canary of at least %d sales; it is %s with %lld. force goes round the gate", q->m->name,
                       (long long)q->m->version, CANARY_LEAST, canary ? "one" : "none", (long long)a->n);
    if (to == MERX__V1__POLICY_STAGE__POLICY_LIVE && b->n && a->sum / (double)a->n < b->sum / (double)b->n && a->low < b->low)
        return mx_fail(err, MX_ERR_STATE, "stage: the canary's margin, %.3f, is under the control's, %.3f. force goes round the gate", a->sum / (double)a->n, b->sum / (double)b->n);
    if (canary) return MX_OK;                             /* its own sales say more than the log */
    return price_evidence_gate(p, q, err);
}

mx_status mx_pricing_promote_policy(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__PromotePolicyRequest *r = (const Merx__V1__PromotePolicyRequest *)op->request;
    Merx__V1__PolicyStage to = r->stage;
    price_policy *q = newest(p, r->name);
    if (!q) return mx_fail(&op->err, MX_ERR_NOT_FOUND, "name: there is no policy \"%.60s\"", r->name);
    if ((int)to < MERX__V1__POLICY_STAGE__POLICY_SHADOW || (int)to > MERX__V1__POLICY_STAGE__POLICY_RETIRED) return mx_fail(&op->err, MX_ERR_ARG, "stage: shadow, canary, live or retired");
    if (!(r->canary_pct >= 0 && r->canary_pct <= 50)) return mx_fail(&op->err, MX_ERR_ARG, "canary_pct is %g; it must be from 0 to 50", r->canary_pct);
    if (q->m->stage == to) return mx_fail(&op->err, MX_ERR_STATE, "stage: %s@%lld is there already", q->m->name, (long long)q->m->version);
    bool serves = to == MERX__V1__POLICY_STAGE__POLICY_CANARY || to == MERX__V1__POLICY_STAGE__POLICY_LIVE;
    if (to != MERX__V1__POLICY_STAGE__POLICY_RETIRED && !q->net) return mx_fail(&op->err, MX_ERR_STATE, "%s@%lld: its network is not loaded; LoadPolicy again", q->m->name, (long long)q->m->version);
    if (serves && !r->force) MX_TRY(gate(p, q, to, &op->err));
    price_policy *before = to == MERX__V1__POLICY_STAGE__POLICY_RETIRED ? NULL : price_policy_at(p, to);
    if (before) MX_TRY(set_stage(p, before, MERX__V1__POLICY_STAGE__POLICY_RETIRED, "another policy took its place", &op->err));
    if (to == MERX__V1__POLICY_STAGE__POLICY_CANARY) {
        q->m->canary_pct = r->canary_pct > 0 ? r->canary_pct : CANARY_PCT;
        q->m->since = p->last_id + 1;
        q->m->canary->n = q->m->control->n = 0;
        q->m->canary->sum = q->m->control->sum = 0;
    }
    MX_TRY(set_stage(p, q, to, r->force ? "forced" : serves ? "through the gate" : "", &op->err));
    return price_answer(op, &q->m->base);
}

/* ---- a canary's sales ---------------------------------------------------------------------------------------- */

static void count(Merx__V1__PolicyTally *t, double y)
{
    t->n++;
    t->sum += y;
    mx_always_valid(t->sum / (double)t->n, (double)t->n, 0.025, &t->low, &t->high);      /* two of them: 95 % together */
}

/* A decision's sale, as a number in 0..1: its margin a period over twice the reference margin. */
bool price_outcome(const Merx__V1__QuoteResponse *d, const Merx__V1__SaleObservation *s, double *y)
{
    double periods = s->periods > 0 ? s->periods : 1, margin = s->units / periods * (double)(s->price - d->cost);
    if (!d->cost || !(d->reference_margin > 0) || !(s->units >= 0)) return false;
    *y = fmin(fmax(0.5 * margin / d->reference_margin, 0), 1);
    return true;
}

mx_status price_canary_count(mx_pricing *p, Merx__V1__PricePolicy *c, const Merx__V1__SaleObservation *s, price_verdict *v, mx_error *err)
{
    Merx__V1__QuoteResponse *d = NULL;
    mx_error none = {0};
    int64_t id;
    double y;
    *v = (price_verdict){0};
    if (!*s->decision_id || s->stockout) return MX_OK;
    mx_status st = price_decision_of(p, s->decision_id, &d, &id, &none);
    if (st == MX_ERR_IO || st == MX_ERR_NO_MEMORY) return mx_fail(err, st, "%s", none.text);
    if (st) return MX_OK;                                 /* of no decision of ours */
    bool own = !strcmp(d->stage, "canary") && !strcmp(d->policy, c->name) && d->policy_version == c->version;
    v->counted = id >= c->since && (own || !strcmp(d->stage, "live")) && price_outcome(d, s, &y);
    if (v->counted) count(own ? c->canary : c->control, y);
    merx__v1__quote_response__free_unpacked(d, NULL);
    const Merx__V1__PolicyTally *a = c->canary, *b = c->control;
    if (a->n && b->n && a->high < b->low)
        snprintf(v->note, sizeof v->note, "rolled back: its margin is %.3f..%.3f of twice the reference margin, the control's %.3f..%.3f", a->low, a->high, b->low, b->high);
    return MX_OK;
}

mx_status price_canary_sale(mx_pricing *p, const Merx__V1__SaleObservation *s, mx_error *err)
{
    price_policy *c = price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_CANARY);
    price_verdict v;
    if (!c) return MX_OK;
    MX_TRY(price_canary_count(p, c->m, s, &v, err));
    c->changed |= v.counted;
    if (!v.note[0]) return MX_OK;
    mx_log(MX_LOG_WARN, "pricing", "policy %s@%lld: %s", c->m->name, (long long)c->m->version, v.note);
    return set_stage(p, c, MERX__V1__POLICY_STAGE__POLICY_RETIRED, v.note, err);
}
