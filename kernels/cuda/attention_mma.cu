/* attention_mma.cu - attention over packed sequences in bf16, forward and backward.
 *
 * The two passes of FlashAttention-2 (Dao 2023) on mma.m16n8k16: a block owns 64
 * rows, a warp 16 of them, and walks the other side in tiles of 64, the next of
 * which is on its way (cp.async) while one is worked on.  Scores and weights stay
 * in registers: what one product leaves in its accumulators is the left factor of
 * the next.  q, k, v and dy are rounded once, into work memory; sums are f32.
 *
 * Tiles are counted from the beginning of the sequence and a row's scores of other
 * sequences are masked, which changes nothing it has: what a row gets does not
 * depend on where in the batch it stands. */
#include "kernels/cuda/attention_learn.cuh"
#include "kernels/cuda/ptx.cuh"

#define ROWS    64                      /* of a block, and of a tile */
#define THREADS (2 * ROWS)
#define TILES   (ROWS / 8)
#define LOG2E   1.4426950408889634f

/* ---- rounding ---------------------------------------------------------------------------- */

/* A thread rounds eight channels of a head. */
static __global__ void round_kernel(mx_bf16 *to, int wide, mx_tensor x, int heads, int d, bool vec)
{
    int eights = wide / 8;
    int64_t all = x.rows * heads * eights;
    for (int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; j < all; j += (int64_t)gridDim.x * blockDim.x) {
        int c = (int)(j % eights) * 8, h = (int)(j / eights % heads);
        const float *from = mx_row(x, j / eights / heads) + (int64_t)h * d;
        float4 a = mx_load4(from, c, d, vec), b = mx_load4(from, c + 4, d, vec);
        *(uint4 *)(to + 8 * j) = make_uint4(mx_pack_bf16(a.x, a.y), mx_pack_bf16(a.z, a.w), mx_pack_bf16(b.x, b.y), mx_pack_bf16(b.z, b.w));
    }
}

