/* test_bandit.c - exact probabilities, what policies earn, and what a state promises.
 *     MX_LONG=1 also plays the horizon of 50. */
#include "models/bandit.h"
#include "models/ope.h"
#include "models/special.h"
#include "tests/test.h"

#include <jansson.h>

static uint64_t state = 20260119;

static double uniform(void)
{
    return (double)(test_random(&state) >> 11) * 0x1p-53;
}

static mx_bandit *open_bandit(const mx_bandit_options *o)
{
    mx_bandit *b = NULL;
    mx_error err = {0};
    CHECK_OK(mx_bandit_open(&b, o, &err), err);
    return b;
}

/* Values of mpmath 1.3 to 15 digits. */
static void distribution_functions(void)
{
    const struct { double x, a, b, want; } beta[] = {
        {0.5, 2, 3, 0.6875}, {0.1, 1, 1, 0.1}, {0.02, 21, 981, 0.442699135622023}, {0.3, 500, 1000, 0.00269523657735061},
        {0.999, 2, 0.5, 0.952581646485775}, {0.75, 40, 10, 0.183387582237975},
    };
    for (size_t i = 0; i < sizeof beta / sizeof *beta; i++) {
        double got = mx_beta_below(beta[i].x, beta[i].a, beta[i].b, mx_ln_beta(beta[i].a, beta[i].b));
        CHECK_MSG(fabs(got - beta[i].want) < 1e-10, "I_%g(%g,%g) is %.15g, not %.15g", beta[i].x, beta[i].a, beta[i].b, got, beta[i].want);
        double other = mx_beta_below(1 - beta[i].x, beta[i].b, beta[i].a, mx_ln_beta(beta[i].b, beta[i].a));
        CHECK(fabs(got + other - 1) < 1e-12);
    }
    CHECK(fabs(mx_normal_below(1.959963984540054) - 0.975) < 1e-13);
    CHECK(fabs(mx_chi_square_above(3.841458820694124, 1) - 0.05) < 1e-12);
    CHECK(fabs(mx_chi_square_above(18.307038053275146, 10) - 0.05) < 1e-12);
    CHECK(fabs(mx_chi_square_above(2, 2) - exp(-1)) < 1e-13);
}

static void exact_propensities(void)
{
    double got = mx_beta_better(21, 981, 31, 971);
    CHECK_MSG(fabs(got - 0.92229331) < 5e-9, "P(B>A) is %.9f", got);
    CHECK(fabs(mx_beta_better(1, 1, 1, 1) - 0.5) < 1e-12 && fabs(mx_beta_better(1, 1, 2, 1) - 2.0 / 3) < 1e-12);
    /* whole numbers: the finite sum of Miller (2015) */
    for (int round = 0; round < 200; round++) {
        int a1 = 1 + (int)(uniform() * 300), b1 = 1 + (int)(uniform() * 3000), a2 = 1 + (int)(uniform() * 300), b2 = 1 + (int)(uniform() * 3000);
        double sum = 0;
        for (int i = 0; i < a2; i++)
            sum += exp(mx_ln_beta(a1 + i, b1 + b2) - log(b2 + i) - mx_ln_beta(1 + i, b2) - mx_ln_beta(a1, b1));
        double p = mx_beta_better(a1, b1, a2, b2);
        CHECK_MSG(fabs(p - sum) < 1e-9, "Beta(%d,%d) over Beta(%d,%d): %.12f, the sum is %.12f", a2, b2, a1, b1, p, sum);
    }
}

/* Several arms: against a million draws, and what must hold. */
static void many_arms(void)
{
    mx_bandit_options o = mx_bandit_defaults();
    double p[6], seen[6] = {0};
    mx_error err = {0};
    o.arms = 6;
    mx_bandit *b = open_bandit(&o);
    if (!b) return;
    for (int i = 0; i < 400; i++) {
        int arm = i % 6;
        CHECK_OK(mx_bandit_learn(b, arm, NULL, uniform() < 0.1 + 0.05 * arm, i * 0.01, &err), err);
    }
    CHECK_OK(mx_bandit_propensities(b, NULL, p, &err), err);
    double sum = 0;
    for (int i = 0; i < 6; i++) sum += p[i];
    CHECK(fabs(sum - 1) < 1e-12);
    for (int n = 0; n < 400000; n++) seen[mx_bandit_draw(p, 6, uniform())]++;
    CHECK_MSG(mx_sample_ratio(seen, p, 6) > 1e-4, "draws do not follow the probabilities");
    mx_bandit_arm best, worst;
    mx_bandit_arm_get(b, 5, &best);
    mx_bandit_arm_get(b, 0, &worst);
    CHECK(best.low < best.mean && best.mean < best.high && worst.n > 60);
    mx_bandit_close(b);
}

