/* env_acrobot.c - Acrobot-v1 with gymnasium's dynamics: Sutton 1996, the book's
 * equations, one step of Runge-Kutta 4 over 0.2 s in double.  Observation: cosine
 * and sine of both angles, and their speeds.  Actions: torque -1, 0, 1 on the
 * joint.  -1 a step and 0 at the end, which is the tip above 1 m, or 500 steps. */
#include "models/env.h"

#include "kernels/worlds.h"

#include <string.h>

typedef struct links {
    double s[4];                  /* both angles, both speeds */
} links;

static void begin(mx_env *e, int64_t row)
{
    double u[4];
    for (uint32_t k = 0; k < 4; k++) u[k] = mx_env_draw(e, row, k);
    mx_acrobot_begin(((links *)e->state)[row].s, u);
}

static void step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated)
{
    for (int64_t i = 0; i < n; i++) terminated[i] = mx_world_move(MX_WORLD_ACROBOT, ((links *)e->state)[first + i].s, action[i], &reward[i]);
}

static void observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    for (int64_t i = 0; i < n; i++) mx_acrobot_see(observation + 6 * i, ((const links *)e->state)[first + i].s);
    if (mask) memset(mask, 1, 3 * (size_t)n);
}

static const mx_env_ops ops = {begin, step, observe, NULL};

mx_status mx_env_acrobot(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err)
{
    MX_TRY(mx_env_no_arguments("acrobot", arguments, err));
    *e = (mx_env){.kind = "acrobot", .ops = &ops, .rows = rows, .observation = 6, .actions = 3, .limit = 500, .seed = seed, .device_world = 1 + MX_WORLD_ACROBOT};
    return mx_env_alloc(e, sizeof(links), err);
}
