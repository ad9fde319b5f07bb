/* test_turns.c - where a call's time went, told for each kind of request; and callers that go while theirs waits. */
#include "models/checkpoint.h"
#include "server/spans.h"
#include "tests/house.h"

/* The value of a series, of a method: -1 when there is none. */

static double series(house *h, const char *family, const char *method)
{
    char name[200];
    size_t n = 0;
    double value = -1;
    char *text = mx_metrics_render(h->app.metrics, &n), *at;
    snprintf(name, sizeof name, "\n%s{method=\"%s\"} ", family, method + 1);
    if (text && (at = strstr(text, name)) != NULL) value = atof(at + strlen(name));
    free(text);
    return value;
}

/* A call is accounted for once its end is on its way, which the client may see first. */
static void told(house *h, const char *method, double calls)
{
    uint64_t began = now_ms();
    while (series(h, "merx_rpc_beside_turn_seconds_count", method) < calls && now_ms() - began < 5000) nap_ms(2);      /* the last of them */
    double all = series(h, "merx_rpc_duration_seconds_sum", method), queue = series(h, "merx_rpc_queue_seconds_sum", method), turn = series(h, "merx_rpc_turn_seconds_sum", method),
           beside = series(h, "merx_rpc_beside_turn_seconds_sum", method);
    CHECK_MSG(series(h, "merx_rpc_turn_seconds_count", method) == calls, "%s tells of no turn", method);
    CHECK_MSG(queue > 0 && turn > 0 && queue <= beside && turn + beside <= all * (1 + 1e-9), "%s: %g s in all, %g before the turn, %g in it, %g beside", method, all, queue, turn, beside);
}

static void ask(house *h, const char *method, const void *q, const ProtobufCMessageDescriptor *type, void *reply)
{
    mx_rpc_status st;
    CHECK_MSG(call(h->client, method, q, type, reply, &st) == MX_RPC_OK, "%s: %s", method, st.text);
}

static void put_item(house *h)
{
    Merx__V1__PriceItem item = MERX__V1__PRICE_ITEM__INIT, *items = &item;
    Merx__V1__PutItemsRequest q = MERX__V1__PUT_ITEMS_REQUEST__INIT;
    item.sku = "shoe", item.currency = "EUR", item.cost = 600, item.reference_price = 1000;
    q.items = &items, q.n_items = 1;
    ask(h, "/merx.v1.Pricing/PutItems", &q, &merx__v1__put_items_response__descriptor, NULL);
    told(h, "/merx.v1.Pricing/PutItems", 1);
}

static void texts_tell(house *h)
{
    char *texts[] = {"light running shoes", "a b c"};
    Merx__V1__EmbedRequest e = MERX__V1__EMBED_REQUEST__INIT;
    Merx__V1__ClassifyRequest c = MERX__V1__CLASSIFY_REQUEST__INIT;
    Merx__V1__EmbedResponse *er = NULL;
    Merx__V1__ClassifyResponse *cr = NULL;
    e.texts = c.texts = texts;
    e.n_texts = c.n_texts = 2;
    ask(h, "/merx.v1.Embeddings/Embed", &e, &merx__v1__embed_response__descriptor, &er);
    CHECK(er && er->queue_ms > 0 && er->turn_ms > 0 && er->queue_ms + er->turn_ms <= er->total_ms);
    told(h, "/merx.v1.Embeddings/Embed", 1);
    ask(h, "/merx.v1.Embeddings/Classify", &c, &merx__v1__classify_response__descriptor, &cr);
    CHECK(cr && cr->queue_ms > 0 && cr->turn_ms > 0 && cr->queue_ms + cr->turn_ms <= cr->total_ms);
    told(h, "/merx.v1.Embeddings/Classify", 1);
    Merx__V1__AnalyzeSentimentRequest mood = MERX__V1__ANALYZE_SENTIMENT_REQUEST__INIT;
    mood.texts = texts, mood.n_texts = 2;
    ask(h, "/merx.v1.Profiling/AnalyzeSentiment", &mood, &merx__v1__analyze_sentiment_response__descriptor, NULL);
    told(h, "/merx.v1.Profiling/AnalyzeSentiment", 1);
    if (er) merx__v1__embed_response__free_unpacked(er, NULL);
    if (cr) merx__v1__classify_response__free_unpacked(cr, NULL);
}

