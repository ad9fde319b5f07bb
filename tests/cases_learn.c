/* cases_learn.c - ops that learn: a case says once what its function and its
 * derivative are.  `test` compares a backend's gradients with the derivative,
 * `grad` compares the derivative with finite differences of the function. */
#include "tests/cases_learn.h"
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>

static void random_ids(case_io *io, int64_t n, int64_t below, bool some_absent)
{
    int32_t *id = malloc((size_t)n * sizeof *id);
    for (int64_t i = 0; id && i < n; i++) id[i] = some_absent && i % 5 == 2 ? -100 : (int32_t)case_below(io, below);
    if (id) case_place_i32(io, n, 1, id);
    io->broken |= !id;
    free(id);
}

static void close_learn(learn *l)
{
    for (int k = 0; k < l->n; k++) free(l->in[k]), free(l->d[k]);
    free(l->dout), free(l->out), free(l->ids), free(l->spans), free(l->freq);
}

static void open_learn(case_io *io, const learn_op *op, learn *l)
{
    memset(l, 0, sizeof *l);
    op->open(io, l);
    l->out = calloc((size_t)l->outs + 1, sizeof *l->out);
    for (int k = 0; k < l->n; k++) l->d[k] = calloc((size_t)l->size[k] + 1, sizeof *l->d[k]);
    op->backward(io, l);
    if (l->n && l->size[0]) l->d[0][0] += io->env->planted;
}

/* ---- product ------------------------------------------------------------------------------ */

/* flag: the weight is stored as bf16 */
static void weight(case_io *io)
{
    case_place(io, io->c->flag ? MX_BF16 : MX_F32, io->c->o, io->c->c, FILL_UNIFORM, false);
}

static void product_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->o, c->add);
    floats(io, c->n, c->c);
    weight(io);
    floats(io, 1, c->o);
}

static void product_call(case_io *io)
{
    io->env->kernels->product(&io->s, T(0), T(1), T(2), io->c->bias ? T(3) : none, io->c->type, io->c->add);
}

static double *rounded(const case_io *io, double *x, int64_t n)
{
    for (int64_t i = 0; i < n && io->c->type == MX_BF16; i++) x[i] = (double)mx_bf16_to_f32(mx_f32_to_bf16((float)x[i]));
    return x;
}

static bool product_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = rounded(io, before(io, 1), c->n * c->c), *w = rounded(io, before(io, 2), c->o * c->c), *b = before(io, 3);
    io->t[0].want = before(io, 0);
    ref_linear(io->t[0].want, x, w, c->bias ? b : NULL, c->n, c->c, c->o, MX_ACT_NONE, c->add);
    free(x), free(w), free(b);
    return case_close(io, &io->t[0], "y");
}

static void product_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 2.0 * (double)c->n * (double)c->c * (double)c->o;
    *bytes = 4.0 * ((double)c->n * (double)c->c + (double)c->o * (double)c->c + (double)c->n * (double)c->o);
}

static void product_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->add);
    result(io, c->o, c->c, true);
    result(io, 1, c->o, true);
    floats(io, c->n, c->o);
    floats(io, c->n, c->c);
    weight(io);
}

static void product_back_call(case_io *io)
{
    const mx_case *c = io->c;
    io->env->kernels->product_back(&io->s, T(0), T(1), c->bias ? T(2) : none, T(3), T(4), T(5), c->type, c->add);
}

static void product_back_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, rounded(io, before(io, 4), c->n * c->c), c->n * c->c, 0, c->add);
    input(l, rounded(io, before(io, 5), c->o * c->c), c->o * c->c, 1, true);
    input(l, calloc((size_t)c->o, sizeof(double)), c->o, c->bias ? 2 : ABSENT, true);
    l->dout = before(io, 3);
    l->outs = c->n * c->o;
}

static void product_forward(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    ref_linear(l->out, l->in[0], l->in[1], l->in[2], c->n, c->c, c->o, MX_ACT_NONE, false);
}

