/* ptx.cuh - every PTX instruction that Merx writes by hand, each in one wrapper with
 * a simulated body (tests/cudasim/warp.c).  tests/cudasim/rules.sh allows `asm`
 * nowhere else.  Fragments are laid out as in the PTX ISA, "Matrix fragments". */
#ifndef MX_CUDA_PTX_CUH
#define MX_CUDA_PTX_CUH

#include "kernels/cuda/common.cuh"

/* d = a b + c; a 16x16 row-major, b 16x8 column-major, bf16; c and d 16x8 f32 */
static __device__ __forceinline__ void mx_mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], const float c[4])
{
#ifdef MX_CUDASIM
    cudasim_mma_m16n8k16_bf16(d, a, b, c);
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}

/* d = a b + c; a 16x8, b 8x8, tf32 (the upper 19 bits of an f32); c and d 16x8 f32 */
static __device__ __forceinline__ void mx_mma_tf32(float d[4], const unsigned a[4], const unsigned b[2], const float c[4])
{
#ifdef MX_CUDASIM
    cudasim_mma_m16n8k8_tf32(d, a, b, c);
#else
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
#endif
}

/* d = a b + c; a 16x32 row-major, b 32x8 column-major, int8; c and d 16x8 int32 */
static __device__ __forceinline__ void mx_mma_s8(int d[4], const unsigned a[4], const unsigned b[2], const int c[4])
{
#ifdef MX_CUDASIM
    cudasim_mma_m16n8k32_s8(d, a, b, c);
#else
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
#endif
}

/* Two numbers rounded to bf16 (to the nearest, ties to even): lo in the lower half */
static __device__ __forceinline__ unsigned mx_pack_bf16(float lo, float hi)
{
#ifdef MX_CUDASIM
    mx_bf16 l, h;
    mx_down(&l, lo), mx_down(&h, hi);
    return (unsigned)l.bits | (unsigned)h.bits << 16;
#else
    unsigned d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
#endif
}

/* Four 8x8 matrices of 16-bit words; lane l gives the address of row l%8 of matrix l/8. */
static __device__ __forceinline__ void mx_ldmatrix_x4(unsigned r[4], const void *row)
{
#ifdef MX_CUDASIM
    cudasim_ldmatrix(r, row, 4, 0);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#endif
}

/* The same, each matrix transposed. */
static __device__ __forceinline__ void mx_ldmatrix_x4_trans(unsigned r[4], const void *row)
{
#ifdef MX_CUDASIM
    cudasim_ldmatrix(r, row, 4, 1);
#else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
#endif
}

#endif
