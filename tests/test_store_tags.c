/* test_store_tags.c - tags of subjects on disk: state, history, holders, erasure without a trace. */
#include "server/store.h"
#include "tests/test.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <unistd.h>

static char path[256];

typedef struct seen { int count; char last[64]; double probability; int64_t since; char data[32]; } seen;

static mx_status see(void *ctx, const mx_tag_row *r, mx_error *err)
{
    seen *s = ctx;
    (void)err;
    s->count++;
    snprintf(s->last, sizeof s->last, "%s %s", r->subject, r->tag);
    s->probability = r->probability;
    s->since = r->since_ms;
    snprintf(s->data, sizeof s->data, "%.*s", (int)r->size, (const char *)r->data);
    return MX_OK;
}

static bool file_has(const char *suffix, const char *needle)
{
    static char bytes[1 << 20];
    char name[300];
    snprintf(name, sizeof name, "%s%s", path, suffix);
    int fd = open(name, O_RDONLY);
    if (fd < 0) return false;
    ssize_t n = read(fd, bytes, sizeof bytes);
    close(fd);
    return n > 0 && memmem(bytes, (size_t)n, needle, strlen(needle));
}

static void remove_all(void)
{
    static const char *const suffix[] = {"", "-wal", "-shm"};
    char name[300];
    for (int i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "%s%s", path, suffix[i]);
        unlink(name);
    }
}

static void tags(void)
{
    mx_store *s = NULL;
    mx_error err = {0};
    seen k = {0};
    snprintf(path, sizeof path, "/tmp/merx-test-tags-%d.db", (int)getpid());
    remove_all();
    CHECK_OK(mx_store_open(&s, path, &err), err);
    mx_tag_row r = {.subject = "user/anna", .tag = "price-sensitive", .version = 2, .state = 1, .score = 0.5, .probability = 0.7, .ts_ms = 100, .since_ms = 90, .data = "why", .size = 3};
    CHECK_OK(mx_store_begin(s, &err), err);
    CHECK_OK(mx_store_put_tag(s, &r, &err), err);
    CHECK_OK(mx_store_add_tag_change(s, &r, &err), err);
    r.probability = 0.8, r.ts_ms = 200, r.data = NULL, r.size = 0;
    CHECK_OK(mx_store_put_tag(s, &r, &err), err);
    CHECK_OK(mx_store_add_tag_change(s, &r, &err), err);
    r.subject = "user/bert", r.tag = "social", r.data = "x", r.size = 1;
    CHECK_OK(mx_store_put_tag(s, &r, &err), err);
    r.tag = "price-sensitive";
    CHECK_OK(mx_store_put_tag(s, &r, &err), err);
    CHECK_OK(mx_store_put_document(s, "vector", "user/anna", "1234", 4, &err), err);
    CHECK_OK(mx_store_commit(s, &err), err);
    mx_store_close(s);
    CHECK_OK(mx_store_open(&s, path, &err), err);
    CHECK_OK(mx_store_each_tag(s, "user/anna", see, &k, &err), err);
    CHECK(k.count == 1 && k.probability == 0.8 && k.since == 90 && !*k.data);
    k = (seen){0};
    CHECK_OK(mx_store_each_tag_change(s, "user/anna", NULL, 0, see, &k, &err), err);
    CHECK(k.count == 2 && k.probability == 0.8);
    k = (seen){0};
    CHECK_OK(mx_store_each_tag_change(s, "user/anna", "social", 0, see, &k, &err), err);
    CHECK(k.count == 0);
    CHECK_OK(mx_store_each_tag_change(s, "user/anna", "price-sensitive", 150, see, &k, &err), err);
    CHECK(k.count == 1);
    k = (seen){0};
    CHECK_OK(mx_store_each_tag_holder(s, "price-sensitive", 1, "", 10, see, &k, &err), err);
    CHECK(k.count == 2);
    CHECK_STR(k.last, "user/bert price-sensitive");
    k = (seen){0};
    CHECK_OK(mx_store_each_tag_holder(s, "price-sensitive", 1, "user/anna", 10, see, &k, &err), err);
    CHECK(k.count == 1);
    int64_t rows = 0, when = 0;
    const char *receipt = "";
    bool found = false;
    CHECK(file_has("", "user/anna") || file_has("-wal", "user/anna"));
    CHECK_OK(mx_store_begin(s, &err), err);
    CHECK_OK(mx_store_erase_subject(s, "user/anna", "d1g35t", 300, "the receipt", &rows, &err), err);
    CHECK_OK(mx_store_delete_document(s, "vector", "user/anna", &err), err);
    CHECK_OK(mx_store_commit(s, &err), err);
    CHECK_OK(mx_store_scrub(s, &err), err);
    CHECK(rows == 3);
    CHECK(!file_has("", "user/anna") && !file_has("-wal", "user/anna") && file_has("", "user/bert"));
    CHECK_OK(mx_store_get_erasure(s, "d1g35t", &when, &receipt, &found, &err), err);
    CHECK(found && when == 300);
    CHECK_STR(receipt, "the receipt");
    CHECK_OK(mx_store_get_erasure(s, "other", &when, &receipt, &found, &err), err);
    CHECK(!found);
    mx_store_close(s);
    remove_all();
}

static mx_status count_rows(void *ctx, const mx_log_row *r, mx_error *err)
{
    (void)r, (void)err;
    ++*(int *)ctx;
    return MX_OK;
}

/* A log of the first shape, UNIQUE(kind, key), is taken over as it was; keys stay unique, rows without one are as many as come. */
static void an_older_log(void)
{
    static const char old[] = "CREATE TABLE log(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT, ts_ms INTEGER NOT NULL, data BLOB NOT NULL, UNIQUE(kind, key));"
                              "INSERT INTO log VALUES(7, 'sale', 's1', 5, x'6162'), (9, 'decision', NULL, 6, x'63'), (10, 'decision', NULL, 6, x'64');";
    mx_store *s = NULL;
    mx_error err = {0};
    sqlite3 *db = NULL;
    bool duplicate = false, found = false;
    int rows = 0;
    snprintf(path, sizeof path, "/tmp/merx-test-tags-%d.db", (int)getpid());
    remove_all();
    CHECK(sqlite3_open(path, &db) == SQLITE_OK && sqlite3_exec(db, old, NULL, NULL, NULL) == SQLITE_OK);
    sqlite3_close(db);
    for (int twice = 0; twice < 2; twice++) {
        CHECK_OK(mx_store_open(&s, path, &err), err);
        if (!s) return;
        mx_log_row r = {.kind = "sale", .key = "s1", .data = "x", .size = 1}, got;
        CHECK_OK(mx_store_add_log(s, &r, &duplicate, &err), err);
        CHECK(duplicate);
        r.kind = "decision", r.key = NULL;
        CHECK_OK(mx_store_add_log(s, &r, &duplicate, &err), err);
        CHECK(!duplicate && r.id == 11 + twice);
        CHECK_OK(mx_store_find_log(s, "sale", "s1", &got, &found, &err), err);
        CHECK(found && got.id == 7 && got.size == 2 && !memcmp(got.data, "ab", 2) && got.ts_ms == 5);
        r.id = 9;
        CHECK(mx_store_add_log(s, &r, &duplicate, &err) == MX_ERR_IO);         /* an id that is there is no duplicate key */
        rows = 0;
        CHECK_OK(mx_store_each_log(s, "decision", count_rows, &rows, &err), err);
        CHECK(rows == 3 + twice);
        mx_store_close(s);
    }
    remove_all();
}

MX_TESTS(TEST(an_older_log), TEST(tags))
