/* test_harness.c - the suite must turn red: for every op a wrong one is planted
 * in the table, and at least one of its cases has to fail. */
#include "tests/cases.h"
#include "tests/test.h"

#define REAL mx_kernels_cpu

static float *element(mx_tensor t, int64_t r, int64_t i)
{
    return (float *)t.data + r * t.stride + i;
}

/* The last value of the last row, a little off: 1e-3 of it, at least 1e-3. */
static void nudge(mx_tensor y)
{
    float *p = element(y, y.rows - 1, y.cols - 1);
    *p += 1e-3f + 1e-3f * fabsf(*p);
}

static void wrong_embed(mx_stream *s, mx_tensor y, mx_tensor table, mx_tensor ids, bool add)
{
    y.rows--, ids.rows--;                       /* the last row is forgotten */
    REAL.embed(s, y, table, ids, add);
}

static void wrong_linear(mx_stream *s, mx_tensor y, mx_tensor x, const mx_weight *w, mx_tensor b, mx_activation act, bool add)
{
    REAL.linear(s, y, x, w, b, act, add);
    nudge(y);
}

static void wrong_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps)
{
    REAL.norm(s, y, x, gain, bias, eps + 1e-3f);
}

static void wrong_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps)
{
    REAL.rms_norm(s, y, x, gain, eps);
    *element(y, 0, y.cols) = 0;                 /* one past the row */
}

static void wrong_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    REAL.add(s, y, a, b);
    nudge(y);
}

static void wrong_add_norm(mx_stream *s, mx_tensor y, mx_tensor sum, mx_tensor a, mx_tensor b, mx_tensor gain, mx_tensor bias, float eps, bool rms)
{
    REAL.add_norm(s, y, sum, a, b, gain, bias, eps, rms);
    nudge(sum);
}

static void wrong_activate(mx_stream *s, mx_tensor y, mx_tensor x, mx_activation act)
{
    REAL.activate(s, y, x, act == MX_ACT_GELU_ERF ? MX_ACT_GELU_TANH : act);
}

static void wrong_gated(mx_stream *s, mx_tensor y, mx_tensor gu, mx_activation act)
{
    REAL.gated(s, y, gu, act);
    *element(gu, 0, 0) += 1;                    /* an input changes */
}

static void wrong_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                       bool interleaved)
{
    REAL.rope(s, x, positions, freq, magnitude, heads, !interleaved);
}

static void wrong_rope_kv_write(mx_stream *s, mx_tensor qkv, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                                bool interleaved, const mx_kv *kv, mx_tensor slots)
{
    int64_t q = (int64_t)heads * kv->head_dim, g = (int64_t)kv->kv_heads * kv->head_dim;         /* keys go as they came */
    REAL.rope(s, mx_tensor_cols(qkv, 0, q), positions, freq, magnitude, heads, interleaved);
    REAL.kv_write(s, kv, mx_tensor_cols(qkv, q, g), mx_tensor_cols(qkv, q + g, g), slots);
}

static void wrong_seat_rows(mx_stream *s, mx_tensor ids, mx_tensor positions, mx_tensor slots, mx_tensor at, mx_tensor rows, int page_tokens,
                            const mx_seats *seats, mx_tensor choices, mx_tensor picks)
{
    REAL.seat_rows(s, ids, positions, slots, at, rows, page_tokens, seats, choices, picks);
    ++*(int32_t *)ids.data;
}

static void wrong_kv_write(mx_stream *s, const mx_kv *kv, mx_tensor k, mx_tensor v, mx_tensor slots)
{
    (void)v;
    REAL.kv_write(s, kv, k, k, slots);
}

static void wrong_kv_copy(mx_stream *s, const mx_kv *kv, mx_tensor from_to)
{
    from_to.rows--;
    REAL.kv_copy(s, kv, from_to);
}

static void wrong_attention_paged(mx_stream *s, mx_tensor y, mx_tensor q, const mx_kv *kv, mx_tensor pages, mx_tensor at,
                                  int heads, float scale, int window)
{
    for (int64_t r = 0; r < at.rows; r++) {     /* the row does not see itself */
        int32_t *p = (int32_t *)at.data + r * at.stride + 1;
        *p -= *p > 0;
    }
    REAL.attention_paged(s, y, q, kv, pages, at, heads, scale, window);
}

