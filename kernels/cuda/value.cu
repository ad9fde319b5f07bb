/* value.cu - Q-learning: the best action, dueling, temporal differences, distributions, noise. */
#include "kernels/cuda/common.cuh"

static __device__ __forceinline__ const int8_t *mask_row(mx_tensor mask, int64_t r)
{
    return mask.data ? (const int8_t *)mask.data + r * mask.stride : NULL;
}

/* By a whole warp; every lane gets it. */
static __device__ __forceinline__ int best_of(const float *q, const int8_t *mask, int n)
{
    int best = -1;
    float most = -INFINITY;
    for (int a = threadIdx.x % 32; a < n; a += 32)
        if ((!mask || mask[a]) && (best < 0 ? !isnan(q[a]) : q[a] > most)) best = a, most = q[a];
    for (int o = 16; o > 0; o >>= 1) {
        int other = __shfl_xor_sync(MX_FULL, best, o);
        float theirs = __shfl_xor_sync(MX_FULL, most, o);
        if (other >= 0 && (best < 0 || theirs > most || (theirs == most && other < best))) best = other, most = theirs;
    }
    return best;
}

#define WARPS 4                         /* rows of a block, where a warp takes one */

static inline unsigned warp_blocks(int64_t rows)
{
    int64_t n = (rows + WARPS - 1) / WARPS;
    return (unsigned)(n < 1 << 20 ? n : 1 << 20);
}
#define EACH_WARP_ROW(r, rows) \
    for (int64_t r = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32; r < (rows); r += (int64_t)gridDim.x * WARPS)

static __global__ void argmax_kernel(mx_tensor id, mx_tensor q, mx_tensor mask)
{
    EACH_WARP_ROW(r, q.rows) {
        int best = best_of(mx_row(q, r), mask_row(mask, r), (int)q.cols);
        if (threadIdx.x % 32 == 0) *mx_row_i32(id, r) = best;
    }
}

extern "C" void mx_cuda_argmax(mx_stream *s, mx_tensor id, mx_tensor q, mx_tensor mask)
{
    MX_LAUNCH(s, "argmax", argmax_kernel, warp_blocks(q.rows), 32 * WARPS, 0, id, q, mask);
}

/* ---- dueling: a thread takes one atom of all actions ------------------------------------ */

#define EACH_ATOM(k, n) for (int64_t k = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; k < (n); k += (int64_t)gridDim.x * blockDim.x)

static inline unsigned atom_blocks(int64_t n)
{
    n = (n + 127) / 128;
    return (unsigned)(n < 1 << 20 ? n : 1 << 20);
}

static __global__ void dueling_kernel(mx_tensor q, mx_tensor va, int z)
{
    int64_t n = q.cols / z;
    EACH_ATOM(t, q.rows * z) {
        mx_duel(mx_row(q, t / z), mx_row(va, t / z), n, z, t % z);
    }
}

static __global__ void dueling_back_kernel(mx_tensor dva, mx_tensor dq, int z)
{
    int64_t n = dq.cols / z;
    EACH_ATOM(t, dq.rows * z) {
        int64_t r = t / z, i = t % z;
        const float *d = mx_row(dq, r);
        float *dv = mx_row(dva, r), sum = 0;
        for (int64_t k = 0; k < n; k++) sum += d[k * z + i];
        dv[i] = sum;
        for (int64_t k = 0; k < n; k++) dv[z + k * z + i] = d[k * z + i] - sum / (float)n;
    }
}

extern "C" void mx_cuda_dueling(mx_stream *s, mx_tensor q, mx_tensor va, int atoms)
{
    MX_LAUNCH(s, "dueling", dueling_kernel, atom_blocks(q.rows * atoms), 128, 0, q, va, atoms);
}

extern "C" void mx_cuda_dueling_back(mx_stream *s, mx_tensor dva, mx_tensor dq, int atoms)
{
    MX_LAUNCH(s, "dueling_back", dueling_back_kernel, atom_blocks(dq.rows * atoms), 128, 0, dva, dq, atoms);
}

/* ---- temporal differences ------------------------------------------------------------------ */

