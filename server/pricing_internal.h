/* pricing_internal.h - what pricing.c (the thread, items, sales) and pricing_quote.c
 * (guardrails, quotes) share. */
#ifndef MX_PRICING_INTERNAL_H
#define MX_PRICING_INTERNAL_H

#include "models/guardrail.h"
#include "models/price.h"
#include "models/price_policy.h"
#include "server/pricing.h"
#include "server/store.h"

#include <pthread.h>

enum { PRICE_BUCKETS = 1 << 14, PRICE_BATCH = 4096, PRICE_HISTORY = 16, PRICE_TEXT = 128, PRICE_NOTE = 200 };
#define PRICE_DAY_MS INT64_C(86400000)

typedef struct price_item {
    struct price_item *next;      /* in its bucket                                        */
    Merx__V1__PriceItem *m;       /* all that is known and stored; malloc'ed by protobuf-c */
    mx_demand_belief belief;
    bool changed;
    struct price_item *next_changed;
    size_t number;                /* a replay's                                           */
    /* What the live policy said in this round, for what it saw then (price_foresee). */
    int64_t foreseen;             /* the round                                            */
    const struct price_policy *seer;
    float saw[MX_PRICE_SEEN], value[MX_LADDER];
} price_item;

typedef struct price_rules {
    struct price_rules *next;
    Merx__V1__GuardrailSet *m;
} price_rules;

typedef struct price_policy {
    struct price_policy *next;
    Merx__V1__PricePolicy *m;
    mx_price_policy *net;         /* NULL: its folder could not be read                   */
    bool changed;
} price_policy;

struct mx_pricing {
    mx_store        *store;
    price_item      *bucket[PRICE_BUCKETS];
    price_rules     *rules;
    price_policy    *policies;    /* the newest first                                     */
    price_item      *changed;     /* since the last commit                                */
    int64_t          last_id;     /* of the log                                           */
    int64_t          round;       /* of operations: those of one transaction              */
    uint8_t         *paper;       /* the last quote, packed                               */
    size_t           written, room;
    void            *desk;        /* pricing_quote.c's, to make a quote on                */
    bool             frozen;      /* everything                                           */
    double           exploration;
    bool             discounts;   /* users may be offered less                            */
    pthread_mutex_t  lock;
    pthread_cond_t   news;
    pthread_t        thread;
    bool             started, stop, busy;      /* busy: somebody carries operations out      */
    mx_pricing_op   *first, **last;
};

void        price_mark(mx_pricing *p, price_item *i);
/* A segment without an item of its own: everybody's.  NULL: MX_ERR_NOT_FOUND in err. */
price_item *price_find(mx_pricing *p, const char *sku, const char *channel, const char *segment, mx_error *err);
price_item *price_look_up(const mx_pricing *p, const char *sku, const char *channel, const char *segment);      /* that very one, or NULL */
/* Publish a price now: history, day, parity group.  Errors: MX_ERR_NO_MEMORY. */
mx_status   price_publish(mx_pricing *p, price_item *i, int64_t price, const char *decision, mx_error *err);
mx_status   price_answer(mx_pricing_op *op, const ProtobufCMessage *m);
/* A sale's lesson: surprise and belief.  Errors: MX_ERR_ARG. */
mx_status   price_teach(price_item *i, const Merx__V1__SaleObservation *s, mx_error *err);
void        price_elasticity(const price_item *i, double *mean, double *low, double *high);
/* Of a set as it stands in a message; out->blackout is malloc'ed.  Errors: MX_ERR_ARG. */
/* All sets that match an item, each at its tightest; `extra` too, in place of the stored set of
 * its id.  *windows is g's, and the caller's to free.  used: those that count, up to 64; may be NULL. */
mx_status   price_rules_of(const mx_pricing *p, const price_item *i, const Merx__V1__GuardrailSet *extra, mx_guardrails *g, mx_blackout **windows,
                           const Merx__V1__GuardrailSet *used[], size_t *n_used, mx_error *err);
mx_price_state price_state_of(const price_item *i, int64_t rivals[64]);
/* Errors: MX_ERR_ARG. */
mx_status   price_inputs_of(const price_item *i, Merx__V1__QuoteObjective objective, double revenue_share, mx_price_inputs *out, mx_error *err);
/* The live policy's values for all that is waiting to be quoted, in one pass. */
void        price_foresee(mx_pricing *p, const mx_pricing_op *batch);
/* A logged decision, unpacked.  Errors: MX_ERR_NOT_FOUND, MX_ERR_FORMAT, MX_ERR_IO. */
mx_status   price_decision_of(mx_pricing *p, const char *id, Merx__V1__QuoteResponse **out, int64_t *row_id, mx_error *err);

/* ---- learned policies (pricing_policy.c, pricing_ope.c) -------------------------------------- */

void          price_see_item(const price_item *i, float seen[MX_PRICE_SEEN]);
price_policy *price_policy_at(const mx_pricing *p, Merx__V1__PolicyStage stage);       /* NULL: none */
price_policy *price_policy_of(const mx_pricing *p, const char *name, int64_t version);
/* Which one prices an item: the canary, the live one, or NULL: elasticity-ladder. */
price_policy *price_policy_for(const mx_pricing *p, const price_item *i);
mx_status     price_policy_load(mx_pricing *p, const char *name, const char *path, price_policy **out, mx_error *err);
mx_status     price_policy_take(void *ctx, const char *key, const void *data, size_t size, mx_error *err);
mx_status     price_policy_store(mx_pricing *p, price_policy *q, mx_error *err);
void          price_policy_free(price_policy *q);
/* A sale of a decision counts for the canary or its control, and may take the canary back. */
mx_status     price_canary_sale(mx_pricing *p, const Merx__V1__SaleObservation *s, mx_error *err);
/* The counting alone.  note: why it is to be taken back; empty: it stays. */
typedef struct price_verdict { bool counted; char note[PRICE_NOTE]; } price_verdict;
mx_status     price_canary_count(mx_pricing *p, Merx__V1__PricePolicy *canary, const Merx__V1__SaleObservation *s, price_verdict *v, mx_error *err);
/* Into the log: what befell a policy, as it is now. */
mx_status     price_policy_log(mx_pricing *p, price_policy *q, mx_error *err);
bool          price_outcome(const Merx__V1__QuoteResponse *d, const Merx__V1__SaleObservation *s, double *y);
/* What the log before `before` (an id) says of a network.  Errors: MX_ERR_STATE: too little. */
mx_status     price_evidence(mx_pricing *p, mx_price_policy *net, int64_t before, Merx__V1__PolicyEvidence *e, mx_error *err);
/* Fills q's evidence from the log, and logs that.  Errors: MX_ERR_STATE says what is missing or too low. */
mx_status     price_evidence_gate(mx_pricing *p, price_policy *q, mx_error *err);

mx_status   price_rules_read(const Merx__V1__GuardrailSet *m, mx_guardrails *out, mx_error *err);

#endif
