/* cuda_fp16.h - IEEE half for the simulator; conversions by the compiler's _Float16. */
#ifndef CUDASIM_CUDA_FP16_H
#define CUDASIM_CUDA_FP16_H

#include "cuda_runtime.h"
#include "runtime/tensor.h"

struct __half {
    unsigned short bits;
};

static inline __half __float2half_rn(float f) { return {mx_f32_to_f16(f)}; }
static inline float __half2float(__half h) { return mx_f16_to_f32(h.bits); }
static inline unsigned short __half_as_ushort(__half h) { return h.bits; }
static inline __half __ushort_as_half(unsigned short u) { return {u}; }
#endif
