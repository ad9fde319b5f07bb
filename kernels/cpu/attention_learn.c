/* attention_learn.c - attention over packed sequences, forward and backward.
 *
 * A part of the work is one sequence and one KV head with its query heads, so
 * no two parts write the same row and every gradient is one chain.  Inside,
 * blocks of 64 queries meet tiles of 64 keys (Dao et al. 2022, algorithms 1 and
 * 4); each meeting is a few small products on linear's register tiles. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"

#include <math.h>

#define T        MX_PANEL     /* queries of a block, keys of a tile     */
#define HEAD_MAX 256
#define PANELS   (HEAD_MAX / MX_PANEL)

typedef struct learn_job {
    mx_tensor y, lse, q, k, v, begin, dq, dk, dv, dy;
    mx_attention_shape a;
    int64_t   d;
} learn_job;

/* c[rows,64*panels] (+)= x[rows,n] times panels of [n][64], one behind the other. */
static void multiply(int rows, const float *x, int64_t ldx, const float *panel, int64_t n, float *c, int64_t ldc, int64_t panels,
                     int64_t pitch, bool resume)
{
    for (int64_t p = 0; p < panels; p++)
        for (int r = 0, m; r < rows; r += m) {
            m = mx_tile_rows(rows - r);
            mx_gemm_f32(m, x + r * ldx, ldx, panel + p * pitch, n, c + r * ldc + p * MX_PANEL, ldc, resume);
        }
}

/* dst[d][64] = rows turned; what is beyond `rows` becomes 0. */
static void load_turned(float *dst, const float *src, int64_t stride, int rows, int64_t d)
{
    for (int r = 0; r < T; r += VF)
        for (int64_t k = 0; k < d; k += VF) {
            vf t[VF];
            UNROLL for (int l = 0; l < VF; l++) t[l] = r + l < rows ? vf_load_most(src + (r + l) * stride + k, d - k) : vf_zero();
            vf_transpose(t);
            for (int l = 0; l < VF && k + l < d; l++) vf_store(dst + (k + l) * T + r, t[l]);
        }
}

/* dst: panels of [64][64], channels beyond d and rows beyond `rows` 0. */
static void load_panels(float *dst, const float *src, int64_t stride, int rows, int64_t d)
{
    for (int64_t c = 0; c < d; c += MX_PANEL)
        for (int r = 0; r < T; r++)
            for (int64_t i = 0; i < MX_PANEL; i += VF)
                vf_store(dst + c * T + r * MX_PANEL + i, r < rows && c + i < d ? vf_load_most(src + r * stride + c + i, d - c - i) : vf_zero());
}

static void turn_square(float *dst, const float *src)
{
    for (int r = 0; r < T; r += VF)
        for (int k = 0; k < T; k += VF) {
            vf t[VF];
            UNROLL for (int l = 0; l < VF; l++) t[l] = vf_load(src + (r + l) * T + k);
            vf_transpose(t);
            UNROLL for (int l = 0; l < VF; l++) vf_store(dst + (k + l) * T + r, t[l]);
        }
}

/* Keys that query i of a sequence of n sees: [*lo, *hi). */
static void seen(const mx_attention_shape *a, int64_t i, int64_t n, int64_t *lo, int64_t *hi)
{
    *hi = a->causal ? i + 1 : n;
    *lo = a->window > 0 && i + 1 > a->window ? i + 1 - a->window : 0;
}

/* Tiles that any of queries i..i+m-1 sees: [*first, *last), as keys. */
static void tiles(const mx_attention_shape *a, int64_t i, int64_t m, int64_t n, int64_t *first, int64_t *last)
{
    int64_t lo, hi, unused;
    seen(a, i, n, &lo, &unused);
    seen(a, i + m - 1, n, &unused, &hi);
    *first = lo / T * T;
    *last = hi;
}

/* ---- forward -------------------------------------------------------------------------- */

typedef struct forward_block {
    _Alignas(64) float scores[T * T], acc[T * HEAD_MAX], key[HEAD_MAX * T], value[HEAD_MAX * T];
    float max[T], sum[T];
} forward_block;

