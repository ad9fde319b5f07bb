/* attention.c - the paged KV cache, and attention over it.
 *
 * A part of the work is a few consecutive rows times some query heads of one
 * KV head.  It walks the cache in tiles (a page, or 64 tokens of a larger
 * one) counted from position 0 and keeps a running softmax per row and head
 * (Dao et al. 2022), so neighbouring rows of one sequence and the heads of one
 * group read a tile while it is in the first-level cache.  What a row computes
 * depends on its own position and the tile grid alone. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>

#define TILE       64         /* tokens whose scores stand on the stack       */
#define PART_ROWS  16
#define HEAD_MAX   512        /* channels of a head that the accumulators hold */

/* ---- writing ------------------------------------------------------------------ */

typedef struct kv_job {
    const mx_kv *kv;
    mx_tensor k, v, slots;
} kv_job;

static void *kv_at(const mx_kv *kv, void *base, int64_t page, int64_t head, int64_t offset)
{
    int64_t index = ((page * kv->kv_heads + head) * kv->page_tokens + offset) * kv->head_dim;
    return (char *)base + (size_t)index * mx_dtype_size(kv->dtype);
}

static void store(void *dst, const float *src, mx_dtype type, int64_t n)
{
    uint16_t *h = dst;
    if (type == MX_F32) memcpy(dst, src, (size_t)n * sizeof *src);
    else if (type == MX_BF16)
        for (int64_t i = 0; i < n; i++) h[i] = mx_f32_to_bf16(src[i]);
    else
        for (int64_t i = 0; i < n; i++) h[i] = mx_f32_to_f16(src[i]);
}

static void write_rows(const void *ctx, int64_t first, int64_t last)
{
    const kv_job *j = ctx;
    const mx_kv *kv = j->kv;
    for (int64_t r = first; r < last; r++) {
        int32_t slot = *mx_row_i32(j->slots, r);
        int64_t page = slot / kv->page_tokens, offset = slot % kv->page_tokens, d = kv->head_dim;
        for (int64_t g = 0; g < kv->kv_heads; g++) {
            store(kv_at(kv, kv->k, page, g, offset), mx_row(j->k, r) + g * d, kv->dtype, d);
            store(kv_at(kv, kv->v, page, g, offset), mx_row(j->v, r) + g * d, kv->dtype, d);
        }
    }
}

void mx_cpu_kv_write(mx_stream *s, const mx_kv *kv, mx_tensor k, mx_tensor v, mx_tensor slots)
{
    int64_t end = (int64_t)kv->pages * kv->page_tokens;
    for (int64_t r = 0; r < k.rows; r++) {
        int32_t slot = *mx_row_i32(slots, r);
        if (slot < 0 || slot >= end) {
            mx_stream_fail(s, MX_ERR_ARG, "kv_write: slot %d of row %lld is outside the cache's %lld", slot, (long long)r,
                           (long long)end);
            return;
        }
    }
    kv_job j = {kv, k, v, slots};
    mx_cpu_rows(s, k.rows, 2 * k.cols, write_rows, &j);
}

void mx_cpu_kv_copy(mx_stream *s, const mx_kv *kv, mx_tensor from_to)
{
    size_t page = (size_t)kv->kv_heads * (size_t)kv->page_tokens * (size_t)kv->head_dim * mx_dtype_size(kv->dtype);
    for (int64_t r = 0; r < from_to.rows; r++) {
        const int32_t *p = mx_row_i32(from_to, r);
        if (p[0] < 0 || p[0] >= kv->pages || p[1] < 0 || p[1] >= kv->pages) {
            mx_stream_fail(s, MX_ERR_ARG, "kv_copy: page %d to %d of %d", p[0], p[1], kv->pages);
            return;
        }
        if (p[0] == p[1]) continue;
        memcpy((char *)kv->k + (size_t)p[1] * page, (char *)kv->k + (size_t)p[0] * page, page);
        memcpy((char *)kv->v + (size_t)p[1] * page, (char *)kv->v + (size_t)p[0] * page, page);
    }
}

/* ---- attending ------------------------------------------------------------------ */

typedef struct attention_job {
    const mx_kv *kv;
    mx_tensor y, q, pages, at;
    int   heads, window;
    float scale;
    int64_t rows_step, head_step, splits;     /* a part: rows_step rows, head_step heads of a KV head */
} attention_job;

/* The running softmax of one row and head. */
typedef struct running {
    float max, sum;
} running;

