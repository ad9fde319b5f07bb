/* cli_load.c - merx load: files of events into a store of profiles. */
#include "server/cli_parts.h"
#include "server/event_rows.h"

#include "models/snapshot.h"
#include "runtime/clock.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 8192, TOLD = 10 };        /* events of one flush; rows whose errors are printed */
#define LINE_MOST ((size_t)1 << 20)

typedef struct load {
    mx_config     *config;
    mx_user_graph *graph;
    const char    *store;
    sigset_t       held;
    cli_progress   progress;
    bool           quiet;
    mx_event       event[BATCH];
    mx_put_result  result[BATCH];
    int64_t        line[BATCH];
    int32_t        count;
    mx_put_ack     sum;
    int64_t        rows, bad;             /* bad: not even an event */
    uint64_t       done, total;           /* bytes of all files */
} load;

/* How far a file was loaded: a line "SIZE OFFSET LINES PATH" of FOLDER/loading. */
typedef struct mark { int64_t size, offset, lines; } mark;

static mx_status mark_path(const load *l, char to[MX_PATH], mx_error *err) { return mx_path_join(to, l->store, "loading", err); }

static mark read_mark(const load *l, const char *path, int64_t size)
{
    char name[MX_PATH], line[MX_PATH + 80];
    mark m = {0};
    FILE *f = mark_path(l, name, NULL) ? NULL : fopen(name, "r");
    if (f && fgets(line, sizeof line, f)) {
        int at = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%" SCNd64 " %" SCNd64 " %" SCNd64 " %n", &m.size, &m.offset, &m.lines, &at) != 3 || strcmp(line + at, path) || m.size != size ||
            m.offset < 0 || m.offset > size)
            m = (mark){0};
    }
    if (f) fclose(f);
    return m;
}

static mx_status write_mark(const load *l, const char *path, mark m, mx_error *err)
{
    char name[MX_PATH], line[MX_PATH + 80];
    MX_TRY(mark_path(l, name, err));
    int n = snprintf(line, sizeof line, "%" PRId64 " %" PRId64 " %" PRId64 " %s\n", m.size, m.offset, m.lines, path);
    return n < (int)sizeof line ? mx_write_file(name, line, (size_t)n, err) : MX_OK;
}

/* ---- rows into the store --------------------------------------------------------------------- */

static void tell(load *l, const char *path, int64_t line, const char *why)
{
    if (++l->bad > TOLD) return;
    cli_progress_clear(&l->progress);
    fprintf(stderr, "merx: %s:%" PRId64 ": %s%s\n", path, line, why, l->bad == TOLD ? " (further ones are only counted)" : "");
}

static mx_status put(load *l, const char *path, mx_event_rows *rows, mx_error *err)
{
    mx_put_ack ack;
    mx_status st = mx_user_graph_put(l->graph, l->event, l->count, 0, l->result, &ack, err);
    mx_event_rows_forget(rows);
    if (st) return st;
    for (int32_t i = 0; i < l->count; i++)
        if (l->result[i].code == MX_PUT_MALFORMED) tell(l, path, l->line[i], l->result[i].reason);
    l->sum.accepted += ack.accepted;
    l->sum.duplicates += ack.duplicates;
    l->sum.erased += ack.erased;
    l->count = 0;
    return MX_OK;
}

static void show(load *l)
{
    double seconds = cli_progress_seconds(&l->progress), part = l->total ? (double)l->done / (double)l->total : 0;
    char left[32];
    cli_clock(part > 0 ? seconds / part * (1 - part) : 0, left, sizeof left);
    cli_progress_figures(&l->progress, part, " %" PRId64 " rows  %.0f/s  %s left", l->rows, seconds > 0 ? (double)l->rows / seconds : 0, left);
}

/* A line longer than most is read over. */
static mx_status one_line(load *l, mx_event_rows *rows, const char *path, const char *text, size_t len, int64_t number, mx_error *err)
{
    bool is_event = false;
    mx_error why = {0};
    mx_status st = len > LINE_MOST ? mx_fail(&why, MX_ERR_FORMAT, "row: longer than %zu bytes", LINE_MOST)
                                   : mx_event_rows_take(rows, text, len, number, &l->event[l->count], &is_event, &why);
    if (st == MX_ERR_NO_MEMORY || (st == MX_ERR_ARG && number == 1)) {
        *err = why;
        return st;
    }
    l->rows += st || is_event;
    if (st) tell(l, path, number, why.text);
    else if (is_event) l->line[l->count++] = number;
    return MX_OK;
}

