/* test_experiments.c - choices and outcomes through real gRPC: what is acknowledged is
 * there after a restart, outcomes count once, and the log gives the same bits again. */
#include "proto/merx.pb-c.h"
#include "server/experiments.h"
#include "server/rpc.h"
#include "tests/test.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct fixture {
    mx_app     app;
    mx_server *server;
    mx_client *client;
} fixture;

static char file[256];
static uint64_t state = 4711;

static double uniform(void)
{
    return (double)(test_random(&state) >> 11) * 0x1p-53;
}

static void fresh_file(void)
{
    static const char *const tails[] = {"", "-wal", "-shm"};
    char path[300];
    snprintf(file, sizeof file, MX_BINARY_DIR "/test_experiments.%d.db", (int)getpid());
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", file, tails[i]);
        unlink(path);
    }
}

static bool fixture_open(fixture *f)
{
    mx_error err = {0};
    mx_server_options so = mx_server_defaults();
    so.listen = "127.0.0.1:0";
    so.threads = 2;
    memset(f, 0, sizeof *f);
    CHECK_OK(mx_app_open(&f->app, NULL, &err), err);
    CHECK_OK(mx_experiments_open(&f->app.experiments, file, &err), err);
    CHECK_OK(mx_server_open(&f->server, &f->app, &so, &err), err);
    atomic_store(&f->app.state, MX_APP_SERVING);
    if (f->server) CHECK_OK(mx_client_open(&f->client, mx_server_address(f->server), NULL, &err), err);
    return f->client != NULL && f->app.experiments != NULL;
}

static void fixture_close(fixture *f)
{
    mx_client_close(f->client);
    mx_server_close(f->server);
    mx_app_close(&f->app, 0);
}

static int call(fixture *f, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type, void *reply, mx_rpc_status *st)
{
    char path[100];
    size_t len = protobuf_c_message_get_packed_size(q), n = 0;
    uint8_t *data = malloc(len + 1), *bytes = NULL;
    mx_rpc_status own;
    snprintf(path, sizeof path, "/merx.v1.Experiments/%s", method);
    protobuf_c_message_pack(q, data);
    *(ProtobufCMessage **)reply = NULL;
    if (!st) st = &own;
    *st = (mx_rpc_status){0};
    CHECK(mx_client_unary(f->client, path, data, len, 20000, &bytes, &n, st) == MX_OK);
    if (!st->code) *(ProtobufCMessage **)reply = protobuf_c_message_unpack(type, NULL, n, bytes);
    free(bytes);
    free(data);
    return st->code;
}

static char *three[] = {"plain", "warm", "urgent"};

static Merx__V1__CreateExperimentRequest creation(const char *id)
{
    Merx__V1__CreateExperimentRequest q = MERX__V1__CREATE_EXPERIMENT_REQUEST__INIT;
    q.id = (char *)(uintptr_t)id;
    q.arms = three;
    q.n_arms = 3;
    q.seed = 5;
    return q;
}

static int create(fixture *f, const Merx__V1__CreateExperimentRequest *q, mx_rpc_status *st)
{
    Merx__V1__Experiment *r;
    int code = call(f, "CreateExperiment", &q->base, &merx__v1__experiment__descriptor, &r, st);
    if (r) {
        CHECK(r->n_arms == q->n_arms && r->version == 0);
        merx__v1__experiment__free_unpacked(r, NULL);
    }
    return code;
}

static Merx__V1__Selection *choose(fixture *f, const char *id, const char *unit, const double *context, size_t n, mx_rpc_status *st)
{
    Merx__V1__SelectRequest q = MERX__V1__SELECT_REQUEST__INIT;
    Merx__V1__Selection *r;
    q.experiment_id = (char *)(uintptr_t)id;
    q.unit_id = (char *)(uintptr_t)unit;
    q.context = (double *)(uintptr_t)context;
    q.n_context = n;
    call(f, "Select", &q.base, &merx__v1__selection__descriptor, &r, st);
    return r;
}

