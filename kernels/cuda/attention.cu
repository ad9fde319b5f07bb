/* attention.cu - the paged KV cache, and attention over it.
 *
 * Positions are cut into splits of 256, counted from position 0, and a split into
 * four stretches of 64, one for each warp, walked in two steps of 32.  In a step a
 * lane owns a position for the scores and channels for the values; the softmax is
 * the running one of Dao et al. 2022.  The warps' parts are folded in order of
 * position, and so are the splits: by the block itself when there are enough
 * blocks, else by a second kernel, with the same function (as in Dao's
 * Flash-Decoding, 2023).  Which way is taken changes no bit.
 *
 * A block works for up to 8 queries that share KV head and sequence: rows that
 * stand one after the other, times query heads.  Every row has a block, and the
 * first row of such a run does the work for all of it, so the host needs to know
 * nothing about who is in the batch. */
#include "kernels/cuda/common.cuh"

#define WARPS    4
#define STEP     32
#define STRETCH  64                     /* positions of a warp in a split */
#define SPLIT    (WARPS * STRETCH)
#define SLICE    64                     /* channels of keys in shared memory at a time */
#define HEAD_MAX 512
#define WORK_MAX ((size_t)64 << 20)     /* bytes of partial results */

/* ---- writing and copying ------------------------------------------------------------------- */

template <typename T>
static __global__ void kv_write_kernel(mx_kv kv, mx_tensor k, mx_tensor v, mx_tensor slots, bool vec, mx_cuda_fault *fault)
{
    int64_t d = kv.head_dim;
    MX_EACH_ROW(r, k.rows) {
        int32_t slot = *mx_row_i32(slots, r);
        if (slot < 0 || slot >= (int64_t)kv.pages * kv.page_tokens) {
            if (threadIdx.x == 0 && blockIdx.x == 0) mx_raise(fault, MX_CUDA_KV_SLOT, r, slot);
            continue;
        }
        int64_t page = slot / kv.page_tokens, offset = slot % kv.page_tokens, fours = (d + 3) / 4;
        for (int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; j < kv.kv_heads * fours; j += (int64_t)gridDim.x * blockDim.x) {
            int64_t g = j / fours, i = j % fours * 4, to = ((page * kv.kv_heads + g) * kv.page_tokens + offset) * d;
            mx_store4((T *)kv.k + to, i, d, vec, mx_load4(mx_row(k, r) + g * d, i, d, vec));
            mx_store4((T *)kv.v + to, i, d, vec, mx_load4(mx_row(v, r) + g * d, i, d, vec));
        }
    }
}

/* The cache's heads begin at multiples of four elements. */
static bool cache_vec(const mx_kv *kv)
{
    size_t four = 4 * mx_dtype_size(kv->dtype);
    return kv->head_dim % 4 == 0 && (uintptr_t)kv->k % four == 0 && (uintptr_t)kv->v % four == 0;
}

extern "C" void mx_cuda_kv_write(mx_stream *s, const mx_kv *kv, mx_tensor k, mx_tensor v, mx_tensor slots)
{
    bool vec = cache_vec(kv) && mx_vec(k) && mx_vec(v);
#define CALL(T) \
    MX_LAUNCH(s, "kv_write", (kv_write_kernel<T>), mx_grid(k.rows, k.cols), mx_row_threads(k.cols), 0, *kv, k, v, slots, vec, mx_cuda_faults(s))
    MX_BY_KV_TYPE(kv->dtype, CALL);
#undef CALL
}

/* A thread copies the same words of every page, so that a page that is copied to
 * and then from is right: the list is in order. */
template <typename W>
static __global__ void kv_copy_kernel(W *k, W *v, int64_t words, int pages, mx_tensor from_to, mx_cuda_fault *fault)
{
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < words; i += (int64_t)gridDim.x * blockDim.x)
        for (int64_t r = 0; r < from_to.rows; r++) {
            int32_t from = mx_row_i32(from_to, r)[0], to = mx_row_i32(from_to, r)[1];
            if (from < 0 || from >= pages || to < 0 || to >= pages) {
                if (i == 0) mx_raise(fault, MX_CUDA_KV_PAGE, r, from < 0 || from >= pages ? from : to);
                continue;
            }
            W a = k[from * words + i], b = v[from * words + i];
            k[to * words + i] = a;
            v[to * words + i] = b;
        }
}

