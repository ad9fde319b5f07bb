/* reference_value.c - Q-learning in double, naive loops. */
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int32_t ref_argmax(const double *q, const int8_t *mask, int64_t actions)
{
    int32_t best = -1;
    for (int64_t a = 0; a < actions; a++) {
        if ((mask && !mask[a]) || isnan(q[a])) continue;
        if (best < 0 || q[a] > q[best]) best = (int32_t)a;
    }
    return best;
}

void ref_dueling(double *q, const double *va, int64_t n, int64_t actions, int64_t atoms)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t z = 0; z < atoms; z++) {
            const double *v = va + r * (1 + actions) * atoms;
            double mean = 0;
            for (int64_t a = 0; a < actions; a++) mean += v[(1 + a) * atoms + z] / (double)actions;
            for (int64_t a = 0; a < actions; a++) q[(r * actions + a) * atoms + z] = v[z] + v[(1 + a) * atoms + z] - mean;
        }
}

void ref_perceptron(double *y, const double *x, const double *const *w, const double *const *b, const int64_t *width, int layers, int64_t n,
                    mx_activation act)
{
    for (int64_t r = 0; r < n; r++) {
        double h[2][MX_PERCEPTRON_WIDTH];
        memcpy(h[0], x + r * width[0], (size_t)width[0] * sizeof **h);
        for (int k = 0; k < layers; k++)
            for (int64_t o = 0; o < width[k + 1]; o++) {
                double sum = b[k][o];
                for (int64_t i = 0; i < width[k]; i++) sum += h[k % 2][i] * w[k][o * width[k] + i];
                if (k + 1 < layers) ref_activate(&sum, &sum, 1, act);
                h[(k + 1) % 2][o] = sum;
            }
        memcpy(y + r * width[layers], h[layers % 2], (size_t)width[layers] * sizeof *y);
    }
}

/* Florian 2007, equations 23 and 24, without friction */
static bool cartpole(double s[4], double push)
{
    const double m = 0.1, M = 1.0, l = 0.5, g = 9.8, dt = 0.02;
    double sine = sin(s[2]), cosine = cos(s[2]), w2 = s[3] * s[3];
    double turn = (g * sine + cosine * ((-push - m * l * w2 * sine) / (m + M))) / (l * (4.0 / 3.0 - m * cosine * cosine / (m + M)));
    double move = (push + m * l * (w2 * sine - turn * cosine)) / (m + M);
    double d[4] = {s[1], move, s[3], turn};
    for (int k = 0; k < 4; k++) s[k] += dt * d[k];
    return fabs(s[0]) > 2.4 || fabs(s[2]) > acos(-1.0) / 15;
}

/* Sutton, Barto 2018, section 11.3 of the first edition: masses, lengths and moments are 1, gravity is 9.8 */
static void links(double d[4], const double s[4], double torque)
{
    const double lc = 0.5, g = 9.8;
    double d1 = lc * lc + 1 + lc * lc + 2 * lc * cos(s[1]) + 2, d2 = lc * lc + lc * cos(s[1]) + 1;
    double phi2 = lc * g * sin(s[0] + s[1]);
    double phi1 = -lc * s[3] * s[3] * sin(s[1]) - 2 * lc * s[3] * s[2] * sin(s[1]) + (lc + 1) * g * sin(s[0]) + phi2;
    double a2 = (torque + d2 / d1 * phi1 - lc * s[2] * s[2] * sin(s[1]) - phi2) / (lc * lc + 1 - d2 * d2 / d1);
    d[0] = s[2], d[1] = s[3], d[2] = -(d2 * a2 + phi1) / d1, d[3] = a2;
}

bool ref_world_step(mx_world w, double s[4], int action)
{
    const double h = 0.2, pi = acos(-1.0), most[4] = {pi, pi, 4 * pi, 9 * pi};
    double a[4], b[4], c[4], d[4], t[4];
    if (w == MX_WORLD_CARTPOLE) return cartpole(s, action ? 10 : -10);
    links(a, s, action - 1);
    for (int k = 0; k < 4; k++) t[k] = s[k] + h / 2 * a[k];
    links(b, t, action - 1);
    for (int k = 0; k < 4; k++) t[k] = s[k] + h / 2 * b[k];
    links(c, t, action - 1);
    for (int k = 0; k < 4; k++) t[k] = s[k] + h * c[k];
    links(d, t, action - 1);
    for (int k = 0; k < 4; k++) {
        s[k] += h / 6 * (a[k] + 2 * b[k] + 2 * c[k] + d[k]);
        s[k] = k < 2 ? remainder(s[k], 2 * pi) : fmax(-most[k], fmin(most[k], s[k]));
    }
    return -cos(s[0]) - cos(s[0] + s[1]) > 1;
}

