/* test_patience.c - when a run stops early, which step was its best, and what is taken back. */
#include "models/trainer.h"
#include "tests/test.h"


/* A network of one weight that counts its steps; what its evaluations say is a script. */
typedef struct played {
    mx_params     params;
    const double *loss, *metric;
    int           at;                 /* steps that were learned                   */
} played;

static mx_status run(void *network, mx_stream *s, mx_pass *p, mx_error *err)
{
    played *n = network;
    p->counted = 1, p->extra = 0, p->loss = 1;
    if (p->learn) {
        float one = 1;
        s->dev->ops->upload(s, n->params.grad.base, &one, sizeof one);
        n->at++;
    } else p->loss = n->loss[n->at - 1], p->extra = n->metric[n->at - 1];
    return mx_stream_sync(s, err);
}

static size_t scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn)
{
    (void)network, (void)spans, (void)longest, (void)learn;
    return (size_t)rows * 4 + 4096;
}

static mx_status save(const void *network, const char *folder, mx_error *err)
{
    const played *n = network;
    char path[MX_PATH], text[64];
    snprintf(text, sizeof text, "%d %.9g\n", n->at, (double)*(const float *)n->params.value.base);
    MX_TRY(mx_path_join(path, folder, "weight.txt", err));
    return mx_write_file(path, text, strlen(text), err);
}

static mx_status load(void *network, const char *folder, mx_error *err)
{
    played *n = network;
    char path[MX_PATH], text[64] = "";
    MX_TRY(mx_path_join(path, folder, "weight.txt", err));
    FILE *f = fopen(path, "r");
    if (!f || !fgets(text, sizeof text, f)) text[0] = 0;
    if (f) fclose(f);
    return sscanf(text, "%d %f", &n->at, (float *)n->params.value.base) == 2 ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "%s", path);
}

typedef struct script {
    mx_stop_on stop_on;
    int32_t    patience;
    double     loss[10], metric[10];
    int64_t    last, best;            /* the step it stops after, and the best one */
} script;

static const script scripts[] = {
    {MX_STOP_LOSS, 2, {5, 4, 4.5, 3, 3, 3.5, 1}, {0}, 6, 4},                                     /* equal is no better */
    {MX_STOP_LOSS, 3, {5, 4, 4.5, 3, 3, 3.5, 1, 2, 3, 4}, {0}, 10, 7},
    {MX_STOP_METRIC, 2, {1, 2, 3, 4, 5, 6}, {.1, .3, .2, .4, .4, .3}, 6, 4},
    {MX_STOP_BOTH, 2, {5, 4, 4.5, 3, 3.5, 3.6, 3.7}, {.1, .3, .4, .4, .4, .3, .2}, 7, 4},         /* 5: as accurate as any, so it waits on */
    {MX_STOP_BOTH, 2, {5, 4, 3, 2, 3, 4}, {.5, .4, .3, .2, .1, 0}, 6, 1},                         /* a better loss waits, and is not the best */
    {MX_STOP_LOSS, 0, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, {0}, 10, 1},
};
enum { SCRIPTS = sizeof scripts / sizeof *scripts };

typedef struct rig {
    mx_device *devs;
    int        count;
    played     n;
    mx_batches b, e;
    mx_trainer *t;
} rig;

static mx_status open(rig *g, const char *folder, const script *p, mx_error *err)
{
    mx_train_options o = mx_train_defaults();
    memset(g, 0, sizeof *g);
    MX_TRY(mx_devices_open(&g->devs, &g->count, &(mx_device_options){.cpu_threads = 1}, err));
    if (mx_params_add(&g->n.params, "weight", 1, 1, 0, err) < 0) return MX_ERR_ARG;
    MX_TRY(mx_params_alloc(&g->n.params, &g->devs[0], true, err));
    g->n.loss = p->loss, g->n.metric = p->metric;
    MX_TRY(mx_batches_open_range(&g->b, 0, 10, 7, 1, true, err));
    MX_TRY(mx_batches_open_range(&g->e, 0, 1, 7, 1, false, err));
    mx_learner l = {.network = &g->n, .params = &g->n.params, .run = run, .scratch = scratch, .save = save, .load = load, .metric = p->patience < 0 ? NULL : "accuracy"};
    o.steps = 10, o.batch = o.micro_rows = 1, o.warmup = 0, o.eval_every = 1, o.keep = 1, o.save_every = p->patience ? 0 : 1;
    o.patience = p->patience < 0 ? 0 : p->patience, o.stop_on = p->stop_on;
    return mx_trainer_open(&g->t, folder, &l, &g->b, &g->e, &o, NULL, err);
}