static mx_status read_rows(load *l, FILE *f, mx_event_rows *rows, const char *path, mark *m, bool *stopped, mx_error *err)
{
    char *text = NULL;
    size_t room = 0;
    ssize_t n;
    mx_status st = MX_OK;
    while (!st && !*stopped && (n = getline(&text, &room, f)) >= 0) {
        m->offset += n;
        m->lines++;
        l->done += (uint64_t)n;
        if (n && text[n - 1] == '\n') n--;
        st = one_line(l, rows, path, text, (size_t)n, m->lines, err);
        if (st || l->count < BATCH) continue;
        st = put(l, path, rows, err);
        if (!st) st = write_mark(l, path, *m, err);
        show(l);
        *stopped = cli_signal_pending(&l->held);
    }
    if (!st && ferror(f)) st = mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    free(text);
    if (!st && l->count) st = put(l, path, rows, err);
    return st ? st : write_mark(l, path, *m, err);
}

static bool ends(const char *name, const char *with)
{
    size_t n = strlen(name), k = strlen(with);
    return n >= k && !strcmp(name + n - k, with);
}

/* The head of CSV is read even when what follows is loaded already. */
static mx_status skip_loaded(load *l, FILE *f, mx_event_rows *rows, const mx_event_rows_options *o, const mark *m, mx_error *err)
{
    char *text = NULL;
    size_t room = 0;
    mx_status st = MX_OK;
    if (!m->offset) return MX_OK;
    if (o->csv && !o->columns) {
        ssize_t n = getline(&text, &room, f);
        bool is_event;
        if (n > 0 && text[n - 1] == '\n') n--;
        if (n > 0) st = mx_event_rows_take(rows, text, (size_t)n, 1, &l->event[0], &is_event, err);
        mx_event_rows_forget(rows);
        free(text);
    }
    l->done += (uint64_t)m->offset;
    if (!st && fseeko(f, m->offset, SEEK_SET)) st = mx_fail(err, MX_ERR_IO, "%s: %s", o->name, strerror(errno));
    return st;
}

static mx_status load_file(load *l, const char *path, int64_t now_ms, bool *stopped, mx_error *err)
{
    struct stat info;
    mx_event_rows *rows = NULL;
    char real[PATH_MAX];
    mx_event_rows_options o = {.name = realpath(path, real) ? real : path, .csv = !ends(path, ".jsonl") && !ends(path, ".json"), .separator = ',', .ts_ms = now_ms};
    if (mx_config_given(l->config, "columns")) o.columns = mx_config_string(l->config, "columns");
    if (mx_config_given(l->config, "event-type")) o.type = mx_config_string(l->config, "event-type");
    if (!ends(path, ".csv")) o.separator = '\t';
    FILE *f = fopen(path, "r");
    if (!f || fstat(fileno(f), &info)) {
        if (f) fclose(f);
        return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    }
    mark m = read_mark(l, path, info.st_size);
    m.size = info.st_size;
    if (m.offset && !l->quiet) fprintf(stderr, "merx: %s goes on behind line %" PRId64 "\n", path, m.lines);
    mx_status st = mx_event_rows_open(&rows, l->graph, &o, err);
    if (!st) st = skip_loaded(l, f, rows, &o, &m, err);
    if (!st) st = read_rows(l, f, rows, path, &m, stopped, err);
    mx_event_rows_close(rows);
    fclose(f);
    return st;
}

/* ---- types: NAME:SUBJECT[:OBJECT][:purchase|:social] ---------------------------------------------- */