extern "C" void mx_cuda_kv_copy(mx_stream *s, const mx_kv *kv, mx_tensor from_to)
{
    int64_t bytes = (int64_t)kv->kv_heads * kv->page_tokens * kv->head_dim * (int64_t)mx_dtype_size(kv->dtype);
    bool wide = bytes % 16 == 0 && (uintptr_t)kv->k % 16 == 0 && (uintptr_t)kv->v % 16 == 0;
    int64_t words = bytes / (wide ? 16 : bytes % 2 ? 1 : 2), blocks = (words + 255) / 256;
    unsigned grid = (unsigned)(blocks < 1024 ? blocks : 1024);
    if (wide)
        MX_LAUNCH(s, "kv_copy", (kv_copy_kernel<uint4>), grid, 256, 0, (uint4 *)kv->k, (uint4 *)kv->v, words, kv->pages, from_to, mx_cuda_faults(s));
    else if (bytes % 2)
        MX_LAUNCH(s, "kv_copy", (kv_copy_kernel<uint8_t>), grid, 256, 0, (uint8_t *)kv->k, (uint8_t *)kv->v, words, kv->pages, from_to, mx_cuda_faults(s));
    else
        MX_LAUNCH(s, "kv_copy", (kv_copy_kernel<uint16_t>), grid, 256, 0, (uint16_t *)kv->k, (uint16_t *)kv->v, words, kv->pages, from_to,
                  mx_cuda_faults(s));
}

/* ---- attending ----------------------------------------------------------------------------------- */

typedef struct attention {
    mx_tensor y, q, pages, at;
    mx_kv     kv;
    int       heads, window;
    int       head_step, row_step;      /* of a block: heads of a KV head, rows of a sequence */
    float     scale;
    float    *partial;                  /* [rows][heads][splits][D + 2]; NULL: the block folds its splits */
    int       splits;
    bool      vec;                      /* keys and values in pieces of 16 bytes */
    mx_cuda_fault *fault;
} attention;

/* Which positions a row sees, [begin, end); none when its entry makes no sense. */
static __device__ void seen_by(const attention &a, int64_t r, int *begin, int *end)
{
    int32_t seq = mx_row_i32(a.at, r)[0], position = mx_row_i32(a.at, r)[1];
    *begin = *end = 0;
    if (seq < 0 || seq >= a.pages.rows || position < 0 || position / a.kv.page_tokens >= a.pages.cols) return;
    *end = position + 1;
    *begin = a.window > 0 && *end > a.window ? *end - a.window : 0;
}

/* Element index of position t of sequence seq in the cache. */
static __device__ int64_t place_of(const attention &a, int seq, int group, int t, int64_t row)
{
    int32_t page = mx_row_i32(a.pages, seq)[t / a.kv.page_tokens];
    if (page < 0 || page >= a.kv.pages) {
        mx_raise(a.fault, MX_CUDA_KV_PAGE, row, page);
        page = 0;
    }
    return (((int64_t)page * a.kv.kv_heads + group) * a.kv.page_tokens + t % a.kv.page_tokens) * a.kv.head_dim;
}

/* One part of a softmax after another: (m, l, x) = (m, l, x) + (m2, l2, x2). */
static __device__ __forceinline__ void fold(float *m, float *l, float m2, float l2, float *was, float *is)
{
    float top = fmaxf(*m, m2);
    *was = *m == -INFINITY ? 0.0f : expf(*m - top);
    *is = m2 == -INFINITY ? 0.0f : expf(m2 - top);
    *l = *l * *was + l2 * *is;
    *m = top;
}

/* Bytes from one key to the next in shared memory: no two lanes meet in a bank. */
template <typename T> static __host__ __device__ constexpr int key_pitch()
{
    return SLICE * (int)sizeof(T) + 16;
}

/* Bring channels c0 .. c0+n-1 of the step's keys; `place` < 0 is a position that is not seen.
 * The columns up to the next multiple of four become 0. */
