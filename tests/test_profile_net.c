/* test_profile_net.c - a graph network over a living store: what is refreshed event by event is what all nodes computed
 * anew are, bit for bit, after restarts, kill -9, withdrawn consents and erasures; texts' vectors are kept and erased. */
#include "models/profile_net.h"
#include "models/gnn_file.h"
#include "tests/test.h"

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { DIM = 8, USERS = 30, ITEMS = 40, PRINT = 77 };
#define BEGAN 1700000000000

static char       folder[200], graph_folder[240], text_folder[240], net_folder[240];
static mx_device *devices;
static int        n_devices;
static uint64_t   seed = 11;
static int        written;

typedef struct world { mx_user_graph *graph; mx_text_store *texts; } world;

static int remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

static void remove_all(void) { nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

static void fresh_folder(void)
{
    /* thousands of acknowledgements, each a flush: where there is memory that looks like a disk, there */
    snprintf(folder, sizeof folder, "%s/test_profile_net.%d", access("/dev/shm", W_OK) ? MX_BINARY_DIR : "/dev/shm", (int)getpid());
    remove_all();
    mkdir(folder, 0777);
    snprintf(graph_folder, sizeof graph_folder, "%s/store", folder);
    snprintf(text_folder, sizeof text_folder, "%s/texts", folder);
    snprintf(net_folder, sizeof net_folder, "%s/net", folder);
    mkdir(net_folder, 0777);
    written = 0;
    mx_error err = {0};
    if (!devices) CHECK_OK(mx_devices_open(&devices, &n_devices, &(mx_device_options){.cpu_threads = 1}, &err), err);
}

static bool open_world(world *w)
{
    mx_error err = {0};
    int32_t consent;
    *w = (world){0};
    CHECK_OK(mx_user_graph_open(&w->graph, graph_folder, NULL, &err), err);
    if (!w->graph) return false;
    CHECK_OK(mx_user_graph_declare_usual(w->graph, &err), err);
    mx_event_type t = {.name = "consent", .subject = mx_user_graph_find_node_type(w->graph, "user"), .object = -1};
    CHECK_OK(mx_user_graph_declare_event(w->graph, &t, &consent, &err), err);
    CHECK_OK(mx_text_store_open(&w->texts, text_folder, PRINT, DIM, w->graph, &err), err);
    return w->texts != NULL;
}

static void close_world(world *w)
{
    mx_text_store_close(w->texts);
    mx_user_graph_close(w->graph);
}

static void draw_vector(float *v, uint64_t of)
{
    for (int i = 0; i < DIM; i++) v[i] = (float)(test_random(&of) % 2001) / 1000 - 1;
}

/* One more event of anybody; whoever wrote something has its vector, as an encoder would give it. */
static bool put_one(world *w, int64_t now_s, int32_t *subject)
{
    static const char *const types[] = {"view", "buy", "review", "follow", "cart", "rate", "search", "consent"};
    char id[24], user[24], object[24];
    mx_error err = {0};
    mx_event e = mx_event_defaults();
    mx_put_result r;
    mx_put_ack ack;
    const char *type = types[test_random(&seed) % 100 < 3 ? 7 : test_random(&seed) % 7];
    bool says = !strcmp(type, "consent");
    snprintf(id, sizeof id, "e%d", written++);
    snprintf(user, sizeof user, "u%d", (int)(test_random(&seed) % USERS));
    snprintf(object, sizeof object, !strcmp(type, "follow") ? "u%d" : "i%d", (int)(test_random(&seed) % (!strcmp(type, "follow") ? USERS : ITEMS)));
    e.id = id, e.subject = user, e.type = mx_user_graph_find_event_type(w->graph, type);
    mx_event_type t;
    mx_user_graph_event_type(w->graph, e.type, &t);
    if (t.object >= 0) e.object = object;
    e.ts_ms = BEGAN + now_s * 1000 - (int64_t)(test_random(&seed) % 50) * 1000;      /* not in order */
    e.weight = says ? (float)(test_random(&seed) % 2) : 1 + (float)(test_random(&seed) % 3) / 4;
    if (!strcmp(type, "buy")) e.price_minor = (int64_t)(100 + test_random(&seed) % 5000), e.currency = "EUR", e.category = "things", e.flags = test_random(&seed) % 2 ? MX_EVENT_PROMO : 0;
    if (!strcmp(type, "review")) e.text = "some words";
    if (mx_user_graph_put(w->graph, &e, 1, 0, &r, &ack, &err)) return fprintf(stderr, "  %s: %s\n", id, err.text), false;
    *subject = r.subject;
    if (r.code == MX_PUT_ERASED) return put_one(w, now_s, subject);
    if (ack.accepted != 1) return fprintf(stderr, "  %s: %s\n", id, r.reason), false;
    if (!e.text) return true;
    float v[DIM];
    mx_text_row row = {.event = mx_text_event(id), .subject = r.subject, .object = r.object, .has_vector = true};
    draw_vector(v, row.event);
    if (mx_text_store_put(w->texts, &row, v, &err)) return fprintf(stderr, "  %s: %s\n", id, err.text), false;
    return true;
}

static void save_network(const world *w, mx_gnn_kind kind, int32_t ids)
{
    mx_error err = {0};
    mx_gnn *m;
    mx_gnn_config c = {.kind = kind, .task = MX_GNN_LINKS, .layers = 2, .features = mx_profile_inputs(DIM), .hidden = 12, .outputs = 6, .heads = 3, .out_heads = 2,
                       .relations = 2 * mx_user_graph_event_types(w->graph), .act = MX_ACT_RELU, .texts = PRINT, .store = mx_user_graph_print(w->graph)};
    if (ids) c.id_nodes = ids, c.id_cols = 6;
    if (kind == MX_GNN_LIGHTGCN) c.features = 0, c.layers = 3;
    CHECK_OK(mx_gnn_create(&m, &devices[0], &c, 5, &err), err);
    CHECK_OK(mx_gnn_save(m, net_folder, &err), err);
    mx_gnn_close(m);
}

/* All nodes anew, by the network's own inference. */
static float *anew(const world *w, mx_graph_store *g)
{
    mx_error err = {0};
    mx_gnn *m = NULL;
    mx_profile_follower f = {.graph = w->graph};
    mx_event_list list = {0};
    CHECK_OK(mx_gnn_open(&m, &devices[0], net_folder, &err), err);
    const mx_gnn_config *c = mx_gnn_config_of(m);
    CHECK_OK(mx_profile_graph_build(g, &f, &(mx_profile_graph_options){.relations = c->kind == MX_GNN_RGCN ? c->relations : 1, .until_ms = MX_TIME_ANY}, &err), err);
    int32_t n = g->view.nodes, user = mx_user_graph_find_node_type(w->graph, "user"), width = mx_gnn_width(c, 0), O = mx_gnn_width(c, c->layers);
    float *features = calloc((size_t)n * (size_t)(c->features + 1), sizeof *features), *z = malloc((size_t)n * (size_t)O * sizeof *z);
    for (int32_t i = 0; i < n && c->features; i++)
        if (g->type[i] == user && !f.absent[i]) CHECK_OK(mx_profile_input(w->graph, w->texts, DIM, i, MX_TIME_ANY, &list, features + (size_t)i * (size_t)c->features, &err), err);
    for (int32_t i = 0; i < n && c->id_nodes; i++)
        if (g->type[i] == 255 || f.absent[i]) mx_gnn_forget(m, i);
    (void)width;
    CHECK_OK(mx_gnn_infer(m, &g->view, features, z, NULL, NULL, &err), err);
    mx_profile_follower_close(&f);
    mx_event_list_free(&list);
    free(features);
    mx_gnn_close(m);
    return z;
}

/* How many published vectors differ from z. */
static int differ(const world *w, const mx_profile_net *p, const float *z, const mx_graph_store *g)
{
    int bad = 0, seen = 0, user = mx_user_graph_find_node_type(w->graph, "user"), item = mx_user_graph_find_node_type(w->graph, "item");
    int32_t dim = mx_profile_net_about(p).dim;
    float at[64];
    for (int32_t i = 0; i < g->view.nodes; i++) {
        if (g->type[i] != user && g->type[i] != item) continue;
        bool there = g->type[i] == user ? mx_profile_net_get(p, i, at) : mx_vectors_get(mx_profile_net_items(p), i, at);
        if (!there) memset(at, 0, sizeof at);                    /* all zeros were never told */
        seen++;
        bad += memcmp(at, z + (size_t)i * (size_t)dim, 4 * (size_t)dim) != 0;
    }
    CHECK(seen > 40);
    return bad;
}

/* After a start all vectors are those of a network that reads the whole log; false: the world does not open. */
static bool starts_equal(world *w)
{
    mx_error err = {0};
    mx_profile_net *p = NULL;
    mx_graph_store g;
    if (!open_world(w)) return false;
    CHECK_OK(mx_profile_net_open(&p, net_folder, &devices[0], w->graph, w->texts, &err), err);
    float *z = anew(w, &g);
    CHECK(p && !differ(w, p, z, &g));
    free(z);
    mx_graph_close(&g);
    mx_profile_net_close(p);
    close_world(w);
    return true;
}

static void living(mx_gnn_kind kind, bool ids)
{
    world w;
    mx_error err = {0};
    mx_profile_net *p = NULL;
    mx_refresh_stats stats;
    int64_t computed = 0, runs = 0;
    int32_t subject, rows = 0;
    fresh_folder();
    if (!open_world(&w)) return;
    for (int i = 0; i < 300; i++) CHECK(put_one(&w, i * 600, &subject));
    save_network(&w, kind, ids ? mx_user_graph_nodes(w.graph) : 0);
    CHECK_OK(mx_profile_net_open(&p, net_folder, &devices[0], w.graph, w.texts, &err), err);
    for (int i = 0; p && i < 150; i++) {
        int many = 1 + (int)(test_random(&seed) % 3);
        for (int k = 0; k < many; k++) CHECK(put_one(&w, (300 + i) * 600, &subject));
        CHECK_OK(mx_profile_net_step(p, &subject, 1, mx_user_graph_watermark(w.graph), &stats, &err), err);
        computed += stats.computed[0], runs++;
        if (i == 70) {                                           /* somebody is forgotten */
            mx_erasure gone;
            int64_t removed = 0;
            const char *key = "u7";
            int32_t node = mx_user_graph_find(w.graph, mx_user_graph_find_node_type(w.graph, "user"), key);
            mx_user_edges about = {0};
            int32_t who[512], n = 0;
            float none[64];
            bool there = mx_profile_net_get(p, node, none);
            CHECK_OK(mx_user_graph_edges(w.graph, node, MX_EDGES_IN, MX_TIME_ANY, &about, &err), err);
            for (int64_t e = 0; e < about.count && n < 512; e++) who[n++] = about.edge[e].other;
            mx_user_edges_free(&about);
            CHECK_OK(mx_user_graph_erase(w.graph, mx_user_graph_find_node_type(w.graph, "user"), &key, 1, BEGAN, &gone, &err), err);
            CHECK_OK(mx_profile_net_erase(p, node, &removed, &err), err);
            CHECK_OK(mx_profile_net_step(p, who, n, mx_user_graph_watermark(w.graph), NULL, &err), err);
            CHECK(removed == there && !mx_profile_net_get(p, node, none));
            if (ids) {
                mx_gnn *m = NULL;
                CHECK_OK(mx_gnn_open(&m, &devices[0], net_folder, &err), err);
                CHECK(m && !mx_gnn_forget(m, node));             /* the folder has it no more */
                mx_gnn_close(m);
            }
        }
        if (i % 15) continue;
        mx_graph_store g;
        float *z = anew(&w, &g);
        int bad = differ(&w, p, z, &g);
        CHECK_MSG(!bad, "%s: %d vectors after event %d", mx_gnn_kind_name(kind), bad, i);
        rows = g.view.nodes;
        free(z);
        mx_graph_close(&g);
    }
    CHECK_MSG(computed < runs * rows || kind == MX_GNN_LIGHTGCN, "%lld rows in %lld runs", (long long)computed, (long long)runs);
    CHECK(p && mx_profile_net_watermark(p) == mx_user_graph_watermark(w.graph));
    mx_profile_net_close(p);
    close_world(&w);
    if (!starts_equal(&w)) return;
    remove_all();
}

static void living_networks(void)
{
    living(MX_GNN_SAGE, false);
    living(MX_GNN_SAGE, true);
    living(MX_GNN_RGCN, false);
    living(MX_GNN_GAT, false);
    living(MX_GNN_GCN, false);
    living(MX_GNN_LIGHTGCN, true);
}

/* base + own + all parts = z, whoever is far-joined; and a linear layer's parts do not depend on order. */
static void parts_add_up(void)
{
    static const mx_gnn_kind kinds[] = {MX_GNN_SAGE, MX_GNN_RGCN, MX_GNN_GAT, MX_GNN_LIGHTGCN};
    world w;
    mx_error err = {0};
    int32_t subject;
    fresh_folder();
    if (!open_world(&w)) return;
    for (int i = 0; i < 3000; i++) CHECK(put_one(&w, i * 600, &subject));
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        mx_profile_net *p = NULL;
        int many = 0;
        save_network(&w, kinds[k], kinds[k] == MX_GNN_LIGHTGCN ? mx_user_graph_nodes(w.graph) : 0);
        CHECK_OK(mx_profile_net_open(&p, net_folder, &devices[0], w.graph, w.texts, &err), err);
        int32_t dim = p ? mx_profile_net_about(p).dim : 0, user = mx_user_graph_find_node_type(w.graph, "user"), type;
        for (int32_t v = 0; p && v < mx_user_graph_nodes(w.graph); v++) {
            mx_net_parts t;
            float z[64];
            char key[MX_KEY_MOST + 1];
            double worst = 0;
            if (!mx_user_graph_node(w.graph, v, &type, key) || type != user || !mx_profile_net_get(p, v, z)) continue;
            CHECK_OK(mx_profile_net_parts(p, v, &t, &err), err);
            many += t.n > MX_NET_PARTS;
            for (int32_t c = 0; t.z && c < dim; c++) {
                double sum = (double)t.base[c] + (double)t.own[c];
                for (int32_t i = 0; i < t.n; i++) sum += (double)t.part[i * dim + c];
                worst = fmax(worst, fabs(sum - (double)z[c]) / fmax(1, fabs((double)z[c])));
            }
            CHECK_MSG(worst < 1e-5 && !memcmp(t.z, z, 4 * (size_t)dim), "%s: %g", mx_gnn_kind_name(kinds[k]), worst);
            mx_net_parts_free(&t);
            float again[64];
            CHECK(mx_profile_net_get(p, v, again) && !memcmp(again, z, 4 * (size_t)dim));
        }
        CHECK(many > 3);
        mx_graph_store g;                                        /* nothing stayed taken away */
        float *all = anew(&w, &g);
        CHECK(put_one(&w, 2000000, &subject));
        free(all), mx_graph_close(&g);
        CHECK_OK(mx_profile_net_step(p, &subject, 1, 1, NULL, &err), err);
        all = anew(&w, &g);
        CHECK(p && !differ(&w, p, all, &g));
        free(all), mx_graph_close(&g);
        mx_profile_net_close(p);
    }
    close_world(&w);
    remove_all();
}

