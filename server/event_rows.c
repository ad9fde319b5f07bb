/* event_rows.c - fields by name, from JSON or from CSV (RFC 4180). */
#include "server/event_rows.h"

#include "models/event_log.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef enum field {
    F_ID, F_TYPE, F_SUBJECT, F_OBJECT, F_TS, F_WEIGHT, F_PRICE, F_QUANTITY, F_DWELL, F_PROMO, F_CURRENCY, F_CATEGORY, F_CHANNEL, F_SESSION, F_TEXT, F_PROPS,
    FIELDS, F_SKIP
} field;
static const char *const field_name[FIELDS] = {"id", "type", "subject", "object", "ts", "weight", "price", "quantity", "dwell_s", "promo", "currency",
                                               "category", "channel", "session", "text", "props"};

/* FIELDS: it is none.  The service's names (proto/merx.proto, Event) are known too, so that a file goes either way. */
static int find_field(const char *name)
{
    static const struct { const char *name; field f; } also[] = {{"event_id", F_ID}, {"user", F_SUBJECT}, {"ts_ms", F_TS}, {"price_minor", F_PRICE}};
    for (size_t i = 0; i < sizeof also / sizeof *also; i++)
        if (!strcmp(name, also[i].name)) return (int)also[i].f;
    int f = 0;
    while (f < FIELDS && strcmp(name, field_name[f]) != 0) f++;
    return f;
}

typedef struct piece { struct piece *next; char bytes[]; } piece;      /* strings of rows that are not forgotten */

struct mx_event_rows {
    const mx_user_graph  *graph;
    mx_event_rows_options o;
    const char *base;                     /* the name without folders */
    field       column[MX_EVENT_COLUMNS];
    int32_t     columns;
    piece      *pieces;
};

/* ---- times ------------------------------------------------------------------------------- */

