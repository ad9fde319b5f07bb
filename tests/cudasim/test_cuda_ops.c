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

/* MX_TEST_CASES: names of ops, and nothing else runs (mutate.py).  The expensive
 * builds take every op, but not every large shape. */
static bool selected(const mx_case *c)
{
    const char *only = getenv("MX_TEST_CASES");
    if (c->perf || (only && !strstr(only, c->op))) return false;
    if (!cudasim_is_checker() && !cudasim_is_asan()) return true;
    return (c->o < 10000 || c->n < 4) && c->c < 1100;
}

/* Widths that leave one element to the last group of four, rows that lie one after the other. */
static const mx_case more[] = {
    {.op = "norm", .n = 5, .c = 65, .bias = true}, {.op = "norm", .n = 3, .c = 261}, {.op = "rms_norm", .n = 3, .c = 65},
    {.op = "add", .n = 3, .c = 65}, {.op = "activate", .n = 3, .c = 65, .act = MX_ACT_SILU},
    {.op = "gated", .n = 3, .c = 65, .act = MX_ACT_SILU}, {.op = "norm_back", .n = 9, .c = 65, .bias = true},
    {.op = "embed", .n = 5, .c = 65, .o = 7}, {.op = "linear", .n = 17, .c = 65, .o = 65, .type = MX_I8},
    {.op = "linear", .n = 70, .c = 65, .o = 65, .type = MX_I8, .bias = true}, {.op = "cross_entropy", .n = 40, .o = 9, .flag = true},
    {.op = "embed_back", .n = 600, .c = 33, .o = 3},
    {.op = "attention_paged", .n = 5, .heads = 2, .groups = 1, .c = 64, .page = 16, .context = 600},
    {.op = "attention_paged", .n = 40, .heads = 4, .groups = 4, .c = 16, .page = 16, .context = 600, .flag = true},
    {.op = "attention_paged", .n = 3, .heads = 9, .groups = 1, .c = 200, .page = 16, .context = 97, .type = MX_BF16},
};
enum { MORE = sizeof more / sizeof *more };

static const mx_case *case_at(int i)
{
    return i < mx_cases_count ? &mx_cases[i] : &more[i - mx_cases_count];
}

