/* label.h - what a user is like: features, labels, and how each event carried them.
 *
 * FEATURES are shrunk means of what events say (a Beta posterior's mean for shares), or
 * x/(x+c) of weighted counts; so each is exactly the sum of its events' parts over what
 * it is without events: a mean's parts are linear, and a count's are its events' Shapley
 * values when their weights are equal, Aumann and Shapley's (1974) when not.  One is a slope:
 * the user's own reaction to price, purchase (1) or only a look (0) regressed on where the
 * price stood in its category, ridge-shrunk to none; sigmoid(logit(prior) - 4 slope), so over
 * a half is a user whom high prices keep from buying.  Its parts are the terms of the slope's
 * covariance, in proportion (Aumann and Shapley's again, of a function of a sum).
 *
 * A LABEL's score is a logit.  By rules: bias + the weights of the rules that hold.  By a
 * head: a linear function of standardized features, learned from the rules' verdicts on
 * what users did LATER than what their features saw (so a probability says what a user
 * will do), ridge-penalized, and calibrated on held-out users by Platt's scaling (1999);
 * the scale is folded into the head, so parts always add up to the score.
 *
 * Pure functions of their arguments; no clock, no memory of their own. */
#ifndef MX_LABEL_H
#define MX_LABEL_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum mx_feature {
    MX_FEATURE_PROMO_SHARE,       /* of purchases, bought at a reduced price                */
    MX_FEATURE_PRICE_RANK,        /* of what was bought, within its category                */
    MX_FEATURE_QUALITY_WORDS,     /* share of texts that speak of quality                   */
    MX_FEATURE_PRICE_WORDS,       /* ... of price                                           */
    MX_FEATURE_SENTIMENT,         /* of texts: probability that they are positive           */
    MX_FEATURE_SOCIAL,            /* follows, joins, shares, reviews: x/(x+8)               */
    MX_FEATURE_SHARE_RATE,        /* share of all events that are social                    */
    MX_FEATURE_BROWSING,          /* share of views and carts among those and purchases     */
    MX_FEATURE_PURCHASES,         /* x/(x+8)                                                */
    MX_FEATURE_FRIENDS_PROMO,     /* the mean of whom the user follows                      */
    MX_FEATURE_FRIENDS_PRICE,
    MX_FEATURE_FRIENDS_SOCIAL,
    MX_FEATURE_PRICE_RESPONSE,    /* high prices keep the user from buying what was looked at */
    MX_FEATURES
} mx_feature;
const char *mx_feature_name(int32_t feature);                   /* "promo_share" */
int32_t     mx_feature_find(const char *name);                  /* -1: none      */
/* FRIENDS_*: which of a friend's features it is the mean of; else -1. */
int32_t     mx_feature_of_friends(int32_t feature);

enum { MX_ACT_VIEW = 1, MX_ACT_BUY = 2, MX_ACT_SOCIAL = 4, MX_ACT_TEXT = 8, MX_ACT_PROMO = 16, MX_ACT_QUALITY = 32, MX_ACT_PRICE = 64,
       MX_ACT_RANKED = 128, MX_ACT_FELT = 256, MX_ACT_PRICED = 512 };     /* RANKED: bought at price_rank; PRICED: that, or seen at it; FELT: positive counts */
typedef struct mx_act {               /* an event, or a friend                            */
    uint32_t what;                    /* MX_ACT_...                                       */
    float    weight;                  /* > 0: age and relation                            */
    float    price_rank, positive;    /* 0..1                                             */
} mx_act;

typedef struct mx_friend {
    float weight;                     /* > 0 */
    float feature[MX_FEATURES];
} mx_friend;

/* What the features of a user without events are. */
typedef struct mx_feature_prior { double mean[MX_FEATURES]; } mx_feature_prior;
mx_feature_prior mx_feature_prior_default(void);

void mx_features(const mx_feature_prior *prior, const mx_act *act, int32_t n, const mx_friend *friends, int32_t n_friends, double out[MX_FEATURES]);
/* The slope behind MX_FEATURE_PRICE_RESPONSE: how much likelier a purchase is at the top of its category's prices than at the
 * bottom; under 0: less likely.  The weighted ridge regression with one regressor, its strength worth 12 uniform prices. */
double mx_own_price_slope(const mx_act *act, int32_t n);
/* part[n] = each act's share of feature[f] - prior; friends' features: part[n_friends].  Returns how many. */
int32_t mx_feature_parts(const mx_feature_prior *prior, const mx_act *act, int32_t n, const mx_friend *friends, int32_t n_friends, int32_t f, double *part);

/* True when the text has one of the words; ASCII letters of any case.  English and Chinese. */
bool mx_text_speaks_of_quality(const char *text);
bool mx_text_speaks_of_price(const char *text);

/* ---- heads ------------------------------------------------------------------------------ */

/* Logistic regression with a ridge on all but the bias: Newton's method, from 0, to a
 * gradient under 1e-8.  x[n,d], y[n] in 0..1, w[d].  Errors: MX_ERR_ARG (n, d), MX_ERR_NO_MEMORY. */
mx_status mx_logistic_fit(const double *x, const double *y, int32_t n, int32_t d, double ridge, double *w, double *bias, mx_error *err);
/* Platt: p = sigmoid(scale * score + shift), targets softened as he says. */
void      mx_platt_fit(const double *score, const double *y, int32_t n, double *scale, double *shift);
/* Mean |confidence - frequency| over ten bins of probability, weighted by their counts. */
double    mx_calibration_error(const double *p, const double *y, int32_t n);
double    mx_sigmoid(double x);

/* ---- the state of a label ----------------------------------------------------------------- */

typedef enum mx_label_state { MX_LABEL_OUT, MX_LABEL_ENTERED, MX_LABEL_ACTIVE, MX_LABEL_EXITING, MX_LABEL_EXPIRED } mx_label_state;
typedef struct mx_label {
    mx_label_state state;
    int64_t        since_ms, expires_ms;      /* since: of being in, or out               */
} mx_label;
typedef struct mx_label_limits { double enter, exit; int64_t ttl_ms; } mx_label_limits;
/* The state after a probability as of now, confirmed by an event at newest_ms.  True: it came in or went out. */
bool mx_label_step(mx_label *l, const mx_label_limits *limits, double p, int64_t now_ms, int64_t newest_ms);

#endif
