/* clock.h - time, so that tests can hold it still. */
#ifndef MX_CLOCK_H
#define MX_CLOCK_H

#include <stdint.h>

typedef struct mx_clock {
    uint64_t (*now_ns)(void *ctx);
    void *ctx;
} mx_clock;

/* Milliseconds since 1970: what is written down with an event. */
int64_t mx_wall_ms(void);

extern const mx_clock mx_clock_monotonic;      /* CLOCK_MONOTONIC */

static inline uint64_t mx_now_ns(const mx_clock *c)
{
    return c->now_ns(c->ctx);
}

#endif
