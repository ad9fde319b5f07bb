/* test_ops.c - the CPU's kernels against the reference, and what ops.c refuses. */
#include "tests/cases.h"
#include "tests/reference.h"
#include "tests/test.h"

static uint64_t seed_of_run(void)
{
    const char *text = getenv("MX_TEST_SEED");
    return text ? strtoull(text, NULL, 0) : 20260117;
}

static mx_device *open_devices(int threads, int *count)
{
    mx_device *devs = NULL;
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = threads};
    CHECK_OK(mx_devices_open(&devs, count, &opt, &err), err);
    return devs;
}

static void cases_hold_for_one_two_and_three_threads(void)
{
    for (int threads = 1; threads <= 3; threads++) {
        int count = 0;
        mx_device *devs = open_devices(threads, &count);
        if (!devs) return;
        mx_case_env env = {&devs[0], &mx_kernels_cpu, seed_of_run() + (uint64_t)threads, stdout, 0};
        CHECK(mx_cases_test(&env, NULL) == 0);
        mx_devices_close(devs, count);
    }
}

static void derivatives_match_differences(void)
{
    int count = 0;
    mx_device *devs = open_devices(1, &count);
    if (!devs) return;
    mx_case_env env = {&devs[0], &mx_kernels_cpu, seed_of_run(), stdout, 0};
    CHECK(mx_cases_grad(&env, NULL) == 0);
    mx_devices_close(devs, count);
}

/* The known answers of Random123, kat_vectors: philox4x32, 10 rounds. */
static void philox_gives_the_published_numbers(void)
{
    static const uint32_t in[3][6] = {{0}, {~0u, ~0u, ~0u, ~0u, ~0u, ~0u},
                                      {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0}};
    static const uint32_t want[3][4] = {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
                                        {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}};
    for (int i = 0; i < 3; i++) {
        uint32_t got[4];
        ref_philox(got, in[i], in[i] + 4);
        CHECK_MSG(memcmp(got, want[i], sizeof got) == 0, "vector %d: %08x", i, got[0]);
    }
}

