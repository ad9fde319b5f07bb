/* test_profiles_swap.c - one graph network takes another's place while events come and profiles are read: no call fails, vectors
 * are one network's, heads follow, and what comes out is what a start with the new network gives, bit for bit. */
#include "tests/profiles_fixture.h"

#include "server/profiles_internal.h"

static char first_net[300], second_net[300], bad_net[300];

static void open_with_two(fixture *f)
{
    fresh_folder();
    snprintf(first_net, sizeof first_net, "%s.one", folder), snprintf(second_net, sizeof second_net, "%s.two", folder), snprintf(bad_net, sizeof bad_net, "%s.bad", folder);
    if (!fixture_open(f, true)) return;
    fill(f, mx_wall_ms());
    FREE(get(f, "u0", mx_profiles_watermark(f->app.profiles)));
    make_network_at(f, first_net, MX_GNN_SAGE, 8, 3);
    make_network_at(f, second_net, MX_GNN_SAGE, 12, 9);
    fixture_close(f);
    fixture_open_with(f, true, first_net);
}

static void remove_networks(void)
{
    const char *const all[] = {first_net, second_net, bad_net};
    for (int i = 0; i < 3; i++) nftw(all[i], remove_one, 16, FTW_DEPTH | FTW_PHYS);
    fresh_folder();
}

static const char *name_of(const char *path) { return strrchr(path, '/') + 1; }

static mx_status load(fixture *f, const char *name, const char *path, mx_loaded *out, mx_error *err)
{
    *err = (mx_error){0};
    return f->app.load(&f->app, name, path, "", out, err);
}

/* Profiles were made anew since: the last user's says it was computed after this. */
static void settle(fixture *f)
{
    mx_profiles *p = f->app.profiles;
    usleep(20000);
    for (int i = 0; i < 20; i++) {
        FREE(put(f, NULL, 0));
        FREE(get(f, "u0", mx_profiles_watermark(p)));
    }
}

/* ---- callers ---------------------------------------------------------------------------------------- */

typedef struct caller {
    fixture    *f;
    atomic_bool stop;
    atomic_int  calls, failed, odd;
    uint64_t    seed;
} caller;

static void *ask(mx_client *c, caller *w, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type)
{
    char path[100];
    uint8_t msg[4096], *bytes = NULL;
    size_t n = 0, len = protobuf_c_message_pack(q, msg);
    mx_rpc_status over = {0};
    snprintf(path, sizeof path, "/merx.v1.Profiling/%s", method);
    bool bad = mx_client_unary(c, path, msg, len, 30000, &bytes, &n, &over) || over.code;
    void *m = bad ? NULL : protobuf_c_message_unpack(type, NULL, n, bytes);
    if (bad) fprintf(stderr, "  %s: %s\n", method, over.text);
    free(bytes);
    atomic_fetch_add(&w->calls, 1);
    if (!m) atomic_fetch_add(&w->failed, 1);
    return m;
}

static void read_one(mx_client *c, caller *w, char *user)
{
    Merx__V1__GetProfileRequest q = MERX__V1__GET_PROFILE_REQUEST__INIT;
    Merx__V1__SimilarUsersRequest sq = MERX__V1__SIMILAR_USERS_REQUEST__INIT;
    Merx__V1__RecommendRequest rq = MERX__V1__RECOMMEND_REQUEST__INIT;
    q.user = sq.user = rq.user = user;
    q.embedding = true;
    Merx__V1__ProfileAnswer *a = ask(c, w, "GetProfile", &q.base, &merx__v1__profile_answer__descriptor);
    const Merx__V1__Profile *p = a ? a->profile : NULL;
    size_t graph = p && p->network ? p->network->version % 2 ? 8 : 12 : 0;      /* one and two take turns */
    if (p && (!p->embedding || p->embedding->n_graph != graph || p->embedding->n_fused != MX_FEATURES + p->embedding->n_text + graph)) atomic_fetch_add(&w->odd, 1);
    FREE(a);
    Merx__V1__SimilarUsersResponse *s = ask(c, w, "SimilarUsers", &sq.base, &merx__v1__similar_users_response__descriptor);
    if (s && s->n_users != 10) atomic_fetch_add(&w->odd, 1);
    FREE(s);
    Merx__V1__RecommendResponse *r = ask(c, w, "Recommend", &rq.base, &merx__v1__recommend_response__descriptor);
    if (r && strcmp(r->method, "network") != 0) atomic_fetch_add(&w->odd, 1);
    FREE(r);
}