static void run_cases(uint64_t seed)
{
    mx_case_env env = {.dev = gpu(), .kernels = &mx_kernels_cuda, .seed = seed, .out = stdout};
    int ran = 0;
    for (int i = 0; i < mx_cases_count + MORE && env.dev; i++) {
        const mx_case *c = case_at(i);
        if (!selected(c)) continue;
        char name[200], text[1024];
        mx_case_name(c, name, sizeof name);
        CHECK_MSG(mx_case_test(&env, c), "%s", name);
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
    if (!cudasim_is_checker()) run_cases(seed_of_run());
}

static void cases_hold_in_any_order_of_threads(void)
{
    if (cudasim_is_asan()) return;
    if (!cudasim_is_checker()) {
        cudasim_set_schedule(CUDASIM_REVERSE, 0);
        run_cases(seed_of_run() + 1);
    }
    cudasim_set_schedule(CUDASIM_RANDOM, 7);
    cudasim_set_lazy(1);
    run_cases(seed_of_run() + 2);
    cudasim_set_lazy(0);
    cudasim_set_schedule(CUDASIM_FORWARD, 0);
}

/* Without the library: our own tiles; and with one whose fused GELU is coarse. */
static void products_hold_without_the_library(void)
{
    static const char *const how[] = {"no library", "coarse GELU"};
    for (int k = 0; k < 2; k++) {
        mx_device *mine = NULL;
        int n = 0;
        mx_error err = {0};
        if (k == 0) cudasim_set_blaslt(0);
        else cudasim_set_coarse_gelu(1);
        CHECK_OK(mx_devices_open(&mine, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
        unsigned long matmuls = cudasim_stats.matmuls;
        for (int i = 0; i < mx_cases_count && n > 1; i++) {
            const mx_case *c = &mx_cases[i];
            mx_case_env env = {.dev = &mine[1], .kernels = &mx_kernels_cuda, .seed = seed_of_run(), .out = stdout};
            if (selected(c) && (!strcmp(c->op, "linear") || !strncmp(c->op, "product", 7))) CHECK_MSG(mx_case_test(&env, c), "%s: case %d", how[k], i);
        }
        if (!getenv("MX_TEST_CASES")) CHECK((cudasim_stats.matmuls == matmuls) == (k == 0));
        mx_devices_close(mine, n);
        cudasim_set_blaslt(1);
        cudasim_set_coarse_gelu(0);
    }
    CHECK(cudasim_errors(NULL, 0) == 0);
}

/* Training's attention through cuDNN: asked for; when it is quicker; when it is not; when it is not there. */
static void attention_holds_through_cudnn(void)
{
    static const struct { mx_cudnn how; bool there; long cost; bool used; } ways[] = {
        {MX_CUDNN_ON, true, 0, true}, {MX_CUDNN_AUTO, true, -1000000, true}, {MX_CUDNN_AUTO, true, 1000000, false}, {MX_CUDNN_ON, false, 0, false},
    };
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        mx_device *mine = NULL;
        int n = 0;
        mx_error err = {0};
        char text[512];
        if ((cudasim_is_checker() || cudasim_is_asan()) && k > 0) break;
        cudasim_set_cudnn(ways[k].there);
        cudasim_set_cudnn_cost(ways[k].cost);
        CHECK_OK(mx_devices_open(&mine, &n, &(mx_device_options){.cpu_threads = 1, .cudnn = ways[k].how}, &err), err);
        for (int i = 0; i < mx_cases_count && n > 1; i++) {
            const mx_case *c = &mx_cases[i];
            char name[200];
            mx_case_env env = {.dev = &mine[1], .kernels = &mx_kernels_cuda, .seed = seed_of_run(), .out = stdout};
            if (!selected(c) || c->type != MX_BF16 || (k && c->n != 23) || (strcmp(c->op, "attention") && strcmp(c->op, "attention_back"))) continue;
            mx_case_name(c, name, sizeof name);
            CHECK_MSG(mx_case_test(&env, c), "way %zu: %s", k, name);       /* a class is opened here */
            unsigned long fused = cudasim_stats.fused;
            cudasim_set_lazy(1);
            CHECK_MSG(mx_case_test(&env, c), "way %zu, again: %s", k, name);
            cudasim_set_lazy(0);
            CHECK_MSG((cudasim_stats.fused > fused) == (ways[k].used && !c->window && c->c <= 128), "way %zu: %s", k, name);
            CHECK_MSG(!cudasim_errors(text, sizeof text), "way %zu, %s: %s", k, name, text);
        }
        mx_devices_close(mine, n);
    }
    cudasim_set_cudnn(1);
    cudasim_set_cudnn_cost(0);
}

/* A call that fails anywhere on the way to a plan costs that pass at most. */
static void attention_goes_on_when_cudnn_fails(void)
{
    static const mx_case c = {.op = "attention_back", .n = 23, .heads = 4, .groups = 2, .c = 13, .context = 11, .type = MX_BF16};
    FILE *nowhere = fopen("/dev/null", "we");
    for (long nth = 10; nth < 170 && nowhere && !cudasim_is_checker(); nth += 30) {
        mx_device *mine = NULL;
        int n = 0;
        mx_error err = {0};
        CHECK_OK(mx_devices_open(&mine, &n, &(mx_device_options){.cpu_threads = 1, .cudnn = MX_CUDNN_ON}, &err), err);
        mx_case_env env = {.dev = &mine[n - 1], .kernels = &mx_kernels_cuda, .seed = seed_of_run(), .out = nowhere};
        cudasim_fail_at(nth);
        mx_case_test(&env, &c);
        CHECK_MSG(cudasim_fail_at(0) <= 0, "call %ld never came", nth);
        env.out = stdout;
        CHECK_MSG(mx_case_test(&env, &c), "after call %ld failed", nth);
        mx_devices_close(mine, n);
    }
    if (nowhere) fclose(nowhere);
    CHECK(cudasim_errors(NULL, 0) == 0);
}

/* ---- the invariance rule -------------------------------------------------------------------- */

enum { ROWS = 67, GAP = 5 };

static uint64_t state = 42;

static float *randoms(int64_t n)
{
    float *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; p && i < n; i++) p[i] = (float)((double)(int64_t)test_random(&state) * 0x1p-62);
    return p;
}

/* On the device: rows one after the other, or apart and not aligned. */
static mx_tensor put(mx_stream *s, const float *host, int64_t rows, int64_t cols, bool apart)
{
    mx_tensor t = mx_stream_tensor(s, MX_F32, rows, cols + GAP + 1);
    t.cols = cols;
    t.stride = apart ? cols + GAP : cols;
    if (apart) t.data = (float *)t.data + 1;
    for (int64_t r = 0; r < rows && host; r++)
        s->dev->ops->upload(s, (float *)t.data + r * t.stride, host + r * cols, (size_t)cols * sizeof *host);
    return t;
}

static void get(mx_stream *s, float *host, mx_tensor t)
{
    for (int64_t r = 0; r < t.rows; r++)
        s->dev->ops->download(s, host + r * t.cols, (float *)t.data + r * t.stride, (size_t)t.cols * sizeof *host);
}

typedef struct row_op {
    const char   *name;
    int64_t       c, o;
    mx_dtype      type;
    mx_activation act;
    const float  *weight;
} row_op;

static void read_weight(const void *ctx, int64_t first, int64_t n, float *dst)
{
    const row_op *op = ctx;
    memcpy(dst, op->weight + first * op->c, (size_t)(n * op->c) * sizeof *dst);
}

static void run(mx_stream *s, const row_op *op, const mx_weight *w, const float *x, const float *vec, int64_t n, bool apart, float *y)
{
    mx_error err = {0};
    mx_tensor in = put(s, x, n, op->c, apart), out = put(s, NULL, n, op->o, apart);
    mx_tensor gain = put(s, vec, 1, op->o, false);
    if (w) mx_linear(s, out, in, w, gain, op->act, false);
    else if (!strcmp(op->name, "norm")) mx_norm(s, out, in, gain, gain, 1e-5f);
    else if (!strcmp(op->name, "rms_norm")) mx_rms_norm(s, out, in, gain, 1e-5f);
    else if (!strcmp(op->name, "add")) mx_add(s, out, in, in);
    else if (!strcmp(op->name, "activate")) mx_activate(s, out, in, op->act);
    else if (!strcmp(op->name, "gated")) mx_gated(s, out, in, op->act);
    else {
        int32_t at[ROWS];
        for (int i = 0; i < ROWS; i++) at[i] = 17;
        mx_activate(s, out, in, MX_ACT_NONE);
        mx_rope(s, out, mx_stream_upload(s, MX_I32, n, 1, at), put(s, vec, 1, op->o / 2, false), 1, 1, false);
    }
    get(s, y, out);
    CHECK_OK(mx_stream_sync(s, &err), err);
    mx_stream_rewind(s);
}

static void row_op_is_invariant(const row_op *op)
{
    static const int64_t batches[] = {1, 3, 16, 17, ROWS};
    row_op o = *op;
    mx_stream s;
    mx_weight w = {0};
    mx_error err = {0};
    bool weighted = !strcmp(op->name, "linear");
    float *x = randoms(ROWS * op->c), *vec = randoms(op->o), *want = malloc(ROWS * (size_t)op->o * sizeof *want), *y = malloc(ROWS * (size_t)op->o * sizeof *y);
    float *weight = weighted ? randoms(op->o * op->c) : NULL;
    o.weight = weight;
    mx_row_source src = {read_weight, &o, op->o, op->c};
    CHECK_OK(mx_stream_open(&s, gpu(), 16 << 20, &err), err);
    if (weighted) CHECK_OK(mx_weight_open(&w, gpu(), &src, 1, op->type, &err), err);
    for (int64_t r = cudasim_is_checker() || cudasim_is_asan() ? ROWS - 20 : 0; r < ROWS; r++) run(&s, &o, weighted ? &w : NULL, x + r * op->c, vec, 1, false, want + r * op->o);
    for (size_t b = 0; b < 2 * sizeof batches / sizeof *batches; b++) {
        int64_t n = batches[b / 2], first = ROWS - n;
        if (n > 20 && (cudasim_is_checker() || cudasim_is_asan())) continue;
        run(&s, &o, weighted ? &w : NULL, x + first * op->c, vec, n, b % 2, y);
        CHECK_MSG(!memcmp(y, want + first * op->o, (size_t)(n * op->o) * sizeof *y), "%s %s [%lld,%lld]: a batch of %lld%s", op->name,
                  mx_dtype_name(op->type), (long long)op->c, (long long)op->o, (long long)n, b % 2 ? ", rows apart" : "");
    }
    mx_weight_close(&w);
    mx_stream_close(&s);
    free(x), free(vec), free(want), free(y), free(weight);
}

static void rows_do_not_depend_on_the_batch(void)
{
    static const row_op ops[] = {
        {"norm", 771, 771, MX_F32, MX_ACT_NONE, NULL},      {"norm", 64, 64, MX_F32, MX_ACT_NONE, NULL},
        {"rms_norm", 579, 579, MX_F32, MX_ACT_NONE, NULL},  {"add", 68, 68, MX_F32, MX_ACT_NONE, NULL},
        {"activate", 68, 68, MX_F32, MX_ACT_SILU, NULL},    {"activate", 67, 67, MX_F32, MX_ACT_GELU_TANH, NULL},
        {"gated", 264, 132, MX_F32, MX_ACT_SILU, NULL},     {"gated", 262, 131, MX_F32, MX_ACT_SILU, NULL},
        {"rope", 136, 136, MX_F32, MX_ACT_NONE, NULL},
        {"linear", 67, 131, MX_F32, MX_ACT_GELU_TANH, NULL}, {"linear", 128, 64, MX_F32, MX_ACT_NONE, NULL},
        {"linear", 67, 131, MX_BF16, MX_ACT_SILU, NULL},    {"linear", 128, 64, MX_BF16, MX_ACT_RELU, NULL},
        {"linear", 67, 131, MX_I8, MX_ACT_GELU_TANH, NULL}, {"linear", 300, 64, MX_I8, MX_ACT_NONE, NULL},
        {"linear", 67, 131, MX_F8, MX_ACT_GELU_TANH, NULL}, {"linear", 300, 64, MX_F8, MX_ACT_NONE, NULL},
        {"linear", 1, 1, MX_F32, MX_ACT_NONE, NULL},
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) row_op_is_invariant(&ops[i]);
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
}

enum { LENGTH = 301, HEADS = 6, GROUPS = 2, DIM = 40, WIDE = HEADS * DIM, KVW = GROUPS * DIM };

/* Rows `first`.. of one sequence in chunks of `chunk` beside a stranger, with pages of `page`; y[LENGTH, WIDE]. */
static void tell(const float *q, const float *k, const float *v, mx_dtype type, int window, int from, int chunk, int page, float *y)
{
    mx_stream s;
    mx_buffer memory;
    mx_error err = {0};
    int per = (LENGTH + page - 1) / page, pages = 2 * per, last = from - 1;
    int32_t list[2 * LENGTH], at[2 * (LENGTH + 1)], slots[LENGTH];
    size_t half = (size_t)pages * GROUPS * (size_t)page * DIM * mx_dtype_size(type);
    CHECK_OK(mx_stream_open(&s, gpu(), 16 << 20, &err), err);
    CHECK_OK(mx_buffer_open(&memory, gpu(), 2 * half, &err), err);
    mx_kv kv = {memory.base, (char *)memory.base + half, type, pages, page, GROUPS, DIM};
    for (int i = 0; i < pages; i++) list[i] = (i * 7 + 3) % pages;           /* 7 and the counts have no common part */
    for (int i = 0; i < LENGTH; i++) slots[i] = list[per + i / page] * page + i % page;
    mx_kv_write(&s, &kv, put(&s, k, LENGTH, KVW, true), put(&s, v, LENGTH, KVW, true), mx_stream_upload(&s, MX_I32, LENGTH, 1, slots));
    slots[0] = list[0] * page;
    mx_kv_write(&s, &kv, put(&s, k, 1, KVW, false), put(&s, v, 1, KVW, false), mx_stream_upload(&s, MX_I32, 1, 1, slots));
    for (int first = from; first < LENGTH; first = last + 1) {
        last = first + chunk < LENGTH ? first + chunk - 1 : LENGTH - 1;
        int n = last - first + 1;
        size_t used = s.scratch_used;
        for (int i = 0; i <= n; i++) {
            at[2 * i] = i ? 1 : 0;
            at[2 * i + 1] = i ? first + i - 1 : 0;
        }
        mx_tensor in = mx_stream_tensor(&s, MX_F32, n + 1, WIDE), out = put(&s, NULL, n + 1, WIDE, chunk % 2);
        s.dev->ops->upload(&s, in.data, q, WIDE * sizeof *q);
        s.dev->ops->upload(&s, (float *)in.data + WIDE, q + first * WIDE, (size_t)n * WIDE * sizeof *q);
        mx_attention_paged(&s, out, in, &kv, mx_stream_upload(&s, MX_I32, 2, per, list), mx_stream_upload(&s, MX_I32, n + 1, 2, at), HEADS, 0.3f,
                           window);
        get(&s, y + first * WIDE, mx_tensor_rows(out, 1, n));
        CHECK_OK(mx_stream_sync(&s, &err), err);
        s.scratch_used = used;
    }
    mx_buffer_close(&memory);
    mx_stream_close(&s);
}

static void attention_does_not_depend_on_chunks_or_pages(void)
{
    static const struct { int chunk, page; } ways[] = {{3, 16}, {8, 16}, {29, 5}, {LENGTH, 16}, {LENGTH, 100}};
    bool slow = cudasim_is_checker() || cudasim_is_asan();
    int from = slow ? LENGTH - 20 : LENGTH - 60;
    float *y = malloc(LENGTH * WIDE * sizeof *y), *want = malloc(LENGTH * WIDE * sizeof *want);
    float *q = randoms(LENGTH * WIDE), *k = randoms(LENGTH * KVW), *v = randoms(LENGTH * KVW);
    for (int kind = 0; kind < 5; kind++) {
        mx_dtype type = kind == 1 ? MX_F16 : kind == 2 ? MX_BF16 : kind == 4 ? MX_F8 : MX_F32;
        int window = kind == 3 ? 70 : 0;
        tell(q, k, v, type, window, from, 1, 16, want);
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            tell(q, k, v, type, window, from, ways[w].chunk, ways[w].page, y);
            CHECK_MSG(!memcmp(y + from * WIDE, want + from * WIDE, (size_t)(LENGTH - from) * WIDE * sizeof *y), "%s, window %d: chunks of %d, pages of %d",
                      mx_dtype_name(type), window, ways[w].chunk, ways[w].page);
        }
    }
    free(y), free(want), free(q), free(k), free(v);
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
}