/* Scores of one tile become weights; the running maximum and sum go on. */
static void soften(forward_block *b, const learn_job *j, int64_t i, int m, int64_t tile, int keys, int64_t n, int64_t wide)
{
    for (int r = 0; r < m; r++) {
        float *p = b->scores + r * T;
        int64_t lo, hi;
        seen(&j->a, i + r, n, &lo, &hi);
        lo = lo > tile ? lo - tile : 0;
        hi = hi < tile + keys ? hi - tile : keys;
        if (lo >= hi) {
            memset(p, 0, T * sizeof *p);
            continue;
        }
        vf most = vf_set(-INFINITY), sum = vf_zero(), scale = vf_set(j->a.scale);
        for (int t = 0; t < T; t += VF) vf_store(p + t, vf_mul(vf_load(p + t), scale));
        for (int64_t t = 0; t < lo; t++) p[t] = -INFINITY;
        for (int64_t t = hi; t < T; t++) p[t] = -INFINITY;
        for (int t = 0; t < T; t += VF) most = vf_max(vf_load(p + t), most);
        float top = vf_max_lane(most), max = top > b->max[r] ? top : b->max[r];
        for (int t = 0; t < T; t += VF) {
            vf e = vf_exp(vf_sub(vf_load(p + t), vf_set(max)));
            vf_store(p + t, e);
            sum = vf_add(sum, e);
        }
        float shrink = b->max[r] < max ? mx_exp(b->max[r] - max) : 1.0f;
        b->sum[r] = b->sum[r] * shrink + vf_sum(sum);
        b->max[r] = max;
        if (shrink != 1)
            for (int64_t c = 0; c < wide; c += VF) vf_store(b->acc + r * wide + c, vf_mul(vf_load(b->acc + r * wide + c), vf_set(shrink)));
    }
}

static void forward_queries(const learn_job *j, forward_block *b, int64_t begin, int64_t n, int64_t i, int64_t head)
{
    int64_t d = j->d, panels = (d + MX_PANEL - 1) / MX_PANEL, wide = panels * MX_PANEL;
    int64_t kv = head / (j->a.heads / j->a.kv_heads), first, last;
    int m = (int)(n - i < T ? n - i : T);
    tiles(&j->a, i, m, n, &first, &last);
    memset(b->acc, 0, (size_t)(m * wide) * sizeof *b->acc);
    for (int r = 0; r < m; r++) b->max[r] = -INFINITY, b->sum[r] = 0;
    for (int64_t t = first; t < last; t += T) {
        int keys = (int)(n - t < T ? n - t : T);
        load_turned(b->key, mx_row(j->k, begin + t) + kv * d, j->k.stride, keys, d);
        load_panels(b->value, mx_row(j->v, begin + t) + kv * d, j->v.stride, keys, d);
        multiply(m, mx_row(j->q, begin + i) + head * d, j->q.stride, b->key, d, b->scores, T, 1, 0, false);
        soften(b, j, i, m, t, keys, n, wide);
        multiply(m, b->scores, T, b->value, T, b->acc, wide, panels, T * MX_PANEL, true);
    }
    for (int r = 0; r < m; r++) {
        float *y = mx_row(j->y, begin + i + r) + head * d, inverse = 1.0f / b->sum[r];
        for (int64_t c = 0; c < d; c += VF) vf_store_most(y + c, vf_mul(vf_load(b->acc + r * wide + c), vf_set(inverse)), d - c);
        mx_row(j->lse, begin + i + r)[head] = b->max[r] + logf(b->sum[r]);
    }
}

static void forward_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const learn_job *j = ctx;
    int64_t span = part / j->a.heads, head = part % j->a.heads;
    int64_t begin = *mx_row_i32(j->begin, span), n = *mx_row_i32(j->begin, span + 1) - begin;
    forward_block b;
    for (int64_t i = 0; i < n; i += T) forward_queries(j, &b, begin, n, i, head);
}

