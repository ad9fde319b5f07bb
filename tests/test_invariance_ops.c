/* test_invariance_ops.c - the invariance rule, bit for bit.
 *
 * Every row is computed alone on one thread with rows lying one after the
 * other; then in batches, on 1, 2 and 3 threads, with rows apart, with other
 * chunks of the same sequence, and with its pages elsewhere.  All must be equal
 * as bytes. */
#include "tests/cases.h"
#include "tests/test.h"

#define ROWS 131
#define GAP  5

typedef struct rig {
    mx_device *devs;
    int        count;
    mx_stream  s;
} rig;

static uint64_t state;

static bool rig_open(rig *g, int threads)
{
    mx_device_options opt = {.cpu_threads = threads};
    mx_error err = {0};
    memset(g, 0, sizeof *g);
    CHECK_OK(mx_devices_open(&g->devs, &g->count, &opt, &err), err);
    if (!g->devs) return false;
    CHECK_OK(mx_stream_open(&g->s, &g->devs[0], 4096, &err), err);
    return true;
}

static void rig_close(rig *g)
{
    mx_error err = {0};
    CHECK_OK(mx_stream_sync(&g->s, &err), err);
    mx_stream_close(&g->s);
    mx_devices_close(g->devs, g->count);
}

static float *randoms(int64_t n)
{
    float *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; p && i < n; i++) p[i] = (float)((double)(int64_t)test_random(&state) * 0x1p-62);
    return p;
}

static mx_tensor apart(float *memory, int64_t rows, int64_t cols)
{
    mx_tensor t = mx_tensor_of(memory + 1, MX_F32, rows, cols);       /* not aligned either */
    t.stride = cols + GAP;
    return t;
}

static void copy_rows(mx_tensor to, mx_tensor from)
{
    for (int64_t r = 0; r < to.rows; r++)
        memcpy((float *)to.data + r * to.stride, (float *)from.data + r * from.stride, (size_t)to.cols * sizeof(float));
}

static int64_t first_difference(mx_tensor a, mx_tensor b)
{
    for (int64_t r = 0; r < a.rows; r++)
        if (memcmp((float *)a.data + r * a.stride, (float *)b.data + r * b.stride, (size_t)a.cols * sizeof(float))) return r;
    return -1;
}

/* ---- row ops --------------------------------------------------------------------- */

typedef struct row_op {
    const char   *name;
    int64_t       c, o;
    mx_dtype      type;
    mx_activation act;
    const float  *weight;
} row_op;

static void read_rows(const void *ctx, int64_t first, int64_t n, float *dst)
{
    const row_op *op = ctx;
    memcpy(dst, op->weight + first * op->c, (size_t)(n * op->c) * sizeof *dst);
}

static void run(rig *g, const row_op *op, const mx_weight *w, mx_tensor y, mx_tensor x, float *vec)
{
    mx_tensor gain = mx_tensor_of(vec, MX_F32, 1, op->o), none = {0};
    int32_t at[ROWS];
    for (int i = 0; i < ROWS; i++) at[i] = 17;
    if (w) mx_linear(&g->s, y, x, w, gain, op->act, false);
    else if (!strcmp(op->name, "norm")) mx_norm(&g->s, y, x, gain, none, 1e-5f);
    else if (!strcmp(op->name, "rms_norm")) mx_rms_norm(&g->s, y, x, gain, 1e-5f);
    else if (!strcmp(op->name, "activate")) mx_activate(&g->s, y, x, op->act);
    else if (!strcmp(op->name, "gated")) mx_gated(&g->s, y, x, op->act);
    else {
        copy_rows(y, x);
        mx_rope(&g->s, y, mx_tensor_of(at, MX_I32, y.rows, 1), mx_tensor_of(vec, MX_F32, 1, op->o / 2), 1, 1, false);
    }
}

