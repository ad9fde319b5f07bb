/* test_profiles_network.c - a graph network in the service: what it says is in profiles, labels, similar users and
 * recommendations, follows events, adds up in evidence, is the same after a start, and goes with its subject. */
#include "runtime/clock.h"
#include "tests/profiles_fixture.h"

#include "models/profile_net.h"
#include "server/profiles_internal.h"
#include "server/store.h"

#include <sys/stat.h>

static char net_folder[300];

static void make_network(fixture *f, mx_gnn_kind kind)
{
    snprintf(net_folder, sizeof net_folder, "%s.net", folder);
    make_network_at(f, net_folder, kind, 8, 3);
}

static void remove_network(void) { nftw(net_folder, remove_one, 16, FTW_DEPTH | FTW_PHYS); }

/* Until the network has taken in what was acknowledged, and profiles follow. */
static void settle(fixture *f, uint64_t watermark)
{
    for (int i = 0; i < 3000 && mx_profile_net_watermark(f->app.profiles->space->net) < watermark; i++) usleep(10000);
    CHECK(mx_profile_net_watermark(f->app.profiles->space->net) >= watermark);
    for (int i = 0; i < 3; i++) {                                /* what moved is made anew by operations behind this one */
        FREE(put(f, NULL, 0));
        FREE(get(f, "u0", mx_profiles_watermark(f->app.profiles)));
        usleep(20000);
    }
}

static Merx__V1__RecommendResponse *recommend(fixture *f, const char *user)
{
    Merx__V1__RecommendRequest q = MERX__V1__RECOMMEND_REQUEST__INIT;
    q.user = (char *)(uintptr_t)user;
    q.count = 8;
    return call(f, "Recommend", &q.base, &merx__v1__recommend_response__descriptor);
}

static void check_profile(fixture *f, const char *user)
{
    Merx__V1__Profile *p = get_whole(f, user);
    CHECK_MSG(p && p->network && p->embedding && p->events, "%s", st.text);
    if (p && p->network && p->embedding) {
        CHECK(strstr(p->network->name, ".net") && !strcmp(p->network->kind, "sage") && p->network->watermark >= p->watermark);
        CHECK(p->embedding->n_graph == 8 && p->embedding->n_text == (size_t)f->app.profiles->dim && p->embedding->n_fused == MX_FEATURES + p->embedding->n_text + 8);
        for (size_t i = 0; i < p->n_tags; i++) check_sum(p->tags[i]);
    }
    if (p) merx__v1__profile__free_unpacked(p, NULL);
    Merx__V1__GetProfileRequest q = MERX__V1__GET_PROFILE_REQUEST__INIT;      /* whoever sets prices gets no vectors either */
    q.user = (char *)(uintptr_t)user, q.embedding = true, q.purpose = MERX__V1__PURPOSE__PURPOSE_PRICE;
    Merx__V1__ProfileAnswer *r = call(f, "GetProfile", &q.base, &merx__v1__profile_answer__descriptor);
    bool told = false;
    for (size_t i = 0; r && i < r->profile->n_suppressed_fields; i++) told |= !strcmp(r->profile->suppressed_fields[i], "embedding");
    CHECK(r && !r->profile->embedding && r->profile->network && told);
    FREE(r);
}

static void check_evidence(fixture *f, const char *user, const char *tag)
{
    Merx__V1__LabelExplanation *e = explain(f, user, tag);
    int through = 0, own = 0;
    CHECK_MSG(e && !strcmp(e->tag->source, "model") && *e->definition->head_network, "%s", st.text);
    for (size_t i = 0; e && i < e->tag->n_evidence; i++) {
        const Merx__V1__Evidence *v = e->tag->evidence[i];
        through += v->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR && strstr(v->text, "through the network") != NULL;
        own += v->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NETWORK;
    }
    CHECK_MSG(own == 1 && through >= 3, "%d neighbours, %d", through, own);
    if (e) check_sum(e->tag);
    FREE(e);
}

