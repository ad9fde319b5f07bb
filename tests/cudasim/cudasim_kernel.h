/* cudasim_kernel.h - what a kernel sees: keywords, launches, barriers, warp calls,
 * atomics, intrinsics.  Included at the end of the simulator's cuda_runtime.h, so
 * .cu files compile unchanged as C++17. */
#ifndef CUDASIM_KERNEL_H
#define CUDASIM_KERNEL_H

#include "cudasim.h"

#include <math.h>
#include <string.h>
#include <tuple>
#include <utility>

#define MX_CUDASIM 1

/* ---- keywords -------------------------------------------------------------------------- */

/* Blocks run one at a time, so a static is exactly "one per block"; the section
 * lets the runtime fill all of them with NaN before each block. */
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((section("cudasim_shared")))
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define CUDASIM_STR2(x) #x
#define CUDASIM_STR(x) CUDASIM_STR2(x)
#define CUDASIM_SITE __FILE__ ":" CUDASIM_STR(__LINE__)

#define CUDASIM_DYN_SHARED(type, name) type *name = (type *)cudasim_dyn_smem

/* Arguments are converted to the kernel's parameter types and kept by value, so a
 * stream may run the launch later and a graph again. */
template <class... P, class... A>
static inline void cudasim_launch(const char *name, void (*k)(P...), dim3 g, dim3 b, size_t smem, cudaStream_t s,
                                  A &&...a)
{
    struct pack {
        void (*k)(P...);
        std::tuple<P...> t;
        static void run(void *p) { std::apply(((pack *)p)->k, ((pack *)p)->t); }
        static void del(void *p) { delete (pack *)p; }
    };
    pack *p = new pack{k, std::tuple<P...>((P)(a)...)};
    cudasim_enqueue_kernel(name, g, b, smem, s, &pack::run, p, sizeof(pack), &pack::del);
}

/* The runtime's overload for any function pointer */
template <class... P>
static inline cudaError_t cudaFuncSetAttribute(void (*f)(P...), enum cudaFuncAttribute a, int v)
{
    return cudaFuncSetAttribute((const void *)f, a, v);
}

/* ---- block and warp ----------------------------------------------------------------------- */

static const int warpSize = 32;

#define __syncthreads() cudasim_barrier(CUDASIM_SITE)
#define __syncthreads_count(p) cudasim_barrier_count((p) != 0, CUDASIM_SITE)
#define __syncthreads_or(p) (cudasim_barrier_count((p) != 0, CUDASIM_SITE) != 0)
#define __syncthreads_and(p) (cudasim_barrier_count((p) == 0, CUDASIM_SITE) == 0)
static inline void __threadfence() { cudasim_fence(); }
static inline void __threadfence_block() {}
static inline void __syncwarp(unsigned mask = 0xffffffffu) { cudasim_syncwarp(mask); }

template <class T> static inline T cudasim_shfl(int kind, unsigned mask, T v, int arg, int width)
{
    static_assert(sizeof(T) <= 8 && __is_trivially_copyable(T), "shuffles take values of 1 to 8 bytes");
    uint64_t in = 0, out;
    memcpy(&in, &v, sizeof(T));
    out = cudasim_shfl64(kind, mask, in, arg, width);
    memcpy(&v, &out, sizeof(T));
    return v;
}
template <class T> static inline T __shfl_sync(unsigned m, T v, int lane, int w = 32)
{
    return cudasim_shfl(0, m, v, lane, w);
}
template <class T> static inline T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32)
{
    return cudasim_shfl(1, m, v, (int)d, w);
}
template <class T> static inline T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32)
{
    return cudasim_shfl(2, m, v, (int)d, w);
}
template <class T> static inline T __shfl_xor_sync(unsigned m, T v, int x, int w = 32)
{
    return cudasim_shfl(3, m, v, x, w);
}
static inline unsigned __ballot_sync(unsigned m, int p) { return cudasim_ballot(m, p); }
static inline int __any_sync(unsigned m, int p) { return cudasim_ballot(m, p) != 0; }
static inline int __all_sync(unsigned m, int p) { return cudasim_ballot(m, p) == m; }
static inline unsigned __reduce_add_sync(unsigned m, unsigned v) { return (unsigned)cudasim_reduce(0, m, v); }
static inline int __reduce_add_sync(unsigned m, int v) { return (int)cudasim_reduce(0, m, v); }
static inline int __reduce_max_sync(unsigned m, int v) { return (int)cudasim_reduce(1, m, v); }
static inline unsigned __reduce_max_sync(unsigned m, unsigned v) { return (unsigned)cudasim_reduce(1, m, v); }
static inline int __reduce_min_sync(unsigned m, int v) { return (int)cudasim_reduce(2, m, v); }
static inline unsigned __reduce_min_sync(unsigned m, unsigned v) { return (unsigned)cudasim_reduce(2, m, v); }

/* ---- atomics: bodies live in the runtime, where the checker sees them as atomics ------------ */

static inline float atomicAdd(float *p, float v) { return cudasim_atomic_addf(p, v); }
static inline double atomicAdd(double *p, double v) { return cudasim_atomic_addd(p, v); }
#define CUDASIM_ATOMIC1(name, T, W, op) \
    static inline T name(T *p, T v) { return (T)cudasim_atomic##W(op, p, (uint##W##_t)v, 0); }
#define CUDASIM_ATOMIC(T, W, is_signed)                                                                   \
    CUDASIM_ATOMIC1(atomicAdd, T, W, CUDASIM_ADD)                                                         \
    CUDASIM_ATOMIC1(atomicExch, T, W, CUDASIM_EXCH)                                                       \
    CUDASIM_ATOMIC1(atomicAnd, T, W, CUDASIM_AND)                                                         \
    CUDASIM_ATOMIC1(atomicOr, T, W, CUDASIM_OR)                                                           \
    CUDASIM_ATOMIC1(atomicMax, T, W, is_signed ? CUDASIM_SMAX : CUDASIM_MAX)                              \
    CUDASIM_ATOMIC1(atomicMin, T, W, is_signed ? CUDASIM_SMIN : CUDASIM_MIN)                              \
    static inline T atomicCAS(T *p, T c, T v)                                                             \
    {                                                                                                     \
        return (T)cudasim_atomic##W(CUDASIM_CAS, p, (uint##W##_t)v, (uint##W##_t)c);                      \
    }
CUDASIM_ATOMIC(int, 32, 1)
CUDASIM_ATOMIC(unsigned, 32, 0)
CUDASIM_ATOMIC(unsigned long long, 64, 0)

/* ---- loads with cache hints, bit casts, arithmetic ------------------------------------------- */

template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
static inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, sizeof u);
    return u;
}
static inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}
static inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline int __float2int_rn(float a) { return (int)nearbyintf(a); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
static inline int __dp4a(int a, int b, int c)
{
    for (int i = 0; i < 4; i++) c += (int)(int8_t)((unsigned)a >> 8 * i) * (int)(int8_t)((unsigned)b >> 8 * i);
    return c;
}
#define CUDASIM_MINMAX(T)                               \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
CUDASIM_MINMAX(int)
CUDASIM_MINMAX(unsigned)
CUDASIM_MINMAX(long)
CUDASIM_MINMAX(long long)
CUDASIM_MINMAX(unsigned long)
static inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
static inline int2 make_int2(int x, int y) { return {x, y}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline uint32_t __cvta_generic_to_shared(const void *p) { return cudasim_smem_addr(p); }
#endif
