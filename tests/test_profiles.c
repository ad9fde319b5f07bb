/* test_profiles.c - the Profiling service through real gRPC: evidence adds up to the score,
 * what is acknowledged survives kill -9, and every strange event has its defined end. */
#include "runtime/clock.h"
#include "runtime/slab.h"
#include "tests/profiles_fixture.h"

static void check_all(fixture *f, uint64_t w, const char *source)
{
    int right = 0, in = 0;
    for (int u = 0; u < USERS; u++) {
        char user[20];
        snprintf(user, sizeof user, "u%d", u);
        Merx__V1__ProfileAnswer *r = get(f, user, w);
        CHECK_MSG(r && r->profile && r->profile->n_tags == 3, "%s: %s", user, st.text);
        if (!r) continue;
        for (size_t i = 0; i < r->profile->n_tags; i++) {
            check_sum(r->profile->tags[i]);
            CHECK_STR(r->profile->tags[i]->source, source);
        }
        const Merx__V1__Tag *t = tag_of(r->profile, "price-sensitive");
        bool is = t && (t->state == MERX__V1__TAG_STATE__TAG_ENTERED || t->state == MERX__V1__TAG_STATE__TAG_ACTIVE);
        if (t) CHECK(!is || t->expires_ms == r->profile->newest_event_ms + 30 * 86400000LL);
        right += is == (u % 2 == 0), in += is;
        CHECK(r->profile->neighbours == 1 && r->profile->events == ACTS + 1 && r->profile->watermark >= w);
        FREE(r);
    }
    CHECK_MSG(in > USERS / 10 && right > USERS * 6 / 10, "%d in, %d right", in, right);
}

/* By rules, then by heads that were learned from them: every score is the sum of what carried it. */
static void evidence_adds_up(bool models)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, models)) return;
    uint64_t w = fill(&f, mx_wall_ms());
    check_all(&f, w, "rule");
    backfill(&f, "price-sensitive");
    backfill(&f, "quality-seeking");
    backfill(&f, "socially-active");
    check_all(&f, w, "model");
    int words = 0, neighbours = 0, events = 0;
    for (int u = 0; u < 12; u++) {
        char user[20];
        snprintf(user, sizeof user, "u%d", u);
        Merx__V1__LabelExplanation *x = explain(&f, user, "price-sensitive");
        CHECK_MSG(x && x->tag && x->definition && x->definition->version == 2, "%s", st.text);
        if (!x) continue;
        check_sum(x->tag);
        CHECK(fabs(x->tag->rest) < 1e-9);
        for (size_t i = 0; i < x->tag->n_evidence; i++) {
            const Merx__V1__Evidence *e = x->tag->evidence[i];
            words += e->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_TEXT_SPAN && (!strcmp(e->text, "w5") || !strcmp(e->text, "w90"));
            neighbours += e->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR;
            events += e->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_EVENT && strstr(e->text, "buy i");
        }
        FREE(x);
    }
    CHECK_MSG(neighbours == 12 && events > 12 && (words >= 12) == models, "%d neighbours, %d events, %d words", neighbours, events, words);
    Merx__V1__LabelExplanation *x = explain(&f, "nobody", "price-sensitive");
    CHECK(!x && st.code == MX_RPC_NOT_FOUND);
    x = explain(&f, "u1", "handsome");
    CHECK(!x && st.code == MX_RPC_NOT_FOUND && strstr(st.text, "handsome"));
    fixture_close(&f);
    if (fixture_open(&f, models)) check_all(&f, w, "model");       /* all of it is there again */
    fixture_close(&f);
    fresh_folder();
}

static void evidence_of_behaviour(void) { evidence_adds_up(false); }
static void evidence_of_words(void) { evidence_adds_up(true); }

static const char *why(const Merx__V1__EventsAck *r, size_t i)
{
    return r && i < r->n_rejected ? r->rejected[i]->reason : "";
}

