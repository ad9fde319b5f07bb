/* loss.cu - cross-entropy and its gradient in one pass over the logits, dropout. */
#include "kernels/cuda/common.cuh"

/* A block takes a row.  The logits become their gradient where they lie: it is
 * written once, and the probabilities are nowhere else. */
static __global__ void loss_kernel(mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn, bool vec, mx_cuda_fault *fault)
{
    int64_t r = blockIdx.x, n = logits.cols;
    float *x = mx_row(logits, r), most = -INFINITY;
    int32_t t = *mx_row_i32(target, r);
    if (t < 0 || t >= n) {
        if (t >= n && threadIdx.x == 0) mx_raise(fault, MX_CUDA_TARGET, r, t);
        if (threadIdx.x == 0) *mx_row(loss, r) = 0;
        for (int64_t i = 4 * (int64_t)threadIdx.x; i < n && learn; i += 4 * (int64_t)blockDim.x) mx_store4(x, i, n, vec, make_float4(0, 0, 0, 0));
        return;
    }
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) most = fmaxf(most, x[i]);
    most = mx_block_max(most);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += (double)expf(x[i] - most);
    sum = mx_block_sum(sum);
    if (threadIdx.x == 0) *mx_row(loss, r) = (float)(log(sum) - (double)(x[t] - most));
    if (!learn) return;
    __syncthreads();                    /* x[t] is read */
    float k = (float)(1.0 / sum) * scale;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, vec);
        v = make_float4(expf(v.x - most) * k, expf(v.y - most) * k, expf(v.z - most) * k, expf(v.w - most) * k);
        float *e = &v.x;
        if (t >= i && t < i + 4) e[t - i] -= scale;
        mx_store4(x, i, n, vec, v);
    }
}

extern "C" void mx_cuda_cross_entropy(mx_stream *s, mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn)
{
    unsigned threads = logits.cols < 1024 ? 128 : 1024;
    MX_LAUNCH(s, "cross_entropy", loss_kernel, (unsigned)logits.rows, threads, 0, loss, logits, target, scale, learn, mx_vec(logits), mx_cuda_faults(s));
}

/* ---- dropout ----------------------------------------------------------------------------- */

static __global__ void dropout_kernel(mx_tensor y, mx_tensor x, float keep, unsigned limit, uint64_t seed, bool vec)
{
    MX_EACH_ROW(r, y.rows)
        MX_EACH_FOUR(i, y.cols) {
            uint4 d = mx_philox(make_uint4((unsigned)(i / 4), (unsigned)r, 0, 0), seed);
            float4 v = mx_load4(mx_row(x, r), i, y.cols, vec);
            v = make_float4(d.x < limit ? 0 : v.x * keep, d.y < limit ? 0 : v.y * keep, d.z < limit ? 0 : v.z * keep, d.w < limit ? 0 : v.w * keep);
            mx_store4(mx_row(y, r), i, y.cols, vec, v);
        }
}

extern "C" void mx_cuda_dropout(mx_stream *s, mx_tensor y, mx_tensor x, float rate, uint64_t seed)
{
    MX_LAUNCH(s, "dropout", dropout_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, x, 1 / (1 - rate),
              (unsigned)((double)rate * 4294967296.0), seed, mx_vec(y) && mx_vec(x));
}
