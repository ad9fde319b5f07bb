/* graph_attention.c - softmax over the edges of a span, forward and backward.
 *
 * Sixteen heads lie in one vector, so an edge's scores are one exponential; the
 * weighted rows are added up where the output lies. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "runtime/random.h"

#include <math.h>

typedef struct heads_job {
    mx_tensor y, lse, z, src, dst, ids, begin, dy, dz, dsrc, ddst;
    mx_turned t;
    mx_graph_heads a;
    int64_t   d;              /* channels of a head */
    float     keep;           /* 1 / (1 - rate)     */
    uint32_t  limit;
} heads_job;

static inline vf leaky(const heads_job *j, vf x)
{
    return vf_positive(x, x, vf_mul(x, vf_set(j->a.slope)));
}

/* The scores of an edge, heads [h, h+n). */
static inline vf score(const heads_job *j, int64_t u, int64_t s, int64_t h, int64_t n)
{
    return vf_add(vf_load_most(mx_row(j->src, u) + h, n), vf_load_most(mx_row(j->dst, s) + h, n));
}

/* 0 or 1/(1-rate) for heads [h, h+16) of edge e, as mx_dropout() draws them; h is a multiple of 16. */
static vf kept(const heads_job *j, int64_t e, int64_t h)
{
    float k[VF];
    if (j->a.rate <= 0) return vf_set(1.0f);
    for (int i = 0; i < VF; i += 4) {
        uint32_t c[4] = {(uint32_t)((h + i) / 4), (uint32_t)e, 0, 0};
        mx_philox(c, j->a.seed);
        for (int l = 0; l < 4; l++) k[i + l] = c[l] < j->limit ? 0 : j->keep;
    }
    return vf_load(k);
}

static inline void axpy(float *y, float p, const float *x, int64_t n)
{
    for (int64_t c = 0; c < n; c += VF)
        vf_store_most(y + c, vf_fma(vf_set(p), vf_load_most(x + c, n - c), vf_load_most(y + c, n - c)), n - c);
}

static inline float dot(const float *a, const float *b, int64_t n)
{
    vf sum = vf_zero();
    for (int64_t c = 0; c < n; c += VF) sum = vf_fma(vf_load_most(a + c, n - c), vf_load_most(b + c, n - c), sum);
    return vf_sum(sum);
}

static void attend(const heads_job *j, int64_t s, int64_t h, int64_t n)
{
    int64_t from = *mx_row_i32(j->begin, s), to = *mx_row_i32(j->begin, s + 1), d = j->d;
    float *y = mx_row(j->y, s) + h * d, p[VF], total[VF];
    vf most = vf_set(-INFINITY), sum = vf_zero();
    memset(y, 0, (size_t)(n * d) * sizeof *y);
    for (int64_t e = from; e < to; e++) most = vf_max(leaky(j, score(j, *mx_row_i32(j->ids, e), s, h, n)), most);
    for (int64_t e = from; e < to; e++) {
        int64_t u = *mx_row_i32(j->ids, e);
        const float *z = mx_row(j->z, u) + h * d;
        vf w = vf_exp(vf_sub(leaky(j, score(j, u, s, h, n)), most));
        sum = vf_add(sum, w);
        vf_store(p, vf_mul(w, kept(j, e, h)));
        for (int64_t i = 0; i < n; i++) axpy(y + i * d, p[i], z + i * d, d);
    }
    vf_store(total, sum);
    vf_store(p, most);
    for (int64_t i = 0; i < n; i++) {
        mx_row(j->lse, s)[h + i] = from < to ? p[i] + logf(total[i]) : 0;
        float k = from < to ? 1 / total[i] : 0;
        for (int64_t c = 0; c < d; c += VF) vf_store_most(y + i * d + c, vf_mul(vf_load_most(y + i * d + c, d - c), vf_set(k)), d - c);
    }
}

static void attend_rows(const void *ctx, int64_t first, int64_t last)
{
    const heads_job *j = ctx;
    for (int64_t s = first; s < last; s++)
        for (int64_t h = 0; h < j->a.heads; h += VF) attend(j, s, h, j->a.heads - h < VF ? j->a.heads - h : VF);
}

static heads_job open_job(mx_graph_heads a, mx_tensor z)
{
    return (heads_job){.z = z, .a = a, .d = z.cols / a.heads, .keep = 1 / (1 - a.rate), .limit = (uint32_t)((double)a.rate * 4294967296.0)};
}

void mx_cpu_graph_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids,
                            mx_tensor begin, mx_graph_heads a)
{
    heads_job j = open_job(a, z);
    j.y = y, j.lse = lse, j.src = src, j.dst = dst, j.ids = ids, j.begin = begin;
    if (!mx_cpu_spans_sound(s, "graph_attention", begin, ids, ids.rows, z.rows)) return;
    mx_cpu_rows(s, y.rows, y.cols * (1 + 2 * ids.rows / y.rows), attend_rows, &j);
}

