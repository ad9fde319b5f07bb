/* blocks.c - numbers as files hold them, to f32.
 *
 * Block formats as in ggml's reference (ggml-common.h, dequantize_row_* of
 * ggml-quants.c), with the same order of roundings: scale times level first,
 * then the offset, and no fused multiply-add (the build says
 * -ffp-contract=off), so results equal the reference bit for bit.  The loops
 * have fixed trip counts and no branches; compilers turn them into byte
 * shuffles, conversions and multiplies. */
#include "models/checkpoint_internal.h"

/* The mapping gives no alignment; these types may be loaded from anywhere. */
typedef uint16_t any_u16 __attribute__((aligned(1), may_alias));

static const struct {
    const char *name;
    mx_block_format block;
} formats[MX_FILE_DTYPE_COUNT] = {
    [MX_FILE_F32] = {"F32", {1, 4}},       [MX_FILE_F16] = {"F16", {1, 2}},       [MX_FILE_BF16] = {"BF16", {1, 2}},
    [MX_FILE_Q8_0] = {"Q8_0", {32, 34}},   [MX_FILE_Q4_0] = {"Q4_0", {32, 18}},   [MX_FILE_Q4_1] = {"Q4_1", {32, 20}},
    [MX_FILE_Q4_K] = {"Q4_K", {256, 144}}, [MX_FILE_Q6_K] = {"Q6_K", {256, 210}}, [MX_FILE_OTHER] = {"other", {0, 0}},
};

const char *mx_file_dtype_name(mx_file_dtype t)
{
    return (unsigned)t < MX_FILE_DTYPE_COUNT ? formats[t].name : "unknown";
}

mx_block_format mx_file_dtype_block(mx_file_dtype t)
{
    return (unsigned)t < MX_FILE_DTYPE_COUNT ? formats[t].block : (mx_block_format){0, 0};
}

static inline float from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* IEEE half to single without branches, so that loops over it vectorise: a
 * subnormal is its integer times 2^-24; the others move their exponent from
 * bias 15 to 127, infinities and NaNs to the top. */
static inline float half_to_float(uint16_t h)
{
    const uint32_t low = h & 0x7fffu, sign = (uint32_t)(h & 0x8000u) << 16;
    const uint32_t is_tiny = 0u - (low < 0x400u), is_top = 0u - (low >= 0x7c00u);
    const float tiny = (float)(int32_t)low * 0x1p-24f;
    const uint32_t normal = (low << 13) + (112u << 23) + (is_top & (112u << 23));
    uint32_t bits;
    memcpy(&bits, &tiny, sizeof bits);
    return from_bits(sign | (is_tiny & bits) | (~is_tiny & normal));
}

static inline float load_half(const uint8_t *at)
{
    return half_to_float(*(const any_u16 *)at);
}

/* ---- one function per format: n blocks from src to dst ------------------------ */

static void read_f32(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    memcpy(dst, src, (size_t)n * sizeof *dst);
}

static void read_f16(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    const any_u16 *h = (const any_u16 *)src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dst[i] = half_to_float(h[i]);
}

static void read_bf16(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    const any_u16 *h = (const any_u16 *)src;
#pragma omp simd
    for (int64_t i = 0; i < n; i++) dst[i] = from_bits((uint32_t)h[i] << 16);
}

/* f16 d, i8 q[32]: q * d */
static void read_q8_0(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    for (; n-- > 0; src += 34, dst += 32) {
        const float d = load_half(src);
        const int8_t *q = (const int8_t *)src + 2;
#pragma omp simd
        for (int i = 0; i < 32; i++) dst[i] = (float)q[i] * d;
    }
}

/* f16 d, u4 q[32], the low halves of the 16 bytes first: (q - 8) * d */
static void read_q4_0(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    for (; n-- > 0; src += 18, dst += 32) {
        const float d = load_half(src);
        const uint8_t *q = src + 2;
#pragma omp simd
        for (int i = 0; i < 16; i++) dst[i] = (float)((q[i] & 15) - 8) * d;
#pragma omp simd
        for (int i = 0; i < 16; i++) dst[i + 16] = (float)((q[i] >> 4) - 8) * d;
    }
}

/* f16 d, f16 m, u4 q[32]: q * d + m */
static void read_q4_1(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    for (; n-- > 0; src += 20, dst += 32) {
        const float d = load_half(src), m = load_half(src + 2);
        const uint8_t *q = src + 4;
#pragma omp simd
        for (int i = 0; i < 16; i++) dst[i] = (float)(q[i] & 15) * d + m;
#pragma omp simd
        for (int i = 0; i < 16; i++) dst[i + 16] = (float)(q[i] >> 4) * d + m;
    }
}

/* f16 d, f16 dmin, eight 6-bit scales and eight 6-bit minima in 12 bytes,
 * u4 q[256] in groups of 32 bytes (low halves, then high): q * (d*s) - dmin*m */
