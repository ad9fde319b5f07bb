/* cudasim.h - a CUDA device simulated on the CPU, for tests only.
 *
 * The .cu files of the product are compiled unchanged as C++ against the headers
 * in include/, and their launches run here: the threads of a block are fibers, one
 * block after the other, under a schedule that a test chooses.  There are no
 * warps in time: order between threads is only what barriers and warp calls make.
 * One simulated kernel runs at a time, whatever host thread launched it (a lock
 * round every call); streams can be eager or as late as possible.
 *
 * fiber.c   threads, blocks, barriers, launches      memory.c  device and pinned memory
 * warp.c    warp calls, atomics, cp.async, mma       stream.c  streams, events, graphs, copies
 * check.c   races, bounds, uninitialised reads       blaslt.c  cublasLtMatmul */
#ifndef CUDASIM_H
#define CUDASIM_H

#include "cuda_runtime.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- for tests --------------------------------------------------------------------- */

enum { CUDASIM_FORWARD, CUDASIM_REVERSE, CUDASIM_RANDOM };
void cudasim_set_schedule(int mode, unsigned seed); /* order of threads and blocks                      */
void cudasim_set_lazy(int on);                      /* streams run as late as possible, in random order */
void cudasim_set_chaos(unsigned one_in);            /* checker: preempt at 1 of n accesses; 0: never    */
void cudasim_set_abort(int on);                     /* abort() at the first finding, or collect         */
void cudasim_set_guard(int on);                     /* host access to device memory faults              */
void cudasim_set_devices(int n);                    /* 0: as if there were no driver                    */
void cudasim_set_memory(size_t bytes);              /* of the device; what is over fails                */
long cudasim_fail_at(long nth);                     /* the n-th call from now that can fail, fails; 0: none;
                                                       returns how many were still to come                      */
long cudasim_lose_at(long nth);                     /* the same, and every call after it fails too              */
void cudasim_set_blaslt(int on);                    /* 0: cublasLtCreate() fails                        */
void cudasim_set_coarse_gelu(int on);               /* cublasLt's fused GELU is an approximation        */
void cudasim_set_cudnn(int on);                     /* 0: cudnnCreate() fails                           */
void cudasim_set_cudnn_cost(long threads);          /* what a plan takes on the clock: as so many threads of a kernel; it may be < 0 */
/* Findings since the last call, and the text of the last. */
int  cudasim_errors(char *text, size_t size);
int  cudasim_is_checker(void);
int  cudasim_is_asan(void);

typedef struct cudasim_stats {
    unsigned long launches, blocks, threads, switches, barriers, warp_calls, checked, matmuls, graphs, replays, waits, uploads, fused;
    long          library;
    size_t        live, peak, uploaded;             /* bytes of device memory; and what uploads brought */
} cudasim_stats_t;
extern cudasim_stats_t cudasim_stats;

/* ---- for cudasim_kernel.h -------------------------------------------------------------- */

#define CUDASIM_CTX __attribute__((section("cudasim_ctx")))
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
extern unsigned char *cudasim_dyn_smem;

typedef void (*cudasim_run_fn)(void *);
void cudasim_enqueue_kernel(const char *name, dim3 g, dim3 b, size_t smem, cudaStream_t s, cudasim_run_fn run,
                            void *pack, size_t pack_size, cudasim_run_fn del);
void     cudasim_barrier(const char *site);
int      cudasim_barrier_count(int pred, const char *site);
void     cudasim_fence(void);
void     cudasim_syncwarp(unsigned mask);
uint64_t cudasim_shfl64(int kind, unsigned mask, uint64_t v, int arg, int width);
unsigned cudasim_ballot(unsigned mask, int p);
int64_t  cudasim_reduce(int kind, unsigned mask, int64_t v);
enum { CUDASIM_ADD, CUDASIM_EXCH, CUDASIM_CAS, CUDASIM_AND, CUDASIM_OR, CUDASIM_MAX, CUDASIM_SMAX, CUDASIM_MIN, CUDASIM_SMIN };
float    cudasim_atomic_addf(float *p, float v);
double   cudasim_atomic_addd(double *p, double v);
uint32_t cudasim_atomic32(int op, void *p, uint32_t v, uint32_t cmp);
uint64_t cudasim_atomic64(int op, void *p, uint64_t v, uint64_t cmp);
void     cudasim_cp_async(void *dst, const void *src, size_t n, size_t zfill);
void     cudasim_cp_commit(void);
void     cudasim_cp_wait(int n);
uint32_t cudasim_smem_addr(const void *p);

/* Matrix instructions; fragments laid out as in the PTX ISA.  a, b, c and d are
 * the calling lane's registers. */
void cudasim_mma_m16n8k16_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]);
void cudasim_mma_m16n8k8_tf32(float d[4], const unsigned a[4], const unsigned b[2], const float c[4]);
void cudasim_mma_m16n8k32_s8(int d[4], const unsigned a[4], const unsigned b[2], const int c[4]);
void cudasim_ldmatrix(unsigned *r, const void *smem_row, int n, int trans);

#ifdef __cplusplus
}
#endif
#endif
