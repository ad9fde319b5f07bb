/* cases_learn.h - what cases_learn.c, cases_value.c and cases_graph.c share: a case says once what
 * its function and its derivative are. */
#ifndef MX_CASES_LEARN_H
#define MX_CASES_LEARN_H

#include "tests/cases_io.h"

#include <stdlib.h>

#define T(i) (io->t[i].t)
#define ABSENT (-1)

static const mx_tensor none;

static inline mx_tensor floats(case_io *io, int64_t rows, int64_t cols)
{
    return case_place(io, MX_F32, rows, cols, FILL_UNIFORM, false);
}

static inline mx_tensor result(case_io *io, int64_t rows, int64_t cols, bool holds)
{
    return case_place(io, MX_F32, rows, cols, holds ? FILL_UNIFORM : FILL_SENTINEL, true);
}

static inline double *before(case_io *io, int i)
{
    return case_dense(&io->t[i], io->t[i].before);
}

/* The integers of tensor i; malloc, never NULL with rows to read */
static inline int32_t *integers(case_io *io, int i)
{
    const placed *p = &io->t[i];
    int32_t *v = malloc((size_t)(p->t.rows * p->t.cols + 1) * sizeof *v);
    for (int64_t r = 0; v && r < p->t.rows; r++)
        for (int64_t c = 0; c < p->t.cols; c++) v[r * p->t.cols + c] = (int32_t)case_value(p, p->before, r, c);
    return v;
}

/* ---- what a case with a derivative is -------------------------------------------------- */

enum { INPUTS = 3 };

typedef struct learn {
    int      n;                     /* inputs with a derivative                                   */
    double  *in[INPUTS], *d[INPUTS];
    int64_t  size[INPUTS];
    int      to[INPUTS];            /* the tensor that gets the gradient, or ABSENT               */
    bool     adds[INPUTS];          /* it is added to                                             */
    double  *dout, *out;            /* the loss is the sum of dout * out                          */
    int64_t  outs;
    int32_t *ids, *spans;           /* what a case needs besides                                  */
    float   *freq;
} learn;

typedef struct learn_op {
    const char *op;
    void (*open)(case_io *io, learn *l);
    void (*forward)(case_io *io, learn *l);
    void (*backward)(case_io *io, learn *l);
} learn_op;

static inline void input(learn *l, double *values, int64_t size, int to, bool adds)
{
    int k = l->n++;
    l->in[k] = values;
    l->size[k] = size;
    l->to[k] = to;
    l->adds[k] = adds;
}

/* cases_value.c, cases_graph.c */
extern const learn_op mx_case_value_learn_ops[], mx_case_graph_learn_ops[];
extern const int      mx_case_value_learn_ops_count, mx_case_graph_learn_ops_count;

/* The check of such a case: its gradients; of a cross-entropy its loss too. */
bool case_back_check(case_io *io);

#endif
