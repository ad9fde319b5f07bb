/* house.h - the whole house: the real app with tiny models of seeded weights, its stores, the real server, and a client of it. */
#ifndef MX_HOUSE_H
#define MX_HOUSE_H

#include "server/experiments.h"
#include "server/pricing.h"
#include "server/profiles.h"
#include "server/settings.h"
#include "tests/server_storm.h"

#include <ftw.h>

#define HOUSE_MODEL(x) MX_SOURCE_DIR "/tests/golden/decoder/" x
#define HOUSE_BERT MX_SOURCE_DIR "/tests/golden/encoder/bert"

typedef struct house_options {
    const char *const *models;      /* "name=path", up to a NULL; NULL: one, "tiny", a Llama        */
    const char *const *settings;    /* name, value, name, value, up to a NULL; NULL: none           */
    int         seqs, queue;        /* of its models; 0: as usual                                   */
    bool        stores;             /* profiles, prices and experiments, in a folder of their own   */
    struct mx_spans *spans;
} house_options;

typedef struct house {
    mx_config *config;
    mx_app     app;
    mx_server *server;
    mx_client *client;
    char       folder[300];         /* of the stores                                                */
} house;

static inline int house_remove_one(const char *path, const struct stat *info, int kind, struct FTW *at)
{
    (void)info, (void)kind, (void)at;
    return remove(path);
}

static inline void house_stores(house *h)
{
    mx_error err = {0};
    char path[400];
    snprintf(h->folder, sizeof h->folder, MX_BINARY_DIR "/house.%d", (int)getpid());
    nftw(h->folder, house_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    CHECK_OK(mx_profiles_open(&h->app.profiles, h->folder, &(mx_profiles_options){.device = &h->app.devices[0]}, &err), err);
    snprintf(path, sizeof path, "%s/prices.db", h->folder);
    CHECK_OK(mx_pricing_open(&h->app.pricing, path, 0, &err), err);
    snprintf(path, sizeof path, "%s/experiments.db", h->folder);
    CHECK_OK(mx_experiments_open(&h->app.experiments, path, &err), err);
}

static inline bool house_open(house *h, const house_options *o)
{
    static const char *const tiny[] = {"tiny=" HOUSE_MODEL("llama"), NULL};
    mx_error err = {0};
    mx_generator_options g = mx_generator_defaults();
    mx_server_options s = mx_server_defaults();
    *h = (house){0};
    if (o->seqs) g.max_num_seqs = o->seqs;
    if (o->queue) g.max_queued = o->queue;
    g.max_model_len = 96;
    s.listen = "127.0.0.1:0";
    s.spans = o->spans;
    CHECK_OK(mx_config_open(&h->config, mx_settings, mx_settings_count, &err), err);
    for (const char *const *at = o->settings; at && *at; at += 2) CHECK_OK(mx_config_set(h->config, at[0], at[1], "test", &err), err);
    CHECK_OK(mx_app_open(&h->app, h->config, &err), err);
    for (const char *const *at = o->models ? o->models : tiny; *at; at++) CHECK_OK(mx_app_load(&h->app, *at, &g, &err), err);
    if (err.code) return false;
    h->app.defaults = g;
    if (o->stores) house_stores(h);
    CHECK_OK(mx_server_open(&h->server, &h->app, &s, &err), err);
    atomic_store(&h->app.state, MX_APP_SERVING);
    if (h->server) CHECK_OK(mx_client_open(&h->client, mx_server_address(h->server), NULL, &err), err);
    return h->client != NULL;
}

static inline void house_close(house *h)
{
    mx_client_close(h->client);
    mx_server_close(h->server);
    mx_app_close(&h->app, 0);
    mx_config_close(h->config);
    if (h->folder[0]) nftw(h->folder, house_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* A request of `tokens` words after twelve ids; what it points to is one for all. */
enum { HOUSE_PROMPT = 12 };
static inline void house_request(Merx__V1__GenerateRequest *q, Merx__V1__Sampling *s, int tokens)
{
    static Merx__V1__TokenIds prompt;
    static int32_t ids[HOUSE_PROMPT];
    request_init(q, s, "", tokens);
    merx__v1__token_ids__init(&prompt);
    for (int i = 0; i < HOUSE_PROMPT; i++) ids[i] = 3 + i * 5;
    prompt.n_ids = HOUSE_PROMPT;
    prompt.ids = ids;
    q->input_case = MERX__V1__GENERATE_REQUEST__INPUT_IDS;
    q->ids = &prompt;
}

#endif
