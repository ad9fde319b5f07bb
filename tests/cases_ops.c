/* cases_ops.c - row ops: how a case becomes tensors, and what the answer is. */
#include "tests/cases_io.h"
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>

#define IN(i)  (io->t[i].before)
#define DATA(i) case_dense(&io->t[i], IN(i))
#define T(i)   (io->t[i].t)

static const mx_tensor none;

static mx_tensor floats(case_io *io, int64_t rows, int64_t cols)
{
    return case_place(io, MX_F32, rows, cols, FILL_UNIFORM, false);
}

/* An output that holds something when the op adds to it or works in place. */
static mx_tensor result(case_io *io, int64_t rows, int64_t cols, bool holds)
{
    return case_place(io, MX_F32, rows, cols, holds ? FILL_UNIFORM : FILL_SENTINEL, true);
}

static void ids(case_io *io, int64_t n, int64_t below)
{
    int32_t *id = malloc((size_t)n * sizeof *id);
    for (int64_t i = 0; id && i < n; i++) id[i] = (int32_t)case_below(io, below);
    if (id) case_place_i32(io, n, 1, id);
    io->broken |= !id;
    free(id);
}

/* ---- embed ------------------------------------------------------------------------ */

static void embed_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->add);
    case_place(io, c->type, c->o, c->c, FILL_UNIFORM, false);
    ids(io, c->n, c->o);
    io->tolerance = c->add ? 1e-6 : 0;
}

static void embed_call(case_io *io)
{
    io->env->kernels->embed(&io->s, T(0), T(1), T(2), io->c->add);
}

static bool embed_check(case_io *io)
{
    const mx_case *c = io->c;
    double *y = io->t[0].want = DATA(0), *table = DATA(1), *id = DATA(2);
    int32_t *at = malloc((size_t)c->n * sizeof *at);
    for (int64_t i = 0; i < c->n; i++) at[i] = (int32_t)id[i];
    ref_embed(y, table, at, c->n, c->c, c->add);
    free(table), free(id), free(at);
    return case_close(io, &io->t[0], "y");
}

static void rows_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->c * 8;
    *bytes = (double)c->n * (double)c->c * 8;
}

/* ---- linear ------------------------------------------------------------------------- */

static void read_weight(const void *ctx, int64_t first, int64_t n, float *dst)
{
    const placed *p = ctx;
    for (int64_t r = 0; r < n; r++)
        for (int64_t i = 0; i < p->t.cols; i++) dst[r * p->t.cols + i] = (float)case_value(p, p->before, first + r, i);
}

static void linear_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->o, c->add);
    floats(io, c->n, c->c);
    floats(io, 1, c->o);
    /* two stacked parts, as q, k, v are */
    int64_t cut = c->o > 1 ? c->o / 3 + 1 : 1;
    floats(io, cut, c->c);
    if (c->o > cut) floats(io, c->o - cut, c->c);
    if (io->broken) return;
    mx_row_source parts[2];
    int n = io->count - 3, copies = 1;
    for (int i = 0; i < n; i++) parts[i] = (mx_row_source){read_weight, &io->t[3 + i], T(3 + i).rows, c->c};
    /* measured from memory, as a model of many layers reads them, not from the cache */
    if (c->perf) copies = (int)(192e6 / ((double)c->o * (double)c->c * (double)mx_dtype_size(c->type))) + 1;
    if (copies > MX_CASE_WEIGHTS) copies = MX_CASE_WEIGHTS;
    for (; io->weights < copies; io->weights++) {
        mx_weight *w = &io->w[io->weights];
        *w = (mx_weight){.dev = io->env->dev, .rows = c->o, .cols = c->c, .dtype = c->type};
        mx_error err;
        if (io->env->kernels->weight_open(w, io->env->dev, parts, n, c->type, &err)) {
            io->broken = true;
            return;
        }
    }
    /* int8: a quantum that rounds the other way at a tie */
    io->tolerance = c->type == MX_I8 ? 2e-3 : 1e-5;
}

static void linear_call(case_io *io)
{
    const mx_case *c = io->c;
    const mx_weight *w = &io->w[io->calls++ % io->weights];
    io->env->kernels->linear(&io->s, T(0), T(1), w, c->bias ? T(2) : none, c->act, c->add);
}

/* n values rounded to 127 steps of the largest, but for the one at `apart` (-1: none) */
static void rounded_i8(double *x, int64_t n, int64_t apart)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        if (i != apart) most = fmax(most, fabs(x[i]));
    for (int64_t i = 0; i < n; i++)
        if (i != apart) x[i] = most > 0 ? nearbyint(x[i] / (most / 127)) * (most / 127) : 0;
}

