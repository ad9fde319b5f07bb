/* attention_learn.cu - attention over packed sequences, forward and backward.
 *
 * Dao et al. 2022, algorithms 1 and 4, and the two passes of FlashAttention-2 (Dao
 * 2023): a block owns 32 rows and walks the other side in tiles of 32, so nothing
 * is added by atomics.  Eight neighbouring lanes own a row: its scores, its running
 * softmax and its channels never leave a warp.  Tiles of the other side are counted
 * from the beginning of the sequence, and rows of different sequences in one block
 * are walked one sequence after the other: what a row gets does not depend on where
 * in the batch it stands.
 *
 * This is the way of f32, and of heads wider than 128 channels; the other one is
 * attention_mma.cu, and training may go through cuDNN's (cudnn_attention.cu). */
#include "kernels/cuda/attention_learn.cuh"

#define TILE     32
#define LANES    8                      /* of a row */
#define THREADS  (TILE * LANES)
#define HEAD_MAX 256

/* Which rows each row sees, by bisecting the begins. */
static __global__ void bounds_kernel(learn_args a)
{
    int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= a.q.rows) return;
    int64_t lo = 0, hi = a.begin.rows - 1;             /* the last span that begins at or before r */
    while (hi - lo > 1) {
        int64_t mid = (lo + hi) / 2;
        if (*mx_row_i32(a.begin, mid) <= r) lo = mid;
        else hi = mid;
    }
    int first = *mx_row_i32(a.begin, lo), end = *mx_row_i32(a.begin, lo + 1);
    bool inside = r >= first && r < end && end <= a.q.rows;
    if (!inside) first = end = (int)r;                 /* no sequence: sees nothing */
    int from = a.a.window > 0 && r - a.a.window + 1 > first ? (int)r - a.a.window + 1 : first, to = a.a.causal && inside ? (int)r + 1 : end;
    a.seen[r].x = from, a.seen[r].y = to;
    a.span[r].x = first, a.span[r].y = end;
}

static __global__ void delta_kernel(learn_args a)
{
    int64_t i = (int64_t)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, r = i / a.a.heads;
    if (r >= a.q.rows) return;
    const float *dy = mx_row(a.dy, r) + i % a.a.heads * a.d, *y = mx_row(a.y, r) + i % a.a.heads * a.d;
    float sum = 0;
    for (int c = threadIdx.x % 32; c < a.d; c += 32) sum += dy[c] * y[c];
    sum = mx_warp_sum(sum);
    if (threadIdx.x % 32 == 0) a.delta[i] = sum;
}

/* Rows first.. of t, channels from c0, to shared memory; zeros past `last`. */
static __device__ void bring(float *to, int pitch, mx_tensor t, int64_t first, int64_t last, int c0, int d)
{
    for (int e = threadIdx.x; e < TILE * d; e += THREADS) {
        int i = e / d, c = e % d;
        to[i * pitch + c] = first + i < last ? mx_row(t, first + i)[c0 + c] : 0.0f;
    }
}

/* Four dot products of row i with rows x, x+8, x+16, x+24. */
static __device__ __forceinline__ void dots(const float *row, const float *others, int x, int pitch, int d, float out[4])
{
    out[0] = out[1] = out[2] = out[3] = 0;
    for (int c = 0; c < d; c++) {
        float q = row[c];
#pragma unroll
        for (int u = 0; u < 4; u++) out[u] = fmaf(q, others[(x + LANES * u) * pitch + c], out[u]);
    }
}

/* acc[j] += sum over the tile of weight[t] * rows[t][x + 8 j] */
template <int CH> static __device__ __forceinline__ void gather(float acc[CH], const float *weight, const float *rows, int x, int pitch, int d)
{
    for (int t = 0; t < TILE; t++) {
        float w = weight[t];
#pragma unroll
        for (int j = 0; j < CH; j++)
            if (x + LANES * j < d) acc[j] = fmaf(w, rows[t * pitch + x + LANES * j], acc[j]);
    }
}

static __device__ __forceinline__ float row_sum(float v)
{
    for (int o = LANES / 2; o > 0; o >>= 1) v += __shfl_xor_sync(MX_FULL, v, o);
    return v;
}
static __device__ __forceinline__ float row_most(float v)
{
    for (int o = LANES / 2; o > 0; o >>= 1) v = fmaxf(v, __shfl_xor_sync(MX_FULL, v, o));
    return v;
}

/* Where the walk of rows r.. of one sequence begins and ends: [x, y), from a tile's border on. */
static __device__ int2 walk_of(int2 span, int from, int to)
{
    int2 w;
    w.x = span.x + (from - span.x) / TILE * TILE;
    w.y = to;
    return w;
}

