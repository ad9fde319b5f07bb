/* linear.c - matrix products: weights packed once, activations read as they come.
 *
 * A region's part is a block of rows times a few panels of output channels.
 * How the product is cut depends on its size and on the number of threads; no
 * bit of the result does, because every output is one chain (gemm.h).  bf16
 * and int8 convert the activations of their block on the way, into a buffer on
 * the stack: that costs one operation for every 64 multiplications or more,
 * and needs no memory shared between threads.
 *
 * Our own tiles are as fast as oneDNN's where both use vectors, and keep the
 * invariance rule on every processor (oneDNN without AVX-512 takes a gemm whose
 * sums depend on the number of rows).  oneDNN multiplies where the processor
 * has a matrix unit, AMX, that our tiles do not use; then always in blocks of
 * the same number of rows, the last one filled up, so that rule holds there
 * too.  MX_ONEDNN says when: 0 never, 1 with AMX, 2 wherever it has a blocked
 * kernel (that is how this path is tested without AMX).  int8 stays ours: a
 * scale for every 64 inputs leaves no product long enough for it.
 *
 * int8 keeps the largest value of an activation row apart, exactly, and scales
 * the row by the second largest: one outlier would cost all others their
 * digits (Dettmers et al. 2022, LLM.int8(); one a row is enough: SPEED.md). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"

#include <stdatomic.h>
#include <stdlib.h>

#ifndef MX_ONEDNN
#define MX_ONEDNN 0
#endif
#if MX_ONEDNN
#include <oneapi/dnnl/dnnl.h>
#endif

#define BLOCK_ROWS 48               /* rows of a part                                        */
#define GROUP      4                /* panels of a part, at most                             */
#define L1_BYTES   32768            /* of a panel that several row tiles of a part read again */
#define STAGE      49152            /* bytes of converted activations                        */

typedef struct unit unit;

typedef struct packed {
    mx_buffer memory;               /* panels, each panel_bytes long                         */
    size_t    panel_bytes;
    int64_t   panels, cols, padded; /* padded: cols rounded up to 64 bytes                   */
    mx_dtype  dtype;
    float    *scale;                /* int8: [panels][padded/64][64], behind the panels      */
    int16_t  *sums;                 /* int8: of the weights of a group, as scale             */
    float    *row_scale;            /* fp8, which is kept as bf16: [panels][64]; else NULL   */
    unit     *unit;                 /* oneDNN's part, or NULL: our own tiles                 */
} packed;

static unit *unit_open(const packed *p, int threads);
static void  unit_close(unit *u);

/* ---- packing ---------------------------------------------------------------- */

typedef struct pack_job {
    packed              *p;
    const mx_row_source *parts;
    int                  n;
    int64_t              rows;
    float               *stage;     /* per thread: 64 rows of cols values                    */
} pack_job;

static void read_rows(const pack_job *j, int64_t first, int64_t n, float *dst)
{
    int64_t begin = 0;
    for (int i = 0; i < j->n && n > 0; i++) {
        const mx_row_source *s = &j->parts[i];
        int64_t here = begin + s->rows - first;
        if (here > 0) {
            if (here > n) here = n;
            s->read(s->ctx, first - begin, here, dst);
            first += here;
            dst += here * s->cols;
            n -= here;
        }
        begin += s->rows;
    }
}

static void pack_f32(float *panel, const float *w, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += VF)
        for (int64_t k = 0; k < cols; k++)
            for (int64_t l = r; l < r + VF && l < rows; l++) panel[k * MX_PANEL + l] = w[l * cols + k];
}

static void pack_bf16(uint16_t *panel, const float *w, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < rows; r += VF)
        for (int64_t k = 0; k < cols; k++)
            for (int64_t l = r; l < r + VF && l < rows; l++)
                panel[((k / 2) * MX_PANEL + l) * 2 + k % 2] = mx_f32_to_bf16(w[l * cols + k]);
}

