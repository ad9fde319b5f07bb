/* test_metrics.c - what Prometheus would read. */
#include "runtime/metrics.h"
#include "tests/test.h"

#include <pthread.h>

static mx_metrics *open_metrics(void)
{
    mx_metrics *m = NULL;
    mx_error err = {0};
    CHECK_OK(mx_metrics_open(&m, &err), err);
    return m;
}

static void text_format(void)
{
    mx_metrics *m = open_metrics();
    mx_metric *a = mx_metrics_add(m, MX_COUNTER, "merx_requests_total", "", "requests\nwith a \\ in it");
    mx_metric *b = mx_metrics_add(m, MX_GAUGE, "merx_running", "model=\"x\"", "jobs");
    mx_metric *c = mx_metrics_add(m, MX_GAUGE, "merx_running", "model=\"y\",lane=\"z\"", "jobs");
    CHECK(a && b && c && b != c);
    mx_metric_inc(a, 3);
    mx_metric_inc(a, UINT64_C(9007199254740990));
    mx_metric_set(b, 0.1);
    mx_metric_add(b, 0.2);
    mx_metric_set(c, -3);
    CHECK(mx_metric_value(b) == 0.1 + 0.2 && mx_metric_value(c) == -3);
    size_t len;
    char *text = mx_metrics_render(m, &len);
    CHECK_STR(text, "# HELP merx_requests_total requests\\nwith a \\\\ in it\n"
                    "# TYPE merx_requests_total counter\n"
                    "merx_requests_total 9007199254740993\n"
                    "# HELP merx_running jobs\n"
                    "# TYPE merx_running gauge\n"
                    "merx_running{model=\"x\"} 0.30000000000000004\n"
                    "merx_running{model=\"y\",lane=\"z\"} -3\n");
    CHECK(text && len == strlen(text));
    free(text);
    mx_metric_set(b, (double)NAN);
    mx_metric_set(c, -(double)INFINITY);
    text = mx_metrics_render(m, &len);
    CHECK(text && strstr(text, "{model=\"x\"} NaN\n") && strstr(text, "} -Inf\n"));
    free(text);
    mx_metrics_close(m);
    m = open_metrics();
    text = mx_metrics_render(m, &len);
    CHECK(text && !len);
    free(text);
    mx_metrics_close(m);
    mx_metrics_close(NULL);
}

static void histogram(void)
{
    mx_metrics *m = open_metrics();
    mx_metric *h = mx_metrics_add(m, MX_HISTOGRAM, "merx_s", "a=\"b\"", "seconds");
    mx_metric *plain = mx_metrics_add(m, MX_HISTOGRAM, "merx_t", "", "seconds");
    CHECK(isnan(mx_metric_quantile(h, 0.5)) && mx_metric_value(h) == 0);
    mx_metric_observe(h, 0);
    mx_metric_observe(h, 10e-6);          /* a bound belongs to its bucket */
    mx_metric_observe(h, 11e-6);
    mx_metric_observe(h, 0.2);
    mx_metric_observe(h, 10000);
    mx_metric_observe(h, (double)NAN);
    mx_metric_observe(plain, 0.3);
    size_t len;
    char *text = mx_metrics_render(m, &len);
    CHECK(text && strstr(text, "# TYPE merx_s histogram\nmerx_s_bucket{a=\"b\",le=\"0.00001\"} 2\n"
                               "merx_s_bucket{a=\"b\",le=\"0.000025\"} 3\n"));
    CHECK(text && strstr(text, "merx_s_bucket{a=\"b\",le=\"0.1\"} 3\nmerx_s_bucket{a=\"b\",le=\"0.25\"} 4\n"));
    CHECK(text && strstr(text, "merx_s_bucket{a=\"b\",le=\"600\"} 4\nmerx_s_bucket{a=\"b\",le=\"+Inf\"} 5\n"
                               "merx_s_sum{a=\"b\"} 10000.200021\nmerx_s_count{a=\"b\"} 5\n"));
    CHECK(text && strstr(text, "merx_t_bucket{le=\"+Inf\"} 1\nmerx_t_sum 0.3\nmerx_t_count 1\n"));
    free(text);
    CHECK(mx_metric_value(h) == 5);
    CHECK(mx_metric_quantile(h, 1) == 600);
    CHECK(isnan(mx_metric_quantile(h, 1.5)) && isnan(mx_metric_quantile(h, -1)));
    CHECK(isnan(mx_metric_quantile(h, (double)NAN)));
    mx_metrics_close(m);
}

