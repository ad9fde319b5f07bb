/* test_kv.c - pages of the KV cache: prefix sharing, copy on write, the order in
 * which released pages go, exhaustion; and 100,000 random operations beside a
 * naive model that keeps whole arrays and looks through all of them. */
#include "models/kv.h"
#include "tests/test.h"

typedef struct rig {
    mx_device *devs;
    int n_devs;
    mx_kv_cache kv;
    int32_t moves[64];
    mx_kv_copies copies;
} rig;

static bool rig_open(rig *r, int32_t pages, int32_t page_tokens, bool share)
{
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = 1};
    *r = (rig){0};
    r->copies = (mx_kv_copies){r->moves, 0, 32};
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &opt, &err), err);
    CHECK_OK(mx_kv_open(&r->kv, r->devs, 1, pages, page_tokens, 1, 1, MX_F32, share, &err), err);
    return !err.code;
}

static void rig_close(rig *r)
{
    CHECK_MSG(atomic_load(&r->kv.available) == r->kv.pages, "%d of %d pages are free", atomic_load(&r->kv.available),
              r->kv.pages);
    mx_kv_close(&r->kv);
    mx_devices_close(r->devs, r->n_devs);
}

/* A sequence that holds ids[0..n), indexed. */
static bool fill(rig *r, mx_kv_seq *s, const int32_t *ids, int32_t n)
{
    if (!mx_kv_reserve(&r->kv, s, n, &r->copies)) return false;
    mx_kv_commit(&r->kv, s, ids, s->n_tokens);
    return true;
}

static void shared_prefix(void)
{
    static const int32_t a[] = {1, 2, 3, 4, 5, 6, 7, 8, 9}, b[] = {1, 2, 3, 4, 5, 6, 0, 8}, c[] = {5, 6, 7, 8};
    rig r;
    if (rig_open(&r, 8, 2, true)) {
        mx_kv_seq s = {0}, t = {0}, u = {0}, v = {0};
        CHECK(fill(&r, &s, a, 9) && s.n_pages == 5);
        CHECK(mx_kv_match(&r.kv, &t, a, 9) == 8 && t.n_pages == 4 && !memcmp(t.page, s.page, 4 * sizeof *t.page));
        CHECK(mx_kv_match(&r.kv, &u, b, 8) == 6 && u.n_pages == 3); /* the fourth page differs */
        CHECK(mx_kv_match(&r.kv, &v, c, 4) == 0);                   /* same tokens, another place */
        CHECK(atomic_load(&r.kv.available) == 3);
        mx_kv_release(&r.kv, &s);
        CHECK(atomic_load(&r.kv.available) == 4); /* its fifth page; the others are held */
        CHECK(fill(&r, &u, b, 8) && u.page[3] != t.page[3]);
        mx_kv_release(&r.kv, &t);
        mx_kv_release(&r.kv, &u);
        CHECK(mx_kv_match(&r.kv, &t, b, 8) == 8); /* found after everybody left */
        mx_kv_release(&r.kv, &t);
    }
    rig_close(&r);
    if (rig_open(&r, 8, 2, false)) {
        mx_kv_seq s = {0}, t = {0};
        CHECK(fill(&r, &s, a, 8) && mx_kv_match(&r.kv, &t, a, 8) == 0);
        mx_kv_release(&r.kv, &s);
    }
    rig_close(&r);
}

static void copy_on_write(void)
{
    static const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8};
    rig r;
    if (rig_open(&r, 6, 4, true)) {
        mx_kv_seq s = {0}, t = {0}, u = {0};
        CHECK(fill(&r, &s, ids, 6));
        CHECK(mx_kv_fork(&r.kv, &t, &s) && mx_kv_fork(&r.kv, &u, &s));
        int32_t half = s.page[1];
        CHECK(mx_kv_reserve(&r.kv, &t, 7, &r.copies) && r.copies.n == 1 && r.moves[0] == half &&
              r.moves[1] == t.page[1]);
        CHECK(t.page[0] == s.page[0] && t.page[1] != half && s.page[1] == half);
        CHECK(mx_kv_reserve(&r.kv, &s, 7, &r.copies) && r.copies.n == 2 && s.page[1] != half);
        CHECK(mx_kv_reserve(&r.kv, &u, 7, &r.copies) && r.copies.n == 2 &&
              u.page[1] == half); /* the last one owns it */
        r.copies.room = r.copies.n;
        mx_kv_seq w = {0};
        CHECK(mx_kv_fork(&r.kv, &w, &u));
        CHECK(!mx_kv_reserve(&r.kv, &w, 8, &r.copies) && w.page[1] == half &&
              w.n_tokens == 7); /* no room to say so */
        mx_kv_release(&r.kv, &w);
        mx_kv_release(&r.kv, &s);
        mx_kv_release(&r.kv, &t);
        mx_kv_release(&r.kv, &u);
    }
    rig_close(&r);
}

