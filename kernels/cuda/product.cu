/* product.cu - products of plain matrices, and the ops of one line beside them.
 *
 * Forward and both gradients are one product of two matrices that are read along
 * either side.  cuBLASLt makes it when it is there: its algorithm is asked once
 * for a shape, may split K, but never adds in an order of chance.  Else our own
 * tiles do, rounding the factors on their way when the product is bf16's. */
#include "kernels/cuda/blaslt.cuh"

#define COLUMNS  32                     /* of a block that adds up columns        */
#define SEGMENT  256                    /* rows that one block adds up            */
#define WORKSPACE ((size_t)4 << 20)

/* out[M,N] (+)= sum over k of a(i,k) b(j,k) + bias[j] */
typedef struct operand {
    const void *data;
    int64_t     row, step;              /* elements from i to i+1, from k to k+1: one of them is 1 */
    mx_dtype    type;
} operand;

typedef struct tile_shared {
    float a[16][64 + 4], b[16][64 + 4];
} tile_shared;

static __device__ __forceinline__ float factor(const operand &o, int64_t i, int64_t k, bool rounded)
{
    int64_t at = i * o.row + k * o.step;
    float v = o.type == MX_F32 ? ((const float *)o.data)[at] : mx_up(((const mx_bf16 *)o.data)[at]);
    if (!rounded) return v;
    mx_bf16 h;
    mx_down(&h, v);
    return mx_up(h);
}

static __global__ void __launch_bounds__(256)
    product_kernel(mx_tensor out, operand a, operand b, int64_t k_all, const float *bias, bool rounded, bool add)
{
    MX_DYN_SHARED(tile_shared, s);
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int64_t i0 = (int64_t)blockIdx.y * 64, j0 = (int64_t)blockIdx.x * 64;
    bool a_across = a.row == 1, b_across = b.row == 1;      /* neighbours in memory are neighbouring rows */
    float sum[4][4] = {};
    for (int64_t k0 = 0; k0 < k_all; k0 += 16) {
        for (int e = threadIdx.x; e < 1024; e += 256) {
            int ia = a_across ? e % 64 : e / 16, ka = a_across ? e / 64 : e % 16;
            int jb = b_across ? e % 64 : e / 16, kb = b_across ? e / 64 : e % 16;
            s->a[ka][ia] = i0 + ia < out.rows && k0 + ka < k_all ? factor(a, i0 + ia, k0 + ka, rounded) : 0.0f;
            s->b[kb][jb] = j0 + jb < out.cols && k0 + kb < k_all ? factor(b, j0 + jb, k0 + kb, rounded) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < 16; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(s->a[k][4 * ty + i], s->b[k][4 * tx + j], sum[i][j]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int64_t r = i0 + 4 * ty + i, o = j0 + 4 * tx + j;
            if (r >= out.rows || o >= out.cols) continue;
            float *at = mx_row(out, r) + o, v = sum[i][j] + (bias ? bias[o] : 0.0f);
            *at = add ? *at + v : v;
        }
}

/* ---- through the library ---------------------------------------------------------------------- */

/* Row-major out[M,N] is column-major out^T[N,M] = b a^T; an operand with step 1 is then "transposed" if it is b. */
static bool by_library(mx_stream *s, const lt_library *l, mx_tensor out, operand a, operand b, int64_t k, const float *bias, bool add, void *workspace)
{
    cublasLtMatmulDesc_t desc = NULL;
    cublasLtMatrixLayout_t la = NULL, lb = NULL, lo = NULL;
    cublasLtMatmulPreference_t pref = NULL;
    cublasLtMatmulHeuristicResult_t best;
    cudaDataType_t type = a.type == MX_F32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasOperation_t tb = b.step == 1 ? CUBLAS_OP_T : CUBLAS_OP_N, ta = a.step == 1 ? CUBLAS_OP_N : CUBLAS_OP_T;
    cublasLtEpilogue_t epilogue = bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
    uint64_t m = (uint64_t)out.cols, n = (uint64_t)out.rows, kk = (uint64_t)k;
    uint32_t schemes = 2 | 4, sixteen = 16;             /* split-K through the workspace: a fixed order */
    size_t space = WORKSPACE;
    float one = 1, beta = add ? 1 : 0;
    int found = 0;
#define OK(call) (l->call == CUBLAS_STATUS_SUCCESS)
    bool ok = OK(MatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F)) && OK(MatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &tb, sizeof tb)) &&
              OK(MatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &ta, sizeof ta)) &&
              OK(MatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue)) &&
              (!bias || OK(MatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias))) &&
              OK(MatrixLayoutCreate(&lb, type, b.step == 1 ? kk : m, b.step == 1 ? m : kk, b.step == 1 ? b.row : b.step)) &&
              OK(MatrixLayoutCreate(&la, type, a.step == 1 ? kk : n, a.step == 1 ? n : kk, a.step == 1 ? a.row : a.step)) &&
              OK(MatrixLayoutCreate(&lo, CUDA_R_32F, m, n, out.stride)) && OK(MatmulPreferenceCreate(&pref)) &&
              OK(MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space, sizeof space)) &&
              OK(MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes));
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    for (int i = 0; i < 4 && ok; i++) ok = OK(MatmulPreferenceSetAttribute(pref, alignments[i], &sixteen, sizeof sixteen));
    ok = ok && OK(MatmulAlgoGetHeuristic(l->handle, desc, lb, la, lo, lo, pref, 1, &best, &found)) && found == 1 &&
         OK(Matmul(l->handle, desc, &one, b.data, lb, a.data, la, &beta, out.data, lo, out.data, lo, &best.algo, workspace, WORKSPACE,
                   (cudaStream_t)mx_cuda_queue(s)));
