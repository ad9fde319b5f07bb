/* status.c - names of the status codes, and the one way to fill an mx_error. */
#include "runtime/status.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const names[MX_STATUS_COUNT] = {
    [MX_OK] = "ok",
    [MX_ERR_ARG] = "invalid argument",
    [MX_ERR_NOT_FOUND] = "not found",
    [MX_ERR_NO_MEMORY] = "out of memory",
    [MX_ERR_BUSY] = "busy",
    [MX_ERR_DEADLINE] = "deadline exceeded",
    [MX_ERR_CANCELLED] = "cancelled",
    [MX_ERR_UNAVAILABLE] = "unavailable",
    [MX_ERR_STATE] = "failed precondition",
    [MX_ERR_IO] = "input/output error",
    [MX_ERR_FORMAT] = "malformed input",
    [MX_ERR_DEVICE] = "device error",
    [MX_ERR_INTERNAL] = "internal error",
    [MX_ERR_UNKNOWN_CALLER] = "unauthenticated",
    [MX_ERR_DENIED] = "permission denied",
};

const char *mx_status_name(mx_status st)
{
    return (unsigned)st < MX_STATUS_COUNT ? names[st] : "unknown status";
}

mx_status mx_fail(mx_error *err, mx_status st, const char *fmt, ...)
{
    if (!err) return st;
    err->code = st;
    err->retry_ms = 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->text, sizeof err->text, fmt, ap);
    va_end(ap);
    return st;
}