static void every_op_is_there_and_has_a_case(void)
{
#define X(name)                                                                            \
    do {                                                                                   \
        int found = 0;                                                                     \
        for (int i = 0; i < mx_cases_count; i++)                                           \
            found += !mx_cases[i].perf && strcmp(mx_cases[i].op, #name) == 0;              \
        CHECK_MSG(mx_kernels_cpu.name != NULL && found > 0, "%s: %d cases", #name, found); \
    } while (0);
    MX_OPS(X)
#undef X
    CHECK(mx_kernels_cpu.weight_open && mx_kernels_cpu.weight_close);
}

static void ones(const void *ctx, int64_t first, int64_t n, float *dst)
{
    (void)first;
    for (int64_t i = 0; i < n * *(const int64_t *)ctx; i++) dst[i] = 1;
}

/* A wrong shape marks the stream, and what follows does nothing. */
static void wrong_shapes_stick(void)
{
    int count = 0;
    mx_device *devs = open_devices(1, &count);
    if (!devs) return;
    mx_stream s;
    mx_weight w = {0};
    mx_error err = {0};
    float x[6] = {1, 2, 3, 4, 5, 6}, y[6] = {0};
    int32_t id = 2;
    int64_t cols = 3;
    mx_row_source src = {ones, &cols, 2, 3};
    mx_tensor none = {0}, t23 = mx_tensor_of(x, MX_F32, 2, 3), y22 = mx_tensor_of(y, MX_F32, 2, 2);
    CHECK_OK(mx_stream_open(&s, &devs[0], 4096, &err), err);
    CHECK_OK(mx_weight_open(&w, &devs[0], &src, 1, MX_F32, &err), err);
    mx_linear(&s, y22, t23, &w, none, MX_ACT_NONE, false);
    CHECK(mx_stream_sync(&s, &err) == MX_OK);
    CHECK(y[0] == 6 && y[3] == 15);
    mx_linear(&s, t23, y22, &w, none, MX_ACT_NONE, false);
    mx_add(&s, y22, y22, y22);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    CHECK_MSG(strncmp(err.text, "linear: ", 8) == 0, "%s", err.text);
    CHECK(y[0] == 6);
    mx_linear(&s, y22, t23, &w, none, MX_ACT_SILU, true);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    mx_embed(&s, mx_tensor_of(y, MX_F32, 1, 3), t23, mx_tensor_of(&id, MX_I32, 1, 1), false);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    CHECK_MSG(strstr(err.text, "id 2"), "%s", err.text);
    /* no rows: nothing to do, and nothing wrong */
    mx_linear(&s, mx_tensor_of(y, MX_F32, 0, 2), mx_tensor_of(x, MX_F32, 0, 3), &w, none, MX_ACT_NONE, false);
    mx_rms_norm(&s, mx_tensor_of(NULL, MX_F32, 0, 3), mx_tensor_of(NULL, MX_F32, 0, 3), mx_tensor_of(x, MX_F32, 1, 3), 0);
    CHECK(mx_stream_sync(&s, &err) == MX_OK);
    mx_weight_close(&w);
    CHECK(mx_weight_open(&w, &devs[0], &src, 1, MX_F16, &err) == MX_ERR_ARG);
    CHECK(mx_weight_open(&w, &devs[0], &src, 0, MX_F32, &err) == MX_ERR_ARG);
    src.cols = 65537;
    CHECK(mx_weight_open(&w, &devs[0], &src, 1, MX_F32, &err) == MX_ERR_ARG);
    mx_stream_close(&s);
    mx_devices_close(devs, count);
}

/* A gradient whose data is NULL is left out, and the others are the same bits. */
static void gradients_that_nobody_wants_are_not_computed(void)
{
    enum { N = 7, C = 35, O = 21 };
    int count = 0;
    mx_device *devs = open_devices(2, &count);
    if (!devs) return;
    mx_stream s;
    mx_error err = {0};
    float x[N * C], dy[N * C], w[O * C], out[2][3][O * C];
    uint64_t random = 3;
    CHECK_OK(mx_stream_open(&s, &devs[0], 4096, &err), err);
    for (int i = 0; i < N * C; i++) x[i] = (float)(test_random(&random) % 1000) * 1e-3f, dy[i] = 1 - x[i];
    for (int i = 0; i < O * C; i++) w[i] = (float)(test_random(&random) % 1000) * 1e-3f;
    mx_tensor tx = mx_tensor_of(x, MX_F32, N, C), gain = mx_tensor_of(w, MX_F32, 1, C), none = {0};
    for (int wanted = 0; wanted < 8; wanted++)
        for (int op = 0; op < 3; op++) {
            for (int all = 0; all < 2; all++) {
                mx_tensor d[3] = {mx_tensor_of(out[all][0], MX_F32, N, C),
                                  mx_tensor_of(out[all][1], MX_F32, op ? 1 : O, C),
                                  mx_tensor_of(out[all][2], MX_F32, 1, op ? C : O)};
                memset(out[all], 0, sizeof out[all]);
                for (int i = 0; i < 3; i++)
                    if (!all && !(wanted >> i & 1)) d[i] = none;
                if (op == 0) mx_product_back(&s, d[0], d[1], d[2], mx_tensor_of(dy, MX_F32, N, O), tx, mx_tensor_of(w, MX_F32, O, C), MX_F32, false);
                else if (op == 1) mx_norm_back(&s, d[0], d[1], d[2], mx_tensor_of(dy, MX_F32, N, C), tx, gain, 1e-5f, false);
                else mx_rms_norm_back(&s, d[0], d[1], mx_tensor_of(dy, MX_F32, N, C), tx, gain, 1e-5f, false);
            }
            CHECK_OK(mx_stream_sync(&s, &err), err);
            for (int i = 0; i < 3; i++) {
                static const float zeros[O * C];
                const float *want = wanted >> i & 1 ? out[1][i] : zeros;
                CHECK_MSG(memcmp(out[0][i], want, sizeof out[0][i]) == 0, "op %d, gradient %d, wanted %d", op, i, wanted);
            }
        }
    mx_stream_close(&s);
    mx_devices_close(devs, count);
}

#define REFUSED(call, op, what)                                                                                       \
    do {                                                                                                              \
        call;                                                                                                         \
        CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);                                                                \
        CHECK_MSG(strncmp(err.text, op ": ", sizeof op + 1) == 0 && strstr(err.text, what), "%s", err.text);          \
    } while (0)

static void wrong_seats_are_named(void)
{
    int count = 0;
    mx_device *devs = open_devices(1, &count);
    if (!devs) return;
    mx_stream s;
    mx_error err = {0};
    float x[8] = {0};
    int32_t ids[8] = {0};
    mx_seat seat = {.length = 1};
    mx_seats seats = {.seat = &seat, .count = 1, .pages = mx_tensor_of(ids, MX_I32, 1, 1)}, nobody = {0};
    mx_tensor nothing = mx_tensor_of(NULL, MX_I32, 0, sizeof(mx_sample_row) / 4), four = mx_tensor_of(ids, MX_I32, 1, 4), two = mx_tensor_of(ids, MX_I32, 1, 2);
    mx_tensor one = mx_tensor_of(ids, MX_I32, 1, 1), picks = mx_tensor_of(NULL, MX_I32, 0, 4), logits = mx_tensor_of(x, MX_F32, 1, 8);
    CHECK_OK(mx_stream_open(&s, devs, 64, &err), err);
    REFUSED(mx_seat_rows(&s, one, one, one, two, two, 1, &seats, nothing, picks), "seat_rows", "rows[N,4]");
    REFUSED(mx_seat_rows(&s, one, one, one, two, four, 1, &nobody, nothing, picks), "seat_rows", "seats");
    REFUSED(mx_seat_rows(&s, one, one, one, two, four, 1, &seats, picks, picks), "seat_rows", "choices[M,W]");
    REFUSED(mx_sample(&s, one, logits, NULL, NULL), "sample", "id[N,1]");
    mx_stream_close(&s);
    mx_devices_close(devs, count);
}

/* Every op that learns names itself and the argument that is wrong. */
static void wrong_learning_shapes_are_named(void)
{
    int count = 0;
    mx_device *devs = open_devices(1, &count);
    if (!devs) return;
    mx_stream s;
    mx_error err = {0};
    float x[64] = {0};
    int32_t ids[8] = {0, 3, 2, 9, 0, 0, 0, 0}, bare[16] = {0};
    mx_tensor none = {0}, a = mx_tensor_of(x, MX_F32, 2, 4), b = mx_tensor_of(x, MX_F32, 3, 4), row = mx_tensor_of(x, MX_F32, 1, 4),
              ids2 = mx_tensor_of(ids, MX_I32, 2, 1), half = mx_tensor_of(x, MX_BF16, 3, 4), sum = mx_tensor_of(ids, MX_I32, 1, 2),
              one = mx_tensor_of(x, MX_F32, 2, 1), falling = mx_tensor_of(ids + 1, MX_I32, 2, 1);
    mx_attention_shape shape = {.heads = 2, .kv_heads = 2, .scale = 1, .causal = true}, odd = {.heads = 3, .kv_heads = 2};
    mx_tensor lse = mx_tensor_of(x, MX_F32, 2, 2);
    CHECK_OK(mx_stream_open(&s, &devs[0], 4096, &err), err);
    REFUSED(mx_product(&s, a, a, b, none, MX_F32, false), "product", "y[N,O]");
    REFUSED(mx_product(&s, a, a, b, none, MX_I8, false), "product", "");
    REFUSED(mx_product_back(&s, a, a, none, one, a, row, MX_F32, false), "product_back", "dw[O,C]");
    REFUSED(mx_product_back(&s, a, half, none, mx_tensor_of(x, MX_F32, 2, 3), a, half, MX_F32, false), "product_back", "dw[O,C]");
    REFUSED(mx_cast(&s, half, a), "cast", "y[N,C]");
    REFUSED(mx_scale(&s, b, a, 1), "scale", "x[N,C]");
    REFUSED(mx_embed_back(&s, b, a, sum), "embed_back", "ids[N,1]");
    REFUSED(mx_embed_back(&s, b, a, falling), "embed_back", "id 3 of row 0");
    REFUSED(mx_norm_back(&s, b, row, row, a, a, row, 0, false), "norm_back", "dx");
    REFUSED(mx_norm_back(&s, a, a, row, a, a, row, 0, false), "norm_back", "dgain");
    REFUSED(mx_rms_norm_back(&s, a, a, a, a, row, 0, false), "rms_norm_back", "dgain");
    REFUSED(mx_activate_back(&s, a, a, b, MX_ACT_RELU), "activate_back", "x");
    REFUSED(mx_gated_back(&s, a, a, a, MX_ACT_SILU), "gated_back", "gu[N,2F]");
    REFUSED(mx_rope_back(&s, a, ids2, row, 1, 2, false), "rope_back", "freq");
    REFUSED(mx_dropout(&s, a, a, 1, 0), "dropout", "rate");
    REFUSED(mx_attention(&s, a, lse, a, a, a, falling, shape), "attention", "begin");
    REFUSED(mx_attention(&s, a, lse, a, a, a, ids2, odd), "attention", "q[N,H*D]");
    REFUSED(mx_attention(&s, a, row, a, a, a, ids2, shape), "attention", "lse");
    REFUSED(mx_attention_back(&s, a, a, b, a, a, a, a, a, lse, ids2, shape), "attention_back", "dv");
    REFUSED(mx_cross_entropy(&s, one, a, mx_tensor_of(ids + 2, MX_I32, 2, 1), 1, true), "cross_entropy", "target 9 of row 1");
    REFUSED(mx_cross_entropy(&s, a, a, ids2, 1, true), "cross_entropy", "loss[N,1]");
    REFUSED(mx_aggregate(&s, b, a, none, falling, none, MX_REDUCE_SUM), "aggregate", "begin[S+1,1]");
    REFUSED(mx_aggregate(&s, row, a, none, falling, none, MX_REDUCE_SUM), "aggregate", "begin 3 of span 0");
    REFUSED(mx_aggregate(&s, row, a, falling, mx_tensor_of(ids + 4, MX_I32, 2, 1), none, MX_REDUCE_SUM), "aggregate", "id 3 of edge 0");
    REFUSED(mx_aggregate(&s, row, a, none, mx_tensor_of(ids + 4, MX_I32, 2, 1), one, MX_REDUCE_MAX), "aggregate", "maximum");
    REFUSED(mx_sum(&s, ids2, a, true), "sum", "sum[1,2]");
    REFUSED(mx_adamw(&s, a, a, a, a, (mx_adamw_step){0}), "adamw", "[1,n]");
    mx_tensor act2 = ids2, terms = mx_tensor_of(x, MX_F32, 2, 3), tree = mx_tensor_of(x + 8, MX_F32, 1, 4), bits = mx_tensor_of(x, MX_I8, 2, 3);
    REFUSED(mx_argmax(&s, ids2, a, bits), "argmax", "mask[N,A]");
    REFUSED(mx_dueling(&s, a, a, 2), "dueling", "va[N,(1+A)*Z]");
    mx_perceptron_shape net = {.w = {a}, .b = {mx_tensor_of(x, MX_F32, 1, 2)}, .layers = 1}, deep = net, duel = net;
    deep.layers = MX_PERCEPTRON_LAYERS + 1, duel.atoms = 2;
    REFUSED(mx_perceptron(&s, a, a, &net), "perceptron", "y[N,O]");
    REFUSED(mx_perceptron(&s, a, terms, &net), "perceptron", "w[O,C]");
    REFUSED(mx_perceptron(&s, a, a, &deep), "perceptron", "1 to 9 layers");
    REFUSED(mx_perceptron(&s, a, a, &duel), "perceptron", "y[N,A*Z]");
    mx_tensor state = mx_tensor_of(bare, MX_I32, 2, 8), at = mx_tensor_of(bare, MX_I32, 2, 3), left = mx_tensor_of(bare, MX_I32, 2, 1);
    REFUSED(mx_world_step(&s, MX_WORLD_COUNT, state, at, left, one, left, a, a, 1, 0), "world_step", "a known world");
    REFUSED(mx_world_step(&s, MX_WORLD_CARTPOLE, at, at, left, one, left, a, a, 1, 0), "world_step", "state[N,8]");
    REFUSED(mx_world_step(&s, MX_WORLD_ACROBOT, state, at, left, one, left, a, a, 1, 0), "world_step", "next[N,O]");
    REFUSED(mx_world_step(&s, MX_WORLD_CARTPOLE, state, at, mx_tensor_of(ids + 2, MX_I32, 2, 1), one, left, a, a, 1, 0), "world_step", "action 2 of row 0");
    REFUSED(mx_dueling_back(&s, a, a, 1), "dueling_back", "dva");
    REFUSED(mx_td_loss(&s, one, one, a, act2, a, b, none, terms, 1, 1), "td_loss", "step[N,3]");
    REFUSED(mx_td_loss(&s, one, one, a, act2, b, a, none, terms, 1, 1), "td_loss", "next[N,A]");
    REFUSED(mx_td_loss(&s, one, one, a, act2, a, a, none, terms, 0, 1), "td_loss", "huber");
    REFUSED(mx_td_loss(&s, one, one, a, mx_tensor_of(ids + 2, MX_I32, 2, 1), a, a, none, terms, 1, 1), "td_loss", "action 9 of row 1");
    REFUSED(mx_atoms_value(&s, one, one, 0, 1), "atoms_value", "atoms");
    REFUSED(mx_atoms_value(&s, one, a, 1, 1), "atoms_value", "low < high");
    REFUSED(mx_atoms_loss(&s, one, one, a, act2, a, one, none, one, 0, 1, 1), "atoms_loss", "step[N,3]");
    REFUSED(mx_atoms_loss(&s, one, one, a, mx_tensor_of(ids + 2, MX_I32, 2, 1), a, one, none, terms, 0, 1, 1), "atoms_loss", "action 2 of row 0");
    REFUSED(mx_noisy(&s, a, a, a, row, row), "noisy", "out[1,O]");
    REFUSED(mx_noisy_back(&s, a, b, a, row, row), "noisy_back", "dspread");
    REFUSED(mx_priority_set(&s, terms, ids2, one, 1), "priority_set", "power of two");
    REFUSED(mx_priority_set(&s, tree, mx_tensor_of(ids + 1, MX_I32, 2, 1), one, 1), "priority_set", "id 3 of row 0");
    REFUSED(mx_priority_sample(&s, ids2, one, tree, row, 1), "priority_sample", "uniform[N,1]");
    REFUSED(mx_priority_sample(&s, ids2, one, tree, one, 1), "priority_sample", "empty");
#undef REFUSED
    mx_stream_close(&s);
    mx_devices_close(devs, count);
}

MX_TESTS(TEST(every_op_is_there_and_has_a_case), TEST(cases_hold_for_one_two_and_three_threads), TEST(derivatives_match_differences),
         TEST(philox_gives_the_published_numbers), TEST(wrong_shapes_stick), TEST(wrong_seats_are_named), TEST(wrong_learning_shapes_are_named),
         TEST(gradients_that_nobody_wants_are_not_computed))
