/* test_offline.c - learning from logged steps: cloning and conservative Q-learning against PyTorch
 * (tests/golden/make_offline_golden.py), against the policy that was logged, resumed to the bit; bad files. */
#include "runtime/random.h"
#include "tests/dqn_rig.h"

/* ---- the step ---------------------------------------------------------------------------- */

static void as_pytorch(void)
{
    enum { B = 6 };
    json_t *j = json_load_file(MX_SOURCE_DIR "/tests/golden/offline/steps.json", 0, NULL), *one, *name;
    size_t t, k;
    char folder[64], path[96];
    mx_error err = {0};
    mx_dqn *d = NULL;
    CHECK(j != NULL);
    temporary(folder);
    snprintf(path, sizeof path, "%s/steps.jsonl", folder);
    FILE *f = fopen(path, "we");
    json_array_foreach(json_object_get(j, "rows"), t, one) {
        json_dumpf(one, f, JSON_COMPACT);
        fputc('\n', f);
    }
    fclose(f);
    mx_dqn_options o = mx_dqn_offline_defaults("");
    o.data = path;
    o.batch = B;
    o.lr = o.min_lr = 1e-2f;
    o.clip = 0;
    o.huber = 0.5f;
    o.gamma = 0.875f;
    o.cql_alpha = 0.7f;
    o.clone_steps = 1;
    o.tau = 1;
    o.target_every = 1000;
    o.net = (mx_qnet_config){.layers = 2, .hidden = {8, 8}, .activation = MX_ACT_RELU, .atoms = 1};
    CHECK_OK(mx_dqn_open(&d, device(), "", NULL, &o, &err), err);
    if (!d) return;
    mx_params *p = mx_qnet_params(d->online);
    const json_t *names = json_object_get(j, "names");
    json_array_foreach(names, t, one)
        floats(json_array_get(json_object_get(j, "online"), t), mx_params_view(p, &p->value, mx_params_find(p, json_string_value(one)), 1).data, 1, 1);
    json_array_foreach(json_object_get(j, "steps"), t, one) {
        float uniform[B];
        mx_replay_batch b = {0};
        for (size_t i = 0; i < B; i++)
            uniform[i] = ((float)json_integer_value(json_array_get(json_object_get(one, "ids"), i)) + 0.5f) / (float)d->data->n;
        mx_stream_rewind(&d->stream);
        mx_replay_draw(d->replay, &d->stream, uniform, B, 1, &b);
        dqn_gradients(d, &b);
        json_array_foreach(names, k, name)
            near_all(json_string_value(name), mx_params_view(p, &p->grad, mx_params_find(p, json_string_value(name)), 1).data, json_array_get(json_object_get(one, "grads"), k), 1e-4);
        CHECK_OK(dqn_apply(d, &err), err);
        double loss = json_number_value(json_object_get(one, "loss")), gap = json_number_value(json_object_get(one, "gap"));
        CHECK_MSG(fabs(d->at.loss - loss) < 1e-5 * loss && fabs(d->gap - gap) < 1e-5 * gap, "step %zu: loss %g and gap %g, not %g and %g", t, d->at.loss, d->gap, loss, gap);
    }
    CHECK(d->at.updates == 4);
    json_array_foreach(names, t, one)
        near_all(json_string_value(one), mx_params_view(p, &p->value, mx_params_find(p, json_string_value(one)), 1).data, json_array_get(json_object_get(j, "after"), t), 1e-4);
    mx_dqn_close(d);
    json_decref(j);
    remove_all(folder);
}

/* What the gradients of one batch are of: the error's loss and alpha times the gap. */
static double objective(mx_dqn *d, int64_t batch)
{
    float uniform[64];
    double sum[2] = {0};
    mx_replay_batch b = {0};
    mx_error err = {0};
    for (int64_t i = 0; i < batch; i++) uniform[i] = ((float)i + 0.5f) / (float)batch;
    mx_stream_rewind(&d->stream);
    mx_replay_draw(d->replay, &d->stream, uniform, batch, 1, &b);
    dqn_gradients(d, &b);
    d->dev->ops->download(&d->stream, sum, d->sum.base, sizeof sum);
    CHECK_OK(mx_stream_sync(&d->stream, &err), err);
    return (sum[0] + (double)d->o.cql_alpha * sum[1]) / (double)batch;
}

