/* test_training_service.c - training jobs through real gRPC: watched to the end, gone on
 * with after a restart, cancelled, served; and what is refused. */
#include "proto/merx.pb-c.h"
#include "server/rpc.h"
#include "server/training.h"
#include "tests/test.h"

#include <ftw.h>
#include <jansson.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#define MODEL MX_SOURCE_DIR "/tests/golden/decoder/llama"
#define DATA  MX_SOURCE_DIR "/tests/golden/train/llama/data.safetensors"
#define BERT  MX_SOURCE_DIR "/tests/golden/encoder/bert"

typedef struct fixture {
    mx_app     app;
    mx_server *server;
    mx_client *client;
} fixture;

static char folder[256];

static int remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

static void fresh_folder(void)
{
    snprintf(folder, sizeof folder, MX_BINARY_DIR "/test_training.%d", (int)getpid());
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static bool fixture_open(fixture *f)
{
    static const char *const roots[] = {MX_SOURCE_DIR "/tests/golden"};
    mx_error err = {0};
    mx_server_options so = mx_server_defaults();
    so.listen = "127.0.0.1:0";
    so.threads = 2;
    memset(f, 0, sizeof *f);
    CHECK_OK(mx_app_open(&f->app, NULL, &err), err);
    CHECK_OK(mx_training_open(&f->app.training, &f->app, folder, roots, 1, &err), err);
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
    CHECK(mx_client_unary(f->client, method, data, len, 60000, &bytes, &n, st) == MX_OK);
    if (!st->code) *(ProtobufCMessage **)reply = protobuf_c_message_unpack(type, NULL, n, bytes);
    free(bytes);
    free(data);
    return st->code;
}

#define JOB(method, q, r, st) call(f, "/merx.v1.Training/" method, &(q).base, &merx__v1__training_job__descriptor, r, st)

/* id of the new job, or "" */
static void submit(fixture *f, const char *kind, const char *model, const char *data, const char *const (*settings)[2], int n, char id[24],
                   mx_rpc_status *st)
{
    Merx__V1__TrainingSetting s[16], *list[16];
    char *files[] = {(char *)(uintptr_t)data};
    Merx__V1__SubmitTrainingRequest q = MERX__V1__SUBMIT_TRAINING_REQUEST__INIT;
    Merx__V1__TrainingJob *r;
    for (int i = 0; i < n; i++) {
        merx__v1__training_setting__init(&s[i]);
        s[i].name = (char *)(uintptr_t)settings[i][0];
        s[i].value = (char *)(uintptr_t)settings[i][1];
        list[i] = &s[i];
    }
    q.kind = (char *)(uintptr_t)kind;
    q.name = "a test";
    q.model = (char *)(uintptr_t)model;
    q.data = files;
    q.n_data = data ? 1 : 0;
    q.settings = list;
    q.n_settings = (size_t)n;
    id[0] = 0;
    JOB("Submit", q, &r, st);
    if (!r) return;
    snprintf(id, 24, "%s", r->id);
    CHECK(r->state == MERX__V1__TRAINING_STATE__TRAINING_QUEUED && r->created_ms > 0);
    merx__v1__training_job__free_unpacked(r, NULL);
}

static Merx__V1__TrainingJob *get(fixture *f, const char *id)
{
    Merx__V1__GetTrainingRequest q = MERX__V1__GET_TRAINING_REQUEST__INIT;
    Merx__V1__TrainingJob *r;
    q.id = (char *)(uintptr_t)id;
    JOB("Get", q, &r, NULL);
    return r;
}

static void nap(void)
{
    nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
}

/* Waits until the job has this state, or has ended; the step it had. */
static int64_t wait_for(fixture *f, const char *id, Merx__V1__TrainingState state, int64_t step)
{
    for (int i = 0; i < 6000; i++, nap()) {
        Merx__V1__TrainingJob *r = get(f, id);
        if (!r) break;
        bool there = r->state == state && r->step >= step, over = r->state >= MERX__V1__TRAINING_STATE__TRAINING_DONE;
        int64_t at = r->step;
        if (over && !there) CHECK_MSG(false, "%s ended as %d: %s", id, (int)r->state, r->message);
        merx__v1__training_job__free_unpacked(r, NULL);
        if (there) return at;
        if (over) return -1;
    }
    CHECK_MSG(false, "%s does not come to state %d", id, (int)state);
    return -1;
}

static const char *const ten[][2] = {{"steps", "10"}, {"batch", "3"}, {"lr", "1e-2"}, {"warmup", "3"}, {"schedule", "constant"}, {"save-every", "4"}};

static int watch(fixture *f, const char *id, int64_t from, double losses[64], Merx__V1__TrainingState *end)
{
    Merx__V1__WatchTrainingRequest q = MERX__V1__WATCH_TRAINING_REQUEST__INIT;
    mx_client_call *c;
    mx_rpc_status st;
    const uint8_t *bytes;
    uint8_t data[64];
    size_t len;
    int n = 0;
    q.id = (char *)(uintptr_t)id;
    q.from_step = from;
    size_t packed = merx__v1__watch_training_request__pack(&q, data);
    CHECK(mx_client_stream(f->client, &c, "/merx.v1.Training/Watch", data, packed, 60000) == MX_OK);
    while (mx_client_next(c, &bytes, &len)) {
        Merx__V1__TrainingEvent *e = merx__v1__training_event__unpack(NULL, len, bytes);
        if (e && e->job) *end = e->job->state;
        else if (e && n < 64) {
            CHECK(e->step == (from ? from : 1) + n && e->lr > 0 && e->grad_norm > 0);
            losses[n++] = e->loss;
        }
        if (e) merx__v1__training_event__free_unpacked(e, NULL);
    }
    mx_client_finish(c, &st);
    CHECK_MSG(st.code == 0, "%s", st.text);
    mx_client_end(c);
    return n;
}

/* Ten steps in the server are the ten steps that PyTorch makes (tests/test_train.c). */
static void watched_to_the_end_and_served(void)
{
    fixture f;
    char id[24];
    double losses[64], later[64];
    mx_rpc_status st;
    Merx__V1__TrainingState end = 0;
    fresh_folder();
    if (!fixture_open(&f)) return;
    submit(&f, "lm", MODEL, DATA, ten, 6, id, &st);
    CHECK_MSG(*id, "%s", st.text);
    int n = watch(&f, id, 0, losses, &end);
    CHECK_MSG(n == 10 && end == MERX__V1__TRAINING_STATE__TRAINING_DONE, "%d events, state %d", n, (int)end);
    CHECK(watch(&f, id, 7, later, &end) == 4 && later[0] == losses[6]);
    Merx__V1__LoadModelRequest q = MERX__V1__LOAD_MODEL_REQUEST__INIT;
    Merx__V1__LoadModelResponse *r;
    q.name = "fresh";
    q.source_case = MERX__V1__LOAD_MODEL_REQUEST__SOURCE_TRAINING_JOB;
    q.training_job = id;
    CHECK_MSG(call(&f, "/merx.v1.Models/Load", &q.base, &merx__v1__load_model_response__descriptor, &r, &st) == 0, "%s", st.text);
    if (r) {
        CHECK(strstr(r->path, "checkpoint-00000010") && r->seconds > 0);
        merx__v1__load_model_response__free_unpacked(r, NULL);
    }
    int32_t ids[] = {5, 9, 11};
    Merx__V1__TokenIds in = MERX__V1__TOKEN_IDS__INIT;
    Merx__V1__Sampling s = MERX__V1__SAMPLING__INIT;
    Merx__V1__GenerateRequest g = MERX__V1__GENERATE_REQUEST__INIT;
    Merx__V1__GenerateResponse *text;
    in.n_ids = 3;
    in.ids = ids;
    g.input_case = MERX__V1__GENERATE_REQUEST__INPUT_IDS;
    g.ids = &in;
    g.sampling = &s;
    s.max_tokens = 5;
    s.ignore_eos = true;
    g.model = "fresh";
    CHECK_MSG(call(&f, "/merx.v1.Generation/Generate", &g.base, &merx__v1__generate_response__descriptor, &text, &st) == 0, "%s", st.text);
    CHECK(text && text->n_candidates == 1 && text->candidates[0]->n_ids == 5);
    if (text) merx__v1__generate_response__free_unpacked(text, NULL);
    CHECK_MSG(call(&f, "/merx.v1.Models/Load", &q.base, &merx__v1__load_model_response__descriptor, &r, &st) == 0, "%s", st.text);
    if (r) {                                          /* the name again: its next version */
        CHECK(r->version == 2 && r->replaced == 1);
        merx__v1__load_model_response__free_unpacked(r, NULL);
    }
    fixture_close(&f);
}

static json_t *metrics(const char *id)
{
    char path[400], line[2048];
    json_t *all = json_array();
    snprintf(path, sizeof path, "%s/%s/run/metrics.jsonl", folder, id);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f)) {
        json_t *o = json_loads(line, 0, NULL);
        json_array_append_new(all, json_pack("[O, O]", json_object_get(o, "step"), json_object_get(o, "loss")));
        json_decref(o);
    }
    if (f) fclose(f);
    return all;
}

