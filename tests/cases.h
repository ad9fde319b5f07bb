/* cases.h - one table of cases for every op, with four uses: test, grad, perf, list.
 *
 * A case is a line of numbers; its printed name is the filter that runs it
 * alone.  It takes the device and the table of kernels to run on, so the same
 * cases check every backend, and a planted wrong op.  Tensors of a case have
 * rows further apart than they are long and sentinels before, between and
 * after the rows; all of it is compared afterwards. */
#ifndef MX_CASES_H
#define MX_CASES_H

#include "kernels/ops.h"

#include <stdio.h>

typedef struct mx_case {
    const char   *op;
    int64_t       n, c, o;              /* rows; channels; outputs, table rows or vocabulary          */
    int           heads, groups, page;  /* attention: query heads, KV heads, tokens of a page; aggregate: page is how */
    int64_t       context, window;      /* attention: longest sequence; perf: every sequence          */
    mx_dtype      type;                 /* of weights, table or cache                                 */
    mx_activation act;
    bool          add, bias, flag;      /* flag: interleaved (rope), prefill of one sequence (attention) */
    bool          perf;                 /* measured, not tested                                       */
} mx_case;

typedef struct mx_case_env {
    mx_device        *dev;
    const mx_kernels *kernels;
    uint64_t          seed;
    FILE             *out;              /* where failures and figures are printed; NULL: nowhere      */
    double            planted;          /* added to a derivative of the reference: `grad` must notice */
} mx_case_env;

extern const mx_case mx_cases[];
extern const int     mx_cases_count;

void mx_case_name(const mx_case *c, char *text, size_t size);

/* True when the backend agrees with the reference and no sentinel changed. */
bool mx_case_test(const mx_case_env *env, const mx_case *c);

/* A digest of what the op wrote: equal numbers, equal bits.  0: it failed. */
uint64_t mx_case_digest(const mx_case_env *env, const mx_case *c);

/* Median time of one call, and what it works on. */
typedef struct mx_case_perf {
    double seconds, flop, bytes;
} mx_case_perf;
bool mx_case_measure(const mx_case_env *env, const mx_case *c, double budget_s, mx_case_perf *out);

/* Run what `filter` (a substring of names, or NULL) selects; returns failures, or -1 when nothing ran. */
int mx_cases_test(const mx_case_env *env, const char *filter);
/* The derivatives of the reference against finite differences of its functions. */
int mx_cases_grad(const mx_case_env *env, const char *filter);
int mx_cases_perf(const mx_case_env *env, const char *filter);
void mx_cases_list(FILE *out, const char *filter);

#endif
