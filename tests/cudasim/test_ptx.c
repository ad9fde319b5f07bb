/* test_ptx.c - the PTX wrappers against the PTX ISA's fragment layouts, written down here once more.
 *
 *     test_ptx [FILE]
 *
 * On the simulator it checks the simulated bodies, on a GPU the instructions; with
 * FILE the vectors are written there.  tests/golden/ptx.txt, when a GPU has written
 * it, is what everybody's must equal. */
#include "tests/cudasim/ptx.h"
#include "tests/test.h"

#include <math.h>

enum { LANES = 32 };
static ptx_in in[LANES];
static ptx_out out[LANES];

static float bf16_at(const unsigned *r, int i) { return mx_bf16_to_f32((uint16_t)(r[i / 2] >> 16 * (i % 2))); }
static int8_t s8_at(const unsigned *r, int i) { return (int8_t)(r[i / 4] >> 8 * (i % 4)); }
static float f32_of(unsigned u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Fragments into matrices (PTX ISA, "Matrix fragments for mma.m16n8k16, k8, k32"). */
static double a16[16][16], b16[16][8], a8[16][8], b8[8][8];
static int as8[16][32], bs8[32][8];

static void spread(void)
{
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 8; i++) a16[g + (i % 4 >= 2 ? 8 : 0)][2 * t + i % 2 + (i >= 4 ? 8 : 0)] = (double)bf16_at(in[l].a, i);
        for (int i = 0; i < 4; i++) b16[2 * t + i % 2 + (i >= 2 ? 8 : 0)][g] = (double)bf16_at(in[l].b, i);
        for (int i = 0; i < 4; i++) a8[g + (i % 2 ? 8 : 0)][t + (i >= 2 ? 4 : 0)] = (double)f32_of(in[l].ta[i]);
        for (int i = 0; i < 2; i++) b8[t + 4 * i][g] = (double)f32_of(in[l].tb[i]);
        for (int i = 0; i < 16; i++) as8[g + (i % 8 >= 4 ? 8 : 0)][4 * t + i % 4 + (i >= 8 ? 16 : 0)] = s8_at(in[l].a, i);
        for (int i = 0; i < 8; i++) bs8[4 * t + i % 4 + (i >= 4 ? 16 : 0)][g] = s8_at(in[l].b, i);
    }
}

static void fill(void)
{
    uint64_t state = 20260212;
    for (int l = 0; l < LANES; l++) {
        for (int i = 0; i < 4; i++) {
            float f[4];
            for (int k = 0; k < 4; k++) f[k] = (float)((int64_t)test_random(&state) >> 40) * 0x1p-22f;
            in[l].a[i] = (unsigned)mx_f32_to_bf16(f[0]) | (unsigned)mx_f32_to_bf16(f[1]) << 16;
            if (i < 2) in[l].b[i] = (unsigned)mx_f32_to_bf16(f[2]) | (unsigned)mx_f32_to_bf16(f[3]) << 16;
            memcpy(&in[l].ta[i], &f[0], sizeof *f);
            memcpy(&in[l].tb[i % 2], &f[2], sizeof *f);
            in[l].c[i] = f[3];
            in[l].ic[i] = (int)(test_random(&state) >> 44) - (1 << 19);
        }
        for (int i = 0; i < 4; i++) in[l].ta[i] &= 0xffffe000u, in[l].tb[i % 2] &= 0xffffe000u;     /* tf32 has 10 bits of fraction */
        for (int k = 0; k < 8; k++) in[l].row[k] = (uint16_t)(l * 8 + k);
    }
}

