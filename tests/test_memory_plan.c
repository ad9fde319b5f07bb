/* test_memory_plan.c - what is no model is of the budget too: training jobs, explanations, profiles; and who does not fit is told so in bytes. */
#include "server/explain.h"
#include "server/training.h"
#include "tests/house.h"

/* Others take all of the budget but so many bytes; what they took. */
static size_t fill(house *h, size_t leave)
{
    size_t held, budget;
    mx_error err = {0};
    mx_registry_memory(h->app.registry, &held, &budget);
    size_t bytes = budget - held - leave;
    CHECK_OK(mx_registry_take(h->app.registry, "others", bytes, &err), err);
    return bytes;
}

static size_t held_now(const house *h)
{
    size_t held, budget;
    mx_registry_memory(h->app.registry, &held, &budget);
    return held;
}

static void models_make_room_for_others(void)
{
    house h;
    mx_error err = {0};
    mx_loaded out;
    size_t held, budget;
    if (!house_open(&h, &(house_options){0})) return;
    mx_registry_memory(h.app.registry, &held, &budget);
    CHECK(mx_registry_take(h.app.registry, "the moon", budget - held + 1, &err) == MX_ERR_NO_MEMORY && strstr(err.text, "the moon needs") && strstr(err.text, "it is 1 short"));
    CHECK(held_now(&h) == held);
    size_t bytes = fill(&h, 1000);
    CHECK(h.app.load(&h.app, "more", HOUSE_MODEL("gpt2"), "", &out, &err) == MX_ERR_NO_MEMORY && strstr(err.text, "are held"));
    mx_registry_give(h.app.registry, bytes);
    CHECK_OK(h.app.load(&h.app, "more", HOUSE_MODEL("gpt2"), "", &out, &err), err);
    house_close(&h);
}

/* ---- training ------------------------------------------------------------------------------- */

static mx_training_view train(house *h)
{
    static const char *const settings[][2] = {{"model", HOUSE_MODEL("llama")}, {"data", MX_SOURCE_DIR "/tests/golden/train/llama/data.safetensors"},
                                              {"steps", "2"}, {"batch", "2"}, {"micro-rows", "512"}, {"lr", "1e-2"}};
    mx_training_spec spec = {.kind = "lm", .name = "a test", .settings = settings, .n = sizeof settings / sizeof *settings};
    mx_training_view v = {0};
    mx_error err = {0};
    CHECK_OK(mx_training_submit(h->app.training, &spec, &v, &err), err);
    for (uint64_t began = now_ms(); v.state < MX_TRAINING_DONE && now_ms() - began < 20000; nap_ms(5))
        if (mx_training_get(h->app.training, v.id, &v, &err)) break;
    return v;
}

