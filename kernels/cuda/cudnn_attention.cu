/* cudnn_attention.cu - attention of training through cuDNN, where the device was opened so.
 *
 * Factors are rounded to bf16 and packed as attention_mma.cu does it, cuDNN's kernel works
 * on them, and its results become f32.  A plan is made once for a class of shapes: the
 * number of sequences and the longest of them, each rounded up to a power of two; what a
 * class has and a batch has not are sequences without rows.  With MX_CUDNN_AUTO the
 * first call of a class times both ways, and the quicker one stays as long as the device is open. */
#include "kernels/cuda/attention_learn.cuh"
#include "kernels/cuda/cudnn.cuh"
#include "runtime/log.h"

#include <pthread.h>
#include <stdlib.h>

#define CLASSES   64                    /* of a device; what comes after them is ours   */
#define WORKSPACE ((int64_t)512 << 20)  /* bytes that cuDNN may want: dS of a batch     */
#define SHORTEST  128                   /* rows of the smallest class                   */
#define TRIALS    3

typedef struct attention_class {
    dn_shape shape;
    dn_plan  plan;
    bool     uses;                      /* cuDNN computes it */
} attention_class;

typedef struct cudnn_device {
    dn_library      l;
    dn_handle       handle;
    pthread_mutex_t lock;               /* the handle has one stream, and classes are added */
    int             n;
    attention_class cls[CLASSES];
} cudnn_device;

/* ---- the device's library ------------------------------------------------------------ */

static void device_close(void *p)
{
    cudnn_device *d = (cudnn_device *)p;
    if (!d) return;
    while (d->n) dn_plan_close(&d->l, &d->cls[--d->n].plan);
    if (d->handle) d->l.Destroy(d->handle);
    dn_close(&d->l);
    pthread_mutex_destroy(&d->lock);
    free(d);
}

static cudnn_device *device_open(const mx_device *of)
{
    char why[512] = "it does not start";
    cudnn_device *d = (cudnn_device *)calloc(1, sizeof *d);
    if (!d) return NULL;
    pthread_mutex_init(&d->lock, NULL);
    if (dn_open(&d->l, NULL, why, sizeof why) && d->l.Create(&d->handle) == 0) {
        mx_log(MX_LOG_INFO, "attention", "%s: cuDNN %zu.%zu", of->name, d->l.GetVersion() / 10000, d->l.GetVersion() / 100 % 100);
        return d;
    }
    mx_log(MX_LOG_WARN, "attention", "%s: no cuDNN, our own kernels: %s", of->name, why);
    d->handle = NULL;
    device_close(d);
    return NULL;
}

static cudnn_device *device_of(mx_stream *s)
{
    mx_cuda_library *slot = mx_cuda_library_of(s->dev, MX_CUDA_ATTENTION);
    if (slot->close) return (cudnn_device *)slot->impl;         /* it was looked for already */
    if (!mx_cuda_loader(s->dev, NULL)) return NULL;
    mx_cuda_queue(s);                   /* the handle is of the thread's device */
    if (!slot->close) {
        slot->impl = device_open(s->dev);
        slot->close = device_close;
    }
    mx_cuda_loader_done(s->dev);
    return (cudnn_device *)slot->impl;
}

/* ---- work memory ------------------------------------------------------------------------- */

typedef struct packed {
    int32_t *length, *at_q, *at_k, *at_lse;             /* [spans], [spans + 1] */
    mx_bf16 *q, *k, *v, *y, *dy, *dq, *dk, *dv;         /* [N][heads][wide]     */
    float   *lse, *delta;                               /* [N][heads]           */
    void    *space;
} packed;

static void *piece(char *base, size_t *used, size_t bytes)
{
    void *at = base ? base + *used : NULL;
    *used += (bytes + 255) & ~(size_t)255;
    return at;
}

