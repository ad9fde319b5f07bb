/* log.c - one event, one line, one write(). */
#include "runtime/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MESSAGE 2048     /* bytes of a formatted message; what is longer ends in "..." */

/* The one global of the program: read by every thread, set before they start. */
static atomic_int threshold = MX_LOG_INFO;
static atomic_bool as_json;

static const char *const names[] = {"debug", "info", "warn", "error", "off"};

void mx_log_configure(mx_log_level least, bool json)
{
    atomic_store(&threshold, (int)least);
    atomic_store(&as_json, json);
}

bool mx_log_parse_level(const char *name, mx_log_level *out)
{
    for (int i = 0; i <= MX_LOG_OFF; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (mx_log_level)i;
            return true;
        }
    return false;
}

bool mx_log_enabled(mx_log_level level)
{
    return (int)level >= atomic_load_explicit(&threshold, memory_order_relaxed) && level < MX_LOG_OFF;
}

/* Text: a line stays a line, whatever a client put into the message. */
static size_t put_text(char *out, const char *text)
{
    size_t n = 0;
    for (; *text; text++) out[n++] = (unsigned char)*text < 0x20 || *text == 0x7f ? ' ' : *text;
    return n;
}

/* JSON string contents (RFC 8259, section 7); at most 6 bytes for each of text. */
static size_t put_json(char *out, const char *text)
{
    size_t n = 0;
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\') {
            out[n++] = '\\';
            out[n++] = (char)c;
        } else if (c < 0x20 || c == 0x7f) {
            n += (size_t)snprintf(out + n, 7, "\\u%04x", c);
        } else {
            out[n++] = (char)c;
        }
    }
    return n;
}

/* Cuts at a whole UTF-8 character, so that a truncated line stays valid text. */
static void mark_cut(char *text, size_t size)
{
    size_t n = size - 4;
    while (n && ((unsigned char)text[n] & 0xc0) == 0x80) n--;
    memcpy(text + n, "...", 4);
}

#define VALUE 400        /* bytes of a field's value; what is longer ends in "..." */

/* " key=value", or a member of the JSON object; room for 6 bytes for each of a value. */
static size_t put_field(char *out, const mx_log_field *f, bool json)
{
    char value[VALUE];
    if (!f->value || !*f->value) return 0;
    if ((size_t)snprintf(value, sizeof value, "%s", f->value) >= sizeof value) mark_cut(value, sizeof value);
    size_t n = (size_t)snprintf(out, 60, json ? "\",\"%.40s\":\"" : " %.40s=", f->key);
    return n + (json ? put_json(out + n, value) : put_text(out + n, value));
}

static void write_line(mx_log_level level, const char *room, const mx_log_field *fields, int n_fields, const char *fmt,
                       va_list ap)
{
    char message[MESSAGE], line[MESSAGE * 6 + 256 + MX_LOG_FIELDS * (VALUE * 6 + 60)];
    int len = vsnprintf(message, sizeof message, fmt, ap);
    if (len < 0) return;
    if ((size_t)len >= sizeof message) mark_cut(message, sizeof message);

    struct timespec now;
    struct tm utc;
    char when[24];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    int ms = (int)(now.tv_nsec / 1000000);

    bool json = atomic_load_explicit(&as_json, memory_order_relaxed);
    if (n_fields > MX_LOG_FIELDS) n_fields = MX_LOG_FIELDS;
    size_t n;
    if (json) {
        n = (size_t)snprintf(line, 160, "{\"time\":\"%s.%03dZ\",\"level\":\"%s\",\"room\":\"%.32s\",\"message\":\"",
                             when, ms, names[level], room);
        n += put_json(line + n, message);
    } else {
        n = (size_t)snprintf(line, 160, "%s.%03dZ %-5s %.32s: ", when, ms, names[level], room);
        n += put_text(line + n, message);
    }
    for (int i = 0; i < n_fields; i++) n += put_field(line + n, &fields[i], json);
    const char *end = json ? "\"}\n" : "\n";
    memcpy(line + n, end, strlen(end));
    n += strlen(end);
    /* A log that cannot be written has nobody to tell. */
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written;
}

void mx_log(mx_log_level level, const char *room, const char *fmt, ...)
{
    if (!mx_log_enabled(level)) return;
    va_list ap;
    va_start(ap, fmt);
    write_line(level, room, NULL, 0, fmt, ap);
    va_end(ap);
}

void mx_log_with(mx_log_level level, const char *room, const mx_log_field *fields, int n, const char *fmt, ...)
{
    if (!mx_log_enabled(level)) return;
    va_list ap;
    va_start(ap, fmt);
    write_line(level, room, fields, n, fmt, ap);
    va_end(ap);
}
