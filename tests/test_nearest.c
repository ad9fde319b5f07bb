/* test_nearest.c - nearest vectors against looking at all of them. */
#include "models/nearest.h"
#include "tests/test.h"

enum { IDS = 3000, DIM = 33, K = 17 };
static mx_device *devices;
static int        n_devices;
static float      x[IDS][DIM];
static bool       there[IDS];

static void draw(float *v, uint64_t *seed)
{
    for (int c = 0; c < DIM; c++) v[c] = (float)(test_random(seed) % 201) / 100 - 1;
}

static bool admit_odd(void *ctx, int32_t id)
{
    (void)ctx;
    return id % 2;
}

static double score(const float *a, const float *b, mx_likeness how)
{
    double ab = 0, aa = 0, bb = 0;
    for (int c = 0; c < DIM; c++) ab += (double)a[c] * (double)b[c], aa += (double)a[c] * (double)a[c], bb += (double)b[c] * (double)b[c];
    return how == MX_LIKE_DOT ? ab : aa > 0 && bb > 0 ? ab / sqrt(aa * bb) : 0;
}

/* Every hit has its right score, they fall (ties by number), and nobody left out is better. */
static void check(const float *q, mx_likeness how, bool odd, const mx_hit *hit, int32_t found)
{
    static bool taken[IDS];
    memset(taken, 0, sizeof taken);
    int32_t candidates = 0;
    for (int i = 0; i < IDS; i++) candidates += there[i] && (!odd || i % 2);
    CHECK(found == (candidates < K ? candidates : K));
    for (int32_t i = 0; i < found; i++) {
        CHECK(there[hit[i].id] && !taken[hit[i].id] && (!odd || hit[i].id % 2));
        taken[hit[i].id] = true;
        CHECK(fabs((double)hit[i].score - score(q, x[hit[i].id], how)) < 1e-4);
        if (i) CHECK(hit[i].score < hit[i - 1].score || (hit[i].score == hit[i - 1].score && hit[i].id > hit[i - 1].id));
    }
    for (int i = 0; found && i < IDS; i++)
        if (there[i] && !taken[i] && (!odd || i % 2)) CHECK(score(q, x[i], how) <= (double)hit[found - 1].score + 1e-4);
}

static void scan(void)
{
    uint64_t seed = 8;
    mx_error err = {0};
    mx_vectors *v = NULL;
    mx_stream s = {0};
    mx_device_options o = {.cpu_threads = 2};
    static float q[40][DIM];
    static mx_hit hit[40 * K], one[K];
    int32_t found[40], alone;
    CHECK_OK(mx_devices_open(&devices, &n_devices, &o, &err), err);
    CHECK_OK(mx_stream_open(&s, devices, 1 << 20, &err), err);
    CHECK_OK(mx_vectors_open(&v, DIM, &err), err);
    CHECK_OK(mx_vectors_search(v, &s, q[0], 1, K, MX_LIKE_DOT, NULL, NULL, hit, found, &err), err);
    CHECK(found[0] == 0);
    for (int i = 0; i < 4000; i++) {
        int32_t id = (int32_t)(test_random(&seed) % IDS);
        if (i % 5 == 4) mx_vectors_remove(v, id);
        else if (i % 7 == 3) memcpy(x[id], x[(id + 1) % IDS], sizeof x[id]);      /* ties */
        else draw(x[id], &seed);
        if (i % 5 != 4) CHECK_OK(mx_vectors_put(v, id, x[id], &err), err);
        there[id] = i % 5 != 4;
    }
    for (int i = 0; i < 40; i++) draw(q[i], &seed);
    memset(q[5], 0, sizeof q[5]);
    for (int how = 0; how < 2; how++)
        for (int odd = 0; odd < 2; odd++) {
            CHECK_OK(mx_vectors_search(v, &s, q[0], 40, K, (mx_likeness)how, odd ? admit_odd : NULL, NULL, hit, found, &err), err);
            for (int i = 0; i < 40; i++) {
                check(q[i], (mx_likeness)how, odd, hit + i * K, found[i]);
                CHECK_OK(mx_vectors_search(v, &s, q[i], 1, K, (mx_likeness)how, odd ? admit_odd : NULL, NULL, one, &alone, &err), err);
                CHECK(alone == found[i] && !memcmp(one, hit + i * K, sizeof *one * (size_t)alone));      /* the same bits alone */
            }
        }
    int32_t seeds[] = {7, 3, 9, 100000}, turned[] = {9, 100000, 7, 3};
    float a[DIM], b[DIM];
    for (int i = 0; i < 3; i++) CHECK_OK(mx_vectors_put(v, seeds[i], q[i], &err), err);
    CHECK_OK(mx_vectors_centroid(v, seeds, 4, a, &err), err);
    CHECK_OK(mx_vectors_centroid(v, turned, 4, b, &err), err);
    CHECK(!memcmp(a, b, sizeof a) && fabs(score(a, a, MX_LIKE_DOT) - 1) < 1e-6);
    CHECK(mx_vectors_centroid(v, seeds + 3, 1, a, &err) == MX_ERR_NOT_FOUND);
    q[0][3] = NAN;
    CHECK(mx_vectors_put(v, 1, q[0], &err) == MX_ERR_ARG && mx_vectors_put(v, -1, q[1], &err) == MX_ERR_ARG);
    CHECK(mx_vectors_get(v, 7, a) && !mx_vectors_get(v, 100000, a));
    mx_vectors_close(v);
    mx_stream_close(&s);
    mx_devices_close(devices, n_devices);
}

MX_TESTS(TEST(scan))
