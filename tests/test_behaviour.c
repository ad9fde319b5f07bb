/* test_behaviour.c - figures of subjects as of any time, against counting by hand; nothing later is ever seen. */
#include "models/behaviour.h"
#include "tests/test.h"

#include <sys/stat.h>
#include <unistd.h>

enum { USERS = 12, EVENTS = 600 };
#define DAY 86400000LL
#define START 1700000000000LL

static mx_event e[EVENTS];
static char     ids[EVENTS][12], users[USERS][8];
static char     folder[128];

static mx_user_graph *open_graph(void)
{
    mx_error err = {0};
    mx_user_graph *g = NULL;
    snprintf(folder, sizeof folder, "/tmp/merx-test-behaviour-%d", (int)getpid());
    CHECK_OK(mx_user_graph_open(&g, folder, NULL, &err), err);
    CHECK_OK(mx_user_graph_declare_usual(g, &err), err);
    return g;
}

static void close_graph(mx_user_graph *g)
{
    static const char *const name[] = {"log-0000000000000000", "lock", "snapshot"};
    char path[200];
    mx_user_graph_close(g);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, name[i]);
        unlink(path);
    }
    rmdir(folder);
}

static void draw_events(uint64_t *seed)
{
    static const char *const category[] = {"shoes", "tea", ""};
    for (int i = 0; i < USERS; i++) snprintf(users[i], sizeof users[i], "u%d", i);
    for (int i = 0; i < EVENTS; i++) {
        e[i] = mx_event_defaults();
        snprintf(ids[i], sizeof ids[i], "e%d", i);
        e[i].id = ids[i];
        e[i].type = (int32_t)(test_random(seed) % 3) * (test_random(seed) % 4 ? 1 : 3);       /* view, cart, buy, rate, visit */
        e[i].subject = users[test_random(seed) % USERS];
        e[i].object = "thing";
        e[i].ts_ms = START + (int64_t)(test_random(seed) % (60 * (uint64_t)DAY));
        e[i].price_minor = (int64_t)(test_random(seed) % 50) * 10 - 10;
        if (e[i].price_minor < 0) e[i].price_minor = -1;
        e[i].quantity = (int32_t)(test_random(seed) % 4);
        e[i].flags = test_random(seed) % 3 ? 0 : MX_EVENT_PROMO;
        e[i].category = category[test_random(seed) % 3];
        e[i].dwell_s = (float)(test_random(seed) % 100);
        e[i].text = test_random(seed) % 5 ? "" : "words";
    }
}

/* The same by definition, over all events. */
static mx_behaviour by_hand(const char *user, int64_t as_of)
{
    mx_behaviour b = {.as_of_ms = as_of, .first_ms = -1, .last_ms = -1, .last_purchase_ms = -1, .price_rank = -1};
    static const int64_t window[] = {7 * DAY, 28 * DAY, INT64_MAX};
    bool day[28] = {false};
    double ranks = 0;
    int ranked = 0;
    for (int i = 0; i < EVENTS; i++) {
        if (strcmp(e[i].subject, user) || e[i].ts_ms > as_of) continue;
        bool buy = e[i].type == 2;
        for (int w = 0; w < 3; w++) {
            if (as_of - e[i].ts_ms >= window[w]) continue;
            b.count[e[i].type][w]++;
            b.events[w]++;
            if (buy) b.purchases[w]++;
            if (buy && e[i].flags) b.promo[w]++;
            if (buy && e[i].price_minor >= 0) b.spent_minor[w] += e[i].price_minor * e[i].quantity;
        }
        for (int d = 0; d < 28; d++) day[d] |= e[i].ts_ms > as_of - (d + 1) * DAY && e[i].ts_ms <= as_of - d * DAY;
        if (b.first_ms < 0 || e[i].ts_ms < b.first_ms) b.first_ms = e[i].ts_ms;
        if (e[i].ts_ms > b.last_ms) b.last_ms = e[i].ts_ms;
        if (buy && e[i].ts_ms > b.last_purchase_ms) b.last_purchase_ms = e[i].ts_ms;
        if (*e[i].text) b.texts++;
        b.dwell_s += (double)e[i].dwell_s;
        if (!buy || e[i].price_minor < 0 || !*e[i].category) continue;
        double below = 0, n = 0;
        for (int k = 0; k < EVENTS; k++) {
            if (e[k].type != 2 || e[k].ts_ms > as_of || e[k].price_minor < 0 || strcmp(e[k].category, e[i].category)) continue;
            n++;
            below += e[k].price_minor < e[i].price_minor ? 1 : e[k].price_minor == e[i].price_minor ? 0.5 : 0;
        }
        ranks += below / n;
        ranked++;
    }
    for (int d = 0; d < 28; d++) b.days_28d += day[d];
    if (ranked) b.price_rank = ranks / ranked;
    return b;
}

