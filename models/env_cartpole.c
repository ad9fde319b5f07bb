/* env_cartpole.c - CartPole-v1 with gymnasium's dynamics: Barto, Sutton, Anderson
 * 1983, the corrected friction-free equations of Florian 2007, Euler steps of
 * 20 ms in double.  Observation: x, its speed, the angle, its speed.  Actions:
 * push left or right with 10 N.  1 a step; ends beyond 2.4 m or 12 degrees, or
 * is cut off after 500 steps. */
#include "models/env.h"

#include <math.h>
#include <string.h>

typedef struct cart {
    double x, speed, angle, turn;
} cart;

static const double gravity = 9.8, pole = 0.1, total = 1.1, half = 0.5, force = 10, tau = 0.02;
static const double far = 2.4, tilted = 12 * 2 * 3.141592653589793 / 360;

static void begin(mx_env *e, int64_t row)
{
    double s[4];
    for (uint32_t k = 0; k < 4; k++) s[k] = -0.05 + 0.1 * mx_env_draw(e, row, k);
    ((cart *)e->state)[row] = (cart){s[0], s[1], s[2], s[3]};
}

static void step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated)
{
    for (int64_t i = 0; i < n; i++) {
        cart *s = (cart *)e->state + first + i;
        double push = action[i] == 1 ? force : -force, c = cos(s->angle), si = sin(s->angle);
        double temp = (push + pole * half * (s->turn * s->turn) * si) / total;
        double turning = (gravity * si - c * temp) / (half * (4.0 / 3.0 - pole * (c * c) / total));
        double moving = temp - pole * half * turning * c / total;
        s->x += tau * s->speed;
        s->speed += tau * moving;
        s->angle += tau * s->turn;
        s->turn += tau * turning;
        reward[i] = 1;
        terminated[i] = fabs(s->x) > far || fabs(s->angle) > tilted;
    }
}

static void observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    for (int64_t i = 0; i < n; i++) {
        const cart *s = (const cart *)e->state + first + i;
        float *o = observation + 4 * i;
        o[0] = (float)s->x, o[1] = (float)s->speed, o[2] = (float)s->angle, o[3] = (float)s->turn;
    }
    if (mask) memset(mask, 1, 2 * (size_t)n);
}

static const mx_env_ops ops = {begin, step, observe, NULL};

mx_status mx_env_cartpole(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err)
{
    MX_TRY(mx_env_no_arguments("cartpole", arguments, err));
    *e = (mx_env){.kind = "cartpole", .ops = &ops, .rows = rows, .observation = 4, .actions = 2, .limit = 500, .seed = seed};
    return mx_env_alloc(e, sizeof(cart), err);
}
