/* test_cuda_device.c - runtime/device_cuda.cu on the simulated device: memory,
 * staging, order, errors that stick, failures at every call, no driver. */
#include "cudasim.h"
#include "kernels/ops.h"
#include "runtime/device_cuda.h"
#include "runtime/scheduler.h"
#include "tests/test.h"

#include <cuda_runtime.h>
#include <sched.h>

static mx_device *devs;
static int n_devs;

static mx_device *gpu(void)
{
    mx_error err = {0};
    if (!devs) CHECK_OK(mx_devices_open(&devs, &n_devs, &(mx_device_options){.cpu_threads = 1}, &err), err);
    return &devs[1];
}

static void table(void)
{
    mx_device *d = gpu();
    CHECK(n_devs == 2 && d->kind == MX_CUDA && d->index == 0 && d->memory > 0 && !d->pool);
    CHECK_STR(d->name, "cudasim cuda:0");
    CHECK_STR(d->pci, "0000:65:00.0");
    static const struct { const char *name; int index; } names[] = {
        {"auto", 1}, {"cpu", 0}, {"cuda", 1}, {"cuda:0", 1}, {"cuda:1", -1}, {"cuda:", -1}, {"cuda:x", -1}, {"cudax", -1}, {"gpu", -1}, {"", -1},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        int at = -1;
        mx_error why = {0};
        bool ok = !mx_device_find(devs, n_devs, names[i].name, &at, &why);
        CHECK_MSG(ok == (names[i].index >= 0) && (!ok || at == names[i].index), "device \"%s\": %d, %s", names[i].name, at, why.text);
    }
    cudasim_set_devices(0);                              /* no driver: the CPU alone */
    mx_device *others = NULL;
    int n = 0;
    mx_error err = {0};
    CHECK_OK(mx_devices_open(&others, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    CHECK(n == 1 && others->kind == MX_CPU);
    int at = -1;
    CHECK(!mx_device_find(others, n, "auto", &at, &err) && at == 0 && mx_device_find(others, n, "cuda", &at, &err) == MX_ERR_ARG);
    mx_devices_close(others, n);
    cudasim_set_devices(3);                              /* lists of them */
    CHECK_OK(mx_devices_open(&others, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    static const struct { const char *names; int n, first, second; } lists[] = {
        {"auto", 1, 1, 0}, {"cpu", 1, 0, 0}, {"cuda:2", 1, 3, 0}, {"cuda:2,0", 2, 3, 1}, {"cuda:0,1,2", 3, 1, 2},
        {"cuda:0,0", 0, 0, 0}, {"cuda:0,3", 0, 0, 0}, {"cuda:0,", 0, 0, 0}, {"cuda:,1", 0, 0, 0}, {"cuda:0;1", 0, 0, 0}, {"cpu,cuda:0", 0, 0, 0},
        {"cuda:-1", 0, 0, 0}, {"cuda: 1", 0, 0, 0}, {"cuda:99999999999999999999", 0, 0, 0},
    };
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        int all[4] = {0}, found = 0;
        bool ok = !mx_devices_find(others, n, lists[i].names, all, &found, &err);
        CHECK_MSG(ok == (lists[i].n > 0) && (!ok || (found == lists[i].n && all[0] == lists[i].first && (found < 2 || all[1] == lists[i].second))),
                  "\"%s\": %d devices, %d, %d", lists[i].names, found, all[0], all[1]);
    }
    CHECK(mx_device_find(others, n, "cuda:1,2", &at, &err) == MX_ERR_ARG && strstr(err.text, "one device"));
    mx_devices_close(others, n);
    cudasim_set_devices(1);
}

/* Sizes about the ring's segment, and larger than the ring; lazily, so that reuse before a copy is done would show. */
static void what_goes_up_comes_down(void)
{
    static const size_t sizes[] = {1, 3, 4096, (1 << 20) - 1, 1 << 20, (1 << 20) + 5, 3 << 20, (5 << 20) + 12345};
    cudasim_set_lazy(1);
    cudasim_set_schedule(CUDASIM_RANDOM, 11);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mx_stream s;
        mx_buffer b;
        mx_error err = {0};
        size_t n = sizes[i];
        uint64_t state = i;
        unsigned char *up = malloc(n), *down = malloc(n), zero = 0;
        CHECK_OK(mx_buffer_open(&b, gpu(), n, &err), err);
        CHECK((uintptr_t)b.base % 256 == 0);
        CHECK_OK(mx_stream_open(&s, gpu(), 0, &err), err);
        gpu()->ops->download(&s, down, b.base, n);
        CHECK_OK(mx_stream_sync(&s, &err), err);
        for (size_t k = 0; k < n; k++) zero |= down[k];
        CHECK(!zero);
        for (size_t k = 0; k < n; k++) up[k] = (unsigned char)test_random(&state);
        gpu()->ops->upload(&s, b.base, up, n);
        memset(up, 0, n / 2);                            /* the caller's memory is its own again */
        gpu()->ops->download(&s, down, b.base, n);
        CHECK_OK(mx_stream_sync(&s, &err), err);
        state = i;
        size_t bad = 0;
        for (size_t k = 0; k < n; k++) bad += down[k] != (unsigned char)test_random(&state);
        CHECK_MSG(!bad, "%zu bytes: %zu differ", n, bad);
        for (int k = 0; k < 200; k++) {                  /* many small ones between two syncs */
            gpu()->ops->upload(&s, b.base, &k, n < sizeof k ? n : sizeof k);
            gpu()->ops->download(&s, down + (n < sizeof k ? 0 : k % (int)(n / sizeof k) * (int)sizeof k), b.base, n < sizeof k ? n : sizeof k);
        }
        gpu()->ops->clear(&s, b.base, n);
        gpu()->ops->download(&s, up, b.base, 1);
        CHECK_OK(mx_stream_sync(&s, &err), err);
        CHECK(up[0] == 0 && (n < 4 || !memcmp(down + 199 % (int)(n / 4) * 4, &(int){199}, 4)));
        mx_stream_close(&s);
        mx_buffer_close(&b);
        free(up), free(down);
    }
    cudasim_set_lazy(0);
    cudasim_set_schedule(CUDASIM_FORWARD, 0);
}

/* An id outside the table is seen on the device and told at the sync; what follows runs as if nothing had been. */
static void faults_are_told_once(void)
{
    mx_stream s;
    mx_error err = {0};
    CHECK_OK(mx_stream_open(&s, gpu(), 1 << 20, &err), err);
    float table_rows[6] = {1, 2, 3, 4, 5, 6}, got[6] = {0};
    int32_t ids[3] = {1, 7, 0};
    mx_tensor t = mx_stream_upload(&s, MX_F32, 2, 3, table_rows), id = mx_stream_upload(&s, MX_I32, 3, 1, ids);
    mx_tensor y = mx_stream_tensor(&s, MX_F32, 3, 3);
    mx_embed(&s, y, t, id, false);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    CHECK_MSG(strstr(err.text, "id 7 of row 1"), "%s", err.text);
    mx_embed(&s, mx_tensor_rows(y, 0, 1), t, mx_tensor_rows(id, 0, 1), false);
    gpu()->ops->download(&s, got, y.data, 3 * sizeof *got);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    CHECK(got[0] == 4 && got[2] == 6);
    /* a sticky error: nothing runs until the sync */
    unsigned long launches = cudasim_stats.launches;
    mx_add(&s, y, t, t);
    mx_embed(&s, y, t, id, false);
    gpu()->ops->upload(&s, y.data, got, sizeof got);
    CHECK(cudasim_stats.launches == launches && mx_stream_sync(&s, &err) == MX_ERR_ARG);
    mx_kv kv = {t.data, t.data, MX_F32, 2, 1, 1, 3};
    int32_t slot = 2, from_to[2] = {0, -1}, page = 9, at[2] = {0, 0};
    mx_kv_write(&s, &kv, mx_tensor_rows(y, 0, 1), mx_tensor_rows(y, 0, 1), mx_stream_upload(&s, MX_I32, 1, 1, &slot));
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "slot 2 of row 0"));
    mx_kv_copy(&s, &kv, mx_stream_upload(&s, MX_I32, 1, 2, from_to));
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "page -1"));
    mx_attention_paged(&s, mx_tensor_rows(y, 0, 1), mx_tensor_rows(y, 1, 1), &kv, mx_stream_upload(&s, MX_I32, 1, 1, &page),
                       mx_stream_upload(&s, MX_I32, 1, 2, at), 1, 1, 0);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "page 9"));
    at[0] = 1;
    mx_attention_paged(&s, mx_tensor_rows(y, 0, 1), mx_tensor_rows(y, 1, 1), &kv, mx_stream_upload(&s, MX_I32, 1, 1, &page),
                       mx_stream_upload(&s, MX_I32, 1, 2, at), 1, 1, 0);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "no such sequence"));
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
}