/* begin[] rises from 0 to the number of rows. */
static bool spans_fit(mx_stream *s, const char *op, mx_tensor begin, int64_t rows, int64_t d)
{
    if (d > HEAD_MAX) {
        mx_stream_fail(s, MX_ERR_ARG, "%s: heads of %lld channels, at most %d", op, (long long)d, HEAD_MAX);
        return false;
    }
    bool ok = *mx_row_i32(begin, 0) == 0 && *mx_row_i32(begin, begin.rows - 1) == rows;
    for (int64_t i = 1; ok && i < begin.rows; i++) ok = *mx_row_i32(begin, i) >= *mx_row_i32(begin, i - 1);
    if (!ok) mx_stream_fail(s, MX_ERR_ARG, "%s: begin does not rise from 0 to %lld rows", op, (long long)rows);
    return ok;
}

void mx_cpu_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor q, mx_tensor k, mx_tensor v, mx_tensor begin,
                      mx_attention_shape a)
{
    learn_job j = {.y = y, .lse = lse, .q = q, .k = k, .v = v, .begin = begin, .a = a, .d = q.cols / a.heads};
    if (spans_fit(s, "attention", begin, q.rows, j.d)) mx_pool_run(s->dev->pool, (begin.rows - 1) * a.heads, forward_part, &j);
}

/* ---- backward --------------------------------------------------------------------------- */

typedef struct backward_block {
    _Alignas(64) float p[T * T], ds[T * T], turned[T * T];
    _Alignas(64) float key[HEAD_MAX * T], value[HEAD_MAX * T];       /* turned                  */
    _Alignas(64) float keys[HEAD_MAX * T];                           /* panels, for dq           */
    _Alignas(64) float query[HEAD_MAX * T], grad[HEAD_MAX * T];      /* panels of q and dy       */
    _Alignas(64) float dk[T * HEAD_MAX], dv[T * HEAD_MAX], dq[T * HEAD_MAX];
} backward_block;

/* p = softmax weights of queries i.. on the tile's keys; ds = p * (dp - delta) * scale. */
static void weigh(const learn_job *j, backward_block *b, int64_t begin, int64_t n, int64_t i, int m, int64_t tile, int keys, int64_t head)
{
    int64_t d = j->d;
    vf scale = vf_set(j->a.scale);
    for (int r = 0; r < m; r++) {
        float *p = b->p + r * T, *ds = b->ds + r * T;
        const float *y = mx_row(j->y, begin + i + r) + head * d, *dy = mx_row(j->dy, begin + i + r) + head * d;
        int64_t lo, hi;
        seen(&j->a, i + r, n, &lo, &hi);
        lo = lo > tile ? lo - tile : 0;
        hi = hi < tile + keys ? hi - tile : keys;
        vf delta = vf_zero(), lse = vf_set(mx_row(j->lse, begin + i + r)[head]);
        for (int64_t c = 0; c < d; c += VF) delta = vf_fma(vf_load_most(y + c, d - c), vf_load_most(dy + c, d - c), delta);
        vf sum = vf_set(vf_sum(delta));
        for (int t = 0; t < T; t += VF) vf_store(p + t, vf_exp(vf_sub(vf_mul(vf_load(p + t), scale), lse)));
        for (int64_t t = 0; t < lo && t < T; t++) p[t] = 0;
        for (int64_t t = hi > 0 ? hi : 0; t < T; t++) p[t] = 0;
        for (int t = 0; t < T; t += VF)
            vf_store(ds + t, vf_mul(vf_mul(vf_load(p + t), vf_sub(vf_load(ds + t), sum)), scale));
    }
    memset(b->p + m * T, 0, (size_t)((T - m) * T) * sizeof *b->p);
    memset(b->ds + m * T, 0, (size_t)((T - m) * T) * sizeof *b->ds);
}

