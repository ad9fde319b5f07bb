/* graph_attention.cu - softmax over the edges of a span, forward and backward.
 *
 * A warp has one head of one row.  Scores are found lane by lane over the edges,
 * the weighted rows lane by lane over the channels; the order of both follows
 * from the row alone. */
#include "kernels/cuda/common.cuh"

typedef struct heads_args {
    mx_tensor y, lse, z, src, dst, ids, begin, dy, dz, dsrc, ddst;
    mx_turned t;
    mx_graph_heads a;
    int64_t   d;
    float     keep;
    unsigned  limit;
    mx_cuda_fault *fault;
} heads_args;

#define WARPS 4               /* heads of a block */

static __device__ __forceinline__ float leaky(float x, float slope) { return x > 0.0f ? x : x * slope; }

static __device__ float kept(const heads_args &a, int64_t e, int h)
{
    if (a.a.rate <= 0.0f) return 1.0f;
    uint4 w = mx_philox(make_uint4((unsigned)(h / 4), (unsigned)e, 0, 0), a.a.seed);
    unsigned word = h % 4 == 0 ? w.x : h % 4 == 1 ? w.y : h % 4 == 2 ? w.z : w.w;
    return word < a.limit ? 0.0f : a.keep;
}

/* The table's row of edge e, or -1 after telling. */
static __device__ int64_t source(const heads_args &a, int64_t e)
{
    int64_t id = *mx_row_i32(a.ids, e);
    if (id >= 0 && id < a.z.rows) return id;
    mx_raise(a.fault, MX_CUDA_NEIGHBOUR, e, (int)id);
    return -1;
}

static __device__ bool span(const heads_args &a, mx_tensor begin, int64_t r, int64_t *from, int64_t *to)
{
    *from = *mx_row_i32(begin, r), *to = *mx_row_i32(begin, r + 1);
    if (*from >= 0 && *from <= *to && *to <= a.ids.rows) return true;
    mx_raise(a.fault, MX_CUDA_SPAN, r, (int)*to);
    *to = *from;
    return false;
}

static __device__ float dot(const float *x, const float *y, int64_t n)
{
    float sum = 0;
    for (int64_t c = threadIdx.x % 32; c < n; c += 32) sum += x[c] * y[c];
    return mx_warp_sum(sum);
}

/* Rows of blocks and their warps: row r, head h; false past the last head. */
#define HEAD_OF_WARP(h, a) \
    int h = (int)(blockIdx.x * WARPS + threadIdx.x / 32); \
    if (h >= (a).a.heads) return

static __global__ void attend_kernel(heads_args a)
{
    HEAD_OF_WARP(h, a);
    int lane = threadIdx.x % 32;
    MX_EACH_ROW(s, a.y.rows) {
        int64_t from, to;
        span(a, a.begin, s, &from, &to);
        float *y = mx_row(a.y, s) + h * a.d, most = -INFINITY, sum = 0, dst = mx_row(a.dst, s)[h];
        for (int64_t e = from + lane; e < to; e += 32) {
            int64_t u = source(a, e);
            if (u >= 0) most = fmaxf(most, leaky(mx_row(a.src, u)[h] + dst, a.a.slope));
        }
        most = mx_warp_max(most);
        for (int64_t e = from + lane; e < to; e += 32) {
            int64_t u = source(a, e);
            if (u >= 0) sum += expf(leaky(mx_row(a.src, u)[h] + dst, a.a.slope) - most);
        }
        sum = mx_warp_sum(sum);
        if (lane == 0) mx_row(a.lse, s)[h] = to > from ? most + logf(sum) : 0.0f;
        for (int64_t c = lane; c < a.d; c += 32) {
            float v = 0;
            for (int64_t e = from; e < to; e++) {
                int64_t u = source(a, e);
                if (u >= 0) v += expf(leaky(mx_row(a.src, u)[h] + dst, a.a.slope) - most) * kept(a, e, h) * mx_row(a.z, u)[h * a.d + c];
            }
            y[c] = to > from ? v / sum : 0.0f;
        }
    }
}

static dim3 heads_grid(int64_t rows, int heads)
{
    return dim3((unsigned)((heads + WARPS - 1) / WARPS), (unsigned)(rows < 65535 ? rows : 65535));
}

static heads_args open_args(mx_stream *s, mx_graph_heads h, mx_tensor z)
{
    heads_args a = {};
    a.z = z, a.a = h, a.d = z.cols / h.heads, a.keep = 1 / (1 - h.rate), a.limit = (unsigned)((double)h.rate * 4294967296.0);
    a.fault = mx_cuda_faults(s);
    return a;
}

