/* gemm.h - packed weights, and the register tiles that multiply them.
 *
 * A weight stands in panels of 64 output channels.  A panel holds its channels'
 * input dimension padded to 16, in the order in which the tile reads it:
 *     f32   [C16][64]           (oneDNN's BA16a64b)
 *     bf16  [C16/2][64][2]      (BA16a64b2a)
 *     int8  [C64/4][64][4]      with a scale for every 64 inputs of a channel
 * Every output is one chain of fused multiply-adds over the channels in order
 * (bf16: of each two the second first, as VDPBF16PS adds them; int8: over groups
 * of 64 in order, each an exact sum), whatever the number of rows: the bits of a row do not depend on the tile that computed it.  gemm.c is
 * the machine, linear.c the op. */
#ifndef MX_CPU_GEMM_H
#define MX_CPU_GEMM_H

#include <stdbool.h>
#include <stdint.h>

#define MX_PANEL 64
#define MX_TILE_ROWS 6

/* Rows of the next tile, of `rows` that are left: as even as can be, because 8
 * rows are faster as 4 + 4 than as 6 + 2. */
static inline int mx_tile_rows(int64_t rows)
{
    int64_t tiles = (rows + MX_TILE_ROWS - 1) / MX_TILE_ROWS;
    return (int)((rows + tiles - 1) / tiles);
}

/* Input channels that share a scale of an int8 weight. */
#define MX_INT8_GROUP 64

/* What is added to int8 activations so that they are unsigned, as VNNI wants
 * them; a group's sum begins with minus that times the sum of its weights. */
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define MX_INT8_BIAS 128
#else
#define MX_INT8_BIAS 0
#endif

/* A bf16 activation as the tile reads it: where there is an instruction for pairs of products, as
 * it is, else held as f32.  The instruction takes numbers under 2^-126 for 0; the bits are the same otherwise. */
#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define MX_BF16_PAIRS 1
typedef uint16_t mx_bf16_x;
#else
#define MX_BF16_PAIRS 0
typedef float mx_bf16_x;
#endif

/* c[rows,64] (+)= x[rows,n] panel[n,64]; resume: the sums so far stand in c.
 * n is a multiple of 2 for bf16.
 * 1 <= rows <= MX_TILE_ROWS. */
void mx_gemm_f32(int rows, const float *x, int64_t ldx, const float *panel, int64_t n, float *c, int64_t ldc, bool resume);
void mx_gemm_bf16(int rows, const mx_bf16_x *x, int64_t ldx, const uint16_t *panel, int64_t n, float *c, int64_t ldc,
                  bool resume);

/* The part of an int8 panel that a call multiplies: n is a multiple of MX_INT8_GROUP. */
typedef struct mx_panel_i8 {
    const int8_t  *w;
    const float   *scale;         /* [n/64][64]                               */
    const int16_t *sums;          /* [n/64][64] of the weights of a group     */
} mx_panel_i8;
/* x: quantised values + MX_INT8_BIAS; c: before the row's own scale. */
void mx_gemm_i8(int rows, const uint8_t *x, int64_t ldx, mx_panel_i8 panel, int64_t n, float *c, int64_t ldc, bool resume);

#endif
