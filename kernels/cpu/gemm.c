/* gemm.c - register tiles: 6 rows by 64 channels with AVX-512, by 16 elsewhere.
 *
 * The tile functions are written once, with the number of rows and of vectors
 * as constants that the compiler unrolls; six rows times four vectors leave 8
 * of 32 registers for the weights and the broadcast. */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/simd.h"

#ifdef MX_SIMD_AVX512
#define TILE_V 4          /* vectors of 16 channels in a tile of several rows */
#else
#define TILE_V 1
#endif

/* One row alone is bound by reading the weights: it takes the whole panel. */
#define EACH_ROWS(rows, CALL)                                                              \
    switch (rows) {                                                                        \
    case 1: CALL(1, 4); break;                                                             \
    case 2: CALL(2, TILE_V); break;                                                        \
    case 3: CALL(3, TILE_V); break;                                                        \
    case 4: CALL(4, TILE_V); break;                                                        \
    case 5: CALL(5, TILE_V); break;                                                        \
    default: CALL(6, TILE_V); break;                                                       \
    }

/* ---- f32 -------------------------------------------------------------------- */

MX_INLINE void tile_f32(const int rows, const int vectors, const float *x, int64_t ldx, const float *w, int64_t n,
                        float *c, int64_t ldc, bool resume)
{
    vf a[MX_TILE_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) a[r][v] = resume ? vf_load(c + r * ldc + v * VF) : vf_zero();
    for (int64_t k = 0; k < n; k++, w += MX_PANEL) {
        vf b[4];
        UNROLL for (int v = 0; v < vectors; v++) b[v] = vf_load(w + v * VF);
        UNROLL for (int r = 0; r < rows; r++) {
            vf xk = vf_set(x[r * ldx + k]);
            UNROLL for (int v = 0; v < vectors; v++) a[r][v] = vf_fma(xk, b[v], a[r][v]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) vf_store(c + r * ldc + v * VF, a[r][v]);
}

void mx_gemm_f32(int rows, const float *x, int64_t ldx, const float *panel, int64_t n, float *c, int64_t ldc, bool resume)
{
#define CALL(R, V) \
    for (int o = 0; o < MX_PANEL; o += (V) * VF) tile_f32(R, V, x, ldx, panel + o, n, c + o, ldc, resume)
    EACH_ROWS(rows, CALL)
#undef CALL
}

/* ---- bf16 ------------------------------------------------------------------- */

/* a += x[0] w[][0] + x[1] w[][1] of 16 channels, the second product first */
#if MX_BF16_PAIRS
typedef __m512i vpairs;
MX_INLINE vpairs load_pairs(const uint16_t *p) { return _mm512_loadu_si512(p); }
MX_INLINE vf add_pairs(vf a, const mx_bf16_x *x, vpairs w)
{
    int32_t two;
    memcpy(&two, x, sizeof two);
    return _mm512_dpbf16_ps(a, (__m512bh)_mm512_set1_epi32(two), (__m512bh)w);
}
#else
typedef struct vpairs { vf even, odd; } vpairs;
#if defined(MX_SIMD_AVX512)
MX_INLINE vpairs load_pairs(const uint16_t *p)
{
    __m512i u = _mm512_loadu_si512(p);
    return (vpairs){_mm512_castsi512_ps(_mm512_slli_epi32(u, 16)), _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32((int)0xffff0000u)))};
}
#elif defined(MX_SIMD_AVX2)
MX_INLINE vpairs load_pairs(const uint16_t *p)
{
    __m256i u = _mm256_loadu_si256((const __m256i *)p), v = _mm256_loadu_si256((const __m256i *)(p + VF));
    __m256i high = _mm256_set1_epi32((int)0xffff0000u);
    return (vpairs){{_mm256_castsi256_ps(_mm256_slli_epi32(u, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(v, 16))},
                   {_mm256_castsi256_ps(_mm256_and_si256(u, high)), _mm256_castsi256_ps(_mm256_and_si256(v, high))}};
}
#else
MX_INLINE vpairs load_pairs(const uint16_t *p)
{
    vpairs w;
    for (int l = 0; l < VF; l++) {
        w.even.f[l] = mx_bf16_to_f32(p[2 * l]);
        w.odd.f[l] = mx_bf16_to_f32(p[2 * l + 1]);
    }
    return w;
}
#endif
MX_INLINE vf add_pairs(vf a, const mx_bf16_x *x, vpairs w)
{
    return vf_fma(vf_set(x[0]), w.even, vf_fma(vf_set(x[1]), w.odd, a));
}
#endif

MX_INLINE void tile_bf16(const int rows, const int vectors, const mx_bf16_x *x, int64_t ldx, const uint16_t *w, int64_t n,
                         float *c, int64_t ldc, bool resume)
{
    vf a[MX_TILE_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) a[r][v] = resume ? vf_load(c + r * ldc + v * VF) : vf_zero();
    for (int64_t k = 0; k < n; k += 2, w += 2 * MX_PANEL)
        UNROLL for (int v = 0; v < vectors; v++) {
            vpairs b = load_pairs(w + 2 * v * VF);
            UNROLL for (int r = 0; r < rows; r++) a[r][v] = add_pairs(a[r][v], x + r * ldx + k, b);
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) vf_store(c + r * ldc + v * VF, a[r][v]);
}

void mx_gemm_bf16(int rows, const mx_bf16_x *x, int64_t ldx, const uint16_t *panel, int64_t n, float *c, int64_t ldc,
                  bool resume)
{
#define CALL(R, V) \
    for (int o = 0; o < MX_PANEL; o += (V) * VF) tile_bf16(R, V, x, ldx, panel + 2 * o, n, c + o, ldc, resume)
    EACH_ROWS(rows, CALL)
#undef CALL
}

/* ---- int8 ------------------------------------------------------------------- */

MX_INLINE int32_t four_bytes(const uint8_t *p)
{
    int32_t u;
    memcpy(&u, p, sizeof u);
    return u;
}

#if MX_INT8_BIAS

typedef __m512i vi;
/* -MX_INT8_BIAS times the group's sums */
MX_INLINE vi vi_begin(const int16_t *sums)
{
    vi s = _mm512_cvtepi16_epi32(_mm256_loadu_si256((const __m256i *)sums));
    return _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(s, 7));
}
MX_INLINE void vi_store(int32_t *p, vi a) { _mm512_storeu_si512(p, a); }
MX_INLINE vf vi_float(const int32_t *p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
MX_INLINE vi vi_dot4(vi acc, int32_t x, const int8_t *w)
{
    return _mm512_dpbusd_epi32(acc, _mm512_set1_epi32(x), _mm512_loadu_si512(w));
}

#elif defined(__AVX2__)

#include <immintrin.h>
typedef struct vi { __m256i a, b; } vi;
MX_INLINE vi vi_begin(const int16_t *sums)
{
    (void)sums;
    return (vi){_mm256_setzero_si256(), _mm256_setzero_si256()};
}
MX_INLINE void vi_store(int32_t *p, vi x)
{
    _mm256_storeu_si256((__m256i *)p, x.a);
    _mm256_storeu_si256((__m256i *)(p + 8), x.b);
}
#ifdef MX_SIMD_AVX512                 /* without VNNI */
MX_INLINE vf vi_float(const int32_t *p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
#else
MX_INLINE vf vi_float(const int32_t *p)
{
    return (vf){_mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)p)), _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)(p + 8)))};
}
#endif
/* |x| times w with x's sign: both stay within 127, so the 16-bit sums of two
 * products that maddubs makes cannot saturate (2 * 127 * 127 < 32768). */
