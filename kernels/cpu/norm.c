/* norm.c - layer norm, RMS norm, the residual sum; forward and backward. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <stdlib.h>

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

static void norm_row(float *y, const float *x, int64_t n, const float *gain, const float *bias, float eps)
{
    float mean = row_sum(x, n) / (float)n;
    float scale = 1.0f / sqrtf(row_squares(x, n, mean) / (float)n + eps);
    vf m = vf_set(mean), k = vf_set(scale);
    for (int64_t i = 0; i < n; i += VF) {
        vf v = vf_mul(vf_mul(vf_sub(vf_load_most(x + i, n - i), m), k), vf_load_most(gain + i, n - i));
        if (bias) v = vf_add(v, vf_load_most(bias + i, n - i));
        vf_store_most(y + i, v, n - i);
    }
}

static void norm_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;
    for (int64_t r = first; r < last; r++) norm_row(mx_row(j->y, r), mx_row(j->x, r), j->x.cols, j->gain.data, j->bias.data, j->eps);
}

void mx_cpu_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps)
{
    norm_job j = {y, x, gain, bias, eps};
    mx_cpu_rows(s, x.rows, x.cols, norm_rows, &j);
}

static void rms_row(float *y, const float *x, int64_t n, const float *gain, float eps)
{
    vf k = vf_set(1.0f / sqrtf(row_squares(x, n, 0.0f) / (float)n + eps));
    for (int64_t i = 0; i < n; i += VF)
        vf_store_most(y + i, vf_mul(vf_mul(vf_load_most(x + i, n - i), k), vf_load_most(gain + i, n - i)), n - i);
}

static void rms_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;
    for (int64_t r = first; r < last; r++) rms_row(mx_row(j->y, r), mx_row(j->x, r), j->x.cols, j->gain.data, j->eps);
}

void mx_cpu_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps)
{
    norm_job j = {.y = y, .x = x, .gain = gain, .eps = eps};
    mx_cpu_rows(s, x.rows, x.cols, rms_rows, &j);
}

static void add_row(float *y, const float *a, const float *b, int64_t n)
{
    for (int64_t i = 0; i < n; i += VF) vf_store_most(y + i, vf_add(vf_load_most(a + i, n - i), vf_load_most(b + i, n - i)), n - i);
}

static void add_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;        /* gain stands for b */
    for (int64_t r = first; r < last; r++) add_row(mx_row(j->y, r), mx_row(j->x, r), mx_row(j->gain, r), j->x.cols);
}

void mx_cpu_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    norm_job j = {.y = y, .x = a, .gain = b};
    mx_cpu_rows(s, a.rows, a.cols, add_rows, &j);
}

typedef struct add_norm_job {
    norm_job norm;                  /* x is the sum */
    mx_tensor a, b;
    bool rms;
} add_norm_job;

/* A row is added up and normalised while the cache has it. */
static void add_norm_rows(const void *ctx, int64_t first, int64_t last)
{
    const add_norm_job *j = ctx;
    const norm_job *k = &j->norm;
    for (int64_t r = first; r < last; r++) {
        float *sum = mx_row(k->x, r);
        add_row(sum, mx_row(j->a, r), mx_row(j->b, r), k->x.cols);
        if (j->rms) rms_row(mx_row(k->y, r), sum, k->x.cols, k->gain.data, k->eps);
        else norm_row(mx_row(k->y, r), sum, k->x.cols, k->gain.data, k->bias.data, k->eps);
    }
}

void mx_cpu_add_norm(mx_stream *s, mx_tensor y, mx_tensor sum, mx_tensor a, mx_tensor b, mx_tensor gain, mx_tensor bias, float eps, bool rms)
{
    add_norm_job j = {{y, sum, gain, bias, eps}, a, b, rms};
    mx_cpu_rows(s, a.rows, 2 * a.cols, add_norm_rows, &j);
}

static void scale_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;        /* eps stands for the factor */
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r);
        float *y = mx_row(j->y, r);
        for (int64_t i = 0, n = j->x.cols; i < n; i += VF) vf_store_most(y + i, vf_mul(vf_load_most(x + i, n - i), vf_set(j->eps)), n - i);
    }
}

void mx_cpu_scale(mx_stream *s, mx_tensor y, mx_tensor x, float factor)
{
    norm_job j = {.y = y, .x = x, .eps = factor};
    mx_cpu_rows(s, x.rows, x.cols, scale_rows, &j);
}

static void cast_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r);
        uint16_t *h = (uint16_t *)j->y.data + r * j->y.stride;
        if (j->y.dtype == MX_F32) memcpy(mx_row(j->y, r), x, (size_t)j->x.cols * sizeof *x);
        else if (j->y.dtype == MX_BF16)
#pragma omp simd
            for (int64_t i = 0; i < j->x.cols; i++) h[i] = mx_f32_to_bf16(x[i]);
        else
            for (int64_t i = 0; i < j->x.cols; i++) h[i] = mx_f32_to_f16(x[i]);
    }
}

