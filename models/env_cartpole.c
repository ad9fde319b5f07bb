/* env_cartpole.c - CartPole-v1 with gymnasium's dynamics: Barto, Sutton, Anderson
 * 1983, the corrected friction-free equations of Florian 2007, Euler steps of
 * 20 ms in double.  Observation: x, its speed, the angle, its speed.  Actions:
 * push left or right with 10 N.  1 a step; ends beyond 2.4 m or 12 degrees, or
 * is cut off after 500 steps. */
#include "models/env.h"

#include "kernels/worlds.h"

#include <string.h>

typedef struct cart {
    double s[4];
} cart;

static void begin(mx_env *e, int64_t row)
{
    double u[4];
    for (uint32_t k = 0; k < 4; k++) u[k] = mx_env_draw(e, row, k);
    mx_cartpole_begin(((cart *)e->state)[row].s, u);
}

static void step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated)
{
    for (int64_t i = 0; i < n; i++) terminated[i] = mx_world_move(MX_WORLD_CARTPOLE, ((cart *)e->state)[first + i].s, action[i], &reward[i]);
}

static void observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    for (int64_t i = 0; i < n; i++) mx_cartpole_see(observation + 4 * i, ((const cart *)e->state)[first + i].s);
    if (mask) memset(mask, 1, 2 * (size_t)n);
}

static const mx_env_ops ops = {begin, step, observe, NULL};

mx_status mx_env_cartpole(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err)
{
    MX_TRY(mx_env_no_arguments("cartpole", arguments, err));
    *e = (mx_env){.kind = "cartpole", .ops = &ops, .rows = rows, .observation = 4, .actions = 2, .limit = 500, .seed = seed, .device_world = 1 + MX_WORLD_CARTPOLE};
    return mx_env_alloc(e, sizeof(cart), err);
}
