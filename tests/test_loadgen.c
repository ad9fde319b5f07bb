/* The load generator: histograms, arrivals, what a stall of the server looks like, both loops, reports. */
#include "server/loadgen.h"
#include "tests/server_fixture.h"

#include <jansson.h>

static mx_load_options options_of(const fixture *f)
{
    mx_load_options o = {.server = mx_server_address(f->server), .channel = "web", .connections = 1, .warmups = 1, .input_words = 4,
                         .output_tokens = 4, .timeout_ms = 20000, .seed = 7};
    o.share[MX_LOAD_GENERATE] = 1;
    return o;
}

static void test_histogram(void)
{
    static mx_hist h, other;
    uint64_t seed = 3;
    memset(&h, 0, sizeof h);
    CHECK(mx_hist_quantile(&h, 0.5) == 0);
    for (uint64_t i = 1; i <= 100000; i++) mx_hist_add(i % 2 ? &h : &other, i * 1000);
    mx_hist_merge(&h, &other);
    CHECK(h.n == 100000 && h.most == 100000000);
    for (int i = 0; i < 200; i++) {
        double q = (double)(test_random(&seed) % 100000 + 1) / 100000, want = q * 1e8, got = (double)mx_hist_quantile(&h, q);
        CHECK_MSG(fabs(got - want) <= want / 64 + 1000, "quantile %g: %g, want %g", q, got, want);
    }
    mx_hist_add(&h, UINT64_MAX);                        /* the largest there is has a place too */
    CHECK(mx_hist_quantile(&h, 1) > 1000000000);
}

static void test_closed_loop(void)
{
    fixture f;
    mx_error err = {0};
    mx_load_result *r = NULL;
    mx_fake_options fake = fake_defaults();
    if (!fixture_open(&f, &fake, NULL)) return;
    mx_load_options o = options_of(&f);
    o.requests = 60;
    o.concurrency = 5;
    o.connections = 2;
    o.share[MX_LOAD_ECHO] = 2;
    CHECK_OK(mx_load_run(&r, &o, &err), err);
    if (r) {
        const mx_load_figures *g = &r->kind[MX_LOAD_GENERATE], *e = &r->kind[MX_LOAD_ECHO];
        CHECK_MSG(g->done + e->done == 60 && !g->failed && !e->failed, "%llu + %llu", (unsigned long long)g->done, (unsigned long long)e->done);
        CHECK_MSG(g->done > 8 && g->done < 36, "%llu of 60", (unsigned long long)g->done);
        CHECK(g->output_tokens == 4 * g->done && g->e2e.n == g->done && g->ttft.n == g->done && !r->late.n);
        CHECK_MSG(r->peak <= 7 && r->peak >= 4, "peak %llu", (unsigned long long)r->peak);    /* on each connection one may begin before the last is counted off */
    }
    free(r);
    fixture_close(&f);
}

/* A server that takes one request at a time for 30 ms, asked 100 times a second, falls behind
 * further and further: the latencies must say so, whatever was under way at most. */
static void test_stall_is_seen(int32_t concurrency)
{
    fixture f;
    mx_error err = {0};
    mx_load_result *r = NULL;
    mx_fake_options fake = fake_defaults();
    fake.max_jobs = 1;
    fake.turn_us = 30000;
    if (!fixture_open(&f, &fake, NULL)) return;
    mx_load_options o = options_of(&f);
    o.requests = 24;
    o.rate = 100;
    o.even = true;
    o.output_tokens = 1;
    o.concurrency = concurrency;
    CHECK_OK(mx_load_run(&r, &o, &err), err);
    if (r) {
        uint64_t last = r->kind[MX_LOAD_GENERATE].e2e.most;
        /* The last is due at 240 ms and cannot end before 24 turns of 30 ms. */
        CHECK_MSG(r->kind[MX_LOAD_GENERATE].done == 24 && last >= 470000000, "%.0f ms", (double)last * 1e-6);
        CHECK(r->late.n == 24);
        if (concurrency) CHECK_MSG(r->peak <= (uint64_t)concurrency + 1 && r->late.most > 300000000, "peak %llu", (unsigned long long)r->peak);
    }
    free(r);
    fixture_close(&f);
}

