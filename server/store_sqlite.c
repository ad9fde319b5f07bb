/* store_sqlite.c - store.h on SQLite; the only file that knows it. */
#include "server/store.h"

#include "runtime/log.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

enum { PUT_EXPERIMENT, ALL_EXPERIMENTS, ADD_DECISION, GET_DECISION, FIRST_DECISION, ADD_OUTCOME, ALL_OUTCOMES, PUT_DOCUMENT, ALL_DOCUMENTS,
       ADD_LOG, REPLACE_LOG, GET_LOG, FIND_LOG, ALL_LOG, LAST_LOG, DELETE_DOCUMENT, PUT_TAG, ADD_CHANGE, ALL_TAGS, ALL_CHANGES, ALL_HOLDERS,
       DELETE_TAGS, DELETE_CHANGES, PUT_ERASURE, GET_ERASURE, STATEMENTS };

#define TAG "subject, tag, version, state, source, score, probability, ts_ms, since_ms, expires_ms, data"

static const char *const text_of[STATEMENTS] = {
    [PUT_EXPERIMENT] = "INSERT INTO experiments(id, spec, created_ms, paused, promoted, state) VALUES(?,?,?,?,?,?) "
                       "ON CONFLICT(id) DO UPDATE SET paused=excluded.paused, promoted=excluded.promoted, state=excluded.state",
    [ALL_EXPERIMENTS] = "SELECT id, spec, created_ms, paused, promoted, state FROM experiments ORDER BY created_ms, id",
    [ADD_DECISION] = "INSERT INTO decisions(experiment, unit, arm, flags, propensity, version, ts_ms, context) VALUES(?,?,?,?,?,?,?,?)",
    [GET_DECISION] = "SELECT id, experiment, unit, arm, flags, propensity, version, ts_ms, context FROM decisions WHERE id=?",
    [FIRST_DECISION] = "SELECT id, experiment, unit, arm, flags, propensity, version, ts_ms, context FROM decisions "
                       "WHERE experiment=? AND unit=? AND flags=0 ORDER BY id LIMIT 1",
    [ADD_OUTCOME] = "INSERT INTO outcomes(decision, key, value, ts_ms, learned) VALUES(?,?,?,?,?) ON CONFLICT(decision, key) DO NOTHING",
    [ALL_OUTCOMES] = "SELECT d.id, d.experiment, d.unit, d.arm, d.flags, d.propensity, d.version, d.ts_ms, d.context, o.value, o.ts_ms "
                     "FROM outcomes o JOIN decisions d ON d.id=o.decision WHERE d.experiment=? AND o.learned=1 ORDER BY o.seq",
    [PUT_DOCUMENT] = "INSERT INTO documents(kind, key, data) VALUES(?,?,?) ON CONFLICT(kind, key) DO UPDATE SET data=excluded.data",
    [ALL_DOCUMENTS] = "SELECT key, data FROM documents WHERE kind=? ORDER BY key",
    [ADD_LOG] = "INSERT INTO log(id, kind, key, ts_ms, data) VALUES(?,?,?,?,?) ON CONFLICT(kind, key) WHERE key IS NOT NULL DO NOTHING",
    [REPLACE_LOG] = "UPDATE log SET data=? WHERE id=?",
    [GET_LOG] = "SELECT id, kind, key, ts_ms, data FROM log WHERE id=?",
    [FIND_LOG] = "SELECT id, kind, key, ts_ms, data FROM log WHERE kind=? AND key=?",
    [ALL_LOG] = "SELECT id, kind, key, ts_ms, data FROM log WHERE kind=? ORDER BY id",
    [LAST_LOG] = "SELECT ifnull(max(id), 0) FROM log",
    [DELETE_DOCUMENT] = "DELETE FROM documents WHERE kind=? AND key=?",
    [PUT_TAG] = "INSERT INTO tags(" TAG ") VALUES(?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT(subject, tag) DO UPDATE SET version=excluded.version,"
                " state=excluded.state, source=excluded.source, score=excluded.score, probability=excluded.probability, ts_ms=excluded.ts_ms,"
                " since_ms=excluded.since_ms, expires_ms=excluded.expires_ms, data=excluded.data",
    [ADD_CHANGE] = "INSERT INTO tag_changes(" TAG ") VALUES(?,?,?,?,?,?,?,?,?,?,?)",
    [ALL_TAGS] = "SELECT " TAG " FROM tags WHERE subject=? ORDER BY tag",
    [ALL_CHANGES] = "SELECT " TAG " FROM tag_changes WHERE subject=?1 AND (?2 IS NULL OR tag=?2) AND ts_ms>=?3 ORDER BY ts_ms, seq",
    [ALL_HOLDERS] = "SELECT " TAG " FROM tags WHERE tag=? AND state=? AND subject>? ORDER BY subject LIMIT ?",
    [DELETE_TAGS] = "DELETE FROM tags WHERE subject=?",
    [DELETE_CHANGES] = "DELETE FROM tag_changes WHERE subject=?",
    [PUT_ERASURE] = "INSERT INTO erasures(digest, erased_ms, receipt) VALUES(?,?,?) ON CONFLICT(digest) DO UPDATE SET erased_ms=excluded.erased_ms, receipt=excluded.receipt",
    [GET_ERASURE] = "SELECT erased_ms, receipt FROM erasures WHERE digest=?",
};

