/* activation.c - pointwise functions, their gated form, and their derivatives. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>

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

/* erfc(|x| / sqrt 2) for |x| <= 20, with an error under 2e-7 of the value: the
 * Chebyshev fit of Press et al., Numerical Recipes, "erfcc".  The square of
 * the argument is kept in two parts, or its rounding would show in the tail. */
static inline vf erfc_half(vf x)
{
    vf z = vf_mul(x, vf_set(0.70710678f)), rest = vf_fma(x, vf_set(0.70710678f), vf_sub(vf_zero(), z));
    rest = vf_fma(x, vf_set(1.21016175e-8f), rest);              /* 1/sqrt 2 in two parts too */
    vf t = vf_div(vf_set(1.0f), vf_fma(z, vf_set(0.5f), vf_set(1.0f)));
    static const float c[] = {0.17087277f, -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f, -0.18628806f,
                              0.09678418f, 0.37409196f, 1.00002368f, -1.26551223f};
    vf p = vf_set(c[0]);
    UNROLL for (int i = 1; i < 10; i++) p = vf_fma(p, t, vf_set(c[i]));
    vf square = vf_mul(z, z), low = vf_fma(z, z, vf_sub(vf_zero(), square));
    low = vf_fma(vf_mul(z, vf_set(2.0f)), rest, low);
    vf e = vf_mul(vf_exp(vf_sub(vf_zero(), square)), vf_exp(vf_sub(p, low)));
    return vf_mul(t, e);
}

/* Phi(x) x = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2, which keeps its relative
 * precision far to the left, where 1 + erf cancels */
static inline vf gelu_erf(vf x)
{
    vf a = vf_min(vf_set(20.0f), vf_abs(x));                     /* NaN stays NaN */
    return vf_sub(vf_max(vf_zero(), x), vf_mul(vf_mul(a, vf_set(0.5f)), erfc_half(a)));
}

/* Rare enough to be left to the library: the pooler of an encoder. */
static inline vf hyperbolic_tangent(vf x)
{
    float t[VF];
    vf_store(t, x);
    for (int l = 0; l < VF; l++) t[l] = tanhf(t[l]);
    return vf_load(t);
}

static inline vf activated(vf x, mx_activation act)
{
    switch (act) {
    case MX_ACT_GELU_TANH: return gelu_tanh(x);
    case MX_ACT_GELU_ERF: return gelu_erf(x);
    case MX_ACT_SILU: return silu(x);
    case MX_ACT_RELU: return vf_max(vf_zero(), x);     /* NaN stays NaN */
    case MX_ACT_TANH: return hyperbolic_tangent(x);
    case MX_ACT_ELU: return vf_positive(x, x, vf_sub(vf_exp(vf_min(vf_zero(), x)), vf_set(1.0f)));
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

/* ---- backward --------------------------------------------------------------------- */

/* s = 1 / (1 + e^-x), and 1 - s = e^-x s, which does not cancel */
static inline vf sigmoid(vf x, vf *rest)
{
    vf e = vf_exp(vf_min(vf_set(80.0f), vf_sub(vf_zero(), x)));      /* NaN stays NaN */
    vf s = vf_div(vf_set(1.0f), vf_add(vf_set(1.0f), e));
    *rest = vf_mul(e, s);
    return s;
}

/* s + x s (1 - s) */
static inline vf silu_slope(vf x)
{
    vf rest, s = sigmoid(x, &rest);
    return vf_fma(vf_mul(x, s), rest, s);
}

/* With s = sigmoid(2u): s + x s (1 - s) 2u' */
static inline vf gelu_tanh_slope(vf x)
{
    vf square = vf_mul(x, x), rest;
    vf s = sigmoid(vf_mul(vf_mul(x, vf_fma(square, vf_set(0.044715f), vf_set(1.0f))), vf_set(1.5957691216057308f)), &rest);
    vf slope = vf_mul(vf_fma(square, vf_set(3 * 0.044715f), vf_set(1.0f)), vf_set(1.5957691216057308f));
    return vf_fma(vf_mul(vf_mul(x, s), rest), slope, s);
}

/* The normal distribution's Phi(x) + x phi(x); Phi(x) = 1 - Phi(-x) */
static inline vf gelu_erf_slope(vf x)
{
    vf half = vf_mul(erfc_half(vf_min(vf_set(20.0f), vf_abs(x))), vf_set(0.5f));
    vf phi = vf_positive(x, vf_sub(vf_set(1.0f), half), half);
    vf density = vf_mul(vf_exp(vf_mul(vf_mul(x, x), vf_set(-0.5f))), vf_set(0.39894228f));
    return vf_fma(x, density, phi);
}

static inline vf tanh_slope(vf x)
{
    vf t = hyperbolic_tangent(x);
    return vf_mul(vf_sub(vf_set(1.0f), t), vf_add(vf_set(1.0f), t));
}

static inline vf slope_of(vf x, mx_activation act)
{
    switch (act) {
    case MX_ACT_GELU_TANH: return gelu_tanh_slope(x);
    case MX_ACT_GELU_ERF: return gelu_erf_slope(x);
    case MX_ACT_SILU: return silu_slope(x);
    case MX_ACT_RELU: return vf_positive(x, vf_set(1.0f), vf_zero());
    case MX_ACT_TANH: return tanh_slope(x);
    case MX_ACT_ELU: return vf_exp(vf_min(vf_zero(), x));
    case MX_ACT_NONE:
    case MX_ACT_COUNT: break;
    }
    return vf_set(1.0f);
}

typedef struct act_back_job {
    mx_tensor dx, dy, x;
    mx_activation act;
} act_back_job;

static void activate_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const act_back_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r), *dy = mx_row(j->dy, r);
        float *dx = mx_row(j->dx, r);
        for (int64_t i = 0, n = j->x.cols; i < n; i += VF)
            vf_store_most(dx + i, vf_mul(vf_load_most(dy + i, n - i), slope_of(vf_load_most(x + i, n - i), j->act)), n - i);
    }
}

void mx_cpu_activate_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_activation act)
{
    act_back_job j = {dx, dy, x, act};
    mx_cpu_rows(s, x.rows, 4 * x.cols, activate_back_rows, &j);
}

static void gated_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const act_back_job *j = ctx;
    int64_t n = j->dy.cols;
    for (int64_t r = first; r < last; r++) {
        const float *g = mx_row(j->x, r), *u = g + n, *dy = mx_row(j->dy, r);
        float *dg = mx_row(j->dx, r), *du = dg + n;
        for (int64_t i = 0; i < n; i += VF) {
            vf x = vf_load_most(g + i, n - i), up = vf_load_most(u + i, n - i), d = vf_load_most(dy + i, n - i);
            vf_store_most(du + i, vf_mul(d, activated(x, j->act)), n - i);
            vf_store_most(dg + i, vf_mul(vf_mul(d, up), slope_of(x, j->act)), n - i);
        }
    }
}

void mx_cpu_gated_back(mx_stream *s, mx_tensor dgu, mx_tensor dy, mx_tensor gu, mx_activation act)
{
    act_back_job j = {dgu, dy, gu, act};
    mx_cpu_rows(s, dy.rows, 8 * dy.cols, gated_back_rows, &j);
}
