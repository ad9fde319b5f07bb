/* test_user_graph.c - the store of events against a plain list of them; restarts, kills, damage, erasure. */
#include "models/event_log.h"
#include "models/user_graph.h"
#include "runtime/log.h"
#include "tests/test.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char folder[256];

static void clear(void)
{
    DIR *d = opendir(folder);
    char path[600];
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (e->d_name[0] != '.' || e->d_name[1] > '.') unlink(path);
    }
    if (d) closedir(d);
    rmdir(folder);
}

static const char *fresh_folder(void)
{
    snprintf(folder, sizeof folder, "/tmp/merx-test-graph-%d", (int)getpid());
    clear();
    return folder;
}

static mx_user_graph *open_graph(const mx_user_graph_options *o)
{
    mx_error err = {0};
    mx_user_graph *g = NULL;
    CHECK_OK(mx_user_graph_open(&g, folder, o, &err), err);
    if (g) CHECK_OK(mx_user_graph_declare_usual(g, &err), err);
    return g;
}

/* ---- the plain list -------------------------------------------------------------------- */

enum { USERS = 40, ITEMS = 60, MODEL_MOST = 20000 };

typedef struct plain { char id[24], subject[24], object[24]; int32_t type, price; int64_t ts_ms; float weight; } plain;
static plain list[MODEL_MOST];
static int   listed;

static plain draw(uint64_t *s, int n)
{
    plain p = {.type = (int32_t)(test_random(s) % 10), .ts_ms = 1700000000000 + (int64_t)(test_random(s) % 4000000), .weight = (float)(test_random(s) % 8) / 4};
    snprintf(p.id, sizeof p.id, "e%d", n);
    snprintf(p.subject, sizeof p.subject, "u%d", (int)(test_random(s) % USERS));
    if (p.type != 5 && p.type != 9) snprintf(p.object, sizeof p.object, "%c%d", p.type == 7 ? 'u' : 'i', (int)(test_random(s) % (p.type == 7 ? USERS : ITEMS)));
    p.price = (int32_t)(test_random(s) % 1000);
    return p;
}

static mx_event event_of(const plain *p)
{
    mx_event e = mx_event_defaults();
    e.id = p->id;
    e.type = p->type;
    e.ts_ms = p->ts_ms;
    e.subject = p->subject;
    e.object = *p->object ? p->object : NULL;
    e.weight = p->weight;
    e.price_minor = p->price;
    e.category = "shoes";
    e.text = "a fine pair";
    return e;
}

static void put_some(mx_user_graph *g, uint64_t *s, int n)
{
    mx_event e[64];
    mx_put_ack ack;
    mx_error err = {0};
    for (int done = 0; done < n;) {
        int k = n - done < 64 ? n - done : 64;
        for (int i = 0; i < k; i++) {
            list[listed + i] = draw(s, listed + i);
            e[i] = event_of(&list[listed + i]);
        }
        listed += k;
        done += k;
        CHECK_OK(mx_user_graph_put(g, e, k, 0, NULL, &ack, &err), err);
        CHECK(ack.accepted == k);
    }
}

static int newest(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    if (list[x].ts_ms != list[y].ts_ms) return list[x].ts_ms > list[y].ts_ms ? -1 : 1;
    return y - x;
}

/* In the order of (second rounded up, arrival). */
static int rising(const void *a, const void *b)
{
    int x = *(const int *)a, y = *(const int *)b;
    int64_t s = (list[x].ts_ms + 999) / 1000, t = (list[y].ts_ms + 999) / 1000;
    return s != t ? (s < t ? -1 : 1) : x - y;
}

