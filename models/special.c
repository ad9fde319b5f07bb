/* special.c - incomplete beta and gamma functions by series and continued fractions. */
#include "models/special.h"

#include <math.h>

#define TINY  1e-300
#define LIMIT 1e-15
#define MOST  10000

static double ln_gamma(double x)
{
    int sign;
    return lgamma_r(x, &sign);
}

double mx_ln_beta(double a, double b)
{
    return ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b);
}

static double away_from_zero(double x)
{
    return fabs(x) < TINY ? TINY : x;
}

/* DLMF 8.17.22, evaluated from the front (Lentz 1976, as modified by Thompson and Barnett 1986). */
static double beta_fraction(double x, double a, double b)
{
    double c = 1, d = 1 / away_from_zero(1 - (a + b) * x / (a + 1)), h = d;
    for (int m = 1; m < MOST; m++) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 / away_from_zero(1 + even * d);
        c = away_from_zero(1 + even / c);
        h *= c * d;
        d = 1 / away_from_zero(1 + odd * d);
        c = away_from_zero(1 + odd / c);
        h *= c * d;
        if (fabs(c * d - 1) < LIMIT) break;
    }
    return h;
}

double mx_beta_below(double x, double a, double b, double ln_beta)
{
    if (!(x > 0)) return 0;
    if (!(x < 1)) return 1;
    double front = exp(a * log(x) + b * log1p(-x) - ln_beta);
    /* The fraction converges fast on this side of the mean; the other side is its complement. */
    if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(x, a, b) / a;
    return 1 - front * beta_fraction(1 - x, b, a) / b;
}

double mx_beta_density(double x, double a, double b, double ln_beta)
{
    if (x < 0 || x > 1) return 0;
    if (x == 0) return a > 1 ? 0 : a == 1 ? b : INFINITY;
    if (x == 1) return b > 1 ? 0 : b == 1 ? a : INFINITY;
    return exp((a - 1) * log(x) + (b - 1) * log1p(-x) - ln_beta);
}

double mx_normal_below(double x)
{
    return 0.5 * erfc(-x * 0.70710678118654752440);
}

double mx_normal_density(double x)
{
    return 0.39894228040143267794 * exp(-0.5 * x * x);
}

/* DLMF 8.7.1 (series of P) below the mean, 8.9.2 (fraction of Q) above it. */
double mx_chi_square_above(double x, double k)
{
    double a = k / 2, z = x / 2;
    if (!(z > 0)) return 1;
    double front = exp(a * log(z) - z - ln_gamma(a));
    if (z < a + 1) {
        double term = 1 / a, sum = term;
        for (int n = 1; n < MOST && fabs(term) > LIMIT * fabs(sum); n++) sum += term *= z / (a + n);
        return 1 - front * sum;
    }
    double b = z + 1 - a, c = 1 / TINY, d = 1 / away_from_zero(b), h = d;
    for (int n = 1; n < MOST; n++) {
        double an = -n * (n - a);
        b += 2;
        d = 1 / away_from_zero(an * d + b);
        c = away_from_zero(b + an / c);
        h *= c * d;
        if (fabs(c * d - 1) < LIMIT) break;
    }
    return front * h;
}
