/* backend.cu - the table of the CUDA backend. */
#include "kernels/cuda/common.cuh"

#define X(name) mx_cuda_##name,
extern "C" const mx_kernels mx_kernels_cuda = {MX_OPS(X) mx_cuda_weight_open, mx_cuda_weight_close, mx_cuda_weight_bytes};
#undef X