static void check_events(mx_user_graph *g, const char *key, int64_t as_of, int limit)
{
    static int want[MODEL_MOST];
    mx_event_list got = {0};
    mx_error err = {0};
    int n = 0, node = mx_user_graph_find(g, 0, key);
    for (int i = 0; i < listed; i++)
        if (!strcmp(list[i].subject, key) && list[i].ts_ms <= as_of) want[n++] = i;
    qsort(want, (size_t)n, sizeof *want, newest);
    if (limit && n > limit) n = limit;
    CHECK_OK(mx_user_graph_events(g, node, as_of, limit, &got, &err), err);
    CHECK_MSG(got.count == n, "%s: %d events, want %d", key, got.count, n);
    for (int i = 0; i < n && i < got.count; i++) {
        const plain *p = &list[want[i]];
        const mx_event *e = &got.event[i];
        if (strcmp(e->id, p->id) || e->ts_ms != p->ts_ms || e->type != p->type || e->price_minor != p->price || e->weight != p->weight ||
            strcmp(e->object ? e->object : "", p->object) || strcmp(e->text, "a fine pair") || strcmp(e->subject, key)) {
            CHECK_MSG(false, "%s: event %d is %s, want %s", key, i, e->id, p->id);
            break;
        }
    }
    CHECK(true);
    mx_event_list_free(&got);
}

static void check_edges(mx_user_graph *g, const char *key, int type, int64_t as_of)
{
    static int want[MODEL_MOST];
    mx_user_edges got = {0};
    mx_error err = {0};
    int64_t at = 0;
    int node = mx_user_graph_find(g, type, key);
    CHECK_OK(mx_user_graph_edges(g, node, MX_EDGES_BOTH, as_of, &got, &err), err);
    for (int in = 0; in < 2; in++) {
        int n = 0;
        for (int i = 0; i < listed; i++) {
            const plain *p = &list[i];
            int object_type = p->type == 7 ? 0 : p->type == 8 ? 2 : p->type == 6 ? 3 : 1;
            bool mine = *p->object && (in ? object_type == type && !strcmp(p->object, key) : type == 0 && !strcmp(p->subject, key));
            if (mine && (as_of == MX_TIME_ANY || (p->ts_ms + 999) / 1000 <= as_of / 1000)) want[n++] = i;
        }
        qsort(want, (size_t)n, sizeof *want, rising);
        for (int i = 0; i < n; i++, at++) {
            if (at >= got.count) break;
            const mx_user_edge *e = &got.edge[at];
            const plain *p = &list[want[i]];
            char other[MX_KEY_MOST + 1];
            int32_t other_type;
            bool there = mx_user_graph_node(g, e->other, &other_type, other);
            if (!there || strcmp(other, in ? p->subject : p->object) || e->type != p->type || e->weight != p->weight || e->in != in) {
                CHECK_MSG(false, "%s: edge %lld", key, (long long)at);
                break;
            }
        }
        if (in) CHECK_MSG(got.count == at, "%s: %lld edges, want %lld", key, (long long)got.count, (long long)at);
    }
    mx_user_edges_free(&got);
}

static void check_all(mx_user_graph *g)
{
    char key[24];
    int before = test_failures;
    CHECK(mx_user_graph_watermark(g) == (uint64_t)listed);
    for (int i = 0; i < USERS && test_failures == before; i++) {
        snprintf(key, sizeof key, "u%d", i);
        check_events(g, key, MX_TIME_ANY, 0);
        check_events(g, key, 1700000000000 + 1234567, 0);
        check_events(g, key, 1700000000000 + 3000000, 7);
        check_edges(g, key, 0, MX_TIME_ANY);
        check_edges(g, key, 0, 1700000000000 + 2222222);
    }
    for (int i = 0; i < ITEMS && test_failures == before; i++) {
        snprintf(key, sizeof key, "i%d", i);
        check_edges(g, key, 1, MX_TIME_ANY);
    }
}

static mx_status in_order(void *ctx, const mx_event *e, mx_error *err)
{
    int *n = ctx;
    CHECK(!strcmp(e->id, list[*n].id));
    (void)err;
    ++*n;
    return MX_OK;
}

/* ---- tests -------------------------------------------------------------------------------- */