extern "C" void mx_cuda_graph_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids,
                                        mx_tensor begin, mx_graph_heads h)
{
    heads_args a = open_args(s, h, z);
    a.y = y, a.lse = lse, a.src = src, a.dst = dst, a.ids = ids, a.begin = begin;
    MX_LAUNCH(s, "graph_attention", attend_kernel, heads_grid(y.rows, h.heads), 32 * WARPS, 0, a);
}

/* ---- backward ------------------------------------------------------------------------------ */

/* With p the softmax, k the kept share, g = k dy.z and m = dy.y: p (g - m) leaky'.  weight: p k. */
static __device__ float edge_back(const heads_args &a, int64_t u, int64_t s, int64_t e, int h, float m, float *weight)
{
    float x = mx_row(a.src, u)[h] + mx_row(a.dst, s)[h], p = expf(leaky(x, a.a.slope) - mx_row(a.lse, s)[h]), k = kept(a, e, h);
    float g = dot(mx_row(a.dy, s) + h * a.d, mx_row(a.z, u) + h * a.d, a.d) * k;
    *weight = p * k;
    return p * (g - m) * (x > 0.0f ? 1.0f : a.a.slope);
}

/* dy.y, kept in ddst until its own turn comes */
static __global__ void mean_kernel(heads_args a)
{
    HEAD_OF_WARP(h, a);
    MX_EACH_ROW(s, a.y.rows) {
        float m = dot(mx_row(a.dy, s) + h * a.d, mx_row(a.y, s) + h * a.d, a.d);
        if (threadIdx.x % 32 == 0) mx_row(a.ddst, s)[h] = m;
    }
}

static __global__ void source_kernel(heads_args a)
{
    HEAD_OF_WARP(h, a);
    int lane = threadIdx.x % 32;
    MX_EACH_ROW(u, a.z.rows) {
        int64_t from, to;
        span(a, a.t.begin, u, &from, &to);
        float sum = 0, w;
        float *dz = mx_row(a.dz, u) + h * a.d;
        for (int64_t c = lane; c < a.d; c += 32) dz[c] = 0;
        for (int64_t k = from; k < to; k++) {
            int64_t s = *mx_row_i32(a.t.span, k), e = *mx_row_i32(a.t.edge, k);
            if (s < 0 || s >= a.y.rows || e < 0 || e >= a.ids.rows) {
                mx_raise(a.fault, MX_CUDA_NEIGHBOUR, k, (int)s);
                continue;
            }
            sum += edge_back(a, u, s, e, h, mx_row(a.ddst, s)[h], &w);
            const float *dy = mx_row(a.dy, s) + h * a.d;
            for (int64_t c = lane; c < a.d; c += 32) dz[c] += w * dy[c];
        }
        if (lane == 0) mx_row(a.dsrc, u)[h] = sum;
    }
}

static __global__ void target_kernel(heads_args a)
{
    HEAD_OF_WARP(h, a);
    MX_EACH_ROW(s, a.y.rows) {
        int64_t from, to;
        span(a, a.begin, s, &from, &to);
        float sum = 0, w, m = mx_row(a.ddst, s)[h];
        for (int64_t e = from; e < to; e++) {
            int64_t u = source(a, e);
            if (u >= 0) sum += edge_back(a, u, s, e, h, m, &w);
        }
        __syncwarp();                   /* every lane has read m */
        if (threadIdx.x % 32 == 0) mx_row(a.ddst, s)[h] = sum;
    }
}

extern "C" void mx_cuda_graph_attention_back(mx_stream *s, mx_tensor dz, mx_tensor dsrc, mx_tensor ddst, mx_tensor dy, mx_tensor y, mx_tensor lse,
                                             mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids, mx_tensor begin, mx_turned t,
                                             mx_graph_heads h)
{
    heads_args a = open_args(s, h, z);
    a.y = y, a.lse = lse, a.src = src, a.dst = dst, a.ids = ids, a.begin = begin;
    a.dy = dy, a.dz = dz, a.dsrc = dsrc, a.ddst = ddst, a.t = t;
    dim3 spans = heads_grid(y.rows, h.heads);
    if (y.rows) MX_LAUNCH(s, "graph_attention_back", mean_kernel, spans, 32 * WARPS, 0, a);
    MX_LAUNCH(s, "graph_attention_back", source_kernel, heads_grid(z.rows, h.heads), 32 * WARPS, 0, a);
    if (y.rows) MX_LAUNCH(s, "graph_attention_back", target_kernel, spans, 32 * WARPS, 0, a);
}
