/* product.c - matrix products whose weights change every step.
 *
 * Nothing is packed ahead: a part of the work owns a few panels of 64 output
 * columns and some of the rows, packs 128 steps of the inner dimension at a
 * time, and runs linear's register tiles over its rows.  Sums go on in the
 * output itself, so every output is one chain over the inner dimension in
 * order, however the work is cut.  The same loop serves the product, its
 * gradient by x (w as it lies) and by w (dy transposed on the way in). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"

#define STEP  128             /* of the inner dimension: a packed panel is 32 KiB */
#define GROUP 4               /* panels of a part, at most                        */
#define BLOCK 48              /* rows staged at a time: 24 KiB                    */

/* c[M,N] += a[M,K] b[K,N], where a may lie as its transpose [K,M], b as [N,K]. */
typedef struct gemm {
    mx_tensor c, a, b;
    int64_t   M, N, K;
    bool      a_turned, b_turned, round;      /* round: to bf16 */
    int64_t   block_rows, blocks, group, groups;
} gemm;

MX_INLINE vf rounded(vf x)
{
    float t[VF];
    vf_store(t, x);
#pragma omp simd
    for (int l = 0; l < VF; l++) t[l] = mx_bf16_to_f32(mx_f32_to_bf16(t[l]));
    return vf_load(t);
}

static void round_all(float *p, int64_t n)
{
    for (int64_t i = 0; i < n; i += VF) vf_store(p + i, rounded(vf_load(p + i)));
}

/* dst[cols][ld] = src[rows][cols] turned, 16 x 16 at a time; rows up to `ld` become 0. */
static void turn(float *dst, int64_t ld, const float *src, int64_t stride, int64_t rows, int64_t cols)
{
    for (int64_t r = 0; r < ld; r += VF)
        for (int64_t k = 0; k < cols; k += VF) {
            vf t[VF];
            int64_t n = cols - k;
            UNROLL for (int l = 0; l < VF; l++) t[l] = r + l < rows ? vf_load_most(src + (r + l) * stride + k, n) : vf_zero();
            vf_transpose(t);
            int64_t m = n < VF ? n : VF;
            if (m == VF) {
                UNROLL for (int l = 0; l < VF; l++) vf_store(dst + (k + l) * ld + r, t[l]);
            } else {
                float row[VF * VF];
                UNROLL for (int l = 0; l < VF; l++) vf_store(row + l * VF, t[l]);
                for (int64_t l = 0; l < m; l++) memcpy(dst + (k + l) * ld + r, row + l * VF, VF * sizeof *row);
            }
        }
}

/* n values of a bf16 row, zeros up to the next whole vector */
MX_INLINE vf load_bf16(const uint16_t *p, int64_t n)
{
    uint16_t t[VF] = {0};
    if (n < VF) p = memcpy(t, p, (size_t)n * sizeof *t);
    return vf_from_bf16(p);
}

/* The same from a bf16 matrix, through a widened copy of the block. */
static void pack_panel_bf16(const gemm *g, float *panel, int64_t o, int64_t cols, int64_t k, int64_t n)
{
    float wide[MX_PANEL * STEP];
    int64_t rows = g->b_turned ? cols : n, across = g->b_turned ? n : cols, ld = g->b_turned ? STEP : MX_PANEL;
    for (int64_t r = 0; r < rows; r++) {
        const uint16_t *src = (const uint16_t *)g->b.data + ((g->b_turned ? o : k) + r) * g->b.stride + (g->b_turned ? k : o);
        for (int64_t i = 0; i < ld && i < across; i += VF)
            vf_store((g->b_turned ? wide : panel) + r * ld + i, load_bf16(src + i, across - i));
        for (int64_t i = (across + VF - 1) / VF * VF; !g->b_turned && i < ld; i += VF) vf_store(panel + r * ld + i, vf_zero());
    }
    if (g->b_turned) turn(panel, MX_PANEL, wide, STEP, cols, n);
}

