/* rows.h - a batch's files: rows of JSON in, rows of JSON out, each exactly once.
 *
 * Output is only ever appended to, a whole row per write, in the order of the
 * input.  Beside it lies OUTPUT.run, which says what made it: the input's size
 * and hash, and the settings that its texts depend on.  Opening an output that
 * has rows checks that file, cuts off a torn last row, matches the id of every
 * row with the input's, and goes on behind the last.  So a run may be killed at
 * any moment; the same command continues it.  Output that is no regular file
 * (a pipe, standard output) and input from one cannot be continued.
 *
 * One thread. */
#ifndef MX_ROWS_H
#define MX_ROWS_H

#include "runtime/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define MX_ROW_MOST ((size_t)32 << 20)     /* bytes of an input row */

typedef struct mx_rows mx_rows;

/* input, output: "-" is standard input or output.  settings (borrowed) are what
 * the texts depend on.  Errors: MX_ERR_IO; MX_ERR_STATE (the output was made
 * from another input or with other settings, by name; it is not ours; another
 * process writes it); MX_ERR_ARG (both are one file); MX_ERR_NO_MEMORY. */
mx_status mx_rows_open(mx_rows **out, const char *input, const char *output, bool overwrite, json_t *settings,
                       mx_error *err);
/* Makes what was written durable.  Errors: MX_ERR_IO. */
mx_status mx_rows_close(mx_rows *r, mx_error *err);

typedef struct mx_row {
    const char *text;            /* until the next call          */
    size_t      len;
    uint64_t    number;          /* line of the input, from 1    */
    bool        too_long;        /* over MX_ROW_MOST; no text    */
} mx_row;
/* The next row that has no answer yet; *more is false at the end.  Blank lines are no rows. */
mx_status mx_rows_next(mx_rows *r, mx_row *row, bool *more, mx_error *err);
/* Append one row (without its newline).  After an error the file ends with the row before. */
mx_status mx_rows_write(mx_rows *r, const char *text, size_t len, bool failed, mx_error *err);

uint64_t    mx_rows_total(const mx_rows *r);      /* rows of the input; 0: not known      */
uint64_t    mx_rows_done(const mx_rows *r);       /* rows of the output                   */
uint64_t    mx_rows_failed(const mx_rows *r);     /* of these, with an error              */
bool        mx_rows_resumable(const mx_rows *r);

/* The row's own "id" (a text or whole number), else its number; a new reference, NULL: out of memory. */
json_t     *mx_row_id(const json_t *row, uint64_t number);

#endif