void mx_mma_round(mx_stream *s, const char *op, mx_bf16 *to, int wide, mx_tensor x, int heads, int d)
{
    int64_t blocks = (x.rows * heads * (wide / 8) + 255) / 256;
    MX_LAUNCH(s, op, round_kernel, (unsigned)(blocks < 65535 ? blocks : 65535), 256, 0, to, wide, x, heads, d, mx_vec(x) && d % 4 == 0);
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* Elements from one row to the next in shared memory: eight rows of 16 bytes meet in no bank. */
template <int DP> static __host__ __device__ constexpr int tile_pitch() { return DP + 8; }
template <int DP> static __host__ __device__ constexpr int tile_size() { return ROWS * tile_pitch<DP>(); }

/* Rows first.. of one head, zeros from `end` on.  The caller commits. */
template <int DP> static __device__ void bring(mx_bf16 *to, const mx_bf16 *from, int heads, int head, int64_t first, int64_t end)
{
    for (int e = threadIdx.x; e < ROWS * (DP / 8); e += THREADS) {
        int i = e / (DP / 8), c = e % (DP / 8) * 8;
        bool in = first + i < end;
        __pipeline_memcpy_async(to + i * tile_pitch<DP>() + c, from + (in ? ((first + i) * heads + head) * DP + c : 0), 16, in ? 0 : 16);
    }
}

/* s[16,64] = rows[16,DP] others[64,DP]^T of a warp: element e of s[j] is row lane/4 + e/2*8, column 8 j + lane%4*2 + e%2. */
template <int DP> static __device__ void scores(float s[TILES][4], const mx_bf16 *rows, const mx_bf16 *others, int lane)
{
#pragma unroll
    for (int j = 0; j < TILES; j++) s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
#pragma unroll
    for (int k = 0; k < DP; k += 16) {
        unsigned a[4];
        mx_ldmatrix_x4(a, rows + lane % 16 * tile_pitch<DP>() + k + lane / 16 * 8);
#pragma unroll
        for (int j = 0; j < TILES; j += 2) {
            unsigned b[4];
            mx_ldmatrix_x4(b, others + (8 * (j + lane / 16) + lane % 8) * tile_pitch<DP>() + k + lane / 8 % 2 * 8);
            mx_mma_bf16(s[j], a, b, s[j]);
            mx_mma_bf16(s[j + 1], a, b + 2, s[j + 1]);
        }
    }
}

/* acc[16,DP] += w[16,64] others[64,DP], w as scores() leaves it. */
template <int DP> static __device__ void gather(float acc[DP / 8][4], const float w[TILES][4], const mx_bf16 *others, int lane)
{
#pragma unroll
    for (int t = 0; t < TILES; t += 2) {
        unsigned a[4] = {mx_pack_bf16(w[t][0], w[t][1]), mx_pack_bf16(w[t][2], w[t][3]), mx_pack_bf16(w[t + 1][0], w[t + 1][1]),
                         mx_pack_bf16(w[t + 1][2], w[t + 1][3])};
#pragma unroll
        for (int j = 0; j < DP / 8; j += 2) {
            unsigned b[4];
            mx_ldmatrix_x4_trans(b, others + (8 * t + lane % 16) * tile_pitch<DP>() + 8 * (j + lane / 16));
            mx_mma_bf16(acc[j], a, b, acc[j]);
            mx_mma_bf16(acc[j + 1], a, b + 2, acc[j + 1]);
        }
    }
}

/* ---- the walk along the other side ---------------------------------------------------------------- */

/* Tiles t .. t + 63, below stop, for the block's rows [r, end), which are of one sequence; r == last: it is over. */
typedef struct walk {
    int64_t r, end;
    int     t, stop, head;
} walk;

/* The keys that rows from r on see. */
static __device__ void keys_from(const learn_args &a, walk *w, int64_t r, int64_t last)
{
    for (; r < last; r = w->end) {
        w->end = next_span(a, r, last);
        int from = a.seen[r].x, first = a.span[r].x;
        w->t = first + (from - first) / ROWS * ROWS;
        w->stop = a.seen[w->end - 1].y;
        if (w->t < w->stop) break;
    }
    w->r = r;
}

static __device__ void keys_next(const learn_args &a, walk *w, int64_t last)
{
    w->t += ROWS;
    if (w->t >= w->stop) keys_from(a, w, w->end, last);
}

/* The queries that see keys from r on: of every head of their group. */
static __device__ void queries_from(const learn_args &a, walk *w, int64_t r, int64_t last, int head)
{
    w->head = head;
    for (; r < last; r = w->end) {
        w->end = next_span(a, r, last);
        int first = a.span[r].x, from = a.a.causal ? (int)r : first;
        w->t = first + (from - first) / ROWS * ROWS;
        w->stop = a.span[r].y;
        if (a.a.window > 0) w->stop = min((int64_t)w->stop, w->end - 1 + a.a.window);
        if (w->t < w->stop) break;
    }
    w->r = r;
}

static __device__ void queries_next(const learn_args &a, walk *w, int64_t last, int first_head, int end_head)
{
    w->t += ROWS;
    if (w->t < w->stop) return;
    if (w->head + 1 < end_head) queries_from(a, w, w->r, last, w->head + 1);
    else queries_from(a, w, w->end, last, first_head);
}

static __device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(MX_FULL, v, 1);
    return v + __shfl_xor_sync(MX_FULL, v, 2);
}
static __device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(MX_FULL, v, 1));
    return fmaxf(v, __shfl_xor_sync(MX_FULL, v, 2));
}

/* ---- forward ------------------------------------------------------------------------------------------ */

/* A tile's scores become weights, relative to the new maximum; what there was shrinks. */
template <int DP>
static __device__ void soften(float s[TILES][4], const int2 mine[2], int t0, int stop, float scale, float m[2], float l[2], float acc[DP / 8][4], int lane)
{
#pragma unroll
    for (int u = 0; u < 2; u++) {
        float most = m[u], sum = 0;
        int end = min(mine[u].y, stop);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int t = t0 + 8 * j + lane % 4 * 2 + e;
                float *x = &s[j][2 * u + e];
                *x = t >= mine[u].x && t < end ? *x * scale : -INFINITY;
                most = fmaxf(most, *x);
            }
        most = quad_max(most);
        float shrink = m[u] == -INFINITY ? 0.0f : exp2f(m[u] - most);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float *x = &s[j][2 * u + e];
                *x = *x == -INFINITY ? 0.0f : exp2f(*x - most);
                sum += *x;
            }
        l[u] = l[u] * shrink + sum;
        m[u] = most;
