/* sample.cu - logits to tokens: penalties, filters, the draw, log-probabilities.
 *
 * A block works on a row and never sorts it.  What top-k, top-p and the draw ask
 * for is a place in the order of falling logits where a count or a mass is
 * reached; it is found digit by digit: a histogram of counts and masses over 256
 * bins, the bin where the limit is crossed, then the next digit inside that bin
 * (radix select).  The first digit is the distance from the maximum, which spreads
 * real logits over many bins; the others are the bits of the logit.  Masses are
 * whole numbers of 2^-44, so that atomic sums have the same bits in any order. */
#include "kernels/cuda/common.cuh"

#define THREADS 1024                    /* of a block, at most */
#define BINS    256
#define ONE     17592186044416.0        /* 2^44: the mass of the most likely token */

/* ---- penalties, biases, bans --------------------------------------------------------------- */

static __device__ bool in_vocabulary(int32_t id, int64_t v, int64_t r, mx_cuda_fault *fault)
{
    if (id >= 0 && id < v) return true;
    mx_raise(fault, MX_CUDA_LIST_ID, r, id);
    return false;
}

/* Several biases of one token are added in order by the thread of the first. */
static __device__ void add_biases(float *x, int64_t v, const mx_logit_lists &l, int64_t r, mx_cuda_fault *fault)
{
    int32_t first = l.bias_begin[r], end = l.bias_begin[r + 1];
    for (int32_t i = first + (int32_t)threadIdx.x; i < end; i += (int32_t)blockDim.x) {
        int32_t id = l.bias_id[i], j = first;
        if (!in_vocabulary(id, v, r, fault)) continue;
        while (j < i && l.bias_id[j] != id) j++;
        if (j < i) continue;
        float sum = x[id];
        for (; j < end; j++)
            if (l.bias_id[j] == id) sum += l.bias[j];
        x[id] = sum;
    }
}

/* All threads of the block. */
static __device__ void penalise(float *x, int64_t v, const mx_sample_row &o, const mx_seats &t, int64_t r, mx_cuda_fault *fault)
{
    int64_t first = (int64_t)o.seat * t.seen_most;
    int32_t n = t.seat[o.seat].n_seen;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x) {
        int32_t id = t.seen_id[first + i], count = t.seen_count[first + i];
        if (!in_vocabulary(id, v, r, fault)) continue;
        float z = x[id];
        if (o.repetition_penalty != 1) z = z < 0 ? z * o.repetition_penalty : z / o.repetition_penalty;
        if (count > 0) z -= o.presence_penalty + o.frequency_penalty * (float)count;
        x[id] = z;
    }
}

static __global__ void process_kernel(mx_tensor logits, const mx_sample_row *rows, mx_logit_lists l, mx_seats t, mx_cuda_fault *fault)
{
    int64_t r = blockIdx.x, v = logits.cols;
    float *x = mx_row(logits, r);
    const mx_sample_row &o = rows[r];
    if (l.bias_begin) add_biases(x, v, l, r, fault);
    __syncthreads();
    if (t.seat && o.seat >= 0 && (o.repetition_penalty != 1 || o.presence_penalty != 0 || o.frequency_penalty != 0)) penalise(x, v, o, t, r, fault);
    __syncthreads();
    if (l.ban_begin) {
        int32_t end = l.ban_begin[r + 1];
        for (int32_t i = l.ban_begin[r] + (int32_t)threadIdx.x; i < end; i += (int32_t)blockDim.x) {
            int32_t id = l.ban_id[i], j = l.ban_begin[r];
            if (!in_vocabulary(id, v, r, fault)) continue;
            while (j < i && l.ban_id[j] != id) j++;
            if (j == i) x[id] = -INFINITY;           /* a list may name a token twice */
        }
    }
}

/* Threads of a row's block: whole warps, about four logits each, for a small vocabulary. */
static unsigned threads_for(int64_t v)
{
    int64_t t = (v + 127) / 128 * 32;
    return (unsigned)(t < THREADS ? t : THREADS);
}

