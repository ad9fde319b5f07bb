/* event_rows.h - events from rows of JSON or of CSV, by the names of their fields.
 *
 * A row has id, type, subject, object, ts (milliseconds, seconds, or ISO 8601 in UTC), weight, price (in minor
 * units), quantity, dwell_s, promo, currency, category, channel, session, text and props.  What it lacks
 * comes from the defaults; event_id, user, ts_ms and price_minor are other names of id, subject, ts and price.  Without an id it gets one from its file's path and line, so that loading twice is loading once. */
#ifndef MX_EVENT_ROWS_H
#define MX_EVENT_ROWS_H

#include "models/user_graph.h"

#define MX_EVENT_COLUMNS 64

typedef struct mx_event_rows mx_event_rows;

typedef struct mx_event_rows_options {
    const char *name;             /* the file's path, for ids and errors                      */
    bool        csv;
    char        separator;        /* of CSV                                                  */
    const char *columns;          /* of CSV without a head: "subject,object,weight"; "-" skips one; NULL: the first line is the head */
    const char *type;             /* of rows without one; NULL: they must have it            */
    int64_t     ts_ms;            /* of rows without one                                     */
} mx_event_rows_options;

/* Borrows the graph and what o points to.  Errors: MX_ERR_ARG (columns), MX_ERR_NO_MEMORY. */
mx_status mx_event_rows_open(mx_event_rows **out, const mx_user_graph *g, const mx_event_rows_options *o, mx_error *err);
void      mx_event_rows_close(mx_event_rows *r);

/* One line, without its end.  *is_event false: blank, or the head.  The event's strings are valid until mx_event_rows_forget.
 * Errors: MX_ERR_FORMAT and MX_ERR_ARG name the field; MX_ERR_NO_MEMORY. */
mx_status mx_event_rows_take(mx_event_rows *r, const char *line, size_t len, int64_t number, mx_event *out, bool *is_event, mx_error *err);
void      mx_event_rows_forget(mx_event_rows *r);

/* "1700000000000", "1700000000", "2024-05-01", "2024-05-01T12:30:00Z" (or +08:00). */
bool      mx_parse_time(const char *text, int64_t *ms);

#endif
