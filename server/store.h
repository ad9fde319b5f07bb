/* store.h - what must outlive the server: experiments, decisions, outcomes, tags of subjects.
 *
 * One thread uses a store.  What stands between begin and commit is there whole or
 * not at all, and after commit it survives a crash and a power cut.  SQLite in WAL
 * mode, synchronous FULL, fills this interface (store_sqlite.c, the only file that
 * knows it); another database would fill the same calls. */
#ifndef MX_STORE_H
#define MX_STORE_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mx_store mx_store;

/* Makes the file if need be.  Errors of all: MX_ERR_IO (path, what SQLite said). */
mx_status mx_store_open(mx_store **out, const char *path, mx_error *err);
void      mx_store_close(mx_store *s);

mx_status mx_store_begin(mx_store *s, mx_error *err);
mx_status mx_store_commit(mx_store *s, mx_error *err);
void      mx_store_rollback(mx_store *s);

/* ---- experiments ------------------------------------------------------------------- */

typedef struct mx_experiment_row {
    const char *id, *spec;        /* spec: JSON                                         */
    int64_t     created_ms;
    int32_t     paused, promoted; /* promoted: an arm, or -1                            */
    const void *state;
    size_t      state_size;
} mx_experiment_row;
mx_status mx_store_put_experiment(mx_store *s, const mx_experiment_row *r, mx_error *err);      /* new or changed */
mx_status mx_store_each_experiment(mx_store *s, mx_status (*each)(void *ctx, const mx_experiment_row *r, mx_error *err), void *ctx, mx_error *err);

enum { MX_DECISION_HOLDOUT = 1, MX_DECISION_STICKY = 2, MX_DECISION_FIXED = 4 };     /* FIXED: paused or promoted */

typedef struct mx_decision_row {
    int64_t       id;             /* given by the store                                 */
    const char   *experiment, *unit;
    int32_t       arm, flags;
    double        propensity;
    int64_t       version, ts_ms; /* version: of the state that decided                 */
    const double *context;        /* [n_context]                                        */
    int32_t       n_context;
} mx_decision_row;
mx_status mx_store_add_decision(mx_store *s, mx_decision_row *r, mx_error *err);
/* Texts and context are valid until the next call.  *found false: none. */
mx_status mx_store_get_decision(mx_store *s, int64_t id, mx_decision_row *out, bool *found, mx_error *err);
/* The unit's first decision in an experiment that was the policy's own. */
mx_status mx_store_first_decision(mx_store *s, const char *experiment, const char *unit, mx_decision_row *out, bool *found, mx_error *err);

/* *duplicate: this decision has an outcome with this key already; nothing is added. */
mx_status mx_store_add_outcome(mx_store *s, int64_t decision, const char *key, double value, int64_t ts_ms, bool learned, bool *duplicate, mx_error *err);
/* Learned outcomes with their decisions, in the order they came. */
mx_status mx_store_each_outcome(mx_store *s, const char *experiment,
                                mx_status (*each)(void *ctx, const mx_decision_row *d, double value, int64_t ts_ms, mx_error *err), void *ctx, mx_error *err);

/* ---- documents and a log: bytes that the services understand --------------------------- */

typedef struct mx_log_row {
    int64_t     id, ts_ms;
    const char *kind, *key;       /* key: unique within its kind; NULL: none              */
    const void *data;
    size_t      size;
} mx_log_row;

mx_status mx_store_put_document(mx_store *s, const char *kind, const char *key, const void *data, size_t size, mx_error *err);
mx_status mx_store_delete_document(mx_store *s, const char *kind, const char *key, mx_error *err);      /* not there: done */
mx_status mx_store_each_document(mx_store *s, const char *kind, mx_status (*each)(void *ctx, const char *key, const void *data, size_t size, mx_error *err),
                                 void *ctx, mx_error *err);
/* id 0: the store gives one.  *duplicate: the key is there already, nothing is added. */
mx_status mx_store_add_log(mx_store *s, mx_log_row *r, bool *duplicate, mx_error *err);
mx_status mx_store_replace_log(mx_store *s, int64_t id, const void *data, size_t size, mx_error *err);
/* Its bytes are valid until the next call. */
mx_status mx_store_get_log(mx_store *s, int64_t id, mx_log_row *out, bool *found, mx_error *err);
/* The row of a kind that has this key. */
mx_status mx_store_find_log(mx_store *s, const char *kind, const char *key, mx_log_row *out, bool *found, mx_error *err);
mx_status mx_store_each_log(mx_store *s, const char *kind, mx_status (*each)(void *ctx, const mx_log_row *r, mx_error *err), void *ctx, mx_error *err);
mx_status mx_store_last_log(mx_store *s, int64_t *id, mx_error *err);

/* ---- tags of subjects: the state now, and every change --------------------------------------- */

typedef struct mx_tag_row {
    const char *subject, *tag;    /* subject: "user/anna", say                            */
    int32_t     version, state, source;           /* the services' own numbers            */
    double      score, probability;
    int64_t     ts_ms, since_ms, expires_ms;      /* ts: of this row; expires 0: never    */
    const void *data;             /* evidence and the like; may be empty                  */
    size_t      size;
} mx_tag_row;

/* The state now; replaces the one there is. */
mx_status mx_store_put_tag(mx_store *s, const mx_tag_row *r, mx_error *err);
/* Another entry of the history. */
mx_status mx_store_add_tag_change(mx_store *s, const mx_tag_row *r, mx_error *err);
/* By tag; by time, oldest first.  tag NULL: all; of the history, those from since_ms on. */
mx_status mx_store_each_tag(mx_store *s, const char *subject, mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err);
mx_status mx_store_each_tag_change(mx_store *s, const char *subject, const char *tag, int64_t since_ms,
                                   mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err);
/* Who has a tag in this state, by subject, behind `after` ("": from the start), at most `limit`. */
mx_status mx_store_each_tag_holder(mx_store *s, const char *tag, int32_t state, const char *after, int32_t limit,
                                   mx_status (*each)(void *ctx, const mx_tag_row *r, mx_error *err), void *ctx, mx_error *err);

/* A subject's tags and their history go, and the receipt of it stays, under the digest that stands for it.
 * *rows: how many went.  Within a transaction. */
mx_status mx_store_erase_subject(mx_store *s, const char *subject, const char *digest, int64_t erased_ms, const char *receipt, int64_t *rows, mx_error *err);
/* The receipt's text, valid until the next call. */
mx_status mx_store_get_erasure(mx_store *s, const char *digest, int64_t *erased_ms, const char **receipt, bool *found, mx_error *err);
/* What was deleted is zeros in the file already; this clears the write-ahead log of it too.  After the commit. */
mx_status mx_store_scrub(mx_store *s, mx_error *err);

#endif
