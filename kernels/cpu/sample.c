/* sample.c - logits to tokens: penalties, filters, the draw, log-probabilities.
 *
 * Only as much of a row is sorted as the draw needs.  The kept tokens of top-k,
 * top-p and min-p are each a prefix of the order of falling probability (Ilyas
 * and others call the set a nucleus), so the filters reduce to one length, and
 * an incremental quicksort (Paredes, Navarro 2006) delivers that prefix. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>

/* ---- penalties, biases, bans --------------------------------------------------- */

typedef struct process_job {
    mx_tensor logits;
    const mx_sample_row *rows;
    const mx_logit_lists *lists;
    _Atomic int64_t outside;       /* a row with an id outside the vocabulary, or -1 */
} process_job;

static void penalise(process_job *j, float *x, int64_t r)
{
    const mx_sample_row *o = &j->rows[r];
    const mx_logit_lists *l = j->lists;
    if (o->repetition_penalty == 1 && o->presence_penalty == 0 && o->frequency_penalty == 0) return;
    for (int32_t i = l->seen_begin[r]; i < l->seen_begin[r + 1]; i++) {
        int32_t id = l->seen_id[i], count = l->seen_count[i];
        if (id < 0 || id >= j->logits.cols) {
            atomic_store(&j->outside, r);
            continue;
        }
        if (o->repetition_penalty != 1) x[id] = x[id] < 0 ? x[id] * o->repetition_penalty : x[id] / o->repetition_penalty;
        if (count > 0) x[id] -= o->presence_penalty + o->frequency_penalty * (float)count;
    }
}

static void process_part(void *ctx, int64_t r, int thread)
{
    (void)thread;
    process_job *j = ctx;
    const mx_logit_lists *l = j->lists;
    float *x = mx_row(j->logits, r);
    int64_t v = j->logits.cols;
    if (l->seen_begin) penalise(j, x, r);
    if (l->bias_begin)
        for (int32_t i = l->bias_begin[r]; i < l->bias_begin[r + 1]; i++) {
            if (l->bias_id[i] >= 0 && l->bias_id[i] < v) x[l->bias_id[i]] += l->bias[i];
            else atomic_store(&j->outside, r);
        }
    if (l->ban_begin)
        for (int32_t i = l->ban_begin[r]; i < l->ban_begin[r + 1]; i++) {
            if (l->ban_id[i] >= 0 && l->ban_id[i] < v) x[l->ban_id[i]] = -INFINITY;
            else atomic_store(&j->outside, r);
        }
}

void mx_cpu_logits_process(mx_stream *s, mx_tensor logits, const mx_sample_row *rows, const mx_logit_lists *lists)
{
    process_job j = {.logits = logits, .rows = rows, .lists = lists, .outside = -1};
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

/* a[0], a[1], ... in order, each sorted when it is asked for. */
typedef struct sorter {
    candidate *a;
    int64_t   *ends;           /* stack: a[i] is in place for i in it */
    int64_t    depth;
} sorter;

#define SORTER_DEPTH 128       /* 2 log2 of any row, doubled; beyond it the range is sorted at once */

static int order(const void *a, const void *b)
{
    return before(*(const candidate *)a, *(const candidate *)b) ? -1 : 1;
}

static candidate take(sorter *q, int64_t i)
{
    while (q->depth && q->ends[q->depth - 1] > i) {
        int64_t end = q->ends[q->depth - 1];
        if (end - i <= 16 || q->depth == SORTER_DEPTH) {
            qsort(q->a + i, (size_t)(end - i), sizeof *q->a, order);
            q->ends[q->depth - 1] = i;          /* all up to `end` stand: mark the run as done */
            while (i < end) i++;
            q->ends[q->depth - 1] = end;
            return q->a[end - 1];
        }
        q->ends[q->depth++] = split(q->a, i, end);
    }
    return q->a[i];
}
