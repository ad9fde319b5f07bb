/* label.c - features and their parts, heads, states. */
#include "models/label.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- features ------------------------------------------------------------------------------ */

typedef enum how { MEAN, COUNT, FRIENDS, SLOPE } how;

static const struct feature {
    const char *name;
    how      kind;
    uint32_t among, counts;           /* acts it is about; those that say 1                 */
    double   strength, prior;         /* MEAN, FRIENDS: pseudo-events and their mean; COUNT: c; SLOPE: ridge, value without a slope */
    int32_t  of;                      /* FRIENDS                                            */
} features[MX_FEATURES] = {
    [MX_FEATURE_PROMO_SHARE] = {"promo_share", MEAN, MX_ACT_BUY, MX_ACT_PROMO, 4, 0.3, -1},
    [MX_FEATURE_PRICE_RANK] = {"price_rank", MEAN, MX_ACT_RANKED, 0, 4, 0.5, -1},
    [MX_FEATURE_QUALITY_WORDS] = {"quality_words", MEAN, MX_ACT_TEXT, MX_ACT_QUALITY, 2, 0.2, -1},
    [MX_FEATURE_PRICE_WORDS] = {"price_words", MEAN, MX_ACT_TEXT, MX_ACT_PRICE, 2, 0.2, -1},
    [MX_FEATURE_SENTIMENT] = {"sentiment", MEAN, MX_ACT_FELT, 0, 2, 0.5, -1},
    [MX_FEATURE_SOCIAL] = {"social", COUNT, MX_ACT_SOCIAL, MX_ACT_SOCIAL, 8, 0, -1},
    [MX_FEATURE_SHARE_RATE] = {"social_rate", MEAN, ~0u, MX_ACT_SOCIAL, 4, 0.1, -1},
    [MX_FEATURE_BROWSING] = {"browsing", MEAN, MX_ACT_VIEW | MX_ACT_BUY, MX_ACT_VIEW, 4, 0.5, -1},
    [MX_FEATURE_PURCHASES] = {"purchases", COUNT, MX_ACT_BUY, MX_ACT_BUY, 8, 0, -1},
    [MX_FEATURE_FRIENDS_PROMO] = {"friends_promo_share", FRIENDS, 0, 0, 2, 0.3, MX_FEATURE_PROMO_SHARE},
    [MX_FEATURE_FRIENDS_PRICE] = {"friends_price_rank", FRIENDS, 0, 0, 2, 0.5, MX_FEATURE_PRICE_RANK},
    [MX_FEATURE_FRIENDS_SOCIAL] = {"friends_social", FRIENDS, 0, 0, 2, 0.2, MX_FEATURE_SOCIAL},
    [MX_FEATURE_PRICE_RESPONSE] = {"price_response", SLOPE, MX_ACT_PRICED, MX_ACT_BUY, 1, 0.5, -1},
};

const char *mx_feature_name(int32_t f)
{
    return f >= 0 && f < MX_FEATURES ? features[f].name : "?";
}

int32_t mx_feature_find(const char *name)
{
    for (int32_t f = 0; f < MX_FEATURES; f++)
        if (!strcmp(features[f].name, name)) return f;
    return -1;
}

int32_t mx_feature_of_friends(int32_t f)
{
    return features[f].of;
}

mx_feature_prior mx_feature_prior_default(void)
{
    mx_feature_prior p;
    for (int32_t f = 0; f < MX_FEATURES; f++) p.mean[f] = features[f].prior;
    return p;
}

static double says(int32_t f, const mx_act *a)
{
    if (f == MX_FEATURE_PRICE_RANK) return (double)a->price_rank;
    if (f == MX_FEATURE_SENTIMENT) return (double)a->positive;
    return (a->what & features[f].counts) != 0;
}