/* Sequences packed from row `first` on, their y, lse, dq, dk, dv one after the other in out. */
static void attend_packed(mx_stream *s, const float *const in[4], const int32_t *begin, int spans, mx_attention_shape a, int d, float *out)
{
    mx_error err = {0};
    int first = begin[0], n = begin[spans] - first, h = a.heads * d, g = a.kv_heads * d;
    int32_t own[8];
    for (int i = 0; i <= spans; i++) own[i] = begin[i] - first;
    mx_tensor q = put(s, in[0] + first * h, n, h, true), k = put(s, in[1] + first * g, n, g, false), v = put(s, in[2] + first * g, n, g, true);
    mx_tensor dy = put(s, in[3] + first * h, n, h, false), y = put(s, NULL, n, h, true), lse = put(s, NULL, n, a.heads, false);
    mx_tensor dq = put(s, NULL, n, h, true), dk = put(s, NULL, n, g, false), dv = put(s, NULL, n, g, false);
    mx_tensor at = mx_stream_upload(s, MX_I32, spans + 1, 1, own);
    mx_attention(s, y, lse, q, k, v, at, a);
    mx_attention_back(s, dq, dk, dv, dy, q, k, v, y, lse, at, a);
    mx_tensor all[] = {y, lse, dq, dk, dv};
    for (int i = 0; i < 5; i++) {
        get(s, out, all[i]);
        out += n * all[i].cols;
    }
    CHECK_OK(mx_stream_sync(s, &err), err);
    mx_stream_rewind(s);
}