static Merx__V1__ReportOutcomeResponse report(fixture *f, const char *decision, double value, int64_t ts, const char *key)
{
    Merx__V1__Outcome o = MERX__V1__OUTCOME__INIT, *list[] = {&o};
    Merx__V1__ReportOutcomeRequest q = MERX__V1__REPORT_OUTCOME_REQUEST__INIT;
    Merx__V1__ReportOutcomeResponse *r, copy = MERX__V1__REPORT_OUTCOME_RESPONSE__INIT;
    o.decision_id = (char *)(uintptr_t)decision;
    o.value = value;
    o.ts_ms = ts;
    o.key = (char *)(uintptr_t)key;
    q.outcomes = list;
    q.n_outcomes = 1;
    CHECK(call(f, "ReportOutcome", &q.base, &merx__v1__report_outcome_response__descriptor, &r, NULL) == 0);
    if (!r) return copy;
    copy.accepted = r->accepted, copy.duplicate = r->duplicate, copy.late = r->late, copy.unknown = r->unknown, copy.wrong = r->wrong;
    merx__v1__report_outcome_response__free_unpacked(r, NULL);
    return copy;
}

static Merx__V1__Experiment *view(fixture *f, const char *id)
{
    Merx__V1__GetExperimentRequest q = MERX__V1__GET_EXPERIMENT_REQUEST__INIT;
    Merx__V1__Experiment *r;
    q.id = (char *)(uintptr_t)id;
    call(f, "GetExperiment", &q.base, &merx__v1__experiment__descriptor, &r, NULL);
    return r;
}

/* The best arm wins the traffic; the figures say so; a restart changes nothing; the log replays. */
static void learned_kept_and_replayed(void)
{
    static const double rate[] = {0.1, 0.2, 0.5};
    fixture f;
    mx_rpc_status st;
    mx_error err = {0};
    bool same = false;
    fresh_file();
    if (!fixture_open(&f)) return;
    Merx__V1__CreateExperimentRequest q = creation("copy.style");
    q.floor = 0.06;
    CHECK_MSG(create(&f, &q, &st) == 0, "%s", st.text);
    for (int i = 0; i < 600; i++) {
        char unit[32];
        snprintf(unit, sizeof unit, "user-%d", i);
        Merx__V1__Selection *s = choose(&f, "copy.style", unit, NULL, 0, &st);
        CHECK_MSG(s, "%s", st.text);
        if (!s) break;
        CHECK(s->propensity >= 0.02 - 1e-12 && s->propensity <= 1 && !s->holdout && !s->fixed && s->version == i);
        CHECK_STR(s->arm, three[s->arm_index]);
        CHECK(report(&f, s->decision_id, uniform() < rate[s->arm_index], 0, "").accepted == 1);
        merx__v1__selection__free_unpacked(s, NULL);
    }
    Merx__V1__Experiment *a = view(&f, "copy.style");
    if (a) {
        CHECK(a->version == 600 && a->choices == 600 && a->ratio_p > 1e-4);
        CHECK_MSG(a->arms[2]->share > 0.9 && a->arms[2]->choices > 300, "%.3f, %.0f", a->arms[2]->share, a->arms[2]->choices);
        CHECK(a->arms[2]->always_low < 0.5 && a->arms[2]->always_high > 0.5 && a->arms[0]->always_low < 0.1 && a->arms[0]->low < a->arms[0]->high);
        CHECK(a->arms[0]->choices + a->arms[1]->choices + a->arms[2]->choices == 600);
    }
    CHECK_OK(mx_experiments_replay(f.app.experiments, "copy.style", &same, &err), err);
    CHECK(same);
    fixture_close(&f);
    if (!fixture_open(&f)) return;
    Merx__V1__Experiment *b = view(&f, "copy.style");
    CHECK(a && b && protobuf_c_message_get_packed_size(&a->base) == protobuf_c_message_get_packed_size(&b->base));
    if (a && b) CHECK(a->arms[1]->share == b->arms[1]->share && a->arms[1]->expected == b->arms[1]->expected && a->arms[2]->always_mean == b->arms[2]->always_mean);
    if (a) merx__v1__experiment__free_unpacked(a, NULL);
    if (b) merx__v1__experiment__free_unpacked(b, NULL);
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "already"));
    fixture_close(&f);
    fresh_file();
}

