/* test_guardrail.c - a million random sets of rules against brute force: no price that
 * breaks a rule, no infeasible set that is not reported, and the nearest price. */
#include "models/guardrail.h"
#include "tests/test.h"

enum { MOST = 400 };

static uint64_t state = 77;

static int64_t below(int64_t n)
{
    return (int64_t)(test_random(&state) % (uint64_t)n);
}

static bool chance(int percent)
{
    return below(100) < percent;
}

/* The rules by their words, for one price; independent of guardrail.c's intervals. */
static bool feasible(const mx_guardrails *g, const mx_price_state *s, int64_t p)
{
    double x = (double)p, hair = 1e-6;
    if (p < 1) return false;
    if (g->legal_floor && p < g->legal_floor) return false;
    if (g->legal_ceiling && p > g->legal_ceiling) return false;
    if (g->floor && p < g->floor) return false;
    if (g->ceiling && p > g->ceiling) return false;
    if (g->map_price && p < g->map_price) return false;
    if (g->min_margin_pct > 0 && x < (double)s->cost / (1 - g->min_margin_pct / 100) - hair) return false;
    if (s->n_competitors) {
        int64_t least = INT64_MAX, most = 0;
        for (int i = 0; i < s->n_competitors; i++) {
            if (s->competitors[i] < least) least = s->competitors[i];
            if (s->competitors[i] > most) most = s->competitors[i];
        }
        if (g->competitor_low_pct > 0 && x < (double)least * g->competitor_low_pct / 100 - hair) return false;
        if (g->competitor_high_pct > 0 && x > (double)most * g->competitor_high_pct / 100 + hair) return false;
    }
    if (s->published) {
        for (int i = 0; i < g->n_blackouts; i++)
            if (s->now_ms >= g->blackout[i].from_ms && s->now_ms < g->blackout[i].to_ms && p != s->published) return false;
        if (g->min_dwell_ms && s->now_ms - s->changed_ms < g->min_dwell_ms && p != s->published) return false;
        if (g->max_change_pct_step > 0 && fabs(x - (double)s->published) > (double)s->published * g->max_change_pct_step / 100 + hair) return false;
    }
    if (s->parity_price && p != s->parity_price) return false;
    if (s->day_open && g->max_change_pct_day > 0 && fabs(x - (double)s->day_open) > (double)s->day_open * g->max_change_pct_day / 100 + hair) return false;
    bool ends = g->n_endings == 0;
    for (int i = 0; i < g->n_endings; i++) ends |= p % g->ending[i].modulus == g->ending[i].remainder;
    return ends;
}

static void random_set(mx_guardrails *g, mx_price_state *s, mx_blackout *blackout, int64_t *rivals)
{
    *g = (mx_guardrails){0};
    *s = (mx_price_state){.now_ms = 1000, .published = chance(80) ? 1 + below(MOST - 1) : 0, .changed_ms = below(1000), .cost = 1 + below(200)};
    if (chance(30)) g->legal_floor = 1 + below(150);
    if (chance(30)) g->legal_ceiling = 150 + below(250);
    if (chance(50)) g->floor = 1 + below(200);
    if (chance(50)) g->ceiling = g->floor + 1 + below(250);
    if (chance(40)) g->min_margin_pct = (double)below(60) + 0.5;
    if (chance(20)) g->map_price = 1 + below(250);
    if (chance(50)) g->max_change_pct_step = (double)(1 + below(40));
    if (chance(40)) g->max_change_pct_day = (double)(1 + below(60));
    if (chance(15)) g->min_dwell_ms = 1 + below(1500);
    if (chance(40)) g->competitor_low_pct = 80 + (double)below(20);
    if (chance(40)) g->competitor_high_pct = 100 + (double)below(30);
    if (chance(20)) g->approval_pct = 5;
    if (chance(80)) s->day_open = 1 + below(MOST - 1);
    if (chance(5)) s->parity_price = 1 + below(MOST - 1);
    s->n_competitors = (int32_t)below(4);
    for (int i = 0; i < s->n_competitors; i++) rivals[i] = 1 + below(MOST - 100);
    s->competitors = rivals;
    if (chance(10)) {
        *blackout = (mx_blackout){below(1500), 1500 + below(10)};
        g->blackout = blackout;
        g->n_blackouts = 1;
    }
    g->n_endings = chance(50) ? (int32_t)(1 + below(3)) : 0;
    for (int i = 0; i < g->n_endings; i++) {
        g->ending[i].modulus = chance(50) ? 10 : 1 + below(100);
        g->ending[i].remainder = below(g->ending[i].modulus);
    }
}

