/* warp.c - what the lanes of a warp do together, atomics, cp.async, mma.
 *
 * One primitive carries all warp calls: every lane of the mask leaves its operands
 * and waits; the last one in computes for all. */
#include "internal.h"

typedef void (*warp_fn)(unsigned mask, const void *const in[32], void *const out[32], long arg);

static void wait_in_warp(int tid)
{
    sim_warp_waiting[tid / 32]++;
    sim_wait(SIM_WARP);
    sim_cur.epoch = sim_threads[tid].epoch;
}

/* 1: all lanes of the mask stand in the same call; 0: some are still to come. */
static int all_here(const char *what, unsigned mask, int tid)
{
    int w0 = tid & ~31;
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1) || w0 + l == tid) continue;
        const sim_thread *o = &sim_threads[w0 + l];
        if (w0 + l >= sim_block_threads() || o->state == SIM_DONE) {
            sim_error("%s: mask %08x names lane %d, which %s", what, mask, l,
                      w0 + l >= sim_block_threads() ? "does not exist" : "has exited");
            sim_die();
        }
        if (o->state != SIM_WARP) return 0;
        if (o->mask != mask || strcmp(o->what, what)) {
            sim_error("%s mask %08x: lane %d is in %s with mask %08x", what, mask, l, o->what, o->mask);
            sim_die();
        }
    }
    return 1;
}

static void warp_call(const char *what, unsigned mask, warp_fn fn, const void *in, void *out, long arg)
{
    int tid = sim_self(), w0 = tid & ~31;
    const void *ins[32] = {0};
    void *outs[32] = {0};
    sim_thread *me = &sim_threads[tid];
    cudasim_stats.warp_calls++;
    if (!(mask >> (tid & 31) & 1)) {
        sim_error("%s: calling lane %d is not in its mask %08x", what, tid & 31, mask);
        sim_die();
    }
    me->what = what;
    me->mask = mask;
    me->in = in;
    me->out = out;
    if (sim_warp_waiting[tid / 32] + 1 < __builtin_popcount(mask) || !all_here(what, mask, tid)) {
        wait_in_warp(tid);
        return;
    }
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) {
            ins[l] = sim_threads[w0 + l].in;
            outs[l] = sim_threads[w0 + l].out;
        }
    fn(mask, ins, outs, arg);
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1) && w0 + l != tid) {
            sim_threads[w0 + l].state = SIM_READY;
            sim_warp_waiting[tid / 32]--;
        }
}

/* ---- shuffles, votes, reductions ------------------------------------------------------------ */

typedef struct shuffle {
    uint64_t v;
    int      arg, width, kind;
} shuffle;

/* A source lane outside the mask is undefined in CUDA: garbage that shows. */
static void shuffle_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    (void)arg;
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        const shuffle *s = in[l];
        int base = l & ~(s->width - 1), i = l - base, r = l;
        if (s->kind == 0) r = base + (s->arg & (s->width - 1));
        else if (s->kind == 1) r = i - s->arg >= 0 ? l - s->arg : l;
        else if (s->kind == 2) r = i + s->arg < s->width ? l + s->arg : l;
        else r = (i ^ s->arg) < s->width ? base + (i ^ s->arg) : l;
        *(uint64_t *)out[l] = mask >> r & 1 ? ((const shuffle *)in[r])->v : 0xDEADBEEFDEADBEEFull;
    }
}

uint64_t cudasim_shfl64(int kind, unsigned mask, uint64_t v, int arg, int width)
{
    static const char *const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    shuffle s = {v, arg, width, kind};
    uint64_t r = 0;
    warp_call(names[kind], mask, shuffle_fn, &s, &r, 0);
    return r;
}

static void ballot_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    (void)arg;
    unsigned b = 0;
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1) && *(const int *)in[l]) b |= 1u << l;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) *(unsigned *)out[l] = b;
}

unsigned cudasim_ballot(unsigned mask, int p)
{
    unsigned r = 0;
    warp_call("__ballot_sync", mask, ballot_fn, &p, &r, 0);
    return r;
}

