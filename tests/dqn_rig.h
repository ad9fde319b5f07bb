/* dqn_rig.h - what tests of learning to act share: a device, a folder of their own, numbers of a golden file. */
#ifndef MX_DQN_RIG_H
#define MX_DQN_RIG_H

#include "models/dqn_internal.h"
#include "tests/test.h"

#include <jansson.h>
#include <unistd.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds the tests for the simulated GPU */
#endif

static mx_device *devs;
static int n_devs;

static mx_device *device(void)
{
    mx_error err = {0};
    if (!devs) CHECK_OK(mx_devices_open(&devs, &n_devs, &(mx_device_options){.cpu_threads = 2}, &err), err);
    return devs + MX_TEST_DEVICE;
}

static void temporary(char path[64])
{
    snprintf(path, 64, "/tmp/merx-dqn-XXXXXX");
    CHECK(mkdtemp(path) != NULL);
}

static void remove_all(const char *path)
{
    char command[256];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    CHECK(system(command) == 0);
}

/* Numbers of a golden file, `width` to a row of `stride`. */
static void floats(const json_t *a, float *to, size_t stride, size_t width)
{
    for (size_t i = 0; i < json_array_size(a); i++) to[i / width * stride + i % width] = (float)json_number_value(json_array_get(a, i));
}

static void near_all(const char *what, const float *got, const json_t *want, double tolerance)
{
    double worst = 0, largest = 0;
    for (size_t i = 0; i < json_array_size(want); i++) {
        double w = json_number_value(json_array_get(want, i));
        worst = fmax(worst, fabs((double)got[i] - w));
        largest = fmax(largest, fabs(w));
    }
    CHECK_MSG(json_array_size(want) && worst <= tolerance * largest, "%s: off by %g of %g", what, worst, largest);
}

#endif