static void generations_tell(house *h)
{
    Merx__V1__GenerateRequest q, *two[2] = {&q, &q};
    Merx__V1__GenerateBatchRequest batch = MERX__V1__GENERATE_BATCH_REQUEST__INIT;
    Merx__V1__Sampling s;
    house_request(&q, &s, 8);
    ask(h, RPC("Generate"), &q, &merx__v1__generate_response__descriptor, NULL);
    told(h, RPC("Generate"), 1);
    batch.requests = two, batch.n_requests = 2;
    ask(h, RPC("GenerateBatch"), &batch, &merx__v1__generate_batch_response__descriptor, NULL);
    told(h, RPC("GenerateBatch"), 1);
}

static void decisions_tell(house *h)
{
    char *arms[] = {"plain", "warm"};
    Merx__V1__QuoteRequest quote = MERX__V1__QUOTE_REQUEST__INIT;
    Merx__V1__CreateExperimentRequest x = MERX__V1__CREATE_EXPERIMENT_REQUEST__INIT;
    Merx__V1__SelectRequest select = MERX__V1__SELECT_REQUEST__INIT;
    put_item(h);
    quote.sku = "shoe";
    for (int i = 1; i <= 3; i++) {
        ask(h, "/merx.v1.Pricing/Quote", &quote, &merx__v1__quote_response__descriptor, NULL);
        told(h, "/merx.v1.Pricing/Quote", i);
    }
    x.id = "words", x.arms = arms, x.n_arms = 2;
    ask(h, "/merx.v1.Experiments/CreateExperiment", &x, &merx__v1__experiment__descriptor, NULL);
    told(h, "/merx.v1.Experiments/CreateExperiment", 1);
    select.experiment_id = "words", select.unit_id = "anna";
    ask(h, "/merx.v1.Experiments/Select", &select, &merx__v1__selection__descriptor, NULL);
    told(h, "/merx.v1.Experiments/Select", 1);
}

static void profiles_tell(house *h)
{
    Merx__V1__Event event = MERX__V1__EVENT__INIT, *events = &event;
    Merx__V1__PutEventsRequest put = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    Merx__V1__SimilarUsersRequest alike = MERX__V1__SIMILAR_USERS_REQUEST__INIT;
    Merx__V1__ListTagsRequest tags = MERX__V1__LIST_TAGS_REQUEST__INIT;
    event.event_id = "1", event.type = "view", event.user = "anna", event.object = "shoe";
    put.events = &events, put.n_events = 1;
    ask(h, "/merx.v1.Profiling/PutEvents", &put, &merx__v1__events_ack__descriptor, NULL);
    ask(h, "/merx.v1.Profiling/ListTags", &tags, &merx__v1__list_tags_response__descriptor, NULL);
    told(h, "/merx.v1.Profiling/ListTags", 1);
    alike.user = "anna";
    ask(h, "/merx.v1.Profiling/SimilarUsers", &alike, &merx__v1__similar_users_response__descriptor, NULL);
    told(h, "/merx.v1.Profiling/SimilarUsers", 1);
}

/* How often a word stands in a file. */
static int count(const char *file, const char *word)
{
    char *text = NULL;
    size_t len = 0;
    mx_error err;
    int n = 0;
    if (mx_read_file(file, 1 << 24, &text, &len, &err)) return -1;
    for (const char *at = text; (at = strstr(at, word)) != NULL; at++) n++;
    free(text);
    return n;
}