static void row_op_is_invariant(const row_op *op, bool weighted)
{
    static const int64_t batches[] = {1, 2, 3, 5, 6, 7, 8, 13, 31, 48, 49, 97, ROWS};
    row_op o = *op;
    float *x = randoms(ROWS * op->c), *vec = randoms(op->o), *alone = malloc(ROWS * (size_t)op->o * sizeof *alone);
    float *xs = malloc((ROWS * (size_t)(op->c + GAP) + 1) * sizeof *xs), *ys = malloc((ROWS * (size_t)(op->o + GAP) + 1) * sizeof *ys);
    float *weight = weighted ? randoms(op->o * op->c) : NULL;
    mx_tensor tx = mx_tensor_of(x, MX_F32, ROWS, op->c), want = mx_tensor_of(alone, MX_F32, ROWS, op->o);
    o.weight = weight;
    mx_row_source src = {read_rows, &o, op->o, op->c};
    for (int threads = 1; threads <= 3; threads++) {
        rig g;
        mx_weight w = {0};
        mx_error err = {0};
        if (!rig_open(&g, threads)) break;
        if (weighted) CHECK_OK(mx_weight_open(&w, &g.devs[0], &src, 1, op->type, &err), err);
        for (int64_t r = 0; r < ROWS && threads == 1; r++)
            run(&g, op, weighted ? &w : NULL, mx_tensor_rows(want, r, 1), mx_tensor_rows(tx, r, 1), vec);
        for (size_t b = 0; b < sizeof batches / sizeof *batches; b++)
            for (int64_t first = 0; first < ROWS; first += batches[b]) {
                int64_t n = ROWS - first < batches[b] ? ROWS - first : batches[b];
                mx_tensor in = apart(xs, n, op->c), out = apart(ys, n, op->o);
                copy_rows(in, mx_tensor_rows(tx, first, n));
                run(&g, op, weighted ? &w : NULL, out, in, vec);
                int64_t bad = first_difference(out, mx_tensor_rows(want, first, n));
                CHECK_MSG(bad < 0, "%s %s: row %lld in a batch of %lld on %d threads", op->name, mx_dtype_name(op->type),
                          (long long)(first + bad), (long long)n, threads);
                if (bad >= 0) break;
            }
        mx_weight_close(&w);
        rig_close(&g);
    }
    free(x), free(vec), free(alone), free(xs), free(ys), free(weight);
}

static void linear_rows_do_not_depend_on_the_batch(void)
{
    static const mx_dtype types[] = {MX_F32, MX_BF16, MX_I8, MX_F8};
    static const int64_t shapes[][2] = {{1, 1}, {67, 131}, {768, 193}, {1031, 67}, {2311, 300}};
    for (size_t t = 0; t < 4; t++)
        for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
            row_op op = {"linear", shapes[i][0], shapes[i][1], types[t], i % 2 ? MX_ACT_GELU_TANH : MX_ACT_NONE, NULL};
            row_op_is_invariant(&op, true);
        }
}

static void row_ops_do_not_depend_on_the_batch(void)
{
    static const row_op ops[] = {
        {"norm", 771, 771, MX_F32, MX_ACT_NONE, NULL},      {"rms_norm", 579, 579, MX_F32, MX_ACT_NONE, NULL},
        {"activate", 67, 67, MX_F32, MX_ACT_SILU, NULL},    {"activate", 67, 67, MX_F32, MX_ACT_GELU_TANH, NULL},
        {"activate", 67, 67, MX_F32, MX_ACT_GELU_ERF, NULL}, {"gated", 262, 131, MX_F32, MX_ACT_SILU, NULL},
        {"rope", 134, 134, MX_F32, MX_ACT_NONE, NULL},
    };
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) row_op_is_invariant(&ops[i], false);
}

/* ---- attention --------------------------------------------------------------------- */

enum { LENGTH = 203, HEADS = 6, GROUPS = 2, DIM = 72, WIDE = HEADS * DIM, KVW = GROUPS * DIM };

typedef struct story {
    float *q, *k, *v;                /* [LENGTH] rows of one sequence */
    mx_dtype type;
    int window;
} story;

/* The story told in chunks of `chunk` rows beside two other sequences, with pages
 * of `page` positions in the order of `seed`; y[LENGTH, WIDE] is what it gets. */