/* A server that stops in the middle: its successor goes on, and the losses are those of an unbroken run. */
static void gone_on_with_after_a_restart(void)
{
    static const char *const long_run[][2] = {{"steps", "300"}, {"batch", "3"}, {"lr", "1e-3"}, {"save-every", "7"}, {"dropout", "0.1"}};
    fixture f;
    char broken[24], whole[24];
    mx_rpc_status st;
    fresh_folder();
    if (!fixture_open(&f)) return;
    submit(&f, "lm", MODEL, DATA, long_run, 5, broken, &st);
    CHECK_MSG(*broken, "%s", st.text);
    int64_t at = wait_for(&f, broken, MERX__V1__TRAINING_STATE__TRAINING_RUNNING, 20);
    fixture_close(&f);
    CHECK_MSG(at > 0 && at < 300, "stopped at step %lld", (long long)at);
    if (!fixture_open(&f)) return;
    submit(&f, "lm", MODEL, DATA, long_run, 5, whole, &st);
    CHECK(strcmp(broken, whole) < 0);
    wait_for(&f, broken, MERX__V1__TRAINING_STATE__TRAINING_DONE, 300);
    wait_for(&f, whole, MERX__V1__TRAINING_STATE__TRAINING_DONE, 300);
    json_t *a = metrics(broken), *b = metrics(whole);
    CHECK(json_array_size(a) == 300 && json_equal(a, b));
    json_decref(a);
    json_decref(b);
    Merx__V1__ListTrainingRequest q = MERX__V1__LIST_TRAINING_REQUEST__INIT;
    Merx__V1__ListTrainingResponse *r;
    CHECK(call(&f, "/merx.v1.Training/List", &q.base, &merx__v1__list_training_response__descriptor, &r, NULL) == 0);
    CHECK(r && r->n_jobs == 2 && !strcmp(r->jobs[0]->id, broken) && !strcmp(r->jobs[0]->name, "a test"));
    if (r) merx__v1__list_training_response__free_unpacked(r, NULL);
    fixture_close(&f);
}

