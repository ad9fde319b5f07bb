/* sample.c - logits to tokens: penalties, filters, the draw, log-probabilities.
 *
 * Only as much of a row is sorted as the draw needs: what top-k, top-p and
 * min-p keep are prefixes of the order of falling probability, so the filters
 * reduce to one length, and quickselect delivers the prefix in growing steps.
 * Probabilities are e^(logit - max) in f32, their sums are double. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include "runtime/slab.h"

#include <float.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

/* ---- biases, penalties, bans --------------------------------------------------- */

typedef struct process_job {
    mx_tensor logits;
    const mx_sample_row *rows;
    const mx_logit_lists *lists;
    const mx_seats *seats;
    _Atomic int64_t outside;       /* a row with an id outside the vocabulary, or -1 */
} process_job;

static void penalise_id(process_job *j, float *x, int64_t r, int32_t id, int32_t count)
{
    const mx_sample_row *o = &j->rows[r];
    if (id < 0 || id >= j->logits.cols) {
        atomic_store(&j->outside, r);
        return;
    }
    if (o->repetition_penalty != 1) x[id] = x[id] < 0 ? x[id] * o->repetition_penalty : x[id] / o->repetition_penalty;
    if (count > 0) x[id] -= o->presence_penalty + o->frequency_penalty * (float)count;
}

static void penalise(process_job *j, float *x, int64_t r)
{
    const mx_sample_row *o = &j->rows[r];
    const mx_seats *t = j->seats;
    if (o->seat < 0 || (o->repetition_penalty == 1 && o->presence_penalty == 0 && o->frequency_penalty == 0)) return;
    size_t first = (size_t)o->seat * (size_t)t->seen_most;
    for (int32_t i = 0; i < t->seat[o->seat].n_seen; i++) penalise_id(j, x, r, t->seen_id[first + (size_t)i], t->seen_count[first + (size_t)i]);
}

static void process_part(void *ctx, int64_t r, int thread)
{
    (void)thread;
    process_job *j = ctx;
    const mx_logit_lists *l = j->lists;
    float *x = mx_row(j->logits, r);
    int64_t v = j->logits.cols;
    if (l->bias_begin)
        for (int32_t i = l->bias_begin[r]; i < l->bias_begin[r + 1]; i++) {
            if (l->bias_id[i] >= 0 && l->bias_id[i] < v) x[l->bias_id[i]] += l->bias[i];
            else atomic_store(&j->outside, r);
        }
    if (j->seats) penalise(j, x, r);
    if (l->ban_begin)
        for (int32_t i = l->ban_begin[r]; i < l->ban_begin[r + 1]; i++) {
            if (l->ban_id[i] >= 0 && l->ban_id[i] < v) x[l->ban_id[i]] = -INFINITY;
            else atomic_store(&j->outside, r);
        }
}

void mx_cpu_logits_process(mx_stream *s, mx_tensor logits, const mx_sample_row *rows, const mx_logit_lists *lists, const mx_seats *seats)
{
    process_job j = {.logits = logits, .rows = rows, .lists = lists, .seats = seats, .outside = -1};
    mx_pool_run(s->dev->pool, logits.rows, process_part, &j);
    int64_t bad = atomic_load(&j.outside);
    if (bad >= 0) mx_stream_fail(s, MX_ERR_ARG, "logits_process: row %lld names an id outside the vocabulary", (long long)bad);
}

/* ---- candidates in order ----------------------------------------------------------- */

typedef struct candidate {
    float   key;
    int32_t id;
} candidate;

static inline bool before(candidate a, candidate b)
{
    return a.key > b.key || (a.key == b.key && a.id < b.id);
}