static void strange_events(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    int64_t now = mx_wall_ms();
    Merx__V1__Event e[] = {event("a", "buy", "ann", "shoe"), event("a", "buy", "ann", "shoe"), event("b", "steal", "ann", "shoe"), event("", "buy", "ann", "shoe"),
                           event("c", "buy", "", "shoe"), event("d", "buy", "ann", ""), event("e", "view", "ann", "hat"), event("f", "buy", "ann", "hat"),
                           event("g", "view", "ann", "old"), event("h", "view", "ann", "tomorrow")};
    e[0].price_minor = 995, e[0].currency = "EUR";
    e[6]._consent_case = MERX__V1__EVENT___CONSENT_CONSENT, e[6].consent = false;
    e[7].price_minor = -5;
    e[8].ts_ms = now - 40 * 86400000LL;
    e[9].ts_ms = now + 3 * 86400000LL;
    Merx__V1__EventsAck *r = put(&f, e, 10);
    CHECK_MSG(r && r->accepted == 2 && r->late == 1 && r->duplicates == 1 && r->n_rejected == 7, "%s: %d %d %d %zu", st.text, r ? r->accepted : -1, r ? r->late : -1, r ? r->duplicates : -1, r ? r->n_rejected : 0);
    const char *want[] = {"MALFORMED", "MALFORMED", "MALFORMED", "MALFORMED", "NO_CONSENT", "MALFORMED", "MALFORMED"};
    for (size_t i = 0; i < 7; i++) CHECK_STR(why(r, i), want[i]);
    if (r && r->n_rejected == 7) CHECK(strstr(r->rejected[0]->message, "type") && r->rejected[0]->index == 2 && !strcmp(r->rejected[0]->event_id, "b"));
    uint64_t w = r ? r->watermark : 0;
    FREE(r);
    Merx__V1__ProfileAnswer *p = get(&f, "ann", w);
    CHECK(p && p->profile->events == 2 && p->profile->rfm->purchases == 1 && p->profile->rfm->spent_minor == 995 && !strcmp(p->profile->rfm->currency, "EUR"));
    FREE(p);
    p = get(&f, "nobody", 0);
    CHECK(!p && st.code == MX_RPC_NOT_FOUND && strstr(st.text, "nobody"));
    p = get(&f, "ann", w + 100);
    CHECK(!p && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "min_watermark"));
    r = put(&f, e, 0);                                       /* an empty message asks for the watermark */
    CHECK(r && r->watermark == w && !r->accepted);
    FREE(r);
    fixture_close(&f);
    fresh_folder();
}