static void *keep_reading(void *arg)
{
    caller *w = arg;
    mx_client *c = NULL;
    mx_error err = {0};
    char user[16];
    if (mx_client_open(&c, mx_server_address(w->f->server), NULL, &err)) atomic_fetch_add(&w->failed, 1);
    while (c && !atomic_load(&w->stop)) {
        snprintf(user, sizeof user, "u%d", (int)(test_random(&w->seed) % USERS));
        read_one(c, w, user);
    }
    mx_client_close(c);
    return NULL;
}

static void *keep_putting(void *arg)
{
    caller *w = arg;
    mx_client *c = NULL;
    mx_error err = {0};
    char id[24], user[16], item[16];
    if (mx_client_open(&c, mx_server_address(w->f->server), NULL, &err)) atomic_fetch_add(&w->failed, 1);
    for (int i = 0; c && !atomic_load(&w->stop); i++) {
        snprintf(id, sizeof id, "more%d", i), snprintf(user, sizeof user, "u%d", (int)(test_random(&w->seed) % USERS)), snprintf(item, sizeof item, "i%d", (int)(test_random(&w->seed) % 40));
        Merx__V1__Event e = event(id, i % 4 ? "view" : "review", user, item), *list[] = {&e};
        Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
        if (i % 4 == 0) e.text = "w5 w90";
        q.events = list, q.n_events = 1;
        Merx__V1__EventsAck *ack = ask(c, w, "PutEvents", &q.base, &merx__v1__events_ack__descriptor);
        if (ack && ack->accepted != 1) atomic_fetch_add(&w->odd, 1);
        FREE(ack);
    }
    mx_client_close(c);
    return NULL;
}

/* ---- what is wrong changes nothing ---------------------------------------------------------------- */

static void refuse(fixture *f)
{
    mx_error err;
    mx_loaded l;
    FILE *file;
    char path[400];
    const char *name = name_of(first_net);
    CHECK(load(f, "other", second_net, &l, &err) == MX_ERR_ARG && strstr(err.text, "one network"));
    CHECK(load(f, "mood", second_net, &l, &err) == MX_ERR_ARG);
    nftw(bad_net, remove_one, 16, FTW_DEPTH | FTW_PHYS);
    mkdir(bad_net, 0777);
    snprintf(path, sizeof path, "%s/config.json", bad_net);
    file = fopen(path, "w");
    CHECK(file != NULL);
    if (file) fputs("{\"model_type\": \"merx_gnn\", \"kind\": \"sage\", \"layers\": 99}", file), fclose(file);
    CHECK(load(f, name, bad_net, &l, &err) != MX_OK);
    CHECK_MSG(strstr(err.text, "config.json: task is missing") != NULL, "%s", err.text);
    mx_gnn *m = NULL;                                        /* whole, but of another store's items */
    mx_gnn_config c = {.kind = MX_GNN_LIGHTGCN, .task = MX_GNN_RANKING, .layers = 2, .outputs = 8, .id_cols = 8, .id_nodes = 5, .store = 77};
    err = (mx_error){0};
    CHECK_OK(mx_gnn_create(&m, &f->app.devices[0], &c, 1, &err), err);
    CHECK_OK(mx_gnn_save(m, bad_net, &err), err);
    mx_gnn_close(m);
    CHECK(load(f, name, bad_net, &l, &err) != MX_OK);
    CHECK_MSG(strstr(err.text, "another store") != NULL, "%s", err.text);
    Merx__V1__Profile *p = get_whole(f, "u3");
    CHECK(p && p->network && p->network->version == 1 && !strcmp(p->network->name, name) && p->embedding && p->embedding->n_graph == 8);
    if (p) merx__v1__profile__free_unpacked(p, NULL);
}

