/* cases_graph.c - what graphs need: maxima back, attention over edges, drawing, pairs of rows.
 *
 * A graph of a case has n spans of up to `context` edges each (the first has so
 * many, the second none) into a table of o rows. */
#include "tests/cases_learn.h"
#include "tests/reference.h"

#include <stdlib.h>

/* ---- the graph -------------------------------------------------------------------------- */

typedef struct lists {
    int32_t *begin, *ids, *t_begin, *span, *edge;
} lists;

static void close_lists(lists *g)
{
    free(g->begin), free(g->ids), free(g->t_begin), free(g->span), free(g->edge);
}

static lists graph_of(case_io *io)
{
    const mx_case *c = io->c;
    size_t most = (size_t)c->n * (size_t)c->context + 1;
    lists g = {malloc(((size_t)c->n + 1) * 4), malloc(most * 4), calloc((size_t)c->o + 1, 4), malloc(most * 4), malloc(most * 4)};
    if (!g.begin || !g.ids || !g.t_begin || !g.span || !g.edge) {
        io->broken = true;
        return g;
    }
    int32_t edges = 0, at = 0;
    for (int64_t s = 0; s < c->n; s++) {
        int64_t degree = s == 0 || c->perf ? c->context : s == 1 ? 0 : case_below(io, c->context + 1);
        g.begin[s] = edges;
        for (int64_t i = 0; i < degree; i++) g.ids[edges++] = (int32_t)case_below(io, c->o);
    }
    g.begin[c->n] = edges;
    for (int64_t u = 0; u < c->o; u++) {
        g.t_begin[u] = at;
        for (int64_t s = 0; s < c->n && !c->perf; s++)
            for (int32_t e = g.begin[s]; e < g.begin[s + 1]; e++)
                if (g.ids[e] == u) g.span[at] = (int32_t)s, g.edge[at++] = e;
    }
    g.t_begin[c->o] = at;
    return g;
}

/* Places ids and begin, and if `turned` the lists turned round: five tensors from here on. */
static void place_graph(case_io *io, bool turned)
{
    lists g = graph_of(io);
    if (!io->broken) {
        int32_t edges = g.begin[io->c->n];
        case_place_i32(io, edges, 1, g.ids);
        case_place_i32(io, io->c->n + 1, 1, g.begin);
        if (turned) {
            case_place_i32(io, io->c->o + 1, 1, g.t_begin);
            case_place_i32(io, edges, 1, g.span);
            case_place_i32(io, edges, 1, g.edge);
        }
    }
    close_lists(&g);
}

static mx_turned turned(case_io *io, int at)
{
    return (mx_turned){T(at), T(at + 1), T(at + 2)};
}

static void edges_work(const mx_case *c, double *flop, double *bytes)
{
    double edges = (double)c->n * (double)c->context, row = (double)c->c * (c->heads ? c->heads : 1);
    *flop = 2 * edges * row;
    *bytes = 4 * row * (edges + (double)c->n);
}

/* ---- the gradient of a maximum: flag: values that are often equal -------------------------- */

static void max_back_build(case_io *io)
{
    const mx_case *c = io->c;
    double *x = malloc((size_t)(c->o * c->c) * sizeof *x), *y = malloc((size_t)(c->n * c->c) * sizeof *y);
    result(io, c->o, c->c, false);
    floats(io, c->n, c->c);
    place_graph(io, true);
    io->broken |= !x || !y;
    for (int64_t i = 0; i < c->o * c->c && !io->broken; i++) x[i] = c->flag ? (double)(case_below(io, 3)) : (double)(float)case_uniform(io);
    int32_t *ids = io->broken ? NULL : integers(io, 2), *begin = io->broken ? NULL : integers(io, 3);
    if (!io->broken) {
        ref_aggregate(y, x, ids, begin, NULL, c->n, c->c, MX_REDUCE_MAX);
        case_place_values(io, c->o, c->c, x, false);
        case_place_values(io, c->n, c->c, y, false);
    }
    free(x), free(y), free(ids), free(begin);
}

static void max_back_call(case_io *io)
{
    io->env->kernels->aggregate_max_back(&io->s, T(0), T(1), T(7), T(8), T(2), T(3), turned(io, 4));
}

static void max_back_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 7), c->o * c->c, 0, false);
    l->dout = before(io, 1);
    l->outs = c->n * c->c;
    l->ids = integers(io, 2);
    l->spans = integers(io, 3);
}

static void max_forward(case_io *io, learn *l)
{
    ref_aggregate(l->out, l->in[0], l->ids, l->spans, NULL, io->c->n, io->c->c, MX_REDUCE_MAX);
}

static void max_backward(case_io *io, learn *l)
{
    ref_aggregate_max_back(l->d[0], l->dout, l->in[0], l->ids, l->spans, io->c->n, io->c->c);
}

