/* test_swap.c - models that come and go while they are asked: through real gRPC, on tiny networks. */
#include "models/decoder.h"
#include "tests/adapter_files.h"
#include "tests/house.h"

#define MODEL HOUSE_MODEL
#define BERT HOUSE_BERT

enum { NEW = 24, SEEDS = 4 };

static char root[256];

static bool open_house(house *h, int seqs, int queue)
{
    static const char *const folders[] = {"models-folder", MX_SOURCE_DIR "/tests/golden", "models-folder", MX_BINARY_DIR, NULL};
    return house_open(h, &(house_options){.settings = folders, .seqs = seqs, .queue = queue});
}

/* ---- calls ------------------------------------------------------------------------------ */

static int load(house *h, const char *name, const char *path, const char *adapter_of, int32_t *version, mx_rpc_status *st)
{
    Merx__V1__LoadModelRequest q = MERX__V1__LOAD_MODEL_REQUEST__INIT;
    Merx__V1__LoadModelResponse *r = NULL;
    q.name = (char *)(uintptr_t)name;
    q.source_case = MERX__V1__LOAD_MODEL_REQUEST__SOURCE_PATH;
    q.path = (char *)(uintptr_t)path;
    if (adapter_of) q.adapter_of = (char *)(uintptr_t)adapter_of;
    int code = call(h->client, "/merx.v1.Models/Load", &q, &merx__v1__load_model_response__descriptor, &r, st);
    if (version) *version = r ? r->version : -1;
    if (r) merx__v1__load_model_response__free_unpacked(r, NULL);
    return code;
}

static int unload(house *h, const char *name, double drain, mx_rpc_status *st)
{
    Merx__V1__UnloadModelRequest q = MERX__V1__UNLOAD_MODEL_REQUEST__INIT;
    q.name = (char *)(uintptr_t)name;
    q._drain_seconds_case = MERX__V1__UNLOAD_MODEL_REQUEST___DRAIN_SECONDS_DRAIN_SECONDS;
    q.drain_seconds = drain;
    Merx__V1__UnloadModelResponse *r = NULL;
    int code = call(h->client, "/merx.v1.Models/Unload", &q, &merx__v1__unload_model_response__descriptor, &r, st);
    if (r) merx__v1__unload_model_response__free_unpacked(r, NULL);
    return code;
}

static Merx__V1__ListVersionsResponse *list(house *h)
{
    Merx__V1__ListVersionsRequest q = MERX__V1__LIST_VERSIONS_REQUEST__INIT;
    Merx__V1__ListVersionsResponse *r = NULL;
    mx_rpc_status st;
    CHECK_MSG(call(h->client, "/merx.v1.Models/List", &q, &merx__v1__list_versions_response__descriptor, &r, &st) == MX_RPC_OK, "%s", st.text);
    return r;
}

static void list_free(Merx__V1__ListVersionsResponse *r)
{
    if (r) merx__v1__list_versions_response__free_unpacked(r, NULL);
}

static void request(Merx__V1__GenerateRequest *q, Merx__V1__Sampling *s, const char *model, int seed, int tokens)
{
    house_request(q, s, tokens);
    q->model = (char *)(uintptr_t)model;
    s->ignore_eos = true;
    s->seed = (uint64_t)seed;
}

/* What a lone caller gets; false: nothing, and st says why. */
static bool text_of(house *h, const char *model, int seed, int32_t out[NEW], int32_t *version, mx_rpc_status *st)
{
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    Merx__V1__GenerateResponse *r = NULL;
    request(&q, &s, model, seed, NEW);
    call(h->client, RPC("Generate"), &q, &merx__v1__generate_response__descriptor, &r, st);
    bool ok = r && r->n_candidates == 1 && r->candidates[0]->n_ids == NEW;
    if (ok && out) memcpy(out, r->candidates[0]->ids, NEW * sizeof *out);
    if (ok && version) *version = r->model_version;
    if (r) merx__v1__generate_response__free_unpacked(r, NULL);
    return ok;
}

/* ---- a crowd that asks without end --------------------------------------------------------- */

