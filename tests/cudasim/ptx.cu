/* ptx.cu - every wrapper of kernels/cuda/ptx.cuh, once, on fragments that a test gives (test_ptx.c). */
#include "kernels/cuda/ptx.cuh"
#include "tests/cudasim/ptx.h"

static __global__ void ptx_kernel(const ptx_in *in, ptx_out *out)
{
    MX_DYN_SHARED(mx_bf16, tile);
    int l = threadIdx.x;
    ptx_in i = in[l];
    ptx_out o;
    mx_mma_bf16(o.bf16, i.a, i.b, i.c);
    mx_mma_tf32(o.tf32, i.ta, i.tb, i.c);
    mx_mma_s8(o.s8, i.a, i.b, i.ic);
    for (int k = 0; k < 8; k++) tile[l * 8 + k].bits = i.row[k];
    __syncwarp();
    mx_ldmatrix_x4(o.rows, tile + 8 * l);
    mx_ldmatrix_x4_trans(o.columns, tile + 8 * l);
    o.pair = mx_pack_bf16(i.c[0], i.c[1]);
    out[l] = o;
}

extern "C" void ptx_run(mx_stream *s, const ptx_in *in, ptx_out *out)
{
    MX_LAUNCH(s, "ptx", ptx_kernel, 1, 32, 32 * 8 * sizeof(mx_bf16), in, out);
}
