/* cli_top.c - merx top: a server's lanes, models and calls, live, from its /metrics. */
#include "server/cli_parts.h"

#include <errno.h>
#include <math.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_MOST = 16 << 20, LE_MOST = 64 };

typedef struct sample { const char *name, *labels; double value; } sample;   /* into the text */

typedef struct snapshot {
    char    *text;
    sample  *list;
    size_t   n;
    uint64_t at_ns;
} snapshot;

static void snapshot_free(snapshot *s)
{
    free(s->text);
    free(s->list);
    *s = (snapshot){0};
}

/* ---- asking --------------------------------------------------------------------------------- */

static mx_status dial(const char *where, int *out, mx_error *err)
{
    char host[256];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    struct timeval wait = {.tv_sec = 5};
    snprintf(host, sizeof host, "%s", where);
    char *colon = strrchr(host, ':');
    if (!colon) return mx_fail(err, MX_ERR_ARG, "%s: HOST:PORT of the server's --http-listen is needed", where);
    *colon = 0;
    int e = getaddrinfo(host, colon + 1, &hints, &found);
    if (e) return mx_fail(err, MX_ERR_ARG, "%s: %s", where, gai_strerror(e));
    int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &wait, sizeof wait);
    }
    bool ok = fd >= 0 && !connect(fd, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    *out = fd;
    if (ok) return MX_OK;
    mx_fail(err, MX_ERR_IO, "%s: %s", where, strerror(errno));
    if (fd >= 0) close(fd);
    return MX_ERR_IO;
}

static mx_status fetch(const char *where, char **out, mx_error *err)
{
    static const char ask[] = "GET /metrics HTTP/1.0\r\n\r\n";
    int fd;
    size_t n = 0, room = 1 << 16;
    MX_TRY(dial(where, &fd, err));
    char *text = malloc(room);
    bool ok = text && send(fd, ask, sizeof ask - 1, MSG_NOSIGNAL) == (ssize_t)(sizeof ask - 1);
    for (ssize_t got = 1; ok && got > 0;) {
        if (room - n < 2) {
            char *more = room < ANSWER_MOST ? realloc(text, room *= 2) : NULL;
            ok = more != NULL;
            if (more) text = more;
            continue;
        }
        got = recv(fd, text + n, room - n - 1, 0);
        if (got > 0) n += (size_t)got;
        ok = got >= 0;
    }
    close(fd);
    if (ok) text[n] = 0;
    ok = ok && n > 12 && !strncmp(text + 8, " 200", 4);
    if (ok) *out = text;
    else free(text);
    return ok ? MX_OK : mx_fail(err, MX_ERR_IO, "%s: no metrics there", where);
}

/* "name{labels} value" lines; the text is cut up in place. */
static mx_status take(const char *where, snapshot *s, mx_error *err)
{
    char *save, *body;
    size_t room = 0;
    *s = (snapshot){0};
    MX_TRY(fetch(where, &s->text, err));
    s->at_ns = mx_now_ns(&mx_clock_monotonic);
    body = strstr(s->text, "\r\n\r\n");
    for (char *line = strtok_r(body ? body + 4 : s->text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char *brace = strchr(line, '{'), *blank = strrchr(line, ' ');
        if (*line == '#' || !blank) continue;
        if (s->n == room) {
            sample *more = realloc(s->list, (room = room ? 2 * room : 512) * sizeof *more);
            if (!more) return mx_fail(err, MX_ERR_NO_MEMORY, "the metrics");
            s->list = more;
        }
        *blank = 0;
        char *end = brace ? strrchr(brace, '}') : NULL;
        if (brace) *brace = 0;
        if (end) *end = 0;
        s->list[s->n++] = (sample){line, brace ? brace + 1 : "", strtod(blank + 1, NULL)};
    }
    return MX_OK;
}

static double value_of(const snapshot *s, const char *name, const char *labels)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->list[i].name, name) && !strcmp(s->list[i].labels, labels)) return s->list[i].value;
    return 0;
}

/* ---- figures ----------------------------------------------------------------------------------- */

typedef struct pair { const snapshot *was, *now; double seconds; } pair;

static double rate_of(const pair *p, const char *name, const char *labels)
{
    double d = value_of(p->now, name, labels) - value_of(p->was, name, labels);
    return p->seconds > 0 && d > 0 ? d / p->seconds : 0;
}

static void label_of(char *out, size_t size, const char *labels, const char *key)
{
    char wanted[64];
    snprintf(wanted, sizeof wanted, "%s=\"", key);
    const char *at = strstr(labels, wanted);
    at = at ? at + strlen(wanted) : "";
    snprintf(out, size, "%.*s", (int)strcspn(at, "\""), at);
}

