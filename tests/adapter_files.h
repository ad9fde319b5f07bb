/* adapter_files.h - adapters with seeded random numbers, saved as the trainer saves one. */
#ifndef MX_ADAPTER_FILES_H
#define MX_ADAPTER_FILES_H

#include "models/lm.h"
#include "tests/test.h"

#include <ftw.h>
#include <unistd.h>

static inline int adapter_remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

static inline void adapter_remove(const char *root)
{
    nftw(root, adapter_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* root/name, beside tests/golden/decoder/model; and root/name-merged, the model that both are. */
static inline void adapter_make(const char *root, const char *model, unsigned targets, int32_t rank, uint64_t seed, const char *name)
{
    char base[400], adapter[400], merged[400];
    mx_device_options opt = {.cpu_threads = 1};
    mx_device *devs = NULL;
    int n;
    mx_lm *lm = NULL;
    mx_error err = {0};
    mx_lm_options o = {.compute = MX_F32, .lora = {.rank = rank, .alpha = 2 * (float)rank, .targets = targets}};
    snprintf(base, sizeof base, MX_SOURCE_DIR "/tests/golden/decoder/%s", model);
    snprintf(adapter, sizeof adapter, "%s/%s", root, name);
    snprintf(merged, sizeof merged, "%s/%s-merged", root, name);
    CHECK_OK(mx_devices_open(&devs, &n, &opt, &err), err);
    CHECK_OK(mx_lm_open(&lm, devs, base, &o, &err), err);
    if (lm) {
        mx_params *p = mx_lm_params(lm);
        mx_learner l = mx_lm_learner(lm);
        for (int i = 0; i < p->n; i++) CHECK_OK(mx_params_init(p, i, 0.2f, seed, &err), err);
        CHECK_OK(mx_snapshot_prepare(adapter, &err), err);
        CHECK_OK(l.save(l.network, adapter, &err), err);
        mx_lm_close(lm);
        CHECK_OK(mx_lm_merge(devs, base, adapter, merged, &err), err);
    }
    mx_devices_close(devs, n);
}

#endif
