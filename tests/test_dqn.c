/* test_dqn.c - learning to act: ten steps against PyTorch (tests/golden/make_dqn_golden.py), replay,
 * resuming to the bit, every option once, CartPole, and a policy of Stable-Baselines3.
 *     MX_SB3_CARTPOLE=FILE.zip   its policy; ../shared/data when it is there */
#include "tests/dqn_rig.h"

/* ---- the step ---------------------------------------------------------------------------- */

static void as_pytorch(void)
{
    enum { D = 6, A = 3, B = 6 };
    json_t *j = json_load_file(MX_SOURCE_DIR "/tests/golden/dqn/steps.json", 0, NULL), *one;
    size_t t;
    mx_error err = {0};
    mx_dqn *d = NULL;
    mx_dqn_options o = mx_dqn_defaults("acrobot");
    o.batch = B;
    o.lr = o.min_lr = 1e-2f;
    o.clip = 1;
    o.huber = 0.5f;
    o.tau = 1;
    o.target_every = 1000;
    o.net = (mx_qnet_config){.layers = 2, .hidden = {8, 8}, .activation = MX_ACT_RELU, .atoms = 1, .dueling = true};
    CHECK_OK(mx_dqn_open(&d, device(), "acrobot", NULL, &o, &err), err);
    if (!d || !j) return;
    mx_params *p = mx_qnet_params(d->online), *q = mx_qnet_params(d->target);
    json_array_foreach(json_object_get(j, "names"), t, one) {
        int i = mx_params_find(p, json_string_value(one));
        floats(json_array_get(json_object_get(j, "online"), t), mx_params_view(p, &p->value, i, 1).data, 1, 1);
        floats(json_array_get(json_object_get(j, "target"), t), mx_params_view(q, &q->value, i, 1).data, 1, 1);
    }
    json_array_foreach(json_object_get(j, "steps"), t, one) {
        float state[B * D], next[B * D], step[B * 3];
        int32_t action[B];
        int8_t mask[B * A];
        floats(json_object_get(one, "state"), state, 1, 1);
        floats(json_object_get(one, "next"), next, 1, 1);
        floats(json_object_get(one, "return"), step, 3, 1);
        floats(json_object_get(one, "discount"), step + 1, 3, 1);
        floats(json_object_get(one, "weight"), step + 2, 3, 1);
        for (size_t i = 0; i < B; i++) action[i] = (int32_t)json_integer_value(json_array_get(json_object_get(one, "action"), i));
        for (size_t i = 0; i < B * A; i++) mask[i] = (int8_t)json_integer_value(json_array_get(json_object_get(one, "mask"), i));
        mx_replay_batch b = {.state = mx_tensor_of(state, MX_F32, B, D), .next = mx_tensor_of(next, MX_F32, B, D), .step = mx_tensor_of(step, MX_F32, B, 3),
                             .action = mx_tensor_of(action, MX_I32, B, 1), .mask = mx_tensor_of(mask, MX_I8, B, A)};
        mx_stream_rewind(&d->stream);
        mx_tensor error = dqn_gradients(d, &b);
        near_all("errors", error.data, json_object_get(one, "error"), 1e-5);
        const json_t *grads = json_object_get(one, "grads"), *g;
        size_t k;
        json_array_foreach(grads, k, g) {
            const char *name = json_string_value(json_array_get(json_object_get(j, "names"), k));
            near_all(name, mx_params_view(p, &p->grad, mx_params_find(p, name), 1).data, g, 1e-5);
        }
        CHECK_OK(dqn_apply(d, &err), err);
        double loss = json_number_value(json_object_get(one, "loss")), norm = json_number_value(json_object_get(one, "norm"));
        CHECK_MSG(fabs(d->at.loss - loss) < 1e-5 * loss, "step %zu: loss %g, not %g", t, d->at.loss, loss);
        CHECK_MSG(fabs(d->at.grad_norm - norm) < 1e-5 * norm, "step %zu: norm %g, not %g", t, d->at.grad_norm, norm);
    }
    CHECK(d->at.updates == 10);
    json_array_foreach(json_object_get(j, "names"), t, one)
        near_all(json_string_value(one), mx_params_view(p, &p->value, mx_params_find(p, json_string_value(one)), 1).data, json_array_get(json_object_get(j, "after"), t), 1e-4);
    mx_dqn_close(d);
    json_decref(j);
}