static double log_of_a_hand(const char *path, int episodes, double errs);

/* A dueling head under the conservative pull: the gradients are those of finite differences. */
static void dueling_is_pulled_too(void)
{
    enum { B = 32 };
    static const char *const names[] = {"layers.0.weight", "layers.1.weight", "layers.1.bias", "head.weight", "head.bias"};      /* the head: advantages, and the value behind them */
    const float h = 1.0f / 512;      /* Huber and the best next action have kinks */
    char folder[64], path[96];
    mx_error err = {0};
    mx_dqn *d = NULL;
    temporary(folder);
    snprintf(path, sizeof path, "%s/steps.jsonl", folder);
    log_of_a_hand(path, 6, 0.5);
    mx_dqn_options o = mx_dqn_offline_defaults("");
    o.data = path, o.batch = B, o.cql_alpha = 0.7f, o.gamma = 0.9f;
    o.net = (mx_qnet_config){.layers = 2, .hidden = {8, 8}, .activation = MX_ACT_TANH, .atoms = 1, .dueling = true};
    CHECK_OK(mx_dqn_open(&d, device(), "", NULL, &o, &err), err);
    remove_all(folder);
    mx_params *p = d ? mx_qnet_params(d->online) : NULL;
    double largest = 0, worst = 0;
    for (size_t k = 0; d && k < 2 * (sizeof names / sizeof *names); k++) {      /* of each the first and the last */
        mx_tensor value = mx_params_view(p, &p->value, mx_params_find(p, names[k / 2]), 1), grad = mx_params_view(p, &p->grad, mx_params_find(p, names[k / 2]), 1);
        int64_t at = k % 2 ? (value.rows - 1) * value.stride + value.cols - 1 : 0;
        float *w = (float *)value.data + at, was = *w;
        objective(d, B);
        double got = (double)((float *)grad.data)[at];
        *w = was + h;
        double up = objective(d, B);
        *w = was - h;
        double want = (up - objective(d, B)) / (2 * (double)h);
        *w = was;
        largest = fmax(largest, fabs(want));
        worst = fmax(worst, fabs(want - got));
    }
    CHECK_MSG(largest > 0.01 && worst < 0.05 * largest, "off by %g of %g", worst, largest);
    mx_dqn_close(d);
}

/* ---- runs -------------------------------------------------------------------------------------- */

/* Steps of a hand that leans the way of the pole, but errs: its mean return. */
static double log_of_a_hand(const char *path, int episodes, double errs)
{
    mx_env e;
    mx_error err = {0};
    float x[4], next[4], reward;
    uint8_t end[2];
    double sum = 0;
    CHECK_OK(mx_env_open(&e, "cartpole", 1, 77, &err), err);
    FILE *f = fopen(path, "we");
    for (int k = 0; k < episodes; k++) {
        mx_env_observe(&e, 0, 1, x, NULL);
        for (uint32_t t = 0;; t++) {
            int32_t a = x[2] + x[3] > 0;
            if (mx_uniform(5, (uint32_t)k, t, 0, 1) < errs) a = mx_uniform(5, (uint32_t)k, t, 0, 2) < 0.5;
            mx_env_step(&e, 0, 1, &a, &reward, end, end + 1);
            mx_env_observe(&e, 0, 1, next, NULL);
            fprintf(f, "{\"first\": %s, \"state\": [%.9g, %.9g, %.9g, %.9g], \"mask\": [1, 1], \"action\": %d, \"reward\": %g, \"next\": [%.9g, %.9g, %.9g, %.9g], "
                       "\"next_mask\": [1, 1], \"terminated\": %s, \"truncated\": %s}\n", t ? "false" : "true", (double)x[0], (double)x[1], (double)x[2], (double)x[3], a,
                    (double)reward, (double)next[0], (double)next[1], (double)next[2], (double)next[3], end[0] ? "true" : "false", end[1] ? "true" : "false");
            memcpy(x, next, sizeof x);
            if (end[0] || end[1]) break;
        }
        sum += e.row[0].earned;
        mx_env_begin(&e, 0);
    }
    fclose(f);
    mx_env_close(&e);
    return sum / episodes;
}

