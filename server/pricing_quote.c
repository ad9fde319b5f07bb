/* pricing_quote.c - guardrails of an item, and the way from a model's price to a quote. */
#include "server/pricing_internal.h"

#include "server/messages.h"
#include "runtime/clock.h"
#include "runtime/slab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- sets of rules ---------------------------------------------------------------------------- */

mx_status price_rules_read(const Merx__V1__GuardrailSet *m, mx_guardrails *g, mx_error *err)
{
    mx_blackout *b = NULL;
    *g = (mx_guardrails){.legal_floor = m->legal_floor, .legal_ceiling = m->legal_ceiling, .floor = m->floor, .ceiling = m->ceiling,
                         .min_margin_pct = m->min_margin_pct, .map_price = m->map_price, .max_change_pct_step = m->max_change_pct_step,
                         .max_change_pct_day = m->max_change_pct_day, .min_dwell_ms = m->min_dwell_ms, .competitor_low_pct = m->competitor_low_pct,
                         .competitor_high_pct = m->competitor_high_pct, .approval_pct = m->approval_pct};
    if (m->n_endings > MX_ENDINGS) return mx_fail(err, MX_ERR_ARG, "endings: %zu of them, at most %d", m->n_endings, MX_ENDINGS);
    if (m->n_blackouts > 1024) return mx_fail(err, MX_ERR_ARG, "blackouts: %zu of them, at most 1024", m->n_blackouts);
    g->n_endings = (int32_t)m->n_endings;
    for (size_t i = 0; i < m->n_endings; i++) {
        g->ending[i].modulus = m->endings[i]->modulus;
        g->ending[i].remainder = m->endings[i]->remainder;
    }
    if (m->n_blackouts && !(b = malloc(m->n_blackouts * sizeof *b))) return mx_fail(err, MX_ERR_NO_MEMORY, "blackouts");
    for (size_t i = 0; i < m->n_blackouts; i++) b[i] = (mx_blackout){m->blackouts[i]->from_ms, m->blackouts[i]->to_ms};
    g->blackout = b;
    g->n_blackouts = (int32_t)m->n_blackouts;
    return MX_OK;
}

static bool matches(const Merx__V1__GuardrailSet *s, const Merx__V1__PriceItem *i, int64_t now)
{
    return !strncmp(i->sku, s->sku_prefix, strlen(s->sku_prefix)) && (!*s->channel || !strcmp(s->channel, i->channel)) &&
           (!s->valid_from_ms || now >= s->valid_from_ms) && (!s->valid_to_ms || now < s->valid_to_ms);
}

static void most(int64_t *a, int64_t b) { if (b > *a) *a = b; }
static void least(int64_t *a, int64_t b) { if (b && (!*a || b < *a)) *a = b; }
static void most_of(double *a, double b) { if (b > *a) *a = b; }
static void least_of(double *a, double b) { if (b > 0 && (!(*a > 0) || b < *a)) *a = b; }

static mx_status tighten(mx_guardrails *g, const mx_guardrails *s, mx_blackout **windows, bool endings, mx_error *err)
{
    most(&g->legal_floor, s->legal_floor), most(&g->floor, s->floor), most(&g->map_price, s->map_price), most(&g->min_dwell_ms, s->min_dwell_ms);
    least(&g->legal_ceiling, s->legal_ceiling), least(&g->ceiling, s->ceiling);
    most_of(&g->min_margin_pct, s->min_margin_pct), most_of(&g->competitor_low_pct, s->competitor_low_pct);
    least_of(&g->max_change_pct_step, s->max_change_pct_step), least_of(&g->max_change_pct_day, s->max_change_pct_day);
    least_of(&g->competitor_high_pct, s->competitor_high_pct), least_of(&g->approval_pct, s->approval_pct);
    if (endings) {
        g->n_endings = s->n_endings;
        memcpy(g->ending, s->ending, sizeof g->ending);
    }
    if (!s->n_blackouts) return MX_OK;
    mx_blackout *grown = realloc(*windows, (size_t)(g->n_blackouts + s->n_blackouts) * sizeof *grown);
    if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "blackouts");
    memcpy(grown + g->n_blackouts, s->blackout, (size_t)s->n_blackouts * sizeof *grown);
    *windows = grown;
    g->blackout = grown;
    g->n_blackouts += s->n_blackouts;
    return MX_OK;
}

mx_status price_rules_of(const mx_pricing *p, const price_item *i, const Merx__V1__GuardrailSet *extra, mx_guardrails *g, mx_blackout **windows,
                         const Merx__V1__GuardrailSet *used[], size_t *n_used, mx_error *err)
{
    int64_t now = mx_wall_ms();
    size_t longest = 0, n = 0;
    bool any = false;
    mx_status st = MX_OK;
    *g = (mx_guardrails){0};
    *windows = NULL;
    for (const price_rules *r = p->rules; !st && (r || extra); r = r ? r->next : NULL) {
        const Merx__V1__GuardrailSet *m = r ? r->m : extra;
        if (!r) extra = NULL;
        else if (extra && !strcmp(m->id, extra->id)) continue;
        mx_guardrails s;
        if (!matches(m, i->m, now)) continue;
        MX_TRY(price_rules_read(m, &s, err));
        bool endings = s.n_endings && (!any || strlen(m->sku_prefix) >= longest);
        if (endings) any = true, longest = strlen(m->sku_prefix);
        st = tighten(g, &s, windows, endings, err);
        free((void *)(uintptr_t)s.blackout);
        if (used && n < 64) used[n++] = m;
    }
    if (n_used) *n_used = n;
    return st;
}

