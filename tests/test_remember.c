/* test_remember.c - models that were loaded and unloaded while the server ran, after a restart. */
#include "server/remember.h"
#include "tests/adapter_files.h"
#include "tests/house.h"

static char root[256], file[300], link_to[300];

/* A server that begins: --model tiny, and what is remembered. */
static bool begin(house *h)
{
    static const char *const none[] = {NULL};
    mx_error err = {0};
    if (!house_open(h, &(house_options){.models = none})) return false;
    CHECK_OK(mx_remember_open(&h->app, file, &err), err);
    CHECK_OK(mx_remember_load(&h->app, "tiny=" HOUSE_MODEL("llama"), &h->app.defaults, &err), err);
    mx_remember_restore(&h->app);
    return h->app.remember != NULL;
}

static bool load(house *h, const char *name, const char *path, const char *base)
{
    mx_error err = {0};
    mx_loaded out;
    mx_status st = h->app.load(&h->app, name, path, base, &out, &err);
    if (st) printf("  %s\n", err.text);
    return !st;
}

static bool unload(house *h, const char *name)
{
    mx_error err = {0};
    return !h->app.unload(&h->app, name, 1000, &err);
}

/* Where a model was read; "": it is not served. */
static const char *from(house *h, const char *name)
{
    static char path[4096];
    mx_generator_info info;
    mx_served *s;
    mx_error err;
    *path = 0;
    if (mx_registry_generator(h->app.registry, name, &s, &err)) return path;
    mx_generator_info_get(s->generator, &info);
    snprintf(path, sizeof path, "%s", info.path);
    mx_registry_release(s);
    return path;
}

static bool stands(house *h, const char *adapter)
{
    int32_t id;
    mx_served *s = mx_registry_adapter(h->app.registry, adapter, &id);
    if (s) mx_generator_adapter_release(s->generator, id);
    mx_registry_release(s);
    return s != NULL;
}

static void fresh_files(void)
{
    snprintf(root, sizeof root, MX_BINARY_DIR "/test_remember.%d", (int)getpid());
    nftw(root, house_remove_one, 16, FTW_DEPTH | FTW_PHYS);
    CHECK(!mkdir(root, 0700));
    snprintf(file, sizeof file, "%s/models.db", root);
    snprintf(link_to, sizeof link_to, "%s/llama", root);
    CHECK(!symlink(HOUSE_MODEL("llama"), link_to));
}

static void loaded_models_outlive_a_restart(void)
{
    char one[300];
    house h;
    fresh_files();
    adapter_make(root, "llama", 127, 4, 11, "one");
    snprintf(one, sizeof one, "%s/one", root);
    if (!begin(&h)) return;                               /* nothing is remembered yet */
    CHECK_STR(from(&h, "tiny"), HOUSE_MODEL("llama"));
    CHECK(load(&h, "copy", HOUSE_MODEL("gpt2"), "") && load(&h, "tiny", link_to, "") && load(&h, "brand", one, "tiny"));
    CHECK(!load(&h, "bad", HOUSE_BERT "/nothing", ""));
    house_close(&h);

    if (!begin(&h)) return;
    CHECK_STR(from(&h, "tiny"), link_to);                 /* not what --model says */
    CHECK_STR(from(&h, "copy"), HOUSE_MODEL("gpt2"));
    CHECK(stands(&h, "brand") && !*from(&h, "bad"));
    CHECK(unload(&h, "copy") && unload(&h, "tiny"));      /* and what stands beside it */
    house_close(&h);

    if (!begin(&h)) return;
    CHECK(!*from(&h, "tiny") && !*from(&h, "copy") && !stands(&h, "brand"));
    CHECK(load(&h, "tiny", HOUSE_MODEL("llama"), "") && load(&h, "brand", one, "tiny") && unload(&h, "brand"));
    house_close(&h);

    if (!begin(&h)) return;
    CHECK_STR(from(&h, "tiny"), HOUSE_MODEL("llama"));
    CHECK(!stands(&h, "brand"));
    house_close(&h);
    nftw(root, house_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void what_is_broken_is_told_and_left_out(void)
{
    house h;
    mx_error err = {0};
    fresh_files();
    if (!begin(&h)) return;
    CHECK(load(&h, "copy", link_to, "") && load(&h, "tiny", link_to, "") && load(&h, "other", HOUSE_MODEL("gpt2"), ""));
    house_close(&h);
    CHECK(!unlink(link_to));
    if (!begin(&h)) return;
    CHECK(!*from(&h, "copy"));
    CHECK_STR(from(&h, "other"), HOUSE_MODEL("gpt2"));
    CHECK_STR(from(&h, "tiny"), HOUSE_MODEL("llama"));    /* what --model says, in its place */
    house_close(&h);
    CHECK(!symlink(HOUSE_MODEL("llama"), link_to));       /* it is there again, and was not forgotten */
    if (!begin(&h)) return;
    CHECK_STR(from(&h, "copy"), link_to);
    CHECK_STR(from(&h, "tiny"), link_to);
    house_close(&h);

    FILE *f = fopen(file, "w");
    fputs("not a database, and longer than the header of one, so that nobody takes it for an empty file", f);
    fclose(f);
    static const char *const none[] = {NULL};
    if (!house_open(&h, &(house_options){.models = none})) return;
    CHECK(mx_remember_open(&h.app, file, &err) && strstr(err.text, file) && !h.app.remember);
    house_close(&h);
    nftw(root, house_remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

MX_TESTS(TEST(loaded_models_outlive_a_restart), TEST(what_is_broken_is_told_and_left_out))
