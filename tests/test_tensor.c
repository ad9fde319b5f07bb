/* test_tensor.c - views, sizes, and every half-precision number there is. */
#include "runtime/tensor.h"
#include "tests/test.h"

#include <inttypes.h>

static uint64_t seed_of(void)
{
    const char *text = getenv("MX_TEST_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 0) : 20240607;
    printf("  MX_TEST_SEED=%" PRIu64 "\n", seed);
    return seed;
}

static float f32_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* The value of a sign-exponent-fraction number, from its definition in IEEE
 * 754, in double, where every one of them is exact. */
static double value_of(uint16_t h, int exp_bits, int frac_bits)
{
    int bias = (1 << (exp_bits - 1)) - 1, exp = (h >> frac_bits) & ((1 << exp_bits) - 1);
    int frac = h & ((1 << frac_bits) - 1);
    double v;
    if (exp == (1 << exp_bits) - 1) v = frac ? (double)NAN : (double)INFINITY;
    else if (exp) v = ldexp(1.0 + ldexp(frac, -frac_bits), exp - bias);
    else v = ldexp(frac, 1 - bias - frac_bits);
    return h & 0x8000 ? -v : v;
}

/* Rounds x to the nearest representable number, ties to even, by searching the
 * 2^15 magnitudes, which are in order. */
static uint16_t nearest(double x, int exp_bits, int frac_bits)
{
    uint16_t sign = signbit(x) ? 0x8000 : 0, inf = (uint16_t)(((1 << exp_bits) - 1) << frac_bits);
    double mag = fabs(x);
    uint16_t low = 0, high = inf;                 /* value(low) <= mag < value(high), or mag is infinite */
    if (isinf(mag)) return (uint16_t)(sign | inf);
    while (high - low > 1) {
        uint16_t mid = (uint16_t)((low + high) / 2);
        if (value_of(mid, exp_bits, frac_bits) <= mag) low = mid;
        else high = mid;
    }
    double below = value_of(low, exp_bits, frac_bits);
    /* Beyond the largest number, infinity stands where the next one would. */
    double above = high == inf ? below + (below - value_of((uint16_t)(low - 1), exp_bits, frac_bits))
                               : value_of(high, exp_bits, frac_bits);
    double down = mag - below, up = above - mag;  /* exact: both have few bits more than x */
    if (down < up || (down == up && !(low & 1))) high = low;
    return (uint16_t)(sign | high);
}

static void all_up(void)
{
    int wrong = 0;
    for (uint32_t h = 0; h < 65536; h++) {
        double f16 = value_of((uint16_t)h, 5, 10), bf16 = value_of((uint16_t)h, 8, 7);
        double got16 = (double)mx_f16_to_f32((uint16_t)h), gotb = (double)mx_bf16_to_f32((uint16_t)h);
        wrong += isnan(f16) ? !isnan(got16) : got16 != f16 || signbit(got16) != signbit(f16);
        wrong += isnan(bf16) ? !isnan(gotb) : gotb != bf16 || signbit(gotb) != signbit(bf16);
        /* and back to the same bits */
        wrong += isnan(f16) ? !isnan(value_of(mx_f32_to_f16((float)got16), 5, 10))
                            : mx_f32_to_f16((float)got16) != h;
        wrong += isnan(bf16) ? !isnan(value_of(mx_f32_to_bf16((float)gotb), 8, 7))
                             : mx_f32_to_bf16((float)gotb) != h;
    }
    CHECK_MSG(wrong == 0, "%d wrong", wrong);
}

static int down_is_wrong(float f)
{
    int wrong = mx_f32_to_f16(f) != nearest((double)f, 5, 10) || mx_f32_to_bf16(f) != nearest((double)f, 8, 7);
    if (wrong) fprintf(stderr, "  %a: f16 %04x, bf16 %04x\n", (double)f, mx_f32_to_f16(f), mx_f32_to_bf16(f));
    return wrong;
}

/* Every number, every midpoint between two numbers, and the f32 next to each. */
static void all_down(void)
{
    int wrong = 0;
    for (uint32_t h = 0; h < 65536 && wrong < 10; h++) {
        float points[4];
        int n = 0;
        double f16 = value_of((uint16_t)h, 5, 10), next = value_of((uint16_t)(h + 1), 5, 10);
        if (isfinite(f16)) points[n++] = (float)f16;
        if (isfinite(f16) && isfinite(next) && (h & 0x7fff) != 0x7fff) points[n++] = (float)((f16 + next) / 2);
        uint32_t b = h << 16, mid = b | 0x8000;
        if (isfinite(f32_of(b))) {
            points[n++] = f32_of(b);
            points[n++] = f32_of(mid);
        }
        for (int i = 0; i < n; i++) {
            wrong += down_is_wrong(points[i]);
            float up = nextafterf(points[i], INFINITY), down = nextafterf(points[i], -INFINITY);
            wrong += down_is_wrong(up) + down_is_wrong(down);
        }
    }
    static const float edges[] = {65504.0f, 65519.996f, 65520.0f, 65536.0f, 1e30f, INFINITY, -INFINITY, 0x1p-24f,
                                  0x1p-25f, 0x1.000002p-25f, 0x1p-149f, 3.4028235e38f, -3.4028235e38f};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) wrong += down_is_wrong(edges[i]);
    CHECK_MSG(wrong == 0, "%d wrong", wrong);
}

