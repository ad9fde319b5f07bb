/* market_table.h - a learned price policy beside the yardsticks, in one market.
 *
 * Every policy meets the same weeks and the same chance: rows, episodes and errors are
 * drawn by their numbers alone.  Intervals are over stores (their means, and the paired
 * differences of them), normal, 95 %. */
#ifndef MX_MARKET_TABLE_H
#define MX_MARKET_TABLE_H

#include "models/env_market.h"
#include "models/qnet.h"

typedef struct mx_market_score {
    const char *name;             /* "learned", or the yardstick's                        */
    double margin, error;         /* cents a week of a brand in a store; half width       */
    double ahead, ahead_error;    /* of the learned policy, in percent of this one's margin */
} mx_market_score;

enum { MX_MARKET_SCORES = MX_MARKET_RULES + 1 };

typedef struct mx_market_trial {
    const mx_qnet *const *policies;       /* [n]; "learned" is their mean: policies of several seeds */
    int      n;                   /* 0: the yardsticks alone, `ahead` over fixed          */
    const char *env;              /* as mx_env_open() takes it, of kind market            */
    int32_t  episodes;            /* of every pair                                        */
    uint64_t seed;
    bool   (*progress)(void *ctx, int64_t done, int64_t all);     /* weeks; false stops; may be NULL */
    void    *ctx;
} mx_market_trial;

/* Errors: of mx_env_open(); MX_ERR_ARG (a network does not fit); MX_ERR_CANCELLED. */
mx_status mx_market_compare(const mx_market_trial *t, mx_market_score out[MX_MARKET_SCORES], int *n, mx_error *err);

#endif
