/* bandit.c - policies, their exact probabilities, and their state. */
#include "models/bandit.h"

#include "models/special.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mx_bandit {
    mx_bandit_options o;
    double  now;                  /* the day of the last reward                    */
    bool    begun;
    double *n, *sum;              /* [arms] rewards seen, and their sum            */
    double *inverse, *b, *theta;  /* linear: [arms][dim][dim], [arms][dim] twice   */
    double  cached[MX_BANDIT_ARMS];      /* of Beta-Thompson, until something is learned */
    bool    fresh;
};

const char *mx_bandit_policy_name(mx_bandit_policy p)
{
    static const char *const names[] = {"beta_thompson", "ucb1", "linucb", "linear_thompson"};
    return (unsigned)p < MX_BANDIT_POLICIES ? names[p] : "?";
}

mx_bandit_options mx_bandit_defaults(void)
{
    return (mx_bandit_options){.policy = MX_BANDIT_BETA_THOMPSON, .arms = 2, .prior_a = 1, .prior_b = 1, .alpha = 1, .lambda = 1, .v = 0.5,
                               .discount = 1};
}

static bool linear(const mx_bandit *b)
{
    return b->o.policy == MX_BANDIT_LINUCB || b->o.policy == MX_BANDIT_LIN_THOMPSON;
}

/* ---- opening --------------------------------------------------------------------------- */

static mx_status check(const mx_bandit_options *o, mx_error *err)
{
    bool lin = o->policy == MX_BANDIT_LINUCB || o->policy == MX_BANDIT_LIN_THOMPSON;
    const struct { const char *name; double value, least, most; bool asked; } limits[] = {
        {"policy", (double)o->policy, 0, MX_BANDIT_POLICIES - 1, true}, {"arms", o->arms, 2, MX_BANDIT_ARMS, true},
        {"dim", o->dim, 1, MX_BANDIT_DIM, lin}, {"prior_a", o->prior_a, 1, 1e9, true}, {"prior_b", o->prior_b, 1, 1e9, true},
        {"alpha", o->alpha, 0, 1e6, true}, {"lambda", o->lambda, 1e-9, 1e9, true}, {"v", o->v, 1e-9, 1e6, true},
        {"discount", o->discount, 1e-6, 1, !lin}, {"floor", o->floor, 0, 1, true},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].asked && !(limits[i].value >= limits[i].least && limits[i].value <= limits[i].most))
            return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be from %g to %g", limits[i].name, limits[i].value, limits[i].least, limits[i].most);
    if (lin && o->discount != 1) return mx_fail(err, MX_ERR_ARG, "discount is %g; linear policies do not forget", o->discount);
    return MX_OK;
}

mx_status mx_bandit_open(mx_bandit **out, const mx_bandit_options *o, mx_error *err)
{
    *out = NULL;
    MX_TRY(check(o, err));
    mx_bandit *b = calloc(1, sizeof *b);
    if (!b) return mx_fail(err, MX_ERR_NO_MEMORY, "a bandit");
    b->o = *o;
    size_t K = (size_t)o->arms, d = linear(b) ? (size_t)o->dim : 0;
    b->n = calloc(2 * K + K * d * d + 2 * K * d, sizeof *b->n);
    if (!b->n) {
        free(b);
        return mx_fail(err, MX_ERR_NO_MEMORY, "a bandit of %zu arms", K);
    }
    b->sum = b->n + K;
    b->inverse = b->sum + K;
    b->b = b->inverse + K * d * d;
    b->theta = b->b + K * d;
    for (size_t a = 0; a < K; a++)
        for (size_t i = 0; i < d; i++) b->inverse[(a * d + i) * d + i] = 1 / o->lambda;
    *out = b;
    return MX_OK;
}

void mx_bandit_close(mx_bandit *b)
{
    if (!b) return;
    free(b->n);
    free(b);
}

const mx_bandit_options *mx_bandit_options_of(const mx_bandit *b)
{
    return &b->o;
}

/* ---- the probability to be the largest ------------------------------------------------------ */

/* One arm's draw: Beta(a,b), or a normal of this mean and deviation. */
typedef struct draw {
    bool   normal;
    double a, b, ln_beta, mean, deviation;
} draw;

static draw beta_draw(double a, double b)
{
    double s = a + b;
    return (draw){false, a, b, mx_ln_beta(a, b), a / s, sqrt(a * b / (s * s * (s + 1)))};
}

static double below(const draw *d, double x)
{
    return d->normal ? mx_normal_below((x - d->mean) / d->deviation) : mx_beta_below(x, d->a, d->b, d->ln_beta);
}

