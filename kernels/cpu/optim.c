/* optim.c - AdamW, and sums over whole buffers. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>
#include <stdlib.h>

#define RUN 16384             /* elements of a part */

typedef struct adamw_job {
    float *p, *m, *v;
    const float *g;
    int64_t n;
    mx_adamw_step o;
} adamw_job;

static void adamw_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const adamw_job *j = ctx;
    const mx_adamw_step o = j->o;
    float *p = j->p, *m = j->m, *v = j->v;
    const float *g = j->g;
    int64_t first = part * RUN, last = first + RUN < j->n ? first + RUN : j->n;
    float step = o.lr / o.c1, root = 1 / sqrtf(o.c2), shrink = 1 - o.lr * o.decay;
#pragma omp simd
    for (int64_t i = first; i < last; i++) {
        float d = g[i] * o.scale;
        float a = m[i] + (1 - o.beta1) * (d - m[i]), b = o.beta2 * v[i] + (1 - o.beta2) * (d * d);
        m[i] = a;
        v[i] = b;
        p[i] = p[i] * shrink - step * a / (sqrtf(b) * root + o.eps);
    }
}

void mx_cpu_adamw(mx_stream *s, mx_tensor p, mx_tensor g, mx_tensor m, mx_tensor v, mx_adamw_step o)
{
    adamw_job j = {p.data, m.data, v.data, g.data, p.cols, o};
    mx_pool_run(s->dev->pool, (j.n + RUN - 1) / RUN, adamw_part, &j);
}

/* ---- sums ---------------------------------------------------------------------------- */

typedef struct sum_job {
    mx_tensor x;
    int64_t   runs;           /* of a row */
    bool      squares;
    double   *part;           /* one of every run, added up in order */
} sum_job;

static void sum_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const sum_job *j = ctx;
    int64_t first = part % j->runs * RUN, n = j->x.cols - first < RUN ? j->x.cols - first : RUN;
    const float *x = mx_row(j->x, part / j->runs) + first;
    double a[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
#pragma omp simd
        for (int l = 0; l < 8; l++) {
            double d = (double)x[i + l];
            a[l] += j->squares ? d * d : d;
        }
    }
    for (; i < n; i++) a[i % 8] += j->squares ? (double)x[i] * (double)x[i] : (double)x[i];
    j->part[part] = ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

void mx_cpu_sum(mx_stream *s, mx_tensor sum, mx_tensor x, bool squares)
{
    if (x.stride == x.cols && x.rows > 1) x = mx_tensor_of(x.data, MX_F32, 1, x.rows * x.cols);
    sum_job j = {.x = x, .runs = (x.cols + RUN - 1) / RUN, .squares = squares};
    int64_t parts = j.runs * x.rows;
    double total = 0;
    j.part = malloc((size_t)(parts ? parts : 1) * sizeof *j.part);
    if (!j.part) {
        mx_stream_fail(s, MX_ERR_NO_MEMORY, "sum: %lld parts", (long long)parts);
        return;
    }
    mx_pool_run(s->dev->pool, parts, sum_part, &j);
    for (int64_t i = 0; i < parts; i++) total += j.part[i];
    memcpy(sum.data, &total, sizeof total);
    free(j.part);
}
