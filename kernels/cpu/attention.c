/* attention.c - the paged KV cache, and attention over it.
 *
 * A part of the work is some rows times some query heads of one KV head.  The
 * queries of one sequence walk its positions together, in tiles of 64 counted
 * from position 0, with a running softmax each (Dao et al. 2022).  A tile is
 * brought into f32, keys transposed, and is then the weight of two small
 * products on linear's register tiles; so a decode row and a row of a long
 * prompt are computed by the same chain, and what a row gets depends on its
 * own position alone, not on chunks, pages or neighbours. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/kv.h"
#include "kernels/cpu/simd.h"

#include <math.h>

#define TILE     MX_PANEL     /* positions of a tile                         */
#define QUERIES  96           /* of a part, at most                          */
#define SPACE    6144         /* floats for their channels: 96 heads of 64   */

/* ---- writing ------------------------------------------------------------------ */

typedef struct kv_job {
    const mx_kv *kv;
    mx_tensor k, v, slots;
} kv_job;

static void write_rows(const void *ctx, int64_t first, int64_t last)
{
    const kv_job *j = ctx;
    const mx_kv *kv = j->kv;
    for (int64_t r = first; r < last; r++) {
        int32_t slot = *mx_row_i32(j->slots, r);
        int64_t page = slot / kv->page_tokens, offset = slot % kv->page_tokens, d = kv->head_dim;
        for (int64_t g = 0; g < kv->kv_heads; g++) {
            mx_kv_store(mx_kv_at(kv, kv->k, page, g, offset), mx_row(j->k, r) + g * d, kv->dtype, d);
            mx_kv_store(mx_kv_at(kv, kv->v, page, g, offset), mx_row(j->v, r) + g * d, kv->dtype, d);
        }
    }
}

