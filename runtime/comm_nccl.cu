/* comm_nccl.cu - comm.h between GPUs: NCCL, on a stream of its own.
 *
 * A bucket of gradients goes as soon as the backward pass has told its last range:
 * the moving stream waits for what the computing stream had been given by then,
 * and the pass goes on beside it.  Every owner of a part of the bucket is the root
 * of a sum; NCCL's order of adding depends on the machines and its version alone,
 * so a run gives the same bits again on the same cluster.
 *
 * libnccl.so.2 is loaded when several processes train on GPUs; its few calls are
 * declared here (NCCL 2's ABI), so that nothing of it is needed to build. */
#include "runtime/comm_device.h"
#include "runtime/device_cuda.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

#define BUCKET ((size_t)4 << 20)          /* elements: 16 MiB */

enum { NCCL_FLOAT32 = 7, NCCL_SUM = 0 };

typedef struct nccl_id { char internal[128]; } nccl_id;
typedef struct nccl_handle *nccl_comm;

typedef struct nccl {
    void       *file;                     /* dlopen's; NULL: it was in the process already */
    int       (*version)(int *v);
    int       (*unique_id)(nccl_id *id);
    int       (*init_rank)(nccl_comm *c, int size, nccl_id id, int rank);
    int       (*destroy)(nccl_comm c);
    int       (*group_start)(void);
    int       (*group_end)(void);
    int       (*reduce)(const void *from, void *to, size_t n, int type, int op, int root, nccl_comm c, cudaStream_t q);
    int       (*broadcast)(const void *from, void *to, size_t n, int type, int root, nccl_comm c, cudaStream_t q);
    const char *(*words)(int code);
    nccl_comm    comm;
    mx_stream   *stream;                  /* that computes */
    cudaStream_t q;                       /* that moves    */
    cudaEvent_t  event;
    int          rank, size;
    float       *data;                    /* the sum that is going on */
    size_t       count, buckets, sent, room;
    size_t      *missing;
    int          failed;                  /* NCCL's code   */
    cudaError_t  cuda;
} nccl;

static bool symbols(nccl *m, void *from)
{
    *(void **)&m->version = dlsym(from, "ncclGetVersion");
    *(void **)&m->unique_id = dlsym(from, "ncclGetUniqueId");
    *(void **)&m->init_rank = dlsym(from, "ncclCommInitRank");
    *(void **)&m->destroy = dlsym(from, "ncclCommDestroy");
    *(void **)&m->group_start = dlsym(from, "ncclGroupStart");
    *(void **)&m->group_end = dlsym(from, "ncclGroupEnd");
    *(void **)&m->reduce = dlsym(from, "ncclReduce");
    *(void **)&m->broadcast = dlsym(from, "ncclBroadcast");
    *(void **)&m->words = dlsym(from, "ncclGetErrorString");
    return m->version && m->unique_id && m->init_rank && m->destroy && m->group_start && m->group_end && m->reduce && m->broadcast && m->words;
}

static bool load(nccl *m)
{
    static const char *const names[] = {"libnccl.so.2", "libnccl.so"};
    int version = 0;
    bool have = symbols(m, RTLD_DEFAULT);
    for (size_t i = 0; !have && i < sizeof names / sizeof *names; i++) {
        m->file = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
        have = m->file && symbols(m, m->file);
    }
    return have && m->version(&version) == 0 && version >= 2000;
}

static void nccl_close(void *impl)
{
    nccl *m = (nccl *)impl;
    if (m->q) cudaStreamSynchronize(m->q);
    if (m->comm) m->destroy(m->comm);
    if (m->event) cudaEventDestroy(m->event);
    if (m->q) cudaStreamDestroy(m->q);
    if (m->file) dlclose(m->file);
    free(m->missing);
    free(m);
}

static mx_status said(nccl *m, const char *what, mx_error *err)
{
    if (m->failed) return mx_fail(err, MX_ERR_UNAVAILABLE, "%s: NCCL: %s", what, m->words(m->failed));
    if (m->cuda != cudaSuccess) return mx_fail(err, MX_ERR_DEVICE, "%s: %s", what, cudaGetErrorString(m->cuda));
    return MX_OK;
}

