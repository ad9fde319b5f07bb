/* test_market.c - a market whose equations are known: they are found again from a panel
 * drawn from them, its shelves keep their books, and the yardsticks do what they say.
 *     MX_ORANGE_JUICE=FILE.csv.gz   bayesm's panel; ../shared/data when it is there */
#include "models/market_table.h"
#include "models/price_seen.h"
#include "tests/test.h"

#include <unistd.h>

enum { BRANDS = 3, STORES = 12, WEEKS = 90 };

static const double own[BRANDS] = {-2.5, -3.5, -1.5}, before[BRANDS] = {0.4, 0.2, 0.3}, feat[BRANDS] = {0.6, 0.8, 0.4};
static char panel[256];
static uint64_t state = 5;

static double uniform(void)
{
    return (double)(test_random(&state) >> 11) * 0x1p-53;
}

static double normal(void)
{
    double sum = 0;
    for (int i = 0; i < 12; i++) sum += uniform();
    return sum - 6;
}

static void write_panel(const char *header, const char *extra)
{
    static double price[STORES][WEEKS][BRANDS];
    snprintf(panel, sizeof panel, MX_BINARY_DIR "/test_market.%d.csv", (int)getpid());
    FILE *f = fopen(panel, "w");
    if (!f) return;
    state = 5;
    for (int s = 0; s < STORES; s++)
        for (int w = 0; w < WEEKS; w++)
            for (int b = 0; b < BRANDS; b++) price[s][w][b] = (0.03 + 0.005 * b) * exp(0.2 * (uniform() - 0.5));
    fprintf(f, "%s", header);
    for (int s = 0; s < STORES; s++)
        for (int b = 0; b < BRANDS; b++)
            for (int w = 0; w < WEEKS; w++) {
                const double *p = price[s][w], *last = price[s][w ? w - 1 : 0];
                int deal = uniform() < 0.3, featured = uniform() < 0.2;
                double q = 0.1 * s + own[b] * log(p[b]) + before[b] * log(last[b]) + 0.1 * deal + feat[b] * featured + 0.1 * normal();
                for (int k = 0; k < BRANDS; k++) q += k == b ? 0 : 0.3 * log(p[k]);
                fprintf(f, "%d,%d,%d,%.10f,1,%.10f,%.10f,%.10f,%d,%d,%.6f\n", 100 + s, b + 1, 40 + w, q + log(64), p[0], p[1], p[2], deal, featured, 100 * (1 - 0.02 / p[b]));
            }
    fprintf(f, "%s", extra);
    fclose(f);
}

#define HEADER "\"store\",\"brand\",\"week\",\"logmove\",\"constant\",\"price1\",\"price2\",\"price3\",\"deal\",\"feat\",\"profit\"\n"

static void equations_found_again(void)
{
    static const int parts[4] = {MX_MARKET_LEARN, MX_MARKET_HELD_OUT, MX_MARKET_LEARN, MX_MARKET_CHOOSE};
    mx_market m;
    mx_error err = {0};
    write_panel(HEADER, "");
    for (int kind = MX_MARKET_LEARN; kind <= MX_MARKET_HELD_OUT; kind++) {
        CHECK_OK(mx_market_open(&m, panel, (mx_market_stores)kind, 30, &err), err);
        CHECK(m.brands == BRANDS && m.n_pairs == BRANDS * (kind == MX_MARKET_LEARN ? 6 : 3));
        for (int b = 0; b < m.brands; b++) {
            CHECK_MSG(fabs(m.brand[b].own - own[b]) < 0.35 && fabs(m.brand[b].before - before[b]) < 0.35 && fabs(m.brand[b].feat - feat[b]) < 0.05,
                      "brand %d: %.3f %.3f %.3f", b, m.brand[b].own, m.brand[b].before, m.brand[b].feat);
            CHECK(fabs(m.brand[b].sigma - 0.1) < 0.02 && m.brand[b].spread < 0.2 && fabs(m.brand[b].rival[(b + 1) % 3] - 0.3) < 0.15 && m.brand[b].rival[b] == 0);
            CHECK((m.brand[b].own == m.known[b].own) == (kind == MX_MARKET_LEARN));
        }
        for (int64_t i = 0; i < m.n_pairs; i++) {
            const mx_market_pair *q = &m.pair[i];
            CHECK(q->weeks == WEEKS && parts[(q->store - 100) % 4] == kind && fabs(q->cost - 0.02 * 6400) < 0.5 && fabs(q->own - own[q->brand]) < 0.4);
        }
        mx_market_close(&m);
    }
    unlink(panel);
}