static void outcomes_count_once(void)
{
    fixture f;
    fresh_file();
    if (!fixture_open(&f)) return;
    Merx__V1__CreateExperimentRequest q = creation("once");
    create(&f, &q, NULL);
    Merx__V1__Selection *s = choose(&f, "once", "u", NULL, 0, NULL);
    if (s) {
        CHECK(report(&f, s->decision_id, 1, 0, "").accepted == 1);
        CHECK(report(&f, s->decision_id, 1, 0, "").duplicate == 1);
        CHECK(report(&f, s->decision_id, 0, 0, "second").accepted == 1);
        CHECK(report(&f, s->decision_id, 1.5, 0, "third").wrong == 1);
        CHECK(report(&f, s->decision_id, 1, INT64_C(4000000000000), "late").late == 1);
        CHECK(report(&f, "d999999", 1, 0, "").unknown == 1);
        CHECK(report(&f, "nonsense", 1, 0, "").unknown == 1);
        Merx__V1__Experiment *e = view(&f, "once");
        CHECK(e && e->version == 2 && e->arms[s->arm_index]->outcomes == 2);
        if (e) merx__v1__experiment__free_unpacked(e, NULL);
        merx__v1__selection__free_unpacked(s, NULL);
    }
    fixture_close(&f);
    fresh_file();
}

static void sticky_holdout_paused_promoted(void)
{
    fixture f;
    int held = 0, kept = 0;
    fresh_file();
    if (!fixture_open(&f)) return;
    Merx__V1__CreateExperimentRequest q = creation("s");
    q.sticky = true;
    q.holdout = 0.25;
    create(&f, &q, NULL);
    for (int i = 0; i < 200; i++) {
        char unit[32];
        snprintf(unit, sizeof unit, "u%d", i);
        Merx__V1__Selection *a = choose(&f, "s", unit, NULL, 0, NULL), *b = choose(&f, "s", unit, NULL, 0, NULL);
        if (!a || !b) return;
        CHECK(a->arm_index == b->arm_index && a->propensity == b->propensity && strcmp(a->decision_id, b->decision_id));
        CHECK(a->holdout == b->holdout && b->sticky == !b->holdout && !a->sticky);
        if (a->holdout) CHECK(a->arm_index == 0 && a->propensity == 1 && report(&f, a->decision_id, 1, 0, "").accepted == 1);
        held += a->holdout;
        kept += !a->holdout;
        merx__v1__selection__free_unpacked(a, NULL);
        merx__v1__selection__free_unpacked(b, NULL);
    }
    CHECK_MSG(held > 30 && held < 70, "%d held out", held);
    Merx__V1__Experiment *e = view(&f, "s");
    CHECK(e && e->version == 0 && e->choices == kept);        /* the held out teach nothing */
    if (e) merx__v1__experiment__free_unpacked(e, NULL);
    Merx__V1__PauseRequest pause = MERX__V1__PAUSE_REQUEST__INIT;
    pause.id = "s";
    pause.paused = true;
    CHECK(call(&f, "Pause", &pause.base, &merx__v1__experiment__descriptor, &e, NULL) == 0 && e && e->paused);
    if (e) merx__v1__experiment__free_unpacked(e, NULL);
    Merx__V1__Selection *s = choose(&f, "s", "new", NULL, 0, NULL);
    CHECK(s && s->fixed && s->arm_index == 0 && s->propensity == 1);
    if (s) merx__v1__selection__free_unpacked(s, NULL);
    Merx__V1__PromoteRequest promote = MERX__V1__PROMOTE_REQUEST__INIT;
    promote.id = "s";
    promote.arm = "urgent";
    CHECK(call(&f, "Promote", &promote.base, &merx__v1__experiment__descriptor, &e, NULL) == 0 && e && !strcmp(e->promoted, "urgent"));
    if (e) merx__v1__experiment__free_unpacked(e, NULL);
    s = choose(&f, "s", "newer", NULL, 0, NULL);
    CHECK(s && s->fixed && s->arm_index == 2);
    if (s) merx__v1__selection__free_unpacked(s, NULL);
    promote.arm = "nobody";
    mx_rpc_status st;
    CHECK(call(&f, "Promote", &promote.base, &merx__v1__experiment__descriptor, &e, &st) == MX_RPC_NOT_FOUND && strstr(st.text, "nobody"));
    promote.clear = true;
    CHECK(call(&f, "Promote", &promote.base, &merx__v1__experiment__descriptor, &e, &st) == 0 && e && !*e->promoted);
    if (e) merx__v1__experiment__free_unpacked(e, NULL);
    fixture_close(&f);
    fresh_file();
}

