/* test_cudasim.c - the simulator itself: what it runs right, which planted bugs
 * each build finds, streams, events, graphs, guards, launch limits. */
#include "bugs.h"
#include "cudasim.h"
#include "tests/test.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N = 200, RUNS = 6 };

/* x[i] = i + 1/2 */
static int run(sim_bug_kind which, int mode, unsigned seed, float *out)
{
    float x[256], *dx = NULL, *dy = NULL;
    for (int i = 0; i < 256; i++) x[i] = (float)i + 0.5f;
    cudasim_set_schedule(mode, seed);
    cudaMalloc((void **)&dx, N * 4);
    cudaMalloc((void **)&dy, N * 4);
    cudaMemcpy(dx, x, N * 4, cudaMemcpyHostToDevice);
    cudaMemset(dy, 0, N * 4);
    if (which == BUG_used_after_free) cudaFree(dx);
    sim_bug(NULL, which, dy, which == BUG_host_pointer ? x : dx, N);
    cudaDeviceSynchronize();
    int found = cudasim_errors(NULL, 0);
    cudaMemcpy(out, dy, N * 4, cudaMemcpyDeviceToHost);
    if (which != BUG_used_after_free) cudaFree(dx);
    cudaFree(dy);
    cudasim_set_schedule(CUDASIM_FORWARD, 0);
    return found;
}

enum { NOTHING = 0, REPORTED = 1, ORDER = 2, NOT_A_NUMBER = 4, SANITIZER = 8 };

/* In a child, because a sanitizer ends the process: how the bug shows under six schedules. */
static int how_found(sim_bug_kind which)
{
    fflush(stdout);
    pid_t p = fork();
    if (p == 0) {
        static float out[RUNS][N];
        int how = NOTHING;
        freopen("/dev/null", "w", stderr);
        for (int r = 0; r < RUNS; r++) {
            if (run(which, r < 2 ? r : CUDASIM_RANDOM, (unsigned)r, out[r])) how |= REPORTED;
            if (memcmp(out[r], out[0], sizeof out[r])) how |= ORDER;
            for (int i = 0; i < N; i++) how |= isnan(out[r][i]) ? NOT_A_NUMBER : 0;
        }
        _exit(how);
    }
    int status = 0;
    waitpid(p, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) < 8 ? WEXITSTATUS(status) : SANITIZER;
}

static void planted_bugs_are_found(void)
{
    enum { P = 1, A = 2, C = 4 };                           /* the builds that must find it: plain, asan, check */
    static const struct { sim_bug_kind which; const char *name; int builds; } bugs[] = {
        {BUG_right_block, "right, with a barrier", 0}, {BUG_right_warp, "right, with __syncwarp", 0},
        {BUG_right_ticket, "right, last block adds", 0}, {BUG_global_past_end, "global, one past the end", A | C},
        {BUG_global_before_start, "global, before the start", A | C}, {BUG_shared_past_end, "static shared, past the end", A | C},
        {BUG_dynamic_past_end, "dynamic shared, past the end", A | C}, {BUG_no_barrier, "no barrier", P | A | C},
        {BUG_no_barrier_in_loop, "no barrier at a loop's end", P | A | C}, {BUG_no_syncwarp, "no __syncwarp", P | A | C},
        {BUG_return_before_barrier, "return before a barrier", P | A | C}, {BUG_two_barriers, "a barrier in each branch", P | A | C},
        {BUG_shuffle_in_branch, "full shuffle in a branch", P | A | C}, {BUG_lost_update, "sum without an atomic", C},
        {BUG_shared_not_written, "shared, not written", P | A | C}, {BUG_misaligned, "float4 misaligned", A | C},
        {BUG_async_without_wait, "cp.async without wait", P | A | C}, {BUG_ticket_without_fence, "ticket without fence", C},
        {BUG_host_pointer, "host pointer", C}, {BUG_used_after_free, "used after free", A | C},
    };
    int me = cudasim_is_checker() ? C : cudasim_is_asan() ? A : P;
    for (size_t i = 0; i < sizeof bugs / sizeof *bugs; i++) {
        int how = how_found(bugs[i].which);
        printf("  %-28s%s%s%s%s%s\n", bugs[i].name, how ? "" : " -", how & REPORTED ? " reported" : "", how & ORDER ? " order" : "",
               how & NOT_A_NUMBER ? " NaN" : "", how & SANITIZER ? " sanitizer" : "");
        if (bugs[i].builds & me) CHECK_MSG(how, "%s is not found", bugs[i].name);
        if (!bugs[i].builds) CHECK_MSG(!how, "%s is accused: %d", bugs[i].name, how);
    }
}

