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

/* env: as mx_env_open() takes it, of kind market.  episodes: of every pair.  q NULL: the yardsticks alone, `ahead` over
 * fixed.  Errors: of mx_env_open(); MX_ERR_ARG (the network does not fit). */
mx_status mx_market_compare(const mx_qnet *q, const char *env, int32_t episodes, uint64_t seed, mx_market_score out[MX_MARKET_SCORES], int *n, mx_error *err);

#endif