/* The slope; part (may be NULL): its terms. */
static double slope_of(const struct feature *k, const mx_act *act, int32_t n, double *part)
{
    double sum = 0, x = 0, y = 0, xx = k->strength, slope = 0;
    for (int32_t i = 0; i < n; i++) {
        double w = act[i].what & k->among ? (double)act[i].weight : 0;
        sum += w, x += w * (double)act[i].price_rank, y += (act[i].what & k->counts) ? w : 0;
    }
    if (sum > 0) x /= sum, y /= sum;
    for (int32_t i = 0; i < n; i++) {
        double d = (double)act[i].price_rank - x;
        if (act[i].what & k->among) xx += (double)act[i].weight * d * d;
    }
    for (int32_t i = 0; i < n; i++) {
        double term = act[i].what & k->among ? (double)act[i].weight * ((double)act[i].price_rank - x) * (((act[i].what & k->counts) != 0) - y) / xx : 0;
        slope += term;
        if (part) part[i] = term;
    }
    return slope;
}

double mx_own_price_slope(const mx_act *act, int32_t n)
{
    return slope_of(&features[MX_FEATURE_PRICE_RESPONSE], act, n, NULL);
}

static double response(double prior, double slope)
{
    return mx_sigmoid(log(prior / (1 - prior)) - 4 * slope);
}

int32_t mx_feature_parts(const mx_feature_prior *prior, const mx_act *act, int32_t n, const mx_friend *friends, int32_t n_friends, int32_t f, double *part)
{
    const struct feature *k = &features[f];
    double sum = 0, m = prior->mean[f];
    int32_t count = k->kind == FRIENDS ? n_friends : n;
    if (k->kind == SLOPE) {
        double slope = slope_of(k, act, n, part), scale = fabs(slope) > 1e-12 ? (response(m, slope) - m) / slope : -4 * m * (1 - m);
        for (int32_t i = 0; i < n; i++) part[i] *= scale;
        return n;
    }
    for (int32_t i = 0; i < count; i++) {
        double w = k->kind == FRIENDS ? (double)friends[i].weight : act[i].what & k->among ? (double)act[i].weight : 0;
        sum += w;
        part[i] = k->kind == FRIENDS ? w * ((double)friends[i].feature[k->of] - m) : k->kind == COUNT ? w : w * (says(f, &act[i]) - m);
    }
    for (int32_t i = 0; i < count; i++) part[i] /= k->strength + sum;
    return count;
}

void mx_features(const mx_feature_prior *prior, const mx_act *act, int32_t n, const mx_friend *friends, int32_t n_friends, double out[MX_FEATURES])
{
    for (int32_t f = 0; f < MX_FEATURES; f++) {
        const struct feature *k = &features[f];
        double sum = 0, part = 0, m = prior->mean[f];
        if (k->kind == SLOPE) {
            out[f] = response(m, slope_of(k, act, n, NULL));
            continue;
        }
        for (int32_t i = 0; i < (k->kind == FRIENDS ? n_friends : n); i++) {
            double w = k->kind == FRIENDS ? (double)friends[i].weight : act[i].what & k->among ? (double)act[i].weight : 0;
            sum += w;
            part += k->kind == FRIENDS ? w * ((double)friends[i].feature[k->of] - m) : k->kind == COUNT ? w : w * (says(f, &act[i]) - m);
        }
        out[f] = (k->kind == COUNT ? 0 : m) + part / (k->strength + sum);
    }
}

/* ---- words ------------------------------------------------------------------------------------ */

static bool has_word(const char *text, const char *const *words)
{
    for (int i = 0; words[i]; i++) {
        size_t n = strlen(words[i]);
        bool ascii = !((unsigned char)words[i][0] & 0x80);
        for (const char *at = text; *at; at++) {
            if (strncasecmp(at, words[i], n)) continue;
            if (!ascii || at == text || !isalpha((unsigned char)at[-1])) return true;      /* begins a word */
        }
    }
    return false;
}

