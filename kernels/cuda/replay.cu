/* replay.cu - priorities of transitions, as a tree of sums; a batch is one block's work. */
#include "kernels/cuda/common.cuh"

#define THREADS 256

static __device__ __forceinline__ void put(float *p, float v)
{
    atomicExch((int *)p, __float_as_int(v));     /* two ids may share a node: both write the same */
}

/* A parent is added up from both of its children, so that no error grows. */
static __global__ void priority_set_kernel(mx_tensor tree, mx_tensor ids, mx_tensor error, float exponent, mx_cuda_fault *fault)
{
    float *t = (float *)tree.data, old = t[0], most = old;
    int64_t leaves = tree.cols / 2;
    for (int64_t r = threadIdx.x; r < ids.rows; r += THREADS) {
        int64_t id = *mx_row_i32(ids, r);
        if (id < 0 || id >= leaves) {
            mx_raise(fault, MX_CUDA_TRANSITION, r, (int)id);
            continue;
        }
        float p = error.data ? powf(*mx_row(error, r) + 1e-6f, exponent) : old > 0 ? old : 1.0f;
        most = fmaxf(most, p);
        put(t + leaves + id, p);
    }
    most = mx_block_max(most);          /* a barrier: leaves stand, t[0] is read */
    if (threadIdx.x == 0) t[0] = most;
    for (int64_t below = 2; below <= leaves; below *= 2) {
        for (int64_t r = threadIdx.x; r < ids.rows; r += THREADS) {
            int64_t id = *mx_row_i32(ids, r), node = (leaves + id) / below;
            if (id >= 0 && id < leaves) put(t + node, t[2 * node] + t[2 * node + 1]);
        }
        __syncthreads();
    }
}

extern "C" void mx_cuda_priority_set(mx_stream *s, mx_tensor tree, mx_tensor ids, mx_tensor error, float exponent)
{
    MX_LAUNCH(s, "priority_set", priority_set_kernel, 1, THREADS, 0, tree, ids, error, exponent, mx_cuda_faults(s));
}

static __global__ void priority_sample_kernel(mx_tensor ids, mx_tensor weight, mx_tensor tree, mx_tensor uniform, float beta, mx_cuda_fault *fault)
{
    const float *t = (const float *)tree.data;
    int64_t n = ids.rows, leaves = tree.cols / 2;
    float least = INFINITY;
    if (!(t[1] > 0)) {
        if (threadIdx.x == 0) mx_raise(fault, MX_CUDA_EMPTY_TREE, 0, 0);
        return;
    }
    for (int64_t r = threadIdx.x; r < n; r += THREADS) {
        float at = ((float)r + *mx_row(uniform, r)) / (float)n * t[1];
        int64_t node = 1;
        while (node < leaves) {
            float left = t[2 * node];
            node *= 2;
            if (at < left || !(t[node + 1] > 0)) continue;
            at -= left;
            node++;
        }
        *mx_row_i32(ids, r) = (int32_t)(node - leaves);
        *mx_row(weight, r) = t[node];
        least = fminf(least, t[node]);
    }
    least = -mx_block_max(-least);
    for (int64_t r = threadIdx.x; r < n; r += THREADS) *mx_row(weight, r) = powf(least / *mx_row(weight, r), beta);
}

extern "C" void mx_cuda_priority_sample(mx_stream *s, mx_tensor ids, mx_tensor weight, mx_tensor tree, mx_tensor uniform, float beta)
{
    MX_LAUNCH(s, "priority_sample", priority_sample_kernel, 1, THREADS, 0, ids, weight, tree, uniform, beta, mx_cuda_faults(s));
}