#pragma unroll
        for (int j = 0; j < DP / 8; j++) acc[j][2 * u] *= shrink, acc[j][2 * u + 1] *= shrink;
    }
}

/* out[row, head's channels] = acc * by */
template <int DP> static __device__ void put(mx_tensor out, int64_t row, int at, int d, const float acc[DP / 8][4], int u, float by, int lane)
{
    float *to = mx_row(out, row) + at;
#pragma unroll
    for (int j = 0; j < DP / 8; j++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int c = 8 * j + lane % 4 * 2 + e;
            if (c < d) to[c] = acc[j][2 * u + e] * by;
        }
}

/* A tile of keys and values where the walk stands. */
template <int DP> static __device__ void bring_keys(const learn_args &a, const walk &w, mx_bf16 *k, mx_bf16 *v, int group)
{
    bring<DP>(k, a.kh, a.a.kv_heads, group, w.t, w.stop);
    bring<DP>(v, a.vh, a.a.kv_heads, group, w.t, w.stop);
}

/* What was asked for last may be on its way; what was asked for before is here, for all threads. */
static __device__ __forceinline__ void stage_arrives(void)
{
    __pipeline_commit();
    __pipeline_wait_prior(1);
    __syncthreads();
}

template <int DP> static __global__ void __launch_bounds__(THREADS) forward_mma_kernel(learn_args a)
{
    MX_DYN_SHARED(mx_bf16, shared);
    mx_bf16 *q = shared, *k = q + tile_size<DP>(), *v = k + 2 * tile_size<DP>();
    int64_t r0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS, last = min(r0 + ROWS, a.q.rows);     /* the longest walks first */
    int head = blockIdx.y, kv_heads = a.a.kv_heads, group = head / (a.a.heads / kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int2 mine[2];
    float m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0}, acc[DP / 8][4] = {}, scale = a.a.scale * LOG2E;
    for (int u = 0; u < 2; u++) {
        int64_t row = r0 + 16 * warp + lane / 4 + 8 * u;
        mine[u] = row < last ? a.seen[row] : make_int2(0, 0);
    }
    walk w = {}, next;
    keys_from(a, &w, r0, last);
    bring<DP>(q, a.qh, a.a.heads, head, r0, last);
    if (w.r < last) bring_keys<DP>(a, w, k, v, group);
    __pipeline_commit();
    for (int stage = 0; w.r < last; stage ^= 1, w = next) {
        next = w;
        keys_next(a, &next, last);
        if (next.r < last) bring_keys<DP>(a, next, k + (stage ^ 1) * tile_size<DP>(), v + (stage ^ 1) * tile_size<DP>(), group);
        stage_arrives();
        float s[TILES][4];
        scores<DP>(s, q + 16 * warp * tile_pitch<DP>(), k + stage * tile_size<DP>(), lane);
        soften<DP>(s, mine, w.t, w.stop, scale, m, l, acc, lane);
        gather<DP>(acc, s, v + stage * tile_size<DP>(), lane);
        __syncthreads();                /* the tile is read: another may come */
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
        int64_t row = r0 + 16 * warp + lane / 4 + 8 * u;
        float sum = quad_sum(l[u]);
        if (row >= last) continue;
        put<DP>(a.y, row, head * a.d, a.d, acc, u, 1.0f / sum, lane);
        if (lane % 4 == 0) mx_row(a.lse, row)[head] = m[u] / LOG2E + logf(sum);
    }
}

/* ---- backward: p = e^(s - lse), ds = p (dp - delta) scale ------------------------------------------------ */

/* Of the block's own two tiles (q and dy, or k and v) with the two of a stage: the first with the first, the second with
 * the second, which lies behind both stages of the first. */
template <int DP> static __device__ __forceinline__ void both_scores(float s[TILES][4], float dp[TILES][4], const mx_bf16 *own, const mx_bf16 *now, int warp, int lane)
{
    own += 16 * warp * tile_pitch<DP>();
    scores<DP>(s, own, now, lane);
    scores<DP>(dp, own + tile_size<DP>(), now + 2 * tile_size<DP>(), lane);
}