/* ---- attention: page: percent that is dropped ------------------------------------------------- */

static mx_graph_heads shape_of(const mx_case *c)
{
    return (mx_graph_heads){.heads = c->heads, .slope = 0.2f, .rate = (float)c->page / 100, .seed = 0x1234567890abcdefull};
}

/* What dropout leaves of a matrix [E,H] of ones */
static double *keep_of(const mx_case *c, int64_t edges)
{
    mx_graph_heads a = shape_of(c);
    size_t n = (size_t)(edges * a.heads) + 1;
    double *keep = malloc(n * sizeof *keep);
    for (size_t i = 0; i < n; i++) keep[i] = 1;
    ref_dropout(keep, keep, edges, a.heads, (double)a.rate, a.seed);
    return keep;
}

/* 0 y, 1 lse, 2 z, 3 src, 4 dst, 5 ids, 6 begin */
static void attention_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->heads * c->c, false);
    result(io, c->n, c->heads, false);
    floats(io, c->o, c->heads * c->c);
    case_place(io, MX_F32, c->o, c->heads, FILL_NOISE_LOGITS, false);
    case_place(io, MX_F32, c->n, c->heads, FILL_NOISE_LOGITS, false);
    place_graph(io, false);
    io->tolerance = 2e-6;
}

static void attention_call(case_io *io)
{
    io->env->kernels->graph_attention(&io->s, T(0), T(1), T(2), T(3), T(4), T(5), T(6), shape_of(io->c));
}

static bool attention_check(case_io *io)
{
    const mx_case *c = io->c;
    mx_graph_heads a = shape_of(c);
    double *z = before(io, 2), *src = before(io, 3), *dst = before(io, 4), *keep = keep_of(c, T(5).rows);
    int32_t *ids = integers(io, 5), *begin = integers(io, 6);
    io->t[0].want = before(io, 0);
    io->t[1].want = before(io, 1);
    ref_graph_attention(io->t[0].want, io->t[1].want, z, src, dst, ids, begin, keep, c->n, c->c, &a);
    free(z), free(src), free(dst), free(keep), free(ids), free(begin);
    bool ok = case_close(io, &io->t[0], "y");
    return case_close(io, &io->t[1], "lse") && ok;
}

/* 0 dz, 1 dsrc, 2 ddst, 3 dy, 4 z, 5 src, 6 dst, 7 ids, 8 begin, 9.. turned, 12 y, 13 lse */
static void attention_back_build(case_io *io)
{
    const mx_case *c = io->c;
    mx_graph_heads a = shape_of(c);
    result(io, c->o, c->heads * c->c, false);
    result(io, c->o, c->heads, false);
    result(io, c->n, c->heads, false);
    floats(io, c->n, c->heads * c->c);
    floats(io, c->o, c->heads * c->c);
    case_place(io, MX_F32, c->o, c->heads, FILL_NOISE_LOGITS, false);
    case_place(io, MX_F32, c->n, c->heads, FILL_NOISE_LOGITS, false);
    place_graph(io, true);
    if (io->broken) return;
    double *z = before(io, 4), *src = before(io, 5), *dst = before(io, 6), *keep = keep_of(c, T(7).rows);
    double *y = before(io, 3), *lse = before(io, 2);
    int32_t *ids = integers(io, 7), *begin = integers(io, 8);
    ref_graph_attention(y, lse, z, src, dst, ids, begin, keep, c->n, c->c, &a);
    case_place_values(io, c->n, c->heads * c->c, y, false);
    case_place_values(io, c->n, c->heads, lse, false);
    free(z), free(src), free(dst), free(keep), free(y), free(lse), free(ids), free(begin);
    io->tolerance = 1e-4;                            /* scores up to 9, their gradients differences that nearly cancel */
}

static void attention_back_call(case_io *io)
{
    io->env->kernels->graph_attention_back(&io->s, T(0), T(1), T(2), T(3), T(12), T(13), T(4), T(5), T(6), T(7), T(8), turned(io, 9),
                                           shape_of(io->c));
}

static void attention_back_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 4), c->o * c->heads * c->c, 0, false);
    input(l, before(io, 5), c->o * c->heads, 1, false);
    input(l, before(io, 6), c->n * c->heads, 2, false);
    l->dout = before(io, 3);
    l->outs = c->n * c->heads * c->c;
    l->ids = integers(io, 7);
    l->spans = integers(io, 8);
}

static void attention_forward(case_io *io, learn *l)
{
    mx_graph_heads a = shape_of(io->c);
    double *keep = keep_of(io->c, T(7).rows);
    ref_graph_attention(l->out, NULL, l->in[0], l->in[1], l->in[2], l->ids, l->spans, keep, io->c->n, io->c->c, &a);
    free(keep);
}

