/* comm_mpi.c - comm.h over MPI; the only file that knows it.
 *
 * A thread of its own exchanges buckets of gradients while the backward pass
 * goes on: every process sends each shard's part of a bucket to its owner, and
 * the owner adds what came in the order of the ranks.  Networks tell their
 * ranges in the same order on every process, so buckets become whole in the same
 * order too, and one after the other is enough.  MPI is called from that thread
 * between reduce_begin and reduce_wait, and from the caller's otherwise. */
#include "runtime/comm.h"

#include <mpi.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET ((size_t)1 << 20)          /* elements: 4 MiB */
#define CHUNK  ((size_t)1 << 28)          /* elements of one message at most: counts are ints */

typedef struct mpi {
    int rank, size;
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  news;
    bool      running, stop;
    /* the sum that is going on */
    float    *data;
    size_t    count, buckets, room;
    size_t   *missing;                    /* elements of each bucket that are not final    */
    size_t   *queue, queued, taken;       /* whole buckets, in the order they became so    */
    int       failed;                     /* MPI's code                                    */
    float    *stage;                      /* [size][BUCKET]                                */
    MPI_Request *requests;
} mpi;

static mx_status mpi_error(mx_error *err, const char *what, int code)
{
    char text[MPI_MAX_ERROR_STRING];
    int len = 0;
    MPI_Error_string(code, text, &len);
    return mx_fail(err, MX_ERR_UNAVAILABLE, "%s: another process is gone or cannot be reached: %.*s", what, len, text);
}

/* ---- the exchange of one bucket ------------------------------------------------------- */

static void meet(size_t a, size_t b, size_t c, size_t d, size_t *begin, size_t *end)
{
    *begin = a > c ? a : c;
    *end = b < d ? b : d;
    if (*end < *begin) *end = *begin;
}

/* Element by element: rank 0 + rank 1 + ... */
static void add_up(const mpi *m, size_t begin, size_t n)
{
    float *own = m->data + begin, *sum = m->stage + (size_t)m->rank * BUCKET;
    memcpy(sum, own, n * sizeof *own);
    memcpy(own, m->stage, n * sizeof *own);
    for (int r = 1; r < m->size; r++) {
        const float *part = m->stage + (size_t)r * BUCKET;
        for (size_t i = 0; i < n; i++) own[i] += part[i];
    }
}

static int exchange(mpi *m, size_t bucket)
{
    size_t first = bucket * BUCKET, last = first + BUCKET < m->count ? first + BUCKET : m->count, begin, end, own_begin, own_end;
    int n = 0, code = MPI_SUCCESS, tag = (int)(bucket & 0x3fff);
    mx_comm_shard_of(m->rank, m->size, m->count, &begin, &end);
    meet(first, last, begin, end, &own_begin, &own_end);
    for (int r = 0; !code && r < m->size; r++) {
        if (r == m->rank || own_begin == own_end) continue;
        code = MPI_Irecv(m->stage + (size_t)r * BUCKET, (int)(own_end - own_begin), MPI_FLOAT, r, tag, MPI_COMM_WORLD, &m->requests[n++]);
    }
    for (int r = 0; !code && r < m->size; r++) {
        size_t b, e;
        mx_comm_shard_of(r, m->size, m->count, &begin, &end);
        meet(first, last, begin, end, &b, &e);
        if (r == m->rank || b == e) continue;
        code = MPI_Isend(m->data + b, (int)(e - b), MPI_FLOAT, r, tag, MPI_COMM_WORLD, &m->requests[n++]);
    }
    if (!code) code = MPI_Waitall(n, m->requests, MPI_STATUSES_IGNORE);
    if (!code && own_begin < own_end) add_up(m, own_begin, own_end - own_begin);
    return code;
}

static void *exchange_buckets(void *ctx)
{
    mpi *m = ctx;
    pthread_mutex_lock(&m->lock);
    while (!m->stop) {
        if (m->taken == m->queued || m->failed) {
            pthread_cond_wait(&m->news, &m->lock);
            continue;
        }
        size_t bucket = m->queue[m->taken];
        pthread_mutex_unlock(&m->lock);
        int code = exchange(m, bucket);
        pthread_mutex_lock(&m->lock);
        m->taken++;
        if (code) m->failed = code;
        pthread_cond_broadcast(&m->news);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

/* ---- the table -------------------------------------------------------------------------- */

static void close_mpi(void *impl)
{
    mpi *m = impl;
    if (m->running) {
        pthread_mutex_lock(&m->lock);
        m->stop = true;
        pthread_cond_broadcast(&m->news);
        pthread_mutex_unlock(&m->lock);
        pthread_join(m->thread, NULL);
    }
    pthread_cond_destroy(&m->news);
    pthread_mutex_destroy(&m->lock);
    free(m->requests);
    free(m->stage);
    free(m->queue);
    free(m->missing);
    free(m);
    MPI_Finalize();
}

static mx_status open_mpi(void **impl, int *rank, int *size, mx_error *err)
{
    int given = 0;
    mpi *m = calloc(1, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "comm");
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &given) || given < MPI_THREAD_SERIALIZED) {
        free(m);
        return mx_fail(err, MX_ERR_UNAVAILABLE, "MPI does not start with threads");
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &m->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &m->size);
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->news, NULL);
    m->stage = malloc((size_t)m->size * BUCKET * sizeof *m->stage);
    m->requests = calloc(2 * (size_t)m->size, sizeof(MPI_Request));
    m->running = m->stage && m->requests && !pthread_create(&m->thread, NULL, exchange_buckets, m);
    if (!m->running) {
        mx_fail(err, MX_ERR_NO_MEMORY, "comm: %zu bytes to exchange with", (size_t)m->size * BUCKET * sizeof(float));
        close_mpi(m);
        return MX_ERR_NO_MEMORY;
    }
    *rank = m->rank;
    *size = m->size;
    *impl = m;
    return MX_OK;
}

