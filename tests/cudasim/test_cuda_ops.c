/* test_cuda_ops.c - the CUDA kernels on the simulated device: the whole case table
 * against the reference; the same bits under every thread schedule, with lazy
 * streams, alone and in every batch; what kernels refuse. */
#include "cudasim.h"
#include "tests/cases.h"
#include "tests/test.h"

static uint64_t seed_of_run(void)
{
    const char *text = getenv("MX_TEST_SEED");
    return text ? strtoull(text, NULL, 0) : 20260117;
}

static mx_device *devs;
static int n_devs;

static mx_device *gpu(void)
{
    mx_error err = {0};
    if (!devs) CHECK_OK(mx_devices_open(&devs, &n_devs, &(mx_device_options){.cpu_threads = 1}, &err), err);
    return n_devs > 1 ? &devs[1] : NULL;
}

/* The expensive builds take every op, but not every large shape. */
static bool small_enough(const mx_case *c)
{
    if (!cudasim_is_checker() && !cudasim_is_asan()) return true;
    return (c->o < 10000 || c->n < 4) && c->c < 1100;
}

static void run_cases(uint64_t seed)
{
    mx_case_env env = {gpu(), &mx_kernels_cuda, seed, stdout};
    int ran = 0;
    for (int i = 0; i < mx_cases_count && env.dev; i++) {
        if (mx_cases[i].perf || !small_enough(&mx_cases[i])) continue;
        char name[200], text[1024];
        mx_case_name(&mx_cases[i], name, sizeof name);
        CHECK_MSG(mx_case_test(&env, &mx_cases[i]), "%s", name);
        CHECK_MSG(!cudasim_errors(text, sizeof text), "%s: %s", name, text);
        ran++;
    }
    printf("  %d cases, seed %llu, %lu launches, %lu accesses checked\n", ran, (unsigned long long)seed, cudasim_stats.launches,
           cudasim_stats.checked);
}

static void every_op_is_there(void)
{
#define X(name) CHECK(mx_kernels_cuda.name != NULL);
    MX_OPS(X)
#undef X
    CHECK(mx_kernels_cuda.weight_open && mx_kernels_cuda.weight_close);
}

static void cases_hold(void)
{
    run_cases(seed_of_run());
}

static void cases_hold_in_any_order_of_threads(void)
{
    cudasim_set_schedule(CUDASIM_REVERSE, 0);
    run_cases(seed_of_run() + 1);
    cudasim_set_schedule(CUDASIM_RANDOM, 7);
    cudasim_set_lazy(1);
    run_cases(seed_of_run() + 2);
    cudasim_set_lazy(0);
    cudasim_set_schedule(CUDASIM_FORWARD, 0);
}

static void closing(void)
{
    mx_devices_close(devs, n_devs);
    devs = NULL;
    CHECK_MSG(cudasim_stats.live == 0, "%zu bytes of device memory are still allocated", cudasim_stats.live);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {
        TEST(every_op_is_there), TEST(cases_hold), TEST(cases_hold_in_any_order_of_threads), TEST(closing),
    };
    cudasim_set_abort(0);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