static void random_down(void)
{
    uint64_t state = seed_of();
    int wrong = 0;
    for (int i = 0; i < 300000 && wrong < 10; i++) {
        float f = f32_of((uint32_t)test_random(&state));
        if (!isnan(f)) wrong += down_is_wrong(f);
        float g = f32_of(0x33000000u + (uint32_t)(test_random(&state) % 0x14800000u));   /* the range of f16 */
        wrong += down_is_wrong(g);
    }
    CHECK_MSG(wrong == 0, "%d wrong", wrong);
}

/* A NaN stays a NaN: the payload's upper bits may all be cut off. */
static void nans(void)
{
    for (uint32_t bit = 0; bit < 23; bit++)
        for (uint32_t sign = 0; sign < 2; sign++) {
            float f = f32_of(sign << 31 | 0x7f800000u | 1u << bit);
            CHECK(isnan(value_of(mx_f32_to_f16(f), 5, 10)));
            CHECK(isnan(value_of(mx_f32_to_bf16(f), 8, 7)));
        }
}

static void views(void)
{
    float data[5 * 7];
    for (int i = 0; i < 35; i++) data[i] = (float)i;
    mx_tensor t = mx_tensor_of(data, MX_F32, 5, 7);
    CHECK(t.rows == 5 && t.cols == 7 && t.stride == 7);
    mx_tensor r = mx_tensor_rows(t, 2, 3);
    CHECK(r.data == data + 14 && r.rows == 3 && r.cols == 7 && r.stride == 7);
    mx_tensor c = mx_tensor_cols(r, 4, 2);
    CHECK(c.data == data + 18 && c.rows == 3 && c.cols == 2 && c.stride == 7);
    mx_tensor last = mx_tensor_rows(c, 2, 1);
    CHECK(((float *)last.data)[1] == 33.0f);
    uint16_t halves[12];
    CHECK(mx_tensor_cols(mx_tensor_rows(mx_tensor_of(halves, MX_BF16, 3, 4), 1, 1), 2, 1).data == halves + 6);
}

static void dtypes(void)
{
    static const size_t sizes[MX_DTYPE_COUNT] = {4, 2, 2, 4, 1, 1};
    for (int i = 0; i < MX_DTYPE_COUNT; i++) {
        mx_dtype back = MX_DTYPE_COUNT;
        CHECK(mx_dtype_size((mx_dtype)i) == sizes[i]);
        CHECK(mx_dtype_parse(mx_dtype_name((mx_dtype)i), &back) && (int)back == i);
    }
    mx_dtype none;
    CHECK(!mx_dtype_parse("f64", &none) && !mx_dtype_parse("", &none));
    CHECK(mx_dtype_size(MX_DTYPE_COUNT) == 0 && mx_dtype_size((mx_dtype)-1) == 0);
    CHECK_STR(mx_dtype_name(MX_DTYPE_COUNT), "?");
}

static void sizes(void)
{
    size_t n;
    CHECK(mx_mul_size(1u << 20, 1u << 20, &n) && n == (size_t)1 << 40);
    CHECK(!mx_mul_size((size_t)1 << 32, (size_t)1 << 32, &n));
    CHECK(mx_add_size(SIZE_MAX - 1, 1, &n) && n == SIZE_MAX);
    CHECK(!mx_add_size(SIZE_MAX, 1, &n));
}

/* E4M3 by its definition: all 256 codes, and the nearest of them for every float around them. */
static void fp8_is_e4m3(void)
{
    double value[127];
    for (int b = 0; b < 256; b++) {
        int e = b >> 3 & 15, m = b & 7;
        double v = e ? ldexp(8 + m, e - 10) : ldexp(m, -9);
        float got = mx_f8_to_f32((uint8_t)b);
        if ((b & 127) == 127) CHECK(isnan(got) && isnan(mx_f8_to_f32(mx_f32_to_f8(got))));
        else CHECK((double)got == (b < 128 ? v : -v) && !!signbit(got) == (b >= 128) && mx_f32_to_f8(got) == b);
        if (b < 127) value[b] = v;
    }
    CHECK(value[126] == 448 && value[1] == ldexp(1, -9));
    uint64_t state = 3;
    int wrong = 0;
    for (int i = 0; i < 200000; i++) {
        uint32_t u = (uint32_t)test_random(&state);
        float f;
        if (i % 2) {                              /* at and beside the middle between two codes */
            float mid = (float)((value[u % 126] + value[u % 126 + 1]) / 2);
            memcpy(&u, &mid, sizeof u);
            u += (uint32_t)(i / 2 % 3) - 1;
        }
        memcpy(&f, &u, sizeof f);
        if (isnan(f)) continue;
        double mag = fabs((double)f);
        int at = 0;
        while (at < 126 && value[at + 1] <= mag) at++;
        if (at < 126 && (mag - value[at] > value[at + 1] - mag || (mag - value[at] == value[at + 1] - mag && at % 2))) at++;
        wrong += mx_f32_to_f8(f) != (at | (signbit(f) ? 128 : 0));
    }
    CHECK_MSG(wrong == 0, "%d of 200000 floats round to another code", wrong);
    CHECK(mx_f32_to_f8(INFINITY) == 126 && mx_f32_to_f8(-1e30f) == 254);
}

MX_TESTS(TEST(fp8_is_e4m3), TEST(all_up), TEST(all_down), TEST(random_down), TEST(nans), TEST(views), TEST(dtypes), TEST(sizes))
