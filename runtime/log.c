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

void mx_log(mx_log_level level, const char *room, const char *fmt, ...)
{
    if (!mx_log_enabled(level)) return;
    char message[MESSAGE], line[MESSAGE * 6 + 256];
    va_list ap;
    va_start(ap, fmt);
    int len = vsnprintf(message, sizeof message, fmt, ap);
    va_end(ap);
    if (len < 0) return;
    if ((size_t)len >= sizeof message) mark_cut(message, sizeof message);

    struct timespec now;
    struct tm utc;
    char when[24];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%S", &utc);
    int ms = (int)(now.tv_nsec / 1000000);

    size_t n;
    if (atomic_load_explicit(&as_json, memory_order_relaxed)) {
        n = (size_t)snprintf(line, 160, "{\"time\":\"%s.%03dZ\",\"level\":\"%s\",\"room\":\"%.32s\",\"message\":\"",
                             when, ms, names[level], room);
        n += put_json(line + n, message);
        memcpy(line + n, "\"}\n", 3);
        n += 3;
    } else {
        n = (size_t)snprintf(line, 160, "%s.%03dZ %-5s %.32s: ", when, ms, names[level], room);
        n += put_text(line + n, message);
        line[n++] = '\n';
    }
    /* A log that cannot be written has nobody to tell. */
    ssize_t written = write(STDERR_FILENO, line, n);
    (void)written;
}