/* The tag's head reads this network (NULL: none), and labels add up. */
static void check_heads(fixture *f, const char *print)
{
    Merx__V1__LabelExplanation *e = explain(f, "u3", "price-sensitive");
    CHECK_MSG(e && !strcmp(e->tag->source, "model") && !strcmp(e->definition->head_network, print), "%s; %s, %s", st.text, e ? e->tag->source : "", e ? e->definition->head_network : "");
    if (e) check_sum(e->tag);
    FREE(e);
    Merx__V1__ProfileAnswer *r = get(f, "u3", 0);
    const Merx__V1__Tag *t = r ? tag_of(r->profile, "price-sensitive") : NULL;
    CHECK(t && !strcmp(t->source, "model"));
    if (t) check_sum(t);
    FREE(r);
}

static void swapped_while_used(void)
{
    fixture f;
    mx_error err;
    mx_loaded l;
    open_with_two(&f);
    if (!f.client) return;
    const char *name = name_of(first_net);
    mx_profiles *p = f.app.profiles;
    backfill(&f, "price-sensitive");
    refuse(&f);
    enum { CALLERS = 3 };
    caller w[CALLERS];
    pthread_t thread[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        w[i] = (caller){.f = &f, .seed = (uint64_t)i + 1};
        CHECK(!pthread_create(&thread[i], NULL, i ? keep_reading : keep_putting, &w[i]));
    }
    for (int32_t version = 2; version < 6; version++) {
        CHECK_OK(load(&f, name, version % 2 ? first_net : second_net, &l, &err), err);
        CHECK(l.version == version && l.replaced == version - 1);
    }
    for (int i = 0; i < CALLERS; i++) atomic_store(&w[i].stop, true);
    for (int i = 0; i < CALLERS; i++) {
        pthread_join(thread[i], NULL);
        CHECK_MSG(atomic_load(&w[i].calls) > 5 && !atomic_load(&w[i].failed) && !atomic_load(&w[i].odd), "%d calls, %d failed, %d odd", atomic_load(&w[i].calls), atomic_load(&w[i].failed), atomic_load(&w[i].odd));
    }
    settle(&f);
    check_heads(&f, p->space->print);
    CHECK(p->space->dim == 8 && *p->space->print);
    fixture_close(&f);
    remove_networks();
}

/* ---- the same as from the start ------------------------------------------------------------------------ */

static void same_as_from_the_start(void)
{
    fixture f;
    mx_error err;
    mx_loaded l;
    enum { LOOKED = 12 };
    Merx__V1__Profile *was[LOOKED], *is[LOOKED];
    char user[16];
    open_with_two(&f);
    if (!f.client) return;
    mx_profiles *p = f.app.profiles;
    backfill(&f, "price-sensitive");
    CHECK_OK(f.app.unload(&f.app, name_of(first_net), 1000, &err), err);
    CHECK(!p->space->net && mx_registry_health(f.app.registry, name_of(first_net)) < 0);
    settle(&f);
    check_heads(&f, "");
    CHECK(f.app.unload(&f.app, name_of(first_net), 1000, &err) == MX_ERR_NOT_FOUND);
    CHECK_OK(load(&f, "users", second_net, &l, &err), err);
    CHECK(l.version == 1 && !l.replaced);
    Merx__V1__Event e[2] = {event("n1", "buy", "u1", "i4"), event("n2", "review", "newcomer", "i6")};
    e[1].text = (char *)(uintptr_t)"w5 w6 w7";
    FREE(put(&f, e, 2));
    settle(&f);
    check_heads(&f, "");                                       /* learned without a network: it stays */
    Merx__V1__BackfillTagRequest q = MERX__V1__BACKFILL_TAG_REQUEST__INIT;
    q.name = "price-sensitive";
    Merx__V1__TagDefinition *d = call(&f, "BackfillTag", &q.base, &merx__v1__tag_definition__descriptor);
    FREE(d);
    check_heads(&f, p->space->print);
    for (int i = 0; i < LOOKED; i++) snprintf(user, sizeof user, i ? "u%d" : "newcomer", i), was[i] = get_whole(&f, user);
    fixture_close(&f);
    if (!fixture_open_with(&f, true, second_net)) return;
    for (int i = 0; i < LOOKED; i++) {
        snprintf(user, sizeof user, i ? "u%d" : "newcomer", i), is[i] = get_whole(&f, user);
        CHECK_MSG(was[i] && is[i] && same_floats(was[i]->embedding->graph, was[i]->embedding->n_graph, is[i]->embedding->graph, is[i]->embedding->n_graph), "%s", user);
        CHECK_MSG(was[i] && is[i] && same_floats(was[i]->embedding->fused, was[i]->embedding->n_fused, is[i]->embedding->fused, is[i]->embedding->n_fused), "%s", user);
        if (was[i]) merx__v1__profile__free_unpacked(was[i], NULL);
        if (is[i]) merx__v1__profile__free_unpacked(is[i], NULL);
    }
    check_heads(&f, f.app.profiles->space->print);
    fixture_close(&f);
    remove_networks();
}