mx_price_state price_state_of(const price_item *i, int64_t rivals[64])
{
    const Merx__V1__PriceItem *m = i->m;
    int64_t now = mx_wall_ms();
    for (size_t k = 0; k < m->n_competitors; k++) rivals[k] = m->competitors[k]->price;
    return (mx_price_state){.now_ms = now, .published = m->published, .changed_ms = m->published_ms, .cost = m->cost, .competitors = rivals,
                            .day_open = m->day == now / PRICE_DAY_MS ? m->day_open : m->published, .n_competitors = (int32_t)m->n_competitors};
}

/* ---- a quote ------------------------------------------------------------------------------------- */

enum { MOST_USED = 64, REASONS = MX_PRICE_SEEN + 1, EXPLAINED = 64 };

/* Everything that an answer points to. */
typedef struct quote {
    Merx__V1__QuoteResponse m;
    Merx__V1__AppliedGuardrail applied[MX_RULES], *applied_list[MX_RULES];
    Merx__V1__LadderRung rung[MX_LADDER], *rung_list[MX_LADDER];
    Merx__V1__Reason reason[REASONS], *reason_list[REASONS];
    char id[24], names[MOST_USED][96], *name_list[MOST_USED], shadow[96];
    float seen[MX_PRICE_SEEN];
    const price_policy *learned;          /* that decided; NULL: elasticity                   */
    int64_t rivals[64];
} quote;

static double uniform(uint64_t x)                       /* SplitMix64 (Steele, Lea, Flood 2014) */
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (double)((x ^ (x >> 31)) >> 11) * 0x1p-53;
}

static void fill_ladder(quote *q, const mx_ladder_rung rung[MX_LADDER], const mx_guardrails *g, const mx_price_state *s)
{
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER];
    for (int k = 0; k < MX_LADDER; k++) price[k] = rung[k].price;
    mx_guard_mask(g, s, price, MX_LADDER, feasible);
    for (int k = 0; k < MX_LADDER; k++) {
        merx__v1__ladder_rung__init(&q->rung[k]);
        q->rung[k].price = rung[k].price;
        q->rung[k].q = rung[k].value;
        q->rung[k].margin = rung[k].margin;
        q->rung[k].units = rung[k].units;
        q->rung[k].revenue = rung[k].revenue;
        q->rung[k].feasible = feasible[k];
        q->rung_list[k] = &q->rung[k];
    }
    q->m.ladder = q->rung_list;
    q->m.n_ladder = MX_LADDER;
}

static void fill_applied(quote *q, const mx_guarded *out)
{
    for (int32_t k = 0; k < out->n_applied; k++) {
        const mx_applied *a = &out->applied[k];
        merx__v1__applied_guardrail__init(&q->applied[k]);
        q->applied[k].rule = (char *)(uintptr_t)mx_rule_name(a->rule);
        q->applied[k].before = a->before;
        q->applied[k].after = a->after;
        q->applied[k].low = a->low;
        q->applied[k].high = a->high;
        q->applied[k].binding = a->binding;
        q->applied_list[k] = &q->applied[k];
    }
    q->m.applied = q->applied_list;
    q->m.n_applied = (size_t)out->n_applied;
}

static void add_reason(quote *q, const char *feature, double contribution)
{
    size_t k = q->m.n_reasons++;
    merx__v1__reason__init(&q->reason[k]);
    q->reason[k].feature = (char *)(uintptr_t)feature;
    q->reason[k].contribution = contribution;
    q->reason_list[k] = &q->reason[k];
    q->m.reasons = q->reason_list;
}

static void fill_reasons(quote *q, const mx_price_inputs *in)
{
    mx_price_reasons r;
    mx_price_explain(in, &r);
    q->m.reason_base = r.base;
    for (int f = 0; f < MX_PRICE_FEATURES; f++) add_reason(q, mx_price_feature[f], r.contribution[f]);
}

/* A learned policy's: of all that it saw, and of the draw, where one explored. */
static mx_status fill_learned_reasons(quote *q, int32_t best, mx_error *err)
{
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER];
    double contribution[MX_PRICE_SEEN];
    for (int k = 0; k < MX_LADDER; k++) price[k] = q->rung[k].price, feasible[k] = q->rung[k].feasible != 0;
    MX_TRY(mx_price_policy_explain(q->learned->net, q->seen, price, feasible, &q->m.reason_base, contribution, err));
    for (int f = 0; f < MX_PRICE_SEEN; f++) add_reason(q, mx_price_seen_name[f], contribution[f]);
    if (q->m.exploration) add_reason(q, "exploration", (double)(q->m.raw_price - price[best]));
    return MX_OK;
}