/* y = x + x, then y = softmax's choice: a section of two ops. */
static void section_of_two(mx_stream *s, int key, mx_tensor x, mx_tensor y, mx_tensor id, const mx_sample_row *row)
{
    if (mx_stream_section(s, &key, sizeof key)) return;
    mx_add(s, y, x, x);
    mx_sample(s, id, y, row, NULL);
    mx_stream_section_end(s);
}

/* The first time as it comes, the second time recorded, then replayed: the same bits from new contents. */
static void sections_are_recorded_and_replayed(void)
{
    enum { V = 37 };
    mx_stream s;
    mx_buffer b, other;
    mx_error err = {0};
    CHECK_OK(mx_stream_open(&s, gpu(), 1 << 16, &err), err);
    CHECK_OK(mx_buffer_open(&b, gpu(), 1000, &err), err);
    for (int lazy = 0; lazy < 2; lazy++) {
        cudasim_set_lazy(lazy);
        mx_sample_row row = {.temperature = 0};
        unsigned long graphs = cudasim_stats.graphs, replays = cudasim_stats.replays, launches = cudasim_stats.launches;
        for (int turn = 0; turn < 12; turn++) {
            float x[V], y[V];
            int32_t id = -7;
            for (int i = 0; i < V; i++) x[i] = (float)((i * 31 + turn * 17) % V);
            if (turn == 8) {                                     /* memory goes back: what was recorded is forgotten */
                CHECK_OK(mx_buffer_open(&other, gpu(), 100, &err), err);
                mx_buffer_close(&other);
            }
            mx_stream_rewind(&s);
            mx_tensor tx = mx_stream_upload(&s, MX_F32, 1, V, x), ty = mx_stream_tensor(&s, MX_F32, 1, V), ti = mx_stream_tensor(&s, MX_I32, 1, 1);
            section_of_two(&s, 2 * lazy + (turn == 5), tx, ty, ti, mx_sample_rows(&s, &row, 1));
            gpu()->ops->download(&s, y, ty.data, sizeof y);
            gpu()->ops->download(&s, &id, ti.data, sizeof id);
            CHECK_OK(mx_stream_sync(&s, &err), err);
            for (int i = 0; i < V; i++) CHECK_MSG(y[i] == 2 * x[i], "turn %d: y[%d]", turn, i);
            CHECK_MSG(id >= 0 && x[id] == V - 1, "turn %d: chosen %d", turn, id);
        }
        CHECK_MSG(cudasim_stats.graphs - graphs == 2, "%lu were recorded", cudasim_stats.graphs - graphs);
        CHECK_MSG(cudasim_stats.replays - replays == 9, "%lu were replayed", cudasim_stats.replays - replays);
        CHECK(cudasim_stats.launches - launches == 12 * 2);
    }
    cudasim_set_lazy(0);
    /* what may not stand in a section is told, and the section is not kept */
    mx_stream_rewind(&s);
    mx_tensor t = mx_stream_tensor(&s, MX_F32, 4, 4);
    float host[16] = {0};
    for (int turn = 0, key = 100; turn < 4; turn++) {
        bool replayed = mx_stream_section(&s, &key, sizeof key);
        CHECK(!replayed);
        mx_add(&s, t, t, t);
        gpu()->ops->upload(&s, t.data, host, sizeof host);
        mx_stream_section_end(&s);
        mx_status st = mx_stream_sync(&s, &err);
        CHECK(turn == 0 ? st == MX_OK : st == MX_ERR_INTERNAL && strstr(err.text, "an upload inside"));
    }
    char long_key[MX_SECTION_KEY + 1] = {0};
    CHECK(!mx_stream_section(&s, long_key, sizeof long_key) && !mx_stream_section(&s, long_key, sizeof long_key));
    for (int key = 1000; key < 1300; key++)                      /* more than are remembered */
        for (int turn = 0; turn < 3; turn++)
            if (!mx_stream_section(&s, &key, sizeof key)) {
                mx_add(&s, t, t, t);
                mx_stream_section_end(&s);
            }
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
    mx_buffer_close(&b);
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
}