static void oldest_goes_first(void)
{
    static const int32_t a[] = {1, 1, 2, 2}, b[] = {3, 3, 4, 4}, c[] = {5, 5, 6, 6, 7, 7};
    rig r;
    if (rig_open(&r, 6, 2, true)) {
        mx_kv_seq s = {0}, t = {0}, u = {0};
        CHECK(fill(&r, &s, a, 4) && fill(&r, &t, b, 4));
        mx_kv_release(&r.kv, &s);
        mx_kv_release(&r.kv, &t);
        CHECK(mx_kv_match(&r.kv, &s, a, 4) == 4); /* used again: now b is the oldest */
        mx_kv_release(&r.kv, &s);
        CHECK(fill(&r, &u, c, 6)); /* two empty pages and one of b's, its end */
        CHECK(mx_kv_match(&r.kv, &s, a, 4) == 4 && mx_kv_match(&r.kv, &t, b, 4) == 2);
        mx_kv_seq w = {0};
        CHECK(!mx_kv_reserve(&r.kv, &w, 1, &r.copies) && !w.n_pages && !w.n_tokens); /* all six are held */
        mx_kv_release(&r.kv, &t);
        CHECK(mx_kv_reserve(&r.kv, &w, 2, &r.copies) && mx_kv_match(&r.kv, &t, b, 4) == 0);
        mx_kv_release(&r.kv, &w);
        mx_kv_release(&r.kv, &s);
        mx_kv_release(&r.kv, &u);
    }
    rig_close(&r);
}

static void refused(void)
{
    mx_error err = {0};
    mx_device *devs;
    int n;
    mx_kv_cache c;
    mx_device_options opt = {.cpu_threads = 1};
    CHECK_OK(mx_devices_open(&devs, &n, &opt, &err), err);
    CHECK(mx_kv_open(&c, devs, 1, 0, 4, 1, 1, MX_F32, true, &err) == MX_ERR_ARG);
    CHECK(mx_kv_open(&c, devs, 1, 1 << 30, 4, 1, 1, MX_F32, true, &err) == MX_ERR_ARG);
    CHECK(mx_kv_page_bytes(INT32_MAX, INT32_MAX, INT32_MAX, 256, MX_F32) == 0);
    mx_devices_close(devs, n);
}

/* ---- beside a naive model -------------------------------------------------------------------------- */

enum { PAGES = 40, PT = 3, SEQS = 10, LONGEST = 30, OPERATIONS = 100000 };

typedef struct model_page {
    int holders;
    uint64_t content, parent, released; /* content 0: not in the index; released: when, for the order */
    int32_t ids[PT];
} model_page;

typedef struct model {
    rig r;
    model_page page[PAGES];
    int32_t memory[PAGES][PT]; /* what "the device" has in the slots          */
    mx_kv_seq seq[SEQS];
    int32_t ids[SEQS][LONGEST];
    uint64_t last[SEQS], contents, clock; /* last: content of the last page offered     */
    int indexed[SEQS], matched, copied, evicted, full, collided;
    uint64_t seed;
} model;

static int naive_find(const model *m, uint64_t parent, const int32_t *ids)
{
    for (int p = 0; p < PAGES; p++)
        if (m->page[p].content && m->page[p].parent == parent && !memcmp(m->page[p].ids, ids, sizeof m->page[p].ids))
            return p;
    return -1;
}

static int naive_available(const model *m)
{
    int n = 0;
    for (int p = 0; p < PAGES; p++) n += !m->page[p].holders;
    return n;
}