/* Where the pivot of a[lo..hi) ends up: what comes before it stands in front of it. */
static int64_t split(candidate *a, int64_t lo, int64_t hi)
{
    candidate x = a[lo], y = a[lo + (hi - lo) / 2], z = a[hi - 1];
    int64_t m = before(x, y) ? (before(y, z) ? lo + (hi - lo) / 2 : before(x, z) ? hi - 1 : lo)
                             : (before(x, z) ? lo : before(y, z) ? hi - 1 : lo + (hi - lo) / 2);
    candidate pivot = a[m];
    a[m] = a[hi - 1];
    int64_t at = lo;
    for (int64_t i = lo; i < hi - 1; i++) {
        candidate c = a[i];
        a[i] = a[at];
        a[at] = c;
        at += before(c, pivot);         /* without a branch: it would be a coin toss */
    }
    a[hi - 1] = a[at];
    a[at] = pivot;
    return at;
}

/* Put the first n of a[0..count) in front, in no order. */
static void select_first(candidate *a, int64_t count, int64_t n)
{
    int64_t lo = 0, hi = count;
    while (hi - lo > 1) {
        int64_t p = split(a, lo, hi);
        if (p == n || p + 1 == n) return;
        if (p < n) lo = p + 1;
        else hi = p;
    }
}

static int order(const void *a, const void *b)
{
    return before(*(const candidate *)a, *(const candidate *)b) ? -1 : 1;
}

/* A set whose first `sorted` candidates stand in order; the rest comes after them. */
typedef struct ranking {
    candidate *a;
    int64_t    count, sorted;
} ranking;

/* Candidate i of the order.  The sorted front grows fourfold when it is passed,
 * so a draw that stops early never sorts the tail. */
static candidate ranked(ranking *q, int64_t i)
{
    if (i >= q->sorted) {
        int64_t want = 4 * i > 64 ? 4 * i : 64, old = q->sorted;
        if (want > q->count) want = q->count;
        select_first(q->a + old, q->count - old, want - old);
        qsort(q->a + old, (size_t)(want - old), sizeof *q->a, order);
        q->sorted = want;
    }
    return q->a[i];
}

/* ---- reading a row ------------------------------------------------------------------ */

