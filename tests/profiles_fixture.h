/* profiles_fixture.h - the Profiling service through real gRPC, and an invented shop to tell it of. */
#ifndef MX_PROFILES_FIXTURE_H
#define MX_PROFILES_FIXTURE_H

#include "models/label.h"
#include "models/profile_net.h"
#include "proto/merx.pb-c.h"
#include "server/explain.h"
#include "server/profiles.h"
#include "server/rpc.h"
#include "tests/test.h"

#include <ftw.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

typedef struct fixture {
    mx_app     app;
    mx_server *server;
    mx_client *client;
} fixture;

static char folder[256];
static uint64_t seed = 4;
static mx_rpc_status st;

static inline double uniform(void)
{
    return (double)(test_random(&seed) >> 11) * 0x1p-53;
}

static inline int remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

static inline void fresh_folder(void)
{
    snprintf(folder, sizeof folder, MX_BINARY_DIR "/test_profiles.%d", (int)getpid());
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* network: a folder, or NULL. */
static inline bool fixture_open_with(fixture *f, bool models, const char *network)
{
    mx_error err = {0};
    mx_profiles_options o = {0};
    mx_generator_options g = mx_generator_defaults();
    mx_server_options so = mx_server_defaults();
    so.listen = "127.0.0.1:0";
    so.threads = 2;
    memset(f, 0, sizeof *f);
    CHECK_OK(mx_app_open(&f->app, NULL, &err), err);
    if (models) {
        CHECK_OK(mx_app_load(&f->app, "mood=" MX_SOURCE_DIR "/tests/golden/encoder/bert", &g, &err), err);
        o.encoder = o.sentiment = mx_app_encoder(&f->app);
    }
    o.device = &f->app.devices[0];
    o.network = network;
    CHECK_OK(mx_explainer_open(&f->app.explainer, &f->app.devices[0], &err), err);
    CHECK_OK(mx_profiles_open(&f->app.profiles, folder, &o, &err), err);
    if (f->app.profiles) CHECK_OK(mx_app_list_network(&f->app, network, &err), err);
    CHECK_OK(mx_server_open(&f->server, &f->app, &so, &err), err);
    atomic_store(&f->app.state, MX_APP_SERVING);
    if (f->server) CHECK_OK(mx_client_open(&f->client, mx_server_address(f->server), NULL, &err), err);
    return f->client && f->app.profiles;
}

static inline bool fixture_open(fixture *f, bool models) { return fixture_open_with(f, models, NULL); }

static inline void fixture_close(fixture *f)
{
    mx_client_close(f->client);
    mx_server_close(f->server);
    mx_app_close(&f->app, 0);
}

static inline void *call(fixture *f, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type)
{
    char path[100];
    size_t len = protobuf_c_message_get_packed_size(q), n = 0;
    uint8_t *data = malloc(len + 1), *bytes = NULL;
    ProtobufCMessage *reply = NULL;
    snprintf(path, sizeof path, "/merx.v1.Profiling/%s", method);
    protobuf_c_message_pack(q, data);
    st = (mx_rpc_status){0};
    CHECK(mx_client_unary(f->client, path, data, len, 30000, &bytes, &n, &st) == MX_OK);
    if (!st.code) reply = protobuf_c_message_unpack(type, NULL, n, bytes);
    free(bytes);
    free(data);
    return reply;
}

#define FREE(m) do { __typeof__(m) m_ = (m); if (m_) protobuf_c_message_free_unpacked(&m_->base, NULL); } while (0)

static inline Merx__V1__Event event(const char *id, const char *type, const char *user, const char *object)
{
    Merx__V1__Event e = MERX__V1__EVENT__INIT;
    e.event_id = (char *)(uintptr_t)id, e.type = (char *)(uintptr_t)type, e.user = (char *)(uintptr_t)user, e.object = (char *)(uintptr_t)object;
    return e;
}

static inline Merx__V1__EventsAck *put(fixture *f, Merx__V1__Event *e, size_t n)
{
    Merx__V1__Event **list = calloc(n + 1, sizeof *list);
    for (size_t i = 0; i < n; i++) list[i] = &e[i];
    Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    q.events = list;
    q.n_events = n;
    Merx__V1__EventsAck *r = call(f, "PutEvents", &q.base, &merx__v1__events_ack__descriptor);
    free(list);
    return r;
}

static inline Merx__V1__ProfileAnswer *get(fixture *f, const char *user, uint64_t watermark)
{
    Merx__V1__GetProfileRequest q = MERX__V1__GET_PROFILE_REQUEST__INIT;
    q.user = (char *)(uintptr_t)user;
    q.min_watermark = watermark;
    return call(f, "GetProfile", &q.base, &merx__v1__profile_answer__descriptor);
}

static inline Merx__V1__LabelExplanation *explain(fixture *f, const char *user, const char *tag)
{
    Merx__V1__ExplainLabelRequest q = MERX__V1__EXPLAIN_LABEL_REQUEST__INIT;
    q.user = (char *)(uintptr_t)user;
    q.tag = (char *)(uintptr_t)tag;
    return call(f, "ExplainLabel", &q.base, &merx__v1__label_explanation__descriptor);
}

static inline void check_sum(const Merx__V1__Tag *t)
{
    double sum = t->base_score + t->rest;
    for (size_t i = 0; i < t->n_evidence; i++) sum += t->evidence[i]->weight;
    CHECK_MSG(fabs(sum - t->score) < 1e-3, "%s: %g, score %g", t->name, sum, t->score);
    CHECK_MSG(fabs(t->probability - 1 / (1 + exp(-t->score))) < 1e-9, "%s", t->name);
}

/* A shop of USERS: the even ones hunt bargains and write about prices, the odd ones buy dear things and write of
 * quality; every fourth is sociable.  Each follows the next. */
enum { USERS = 240, ACTS = 14 };

static inline uint64_t fill(fixture *f, int64_t now)
{
    static char text[USERS * (ACTS + 2)][3][40];
    static Merx__V1__Event e[USERS * (ACTS + 2)];
    size_t n = 0;
    for (int u = 0; u < USERS; u++)
        for (int a = 0; a < ACTS + 1; a++, n++) {
            bool cheap = u % 2 == 0, social = u % 4 == 1 && a % 3 == 0, last = a == ACTS;
            snprintf(text[n][0], 40, "e%d.%d", u, a);
            snprintf(text[n][1], 40, "u%d", u);
            snprintf(text[n][2], 40, last ? "u%d" : social ? "c%d" : "i%d", last ? (u + 2) % USERS : (int)(uniform() * 20) * 2 + !cheap);
            e[n] = event(text[n][0], last ? "follow" : social ? "join" : a % 5 == 4 ? "review" : "buy", text[n][1], text[n][2]);
            e[n].ts_ms = now - (int64_t)(ACTS + 1 - a) * 3600000;
            if (last || social) continue;
            if (a % 5 == 4) e[n].text = (char *)(uintptr_t)((uniform() < 0.8) == cheap ? "w5 w6 cheap" : "w90 w91 quality");
            else e[n].price_minor = (int64_t)((cheap ? 1000 : 3000) * (0.7 + uniform())), e[n].promo = uniform() < (cheap ? 0.7 : 0.1), e[n].currency = "EUR", e[n].category = "shoes";
        }
    Merx__V1__EventsAck *r = put(f, e, n);
    CHECK_MSG(r && r->accepted == (int)n && !r->n_rejected, "%s; %d accepted, %zu rejected: %s", st.text, r ? r->accepted : 0, r ? r->n_rejected : 0, r && r->n_rejected ? r->rejected[0]->message : "");
    uint64_t w = r ? r->watermark : 0;
    FREE(r);
    return w;
}

static inline const Merx__V1__Tag *tag_of(const Merx__V1__Profile *p, const char *name)
{
    for (size_t i = 0; p && i < p->n_tags; i++)
        if (!strcmp(p->tags[i]->name, name)) return p->tags[i];
    return NULL;
}


static inline void backfill(fixture *f, const char *tag)
{
    Merx__V1__BackfillTagRequest q = MERX__V1__BACKFILL_TAG_REQUEST__INIT;
    q.name = (char *)(uintptr_t)tag;
    Merx__V1__TagDefinition *d = call(f, "BackfillTag", &q.base, &merx__v1__tag_definition__descriptor);
    CHECK_MSG(d && d->calibrated && d->version == 2 && d->learned_from == 192 && d->held_out == 48, "%s", st.text);
    if (d) CHECK_MSG(d->held_out_accuracy > 0.5 && d->calibration_error < 0.35, "%s: %g, %g", tag, d->held_out_accuracy, d->calibration_error);
    FREE(d);
}

/* Fresh weights do: what is asked here is not whether they are good. */
static inline void make_network_at(fixture *f, const char *to, mx_gnn_kind kind, int32_t outputs, uint64_t from)
{
    mx_error err = {0};
    mx_gnn *m = NULL;
    const mx_user_graph *g = mx_profiles_graph(f->app.profiles);
    mx_gnn_config c = {.kind = kind, .task = MX_GNN_RANKING, .layers = 2, .hidden = 16, .outputs = outputs, .act = MX_ACT_RELU, .store = mx_user_graph_print(g)};
    const mx_text_store *texts = mx_profiles_texts(f->app.profiles);
    if (kind != MX_GNN_LIGHTGCN) c.features = mx_profile_inputs(mx_text_store_dim(texts)), c.texts = mx_text_store_print(texts);
    else c.id_nodes = mx_user_graph_nodes(g), c.id_cols = outputs;
    nftw(to, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    mkdir(to, 0777);
    CHECK_OK(mx_gnn_create(&m, &f->app.devices[0], &c, from, &err), err);
    CHECK_OK(mx_gnn_save(m, to, &err), err);
    mx_gnn_close(m);
}

static inline Merx__V1__Profile *get_whole(fixture *f, const char *user)
{
    Merx__V1__GetProfileRequest q = MERX__V1__GET_PROFILE_REQUEST__INIT;
    q.user = (char *)(uintptr_t)user;
    q.embedding = true;
    Merx__V1__ProfileAnswer *r = call(f, "GetProfile", &q.base, &merx__v1__profile_answer__descriptor);
    Merx__V1__Profile *p = r ? r->profile : NULL;
    if (r) r->profile = NULL;
    FREE(r);
    return p;
}

static inline bool same_floats(const float *a, size_t na, const float *b, size_t nb) { return na == nb && na && !memcmp(a, b, na * sizeof *a); }

#endif