/* The real cache took page p: it must have been an empty one or, without any, the one released longest ago. */
static void naive_take(model *m, int p)
{
    int empty = 0, oldest = -1;
    CHECK(!m->page[p].holders);
    for (int i = 0; i < PAGES; i++) {
        if (m->page[i].holders) continue;
        empty += !m->page[i].content;
        if (m->page[i].content && (oldest < 0 || m->page[i].released < m->page[oldest].released)) oldest = i;
    }
    if (empty)
        CHECK_MSG(!m->page[p].content, "page %d was taken with %d empty", p, empty);
    else
        CHECK_MSG(p == oldest, "page %d was taken, %d is older", p, oldest);
    m->evicted += m->page[p].content != 0;
    m->page[p] = (model_page){.holders = 1};
    memset(m->memory[p], 0xff, sizeof m->memory[p]);
}

static void naive_drop(model *m, int p)
{
    if (--m->page[p].holders == 0) m->page[p].released = ++m->clock;
}

static void do_match(model *m, int i)
{
    /* Few different tokens, often a beginning that somebody else has: prefixes meet. */
    int like = (int)(test_random(&m->seed) % SEQS), keep = (int)(test_random(&m->seed) % LONGEST);
    for (int k = 0; k < LONGEST; k++)
        m->ids[i][k] = k < keep ? m->ids[like][k] : (int32_t)(test_random(&m->seed) % 2);
    int n = 1 + (int)(test_random(&m->seed) % LONGEST), want = 0, found[LONGEST];
    uint64_t parent = 0;
    while ((want + 1) * PT <= n) {
        int p = naive_find(m, parent, m->ids[i] + want * PT);
        if (p < 0) break;
        parent = m->page[p].content;
        found[want++] = p;
    }
    CHECK(mx_kv_match(&m->r.kv, &m->seq[i], m->ids[i], n) == want * PT && m->seq[i].n_pages == want);
    for (int k = 0; k < want && k < m->seq[i].n_pages; k++) {
        CHECK(m->seq[i].page[k] == found[k]);
        m->page[found[k]].holders++;
    }
    m->last[i] = parent;
    m->indexed[i] = want;
    m->matched += want;
}

static void do_commit(model *m, int i)
{
    mx_kv_commit(&m->r.kv, &m->seq[i], m->ids[i], m->seq[i].n_tokens);
    for (; (m->indexed[i] + 1) * PT <= m->seq[i].n_tokens; m->indexed[i]++) {
        const int32_t *own = m->ids[i] + m->indexed[i] * PT;
        model_page *g = &m->page[m->seq[i].page[m->indexed[i]]];
        int twin = g->content ? -1 : naive_find(m, m->last[i], own);
        if (!g->content && twin < 0) {
            g->content = ++m->contents;
            g->parent = m->last[i];
            memcpy(g->ids, own, sizeof g->ids);
        }
        m->last[i] = twin >= 0 ? m->page[twin].content : g->content;
    }
}

static void do_grow(model *m, int i)
{
    mx_kv_seq *s = &m->seq[i];
    int32_t had = s->n_pages, done = s->n_tokens, n = done + 1 + (int32_t)(test_random(&m->seed) % 5),
            before[LONGEST];
    if (n > LONGEST) n = LONGEST;
    if (n <= done) return;
    for (int k = 0; k < had; k++) before[k] = s->page[k];
    int last = done / PT, copy = last < had && m->page[before[last < had ? last : 0]].holders > 1;
    bool fits = (n + PT - 1) / PT - had + copy <= naive_available(m);
    m->r.copies.n = 0;
    CHECK(mx_kv_reserve(&m->r.kv, s, n, &m->r.copies) == fits);
    if (!fits) {
        CHECK(s->n_pages == had && s->n_tokens == done &&
              (!had || !memcmp(before, s->page, (size_t)had * sizeof *before)));
        m->full++;
        return;
    }
    CHECK(m->r.copies.n == copy);
    if (copy) {
        CHECK(m->r.moves[0] == before[last] && m->r.moves[1] == s->page[last]);
        naive_take(m, s->page[last]);
        memcpy(m->memory[s->page[last]], m->memory[before[last]], sizeof *m->memory);
        naive_drop(m, before[last]);
        m->copied++;
    }
    for (int k = 0; k < had; k++) CHECK((k == last && copy) || s->page[k] == before[k]);
    for (int k = had; k < s->n_pages; k++) naive_take(m, s->page[k]);
    for (int32_t k = done; k < n; k++) {
        int32_t slot = mx_kv_slot(&m->r.kv, s, k);
        CHECK(m->page[slot / PT].holders == 1); /* nobody else sees what is written */
        m->memory[slot / PT][slot % PT] = m->ids[i][k];
    }
    if (test_random(&m->seed) % 4) do_commit(m, i); /* a turn that failed commits nothing */
}