/* ---- who is forgotten while a network arrives is not in it ----------------------------------------------- */

typedef struct step { mx_profiles_op op; space *s; space_parts parts; atomic_bool over; } step;

static void step_done(mx_profiles_op *op) { atomic_store(&((step *)op)->over, true); }

static mx_status arrive(mx_profiles *p, mx_profiles_op *op) { return p->arriving = ((step *)op)->s, MX_OK; }
static mx_status leave(mx_profiles *p, mx_profiles_op *op) { return (void)op, p->arriving = NULL, MX_OK; }
static mx_status follow(mx_profiles *p, mx_profiles_op *op)
{
    step *t = (step *)op;
    MX_TRY(profile_start_space(t->s, &t->parts, &op->err));
    profile_hand_over(p, mx_profiles_visible(p));
    return MX_OK;
}

static void take(mx_profiles *p, step *t, mx_profiles_run *run)
{
    atomic_store(&t->over, false);
    t->op = (mx_profiles_op){.run = run, .done = step_done};
    mx_profiles_submit(p, &t->op);
    while (!atomic_load(&t->over)) usleep(100);
    CHECK_OK(t->op.st, t->op.err);
}

static void forget(fixture *f, const char *user)
{
    Merx__V1__DeleteSubjectRequest q = MERX__V1__DELETE_SUBJECT_REQUEST__INIT;
    q.user = (char *)(uintptr_t)user;
    Merx__V1__ErasureReceipt *r = call(f, "DeleteSubject", &q.base, &merx__v1__erasure_receipt__descriptor);
    CHECK_MSG(r && r->events && r->vectors == 2, "%s: %d", st.text, r ? (int)r->vectors : 0);      /* those of the current one */
    FREE(r);
}

static void forgotten_on_the_way(void)
{
    fixture f;
    mx_error err = {0};
    step t = {0};
    float z[64], x[1024];
    open_with_two(&f);
    if (!f.client) return;
    mx_profiles *p = f.app.profiles;
    const mx_user_graph *g = mx_profiles_graph(p);
    int32_t early = mx_user_graph_find(g, p->user, "u7"), late = mx_user_graph_find(g, p->user, "u9"), stays = mx_user_graph_find(g, p->user, "u10");
    CHECK_OK(profile_make_space(p, "users", 2, second_net, &t.s, &err), err);
    take(p, &t, arrive);
    mx_loaded l;
    CHECK(load(&f, name_of(first_net), second_net, &l, &err) == MX_ERR_STATE && strstr(err.text, "on its way"));
    CHECK_OK(profile_open_parts(p, second_net, &t.parts, &err), err);
    CHECK(t.parts.net && mx_profile_net_get(t.parts.net, early, z));
    forget(&f, "u7");
    take(p, &t, follow);
    forget(&f, "u9");
    profile_wait_idle(t.s, UINT64_MAX);
    CHECK(!mx_profile_net_get(t.s->net, early, z) && !mx_profile_net_get(t.s->net, late, z) && mx_profile_net_get(t.s->net, stays, z));
    CHECK(!mx_vectors_get(t.s->fused, early, x) && !t.s->err.code);
    take(p, &t, leave);
    profile_close_space(t.s);
    fixture_close(&f);
    remove_networks();
}

MX_TESTS(TEST(swapped_while_used), TEST(same_as_from_the_start), TEST(forgotten_on_the_way))
