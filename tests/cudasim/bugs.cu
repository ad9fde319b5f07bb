/* bugs.cu - planted bugs: each compiles with nvcc and looks innocent.  Each takes
 * x[n] to y[n] with blocks of 256 threads; test_cudasim.c says which build must
 * find which. */
#include "kernels/cuda/ptx.cuh"

#include "bugs.h"

/* correct: n values in reverse, through shared memory */
static __global__ void right_block(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    s[i] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) y[i] = s[n - 1 - i];
}

/* correct: neighbours through shared memory, inside a warp */
static __global__ void right_warp(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    s[i] = i < n ? x[i] : 0.0f;
    __syncwarp();
    float v = s[i ^ 1];
    if (i < n) y[i] = v;
}

/* correct: the last block to finish adds up what the others left */
static __global__ void right_ticket(float *y, const float *x, int n)
{
    __shared__ int last;
    if (threadIdx.x == 0) {
        y[1 + blockIdx.x] = x[blockIdx.x];
        __threadfence();
        last = atomicAdd((unsigned *)y, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) sum += y[1 + b];
        y[1] = sum;
    }
    (void)n;
}

static __global__ void global_past_end(float *y, const float *x, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = i < n ? x[i] : 0.0f;
}

static __global__ void global_before_start(float *y, const float *x, int n)
{
    int i = threadIdx.x;
    if (i < n) y[i] = x[i - 80];
}

static __global__ void shared_past_end(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    s[i + 1] = i < n ? x[i] : 0.0f;
    __syncthreads();
    if (i < n) y[i] = s[i];
}

static __global__ void dynamic_past_end(float *y, const float *x, int n)
{
    MX_DYN_SHARED(float, s);
    int i = threadIdx.x;
    if (i < n) s[i] = x[i];
    __syncthreads();
    if (i < n) y[i] = s[i + 1];
}

static __global__ void no_barrier(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    s[i] = i < n ? x[i] : 0.0f;
    if (i < n) y[i] = s[n - 1 - i];
}

static __global__ void no_barrier_in_loop(float *y, const float *x, int n)
{
    __shared__ float s[256];
    float a = 0;
    int i = threadIdx.x;
    for (int r = 0; r < 4; r++) {
        s[i] = i < n ? x[i] + r : 0.0f;
        __syncthreads();
        a += s[(i + 64) & 255];
    }
    if (i < n) y[i] = a;
}

static __global__ void no_syncwarp(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    s[i] = i < n ? x[i] : 0.0f;
    float v = s[i ^ 1];
    if (i < n) y[i] = v;
}

static __global__ void return_before_barrier(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    if (i >= n) return;
    s[i] = x[i];
    __syncthreads();
    y[i] = s[n - 1 - i];
}

static __global__ void two_barriers(float *y, const float *x, int n)
{
    int i = threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    if (i & 1) {
        __syncthreads();
        v += 1;
    } else {
        __syncthreads();
        v += 2;
    }
    if (i < n) y[i] = v;
}

static __global__ void shuffle_in_branch(float *y, const float *x, int n)
{
    int i = threadIdx.x;
    float v = i < n ? x[i] : 0.0f;
    if (i & 1) v += __shfl_xor_sync(MX_FULL, v, 2);
    if (i < n) y[i] = v;
}

static __global__ void lost_update(float *y, const float *x, int n)
{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[0] += x[i];
}

static __global__ void shared_not_written(float *y, const float *x, int n)
{
    __shared__ float s[256];
    int i = threadIdx.x;
    if (i < n - 1) s[i] = x[i];
    __syncthreads();
    if (i < n) y[i] = s[i];
}

static __global__ void misaligned(float *y, const float *x, int n)
{
    int i = threadIdx.x;
    if (i * 4 + 5 > n) return;
    float4 v = *(const float4 *)(x + i * 4 + 1);
    y[i] = v.x + v.w;
}

static __global__ void async_without_wait(float *y, const float *x, int n)
{
    __shared__ __align__(16) float s[256];
    int i = threadIdx.x;
    if (i < 64 && i * 4 + 4 <= n) __pipeline_memcpy_async(&s[i * 4], &x[i * 4], 16);
    __pipeline_commit();
    __syncthreads();
    if (i < n) y[i] = s[i];
    __pipeline_wait_prior(0);
}

