/* norm.c - layer norm, RMS norm, the residual sum. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct norm_job {
    mx_tensor y, x, gain, bias;
    float eps;
} norm_job;

static float row_sum(const float *x, int64_t n)
{
    vf a = vf_zero(), b = a;
    int64_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        a = vf_add(a, vf_load(x + i));
        b = vf_add(b, vf_load(x + i + VF));
    }
    for (; i < n; i += VF) a = vf_add(a, vf_load_most(x + i, n - i));
    return vf_sum(vf_add(a, b));
}

/* sum of (x - mean)^2; lanes past the end must not count as -mean */
static float row_squares(const float *x, int64_t n, float mean)
{
    vf a = vf_zero(), b = a, m = vf_set(mean);
    int64_t i = 0;
    for (; i + 2 * VF <= n; i += 2 * VF) {
        vf p = vf_sub(vf_load(x + i), m), q = vf_sub(vf_load(x + i + VF), m);
        a = vf_fma(p, p, a);
        b = vf_fma(q, q, b);
    }
    for (; i + VF <= n; i += VF) {
        vf p = vf_sub(vf_load(x + i), m);
        a = vf_fma(p, p, a);
    }
    if (i < n) {
        float t[VF] = {0};
        for (int l = 0; l < n - i; l++) t[l] = x[i + l] - mean;
        vf p = vf_load(t);
        a = vf_fma(p, p, a);
    }
    return vf_sum(vf_add(a, b));
}

static void norm_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;
    int64_t n = j->x.cols;
    const float *gain = j->gain.data, *bias = j->bias.data;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r);
        float *y = mx_row(j->y, r);
        float mean = row_sum(x, n) / (float)n;
        float scale = 1.0f / sqrtf(row_squares(x, n, mean) / (float)n + j->eps);
        vf m = vf_set(mean), k = vf_set(scale);
        for (int64_t i = 0; i < n; i += VF) {
            vf v = vf_mul(vf_mul(vf_sub(vf_load_most(x + i, n - i), m), k), vf_load_most(gain + i, n - i));
            if (bias) v = vf_add(v, vf_load_most(bias + i, n - i));
            vf_store_most(y + i, v, n - i);
        }
    }
}

void mx_cpu_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps)
{
    norm_job j = {y, x, gain, bias, eps};
    mx_cpu_rows(s, x.rows, x.cols, norm_rows, &j);
}

static void rms_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;
    int64_t n = j->x.cols;
    const float *gain = j->gain.data;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r);
        float *y = mx_row(j->y, r);
        vf k = vf_set(1.0f / sqrtf(row_squares(x, n, 0.0f) / (float)n + j->eps));
        for (int64_t i = 0; i < n; i += VF)
            vf_store_most(y + i, vf_mul(vf_mul(vf_load_most(x + i, n - i), k), vf_load_most(gain + i, n - i)), n - i);
    }
}

void mx_cpu_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps)
{
    norm_job j = {.y = y, .x = x, .gain = gain, .eps = eps};
    mx_cpu_rows(s, x.rows, x.cols, rms_rows, &j);
}

static void add_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;        /* gain stands for b */
    for (int64_t r = first; r < last; r++) {
        const float *a = mx_row(j->x, r), *b = mx_row(j->gain, r);
        float *y = mx_row(j->y, r);
        for (int64_t i = 0, n = j->x.cols; i < n; i += VF)
            vf_store_most(y + i, vf_add(vf_load_most(a + i, n - i), vf_load_most(b + i, n - i)), n - i);
    }
}

void mx_cpu_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    norm_job j = {.y = y, .x = a, .gain = b};
    mx_cpu_rows(s, a.rows, a.cols, add_rows, &j);
}
