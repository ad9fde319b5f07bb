/* test_torture.c - every allocation of ours fails once.
 *
 * The linker hands our malloc, calloc and realloc to the counters below
 * (--wrap); a scene is played with the first allocation failing, then with the
 * second, until it ends well without meeting the failure.  Each time before, the
 * scene must say that memory is short, and everything it had must be free again. */
#include "models/lm.h"
#include "models/user_graph.h"
#include "server/services.h"
#include "server/settings.h"
#include "models/generate.h"
#include "tests/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>
#include <unistd.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void  __real_free(void *p);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);
void  __wrap_free(void *p);

static atomic_llong calls, fail_at = -1;
static atomic_bool  failed;

/* Where to set a breakpoint when an allocation is not told. */
static __attribute__((noinline)) bool fail_here(void)
{
    atomic_store(&failed, true);
    return true;
}

static bool fails(void)
{
    return atomic_fetch_add(&calls, 1) + 1 == atomic_load(&fail_at) && fail_here();
}

/* ---- what is held: a set of addresses, because we also free what libraries made ------ */

enum { SLOTS = 1 << 20 };
static void           *held_at[SLOTS];
static long long       held;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char            gone;               /* marks a slot that was used */

static size_t slot_of(const void *p)
{
    return (size_t)(((uintptr_t)p >> 4) * 0x9e3779b97f4a7c15u >> 44) % SLOTS;
}

static void *keep(void *p)
{
    if (!p) return p;
    pthread_mutex_lock(&lock);
    size_t i = slot_of(p);
    while (held_at[i] && held_at[i] != &gone) i = (i + 1) % SLOTS;
    held_at[i] = p;
    held++;
    pthread_mutex_unlock(&lock);
    return p;
}

static void forget(void *p)
{
    if (!p) return;
    pthread_mutex_lock(&lock);
    for (size_t i = slot_of(p); held_at[i]; i = (i + 1) % SLOTS)
        if (held_at[i] == p) {
            held_at[i] = &gone;
            held--;
            break;
        }
    pthread_mutex_unlock(&lock);
}

static long long held_now(void)
{
    pthread_mutex_lock(&lock);
    long long n = held;
    pthread_mutex_unlock(&lock);
    return n;
}

void *__wrap_malloc(size_t n)
{
    return fails() ? NULL : keep(__real_malloc(n));
}

void *__wrap_calloc(size_t n, size_t size)
{
    return fails() ? NULL : keep(__real_calloc(n, size));
}

void *__wrap_realloc(void *p, size_t n)
{
    if (fails()) return NULL;
    forget(p);
    void *q = __real_realloc(p, n);
    keep(q ? q : p);
    return q;
}

void __wrap_free(void *p)
{
    forget(p);
    __real_free(p);
}

/* ---- scenes: MX_OK, or an error with words --------------------------------------------- */

typedef mx_status scene(mx_error *err);

static mx_status scene_checkpoint(mx_error *err)
{
    mx_checkpoint *c = NULL;
    mx_status st = mx_checkpoint_open(&c, MX_SOURCE_DIR "/tests/golden/decoder/llama", err);
    mx_checkpoint_close(c);
    return st;
}

static mx_status scene_tokenizer(mx_error *err)
{
    mx_tokenizer *t = NULL;
    mx_ids ids = {0};
    char *text = NULL;
    size_t len;
    mx_status st = mx_tokenizer_open_folder(&t, MX_SOURCE_DIR "/tests/golden/decoder/llama", err);
    if (!st) st = mx_tokenizer_encode(t, "abc abc", 7, true, true, &ids, err);
    if (!st) st = mx_tokenizer_decode(t, ids.id, ids.count, true, &text, &len, err);
    free(text);
    mx_ids_free(&ids);
    mx_tokenizer_close(t);
    return st;
}

static mx_status scene_settings(mx_error *err)
{
    char *argv[] = {"--model", "a", "--model=b", "--stop", "x", "--temperature", "0.5"}, *rest[7];
    static const char text[] = "max-tokens = 7\nbanned = one\nbanned = two\n";
    int n = 0;
    mx_config *c = NULL;
    mx_status st = mx_config_open(&c, mx_settings, mx_settings_count, err);
    if (!st) st = mx_config_flags(c, MX_CMD_GENERATE, 7, argv, rest, &n, err);
    if (!st) st = mx_config_text(c, text, sizeof text - 1, "text", err);
    mx_config_close(c);
    return st;
}

static mx_device *devices;
static int        n_devices;

/* The engine whole: open, one text, close. */
typedef struct ending { mx_error err; atomic_bool done; } ending;

static void text_done(mx_generation *g, const mx_error *err)
{
    ending *end = mx_generation_user(g);
    end->err = *err;
    atomic_store(&end->done, true);
}

