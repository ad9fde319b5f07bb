/* clock.c - the real clock. */
#include "runtime/clock.h"

#include <stddef.h>
#include <time.h>

static uint64_t monotonic(void *ctx)
{
    (void)ctx;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

int64_t mx_wall_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

const mx_clock mx_clock_monotonic = {monotonic, NULL};