/* The largest that is not NaN; -inf when there is none. */
static float row_max(const float *x, int64_t n)
{
    vf m = vf_set(-INFINITY);
    int64_t i = 0;
    for (; i + VF <= n; i += VF) m = vf_max(vf_load(x + i), m);
    float top = vf_max_lane(m);
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

static int32_t row_argmax(const float *x, int64_t n)
{
    float top = row_max(x, n);
    if (top == -INFINITY) return -1;
    for (int64_t i = 0;; i++)
        if (x[i] == top) return (int32_t)i;
}

/* Append to a[] what is >= least, at most ids first..last-1; blocks without any cost one comparison. */
static int64_t gather(candidate *a, int64_t count, const float *key, int64_t first, int64_t last, float least)
{
    for (int64_t i = first; i < last; i++) {
        a[count] = (candidate){key[i], (int32_t)i};
        count += key[i] >= least;
    }
    return count;
}

#define SCAN 256           /* keys looked over at a time */

/* The k best of key[0..n), and with `ties` all that equal the k-th; -inf never
 * counts.  a[] has room for n + 1.  Returns how many. */
static int64_t best(candidate *a, const float *key, int64_t n, int64_t k, bool ties)
{
    float least = -FLT_MAX;
    int64_t count = 0, full = 2 * k + 1024;
    for (int64_t i = 0; i < n; i += SCAN) {
        int64_t end = n - i < SCAN ? n : i + SCAN;
        if (row_max(key + i, end - i) < least) continue;
        count = gather(a, count, key, i, end, least);
        if (count < full) continue;
        select_first(a, count, k);
        for (int64_t c = 0; c < k; c++) least = c && least < a[c].key ? least : a[c].key;
        int64_t kept = 0;
        for (int64_t c = 0; c < count; c++)
            if (a[c].key >= least) a[kept++] = a[c];
        count = kept;
        if (count > full / 2) full = 2 * count;           /* many ties: do not select at every step */
    }
    if (count <= k) return count;
    select_first(a, count, k);
    if (!ties) return k;
    for (int64_t c = 0; c < k; c++) least = c && least < a[c].key ? least : a[c].key;
    int64_t kept = k;
    for (int64_t c = k; c < count; c++)
        if (a[c].key == least) a[kept++] = a[c];
    return kept;
}

/* ---- the draw -------------------------------------------------------------------------- */

#define NEAR 8.0f          /* e^-8: what is further below the maximum is rarely drawn */
#define FAR  105.0f        /* e^-105 is 0 in f32                                      */

typedef struct sample_job {
    mx_tensor id, logits;
    const mx_sample_row *rows;
    const mx_seats *seats;
    candidate *candidates, *distances;     /* per thread: V + 1; distances only for typical-p */
    float     *keys;                       /* per thread: V                                   */
} sample_job;

/* e^(key - max); an infinite maximum outweighs everything else */
static double weight_of(float key, float max)
{
    return key == max ? 1.0 : (double)mx_exp(key - max);
}

/* Sum of e^(key - max) in double, and the part of it whose key is >= least. */
static double row_mass(const float *key, int64_t n, float max, float least, double *above)
{
    double sum[VF] = {0}, high[VF] = {0};
    for (int64_t i = 0; i < n; i += VF) {
        float e[VF];
        int here = n - i < VF ? (int)(n - i) : VF;
        vf_store(e, vf_exp(vf_sub(vf_load_most(key + i, here), vf_set(max))));
        for (int l = 0; l < here; l++) {
            /* inf - inf and NaN: the first counts in full, the second not at all */
            double w = key[i + l] == max ? 1.0 : e[l] <= 1.0f ? (double)e[l] : 0.0;
            sum[l] += w;
            high[l] += key[i + l] >= least ? w : 0.0;
        }
    }
    for (int l = 1; l < VF; l++) {
        sum[0] += sum[l];
        high[0] += high[l];
    }
    *above = high[0];
    return sum[0];
}

/* Keep the typical tokens of the first `kept` (Meister et al. 2023): those whose
 * surprise is nearest the entropy, until their mass reaches `mass`; equals
 * stay.  The order of falling probability stays too. */
static int64_t typical(ranking *q, int64_t kept, candidate *near, float max, double mass)
{
    double sum = 0, entropy = 0, run = 0;
    for (int64_t i = 0; i < kept; i++) sum += weight_of(ranked(q, i).key, max);
    double log_sum = log(sum);
    for (int64_t i = 0; i < kept; i++) {
        double lp = q->a[i].key == max ? -log_sum : (double)q->a[i].key - (double)max - log_sum, p = exp(lp);
        if (p > 0) entropy -= lp * p;
    }
    for (int64_t i = 0; i < kept; i++) {
        double lp = q->a[i].key == max ? -log_sum : (double)q->a[i].key - (double)max - log_sum;
        near[i] = (candidate){(float)-fabs(-lp - entropy), (int32_t)i};
    }
    ranking by_distance = {near, kept, 0};
    int64_t last = 0, n = 0;
    for (; last < kept - 1; last++) {
        run += weight_of(q->a[ranked(&by_distance, last).id].key, max) / sum;
        if (run >= mass) break;
    }
    float least = ranked(&by_distance, last).key;
    for (int64_t c = 0; c < kept; c++)
        if (near[c].key >= least) near[n++] = (candidate){0, near[c].id};
    qsort(near, (size_t)n, sizeof *near, order);               /* by place in q again */
    for (int64_t c = 0; c < n; c++) q->a[c] = q->a[near[c].id];
    return n;
}

/* The candidates of a row that can matter, in no order; *sum is the weight of
 * all that passed top-k, gathered or not. */
static int64_t candidates_of(candidate *a, const float *key, int64_t v, float max, const mx_sample_row *o, double *sum)
{
    int64_t count;
    double high;
    if (o->top_k > 0 && o->top_k < v) {
        count = best(a, key, v, o->top_k, true);
        *sum = 0;
        for (int64_t i = 0; i < count; i++) *sum += weight_of(a[i].key, max);
    } else {
        *sum = row_mass(key, v, max, max - NEAR, &high);
        double need = (o->top_p < 1 ? (double)o->top_p : o->uniform) * *sum;
        bool enough = o->typical_p >= 1 && high > need * (1 + 1e-9) && !(o->min_p > 0 && o->top_p >= 1);
        count = gather(a, 0, key, 0, v, max == INFINITY ? max : enough ? max - NEAR : max - FAR);
    }
    if (o->min_p > 0) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count; i++)
            if (a[i].key == max || weight_of(a[i].key, max) >= (double)o->min_p) a[kept++] = a[i];
        count = kept;
    }
    return count;
}

