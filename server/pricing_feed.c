/* pricing_feed.c - what comes in besides sales, and questions that decide nothing. */
#include "server/pricing_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- SimulateLadder, Elasticity ---------------------------------------------------------------- */

enum { SIMULATED = 256 };

static mx_status simulate(mx_pricing *p, const price_item *i, const Merx__V1__SimulateLadderRequest *r, Merx__V1__SimulateLadderResponse *out,
                          Merx__V1__LadderRung *rung, mx_error *err)
{
    mx_guardrails g;
    mx_blackout *windows;
    mx_price_inputs in;
    int64_t price[SIMULATED], rivals[64];
    uint8_t feasible[SIMULATED];
    int32_t n = r->n_prices ? (int32_t)r->n_prices : MX_LADDER;
    MX_TRY(price_inputs_of(i, r->objective, r->revenue_share, &in, err));
    if (r->n_prices) memcpy(price, r->prices, r->n_prices * sizeof *price);
    else mx_price_rungs(i->m->published, price);
    for (int32_t k = 0; k < n; k++)
        if (price[k] < 1 || price[k] > MX_PRICE_MOST) return mx_fail(err, MX_ERR_ARG, "prices[%d] is %lld; it must be from 1 to %lld", k, (long long)price[k], (long long)MX_PRICE_MOST);
    mx_status st = price_rules_of(p, i, NULL, &g, &windows, NULL, NULL, err);
    mx_price_state s = price_state_of(i, rivals);
    if (!st) mx_guard_mask(&g, &s, price, n, feasible);
    free(windows);
    MX_TRY(st);
    out->best = -1;
    for (int32_t k = 0; k < n; k++) {
        mx_ladder_rung v = mx_price_rung(&in, price[k]);
        merx__v1__ladder_rung__init(&rung[k]);
        rung[k].price = v.price, rung[k].q = v.value, rung[k].units = v.units, rung[k].revenue = v.revenue, rung[k].margin = v.margin;
        rung[k].feasible = feasible[k];
        if (feasible[k] && (out->best < 0 || v.value > rung[out->best].q)) out->best = k;
        out->rungs[k] = &rung[k];
    }
    out->n_rungs = (size_t)n;
    out->currency = i->m->currency;
    out->published = i->m->published;
    return MX_OK;
}

mx_status mx_pricing_simulate(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__SimulateLadderRequest *r = (const Merx__V1__SimulateLadderRequest *)op->request;
    Merx__V1__SimulateLadderResponse out = MERX__V1__SIMULATE_LADDER_RESPONSE__INIT;
    Merx__V1__LadderRung rung[SIMULATED], *list[SIMULATED];
    if (r->n_prices > SIMULATED) return mx_fail(&op->err, MX_ERR_ARG, "prices: %zu of them, at most %d", r->n_prices, SIMULATED);
    const price_item *i = price_find(p, r->sku, r->channel, r->segment, &op->err);
    if (!i) return MX_ERR_NOT_FOUND;
    out.rungs = list;
    MX_TRY(simulate(p, i, r, &out, rung, &op->err));
    return price_answer(op, &out.base);
}

mx_status mx_pricing_elasticity(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__ItemKey *q = (const Merx__V1__ItemKey *)op->request;
    Merx__V1__ElasticityResponse r = MERX__V1__ELASTICITY_RESPONSE__INIT;
    double mean[2], deviation[2];
    const price_item *i = price_find(p, q->sku, q->channel, q->segment, &op->err);
    if (!i) return MX_ERR_NOT_FOUND;
    price_elasticity(i, &r.elasticity, &r.low, &r.high);
    mx_demand_moments(&i->belief, mean, deviation);
    r.sales = i->m->sales;
    r.level = mean[0];
    r.level_low = mean[0] - 1.959963984540054 * deviation[0];
    r.level_high = mean[0] + 1.959963984540054 * deviation[0];
    r.own = !strcmp(i->m->segment, q->segment);
    return price_answer(op, &r.base);
}

/* ---- PutCompetitorPrices, PutInventory ---------------------------------------------------------- */