/* What Thompson sampling earns on two Bernoulli arms with uniform priors, by dynamic
 * programming over all histories: below the Bayes-optimal value, and within 6 % of it
 * (37/36 of 13/12 for two rounds, by hand: the policy itself gives 5.1 % away there). */
static double play(mx_bandit *b, double *memo, int horizon, int left, int s1, int f1, int s2, int f2)
{
    if (!left) return 0;
    size_t H = (size_t)horizon + 1, at = (((size_t)s1 * H + (size_t)f1) * H + (size_t)s2) * H + (size_t)f2;
    if (memo[at] >= 0) return memo[at];
    double numbers[6] = {1, 0, s1 + f1, s2 + f2, s1, s2}, p[2];
    mx_error err = {0};
    CHECK_OK(mx_bandit_state_load(b, numbers, sizeof numbers, &err), err);
    CHECK_OK(mx_bandit_propensities(b, NULL, p, &err), err);
    double m1 = (1.0 + s1) / (2 + s1 + f1), m2 = (1.0 + s2) / (2 + s2 + f2);
    double one = m1 * (1 + play(b, memo, horizon, left - 1, s1 + 1, f1, s2, f2)) + (1 - m1) * play(b, memo, horizon, left - 1, s1, f1 + 1, s2, f2);
    double two = m2 * (1 + play(b, memo, horizon, left - 1, s1, f1, s2 + 1, f2)) + (1 - m2) * play(b, memo, horizon, left - 1, s1, f1, s2, f2 + 1);
    return memo[at] = p[0] * one + p[1] * two;
}

static void thompson_against_the_optimum(void)
{
    const struct { int horizon; double best; } goals[] = {{2, 1.08333333}, {5, 2.88888889}, {10, 6.02178571}, {50, 31.99671188}};
    mx_bandit_options o = mx_bandit_defaults();
    mx_bandit *b = open_bandit(&o);
    for (size_t i = 0; b && i < (getenv("MX_LONG") ? 4u : 3u); i++) {
        int h = goals[i].horizon;
        size_t n = ((size_t)h + 1) * ((size_t)h + 1) * ((size_t)h + 1) * ((size_t)h + 1);
        double *memo = malloc(n * sizeof *memo);
        for (size_t k = 0; memo && k < n; k++) memo[k] = -1;
        double value = memo ? play(b, memo, h, h, 0, 0, 0, 0) : 0;
        CHECK_MSG(value < goals[i].best + 1e-8 && value > 0.94 * goals[i].best, "horizon %d: %.8f of %.8f", h, value, goals[i].best);
        if (h == 2) CHECK(fabs(value - 37.0 / 36) < 1e-9);
        free(memo);
    }
    mx_bandit_close(b);
}

static void floors_and_discounts(void)
{
    mx_bandit_options o = mx_bandit_defaults();
    double p[3];
    mx_error err = {0};
    o.arms = 3;
    o.floor = 0.3;
    o.discount = 0.5;
    mx_bandit *b = open_bandit(&o);
    if (!b) return;
    for (int i = 0; i < 500; i++) CHECK_OK(mx_bandit_learn(b, i % 3, NULL, i % 3 == 1, 0, &err), err);
    CHECK_OK(mx_bandit_propensities(b, NULL, p, &err), err);
    CHECK(fabs(p[0] - 0.1) < 1e-6 && fabs(p[2] - 0.1) < 1e-6 && fabs(p[1] - 0.8) < 1e-6);
    CHECK_OK(mx_bandit_learn(b, 0, NULL, 1, 10, &err), err);          /* ten days later little is left */
    mx_bandit_arm a;
    mx_bandit_arm_get(b, 1, &a);
    CHECK_MSG(fabs(a.n - 167.0 / 1024) < 1e-9, "%.12f", a.n);
    mx_bandit_close(b);
}