/* A kernel takes them by value. */
static mx_seats seats_of(const mx_seats *seats)
{
    mx_seats none = {NULL, NULL, NULL, 0, 0, {NULL, 0, 0, 0, MX_I32}};
    return seats ? *seats : none;
}

extern "C" void mx_cuda_logits_process(mx_stream *s, mx_tensor logits, const mx_sample_row *rows, const mx_logit_lists *lists, const mx_seats *seats)
{
    MX_LAUNCH(s, "logits_process", process_kernel, (unsigned)logits.rows, 256, 0, logits, rows, *lists, seats_of(seats), mx_cuda_faults(s));
}

/* ---- a row's order -------------------------------------------------------------------------------- */

/* Unsigned numbers in the order of floats; NaN counts as -inf. */
static __device__ __forceinline__ unsigned ordered(float f)
{
    if (f != f) f = -INFINITY;
    if (f == 0) f = 0;                  /* -0 equals 0 */
    unsigned u = __float_as_uint(f);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static __device__ __forceinline__ float of_order(unsigned u)
{
    return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u);
}

/* What a row is while a token is being chosen; shared by the block's threads. */
typedef struct row_view {
    const float *x;
    int64_t      v;
    float        temperature, max;      /* max: of x / temperature */
} row_view;

static __device__ __forceinline__ float key_of(const row_view &w, int64_t i)
{
    float f = w.x[i];
    if (w.temperature != 1) f = __fdiv_rn(f, w.temperature);
    return f != f ? -INFINITY : f;
}

/* e^(key - max) in units of 2^-44; an infinite maximum outweighs everything else */
static __device__ __forceinline__ unsigned long long mass_of(float key, float max)
{
    if (key == max) return (unsigned long long)ONE;
    float e = expf(key - max);
    return e > 0 && e <= 1 ? (unsigned long long)((double)e * ONE) : 0;
}

/* The bin of the first digit: eighths of distance, the nearest first. */
static __device__ __forceinline__ unsigned bin_of(float key, float max)
{
    if (key == max) return 0;
    float d = (max - key) * 8;
    return d < BINS - 1 ? (unsigned)d : BINS - 1;              /* the last bin is everything beyond, and what is not a number */
}

/* A place in the order: candidates with a larger order number stand before it, and of the equal ones the first
 * `ties` by id. */
typedef struct cut {
    unsigned           order;
    unsigned long long ties;
} cut;

typedef struct histogram {
    unsigned long long mass[BINS];
    unsigned           count[BINS];
    unsigned           bin;             /* where the limit is crossed */
    unsigned long long mass_left;
    unsigned long long count_left;
    int                found;
} histogram;

/* Thread 0: the first bin, in the order `falling` says, in which the running count exceeds count_left, or the running
 * mass exceeds mass_left.  The last one that holds anything when none does.  What stands before it is taken off. */
static __device__ void pick_bin(histogram *h, bool by_count, bool falling)
{
    int last = -1;
    unsigned long long before = 0, before_last = 0, limit = by_count ? h->count_left : h->mass_left;
    for (int j = 0; j < BINS; j++) {
        int b = falling ? BINS - 1 - j : j;
        if (!h->count[b]) continue;
        unsigned long long own = by_count ? h->count[b] : h->mass[b];
        last = b;
        before_last = before;
        if (before + own > limit) break;
        before += own;
    }
    h->found = last >= 0;
    h->bin = (unsigned)(last < 0 ? 0 : last);
    if (by_count) h->count_left -= before_last;
    else h->mass_left -= before_last < h->mass_left ? before_last : h->mass_left;
}

/* Which candidates take part: those up to a place in the order, and of them, with `typical`, those of surprise within
 * `reach`. */
typedef struct member_rule {
    unsigned order;                     /* of the last; 0: no limit          */
    int64_t  id;                        /* of the last among its equals      */
    bool     typical;
    float    entropy, log_sum, reach;
} member_rule;