void mx_cpu_kv_write(mx_stream *s, const mx_kv *kv, mx_tensor k, mx_tensor v, mx_tensor slots)
{
    if (!mx_kv_slots_sound(s, "kv_write", kv, slots)) return;
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

/* The queries of a part that share a sequence, and their running softmax. */
typedef struct queries {
    const int32_t *pages;
    int64_t wide;                             /* channels of a head rounded up to whole panels */
    int     count;
    int64_t begin[QUERIES], end[QUERIES];     /* positions that a query sees                   */
    float   max[QUERIES], sum[QUERIES];
    float   q[SPACE], acc[SPACE];             /* [count][D], [count][wide]                     */
    float   scores[QUERIES * TILE];
    float   k[MX_HEAD_MAX * TILE];               /* [D][TILE]                                     */
    float   v[MX_HEAD_MAX * TILE];               /* [wide/64][TILE][64]                           */
} queries;

MX_INLINE vf load_kv(const void *p, int64_t i, int64_t n, const mx_dtype type)
{
    uint16_t t[VF] = {0};
    const uint16_t *h = (const uint16_t *)p + i;
    if (type == MX_F8) {
        float f[VF] = {0};
        for (int64_t l = 0; l < n && l < VF; l++) f[l] = mx_f8_to_f32(((const uint8_t *)p)[i + l]);
        return vf_load(f);
    }
    if (type == MX_F32) return vf_load_most((const float *)p + i, n);
    if (n < VF) h = memcpy(t, h, (size_t)n * sizeof *h);
    return type == MX_BF16 ? vf_from_bf16(h) : vf_from_f16(h);
}

/* n channels from i on of 16 positions from t on: keys transposed, values as they are. */
MX_INLINE void load_block(queries *s, const void *const *k, const void *const *v, int64_t i, int t, const int n,
                          const mx_dtype type)
{
    float *keys = s->k + i * TILE + t;
    float *values = s->v + i / MX_PANEL * TILE * MX_PANEL + t * MX_PANEL + i % MX_PANEL;
    vf r[VF];
    UNROLL for (int l = 0; l < VF; l++) r[l] = load_kv(k[l], i, n, type);
    vf_transpose(r);
    if (n == VF) {
        UNROLL for (int l = 0; l < VF; l++) vf_store(keys + l * TILE, r[l]);
    } else {
        for (int l = 0; l < n; l++) {
            float row[VF * VF];
            UNROLL for (int m = 0; m < VF; m++) vf_store(row + m * VF, r[m]);
            memcpy(keys + l * TILE, row + l * VF, VF * sizeof *row);
        }
    }
    UNROLL for (int l = 0; l < VF; l++) vf_store(values + l * MX_PANEL, load_kv(v[l], i, n, type));
}

/* Where the walk over a sequence's positions stands. */
typedef struct walk {
    const mx_kv   *kv;
    const int32_t *pages;
    int64_t        group, page, offset;
    size_t         pitch;               /* bytes of a position */
    const char    *k, *v;
} walk;

static void walk_to(walk *w, int64_t position)
{
    w->page = position / w->kv->page_tokens;
    w->offset = position % w->kv->page_tokens;
    w->k = mx_kv_at(w->kv, w->kv->k, w->pages[w->page], w->group, w->offset);
    w->v = mx_kv_at(w->kv, w->kv->v, w->pages[w->page], w->group, w->offset);
}

/* The next page is looked up only when its first position is wanted: the list may end here. */
MX_INLINE void walk_read(walk *w, const void **k, const void **v)
{
    if (w->offset == w->kv->page_tokens) walk_to(w, (w->page + 1) * w->kv->page_tokens);
    *k = w->k;
    *v = w->v;
    w->k += w->pitch;
    w->v += w->pitch;
    w->offset++;
}

/* Bring positions lo..hi-1 of the tile at `at` into k and v; the others, up to
 * the next multiple of 16, become 0: their memory may hold anything.  The
 * pages of a sequence lie anywhere, so the hardware does not see the next one
 * coming: the positions after these 16 are fetched ahead. */
MX_INLINE void load_tile(queries *s, const mx_kv *kv, int64_t group, int64_t at, int lo, int hi, const mx_dtype type)
{
    static const float zeros[MX_HEAD_MAX];
    int64_t d = kv->head_dim;
    size_t pitch = (size_t)d * (type == MX_F32 ? 4 : type == MX_F8 ? 1 : 2);
    walk w = {.kv = kv, .pages = s->pages, .group = group, .pitch = pitch};
    const void *k[2 * VF], *v[2 * VF];
    walk_to(&w, at + lo);
    for (int t = lo / VF * VF, have = t; t < hi; t += VF) {
        for (; have < t + 2 * VF && have < hi; have++) {
            int l = have % (2 * VF);
            k[l] = v[l] = zeros;
            if (have >= lo) walk_read(&w, &k[l], &v[l]);
            for (size_t i = 0; i < pitch; i += 64) {
                __builtin_prefetch((const char *)k[l] + i);
                __builtin_prefetch((const char *)v[l] + i);
            }
        }
        for (int l = hi; l < t + VF; l++) k[l % (2 * VF)] = v[l % (2 * VF)] = zeros;
        const void *const *kt = k + t % (2 * VF), *const *vt = v + t % (2 * VF);
        int64_t i = 0;
        for (; i + VF <= d; i += VF) load_block(s, kt, vt, i, t, VF, type);
        if (i < d) load_block(s, kt, vt, i, t, (int)(d - i), type);
    }
}

/* scores become e^(score - max), sums and what was summed before shrink with a
 * new maximum.  A query that sees nothing of the tile is left as it was. */
static void soften(queries *s, int64_t at, int first, int last)
{
    for (int r = 0; r < s->count; r++) {
        float *p = s->scores + r * TILE;
        int lo = s->begin[r] > at ? (s->begin[r] < at + TILE ? (int)(s->begin[r] - at) : TILE) : 0;
        int hi = s->end[r] < at + TILE ? (s->end[r] > at ? (int)(s->end[r] - at) : 0) : TILE;
        if (lo >= hi) {
            memset(p, 0, TILE * sizeof *p);
            continue;
        }
        for (int t = first; t < lo; t++) p[t] = -INFINITY;
        for (int t = hi; t < last; t++) p[t] = -INFINITY;
        vf m = vf_set(-INFINITY), sum = vf_zero();
        for (int t = first; t < last; t += VF) m = vf_max(vf_load(p + t), m);
        float top = vf_max_lane(m), max = top > s->max[r] ? top : s->max[r];
        vf mv = vf_set(max);
        for (int t = first; t < last; t += VF) {
            vf e = vf_exp(vf_sub(vf_load(p + t), mv));
            vf_store(p + t, e);
            sum = vf_add(sum, e);
        }
        float shrink = s->max[r] < max ? mx_exp(s->max[r] - max) : 1.0f;
        s->sum[r] = s->sum[r] * shrink + vf_sum(sum);
        s->max[r] = max;
        if (shrink != 1)
            for (int64_t i = 0; i < s->wide; i += VF)
                vf_store(s->acc + r * s->wide + i, vf_mul(vf_load(s->acc + r * s->wide + i), vf_set(shrink)));
    }
}

static void take_tile(queries *s, const mx_kv *kv, int64_t group, int64_t at, int lo, int hi)
{
    int first = lo / VF * VF, last = (hi + VF - 1) / VF * VF;
    int64_t d = kv->head_dim;
    if (kv->dtype == MX_F32) load_tile(s, kv, group, at, lo, hi, MX_F32);
    else if (kv->dtype == MX_BF16) load_tile(s, kv, group, at, lo, hi, MX_BF16);
    else if (kv->dtype == MX_F8) load_tile(s, kv, group, at, lo, hi, MX_F8);
    else load_tile(s, kv, group, at, lo, hi, MX_F16);
    for (int r = 0, n; r < s->count; r += n) {
        n = mx_tile_rows(s->count - r);
        mx_gemm_f32(n, s->q + r * d, d, s->k, d, s->scores + r * TILE, TILE, false);
    }
    soften(s, at, first, last);
    for (int64_t c = 0; c < s->wide; c += MX_PANEL)
        for (int r = 0, n; r < s->count; r += n) {
            n = mx_tile_rows(s->count - r);
            mx_gemm_f32(n, s->scores + r * TILE + first, TILE, s->v + c * TILE + first * MX_PANEL, last - first,
                        s->acc + r * s->wide + c, s->wide, true);
        }
}

/* Rows first..last-1, all of one sequence, and heads h..h+n-1, all of one KV head. */
static void attend(const attention_job *j, queries *s, int64_t first, int64_t last, int64_t group, int64_t h, int64_t n)
{
    const mx_kv *kv = j->kv;
    int64_t d = kv->head_dim, begin = INT64_MAX, end = 0;
    s->pages = mx_row_i32(j->pages, *mx_row_i32(j->at, first));
    s->wide = (d + MX_PANEL - 1) / MX_PANEL * MX_PANEL;
    s->count = 0;
    for (int64_t r = first; r < last; r++)
        for (int64_t i = 0; i < n; i++) {
            const float *q = mx_row(j->q, r) + (h + i) * d;
            int c = s->count++;
            s->end[c] = (int64_t)mx_row_i32(j->at, r)[1] + 1;
            s->begin[c] = j->window > 0 && s->end[c] > j->window ? s->end[c] - j->window : 0;
            s->max[c] = -INFINITY;
            s->sum[c] = 0;
            begin = s->begin[c] < begin ? s->begin[c] : begin;
            end = s->end[c] > end ? s->end[c] : end;
            for (int64_t k = 0; k < d; k++) s->q[c * d + k] = q[k] * j->scale;
        }
    memset(s->acc, 0, (size_t)(s->count * s->wide) * sizeof *s->acc);
    for (int64_t at = begin / TILE * TILE; at < end; at += TILE)
        take_tile(s, kv, group, at, begin > at ? (int)(begin - at) : 0, end - at < TILE ? (int)(end - at) : TILE);
    for (int c = 0; c < s->count; c++) {
        float *y = mx_row(j->y, first + c / n) + (h + c % n) * d;
        for (int64_t i = 0; i < d; i++) y[i] = s->acc[c * s->wide + i] / s->sum[c];
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
    queries s;
    for (int64_t end = first; first < last; first = end) {
        int32_t sequence = *mx_row_i32(j->at, first);
        while (end < last && *mx_row_i32(j->at, end) == sequence) end++;
        attend(j, &s, first, end, group, group * per_group + h, n);
    }
}

/* Every page that a row will read is one of the cache's. */
static bool inside(mx_stream *s, const mx_kv *kv, mx_tensor pages, mx_tensor at, int window)
{
    int64_t known = -1, from = 0, to = 0;          /* pages from..to-1 of sequence `known` are good */
    for (int64_t r = 0; r < at.rows; r++) {
        const int32_t *a = mx_row_i32(at, r);
        if (a[0] < 0 || a[0] >= pages.rows || a[1] < 0 || a[1] / kv->page_tokens >= pages.cols) {
            mx_stream_fail(s, MX_ERR_ARG, "attention_paged: row %lld is at %d of sequence %d; pages[%lld,%lld]",
                           (long long)r, a[1], a[0], (long long)pages.rows, (long long)pages.cols);
            return false;
        }
        int64_t end = a[1] / kv->page_tokens + 1, begin = window > 0 && a[1] >= window ? (a[1] - window + 1) / kv->page_tokens : 0;
        bool more = a[0] == known && begin >= from && begin <= to;
        for (int64_t p = more ? to : begin; p < end; p++) {
            int32_t page = mx_row_i32(pages, a[0])[p];
            if (page >= 0 && page < kv->pages) continue;
            mx_stream_fail(s, MX_ERR_ARG, "attention_paged: page %d of sequence %d is outside the cache's %d", page, a[0], kv->pages);
            return false;
        }
        if (!more) from = begin;
        to = more && to > end ? to : end;
        known = a[0];
    }
    return true;
}

void mx_cpu_attention_paged(mx_stream *s, mx_tensor y, mx_tensor q, const mx_kv *kv, mx_tensor pages, mx_tensor at,
                            int heads, float scale, int window)
{
    if (kv->head_dim > MX_HEAD_MAX) {
        mx_stream_fail(s, MX_ERR_ARG, "attention_paged: heads of %d channels, at most %d", kv->head_dim, MX_HEAD_MAX);
        return;
    }
    if (!inside(s, kv, pages, at, window)) return;
    attention_job j = {.kv = kv, .y = y, .q = q, .pages = pages, .at = at, .heads = heads, .window = window, .scale = scale};
    int64_t threads = mx_pool_threads(s->dev->pool), per_group = heads / kv->kv_heads;
    int64_t room = SPACE / ((kv->head_dim + MX_PANEL - 1) / MX_PANEL * MX_PANEL);
    if (room > QUERIES) room = QUERIES;
    /* Bringing a tile costs more than a query does with it: heads of a group stay
     * together unless threads would have nothing to do, then come rows. */
    j.head_step = per_group < room ? per_group : room;
    while (j.head_step > 1 && q.rows * kv->kv_heads * ((per_group + j.head_step - 1) / j.head_step) < threads) j.head_step--;
    j.splits = (per_group + j.head_step - 1) / j.head_step;
    j.rows_step = q.rows * kv->kv_heads * j.splits / (4 * threads);
    if (j.rows_step > room / j.head_step) j.rows_step = room / j.head_step;
    if (j.rows_step < 1) j.rows_step = 1;
    mx_pool_run(s->dev->pool, (q.rows + j.rows_step - 1) / j.rows_step * kv->kv_heads * j.splits, attention_part, &j);
}