static void every_kind_tells_of_its_turn(void)
{
    static const char *const models[] = {"tiny=" HOUSE_MODEL("llama"), "bert=" HOUSE_BERT, NULL};
    char file[300];
    house h;
    mx_error err = {0};
    mx_spans *spans;
    snprintf(file, sizeof file, MX_BINARY_DIR "/test_turns.%d", (int)getpid());
    CHECK_OK(mx_spans_open(&spans, file, 1, &err), err);
    if (!spans || !house_open(&h, &(house_options){.models = models, .stores = true, .spans = spans})) return;
    generations_tell(&h);
    texts_tell(&h);
    decisions_tell(&h);
    profiles_tell(&h);
    house_close(&h);
    mx_spans_close(spans);
    int calls = count(file, "\"kind\":2"), turns = count(file, "\"name\":\"turn\"");
    CHECK_MSG(calls == 14 && turns == calls - 1, "%d spans of calls, %d of turns", calls, turns);      /* PutEvents is a stream: its answers have many */
    unlink(file);
}

/* ---- callers that go ------------------------------------------------------------------------------ */

typedef struct gate {
    pthread_mutex_t lock;
    pthread_cond_t  news;
    bool            in, open, out;
} gate;
static gate shut;

static void gate_step(gate *g, bool *mine)
{
    pthread_mutex_lock(&g->lock);
    *mine = true;
    pthread_cond_broadcast(&g->news);
    pthread_mutex_unlock(&g->lock);
}

static void gate_wait(gate *g, const bool *until)
{
    pthread_mutex_lock(&g->lock);
    while (!*until) pthread_cond_wait(&g->news, &g->lock);
    pthread_mutex_unlock(&g->lock);
}

static mx_status hold_prices(mx_pricing *p, mx_pricing_op *op)
{
    (void)p, (void)op;
    gate_step(&shut, &shut.in);
    gate_wait(&shut, &shut.open);
    return MX_OK;
}

static void prices_held(mx_pricing_op *op)
{
    (void)op;
    gate_step(&shut, &shut.out);
}

static mx_status hold_profiles(mx_profiles *p, mx_profiles_op *op)
{
    (void)p, (void)op;
    gate_step(&shut, &shut.in);
    gate_wait(&shut, &shut.open);
    return MX_OK;
}

static void profiles_held(mx_profiles_op *op)
{
    (void)op;
    gate_step(&shut, &shut.out);
}

static uint64_t ended(const house *h, const char *method, int code)
{
    const char *of;
    int with;
    uint64_t n;
    for (int i = 0; mx_server_ended(h->server, i, &of, &with, &n); i++)
        if (!strcmp(of, method + 1) && with == code) return n;
    return 0;
}

/* Its deadline passes while it waits; what it waits for comes later, and the server goes on. */
static void gives_up(house *h, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type)
{
    mx_rpc_status st;
    packed p = pack(q);
    gate_wait(&shut, &shut.in);
    CHECK(call_bytes(h->client, method, p.data, p.len, 50, type, NULL, &st) == MX_RPC_DEADLINE_EXCEEDED);
    nap_ms(20);                              /* the server hears of it by itself */
    gate_step(&shut, &shut.open);
    gate_wait(&shut, &shut.out);
    CHECK_MSG(call_bytes(h->client, method, p.data, p.len, 5000, type, NULL, &st) == MX_RPC_OK, "%s: %s", method, st.text);
    uint64_t began = now_ms();
    while (mx_server_inflight(h->server) && now_ms() - began < 5000) nap_ms(2);
    CHECK_MSG(ended(h, method, MX_RPC_CANCELLED) == 1 && ended(h, method, MX_RPC_OK) == 1 && !mx_server_inflight(h->server), "%s", method);
    free(p.data);
}