static void contexts(void)
{
    fixture f;
    mx_rpc_status st;
    mx_error err = {0};
    bool same = false;
    double right = 0;
    fresh_file();
    if (!fixture_open(&f)) return;
    Merx__V1__CreateExperimentRequest q = creation("ctx");
    q.policy = "linear_thompson";
    q.dim = 2;
    q.n_arms = 2;
    q._v_case = MERX__V1__CREATE_EXPERIMENT_REQUEST___V_V;
    q.v = 0.2;
    CHECK_MSG(create(&f, &q, &st) == 0, "%s", st.text);
    for (int i = 0; i < 300; i++) {
        double x[2] = {uniform() * 2 - 1, 1};
        Merx__V1__Selection *s = choose(&f, "ctx", "u", x, 2, &st);
        if (!s) break;
        if (i >= 150) right += (s->arm_index == 1) == (x[0] > 0);
        report(&f, s->decision_id, (s->arm_index ? x[0] : -x[0]) + 0.05 * uniform(), 0, "");
        merx__v1__selection__free_unpacked(s, NULL);
    }
    CHECK_MSG(right > 130, "%.0f of 150", right);
    CHECK_OK(mx_experiments_replay(f.app.experiments, "ctx", &same, &err), err);
    CHECK(same);
    double one = 1, bad[2] = {NAN, 1};
    CHECK(!choose(&f, "ctx", "u", &one, 1, &st) && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "context"));
    CHECK(!choose(&f, "ctx", "u", bad, 2, &st) && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "context[0]"));
    fixture_close(&f);
    fresh_file();
}

static void refusals(void)
{
    fixture f;
    mx_rpc_status st;
    char *same[] = {"a", "a"};
    fresh_file();
    if (!fixture_open(&f)) return;
    Merx__V1__CreateExperimentRequest q = creation("a b");
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "id"));
    q = creation("x");
    q.n_arms = 1;
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "arms"));
    q = creation("x");
    q.arms = same;
    q.n_arms = 2;
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "arms[1]"));
    q = creation("x");
    q.policy = "luck";
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "luck"));
    q = creation("x");
    q.holdout = 1;
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "holdout"));
    q = creation("x");
    q.discount = 2;
    CHECK(create(&f, &q, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "discount"));
    CHECK(!choose(&f, "nobody", "u", NULL, 0, &st) && st.code == MX_RPC_NOT_FOUND);
    q = creation("x");
    create(&f, &q, NULL);
    CHECK(!choose(&f, "x", "", NULL, 0, &st) && st.code == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "unit_id"));
    mx_experiments *on = f.app.experiments;
    f.app.experiments = NULL;
    CHECK(!choose(&f, "x", "u", NULL, 0, &st) && st.code == MX_RPC_FAILED_PRECONDITION && strstr(st.text, "--experiments"));
    f.app.experiments = on;
    fixture_close(&f);
    fresh_file();
}

/* ---- kill -9 in a storm: every acknowledged decision and outcome is there, once ---------------- */