/* Inner steps k..k+n-1 of 64 columns from o on. */
static void pack_panel(const gemm *g, float *panel, int64_t o, int64_t k, int64_t n)
{
    int64_t cols = g->N - o < MX_PANEL ? g->N - o : MX_PANEL;
    if (g->b.dtype == MX_BF16) {
        pack_panel_bf16(g, panel, o, cols, k, n);
        return;
    }
    if (g->b_turned) {
        turn(panel, MX_PANEL, mx_row(g->b, o) + k, g->b.stride, cols, n);
    } else {
        for (int64_t i = 0; i < n; i++) {
            const float *src = mx_row(g->b, k + i) + o;
            for (int64_t l = 0; l < MX_PANEL; l += VF)
                vf_store(panel + i * MX_PANEL + l, l < cols ? vf_load_most(src + l, cols - l) : vf_zero());
        }
    }
    if (g->round) round_all(panel, n * MX_PANEL);
}

/* Rows r..r+m-1 of a, inner steps k..k+n-1, as the tiles read them. */
static const float *stage_rows(const gemm *g, float *stage, int64_t r, int64_t m, int64_t k, int64_t n, int64_t *ld)
{
    if (!g->a_turned && !g->round) {
        *ld = g->a.stride;
        return mx_row(g->a, r) + k;
    }
    *ld = STEP;
    if (g->a_turned) {
        /* a[K,M]: its columns r.. become rows */
        for (int64_t i = 0; i < n; i += VF)
            for (int64_t c = 0; c < m; c += VF) {
                vf t[VF];
                int64_t here = m - c;
                UNROLL for (int l = 0; l < VF; l++) t[l] = i + l < n ? vf_load_most(mx_row(g->a, k + i + l) + r + c, here) : vf_zero();
                vf_transpose(t);
                for (int l = 0; l < VF && l < here; l++) vf_store(stage + (c + l) * STEP + i, t[l]);
            }
    } else {
        for (int64_t l = 0; l < m; l++) {
            const float *src = mx_row(g->a, r + l) + k;
            for (int64_t i = 0; i < n; i += VF) vf_store(stage + l * STEP + i, vf_load_most(src + i, n - i));
        }
    }
    if (g->round)
        for (int64_t l = 0; l < m; l++) round_all(stage + l * STEP, (n + VF - 1) / VF * VF);
    return stage;
}

/* One row tile: in place, or, where less than a panel is left, through a copy. */
static void tile(const gemm *g, int rows, const float *a, int64_t ld, const float *panel, int64_t n, int64_t r, int64_t o)
{
    int64_t cols = g->N - o;
    if (cols >= MX_PANEL) {
        mx_gemm_f32(rows, a, ld, panel, n, mx_row(g->c, r) + o, g->c.stride, true);
        return;
    }
    float c[MX_TILE_ROWS * MX_PANEL] = {0};
    for (int i = 0; i < rows; i++) memcpy(c + i * MX_PANEL, mx_row(g->c, r + i) + o, (size_t)cols * sizeof *c);
    mx_gemm_f32(rows, a, ld, panel, n, c, MX_PANEL, true);
    for (int i = 0; i < rows; i++) memcpy(mx_row(g->c, r + i) + o, c + i * MX_PANEL, (size_t)cols * sizeof *c);
}

static void gemm_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const gemm *g = ctx;
    int64_t first = part % g->blocks * g->block_rows, last = first + g->block_rows < g->M ? first + g->block_rows : g->M;
    int64_t o = part / g->blocks * g->group * MX_PANEL;
    int64_t panels = (g->N - o + MX_PANEL - 1) / MX_PANEL;
    if (panels > g->group) panels = g->group;
    _Alignas(64) float panel[GROUP * STEP * MX_PANEL];
    _Alignas(64) float stage[BLOCK * STEP];
    for (int64_t k = 0; k < g->K; k += STEP) {
        int64_t n = g->K - k < STEP ? g->K - k : STEP;
        for (int64_t p = 0; p < panels; p++) pack_panel(g, panel + p * STEP * MX_PANEL, o + p * MX_PANEL, k, n);
        for (int64_t r = first; r < last; r += BLOCK) {
            int64_t m = last - r < BLOCK ? last - r : BLOCK, ld;
            const float *a = stage_rows(g, stage, r, m, k, n, &ld);
            for (int64_t p = 0; p < panels; p++)
                for (int64_t i = 0; i < m;) {
                    int rows = mx_tile_rows(m - i);
                    tile(g, rows, a + i * ld, ld, panel + p * STEP * MX_PANEL, n, r + i, o + p * MX_PANEL);
                    i += rows;
                }
        }
    }
}