static void a_million_sets(void)
{
    int n = 1000000, none = 0, wrong = 0;
    for (int k = 0; k < n && wrong < 5; k++) {
        mx_guardrails g;
        mx_price_state s;
        mx_blackout blackout;
        int64_t rivals[4], best = 0, raw = 1 + below(MOST - 1);
        mx_guarded out;
        mx_error err = {0};
        random_set(&g, &s, &blackout, rivals);
        bool check = k % 8 == 0;                     /* brute force for an eighth, the promise for all */
        for (int64_t p = 1; check && p < 4 * MOST; p++)
            if (feasible(&g, &s, p) && (!best || llabs(p - raw) < llabs(best - raw))) best = p;
        mx_status st = mx_guard(&g, &s, raw, &out, &err);
        none += st == MX_ERR_STATE;
        if (!st && !feasible(&g, &s, out.price)) {
            wrong++;
            CHECK_MSG(false, "set %d: %lld breaks a rule", k, (long long)out.price);
        }
        if (check && (st == MX_ERR_STATE) != (best == 0)) {
            wrong++;
            CHECK_MSG(false, "set %d: %s, but the best is %lld", k, st ? err.text : "a price", (long long)best);
        }
        if (check && !st && out.price != best) {
            wrong++;
            CHECK_MSG(false, "set %d: %lld is not the nearest to %lld: %lld", k, (long long)out.price, (long long)raw, (long long)best);
        }
        if (st == MX_ERR_STATE && !strstr(err.text, "no price is feasible")) {
            wrong++;
            CHECK_MSG(false, "%s", err.text);
        }
        int64_t ladder[7] = {raw, raw + 1, raw * 9 / 10, raw * 11 / 10, s.published, raw / 2, out.price};
        uint8_t mask[7];
        int32_t allowed = mx_guard_mask(&g, &s, ladder, st ? 6 : 7, mask), seen = 0;     /* what a learned policy may choose from */
        for (int i = 0; i < (st ? 6 : 7); i++) {
            seen += mask[i];
            if (mask[i] != feasible(&g, &s, ladder[i]) && !(st == MX_ERR_ARG)) {
                wrong++;
                CHECK_MSG(false, "set %d: the mask says %d of %lld", k, mask[i], (long long)ladder[i]);
            }
        }
        wrong += seen != allowed || (!st && !mask[6]);
        if (!st && out.n_applied) {
            const mx_applied *last = &out.applied[out.n_applied - 1];
            if (out.applied[0].before != raw || last->after != out.price) {
            wrong++;
            CHECK_MSG(false, "set %d: the list of rules does not lead from raw to price", k);
        }
        }
    }
    CHECK_MSG(none > n / 20 && none < n * 9 / 10, "%d of %d are infeasible", none, n);
}

static void told_in_words(void)
{
    mx_guardrails g = {.floor = 500, .ceiling = 900, .max_change_pct_step = 10, .approval_pct = 5, .n_endings = 1, .ending = {{100, 99}}};
    mx_price_state s = {.published = 700, .now_ms = 1};
    mx_guarded out;
    mx_error err = {0};
    CHECK_OK(mx_guard(&g, &s, 2000, &out, &err), err);
    CHECK_MSG(out.price == 699 && out.raw == 2000 && !out.needs_approval, "%lld", (long long)out.price);
    CHECK(out.n_applied >= 2 && out.applied[0].rule == MX_RULE_CHANGE_STEP && out.applied[0].before == 2000 && out.applied[0].after == 770);
    g.n_endings = 0;
    CHECK_OK(mx_guard(&g, &s, 2000, &out, &err), err);
    CHECK(out.price == 770 && out.needs_approval && out.applied[0].binding);
    s.published = 400;
    CHECK(mx_guard(&g, &s, 450, &out, &err) == MX_ERR_STATE);
    CHECK_MSG(strstr(err.text, "floor") && strstr(err.text, "max_change_step") && strstr(err.text, "360..440"), "%s", err.text);
    mx_guardrails m = {.min_margin_pct = 20};
    mx_price_state unknown = {0};
    CHECK(mx_guard(&m, &unknown, 450, &out, &err) == MX_ERR_STATE && strstr(err.text, "cost"));
    mx_price_state known = {.cost = 800};
    CHECK_OK(mx_guard(&m, &known, 450, &out, &err), err);
    CHECK(out.price == 1000 && out.applied[0].rule == MX_RULE_MARGIN);
    mx_guardrails e = {.floor = 101, .ceiling = 198, .n_endings = 1, .ending = {{100, 99}}};
    CHECK(mx_guard(&e, &unknown, 150, &out, &err) == MX_ERR_STATE && strstr(err.text, "ending"));
}

static void bad_rules(void)
{
    const struct { mx_guardrails g; const char *part; } bad[] = {
        {{.floor = -1}, "floor"}, {{.floor = 10, .ceiling = 5}, "ceiling"}, {{.min_margin_pct = 100}, "min_margin_pct"},
        {{.max_change_pct_step = NAN}, "max_change_pct_step"}, {{.n_endings = 17}, "endings"}, {{.n_endings = 1, .ending = {{10, 10}}}, "endings[0]"},
        {{.n_endings = 1, .ending = {{0, 0}}}, "endings[0]"}, {{.legal_floor = 2, .legal_ceiling = 1}, "legal_floor"},
    };
    mx_price_state s = {0};
    mx_guarded out;
    mx_error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        CHECK(mx_guard(&bad[i].g, &s, 100, &out, &err) == MX_ERR_ARG);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
    mx_guardrails none = {0};
    CHECK(mx_guard(&none, &s, 0, &out, &err) == MX_ERR_ARG && strstr(err.text, "price"));
    CHECK(mx_guard(&none, &s, INT64_MAX, &out, &err) == MX_ERR_ARG);
    s.cost = -5;
    CHECK(mx_guard(&none, &s, 100, &out, &err) == MX_ERR_ARG && strstr(err.text, "cost"));
}

MX_TESTS(TEST(a_million_sets), TEST(told_in_words), TEST(bad_rules))