static const char schema[] =
    "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON; PRAGMA secure_delete=ON;"
    "PRAGMA cache_size=-16384; PRAGMA wal_autocheckpoint=8192;"      /* KiB; pages: a checkpoint writes and syncs the file itself too */
    "CREATE TABLE IF NOT EXISTS experiments(id TEXT PRIMARY KEY, spec TEXT NOT NULL, created_ms INTEGER NOT NULL, paused INTEGER NOT NULL,"
    " promoted INTEGER NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS decisions(id INTEGER PRIMARY KEY AUTOINCREMENT, experiment TEXT NOT NULL REFERENCES experiments(id), unit TEXT NOT NULL,"
    " arm INTEGER NOT NULL, flags INTEGER NOT NULL, propensity REAL NOT NULL, version INTEGER NOT NULL, ts_ms INTEGER NOT NULL, context BLOB);"
    "CREATE INDEX IF NOT EXISTS decisions_by_unit ON decisions(experiment, unit, id);"
    "CREATE TABLE IF NOT EXISTS outcomes(seq INTEGER PRIMARY KEY AUTOINCREMENT, decision INTEGER NOT NULL REFERENCES decisions(id), key TEXT NOT NULL,"
    " value REAL NOT NULL, ts_ms INTEGER NOT NULL, learned INTEGER NOT NULL, UNIQUE(decision, key));"
    "CREATE TABLE IF NOT EXISTS documents(kind TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY(kind, key)) WITHOUT ROWID;"
    "CREATE TABLE IF NOT EXISTS log(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT, ts_ms INTEGER NOT NULL, data BLOB NOT NULL);"
#define TAG_COLUMNS "subject TEXT NOT NULL, tag TEXT NOT NULL, version INTEGER NOT NULL, state INTEGER NOT NULL, source INTEGER NOT NULL," \
    " score REAL NOT NULL, probability REAL NOT NULL, ts_ms INTEGER NOT NULL, since_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL, data BLOB NOT NULL"
    "CREATE TABLE IF NOT EXISTS tags(" TAG_COLUMNS ", PRIMARY KEY(subject, tag)) WITHOUT ROWID;"
    "CREATE INDEX IF NOT EXISTS tags_by_tag ON tags(tag, state, subject);"
    "CREATE TABLE IF NOT EXISTS tag_changes(seq INTEGER PRIMARY KEY, " TAG_COLUMNS ");"
    "CREATE INDEX IF NOT EXISTS tag_changes_by_subject ON tag_changes(subject, ts_ms);"
    "CREATE TABLE IF NOT EXISTS erasures(digest TEXT PRIMARY KEY, erased_ms INTEGER NOT NULL, receipt TEXT NOT NULL) WITHOUT ROWID;";

