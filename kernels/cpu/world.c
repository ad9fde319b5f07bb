/* world.c - steps of many worlds. */
#include "kernels/cpu/cpu.h"
#include "kernels/worlds.h"
#include "runtime/random.h"

typedef struct world_job {
    mx_world  w;
    mx_tensor state, at, action, reward, ended, next, seen;
    uint64_t  seed;
    int       limit;
} world_job;

static void world_rows(const void *ctx, int64_t first, int64_t last)
{
    const world_job *j = ctx;
    for (int64_t r = first; r < last; r++) {
        int32_t *at = mx_row_i32(j->at, r);             /* number, episode, step */
        double s[4], u[4];
        memcpy(s, mx_row_i32(j->state, r), sizeof s);
        bool over = mx_world_move(j->w, s, *mx_row_i32(j->action, r), mx_row(j->reward, r));
        at[2]++;
        *mx_row_i32(j->ended, r) = over ? 1 : j->limit && at[2] >= j->limit ? 2 : 0;
        mx_world_see(j->w, mx_row(j->next, r), s);
        if (*mx_row_i32(j->ended, r)) {
            at[1]++;
            at[2] = 0;
            for (uint32_t k = 0; k < 4; k++) u[k] = mx_uniform(j->seed, (uint32_t)at[0], (uint32_t)at[1], 0, k);
            mx_world_begin(j->w, s, u);
        }
        mx_world_see(j->w, mx_row(j->seen, r), s);
        memcpy(mx_row_i32(j->state, r), s, sizeof s);
    }
}

void mx_cpu_world_step(mx_stream *s, mx_world w, mx_tensor state, mx_tensor at, mx_tensor action, mx_tensor reward, mx_tensor ended,
                       mx_tensor next, mx_tensor seen, uint64_t seed, int limit)
{
    world_job j = {w, state, at, action, reward, ended, next, seen, seed, limit};
    if (mx_cpu_actions_exist(s, "world_step", action, mx_world_actions(w))) mx_cpu_rows(s, state.rows, 256, world_rows, &j);
}