static mx_status declare(mx_user_graph *g, const char *text, mx_error *err)
{
    char copy[160], *part[4] = {0}, *save = NULL;
    int n = 0;
    if (strlen(text) < sizeof copy)
        for (char *p = strtok_r(strcpy(copy, text), ":", &save); p && n < 4; p = strtok_r(NULL, ":", &save)) part[n++] = p;
    mx_event_type t = {.object = -1};
    if (n > 2 && !strcmp(part[n - 1], "purchase")) t.flags = MX_TYPE_PURCHASE;
    else if (n > 2 && !strcmp(part[n - 1], "social")) t.flags = MX_TYPE_SOCIAL;
    if (t.flags) n--;
    if (n < 2 || n > 3 || strlen(part[0]) > MX_TYPE_MOST) return mx_fail(err, MX_ERR_ARG, "declare \"%.80s\": want NAME:SUBJECT[:OBJECT][:purchase|:social]", text);
    strcpy(t.name, part[0]);
    MX_TRY(mx_user_graph_declare_node(g, part[1], &t.subject, err));
    if (n == 3) MX_TRY(mx_user_graph_declare_node(g, part[2], &t.object, err));
    int32_t type;
    return mx_user_graph_declare_event(g, &t, &type, err);
}

static mx_status open_store(load *l, mx_error *err)
{
    MX_TRY(mx_user_graph_open(&l->graph, l->store, NULL, err));
    MX_TRY(mx_user_graph_declare_usual(l->graph, err));
    const char *const *types;
    for (int i = 0, n = mx_config_list(l->config, "declare", &types); i < n; i++) MX_TRY(declare(l->graph, types[i], err));
    return MX_OK;
}

static void sum_up(load *l)
{
    mx_user_graph_stats s;
    mx_user_graph_statistics(l->graph, &s);
    double seconds = cli_progress_seconds(&l->progress);
    fprintf(stderr, "merx: %" PRId64 " rows in %.1f s (%.0f/s): %" PRId64 " new events, %" PRId64 " there already, %" PRId64 " of erased subjects, %" PRId64 " refused\n",
            l->rows, seconds, seconds > 0 ? (double)l->rows / seconds : 0, l->sum.accepted, l->sum.duplicates, l->sum.erased, l->bad);
    fprintf(stderr, "merx: %s: %" PRId64 " nodes, %" PRId64 " events, %" PRId64 " edges of %.1f bytes in memory; log %.1f MB, snapshot %.1f MB\n", l->store, s.nodes, s.events,
            s.edges, s.edges ? (double)s.edge_bytes / (double)s.edges : 0, (double)s.log_bytes / 1e6, (double)s.snapshot_bytes / 1e6);
}

int mx_cli_load(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    bool stopped = false;
    struct timespec now;
    if (n) return cli_usage("load takes settings only, not \"%s\"", rest[0]);
    const char *const *files;
    int n_files = mx_config_list(c, "data", &files);
    if (!mx_config_given(c, "store") || !n_files) return cli_usage("load what into what? merx load --store FOLDER -d EVENTS.jsonl");
    load *l = calloc(1, sizeof *l);
    if (!l) return cli_usage("out of memory");
    l->config = c;
    l->store = mx_config_string(c, "store");
    l->quiet = mx_config_bool(c, "quiet");
    cli_hold_signals(&l->held);
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < n_files; i++) {
        struct stat info;
        if (!stat(files[i], &info)) l->total += (uint64_t)info.st_size;
    }
    cli_progress_open(&l->progress, l->quiet, 0);
    mx_status st = open_store(l, &err);
    for (int i = 0; !st && !stopped && i < n_files; i++) st = load_file(l, files[i], now.tv_sec * 1000LL, &stopped, &err);
    if (!st) {
        mx_user_graph_stats s;
        mx_user_graph_statistics(l->graph, &s);
        /* the next start reads a snapshot, not the log; a load that was killed may have left the rest of one */
        if (l->sum.accepted || s.pending) st = mx_user_graph_merge(l->graph, &err);
    }
    cli_progress_clear(&l->progress);
    if (!st && !l->quiet) sum_up(l);
    if (!st && stopped && !l->quiet) fprintf(stderr, "merx: stopped; the same command goes on from there\n");
    int status = st ? cli_failed(&err) : stopped ? CLI_INTERRUPTED : l->bad ? CLI_FAILED : CLI_OK;
    mx_user_graph_close(l->graph);
    free(l);
    return status;
}
