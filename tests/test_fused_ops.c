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

MX_TESTS(TEST(a_sum_and_its_norm), TEST(rope_on_the_way_to_the_cache))
