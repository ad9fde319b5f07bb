/* status.h - how every Merx function that can fail says so.
 *
 * A function that can fail returns mx_status and, when the reason needs words,
 * takes an mx_error as its last argument.  The caller owns the mx_error (it is
 * usually on its stack); nothing is allocated and nothing is thread-local, so
 * a worker can fail one job and keep serving the others.  Nothing below
 * server/main.c ever calls exit() or abort() because of outside input. */
#ifndef MX_STATUS_H
#define MX_STATUS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mx_status {
    MX_OK = 0,
    MX_ERR_ARG,         /* the caller's input is wrong: never retried           */
    MX_ERR_NOT_FOUND,
    MX_ERR_NO_MEMORY,   /* host or device                                       */
    MX_ERR_BUSY,        /* queue full: the client may retry                     */
    MX_ERR_DEADLINE,
    MX_ERR_CANCELLED,
    MX_ERR_UNAVAILABLE, /* starting, draining, device lost                       */
    MX_ERR_STATE,       /* right request, wrong moment: model not loaded         */
    MX_ERR_IO,
    MX_ERR_FORMAT,      /* a file or message does not parse                     */
    MX_ERR_DEVICE,      /* the accelerator said no                              */
    MX_ERR_INTERNAL,
    MX_ERR_UNKNOWN_CALLER,  /* no token, or one that is not known                */
    MX_ERR_DENIED,      /* known, but not allowed to do this                    */
    MX_STATUS_COUNT
} mx_status;

typedef struct mx_error {
    mx_status code;
    uint32_t  retry_ms;     /* MX_ERR_BUSY: when to come again, a guess; else 0 */
    char      text[500];
} mx_error;

const char *mx_status_name(mx_status st);

/* Fill err (may be NULL) and return st, so `return mx_fail(...)` reads well. */
mx_status mx_fail(mx_error *err, mx_status st, const char *fmt, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 3, 4)))
#endif
    ;

/* Propagate up; the goto form is for functions with something to release. */
#define MX_TRY(call)         do { mx_status st_ = (call); if (st_) return st_; } while (0)
#define MX_TRY_GOTO(st, call, label) do { (st) = (call); if (st) goto label; } while (0)

#ifdef __cplusplus
}
#endif
#endif