static void wrong_logits_process(mx_stream *s, mx_tensor logits, const mx_sample_row *rows, const mx_logit_lists *lists, const mx_seats *seats)
{
    mx_logit_lists l = *lists;
    l.ban_begin = NULL;
    REAL.logits_process(s, logits, rows, &l, seats);
}

static void wrong_sample(mx_stream *s, mx_tensor id, mx_tensor logits, const mx_sample_row *rows, const mx_seats *seats)
{
    REAL.sample(s, id, logits, rows, seats);
    ((int32_t *)id.data)[0] ^= 1;
}

static void wrong_logprobs(mx_stream *s, mx_tensor logprob, mx_tensor chosen, mx_tensor top_id, mx_tensor top_logprob,
                           mx_tensor logits)
{
    REAL.logprobs(s, logprob, chosen, top_id, top_logprob, logits);
    nudge(top_logprob);
}

/* ---- learning ------------------------------------------------------------------------ */

static void wrong_product(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor w, mx_tensor b, mx_dtype as, bool add)
{
    REAL.product(s, y, x, w, (mx_tensor){0}, as, add);      /* the bias is forgotten */
    (void)b;
}

static void wrong_product_back(mx_stream *s, mx_tensor dx, mx_tensor dw, mx_tensor db, mx_tensor dy, mx_tensor x, mx_tensor w,
                               mx_dtype as, bool add)
{
    memset(dw.data, 0, sizeof(float));                      /* what was there is lost */
    REAL.product_back(s, dx, dw, db, dy, x, w, as, add);
}

static void wrong_cast(mx_stream *s, mx_tensor y, mx_tensor x)
{
    REAL.cast(s, y, x);
    ((uint16_t *)y.data)[0] ^= 1;
}

static void wrong_scale(mx_stream *s, mx_tensor y, mx_tensor x, float factor)
{
    REAL.scale(s, y, x, factor * 1.0001f);
}

/* The last of the rows with an id wins. */
static void wrong_embed_back(mx_stream *s, mx_tensor dtable, mx_tensor dy, mx_tensor ids)
{
    for (int64_t r = 0; r < dy.rows; r++)
        memcpy(element(dtable, ((int32_t *)ids.data)[r * ids.stride], 0), element(dy, r, 0), (size_t)dy.cols * sizeof(float));
    (void)s;
}

static void wrong_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dbias, mx_tensor dy, mx_tensor x, mx_tensor gain,
                            float eps, bool add)
{
    REAL.rms_norm_back(s, dx, dgain, dy, x, gain, eps, add);        /* the mean's part is forgotten */
    (void)dbias;
}

static void wrong_rms_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dy, mx_tensor x, mx_tensor gain, float eps,
                                bool add)
{
    REAL.rms_norm_back(s, dx, dgain, dy, x, gain, eps, !add);
}

static void wrong_activate_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_activation act)
{
    REAL.activate_back(s, dx, dy, x, act == MX_ACT_GELU_TANH ? MX_ACT_GELU_ERF : act);
}

static void wrong_gated_back(mx_stream *s, mx_tensor dgu, mx_tensor dy, mx_tensor gu, mx_activation act)
{
    REAL.gated_back(s, dgu, dy, gu, act);
    nudge(dgu);
}

static void wrong_rope_back(mx_stream *s, mx_tensor dx, mx_tensor positions, mx_tensor freq, float magnitude, int heads,
                            bool interleaved)
{
    REAL.rope(s, dx, positions, freq, magnitude, heads, interleaved);       /* on, not back */
}

static void wrong_dropout(mx_stream *s, mx_tensor y, mx_tensor x, float rate, uint64_t seed)
{
    REAL.dropout(s, y, x, rate, seed + 1);
}

static void wrong_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor q, mx_tensor k, mx_tensor v, mx_tensor begin,
                            mx_attention_shape a)
{
    a.causal = !a.causal;
    REAL.attention(s, y, lse, q, k, v, begin, a);
}

static void wrong_attention_back(mx_stream *s, mx_tensor dq, mx_tensor dk, mx_tensor dv, mx_tensor dy, mx_tensor q, mx_tensor k,
                                 mx_tensor v, mx_tensor y, mx_tensor lse, mx_tensor begin, mx_attention_shape a)
{
    REAL.attention_back(s, dq, dk, dv, dy, q, k, v, y, lse, begin, a);
    nudge(dk);
}

static void wrong_aggregate(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how)
{
    REAL.aggregate(s, y, x, ids, begin, weight, how == MX_REDUCE_MEAN ? MX_REDUCE_SUM : how);
}

