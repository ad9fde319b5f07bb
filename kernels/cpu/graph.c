/* graph.c - rows gathered and reduced over spans: neighbours of a node, tokens of a text. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

typedef struct aggregate_job {
    mx_tensor y, x, ids, begin, weight;
    mx_reduce how;
} aggregate_job;

/* Sixteen columns of a span at a time: its rows pass once for every sixteen. */
static vf reduce(const aggregate_job *j, int64_t first, int64_t last, int64_t c, int64_t n)
{
    vf sum = vf_zero();
    for (int64_t e = first; e < last; e++) {
        vf v = vf_load_most(mx_row(j->x, j->ids.data ? *mx_row_i32(j->ids, e) : e) + c, n);
        if (j->how == MX_REDUCE_MAX) sum = e == first ? v : vf_max(v, sum);
        else sum = j->weight.data ? vf_fma(vf_set(*mx_row(j->weight, e)), v, sum) : vf_add(sum, v);
    }
    if (j->how == MX_REDUCE_MEAN && last > first) sum = vf_div(sum, vf_set((float)(last - first)));
    return sum;
}

static void aggregate_rows(const void *ctx, int64_t first, int64_t last)
{
    const aggregate_job *j = ctx;
    for (int64_t s = first; s < last; s++) {
        int64_t from = *mx_row_i32(j->begin, s), to = *mx_row_i32(j->begin, s + 1);
        for (int64_t c = 0; c < j->y.cols; c += VF) vf_store_most(mx_row(j->y, s) + c, reduce(j, from, to, c, j->y.cols - c), j->y.cols - c);
    }
}

/* Spans in order, ids inside the table. */
static bool sound(mx_stream *s, const aggregate_job *j)
{
    int64_t edges = j->ids.data ? j->ids.rows : j->x.rows, at = 0;
    for (int64_t i = 0; i < j->begin.rows; i++) {
        int32_t next = *mx_row_i32(j->begin, i);
        if (next < at || next > edges) {
            mx_stream_fail(s, MX_ERR_ARG, "aggregate: begin %d of span %lld is not from %lld to %lld", next, (long long)i, (long long)at, (long long)edges);
            return false;
        }
        at = next;
    }
    for (int64_t e = 0; j->ids.data && e < edges; e++) {
        int32_t id = *mx_row_i32(j->ids, e);
        if (id >= 0 && id < j->x.rows) continue;
        mx_stream_fail(s, MX_ERR_ARG, "aggregate: id %d of edge %lld is outside the table's %lld rows", id, (long long)e, (long long)j->x.rows);
        return false;
    }
    return true;
}

void mx_cpu_aggregate(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how)
{
    aggregate_job j = {y, x, ids, begin, weight, how};
    if (!sound(s, &j)) return;
    int64_t edges = ids.data ? ids.rows : x.rows;
    mx_cpu_rows(s, y.rows, y.cols * (1 + edges / y.rows), aggregate_rows, &j);
}
