/* test_replicas.c - one model on two CPU devices: the same texts as on one, weights shared, work on both. */
#include "tests/generate_rig.h"

#include "runtime/topology.h"

enum { N = 24 };

/* Two devices of a processor each; false: this machine has one. */
static bool open_two(mx_device **devs, int *n, mx_error *err)
{
    mx_topology *t = NULL;
    mx_plan plan = {0};
    char words[64];
    CHECK_OK(mx_topology_open(&t, NULL, err), *err);
    bool two = t && mx_topology_pus(t) >= 2;
    if (two) {
        const mx_processor *u = mx_topology_processors(t);
        snprintf(words, sizeof words, "cpu:%d,cpu:%d", u[0].os, u[1].os);
        mx_plan_settings s = {.devices = words};
        CHECK_OK(mx_plan_make(&plan, t, NULL, 0, &s, err), *err);
        CHECK_OK(mx_devices_open(devs, n, &(mx_device_options){.bind = true, .plan = &plan}, err), *err);
        CHECK(*n == 2 && (*devs)[1].serves && (*devs)[1].pool != (*devs)[0].pool);
    }
    mx_plan_free(&plan);
    mx_topology_close(t);
    return two;
}

/* True when two texts overlapped: a device has one place, so they ran on two. */
static bool texts(rig *r, char out[N][512])
{
    static request q[N];
    mx_sampling p = mx_sampling_defaults();
    p.max_tokens = 24;
    p.seeded = true;
    for (int i = 0; i < N; i++) {
        p.seed = (uint64_t)i;
        p.temperature = i % 2 ? 0 : 1;
        rig_start(r, &q[i], golden_ids + i % 5, 18, &p);
    }
    uint64_t from[N], to[N];
    for (int i = 0; i < N; i++) {
        while (!atomic_load(&q[i].done)) sched_yield();
        const mx_job *job = mx_generation_job(q[i].g);
        from[i] = job->started_ns, to[i] = job->done_ns;
        CHECK_MSG(!q[i].err.code, "%s", q[i].err.text);
        snprintf(out[i], 512, "%s", mx_generation_candidate(q[i].g, 0)->text);
        mx_generation_close(q[i].g);
    }
    bool both = false;
    for (int i = 0; i < N; i++)
        for (int k = 0; k < i; k++) both |= from[i] < to[k] && from[k] < to[i];
    return both;
}

static void same_texts(void)
{
    static char alone[N][512], shared[N][512];
    mx_error err = {0};
    rig one, two = {0};
    mx_generator_options o = mx_generator_defaults();
    o.max_num_seqs = 1;
    if (!rig_open(&one, "llama", &o)) return;
    CHECK_MSG(!texts(&one, alone), "two texts at once in one place");
    mx_generator_info single = rig_close(&one);
    if (!open_two(&two.devs, &two.n_devs, &err)) {
        TEST_SKIP("a second processor");
        return;
    }
    CHECK_OK(mx_scheduler_open(&two.sched, two.devs, 2, NULL, &err), err);
    CHECK_OK(mx_generator_open(&two.gen, "tiny", MX_SOURCE_DIR "/tests/golden/decoder/llama", two.devs, 0, two.sched, NULL, &o, &err), err);
    CHECK_OK(mx_generator_replicate(two.gen, two.devs, 1, &err), err);
    bool both = false;                /* on a busy machine one device may be done before the other wakes */
    int rounds = 0;
    for (; !both && rounds < 100; rounds++) {
        both = texts(&two, shared);
        for (int i = 0; i < N; i++) CHECK_STR(shared[i], alone[i]);
    }
    CHECK_MSG(both, "two texts never ran at once");
    mx_generator_info info = rig_close(&two);
    CHECK(info.replicas == 2 && info.weight_bytes == single.weight_bytes && info.kv_pages == 2 * single.kv_pages);
    CHECK(info.output_tokens == rounds * single.output_tokens && info.prompt_tokens == rounds * single.prompt_tokens);
}

MX_TESTS(TEST(same_texts))
