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