static void test_stall_open(void)
{
    test_stall_is_seen(0);
}

static void test_stall_limited(void)
{
    test_stall_is_seen(2);
}

static void test_trace_and_reports(void)
{
    static const char path[] = "/tmp/merx-load-test.trace";
    fixture f;
    mx_error err = {0};
    mx_load_result *r = NULL;
    FILE *t = fopen(path, "w");
    if (!t || !fixture_open(&f, NULL, NULL)) return;
    fputs("# seconds,kind\n0,generate\n0.01,echo\n0.02\n\n0.03,echo\n", t);
    fclose(t);
    mx_load_options o = options_of(&f);
    o.trace = path;
    o.slo_e2e = 1e-9;                                   /* nobody keeps it */
    CHECK_OK(mx_load_run(&r, &o, &err), err);
    if (r) {
        char *text = NULL;
        size_t len = 0;
        CHECK(r->kind[MX_LOAD_GENERATE].done == 2 && r->kind[MX_LOAD_ECHO].done == 2 && r->kind[MX_LOAD_ECHO].good == 0);
        FILE *out = open_memstream(&text, &len);
        mx_load_print(out, r);
        fclose(out);
        CHECK(strstr(text, "Successful requests:                     4") && strstr(text, "Request goodput (req/s):                 0.00"));
        CHECK(strstr(text, "---------------Time to First Token----------------\nMean TTFT (ms):") != NULL);
        free(text);
        out = open_memstream(&text, &len);
        CHECK_OK(mx_load_json(out, r, &err), err);
        fclose(out);
        json_t *j = json_loads(text, 0, NULL);
        CHECK(j && json_integer_value(json_object_get(j, "completed")) == 4 &&
              json_integer_value(json_object_get(json_object_get(json_object_get(j, "generate"), "e2el"), "count")) == 2);
        json_decref(j);
        free(text);
        out = open_memstream(&text, &len);
        mx_load_html(out, r);
        fclose(out);
        CHECK(!strncmp(text, "<!doctype html>", 15) && strstr(text, "<svg") && strstr(text, "</html>") && !strstr(text, "nan") && !strstr(text, "http"));
        free(text);
    }
    free(r);
    static const char *const bad[] = {"1,dance\n", "2\n1\n", "x\n", "-1\n", ""};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        t = fopen(path, "w");
        if (t) fputs(bad[i], t), fclose(t);
        CHECK(mx_load_run(&r, &o, &err) == MX_ERR_FORMAT && !r);
        CHECK_MSG(strstr(err.text, "merx-load-test.trace") != NULL, "%s", err.text);
    }
    remove(path);
    fixture_close(&f);
}

static void test_refusals(void)
{
    fixture f;
    mx_error err = {0};
    mx_load_result *r = NULL;
    if (!fixture_open(&f, NULL, NULL)) return;
    mx_load_options o = options_of(&f);
    o.concurrency = 1;
    CHECK(mx_load_run(&r, &o, &err) == MX_ERR_ARG && strstr(err.text, "duration"));
    o.requests = 5;
    o.share[MX_LOAD_QUOTE] = 1;
    CHECK(mx_load_run(&r, &o, &err) == MX_ERR_ARG && strstr(err.text, "sku"));
    o.sku = "x";
    CHECK(mx_load_run(&r, &o, &err) == MX_ERR_UNAVAILABLE && strstr(err.text, "Quote: FAILED_PRECONDITION"));
    CHECK(!r);
    fixture_close(&f);
}

MX_TESTS(TEST(test_histogram), TEST(test_closed_loop), TEST(test_stall_open), TEST(test_stall_limited), TEST(test_trace_and_reports),
         TEST(test_refusals))
