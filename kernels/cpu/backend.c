/* backend.c - the CPU's table, and the one way row ops are shared out. */
#include "kernels/cpu/cpu.h"

const mx_kernels mx_kernels_cpu = {
#define X(name) .name = mx_cpu_##name,
    MX_OPS(X)
#undef X
    .weight_open = mx_cpu_weight_open,
    .weight_close = mx_cpu_weight_close,
    .weight_bytes = mx_cpu_weight_bytes,
};

typedef struct rows_job {
    mx_rows_fn *fn;
    const void *ctx;
    int64_t     rows, step;
} rows_job;

static void rows_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const rows_job *j = ctx;
    int64_t first = part * j->step, last = first + j->step;
    j->fn(j->ctx, first, last < j->rows ? last : j->rows);
}

void mx_cpu_rows(mx_stream *s, int64_t rows, int64_t work, mx_rows_fn *fn, const void *ctx)
{
    if (rows < 1) return;
    rows_job j = {fn, ctx, rows, mx_part_rows(rows, work)};
    int64_t parts = (rows + j.step - 1) / j.step;
    if (parts == 1 || mx_pool_threads(s->dev->pool) == 1) fn(ctx, 0, rows);
    else mx_pool_run(s->dev->pool, parts, rows_part, &j);
}