static float bf16(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    u &= 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}

static void product_of(sim_bug_kind which, int K)
{
    float out[N], x[N];
    for (int i = 0; i < N; i++) x[i] = which == BUG_mma_bf16 ? bf16((float)i + 0.5f) : (float)i + 0.5f;
    CHECK(run(which, CUDASIM_RANDOM, 3, out) == 0);
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            double sum = 1 + (r / 8) * 2 + c % 2;
            for (int k = 0; k < K; k++) sum += (double)x[(r * K + k) % N] * (double)x[(k + 3 * c) % N];
            CHECK_MSG(fabs((double)out[r * 8 + c] - sum) <= 1e-6 * sum, "%d,%d: %g, want %g", r, c, (double)out[r * 8 + c], sum);
        }
}

static void matrix_instructions_are_products(void)
{
    product_of(BUG_mma_bf16, 16);
    product_of(BUG_mma_tf32, 8);
}

/* ---- streams ------------------------------------------------------------------------------------- */

/* Upload on one stream, reverse and download on another; right only if an event orders them. */
static int pipeline(int lazy, int with_event, unsigned seed)
{
    cudaStream_t s1, s2;
    cudaEvent_t e;
    float *h, *r, *dx, *dy;
    int ok = 1;
    cudasim_set_lazy(lazy);
    cudasim_set_schedule(seed ? CUDASIM_RANDOM : CUDASIM_FORWARD, seed);
    cudaStreamCreateWithFlags(&s1, cudaStreamNonBlocking);
    cudaStreamCreateWithFlags(&s2, cudaStreamNonBlocking);
    cudaEventCreateWithFlags(&e, cudaEventDisableTiming);
    cudaHostAlloc((void **)&h, N * 4, 0);
    cudaHostAlloc((void **)&r, N * 4, 0);
    cudaMalloc((void **)&dx, N * 4);
    cudaMalloc((void **)&dy, N * 4);
    for (int i = 0; i < N; i++) h[i] = (float)i;
    cudaMemcpyAsync(dx, h, N * 4, cudaMemcpyHostToDevice, s1);
    cudaEventRecord(e, s1);
    if (with_event) cudaStreamWaitEvent(s2, e, 0);
    sim_bug(s2, BUG_right_block, dy, dx, N);
    cudaMemcpyAsync(r, dy, N * 4, cudaMemcpyDeviceToHost, s2);
    cudaStreamSynchronize(s2);
    for (int i = 0; i < N; i++) ok &= r[i] == (float)(N - 1 - i);
    cudaDeviceSynchronize();
    cudaFree(dx);
    cudaFree(dy);
    cudaFreeHost(h);
    cudaFreeHost(r);
    cudaStreamDestroy(s1);
    cudaStreamDestroy(s2);
    cudaEventDestroy(e);
    cudasim_set_lazy(0);
    cudasim_set_schedule(CUDASIM_FORWARD, 0);
    cudasim_errors(NULL, 0);
    return ok;
}

static void lazy_streams_find_a_missing_event(void)
{
    CHECK(pipeline(0, 0, 0));
    CHECK(!pipeline(1, 0, 0));
    for (unsigned seed = 0; seed < 20; seed++) CHECK(pipeline(1, 1, seed));
}

