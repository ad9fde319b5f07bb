/* loadgen_report.c - the figures of a load as a block of text, JSON, and a page of HTML. */
#include "server/loadgen.h"

#include "server/cli_parts.h"

#include <math.h>
#include <stdlib.h>

static const struct { double q; const char *name; } quantiles[] = {{0.5, "p50"}, {0.9, "p90"}, {0.95, "p95"}, {0.99, "p99"}, {0.999, "p99.9"}, {0.9999, "p99.99"}};
enum { QUANTILES = sizeof quantiles / sizeof *quantiles };

static double ms(uint64_t ns)
{
    return (double)ns * 1e-6;
}

static double mean_ms(const mx_hist *h)
{
    return h->n ? h->sum / (double)h->n * 1e-6 : 0;
}

static mx_load_figures totals(const mx_load_result *r)
{
    mx_load_figures t = {0};
    for (int k = 0; k < MX_LOAD_KINDS; k++) {
        const mx_load_figures *f = &r->kind[k];
        t.sent += f->sent;
        t.done += f->done;
        t.failed += f->failed;
        t.good += f->good;
        t.input_tokens += f->input_tokens;
        t.output_tokens += f->output_tokens;
        for (int i = 0; i < MX_RPC_CODE_COUNT; i++) t.codes[i] += f->codes[i];
    }
    return t;
}

static bool has_slo(const mx_load_result *r)
{
    return r->options.slo_ttft > 0 || r->options.slo_tpot > 0 || r->options.slo_e2e > 0;
}

static double each_second(const mx_load_result *r, uint64_t n)
{
    return r->seconds > 0 ? (double)n / r->seconds : 0;
}

/* ---- the block ------------------------------------------------------------------------------ */

static void row(FILE *out, const char *name, double value)
{
    fprintf(out, "%-40s %-10.2f\n", name, value);
}

static void count(FILE *out, const char *name, uint64_t value)
{
    fprintf(out, "%-40s %-10llu\n", name, (unsigned long long)value);
}

/* A title in the middle of 50 signs. */
static void rule(FILE *out, const char *title, char sign)
{
    int n = (int)strlen(title), left = (50 - n) / 2;
    for (int i = 0; i < left; i++) fputc(sign, out);
    fputs(title, out);
    for (int i = left + n; i < 50; i++) fputc(sign, out);
    fputc('\n', out);
}

static void block(FILE *out, const char *title, const char *name, const mx_hist *h)
{
    char line[64];
    if (!h->n) return;
    rule(out, title, '-');
    snprintf(line, sizeof line, "Mean %s (ms):", name);
    row(out, line, mean_ms(h));
    snprintf(line, sizeof line, "Median %s (ms):", name);
    row(out, line, ms(mx_hist_quantile(h, 0.5)));
    snprintf(line, sizeof line, "P99 %s (ms):", name);
    row(out, line, ms(mx_hist_quantile(h, 0.99)));
    snprintf(line, sizeof line, "P99.9 %s (ms):", name);
    row(out, line, ms(mx_hist_quantile(h, 0.999)));
}

void mx_load_print(FILE *out, const mx_load_result *r)
{
    mx_load_figures t = totals(r);
    rule(out, " Serving Benchmark Result ", '=');
    count(out, "Successful requests:", t.done);
    count(out, "Failed requests:", t.failed);
    if (r->options.concurrency) count(out, "Maximum request concurrency:", (uint64_t)r->options.concurrency);
    if (r->options.rate > 0) row(out, "Request rate configured (RPS):", r->options.rate);
    count(out, "Peak concurrent requests:", r->peak);
    row(out, "Benchmark duration (s):", r->seconds);
    if (r->kind[MX_LOAD_GENERATE].sent) {
        count(out, "Total input tokens:", t.input_tokens);
        count(out, "Total generated tokens:", t.output_tokens);
    }
    row(out, "Request throughput (req/s):", each_second(r, t.done));
    if (has_slo(r)) row(out, "Request goodput (req/s):", each_second(r, t.good));
    if (r->kind[MX_LOAD_GENERATE].sent) {
        row(out, "Output token throughput (tok/s):", each_second(r, t.output_tokens));
        row(out, "Total token throughput (tok/s):", each_second(r, t.input_tokens + t.output_tokens));
    }
    const mx_load_figures *g = &r->kind[MX_LOAD_GENERATE];
    block(out, "Time to First Token", "TTFT", &g->ttft);
    block(out, "Time per Output Token (excl. 1st token)", "TPOT", &g->tpot);
    block(out, "Inter-token Latency", "ITL", &g->itl);
    for (int k = 0; k < MX_LOAD_KINDS; k++) {
        char title[64];
        snprintf(title, sizeof title, "End-to-end Latency (%s)", mx_load_kind_name(k));
        block(out, title, "E2EL", &r->kind[k].e2e);
    }
    if (r->late.n) block(out, "Lateness of the load generator", "late", &r->late);
    rule(out, "", '=');
    for (int i = 1; i < MX_RPC_CODE_COUNT; i++)
        if (t.codes[i]) fprintf(out, "%llu requests ended with %s\n", (unsigned long long)t.codes[i], mx_rpc_code_name(i));
}

