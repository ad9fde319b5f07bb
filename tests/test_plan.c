/* test_plan.c - what runs where, on machines we do not have. */
#include "runtime/plan.h"
#include "runtime/pool.h"
#include "tests/test.h"

#include <sched.h>

#define MACHINE(name) MX_SOURCE_DIR "/tests/topologies/" name ".xml"

static mx_topology *t;
static mx_plan p;
static mx_error err;

static void close_plan(void)
{
    mx_plan_free(&p);
    mx_topology_close(t);
    t = NULL;
}

static mx_status open_plan(const char *machine, const char *devices, int threads, int rpc)
{
    mx_plan_gpu gpus[16];
    CHECK_OK(mx_topology_open(&t, machine, &err), err);
    mx_plan_settings s = {.devices = devices, .threads = threads, .rpc_threads = rpc};
    return mx_plan_make(&p, t, gpus, mx_topology_accelerators(t, gpus, 16), &s, &err);
}

/* The plan in words: "cpu:0 serves 0-3 node 0; ..." and the processors of each RPC thread. */
static const char *words(void)
{
    static char text[4096];
    char list[200];
    size_t n = 0;
    for (int i = 0; i < p.n_devices; i++) {
        const mx_plan_device *d = &p.device[i];
        mx_plan_ranges(d->cpus, d->n_cpus, list, sizeof list);
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%s%s %d on %s node %d", i ? "; " : "", d->name, d->serves ? "" : " idle", d->n_cpus, list, d->node);
    }
    for (int i = 0; i < p.n_rpc; i++) {
        mx_plan_ranges(p.rpc[i].cpus, p.rpc[i].n_cpus, list, sizeof list);
        n += (size_t)snprintf(text + n, sizeof text - n, "; rpc %s over %s", p.device[p.rpc[i].device].name, list);
    }
    return text;
}