static void against_a_list(void)
{
    uint64_t seed = 1, cursor = 0;
    int followed = 0;
    mx_error err = {0};
    mx_user_graph_options o = mx_user_graph_defaults();
    fresh_folder();
    listed = 0;
    o.segment_bytes = 16384;
    o.merge_events = 0;
    mx_user_graph *g = open_graph(&o);
    for (int round = 0; g && round < 4; round++) {
        put_some(g, &seed, 300);
        check_all(g);                                       /* base and fresh */
        CHECK_OK(mx_user_graph_merge(g, &err), err);
        check_all(g);                                       /* base alone */
        CHECK_OK(mx_user_graph_each(g, &cursor, in_order, &followed, &err), err);
        CHECK(followed == listed);
        put_some(g, &seed, 200);
        mx_user_graph_close(g);
        g = open_graph(&o);                                 /* snapshot and the log's tail */
        if (g) check_all(g);
    }
    mx_user_graph_close(g);
    char path[300];
    snprintf(path, sizeof path, "%s/snapshot", folder);
    CHECK(!unlink(path));
    g = open_graph(&o);                                     /* the log alone */
    if (g) check_all(g);
    mx_user_graph_close(g);
    clear();
}

static void answers(void)
{
    mx_user_graph_options o = mx_user_graph_defaults();
    fresh_folder();
    mx_user_graph *g = open_graph(&o), *second = NULL;
    mx_error err = {0};
    char longer[MX_KEY_MOST + 2];
    memset(longer, 'k', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    mx_event e[12];
    mx_put_result r[12];
    mx_put_ack ack;
    int64_t now = 1700000000000;
    for (int i = 0; i < 12; i++) {
        static char id[12][8];
        snprintf(id[i], 8, "e%d", i);
        e[i] = mx_event_defaults();
        e[i].id = id[i], e[i].subject = "anna", e[i].object = "shoe", e[i].ts_ms = now;
    }
    e[1].id = "e0";
    e[2].ts_ms = now - 3 * 86400000LL;
    e[3].subject = "";
    e[4].type = 99;
    e[5].object = NULL;
    e[6].weight = NAN;
    e[7].ts_ms = now + 2 * 86400000LL;
    e[8].subject = longer;
    e[9].type = 5;                                          /* search has no object */
    e[10].ts_ms = -1;
    e[11].quantity = -2;
    CHECK_OK(mx_user_graph_put(g, e, 12, now, r, &ack, &err), err);
    CHECK(ack.accepted == 2 && ack.late == 1 && ack.duplicates == 1 && ack.malformed == 9 && ack.watermark == 2);
    CHECK(r[0].code == MX_PUT_ACCEPTED && r[1].code == MX_PUT_DUPLICATE && r[2].code == MX_PUT_LATE);
    static const char *const why[] = {"subject is empty", "type 99", "object is empty, which type view needs", "weight", "a day ahead", "longer than 128", "object is set", "ts_ms -1", "quantity -2"};
    for (int i = 3; i < 12; i++) CHECK_MSG(r[i].code == MX_PUT_MALFORMED && strstr(r[i].reason, why[i - 3]), "%d: %s", i, r[i].reason);
    CHECK_OK(mx_user_graph_merge(g, &err), err);
    CHECK_OK(mx_user_graph_put(g, e, 3, now, r, &ack, &err), err);
    CHECK(ack.duplicates == 3 && ack.watermark == 2);
    CHECK(mx_user_graph_open(&second, folder, &o, &err) == MX_ERR_STATE && !second);
    mx_event_type other = {.name = "view", .subject = 0, .object = 2};
    int32_t type;
    CHECK(mx_user_graph_declare_event(g, &other, &type, &err) == MX_ERR_ARG && strstr(err.text, "otherwise"));
    CHECK(mx_user_graph_declare_node(g, "A b", &type, &err) == MX_ERR_ARG);
    for (int i = 4; i < 33; i++) {
        char name[8];
        snprintf(name, sizeof name, "t%d", i);
        CHECK(mx_user_graph_declare_node(g, name, &type, &err) == (i < 32 ? MX_OK : MX_ERR_ARG));
    }
    mx_user_graph_close(g);
    clear();
}

static void decays(void)
{
    for (double x = 0; x < 60; x += 0.37) {
        float w = mx_user_edge_decayed(1, 0, (int64_t)(x * 1000), 1), want = (float)exp(-(double)(int64_t)(x * 1000) / 1000);
        CHECK_MSG(fabsf(w - want) <= want * 1e-6f, "exp(-%g) = %g, want %g", x, w, want);
    }
    CHECK(mx_user_edge_decayed(3, 100, 50000, MX_TAU_S) == 3 && mx_user_edge_decayed(2, 0, 1000, 0) == 2);
}

/* ---- kills ------------------------------------------------------------------------------------ */

/* The child writes events and tells how many were acknowledged through shared memory; it is killed at some moment. */
static void killed(void)
{
    atomic_int *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t seed = 99;
    int sum = 0;
    mx_user_graph_options o = mx_user_graph_defaults();
    fresh_folder();
    o.segment_bytes = 8192;
    o.merge_events = 40;
    for (int round = 0; round < 25; round++) {
        fflush(stdout);
        int first = atomic_load(told);
        pid_t child = fork();
        if (!child) {
            mx_error err = {0};
            mx_user_graph *g = NULL;
            mx_put_ack ack;
            if (mx_user_graph_open(&g, folder, &o, &err) || mx_user_graph_declare_usual(g, &err)) _exit(3);
            for (int i = first;; i++) {
                char id[24];
                snprintf(id, sizeof id, "e%d", i);
                mx_event e = mx_event_defaults();
                e.id = id, e.subject = i % 2 ? "anna" : "bert", e.object = "shoe", e.ts_ms = 1700000000000 + i;
                if (mx_user_graph_put(g, &e, 1, 0, NULL, &ack, &err)) _exit(4);
                atomic_store(told, i + 1);
            }
        }
        nanosleep(&(struct timespec){.tv_nsec = (long)(test_random(&seed) % 60000000)}, NULL);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        CHECK_MSG(WIFSIGNALED(status), "the child ended by itself: %d", WEXITSTATUS(status));
        mx_user_graph *g = open_graph(&o);
        if (!g) break;
        int n = atomic_load(told);
        mx_event_list anna = {0}, bert = {0};
        mx_error err = {0};
        CHECK_OK(mx_user_graph_events(g, mx_user_graph_find(g, 0, "anna"), MX_TIME_ANY, 0, &anna, &err), err);
        CHECK_OK(mx_user_graph_events(g, mx_user_graph_find(g, 0, "bert"), MX_TIME_ANY, 0, &bert, &err), err);
        sum = anna.count + bert.count;
        CHECK_MSG(sum == n || sum == n + 1, "%d acknowledged, %d there", n, sum);
        CHECK(mx_user_graph_watermark(g) == (uint64_t)sum);
        atomic_store(told, sum);
        mx_event_list_free(&anna);
        mx_event_list_free(&bert);
        mx_user_graph_close(g);
    }
    printf("  %d events survived 25 kills\n", sum);
    CHECK(sum > 0);
    munmap(told, 4096);
    clear();
}

/* ---- damage: every byte of a small log --------------------------------------------------------- */

typedef struct seen { int count; bool right; } seen;
static mx_status count_records(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err)
{
    seen *s = ctx;
    (void)at, (void)err;
    s->right &= size == 20 + (size_t)s->count && ((const char *)data)[0] == 'r' && ((const char *)data)[1] == 'a' + s->count;
    s->count++;
    return MX_OK;
}

static void rewrite(const char *path, const char *bytes, size_t n)
{
    int fd = open(path, O_WRONLY | O_TRUNC | O_CREAT, 0600);
    CHECK(write(fd, bytes, n) == (ssize_t)n);
    close(fd);
}

static void damage(void)
{
    mx_error err = {0};
    mx_event_log *l = NULL;
    seen s = {0, true};
    char path[300], bytes[4096], text[64];
    fresh_folder();
    mkdir(folder, 0700);
    mx_log_configure(MX_LOG_ERROR, false);              /* every cut is told */
    CHECK_OK(mx_event_log_open(&l, folder, 1 << 20, 0, count_records, &s, &err), err);
    for (int i = 0; i < 8; i++) {
        mx_record r = {.data = text, .size = 20 + (size_t)i};
        memset(text, 'x', sizeof text);
        text[0] = 'r', text[1] = (char)('a' + i);
        CHECK_OK(mx_event_log_append(l, &r, 1, &err), err);
        if (i < 6) CHECK_OK(mx_event_log_sync(l, &err), err);
    }
    mx_event_log_close(l);
    snprintf(path, sizeof path, "%s/log-%016x", folder, 0);
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, bytes, sizeof bytes);
    close(fd);
    CHECK(n > 0);
    /* records 0 to 4 are known to be durable by those behind them; 5 to 7 may have been torn */
    int64_t at[9] = {16};
    for (int i = 0; i < 8; i++) at[i + 1] = at[i] + 12 + 20 + i;
    CHECK(at[8] == n);
    for (ssize_t i = 0; i < n; i++) {
        bytes[i] ^= 0x10;
        rewrite(path, bytes, (size_t)n);
        bytes[i] ^= 0x10;
        s = (seen){0, true};
        l = NULL;
        mx_status st = mx_event_log_open(&l, folder, 1 << 20, 0, count_records, &s, &err);
        int hit = -1;
        for (int k = 0; k < 8; k++)
            if (i >= at[k] && i < at[k + 1]) hit = k;
        if (hit >= 0 && hit < 6) {
            snprintf(text, sizeof text, "offset %lld:", (long long)at[hit]);
            CHECK_MSG(st == MX_ERR_FORMAT && strstr(err.text, "log-0000") && strstr(err.text, text), "byte %zd: %s", i, err.text);
        } else if (hit >= 6) CHECK_MSG(!st && s.right && s.count == hit, "byte %zd: %d records, %s", i, s.count, err.text);
        else CHECK_MSG(st == MX_ERR_FORMAT, "byte %zd of the head", i);
        mx_event_log_close(l);
    }
    for (ssize_t i = 0; i <= n; i++) {
        rewrite(path, bytes, (size_t)i);
        s = (seen){0, true};
        l = NULL;
        CHECK_OK(mx_event_log_open(&l, folder, 1 << 20, 0, count_records, &s, &err), err);
        int whole = 0;
        while (whole < 8 && at[whole + 1] <= i) whole++;
        CHECK_MSG(s.right && s.count == whole, "%zd bytes: %d records, want %d", i, s.count, whole);
        mx_event_log_close(l);
    }
    mx_log_configure(MX_LOG_WARN, false);
    clear();
}