static void tell(const story *st, int threads, int chunk, int page, uint64_t seed, float *y)
{
    rig g;
    mx_error err = {0};
    int per = (LENGTH + page - 1) / page, pages = 3 * per, last = -1;
    int32_t *list = malloc((size_t)pages * sizeof *list), at[2 * (LENGTH + 2)], slots[LENGTH];
    float *q = malloc(((LENGTH + 2) * (WIDE + GAP) + 1) * sizeof *q), *out = malloc(((LENGTH + 2) * (WIDE + GAP) + 1) * sizeof *out);
    mx_buffer memory = {0};
    size_t half = (size_t)pages * GROUPS * (size_t)page * DIM * mx_dtype_size(st->type);
    if (!rig_open(&g, threads)) goto done;
    CHECK_OK(mx_buffer_open(&memory, &g.devs[0], 2 * half, &err), err);
    mx_kv kv = {memory.base, (char *)memory.base + half, st->type, pages, page, GROUPS, DIM};
    memset(memory.base, 0xff, 2 * half);             /* NaN wherever nobody wrote */
    for (int i = 0; i < pages; i++) {
        int j = (int)(test_random(&seed) % (uint64_t)(i + 1));
        list[i] = list[j];
        list[j] = i;
    }
    mx_tensor table = mx_tensor_of(list, MX_I32, 3, per);
    for (int s = 0; s < 3; s += 2) {                 /* sequences 0 and 2 are strangers, at position 0 */
        slots[0] = list[s * per] * page;
        mx_kv_write(&g.s, &kv, mx_tensor_of(st->k + s * KVW, MX_F32, 1, KVW), mx_tensor_of(st->v, MX_F32, 1, KVW),
                    mx_tensor_of(slots, MX_I32, 1, 1));
    }
    for (int first = 0; first < LENGTH; first = last + 1) {
        last = first + chunk < LENGTH ? first + chunk - 1 : LENGTH - 1;
        int n = last - first + 1;
        for (int i = 0; i < n; i++) slots[i] = list[per + (first + i) / page] * page + (first + i) % page;
        mx_kv_write(&g.s, &kv, mx_tensor_of(st->k + first * KVW, MX_F32, n, KVW),
                    mx_tensor_of(st->v + first * KVW, MX_F32, n, KVW), mx_tensor_of(slots, MX_I32, n, 1));
        mx_tensor in = apart(q, n + 2, WIDE), res = apart(out, n + 2, WIDE), all = mx_tensor_of(st->q, MX_F32, LENGTH, WIDE);
        for (int i = 0; i < n + 2; i++) {
            bool mine = i > 0 && i <= n;
            at[2 * i] = mine ? 1 : i ? 2 : 0;
            at[2 * i + 1] = mine ? first + i - 1 : 0;
            copy_rows(mx_tensor_rows(in, i, 1), mx_tensor_rows(all, mine ? first + i - 1 : 0, 1));
        }
        mx_attention_paged(&g.s, res, in, &kv, table, mx_tensor_of(at, MX_I32, n + 2, 2), HEADS, 0.3f, st->window);
        copy_rows(mx_tensor_of(y + first * WIDE, MX_F32, n, WIDE), mx_tensor_rows(res, 1, n));
    }
    mx_buffer_close(&memory);
    rig_close(&g);
done:
    free(list), free(q), free(out);
}

static void attention_does_not_depend_on_chunks_pages_or_threads(void)
{
    static const struct { int threads, chunk, page; } ways[] = {
        {1, 1, 16}, {1, 7, 16}, {2, 1, 16}, {3, 16, 16}, {2, 64, 16}, {1, LENGTH, 16}, {3, LENGTH, 16}, {2, 29, 5}, {2, 100, 64}, {1, 3, 100},
    };
    float *y = malloc(LENGTH * WIDE * sizeof *y), *want = malloc(LENGTH * WIDE * sizeof *want);
    for (int kind = 0; kind < 5; kind++) {
        story st = {randoms(LENGTH * WIDE), randoms(LENGTH * KVW), randoms(LENGTH * KVW), kind == 1 ? MX_F16 : kind == 2 ? MX_BF16 : kind == 4 ? MX_F8 : MX_F32,
                    kind == 3 ? 70 : 0};
        tell(&st, 1, 1, 16, 1, want);
        for (int64_t i = 0; i < LENGTH * WIDE; i++)
            if (!isfinite(want[i])) {
                CHECK_MSG(false, "not finite at row %lld", (long long)(i / WIDE));
                break;
            }
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            tell(&st, ways[w].threads, ways[w].chunk, ways[w].page, 99 + w, y);
            int64_t bad = first_difference(mx_tensor_of(want, MX_F32, LENGTH, WIDE), mx_tensor_of(y, MX_F32, LENGTH, WIDE));
            CHECK_MSG(bad < 0, "%s, window %d: row %lld differs with chunks of %d, pages of %d, %d threads", mx_dtype_name(st.type),
                      st.window, (long long)bad, ways[w].chunk, ways[w].page, ways[w].threads);
        }
        free(st.q), free(st.k), free(st.v);
    }
    free(y), free(want);
}