/* ---- replay ---------------------------------------------------------------------------------- */

/* A world that counts: at time t it sees t, and earns 1, 10, 100 ... */
static void transitions_span_n_steps(void)
{
    enum { STEPS = 5 };
    for (int how = 0; how < 2; how++) {
        mx_replay *r = NULL;
        mx_stream s;
        mx_error err = {0};
        mx_replay_image image = {0};
        mx_replay_shape shape = {.capacity = 8, .rows = 1, .observation = 1, .actions = 2, .n_step = 3, .gamma = 0.5f};
        CHECK_OK(mx_replay_open(&r, device(), &shape, &err), err);
        CHECK_OK(mx_stream_open(&s, device(), 1 << 16, &err), err);
        float earned = 1;
        for (int t = 0; t < STEPS; t++, earned *= 10) {
            float now = (float)t, next = (float)t + 1;
            uint8_t mask[2] = {1, (uint8_t)(t % 2)};
            bool last = t == STEPS - 1;
            mx_replay_add(r, 0, &(mx_replay_step){&now, &next, mask, t % 2, earned, last && how == 0, last && how == 1});
            mx_replay_flush(r, &s);
        }
        CHECK(mx_replay_count(r) == STEPS);
        CHECK_OK(mx_replay_save(r, &s, &image, &err), err);
        /* state, next, return, discount, weight, action, mask: from t, t+1 and t+2 where there are */
        const float want[STEPS][4] = {{0, 3, 1 + 5 + 25, 0.125f}, {1, 4, 310, 0.125f}, {2, 5, 3100, how ? 0.125f : 0}, {3, 5, 6000, how ? 0.25f : 0},
                                      {4, 5, 10000, how ? 0.5f : 0}};
        for (int t = 0; t < STEPS; t++) {
            const float *row = (const float *)image.ring + 7 * t;
            int32_t action;
            memcpy(&action, row + 5, sizeof action);
            for (int k = 0; k < 4; k++) CHECK_MSG(row[k] == want[t][k], "%d, transition %d: number %d is %g, not %g", how, t, k, (double)row[k], (double)want[t][k]);
            CHECK(row[4] == 1 && action == t % 2);
            CHECK(((const uint8_t *)(row + 6))[1] == (t < 2 ? t % 2 : 0));
        }
        mx_replay_image_free(&image);
        mx_stream_close(&s);
        mx_replay_close(r);
    }
}

static void what_was_wrong_comes_more_often(void)
{
    enum { N = 40, B = 4000 };
    mx_replay *r = NULL;
    mx_stream s;
    mx_error err = {0};
    mx_replay_batch b;
    static float uniform[B];
    int drawn[N] = {0};
    mx_replay_shape shape = {.capacity = N, .rows = 1, .observation = 1, .actions = 1, .n_step = 1, .gamma = 1, .prioritized = true};
    CHECK_OK(mx_replay_open(&r, device(), &shape, &err), err);
    CHECK_OK(mx_stream_open(&s, device(), 1 << 20, &err), err);
    for (int t = 0; t < N + 7; t++) {                          /* the ring goes round */
        float now = (float)t, next = now + 1;
        uint8_t mask = 1;
        mx_replay_add(r, 0, &(mx_replay_step){&now, &next, &mask, 0, 0, false, false});
        mx_replay_flush(r, &s);
    }
    CHECK_OK(mx_stream_sync(&s, &err), err);
    float errors[N];
    int32_t ids[N];
    for (int i = 0; i < N; i++) ids[i] = i, errors[i] = (float)(i % 4);
    b.ids = mx_tensor_of(ids, MX_I32, N, 1);
    mx_replay_errors(r, &s, &b, mx_tensor_of(errors, MX_F32, N, 1), 1);
    for (int i = 0; i < B; i++) uniform[i] = 0.5f;
    mx_stream_rewind(&s);
    mx_replay_draw(r, &s, uniform, B, 1, &b);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    for (int i = 0; i < B; i++) {
        int32_t id = ((const int32_t *)b.ids.data)[i];
        const float *step = (const float *)b.step.data + i * b.step.stride;
        drawn[id]++;
        CHECK(((const float *)b.state.data)[i * b.state.stride] == (float)(id < 7 ? id + N : id));
        CHECK_MSG(fabsf(step[2] * (float)(id % 4) - 1) < 1e-3f || id % 4 == 0, "weight %g of an error %d", (double)step[2], id % 4);
    }
    for (int i = 0; i < N; i++) CHECK_MSG(abs(drawn[i] - B * (i % 4) / 60) <= 2, "transition %d was drawn %d times", i, drawn[i]);
    mx_stream_close(&s);
    mx_replay_close(r);
}

