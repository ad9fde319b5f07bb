/* test_load.c - rows of JSON and CSV as events; merx load broken off, killed, repeated. */
#include "server/event_rows.h"
#include "tests/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char folder[200], store[256];

static void clear(const char *path)
{
    DIR *d = opendir(path);
    char name[600];
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        snprintf(name, sizeof name, "%s/%s", path, e->d_name);
        if (unlink(name)) clear(name);
    }
    if (d) closedir(d);
    rmdir(path);
}

static void open_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/merx-test-load-%d", (int)getpid());
    clear(folder);
    mkdir(folder, 0700);
    snprintf(store, sizeof store, "%s/store", folder);
}

static mx_user_graph *open_graph(void)
{
    mx_error err = {0};
    mx_user_graph *g = NULL;
    CHECK_OK(mx_user_graph_open(&g, store, NULL, &err), err);
    if (g) CHECK_OK(mx_user_graph_declare_usual(g, &err), err);
    return g;
}

static void times(void)
{
    static const struct { const char *text; int64_t ms; } good[] = {
        {"0", 0}, {"1700000000", 1700000000000}, {"1700000000123", 1700000000123}, {"1970-01-02", 86400000}, {"2024-02-29T12:30:15Z", 1709209815000},
        {"2024-02-29 12:30:15.250Z", 1709209815250}, {"2024-02-29T20:30:15+08:00", 1709209815000}, {"2000-01-01T00:00:00", 946684800000},
    };
    static const char *const bad[] = {"", "x", "-5", "2024-13-01", "2024-02-29T25:00:00Z", "2024-02-29T12:30:15X", "17e9"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        int64_t ms = -1;
        CHECK_MSG(mx_parse_time(good[i].text, &ms) && ms == good[i].ms, "%s: %lld", good[i].text, (long long)ms);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int64_t ms;
        CHECK_MSG(!mx_parse_time(bad[i], &ms), "%s", bad[i]);
    }
}

static mx_status take(mx_event_rows *r, const char *line, mx_event *e, bool *is_event, mx_error *err)
{
    *err = (mx_error){0};
    return mx_event_rows_take(r, line, strlen(line), 7, e, is_event, err);
}