static void a_job_that_does_not_fit_is_refused(void)
{
    static const char *const roots[] = {MX_SOURCE_DIR "/tests/golden"};
    char folder[300];
    house h;
    mx_error err = {0};
    snprintf(folder, sizeof folder, MX_BINARY_DIR "/test_memory_plan.%d", (int)getpid());
    if (!house_open(&h, &(house_options){0})) return;
    CHECK_OK(mx_training_open(&h.app.training, &h.app, folder, roots, 1, &err), err);
    size_t before = held_now(&h), bytes = fill(&h, 1000);
    mx_training_view v = train(&h);                       /* not even its weights */
    CHECK_MSG(v.state == MX_TRAINING_FAILED && strstr(v.message, v.id) && strstr(v.message, "needs") && strstr(v.message, "are held, it is"), "%s", v.message);
    mx_registry_give(h.app.registry, bytes);
    bytes = fill(&h, 1 << 20);
    v = train(&h);                                        /* its weights, but not the work of so many rows */
    CHECK_MSG(v.state == MX_TRAINING_FAILED && strstr(v.message, "micro-rows: 512 rows take") && strstr(v.message, "at most"), "%s", v.message);
    mx_registry_give(h.app.registry, bytes);
    v = train(&h);
    CHECK_MSG(v.state == MX_TRAINING_DONE, "%s", v.message);
    for (int i = 0; i < 200 && held_now(&h) != before; i++) nap_ms(5);
    CHECK_MSG(held_now(&h) == before, "%zu bytes are held, %zu before", held_now(&h), before);
    house_close(&h);
    nftw(folder, house_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* ---- explanations ------------------------------------------------------------------------------ */

typedef struct asked {
    mx_explain_job job;
    pthread_mutex_t lock;
    pthread_cond_t  news;
    bool            over;
} asked;

static void asked_done(mx_explain_job *job)
{
    asked *a = job->ctx;
    pthread_mutex_lock(&a->lock);
    a->over = true;
    pthread_cond_signal(&a->news);
    pthread_mutex_unlock(&a->lock);
}

static mx_status explain(mx_explainer *x, const char *folder, asked *a)
{
    *a = (asked){.lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};
    a->job = (mx_explain_job){.folder = folder, .text = "w5 w6 w7", .done = asked_done, .ctx = a, .ask = {.class_index = 1}};
    mx_explainer_submit(x, &a->job);
    pthread_mutex_lock(&a->lock);
    while (!a->over) pthread_cond_wait(&a->news, &a->lock);
    pthread_mutex_unlock(&a->lock);
    return a->job.st;
}

static void letters(const asked *a, char out[100])
{
    size_t n = 0;
    for (int32_t i = 0; i < a->job.out.n; i++)
        for (size_t k = 0; k < a->job.out.token[i].len && n < 99; k++) out[n++] = a->job.out.token[i].piece[k];
    out[n] = 0;
}

static void explanations_keep_to_their_bound(void)
{
    char other[300], one[100], two[100];
    house h;
    mx_error err = {0};
    mx_explainer *x;
    asked a, b;
    size_t most;
    snprintf(other, sizeof other, MX_BINARY_DIR "/test_memory_plan_bert.%d", (int)getpid());
    unlink(other);
    CHECK(!symlink(HOUSE_BERT, other));
    if (!house_open(&h, &(house_options){0})) return;
    CHECK_OK(mx_explainer_open(&x, &h.app.devices[0], &err), err);
    size_t before = held_now(&h);
    CHECK(explain(x, HOUSE_BERT, &a) == MX_OK && explain(x, other, &b) == MX_OK);
    size_t need = mx_explainer_held(x, &most) / 2;
    CHECK(need > 0 && !most && held_now(&h) == before);   /* nobody was asked yet */
    mx_attribution_free(&a.job.out), mx_attribution_free(&b.job.out);
    mx_explainer_close(x);

    CHECK_OK(mx_explainer_open(&x, &h.app.devices[0], &err), err);
    mx_explainer_limit(x, h.app.registry, need + need / 2);
    CHECK(explain(x, HOUSE_BERT, &a) == MX_OK && mx_explainer_held(x, &most) == need && held_now(&h) == before + need);
    CHECK(explain(x, other, &b) == MX_OK && mx_explainer_held(x, &most) == need && held_now(&h) == before + need);      /* the first has gone */
    letters(&a, one), letters(&b, two);
    CHECK_STR(one, two);
    mx_attribution_free(&a.job.out), mx_attribution_free(&b.job.out);
    size_t bytes = fill(&h, 0);
    CHECK(explain(x, HOUSE_BERT, &a) == MX_OK && mx_explainer_held(x, &most) == need);      /* in the place of the other */
    mx_attribution_free(&a.job.out);
    mx_registry_give(h.app.registry, bytes);
    mx_explainer_limit(x, h.app.registry, need / 2);
    CHECK(explain(x, other, &b) == MX_ERR_NO_MEMORY && strstr(b.job.err.text, "need") && strstr(b.job.err.text, "--explain-bytes"));
    mx_explainer_close(x);
    CHECK(held_now(&h) == before);

    CHECK_OK(mx_explainer_open(&x, &h.app.devices[0], &err), err);
    mx_explainer_limit(x, h.app.registry, 1 << 30);
    bytes = fill(&h, 1000);
    CHECK(explain(x, HOUSE_BERT, &a) == MX_ERR_NO_MEMORY && strstr(a.job.err.text, "explain needs") && strstr(a.job.err.text, "are held, it is"));
    mx_explainer_close(x);
    mx_registry_give(h.app.registry, bytes);
    house_close(&h);
    unlink(other);
}

/* ---- profiles -------------------------------------------------------------------------------------- */

typedef struct put {
    mx_profiles_op op;
    atomic_bool    over;
} put;

static void put_done(mx_profiles_op *op)
{
    atomic_store(&((put *)op)->over, true);
}

static mx_status put_users(house *h, int first, int n, char words[500])
{
    Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    Merx__V1__Event *e = calloc((size_t)n, sizeof *e), **list = calloc((size_t)n, sizeof *list);
    char (*name)[2][32] = calloc((size_t)n, sizeof *name);
    put *p = calloc(1, sizeof *p);
    for (int i = 0; i < n; i++) {
        merx__v1__event__init(&e[i]);
        snprintf(name[i][0], sizeof name[i][0], "event-%d", first + i);
        snprintf(name[i][1], sizeof name[i][1], "user-%d", first + i);
        e[i].event_id = name[i][0], e[i].user = name[i][1], e[i].type = "view", e[i].object = "shoe";
        list[i] = &e[i];
    }
    q.events = list, q.n_events = (size_t)n;
    p->op = (mx_profiles_op){.run = mx_profiles_put, .done = put_done, .request = &q.base};
    mx_profiles_submit(h->app.profiles, &p->op);
    while (!atomic_load(&p->over)) nap_ms(1);
    mx_status st = p->op.st;
    snprintf(words, 500, "%s", p->op.err.text);
    mx_slab_free(p->op.answer);
    free(p), free(e), free(list), free(name);
    return st;
}

static void profiles_ask_for_what_they_grow_by(void)
{
    enum { USERS = 1000, MOST = 20 };
    char words[500] = "";
    house h;
    mx_error err = {0};
    if (!house_open(&h, &(house_options){.stores = true})) return;
    size_t before = held_now(&h);
    CHECK_OK(mx_profiles_limit(h.app.profiles, h.app.registry, &err), err);
    size_t first = mx_profiles_taken(h.app.profiles);
    CHECK(first > 0 && held_now(&h) == before + first);
    CHECK(put_users(&h, 0, USERS, words) == MX_OK);
    size_t bytes = fill(&h, 0);
    mx_status st = MX_OK;
    int at = 1;
    for (; !st && at < MOST; at++) st = put_users(&h, at * USERS, USERS, words);
    CHECK_MSG(st == MX_ERR_NO_MEMORY && strstr(words, "events: profiles needs") && strstr(words, "are held, it is"), "%s after %d users: %s", mx_status_name(st), at * USERS, words);
    mx_registry_give(h.app.registry, bytes);
    CHECK_MSG(put_users(&h, at * USERS, USERS, words) == MX_OK, "%s", words);
    CHECK(mx_profiles_taken(h.app.profiles) > first && held_now(&h) == before + mx_profiles_taken(h.app.profiles));
    mx_profiles_close(h.app.profiles);
    h.app.profiles = NULL;
    CHECK(held_now(&h) == before);
    house_close(&h);
}

MX_TESTS(TEST(models_make_room_for_others), TEST(a_job_that_does_not_fit_is_refused), TEST(explanations_keep_to_their_bound), TEST(profiles_ask_for_what_they_grow_by))