static void shut(rig *g)
{
    mx_trainer_close(g->t);
    mx_batches_close(&g->b), mx_batches_close(&g->e);
    mx_params_close(&g->n.params);
    if (g->devs) mx_devices_close(g->devs, g->count);
}

/* One run, the process ended after every `parts` steps (0: never). */
static void play(const script *p, const char *folder, int parts)
{
    mx_error err = {0};
    mx_train_report r = {0};
    bool done = false;
    float weight[11] = {0};
    char where[MX_PATH], name[32];
    rig g;
    CHECK_OK(open(&g, folder, p, &err), err);
    for (int k = 1; g.t && !done && k <= 20; k++) {
        CHECK_OK(mx_trainer_step(g.t, &r, &done, &err), err);
        weight[r.step] = *(float *)g.n.params.value.base;
        if (!parts || k % parts || done) continue;
        CHECK_OK(mx_trainer_save(g.t, &err), err);
        shut(&g);
        CHECK_OK(open(&g, folder, p, &err), err);
    }
    CHECK_MSG(r.step == p->last && r.best_step == p->best, "stopped at %lld, the best %lld; want %lld, %lld", (long long)r.step, (long long)r.best_step, (long long)p->last, (long long)p->best);
    CHECK(r.best_loss == p->loss[p->best - 1] && r.best_extra == p->metric[p->best - 1]);
    CHECK_OK(mx_trainer_restore_best(g.t, where, &err), err);
    snprintf(name, sizeof name, "checkpoint-%08lld", (long long)p->best);
    CHECK(strstr(where, name) != NULL && *(float *)g.n.params.value.base == weight[p->best] && g.n.at == p->best);
    shut(&g);
    CHECK_OK(open(&g, folder, p, &err), err);          /* the same command once more learns nothing */
    done = false;
    CHECK_OK(mx_trainer_step(g.t, &r, &done, &err), err);
    CHECK(done && r.step == p->last && r.best_step == p->best && r.best_loss == p->loss[p->best - 1]);
    shut(&g);
}

static void a_run_stops_when_nothing_gets_better(void)
{
    char folder[] = "/tmp/merx-patience-XXXXXX", run_at[64], command[80];
    CHECK(mkdtemp(folder) != NULL);
    for (int i = 0; i < SCRIPTS; i++)
        for (int parts = 0; parts < 3; parts++) {
            snprintf(run_at, sizeof run_at, "%s/%d-%d", folder, i, parts);
            play(&scripts[i], run_at, parts);
        }
    snprintf(command, sizeof command, "rm -r %s", folder);
    CHECK(system(command) == 0);
}

static void what_cannot_be_watched_is_refused(void)
{
    mx_error err = {0};
    rig g;
    script p = {.stop_on = MX_STOP_BOTH, .patience = -1};
    CHECK(open(&g, "/tmp/merx-patience-none", &p, &err) == MX_ERR_ARG && strstr(err.text, "stop-on"));
    mx_train_options o = mx_train_defaults();
    mx_learner l = {.network = &g.n, .params = &g.n.params, .run = run, .scratch = scratch, .save = save, .load = load};
    o.patience = 3;
    CHECK(mx_trainer_open(&g.t, "/tmp/merx-patience-none", &l, &g.b, NULL, &o, NULL, &err) == MX_ERR_ARG && strstr(err.text, "patience"));
    shut(&g);
}

MX_TESTS(TEST(a_run_stops_when_nothing_gets_better), TEST(what_cannot_be_watched_is_refused))