static double density(const draw *d, double x)
{
    return d->normal ? mx_normal_density((x - d->mean) / d->deviation) / d->deviation : mx_beta_density(x, d->a, d->b, d->ln_beta);
}

/* Gauss-Legendre, 16 points on [-1,1]; the other half is the mirror (DLMF 3.5.18). */
static const double node[8] = {0.0950125098376374402, 0.2816035507792589132, 0.4580167776572273863, 0.6178762444026437484,
                               0.7554044083550030339, 0.8656312023878317439, 0.9445750230732325761, 0.9894009349916499326};
static const double share[8] = {0.1894506104550684963, 0.1826034150449235889, 0.1691565193950025382, 0.1495959888165767321,
                                0.1246289712555338720, 0.0951585116824927848, 0.0622535239386478929, 0.0271524594117540949};

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Ends of the pieces: round every arm's mass; returns how many. */
static int pieces(const draw *d, int n, double *cut)
{
    static const double steps[] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
    int k = 0, kept = 0;
    for (int i = 0; i < n; i++)
        for (size_t s = 0; s < sizeof steps / sizeof *steps; s++) {
            double x = d[i].mean + steps[s] * d[i].deviation;
            if (!d[i].normal) x = x < 0 ? 0 : x > 1 ? 1 : x;
            cut[k++] = x;
        }
    if (!d[0].normal) {
        cut[k++] = 0;
        cut[k++] = 1;
    }
    qsort(cut, (size_t)k, sizeof *cut, rising);
    for (int i = 0; i < k; i++)
        if (!kept || cut[i] > cut[kept - 1]) cut[kept++] = cut[i];
    return kept;
}

/* p[i] += weight * density of arm i at x, times that all others are below. */
static void add_point(const draw *d, int n, double x, double weight, double *p)
{
    double f[MX_BANDIT_ARMS] = {0}, after[MX_BANDIT_ARMS + 1], before = 1;
    after[n] = 1;
    for (int i = n - 1; i >= 0; i--) {
        f[i] = below(&d[i], x);
        after[i] = after[i + 1] * f[i];
    }
    for (int i = 0; i < n; i++) {
        double others = before * after[i + 1];
        if (others > 0) p[i] += weight * others * density(&d[i], x);
        before *= f[i];
    }
}

static void largest(const draw *d, int n, double *p)
{
    double cut[MX_BANDIT_ARMS * 15 + 2], sum = 0;
    int k = pieces(d, n, cut);
    for (int i = 0; i < n; i++) p[i] = 0;
    for (int i = 0; i + 1 < k; i++) {
        double half = (cut[i + 1] - cut[i]) / 2, middle = (cut[i + 1] + cut[i]) / 2;
        for (int j = 0; j < 8; j++) {
            add_point(d, n, middle - half * node[j], half * share[j], p);
            add_point(d, n, middle + half * node[j], half * share[j], p);
        }
    }
    for (int i = 0; i < n; i++) sum += p[i];
    for (int i = 0; i < n; i++) p[i] /= sum;
}

double mx_beta_better(double a1, double b1, double a2, double b2)
{
    double p[2];
    draw d[2] = {beta_draw(a1, b1), beta_draw(a2, b2)};
    largest(d, 2, p);
    return p[1];
}

/* ---- policies ------------------------------------------------------------------------------- */

/* All of the probability to the best scores; equals share it. */
static void best_of(const double *score, int n, double *p)
{
    double most = -INFINITY;
    int ties = 0;
    for (int i = 0; i < n; i++) most = fmax(most, score[i]);
    for (int i = 0; i < n; i++) ties += score[i] == most;
    for (int i = 0; i < n; i++) p[i] = score[i] == most ? 1.0 / ties : 0;
}

static void thompson(mx_bandit *b, double *p)
{
    draw d[MX_BANDIT_ARMS];
    size_t bytes = (size_t)b->o.arms * sizeof *p;
    if (!b->fresh) {
        for (int i = 0; i < b->o.arms; i++) d[i] = beta_draw(b->o.prior_a + b->sum[i], b->o.prior_b + b->n[i] - b->sum[i]);
        largest(d, b->o.arms, b->cached);
        b->fresh = true;
    }
    memcpy(p, b->cached, bytes);
}

static void ucb1(const mx_bandit *b, double *p)
{
    double score[MX_BANDIT_ARMS], all = 0;
    for (int i = 0; i < b->o.arms; i++) all += b->n[i];
    for (int i = 0; i < b->o.arms; i++) score[i] = b->n[i] > 0 ? b->sum[i] / b->n[i] + sqrt(2 * log(fmax(all, 1)) / b->n[i]) : INFINITY;
    best_of(score, b->o.arms, p);
}

