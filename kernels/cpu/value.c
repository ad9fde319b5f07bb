/* value.c - Q-learning: the best action, dueling, temporal differences, distributions, noise. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>

static const int8_t *mask_row(mx_tensor mask, int64_t r)
{
    return mask.data ? (const int8_t *)mask.data + r * mask.stride : NULL;
}

static int32_t best_of(const float *q, const int8_t *mask, int64_t n)
{
    int32_t best = -1;
    for (int64_t a = 0; a < n; a++)
        if ((!mask || mask[a]) && (best < 0 ? !isnan(q[a]) : q[a] > q[best])) best = (int32_t)a;
    return best;
}

typedef struct argmax_job {
    mx_tensor id, q, mask;
} argmax_job;

static void argmax_rows(const void *ctx, int64_t first, int64_t last)
{
    const argmax_job *j = ctx;
    for (int64_t r = first; r < last; r++) *mx_row_i32(j->id, r) = best_of(mx_row(j->q, r), mask_row(j->mask, r), j->q.cols);
}

void mx_cpu_argmax(mx_stream *s, mx_tensor id, mx_tensor q, mx_tensor mask)
{
    argmax_job j = {id, q, mask};
    mx_cpu_rows(s, q.rows, q.cols, argmax_rows, &j);
}

/* ---- dueling ------------------------------------------------------------------------ */

typedef struct duel_job {
    mx_tensor q, va;              /* or their gradients */
    int       atoms;
} duel_job;

void mx_cpu_dueling_row(float *q, const float *va, int64_t actions, int64_t atoms)
{
    int64_t n = actions, z = atoms;
    const float *a = va + z;
    for (int64_t i = 0; i < z; i++) {
        float sum = 0;
        for (int64_t k = 0; k < n; k++) sum += a[k * z + i];
        float base = va[i] - sum / (float)n;
        for (int64_t k = 0; k < n; k++) q[k * z + i] = base + a[k * z + i];
    }
}

static void dueling_rows(const void *ctx, int64_t first, int64_t last)
{
    const duel_job *j = ctx;
    for (int64_t r = first; r < last; r++) mx_cpu_dueling_row(mx_row(j->q, r), mx_row(j->va, r), j->q.cols / j->atoms, j->atoms);
}

static void dueling_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const duel_job *j = ctx;
    int64_t z = j->atoms, n = j->q.cols / z;
    for (int64_t r = first; r < last; r++) {
        const float *dq = mx_row(j->q, r);
        float *dv = mx_row(j->va, r), *da = dv + z;
        for (int64_t i = 0; i < z; i++) {
            float sum = 0;
            for (int64_t k = 0; k < n; k++) sum += dq[k * z + i];
            dv[i] = sum;
            for (int64_t k = 0; k < n; k++) da[k * z + i] = dq[k * z + i] - sum / (float)n;
        }
    }
}

void mx_cpu_dueling(mx_stream *s, mx_tensor q, mx_tensor va, int atoms)
{
    duel_job j = {q, va, atoms};
    mx_cpu_rows(s, q.rows, 2 * va.cols, dueling_rows, &j);
}

void mx_cpu_dueling_back(mx_stream *s, mx_tensor dva, mx_tensor dq, int atoms)
{
    duel_job j = {dq, dva, atoms};
    mx_cpu_rows(s, dq.rows, 2 * dva.cols, dueling_back_rows, &j);
}

/* ---- temporal differences -------------------------------------------------------------- */

typedef struct loss_job {
    mx_tensor loss, error, q, action, next, chooser, mask, step;
    float     huber, scale, low, high;
} loss_job;

bool mx_cpu_actions_exist(mx_stream *s, const char *op, mx_tensor action, int64_t n)
{
    for (int64_t r = 0; r < action.rows; r++) {
        int32_t a = *mx_row_i32(action, r);
        if (a >= 0 && a < n) continue;
        mx_stream_fail(s, MX_ERR_ARG, "%s: action %d of row %lld is outside the %lld actions", op, a, (long long)r, (long long)n);
        return false;
    }
    return true;
}

static void td_rows(const void *ctx, int64_t first, int64_t last)
{
    const loss_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        const float *step = mx_row(j->step, r);
        float *q = mx_row(j->q, r), target = step[0];
        int32_t a = *mx_row_i32(j->action, r);
        int32_t best = step[1] != 0 ? best_of(mx_row(j->chooser, r), mask_row(j->mask, r), j->chooser.cols) : -1;
        if (best >= 0) target += step[1] * mx_row(j->next, r)[best];
        float d = q[a] - target, size = fabsf(d), h = j->huber;
        *mx_row(j->error, r) = size;
        *mx_row(j->loss, r) = step[2] * (size <= h ? 0.5f * d * d : h * (size - 0.5f * h));
        memset(q, 0, (size_t)j->q.cols * sizeof *q);
        q[a] = step[2] * j->scale * (size <= h ? d : copysignf(h, d));
    }
}

void mx_cpu_td_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor q, mx_tensor action, mx_tensor next, mx_tensor chooser,
                    mx_tensor mask, mx_tensor step, float huber, float scale)
{
    loss_job j = {.loss = loss, .error = error, .q = q, .action = action, .next = next, .chooser = chooser, .mask = mask, .step = step,
                  .huber = huber, .scale = scale};
    if (mx_cpu_actions_exist(s, "td_loss", action, q.cols)) mx_cpu_rows(s, q.rows, 3 * q.cols, td_rows, &j);
}

/* ---- distributions ----------------------------------------------------------------------- */

enum { ATOMS = 512 };