/* Columns first, because a part packs its panels for all of its rows; then rows,
 * until every thread has a few parts. */
static void run(mx_stream *s, gemm *g)
{
    int64_t panels = (g->N + MX_PANEL - 1) / MX_PANEL, threads = mx_pool_threads(s->dev->pool);
    g->group = (panels + 2 * threads - 1) / (2 * threads);
    if (g->group > GROUP) g->group = GROUP;
    g->groups = (panels + g->group - 1) / g->group;
    g->blocks = threads == 1 ? 1 : (3 * threads + g->groups - 1) / g->groups;
    int64_t most = (g->M + 2 * BLOCK - 1) / (2 * BLOCK);
    if (g->blocks > most) g->blocks = most;
    g->block_rows = ((g->M + g->blocks - 1) / g->blocks + MX_TILE_ROWS - 1) / MX_TILE_ROWS * MX_TILE_ROWS;
    g->blocks = (g->M + g->block_rows - 1) / g->block_rows;
    mx_pool_run(s->dev->pool, g->groups * g->blocks, gemm_part, g);
}

/* ---- what the sums begin with ------------------------------------------------------ */

static void begin_rows(const void *ctx, int64_t first, int64_t last)
{
    const mx_tensor *t = ctx;             /* y, and b or nothing */
    for (int64_t r = first; r < last; r++) {
        if (t[1].data) memcpy(mx_row(t[0], r), t[1].data, (size_t)t[0].cols * sizeof(float));
        else memset(mx_row(t[0], r), 0, (size_t)t[0].cols * sizeof(float));
    }
}

static void add_bias_rows(const void *ctx, int64_t first, int64_t last)
{
    const mx_tensor *t = ctx;
    const float *b = t[1].data;
    for (int64_t r = first; r < last; r++) {
        float *y = mx_row(t[0], r);
#pragma omp simd
        for (int64_t i = 0; i < t[0].cols; i++) y[i] += b[i];
    }
}

void mx_cpu_product(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor w, mx_tensor b, mx_dtype as, bool add)
{
    mx_tensor t[2] = {y, b};
    gemm g = {.c = y, .a = x, .b = w, .M = y.rows, .N = y.cols, .K = x.cols, .b_turned = true, .round = as == MX_BF16};
    if (!add) mx_cpu_rows(s, y.rows, y.cols, begin_rows, t);
    else if (b.data) mx_cpu_rows(s, y.rows, y.cols, add_bias_rows, t);
    run(s, &g);
}

/* ---- a whole perceptron ------------------------------------------------------------- */

#define TALL 192              /* rows of a part: what lies between their layers stays in the second-level cache */

typedef struct network_job {
    mx_tensor y, x;
    const mx_perceptron_shape *p;
    int64_t rows, ld;         /* of a part; floats from row to row between the layers */
} network_job;

/* c[m,N] = a[m,K] w[N,K]^T + b by the chains of mx_cpu_product; c has room for whole panels. */
static void dense(float *c, int64_t ldc, const float *a, int64_t lda, int64_t m, mx_tensor w, mx_tensor b)
{
    gemm g = {.b = w, .N = w.rows, .K = w.cols, .b_turned = true};
    _Alignas(64) float panel[STEP * MX_PANEL];
    int64_t padded = (g.N + MX_PANEL - 1) / MX_PANEL * MX_PANEL;
    for (int64_t r = 0; r < m; r++) {
        memcpy(c + r * ldc, b.data, (size_t)g.N * sizeof *c);
        memset(c + r * ldc + g.N, 0, (size_t)(padded - g.N) * sizeof *c);
    }
    for (int64_t o = 0; o < g.N; o += MX_PANEL)
        for (int64_t k = 0; k < g.K; k += STEP) {
            int64_t n = g.K - k < STEP ? g.K - k : STEP;
            pack_panel(&g, panel, o, k, n);
            for (int64_t i = 0; i < m;) {
                int rows = mx_tile_rows(m - i);
                mx_gemm_f32(rows, a + i * lda + k, lda, panel, n, c + i * ldc + o, ldc, true);
                i += rows;
            }
        }
}

