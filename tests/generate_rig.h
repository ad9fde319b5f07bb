/* generate_rig.h - a small network of tests/golden/decoder, ready to generate,
 * and requests to it that record what they were told. */
#ifndef MX_GENERATE_RIG_H
#define MX_GENERATE_RIG_H

#include "models/generate.h"
#include "tests/test.h"

#include <sched.h>
#include <stdatomic.h>

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE   0            /* tests/cudasim builds the tests for the simulated GPU */
#define MX_TEST_REQUESTS 10
#endif

enum { PROMPT = 29, VOCAB = 131, GREEDY = 64 };

typedef struct rig {
    mx_device *devs;
    int n_devs;
    mx_scheduler *sched;
    mx_generator *gen;
} rig;

/* What the callbacks said.  record: keep text, ids and logprobs of candidate 0. */
typedef struct request {
    mx_generation *g;
    atomic_int done;
    mx_error err;
    size_t streamed; /* bytes of text, all candidates          */
    bool record;
    char text[4096];
    int32_t ids[256];
    float lp[256], top_lp[256][MX_MAX_TOP_LOGPROBS];
    int32_t lp_id[256], top_id[256][MX_MAX_TOP_LOGPROBS], n_top[256];
    size_t upto[256]; /* streamed after call i                  */
    int n_ids, n_lp, calls;
    mx_finish finish;
} request;

static int32_t golden_ids[PROMPT + GREEDY];
static float golden_logits[PROMPT][VOCAB];

/* folder: where the model is, when it is not that of the golden */
static inline bool rig_open_at(rig *r, const char *model, const char *folder, const mx_generator_options *opt)
{
    mx_error err = {0};
    char path[512], *file = NULL;
    size_t len;
    mx_device_options dev = {.cpu_threads = 2};
    *r = (rig){0};
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/decoder/%s/golden.bin", model);
    CHECK_OK(mx_read_file(path, 1 << 20, &file, &len, &err), err);
    if (!file) return false;
    memcpy(golden_ids, file + 8, PROMPT * sizeof(int32_t));
    memcpy(golden_logits, file + 8 + 4 * PROMPT, sizeof golden_logits);
    memcpy(golden_ids + PROMPT, file + 8 + 4 * PROMPT + sizeof golden_logits + 4, GREEDY * sizeof(int32_t));
    free(file);
    if (!folder) {
        snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/decoder/%s", model);
        folder = path;
    }
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &dev, &err), err);
    CHECK_OK(mx_scheduler_open(&r->sched, r->devs, r->n_devs, NULL, &err), err);
    CHECK_OK(mx_generator_open(&r->gen, "tiny", folder, r->devs, MX_TEST_DEVICE, r->sched, NULL, opt, &err), err);
    return !err.code;
}

static inline bool rig_open(rig *r, const char *model, const mx_generator_options *opt)
{
    return rig_open_at(r, model, NULL, opt);
}

static inline mx_generator_info rig_close(rig *r)
{
    mx_generator_info info = {0};
    mx_scheduler_close(r->sched, 10000);
    if (r->gen) {
        mx_generator_info_get(r->gen, &info);
        CHECK_MSG(info.kv_pages_free == info.kv_pages, "%d of %d pages are free", info.kv_pages_free, info.kv_pages);
    }
    mx_generator_close(r->gen);
    mx_devices_close(r->devs, r->n_devs);
    return info;
}

static inline void rig_on_text(mx_generation *g, int index, const char *text, size_t len, const int32_t *ids,
                               int n_ids, const mx_token_logprob *lp, int n_lp, mx_finish finish)
{
    request *q = mx_generation_user(g);
    if (q->record && index == 0 && q->streamed + len < sizeof q->text && q->n_ids + n_ids <= 256 &&
        q->n_lp + n_lp <= 256) {
        if (len) memcpy(q->text + q->streamed, text, len);
        if (n_ids) memcpy(q->ids + q->n_ids, ids, (size_t)n_ids * sizeof *ids);
        for (int i = 0; i < n_lp; i++, q->n_lp++) {
            q->lp_id[q->n_lp] = lp[i].id;
            q->lp[q->n_lp] = lp[i].logprob;
            q->n_top[q->n_lp] = lp[i].n_top;
            for (int k = 0; k < lp[i].n_top; k++) {
                q->top_id[q->n_lp][k] = lp[i].top_id[k];
                q->top_lp[q->n_lp][k] = lp[i].top_logprob[k];
            }
        }
    }
    q->n_ids += n_ids;
    q->streamed += len;
    if (q->calls < 256) q->upto[q->calls] = q->streamed;
    q->calls++;
    q->finish = finish;
}

static inline void rig_on_done(mx_generation *g, const mx_error *err)
{
    request *q = mx_generation_user(g);
    q->err = *err;
    atomic_store(&q->done, 1);
}

static inline mx_status rig_start(rig *r, request *q, const int32_t *ids, int n, const mx_sampling *p)
{
    mx_error err = {0};
    mx_generation_calls calls = {rig_on_text, rig_on_done, q};
    memset(q, 0, sizeof *q);
    q->record = p->n == 1;
    mx_status st = mx_generation_open(&q->g, r->gen, ids, n, p, &calls, 0, &err);
    if (!st) st = mx_generation_submit(q->g, &err);
    CHECK_MSG(!st, "%s", err.text);
    return st;
}

static inline void rig_wait(request *q)
{
    while (!atomic_load(&q->done)) sched_yield();
    CHECK_MSG(!q->err.code, "%s", q->err.text);
}

/* Start and wait; NULL when the request was refused or failed. */
static inline const mx_candidate *rig_generate(rig *r, request *q, const int32_t *ids, int n, const mx_sampling *p)
{
    if (rig_start(r, q, ids, n, p)) return NULL;
    rig_wait(q);
    return q->err.code ? NULL : mx_generation_candidate(q->g, 0);
}

#endif