static __global__ void td_kernel(mx_tensor loss, mx_tensor error, mx_tensor q, mx_tensor action, mx_tensor next, mx_tensor chooser,
                                 mx_tensor mask, mx_tensor step, float huber, float scale, mx_cuda_fault *fault)
{
    unsigned lane = threadIdx.x % 32;
    EACH_WARP_ROW(r, q.rows) {
        const float *t = mx_row(step, r);
        float *x = mx_row(q, r), target = t[0];
        int a = *mx_row_i32(action, r), best = -1;
        if (a < 0 || a >= q.cols) {
            if (lane == 0) mx_raise(fault, MX_CUDA_ACTION, r, a);
            continue;
        }
        if (t[1] != 0) best = best_of(mx_row(chooser, r), mask_row(mask, r), (int)q.cols);
        if (best >= 0) target += t[1] * mx_row(next, r)[best];
        float d = x[a] - target, size = fabsf(d);
        __syncwarp();                   /* x[a] is read */
        if (lane == 0) {
            *mx_row(error, r) = size;
            *mx_row(loss, r) = t[2] * (size <= huber ? 0.5f * d * d : huber * (size - 0.5f * huber));
        }
        for (int k = (int)lane; k < q.cols; k += 32) x[k] = k == a ? t[2] * scale * (size <= huber ? d : copysignf(huber, d)) : 0;
    }
}

extern "C" void mx_cuda_td_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor q, mx_tensor action, mx_tensor next,
                                mx_tensor chooser, mx_tensor mask, mx_tensor step, float huber, float scale)
{
    MX_LAUNCH(s, "td_loss", td_kernel, warp_blocks(q.rows), 32 * WARPS, 0, loss, error, q, action, next, chooser, mask, step, huber, scale,
              mx_cuda_faults(s));
}

/* ---- distributions: a warp takes one action's atoms ------------------------------------------- */

/* The logarithm of the sum of exp(x - max), by a warp. */
static __device__ __forceinline__ float exp_sum(const float *x, int z, float *max)
{
    float most = -INFINITY, sum = 0;
    for (int i = threadIdx.x % 32; i < z; i += 32) most = fmaxf(most, x[i]);
    most = mx_warp_max(most);
    for (int i = threadIdx.x % 32; i < z; i += 32) sum += expf(x[i] - most);
    *max = most;
    return mx_warp_sum(sum);
}

static __global__ void atoms_value_kernel(mx_tensor q, mx_tensor logits, float low, float gap)
{
    int64_t n = q.cols;
    int z = (int)(logits.cols / n);
    EACH_WARP_ROW(t, q.rows * n) {
        const float *x = mx_row(logits, t / n) + t % n * z;
        float most, sum = exp_sum(x, z, &most), mean = 0;
        for (int i = threadIdx.x % 32; i < z; i += 32) mean += expf(x[i] - most) / sum * (low + gap * (float)i);
        mean = mx_warp_sum(mean);
        if (threadIdx.x % 32 == 0) mx_row(q, t / n)[t % n] = mean;
    }
}

extern "C" void mx_cuda_atoms_value(mx_stream *s, mx_tensor q, mx_tensor logits, float low, float high)
{
    MX_LAUNCH(s, "atoms_value", atoms_value_kernel, warp_blocks(q.rows * q.cols), 32 * WARPS, 0, q, logits, low,
              (high - low) / (float)(logits.cols / q.cols - 1));
}