/* x'theta and x'A^-1 x of an arm */
static void score_of(const mx_bandit *b, int arm, const double *x, double *mean, double *spread)
{
    int d = b->o.dim;
    const double *inverse = b->inverse + (size_t)arm * (size_t)d * (size_t)d, *theta = b->theta + (size_t)arm * (size_t)d;
    *mean = *spread = 0;
    for (int i = 0; i < d; i++) {
        double row = 0;
        for (int j = 0; j < d; j++) row += inverse[(size_t)i * (size_t)d + (size_t)j] * x[j];
        *mean += theta[i] * x[i];
        *spread += x[i] * row;
    }
}

static void by_context(const mx_bandit *b, const double *x, double *p)
{
    draw d[MX_BANDIT_ARMS];
    double score[MX_BANDIT_ARMS];
    for (int i = 0; i < b->o.arms; i++) {
        double mean, spread;
        score_of(b, i, x, &mean, &spread);
        spread = sqrt(fmax(spread, 0));
        score[i] = mean + b->o.alpha * spread;
        d[i] = (draw){.normal = true, .mean = mean, .deviation = fmax(b->o.v * spread, 1e-12)};
    }
    if (b->o.policy == MX_BANDIT_LINUCB) best_of(score, b->o.arms, p);
    else largest(d, b->o.arms, p);
}

static mx_status check_context(const mx_bandit *b, const double *x, mx_error *err)
{
    if (!linear(b)) return x ? mx_fail(err, MX_ERR_ARG, "context: policy %s takes none", mx_bandit_policy_name(b->o.policy)) : MX_OK;
    if (!x) return mx_fail(err, MX_ERR_ARG, "context: policy %s needs %d numbers", mx_bandit_policy_name(b->o.policy), b->o.dim);
    for (int i = 0; i < b->o.dim; i++)
        if (!(fabs(x[i]) <= 1e9)) return mx_fail(err, MX_ERR_ARG, "context[%d] is %g; it must be within 1e9", i, x[i]);
    return MX_OK;
}

mx_status mx_bandit_propensities(mx_bandit *b, const double *context, double *p, mx_error *err)
{
    MX_TRY(check_context(b, context, err));
    if (linear(b)) by_context(b, context, p);
    else if (b->o.policy == MX_BANDIT_UCB1) ucb1(b, p);
    else thompson(b, p);
    for (int i = 0; i < b->o.arms; i++) p[i] = b->o.floor / b->o.arms + (1 - b->o.floor) * p[i];
    return MX_OK;
}

int32_t mx_bandit_draw(const double *p, int32_t arms, double uniform)
{
    int32_t last = 0;
    double sum = 0;
    for (int32_t i = 0; i < arms; i++) {
        if (p[i] <= 0) continue;
        last = i;
        sum += p[i];
        if (uniform < sum) return i;
    }
    return last;                         /* rounding left a little above the sum */
}

/* ---- learning ----------------------------------------------------------------------------------- */

/* A^-1 after A += x x' (Sherman and Morrison 1950), then theta = A^-1 b. */
static void learn_linear(mx_bandit *b, int arm, const double *x, double reward)
{
    size_t d = (size_t)b->o.dim;
    double *inverse = b->inverse + (size_t)arm * d * d, *sum = b->b + (size_t)arm * d, *theta = b->theta + (size_t)arm * d;
    double u[MX_BANDIT_DIM], dot = 0;
    for (size_t i = 0; i < d; i++) {
        u[i] = 0;
        for (size_t j = 0; j < d; j++) u[i] += inverse[i * d + j] * x[j];
        dot += x[i] * u[i];
        sum[i] += reward * x[i];
    }
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j <= i; j++) inverse[i * d + j] = inverse[j * d + i] = inverse[i * d + j] - u[i] * u[j] / (1 + dot);
    for (size_t i = 0; i < d; i++) {
        theta[i] = 0;
        for (size_t j = 0; j < d; j++) theta[i] += inverse[i * d + j] * sum[j];
    }
}