MX_INLINE __m256i dot4_half(__m256i acc, __m256i x, __m256i w)
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), _mm256_sign_epi8(w, x));
    return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
MX_INLINE vi vi_dot4(vi acc, int32_t x, const int8_t *w)
{
    __m256i xs = _mm256_set1_epi32(x);
    return (vi){dot4_half(acc.a, xs, _mm256_loadu_si256((const __m256i *)w)),
                dot4_half(acc.b, xs, _mm256_loadu_si256((const __m256i *)(w + 32)))};
}

#else

typedef struct vi { int32_t i[VF]; } vi;
MX_INLINE vi vi_begin(const int16_t *sums)
{
    (void)sums;
    return (vi){{0}};
}
MX_INLINE void vi_store(int32_t *p, vi a) { memcpy(p, a.i, sizeof a.i); }
MX_INLINE vf vi_float(const int32_t *p)
{
    float f[VF];
    for (int l = 0; l < VF; l++) f[l] = (float)p[l];
    return vf_load(f);
}
MX_INLINE vi vi_dot4(vi acc, int32_t x, const int8_t *w)
{
    int8_t b[4];
    memcpy(b, &x, sizeof b);
    for (int l = 0; l < VF; l++)
        for (int j = 0; j < 4; j++) acc.i[l] += b[j] * w[4 * l + j];
    return acc;
}