/* The child takes events in and refreshes until it is killed; what a start makes of the folder is what all anew are. */
static void killed(void)
{
    mx_error err = {0};
    fresh_folder();
    world w;
    int32_t subject;
    int total = 0;
    if (!open_world(&w)) return;
    for (int i = 0; i < 200; i++) CHECK(put_one(&w, i * 600, &subject));
    save_network(&w, MX_GNN_SAGE, 0);
    close_world(&w);
    int *told = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int round = 0; round < 4; round++) {
        written = 1000000 * (round + 1);
        *told = 0;
        pid_t child = fork();
        if (!child) {
            mx_profile_net *p;
            mx_device *own;
            int n;
            if (mx_devices_open(&own, &n, &(mx_device_options){.cpu_threads = 1}, &err) || !open_world(&w)) _exit(1);
            if (mx_profile_net_open(&p, net_folder, &own[0], w.graph, w.texts, &err)) _exit(1);
            seed += (uint64_t)round;
            for (int i = 0;; i++) {
                if (!put_one(&w, 200 * 600 + i, &subject) || mx_profile_net_step(p, &subject, 1, 0, NULL, &err)) _exit(1);
                *told = i + 1;
            }
        }
        for (int i = 0; i < 2000 && *(volatile int *)told < 20 + 10 * round; i++) usleep(5000);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        total += *told;
        if (!starts_equal(&w)) return;
    }
    CHECK_MSG(total >= 100, "only %d", total);
    munmap(told, 4096);
    remove_all();
}