/* A warp (the whole block) takes a row.  Atom i of the target gathers what lands within one gap of it. */
static __global__ void atoms_loss_kernel(mx_tensor loss, mx_tensor error, mx_tensor logits, mx_tensor action, mx_tensor next,
                                         mx_tensor chooser, mx_tensor mask, mx_tensor step, float low, float high, float scale,
                                         mx_cuda_fault *fault)
{
    MX_DYN_SHARED(float, p);            /* the next state's distribution, and where its atoms land */
    int z = (int)(logits.cols / chooser.cols), lane = (int)threadIdx.x, best = -1;
    float *at = p + z, gap = (high - low) / (float)(z - 1), most;
    int64_t r = blockIdx.x;
    const float *t = mx_row(step, r);
    int a = *mx_row_i32(action, r);
    if (a < 0 || a >= chooser.cols) {
        if (lane == 0) mx_raise(fault, MX_CUDA_ACTION, r, a);
        return;
    }
    if (t[1] != 0) best = best_of(mx_row(chooser, r), mask_row(mask, r), (int)chooser.cols);
    const float *y = mx_row(next, r) + (best < 0 ? 0 : best) * z;
    float *x = mx_row(logits, r) + a * z, sum = exp_sum(y, z, &most), discount = best < 0 ? 0 : t[1];
    for (int i = lane; i < z; i += 32) {
        p[i] = best < 0 ? (i == 0 ? 1.0f : 0.0f) : expf(y[i] - most) / sum;
        at[i] = (fminf(fmaxf(t[0] + discount * (low + gap * (float)i), low), high) - low) / gap;
    }
    sum = exp_sum(x, z, &most);
    __syncwarp();
    float cross = 0, log_sum = logf(sum);
    for (int i = lane; i < z; i += 32) {
        float m = 0;
        for (int k = 0; k < z; k++) m += p[k] * fmaxf(0.0f, 1.0f - fabsf(at[k] - (float)i));
        cross += m * (log_sum - (x[i] - most));
        x[i] = t[2] * scale * (expf(x[i] - most) / sum - m);
    }
    cross = mx_warp_sum(cross);
    if (lane == 0) {
        *mx_row(error, r) = cross;
        *mx_row(loss, r) = t[2] * cross;
    }
    for (int i = lane; i < logits.cols; i += 32)
        if (i / z != a) mx_row(logits, r)[i] = 0;
}

extern "C" void mx_cuda_atoms_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor logits, mx_tensor action, mx_tensor next,
                                   mx_tensor chooser, mx_tensor mask, mx_tensor step, float low, float high, float scale)
{
    MX_LAUNCH(s, "atoms_loss", atoms_loss_kernel, (unsigned)logits.rows, 32, 2 * (size_t)(logits.cols / chooser.cols) * sizeof(float), loss,
              error, logits, action, next, chooser, mask, step, low, high, scale, mx_cuda_faults(s));
}

/* ---- noise ------------------------------------------------------------------------------------- */

static __global__ void noisy_kernel(mx_tensor w, mx_tensor mean, mx_tensor spread, mx_tensor out, mx_tensor in)
{
    const float *o = (const float *)out.data, *c = (const float *)in.data;
    EACH_ATOM(t, w.rows * w.cols) {
        int64_t r = t / w.cols, i = t % w.cols;
        mx_row(w, r)[i] = mx_row(mean, r)[i] + mx_row(spread, r)[i] * (o[r] * c[i]);
    }
}

static __global__ void noisy_back_kernel(mx_tensor dmean, mx_tensor dspread, mx_tensor dw, mx_tensor out, mx_tensor in)
{
    const float *o = (const float *)out.data, *c = (const float *)in.data;
    EACH_ATOM(t, dw.rows * dw.cols) {
        int64_t r = t / dw.cols, i = t % dw.cols;
        float d = mx_row(dw, r)[i];
        mx_row(dmean, r)[i] += d;
        mx_row(dspread, r)[i] += d * (o[r] * c[i]);
    }
}

extern "C" void mx_cuda_noisy(mx_stream *s, mx_tensor w, mx_tensor mean, mx_tensor spread, mx_tensor out, mx_tensor in)
{
    MX_LAUNCH(s, "noisy", noisy_kernel, atom_blocks(w.rows * w.cols), 128, 0, w, mean, spread, out, in);
}

extern "C" void mx_cuda_noisy_back(mx_stream *s, mx_tensor dmean, mx_tensor dspread, mx_tensor dw, mx_tensor out, mx_tensor in)
{
    MX_LAUNCH(s, "noisy_back", noisy_back_kernel, atom_blocks(dw.rows * dw.cols), 128, 0, dmean, dspread, dw, out, in);
}
