/* test_cuda_lost.c - a GPU that is lost while it generates: its requests end with
 * UNAVAILABLE, new ones hear the same at once, the CPU's go on, no page is lost, the
 * process lives.  And a failure that passes ends what it met and nothing else. */
#include "cudasim.h"
#include "models/generate.h"
#include "tests/test.h"

#include <sched.h>
#include <stdatomic.h>

enum { N = 6, PROMPT = 9, OUT = 24 };

typedef struct request {
    mx_generation *g;
    atomic_int done;
    mx_error err;
} request;

typedef struct rig {
    mx_device *devs;
    int n;
    mx_scheduler *sched;
    mx_generator *gpu, *cpu;
} rig;

static int32_t wanted[N][OUT];

static void on_done(mx_generation *g, const mx_error *err)
{
    request *q = mx_generation_user(g);
    q->err = *err;
    atomic_store(&q->done, 1);
}

static mx_status start(request *q, mx_generator *g, int i, mx_error *err)
{
    int32_t prompt[PROMPT];
    mx_sampling p = mx_sampling_defaults();
    mx_generation_calls calls = {NULL, on_done, q};
    for (int k = 0; k < PROMPT; k++) prompt[k] = (17 * k + 5 * i) % 131;
    p.max_tokens = OUT;
    p.ignore_eos = p.seeded = true;
    p.seed = (uint64_t)i;
    p.repetition_penalty = i % 2 ? 1.2f : 1;
    memset(q, 0, sizeof *q);
    MX_TRY(mx_generation_open(&q->g, g, prompt, PROMPT, &p, &calls, 0, err));
    return mx_generation_submit(q->g, err);
}

static bool rig_open(rig *r)
{
    mx_error err = {0};
    mx_generator_options o = mx_generator_defaults();
    o.kv_bytes = 1 << 18;
    *r = (rig){0};
    CHECK_OK(mx_devices_open(&r->devs, &r->n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    CHECK_OK(mx_scheduler_open(&r->sched, r->devs, r->n, NULL, &err), err);
    CHECK_OK(mx_generator_open(&r->gpu, "gpu", MX_SOURCE_DIR "/tests/golden/decoder/llama", r->devs, 1, r->sched, NULL, &o, &err), err);
    CHECK_OK(mx_generator_open(&r->cpu, "cpu", MX_SOURCE_DIR "/tests/golden/decoder/llama", r->devs, 0, r->sched, NULL, &o, &err), err);
    return !err.code;
}

static void rig_close(rig *r)
{
    mx_scheduler_close(r->sched, 10000);
    mx_generator *all[] = {r->gpu, r->cpu};
    for (int i = 0; i < 2; i++) {
        mx_generator_info info;
        mx_generator_info_get(all[i], &info);
        CHECK_MSG(info.kv_pages_free == info.kv_pages, "%s: %d of %d pages are free", info.name, info.kv_pages_free, info.kv_pages);
        mx_generator_close(all[i]);
    }
    mx_devices_close(r->devs, r->n);
    cudasim_errors(NULL, 0);             /* a new context */
    CHECK_MSG(cudasim_stats.live == 0, "%zu bytes of device memory are still allocated", cudasim_stats.live);
}

static int wait_for(request *q, int n)
{
    int failed = 0;
    for (int i = 0; i < n; i++) {
        while (!atomic_load(&q[i].done)) sched_yield();
        failed += q[i].err.code != MX_OK;
    }
    return failed;
}

static void same_as_wanted(const request *q, int i)
{
    const mx_candidate *c = mx_generation_candidate(q->g, 0);
    CHECK(c->n_ids == OUT && !memcmp(c->ids, wanted[i], sizeof wanted[i]));
}

/* The n-th call of the GPU fails, and if `lost` all that follow; true when there was such a call.  A copy that fails
 * is an illegal address, which stays too. */
static bool story(long nth, bool lose)
{
    rig r;
    request gpu[N] = {0}, cpu[2] = {0}, late = {0};
    mx_error err = {0};
    if (!rig_open(&r)) return false;
    cudasim_fail_at(0);
    if (lose) cudasim_lose_at(nth);
    else cudasim_fail_at(nth);
    int taken = 0;
    for (int i = 0; i < N; i++, taken++) {
        mx_status st = start(&gpu[i], r.gpu, i, &err);
        if (st) {
            CHECK_MSG(st == MX_ERR_UNAVAILABLE, "%s", err.text);
            break;
        }
    }
    for (int i = 0; i < 2; i++) CHECK_OK(start(&cpu[i], r.cpu, i, &err), err);
    int failed = wait_for(gpu, taken);
    bool hit = cudasim_fail_at(0) == 0;
    mx_lane_stats stats = {0};
    CHECK(mx_scheduler_stats(r.sched, "gpu.generate", &stats));
    bool lost = stats.lost > 0;
    CHECK_MSG(!lose || lost == (hit && (failed || taken < N)), "call %ld: lost %d", nth, lost);
    CHECK_MSG(wait_for(cpu, 2) == 0, "call %ld: %s", nth, cpu[0].err.text);
    for (int i = 0; i < 2; i++) same_as_wanted(&cpu[i], i);
    for (int i = 0; i < taken; i++) {
        if (!gpu[i].err.code) same_as_wanted(&gpu[i], i);
        else if (lost) CHECK_MSG(gpu[i].err.code == MX_ERR_UNAVAILABLE && strstr(gpu[i].err.text, "lost"), "call %ld: %s", nth, gpu[i].err.text);
    }
    mx_status st = start(&late, r.gpu, 0, &err);
    if (lost) {
        CHECK_MSG(st == MX_ERR_UNAVAILABLE && strstr(err.text, "lost"), "call %ld: status %d, %s", nth, st, err.text);
        CHECK(mx_scheduler_serves(r.sched, "") && mx_scheduler_serves(r.sched, "cpu.generate") && !mx_scheduler_serves(r.sched, "gpu.generate"));
    } else {
        CHECK_MSG(!st, "call %ld: %s", nth, err.text);
        if (!st && wait_for(&late, 1) == 0) same_as_wanted(&late, 0);
    }
    for (int i = 0; i < N; i++) mx_generation_close(gpu[i].g);
    for (int i = 0; i < 2; i++) mx_generation_close(cpu[i].g);
    mx_generation_close(late.g);
    rig_close(&r);
    return hit;
}

static void learn_what_is_wanted(void)
{
    rig r;
    request q;
    mx_error err = {0};
    if (!rig_open(&r)) return;
    for (int i = 0; i < N; i++) {
        CHECK_OK(start(&q, r.gpu, i, &err), err);
        CHECK(wait_for(&q, 1) == 0);
        memcpy(wanted[i], mx_generation_candidate(q.g, 0)->ids, sizeof wanted[i]);
        mx_generation_close(q.g);
    }
    rig_close(&r);
}

static void a_lost_device(void)
{
    int stories = 0;
    for (long n = 1; story(n, true) && stories < 30; n += 1 + n / 5) stories++;
    CHECK_MSG(stories >= 10, "%d stories", stories);
}

static void a_failure_that_passes(void)
{
    int stories = 0;
    for (long n = 1; story(n, false) && stories < 30; n += 1 + n / 5) stories++;
    CHECK_MSG(stories >= 10, "%d stories", stories);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {TEST(learn_what_is_wanted), TEST(a_lost_device), TEST(a_failure_that_passes)};
    cudasim_set_abort(0);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