static void machines(void)
{
    static const struct { const char *machine, *devices; int threads, rpc; const char *want; } cases[] = {
        {"package:1 core:2 pu:1", "auto", 0, 0, "cpu 2 on 0-1 node 0; rpc cpu over 0-1"},
        {"package:1 core:2 pu:2", "auto", 0, 0, "cpu 2 on 0,2 node 0; rpc cpu over 1,3"},
        {"package:1 core:8 pu:2", "cpu", 4, 2, "cpu 4 on 0,2,4,6 node 0; rpc cpu over 1,3,5,7-15; rpc cpu over 1,3,5,7-15"},
        {"package:1 core:2 pu:1", "cpu", 5, 0, "cpu 5 on 0-1 node 0; rpc cpu over 0-1"},
        {"package:2 [numa] core:4 pu:1", "auto", 0, 0, "cpu 8 on 0-7 node -1; rpc cpu over 0-7; rpc cpu over 0-7"},
        {"package:2 [numa] core:4 pu:1", "cpu:numa", 0, 0,
         "cpu:0 4 on 0-3 node 0; cpu:1 4 on 4-7 node 1; rpc cpu:0 over 0-3; rpc cpu:1 over 4-7"},
        {"package:2 [numa] core:4 pu:1", "cpu:0-2,cpu:4-6", 0, 2,
         "cpu:0 3 on 0-2 node 0; cpu:1 3 on 4-6 node 1; rpc cpu:0 over 3; rpc cpu:1 over 7"},
        {"package:2 [numa] core:4 pu:1", "cpu:0-1,4-5,cpu:2", 0, 1, "cpu:0 4 on 0-1,4-5 node -1; cpu:1 1 on 2 node 0; rpc cpu:0 over 3,6-7"},
        {MACHINE("two_packages_four_gpus"), "auto", 0, 4,
         "cpu idle 8 on 0-7 node -1; cuda:0 1 on 0 node 0; cuda:1 1 on 1 node 0; cuda:2 1 on 4 node 1; cuda:3 1 on 5 node 1; "
         "rpc cuda:0 over 2-3,8-11; rpc cuda:1 over 2-3,8-11; rpc cuda:2 over 6-7,12-15; rpc cuda:3 over 6-7,12-15"},
        {MACHINE("two_packages_four_gpus"), "cuda:2", 0, 1,
         "cpu idle 8 on 0-7 node -1; cuda:0 idle 1 on 0 node 0; cuda:1 idle 1 on 0 node 0; cuda:2 1 on 4 node 1; cuda:3 idle 1 on 5 node 1; "
         "rpc cuda:2 over 5-7,12-15"},
        {MACHINE("two_packages_four_gpus"), "cpu:0-3,cuda:3", 0, 2,
         "cpu:0 4 on 0-3 node 0; cuda:0 idle 1 on 8 node 0; cuda:1 idle 1 on 8 node 0; cuda:2 idle 1 on 4 node 1; cuda:3 1 on 4 node 1; "
         "rpc cpu:0 over 8-11; rpc cuda:3 over 5-7,12-15"},
        {MACHINE("grace"), "auto", 0, 1, "cpu idle 72 on 0-71 node 0; cuda:0 1 on 0 node 0; rpc cuda:0 over 1-71"},
        {MACHINE("container"), "auto", 0, 0, "cpu 2 on 5,9 node 0; rpc cpu over 5,9"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_OK(open_plan(cases[i].machine, cases[i].devices, cases[i].threads, cases[i].rpc), err);
        CHECK_STR(words(), cases[i].want);
        close_plan();
    }
}

/* Eight GPUs: every worker has a core of its own on its GPU's side, and so have the RPC threads. */
static void dgx(void)
{
    CHECK_OK(open_plan(MACHINE("dgx"), "auto", 0, 0), err);
    CHECK(p.n_devices == 9 && p.n_rpc == 8 && !p.device[0].serves);
    bool taken[224] = {0};
    for (int g = 0; g < 8; g++) {
        const mx_plan_device *d = &p.device[1 + g];
        CHECK(d->serves && d->near && d->node == g / 4 && !taken[d->cpus[0]]);
        taken[d->cpus[0]] = true;
        CHECK(d->cpus[0] / 56 % 2 == g / 4);
    }
    for (int i = 0; i < 8; i++) {
        const mx_plan_rpc *r = &p.rpc[i];
        CHECK(r->device == 1 + i && r->n_cpus == 108);
        for (int k = 0; k < r->n_cpus; k++) CHECK(!taken[r->cpus[k]] && r->cpus[k] / 56 % 2 == i / 4);
    }
    close_plan();
}

static void refusals(void)
{
    static const struct { const char *devices, *word; } cases[] = {
        {"cpu:0-9", "processor 8"}, {"cpu:0-3,cpu:3", "twice"}, {"cpu:a", "range"}, {"cpu:3-1", "range"}, {"cpu:", "range"}, {"cpu:1-", "range"},
        {"cuda", "0 GPUs"}, {"cuda:0", "0 GPUs"}, {"gpu", "write auto"}, {"cpux", "write auto"}, {"a", "write auto"}, {",", "write auto"}, {"cpu,cpu:0", "beside"},
        {"cpu:0,cpu", "beside"}, {"cpu:numa,cpu", "beside"}, {"cpu:99999999999999", "range"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK_MSG(open_plan("package:2 [numa] core:4 pu:1", cases[i].devices, 0, 0) == MX_ERR_ARG && strstr(err.text, cases[i].word), "%s: %s",
                  cases[i].devices, err.text);
        CHECK(!p.device && !p.rpc);
        close_plan();
    }
    CHECK(open_plan("pu:2", "cpu", -1, 0) == MX_ERR_ARG && strstr(err.text, "threads"));
    close_plan();
    CHECK(open_plan("pu:2", "cpu", 0, 257) == MX_ERR_ARG && strstr(err.text, "rpc-threads"));
    close_plan();
    CHECK(open_plan(MACHINE("dgx"), "cuda:8", 0, 0) == MX_ERR_ARG && strstr(err.text, "8 GPUs"));
    close_plan();
}

static void pictures(void)
{
    static const char *const machines[] = {MACHINE("dgx"), MACHINE("grace"), MACHINE("container"), "package:2 [numa] core:4 pu:2"};
    for (int i = 0; i < 4; i++) {
        char *text = NULL;
        size_t size = 0;
        CHECK_OK(open_plan(machines[i], "auto", 0, 0), err);
        FILE *f = open_memstream(&text, &size);
        if (f) CHECK_OK(mx_plan_svg(&p, t, f, &err), err);
        if (f) fclose(f);
        CHECK(text && !strncmp(text, "<svg ", 5) && strstr(text, "</svg>"));
        int cells = 0;
        for (const char *at = text; at && (at = strstr(at, "rx=\"3\" fill")); at++) cells++;
        CHECK_MSG(cells >= mx_topology_pus(t), "%d of %d processors drawn", cells, mx_topology_pus(t));
        for (int d = 0; text && d < p.n_devices; d++) CHECK(strstr(text, p.device[d].name) != NULL);
        free(text);
        close_plan();
    }
}

/* The effect on this machine: a device's worker and threads stand where the plan says. */
static void this_machine(void)
{
    CHECK_OK(open_plan(NULL, "auto", 0, 0), err);
    printf("  %s\n", words());
    cpu_set_t old, now;
    CHECK(sched_getaffinity(0, sizeof old, &old) == 0);
    for (int i = 0; i < p.n_rpc; i++) {
        mx_thread_bind(p.rpc[i].cpus, p.rpc[i].n_cpus);
        CHECK(sched_getaffinity(0, sizeof now, &now) == 0 && CPU_COUNT(&now) == p.rpc[i].n_cpus && CPU_ISSET(p.rpc[i].cpus[0], &now));
    }
    CHECK(sched_setaffinity(0, sizeof old, &old) == 0);
    close_plan();
}

MX_TESTS(TEST(machines), TEST(dgx), TEST(refusals), TEST(pictures), TEST(this_machine))
