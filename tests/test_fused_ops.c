/* test_fused_ops.c - what is done in one op has the bits of the ops it stands for. */
#include "kernels/ops.h"
#include "tests/test.h"

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds the tests for the simulated GPU */
#endif

enum { N = 11, HEADS = 4, GROUPS = 2, D = 22, PAGES = 5, PAGE = 4, WIDE = (HEADS + 2 * GROUPS) * D, CACHE = PAGES * GROUPS * PAGE * D };

typedef struct rig {
    mx_device *devs;
    int        n;
    mx_stream  s;
    uint64_t   random;
} rig;

static bool rig_open(rig *g)
{
    mx_error err = {0};
    *g = (rig){.random = 5};
    CHECK_OK(mx_devices_open(&g->devs, &g->n, &(mx_device_options){.cpu_threads = 2}, &err), err);
    if (!g->devs) return false;
    CHECK_OK(mx_stream_open(&g->s, &g->devs[MX_TEST_DEVICE], 1 << 20, &err), err);
    return !err.code;
}

static void rig_close(rig *g)
{
    mx_stream_close(&g->s);
    mx_devices_close(g->devs, g->n);
}

static mx_tensor randoms(rig *g, int64_t rows, int64_t cols)
{
    static float x[16 * 1024];
    for (int64_t i = 0; i < rows * cols; i++) x[i] = (float)((double)(int64_t)test_random(&g->random) * 0x1p-62);
    return mx_stream_upload(&g->s, MX_F32, rows, cols, x);
}

static mx_tensor copy_of(rig *g, mx_tensor x)
{
    mx_tensor y = mx_stream_tensor(&g->s, MX_F32, x.rows, x.cols);
    mx_cast(&g->s, y, x);
    return y;
}

static bool equal(rig *g, const void *a, const void *b, size_t n)
{
    static char p[1 << 16], q[1 << 16];
    mx_error err = {0};
    g->s.dev->ops->download(&g->s, p, a, n);
    g->s.dev->ops->download(&g->s, q, b, n);
    CHECK_OK(mx_stream_sync(&g->s, &err), err);
    return !memcmp(p, q, n);
}

static void a_sum_and_its_norm(void)
{
    static const int64_t widths[] = {3, 64, 257, 768};
    rig g;
    if (!rig_open(&g)) return;
    for (int i = 0; i < 8; i++) {
        int64_t c = widths[i / 2];
        bool rms = i % 2;
        size_t bytes = (size_t)(N * c) * sizeof(float);
        mx_stream_rewind(&g.s);
        mx_tensor a = randoms(&g, N, c), b = randoms(&g, N, c), gain = randoms(&g, 1, c), bias = rms ? (mx_tensor){0} : randoms(&g, 1, c);
        mx_tensor sum = mx_stream_tensor(&g.s, MX_F32, N, c), y = mx_stream_tensor(&g.s, MX_F32, N, c), z = mx_stream_tensor(&g.s, MX_F32, N, c);
        mx_add(&g.s, sum, a, b);
        if (rms) mx_rms_norm(&g.s, y, sum, gain, 1e-5f);
        else mx_norm(&g.s, y, sum, gain, bias, 1e-5f);
        mx_add_norm(&g.s, z, a, a, b, gain, bias, 1e-5f, rms);
        CHECK_MSG(equal(&g, sum.data, a.data, bytes) && equal(&g, y.data, z.data, bytes), "%lld columns, rms %d", (long long)c, rms);
    }
    rig_close(&g);
}

static void rope_on_the_way_to_the_cache(void)
{
    static const mx_dtype types[] = {MX_F32, MX_F16, MX_BF16, MX_F8};
    rig g;
    if (!rig_open(&g)) return;
    for (int i = 0; i < 8; i++) {
        bool interleaved = i % 2;
        float freq[D / 2];
        int32_t at[N], slots[N];
        mx_stream_rewind(&g.s);
        for (int j = 0; j < D / 2; j++) freq[j] = powf(10000, -2.0f * (float)j / D);
        for (int r = 0; r < N; r++) at[r] = 1000 * r + i, slots[r] = (7 * r + 3) % (PAGES * PAGE);
        mx_tensor one = randoms(&g, N, WIDE), two = copy_of(&g, one), f = mx_stream_upload(&g.s, MX_F32, 1, D / 2, freq);
        mx_tensor p = mx_stream_upload(&g.s, MX_I32, N, 1, at), t = mx_stream_upload(&g.s, MX_I32, N, 1, slots);
        mx_kv kv[2];
        for (int k = 0; k < 2; k++) {
            kv[k] = (mx_kv){randoms(&g, 1, CACHE).data, randoms(&g, 1, CACHE).data, types[i / 2], PAGES, PAGE, GROUPS, D};
            g.s.dev->ops->clear(&g.s, kv[k].k, CACHE * sizeof(float));
            g.s.dev->ops->clear(&g.s, kv[k].v, CACHE * sizeof(float));
        }
        mx_rope_kv_write(&g.s, one, p, f, 1.25f, HEADS, interleaved, &kv[0], t);
        mx_rope(&g.s, mx_tensor_cols(two, 0, (HEADS + GROUPS) * D), p, f, 1.25f, HEADS + GROUPS, interleaved);
        mx_kv_write(&g.s, &kv[1], mx_tensor_cols(two, HEADS * D, GROUPS * D), mx_tensor_cols(two, (HEADS + GROUPS) * D, GROUPS * D), t);
        CHECK(equal(&g, kv[0].k, kv[1].k, CACHE * sizeof(float)) && equal(&g, kv[0].v, kv[1].v, CACHE * sizeof(float)));
        for (int r = 0; r < N; r++) CHECK(equal(&g, (float *)one.data + r * WIDE, (float *)two.data + r * WIDE, HEADS * D * sizeof(float)));
    }
    rig_close(&g);
}

