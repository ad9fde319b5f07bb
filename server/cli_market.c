/* cli_market.c - a price policy beside the yardsticks, as a table. */
#include "server/cli_market.h"

mx_status cli_market_table(const mx_market_trial *t, FILE *to, mx_error *err)
{
    mx_market_score s[MX_MARKET_SCORES];
    int n;
    MX_TRY(mx_market_compare(t, s, &n, err));
    fprintf(to, "| policy | margin a week, of a brand in a store | learned is ahead by |\n|---|---|---|\n");
    for (int i = 0; i < n; i++) {
        fprintf(to, "| %-18s | $%7.2f +- %.2f | ", s[i].name, s[i].margin / 100, s[i].error / 100);
        if (i) fprintf(to, "%+.2f %% +- %.2f |\n", s[i].ahead, s[i].ahead_error);
        else fprintf(to, "|\n");
    }
    return MX_OK;
}
