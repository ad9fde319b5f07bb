/* world.cu - steps of many worlds, a thread each. */
#include "kernels/cuda/common.cuh"
#include "kernels/worlds.h"

typedef struct world_args {
    mx_world  w;
    mx_tensor state, at, action, reward, ended, next, seen;
    uint64_t  seed;
    int       limit;
} world_args;

static __global__ void world_step_kernel(world_args a, mx_cuda_fault *fault)
{
    int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= a.state.rows) return;
    int32_t *at = mx_row_i32(a.at, r), *bits = mx_row_i32(a.state, r), words[8];
    int action = *mx_row_i32(a.action, r);
    if (action < 0 || action >= mx_world_actions(a.w)) {
        mx_raise(fault, MX_CUDA_ACTION, r, action);
        return;
    }
    double s[4], u[4];
    for (int k = 0; k < 8; k++) words[k] = bits[k];
    memcpy(s, words, sizeof s);
    bool over = mx_world_move(a.w, s, action, mx_row(a.reward, r));
    int episode = at[1], step = at[2] + 1, ended = over ? 1 : a.limit && step >= a.limit ? 2 : 0;
    mx_world_see(a.w, mx_row(a.next, r), s);
    if (ended) {
        episode++;
        step = 0;
        for (unsigned k = 0; k < 4; k++) u[k] = mx_uniform(a.seed, (unsigned)at[0], (unsigned)episode, 0, k);
        mx_world_begin(a.w, s, u);
    }
    mx_world_see(a.w, mx_row(a.seen, r), s);
    *mx_row_i32(a.ended, r) = ended;
    at[1] = episode;
    at[2] = step;
    memcpy(words, s, sizeof s);
    for (int k = 0; k < 8; k++) bits[k] = words[k];
}

extern "C" void mx_cuda_world_step(mx_stream *s, mx_world w, mx_tensor state, mx_tensor at, mx_tensor action, mx_tensor reward, mx_tensor ended,
                                   mx_tensor next, mx_tensor seen, uint64_t seed, int limit)
{
    world_args a = {w, state, at, action, reward, ended, next, seen, seed, limit};
    MX_LAUNCH(s, "world_step", world_step_kernel, (unsigned)((state.rows + 127) / 128), 128, 0, a, mx_cuda_faults(s));
}
