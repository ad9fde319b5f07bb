/* tensor.h - a matrix that somebody else owns.
 *
 * Every tensor in Merx is rows x cols, row-major.  A row is whatever the model
 * works on: a token of a prompt, a node of a customer graph, a pricing state.
 * Ragged batches are packed: all rows one after another, no padding, with an
 * mx_spans beside them that says where each sequence (or neighbour list)
 * starts.  A tensor is passed by value and owns nothing: memory belongs to an
 * mx_buffer, and is freed when the buffer is.  Anybody may include this. */
#ifndef MX_TENSOR_H
#define MX_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mx_dtype { MX_F32, MX_F16, MX_BF16, MX_I32, MX_I8, MX_F8, MX_DTYPE_COUNT } mx_dtype;

typedef struct mx_tensor {
    void    *data;        /* NULL: "no tensor", where an op allows that  */
    int64_t  rows, cols;
    int64_t  stride;      /* elements from one row to the next, >= cols  */
    mx_dtype dtype;
} mx_tensor;

/* Span i covers rows begin[i] .. begin[i+1]-1; begin has count+1 entries.
 * The same shape serves packed sequences and the CSR rows of a graph. */
typedef struct mx_spans {
    const int32_t *begin;
    int32_t        count;
    int32_t        longest;
} mx_spans;

size_t      mx_dtype_size(mx_dtype t);               /* bytes of one element   */
const char *mx_dtype_name(mx_dtype t);               /* "f32", "bf16", ...     */
bool        mx_dtype_parse(const char *name, mx_dtype *out);
mx_tensor   mx_tensor_of(void *data, mx_dtype t, int64_t rows, int64_t cols);   /* contiguous */
mx_tensor   mx_tensor_rows(mx_tensor t, int64_t first, int64_t n);   /* view */
mx_tensor   mx_tensor_cols(mx_tensor t, int64_t first, int64_t n);   /* view */

/* a*b and a+b of sizes from outside; false when the result does not fit. */
static inline bool mx_mul_size(size_t a, size_t b, size_t *out) { return !__builtin_mul_overflow(a, b, out); }
static inline bool mx_add_size(size_t a, size_t b, size_t *out) { return !__builtin_add_overflow(a, b, out); }

/* ---- scalar conversions: exact up, round-to-nearest-even down ------------- */

static inline float mx_bf16_to_f32(uint16_t h)
{
    uint32_t u = (uint32_t)h << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static inline uint16_t mx_f32_to_bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 64u);   /* quiet NaN */
    return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

float    mx_f16_to_f32(uint16_t h);
uint16_t mx_f32_to_f16(float f);

/* MX_F8 is E4M3 (Micikevicius et al. 2022, FP8 Formats for Deep Learning): 4 bits of
 * exponent, 3 of fraction, no infinity; 2^-9 to 448.  What is larger becomes 448. */
float    mx_f8_to_f32(uint8_t b);
uint8_t  mx_f32_to_f8(float f);

#ifdef __cplusplus
}
#endif
#endif
