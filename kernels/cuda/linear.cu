/* linear.cu - matrix products.
 *
 * f32 and bf16 go to cuBLASLt with bias, ReLU, GELU and the residual sum fused.
 * Which algorithm it uses is asked once per weight, for a batch of LT_ROWS rows,
 * and then used for every batch: an output row is the same bits in each.  Split-K
 * is not allowed, for the same reason.  Without the library, our own tiles.
 *
 * int8 is our own: rows are quantised on the fly, products of 64 inputs are summed
 * exactly in int32 and those sums one after another, so a decode kernel (four lanes
 * for a channel) and a tile of mma instructions give the same bits.
 *
 * fp8 is our own too: bytes become bf16 on their way into mma fragments, and an output's
 * products are summed by the same instructions in the same order in small and large
 * tiles. */
#include "kernels/cuda/blaslt.cuh"
#include "kernels/cuda/ptx.cuh"

#include <stdlib.h>

#define LT_ROWS      64                 /* the batch that algorithms are chosen for */
#define LT_WORKSPACE ((size_t)4 << 20)
#define LT_EPILOGUES 6
#define LOAD_BYTES   ((size_t)4 << 20)  /* of weights, converted at a time          */
#define I8_STEP      64                 /* channels of a tile's step: one scale      */
#define I8_DECODE    16                 /* rows up to which four lanes take a channel */

static const cublasLtEpilogue_t lt_epilogues[LT_EPILOGUES] = {
    CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS, CUBLASLT_EPILOGUE_RELU,
    CUBLASLT_EPILOGUE_RELU_BIAS, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS,
};

typedef struct cuda_weight {
    mx_buffer memory;                   /* [rows][padded]; int8: then scale[rows][padded/64]; fp8: scale[rows] */
    int64_t   rows, cols, padded;
    mx_dtype  dtype;
    float    *scale;
    lt_library *lt;                     /* the device's; NULL: our own tiles      */
    cublasLtMatmulAlgo_t algo[LT_EPILOGUES];
} cuda_weight;

/* ---- conversion of rows: weights when they are loaded, activations on their way -------------- */

template <typename T> static __global__ void convert_kernel(T *dst, int64_t padded, mx_tensor x, bool vec)
{
    MX_EACH_ROW(r, x.rows)
        MX_EACH_FOUR(i, padded)
            mx_store4(dst + r * padded, i, padded, true, mx_load4(mx_row(x, r), i, x.cols, vec));
}

/* What a row became: value q is q * scale, but for one that stays as it is. */
typedef struct row_i8 {
    float scale, outlier;
    int   at;                           /* the outlier's channel */
} row_i8;

static __device__ __forceinline__ unsigned four_i8(const float v[4], float inverse, int skip)
{
    unsigned word = 0;
    for (int k = 0; k < 4; k++) {
        float q = fminf(127.0f, fmaxf(-127.0f, rintf(v[k] * inverse)));
        word |= ((unsigned)(k == skip ? 0 : (int)q) & 255u) << 8 * k;
    }
    return word;
}

/* int8, symmetric by row: q = round(x / scale), scale = max|x| / 127 of all but the first of the largest values; a row
 * with a NaN or an infinity gets a scale of NaN, so that its outputs show it.  A block takes a row. */
static __global__ void quantise_kernel(int8_t *dst, int64_t padded, row_i8 *rows, mx_tensor x, bool vec)
{
    int64_t r = blockIdx.x, n = x.cols;
    const float *row = mx_row(x, r);
    float most = -1, second = 0, bad = 0;
    int at = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 f = mx_load4(row, i, n, vec);
        float v[4] = {fabsf(f.x), fabsf(f.y), fabsf(f.z), fabsf(f.w)};
        for (int k = 0; k < 4 && i + k < n; k++) {
            if (!(v[k] <= FLT_MAX)) bad = 1;
            second = fmaxf(second, fminf(v[k], fmaxf(most, 0)));
            if (v[k] > most) most = v[k], at = (int)(i + k);
        }
    }
    float all = mx_block_max(most);
    /* the first of those: indices are exact in f32, a row is shorter than 2^24 (mx_cuda_weight_open) */
    int chosen = -(int)mx_block_max(most == all ? -(float)at : -16777216.0f);
    float rest = mx_block_max(most == all && at == chosen ? second : fmaxf(most, 0));
    bad = mx_block_max(bad);
    float scale = __fdiv_rn(rest, 127.0f), inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
    if (!(inverse <= FLT_MAX)) inverse = 0;             /* a subnormal row: its outputs are 0 */
    if (bad > 0) inverse = 0;
    if (threadIdx.x == 0) rows[r] = (row_i8){bad > 0 ? NAN : scale, row[chosen], chosen};
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < padded; i += 4 * (int64_t)blockDim.x) {
        float4 f = mx_load4(row, i, n, vec);
        float v[4] = {f.x, f.y, f.z, f.w};
        if (bad > 0) v[0] = v[1] = v[2] = v[3] = 0;
        *(unsigned *)(dst + r * padded + i) = four_i8(v, inverse, (int)(chosen - i));
    }
}

