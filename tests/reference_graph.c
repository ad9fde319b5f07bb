/* reference_graph.c - what graphs need, in double, as its definition reads. */
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>

void ref_aggregate_max_back(double *dx, const double *dy, const double *x, const int32_t *ids, const int32_t *begin, int64_t spans,
                            int64_t c)
{
    for (int64_t s = 0; s < spans; s++)
        for (int64_t i = 0; i < c && begin[s] < begin[s + 1]; i++) {
            int32_t best = begin[s];
            for (int32_t e = begin[s]; e < begin[s + 1]; e++)
                if (x[ids[e] * c + i] > x[ids[best] * c + i]) best = e;
            dx[ids[best] * c + i] += dy[s * c + i];
        }
}

/* ---- attention -------------------------------------------------------------------------- */

static double raw(const double *src, const double *dst, int32_t u, int64_t s, int64_t h, int heads)
{
    return src[u * heads + h] + dst[s * heads + h];
}

/* The softmax of a head of a span, from p[begin[s]] on; returns the log of its sum. */
static double softmax(double *p, const double *src, const double *dst, const int32_t *ids, const int32_t *begin, int64_t s, int64_t h,
                      const mx_graph_heads *a)
{
    double most = -INFINITY, sum = 0;
    for (int32_t e = begin[s]; e < begin[s + 1]; e++) {
        double x = raw(src, dst, ids[e], s, h, a->heads);
        p[e] = x > 0 ? x : (double)a->slope * x;
        most = fmax(most, p[e]);
    }
    for (int32_t e = begin[s]; e < begin[s + 1]; e++) sum += p[e] = exp(p[e] - most);
    for (int32_t e = begin[s]; e < begin[s + 1]; e++) p[e] /= sum;
    return begin[s] < begin[s + 1] ? most + log(sum) : 0;
}

void ref_graph_attention(double *y, double *lse, const double *z, const double *src, const double *dst, const int32_t *ids,
                         const int32_t *begin, const double *keep, int64_t spans, int64_t d, const mx_graph_heads *a)
{
    int64_t c = a->heads * d;
    double *p = malloc(((size_t)begin[spans] + 1) * sizeof *p);
    for (int64_t s = 0; s < spans; s++)
        for (int64_t h = 0; h < a->heads; h++) {
            double l = softmax(p, src, dst, ids, begin, s, h, a);
            if (lse) lse[s * a->heads + h] = l;
            for (int64_t i = h * d; i < (h + 1) * d; i++) {
                y[s * c + i] = 0;
                for (int32_t e = begin[s]; e < begin[s + 1]; e++) y[s * c + i] += p[e] * keep[e * a->heads + h] * z[ids[e] * c + i];
            }
        }
    free(p);
}

void ref_graph_attention_back(double *dz, double *dsrc, double *ddst, const double *dy, const double *z, const double *src,
                              const double *dst, const int32_t *ids, const int32_t *begin, const double *keep, int64_t spans,
                              int64_t d, const mx_graph_heads *a)
{
    int64_t c = a->heads * d;
    double *p = malloc(((size_t)begin[spans] + 1) * sizeof *p), *g = malloc(((size_t)begin[spans] + 1) * sizeof *g);
    for (int64_t s = 0; s < spans; s++)
        for (int64_t h = 0; h < a->heads; h++) {
            double mean = 0;
            softmax(p, src, dst, ids, begin, s, h, a);
            for (int32_t e = begin[s]; e < begin[s + 1]; e++) {
                double k = keep[e * a->heads + h];
                g[e] = 0;
                for (int64_t i = h * d; i < (h + 1) * d; i++) {
                    g[e] += dy[s * c + i] * z[ids[e] * c + i] * k;
                    dz[ids[e] * c + i] += p[e] * k * dy[s * c + i];
                }
                mean += p[e] * g[e];
            }
            for (int32_t e = begin[s]; e < begin[s + 1]; e++) {
                double x = raw(src, dst, ids[e], s, h, a->heads), ds = p[e] * (g[e] - mean) * (x > 0 ? 1 : (double)a->slope);
                dsrc[ids[e] * a->heads + h] += ds;
                ddst[s * a->heads + h] += ds;
            }
        }
    free(p), free(g);
}