static mx_status put_competitor(Merx__V1__PriceItem *m, const Merx__V1__Competitor *c, mx_error *err)
{
    for (size_t k = 0; k < m->n_competitors; k++)
        if (!strcmp(m->competitors[k]->name, c->name)) {
            m->competitors[k]->price = c->price;
            m->competitors[k]->ts_ms = c->ts_ms;
            return MX_OK;
        }
    Merx__V1__Competitor **grown = realloc(m->competitors, (m->n_competitors + 1) * sizeof *grown), *own = malloc(sizeof *own);
    char *name = strdup(c->name);
    if (grown) m->competitors = grown;
    if (!grown || !own || !name) {
        free(own), free(name);
        return mx_fail(err, MX_ERR_NO_MEMORY, "a competitor's price");
    }
    merx__v1__competitor__init(own);
    own->name = name, own->price = c->price, own->ts_ms = c->ts_ms;
    m->competitors[m->n_competitors++] = own;
    return MX_OK;
}

static size_t others(const Merx__V1__PriceItem *m, const Merx__V1__CompetitorPrices *q)
{
    size_t fresh = 0;
    for (size_t k = 0; k < q->n_competitors; k++) {
        bool known = false;
        for (size_t j = 0; j < m->n_competitors; j++) known |= !strcmp(m->competitors[j]->name, q->competitors[k]->name);
        fresh += !known;
    }
    return fresh;
}

mx_status mx_pricing_competitors(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__CompetitorPrices *q = (const Merx__V1__CompetitorPrices *)op->request;
    Merx__V1__FeedResponse r = MERX__V1__FEED_RESPONSE__INIT;
    bool known = false, wrong = q->n_competitors > 64;
    for (size_t k = 0; k < q->n_competitors; k++)
        wrong |= !*q->competitors[k]->name || strlen(q->competitors[k]->name) >= PRICE_TEXT || q->competitors[k]->price < 1 || q->competitors[k]->price > MX_PRICE_MOST;
    for (uint32_t b = 0; !wrong && b < PRICE_BUCKETS; b++)
        for (price_item *i = p->bucket[b]; i; i = i->next) {
            if (strcmp(i->m->sku, q->sku) || (*q->channel && strcmp(i->m->channel, q->channel))) continue;
            known = true;
            if (i->m->n_competitors + others(i->m, q) > 64) {
                r.wrong++;
                continue;
            }
            for (size_t k = 0; k < q->n_competitors; k++) MX_TRY(put_competitor(i->m, q->competitors[k], &op->err));
            price_mark(p, i);
            r.accepted++;
        }
    if (wrong) r.wrong++;
    else if (!known) r.unknown++;
    return price_answer(op, &r.base);
}

mx_status mx_pricing_inventory(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__InventoryLevels *q = (const Merx__V1__InventoryLevels *)op->request;
    Merx__V1__FeedResponse r = MERX__V1__FEED_RESPONSE__INIT;
    if (q->n_levels > PRICE_BATCH) return mx_fail(&op->err, MX_ERR_ARG, "levels: %zu of them, at most %d", q->n_levels, PRICE_BATCH);
    for (size_t k = 0; k < q->n_levels; k++) {
        const Merx__V1__InventoryLevel *l = q->levels[k];
        price_item *i = price_look_up(p, l->sku, l->channel, l->segment);
        if (!i) {
            r.unknown++;
        } else if (l->on_hand < 0 || l->on_hand > MX_PRICE_MOST || !(l->delivery_periods >= 0 && l->delivery_periods <= 1000)) {
            r.wrong++;
        } else {
            i->m->_inventory_case = MERX__V1__PRICE_ITEM___INVENTORY_INVENTORY;
            i->m->inventory = l->on_hand;
            i->m->delivery_periods = l->delivery_periods;
            price_mark(p, i);
            r.accepted++;
        }
    }
    return price_answer(op, &r.base);
}

/* ---- ExplainDecision ------------------------------------------------------------------------------ */

enum { FEATURES_MOST = 16, RULES_MOST = 32 };

typedef struct told {
    Merx__V1__ExplainDecisionResponse m;
    Merx__V1__SeenFeature feature[FEATURES_MOST], *features[FEATURES_MOST];
    char text[FEATURES_MOST][200], rule[RULES_MOST][200], *rules[RULES_MOST];
} told;

static void tell_feature(told *t, const char *name, double value, double base, double contribution)
{
    size_t k = t->m.n_features++;
    Merx__V1__SeenFeature *f = &t->feature[k];
    merx__v1__seen_feature__init(f);
    f->name = (char *)(uintptr_t)name;
    f->value = value, f->base_value = base, f->contribution = contribution;
    snprintf(t->text[k], sizeof t->text[k], "%s is %.6g, not %.6g: %s the price by %.6g", name, value, base, contribution < 0 ? "lowers" : "raises", fabs(contribution));
    if (contribution == 0) snprintf(t->text[k], sizeof t->text[k], "%s is %.6g: it does not move the price", name, value);
    f->text = t->text[k];
    for (t->features[k] = f; k > 0 && fabs(t->features[k]->contribution) > fabs(t->features[k - 1]->contribution); k--) {
        Merx__V1__SeenFeature *x = t->features[k];
        t->features[k] = t->features[k - 1];
        t->features[k - 1] = x;
    }
}

