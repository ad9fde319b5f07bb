/* behaviour.h - a subject's behaviour in figures, as of a time.
 *
 * Counts and sums over the last 7 days, the last 28 and all time, from the subject's own events up to
 * as_of and from the prices that others paid up to as_of: nothing later is looked at, so a figure for
 * training is the one that was to be had then.  A window is (as_of - length, as_of]. */
#ifndef MX_BEHAVIOUR_H
#define MX_BEHAVIOUR_H

#include "models/user_graph.h"

/* ---- where a price stands within its category ----------------------------------------------- */

typedef struct mx_price_ranks mx_price_ranks;     /* any thread may read, one at a time adds */

mx_status mx_price_ranks_open(mx_price_ranks **out, mx_error *err);
void      mx_price_ranks_close(mx_price_ranks *p);
/* A price that was paid.  Errors: MX_ERR_NO_MEMORY. */
mx_status mx_price_ranks_add(mx_price_ranks *p, const char *category, int64_t ts_ms, int64_t price_minor, mx_error *err);
/* The share of the category's prices up to as_of below this one, equal ones half; -1: none. */
double    mx_price_ranks_of(const mx_price_ranks *p, const char *category, int64_t price_minor, int64_t as_of_ms);
/* Takes in the store's purchases from *cursor (0 at first) on, and moves it. */
mx_status mx_price_ranks_follow(mx_price_ranks *p, const mx_user_graph *g, uint64_t *cursor, mx_error *err);

/* ---- figures ----------------------------------------------------------------------------------- */

typedef enum mx_window { MX_WINDOW_7D, MX_WINDOW_28D, MX_WINDOW_ALL, MX_WINDOWS } mx_window;

typedef struct mx_behaviour {
    int64_t as_of_ms, first_ms, last_ms, last_purchase_ms;        /* of events; -1: none             */
    int64_t count[MX_EVENT_TYPES][MX_WINDOWS];
    int64_t events[MX_WINDOWS], purchases[MX_WINDOWS], promo[MX_WINDOWS], social[MX_WINDOWS];       /* promo: of purchases */
    int64_t spent_minor[MX_WINDOWS];                              /* price times quantity of purchases; one currency a store */
    int64_t days_28d;                                             /* of the last 28 with an event    */
    int64_t texts;                                                /* events with words               */
    double  dwell_s;                                              /* all of it                       */
    double  price_rank;                                           /* mean over priced purchases; -1: none */
} mx_behaviour;

/* From a list of events, newest first or not, of which those after as_of do not count.  prices may be NULL. */
void      mx_behaviour_from(const mx_user_graph *g, const mx_event *e, int32_t n, const mx_price_ranks *prices, int64_t as_of_ms, mx_behaviour *out);
/* Of a node; list is room for its events, kept for the next call.  Errors: those of mx_user_graph_events. */
mx_status mx_behaviour_of(const mx_user_graph *g, int32_t subject, const mx_price_ranks *prices, int64_t as_of_ms, mx_event_list *list, mx_behaviour *out, mx_error *err);

/* As input of a network: log(1 + x) of counts, sums and days, shares as they are, 0 for what there is not.
 * Its width depends on the number of event types alone.  Names are "buy_28d", "days_since_purchase" ... */
int32_t   mx_behaviour_width(int32_t event_types);
void      mx_behaviour_vector(const mx_behaviour *b, int32_t event_types, float *to);
void      mx_behaviour_name(const mx_user_graph *g, int32_t event_types, int32_t i, char name[64]);

#endif