/* Only factors are rounded: the bias gets the sum of dy as it is. */
static void product_backward(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    double *dy = rounded(io, before(io, 3), l->outs);
    ref_product_back(l->d[0], l->d[1], NULL, dy, l->in[0], l->in[1], c->n, c->c, c->o);
    ref_product_back(NULL, NULL, l->d[2], l->dout, l->in[0], l->in[1], c->n, c->c, c->o);
    free(dy);
}

static void product_back_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 4.0 * (double)c->n * (double)c->c * (double)c->o;
    *bytes = 4.0 * (3.0 * (double)c->n * (double)c->c + 3.0 * (double)c->o * (double)c->c + 2.0 * (double)c->n * (double)c->o);
}

/* ---- cast, scale ---------------------------------------------------------------------------- */

static void rows_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->c * 8;
    *bytes = (double)c->n * (double)c->c * 12;
}

static void cast_build(case_io *io)
{
    const mx_case *c = io->c;
    case_place(io, c->type, c->n, c->c, FILL_SENTINEL, true);
    floats(io, c->n, c->c);
    io->tolerance = 0;
}

static void cast_call(case_io *io)
{
    io->env->kernels->cast(&io->s, T(0), T(1));
}

static bool cast_check(case_io *io)
{
    const mx_case *c = io->c;
    double *y = io->t[0].want = before(io, 1);
    for (int64_t i = 0; i < c->n * c->c; i++) {
        if (c->type == MX_BF16) y[i] = (double)mx_bf16_to_f32(mx_f32_to_bf16((float)y[i]));
        if (c->type == MX_F16) y[i] = (double)mx_f16_to_f32(mx_f32_to_f16((float)y[i]));
    }
    return case_close(io, &io->t[0], "y");
}

#define FACTOR 0.37f

static void scale_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->flag);
    floats(io, c->n, c->c);
    io->tolerance = 1e-6;
}

static void scale_call(case_io *io)
{
    io->env->kernels->scale(&io->s, T(0), io->c->flag ? T(0) : T(1), FACTOR);
}

static bool scale_check(case_io *io)
{
    double *y = io->t[0].want = before(io, io->c->flag ? 0 : 1);
    for (int64_t i = 0; i < io->c->n * io->c->c; i++) y[i] *= (double)FACTOR;
    return case_close(io, &io->t[0], "y");
}

/* ---- embed ------------------------------------------------------------------------------------ */

static void embed_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->o, c->c, true);
    floats(io, c->n, c->c);
    random_ids(io, c->n, c->o, false);
}

static void embed_back_call(case_io *io)
{
    io->env->kernels->embed_back(&io->s, T(0), T(1), T(2));
}

static void embed_back_open(case_io *io, learn *l)
{
    input(l, before(io, 0), io->c->o * io->c->c, 0, true);
    l->dout = before(io, 1);
    l->outs = io->c->n * io->c->c;
    l->ids = integers(io, 2);
}

static void embed_forward(case_io *io, learn *l)
{
    ref_embed(l->out, l->in[0], l->ids, io->c->n, io->c->c, false);
}

static void embed_backward(case_io *io, learn *l)
{
    ref_embed_back(l->d[0], l->dout, l->ids, io->c->n, io->c->c);
}

/* ---- norms --------------------------------------------------------------------------------------- */

static void norm_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->add);
    result(io, 1, c->c, true);
    result(io, 1, c->c, true);
    floats(io, c->n, c->c);
    floats(io, c->n, c->c);
    floats(io, 1, c->c);
}

static void norm_back_call(case_io *io)
{
    const mx_case *c = io->c;
    io->env->kernels->norm_back(&io->s, T(0), T(1), c->bias ? T(2) : none, T(3), T(4), T(5), 1e-5f, c->add);
}

static void rms_norm_back_call(case_io *io)
{
    io->env->kernels->rms_norm_back(&io->s, T(0), T(1), T(3), T(4), T(5), 1e-5f, io->c->add);
}

