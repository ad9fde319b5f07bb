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

/* 1 / (1 + e^-x) */
static __device__ __forceinline__ float logistic(float x) { return 1.0f / (1.0f + expf(-x)); }

/* d act / dx; 1 - logistic(x) is logistic(-x), where the difference would cancel */
static __device__ float slope(float x, mx_activation act)
{
    switch (act) {
    case MX_ACT_GELU_TANH: {               /* x logistic(v): logistic(v) + x logistic(v) logistic(-v) v' */
        float v = x * fmaf(x * x, 0.044715f, 1.0f) * 1.5957691216057308f;
        return logistic(v) + x * logistic(v) * logistic(-v) * 1.5957691216057308f * fmaf(x * x, 0.134145f, 1.0f);
    }
    case MX_ACT_GELU_ERF: return 0.5f * erfcf(x * -0.70710678f) + x * expf(-0.5f * x * x) * 0.39894228f;
    case MX_ACT_SILU: return logistic(x) + x * logistic(x) * logistic(-x);
    case MX_ACT_RELU: return x > 0.0f ? 1.0f : 0.0f;
    case MX_ACT_TANH: {
        float t = tanhf(x);
        return 1.0f - t * t;
    }
    case MX_ACT_ELU: return expf(fminf(x, 0.0f));
    default: return 1.0f;
    }
}

static __global__ void activate_back_kernel(mx_tensor dx, mx_tensor dy, mx_tensor x, mx_activation act, bool vec)
{
    MX_EACH_ROW(r, x.rows)
        MX_EACH_FOUR(i, x.cols) {
            float4 d = mx_load4(mx_row(dy, r), i, x.cols, vec), v = mx_load4(mx_row(x, r), i, x.cols, vec);
            mx_store4(mx_row(dx, r), i, x.cols, vec,
                      make_float4(d.x * slope(v.x, act), d.y * slope(v.y, act), d.z * slope(v.z, act), d.w * slope(v.w, act)));
        }
}

extern "C" void mx_cuda_activate_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_activation act)
{
    MX_LAUNCH(s, "activate_back", activate_back_kernel, mx_grid(x.rows, x.cols), mx_row_threads(x.cols), 0, dx, dy, x, act,
              mx_vec(dx) && mx_vec(dy) && mx_vec(x));
}

static __global__ void gated_back_kernel(mx_tensor dgu, mx_tensor dy, mx_tensor gu, mx_activation act, bool vec)
{
    int64_t n = dy.cols;
    MX_EACH_ROW(r, dy.rows)
        MX_EACH_FOUR(i, n) {
            float4 d = mx_load4(mx_row(dy, r), i, n, vec), g = mx_load4(mx_row(gu, r), i, n, vec), u = mx_load4(mx_row(gu, r) + n, i, n, vec);
            float4 a = mx_activated4(g, act);
            mx_store4(mx_row(dgu, r), i, n, vec,
                      make_float4(d.x * u.x * slope(g.x, act), d.y * u.y * slope(g.y, act), d.z * u.z * slope(g.z, act), d.w * u.w * slope(g.w, act)));
            mx_store4(mx_row(dgu, r) + n, i, n, vec, make_float4(d.x * a.x, d.y * a.y, d.z * a.z, d.w * a.w));
        }
}

extern "C" void mx_cuda_gated_back(mx_stream *s, mx_tensor dgu, mx_tensor dy, mx_tensor gu, mx_activation act)
{
    bool vec = mx_vec(dgu) && mx_vec(dy) && mx_vec(gu) && dy.cols % 4 == 0;
    MX_LAUNCH(s, "gated_back", gated_back_kernel, mx_grid(dy.rows, dy.cols), mx_row_threads(dy.cols), 0, dgu, dy, gu, act, vec);
}

extern "C" void mx_cuda_gated(mx_stream *s, mx_tensor y, mx_tensor gu, mx_activation act)
{
    bool vec = mx_vec(y) && mx_vec(gu) && y.cols % 4 == 0;         /* the second half is aligned too */
    MX_LAUNCH(s, "gated", gated_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, gu, act, vec);
}