static __device__ __forceinline__ float surprise(const member_rule &m, float key, float max)
{
    float lp = key == max ? -m.log_sum : (key - max) - m.log_sum;
    return fabsf(-lp - m.entropy);
}

static __device__ __forceinline__ bool takes_part(const member_rule &m, float key, int64_t i, float max)
{
    if (key == -INFINITY) return false;
    unsigned o = ordered(key);
    if (o < m.order || (o == m.order && i > m.id)) return false;
    return !m.typical || surprise(m, key, max) <= m.reach;
}

/* Find the cut at a count or a mass (in h->count_left or h->mass_left; exceeded by the last candidate inside).
 * by_surprise: the order is that of rising surprise instead.  All threads of the block. */
static __device__ cut find_cut(const row_view &w, const member_rule &m, histogram *h, bool by_count, bool by_surprise)
{
    unsigned first = 0, prefix = 0;
    for (int digit = 0; digit < 5; digit++) {
        int shift = 32 - 8 * digit;     /* digit 0: the distance; then the four bytes of the order number */
        for (int b = threadIdx.x; b < BINS; b += blockDim.x) h->mass[b] = 0, h->count[b] = 0;
        __syncthreads();
        for (int64_t i = threadIdx.x; i < w.v; i += blockDim.x) {
            float key = key_of(w, i);
            if (!takes_part(m, key, i, w.max)) continue;
            float along = by_surprise ? -surprise(m, key, w.max) : key, top = by_surprise ? 0.0f : w.max;
            unsigned o = ordered(along), b = bin_of(along, top);
            if (digit > 0) {
                if (b != first || (digit > 1 && o >> (shift + 8) != prefix)) continue;
                b = o >> shift & 255;
            }
            atomicAdd(&h->mass[b], mass_of(key, w.max));
            atomicAdd(&h->count[b], 1u);
        }
        __syncthreads();
        if (threadIdx.x == 0) pick_bin(h, by_count, digit > 0);
        __syncthreads();
        if (digit == 0) first = h->bin;
        else prefix = prefix << 8 | h->bin;
        __syncthreads();
    }
    /* all that is left has one order number; how many of them stand inside? */
    unsigned long long n = h->count[prefix & 255], each = n ? h->mass[prefix & 255] / n : 0, ties;
    if (by_count) ties = h->count_left + 1;
    else ties = each ? h->mass_left / each + 1 : n;
    cut c = {prefix, ties < n ? ties : n};
    __syncthreads();
    return c;
}

/* The id of the tie-th candidate (from 1) that takes part and has order number `order`; -1 if there is none. */
static __device__ int32_t nth_equal(const row_view &w, const member_rule &m, unsigned order, unsigned long long tie)
{
    __shared__ unsigned found[THREADS / 32];
    __shared__ int32_t answer;
    unsigned long long before = 0;
    if (threadIdx.x == 0) answer = -1;
    for (int64_t base = 0; base < w.v; base += blockDim.x) {
        int64_t i = base + threadIdx.x;
        float key = i < w.v ? key_of(w, i) : -INFINITY;
        bool mine = i < w.v && ordered(key) == order && takes_part(m, key, i, w.max);
        unsigned lanes = __ballot_sync(MX_FULL, mine);
        if (threadIdx.x % 32 == 0) found[threadIdx.x / 32] = (unsigned)__popc(lanes);
        __syncthreads();
        unsigned long long at = before + (unsigned)__popc(lanes & ((2u << threadIdx.x % 32) - 1));
        for (unsigned k = 0; k < blockDim.x / 32; k++) {
            if (k < threadIdx.x / 32) at += found[k];
            before += found[k];
        }
        if (mine && at == tie) answer = (int32_t)i;
        __syncthreads();
        if (before >= tie) break;
    }
    __syncthreads();
    int32_t id = answer;
    __syncthreads();
    return id;
}