static void norm_back_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 4), c->n * c->c, 0, c->add);
    input(l, before(io, 5), c->c, 1, true);
    input(l, calloc((size_t)c->c, sizeof(double)), c->c, c->bias ? 2 : ABSENT, true);
    l->dout = before(io, 3);
    l->outs = c->n * c->c;
}

static void rms_norm_back_open(case_io *io, learn *l)
{
    norm_back_open(io, l);
    free(l->in[2]);
    l->n = 2;
}

static void norm_forward(case_io *io, learn *l)
{
    ref_norm(l->out, l->in[0], l->in[1], l->in[2], io->c->n, io->c->c, (double)1e-5f);
}

static void norm_backward(case_io *io, learn *l)
{
    ref_norm_back(l->d[0], l->d[1], l->d[2], l->dout, l->in[0], l->in[1], io->c->n, io->c->c, (double)1e-5f);
}

static void rms_norm_forward(case_io *io, learn *l)
{
    ref_rms_norm(l->out, l->in[0], l->in[1], io->c->n, io->c->c, (double)1e-5f);
}

static void rms_norm_backward(case_io *io, learn *l)
{
    ref_rms_norm_back(l->d[0], l->d[1], l->dout, l->in[0], l->in[1], io->c->n, io->c->c, (double)1e-5f);
}

/* ---- activations ------------------------------------------------------------------------------------- */

/* flag: dx is dy */
static void activate_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->flag);
    floats(io, c->n, c->c);
    case_place(io, MX_F32, c->n, c->c, FILL_NOISE_LOGITS, false);
    io->tolerance = 2e-6;
}

static void activate_back_call(case_io *io)
{
    io->env->kernels->activate_back(&io->s, T(0), io->c->flag ? T(0) : T(1), T(2), io->c->act);
}

static void activate_back_open(case_io *io, learn *l)
{
    int64_t n = io->c->n * io->c->c;
    input(l, before(io, 2), n, 0, false);
    l->dout = before(io, io->c->flag ? 0 : 1);
    l->outs = n;
}

static void activate_forward(case_io *io, learn *l)
{
    ref_activate(l->out, l->in[0], l->outs, io->c->act);
}

static void activate_backward(case_io *io, learn *l)
{
    ref_activate_back(l->d[0], l->dout, l->in[0], l->outs, io->c->act);
}

static void gated_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, 2 * c->c, false);
    floats(io, c->n, c->c);
    case_place(io, MX_F32, c->n, 2 * c->c, FILL_NOISE_LOGITS, false);
    io->tolerance = 4e-6;
}

static void gated_back_call(case_io *io)
{
    io->env->kernels->gated_back(&io->s, T(0), T(1), T(2), io->c->act);
}

static void gated_back_open(case_io *io, learn *l)
{
    input(l, before(io, 2), io->c->n * 2 * io->c->c, 0, false);
    l->dout = before(io, 1);
    l->outs = io->c->n * io->c->c;
}

static void gated_forward(case_io *io, learn *l)
{
    ref_gated(l->out, l->in[0], io->c->n, io->c->c, io->c->act);
}

static void gated_backward(case_io *io, learn *l)
{
    ref_gated_back(l->d[0], l->dout, l->in[0], io->c->n, io->c->c, io->c->act);
}

/* ---- rope ------------------------------------------------------------------------------------------------ */

static float magnitude_of(const mx_case *c)
{
    return c->add ? 1.25f : 1.0f;
}

static void rope_back_build(case_io *io)
{
    const mx_case *c = io->c;
    double *freq = malloc((size_t)(c->c / 2) * sizeof *freq);
    result(io, c->n, c->heads * c->c, true);
    random_ids(io, c->n, 131072, false);
    for (int64_t j = 0; freq && j < c->c / 2; j++) freq[j] = pow(10000, -2.0 * (double)j / (double)c->c);
    if (freq) case_place_values(io, 1, c->c / 2, freq, false);
    io->broken |= !freq;
    io->tolerance = 1e-6;
    free(freq);
}