#undef OK
    if (pref) l->MatmulPreferenceDestroy(pref);
    if (lo) l->MatrixLayoutDestroy(lo);
    if (la) l->MatrixLayoutDestroy(la);
    if (lb) l->MatrixLayoutDestroy(lb);
    if (desc) l->MatmulDescDestroy(desc);
    return ok;
}

/* bf16 copies of f32 factors for the library: rows of `cols` elements, `pitch` apart. */
static __global__ void round_kernel(mx_bf16 *dst, int64_t pitch, mx_tensor x, bool vec)
{
    MX_EACH_ROW(r, x.rows)
        MX_EACH_FOUR(i, pitch)
            mx_store4(dst + r * pitch, i, pitch, true, mx_load4(mx_row(x, r), i, x.cols, vec));
}

static bool aligned(const void *p, int64_t pitch_bytes) { return (uintptr_t)p % 16 == 0 && pitch_bytes % 16 == 0; }

static size_t copy_bytes(mx_tensor t, mx_dtype as)
{
    int64_t pitch = (t.cols + 7) / 8 * 8;
    bool needed = t.dtype != as || !aligned(t.data, t.stride * (int64_t)mx_dtype_size(t.dtype));
    return needed ? ((size_t)(t.rows * pitch) * mx_dtype_size(as) + 255) & ~(size_t)255 : 0;
}

/* t as the library can read it: where it is, or copied to *work, which moves on. */
static mx_tensor readable(mx_stream *s, mx_tensor t, mx_dtype as, char **work)
{
    size_t bytes = copy_bytes(t, as), size = mx_dtype_size(t.dtype);
    int64_t pitch = (t.cols + 7) / 8 * 8;
    if (!bytes) return t;
    mx_tensor c = {*work, t.rows, t.cols, pitch, as};
    if (t.dtype == MX_F32 && as == MX_BF16)
        MX_LAUNCH(s, "product", round_kernel, mx_grid(t.rows, pitch), mx_row_threads(pitch), 0, (mx_bf16 *)*work, pitch, t, mx_vec(t));
    else
        mx_cuda_ok(s, cudaMemcpy2DAsync(*work, (size_t)pitch * size, t.data, (size_t)t.stride * size, (size_t)t.cols * size, (size_t)t.rows,
                                        cudaMemcpyDeviceToDevice, (cudaStream_t)mx_cuda_queue(s)), "product");
    *work += bytes;
    return c;
}