/* Bytes of it all; base NULL only counts. */
static size_t lay_out(packed *p, char *base, const attention_class *c, int64_t rows)
{
    size_t used = 0, list = (size_t)(c->shape.spans + 1) * sizeof(int32_t), numbers = (size_t)rows * (size_t)c->shape.heads * sizeof(float);
    size_t wide = (size_t)rows * (size_t)c->shape.wide * sizeof(mx_bf16), q = wide * (size_t)c->shape.heads, k = wide * (size_t)c->shape.kv_heads;
    int32_t **lists[] = {&p->length, &p->at_q, &p->at_k, &p->at_lse};
    mx_bf16 **of_q[] = {&p->q, &p->y, &p->dy, &p->dq}, **of_k[] = {&p->k, &p->v, &p->dk, &p->dv};
    int n = c->shape.back ? 4 : 2;
    for (int i = 0; i < 4; i++) *lists[i] = (int32_t *)piece(base, &used, list);
    for (int i = 0; i < n; i++) *of_q[i] = (mx_bf16 *)piece(base, &used, q);
    for (int i = 0; i < n; i++) *of_k[i] = (mx_bf16 *)piece(base, &used, k);
    p->lse = (float *)piece(base, &used, numbers);
    p->delta = (float *)piece(base, &used, c->shape.back ? numbers : 0);
    p->space = piece(base, &used, (size_t)c->plan.workspace);
    return used;
}

/* Lengths and beginnings of a class's sequences; those that the batch has not begin at its end. */
static __global__ void lists_kernel(packed p, mx_tensor begin, int64_t rows, int spans, int q, int k, int lse)
{
    int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), last = (int)begin.rows - 1;
    if (i > spans) return;
    int from = min(max(*mx_row_i32(begin, min(i, last)), 0), (int)rows), to = min(max(*mx_row_i32(begin, min(i + 1, last)), from), (int)rows);
    if (i < spans) p.length[i] = to - from;
    p.at_q[i] = from * q, p.at_k[i] = from * k, p.at_lse[i] = from * lse;
}

/* y[N,heads*d] = from[N][heads][wide]; a thread four channels of a head. */
static __global__ void spread_kernel(mx_tensor y, const mx_bf16 *from, int heads, int d, int wide, bool vec)
{
    int fours = (d + 3) / 4;
    int64_t all = y.rows * heads * fours;
    for (int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; j < all; j += (int64_t)gridDim.x * blockDim.x) {
        int c = (int)(j % fours) * 4, h = (int)(j / fours % heads);
        int64_t r = j / fours / heads;
        mx_store4(mx_row(y, r) + (int64_t)h * d, c, d, vec, mx_load4(from + (r * heads + h) * wide, c, wide, true));
    }
}

static __global__ void numbers_kernel(mx_tensor rows, float *packed_rows, bool in)
{
    int64_t j = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= rows.rows * rows.cols) return;
    float *one = mx_row(rows, j / rows.cols) + j % rows.cols;
    if (in) packed_rows[j] = *one;
    else *one = packed_rows[j];
}

static void spread(mx_stream *s, const char *op, mx_tensor y, const mx_bf16 *from, int heads, const learn_args *a)
{
    int64_t blocks = (y.rows * heads * ((a->d + 3) / 4) + 255) / 256;
    MX_LAUNCH(s, op, spread_kernel, (unsigned)(blocks < 65535 ? blocks : 65535), 256, 0, y, from, heads, a->d, a->wide, mx_vec(y) && a->d % 4 == 0);
}

/* ---- a pass ------------------------------------------------------------------------------------- */

static void round_in(mx_stream *s, const char *op, const learn_args *a, const packed *p, const attention_class *c)
{
    int64_t numbers = a->q.rows * a->a.heads;
    int spans = (int)c->shape.spans;
    MX_LAUNCH(s, op, lists_kernel, (unsigned)((spans + 128) / 128), 128, 0, *p, a->begin, a->q.rows, spans, a->a.heads * a->wide,
              a->a.kv_heads * a->wide, a->a.heads);
    mx_mma_round(s, op, p->q, a->wide, a->q, a->a.heads, a->d);
    mx_mma_round(s, op, p->k, a->wide, a->k, a->a.kv_heads, a->d);
    mx_mma_round(s, op, p->v, a->wide, a->v, a->a.kv_heads, a->d);
    if (!c->shape.back) return;
    mx_mma_round(s, op, p->y, a->wide, a->y, a->a.heads, a->d);
    mx_mma_round(s, op, p->dy, a->wide, a->dy, a->a.heads, a->d);
    MX_LAUNCH(s, op, numbers_kernel, (unsigned)((numbers + 255) / 256), 256, 0, a->lse, p->lse, true);
}