static void cancelled(void)
{
    static const char *const endless[][2] = {{"steps", "1000000"}, {"batch", "3"}};
    fixture fix, *f = &fix;
    char running[24], waiting[24];
    mx_rpc_status st;
    fresh_folder();
    if (!fixture_open(f)) return;
    submit(f, "lm", MODEL, DATA, endless, 2, running, &st);
    submit(f, "lm", MODEL, DATA, endless, 2, waiting, &st);
    wait_for(f, running, MERX__V1__TRAINING_STATE__TRAINING_RUNNING, 3);
    Merx__V1__CancelTrainingRequest q = MERX__V1__CANCEL_TRAINING_REQUEST__INIT;
    Merx__V1__TrainingJob *r;
    q.id = waiting;
    CHECK(JOB("Cancel", q, &r, NULL) == 0 && r && r->state == MERX__V1__TRAINING_STATE__TRAINING_CANCELLED);
    if (r) merx__v1__training_job__free_unpacked(r, NULL);
    q.id = running;
    CHECK(JOB("Cancel", q, &r, NULL) == 0);
    if (r) merx__v1__training_job__free_unpacked(r, NULL);
    wait_for(f, running, MERX__V1__TRAINING_STATE__TRAINING_CANCELLED, 3);
    char checkpoint[1024];
    mx_error err = {0};
    CHECK_OK(mx_training_checkpoint(f->app.training, running, checkpoint, &err), err);
    fixture_close(f);
    if (!fixture_open(f)) return;                     /* stays cancelled */
    r = get(f, running);
    CHECK(r && r->state == MERX__V1__TRAINING_STATE__TRAINING_CANCELLED);
    if (r) merx__v1__training_job__free_unpacked(r, NULL);
    fixture_close(f);
}

