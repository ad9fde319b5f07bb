/* test_ops.c - the CPU's kernels against the reference, and what ops.c refuses. */
#include "tests/cases.h"
#include "tests/test.h"

static uint64_t seed_of_run(void)
{
    const char *text = getenv("MX_TEST_SEED");
    return text ? strtoull(text, NULL, 0) : 20260117;
}

static mx_device *open_devices(int threads, int *count)
{
    mx_device *devs = NULL;
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = threads};
    CHECK_OK(mx_devices_open(&devs, count, &opt, &err), err);
    return devs;
}

static void cases_hold_for_one_two_and_three_threads(void)
{
    for (int threads = 1; threads <= 3; threads++) {
        int count = 0;
        mx_device *devs = open_devices(threads, &count);
        if (!devs) return;
        mx_case_env env = {&devs[0], &mx_kernels_cpu, seed_of_run() + (uint64_t)threads, stdout};
        CHECK(mx_cases_test(&env, NULL) == 0);
        mx_devices_close(devs, count);
    }
}

static void every_op_is_there_and_has_a_case(void)
{
#define X(name)                                                                            \
    do {                                                                                   \
        int found = 0;                                                                     \
        for (int i = 0; i < mx_cases_count; i++)                                           \
            found += !mx_cases[i].perf && strcmp(mx_cases[i].op, #name) == 0;              \
        CHECK_MSG(mx_kernels_cpu.name != NULL && found > 0, "%s: %d cases", #name, found); \
    } while (0);
    MX_OPS(X)
#undef X
    CHECK(mx_kernels_cpu.weight_open && mx_kernels_cpu.weight_close);
}

static void ones(const void *ctx, int64_t first, int64_t n, float *dst)
{
    (void)first;
    for (int64_t i = 0; i < n * *(const int64_t *)ctx; i++) dst[i] = 1;
}

/* A wrong shape marks the stream, and what follows does nothing. */
static void wrong_shapes_stick(void)
{
    int count = 0;
    mx_device *devs = open_devices(1, &count);
    if (!devs) return;
    mx_stream s;
    mx_weight w = {0};
    mx_error err = {0};
    float x[6] = {1, 2, 3, 4, 5, 6}, y[6] = {0};
    int32_t id = 2;
    int64_t cols = 3;
    mx_row_source src = {ones, &cols, 2, 3};
    mx_tensor none = {0}, t23 = mx_tensor_of(x, MX_F32, 2, 3), y22 = mx_tensor_of(y, MX_F32, 2, 2);
    CHECK_OK(mx_stream_open(&s, &devs[0], 4096, &err), err);
    CHECK_OK(mx_weight_open(&w, &devs[0], &src, 1, MX_F32, &err), err);
    mx_linear(&s, y22, t23, &w, none, MX_ACT_NONE, false);
    CHECK(mx_stream_sync(&s, &err) == MX_OK);
    CHECK(y[0] == 6 && y[3] == 15);
    mx_linear(&s, t23, y22, &w, none, MX_ACT_NONE, false);
    mx_add(&s, y22, y22, y22);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    CHECK_MSG(strncmp(err.text, "linear: ", 8) == 0, "%s", err.text);
    CHECK(y[0] == 6);
    mx_linear(&s, y22, t23, &w, none, MX_ACT_SILU, true);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    mx_embed(&s, mx_tensor_of(y, MX_F32, 1, 3), t23, mx_tensor_of(&id, MX_I32, 1, 1), false);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    CHECK_MSG(strstr(err.text, "id 2"), "%s", err.text);
    /* no rows: nothing to do, and nothing wrong */
    mx_linear(&s, mx_tensor_of(y, MX_F32, 0, 2), mx_tensor_of(x, MX_F32, 0, 3), &w, none, MX_ACT_NONE, false);
    mx_rms_norm(&s, mx_tensor_of(NULL, MX_F32, 0, 3), mx_tensor_of(NULL, MX_F32, 0, 3), mx_tensor_of(x, MX_F32, 1, 3), 0);
    CHECK(mx_stream_sync(&s, &err) == MX_OK);
    mx_weight_close(&w);
    CHECK(mx_weight_open(&w, &devs[0], &src, 1, MX_F16, &err) == MX_ERR_ARG);
    CHECK(mx_weight_open(&w, &devs[0], &src, 0, MX_F32, &err) == MX_ERR_ARG);
    src.cols = 65537;
    CHECK(mx_weight_open(&w, &devs[0], &src, 1, MX_F32, &err) == MX_ERR_ARG);
    mx_stream_close(&s);
    mx_devices_close(devs, count);
}

MX_TESTS(TEST(every_op_is_there_and_has_a_case), TEST(cases_hold_for_one_two_and_three_threads), TEST(wrong_shapes_stick))
