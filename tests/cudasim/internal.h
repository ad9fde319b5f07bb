/* internal.h - what the simulator's files share. */
#ifndef CUDASIM_INTERNAL_H
#define CUDASIM_INTERNAL_H

#include "cudasim.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIM_ASAN 1
#endif
#endif
#ifdef SIM_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define POISON(p, n) __asan_poison_memory_region((p), (n))
#define UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#define NO_ASAN __attribute__((no_sanitize("address")))
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#define NO_ASAN
#endif

#define SIM_THREADS 1024                      /* of a block               */
#define SIM_ARENA   ((size_t)32 << 30)        /* addresses, not memory    */
#define SIM_STACK   ((size_t)128 << 10)       /* of a fiber               */
#define SIM_WINDOW  ((size_t)256 << 10)       /* dynamic shared memory    */
#define SIM_SMEM    ((size_t)227 << 10)       /* of a block, at most      */

extern char __start_cudasim_shared[] __attribute__((weak)), __stop_cudasim_shared[] __attribute__((weak));

/* Every public call holds it; recursive, because calls use one another. */
void sim_lock(void);
void sim_unlock(void);

/* What the checker may ask about the running thread. */
typedef struct sim_current {
    int            in_kernel, tid;
    unsigned       epoch;                     /* of the warp: grows at __syncwarp */
    long           block;
    const char    *kernel;
    unsigned char *dyn;
    size_t         dyn_size;
    char          *arena;
    char          *stack;
} sim_current;
extern sim_current sim_cur;

/* The checker's ears; all NULL in the other builds. */
typedef struct sim_hooks {
    void (*launch)(const void *pack, size_t size);
    void (*block)(void);
    void (*barrier)(void);
    void (*atomic)(const void *p, size_t n);
    void (*read)(const void *p, size_t n);
    void (*write)(const void *p, size_t n);
    void (*host_write)(const void *p, size_t n);      /* device memory, by a copy or a library */
    void (*fence)(void);
} sim_hooks;
extern sim_hooks sim_hook;
#define HOOK(h, ...)                                  \
    do {                                              \
        if (sim_hook.h) sim_hook.h(__VA_ARGS__);      \
    } while (0)

void     sim_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
cudaError_t sim_result(cudaError_t e);                /* remembers what cudaGetLastError() tells */
cudaError_t sim_sticky(cudaError_t set);              /* a dead context; cudaSuccess only asks   */
void     sim_clear_errors(void);
int      sim_injected(void);                          /* this call is to fail                    */
const char *sim_message(void);
unsigned sim_random(void);
int      sim_mode(void);
int      sim_lazy(void);
void     sim_maybe_preempt(void);
void     sim_shuffle(int *a, int n);

/* fiber.c */
typedef struct sim_kernel {
    const char *name;
    dim3        g, b;
    size_t      smem, pack_size;
    cudasim_run_fn run, del;
    void       *pack;
} sim_kernel;
void sim_kernel_run(void *kernel);
void sim_kernel_free(void *kernel);
void sim_die(void) __attribute__((noreturn));         /* the calling fiber gives up its block */

enum { SIM_NEW, SIM_READY, SIM_BARRIER, SIM_WARP, SIM_DONE };
typedef struct sim_copy { void *dst; const void *src; size_t n, zero; int group; } sim_copy;
typedef struct sim_thread {
    int         state, fiber, pred;
    uint3       idx;
    const char *site;
    unsigned    epoch, mask;
    const char *what;                                 /* the warp call it waits in */
    const void *in;
    void       *out;
    sim_copy    copy[64];                             /* cp.async in flight */
    int         copies, group;
} sim_thread;
extern sim_thread sim_threads[SIM_THREADS];
extern int sim_warp_waiting[SIM_THREADS / 32];
int  sim_block_threads(void);
int  sim_self(void);                                  /* index of the running thread */
void sim_wait(int state);                             /* to the scheduler            */

/* memory.c */
int  sim_find(const void *p, char **base, size_t *n, int *freed);
int  sim_is_pinned(const void *p, size_t n);
int  sim_device_range(const void *p, size_t n);       /* 1 device, 0 host, -1 reported */
void sim_guard(int closed);

/* stream.c */
void sim_enqueue(cudaStream_t s, void (*fn)(void *), void *arg, void (*del)(void *));
int  sim_capturing(cudaStream_t s);
void sim_enqueue_always(cudaStream_t s, void (*fn)(void *), void *arg);
void sim_flush_all(void);

#endif
