/* env.c - what all worlds share: episodes, time limits, draws. */
#include "models/env.h"

#include "runtime/random.h"
#include "runtime/tensor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const mx_env_kind mx_env_kinds[] = {
    {"cartpole", "a pole on a cart, as gymnasium's CartPole-v1", mx_env_cartpole},
    {"acrobot", "two links that swing up, as gymnasium's Acrobot-v1", mx_env_acrobot},
    {"gvr", "a stock to sell before a day (Gallego and van Ryzin 1994); gvr:UNITS,TIME begins every episode so", mx_env_gvr},
    {"market", "brands in stores, fitted from a scanner panel: market:PANEL.csv, or behind it ,choose or ,held-out", mx_env_market},
    {NULL, NULL, NULL},
};

mx_status mx_env_open(mx_env *e, const char *name, int64_t rows, uint64_t seed, mx_error *err)
{
    char known[256] = "";
    const char *colon = strchr(name, ':');
    size_t len = colon ? (size_t)(colon - name) : strlen(name), used = 0;
    *e = (mx_env){0};
    if (rows < 1 || rows > INT32_MAX) return mx_fail(err, MX_ERR_ARG, "env: %lld rows; from 1 to 2^31-1", (long long)rows);
    for (const mx_env_kind *k = mx_env_kinds; k->name; k++) {
        if (strlen(k->name) == len && !memcmp(k->name, name, len)) return k->open(e, colon ? colon + 1 : NULL, rows, seed, err);
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", used ? ", " : "", k->name);
    }
    return mx_fail(err, MX_ERR_ARG, "env: there is no \"%.40s\"; there are %s", name, known);
}

mx_status mx_env_no_arguments(const char *kind, const char *arguments, mx_error *err)
{
    return arguments ? mx_fail(err, MX_ERR_ARG, "env: %s takes nothing behind a colon, not \"%.40s\"", kind, arguments) : MX_OK;
}

mx_status mx_env_alloc(mx_env *e, size_t state_bytes, mx_error *err)
{
    size_t rows = (size_t)e->rows, heads, states, all;
    if (e->group < 1) e->group = 1;
    if (!mx_mul_size(rows, sizeof *e->row, &heads) || !mx_mul_size(rows, state_bytes, &states) || !mx_add_size(heads, states, &all) ||
        !(e->memory = calloc(1, all))) {
        mx_env_close(e);
        return mx_fail(err, MX_ERR_NO_MEMORY, "env: %zu rows of %zu bytes", rows, state_bytes);
    }
    e->memory_bytes = all;
    e->row = e->memory;
    e->state = (char *)e->memory + heads;
    for (int64_t r = 0; r < e->rows; r++) e->ops->begin(e, r);
    return MX_OK;
}

void mx_env_close(mx_env *e)
{
    if (e->ops && e->ops->close) e->ops->close(e);
    free(e->memory);
    *e = (mx_env){0};
}

double mx_env_draw(const mx_env *e, int64_t row, uint32_t k)
{
    return mx_uniform(e->seed, (uint32_t)row, e->row[row].episode, e->row[row].step, k);
}

void mx_env_observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    e->ops->observe(e, first, n, observation, mask);
}

/* The step counts from 1 while step() draws: begin() has drawn at 0. */
void mx_env_step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated, uint8_t *truncated)
{
    for (int64_t i = 0; i < n; i++) e->row[first + i].step++;
    e->ops->step(e, first, n, action, reward, terminated);
    for (int64_t i = 0; i < n; i++) {
        mx_env_row *r = &e->row[first + i];
        r->earned += (double)reward[i];
        truncated[i] = !terminated[i] && e->limit && r->step >= (uint32_t)e->limit;
    }
}

void mx_env_begin(mx_env *e, int64_t row)
{
    e->row[row] = (mx_env_row){.episode = e->row[row].episode + 1};
    e->ops->begin(e, row);
}
