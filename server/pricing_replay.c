/* pricing_replay.c - all that was learned, once more from the log, and whether it is what is there. */
#include "server/pricing_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct stage_row {
    int64_t id;
    Merx__V1__PricePolicy *m;     /* as it was logged                                     */
    bool    looked;               /* its evidence is not that of the row before           */
} stage_row;

typedef struct replay {
    mx_pricing *p;
    price_item *shadow;           /* [n_items] beginnings of all items                    */
    size_t      n_items, rows, room, next;
    stage_row  *row;              /* [rows] what befell policies                          */
    Merx__V1__PricePolicy **now;  /* [n_now <= rows] the policies as the replay has them: copies of rows */
    size_t      n_now;
    char        note[PRICE_NOTE]; /* a canary was taken back: the next row must say so    */
    mx_pricing_replayed *out;
} replay;

static void differs(replay *r, const char *what, const char *name, int64_t at)
{
    if (!r->out->differs[0]) snprintf(r->out->differs, sizeof r->out->differs, "%s of %.127s (log %lld)", what, name, (long long)at);
}

/* ---- policies ---------------------------------------------------------------------------------- */

static mx_status take_row(void *ctx, const mx_log_row *row, mx_error *err)
{
    replay *r = ctx;
    if (r->rows == r->room) {
        size_t more = r->room ? 2 * r->room : 64;
        stage_row *grown = realloc(r->row, more * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu stages of policies", more);
        r->row = grown;
        r->room = more;
    }
    Merx__V1__PricePolicy *m = merx__v1__price_policy__unpack(NULL, row->size, row->data);
    if (!m || !m->canary || !m->control || !m->evidence) {
        if (m) merx__v1__price_policy__free_unpacked(m, NULL);
        return mx_fail(err, MX_ERR_FORMAT, "log %lld is no policy", (long long)row->id);
    }
    r->row[r->rows++] = (stage_row){.id = row->id, .m = m};
    return MX_OK;
}

static bool same_message(const ProtobufCMessage *a, const ProtobufCMessage *b)
{
    size_t n = protobuf_c_message_get_packed_size(a);
    uint8_t *x = n == protobuf_c_message_get_packed_size(b) ? malloc(2 * n + 1) : NULL;
    if (!x) return false;
    protobuf_c_message_pack(a, x);
    protobuf_c_message_pack(b, x + n);
    bool same = !memcmp(x, x + n, n);
    free(x);
    return same;
}

/* A row takes the place of what the replay has of its policy, which must have come to the same counts. */
static void apply(replay *r, stage_row *row)
{
    Merx__V1__PricePolicy *m = row->m, **at = NULL;
    for (size_t k = 0; k < r->n_now && !at; k++)
        if (r->now[k]->version == m->version && !strcmp(r->now[k]->name, m->name)) at = &r->now[k];
    row->looked = at && !same_message(&(*at)->evidence->base, &m->evidence->base);
    if (!at) {
        at = &r->now[r->n_now++];
        *at = m;
    }
    bool anew = m->since != (*at)->since;         /* a new canary counts from nothing */
    if (anew ? m->canary->n || m->control->n : !same_message(&(*at)->canary->base, &m->canary->base) || !same_message(&(*at)->control->base, &m->control->base))
        differs(r, "the canary's counts", m->name, row->id);
    if (r->note[0] && (m->stage != MERX__V1__POLICY_STAGE__POLICY_RETIRED || strcmp(m->note, r->note))) differs(r, "the canary's end", m->name, row->id);
    r->note[0] = 0;
    *at = m;
}

static void apply_until(replay *r, int64_t id)
{
    while (r->next < r->rows && r->row[r->next].id < id) apply(r, &r->row[r->next++]);
}

static mx_status count_sale(replay *r, const Merx__V1__SaleObservation *s, int64_t at, mx_error *err)
{
    Merx__V1__PricePolicy *canary = NULL;
    for (size_t k = 0; k < r->n_now && !canary; k++)
        if (r->now[k]->stage == MERX__V1__POLICY_STAGE__POLICY_CANARY) canary = r->now[k];
    if (r->note[0]) differs(r, "the canary's end", canary ? canary->name : "", at);
    if (!canary) return MX_OK;
    price_verdict v;
    MX_TRY(price_canary_count(r->p, canary, s, &v, err));
    snprintf(r->note, sizeof r->note, "%s", v.note);
    return MX_OK;
}

/* ---- beliefs --------------------------------------------------------------------------------------- */

static mx_status take_sale(void *ctx, const mx_log_row *row, mx_error *err)
{
    replay *r = ctx;
    mx_error why = {0};
    mx_status st = MX_OK;
    Merx__V1__SaleObservation *s = merx__v1__sale_observation__unpack(NULL, row->size, row->data);
    if (!s) return mx_fail(err, MX_ERR_FORMAT, "log %lld is no sale", (long long)row->id);
    apply_until(r, row->id);
    const price_item *i = price_look_up(r->p, s->sku, s->channel, s->segment);
    if (!i) differs(r, "a sale", s->sku, row->id);
    else if (price_teach(&r->shadow[i->number], s, &why)) st = mx_fail(err, MX_ERR_FORMAT, "log %lld: %s", (long long)row->id, why.text);
    if (!st) st = count_sale(r, s, row->id, err);
    r->out->sales++;
    merx__v1__sale_observation__free_unpacked(s, NULL);
    return st;
}

static mx_status begin_items(replay *r, mx_error *err)
{
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++)
        for (price_item *i = r->p->bucket[b]; i; i = i->next) i->number = r->n_items++;
    r->shadow = calloc(r->n_items + 1, sizeof *r->shadow);
    Merx__V1__PriceItem *m = calloc(r->n_items + 1, sizeof *m);
    if (!r->shadow || !m) {
        free(m);
        return mx_fail(err, MX_ERR_NO_MEMORY, "%zu items", r->n_items);
    }
    r->shadow[r->n_items].m = m;                  /* keeps the block; shadow[k] has m + k */
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++)
        for (price_item *i = r->p->bucket[b]; i; i = i->next) {
            m[i->number] = *i->m;
            m[i->number].surprise = 0;
            r->shadow[i->number] = (price_item){.m = &m[i->number], .belief = mx_demand_prior()};
        }
    r->shadow[r->n_items].m = m;
    return MX_OK;
}