static uint64_t digest(mx_dqn *d)
{
    const mx_params *p = mx_qnet_params(d->online);
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < p->count * sizeof(float); i++) h = (h ^ ((const uint8_t *)p->value.base)[i]) * 0x100000001b3u;
    return h;
}

static uint64_t trained(const char *env, const char *run, const mx_dqn_options *o, int64_t until, mx_dqn_report *r)
{
    mx_dqn *d = NULL;
    mx_error err = {0};
    bool done = false;
    mx_status st = mx_dqn_open(&d, device(), env, run, o, &err);
    CHECK_OK(st, err);
    if (st) return 0;
    for (int64_t at = 0; !st && !done && at < until; at = r->step) {
        st = mx_dqn_turn(d, r, &done, &err);
        CHECK_OK(st, err);
    }
    CHECK_OK(mx_dqn_save(d, &err), err);
    uint64_t h = digest(d);
    mx_dqn_close(d);
    return h;
}

static void better_than_what_was_logged(void)
{
    char folder[64], path[96];
    mx_dqn_report plain, kept;
    temporary(folder);
    snprintf(path, sizeof path, "%s/steps.jsonl", folder);
    double logged = log_of_a_hand(path, 60, 0.5);
    mx_dqn_options o = mx_dqn_offline_defaults("cartpole");
    o.data = path;
    o.steps = 4000;
    o.clone_steps = 500;
    trained("cartpole", NULL, &o, 1 << 30, &kept);
    o.cql_alpha = 0;
    o.clone_steps = 0;
    trained("cartpole", NULL, &o, 1 << 30, &plain);
    printf("logged %.1f; conservative %.1f, mean value %.2f, gap %.3f; plain %.1f, mean value %.2f, gap %.3f\n", logged, kept.eval_return, kept.mean_value, kept.gap,
           plain.eval_return, plain.mean_value, plain.gap);
    CHECK_MSG(kept.eval_return > 1.5 * logged, "the logged policy returns %.1f, the learned one %.1f", logged, kept.eval_return);
    CHECK_MSG(kept.mean_value < plain.mean_value && kept.mean_value < 100 && kept.mean_value > 0, "mean values are %g, and %g without the pull", kept.mean_value, plain.mean_value);
    remove_all(folder);
}

static void goes_on_to_the_bit(void)
{
    char folder[64], path[96], run[96];
    mx_dqn_report r;
    mx_error err = {0};
    mx_dqn *d;
    temporary(folder);
    snprintf(path, sizeof path, "%s/steps.jsonl", folder);
    log_of_a_hand(path, 12, 0.5);
    for (int k = 0; k < 3; k++) {
        mx_dqn_options o = mx_dqn_offline_defaults("cartpole");
        o.data = path;
        o.steps = 300;
        o.batch = 16;
        o.clone_steps = 100;
        o.n_step = k == 1 ? 3 : 1;
        o.prioritized = k >= 1;
        o.net.noisy = k == 2;
        o.net.dueling = k >= 1;
        snprintf(run, sizeof run, "%s/run%d", folder, k);
        uint64_t want = trained("", NULL, &o, 1 << 30, &r);
        CHECK(r.evaluated && r.eval_return > 0 && r.eval_error >= 0 && isfinite(r.mean_value));
        trained("", run, &o, 70, &r);
        trained("", run, &o, 180, &r);
        CHECK_MSG(trained("", run, &o, 1 << 30, &r) == want, "options %d: other weights", k);
        o.cql_alpha = 0.5f;
        CHECK(mx_dqn_open(&d, device(), "", run, &o, &err) == MX_ERR_STATE && strstr(err.text, "cql-alpha"));
    }
    mx_dqn_options o = mx_dqn_offline_defaults("cartpole");
    snprintf(run, sizeof run, "%s/run0", folder);
    log_of_a_hand(path, 13, 0.5);
    o.data = path;
    o.steps = 300, o.batch = 16, o.clone_steps = 100;
    CHECK(mx_dqn_open(&d, device(), "", run, &o, &err) == MX_ERR_STATE);
    remove_all(folder);
}

