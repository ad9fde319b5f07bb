/* loss.c - cross-entropy and its gradient, dropout. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "runtime/random.h"

#include <math.h>

typedef struct loss_job {
    mx_tensor loss, logits, target;
    float     scale;
    bool      learn;
} loss_job;

/* Sums of 1024 values are added up in double, so that the loss of a large
 * vocabulary is as exact as that of a small one. */
#define RUN 1024

static double exp_sum(const float *x, int64_t n, float max)
{
    double sum = 0;
    for (int64_t b = 0; b < n; b += RUN) {
        int64_t end = n - b < RUN ? n : b + RUN, i = b;
        vf acc = vf_zero(), m = vf_set(max);
        for (; i + VF <= end; i += VF) acc = vf_add(acc, vf_exp(vf_sub(vf_load(x + i), m)));
        sum += (double)vf_sum(acc);
        for (; i < end; i++) sum += (double)mx_exp(x[i] - max);
    }
    return sum;
}

static void loss_rows(const void *ctx, int64_t first, int64_t last)
{
    const loss_job *j = ctx;
    int64_t n = j->logits.cols;
    for (int64_t r = first; r < last; r++) {
        float *x = mx_row(j->logits, r);
        int32_t target = *mx_row_i32(j->target, r);
        if (target < 0) {
            *mx_row(j->loss, r) = 0;
            if (j->learn) memset(x, 0, (size_t)n * sizeof *x);
            continue;
        }
        float max = x[0];
        for (int64_t i = 1; i < n; i++) max = x[i] > max ? x[i] : max;
        double sum = exp_sum(x, n, max);
        *mx_row(j->loss, r) = (float)(log(sum) - (double)(x[target] - max));
        if (!j->learn) continue;
        vf m = vf_set(max), k = vf_set((float)(1.0 / sum) * j->scale);
        for (int64_t i = 0; i < n; i += VF) vf_store_most(x + i, vf_mul(vf_exp(vf_sub(vf_load_most(x + i, n - i), m)), k), n - i);
        x[target] -= j->scale;
    }
}

void mx_cpu_cross_entropy(mx_stream *s, mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn)
{
    for (int64_t r = 0; r < logits.rows; r++) {
        int32_t t = *mx_row_i32(target, r);
        if (t < logits.cols) continue;
        mx_stream_fail(s, MX_ERR_ARG, "cross_entropy: target %d of row %lld is outside the %lld classes", t, (long long)r,
                       (long long)logits.cols);
        return;
    }
    loss_job j = {loss, logits, target, scale, learn};
    mx_cpu_rows(s, logits.rows, 8 * logits.cols, loss_rows, &j);
}

/* ---- dropout ------------------------------------------------------------------------- */

typedef struct drop_job {
    mx_tensor y, x;
    float     keep;               /* 1 / (1 - rate)                          */
    uint32_t  limit;              /* kept where the draw is not below it     */
    uint64_t  seed;
} drop_job;

typedef uint32_t vu __attribute__((vector_size(64)));       /* sixteen lanes */
typedef uint64_t vu2 __attribute__((vector_size(64)));

MX_INLINE void multiply_wide(const vu *x, uint32_t m, vu *high, vu *low)
{
#if defined(MX_SIMD_AVX512)
    __m512i by = _mm512_set1_epi64((long long)m), even = _mm512_mul_epu32((__m512i)*x, by), odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)*x, 32), by);
    *high = (vu)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
    *low = (vu)_mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
#else
    for (int i = 0; i < VF; i++) {
        uint64_t p = (uint64_t)(*x)[i] * m;
        (*high)[i] = (uint32_t)(p >> 32), (*low)[i] = (uint32_t)p;
    }
#endif
}

/* Two vectors, element by element in turn: their lower and upper halves.  gcc and clang have this builtin in common. */
#define LOWER(a, b)   __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define UPPER(a, b)   __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#define LOWER_2(a, b) __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define UPPER_2(a, b) __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)

/* mx_philox() of the counters (first .. first+15, row, 0, 0): word w of counter first+i to out[4 * i + w]. */
MX_INLINE void philox_16(uint32_t out[4 * VF], uint32_t first, uint32_t row, uint64_t key)
{
    const vu lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    vu a = lanes + first, b = (vu){0} + row, c = {0}, d = {0};
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++, k0 += 0x9e3779b9u, k1 += 0xbb67ae85u) {
        vu high_a, low_a, high_c, low_c;
        multiply_wide(&a, 0xd2511f53u, &high_a, &low_a);
        multiply_wide(&c, 0xcd9e8d57u, &high_c, &low_c);
        a = high_c ^ b ^ k0, b = low_c, c = high_a ^ d ^ k1, d = low_a;
    }
    vu2 ab[2] = {(vu2)LOWER(a, b), (vu2)UPPER(a, b)};
    vu2 cd[2] = {(vu2)LOWER(c, d), (vu2)UPPER(c, d)};
    for (int i = 0; i < 2; i++) {
        vu2 words[2] = {LOWER_2(ab[i], cd[i]), UPPER_2(ab[i], cd[i])};
        memcpy(out + 2 * VF * i, words, sizeof words);
    }
}

static void drop_rows(const void *ctx, int64_t first, int64_t last)
{
    const drop_job *j = ctx;
    uint32_t word[4 * VF];
    for (int64_t r = first; r < last; r++) {
        const float *x = mx_row(j->x, r);
        float *y = mx_row(j->y, r);
        for (int64_t i = 0; i < j->x.cols; i += 4 * VF) {
            int64_t n = j->x.cols - i < 4 * VF ? j->x.cols - i : 4 * VF;
            philox_16(word, (uint32_t)(i / 4), (uint32_t)r, j->seed);
            for (int64_t l = 0; l < n; l++) y[i + l] = word[l] < j->limit ? 0 : x[i + l] * j->keep;
        }
    }
}

void mx_cpu_dropout(mx_stream *s, mx_tensor y, mx_tensor x, float rate, uint64_t seed)
{
    drop_job j = {y, x, 1 / (1 - rate), (uint32_t)((double)rate * 4294967296.0), seed};
    mx_cpu_rows(s, x.rows, 16 * x.cols, drop_rows, &j);
}
