/* common.cuh - what the files of the CUDA backend share.  Each begins with it.
 *
 * RULES (HACKING.md, "CUDA"): kernels are `static __global__`, C with templates on
 * element types only; launches go through MX_LAUNCH, inline PTX stands in ptx.cuh
 * only.  An output row has the same bits in every batch and at every alignment:
 * thread t of a row always owns elements 4t..4t+3 (and so on by 4 * threads),
 * whether it loads them with one instruction or four. */
#ifndef MX_CUDA_COMMON_CUH
#define MX_CUDA_COMMON_CUH

#include "kernels/ops.h"
#include "runtime/device_cuda.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <float.h>
#include <math.h>

#define X(name) extern "C" __typeof__(mx_##name) mx_cuda_##name;
MX_OPS(X)
#undef X
extern "C" __typeof__(mx_weight_bytes) mx_cuda_weight_bytes;
extern "C" __typeof__(mx_weight_open) mx_cuda_weight_open;
extern "C" __typeof__(mx_weight_close) mx_cuda_weight_close;

/* Launch on an mx_stream and keep what went wrong; nothing after an error.  Template kernels go in parentheses. */
#ifdef MX_CUDASIM
#define MX_DYN_SHARED(type, name) CUDASIM_DYN_SHARED(type, name)
#define MX_LAUNCH_ON(kernel, grid, block, smem, q, ...) cudasim_launch(#kernel, kernel, grid, block, smem, q, __VA_ARGS__)
#else
#define MX_DYN_SHARED(type, name)                                      \
    extern __shared__ __align__(128) unsigned char mx_dynamic_shared[]; \
    type *name = (type *)mx_dynamic_shared
#define MX_LAUNCH_ON(kernel, grid, block, smem, q, ...) kernel<<<(grid), (block), (smem), (q)>>>(__VA_ARGS__)
#endif
#define MX_LAUNCH(s, op, kernel, grid, block, smem, ...)                                           \
    do {                                                                                           \
        if ((s)->error.code) break;                                                                \
        MX_LAUNCH_ON(kernel, grid, block, smem, (cudaStream_t)mx_cuda_queue(s), __VA_ARGS__);      \
        mx_cuda_ok(s, cudaGetLastError(), op);                                                     \
    } while (0)

#define MX_FULL 0xffffffffu            /* all lanes of a warp */

/* ---- element types: bits in memory, f32 in registers ------------------------------------ */

typedef struct mx_f16 { uint16_t bits; } mx_f16;
typedef struct mx_bf16 { uint16_t bits; } mx_bf16;
typedef struct mx_f8 { uint8_t bits; } mx_f8;           /* E4M3; the same steps as runtime/tensor.c */

static __device__ __forceinline__ float mx_up(float v) { return v; }
static __device__ __forceinline__ float mx_up(mx_f16 v) { return __half2float(__ushort_as_half(v.bits)); }
static __device__ __forceinline__ float mx_up(mx_bf16 v) { return __uint_as_float((uint32_t)v.bits << 16); }
static __device__ __forceinline__ float mx_up(mx_f8 v)
{
    unsigned mag = v.bits & 0x7fu;
    float f = __uint_as_float(mag == 0x7fu ? 0x7fc00000u : mag << 20) * 1.329227995784916e36f;     /* 2^120 */
    return __uint_as_float(__float_as_uint(f) | (v.bits & 0x80u) << 24);
}
static __device__ __forceinline__ void mx_down(mx_f8 *p, float v)
{
    unsigned u = __float_as_uint(v), mag = u & 0x7fffffffu;
    unsigned small = __float_as_uint(__uint_as_float(mag) + 16384.0f) - 0x46800000u, large = ((mag + 0x7ffffu + (mag >> 20 & 1u)) >> 20) - 960u;
    unsigned code = mag > 0x7f800000u ? 0x7fu : mag >= 0x43e00000u ? 0x7eu : mag < 0x3c800000u ? small : large;
    p->bits = (uint8_t)((u >> 24 & 0x80u) | code);
}
static __device__ __forceinline__ void mx_down(float *p, float v) { *p = v; }
static __device__ __forceinline__ void mx_down(mx_f16 *p, float v) { p->bits = __half_as_ushort(__float2half_rn(v)); }
static __device__ __forceinline__ void mx_down(mx_bf16 *p, float v) { p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v)); }

/* f(T) for the T of a dtype that is one of three */
#define MX_BY_TYPE(dtype, f)              \
    do {                                  \
        if ((dtype) == MX_F32) f(float);  \
        else if ((dtype) == MX_BF16) f(mx_bf16); \
        else f(mx_f16);                   \
    } while (0)

/* the same for a KV cache, which may be fp8 too */
#define MX_BY_KV_TYPE(dtype, f)           \
    do {                                  \
        if ((dtype) == MX_F8) f(mx_f8);   \
        else MX_BY_TYPE(dtype, f);        \
    } while (0)

/* Four elements from i on of a row of n; zeros past its end.  `vec`: they may be
 * read at once, see mx_vec(). */
