/* ope.c - off-policy estimates. */
#include "models/ope.h"

#include <math.h>

static mx_status check(const mx_ope_row *r, size_t i, mx_error *err)
{
    if (!isfinite(r->reward) || !isfinite(r->q) || !isfinite(r->v)) return mx_fail(err, MX_ERR_ARG, "row %zu: a number that is not finite", i);
    if (!(r->pi >= 0 && r->pi <= 1)) return mx_fail(err, MX_ERR_ARG, "row %zu: pi is %g, no probability", i, r->pi);
    if (!(r->mu > 0 && r->mu <= 1)) return mx_fail(err, MX_ERR_ARG, "row %zu: mu is %g; what was done had a probability over 0", i, r->mu);
    return MX_OK;
}

static double weight_of(const mx_ope_row *r, double clip)
{
    double w = r->pi / r->mu;
    return clip > 0 && w > clip ? clip : w;
}

mx_status mx_ope_estimate(const mx_ope_row *rows, size_t n, double clip, mx_ope *out, mx_error *err)
{
    double w_sum = 0, w2 = 0, wr = 0, v = 0, dr = 0;
    *out = (mx_ope){0};
    if (!n) return mx_fail(err, MX_ERR_ARG, "no row to estimate from");
    for (size_t i = 0; i < n; i++) {
        MX_TRY(check(&rows[i], i, err));
        double w = weight_of(&rows[i], clip);
        w_sum += w;
        w2 += w * w;
        wr += w * rows[i].reward;
        v += rows[i].v;
        dr += rows[i].v + w * (rows[i].reward - rows[i].q);
        if (w > out->largest) out->largest = w;
    }
    double N = (double)n, ips = 0, snips = 0, robust = 0;
    out->ips = wr / N;
    out->snips = w_sum > 0 ? wr / w_sum : 0;
    out->dm = v / N;
    out->dr = dr / N;
    out->ess = w2 > 0 ? w_sum * w_sum / w2 : 0;
    for (size_t i = 0; i < n; i++) {
        double w = weight_of(&rows[i], clip), a = w * rows[i].reward - out->ips, b = w * (rows[i].reward - out->snips);
        double c = rows[i].v + w * (rows[i].reward - rows[i].q) - out->dr;
        ips += a * a;
        snips += b * b;
        robust += c * c;
    }
    out->ips_error = n > 1 ? sqrt(ips / (N - 1) / N) : 0;
    out->snips_error = w_sum > 0 ? sqrt(snips) / w_sum : 0;          /* delta method */
    out->dr_error = n > 1 ? sqrt(robust / (N - 1) / N) : 0;
    return MX_OK;
}