static void wrong_cross_entropy(mx_stream *s, mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn)
{
    REAL.cross_entropy(s, loss, logits, target, scale, !learn);
}

static void wrong_sum(mx_stream *s, mx_tensor sum, mx_tensor x, bool squares)
{
    REAL.sum(s, sum, x, !squares);
}

/* Decay through the gradient, as Adam had it before it was decoupled. */
static void wrong_adamw(mx_stream *s, mx_tensor p, mx_tensor g, mx_tensor m, mx_tensor v, mx_adamw_step o)
{
    o.decay = 0;
    REAL.adamw(s, p, g, m, v, o);
}

/* ---- Q-learning ---- */

/* Infeasible actions too. */
static void wrong_argmax(mx_stream *s, mx_tensor id, mx_tensor q, mx_tensor mask)
{
    mask.data = NULL;
    REAL.argmax(s, id, q, mask);
}

static void wrong_dueling(mx_stream *s, mx_tensor q, mx_tensor va, int atoms)
{
    REAL.dueling(s, q, va, atoms);
    nudge(q);
}

/* No activation between the layers. */
static void wrong_perceptron(mx_stream *s, mx_tensor y, mx_tensor x, const mx_perceptron_shape *p)
{
    mx_perceptron_shape flat = *p;
    flat.act = MX_ACT_NONE;
    REAL.perceptron(s, y, x, &flat);
}

/* Cut off a step late. */
static void wrong_world_step(mx_stream *s, mx_world w, mx_tensor state, mx_tensor at, mx_tensor action, mx_tensor reward, mx_tensor ended,
                             mx_tensor next, mx_tensor seen, uint64_t seed, int limit)
{
    REAL.world_step(s, w, state, at, action, reward, ended, next, seen, seed, limit + 1);
}

static void wrong_dueling_back(mx_stream *s, mx_tensor dva, mx_tensor dq, int atoms)
{
    REAL.dueling_back(s, dva, dq, atoms);
    nudge(dva);
}

/* The maximum over infeasible actions. */
static void wrong_td_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor q, mx_tensor action, mx_tensor next, mx_tensor chooser,
                          mx_tensor mask, mx_tensor step, float huber, float scale)
{
    mask.data = NULL;
    REAL.td_loss(s, loss, error, q, action, next, chooser, mask, step, huber, scale);
}

static void wrong_atoms_value(mx_stream *s, mx_tensor q, mx_tensor logits, float low, float high)
{
    REAL.atoms_value(s, q, logits, low, high + 0.01f);
}

static void wrong_atoms_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor logits, mx_tensor action, mx_tensor next,
                             mx_tensor chooser, mx_tensor mask, mx_tensor step, float low, float high, float scale)
{
    mask.data = NULL;
    REAL.atoms_loss(s, loss, error, logits, action, next, chooser, mask, step, low, high, scale);
}

static void wrong_noisy(mx_stream *s, mx_tensor w, mx_tensor mean, mx_tensor spread, mx_tensor out, mx_tensor in)
{
    REAL.noisy(s, w, spread, mean, out, in);
}

static void wrong_noisy_back(mx_stream *s, mx_tensor dmean, mx_tensor dspread, mx_tensor dw, mx_tensor out, mx_tensor in)
{
    REAL.noisy_back(s, dspread, dmean, dw, out, in);
}

static void wrong_priority_set(mx_stream *s, mx_tensor tree, mx_tensor ids, mx_tensor error, float exponent)
{
    REAL.priority_set(s, tree, ids, error, exponent + 0.01f);
    nudge(tree);
}

static void wrong_priority_sample(mx_stream *s, mx_tensor ids, mx_tensor weight, mx_tensor tree, mx_tensor uniform, float beta)
{
    REAL.priority_sample(s, ids, weight, tree, uniform, -beta);
}

/* ---- graphs -------------------------------------------------------------------------- */

/* Every edge with the maximum gets the gradient. */
static void wrong_aggregate_max_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_tensor y, mx_tensor ids, mx_tensor begin,
                                     mx_turned t)
{
    for (int64_t u = 0; u < x.rows; u++)
        for (int64_t c = 0; c < x.cols; c++) {
            *element(dx, u, c) = 0;
            for (int32_t k = ((int32_t *)t.begin.data)[u * t.begin.stride]; k < ((int32_t *)t.begin.data)[(u + 1) * t.begin.stride]; k++) {
                int32_t span = ((int32_t *)t.span.data)[k * t.span.stride];
                if (*element(x, u, c) == *element(y, span, c)) *element(dx, u, c) += *element(dy, span, c);
            }
        }
    (void)s, (void)ids, (void)begin;
}