/* Block of queries i.. meets the loaded tile; dk and dv go on in b, dq in memory. */
static void meet(const learn_job *j, backward_block *b, int64_t begin, int64_t n, int64_t i, int64_t tile, int keys, int64_t head)
{
    int64_t d = j->d, panels = (d + MX_PANEL - 1) / MX_PANEL, wide = panels * MX_PANEL;
    int m = (int)(n - i < T ? n - i : T);
    const float *q = mx_row(j->q, begin + i) + head * d, *dy = mx_row(j->dy, begin + i) + head * d;
    multiply(m, q, j->q.stride, b->key, d, b->p, T, 1, 0, false);
    multiply(m, dy, j->dy.stride, b->value, d, b->ds, T, 1, 0, false);
    weigh(j, b, begin, n, i, m, tile, keys, head);
    load_panels(b->query, q, j->q.stride, m, d);
    load_panels(b->grad, dy, j->dy.stride, m, d);
    turn_square(b->turned, b->p);
    multiply(keys, b->turned, T, b->grad, m, b->dv, wide, panels, T * MX_PANEL, true);
    turn_square(b->turned, b->ds);
    multiply(keys, b->turned, T, b->query, m, b->dk, wide, panels, T * MX_PANEL, true);
    for (int r = 0; r < m; r++) {
        const float *from = mx_row(j->dq, begin + i + r) + head * d;
        for (int64_t c = 0; c < wide; c += VF) vf_store(b->dq + r * wide + c, c < d ? vf_load_most(from + c, d - c) : vf_zero());
    }
    multiply(m, b->ds, T, b->keys, keys, b->dq, wide, panels, T * MX_PANEL, true);
    for (int r = 0; r < m; r++) {
        float *to = mx_row(j->dq, begin + i + r) + head * d;
        for (int64_t c = 0; c < d; c += VF) vf_store_most(to + c, vf_load(b->dq + r * wide + c), d - c);
    }
}

static void backward_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const learn_job *j = ctx;
    int64_t d = j->d, wide = (d + MX_PANEL - 1) / MX_PANEL * MX_PANEL, group = j->a.heads / j->a.kv_heads;
    int64_t span = part / j->a.kv_heads, kv = part % j->a.kv_heads;
    int64_t begin = *mx_row_i32(j->begin, span), n = *mx_row_i32(j->begin, span + 1) - begin;
    backward_block b;
    for (int64_t r = 0; r < n; r++) memset(mx_row(j->dq, begin + r) + kv * group * d, 0, (size_t)(group * d) * sizeof(float));
    for (int64_t tile = 0; tile < n; tile += T) {
        int keys = (int)(n - tile < T ? n - tile : T);
        load_turned(b.key, mx_row(j->k, begin + tile) + kv * d, j->k.stride, keys, d);
        load_turned(b.value, mx_row(j->v, begin + tile) + kv * d, j->v.stride, keys, d);
        load_panels(b.keys, mx_row(j->k, begin + tile) + kv * d, j->k.stride, keys, d);
        memset(b.dk, 0, (size_t)(T * wide) * sizeof *b.dk);
        memset(b.dv, 0, (size_t)(T * wide) * sizeof *b.dv);
        for (int64_t head = kv * group; head < (kv + 1) * group; head++)
            for (int64_t i = 0; i < n; i += T) {
                int64_t first, last;
                tiles(&j->a, i, n - i < T ? n - i : T, n, &first, &last);
                if (tile >= first && tile < last) meet(j, &b, begin, n, i, tile, keys, head);
            }
        for (int r = 0; r < keys; r++) {
            memcpy(mx_row(j->dk, begin + tile + r) + kv * d, b.dk + r * wide, (size_t)d * sizeof(float));
            memcpy(mx_row(j->dv, begin + tile + r) + kv * d, b.dv + r * wide, (size_t)d * sizeof(float));
        }
    }
}

void mx_cpu_attention_back(mx_stream *s, mx_tensor dq, mx_tensor dk, mx_tensor dv, mx_tensor dy, mx_tensor q, mx_tensor k,
                           mx_tensor v, mx_tensor y, mx_tensor lse, mx_tensor begin, mx_attention_shape a)
{
    learn_job j = {.y = y, .lse = lse, .q = q, .k = k, .v = v, .begin = begin, .dq = dq, .dk = dk, .dv = dv, .dy = dy, .a = a,
                   .d = q.cols / a.heads};
    if (spans_fit(s, "attention_back", begin, q.rows, j.d)) mx_pool_run(s->dev->pool, (begin.rows - 1) * a.kv_heads, backward_part, &j);
}