static void packed_attention_does_not_depend_on_the_batch(void)
{
    static const struct { int heads, groups, d, window; bool causal; } ways[] = {{2, 1, 40, 0, true}, {2, 2, 64, 0, false}, {2, 2, 24, 29, true}, {3, 1, 64, 45, false}};
    static const int32_t begin[] = {0, 37, 38, 150, 214};
    enum { SPANS = 4, N = 214 };
    mx_stream s;
    mx_error err = {0};
    CHECK_OK(mx_stream_open(&s, gpu(), 16 << 20, &err), err);
    for (size_t i = 0; i < 2 * sizeof ways / sizeof *ways; i++) {
        int h = ways[i / 2].heads, g = ways[i / 2].groups, d = ways[i / 2].d, cols[] = {h * d, h, h * d, g * d, g * d}, wide = 0;
        mx_attention_shape a = {.heads = h, .kv_heads = g, .scale = 0.4f, .causal = ways[i / 2].causal, .window = ways[i / 2].window, .as = i % 2 ? MX_BF16 : MX_F32};
        if ((cudasim_is_checker() || cudasim_is_asan()) && i < 6) continue;
        for (int k = 0; k < 5; k++) wide += cols[k];
        float *q = randoms(N * h * d), *kk = randoms(N * g * d), *v = randoms(N * g * d), *dy = randoms(N * h * d);
        const float *const in[4] = {q, kk, v, dy};
        float *together = malloc((size_t)(N * wide) * sizeof *together), *alone = malloc((size_t)(N * wide) * sizeof *alone);
        attend_packed(&s, in, begin, SPANS, a, d, together);
        for (int b = 0; b < SPANS; b++) {
            int n = begin[b + 1] - begin[b];
            const float *x = together, *y = alone;
            attend_packed(&s, in, begin + b, 1, a, d, alone);
            for (int k = 0; k < 5; x += N * cols[k], y += n * cols[k], k++)
                CHECK_MSG(!memcmp(x + begin[b] * cols[k], y, (size_t)(n * cols[k]) * sizeof *x), "way %d, sequence %d: output %d", (int)i, b, k);
        }
        free(q), free(kk), free(v), free(dy), free(together), free(alone);
    }
    mx_stream_close(&s);
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
}