static void wrong_panels(void)
{
    const struct { const char *header, *extra, *part; } bad[] = {
        {"store,brand,week\n", "", "logmove"}, {"store,brand,week,logmove,deal,feat,profit\n", "", "price1"},
        {HEADER, "1,2,x,4,1,1,1,1,0,0,1\n", "column 3"}, {HEADER, "1,9,3,4,1,1,1,1,0,0,1\n", "brand is 9"}, {HEADER, "1,2\n", "missing"},
        {HEADER, "1,2,3,4,1,0,1,1,0,0,1\n", "price1 is 0"}, {HEADER, "1,2,3,4,1,1,1,1,0,0,100\n", "profit"},
    };
    mx_market m;
    mx_error err = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_panel(bad[i].header, bad[i].extra);
        CHECK(mx_market_open(&m, panel, MX_MARKET_LEARN, 30, &err) != MX_OK);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
    unlink(panel);
    CHECK(mx_market_open(&m, "/nowhere.csv", MX_MARKET_LEARN, 30, &err) == MX_ERR_IO);
}

/* Margin of all rows in cents, 26 weeks of a rule; NULL closes nothing. */
static double play(const char *name, int64_t rows, mx_market_rule rule, uint64_t seed)
{
    mx_env e;
    mx_error err = {0};
    int32_t *action = calloc((size_t)rows, sizeof *action);
    float *reward = calloc((size_t)rows, sizeof *reward), *seen = calloc((size_t)rows * MX_PRICE_SEEN, sizeof *seen);
    uint8_t *over = calloc((size_t)rows, 2), *mask = calloc((size_t)rows, MX_LADDER);
    double sum = 0;
    CHECK_OK(mx_env_open(&e, name, rows, seed, &err), err);
    for (int w = 0; e.world && w < MX_MARKET_WEEKS; w++) {
        mx_env_observe(&e, 0, rows, seen, mask);
        for (int64_t i = 0; i < rows; i++) {
            action[i] = mx_market_act(&e, i, rule);
            CHECK(action[i] >= 0 && action[i] < MX_LADDER && mask[i * MX_LADDER + action[i]]);
            for (int k = 0; k < MX_PRICE_SEEN; k++) CHECK(isfinite(seen[i * MX_PRICE_SEEN + k]) && fabsf(seen[i * MX_PRICE_SEEN + k]) <= 3);
        }
        mx_env_step(&e, 0, rows, action, reward, over, over + rows);
        for (int64_t i = 0; i < rows; i++) CHECK(!over[i] && over[rows + i] == (w == MX_MARKET_WEEKS - 1));
    }
    for (int64_t i = 0; e.world && i < rows; i++) {
        const mx_market_shelf *s = mx_market_shelf_of(&e, i);
        const mx_market_pair *q = &mx_market_of(&e)->pair[s->pair];
        CHECK(s->price >= 1 && (double)s->price < 1.36 * q->reference && s->stock >= 0 && isfinite(e.row[i].earned));
        sum += s->margin;
    }
    mx_env_close(&e);
    free(action), free(reward), free(seen), free(over), free(mask);
    return sum;
}

static void yardsticks(void)
{
    char name[300];
    double earned[MX_MARKET_RULES];
    write_panel(HEADER, "");
    snprintf(name, sizeof name, "market:%s,held-out", panel);
    for (mx_market_rule r = 0; r < MX_MARKET_RULES; r++) earned[r] = play(name, 18, r, 3);
    CHECK(earned[MX_MARKET_ORACLE] > earned[MX_MARKET_GALLEGO] && earned[MX_MARKET_ORACLE] > earned[MX_MARKET_THOMPSON]);
    CHECK_MSG(earned[MX_MARKET_GALLEGO] > 1.02 * earned[MX_MARKET_ELASTICITY], "%.0f %.0f", earned[MX_MARKET_GALLEGO], earned[MX_MARKET_ELASTICITY]);      /* stock is short */
    CHECK(play(name, 18, MX_MARKET_THOMPSON, 3) == earned[MX_MARKET_THOMPSON] && play(name, 18, MX_MARKET_THOMPSON, 4) != earned[MX_MARKET_THOMPSON]);
    mx_env e;
    mx_error err = {0};
    CHECK(mx_env_open(&e, "market", 8, 1, &err) == MX_ERR_ARG && strstr(err.text, "PANEL.csv"));
    CHECK(mx_env_open(&e, "market:/nowhere.csv,held-out", 8, 1, &err) == MX_ERR_IO);
    unlink(panel);
}

