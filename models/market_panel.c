/* market_panel.c - CSV with a header of names, in any order; columns of other names are passed over. */
#include "models/market_panel.h"

#include "runtime/tensor.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STORE, BRAND, WEEK, MOVE, DEAL, FEAT, PROFIT, PRICES, FIELDS = PRICES + MX_MARKET_BRANDS, COLUMNS = 128, LINE = 4096 };

static const char *const names[PRICES] = {"store", "brand", "week", "logmove", "deal", "feat", "profit"};

static int field_of(const char *name)
{
    int at = 0, number = 0;
    for (int f = 0; f < PRICES; f++)
        if (!strcmp(name, names[f])) return f;
    if (sscanf(name, "price%d%n", &number, &at) == 1 && !name[at] && number >= 1 && number <= MX_MARKET_BRANDS) return PRICES + number - 1;
    return -1;
}

/* The next cell of a line, without quotes; NULL: none. */
static char *cell(char **at)
{
    char *s = *at;
    if (!s) return NULL;
    size_t n = strcspn(s, ",\r\n");
    *at = s[n] == ',' ? s + n + 1 : NULL;
    s[n] = 0;
    if (n > 1 && *s == '"' && s[n - 1] == '"') {
        s[n - 1] = 0;
        s++;
    }
    return s;
}

static mx_status read_header(mx_panel *p, char *line, int field[COLUMNS], const char *path, mx_error *err)
{
    bool seen[FIELDS] = {false};
    int n = 0;
    for (char *at = line, *c; (c = cell(&at));) {
        if (n == COLUMNS) return mx_fail(err, MX_ERR_FORMAT, "%s: over %d columns", path, COLUMNS);
        field[n] = field_of(c);
        if (field[n] >= 0) seen[field[n]] = true;
        n++;
    }
    for (int f = 0; f < PRICES; f++)
        if (!seen[f]) return mx_fail(err, MX_ERR_FORMAT, "%s: the header has no column \"%s\"", path, names[f]);
    while (p->brands < MX_MARKET_BRANDS && seen[PRICES + p->brands]) p->brands++;
    if (!p->brands) return mx_fail(err, MX_ERR_FORMAT, "%s: the header has no column \"price1\"", path);
    for (; n < COLUMNS; n++) field[n] = -1;
    return MX_OK;
}

static mx_status read_row(mx_panel *p, char *line, const int field[COLUMNS], const char *path, int64_t number, mx_error *err)
{
    double v[FIELDS];
    int left = PRICES + p->brands, column = 0;
    for (char *at = line, *c; column < COLUMNS && (c = cell(&at)); column++) {
        int f = field[column];
        char *end;
        if (f < 0 || f >= PRICES + p->brands) continue;
        v[f] = strtod(c, &end);
        if (end == c || *end || !isfinite(v[f])) return mx_fail(err, MX_ERR_FORMAT, "%s: line %lld, column %d: \"%.40s\" is no number", path, (long long)number, column + 1, c);
        left--;
    }
    if (left) return mx_fail(err, MX_ERR_FORMAT, "%s: line %lld has %d columns; %d that are needed are missing", path, (long long)number, column, left);
    if (v[BRAND] < 1 || v[BRAND] > p->brands) return mx_fail(err, MX_ERR_FORMAT, "%s: line %lld: brand is %g; there are prices of 1 to %d", path, (long long)number, v[BRAND], p->brands);
    if (fabs(v[STORE]) > 1e9 || fabs(v[WEEK]) > 1e9 || fabs(v[MOVE]) > 50) return mx_fail(err, MX_ERR_FORMAT, "%s: line %lld: store, week or logmove is out of range", path, (long long)number);
    if (!(v[PROFIT] < 100 && v[PROFIT] > -1000)) return mx_fail(err, MX_ERR_FORMAT, "%s: line %lld: profit is %g; it must be under 100 percent", path, (long long)number, v[PROFIT]);
    mx_panel_row *r = &p->row[p->n];
    *r = (mx_panel_row){.store = (int32_t)v[STORE], .brand = (int32_t)v[BRAND] - 1, .week = (int32_t)v[WEEK], .move = (float)v[MOVE],
                        .deal = (float)v[DEAL], .feat = (float)v[FEAT], .profit = (float)v[PROFIT]};
    for (int b = 0; b < p->brands; b++) {
        r->price[b] = (float)v[PRICES + b];
        if (!(v[PRICES + b] > 1e-4 && v[PRICES + b] < 1e4)) return mx_fail(err, MX_ERR_FORMAT, "%s: line %lld: price%d is %g", path, (long long)number, b + 1, v[PRICES + b]);
    }
    p->n++;
    return MX_OK;
}

static int by_place(const void *a, const void *b)
{
    const mx_panel_row *x = a, *y = b;
    if (x->brand != y->brand) return x->brand < y->brand ? -1 : 1;
    if (x->store != y->store) return x->store < y->store ? -1 : 1;
    return x->week < y->week ? -1 : x->week > y->week;
}

static mx_status grow(mx_panel *p, size_t *room, mx_error *err)
{
    size_t bytes, next = *room ? 2 * *room : 4096;
    mx_panel_row *more = mx_mul_size(next, sizeof *more, &bytes) ? realloc(p->row, bytes) : NULL;
    if (!more) return mx_fail(err, MX_ERR_NO_MEMORY, "a panel of %zu rows", next);
    p->row = more;
    *room = next;
    return MX_OK;
}

mx_status mx_panel_read(mx_panel *p, const char *path, mx_error *err)
{
    char line[LINE];
    int field[COLUMNS];
    size_t room = 0;
    mx_status st = MX_OK;
    *p = (mx_panel){0};
    FILE *f = fopen(path, "r");
    if (!f) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    if (!fgets(line, sizeof line, f)) st = mx_fail(err, MX_ERR_FORMAT, "%s: empty", path);
    else st = read_header(p, line, field, path, err);
    for (int64_t number = 2; !st && fgets(line, sizeof line, f); number++) {
        if (!strchr(line, '\n') && !feof(f)) st = mx_fail(err, MX_ERR_FORMAT, "%s: line %lld is over %d bytes", path, (long long)number, LINE - 2);
        if (!st && (size_t)p->n == room) st = grow(p, &room, err);
        if (!st && line[strspn(line, " \r\n")]) st = read_row(p, line, field, path, number, err);
    }
    if (!st && ferror(f)) st = mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    fclose(f);
    if (st) {
        mx_panel_close(p);
        return st;
    }
    if (p->n) qsort(p->row, (size_t)p->n, sizeof *p->row, by_place);
    return MX_OK;
}

void mx_panel_close(mx_panel *p)
{
    free(p->row);
    *p = (mx_panel){0};
}
