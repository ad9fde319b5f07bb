/* reference_learn.c - what learning adds to the truth: derivatives, losses, AdamW. */
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* d act / dx, each from the definition in reference.c */
static double slope_of(double x, mx_activation act)
{
    const double k = sqrt(2 / M_PI);
    double t, s;
    switch (act) {
    case MX_ACT_GELU_TANH:
        t = tanh(k * (x + 0.044715 * x * x * x));
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    case MX_ACT_GELU_ERF: return 0.5 * erfc(-x / sqrt(2)) + x * exp(-x * x / 2) / sqrt(2 * M_PI);
    case MX_ACT_SILU: s = 1 / (1 + exp(-x)); return s + x * s * (1 - s);
    case MX_ACT_RELU: return x > 0 ? 1 : 0;
    case MX_ACT_TANH: t = tanh(x); return 1 - t * t;
    case MX_ACT_ELU: return x > 0 ? 1 : exp(x);
    default: return 1;
    }
}

void ref_product_back(double *dx, double *dw, double *db, const double *dy, const double *x, const double *w, int64_t n,
                      int64_t c, int64_t o)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < o; j++) {
            double d = dy[r * o + j];
            for (int64_t i = 0; dx && i < c; i++) dx[r * c + i] += d * w[j * c + i];
            for (int64_t i = 0; dw && i < c; i++) dw[j * c + i] += d * x[r * c + i];
            if (db) db[j] += d;
        }
}

void ref_embed_back(double *dtable, const double *dy, const int32_t *ids, int64_t n, int64_t c)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < c; i++) dtable[ids[r] * c + i] += dy[r * c + i];
}

/* y = (x - mean) k gain, k = (var + eps)^-1/2: written out by the chain rule
 * through mean and variance, not in the folded form that kernels use */
void ref_norm_back(double *dx, double *dgain, double *dbias, const double *dy, const double *x, const double *gain,
                   int64_t n, int64_t c, double eps)
{
    for (int64_t r = 0; r < n; r++, x += c, dy += c, dx += c) {
        double mean = 0, var = 0, dk = 0, dmean = 0;
        for (int64_t i = 0; i < c; i++) mean += x[i] / (double)c;
        for (int64_t i = 0; i < c; i++) var += (x[i] - mean) * (x[i] - mean) / (double)c;
        double k = 1 / sqrt(var + eps);
        for (int64_t i = 0; i < c; i++) {
            dk += dy[i] * gain[i] * (x[i] - mean);
            dmean -= dy[i] * gain[i] * k;
            dgain[i] += dy[i] * (x[i] - mean) * k;
            if (dbias) dbias[i] += dy[i];
        }
        double dvar = -0.5 * dk * k * k * k;
        for (int64_t i = 0; i < c; i++)
            dx[i] += dy[i] * gain[i] * k + dmean / (double)c + dvar * 2 * (x[i] - mean) / (double)c;
    }
}

void ref_rms_norm_back(double *dx, double *dgain, const double *dy, const double *x, const double *gain, int64_t n,
                       int64_t c, double eps)
{
    for (int64_t r = 0; r < n; r++, x += c, dy += c, dx += c) {
        double squares = 0, dk = 0;
        for (int64_t i = 0; i < c; i++) squares += x[i] * x[i] / (double)c;
        double k = 1 / sqrt(squares + eps);
        for (int64_t i = 0; i < c; i++) {
            dk += dy[i] * gain[i] * x[i];
            dgain[i] += dy[i] * x[i] * k;
        }
        for (int64_t i = 0; i < c; i++) dx[i] += dy[i] * gain[i] * k - 0.5 * dk * k * k * k * 2 * x[i] / (double)c;
    }
}

void ref_activate_back(double *dx, const double *dy, const double *x, int64_t n, mx_activation act)
{
    for (int64_t i = 0; i < n; i++) dx[i] = dy[i] * slope_of(x[i], act);
}