/* Most rows of the log are decisions and have no key; an entry of an index for each cost as much as the row. */
static const char log_index[] = "CREATE UNIQUE INDEX IF NOT EXISTS log_by_key ON log(kind, key) WHERE key IS NOT NULL;";
/* A file whose log was UNIQUE(kind, key), before that. */
static const char older_log[] = "SELECT 1 FROM sqlite_master WHERE type='index' AND tbl_name='log' AND name LIKE 'sqlite_autoindex%'";
static const char newer_log[] =
    "BEGIN IMMEDIATE; ALTER TABLE log RENAME TO older_log;"
    "CREATE TABLE log(id INTEGER PRIMARY KEY, kind TEXT NOT NULL, key TEXT, ts_ms INTEGER NOT NULL, data BLOB NOT NULL);"
    "INSERT INTO log SELECT id, kind, key, ts_ms, data FROM older_log; DROP TABLE older_log; COMMIT;";

struct mx_store {
    sqlite3      *db;
    sqlite3_stmt *statement[STATEMENTS];
    double       *context;        /* of the row that was read last: aligned */
    size_t        context_room;
};

static mx_status failed(const mx_store *s, const char *what, mx_error *err)
{
    return mx_fail(err, MX_ERR_IO, "store: %s: %s", what, s->db ? sqlite3_errmsg(s->db) : "out of memory");
}

static bool renew_log(sqlite3 *db)
{
    sqlite3_stmt *q;
    if (sqlite3_prepare_v2(db, older_log, -1, &q, NULL) != SQLITE_OK) return false;
    int found = sqlite3_step(q);
    sqlite3_finalize(q);
    if (found != SQLITE_ROW) return found == SQLITE_DONE;
    if (sqlite3_exec(db, newer_log, NULL, NULL, NULL) == SQLITE_OK) return true;
    char *why = sqlite3_mprintf("%s", sqlite3_errmsg(db));      /* not that of the rollback */
    sqlite3_exec(db, "ROLLBACK", NULL, NULL, NULL);
    mx_log(MX_LOG_ERROR, "store", "an older log could not be taken over: %s", why ? why : "out of memory");
    sqlite3_free(why);
    return false;
}

mx_status mx_store_open(mx_store **out, const char *path, mx_error *err)
{
    mx_store *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "store");
    bool ok = sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX, NULL) == SQLITE_OK;
    if (ok) sqlite3_busy_timeout(s->db, 5000);
    ok = ok && sqlite3_exec(s->db, schema, NULL, NULL, NULL) == SQLITE_OK && renew_log(s->db) && sqlite3_exec(s->db, log_index, NULL, NULL, NULL) == SQLITE_OK;
    for (int i = 0; ok && i < STATEMENTS; i++) ok = sqlite3_prepare_v3(s->db, text_of[i], -1, SQLITE_PREPARE_PERSISTENT, &s->statement[i], NULL) == SQLITE_OK;
    if (ok) {
        *out = s;
        return MX_OK;
    }
    mx_status st = failed(s, path, err);
    mx_store_close(s);
    return st;
}

void mx_store_close(mx_store *s)
{
    if (!s) return;
    for (int i = 0; i < STATEMENTS; i++) sqlite3_finalize(s->statement[i]);
    sqlite3_close(s->db);
    free(s->context);
    free(s);
}

static mx_status simple(mx_store *s, const char *sql, mx_error *err)
{
    return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? MX_OK : failed(s, sql, err);
}

mx_status mx_store_begin(mx_store *s, mx_error *err) { return simple(s, "BEGIN IMMEDIATE", err); }
mx_status mx_store_commit(mx_store *s, mx_error *err) { return simple(s, "COMMIT", err); }
void      mx_store_rollback(mx_store *s) { sqlite3_exec(s->db, "ROLLBACK", NULL, NULL, NULL); }

static sqlite3_stmt *fresh(mx_store *s, int which)
{
    sqlite3_reset(s->statement[which]);
    sqlite3_clear_bindings(s->statement[which]);
    return s->statement[which];
}