/* ---- what is refused ------------------------------------------------------------------------------ */

#define GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 0, \"reward\": 1, \"next\": [1, 1], \"next_mask\": [1, 1]}\n"

static void bad_files_are_refused(void)
{
    static const struct { const char *text, *why; } bad[] = {
        {"", "nothing to learn from"}, {"no json\n", ":1: step"}, {"[1]\n", ":1: step: must be an object"},
        {"{\"mask\": [1]}\n", "state: must be"}, {"{\"state\": [1, 2]}\n", "mask: must be"},
        {"{\"state\": [1, 2], \"mask\": [1, 0], \"action\": 0, \"reward\": 1}\n", "nothing to learn from"},
        {GOOD "{\"state\": [0], \"mask\": [1, 0]}\n", ":2: state: has 1 numbers; the first line has 2"},
        {GOOD "{\"state\": [0, null], \"mask\": [1, 0]}\n", ":2: state: must hold finite"},
        {GOOD "{\"state\": [0, 1], \"action\": 0, \"reward\": 1}\n", ":2: mask: is missing"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0, 1]}\n", ":2: mask: has 3"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 2]}\n", ":2: mask: must hold 1"},
        {GOOD "{\"state\": [0, 1], \"mask\": [0, 0]}\n", ":2: mask: leaves no action"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"reward\": 1}\n", ":2: action: must be"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 2, \"reward\": 1}\n", ":2: action: must be"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 1, \"reward\": 1}\n", ":2: action: is not feasible"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 0}\n", ":2: reward: must be"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 0, \"reward\": 1, \"next\": [1]}\n", ":2: next: has 1"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 0, \"reward\": 1, \"next\": [1, 1]}\n", ":2: next_mask: is missing"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 0, \"reward\": 1, \"truncated\": true}\n", ":2: next: is missing"},
        {GOOD "{\"state\": [0, 1], \"mask\": [1, 0], \"action\": 0, \"reward\": 1, \"terminated\": 1}\n", ":2: terminated: must be"}};
    char folder[64], path[96];
    mx_transitions *t;
    mx_error err = {0};
    temporary(folder);
    snprintf(path, sizeof path, "%s/steps.jsonl", folder);
    CHECK(mx_transitions_open(&t, path, &err) == MX_ERR_IO && strstr(err.text, "steps.jsonl"));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK_OK(mx_write_file(path, bad[i].text, strlen(bad[i].text), &err), err);
        CHECK_MSG(mx_transitions_open(&t, path, &err) == MX_ERR_FORMAT && strstr(err.text, bad[i].why), "%zu: %s", i, err.text);
    }
    /* the newest step of an item has no next: the one before it is cut off there */
    static const char two[] = GOOD "{\"state\": [1, 1], \"mask\": [1, 1], \"action\": 1, \"reward\": 2}\n" GOOD;
    CHECK_OK(mx_write_file(path, two, sizeof two - 1, &err), err);
    CHECK_OK(mx_transitions_open(&t, path, &err), err);
    if (t) CHECK(t->n == 2 && t->starts == 2 && t->first[0] && t->first[1] && t->truncated[0] && t->truncated[1] && t->observation == 2 && t->actions == 2);
    mx_transitions_close(t);
    mx_dqn *d;
    mx_dqn_options o = mx_dqn_offline_defaults("");
    o.data = path;
    CHECK(mx_dqn_open(&d, device(), "cartpole", NULL, &o, &err) == MX_ERR_ARG && strstr(err.text, "state has 2 numbers"));
    o.net.atoms = 51;
    CHECK(mx_dqn_open(&d, device(), "", NULL, &o, &err) == MX_ERR_ARG && strstr(err.text, "atoms"));
    o.data = NULL, o.net.atoms = 1;
    CHECK(mx_dqn_open(&d, device(), "cartpole", NULL, &o, &err) == MX_ERR_ARG && strstr(err.text, "cql-alpha"));
    remove_all(folder);
}

MX_TESTS(TEST(as_pytorch), TEST(dueling_is_pulled_too), TEST(better_than_what_was_logged), TEST(goes_on_to_the_bit), TEST(bad_files_are_refused))