#endif

/* The exact sums of a group, to t[rows][64].  A loop of its own: its 24 sums, the weights and
 * the activation just fit the registers, and with the scaling around it the compiler spills them. */
MX_INLINE void group_i8(const int rows, const int vectors, const uint8_t *x, int64_t ldx, const int8_t *w, const int16_t *sums, int32_t *t)
{
    vi a[MX_TILE_ROWS][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) a[r][v] = vi_begin(sums + v * VF);
    const int8_t *end = w + MX_INT8_GROUP * MX_PANEL;
    __asm__ volatile("" : "+r"(end));                  /* not a number of turns that is known, and unrolled */
    for (int64_t k = 0; w < end; k += 4, w += 4 * MX_PANEL)
        UNROLL for (int r = 0; r < rows; r++) {
            int32_t xk = four_bytes(x + r * ldx + k);
            UNROLL for (int v = 0; v < vectors; v++) a[r][v] = vi_dot4(a[r][v], xk, w + 4 * v * VF);
        }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int v = 0; v < vectors; v++) vi_store(t + r * MX_PANEL + v * VF, a[r][v]);
    __asm__ volatile("" : : "r"(t) : "memory");         /* the sums are in memory here, not in registers across this */
}

MX_INLINE void tile_i8(const int rows, const int vectors, const uint8_t *x, int64_t ldx, mx_panel_i8 p, int o, int64_t n,
                       float *c, int64_t ldc, bool resume)
{
    _Alignas(64) int32_t t[MX_TILE_ROWS * MX_PANEL];
    for (int64_t k = 0; k < n; k += MX_INT8_GROUP, p.scale += MX_PANEL, p.sums += MX_PANEL, p.w += MX_INT8_GROUP * MX_PANEL) {
        group_i8(rows, vectors, x + k, ldx, p.w + 4 * o, p.sums + o, t);
        bool first = k == 0 && !resume;
        UNROLL for (int v = 0; v < vectors; v++) {
            vf scale = vf_load(p.scale + o + v * VF);
            for (int r = 0; r < rows; r++) {
                float *to = c + r * ldc + o + v * VF;
                vf_store(to, vf_fma(vi_float(t + r * MX_PANEL + v * VF), scale, first ? vf_zero() : vf_load(to)));
            }
        }
    }
}

void mx_gemm_i8(int rows, const uint8_t *x, int64_t ldx, mx_panel_i8 panel, int64_t n, float *c, int64_t ldc, bool resume)
{
#define CALL(R, V) \
    for (int o = 0; o < MX_PANEL; o += (V) * VF) tile_i8(R, V, x, ldx, panel, o, n, c, ldc, resume)
    EACH_ROWS(rows, CALL)
#undef CALL
}
