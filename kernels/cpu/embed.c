/* embed.c - table rows by id; forward and backward. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#define BACK_COLUMNS 64        /* of a part that adds up rows */

typedef struct embed_job {
    mx_tensor y, table, ids;
    bool add;
} embed_job;

static void load_row(float *dst, const void *src, mx_dtype type, int64_t n, bool add)
{
    const uint16_t *h = src;
    const float *f = src;
    for (int64_t i = 0; i < n; i++) {
        float v = type == MX_F32 ? f[i] : type == MX_BF16 ? mx_bf16_to_f32(h[i]) : mx_f16_to_f32(h[i]);
        dst[i] = add ? dst[i] + v : v;
    }
}

static void embed_rows(const void *ctx, int64_t first, int64_t last)
{
    const embed_job *j = ctx;
    size_t pitch = (size_t)j->table.stride * mx_dtype_size(j->table.dtype);
    for (int64_t r = first; r < last; r++) {
        const char *src = (const char *)j->table.data + (size_t)*mx_row_i32(j->ids, r) * pitch;
        load_row(mx_row(j->y, r), src, j->table.dtype, j->y.cols, j->add);
    }
}

void mx_cpu_embed(mx_stream *s, mx_tensor y, mx_tensor table, mx_tensor ids, bool add)
{
    for (int64_t r = 0; r < y.rows; r++) {
        int32_t id = *mx_row_i32(ids, r);
        if (id < 0 || id >= table.rows) {
            mx_stream_fail(s, MX_ERR_ARG, "embed: id %d of row %lld is outside the table's %lld rows", id, (long long)r,
                           (long long)table.rows);
            return;
        }
    }
    embed_job j = {y, table, ids, add};
    mx_cpu_rows(s, y.rows, y.cols, embed_rows, &j);
}

/* Columns c.. of every row, in the order of the rows: an id may come many times. */
static void embed_back_part(void *ctx, int64_t part, int thread)
{
    (void)thread;
    const embed_job *j = ctx;
    int64_t c = part * BACK_COLUMNS, n = j->y.cols - c < BACK_COLUMNS ? j->y.cols - c : BACK_COLUMNS;
    for (int64_t r = 0; r < j->y.rows; r++) {
        const float *dy = mx_row(j->y, r) + c;
        float *to = mx_row(j->table, *mx_row_i32(j->ids, r)) + c;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) to[i] += dy[i];
    }
}

void mx_cpu_embed_back(mx_stream *s, mx_tensor dtable, mx_tensor dy, mx_tensor ids)
{
    for (int64_t r = 0; r < dy.rows; r++) {
        int32_t id = *mx_row_i32(ids, r);
        if (id >= 0 && id < dtable.rows) continue;
        mx_stream_fail(s, MX_ERR_ARG, "embed_back: id %d of row %lld is outside the table's %lld rows", id, (long long)r,
                       (long long)dtable.rows);
        return;
    }
    embed_job j = {dy, dtable, ids, true};
    mx_pool_run(s->dev->pool, (dy.cols + BACK_COLUMNS - 1) / BACK_COLUMNS, embed_back_part, &j);
}