/* The same of a weight, every I8_STEP values of a row with their own scale and no outlier; a thread takes them. */
static __global__ void quantise_weight_kernel(int8_t *dst, int64_t padded, float *scales, mx_tensor x, bool vec)
{
    int64_t groups = padded / I8_STEP, i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, r = i / groups, k0 = i % groups * I8_STEP;
    if (r >= x.rows) return;
    float most = 0;
    for (int64_t k = k0; k < k0 + I8_STEP; k += 4) {
        float4 f = mx_load4(mx_row(x, r), k, x.cols, vec);
        most = fmaxf(fmaxf(fmaxf(most, fabsf(f.x)), fmaxf(fabsf(f.y), fabsf(f.z))), fabsf(f.w));
    }
    float scale = __fdiv_rn(most, 127.0f), inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
    if (!(inverse <= FLT_MAX)) inverse = 0;
    scales[i] = scale;
    for (int64_t k = k0; k < k0 + I8_STEP; k += 4) {
        float4 f = mx_load4(mx_row(x, r), k, x.cols, vec);
        float v[4] = {f.x, f.y, f.z, f.w};
        *(unsigned *)(dst + r * padded + k) = four_i8(v, inverse, -1);
    }
}

/* fp8 of a weight: a row's largest value becomes 448.  A block takes a row. */
static __global__ void round_f8_kernel(mx_f8 *dst, int64_t padded, float *scales, mx_tensor x, bool vec)
{
    int64_t r = blockIdx.x, n = x.cols;
    const float *row = mx_row(x, r);
    float most = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 f = mx_load4(row, i, n, vec);
        most = fmaxf(fmaxf(fmaxf(most, fabsf(f.x)), fmaxf(fabsf(f.y), fabsf(f.z))), fabsf(f.w));
    }
    float scale = __fdiv_rn(mx_block_max(most), 448.0f), inverse = scale > 0 ? __fdiv_rn(1.0f, scale) : 0.0f;
    if (!(inverse <= FLT_MAX)) inverse = 0;
    if (threadIdx.x == 0) scales[r] = scale;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < padded; i += 4 * (int64_t)blockDim.x) {
        float4 f = mx_load4(row, i, n, vec);
        mx_store4(dst + r * padded, i, padded, true, make_float4(f.x * inverse, f.y * inverse, f.z * inverse, f.w * inverse));
    }
}

static void convert(mx_stream *s, void *dst, int64_t padded, mx_dtype as, mx_tensor x)
{
    bool vec = mx_vec(x);
    unsigned threads = mx_row_threads(padded);
    dim3 grid = mx_grid(x.rows, padded);
    if (as == MX_BF16) MX_LAUNCH(s, "linear", (convert_kernel<mx_bf16>), grid, threads, 0, (mx_bf16 *)dst, padded, x, vec);
    else MX_LAUNCH(s, "linear", (convert_kernel<float>), grid, threads, 0, (float *)dst, padded, x, vec);
}

/* ---- cuBLASLt -------------------------------------------------------------------------------------- */

/* y[n,o] = x[n,k] w[o,k]^T in the library's column-major words: y^T = op(w) x^T. */
typedef struct lt_product {
    cublasLtMatmulDesc_t   desc;
    cublasLtMatrixLayout_t w, x, y;
} lt_product;

static void product_close(const lt_library *l, lt_product *p)
{
    if (p->y) l->MatrixLayoutDestroy(p->y);
    if (p->x) l->MatrixLayoutDestroy(p->x);
    if (p->w) l->MatrixLayoutDestroy(p->w);
    if (p->desc) l->MatmulDescDestroy(p->desc);
}

static bool product_open(const lt_library *l, lt_product *p, const cuda_weight *w, int64_t n, int64_t ldx, int64_t ldy,
                         cublasLtEpilogue_t epilogue, const float *bias)
{
    cudaDataType_t type = w->dtype == MX_F32 ? CUDA_R_32F : CUDA_R_16BF;
    cublasOperation_t transposed = CUBLAS_OP_T;
    memset(p, 0, sizeof *p);
    bool ok = l->MatmulDescCreate(&p->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
              l->MatrixLayoutCreate(&p->w, type, (uint64_t)w->padded, (uint64_t)w->rows, w->padded) == CUBLAS_STATUS_SUCCESS &&
              l->MatrixLayoutCreate(&p->x, type, (uint64_t)w->padded, (uint64_t)n, ldx) == CUBLAS_STATUS_SUCCESS &&
              l->MatrixLayoutCreate(&p->y, CUDA_R_32F, (uint64_t)w->rows, (uint64_t)n, ldy) == CUBLAS_STATUS_SUCCESS &&
              l->MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed) == CUBLAS_STATUS_SUCCESS &&
              l->MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) == CUBLAS_STATUS_SUCCESS;
    if (ok && bias)
        ok = l->MatmulDescSetAttribute(p->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias) == CUBLAS_STATUS_SUCCESS;
    return ok;
}

