/* loss.c - cross-entropy and its gradient, dropout. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "runtime/random.h"

#include <math.h>

typedef struct loss_job {
    mx_tensor loss, logits, target;
    float     scale;
    bool      learn;
} loss_job;

/* Sums of 1024 values are added up in double, so that the loss of a large
 * vocabulary is as exact as that of a small one. */
#define RUN 1024

static double exp_sum(const float *x, int64_t n, float max)
{
    double sum = 0;
    for (int64_t b = 0; b < n; b += RUN) {
        int64_t end = n - b < RUN ? n : b + RUN, i = b;
        vf acc = vf_zero(), m = vf_set(max);
        for (; i + VF <= end; i += VF) acc = vf_add(acc, vf_exp(vf_sub(vf_load(x + i), m)));
        sum += (double)vf_sum(acc);
        for (; i < end; i++) sum += (double)mx_exp(x[i] - max);
    }
    return sum;
}

static void loss_rows(const void *ctx, int64_t first, int64_t last)
{
    const loss_job *j = ctx;
    int64_t n = j->logits.cols;
    for (int64_t r = first; r < last; r++) {
        float *x = mx_row(j->logits, r);
        int32_t target = *mx_row_i32(j->target, r);
        if (target < 0) {
            *mx_row(j->loss, r) = 0;
            if (j->learn) memset(x, 0, (size_t)n * sizeof *x);
            continue;
        }
        float max = x[0];
        for (int64_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
        double sum = exp_sum(x, n, max);
        *mx_row(j->loss, r) = (float)(log(sum) - (double)(x[target] - max));
        if (!j->learn) continue;
        vf m = vf_set(max), k = vf_set((float)(1.0 / sum) * j->scale);
        for (int64_t i = 0; i < n; i += VF) vf_store_most(x + i, vf_mul(vf_exp(vf_sub(vf_load_most(x + i, n - i), m)), k), n - i);
        x[target] -= j->scale;
    }
}

void mx_cpu_cross_entropy(mx_stream *s, mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn)
{
    for (int64_t r = 0; r < logits.rows; r++) {
        int32_t t = *mx_row_i32(target, r);
        if (t < logits.cols) continue;
        mx_stream_fail(s, MX_ERR_ARG, "cross_entropy: target %d of row %lld is outside the %lld classes", t, (long long)r,
                       (long long)logits.cols);
        return;
    }
    loss_job j = {loss, logits, target, scale, learn};
    mx_cpu_rows(s, logits.rows, 8 * logits.cols, loss_rows, &j);
}

/* ---- dropout ------------------------------------------------------------------------- */

typedef struct drop_job {
    mx_tensor y, x;
    float     keep;               /* 1 / (1 - rate)                          */
    uint32_t  limit;              /* kept where the draw is not below it     */
    uint64_t  seed;
} drop_job;

static void drop_rows(const void *ctx, int64_t first, int64_t last)
{
    const drop_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r);
        float *y = mx_row(j->y, r);
        for (int64_t i = 0; i < j->x.cols; i += 4) {
            uint32_t c[4] = {(uint32_t)(i / 4), (uint32_t)r, 0, 0};
            mx_philox(c, j->seed);
            for (int64_t l = 0; l < 4 && i + l < j->x.cols; l++) y[i + l] = c[l] < j->limit ? 0 : x[i + l] * j->keep;
        }
    }
}

void mx_cpu_dropout(mx_stream *s, mx_tensor y, mx_tensor x, float rate, uint64_t seed)
{
    drop_job j = {y, x, 1 / (1 - rate), (uint32_t)((double)rate * 4294967296.0), seed};
    mx_cpu_rows(s, x.rows, 16 * x.cols, drop_rows, &j);
}