/* Evenly spread times have the quantiles one expects, within a bucket's width. */
static void quantiles(void)
{
    mx_metrics *m = open_metrics();
    mx_metric *h = mx_metrics_add(m, MX_HISTOGRAM, "merx_q", "", "seconds");
    for (int i = 1; i <= 10000; i++) mx_metric_observe(h, i * 1e-4);       /* up to one second */
    static const double qs[] = {0.01, 0.1, 0.25, 0.3, 0.5, 0.9, 0.99, 1};
    for (int i = 0; i < 8; i++) {
        double got = mx_metric_quantile(h, qs[i]);
        CHECK_MSG(fabs(got - qs[i]) < 1e-3, "q %g: %g", qs[i], got);
    }
    CHECK(mx_metric_quantile(h, 0) >= 0);
    mx_metrics_close(m);
}

static void refused(void)
{
    mx_metrics *m = open_metrics();
    static const char *const names[] = {"", "1a", "a-b", "a b", "a{", "\xc3\xa9"};
    for (int i = 0; i < 6; i++) CHECK(!mx_metrics_add(m, MX_GAUGE, names[i], "", "h"));
    static const char *const labels[] = {"a", "a=", "a=b", "a=\"b", "a=\"b\",", "a=\"b\"c=\"d\"", "=\"b\"", "1=\"b\"",
                                         "a=\"\\x\"", "a=\"\n\"", "a=\"b\" ", "a:b=\"c\"", "a=\"\\"};
    for (int i = 0; i < 13; i++) CHECK_MSG(!mx_metrics_add(m, MX_GAUGE, "a", labels[i], "h"), "%s", labels[i]);
    mx_metric *g = mx_metrics_add(m, MX_GAUGE, "a", "k=\"\\\"\\\\\\n,=\"", "h");
    CHECK(g && mx_metrics_add(m, MX_GAUGE, "a", "k=\"\\\"\\\\\\n,=\"", "h") == g);
    CHECK(!mx_metrics_add(m, MX_COUNTER, "a", "", "h") && !mx_metrics_add(m, MX_GAUGE, "a", "", "other"));
    CHECK(!mx_metrics_add(m, (mx_metric_kind)7, "b", "", "h"));
    mx_metric_inc(g, 1);              /* the wrong kind, and none at all: nothing happens */
    mx_metric_observe(g, 1);
    CHECK(mx_metric_value(g) == 0 && isnan(mx_metric_quantile(g, 0.5)));
    mx_metric_inc(NULL, 1);
    mx_metric_set(NULL, 1);
    mx_metric_add(NULL, 1);
    mx_metric_observe(NULL, 1);
    CHECK(mx_metric_value(NULL) == 0 && isnan(mx_metric_quantile(NULL, 0.5)));
    mx_metrics_close(m);
}

/* Whatever the size, what comes out is a label or nothing. */
static void labels(void)
{
    mx_metrics *m = open_metrics();
    static const char value[] = "a\"b\\c\nd";
    char whole[64];
    mx_metrics_label(whole, sizeof whole, "key", value);
    CHECK_STR(whole, "key=\"a\\\"b\\\\c\\nd\"");
    for (size_t size = 1; size < 40; size++) {
        char out[64];
        memset(out, 'x', sizeof out);
        mx_metrics_label(out, size, "key", value);
        CHECK(strlen(out) < size && out[size] == 'x');
        CHECK_MSG(mx_metrics_add(m, MX_GAUGE, "a", out, "h") != NULL, "%s", out);
        if (size > strlen(whole)) CHECK_STR(out, whole);
    }
    mx_metrics_close(m);
}

static void *count_up(void *arg)
{
    mx_metric **ms = arg;
    for (int i = 0; i < 20000; i++) {
        mx_metric_inc(ms[0], 1);
        mx_metric_add(ms[1], i & 1 ? -1 : 2);
        mx_metric_observe(ms[2], 0.5);
    }
    return NULL;
}

static void threads(void)
{
    mx_metrics *m = open_metrics();
    mx_metric *ms[3] = {mx_metrics_add(m, MX_COUNTER, "a", "", "h"), mx_metrics_add(m, MX_GAUGE, "b", "", "h"),
                        mx_metrics_add(m, MX_HISTOGRAM, "c", "", "h")};
    pthread_t t[3];
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&t[i], NULL, count_up, ms) == 0);
    for (int i = 0; i < 10; i++) {
        size_t len;
        free(mx_metrics_render(m, &len));
    }
    for (int i = 0; i < 3; i++) pthread_join(t[i], NULL);
    CHECK(mx_metric_value(ms[0]) == 60000 && mx_metric_value(ms[1]) == 30000 && mx_metric_value(ms[2]) == 60000);
    size_t len;
    char *text = mx_metrics_render(m, &len);
    CHECK(text && strstr(text, "c_sum 30000\nc_count 60000\n"));
    free(text);
    mx_metrics_close(m);
}

MX_TESTS(TEST(text_format), TEST(histogram), TEST(quantiles), TEST(refused), TEST(labels), TEST(threads))