/* ---- erasure ----------------------------------------------------------------------------------------- */

static bool folder_has(const char *needle)
{
    DIR *d = opendir(folder);
    bool found = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[600];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        int fd = open(path, O_RDONLY);
        if (fd >= 0 && !fstat(fd, &info) && S_ISREG(info.st_mode) && info.st_size) {
            void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
            found |= memmem(p, (size_t)info.st_size, needle, strlen(needle)) != NULL;
            munmap(p, (size_t)info.st_size);
        }
        if (fd >= 0) close(fd);
    }
    if (d) closedir(d);
    return found;
}

static mx_event simple(const char *id, int32_t type, const char *subject, const char *object)
{
    mx_event e = mx_event_defaults();
    e.id = id, e.type = type, e.subject = subject, e.object = object, e.ts_ms = 1700000000000;
    return e;
}

static void erased(void)
{
    mx_user_graph_options o = mx_user_graph_defaults();
    fresh_folder();
    o.merge_events = 0;
    mx_user_graph *g = open_graph(&o);
    mx_error err = {0};
    mx_put_ack ack;
    mx_put_result r[4];
    mx_event e[] = {simple("1", 0, "gone-forever", "shoe"), simple("2", 7, "stays", "gone-forever"), simple("3", 2, "stays", "shoe"), simple("4", 7, "gone-forever", "gone-forever")};
    e[0].text = "my secret words";
    CHECK_OK(mx_user_graph_put(g, e, 2, 0, r, &ack, &err), err);
    CHECK_OK(mx_user_graph_merge(g, &err), err);
    CHECK_OK(mx_user_graph_put(g, e + 2, 2, 0, r, &ack, &err), err);
    CHECK(folder_has("gone-forever") && folder_has("my secret words"));
    const char *keys[] = {"gone-forever", "never-seen"};
    mx_erasure x[2];
    CHECK_OK(mx_user_graph_erase(g, 0, keys, 2, 5, x, &err), err);
    CHECK(x[0].events == 3 && x[0].edges == 3 && x[0].bytes > 0 && x[1].events == 0 && strlen(x[0].receipt) == 64 && strcmp(x[0].receipt, x[1].receipt));
    for (int again = 0; again < 3; again++) {
        mx_event_list events = {0};
        mx_user_edges edges = {0};
        CHECK(!folder_has("gone-forever") && !folder_has("my secret words") && folder_has("stays"));
        CHECK(mx_user_graph_find(g, 0, "gone-forever") == -1);
        CHECK_OK(mx_user_graph_events(g, mx_user_graph_find(g, 0, "stays"), MX_TIME_ANY, 0, &events, &err), err);
        CHECK(events.count == 1 && !strcmp(events.event[0].id, "3"));
        CHECK_OK(mx_user_graph_edges(g, mx_user_graph_find(g, 1, "shoe"), MX_EDGES_IN, MX_TIME_ANY, &edges, &err), err);
        CHECK(edges.count == 1);
        mx_event late[] = {simple("1", 0, "gone-forever", "shoe"), simple("9", 0, "gone-forever", "shoe"), simple("10", 7, "stays", "gone-forever"), simple("3", 2, "stays", "shoe")};
        CHECK_OK(mx_user_graph_put(g, late, 4, 0, r, &ack, &err), err);
        CHECK(ack.erased == 3 && ack.duplicates == 1 && r[2].code == MX_PUT_ERASED && strstr(r[2].reason, "object"));
        CHECK(!folder_has("gone-forever"));
        mx_user_graph_close(g);
        char path[300];
        snprintf(path, sizeof path, "%s/snapshot", folder);
        if (again == 1) CHECK(!unlink(path));
        g = open_graph(&o);
        mx_event_list_free(&events);
        mx_user_edges_free(&edges);
    }
    mx_user_graph_close(g);
    clear();
}