/* ---- JSON -------------------------------------------------------------------------------------- */

static json_t *json_hist(const mx_hist *h)
{
    json_t *o = json_pack("{s:I, s:f, s:f}", "count", (json_int_t)h->n, "mean_ms", mean_ms(h), "max_ms", ms(h->most));
    for (int i = 0; o && i < QUANTILES; i++) {
        char key[16];
        snprintf(key, sizeof key, "%s_ms", quantiles[i].name);
        json_object_set_new(o, key, json_real(ms(mx_hist_quantile(h, quantiles[i].q))));
    }
    return o;
}

static json_t *json_kind(const mx_load_result *r, const mx_load_figures *f)
{
    json_t *o = json_pack("{s:I, s:I, s:I, s:I, s:f}", "completed", (json_int_t)f->done, "failed", (json_int_t)f->failed, "input_tokens",
                          (json_int_t)f->input_tokens, "output_tokens", (json_int_t)f->output_tokens, "request_throughput",
                          each_second(r, f->done));
    if (!o) return NULL;
    if (has_slo(r)) json_object_set_new(o, "request_goodput", json_real(each_second(r, f->good)));
    if (f->ttft.n) json_object_set_new(o, "ttft", json_hist(&f->ttft));
    if (f->tpot.n) json_object_set_new(o, "tpot", json_hist(&f->tpot));
    if (f->itl.n) json_object_set_new(o, "itl", json_hist(&f->itl));
    json_object_set_new(o, "e2el", json_hist(&f->e2e));
    json_t *codes = json_object();
    for (int i = 0; i < MX_RPC_CODE_COUNT; i++)
        if (f->codes[i]) json_object_set_new(codes, mx_rpc_code_name(i), json_integer((json_int_t)f->codes[i]));
    json_object_set_new(o, "codes", codes);
    return o;
}

mx_status mx_load_json(FILE *out, const mx_load_result *r, mx_error *err)
{
    mx_load_figures t = totals(r);
    json_t *o = json_pack("{s:f, s:I, s:I, s:f, s:f, s:f, s:i, s:I, s:I}", "duration", r->seconds, "completed", (json_int_t)t.done, "failed",
                          (json_int_t)t.failed, "request_throughput", each_second(r, t.done), "output_throughput",
                          each_second(r, t.output_tokens), "request_rate", r->options.rate, "max_concurrency",
                          (int)r->options.concurrency, "peak_concurrency", (json_int_t)r->peak, "seed", (json_int_t)r->options.seed);
    if (!o) return mx_fail(err, MX_ERR_NO_MEMORY, "the figures");
    if (has_slo(r)) json_object_set_new(o, "request_goodput", json_real(each_second(r, t.good)));
    if (r->late.n) json_object_set_new(o, "generator_lateness", json_hist(&r->late));
    for (int k = 0; k < MX_LOAD_KINDS; k++)
        if (r->kind[k].sent) json_object_set_new(o, mx_load_kind_name(k), json_kind(r, &r->kind[k]));
    json_t *slices = json_array();
    for (int i = 0; i < r->n_slices; i++)
        json_array_append_new(slices, json_pack("[I, I, I]", (json_int_t)r->slice[i].done, (json_int_t)r->slice[i].failed, (json_int_t)r->slice[i].tokens));
    json_object_set_new(o, "seconds_done_failed_tokens", slices);
    return cli_json_print(out, o, err);
}

/* ---- HTML ---------------------------------------------------------------------------------------- */

enum { WIDTH = 860, HEIGHT = 300, LEFT = 70, RIGHT = 20, TOP = 16, BOTTOM = 44 };

/* Okabe and Ito 2008: told apart by the colour-blind too. */
static const char *const colours[MX_LOAD_KINDS] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7"};