static void spread_out(mx_stream *s, const char *op, const learn_args *a, const packed *p, const attention_class *c)
{
    int64_t numbers = a->q.rows * a->a.heads;
    if (c->shape.back) {
        spread(s, op, a->dq, p->dq, a->a.heads, a);
        spread(s, op, a->dk, p->dk, a->a.kv_heads, a);
        spread(s, op, a->dv, p->dv, a->a.kv_heads, a);
        return;
    }
    spread(s, op, a->y, p->y, a->a.heads, a);
    MX_LAUNCH(s, op, numbers_kernel, (unsigned)((numbers + 255) / 256), 256, 0, a->lse, p->lse, false);
}

/* False: cuDNN did not take it, nothing is written, and it will not be asked again. */
static bool compute(mx_stream *s, const learn_args *a, cudnn_device *d, attention_class *c)
{
    const char *op = c->shape.back ? "attention_back" : "attention";
    float scale = a->a.scale, lowest = -INFINITY, one = 1;
    char why[512] = "";
    packed p = {};
    char *work = (char *)mx_cuda_work(s, lay_out(&p, NULL, c, a->q.rows));
    if (!work) return true;             /* the stream says so */
    lay_out(&p, work, c, a->q.rows);
    round_in(s, op, a, &p, c);
    if (s->error.code) return true;
    void *at[DN_PLACES];
    at[DN_Q] = p.q, at[DN_K] = p.k, at[DN_V] = p.v, at[DN_Y] = p.y, at[DN_LSE] = p.lse, at[DN_LENGTH_Q] = at[DN_LENGTH_K] = p.length;
    at[DN_AT_Q] = p.at_q, at[DN_AT_K] = p.at_k, at[DN_AT_LSE] = p.at_lse, at[DN_SCALE] = &scale, at[DN_LOWEST_PAD] = at[DN_LOWEST_BAND] = &lowest;
    at[DN_DY] = p.dy, at[DN_DQ] = p.dq, at[DN_DK] = p.dk, at[DN_DV] = p.dv, at[DN_DELTA] = p.delta, at[DN_ONE] = &one;
    c->uses = d->l.SetStream(d->handle, mx_cuda_queue(s)) == 0 && dn_plan_run(&d->l, &c->plan, d->handle, at, p.space, why, sizeof why);
    if (c->uses) spread_out(s, op, a, &p, c);
    else mx_log(MX_LOG_WARN, "attention", "%s: our own kernels from now on: %s", op, why);
    return c->uses;
}

/* ---- which way --------------------------------------------------------------------------------------- */

static void own(mx_stream *s, const learn_args *a, bool back)
{
    if (back) mx_own_attention_back(s, a);
    else mx_own_attention(s, a);
}

/* Milliseconds of one of TRIALS calls, after one that warms up; d NULL: our own. */
static float timed(mx_stream *s, const learn_args *a, cudnn_device *d, attention_class *c)
{
    cudaStream_t q = (cudaStream_t)mx_cuda_queue(s);
    cudaEvent_t from = NULL, to = NULL;
    float ms = 0;
    bool ok = mx_cuda_ok(s, cudaEventCreateWithFlags(&from, 0), "timing attention") && mx_cuda_ok(s, cudaEventCreateWithFlags(&to, 0), "timing attention");
    for (int i = -1; i < TRIALS && ok; i++) {
        if (i == 0) ok = mx_cuda_ok(s, cudaEventRecord(from, q), "timing attention");
        if (!d) own(s, a, c->shape.back);
        else ok = ok && compute(s, a, d, c);
    }
    if (ok && mx_cuda_ok(s, cudaEventRecord(to, q), "timing attention") && mx_cuda_ok(s, cudaEventSynchronize(to), "timing attention"))
        mx_cuda_ok(s, cudaEventElapsedTime(&ms, from, to), "timing attention");
    if (from) cudaEventDestroy(from);
    if (to) cudaEventDestroy(to);
    return ms / TRIALS;
}