/* A lane that doubles a number; what its stream's priority is. */
typedef struct doubler {
    int        priority, turns;
    float      x;
    atomic_int done;
} doubler;

static void double_it(void *model, mx_stream *s, mx_job **jobs, int n)
{
    doubler *d = model;
    CHECK(cudaStreamGetPriority((cudaStream_t)mx_cuda_queue(s), &d->priority) == cudaSuccess);
    mx_tensor x = mx_stream_upload(s, MX_F32, 1, 1, &d->x);
    mx_add(s, x, x, x);
    s->dev->ops->download(s, &d->x, x.data, sizeof d->x);
    mx_error err = {0};
    CHECK_OK(mx_stream_sync(s, &err), err);
    d->turns++;
    for (int i = 0; i < n; i++) jobs[i]->verdict = d->turns < 20 ? MX_AGAIN : MX_DONE;
}

typedef struct doubling { mx_job job; doubler *d; } doubling;

static void doubled(mx_job *job) { atomic_store(&((doubling *)job)->d->done, 1); }

/* The turns of an express lane are issued by a worker of its own, on a stream of the highest priority. */
static void express_lanes_go_before(void)
{
    mx_scheduler *s = NULL;
    mx_error err = {0};
    doubler slow = {.x = 1}, quick = {.x = 3};
    gpu();
    CHECK_OK(mx_scheduler_open(&s, devs, n_devs, NULL, &err), err);
    mx_lane_config c = {.name = "slow", .device = 1, .max_jobs = 1, .max_rows = 1, .run = double_it, .model = &slow, .scratch_bytes = 1024, .queue_limit = 1};
    CHECK_OK(mx_scheduler_lane(s, &c, &err), err);
    c.name = "quick", c.model = &quick, c.express = true;
    CHECK_OK(mx_scheduler_lane(s, &c, &err), err);
    doubling a = {.job = {.rows = 1, .done = doubled}, .d = &slow}, b = {.job = {.rows = 1, .done = doubled}, .d = &quick};
    CHECK_OK(mx_scheduler_submit(s, "slow", &a.job, &err), err);
    CHECK_OK(mx_scheduler_submit(s, "quick", &b.job, &err), err);
    while (!atomic_load(&slow.done) || !atomic_load(&quick.done)) sched_yield();
    int least = 9, greatest = 9;
    CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest) == cudaSuccess && greatest < least);
    CHECK_MSG(slow.priority == least && quick.priority == greatest, "priorities %d and %d", slow.priority, quick.priority);
    CHECK(slow.turns == 20 && quick.turns == 20 && slow.x == 0x1p20f && quick.x == 3 * 0x1p20f);
    mx_scheduler_close(s, 1000);
}