static mx_status run(mx_store *s, sqlite3_stmt *q, const char *what, mx_error *err)
{
    int code = sqlite3_step(q);
    mx_status st = code == SQLITE_DONE ? MX_OK : failed(s, what, err);
    sqlite3_reset(q);
    return st;
}

/* ---- experiments ------------------------------------------------------------------------ */

mx_status mx_store_put_experiment(mx_store *s, const mx_experiment_row *r, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, PUT_EXPERIMENT);
    sqlite3_bind_text(q, 1, r->id, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, r->spec, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 3, r->created_ms);
    sqlite3_bind_int(q, 4, r->paused);
    sqlite3_bind_int(q, 5, r->promoted);
    sqlite3_bind_blob64(q, 6, r->state, r->state_size, SQLITE_STATIC);
    return run(s, q, "an experiment", err);
}

mx_status mx_store_each_experiment(mx_store *s, mx_status (*each)(void *ctx, const mx_experiment_row *r, mx_error *err), void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_EXPERIMENTS);
    mx_status st = MX_OK;
    int code = SQLITE_DONE;
    while (!st && (code = sqlite3_step(q)) == SQLITE_ROW) {
        mx_experiment_row r = {(const char *)sqlite3_column_text(q, 0), (const char *)sqlite3_column_text(q, 1), sqlite3_column_int64(q, 2),
                               sqlite3_column_int(q, 3), sqlite3_column_int(q, 4), sqlite3_column_blob(q, 5), (size_t)sqlite3_column_bytes(q, 5)};
        st = each(ctx, &r, err);
    }
    if (!st && code != SQLITE_DONE) st = failed(s, "reading experiments", err);
    sqlite3_reset(q);
    return st;
}

/* ---- decisions ---------------------------------------------------------------------------- */

mx_status mx_store_add_decision(mx_store *s, mx_decision_row *r, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ADD_DECISION);
    sqlite3_bind_text(q, 1, r->experiment, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, r->unit, -1, SQLITE_STATIC);
    sqlite3_bind_int(q, 3, r->arm);
    sqlite3_bind_int(q, 4, r->flags);
    sqlite3_bind_double(q, 5, r->propensity);
    sqlite3_bind_int64(q, 6, r->version);
    sqlite3_bind_int64(q, 7, r->ts_ms);
    if (r->n_context) sqlite3_bind_blob(q, 8, r->context, r->n_context * (int)sizeof(double), SQLITE_STATIC);
    MX_TRY(run(s, q, "a decision", err));
    r->id = sqlite3_last_insert_rowid(s->db);
    return MX_OK;
}

static mx_status read_decision(mx_store *s, sqlite3_stmt *q, mx_decision_row *r, mx_error *err)
{
    size_t bytes = (size_t)sqlite3_column_bytes(q, 8);
    if (bytes > s->context_room) {
        double *grown = realloc(s->context, bytes);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "store: a context of %zu bytes", bytes);
        s->context = grown;
        s->context_room = bytes;
    }
    if (bytes) memcpy(s->context, sqlite3_column_blob(q, 8), bytes);
    *r = (mx_decision_row){.id = sqlite3_column_int64(q, 0), .experiment = (const char *)sqlite3_column_text(q, 1),
                           .unit = (const char *)sqlite3_column_text(q, 2), .arm = sqlite3_column_int(q, 3), .flags = sqlite3_column_int(q, 4),
                           .propensity = sqlite3_column_double(q, 5), .version = sqlite3_column_int64(q, 6), .ts_ms = sqlite3_column_int64(q, 7),
                           .context = bytes ? s->context : NULL, .n_context = (int32_t)(bytes / sizeof(double))};
    return MX_OK;
}

/* The statement stays on its row, which keeps the texts, until the next call of it. */
static mx_status one_decision(mx_store *s, sqlite3_stmt *q, mx_decision_row *out, bool *found, mx_error *err)
{
    int code = sqlite3_step(q);
    *found = code == SQLITE_ROW;
    if (*found) return read_decision(s, q, out, err);
    return code == SQLITE_DONE ? MX_OK : failed(s, "reading a decision", err);
}

