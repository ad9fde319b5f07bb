/* ops.c - the op table from the command line.
 *
 *     ops_cases test|grad|perf|list [FILTER] [--threads N] [--device auto|cpu|cuda:N] [--cudnn]
 *
 * FILTER is a part of a case's printed name.  MX_TEST_SEED sets the seed.  --cudnn: attention
 * of training goes through cuDNN. */
#include "tests/cases.h"

#include <stdlib.h>
#include <string.h>

static int usage(void)
{
    fputs("usage: ops_cases test|grad|perf|list [FILTER] [--threads N] [--device NAME] [--cudnn]\n", stderr);
    return 2;
}

int main(int argc, char **argv)
{
    const char *mode = NULL, *filter = NULL, *device = "cpu", *seed = getenv("MX_TEST_SEED");
    mx_device_options opt = {.bind = true, .spin_us = 50};
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) opt.cpu_threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "--device") == 0 && i + 1 < argc) device = argv[++i];
        else if (strcmp(argv[i], "--cudnn") == 0) opt.cudnn = MX_CUDNN_ON;
        else if (!mode) mode = argv[i];
        else if (!filter) filter = argv[i];
        else return usage();
    }
    if (!mode) return usage();
    if (strcmp(mode, "list") == 0) {
        mx_cases_list(stdout, filter);
        return 0;
    }
    mx_device *devs = NULL;
    mx_error err = {0};
    int count = 0, at, bad;
    if (mx_devices_open(&devs, &count, &opt, &err)) {
        fprintf(stderr, "ops_cases: %s\n", err.text);
        return 1;
    }
    if (mx_device_find(devs, count, device, &at, &err)) {
        fprintf(stderr, "ops_cases: %s\n", err.text);
        mx_devices_close(devs, count);
        return 1;
    }
    const mx_kernels *kernels = &mx_kernels_cpu;
#ifdef MX_WITH_CUDA
    if (devs[at].kind == MX_CUDA) kernels = &mx_kernels_cuda;
#endif
    fprintf(stderr, "ops_cases: %s\n", devs[at].name);
    mx_case_env env = {&devs[at], kernels, seed ? strtoull(seed, NULL, 0) : 1, stdout, 0};
    if (strcmp(mode, "test") == 0) bad = mx_cases_test(&env, filter);
    else if (strcmp(mode, "grad") == 0) bad = mx_cases_grad(&env, filter);
    else if (strcmp(mode, "perf") == 0) bad = mx_cases_perf(&env, filter);
    else bad = usage();
    if (bad < 0) fputs("ops_cases: no case has that in its name\n", stderr);
    mx_devices_close(devs, count);
    return bad != 0;
}