enum { VOICES = SANITIZED ? 64 : 200 };

typedef struct crowd {
    pthread_mutex_t lock;
    pthread_cond_t  news;
    mx_client      *client;
    packed          ask[SEEDS];
    int32_t         told[2][SEEDS][NEW];     /* by version % 2 */
    int             left, failed, wrong, doubled, texts[2], versions;
    int32_t         newest;
    bool            stop;
    char            why[600];
} crowd;

typedef struct voice {
    crowd  *of;
    int     seed, n;
    int32_t ids[NEW], version;
    bool    last;
} voice;

static void voice_message(void *user, const uint8_t *msg, size_t len)
{
    voice *v = user;
    Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, msg);
    bool fits = e && !v->last && v->n + (int)e->n_ids <= NEW;
    if (fits && e->n_ids) memcpy(v->ids + v->n, e->ids, e->n_ids * sizeof *v->ids);
    v->n += fits ? (int)e->n_ids : NEW + 1;
    if (e && e->last) v->last = true, v->version = e->model_version;
    if (e) merx__v1__generate_event__free_unpacked(e, NULL);
}

static void voice_done(void *user, const mx_rpc_status *st);

static void voice_start(voice *v)
{
    crowd *c = v->of;
    mx_client_calls calls = {.message = voice_message, .done = voice_done, .user = v};
    v->n = v->version = 0;
    v->last = false;
    if (mx_client_start(c->client, NULL, RPC("Stream"), c->ask[v->seed].data, c->ask[v->seed].len, 60000, &calls)) c->failed++;
}

static void voice_done(void *user, const mx_rpc_status *st)
{
    voice *v = user;
    crowd *c = v->of;
    int which = v->version & 1;
    pthread_mutex_lock(&c->lock);
    if (st->code != MX_RPC_OK) {
        if (!c->failed++) snprintf(c->why, sizeof c->why, "%s: %s", mx_rpc_code_name(st->code), st->text);
    } else if (!v->last || v->n != NEW || memcmp(v->ids, c->told[which][v->seed], sizeof v->ids)) {
        c->wrong++;
    } else {
        c->texts[which]++;
        if (v->version > c->newest) c->newest = v->version, c->versions++;
    }
    bool again = !c->stop;
    if (!again) c->left--;
    pthread_cond_signal(&c->news);
    pthread_mutex_unlock(&c->lock);
    if (again) voice_start(v);
}

static void crowd_start(crowd *c, house *h, voice *v, const char *model)
{
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    c->client = h->client;
    c->left = VOICES;
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->news, NULL);
    for (int i = 0; i < SEEDS; i++) {
        request(&q, &s, model, i, NEW);
        c->ask[i] = pack(&q.base);
    }
    for (int i = 0; i < VOICES; i++) {
        v[i] = (voice){.of = c, .seed = i % SEEDS};
        voice_start(&v[i]);
    }
}

/* Somebody has a text of this version, or of a later one. */
static void crowd_hears(crowd *c, int32_t version)
{
    pthread_mutex_lock(&c->lock);
    while (c->newest < version && !c->failed) pthread_cond_wait(&c->news, &c->lock);
    pthread_mutex_unlock(&c->lock);
}

static void crowd_end(crowd *c)
{
    pthread_mutex_lock(&c->lock);
    c->stop = true;
    while (c->left) pthread_cond_wait(&c->news, &c->lock);
    pthread_mutex_unlock(&c->lock);
    for (int i = 0; i < SEEDS; i++) free(c->ask[i].data);
}

static long rss_anon_kb(void)
{
    char line[200];
    long kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssAnon: %ld", &kb) == 1) break;
    if (f) fclose(f);
    return kb;
}

/* Twenty swaps between two networks under two hundred streams: no call fails, every text is whole and
 * one version's, and memory is what it was. */