static void ones(const void *ctx, int64_t first, int64_t n, float *dst)
{
    (void)first;
    for (int64_t i = 0; i < n * *(const int64_t *)ctx; i++) dst[i] = 1;
}

/* Open, load, multiply, choose, close, while the n-th CUDA call fails. */
static bool story(long fail_at)
{
    mx_device *mine = NULL;
    int n = 0;
    mx_error err = {0};
    mx_stream s = {0};
    mx_buffer b = {0};
    mx_weight w[3] = {{0}};
    int64_t cols = 65;
    mx_row_source src = {ones, &cols, 33, 65};
    float x[2 * 65] = {1}, y[2 * 33];
    int32_t id[2];
    mx_sample_row rows[2] = {{.temperature = 1, .top_p = 1, .typical_p = 1, .uniform = 0.5}, {.temperature = 0}};
    bool ok = false;
    cudasim_fail_at(fail_at);
    if (mx_devices_open(&mine, &n, &(mx_device_options){.cpu_threads = 1}, &err)) return false;
    if (n < 2 || mx_buffer_open(&b, &mine[1], 1000, &err) || mx_stream_open(&s, &mine[1], 1 << 16, &err)) goto done;
    for (int i = 0; i < 3; i++)
        if (mx_weight_open(&w[i], &mine[1], &src, 1, i == 0 ? MX_F32 : i == 1 ? MX_BF16 : MX_I8, &err)) goto done;
    mx_tensor tx = mx_stream_upload(&s, MX_F32, 2, 65, x), ty = mx_stream_tensor(&s, MX_F32, 2, 33), none = {0};
    mx_tensor chosen = mx_stream_tensor(&s, MX_I32, 2, 1);
    const mx_sample_row *placed = mx_sample_rows(&s, rows, 2);
    for (int turn = 0; turn < 3; turn++) {
        if (mx_stream_section(&s, "turn", 4)) continue;
        for (int i = 0; i < 3; i++) mx_linear(&s, ty, tx, &w[i], none, MX_ACT_GELU_TANH, false);
        mx_sample(&s, chosen, ty, placed, NULL);
        mx_stream_section_end(&s);
    }
    mine[1].ops->download(&s, y, ty.data, sizeof y);
    mine[1].ops->download(&s, id, chosen.data, sizeof id);
    ok = !mx_stream_sync(&s, &err);
    if (ok) CHECK(id[0] >= 0 && fabsf(y[0] - 0.841192f) < 1e-2f);
done:
    if (!ok && n >= 2) CHECK_MSG(err.code && err.text[0], "call %ld: an error without words", fail_at);
    for (int i = 0; i < 3; i++) mx_weight_close(&w[i]);
    mx_stream_close(&s);
    mx_buffer_close(&b);
    mx_devices_close(mine, n);
    return ok && n == 2;
}

static void any_call_may_fail(void)
{
    int failed = 0, calls = 0;
    for (long left = 0; !left && calls < 2000;) {
        calls++;
        failed += !story(calls);
        left = cudasim_fail_at(0);                       /* > 0: the story has fewer calls */
        if (cudasim_errors(NULL, 0)) CHECK_MSG(false, "call %d: misuse after a failure", calls);
        CHECK_MSG(cudasim_stats.live == 0, "call %d: %zu bytes are lost", calls, cudasim_stats.live);
        if (cudasim_stats.live) break;
    }
    printf("  %d calls, %d of them end the story\n", calls, failed);
    CHECK(failed > 20 && story(0));
}

static void closing(void)
{
    mx_devices_close(devs, n_devs);
    devs = NULL;
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
    CHECK_MSG(cudasim_stats.live == 0, "%zu bytes of device memory are still allocated", cudasim_stats.live);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {
        TEST(table), TEST(what_goes_up_comes_down), TEST(faults_are_told_once), TEST(sections_are_recorded_and_replayed), TEST(express_lanes_go_before), TEST(closing), TEST(any_call_may_fail),
    };
    cudasim_set_abort(0);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
