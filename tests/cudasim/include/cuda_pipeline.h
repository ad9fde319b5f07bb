/* cuda_pipeline.h - NVIDIA's C primitives for cp.async: the copy happens at the wait. */
#ifndef CUDASIM_CUDA_PIPELINE_H
#define CUDASIM_CUDA_PIPELINE_H

#include "cuda_runtime.h"

static inline void __pipeline_memcpy_async(void *dst, const void *src, size_t n, size_t zfill = 0)
{
    cudasim_cp_async(dst, src, n, zfill);
}
static inline void __pipeline_commit() { cudasim_cp_commit(); }
static inline void __pipeline_wait_prior(size_t n) { cudasim_cp_wait((int)n); }
#endif