static void frame(FILE *out, const char *title, const char *y_name)
{
    fprintf(out, "<h2>%s</h2>\n<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\"><text x=\"14\" y=\"%d\" transform=\"rotate(-90 14 %d)\" "
            "text-anchor=\"middle\">%s</text>\n", title, WIDTH, HEIGHT, title, HEIGHT / 2, HEIGHT / 2, y_name);
}

static void grid_y(FILE *out, double y, const char *label)
{
    fprintf(out, "<line class=\"g\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", LEFT,
            WIDTH - RIGHT, y, y, LEFT - 6, y + 4, label);
}

static void grid_x(FILE *out, double x, const char *label)
{
    fprintf(out, "<line class=\"g\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x, x,
            TOP, HEIGHT - BOTTOM, x, HEIGHT - BOTTOM + 18, label);
}

/* Latency by percentile: the tail stretched (x = -log10(1 - q)), the y axis logarithmic. */
static void draw_percentiles(FILE *out, const mx_load_result *r)
{
    static const struct { double nines; const char *name; } ticks[] = {{0, "0"}, {0.30103, "p50"}, {1, "p90"}, {2, "p99"}, {3, "p99.9"}, {4, "p99.99"}};
    double low = 1e300, high = 0;
    for (int k = 0; k < MX_LOAD_KINDS; k++) {
        const mx_hist *h = &r->kind[k].e2e;
        if (!h->n) continue;
        low = fmin(low, fmax(ms(mx_hist_quantile(h, 0)), 1e-3));
        high = fmax(high, ms(h->most));
    }
    if (!(high > 0)) return;
    double from = floor(log10(low)), to = ceil(log10(high));
    if (to <= from) to = from + 1;
    frame(out, "End-to-end latency by percentile", "ms");
    for (double p = from; p <= to; p++) {
        char label[32];
        snprintf(label, sizeof label, "%g", pow(10, p));
        grid_y(out, TOP + (to - p) / (to - from) * (HEIGHT - TOP - BOTTOM), label);
    }
    for (int i = 0; i < 6; i++) grid_x(out, LEFT + ticks[i].nines / 4 * (WIDTH - LEFT - RIGHT), ticks[i].name);
    int legend = 0;
    for (int k = 0; k < MX_LOAD_KINDS; k++) {
        const mx_hist *h = &r->kind[k].e2e;
        if (!h->n) continue;
        fprintf(out, "<polyline stroke=\"%s\" points=\"", colours[k]);
        double end = fmin(4, log10((double)h->n));             /* beyond it a percentile is one request */
        for (int i = 0; i <= 200; i++) {
            double x = end * i / 200, v = fmax(ms(mx_hist_quantile(h, 1 - pow(10, -x))), 1e-3);
            fprintf(out, "%.1f,%.1f ", LEFT + x / 4 * (WIDTH - LEFT - RIGHT), TOP + (to - log10(v)) / (to - from) * (HEIGHT - TOP - BOTTOM));
        }
        fprintf(out, "\"/><text x=\"%d\" y=\"%d\" style=\"fill:%s\">%s</text>\n", LEFT + 10 + 90 * legend++, TOP + 14, colours[k], mx_load_kind_name(k));
    }
    fputs("</svg>\n", out);
}

/* A round number not below v, and how many steps make it. */
static double round_up(double v, int *steps)
{
    double unit = pow(10, floor(log10(v > 0 ? v : 1))), part = v / unit;
    double top = part <= 1 ? 1 : part <= 2 ? 2 : part <= 5 ? 5 : 10;
    *steps = top == 2 ? 4 : 5;
    return top * unit;
}

static double slice_value(const mx_load_slice *s, int what)
{
    if (what == 0) return (double)s->done;
    if (what == 1) return (double)s->tokens;
    return s->done ? (what == 2 ? s->sum_ns / (double)s->done : (double)s->most_ns) * 1e-6 : 0;
}