/* The rung that the policy takes; with a little of everything feasible when it explores. */
static void choose(const mx_pricing *p, quote *q, int32_t best, bool live)
{
    int32_t feasible = 0, pick = best;
    for (int k = 0; k < MX_LADDER; k++) feasible += q->rung[k].feasible;
    double share = live && feasible ? p->exploration : 0;
    if (share > 0 && uniform((uint64_t)p->last_id * 2) < share) {
        int32_t n = (int32_t)(uniform((uint64_t)p->last_id * 2 + 1) * feasible);
        for (pick = 0; !q->rung[pick].feasible || n-- > 0;) pick++;
    }
    q->m.action = pick;
    q->m.exploration = pick != best;
    q->m.propensity = (pick == best ? 1 - share : 0) + (share > 0 && q->rung[pick].feasible ? share / feasible : 0);
    q->m.raw_price = q->rung[pick].price;
}

static bool can_price(const price_policy *policy, const price_item *i)
{
    return policy->net && i->m->cost && i->belief.n;
}

typedef struct foresight {
    const price_policy *policy;
    int64_t n;
    price_item *item[256];
    float seen[256][MX_PRICE_SEEN], value[256][MX_LADDER];
} foresight;

static void tell_items(foresight *f)
{
    mx_error why = {0};
    if (f->n && mx_price_policy_values(f->policy->net, f->seen[0], f->n, f->value[0], &why)) f->n = 0;      /* each on its own, then */
    for (int64_t k = 0; k < f->n; k++) {
        price_item *i = f->item[k];
        i->seer = f->policy;
        memcpy(i->saw, f->seen[k], sizeof i->saw);
        memcpy(i->value, f->value[k], sizeof i->value);
    }
    f->n = 0;
}

static void foresee(mx_pricing *p, foresight *f, const Merx__V1__QuoteRequest *r)
{
    price_item *i = price_look_up(p, r->sku, r->channel, r->segment);
    if (!i && *r->segment) i = price_look_up(p, r->sku, r->channel, "");
    if (!i || i->foreseen == p->round || r->objective != MERX__V1__QUOTE_OBJECTIVE__OBJECTIVE_MARGIN || !can_price(f->policy, i) || price_policy_for(p, i) != f->policy) return;
    i->foreseen = p->round;
    i->seer = NULL;
    f->item[f->n] = i;
    price_see_item(i, f->seen[f->n++]);
    if (f->n == 256) tell_items(f);
}

void price_foresee(mx_pricing *p, const mx_pricing_op *batch)
{
    foresight f = {.policy = price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_LIVE)};
    p->round++;
    for (; f.policy && batch; batch = batch->next) {
        const Merx__V1__BatchQuoteRequest *all = (const Merx__V1__BatchQuoteRequest *)batch->request;
        if (batch->run == mx_pricing_quote) foresee(p, &f, (const Merx__V1__QuoteRequest *)batch->request);
        for (size_t k = 0; batch->run == mx_pricing_batch && all->n_requests <= PRICE_BATCH && k < all->n_requests; k++) foresee(p, &f, all->requests[k]);
    }
    tell_items(&f);
}

/* The values of a learned policy take the place of the ladder's; false: it cannot price this
 * item, and elasticity does. */
static bool ask_policy(const mx_pricing *p, quote *q, const price_policy *policy, const price_item *i, float value[MX_LADDER])
{
    mx_error why = {0};
    if (!can_price(policy, i)) return false;
    if (i->foreseen == p->round && i->seer == policy && !memcmp(i->saw, q->seen, sizeof i->saw)) {
        memcpy(value, i->value, sizeof i->value);
        return true;
    }
    return mx_price_policy_values(policy->net, q->seen, 1, value, &why) == MX_OK;
}

static int32_t best_of(const quote *q, const float value[MX_LADDER])
{
    uint8_t feasible[MX_LADDER];
    for (int k = 0; k < MX_LADDER; k++) feasible[k] = q->rung[k].feasible != 0;
    return mx_price_policy_best(value, feasible);
}

/* What the policy that prices this item wants: the best rung.  fallback says what stood in for what. */
static int32_t decide(const mx_pricing *p, quote *q, const price_policy *policy, const price_item *i, int32_t best)
{
    float value[MX_LADDER];
    q->m.policy = (char *)(uintptr_t) "elasticity-ladder";
    q->m.policy_version = i->m->sales;
    q->m.fallback = (char *)(uintptr_t) "none";
    if (!policy) return best;
    if (!ask_policy(p, q, policy, i, value)) {
        q->m.fallback = (char *)(uintptr_t) "elasticity";
        return best;
    }
    q->learned = policy;
    q->m.policy = policy->m->name;
    q->m.policy_version = policy->m->version;
    for (int k = 0; k < MX_LADDER; k++) q->rung[k].q = (double)value[k];
    return best_of(q, value);
}

/* What the shadow policy would do, beside it. */
static void look_in_the_shadow(const mx_pricing *p, quote *q, const price_item *i, const mx_guardrails *g, const mx_price_state *s)
{
    const price_policy *shadow = price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_SHADOW);
    float value[MX_LADDER];
    mx_guarded out;
    mx_error none;
    if (!shadow || shadow == q->learned || !ask_policy(p, q, shadow, i, value)) return;
    if (mx_guard(g, s, q->rung[best_of(q, value)].price, &out, &none)) return;
    snprintf(q->shadow, sizeof q->shadow, "%.63s@%lld", shadow->m->name, (long long)shadow->m->version);
    q->m.shadow_policy = q->shadow;
    q->m.shadow_price = out.price;
}

