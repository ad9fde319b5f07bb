/* simd.h - sixteen floats at a time, the same bits on every processor.
 *
 * A vf always holds 16 lanes: one AVX-512 register, two AVX2 registers, or a
 * plain array elsewhere.  Lane l of a sum takes elements l, l+16, l+32 ... and
 * vf_sum() adds the lanes in one fixed tree, so a reduction gives the same
 * bits whatever the vector width, alignment or compiler.  Only kernels/cpu
 * includes this. */
#ifndef MX_CPU_SIMD_H
#define MX_CPU_SIMD_H

#include "runtime/tensor.h"

#include <math.h>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define MX_SIMD_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define MX_SIMD_AVX2 1
#include <immintrin.h>
#endif

#define VF 16
#define UNROLL _Pragma("GCC unroll 16")
#define MX_INLINE static inline __attribute__((always_inline))

#if defined(MX_SIMD_AVX512)

typedef __m512 vf;

MX_INLINE vf vf_set(float f) { return _mm512_set1_ps(f); }
MX_INLINE vf vf_load(const float *p) { return _mm512_loadu_ps(p); }
MX_INLINE void vf_store(float *p, vf a) { _mm512_storeu_ps(p, a); }
MX_INLINE vf vf_add(vf a, vf b) { return _mm512_add_ps(a, b); }
MX_INLINE vf vf_sub(vf a, vf b) { return _mm512_sub_ps(a, b); }
MX_INLINE vf vf_mul(vf a, vf b) { return _mm512_mul_ps(a, b); }
MX_INLINE vf vf_div(vf a, vf b) { return _mm512_div_ps(a, b); }
MX_INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
/* b when either is NaN, as the instruction does */
MX_INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
MX_INLINE vf vf_min(vf a, vf b) { return _mm512_min_ps(a, b); }
MX_INLINE vf vf_abs(vf a) { return _mm512_abs_ps(a); }
/* x > 0 ? a : b */
MX_INLINE vf vf_positive(vf x, vf a, vf b) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), b, a); }
MX_INLINE vf vf_round(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

MX_INLINE vf vf_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p); }
MX_INLINE void vf_store_n(float *p, vf a, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), a); }

/* 2^n for integral -127 < n < 128 */
MX_INLINE vf vf_exp2i(vf n)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
}

MX_INLINE vf vf_from_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
MX_INLINE vf vf_from_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

/* Sixteen rows become sixteen columns. */
MX_INLINE void vf_transpose(vf r[VF])
{
    __m512d t[VF];
    vf u[VF];
    UNROLL for (int i = 0; i < VF; i += 2) {
        t[i] = _mm512_castps_pd(_mm512_unpacklo_ps(r[i], r[i + 1]));
        t[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(r[i], r[i + 1]));
    }
    UNROLL for (int i = 0; i < VF; i += 4)
        UNROLL for (int h = 0; h < 2; h++) {
            u[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(t[i + h], t[i + 2 + h]));
            u[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(t[i + h], t[i + 2 + h]));
        }
    UNROLL for (int c = 0; c < 4; c++) {
        vf a = _mm512_shuffle_f32x4(u[c], u[c + 4], 0x88), b = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0x88);
        vf d = _mm512_shuffle_f32x4(u[c], u[c + 4], 0xdd), e = _mm512_shuffle_f32x4(u[c + 8], u[c + 12], 0xdd);
        r[c] = _mm512_shuffle_f32x4(a, b, 0x88);
        r[c + 8] = _mm512_shuffle_f32x4(a, b, 0xdd);
        r[c + 4] = _mm512_shuffle_f32x4(d, e, 0x88);
        r[c + 12] = _mm512_shuffle_f32x4(d, e, 0xdd);
    }
}