static void rope_back_call(case_io *io)
{
    io->env->kernels->rope_back(&io->s, T(0), T(1), T(2), magnitude_of(io->c), io->c->heads, io->c->flag);
}

static void rope_back_open(case_io *io, learn *l)
{
    int64_t n = io->c->n * io->c->heads * io->c->c;
    input(l, before(io, 0), n, 0, false);            /* x itself does not matter: the map is linear */
    l->dout = before(io, 0);
    l->outs = n;
    l->ids = integers(io, 1);
    l->freq = malloc((size_t)io->c->c * sizeof *l->freq);
    for (int64_t i = 0; i < io->c->c / 2; i++) l->freq[i] = (float)case_value(&io->t[2], io->t[2].before, 0, i);
}

static void rope_forward(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    memcpy(l->out, l->in[0], (size_t)l->outs * sizeof *l->out);
    ref_rope(l->out, l->ids, l->freq, c->n, c->heads, c->c, (double)magnitude_of(c), c->flag);
}

static void rope_backward(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    memcpy(l->d[0], l->dout, (size_t)l->outs * sizeof *l->dout);
    ref_rope_back(l->d[0], l->ids, l->freq, c->n, c->heads, c->c, (double)magnitude_of(c), c->flag);
}

/* ---- dropout: o percent; flag: in place ------------------------------------------------------------------- */

#define DROP_SEED 0x123456789abcdefull

static void dropout_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->flag);
    floats(io, c->n, c->c);
    io->tolerance = 2e-6;
}

static void dropout_call(case_io *io)
{
    io->env->kernels->dropout(&io->s, T(0), io->c->flag ? T(0) : T(1), (float)io->c->o / 100, DROP_SEED);
}

static void dropout_open(case_io *io, learn *l)
{
    int64_t n = io->c->n * io->c->c;
    input(l, before(io, io->c->flag ? 0 : 1), n, 0, false);
    l->dout = before(io, io->c->flag ? 0 : 1);
    l->outs = n;
}

static void dropout_forward(case_io *io, learn *l)
{
    ref_dropout(l->out, l->in[0], io->c->n, io->c->c, (double)((float)io->c->o / 100), DROP_SEED);
}

static void dropout_backward(case_io *io, learn *l)
{
    ref_dropout(l->d[0], l->dout, io->c->n, io->c->c, (double)((float)io->c->o / 100), DROP_SEED);
}

/* ---- attention over packed sequences: context is the longest, flag: causal -------------------------------- */

static mx_attention_shape shape_of(const mx_case *c)
{
    /* sharper than 1/sqrt(d): a flat softmax hides mistakes */
    return (mx_attention_shape){c->heads, c->groups, 3.0f / sqrtf((float)c->c), c->flag, (int)c->window, c->type,
                                .longest = c->flag ? (int)c->context : 0, .learns = true};
}

/* The longest sequence, one without rows, then any lengths; perf: equal ones. */
static void place_spans(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *begin = malloc((size_t)(c->n + 3) * sizeof *begin);
    int64_t spans = 0, at = 0;
    io->broken |= !begin;
    if (!begin) return;
    begin[0] = 0;
    while (at < c->n) {
        int64_t n = spans == 0 || c->perf ? c->context : spans == 1 ? 0 : 1 + case_below(io, c->context);
        at = at + n < c->n ? at + n : c->n;
        begin[++spans] = (int32_t)at;
    }
    case_place_i32(io, spans + 1, 1, begin);
    free(begin);
}

static void attention_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->heads * c->c, false);
    result(io, c->n, c->heads, false);
    floats(io, c->n, c->heads * c->c);
    floats(io, c->n, c->groups * c->c);
    floats(io, c->n, c->groups * c->c);
    place_spans(io);
}

static void attention_call(case_io *io)
{
    io->env->kernels->attention(&io->s, T(0), T(1), T(2), T(3), T(4), T(5), shape_of(io->c));
}

