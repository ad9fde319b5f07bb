/* dqn_offline.c - learning from logged steps: what is feasible in their states, and the pull towards them. */
#include "models/dqn_internal.h"

#include "runtime/log.h"

#include <math.h>
#include <stdlib.h>

#define BANNED (-1e30f)               /* exp of it is 0, and a sum with a value stays finite */

mx_status dqn_offline_open(mx_dqn *d, mx_error *err)
{
    mx_env world = {0};
    mx_status st = MX_OK;
    MX_TRY(mx_transitions_open(&d->data, d->o.data, err));
    d->o.data = NULL;                 /* the caller's */
    d->o.envs = 1;
    d->o.buffer = d->data->n > d->o.n_step ? d->data->n : d->o.n_step;
    d->env.observation = d->data->observation;
    d->env.actions = d->data->actions;
    if (!d->judge[0]) return MX_OK;
    MX_TRY(mx_env_open(&world, d->judge, 1, d->o.seed, err));
    if (world.observation != d->data->observation || world.actions != d->data->actions)
        st = mx_fail(err, MX_ERR_ARG, "data: state has %d numbers and mask %d actions; %s has %d and %d", d->data->observation, d->data->actions, d->judge,
                     world.observation, world.actions);
    mx_env_close(&world);
    return st;
}

/* Every step becomes one transition, in their order: row i of the ring is step i, and of `ban` too. */
mx_status dqn_offline_fill(mx_dqn *d, mx_error *err)
{
    const mx_transitions *t = d->data;
    size_t D = (size_t)t->observation, A = (size_t)t->actions, cells, bytes;
    if (!mx_mul_size((size_t)t->n, A, &cells) || !mx_mul_size(cells, sizeof(float), &bytes)) return mx_fail(err, MX_ERR_NO_MEMORY, "masks of %lld steps", (long long)t->n);
    float *ban = malloc(bytes);
    if (!ban) return mx_fail(err, MX_ERR_NO_MEMORY, "masks of %lld steps", (long long)t->n);
    for (size_t i = 0; i < cells; i++) ban[i] = t->mask[i] ? 0 : BANNED;
    mx_status st = mx_buffer_open(&d->ban, d->dev, bytes, err);
    if (!st) d->dev->ops->upload(&d->stream, d->ban.base, ban, bytes);
    if (!st) st = mx_stream_sync(&d->stream, err);
    free(ban);
    for (size_t i = 0; !st && i < (size_t)t->n; i++) {
        mx_replay_step step = {t->state + i * D, t->next + i * D, t->next_mask + i * A, t->action[i], t->reward[i], t->terminated[i] != 0, t->truncated[i] != 0};
        mx_replay_add(d->replay, 0, &step);
        mx_stream_rewind(&d->stream);
        mx_replay_flush(d->replay, &d->stream);
        st = mx_stream_sync(&d->stream, err);
    }
    return st;
}

bool dqn_cloning(const mx_dqn *d)
{
    return d->at.updates < d->o.clone_steps;
}

mx_tensor dqn_pull(mx_dqn *d, const mx_replay_batch *b, mx_tensor q, float scale, int slot, mx_tensor *loss)
{
    mx_stream *s = &d->stream;
    mx_tensor logits = mx_stream_tensor(s, MX_F32, q.rows, q.cols);
    *loss = mx_stream_tensor(s, MX_F32, q.rows, 1);
    mx_embed(s, logits, mx_tensor_of(d->ban.base, MX_F32, d->data->n, q.cols), b->ids, false);
    mx_add(s, logits, logits, q);
    mx_cross_entropy(s, *loss, logits, b->action, scale, true);
    mx_sum(s, mx_tensor_of((int32_t *)d->sum.base + 2 * slot, MX_I32, 1, 2), *loss, false);
    return logits;
}

/* ---- measuring --------------------------------------------------------------------------------- */

/* best[n] of states[n][D] under their masks, and the sum of the best values. */
static mx_status look(mx_dqn *d, const float *states, const uint8_t *masks, float *value, int32_t *best, double *sum, mx_error *err)
{
    int64_t D = d->data->observation, A = d->data->actions, n = d->data->n;
    *sum = 0;
    for (int64_t at = 0; at < n; at += d->o.batch) {
        int64_t rows = n - at < d->o.batch ? n - at : d->o.batch;
        mx_stream_rewind(&d->stream);
        mx_tensor q = mx_qnet_values(d->online, &d->stream, mx_stream_upload(&d->stream, MX_F32, rows, D, states + at * D));
        if (!d->stream.error.code) d->dev->ops->download(&d->stream, value, q.data, (size_t)(rows * A) * sizeof *value);
        MX_TRY(mx_stream_sync(&d->stream, err));
        for (int64_t r = 0; r < rows; r++) {
            const float *v = value + r * A;
            const uint8_t *mask = masks + (at + r) * A;
            int32_t b = -1;
            for (int32_t a = 0; a < A; a++)
                if (mask[a] && isfinite(v[a]) && (b < 0 || v[a] > v[b])) b = a;
            if (b < 0) return mx_fail(err, MX_ERR_STATE, "step %lld: no value is a number; try a smaller lr", (long long)d->at.step);
            best[at + r] = b;
            *sum += (double)v[b];
        }
    }
    return MX_OK;
}

mx_status dqn_offline_measure(mx_dqn *d, mx_dqn_report *r, mx_error *err)
{
    const mx_transitions *t = d->data;
    double sum = 0, unused;
    mx_fqe worth;
    mx_error why = {0};
    float *value = malloc((size_t)d->o.batch * (size_t)t->actions * sizeof *value);
    int32_t *best = malloc((size_t)t->n * sizeof *best), *next = malloc((size_t)t->n * sizeof *next);
    mx_status st = value && best && next ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%lld logged steps", (long long)t->n);
    if (!st) st = look(d, t->state, t->mask, value, best, &sum, err);
    r->mean_value = sum / (double)t->n;
    if (!st && !d->judge[0]) {
        st = look(d, t->next, t->next_mask, value, next, &unused, err);
        if (!st && mx_transitions_worth(t, best, next, (double)d->o.gamma, &worth, &why)) {
            mx_log(MX_LOG_WARN, "dqn", "no fitted Q evaluation: %s", why.text);
        } else if (!st) {
            r->evaluated = true;
            r->eval_return = worth.value;
            r->eval_error = 1.96 * worth.error;
        }
    }
    free(value), free(best), free(next);
    return st;
}
