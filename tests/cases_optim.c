/* cases_optim.c - sums over buffers, and the optimizer's step. */
#include "tests/cases_io.h"
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>

#define T(i) (io->t[i].t)

static void sum_build(case_io *io)
{
    case_place(io, MX_I32, 1, 2, FILL_SENTINEL, true);
    case_place(io, MX_F32, io->c->n, io->c->c, FILL_UNIFORM, false);
}

static void sum_call(case_io *io)
{
    io->env->kernels->sum(&io->s, T(0), T(1), io->c->flag);
}

static bool sum_check(case_io *io)
{
    double got, want = 0, size = 0, *x = case_dense(&io->t[1], io->t[1].before);
    for (int64_t i = 0; i < io->c->n * io->c->c; i++) {
        want += io->c->flag ? x[i] * x[i] : x[i];
        size += io->c->flag ? x[i] * x[i] : fabs(x[i]);
    }
    memcpy(&got, io->t[0].after + io->t[0].lead, sizeof got);
    free(x);
    return fabs(got - want) <= 1e-12 * size || case_fail(io, "sum: got %.17g, want %.17g", got, want);
}

static mx_adamw_step step_of(const mx_case *c)
{
    return (mx_adamw_step){.lr = 0.01f, .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .decay = c->flag ? 0.1f : 0,
                           .c1 = 0.271f, .c2 = 0.142625f, .scale = 0.3f};
}

static void adamw_build(case_io *io)
{
    const mx_case *c = io->c;
    double *v = malloc((size_t)c->c * sizeof *v);
    case_place(io, MX_F32, 1, c->c, FILL_UNIFORM, true);
    case_place(io, MX_F32, 1, c->c, FILL_UNIFORM, true);
    for (int64_t i = 0; v && i < c->c; i++) v[i] = 0.01 + pow(case_uniform(io), 2);
    if (v) case_place_values(io, 1, c->c, v, true);
    io->broken |= !v;
    case_place(io, MX_F32, 1, c->c, FILL_UNIFORM, false);
    io->tolerance = 2e-6;
    free(v);
}

static void adamw_call(case_io *io)
{
    io->env->kernels->adamw(&io->s, T(0), T(3), T(1), T(2), step_of(io->c));
}

static bool adamw_check(case_io *io)
{
    mx_adamw_step o = step_of(io->c);
    double *g = case_dense(&io->t[3], io->t[3].before);
    for (int i = 0; i < 3; i++) io->t[i].want = case_dense(&io->t[i], io->t[i].before);
    ref_adamw(io->t[0].want, io->t[1].want, io->t[2].want, g, io->c->c, &o);
    free(g);
    bool ok = case_close(io, &io->t[0], "p");
    ok = case_close(io, &io->t[1], "m") && ok;
    return case_close(io, &io->t[2], "v") && ok;
}

static void adamw_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 12.0 * (double)c->c;
    *bytes = 28.0 * (double)c->c;
}

static void sum_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->c;
    *bytes = 4 * *flop;
}

const case_op mx_case_optim_ops[] = {
    {"sum", sum_build, sum_call, sum_check, sum_work},
    {"adamw", adamw_build, adamw_call, adamw_check, adamw_work},
};
const int mx_case_optim_ops_count = sizeof mx_case_optim_ops / sizeof *mx_case_optim_ops;