static void an_encoder(void)
{
    static const char *const settings[][2] = {{"task", "classify"}, {"classes", "3"}, {"steps", "6"}, {"batch", "3"}, {"label-names", "bad"},
                                              {"label-names", "fair"}, {"label-names", "good"}};
    fixture f;
    char id[24];
    mx_rpc_status st;
    fresh_folder();
    if (!fixture_open(&f)) return;
    submit(&f, "encoder", BERT, MX_SOURCE_DIR "/tests/golden/train/bert-classify/data.safetensors", settings, 7, id, &st);
    CHECK_MSG(*id, "%s", st.text);
    wait_for(&f, id, MERX__V1__TRAINING_STATE__TRAINING_DONE, 6);
    Merx__V1__LoadModelRequest q = MERX__V1__LOAD_MODEL_REQUEST__INIT;
    Merx__V1__LoadModelResponse *r;
    q.name = "mood";
    q.source_case = MERX__V1__LOAD_MODEL_REQUEST__SOURCE_TRAINING_JOB;
    q.training_job = id;
    CHECK_MSG(call(&f, "/merx.v1.Models/Load", &q.base, &merx__v1__load_model_response__descriptor, &r, &st) == 0, "%s", st.text);
    if (r) merx__v1__load_model_response__free_unpacked(r, NULL);
    char *texts[] = {"w5 w9"};
    Merx__V1__ClassifyRequest cq = MERX__V1__CLASSIFY_REQUEST__INIT;
    Merx__V1__ClassifyResponse *c;
    cq.texts = texts;
    cq.n_texts = 1;
    CHECK(call(&f, "/merx.v1.Embeddings/Classify", &cq.base, &merx__v1__classify_response__descriptor, &c, &st) == 0);
    if (c) {
        CHECK(c->n_labels == 3);
        CHECK_STR(c->labels[1], "fair");
        merx__v1__classify_response__free_unpacked(c, NULL);
    }
    fixture_close(&f);
}

/* A policy: no model, no data; stopped with the server, it goes on. */
static void a_policy(void)
{
    static const char *const settings[][2] = {{"env", "cartpole"}, {"steps", "6000"}, {"episodes", "5"}, {"eval-every", "1000"}, {"hidden", "16"}, {"save-every", "500"}};
    fixture f;
    char id[24], checkpoint[1024];
    mx_rpc_status st;
    mx_error err = {0};
    fresh_folder();
    if (!fixture_open(&f)) return;
    submit(&f, "dqn", "", NULL, settings, 6, id, &st);
    CHECK_MSG(*id, "%s", st.text);
    int64_t at = wait_for(&f, id, MERX__V1__TRAINING_STATE__TRAINING_RUNNING, 1200);
    fixture_close(&f);
    CHECK(at > 0);
    if (!fixture_open(&f)) return;
    wait_for(&f, id, MERX__V1__TRAINING_STATE__TRAINING_DONE, 6000);
    Merx__V1__TrainingJob *r = get(&f, id);
    CHECK(r && r->best_return >= 8 && r->best_return >= r->eval_return);
    if (r) merx__v1__training_job__free_unpacked(r, NULL);
    CHECK_OK(mx_training_checkpoint(f.app.training, id, checkpoint, &err), err);
    CHECK(strstr(checkpoint, "checkpoint-00006000"));
    fixture_close(&f);
}

/* From logged steps, which lie where the server may read: cloned, then pulled, and worth what fitted Q evaluation says. */
static void a_policy_from_data(void)
{
    static const char *const settings[][2] = {{"gamma", "0.9"}, {"clone-steps", "20"}, {"cql-alpha", "0.5"}, {"steps", "60"}, {"batch", "8"}, {"hidden", "8"}};
    fixture f;
    char id[24], steps[400];
    mx_rpc_status st;
    fresh_folder();
    if (!fixture_open(&f)) return;
    snprintf(steps, sizeof steps, "%s/steps.jsonl", folder);
    FILE *file = fopen(steps, "we");
    for (int k = 0; file && k < 40; k++) {
        int good = k % 2;
        fprintf(file, "{\"first\": true, \"state\": [%d, 1], \"mask\": [1, 1], \"action\": %d, \"reward\": %d, \"terminated\": true}\n", k % 4 / 2, good ^ (k % 4 / 2), good);
    }
    if (file) fclose(file);
    submit(&f, "dqn", "", steps, settings, 6, id, &st);
    CHECK_MSG(*id, "%s", st.text);
    CHECK(wait_for(&f, id, MERX__V1__TRAINING_STATE__TRAINING_DONE, 60) == 60);
    Merx__V1__TrainingJob *r = get(&f, id);
    CHECK_MSG(r && r->best_return > 0.4 && r->best_return < 1.6 && r->best_return == r->eval_return, "%g: %s", r ? r->best_return : NAN, r ? r->message : "");
    if (r) merx__v1__training_job__free_unpacked(r, NULL);
    fixture_close(&f);
}