template <typename T>
static __device__ void load_keys(char *keys, const T *k, const int64_t *place, int c0, int n, bool vec, int lane)
{
    if (vec) {
        constexpr int piece = 16 / (int)sizeof(T);
        for (int j = lane; j < STEP * (n / piece); j += 32) {
            int t = j / (n / piece), c = j % (n / piece) * piece;
            int64_t from = place[t];
            __pipeline_memcpy_async(keys + t * key_pitch<T>() + c * (int)sizeof(T), k + (from < 0 ? 0 : from + c0 + c), 16, from < 0 ? 16 : 0);
        }
        __pipeline_commit();
        __pipeline_wait_prior(0);
    } else {
        int wide = (n + 3) / 4 * 4;
        for (int j = lane; j < STEP * wide; j += 32) {
            int t = j / wide, c = j % wide;
            T *to = (T *)(keys + t * key_pitch<T>()) + c;
            if (place[t] >= 0 && c < n) *to = k[place[t] + c0 + c];
            else mx_down(to, 0.0f);
        }
    }
    __syncwarp();
}

/* Two neighbouring channels of a value. */
template <typename T> static __device__ __forceinline__ float2 load_value(const T *v, int c, int d, bool vec)
{
    if (vec) {
        if (c >= d) return make_float2(0, 0);
        if (sizeof(T) == 4) return *(const float2 *)(v + c);
        unsigned u = sizeof(T) == 1 ? *(const uint16_t *)(v + c) : *(const unsigned *)(v + c);
        T lo, hi;
        memcpy(&lo, &u, sizeof lo);
        u >>= sizeof(T) == 1 ? 8 : 16;
        memcpy(&hi, &u, sizeof hi);
        return make_float2(mx_up(lo), mx_up(hi));
    }
    return make_float2(c < d ? mx_up(v[c]) : 0, c + 1 < d ? mx_up(v[c + 1]) : 0);
}

/* The queries of a block, in shared memory. */
template <int CH, int QB> struct __align__(16) queries {
    float q[QB][CH * 32];               /* scaled, zeros behind D      */
    float p[WARPS][QB][STEP];           /* weights of a step           */
    int64_t place[WARPS][STEP];
    int   begin[QB], end[QB];
};

/* The scores of a step: lane t has position t's with each query. */
template <typename T, int CH, int QB>
static __device__ void score(const attention &a, const queries<CH, QB> *s, char *keys, int warp, int lane, int nq, float *out)
{
    int d = a.kv.head_dim;
    float4 sum[QB];
#pragma unroll
    for (int i = 0; i < QB; i++) sum[i] = make_float4(0, 0, 0, 0);
    for (int c0 = 0; c0 < d; c0 += SLICE) {
        int n = d - c0 < SLICE ? d - c0 : SLICE;
        load_keys(keys, (const T *)a.kv.k, s->place[warp], c0, n, a.vec, lane);
        const T *key = (const T *)(keys + lane * key_pitch<T>());
        for (int c = 0; c < n; c += 4) {
            float4 k = mx_load4(key, c, SLICE, true);
#pragma unroll
            for (int i = 0; i < QB; i++) {
                if (i >= nq) break;
                float4 q = *(const float4 *)&s->q[i][c0 + c];
                sum[i].x = fmaf(q.x, k.x, sum[i].x);
                sum[i].y = fmaf(q.y, k.y, sum[i].y);
                sum[i].z = fmaf(q.z, k.z, sum[i].z);
                sum[i].w = fmaf(q.w, k.w, sum[i].w);
            }
        }
        __syncwarp();                   /* the keys are read: the next slice may come */
    }
#pragma unroll
    for (int i = 0; i < QB; i++) out[i] = (sum[i].x + sum[i].y) + (sum[i].z + sum[i].w);
}