static void pack_i8(packed *p, int64_t index, int8_t *panel, const float *w, int64_t rows)
{
    int64_t groups = p->padded / MX_INT8_GROUP;
    float *scales = p->scale + index * groups * MX_PANEL;
    int16_t *sums = p->sums + index * groups * MX_PANEL;
    for (int64_t l = 0; l < rows; l++)
        for (int64_t g = 0; g < groups; g++) {
            const float *row = w + l * p->cols + g * MX_INT8_GROUP;
            int64_t n = p->cols - g * MX_INT8_GROUP < MX_INT8_GROUP ? p->cols - g * MX_INT8_GROUP : MX_INT8_GROUP;
            vf most = vf_zero();
            for (int64_t k = 0; k < n; k += VF) most = vf_max(vf_abs(vf_load_most(row + k, n - k)), most);
            float scale = vf_max_lane(most) / 127.0f, inverse = scale > 0 ? 1.0f / scale : 0.0f;
            int sum = 0;
            for (int64_t k = 0; k < n; k++) {
                float q = nearbyintf(row[k] * inverse);
                q = q > 127.0f ? 127.0f : q > -127.0f ? q : -127.0f;      /* NaN becomes -127 */
                panel[((g * MX_INT8_GROUP + k) / 4 * MX_PANEL + l) * 4 + k % 4] = (int8_t)q;
                sum += (int8_t)q;
            }
            scales[g * MX_PANEL + l] = scale;
            sums[g * MX_PANEL + l] = (int16_t)sum;
        }
}

/* Rows become what fp8 holds of them, times what is put into scale[]. */
static void round_f8(float *w, int64_t rows, int64_t cols, float *scale)
{
    for (int64_t r = 0; r < rows; r++, w += cols) {
        vf most = vf_zero();
        for (int64_t k = 0; k < cols; k += VF) most = vf_max(vf_abs(vf_load_most(w + k, cols - k)), most);
        float inverse;
        scale[r] = vf_max_lane(most) / 448.0f;
        inverse = scale[r] > 0 ? 1.0f / scale[r] : 0.0f;
        if (!(inverse < INFINITY)) inverse = 0;         /* a subnormal row is 0 */
        for (int64_t k = 0; k < cols; k++) w[k] = mx_f8_to_f32(mx_f32_to_f8(w[k] * inverse));
    }
}

static void pack_part(void *ctx, int64_t part, int thread)
{
    const pack_job *j = ctx;
    packed *p = j->p;
    int64_t first = part * MX_PANEL, rows = j->rows - first < MX_PANEL ? j->rows - first : MX_PANEL;
    float *stage = j->stage + (int64_t)thread * MX_PANEL * p->cols;
    void *panel = (char *)p->memory.base + (size_t)part * p->panel_bytes;
    read_rows(j, first, rows, stage);
    if (p->row_scale) round_f8(stage, rows, p->cols, p->row_scale + first);
    if (p->dtype == MX_F32) pack_f32(panel, stage, rows, p->cols);
    else if (p->dtype == MX_BF16) pack_bf16(panel, stage, rows, p->cols);
    else pack_i8(p, part, panel, stage, rows);
}

size_t mx_cpu_weight_bytes(const mx_device *d, int64_t rows, int64_t cols, mx_dtype as)
{
    mx_dtype kept = as == MX_F8 ? MX_BF16 : as;
    int64_t line = (int64_t)(64 / mx_dtype_size(kept)), padded = (cols + line - 1) / line * line, panels = (rows + MX_PANEL - 1) / MX_PANEL;
    size_t panel = (size_t)padded * MX_PANEL * mx_dtype_size(kept), size;
    (void)d;
    if (as == MX_I8) panel += panel / MX_INT8_GROUP * (sizeof(float) + sizeof(int16_t));
    if (as == MX_F8) panel += MX_PANEL * sizeof(float);
    return mx_mul_size(panel, (size_t)panels, &size) ? size : 0;
}

