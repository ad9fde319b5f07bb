/* user_graph_record.c - an event as bytes of the log: fixed fields, then eight texts with a zero behind each. */
#include "models/user_graph_internal.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { TEXTS = 8, FIXED = 32, HEAD = 48 };   /* lengths: a byte each, but the last two */

mx_event mx_event_defaults(void) { return (mx_event){.weight = 1, .quantity = 1, .price_minor = -1}; }

static const struct { const char *name; size_t least, most; } text_of[TEXTS] = {
    {"id", 1, MX_KEY_MOST}, {"subject", 1, MX_KEY_MOST}, {"object", 0, MX_KEY_MOST}, {"currency", 0, 8},
    {"category", 0, MX_KEY_MOST}, {"channel", 0, 32}, {"session", 0, MX_KEY_MOST}, {"props", 0, MX_TEXT_MOST},
};
/* The ninth, the text, has the longest bound and stands last. */

static void texts(const mx_event *e, const char *t[TEXTS + 1])
{
    const char *all[] = {e->id, e->subject, e->object, e->currency, e->category, e->channel, e->session, e->props, e->text};
    for (int i = 0; i <= TEXTS; i++) t[i] = all[i] ? all[i] : "";
}

static bool says(char reason[128], const char *fmt, const char *name, long long a, long long b)
{
    snprintf(reason, 128, fmt, name, a, b);
    return false;
}

bool mx_event_check(const mx_schema *s, const mx_event *e, int64_t now_ms, char reason[128])
{
    const char *t[TEXTS + 1];
    texts(e, t);
    for (int i = 0; i < TEXTS; i++) {
        size_t n = strnlen(t[i], text_of[i].most + 1);
        if (n < text_of[i].least) return says(reason, "%s is empty", text_of[i].name, 0, 0);
        if (n > text_of[i].most) return says(reason, "%s is longer than %lld bytes", text_of[i].name, (long long)text_of[i].most, 0);
    }
    if (strnlen(t[TEXTS], MX_TEXT_MOST + 1) > MX_TEXT_MOST) return says(reason, "%s is longer than %lld bytes", "text", MX_TEXT_MOST, 0);
    if (e->type < 0 || e->type >= s->event_types) return says(reason, "%s %lld is not declared", "type", e->type, 0);
    const mx_event_type *k = &s->event_type[e->type];
    if (k->object >= 0 && !*t[2]) return says(reason, "object is empty, which type %s needs", k->name, 0, 0);
    if (k->object < 0 && *t[2]) return says(reason, "object is set, which type %s has not", k->name, 0, 0);
    if (e->ts_ms < 0 || e->ts_ms > MX_TIME_MOST) return says(reason, "%s %lld is not from 0 to %lld", "ts_ms", e->ts_ms, MX_TIME_MOST);
    if (now_ms && e->ts_ms > now_ms + 86400000) return says(reason, "%s is more than a day ahead of the clock", "ts_ms", 0, 0);
    if (!isfinite(e->weight) || e->weight < 0) return says(reason, "%s is not a number from 0 on", "weight", 0, 0);
    if (!isfinite(e->dwell_s) || e->dwell_s < 0) return says(reason, "%s is not a number from 0 on", "dwell_s", 0, 0);
    if (e->quantity < 0) return says(reason, "%s %lld is below 0", "quantity", e->quantity, 0);
    if (e->price_minor > INT64_MAX / 4096) return says(reason, "%s %lld is too large", "price_minor", e->price_minor, 0);
    if (e->flags & ~(uint32_t)MX_EVENT_PROMO) return says(reason, "%s %lld are unknown", "flags", e->flags, 0);
    return true;
}

size_t mx_event_record_size(const mx_event *e)
{
    const char *t[TEXTS + 1];
    size_t n = HEAD;
    texts(e, t);
    for (int i = 0; i <= TEXTS; i++) n += strlen(t[i]) + 1;
    return n;
}

void mx_event_encode(const mx_event *e, uint8_t *to)
{
    const char *t[TEXTS + 1];
    texts(e, t);
    memset(to, 0, HEAD);
    to[0] = MX_RECORD_EVENT;
    to[1] = (uint8_t)e->type;
    to[2] = (uint8_t)e->flags;
    int64_t price = e->price_minor < 0 ? -1 : e->price_minor;
    memcpy(to + 4, &e->quantity, 4);
    memcpy(to + 8, &e->ts_ms, 8);
    memcpy(to + 16, &price, 8);
    memcpy(to + 24, &e->weight, 4);
    memcpy(to + 28, &e->dwell_s, 4);
    uint8_t *p = to + HEAD;
    for (int i = 0; i <= TEXTS; i++) {
        uint32_t n = (uint32_t)strlen(t[i]);
        if (i < TEXTS - 1) to[FIXED + i] = (uint8_t)n;
        else memcpy(to + FIXED + 8 + 4 * (i - TEXTS + 1), &n, 4);
        memcpy(p, t[i], n + 1);
        p += n + 1;
    }
}

int64_t mx_event_record_time(const void *data, size_t size)
{
    int64_t ms = -1;
    if (size >= HEAD && *(const uint8_t *)data == MX_RECORD_EVENT) memcpy(&ms, (const uint8_t *)data + 8, 8);
    return ms;
}

bool mx_event_decode(const mx_schema *s, const void *data, size_t size, mx_event *e)
{
    const uint8_t *p = data;
    const char *t[TEXTS + 1];
    char reason[128];
    size_t at = HEAD;
    if (size < at || p[0] != MX_RECORD_EVENT) return false;
    *e = (mx_event){.type = p[1], .flags = p[2]};
    memcpy(&e->quantity, p + 4, 4);
    memcpy(&e->ts_ms, p + 8, 8);
    memcpy(&e->price_minor, p + 16, 8);
    memcpy(&e->weight, p + 24, 4);
    memcpy(&e->dwell_s, p + 28, 4);
    for (int i = 0; i <= TEXTS; i++) {
        uint32_t n = p[FIXED + (i & 7)];
        if (i >= TEXTS - 1) memcpy(&n, p + FIXED + 8 + 4 * (i - TEXTS + 1), 4);
        if (n >= size - at || memchr(p + at, 0, n + (size_t)1) != p + at + n) return false;
        t[i] = (const char *)p + at;
        at += n + (size_t)1;
        if (at >= size && i < TEXTS) return false;
    }
    e->id = t[0], e->subject = t[1], e->object = *t[2] ? t[2] : NULL, e->currency = t[3], e->category = t[4];
    e->channel = t[5], e->session = t[6], e->props = t[7], e->text = t[8];
    return at == size && mx_event_check(s, e, 0, reason);
}