template <int CH> static __global__ void __launch_bounds__(THREADS) forward_kernel(learn_args a)
{
    MX_DYN_SHARED(float, shared);
    float *q = shared, *k = q + TILE * a.pitch, *v = k + TILE * a.pitch, *p = v + TILE * a.pitch + (threadIdx.x / LANES) * (TILE + 1);
    int64_t r0 = (int64_t)blockIdx.x * TILE, last = min(r0 + TILE, a.q.rows);
    int head = blockIdx.y, group = head / (a.a.heads / a.a.kv_heads), i = threadIdx.x / LANES, x = threadIdx.x % LANES;
    int2 mine = {0, 0};
    if (r0 + i < last) mine = a.seen[r0 + i];
    float m = -INFINITY, l = 0, acc[CH] = {};
    bring(q, a.pitch, a.q, r0, last, head * a.d, a.d);
    for (int64_t r = r0, end; r < last; r = end) {
        end = next_span(a, r, last);
        int2 w = walk_of(a.span[r], a.seen[r].x, a.seen[end - 1].y);
        bool here = r0 + i >= r && r0 + i < end;
        for (int t0 = w.x; t0 < w.y; t0 += TILE) {
            __syncthreads();
            bring(k, a.pitch, a.k, t0, min(t0 + TILE, w.y), group * a.d, a.d);
            bring(v, a.pitch, a.v, t0, min(t0 + TILE, w.y), group * a.d, a.d);
            __syncthreads();
            float s[4], most = m;
            dots(q + i * a.pitch, k, x, a.pitch, a.d, s);
#pragma unroll
            for (int u = 0; u < 4; u++) {
                int t = t0 + x + LANES * u;
                s[u] = here && t >= mine.x && t < mine.y ? s[u] * a.a.scale : -INFINITY;
                most = fmaxf(most, s[u]);
            }
            most = row_most(most);
            float shrink = m == -INFINITY ? 0.0f : expf(m - most), sum = 0;
#pragma unroll
            for (int u = 0; u < 4; u++) {
                float e = s[u] == -INFINITY ? 0.0f : expf(s[u] - most);
                p[x + LANES * u] = e;
                sum += e;
            }
            l = l * shrink + row_sum(sum);
            m = most;
#pragma unroll
            for (int j = 0; j < CH; j++) acc[j] *= shrink;
            __syncwarp();
            gather<CH>(acc, p, v, x, a.pitch, a.d);
            __syncwarp();
        }
    }
    if (r0 + i >= last) return;
    if (x == 0) mx_row(a.lse, r0 + i)[head] = m + logf(l);
#pragma unroll
    for (int j = 0; j < CH; j++)
        if (x + LANES * j < a.d) mx_row(a.y, r0 + i)[head * a.d + x + LANES * j] = acc[j] / l;
}

/* dq of 32 rows: over the keys they see, with p = e^(s - lse), ds = p (dp - delta) scale. */
template <int CH> static __global__ void __launch_bounds__(THREADS) dq_kernel(learn_args a)
{
    MX_DYN_SHARED(float, shared);
    float *q = shared, *dy = q + TILE * a.pitch, *k = dy + TILE * a.pitch, *v = k + TILE * a.pitch;
    float *ds = v + TILE * a.pitch + (threadIdx.x / LANES) * (TILE + 1);
    int64_t r0 = (int64_t)blockIdx.x * TILE, last = min(r0 + TILE, a.q.rows);
    int head = blockIdx.y, group = head / (a.a.heads / a.a.kv_heads), i = threadIdx.x / LANES, x = threadIdx.x % LANES;
    int2 mine = {0, 0};
    float lse = 0, delta = 0, acc[CH] = {};
    if (r0 + i < last) {
        mine = a.seen[r0 + i];
        lse = mx_row(a.lse, r0 + i)[head];
        delta = a.delta[(r0 + i) * a.a.heads + head];
    }
    bring(q, a.pitch, a.q, r0, last, head * a.d, a.d);
    bring(dy, a.pitch, a.dy, r0, last, head * a.d, a.d);
    for (int64_t r = r0, end; r < last; r = end) {
        end = next_span(a, r, last);
        int2 w = walk_of(a.span[r], a.seen[r].x, a.seen[end - 1].y);
        bool here = r0 + i >= r && r0 + i < end;
        for (int t0 = w.x; t0 < w.y; t0 += TILE) {
            __syncthreads();
            bring(k, a.pitch, a.k, t0, min(t0 + TILE, w.y), group * a.d, a.d);
            bring(v, a.pitch, a.v, t0, min(t0 + TILE, w.y), group * a.d, a.d);
            __syncthreads();
            float s[4], dp[4];
            dots(q + i * a.pitch, k, x, a.pitch, a.d, s);
            dots(dy + i * a.pitch, v, x, a.pitch, a.d, dp);
#pragma unroll
            for (int u = 0; u < 4; u++) {
                int t = t0 + x + LANES * u;
                bool sees = here && t >= mine.x && t < mine.y;
                ds[x + LANES * u] = sees ? expf(s[u] * a.a.scale - lse) * (dp[u] - delta) * a.a.scale : 0.0f;
            }
            __syncwarp();
            gather<CH>(acc, ds, k, x, a.pitch, a.d);
            __syncwarp();
        }
    }
    if (r0 + i >= last) return;
#pragma unroll
    for (int j = 0; j < CH; j++)
        if (x + LANES * j < a.d) mx_row(a.dq, r0 + i)[head * a.d + x + LANES * j] = acc[j];
}