static __device__ __forceinline__ float4 mx_load4(const float *p, int64_t i, int64_t n, bool vec)
{
    if (vec && i + 4 <= n) return *(const float4 *)(p + i);
    return make_float4(i < n ? p[i] : 0, i + 1 < n ? p[i + 1] : 0, i + 2 < n ? p[i + 2] : 0, i + 3 < n ? p[i + 3] : 0);
}

template <typename H> static __device__ __forceinline__ float4 mx_load4_half(const H *p, int64_t i, int64_t n, bool vec)
{
    H h[4];
    if (vec && i + 4 <= n) {
        uint2 u = *(const uint2 *)(p + i);
        h[0].bits = (uint16_t)u.x, h[1].bits = (uint16_t)(u.x >> 16);
        h[2].bits = (uint16_t)u.y, h[3].bits = (uint16_t)(u.y >> 16);
    } else {
        for (int k = 0; k < 4; k++) {
            h[k].bits = 0;
            if (i + k < n) h[k].bits = p[i + k].bits;
        }
    }
    return make_float4(mx_up(h[0]), mx_up(h[1]), mx_up(h[2]), mx_up(h[3]));
}
static __device__ __forceinline__ float4 mx_load4(const mx_f16 *p, int64_t i, int64_t n, bool vec)
{
    return mx_load4_half(p, i, n, vec);
}
static __device__ __forceinline__ float4 mx_load4(const mx_bf16 *p, int64_t i, int64_t n, bool vec)
{
    return mx_load4_half(p, i, n, vec);
}

static __device__ __forceinline__ float4 mx_load4(const mx_f8 *p, int64_t i, int64_t n, bool vec)
{
    unsigned u = 0;
    if (vec && i + 4 <= n) u = *(const unsigned *)(p + i);
    else
        for (int k = 0; k < 4; k++)
            if (i + k < n) u |= (unsigned)p[i + k].bits << 8 * k;
    mx_f8 b[4] = {{(uint8_t)u}, {(uint8_t)(u >> 8)}, {(uint8_t)(u >> 16)}, {(uint8_t)(u >> 24)}};
    return make_float4(mx_up(b[0]), mx_up(b[1]), mx_up(b[2]), mx_up(b[3]));
}

static __device__ __forceinline__ void mx_store4(mx_f8 *p, int64_t i, int64_t n, bool vec, float4 v)
{
    mx_f8 b[4];
    mx_down(&b[0], v.x), mx_down(&b[1], v.y), mx_down(&b[2], v.z), mx_down(&b[3], v.w);
    if (vec && i + 4 <= n) {
        *(unsigned *)(p + i) = (unsigned)b[0].bits | (unsigned)b[1].bits << 8 | (unsigned)b[2].bits << 16 | (unsigned)b[3].bits << 24;
        return;
    }
    for (int k = 0; k < 4; k++)
        if (i + k < n) p[i + k].bits = b[k].bits;
}

static __device__ __forceinline__ void mx_store4(float *p, int64_t i, int64_t n, bool vec, float4 v)
{
    if (vec && i + 4 <= n) {
        *(float4 *)(p + i) = v;
        return;
    }
    if (i < n) p[i] = v.x;
    if (i + 1 < n) p[i + 1] = v.y;
    if (i + 2 < n) p[i + 2] = v.z;
    if (i + 3 < n) p[i + 3] = v.w;
}

template <typename H> static __device__ __forceinline__ void mx_store4(H *p, int64_t i, int64_t n, bool vec, float4 v)
{
    H h[4];
    mx_down(&h[0], v.x), mx_down(&h[1], v.y), mx_down(&h[2], v.z), mx_down(&h[3], v.w);
    if (vec && i + 4 <= n) {
        *(uint2 *)(p + i) = make_uint2((unsigned)h[0].bits | (unsigned)h[1].bits << 16, (unsigned)h[2].bits | (unsigned)h[3].bits << 16);
        return;
    }
    for (int k = 0; k < 4; k++)
        if (i + k < n) p[i + k].bits = h[k].bits;
}

/* Rows of t may be read four elements at a time. */
static inline bool mx_vec(mx_tensor t)
{
    size_t four = 4 * mx_dtype_size(t.dtype);
    return (uintptr_t)t.data % four == 0 && (t.rows <= 1 || t.stride % 4 == 0);
}

static __device__ __forceinline__ float *mx_row(mx_tensor t, int64_t r) { return (float *)t.data + r * t.stride; }
static __device__ __forceinline__ int32_t *mx_row_i32(mx_tensor t, int64_t r) { return (int32_t *)t.data + r * t.stride; }

/* ---- the shape of a launch ----------------------------------------------------------------- */

/* Threads for a row of n elements taken four at a time: whole warps, at most 256. */
static inline unsigned mx_row_threads(int64_t n)
{
    int64_t t = ((n + 3) / 4 + 31) / 32 * 32;
    return (unsigned)(t < 32 ? 32 : t > 256 ? 256 : t);
}

