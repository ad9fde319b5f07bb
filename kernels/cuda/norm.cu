/* norm.cu - layer norm, RMS norm, the residual sum.  A block normalises a row. */
#include "kernels/cuda/common.cuh"

typedef struct norm_args {
    mx_tensor y, x, gain, bias;
    float     eps;
    bool      vec;
} norm_args;

/* The part of sum (x - mean)^2 that this thread owns; elements past the end do not count. */
static __device__ float squares(const float *x, int64_t n, float mean, bool vec)
{
    float sum = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, vec);
        float a = v.x - mean, b = i + 1 < n ? v.y - mean : 0, c = i + 2 < n ? v.z - mean : 0, d = i + 3 < n ? v.w - mean : 0;
        sum += (a * a + b * b) + (c * c + d * d);
    }
    return sum;
}

static __device__ void write_row(const norm_args &a, int64_t r, float mean, float scale)
{
    int64_t n = a.x.cols;
    const float *x = mx_row(a.x, r), *gain = (const float *)a.gain.data, *bias = (const float *)a.bias.data;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, a.vec), g = mx_load4(gain, i, n, a.vec);
        v = make_float4((v.x - mean) * scale * g.x, (v.y - mean) * scale * g.y, (v.z - mean) * scale * g.z, (v.w - mean) * scale * g.w);
        if (bias) {
            float4 b = mx_load4(bias, i, n, a.vec);
            v = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
        }
        mx_store4(mx_row(a.y, r), i, n, a.vec, v);
    }
}

static __global__ void norm_kernel(norm_args a)
{
    int64_t n = a.x.cols, r = blockIdx.x;
    const float *x = mx_row(a.x, r);
    float sum = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, a.vec);
        sum += (v.x + v.y) + (v.z + v.w);
    }
    float mean = mx_block_sum(sum) / (float)n;
    float var = mx_block_sum(squares(x, n, mean, a.vec)) / (float)n;
    write_row(a, r, mean, 1.0f / sqrtf(var + a.eps));
}

static __global__ void rms_norm_kernel(norm_args a)
{
    int64_t n = a.x.cols, r = blockIdx.x;
    float mean = mx_block_sum(squares(mx_row(a.x, r), n, 0.0f, a.vec)) / (float)n;
    write_row(a, r, 0.0f, 1.0f / sqrtf(mean + a.eps));
}

static bool all_vec(mx_tensor a, mx_tensor b, mx_tensor c, mx_tensor d)
{
    return mx_vec(a) && mx_vec(b) && mx_vec(c) && (!d.data || mx_vec(d));
}

extern "C" void mx_cuda_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps)
{
    norm_args a = {y, x, gain, bias, eps, all_vec(y, x, gain, bias)};
    MX_LAUNCH(s, "norm", norm_kernel, (unsigned)x.rows, mx_row_threads(x.cols), 0, a);
}

extern "C" void mx_cuda_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps)
{
    mx_tensor none = {};
    norm_args a = {y, x, gain, none, eps, all_vec(y, x, gain, none)};
    MX_LAUNCH(s, "rms_norm", rms_norm_kernel, (unsigned)x.rows, mx_row_threads(x.cols), 0, a);
}

static __global__ void add_kernel(mx_tensor y, mx_tensor a, mx_tensor b, bool vec)
{
    MX_EACH_ROW(r, y.rows)
        MX_EACH_FOUR(i, y.cols) {
            float4 p = mx_load4(mx_row(a, r), i, y.cols, vec), q = mx_load4(mx_row(b, r), i, y.cols, vec);
            mx_store4(mx_row(y, r), i, y.cols, vec, make_float4(p.x + q.x, p.y + q.y, p.z + q.z, p.w + q.w));
        }
}

extern "C" void mx_cuda_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    MX_LAUNCH(s, "add", add_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, a, b, mx_vec(y) && mx_vec(a) && mx_vec(b));
}
