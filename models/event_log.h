/* event_log.h - an append-only log of records in segment files, each with a CRC32C.
 *
 * A record's position is its offset in all segments laid end to end; segments are named by
 * the position they begin at.  Append writes, sync makes durable; threads that sync at once share
 * one fdatasync.  Every record says up to where the log was durable when it was written, so
 * that open can tell a torn end (cut off) from damage to what was acknowledged (an error): bytes that
 * do not check are damage when a sound record behind them knows them to be durable.
 *
 * Records can be blanked: overwritten by zeros in place, crash-safe by a journal; readers skip them.
 *
 * THREADS: append, sync, blank and read from any thread; blank excludes nobody, so its caller
 * keeps readers of those records away. */
#ifndef MX_EVENT_LOG_H
#define MX_EVENT_LOG_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MX_RECORD_MOST ((size_t)1 << 20)

typedef struct mx_event_log mx_event_log;

/* The log in an existing folder.  Only records from `from` on are read now.
 * each: called for every record there, in order; blanked ones come with size 0.
 * Errors: MX_ERR_IO, MX_ERR_FORMAT (segment, offset), MX_ERR_NO_MEMORY, what each() returned. */
mx_status mx_event_log_open(mx_event_log **out, const char *folder, int64_t segment_bytes, uint64_t from,
                            mx_status (*each)(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err), void *ctx, mx_error *err);
void      mx_event_log_close(mx_event_log *l);

/* Appends records that stand one behind the other, each data[i], size[i] (1 .. MX_RECORD_MOST); at[i] are their positions.
 * On an error none is there.  Errors: MX_ERR_IO, MX_ERR_ARG, MX_ERR_NO_MEMORY. */
typedef struct mx_record { const void *data; size_t size; uint64_t at; } mx_record;
mx_status mx_event_log_append(mx_event_log *l, mx_record *r, int64_t n, mx_error *err);
/* Everything appended before this call is durable.  An error stays: the log takes no more. */
mx_status mx_event_log_sync(mx_event_log *l, mx_error *err);
/* The record at a position; valid until the log is closed, or it is blanked (size 0).
 * Errors: MX_ERR_FORMAT (it does not check: segment, offset), MX_ERR_ARG. */
mx_status mx_event_log_read(const mx_event_log *l, uint64_t at, const void **data, size_t *size, mx_error *err);
/* The first record at or behind *at, which becomes where it is; *next is where to go on.  *more false: the log ends here.
 * Errors: MX_ERR_FORMAT. */
mx_status mx_event_log_next(const mx_event_log *l, uint64_t *at, uint64_t *next, const void **data, size_t *size, bool *more, mx_error *err);
/* Overwrites the records' payloads, durably.  *bytes grows by how many. */
mx_status mx_event_log_blank(mx_event_log *l, const uint64_t *at, int64_t n, int64_t *bytes, mx_error *err);

uint64_t  mx_event_log_end(const mx_event_log *l);
uint64_t  mx_event_log_cut(const mx_event_log *l);          /* bytes that open cut off         */

uint32_t  mx_crc32c(uint32_t crc, const void *data, size_t n);     /* Castagnoli; begins with 0 */

#endif