mx_status mx_store_get_decision(mx_store *s, int64_t id, mx_decision_row *out, bool *found, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, GET_DECISION);
    sqlite3_bind_int64(q, 1, id);
    return one_decision(s, q, out, found, err);
}

mx_status mx_store_first_decision(mx_store *s, const char *experiment, const char *unit, mx_decision_row *out, bool *found, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, FIRST_DECISION);
    sqlite3_bind_text(q, 1, experiment, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, unit, -1, SQLITE_STATIC);
    return one_decision(s, q, out, found, err);
}

/* ---- outcomes ------------------------------------------------------------------------------- */

mx_status mx_store_add_outcome(mx_store *s, int64_t decision, const char *key, double value, int64_t ts_ms, bool learned, bool *duplicate, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ADD_OUTCOME);
    sqlite3_bind_int64(q, 1, decision);
    sqlite3_bind_text(q, 2, key, -1, SQLITE_STATIC);
    sqlite3_bind_double(q, 3, value);
    sqlite3_bind_int64(q, 4, ts_ms);
    sqlite3_bind_int(q, 5, learned);
    MX_TRY(run(s, q, "an outcome", err));
    *duplicate = sqlite3_changes(s->db) == 0;
    return MX_OK;
}

mx_status mx_store_each_outcome(mx_store *s, const char *experiment,
                                mx_status (*each)(void *ctx, const mx_decision_row *d, double value, int64_t ts_ms, mx_error *err), void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_OUTCOMES);
    mx_status st = MX_OK;
    int code = SQLITE_DONE;
    sqlite3_bind_text(q, 1, experiment, -1, SQLITE_STATIC);
    while (!st && (code = sqlite3_step(q)) == SQLITE_ROW) {
        mx_decision_row d;
        st = read_decision(s, q, &d, err);
        if (!st) st = each(ctx, &d, sqlite3_column_double(q, 9), sqlite3_column_int64(q, 10), err);
    }
    if (!st && code != SQLITE_DONE) st = failed(s, "reading outcomes", err);
    sqlite3_reset(q);
    return st;
}

/* ---- documents and the log --------------------------------------------------------------------- */

mx_status mx_store_put_document(mx_store *s, const char *kind, const char *key, const void *data, size_t size, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, PUT_DOCUMENT);
    sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, key, -1, SQLITE_STATIC);
    sqlite3_bind_blob64(q, 3, size ? data : "", size, SQLITE_STATIC);
    return run(s, q, "a document", err);
}

mx_status mx_store_delete_document(mx_store *s, const char *kind, const char *key, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, DELETE_DOCUMENT);
    sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, key, -1, SQLITE_STATIC);
    return run(s, q, "a document", err);
}

mx_status mx_store_each_document(mx_store *s, const char *kind, mx_status (*each)(void *ctx, const char *key, const void *data, size_t size, mx_error *err),
                                 void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_DOCUMENTS);
    mx_status st = MX_OK;
    int code = SQLITE_DONE;
    sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
    while (!st && (code = sqlite3_step(q)) == SQLITE_ROW)
        st = each(ctx, (const char *)sqlite3_column_text(q, 0), sqlite3_column_blob(q, 1), (size_t)sqlite3_column_bytes(q, 1), err);
    if (!st && code != SQLITE_DONE) st = failed(s, "reading documents", err);
    sqlite3_reset(q);
    return st;
}

mx_status mx_store_add_log(mx_store *s, mx_log_row *r, bool *duplicate, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ADD_LOG);
    if (r->id) sqlite3_bind_int64(q, 1, r->id);
    sqlite3_bind_text(q, 2, r->kind, -1, SQLITE_STATIC);
    if (r->key) sqlite3_bind_text(q, 3, r->key, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 4, r->ts_ms);
    sqlite3_bind_blob64(q, 5, r->size ? r->data : "", r->size, SQLITE_STATIC);
    MX_TRY(run(s, q, "the log", err));
    *duplicate = sqlite3_changes(s->db) == 0;
    if (!*duplicate) r->id = sqlite3_last_insert_rowid(s->db);
    return MX_OK;
}