/* What a tile of queries brings beside q and dy. */
typedef struct query_tile {
    int2  seen[TILE];
    float lse[TILE], delta[TILE];
} query_tile;

/* dk and dv of 32 rows: over the heads of their group and the queries that see them. */
template <int CH> static __global__ void __launch_bounds__(THREADS) dkv_kernel(learn_args a)
{
    MX_DYN_SHARED(float, shared);
    float *k = shared, *v = k + TILE * a.pitch, *q = v + TILE * a.pitch, *dy = q + TILE * a.pitch;
    float *tile = dy + TILE * a.pitch, *p = tile + (threadIdx.x / LANES) * (TILE + 1), *ds = p + TILE * (TILE + 1);
    query_tile *side = (query_tile *)(tile + 2 * TILE * (TILE + 1));
    int64_t r0 = (int64_t)blockIdx.x * TILE, last = min(r0 + TILE, a.q.rows);
    int group = blockIdx.y, per_group = a.a.heads / a.a.kv_heads, i = threadIdx.x / LANES, x = threadIdx.x % LANES, row = (int)r0 + i;
    float dk[CH] = {}, dv[CH] = {};
    bring(k, a.pitch, a.k, r0, last, group * a.d, a.d);
    bring(v, a.pitch, a.v, r0, last, group * a.d, a.d);
    for (int64_t r = r0, end; r < last; r = end) {
        end = next_span(a, r, last);
        int2 span = a.span[r];
        int64_t to = a.a.window > 0 ? min((int64_t)span.y, end - 1 + a.a.window) : span.y;
        int2 w = walk_of(span, a.a.causal ? (int)r : span.x, (int)to);
        bool here = row >= r && row < end;
        for (int head = group * per_group; head < (group + 1) * per_group; head++)
            for (int t0 = w.x; t0 < w.y; t0 += TILE) {
                __syncthreads();
                bring(q, a.pitch, a.q, t0, min(t0 + TILE, w.y), head * a.d, a.d);
                bring(dy, a.pitch, a.dy, t0, min(t0 + TILE, w.y), head * a.d, a.d);
                if (threadIdx.x < TILE) {
                    int t = t0 + (int)threadIdx.x;
                    bool in = t < w.y;
                    side->seen[threadIdx.x].x = in ? a.seen[t].x : 0;
                    side->seen[threadIdx.x].y = in ? a.seen[t].y : 0;
                    side->lse[threadIdx.x] = in ? mx_row(a.lse, t)[head] : 0;
                    side->delta[threadIdx.x] = in ? a.delta[(int64_t)t * a.a.heads + head] : 0;
                }
                __syncthreads();
                float s[4], dp[4];
                dots(k + i * a.pitch, q, x, a.pitch, a.d, s);
                dots(v + i * a.pitch, dy, x, a.pitch, a.d, dp);
#pragma unroll
                for (int u = 0; u < 4; u++) {
                    int t = x + LANES * u;
                    bool sees = here && row >= side->seen[t].x && row < side->seen[t].y;
                    float e = sees ? expf(s[u] * a.a.scale - side->lse[t]) : 0.0f;
                    p[t] = e;
                    ds[t] = e * (dp[u] - side->delta[t]) * a.a.scale;
                }
                __syncwarp();
                gather<CH>(dv, p, dy, x, a.pitch, a.d);
                gather<CH>(dk, ds, q, x, a.pitch, a.d);
                __syncwarp();
            }
    }
    if (row >= last) return;
#pragma unroll
    for (int j = 0; j < CH; j++) {
        int c = x + LANES * j;
        if (c >= a.d) continue;
        mx_row(a.dk, row)[group * a.d + c] = dk[j];
        mx_row(a.dv, row)[group * a.d + c] = dv[j];
    }
}

/* ---- launching ------------------------------------------------------------------------------------ */