/* fp8: a weight in steps of what its largest value makes 448, an activation as bf16 */
static void rounded_f8(double *x, int64_t n, bool weight)
{
    float most = 0;
    for (int64_t i = 0; i < n; i++) most = fmaxf(most, fabsf((float)x[i]));
    float scale = most / 448.0f, inverse = scale > 0 ? 1.0f / scale : 0;
    for (int64_t i = 0; i < n; i++)
        x[i] = weight ? (double)mx_f8_to_f32(mx_f32_to_f8((float)x[i] * inverse)) * (double)scale
                      : (double)mx_bf16_to_f32(mx_f32_to_bf16((float)x[i]));
}

/* What bf16 and int8 make of a row of n values: int8 keeps an activation's largest one,
 * and gives every 64 values of a weight their own scale. */
static void rounded(double *x, int64_t n, mx_dtype type, bool weight)
{
    int64_t at = 0;
    if (type == MX_BF16)
        for (int64_t i = 0; i < n; i++) x[i] = (double)mx_bf16_to_f32(mx_f32_to_bf16((float)x[i]));
    if (type == MX_F8) rounded_f8(x, n, weight);
    if (type != MX_I8) return;
    for (int64_t i = 0; weight && i < n; i += 64) rounded_i8(x + i, n - i < 64 ? n - i : 64, -1);
    if (weight) return;
    for (int64_t i = 1; i < n; i++)
        if (fabs(x[i]) > fabs(x[at])) at = i;
    rounded_i8(x, n, at);
}

static bool linear_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = DATA(1), *b = DATA(2), *w = malloc((size_t)(c->o * c->c) * sizeof *w), *first = DATA(3);
    io->t[0].want = DATA(0);
    memcpy(w, first, (size_t)(T(3).rows * c->c) * sizeof *w);
    if (io->count > 4) {
        double *second = DATA(4);
        memcpy(w + T(3).rows * c->c, second, (size_t)(T(4).rows * c->c) * sizeof *w);
        free(second);
    }
    for (int64_t r = 0; r < c->n; r++) rounded(x + r * c->c, c->c, c->type, false);
    for (int64_t r = 0; r < c->o; r++) rounded(w + r * c->c, c->c, c->type, true);
    ref_linear(io->t[0].want, x, w, c->bias ? b : NULL, c->n, c->c, c->o, c->act, c->add);
    free(x), free(b), free(w), free(first);
    return case_close(io, &io->t[0], "y");
}

static void linear_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 2.0 * (double)c->n * (double)c->c * (double)c->o;
    *bytes = (double)c->c * (double)c->o * (double)mx_dtype_size(c->type);
}

/* ---- norms, sums, activations ------------------------------------------------------------ */

/* flag: in place, the output tensor is the input */
static void norm_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->flag);
    floats(io, c->n, c->c);
    floats(io, 1, c->c);
    floats(io, 1, c->c);
}

static void norm_call(case_io *io)
{
    const mx_case *c = io->c;
    io->env->kernels->norm(&io->s, T(0), c->flag ? T(0) : T(1), T(2), c->bias ? T(3) : none, 1e-5f);
}

static bool norm_check(case_io *io)
{
    const mx_case *c = io->c;
    double *y = io->t[0].want = DATA(0), *x = c->flag ? DATA(0) : DATA(1), *gain = DATA(2), *bias = DATA(3);
    ref_norm(y, x, gain, c->bias ? bias : NULL, c->n, c->c, (double)1e-5f);
    free(x), free(gain), free(bias);
    return case_close(io, &io->t[0], "y");
}

static void rms_norm_call(case_io *io)
{
    io->env->kernels->rms_norm(&io->s, T(0), io->c->flag ? T(0) : T(1), T(2), 1e-5f);
}

static bool rms_norm_check(case_io *io)
{
    const mx_case *c = io->c;
    double *y = io->t[0].want = DATA(0), *x = c->flag ? DATA(0) : DATA(1), *gain = DATA(2);
    ref_rms_norm(y, x, gain, c->n, c->c, (double)1e-5f);
    free(x), free(gain);
    return case_close(io, &io->t[0], "y");
}

static void add_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, c->flag);
    floats(io, c->n, c->c);
    floats(io, c->n, c->c);
    io->tolerance = 1e-6;
}

static void add_call(case_io *io)
{
    io->env->kernels->add(&io->s, T(0), io->c->flag ? T(0) : T(1), T(2));
}

static bool add_check(case_io *io)
{
    double *y = io->t[0].want = io->c->flag ? DATA(0) : DATA(1), *b = DATA(2);
    for (int64_t i = 0; i < io->c->n * io->c->c; i++) y[i] += b[i];
    free(b);
    return case_close(io, &io->t[0], "y");
}

/* add: rms; flag: the sum is a */
static void add_norm_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, false);
    result(io, c->n, c->c, c->flag);
    floats(io, c->n, c->c);
    floats(io, c->n, c->c);
    floats(io, 1, c->c);
    floats(io, 1, c->c);
    io->tolerance = 4e-6;
}