/* Elementwise work: x over a row's groups of four, y over rows (kernels loop on). */
static inline dim3 mx_grid(int64_t rows, int64_t n)
{
    int64_t threads = mx_row_threads(n), x = ((n + 3) / 4 + threads - 1) / threads;
    return dim3((unsigned)(x < 65535 ? x : 65535), (unsigned)(rows < 65535 ? rows : 65535));
}
#define MX_EACH_ROW(r, rows) for (int64_t r = blockIdx.y; r < (rows); r += gridDim.y)
#define MX_EACH_FOUR(i, n) \
    for (int64_t i = 4 * ((int64_t)blockIdx.x * blockDim.x + threadIdx.x); i < (n); i += 4 * (int64_t)gridDim.x * blockDim.x)

/* ---- reductions, in an order that depends on nothing but the block's size --------------------- */

static __device__ __forceinline__ float mx_warp_sum(float v)
{
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(MX_FULL, v, o);
    return v;
}
static __device__ __forceinline__ double mx_warp_sum(double v)
{
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(MX_FULL, v, o);
    return v;
}
static __device__ __forceinline__ float mx_warp_max(float v)
{
    for (int o = 16; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(MX_FULL, v, o));
    return v;
}

/* Over the whole block; every thread gets the result.  Not to be called again
 * before a barrier has passed since: the exchange is one array. */
static __device__ __forceinline__ float mx_block_sum(float v)
{
    __shared__ float part[32];
    v = mx_warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) sum += part[w];
    __syncthreads();
    return sum;
}
static __device__ __forceinline__ double mx_block_sum(double v)
{
    __shared__ double part[32];
    v = mx_warp_sum(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    double sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; w++) sum += part[w];
    __syncthreads();
    return sum;
}
static __device__ __forceinline__ float mx_block_max(float v)
{
    __shared__ float part[32];
    v = mx_warp_max(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    float most = part[0];
    for (unsigned w = 1; w < blockDim.x / 32; w++) most = fmaxf(most, part[w]);
    __syncthreads();
    return most;
}

/* ---- activations ---------------------------------------------------------------------------------- */

static __device__ __forceinline__ float mx_activated(float x, mx_activation act)
{
    switch (act) {
    case MX_ACT_GELU_TANH: {               /* 0.5 x (1 + tanh u) = x / (1 + e^-2u) */
        float u = x * fmaf(x * x, 0.044715f, 1.0f);
        return x / (1.0f + expf(u * -1.5957691216057308f));
    }
    case MX_ACT_GELU_ERF: return 0.5f * x * erfcf(x * -0.70710678f);
    case MX_ACT_SILU: return x / (1.0f + expf(-x));
    case MX_ACT_RELU: return x < 0.0f ? 0.0f : x;          /* NaN stays NaN */
    case MX_ACT_TANH: return tanhf(x);
    case MX_ACT_ELU: return x > 0.0f ? x : expm1f(x);
    default: return x;
    }
}

static __device__ __forceinline__ float4 mx_activated4(float4 v, mx_activation act)
{
    return make_float4(mx_activated(v.x, act), mx_activated(v.y, act), mx_activated(v.z, act), mx_activated(v.w, act));
}

/* Atom i of all actions of a row of mx_dueling. */
static __device__ __forceinline__ void mx_duel(float *q, const float *va, int64_t actions, int64_t z, int64_t i)
{
    const float *a = va + z;
    float sum = 0;
    for (int64_t k = 0; k < actions; k++) sum += a[k * z + i];
    float base = va[i] - sum / (float)actions;
    for (int64_t k = 0; k < actions; k++) q[k * z + i] = base + a[k * z + i];
}

/* ---- random numbers ---------------------------------------------------------------------------------- */

/* Philox4x32-10 (Salmon et al. 2011): the four words of a counter become four random ones, as in runtime/random.h. */
static __device__ __forceinline__ uint4 mx_philox(uint4 c, uint64_t key)
{
    unsigned k0 = (unsigned)key, k1 = (unsigned)(key >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        unsigned h0 = __umulhi(0xd2511f53u, c.x), l0 = 0xd2511f53u * c.x, h1 = __umulhi(0xcd9e8d57u, c.z), l1 = 0xcd9e8d57u * c.z;
        c = make_uint4(h1 ^ c.y ^ k0, l1, h0 ^ c.w ^ k1, l0);
    }
    return c;
}

/* Uniform on [0,1) with 53 bits, of the counter (a, b, c, d). */
static __device__ __forceinline__ double mx_uniform(uint64_t key, unsigned a, unsigned b, unsigned c, unsigned d)
{
    uint4 w = mx_philox(make_uint4(a, b, c, d), key);
    return (double)(((uint64_t)w.x << 32 | w.y) >> 11) * 0x1p-53;
}

/* ---- faults ------------------------------------------------------------------------------------------ */

static __device__ __forceinline__ void mx_raise(mx_cuda_fault *f, mx_cuda_fault_kind kind, int64_t row, int value)
{
    if (atomicCAS(&f->kind, 0, (int)kind) != 0) return;
    f->row = row;
    f->value = value;
}

#endif
