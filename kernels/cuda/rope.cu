/* rope.cu - rotary positions, forward and backward, and on the way into the KV cache. */
#include "kernels/cuda/common.cuh"

typedef struct rope_angle { float c, s; } rope_angle;

/* A block turns a row; a thread takes a pair of channels through all heads, so
 * that its angle is computed once.  The angle is the f32 product, its cosine and
 * sine are computed in double and rounded (ops.h). */
static __device__ __forceinline__ rope_angle angle_of(float at, mx_tensor freq, int64_t j, float magnitude, float turn)
{
    double sd, cd;
    sincos((double)(at * ((const float *)freq.data)[j]), &sd, &cd);
    rope_angle a = {(float)cd * magnitude, (float)sd * magnitude * turn};
    return a;
}

static __device__ __forceinline__ float2 turned(float2 v, rope_angle a)
{
    return make_float2(v.x * a.c - v.y * a.s, v.y * a.c + v.x * a.s);
}

/* Pair j of `heads` heads of a row. */
static __device__ __forceinline__ void turn_pair(float *p, int64_t j, int64_t half, int heads, bool interleaved, rope_angle t)
{
    for (int h = 0; h < heads; h++, p += 2 * half) {
        float *u = interleaved ? p + 2 * j : p + j, *v = interleaved ? u + 1 : u + half;
        float2 w = turned(make_float2(*u, *v), t);
        *u = w.x;
        *v = w.y;
    }
}

static __global__ void rope_kernel(mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved, float turn)
{
    int64_t half = freq.cols;
    float at = (float)*mx_row_i32(positions, blockIdx.x);
    for (int64_t j = threadIdx.x; j < half; j += blockDim.x)
        turn_pair(mx_row(x, blockIdx.x), j, half, heads, interleaved, angle_of(at, freq, j, magnitude, turn));
}

extern "C" void mx_cuda_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    MX_LAUNCH(s, "rope", rope_kernel, (unsigned)x.rows, mx_row_threads(4 * freq.cols), 0, x, positions, freq, magnitude, heads, interleaved, 1.0f);
}

extern "C" void mx_cuda_rope_back(mx_stream *s, mx_tensor dx, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    MX_LAUNCH(s, "rope_back", rope_kernel, (unsigned)dx.rows, mx_row_threads(4 * freq.cols), 0, dx, positions, freq, magnitude, heads, interleaved, -1.0f);
}

/* ---- on the way into the cache ----------------------------------------------------------------- */

typedef struct rope_write {
    mx_tensor qkv, positions, freq, slots;
    mx_kv     kv;
    float     magnitude;
    int       heads;
    bool      interleaved, vec;
    mx_cuda_fault *fault;
} rope_write;

/* Turned keys go to the cache and nowhere else; values follow, four channels a thread. */
template <typename T> static __global__ void rope_kv_write_kernel(rope_write a)
{
    int64_t r = blockIdx.x, half = a.freq.cols, d = 2 * half, fours = (d + 3) / 4, pitch = (int64_t)a.kv.page_tokens * d;
    float at = (float)*mx_row_i32(a.positions, r), *q = mx_row(a.qkv, r);
    const float *k = q + a.heads * d, *v = k + a.kv.kv_heads * d;
    int32_t slot = *mx_row_i32(a.slots, r);
    bool inside = slot >= 0 && slot < (int64_t)a.kv.pages * a.kv.page_tokens;
    if (!inside && threadIdx.x == 0) mx_raise(a.fault, MX_CUDA_KV_SLOT, r, slot);
    int64_t to = inside ? (slot / a.kv.page_tokens * (int64_t)a.kv.kv_heads * a.kv.page_tokens + slot % a.kv.page_tokens) * d : 0;
    for (int64_t j = threadIdx.x; j < half; j += blockDim.x) {
        rope_angle t = angle_of(at, a.freq, j, a.magnitude, 1.0f);
        turn_pair(q, j, half, a.heads, a.interleaved, t);
        int64_t u = a.interleaved ? 2 * j : j, w = a.interleaved ? u + 1 : u + half;
        for (int g = 0; inside && g < a.kv.kv_heads; g++) {
            float2 y = turned(make_float2(k[g * d + u], k[g * d + w]), t);
            mx_down((T *)a.kv.k + to + g * pitch + u, y.x);
            mx_down((T *)a.kv.k + to + g * pitch + w, y.y);
        }
    }
    for (int64_t e = threadIdx.x; inside && e < a.kv.kv_heads * fours; e += blockDim.x) {
        int64_t g = e / fours, i = e % fours * 4;
        mx_store4((T *)a.kv.v + to + g * pitch, i, d, a.vec, mx_load4(v + g * d, i, d, a.vec));
    }
}

extern "C" void mx_cuda_rope_kv_write(mx_stream *s, mx_tensor qkv, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                                      bool interleaved, const mx_kv *kv, mx_tensor slots)
{
    bool vec = kv->head_dim % 4 == 0 && mx_vec(qkv) && (uintptr_t)kv->v % (4 * mx_dtype_size(kv->dtype)) == 0;
    rope_write a = {qkv, positions, freq, slots, *kv, magnitude, heads, interleaved, vec, mx_cuda_faults(s)};
#define CALL(T) MX_LAUNCH(s, "rope_kv_write", (rope_kv_write_kernel<T>), (unsigned)qkv.rows, mx_row_threads(qkv.cols), 0, a)
    MX_BY_KV_TYPE(kv->dtype, CALL);
#undef CALL
}