void ref_gated_back(double *dgu, const double *dy, const double *gu, int64_t n, int64_t f, mx_activation act)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < f; i++) {
            double g = gu[r * 2 * f + i], u = gu[r * 2 * f + f + i], a;
            ref_activate(&a, &g, 1, act);
            dgu[r * 2 * f + i] = dy[r * f + i] * u * slope_of(g, act);
            dgu[r * 2 * f + f + i] = dy[r * f + i] * a;
        }
}

void ref_rope_back(double *dx, const int32_t *at, const float *freq, int64_t n, int heads, int64_t d, double magnitude,
                   bool interleaved)
{
    for (int64_t r = 0; r < n; r++)
        for (int h = 0; h < heads; h++, dx += d)
            for (int64_t j = 0; j < d / 2; j++) {
                float angle = (float)at[r] * freq[j];
                double c = cos((double)angle) * magnitude, s = sin((double)angle) * magnitude;
                double *a = interleaved ? &dx[2 * j] : &dx[j], *b = interleaved ? &dx[2 * j + 1] : &dx[j + d / 2];
                double u = *a, v = *b;
                *a = u * c + v * s;
                *b = v * c - u * s;
            }
}

/* ---- dropout ------------------------------------------------------------------------ */

/* Salmon et al. 2011, section 3.3 and table 2 */
void ref_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2])
{
    uint32_t c[4], k[2] = {key[0], key[1]};
    memcpy(c, counter, sizeof c);
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = 0xd2511f53ull * c[0], p1 = 0xcd9e8d57ull * c[2];
        uint32_t next[4] = {(uint32_t)(p1 >> 32) ^ c[1] ^ k[0], (uint32_t)p1, (uint32_t)(p0 >> 32) ^ c[3] ^ k[1], (uint32_t)p0};
        memcpy(c, next, sizeof c);
        k[0] += 0x9e3779b9u;
        k[1] += 0xbb67ae85u;
    }
    memcpy(out, c, sizeof c);
}

void ref_dropout(double *y, const double *x, int64_t n, int64_t c, double rate, uint64_t seed)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < c; i++) {
            uint32_t counter[4] = {(uint32_t)(i / 4), (uint32_t)r, 0, 0}, key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)}, draw[4];
            ref_philox(draw, counter, key);
            y[r * c + i] = draw[i % 4] < floor(rate * 0x1p32) ? 0 : x[r * c + i] / (1 - rate);
        }
}

/* ---- attention over packed sequences --------------------------------------------------- */

static bool sees(const mx_attention_shape *a, int64_t i, int64_t t)
{
    if (a->causal && t > i) return false;
    return a->window <= 0 || t > i - a->window;
}

/* Softmax weights p[n] of row i of a sequence of n rows; returns log of the sum. */
static double weights(double *p, const double *q, const double *k, int64_t i, int64_t n, int64_t d, int64_t pitch,
                      const mx_attention_shape *a)
{
    double max = -INFINITY, sum = 0;
    for (int64_t t = 0; t < n; t++) {
        p[t] = -INFINITY;
        if (!sees(a, i, t)) continue;
        p[t] = 0;
        for (int64_t c = 0; c < d; c++) p[t] += q[c] * k[t * pitch + c] * (double)a->scale;
        max = fmax(max, p[t]);
    }
    for (int64_t t = 0; t < n; t++) sum += p[t] = exp(p[t] - max);
    for (int64_t t = 0; t < n; t++) p[t] /= sum;
    return max + log(sum);
}