static mx_status nccl_open(void **impl, mx_stream *s, mx_comm *host, mx_error *err)
{
    nccl_id id;
    mx_status st;
    nccl *m = (nccl *)calloc(1, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "comm");
    memset(&id, 0, sizeof id);
    m->stream = s;
    m->rank = mx_comm_rank(host);
    m->size = mx_comm_size(host);
    st = load(m) ? MX_OK : mx_fail(err, MX_ERR_UNAVAILABLE, "libnccl.so.2 is not there");
    double without = st ? 1 : 0;              /* all of them, or none */
    mx_status met = mx_comm_sum_doubles(host, &without, 1, err);
    if (!met && !st && without > 0) st = mx_fail(err, MX_ERR_UNAVAILABLE, "another process has no libnccl.so.2");
    if (met) st = met;
    if (!st) {
        mx_cuda_queue(s);                     /* its device becomes this thread's */
        if (m->rank == 0) m->failed = m->unique_id(&id);
        st = mx_comm_broadcast(host, &id, sizeof id, 0, err);
    }
    if (!st) {
        m->cuda = cudaStreamCreateWithFlags(&m->q, cudaStreamNonBlocking);
        if (m->cuda == cudaSuccess) m->cuda = cudaEventCreateWithFlags(&m->event, cudaEventDisableTiming);
        if (!m->failed && m->cuda == cudaSuccess) m->failed = m->init_rank(&m->comm, m->size, id, m->rank);
        st = said(m, "bringing the GPUs together", err);
    }
    if (st) nccl_close(m);
    else *impl = m;
    return st;
}

/* `later` begins when `first` has done what it was given so far. */
static void wait_for(nccl *m, cudaStream_t later, cudaStream_t first)
{
    if (m->cuda == cudaSuccess) m->cuda = cudaEventRecord(m->event, first);
    if (m->cuda == cudaSuccess) m->cuda = cudaStreamWaitEvent(later, m->event, 0);
}

static void send_bucket(nccl *m, size_t bucket)
{
    size_t first = bucket * BUCKET, last = first + BUCKET < m->count ? first + BUCKET : m->count;
    wait_for(m, m->q, (cudaStream_t)mx_cuda_queue(m->stream));
    if (!m->failed) m->failed = m->group_start();
    for (int r = 0; !m->failed && r < m->size; r++) {
        size_t begin, end;
        mx_comm_shard_of(r, m->size, m->count, &begin, &end);
        if (begin < first) begin = first;
        if (end > last) end = last;
        if (begin < end) m->failed = m->reduce(m->data + begin, m->data + begin, end - begin, NCCL_FLOAT32, NCCL_SUM, r, m->comm, m->q);
    }
    if (!m->failed) m->failed = m->group_end();
    m->sent++;
}

static mx_status nccl_reduce_begin(void *impl, float *data, size_t count, mx_error *err)
{
    nccl *m = (nccl *)impl;
    m->buckets = (count + BUCKET - 1) / BUCKET;
    if (m->buckets > m->room) {
        size_t *missing = (size_t *)realloc(m->missing, m->buckets * sizeof *missing);
        if (!missing) return mx_fail(err, MX_ERR_NO_MEMORY, "comm: a list of %zu buckets", m->buckets);
        m->missing = missing;
        m->room = m->buckets;
    }
    m->data = data;
    m->count = count;
    m->sent = 0;
    for (size_t b = 0; b < m->buckets; b++) m->missing[b] = b + 1 < m->buckets ? BUCKET : count - b * BUCKET;
    return said(m, "sum of gradients", err);
}

static void nccl_reduce_ready(void *impl, size_t first, size_t n)
{
    nccl *m = (nccl *)impl;
    size_t end = first + n;
    for (size_t b = first / BUCKET; n && b < m->buckets && b * BUCKET < end; b++) {
        size_t from = first > b * BUCKET ? first : b * BUCKET, to = end < (b + 1) * BUCKET ? end : (b + 1) * BUCKET;
        m->missing[b] -= to - from;
        if (!m->missing[b]) send_bucket(m, b);
    }
}

static mx_status nccl_reduce_wait(void *impl, mx_error *err)
{
    nccl *m = (nccl *)impl;
    wait_for(m, (cudaStream_t)mx_cuda_queue(m->stream), m->q);
    MX_TRY(said(m, "sum of gradients", err));
    return m->sent == m->buckets ? MX_OK : mx_fail(err, MX_ERR_INTERNAL, "comm: %zu of %zu buckets were ready", m->sent, m->buckets);
}

static mx_status nccl_gather(void *impl, float *data, size_t count, mx_error *err)
{
    nccl *m = (nccl *)impl;
    wait_for(m, m->q, (cudaStream_t)mx_cuda_queue(m->stream));
    if (!m->failed) m->failed = m->group_start();
    for (int r = 0; !m->failed && r < m->size; r++) {
        size_t begin, end;
        mx_comm_shard_of(r, m->size, count, &begin, &end);
        if (begin < end) m->failed = m->broadcast(data + begin, data + begin, end - begin, NCCL_FLOAT32, r, m->comm, m->q);
    }
    if (!m->failed) m->failed = m->group_end();
    if (!m->failed && m->cuda == cudaSuccess) m->cuda = cudaStreamSynchronize(m->q);      /* other streams read it too */
    return said(m, "gathering of weights", err);
}

extern "C" const mx_comm_device_ops mx_comm_nccl = {nccl_open, nccl_close, nccl_reduce_begin, nccl_reduce_ready, nccl_reduce_wait, nccl_gather};