/* The algorithm for a weight and an epilogue, whatever the batch will be.  `any` stands for a bias that will come. */
static bool choose_algorithm(const lt_library *l, cuda_weight *w, int e, const float *any)
{
    lt_product p;
    cublasLtMatmulPreference_t pref = NULL;
    cublasLtMatmulHeuristicResult_t best;
    size_t space = LT_WORKSPACE;
    uint32_t none = 0, sixteen = 16;            /* no split-K; rows begin at multiples of 16 bytes */
    int found = 0;
    bool ok = product_open(l, &p, w, LT_ROWS, w->padded, (w->rows + 3) / 4 * 4, lt_epilogues[e],
                           lt_epilogues[e] & CUBLASLT_EPILOGUE_BIAS ? any : NULL) &&
              l->MatmulPreferenceCreate(&pref) == CUBLAS_STATUS_SUCCESS &&
              l->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &space, sizeof space) == CUBLAS_STATUS_SUCCESS &&
              l->MatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &none, sizeof none) == CUBLAS_STATUS_SUCCESS;
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
    };
    for (int i = 0; i < 4 && ok; i++)
        ok = l->MatmulPreferenceSetAttribute(pref, alignments[i], &sixteen, sizeof sixteen) == CUBLAS_STATUS_SUCCESS;
    ok = ok && l->MatmulAlgoGetHeuristic(l->handle, p.desc, p.w, p.x, p.y, p.y, pref, 1, &best, &found) == CUBLAS_STATUS_SUCCESS && found == 1;
    if (ok) w->algo[e] = best.algo;
    if (pref) l->MatmulPreferenceDestroy(pref);
    product_close(l, &p);
    return ok;
}

/* y = epilogue(x w^T + bias) (+ y); x has the weight's type, everything is aligned to 16 bytes. */
static void lt_multiply(mx_stream *s, const cuda_weight *w, float *y, int64_t ldy, const void *x, int64_t ldx, int64_t n, const float *bias,
                        int e, bool add, void *workspace)
{
    const lt_library *l = w->lt;
    float one = 1, beta = add ? 1 : 0;
    lt_product p;
    bool ok = product_open(l, &p, w, n, ldx, ldy, lt_epilogues[e], bias) &&
              l->Matmul(l->handle, p.desc, &one, w->memory.base, p.w, x, p.x, &beta, y, p.y, y, p.y, &w->algo[e], workspace, LT_WORKSPACE,
                        (cudaStream_t)mx_cuda_queue(s)) == CUBLAS_STATUS_SUCCESS;
    product_close(l, &p);
    if (!ok)
        mx_stream_fail(s, MX_ERR_DEVICE, "linear: cuBLASLt refuses %lld x %lld x %lld", (long long)n, (long long)w->cols, (long long)w->rows);
}

/* ---- our own tiles: 64 x 64 outputs of a block of 256 threads, 4 x 4 of a thread -------------------------- */

typedef struct tile_shared {
    float x[16][64 + 4], w[16][64 + 4];
} tile_shared;

template <typename T>
static __global__ void __launch_bounds__(256) tile_kernel(mx_tensor y, mx_tensor x, const T *w, int64_t padded, const float *bias, mx_activation act, bool add)
{
    MX_DYN_SHARED(tile_shared, s);
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    int64_t r0 = (int64_t)blockIdx.y * 64, o0 = (int64_t)blockIdx.x * 64;
    float sum[4][4] = {};
    for (int64_t k0 = 0; k0 < x.cols; k0 += 16) {
        for (int j = threadIdx.x; j < 1024; j += 256) {
            int64_t i = j / 16, k = k0 + j % 16;
            T rounded;
            mx_down(&rounded, r0 + i < x.rows && k < x.cols ? mx_row(x, r0 + i)[k] : 0.0f);
            s->x[j % 16][i] = mx_up(rounded);
            s->w[j % 16][i] = o0 + i < y.cols && k < x.cols ? mx_up(w[(o0 + i) * padded + k]) : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < 16; k++)
            for (int i = 0; i < 4; i++)
                for (int j = 0; j < 4; j++) sum[i][j] = fmaf(s->x[k][4 * ty + i], s->w[k][4 * tx + j], sum[i][j]);
        __syncthreads();
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            int64_t r = r0 + 4 * ty + i, o = o0 + 4 * tx + j;
            if (r >= y.rows || o >= y.cols) continue;
            float *at = mx_row(y, r) + o, v = sum[i][j] + (bias ? bias[o] : 0.0f);
            *at = add ? *at + v : mx_activated(v, act);
        }
}

static void own_multiply(mx_stream *s, mx_tensor y, mx_tensor x, const cuda_weight *w, const float *bias, mx_activation act, bool add)
{
    int64_t most = 65535 * 64;
    for (int64_t r = 0; r < x.rows; r += most) {
        int64_t n = x.rows - r < most ? x.rows - r : most;
        dim3 grid((unsigned)((w->rows + 63) / 64), (unsigned)((n + 63) / 64));
        mx_tensor yr = mx_tensor_rows(y, r, n), xr = mx_tensor_rows(x, r, n);
        if (w->dtype == MX_F32)
            MX_LAUNCH(s, "linear", (tile_kernel<float>), grid, 256, sizeof(tile_shared), yr, xr, (const float *)w->memory.base, w->padded, bias, act, add);
        else
            MX_LAUNCH(s, "linear", (tile_kernel<mx_bf16>), grid, 256, sizeof(tile_shared), yr, xr, (const mx_bf16 *)w->memory.base, w->padded, bias, act, add);
    }
}