mx_status mx_bandit_learn(mx_bandit *b, int32_t arm, const double *context, double reward, double now, mx_error *err)
{
    if (arm < 0 || arm >= b->o.arms) return mx_fail(err, MX_ERR_ARG, "arm is %d; there are %d", arm, b->o.arms);
    MX_TRY(check_context(b, context, err));
    if (!isfinite(now)) return mx_fail(err, MX_ERR_ARG, "now is %g", now);
    if (linear(b) ? !(fabs(reward) <= 1e9) : !(reward >= 0 && reward <= 1))
        return mx_fail(err, MX_ERR_ARG, "reward is %g; it must be from %s", reward, linear(b) ? "-1e9 to 1e9" : "0 to 1");
    if (b->o.discount < 1 && b->begun && now > b->now) {
        double keep = pow(b->o.discount, now - b->now);
        for (int i = 0; i < b->o.arms; i++) {
            b->n[i] *= keep;
            b->sum[i] *= keep;
        }
    }
    if (!b->begun || now > b->now) b->now = now;
    b->begun = true;
    b->n[arm] += 1;
    b->sum[arm] += reward;
    if (linear(b)) learn_linear(b, arm, context, reward);
    b->fresh = false;
    return MX_OK;
}

/* Where Beta's share below is p: bisection, to the last bits. */
static double quantile(double a, double b, double p)
{
    double low = 0, high = 1, ln = mx_ln_beta(a, b);
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if (mx_beta_below(middle, a, b, ln) < p) low = middle;
        else high = middle;
    }
    return (low + high) / 2;
}

void mx_bandit_arm_get(const mx_bandit *b, int32_t arm, mx_bandit_arm *out)
{
    double n = b->n[arm], mean = n > 0 ? b->sum[arm] / n : 0;
    *out = (mx_bandit_arm){n, mean, 0, 0};
    if (b->o.policy == MX_BANDIT_BETA_THOMPSON) {
        double a = b->o.prior_a + b->sum[arm], c = b->o.prior_b + n - b->sum[arm];
        out->mean = a / (a + c);
        out->low = quantile(a, c, 0.025);
        out->high = quantile(a, c, 0.975);
    } else if (n > 0 && !linear(b)) {
        mx_always_valid(mean, n, 0.05, &out->low, &out->high);
    }
}

/* ---- the state --------------------------------------------------------------------------------------- */

static size_t numbers(const mx_bandit *b)
{
    size_t K = (size_t)b->o.arms, d = linear(b) ? (size_t)b->o.dim : 0;
    return 2 * K + K * d * d + 2 * K * d;
}

size_t mx_bandit_state_size(const mx_bandit *b)
{
    return (2 + numbers(b)) * sizeof(double);
}

void mx_bandit_state_save(const mx_bandit *b, void *to)
{
    double head[2] = {b->begun, b->now};
    memcpy(to, head, sizeof head);
    memcpy((char *)to + sizeof head, b->n, numbers(b) * sizeof *b->n);
}

mx_status mx_bandit_state_load(mx_bandit *b, const void *from, size_t size, mx_error *err)
{
    double head[2], x;
    if (size != mx_bandit_state_size(b)) return mx_fail(err, MX_ERR_FORMAT, "a bandit's state has %zu bytes; %zu are expected", size, mx_bandit_state_size(b));
    for (size_t i = 0; i < size / sizeof x; i++) {
        memcpy(&x, (const char *)from + i * sizeof x, sizeof x);
        if (!isfinite(x)) return mx_fail(err, MX_ERR_FORMAT, "a bandit's state: number %zu is %g", i, x);
    }
    memcpy(head, from, sizeof head);
    b->begun = head[0] != 0;
    b->now = head[1];
    memcpy(b->n, (const char *)from + sizeof head, numbers(b) * sizeof *b->n);
    b->fresh = false;
    return MX_OK;
}

/* ---- experiments ---------------------------------------------------------------------------------------- */

double mx_sample_ratio(const double *counts, const double *shares, int n)
{
    double all = 0, whole = 0, x = 0;
    int used = 0;
    for (int i = 0; i < n; i++) all += counts[i], whole += shares[i];
    for (int i = 0; i < n; i++) {
        double want = all * shares[i] / whole;
        if (want <= 0) {
            if (counts[i] > 0) return 0;             /* what cannot be was seen */
            continue;
        }
        x += (counts[i] - want) * (counts[i] - want) / want;
        used++;
    }
    return used > 1 ? mx_chi_square_above(x, used - 1) : 1;
}

void mx_always_valid(double mean, double n, double alpha, double *low, double *high)
{
    /* rho of the mixture that makes the interval tightest at n0 (their section 3.5); a number in [0,1] is 1/2-sub-Gaussian. */
    const double n0 = 1000, sigma = 0.5;
    double l = -2 * log(alpha), rho2 = (l + log(l) + 1) / n0;
    *low = 0;
    *high = 1;
    if (!(n > 0)) return;
    double t = n * rho2 + 1, radius = sigma * sqrt(2 * t / (n * n * rho2) * log(sqrt(t) / alpha));
    *low = fmax(0, mean - radius);
    *high = fmin(1, mean + radius);
}