/* Days since 1970-01-01 (Hinnant, "chrono-compatible low-level date algorithms", 2013). */
static int64_t days_of(int64_t y, int m, int d)
{
    y -= m <= 2;
    int64_t era = (y >= 0 ? y : y - 399) / 400;
    int64_t of_era = y - era * 400, of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;
    return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static bool zone(const char *p, int64_t *ms)
{
    int h, m, n = 0;
    if (!*p || !strcmp(p, "Z")) return true;
    if ((*p != '+' && *p != '-') || sscanf(p + 1, "%2d:%2d%n", &h, &m, &n) != 2 || p[1 + n]) return false;
    *ms -= (*p == '-' ? -1 : 1) * (h * 60 + m) * 60000LL;
    return true;
}

bool mx_parse_time(const char *text, int64_t *ms)
{
    char *end;
    int y, mo, d, h, mi, s, n = 0;
    errno = 0;
    long long whole = strtoll(text, &end, 10);
    if (*text && !*end && !errno) {
        *ms = whole < 100000000000LL ? whole * 1000 : whole;
        return whole >= 0;
    }
    if (sscanf(text, "%4d-%2d-%2d%n", &y, &mo, &d, &n) != 3 || mo < 1 || mo > 12 || d < 1 || d > 31) return false;
    *ms = days_of(y, mo, d) * 86400000;
    const char *p = text + n;
    if (!*p) return true;
    if ((*p != 'T' && *p != ' ') || sscanf(p + 1, "%2d:%2d:%2d%n", &h, &mi, &s, &n) != 3 || h > 23 || mi > 59 || s > 60) return false;
    *ms += ((h * 60 + mi) * 60 + s) * 1000LL;
    p += 1 + n;
    if (*p == '.') {
        double part = strtod(p, &end);
        *ms += (int64_t)(part * 1000);
        p = end;
    }
    return zone(p, ms);
}

/* ---- one field -------------------------------------------------------------------------------- */

static mx_status wrong(field f, const char *text, const char *want, mx_error *err)
{
    return mx_fail(err, MX_ERR_FORMAT, "%s \"%.60s\": %s", field_name[f], text, want);
}

static bool number(const char *text, double *x)
{
    char *end;
    *x = strtod(text, &end);
    return *text && !*end && isfinite(*x);
}

/* text must live as long as the event. */
static mx_status take_field(const mx_event_rows *r, field f, const char *text, mx_event *e, mx_error *err)
{
    double x;
    if (!*text) return MX_OK;
    switch (f) {
    case F_ID: e->id = text; break;
    case F_TYPE:
        e->type = mx_user_graph_find_event_type(r->graph, text);
        if (e->type < 0) return wrong(f, text, "no such event type is declared", err);
        break;
    case F_SUBJECT: e->subject = text; break;
    case F_OBJECT: e->object = text; break;
    case F_TS:
        if (!mx_parse_time(text, &e->ts_ms)) return wrong(f, text, "is no time: milliseconds, seconds, or 2024-05-01T12:30:00Z", err);
        break;
    case F_WEIGHT:
    case F_DWELL:
        if (!number(text, &x)) return wrong(f, text, "is no number", err);
        *(f == F_WEIGHT ? &e->weight : &e->dwell_s) = (float)x;
        break;
    case F_PRICE:
    case F_QUANTITY:
        if (!number(text, &x) || floor(x) != x || fabs(x) > 1e15) return wrong(f, text, "is no whole number", err);
        if (f == F_PRICE) e->price_minor = (int64_t)x;
        else if (fabs(x) > 1e9) return wrong(f, text, "is too large", err);
        else e->quantity = (int32_t)x;
        break;
    case F_PROMO:
        if (!strcmp(text, "1") || !strcmp(text, "true")) e->flags |= MX_EVENT_PROMO;
        else if (strcmp(text, "0") && strcmp(text, "false")) return wrong(f, text, "is not true or false", err);
        break;
    case F_CURRENCY: e->currency = text; break;
    case F_CATEGORY: e->category = text; break;
    case F_CHANNEL: e->channel = text; break;
    case F_SESSION: e->session = text; break;
    case F_TEXT: e->text = text; break;
    case F_PROPS: e->props = text; break;
    default: break;
    }
    return MX_OK;
}

static char *keep(mx_event_rows *r, size_t bytes)
{
    piece *p = malloc(sizeof *p + bytes);
    if (!p) return NULL;
    p->next = r->pieces;
    r->pieces = p;
    return p->bytes;
}

void mx_event_rows_forget(mx_event_rows *r)
{
    while (r->pieces) {
        piece *next = r->pieces->next;
        free(r->pieces);
        r->pieces = next;
    }
}

/* ---- CSV ------------------------------------------------------------------------------------------ */

/* Cuts a line into fields, in place; a quoted one may hold separators and doubled quotes. */
static mx_status cut(char *line, char separator, char *out[MX_EVENT_COLUMNS], int32_t *n, mx_error *err)
{
    char *p = line;
    for (*n = 0;; p++) {
        if (*n == MX_EVENT_COLUMNS) return mx_fail(err, MX_ERR_FORMAT, "row: more than %d columns", MX_EVENT_COLUMNS);
        char *to = out[(*n)++] = p;
        if (*p == '"') {
            for (p++; *p && (*p != '"' || p[1] == '"'); p++) {
                if (*p == '"') p++;
                *to++ = *p;
            }
            if (*p != '"') return mx_fail(err, MX_ERR_FORMAT, "row: a quote is not closed");
            p++;
            if (*p && *p != separator) return mx_fail(err, MX_ERR_FORMAT, "row: column %d goes on behind its quote", *n);
        } else {
            while (*p && *p != separator) p++;
            to = p;
        }
        bool last = !*p;
        *to = 0;
        if (last) return MX_OK;
    }
}

static mx_status name_columns(mx_event_rows *r, char *cell[], int32_t n, mx_error *err)
{
    bool subject = false;
    for (int32_t i = 0; i < n; i++) {
        int f = find_field(cell[i]);
        for (int32_t k = 0; f < FIELDS && k < i; k++)
            if (r->column[k] == (field)f) return mx_fail(err, MX_ERR_ARG, "%s: column \"%s\" is there twice", r->o.name, cell[i]);
        r->column[i] = f < FIELDS ? (field)f : F_SKIP;
        subject |= f == F_SUBJECT;
        if (f == FIELDS && r->o.columns && strcmp(cell[i], "-")) return mx_fail(err, MX_ERR_ARG, "columns: \"%s\" is no field of an event", cell[i]);
    }
    r->columns = n;
    return subject ? MX_OK : mx_fail(err, MX_ERR_ARG, "%s: no column is called \"subject\"; name the columns with --columns", r->o.name);
}

static mx_status take_csv(mx_event_rows *r, char *line, mx_event *e, bool *is_event, mx_error *err)
{
    char *cell[MX_EVENT_COLUMNS];
    int32_t n = 0;
    MX_TRY(cut(line, r->o.separator, cell, &n, err));
    if (!r->columns) {
        *is_event = false;
        return name_columns(r, cell, n, err);
    }
    if (n != r->columns) return mx_fail(err, MX_ERR_FORMAT, "row: %d columns, the head has %d", n, r->columns);
    for (int32_t i = 0; i < n; i++) MX_TRY(take_field(r, r->column[i], cell[i], e, err));
    return MX_OK;
}

/* ---- JSON -------------------------------------------------------------------------------------------- */

/* Numbers and truths as the text that CSV would have; objects as they are. */
static mx_status take_json(mx_event_rows *r, const char *line, size_t len, mx_event *e, mx_error *err)
{
    json_error_t at;
    json_t *o = json_loadb(line, len, JSON_REJECT_DUPLICATES, &at), *v;
    const char *key;
    mx_status st = !o ? mx_fail(err, MX_ERR_FORMAT, "row: %s", at.text) : !json_is_object(o) ? mx_fail(err, MX_ERR_FORMAT, "row: no object") : MX_OK;
    if (!st) json_object_foreach(o, key, v) {
        int f = find_field(key);
        if (st || f == FIELDS || json_is_null(v)) continue;
        char *text = json_is_string(v) ? NULL : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY | JSON_REAL_PRECISION(17) | JSON_SORT_KEYS);
        const char *from = text ? text : json_string_value(v);
        size_t n = from ? strlen(from) : 0;
        char *kept = from ? keep(r, n + 1) : NULL;
        if (!kept) st = mx_fail(err, MX_ERR_NO_MEMORY, "a row");
        else st = take_field(r, (field)f, memcpy(kept, from, n + 1), e, err);
        free(text);
    }
    json_decref(o);
    return st;
}

