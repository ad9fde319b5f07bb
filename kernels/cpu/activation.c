/* activation.c - pointwise functions and their gated form. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

/* x / (1 + e^-x) (Elfwing et al. 2017); e^-x may be infinite, the quotient is then 0 */
static inline vf silu(vf x)
{
    return vf_div(x, vf_add(vf_set(1.0f), vf_exp(vf_sub(vf_zero(), x))));
}

/* Hendrycks, Gimpel 2016, the tanh form: 0.5 x (1 + tanh u) = x / (1 + e^-2u) */
static inline vf gelu_tanh(vf x)
{
    vf u = vf_mul(x, vf_fma(vf_mul(x, x), vf_set(0.044715f), vf_set(1.0f)));
    return vf_div(x, vf_add(vf_set(1.0f), vf_exp(vf_mul(u, vf_set(-1.5957691216057308f)))));
}

/* 0.5 x erfc(-x / sqrt 2) keeps its relative precision far to the left, where 1 + erf cancels */
static inline vf gelu_erf(vf x)
{
    float t[VF];
    vf_store(t, x);
    for (int l = 0; l < VF; l++) t[l] = 0.5f * t[l] * erfcf(t[l] * -0.70710678f);
    return vf_load(t);
}

static inline vf activated(vf x, mx_activation act)
{
    switch (act) {
    case MX_ACT_GELU_TANH: return gelu_tanh(x);
    case MX_ACT_GELU_ERF: return gelu_erf(x);
    case MX_ACT_SILU: return silu(x);
    case MX_ACT_RELU: return vf_max(vf_zero(), x);     /* NaN stays NaN */
    case MX_ACT_NONE:
    case MX_ACT_COUNT: break;
    }
    return x;
}

void mx_cpu_activate_row(float *y, const float *x, int64_t n, mx_activation act)
{
    for (int64_t i = 0; i < n; i += VF) vf_store_most(y + i, activated(vf_load_most(x + i, n - i), act), n - i);
}

typedef struct act_job {
    mx_tensor y, x;
    mx_activation act;
} act_job;

static void activate_rows(const void *ctx, int64_t first, int64_t last)
{
    const act_job *j = ctx;
    for (int64_t r = first; r < last; r++) mx_cpu_activate_row(mx_row(j->y, r), mx_row(j->x, r), j->x.cols, j->act);
}

void mx_cpu_activate(mx_stream *s, mx_tensor y, mx_tensor x, mx_activation act)
{
    act_job j = {y, x, act};
    mx_cpu_rows(s, x.rows, 4 * x.cols, activate_rows, &j);
}

static void gated_rows(const void *ctx, int64_t first, int64_t last)
{
    const act_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        float *y = mx_row(j->y, r);
        const float *g = mx_row(j->x, r), *u = g + j->y.cols;
        for (int64_t i = 0, n = j->y.cols; i < n; i += VF)
            vf_store_most(y + i, vf_mul(activated(vf_load_most(g + i, n - i), j->act), vf_load_most(u + i, n - i)), n - i);
    }
}

void mx_cpu_gated(mx_stream *s, mx_tensor y, mx_tensor gu, mx_activation act)
{
    act_job j = {y, gu, act};
    mx_cpu_rows(s, y.rows, 4 * y.cols, gated_rows, &j);
}
