/* Tokens: the file and what is wrong with it, services, rates by a clock of our own, reloading. */
#include "server/auth.h"
#include "tests/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define GENERATE "/merx.v1.Generation/Generate"
#define EMBED    "/merx.v1.Embeddings/Embed"

static char path[] = "/tmp/merx-auth-XXXXXX";

static void write_file(const char *text)
{
    FILE *f = fopen(path, "w");
    if (f) fputs(text, f), fclose(f);
}

static mx_status check(mx_auth *a, const char *token, const char *method, uint64_t now, mx_error *err, const mx_tenant **t)
{
    *t = NULL;
    *err = (mx_error){0};
    return mx_auth_check(a, token, token ? strlen(token) : 0, method, now, t, err);
}

static void test_who_may(void)
{
    mx_error err = {0};
    mx_auth *a = NULL;
    const mx_tenant *t;
    char one[MX_TOKEN_TEXT], two[MX_TOKEN_TEXT], hash[80], text[1000];
    CHECK_OK(mx_token_make(one, hash, &err), err);
    CHECK(strlen(one) == 46 && !strncmp(one, "mx_", 3) && !strncmp(hash, "sha256:", 7) && strlen(hash) == 71);
    snprintf(text, sizeof text, "# tenants\n\n  shop %s services=Generation,Pricing\n", hash);
    CHECK_OK(mx_token_make(two, hash, &err), err);
    CHECK(strcmp(one, two) != 0);
    snprintf(text + strlen(text), sizeof text - strlen(text), "crm %s weight=3\n", hash);
    write_file(text);
    CHECK_OK(mx_auth_open(&a, path, &err), err);
    CHECK(check(a, one, GENERATE, 0, &err, &t) == MX_OK && t && t->number == 1);
    CHECK_STR(t ? t->name : NULL, "shop");
    CHECK(check(a, one, EMBED, 0, &err, &t) == MX_ERR_DENIED && t);
    CHECK(strstr(err.text, "Embeddings") != NULL);
    CHECK(check(a, two, EMBED, 0, &err, &t) == MX_OK && t && t->number == 2);
    CHECK(check(a, NULL, EMBED, 0, &err, &t) == MX_ERR_UNKNOWN_CALLER && !t);
    CHECK(check(a, "", EMBED, 0, &err, &t) == MX_ERR_UNKNOWN_CALLER);
    one[10] ^= 1;
    CHECK(check(a, one, GENERATE, 0, &err, &t) == MX_ERR_UNKNOWN_CALLER);
    double weight = 0;
    t = mx_auth_tenant(a, 1, &weight);
    CHECK(t && !strcmp(t->name, "crm") && weight == 3);
    CHECK(mx_auth_tenant(a, 2, &weight) == NULL);
    mx_auth_close(a);
}

/* 10 a second, 3 at once: whatever the pace of asking, no second has more than 13. */
static void test_rate(void)
{
    mx_error err = {0};
    mx_auth *a = NULL;
    const mx_tenant *t;
    char token[MX_TOKEN_TEXT], hash[80], text[200];
    CHECK_OK(mx_token_make(token, hash, &err), err);
    snprintf(text, sizeof text, "shop %s rate=10 burst=3\n", hash);
    write_file(text);
    CHECK_OK(mx_auth_open(&a, path, &err), err);
    uint64_t now = 5000000000u, seed = 42;
    for (int i = 0; i < 3; i++) CHECK(check(a, token, GENERATE, now, &err, &t) == MX_OK);
    CHECK(check(a, token, GENERATE, now, &err, &t) == MX_ERR_BUSY);
    CHECK_MSG(err.retry_ms >= 99 && err.retry_ms <= 101, "retry %u", err.retry_ms);
    CHECK(check(a, token, GENERATE, now + (uint64_t)err.retry_ms * 1000000u, &err, &t) == MX_OK);
    int taken = 0;
    for (now += 10000000000u; now < 115000000000u; now += test_random(&seed) % 20000000u)
        taken += check(a, token, GENERATE, now, &err, &t) == MX_OK;
    CHECK_MSG(taken >= 990 && taken <= 1003, "%d calls in 100 s", taken);
    mx_auth_close(a);
}

static void test_bad_files(void)
{
    static const char *const bad[][2] = {
        {"shop\n", ":1:"}, {"shop sha256:12\n", "64 hex digits"}, {"sh/op sha256:12\n", "letters"},
        {"\nshop sha256:0000000000000000000000000000000000000000000000000000000000000000 rate=-1\n", ":2:"},
        {"shop sha256:0000000000000000000000000000000000000000000000000000000000000000 burst=5\n", "needs rate"},
        {"shop sha256:0000000000000000000000000000000000000000000000000000000000000000 admin\n", "only services="},
        {"shop sha256:000000000000000000000000000000000000000000000000000000000000000g\n", "64 hex digits"},
        {"shop sha256:0000000000000000000000000000000000000000000000000000000000000000 rate=nan\n", "rate="},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_error err = {0};
        mx_auth *a = NULL;
        write_file(bad[i][0]);
        CHECK(mx_auth_open(&a, path, &err) == MX_ERR_FORMAT && !a);
        CHECK_MSG(strstr(err.text, bad[i][1]) != NULL, "%s", err.text);
    }
    mx_error err = {0};
    mx_auth *a = NULL;
    CHECK(mx_auth_open(&a, "/nonexistent/tokens", &err) == MX_ERR_IO);
}

typedef struct shared { mx_auth *a; const char *token; atomic_bool stop; atomic_int ok, bad; } shared;

static void *ask(void *user)
{
    shared *s = user;
    while (!atomic_load(&s->stop)) {
        mx_error err;
        const mx_tenant *t;
        bool ok = check(s->a, s->token, GENERATE, 1, &err, &t) == MX_OK && t && !strcmp(t->name, "shop");
        atomic_fetch_add(ok ? &s->ok : &s->bad, 1);
    }
    return NULL;
}

/* A reload never lets a call see half a file; a bad file changes nothing. */
static void test_reload(void)
{
    mx_error err = {0};
    char token[MX_TOKEN_TEXT], hash[80], text[300];
    shared s = {.token = token};
    pthread_t thread;
    const mx_tenant *t;
    CHECK_OK(mx_token_make(token, hash, &err), err);
    snprintf(text, sizeof text, "shop %s\n", hash);
    write_file(text);
    CHECK_OK(mx_auth_open(&s.a, path, &err), err);
    pthread_create(&thread, NULL, ask, &s);
    for (int i = 0; i < 200; i++) {
        write_file(i % 2 ? "nonsense\n" : text);
        CHECK(mx_auth_reload(s.a, NULL, &err) == (i % 2 ? MX_ERR_FORMAT : MX_OK));
    }
    atomic_store(&s.stop, true);
    pthread_join(thread, NULL);
    CHECK_MSG(atomic_load(&s.ok) > 0 && !atomic_load(&s.bad), "%d right, %d wrong", atomic_load(&s.ok), atomic_load(&s.bad));
    write_file("# nobody\n");
    CHECK_OK(mx_auth_reload(s.a, NULL, &err), err);
    CHECK(check(s.a, token, GENERATE, 1, &err, &t) == MX_ERR_UNKNOWN_CALLER);
    mx_auth_close(s.a);
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {TEST(test_who_may), TEST(test_rate), TEST(test_bad_files), TEST(test_reload)};
    int fd = mkstemp(path);
    if (fd < 0) return 1;
    close(fd);
    int failed = test_main(tests, sizeof tests / sizeof *tests, argc, argv);
    unlink(path);
    return failed;
}