static void upper_bounds(void)
{
    mx_bandit_options o = mx_bandit_defaults();
    double p[3];
    mx_error err = {0};
    o.policy = MX_BANDIT_UCB1;
    o.arms = 3;
    mx_bandit *b = open_bandit(&o);
    if (!b) return;
    CHECK_OK(mx_bandit_propensities(b, NULL, p, &err), err);
    CHECK(fabs(p[0] - 1.0 / 3) < 1e-12);                              /* nobody was seen: equals share */
    CHECK_OK(mx_bandit_learn(b, 1, NULL, 0, 0, &err), err);
    CHECK_OK(mx_bandit_propensities(b, NULL, p, &err), err);
    CHECK(p[0] == 0.5 && p[1] == 0 && p[2] == 0.5);
    /* n = (10, 20, 30), sums (3, 8, 15): 0.3 + sqrt(2 ln 60 / 10) is the largest */
    double numbers[8] = {1, 0, 10, 20, 30, 3, 8, 15};
    CHECK_OK(mx_bandit_state_load(b, numbers, sizeof numbers, &err), err);
    CHECK_OK(mx_bandit_propensities(b, NULL, p, &err), err);
    CHECK(p[0] == 1);
    mx_bandit_close(b);
}

/* The inverse that is kept is the inverse of lambda I + sum x x'; linear rewards are learned. */
static void linear_policies(void)
{
    enum { D = 5, N = 600 };
    static const double truth[2][D] = {{0.2, -0.1, 0.3, 0, 0.1}, {-0.1, 0.4, 0, 0.2, -0.2}};
    for (int k = 0; k < 2; k++) {
        mx_bandit_options o = mx_bandit_defaults();
        mx_error err = {0};
        double a[D][D] = {{0}}, right = 0, p[2];
        o.policy = k ? MX_BANDIT_LIN_THOMPSON : MX_BANDIT_LINUCB;
        o.dim = D;
        o.v = 0.2;
        mx_bandit *b = open_bandit(&o);
        if (!b) return;
        for (int i = 0; i < D; i++) a[i][i] = o.lambda;
        for (int n = 0; n < N; n++) {
            double x[D], reward[2] = {0};
            for (int i = 0; i < D; i++) x[i] = 2 * uniform() - 1;
            for (int arm = 0; arm < 2; arm++)
                for (int i = 0; i < D; i++) reward[arm] += truth[arm][i] * x[i];
            CHECK_OK(mx_bandit_propensities(b, x, p, &err), err);
            CHECK(fabs(p[0] + p[1] - 1) < 1e-9);
            int arm = mx_bandit_draw(p, 2, uniform());
            if (n >= N / 2) right += (reward[arm] >= reward[!arm]);
            CHECK_OK(mx_bandit_learn(b, arm, x, reward[arm] + 0.02 * (uniform() - 0.5), n, &err), err);
            for (int i = 0; arm == 0 && i < D; i++)
                for (int j = 0; j < D; j++) a[i][j] += x[i] * x[j];
        }
        CHECK_MSG(right > 0.95 * N / 2, "%s is right %.0f times of %d", mx_bandit_policy_name(o.policy), right, N / 2);
        size_t size = mx_bandit_state_size(b);
        double *s = malloc(size), worst = 0;
        mx_bandit_state_save(b, s);
        const double *inverse = s + 2 + 4;
        for (int i = 0; i < D; i++)
            for (int j = 0; j < D; j++) {
                double sum = 0;
                for (int m = 0; m < D; m++) sum += a[i][m] * inverse[m * D + j];
                worst = fmax(worst, fabs(sum - (i == j)));
            }
        CHECK_MSG(worst < 1e-9, "%.2g", worst);
        free(s);
        mx_bandit_close(b);
    }
}