bool mx_text_speaks_of_quality(const char *text)
{
    static const char *const words[] = {"quality", "durab", "sturdy", "craft", "premium", "material", "well made", "well-made", "lasts", "质量", "品质", "做工", "材质", "耐用", "正品", NULL};
    return has_word(text, words);
}

bool mx_text_speaks_of_price(const char *text)
{
    static const char *const words[] = {"price", "cheap", "expensive", "discount", "coupon", "bargain", "deal", "sale", "afford", "价格", "便宜", "优惠", "打折", "贵", "划算", "性价比", NULL};
    return has_word(text, words);
}

/* ---- heads -------------------------------------------------------------------------------------- */

double mx_sigmoid(double x)
{
    return x >= 0 ? 1 / (1 + exp(-x)) : exp(x) / (1 + exp(x));
}

/* a[d,d] positive definite, its lower half; b becomes the solution.  False: it was not. */
static bool solve(double *a, double *b, int32_t d)
{
    for (int32_t i = 0; i < d; i++)
        for (int32_t j = 0; j <= i; j++) {
            double sum = a[(size_t)i * (size_t)d + j];
            for (int32_t k = 0; k < j; k++) sum -= a[(size_t)i * (size_t)d + k] * a[(size_t)j * (size_t)d + k];
            if (i == j && !(sum > 0)) return false;
            a[(size_t)i * (size_t)d + j] = i == j ? sqrt(sum) : sum / a[(size_t)j * (size_t)d + j];
        }
    for (int32_t i = 0; i < d; i++) {
        for (int32_t k = 0; k < i; k++) b[i] -= a[(size_t)i * (size_t)d + k] * b[k];
        b[i] /= a[(size_t)i * (size_t)d + i];
    }
    for (int32_t i = d - 1; i >= 0; i--) {
        for (int32_t k = i + 1; k < d; k++) b[i] -= a[(size_t)k * (size_t)d + i] * b[k];
        b[i] /= a[(size_t)i * (size_t)d + i];
    }
    return true;
}

/* Gradient and Hessian's lower half of the penalized loss; the bias is parameter d. */
static void derive(const double *x, const double *y, int32_t n, int32_t d, double ridge, const double *w, double *g, double *h)
{
    size_t m = (size_t)d + 1;
    for (size_t i = 0; i < m * m; i++) h[i] = 0;
    for (size_t i = 0; i < m; i++) {
        g[i] = i < (size_t)d ? ridge * w[i] : 0;
        h[i * m + i] = i < (size_t)d ? ridge : 1e-9;
    }
    for (int32_t r = 0; r < n; r++) {
        const double *row = x + (size_t)r * (size_t)d;
        double s = w[d];
        for (int32_t i = 0; i < d; i++) s += w[i] * row[i];
        double p = mx_sigmoid(s), e = p - y[r], v = p * (1 - p);
        for (size_t i = 0; i < m; i++) {
            double xi = i < (size_t)d ? row[i] : 1;
            g[i] += e * xi;
            for (size_t j = 0; j <= i; j++) h[i * m + j] += v * xi * (j < (size_t)d ? row[j] : 1);
        }
    }
}

static double loss_of(const double *x, const double *y, int32_t n, int32_t d, double ridge, const double *w)
{
    double sum = 0;
    for (int32_t i = 0; i < d; i++) sum += ridge / 2 * w[i] * w[i];
    for (int32_t r = 0; r < n; r++) {
        double s = w[d];
        for (int32_t i = 0; i < d; i++) s += w[i] * x[(size_t)r * (size_t)d + i];
        sum += fmax(s, 0) - s * y[r] + log1p(exp(-fabs(s)));
    }
    return sum;
}