static mx_status one_text(mx_generator *g, mx_error *err)
{
    ending end = {0};
    int32_t ids[] = {5, 9, 23, 44};
    mx_generation *q = NULL;
    mx_sampling s = mx_sampling_defaults();
    mx_generation_calls c = {.done = text_done, .user = &end};
    s.max_tokens = 6;
    s.logprobs = 2;
    MX_TRY(mx_generation_open(&q, g, ids, 4, &s, &c, 0, err));
    mx_status st = mx_generation_submit(q, err);
    while (!st && !atomic_load(&end.done)) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    if (!st) {
        *err = end.err;
        st = end.err.code;
    }
    mx_generation_close(q);
    return st;
}

static mx_status scene_engine(mx_error *err)
{
    mx_scheduler *s = NULL;
    mx_generator *g = NULL;
    mx_generator_options o = mx_generator_defaults();
    o.max_num_seqs = 2;
    o.max_batched_tokens = 16;
    o.max_model_len = 32;
    mx_status st = mx_scheduler_open(&s, devices, n_devices, NULL, err);
    if (!st) st = mx_generator_open(&g, "tiny", MX_SOURCE_DIR "/tests/golden/decoder/llama", devices, 0, s, NULL, &o, err);
    if (!st) st = one_text(g, err);
    if (s) mx_scheduler_close(s, 0);
    mx_generator_close(g);
    return st;
}

/* A server's insides: plan, devices, scheduler, a model, all closed again. */
static mx_status scene_app(mx_error *err)
{
    mx_app app;
    mx_generator_options o = mx_generator_defaults();
    o.max_num_seqs = 2;
    o.max_batched_tokens = 16;
    o.max_model_len = 32;
    MX_TRY(mx_app_open(&app, NULL, err));
    mx_status st = mx_app_load(&app, "tiny=" MX_SOURCE_DIR "/tests/golden/decoder/llama", &o, err);
    if (!st) st = one_text(mx_app_model(&app), err);
    mx_app_close(&app, 0);
    return st;
}

/* A version replaced under its own feet, and what is left when that fails: the old one, serving. */
static mx_status scene_swap(mx_error *err)
{
    mx_app app;
    mx_loaded out;
    mx_generator_options o = mx_generator_defaults();
    o.max_num_seqs = 2;
    o.max_batched_tokens = 16;
    o.max_model_len = 32;
    MX_TRY(mx_app_open(&app, NULL, err));
    app.defaults = o;
    mx_status st = mx_app_load(&app, "tiny=" MX_SOURCE_DIR "/tests/golden/decoder/llama", &o, err);
    bool serves = !st;
    if (!st) st = app.load(&app, "tiny", MX_SOURCE_DIR "/tests/golden/decoder/gpt2", "", &out, err);
    if (!st) st = app.load(&app, "mood", MX_SOURCE_DIR "/tests/golden/encoder/bert", "", &out, err);
    CHECK_MSG(!serves || mx_registry_health(app.registry, "tiny") == 1, "a swap that failed has taken the model");
    if (!st) st = one_text(mx_app_model(&app), err);
    if (!st) st = app.unload(&app, "mood", 1000, err);
    mx_app_close(&app, 0);
    return st;
}

static mx_status scene_training(mx_error *err)
{
    static const char *const data[] = {MX_SOURCE_DIR "/tests/golden/train/llama/data.safetensors"};
    mx_text_to_ids ids = {.vocab = 131, .end = -1};
    mx_dataset_options d = {0};
    mx_lm_options o = {.compute = MX_F32, .lora = {.rank = 2, .alpha = 4}};
    mx_lm *lm = NULL;
    mx_dataset *set = NULL;
    mx_batches b = {0};
    mx_batch batch = {0};
    mx_stream stream = {0};
    mx_status st = mx_lm_open(&lm, devices, MX_SOURCE_DIR "/tests/golden/decoder/llama", &o, err);
    if (!st) st = mx_dataset_open(&set, data, 1, &ids, &d, err);
    if (!st) st = mx_batches_open(&b, set, MX_PACK_DOCUMENTS, 96, 1, true, true, err);
    if (!st) st = mx_batches_take(&b, 0, &batch, err);
    if (!st) {
        mx_learner l = mx_lm_learner(lm);
        mx_pass p = {.batch = &batch, .learn = true, .seed = 1};
        st = mx_stream_open(&stream, devices, l.scratch(l.network, batch.rows, batch.spans, batch.longest, true), err);
        if (!st) st = l.run(l.network, &stream, &p, err);
    }
    mx_stream_close(&stream);
    mx_batch_free(&batch);
    mx_batches_close(&b);
    mx_dataset_close(set);
    mx_lm_close(lm);
    return st;
}