static bool attention_check(case_io *io)
{
    const mx_case *c = io->c;
    mx_attention_shape a = shape_of(c);
    double *q = before(io, 2), *k = before(io, 3), *v = before(io, 4);
    int32_t *begin = integers(io, 5);
    io->t[0].want = before(io, 0);
    io->t[1].want = before(io, 1);
    if (c->type == MX_BF16) io->tolerance = 5e-2, io->norm_tolerance = 1e-2;
    ref_attention_packed(io->t[0].want, io->t[1].want, q, k, v, begin, T(5).rows - 1, c->c, &a);
    free(q), free(k), free(v), free(begin);
    bool ok = case_close(io, &io->t[0], "y");
    return case_close(io, &io->t[1], "lse") && ok;
}

/* Pairs of a query and a key that meet, times heads and channels */
static double meetings(const mx_case *c)
{
    double n = (double)c->context, seen = c->flag ? n * (n + 1) / 2 : n * n;
    return (double)c->n / n * seen * c->heads * (double)c->c;
}

static void attention_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 4 * meetings(c);
    *bytes = 4.0 * (double)c->n * (double)c->c * 2 * (c->heads + c->groups);
}

static void attention_back_build(case_io *io)
{
    const mx_case *c = io->c;
    mx_attention_shape a = shape_of(c);
    double *y = NULL, *lse = NULL, *q = NULL, *k = NULL, *v = NULL;
    int32_t *begin = NULL;
    if (c->type == MX_BF16) io->norm_tolerance = 1e-2;
    io->tolerance = c->type == MX_BF16 ? 1e-1 : 4e-5;                            /* a key that many queries see stands far above the rms */
    result(io, c->n, c->heads * c->c, false);
    result(io, c->n, c->groups * c->c, false);
    result(io, c->n, c->groups * c->c, false);
    floats(io, c->n, c->heads * c->c);
    floats(io, c->n, c->heads * c->c);
    floats(io, c->n, c->groups * c->c);
    floats(io, c->n, c->groups * c->c);
    place_spans(io);
    if (io->broken) return;
    y = before(io, 3), lse = before(io, 3), q = before(io, 4), k = before(io, 5), v = before(io, 6), begin = integers(io, 7);
    if (!c->perf) ref_attention_packed(y, lse, q, k, v, begin, T(7).rows - 1, c->c, &a);
    for (int64_t i = 0; c->perf && i < c->n * c->heads; i++) lse[i] = 5;
    case_place_values(io, c->n, c->heads * c->c, y, false);
    case_place_values(io, c->n, c->heads, lse, false);
    free(y), free(lse), free(q), free(k), free(v), free(begin);
}

static void attention_back_call(case_io *io)
{
    io->env->kernels->attention_back(&io->s, T(0), T(1), T(2), T(3), T(4), T(5), T(6), T(8), T(9), T(7), shape_of(io->c));
}

static void attention_back_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 4), c->n * c->heads * c->c, 0, false);
    input(l, before(io, 5), c->n * c->groups * c->c, 1, false);
    input(l, before(io, 6), c->n * c->groups * c->c, 2, false);
    l->dout = before(io, 3);
    l->outs = c->n * c->heads * c->c;
    l->spans = integers(io, 7);
}

static void attention_forward(case_io *io, learn *l)
{
    mx_attention_shape a = shape_of(io->c);
    double *lse = malloc((size_t)(io->c->n * io->c->heads) * sizeof *lse);
    ref_attention_packed(l->out, lse, l->in[0], l->in[1], l->in[2], l->spans, T(7).rows - 1, io->c->c, &a);
    free(lse);
}

static void attention_backward(case_io *io, learn *l)
{
    mx_attention_shape a = shape_of(io->c);
    ref_attention_packed_back(l->d[0], l->d[1], l->d[2], l->dout, l->in[0], l->in[1], l->in[2], l->spans, T(7).rows - 1,
                              io->c->c, &a);
}