static bool on_disk(const char *where, const void *bytes, size_t size)
{
    DIR *d = opendir(where);
    char path[600];
    bool found = false;
    for (struct dirent *e; d && (e = readdir(d));) {
        snprintf(path, sizeof path, "%s/%s", where, e->d_name);
        FILE *f = fopen(path, "rb");
        if (!f) continue;
        char *text = malloc(1 << 20);
        size_t n = fread(text, 1, 1 << 20, f);
        found |= n >= size && memmem(text, n, bytes, size);
        free(text);
        fclose(f);
    }
    if (d) closedir(d);
    return found;
}

static void texts_are_kept(void)
{
    world w;
    mx_error err = {0};
    int32_t subject, node;
    mx_text_row row;
    float v[DIM], got[DIM];
    fresh_folder();
    if (!open_world(&w)) return;
    while (written < 200) CHECK(put_one(&w, written * 60, &subject));
    int64_t rows = mx_text_store_rows(w.texts), removed = 0;
    CHECK(rows > 10);
    close_world(&w);
    if (!open_world(&w)) return;
    CHECK(mx_text_store_rows(w.texts) == rows && mx_text_store_dim(w.texts) == DIM);
    char id[24];
    int kept = 0;
    for (int i = 0; i < 200; i++) {
        snprintf(id, sizeof id, "e%d", i);
        if (!mx_text_store_get(w.texts, mx_text_event(id), &row, got)) continue;
        draw_vector(v, row.event);
        CHECK(row.has_vector && !row.felt && !memcmp(v, got, sizeof v));
        kept++;
    }
    CHECK(kept == rows && on_disk(text_folder, v, sizeof v));
    for (int i = 0; i < 200; i++) {                               /* a subject goes with all its rows */
        snprintf(id, sizeof id, "e%d", i);
        if (mx_text_store_get(w.texts, mx_text_event(id), &row, NULL)) break;
    }
    draw_vector(v, row.event);
    node = row.subject;
    CHECK_OK(mx_text_store_erase(w.texts, node, &removed, &err), err);
    CHECK(removed > 0 && mx_text_store_rows(w.texts) == rows - removed && !mx_text_store_get(w.texts, mx_text_event(id), &row, NULL) && !on_disk(text_folder, v, sizeof v));
    mx_text_store_close(w.texts);
    w.texts = NULL;
    /* whom the graph erased while nobody watched the texts */
    char key[MX_KEY_MOST + 1];
    int32_t type, other = -1;
    const char *keys[] = {key};
    mx_erasure gone;
    CHECK_OK(mx_text_store_open(&w.texts, text_folder, PRINT, DIM, w.graph, &err), err);
    for (int i = 0; i < 200 && other < 0; i++) {
        snprintf(id, sizeof id, "e%d", i);
        if (mx_text_store_get(w.texts, mx_text_event(id), &row, NULL)) other = row.subject;
    }
    mx_text_store_close(w.texts);
    CHECK(mx_user_graph_node(w.graph, other, &type, key));
    CHECK_OK(mx_user_graph_erase(w.graph, type, keys, 1, BEGAN, &gone, &err), err);
    CHECK_OK(mx_text_store_open(&w.texts, text_folder, 0, 0, w.graph, &err), err);      /* as a reader: it takes the dim that is there */
    CHECK(w.texts && mx_text_store_dim(w.texts) == DIM && mx_text_store_print(w.texts) == PRINT && mx_text_store_rows(w.texts) < rows - removed);
    CHECK(w.texts && mx_text_store_put(w.texts, &row, v, &err) == MX_ERR_STATE);
    mx_text_store_close(w.texts);
    CHECK_OK(mx_text_store_open(&w.texts, text_folder, PRINT + 1, DIM, w.graph, &err), err);      /* another encoder begins anew */
    CHECK(w.texts && mx_text_store_rows(w.texts) == 0);
    close_world(&w);
    remove_all();
}