/* Sum of the masses of all that take part; exact, so its order does not matter. */
static __device__ unsigned long long mass_of_all(const row_view &w, const member_rule &m, unsigned long long *total)
{
    unsigned long long sum = 0;
    if (threadIdx.x == 0) *total = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < w.v; i += blockDim.x) {
        float key = key_of(w, i);
        if (takes_part(m, key, i, w.max)) sum += mass_of(key, w.max);
    }
    atomicAdd(total, sum);
    __syncthreads();
    unsigned long long all = *total;
    __syncthreads();
    return all;
}

/* ---- the draw ---------------------------------------------------------------------------------------- */

static __device__ float row_max(const row_view &w)
{
    float most = -INFINITY;
    for (int64_t i = threadIdx.x; i < w.v; i += blockDim.x) most = fmaxf(most, key_of(w, i));
    return mx_block_max(most);
}

/* e^key / sum as the row's probabilities, over those that take part: their entropy. */
static __device__ void set_entropy(const row_view &w, member_rule *m, unsigned long long mass)
{
    double log_sum = log((double)mass / ONE), entropy = 0;
    for (int64_t i = threadIdx.x; i < w.v; i += blockDim.x) {
        float key = key_of(w, i);
        if (!takes_part(*m, key, i, w.max)) continue;
        double lp = key == w.max ? -log_sum : (double)key - (double)w.max - log_sum, p = exp(lp);
        if (p > 0) entropy -= lp * p;
    }
    entropy = mx_block_sum(entropy);
    m->log_sum = (float)log_sum;
    m->entropy = (float)entropy;
}

/* Of equals at least m->order, all. */
static __device__ void limit_to(member_rule *m, unsigned order)
{
    m->order = order;
    m->id = INT64_MAX;
}

/* What top-k, top-p and min-p leave, in this order, is always a beginning of the order of falling logits. */
static __device__ void filter(const row_view &w, const mx_sample_row &o, member_rule *m, histogram *h, unsigned long long *total)
{
    if (o.top_k > 0 && o.top_k < w.v) {
        if (threadIdx.x == 0) h->count_left = (unsigned long long)o.top_k - 1;
        limit_to(m, find_cut(w, *m, h, true, false).order);             /* equals of the k-th stay */
    }
    if (o.top_p < 1) {
        double need = ceil((double)o.top_p * (double)mass_of_all(w, *m, total)) - 1;
        if (threadIdx.x == 0) h->mass_left = need > 0 ? (unsigned long long)need : 0;
        __syncthreads();
        cut c = find_cut(w, *m, h, false, false);
        int32_t last = nth_equal(w, *m, c.order, c.ties);
        m->order = c.order;
        m->id = last;
    }
    if (o.min_p > 0) {
        /* the lowest logit of enough mass, by bisecting the order numbers */
        unsigned lo = ordered(-FLT_MAX), hi = ordered(w.max);
        while (lo < hi) {
            unsigned mid = lo + (hi - lo) / 2;
            float key = of_order(mid);
            if (key == w.max || expf(key - w.max) >= o.min_p) hi = mid;
            else lo = mid + 1;
        }
        if (hi > m->order) limit_to(m, hi);
    }
}

static __device__ int32_t greedy(const row_view &w)
{
    if (w.max == -INFINITY) return -1;
    member_rule m = {0, INT64_MAX, false, 0, 0, 0};
    return nth_equal(w, m, ordered(w.max), 1);
}

static __device__ int32_t draw(const row_view &w, const mx_sample_row &o, histogram *h, unsigned long long *total)
{
    member_rule m = {0, INT64_MAX, false, 0, 0, 0};
    filter(w, o, &m, h, total);
    unsigned long long all = mass_of_all(w, m, total);
    if (o.typical_p < 1) {
        set_entropy(w, &m, all);
        double need = ceil((double)o.typical_p * (double)all) - 1;
        if (threadIdx.x == 0) h->mass_left = need > 0 ? (unsigned long long)need : 0;
        __syncthreads();
        float reach = -of_order(find_cut(w, m, h, false, true).order);
        m.reach = reach;
        m.typical = true;
        all = mass_of_all(w, m, total);
    }
    if (threadIdx.x == 0) h->mass_left = (unsigned long long)(o.uniform * (double)all);
    __syncthreads();
    cut c = find_cut(w, m, h, false, false);
    return h->found ? nth_equal(w, m, c.order, c.ties) : -1;
}