static void a_draw_does_not_depend_on_the_batch(void)
{
    enum { V = 1003, N = 9 };
    mx_stream s;
    mx_error err = {0};
    float *logits = randoms(N * V), lp[N], one_lp;
    mx_sample_row rows[N];
    int32_t batch[N], one;
    for (int r = 0; r < N; r++)
        rows[r] = (mx_sample_row){.temperature = r % 5 ? 0.3f + 0.2f * (float)r : 0, .top_k = r % 3 ? 0 : 40, .top_p = r % 2 ? 0.8f : 1,
                                  .typical_p = r % 7 ? 1 : 0.5f, .repetition_penalty = 1, .uniform = (r + 0.5) / N};
    CHECK_OK(mx_stream_open(&s, gpu(), 1 << 20, &err), err);
    for (int r = -1; r < N; r++) {
        int64_t n = r < 0 ? N : 1;
        mx_tensor x = put(&s, logits + (r < 0 ? 0 : r) * V, n, V, r >= 0), id = mx_stream_tensor(&s, MX_I32, n, 1), p = mx_stream_tensor(&s, MX_F32, n, 1);
        mx_sample(&s, id, x, mx_sample_rows(&s, &rows[r < 0 ? 0 : r], n), NULL);
        mx_logprobs(&s, p, id, (mx_tensor){0}, (mx_tensor){0}, x);
        s.dev->ops->download(&s, r < 0 ? batch : &one, id.data, (size_t)n * 4);
        s.dev->ops->download(&s, r < 0 ? lp : &one_lp, p.data, (size_t)n * 4);
        CHECK_OK(mx_stream_sync(&s, &err), err);
        if (r >= 0) CHECK_MSG(one == batch[r] && !memcmp(&one_lp, &lp[r], sizeof one_lp), "row %d: %d alone, %d in the batch", r, one, batch[r]);
        mx_stream_rewind(&s);
    }
    mx_stream_close(&s);
    free(logits);
}

/* ---- tensors that end where their memory ends --------------------------------------------------- */

