/* cpu.h - what the files of the CPU backend share: the prototypes behind its
 * table, and how work is cut into parts.  Only kernels/cpu includes this. */
#ifndef MX_CPU_H
#define MX_CPU_H

#include "kernels/ops.h"

#define X(name) __typeof__(mx_##name) mx_cpu_##name;
MX_OPS(X)
#undef X
__typeof__(mx_weight_open)  mx_cpu_weight_open;
__typeof__(mx_weight_bytes) mx_cpu_weight_bytes;
__typeof__(mx_weight_close) mx_cpu_weight_close;

/* y = act(y) on one row; used by linear's epilogue and by activation.c */
void mx_cpu_activate_row(float *y, const float *x, int64_t n, mx_activation act);

/* Actions action[N,1] of n; otherwise the stream says which is none. */
bool mx_cpu_actions_exist(mx_stream *s, const char *op, mx_tensor action, int64_t n);
/* q[A*Z] of va[(1+A)*Z], one row of mx_dueling */
void mx_cpu_dueling_row(float *q, const float *va, int64_t actions, int64_t atoms);

static inline float *mx_row(mx_tensor t, int64_t r) { return (float *)t.data + r * t.stride; }
static inline int32_t *mx_row_i32(mx_tensor t, int64_t r) { return (int32_t *)t.data + r * t.stride; }

/* Rows of a region's part, for row ops whose row costs `work` elements: enough
 * to outweigh the cost of taking a part, few enough to share out. */
static inline int64_t mx_part_rows(int64_t rows, int64_t work)
{
    int64_t n = 8192 / (work > 0 ? work : 1);
    if (n < 1) n = 1;
    return n < rows ? n : rows;
}

/* Run fn(ctx, first, last) over `rows` rows, on the caller alone when the whole
 * is too small to wake anybody for. */
typedef void mx_rows_fn(const void *ctx, int64_t first, int64_t last);
void mx_cpu_rows(mx_stream *s, int64_t rows, int64_t work, mx_rows_fn *fn, const void *ctx);

/* Spans in order and ids inside a table of `rows` rows; otherwise the stream says what is wrong. */
bool mx_cpu_spans_sound(mx_stream *s, const char *op, mx_tensor begin, mx_tensor ids, int64_t edges, int64_t rows);
bool mx_cpu_turned_sound(mx_stream *s, const char *op, mx_turned t, int64_t spans);

#endif