/* The seat's newest id is this one: all threads of the block look for it in the list. */
static __device__ void keep(const mx_seats &t, int32_t seat, int32_t id)
{
    mx_seat *q = &t.seat[seat];
    int32_t n = q->n_seen, *ids = t.seen_id + (int64_t)seat * t.seen_most, *counts = t.seen_count + (int64_t)seat * t.seen_most;
    bool again = false;
    for (int32_t i = (int32_t)threadIdx.x; i < n; i += (int32_t)blockDim.x) {
        if (ids[i] != id) continue;
        counts[i]++;
        again = true;
    }
    bool fresh = !__syncthreads_or(again) && id >= 0 && n >= 0 && n < t.seen_most;
    if (threadIdx.x) return;
    if (fresh) {
        ids[n] = id;
        counts[n] = 1;
        q->n_seen = n + 1;
    }
    q->last = id;
    q->length++;
}

static __global__ void __launch_bounds__(THREADS) sample_kernel(mx_tensor id, mx_tensor logits, const mx_sample_row *rows, mx_seats t)
{
    __shared__ histogram h;
    __shared__ unsigned long long total;
    const mx_sample_row &o = rows[blockIdx.x];
    if (o.forced > 0) {
        if (threadIdx.x == 0) *mx_row_i32(id, blockIdx.x) = (int32_t)(o.forced - 1);
        return;
    }
    row_view w = {mx_row(logits, blockIdx.x), logits.cols, o.temperature > 0 ? o.temperature : 1.0f, 0};
    w.max = row_max(w);
    int32_t chosen = o.temperature <= 0 || w.max == -INFINITY ? greedy(w) : draw(w, o, &h, &total);
    if (threadIdx.x == 0) *mx_row_i32(id, blockIdx.x) = chosen;
    if (t.seat && o.keep >= 0) keep(t, o.keep, chosen);
}

extern "C" void mx_cuda_sample(mx_stream *s, mx_tensor id, mx_tensor logits, const mx_sample_row *rows, const mx_seats *seats)
{
    MX_LAUNCH(s, "sample", sample_kernel, (unsigned)logits.rows, threads_for(logits.cols), 0, id, logits, rows, seats_of(seats));
}

/* ---- log-probabilities -------------------------------------------------------------------------------------- */

typedef struct logprobs_args {
    mx_tensor logprob, chosen, top_id, top_logprob, logits;
    int32_t  *found;                    /* [N][k]: ids of the k best, in no order */
} logprobs_args;

static __device__ float logprob_of(float key, float max, double log_sum)
{
    if (key == max) return (float)-log_sum;
    return key > -INFINITY ? (float)((double)key - (double)max - log_sum) : -INFINITY;
}

/* True when a stands before b: a larger logit, or an equal one of a lower id. */
static __device__ bool before(const row_view &w, int32_t a, int32_t b)
{
    unsigned x = ordered(key_of(w, a)), y = ordered(key_of(w, b));
    return x > y || (x == y && a < b);
}

