/* nearest.c - packed rows, tiles of scores, the k best of each query. */
#include "models/nearest.h"

#include "kernels/ops.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { TILE = 2048, TOGETHER = 32 };      /* rows and queries of one product */

struct mx_vectors {
    pthread_rwlock_t lock;
    int32_t  dim, count, room, ids;       /* count: rows, holes too; ids: of row_of */
    int32_t  hole, holes;                 /* hole: a row + 1 that is free, or 0 */
    float   *x;                           /* [count, dim]                    */
    float   *length;                      /* [count]                         */
    int32_t *id_of, *row_of;              /* id_of: of a hole ~(the next one); row_of: row + 1, or 0 */
};

mx_status mx_vectors_open(mx_vectors **out, int32_t dim, mx_error *err)
{
    *out = NULL;
    if (dim < 1 || dim > 65536) return mx_fail(err, MX_ERR_ARG, "vectors of %d numbers: from 1 to 65536", dim);
    mx_vectors *v = calloc(1, sizeof *v);
    if (!v) return mx_fail(err, MX_ERR_NO_MEMORY, "vectors");
    pthread_rwlockattr_t fair;            /* a stream of searches does not keep changes out */
    pthread_rwlockattr_init(&fair);
    pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&v->lock, &fair);
    pthread_rwlockattr_destroy(&fair);
    v->dim = dim;
    *out = v;
    return MX_OK;
}

void mx_vectors_close(mx_vectors *v)
{
    if (!v) return;
    free(v->x);
    free(v->length);
    free(v->id_of);
    free(v->row_of);
    pthread_rwlock_destroy(&v->lock);
    free(v);
}

static pthread_rwlock_t *reading(const mx_vectors *v)
{
    pthread_rwlock_t *lock = (pthread_rwlock_t *)&v->lock;
    pthread_rwlock_rdlock(lock);
    return lock;
}

int32_t mx_vectors_count(const mx_vectors *v)
{
    pthread_rwlock_t *lock = reading(v);
    int32_t n = v->count - v->holes;
    pthread_rwlock_unlock(lock);
    return n;
}

static float *row(const mx_vectors *v, int32_t i) { return v->x + (size_t)i * (size_t)v->dim; }

static bool grow(void *array, size_t n, size_t size)
{
    void **at = array;
    size_t bytes;
    if (!mx_mul_size(n, size, &bytes)) return false;
    void *grown = realloc(*at, bytes);
    if (grown) *at = grown;
    return grown != NULL;
}

static bool room_for(mx_vectors *v, int32_t id)
{
    if (v->count == v->room && !v->hole) {
        size_t room = (size_t)v->room + (size_t)v->room / 2 + 64;
        if (room > INT32_MAX || !grow(&v->x, room, 4 * (size_t)v->dim) || !grow(&v->length, room, 4) || !grow(&v->id_of, room, 4)) return false;
        v->room = (int32_t)room;
    }
    if (id < v->ids) return true;
    size_t ids = (size_t)id + (size_t)id / 2 + 64;
    if (ids > INT32_MAX) ids = INT32_MAX;
    if (!grow(&v->row_of, ids, 4)) return false;
    memset(v->row_of + v->ids, 0, 4 * (ids - (size_t)v->ids));
    v->ids = (int32_t)ids;
    return true;
}

static float length_of(const float *x, int32_t dim)
{
    double sum = 0;
    for (int32_t c = 0; c < dim; c++) sum += (double)x[c] * (double)x[c];
    return (float)sqrt(sum);
}

mx_status mx_vectors_put(mx_vectors *v, int32_t id, const float *x, mx_error *err)
{
    float length = length_of(x, v->dim);
    if (id < 0 || id == INT32_MAX) return mx_fail(err, MX_ERR_ARG, "vector %d: a number is 0 or more", id);
    if (!isfinite(length)) return mx_fail(err, MX_ERR_ARG, "vector %d is not finite", id);
    pthread_rwlock_wrlock(&v->lock);
    bool ok = room_for(v, id);
    if (ok) {
        if (!v->row_of[id]) {
            int32_t at = v->hole ? v->hole : ++v->count;
            if (v->hole) v->hole = ~v->id_of[at - 1], v->holes--;
            v->id_of[at - 1] = id;
            v->row_of[id] = at;
        }
        int32_t i = v->row_of[id] - 1;
        memcpy(row(v, i), x, 4 * (size_t)v->dim);
        v->length[i] = length;
    }
    pthread_rwlock_unlock(&v->lock);
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%d vectors", v->count);
}

