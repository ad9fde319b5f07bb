/* optim.cu - AdamW, and sums over whole buffers. */
#include "kernels/cuda/common.cuh"

#define RUN 16384                       /* elements of a block's part of a sum */

static __global__ void adamw_kernel(float *p, const float *g, float *m, float *v, int64_t n, mx_adamw_step o, bool vec)
{
    float step = o.lr / o.c1, root = 1 / sqrtf(o.c2), shrink = 1 - o.lr * o.decay;
    MX_EACH_FOUR(i, n) {
        float4 g4 = mx_load4(g, i, n, vec), m4 = mx_load4(m, i, n, vec), v4 = mx_load4(v, i, n, vec), p4 = mx_load4(p, i, n, vec);
        float *gs = &g4.x, *ms = &m4.x, *vs = &v4.x, *ps = &p4.x;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float d = gs[k] * o.scale;
            ms[k] = ms[k] + (1 - o.beta1) * (d - ms[k]);
            vs[k] = o.beta2 * vs[k] + (1 - o.beta2) * (d * d);
            ps[k] = ps[k] * shrink - step * ms[k] / (sqrtf(vs[k]) * root + o.eps);
        }
        mx_store4(m, i, n, vec, m4);
        mx_store4(v, i, n, vec, v4);
        mx_store4(p, i, n, vec, p4);
    }
}

extern "C" void mx_cuda_adamw(mx_stream *s, mx_tensor p, mx_tensor g, mx_tensor m, mx_tensor v, mx_adamw_step o)
{
    bool vec = mx_vec(p) && mx_vec(g) && mx_vec(m) && mx_vec(v);
    MX_LAUNCH(s, "adamw", adamw_kernel, mx_grid(1, p.cols), mx_row_threads(p.cols), 0, (float *)p.data, (const float *)g.data, (float *)m.data,
              (float *)v.data, p.cols, o, vec);
}

/* Parts of a row in double, then all parts in order by one block. */
static __global__ void sum_parts_kernel(double *part, mx_tensor x, int64_t runs, bool squares)
{
    for (int64_t b = blockIdx.x; b < runs * x.rows; b += gridDim.x) {
        const float *row = mx_row(x, b / runs);
        int64_t first = b % runs * RUN, last = min(first + RUN, x.cols);
        double sum = 0;
        for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) sum += squares ? (double)row[i] * (double)row[i] : (double)row[i];
        sum = mx_block_sum(sum);
        if (threadIdx.x == 0) part[b] = sum;
    }
}

static __global__ void sum_kernel(double *out, const double *part, int64_t n)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += part[i];
    sum = mx_block_sum(sum);
    if (threadIdx.x == 0) *out = sum;
}

extern "C" void mx_cuda_sum(mx_stream *s, mx_tensor sum, mx_tensor x, bool squares)
{
    if (x.stride == x.cols && x.rows > 1) x = mx_tensor_of(x.data, MX_F32, 1, x.rows * x.cols);
    int64_t runs = (x.cols + RUN - 1) / RUN, parts = runs * x.rows;
    double *part = (double *)mx_cuda_work(s, (size_t)(parts ? parts : 1) * sizeof(double));
    if (!part) return;
    if (parts) MX_LAUNCH(s, "sum", sum_parts_kernel, (unsigned)(parts < 65535 ? parts : 65535), 256, 0, part, x, runs, squares);
    MX_LAUNCH(s, "sum", sum_kernel, 1, 256, 0, (double *)sum.data, part, parts);
}