/* A graph network begins fresh, without a model's folder. */
static void a_graph_network(void)
{
    static const char *const settings[][2] = {{"network", "gat"}, {"hidden-size", "8"}, {"heads", "2"}, {"epochs", "7"}, {"eval-every", "3"}, {"dropout", "0.2"}};
    fixture f;
    char id[24];
    mx_rpc_status st;
    fresh_folder();
    if (!fixture_open(&f)) return;
    submit(&f, "gnn", "", MX_SOURCE_DIR "/tests/golden/gnn/gat/data.safetensors", settings, 6, id, &st);
    CHECK_MSG(*id, "%s", st.text);
    CHECK(wait_for(&f, id, MERX__V1__TRAINING_STATE__TRAINING_DONE, 7) == 7);
    fixture_close(&f);
}

static void refused(fixture *f, const char *kind, const char *model, const char *data, const char *name, const char *value, const char *part)
{
    char id[24];
    mx_rpc_status st;
    const char *const one[][2] = {{name ? name : "", value ? value : ""}};
    submit(f, kind, model, data, one, name ? 1 : 0, id, &st);
    CHECK_MSG(st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, part), "%d: %s", st.code, st.text);
}

static void refusals(void)
{
    fixture fix, *f = &fix;
    char id[24];
    mx_rpc_status st;
    fresh_folder();
    if (!fixture_open(f)) return;
    refused(f, "gan", MODEL, DATA, NULL, NULL, "kind");
    refused(f, "dqn", MODEL, NULL, "env", "cartpole", "model");
    refused(f, "dqn", "", NULL, NULL, NULL, "env");
    refused(f, "dqn", "", "/etc/passwd", NULL, NULL, "data");
    refused(f, "dqn", "", NULL, "eval-env", "market:/etc/passwd,choose", "eval-env");
    refused(f, "dqn", "", NULL, "env", "market:/etc/passwd", "env");
    refused(f, "dqn", "", NULL, "env", "market:/etc/passwd,held-out", "env");
    refused(f, "lm", "/etc", DATA, NULL, NULL, "model");
    refused(f, "lm", MODEL, MX_SOURCE_DIR "/tests/golden/../../README.md", NULL, NULL, "data");
    refused(f, "lm", MODEL, "/nowhere/at/all", NULL, NULL, "data");
    refused(f, "lm", "", DATA, NULL, NULL, "model");
    refused(f, "lm", MODEL, DATA, "lr", "fast", "lr");
    refused(f, "lm", MODEL, DATA, "batch", "0", "batch");
    refused(f, "lm", MODEL, DATA, "run", "/tmp", "run");
    refused(f, "lm", MODEL, DATA, "listen", "x", "listen");
    refused(f, "lm", MODEL, DATA, "model", MODEL, "field of its own");
    Merx__V1__GetTrainingRequest q = MERX__V1__GET_TRAINING_REQUEST__INIT;
    Merx__V1__TrainingJob *r;
    q.id = "job-999999";
    CHECK(JOB("Get", q, &r, &st) == MX_RPC_NOT_FOUND && strstr(st.text, "job-999999"));
    /* What only opening the run can see ends the job, in words. */
    static const char *const bad[][2] = {{"length", "5000"}};
    submit(f, "lm", MODEL, DATA, bad, 1, id, &st);
    for (int i = 0; i < 2000; i++, nap()) {
        r = get(f, id);
        bool over = r && r->state == MERX__V1__TRAINING_STATE__TRAINING_FAILED;
        if (over) CHECK_MSG(strstr(r->message, "length"), "%s", r->message);
        if (r) merx__v1__training_job__free_unpacked(r, NULL);
        if (over) break;
        CHECK(i < 1999);
    }
    mx_training *on = f->app.training;
    f->app.training = NULL;
    CHECK(JOB("Get", q, &r, &st) == MX_RPC_FAILED_PRECONDITION && strstr(st.text, "--training-folder"));
    f->app.training = on;
    fixture_close(f);
    fresh_folder();
}

MX_TESTS(TEST(watched_to_the_end_and_served), TEST(gone_on_with_after_a_restart), TEST(cancelled), TEST(an_encoder), TEST(a_policy), TEST(a_policy_from_data), TEST(a_graph_network), TEST(refusals))