/* The k best into found[], by id; the unlikely ones of -inf are counted among them by rising id. */
static __device__ void gather_best(const row_view &w, histogram *h, int64_t k, int32_t *found)
{
    __shared__ unsigned counts[2][THREADS / 32];
    member_rule m = {0, INT64_MAX, false, 0, 0, 0};
    if (threadIdx.x == 0) h->count_left = (unsigned long long)k - 1;
    __syncthreads();
    cut c = find_cut(w, m, h, true, false);
    bool any = h->found != 0, full = any && c.ties == h->count_left + 1;
    unsigned limit = any && full ? c.order : ordered(-INFINITY);       /* else all finite ones, and then some of -inf */
    unsigned long long above = 0;
    for (int pass = 0; pass < 2; pass++) {                              /* first count those above, then place */
        unsigned long long a = 0, e = 0;
        for (int64_t base = 0; base < w.v; base += blockDim.x) {
            int64_t i = base + threadIdx.x;
            unsigned o = i < w.v ? ordered(key_of(w, i)) : 0;
            bool is_above = i < w.v && o > limit, is_equal = i < w.v && o == limit;
            unsigned la = __ballot_sync(MX_FULL, is_above), le = __ballot_sync(MX_FULL, is_equal), lower = (1u << threadIdx.x % 32) - 1;
            if (threadIdx.x % 32 == 0) counts[0][threadIdx.x / 32] = (unsigned)__popc(la), counts[1][threadIdx.x / 32] = (unsigned)__popc(le);
            __syncthreads();
            unsigned long long at_above = a + (unsigned)__popc(la & lower), at_equal = e + (unsigned)__popc(le & lower);
            for (unsigned q = 0; q < blockDim.x / 32; q++) {
                if (q < threadIdx.x / 32) at_above += counts[0][q], at_equal += counts[1][q];
                a += counts[0][q], e += counts[1][q];
            }
            if (pass && is_above) found[at_above] = (int32_t)i;
            if (pass && is_equal && above + at_equal < (unsigned long long)k) found[above + at_equal] = (int32_t)i;
            __syncthreads();
        }
        above = a;
    }
}

static __global__ void __launch_bounds__(THREADS) logprobs_kernel(logprobs_args a)
{
    __shared__ histogram h;
    int64_t r = blockIdx.x, k = a.top_id.data ? a.top_id.cols : 0;
    row_view w = {mx_row(a.logits, r), a.logits.cols, 1.0f, 0};
    w.max = row_max(w);
    double sum = 0;
    for (int64_t i = threadIdx.x; i < w.v; i += blockDim.x) {
        float key = key_of(w, i), e = expf(key - w.max);
        sum += key == w.max ? 1.0 : e <= 1 ? (double)e : 0.0;
    }
    double log_sum = log(mx_block_sum(sum));
    if (a.logprob.data && threadIdx.x == 0) {
        int32_t id = *mx_row_i32(a.chosen, r);
        bool known = id >= 0 && id < w.v && w.max > -INFINITY;
        *mx_row(a.logprob, r) = known ? logprob_of(key_of(w, id), w.max, log_sum) : -INFINITY;
    }
    if (!k) return;
    int32_t *found = a.found + r * k;
    gather_best(w, &h, k, found);
    __syncthreads();
    for (int64_t i = threadIdx.x; i < k; i += blockDim.x) {            /* everybody's place is how many stand before it */
        int64_t place = 0;
        int32_t id = found[i];
        for (int64_t j = 0; j < k; j++) place += before(w, found[j], id);
        mx_row_i32(a.top_id, r)[place] = id;
        if (a.top_logprob.data) mx_row(a.top_logprob, r)[place] = logprob_of(key_of(w, id), w.max, log_sum);
    }
}

extern "C" void mx_cuda_logprobs(mx_stream *s, mx_tensor logprob, mx_tensor chosen, mx_tensor top_id, mx_tensor top_logprob, mx_tensor logits)
{
    logprobs_args a = {logprob, chosen, top_id, top_logprob, logits, NULL};
    if (top_id.data) {
        a.found = (int32_t *)mx_cuda_work(s, (size_t)(logits.rows * top_id.cols) * sizeof(int32_t));
        if (!a.found) return;
    }
    MX_LAUNCH(s, "logprobs", logprobs_kernel, (unsigned)logits.rows, threads_for(logits.cols), 0, a);
}