static void decide(mx_stream *s, const learn_args *a, cudnn_device *d, attention_class *c)
{
    const dn_shape *x = &c->shape;
    char why[512] = "";
    c->uses = dn_plan_open(&d->l, &c->plan, x, d->handle, NULL, why, sizeof why);
    if (c->uses && c->plan.workspace > WORKSPACE) {
        snprintf(why, sizeof why, "it wants %lld MiB of memory", (long long)(c->plan.workspace >> 20));
        dn_plan_close(&d->l, &c->plan);
        c->uses = false;
    }
    float theirs = 0, ours = 0;
    bool measure = c->uses && s->dev->cudnn == MX_CUDNN_AUTO;
    if (measure) theirs = timed(s, a, d, c);
    if (measure && c->uses) {
        ours = timed(s, a, NULL, c);
        c->uses = theirs < ours;
        snprintf(why, sizeof why, "%.3f ms, ours %.3f ms", (double)theirs, (double)ours);
    }
    mx_log(MX_LOG_INFO, "attention", "%s, up to %lld sequences of %lld: %s%s%s", x->back ? "backward" : "forward", (long long)x->spans,
           (long long)x->longest, c->uses ? "cuDNN" : "our own kernels", why[0] ? ": " : "", why);
}

static bool same(const dn_shape *a, const dn_shape *b)
{
    return a->spans == b->spans && a->longest == b->longest && a->heads == b->heads && a->kv_heads == b->kv_heads && a->wide == b->wide &&
           a->causal == b->causal && a->back == b->back;
}

static attention_class *class_of(mx_stream *s, const learn_args *a, cudnn_device *d, const dn_shape *shape)
{
    for (int i = 0; i < d->n; i++)
        if (same(&d->cls[i].shape, shape)) return &d->cls[i];
    if (d->n == CLASSES) return NULL;
    attention_class *c = &d->cls[d->n++];
    c->shape = *shape;
    decide(s, a, d, c);
    return c;
}

static int64_t power_of_two(int64_t n, int64_t least)
{
    while (least < n) least *= 2;
    return least;
}

static bool taken(mx_stream *s, const learn_args *given, bool back)
{
    learn_args a = *given;
    a.d = (int)(a.q.cols / a.a.heads);
    a.wide = mma_width(a.d);
    if (s->error.code || s->dev->cudnn == MX_CUDNN_OFF || !a.a.learns || a.a.as != MX_BF16 || a.a.window > 0 || !a.wide) return false;
    if (a.begin.rows < 2 || a.q.rows * a.a.heads * a.wide > INT32_MAX) return false;       /* beginnings are whole numbers of 32 bits */
    cudnn_device *d = device_of(s);
    if (!d) return false;
    dn_shape shape = {};
    shape.spans = power_of_two(a.begin.rows - 1, 1);
    shape.longest = power_of_two(a.a.longest ? a.a.longest : a.q.rows, SHORTEST);
    shape.heads = a.a.heads, shape.kv_heads = a.a.kv_heads, shape.wide = a.wide, shape.causal = a.a.causal, shape.back = back;
    pthread_mutex_lock(&d->lock);
    attention_class *c = class_of(s, &a, d, &shape);
    bool done = c && c->uses && compute(s, &a, d, c);
    pthread_mutex_unlock(&d->lock);
    return done;
}

bool mx_cudnn_attention(mx_stream *s, const learn_args *a) { return taken(s, a, false); }
bool mx_cudnn_attention_back(mx_stream *s, const learn_args *a) { return taken(s, a, true); }