static void submitted(mx_experiment_op *op)
{
    __atomic_store_n(&op->n_outcomes, -1, __ATOMIC_RELEASE);
}

static void wait_op(mx_experiments *x, mx_experiment_op *op)
{
    op->done = submitted;
    mx_experiments_submit(x, op);
    while (__atomic_load_n(&op->n_outcomes, __ATOMIC_ACQUIRE) != -1) usleep(20);
}

/* Writes "id\n" to the pipe after each acknowledged decision with its outcome. */
static void storm(int out)
{
    mx_experiments *x = NULL;
    mx_error err = {0};
    if (mx_experiments_open(&x, file, &err)) _exit(3);
    for (;;) {
        mx_experiment_op op = {.kind = MX_EXPERIMENT_SELECT, .id = "k", .unit = "u"};
        wait_op(x, &op);
        if (op.st) _exit(4);
        mx_outcome o = {op.selection.decision, 0, op.selection.decision % 3 == 0, ""};
        mx_experiment_op report_op = {.kind = MX_EXPERIMENT_OUTCOMES, .outcomes = &o, .n_outcomes = 1};
        wait_op(x, &report_op);
        if (report_op.st || report_op.counts.accepted != 1) _exit(5);
        if (write(out, &o.decision, sizeof o.decision) != sizeof o.decision) _exit(6);
    }
}

static void killed_in_a_storm(void)
{
    mx_experiments *x = NULL;
    mx_error err = {0};
    int64_t acknowledged = 0, id, last = 0;
    fresh_file();
    CHECK_OK(mx_experiments_open(&x, file, &err), err);
    if (!x) return;
    mx_experiment_spec spec = {.id = "k", .bandit = mx_bandit_defaults(), .window_days = 30};
    spec.arm = calloc(2, sizeof *spec.arm);
    strcpy(spec.arm[0], "a"), strcpy(spec.arm[1], "b");
    mx_experiment_op op = {.kind = MX_EXPERIMENT_CREATE, .spec = &spec};
    wait_op(x, &op);
    CHECK_MSG(!op.st, "%s", op.err.text);
    mx_experiment_view_close(&op.view);
    mx_experiments_close(x);
    for (int round = 0; round < 5; round++) {
        int pipes[2];
        CHECK(pipe(pipes) == 0);
        pid_t child = fork();
        if (!child) storm(pipes[1]);
        close(pipes[1]);
        for (int n = 0; read(pipes[0], &id, sizeof id) == sizeof id; n++) {
            if (n == 5) {                               /* the storm is on */
                usleep((useconds_t)(uniform() * 60000));
                kill(child, SIGKILL);
            }
            CHECK(id > last);
            last = id;
            acknowledged++;
        }
        close(pipes[0]);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    CHECK_OK(mx_experiments_open(&x, file, &err), err);
    bool same = false;
    CHECK_OK(mx_experiments_replay(x, "k", &same, &err), err);
    CHECK(same);
    op = (mx_experiment_op){.kind = MX_EXPERIMENT_VIEW, .id = "k"};
    wait_op(x, &op);
    /* a kill may come between the commit and the word of it: at most one of a round more than was told */
    CHECK_MSG(op.view.version >= acknowledged && op.view.version <= acknowledged + 5, "%lld told, %lld there", (long long)acknowledged, (long long)op.view.version);
    CHECK_MSG(acknowledged > 20, "only %lld", (long long)acknowledged);
    mx_outcome o = {last, 0, 1, ""};
    mx_experiment_op again = {.kind = MX_EXPERIMENT_OUTCOMES, .outcomes = &o, .n_outcomes = 1};
    wait_op(x, &again);
    CHECK(again.counts.duplicate == 1);
    mx_experiment_view_close(&op.view);
    mx_experiments_close(x);
    fresh_file();
}

MX_TESTS(TEST(killed_in_a_storm), TEST(learned_kept_and_replayed), TEST(outcomes_count_once), TEST(sticky_holdout_paused_promoted), TEST(contexts), TEST(refusals))