static void fill_expectations(quote *q, const price_item *i)
{
    double price = (double)q->m.price, reference = (double)i->m->reference_price, low, high;
    mx_demand_range(&i->belief, price, reference, &low, &high);
    q->m.expected_margin_low = low * (price - (double)i->m->cost);
    q->m.expected_margin_high = high * (price - (double)i->m->cost);
    q->m.reference_margin = mx_demand_units(&i->belief, reference, reference) * (reference - (double)i->m->cost);
    q->m.cost = i->m->cost;
    q->m.expected_units = mx_demand_units(&i->belief, price, (double)i->m->reference_price);
    q->m.expected_revenue = q->m.expected_units * price;
    q->m.expected_margin = q->m.expected_units * (price - (double)i->m->cost);
    price_elasticity(i, &q->m.elasticity, &q->m.elasticity_low, &q->m.elasticity_high);
}

mx_status price_inputs_of(const price_item *i, Merx__V1__QuoteObjective objective, double revenue_share, mx_price_inputs *out, mx_error *err)
{
    if ((int)objective < 0 || (int)objective >= MX_OBJECTIVES) return mx_fail(err, MX_ERR_ARG, "objective: %d is none", (int)objective);
    if (!(revenue_share >= 0 && revenue_share <= 1)) return mx_fail(err, MX_ERR_ARG, "revenue_share is %g; it must be from 0 to 1", revenue_share);
    *out = (mx_price_inputs){i->m->published, i->m->reference_price, i->m->cost, i->belief, (mx_price_objective)objective, revenue_share};
    return MX_OK;
}

/* The price that the guardrails leave of the policy's; without a cost, what needs one is not asked. */
static mx_status price_it(mx_pricing *p, quote *q, price_item *i, const price_policy *policy, const Merx__V1__QuoteRequest *r, bool live, mx_error *err)
{
    const Merx__V1__GuardrailSet *used[MOST_USED];
    mx_guardrails g;
    mx_blackout *windows;
    mx_guarded out = {0};
    mx_ladder_rung rung[MX_LADDER];
    mx_price_inputs in;
    bool needs_cost = r->objective == MERX__V1__QUOTE_OBJECTIVE__OBJECTIVE_MARGIN || r->objective == MERX__V1__QUOTE_OBJECTIVE__OBJECTIVE_BLEND;
    bool known = i->m->cost || !needs_cost;
    MX_TRY(price_inputs_of(i, r->objective, r->revenue_share, &in, err));
    mx_price_state s = price_state_of(i, q->rivals);
    mx_status st = price_rules_of(p, i, NULL, &g, &windows, used, &q->m.n_guardrails, err);
    for (size_t k = 0; k < q->m.n_guardrails; k++) {
        snprintf(q->names[k], sizeof q->names[k], "%s@%lld", used[k]->id, (long long)used[k]->version);
        q->name_list[k] = q->names[k];
    }
    q->m.guardrails = q->name_list;
    if (!st && *r->user_id && (!g.ceiling || g.ceiling > i->m->published)) g.ceiling = i->m->published;      /* discounts only */
    if (!st) {
        int32_t best = mx_price_ladder(&in, rung);
        fill_ladder(q, rung, &g, &s);
        best = decide(p, q, policy, i, best);
        if (known) choose(p, q, best, live);
        else q->m.raw_price = i->m->published, q->m.action = MX_LADDER / 2, q->m.propensity = 1;
        if (!known) q->m.fallback = (char *)(uintptr_t) "last_good";
        if (!q->learned) fill_reasons(q, &in);
        else if (r->explain == MERX__V1__QUOTE_EXPLAIN__EXPLAIN_FULL) st = fill_learned_reasons(q, best, err);
        look_in_the_shadow(p, q, i, &g, &s);
        if (!st) st = mx_guard(&g, &s, q->m.raw_price, &out, err);
    }
    if (!st) {
        fill_applied(q, &out);
        q->m.price = out.price;
        q->m.requires_approval = out.needs_approval;
    }
    free(windows);
    return st;
}

/* Room for a packed quote: what is logged is what is answered. */
static mx_status paper_of(mx_pricing *p, size_t n, mx_error *err)
{
    if (n > p->room) {
        uint8_t *grown = realloc(p->paper, 2 * n);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "a decision");
        p->paper = grown;
        p->room = 2 * n;
    }
    p->written = n;
    return MX_OK;
}

static mx_status log_quote(mx_pricing *p, quote *q, mx_error *err)
{
    bool duplicate;
    size_t n = merx__v1__quote_response__get_packed_size(&q->m);
    MX_TRY(paper_of(p, n, err));
    merx__v1__quote_response__pack(&q->m, p->paper);
    mx_log_row r = {.id = p->last_id + 1, .ts_ms = q->m.ts_ms, .kind = "price_decision", .key = *q->m.request_id ? q->m.request_id : NULL, .data = p->paper, .size = n};
    mx_status st = mx_store_add_log(p->store, &r, &duplicate, err);
    if (!st) p->last_id++;
    return st;
}

