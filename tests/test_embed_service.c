/* test_embed_service.c - Embeddings.Embed and Classify through real gRPC, on the tiny BERT. */
#include "proto/merx.pb-c.h"
#include "server/rpc.h"
#include "tests/test.h"

typedef struct fixture {
    mx_app     app;
    mx_server *server;
    mx_client *client;
} fixture;

static bool fixture_open(fixture *f)
{
    mx_error err = {0};
    mx_generator_options o = mx_generator_defaults();
    mx_server_options so = mx_server_defaults();
    so.listen = "127.0.0.1:0";
    so.threads = 2;
    *f = (fixture){0};
    CHECK_OK(mx_app_open(&f->app, NULL, &err), err);
    CHECK_OK(mx_app_load(&f->app, "mood=" MX_SOURCE_DIR "/tests/golden/encoder/bert", &o, &err), err);
    CHECK(mx_app_load(&f->app, "mood=" MX_SOURCE_DIR "/tests/golden/encoder/bert", &o, &err) == MX_ERR_ARG);
    CHECK_OK(mx_server_open(&f->server, &f->app, &so, &err), err);
    atomic_store(&f->app.state, MX_APP_SERVING);
    if (f->server) CHECK_OK(mx_client_open(&f->client, mx_server_address(f->server), NULL, &err), err);
    return f->client != NULL;
}

static void fixture_close(fixture *f)
{
    mx_client_close(f->client);
    mx_server_close(f->server);
    mx_app_close(&f->app, 0);
}

static int call(fixture *f, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type, void *reply, mx_rpc_status *st)
{
    size_t len = protobuf_c_message_get_packed_size(q), n = 0;
    uint8_t *data = malloc(len + 1), *bytes = NULL;
    mx_rpc_status own;
    protobuf_c_message_pack(q, data);
    *(ProtobufCMessage **)reply = NULL;
    if (!st) st = &own;
    *st = (mx_rpc_status){0};
    CHECK(mx_client_unary(f->client, method, data, len, 20000, &bytes, &n, st) == MX_OK);
    if (!st->code) *(ProtobufCMessage **)reply = protobuf_c_message_unpack(type, NULL, n, bytes);
    free(bytes);
    free(data);
    return st->code;
}

#define EMBED(q, r, st) call(&f, "/merx.v1.Embeddings/Embed", &(q).base, &merx__v1__embed_response__descriptor, r, st)
#define CLASSIFY(q, r, st) call(&f, "/merx.v1.Embeddings/Classify", &(q).base, &merx__v1__classify_response__descriptor, r, st)

static void many_texts_each_with_its_end(void)
{
    enum { N = 700 };
    static char text[N][64], longest[600];
    char *texts[N];
    fixture f;
    if (!fixture_open(&f)) return;
    for (int i = 0; i < 150; i++) strcat(longest, "w9 ");
    for (int i = 0; i < N; i++) {
        snprintf(text[i], sizeof text[i], "w%d w%d", 5 + i % 100, 6 + i % 7);
        texts[i] = i == 333 ? longest : text[i];
    }
    Merx__V1__EmbedRequest q = MERX__V1__EMBED_REQUEST__INIT;
    Merx__V1__EmbedResponse *r;
    q.texts = texts;
    q.n_texts = N;
    q.request_id = "many";
    CHECK(EMBED(q, &r, NULL) == 0 && r && r->n_embeddings == N);
    for (int i = 0; r && i < N; i++) {
        const Merx__V1__Embedding *e = r->embeddings[i];
        if (i == 333) CHECK(e->status && e->status->code == MX_RPC_INVALID_ARGUMENT && strstr(e->status->message, "152") && !e->n_values);
        else CHECK(!e->status && e->n_values == 32 && e->tokens == 4);
    }
    if (r) {
        CHECK_STR(r->model, "mood");
        CHECK_STR(r->request_id, "many");
        merx__v1__embed_response__free_unpacked(r, NULL);
    }
    /* one text alone has the same bits as among 700 */
    Merx__V1__EmbedResponse *alone, *again;
    q.n_texts = 1;
    CHECK(EMBED(q, &alone, NULL) == 0);
    q.n_texts = N;
    CHECK(EMBED(q, &again, NULL) == 0);
    if (alone && again) CHECK(!memcmp(alone->embeddings[0]->values, again->embeddings[0]->values, 32 * sizeof(float)));
    if (alone) merx__v1__embed_response__free_unpacked(alone, NULL);
    if (again) merx__v1__embed_response__free_unpacked(again, NULL);
    fixture_close(&f);
}