static void consent_and_masks(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    Merx__V1__Event e[] = {event("a", "buy", "ann", "shoe"), event("b", "buy", "bob", "shoe"), event("c", "buy", "bob", "hat")}, no = event("n", "consent", "ann", "");
    no._consent_case = MERX__V1__EVENT___CONSENT_CONSENT, no.consent = false;
    for (int i = 0; i < 3; i++) e[i].price_minor = 1000;
    Merx__V1__BatchGetProfilesRequest q = MERX__V1__BATCH_GET_PROFILES_REQUEST__INIT;
    Merx__V1__EventsAck *first = put(&f, e, 3);
    q.min_watermark = first ? first->watermark : 0;
    FREE(first);
    char *users[] = {"ann", "ghost", "bob"}, *hidden[] = {"rfm", "evidence"}, *odd[] = {"shoes"};
    q.users = users, q.n_users = 3;
    Merx__V1__BatchGetProfilesResponse *b = call(&f, "BatchGetProfiles", &q.base, &merx__v1__batch_get_profiles_response__descriptor);
    CHECK(b && b->n_profiles == 3 && b->profiles[0]->profile && b->profiles[1]->status && b->profiles[1]->status->code == MX_RPC_NOT_FOUND && b->profiles[2]->profile);
    if (b && b->n_profiles == 3) CHECK(b->profiles[2]->profile->n_tags == 3 && b->profiles[2]->profile->rfm && !b->profiles[2]->profile->n_suppressed_fields);
    FREE(b);
    q.exclude = hidden, q.n_exclude = 2;
    b = call(&f, "BatchGetProfiles", &q.base, &merx__v1__batch_get_profiles_response__descriptor);
    CHECK(b && b->profiles[2]->profile->n_suppressed_fields == 2 && !b->profiles[2]->profile->rfm && !b->profiles[2]->profile->tags[0]->n_evidence && b->profiles[2]->profile->n_features);
    FREE(b);
    q.n_exclude = 0, q.purpose = MERX__V1__PURPOSE__PURPOSE_PRICE;
    b = call(&f, "BatchGetProfiles", &q.base, &merx__v1__batch_get_profiles_response__descriptor);
    CHECK(b && !b->profiles[2]->profile->n_tags && !b->profiles[2]->profile->n_features && b->profiles[2]->profile->n_suppressed_fields == 3);
    FREE(b);
    q.exclude = odd, q.n_exclude = 1;
    b = call(&f, "BatchGetProfiles", &q.base, &merx__v1__batch_get_profiles_response__descriptor);
    CHECK(!b && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "exclude[0]"));
    Merx__V1__EventsAck *r = put(&f, &no, 1);
    CHECK(r && r->accepted == 1);
    Merx__V1__ProfileAnswer *p = get(&f, "ann", r ? r->watermark : 0);
    CHECK(p && !p->profile->consent && !p->profile->n_tags && !p->profile->n_features && p->profile->n_suppressed_fields == 4);
    FREE(p);
    FREE(r);
    Merx__V1__Event more = event("d", "buy", "ann", "hat");
    r = put(&f, &more, 1);
    CHECK_STR(why(r, 0), "NO_CONSENT");
    FREE(r);
    Merx__V1__LabelExplanation *x = explain(&f, "ann", "price-sensitive");
    CHECK(!x && st.code == MX_RPC_FAILED_PRECONDITION);
    no.event_id = "y", no.consent = true;
    r = put(&f, &no, 1);
    p = get(&f, "ann", r ? r->watermark : 0);
    CHECK(p && p->profile->consent && p->profile->n_tags == 3);
    FREE(p);
    FREE(r);
    no.event_id = "n", no.consent = false;                   /* sent again, it says nothing new */
    r = put(&f, &no, 1);
    CHECK(r && r->duplicates == 1);
    FREE(r);
    r = put(&f, &more, 1);
    CHECK_MSG(r && r->accepted == 1, "%s", why(r, 0));
    FREE(r);
    fixture_close(&f);
    fresh_folder();
}

static void forgotten(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    fill(&f, mx_wall_ms());
    Merx__V1__DeleteSubjectRequest q = MERX__V1__DELETE_SUBJECT_REQUEST__INIT;
    q.user = "u3";
    Merx__V1__ErasureReceipt *r = call(&f, "DeleteSubject", &q.base, &merx__v1__erasure_receipt__descriptor);
    CHECK_MSG(r && r->events >= ACTS + 1 && strlen(r->receipt) == 64 && strlen(r->subject) == 64, "%s", st.text);
    FREE(r);
    for (int round = 0; round < 2; round++) {
        Merx__V1__ProfileAnswer *p = get(&f, "u3", 0);
        CHECK(!p && st.code == MX_RPC_NOT_FOUND);
        p = get(&f, "u1", 0);                                /* it followed u3 */
        CHECK(p && !p->profile->neighbours);
        FREE(p);
        Merx__V1__Event e = event("new", "buy", "u3", "i1");
        Merx__V1__EventsAck *a = put(&f, &e, 1);
        CHECK_STR(why(a, 0), "ERASED");
        FREE(a);
        if (round) break;
        fixture_close(&f);
        if (!fixture_open(&f, false)) return;
    }
    fixture_close(&f);
    fresh_folder();
}

