/* embed.cu - table rows by id, and rotary positions. */
#include "kernels/cuda/common.cuh"

template <typename T>
static __global__ void embed_kernel(mx_tensor y, mx_tensor table, mx_tensor ids, bool add, bool vec, mx_cuda_fault *fault)
{
    MX_EACH_ROW(r, y.rows) {
        int32_t id = *mx_row_i32(ids, r);
        if (id < 0 || id >= table.rows) {
            if (threadIdx.x == 0 && blockIdx.x == 0) mx_raise(fault, MX_CUDA_EMBED_ID, r, id);
            continue;
        }
        const T *from = (const T *)table.data + id * table.stride;
        MX_EACH_FOUR(i, y.cols) {
            float4 v = mx_load4(from, i, y.cols, vec);
            if (add) {
                float4 old = mx_load4(mx_row(y, r), i, y.cols, vec);
                v = make_float4(old.x + v.x, old.y + v.y, old.z + v.z, old.w + v.w);
            }
            mx_store4(mx_row(y, r), i, y.cols, vec, v);
        }
    }
}

extern "C" void mx_cuda_embed(mx_stream *s, mx_tensor y, mx_tensor table, mx_tensor ids, bool add)
{
    bool vec = mx_vec(y) && mx_vec(table);
#define CALL(T) \
    MX_LAUNCH(s, "embed", (embed_kernel<T>), mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, table, ids, add, vec, mx_cuda_faults(s))
    MX_BY_TYPE(table.dtype, CALL);
#undef CALL
}

/* A block turns a row; a thread takes a pair of channels through all heads, so
 * that its angle is computed once.  The angle is the f32 product, its cosine and
 * sine are computed in double and rounded (ops.h). */
static __global__ void rope_kernel(mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    int64_t half = freq.cols;
    float at = (float)*mx_row_i32(positions, blockIdx.x);
    for (int64_t j = threadIdx.x; j < half; j += blockDim.x) {
        double sd, cd;
        sincos((double)(at * ((const float *)freq.data)[j]), &sd, &cd);
        float c = (float)cd * magnitude, s = (float)sd * magnitude, *p = mx_row(x, blockIdx.x);
        for (int h = 0; h < heads; h++, p += 2 * half) {
            float *u = interleaved ? p + 2 * j : p + j, *v = interleaved ? u + 1 : u + half;
            float a = *u, b = *v;
            *u = a * c - b * s;
            *v = b * c + a * s;
        }
    }
}

extern "C" void mx_cuda_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    MX_LAUNCH(s, "rope", rope_kernel, (unsigned)x.rows, mx_row_threads(4 * freq.cols), 0, x, positions, freq, magnitude, heads, interleaved);
}
