/* auth.c - the tokens file, the comparison and the rates. */
#include "server/auth.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HASH = 32, LINE = 4096, SERVICES = 400, TOKENS_MOST = 10000 };

/* Never freed before the auth, so that a call may keep the name; one that is no longer
 * in the file has no token that leads to it. */
typedef struct tenant {
    mx_tenant id;
    struct tenant *next;
    double   rate, burst;          /* 0: no limit                                       */
    double   weight;
    uint64_t due_ns;               /* GCRA: the theoretical arrival time                */
} tenant;

typedef struct entry {
    uint8_t hash[HASH];
    char    services[SERVICES];    /* ",Generation,Embeddings,"; "*": all                */
    double  rate, burst, weight;
    char    name[sizeof ((mx_tenant *)0)->name];
    tenant *of;
} entry;

struct mx_auth {
    pthread_mutex_t lock;
    char    *file;
    entry   *entries;
    int      n;
    tenant  *tenants;
};

/* ---- the file -------------------------------------------------------------------------- */

static int hex(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

static bool read_hash(const char *text, uint8_t out[HASH])
{
    if (strncmp(text, "sha256:", 7) != 0 || strlen(text) != 7 + 2 * HASH) return false;
    for (int i = 0; i < HASH; i++) {
        int high = hex(text[7 + 2 * i]), low = hex(text[8 + 2 * i]);
        if (high < 0 || low < 0) return false;
        out[i] = (uint8_t)(high * 16 + low);
    }
    return true;
}

static bool read_number(const char *text, double *out)
{
    char *end;
    *out = strtod(text, &end);
    return end != text && !*end && isfinite(*out) && *out > 0 && *out <= 1e9;
}

static bool good_name(const char *name)
{
    size_t n = strlen(name);
    if (!n || n >= sizeof ((mx_tenant *)0)->name) return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("._-", *name)) return false;
    return true;
}

static const char *read_words(entry *e, char *line)
{
    char *save, *word = strtok_r(line, " \t\r\n", &save);
    if (!good_name(word)) return "a tenant's name is 1 to 63 letters, digits and . _ -";
    snprintf(e->name, sizeof e->name, "%s", word);
    word = strtok_r(NULL, " \t\r\n", &save);
    if (!word || !read_hash(word, e->hash)) return "after the name comes sha256: and 64 hex digits (merx token NAME makes them)";
    snprintf(e->services, sizeof e->services, "*");
    e->weight = 1;
    while ((word = strtok_r(NULL, " \t\r\n", &save))) {
        if (!strncmp(word, "services=", 9)) {
            if (!word[9] || strlen(word + 9) + 3 > sizeof e->services) return "services= takes names with commas between them, or *";
            if (strcmp(word + 9, "*") != 0) snprintf(e->services, sizeof e->services, ",%s,", word + 9);
        } else if (!strncmp(word, "rate=", 5)) {
            if (!read_number(word + 5, &e->rate)) return "rate= takes calls a second, above 0";
        } else if (!strncmp(word, "burst=", 6)) {
            if (!read_number(word + 6, &e->burst) || e->burst < 1) return "burst= takes a number of calls, 1 or more";
        } else if (!strncmp(word, "weight=", 7)) {
            if (!read_number(word + 7, &e->weight)) return "weight= takes a number above 0";
        } else {
            return "only services=, rate=, burst= and weight= may follow the hash";
        }
    }
    if (e->burst > 0 && e->rate <= 0) return "burst= needs rate=";
    if (e->rate > 0 && e->burst <= 0) e->burst = e->rate < 1 ? 1 : e->rate;
    return NULL;
}