static void attention_back_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 10 * meetings(c);
    *bytes = 4.0 * (double)c->n * (double)c->c * 4 * (c->heads + c->groups);
}

/* ---- cross-entropy: flag: learn ------------------------------------------------------------------------------ */

#define LOSS_SCALE (1.0f / 7)

static void cross_entropy_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, 1, false);
    case_place(io, MX_F32, c->n, c->o, FILL_NOISE_LOGITS, c->flag);
    random_ids(io, c->n, c->o, !c->perf);
    io->tolerance = c->o > 1000 ? 5e-5 : 4e-6;       /* one class stands far above the rms of all */
}

static void cross_entropy_call(case_io *io)
{
    io->env->kernels->cross_entropy(&io->s, T(0), T(1), T(2), LOSS_SCALE, io->c->flag);
}

static void cross_entropy_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, 1), c->n * c->o, c->flag ? 1 : ABSENT, false);
    l->outs = c->n;
    l->dout = malloc((size_t)c->n * sizeof *l->dout);
    for (int64_t r = 0; r < c->n; r++) l->dout[r] = (double)LOSS_SCALE;
    l->ids = integers(io, 2);
}

static void cross_entropy_forward(case_io *io, learn *l)
{
    ref_cross_entropy(l->out, NULL, l->in[0], l->ids, io->c->n, io->c->o, (double)LOSS_SCALE);
}

static void cross_entropy_backward(case_io *io, learn *l)
{
    io->t[0].want = io->t[0].want ? io->t[0].want : malloc((size_t)io->c->n * sizeof(double));
    ref_cross_entropy(io->t[0].want, l->d[0], l->in[0], l->ids, io->c->n, io->c->o, (double)LOSS_SCALE);
}

static void vocabulary_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->o * 8;
    *bytes = (double)c->n * (double)c->o * (c->flag ? 8 : 4);
}

/* ---- the two uses of a derivative ---------------------------------------------------------------------------------- */

static const learn_op learn_ops[] = {
    {"product_back", product_back_open, product_forward, product_backward},
    {"embed_back", embed_back_open, embed_forward, embed_backward},
    {"norm_back", norm_back_open, norm_forward, norm_backward},
    {"rms_norm_back", rms_norm_back_open, rms_norm_forward, rms_norm_backward},
    {"activate_back", activate_back_open, activate_forward, activate_backward},
    {"gated_back", gated_back_open, gated_forward, gated_backward},
    {"rope_back", rope_back_open, rope_forward, rope_backward},
    {"dropout", dropout_open, dropout_forward, dropout_backward},
    {"attention_back", attention_back_open, attention_forward, attention_backward},
    {"cross_entropy", cross_entropy_open, cross_entropy_forward, cross_entropy_backward},
};

static const learn_op *learn_op_of(const mx_case *c)
{
    for (size_t i = 0; i < sizeof learn_ops / sizeof *learn_ops; i++)
        if (strcmp(learn_ops[i].op, c->op) == 0) return &learn_ops[i];
    for (int i = 0; i < mx_case_value_learn_ops_count; i++)
        if (strcmp(mx_case_value_learn_ops[i].op, c->op) == 0) return &mx_case_value_learn_ops[i];
    for (int i = 0; i < mx_case_graph_learn_ops_count; i++)
        if (strcmp(mx_case_graph_learn_ops[i].op, c->op) == 0) return &mx_case_graph_learn_ops[i];
    return NULL;
}