/* ---- int8 ------------------------------------------------------------------------------------------------------ */

typedef struct int8_args {
    mx_tensor     y;
    const int8_t *x, *w;
    const row_i8 *row;
    const float  *w_scale, *bias;
    int64_t       padded, groups;
    mx_activation act;
    bool          add;
} int8_args;

static __device__ void int8_finish(const int8_args &a, int64_t r, int64_t o, float sum)
{
    row_i8 row = a.row[r];
    float weight = (float)a.w[o * a.padded + row.at] * a.w_scale[o * a.groups + row.at / I8_STEP];
    float *at = mx_row(a.y, r) + o, v = sum * row.scale + row.outlier * weight + (a.bias ? a.bias[o] : 0.0f);
    *at = a.add ? *at + v : mx_activated(v, a.act);
}

static __device__ __forceinline__ int dot16(int4 a, int4 b)
{
    return __dp4a(a.w, b.w, __dp4a(a.z, b.z, __dp4a(a.y, b.y, __dp4a(a.x, b.x, 0))));
}

/* Four lanes take an output channel, 64 channels of input at a time, with up to 8 rows. */
static __global__ void __launch_bounds__(64) int8_decode_kernel(int8_args a)
{
    int64_t o = (int64_t)blockIdx.x * 16 + threadIdx.x / 4, r0 = (int64_t)blockIdx.y * 8, last = a.y.cols - 1;
    int lane = threadIdx.x % 4, n = a.y.rows - r0 < 8 ? (int)(a.y.rows - r0) : 8;
    float sum[8] = {};
    const int8_t *from = a.w + (o < last ? o : last) * a.padded + 16 * lane;
    const float *scale = a.w_scale + (o < last ? o : last) * a.groups;
#pragma unroll 4
    for (int64_t g = 0; g < a.groups; g++) {
        int4 w = *(const int4 *)(from + g * I8_STEP);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i >= n) break;
            int part = dot16(w, *(const int4 *)(a.x + (r0 + i) * a.padded + g * I8_STEP + 16 * lane));
            part += __shfl_xor_sync(MX_FULL, part, 1);
            part += __shfl_xor_sync(MX_FULL, part, 2);
            sum[i] = fmaf((float)part, scale[g], sum[i]);
        }
    }
    if (o > last) return;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (i < n && lane == i % 4) int8_finish(a, r0 + i, o, sum[i]);
}

#define I8_PITCH (I8_STEP + 16)         /* bytes of a row in shared memory: fragments meet in no bank */

/* 64 rows x I8_STEP bytes from row r0 of a matrix of `rows`; 0 behind its end. */
static __device__ void int8_load(int8_t *to, const int8_t *from, int64_t padded, int64_t r0, int64_t rows, int64_t k0)
{
    for (int j = threadIdx.x; j < 64 * (I8_STEP / 16); j += 128) {
        int i = j / (I8_STEP / 16), c = j % (I8_STEP / 16) * 16;
        bool in = r0 + i < rows;
        __pipeline_memcpy_async(to + i * I8_PITCH + c, from + (in ? (r0 + i) * padded + k0 + c : 0), 16, in ? 0 : 16);
    }
}

/* A block makes 64 x 64 outputs, each of its four warps 32 x 32, with two steps in flight. */
static __global__ void __launch_bounds__(128) int8_tile_kernel(int8_args a)
{
    __shared__ __align__(16) int8_t xs[2][64 * I8_PITCH], ws[2][64 * I8_PITCH];
    int64_t r0 = (int64_t)blockIdx.y * 64, o0 = (int64_t)blockIdx.x * 64;
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 4, wm = warp / 2 * 32, wn = warp % 2 * 32, stage = 0;
    float sum[2][4][4] = {};
    int8_load(xs[0], a.x, a.padded, r0, a.y.rows, 0);
    int8_load(ws[0], a.w, a.padded, o0, a.y.cols, 0);
    __pipeline_commit();
    for (int64_t k0 = 0; k0 < a.padded; k0 += I8_STEP, stage ^= 1) {
        if (k0 + I8_STEP < a.padded) {
            int8_load(xs[stage ^ 1], a.x, a.padded, r0, a.y.rows, k0 + I8_STEP);
            int8_load(ws[stage ^ 1], a.w, a.padded, o0, a.y.cols, k0 + I8_STEP);
        }
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
        int part[2][4][4] = {};
#pragma unroll
        for (int k = 0; k < I8_STEP; k += 32) {
            unsigned fx[2][4], fw[4][2];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    fx[i][e] = *(const unsigned *)&xs[stage][(wm + 16 * i + g + e % 2 * 8) * I8_PITCH + k + t + e / 2 * 16];
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) fw[j][e] = *(const unsigned *)&ws[stage][(wn + 8 * j + g) * I8_PITCH + k + t + e * 16];
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) mx_mma_s8(part[i][j], fx[i], fw[j], part[i][j]);
        }
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int64_t o = o0 + wn + 8 * j + threadIdx.x % 4 * 2 + e;
                float scale = o < a.y.cols ? a.w_scale[o * a.groups + k0 / I8_STEP] : 0.0f;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    sum[i][j][e] = fmaf((float)part[i][j][e], scale, sum[i][j][e]);
                    sum[i][j][e + 2] = fmaf((float)part[i][j][e + 2], scale, sum[i][j][e + 2]);
                }
            }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int64_t r = r0 + wm + 16 * i + g + e / 2 * 8, o = o0 + wn + 8 * j + threadIdx.x % 4 * 2 + e % 2;
                if (r < a.y.rows && o < a.y.cols) int8_finish(a, r, o, sum[i][j][e]);
            }
}