/* A state that was saved and loaded goes on with the same bits. */
static void states(void)
{
    for (int policy = 0; policy < MX_BANDIT_POLICIES; policy++) {
        mx_bandit_options o = mx_bandit_defaults();
        mx_error err = {0};
        o.policy = (mx_bandit_policy)policy;
        o.arms = 4;
        o.dim = policy >= MX_BANDIT_LINUCB ? 3 : 0;
        if (!o.dim) o.discount = 0.9;
        mx_bandit *b = open_bandit(&o), *c = open_bandit(&o);
        size_t size = mx_bandit_state_size(b);
        char *s = malloc(size), *t = malloc(size);
        for (int i = 0; i < 300; i++) {
            double x[3] = {uniform(), uniform(), 1}, p[4], q[4], *context = o.dim ? x : NULL;
            CHECK_OK(mx_bandit_propensities(b, context, p, &err), err);
            if (i == 150) {
                mx_bandit_state_save(b, s);
                CHECK_OK(mx_bandit_state_load(c, s, size, &err), err);
            }
            if (i >= 150) {
                CHECK_OK(mx_bandit_propensities(c, context, q, &err), err);
                CHECK(!memcmp(p, q, sizeof p));
            }
            int arm = mx_bandit_draw(p, 4, uniform());
            double reward = uniform() < 0.3;
            CHECK_OK(mx_bandit_learn(b, arm, context, reward, i * 0.1, &err), err);
            if (i >= 150) CHECK_OK(mx_bandit_learn(c, arm, context, reward, i * 0.1, &err), err);
        }
        mx_bandit_state_save(b, s);
        mx_bandit_state_save(c, t);
        CHECK(!memcmp(s, t, size));
        CHECK(mx_bandit_state_load(b, s, size - 8, &err) == MX_ERR_FORMAT);
        memset(s + 16, 0xff, 8);
        CHECK(mx_bandit_state_load(b, s, size, &err) == MX_ERR_FORMAT);
        free(s), free(t);
        mx_bandit_close(c);
        mx_bandit_close(b);
    }
}

/* Of 2,000 A/A runs that are looked at after every reward, the truth leaves the interval in 5 % at most. */
static void intervals_hold_at_all_times(void)
{
    int left = 0, runs = 2000;
    for (int r = 0; r < runs; r++) {
        double sum = 0, low, high;
        bool out = false;
        for (int n = 1; n <= 2000; n++) {
            sum += uniform() < 0.3;
            mx_always_valid(sum / n, n, 0.05, &low, &high);
            out |= low > 0.3 || high < 0.3;
        }
        left += out;
    }
    CHECK_MSG(left <= 0.05 * runs, "%d of %d", left, runs);
    double low, high;
    mx_always_valid(0.3, 1000, 0.05, &low, &high);
    CHECK(low > 0.2 && high < 0.4);
}

static void sample_ratios(void)
{
    double even[] = {0.5, 0.5}, a[] = {5020, 4980}, bad[] = {5300, 4700}, never[] = {1, 0}, seen[] = {10, 1};
    CHECK(mx_sample_ratio(a, even, 2) > 0.5 && mx_sample_ratio(bad, even, 2) < 1e-8 && mx_sample_ratio(seen, never, 2) == 0);
}

static void bad_options(void)
{
    mx_bandit_options good = mx_bandit_defaults();
    struct { mx_bandit_options o; const char *part; } bad[] = {{good, "arms"}, {good, "arms"}, {good, "prior_a"}, {good, "discount"},
                                                                {good, "floor"}, {good, "dim"}, {good, "linear"}};
    mx_error err = {0};
    bad[0].o.arms = 1;
    bad[1].o.arms = 65;
    bad[2].o.prior_a = NAN;
    bad[3].o.discount = 1.5;
    bad[4].o.floor = -0.1;
    bad[5].o.policy = MX_BANDIT_LINUCB;
    bad[6].o.policy = MX_BANDIT_LIN_THOMPSON;
    bad[6].o.dim = 3;
    bad[6].o.discount = 0.9;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_bandit *b = NULL;
        CHECK(mx_bandit_open(&b, &bad[i].o, &err) == MX_ERR_ARG && !b);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
    mx_bandit *b = open_bandit(&good);
    double x[2] = {0};
    CHECK(mx_bandit_learn(b, 2, NULL, 1, 0, &err) == MX_ERR_ARG && strstr(err.text, "arm"));
    CHECK(mx_bandit_learn(b, 0, NULL, 1.5, 0, &err) == MX_ERR_ARG && strstr(err.text, "reward"));
    CHECK(mx_bandit_learn(b, 0, NULL, NAN, 0, &err) == MX_ERR_ARG);
    CHECK(mx_bandit_learn(b, 0, x, 1, 0, &err) == MX_ERR_ARG && strstr(err.text, "context"));
    mx_bandit_close(b);
}