static bool prepare(mx_stream *s, const char *op, learn_args *a)
{
    int64_t n = a->q.rows;
    a->d = (int)(a->q.cols / a->a.heads);
    a->pitch = a->d | 1;
    if (a->d > HEAD_MAX) {
        mx_stream_fail(s, MX_ERR_ARG, "%s: heads of %d channels, at most %d", op, a->d, HEAD_MAX);
        return false;
    }
    a->wide = a->a.as == MX_BF16 ? mma_width(a->d) : 0;
    size_t side = ((size_t)n * (2 * sizeof(int2) + (size_t)a->a.heads * sizeof(float)) + 255) & ~(size_t)255;
    size_t q = (size_t)n * (size_t)a->a.heads * (size_t)a->wide, k = (size_t)n * (size_t)a->a.kv_heads * (size_t)a->wide;
    char *work = (char *)mx_cuda_work(s, side + 2 * (q + k) * sizeof(mx_bf16));
    if (!work) return false;
    a->seen = (int2 *)work;
    a->span = a->seen + n;
    a->delta = (float *)(a->span + n);
    a->qh = (mx_bf16 *)(work + side), a->dyh = a->qh + q, a->kh = a->dyh + q, a->vh = a->kh + k;
    MX_LAUNCH(s, op, bounds_kernel, (unsigned)((n + 127) / 128), 128, 0, *a);
    return true;
}

static size_t shared_of(const learn_args *a, int matrices, int tiles)
{
    return (size_t)(matrices * TILE * a->pitch + tiles * TILE * (TILE + 1)) * sizeof(float) + sizeof(query_tile);
}

/* Shared memory beyond 48 KB has to be asked for. */
#define LAUNCH_WIDE(s, op, kernel, grid, bytes, a)                                                                          \
    do {                                                                                                                    \
        if (bytes <= 48 * 1024 || mx_cuda_ok(s, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)), op)) \
            MX_LAUNCH(s, op, kernel, grid, THREADS, bytes, a);                                                              \
    } while (0)

template <int CH> static void forward(mx_stream *s, learn_args a)
{
    size_t bytes = shared_of(&a, 3, 1);
    LAUNCH_WIDE(s, "attention", (forward_kernel<CH>), dim3((unsigned)((a.q.rows + TILE - 1) / TILE), (unsigned)a.a.heads), bytes, a);
}

template <int CH> static void backward(mx_stream *s, learn_args a)
{
    unsigned tiles = (unsigned)((a.q.rows + TILE - 1) / TILE);
    size_t one = shared_of(&a, 4, 1), two = shared_of(&a, 4, 2);
    LAUNCH_WIDE(s, "attention_back", (dq_kernel<CH>), dim3(tiles, (unsigned)a.a.heads), one, a);
    LAUNCH_WIDE(s, "attention_back", (dkv_kernel<CH>), dim3(tiles, (unsigned)a.a.kv_heads), two, a);
}

void mx_own_attention(mx_stream *s, const learn_args *given)
{
    learn_args a = *given;
    if (!prepare(s, "attention", &a)) return;
    if (a.wide) mx_mma_attention(s, &a);
    else if (a.d <= 64) forward<8>(s, a);
    else if (a.d <= 128) forward<16>(s, a);
    else forward<32>(s, a);
}

void mx_own_attention_back(mx_stream *s, const learn_args *given)
{
    learn_args a = *given;
    if (!prepare(s, "attention_back", &a)) return;
    int64_t pairs = a.q.rows * a.a.heads;
    MX_LAUNCH(s, "attention_back", delta_kernel, (unsigned)((pairs + 3) / 4), 128, 0, a);
    if (a.wide) mx_mma_attention_back(s, &a);
    else if (a.d <= 64) backward<8>(s, a);
    else if (a.d <= 128) backward<16>(s, a);
    else backward<32>(s, a);
}

extern "C" void mx_cuda_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor q, mx_tensor k, mx_tensor v, mx_tensor begin,
                                  mx_attention_shape shape)
{
    learn_args a = {};
    a.y = y, a.lse = lse, a.q = q, a.k = k, a.v = v, a.begin = begin, a.a = shape;
    if (!mx_cudnn_attention(s, &a)) mx_own_attention(s, &a);
}

extern "C" void mx_cuda_attention_back(mx_stream *s, mx_tensor dq, mx_tensor dk, mx_tensor dv, mx_tensor dy, mx_tensor q, mx_tensor k,
                                       mx_tensor v, mx_tensor y, mx_tensor lse, mx_tensor begin, mx_attention_shape shape)
{
    learn_args a = {};
    a.y = y, a.lse = lse, a.q = q, a.k = k, a.v = v, a.begin = begin, a.dy = dy, a.dq = dq, a.dk = dk, a.dv = dv, a.a = shape;
    if (!mx_cudnn_attention_back(s, &a)) mx_own_attention_back(s, &a);
}
