/* dqn_world.c - acting in worlds that the device steps by itself (mx_world_step).
 *
 * Observations go from the step to the network without the host, which draws what
 * explores (its row's mask allows that action alone) and gathers what came of all
 * steps for the replay memory, once a step.  On a CPU the worlds of env.h are as
 * near, and stay where they are. */
#include "models/dqn_internal.h"

#include <stdlib.h>

static mx_tensor part(const mx_dqn *d, mx_dtype type, int64_t cols, size_t *at)
{
    mx_tensor t = mx_tensor_of((char *)d->worlds.memory.base + *at, type, d->env.rows, cols);
    *at += mx_stream_tensor_bytes(type, d->env.rows, cols);
    return t;
}

mx_status dqn_worlds_open(mx_dqn *d, mx_error *err)
{
    dqn_worlds *w = &d->worlds;
    int64_t n = d->env.rows, D = d->env.observation;
    if (d->dev->kind == MX_CPU || !d->env.device_world) return MX_OK;
    size_t size = mx_stream_tensor_bytes(MX_I32, n, 8) + mx_stream_tensor_bytes(MX_I32, n, 3) + mx_stream_tensor_bytes(MX_I32, n, 1) +
                  mx_stream_tensor_bytes(MX_F32, n, 1) + 2 * mx_stream_tensor_bytes(MX_F32, n, D), at = 0;
    MX_TRY(mx_buffer_open(&w->memory, d->dev, size, err));
    w->state = part(d, MX_I32, 8, &at);
    w->at = part(d, MX_I32, 3, &at);
    w->ended = part(d, MX_I32, 1, &at);
    w->reward = part(d, MX_F32, 1, &at);
    w->next = part(d, MX_F32, D, &at);
    w->seen = part(d, MX_F32, D, &at);
    w->host = malloc((size_t)n * (3 + (size_t)D) * sizeof(int32_t));
    return w->host ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%lld worlds", (long long)n);
}

void dqn_worlds_close(mx_dqn *d)
{
    free(d->worlds.host);
    mx_buffer_close(&d->worlds.memory);
}

/* The worlds as d->env has them, and what they show, go to the device. */
mx_status dqn_worlds_write(mx_dqn *d, mx_error *err)
{
    dqn_worlds *w = &d->worlds;
    int64_t n = d->env.rows;
    int32_t *at = w->host;
    if (!w->memory.base) return MX_OK;
    for (int64_t r = 0; r < n; r++) {
        at[3 * r] = (int32_t)r;
        at[3 * r + 1] = (int32_t)d->env.row[r].episode;
        at[3 * r + 2] = (int32_t)d->env.row[r].step;
    }
    d->dev->ops->upload(&d->stream, w->state.data, d->env.state, (size_t)n * 8 * sizeof(int32_t));
    d->dev->ops->upload(&d->stream, w->at.data, at, (size_t)n * 3 * sizeof *at);
    d->dev->ops->upload(&d->stream, w->seen.data, d->seen, (size_t)(n * d->env.observation) * sizeof(float));
    return mx_stream_sync(&d->stream, err);
}

/* The states come back, to be saved; episodes, steps and rewards are known. */
mx_status dqn_worlds_read(mx_dqn *d, mx_error *err)
{
    if (!d->worlds.memory.base) return MX_OK;
    d->dev->ops->download(&d->stream, d->env.state, d->worlds.state.data, (size_t)d->env.rows * 8 * sizeof(int32_t));
    return mx_stream_sync(&d->stream, err);
}

/* The device's actions: of the network, but for those that are given. */
static mx_tensor actions(mx_dqn *d, int64_t greedy)
{
    mx_stream *s = &d->stream;
    int64_t n = d->env.rows, A = d->env.actions;
    if (!greedy) return mx_stream_upload(s, MX_I32, n, 1, d->action);
    for (int64_t r = 0; r < n; r++)
        for (int64_t a = 0; a < A; a++) d->next_mask[r * A + a] = d->action[r] < 0 || d->action[r] == a;
    return mx_qnet_best(s, mx_qnet_values(d->online, s, d->worlds.seen), mx_stream_upload(s, MX_I8, n, A, d->next_mask));
}

static void gather(mx_dqn *d, const float *seen)
{
    int64_t n = d->env.rows, D = d->env.observation;
    const int32_t *ended = d->worlds.host;
    for (int64_t r = 0; r < n; r++) {
        mx_env_row *row = &d->env.row[r];
        mx_replay_step t = {d->seen + r * D, d->next + r * D, d->mask, d->action[r], d->reward[r], ended[r] == 1, ended[r] == 2};
        mx_replay_add(d->replay, r, &t);
        row->step++;
        row->earned += (double)d->reward[r];
        if (!ended[r]) continue;
        d->at.recent[d->at.episodes++ % DQN_RECENT] = row->earned;
        *row = (mx_env_row){.episode = row->episode + 1};
    }
    memcpy(d->seen, seen, (size_t)(n * D) * sizeof *seen);
}

mx_status dqn_worlds_step(mx_dqn *d, int64_t greedy, mx_error *err)
{
    dqn_worlds *w = &d->worlds;
    mx_stream *s = &d->stream;
    int64_t n = d->env.rows, D = d->env.observation;
    float *seen = (float *)(w->host + 3 * n);
    mx_tensor action = actions(d, greedy);
    mx_world_step(s, (mx_world)(d->env.device_world - 1), w->state, w->at, action, w->reward, w->ended, w->next, w->seen, d->env.seed, d->env.limit);
    const struct { void *to; const void *from; size_t n; } back[] = {
        {d->action, action.data, (size_t)n * 4}, {d->reward, w->reward.data, (size_t)n * 4}, {w->host, w->ended.data, (size_t)n * 4},
        {d->next, w->next.data, (size_t)(n * D) * 4}, {seen, w->seen.data, (size_t)(n * D) * 4}};
    for (size_t i = 0; i < sizeof back / sizeof *back && !s->error.code; i++) d->dev->ops->download(s, back[i].to, back[i].from, back[i].n);
    mx_status st = mx_stream_sync(s, err);
    if (st == MX_ERR_ARG) return mx_fail(err, MX_ERR_STATE, "step %lld: no value is a number; try a smaller lr", (long long)d->at.step);
    if (!st) gather(d, seen);
    return st;
}