mx_status mx_cpu_weight_open(mx_weight *w, mx_device *d, const mx_row_source *parts, int n, mx_dtype as, mx_error *err)
{
    mx_status st = MX_OK;
    pack_job j = {.parts = parts, .n = n, .rows = w->rows};
    packed *p = calloc(1, sizeof *p);
    size_t size = mx_cpu_weight_bytes(d, w->rows, w->cols, as), stage;
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "weight: no memory for its description");
    p->dtype = as == MX_F8 ? MX_BF16 : as;
    p->cols = w->cols;
    int64_t line = (int64_t)(64 / mx_dtype_size(p->dtype));
    p->padded = (w->cols + line - 1) / line * line;
    p->panels = (w->rows + MX_PANEL - 1) / MX_PANEL;
    p->panel_bytes = (size_t)p->padded * MX_PANEL * mx_dtype_size(p->dtype);
    if (!size || !mx_mul_size((size_t)mx_pool_threads(d->pool) * MX_PANEL * sizeof(float), (size_t)w->cols, &stage)) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "weight: %lld x %lld does not fit memory", (long long)w->rows,
                     (long long)w->cols);
        goto done;
    }
    MX_TRY_GOTO(st, mx_buffer_open(&p->memory, d, size, err), done);
    j.stage = malloc(stage);
    if (!j.stage) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "weight: no %zu bytes to pack with", stage);
        goto done;
    }
    p->scale = (float *)((char *)p->memory.base + p->panel_bytes * (size_t)p->panels);
    if (as == MX_F8) p->row_scale = p->scale;
    p->sums = (int16_t *)(p->scale + p->panels * p->padded / MX_INT8_GROUP * MX_PANEL);
    j.p = p;
    mx_pool_run(d->pool, p->panels, pack_part, &j);
    if (!p->row_scale) p->unit = unit_open(p, mx_pool_threads(d->pool));
    w->bytes = size;
    w->impl = p;
done:
    free(j.stage);
    if (st) {
        mx_buffer_close(&p->memory);
        free(p);
    }
    return st;
}

void mx_cpu_weight_close(mx_weight *w)
{
    packed *p = w->impl;
    if (!p) return;
    unit_close(p->unit);
    mx_buffer_close(&p->memory);
    free(p);
}

/* ---- multiplying ------------------------------------------------------------- */

typedef struct linear_job {
    mx_tensor     y, x, b;
    const packed *p;
    mx_activation act;
    bool          add;
    int64_t       block_rows, blocks, group;      /* a part: block_rows rows, `group` panels */
    atomic_int    failed;                         /* oneDNN's status                         */
} linear_job;

/* What int8 makes of a row: value q is q * scale, but for one that stays as it is. */
typedef struct row_i8 {
    float   scale, outlier;
    int64_t at;                       /* the outlier's channel */
} row_i8;

/* n values of a row rounded to bf16, zeros up to `padded` */
static void stage_bf16(mx_bf16_x *dst, const float *x, int64_t n, int64_t padded)
{
#pragma omp simd
    for (int64_t k = 0; k < n; k++) {
        uint16_t h = mx_f32_to_bf16(x[k]);
        dst[k] = MX_BF16_PAIRS ? (mx_bf16_x)h : (mx_bf16_x)mx_bf16_to_f32(h);
    }
    for (int64_t k = n; k < padded; k++) dst[k] = 0;
}

/* The scale is NaN when the row holds a NaN or an infinity, so that its outputs show it. */
static row_i8 row_of(const float *x, int64_t n)
{
    enum { PIECE = 4 * VF };
    float best = -1, rest = 0;
    int64_t from = 0;
    vf bad = vf_zero();
    for (int64_t k = 0; k < n; k += PIECE) {
        vf most = vf_zero();
        for (int64_t i = k; i < k + PIECE && i < n; i += VF) {
            vf v = vf_load_most(x + i, n - i);
            most = vf_max(vf_abs(v), most);
            bad = vf_fma(v, vf_zero(), bad);
        }
        float m = vf_max_lane(most);
        if (m > best) {
            rest = best > rest ? best : rest;
            best = m;
            from = k;
        } else if (m > rest) rest = m;
    }
    row_i8 r = {.at = from};
    int64_t end = from + PIECE < n ? from + PIECE : n;
    while (r.at < end - 1 && !(fabsf(x[r.at]) == best)) r.at++;
    for (int64_t i = from; i < end; i++)
        if (i != r.at && fabsf(x[i]) > rest) rest = fabsf(x[i]);
    r.outlier = x[r.at];
    r.scale = rest / 127.0f + vf_sum(bad);
    return r;
}

static void stage_i8(uint8_t *dst, const float *x, int64_t n, int64_t padded, float scale)
{
    float inverse = scale > 0 ? 1.0f / scale : 0.0f;
    if (!(inverse < INFINITY)) inverse = 0;             /* a subnormal row: its outputs are 0 */
    vf most = vf_set(127.0f), least = vf_set(-127.0f), k127 = vf_set(inverse);
    for (int64_t k = 0; k < n; k += VF) {
        float q[VF];
        vf_store(q, vf_min(most, vf_max(least, vf_round(vf_mul(vf_load_most(x + k, n - k), k127)))));
        int64_t here = n - k < VF ? n - k : VF;
        for (int64_t l = 0; l < here; l++) {
            /* inf * 0 is NaN, whose conversion is undefined: the scale already tells */
            int32_t v = q[l] == q[l] ? (int32_t)q[l] : 0;
            dst[k + l] = (uint8_t)(v + MX_INT8_BIAS);
        }
    }
    for (int64_t k = n; k < padded; k++) dst[k] = 0;    /* times weights of 0 */
}