/* p = softmax(x); the logarithm of the sum of exp(x - max) and the max */
static float softmax(float *p, const float *x, int64_t n, float *max)
{
    float sum = 0;
    *max = x[0];
    for (int64_t i = 1; i < n; i++) *max = x[i] > *max ? x[i] : *max;
    for (int64_t i = 0; i < n; i++) sum += p[i] = mx_exp(x[i] - *max);
    for (int64_t i = 0; i < n; i++) p[i] /= sum;
    return logf(sum);
}

static void value_rows(const void *ctx, int64_t first, int64_t last)
{
    const loss_job *j = ctx;
    int64_t n = j->q.cols, z = j->next.cols / n;
    float p[ATOMS], max, gap = (j->high - j->low) / (float)(z - 1);
    for (int64_t r = first; r < last; r++)
        for (int64_t a = 0; a < n; a++) {
            float sum = 0;
            softmax(p, mx_row(j->next, r) + a * z, z, &max);
            for (int64_t i = 0; i < z; i++) sum += p[i] * (j->low + gap * (float)i);
            mx_row(j->q, r)[a] = sum;
        }
}

void mx_cpu_atoms_value(mx_stream *s, mx_tensor q, mx_tensor logits, float low, float high)
{
    loss_job j = {.q = q, .next = logits, .low = low, .high = high};
    mx_cpu_rows(s, q.rows, 8 * logits.cols, value_rows, &j);
}

/* m[z] = the target's distribution on the atoms: p[i] goes to the two atoms beside
 * reward + discount * atom i, the nearer one getting more. */
static void project(float *m, const float *p, int64_t z, float reward, float discount, float low, float high)
{
    float gap = (high - low) / (float)(z - 1);
    memset(m, 0, (size_t)z * sizeof *m);
    for (int64_t i = 0; i < z; i++) {
        float at = (fminf(fmaxf(reward + discount * (low + gap * (float)i), low), high) - low) / gap;
        int64_t lower = (int64_t)at;
        if (lower > z - 1) lower = z - 1;
        float part = at - (float)lower;
        m[lower] += p[i] * (1 - part);
        if (lower + 1 < z) m[lower + 1] += p[i] * part;
    }
}

static void atoms_rows(const void *ctx, int64_t first, int64_t last)
{
    const loss_job *j = ctx;
    int64_t n = j->chooser.cols, z = j->next.cols / n;
    float p[ATOMS], m[ATOMS], max;
    for (int64_t r = first; r < last; r++) {
        const float *step = mx_row(j->step, r);
        float *all = mx_row(j->q, r), *x = all + *mx_row_i32(j->action, r) * z, error = 0;
        int32_t best = step[1] != 0 ? best_of(mx_row(j->chooser, r), mask_row(j->mask, r), n) : -1;
        if (best >= 0) softmax(p, mx_row(j->next, r) + best * z, z, &max);
        else for (int64_t i = 0; i < z; i++) p[i] = i == 0;
        project(m, p, z, step[0], best >= 0 ? step[1] : 0, j->low, j->high);
        float log_sum = softmax(p, x, z, &max);
        for (int64_t i = 0; i < z; i++) error += m[i] * (log_sum - (x[i] - max));
        *mx_row(j->error, r) = error;
        *mx_row(j->loss, r) = step[2] * error;
        memset(all, 0, (size_t)j->q.cols * sizeof *all);
        for (int64_t i = 0; i < z; i++) x[i] = step[2] * j->scale * (p[i] - m[i]);
    }
}

void mx_cpu_atoms_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor logits, mx_tensor action, mx_tensor next,
                       mx_tensor chooser, mx_tensor mask, mx_tensor step, float low, float high, float scale)
{
    loss_job j = {.loss = loss, .error = error, .q = logits, .action = action, .next = next, .chooser = chooser, .mask = mask, .step = step,
                  .low = low, .high = high, .scale = scale};
    if (mx_cpu_actions_exist(s, "atoms_loss", action, chooser.cols))
        mx_cpu_rows(s, logits.rows, 24 * logits.cols / chooser.cols, atoms_rows, &j);
}

/* ---- noise -------------------------------------------------------------------------------- */

typedef struct noise_job {
    mx_tensor w, mean, spread, out, in;
} noise_job;

static void noisy_rows(const void *ctx, int64_t first, int64_t last)
{
    const noise_job *j = ctx;
    const float *in = j->in.data;
    for (int64_t r = first; r < last; r++) {
        float *w = mx_row(j->w, r), e = ((const float *)j->out.data)[r];
        const float *m = mx_row(j->mean, r), *d = mx_row(j->spread, r);
#pragma omp simd
        for (int64_t i = 0; i < j->w.cols; i++) w[i] = m[i] + d[i] * (e * in[i]);
    }
}

static void noisy_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const noise_job *j = ctx;
    const float *in = j->in.data;
    for (int64_t r = first; r < last; r++) {
        const float *dw = mx_row(j->w, r);
        float *m = mx_row(j->mean, r), *d = mx_row(j->spread, r), e = ((const float *)j->out.data)[r];
#pragma omp simd
        for (int64_t i = 0; i < j->w.cols; i++) {
            m[i] += dw[i];
            d[i] += dw[i] * (e * in[i]);
        }
    }
}

void mx_cpu_noisy(mx_stream *s, mx_tensor w, mx_tensor mean, mx_tensor spread, mx_tensor out, mx_tensor in)
{
    noise_job j = {w, mean, spread, out, in};
    mx_cpu_rows(s, w.rows, w.cols, noisy_rows, &j);
}

void mx_cpu_noisy_back(mx_stream *s, mx_tensor dmean, mx_tensor dspread, mx_tensor dw, mx_tensor out, mx_tensor in)
{
    noise_job j = {dw, dmean, dspread, out, in};
    mx_cpu_rows(s, dw.rows, dw.cols, noisy_back_rows, &j);
}
