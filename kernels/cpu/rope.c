/* rope.c - rotary positions, forward and backward, and on the way into the KV cache. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/kv.h"

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
    const mx_kv *kv;                 /* rope_kv_write: where keys and values go */
    mx_tensor slots;
} rope_job;

#define ROPE_BLOCK 64          /* pairs whose cos and sin are computed at a time */

static void rope_block(const rope_job *j, float *x, int heads, int64_t first, int64_t n, const float *c, const float *s)
{
    int64_t half = j->freq.cols, d = 2 * half;
    for (int h = 0; h < heads; h++, x += d) {
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

/* cos and sin of pairs first..first+n-1 at a row's position. */
static void rope_angles(const rope_job *j, int64_t row, int64_t first, int64_t n, float *c, float *s)
{
    float at = (float)*mx_row_i32(j->at, row);
    const float *freq = (const float *)j->freq.data + first;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) {
        double cd, sd;
        cos_sin((double)(at * freq[i]), &cd, &sd);
        c[i] = (float)cd * j->magnitude;
        s[i] = (float)sd * j->magnitude * j->direction;
    }
}

static void rope_rows(const void *ctx, int64_t first, int64_t last)
{
    const rope_job *j = ctx;
    float c[ROPE_BLOCK], s[ROPE_BLOCK];
    for (int64_t r = first; r < last; r++)
        for (int64_t b = 0; b < j->freq.cols; b += ROPE_BLOCK) {
            int64_t n = j->freq.cols - b < ROPE_BLOCK ? j->freq.cols - b : ROPE_BLOCK;
            rope_angles(j, r, b, n, c, s);
            rope_block(j, mx_row(j->x, r), j->heads, b, n, c, s);
        }
}

void mx_cpu_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                 bool interleaved)
{
    rope_job j = {.x = x, .at = positions, .freq = freq, .magnitude = magnitude, .direction = 1, .heads = heads, .interleaved = interleaved};
    mx_cpu_rows(s, x.rows, 2 * x.cols, rope_rows, &j);
}

/* The transpose of a rotation is the rotation back. */
void mx_cpu_rope_back(mx_stream *s, mx_tensor dx, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    rope_job j = {.x = dx, .at = positions, .freq = freq, .magnitude = magnitude, .direction = -1, .heads = heads, .interleaved = interleaved};
    mx_cpu_rows(s, dx.rows, 2 * dx.cols, rope_rows, &j);
}

/* ---- on the way into the cache ------------------------------------------------- */

/* A row's keys are turned in a copy of a head, which goes to the cache from there. */
static void rope_write_rows(const void *ctx, int64_t first, int64_t last)
{
    const rope_job *j = ctx;
    const mx_kv *kv = j->kv;
    int64_t d = kv->head_dim;
    float c[MX_HEAD_MAX / 2], s[MX_HEAD_MAX / 2], head[MX_HEAD_MAX];
    for (int64_t r = first; r < last; r++) {
        float *q = mx_row(j->x, r);
        const float *k = q + j->heads * d, *v = k + kv->kv_heads * d;
        int32_t slot = *mx_row_i32(j->slots, r);
        int64_t page = slot / kv->page_tokens, offset = slot % kv->page_tokens;
        for (int64_t b = 0; b < d / 2; b += ROPE_BLOCK) {
            int64_t n = d / 2 - b < ROPE_BLOCK ? d / 2 - b : ROPE_BLOCK;
            rope_angles(j, r, b, n, c + b, s + b);
            rope_block(j, q, j->heads, b, n, c + b, s + b);
        }
        for (int64_t g = 0; g < kv->kv_heads; g++, k += d, v += d) {
            memcpy(head, k, (size_t)d * sizeof *head);
            for (int64_t b = 0; b < d / 2; b += ROPE_BLOCK)
                rope_block(j, head, 1, b, d / 2 - b < ROPE_BLOCK ? d / 2 - b : ROPE_BLOCK, c + b, s + b);
            mx_kv_store(mx_kv_at(kv, kv->k, page, g, offset), head, kv->dtype, d);
            mx_kv_store(mx_kv_at(kv, kv->v, page, g, offset), v, kv->dtype, d);
        }
    }
}

void mx_cpu_rope_kv_write(mx_stream *s, mx_tensor qkv, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                          bool interleaved, const mx_kv *kv, mx_tensor slots)
{
    if (kv->head_dim > MX_HEAD_MAX) {
        mx_stream_fail(s, MX_ERR_ARG, "rope_kv_write: heads of %d channels, at most %d", kv->head_dim, MX_HEAD_MAX);
        return;
    }
    if (!mx_kv_slots_sound(s, "rope_kv_write", kv, slots)) return;
    rope_job j = {.x = qkv, .at = positions, .freq = freq, .magnitude = magnitude, .direction = 1, .heads = heads,
                  .interleaved = interleaved, .kv = kv, .slots = slots};
    mx_cpu_rows(s, qkv.rows, 2 * qkv.cols, rope_write_rows, &j);
}