static int32_t draw(const sample_job *j, int64_t r, int thread)
{
    const mx_sample_row *o = &j->rows[r];
    const float *key = mx_row(j->logits, r);
    int64_t v = j->logits.cols;
    if (o->temperature <= 0) return row_argmax(key, v);
    if (o->temperature != 1) {
        float *scaled = j->keys + thread * v;
        for (int64_t i = 0; i < v; i += VF)
            vf_store_most(scaled + i, vf_div(vf_load_most(key + i, v - i), vf_set(o->temperature)), v - i);
        key = scaled;
    }
    float max = row_max(key, v);
    if (max == -INFINITY) return -1;
    double sum, run = 0;
    ranking q = {.a = j->candidates + thread * (v + 1)};
    q.count = candidates_of(q.a, key, v, max, o, &sum);
    int64_t kept = q.count;
    if (o->top_p < 1) {
        for (kept = 0; kept < q.count && (kept == 0 || run < (double)o->top_p * sum); kept++)
            run += weight_of(ranked(&q, kept).key, max);
    }
    if (o->typical_p < 1) {
        kept = typical(&q, kept, j->distances + thread * (v + 1), max, (double)o->typical_p);
        q.sorted = q.count = kept;
    }
    if (o->top_p < 1 || o->min_p > 0 || o->typical_p < 1) {
        sum = 0;
        for (int64_t i = 0; i < kept; i++) sum += weight_of(q.a[i].key, max);
    }
    run = 0;
    for (int64_t i = 0; i < kept; i++) {
        run += weight_of(ranked(&q, i).key, max);
        if (run > o->uniform * sum) return q.a[i].id;
    }
    return q.a[kept - 1].id;        /* the two sums differ in their last bit */
}

/* The seat's newest id is this one. */
static void keep(const mx_seats *t, int32_t seat, int32_t id)
{
    mx_seat *q = &t->seat[seat];
    size_t first = (size_t)seat * (size_t)t->seen_most;
    int32_t i = 0;
    q->last = id;
    q->length++;
    if (q->n_seen < 0 || id < 0) return;
    while (i < q->n_seen && t->seen_id[first + (size_t)i] != id) i++;
    if (i == t->seen_most) return;
    if (i == q->n_seen) {
        t->seen_id[first + (size_t)i] = id;
        t->seen_count[first + (size_t)i] = 0;
        q->n_seen++;
    }
    t->seen_count[first + (size_t)i]++;
}

static void sample_part(void *ctx, int64_t r, int thread)
{
    const sample_job *j = ctx;
    const mx_sample_row *o = &j->rows[r];
    int32_t id = o->forced > 0 ? (int32_t)(o->forced - 1) : draw(j, r, thread);
    *mx_row_i32(j->id, r) = id;
    if (j->seats && o->keep >= 0 && o->forced <= 0) keep(j->seats, o->keep, id);
}