static void run(void)
{
    mx_device *devs = NULL;
    int n = 0;
    mx_error err = {0};
    mx_stream s;
    mx_buffer b;
    CHECK_OK(mx_devices_open(&devs, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    CHECK(n > 1);
    if (n < 2) return;
    CHECK_OK(mx_stream_open(&s, &devs[1], 0, &err), err);
    CHECK_OK(mx_buffer_open(&b, &devs[1], sizeof in + sizeof out, &err), err);
    s.dev->ops->upload(&s, b.base, in, sizeof in);
    ptx_run(&s, b.base, (ptx_out *)((char *)b.base + sizeof in));
    s.dev->ops->download(&s, out, (char *)b.base + sizeof in, sizeof out);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_buffer_close(&b);
    mx_stream_close(&s);
    mx_devices_close(devs, n);
}

static void products(void)
{
    fill();
    spread();
    run();
    for (int l = 0; l < LANES; l++)
        for (int e = 0; e < 4; e++) {
            int row = l / 4 + (e >= 2 ? 8 : 0), col = l % 4 * 2 + e % 2, whole = in[l].ic[e];
            double bf = (double)in[l].c[e], tf = bf;
            for (int k = 0; k < 16; k++) bf += a16[row][k] * b16[k][col];
            for (int k = 0; k < 8; k++) tf += a8[row][k] * b8[k][col];
            for (int k = 0; k < 32; k++) whole += as8[row][k] * bs8[k][col];
            CHECK_MSG(fabs((double)out[l].bf16[e] - bf) < 1e-5, "bf16, lane %d, element %d: %g, not %g", l, e, (double)out[l].bf16[e], bf);
            CHECK_MSG(fabs((double)out[l].tf32[e] - tf) < 1e-5, "tf32, lane %d, element %d: %g, not %g", l, e, (double)out[l].tf32[e], tf);
            CHECK_MSG(out[l].s8[e] == whole, "int8, lane %d, element %d: %d, not %d", l, e, out[l].s8[e], whole);
        }
}

static void matrices(void)
{
    for (int l = 0; l < LANES; l++) {
        int g = l / 4, t = l % 4 * 2;
        for (int m = 0; m < 4; m++) {
            const ptx_in *p = in + 8 * m;
            CHECK(out[l].rows[m] == ((unsigned)p[g].row[t] | (unsigned)p[g].row[t + 1] << 16));
            CHECK(out[l].columns[m] == ((unsigned)p[t].row[g] | (unsigned)p[t + 1].row[g] << 16));
        }
        CHECK(out[l].pair == ((unsigned)mx_f32_to_bf16(in[l].c[0]) | (unsigned)mx_f32_to_bf16(in[l].c[1]) << 16));
    }
}

enum { WORDS = sizeof(ptx_out) / sizeof(unsigned) };

static void vectors_of_a_gpu(void)
{
    FILE *f = fopen(MX_SOURCE_DIR "/tests/golden/ptx.txt", "re");
    if (!f) {
        TEST_SKIP("no GPU has written tests/golden/ptx.txt yet");
        return;
    }
    for (int l = 0; l < LANES; l++) {
        unsigned words[WORDS];
        memcpy(words, &out[l], sizeof words);
        for (int i = 0; i < WORDS; i++) {
            unsigned want;
            bool there = fscanf(f, "%8x", &want) == 1;          /* 8 sums of f32: rounded in another order; the rest is exact */
            bool same = there && (i < 8 ? fabsf(f32_of(want) - f32_of(words[i])) < 1e-5f : want == words[i]);
            CHECK_MSG(same, "lane %d, word %d: %08x, not %08x", l, i, words[i], want);
            if (!there) break;
        }
    }
    fclose(f);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {TEST(products), TEST(matrices), TEST(vectors_of_a_gpu)};
    int bad = test_main(tests, sizeof tests / sizeof *tests, 1, argv);
    if (argc < 2) return bad;
    FILE *f = fopen(argv[1], "we");
    for (int l = 0; f && l < LANES; l++) {
        unsigned words[WORDS];
        memcpy(words, &out[l], sizeof words);
        for (int i = 0; i < WORDS; i++) fprintf(f, "%08x%c", words[i], i + 1 < WORDS ? ' ' : '\n');
    }
    if (!f || fclose(f)) return fprintf(stderr, "test_ptx: %s cannot be written\n", argv[1]), 1;
    return bad;
}