void ref_attention_packed(double *y, double *lse, const double *q, const double *k, const double *v, const int32_t *begin,
                          int64_t spans, int64_t d, const mx_attention_shape *a)
{
    int64_t wide = a->heads * d, pitch = a->kv_heads * d;
    double *p = malloc((size_t)(begin[spans] + 1) * sizeof *p);
    for (int64_t s = 0; p && s < spans; s++)
        for (int64_t i = 0, n = begin[s + 1] - begin[s]; i < n; i++)
            for (int h = 0; h < a->heads; h++) {
                int64_t r = begin[s] + i, kv = begin[s] * pitch + h / (a->heads / a->kv_heads) * d;
                lse[r * a->heads + h] = weights(p, q + r * wide + h * d, k + kv, i, n, d, pitch, a);
                for (int64_t c = 0; c < d; c++) {
                    double sum = 0;
                    for (int64_t t = 0; t < n; t++) sum += p[t] * v[kv + t * pitch + c];
                    y[r * wide + h * d + c] = sum;
                }
            }
    free(p);
}

/* dv = p dy; dp = dy v; d score = p (dp - sum(p dp)); dq, dk through the product. */
void ref_attention_packed_back(double *dq, double *dk, double *dv, const double *dy, const double *q, const double *k,
                               const double *v, const int32_t *begin, int64_t spans, int64_t d, const mx_attention_shape *a)
{
    int64_t wide = a->heads * d, pitch = a->kv_heads * d;
    double *p = malloc((size_t)(begin[spans] + 1) * sizeof *p), *dp = malloc((size_t)(begin[spans] + 1) * sizeof *dp);
    for (int64_t s = 0; p && dp && s < spans; s++)
        for (int64_t i = 0, n = begin[s + 1] - begin[s]; i < n; i++)
            for (int h = 0; h < a->heads; h++) {
                int64_t row = (begin[s] + i) * wide + h * d, kv = begin[s] * pitch + h / (a->heads / a->kv_heads) * d;
                double mean = 0;
                weights(p, q + row, k + kv, i, n, d, pitch, a);
                for (int64_t t = 0; t < n; t++) {
                    dp[t] = 0;
                    for (int64_t c = 0; c < d; c++) {
                        dp[t] += dy[row + c] * v[kv + t * pitch + c];
                        dv[kv + t * pitch + c] += p[t] * dy[row + c];
                    }
                    mean += p[t] * dp[t];
                }
                for (int64_t t = 0; t < n; t++)
                    for (int64_t c = 0; c < d; c++) {
                        double ds = p[t] * (dp[t] - mean) * (double)a->scale;
                        dq[row + c] += ds * k[kv + t * pitch + c];
                        dk[kv + t * pitch + c] += ds * q[row + c];
                    }
            }
    free(p);
    free(dp);
}

/* ---- loss and step ------------------------------------------------------------------------ */

void ref_cross_entropy(double *loss, double *dlogits, const double *logits, const int32_t *target, int64_t n, int64_t v,
                       double scale)
{
    for (int64_t r = 0; r < n; r++, logits += v) {
        double max = -INFINITY, sum = 0;
        loss[r] = 0;
        for (int64_t i = 0; dlogits && i < v; i++) dlogits[r * v + i] = 0;
        if (target[r] < 0) continue;
        for (int64_t i = 0; i < v; i++) max = fmax(max, logits[i]);
        for (int64_t i = 0; i < v; i++) sum += exp(logits[i] - max);
        loss[r] = max + log(sum) - logits[target[r]];
        for (int64_t i = 0; dlogits && i < v; i++)
            dlogits[r * v + i] = scale * (exp(logits[i] - max) / sum - (i == target[r] ? 1 : 0));
    }
}

void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, const mx_adamw_step *o)
{
    for (int64_t i = 0; i < n; i++) {
        double d = g[i] * (double)o->scale;
        m[i] = (double)o->beta1 * m[i] + (1 - (double)o->beta1) * d;
        v[i] = (double)o->beta2 * v[i] + (1 - (double)o->beta2) * d * d;
        double step = m[i] / (double)o->c1 / (sqrt(v[i] / (double)o->c2) + (double)o->eps);
        p[i] -= (double)o->lr * ((double)o->decay * p[i] + step);
    }
}