static void attention_backward(case_io *io, learn *l)
{
    mx_graph_heads a = shape_of(io->c);
    double *keep = keep_of(io->c, T(7).rows);
    ref_graph_attention_back(l->d[0], l->d[1], l->d[2], l->dout, l->in[0], l->in[1], l->in[2], l->ids, l->spans, keep, io->c->n, io->c->c, &a);
    free(keep);
}

/* ---- drawing: c edges of each of n nodes of a graph of o ------------------------------------------ */

static const mx_sample_key draw_key = {.seed = 0xfedcba0987654321ull, .layer = 3, .epoch = 41};

static void draw_build(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *begin = malloc(((size_t)c->o + 1) * 4), *nodes = malloc((size_t)c->n * 4), at = 0;
    io->broken |= !begin || !nodes;
    for (int64_t v = 0; v <= c->o && !io->broken; v++) {
        begin[v] = at;
        at += (int32_t)(v == 0 || c->perf ? c->context : v == 1 ? 0 : v == 2 ? c->c : v == 3 ? c->c + 1 : case_below(io, c->context + 1));
    }
    for (int64_t r = 0; r < c->n && !io->broken; r++) nodes[r] = r < 4 && r < c->o ? (int32_t)r : (int32_t)case_below(io, c->o);
    case_place(io, MX_I32, c->n, c->c, FILL_SENTINEL, true);
    if (!io->broken) case_place_i32(io, c->n, 1, nodes);
    if (!io->broken) case_place_i32(io, c->o + 1, 1, begin);
    io->tolerance = 0;
    free(begin), free(nodes);
}

static void draw_call(case_io *io)
{
    io->env->kernels->sample_neighbours(&io->s, T(0), T(1), T(2), draw_key);
}

static bool draw_check(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *nodes = integers(io, 1), *begin = integers(io, 2), *edge = malloc((size_t)c->c * 4);
    double *want = io->t[0].want = malloc((size_t)(c->n * c->c) * sizeof *want);
    for (int64_t r = 0; r < c->n; r++) {
        ref_sample_neighbours(edge, c->c, nodes[r], begin[nodes[r]], begin[nodes[r] + 1], &draw_key);
        for (int64_t k = 0; k < c->c; k++) want[r * c->c + k] = edge[k];
    }
    free(nodes), free(begin), free(edge);
    return case_close(io, &io->t[0], "edges");
}

static void rows_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->c * 4;
    *bytes = (double)c->n * (double)c->c * 8;
}

/* ---- length one: flag: in place; page: the shortest length, in hundredths ---------------------------- */

static float least_of(const mx_case *c)
{
    return c->page ? (float)c->page / 100 : 1e-12f;
}

static void normalize_build(case_io *io)
{
    result(io, io->c->n, io->c->c, io->c->flag);
    floats(io, io->c->n, io->c->c);
    io->tolerance = 1e-6;
}

static void normalize_call(case_io *io)
{
    io->env->kernels->unit_rows(&io->s, T(0), io->c->flag ? T(0) : T(1), least_of(io->c));
}

static bool normalize_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = before(io, c->flag ? 0 : 1);
    io->t[0].want = before(io, 0);
    ref_normalize(io->t[0].want, x, c->n, c->c, (double)least_of(c));
    free(x);
    return case_close(io, &io->t[0], "y");
}

static void normalize_back_build(case_io *io)
{
    normalize_build(io);
    floats(io, io->c->n, io->c->c);
    io->tolerance = 2e-6;
}

static void normalize_back_call(case_io *io)
{
    io->env->kernels->unit_rows_back(&io->s, T(0), io->c->flag ? T(0) : T(1), T(2), least_of(io->c));
}

static void normalize_back_open(case_io *io, learn *l)
{
    int64_t n = io->c->n * io->c->c;
    input(l, before(io, 2), n, 0, false);
    l->dout = before(io, io->c->flag ? 0 : 1);
    l->outs = n;
}

static void normalize_forward(case_io *io, learn *l)
{
    ref_normalize(l->out, l->in[0], io->c->n, io->c->c, (double)least_of(io->c));
}

static void normalize_backward(case_io *io, learn *l)
{
    ref_normalize_back(l->d[0], l->dout, l->in[0], io->c->n, io->c->c, (double)least_of(io->c));
}

/* ---- dot products: flag: one row b for all ----------------------------------------------------------- */

static void dot_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->heads, false);
    floats(io, c->n, c->heads * c->c);
    floats(io, c->flag ? 1 : c->n, c->heads * c->c);
    io->tolerance = 2e-6;
}

static void dot_call(case_io *io)
{
    io->env->kernels->dot(&io->s, T(0), T(1), T(2));
}

static bool dot_check(case_io *io)
{
    const mx_case *c = io->c;
    double *a = before(io, 1), *b = before(io, 2);
    io->t[0].want = before(io, 0);
    ref_dot(io->t[0].want, a, b, c->n, c->heads, c->c, c->flag);
    free(a), free(b);
    return case_close(io, &io->t[0], "y");
}