/* A store opened, fed, read, merged, and a subject of it erased. */
static mx_status user_of(mx_user_graph *g, mx_error *err)
{
    mx_event e[40];
    char id[40][8];
    const char *keys[] = {"bert"};
    mx_put_ack ack;
    mx_event_list events = {0};
    mx_user_edges edges = {0};
    mx_erasure receipt;
    mx_status st = mx_user_graph_declare_usual(g, err);
    for (int i = 0; i < 40; i++) {
        snprintf(id[i], sizeof id[i], "%d", i);
        e[i] = mx_event_defaults();
        e[i].id = id[i], e[i].subject = i % 3 ? "anna" : "bert", e[i].object = "shoe";
    }
    if (!st) st = mx_user_graph_put(g, e, 30, 0, NULL, &ack, err);
    if (!st) st = mx_user_graph_merge(g, err);
    if (!st) st = mx_user_graph_put(g, e + 30, 10, 0, NULL, &ack, err);
    if (!st) st = mx_user_graph_events(g, mx_user_graph_find(g, 0, "anna"), MX_TIME_ANY, 0, &events, err);
    if (!st) st = mx_user_graph_edges(g, mx_user_graph_find(g, 1, "shoe"), MX_EDGES_BOTH, MX_TIME_ANY, &edges, err);
    if (!st) st = mx_user_graph_erase(g, 0, keys, 1, 5, &receipt, err);
    mx_event_list_free(&events);
    mx_user_edges_free(&edges);
    return st;
}

static mx_status scene_user_graph(mx_error *err)
{
    static const char *const files[] = {"log-0000000000000000", "lock", "snapshot", ".snapshot", "blanking", ".blanking"};
    mx_user_graph_options o = mx_user_graph_defaults();
    mx_user_graph *g = NULL;
    char folder[64], path[128];
    snprintf(folder, sizeof folder, "/tmp/merx-torture-%d", (int)getpid());
    o.merge_events = 0;
    mx_status st = mx_user_graph_open(&g, folder, &o, err);
    if (!st) st = user_of(g, err);
    mx_user_graph_close(g);
    g = NULL;
    if (!st) st = mx_user_graph_open(&g, folder, &o, err);        /* snapshot and tail */
    mx_user_graph_close(g);
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    rmdir(folder);
    return st;
}

/* ---- playing them ---------------------------------------------------------------------- */

/* absorbed: failures after which the scene may still end well */
static void play(const char *name, scene *act, int absorbed)
{
    mx_error err = {0};
    int well = 0;
    CHECK_OK(act(&err), err);                     /* once for what libraries keep */
    long long before = held_now(), n = 1;
    for (;; n++) {
        err = (mx_error){0};
        atomic_store(&failed, false);
        atomic_store(&calls, 0);
        atomic_store(&fail_at, n);
        mx_status st = act(&err);
        atomic_store(&fail_at, -1);
        if (!atomic_load(&failed)) break;
        well += st == MX_OK;
        CHECK_MSG(st == MX_ERR_NO_MEMORY || (st == MX_OK && well <= absorbed), "%s: allocation %lld: %s: %s", name, n, mx_status_name(st), err.text);
        CHECK_MSG(st == MX_OK || err.text[0], "%s: allocation %lld fails without a word", name, n);
        CHECK_MSG(held_now() == before, "%s: allocation %lld: %lld are still held", name, n, held_now() - before);
        if (test_failures > 20) return;
    }
    printf("  %s: each of %lld allocations failed once\n", name, n - 1);
    CHECK(n > 1);
}

static void checkpoint(void) { play("checkpoint", scene_checkpoint, 0); }
static void tokenizer(void) { play("tokenizer", scene_tokenizer, 0); }
static void user_graph(void) { play("user graph", scene_user_graph, 0); }
static void settings(void) { play("settings", scene_settings, 0); }

static void open_devices(void)
{
    mx_error err = {0};
    mx_device_options o = {.cpu_threads = 2};
    if (!devices) CHECK_OK(mx_devices_open(&devices, &n_devices, &o, &err), err);
}

static void engine(void)
{
    open_devices();
    play("engine", scene_engine, 1);      /* a sequence's list of pages grows in the next turn */
}

static void app(void)
{
    play("app", scene_app, 32);           /* the same, and the fifteen metrics of the model: it serves without them */
}

static void swap(void)
{
    play("swap", scene_swap, 60);         /* the same */
}

static void training(void)
{
    open_devices();
    play("training", scene_training, 0);
}

static void devices_close(void)
{
    if (devices) mx_devices_close(devices, n_devices);
}

MX_TESTS(TEST(checkpoint), TEST(tokenizer), TEST(settings), TEST(user_graph), TEST(engine), TEST(app), TEST(swap), TEST(training), TEST(devices_close))
