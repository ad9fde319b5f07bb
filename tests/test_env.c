/* test_env.c - worlds against gymnasium (tests/golden/make_env_golden.py), selling
 * against the exact optimum, and what learning needs of all: seeds, limits, resuming. */
#include "kernels/ops.h"
#include "models/env.h"
#include "tests/test.h"

#include <jansson.h>

static const char *const kinds[] = {"cartpole", "acrobot", "gvr", "gvr:5,0.5"};
enum { KINDS = sizeof kinds / sizeof *kinds };

/* ---- the dynamics ------------------------------------------------------------------------ */

static void follow(const char *kind, const json_t *t)
{
    mx_env e;
    mx_error err = {0};
    float seen[8];
    double state[4];
    CHECK_OK(mx_env_open(&e, kind, 1, 1, &err), err);
    for (size_t k = 0; k < 4; k++) state[k] = json_number_value(json_array_get(json_object_get(t, "state"), k));
    memcpy(e.state, state, sizeof state);
    const json_t *action = json_object_get(t, "action"), *want = json_object_get(t, "observation");
    for (size_t i = 0; i <= json_array_size(action); i++) {
        const json_t *o = json_array_get(want, i);
        mx_env_observe(&e, 0, 1, seen, NULL);
        for (size_t k = 0; k < (size_t)e.observation; k++) {
            double w = json_number_value(json_array_get(o, k));
            CHECK_MSG(fabs((double)seen[k] - w) < 1e-5 * (1 + fabs(w)), "%s, step %zu: %g, not %g", kind, i, (double)seen[k], w);
        }
        if (i == json_array_size(action)) break;
        int32_t a = (int32_t)json_integer_value(json_array_get(action, i));
        float reward;
        uint8_t terminated, truncated;
        mx_env_step(&e, 0, 1, &a, &reward, &terminated, &truncated);
        CHECK((double)reward == json_number_value(json_array_get(json_object_get(t, "reward"), i)));
        CHECK(terminated == json_integer_value(json_array_get(json_object_get(t, "terminated"), i)) && !truncated);
    }
    mx_env_close(&e);
}

static void as_gymnasium(void)
{
    json_t *j = json_load_file(MX_SOURCE_DIR "/tests/golden/env/trajectories.json", 0, NULL);
    CHECK(j);
    for (int k = 0; k < 2; k++) {
        const json_t *rows = json_object_get(j, kinds[k]);
        CHECK(json_array_size(rows) >= 2);
        for (size_t r = 0; r < json_array_size(rows); r++) follow(kinds[k], json_array_get(rows, r));
    }
    json_decref(j);
}

/* The op steps the same worlds to the same bits. */
static void as_the_op(void)
{
    enum { ROWS = 37, STEPS = 200, LIMIT = 150 };
    mx_device *devs = NULL;
    mx_stream s;
    mx_error err = {0};
    int count = 0, ends = 0;
    CHECK_OK(mx_devices_open(&devs, &count, &(mx_device_options){.cpu_threads = 2}, &err), err);
    CHECK_OK(mx_stream_open(&s, &devs[0], 4096, &err), err);
    for (int w = 0; w < 2; w++) {
        mx_env e;
        CHECK_OK(mx_env_open(&e, kinds[w], ROWS, 9, &err), err);
        e.limit = LIMIT;
        double state[ROWS * 4];
        float reward[ROWS], next[ROWS * 6], seen[ROWS * 6], earned[ROWS], want[ROWS * 6];
        int32_t at[ROWS * 3] = {0}, action[ROWS], ended[ROWS];
        uint8_t terminated[ROWS], truncated[ROWS];
        memcpy(state, e.state, sizeof state);
        for (int r = 0; r < ROWS; r++) at[3 * r] = r;
        for (int i = 0; i < STEPS; i++) {
            for (int r = 0; r < ROWS; r++) action[r] = (r + i / (1 + r % 3)) % e.actions;
            mx_world_step(&s, (mx_world)w, mx_tensor_of(state, MX_I32, ROWS, 8), mx_tensor_of(at, MX_I32, ROWS, 3), mx_tensor_of(action, MX_I32, ROWS, 1),
                          mx_tensor_of(earned, MX_F32, ROWS, 1), mx_tensor_of(ended, MX_I32, ROWS, 1), mx_tensor_of(next, MX_F32, ROWS, e.observation),
                          mx_tensor_of(seen, MX_F32, ROWS, e.observation), 9, LIMIT);
            mx_env_step(&e, 0, ROWS, action, reward, terminated, truncated);
            mx_env_observe(&e, 0, ROWS, want, NULL);
            CHECK(!memcmp(next, want, (size_t)(ROWS * e.observation) * sizeof *want) && !memcmp(earned, reward, sizeof reward));
            for (int r = 0; r < ROWS; r++) {
                CHECK(ended[r] == (terminated[r] ? 1 : truncated[r] ? 2 : 0));
                if (ended[r]) ends++, mx_env_begin(&e, r);
                CHECK(at[3 * r + 1] == (int32_t)e.row[r].episode && at[3 * r + 2] == (int32_t)e.row[r].step);
            }
            mx_env_observe(&e, 0, ROWS, want, NULL);
            CHECK(!memcmp(seen, want, (size_t)(ROWS * e.observation) * sizeof *want) && !memcmp(state, e.state, sizeof state));
        }
        mx_env_close(&e);
    }
    CHECK(ends > 2 * ROWS);
    CHECK_OK(mx_stream_sync(&s, &err), err);
    mx_stream_close(&s);
    mx_devices_close(devs, count);
}

