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

const mx_clock mx_clock_monotonic = {monotonic, NULL};