static void draw_seconds(FILE *out, const mx_load_result *r, const char *title, const char *unit, int first, int last, const char *const *names)
{
    int n = r->n_slices, steps;
    double high = 0;
    if (n > 2 && n == (int)ceil(r->seconds)) n--;              /* the last second is not a whole one */
    for (int what = first; what <= last; what++)
        for (int i = 0; i < n; i++) high = fmax(high, slice_value(&r->slice[i], what));
    if (!(high > 0)) return;
    high = round_up(high, &steps);
    frame(out, title, unit);
    for (int i = 0; i <= steps; i++) {
        char label[32];
        snprintf(label, sizeof label, "%g", high * i / steps);
        grid_y(out, TOP + (1 - (double)i / steps) * (HEIGHT - TOP - BOTTOM), label);
    }
    int span = n > 1 ? n - 1 : 1, every = span / 10 + 1;
    for (int i = 0; i <= span; i += every) {
        char label[32];
        snprintf(label, sizeof label, "%d s", i + 1);
        grid_x(out, LEFT + (double)i / span * (WIDTH - LEFT - RIGHT), label);
    }
    for (int what = first; what <= last; what++) {
        fprintf(out, "<polyline stroke=\"%s\" points=\"", colours[what - first]);
        for (int i = 0; i < n; i++)
            fprintf(out, "%.1f,%.1f ", LEFT + (double)i / span * (WIDTH - LEFT - RIGHT),
                    TOP + (1 - slice_value(&r->slice[i], what) / high) * (HEIGHT - TOP - BOTTOM));
        fprintf(out, "\"/><text x=\"%d\" y=\"%d\" style=\"fill:%s\">%s</text>\n", LEFT + 10 + 90 * (what - first), TOP + 14, colours[what - first],
                names[what - first]);
    }
    fputs("</svg>\n", out);
}

static void table_row(FILE *out, const char *kind, const char *what, const mx_hist *h)
{
    if (!h->n) return;
    fprintf(out, "<tr><td>%s</td><td>%s</td><td>%llu</td><td>%.3f</td>", kind, what, (unsigned long long)h->n, mean_ms(h));
    for (int i = 0; i < QUANTILES; i++) fprintf(out, "<td>%.3f</td>", ms(mx_hist_quantile(h, quantiles[i].q)));
    fprintf(out, "<td>%.3f</td></tr>\n", ms(h->most));
}

static void escaped(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '<') fputs("&lt;", out);
        else if (*text == '&') fputs("&amp;", out);
        else fputc(*text, out);
    }
}

void mx_load_html(FILE *out, const mx_load_result *r)
{
    static const char *const rates[] = {"requests", "tokens"}, *const times[] = {"mean", "slowest"};
    mx_load_figures t = totals(r);
    fputs("<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\"><title>Merx load</title><style>"
          "body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
          "svg{width:100%;height:auto;border:1px solid #ddd}svg text{font:12px system-ui,sans-serif;fill:#555}"
          "polyline{fill:none;stroke-width:2}.g{stroke:#eee}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
          "td,th{padding:.2em .7em;text-align:right;border-bottom:1px solid #eee}td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}"
          "h2{font-size:1.1em;margin:1.6em 0 .4em}pre{background:#f6f6f6;padding:1em;overflow:auto}</style>\n<h1>Load on ", out);
    escaped(out, r->options.server);
    fprintf(out, "</h1>\n<p>%s, %llu requests in %.1f s, %llu failed, seed %llu. ", r->options.rate > 0 ? (r->options.even ? "Open loop, even arrivals" : "Open loop, Poisson arrivals")
            : r->options.trace ? "Open loop, arrivals of a trace" : "Closed loop", (unsigned long long)t.sent, r->seconds,
            (unsigned long long)t.failed, (unsigned long long)r->options.seed);
    fputs(r->options.rate > 0 || r->options.trace ? "Latencies count from the time a request was due, not from when it left.</p>\n"
          : "A closed loop waits for the server: its latencies are those of a polite crowd.</p>\n", out);
    fputs("<table><tr><th>requests</th><th>figure</th><th>count</th><th>mean ms</th>", out);
    for (int i = 0; i < QUANTILES; i++) fprintf(out, "<th>%s</th>", quantiles[i].name);
    fputs("<th>max</th></tr>\n", out);
    for (int k = 0; k < MX_LOAD_KINDS; k++) {
        const mx_load_figures *f = &r->kind[k];
        table_row(out, mx_load_kind_name(k), "TTFT", &f->ttft);
        table_row(out, mx_load_kind_name(k), "TPOT", &f->tpot);
        table_row(out, mx_load_kind_name(k), "ITL", &f->itl);
        table_row(out, mx_load_kind_name(k), "E2E", &f->e2e);
    }
    fputs("</table>\n", out);
    draw_percentiles(out, r);
    draw_seconds(out, r, "Requests a second", "requests/s", 0, 0, rates);
    draw_seconds(out, r, "Tokens a second", "tokens/s", 1, 1, rates + 1);
    draw_seconds(out, r, "End-to-end latency by second", "ms", 2, 3, times);
    fputs("<h2>Figures</h2>\n<pre>", out);
    mx_load_print(out, r);
    fputs("</pre></html>\n", out);
}
