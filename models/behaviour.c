/* behaviour.c - windows over a subject's events; ranks of prices. */
#include "models/behaviour.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DAY_MS 86400000LL

/* ---- prices ------------------------------------------------------------------------------- */

typedef struct category { char *name; int64_t *ts_ms, *price; int64_t count, room; } category;

struct mx_price_ranks {
    pthread_rwlock_t lock;
    category        *at;                  /* by name */
    int32_t          count, room;
};

mx_status mx_price_ranks_open(mx_price_ranks **out, mx_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out) return mx_fail(err, MX_ERR_NO_MEMORY, "price ranks");
    pthread_rwlock_init(&(*out)->lock, NULL);
    return MX_OK;
}

void mx_price_ranks_close(mx_price_ranks *p)
{
    if (!p) return;
    for (int32_t i = 0; i < p->count; i++) {
        free(p->at[i].name);
        free(p->at[i].ts_ms);
        free(p->at[i].price);
    }
    free(p->at);
    pthread_rwlock_destroy(&p->lock);
    free(p);
}

static int32_t place_of(const mx_price_ranks *p, const char *name, bool *there)
{
    int32_t lo = 0, hi = p->count;
    while (lo < hi) {
        int32_t mid = (lo + hi) / 2;
        if (strcmp(p->at[mid].name, name) < 0) lo = mid + 1;
        else hi = mid;
    }
    *there = lo < p->count && !strcmp(p->at[lo].name, name);
    return lo;
}

static category *category_for(mx_price_ranks *p, const char *name)
{
    bool there;
    int32_t i = place_of(p, name, &there);
    if (there) return &p->at[i];
    if (p->count == p->room) {
        int32_t room = p->room ? 2 * p->room : 16;
        category *grown = realloc(p->at, sizeof *grown * (size_t)room);
        if (!grown) return NULL;
        p->at = grown;
        p->room = room;
    }
    char *copy = strdup(name);
    if (!copy) return NULL;
    memmove(p->at + i + 1, p->at + i, sizeof *p->at * (size_t)(p->count++ - i));
    p->at[i] = (category){.name = copy};
    return &p->at[i];
}

static bool add(mx_price_ranks *p, const char *name, int64_t ts_ms, int64_t price)
{
    category *c = category_for(p, name);
    if (!c) return false;
    if (c->count == c->room) {
        int64_t room = c->room ? 2 * c->room : 16;
        int64_t *ts = realloc(c->ts_ms, 8 * (size_t)room);
        if (ts) c->ts_ms = ts;
        int64_t *prices = realloc(c->price, 8 * (size_t)room);
        if (prices) c->price = prices;
        if (!ts || !prices) return false;
        c->room = room;
    }
    c->ts_ms[c->count] = ts_ms;
    c->price[c->count++] = price;
    return true;
}

mx_status mx_price_ranks_add(mx_price_ranks *p, const char *name, int64_t ts_ms, int64_t price_minor, mx_error *err)
{
    pthread_rwlock_wrlock(&p->lock);
    bool ok = add(p, name, ts_ms, price_minor);
    pthread_rwlock_unlock(&p->lock);
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "prices of category %s", name);
}

double mx_price_ranks_of(const mx_price_ranks *p, const char *name, int64_t price_minor, int64_t as_of_ms)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)&p->lock;
    int64_t n = 0, below = 0, equal = 0;
    bool there;
    pthread_rwlock_rdlock(lock);
    int32_t i = place_of(p, name, &there);
    const category *c = there ? &p->at[i] : NULL;
    for (int64_t k = 0; c && k < c->count; k++) {
        bool seen = c->ts_ms[k] <= as_of_ms;
        n += seen;
        below += seen && c->price[k] < price_minor;
        equal += seen && c->price[k] == price_minor;
    }
    pthread_rwlock_unlock(lock);
    return n ? ((double)below + 0.5 * (double)equal) / (double)n : -1;
}

typedef struct following { mx_price_ranks *to; uint32_t flags[MX_EVENT_TYPES]; } following;

static bool is_priced(uint32_t flags, const mx_event *e) { return flags & MX_TYPE_PURCHASE && e->price_minor >= 0 && e->category && *e->category; }

static mx_status take(void *ctx, const mx_event *e, mx_error *err)
{
    following *f = ctx;
    return is_priced(f->flags[e->type], e) ? mx_price_ranks_add(f->to, e->category, e->ts_ms, e->price_minor, err) : MX_OK;
}

static void type_flags(const mx_user_graph *g, uint32_t flags[MX_EVENT_TYPES])
{
    mx_event_type t;
    for (int32_t i = 0; i < MX_EVENT_TYPES; i++) flags[i] = mx_user_graph_event_type(g, i, &t) ? t.flags : 0;
}

mx_status mx_price_ranks_follow(mx_price_ranks *p, const mx_user_graph *g, uint64_t *cursor, mx_error *err)
{
    following f = {.to = p};
    type_flags(g, f.flags);
    return mx_user_graph_each(g, cursor, take, &f, err);
}

/* ---- figures -------------------------------------------------------------------------------- */