typedef struct exact {
    mx_stream s;
    mx_buffer b[64];
    int       n;
} exact;

/* Contiguous, filled with 0.1, 0.2 ...; `ids`: 0, 1, 2 .. below 3. */
static mx_tensor tight(exact *e, mx_dtype type, int64_t rows, int64_t cols)
{
    mx_error err = {0};
    size_t n = (size_t)(rows * cols);
    mx_buffer *b = &e->b[e->n++];
    CHECK_OK(mx_buffer_open(b, gpu(), n * 4, &err), err);
    for (size_t i = 0; i < n; i++) {
        float f = 0.1f * (float)(i % 17);
        int32_t id = (int32_t)i % 3;
        e->s.dev->ops->upload(&e->s, (char *)b->base + 4 * i, type == MX_F32 ? (void *)&f : (void *)&id, 4);
    }
    return mx_tensor_of(b->base, type, rows, cols);
}

static mx_tensor single(exact *e)
{
    return tight(e, MX_F32, 1, 1);
}

static void nothing_past_the_end_is_touched(void)
{
    enum { R = 5, C = 67, O = 35 };
    exact e = {0};
    mx_error err = {0};
    char text[512];
    mx_tensor none = {0};
    mx_attention_shape shape = {.heads = 1, .kv_heads = 1, .scale = 0.1f, .causal = true};
    CHECK_OK(mx_stream_open(&e.s, gpu(), 1 << 16, &err), err);
    mx_stream *s = &e.s;
    mx_tensor x = tight(&e, MX_F32, R, C), y = tight(&e, MX_F32, R, C), g = tight(&e, MX_F32, 1, C), h = tight(&e, MX_F32, 1, C);
    mx_tensor two = tight(&e, MX_F32, R, 2 * C), wide = tight(&e, MX_F32, R, 2 * C), ids = tight(&e, MX_I32, R, 1), w = tight(&e, MX_F32, O, C);
    mx_tensor o = tight(&e, MX_F32, R, O), ob = tight(&e, MX_F32, 1, O), dw = tight(&e, MX_F32, O, C), loss = tight(&e, MX_F32, R, 1);
    mx_tensor begin = tight(&e, MX_I32, 2, 1), top = tight(&e, MX_I32, R, 3), dq = tight(&e, MX_F32, R, C), dk = tight(&e, MX_F32, R, C);
    mx_tensor dv = tight(&e, MX_F32, R, C), sum = tight(&e, MX_I32, 1, 2);
    int32_t spans[2] = {0, R};
    s->dev->ops->upload(s, begin.data, spans, sizeof spans);
    mx_norm(s, y, x, g, h, 1e-5f), mx_rms_norm(s, y, x, g, 1e-5f), mx_add(s, y, x, x), mx_activate(s, y, x, MX_ACT_SILU);
    mx_gated(s, y, two, MX_ACT_SILU), mx_embed(s, y, x, ids, false), mx_scale(s, y, x, 2), mx_cast(s, y, x), mx_dropout(s, y, x, 0.5f, 7);
    mx_norm_back(s, y, g, h, x, x, g, 1e-5f, true), mx_rms_norm_back(s, y, g, x, x, g, 1e-5f, false), mx_activate_back(s, y, x, x, MX_ACT_SILU);
    mx_gated_back(s, wide, x, two, MX_ACT_SILU), mx_embed_back(s, y, x, ids), mx_sum(s, sum, x, true);
    mx_product(s, o, x, w, ob, MX_F32, false), mx_product(s, o, x, w, ob, MX_BF16, false);
    mx_product_back(s, y, dw, ob, o, x, w, MX_F32, false), mx_product_back(s, y, dw, ob, o, x, w, MX_BF16, true);
    mx_attention(s, y, loss, x, x, x, begin, shape), mx_attention_back(s, dq, dk, dv, x, x, x, x, y, loss, begin, shape);
    shape.as = MX_BF16;
    mx_attention(s, y, loss, x, x, x, begin, shape), mx_attention_back(s, dq, dk, dv, x, x, x, x, y, loss, begin, shape);
    mx_logprobs(s, loss, ids, top, none, x), mx_cross_entropy(s, loss, x, ids, 1, true);
    mx_adamw(s, g, h, tight(&e, MX_F32, 1, C), tight(&e, MX_F32, 1, C), (mx_adamw_step){1e-3f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 1});
    mx_tensor va = tight(&e, MX_F32, R, C + 1), terms = tight(&e, MX_F32, R, 3), error = tight(&e, MX_F32, R, 1), tree = tight(&e, MX_F32, 1, 64);
    mx_tensor zeros = tight(&e, MX_I32, R, 1);
    s->dev->ops->clear(s, zeros.data, R * sizeof(int32_t));
    mx_argmax(s, ids, x, none), mx_dueling(s, y, va, 1), mx_dueling_back(s, va, y, 1), mx_td_loss(s, loss, error, y, ids, x, x, none, terms, 1, 1);
    mx_perceptron(s, o, x, &(mx_perceptron_shape){.w = {w}, .b = {ob}, .layers = 1});
    mx_tensor worlds = tight(&e, MX_I32, R, 8), number = tight(&e, MX_I32, R, 3), now = tight(&e, MX_F32, R, 4);
    s->dev->ops->clear(s, worlds.data, R * 8 * sizeof(int32_t)), s->dev->ops->clear(s, number.data, R * 3 * sizeof(int32_t));
    mx_world_step(s, MX_WORLD_CARTPOLE, worlds, number, zeros, loss, tight(&e, MX_I32, R, 1), now, tight(&e, MX_F32, R, 4), 1, 1);
    mx_atoms_value(s, loss, x, 0, 1), mx_atoms_loss(s, loss, error, y, zeros, x, error, none, terms, 0, 1, 1);
    mx_noisy(s, dw, w, w, ob, g), mx_noisy_back(s, dw, w, w, ob, g), mx_priority_sample(s, ids, loss, tree, error, 0.5f), mx_priority_set(s, tree, ids, error, 0.5f);
    mx_aggregate(s, g, x, ids, begin, loss, MX_REDUCE_SUM), mx_aggregate(s, h, x, none, begin, none, MX_REDUCE_MAX);
    /* one span of R edges, one to each row of the table; turned round, each row is heard by span 0 */
    int32_t to[R] = {0, 1, 2, 3, 4}, turned[R + 1] = {0, 1, 2, 3, 4, 5};
    mx_turned t = {tight(&e, MX_I32, R + 1, 1), tight(&e, MX_I32, R, 1), tight(&e, MX_I32, R, 1)};
    s->dev->ops->upload(s, t.begin.data, turned, sizeof turned), s->dev->ops->clear(s, t.span.data, sizeof to);
    s->dev->ops->upload(s, t.edge.data, to, sizeof to), s->dev->ops->upload(s, ids.data, to, sizeof to);
    mx_tensor one = tight(&e, MX_F32, 1, 1), row = tight(&e, MX_F32, 1, C), score = tight(&e, MX_F32, R, 1), drawn = tight(&e, MX_I32, R, 3);
    mx_graph_heads heads = {1, 0.2f, 0.5f, 7};
    mx_aggregate_max_back(s, y, g, x, h, ids, begin, t), mx_graph_attention(s, row, one, x, loss, single(&e), ids, begin, heads);
    mx_graph_attention_back(s, y, score, tight(&e, MX_F32, 1, 1), row, g, one, x, loss, single(&e), ids, begin, t, heads);
    mx_sample_neighbours(s, drawn, ids, t.begin, (mx_sample_key){1, 2, 3}), mx_unit_rows(s, y, x, 1e-6f), mx_unit_rows_back(s, y, x, x, 1e-6f);
    mx_dot(s, score, x, g), mx_dot_back(s, y, g, score, x, h, true), mx_logistic(s, loss, y, x, 1, true);
    CHECK_OK(mx_stream_sync(s, &err), err);
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
    for (int i = 0; i < e.n; i++) mx_buffer_close(&e.b[i]);
    mx_stream_close(s);
}