void ref_dueling_back(double *dva, const double *dq, int64_t n, int64_t actions, int64_t atoms)
{
    for (int64_t r = 0; r < n; r++)
        for (int64_t z = 0; z < atoms; z++) {
            double *d = dva + r * (1 + actions) * atoms, sum = 0;
            for (int64_t a = 0; a < actions; a++) sum += dq[(r * actions + a) * atoms + z];
            d[z] = sum;
            for (int64_t a = 0; a < actions; a++) d[(1 + a) * atoms + z] = dq[(r * actions + a) * atoms + z] - sum / (double)actions;
        }
}

void ref_td_loss(double *loss, double *error, double *dq, const double *q, const int32_t *action, const double *next, const double *chooser,
                 const int8_t *mask, const double *step, int64_t n, int64_t actions, double huber, double scale)
{
    for (int64_t r = 0; r < n; r++) {
        double target = step[3 * r];
        if (step[3 * r + 1] != 0) {
            int32_t best = ref_argmax(chooser + r * actions, mask ? mask + r * actions : NULL, actions);
            if (best >= 0) target += step[3 * r + 1] * next[r * actions + best];
        }
        double d = q[r * actions + action[r]] - target;
        error[r] = fabs(d);
        loss[r] = step[3 * r + 2] * (fabs(d) <= huber ? d * d / 2 : huber * (fabs(d) - huber / 2));
        for (int64_t a = 0; dq && a < actions; a++)
            dq[r * actions + a] = a == action[r] ? scale * step[3 * r + 2] * fmax(-huber, fmin(huber, d)) : 0;
    }
}

static void softmax(double *p, const double *x, int64_t n)
{
    double most = x[0], sum = 0;
    for (int64_t i = 1; i < n; i++) most = fmax(most, x[i]);
    for (int64_t i = 0; i < n; i++) sum += exp(x[i] - most);
    for (int64_t i = 0; i < n; i++) p[i] = exp(x[i] - most) / sum;
}

void ref_atoms_value(double *q, const double *logits, int64_t n, int64_t actions, int64_t atoms, double low, double high)
{
    double *p = malloc((size_t)atoms * sizeof *p);
    for (int64_t i = 0; p && i < n * actions; i++) {
        softmax(p, logits + i * atoms, atoms);
        q[i] = 0;
        for (int64_t z = 0; z < atoms; z++) q[i] += p[z] * (low + (high - low) * (double)z / (double)(atoms - 1));
    }
    free(p);
}

/* Bellemare et al. 2017, algorithm 1, as it is written there. */
static void project(double *m, const double *p, int64_t atoms, double reward, double discount, double low, double high)
{
    double gap = (high - low) / (double)(atoms - 1);
    for (int64_t z = 0; z < atoms; z++) m[z] = 0;
    for (int64_t z = 0; z < atoms; z++) {
        double b = (fmin(high, fmax(low, reward + discount * (low + gap * (double)z))) - low) / gap;
        double l = floor(b), u = ceil(b);
        if (u > (double)(atoms - 1)) u = l = (double)(atoms - 1);
        if (l == u) m[(int64_t)l] += p[z];
        else {
            m[(int64_t)l] += p[z] * (u - b);
            m[(int64_t)u] += p[z] * (b - l);
        }
    }
}

void ref_atoms_loss(double *loss, double *error, double *dlogits, const double *logits, const int32_t *action, const double *next,
                    const double *chooser, const int8_t *mask, const double *step, int64_t n, int64_t actions, int64_t atoms, double low,
                    double high, double scale)
{
    double *p = malloc(2 * (size_t)atoms * sizeof *p), *m = p + atoms;
    for (int64_t r = 0; p && r < n; r++) {
        double discount = step[3 * r + 1], weight = step[3 * r + 2];
        int32_t best = discount != 0 ? ref_argmax(chooser + r * actions, mask ? mask + r * actions : NULL, actions) : -1;
        if (best < 0) discount = 0, best = 0;
        softmax(p, next + (r * actions + best) * atoms, atoms);
        project(m, p, atoms, step[3 * r], discount, low, high);
        softmax(p, logits + (r * actions + action[r]) * atoms, atoms);
        error[r] = 0;
        for (int64_t z = 0; z < atoms; z++) error[r] -= m[z] * log(p[z]);
        loss[r] = weight * error[r];
        for (int64_t a = 0; dlogits && a < actions; a++)
            for (int64_t z = 0; z < atoms; z++)
                dlogits[(r * actions + a) * atoms + z] = a == action[r] ? scale * weight * (p[z] - m[z]) : 0;
    }
    free(p);
}

void ref_noisy(double *w, const double *mean, const double *spread, const double *out, const double *in, int64_t o, int64_t c)
{
    for (int64_t i = 0; i < o * c; i++) w[i] = mean[i] + spread[i] * out[i / c] * in[i % c];
}

void ref_noisy_back(double *dmean, double *dspread, const double *dw, const double *out, const double *in, int64_t o, int64_t c)
{
    for (int64_t i = 0; i < o * c; i++) {
        dmean[i] += dw[i];
        dspread[i] += dw[i] * out[i / c] * in[i % c];
    }
}