bool case_back_check(case_io *io)
{
    static const char *const names[INPUTS] = {"gradient 0", "gradient 1", "gradient 2"};
    learn l;
    bool ok = true;
    const learn_op *op = learn_op_of(io->c);
    open_learn(io, op, &l);
    for (int k = 0; k < l.n; k++) {
        if (l.to[k] == ABSENT) continue;
        placed *p = &io->t[l.to[k]];
        p->want = before(io, l.to[k]);
        for (int64_t i = 0; i < l.size[k]; i++) p->want[i] = l.d[k][i] + (l.adds[k] ? p->want[i] : 0);
        ok = case_close(io, p, names[k]) && ok;
    }
    io->tolerance = fmin(io->tolerance, 1e-6);
    if (strcmp(op->op, "cross_entropy") == 0 || strcmp(op->op, "logistic") == 0) ok = case_close(io, &io->t[0], "loss") && ok;
    close_learn(&l);
    return ok;
}

static double loss_of(case_io *io, const learn_op *op, learn *l)
{
    double sum = 0;
    op->forward(io, l);
    for (int64_t i = 0; i < l->outs; i++) sum += l->dout[i] * l->out[i];
    return sum;
}

/* Up to MOVED elements of an input, moved both ways. */
#define MOVED 13
static bool differences_agree(case_io *io, const learn_op *op, learn *l, int k)
{
    const double step = 2e-5;
    double rms = 0;
    for (int64_t i = 0; i < l->size[k]; i++) rms += l->d[k][i] * l->d[k][i] / (double)l->size[k];
    rms = sqrt(rms) + 1e-30;
    for (int64_t t = 0; t < MOVED && t < l->size[k]; t++) {
        int64_t i = l->size[k] <= MOVED || t == 0 ? t : case_below(io, l->size[k]);
        double x = l->in[k][i];
        if (io->c->act == MX_ACT_RELU && fabs(x) < 2 * step) continue;      /* its corner */
        l->in[k][i] = x + step;
        double up = loss_of(io, op, l);
        l->in[k][i] = x - step;
        double want = (up - loss_of(io, op, l)) / (2 * step);
        l->in[k][i] = x;
        /* fourteen digits of the loss, divided by the step, and the third derivative */
        if (fabs(want - l->d[k][i]) <= 2e-6 * rms + 1e-8) continue;
        return case_fail(io, "derivative of input %d at %lld: %.12g, by differences %.12g", k, (long long)i, l->d[k][i], want);
    }
    return true;
}

bool case_has_gradient(const mx_case *c)
{
    bool ties = strcmp(c->op, "aggregate_max_back") == 0 && c->flag;
    return learn_op_of(c) != NULL && c->type == MX_F32 && !ties;         /* rounding has no derivative, nor have ties */
}

bool case_gradient(case_io *io)
{
    const learn_op *op = learn_op_of(io->c);
    learn l;
    bool ok = true;
    open_learn(io, op, &l);
    for (int k = 0; k < l.n; k++) ok = differences_agree(io, op, &l, k) && ok;
    close_learn(&l);
    return ok;
}

const case_op mx_case_learn_ops[] = {
    {"product", product_build, product_call, product_check, product_work},
    {"product_back", product_back_build, product_back_call, case_back_check, product_back_work},
    {"cast", cast_build, cast_call, cast_check, rows_work},
    {"scale", scale_build, scale_call, scale_check, rows_work},
    {"embed_back", embed_back_build, embed_back_call, case_back_check, rows_work},
    {"norm_back", norm_back_build, norm_back_call, case_back_check, rows_work},
    {"rms_norm_back", norm_back_build, rms_norm_back_call, case_back_check, rows_work},
    {"activate_back", activate_back_build, activate_back_call, case_back_check, rows_work},
    {"gated_back", gated_back_build, gated_back_call, case_back_check, rows_work},
    {"rope_back", rope_back_build, rope_back_call, case_back_check, rows_work},
    {"dropout", dropout_build, dropout_call, case_back_check, rows_work},
    {"attention", attention_build, attention_call, attention_check, attention_work},
    {"attention_back", attention_back_build, attention_back_call, case_back_check, attention_back_work},
    {"cross_entropy", cross_entropy_build, cross_entropy_call, case_back_check, vocabulary_work},
};
const int mx_case_learn_ops_count = sizeof mx_case_learn_ops / sizeof *mx_case_learn_ops;