/* acc += weights times values of the step */
template <typename T, int CH, int QB>
static __device__ void take_values(const attention &a, const queries<CH, QB> *s, int warp, int lane, int nq, float acc[QB][CH])
{
    int d = a.kv.head_dim;
    const T *v = (const T *)a.kv.v;
    for (int t = 0; t < STEP; t += 4) {
        float2 value[4][CH / 2];
#pragma unroll
        for (int u = 0; u < 4; u++) {
            int64_t from = s->place[warp][t + u];
#pragma unroll
            for (int j = 0; j < CH / 2; j++)
                value[u][j] = from < 0 ? make_float2(0, 0) : load_value(v + from, 64 * j + 2 * lane, d, a.vec);
        }
#pragma unroll
        for (int i = 0; i < QB; i++) {
            if (i >= nq) break;
            float4 p = *(const float4 *)&s->p[warp][i][t];
#pragma unroll
            for (int j = 0; j < CH / 2; j++) {
                acc[i][2 * j] = fmaf(p.w, value[3][j].x, fmaf(p.z, value[2][j].x, fmaf(p.y, value[1][j].x, fmaf(p.x, value[0][j].x, acc[i][2 * j]))));
                acc[i][2 * j + 1] =
                    fmaf(p.w, value[3][j].y, fmaf(p.z, value[2][j].y, fmaf(p.y, value[1][j].y, fmaf(p.x, value[0][j].y, acc[i][2 * j + 1]))));
            }
        }
    }
}

/* A warp's stretch of split `split` for all queries of the block. */
template <typename T, int CH, int QB>
static __device__ void walk(const attention &a, queries<CH, QB> *s, char *keys, int64_t row, int group, int split, int lo, int hi, int nq,
                            float *m, float *l, float acc[QB][CH])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, seq = mx_row_i32(a.at, row)[0];
    for (int at = split * SPLIT + warp * STRETCH, last = at + STRETCH; at < last; at += STEP) {
        if (at >= hi || at + STEP <= lo) continue;
        int t = at + lane;
        s->place[warp][lane] = t >= lo && t < hi ? place_of(a, seq, group, t, row) : -1;
        __syncwarp();
        float sum[QB];
        score<T, CH, QB>(a, s, keys, warp, lane, nq, sum);
#pragma unroll
        for (int i = 0; i < QB; i++) {
            if (i >= nq) break;
            float x = t >= s->begin[i] && t < s->end[i] ? sum[i] : -INFINITY, p = 0;
            float top = fmaxf(m[i], mx_warp_max(x));
            if (at < s->end[i] && at + STEP > s->begin[i]) {
                float shrink = m[i] == -INFINITY ? 0.0f : expf(m[i] - top);
                p = x == -INFINITY ? 0.0f : expf(x - top);
                l[i] = l[i] * shrink + mx_warp_sum(p);
                m[i] = top;
#pragma unroll
                for (int c = 0; c < CH; c++) acc[i][c] *= shrink;
            }
            s->p[warp][i][lane] = p;
        }
        __syncwarp();
        take_values<T, CH, QB>(a, s, warp, lane, nq, acc);
        __syncwarp();                   /* places and weights are read */
    }
}

/* Fold the warps' parts of a split, in order, into (m, l, x) of the elements this thread owns: element e of a
 * query's and channel's list, e = threadIdx.x + 128 j. */
template <int CH, int QB>
static __device__ void fold_warps(const float *part, const float *part_m, const float *part_l, int nq, float *m, float *l, float *x)
{
#pragma unroll
    for (int j = 0; j < QB * CH / WARPS; j++) {
        int e = (int)threadIdx.x + 32 * WARPS * j, i = e / (32 * CH);
        if (i >= nq) break;
        float sm = -INFINITY, sl = 0, sx = 0, was, is;
        for (int w = 0; w < WARPS; w++) {
            fold(&sm, &sl, part_m[w * QB + i], part_l[w * QB + i], &was, &is);
            sx = sx * was + part[w * QB * 32 * CH + e] * is;
        }
        fold(&m[j], &l[j], sm, sl, &was, &is);
        x[j] = x[j] * was + sx * is;
    }
}

/* How many rows from `row` on stand in one sequence and one block; 0: another row's block has them. */
static __device__ int run_of(const attention &a, int64_t row)
{
    int32_t seq = mx_row_i32(a.at, row)[0];
    if (row % a.row_step && mx_row_i32(a.at, row - 1)[0] == seq) return 0;
    int n = 1;
    while ((row + n) % a.row_step && row + n < a.q.rows && mx_row_i32(a.at, row + n)[0] == seq) n++;
    return n;
}