static void classes(void)
{
    fixture f;
    if (!fixture_open(&f)) return;
    char *texts[] = {"w5 w6 w7", "w100", ""};
    Merx__V1__ClassifyRequest q = MERX__V1__CLASSIFY_REQUEST__INIT;
    Merx__V1__ClassifyResponse *r;
    q.texts = texts;
    q.n_texts = 3;
    q.model = "mood";
    CHECK(CLASSIFY(q, &r, NULL) == 0 && r && r->n_results == 3 && r->n_labels == 3);
    for (int i = 0; r && i < 3; i++) {
        const Merx__V1__Classification *c = r->results[i];
        double sum = 0;
        CHECK(!c->status && c->n_probabilities == 3);
        for (size_t k = 0; k < c->n_probabilities; k++) {
            sum += (double)c->probabilities[k];
            CHECK(c->probabilities[k] <= c->probability);
        }
        CHECK(fabs(sum - 1) < 1e-5 && c->probability == c->probabilities[c->class_index]);
        CHECK_STR(c->label, r->labels[c->class_index]);
    }
    if (r) merx__v1__classify_response__free_unpacked(r, NULL);
    fixture_close(&f);
}

static void refusals(void)
{
    fixture f;
    if (!fixture_open(&f)) return;
    char *texts[] = {"w5"};
    mx_rpc_status st;
    Merx__V1__EmbedRequest q = MERX__V1__EMBED_REQUEST__INIT;
    Merx__V1__EmbedResponse *r;
    CHECK(EMBED(q, &r, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "texts"));
    q.texts = texts;
    q.n_texts = 1;
    q.model = "nobody";
    CHECK(EMBED(q, &r, &st) == MX_RPC_NOT_FOUND && strstr(st.text, "nobody"));
    q.model = "";
    q.pooling = (Merx__V1__Pooling)77;
    CHECK(EMBED(q, &r, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "pooling"));
    q.pooling = MERX__V1__POOLING__POOLING_POOLER;
    CHECK(EMBED(q, &r, &st) == 0 && r && r->embeddings[0]->n_values == 32);
    if (r) merx__v1__embed_response__free_unpacked(r, NULL);
    Merx__V1__ListModelsRequest lq = MERX__V1__LIST_MODELS_REQUEST__INIT;
    Merx__V1__ListModelsResponse *lr;
    CHECK(call(&f, "/merx.v1.Generation/ListModels", &lq.base, &merx__v1__list_models_response__descriptor, &lr, &st) == 0);
    CHECK(lr && lr->n_models == 1 && lr->models[0]->dimension == 32 && lr->models[0]->n_labels == 3);
    if (lr) merx__v1__list_models_response__free_unpacked(lr, NULL);
    Merx__V1__GenerateRequest gq = MERX__V1__GENERATE_REQUEST__INIT;
    Merx__V1__GenerateResponse *gr;
    CHECK(call(&f, "/merx.v1.Generation/Generate", &gq.base, &merx__v1__generate_response__descriptor, &gr, &st) == MX_RPC_FAILED_PRECONDITION);
    fixture_close(&f);
}

MX_TESTS(TEST(many_texts_each_with_its_end), TEST(classes), TEST(refusals))