/* What was answered to this request_id before, if anything: onto the paper. */
static mx_status said_before(mx_pricing *p, const Merx__V1__QuoteRequest *r, bool *said, mx_error *err)
{
    mx_log_row row;
    bool found = *said = false;
    if (*r->request_id) MX_TRY(mx_store_find_log(p->store, "price_decision", r->request_id, &row, &found, err));
    if (!found) return MX_OK;
    Merx__V1__QuoteResponse *m = merx__v1__quote_response__unpack(NULL, row.size, row.data);
    if (!m) return mx_fail(err, MX_ERR_FORMAT, "decision %lld is broken", (long long)row.id);
    *said = !strcmp(m->sku, r->sku) && !strcmp(m->channel, r->channel);
    mx_status st = *said ? paper_of(p, row.size, err) : mx_fail(err, MX_ERR_ARG, "request_id: \"%.60s\" was a quote for \"%.60s\"", r->request_id, m->sku);
    if (!st) memcpy(p->paper, row.data, row.size);
    merx__v1__quote_response__free_unpacked(m, NULL);
    return st;
}

static mx_status check_request(const mx_pricing *p, const Merx__V1__QuoteRequest *r, mx_error *err)
{
    bool live = r->mode == MERX__V1__QUOTE_MODE__QUOTE_LIVE;
    if (*r->user_id && !p->discounts) return mx_fail(err, MX_ERR_ARG, "user_id: individual users are not priced; ask by sku, channel and segment");
    if (*r->user_id && live) return mx_fail(err, MX_ERR_ARG, "user_id: an offer to one user is never published; ask with QUOTE_PREVIEW");
    if (strlen(r->request_id) > 256) return mx_fail(err, MX_ERR_ARG, "request_id: %zu bytes, at most 256", strlen(r->request_id));
    if ((int)r->mode < 0 || (int)r->mode > MERX__V1__QUOTE_MODE__QUOTE_SHADOW) return mx_fail(err, MX_ERR_ARG, "mode: %d is none", (int)r->mode);
    if ((int)r->explain < 0 || (int)r->explain > MERX__V1__QUOTE_EXPLAIN__EXPLAIN_FULL) return mx_fail(err, MX_ERR_ARG, "explain: %d is none", (int)r->explain);
    return MX_OK;
}

static void begin_quote(mx_pricing *p, quote *q, const price_item *i, const Merx__V1__QuoteRequest *r)
{
    merx__v1__quote_response__init(&q->m);
    q->learned = NULL;
    snprintf(q->id, sizeof q->id, "p%lld", (long long)p->last_id + 1);
    q->m.decision_id = q->id;
    q->m.request_id = r->request_id;
    q->m.sku = i->m->sku;
    q->m.channel = i->m->channel;
    q->m.segment = i->m->segment;
    q->m.currency = i->m->currency;
    q->m.objective = r->objective;
    q->m.revenue_share = r->revenue_share;
    q->m.ts_ms = mx_wall_ms();
    q->m.baseline_policy = (char *)(uintptr_t) "published";
    q->m.baseline_price = i->m->published;
    price_see_item(i, q->seen);
    q->m.seen = q->seen;
    q->m.n_seen = MX_PRICE_SEEN;
}

/* q: room to work in.  The answer, a new one or what was said before, is packed on p's paper. */
static mx_status make_quote(mx_pricing *p, quote *q, const Merx__V1__QuoteRequest *r, mx_error *err)
{
    bool said;
    MX_TRY(check_request(p, r, err));
    price_item *i = price_find(p, r->sku, r->channel, r->segment, err);
    if (!i) return MX_ERR_NOT_FOUND;
    MX_TRY(said_before(p, r, &said, err));
    if (said) return MX_OK;
    bool live = r->mode == MERX__V1__QUOTE_MODE__QUOTE_LIVE, frozen = p->frozen || i->m->frozen, shadow = r->mode == MERX__V1__QUOTE_MODE__QUOTE_SHADOW;
    const price_policy *policy = shadow ? price_policy_at(p, MERX__V1__POLICY_STAGE__POLICY_SHADOW) : price_policy_for(p, i);
    if (shadow && !policy) return mx_fail(err, MX_ERR_STATE, "mode: there is no policy in the shadow");
    if (r->objective != MERX__V1__QUOTE_OBJECTIVE__OBJECTIVE_MARGIN) policy = NULL;      /* learned ones know no other */
    begin_quote(p, q, i, r);
    q->m.stage = (char *)(uintptr_t)(shadow ? "shadow" : policy && policy->m->stage == MERX__V1__POLICY_STAGE__POLICY_CANARY ? "canary" : "live");
    if (frozen) {
        q->m.price = q->m.raw_price = i->m->published;
        q->m.propensity = 1;
        q->m.action = MX_LADDER / 2;
        q->m.fallback = (char *)(uintptr_t) "freeze";
    } else {
        MX_TRY(price_it(p, q, i, policy, r, live, err));
    }
    fill_expectations(q, i);
    q->m.status = (char *)(uintptr_t)(frozen ? "frozen" : *r->user_id ? "offered" : shadow ? "shadow" : !live ? "preview" : q->m.requires_approval ? "pending" : "published");
    MX_TRY(log_quote(p, q, err));
    return live && !frozen && !q->m.requires_approval ? price_publish(p, i, q->m.price, q->id, err) : MX_OK;
}