/* Of the ops it stands for: on a CPU their bits, on a GPU, whose products begin with 0, nearly. */
static bool same_network(rig *g, mx_tensor a, mx_tensor b)
{
    static float p[1 << 14], q[1 << 14];
    mx_error err = {0};
    size_t n = (size_t)(a.rows * a.cols);
    float most = 0;
    if (MX_TEST_DEVICE == 0) return equal(g, a.data, b.data, n * sizeof *p);
    g->s.dev->ops->download(&g->s, p, a.data, n * sizeof *p);
    g->s.dev->ops->download(&g->s, q, b.data, n * sizeof *q);
    CHECK_OK(mx_stream_sync(&g->s, &err), err);
    for (size_t i = 0; i < n; i++) most = fmaxf(most, fabsf(q[i]));
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(p[i] - q[i]) <= 1e-5f * most)) return false;
    return true;
}

/* Inputs, hidden layers, actions, atoms (0: no dueling), activation; rows that make one block, and several. */
static void a_whole_network(void)
{
    static const struct { int in, hidden[2], actions, atoms; mx_activation act; } nets[] = {
        {12, {64, 64}, 9, 0, MX_ACT_RELU}, {4, {37, 131}, 2, 1, MX_ACT_TANH}, {67, {128, 17}, 5, 11, MX_ACT_SILU}};
    static const int64_t rows[] = {1, 5, 67, 197};
    rig g;
    if (!rig_open(&g)) return;
    for (int i = 0; i < 12; i++) {
        int64_t n = rows[i % 4], outs = nets[i / 4].actions, z = nets[i / 4].atoms, width = nets[i / 4].in;
        mx_perceptron_shape p = {.layers = 3, .atoms = (int)z, .act = nets[i / 4].act};
        mx_stream_rewind(&g.s);
        mx_tensor x = randoms(&g, n, width), h = x, y = mx_stream_tensor(&g.s, MX_F32, n, z ? outs * z : outs), one = mx_stream_tensor(&g.s, MX_F32, 1, y.cols);
        for (int k = 0; k < 3; k++) {
            int64_t to = k < 2 ? nets[i / 4].hidden[k] : z ? (1 + outs) * z : outs;
            p.w[k] = randoms(&g, to, width), p.b[k] = randoms(&g, 1, to);
            mx_tensor out = mx_stream_tensor(&g.s, MX_F32, n, to);
            mx_product(&g.s, out, h, p.w[k], p.b[k], MX_F32, false);
            if (k < 2) mx_activate(&g.s, out, out, p.act);
            h = out, width = to;
        }
        if (z) {
            mx_tensor q = mx_stream_tensor(&g.s, MX_F32, n, outs * z);
            mx_dueling(&g.s, q, h, (int)z);
            h = q;
        }
        mx_perceptron(&g.s, y, x, &p);
        CHECK_MSG(same_network(&g, y, h), "network %d, %lld rows", i / 4, (long long)n);
        for (int64_t r = 0; r < n; r += 1 + n / 5) {
            mx_perceptron(&g.s, one, mx_tensor_rows(x, r, 1), &p);
            CHECK_MSG(equal(&g, one.data, (float *)y.data + r * y.stride, (size_t)y.cols * sizeof(float)), "network %d, row %lld of %lld", i / 4, (long long)r, (long long)n);
        }
    }
    rig_close(&g);
}

MX_TESTS(TEST(a_whole_network), TEST(a_sum_and_its_norm), TEST(rope_on_the_way_to_the_cache))
