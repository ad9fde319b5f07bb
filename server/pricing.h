/* pricing.h - items, guardrails, quotes and sales, by one thread and one store.
 *
 * As experiments.h: waiting operations are carried out in one transaction and
 * answered after its commit.  Requests and answers are messages of the wire; a
 * decision is logged as the bytes of its answer.  A belief about demand is the sum of
 * its item's logged sales in their order, and a policy's stage, canary and evidence follow
 * from the log too (mx_pricing_replay). */
#ifndef MX_PRICING_H
#define MX_PRICING_H

#include "proto/merx.pb-c.h"
#include "runtime/status.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct mx_pricing mx_pricing;

typedef struct mx_pricing_op mx_pricing_op;
typedef mx_status mx_pricing_run(mx_pricing *p, mx_pricing_op *op);
struct mx_pricing_op {
    mx_pricing_op *next;          /* the queue's                                          */
    mx_pricing_run *run;          /* one of those below                                   */
    void (*done)(mx_pricing_op *op);      /* once, from the thread                        */
    const ProtobufCMessage *request;      /* stays until done                             */
    const ProtobufCMessageDescriptor *type;      /* of the answer                         */
    uint8_t  *answer;             /* packed, mx_slab_alloc'ed; the caller frees                  */
    size_t    size;
    mx_status st;
    uint64_t  began_ns, ended_ns; /* its transaction, from the first step to the commit   */
    void    (*commits)(mx_pricing_op *op);       /* of mx_pricing_carry_out: what follows waits for the disk */
    mx_error  err;
};
void mx_pricing_op_init(mx_pricing_op *op, mx_pricing_run *run, void (*done)(mx_pricing_op *op), const ProtobufCMessage *request);
/* Of the request's kind each. */
mx_pricing_run mx_pricing_put_items, mx_pricing_get_item, mx_pricing_quote, mx_pricing_batch, mx_pricing_put_guardrails, mx_pricing_get_guardrails,
    mx_pricing_validate, mx_pricing_approve, mx_pricing_reject, mx_pricing_rollback, mx_pricing_freeze, mx_pricing_sales, mx_pricing_decision,
    mx_pricing_simulate, mx_pricing_competitors, mx_pricing_inventory, mx_pricing_elasticity, mx_pricing_explain, mx_pricing_load_policy,
    mx_pricing_promote_policy, mx_pricing_list_policies;

/* What stands before a packed quote of `size` bytes in a BatchQuoteItem without an error; returns its length. */
enum { MX_QUOTE_HEAD = 16 };
size_t mx_pricing_item_head(uint8_t head[MX_QUOTE_HEAD], size_t size);

/* exploration: share of live quotes.  Errors: MX_ERR_IO, MX_ERR_FORMAT (a file that is not ours). */
mx_status mx_pricing_open(mx_pricing **out, const char *path, double exploration, mx_error *err);
/* Users may be offered at most the published price (else user_id is refused).  Before operations. */
void      mx_pricing_allow_discounts(mx_pricing *p);
void      mx_pricing_close(mx_pricing *p);            /* what waits is carried out first */
void      mx_pricing_submit(mx_pricing *p, mx_pricing_op *op);
/* Asks for what a claim will read into the caches. */
void      mx_pricing_ahead(const mx_pricing *p);
/* For a caller that may wait: when nothing else is there it carries its one operation out itself, and no thread is
 * woken for it. True: it must go on with mx_pricing_carry_out(), at once. */
bool      mx_pricing_claim(mx_pricing *p);
void      mx_pricing_carry_out(mx_pricing *p, mx_pricing_op *op);      /* op->done is called too */
/* A learned policy that is live from the start, without a gate.  Before operations. */
mx_status mx_pricing_live_policy(mx_pricing *p, const char *name, const char *path, mx_error *err);
/* The log's steps (a published decision, what it sold, the item's next decision) as JSON
 * lines, for training elsewhere; a server may go on writing.  Errors: MX_ERR_IO, MX_ERR_FORMAT. */
mx_status mx_pricing_transitions(const char *path, FILE *to, int64_t *n, mx_error *err);

typedef struct mx_pricing_replayed {
    int64_t items, sales, policies;
    char    differs[256];         /* empty: all has the same bits; else the first that has not */
} mx_pricing_replayed;
/* All that was learned, from nothing, out of the log: beliefs and surprises from sales; canaries' counts and what
 * took them back; what the gate was shown.  Errors: MX_ERR_IO, MX_ERR_FORMAT; MX_ERR_NO_MEMORY.  Not while operations run. */
mx_status mx_pricing_replay(mx_pricing *p, mx_pricing_replayed *out, mx_error *err);

#endif