/* Queries into shared memory, and what each sees; [*lo, *hi) is what any of them sees. */
template <int CH, int QB>
static __device__ void bring_queries(const attention &a, queries<CH, QB> *s, int64_t row, int first_head, int nh, int nq, int *lo, int *hi)
{
    int d = a.kv.head_dim;
    for (int e = threadIdx.x; e < nq * 32 * CH; e += 32 * WARPS) {
        int i = e / (32 * CH), c = e % (32 * CH);
        s->q[i][c] = c < d ? mx_row(a.q, row + i / nh)[(first_head + i % nh) * d + c] * a.scale : 0.0f;
    }
    *lo = INT32_MAX;
    *hi = 0;
    for (int i = 0; i < nq; i++) {
        int begin, end;
        seen_by(a, row + i / nh, &begin, &end);
        if (threadIdx.x == 0) {
            s->begin[i] = begin;
            s->end[i] = end;
            if (!end) mx_raise(a.fault, MX_CUDA_AT, row + i / nh, mx_row_i32(a.at, row + i / nh)[1]);
        }
        if (end && begin < *lo) *lo = begin;
        if (end > *hi) *hi = end;
    }
    __syncthreads();
}

/* A block's shared memory: the queries; then keys, and when those are done with, the warps' parts. */
template <typename T, int CH, int QB> static constexpr size_t shared_bytes()
{
    size_t keys = WARPS * STEP * key_pitch<T>(), parts = WARPS * QB * (32 * CH + 2) * sizeof(float);
    return sizeof(queries<CH, QB>) + (keys > parts ? keys : parts);
}

template <typename T, int CH, int QB> static __global__ void __launch_bounds__(32 * WARPS) attend_kernel(attention a)
{
    constexpr int OWN = QB * CH / WARPS;
    MX_DYN_SHARED(char, shared);
    queries<CH, QB> &s = *(queries<CH, QB> *)shared;
    char *memory = shared + sizeof s;
    int64_t row = blockIdx.x;
    int n = run_of(a, row);
    if (!n) return;
    int per_group = a.heads / a.kv.kv_heads, chunks = (per_group + a.head_step - 1) / a.head_step;
    int group = (int)blockIdx.y / chunks, h0 = (int)blockIdx.y % chunks * a.head_step;
    int nh = per_group - h0 < a.head_step ? per_group - h0 : a.head_step, nq = n * nh, first = group * per_group + h0, lo, hi;
    bring_queries(a, &s, row, first, nh, nq, &lo, &hi);
    int split = a.partial ? (int)blockIdx.z : lo / SPLIT, last = a.partial ? split + 1 : (hi + SPLIT - 1) / SPLIT;
    if (a.partial && (split * SPLIT >= hi || (split + 1) * SPLIT <= lo)) return;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    char *keys = memory + warp * STEP * key_pitch<T>();
    float *part = (float *)memory, *part_m = part + WARPS * QB * 32 * CH, *part_l = part_m + WARPS * QB;
    float m[OWN], l[OWN], x[OWN];
    for (int j = 0; j < OWN; j++) m[j] = -INFINITY, l[j] = x[j] = 0;
    for (; split < last; split++) {
        float wm[QB], wl[QB], acc[QB][CH];
#pragma unroll
        for (int i = 0; i < QB; i++) {
            wm[i] = -INFINITY, wl[i] = 0;
#pragma unroll
            for (int c = 0; c < CH; c++) acc[i][c] = 0;
        }
        walk<T, CH, QB>(a, &s, keys, row, group, split, lo, hi, nq, wm, wl, acc);
        __syncthreads();                /* nobody reads keys any more */
#pragma unroll
        for (int i = 0; i < QB; i++) {
            if (i >= nq) break;
            if (lane == 0) part_m[warp * QB + i] = wm[i], part_l[warp * QB + i] = wl[i];
#pragma unroll
            for (int c = 0; c < CH; c++) part[(warp * QB + i) * 32 * CH + 64 * (c / 2) + 2 * lane + c % 2] = acc[i][c];
        }
        __syncthreads();
        fold_warps<CH, QB>(part, part_m, part_l, nq, m, l, x);
        __syncthreads();                /* the parts are read */
    }
    int d = a.kv.head_dim;
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        int e = (int)threadIdx.x + 32 * WARPS * j, i = e / (32 * CH), c = e % (32 * CH);
        if (i >= nq) break;
        int64_t r = row + i / nh;
        int head = first + i % nh;
        if (!a.partial) {
            if (c < d) mx_row(a.y, r)[head * d + c] = x[j] / l[j];
            continue;
        }
        float *p = a.partial + ((r * a.heads + head) * a.splits + split - 1) * (d + 2);
        if (c < d) p[c] = x[j];
        if (c == 0) p[d] = m[j], p[d + 1] = l[j];
    }
}

