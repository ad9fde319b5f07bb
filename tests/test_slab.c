/* test_slab.c - blocks that are used again: sizes, contents, bounds, many threads. */
#include "runtime/slab.h"
#include "tests/test.h"

#include <pthread.h>

static void sizes(void)
{
    uint64_t seed = 11;
    for (int i = 0; i < 20000; i++) {
        size_t n = (size_t)(test_random(&seed) % (1u << (test_random(&seed) % 23)));
        unsigned char *p = i % 3 ? mx_slab_alloc(n) : mx_slab_zeroed(n);
        CHECK(p && (uintptr_t)p % 16 == 0);
        if (!p) return;
        for (size_t k = 0; i % 3 == 0 && k < n; k += 1 + n / 64) CHECK(p[k] == 0);
        memset(p, i, n);                     /* the sanitizer sees what is not ours */
        size_t more = n + (size_t)(test_random(&seed) % 5000);
        unsigned char *q = mx_slab_grow(p, more);
        CHECK(q && (!n || (q[0] == (unsigned char)i && q[n - 1] == (unsigned char)i)));
        mx_slab_free(q);
    }
    char *text = mx_slab_text("merx");
    CHECK_STR(text, "merx");
    mx_slab_free(text);
    mx_slab_free(NULL);
    CHECK(mx_slab_alloc((size_t)-1) == NULL && mx_slab_alloc((size_t)-16) == NULL);      /* no room for its head */
}

static void bounds(void)
{
    enum { N = 64 };
    void *p[N];
    for (int i = 0; i < N; i++) p[i] = mx_slab_alloc(100000);
    size_t before = mx_slab_kept();
    for (int i = 0; i < N; i++) mx_slab_free(p[i]);
    CHECK_MSG(mx_slab_kept() - before <= MX_SLAB_KEPT, "%zu bytes kept", mx_slab_kept() - before);
    for (size_t size = 32; size <= 2 << 20; size += size / 8) {      /* every list, as full as it gets */
        size_t n = 2 * MX_SLAB_KEPT / size + 2;
        void **all = calloc(n, sizeof *all);
        for (size_t i = 0; i < n; i++) all[i] = mx_slab_alloc(size);
        for (size_t i = 0; i < n; i++) mx_slab_free(all[i]);
        free(all);
    }
    CHECK_MSG(mx_slab_most() == 57 * MX_SLAB_KEPT && mx_slab_kept() <= mx_slab_most(), "%zu bytes kept, at most %zu", mx_slab_kept(), mx_slab_most());
}

/* Blocks made by one thread and given back by another never are two owners'. */
static void *passes(void *arg)
{
    void **slot = arg;
    uint64_t seed = (uint64_t)(uintptr_t)&seed;
    for (int i = 0; i < 40000; i++) {
        size_t n = 16 + (size_t)(test_random(&seed) % 400);
        uint64_t *mine = mx_slab_alloc(n);
        if (!mine) return slot;
        mine[0] = mine[1] = (uint64_t)(uintptr_t)mine ^ seed;
        uint64_t *other = __atomic_exchange_n(&slot[test_random(&seed) % 32], mine, __ATOMIC_ACQ_REL);
        if (other && other[0] != other[1]) return slot;
        mx_slab_free(other);
    }
    return NULL;
}

static void threads(void)
{
    void *slot[32] = {0};
    pthread_t id[4];
    for (int i = 0; i < 4; i++) CHECK(!pthread_create(&id[i], NULL, passes, slot));
    for (int i = 0; i < 4; i++) {
        void *bad = NULL;
        pthread_join(id[i], &bad);
        CHECK(!bad);
    }
    for (int i = 0; i < 32; i++) mx_slab_free(slot[i]);
}

MX_TESTS(TEST(sizes), TEST(bounds), TEST(threads))
