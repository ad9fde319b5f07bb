/* attention_learn.cuh - what the two ways of attention over packed sequences share:
 * attention_learn.cu in f32, attention_mma.cu in bf16 on the matrix units. */
#ifndef MX_CUDA_ATTENTION_LEARN_CUH
#define MX_CUDA_ATTENTION_LEARN_CUH

#include "kernels/cuda/common.cuh"

typedef struct learn_args {
    mx_tensor y, lse, q, k, v, begin;   /* forward: y and lse are written */
    mx_tensor dy, dq, dk, dv;
    mx_attention_shape a;
    int       d, pitch;                 /* channels of a head; floats of a row in shared memory, odd */
    int2     *seen;                     /* [N]: what a row sees, [x, y)      */
    int2     *span;                     /* [N]: its sequence's rows          */
    float    *delta;                    /* [N][heads]: sum of dy * y         */
    mx_bf16  *qh, *kh, *vh, *dyh;       /* [N][heads or kv_heads][wide], 0 from channel d on */
    int       wide;                     /* 32, 64 or 128; 0: the f32 way     */
} learn_args;

/* The first row after r, below last, of another sequence. */
static __device__ __forceinline__ int64_t next_span(const learn_args &a, int64_t r, int64_t last)
{
    int64_t end = a.span[r].y;
    return end <= r ? r + 1 : end < last ? end : last;
}

/* The channels that mma's rows take for heads of d; 0: they are too wide for it. */
static inline int mma_width(int d)
{
    return d <= 32 ? 32 : d <= 64 ? 64 : d <= 128 ? 128 : 0;
}
void mx_mma_attention(mx_stream *s, const learn_args *a);
void mx_mma_attention_back(mx_stream *s, const learn_args *a);      /* delta is there */
/* to[N][heads][wide] = x[N,heads*d] in bf16, 0 from channel d on */
void mx_mma_round(mx_stream *s, const char *op, mx_bf16 *to, int wide, mx_tensor x, int heads, int d);

/* Our own pass, whichever of the two. */
void mx_own_attention(mx_stream *s, const learn_args *a);
void mx_own_attention_back(mx_stream *s, const learn_args *a);
/* cuDNN's.  False: it was not asked for, is not there, or was slower; the pass is still to be made.  (cudnn_attention.cu) */
bool mx_cudnn_attention(mx_stream *s, const learn_args *a);
bool mx_cudnn_attention_back(mx_stream *s, const learn_args *a);

#endif
