/* market.h - a market fitted from a scanner panel: brands in stores, week by week.
 *
 * For each brand, by least squares over its stores' weeks,
 *   ln units = constant of the store + own ln p + sum over rivals e_b ln p_b
 *            + before ln p of the week before + deal + feat + normal error.
 * `before` over 0 is stockpiling: what was laid in last week is not bought now.  A
 * store's own elasticity is the brand's plus the slope of the store's residuals, drawn
 * in towards none by how uncertain it is (empirical Bayes: Efron and Morris 1975).
 * Costs, rivals' prices, deals and features stay what they were in each week.
 *
 * The stores are parted in three, by their place in the order of their numbers: every
 * second one is to learn in; of the others every second one is to choose settings and
 * checkpoints by, and the rest are held out, for the figures that are told.  A market
 * has one kind: the equations are those of its own stores; what a seller believes
 * beforehand (`known`) comes from the stores to learn in, in all three.
 *
 * The panel: CSV with a header; columns store, brand (1..K), week, logmove (ln ounces
 * sold), price1..priceK (dollars an ounce), deal, feat, profit (gross margin, percent).
 * Sold are cartons of 64 ounces; prices are in cents. */
#ifndef MX_MARKET_H
#define MX_MARKET_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

enum { MX_MARKET_BRANDS = 32 };

typedef enum mx_market_stores { MX_MARKET_LEARN, MX_MARKET_CHOOSE, MX_MARKET_HELD_OUT } mx_market_stores;

typedef struct mx_market_brand {
    double own, before, deal, feat, rival[MX_MARKET_BRANDS], sigma;
    double spread;                /* deviation of the stores' elasticities               */
    double plain;                 /* own elasticity without the week before, as it is usually fitted */
    double markup;                /* mean of price / cost - 1                             */
} mx_market_brand;

typedef struct mx_market_week {
    int32_t week;
    float   cost, logged, rivals; /* cents; rivals: their mean price                      */
    float   sold;                 /* units, as logged                                     */
    float   rest;                 /* of ln units: rivals' prices, deal, feat, constant    */
    float   known, promotion;     /* as a seller expects it, over the usual; and of it deal and feat alone */
} mx_market_week;

typedef struct mx_market_pair {
    int32_t store, brand;         /* brand from 0                                         */
    int64_t first, weeks;         /* in mx_market.week                                    */
    double  own;                  /* the store's elasticity                               */
    double  units, level;         /* a week, mean; ln of those expected at the reference price */
    double  reference, cost;      /* mean price and cost                                  */
} mx_market_pair;

typedef struct mx_market {
    int32_t brands;
    int64_t n_pairs;
    mx_market_brand *brand, *known;       /* [brands]: these stores', of the stores to learn in */
    mx_market_pair  *pair;
    mx_market_week  *week;
} mx_market;

/* Pairs of fewer than `least` weeks are left out.  Errors: MX_ERR_IO, MX_ERR_FORMAT (line
 * and column), MX_ERR_ARG (too few stores or weeks), MX_ERR_NO_MEMORY. */
mx_status mx_market_open(mx_market *m, const char *path, mx_market_stores which, int32_t least, mx_error *err);
void      mx_market_close(mx_market *m);

#endif