/* ---- rows ------------------------------------------------------------------------------------------------ */

mx_status mx_event_rows_open(mx_event_rows **out, const mx_user_graph *g, const mx_event_rows_options *o, mx_error *err)
{
    mx_event_rows *r = calloc(1, sizeof *r);
    mx_status st = MX_OK;
    *out = NULL;
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "rows of events");
    r->graph = g;
    r->o = *o;
    r->base = strrchr(o->name, '/') ? strrchr(o->name, '/') + 1 : o->name;
    if (o->csv && o->columns) {
        char *cell[MX_EVENT_COLUMNS], *names = keep(r, strlen(o->columns) + 1);
        int32_t n;
        st = names ? cut(strcpy(names, o->columns), ',', cell, &n, err) : mx_fail(err, MX_ERR_NO_MEMORY, "rows of events");
        if (!st) st = name_columns(r, cell, n, err);
    }
    if (st) mx_event_rows_close(r);
    else *out = r;
    return st;
}

void mx_event_rows_close(mx_event_rows *r)
{
    if (!r) return;
    mx_event_rows_forget(r);
    free(r);
}

mx_status mx_event_rows_take(mx_event_rows *r, const char *line, size_t len, int64_t number_of, mx_event *e, bool *is_event, mx_error *err)
{
    *e = mx_event_defaults();
    e->type = -1;
    e->ts_ms = r->o.ts_ms;
    if (len && line[len - 1] == '\r') len--;
    *is_event = len > 0;
    if (!len) return MX_OK;
    if (memchr(line, 0, len)) return mx_fail(err, MX_ERR_FORMAT, "row: a zero byte");
    if (r->o.csv) {
        char *copy = keep(r, len + 1);
        if (!copy) return mx_fail(err, MX_ERR_NO_MEMORY, "a row");
        memcpy(copy, line, len);
        copy[len] = 0;
        MX_TRY(take_csv(r, copy, e, is_event, err));
    } else MX_TRY(take_json(r, line, len, e, err));
    if (!*is_event) return MX_OK;
    if (e->type < 0) {
        if (!r->o.type) return mx_fail(err, MX_ERR_FORMAT, "type is missing; give the rows one with --event-type");
        MX_TRY(take_field(r, F_TYPE, r->o.type, e, err));
    }
    if (!e->id) {
        size_t room = 64 + 48;
        char *id = keep(r, room);
        if (!id) return mx_fail(err, MX_ERR_NO_MEMORY, "a row");
        snprintf(id, room, "%.64s-%08x:%lld", r->base, mx_crc32c(0, r->o.name, strlen(r->o.name)), (long long)number_of);
        e->id = id;
    }
    return MX_OK;
}
