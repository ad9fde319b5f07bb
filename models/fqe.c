/* fqe.c - one linear system. */
#include "models/fqe.h"

#include "runtime/tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 4096 };
#define RIDGE 1e-6                /* of a step, so that a direction never seen weighs nothing */

static mx_status check(const mx_logged_step *s, size_t i, int32_t observation, int32_t actions, mx_error *err)
{
    double sum = 0, next = 0;
    if (s->action < 0 || s->action >= actions) return mx_fail(err, MX_ERR_ARG, "step %zu: action %d of %d", i, s->action, actions);
    if (!isfinite(s->reward)) return mx_fail(err, MX_ERR_ARG, "step %zu: a reward that is not finite", i);
    for (int32_t k = 0; k < observation; k++)
        if (!isfinite(s->seen[k]) || (s->next && !isfinite(s->next[k]))) return mx_fail(err, MX_ERR_ARG, "step %zu: observation %d is not finite", i, k);
    for (int32_t a = 0; a < actions; a++) sum += s->target[a], next += s->next ? s->target_next[a] : 0;
    if (fabs(sum - 1) > 1e-6 || (s->next && fabs(next - 1) > 1e-6)) return mx_fail(err, MX_ERR_ARG, "step %zu: the policy's probabilities do not add up to 1", i);
    return MX_OK;
}

/* a[k][k] x = b by elimination with pivots; b becomes x.  False: singular. */
static bool solve(double *a, double *b, size_t k)
{
    for (size_t c = 0; c < k; c++) {
        size_t p = c;
        for (size_t r = c + 1; r < k; r++)
            if (fabs(a[r * k + c]) > fabs(a[p * k + c])) p = r;
        if (!(fabs(a[p * k + c]) > 1e-12)) return false;
        for (size_t j = c; p != c && j < k; j++) {
            double t = a[p * k + j];
            a[p * k + j] = a[c * k + j];
            a[c * k + j] = t;
        }
        if (p != c) {
            double t = b[p];
            b[p] = b[c], b[c] = t;
        }
        for (size_t r = c + 1; r < k; r++) {
            double f = a[r * k + c] / a[c * k + c];
            if (f == 0) continue;
            for (size_t j = c; j < k; j++) a[r * k + j] -= f * a[c * k + j];
            b[r] -= f * b[c];
        }
    }
    for (size_t c = k; c-- > 0;) {
        for (size_t j = c + 1; j < k; j++) b[c] -= a[c * k + j] * b[j];
        b[c] /= a[c * k + c];
    }
    return true;
}

static double feature(const float *seen, size_t k)
{
    return k ? (double)seen[k - 1] : 1;
}

/* Adds a step to the system: rows of its own action, columns of all. */
static void add(double *A, double *b, const mx_logged_step *s, size_t f, int32_t actions, double discount)
{
    size_t k = f * (size_t)actions, at = f * (size_t)s->action;
    for (size_t i = 0; i < f; i++) {
        double x = feature(s->seen, i), *row = A + (at + i) * k;
        b[at + i] += x * s->reward;
        for (size_t j = 0; j < f; j++) row[at + j] += x * feature(s->seen, j);
        for (int32_t a = 0; s->next && a < actions; a++) {
            double w = discount * s->target_next[a] * x;
            for (size_t j = 0; w != 0 && j < f; j++) row[(size_t)a * f + j] -= w * feature(s->next, j);
        }
    }
}

static void value_of_starts(const mx_logged_step *steps, size_t n, const double *w, size_t f, int32_t actions, mx_fqe *out)
{
    double sum = 0, squares = 0;
    for (size_t i = 0; i < n; i++) {
        double v = 0;
        if (!steps[i].first) continue;
        for (int32_t a = 0; a < actions; a++)
            for (size_t j = 0; j < f; j++) v += steps[i].target[a] * w[(size_t)a * f + j] * feature(steps[i].seen, j);
        sum += v, squares += v * v;
        out->starts++;
    }
    double m = (double)out->starts;
    out->value = sum / m;
    out->error = m > 1 ? sqrt(fmax(0, squares / m - out->value * out->value) / (m - 1)) : 0;
}

mx_status mx_fqe_linear(const mx_logged_step *steps, size_t n, int32_t observation, int32_t actions, double discount, mx_fqe *out, mx_error *err)
{
    size_t f = (size_t)observation + 1, k, cells;
    bool any = false;
    *out = (mx_fqe){0};
    if (!n || observation < 1 || actions < 1 || !mx_mul_size(f, (size_t)actions, &k) || k > MOST || !mx_mul_size(k, k, &cells))
        return mx_fail(err, MX_ERR_ARG, "%zu steps of %d numbers and %d actions; (numbers + 1) * actions may be %d", n, observation, actions, MOST);
    if (!(discount >= 0 && discount <= 1)) return mx_fail(err, MX_ERR_ARG, "discount is %g; it must be from 0 to 1", discount);
    for (size_t i = 0; i < n; i++) {
        MX_TRY(check(&steps[i], i, observation, actions, err));
        any |= steps[i].first;
    }
    if (!any) return mx_fail(err, MX_ERR_ARG, "no step is the first of an episode");
    double *A = calloc(cells, sizeof *A), *b = calloc(k, sizeof *b);
    mx_status st = A && b ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a system of %zu equations", k);
    for (size_t i = 0; !st && i < n; i++) add(A, b, &steps[i], f, actions, discount);
    for (size_t i = 0; !st && i < k; i++) A[i * k + i] += RIDGE * (double)n;
    if (!st && !solve(A, b, k)) st = mx_fail(err, MX_ERR_STATE, "the logged steps do not determine the policy's value");
    if (!st) value_of_starts(steps, n, b, f, actions, out);
    free(A), free(b);
    return st;
}