static void check_recommended(fixture *f, const char *user, const char *method)
{
    Merx__V1__RecommendResponse *r = recommend(f, user);
    CHECK_MSG(r && r->n_items && !strcmp(r->method, method), "%s; %s, %zu items", st.text, r ? r->method : "", r ? r->n_items : 0);
    mx_user_edges own = {0};
    mx_error err = {0};
    const mx_user_graph *g = mx_profiles_graph(f->app.profiles);
    CHECK_OK(mx_user_graph_edges(g, mx_user_graph_find(g, mx_user_graph_find_node_type(g, "user"), user), MX_EDGES_OUT, MX_TIME_ANY, &own, &err), err);
    for (size_t i = 0; r && i < r->n_items; i++) {
        double sum = 0;
        int32_t node = mx_user_graph_find(g, mx_user_graph_find_node_type(g, "item"), r->items[i]->item);
        for (int64_t k = 0; k < own.count; k++) CHECK(own.edge[k].other != node);
        CHECK(!i || r->items[i]->score <= r->items[i - 1]->score);
        for (size_t k = 0; k < r->items[i]->n_reasons; k++) sum += r->items[i]->reasons[k]->weight;
        CHECK(isfinite(sum));
    }
    mx_user_edges_free(&own);
    FREE(r);
}

static void network_speaks(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, true)) return;
    fill(&f, mx_wall_ms());
    FREE(get(&f, "u0", mx_profiles_watermark(f.app.profiles)));
    int64_t rows = mx_text_store_rows(mx_profiles_texts(f.app.profiles));
    CHECK(rows > USERS);
    make_network(&f, MX_GNN_SAGE);
    fixture_close(&f);
    if (!fixture_open_with(&f, true, net_folder)) return;
    CHECK(mx_text_store_rows(mx_profiles_texts(f.app.profiles)) == rows);      /* nothing was read twice */
    check_profile(&f, "u3");
    backfill(&f, "price-sensitive");
    check_profile(&f, "u3");
    check_evidence(&f, "u3", "price-sensitive");
    check_recommended(&f, "u3", "network");
    /* somebody new: a profile, vectors, and neighbours that moved */
    Merx__V1__Profile *before = get_whole(&f, "u5");
    Merx__V1__Event e[3] = {event("n1", "buy", "newcomer", "i4"), event("n2", "review", "newcomer", "i6"), event("n3", "follow", "newcomer", "u5")};
    e[1].text = (char *)(uintptr_t)"w5 w6 w7";
    Merx__V1__EventsAck *ack = put(&f, e, 3);
    CHECK(ack && ack->accepted == 3);
    settle(&f, ack ? ack->watermark : 0);
    FREE(ack);
    check_profile(&f, "newcomer");
    check_recommended(&f, "newcomer", "network");
    Merx__V1__Profile *after = get_whole(&f, "u5"), *far = get_whole(&f, "newcomer");
    CHECK(before && after && far && far->embedding && far->embedding->n_graph == 8 && !same_floats(before->embedding->graph, 8, after->embedding->graph, 8));
    Merx__V1__SimilarUsersRequest sq = MERX__V1__SIMILAR_USERS_REQUEST__INIT;
    sq.user = "newcomer";
    Merx__V1__SimilarUsersResponse *alike = call(&f, "SimilarUsers", &sq.base, &merx__v1__similar_users_response__descriptor);
    CHECK(alike && alike->n_users == 10 && alike->network && alike->users[0]->similarity > alike->users[9]->similarity);
    FREE(alike);
    fixture_close(&f);
    if (!fixture_open_with(&f, true, net_folder)) return;
    Merx__V1__Profile *again = get_whole(&f, "u5"), *fars = get_whole(&f, "newcomer");
    CHECK(after && again && same_floats(after->embedding->graph, 8, again->embedding->graph, again->embedding->n_graph));
    CHECK(far && fars && same_floats(far->embedding->fused, far->embedding->n_fused, fars->embedding->fused, fars->embedding->n_fused));
    Merx__V1__Profile *all[] = {before, after, far, again, fars};
    for (size_t i = 0; i < 5; i++)
        if (all[i]) merx__v1__profile__free_unpacked(all[i], NULL);
    fixture_close(&f);
    if (!fixture_open(&f, true)) return;                         /* without it: rules again, and the older way */
    Merx__V1__ProfileAnswer *r = get(&f, "u3", 0);
    CHECK(r && !r->profile->network && !strcmp(tag_of(r->profile, "price-sensitive")->source, "rule"));
    FREE(r);
    check_recommended(&f, "u3", "neighbours");
    fixture_close(&f);
    remove_network();
    fresh_folder();
}