static mx_panel_i8 panel_i8(const packed *p, int64_t panel, int64_t k)
{
    int64_t group = (panel * p->padded + k) / MX_INT8_GROUP * MX_PANEL;
    return (mx_panel_i8){(const int8_t *)p->memory.base + (size_t)panel * p->panel_bytes + k * MX_PANEL, p->scale + group, p->sums + group};
}

/* Multiply `rows` staged rows by the part's panels, channels k .. k+n-1. */
static void multiply(const linear_job *j, const void *x, int64_t ldx, int64_t rows, int64_t panel, int64_t panels,
                     int64_t k, int64_t n, float *c)
{
    const packed *p = j->p;
    int64_t ldc = panels * MX_PANEL;
    for (int64_t q = 0; q < panels; q++) {
        const char *base = (const char *)p->memory.base + (size_t)(panel + q) * p->panel_bytes;
        const void *w = base + (size_t)(k * MX_PANEL) * mx_dtype_size(p->dtype);
        for (int64_t r = 0; r < rows;) {
            int here = mx_tile_rows(rows - r);
            int64_t at = r * ldc + q * MX_PANEL;
            if (p->dtype == MX_F32) mx_gemm_f32(here, (const float *)x + r * ldx, ldx, w, n, c + at, ldc, k > 0);
            else if (p->dtype == MX_BF16) mx_gemm_bf16(here, (const mx_bf16_x *)x + r * ldx, ldx, w, n, c + at, ldc, k > 0);
            else mx_gemm_i8(here, (const uint8_t *)x + r * ldx, ldx, panel_i8(p, panel + q, k), n, c + at, ldc, k > 0);
            r += here;
        }
    }
}

/* An int8 row's sums get its scale, and its outlier's part. */
static void finish_i8(const packed *p, row_i8 row, int64_t panel, int64_t panels, float *s)
{
    for (int64_t q = 0; q < panels; q++, s += MX_PANEL) {
        mx_panel_i8 w = panel_i8(p, panel + q, row.at / MX_INT8_GROUP * MX_INT8_GROUP);
        uint32_t four[MX_PANEL];                        /* weights of channels at/4*4 .. +3 */
        memcpy(four, w.w + row.at % MX_INT8_GROUP / 4 * 4 * MX_PANEL, sizeof four);
        int up = 24 - 8 * (int)(row.at % 4);
#pragma omp simd
        for (int64_t i = 0; i < MX_PANEL; i++) {
            float weight = (float)((int32_t)(four[i] << up) >> 24) * w.scale[i];
            s[i] = s[i] * row.scale + row.outlier * weight;
        }
    }
}

/* Bias, activation, sum. */
static void finish(const linear_job *j, int64_t row, int64_t rows, int64_t panel, int64_t panels, const row_i8 *int8,
                   float *c)
{
    const packed *p = j->p;
    int64_t o = panel * MX_PANEL, n = j->y.cols - o, ldc = panels * MX_PANEL;
    if (n > ldc) n = ldc;
    const float *bias = j->b.data ? (const float *)j->b.data + o : NULL;
    for (int64_t r = 0; r < rows; r++) {
        float *y = mx_row(j->y, row + r) + o, *s = c + r * ldc;
        if (p->dtype == MX_I8) finish_i8(p, int8[r], panel, panels, s);
        for (int64_t i = 0; i < n; i += VF) {
            vf v = vf_load(s + i);
            if (p->row_scale) v = vf_mul(v, vf_load(p->row_scale + o + i));
            if (bias) v = vf_add(v, vf_load_most(bias + i, n - i));
            if (j->add) v = vf_add(v, vf_load_most(y + i, n - i));
            vf_store_most(y + i, v, n - i);
        }
        if (j->act != MX_ACT_NONE) mx_cpu_activate_row(y, y, n, j->act);
    }
}

/* Input channels taken at a time: all of them when one row tile reads the panel
 * once; else what stays in the first-level cache, and in the stage. */