static void swap_under_load(void)
{
    static const char *const path[] = {MODEL("gpt2"), MODEL("llama")};       /* odd versions are the second */
    int swaps = SANITIZED ? 6 : 20;
    static crowd c;
    static voice v[VOICES];
    house h;
    mx_rpc_status st;
    int32_t version = 1;
    if (!open_house(&h, 32, 1000)) return;
    c = (crowd){0};
    for (int which = 1; which >= 0; which--) {
        if (!which) CHECK_MSG(load(&h, "tiny", path[0], NULL, &version, &st) == MX_RPC_OK && version == 2, "%s", st.text);
        for (int i = 0; i < SEEDS; i++) CHECK(text_of(&h, "tiny", i, c.told[which][i], &version, &st) && version == 2 - which);
    }
    CHECK(memcmp(c.told[0], c.told[1], sizeof c.told[0]));
    crowd_start(&c, &h, v, "tiny");
    long before = 0;
    for (int i = 0; i < swaps; i++) {
        CHECK_MSG(load(&h, "tiny", path[(3 + i) % 2], NULL, &version, &st) == MX_RPC_OK && version == 3 + i, "%s", st.text);
        crowd_hears(&c, version);
        if (i != swaps / 2) continue;
        CHECK(mx_registry_settle(h.app.registry, 20000));
        before = rss_anon_kb();
    }
    CHECK(mx_registry_settle(h.app.registry, 20000));
    long grown = rss_anon_kb() - before;
    crowd_end(&c);
    CHECK_MSG(!c.failed && !c.wrong, "%d failed (%s), %d wrong", c.failed, c.why, c.wrong);
    CHECK(c.texts[0] > 0 && c.texts[1] > 0 && c.versions >= swaps);
    printf("  %d swaps: %d + %d texts of %d versions, RssAnon %+ld kB over half of them\n", swaps, c.texts[0], c.texts[1], c.versions, grown);
    CHECK_MSG(SANITIZED || grown < 10240, "%ld kB grown", grown);       /* a version is 1 to 3 MiB */
    Merx__V1__ListVersionsResponse *r = list(&h);
    CHECK(r && r->n_versions == 1 && r->versions[0]->version == swaps + 2 && r->versions[0]->state == MERX__V1__MODEL_STATE__MODEL_SERVING &&
          !r->versions[0]->references);
    list_free(r);
    house_close(&h);
}

/* ---- unload -------------------------------------------------------------------------------------- */

typedef struct unloading { house *h; packed ask; mx_rpc_status st; } unloading;

static void *unload_other(void *user)
{
    unloading *u = user;
    uint8_t *bytes = NULL;
    size_t n = 0;
    mx_client_unary(u->h->client, "/merx.v1.Models/Unload", u->ask.data, u->ask.len, 60000, &bytes, &n, &u->st);
    free(bytes);
    return NULL;
}