/* ---- sampling ------------------------------------------------------------------------- */

static void a_draw_does_not_depend_on_the_batch(void)
{
    enum { V = 5003, N = 23 };
    float *logits = randoms(N * V), lp[N], lp1;
    mx_sample_row rows[N];
    int32_t alone[N], batch[N], one;
    for (int r = 0; r < N; r++)
        rows[r] = (mx_sample_row){.temperature = r % 5 ? 0.3f + 0.2f * (float)r : 0, .top_k = r % 3 ? 0 : 40, .top_p = r % 2 ? 0.8f : 1,
                                  .typical_p = r % 7 ? 1 : 0.5f, .repetition_penalty = 1, .uniform = (r + 0.5) / N};
    for (int threads = 1; threads <= 3; threads++) {
        rig g;
        mx_tensor none = {0};
        if (!rig_open(&g, threads)) break;
        mx_sample(&g.s, mx_tensor_of(batch, MX_I32, N, 1), mx_tensor_of(logits, MX_F32, N, V), rows, NULL);
        mx_logprobs(&g.s, mx_tensor_of(lp, MX_F32, N, 1), mx_tensor_of(batch, MX_I32, N, 1), none, none,
                    mx_tensor_of(logits, MX_F32, N, V));
        for (int r = 0; r < N; r++) {
            float *row = logits + r * V;
            mx_sample(&g.s, mx_tensor_of(&one, MX_I32, 1, 1), mx_tensor_of(row, MX_F32, 1, V), &rows[r], NULL);
            mx_logprobs(&g.s, mx_tensor_of(&lp1, MX_F32, 1, 1), mx_tensor_of(&one, MX_I32, 1, 1), none, none,
                        mx_tensor_of(row, MX_F32, 1, V));
            if (threads == 1) alone[r] = one;
            CHECK_MSG(one == alone[r] && batch[r] == alone[r] && memcmp(&lp1, &lp[r], sizeof lp1) == 0, "row %d, %d threads", r, threads);
        }
        rig_close(&g);
    }
    free(logits);
}

/* ---- threads ---------------------------------------------------------------------- */

/* All cases, gradients too: what they write is equal as bytes on 1, 2 and 3 threads. */
static void no_bit_depends_on_the_number_of_threads(void)
{
    uint64_t *alone = calloc((size_t)mx_cases_count, sizeof *alone), seed = test_random(&state);
    for (int threads = 1; alone && threads <= 3; threads++) {
        rig g;
        if (!rig_open(&g, threads)) break;
        mx_case_env env = {&g.devs[0], &mx_kernels_cpu, seed, stdout, 0};
        for (int i = 0; i < mx_cases_count; i++) {
            char name[200];
            if (mx_cases[i].perf) continue;
            uint64_t digest = mx_case_digest(&env, &mx_cases[i]);
            if (threads == 1) alone[i] = digest;
            mx_case_name(&mx_cases[i], name, sizeof name);
            CHECK_MSG(digest && digest == alone[i], "%s: other bits on %d threads", name, threads);
        }
        rig_close(&g);
    }
    free(alone);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {
        TEST(linear_rows_do_not_depend_on_the_batch),
        TEST(row_ops_do_not_depend_on_the_batch),
        TEST(attention_does_not_depend_on_chunks_pages_or_threads),
        TEST(a_draw_does_not_depend_on_the_batch),
        TEST(no_bit_depends_on_the_number_of_threads),
    };
    const char *seed = getenv("MX_TEST_SEED");
    state = seed ? strtoull(seed, NULL, 0) : 20260117;
    printf("seed %llu\n", (unsigned long long)state);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}