/* Rewards of two rungs differ by what the rungs earn in the mean of many errors, stock short or not. */
static void rewards(void)
{
    enum { DRAWS = 40000 };
    mx_env e;
    mx_error err = {0};
    char name[300];
    write_panel(HEADER, "");
    snprintf(name, sizeof name, "market:%s", panel);
    CHECK_OK(mx_env_open(&e, name, 18, 3, &err), err);
    unlink(panel);
    for (int64_t row = 0; e.world && row < 6; row++) {
        mx_market_shelf *s = (mx_market_shelf *)e.state + row;
        const mx_market *m = mx_market_of(&e);
        const mx_market_pair *q = &m->pair[s->pair];
        int64_t price[MX_LADDER];
        double mean[2] = {0};
        float reward[2];
        uint8_t over[2];
        if (row % 2) s->stock = 0.7 * q->units;
        mx_market_shelf was = *s;
        mx_price_rungs(was.price, price);
        for (int side = 0; side < 2; side++) {
            int32_t action = side ? MX_LADDER - 1 : 1;
            for (int k = 0; k < DRAWS; k++) {
                mx_market_shelf sells = was;
                double u = ((double)k + 0.5) / DRAWS, z = sqrt(-2 * log(u)) * cos(6.283185307179586 * fmod(k * 0.6180339887498949, 1));
                mean[side] += mx_market_sell(m, &sells, price[action], z, false) / DRAWS;
            }
            mx_env_step(&e, row, 1, &action, &reward[side], over, over + 1);
            *s = was;
            e.row[row].step = 0;
        }
        double want = (mean[1] - mean[0]) / (q->units * (q->reference - q->cost)), got = (double)(reward[1] - reward[0]);
        CHECK_MSG(fabs(want - got) < 0.004, "row %lld: %.4f, not %.4f", (long long)row, got, want);
    }
    mx_env_close(&e);
}

/* What was logged before an episode is believed at its beginning. */
static void believed_beforehand(void)
{
    mx_env e;
    mx_error err = {0};
    char name[300];
    double off = 0;
    write_panel(HEADER, "");
    snprintf(name, sizeof name, "market:%s,choose", panel);
    CHECK_OK(mx_env_open(&e, name, 90, 3, &err), err);
    unlink(panel);
    for (int64_t row = 0; e.world && row < 90; row++) {
        const mx_market_shelf *s = mx_market_shelf_of(&e, row);
        double mean[2], deviation[2];
        mx_demand_moments(&s->belief, mean, deviation);
        CHECK(s->belief.n == s->week);                   /* one is the prior */
        if (s->week > 30) off = fmax(off, fabs(mean[1] - mx_market_of(&e)->pair[s->pair].own));
    }
    CHECK_MSG(off < 0.6, "an elasticity is believed to be %.2f off", off);
    mx_env_close(&e);
}

/* Belief, stock and books of one shelf by hand. */
static void a_shelf(void)
{
    mx_market m;
    mx_error err = {0};
    write_panel(HEADER, "");
    CHECK_OK(mx_market_open(&m, panel, MX_MARKET_LEARN, 30, &err), err);
    unlink(panel);
    if (!m.pair) return;
    const mx_market_pair *q = &m.pair[0];
    const mx_market_week *w = &m.week[q->first + 10];
    mx_market_shelf s = {.pair = 0, .week = 10, .price = 200, .before = 190, .stock = 1e9, .belief = mx_demand_prior()}, low = s;
    double units = exp(q->own * log(210 / 6400.0) + m.brand[q->brand].before * log(200 / 6400.0) + (double)w->rest);
    double earned = mx_market_sell(&m, &s, 210, 0, true);
    CHECK_MSG(fabs((1e9 - s.stock) / units - 1) < 1e-6, "%g of %g", 1e9 - s.stock, units);
    CHECK(fabs(earned - (units * (210 - (double)w->cost) - 0.0025 * (double)w->cost * s.stock)) < 1e-6 * fabs(earned) && s.belief.n == 1 && s.price == 210 && s.before == 200 && s.week == 11);
    low.stock = units / 2;
    CHECK(mx_market_sell(&m, &low, 210, 0, true) > 0 && low.belief.n == 0 && low.surprise == 0 && low.stock == 0);       /* sold out: nothing is learned */
    mx_market_sell(&m, &low, 210, 0, true);
    CHECK(low.week == 12 && fabs(low.stock - 3 * q->units) < 1e-9);              /* delivered */
    /* a price that its cost has overtaken: one step towards what is feasible is left */
    int64_t price[MX_LADDER];
    uint8_t feasible[MX_LADDER];
    s.price = 80;
    mx_market_ladder(&m, &s, price, feasible);
    int n = 0;
    for (int k = 0; k < MX_LADDER; k++) n += feasible[k];
    CHECK(n == 1 && feasible[MX_LADDER - 1] && price[MX_LADDER - 1] == 88);
    mx_market_close(&m);
}

static bool no_more(void *ctx, int64_t done, int64_t all)
{
    (void)ctx;
    return done < all / 2;
}