/* Users by number alone: one whom no number stands for gets what most have; and who is forgotten leaves nothing. */
static void numbers_and_forgetting(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, true)) return;
    fill(&f, mx_wall_ms());
    make_network(&f, MX_GNN_LIGHTGCN);
    fixture_close(&f);
    if (!fixture_open_with(&f, true, net_folder)) return;
    check_recommended(&f, "u2", "network");
    Merx__V1__Event e = event("q1", "share", "quiet", "");
    FREE(put(&f, &e, 1));
    settle(&f, mx_profiles_watermark(f.app.profiles));
    check_recommended(&f, "quiet", "popular");
    e = event("q2", "buy", "quiet", "i2");
    FREE(put(&f, &e, 1));
    settle(&f, mx_profiles_watermark(f.app.profiles));
    check_recommended(&f, "quiet", "network");                  /* its item speaks for it */
    const mx_user_graph *g = mx_profiles_graph(f.app.profiles);
    int32_t node = mx_user_graph_find(g, mx_user_graph_find_node_type(g, "user"), "u2");
    Merx__V1__DeleteSubjectRequest dq = MERX__V1__DELETE_SUBJECT_REQUEST__INIT;
    dq.user = "u2";
    Merx__V1__ErasureReceipt *d = call(&f, "DeleteSubject", &dq.base, &merx__v1__erasure_receipt__descriptor);
    CHECK_MSG(d && d->events && d->vectors == 2 && d->text_vectors >= 1, "%s: %d, %d", st.text, d ? (int)d->vectors : 0, d ? (int)d->text_vectors : 0);
    FREE(d);
    float z[8];
    mx_text_row row;
    CHECK(!mx_profile_net_get(f.app.profiles->space->net, node, z) && !mx_vectors_get(f.app.profiles->space->fused, node, (float[600]){0}));
    CHECK(!mx_text_store_get(mx_profiles_texts(f.app.profiles), mx_text_event("e2.4"), &row, NULL) && mx_text_store_get(mx_profiles_texts(f.app.profiles), mx_text_event("e3.4"), &row, NULL));
    settle(&f, mx_profiles_watermark(f.app.profiles));
    Merx__V1__Profile *u = get_whole(&f, "u0");                  /* who followed the one that is gone */
    CHECK(u && u->neighbours == 0);
    fixture_close(&f);
    mx_error err = {0};
    mx_gnn *m = NULL;
    mx_device *devices;
    int n;
    CHECK_OK(mx_devices_open(&devices, &n, &(mx_device_options){.cpu_threads = 1}, &err), err);
    CHECK_OK(mx_gnn_open(&m, &devices[0], net_folder, &err), err);
    CHECK(m && !mx_gnn_forget(m, node) && mx_gnn_forget(m, node + 1));
    mx_gnn_close(m);
    mx_devices_close(devices, n);
    if (!fixture_open_with(&f, true, net_folder)) return;
    Merx__V1__Profile *v = get_whole(&f, "u0");
    CHECK(u && v && same_floats(u->embedding->graph, u->embedding->n_graph, v->embedding->graph, v->embedding->n_graph));
    if (u) merx__v1__profile__free_unpacked(u, NULL);
    if (v) merx__v1__profile__free_unpacked(v, NULL);
    fixture_close(&f);
    remove_network();
    fresh_folder();
}