static void watched(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    fill(&f, mx_wall_ms());
    Merx__V1__WatchProfileRequest q = MERX__V1__WATCH_PROFILE_REQUEST__INIT;
    uint8_t msg[64];
    const uint8_t *reply;
    size_t len;
    mx_client_call *c;
    q.user = "u0";
    CHECK(mx_client_stream(f.client, &c, "/merx.v1.Profiling/WatchProfile", msg, merx__v1__watch_profile_request__pack(&q, msg), 20000) == MX_OK);
    CHECK(mx_client_next(c, &reply, &len));
    Merx__V1__ProfileDelta *d = merx__v1__profile_delta__unpack(NULL, len, reply);
    CHECK(d && d->profile && d->profile->n_tags == 3);
    FREE(d);
    Merx__V1__Event e[12];
    char id[12][8];
    for (int i = 0; i < 12; i++) {
        snprintf(id[i], sizeof id[i], "s%d", i);
        e[i] = event(id[i], "share", "u0", "");
    }
    Merx__V1__EventsAck *ack = put(&f, e, 12);
    CHECK_MSG(ack && ack->accepted == 12, "%s", why(ack, 0));
    FREE(ack);
    bool seen = false;
    while (!seen && mx_client_next(c, &reply, &len)) {
        d = merx__v1__profile_delta__unpack(NULL, len, reply);
        for (size_t i = 0; d && i < d->n_tags; i++) seen |= !strcmp(d->tags[i]->name, "socially-active");
        FREE(d);
    }
    CHECK(seen);
    mx_client_end(c);
    fixture_close(&f);
    fresh_folder();
}

static void alike_and_recommended(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    fill(&f, mx_wall_ms());
    Merx__V1__SimilarUsersRequest q = MERX__V1__SIMILAR_USERS_REQUEST__INIT;
    q.user = "u0";
    q.count = 20;
    Merx__V1__SimilarUsersResponse *r = call(&f, "SimilarUsers", &q.base, &merx__v1__similar_users_response__descriptor);
    int even = 0;
    CHECK_MSG(r && r->n_users == 20, "%s", st.text);
    for (size_t i = 0; r && i < r->n_users; i++) {
        even += atoi(r->users[i]->user + 1) % 2 == 0;
        CHECK(strcmp(r->users[i]->user, "u0") && r->users[i]->similarity <= 1 + 1e-9 && (!i || r->users[i]->similarity <= r->users[i - 1]->similarity));
    }
    CHECK_MSG(even >= 15, "%d of 20", even);
    FREE(r);
    Merx__V1__LookAlikeRequest l = MERX__V1__LOOK_ALIKE_REQUEST__INIT;
    char *users[] = {"u1", "u5", "u9"};
    l.users = users, l.n_users = 3;
    r = call(&f, "LookAlike", &l.base, &merx__v1__similar_users_response__descriptor);
    CHECK(r && r->n_users == 10);
    for (size_t i = 0; r && i < r->n_users; i++) CHECK(strcmp(r->users[i]->user, "u1") && strcmp(r->users[i]->user, "u5") && strcmp(r->users[i]->user, "u9"));
    FREE(r);
    users[1] = "stranger";
    r = call(&f, "LookAlike", &l.base, &merx__v1__similar_users_response__descriptor);
    CHECK(!r && st.code == MX_RPC_NOT_FOUND && strstr(st.text, "stranger"));
    Merx__V1__RecommendRequest rq = MERX__V1__RECOMMEND_REQUEST__INIT;
    rq.user = "u0";
    rq.count = 1000;
    Merx__V1__RecommendResponse *rec = call(&f, "Recommend", &rq.base, &merx__v1__recommend_response__descriptor);
    CHECK_MSG(rec && rec->n_items > 3, "%s: %zu", st.text, rec ? rec->n_items : 0);
    for (size_t i = 0; rec && i < rec->n_items; i++) {
        double sum = 0;
        CHECK(atoi(rec->items[i]->item + 1) % 2 == 0 && rec->items[i]->n_reasons);      /* bargain hunters have even items */
        for (size_t k = 0; k < rec->items[i]->n_reasons; k++) sum += rec->items[i]->reasons[k]->weight;
        CHECK(sum <= rec->items[i]->score + 1e-12);
    }
    FREE(rec);
    fixture_close(&f);
    fresh_folder();
}