/* A lesson holds back what came last, and a network is refused where it does not belong. */
static void lessons(void)
{
    world w;
    mx_error err = {0};
    mx_profile_lesson l = {0};
    mx_profile_net *p = NULL;
    int32_t subject;
    char path[300];
    fresh_folder();
    if (!open_world(&w)) return;
    snprintf(path, sizeof path, "%s/lesson.safetensors", folder);
    CHECK(mx_profile_lesson_write(w.graph, w.texts, 1, path, &l, &err) == MX_ERR_STATE && strstr(err.text, "20"));
    for (int i = 0; i < 1000; i++) CHECK(put_one(&w, i * 600, &subject));
    for (int32_t relations = 1; relations < 32; relations += 2 * mx_user_graph_event_types(w.graph) - 1) {
        mx_gnn_file f;
        CHECK_OK(mx_profile_lesson_write(w.graph, w.texts, relations, path, &l, &err), err);
        CHECK_OK(mx_gnn_file_open(&f, path, &err), err);
        CHECK(f.task == MX_GNN_LINKS && f.features == mx_profile_inputs(DIM) && f.first[3] == l.pairs && f.first[3] - f.first[1] == l.held && l.held == l.pairs / 10);
        CHECK(f.graph.view.relations == 1 ? relations == 1 : f.graph.view.relations <= relations);
        for (int64_t i = f.first[1]; i < f.first[3]; i++) {      /* nothing joins what is held back */
            int joined = 0;
            for (int32_t r = 0; r < f.graph.view.relations; r++) {
                mx_neighbours row = mx_graph_row(&f.graph.view, r, f.node[2 * i]);
                for (int32_t k = 0; k < row.n; k++) joined += row.ids[k] == f.node[2 * i + 1];
            }
            CHECK(!joined);
        }
        mx_gnn_file_close(&f);
        if (relations > 1) break;
    }
    mx_gnn *m;
    mx_gnn_config c = {.kind = MX_GNN_SAGE, .task = MX_GNN_LINKS, .layers = 1, .features = mx_profile_inputs(DIM) + 1, .outputs = 4, .act = MX_ACT_RELU};
    const struct { int32_t more, ids; uint64_t texts, store; const char *why; } bad[] = {
        {1, 0, 0, 0, "vectors of 9"}, {-DIM - 5, 0, 0, 0, "features"}, {0, 0, PRINT + 1, 0, "another encoder"}, {0, 5, 0, 1, "another store"}, {0, 100000, 0, 0, "100000"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        c.features = mx_profile_inputs(DIM) + bad[i].more, c.texts = bad[i].texts, c.store = bad[i].store;
        c.id_nodes = bad[i].ids, c.id_cols = bad[i].ids ? 2 : 0;
        CHECK_OK(mx_gnn_create(&m, &devices[0], &c, 5, &err), err);
        CHECK_OK(mx_gnn_save(m, net_folder, &err), err);
        mx_gnn_close(m);
        CHECK_MSG(mx_profile_net_open(&p, net_folder, &devices[0], w.graph, w.texts, &err) == MX_ERR_ARG && strstr(err.text, bad[i].why), "%zu: %s", i, err.text);
    }
    close_world(&w);
    remove_all();
}

MX_TESTS(TEST(killed), TEST(living_networks), TEST(parts_add_up), TEST(texts_are_kept), TEST(lessons))