static void wrong_graph_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids,
                                  mx_tensor begin, mx_graph_heads a)
{
    a.slope = 0;
    REAL.graph_attention(s, y, lse, z, src, dst, ids, begin, a);
}

static void wrong_graph_attention_back(mx_stream *s, mx_tensor dz, mx_tensor dsrc, mx_tensor ddst, mx_tensor dy, mx_tensor y, mx_tensor lse,
                                       mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids, mx_tensor begin, mx_turned t,
                                       mx_graph_heads a)
{
    REAL.graph_attention_back(s, dz, dsrc, ddst, dy, y, lse, z, src, dst, ids, begin, t, a);
    nudge(dsrc);
}

static void wrong_sample_neighbours(mx_stream *s, mx_tensor edge, mx_tensor nodes, mx_tensor begin, mx_sample_key key)
{
    key.layer++;
    REAL.sample_neighbours(s, edge, nodes, begin, key);
}

static void wrong_unit_rows(mx_stream *s, mx_tensor y, mx_tensor x, float eps)
{
    (void)eps;
    REAL.unit_rows(s, y, x, 0);
}

static void wrong_unit_rows_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, float eps)
{
    REAL.unit_rows_back(s, dx, dy, x, eps);
    nudge(dx);
}

static void wrong_dot(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    REAL.dot(s, y, a, a);
    (void)b;
}

static void wrong_dot_back(mx_stream *s, mx_tensor da, mx_tensor db, mx_tensor dy, mx_tensor a, mx_tensor b, bool add)
{
    REAL.dot_back(s, da, db, dy, a, b, !add);
}

static void wrong_logistic(mx_stream *s, mx_tensor loss, mx_tensor x, mx_tensor target, float scale, bool learn)
{
    for (int64_t r = 0; r < target.rows; r++)
        for (int64_t i = 0; i < target.cols; i++)
            if (*element(target, r, i) < 0) *element(target, r, i) = 0;       /* what is not known counts as no */
    REAL.logistic(s, loss, x, target, scale, learn);
}

static void a_wrong_op_turns_the_suite_red(void)
{
    mx_device *devs = NULL;
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = 2};
    int count = 0;
    CHECK_OK(mx_devices_open(&devs, &count, &opt, &err), err);
    if (!devs) return;
#define X(name)                                                                            \
    do {                                                                                   \
        mx_kernels planted = REAL;                                                         \
        mx_case_env env = {&devs[0], &REAL, 7, NULL, 0};                                      \
        CHECK_MSG(mx_cases_test(&env, #name "(") == 0, "%s is right", #name);              \
        planted.name = wrong_##name;                                                       \
        env.kernels = &planted;                                                            \
        CHECK_MSG(mx_cases_test(&env, #name "(") > 0, "a wrong %s passes", #name);         \
    } while (0);
    MX_OPS(X)
#undef X
    mx_devices_close(devs, count);
}

/* `grad` too: a derivative of the reference that is a little off. */
static void a_wrong_derivative_is_noticed(void)
{
    mx_device *devs = NULL;
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = 1};
    int count = 0;
    CHECK_OK(mx_devices_open(&devs, &count, &opt, &err), err);
    if (!devs) return;
    mx_case_env env = {&devs[0], &REAL, 7, NULL, 1e-3};
    for (int i = 0; i < mx_cases_count; i++) {
        char name[200];
        mx_case_name(&mx_cases[i], name, sizeof name);
        int wrong = mx_cases[i].perf ? -1 : mx_cases_grad(&env, name);
        CHECK_MSG(wrong != 0, "%s: a wrong derivative passes", name);
    }
    mx_devices_close(devs, count);
}

/* No op at all is no success either. */
static void a_filter_that_selects_nothing_is_an_error(void)
{
    mx_case_env env = {0};
    CHECK(mx_cases_test(&env, "no such op") == -1);
    CHECK(mx_cases_grad(&env, "no such op") == -1);
}

MX_TESTS(TEST(a_wrong_op_turns_the_suite_red), TEST(a_wrong_derivative_is_noticed),
         TEST(a_filter_that_selects_nothing_is_an_error))