static void tags(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, false)) return;
    fill(&f, mx_wall_ms());
    Merx__V1__TagRule rule = MERX__V1__TAG_RULE__INIT, *rules[] = {&rule};
    Merx__V1__TagDefinition q = MERX__V1__TAG_DEFINITION__INIT;
    rule.feature = "purchases", rule.weight = 3;
    rule._at_least_case = MERX__V1__TAG_RULE___AT_LEAST_AT_LEAST, rule.at_least = 0.5;
    q.name = "regular", q.rules = rules, q.n_rules = 1, q.bias = -1.5;
    for (int version = 1; version <= 2; version++) {
        Merx__V1__TagDefinition *d = call(&f, "DefineTag", &q.base, &merx__v1__tag_definition__descriptor);
        CHECK_MSG(d && d->version == version && d->enter == 0.6 && d->exit == 0.4 && d->ttl_days == 30, "%s", st.text);
        FREE(d);
    }
    Merx__V1__ProfileAnswer *p = get(&f, "u0", 0);
    const Merx__V1__Tag *t = tag_of(p ? p->profile : NULL, "regular");
    CHECK(t && t->version == 2 && t->state == MERX__V1__TAG_STATE__TAG_ACTIVE && t->n_evidence == 1 && t->evidence[0]->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_RULE);
    bool told = false;
    for (size_t i = 0; p && i < p->profile->n_history; i++) told |= !strcmp(p->profile->history[i]->tag, "regular") && p->profile->history[i]->in;
    CHECK(told);
    FREE(p);
    const struct { const char *name, *feature; double enter, weight, limit; const char *error; } bad[] = {
        {"", "social", 0, 1, 0.5, "name"}, {"a b", "social", 0, 1, 0.5, "name"}, {"x", "wealth", 0, 1, 0.5, "wealth"},
        {"x", "social", 1.5, 1, 0.5, "enter"}, {"x", "social", 0, 1000, 0.5, "weight"}, {"x", "social", 0, 1, (double)NAN, "limit"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        q.name = (char *)(uintptr_t)bad[i].name, rule.feature = (char *)(uintptr_t)bad[i].feature;
        q.enter = bad[i].enter, rule.weight = bad[i].weight, rule.at_least = bad[i].limit;
        Merx__V1__TagDefinition *d = call(&f, "DefineTag", &q.base, &merx__v1__tag_definition__descriptor);
        CHECK_MSG(!d && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, bad[i].error), "%zu: %s", i, st.text);
        FREE(d);
    }
    fixture_close(&f);
    if (!fixture_open(&f, false)) return;
    Merx__V1__ListTagsRequest lq = MERX__V1__LIST_TAGS_REQUEST__INIT;
    Merx__V1__ListTagsResponse *l = call(&f, "ListTags", &lq.base, &merx__v1__list_tags_response__descriptor);
    CHECK(l && l->n_tags == 4);
    FREE(l);
    p = get(&f, "u0", 0);
    CHECK(p && p->profile->n_history && tag_of(p->profile, "regular")->state == MERX__V1__TAG_STATE__TAG_ACTIVE);
    FREE(p);
    fixture_close(&f);
    fresh_folder();
}

static void sentiment(void)
{
    fixture f;
    fresh_folder();
    if (!fixture_open(&f, true)) return;
    char *texts[] = {"w5 w6 w7", "w90 w91"};
    Merx__V1__AnalyzeSentimentRequest q = MERX__V1__ANALYZE_SENTIMENT_REQUEST__INIT;
    q.texts = texts, q.n_texts = 2;
    for (int words = 0; words < 2; words++) {
        q.explain = words;
        Merx__V1__AnalyzeSentimentResponse *r = call(&f, "AnalyzeSentiment", &q.base, &merx__v1__analyze_sentiment_response__descriptor);
        CHECK_MSG(r && r->n_results == 2 && r->n_labels == 3 && !strcmp(r->model, "mood"), "%s", st.text);
        for (size_t i = 0; r && i < r->n_results; i++) {
            const Merx__V1__Sentiment *s = r->results[i];
            double sum = s->base_score;
            for (size_t k = 0; k < s->n_tokens; k++) sum += s->tokens[k]->weight;
            CHECK(!s->status && s->n_probabilities == 3 && fabs(s->polarity - (double)(s->probabilities[2] - s->probabilities[0])) < 1e-6);
            CHECK((int)s->n_tokens == (words ? i ? 2 : 3 : 0));
            if (words) CHECK_MSG(fabs(sum - s->score) <= 1e-3, "%g, score %g", sum, s->score);
            if (words) CHECK_STR(s->tokens[0]->text, i ? "w90" : "w5");
        }
        FREE(r);
    }
    q.n_texts = 0;
    Merx__V1__AnalyzeSentimentResponse *r = call(&f, "AnalyzeSentiment", &q.base, &merx__v1__analyze_sentiment_response__descriptor);
    CHECK(!r && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "texts"));
    fixture_close(&f);
    fresh_folder();
}