static void callers_go_while_theirs_waits(void)
{
    house h;
    Merx__V1__QuoteRequest quote = MERX__V1__QUOTE_REQUEST__INIT;
    Merx__V1__ListTagsRequest tags = MERX__V1__LIST_TAGS_REQUEST__INIT;
    if (!house_open(&h, &(house_options){.stores = true})) return;
    put_item(&h);
    quote.sku = "shoe";
    mx_pricing_op prices = {.run = hold_prices, .done = prices_held};
    shut = (gate){.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};
    mx_pricing_submit(h.app.pricing, &prices);
    gives_up(&h, "/merx.v1.Pricing/Quote", &quote.base, &merx__v1__quote_response__descriptor);
    mx_profiles_op profiles = {.run = hold_profiles, .done = profiles_held};
    shut = (gate){.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};
    mx_profiles_submit(h.app.profiles, &profiles);
    gives_up(&h, "/merx.v1.Profiling/ListTags", &tags.base, &merx__v1__list_tags_response__descriptor);
    house_close(&h);
}

/* ---- the trial before anybody asks ---------------------------------------------------------------- */

static double of_model(house *h, const char *family, const char *model)
{
    char name[200];
    size_t n = 0;
    double value = -1;
    char *text = mx_metrics_render(h->app.metrics, &n), *at;
    snprintf(name, sizeof name, "\n%s{model=\"%s\"} ", family, model);
    if (text && (at = strstr(text, name)) != NULL) value = atof(at + strlen(name));
    free(text);
    return value;
}

static void uncounted(house *h, const char *model, const char *encoder)
{
    char lane[100];
    mx_lane_stats s;
    CHECK(of_model(h, "merx_request_success_total", model) == 0 && of_model(h, "merx_generation_tokens_total", model) == 0 && of_model(h, "merx_prompt_tokens_total", model) == 0);
    CHECK(of_model(h, "merx_time_to_first_token_seconds_count", model) == 0);
    snprintf(lane, sizeof lane, "%s.generate", model);
    CHECK(mx_scheduler_stats(h->app.scheduler, lane, &s) && !s.turns && !s.done && !s.rows && !s.busy_ns);
    snprintf(lane, sizeof lane, "%s.embed", encoder);
    CHECK(mx_scheduler_stats(h->app.scheduler, lane, &s) && !s.turns && !s.done && !s.rows && !s.busy_ns);
}

/* That it was made is seen by what it left in the cache of prompts. */
static void models_are_tried_out_and_nothing_is_counted(void)
{
    house h;
    mx_error err = {0};
    mx_loaded out;
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    Merx__V1__GenerateResponse *r = NULL;
    if (!house_open(&h, &(house_options){0})) return;
    h.app.serving = true;                    /* as merx serve has it from the start */
    CHECK_OK(mx_app_load(&h.app, "first=" HOUSE_MODEL("gpt2"), &h.app.defaults, &err), err);
    CHECK_OK(mx_app_load(&h.app, "mood=" HOUSE_BERT, &h.app.defaults, &err), err);
    uncounted(&h, "first", "mood");
    CHECK_OK(h.app.load(&h.app, "second", HOUSE_MODEL("llama"), "", &out, &err), err);
    CHECK_OK(h.app.load(&h.app, "mood2", HOUSE_BERT, "", &out, &err), err);
    uncounted(&h, "second", "mood2");
    house_request(&q, &s, 4);
    int32_t ids[32];
    for (int i = 0; i < 32; i++) ids[i] = i;
    q.ids->ids = ids, q.ids->n_ids = 32;
    q.model = "first";
    ask(&h, RPC("Generate"), &q, &merx__v1__generate_response__descriptor, &r);
    CHECK_MSG(r && r->usage && r->usage->cached_tokens >= 16, "%d tokens were there", r && r->usage ? r->usage->cached_tokens : -1);
    CHECK(of_model(&h, "merx_request_success_total", "first") == 1);
    if (r) merx__v1__generate_response__free_unpacked(r, NULL);
    house_close(&h);
}

MX_TESTS(TEST(models_are_tried_out_and_nothing_is_counted), TEST(every_kind_tells_of_its_turn), TEST(callers_go_while_theirs_waits))