template <int DP> static __global__ void __launch_bounds__(THREADS) dq_mma_kernel(learn_args a)
{
    MX_DYN_SHARED(mx_bf16, shared);
    mx_bf16 *q = shared, *dy = q + tile_size<DP>(), *k = dy + tile_size<DP>(), *v = k + 2 * tile_size<DP>();
    int64_t r0 = (int64_t)(gridDim.x - 1 - blockIdx.x) * ROWS, last = min(r0 + ROWS, a.q.rows);
    int head = blockIdx.y, kv_heads = a.a.kv_heads, group = head / (a.a.heads / kv_heads), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int2 mine[2];
    float lse[2], delta[2], acc[DP / 8][4] = {}, scale = a.a.scale * LOG2E;
    for (int u = 0; u < 2; u++) {
        int64_t row = r0 + 16 * warp + lane / 4 + 8 * u;
        bool in = row < last;
        mine[u] = in ? a.seen[row] : make_int2(0, 0);
        lse[u] = in ? mx_row(a.lse, row)[head] * LOG2E : 0;
        delta[u] = in ? a.delta[row * a.a.heads + head] : 0;
    }
    walk w = {}, next;
    keys_from(a, &w, r0, last);
    bring<DP>(q, a.qh, a.a.heads, head, r0, last);
    bring<DP>(dy, a.dyh, a.a.heads, head, r0, last);
    if (w.r < last) bring_keys<DP>(a, w, k, v, group);
    __pipeline_commit();
    for (int stage = 0; w.r < last; stage ^= 1, w = next) {
        next = w;
        keys_next(a, &next, last);
        if (next.r < last) bring_keys<DP>(a, next, k + (stage ^ 1) * tile_size<DP>(), v + (stage ^ 1) * tile_size<DP>(), group);
        stage_arrives();
        float s[TILES][4], dp[TILES][4];
        both_scores<DP>(s, dp, q, k + stage * tile_size<DP>(), warp, lane);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = w.t + 8 * j + lane % 4 * 2 + e % 2, u = e / 2;
                bool sees = t >= mine[u].x && t < min(mine[u].y, w.stop);
                s[j][e] = sees ? exp2f(s[j][e] * scale - lse[u]) * (dp[j][e] - delta[u]) * a.a.scale : 0.0f;
            }
        gather<DP>(acc, s, k + stage * tile_size<DP>(), lane);
        __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
        int64_t row = r0 + 16 * warp + lane / 4 + 8 * u;
        if (row < last) put<DP>(a.dq, row, head * a.d, a.d, acc, u, 1.0f, lane);
    }
}

/* What a tile of queries brings beside q and dy. */
typedef struct __align__(16) query_side {
    int2  seen[ROWS];
    float lse[ROWS], delta[ROWS];
} query_side;

template <int DP> static __device__ void bring_queries(const learn_args &a, const walk &w, mx_bf16 *q, mx_bf16 *dy, query_side *side)
{
    bring<DP>(q, a.qh, a.a.heads, w.head, w.t, w.stop);
    bring<DP>(dy, a.dyh, a.a.heads, w.head, w.t, w.stop);
    if (threadIdx.x >= ROWS) return;
    int t = w.t + (int)threadIdx.x;
    bool in = t < w.stop;
    side->seen[threadIdx.x] = in ? a.seen[t] : make_int2(0, 0);
    side->lse[threadIdx.x] = in ? mx_row(a.lse, t)[w.head] * LOG2E : 0;
    side->delta[threadIdx.x] = in ? a.delta[(int64_t)t * a.a.heads + w.head] : 0;
}