static void int8_linear(mx_stream *s, mx_tensor y, mx_tensor x, const cuda_weight *w, const float *bias, mx_activation act, bool add)
{
    int64_t most = 65535 * 8;
    int64_t n = x.rows < most ? x.rows : most;
    size_t bytes = (size_t)n * (size_t)w->padded;       /* a multiple of 64 */
    char *work = (char *)mx_cuda_work(s, bytes + (size_t)n * sizeof(row_i8));
    row_i8 *rows = (row_i8 *)(work + bytes);
    for (int64_t r = 0; work && r < x.rows; r += n) {
        mx_tensor xr = mx_tensor_rows(x, r, x.rows - r < n ? x.rows - r : n), yr = mx_tensor_rows(y, r, xr.rows);
        int8_args a = {yr, (int8_t *)work, (const int8_t *)w->memory.base, rows, w->scale, bias, w->padded, w->padded / I8_STEP, act, add};
        MX_LAUNCH(s, "linear", quantise_kernel, (unsigned)xr.rows, mx_row_threads(w->padded), 0, (int8_t *)work, w->padded, rows, xr, mx_vec(xr));
        if (x.rows <= I8_DECODE)
            MX_LAUNCH(s, "linear", int8_decode_kernel, dim3((unsigned)((w->rows + 15) / 16), (unsigned)((xr.rows + 7) / 8)), 64, 0, a);
        else
            MX_LAUNCH(s, "linear", int8_tile_kernel, dim3((unsigned)((w->rows + 63) / 64), (unsigned)((xr.rows + 63) / 64)), 128, 0, a);
    }
}

/* ---- fp8 ------------------------------------------------------------------------------------------------------- */

#define F8_STEP    64                   /* channels of a tile's step */
#define F8_X_PITCH (2 * F8_STEP + 16)   /* bytes of a row in shared memory, of bf16 and of fp8 */
#define F8_W_PITCH (F8_STEP + 16)

typedef struct f8_args {
    mx_tensor      y;
    const mx_bf16 *x;
    const mx_f8   *w;
    const float   *scale, *bias;
    int64_t        padded;
    mx_activation  act;
    bool           add;
} f8_args;

/* n rows of F8_STEP values from row r0 and column k0 of a matrix of `rows`; 0 behind its end. */
template <typename T> static __device__ void f8_load(char *to, int pitch, const T *from, int64_t padded, int n, int64_t r0, int64_t rows, int64_t k0)
{
    constexpr int pieces = F8_STEP * (int)sizeof(T) / 16, piece = 16 / (int)sizeof(T);
    for (int j = threadIdx.x; j < n * pieces; j += 128) {
        int i = j / pieces, c = j % pieces;
        bool in = r0 + i < rows;
        __pipeline_memcpy_async(to + i * pitch + 16 * c, from + (in ? (r0 + i) * padded + k0 + c * piece : 0), 16, in ? 0 : 16);
    }
}

/* Two neighbouring bytes as a pair of bf16; each is exact there. */
static __device__ __forceinline__ unsigned f8_pair(const char *p)
{
    unsigned u = *(const uint16_t *)p;
    mx_f8 lo = {(uint8_t)u}, hi = {(uint8_t)(u >> 8)};
    return __float_as_uint(mx_up(lo)) >> 16 | (__float_as_uint(mx_up(hi)) & 0xffff0000u);
}