void mx_cpu_cast(mx_stream *s, mx_tensor y, mx_tensor x)
{
    norm_job j = {.y = y, .x = x};
    mx_cpu_rows(s, x.rows, x.cols, cast_rows, &j);
}

/* ---- backward --------------------------------------------------------------------- */

#define COLUMNS 64            /* of a part that sums over rows */

typedef struct norm_back_job {
    mx_tensor dx, dgain, dbias, dy, x, gain;
    float     eps;
    bool      rms, add;
    float    *stats;          /* [N,2]: mean and 1/deviation of every row */
} norm_back_job;

/* With n = (x - mean) / deviation and g = dy * gain:
 * dx = (g - mean(g) - n * mean(g * n)) / deviation; RMS norm has no mean. */
static void norm_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const norm_back_job *j = ctx;
    int64_t n = j->x.cols;
    const float *gain = j->gain.data;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r), *dy = mx_row(j->dy, r);
        float mean = j->rms ? 0.0f : row_sum(x, n) / (float)n;
        float scale = 1.0f / sqrtf(row_squares(x, n, mean) / (float)n + j->eps);
        j->stats[2 * r] = mean;
        j->stats[2 * r + 1] = scale;
        if (!j->dx.data) continue;
        float *dx = mx_row(j->dx, r);
        vf m = vf_set(mean), k = vf_set(scale), sum = vf_zero(), dot = vf_zero();
        for (int64_t i = 0; i < n; i += VF) {
            vf g = vf_mul(vf_load_most(dy + i, n - i), vf_load_most(gain + i, n - i));
            sum = vf_add(sum, g);
            dot = vf_fma(g, vf_mul(vf_sub(vf_load_most(x + i, n - i), m), k), dot);
        }
        vf mg = vf_set(j->rms ? 0.0f : vf_sum(sum) / (float)n), mgn = vf_set(vf_sum(dot) / (float)n);
        for (int64_t i = 0; i < n; i += VF) {
            vf g = vf_mul(vf_load_most(dy + i, n - i), vf_load_most(gain + i, n - i));
            vf normed = vf_mul(vf_sub(vf_load_most(x + i, n - i), m), k);
            vf d = vf_mul(vf_sub(vf_sub(g, mg), vf_mul(normed, mgn)), k);
            if (j->add) d = vf_add(d, vf_load_most(dx + i, n - i));
            vf_store_most(dx + i, d, n - i);
        }
    }
}

/* Gains and biases of 64 channels: a sum over all rows in order. */
static void norm_back_columns(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const norm_back_job *j = ctx;
    int64_t c = part * COLUMNS, n = j->x.cols - c < COLUMNS ? j->x.cols - c : COLUMNS;
    float gain[COLUMNS] = {0}, bias[COLUMNS] = {0};
    for (int64_t r = 0; r < j->x.rows; r++) {
        const float *x = mx_row(j->x, r) + c, *dy = mx_row(j->dy, r) + c;
        float mean = j->stats[2 * r], scale = j->stats[2 * r + 1];
#pragma omp simd
        for (int64_t i = 0; i < n; i++) {
            gain[i] += dy[i] * ((x[i] - mean) * scale);
            bias[i] += dy[i];
        }
    }
    for (int64_t i = 0; i < n && j->dgain.data; i++) ((float *)j->dgain.data)[c + i] += gain[i];
    for (int64_t i = 0; i < n && j->dbias.data; i++) ((float *)j->dbias.data)[c + i] += bias[i];
}

static void norm_back(mx_stream *s, norm_back_job *j)
{
    j->stats = malloc((size_t)j->x.rows * 2 * sizeof *j->stats);
    if (!j->stats) {
        mx_stream_fail(s, MX_ERR_NO_MEMORY, "norm_back: %lld rows", (long long)j->x.rows);
        return;
    }
    mx_cpu_rows(s, j->x.rows, 2 * j->x.cols, norm_back_rows, j);
    if (j->dgain.data || j->dbias.data) mx_pool_run(s->dev->pool, (j->x.cols + COLUMNS - 1) / COLUMNS, norm_back_columns, j);
    free(j->stats);
}

void mx_cpu_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dbias, mx_tensor dy, mx_tensor x, mx_tensor gain,
                      float eps, bool add)
{
    norm_back(s, &(norm_back_job){.dx = dx, .dgain = dgain, .dbias = dbias, .dy = dy, .x = x, .gain = gain, .eps = eps, .add = add});
}

void mx_cpu_rms_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dy, mx_tensor x, mx_tensor gain, float eps, bool add)
{
    norm_back(s, &(norm_back_job){.dx = dx, .dgain = dgain, .dy = dy, .x = x, .gain = gain, .eps = eps, .rms = true, .add = add});
}