/* Fold the splits of a row's head. */
static __global__ void combine_kernel(attention a)
{
    int64_t r = blockIdx.x;
    int head = (int)blockIdx.y, d = a.kv.head_dim, begin, end;
    seen_by(a, r, &begin, &end);
    const float *part = a.partial + (r * a.heads + head) * a.splits * (d + 2);
    for (int c = threadIdx.x; c < d; c += blockDim.x) {
        float m = -INFINITY, l = 0, x = 0, was, is;
        for (int split = begin / SPLIT; split * SPLIT < end; split++) {
            const float *p = part + (int64_t)split * (d + 2);
            fold(&m, &l, p[d], p[d + 1], &was, &is);
            x = x * was + p[c] * is;
        }
        mx_row(a.y, r)[head * d + c] = x / l;
    }
}

template <typename T, int CH, int QB> static void attend(mx_stream *s, attention a)
{
    int per_group = a.heads / a.kv.kv_heads;
    a.head_step = per_group < QB ? per_group : QB;
    a.row_step = QB / a.head_step;
    int64_t chunks = (per_group + a.head_step - 1) / a.head_step, blocks = a.q.rows / a.row_step * a.kv.kv_heads * chunks;
    int64_t longest = a.pages.cols * a.kv.page_tokens;
    a.splits = (int)((longest + SPLIT - 1) / SPLIT);
    size_t work = (size_t)a.q.rows * (size_t)a.heads * (size_t)a.splits * (size_t)(a.kv.head_dim + 2) * sizeof(float);
    bool apart = a.splits > 1 && a.splits < 65536 && blocks < 4 * mx_cuda_processors(s->dev) && work <= WORK_MAX;
    a.partial = apart ? (float *)mx_cuda_work(s, work) : NULL;
    if (apart && !a.partial) return;
    MX_LAUNCH(s, "attention_paged", (attend_kernel<T, CH, QB>),
              dim3((unsigned)a.q.rows, (unsigned)(a.kv.kv_heads * chunks), apart ? (unsigned)a.splits : 1), 32 * WARPS,
              (shared_bytes<T, CH, QB>()), a);
    if (apart)
        MX_LAUNCH(s, "attention_paged", combine_kernel, dim3((unsigned)a.q.rows, (unsigned)a.heads), mx_row_threads(4 * a.kv.head_dim), 0, a);
}

template <typename T> static void attend_by_width(mx_stream *s, attention a)
{
    if (a.kv.head_dim <= 64) attend<T, 2, 8>(s, a);
    else if (a.kv.head_dim <= 128) attend<T, 4, 8>(s, a);
    else attend<T, 16, 2>(s, a);
}

extern "C" void mx_cuda_attention_paged(mx_stream *s, mx_tensor y, mx_tensor q, const mx_kv *kv, mx_tensor pages, mx_tensor at,
                                        int heads, float scale, int window)
{
    if (kv->head_dim > HEAD_MAX) {
        mx_stream_fail(s, MX_ERR_ARG, "attention_paged: heads of %d channels, at most %d", kv->head_dim, HEAD_MAX);
        return;
    }
    size_t row = (size_t)kv->head_dim * mx_dtype_size(kv->dtype);
    bool vec = row % 16 == 0 && (uintptr_t)kv->k % 16 == 0 && (uintptr_t)kv->v % 16 == 0;
    attention a = {y, q, pages, at, *kv, heads, window, 0, 0, scale, NULL, 0, vec, mx_cuda_faults(s)};
#define CALL(T) attend_by_width<T>(s, a)
    MX_BY_KV_TYPE(kv->dtype, CALL);
#undef CALL
}