/* ---- backward -------------------------------------------------------------------------- */

/* With p the softmax, k the kept share, g = k dy.z and m = dy.y of a head:
 * the gradient of the edge's score is p (g - m) leaky'.  weight: p k. */
static vf edge_back(const heads_job *j, int64_t u, int64_t s, int64_t e, int64_t h, int64_t n, vf m, vf *weight)
{
    vf x = score(j, u, s, h, n), p = vf_exp(vf_sub(leaky(j, x), vf_load_most(mx_row(j->lse, s) + h, n))), k = kept(j, e, h);
    const float *z = mx_row(j->z, u) + h * j->d, *dy = mx_row(j->dy, s) + h * j->d;
    float g[VF] = {0};
    for (int64_t i = 0; i < n; i++) g[i] = dot(dy + i * j->d, z + i * j->d, j->d);
    *weight = vf_mul(p, k);
    return vf_mul(vf_mul(p, vf_sub(vf_mul(vf_load(g), k), m)), vf_positive(x, vf_set(1.0f), vf_set(j->a.slope)));
}

/* dy.y, kept in ddst until its own turn comes */
static void mean_rows(const void *ctx, int64_t first, int64_t last)
{
    const heads_job *j = ctx;
    for (int64_t s = first; s < last; s++)
        for (int64_t h = 0; h < j->a.heads; h++) mx_row(j->ddst, s)[h] = dot(mx_row(j->dy, s) + h * j->d, mx_row(j->y, s) + h * j->d, j->d);
}

static void source_rows(const void *ctx, int64_t first, int64_t last)
{
    const heads_job *j = ctx;
    for (int64_t u = first; u < last; u++)
        for (int64_t h = 0, n; h < j->a.heads; h += VF) {
            n = j->a.heads - h < VF ? j->a.heads - h : VF;
            float *dz = mx_row(j->dz, u) + h * j->d, p[VF];
            vf sum = vf_zero(), w;
            memset(dz, 0, (size_t)(n * j->d) * sizeof *dz);
            for (int64_t k = *mx_row_i32(j->t.begin, u); k < *mx_row_i32(j->t.begin, u + 1); k++) {
                int64_t s = *mx_row_i32(j->t.span, k);
                const float *dy = mx_row(j->dy, s) + h * j->d;
                sum = vf_add(sum, edge_back(j, u, s, *mx_row_i32(j->t.edge, k), h, n, vf_load_most(mx_row(j->ddst, s) + h, n), &w));
                vf_store(p, w);
                for (int64_t i = 0; i < n; i++) axpy(dz + i * j->d, p[i], dy + i * j->d, j->d);
            }
            vf_store_most(mx_row(j->dsrc, u) + h, sum, n);
        }
}

static void target_rows(const void *ctx, int64_t first, int64_t last)
{
    const heads_job *j = ctx;
    for (int64_t s = first; s < last; s++)
        for (int64_t h = 0, n; h < j->a.heads; h += VF) {
            n = j->a.heads - h < VF ? j->a.heads - h : VF;
            vf sum = vf_zero(), w, m = vf_load_most(mx_row(j->ddst, s) + h, n);
            for (int64_t e = *mx_row_i32(j->begin, s); e < *mx_row_i32(j->begin, s + 1); e++)
                sum = vf_add(sum, edge_back(j, *mx_row_i32(j->ids, e), s, e, h, n, m, &w));
            vf_store_most(mx_row(j->ddst, s) + h, sum, n);
        }
}

void mx_cpu_graph_attention_back(mx_stream *s, mx_tensor dz, mx_tensor dsrc, mx_tensor ddst, mx_tensor dy, mx_tensor y, mx_tensor lse,
                                 mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids, mx_tensor begin, mx_turned t, mx_graph_heads a)
{
    heads_job j = open_job(a, z);
    j.y = y, j.lse = lse, j.src = src, j.dst = dst, j.ids = ids, j.begin = begin;
    j.dy = dy, j.dz = dz, j.dsrc = dsrc, j.ddst = ddst, j.t = t;
    if (!mx_cpu_spans_sound(s, "graph_attention_back", begin, ids, ids.rows, z.rows) || !mx_cpu_turned_sound(s, "graph_attention_back", t, y.rows)) return;
    mx_cpu_rows(s, y.rows, y.cols, mean_rows, &j);
    mx_cpu_rows(s, z.rows, z.cols * (1 + 4 * ids.rows / z.rows), source_rows, &j);
    mx_cpu_rows(s, y.rows, z.cols * (1 + 2 * ids.rows / (y.rows ? y.rows : 1)), target_rows, &j);
}