static operand along(mx_tensor t, bool rows) /* k runs along a row, or from row to row */
{
    operand o = {t.data, rows ? t.stride : 1, rows ? 1 : t.stride, t.dtype};
    return o;
}

/* out (+)= a b^T + bias, with a and b read along k as `a_rows`, `b_rows` say */
static void multiply(mx_stream *s, mx_tensor out, mx_tensor a, bool a_rows, mx_tensor b, bool b_rows, mx_tensor bias, mx_dtype as, bool add)
{
    int64_t k = a_rows ? a.cols : a.rows;
    const float *bv = (const float *)bias.data;
    /* the library takes factors of one type, and f32 products of bf16 weights are ours */
    lt_library *l = as == MX_F32 && b.dtype != MX_F32 ? NULL : mx_cuda_blaslt(s->dev);
    if (l && k && aligned(out.data, out.stride * 4) && (!bv || (uintptr_t)bv % 16 == 0)) {
        char *work = (char *)mx_cuda_work(s, WORKSPACE + copy_bytes(a, as) + copy_bytes(b, as)), *at = work + WORKSPACE;
        if (!work) return;
        mx_tensor ra = readable(s, a, as, &at), rb = readable(s, b, as, &at);
        if (by_library(s, l, out, along(ra, a_rows), along(rb, b_rows), k, bv, add, work)) return;
    }
    dim3 grid((unsigned)((out.cols + 63) / 64), (unsigned)((out.rows + 63) / 64));
    MX_LAUNCH(s, "product", product_kernel, grid, 256, sizeof(tile_shared), out, along(a, a_rows), along(b, b_rows), k, bv, as == MX_BF16, add);
}

extern "C" void mx_cuda_product(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor w, mx_tensor b, mx_dtype as, bool add)
{
    multiply(s, y, x, true, w, true, b, as, add);
}

/* ---- a whole perceptron ------------------------------------------------------------------------------ */

#define TALL  64                        /* rows of a block: their activations stay in shared memory from layer to layer */
#define DEPTH 16                        /* inputs of a layer whose weights stand there at a time                        */

/* A thread makes rows 4*ty.. of outputs 4*tx.. of each 64; w[DEPTH][pitch] are a layer's weights, turned. */
template <int PANELS>
static __device__ __forceinline__ void dense(float (&sum)[PANELS][4][4], const float *rows, float *w, mx_tensor weight, const float *bias, bool vec)
{
    const int pitch = 64 * PANELS + 4, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int outs = (int)weight.rows, ins = (int)weight.cols;
#pragma unroll
    for (int p = 0; p < PANELS; p++)
#pragma unroll
        for (int e = 0; e < 16; e++) sum[p][e / 4][e % 4] = 64 * p + 4 * tx + e % 4 < outs ? bias[64 * p + 4 * tx + e % 4] : 0.0f;
    for (int k0 = 0; k0 < ins; k0 += DEPTH) {
        int deep = min(DEPTH, ins - k0);
        for (int e = threadIdx.x; e < (outs + 63) / 64 * 64 * (DEPTH / 4); e += 256) {
            int o = e / (DEPTH / 4), k = e % (DEPTH / 4) * 4;
            float4 v = o < outs ? mx_load4(mx_row(weight, o), k0 + k, ins, vec) : make_float4(0, 0, 0, 0);
            w[k * pitch + o] = v.x, w[(k + 1) * pitch + o] = v.y, w[(k + 2) * pitch + o] = v.z, w[(k + 3) * pitch + o] = v.w;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < deep; k++) {
            float x[4];
#pragma unroll
            for (int i = 0; i < 4; i++) x[i] = rows[(4 * ty + i) * pitch + k0 + k];
#pragma unroll
            for (int p = 0; p < PANELS; p++)
                if (64 * p < outs) {
                    float4 v = *(const float4 *)(w + k * pitch + 64 * p + 4 * tx);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        sum[p][i][0] = fmaf(x[i], v.x, sum[p][i][0]), sum[p][i][1] = fmaf(x[i], v.y, sum[p][i][1]);
                        sum[p][i][2] = fmaf(x[i], v.z, sum[p][i][2]), sum[p][i][3] = fmaf(x[i], v.w, sum[p][i][3]);
                    }
                }
        }
        __syncthreads();
    }
}

