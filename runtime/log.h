/* log.h - one line per event, on stderr.
 *
 * Text for people, JSON for machines (mx_log_configure).  A line carries time,
 * level, room ("scheduler", "rpc", ...) and the message.  Safe from any thread:
 * a line is formatted on the stack and written with one write(). */
#ifndef MX_LOG_H
#define MX_LOG_H

#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mx_log_level { MX_LOG_DEBUG, MX_LOG_INFO, MX_LOG_WARN, MX_LOG_ERROR, MX_LOG_OFF } mx_log_level;

void mx_log_configure(mx_log_level least, bool json);     /* any time */
bool mx_log_parse_level(const char *name, mx_log_level *out);
bool mx_log_enabled(mx_log_level level);
void mx_log(mx_log_level level, const char *room, const char *fmt, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 3, 4)))
#endif
    ;

/* The same with fields that machines look for: members of the JSON object, " key=value"
 * behind the text.  Keys are plain words; a field whose value is NULL or "" is left out. */
typedef struct mx_log_field { const char *key, *value; } mx_log_field;
enum { MX_LOG_FIELDS = 12 };     /* more are left out; of a value 400 bytes */
void mx_log_with(mx_log_level level, const char *room, const mx_log_field *fields, int n, const char *fmt, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 5, 6)))
#endif
    ;

#ifdef __cplusplus
}
#endif
#endif