static void read_q4_k(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    for (; n-- > 0; src += 144, dst += 256) {
        const float d = load_half(src), dmin = load_half(src + 2);
        const uint8_t *s = src + 4, *q = src + 16;
        float scale[8], least[8];
        for (int j = 0; j < 4; j++) {
            scale[j] = d * (float)(s[j] & 63);
            least[j] = dmin * (float)(s[j + 4] & 63);
            scale[j + 4] = d * (float)((s[j + 8] & 15) | (s[j] >> 6) << 4);
            least[j + 4] = dmin * (float)(s[j + 8] >> 4 | (s[j + 4] >> 6) << 4);
        }
        for (int j = 0; j < 4; j++) {
            const float d0 = scale[2 * j], m0 = least[2 * j], d1 = scale[2 * j + 1], m1 = least[2 * j + 1];
            float *restrict y = dst + 64 * j;
#pragma omp simd
            for (int i = 0; i < 32; i++) y[i] = d0 * (float)(q[32 * j + i] & 15) - m0;
#pragma omp simd
            for (int i = 0; i < 32; i++) y[i + 32] = d1 * (float)(q[32 * j + i] >> 4) - m1;
        }
    }
}

/* u4 low[128 bytes], u2 high[64 bytes], i8 scale[16], f16 d: two halves of 128
 * values, in each four runs of 32 that share the 32 bytes of high bits:
 * (d*scale) * (low + 16*high - 32) */
static void read_q6_k(const uint8_t *restrict src, int64_t n, float *restrict dst)
{
    for (; n-- > 0; src += 210, dst += 256) {
        const int8_t *scale = (const int8_t *)src + 192;
        const float d = load_half(src + 208);
        for (int half = 0; half < 2; half++) {
            const uint8_t *low = src + 64 * half, *high = src + 128 + 32 * half;
            for (int run = 0; run < 8; run++) { /* 16 values with one scale */
                const int shift = run / 2 * 2, nibble = run / 4 * 4;
                const uint8_t *l = low + 16 * (run & 3), *h = high + 16 * (run & 1);
                const float by = d * (float)scale[8 * half + run];
                float *restrict y = dst + 128 * half + 16 * run;
#pragma omp simd
                for (int i = 0; i < 16; i++) {
                    y[i] = by * (float)((l[i] >> nibble & 15) + ((h[i] >> shift & 3) << 4) - 32);
                }
            }
        }
    }
}

typedef void read_fn(const uint8_t *restrict src, int64_t n, float *restrict dst);
static read_fn *const readers[MX_FILE_DTYPE_COUNT] = {
    [MX_FILE_F32] = read_f32,   [MX_FILE_F16] = read_f16,   [MX_FILE_BF16] = read_bf16, [MX_FILE_Q8_0] = read_q8_0,
    [MX_FILE_Q4_0] = read_q4_0, [MX_FILE_Q4_1] = read_q4_1, [MX_FILE_Q4_K] = read_q4_k, [MX_FILE_Q6_K] = read_q6_k,
};

/* ---- rows ----------------------------------------------------------------------- */

void mx_blob_read(const mx_blob *b, int64_t first, int64_t n, float *dst)
{
    const mx_block_format f = formats[b->dtype].block;
    if (!f.values || n <= 0 || !b->cols) return;
    const int64_t per_row = b->cols / f.values;
    readers[b->dtype]((const uint8_t *)b->data + (size_t)(first * per_row) * (size_t)f.bytes, n * per_row, dst);
}

/* Tiles of 64 columns x 16 rows: whole cache lines are read of each source row
 * and whole lines written; the tile itself stays in the first-level cache. */
#define TILE_COLS 64
#define TILE_ROWS 16

void mx_blob_read_transposed(const mx_blob *b, int64_t first, int64_t n, float *dst)
{
    const mx_block_format f = formats[b->dtype].block;
    if (f.values != 1 || !b->rows) return; /* [0, 2^60] is a shape that a file may hold: n then means no work */
    const uint8_t *base = b->data;
    float tile[TILE_ROWS][TILE_COLS];
    for (int64_t c0 = 0; c0 < n; c0 += TILE_COLS) {
        const int64_t nc = n - c0 < TILE_COLS ? n - c0 : TILE_COLS;
        for (int64_t r0 = 0; r0 < b->rows; r0 += TILE_ROWS) {
            const int64_t nr = b->rows - r0 < TILE_ROWS ? b->rows - r0 : TILE_ROWS;
            for (int64_t r = 0; r < nr; r++) {
                const int64_t element = (r0 + r) * b->cols + first + c0;
                readers[b->dtype](base + (size_t)element * (size_t)f.bytes, nc, tile[r]);
            }
            for (int64_t c = 0; c < nc; c++) {
                float *restrict y = dst + (c0 + c) * b->rows + r0;
                for (int64_t r = 0; r < nr; r++) y[r] = tile[r][c];
            }
        }
    }
}

static void read_rows(const void *blob, int64_t first, int64_t n, float *dst)
{
    mx_blob_read(blob, first, n, dst);
}

static void read_rows_transposed(const void *blob, int64_t first, int64_t n, float *dst)
{
    mx_blob_read_transposed(blob, first, n, dst);
}

mx_row_source mx_blob_rows(const mx_blob *b)
{
    return (mx_row_source){.read = read_rows, .ctx = b, .rows = b->rows, .cols = b->cols};
}

mx_row_source mx_blob_rows_transposed(const mx_blob *b)
{
    return (mx_row_source){.read = read_rows_transposed, .ctx = b, .rows = b->cols, .cols = b->rows};
}