/* dk and dv of 64 rows: over the heads of their group and the queries that see them. */
template <int DP> static __global__ void __launch_bounds__(THREADS) dkv_mma_kernel(learn_args a)
{
    MX_DYN_SHARED(mx_bf16, shared);
    mx_bf16 *k = shared, *v = k + tile_size<DP>(), *q = v + tile_size<DP>(), *dy = q + 2 * tile_size<DP>();
    query_side *side = (query_side *)(dy + 2 * tile_size<DP>());
    int64_t r0 = (int64_t)blockIdx.x * ROWS, last = min(r0 + ROWS, a.q.rows);
    int group = blockIdx.y, per_group = a.a.heads / a.a.kv_heads, first = group * per_group, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int row = (int)r0 + 16 * warp + lane / 4;
    float dk[DP / 8][4] = {}, dv[DP / 8][4] = {}, scale = a.a.scale * LOG2E;
    walk w = {}, next;
    queries_from(a, &w, r0, last, first);
    bring<DP>(k, a.kh, a.a.kv_heads, group, r0, last);
    bring<DP>(v, a.vh, a.a.kv_heads, group, r0, last);
    if (w.r < last) bring_queries<DP>(a, w, q, dy, side);
    __pipeline_commit();
    for (int stage = 0; w.r < last; stage ^= 1, w = next) {
        next = w;
        queries_next(a, &next, last, first, first + per_group);
        if (next.r < last) bring_queries<DP>(a, next, q + (stage ^ 1) * tile_size<DP>(), dy + (stage ^ 1) * tile_size<DP>(), side + (stage ^ 1));
        stage_arrives();
        float s[TILES][4], dp[TILES][4];
        const query_side *now = side + stage;
        both_scores<DP>(s, dp, k, q + stage * tile_size<DP>(), warp, lane);
#pragma unroll
        for (int j = 0; j < TILES; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = 8 * j + lane % 4 * 2 + e % 2, key = row + e / 2 * 8;
                bool sees = key >= now->seen[t].x && key < now->seen[t].y;
                s[j][e] = sees ? exp2f(s[j][e] * scale - now->lse[t]) : 0.0f;
                dp[j][e] = s[j][e] * (dp[j][e] - now->delta[t]) * a.a.scale;
            }
        gather<DP>(dv, s, dy + stage * tile_size<DP>(), lane);
        gather<DP>(dk, dp, q + stage * tile_size<DP>(), lane);
        __syncthreads();
    }
#pragma unroll
    for (int u = 0; u < 2; u++) {
        if (row + 8 * u >= last) continue;
        put<DP>(a.dk, row + 8 * u, group * a.d, a.d, dk, u, 1.0f, lane);
        put<DP>(a.dv, row + 8 * u, group * a.d, a.d, dv, u, 1.0f, lane);
    }
}

/* ---- launching ------------------------------------------------------------------------------------ */

#define LAUNCH_TILES(s, op, kernel, grid, bytes, a)                                                                              \
    do {                                                                                                                         \
        if (mx_cuda_ok(s, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)), op))           \
            MX_LAUNCH(s, op, kernel, grid, THREADS, bytes, a);                                                                   \
    } while (0)

template <int DP> static void forward(mx_stream *s, const learn_args &a)
{
    size_t bytes = 5 * tile_size<DP>() * sizeof(mx_bf16);
    LAUNCH_TILES(s, "attention", (forward_mma_kernel<DP>), dim3((unsigned)((a.q.rows + ROWS - 1) / ROWS), (unsigned)a.a.heads), bytes, a);
}

template <int DP> static void backward(mx_stream *s, const learn_args &a)
{
    unsigned tiles = (unsigned)((a.q.rows + ROWS - 1) / ROWS);
    size_t bytes = 6 * tile_size<DP>() * sizeof(mx_bf16), side = 2 * sizeof(query_side);
    LAUNCH_TILES(s, "attention_back", (dq_mma_kernel<DP>), dim3(tiles, (unsigned)a.a.heads), bytes, a);
    LAUNCH_TILES(s, "attention_back", (dkv_mma_kernel<DP>), dim3(tiles, (unsigned)a.a.kv_heads), bytes + side, a);
}

static void round_inputs(mx_stream *s, const char *op, const learn_args &a)
{
    mx_mma_round(s, op, a.qh, a.wide, a.q, a.a.heads, a.d);
    mx_mma_round(s, op, a.kh, a.wide, a.k, a.a.kv_heads, a.d);
    mx_mma_round(s, op, a.vh, a.wide, a.v, a.a.kv_heads, a.d);
}

void mx_mma_attention(mx_stream *s, const learn_args *a)
{
    round_inputs(s, "attention", *a);
    if (a->wide == 32) forward<32>(s, *a);
    else if (a->wide == 64) forward<64>(s, *a);
    else forward<128>(s, *a);
}

void mx_mma_attention_back(mx_stream *s, const learn_args *a)
{
    round_inputs(s, "attention_back", *a);
    mx_mma_round(s, "attention_back", a->dyh, a->wide, a->dy, a->a.heads, a->d);
    if (a->wide == 32) backward<32>(s, *a);
    else if (a->wide == 64) backward<64>(s, *a);
    else backward<128>(s, *a);
}