/* ((l, l+8) , +4, +2, +1): the tree that every variant below repeats */
MX_INLINE float vf_sum(vf a)
{
    __m256 s = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

#elif defined(MX_SIMD_AVX2)

typedef struct vf { __m256 a, b; } vf;

MX_INLINE vf vf_set(float f) { return (vf){_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
MX_INLINE vf vf_load(const float *p) { return (vf){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
MX_INLINE void vf_store(float *p, vf x)
{
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
MX_INLINE vf vf_add(vf x, vf y) { return (vf){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
MX_INLINE vf vf_sub(vf x, vf y) { return (vf){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
MX_INLINE vf vf_mul(vf x, vf y) { return (vf){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
MX_INLINE vf vf_div(vf x, vf y) { return (vf){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
MX_INLINE vf vf_fma(vf x, vf y, vf z) { return (vf){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
MX_INLINE vf vf_max(vf x, vf y) { return (vf){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
MX_INLINE vf vf_min(vf x, vf y) { return (vf){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
MX_INLINE vf vf_positive(vf x, vf a, vf b)
{
    __m256 z = _mm256_setzero_ps();
    return (vf){_mm256_blendv_ps(b.a, a.a, _mm256_cmp_ps(x.a, z, _CMP_GT_OQ)),
                _mm256_blendv_ps(b.b, a.b, _mm256_cmp_ps(x.b, z, _CMP_GT_OQ))};
}
MX_INLINE vf vf_abs(vf x)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (vf){_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
MX_INLINE vf vf_round(vf x)
{
    return (vf){_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
                _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
MX_INLINE vf vf_load_n(const float *p, int n)
{
    float t[VF] = {0};
    memcpy(t, p, (size_t)n * sizeof *t);
    return vf_load(t);
}
MX_INLINE void vf_store_n(float *p, vf x, int n)
{
    float t[VF];
    vf_store(t, x);
    memcpy(p, t, (size_t)n * sizeof *t);
}
MX_INLINE __m256 mx_exp2i_half(__m256 n)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
MX_INLINE vf vf_exp2i(vf n) { return (vf){mx_exp2i_half(n.a), mx_exp2i_half(n.b)}; }
MX_INLINE __m256 mx_bf16_half(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
MX_INLINE vf vf_from_bf16(const uint16_t *p) { return (vf){mx_bf16_half(p), mx_bf16_half(p + 8)}; }
MX_INLINE vf vf_from_f16(const uint16_t *p)
{
    return (vf){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
MX_INLINE void mx_transpose8(__m256 r[8])
{
    __m256 t[8], u[8];
    UNROLL for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    UNROLL for (int i = 0; i < 8; i += 4)
        UNROLL for (int h = 0; h < 2; h++) {
            u[i + 2 * h] = _mm256_shuffle_ps(t[i + h], t[i + 2 + h], 0x44);
            u[i + 2 * h + 1] = _mm256_shuffle_ps(t[i + h], t[i + 2 + h], 0xee);
        }
    UNROLL for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}
/* Sixteen rows become sixteen columns. */
MX_INLINE void vf_transpose(vf r[VF])
{
    __m256 a[8], b[8], c[8], d[8];
    UNROLL for (int i = 0; i < 8; i++) {
        a[i] = r[i].a;
        b[i] = r[i].b;
        c[i] = r[i + 8].a;
        d[i] = r[i + 8].b;
    }
    mx_transpose8(a);
    mx_transpose8(b);
    mx_transpose8(c);
    mx_transpose8(d);
    UNROLL for (int i = 0; i < 8; i++) {
        r[i] = (vf){a[i], c[i]};
        r[i + 8] = (vf){b[i], d[i]};
    }
}
MX_INLINE float vf_sum(vf x)
{
    __m256 s = _mm256_add_ps(x.a, x.b);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}

#else

typedef struct vf { float f[VF]; } vf;

#define VF_EACH(expr)                                                                      \
    vf r;                                                                                  \
    for (int l = 0; l < VF; l++) r.f[l] = (expr);                                          \
    return r

MX_INLINE vf vf_set(float f) { VF_EACH(f); }
MX_INLINE vf vf_load(const float *p) { VF_EACH(p[l]); }
MX_INLINE void vf_store(float *p, vf a) { memcpy(p, a.f, sizeof a.f); }
MX_INLINE vf vf_add(vf a, vf b) { VF_EACH(a.f[l] + b.f[l]); }
MX_INLINE vf vf_sub(vf a, vf b) { VF_EACH(a.f[l] - b.f[l]); }
MX_INLINE vf vf_mul(vf a, vf b) { VF_EACH(a.f[l] * b.f[l]); }
MX_INLINE vf vf_div(vf a, vf b) { VF_EACH(a.f[l] / b.f[l]); }
MX_INLINE vf vf_fma(vf a, vf b, vf c) { VF_EACH(fmaf(a.f[l], b.f[l], c.f[l])); }
MX_INLINE vf vf_max(vf a, vf b) { VF_EACH(a.f[l] > b.f[l] ? a.f[l] : b.f[l]); }
MX_INLINE vf vf_min(vf a, vf b) { VF_EACH(a.f[l] < b.f[l] ? a.f[l] : b.f[l]); }
MX_INLINE vf vf_abs(vf a) { VF_EACH(fabsf(a.f[l])); }
MX_INLINE vf vf_positive(vf x, vf a, vf b) { VF_EACH(x.f[l] > 0 ? a.f[l] : b.f[l]); }
MX_INLINE vf vf_round(vf a) { VF_EACH(nearbyintf(a.f[l])); }
MX_INLINE vf vf_load_n(const float *p, int n) { VF_EACH(l < n ? p[l] : 0.0f); }
MX_INLINE void vf_store_n(float *p, vf a, int n) { memcpy(p, a.f, (size_t)n * sizeof *p); }
/* n may be NaN, whose conversion the language leaves open: the caller multiplies it by NaN anyway */
MX_INLINE vf vf_exp2i(vf n) { VF_EACH(n.f[l] == n.f[l] ? ldexpf(1.0f, (int)n.f[l]) : 1.0f); }
MX_INLINE vf vf_from_bf16(const uint16_t *p) { VF_EACH(mx_bf16_to_f32(p[l])); }
MX_INLINE vf vf_from_f16(const uint16_t *p) { VF_EACH(mx_f16_to_f32(p[l])); }
/* Sixteen rows become sixteen columns. */
MX_INLINE void vf_transpose(vf r[VF])
{
    for (int i = 0; i < VF; i++)
        for (int l = 0; l < i; l++) {
            float t = r[i].f[l];
            r[i].f[l] = r[l].f[i];
            r[l].f[i] = t;
        }
}
MX_INLINE float vf_sum(vf a)
{
    for (int half = 8; half; half /= 2)
        for (int l = 0; l < half; l++) a.f[l] += a.f[l + half];
    return a.f[0];
}

#endif

MX_INLINE vf vf_zero(void) { return vf_set(0.0f); }

/* A maximum has no order, so this one may look at the lanes as it likes. */
MX_INLINE float vf_max_lane(vf a)
{
    float t[VF], m;
    vf_store(t, a);
    m = t[0];
    for (int l = 1; l < VF; l++) m = t[l] > m ? t[l] : m;
    return m;
}

/* e^x to under 2 ulp: Cody-Waite reduction by ln 2 in two parts, the degree-6
 * minimax polynomial of Cephes expf, scaled by 2^n in two steps so that
 * subnormal results round once and e^x near the largest float does not
 * overflow on the way.  -inf gives 0, NaN stays NaN. */
MX_INLINE vf vf_exp(vf x)
{
    x = vf_min(vf_set(89.0f), vf_max(vf_set(-105.0f), x));
    vf n = vf_round(vf_mul(x, vf_set(1.44269504088896341f)));
    vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.9875691500e-4f);
    p = vf_fma(p, r, vf_set(1.3981999507e-3f));
    p = vf_fma(p, r, vf_set(8.3334519073e-3f));
    p = vf_fma(p, r, vf_set(4.1665795894e-2f));
    p = vf_fma(p, r, vf_set(1.6666665459e-1f));
    p = vf_fma(p, r, vf_set(5.0000001201e-1f));
    p = vf_add(vf_fma(vf_mul(p, r), r, r), vf_set(1.0f));
    vf half = vf_round(vf_mul(n, vf_set(0.5f)));
    return vf_mul(vf_mul(p, vf_exp2i(half)), vf_exp2i(vf_sub(n, half)));
}

MX_INLINE float mx_exp(float x)
{
    float t[VF];
    vf_store(t, vf_exp(vf_set(x)));
    return t[0];
}

/* Elements of a row that is not a multiple of 16 long: lanes >= n are 0. */
MX_INLINE vf vf_load_most(const float *p, int64_t n) { return n >= VF ? vf_load(p) : vf_load_n(p, (int)n); }
MX_INLINE void vf_store_most(float *p, vf a, int64_t n)
{
    if (n >= VF) vf_store(p, a);
    else vf_store_n(p, a, (int)n);
}

#endif