static int64_t step_of(const packed *p, int64_t rows)
{
    size_t element = mx_dtype_size(p->dtype);
    int64_t step = rows > MX_TILE_ROWS ? (int64_t)(L1_BYTES / MX_PANEL / element) : p->padded;
    int64_t staged = (int64_t)(STAGE / (p->dtype == MX_BF16 ? sizeof(mx_bf16_x) : 1)) / rows / MX_INT8_GROUP * MX_INT8_GROUP;
    return p->dtype != MX_F32 && staged < step ? staged : step;
}

static void linear_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const linear_job *j = ctx;
    const packed *p = j->p;
    int64_t row = part % j->blocks * j->block_rows, panel = part / j->blocks * j->group;
    int64_t rows = j->x.rows - row < j->block_rows ? j->x.rows - row : j->block_rows;
    int64_t panels = p->panels - panel < j->group ? p->panels - panel : j->group;
    row_i8 int8[BLOCK_ROWS];
    union { mx_bf16_x h[STAGE / sizeof(mx_bf16_x)]; uint8_t u[STAGE]; } stage;
    float c[BLOCK_ROWS * GROUP * MX_PANEL];
    if (p->dtype == MX_I8)
        for (int64_t r = 0; r < rows; r++) int8[r] = row_of(mx_row(j->x, row + r), p->cols);
    for (int64_t k = 0, step = step_of(p, rows); k < p->padded; k += step) {
        int64_t n = p->padded - k < step ? p->padded - k : step;
        int64_t real = p->cols - k < n ? p->cols - k : n;
        if (p->dtype == MX_F32) {
            multiply(j, mx_row(j->x, row) + k, j->x.stride, rows, panel, panels, k, real, c);
            continue;
        }
        for (int64_t r = 0; r < rows; r++) {
            const float *x = mx_row(j->x, row + r) + k;
            if (p->dtype == MX_BF16) {
                stage_bf16(stage.h + r * n, x, real, n);
                continue;
            }
            stage_i8(stage.u + r * n, x, real, n, int8[r].scale);
            if (int8[r].at >= k && int8[r].at < k + n) stage.u[r * n + int8[r].at - k] = MX_INT8_BIAS;
        }
        multiply(j, &stage, n, rows, panel, panels, k, n, c);
    }
    finish(j, row, rows, panel, panels, int8, c);
}

/* ---- oneDNN --------------------------------------------------------------------- */

#if MX_ONEDNN

#define UNIT_ROWS  32                 /* two tiles of AMX                          */
#define UNIT_GROUP 2                  /* panels                                    */
#define UNIT_STAGE ((size_t)1 << 20)  /* bytes of a block of activations, on the stack */

/* Debian's oneDNN runs its own loops on OpenMP; ours are the pool's. */
void omp_set_num_threads(int n);

/* What one thread needs to run a product; the primitive itself is shared. */
typedef struct lane {
    dnnl_stream_t stream;
    dnnl_memory_t x, w, y, scratch;
} lane;

typedef struct product {
    dnnl_primitive_t primitive;
    lane            *lanes;
} product;

struct unit {
    dnnl_engine_t engine;
    int           threads;
    product       wide, last;         /* UNIT_GROUP panels; what is left of them   */
};

static const struct { dnnl_data_type_t type; dnnl_format_tag_t w; } unit_types[MX_DTYPE_COUNT] = {
    [MX_F32] = {dnnl_f32, dnnl_BA16a64b},
    [MX_BF16] = {dnnl_bf16, dnnl_BA16a64b2a},
};

static void product_close(product *p, int threads)
{
    for (int t = 0; p->lanes && t < threads; t++) {
        lane *l = &p->lanes[t];
        if (l->scratch) dnnl_memory_destroy(l->scratch);
        if (l->y) dnnl_memory_destroy(l->y);
        if (l->w) dnnl_memory_destroy(l->w);
        if (l->x) dnnl_memory_destroy(l->x);
        if (l->stream) dnnl_stream_destroy(l->stream);
    }
    free(p->lanes);
    if (p->primitive) dnnl_primitive_destroy(p->primitive);
}

static void unit_close(unit *u)
{
    if (!u) return;
    product_close(&u->last, u->threads);
    product_close(&u->wide, u->threads);
    if (u->engine) dnnl_engine_destroy(u->engine);
    free(u);
}

