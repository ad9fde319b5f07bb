/* env_acrobot.c - Acrobot-v1 with gymnasium's dynamics: Sutton 1996, the book's
 * equations, one step of Runge-Kutta 4 over 0.2 s in double.  Observation: cosine
 * and sine of both angles, and their speeds.  Actions: torque -1, 0, 1 on the
 * joint.  -1 a step and 0 at the end, which is the tip above 1 m, or 500 steps. */
#include "models/env.h"

#include <math.h>
#include <string.h>

#define PI 3.141592653589793

typedef struct links {
    double s[4];                  /* both angles, both speeds */
} links;

static void begin(mx_env *e, int64_t row)
{
    double *s = ((links *)e->state)[row].s;
    for (uint32_t k = 0; k < 4; k++) s[k] = (double)(float)(-0.1 + 0.2 * mx_env_draw(e, row, k));
}

/* All masses, lengths and moments of inertia are 1, centres of mass lie at a half. */
static void derivative(double d[4], const double s[4], double torque)
{
    const double g = 9.8;
    double d1 = 0.25 + (1 + 0.25 + cos(s[1])) + 1 + 1, d2 = 0.25 + 0.5 * cos(s[1]) + 1;
    double phi2 = 0.5 * g * cos(s[0] + s[1] - PI / 2);
    double phi1 = -0.5 * (s[3] * s[3]) * sin(s[1]) - s[3] * s[2] * sin(s[1]) + 1.5 * g * cos(s[0] - PI / 2) + phi2;
    d[0] = s[2];
    d[1] = s[3];
    d[3] = (torque + d2 / d1 * phi1 - 0.5 * (s[2] * s[2]) * sin(s[1]) - phi2) / (0.25 + 1 - d2 * d2 / d1);
    d[2] = -(d2 * d[3] + phi1) / d1;
}

static void runge_kutta(double s[4], double torque)
{
    const double dt = 0.2, part[3] = {dt / 2, dt / 2, dt};
    double k[4][4], at[4];
    derivative(k[0], s, torque);
    for (int r = 1; r < 4; r++) {
        for (int i = 0; i < 4; i++) at[i] = s[i] + part[r - 1] * k[r - 1][i];
        derivative(k[r], at, torque);
    }
    for (int i = 0; i < 4; i++) s[i] += dt / 6.0 * (k[0][i] + 2 * k[1][i] + 2 * k[2][i] + k[3][i]);
}

static double wrapped(double x)
{
    while (x > PI) x -= 2 * PI;
    while (x < -PI) x += 2 * PI;
    return x;
}

static void step(mx_env *e, int64_t first, int64_t n, const int32_t *action, float *reward, uint8_t *terminated)
{
    for (int64_t i = 0; i < n; i++) {
        double *s = ((links *)e->state)[first + i].s;
        runge_kutta(s, action[i] - 1);
        s[0] = wrapped(s[0]);
        s[1] = wrapped(s[1]);
        s[2] = fmin(fmax(s[2], -4 * PI), 4 * PI);
        s[3] = fmin(fmax(s[3], -9 * PI), 9 * PI);
        terminated[i] = -cos(s[0]) - cos(s[1] + s[0]) > 1;
        reward[i] = terminated[i] ? 0 : -1;
    }
}

static void observe(const mx_env *e, int64_t first, int64_t n, float *observation, uint8_t *mask)
{
    for (int64_t i = 0; i < n; i++) {
        const double *s = ((const links *)e->state)[first + i].s;
        float *o = observation + 6 * i;
        for (int k = 0; k < 2; k++) {
            o[2 * k] = (float)cos(s[k]);
            o[2 * k + 1] = (float)sin(s[k]);
            o[4 + k] = (float)s[2 + k];
        }
    }
    if (mask) memset(mask, 1, 3 * (size_t)n);
}

static const mx_env_ops ops = {begin, step, observe, NULL};

mx_status mx_env_acrobot(mx_env *e, const char *arguments, int64_t rows, uint64_t seed, mx_error *err)
{
    MX_TRY(mx_env_no_arguments("acrobot", arguments, err));
    *e = (mx_env){.kind = "acrobot", .ops = &ops, .rows = rows, .observation = 6, .actions = 3, .limit = 500, .seed = seed};
    return mx_env_alloc(e, sizeof(links), err);
}