static void dot_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->heads * c->c, c->add);
    result(io, c->flag ? 1 : c->n, c->heads * c->c, c->add || c->flag);
    floats(io, c->n, c->heads);
    floats(io, c->n, c->heads * c->c);
    floats(io, c->flag ? 1 : c->n, c->heads * c->c);
    io->tolerance = 2e-6;
}

static void dot_back_call(case_io *io)
{
    const mx_case *c = io->c;
    io->env->kernels->dot_back(&io->s, T(0), c->bias ? none : T(1), T(2), T(3), T(4), c->add);
}

static void dot_back_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 3), c->n * c->heads * c->c, 0, c->add);
    input(l, before(io, 4), (c->flag ? 1 : c->n) * c->heads * c->c, c->bias ? ABSENT : 1, c->add || c->flag);
    l->dout = before(io, 2);
    l->outs = c->n * c->heads;
}

static void dot_forward(case_io *io, learn *l)
{
    ref_dot(l->out, l->in[0], l->in[1], io->c->n, io->c->heads, io->c->c, io->c->flag);
}

static void dot_backward(case_io *io, learn *l)
{
    ref_dot_back(l->d[0], l->d[1], l->dout, l->in[0], l->in[1], io->c->n, io->c->heads, io->c->c, io->c->flag);
}

/* ---- the logistic loss: flag: learn ---------------------------------------------------------------------- */

#define LOSS_SCALE (1.0f / 3)

static void logistic_build(case_io *io)
{
    const mx_case *c = io->c;
    double *target = malloc((size_t)(c->n * c->c) * sizeof *target);
    result(io, c->n, 1, false);
    case_place(io, MX_F32, c->n, c->c, FILL_NOISE_LOGITS, c->flag);
    io->broken |= !target;
    for (int64_t i = 0; i < c->n * c->c && target; i++) target[i] = i % 7 == 3 ? -1 : i % 5 == 2 ? 0.25 : (double)case_below(io, 2);
    if (target) case_place_values(io, c->n, c->c, target, false);
    io->tolerance = 1e-6;
    free(target);
}

static void logistic_call(case_io *io)
{
    io->env->kernels->logistic(&io->s, T(0), T(1), T(2), LOSS_SCALE, io->c->flag);
}

static void logistic_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 1), c->n * c->c, c->flag ? 1 : ABSENT, false);
    l->outs = c->n;
    l->dout = malloc((size_t)c->n * sizeof *l->dout);
    for (int64_t r = 0; r < c->n; r++) l->dout[r] = (double)LOSS_SCALE;
}

static void logistic_forward(case_io *io, learn *l)
{
    double *target = before(io, 2);
    ref_logistic(l->out, NULL, l->in[0], target, io->c->n, io->c->c, 1);
    free(target);
}

static void logistic_backward(case_io *io, learn *l)
{
    double *target = before(io, 2);
    io->t[0].want = io->t[0].want ? io->t[0].want : malloc((size_t)io->c->n * sizeof(double));
    ref_logistic(io->t[0].want, l->d[0], l->in[0], target, io->c->n, io->c->c, (double)LOSS_SCALE);
    free(target);
}

const learn_op mx_case_graph_learn_ops[] = {
    {"aggregate_max_back", max_back_open, max_forward, max_backward},
    {"graph_attention_back", attention_back_open, attention_forward, attention_backward},
    {"unit_rows_back", normalize_back_open, normalize_forward, normalize_backward},
    {"dot_back", dot_back_open, dot_forward, dot_backward},
    {"logistic", logistic_open, logistic_forward, logistic_backward},
};
const int mx_case_graph_learn_ops_count = sizeof mx_case_graph_learn_ops / sizeof *mx_case_graph_learn_ops;

const case_op mx_case_graph_ops[] = {
    {"aggregate_max_back", max_back_build, max_back_call, case_back_check, edges_work},
    {"graph_attention", attention_build, attention_call, attention_check, edges_work},
    {"graph_attention_back", attention_back_build, attention_back_call, case_back_check, edges_work},
    {"sample_neighbours", draw_build, draw_call, draw_check, rows_work},
    {"unit_rows", normalize_build, normalize_call, normalize_check, rows_work},
    {"unit_rows_back", normalize_back_build, normalize_back_call, case_back_check, rows_work},
    {"dot", dot_build, dot_call, dot_check, rows_work},
    {"dot_back", dot_back_build, dot_back_call, case_back_check, rows_work},
    {"logistic", logistic_build, logistic_call, case_back_check, rows_work},
};
const int mx_case_graph_ops_count = sizeof mx_case_graph_ops / sizeof *mx_case_graph_ops;