mx_status mx_logistic_fit(const double *x, const double *y, int32_t n, int32_t d, double ridge, double *w, double *bias, mx_error *err)
{
    if (n < 1 || d < 1 || d > 4096) return mx_fail(err, MX_ERR_ARG, "a head of %d weights from %d users", d, n);
    size_t m = (size_t)d + 1;
    double *all = calloc(3 * m + m * m, sizeof *all);
    if (!all) return mx_fail(err, MX_ERR_NO_MEMORY, "a head of %d weights", d);
    double *at = all, *g = at + m, *next = g + m, *h = next + m, loss = loss_of(x, y, n, d, ridge, at);
    for (int round = 0; round < 50; round++) {
        double most = 0, step = 1;
        derive(x, y, n, d, ridge, at, g, h);
        for (size_t i = 0; i < m; i++) most = fmax(most, fabs(g[i]));
        if (most < 1e-8 || !solve(h, g, (int32_t)m)) break;
        for (int half = 0; half < 30; half++, step /= 2) {
            for (size_t i = 0; i < m; i++) next[i] = at[i] - step * g[i];
            double l = loss_of(x, y, n, d, ridge, next);
            if (l > loss) continue;
            loss = l;
            memcpy(at, next, m * sizeof *at);
            break;
        }
    }
    memcpy(w, at, (size_t)d * sizeof *w);
    *bias = at[d];
    free(all);
    return MX_OK;
}

void mx_platt_fit(const double *score, const double *y, int32_t n, double *scale, double *shift)
{
    double yes = 0, a = 1, b = 0;
    for (int32_t i = 0; i < n; i++) yes += y[i] > 0.5;
    double high = (yes + 1) / (yes + 2), low = 1 / (n - yes + 2);
    for (int round = 0; round < 100; round++) {
        double ga = 1e-6 * (a - 1), gb = 0, haa = 1e-6, hab = 0, hbb = 1e-6;
        for (int32_t i = 0; i < n; i++) {
            double p = mx_sigmoid(a * score[i] + b), e = p - (y[i] > 0.5 ? high : low), v = p * (1 - p);
            ga += e * score[i], gb += e;
            haa += v * score[i] * score[i], hab += v * score[i], hbb += v;
        }
        double det = haa * hbb - hab * hab;
        if (!(det > 1e-300) || fabs(ga) + fabs(gb) < 1e-9) break;
        double da = (hbb * ga - hab * gb) / det, db = (haa * gb - hab * ga) / det, most = fmax(fabs(da), fabs(db));
        double step = most > 2 ? 2 / most : 1;                       /* Newton, not further than 2 at a time */
        a -= step * da, b -= step * db;
    }
    *scale = a > 0 ? a : 1e-3;                                       /* a head that is worse than chance says nothing */
    *shift = b;
}

double mx_calibration_error(const double *p, const double *y, int32_t n)
{
    double sum[10] = {0}, right[10] = {0}, error = 0;
    for (int32_t i = 0; i < n; i++) {
        int b = (int)(p[i] * 10);
        b = b < 0 ? 0 : b > 9 ? 9 : b;
        sum[b] += p[i], right[b] += y[i];
    }
    for (int b = 0; b < 10; b++) error += fabs(sum[b] - right[b]);
    return n ? error / n : 0;
}

/* ---- states ------------------------------------------------------------------------------------------ */

bool mx_label_step(mx_label *l, const mx_label_limits *limits, double p, int64_t now_ms, int64_t newest_ms)
{
    bool was = l->state == MX_LABEL_ENTERED || l->state == MX_LABEL_ACTIVE || l->state == MX_LABEL_EXITING;
    bool old = newest_ms + limits->ttl_ms < now_ms, in = !old && (was ? p > limits->exit : p >= limits->enter);
    if (in != was) l->since_ms = now_ms;
    if (in) l->state = !was ? MX_LABEL_ENTERED : p < limits->enter ? MX_LABEL_EXITING : MX_LABEL_ACTIVE;
    else l->state = old && (was || l->state == MX_LABEL_EXPIRED) ? MX_LABEL_EXPIRED : MX_LABEL_OUT;
    l->expires_ms = in ? newest_ms + limits->ttl_ms : 0;
    return in != was;
}