static void reduce_fn(unsigned mask, const void *const in[32], void *const out[32], long kind)
{
    int64_t a = 0;
    int first = 1;
    for (int l = 0; l < 32; l++) {
        if (!(mask >> l & 1)) continue;
        int64_t v = *(const int64_t *)in[l];
        a = first ? v : kind == 0 ? a + v : kind == 1 ? (v > a ? v : a) : (v < a ? v : a);
        first = 0;
    }
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) *(int64_t *)out[l] = a;
}

int64_t cudasim_reduce(int kind, unsigned mask, int64_t v)
{
    int64_t r = 0;
    warp_call("__reduce_sync", mask, reduce_fn, &v, &r, kind);
    return r;
}

static void sync_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    (void)in, (void)out, (void)arg;
    int w0 = sim_self() & ~31;
    unsigned e = 0;
    for (int l = 0; l < 32; l++)
        if ((mask >> l & 1) && sim_threads[w0 + l].epoch > e) e = sim_threads[w0 + l].epoch;
    for (int l = 0; l < 32; l++)
        if (mask >> l & 1) sim_threads[w0 + l].epoch = e + 1;
}

void cudasim_syncwarp(unsigned mask)
{
    warp_call("__syncwarp", mask, sync_fn, NULL, NULL, 0);
    sim_cur.epoch = sim_threads[sim_self()].epoch;
}

/* ---- atomics ------------------------------------------------------------------------------------ */

float cudasim_atomic_addf(float *p, float v)
{
    HOOK(atomic, p, sizeof *p);
    sim_maybe_preempt();
    float old = *p;
    *p = old + v;
    return old;
}

double cudasim_atomic_addd(double *p, double v)
{
    HOOK(atomic, p, sizeof *p);
    sim_maybe_preempt();
    double old = *p;
    *p = old + v;
    return old;
}

#define ATOMIC(W)                                                                              \
    uint##W##_t cudasim_atomic##W(int op, void *q, uint##W##_t v, uint##W##_t cmp)             \
    {                                                                                          \
        HOOK(atomic, q, W / 8);                                                                \
        sim_maybe_preempt();                                                                   \
        uint##W##_t *p = q, o = *p;                                                            \
        int##W##_t so = (int##W##_t)o, sv = (int##W##_t)v;                                     \
        switch (op) {                                                                          \
        case CUDASIM_ADD: *p = o + v; break;                                                   \
        case CUDASIM_EXCH: *p = v; break;                                                      \
        case CUDASIM_CAS: *p = o == cmp ? v : o; break;                                        \
        case CUDASIM_AND: *p = o & v; break;                                                   \
        case CUDASIM_OR: *p = o | v; break;                                                    \
        case CUDASIM_MAX: *p = o > v ? o : v; break;                                           \
        case CUDASIM_SMAX: *p = so > sv ? o : v; break;                                        \
        case CUDASIM_MIN: *p = o < v ? o : v; break;                                           \
        default: *p = so < sv ? o : v; break;                                                  \
        }                                                                                      \
        return o;                                                                              \
    }
ATOMIC(32)
ATOMIC(64)

/* ---- cp.async: the copy happens at the wait; until then the target holds NaN ----------------------- */

void cudasim_cp_async(void *dst, const void *src, size_t n, size_t zero)
{
    sim_thread *t = &sim_threads[sim_self()];
    if ((n != 4 && n != 8 && n != 16) || zero > n || (uintptr_t)dst % n || (uintptr_t)src % n) {
        sim_error("cp.async: %zu bytes from %p to %p", n, src, dst);
        sim_die();
    }
    if (t->copies == 64) {
        sim_error("cp.async: more than 64 copies of a thread in flight");
        sim_die();
    }
    if (n > zero) HOOK(read, src, n - zero);
    HOOK(write, dst, n);
    memset(dst, 0xff, n);
    t->copy[t->copies++] = (sim_copy){dst, src, n, zero, t->group};
}

void cudasim_cp_commit(void) { sim_threads[sim_self()].group++; }

