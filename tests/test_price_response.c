/* test_price_response.c - what users look at and buy becomes their own reaction to price, and part of a label with evidence. */
#include "server/profiles.h"
#include "runtime/slab.h"
#include "tests/test.h"

#include <ftw.h>
#include <time.h>
#include <unistd.h>

typedef struct waiting { mx_profiles_op op; atomic_bool over; } waiting;

static void over(mx_profiles_op *op)
{
    atomic_store(&((waiting *)op)->over, true);
}

static int remove_one(const char *path, const struct stat *s, int flag, struct FTW *f)
{
    (void)s, (void)flag, (void)f;
    return remove(path);
}

/* Of 21 users all look at the same twenty prices; "keen" buys the lowest ones, "rich" the highest, the others every fourth. */
enum { OTHERS = 19, PRICES = 20, EVENTS = (OTHERS + 2) * PRICES * 2 };

static uint64_t fill(mx_profiles *p)
{
    static Merx__V1__Event e[EVENTS], *list[EVENTS];
    static char text[EVENTS][2][24];
    waiting w = {.op = {.run = mx_profiles_put, .done = over}};
    Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    int64_t now = (int64_t)ts.tv_sec * 1000 - 3600000;
    size_t n = 0;
    for (int u = 0; u < OTHERS + 2; u++)
        for (int k = 0; k < 2 * PRICES; k++) {
            int price = k / 2;
            bool buys = u == 0 ? price < 5 : u == 1 ? price >= 15 : (price + u) % 4 == 0;
            if (k % 2 && !buys) continue;
            merx__v1__event__init(&e[n]);
            snprintf(text[n][0], sizeof *text[n], "e%d.%d", u, k);
            snprintf(text[n][1], sizeof *text[n], u == 0 ? "keen" : u == 1 ? "rich" : "u%d", u);
            e[n].event_id = text[n][0], e[n].user = text[n][1], e[n].object = "shoe", e[n].category = "shoes", e[n].currency = "EUR";
            e[n].type = k % 2 ? "buy" : "view", e[n].price_minor = 1000 + 500 * price, e[n].promo = k % 2 && u < 2, e[n].ts_ms = now + k;
            list[n] = &e[n], n++;
        }
    q.events = list, q.n_events = n;
    w.op.request = &q.base;
    mx_profiles_submit(p, &w.op);
    while (!atomic_load(&w.over)) usleep(100);
    Merx__V1__EventsAck *r = w.op.answer ? merx__v1__events_ack__unpack(NULL, w.op.size, w.op.answer) : NULL;
    CHECK_MSG(r && r->accepted == (int)n, "%s", w.op.err.text);
    uint64_t mark = r ? r->watermark : 0;
    if (r) merx__v1__events_ack__free_unpacked(r, NULL);
    mx_slab_free(w.op.answer);
    return mark;
}

static Merx__V1__Profile *profile(mx_profiles *p, const char *user)
{
    const mx_profile_view *v = NULL;
    mx_error err = {0};
    CHECK_OK(mx_profiles_get(p, user, &v, &err), err);
    Merx__V1__Profile *m = v ? merx__v1__profile__unpack(NULL, v->size, v->bytes) : NULL;
    if (v) mx_profile_release(v);
    CHECK(m != NULL);
    return m;
}

static double feature(const Merx__V1__Profile *m, const char *name)
{
    for (size_t i = 0; m && i < m->n_features; i++)
        if (!strcmp(m->features[i]->name, name)) return m->features[i]->value;
    return -1;
}

/* The weight of the rule on price_response that holds, and whether the evidence adds up. */
static double rule_of(const Merx__V1__Profile *m, bool *in)
{
    for (size_t i = 0; m && i < m->n_tags; i++) {
        const Merx__V1__Tag *t = m->tags[i];
        if (strcmp(t->name, "price-sensitive")) continue;
        double sum = t->base_score + t->rest, weight = 0;
        for (size_t k = 0; k < t->n_evidence; k++) {
            sum += t->evidence[k]->weight;
            if (t->evidence[k]->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_RULE && strstr(t->evidence[k]->text, "price_response")) weight += t->evidence[k]->weight;
        }
        CHECK_MSG(fabs(sum - t->score) < 1e-9, "evidence %g, score %g", sum, t->score);
        *in = t->state == MERX__V1__TAG_STATE__TAG_ENTERED || t->state == MERX__V1__TAG_STATE__TAG_ACTIVE;
        return weight;
    }
    return 0;
}

static void the_users_own_choices_count(void)
{
    char folder[] = "/tmp/merx-price-response-XXXXXX";
    mx_profiles *p = NULL;
    mx_error err = {0};
    bool in = false;
    CHECK(mkdtemp(folder) != NULL);
    CHECK_OK(mx_profiles_open(&p, folder, &(mx_profiles_options){0}, &err), err);
    uint64_t mark = p ? fill(p) : 0;
    for (int i = 0; p && i < 10000 && mx_profiles_visible(p) < mark; i++) usleep(1000);
    if (p) {
        Merx__V1__Profile *keen = profile(p, "keen"), *rich = profile(p, "rich"), *other = profile(p, "u7");
        CHECK_MSG(feature(keen, "price_response") > 0.7 && feature(rich, "price_response") < 0.3 && fabs(feature(other, "price_response") - 0.5) < 0.1, "%g %g %g",
                  feature(keen, "price_response"), feature(rich, "price_response"), feature(other, "price_response"));
        CHECK_MSG(rule_of(keen, &in) == 1 && in, "keen: %g", rule_of(keen, &in));
        CHECK_MSG(rule_of(rich, &in) == -1.5 && !in, "rich: %g", rule_of(rich, &in));         /* as many reductions, and not for the price */
        CHECK_MSG(rule_of(other, &in) == 0 && !in, "other: %g", rule_of(other, &in));
        Merx__V1__Profile *all[] = {keen, rich, other};
        for (int i = 0; i < 3; i++)
            if (all[i]) merx__v1__profile__free_unpacked(all[i], NULL);
    }
    mx_profiles_close(p);
    nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

MX_TESTS(TEST(the_users_own_choices_count))