static __global__ void ticket_without_fence(float *y, const float *x, int n)
{
    __shared__ int last;
    if (threadIdx.x == 0) {
        y[1 + blockIdx.x] = x[blockIdx.x];
        last = atomicAdd((unsigned *)y, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (last && threadIdx.x == 0) {
        float sum = 0;
        for (unsigned b = 0; b < gridDim.x; b++) sum += y[1 + b];
        y[1] = sum;
    }
    (void)n;
}

static __global__ void copy_one(float *y, const float *x, int n)
{
    int i = threadIdx.x;
    if (i < n) y[i] = x[i];
}

/* y[16,8] = ramp + a b with each matrix instruction on whole numbers (test_cudasim.c checks against plain loops):
 * a[i,k] = x[(i * K + k) % n], b[k,j] = x[(k + 3 j) % n], ramp[i,j] = 1 + 2 * (i / 8) + j % 2. */
static __device__ void put(float *y, const float c[4])
{
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) y[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = c[i];
}

static __global__ void mma_bf16(float *y, const float *x, int n)
{
    __shared__ __align__(16) uint16_t a16[16 * 16];
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    unsigned a[4], b[2];
    float c[4] = {1, 2, 3, 4};
    for (int i = lane; i < 256; i += 32) a16[i] = (uint16_t)(__float_as_uint(x[i % n]) >> 16);
    __syncwarp();
    mx_ldmatrix_x4(a, &a16[(lane % 8 + (lane / 8) % 2 * 8) * 16 + lane / 16 * 8]);
    for (int i = 0; i < 2; i++) {
        unsigned lo = __float_as_uint(x[(2 * t + 8 * i + 3 * g) % n]) >> 16, hi = __float_as_uint(x[(2 * t + 1 + 8 * i + 3 * g) % n]) & 0xffff0000u;
        b[i] = lo | hi;
    }
    mx_mma_bf16(c, a, b, c);
    put(y, c);
}

static __global__ void mma_tf32(float *y, const float *x, int n)
{
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    unsigned a[4], b[2];
    float c[4] = {1, 2, 3, 4};
    for (int i = 0; i < 4; i++) a[i] = __float_as_uint(x[((g + i % 2 * 8) * 8 + t + i / 2 * 4) % n]);
    for (int i = 0; i < 2; i++) b[i] = __float_as_uint(x[(t + 4 * i + 3 * g) % n]);
    mx_mma_tf32(c, a, b, c);
    put(y, c);
}

extern "C" void sim_bug(cudaStream_t q, sim_bug_kind which, float *y, const float *x, int n)
{
#define CASE(name, grid, block, smem) \
    case BUG_##name: MX_LAUNCH_ON(name, grid, block, smem, q, y, x, n); break
    switch (which) {
        CASE(right_block, 1, 256, 0);
        CASE(right_warp, 1, 256, 0);
        CASE(right_ticket, 8, 32, 0);
        CASE(global_past_end, 1, 256, 0);
        CASE(global_before_start, 1, 256, 0);
        CASE(shared_past_end, 1, 256, 0);
        CASE(dynamic_past_end, 1, 256, (size_t)n * 4);
        CASE(no_barrier, 1, 256, 0);
        CASE(no_barrier_in_loop, 1, 256, 0);
        CASE(no_syncwarp, 1, 256, 0);
        CASE(return_before_barrier, 1, 256, 0);
        CASE(two_barriers, 1, 256, 0);
        CASE(shuffle_in_branch, 1, 256, 0);
        CASE(lost_update, 1, 256, 0);
        CASE(shared_not_written, 1, 256, 0);
        CASE(misaligned, 1, 256, 0);
        CASE(async_without_wait, 1, 256, 0);
        CASE(ticket_without_fence, 8, 32, 0);
        CASE(mma_bf16, 1, 32, 0);
        CASE(mma_tf32, 1, 32, 0);
    case BUG_host_pointer:
    case BUG_used_after_free: MX_LAUNCH_ON(copy_one, 1, 256, 0, q, y, x, n); break;
    default: break;
    }
}