static void tally(mx_behaviour *b, const mx_event *e, uint32_t flags, int w)
{
    int64_t spent = 0;
    b->count[e->type][w]++;
    b->events[w]++;
    b->social[w] += (flags & MX_TYPE_SOCIAL) != 0;
    if (!(flags & MX_TYPE_PURCHASE)) return;
    b->purchases[w]++;
    b->promo[w] += (e->flags & MX_EVENT_PROMO) != 0;
    if (e->price_minor < 0 || __builtin_mul_overflow(e->price_minor, (int64_t)e->quantity, &spent) ||
        __builtin_add_overflow(b->spent_minor[w], spent, &b->spent_minor[w]))
        return;
}

void mx_behaviour_from(const mx_user_graph *g, const mx_event *e, int32_t n, const mx_price_ranks *prices, int64_t as_of_ms, mx_behaviour *b)
{
    static const int64_t length[MX_WINDOWS] = {7 * DAY_MS, 28 * DAY_MS, INT64_MAX};
    uint32_t flags[MX_EVENT_TYPES], days = 0;
    double ranks = 0;
    int64_t ranked = 0;
    type_flags(g, flags);
    *b = (mx_behaviour){.as_of_ms = as_of_ms, .first_ms = -1, .last_ms = -1, .last_purchase_ms = -1};
    for (int32_t i = 0; i < n; i++, e++) {
        if (e->ts_ms > as_of_ms) continue;
        int64_t age = as_of_ms - e->ts_ms;
        for (int w = 0; w < MX_WINDOWS; w++)
            if (age < length[w]) tally(b, e, flags[e->type], w);
        if (age < 28 * DAY_MS) days |= 1u << (age / DAY_MS);
        if (b->first_ms < 0 || e->ts_ms < b->first_ms) b->first_ms = e->ts_ms;
        if (e->ts_ms > b->last_ms) b->last_ms = e->ts_ms;
        if (flags[e->type] & MX_TYPE_PURCHASE && e->ts_ms > b->last_purchase_ms) b->last_purchase_ms = e->ts_ms;
        b->texts += e->text && *e->text;
        b->dwell_s += (double)e->dwell_s;
        double rank = prices && is_priced(flags[e->type], e) ? mx_price_ranks_of(prices, e->category, e->price_minor, as_of_ms) : -1;
        if (rank >= 0) {
            ranks += rank;
            ranked++;
        }
    }
    b->days_28d = __builtin_popcount(days);
    b->price_rank = ranked ? ranks / (double)ranked : -1;
}

mx_status mx_behaviour_of(const mx_user_graph *g, int32_t subject, const mx_price_ranks *prices, int64_t as_of_ms, mx_event_list *list, mx_behaviour *out, mx_error *err)
{
    MX_TRY(mx_user_graph_events(g, subject, as_of_ms, 0, list, err));
    mx_behaviour_from(g, list->event, list->count, prices, as_of_ms, out);
    return MX_OK;
}

/* ---- as a vector ------------------------------------------------------------------------------ */

enum { SINGLE = 8 };
static const char *const window_name[MX_WINDOWS] = {"7d", "28d", "all"};
static const char *const single_name[SINGLE] = {"days_since_event", "days_since_purchase", "days_known", "days_28d", "promo_share", "price_rank", "texts", "dwell_s"};

int32_t mx_behaviour_width(int32_t event_types) { return MX_WINDOWS * (event_types + 1) + SINGLE; }

static float log_of(double x) { return x > 0 ? (float)log1p(x) : 0; }
static float days(int64_t since_ms, int64_t as_of_ms) { return since_ms < 0 ? 0 : log_of((double)(as_of_ms - since_ms) / (double)DAY_MS); }

void mx_behaviour_vector(const mx_behaviour *b, int32_t event_types, float *to)
{
    for (int32_t t = 0; t < event_types; t++)
        for (int w = 0; w < MX_WINDOWS; w++) *to++ = log_of((double)b->count[t][w]);
    for (int w = 0; w < MX_WINDOWS; w++) *to++ = log_of((double)b->spent_minor[w] / 100);
    *to++ = days(b->last_ms, b->as_of_ms);
    *to++ = days(b->last_purchase_ms, b->as_of_ms);
    *to++ = days(b->first_ms, b->as_of_ms);
    *to++ = log_of((double)b->days_28d);
    *to++ = b->purchases[MX_WINDOW_ALL] ? (float)((double)b->promo[MX_WINDOW_ALL] / (double)b->purchases[MX_WINDOW_ALL]) : 0;
    *to++ = b->price_rank < 0 ? 0 : (float)b->price_rank;
    *to++ = log_of((double)b->texts);
    *to = log_of(b->dwell_s);
}

void mx_behaviour_name(const mx_user_graph *g, int32_t event_types, int32_t i, char name[64])
{
    mx_event_type t;
    int32_t of = i / MX_WINDOWS;
    if (i >= MX_WINDOWS * (event_types + 1)) snprintf(name, 64, "%s", single_name[(i - MX_WINDOWS * (event_types + 1)) % SINGLE]);
    else snprintf(name, 64, "%s_%s", of < event_types && mx_user_graph_event_type(g, of, &t) ? t.name : "spent", window_name[i % MX_WINDOWS]);
}