/* ---- erasures that are killed -------------------------------------------------------------------------- */

/* Whatever the moment: the store opens, who was said to be erased is gone without a trace, and nobody else lost anything. */
static void erasing_killed(void)
{
    enum { SUBJECTS = 60 };
    atomic_int *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    uint64_t seed = 5;
    mx_user_graph_options o = mx_user_graph_defaults();
    mx_error err = {0};
    mx_put_ack ack;
    fresh_folder();
    o.segment_bytes = 16384;
    mx_user_graph *g = open_graph(&o);
    for (int i = 0; i < SUBJECTS * 20; i++) {
        char id[16], who[32], other[32];
        snprintf(id, sizeof id, "e%d", i);
        snprintf(who, sizeof who, "person-%02d-name", i % SUBJECTS);
        snprintf(other, sizeof other, "person-%02d-name", (i * 7 + i / SUBJECTS) % SUBJECTS);
        mx_event e = simple(id, i % 2 ? 0 : 7, who, i % 2 ? "shoe" : other);
        CHECK_OK(mx_user_graph_put(g, &e, 1, 0, NULL, &ack, &err), err);
    }
    mx_user_graph_close(g);
    int rounds = 0;
    while (atomic_load(told) < SUBJECTS - 2 && rounds++ < 20 && test_failures == 0) {
        fflush(stdout);
        int first = atomic_load(told);
        pid_t child = fork();
        if (!child) {
            g = NULL;
            if (mx_user_graph_open(&g, folder, &o, &err)) _exit(3);
            for (int i = first; i < SUBJECTS - 2; i++) {
                char who[32];
                const char *key = who;
                mx_erasure x;
                snprintf(who, sizeof who, "person-%02d-name", i);
                if (mx_user_graph_erase(g, 0, &key, 1, 5, &x, &err)) _exit(4);
                atomic_store(told, i + 1);
            }
            for (;;) pause();
        }
        nanosleep(&(struct timespec){.tv_nsec = (long)(test_random(&seed) % 60000000)}, NULL);
        kill(child, SIGKILL);
        int status;
        waitpid(child, &status, 0);
        CHECK_MSG(WIFSIGNALED(status), "the child ended by itself: %d", WEXITSTATUS(status));
        g = open_graph(&o);
        if (!g) break;
        for (int i = 0; i < atomic_load(told); i++) {
            char who[32];
            snprintf(who, sizeof who, "person-%02d-name", i);
            CHECK_MSG(mx_user_graph_find(g, 0, who) < 0 && !folder_has(who), "%s was erased and is there", who);
        }
        for (int i = SUBJECTS - 2; i < SUBJECTS; i++) {
            char who[32];
            mx_event_list l = {0};
            snprintf(who, sizeof who, "person-%02d-name", i);
            CHECK_OK(mx_user_graph_events(g, mx_user_graph_find(g, 0, who), MX_TIME_ANY, 0, &l, &err), err);
            int views = 0;
            for (int k = 0; k < l.count; k++) views += l.event[k].type == 0;
            CHECK_MSG(views == (i % 2 ? 20 : 0), "%s has %d views", who, views);
            mx_event_list_free(&l);
        }
        mx_user_graph_close(g);
    }
    printf("  %d subjects erased, killed %d times meanwhile\n", atomic_load(told), rounds);
    munmap(told, 4096);
    clear();
}

