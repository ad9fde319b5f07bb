/* worlds.h - the equations of the worlds that a device can step by itself.
 *
 * Written once for models/env_cartpole.c and env_acrobot.c, which tell what they
 * mean, and for mx_world_step() on every backend.  State: four doubles.  u: four
 * uniform numbers on [0,1).  The functions of a step return whether the episode
 * terminated. */
#ifndef MX_WORLDS_H
#define MX_WORLDS_H

#include "kernels/ops.h"

#include <math.h>

#ifdef __CUDACC__
#define MX_BOTH static __host__ __device__ inline
#else
#define MX_BOTH static inline
#endif

/* ---- a pole on a cart: x, its speed, the angle, its speed --------------------------- */

MX_BOTH void mx_cartpole_begin(double s[4], const double u[4])
{
    for (int k = 0; k < 4; k++) s[k] = -0.05 + 0.1 * u[k];
}

MX_BOTH bool mx_cartpole_step(double s[4], int action)
{
    const double gravity = 9.8, pole = 0.1, total = 1.1, half = 0.5, force = 10, tau = 0.02;
    const double far = 2.4, tilted = 12 * 2 * 3.141592653589793 / 360;
    double push = action == 1 ? force : -force, c = cos(s[2]), si = sin(s[2]);
    double temp = (push + pole * half * (s[3] * s[3]) * si) / total;
    double turning = (gravity * si - c * temp) / (half * (4.0 / 3.0 - pole * (c * c) / total));
    double moving = temp - pole * half * turning * c / total;
    s[0] += tau * s[1];
    s[1] += tau * moving;
    s[2] += tau * s[3];
    s[3] += tau * turning;
    return fabs(s[0]) > far || fabs(s[2]) > tilted;
}

MX_BOTH void mx_cartpole_see(float o[4], const double s[4])
{
    for (int k = 0; k < 4; k++) o[k] = (float)s[k];
}

/* ---- two links: both angles, both speeds --------------------------------------------- */

/* Rounded to f32, as gymnasium's are; volatile, because GCC 12 leaves the rounding out of a vector of them. */
MX_BOTH void mx_acrobot_begin(double s[4], const double u[4])
{
    for (int k = 0; k < 4; k++) {
        volatile float rounded = (float)(-0.1 + 0.2 * u[k]);
        s[k] = (double)rounded;
    }
}

/* All masses, lengths and moments of inertia are 1, centres of mass lie at a half. */
MX_BOTH void mx_acrobot_derivative(double d[4], const double s[4], double torque)
{
    const double g = 9.8, pi = 3.141592653589793;
    double d1 = 0.25 + (1 + 0.25 + cos(s[1])) + 1 + 1, d2 = 0.25 + 0.5 * cos(s[1]) + 1;
    double phi2 = 0.5 * g * cos(s[0] + s[1] - pi / 2);
    double phi1 = -0.5 * (s[3] * s[3]) * sin(s[1]) - s[3] * s[2] * sin(s[1]) + 1.5 * g * cos(s[0] - pi / 2) + phi2;
    d[0] = s[2];
    d[1] = s[3];
    d[3] = (torque + d2 / d1 * phi1 - 0.5 * (s[2] * s[2]) * sin(s[1]) - phi2) / (0.25 + 1 - d2 * d2 / d1);
    d[2] = -(d2 * d[3] + phi1) / d1;
}

MX_BOTH double mx_acrobot_wrapped(double x)
{
    const double pi = 3.141592653589793;
    while (x > pi) x -= 2 * pi;
    while (x < -pi) x += 2 * pi;
    return x;
}

MX_BOTH bool mx_acrobot_step(double s[4], int action)
{
    const double dt = 0.2, part[3] = {dt / 2, dt / 2, dt}, pi = 3.141592653589793;
    double k[4][4], at[4], torque = action - 1;
    mx_acrobot_derivative(k[0], s, torque);
    for (int r = 1; r < 4; r++) {
        for (int i = 0; i < 4; i++) at[i] = s[i] + part[r - 1] * k[r - 1][i];
        mx_acrobot_derivative(k[r], at, torque);
    }
    for (int i = 0; i < 4; i++) s[i] += dt / 6.0 * (k[0][i] + 2 * k[1][i] + 2 * k[2][i] + k[3][i]);
    s[0] = mx_acrobot_wrapped(s[0]);
    s[1] = mx_acrobot_wrapped(s[1]);
    s[2] = fmin(fmax(s[2], -4 * pi), 4 * pi);
    s[3] = fmin(fmax(s[3], -9 * pi), 9 * pi);
    return -cos(s[0]) - cos(s[1] + s[0]) > 1;
}

MX_BOTH void mx_acrobot_see(float o[6], const double s[4])
{
    for (int k = 0; k < 2; k++) {
        o[2 * k] = (float)cos(s[k]);
        o[2 * k + 1] = (float)sin(s[k]);
        o[4 + k] = (float)s[2 + k];
    }
}

/* ---- either ----------------------------------------------------------------------------- */

MX_BOTH int mx_world_observation(mx_world w) { return w == MX_WORLD_CARTPOLE ? 4 : 6; }
MX_BOTH int mx_world_actions(mx_world w) { return w == MX_WORLD_CARTPOLE ? 2 : 3; }

MX_BOTH void mx_world_begin(mx_world w, double s[4], const double u[4])
{
    if (w == MX_WORLD_CARTPOLE) mx_cartpole_begin(s, u);
    else mx_acrobot_begin(s, u);
}

MX_BOTH void mx_world_see(mx_world w, float *o, const double s[4])
{
    if (w == MX_WORLD_CARTPOLE) mx_cartpole_see(o, s);
    else mx_acrobot_see(o, s);
}

/* 1 a step of the cart; -1 of the links, and 0 at the end. */
MX_BOTH bool mx_world_move(mx_world w, double s[4], int action, float *reward)
{
    bool over = w == MX_WORLD_CARTPOLE ? mx_cartpole_step(s, action) : mx_acrobot_step(s, action);
    *reward = w == MX_WORLD_CARTPOLE ? 1.0f : over ? 0.0f : -1.0f;
    return over;
}

#endif
