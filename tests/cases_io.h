/* cases_io.h - the tensors of a case: placed on the device between sentinels,
 * mirrored on the host, compared afterwards.  Only tests/cases*.c. */
#ifndef MX_CASES_IO_H
#define MX_CASES_IO_H

#include "tests/cases.h"

#define MX_CASE_TENSORS 16
#define MX_CASE_WEIGHTS 256         /* perf: more weights than the caches hold */

typedef struct placed {
    mx_buffer memory;
    mx_tensor t;                    /* on the device                         */
    char     *before, *after;       /* host images of the memory             */
    double   *want;                 /* t.rows * t.cols: the reference result */
    size_t    lead;                 /* bytes before the first row            */
    bool      output;               /* may change, inside its rows           */
} placed;

typedef struct case_io {
    const mx_case_env *env;
    const mx_case *c;
    mx_stream  s;
    uint64_t   random;
    placed     t[MX_CASE_TENSORS];
    int        count;
    mx_weight  w[MX_CASE_WEIGHTS];
    int        weights;
    mx_kv      kv;
    mx_sample_row  *rows;           /* host ...                                */
    const mx_sample_row *placed_rows;   /* ... and where the op reads them          */
    mx_logit_lists  lists;
    mx_seats        seats;          /* on the device; their four parts are tensors in a row */
    double     tolerance;           /* of max |difference| / rms             */
    double     norm_tolerance;      /* of the whole, when > 0: norm of the error over norm of what is wanted */
    int        calls;
    bool       broken;              /* a set-up step failed                  */
} case_io;

typedef struct case_op {
    const char *op;
    void (*build)(case_io *io);
    void (*call)(case_io *io);
    bool (*check)(case_io *io);     /* after the call; fills `want` and compares */
    void (*work)(const mx_case *c, double *flop, double *bytes);
} case_op;

/* cases_ops.c, cases_span.c, cases_learn.c, cases_optim.c, cases_value.c, cases_graph.c */
extern const case_op mx_case_row_ops[], mx_case_span_ops[], mx_case_learn_ops[], mx_case_optim_ops[], mx_case_value_ops[], mx_case_graph_ops[];
extern const int     mx_case_row_ops_count, mx_case_span_ops_count, mx_case_learn_ops_count, mx_case_optim_ops_count, mx_case_value_ops_count;
extern const int     mx_case_graph_ops_count;

/* The derivative that check() relies on, against finite differences; of a case that is set up. */
bool case_has_gradient(const mx_case *c);
bool case_gradient(case_io *io);

/* What a tensor starts as. */
typedef enum fill { FILL_UNIFORM, FILL_SENTINEL, FILL_NOISE_LOGITS } fill;

mx_tensor case_place(case_io *io, mx_dtype type, int64_t rows, int64_t cols, fill how, bool output);
mx_tensor case_place_values(case_io *io, int64_t rows, int64_t cols, const double *values, bool output);   /* f32 */
mx_tensor case_place_i32(case_io *io, int64_t rows, int64_t cols, const int32_t *values);
void     *case_place_bytes(case_io *io, const void *host, size_t size);   /* an input; where it lies on the device */
double    case_uniform(case_io *io);                        /* -1 .. 1 */
int64_t   case_below(case_io *io, int64_t n);

double    case_value(const placed *p, const char *image, int64_t r, int64_t i);
double   *case_dense(const placed *p, const char *image);   /* malloc: rows * cols */
bool      case_close(case_io *io, placed *p, const char *what);   /* after against want */
bool      case_fail(case_io *io, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