/* Four warps side by side, or in two rows of two: each makes 16 M x 8 N outputs, with two steps in flight. */
template <int M, int N, int WIDE> static __global__ void __launch_bounds__(128) f8_tile_kernel(f8_args a)
{
    constexpr int ROWS = 16 * M * (4 / WIDE), COLS = 8 * N * WIDE, STAGE = ROWS * F8_X_PITCH + COLS * F8_W_PITCH;
    MX_DYN_SHARED(char, shared);
    int64_t r0 = (int64_t)blockIdx.y * ROWS, o0 = (int64_t)blockIdx.x * COLS;
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4 * 2, wm = warp / WIDE * 16 * M, wn = warp % WIDE * 8 * N, stage = 0;
    float sum[M][N][4] = {};
    f8_load(shared, F8_X_PITCH, a.x, a.padded, ROWS, r0, a.y.rows, 0);
    f8_load(shared + ROWS * F8_X_PITCH, F8_W_PITCH, a.w, a.padded, COLS, o0, a.y.cols, 0);
    __pipeline_commit();
    for (int64_t k0 = 0; k0 < a.padded; k0 += F8_STEP, stage ^= 1) {
        char *next = shared + (stage ^ 1) * STAGE, *xs = shared + stage * STAGE, *ws = xs + ROWS * F8_X_PITCH;
        if (k0 + F8_STEP < a.padded) {
            f8_load(next, F8_X_PITCH, a.x, a.padded, ROWS, r0, a.y.rows, k0 + F8_STEP);
            f8_load(next + ROWS * F8_X_PITCH, F8_W_PITCH, a.w, a.padded, COLS, o0, a.y.cols, k0 + F8_STEP);
        }
        __pipeline_commit();
        __pipeline_wait_prior(1);
        __syncthreads();
#pragma unroll
        for (int k = 0; k < F8_STEP; k += 16) {
            unsigned fx[M][4], fw[N][2];
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    fx[i][e] = *(const unsigned *)(xs + (wm + 16 * i + g + e % 2 * 8) * F8_X_PITCH + 2 * (k + t + e / 2 * 8));
#pragma unroll
            for (int j = 0; j < N; j++)
#pragma unroll
                for (int e = 0; e < 2; e++) fw[j][e] = f8_pair(ws + (wn + 8 * j + g) * F8_W_PITCH + k + t + e * 8);
#pragma unroll
            for (int i = 0; i < M; i++)
#pragma unroll
                for (int j = 0; j < N; j++) mx_mma_bf16(sum[i][j], fx[i], fw[j], sum[i][j]);
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < M; i++)
#pragma unroll
        for (int j = 0; j < N; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int64_t r = r0 + wm + 16 * i + g + e / 2 * 8, o = o0 + wn + 8 * j + t + e % 2;
                if (r >= a.y.rows || o >= a.y.cols) continue;
                float *at = mx_row(a.y, r) + o, v = sum[i][j][e] * a.scale[o] + (a.bias ? a.bias[o] : 0.0f);
                *at = a.add ? *at + v : mx_activated(v, a.act);
            }
}

template <int M, int N, int WIDE> static void f8_tiles(mx_stream *s, const f8_args &a)
{
    constexpr int ROWS = 16 * M * (4 / WIDE), COLS = 8 * N * WIDE;
    dim3 grid((unsigned)((a.y.cols + COLS - 1) / COLS), (unsigned)((a.y.rows + ROWS - 1) / ROWS));
    MX_LAUNCH(s, "linear", (f8_tile_kernel<M, N, WIDE>), grid, 128, 2 * (ROWS * F8_X_PITCH + COLS * F8_W_PITCH), a);
}

static void f8_linear(mx_stream *s, mx_tensor y, mx_tensor x, const cuda_weight *w, const float *bias, mx_activation act, bool add)
{
    int64_t most = 65535 * 16, n = x.rows < most ? x.rows : most;
    mx_bf16 *work = (mx_bf16 *)mx_cuda_work(s, (size_t)n * (size_t)w->padded * sizeof(mx_bf16));
    for (int64_t r = 0; work && r < x.rows; r += n) {
        mx_tensor xr = mx_tensor_rows(x, r, x.rows - r < n ? x.rows - r : n), yr = mx_tensor_rows(y, r, xr.rows);
        f8_args a = {yr, work, (const mx_f8 *)w->memory.base, w->scale, bias, w->padded, act, add};
        convert(s, work, w->padded, MX_BF16, xr);
        if (x.rows <= 16) f8_tiles<1, 1, 4>(s, a);
        else f8_tiles<2, 4, 2>(s, a);
    }
}

/* ---- the op ------------------------------------------------------------------------------------------------------- */

static int epilogue_of(const lt_library *l, mx_activation act, bool bias)
{
    if (act == MX_ACT_RELU) return 2 + bias;
    if (act == MX_ACT_GELU_TANH && l->gelu) return 4 + bias;
    return bias;
}

static bool aligned16(const void *p, int64_t stride_bytes)
{
    return (uintptr_t)p % 16 == 0 && stride_bytes % 16 == 0;
}

static size_t round_up(size_t n) { return (n + 255) & ~(size_t)255; }

/* Tensors that the library could not read in pieces of 16 bytes pass through work memory; the sums are the same. */
static void library_linear(mx_stream *s, mx_tensor y, mx_tensor x, const cuda_weight *w, const float *bias, mx_activation act, bool add)
{
    bool as_it_is = w->dtype == MX_F32 && w->padded == x.cols && aligned16(x.data, x.rows > 1 ? x.stride * 4 : 0);
    bool y_as_it_is = aligned16(y.data, y.rows > 1 ? y.stride * 4 : 0);
    int64_t ldx = as_it_is ? (x.rows > 1 ? x.stride : x.cols) : w->padded, ldy = y_as_it_is && y.rows > 1 ? y.stride : (y.cols + 3) / 4 * 4;
    size_t x_bytes = as_it_is ? 0 : round_up((size_t)(x.rows * w->padded) * mx_dtype_size(w->dtype));
    size_t y_bytes = y_as_it_is ? 0 : round_up((size_t)(y.rows * ldy) * 4), b_bytes = bias && !aligned16(bias, 0) ? round_up((size_t)y.cols * 4) : 0;
    char *work = (char *)mx_cuda_work(s, LT_WORKSPACE + x_bytes + y_bytes + b_bytes), *xw = work + LT_WORKSPACE, *yw = xw + x_bytes, *bw = yw + y_bytes;
    if (!work) return;
    cudaStream_t q = (cudaStream_t)mx_cuda_queue(s);
    size_t width = (size_t)y.cols * 4;
    if (x_bytes) convert(s, xw, w->padded, w->dtype, x);
    if (y_bytes && add)
        mx_cuda_ok(s, cudaMemcpy2DAsync(yw, (size_t)ldy * 4, y.data, (size_t)y.stride * 4, width, (size_t)y.rows, cudaMemcpyDeviceToDevice, q), "linear");
    if (b_bytes) mx_cuda_ok(s, cudaMemcpyAsync(bw, bias, width, cudaMemcpyDeviceToDevice, q), "linear");
    int e = epilogue_of(w->lt, act, bias != NULL);
    lt_multiply(s, w, y_bytes ? (float *)yw : (float *)y.data, ldy, x_bytes ? (const void *)xw : x.data, ldx, x.rows, b_bytes ? (const float *)bw : bias, e, add, work);
    if (y_bytes)
        mx_cuda_ok(s, cudaMemcpy2DAsync(y.data, (size_t)y.stride * 4, yw, (size_t)ldy * 4, width, (size_t)y.rows, cudaMemcpyDeviceToDevice, q), "linear");
    if (act != MX_ACT_NONE && e < 2) mx_cuda_activate(s, y, y, act);
}

extern "C" void mx_cuda_linear(mx_stream *s, mx_tensor y, mx_tensor x, const mx_weight *weight, mx_tensor b, mx_activation act, bool add)
{
    const cuda_weight *w = (const cuda_weight *)weight->impl;
    const float *bias = (const float *)b.data;
    if (w->dtype == MX_I8) int8_linear(s, y, x, w, bias, act, add);
    else if (w->dtype == MX_F8) f8_linear(s, y, x, w, bias, act, add);
    else if (w->lt) library_linear(s, y, x, w, bias, act, add);
    else own_multiply(s, y, x, w, bias, act, add);
}

/* ---- opening weights ------------------------------------------------------------------------------------------------- */

/* Is the library's GELU ours to within rounding?  Products of one channel by 1 leave the activation alone. */
static bool gelu_is_exact(lt_library *l, mx_stream *s)
{
    enum { N = 64, K = 4 };
    float x[N * K] = {}, identity[4 * K] = {}, got[4 * N], want[4 * N];
    cuda_weight w;
    size_t bytes = LT_WORKSPACE + sizeof x + sizeof identity + sizeof got + sizeof want;
    char *work = (char *)mx_cuda_work(s, bytes);
    if (!work) return false;
    memset(&w, 0, sizeof w);
    for (int i = 0; i < N * K; i++) x[i] = (float)(i - N * K / 2) * (8.0f / (N * K));
    for (int i = 0; i < 4; i++) identity[i * K + i] = 1;
    float *dx = (float *)(work + LT_WORKSPACE), *dw = dx + N * K, *dy = dw + 4 * K, *dz = dy + 4 * N;
    w.memory.base = dw;
    w.rows = 4, w.cols = w.padded = K, w.dtype = MX_F32, w.lt = l;
    if (!choose_algorithm(l, &w, 4, NULL)) return false;
    s->dev->ops->upload(s, dx, x, sizeof x);
    s->dev->ops->upload(s, dw, identity, sizeof identity);
    lt_multiply(s, &w, dy, 4, dx, K, N, NULL, 4, false, work);
    mx_cuda_activate(s, mx_tensor_of(dz, MX_F32, N, 4), mx_tensor_of(dx, MX_F32, N, 4), MX_ACT_GELU_TANH);
    s->dev->ops->download(s, got, dy, sizeof got);
    s->dev->ops->download(s, want, dz, sizeof want);
    if (mx_stream_sync(s, NULL)) return false;
    for (int i = 0; i < 4 * N; i++)
        if (!(fabsf(got[i] - want[i]) <= 1e-6f * (1 + fabsf(want[i])))) return false;
    return true;
}

static lt_library *library_of(mx_device *d, mx_stream *s)
{
    mx_cuda_library *slot = mx_cuda_library_of(d, MX_CUDA_PRODUCTS);
    if (slot->close) return (lt_library *)slot->impl;       /* it was looked for already */
    lt_library *l = lt_open();
    if (l) l->gelu = gelu_is_exact(l, s);
    slot->impl = l;
    slot->close = lt_close;
    return l;
}

struct lt_library *mx_cuda_blaslt(mx_device *d)
{
    mx_cuda_library *slot = mx_cuda_library_of(d, MX_CUDA_PRODUCTS);
    if (slot->close) return (lt_library *)slot->impl;
    mx_stream *s = mx_cuda_loader(d, NULL);
    if (!s) return NULL;
    lt_library *l = library_of(d, s);
    mx_cuda_loader_done(d);
    return l;
}

static void read_rows(const mx_row_source *parts, int count, int64_t first, int64_t n, float *dst)
{
    int64_t begin = 0;
    for (int i = 0; i < count && n > 0; begin += parts[i++].rows) {
        int64_t here = begin + parts[i].rows - first;
        if (here <= 0) continue;
        if (here > n) here = n;
        parts[i].read(parts[i].ctx, first - begin, here, dst);
        first += here;
        dst += here * parts[i].cols;
        n -= here;
    }
}

static mx_status load_rows(mx_stream *s, cuda_weight *w, const mx_row_source *parts, int count, mx_error *err)
{
    int64_t step = (int64_t)(LOAD_BYTES / ((size_t)w->cols * sizeof(float))) + 1;
    size_t bytes = (size_t)step * (size_t)w->cols * sizeof(float);
    float *stage = (float *)malloc(bytes), *on_device = (float *)mx_cuda_work(s, bytes);
    mx_status st = MX_OK;
    if (!stage) st = mx_fail(err, MX_ERR_NO_MEMORY, "weight: no %zu bytes to load with", bytes);
    for (int64_t r = 0; r < w->rows && stage && on_device; r += step) {
        int64_t n = w->rows - r < step ? w->rows - r : step;
        read_rows(parts, count, r, n, stage);
        s->dev->ops->upload(s, on_device, stage, (size_t)n * (size_t)w->cols * sizeof *stage);
        char *dst = (char *)w->memory.base + (size_t)(r * w->padded) * mx_dtype_size(w->dtype);
        mx_tensor x = mx_tensor_of(on_device, MX_F32, n, w->cols);
        int64_t groups = w->padded / I8_STEP;
        if (w->dtype == MX_F8)
            MX_LAUNCH(s, "linear", round_f8_kernel, (unsigned)n, mx_row_threads(w->padded), 0, (mx_f8 *)dst, w->padded, w->scale + r, x, mx_vec(x));
        else if (w->dtype != MX_I8) convert(s, dst, w->padded, w->dtype, x);
        else MX_LAUNCH(s, "linear", quantise_weight_kernel, (unsigned)((n * groups + 63) / 64), 64, 0, (int8_t *)dst, w->padded,
                       w->scale + r * groups, x, mx_vec(x));
    }
    mx_error late = {};
    mx_status synced = mx_stream_sync(s, &late);
    if (!st && synced) {
        st = synced;
        if (err) *err = late;
    }
    free(stage);
    return st;
}

/* Values of a row in memory. */
static int64_t padded_cols(int64_t cols, mx_dtype as)
{
    int64_t to = as == MX_F32 ? 4 : as == MX_BF16 ? 8 : I8_STEP;
    return (cols + to - 1) / to * to;
}

extern "C" size_t mx_cuda_weight_bytes(const mx_device *d, int64_t rows, int64_t cols, mx_dtype as)
{
    size_t size;
    (void)d;
    if (!mx_mul_size((size_t)rows, (size_t)padded_cols(cols, as) * mx_dtype_size(as), &size)) return 0;
    size_t scales = as == MX_I8 ? size / I8_STEP * sizeof(float) : as == MX_F8 ? (size_t)rows * sizeof(float) : 0;
    return mx_add_size(size, scales, &size) ? size : 0;
}

extern "C" mx_status mx_cuda_weight_open(mx_weight *weight, mx_device *d, const mx_row_source *parts, int n, mx_dtype as, mx_error *err)
{
    mx_status st = MX_OK;
    size_t size = mx_cuda_weight_bytes(d, weight->rows, weight->cols, as);
    cuda_weight *w = (cuda_weight *)calloc(1, sizeof *w);
    mx_stream *s = NULL;
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "weight: no memory for its description");
    w->rows = weight->rows;
    w->cols = weight->cols;
    w->padded = padded_cols(w->cols, as);
    w->dtype = as;
    if (as == MX_I8 && w->cols >= 1 << 24) {
        st = mx_fail(err, MX_ERR_ARG, "weight: int8 takes rows of under %d values, not %lld", 1 << 24, (long long)w->cols);
        goto done;
    }
    if (!size) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "weight: %lld x %lld does not fit memory", (long long)w->rows, (long long)w->cols);
        goto done;
    }
    MX_TRY_GOTO(st, mx_buffer_open(&w->memory, d, size, err), done);
    if (as == MX_I8 || as == MX_F8) w->scale = (float *)((char *)w->memory.base + (size_t)w->rows * (size_t)w->padded);
    s = mx_cuda_loader(d, err);
    if (!s) {
        st = MX_ERR_DEVICE;
        goto done;
    }
    st = load_rows(s, w, parts, n, err);
    if (!st && as != MX_I8 && as != MX_F8) w->lt = library_of(d, s);
    for (int e = 0; e < LT_EPILOGUES && w->lt; e++)
        if (!choose_algorithm(w->lt, w, e, (const float *)w->memory.base)) w->lt = NULL;
    mx_cuda_loader_done(d);
    weight->bytes = size;
    weight->impl = w;
done:
    if (st) {
        mx_buffer_close(&w->memory);
        free(w);
        weight->impl = NULL;
    }
    return st;
}

extern "C" void mx_cuda_weight_close(mx_weight *weight)
{
    cuda_weight *w = (cuda_weight *)weight->impl;
    if (!w) return;
    mx_buffer_close(&w->memory);
    free(w);
}
