/* test_plot.c - curves as SVG: what is drawn, and what is refused. */
#include "server/plot.h"
#include "tests/test.h"

#include <unistd.h>

static const mx_plot_options plain = {.title = "a < b & c", .width = 800, .height = 500};

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    CHECK(f && fputs(text, f) >= 0);
    if (f) fclose(f);
}

static char *plot_text(const char *text, const mx_plot_options *o, mx_status *st, mx_error *err)
{
    char path[256], *svg = NULL;
    const char *files[] = {path};
    size_t size = 0;
    snprintf(path, sizeof path, MX_BINARY_DIR "/test_plot.%d.jsonl", (int)getpid());
    write_file(path, text);
    FILE *out = open_memstream(&svg, &size);
    *err = (mx_error){0};
    *st = mx_plot(out, files, 1, o, err);
    fclose(out);
    unlink(path);
    return svg;
}

static int count(const char *text, const char *what)
{
    int n = 0;
    for (const char *at = text; (at = strstr(at, what)); at += strlen(what)) n++;
    return n;
}

static void curves(void)
{
    mx_status st;
    mx_error err;
    char *svg = plot_text("{\"step\": 1, \"loss\": 4.2, \"lr\": 0.1}\n{\"step\": 2, \"loss\": 3.1, \"lr\": 0.2, \"eval_loss\": 3.5}\n"
                          "{\"step\": 3, \"loss\": 2.5, \"lr\": 0.1}\n{\"step\": 4, \"lo", &plain, &st, &err);
    CHECK_OK(st, err);
    CHECK(count(svg, "<svg ") == 1 && count(svg, "</svg>") == 1);
    CHECK(count(svg, "<polyline") == 3 && count(svg, "<circle") == 1);       /* raw, smoothed, learning rate */
    CHECK(strstr(svg, "a &lt; b &amp; c") && !strstr(svg, "nan") && !strstr(svg, "inf"));
    CHECK(strstr(svg, ">4<") && strstr(svg, ">3<") && strstr(svg, ">2.6<"));   /* ticks */
    free(svg);
}

static void one_point_and_no_rate(void)
{
    mx_status st;
    mx_error err;
    char *svg = plot_text("{\"step\": 5, \"loss\": 1}\n", &plain, &st, &err);
    CHECK_OK(st, err);
    CHECK(count(svg, "<polyline") == 2 && !strstr(svg, "nan") && !strstr(svg, "learning rate"));
    free(svg);
}

static void long_runs_are_thinned(void)
{
    mx_status st;
    mx_error err;
    enum { N = 30000 };
    char *text = malloc(N * 40), *at = text;
    for (int i = 1; i <= N; i++) at += sprintf(at, "{\"step\":%d,\"loss\":%.4f}\n", i, 5.0 / i);
    mx_plot_options logs = plain;
    logs.log_x = logs.log_y = true;
    char *svg = plot_text(text, &logs, &st, &err);
    CHECK_OK(st, err);
    CHECK_MSG(strlen(svg) < 100000, "%zu bytes", strlen(svg));
    free(svg);
    free(text);
}

static void refused(void)
{
    static const struct { const char *text, *words; } bad[] = {
        {"", "holds no step"}, {"{\"step\": 1}\n", ":1:"}, {"{\"step\": 1, \"loss\": 2}\nnonsense\n", ":2:"},
    };
    mx_status st;
    mx_error err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        free(plot_text(bad[i].text, &plain, &st, &err));
        CHECK_MSG(st && strstr(err.text, bad[i].words), "%zu: %s", i, err.text);
    }
    mx_plot_options logs = plain;
    logs.log_y = true;
    free(plot_text("{\"step\": 1, \"loss\": 0}\n", &logs, &st, &err));
    CHECK(st == MX_ERR_ARG);
    const char *none[] = {"/nowhere/metrics.jsonl"};
    CHECK(mx_plot(stderr, none, 1, &plain, &err) == MX_ERR_IO && strstr(err.text, "/nowhere/metrics.jsonl"));
}

MX_TESTS(TEST(curves), TEST(one_point_and_no_rate), TEST(long_runs_are_thinned), TEST(refused))