mx_status mx_store_replace_log(mx_store *s, int64_t id, const void *data, size_t size, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, REPLACE_LOG);
    sqlite3_bind_blob64(q, 1, size ? data : "", size, SQLITE_STATIC);
    sqlite3_bind_int64(q, 2, id);
    return run(s, q, "the log", err);
}

static mx_log_row log_row(sqlite3_stmt *q)
{
    return (mx_log_row){.id = sqlite3_column_int64(q, 0), .kind = (const char *)sqlite3_column_text(q, 1), .key = (const char *)sqlite3_column_text(q, 2),
                        .ts_ms = sqlite3_column_int64(q, 3), .data = sqlite3_column_blob(q, 4), .size = (size_t)sqlite3_column_bytes(q, 4)};
}

static mx_status one_row(mx_store *s, sqlite3_stmt *q, mx_log_row *out, bool *found, mx_error *err)
{
    int code = sqlite3_step(q);
    *found = code == SQLITE_ROW;
    if (*found) *out = log_row(q);
    return *found || code == SQLITE_DONE ? MX_OK : failed(s, "reading the log", err);
}

mx_status mx_store_get_log(mx_store *s, int64_t id, mx_log_row *out, bool *found, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, GET_LOG);
    sqlite3_bind_int64(q, 1, id);
    return one_row(s, q, out, found, err);
}

mx_status mx_store_find_log(mx_store *s, const char *kind, const char *key, mx_log_row *out, bool *found, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, FIND_LOG);
    sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, key, -1, SQLITE_STATIC);
    return one_row(s, q, out, found, err);
}

mx_status mx_store_each_log(mx_store *s, const char *kind, mx_status (*each)(void *ctx, const mx_log_row *r, mx_error *err), void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_LOG);
    mx_status st = MX_OK;
    int code = SQLITE_DONE;
    sqlite3_bind_text(q, 1, kind, -1, SQLITE_STATIC);
    while (!st && (code = sqlite3_step(q)) == SQLITE_ROW) {
        mx_log_row r = log_row(q);
        st = each(ctx, &r, err);
    }
    if (!st && code != SQLITE_DONE) st = failed(s, "reading the log", err);
    sqlite3_reset(q);
    return st;
}

mx_status mx_store_last_log(mx_store *s, int64_t *id, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, LAST_LOG);
    bool ok = sqlite3_step(q) == SQLITE_ROW;
    *id = ok ? sqlite3_column_int64(q, 0) : 0;
    sqlite3_reset(q);
    return ok ? MX_OK : failed(s, "reading the log", err);
}

/* ---- tags of subjects --------------------------------------------------------------------------- */

static mx_status write_tag(mx_store *s, int which, const mx_tag_row *r, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, which);
    sqlite3_bind_text(q, 1, r->subject, -1, SQLITE_STATIC);
    sqlite3_bind_text(q, 2, r->tag, -1, SQLITE_STATIC);
    sqlite3_bind_int(q, 3, r->version);
    sqlite3_bind_int(q, 4, r->state);
    sqlite3_bind_int(q, 5, r->source);
    sqlite3_bind_double(q, 6, r->score);
    sqlite3_bind_double(q, 7, r->probability);
    sqlite3_bind_int64(q, 8, r->ts_ms);
    sqlite3_bind_int64(q, 9, r->since_ms);
    sqlite3_bind_int64(q, 10, r->expires_ms);
    sqlite3_bind_blob64(q, 11, r->size ? r->data : "", r->size, SQLITE_STATIC);
    return run(s, q, "a tag", err);
}

mx_status mx_store_put_tag(mx_store *s, const mx_tag_row *r, mx_error *err) { return write_tag(s, PUT_TAG, r, err); }
mx_status mx_store_add_tag_change(mx_store *s, const mx_tag_row *r, mx_error *err) { return write_tag(s, ADD_CHANGE, r, err); }