static void network_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const network_job *j = ctx;
    const mx_perceptron_shape *p = j->p;
    int64_t first = part * j->rows, m = j->x.rows - first < j->rows ? j->x.rows - first : j->rows, lda = j->x.stride;
    _Alignas(64) float between[2][TALL * MX_PERCEPTRON_WIDTH];
    const float *a = mx_row(j->x, first);
    for (int k = 0; k < p->layers; k++) {
        float *c = between[k % 2];
        dense(c, j->ld, a, lda, m, p->w[k], p->b[k]);
        for (int64_t r = 0; r < m && k < p->layers - 1; r++) mx_cpu_activate_row(c + r * j->ld, c + r * j->ld, p->w[k].rows, p->act);
        a = c;
        lda = j->ld;
    }
    for (int64_t r = 0; r < m; r++)
        if (p->atoms) mx_cpu_dueling_row(mx_row(j->y, first + r), a + r * lda, j->y.cols / p->atoms, p->atoms);
        else memcpy(mx_row(j->y, first + r), a + r * lda, (size_t)j->y.cols * sizeof *a);
}

/* A part packs every panel once for its rows: tall parts, but one for each thread. */
void mx_cpu_perceptron(mx_stream *s, mx_tensor y, mx_tensor x, const mx_perceptron_shape *p)
{
    network_job j = {.y = y, .x = x, .p = p};
    int64_t parts = (x.rows + TALL - 1) / TALL, threads = mx_pool_threads(s->dev->pool), most = (x.rows + BLOCK - 1) / BLOCK;
    for (int k = 0; k < p->layers; k++)
        if (p->w[k].rows > j.ld) j.ld = p->w[k].rows;
    j.ld = (j.ld + MX_PANEL - 1) / MX_PANEL * MX_PANEL;
    if (parts < threads) parts = threads < most ? threads : most;
    j.rows = ((x.rows + parts - 1) / parts + MX_TILE_ROWS - 1) / MX_TILE_ROWS * MX_TILE_ROWS;
    mx_pool_run(s->dev->pool, (x.rows + j.rows - 1) / j.rows, network_part, &j);
}

/* ---- backward ------------------------------------------------------------------------ */

typedef struct columns {
    mx_tensor sum, x;
} columns;

/* Columns c..c+63, all rows in order. */
static void columns_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const columns *j = ctx;
    int64_t c = part * MX_PANEL, n = j->x.cols - c < MX_PANEL ? j->x.cols - c : MX_PANEL;
    float *sum = (float *)j->sum.data + c;
    float acc[MX_PANEL];
    memcpy(acc, sum, (size_t)n * sizeof *acc);
    for (int64_t r = 0; r < j->x.rows; r++) {
        const float *x = mx_row(j->x, r) + c;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) acc[i] += x[i];
    }
    memcpy(sum, acc, (size_t)n * sizeof *acc);
}

void mx_cpu_product_back(mx_stream *s, mx_tensor dx, mx_tensor dw, mx_tensor db, mx_tensor dy, mx_tensor x, mx_tensor w,
                         mx_dtype as, bool add)
{
    bool round = as == MX_BF16;
    if (dx.data) {
        mx_tensor t[2] = {dx, {0}};
        gemm g = {.c = dx, .a = dy, .b = w, .M = dx.rows, .N = dx.cols, .K = dy.cols, .round = round};
        if (!add) mx_cpu_rows(s, dx.rows, dx.cols, begin_rows, t);
        run(s, &g);
    }
    if (dw.data) {
        gemm g = {.c = dw, .a = dy, .b = x, .M = dw.rows, .N = dw.cols, .K = dy.rows, .a_turned = true, .round = round};
        run(s, &g);
    }
    if (db.data) {
        columns j = {db, dy};
        mx_pool_run(s->dev->pool, (dy.cols + MX_PANEL - 1) / MX_PANEL, columns_part, &j);
    }
}
