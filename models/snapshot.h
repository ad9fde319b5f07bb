/* snapshot.h - the checkpoints of a training run: whole, or not there.
 *
 * A run's folder holds checkpoint-00000100, checkpoint-00000200 ...  One is
 * written beside under a hidden name, its files listed with their SHA-256 in
 * SHA256SUMS (`sha256sum -c` reads it), everything fsynced, and then renamed; so
 * a folder with the name of a checkpoint is complete, unless the disk lost it,
 * and then the sums say so. */
#ifndef MX_SNAPSHOT_H
#define MX_SNAPSHOT_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MX_PATH 1024

typedef struct mx_snapshot {
    char    run[MX_PATH], folder[MX_PATH];     /* folder: where to write files now */
    int64_t step;
} mx_snapshot;

/* Make run/ if need be and an empty hidden folder in it.  Errors: MX_ERR_IO. */
mx_status mx_snapshot_begin(mx_snapshot *s, const char *run, int64_t step, mx_error *err);
/* The folder that another process has begun. */
mx_status mx_snapshot_join(mx_snapshot *s, const char *run, int64_t step, mx_error *err);
/* Sums, fsync, rename; then all but the newest `keep` (0: none) are removed, and
 * never `spare` (a step; -1: none).  On an error the hidden folder is removed and
 * earlier checkpoints stay.  Errors: MX_ERR_IO. */
mx_status mx_snapshot_commit(mx_snapshot *s, int keep, int64_t spare, mx_error *err);
void      mx_snapshot_abandon(mx_snapshot *s);

/* The newest checkpoint whose sums are right: its folder and step.  What is
 * wrong with newer ones is told to `refused` (may be NULL).  Remains of writes
 * that were broken off are removed.  MX_ERR_NOT_FOUND: there is none. */
mx_status mx_snapshot_latest(const char *run, char folder[MX_PATH], int64_t *step,
                             void (*refused)(void *ctx, const char *why), void *ctx, mx_error *err);
/* Errors: MX_ERR_FORMAT names the file that is torn, changed or missing. */
mx_status mx_snapshot_check(const char *folder, mx_error *err);

/* Make the run's folder if need be and see that it can be written; remove all
 * of its checkpoints.  Errors: MX_ERR_IO. */
mx_status mx_snapshot_prepare(const char *run, mx_error *err);
mx_status mx_snapshot_clear(const char *run, mx_error *err);

/* Write a small file whole and fsync it; copy one.  Errors: MX_ERR_IO. */
mx_status mx_write_file(const char *path, const char *text, size_t len, mx_error *err);
mx_status mx_copy_file(const char *from, const char *to, mx_error *err);
/* "folder/name" into to[MX_PATH]; MX_ERR_ARG when it does not fit. */
mx_status mx_path_join(char to[MX_PATH], const char *folder, const char *name, mx_error *err);

#endif