static mx_status each_tag(mx_store *s, sqlite3_stmt *q, mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err)
{
    mx_status st = MX_OK;
    int code = SQLITE_DONE;
    while (!st && (code = sqlite3_step(q)) == SQLITE_ROW) {
        mx_tag_row r = {.subject = (const char *)sqlite3_column_text(q, 0), .tag = (const char *)sqlite3_column_text(q, 1), .version = sqlite3_column_int(q, 2),
                        .state = sqlite3_column_int(q, 3), .source = sqlite3_column_int(q, 4), .score = sqlite3_column_double(q, 5),
                        .probability = sqlite3_column_double(q, 6), .ts_ms = sqlite3_column_int64(q, 7), .since_ms = sqlite3_column_int64(q, 8),
                        .expires_ms = sqlite3_column_int64(q, 9), .data = sqlite3_column_blob(q, 10), .size = (size_t)sqlite3_column_bytes(q, 10)};
        st = each(ctx, &r, err);
    }
    if (!st && code != SQLITE_DONE) st = failed(s, "reading tags", err);
    sqlite3_reset(q);
    return st;
}

mx_status mx_store_each_tag(mx_store *s, const char *subject, mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_TAGS);
    sqlite3_bind_text(q, 1, subject, -1, SQLITE_STATIC);
    return each_tag(s, q, each, ctx, err);
}

mx_status mx_store_each_tag_change(mx_store *s, const char *subject, const char *tag, int64_t since_ms,
                                   mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_CHANGES);
    sqlite3_bind_text(q, 1, subject, -1, SQLITE_STATIC);
    if (tag) sqlite3_bind_text(q, 2, tag, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 3, since_ms);
    return each_tag(s, q, each, ctx, err);
}

mx_status mx_store_each_tag_holder(mx_store *s, const char *tag, int32_t state, const char *after, int32_t limit,
                                   mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, ALL_HOLDERS);
    sqlite3_bind_text(q, 1, tag, -1, SQLITE_STATIC);
    sqlite3_bind_int(q, 2, state);
    sqlite3_bind_text(q, 3, after, -1, SQLITE_STATIC);
    sqlite3_bind_int(q, 4, limit);
    return each_tag(s, q, each, ctx, err);
}

mx_status mx_store_erase_subject(mx_store *s, const char *subject, const char *digest, int64_t erased_ms, const char *receipt, int64_t *rows, mx_error *err)
{
    *rows = 0;
    for (int which = DELETE_TAGS; which <= DELETE_CHANGES; which++) {
        sqlite3_stmt *q = fresh(s, which);
        sqlite3_bind_text(q, 1, subject, -1, SQLITE_STATIC);
        MX_TRY(run(s, q, "erasing tags", err));
        *rows += sqlite3_changes(s->db);
    }
    sqlite3_stmt *q = fresh(s, PUT_ERASURE);
    sqlite3_bind_text(q, 1, digest, -1, SQLITE_STATIC);
    sqlite3_bind_int64(q, 2, erased_ms);
    sqlite3_bind_text(q, 3, receipt, -1, SQLITE_STATIC);
    return run(s, q, "a receipt", err);
}

mx_status mx_store_get_erasure(mx_store *s, const char *digest, int64_t *erased_ms, const char **receipt, bool *found, mx_error *err)
{
    sqlite3_stmt *q = fresh(s, GET_ERASURE);
    sqlite3_bind_text(q, 1, digest, -1, SQLITE_STATIC);
    int code = sqlite3_step(q);
    *found = code == SQLITE_ROW;
    if (*found) {
        *erased_ms = sqlite3_column_int64(q, 0);
        *receipt = (const char *)sqlite3_column_text(q, 1);
    }
    return *found || code == SQLITE_DONE ? MX_OK : failed(s, "reading a receipt", err);
}

mx_status mx_store_scrub(mx_store *s, mx_error *err) { return simple(s, "PRAGMA wal_checkpoint(TRUNCATE)", err); }
