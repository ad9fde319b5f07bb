/* test_adapter.c - adapters beside their base: what they say is what the merged model
 * says, nobody's bits depend on the company, and prefixes are not shared across them. */
#include "models/generate.h"
#include "tests/adapter_files.h"

#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NEW = 24, PROMPT = 40 };

static char root[256];

typedef struct house {
    mx_device    *devs;
    int           n;
    mx_scheduler *sched;
    mx_generator *g;
    pthread_mutex_t lock;
    pthread_cond_t  over;
    int           left, failed;
} house;

static bool house_open(house *h, const char *path, const char *const *adapters, int n_adapters)
{
    mx_device_options opt = {.cpu_threads = 2};
    mx_generator_options o = mx_generator_defaults();
    mx_error err = {0};
    memset(h, 0, sizeof *h);
    pthread_mutex_init(&h->lock, NULL);
    pthread_cond_init(&h->over, NULL);
    o.adapters = adapters;
    o.n_adapters = n_adapters;
    CHECK_OK(mx_devices_open(&h->devs, &h->n, &opt, &err), err);
    CHECK_OK(mx_scheduler_open(&h->sched, h->devs, h->n, NULL, &err), err);
    CHECK_OK(mx_generator_open(&h->g, "m", path, h->devs, 0, h->sched, NULL, &o, &err), err);
    return h->g != NULL;
}

static void house_close(house *h)
{
    mx_scheduler_close(h->sched, 0);
    mx_generator_close(h->g);
    mx_devices_close(h->devs, h->n);
}

static void on_done(mx_generation *r, const mx_error *err)
{
    house *h = mx_generation_user(r);
    pthread_mutex_lock(&h->lock);
    h->failed += err->code != MX_OK;
    if (!--h->left) pthread_cond_signal(&h->over);
    pthread_mutex_unlock(&h->lock);
}

typedef struct said {
    int32_t ids[NEW], cached;
    double  logprob;
} said;

/* One greedy text for each adapter of the list, all at once. */
static void ask(house *h, const int32_t *adapters, int n, said *out)
{
    mx_generation *r[16] = {0};
    mx_error err = {0};
    int32_t prompt[PROMPT];
    for (int i = 0; i < PROMPT; i++) prompt[i] = 3 + i * 7 % 120;
    h->left = n;
    for (int i = 0; i < n; i++) {
        mx_sampling s = mx_sampling_defaults();
        mx_generation_calls calls = {.done = on_done, .user = h};
        s.temperature = 0;
        s.max_tokens = NEW;
        s.ignore_eos = true;
        s.logprobs = 0;
        s.adapter = adapters[i];
        CHECK_OK(mx_generation_open(&r[i], h->g, prompt, PROMPT, &s, &calls, 0, &err), err);
        CHECK_OK(mx_generation_submit(r[i], &err), err);
    }
    pthread_mutex_lock(&h->lock);
    while (h->left) pthread_cond_wait(&h->over, &h->lock);
    CHECK(!h->failed);
    pthread_mutex_unlock(&h->lock);
    for (int i = 0; i < n; i++) {
        const mx_candidate *c = mx_generation_candidate(r[i], 0);
        mx_generation_stats st;
        mx_generation_stats_get(r[i], &st);
        CHECK(c->n_ids == NEW);
        memcpy(out[i].ids, c->ids, sizeof out[i].ids);
        out[i].logprob = c->logprob_sum;
        out[i].cached = st.cached_tokens;
        mx_generation_close(r[i]);
    }
}

static void same(const said *a, const said *b, const char *what)
{
    CHECK_MSG(!memcmp(a->ids, b->ids, sizeof a->ids) && a->logprob == b->logprob, "%s", what);
}