void mx_cpu_sample(mx_stream *s, mx_tensor id, mx_tensor logits, const mx_sample_row *rows, const mx_seats *seats)
{
    sample_job j = {.id = id, .logits = logits, .rows = rows, .seats = seats};
    size_t threads = (size_t)mx_pool_threads(s->dev->pool), v = (size_t)logits.cols;
    bool drawn = false, by_distance = false;
    for (int64_t r = 0; r < logits.rows; r++) {
        drawn |= rows[r].temperature > 0;
        by_distance |= rows[r].temperature > 0 && rows[r].typical_p < 1;
    }
    if (drawn) {
        j.candidates = mx_slab_alloc(threads * (v + 1) * sizeof *j.candidates);
        j.keys = mx_slab_alloc(threads * v * sizeof *j.keys);
        if (by_distance) j.distances = mx_slab_alloc(threads * (v + 1) * sizeof *j.distances);
        if (!j.candidates || !j.keys || (by_distance && !j.distances)) {
            mx_stream_fail(s, MX_ERR_NO_MEMORY, "sample: no memory for the candidates of %zu logits", v);
            goto done;
        }
    }
    mx_pool_run(s->dev->pool, logits.rows, sample_part, &j);
done:
    mx_slab_free(j.distances);
    mx_slab_free(j.keys);
    mx_slab_free(j.candidates);
}

/* ---- log-probabilities ------------------------------------------------------------------- */

typedef struct logprob_job {
    mx_tensor logprob, chosen, top_id, top_logprob, logits;
    candidate *candidates;          /* per thread: V + 1 */
} logprob_job;

static float logprob_of(float key, float max, double log_sum)
{
    if (key == max) return (float)-log_sum;
    return key > -INFINITY ? (float)((double)key - (double)max - log_sum) : -INFINITY;
}

/* The k best in order; a row with fewer finite logits is filled up by rising id. */
static void top_of(const logprob_job *j, int64_t r, candidate *a, float max, double log_sum)
{
    const float *key = mx_row(j->logits, r);
    int64_t k = j->top_id.cols, count = best(a, key, j->logits.cols, k, false), at = count;
    qsort(a, (size_t)count, sizeof *a, order);
    for (int64_t i = 0; at < k && i < j->logits.cols; i++)
        if (!(key[i] >= -FLT_MAX)) a[at++] = (candidate){-INFINITY, (int32_t)i};
    for (int64_t i = 0; i < k; i++) {
        mx_row_i32(j->top_id, r)[i] = a[i].id;
        if (j->top_logprob.data) mx_row(j->top_logprob, r)[i] = i < count ? logprob_of(a[i].key, max, log_sum) : -INFINITY;
    }
}

static void logprob_part(void *ctx, int64_t r, int thread)
{
    const logprob_job *j = ctx;
    const float *key = mx_row(j->logits, r);
    int64_t v = j->logits.cols;
    double above, log_sum = 0;
    float max = row_max(key, v);
    if (max > -INFINITY) log_sum = log(row_mass(key, v, max, INFINITY, &above));
    if (j->logprob.data) {
        int32_t id = *mx_row_i32(j->chosen, r);
        bool known = id >= 0 && id < v && max > -INFINITY;
        *mx_row(j->logprob, r) = known ? logprob_of(key[id], max, log_sum) : -INFINITY;
    }
    if (j->top_id.data) top_of(j, r, j->candidates + thread * (v + 1), max, log_sum);
}

void mx_cpu_logprobs(mx_stream *s, mx_tensor logprob, mx_tensor chosen, mx_tensor top_id, mx_tensor top_logprob,
                     mx_tensor logits)
{
    logprob_job j = {logprob, chosen, top_id, top_logprob, logits, NULL};
    if (top_id.data) {
        j.candidates = mx_slab_alloc((size_t)mx_pool_threads(s->dev->pool) * ((size_t)logits.cols + 1) * sizeof *j.candidates);
        if (!j.candidates) {
            mx_stream_fail(s, MX_ERR_NO_MEMORY, "logprobs: no memory for the candidates of %lld logits",
                           (long long)logits.cols);
            return;
        }
    }
    mx_pool_run(s->dev->pool, logits.rows, logprob_part, &j);
    mx_slab_free(j.candidates);
}
