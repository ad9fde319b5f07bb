/* activation.cu - pointwise functions and their gated form. */
#include "kernels/cuda/common.cuh"

static __global__ void activate_kernel(mx_tensor y, mx_tensor x, mx_activation act, bool vec)
{
    MX_EACH_ROW(r, y.rows)
        MX_EACH_FOUR(i, y.cols)
            mx_store4(mx_row(y, r), i, y.cols, vec, mx_activated4(mx_load4(mx_row(x, r), i, y.cols, vec), act));
}

extern "C" void mx_cuda_activate(mx_stream *s, mx_tensor y, mx_tensor x, mx_activation act)
{
    MX_LAUNCH(s, "activate", activate_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, x, act, mx_vec(y) && mx_vec(x));
}

static __global__ void gated_kernel(mx_tensor y, mx_tensor gu, mx_activation act, bool vec)
{
    MX_EACH_ROW(r, y.rows) {
        const float *g = mx_row(gu, r), *u = g + y.cols;
        MX_EACH_FOUR(i, y.cols) {
            float4 p = mx_activated4(mx_load4(g, i, y.cols, vec), act), q = mx_load4(u, i, y.cols, vec);
            mx_store4(mx_row(y, r), i, y.cols, vec, make_float4(p.x * q.x, p.y * q.y, p.z * q.z, p.w * q.w));
        }
    }
}

extern "C" void mx_cuda_gated(mx_stream *s, mx_tensor y, mx_tensor gu, mx_activation act)
{
    bool vec = mx_vec(y) && mx_vec(gu) && y.cols % 4 == 0;         /* the second half is aligned too */
    MX_LAUNCH(s, "gated", gated_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, gu, act, vec);
}
