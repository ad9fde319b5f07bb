/* price_policy.c - values of rungs, and what made them so. */
#include "models/price_policy.h"

#include "models/qnet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 256, SUBSETS = 1 << MX_PRICE_SEEN };

struct mx_price_policy {
    mx_device *devices;
    int        n_devices;
    mx_device *cpu;               /* one of them */
    mx_stream  stream;
    mx_qnet   *net;
};

mx_status mx_price_policy_open(mx_price_policy **out, const char *path, mx_error *err)
{
    mx_device_options cpu = {.cpu_threads = 1};
    mx_status st;
    *out = NULL;
    mx_price_policy *p = calloc(1, sizeof *p);
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "a price policy");
    MX_TRY_GOTO(st, mx_devices_open(&p->devices, &p->n_devices, &cpu, err), fail);
    for (int i = 0; i < p->n_devices; i++)
        if (p->devices[i].kind == MX_CPU) p->cpu = &p->devices[i];
    MX_TRY_GOTO(st, mx_qnet_open(&p->net, p->cpu, path, false, err), fail);
    const mx_qnet_config *c = mx_qnet_config_of(p->net);
    if (c->observation != MX_PRICE_SEEN || c->actions != MX_LADDER) {
        st = mx_fail(err, MX_ERR_ARG, "%.200s: a network from %d numbers to %d actions; a price policy has %d and %d", path, c->observation, c->actions, MX_PRICE_SEEN, MX_LADDER);
        goto fail;
    }
    MX_TRY_GOTO(st, mx_stream_open(&p->stream, p->cpu, mx_qnet_scratch(p->net, ROWS, false) + mx_stream_tensor_bytes(MX_F32, ROWS, MX_PRICE_SEEN), err), fail);
    *out = p;
    return MX_OK;
fail:
    mx_price_policy_close(p);
    return st;
}

void mx_price_policy_close(mx_price_policy *p)
{
    if (!p) return;
    mx_stream_close(&p->stream);
    mx_qnet_close(p->net);
    mx_devices_close(p->devices, p->n_devices);
    free(p);
}

mx_status mx_price_policy_values(mx_price_policy *p, const float *seen, int64_t n, float *value, mx_error *err)
{
    for (int64_t at = 0; at < n; at += ROWS) {
        int64_t rows = n - at < ROWS ? n - at : ROWS;
        mx_tensor x = mx_stream_upload(&p->stream, MX_F32, rows, MX_PRICE_SEEN, seen + at * MX_PRICE_SEEN), q = mx_qnet_values(p->net, &p->stream, x);
        mx_status st = mx_stream_sync(&p->stream, err);
        for (int64_t r = 0; !st && r < rows; r++) memcpy(value + (at + r) * MX_LADDER, (const float *)q.data + r * q.stride, MX_LADDER * sizeof *value);
        mx_stream_rewind(&p->stream);
        if (st) return st;
    }
    return MX_OK;
}

int32_t mx_price_policy_best(const float value[MX_LADDER], const uint8_t feasible[MX_LADDER])
{
    int32_t best = -1, any = 0;
    for (int32_t k = 0; k < MX_LADDER; k++) {
        if (value[k] > value[any]) any = k;
        if (feasible[k] && (best < 0 || value[k] > value[best])) best = k;
    }
    return best < 0 ? any : best;
}

mx_status mx_price_policy_explain(mx_price_policy *p, const float seen[MX_PRICE_SEEN], const int64_t price[MX_LADDER], const uint8_t feasible[MX_LADDER],
                                  double *base, double contribution[MX_PRICE_SEEN], mx_error *err)
{
    float *x = calloc((size_t)SUBSETS * MX_PRICE_SEEN, sizeof *x), *q = calloc((size_t)SUBSETS * MX_LADDER, sizeof *q);
    double weight[MX_PRICE_SEEN];             /* |S|! (n-|S|-1)! / n! = 1 / (n C(n-1, |S|)) */
    mx_status st = x && q ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "an explanation");
    for (int k = 0; k < MX_PRICE_SEEN; k++) weight[k] = k ? weight[k - 1] * k / (MX_PRICE_SEEN - k) : 1.0 / MX_PRICE_SEEN;
    for (int s = 0; !st && s < SUBSETS; s++)
        for (int f = 0; f < MX_PRICE_SEEN; f++) x[s * MX_PRICE_SEEN + f] = s >> f & 1 ? seen[f] : 0;
    if (!st) st = mx_price_policy_values(p, x, SUBSETS, q, err);
    memset(contribution, 0, MX_PRICE_SEEN * sizeof *contribution);
    for (int s = 0; !st && s < SUBSETS; s++) {
        double v = (double)price[mx_price_policy_best(q + s * MX_LADDER, feasible)];
        int size = __builtin_popcount((unsigned)s);
        if (!s) *base = v;
        for (int f = 0; f < MX_PRICE_SEEN; f++) contribution[f] += s >> f & 1 ? weight[size - 1] * v : -weight[size] * v;
    }
    free(x), free(q);
    return st;
}