/* ---- selling ------------------------------------------------------------------------------ */

/* The best any prices of the ladder can earn, by dynamic programming; price of stock and steps left. */
static double solve(int units, int steps, double best[26][21], int price[26][21])
{
    memset(best, 0, sizeof(double) * 26 * 21);
    for (int t = 1; t <= steps; t++)
        for (int n = 1; n <= units; n++)
            for (int a = 0; a < 10; a++) {
                double p = 1 + 0.2 * a, mean = 10 * exp(-p) / 20, prob = exp(-mean), left = 1, value = 0;
                for (int k = 0; k < n; k++) {
                    value += prob * (k * p + best[n - k][t - 1]);
                    left -= prob;
                    prob *= mean / (k + 1);
                }
                value += left * n * p;
                if (value <= best[n][t]) continue;
                best[n][t] = value;
                price[n][t] = a;
            }
    return best[units][steps];
}

/* Gallego and van Ryzin 1994, section 2.3. */
static double optimum(int n, double t)
{
    double sum = 1, term = 1;
    for (int i = 1; i <= n; i++) sum += term *= 10 / exp(1) * t / i;
    return log(sum);
}

static void selling_earns_its_optimum(void)
{
    static const struct { int n; double t; const char *env; } cases[] = {
        {1, 1, "gvr:1,1"}, {2, 0.5, "gvr:2,0.5"}, {5, 1, "gvr:5,1"}, {10, 1, "gvr:10,1"}, {25, 0.25, "gvr:25,0.25"}};
    enum { ROWS = 20000 };
    static double best[26][21];
    static int price[26][21];
    static int32_t action[ROWS];
    static float seen[ROWS][4], reward[ROWS];
    static uint8_t terminated[ROWS], truncated[ROWS];
    CHECK(fabs(optimum(1, 1) - 1.54304047) < 1e-8 && fabs(optimum(5, 0.25) - 0.91931382) < 1e-8);
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int steps = (int)lround(cases[c].t * 20);
        double dp = solve(cases[c].n, steps, best, price), J = optimum(cases[c].n, cases[c].t), sum = 0, squares = 0;
        mx_env e;
        mx_error err = {0};
        CHECK_MSG(dp / J > 0.995 && dp < J, "%s: the ladder's best is %.4f of J*", cases[c].env, dp / J);
        CHECK_OK(mx_env_open(&e, cases[c].env, ROWS, 7, &err), err);
        for (int t = steps; t > 0; t--) {
            mx_env_observe(&e, 0, ROWS, seen[0], NULL);
            for (int i = 0; i < ROWS; i++) {
                int n = (int)lroundf(seen[i][0] * 25);
                CHECK(n == 0 || lroundf(seen[i][1] * 20) == t);
                action[i] = n ? price[n][t] : 0;
            }
            mx_env_step(&e, 0, ROWS, action, reward, terminated, truncated);
        }
        for (int i = 0; i < ROWS; i++) {
            sum += e.row[i].earned;
            squares += e.row[i].earned * e.row[i].earned;
            CHECK(terminated[i]);
        }
        double mean = sum / ROWS, error = sqrt((squares / ROWS - mean * mean) / ROWS);
        CHECK_MSG(fabs(mean - dp) < 4 * error, "%s: simulated %.4f +- %.4f, computed %.4f", cases[c].env, mean, error, dp);
        mx_env_close(&e);
    }
}

/* ---- what all share --------------------------------------------------------------------------- */

