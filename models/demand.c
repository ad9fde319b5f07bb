/* demand.c - least squares with absorbed constants, and closed-form prices. */
#include "models/demand.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- least squares ------------------------------------------------------------------------- */

static mx_status check(const double *y, const double *x, const int32_t *group, int64_t n, int32_t k, int32_t n_groups, mx_error *err)
{
    if (k < 1 || k > MX_OLS_COLUMNS) return mx_fail(err, MX_ERR_ARG, "columns: %d, 1..%d are allowed", k, MX_OLS_COLUMNS);
    if (n_groups < 1 || n <= (int64_t)k + n_groups) return mx_fail(err, MX_ERR_ARG, "rows: %lld for %d coefficients and %d constants", (long long)n, k, n_groups);
    for (int64_t i = 0; i < n; i++) {
        if (group[i] < 0 || group[i] >= n_groups) return mx_fail(err, MX_ERR_ARG, "row %lld: group %d of %d", (long long)i, group[i], n_groups);
        if (!isfinite(y[i])) return mx_fail(err, MX_ERR_ARG, "row %lld: y is %g", (long long)i, y[i]);
        for (int32_t j = 0; j < k; j++)
            if (!isfinite(x[i * k + j])) return mx_fail(err, MX_ERR_ARG, "row %lld, column %d is %g", (long long)i, j, x[i * k + j]);
    }
    return MX_OK;
}

/* Means of y (column k) and of every column of x, by group: mean[n_groups][k+1]; size[n_groups]. */
static void group_means(const double *y, const double *x, const int32_t *group, int64_t n, int32_t k, int32_t n_groups, double *mean, double *size)
{
    memset(mean, 0, (size_t)n_groups * (size_t)(k + 1) * sizeof *mean);
    memset(size, 0, (size_t)n_groups * sizeof *size);
    for (int64_t i = 0; i < n; i++) {
        double *m = mean + (size_t)group[i] * (size_t)(k + 1);
        for (int32_t j = 0; j < k; j++) m[j] += x[i * k + j];
        m[k] += y[i];
        size[group[i]]++;
    }
    for (int32_t g = 0; g < n_groups; g++)
        for (int32_t j = 0; j <= k && size[g] > 0; j++) mean[(size_t)g * (size_t)(k + 1) + (size_t)j] /= size[g];
}

/* a[k][k] = L L^T in place, lower half.  Returns the column that depends on those before it, or -1. */
static int cholesky(double *a, int32_t k)
{
    for (int32_t j = 0; j < k; j++) {
        double d = a[j * k + j], whole = d;
        for (int32_t m = 0; m < j; m++) d -= a[j * k + m] * a[j * k + m];
        if (!(d > 1e-12 * whole) || !(whole > 0)) return j;
        a[j * k + j] = sqrt(d);
        for (int32_t i = j + 1; i < k; i++) {
            double s = a[i * k + j];
            for (int32_t m = 0; m < j; m++) s -= a[i * k + m] * a[j * k + m];
            a[i * k + j] = s / a[j * k + j];
        }
    }
    return -1;
}

/* x = (L L^T)^-1 b in place */
static void solve(const double *l, int32_t k, double *b)
{
    for (int32_t i = 0; i < k; i++) {
        for (int32_t j = 0; j < i; j++) b[i] -= l[i * k + j] * b[j];
        b[i] /= l[i * k + i];
    }
    for (int32_t i = k - 1; i >= 0; i--) {
        for (int32_t j = i + 1; j < k; j++) b[i] -= l[j * k + i] * b[j];
        b[i] /= l[i * k + i];
    }
}

typedef struct sums { double *mean, *size, *xx, *xy, yy, all_yy; } sums;

static void add_up(sums *s, const double *y, const double *x, const int32_t *group, int64_t n, int32_t k)
{
    double d[MX_OLS_COLUMNS + 1], grand = 0;
    for (int64_t i = 0; i < n; i++) grand += y[i] / (double)n;
    for (int64_t i = 0; i < n; i++) {
        const double *m = s->mean + (size_t)group[i] * (size_t)(k + 1);
        for (int32_t j = 0; j < k; j++) d[j] = x[i * k + j] - m[j];
        d[k] = y[i] - m[k];
        for (int32_t a = 0; a < k; a++) {
            for (int32_t b = 0; b <= a; b++) s->xx[a * k + b] += d[a] * d[b];
            s->xy[a] += d[a] * d[k];
        }
        s->yy += d[k] * d[k];
        s->all_yy += (y[i] - grand) * (y[i] - grand);
    }
}

