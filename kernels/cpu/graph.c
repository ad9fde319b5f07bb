/* graph.c - rows gathered and reduced over spans: neighbours of a node, tokens of a text. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include "runtime/random.h"

#define AHEAD 8               /* edges: a row is asked for before its turn comes */

typedef struct aggregate_job {
    mx_tensor y, x, ids, begin, weight;
    mx_reduce how;
} aggregate_job;

static inline const float *source(const aggregate_job *j, int64_t e)
{
    return mx_row(j->x, j->ids.data ? *mx_row_i32(j->ids, e) : e);
}

static inline vf step(const aggregate_job *j, vf sum, vf v, vf w, bool first)
{
    if (j->how == MX_REDUCE_MAX) return first ? v : vf_max(v, sum);
    return j->weight.data ? vf_fma(w, v, sum) : vf_add(sum, v);
}

/* Sixteen columns of a span at a time: its rows pass once for every sixteen. */
static vf reduce(const aggregate_job *j, int64_t first, int64_t last, int64_t c, int64_t n)
{
    vf sum = vf_zero();
    for (int64_t e = first; e < last; e++)
        sum = step(j, sum, vf_load_most(source(j, e) + c, n), j->weight.data ? vf_set(*mx_row(j->weight, e)) : vf_zero(), e == first);
    return sum;
}

/* Sixty-four columns, the same sums: memory gives a row of them at once. */
static void reduce_wide(const aggregate_job *j, int64_t first, int64_t last, int64_t c, vf sum[4])
{
    UNROLL for (int k = 0; k < 4; k++) sum[k] = vf_zero();
    for (int64_t e = first; e < last; e++) {
        const float *x = source(j, e) + c;
        if (j->ids.data && e + AHEAD < j->ids.rows) {
            const float *next = source(j, e + AHEAD) + c;
            UNROLL for (int k = 0; k < 4; k++) __builtin_prefetch(next + VF * k);
        }
        vf w = j->weight.data ? vf_set(*mx_row(j->weight, e)) : vf_zero();
        UNROLL for (int k = 0; k < 4; k++) sum[k] = step(j, sum[k], vf_load(x + VF * k), w, e == first);
    }
}

static void aggregate_rows(const void *ctx, int64_t first, int64_t last)
{
    const aggregate_job *j = ctx;
    for (int64_t s = first; s < last; s++) {
        int64_t from = *mx_row_i32(j->begin, s), to = *mx_row_i32(j->begin, s + 1), c = 0, n = j->y.cols;
        vf count = vf_set((float)(to - from)), sum[4];
        bool mean = j->how == MX_REDUCE_MEAN && to > from;
        float *y = mx_row(j->y, s);
        for (; c + 4 * VF <= n; c += 4 * VF) {
            reduce_wide(j, from, to, c, sum);
            UNROLL for (int k = 0; k < 4; k++) vf_store(y + c + VF * k, mean ? vf_div(sum[k], count) : sum[k]);
        }
        for (; c < n; c += VF) {
            sum[0] = reduce(j, from, to, c, n - c);
            vf_store_most(y + c, mean ? vf_div(sum[0], count) : sum[0], n - c);
        }
    }
}

/* Spans in order, ids inside the table. */
bool mx_cpu_spans_sound(mx_stream *s, const char *op, mx_tensor begin, mx_tensor ids, int64_t edges, int64_t rows)
{
    int64_t at = 0;
    for (int64_t i = 0; i < begin.rows; i++) {
        int32_t next = *mx_row_i32(begin, i);
        if (next < at || next > edges) {
            mx_stream_fail(s, MX_ERR_ARG, "%s: begin %d of span %lld is not from %lld to %lld", op, next, (long long)i, (long long)at, (long long)edges);
            return false;
        }
        at = next;
    }
    for (int64_t e = 0; ids.data && e < edges; e++) {
        int32_t id = *mx_row_i32(ids, e);
        if (id >= 0 && id < rows) continue;
        mx_stream_fail(s, MX_ERR_ARG, "%s: id %d of edge %lld is outside the table's %lld rows", op, id, (long long)e, (long long)rows);
        return false;
    }
    return true;
}

bool mx_cpu_turned_sound(mx_stream *s, const char *op, mx_turned t, int64_t spans)
{
    int64_t edges = t.span.rows;
    return mx_cpu_spans_sound(s, op, t.begin, t.span, edges, spans) && mx_cpu_spans_sound(s, op, t.begin, t.edge, edges, edges);
}

void mx_cpu_aggregate(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how)
{
    aggregate_job j = {y, x, ids, begin, weight, how};
    int64_t edges = ids.data ? ids.rows : x.rows;
    if (!mx_cpu_spans_sound(s, "aggregate", begin, ids, edges, x.rows)) return;
    mx_cpu_rows(s, y.rows, y.cols * (1 + edges / y.rows), aggregate_rows, &j);
}