/* The place where quotes are made, one at a time. */
static quote *desk_of(mx_pricing *p, mx_error *err)
{
    if (!p->desk && !(p->desk = malloc(sizeof(quote)))) mx_fail(err, MX_ERR_NO_MEMORY, "a quote");
    return p->desk;
}

mx_status mx_pricing_quote(mx_pricing *p, mx_pricing_op *op)
{
    quote *q = desk_of(p, &op->err);
    if (!q) return MX_ERR_NO_MEMORY;
    MX_TRY(make_quote(p, q, (const Merx__V1__QuoteRequest *)op->request, &op->err));
    op->type = &merx__v1__quote_response__descriptor;
    op->answer = mx_slab_alloc(p->written + 1);
    if (!op->answer) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "no memory for an answer");
    memcpy(op->answer, p->paper, op->size = p->written);
    return MX_OK;
}

static int code_of(mx_status st)
{
    return st == MX_ERR_ARG ? 3 : st == MX_ERR_NOT_FOUND ? 5 : st == MX_ERR_STATE ? 9 : 13;      /* google.rpc.Code */
}

/* ---- many at once: each is packed once, and its bytes are put one behind the other ------------------ */

enum { STATUS = 1 << 3 | 2, QUOTE = 2 << 3 | 2, ITEMS = 1 << 3 | 2 };      /* tags of BatchQuoteItem and BatchQuoteResponse */

size_t mx_pricing_item_head(uint8_t head[MX_QUOTE_HEAD], size_t size)
{
    head[0] = STATUS, head[1] = 0, head[2] = QUOTE;
    return 3 + mx_wire_put(head + 3, size);
}

static mx_status append(mx_pricing_op *op, size_t *room, const uint8_t *head, size_t n, const uint8_t *rest, size_t size)
{
    if (op->size + n + size + 2 * MX_QUOTE_HEAD > *room) {
        size_t more = 2 * (op->size + n + size + 2 * MX_QUOTE_HEAD);
        uint8_t *grown = mx_slab_grow(op->answer, more);
        if (!grown) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "no memory for an answer");
        op->answer = grown;
        *room = more;
    }
    op->answer[op->size++] = ITEMS;
    op->size += mx_wire_put(op->answer + op->size, n + size);
    memcpy(op->answer + op->size, head, n);
    if (size) memcpy(op->answer + op->size + n, rest, size);
    op->size += n + size;
    return MX_OK;
}

static mx_status append_quote(mx_pricing *p, mx_pricing_op *op, size_t *room, quote *q, const Merx__V1__QuoteRequest *r)
{
    uint8_t head[MX_QUOTE_HEAD], wrong[sizeof(mx_error) + 64];
    mx_error words = {0};
    mx_status st = make_quote(p, q, r, &words);
    if (!st) return append(op, room, head, mx_pricing_item_head(head, p->written), p->paper, p->written);
    if (st == MX_ERR_IO || st == MX_ERR_NO_MEMORY) return mx_fail(&op->err, st, "%s", words.text);
    Merx__V1__ItemStatus status = MERX__V1__ITEM_STATUS__INIT;
    Merx__V1__BatchQuoteItem item = MERX__V1__BATCH_QUOTE_ITEM__INIT;
    status.code = code_of(st), status.message = words.text;
    item.status = &status;
    return append(op, room, wrong, merx__v1__batch_quote_item__pack(&item, wrong), NULL, 0);
}

mx_status mx_pricing_batch(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__BatchQuoteRequest *r = (const Merx__V1__BatchQuoteRequest *)op->request;
    size_t n = r->n_requests, room = 0, explained = 0;
    if (!n || n > PRICE_BATCH) return mx_fail(&op->err, MX_ERR_ARG, "requests: %zu of them, 1..%d are allowed", n, PRICE_BATCH);
    for (size_t i = 0; i < n; i++) explained += r->requests[i]->explain == MERX__V1__QUOTE_EXPLAIN__EXPLAIN_FULL;
    if (explained > EXPLAINED) return mx_fail(&op->err, MX_ERR_ARG, "requests: %zu of them ask for EXPLAIN_FULL, at most %d", explained, EXPLAINED);
    quote *q = desk_of(p, &op->err);
    mx_status st = q ? MX_OK : MX_ERR_NO_MEMORY;
    op->type = &merx__v1__batch_quote_response__descriptor;
    for (size_t i = 0; !st && i < n; i++) st = append_quote(p, op, &room, q, r->requests[i]);
    return st;
}

/* ---- guardrails' own calls ------------------------------------------------------------------------- */