/* Rows stay where they are: a search may be between two tiles. */
void mx_vectors_remove(mx_vectors *v, int32_t id)
{
    pthread_rwlock_wrlock(&v->lock);
    if (id >= 0 && id < v->ids && v->row_of[id]) {
        int32_t i = v->row_of[id] - 1;
        memset(row(v, i), 0, 4 * (size_t)v->dim);
        v->length[i] = 0;
        v->id_of[i] = ~v->hole;
        v->hole = i + 1, v->holes++;
        v->row_of[id] = 0;
    }
    pthread_rwlock_unlock(&v->lock);
}

bool mx_vectors_get(const mx_vectors *v, int32_t id, float *to)
{
    pthread_rwlock_t *lock = reading(v);
    bool there = id >= 0 && id < v->ids && v->row_of[id];
    if (there) memcpy(to, row(v, v->row_of[id] - 1), 4 * (size_t)v->dim);
    pthread_rwlock_unlock(lock);
    return there;
}

/* ---- the k best: a heap whose top is the worst -------------------------------------------------- */

static bool better(mx_hit a, mx_hit b) { return a.score != b.score ? a.score > b.score : a.id < b.id; }

static void sink(mx_hit *h, int32_t n, int32_t i)
{
    for (;;) {
        int32_t worst = i, l = 2 * i + 1, r = l + 1;
        if (l < n && better(h[worst], h[l])) worst = l;
        if (r < n && better(h[worst], h[r])) worst = r;
        if (worst == i) return;
        mx_hit t = h[i];
        h[i] = h[worst];
        h[worst] = t;
        i = worst;
    }
}

static void offer(mx_hit *h, int32_t *n, int32_t k, mx_hit x)
{
    if (*n < k) {
        int32_t i = (*n)++;
        for (h[i] = x; i && better(h[(i - 1) / 2], h[i]); i = (i - 1) / 2) {
            mx_hit t = h[i];
            h[i] = h[(i - 1) / 2];
            h[(i - 1) / 2] = t;
        }
    } else if (better(x, h[0])) {
        h[0] = x;
        sink(h, k, 0);
    }
}

static int best_first(const void *a, const void *b)
{
    const mx_hit *x = a, *y = b;
    return better(*x, *y) ? -1 : better(*y, *x);
}

typedef struct search {
    const mx_vectors *v;
    int32_t k;
    mx_likeness how;
    bool  (*admit)(void *ctx, int32_t id);
    void   *ctx;
} search;

static void offer_tile(const search *q, const float *score, float query_length, int32_t first, int32_t rows, mx_hit *hit, int32_t *n)
{
    for (int32_t i = 0; i < rows; i++) {
        int32_t id = q->v->id_of[first + i];
        float x = score[i];
        if (id < 0) continue;
        if (q->how == MX_LIKE_COSINE) {
            float both = query_length * q->v->length[first + i];
            x = both > 0 ? x / both : 0;
        }
        mx_hit h = {id, x};
        if (*n == q->k && !better(h, hit[0])) continue;        /* most rows end here, before they are asked about */
        if (!q->admit || q->admit(q->ctx, id)) offer(hit, n, q->k, h);
    }
}