/* ---- many threads ---------------------------------------------------------------------------------------- */

typedef struct share { mx_user_graph *g; int number; atomic_bool *stop; atomic_int *well; } share;

static void *writes(void *ctx)
{
    share *s = ctx;
    for (int i = 0; i < 400; i++) {
        char id[32], user[16];
        mx_error err = {0};
        mx_put_ack ack;
        mx_put_result r;
        mx_event_list own = {0};
        snprintf(id, sizeof id, "w%d-%d", s->number, i);
        snprintf(user, sizeof user, "user%d", s->number);
        mx_event e = simple(id, 0, user, "shoe");
        mx_status st = mx_user_graph_put(s->g, &e, 1, 0, &r, &ack, &err);
        if (!st) st = mx_user_graph_events(s->g, r.subject, MX_TIME_ANY, 1, &own, &err);      /* read your write */
        if (st || own.count != 1 || strcmp(own.event[0].id, id)) fprintf(stderr, "  thread %d: %s\n", s->number, err.text);
        else atomic_fetch_add(s->well, 1);
        mx_event_list_free(&own);
    }
    return NULL;
}

static void *reads(void *ctx)
{
    share *s = ctx;
    mx_user_edges l = {0};
    int64_t most = 0;
    while (!atomic_load(s->stop)) {
        mx_error err = {0};
        if (mx_user_graph_edges(s->g, mx_user_graph_find(s->g, 1, "shoe"), MX_EDGES_BOTH, MX_TIME_ANY, &l, &err) || l.count < most) {
            fprintf(stderr, "  reader: %lld edges after %lld\n", (long long)l.count, (long long)most);
            s->number = -1;
        }
        most = l.count;
    }
    mx_user_edges_free(&l);
    return NULL;
}

