/* norm.cu - layer norm, RMS norm, the residual sum.  A block normalises a row. */
#include "kernels/cuda/common.cuh"

typedef struct norm_args {
    mx_tensor y, x, gain, bias;
    float     eps;
    bool      vec;
} norm_args;

/* The part of sum (x - mean)^2 that this thread owns; elements past the end do not count. */
static __device__ float squares(const float *x, int64_t n, float mean, bool vec)
{
    float sum = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, vec);
        float a = v.x - mean, b = i + 1 < n ? v.y - mean : 0, c = i + 2 < n ? v.z - mean : 0, d = i + 3 < n ? v.w - mean : 0;
        sum += (a * a + b * b) + (c * c + d * d);
    }
    return sum;
}

static __device__ void write_row(const norm_args &a, int64_t r, float mean, float scale)
{
    int64_t n = a.x.cols;
    const float *x = mx_row(a.x, r), *gain = (const float *)a.gain.data, *bias = (const float *)a.bias.data;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, a.vec), g = mx_load4(gain, i, n, a.vec);
        v = make_float4((v.x - mean) * scale * g.x, (v.y - mean) * scale * g.y, (v.z - mean) * scale * g.z, (v.w - mean) * scale * g.w);
        if (bias) {
            float4 b = mx_load4(bias, i, n, a.vec);
            v = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
        }
        mx_store4(mx_row(a.y, r), i, n, a.vec, v);
    }
}

static __device__ void norm_row(const norm_args &a, int64_t r)
{
    int64_t n = a.x.cols;
    const float *x = mx_row(a.x, r);
    float sum = 0;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 v = mx_load4(x, i, n, a.vec);
        sum += (v.x + v.y) + (v.z + v.w);
    }
    float mean = mx_block_sum(sum) / (float)n;
    float var = mx_block_sum(squares(x, n, mean, a.vec)) / (float)n;
    write_row(a, r, mean, 1.0f / sqrtf(var + a.eps));
}

static __device__ void rms_row(const norm_args &a, int64_t r)
{
    int64_t n = a.x.cols;
    float mean = mx_block_sum(squares(mx_row(a.x, r), n, 0.0f, a.vec)) / (float)n;
    write_row(a, r, 0.0f, 1.0f / sqrtf(mean + a.eps));
}

static __global__ void norm_kernel(norm_args a) { norm_row(a, blockIdx.x); }
static __global__ void rms_norm_kernel(norm_args a) { rms_row(a, blockIdx.x); }

/* a.x becomes u + v; a thread reads again only the elements that it wrote. */
static __global__ void add_norm_kernel(norm_args a, mx_tensor u, mx_tensor v, bool rms)
{
    int64_t n = a.x.cols, r = blockIdx.x;
    for (int64_t i = 4 * (int64_t)threadIdx.x; i < n; i += 4 * (int64_t)blockDim.x) {
        float4 p = mx_load4(mx_row(u, r), i, n, a.vec), q = mx_load4(mx_row(v, r), i, n, a.vec);
        mx_store4(mx_row(a.x, r), i, n, a.vec, make_float4(p.x + q.x, p.y + q.y, p.z + q.z, p.w + q.w));
    }
    if (rms) rms_row(a, r);
    else norm_row(a, r);
}

static bool all_vec(mx_tensor a, mx_tensor b, mx_tensor c, mx_tensor d)
{
    return mx_vec(a) && mx_vec(b) && mx_vec(c) && (!d.data || mx_vec(d));
}

extern "C" void mx_cuda_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps)
{
    norm_args a = {y, x, gain, bias, eps, all_vec(y, x, gain, bias)};
    MX_LAUNCH(s, "norm", norm_kernel, (unsigned)x.rows, mx_row_threads(x.cols), 0, a);
}

extern "C" void mx_cuda_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps)
{
    mx_tensor none = {};
    norm_args a = {y, x, gain, none, eps, all_vec(y, x, gain, none)};
    MX_LAUNCH(s, "rms_norm", rms_norm_kernel, (unsigned)x.rows, mx_row_threads(x.cols), 0, a);
}

static __global__ void add_kernel(mx_tensor y, mx_tensor a, mx_tensor b, bool vec)
{
    MX_EACH_ROW(r, y.rows)
        MX_EACH_FOUR(i, y.cols) {
            float4 p = mx_load4(mx_row(a, r), i, y.cols, vec), q = mx_load4(mx_row(b, r), i, y.cols, vec);
            mx_store4(mx_row(y, r), i, y.cols, vec, make_float4(p.x + q.x, p.y + q.y, p.z + q.z, p.w + q.w));
        }
}

extern "C" void mx_cuda_add_norm(mx_stream *s, mx_tensor y, mx_tensor sum, mx_tensor a, mx_tensor b, mx_tensor gain, mx_tensor bias,
                                 float eps, bool rms)
{
    norm_args n = {y, sum, gain, bias, eps, all_vec(y, sum, gain, bias) && mx_vec(a) && mx_vec(b)};
    MX_LAUNCH(s, "add_norm", add_norm_kernel, (unsigned)a.rows, mx_row_threads(a.cols), 0, n, a, b, rms);
}

extern "C" void mx_cuda_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    MX_LAUNCH(s, "add", add_kernel, mx_grid(y.rows, y.cols), mx_row_threads(y.cols), 0, y, a, b, mx_vec(y) && mx_vec(a) && mx_vec(b));
}

