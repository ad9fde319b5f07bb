/* pair.c - rows compared: lengths, dot products head by head, and the loss of what they say. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>

typedef struct pair_job {
    mx_tensor y, a, b, da, db, dy;
    float     eps;
    int64_t   d;              /* channels of a head */
    bool      add, learn;
} pair_job;

static inline float dot(const float *a, const float *b, int64_t n)
{
    vf sum = vf_zero();
    for (int64_t c = 0; c < n; c += VF) sum = vf_fma(vf_load_most(a + c, n - c), vf_load_most(b + c, n - c), sum);
    return vf_sum(sum);
}

/* y = p a + q b */
static inline void blend(float *y, float p, const float *a, float q, const float *b, int64_t n)
{
    for (int64_t c = 0; c < n; c += VF)
        vf_store_most(y + c, vf_fma(vf_set(p), vf_load_most(a + c, n - c), vf_mul(vf_set(q), vf_load_most(b + c, n - c))), n - c);
}

/* ---- length one --------------------------------------------------------------------- */

static void normalize_rows(const void *ctx, int64_t first, int64_t last)
{
    const pair_job *j = ctx;
    int64_t n = j->a.cols;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->a, r);
        float *y = mx_row(j->y, r), length = sqrtf(dot(x, x, n));
        vf k = vf_set(length > j->eps ? length : j->eps);
        for (int64_t c = 0; c < n; c += VF) vf_store_most(y + c, vf_div(vf_load_most(x + c, n - c), k), n - c);
    }
}

void mx_cpu_unit_rows(mx_stream *s, mx_tensor y, mx_tensor x, float eps)
{
    pair_job j = {.y = y, .a = x, .eps = eps};
    mx_cpu_rows(s, x.rows, 2 * x.cols, normalize_rows, &j);
}

/* (dy - u (u.dy)) / |x| with u = x / |x|; shorter than eps: dy / eps */
static void normalize_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const pair_job *j = ctx;
    int64_t n = j->a.cols;
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->a, r), *dy = mx_row(j->dy, r);
        float square = dot(x, x, n), length = sqrtf(square);
        if (length > j->eps) blend(mx_row(j->da, r), 1 / length, dy, -dot(x, dy, n) / square / length, x, n);
        else blend(mx_row(j->da, r), 1 / j->eps, dy, 0, x, n);
    }
}

void mx_cpu_unit_rows_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, float eps)
{
    pair_job j = {.da = dx, .dy = dy, .a = x, .eps = eps};
    mx_cpu_rows(s, x.rows, 4 * x.cols, normalize_back_rows, &j);
}

/* ---- dot products --------------------------------------------------------------------- */

static inline const float *other(const pair_job *j, int64_t r)
{
    return mx_row(j->b, j->b.rows == 1 ? 0 : r);
}

static void dot_rows(const void *ctx, int64_t first, int64_t last)
{
    const pair_job *j = ctx;
    for (int64_t r = first; r < last; r++)
        for (int64_t h = 0; h < j->y.cols; h++) mx_row(j->y, r)[h] = dot(mx_row(j->a, r) + h * j->d, other(j, r) + h * j->d, j->d);
}

void mx_cpu_dot(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    pair_job j = {.y = y, .a = a, .b = b, .d = a.cols / y.cols};
    mx_cpu_rows(s, a.rows, a.cols, dot_rows, &j);
}

static void dot_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const pair_job *j = ctx;
    for (int64_t r = first; r < last; r++)
        for (int64_t h = 0, at = 0; h < j->dy.cols; h++, at += j->d) {
            float g = mx_row(j->dy, r)[h], *da = j->da.data ? mx_row(j->da, r) + at : NULL;
            float *db = j->db.data && j->db.rows == j->a.rows && j->b.rows != 1 ? mx_row(j->db, r) + at : NULL;
            if (da) blend(da, g, other(j, r) + at, j->add ? 1 : 0, j->add ? da : other(j, r) + at, j->d);
            if (db) blend(db, g, mx_row(j->a, r) + at, j->add ? 1 : 0, j->add ? db : mx_row(j->a, r) + at, j->d);
        }
}

/* db[1,C] += dy a, a row after the other: sixteen columns of a head are a part. */
static void shared_back_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const pair_job *j = ctx;
    int64_t groups = (j->d + VF - 1) / VF, h = part / groups, c = part % groups * VF, n = j->d - c;
    float *db = mx_row(j->db, 0) + h * j->d + c;
    vf sum = vf_load_most(db, n);
    for (int64_t r = 0; r < j->a.rows; r++) sum = vf_fma(vf_set(mx_row(j->dy, r)[h]), vf_load_most(mx_row(j->a, r) + h * j->d + c, n), sum);
    vf_store_most(db, sum, n);
}

void mx_cpu_dot_back(mx_stream *s, mx_tensor da, mx_tensor db, mx_tensor dy, mx_tensor a, mx_tensor b, bool add)
{
    pair_job j = {.da = da, .db = db, .dy = dy, .a = a, .b = b, .d = a.cols / dy.cols, .add = add};
    mx_cpu_rows(s, a.rows, 2 * a.cols, dot_back_rows, &j);
    if (db.data && b.rows == 1) mx_pool_run(s->dev->pool, dy.cols * ((j.d + VF - 1) / VF), shared_back_part, &j);
}

/* ---- the logistic loss ------------------------------------------------------------------ */

static void logistic_rows(const void *ctx, int64_t first, int64_t last)
{
    const pair_job *j = ctx;          /* a: x, b: target, eps: scale */
    for (int64_t r = first; r < last; r++) {
        float *x = mx_row(j->a, r);
        const float *target = mx_row(j->b, r);
        double sum = 0;
        for (int64_t c = 0; c < j->a.cols; c++) {
            if (target[c] < 0) {
                if (j->learn) x[c] = 0;
                continue;
            }
            double v = (double)x[c], e = exp(-fabs(v)), t = (double)target[c];
            sum += (v > 0 ? v : 0) + log1p(e) - t * v;
            if (j->learn) x[c] = (float)(((v > 0 ? 1 : e) / (1 + e) - t) * (double)j->eps);
        }
        *mx_row(j->y, r) = (float)sum;
    }
}

void mx_cpu_logistic(mx_stream *s, mx_tensor loss, mx_tensor x, mx_tensor target, float scale, bool learn)
{
    pair_job j = {.y = loss, .a = x, .b = target, .eps = scale, .learn = learn};
    mx_cpu_rows(s, x.rows, 32 * x.cols, logistic_rows, &j);
}