static void tell_rules(told *t, const Merx__V1__QuoteResponse *q)
{
    for (size_t k = 0; k < q->n_applied && k < RULES_MOST; k++) {
        const Merx__V1__AppliedGuardrail *a = q->applied[k];
        if (a->before == a->after) snprintf(t->rule[k], sizeof t->rule[k], "%s: %lld stands on its bound, %lld..%lld", a->rule, (long long)a->after, (long long)a->low, (long long)a->high);
        else snprintf(t->rule[k], sizeof t->rule[k], "%s: %lld became %lld; it allows %lld..%lld", a->rule, (long long)a->before, (long long)a->after, (long long)a->low, (long long)a->high);
        t->rules[t->m.n_rules++] = t->rule[k];
    }
    t->m.rules = t->rules;
}

/* The elasticity policy: its reasons were computed with the decision, over all subsets of three. */
static mx_status tell_elasticity(told *t, mx_pricing *p, const Merx__V1__QuoteResponse *q, mx_error *err)
{
    const price_item *i = price_find(p, q->sku, q->channel, q->segment, err);
    if (!i) return MX_ERR_NOT_FOUND;
    const double reference = (double)i->m->reference_price, value[MX_PRICE_FEATURES] = {(double)q->cost, q->elasticity, (double)q->baseline_price};
    const double base[MX_PRICE_FEATURES] = {round(0.7 * reference), MX_ELASTICITY_MEAN, reference};
    for (size_t k = 0; k < q->n_reasons && k < MX_PRICE_FEATURES; k++) tell_feature(t, mx_price_feature[k], value[k], base[k], q->reasons[k]->contribution);
    t->m.base_price = q->reason_base;
    return MX_OK;
}

/* A learned policy: over all subsets of what it saw. */
static mx_status tell_learned(told *t, const price_policy *policy, const Merx__V1__QuoteResponse *q, mx_error *err)
{
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER];
    double contribution[MX_PRICE_SEEN];
    if (!policy->net) return mx_fail(err, MX_ERR_STATE, "policy %s@%lld is not loaded", q->policy, (long long)q->policy_version);
    for (int k = 0; k < MX_LADDER; k++) price[k] = q->ladder[k]->price, feasible[k] = q->ladder[k]->feasible != 0;
    MX_TRY(mx_price_policy_explain(policy->net, q->seen, price, feasible, &t->m.base_price, contribution, err));
    for (int k = 0; k < MX_PRICE_SEEN; k++) tell_feature(t, mx_price_seen_name[k], (double)q->seen[k], 0, contribution[k]);
    return MX_OK;
}

mx_status mx_pricing_explain(mx_pricing *p, mx_pricing_op *op)
{
    Merx__V1__QuoteResponse *q;
    int64_t id;
    MX_TRY(price_decision_of(p, ((const Merx__V1__GetDecisionRequest *)op->request)->decision_id, &q, &id, &op->err));
    told *t = calloc(1, sizeof *t);
    mx_status st = t ? MX_OK : mx_fail(&op->err, MX_ERR_NO_MEMORY, "an explanation");
    if (!st) {
        merx__v1__explain_decision_response__init(&t->m);
        t->m.decision_id = q->decision_id;
        t->m.policy = q->policy;
        t->m.method = (char *)(uintptr_t) "exact Shapley values, all subsets";
        t->m.features = t->features;
        const price_policy *policy = price_policy_of(p, q->policy, q->policy_version);
        bool learned = policy && q->n_seen == MX_PRICE_SEEN && q->n_ladder == MX_LADDER;
        if (learned) st = tell_learned(t, policy, q, &op->err);
        else if (*q->policy) st = tell_elasticity(t, p, q, &op->err);
    }
    if (!st) {
        t->m.residual = (double)q->price - t->m.base_price;
        for (size_t k = 0; k < t->m.n_features; k++) t->m.residual -= t->feature[k].contribution;
        tell_rules(t, q);
        st = price_answer(op, &t->m.base);
    }
    merx__v1__quote_response__free_unpacked(q, NULL);
    free(t);
    return st;
}