static mx_status fit(mx_ols *m, sums *s, const double *y, const double *x, const int32_t *group, mx_error *err)
{
    int32_t k = m->k, used = 0;
    double explained = 0;
    group_means(y, x, group, m->n, k, m->n_groups, s->mean, s->size);
    add_up(s, y, x, group, m->n, k);
    int bad = cholesky(s->xx, k);
    if (bad >= 0) return mx_fail(err, MX_ERR_ARG, "column %d follows from the columns before it and the groups", bad);
    memcpy(m->beta, s->xy, (size_t)k * sizeof *m->beta);
    solve(s->xx, k, m->beta);
    for (int32_t j = 0; j < k; j++) explained += m->beta[j] * s->xy[j];
    for (int32_t g = 0; g < m->n_groups; g++) used += s->size[g] > 0;
    double residual = fmax(s->yy - explained, 0);
    m->sigma = sqrt(residual / (double)(m->n - k - used));
    m->r2 = s->all_yy > 0 ? 1 - residual / s->all_yy : 1;
    for (int32_t j = 0; j < k; j++) {
        double *column = m->covariance + (size_t)j * (size_t)k;
        memset(column, 0, (size_t)k * sizeof *column);
        column[j] = m->sigma * m->sigma;
        solve(s->xx, k, column);
        m->error[j] = sqrt(column[j]);
    }
    for (int32_t g = 0; g < m->n_groups; g++) {
        const double *mean = s->mean + (size_t)g * (size_t)(k + 1);
        m->constant[g] = mean[k];
        for (int32_t j = 0; j < k; j++) m->constant[g] -= m->beta[j] * mean[j];
    }
    return MX_OK;
}

mx_status mx_ols_fit(mx_ols *m, const double *y, const double *x, const int32_t *group, int64_t n, int32_t k, int32_t n_groups, mx_error *err)
{
    *m = (mx_ols){0};
    MX_TRY(check(y, x, group, n, k, n_groups, err));
    size_t K = (size_t)k, G = (size_t)n_groups;
    *m = (mx_ols){.k = k, .n_groups = n_groups, .n = n, .beta = calloc(2 * K + G + K * K, sizeof(double))};
    sums s = {.mean = calloc(G * (K + 1) + G + K * K + K, sizeof(double))};
    mx_status st = m->beta && s.mean ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "least squares of %d columns", k);
    if (!st) {
        m->error = m->beta + K;
        m->constant = m->error + K;
        m->covariance = m->constant + G;
        s.size = s.mean + G * (K + 1);
        s.xx = s.size + G;
        s.xy = s.xx + K * K;
        st = fit(m, &s, y, x, group, err);
    }
    free(s.mean);
    if (st) mx_ols_close(m);
    return st;
}

void mx_ols_close(mx_ols *m)
{
    free(m->beta);
    *m = (mx_ols){0};
}

double mx_ols_predict(const mx_ols *m, const double *x, int32_t group)
{
    double y = m->constant[group];
    for (int32_t j = 0; j < m->k; j++) y += m->beta[j] * x[j];
    return y;
}

double mx_ols_predict_error(const mx_ols *m, const double *x)
{
    double v = 0;
    for (int32_t i = 0; i < m->k; i++)
        for (int32_t j = 0; j < m->k; j++) v += x[i] * m->covariance[i * m->k + j] * x[j];
    return sqrt(fmax(v, 0));
}

/* ---- yardsticks --------------------------------------------------------------------------------- */

double mx_price_of_elasticity(double cost, double elasticity)
{
    return elasticity < -1 && cost > 0 ? cost * elasticity / (elasticity + 1) : NAN;
}

static double revenue(int32_t n, double lt)
{
    double term = 1, sum = 1;
    for (int32_t i = 1; i <= n; i++) sum += term *= lt / i;
    return log(sum);
}

double mx_gallego_van_ryzin(int32_t n, double t, double a, double *price)
{
    double lt = a / 2.71828182845904523536 * t, j = n > 0 ? revenue(n, lt) : 0;
    if (price) *price = n > 0 ? j - revenue(n - 1, lt) + 1 : NAN;
    return j;
}