/* Whatever lies half way between two fp8 numbers, and past the last: the bytes of runtime/tensor.c. */
static void fp8_rounds_as_the_host(void)
{
    enum { D = 64, G = 4, N = D * G };
    float x[N];
    uint8_t got[N];
    mx_stream s;
    mx_buffer b;
    mx_error err = {0};
    for (int i = 0; i < N; i++) {
        int code = i % 128;
        float low = mx_f8_to_f32((uint8_t)code), high = code < 126 ? mx_f8_to_f32((uint8_t)(code + 1)) : INFINITY;
        x[i] = (code == 126 ? 600 : code == 127 ? NAN : (low + high) / 2) * (i < 128 ? 1.0f : -1.0f);
    }
    CHECK_OK(mx_stream_open(&s, gpu(), 1 << 14, &err), err);
    CHECK_OK(mx_buffer_open(&b, gpu(), 2 * N, &err), err);
    mx_kv kv = {b.base, (char *)b.base + N, MX_F8, 1, 1, G, D};
    int32_t slot = 0;
    mx_tensor t = mx_stream_upload(&s, MX_F32, 1, N, x);
    mx_kv_write(&s, &kv, t, t, mx_stream_upload(&s, MX_I32, 1, 1, &slot));
    s.dev->ops->download(&s, got, b.base, N);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    for (int i = 0; i < N; i++) CHECK_MSG(got[i] == mx_f32_to_f8(x[i]), "%.9g: %02x, want %02x", (double)x[i], got[i], mx_f32_to_f8(x[i]));
    mx_stream_close(&s);
    mx_buffer_close(&b);
}