static mx_status reduce_begin(void *impl, float *data, size_t count, mx_error *err)
{
    mpi *m = impl;
    size_t buckets = (count + BUCKET - 1) / BUCKET;
    if (buckets > m->room) {
        size_t *missing = realloc(m->missing, buckets * sizeof *missing);
        if (missing) m->missing = missing;
        size_t *queue = missing ? realloc(m->queue, buckets * sizeof *queue) : NULL;
        if (queue) m->queue = queue;
        if (!queue) return mx_fail(err, MX_ERR_NO_MEMORY, "comm: a list of %zu buckets", buckets);
        m->room = buckets;
    }
    pthread_mutex_lock(&m->lock);
    m->data = data;
    m->count = count;
    m->buckets = buckets;
    m->queued = m->taken = 0;
    for (size_t b = 0; b < buckets; b++) m->missing[b] = b + 1 < buckets ? BUCKET : count - b * BUCKET;
    pthread_mutex_unlock(&m->lock);
    return MX_OK;
}

static void reduce_ready(void *impl, size_t first, size_t n)
{
    mpi *m = impl;
    pthread_mutex_lock(&m->lock);
    for (size_t b = first / BUCKET; n && b < m->buckets; b++) {
        size_t begin, end;
        meet(b * BUCKET, (b + 1) * BUCKET, first, first + n, &begin, &end);
        if (begin == end) break;
        m->missing[b] -= end - begin;
        if (!m->missing[b]) m->queue[m->queued++] = b;
    }
    pthread_cond_broadcast(&m->news);
    pthread_mutex_unlock(&m->lock);
}

static mx_status reduce_wait(void *impl, mx_error *err)
{
    mpi *m = impl;
    pthread_mutex_lock(&m->lock);
    size_t queued = m->queued;
    while (m->taken < m->queued && !m->failed) pthread_cond_wait(&m->news, &m->lock);
    int code = m->failed;
    pthread_mutex_unlock(&m->lock);
    if (code) return mpi_error(err, "sum of gradients", code);
    return queued == m->buckets ? MX_OK : mx_fail(err, MX_ERR_INTERNAL, "comm: %zu of %zu buckets were ready", queued, m->buckets);
}

static mx_status gather(void *impl, float *data, size_t count, mx_error *err)
{
    const mpi *m = impl;
    for (int r = 0; r < m->size; r++) {
        size_t begin, end;
        mx_comm_shard_of(r, m->size, count, &begin, &end);
        for (; begin < end; begin += CHUNK) {
            size_t n = end - begin < CHUNK ? end - begin : CHUNK;
            int code = MPI_Bcast(data + begin, (int)n, MPI_FLOAT, r, MPI_COMM_WORLD);
            if (code) return mpi_error(err, "gathering of weights", code);
        }
    }
    return MX_OK;
}

static mx_status sum_doubles(void *impl, double *x, size_t n, mx_error *err)
{
    const mpi *m = impl;
    if (n > CHUNK) return mx_fail(err, MX_ERR_ARG, "comm: a sum of %zu numbers", n);
    double *all = malloc((size_t)m->size * n * sizeof *all);
    if (!all) return mx_fail(err, MX_ERR_NO_MEMORY, "comm: a sum of %zu numbers", n);
    int code = MPI_Allgather(x, (int)n, MPI_DOUBLE, all, (int)n, MPI_DOUBLE, MPI_COMM_WORLD);
    for (size_t i = 0; !code && i < n; i++) {
        x[i] = all[i];
        for (int r = 1; r < m->size; r++) x[i] += all[(size_t)r * n + i];
    }
    free(all);
    return code ? mpi_error(err, "sum", code) : MX_OK;
}

static mx_status broadcast(void *impl, void *data, size_t bytes, int root, mx_error *err)
{
    (void)impl;
    for (size_t at = 0; at < bytes; at += CHUNK) {
        size_t n = bytes - at < CHUNK ? bytes - at : CHUNK;
        int code = MPI_Bcast((char *)data + at, (int)n, MPI_BYTE, root, MPI_COMM_WORLD);
        if (code) return mpi_error(err, "broadcast", code);
    }
    return MX_OK;
}

static void give_up(void *impl)
{
    (void)impl;
    MPI_Abort(MPI_COMM_WORLD, 1);
}

const mx_comm_ops mx_comm_mpi = {open_mpi, close_mpi, reduce_begin, reduce_ready, reduce_wait, gather, sum_doubles, broadcast, give_up};
