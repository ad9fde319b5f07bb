/* reference.c - every op in double, as its definition reads. */
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>

static double act_of(double x, mx_activation act)
{
    switch (act) {
    case MX_ACT_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case MX_ACT_GELU_ERF: return 0.5 * x * erfc(-x / sqrt(2));
    case MX_ACT_SILU: return x / (1 + exp(-x));
    case MX_ACT_RELU: return x > 0 ? x : 0;
    case MX_ACT_TANH: return tanh(x);
    case MX_ACT_ELU: return x > 0 ? x : expm1(x);
    default: return x;
    }
}

void ref_embed(double *y, const double *table, const int32_t *ids, int64_t n, int64_t c, bool add)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < c; i++) y[r * c + i] = table[ids[r] * c + i] + (add ? y[r * c + i] : 0);
}

void ref_aggregate(double *y, const double *x, const int32_t *ids, const int32_t *begin, const double *w, int64_t spans, int64_t c,
                   mx_reduce how)
{
    for (int64_t s = 0; s < spans; s++)
        for (int64_t i = 0; i < c; i++) {
            double sum = 0, most = -INFINITY;
            int32_t n = begin[s + 1] - begin[s];
            for (int32_t e = begin[s]; e < begin[s + 1]; e++) {
                double v = x[(ids ? ids[e] : e) * c + i];
                sum += w ? w[e] * v : v;
                if (v > most) most = v;
            }
            y[s * c + i] = !n ? 0 : how == MX_REDUCE_MAX ? most : how == MX_REDUCE_MEAN ? sum / n : sum;
        }
}

void ref_linear(double *y, const double *x, const double *w, const double *b, int64_t n, int64_t c, int64_t o,
                mx_activation act, bool add)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t j = 0; j < o; j++) {
            double sum = b ? b[j] : 0;
            for (int64_t i = 0; i < c; i++) sum += x[r * c + i] * w[j * c + i];
            y[r * o + j] = act_of(sum, act) + (add ? y[r * o + j] : 0);
        }
}

void ref_norm(double *y, const double *x, const double *gain, const double *bias, int64_t n, int64_t c, double eps)
{
    for (int64_t r = 0; r < n; r++, x += c, y += c) {
        double mean = 0, var = 0;
        for (int64_t i = 0; i < c; i++) mean += x[i] / (double)c;
        for (int64_t i = 0; i < c; i++) var += (x[i] - mean) * (x[i] - mean) / (double)c;
        for (int64_t i = 0; i < c; i++) y[i] = (x[i] - mean) / sqrt(var + eps) * gain[i] + (bias ? bias[i] : 0);
    }
}

void ref_rms_norm(double *y, const double *x, const double *gain, int64_t n, int64_t c, double eps)
{
    for (int64_t r = 0; r < n; r++, x += c, y += c) {
        double squares = 0;
        for (int64_t i = 0; i < c; i++) squares += x[i] * x[i] / (double)c;
        for (int64_t i = 0; i < c; i++) y[i] = x[i] / sqrt(squares + eps) * gain[i];
    }
}

void ref_activate(double *y, const double *x, int64_t n, mx_activation act)
{
    for (int64_t i = 0; i < n; i++) y[i] = act_of(x[i], act);
}

void ref_gated(double *y, const double *gu, int64_t n, int64_t f, mx_activation act)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < f; i++) y[r * f + i] = act_of(gu[r * 2 * f + i], act) * gu[r * 2 * f + f + i];
}

void ref_rope(double *x, const int32_t *at, const float *freq, int64_t n, int heads, int64_t d, double magnitude,
              bool interleaved)
{
    for (int64_t r = 0; r < n; r++)
        for (int h = 0; h < heads; h++, x += d)
            for (int64_t j = 0; j < d / 2; j++) {
                float angle = (float)at[r] * freq[j];          /* the f32 product, as the contract says */
                double c = cos((double)angle) * magnitude, s = sin((double)angle) * magnitude;
                double *a = interleaved ? &x[2 * j] : &x[j], *b = interleaved ? &x[2 * j + 1] : &x[j + d / 2];
                double u = *a, v = *b;
                *a = u * c - v * s;
                *b = v * c + u * s;
            }
}

void ref_attention(double *y, const double *q, const double *k, const double *v, int64_t length, int heads, int groups,
                   int64_t d, double scale, int64_t window)
{
    int64_t begin = window > 0 && length > window ? length - window : 0;
    for (int h = 0; h < heads; h++, q += d, y += d) {
        int g = h / (heads / groups);
        double max = -INFINITY, sum = 0;
        for (int pass = 0; pass < 2; pass++) {
            for (int64_t i = 0; pass && i < d; i++) y[i] = 0;
            for (int64_t t = begin; t < length; t++) {
                double score = 0;
                for (int64_t i = 0; i < d; i++) score += q[i] * k[(t * groups + g) * d + i];
                score *= scale;
                if (!pass) {
                    max = fmax(max, score);
                    continue;
                }
                sum += exp(score - max);
                for (int64_t i = 0; i < d; i++) y[i] += exp(score - max) * v[(t * groups + g) * d + i];
            }
        }
        for (int64_t i = 0; i < d; i++) y[i] /= sum;
    }
}