/* ---- runs ------------------------------------------------------------------------------------- */

static mx_dqn_options small(void)
{
    mx_dqn_options o = mx_dqn_defaults("cartpole");
    o.steps = 600;
    o.envs = 4;
    o.learn_starts = 100;
    o.batch = 16;
    o.train_every = 8;
    o.updates = 1;
    o.buffer = 300;
    o.n_step = 3;
    o.eval_every = 200;
    o.episodes = 3;
    o.net.hidden[0] = o.net.hidden[1] = 16;
    return o;
}

/* Sixteen of the weights' bits. */
static uint64_t digest(mx_dqn *d)
{
    const mx_params *p = mx_qnet_params(d->online);
    size_t n = p->count * sizeof(float);
    uint8_t *bytes = malloc(n);
    uint64_t h = 0xcbf29ce484222325u;
    mx_error err = {0};
    CHECK(bytes);
    d->dev->ops->download(&d->stream, bytes, p->value.base, n);
    CHECK_OK(mx_stream_sync(&d->stream, &err), err);
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    free(bytes);
    return h;
}

static uint64_t trained(const char *env, const char *run, const mx_dqn_options *o, int64_t until, int64_t *from)
{
    mx_dqn *d = NULL;
    mx_dqn_report r;
    mx_error err = {0};
    bool done = false;
    const char *folder;
    CHECK_OK(mx_dqn_open(&d, device(), env, run, o, &err), err);
    if (!d) return 0;
    if (from) *from = mx_dqn_resumed_from(d, &folder);
    for (int64_t at = 0; !done && at < until;) {
        mx_status st = mx_dqn_turn(d, &r, &done, &err);
        CHECK_OK(st, err);
        if (st) break;
        at = r.step;
    }
    CHECK_OK(mx_dqn_save(d, &err), err);
    uint64_t h = digest(d);
    mx_dqn_close(d);
    return h;
}

static void every_option_goes_on_to_the_bit(void)
{
    for (int k = 0; k < 6; k++) {
        mx_dqn_options o = small();
        int64_t from = -1;
        char run[64];
        o.double_q = k % 2 == 0;
        o.net.dueling = k >= 1;
        o.prioritized = k >= 2;
        o.net.noisy = k >= 3;
        o.net.atoms = k >= 4 ? 21 : 1;
        o.net.low = 0, o.net.high = 100;
        o.tau = k == 5 ? 0.01f : 1;
        const char *env = k == 2 ? "gvr" : k == 3 ? "acrobot" : "cartpole";
        temporary(run);
        uint64_t want = trained(env, NULL, &o, 1 << 30, NULL);
        trained(env, run, &o, 250, NULL);
        trained(env, run, &o, 420, &from);
        CHECK_MSG(from == 256, "resumed from %lld", (long long)from);
        CHECK_MSG(trained(env, run, &o, 1 << 30, &from) == want, "options %d: other weights", k);
        CHECK(from == 424);
        o.gamma = 0.5f;
        mx_dqn *d;
        mx_error err = {0};
        CHECK(mx_dqn_open(&d, device(), env, run, &o, &err) == MX_ERR_STATE && strstr(err.text, "gamma"));
        remove_all(run);
    }
}