static bool equal(const mx_behaviour *a, const mx_behaviour *b)
{
    return !memcmp(a->count, b->count, sizeof a->count) && !memcmp(a->events, b->events, sizeof a->events) && !memcmp(a->purchases, b->purchases, sizeof a->purchases) &&
           !memcmp(a->promo, b->promo, sizeof a->promo) && !memcmp(a->spent_minor, b->spent_minor, sizeof a->spent_minor) && a->first_ms == b->first_ms &&
           a->last_ms == b->last_ms && a->last_purchase_ms == b->last_purchase_ms && a->days_28d == b->days_28d && a->texts == b->texts && a->dwell_s == b->dwell_s &&
           fabs(a->price_rank - b->price_rank) < 1e-12;
}

static void as_of_any_time(void)
{
    uint64_t seed = 3;
    mx_error err = {0};
    mx_put_ack ack;
    mx_user_graph *g = open_graph();
    mx_price_ranks *p = NULL;
    uint64_t cursor = 0;
    mx_event_list list = {0};
    draw_events(&seed);
    CHECK_OK(mx_price_ranks_open(&p, &err), err);
    CHECK_OK(mx_user_graph_put(g, e, EVENTS / 2, 0, NULL, &ack, &err), err);
    CHECK_OK(mx_price_ranks_follow(p, g, &cursor, &err), err);
    CHECK_OK(mx_user_graph_merge(g, &err), err);
    CHECK_OK(mx_user_graph_put(g, e + EVENTS / 2, EVENTS - EVENTS / 2, 0, NULL, &ack, &err), err);
    CHECK_OK(mx_price_ranks_follow(p, g, &cursor, &err), err);
    int right = 0, rounds = 300;
    for (int i = 0; i < rounds; i++) {
        const char *user = users[test_random(&seed) % USERS];
        int64_t as_of = i % 3 ? START + (int64_t)(test_random(&seed) % (62 * (uint64_t)DAY)) : e[test_random(&seed) % EVENTS].ts_ms;      /* at an event's very moment */
        mx_behaviour got, want = by_hand(user, as_of);
        CHECK_OK(mx_behaviour_of(g, mx_user_graph_find(g, 0, user), p, as_of, &list, &got, &err), err);
        right += equal(&got, &want);
    }
    CHECK_MSG(right == rounds, "%d of %d", right, rounds);
    mx_event_list_free(&list);
    mx_price_ranks_close(p);
    close_graph(g);
}

/* What comes after as_of, late or in time, changes nothing of what is read as of then. */
static void blind_to_the_future(void)
{
    uint64_t seed = 4;
    mx_error err = {0};
    mx_put_ack ack;
    mx_user_graph *g = open_graph();
    mx_event_list list = {0};
    mx_behaviour first, then;
    int64_t as_of = START + 30 * DAY;
    draw_events(&seed);
    for (int i = 0; i < EVENTS; i++)
        if (e[i].ts_ms <= as_of) CHECK_OK(mx_user_graph_put(g, &e[i], 1, 0, NULL, &ack, &err), err);
    CHECK_OK(mx_behaviour_of(g, mx_user_graph_find(g, 0, "u1"), NULL, as_of, &list, &first, &err), err);
    for (int i = 0; i < EVENTS; i++)
        if (e[i].ts_ms > as_of) CHECK_OK(mx_user_graph_put(g, &e[i], 1, 0, NULL, &ack, &err), err);
    CHECK_OK(mx_behaviour_of(g, mx_user_graph_find(g, 0, "u1"), NULL, as_of, &list, &then, &err), err);
    CHECK(first.events[MX_WINDOW_ALL] > 0 && equal(&first, &then));
    float x[200];
    char name[64];
    int32_t types = mx_user_graph_event_types(g), width = mx_behaviour_width(types);
    CHECK(width == 3 * 11 + 8 && width < 200);
    mx_behaviour_vector(&first, types, x);
    for (int32_t i = 0; i < width; i++) CHECK(isfinite(x[i]) && x[i] >= 0);
    mx_behaviour_name(g, types, 2 * 3 + 1, name);
    CHECK_STR(name, "buy_28d");
    CHECK(x[7] == (float)log1p((double)first.count[2][MX_WINDOW_28D]));
    mx_behaviour_name(g, types, width - 8, name);
    CHECK_STR(name, "days_since_event");
    mx_behaviour_name(g, types, 3 * types, name);
    CHECK_STR(name, "spent_7d");
    mx_event_list_free(&list);
    close_graph(g);
}

MX_TESTS(TEST(as_of_any_time), TEST(blind_to_the_future))
