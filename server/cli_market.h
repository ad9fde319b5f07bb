/* cli_market.h - what `merx evaluate` says besides, of a market. */
#ifndef MX_CLI_MARKET_H
#define MX_CLI_MARKET_H

#include "models/market_table.h"

#include <stdio.h>

/* Errors: of mx_market_compare(). */
mx_status cli_market_table(const mx_market_trial *t, FILE *to, mx_error *err);

#endif