/* While a search cannot go on, events are acknowledged and profiles read. */
static void searches_keep_nobody(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    fill(&f, mx_wall_ms());
    Merx__V1__Event e = event("q1", "share", "quiet", "");
    FREE(put(&f, &e, 1));
    FREE(get(&f, "quiet", mx_profiles_watermark(f.app.profiles)));
    pthread_mutex_lock(&f.app.profiles->popular_lock);           /* what is popular cannot be told */
    Merx__V1__RecommendRequest q = MERX__V1__RECOMMEND_REQUEST__INIT;
    q.user = "quiet";
    uint8_t msg[64];
    size_t n = merx__v1__recommend_request__pack(&q, msg);
    mx_client_call *c = NULL;
    CHECK(mx_client_stream(f.client, &c, "/merx.v1.Profiling/Recommend", msg, n, 60000) == MX_OK);
    usleep(20000);
    for (int i = 0; i < 20; i++) {
        char id[20];
        snprintf(id, sizeof id, "w%d", i);
        Merx__V1__Event more = event(id, "share", "quiet", "");
        Merx__V1__EventsAck *ack = put(&f, &more, 1);
        CHECK(ack && ack->accepted == 1);
        Merx__V1__ProfileAnswer *r = get(&f, "quiet", ack ? ack->watermark : 0);
        CHECK(r && r->profile->events == i + 2);
        FREE(ack);
        FREE(r);
    }
    pthread_mutex_unlock(&f.app.profiles->popular_lock);
    const uint8_t *reply;
    size_t len;
    CHECK(c && mx_client_next(c, &reply, &len));
    mx_client_end(c);
    fixture_close(&f);
    fresh_folder();
}

static mx_status count_one(void *ctx, const mx_tag_row *r, mx_error *err)
{
    (void)r, (void)err;
    ++*(int *)ctx;
    return MX_OK;
}

static void wait_done(mx_profiles_op *op) { atomic_store((atomic_bool *)op->answer, true); }

/* A commit that fails takes no entry of a label's history with it: it is stored by the next. */
static void rollback_keeps_history(void)
{
    mx_profiles *p = NULL;
    mx_error err = {0};
    mx_put_ack ack;
    int rows = 0, again = 0;
    fresh_folder();
    CHECK_OK(mx_profiles_open(&p, folder, &(mx_profiles_options){0}, &err), err);
    if (!p) return;
    mx_event e[2][12];
    char id[2][12][12], idle[12][12];
    for (int u = 0; u < 2; u++)
        for (int i = 0; i < 12; i++) {
            snprintf(id[u][i], sizeof id[u][i], "r%d.%d", u, i), snprintf(idle[i], sizeof idle[i], "idle%d", i);
            e[u][i] = mx_event_defaults();
            e[u][i].id = id[u][i], e[u][i].subject = u ? "busy" : idle[i], e[u][i].ts_ms = mx_wall_ms();
            e[u][i].type = mx_user_graph_find_event_type(p->graph, u ? "share" : "view"), e[u][i].object = u ? NULL : "thing";
        }
    for (int u = 0; u < 2; u++) CHECK_OK(mx_user_graph_put(p->graph, e[u], 12, 0, NULL, &ack, &err), err);
    int32_t busy = mx_user_graph_find(p->graph, p->user, "busy");
    CHECK_OK(profile_touch_all(p, &err), err);
    CHECK_OK(mx_store_begin(p->store, &err), err);               /* the thread is idle: nothing was given to it */
    CHECK_OK(profile_refresh(p, &err), err);
    CHECK_OK(profile_touch(p, busy, &err), err);                 /* its label, by percentiles that are whole now */
    CHECK_OK(profile_refresh(p, &err), err);
    subject *s = profile_subject(p, busy);
    CHECK(s && s->n_changes > 0);
    mx_store_rollback(p->store);
    CHECK_OK(profile_labels_stored(p, false, &err), err);
    CHECK_OK(mx_store_each_tag_change(p->store, "busy", NULL, 0, count_one, &rows, &err), err);
    CHECK(rows == 0);
    atomic_bool over = false;
    mx_profiles_op op = {.run = mx_profiles_wait, .done = wait_done, .answer = (uint8_t *)&over};
    mx_profiles_submit(p, &op);
    while (!atomic_load(&over)) usleep(1000);
    CHECK_OK(mx_store_each_tag_change(p->store, "busy", NULL, 0, count_one, &rows, &err), err);
    CHECK_MSG(s && rows == s->n_changes && rows > 0, "%d stored, %d there are", rows, s ? s->n_changes : 0);
    mx_profiles_close(p);
    CHECK_OK(mx_profiles_open(&p, folder, &(mx_profiles_options){0}, &err), err);
    CHECK_OK(mx_store_each_tag_change(p->store, "busy", NULL, 0, count_one, &again, &err), err);
    CHECK(again == rows);
    mx_profiles_close(p);
    fresh_folder();
}

MX_TESTS(TEST(network_speaks), TEST(numbers_and_forgetting), TEST(searches_keep_nobody), TEST(rollback_keeps_history))