static mx_status read_file(const char *file, entry **out, int *count, mx_error *err)
{
    char line[LINE];
    int number = 0, n = 0, room = 0;
    entry *list = NULL;
    mx_status st = MX_OK;
    FILE *f = fopen(file, "re");
    if (!f) return mx_fail(err, MX_ERR_IO, "tokens %s: %s", file, strerror(errno));
    while (!st && fgets(line, sizeof line, f)) {
        number++;
        if (!strchr(line, '\n') && !feof(f)) st = mx_fail(err, MX_ERR_FORMAT, "%s:%d: the line is over %d bytes", file, number, LINE - 2);
        char *at = line + strspn(line, " \t\r\n");
        if (st || !*at || *at == '#') continue;
        if (n == TOKENS_MOST) st = mx_fail(err, MX_ERR_FORMAT, "%s:%d: over %d tokens", file, number, TOKENS_MOST);
        if (!st && n == room) {
            entry *more = realloc(list, (size_t)(room += 64) * sizeof *more);
            if (more) list = more;
            else st = mx_fail(err, MX_ERR_NO_MEMORY, "tokens %s", file);
        }
        if (st) break;
        list[n] = (entry){0};
        const char *wrong = read_words(&list[n], at);
        if (wrong) st = mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", file, number, wrong);
        else n++;
    }
    if (!st && ferror(f)) st = mx_fail(err, MX_ERR_IO, "tokens %s: %s", file, strerror(errno));
    fclose(f);
    if (!st) {
        *out = list;
        *count = n;
        return MX_OK;
    }
    free(list);
    return st;
}

static tenant *find_tenant(mx_auth *a, const char *name)
{
    int n = 1;
    tenant **end = &a->tenants;
    for (; *end; end = &(*end)->next, n++)
        if (!strcmp((*end)->id.name, name)) return *end;
    tenant *t = calloc(1, sizeof *t);
    if (!t) return NULL;
    snprintf(t->id.name, sizeof t->id.name, "%s", name);
    t->id.number = (uint8_t)(n < 255 ? n : 255);
    return *end = t;
}

mx_status mx_auth_reload(mx_auth *a, int *tokens, mx_error *err)
{
    entry *list = NULL;
    int n = 0;
    MX_TRY(read_file(a->file, &list, &n, err));
    pthread_mutex_lock(&a->lock);
    bool ok = true;
    for (int i = 0; i < n && ok; i++) ok = (list[i].of = find_tenant(a, list[i].name)) != NULL;
    if (ok) {
        entry *old = a->entries;
        for (int i = 0; i < n; i++) {
            list[i].of->rate = list[i].rate;
            list[i].of->burst = list[i].burst;
            list[i].of->weight = list[i].weight;
        }
        a->entries = list;
        a->n = n;
        list = old;
    }
    pthread_mutex_unlock(&a->lock);
    free(list);
    if (tokens) *tokens = n;
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "tokens %s", a->file);
}

const mx_tenant *mx_auth_tenant(mx_auth *a, int i, double *weight)
{
    pthread_mutex_lock(&a->lock);
    tenant *t = a->tenants;
    while (t && i--) t = t->next;
    if (t) *weight = t->weight;
    pthread_mutex_unlock(&a->lock);
    return t ? &t->id : NULL;
}

mx_status mx_auth_open(mx_auth **out, const char *file, mx_error *err)
{
    *out = NULL;
    mx_auth *a = calloc(1, sizeof *a);
    if (!a || !(a->file = strdup(file))) {
        free(a);
        return mx_fail(err, MX_ERR_NO_MEMORY, "tokens %s", file);
    }
    pthread_mutex_init(&a->lock, NULL);
    mx_status st = mx_auth_reload(a, NULL, err);
    if (st) {
        mx_auth_close(a);
        return st;
    }
    *out = a;
    return MX_OK;
}