/* `n` steps of row-dependent actions; a hash of all that was seen. */
static uint64_t play(mx_env *e, int n, uint64_t hash)
{
    float *seen = malloc((size_t)(e->rows * e->observation) * sizeof *seen), *reward = malloc((size_t)e->rows * sizeof *reward);
    uint8_t *ends = malloc(2 * (size_t)e->rows), *mask = malloc((size_t)(e->rows * e->actions));
    int32_t *action = malloc((size_t)e->rows * sizeof *action);
    for (int t = 0; t < n; t++) {
        mx_env_observe(e, 0, e->rows, seen, mask);
        for (int64_t i = 0; i < e->rows * e->observation; i++) {
            uint32_t bits;
            memcpy(&bits, seen + i, 4);
            hash = (hash ^ bits) * 0x100000001b3u;
        }
        for (int64_t i = 0; i < e->rows; i++) {
            action[i] = (int32_t)((e->row[i].step * 7 + e->row[i].episode + (uint32_t)i) % (uint32_t)e->actions);
            CHECK(mask[i * e->actions + action[i]]);
        }
        mx_env_step(e, 0, e->rows, action, reward, ends, ends + e->rows);
        for (int64_t i = 0; i < e->rows; i++) {
            CHECK(!(ends[i] && ends[e->rows + i]));
            if (ends[i] || ends[e->rows + i]) mx_env_begin(e, i);
        }
    }
    free(action), free(mask), free(ends), free(reward), free(seen);
    return hash;
}

static void a_copy_of_its_memory_goes_on(void)
{
    for (int k = 0; k < KINDS; k++) {
        mx_env a, b, c;
        mx_error err = {0};
        CHECK_OK(mx_env_open(&a, kinds[k], 13, 3, &err), err);
        CHECK_OK(mx_env_open(&b, kinds[k], 13, 3, &err), err);
        CHECK_OK(mx_env_open(&c, kinds[k], 13, 4, &err), err);
        uint64_t first = play(&a, 150, 1);
        memcpy(b.memory, a.memory, a.memory_bytes);
        CHECK(play(&a, 150, first) == play(&b, 150, first));
        mx_env_close(&b);
        CHECK_OK(mx_env_open(&b, kinds[k], 13, 3, &err), err);
        CHECK(play(&b, 150, 1) == first && (strchr(kinds[k], ':') || play(&c, 150, 1) != first));
        mx_env_close(&a), mx_env_close(&b), mx_env_close(&c);
    }
}

/* Row 0 of one is row 0 of many. */
static void a_row_depends_on_itself_alone(void)
{
    for (int k = 0; k < KINDS; k++) {
        mx_env one, many;
        mx_error err = {0};
        float x[8], y[8];
        CHECK_OK(mx_env_open(&one, kinds[k], 1, 3, &err), err);
        CHECK_OK(mx_env_open(&many, kinds[k], 5, 3, &err), err);
        play(&one, 40, 1);
        play(&many, 40, 1);
        mx_env_observe(&one, 0, 1, x, NULL);
        mx_env_observe(&many, 0, 1, y, NULL);
        CHECK(!memcmp(x, y, (size_t)one.observation * sizeof *x));
        mx_env_close(&one), mx_env_close(&many);
    }
}

static void a_limit_is_not_an_end(void)
{
    mx_env e;
    mx_error err = {0};
    int32_t still = 1;
    float reward;
    uint8_t terminated = 0, truncated = 0;
    CHECK_OK(mx_env_open(&e, "acrobot", 1, 1, &err), err);
    for (int t = 1; t <= 500; t++) {
        mx_env_step(&e, 0, 1, &still, &reward, &terminated, &truncated);      /* it only swings a little */
        CHECK(!terminated && truncated == (t == 500));
    }
    CHECK(e.row[0].earned == -500 && e.row[0].step == 500);
    mx_env_begin(&e, 0);
    CHECK(e.row[0].earned == 0 && e.row[0].step == 0 && e.row[0].episode == 1);
    mx_env_close(&e);
}

static void wrong_names_are_told(void)
{
    static const struct { const char *name, *says; } wrong[] = {
        {"cartpol", "there is no \"cartpol\"; there are cartpole, acrobot, gvr"}, {"cartpole:5", "takes nothing behind a colon"},
        {"gvr:0,1", "not \"0,1\""}, {"gvr:5", "not \"5\""}, {"gvr:5,0.03", "steps of 0.05"}, {"gvr:5,2", "0.05 to 1"}, {"gvr:26,1", "1 to 25 units"},
        {"gvr:5,1x", "not \"5,1x\""}};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        mx_env e;
        mx_error err = {0};
        CHECK(mx_env_open(&e, wrong[i].name, 1, 1, &err) == MX_ERR_ARG);
        CHECK_MSG(strstr(err.text, wrong[i].says), "%s: %s", wrong[i].name, err.text);
    }
    mx_env e;
    mx_error err = {0};
    CHECK(mx_env_open(&e, "cartpole", 0, 1, &err) == MX_ERR_ARG);
}

MX_TESTS(TEST(as_gymnasium), TEST(as_the_op), TEST(selling_earns_its_optimum), TEST(a_copy_of_its_memory_goes_on), TEST(a_row_depends_on_itself_alone),
         TEST(a_limit_is_not_an_end), TEST(wrong_names_are_told))