static void graphs_replay(void)
{
    float h[N], r[N], *dx, *dy;
    cudaStream_t s;
    cudaGraph_t g;
    cudaGraphExec_t x;
    cudasim_set_lazy(1);
    cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
    cudaMalloc((void **)&dx, N * 4);
    cudaMalloc((void **)&dy, N * 4);
    unsigned long launches = cudasim_stats.launches;
    cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
    sim_bug(s, BUG_right_block, dy, dx, N);
    CHECK(cudaStreamEndCapture(s, &g) == cudaSuccess && cudaGraphInstantiate(&x, g, 0) == cudaSuccess);
    CHECK(cudasim_stats.launches == launches);
    for (int k = 0; k < 3; k++) {
        int ok = 1;
        for (int i = 0; i < N; i++) h[i] = (float)(i * i + k);
        cudaMemcpyAsync(dx, h, N * 4, cudaMemcpyHostToDevice, s);
        cudaGraphLaunch(x, s);
        cudaMemcpyAsync(r, dy, N * 4, cudaMemcpyDeviceToHost, s);
        cudaStreamSynchronize(s);
        for (int i = 0; i < N; i++) ok &= r[i] == h[N - 1 - i];
        CHECK(ok);
    }
    cudaGraphExecDestroy(x);
    cudaGraphDestroy(g);
    cudaStreamDestroy(s);
    cudaFree(dx);
    cudaFree(dy);
    cudasim_set_lazy(0);
    CHECK(cudasim_errors(NULL, 0) == 0);
}

static sigjmp_buf jump;

static void caught(int s)
{
    (void)s;
    siglongjmp(jump, 1);
}

static void host_code_may_not_touch_device_memory(void)
{
    if (cudasim_is_asan()) return;                           /* has its own handler */
    float *d, h = 2;
    volatile int faulted = 1;
    cudaMalloc((void **)&d, 64);
    cudaMemcpy(d, &h, sizeof h, cudaMemcpyHostToDevice);
    cudasim_set_guard(1);
    struct sigaction on = {.sa_handler = caught, .sa_flags = SA_NODEFER}, old;
    sigaction(SIGSEGV, &on, &old);
    if (!sigsetjmp(jump, 1)) {
        volatile float f = d[0];
        (void)f;
        faulted = 0;
    }
    sigaction(SIGSEGV, &old, NULL);
    CHECK(faulted);
    h = 0;
    cudaMemcpy(&h, d, sizeof h, cudaMemcpyDeviceToHost);
    CHECK(h == 2);
    cudasim_set_guard(0);
    cudaFree(d);
}

static void wrong_calls_are_refused(void)
{
    float *d, h[256];
    char text[512];
    cudaMalloc((void **)&d, 256);
    cudaMemcpy(d, h, sizeof h, cudaMemcpyHostToDevice);
    CHECK(cudasim_errors(text, sizeof text) == 1);
    CHECK_MSG(strstr(text, "not inside a live device allocation"), "%s", text);
    cudaMemcpy(h, d, 64, cudaMemcpyHostToDevice);
    CHECK(cudasim_errors(text, sizeof text) >= 1 && strstr(text, "direction"));
    cudaFree(d);
    cudaFree(d);
    CHECK(cudasim_errors(text, sizeof text) == 1 && strstr(text, "not a live allocation"));
    sim_bug(NULL, BUG_dynamic_past_end, d, d, 100000);       /* 400 KB of shared memory */
    CHECK(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {
        TEST(planted_bugs_are_found), TEST(matrix_instructions_are_products), TEST(lazy_streams_find_a_missing_event), TEST(graphs_replay),
        TEST(host_code_may_not_touch_device_memory), TEST(wrong_calls_are_refused),
    };
    cudasim_set_abort(0);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
