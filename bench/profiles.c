/* profiles.c - profiles a second through gRPC, and how long each took, while events stream in.
 *
 *     build/profiles [USERS [SECONDS [EVENTS_PER_S [NETWORK]]]]        # 20000, 5, 1000
 *
 * NETWORK: "fresh", or a folder of merx train gnn over features alone (no texts, no --id-cols).  It is loaded while the server serves, when the
 * events are in, and refreshed beside.  fresh: GraphSAGE (mean, two layers, 64 and 32) over figures and 32 learned columns a node, as
 * merx train gnn --profiles --id-cols 32 makes it, with weights that nobody trained: what it says is not measured here.
 *
 * Server and clients share this process and its cores.  One user has 20 events; reads are by 32 calls in flight,
 * of one profile, then of 100 in a batch; a line each, with and without the stream of events. */
#include "models/profile_net.h"
#include "proto/merx.pb-c.h"
#include "server/profiles.h"
#include "server/rpc.h"

#include <ftw.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { INFLIGHT = 32, PER_USER = 20, MOST = 4000000 };

typedef struct load {
    mx_client  *client;
    int         users, batch;
    uint64_t    end_ns, seed;
    atomic_int  running;
    atomic_llong calls, failed, bytes;
    float      *took_us;              /* [MOST] */
} load;

typedef struct slot { load *of; uint64_t began_ns; uint8_t *msg; } slot;

static uint64_t now_ns(void)
{
    return mx_now_ns(&mx_clock_monotonic);
}

static uint32_t draw(uint64_t *seed)                     /* SplitMix64 */
{
    uint64_t z = *seed += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(z >> 33);
}

static void begin(slot *s);

static void answered(void *user, const uint8_t *reply, size_t len)
{
    (void)reply;
    atomic_fetch_add(&((slot *)user)->of->bytes, (long long)len);
}

static void done(void *user, const mx_rpc_status *st)
{
    slot *s = user;
    load *l = s->of;
    long long i = atomic_fetch_add(&l->calls, 1);
    if (i < MOST) l->took_us[i] = (float)(now_ns() - s->began_ns) * 1e-3f;
    if (st->code) atomic_fetch_add(&l->failed, 1);
    if (now_ns() < l->end_ns) begin(s);
    else atomic_fetch_sub(&l->running, 1);
}

static void begin(slot *s)
{
    load *l = s->of;
    char name[128][16], *users[128];
    size_t n;
    for (int i = 0; i < l->batch; i++) {
        snprintf(name[i], sizeof name[i], "u%u", draw(&l->seed) % (uint32_t)l->users);
        users[i] = name[i];
    }
    if (l->batch == 1) {
        Merx__V1__GetProfileRequest q = MERX__V1__GET_PROFILE_REQUEST__INIT;
        q.user = users[0];
        n = merx__v1__get_profile_request__pack(&q, s->msg);
    } else {
        Merx__V1__BatchGetProfilesRequest q = MERX__V1__BATCH_GET_PROFILES_REQUEST__INIT;
        q.users = users;
        q.n_users = (size_t)l->batch;
        n = merx__v1__batch_get_profiles_request__pack(&q, s->msg);
    }
    mx_client_calls calls = {.unary = true, .message = answered, .done = done, .user = s};
    s->began_ns = now_ns();
    if (mx_client_start(l->client, NULL, l->batch == 1 ? "/merx.v1.Profiling/GetProfile" : "/merx.v1.Profiling/BatchGetProfiles", s->msg, n, 20000, &calls))
        atomic_fetch_sub(&l->running, 1);
}