static void unload_while_requests_wait(void)
{
    house h;
    mx_rpc_status st;
    Merx__V1__GenerateRequest q;
    Merx__V1__Sampling s;
    mx_client_call *c[6];
    int32_t text[NEW];
    int codes[MX_RPC_CODE_COUNT] = {0};
    if (!open_house(&h, 1, 100)) return;
    CHECK_MSG(load(&h, "other", MODEL("gpt2"), NULL, NULL, &st) == MX_RPC_OK, "%s", st.text);
    request(&q, &s, "tiny", 1, 80);
    packed p = pack(&q.base);
    for (int i = 0; i < 6; i++) CHECK(!mx_client_stream(h.client, &c[i], RPC("Stream"), p.data, p.len, 20000));
    uint64_t start = now_ms();
    CHECK_MSG(unload(&h, "tiny", 0, &st) == MX_RPC_OK || st.code == MX_RPC_DEADLINE_EXCEEDED, "%s", st.text);
    for (int i = 0; i < 6; i++) {
        const uint8_t *msg;
        size_t len;
        while (mx_client_next(c[i], &msg, &len)) continue;
        mx_client_finish(c[i], &st);
        codes[st.code]++;
        mx_client_end(c[i]);
    }
    CHECK_MSG(codes[MX_RPC_UNAVAILABLE] + codes[MX_RPC_OK] + codes[MX_RPC_NOT_FOUND] == 6 && now_ms() - start < 15000, "%d UNAVAILABLE, %d OK", codes[MX_RPC_UNAVAILABLE], codes[MX_RPC_OK]);
    CHECK(mx_registry_settle(h.app.registry, 5000));
    CHECK(!text_of(&h, "tiny", 1, text, NULL, &st) && st.code == MX_RPC_NOT_FOUND && strstr(st.text, "tiny"));
    CHECK(unload(&h, "tiny", 0, &st) == MX_RPC_NOT_FOUND);
    CHECK(text_of(&h, "other", 1, text, NULL, &st) && text_of(&h, "", 1, text, NULL, &st));
    /* with time to end, they end */
    request(&q, &s, "other", 1, 40);
    free(p.data);
    p = pack(&q.base);
    CHECK(!mx_client_stream(h.client, &c[0], RPC("Stream"), p.data, p.len, 20000));
    const uint8_t *msg;
    size_t len;
    CHECK(mx_client_next(c[0], &msg, &len));
    pthread_t thread;                                /* the stream is read while the unload waits for it */
    Merx__V1__UnloadModelRequest other = MERX__V1__UNLOAD_MODEL_REQUEST__INIT;
    other.name = "other";
    unloading u = {.h = &h, .ask = pack(&other.base)};
    pthread_create(&thread, NULL, unload_other, &u);
    while (mx_client_next(c[0], &msg, &len)) continue;
    mx_client_finish(c[0], &st);
    CHECK_MSG(st.code == MX_RPC_OK, "%s", st.text);
    mx_client_end(c[0]);
    pthread_join(thread, NULL);
    CHECK_MSG(u.st.code == MX_RPC_OK, "%s", u.st.text);
    free(u.ask.data);
    CHECK(!text_of(&h, "", 1, text, NULL, &st) && st.code == MX_RPC_FAILED_PRECONDITION);
    free(p.data);
    house_close(&h);
}

/* ---- what must not change anything ----------------------------------------------------------------- */

static void set_cache(house *h, size_t bytes)
{
    pthread_mutex_lock(&h->app.loading);
    h->app.defaults.kv_bytes = bytes;
    pthread_mutex_unlock(&h->app.loading);
}