/* oneDNN 3 made the descriptors opaque. */
#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t shape;
static dnnl_status_t describe(dnnl_memory_desc_t *md, int64_t rows, int64_t cols, dnnl_data_type_t t, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_create_with_tag(md, 2, (dnnl_dims_t){rows, cols}, t, tag);
}
static void forget(dnnl_memory_desc_t *md)
{
    if (*md) dnnl_memory_desc_destroy(*md);
}
static dnnl_status_t plan(dnnl_primitive_desc_t *pd, unit *u, dnnl_memory_desc_t md[3], const_dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(pd, u->engine, md[0], md[1], NULL, md[2], attr);
}
#else
typedef const dnnl_memory_desc_t *shape;
static dnnl_status_t describe(dnnl_memory_desc_t *md, int64_t rows, int64_t cols, dnnl_data_type_t t, dnnl_format_tag_t tag)
{
    return dnnl_memory_desc_init_by_tag(md, 2, (dnnl_dims_t){rows, cols}, t, tag);
}
static void forget(dnnl_memory_desc_t *md)
{
    (void)md;
}
static dnnl_status_t plan(dnnl_primitive_desc_t *pd, unit *u, dnnl_memory_desc_t md[3], const_dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t d;
    dnnl_status_t st = dnnl_matmul_desc_init(&d, &md[0], &md[1], NULL, &md[2]);
    return st ? st : dnnl_primitive_desc_create(pd, &d, attr, u->engine, NULL);
}
#endif

static bool lane_open(lane *l, unit *u, const_dnnl_primitive_desc_t pd)
{
    shape scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    return !dnnl_stream_create(&l->stream, u->engine, dnnl_stream_default_flags) &&
           !dnnl_memory_create(&l->x, dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0), u->engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&l->w, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0), u->engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&l->y, dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0), u->engine, DNNL_MEMORY_NONE) &&
           !dnnl_memory_create(&l->scratch, scratch, u->engine, DNNL_MEMORY_ALLOCATE);
}

/* False when oneDNN has no blocked kernel that reads our panels. */
static bool product_open(product *out, unit *u, const packed *p, int64_t panels)
{
    dnnl_memory_desc_t md[3] = {0};
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_attr_t attr = NULL;
    const char *name = "";
    bool ok = !describe(&md[0], UNIT_ROWS, p->padded, unit_types[p->dtype].type, dnnl_ab) &&
              !describe(&md[1], p->padded, panels * MX_PANEL, unit_types[p->dtype].type, unit_types[p->dtype].w) &&
              !describe(&md[2], UNIT_ROWS, panels * MX_PANEL, dnnl_f32, dnnl_ab) &&
              !dnnl_primitive_attr_create(&attr) &&
              !dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user) && !plan(&pd, u, md, attr) &&
              !dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&name) && strncmp(name, "brg", 3) == 0 &&
              !dnnl_primitive_create(&out->primitive, pd);
    if (ok) out->lanes = calloc((size_t)u->threads, sizeof *out->lanes);
    ok = ok && out->lanes;
    for (int t = 0; ok && t < u->threads; t++) ok = lane_open(&out->lanes[t], u, pd);
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    for (int i = 0; i < 3; i++) forget(&md[i]);
    return ok;
}

/* NULL, which is no error, when our own tiles are to do it. */
static unit *unit_open(const packed *p, int threads)
{
    int amx = dnnl_cpu_isa_avx512_core_amx;
    bool wanted = MX_ONEDNN == 2 || (p->dtype != MX_F32 && ((int)dnnl_get_effective_cpu_isa() & amx) == amx);
    if (!wanted || p->dtype == MX_I8) return NULL;
    if ((size_t)p->padded * UNIT_ROWS * mx_dtype_size(p->dtype) > UNIT_STAGE) return NULL;
    unit *u = calloc(1, sizeof *u);
    if (!u) return NULL;
    u->threads = threads;
    omp_set_num_threads(1);
    int64_t left = p->panels % UNIT_GROUP;
    if (dnnl_engine_create(&u->engine, dnnl_cpu, 0) || (p->panels >= UNIT_GROUP && !product_open(&u->wide, u, p, UNIT_GROUP)) ||
        (left && !product_open(&u->last, u, p, left))) {
        unit_close(u);
        return NULL;
    }
    return u;
}