/* Of the histogram's observations since the last look; "-" when there were none. */
static void quantile(char *out, size_t size, const pair *p, const char *name, const char *labels, double q)
{
    char bucket[128], start[400];
    double le[LE_MOST], n[LE_MOST];
    int count = 0;
    snprintf(bucket, sizeof bucket, "%s_bucket", name);
    int len = snprintf(start, sizeof start, "%s%sle=\"", labels, *labels ? "," : "");
    for (size_t i = 0; i < p->now->n && count < LE_MOST; i++) {
        const sample *s = &p->now->list[i];
        if (strcmp(s->name, bucket) != 0 || strncmp(s->labels, start, (size_t)len) != 0) continue;
        const sample *w = i < p->was->n ? &p->was->list[i] : NULL;          /* mostly in the same place */
        bool same = w && !strcmp(w->name, s->name) && !strcmp(w->labels, s->labels);
        le[count] = strncmp(s->labels + len, "+Inf", 4) ? strtod(s->labels + len, NULL) : INFINITY;
        n[count++] = s->value - (same ? w->value : value_of(p->was, s->name, s->labels));
    }
    snprintf(out, size, "-");
    if (!count || !(n[count - 1] > 0)) return;
    double rank = q * n[count - 1];
    int i = 0;
    while (i < count - 1 && n[i] < rank) i++;
    double low = i ? le[i - 1] : 0, below = i ? n[i - 1] : 0, high = isinf(le[i]) ? low : le[i];
    double v = low + (high - low) * (n[i] > below ? (rank - below) / (n[i] - below) : 1);
    if (v < 1e-3) snprintf(out, size, "%.0f us", v * 1e6);
    else if (v < 1) snprintf(out, size, "%.1f ms", v * 1e3);
    else snprintf(out, size, "%.2f s", v);
}

static void say(FILE *out, bool tty, const char *title)
{
    fprintf(out, "%s%s%s\033[K\n", tty ? "\033[7m" : "", title, tty ? "\033[0m" : "");
}

static void show_head(FILE *out, const char *where, const pair *p)
{
    char up[32];
    double started = value_of(p->now, "process_start_time_seconds", "");
    cli_clock(started > 0 ? (double)time(NULL) - started : 0, up, sizeof up);
    fprintf(out, "merx %s  %s  up %s  memory %.0f MiB  cpu %.0f %%  files %.0f  calls under way %.0f\033[K\n\033[K\n", where,
            value_of(p->now, "merx_ready", "") > 0 ? "ready" : "NOT READY", up,
            value_of(p->now, "process_resident_memory_bytes", "") / (1 << 20), 100 * rate_of(p, "process_cpu_seconds_total", ""),
            value_of(p->now, "process_open_fds", ""), value_of(p->now, "merx_rpc_inflight", ""));
}

static void show_lanes(FILE *out, bool tty, const pair *p)
{
    say(out, tty, "LANE                         WAITING  RUNNING  TURNS/s   ROWS/s   JOBS/s   BUSY  REFUSED/s");
    for (size_t i = 0; i < p->now->n; i++) {
        const sample *s = &p->now->list[i];
        char lane[80];
        if (strcmp(s->name, "merx_lane_waiting") != 0) continue;
        label_of(lane, sizeof lane, s->labels, "lane");
        fprintf(out, "%-28.28s %7.0f  %7.0f  %7.0f  %7.0f  %7.0f  %3.0f %%  %9.0f\033[K\n", lane, s->value,
                value_of(p->now, "merx_lane_running", s->labels), rate_of(p, "merx_lane_turns_total", s->labels),
                rate_of(p, "merx_lane_rows_total", s->labels), rate_of(p, "merx_lane_jobs_total", s->labels),
                100 * rate_of(p, "merx_lane_busy_seconds_total", s->labels), rate_of(p, "merx_lane_refused_total", s->labels));
    }
    fputs("\033[K\n", out);
}