static void bad_loads(void)
{
    house h;
    mx_rpc_status st;
    int32_t before[NEW], after[NEW], version;
    char bad[300], path[400];
    if (!open_house(&h, 4, 100)) return;
    CHECK(text_of(&h, "tiny", 1, before, &version, &st) && version == 1);
    snprintf(bad, sizeof bad, MX_BINARY_DIR "/test_swap.bad.%d", (int)getpid());
    adapter_remove(bad);
    mkdir(bad, 0700);
    CHECK(load(&h, "tiny", "/etc", NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "models-folder"));
    CHECK(load(&h, "tiny", MX_SOURCE_DIR "/tests/golden/../../tests", NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT);
    CHECK(load(&h, "tiny", bad, NULL, NULL, &st) != MX_RPC_OK && st.text[0]);
    CHECK(load(&h, "tiny", BERT, NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "encoder"));
    CHECK(load(&h, "a/b", MODEL("llama"), NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT);
    /* whole, but for its last bytes */
    static const char *const files[] = {"config.json", "vocab.json", "merges.txt", "model.safetensors"};
    for (int i = 0; i < 4; i++) {
        char *text = NULL;
        size_t len = 0;
        mx_error err;
        snprintf(path, sizeof path, MODEL("llama") "/%s", files[i]);
        if (mx_read_file(path, 1 << 24, &text, &len, &err)) continue;
        snprintf(path, sizeof path, "%s/%s", bad, files[i]);
        FILE *out = fopen(path, "w");
        if (out) fwrite(text, 1, i < 3 ? len : len - 100, out);
        if (out) fclose(out);
        free(text);
    }
    CHECK_MSG(load(&h, "tiny", bad, NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "model.safetensors"), "%s", st.text);
    /* it would not fit: said in bytes, before a weight is read */
    set_cache(&h, (size_t)1 << 50);
    CHECK_MSG(load(&h, "tiny", MODEL("gpt2"), NULL, NULL, &st) == MX_RPC_RESOURCE_EXHAUSTED && strstr(st.text, "are held, it is") && strstr(st.text, "weights"), "%s", st.text);
    set_cache(&h, 0);
    CHECK(text_of(&h, "tiny", 1, after, &version, &st) && version == 1 && !memcmp(before, after, sizeof before));
    Merx__V1__ListVersionsResponse *r = list(&h);
    CHECK(r && r->n_versions == 1 && r->held_bytes > 0 && r->held_bytes < r->budget_bytes);
    list_free(r);
    adapter_remove(bad);
    house_close(&h);
}

/* ---- encoders, health ------------------------------------------------------------------------------- */

static int health(house *h, const char *name)
{
    uint8_t msg[64] = {10, (uint8_t)strlen(name)}, *bytes = NULL;
    size_t n = 0;
    mx_rpc_status st;
    memcpy(msg + 2, name, strlen(name));
    mx_client_unary(h->client, "/grpc.health.v1.Health/Check", msg, 2 + strlen(name), 5000, &bytes, &n, &st);
    int is = st.code ? -st.code : n == 2 ? bytes[1] : 0;       /* 1 SERVING, 2 NOT_SERVING */
    free(bytes);
    return is;
}

static void encoders_and_health(void)
{
    house h;
    mx_rpc_status st;
    int32_t version;
    Merx__V1__EmbedRequest q = MERX__V1__EMBED_REQUEST__INIT;
    Merx__V1__EmbedResponse *r = NULL;
    char *text = "a b c";
    float first[64] = {0};
    if (!open_house(&h, 4, 100)) return;
    CHECK(health(&h, "models/tiny") == 1 && health(&h, "models/mood") == -MX_RPC_NOT_FOUND);
    for (int i = 1; i <= 3; i++) {
        CHECK_MSG(load(&h, "mood", BERT, NULL, &version, &st) == MX_RPC_OK && version == i, "%s", st.text);
        q.n_texts = 1;
        q.texts = &text;
        CHECK(call(h.client, "/merx.v1.Embeddings/Embed", &q, &merx__v1__embed_response__descriptor, &r, &st) == MX_RPC_OK);
        CHECK(r && r->model_version == i && r->embeddings[0]->n_values == 32);
        if (r && i == 1) memcpy(first, r->embeddings[0]->values, 32 * sizeof *first);
        CHECK(r && !memcmp(first, r->embeddings[0]->values, 32 * sizeof *first));
        if (r) merx__v1__embed_response__free_unpacked(r, NULL);
        CHECK(mx_registry_settle(h.app.registry, 5000));
    }
    CHECK(health(&h, "models/mood") == 1);
    mx_served *s;
    mx_error err;
    CHECK_OK(mx_registry_encoder(h.app.registry, "mood", &s, &err), err);
    mx_registry_pin(s);
    mx_registry_release(s);
    CHECK(load(&h, "mood", BERT, NULL, &version, &st) == MX_RPC_FAILED_PRECONDITION && strstr(st.text, "profiles"));
    CHECK(unload(&h, "mood", 1, &st) == MX_RPC_FAILED_PRECONDITION);
    CHECK(unload(&h, "tiny", 1, &st) == MX_RPC_OK && health(&h, "models/tiny") == -MX_RPC_NOT_FOUND);
    house_close(&h);
}

/* ---- adapters ------------------------------------------------------------------------------------------ */

static void adapters_come_and_go(void)
{
    house h;
    mx_rpc_status st;
    char one[300], two[300], wide[300];
    int32_t base[NEW], with_one[NEW], with_two[NEW], now[NEW], version;
    static crowd c;
    static voice v[VOICES];
    snprintf(root, sizeof root, MX_BINARY_DIR "/test_swap.%d", (int)getpid());
    adapter_remove(root);
    mkdir(root, 0700);
    adapter_make(root, "llama", 127, 4, 11, "one");
    adapter_make(root, "llama", 0, 3, 12, "two");
    adapter_make(root, "llama", 0, 300, 13, "wide");
    snprintf(one, sizeof one, "%s/one", root);
    snprintf(two, sizeof two, "%s/two", root);
    snprintf(wide, sizeof wide, "%s/wide", root);
    if (!open_house(&h, 16, 1000)) return;
    CHECK(text_of(&h, "tiny", 0, base, NULL, &st));
    CHECK(!text_of(&h, "brand", 0, now, NULL, &st) && st.code == MX_RPC_NOT_FOUND);
    CHECK_MSG(load(&h, "brand", one, "tiny", &version, &st) == MX_RPC_OK && version == 0, "%s", st.text);
    CHECK(text_of(&h, "brand", 0, with_one, NULL, &st) && memcmp(base, with_one, sizeof base));
    c = (crowd){0};
    for (int i = 0; i < SEEDS; i++) CHECK(text_of(&h, "tiny", i, c.told[1][i], NULL, &st));
    memcpy(c.told[0], c.told[1], sizeof c.told[0]);  /* the next version will be the same network */
    crowd_start(&c, &h, v, "tiny");                  /* its bits do not depend on who comes and goes beside it */
    CHECK_MSG(load(&h, "brand", two, "tiny", NULL, &st) == MX_RPC_OK, "%s", st.text);       /* replaced */
    CHECK(text_of(&h, "brand", 0, with_two, NULL, &st) && memcmp(with_one, with_two, sizeof with_one));
    CHECK_MSG(load(&h, "other", one, "tiny", NULL, &st) == MX_RPC_OK, "%s", st.text);
    CHECK(text_of(&h, "other", 0, now, NULL, &st) && !memcmp(now, with_one, sizeof now));
    CHECK(load(&h, "wide", wide, "tiny", NULL, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "rank 300"));
    CHECK(load(&h, "tiny", one, "tiny", NULL, &st) == MX_RPC_INVALID_ARGUMENT);
    CHECK(load(&h, "brand", MODEL("llama"), NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT && strstr(st.text, "adapter"));
    CHECK(load(&h, "x", one, "nobody", NULL, &st) == MX_RPC_NOT_FOUND);
    CHECK(unload(&h, "other", 1, &st) == MX_RPC_OK && !text_of(&h, "other", 0, now, NULL, &st) && st.code == MX_RPC_NOT_FOUND);
    for (int i = 0; i < 8; i++) {                    /* places are used again; prefixes of the one before are not */
        CHECK(load(&h, "other", i % 2 ? one : two, "tiny", NULL, &st) == MX_RPC_OK);
        CHECK(text_of(&h, "other", 0, now, NULL, &st) && !memcmp(now, i % 2 ? with_one : with_two, sizeof now));
        CHECK(unload(&h, "other", 1, &st) == MX_RPC_OK);
    }
    CHECK_MSG(load(&h, "tiny", MODEL("llama"), NULL, &version, &st) == MX_RPC_OK && version == 2, "%s", st.text);   /* the adapter comes along */
    CHECK(text_of(&h, "brand", 0, now, &version, &st) && version == 2 && !memcmp(now, with_two, sizeof now));
    CHECK(load(&h, "tiny", MODEL("gpt2"), NULL, NULL, &st) == MX_RPC_INVALID_ARGUMENT);      /* brand does not fit it */
    CHECK(text_of(&h, "brand", 0, now, &version, &st) && version == 2);
    Merx__V1__ListVersionsResponse *r = list(&h);
    CHECK(r && r->n_versions >= 1 && r->versions[r->n_versions - 1]->version <= 2);
    list_free(r);
    crowd_end(&c);
    CHECK_MSG(!c.failed && !c.wrong && c.texts[1] > 0, "%d failed (%s), %d wrong", c.failed, c.why, c.wrong);
    house_close(&h);
    adapter_remove(root);
}

/* ---- footprints ------------------------------------------------------------------------------------------- */

/* Of every kind of file, weights alone. */
static void decoder_footprints(mx_device *dev)
{
    static const char *const path[] = {MODEL("gpt2"), MODEL("llama"), MODEL("llama3"), MODEL("qwen2"), MODEL("llama-gguf/model.gguf"), MODEL("gpt2-gguf/model.gguf")};
    static const mx_dtype types[] = {MX_F32, MX_BF16, MX_I8};
    mx_error err = {0};
    for (size_t i = 0; i < sizeof path / sizeof *path; i++)
        for (int t = 0; t < 3; t++) {
            mx_checkpoint *file = NULL;
            mx_decoder_config c;
            mx_decoder m;
            mx_footprint f;
            CHECK_OK(mx_checkpoint_open(&file, path[i], &err), err);
            CHECK_OK(mx_checkpoint_is_gguf(file) ? mx_decoder_config_gguf(&c, file, &err) : mx_decoder_config_folder(&c, path[i], &err), err);
            CHECK(mx_decoder_footprint(&f, dev, file, &c, types[t]));
            CHECK_OK(mx_decoder_open(&m, dev, file, &c, types[t], &err), err);
            CHECK_MSG(f.weights == m.weight_bytes, "%s %s: %zu and %zu", path[i], mx_dtype_name(types[t]), f.weights, m.weight_bytes);
            mx_decoder_close(&m);
        }
}

/* What is told before loading is what is taken. */
static void footprints(void)
{
    static const char *const path[] = {MODEL("gpt2"), MODEL("llama")};
    static const mx_dtype types[] = {MX_F32, MX_BF16, MX_I8};
    mx_error err = {0};
    mx_app app;
    CHECK_OK(mx_app_open(&app, NULL, &err), err);
    decoder_footprints(app.devices);
    for (size_t i = 0; i < sizeof path / sizeof *path; i++)
        for (int t = 0; t < 3; t++) {
            mx_generator_options o = mx_generator_defaults();
            mx_generator *g = NULL;
            mx_generator_info info;
            mx_footprint f;
            o.dtype = types[t];
            o.max_num_seqs = 3 + t;
            o.kv_dtype = t ? MX_F16 : MX_F32;
            CHECK_OK(mx_generator_footprint(&f, path[i], app.devices, &o, &err), err);
            CHECK_OK(mx_generator_open(&g, "x", path[i], app.devices, 0, app.scheduler, NULL, &o, &err), err);
            if (!g) continue;
            mx_generator_info_get(g, &info);
            CHECK_MSG(f.weights == info.weight_bytes && f.kv == info.kv_bytes && f.scratch == info.scratch_bytes, "%s %s: weights %zu and %zu, cache %zu and %zu, scratch %zu and %zu",
                      path[i], mx_dtype_name(types[t]), f.weights, info.weight_bytes, f.kv, info.kv_bytes, f.scratch, info.scratch_bytes);
            mx_scheduler_lane_close(app.scheduler, info.lane);
            mx_generator_close(g);
        }
    for (int t = 0; t < 3; t++) {
        mx_embedder_options o = mx_embedder_defaults();
        mx_embedder *e = NULL;
        mx_embedder_info info;
        mx_footprint f;
        o.dtype = types[t];
        CHECK_OK(mx_embedder_footprint(&f, BERT, app.devices, &o, &err), err);
        CHECK_OK(mx_embedder_open(&e, "x", BERT, app.devices, 0, app.scheduler, &o, &err), err);
        if (!e) continue;
        mx_embedder_info_get(e, &info);
        CHECK_MSG(f.weights == info.weight_bytes && f.scratch == info.scratch_bytes, "bert %s: weights %zu and %zu, scratch %zu and %zu", mx_dtype_name(types[t]), f.weights,
                  info.weight_bytes, f.scratch, info.scratch_bytes);
        mx_scheduler_lane_close(app.scheduler, info.lane);
        mx_embedder_close(e);
    }
    mx_app_close(&app, 0);
}

MX_TESTS(TEST(footprints), TEST(bad_loads), TEST(encoders_and_health), TEST(unload_while_requests_wait), TEST(adapters_come_and_go), TEST(swap_under_load))
