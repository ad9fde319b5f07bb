/* guardrail.h - what a price may be, whatever a model wants.
 *
 * Prices are whole numbers of a currency's minor unit.  Every rule is an interval,
 * but for endings, which leave single prices; a price is feasible when it is in all
 * of them.  The price nearest to the model's is taken (of two, the lower).  A set
 * that leaves no price is an error that names the two rules in conflict, never a
 * clamp that breaks one of them.
 *
 * Rules are applied, and conflicts told, in this order: legal > floor (cost and
 * margin, minimum advertised price) > ceiling > competitors > change (dwell, black-out,
 * parity, per step, per day) > endings > the model. */
#ifndef MX_GUARDRAIL_H
#define MX_GUARDRAIL_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

#define MX_ENDINGS 16
#define MX_PRICE_MOST INT64_C(1000000000000)

typedef enum mx_rule {
    MX_RULE_LEGAL_FLOOR, MX_RULE_LEGAL_CEILING, MX_RULE_FLOOR, MX_RULE_MARGIN, MX_RULE_MAP, MX_RULE_CEILING, MX_RULE_COMPETITORS,
    MX_RULE_BLACKOUT, MX_RULE_DWELL, MX_RULE_PARITY, MX_RULE_CHANGE_STEP, MX_RULE_CHANGE_DAY, MX_RULE_ENDING, MX_RULES
} mx_rule;
const char *mx_rule_name(mx_rule r);            /* "legal_floor", ... */

/* A window of time in which a price stays as it is. */
typedef struct mx_blackout { int64_t from_ms, to_ms; } mx_blackout;

/* 0 (or a count of 0) leaves a rule out; percents are of 100. */
typedef struct mx_guardrails {
    int64_t legal_floor, legal_ceiling, floor, ceiling;
    double  min_margin_pct;       /* (price - cost) / price, 0..100                     */
    int64_t map_price;            /* minimum advertised price                           */
    double  max_change_pct_step;  /* against the published price                        */
    double  max_change_pct_day;   /* against the price at the day's beginning           */
    int64_t min_dwell_ms;         /* a price stays at least so long                     */
    double  competitor_low_pct, competitor_high_pct;    /* 95, 105: from 95 % of the cheapest to 105 % of the dearest */
    int32_t n_endings;
    struct { int64_t modulus, remainder; } ending[MX_ENDINGS];      /* 100, 99: x.99 */
    const mx_blackout *blackout;
    int32_t n_blackouts;
    double  approval_pct;         /* a larger change of the published price asks a person */
} mx_guardrails;

/* Of one item now; 0 where nothing is known. */
typedef struct mx_price_state {
    int64_t now_ms, published, changed_ms, day_open, cost;
    int64_t parity_price;         /* of the same item in its parity group               */
    const int64_t *competitors;
    int32_t n_competitors;
} mx_price_state;

typedef struct mx_applied {
    mx_rule rule;
    int64_t before, after, low, high;
    bool    binding;              /* the final price stands on its bound                */
} mx_applied;

typedef struct mx_guarded {
    int64_t price, raw;
    bool    needs_approval;
    int32_t n_applied;
    mx_applied applied[MX_RULES]; /* those that moved the price, or on whose bound it stands */
} mx_guarded;

/* Errors: MX_ERR_ARG (field and limit). */
mx_status mx_guardrails_check(const mx_guardrails *g, mx_error *err);
/* raw: what the model wants, over 0.  Errors: MX_ERR_ARG; MX_ERR_STATE (infeasible: the
 * two rules and their bounds; a rule that needs a price that is not known). */
mx_status mx_guard(const mx_guardrails *g, const mx_price_state *s, int64_t raw, mx_guarded *out, mx_error *err);
/* Which of n prices are feasible as they stand: feasible[i] 1 or 0.  Returns how many;
 * none where no price is, or a rule needs what is not known. */
int32_t   mx_guard_mask(const mx_guardrails *g, const mx_price_state *s, const int64_t *price, int32_t n, uint8_t *feasible);

#endif