static void show_models(FILE *out, bool tty, const pair *p)
{
    bool first = true;
    for (size_t i = 0; i < p->now->n; i++) {
        const sample *s = &p->now->list[i];
        char model[80], t50[16], t99[16], i50[16], i99[16];
        if (strcmp(s->name, "merx_kv_cache_usage_perc") != 0) continue;
        if (first) say(out, tty, "MODEL                  TOKENS/s  PROMPT/s    KV   TTFT p50      p99    ITL p50      p99");
        first = false;
        label_of(model, sizeof model, s->labels, "model");
        quantile(t50, sizeof t50, p, "merx_time_to_first_token_seconds", s->labels, 0.5);
        quantile(t99, sizeof t99, p, "merx_time_to_first_token_seconds", s->labels, 0.99);
        quantile(i50, sizeof i50, p, "merx_inter_token_latency_seconds", s->labels, 0.5);
        quantile(i99, sizeof i99, p, "merx_inter_token_latency_seconds", s->labels, 0.99);
        fprintf(out, "%-22.22s %8.0f  %8.0f %3.0f %%  %9s %8s  %9s %8s\033[K\n", model, rate_of(p, "merx_generation_tokens_total", s->labels),
                rate_of(p, "merx_prompt_tokens_total", s->labels), 100 * s->value, t50, t99, i50, i99);
    }
    if (!first) fputs("\033[K\n", out);
}

static void show_versions(FILE *out, bool tty, const pair *p)
{
    static const char *const states[] = {"loading", "serving", "draining"};
    bool first = true;
    for (size_t i = 0; i < p->now->n; i++) {
        const sample *s = &p->now->list[i];
        char model[80], version[16];
        if (strcmp(s->name, "merx_model_state") != 0) continue;
        if (first) say(out, tty, "VERSION OF             NUMBER  STATE     HELD BY");
        first = false;
        label_of(model, sizeof model, s->labels, "model");
        label_of(version, sizeof version, s->labels, "version");
        fprintf(out, "%-22.22s %6s  %-8s  %7.0f\033[K\n", model, version, s->value >= 0 && s->value < 3 ? states[(int)s->value] : "?",
                value_of(p->now, "merx_model_references", s->labels));
    }
    if (!first) fputs("\033[K\n", out);
}

static void show_calls(FILE *out, bool tty, const pair *p)
{
    bool first = true;
    for (size_t i = 0; i < p->now->n; i++) {
        const sample *s = &p->now->list[i];
        char method[120], code[40], p50[16] = "", p99[16] = "", labels[200];
        if (strcmp(s->name, "merx_rpc_total") != 0) continue;
        if (first) say(out, tty, "METHOD                                     CODE                 CALLS     /s       p50      p99");
        first = false;
        label_of(method, sizeof method, s->labels, "method");
        label_of(code, sizeof code, s->labels, "code");
        snprintf(labels, sizeof labels, "method=\"%s\"", method);
        if (!strcmp(code, "OK")) {
            quantile(p50, sizeof p50, p, "merx_rpc_duration_seconds", labels, 0.5);
            quantile(p99, sizeof p99, p, "merx_rpc_duration_seconds", labels, 0.99);
        }
        fprintf(out, "%-42.42s %-18.18s %7.0f %6.0f %9s %8s\033[K\n", method, code, s->value, rate_of(p, "merx_rpc_total", s->labels), p50, p99);
    }
}

static void show(const char *where, bool tty, const pair *p)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);
    if (!out) return;
    show_head(out, where, p);
    show_lanes(out, tty, p);
    show_models(out, tty, p);
    show_versions(out, tty, p);
    show_calls(out, tty, p);
    fclose(out);
    if (tty) printf("\033[H%s\033[J", text);                   /* over the old one: no flicker */
    else
        for (char *c = text; c && *c; c++) {
            if (!strncmp(c, "\033[K", 3)) c += 2;
            else putchar(*c);
        }
    fflush(stdout);
    free(text);
}

/* A terminal is kept up to date until Ctrl-C; anything else gets one look. */
int mx_cli_top(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    snapshot was = {0}, now = {0};
    sigset_t held;
    bool tty = cli_term_of(stdout).tty;
    const char *where = n ? rest[0] : "127.0.0.1:8080";
    double interval = mx_config_float(c, "interval");
    struct timespec nap = {.tv_sec = (time_t)interval, .tv_nsec = (long)((interval - floor(interval)) * 1e9)};
    if (n > 1) return cli_usage("top takes one address; %d given", n);
    cli_hold_signals(&held);
    mx_status st = take(where, &was, &err);
    if (tty && !st) fputs("\033[2J", stdout);
    while (!st) {
        if (sigtimedwait(&held, NULL, &nap) > 0) break;
        st = take(where, &now, &err);
        if (st) break;
        pair p = {&was, &now, (double)(now.at_ns - was.at_ns) * 1e-9};
        show(where, tty, &p);
        if (!tty) break;
        snapshot_free(&was);
        was = now;
        now = (snapshot){0};
    }
    snapshot_free(&was);
    snapshot_free(&now);
    return st ? cli_failed(&err) : CLI_OK;
}