static void rows(void)
{
    mx_error err = {0};
    mx_event e;
    bool is;
    open_folder();
    mx_user_graph *g = open_graph();
    mx_event_rows *r = NULL;
    mx_event_rows_options o = {.name = "/a/b.jsonl", .ts_ms = 5};
    CHECK_OK(mx_event_rows_open(&r, g, &o, &err), err);
    CHECK_OK(take(r, "{\"id\":\"x\",\"type\":\"buy\",\"subject\":\"\u00e4nna\",\"object\":17,\"ts\":\"2024-05-01\",\"price\":1999,\"promo\":true,\"quantity\":2,"
                     "\"weight\":0.5,\"props\":{\"b\":1,\"a\":[2]},\"other\":null}", &e, &is, &err), err);
    CHECK(is && e.type == 2 && e.price_minor == 1999 && e.flags == MX_EVENT_PROMO && e.quantity == 2 && e.weight == 0.5f && e.ts_ms == 1714521600000);
    CHECK_STR(e.object, "17");
    CHECK_STR(e.props, "{\"a\":[2],\"b\":1}");
    CHECK_OK(take(r, "{\"event_id\":\"y\",\"type\":\"buy\",\"user\":\"anna\",\"object\":\"i\",\"ts_ms\":1700000000123,\"price_minor\":5}", &e, &is, &err), err);
    CHECK(!strcmp(e.id, "y") && !strcmp(e.subject, "anna") && e.ts_ms == 1700000000123 && e.price_minor == 5);      /* the service's names */
    CHECK_OK(take(r, "{\"type\":\"view\",\"subject\":\"u\",\"object\":\"i\"}", &e, &is, &err), err);
    CHECK(e.ts_ms == 5 && !strncmp(e.id, "b.jsonl-", 8) && strstr(e.id, ":7"));
    CHECK_OK(take(r, "", &e, &is, &err), err);
    CHECK(!is);
    static const struct { const char *line, *why; } bad[] = {
        {"{\"subject\":\"u\"}", "type is missing"}, {"{\"type\":\"fly\"}", "type \"fly\""}, {"[1]", "no object"}, {"{", "row:"},
        {"{\"type\":\"view\",\"ts\":\"noon\"}", "ts \"noon\""}, {"{\"type\":\"buy\",\"price\":1.5}", "price \"1.5\""}, {"{\"promo\":\"perhaps\"}", "promo"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK_MSG(take(r, bad[i].line, &e, &is, &err) && strstr(err.text, bad[i].why), "%s: %s", bad[i].line, err.text);
    mx_event_rows_close(r);
    o = (mx_event_rows_options){.name = "c.csv", .csv = true, .separator = ',', .type = "view"};
    CHECK_OK(mx_event_rows_open(&r, g, &o, &err), err);
    CHECK_OK(take(r, "subject,note,object,text", &e, &is, &err), err);
    CHECK(!is);
    CHECK_OK(take(r, "anna,-,\"a \"\"b\"\", c\",\r", &e, &is, &err), err);
    CHECK(is && e.type == 0 && !e.text);
    CHECK_STR(e.object, "a \"b\", c");
    CHECK(take(r, "anna,1,2", &e, &is, &err) == MX_ERR_FORMAT && strstr(err.text, "3 columns, the head has 4"));
    CHECK(take(r, "\"anna,1,2,3", &e, &is, &err) == MX_ERR_FORMAT && strstr(err.text, "not closed"));
    mx_event_rows_close(r);
    o.columns = "subject,-,nonsense";
    CHECK(mx_event_rows_open(&r, g, &o, &err) == MX_ERR_ARG && strstr(err.text, "nonsense"));
    mx_user_graph_close(g);
    clear(folder);
}

/* ---- the command --------------------------------------------------------------------------------- */

static pid_t start(const char *file)
{
    fflush(stdout);
    pid_t child = fork();
    if (child) return child;
    int quiet = open("/dev/null", O_WRONLY);
    dup2(quiet, 2);
    execl(MX_BINARY_DIR "/merx", "merx", "load", "--store", store, "-d", file, "--event-type", "view", (char *)NULL);
    _exit(127);
}

static int ended(pid_t child)
{
    int status;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void command(void)
{
    enum { ROWS = 60000 };
    char file[300];
    uint64_t seed = 17;
    mx_error err = {0};
    open_folder();
    snprintf(file, sizeof file, "%s/views.csv", folder);
    FILE *f = fopen(file, "w");
    fputs("ts,subject,object\n", f);
    for (int i = 0; i < ROWS; i++) fprintf(f, "%d,user%d,item%d\n", 1700000000 + i, i % 977, (int)(test_random(&seed) % 1500));
    fclose(f);
    int killed = 0, stopped = 0;
    for (int i = 0; i < 8; i++) {
        pid_t child = start(file);
        nanosleep(&(struct timespec){.tv_nsec = (long)(10000000 + test_random(&seed) % 60000000)}, NULL);
        kill(child, i % 2 ? SIGKILL : SIGINT);
        int status = ended(child);
        CHECK_MSG(status == 0 || status == 130 || status == -SIGKILL || status == -SIGINT, "status %d", status);
        killed += status == -SIGKILL;
        stopped += status == 130;
    }
    CHECK(ended(start(file)) == 0);
    CHECK(ended(start(file)) == 0);
    printf("  stopped %d times, killed %d times\n", stopped, killed);
    mx_user_graph *g = open_graph();
    mx_user_graph_stats s;
    mx_event_list l = {0};
    mx_user_graph_statistics(g, &s);
    CHECK_MSG(s.events == ROWS && s.edges == ROWS && s.pending == 0, "%lld events", (long long)s.events);
    CHECK_MSG((double)s.edge_bytes < 24 * ROWS, "%zu bytes", s.edge_bytes);
    CHECK_OK(mx_user_graph_events(g, mx_user_graph_find(g, 0, "user5"), MX_TIME_ANY, 0, &l, &err), err);
    CHECK(l.count == 62 && l.event[61].ts_ms == 1700000005000);
    mx_event_list_free(&l);
    mx_user_graph_close(g);
    f = fopen(file, "a");                                  /* a longer file is another one, but its lines are known */
    fputs("1800000000,late,item1\nnonsense\n", f);
    fclose(f);
    CHECK(ended(start(file)) == 1);
    g = open_graph();
    CHECK(mx_user_graph_watermark(g) == ROWS + 1);
    mx_user_graph_close(g);
    clear(folder);
}

MX_TESTS(TEST(times), TEST(rows), TEST(command))