/* ---- the way back ------------------------------------------------------------------------- */

#define COLUMNS 32                      /* of a block that adds up columns */
#define SEGMENT 128                     /* rows that one block adds up     */

typedef struct back_args {
    mx_tensor dx, dgain, dbias, dy, x, gain;
    float     eps;
    bool      add, centred;             /* centred: layer norm; else RMS norm */
    float    *stats;                    /* [N][2]: mean, 1 / deviation        */
    float    *part;                     /* [2][segments][C]                   */
    int64_t   segments;
} back_args;

/* With h = (x - mean) k and g = dy gain: dx = k (g - mean(g) - h mean(g h)); RMS norm lacks mean(g).  A block a row. */
static __global__ void norm_back_kernel(back_args a)
{
    int64_t n = a.x.cols, r = blockIdx.x;
    const float *x = mx_row(a.x, r), *dy = mx_row(a.dy, r), *gain = (const float *)a.gain.data;
    float sum = 0, mean = 0, gs = 0, gh = 0;
    for (int64_t i = threadIdx.x; i < n && a.centred; i += blockDim.x) sum += x[i];
    if (a.centred) mean = mx_block_sum(sum) / (float)n;
    float k = 1.0f / sqrtf(mx_block_sum(squares(x, n, mean, false)) / (float)n + a.eps);
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
        float g = dy[i] * gain[i];
        gs += g;
        gh += g * ((x[i] - mean) * k);
    }
    gs = a.centred ? mx_block_sum(gs) / (float)n : 0.0f;
    gh = mx_block_sum(gh) / (float)n;
    for (int64_t i = threadIdx.x; i < n && a.dx.data; i += blockDim.x) {
        float d = k * (dy[i] * gain[i] - gs - (x[i] - mean) * k * gh), *to = mx_row(a.dx, r) + i;
        *to = a.add ? *to + d : d;
    }
    if (threadIdx.x == 0) a.stats[2 * r] = mean, a.stats[2 * r + 1] = k;
}

/* Sums over the rows of a segment, eight at a time, each column's eight sums in order. */
static __global__ void gain_back_kernel(back_args a)
{
    __shared__ float gains[8][COLUMNS], biases[8][COLUMNS];
    int tx = threadIdx.x % COLUMNS, ty = threadIdx.x / COLUMNS;
    int64_t c = (int64_t)blockIdx.x * COLUMNS + tx, first = (int64_t)blockIdx.y * SEGMENT, last = min(first + SEGMENT, a.x.rows);
    float gain = 0, bias = 0;
    for (int64_t r = first + ty; r < last && c < a.x.cols; r += 8) {
        float dy = mx_row(a.dy, r)[c];
        gain += dy * ((mx_row(a.x, r)[c] - a.stats[2 * r]) * a.stats[2 * r + 1]);
        bias += dy;
    }
    gains[ty][tx] = gain;
    biases[ty][tx] = bias;
    __syncthreads();
    if (ty || c >= a.x.cols) return;
    for (int i = 1; i < 8; i++) gain += gains[i][tx], bias += biases[i][tx];
    a.part[blockIdx.y * a.x.cols + c] = gain;
    a.part[(a.segments + blockIdx.y) * a.x.cols + c] = bias;
}

static __global__ void add_segments_kernel(back_args a)
{
    int64_t c = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, n = a.x.cols;
    if (c >= n) return;
    float gain = 0, bias = 0;
    for (int64_t i = 0; i < a.segments; i++) gain += a.part[i * n + c], bias += a.part[(a.segments + i) * n + c];
    if (a.dgain.data) ((float *)a.dgain.data)[c] += gain;
    if (a.dbias.data) ((float *)a.dbias.data)[c] += bias;
}

static void norm_back(mx_stream *s, const char *op, back_args a)
{
    int64_t n = a.x.rows, c = a.x.cols;
    a.segments = (n + SEGMENT - 1) / SEGMENT;
    size_t stats = ((size_t)n * 2 * sizeof(float) + 255) & ~(size_t)255;
    char *work = (char *)mx_cuda_work(s, stats + (size_t)(2 * a.segments * c) * sizeof(float));
    if (!work) return;
    a.stats = (float *)work;
    a.part = (float *)(work + stats);
    MX_LAUNCH(s, op, norm_back_kernel, (unsigned)n, mx_row_threads(c), 0, a);
    if (!a.dgain.data && !a.dbias.data) return;
    MX_LAUNCH(s, op, gain_back_kernel, dim3((unsigned)((c + COLUMNS - 1) / COLUMNS), (unsigned)a.segments), 8 * COLUMNS, 0, a);
    MX_LAUNCH(s, op, add_segments_kernel, (unsigned)((c + 127) / 128), 128, 0, a);
}

extern "C" void mx_cuda_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dbias, mx_tensor dy, mx_tensor x, mx_tensor gain,
                                  float eps, bool add)
{
    back_args a = {dx, dgain, dbias, dy, x, gain, eps, add, true, NULL, NULL, 0};
    norm_back(s, "norm_back", a);
}

extern "C" void mx_cuda_rms_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dy, mx_tensor x, mx_tensor gain, float eps, bool add)
{
    mx_tensor none = {};
    back_args a = {dx, dgain, none, dy, x, gain, eps, add, false, NULL, NULL, 0};
    norm_back(s, "rms_norm_back", a);
}