MX_INLINE vf load_kv(const void *p, int64_t i, const mx_dtype type)
{
    if (type == MX_F32) return vf_load((const float *)p + i);
    if (type == MX_BF16) return vf_from_bf16((const uint16_t *)p + i);
    return vf_from_f16((const uint16_t *)p + i);
}

/* n < 16 values, the rest 0 */
static vf load_kv_tail(const void *p, int64_t i, int64_t n, mx_dtype type)
{
    float t[VF] = {0};
    const uint16_t *h = (const uint16_t *)p + i;
    for (int64_t l = 0; l < n; l++)
        t[l] = type == MX_F32 ? ((const float *)p)[i + l] : type == MX_BF16 ? mx_bf16_to_f32(h[l]) : mx_f16_to_f32(h[l]);
    return vf_load(t);
}

/* score[t] = q . k[t] for t in lo..hi-1 */
MX_INLINE void scores_of(const float *q, const char *k, int64_t d, int lo, int hi, const mx_dtype type, float *score)
{
    size_t pitch = (size_t)d * (type == MX_F32 ? 4 : 2);
    int64_t whole = d / VF * VF;
    for (int t = lo; t < hi; t++) {
        const char *kt = k + (size_t)t * pitch;
        vf a = vf_zero();
        for (int64_t i = 0; i < whole; i += VF) a = vf_fma(vf_load(q + i), load_kv(kt, i, type), a);
        if (whole < d) a = vf_fma(vf_load_n(q + whole, (int)(d - whole)), load_kv_tail(kt, whole, d - whole, type), a);
        score[t] = vf_sum(a);
    }
}

/* acc[0:d] = acc * shrink + sum of p[t] * v[t], 64 channels at a time in registers */
MX_INLINE void values_of(float *acc, float shrink, const float *p, const char *v, int64_t d, int lo, int hi,
                         const mx_dtype type)
{
    size_t pitch = (size_t)d * (type == MX_F32 ? 4 : 2);
    int64_t i = 0;
    for (; i + 4 * VF <= d; i += 4 * VF) {
        vf s = vf_set(shrink), a[4];
        for (int c = 0; c < 4; c++) a[c] = vf_mul(vf_load(acc + i + c * VF), s);
        for (int t = lo; t < hi; t++) {
            vf pt = vf_set(p[t]);
            for (int c = 0; c < 4; c++) a[c] = vf_fma(pt, load_kv(v + (size_t)t * pitch, i + c * VF, type), a[c]);
        }
        for (int c = 0; c < 4; c++) vf_store(acc + i + c * VF, a[c]);
    }
    for (; i < d; i += VF) {
        vf a = vf_mul(vf_load_most(acc + i, d - i), vf_set(shrink));
        for (int t = lo; t < hi; t++) {
            const char *vt = v + (size_t)t * pitch;
            a = vf_fma(vf_set(p[t]), d - i >= VF ? load_kv(vt, i, type) : load_kv_tail(vt, i, d - i, type), a);
        }
        vf_store_most(acc + i, a, d - i);
    }
}

/* Take tokens lo..hi-1 of a tile into one row's running softmax. */
MX_INLINE void take_tile(running *run, float *acc, const float *q, const char *k, const char *v, int64_t d, int lo,
                         int hi, const mx_dtype type)
{
    float p[TILE];
    for (int t = 0; t < TILE; t++) p[t] = -INFINITY;
    scores_of(q, k, d, lo, hi, type, p);
    vf m = vf_set(-INFINITY);
    int used = (hi + VF - 1) / VF * VF;
    for (int t = 0; t < used; t += VF) m = vf_max(vf_load(p + t), m);
    float top = vf_max_lane(m), max = top > run->max ? top : run->max;
    float shrink = run->max == max ? 1.0f : mx_exp(run->max - max);
    vf sum = vf_zero(), mv = vf_set(max);
    for (int t = 0; t < used; t += VF) {
        vf e = vf_exp(vf_sub(vf_load(p + t), mv));
        vf_store(p + t, e);
        sum = vf_add(sum, e);
    }
    run->sum = run->sum * shrink + vf_sum(sum);
    run->max = max;
    values_of(acc, shrink, p, v, d, lo, hi, type);
}