template <int PANELS> static __global__ void __launch_bounds__(256) perceptron_kernel(mx_tensor y, mx_tensor x, mx_perceptron_shape n, unsigned vec)
{
    MX_DYN_SHARED(float, rows);         /* [TALL][pitch], then w[DEPTH][pitch] */
    const int pitch = 64 * PANELS + 4, tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int64_t first = (int64_t)blockIdx.x * TALL;
    for (int e = threadIdx.x; e < TALL * (int)x.cols; e += 256) {
        int r = e / (int)x.cols, c = e % (int)x.cols;
        rows[r * pitch + c] = first + r < x.rows ? mx_row(x, first + r)[c] : 0.0f;
    }
    for (int layer = 0; layer < n.layers; layer++) {
        float sum[PANELS][4][4];
        int outs = (int)n.w[layer].rows;
        mx_activation act = layer + 1 < n.layers ? n.act : MX_ACT_NONE;
        dense<PANELS>(sum, rows, rows + TALL * pitch, n.w[layer], (const float *)n.b[layer].data, vec >> layer & 1);
#pragma unroll
        for (int p = 0; p < PANELS; p++)
#pragma unroll
            for (int e = 0; e < 16; e++)
                if (64 * p + 4 * tx + e % 4 < outs) rows[(4 * ty + e / 4) * pitch + 64 * p + 4 * tx + e % 4] = mx_activated(sum[p][e / 4][e % 4], act);
        __syncthreads();
    }
    int wide = n.atoms ? n.atoms : (int)y.cols;
    for (int e = threadIdx.x; e < TALL * wide; e += 256) {
        int r = e / wide, c = e % wide;
        if (first + r >= y.rows) break;
        if (n.atoms) mx_duel(mx_row(y, first + r), rows + r * pitch, y.cols / n.atoms, n.atoms, c);
        else mx_row(y, first + r)[c] = rows[r * pitch + c];
    }
}

template <int PANELS> static void perceptron(mx_stream *s, mx_tensor y, mx_tensor x, const mx_perceptron_shape *p, unsigned vec)
{
    size_t bytes = (size_t)(TALL + DEPTH) * (64 * PANELS + 4) * sizeof(float);
    if (bytes <= 48 * 1024 || mx_cuda_ok(s, cudaFuncSetAttribute(perceptron_kernel<PANELS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes), "perceptron"))
        MX_LAUNCH(s, "perceptron", (perceptron_kernel<PANELS>), (unsigned)((x.rows + TALL - 1) / TALL), 256, bytes, y, x, *p, vec);
}

extern "C" void mx_cuda_perceptron(mx_stream *s, mx_tensor y, mx_tensor x, const mx_perceptron_shape *p)
{
    int64_t widest = x.cols;
    unsigned vec = 0;
    for (int k = 0; k < p->layers; k++) {
        widest = p->w[k].rows > widest ? p->w[k].rows : widest;
        vec |= (unsigned)mx_vec(p->w[k]) << k;
    }
    if (widest <= 64) perceptron<1>(s, y, x, p, vec);
    else if (widest <= 128) perceptron<2>(s, y, x, p, vec);
    else perceptron<4>(s, y, x, p, vec);
}

/* ---- sums of columns --------------------------------------------------------------------------------- */