static int rising(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void measure(mx_client *c, int users, int batch, double seconds, const char *what)
{
    load l = {.client = c, .users = users, .batch = batch, .seed = 1, .took_us = calloc(MOST, sizeof(float))};
    slot slots[INFLIGHT];
    uint64_t from = now_ns();
    l.end_ns = from + (uint64_t)(seconds * 1e9);
    atomic_store(&l.running, INFLIGHT);
    for (int i = 0; i < INFLIGHT; i++) {
        slots[i] = (slot){&l, 0, malloc(8192)};
        begin(&slots[i]);
    }
    while (atomic_load(&l.running)) usleep(1000);
    double took = (double)(now_ns() - from) * 1e-9;
    long long n = atomic_load(&l.calls), kept = n < MOST ? n : MOST;
    qsort(l.took_us, (size_t)kept, sizeof *l.took_us, rising);
    printf("%-34s %9.0f profiles/s  %8.0f calls/s  p50 %7.0f us  p99 %7.0f us  %5.0f bytes a profile  %lld failed\n", what, (double)(n * batch) / took, (double)n / took,
           kept ? (double)l.took_us[kept / 2] : 0, kept ? (double)l.took_us[kept * 99 / 100] : 0, n ? (double)atomic_load(&l.bytes) / (double)(n * batch) : 0, atomic_load(&l.failed));
    fflush(stdout);
    for (int i = 0; i < INFLIGHT; i++) free(slots[i].msg);
    free(l.took_us);
}

/* ---- events --------------------------------------------------------------------------------- */

typedef struct stream { mx_client *client; int users, rate; atomic_bool stop; long long sent, id; uint64_t seed; } stream;

static int put(stream *s, int n)
{
    static const char *const types[] = {"view", "buy", "cart", "share"};
    Merx__V1__Event *e = calloc((size_t)n, sizeof *e), **list = calloc((size_t)n, sizeof *list);
    char (*text)[3][24] = calloc((size_t)n, sizeof *text);
    Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    for (int i = 0; i < n; i++) {
        const char *type = types[draw(&s->seed) % 4];
        snprintf(text[i][0], 24, "e%lld", s->id++);
        snprintf(text[i][1], 24, "u%u", draw(&s->seed) % (uint32_t)s->users);
        snprintf(text[i][2], 24, "i%u", draw(&s->seed) % 5000);
        merx__v1__event__init(&e[i]);
        e[i].event_id = text[i][0], e[i].user = text[i][1], e[i].type = (char *)(uintptr_t)type;
        if (*type != 's') e[i].object = text[i][2];
        if (*type == 'b') e[i].price_minor = 500 + draw(&s->seed) % 9000, e[i].promo = draw(&s->seed) % 3 == 0, e[i].category = "all";
        list[i] = &e[i];
    }
    q.events = list, q.n_events = (size_t)n;
    size_t len = merx__v1__put_events_request__get_packed_size(&q), size;
    uint8_t *msg = malloc(len), *reply = NULL;
    merx__v1__put_events_request__pack(&q, msg);
    mx_rpc_status st = {0};
    mx_client_unary(s->client, "/merx.v1.Profiling/PutEvents", msg, len, 60000, &reply, &size, &st);
    if (st.code) fprintf(stderr, "profiles: %s: %s\n", mx_rpc_code_name(st.code), st.text);
    s->sent += n;
    free(reply), free(msg), free(text), free(list), free(e);
    return st.code;
}

static void *keep_putting(void *arg)
{
    stream *s = arg;
    uint64_t next = now_ns();
    while (!atomic_load(&s->stop) && !put(s, 10)) {
        next += (uint64_t)(1e10 / s->rate);
        uint64_t at = now_ns();
        if (next > at) usleep((useconds_t)((next - at) / 1000));
    }
    return NULL;
}

/* A network of what is in the store now, with a row for each node. */
static mx_status make_fresh(const mx_app *app, const char *to, mx_error *err)
{
    const mx_user_graph *g = mx_profiles_graph(app->profiles);
    mx_gnn *m;
    mx_gnn_config c = {.kind = MX_GNN_SAGE, .task = MX_GNN_LINKS, .layers = 2, .features = mx_profile_inputs(0), .id_nodes = mx_user_graph_nodes(g), .id_cols = 32,
                       .hidden = 64, .outputs = 32, .act = MX_ACT_RELU, .store = mx_user_graph_print(g)};
    if (mkdir(to, 0777)) return mx_fail(err, MX_ERR_IO, "%s", to);
    MX_TRY(mx_gnn_create(&m, &app->devices[0], &c, 1, err));
    mx_status st = mx_gnn_save(m, to, err);
    mx_gnn_close(m);
    return st;
}

static mx_status load_network(mx_app *app, const char *folder, const char *network, mx_error *err)
{
    char made[4096];
    snprintf(made, sizeof made, "%s/fresh", folder);
    bool fresh = !strcmp(network, "fresh");
    if (fresh) MX_TRY(make_fresh(app, made, err));
    uint64_t from = now_ns();
    MX_TRY(mx_profiles_swap(app->profiles, "users", 1, fresh ? made : network, err));
    printf("the network is current after %.2f s: %d nodes\n", (double)(now_ns() - from) * 1e-9, mx_user_graph_nodes(mx_profiles_graph(app->profiles)));
    return MX_OK;
}

/* How long after the last event the network has taken it in. */
static mx_status tell_lag(mx_profiles *p, mx_error *err)
{
    uint64_t from = now_ns(), newest = mx_profiles_watermark(p), at = 0;
    while (at < newest) {
        const mx_profile_view *v;
        Merx__V1__Profile now;
        mx_arena a;
        mx_arena_open(&a, 1 << 16);
        MX_TRY(mx_profiles_get(p, "u0", &v, err));
        if (mx_profiles_now(p, v, false, &a, &now)) at = now.network->watermark;
        mx_profile_release(v);
        mx_arena_close(&a);
        if (at < newest) usleep(100);
    }
    printf("the network has taken in all of them %.1f ms after the last\n", (double)(now_ns() - from) * 1e-6);
    return MX_OK;
}

static int remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

static mx_status run(mx_app *app, mx_server **server, int users, double seconds, int rate, const char *folder, const char *network, mx_error *err)
{
    mx_client *reads, *writes;
    pthread_t thread;
    mx_server_options so = mx_server_defaults();
    so.listen = "127.0.0.1:0";
    MX_TRY(mx_app_open(app, NULL, err));
    MX_TRY(mx_profiles_open(&app->profiles, folder, &(mx_profiles_options){.device = &app->devices[0]}, err));
    MX_TRY(mx_server_open(server, app, &so, err));
    atomic_store(&app->state, MX_APP_SERVING);
    MX_TRY(mx_client_open(&reads, mx_server_address(*server), NULL, err));
    MX_TRY(mx_client_open(&writes, mx_server_address(*server), NULL, err));
    stream s = {.client = writes, .users = users, .rate = rate, .seed = 7};
    uint64_t from = now_ns();
    while (s.sent < (long long)users * PER_USER && !put(&s, 4000)) {}
    printf("%d users, %lld events put in %.1f s\n", users, s.sent, (double)(now_ns() - from) * 1e-9);
    if (network) MX_TRY(load_network(app, folder, network, err));
    measure(reads, users, 1, seconds, "one by one");
    measure(reads, users, 100, seconds, "100 in a batch");
    s.sent = 0, from = now_ns();
    if (pthread_create(&thread, NULL, keep_putting, &s)) return mx_fail(err, MX_ERR_NO_MEMORY, "a thread");
    measure(reads, users, 1, seconds, "one by one, under events");
    measure(reads, users, 100, seconds, "100 in a batch, under events");
    atomic_store(&s.stop, true);
    pthread_join(thread, NULL);
    printf("%.0f events/s were put beside\n", (double)s.sent / ((double)(now_ns() - from) * 1e-9));
    if (network) MX_TRY(tell_lag(app->profiles, err));
    mx_client_close(reads), mx_client_close(writes);
    return MX_OK;
}

int main(int argc, char **argv)
{
    int users = argc > 1 ? atoi(argv[1]) : 20000, rate = argc > 3 ? atoi(argv[3]) : 1000;
    double seconds = argc > 2 ? atof(argv[2]) : 5;
    mx_app app = {0};
    mx_server *server = NULL;
    mx_error err = {0};
    char folder[] = "/tmp/merx-profiles-XXXXXX";
    if (users < 1 || seconds <= 0 || rate < 1 || !mkdtemp(folder)) {
        fprintf(stderr, "usage: profiles [USERS [SECONDS [EVENTS_PER_S [NETWORK]]]]\n");
        return 2;
    }
    mx_status st = run(&app, &server, users, seconds, rate, folder, argc > 4 ? argv[4] : NULL, &err);
    if (st) fprintf(stderr, "profiles: %s\n", err.text);
    mx_server_close(server);
    mx_app_close(&app, 0);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    return st != MX_OK;
}