/* Rows first..last-1 of one sequence, heads h..h+n-1, all of one KV head. */
MX_INLINE void attend(const attention_job *j, int64_t first, int64_t last, int64_t group, int64_t h, int64_t n,
                      const mx_dtype type)
{
    const mx_kv *kv = j->kv;
    int64_t d = kv->head_dim;
    running run[PART_ROWS];
    float q[HEAD_MAX], acc[HEAD_MAX];
    (void)run;
    for (int64_t head = h; head < h + n; head++)
        for (int64_t r = first; r < last; r++) {
            const int32_t *at = mx_row_i32(j->at, r);
            const int32_t *pages = mx_row_i32(j->pages, at[0]);
            int64_t end = (int64_t)at[1] + 1, begin = j->window > 0 && end > j->window ? end - j->window : 0;
            running one = {-INFINITY, 0};
            const float *src = mx_row(j->q, r) + head * d;
            for (int64_t i = 0; i < d; i++) {
                q[i] = src[i] * j->scale;
                acc[i] = 0;
            }
            for (int64_t page = begin / kv->page_tokens; page * kv->page_tokens < end; page++)
                for (int64_t tile = 0; tile < kv->page_tokens; tile += TILE) {
                    int64_t at0 = page * kv->page_tokens + tile;
                    int64_t lo = begin > at0 ? begin - at0 : 0, hi = end - at0;
                    if (hi > kv->page_tokens - tile) hi = kv->page_tokens - tile;
                    if (hi > TILE) hi = TILE;
                    if (lo >= hi) continue;
                    take_tile(&one, acc, q, kv_at(kv, kv->k, pages[page], group, tile),
                              kv_at(kv, kv->v, pages[page], group, tile), d, (int)lo, (int)hi, type);
                }
            float *y = mx_row(j->y, r) + head * d;
            for (int64_t i = 0; i < d; i++) y[i] = acc[i] / one.sum;
        }
}

static void attention_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const attention_job *j = ctx;
    const mx_kv *kv = j->kv;
    int64_t per_group = j->heads / kv->kv_heads;
    int64_t split = part % j->splits, group = part / j->splits % kv->kv_heads;
    int64_t first = part / j->splits / kv->kv_heads * j->rows_step, last = first + j->rows_step;
    if (last > j->q.rows) last = j->q.rows;
    int64_t h = split * j->head_step, n = per_group - h < j->head_step ? per_group - h : j->head_step;
    h += group * per_group;
    if (kv->dtype == MX_F32) attend(j, first, last, group, h, n, MX_F32);
    else if (kv->dtype == MX_BF16) attend(j, first, last, group, h, n, MX_BF16);
    else attend(j, first, last, group, h, n, MX_F16);
}

static bool inside(mx_stream *s, const mx_kv *kv, mx_tensor pages, mx_tensor at)
{
    for (int64_t r = 0; r < at.rows; r++) {
        const int32_t *a = mx_row_i32(at, r);
        if (a[0] < 0 || a[0] >= pages.rows || a[1] < 0 || a[1] / kv->page_tokens >= pages.cols) {
            mx_stream_fail(s, MX_ERR_ARG, "attention_paged: row %lld is at %d of sequence %d; pages[%lld,%lld]",
                           (long long)r, a[1], a[0], (long long)pages.rows, (long long)pages.cols);
            return false;
        }
    }
    return true;
}

void mx_cpu_attention_paged(mx_stream *s, mx_tensor y, mx_tensor q, const mx_kv *kv, mx_tensor pages, mx_tensor at,
                            int heads, float scale, int window)
{
    if (kv->head_dim > HEAD_MAX) {
        mx_stream_fail(s, MX_ERR_ARG, "attention_paged: heads of %d channels, at most %d", kv->head_dim, HEAD_MAX);
        return;
    }
    if (!inside(s, kv, pages, at)) return;
    attention_job j = {.kv = kv, .y = y, .q = q, .pages = pages, .at = at, .heads = heads, .window = window, .scale = scale};
    int64_t want = 4 * (int64_t)mx_pool_threads(s->dev->pool), per_group = heads / kv->kv_heads;
    j.rows_step = q.rows * kv->kv_heads / want;
    j.rows_step = j.rows_step < 1 ? 1 : j.rows_step > PART_ROWS ? PART_ROWS : j.rows_step;
    int64_t parts = (q.rows + j.rows_step - 1) / j.rows_step * kv->kv_heads;
    j.splits = parts >= want ? 1 : (want + parts - 1) / parts;
    if (j.splits > per_group) j.splits = per_group;
    j.head_step = (per_group + j.splits - 1) / j.splits;
    j.splits = (per_group + j.head_step - 1) / j.head_step;
    mx_pool_run(s->dev->pool, parts * j.splits, attention_part, &j);
}
