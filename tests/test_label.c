/* test_label.c - features are the sums of their events' parts, heads find what made the data,
 * probabilities are calibrated, states have their hysteresis. */
#include "models/label.h"
#include "tests/test.h"

static uint64_t seed = 20;

static double uniform(void)
{
    return (double)(test_random(&seed) >> 11) * 0x1p-53;
}

static double normal(void)
{
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

enum { ACTS = 60, FRIENDS = 9 };

static void make_up(mx_act *a, int32_t *n, mx_friend *f, int32_t *n_friends)
{
    *n = (int32_t)(uniform() * ACTS), *n_friends = (int32_t)(uniform() * FRIENDS);
    for (int32_t i = 0; i < *n; i++)
        a[i] = (mx_act){(uint32_t)(test_random(&seed) & 1023), (float)(0.01 + uniform()), (float)uniform(), (float)uniform()};
    for (int32_t i = 0; i < *n_friends; i++) {
        f[i].weight = (float)(0.01 + uniform());
        for (int k = 0; k < MX_FEATURES; k++) f[i].feature[k] = (float)uniform();
    }
}

static void parts_add_up(void)
{
    mx_feature_prior prior = mx_feature_prior_default();
    mx_act a[ACTS];
    mx_friend f[FRIENDS];
    double none[MX_FEATURES], x[MX_FEATURES], part[ACTS];
    int32_t n, k;
    mx_features(&prior, NULL, 0, NULL, 0, none);
    for (int round = 0; round < 500; round++) {
        make_up(a, &n, f, &k);
        mx_features(&prior, a, n, f, k, x);
        for (int32_t j = 0; j < MX_FEATURES; j++) {
            double sum = none[j];
            int32_t m = mx_feature_parts(&prior, a, n, f, k, j, part);
            for (int32_t i = 0; i < m; i++) sum += part[i];
            CHECK_MSG(fabs(sum - x[j]) < 1e-12 && x[j] >= 0 && x[j] <= 1, "%s: %.15g, parts %.15g", mx_feature_name(j), x[j], sum);
        }
    }
}

/* Ten purchases, seven reduced: the mean of Beta(0.3*4+7, 0.7*4+3). */
static void beta_posterior(void)
{
    mx_feature_prior prior = mx_feature_prior_default();
    mx_act a[10];
    double x[MX_FEATURES];
    for (int i = 0; i < 10; i++) a[i] = (mx_act){MX_ACT_BUY | (i < 7 ? MX_ACT_PROMO : 0), 1, 0, 0};
    mx_features(&prior, a, 10, NULL, 0, x);
    CHECK(fabs(x[MX_FEATURE_PROMO_SHARE] - 8.2 / 14) < 1e-15);
    CHECK(mx_feature_find("promo_share") == MX_FEATURE_PROMO_SHARE && mx_feature_find("x") == -1);
    CHECK(mx_feature_of_friends(MX_FEATURE_FRIENDS_SOCIAL) == MX_FEATURE_SOCIAL && mx_feature_of_friends(0) == -1);
}

/* scikit-learn's Ridge on the same looks and purchases; a purchase is twice among the acts' kinds, a text beside them says nothing. */
static void own_price_slopes_equal_a_ridge_regression(void)
{
    FILE *f = fopen(MX_SOURCE_DIR "/tests/golden/label/slopes.txt", "r");
    mx_feature_prior prior = mx_feature_prior_default();
    int users = 0, n, bought;
    double want, x[MX_FEATURES], part[64];
    mx_act a[64];
    CHECK(f != NULL);
    while (f && fscanf(f, " user %d %lf", &n, &want) == 2 && n < 63) {
        double sum = 0;
        for (int i = 0; i < n; i++) {
            CHECK(fscanf(f, "%f %f %d", &a[i].weight, &a[i].price_rank, &bought) == 3);
            a[i].what = MX_ACT_PRICED | (bought ? MX_ACT_BUY | MX_ACT_RANKED : MX_ACT_VIEW);
        }
        a[n] = (mx_act){.what = MX_ACT_TEXT | MX_ACT_BUY, .weight = 1, .price_rank = 0.9f};
        double got = mx_own_price_slope(a, n + 1);
        mx_features(&prior, a, n + 1, NULL, 0, x);
        CHECK_MSG(fabs(got - want) < 1e-12, "user %d: slope %.15g, want %.15g", users, got, want);
        CHECK(fabs(x[MX_FEATURE_PRICE_RESPONSE] - 1 / (1 + exp(4 * want))) < 1e-12);
        mx_feature_parts(&prior, a, n + 1, NULL, 0, MX_FEATURE_PRICE_RESPONSE, part);
        for (int i = 0; i <= n; i++) sum += part[i];
        CHECK(fabs(0.5 + sum - x[MX_FEATURE_PRICE_RESPONSE]) < 1e-12 && part[n] == 0);
        users++;
    }
    CHECK(users == 40);
    if (f) fclose(f);
}

static void words(void)
{
    CHECK(mx_text_speaks_of_quality("Superb QUALITY.") && mx_text_speaks_of_quality("\xe8\xb4\xa8\xe9\x87\x8f\xe5\xbe\x88\xe5\xa5\xbd") && !mx_text_speaks_of_quality("nice colour"));
    CHECK(mx_text_speaks_of_price("so cheap") && !mx_text_speaks_of_price("wholesale ideal"));     /* not inside words */
}

/* Data from known weights: the head finds them, and Platt's scaling repairs a head that is three times too sure. */
static void heads(void)
{
    enum { N = 20000, D = 3 };
    static double x[N * D], y[N], score[N], p[N], before[N];
    const double truth[D] = {1.5, -0.7, 0};
    double w[D], b, scale, shift;
    mx_error err = {0};
    for (int r = 0; r < N; r++) {
        double s = -0.4;
        for (int i = 0; i < D; i++) x[r * D + i] = normal(), s += truth[i] * x[r * D + i];
        y[r] = uniform() < mx_sigmoid(s);
    }
    CHECK_OK(mx_logistic_fit(x, y, N, D, 1e-6, w, &b, &err), err);
    for (int i = 0; i < D; i++) CHECK_MSG(fabs(w[i] - truth[i]) < 0.08, "weight %d: %g", i, w[i]);
    CHECK(fabs(b + 0.4) < 0.08);
    for (int r = 0; r < N; r++) {
        score[r] = 3 * b + 1;
        for (int i = 0; i < D; i++) score[r] += 3 * w[i] * x[r * D + i];
        before[r] = mx_sigmoid(score[r]);
    }
    mx_platt_fit(score, y, N / 2, &scale, &shift);
    for (int r = 0; r < N; r++) p[r] = mx_sigmoid(scale * score[r] + shift);
    CHECK_MSG(fabs(scale - 1.0 / 3) < 0.02, "scale %g", scale);
    CHECK_MSG(mx_calibration_error(before + N / 2, y + N / 2, N / 2) > 0.08, "%g", mx_calibration_error(before + N / 2, y + N / 2, N / 2));
    CHECK_MSG(mx_calibration_error(p + N / 2, y + N / 2, N / 2) < 0.02, "%g", mx_calibration_error(p + N / 2, y + N / 2, N / 2));
    CHECK(mx_logistic_fit(x, y, 0, D, 1, w, &b, &err) == MX_ERR_ARG);
    /* separable data and constant labels end, and stay finite */
    for (int r = 0; r < 100; r++) y[r] = x[r * D] > 0;
    CHECK_OK(mx_logistic_fit(x, y, 100, D, 1, w, &b, &err), err);
    CHECK(isfinite(w[0]) && w[0] > 1);
    for (int r = 0; r < 100; r++) y[r] = 1;
    CHECK_OK(mx_logistic_fit(x, y, 100, D, 1, w, &b, &err), err);
    mx_platt_fit(score, y, 100, &scale, &shift);
    CHECK(isfinite(b) && isfinite(scale) && isfinite(shift) && scale > 0);
}

static void states(void)
{
    const mx_label_limits l = {0.6, 0.4, 1000};
    mx_label s = {0};
    CHECK(!mx_label_step(&s, &l, 0.59, 10, 10) && s.state == MX_LABEL_OUT && !s.expires_ms);
    CHECK(mx_label_step(&s, &l, 0.6, 20, 20) && s.state == MX_LABEL_ENTERED && s.since_ms == 20 && s.expires_ms == 1020);
    CHECK(!mx_label_step(&s, &l, 0.7, 30, 30) && s.state == MX_LABEL_ACTIVE && s.since_ms == 20 && s.expires_ms == 1030);
    CHECK(!mx_label_step(&s, &l, 0.41, 40, 40) && s.state == MX_LABEL_EXITING);
    CHECK(mx_label_step(&s, &l, 0.4, 50, 50) && s.state == MX_LABEL_OUT && s.since_ms == 50);
    CHECK(!mx_label_step(&s, &l, 0.5, 60, 60) && s.state == MX_LABEL_OUT);
    CHECK(mx_label_step(&s, &l, 0.9, 70, 70) && s.state == MX_LABEL_ENTERED);
    CHECK(mx_label_step(&s, &l, 0.9, 1071, 70) && s.state == MX_LABEL_EXPIRED && s.since_ms == 1071 && !s.expires_ms);
    CHECK(!mx_label_step(&s, &l, 0.9, 1080, 70) && s.state == MX_LABEL_EXPIRED);
    CHECK(mx_label_step(&s, &l, 0.9, 1090, 1090) && s.state == MX_LABEL_ENTERED);
}

MX_TESTS(TEST(parts_add_up), TEST(beta_posterior), TEST(own_price_slopes_equal_a_ridge_regression), TEST(words), TEST(heads), TEST(states))