static void do_fork(model *m, int from, int to)
{
    CHECK(mx_kv_fork(&m->r.kv, &m->seq[to], &m->seq[from]));
    memcpy(m->ids[to], m->ids[from], (size_t)m->seq[from].n_tokens * sizeof(int32_t));
    for (int k = 0; k < m->seq[to].n_pages; k++) {
        CHECK(m->seq[to].page[k] == m->seq[from].page[k]);
        m->page[m->seq[to].page[k]].holders++;
    }
    m->last[to] = m->last[from];
    m->indexed[to] = m->indexed[from];
}

static void do_release(model *m, int i)
{
    for (int k = m->seq[i].n_pages - 1; k >= 0; k--) naive_drop(m, m->seq[i].page[k]);
    mx_kv_release(&m->r.kv, &m->seq[i]);
    m->indexed[i] = 0;
    m->last[i] = 0;
    CHECK(!m->seq[i].page && !m->seq[i].n_pages && !m->seq[i].n_tokens);
}

static bool all_is_well(model *m)
{
    int before = test_failures, filed = 0, heads = 0;
    for (int i = 0; i < SEQS; i++)
        for (int32_t k = 0; k < m->seq[i].n_tokens; k++) {
            int32_t slot = mx_kv_slot(&m->r.kv, &m->seq[i], k);
            CHECK_MSG(m->memory[slot / PT][slot % PT] == m->ids[i][k], "sequence %d has lost token %d", i, k);
        }
    CHECK(atomic_load(&m->r.kv.available) == naive_available(m));
    for (int p = 0; p < PAGES; p++) filed += m->page[p].content != 0;
    for (uint32_t b = 0; b < m->r.kv.buckets; b++) heads += m->r.kv.bucket[b] >= 0;
    CHECK(heads <= filed);
    m->collided += filed - heads; /* different contents in one bucket */
    return test_failures == before;
}

static void as_the_naive_model(void)
{
    static model m;
    const char *given = getenv("MX_TEST_SEED");
    m.seed = given ? strtoull(given, NULL, 0) : 77;
    printf("  seed %llu\n", (unsigned long long)m.seed);
    if (!rig_open(&m.r, PAGES, PT, true)) return;
    for (int n = 0; n < OPERATIONS; n++) {
        int i = (int)(test_random(&m.seed) % SEQS), k = (int)(test_random(&m.seed) % SEQS),
            what = (int)(test_random(&m.seed) % 16);
        bool many_forks = n / 500 % 2; /* and few new sequences; then the other way round */
        if (!m.seq[i].n_pages) {
            do_match(&m, i);
            do_grow(&m, i);
        } else if (what < 8) {
            do_grow(&m, i);
        } else if (many_forks && what < 11 && i != k) {
            if (m.seq[k].n_pages) do_release(&m, k);
            do_fork(&m, i, k);
        } else if (!many_forks || what == 15) {
            do_release(&m, i);
        }
        if (!all_is_well(&m)) {
            CHECK_MSG(false, "operation %d", n);
            break;
        }
    }
    printf("  %d pages found, %d copied, %d evicted, %d refusals, %d in a bucket with others\n", m.matched, m.copied,
           m.evicted, m.full, m.collided);
    CHECK(m.matched > 1000 && m.copied > 1000 && m.evicted > 1000 && m.full > 1000 && m.collided > 1000);
    for (int i = 0; i < SEQS; i++) do_release(&m, i);
    rig_close(&m.r);
}

MX_TESTS(TEST(shared_prefix), TEST(copy_on_write), TEST(oldest_goes_first), TEST(refused), TEST(as_the_naive_model))