static void add_norm_call(case_io *io)
{
    const mx_case *c = io->c;
    io->env->kernels->add_norm(&io->s, T(0), T(1), c->flag ? T(1) : T(2), T(3), T(4), c->bias ? T(5) : none, 1e-5f, c->add);
}

static bool add_norm_check(case_io *io)
{
    const mx_case *c = io->c;
    double *sum = io->t[1].want = c->flag ? DATA(1) : DATA(2), *b = DATA(3), *gain = DATA(4), *bias = DATA(5);
    io->t[0].want = DATA(0);
    for (int64_t i = 0; i < c->n * c->c; i++) sum[i] += b[i];
    if (c->add) ref_rms_norm(io->t[0].want, sum, gain, c->n, c->c, (double)1e-5f);
    else ref_norm(io->t[0].want, sum, gain, c->bias ? bias : NULL, c->n, c->c, (double)1e-5f);
    free(b), free(gain), free(bias);
    bool ok = case_close(io, &io->t[1], "sum");
    return case_close(io, &io->t[0], "y") && ok;
}

/* Activations are judged over their whole range: values of up to about 12. */
static void activate_build(case_io *io)
{
    const mx_case *c = io->c;
    mx_dtype wide = MX_F32;
    case_place(io, wide, c->n, c->c, c->flag ? FILL_NOISE_LOGITS : FILL_SENTINEL, true);
    case_place(io, wide, c->n, c->c, FILL_NOISE_LOGITS, false);
    io->tolerance = 1e-6;
}

static void activate_call(case_io *io)
{
    io->env->kernels->activate(&io->s, T(0), io->c->flag ? T(0) : T(1), io->c->act);
}

static bool activate_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = c->flag ? DATA(0) : DATA(1);
    io->t[0].want = DATA(0);
    ref_activate(io->t[0].want, x, c->n * c->c, c->act);
    free(x);
    return case_close(io, &io->t[0], "y");
}

static void gated_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, false);
    case_place(io, MX_F32, c->n, 2 * c->c, FILL_NOISE_LOGITS, false);
    io->tolerance = 4e-6;
}

static void gated_call(case_io *io)
{
    io->env->kernels->gated(&io->s, T(0), T(1), io->c->act);
}

static bool gated_check(case_io *io)
{
    double *gu = DATA(1);
    io->t[0].want = DATA(0);
    ref_gated(io->t[0].want, gu, io->c->n, io->c->c, io->c->act);
    free(gu);
    return case_close(io, &io->t[0], "y");
}

/* ---- rope: c channels of a head; add: another magnitude ------------------------------------ */

static void rope_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->heads * c->c, true);
    ids(io, c->n, 131072);
    placed *p = &io->t[io->count];
    floats(io, 1, c->c / 2);
    if (io->broken) return;
    for (int64_t j = 0; j < c->c / 2; j++) {
        float f = (float)pow(10000, -2.0 * (double)j / (double)c->c);
        memcpy(p->before + p->lead + (size_t)j * sizeof f, &f, sizeof f);
    }
    io->env->dev->ops->upload(&io->s, p->memory.base, p->before, p->memory.size);
    io->tolerance = 1e-6;
}

static float magnitude_of(const mx_case *c)
{
    return c->add ? 1.25f : 1.0f;
}

static void rope_call(case_io *io)
{
    io->env->kernels->rope(&io->s, T(0), T(1), T(2), magnitude_of(io->c), io->c->heads, io->c->flag);
}

static bool rope_check(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *at = malloc((size_t)c->n * sizeof *at);
    float *freq = malloc((size_t)c->c * sizeof *freq);
    for (int64_t i = 0; i < c->n; i++) at[i] = (int32_t)case_value(&io->t[1], IN(1), i, 0);
    for (int64_t i = 0; i < c->c / 2; i++) freq[i] = (float)case_value(&io->t[2], IN(2), 0, i);
    io->t[0].want = DATA(0);
    ref_rope(io->t[0].want, at, freq, c->n, c->heads, c->c, (double)magnitude_of(c), c->flag);
    free(at), free(freq);
    return case_close(io, &io->t[0], "x");
}

static void rope_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->c * c->heads * 3;
    *bytes = (double)c->n * (double)c->c * c->heads * 8;
}

const case_op mx_case_row_ops[] = {
    {"embed", embed_build, embed_call, embed_check, rows_work},
    {"linear", linear_build, linear_call, linear_check, linear_work},
    {"norm", norm_build, norm_call, norm_check, rows_work},
    {"rms_norm", norm_build, rms_norm_call, rms_norm_check, rows_work},
    {"add", add_build, add_call, add_check, rows_work},
    {"add_norm", add_norm_build, add_norm_call, add_norm_check, rows_work},
    {"activate", activate_build, activate_call, activate_check, rows_work},
    {"gated", gated_build, gated_call, gated_check, rows_work},
    {"rope", rope_build, rope_call, rope_check, rope_work},
};
const int mx_case_row_ops_count = sizeof mx_case_row_ops / sizeof *mx_case_row_ops;