static void threads(void)
{
    atomic_bool stop = false;
    atomic_int well = 0;
    mx_user_graph_options o = mx_user_graph_defaults();
    fresh_folder();
    o.merge_events = 50;
    o.segment_bytes = 32768;
    mx_user_graph *g = open_graph(&o);
    pthread_t t[5];
    share s[5];
    for (int i = 0; i < 5; i++) {
        s[i] = (share){g, i, &stop, &well};
        CHECK(!pthread_create(&t[i], NULL, i < 4 ? writes : reads, &s[i]));
    }
    for (int i = 0; i < 4; i++) pthread_join(t[i], NULL);
    atomic_store(&stop, true);
    pthread_join(t[4], NULL);
    mx_user_graph_stats stat;
    mx_user_graph_statistics(g, &stat);
    CHECK(s[4].number == 4 && stat.events == 1600 && stat.edges == 1600 && stat.watermark == 1600);
    CHECK_MSG(atomic_load(&well) == 1600, "%d of 1600 read their own write", atomic_load(&well));
    CHECK(stat.merges > 0);
    mx_user_graph_close(g);
    clear();
}

MX_TESTS(TEST(against_a_list), TEST(answers), TEST(decays), TEST(killed), TEST(damage), TEST(erased), TEST(erasing_killed), TEST(threads))