/* ---- kill -9 --------------------------------------------------------------------------- */

typedef struct waiting { mx_profiles_op op; atomic_bool over; } waiting;

static void over(mx_profiles_op *op)
{
    atomic_store(&((waiting *)op)->over, true);
}

static void carry_out(mx_profiles *p, waiting *w, mx_profiles_run *run, const ProtobufCMessage *q)
{
    *w = (waiting){.op = {.run = run, .done = over, .request = q}};
    mx_profiles_submit(p, &w->op);
    while (!atomic_load(&w->over)) usleep(50);
}

/* Puts until it is killed; tells through the pipe what was acknowledged. */
static void storm(int fd, int round)
{
    mx_profiles *p;
    mx_error err = {0};
    if (mx_profiles_open(&p, folder, &(mx_profiles_options){0}, &err)) _exit(1);
    for (int i = 0;; i++) {
        char id[40], user[20];
        waiting w;
        snprintf(id, sizeof id, "k%d.%d", round, i);
        snprintf(user, sizeof user, "r%d", i % 50);
        Merx__V1__Event e = event(id, "buy", user, "thing"), *list[] = {&e};
        Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
        q.events = list, q.n_events = 1;
        carry_out(p, &w, mx_profiles_put, &q.base);
        mx_slab_free(w.op.answer);
        if (w.op.st || write(fd, &i, sizeof i) != sizeof i) _exit(1);
    }
}

static void killed_in_a_storm(void)
{
    int told[5] = {0}, i;
    mx_error err = {0};
    mx_profiles *p;
    fresh_folder();
    for (int round = 0; round < 5; round++) {
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t child = fork();
        if (!child) storm(pipes[1], round);
        close(pipes[1]);
        usleep(100000 + (useconds_t)(uniform() * 100000));
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
        while (read(pipes[0], &i, sizeof i) == sizeof i) told[round] = i + 1;
        close(pipes[0]);
    }
    CHECK_OK(mx_profiles_open(&p, folder, &(mx_profiles_options){0}, &err), err);
    int all = 0;
    for (int round = 0; p && round < 5; round++)
        for (i = 0, all += told[round]; i < told[round]; i++) {      /* what was acknowledged is a duplicate now */
            char id[40], user[20];
            waiting w;
            snprintf(id, sizeof id, "k%d.%d", round, i);
            snprintf(user, sizeof user, "r%d", i % 50);
            Merx__V1__Event e = event(id, "buy", user, "thing"), *list[] = {&e};
            Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
            q.events = list, q.n_events = 1;
            carry_out(p, &w, mx_profiles_put, &q.base);
            Merx__V1__EventsAck *r = w.op.answer ? merx__v1__events_ack__unpack(NULL, w.op.size, w.op.answer) : NULL;
            CHECK_MSG(r && r->duplicates == 1, "%s was lost", id);
            FREE(r);
            mx_slab_free(w.op.answer);
        }
    CHECK_MSG(all > 20, "only %d", all);
    const mx_profile_view *v = NULL;
    CHECK_OK(mx_profiles_get(p, "r0", &v, &err), err);
    if (v) mx_profile_release(v);
    mx_profiles_close(p);
    fresh_folder();
}

MX_TESTS(TEST(killed_in_a_storm), TEST(strange_events), TEST(consent_and_masks), TEST(evidence_of_behaviour), TEST(evidence_of_words), TEST(forgotten),
         TEST(watched), TEST(alike_and_recommended), TEST(tags), TEST(sentiment))