void ref_logits_process(double *x, int64_t n, int64_t v, const mx_sample_row *rows, const mx_logit_lists *l, const mx_seats *seats)
{
    for (int64_t r = 0; r < n; r++, x += v) {
        for (int32_t i = l->bias_begin ? l->bias_begin[r] : 0, e = l->bias_begin ? l->bias_begin[r + 1] : 0; i < e; i++)
            x[l->bias_id[i]] += (double)l->bias[i];
        int64_t seat = seats ? rows[r].seat : -1;
        for (int64_t i = 0; seat >= 0 && i < seats->seat[seat].n_seen; i++) {
            int32_t count = seats->seen_count[seat * seats->seen_most + i];
            double *p = &x[seats->seen_id[seat * seats->seen_most + i]], penalty = rows[r].repetition_penalty;
            *p = *p < 0 ? *p * penalty : *p / penalty;
            if (count > 0) *p -= (double)rows[r].presence_penalty + (double)rows[r].frequency_penalty * count;
        }
        for (int32_t i = l->ban_begin ? l->ban_begin[r] : 0, e = l->ban_begin ? l->ban_begin[r + 1] : 0; i < e; i++)
            x[l->ban_id[i]] = -INFINITY;
    }
}

void ref_keep(const mx_seats *t, int32_t seat, int32_t id)
{
    mx_seat *q = &t->seat[seat];
    bool known = false;
    q->last = id;
    q->length++;
    for (int32_t i = 0; i < q->n_seen; i++) {
        known |= t->seen_id[seat * t->seen_most + i] == id;
        t->seen_count[seat * t->seen_most + i] += t->seen_id[seat * t->seen_most + i] == id;
    }
    if (known || id < 0 || q->n_seen < 0 || q->n_seen == t->seen_most) return;
    t->seen_id[seat * t->seen_most + q->n_seen] = id;
    t->seen_count[seat * t->seen_most + q->n_seen++] = 1;
}

/* ---- sampling: sort everything, filter one after the other, as transformers does ---- */

typedef struct entry { double key; int32_t id; } entry;

static int falling(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->key != y->key) return x->key > y->key ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int64_t sorted(entry *e, const double *x, int64_t v, double temperature)
{
    for (int64_t i = 0; i < v; i++)
        /* temperature divides in f32, which can make equals of neighbours */
        e[i] = (entry){isnan(x[i]) ? -INFINITY : (double)(float)(x[i] / temperature), (int32_t)i};
    qsort(e, (size_t)v, sizeof *e, falling);
    int64_t n = 0;
    while (n < v && e[n].key > -INFINITY) n++;
    return n;
}

/* e^(a - top); an infinite top outweighs the rest and shares with its equals */
static double weight(double a, double top)
{
    return a == top ? 1 : exp(a - top);
}

/* Softmax of the first n, p[] sums to 1. */
static void softmax(double *p, const entry *e, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += p[i] = weight(e[i].key, e[0].key);
    for (int64_t i = 0; i < n; i++) p[i] /= sum;
}

static int64_t filter_typical(entry *e, double *p, int64_t n, double mass)
{
    entry *near = malloc((size_t)n * sizeof *near);
    double entropy = 0, run = 0;
    if (!near) return n;
    for (int64_t i = 0; i < n; i++)
        if (p[i] > 0) entropy -= p[i] * log(p[i]);
    for (int64_t i = 0; i < n; i++) near[i] = (entry){-fabs(-log(p[i]) - entropy), (int32_t)i};
    qsort(near, (size_t)n, sizeof *near, falling);
    int64_t last = 0, kept = 0;
    while (last < n && (run += p[near[last].id]) < mass) last++;
    double least = near[last < n ? last : n - 1].key;
    for (int64_t i = 0; i < n; i++)
        if (-fabs(-log(p[i]) - entropy) >= least) e[kept++] = e[i];
    free(near);
    return kept;
}

int32_t ref_sample(const double *x, int64_t v, const mx_sample_row *o)
{
    if (o->forced > 0) return (int32_t)(o->forced - 1);
    entry *e = malloc((size_t)v * sizeof *e);
    double *p = malloc((size_t)v * sizeof *p), run = 0;
    int32_t id = -1;
    if (!e || !p) goto done;
    int64_t n = sorted(e, x, v, o->temperature > 0 ? (double)o->temperature : 1.0), kept;
    if (!n) goto done;
    id = e[0].id;
    if (o->temperature <= 0) goto done;
    if (o->top_k > 0 && o->top_k < n) {
        for (kept = o->top_k; kept < n && e[kept].key == e[o->top_k - 1].key; kept++) continue;
        n = kept;
    }
    if (o->top_p < 1) {
        softmax(p, e, n);
        for (kept = 0; kept < n && (kept == 0 || run < (double)o->top_p); kept++) run += p[kept];
        n = kept;
    }
    if (o->min_p > 0) {
        softmax(p, e, n);
        for (kept = 1; kept < n && p[kept] >= (double)o->min_p * p[0]; kept++) continue;
        n = kept;
    }
    if (o->typical_p < 1) {
        softmax(p, e, n);
        n = filter_typical(e, p, n, (double)o->typical_p);
    }
    softmax(p, e, n);
    run = 0;
    for (int64_t i = 0; i < n; i++) {
        id = e[i].id;
        if ((run += p[i]) > o->uniform) break;
    }
done:
    free(p);
    free(e);
    return id;
}

void ref_logprobs(double *lp, int32_t *order, const double *x, int64_t v)
{
    entry *e = malloc((size_t)v * sizeof *e);
    if (!e) return;
    int64_t n = sorted(e, x, v, 1.0);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += weight(e[i].key, e[0].key);
    for (int64_t i = 0; i < v; i++) {
        lp[e[i].id] = i >= n ? -INFINITY : (e[i].key == e[0].key ? 0 : e[i].key - e[0].key) - log(sum);
        order[i] = e[i].id;
    }
    free(e);
}