static void a_checkpoint_is_a_network(void)
{
    mx_dqn_options o = small();
    char run[64], folder[128];
    mx_error err = {0};
    mx_qnet *q = NULL;
    mx_dqn_score s;
    o.net.dueling = o.net.noisy = true;
    temporary(run);
    trained("cartpole", run, &o, 1 << 30, NULL);
    snprintf(folder, sizeof folder, "%s/checkpoint-00000600", run);
    CHECK_OK(mx_qnet_open(&q, device(), folder, false, &err), err);
    if (q) {
        CHECK_STR(mx_qnet_config_of(q)->env, "cartpole");
        CHECK_OK(mx_dqn_evaluate(q, "cartpole", 7, 1, NULL, &s, NULL, NULL, &err), err);
        CHECK(s.episodes == 7 && s.mean >= 5 && s.mean == s.length && s.least <= s.mean && s.mean <= s.most);
        CHECK(mx_dqn_evaluate(q, "acrobot", 7, 1, NULL, &s, NULL, NULL, &err) == MX_ERR_ARG && strstr(err.text, "sees 4 numbers and has 2 actions; acrobot has 6 and 3"));
    }
    mx_qnet_close(q);
    remove_all(run);
}

/* A little of what bench/results/dqn-*.md records in full. */
static void cartpole_is_learned(void)
{
    mx_dqn_options o = mx_dqn_defaults("cartpole");
    mx_dqn *d = NULL;
    mx_dqn_report r = {0};
    mx_error err = {0};
    bool done = false;
    o.steps = 8000;
    o.eval_every = 1000;
    CHECK_OK(mx_dqn_open(&d, device(), "cartpole", NULL, &o, &err), err);
    while (d && !done && r.best_return < 100) {
        mx_status st = mx_dqn_turn(d, &r, &done, &err);
        CHECK_OK(st, err);
        if (st) break;
    }
    CHECK_MSG(r.best_return >= 100, "the best return is %.1f", r.best_return);
    mx_dqn_close(d);
}

static void a_value_that_is_no_number_ends_the_run(void)
{
    mx_dqn_options o = small();
    mx_dqn *d = NULL;
    mx_dqn_report r;
    mx_error err = {0};
    bool done = false;
    mx_status st = MX_OK;
    CHECK_OK(mx_dqn_open(&d, device(), "cartpole", NULL, &o, &err), err);
    for (int t = 0; d && !done && !st; t++) {
        if (t == 40) *(float *)mx_qnet_params(d->online)->value.base = NAN;
        st = mx_dqn_turn(d, &r, &done, &err);
    }
    CHECK_MSG(st == MX_ERR_STATE && strstr(err.text, "smaller lr"), "%s", err.text);
    mx_dqn_close(d);
}

static void wrong_options_are_named(void)
{
    static const struct { const char *name; size_t at; int32_t value; } wrong[] = {
        {"envs is 0", offsetof(mx_dqn_options, envs), 0}, {"batch is 0", offsetof(mx_dqn_options, batch), 0}, {"n-step is 0", offsetof(mx_dqn_options, n_step), 0},
        {"episodes is 0", offsetof(mx_dqn_options, episodes), 0}, {"atoms is 0", offsetof(mx_dqn_options, net.atoms), 0},
        {"hidden[0] is 0", offsetof(mx_dqn_options, net.hidden), 0}, {"layers is 9", offsetof(mx_dqn_options, net.layers), 9},
        {"atoms from 0 to 0", offsetof(mx_dqn_options, net.atoms), 51}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_dqn_options o = small();
        mx_dqn *d;
        mx_error err = {0};
        memcpy((char *)&o + wrong[i].at, &wrong[i].value, sizeof wrong[i].value);
        CHECK(mx_dqn_open(&d, device(), "cartpole", NULL, &o, &err) == MX_ERR_ARG);
        CHECK_MSG(strstr(err.text, wrong[i].name), "%s", err.text);
    }
}

