/* plot.h - the curves of training runs as an SVG, from their metrics.jsonl. */
#ifndef MX_PLOT_H
#define MX_PLOT_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct mx_plot_options {
    const char *title;            /* NULL: none                                  */
    int         width, height;    /* pixels                                      */
    bool        log_x, log_y;
} mx_plot_options;

/* One curve a file: loss by step, faint and smoothed, validation losses as
 * points, the learning rate below.  A torn last line is passed over.  Errors:
 * MX_ERR_IO; MX_ERR_FORMAT (file and line); MX_ERR_ARG (no step at all; a log
 * scale and values that are not above 0). */
mx_status mx_plot(FILE *out, const char *const *files, int n, const mx_plot_options *o, mx_error *err);

#endif