static void family(const char *model, unsigned targets)
{
    house h;
    char base[400], a[400], b[400], merged[400];
    const char *specs[] = {a, b};
    said alone[3], company[9], whole;
    snprintf(root, sizeof root, MX_BINARY_DIR "/test_adapter.%d", (int)getpid());
    adapter_remove(root);
    mkdir(root, 0700);
    adapter_make(root, model, targets, 4, 11, "one");
    adapter_make(root, model, 0, 3, 12, "two");
    snprintf(base, sizeof base, MX_SOURCE_DIR "/tests/golden/decoder/%s", model);
    snprintf(a, sizeof a, "one=%s/one", root);
    snprintf(b, sizeof b, "two=%s/two", root);
    for (int32_t k = 0; k < 3; k++) {                 /* each alone in a house of its own */
        if (!house_open(&h, base, specs, 2)) return;
        mx_adapter_info info;
        CHECK(mx_generator_adapter_at(h.g, 1, &info) && !strcmp(info.name, "two") && info.rank == 3 && !mx_generator_adapter_at(h.g, 2, &info));
        CHECK(mx_generator_adapter(h.g, "two") == 2 && !mx_generator_adapter(h.g, "three"));
        ask(&h, &k, 1, &alone[k]);
        house_close(&h);
    }
    CHECK(memcmp(alone[0].ids, alone[1].ids, sizeof alone[0].ids) && memcmp(alone[0].ids, alone[2].ids, sizeof alone[0].ids));
    if (!house_open(&h, base, specs, 2)) return;
    static const int32_t mixed[] = {0, 1, 1, 2, 0, 2, 1, 0, 2};
    ask(&h, mixed, 9, company);
    for (int i = 0; i < 9; i++) same(&company[i], &alone[mixed[i]], "in company");
    ask(&h, mixed, 9, company);                       /* now their prefixes are in the cache: each its own */
    for (int i = 0; i < 9; i++) {
        same(&company[i], &alone[mixed[i]], "with a cached prefix");
        CHECK(company[i].cached > 0);
    }
    house_close(&h);
    for (int32_t k = 1; k < 3; k++) {
        snprintf(merged, sizeof merged, "%s/%s-merged", root, k == 1 ? "one" : "two");
        if (!house_open(&h, merged, NULL, 0)) return;
        ask(&h, &(int32_t){0}, 1, &whole);
        CHECK_MSG(!memcmp(whole.ids, alone[k].ids, sizeof whole.ids), "%s: adapter %d is not its merged model", model, k);
        CHECK_MSG(fabs(whole.logprob - alone[k].logprob) < 1e-3, "%.6f and %.6f", whole.logprob, alone[k].logprob);
        house_close(&h);
    }
    adapter_remove(root);
}

static void llama(void)
{
    family("llama", 127);
}

static void gpt2(void)
{
    family("gpt2", 15);
}

static void refused(const char *spec, const char *part)
{
    mx_device_options opt = {.cpu_threads = 1};
    mx_generator_options o = mx_generator_defaults();
    mx_device *devs = NULL;
    mx_scheduler *sched = NULL;
    mx_generator *g = NULL;
    mx_error err = {0};
    int n;
    const char *specs[] = {spec};
    o.adapters = specs;
    o.n_adapters = 1;
    CHECK_OK(mx_devices_open(&devs, &n, &opt, &err), err);
    CHECK_OK(mx_scheduler_open(&sched, devs, n, NULL, &err), err);
    CHECK(mx_generator_open(&g, "m", MX_SOURCE_DIR "/tests/golden/decoder/llama", devs, 0, sched, NULL, &o, &err) != MX_OK);
    CHECK_MSG(strstr(err.text, part), "%s", err.text);
    mx_scheduler_close(sched, 0);
    mx_devices_close(devs, n);
}

static void bad_adapters(void)
{
    char spec[400];
    snprintf(root, sizeof root, MX_BINARY_DIR "/test_adapter.%d", (int)getpid());
    mkdir(root, 0700);
    adapter_make(root, "gpt2", 15, 4, 11, "other");
    snprintf(spec, sizeof spec, "x=%s/other", root);
    refused(spec, "target_modules");                  /* GPT-2's beside a Llama */
    refused("nothing", "NAME=FOLDER");
    refused("x=/nowhere", "nowhere");
    adapter_make(root, "llama", 3, 4, 11, "short");
    snprintf(spec, sizeof spec, "%s/short/adapter_model.safetensors", root);
    CHECK(truncate(spec, 100) == 0);
    snprintf(spec, sizeof spec, "x=%s/short", root);
    refused(spec, "adapter_model.safetensors");
    adapter_remove(root);
}

MX_TESTS(TEST(llama), TEST(gpt2), TEST(bad_adapters))
