/* embed.c - table rows by id, and rotary positions; forward and backward. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#define BACK_COLUMNS 64        /* of a part that adds up rows */

typedef struct embed_job {
    mx_tensor y, table, ids;
    bool add;
} embed_job;

static void load_row(float *dst, const void *src, mx_dtype type, int64_t n, bool add)
{
    const uint16_t *h = src;
    const float *f = src;
    for (int64_t i = 0; i < n; i++) {
        float v = type == MX_F32 ? f[i] : type == MX_BF16 ? mx_bf16_to_f32(h[i]) : mx_f16_to_f32(h[i]);
        dst[i] = add ? dst[i] + v : v;
    }
}

static void embed_rows(const void *ctx, int64_t first, int64_t last)
{
    const embed_job *j = ctx;
    size_t pitch = (size_t)j->table.stride * mx_dtype_size(j->table.dtype);
    for (int64_t r = first; r < last; r++) {
        const char *src = (const char *)j->table.data + (size_t)*mx_row_i32(j->ids, r) * pitch;
        load_row(mx_row(j->y, r), src, j->table.dtype, j->y.cols, j->add);
    }
}

void mx_cpu_embed(mx_stream *s, mx_tensor y, mx_tensor table, mx_tensor ids, bool add)
{
    for (int64_t r = 0; r < y.rows; r++) {
        int32_t id = *mx_row_i32(ids, r);
        if (id < 0 || id >= table.rows) {
            mx_stream_fail(s, MX_ERR_ARG, "embed: id %d of row %lld is outside the table's %lld rows", id, (long long)r,
                           (long long)table.rows);
            return;
        }
    }
    embed_job j = {y, table, ids, add};
    mx_cpu_rows(s, y.rows, y.cols, embed_rows, &j);
}

/* Columns c.. of every row, in the order of the rows: an id may come many times. */
static void embed_back_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const embed_job *j = ctx;
    int64_t c = part * BACK_COLUMNS, n = j->y.cols - c < BACK_COLUMNS ? j->y.cols - c : BACK_COLUMNS;
    for (int64_t r = 0; r < j->y.rows; r++) {
        const float *dy = mx_row(j->y, r) + c;
        float *to = mx_row(j->table, *mx_row_i32(j->ids, r)) + c;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] += dy[i];
    }
}

void mx_cpu_embed_back(mx_stream *s, mx_tensor dtable, mx_tensor dy, mx_tensor ids)
{
    for (int64_t r = 0; r < dy.rows; r++) {
        int32_t id = *mx_row_i32(ids, r);
        if (id >= 0 && id < dtable.rows) continue;
        mx_stream_fail(s, MX_ERR_ARG, "embed_back: id %d of row %lld is outside the table's %lld rows", id, (long long)r,
                       (long long)dtable.rows);
        return;
    }
    embed_job j = {dy, dtable, ids, true};
    mx_pool_run(s->dev->pool, (dy.cols + BACK_COLUMNS - 1) / BACK_COLUMNS, embed_back_part, &j);
}

/* ---- rotary positions ------------------------------------------------------- */

/* cos and sin of a float in double, to under 1e-14: reduction to +-pi/4 by
 * pi/2 in two parts (exact enough for |x| < 2^30), Taylor polynomials; written
 * without branches so that it vectorises. */
#pragma omp declare simd notinbranch
static inline void cos_sin(double x, double *c, double *s)
{
    double n = (x * 0.63661977236758134308 + 0x1.8p52) - 0x1.8p52;
    double r = (x - n * 1.57079632673412561417) - n * 6.07710050650619224932e-11;
    double z = r * r;
    double sn = r + r * z * (-1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 +
                z * (-1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 +
                z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)))));
    double cs = 1.0 - 0.5 * z + z * z * (4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 +
                z * (2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 +
                z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)))));
    double q = n - 4.0 * __builtin_floor(n * 0.25);          /* quadrant 0..3 */
    double a = q == 1.0 || q == 3.0 ? sn : cs, b = q == 1.0 || q == 3.0 ? cs : sn;
    *c = q == 1.0 || q == 2.0 ? -a : a;
    *s = q >= 2.0 ? -b : b;
}

typedef struct rope_job {
    mx_tensor x, at, freq;
    float magnitude, direction;      /* -1: back */
    int heads;
    bool interleaved;
} rope_job;

#define ROPE_BLOCK 64          /* pairs whose cos and sin are computed at a time */

static void rope_block(const rope_job *j, float *x, int64_t first, int64_t n, const float *c, const float *s)
{
    int64_t half = j->freq.cols, d = 2 * half;
    for (int h = 0; h < j->heads; h++, x += d) {
        if (j->interleaved) {
            float *p = x + 2 * first;
            for (int64_t i = 0; i < n; i++) {
                float a = p[2 * i], b = p[2 * i + 1];
                p[2 * i] = a * c[i] - b * s[i];
                p[2 * i + 1] = b * c[i] + a * s[i];
            }
        } else {
            float *p = x + first, *q = p + half;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) {
                float a = p[i], b = q[i];
                p[i] = a * c[i] - b * s[i];
                q[i] = b * c[i] + a * s[i];
            }
        }
    }
}

static void rope_rows(const void *ctx, int64_t first, int64_t last)
{
    const rope_job *j = ctx;
    const float *freq = j->freq.data;
    float c[ROPE_BLOCK], s[ROPE_BLOCK];
    for (int64_t r = first; r < last; r++) {
        float at = (float)*mx_row_i32(j->at, r);
        for (int64_t b = 0; b < j->freq.cols; b += ROPE_BLOCK) {
            int64_t n = j->freq.cols - b < ROPE_BLOCK ? j->freq.cols - b : ROPE_BLOCK;
#pragma omp simd
            for (int64_t i = 0; i < n; i++) {
                double cd, sd;
                cos_sin((double)(at * freq[b + i]), &cd, &sd);
                c[i] = (float)cd * j->magnitude;
                s[i] = (float)sd * j->magnitude * j->direction;
            }
            rope_block(j, mx_row(j->x, r), b, n, c, s);
        }
    }
}

void mx_cpu_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                 bool interleaved)
{
    rope_job j = {x, positions, freq, magnitude, 1, heads, interleaved};
    mx_cpu_rows(s, x.rows, 2 * x.cols, rope_rows, &j);
}

/* The transpose of a rotation is the rotation back. */
void mx_cpu_rope_back(mx_stream *s, mx_tensor dx, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    rope_job j = {dx, positions, freq, magnitude, -1, heads, interleaved};
    mx_cpu_rows(s, dx.rows, 2 * dx.cols, rope_rows, &j);
}
