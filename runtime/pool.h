/* pool.h - the threads of one CPU device.
 *
 * A pool runs one parallel region at a time: mx_pool_run() splits work into
 * `parts` numbered pieces, the caller and the pool's threads take them in any
 * order, and it returns when all are done.  Results must depend on the part
 * number only, never on the thread that ran it: that is what makes every
 * result independent of the number of threads.  Idle threads spin for
 * `spin_us` and then sleep, so that an idle server uses no CPU.
 * Only kernels and runtime/device_cpu.c need this header. */
#ifndef MX_POOL_H
#define MX_POOL_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct mx_pool mx_pool;

enum { MX_NICE_IDLE = 20 };

typedef struct mx_pool_config {
    int        threads;      /* >= 1, the caller of mx_pool_run() included       */
    const int *cpus;         /* OS processor of each thread, or NULL: not bound;
                                cpus[0] is for the caller (mx_pool_bind_caller)  */
    uint32_t   spin_us;      /* 0: sleep at once                                 */
    int        nice;         /* 0..19: how far the threads give way to others that want the processor;
                                MX_NICE_IDLE: they run when nobody else would (SCHED_IDLE) */
    bool       prompt;       /* short slices: see mx_thread_prompt               */
} mx_pool_config;

/* Errors: MX_ERR_ARG (threads < 1), MX_ERR_NO_MEMORY (threads could not start). */
mx_status mx_pool_open(mx_pool **out, const mx_pool_config *c, mx_error *err);
void      mx_pool_close(mx_pool *p);
int       mx_pool_threads(const mx_pool *p);
const int *mx_pool_cpus(const mx_pool *p);           /* NULL: not bound; [threads], the pool's */
uint32_t  mx_pool_spin_us(const mx_pool *p);

/* The calling thread may run on these processors only. */
void      mx_thread_bind(const int *cpus, int n);

/* The calling thread, and those that it starts, get slices of 0.1 ms: woken, they take the processor at once from
 * threads with longer ones (Linux 6.12 and later; before, no harm is done). */
void      mx_thread_prompt(void);

/* Bind the calling thread to cpus[0], and make it as nice as the others; the device's worker calls it once. */
void      mx_pool_bind_caller(mx_pool *p);

/* fn(ctx, part, thread) for part in 0..parts-1; thread in 0..threads-1 names
 * per-thread scratch.  Any thread may call: regions take turns (a model is loaded while
 * the worker computes).  Not reentrant. */
void      mx_pool_run(mx_pool *p, int64_t parts, void (*fn)(void *ctx, int64_t part, int thread), void *ctx);

#endif
