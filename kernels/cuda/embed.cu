/* embed.cu - table rows by id. */
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

/* ---- the table's gradient ---------------------------------------------------------------- */

#define BACK_THREADS 256

/* Every row has a block, and that of the first row of an id adds up all rows of
 * the id, in order; a row of the table is touched by one block only. */
static __global__ void __launch_bounds__(BACK_THREADS) embed_back_kernel(mx_tensor dtable, mx_tensor dy, mx_tensor ids, mx_cuda_fault *fault)
{
    __shared__ int32_t same[BACK_THREADS];
    __shared__ unsigned counts[BACK_THREADS / 32];
    int64_t row = blockIdx.x, n = dy.rows, c = dy.cols;
    int32_t id = *mx_row_i32(ids, row);
    if (id < 0 || id >= dtable.rows) {
        if (threadIdx.x == 0) mx_raise(fault, MX_CUDA_EMBED_ID, row, id);
        return;
    }
    bool earlier = false;
    for (int64_t r = threadIdx.x; r < row; r += BACK_THREADS) earlier |= *mx_row_i32(ids, r) == id;
    if (__syncthreads_or(earlier)) return;
    float *to = mx_row(dtable, id);
    for (int64_t base = row; base < n; base += BACK_THREADS) {
        int64_t r = base + threadIdx.x;
        bool mine = r < n && *mx_row_i32(ids, r) == id;
        unsigned lanes = __ballot_sync(MX_FULL, mine), at = (unsigned)__popc(lanes & ((1u << threadIdx.x % 32) - 1)), all = 0;
        if (threadIdx.x % 32 == 0) counts[threadIdx.x / 32] = (unsigned)__popc(lanes);
        __syncthreads();
        for (unsigned w = 0; w < BACK_THREADS / 32; w++) {
            if (w < threadIdx.x / 32) at += counts[w];
            all += counts[w];
        }
        if (mine) same[at] = (int32_t)r;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < c && all; i += BACK_THREADS) {
            float sum = to[i];
            for (unsigned k = 0; k < all; k++) sum += mx_row(dy, same[k])[i];
            to[i] = sum;
        }                               /* counts are read, and the next barrier comes before the list is made again */
    }
}

extern "C" void mx_cuda_embed_back(mx_stream *s, mx_tensor dtable, mx_tensor dy, mx_tensor ids)
{
    MX_LAUNCH(s, "embed_back", embed_back_kernel, (unsigned)dy.rows, BACK_THREADS, 0, dtable, dy, ids, mx_cuda_faults(s));
}
