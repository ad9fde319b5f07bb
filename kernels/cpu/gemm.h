/* gemm.h - packed weights, and the register tiles that multiply them.
 *
 * A weight stands in panels of 64 output channels.  A panel holds its channels'
 * input dimension padded to 16, in the order in which the tile reads it:
 *     f32   [C16][64]           (oneDNN's BA16a64b)
 *     bf16  [C16/2][64][2]      (BA16a64b2a)
 *     int8  [C16/4][64][4]      (BA16a64b4a)
 * Every output is one chain of fused multiply-adds over the channels in order
 * (int8: an exact sum), whatever the number of rows: the bits of a row do not
 * depend on the tile that computed it.  gemm.c is the machine, linear.c the op. */
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

/* What is added to int8 activations so that they are unsigned, as VNNI wants
 * them; the epilogue subtracts it times the column sums. */
#if defined(__AVX512VNNI__) && defined(__AVX512F__)
#define MX_INT8_BIAS 128
#else
#define MX_INT8_BIAS 0
#endif

/* c[rows,64] (+)= x[rows,n] panel[n,64]; resume: the sums so far stand in c.
 * n is a multiple of 2 for bf16 (x: bf16 values held as f32) and of 4 for
 * int8 (x: quantised values + MX_INT8_BIAS).  1 <= rows <= MX_TILE_ROWS. */
void mx_gemm_f32(int rows, const float *x, int64_t ldx, const float *panel, int64_t n, float *c, int64_t ldc, bool resume);
void mx_gemm_bf16(int rows, const float *x, int64_t ldx, const uint16_t *panel, int64_t n, float *c, int64_t ldc,
                  bool resume);
void mx_gemm_i8(int rows, const uint8_t *x, int64_t ldx, const int8_t *panel, int64_t n, int32_t *c, int64_t ldc,
                bool resume);

#endif