void cudasim_cp_wait(int n)
{
    sim_thread *t = &sim_threads[sim_self()];
    int kept = 0;
    for (int i = 0; i < t->copies; i++) {
        const sim_copy *c = &t->copy[i];
        if (c->group >= t->group - n) {
            t->copy[kept++] = *c;
            continue;
        }
        HOOK(write, c->dst, c->n);
        memcpy(c->dst, c->src, c->n - c->zero);
        memset((char *)c->dst + c->n - c->zero, 0, c->zero);
    }
    t->copies = kept;
}

/* ---- shared addresses: dynamic from 0 on, static from 0x40000 on ------------------------------------- */

uint32_t cudasim_smem_addr(const void *p)
{
    const char *c = p, *d = (const char *)sim_cur.dyn;
    if (c >= d && c < d + SIM_WINDOW) return (uint32_t)(c - d);
    if (c >= __start_cudasim_shared && c < __stop_cudasim_shared) return (uint32_t)(0x40000 + (c - __start_cudasim_shared));
    sim_error("a pointer that is not shared memory where a shared address is needed");
    return 0xffffffffu;
}

/* ---- matrix instructions (PTX ISA, "Matrix fragments") ------------------------------------------------- */

typedef struct mma_in {
    const unsigned *a, *b;
    const void     *c;
} mma_in;

static float bf16_half(uint32_t w, int high)
{
    uint32_t u = high ? w & 0xffff0000u : w << 16;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* tf32 reads the upper 19 bits */
static float tf32(uint32_t u)
{
    float f;
    u &= 0xffffe000u;
    memcpy(&f, &u, sizeof f);
    return f;
}

static int whole(unsigned mask, const char *what)
{
    if (mask == 0xffffffffu) return 1;
    sim_error("%s needs the whole warp", what);
    return 0;
}

/* d = a b + c for one 16 x 8 tile; sums in double, because the hardware's order is not defined. */
static void multiply_tile(const float *A, const float *B, int k, const void *const in[32], void *const out[32])
{
    for (int l = 0; l < 32; l++) {
        float c[4], *d = out[l];
        int g = l >> 2, t = (l & 3) * 2;
        memcpy(c, ((const mma_in *)in[l])->c, sizeof c);
        for (int e = 0; e < 4; e++) {
            int row = g + (e >> 1) * 8, col = t + (e & 1);
            double sum = (double)c[e];
            for (int i = 0; i < k; i++) sum += (double)A[row * k + i] * (double)B[i * 8 + col];
            d[e] = (float)sum;
        }
    }
}

static void mma_bf16_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    float A[16 * 16], B[16 * 8];
    (void)arg;
    if (!whole(mask, "mma.m16n8k16.bf16")) return;
    for (int l = 0; l < 32; l++) {
        const mma_in *m = in[l];
        int g = l >> 2, t = (l & 3) * 2;
        for (int e = 0; e < 2; e++) {
            A[g * 16 + t + e] = bf16_half(m->a[0], e);
            A[(g + 8) * 16 + t + e] = bf16_half(m->a[1], e);
            A[g * 16 + t + 8 + e] = bf16_half(m->a[2], e);
            A[(g + 8) * 16 + t + 8 + e] = bf16_half(m->a[3], e);
            B[(t + e) * 8 + g] = bf16_half(m->b[0], e);
            B[(t + 8 + e) * 8 + g] = bf16_half(m->b[1], e);
        }
    }
    multiply_tile(A, B, 16, in, out);
}

static void mma_tf32_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    float A[16 * 8], B[8 * 8];
    (void)arg;
    if (!whole(mask, "mma.m16n8k8.tf32")) return;
    for (int l = 0; l < 32; l++) {
        const mma_in *m = in[l];
        int g = l >> 2, t = l & 3;
        A[g * 8 + t] = tf32(m->a[0]);
        A[(g + 8) * 8 + t] = tf32(m->a[1]);
        A[g * 8 + t + 4] = tf32(m->a[2]);
        A[(g + 8) * 8 + t + 4] = tf32(m->a[3]);
        B[t * 8 + g] = tf32(m->b[0]);
        B[(t + 4) * 8 + g] = tf32(m->b[1]);
    }
    multiply_tile(A, B, 8, in, out);
}