/* 8 rows of threads take every eighth row of a segment; their sums are added up in order, and so are the segments'. */
static __global__ void column_kernel(float *part, mx_tensor x, bool rounded)
{
    __shared__ float sums[8][COLUMNS];
    int tx = threadIdx.x % COLUMNS, ty = threadIdx.x / COLUMNS;
    int64_t c = (int64_t)blockIdx.x * COLUMNS + tx, first = (int64_t)blockIdx.y * SEGMENT, last = min(first + SEGMENT, x.rows);
    float sum = 0;
    for (int64_t r = first + ty; r < last && c < x.cols; r += 8) {
        float v = mx_row(x, r)[c];
        if (rounded) {
            mx_bf16 h;
            mx_down(&h, v);
            v = mx_up(h);
        }
        sum += v;
    }
    sums[ty][tx] = sum;
    __syncthreads();
    if (ty || c >= x.cols) return;
    for (int i = 1; i < 8; i++) sum += sums[i][tx];
    part[blockIdx.y * x.cols + c] = sum;
}

static __global__ void add_segments_kernel(float *sum, const float *part, int64_t segments, int64_t n)
{
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= n) return;
    float v = 0;
    for (int64_t i = 0; i < segments; i++) v += part[i * n + c];
    sum[c] += v;
}

static void add_columns(mx_stream *s, mx_tensor sum, mx_tensor x, bool rounded)
{
    int64_t segments = (x.rows + SEGMENT - 1) / SEGMENT;
    float *part = (float *)mx_cuda_work(s, (size_t)(segments * x.cols) * sizeof(float));
    if (!part) return;
    MX_LAUNCH(s, "product_back", column_kernel, dim3((unsigned)((x.cols + COLUMNS - 1) / COLUMNS), (unsigned)segments), 8 * COLUMNS, 0, part, x, rounded);
    MX_LAUNCH(s, "product_back", add_segments_kernel, (unsigned)((x.cols + 127) / 128), 128, 0, (float *)sum.data, part, segments, x.cols);
}

extern "C" void mx_cuda_product_back(mx_stream *s, mx_tensor dx, mx_tensor dw, mx_tensor db, mx_tensor dy, mx_tensor x, mx_tensor w,
                                     mx_dtype as, bool add)
{
    mx_tensor none = {};
    if (dx.data) multiply(s, dx, dy, true, w, false, none, as, add);
    if (dw.data) multiply(s, dw, dy, false, x, false, none, as, true);
    if (db.data) add_columns(s, db, dy, false);
}

/* ---- one line each ------------------------------------------------------------------------------------------ */

template <typename T> static __global__ void cast_kernel(mx_tensor y, mx_tensor x, bool vec)
{
    MX_EACH_ROW(r, y.rows)
        MX_EACH_FOUR(i, y.cols)
            mx_store4((T *)y.data + r * y.stride, i, y.cols, vec, mx_load4(mx_row(x, r), i, y.cols, vec));
}

extern "C" void mx_cuda_cast(mx_stream *s, mx_tensor y, mx_tensor x)
{
#define CALL(T) MX_LAUNCH(s, "cast", (cast_kernel<T>), mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, x, mx_vec(y) && mx_vec(x))
    MX_BY_TYPE(y.dtype, CALL);
#undef CALL
}

static __global__ void scale_kernel(mx_tensor y, mx_tensor x, float by, bool vec)
{
    MX_EACH_ROW(r, y.rows)
        MX_EACH_FOUR(i, y.cols) {
            float4 v = mx_load4(mx_row(x, r), i, y.cols, vec);
            mx_store4(mx_row(y, r), i, y.cols, vec, make_float4(v.x * by, v.y * by, v.z * by, v.w * by));
        }
}

extern "C" void mx_cuda_scale(mx_stream *s, mx_tensor y, mx_tensor x, float factor)
{
    MX_LAUNCH(s, "scale", scale_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, x, factor, mx_vec(y) && mx_vec(x));
}