static mx_status check_set(const Merx__V1__GuardrailSet *m, mx_error *err)
{
    mx_guardrails g;
    if (!*m->id || strlen(m->id) > 63) return mx_fail(err, MX_ERR_ARG, "id: 1 to 63 bytes");
    if (strlen(m->sku_prefix) >= PRICE_TEXT || strlen(m->channel) >= PRICE_TEXT || strlen(m->author) >= PRICE_TEXT)
        return mx_fail(err, MX_ERR_ARG, "sku_prefix, channel, author: at most %d bytes", PRICE_TEXT - 1);
    if (m->valid_to_ms && m->valid_to_ms <= m->valid_from_ms) return mx_fail(err, MX_ERR_ARG, "valid_to_ms is not after valid_from_ms");
    MX_TRY(price_rules_read(m, &g, err));
    mx_status st = mx_guardrails_check(&g, err);
    free((void *)(uintptr_t)g.blackout);
    return st;
}

mx_status mx_pricing_put_guardrails(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__GuardrailSet *m = (const Merx__V1__GuardrailSet *)op->request;
    price_rules **at = &p->rules;
    bool duplicate;
    MX_TRY(check_set(m, &op->err));
    while (*at && strcmp((*at)->m->id, m->id)) at = &(*at)->next;
    Merx__V1__GuardrailSet next = *m;
    next.version = *at ? (*at)->m->version + 1 : 1;
    MX_TRY(price_answer(op, &next.base));
    Merx__V1__GuardrailSet *own = merx__v1__guardrail_set__unpack(NULL, op->size, op->answer);
    price_rules *fresh = *at ? *at : calloc(1, sizeof *fresh);
    if (!own || !fresh) {
        if (own) merx__v1__guardrail_set__free_unpacked(own, NULL);
        if (fresh != *at) free(fresh);
        return mx_fail(&op->err, MX_ERR_NO_MEMORY, "a set of guardrails");
    }
    if (fresh->m) merx__v1__guardrail_set__free_unpacked(fresh->m, NULL);
    fresh->m = own;
    *at = fresh;
    MX_TRY(mx_store_put_document(p->store, "guardrails", own->id, op->answer, op->size, &op->err));
    mx_log_row row = {.id = p->last_id + 1, .ts_ms = mx_wall_ms(), .kind = "guardrails", .data = op->answer, .size = op->size};
    MX_TRY(mx_store_add_log(p->store, &row, &duplicate, &op->err));       /* every version stays */
    p->last_id++;
    return MX_OK;
}

mx_status mx_pricing_get_guardrails(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__GetGuardrailsRequest *q = (const Merx__V1__GetGuardrailsRequest *)op->request;
    Merx__V1__GetGuardrailsResponse r = MERX__V1__GET_GUARDRAILS_RESPONSE__INIT;
    size_t n = 0;
    for (const price_rules *s = p->rules; s; s = s->next) n++;
    r.sets = calloc(n + 1, sizeof *r.sets);
    if (!r.sets) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "guardrails");
    for (const price_rules *s = p->rules; s; s = s->next)
        if (!*q->id || !strcmp(q->id, s->m->id)) r.sets[r.n_sets++] = s->m;
    mx_status st = *q->id && !r.n_sets ? mx_fail(&op->err, MX_ERR_NOT_FOUND, "id: there are no guardrails \"%.60s\"", q->id) : price_answer(op, &r.base);
    free(r.sets);
    return st;
}

enum { PROBLEMS = 10 };

static void try_item(mx_pricing *p, price_item *i, const Merx__V1__GuardrailSet *m, Merx__V1__ValidateGuardrailsResponse *r, char text[PROBLEMS][512])
{
    mx_guardrails g;
    mx_blackout *windows;
    mx_guarded out;
    mx_error err = {0};
    int64_t rivals[64];
    mx_price_state s = price_state_of(i, rivals);
    if (!matches(m, i->m, s.now_ms)) return;
    r->matching++;
    mx_status st = price_rules_of(p, i, m, &g, &windows, NULL, NULL, &err);
    if (!st) st = mx_guard(&g, &s, i->m->published, &out, &err);
    free(windows);
    if (!st) return;
    r->infeasible++;
    if (r->n_problems < PROBLEMS) snprintf(text[r->n_problems++], sizeof text[0], "%.127s/%.127s: %.240s", i->m->sku, i->m->channel, err.text);
}

mx_status mx_pricing_validate(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__GuardrailSet *m = (const Merx__V1__GuardrailSet *)op->request;
    Merx__V1__ValidateGuardrailsResponse r = MERX__V1__VALIDATE_GUARDRAILS_RESPONSE__INIT;
    char text[PROBLEMS][512], *list[PROBLEMS];
    MX_TRY(check_set(m, &op->err));
    for (int k = 0; k < PROBLEMS; k++) list[k] = text[k];
    r.problems = list;
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++)
        for (price_item *i = p->bucket[b]; i; i = i->next) try_item(p, i, m, &r, text);
    return price_answer(op, &r.base);
}

/* ---- decisions afterwards ------------------------------------------------------------------------------ */