static void stage_unit(const linear_job *j, void *stage, int64_t row, int64_t rows)
{
    const packed *p = j->p;
    size_t line = (size_t)p->padded * mx_dtype_size(p->dtype);
    memset((char *)stage + (size_t)rows * line, 0, (size_t)(UNIT_ROWS - rows) * line);
    for (int64_t r = 0; r < rows; r++) {
        const float *x = mx_row(j->x, row + r);
        char *to = (char *)stage + (size_t)r * line;
        size_t used = (size_t)p->cols * mx_dtype_size(p->dtype);
        memset(to + used, 0, line - used);
        if (p->dtype == MX_F32) memcpy(to, x, used);
        else
            for (int64_t k = 0; k < p->cols; k++) ((uint16_t *)(void *)to)[k] = mx_f32_to_bf16(x[k]);
    }
}

static void unit_part(void *ctx, int64_t part, int thread)
{
    linear_job *j = ctx;
    const packed *p = j->p;
    int64_t row = part % j->blocks * UNIT_ROWS, panel = part / j->blocks * UNIT_GROUP;
    int64_t rows = j->x.rows - row < UNIT_ROWS ? j->x.rows - row : UNIT_ROWS;
    int64_t panels = p->panels - panel < UNIT_GROUP ? p->panels - panel : UNIT_GROUP;
    const product *q = panels == UNIT_GROUP ? &p->unit->wide : &p->unit->last;
    const lane *l = &q->lanes[thread];
    _Alignas(64) char stage[UNIT_STAGE];
    _Alignas(64) float c[UNIT_ROWS * UNIT_GROUP * MX_PANEL];
    stage_unit(j, stage, row, rows);
    omp_set_num_threads(1);
    dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, l->x}, {DNNL_ARG_WEIGHTS, l->w}, {DNNL_ARG_DST, l->y}, {DNNL_ARG_SCRATCHPAD, l->scratch}};
    int st = dnnl_memory_set_data_handle(l->x, stage);
    if (!st) st = dnnl_memory_set_data_handle(l->w, (char *)p->memory.base + (size_t)panel * p->panel_bytes);
    if (!st) st = dnnl_memory_set_data_handle(l->y, c);
    if (!st) st = dnnl_primitive_execute(q->primitive, l->stream, 4, args);
    if (!st) st = dnnl_stream_wait(l->stream);
    if (st) atomic_store(&j->failed, st);
    else finish(j, row, rows, panel, panels, NULL, c);
}

static void unit_linear(mx_stream *s, linear_job *j)
{
    j->blocks = (j->x.rows + UNIT_ROWS - 1) / UNIT_ROWS;
    mx_pool_run(s->dev->pool, (j->p->panels + UNIT_GROUP - 1) / UNIT_GROUP * j->blocks, unit_part, j);
    int st = atomic_load(&j->failed);
    if (st) mx_stream_fail(s, MX_ERR_DEVICE, "linear: oneDNN failed with status %d", st);
}

#else

static unit *unit_open(const packed *p, int threads)
{
    (void)p, (void)threads;
    return NULL;
}

static void unit_close(unit *u)
{
    (void)u;
}

static void unit_linear(mx_stream *s, linear_job *j)
{
    (void)s, (void)j;
}

#endif

void mx_cpu_linear(mx_stream *s, mx_tensor y, mx_tensor x, const mx_weight *w, mx_tensor b, mx_activation act, bool add)
{
    linear_job j = {.y = y, .x = x, .b = b, .p = w->impl, .act = act, .add = add};
    if (j.p->unit) {
        unit_linear(s, &j);
        return;
    }
    int64_t blocks = (x.rows + BLOCK_ROWS - 1) / BLOCK_ROWS, threads = mx_pool_threads(s->dev->pool);
    /* equal blocks of whole tiles */
    j.block_rows = ((x.rows + blocks - 1) / blocks + MX_TILE_ROWS - 1) / MX_TILE_ROWS * MX_TILE_ROWS;
    j.blocks = (x.rows + j.block_rows - 1) / j.block_rows;
    j.group = j.p->panels * j.blocks / (8 * threads);
    j.group = j.group < 1 ? 1 : j.group > GROUP ? GROUP : j.group;
    int64_t groups = (j.p->panels + j.group - 1) / j.group;
    mx_pool_run(s->dev->pool, groups * j.blocks, linear_part, &j);
}