static void mma_s8_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    int8_t A[16][32], B[32][8];
    (void)arg;
    if (!whole(mask, "mma.m16n8k32.s8")) return;
    for (int l = 0; l < 32; l++) {
        const mma_in *m = in[l];
        int g = l >> 2, t = (l & 3) * 4;
        for (int e = 0; e < 4; e++) {
            A[g][t + e] = (int8_t)(m->a[0] >> 8 * e);
            A[g + 8][t + e] = (int8_t)(m->a[1] >> 8 * e);
            A[g][t + 16 + e] = (int8_t)(m->a[2] >> 8 * e);
            A[g + 8][t + 16 + e] = (int8_t)(m->a[3] >> 8 * e);
            B[t + e][g] = (int8_t)(m->b[0] >> 8 * e);
            B[t + 16 + e][g] = (int8_t)(m->b[1] >> 8 * e);
        }
    }
    for (int l = 0; l < 32; l++) {
        int c[4], *d = out[l], g = l >> 2, t = (l & 3) * 2;
        memcpy(c, ((const mma_in *)in[l])->c, sizeof c);
        for (int e = 0; e < 4; e++) {
            d[e] = c[e];
            for (int i = 0; i < 32; i++) d[e] += A[g + (e >> 1) * 8][i] * B[i][t + (e & 1)];
        }
    }
}

#define MMA(fn, name, type, NA, NB, body)                                                     \
    void fn(type d[4], const unsigned a[NA], const unsigned b[NB], const type c[4])            \
    {                                                                                         \
        mma_in in = {a, b, c};                                                                \
        type out[4];                          /* d may be c */                                \
        warp_call(name, 0xffffffffu, body, &in, out, 0);                                      \
        memcpy(d, out, sizeof out);                                                           \
    }
MMA(cudasim_mma_m16n8k16_bf16, "mma.m16n8k16.bf16", float, 4, 2, mma_bf16_fn)
MMA(cudasim_mma_m16n8k8_tf32, "mma.m16n8k8.tf32", float, 4, 2, mma_tf32_fn)
MMA(cudasim_mma_m16n8k32_s8, "mma.m16n8k32.s8", int, 4, 2, mma_s8_fn)

static void ldmatrix_fn(unsigned mask, const void *const in[32], void *const out[32], long arg)
{
    int n = (int)(arg & 7), trans = (int)(arg >> 3);
    if (!whole(mask, "ldmatrix")) return;
    for (int l = 0; l < 32; l++) {
        uint32_t *r = out[l];
        for (int i = 0; i < n; i++) {
            int q = l >> 2, c = (l & 3) * 2;
            const uint16_t *r0 = *(const uint16_t *const *)in[8 * i + (trans ? c : q)];
            const uint16_t *r1 = *(const uint16_t *const *)in[8 * i + (trans ? c + 1 : q)];
            r[i] = trans ? (uint32_t)r0[q] | (uint32_t)r1[q] << 16 : (uint32_t)r0[c] | (uint32_t)r1[c + 1] << 16;
        }
    }
}

/* n 8x8 matrices of 16-bit words; lane l gives the address of row l%8 of matrix l/8. */
void cudasim_ldmatrix(unsigned *r, const void *row, int n, int trans)
{
    unsigned out[4];
    if ((uintptr_t)row & 15) sim_error("ldmatrix: a row that is not 16-byte aligned");
    if (cudasim_smem_addr(row) == 0xffffffffu) return;
    if ((sim_cur.tid & 31) < 8 * n) HOOK(read, row, 16);
    warp_call(trans ? "ldmatrix.trans" : "ldmatrix", 0xffffffffu, ldmatrix_fn, &row, out, n | trans << 3);
    for (int i = 0; i < n; i++) r[i] = out[i];
}