/* Estimates against their definitions, and against what a policy truly earns. */
static void off_policy(void)
{
    enum { N = 60000 };
    static mx_ope_row rows[N];
    static const double mu[3] = {0.6, 0.3, 0.1}, pi[3] = {0.1, 0.2, 0.7}, mean[3] = {0.1, 0.2, 0.4};
    double truth = 0;
    mx_ope e;
    mx_error err = {0};
    for (int a = 0; a < 3; a++) truth += pi[a] * mean[a];
    for (int i = 0; i < N; i++) {
        int a = mx_bandit_draw(mu, 3, uniform());
        rows[i] = (mx_ope_row){uniform() < mean[a], mu[a], pi[a], mean[a] + 0.05, truth + 0.05};        /* a model that is off by 0.05 */
    }
    CHECK_OK(mx_ope_estimate(rows, N, 0, &e, &err), err);
    CHECK_MSG(fabs(e.ips - truth) < 4 * e.ips_error && fabs(e.snips - truth) < 4 * e.snips_error && fabs(e.dr - truth) < 4 * e.dr_error,
              "%.4f %.4f %.4f, truth %.4f", e.ips, e.snips, e.dr, truth);
    CHECK(fabs(e.dm - truth - 0.05) < 1e-9 && e.dr_error < e.ips_error && fabs(e.largest - 7) < 1e-12 && e.ess < N && e.ess > N / 20);
    mx_ope_row two[] = {{1, 0.5, 0.25, 0.2, 0.3}, {0, 0.25, 1, 0.1, 0.5}};
    CHECK_OK(mx_ope_estimate(two, 2, 0, &e, &err), err);
    CHECK(e.ips == 0.25 && fabs(e.snips - 0.5 / 4.5) < 1e-15 && fabs(e.dr - (0.3 + 0.5 * 0.8 + 0.5 + 4 * -0.1) / 2) < 1e-15);
    CHECK_OK(mx_ope_estimate(two, 2, 2, &e, &err), err);
    CHECK(e.largest == 2 && fabs(e.snips - 0.5 / 2.5) < 1e-15);
    two[1].mu = 0;
    CHECK(mx_ope_estimate(two, 2, 0, &e, &err) == MX_ERR_ARG && strstr(err.text, "row 1: mu"));
    CHECK(mx_ope_estimate(two, 0, 0, &e, &err) == MX_ERR_ARG);
}

/* The Open Bandit Pipeline's own data and estimates (tests/golden/make_ope_golden.py). */
static void off_policy_as_obp(void)
{
    json_t *j = json_load_file(MX_SOURCE_DIR "/tests/golden/ope/ope.json", 0, NULL);
    FILE *f = fopen(MX_SOURCE_DIR "/tests/golden/ope/ope.f64", "rb");
    size_t n = (size_t)json_integer_value(json_object_get(j, "rows"));
    mx_ope_row *rows = calloc(n + 1, sizeof *rows);
    mx_ope e;
    mx_error err = {0};
    CHECK(n == 2500 && f && fread(rows, sizeof *rows, n + 1, f) == n);
    if (f) fclose(f);
    CHECK_OK(mx_ope_estimate(rows, n, 0, &e, &err), err);
    const struct { const char *name; double got; } all[] = {{"ips", e.ips}, {"snips", e.snips}, {"dm", e.dm}, {"dr", e.dr}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        double want = json_number_value(json_object_get(j, all[i].name));
        CHECK_MSG(want > 0 && fabs(all[i].got - want) < 1e-9, "%s is %.12g, obp says %.12g", all[i].name, all[i].got, want);
    }
    free(rows);
    json_decref(j);
}

MX_TESTS(TEST(distribution_functions), TEST(exact_propensities), TEST(many_arms), TEST(thompson_against_the_optimum), TEST(floors_and_discounts),
         TEST(upper_bounds), TEST(linear_policies), TEST(states), TEST(intervals_hold_at_all_times), TEST(sample_ratios), TEST(bad_options),
         TEST(off_policy), TEST(off_policy_as_obp))
