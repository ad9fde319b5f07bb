/* price_seen.h - what a learned price policy sees of an item, the same numbers in the
 * market it learns in (env_market.c) and in a server's quotes.
 *
 * Logarithms of ratios, so that a cheap and a dear product look alike.  What is not
 * known is said by a neutral value: no stock given is plenty, no promotion is the
 * usual demand. */
#ifndef MX_PRICE_SEEN_H
#define MX_PRICE_SEEN_H

#include <stdint.h>

enum { MX_PRICE_SEEN = 12 };
extern const char *const mx_price_seen_name[MX_PRICE_SEEN];      /* "price_to_cost", ... */

typedef struct mx_price_view {
    double price, cost, reference;        /* over 0                                          */
    double before;                        /* the price a period ago; 0: not known            */
    double rivals;                        /* mean price of competitors; 0: not known         */
    double elasticity, deviation;         /* the belief's                                    */
    double cover;                         /* stock over the units a period expected at the price; < 0: not known */
    double delivery;                      /* periods until more comes; 0: now or not known   */
    double demand, demand_next;           /* this and the next period's, over the usual; 0: not known */
    double surprise;                      /* ln of the last period's units over what was expected; 0: as expected */
    double stockpiling;                   /* coefficient of the last period's ln price in ln units; 0: not known */
} mx_price_view;

void mx_price_see(const mx_price_view *v, float seen[MX_PRICE_SEEN]);

#endif
