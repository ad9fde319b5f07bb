/* market_panel.h - a scanner panel's rows, read; included by market*.c only. */
#ifndef MX_MARKET_PANEL_H
#define MX_MARKET_PANEL_H

#include "models/market.h"

typedef struct mx_panel_row {
    int32_t store, brand, week;   /* brand from 0                          */
    float   move, deal, feat, profit;
    float   price[MX_MARKET_BRANDS];      /* dollars an ounce              */
} mx_panel_row;

typedef struct mx_panel {
    mx_panel_row *row;            /* by brand, store, week                 */
    int64_t n;
    int32_t brands;
} mx_panel;

/* Errors: MX_ERR_IO, MX_ERR_FORMAT (line and column), MX_ERR_NO_MEMORY. */
mx_status mx_panel_read(mx_panel *p, const char *path, mx_error *err);
void      mx_panel_close(mx_panel *p);

#endif
