/* graph.cu - rows gathered and reduced over spans. */
#include "kernels/cuda/common.cuh"

/* Rows of blocks take spans, their threads four columns each; edges in order. */
static __global__ void aggregate_kernel(mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how,
                                        int64_t edges, bool vec, mx_cuda_fault *fault)
{
    MX_EACH_ROW(r, y.rows) {
        int64_t first = *mx_row_i32(begin, r), last = *mx_row_i32(begin, r + 1);
        if (first < 0 || last < first || last > edges) {
            if (threadIdx.x == 0 && blockIdx.x == 0) mx_raise(fault, MX_CUDA_SPAN, r, (int)last);
            continue;
        }
        MX_EACH_FOUR(i, y.cols) {
            float4 sum = make_float4(0, 0, 0, 0);
            for (int64_t e = first; e < last; e++) {
                int64_t id = ids.data ? *mx_row_i32(ids, e) : e;
                if (id < 0 || id >= x.rows) {
                    if (threadIdx.x == 0 && blockIdx.x == 0) mx_raise(fault, MX_CUDA_NEIGHBOUR, e, (int)id);
                    continue;
                }
                float4 v = mx_load4(mx_row(x, id), i, y.cols, vec);
                if (how == MX_REDUCE_MAX) {
                    if (e == first) sum = v;
                    else sum = make_float4(fmaxf(sum.x, v.x), fmaxf(sum.y, v.y), fmaxf(sum.z, v.z), fmaxf(sum.w, v.w));
                } else {
                    float w = weight.data ? *mx_row(weight, e) : 1.0f;
                    sum = make_float4(fmaf(w, v.x, sum.x), fmaf(w, v.y, sum.y), fmaf(w, v.z, sum.z), fmaf(w, v.w, sum.w));
                }
            }
            if (how == MX_REDUCE_MEAN && last > first) {
                float n = (float)(last - first);
                sum = make_float4(sum.x / n, sum.y / n, sum.z / n, sum.w / n);
            }
            mx_store4(mx_row(y, r), i, y.cols, vec, sum);
        }
    }
}

extern "C" void mx_cuda_aggregate(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how)
{
    bool vec = mx_vec(y) && mx_vec(x);
    MX_LAUNCH(s, "aggregate", aggregate_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, x, ids, begin, weight, how,
              ids.data ? ids.rows : x.rows, vec, mx_cuda_faults(s));
}

/* ---- the gradient of a maximum ------------------------------------------------------------ */

typedef struct max_back_args {
    mx_tensor dx, dy, x, y, ids, begin;
    mx_turned t;
    mx_cuda_fault *fault;
} max_back_args;

/* A thread has a column of a row of the table; of a span's edges with the maximum the first one gets the gradient. */
static __global__ void max_back_kernel(max_back_args a)
{
    int64_t edges = a.ids.rows;
    MX_EACH_ROW(u, a.x.rows) {
        int64_t from = *mx_row_i32(a.t.begin, u), to = *mx_row_i32(a.t.begin, u + 1);
        bool sound = from >= 0 && from <= to && to <= edges;
        if (!sound && threadIdx.x == 0 && blockIdx.x == 0) mx_raise(a.fault, MX_CUDA_SPAN, u, (int)to);
        for (int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; c < a.x.cols; c += (int64_t)gridDim.x * blockDim.x) {
            float sum = 0, x = mx_row(a.x, u)[c];
            for (int64_t k = from; k < to && sound; k++) {
                int64_t s = *mx_row_i32(a.t.span, k), e = *mx_row_i32(a.t.edge, k);
                if (s < 0 || s >= a.y.rows || e < 0 || e >= edges) {
                    mx_raise(a.fault, MX_CUDA_NEIGHBOUR, k, (int)s);
                    continue;
                }
                if (mx_row(a.y, s)[c] != x) continue;
                int64_t f = max(*mx_row_i32(a.begin, s), 0);
                for (; f < e; f++) {
                    int64_t id = *mx_row_i32(a.ids, f);
                    if (id >= 0 && id < a.x.rows && mx_row(a.x, id)[c] == x) break;
                }
                if (f >= e) sum += mx_row(a.dy, s)[c];
            }
            mx_row(a.dx, u)[c] = sum;
        }
    }
}

extern "C" void mx_cuda_aggregate_max_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_tensor y, mx_tensor ids, mx_tensor begin,
                                           mx_turned t)
{
    max_back_args a = {dx, dy, x, y, ids, begin, t, mx_cuda_faults(s)};
    MX_LAUNCH(s, "aggregate_max_back", max_back_kernel, mx_grid(x.rows, x.cols), mx_row_threads(x.cols), 0, a);
}

/* ---- drawing neighbours ---------------------------------------------------------------------- */

/* A thread draws for a node, into its own row: the same numbers as kernels/cpu/graph.c. */
static __global__ void draw_kernel(mx_tensor edge, mx_tensor nodes, mx_tensor begin, mx_sample_key key, mx_cuda_fault *fault)
{
    for (int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; r < edge.rows; r += (int64_t)gridDim.x * blockDim.x) {
        int32_t *out = mx_row_i32(edge, r), node = *mx_row_i32(nodes, r), from = 0, degree = 0;
        int64_t want = edge.cols;
        if (node < 0 || node >= begin.rows - 1) mx_raise(fault, MX_CUDA_NEIGHBOUR, r, node);
        else {
            from = *mx_row_i32(begin, node);
            degree = *mx_row_i32(begin, node + 1) - from;
            if (from < 0 || degree < 0) mx_raise(fault, MX_CUDA_SPAN, node, from);
        }
        if (degree <= want || from < 0) {
            for (int64_t k = 0; k < want; k++) out[k] = k < degree && from >= 0 ? from + (int32_t)k : -1;
            continue;
        }
        uint4 w = make_uint4(0, 0, 0, 0);
        for (int64_t k = 0; k < want; k++) {
            if (k % 4 == 0) w = mx_philox(make_uint4((unsigned)node, (unsigned)(k / 4), key.layer, key.epoch), key.seed);
            unsigned word = k % 4 == 0 ? w.x : k % 4 == 1 ? w.y : k % 4 == 2 ? w.z : w.w;
            int64_t top = degree - want + k;
            int32_t v = from + (int32_t)((uint64_t)word * (uint64_t)(top + 1) >> 32);
            int64_t at = k;
            while (at > 0 && out[at - 1] > v) at--;
            if (at > 0 && out[at - 1] == v) v = from + (int32_t)top, at = k;
            for (int64_t i = k; i > at; i--) out[i] = out[i - 1];
            out[at] = v;
        }
    }
}

extern "C" void mx_cuda_sample_neighbours(mx_stream *s, mx_tensor edge, mx_tensor nodes, mx_tensor begin, mx_sample_key key)
{
    int64_t blocks = (edge.rows + 127) / 128;
    MX_LAUNCH(s, "sample_neighbours", draw_kernel, (unsigned)(blocks < 65535 ? blocks : 65535), 128, 0, edge, nodes, begin, key, mx_cuda_faults(s));
}