/* A seat past the last, before the first, and positions that its page list does not have. */
static void seats_outside(mx_stream *s)
{
    enum { W = sizeof(mx_sample_row) / sizeof(int32_t) };
    static const struct { int32_t row[4], pick; bool fine; } tries[] = {
        {{0, -1, 0, -1}, 0, true}, {{0, 5, 3, 7}, -1, true}, {{1, 5, 0, -1}, 0, false}, {{-1, 5, 0, -1}, 0, false},
        {{0, 5, 4, -1}, 0, false}, {{0, 5, -1, -1}, 0, false}, {{0, -1, 0, -1}, 1, false}};
    mx_error err = {0};
    mx_seat seat = {.rule = {.temperature = 1}, .prompt = 1, .length = 2, .last = 9, .n_seen = -1};
    mx_seats seats = {.seat = mx_stream_upload(s, MX_I32, 1, sizeof seat / 4, &seat).data, .count = 1, .pages = mx_stream_tensor(s, MX_I32, 1, 2)};
    mx_tensor out[4], choices = mx_stream_tensor(s, MX_I32, 1, W);
    s->dev->ops->clear(s, seats.pages.data, 8);
    for (int i = 0; i < 4; i++) out[i] = mx_stream_tensor(s, MX_I32, 1, i == 3 ? 2 : 1);
    for (size_t i = 0; i < sizeof tries / sizeof *tries; i++) {
        int32_t pick[4] = {tries[i].pick, -1, 0, 0};
        mx_tensor row = mx_stream_upload(s, MX_I32, 1, 4, tries[i].row);
        mx_seat_rows(s, out[0], out[1], out[2], out[3], row, 2, &seats, choices, mx_stream_upload(s, MX_I32, 1, 4, pick));
        CHECK_MSG((mx_stream_sync(s, &err) == MX_OK) == tries[i].fine, "try %zu", i);
        if (!tries[i].fine) CHECK_MSG(strstr(err.text, "seat_rows"), "try %zu: %s", i, err.text);
    }
}

/* The first id past a table, and -1: told, and nothing outside is touched. */
static void ids_outside_are_told(void)
{
    mx_stream s;
    mx_error err = {0};
    float rows[6] = {1, 2, 3, 4, 5, 6};
    CHECK_OK(mx_stream_open(&s, gpu(), 1 << 16, &err), err);
    mx_tensor table = mx_stream_upload(&s, MX_F32, 2, 3, rows), y = mx_stream_tensor(&s, MX_F32, 1, 3);
    for (int32_t id = -1; id <= 2; id++) {
        mx_embed(&s, y, table, mx_stream_upload(&s, MX_I32, 1, 1, &id), false);
        CHECK((mx_stream_sync(&s, &err) == MX_OK) == (id >= 0 && id < 2));
        mx_embed_back(&s, table, y, mx_stream_upload(&s, MX_I32, 1, 1, &id));
        CHECK((mx_stream_sync(&s, &err) == MX_OK) == (id >= 0 && id < 2));
    }
    int32_t target = 3;
    mx_cross_entropy(&s, mx_tensor_cols(y, 0, 1), mx_tensor_rows(table, 0, 1), mx_stream_upload(&s, MX_I32, 1, 1, &target), 1, true);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "target 3"));
    mx_tensor one = mx_stream_tensor(&s, MX_F32, 1, 1), terms = mx_stream_tensor(&s, MX_F32, 1, 3), tree = mx_stream_tensor(&s, MX_F32, 1, 4);
    s.dev->ops->clear(&s, one.data, 4), s.dev->ops->clear(&s, terms.data, 12), s.dev->ops->clear(&s, tree.data, 16), s.dev->ops->clear(&s, y.data, 12);
    mx_td_loss(&s, one, one, y, mx_stream_upload(&s, MX_I32, 1, 1, &target), y, y, (mx_tensor){0}, terms, 1, 1);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "action 3"));
    mx_atoms_loss(&s, one, one, mx_stream_upload(&s, MX_F32, 1, 2, rows), mx_stream_upload(&s, MX_I32, 1, 1, &target), mx_tensor_cols(y, 0, 2), one, (mx_tensor){0}, terms, 0, 1, 1);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "action 3"));
    mx_priority_set(&s, tree, mx_stream_upload(&s, MX_I32, 1, 1, &target), one, 1);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "id 3"));
    mx_priority_sample(&s, mx_stream_upload(&s, MX_I32, 1, 1, &target), one, tree, one, 1);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG && strstr(err.text, "empty"));
    seats_outside(&s);
    mx_stream_close(&s);
    char text[512];
    CHECK_MSG(!cudasim_errors(text, sizeof text), "%s", text);
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
        TEST(every_op_is_there), TEST(cases_hold), TEST(cases_hold_in_any_order_of_threads),
        TEST(products_hold_without_the_library), TEST(attention_holds_through_cudnn), TEST(attention_goes_on_when_cudnn_fails), TEST(rows_do_not_depend_on_the_batch),
        TEST(attention_does_not_depend_on_chunks_or_pages), TEST(packed_attention_does_not_depend_on_the_batch), TEST(a_draw_does_not_depend_on_the_batch),
        TEST(nothing_past_the_end_is_touched), TEST(ids_outside_are_told), TEST(fp8_rounds_as_the_host), TEST(closing),
    };
    cudasim_set_abort(0);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