/* Everybody meets the same chance, so the table's differences are paired; a network is played by its best feasible rung. */
static void a_table(void)
{
    mx_market_score s[MX_MARKET_SCORES], again[MX_MARKET_SCORES], third[MX_MARKET_SCORES];
    mx_device *devices;
    mx_device_options cpu = {.cpu_threads = 1};
    mx_qnet_config c = {.observation = MX_PRICE_SEEN, .actions = MX_LADDER, .layers = 1, .hidden = {8}, .activation = MX_ACT_RELU, .atoms = 1};
    mx_qnet *q = NULL;
    mx_error err = {0};
    char name[300];
    int n, n_devices, k;
    mx_market_trial t = {.env = name, .episodes = 2, .seed = 3};
    write_panel(HEADER, "");
    snprintf(name, sizeof name, "market:%s,held-out", panel);
    CHECK_OK(mx_devices_open(&devices, &n_devices, &cpu, &err), err);
    CHECK_OK(mx_qnet_create(&q, &devices[0], &c, false, 3, &err), err);
    CHECK_OK(mx_market_compare(&t, s, &n, &err), err);
    CHECK(n == MX_MARKET_RULES && s[0].ahead == 0 && s[0].ahead_error == 0);
    for (int r = 0; r < n; r++) {
        double cents = play(name, 18, (mx_market_rule)r, 3) / (18 * MX_MARKET_WEEKS);
        CHECK_STR(s[r].name, mx_market_rule_name((mx_market_rule)r));
        CHECK_MSG(fabs(s[r].margin / cents - 1) < 1e-9 && s[r].error > 0, "%s: %.3f, not %.3f", s[r].name, s[r].margin, cents);
        CHECK(fabs(s[r].ahead - 100 * (s[0].margin / s[r].margin - 1)) < 1e-9);
    }
    const mx_qnet *two[] = {q, q};
    t.policies = two, t.n = 2;                           /* of equals the mean is the same */
    CHECK_OK(mx_market_compare(&t, again, &k, &err), err);
    t.n = 1;
    CHECK_OK(mx_market_compare(&t, third, &k, &err), err);
    CHECK(fabs(third[0].margin / again[0].margin - 1) < 1e-12 && fabs(third[3].ahead - again[3].ahead) < 1e-9);
    CHECK(k == MX_MARKET_SCORES && !strcmp(again[0].name, "learned") && again[0].margin > 0 && again[0].margin != again[1].margin && again[3].margin == s[2].margin);
    t.env = "cartpole";
    CHECK(mx_market_compare(&t, again, &k, &err) == MX_ERR_ARG);
    t.env = name, t.episodes = 0;
    CHECK(mx_market_compare(&t, again, &k, &err) == MX_ERR_ARG);
    t.episodes = 2, t.progress = no_more;
    CHECK(mx_market_compare(&t, again, &k, &err) == MX_ERR_CANCELLED);
    mx_qnet_close(q);
    mx_devices_close(devices, n_devices);
    unlink(panel);
}

static void orange_juice(void)
{
    const char *path = getenv("MX_ORANGE_JUICE") ? getenv("MX_ORANGE_JUICE") : MX_SOURCE_DIR "/../shared/data/orange_juice/yx.csv.gz";
    char command[900], name[300];
    mx_market m;
    mx_error err = {0};
    if (access(path, R_OK)) {
        TEST_SKIP("the orange-juice panel is not there");
        return;
    }
    snprintf(panel, sizeof panel, MX_BINARY_DIR "/test_market.%d.csv", (int)getpid());
    snprintf(command, sizeof command, "gzip -dc '%s' > '%s'", path, panel);
    CHECK(system(command) == 0);
    CHECK_OK(mx_market_open(&m, panel, MX_MARKET_HELD_OUT, 30, &err), err);
    CHECK_MSG(m.n_pairs == 231 && fabs(m.known[0].own + 2.8) < 0.2 && m.known[3].before > 0.3, "%lld pairs, %.2f", (long long)m.n_pairs, m.known[0].own);
    mx_market_close(&m);
    snprintf(name, sizeof name, "market:%s,held-out", panel);
    double fixed = play(name, 231, MX_MARKET_FIXED, 1), elastic = play(name, 231, MX_MARKET_ELASTICITY, 1), gallego = play(name, 231, MX_MARKET_GALLEGO, 1);
    CHECK_MSG(elastic > 1.05 * fixed && gallego > elastic, "%.0f %.0f %.0f", fixed, elastic, gallego);
    unlink(panel);
}

MX_TESTS(TEST(equations_found_again), TEST(wrong_panels), TEST(yardsticks), TEST(rewards), TEST(believed_beforehand), TEST(a_shelf), TEST(a_table), TEST(orange_juice))
