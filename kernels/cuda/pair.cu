/* pair.cu - rows compared: lengths, dot products head by head, and the loss of what they say. */
#include "kernels/cuda/common.cuh"

#define WARPS   4             /* rows of a block */
#define SEGMENT 256           /* rows that are added up together */

typedef struct pair_args {
    mx_tensor y, a, b, da, db, dy;
    float     eps;
    int64_t   d;
    bool      add, learn;
    float    *part;           /* [segments][C] */
} pair_args;

static __device__ float dot(const float *x, const float *y, int64_t n)
{
    float sum = 0;
    for (int64_t c = threadIdx.x % 32; c < n; c += 32) sum += x[c] * y[c];
    return mx_warp_sum(sum);
}

#define EACH_WARP_ROW(r, rows) \
    for (int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; r < (rows); r += (int64_t)gridDim.x * WARPS)

static unsigned warp_blocks(int64_t rows)
{
    int64_t n = (rows + WARPS - 1) / WARPS;
    return (unsigned)(n < 65535 ? n : 65535);
}

/* ---- length one ------------------------------------------------------------------------- */

static __global__ void normalize_kernel(pair_args p)
{
    EACH_WARP_ROW(r, p.a.rows) {
        const float *x = mx_row(p.a, r);
        float k = fmaxf(sqrtf(dot(x, x, p.a.cols)), p.eps);
        __syncwarp();                   /* y may be x */
        for (int64_t c = threadIdx.x % 32; c < p.a.cols; c += 32) mx_row(p.y, r)[c] = x[c] / k;
    }
}

extern "C" void mx_cuda_unit_rows(mx_stream *s, mx_tensor y, mx_tensor x, float eps)
{
    pair_args p = {};
    p.y = y, p.a = x, p.eps = eps;
    MX_LAUNCH(s, "unit_rows", normalize_kernel, warp_blocks(x.rows), 32 * WARPS, 0, p);
}

/* (dy - u (u.dy)) / |x| with u = x / |x|; shorter than eps: dy / eps */
static __global__ void normalize_back_kernel(pair_args p)
{
    EACH_WARP_ROW(r, p.a.rows) {
        const float *x = mx_row(p.a, r), *dy = mx_row(p.dy, r);
        float square = dot(x, x, p.a.cols), length = sqrtf(square), g = dot(x, dy, p.a.cols);
        bool longer = length > p.eps;
        float k = 1.0f / (longer ? length : p.eps), q = longer ? g / square / length : 0.0f;
        __syncwarp();                   /* dx may be dy */
        for (int64_t c = threadIdx.x % 32; c < p.a.cols; c += 32) mx_row(p.da, r)[c] = dy[c] * k - q * x[c];
    }
}

extern "C" void mx_cuda_unit_rows_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, float eps)
{
    pair_args p = {};
    p.da = dx, p.dy = dy, p.a = x, p.eps = eps;
    MX_LAUNCH(s, "unit_rows_back", normalize_back_kernel, warp_blocks(x.rows), 32 * WARPS, 0, p);
}

/* ---- dot products ------------------------------------------------------------------------- */

static __global__ void dot_kernel(pair_args p)
{
    EACH_WARP_ROW(r, p.a.rows)
        for (int64_t h = 0; h < p.y.cols; h++) {
            float v = dot(mx_row(p.a, r) + h * p.d, mx_row(p.b, p.b.rows == 1 ? 0 : r) + h * p.d, p.d);
            if (threadIdx.x % 32 == 0) mx_row(p.y, r)[h] = v;
        }
}

extern "C" void mx_cuda_dot(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    pair_args p = {};
    p.y = y, p.a = a, p.b = b, p.d = a.cols / y.cols;
    MX_LAUNCH(s, "dot", dot_kernel, warp_blocks(a.rows), 32 * WARPS, 0, p);
}

static __global__ void dot_back_kernel(pair_args p)
{
    MX_EACH_ROW(r, p.a.rows)
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < p.a.cols; c += (int64_t)gridDim.x * blockDim.x) {
            float g = mx_row(p.dy, r)[c / p.d], a = mx_row(p.a, r)[c], b = mx_row(p.b, p.b.rows == 1 ? 0 : r)[c];
            if (p.da.data) mx_row(p.da, r)[c] = g * b + (p.add ? mx_row(p.da, r)[c] : 0.0f);
            if (p.db.data && p.b.rows != 1) mx_row(p.db, r)[c] = g * a + (p.add ? mx_row(p.db, r)[c] : 0.0f);
        }
}

/* Sums over the rows of a segment, then over the segments, both in order. */
static __global__ void segment_kernel(pair_args p)
{
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = (int64_t)blockIdx.y * SEGMENT, last = min(first + SEGMENT, p.a.rows);
    if (c >= p.a.cols) return;
    float sum = 0;
    for (int64_t r = first; r < last; r++) sum += mx_row(p.dy, r)[c / p.d] * mx_row(p.a, r)[c];
    p.part[blockIdx.y * p.a.cols + c] = sum;
}

static __global__ void add_segments_kernel(pair_args p, int64_t segments)
{
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.a.cols) return;
    float sum = 0;
    for (int64_t i = 0; i < segments; i++) sum += p.part[i * p.a.cols + c];
    ((float *)p.db.data)[c] += sum;
}

extern "C" void mx_cuda_dot_back(mx_stream *s, mx_tensor da, mx_tensor db, mx_tensor dy, mx_tensor a, mx_tensor b, bool add)
{
    pair_args p = {};
    p.da = da, p.db = db, p.dy = dy, p.a = a, p.b = b, p.d = a.cols / dy.cols, p.add = add;
    MX_LAUNCH(s, "dot_back", dot_back_kernel, mx_grid(a.rows, a.cols), mx_row_threads(a.cols), 0, p);
    if (!db.data || b.rows != 1) return;
    int64_t segments = (a.rows + SEGMENT - 1) / SEGMENT;
    unsigned blocks = (unsigned)((a.cols + 127) / 128);
    p.part = (float *)mx_cuda_work(s, (size_t)(segments * a.cols) * sizeof(float));
    if (!p.part) return;
    MX_LAUNCH(s, "dot_back", segment_kernel, dim3(blocks, (unsigned)segments), 128, 0, p);
    MX_LAUNCH(s, "dot_back", add_segments_kernel, blocks, 128, 0, p, segments);
}

/* ---- the logistic loss ---------------------------------------------------------------------- */

static __global__ void logistic_kernel(pair_args p)
{
    EACH_WARP_ROW(r, p.a.rows) {
        float *x = mx_row(p.a, r);
        const float *target = mx_row(p.b, r);
        double sum = 0;
        for (int64_t c = threadIdx.x % 32; c < p.a.cols; c += 32) {
            double v = (double)x[c], e = exp(-fabs(v)), t = (double)target[c];
            bool counts = t >= 0;
            if (counts) sum += (v > 0 ? v : 0) + log1p(e) - t * v;
            if (p.learn) x[c] = counts ? (float)(((v > 0 ? 1 : e) / (1 + e) - t) * (double)p.eps) : 0.0f;
        }
        sum = mx_warp_sum(sum);
        if (threadIdx.x % 32 == 0) *mx_row(p.y, r) = (float)sum;
    }
}

extern "C" void mx_cuda_logistic(mx_stream *s, mx_tensor loss, mx_tensor x, mx_tensor target, float scale, bool learn)
{
    pair_args p = {};
    p.y = loss, p.a = x, p.b = target, p.eps = scale, p.learn = learn;
    MX_LAUNCH(s, "logistic", logistic_kernel, warp_blocks(x.rows), 32 * WARPS, 0, p);
}