mx_status price_decision_of(mx_pricing *p, const char *id, Merx__V1__QuoteResponse **out, int64_t *row_id, mx_error *err)
{
    mx_log_row r;
    bool found = false;
    char *end;
    *out = NULL;
    *row_id = id[0] == 'p' ? strtoll(id + 1, &end, 10) : 0;
    if (id[0] == 'p' && (*end || strlen(id) > 20)) *row_id = 0;
    if (*row_id > 0) MX_TRY(mx_store_get_log(p->store, *row_id, &r, &found, err));
    if (!found || strcmp(r.kind, "price_decision")) return mx_fail(err, MX_ERR_NOT_FOUND, "decision_id: there is no \"%.40s\"", id);
    *out = merx__v1__quote_response__unpack(NULL, r.size, r.data);
    return *out ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "decision %.40s is broken", id);
}

mx_status mx_pricing_decision(mx_pricing *p, mx_pricing_op *op)
{
    Merx__V1__QuoteResponse *q;
    int64_t id;
    MX_TRY(price_decision_of(p, ((const Merx__V1__GetDecisionRequest *)op->request)->decision_id, &q, &id, &op->err));
    mx_status st = price_answer(op, &q->base);
    merx__v1__quote_response__free_unpacked(q, NULL);
    return st;
}

/* It must still be what the rules allow now. */
static mx_status still_feasible(mx_pricing *p, price_item *i, int64_t price, bool changes_too, mx_error *err)
{
    mx_guardrails g;
    mx_blackout *windows;
    mx_guarded out = {0};
    int64_t rivals[64];
    mx_price_state s = price_state_of(i, rivals);
    mx_status st = price_rules_of(p, i, NULL, &g, &windows, NULL, NULL, err);
    if (!changes_too) g.max_change_pct_step = g.max_change_pct_day = 0, g.min_dwell_ms = 0;
    if (!st) st = mx_guard(&g, &s, price, &out, err);
    free(windows);
    if (!st && out.price != price)
        st = mx_fail(err, MX_ERR_STATE, "the guardrails do not allow %lld any more: %s leaves %lld", (long long)price, mx_rule_name(out.applied[0].rule), (long long)out.price);
    return st;
}

/* Who said so, and when. */
static mx_status log_settled(mx_pricing *p, const Merx__V1__DecideRequest *r, bool approve, mx_error *err)
{
    bool duplicate;
    size_t n = merx__v1__decide_request__get_packed_size(r);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a decision");
    merx__v1__decide_request__pack(r, bytes);
    mx_log_row row = {.id = p->last_id + 1, .ts_ms = mx_wall_ms(), .kind = approve ? "price_approved" : "price_rejected", .data = bytes, .size = n};
    mx_status st = mx_store_add_log(p->store, &row, &duplicate, err);
    if (!st) p->last_id++;
    free(bytes);
    return st;
}

static mx_status settle(mx_pricing *p, mx_pricing_op *op, bool approve)
{
    const Merx__V1__DecideRequest *r = (const Merx__V1__DecideRequest *)op->request;
    Merx__V1__QuoteResponse *q;
    int64_t id;
    MX_TRY(price_decision_of(p, r->decision_id, &q, &id, &op->err));
    price_item *i = price_find(p, q->sku, q->channel, q->segment, &op->err);
    mx_status st = i ? MX_OK : MX_ERR_NOT_FOUND;
    if (!st && strcmp(q->status, "pending")) st = mx_fail(&op->err, MX_ERR_STATE, "decision %.40s is %s, not pending", r->decision_id, q->status);
    if (!st && strlen(r->by) >= PRICE_TEXT) st = mx_fail(&op->err, MX_ERR_ARG, "by: at most %d bytes", PRICE_TEXT - 1);
    if (!st && approve) st = still_feasible(p, i, q->price, true, &op->err);
    if (!st && approve) st = price_publish(p, i, q->price, q->decision_id, &op->err);
    char *word = q->status, *by = q->settled_by;
    q->status = st ? word : (char *)(uintptr_t)(approve ? "approved" : "rejected");
    q->settled_by = st ? by : r->by;
    q->settled_ms = mx_wall_ms();
    if (!st) st = price_answer(op, &q->base);
    if (!st) st = mx_store_replace_log(p->store, id, op->answer, op->size, &op->err);
    if (!st) st = log_settled(p, r, approve, &op->err);
    q->status = word, q->settled_by = by;             /* what free_unpacked() may free */
    merx__v1__quote_response__free_unpacked(q, NULL);
    return st;
}

mx_status mx_pricing_approve(mx_pricing *p, mx_pricing_op *op) { return settle(p, op, true); }
mx_status mx_pricing_reject(mx_pricing *p, mx_pricing_op *op) { return settle(p, op, false); }

mx_status mx_pricing_rollback(mx_pricing *p, mx_pricing_op *op)
{
    const Merx__V1__ItemKey *q = (const Merx__V1__ItemKey *)op->request;
    price_item *i = price_find(p, q->sku, q->channel, q->segment, &op->err);
    if (!i) return MX_ERR_NOT_FOUND;
    if (i->m->n_history < 2) return mx_fail(&op->err, MX_ERR_STATE, "sku: there is no price before %lld", (long long)i->m->published);
    int64_t before = i->m->history[i->m->n_history - 2]->price;
    MX_TRY(still_feasible(p, i, before, false, &op->err));           /* a step back is no change of ours */
    MX_TRY(price_publish(p, i, before, "", &op->err));
    return price_answer(op, &i->m->base);
}