void mx_auth_close(mx_auth *a)
{
    if (!a) return;
    for (tenant *t = a->tenants, *next; t; t = next) {
        next = t->next;
        free(t);
    }
    free(a->entries);
    free(a->file);
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* ---- a call ------------------------------------------------------------------------------ */

/* Every entry is compared whole, whichever matches: time tells nothing of the hashes. */
static const entry *find_entry(const mx_auth *a, const uint8_t hash[HASH])
{
    const entry *found = NULL;
    for (int i = 0; i < a->n; i++)
        if (CRYPTO_memcmp(a->entries[i].hash, hash, HASH) == 0) found = &a->entries[i];
    return found;
}

/* "/merx.v1.Generation/Stream" -> "Generation" */
static void service_of(const char *method, char *out, size_t size)
{
    const char *end = strrchr(method, '/'), *dot = end;
    while (dot && dot > method && dot[-1] != '.') dot--;
    snprintf(out, size, "%.*s", end ? (int)(end - dot) : 0, end ? dot : "");
}

static bool may_call(const entry *e, const char *service)
{
    char wanted[80];
    if (!strcmp(e->services, "*")) return true;
    snprintf(wanted, sizeof wanted, ",%s,", service);
    return strstr(e->services, wanted) != NULL;
}

/* A call is early by `wait` ns when it would come before the bucket has room for it. */
static uint64_t take_turn(tenant *t, uint64_t now_ns)
{
    if (t->rate <= 0) return 0;
    uint64_t each = (uint64_t)(1e9 / t->rate), slack = (uint64_t)((t->burst - 1) * 1e9 / t->rate);
    uint64_t due = t->due_ns > now_ns ? t->due_ns : now_ns;
    if (due > now_ns + slack) return due - now_ns - slack;
    t->due_ns = due + each;
    return 0;
}

mx_status mx_auth_check(mx_auth *a, const char *token, size_t len, const char *method, uint64_t now_ns,
                        const mx_tenant **of, mx_error *err)
{
    uint8_t hash[EVP_MAX_MD_SIZE];
    char service[64];
    if (!token) return mx_fail(err, MX_ERR_UNKNOWN_CALLER, "authorization: a bearer token is needed");
    if (!EVP_Digest(token, len, hash, NULL, EVP_sha256(), NULL)) return mx_fail(err, MX_ERR_INTERNAL, "SHA-256 is not available");
    service_of(method, service, sizeof service);
    pthread_mutex_lock(&a->lock);
    const entry *e = find_entry(a, hash);
    bool allowed = e && may_call(e, service);
    double rate = e ? e->of->rate : 0;
    uint64_t wait = allowed ? take_turn(e->of, now_ns) : 0;
    if (e) *of = &e->of->id;
    pthread_mutex_unlock(&a->lock);
    if (!e) return mx_fail(err, MX_ERR_UNKNOWN_CALLER, "authorization: the token is not known");
    if (!allowed) return mx_fail(err, MX_ERR_DENIED, "the token is not for the service %s", service);
    if (!wait) return MX_OK;
    mx_fail(err, MX_ERR_BUSY, "over the tenant's rate of %g calls a second", rate);
    err->retry_ms = (uint32_t)(wait / 1000000u < 3600000u ? wait / 1000000u + 1 : 3600000u);
    return MX_ERR_BUSY;
}

mx_status mx_token_make(char token[MX_TOKEN_TEXT], char out[80], mx_error *err)
{
    uint8_t random[33], hash[EVP_MAX_MD_SIZE];
    unsigned char text[64];
    if (RAND_bytes(random, sizeof random) != 1) return mx_fail(err, MX_ERR_IO, "no random bytes");
    EVP_EncodeBlock(text, random, sizeof random);           /* 44 characters, no padding */
    for (unsigned char *t = text; *t; t++) *t = *t == '+' ? '-' : *t == '/' ? '_' : *t;     /* base64url, RFC 4648 */
    int n = snprintf(token, MX_TOKEN_TEXT, "mx_%.43s", text);
    if (!EVP_Digest(token, (size_t)n, hash, NULL, EVP_sha256(), NULL)) return mx_fail(err, MX_ERR_IO, "SHA-256 is not available");
    snprintf(out, 80, "sha256:");
    for (int i = 0; i < HASH; i++) snprintf(out + 7 + 2 * i, 3, "%02x", hash[i]);
    return MX_OK;
}

mx_status mx_pem_read(const char *file, char **out, mx_error *err)
{
    enum { MOST = 1 << 20 };
    FILE *f = fopen(file, "re");
    if (!f) return mx_fail(err, MX_ERR_IO, "%s: %s", file, strerror(errno));
    char *text = malloc(MOST + 1);
    size_t n = text ? fread(text, 1, MOST, f) : 0;
    bool bad = ferror(f) || n == 0 || n == MOST;
    fclose(f);
    if (!text || bad) {
        free(text);
        return text ? mx_fail(err, MX_ERR_FORMAT, "%s: empty, over 1 MiB, or not readable", file) : mx_fail(err, MX_ERR_NO_MEMORY, "%s", file);
    }
    text[n] = 0;
    *out = text;
    return MX_OK;
}