/* ---- the gradient of a maximum --------------------------------------------------------- */

typedef struct max_back_job {
    mx_tensor dx, dy, x, y, ids, begin;
    mx_turned t;
} max_back_job;

/* No edge of the span before e has the maximum in column c. */
static bool first_to_have(const max_back_job *j, int32_t span, int32_t e, int64_t c, float most)
{
    for (int32_t f = *mx_row_i32(j->begin, span); f < e; f++)
        if (mx_row(j->x, *mx_row_i32(j->ids, f))[c] == most) return false;
    return true;
}

static void max_back_rows(const void *ctx, int64_t first, int64_t last)
{
    const max_back_job *j = ctx;
    for (int64_t u = first; u < last; u++) {
        const float *x = mx_row(j->x, u);
        float *dx = mx_row(j->dx, u);
        memset(dx, 0, (size_t)j->x.cols * sizeof *dx);
        for (int64_t k = *mx_row_i32(j->t.begin, u); k < *mx_row_i32(j->t.begin, u + 1); k++) {
            int32_t span = *mx_row_i32(j->t.span, k), e = *mx_row_i32(j->t.edge, k);
            const float *y = mx_row(j->y, span), *dy = mx_row(j->dy, span);
            for (int64_t c = 0; c < j->x.cols; c++)
                if (x[c] == y[c] && first_to_have(j, span, e, c, y[c])) dx[c] += dy[c];
        }
    }
}

void mx_cpu_aggregate_max_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_tensor y, mx_tensor ids, mx_tensor begin,
                               mx_turned t)
{
    max_back_job j = {dx, dy, x, y, ids, begin, t};
    if (!mx_cpu_spans_sound(s, "aggregate_max_back", begin, ids, ids.rows, x.rows) || !mx_cpu_turned_sound(s, "aggregate_max_back", t, y.rows)) return;
    mx_cpu_rows(s, x.rows, x.cols * (1 + 4 * ids.rows / x.rows), max_back_rows, &j);
}

/* ---- drawing neighbours --------------------------------------------------------------------- */

typedef struct draw_job {
    mx_tensor edge, nodes, begin;
    mx_sample_key key;
} draw_job;

/* Put v into the sorted list of n, or, if it is there, `other`, which is larger than all. */
static void insert(int32_t *list, int64_t n, int32_t v, int32_t other)
{
    int64_t at = n;
    while (at > 0 && list[at - 1] > v) at--;
    if (at > 0 && list[at - 1] == v) v = other, at = n;
    memmove(list + at + 1, list + at, (size_t)(n - at) * sizeof *list);
    list[at] = v;
}

static void draw(int32_t *out, int64_t want, int32_t node, int32_t from, int32_t to, mx_sample_key key)
{
    int64_t degree = to - from, n = degree < want ? degree : want;
    uint32_t word[4];
    for (int64_t k = 0; k < n && degree <= want; k++) out[k] = (int32_t)k;
    for (int64_t k = 0; k < n && degree > want; k++) {
        if (k % 4 == 0) {
            const uint32_t counter[4] = {(uint32_t)node, (uint32_t)(k / 4), key.layer, key.epoch};
            memcpy(word, counter, sizeof word);
            mx_philox(word, key.seed);
        }
        int64_t top = degree - want + k;                /* Floyd: one of 0..top, or top itself */
        insert(out, k, (int32_t)((uint64_t)word[k % 4] * (uint64_t)(top + 1) >> 32), (int32_t)top);
    }
    for (int64_t k = 0; k < want; k++) out[k] = k < n ? out[k] + from : -1;
}

static void draw_rows(const void *ctx, int64_t first, int64_t last)
{
    const draw_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        int32_t node = *mx_row_i32(j->nodes, r);
        draw(mx_row_i32(j->edge, r), j->edge.cols, node, *mx_row_i32(j->begin, node), *mx_row_i32(j->begin, node + 1), j->key);
    }
}

void mx_cpu_sample_neighbours(mx_stream *s, mx_tensor edge, mx_tensor nodes, mx_tensor begin, mx_sample_key key)
{
    draw_job j = {edge, nodes, begin, key};
    for (int64_t r = 0; r < nodes.rows; r++) {
        int32_t node = *mx_row_i32(nodes, r), from, to;
        if (node < 0 || node >= begin.rows - 1) {
            mx_stream_fail(s, MX_ERR_ARG, "sample_neighbours: node %d of row %lld is outside the graph's %lld", node, (long long)r, (long long)begin.rows - 1);
            return;
        }
        from = *mx_row_i32(begin, node), to = *mx_row_i32(begin, node + 1);
        if (from >= 0 && to >= from) continue;
        mx_stream_fail(s, MX_ERR_ARG, "sample_neighbours: begin %d of span %d is not from %d on", to, node, from);
        return;
    }
    mx_cpu_rows(s, nodes.rows, 32 + 8 * edge.cols, draw_rows, &j);
}
