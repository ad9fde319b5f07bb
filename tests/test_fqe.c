/* test_fqe.c - fitted Q evaluation against chains whose values are known. */
#include "models/fqe.h"
#include "tests/test.h"

static uint64_t state = 11;

static double uniform(void)
{
    return (double)(test_random(&state) >> 11) * 0x1p-53;
}

enum { STATES = 4, STEPS = 40000 };

/* A chain of states, one number each (one-hot); action 1 moves on and earns the state's
 * number, action 0 stays and earns 0.1; after the last state it ends. */
static void a_chain(void)
{
    static float one_hot[STATES][STATES];
    static mx_logged_step step[STEPS];
    static const double target[2] = {0.25, 0.75};
    mx_error err = {0};
    mx_fqe got;
    int s = 0;
    bool first = true;
    for (int i = 0; i < STATES; i++) one_hot[i][i] = 1;
    for (int i = 0; i < STEPS; i++) {
        int a = uniform() < 0.5;
        int next = s + a;
        step[i] = (mx_logged_step){.seen = one_hot[s], .next = next < STATES ? one_hot[next] : NULL, .action = a, .reward = a ? s : 0.1, .target = target, .target_next = target, .first = first};
        first = next == STATES;
        s = first ? 0 : next;
    }
    double value[STATES + 1] = {0}, discount = 0.9;
    for (int k = STATES - 1; k >= 0; k--) value[k] = (0.25 * 0.1 + 0.75 * (k + discount * value[k + 1])) / (1 - 0.25 * discount);
    CHECK_OK(mx_fqe_linear(step, STEPS, STATES, 2, discount, &got, &err), err);
    CHECK_MSG(fabs(got.value - value[0]) < 1e-3 && got.error < 1e-6 && got.starts > 1000, "%.6f, not %.6f", got.value, value[0]);
    /* the logged policy itself, without discount: the mean of what was earned */
    static const double same[2] = {0.5, 0.5};
    double earned = 0;
    for (int i = 0; i < STEPS; i++) {
        step[i].target = step[i].target_next = same;
        earned += step[i].reward;
    }
    CHECK_OK(mx_fqe_linear(step, STEPS, STATES, 2, 1, &got, &err), err);
    CHECK_MSG(fabs(got.value - earned / (double)got.starts) < 0.01, "%.4f, not %.4f", got.value, earned / (double)got.starts);
    step[7].reward = NAN;
    CHECK(mx_fqe_linear(step, STEPS, STATES, 2, 1, &got, &err) == MX_ERR_ARG && strstr(err.text, "step 7"));
    step[7].reward = 0;
    step[3].action = 2;
    CHECK(mx_fqe_linear(step, STEPS, STATES, 2, 1, &got, &err) == MX_ERR_ARG && strstr(err.text, "step 3"));
    CHECK(mx_fqe_linear(step, 0, STATES, 2, 1, &got, &err) == MX_ERR_ARG && mx_fqe_linear(step, STEPS, STATES, 2, 1.5, &got, &err) == MX_ERR_ARG);
}

MX_TESTS(TEST(a_chain))