/* ---- another's policy ---------------------------------------------------------------------------- */

static void as_stable_baselines(void)
{
    const char *path = getenv("MX_SB3_CARTPOLE");
    mx_error err = {0};
    mx_qnet *q = NULL;
    mx_stream s;
    mx_dqn_score score;
    float x[8] = {0, 0, 0, 0, 0.01f, 0.02f, 0.03f, 0.04f};
    static const double want[4] = {105.10628512, 105.28707774, 104.49197253, 104.68407042};
    if (!path) path = MX_SOURCE_DIR "/../shared/data/cartpole/sb3-dqn-cartpole-v1.zip";
    if (access(path, R_OK)) path = MX_SOURCE_DIR "/../../shared/data/cartpole/sb3-dqn-cartpole-v1.zip";
    if (access(path, R_OK)) {
        TEST_SKIP("no policy of Stable-Baselines3 (MX_SB3_CARTPOLE)");
        return;
    }
    CHECK_OK(mx_qnet_open(&q, device(), path, false, &err), err);
    if (!q) return;
    CHECK_OK(mx_stream_open(&s, device(), mx_qnet_scratch(q, 2, false) + 4096, &err), err);
    mx_tensor v = mx_qnet_values(q, &s, mx_tensor_of(x, MX_F32, 2, 4));
    for (int i = 0; i < 4; i++) CHECK_MSG(fabs((double)((const float *)v.data)[i] - want[i]) < 1e-4, "Q %d: %.8f, not %.8f", i, (double)((const float *)v.data)[i], want[i]);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    CHECK_OK(mx_dqn_evaluate(q, "cartpole", 20, 1, NULL, &score, NULL, NULL, &err), err);
    CHECK(score.mean == 500 && score.least == 500);
    mx_stream_close(&s);
    mx_qnet_close(q);
}

/* Torn and foreign files: an error that names the file, and nothing else. */
static void broken_files_are_refused(void)
{
    char folder[64], path[96];
    mx_qnet *q;
    mx_error err = {0};
    temporary(folder);
    snprintf(path, sizeof path, "%s/p.zip", folder);
    static const struct { const char *bytes; size_t n; } bad[] = {{"", 0}, {"PK\5\6", 4}, {"PK\5\6\0\0\0\0\1\0\1\0\377\377\377\377\377\377\377\377\0\0", 22},
                                                                  {"no zip at all, but long enough to be one", 40}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_OK(mx_write_file(path, bad[i].bytes, bad[i].n, &err), err);
        CHECK(mx_qnet_open(&q, device(), path, false, &err) == MX_ERR_FORMAT && strstr(err.text, "p.zip"));
    }
    snprintf(path, sizeof path, "%s/config.json", folder);
    CHECK_OK(mx_write_file(path, "{\"model_type\": \"gpt2\"}", 22, &err), err);
    CHECK(mx_qnet_open(&q, device(), folder, false, &err) == MX_ERR_FORMAT && strstr(err.text, "model_type"));
    static const char wide[] = "{\"model_type\": \"merx_qnet\", \"observation\": 4, \"actions\": 2, \"hidden\": [0]}";
    CHECK_OK(mx_write_file(path, wide, sizeof wide - 1, &err), err);
    CHECK(mx_qnet_open(&q, device(), folder, false, &err) == MX_ERR_FORMAT && strstr(err.text, "hidden[0] is 0"));
    remove_all(folder);
}

MX_TESTS(TEST(as_pytorch), TEST(transitions_span_n_steps), TEST(what_was_wrong_comes_more_often), TEST(every_option_goes_on_to_the_bit),
         TEST(a_checkpoint_is_a_network), TEST(cartpole_is_learned), TEST(a_value_that_is_no_number_ends_the_run), TEST(wrong_options_are_named),
         TEST(as_stable_baselines), TEST(broken_files_are_refused))