static void compare(replay *r)
{
    for (uint32_t b = 0; b < PRICE_BUCKETS; b++)
        for (price_item *i = r->p->bucket[b]; i; i = i->next) {
            const price_item *s = &r->shadow[i->number];
            if (memcmp(&s->belief, &i->belief, sizeof s->belief) || memcmp(&s->m->surprise, &i->m->surprise, sizeof s->m->surprise)) differs(r, "the belief", i->m->sku, r->p->last_id);
        }
    size_t n = 0;
    for (const price_policy *q = r->p->policies; q; q = q->next, n++) {
        bool found = false;
        for (size_t k = 0; k < r->n_now; k++) found |= same_message(&r->now[k]->base, &q->m->base);
        if (!found) differs(r, "the state", q->m->name, r->p->last_id);
    }
    if (n != r->n_now) differs(r, "the number", "policies", r->p->last_id);
}

/* What the gate was shown, from the log as it was then. */
static mx_status look_again(replay *r, const stage_row *row, mx_error *err)
{
    Merx__V1__PolicyEvidence e = MERX__V1__POLICY_EVIDENCE__INIT;
    price_policy *q = price_policy_of(r->p, row->m->name, row->m->version);
    mx_price_policy *own = NULL;
    if (!q) return MX_OK;                         /* compare() says so */
    if (!q->net) MX_TRY(mx_price_policy_open(&own, q->m->path, err));
    mx_status st = price_evidence(r->p, q->net ? q->net : own, row->id, &e, err);
    mx_price_policy_close(own);
    if (!st && !same_message(&e.base, &row->m->evidence->base)) differs(r, "the evidence", row->m->name, row->id);
    return st;
}

mx_status mx_pricing_replay(mx_pricing *p, mx_pricing_replayed *out, mx_error *err)
{
    replay r = {.p = p, .out = out};
    *out = (mx_pricing_replayed){0};
    mx_status st = begin_items(&r, err);
    if (!st) st = mx_store_each_log(p->store, "price_policy", take_row, &r, err);
    if (!st && !(r.now = calloc(r.rows + 1, sizeof(Merx__V1__PricePolicy *)))) st = mx_fail(err, MX_ERR_NO_MEMORY, "%zu policies", r.rows);
    if (!st) st = mx_store_each_log(p->store, "sale", take_sale, &r, err);
    if (!st) apply_until(&r, INT64_MAX);
    if (!st) compare(&r);
    for (size_t k = 0; !st && k < r.rows; k++)
        if (r.row[k].looked) st = look_again(&r, &r.row[k], err);
    out->items = (int64_t)r.n_items;
    out->policies = (int64_t)r.n_now;
    for (size_t k = 0; k < r.rows; k++) merx__v1__price_policy__free_unpacked(r.row[k].m, NULL);
    if (r.shadow) free(r.shadow[r.n_items].m);
    free(r.row), free(r.now), free(r.shadow);
    return st;
}
