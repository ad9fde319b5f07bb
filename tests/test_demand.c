/* test_demand.c - least squares against numpy (tests/golden/make_demand_golden.py), the
 * orange-juice panel's elasticities, and closed-form prices.
 *     MX_ORANGE_JUICE=FILE.csv.gz   bayesm's panel; ../shared/data when it is there */
#include "models/demand.h"
#include "tests/test.h"

#include <jansson.h>
#include <unistd.h>

static double *numbers(const json_t *j, const char *key, size_t *n)
{
    const json_t *a = json_object_get(j, key);
    *n = json_array_size(a);
    double *v = malloc((*n + 1) * sizeof *v);
    for (size_t i = 0; i < *n; i++) v[i] = json_number_value(json_array_get(a, i));
    return v;
}

static void close_to(const char *what, const double *got, const double *want, size_t n)
{
    for (size_t i = 0; i < n; i++) CHECK_MSG(fabs(got[i] - want[i]) < 1e-9, "%s[%zu] is %.12g, not %.12g", what, i, got[i], want[i]);
}

static void as_numpy(void)
{
    json_t *j = json_load_file(MX_SOURCE_DIR "/tests/golden/demand/ols.json", 0, NULL);
    size_t n, nx, ng, k, g;
    double *y = numbers(j, "y", &n), *x = numbers(j, "x", &nx), *group = numbers(j, "group", &ng), *beta = numbers(j, "beta", &k);
    double *constant = numbers(j, "constant", &g), *error = numbers(j, "error", &k);
    int32_t *of = malloc((n + 1) * sizeof *of);
    mx_ols m;
    mx_error err = {0};
    for (size_t i = 0; i < n; i++) of[i] = (int32_t)group[i];
    CHECK(n == 90 && nx == n * k && ng == n);
    CHECK_OK(mx_ols_fit(&m, y, x, of, (int64_t)n, (int32_t)k, (int32_t)g, &err), err);
    if (m.beta) {
        close_to("beta", m.beta, beta, k);
        close_to("error", m.error, error, k);
        close_to("constant", m.constant, constant, g);
        CHECK(fabs(m.sigma - json_number_value(json_object_get(j, "sigma"))) < 1e-9 && fabs(m.r2 - json_number_value(json_object_get(j, "r2"))) < 1e-9);
        double at = constant[of[5]];
        for (size_t i = 0; i < k; i++) at += beta[i] * x[5 * k + i];
        CHECK(fabs(mx_ols_predict(&m, x + 5 * k, of[5]) - at) < 1e-9 && mx_ols_predict_error(&m, x + 5 * k) > 0);
        mx_ols_close(&m);
    }
    for (size_t i = 0; i < n; i++) x[i * k + 3] = 2 * x[i * k] + (double)of[i];       /* depends on a column and the groups */
    CHECK(mx_ols_fit(&m, y, x, of, (int64_t)n, (int32_t)k, (int32_t)g, &err) == MX_ERR_ARG && strstr(err.text, "column 3"));
    x[7] = NAN;
    CHECK(mx_ols_fit(&m, y, x, of, (int64_t)n, (int32_t)k, (int32_t)g, &err) == MX_ERR_ARG && strstr(err.text, "row 1, column 3"));
    CHECK(mx_ols_fit(&m, y, x, of, 5, (int32_t)k, (int32_t)g, &err) == MX_ERR_ARG && strstr(err.text, "rows"));
    x[7] = 0;
    of[3] = 99;
    CHECK(mx_ols_fit(&m, y, x, of, (int64_t)n, (int32_t)k, (int32_t)g, &err) == MX_ERR_ARG && strstr(err.text, "group 99"));
    free(y), free(x), free(group), free(beta), free(constant), free(error), free(of);
    json_decref(j);
}

/* store,brand,week,logmove,constant,price1..price11,deal,feat,profit */
static void orange_juice(void)
{
    static const double want[11] = {-2.7814, -1.8388, -3.3272, -3.8472, -2.9054, -2.4684, -3.6330, -2.7251, -4.0945, -2.8313, -1.0006};
    const char *path = getenv("MX_ORANGE_JUICE") ? getenv("MX_ORANGE_JUICE") : MX_SOURCE_DIR "/../shared/data/orange_juice/yx.csv.gz";
    char command[600], line[1024];
    if (access(path, R_OK)) {
        TEST_SKIP("the orange-juice panel is not there");
        return;
    }
    enum { K = 13, MOST = 12000 };
    double *y = calloc((size_t)11 * MOST, sizeof *y), *x = calloc((size_t)11 * MOST * K, sizeof *x);
    int32_t *group = calloc((size_t)11 * MOST, sizeof *group), n[11] = {0};
    snprintf(command, sizeof command, "gzip -dc '%s'", path);
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        double v[19];
        int got = 0;
        for (char *at = line, *end; got < 19; at = end + 1, got++) {
            v[got] = strtod(at, &end);
            if (end == at) break;
        }
        if (got < 18) continue;                        /* the header */
        int b = (int)v[1] - 1, i = n[b]++;
        y[b * MOST + i] = v[3];
        group[b * MOST + i] = (int32_t)v[0];
        for (int p = 0; p < 11; p++) x[(b * MOST + i) * K + p] = log(v[5 + p]);
        x[(b * MOST + i) * K + 11] = v[16];
        x[(b * MOST + i) * K + 12] = v[17];
    }
    if (f) pclose(f);
    for (int b = 0; b < 11; b++) {
        mx_ols m;
        mx_error err = {0};
        CHECK_MSG(n[b] == 9649, "brand %d has %d rows", b + 1, n[b]);
        CHECK_OK(mx_ols_fit(&m, y + b * MOST, x + (size_t)b * MOST * K, group + b * MOST, n[b], K, 200, &err), err);
        if (m.beta) CHECK_MSG(fabs(m.beta[b] - want[b]) < 1e-3, "brand %d: %.4f, not %.4f", b + 1, m.beta[b], want[b]);
        mx_ols_close(&m);
    }
    free(y), free(x), free(group);
}

static void closed_forms(void)
{
    const struct { int n; double t, j, p; } known[] = {{1, 1, 1.54304047, 2.54304047}, {5, 1, 3.49620071, 1.18657346}, {10, 1, 3.67728933, 1.00316923},
                                                       {25, 1, 3.67879441, 1}, {5, 0.25, 0.91931382, NAN}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        double p, j = mx_gallego_van_ryzin(known[i].n, known[i].t, 10, &p);
        CHECK_MSG(fabs(j - known[i].j) < 1e-8, "J*(%d, %g) is %.8f", known[i].n, known[i].t, j);
        if (known[i].p == known[i].p) CHECK_MSG(fabs(p - known[i].p) < 1e-8, "p*(%d, %g) is %.8f", known[i].n, known[i].t, p);
    }
    CHECK(mx_price_of_elasticity(100, -2) == 200 && isnan(mx_price_of_elasticity(100, -0.5)));
}

MX_TESTS(TEST(as_numpy), TEST(orange_juice), TEST(closed_forms))