/* ---- drawing ------------------------------------------------------------------------------ */

/* Floyd's algorithm with a list of what is drawn, then sorted. */
void ref_sample_neighbours(int32_t *edge, int64_t want, int32_t node, int32_t from, int32_t to, const mx_sample_key *key)
{
    int64_t degree = to - from, n = 0;
    for (int64_t k = 0; k < want; k++) edge[k] = -1;
    for (int64_t top = degree > want ? degree - want : 0; top < degree; top++) {
        uint32_t counter[4] = {(uint32_t)node, (uint32_t)(n / 4), key->layer, key->epoch};
        uint32_t k[2] = {(uint32_t)key->seed, (uint32_t)(key->seed >> 32)}, word[4];
        ref_philox(word, counter, k);
        int32_t v = degree > want ? (int32_t)floor((double)word[n % 4] * 0x1p-32 * (double)(top + 1)) : (int32_t)top;
        for (int64_t i = 0; i < n; i++)
            if (edge[i] == from + v) v = (int32_t)top;
        edge[n++] = from + v;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = i + 1; j < n; j++)
            if (edge[j] < edge[i]) {
                int32_t t = edge[i];
                edge[i] = edge[j];
                edge[j] = t;
            }
}

/* ---- pairs ---------------------------------------------------------------------------------- */

void ref_normalize(double *y, const double *x, int64_t n, int64_t c, double eps)
{
    for (int64_t r = 0; r < n; r++) {
        double square = 0;
        for (int64_t i = 0; i < c; i++) square += x[r * c + i] * x[r * c + i];
        for (int64_t i = 0; i < c; i++) y[r * c + i] = x[r * c + i] / fmax(sqrt(square), eps);
    }
}

void ref_normalize_back(double *dx, const double *dy, const double *x, int64_t n, int64_t c, double eps)
{
    for (int64_t r = 0; r < n; r++, x += c, dy += c, dx += c) {
        double square = 0, dot = 0;
        for (int64_t i = 0; i < c; i++) square += x[i] * x[i], dot += x[i] * dy[i];
        double length = sqrt(square);
        for (int64_t i = 0; i < c; i++) dx[i] += length > eps ? dy[i] / length - x[i] * dot / (square * length) : dy[i] / eps;
    }
}

void ref_dot(double *y, const double *a, const double *b, int64_t n, int64_t heads, int64_t d, bool shared)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t h = 0; h < heads; h++) {
            y[r * heads + h] = 0;
            for (int64_t i = h * d; i < (h + 1) * d; i++) y[r * heads + h] += a[r * heads * d + i] * b[(shared ? 0 : r * heads * d) + i];
        }
}

void ref_dot_back(double *da, double *db, const double *dy, const double *a, const double *b, int64_t n, int64_t heads, int64_t d,
                  bool shared)
{
    int64_t c = heads * d;
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < c; i++) {
            da[r * c + i] += dy[r * heads + i / d] * b[(shared ? 0 : r * c) + i];
            db[(shared ? 0 : r * c) + i] += dy[r * heads + i / d] * a[r * c + i];
        }
}

void ref_logistic(double *loss, double *dx, const double *x, const double *target, int64_t n, int64_t c, double scale)
{
    for (int64_t r = 0; r < n; r++) {
        loss[r] = 0;
        for (int64_t i = r * c; i < (r + 1) * c; i++) {
            if (dx) dx[i] = 0;
            if (target[i] < 0) continue;
            double p = 1 / (1 + exp(-x[i]));
            loss[r] -= target[i] * log(p) + (1 - target[i]) * log(1 - p);
            if (dx) dx[i] = (p - target[i]) * scale;
        }
    }
}