static mx_status search_tile(const search *q, mx_stream *s, const float *queries, int32_t n, const float *length, float *score, int32_t first, mx_hit *hit, int32_t *found,
                             mx_error *err)
{
    const mx_vectors *v = q->v;
    int32_t rows = v->count - first < TILE ? v->count - first : TILE;
    mx_product(s, mx_tensor_of(score, MX_F32, n, rows), mx_tensor_of((void *)(uintptr_t)queries, MX_F32, n, v->dim),
               mx_tensor_of(row(v, first), MX_F32, rows, v->dim), (mx_tensor){0}, MX_F32, false);
    MX_TRY(mx_stream_sync(s, err));
    for (int32_t i = 0; i < n; i++) offer_tile(q, score + (size_t)i * (size_t)rows, length[i], first, rows, hit + (size_t)i * (size_t)q->k, &found[i]);
    return MX_OK;
}

static mx_status search_some(const search *q, mx_stream *s, const float *queries, int32_t n, float *score, mx_hit *hit, int32_t *found, mx_error *err)
{
    const mx_vectors *v = q->v;
    float length[TOGETHER];
    mx_status st = MX_OK;
    bool more = true;
    for (int32_t i = 0; i < n; i++) {
        length[i] = length_of(queries + (size_t)i * (size_t)v->dim, v->dim);
        found[i] = 0;
    }
    for (int32_t first = 0; !st && more; first += TILE) {
        pthread_rwlock_t *lock = reading(v);
        more = first < v->count;
        if (more) st = search_tile(q, s, queries, n, length, score, first, hit, found, err);
        pthread_rwlock_unlock(lock);
    }
    for (int32_t i = 0; !st && i < n; i++)
        if (found[i]) qsort(hit + (size_t)i * (size_t)q->k, (size_t)found[i], sizeof *hit, best_first);
    return st;
}

mx_status mx_vectors_search(const mx_vectors *v, mx_stream *s, const float *queries, int32_t n, int32_t k, mx_likeness how,
                            bool (*admit)(void *ctx, int32_t id), void *ctx, mx_hit *hit, int32_t *found, mx_error *err)
{
    search q = {v, k, how, admit, ctx};
    if (n < 0 || k < 1) return mx_fail(err, MX_ERR_ARG, "a search for the %d nearest of %d", k, n);
    if (s->dev->kind != MX_CPU) return mx_fail(err, MX_ERR_ARG, "vectors are searched on a CPU device");
    float *score = malloc(sizeof *score * TILE * TOGETHER);
    if (!score) return mx_fail(err, MX_ERR_NO_MEMORY, "a search");
    mx_status st = MX_OK;
    for (int32_t i = 0; !st && i < n; i += TOGETHER) {
        int32_t some = n - i < TOGETHER ? n - i : TOGETHER;
        st = search_some(&q, s, queries + (size_t)i * (size_t)v->dim, some, score, hit + (size_t)i * (size_t)k, found + i, err);
    }
    free(score);
    return st;
}

static int by_number(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return x < y ? -1 : x > y;
}

mx_status mx_vectors_centroid(const mx_vectors *v, const int32_t *ids, int32_t n, float *to, mx_error *err)
{
    int32_t *sorted = malloc(4 * (size_t)(n > 0 ? n : 1));
    double *sum = calloc((size_t)v->dim, sizeof *sum), length = 0;
    mx_status st = sorted && sum ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a centre of %d vectors", n);
    if (!st && n > 0) {
        memcpy(sorted, ids, 4 * (size_t)n);
        qsort(sorted, (size_t)n, sizeof *sorted, by_number);
        pthread_rwlock_t *lock = reading(v);
        for (int32_t i = 0; i < n; i++) {
            int32_t r = sorted[i] >= 0 && sorted[i] < v->ids ? v->row_of[sorted[i]] - 1 : -1;
            if (r < 0 || !(v->length[r] > 0)) continue;
            for (int32_t c = 0; c < v->dim; c++) sum[c] += (double)row(v, r)[c] / (double)v->length[r];
        }
        pthread_rwlock_unlock(lock);
    }
    for (int32_t c = 0; !st && c < v->dim; c++) length += sum[c] * sum[c];
    if (!st && !(length > 0)) st = mx_fail(err, MX_ERR_NOT_FOUND, "none of %d seeds has a vector", n);
    for (int32_t c = 0; !st && c < v->dim; c++) to[c] = (float)(sum[c] / sqrt(length));
    free(sorted);
    free(sum);
    return st;
}
