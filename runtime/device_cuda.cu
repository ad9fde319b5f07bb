/* device_cuda.cu - one GPU: memory from the driver's pool, streams with pinned staging. */
#include "runtime/device_cuda.h"

#include <cuda_runtime.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define SEGMENTS 4
#define SEGMENT  ((size_t)1 << 20)      /* bytes of pinned memory an upload fills before the next is taken */
#define BATCHES  3                      /* of downloads: two that were marked, and what came since            */
#define BACK     ((size_t)1 << 20)      /* bytes that the downloads of a batch may use                     */
#define PENDING  64                     /* downloads of a batch, before one waits                          */
#define SECTIONS 128                    /* that a stream remembers; the one that was used longest ago goes  */

typedef struct cuda_device {
    int             ordinal, processors;
    cudaStream_t    memory;             /* allocations, in order with one another */
    pthread_mutex_t loading;
    mx_stream       loader;
    mx_cuda_library library[MX_CUDA_SLOTS];
    unsigned long   lost;               /* (atomic) an error that stays: its context is gone */
    unsigned long   released;           /* times that memory was given back: graphs may hold its address (atomic) */
} cuda_device;

/* A section (device.h): noticed when it first comes, recorded the second time, replayed from then on. */
typedef struct cuda_section {
    unsigned char   key[MX_SECTION_KEY];
    size_t          n;
    cudaGraphExec_t graph;              /* NULL: not recorded yet          */
    unsigned long   released, used;     /* the device's count; when it last came */
} cuda_section;

/* Downloads between two marks, on their way to the caller. */
typedef struct cuda_batch {
    struct { void *host; const char *from; size_t n; } pending[PENDING];
    int            n;
    size_t         at;                  /* bytes of its pinned memory in use */
    cudaEvent_t    passed;
    unsigned       mark;                /* that ends it; 0: none yet         */
} cuda_batch;

typedef struct cuda_stream {
    cudaStream_t   q;
    char          *ring, *back;         /* pinned */
    size_t         at;
    int            segment;
    cudaEvent_t    passed[SEGMENTS];    /* the copies out of a segment are done */
    bool           busy[SEGMENTS];
    cuda_batch     batch[BATCHES];
    int            now;                 /* the batch that downloads join */
    unsigned       marks;
    void          *work;
    size_t         work_size;
    mx_cuda_fault *fault;               /* pinned */
    cuda_section  *section;             /* [SECTIONS] */
    unsigned long  sections_used;
    cuda_section  *recording;
} cuda_stream;

static cuda_device *device_of(const mx_device *d) { return (cuda_device *)d->impl; }
static cuda_stream *stream_of(const mx_stream *s) { return (cuda_stream *)s->impl; }

/* Whether what went wrong stays: then every call fails from now on, on any stream. */
static bool is_lost(cuda_device *c)
{
    if (c->memory && !__atomic_load_n(&c->lost, __ATOMIC_ACQUIRE)) {
        cudaError_t e = cudaStreamQuery(c->memory);
        if (e != cudaSuccess && e != cudaErrorNotReady) __atomic_fetch_add(&c->lost, 1, __ATOMIC_RELEASE);
    }
    return __atomic_load_n(&c->lost, __ATOMIC_ACQUIRE);
}

static mx_status fail(mx_error *err, const mx_device *d, const char *what, cudaError_t e)
{
    cudaGetLastError();                 /* what is not sticky is forgotten */
    if (is_lost(device_of(d))) return mx_fail(err, MX_ERR_UNAVAILABLE, "%s is lost: %s: %s", d->name, what, cudaGetErrorString(e));
    return mx_fail(err, e == cudaErrorMemoryAllocation ? MX_ERR_NO_MEMORY : MX_ERR_DEVICE, "%s: %s: %s", d->name, what,
                   cudaGetErrorString(e));
}

/* ---- memory ---------------------------------------------------------------------------- */

static mx_status cuda_alloc(mx_device *d, size_t size, void **out, mx_error *err)
{
    cuda_device *c = device_of(d);
    *out = NULL;
    cudaError_t e = cudaSetDevice(c->ordinal);
    if (e == cudaSuccess) e = cudaMallocAsync(out, size, c->memory);
    if (e != cudaSuccess) {
        char what[64];
        snprintf(what, sizeof what, "%zu bytes", size);
        *out = NULL;
        return fail(err, d, what, e);
    }
    e = cudaMemsetAsync(*out, 0, size, c->memory);
    if (e == cudaSuccess) e = cudaStreamSynchronize(c->memory);
    if (e == cudaSuccess) return MX_OK;
    cudaFreeAsync(*out, c->memory);
    *out = NULL;
    return fail(err, d, "clearing memory", e);
}

/* Streams may still work on it: they are waited for, as cudaFree() would. */
static void cuda_release(mx_device *d, void *base, size_t size)
{
    (void)size;
    cuda_device *c = device_of(d);
    cudaSetDevice(c->ordinal);
    cudaDeviceSynchronize();
    __atomic_fetch_add(&c->released, 1, __ATOMIC_RELEASE);
    cudaFreeAsync(base, c->memory);
    cudaGetLastError();
}

/* ---- sections: CUDA graphs ------------------------------------------------------------------ */

/* What runs of it is waited for. */
static void graph_drop(cuda_stream *t, cuda_section *c)
{
    if (!c->graph) return;
    cudaStreamSynchronize(t->q);
    cudaGraphExecDestroy(c->graph);
    c->graph = NULL;
}

static void graphs_drop(cuda_stream *t)
{
    for (int i = 0; t->section && i < SECTIONS; i++) graph_drop(t, &t->section[i]);
}

/* Where this key stands, or will: *known says which. */
static cuda_section *section_of(cuda_stream *t, const void *key, size_t n, bool *known)
{
    cuda_section *oldest = &t->section[0];
    for (int i = 0; i < SECTIONS; i++) {
        cuda_section *c = &t->section[i];
        *known = c->n == n && !memcmp(c->key, key, n);
        if (*known) return c;
        if (c->used < oldest->used) oldest = c;
    }
    return oldest;
}

static bool cuda_section_begin(mx_stream *s, const void *key, size_t n)
{
    cuda_stream *t = stream_of(s);
    bool known;
    if (s->error.code || n > MX_SECTION_KEY || !n) return false;
    unsigned long released = __atomic_load_n(&device_of(s->dev)->released, __ATOMIC_ACQUIRE);
    cuda_section *c = section_of(t, key, n, &known);
    if (!known || c->released != released) {       /* first time: what the ops allocate for themselves is there afterwards */
        graph_drop(t, c);
        memcpy(c->key, key, n);
        c->n = n;
        c->released = released;
        c->used = ++t->sections_used;
        return false;
    }
    c->used = ++t->sections_used;
    cudaStream_t q = (cudaStream_t)mx_cuda_queue(s);
    if (c->graph) {
        mx_cuda_ok(s, cudaGraphLaunch(c->graph, q), "a recorded turn");
        return true;
    }
    if (mx_cuda_ok(s, cudaStreamBeginCapture(q, cudaStreamCaptureModeThreadLocal), "recording a turn")) t->recording = c;
    return false;
}

static void cuda_section_end(mx_stream *s)
{
    cuda_stream *t = stream_of(s);
    cuda_section *c = t->recording;
    if (!c) return;
    t->recording = NULL;
    cudaGraph_t graph = NULL;
    cudaStream_t q = (cudaStream_t)mx_cuda_queue(s);
    cudaError_t e = cudaStreamEndCapture(q, &graph);
    if (e == cudaSuccess && !s->error.code) e = cudaGraphInstantiate(&c->graph, graph, 0);
    if (graph) cudaGraphDestroy(graph);
    if (e == cudaSuccess && c->graph) e = cudaGraphLaunch(c->graph, q);
    if (!mx_cuda_ok(s, e, "a recorded turn")) cudaGetLastError();
    if (s->error.code) graph_drop(t, c);
}

/* ---- streams ----------------------------------------------------------------------------- */

static void cuda_stream_close(mx_stream *s)
{
    cuda_stream *t = stream_of(s);
    if (!t) return;
    cudaSetDevice(device_of(s->dev)->ordinal);
    if (t->q) cudaStreamSynchronize(t->q);
    graphs_drop(t);
    free(t->section);
    if (t->work) cudaFreeAsync(t->work, t->q);
    for (int i = 0; i < SEGMENTS; i++)
        if (t->passed[i]) cudaEventDestroy(t->passed[i]);
    for (int i = 0; i < BATCHES; i++)
        if (t->batch[i].passed) cudaEventDestroy(t->batch[i].passed);
    if (t->q) {
        cudaStreamSynchronize(t->q);
        cudaStreamDestroy(t->q);
    }
    cudaFreeHost(t->fault);
    cudaFreeHost(t->back);
    cudaFreeHost(t->ring);
    cudaGetLastError();
    free(t);
    s->impl = NULL;
}

static mx_status cuda_stream_open(mx_device *d, mx_stream *s, mx_error *err)
{
    cuda_stream *t = (cuda_stream *)calloc(1, sizeof *t);
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: a stream", d->name);
    s->impl = t;
    t->section = (cuda_section *)calloc(SECTIONS, sizeof *t->section);
    if (!t->section) {
        cuda_stream_close(s);
        return mx_fail(err, MX_ERR_NO_MEMORY, "%s: a stream", d->name);
    }
    int least = 0, greatest = 0;
    cudaError_t e = cudaSetDevice(device_of(d)->ordinal);
    if (e == cudaSuccess) e = cudaDeviceGetStreamPriorityRange(&least, &greatest);
    if (e == cudaSuccess) e = cudaStreamCreateWithPriority(&t->q, cudaStreamNonBlocking, d->prompt ? greatest : least);
    if (e == cudaSuccess) e = cudaHostAlloc((void **)&t->ring, SEGMENTS * SEGMENT, cudaHostAllocDefault);
    if (e == cudaSuccess) e = cudaHostAlloc((void **)&t->back, BATCHES * BACK, cudaHostAllocDefault);
    if (e == cudaSuccess) e = cudaHostAlloc((void **)&t->fault, sizeof *t->fault, cudaHostAllocMapped);
    for (int i = 0; i < SEGMENTS && e == cudaSuccess; i++) e = cudaEventCreateWithFlags(&t->passed[i], cudaEventDisableTiming);
    for (int i = 0; i < BATCHES && e == cudaSuccess; i++) e = cudaEventCreateWithFlags(&t->batch[i].passed, cudaEventDisableTiming);
    if (e == cudaSuccess) {
        *t->fault = (mx_cuda_fault){0, 0, 0};
        return MX_OK;
    }
    cuda_stream_close(s);
    return fail(err, d, "opening a stream", e);
}

bool mx_cuda_ok(mx_stream *s, int error, const char *op)
{
    if (error == cudaSuccess) return true;
    mx_stream_fail(s, error == cudaErrorMemoryAllocation ? MX_ERR_NO_MEMORY : MX_ERR_DEVICE, "%s: %s: %s", op, s->dev->name,
                   cudaGetErrorString((cudaError_t)error));
    return false;
}

void *mx_cuda_queue(mx_stream *s)
{
    cudaSetDevice(device_of(s->dev)->ordinal);
    return stream_of(s)->q;
}

mx_cuda_fault *mx_cuda_faults(mx_stream *s) { return stream_of(s)->fault; }
int mx_cuda_processors(const mx_device *d) { return device_of(d)->processors; }
mx_cuda_library *mx_cuda_library_of(mx_device *d, mx_cuda_slot slot) { return &device_of(d)->library[slot]; }

void *mx_cuda_work(mx_stream *s, size_t size)
{
    cuda_stream *t = stream_of(s);
    if (size <= t->work_size) return t->work;
    if (t->recording) {                                      /* the same section ran before: its key lacks something */
        mx_stream_fail(s, MX_ERR_INTERNAL, "work memory grows inside a recorded turn");
        return NULL;
    }
    graphs_drop(t);                                          /* they hold the old address */
    cudaStream_t q = (cudaStream_t)mx_cuda_queue(s);
    size_t more = t->work_size + t->work_size / 2;          /* grows seldom */
    if (more < size) more = size;
    more = (more + 0xffff) & ~(size_t)0xffff;
    if (t->work) cudaFreeAsync(t->work, q);                  /* in order: what still uses it comes before */
    t->work = NULL;
    t->work_size = 0;
    if (!mx_cuda_ok(s, cudaMallocAsync(&t->work, more, q), "work memory")) {
        cudaGetLastError();
        t->work = NULL;
        return NULL;
    }
    t->work_size = more;
    return t->work;
}

/* ---- uploads: through the ring -------------------------------------------------------------- */

/* A recorded copy would read or write the same place of the ring each time. */
static bool may_copy(mx_stream *s, const char *what)
{
    if (stream_of(s)->recording) mx_stream_fail(s, MX_ERR_INTERNAL, "%s inside a recorded turn", what);
    return !s->error.code;
}

/* The next segment, once the copies that still read it are done. */
static cudaError_t next_segment(cuda_stream *t)
{
    cudaError_t e = cudaEventRecord(t->passed[t->segment], t->q);
    t->busy[t->segment] = true;
    t->segment = (t->segment + 1) % SEGMENTS;
    t->at = 0;
    if (e == cudaSuccess && t->busy[t->segment]) e = cudaEventSynchronize(t->passed[t->segment]);
    t->busy[t->segment] = false;
    return e;
}

static void cuda_upload(mx_stream *s, void *dst, const void *host, size_t n)
{
    if (s->error.code || !n || !may_copy(s, "an upload")) return;
    cuda_stream *t = stream_of(s);
    cudaError_t e = cudaSetDevice(device_of(s->dev)->ordinal);
    for (size_t done = 0; done < n && e == cudaSuccess;) {
        size_t room = SEGMENT - t->at, part = n - done < room ? n - done : room;
        if (!room) {
            e = next_segment(t);
            continue;
        }
        char *from = t->ring + (size_t)t->segment * SEGMENT + t->at;
        memcpy(from, (const char *)host + done, part);
        e = cudaMemcpyAsync((char *)dst + done, from, part, cudaMemcpyHostToDevice, t->q);
        t->at += (part + 15) & ~(size_t)15;
        done += part;
    }
    mx_cuda_ok(s, e, "upload");
}

/* ---- downloads: to pinned memory, handed over at the wait or the sync ----------------------------- */

static void batch_forget(cuda_batch *b)
{
    b->n = 0;
    b->at = 0;
    b->mark = 0;
}

static void batches_forget(cuda_stream *t)
{
    for (int i = 0; i < BATCHES; i++) batch_forget(&t->batch[i]);
}

static void hand_over(cuda_batch *b)
{
    for (int i = 0; i < b->n; i++) memcpy(b->pending[i].host, b->pending[i].from, b->pending[i].n);
    batch_forget(b);
}

static cudaError_t deliver(cuda_stream *t)
{
    cudaError_t e = cudaStreamSynchronize(t->q);
    if (e != cudaSuccess) {
        batches_forget(t);
        return e;
    }
    for (int i = 1; i <= BATCHES; i++) hand_over(&t->batch[(t->now + i) % BATCHES]);       /* the oldest first */
    return e;
}

static void cuda_download(mx_stream *s, void *host, const void *src, size_t n)
{
    if (s->error.code || !may_copy(s, "a download")) return;
    cuda_stream *t = stream_of(s);
    cudaError_t e = cudaSetDevice(device_of(s->dev)->ordinal);
    for (size_t done = 0; done < n && e == cudaSuccess;) {
        cuda_batch *b = &t->batch[t->now];
        size_t room = BACK - b->at, part = n - done < room ? n - done : room;
        if (!room || b->n == PENDING) {
            e = deliver(t);
            continue;
        }
        char *to = t->back + (size_t)t->now * BACK + b->at;
        e = cudaMemcpyAsync(to, (const char *)src + done, part, cudaMemcpyDeviceToHost, t->q);
        b->pending[b->n].host = (char *)host + done;
        b->pending[b->n].from = to;
        b->pending[b->n++].n = part;
        b->at += (part + 15) & ~(size_t)15;
        done += part;
    }
    mx_cuda_ok(s, e, "download");
}

static void cuda_clear(mx_stream *s, void *dst, size_t n)
{
    if (s->error.code || !n) return;
    mx_cuda_ok(s, cudaMemsetAsync(dst, 0, n, (cudaStream_t)mx_cuda_queue(s)), "clear");
}

/* ---- the end of a turn ---------------------------------------------------------------------------- */

static mx_status fault_text(const mx_cuda_fault *f, mx_error *err)
{
    static const char *const words[MX_CUDA_FAULTS] = {
        "", "embed: id %d of row %lld is outside the table", "kv_write: slot %d of row %lld is outside the cache",
        "page %d of row %lld is outside the cache", "attention_paged: %d of row %lld: no such sequence or position",
        "logits_process: id %d of row %lld is outside the vocabulary", "cross_entropy: target %d of row %lld is outside the classes",
        "begin %d of span %lld is out of order", "id %d of edge %lld is outside the table",
        "action %d of row %lld is outside the actions", "priority_set: id %d of row %lld is outside the transitions",
        "priority_sample: the tree is empty", "seat_rows: seat %d of row %lld is not there, or has no such place",
    };
    if (f->kind <= MX_CUDA_FINE || f->kind >= MX_CUDA_FAULTS) return mx_fail(err, MX_ERR_DEVICE, "fault record overwritten");
    char text[160];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    snprintf(text, sizeof text, words[f->kind], f->value, (long long)f->row);
#pragma GCC diagnostic pop
    return mx_fail(err, MX_ERR_ARG, "%s", text);
}

static mx_status cuda_sync(mx_stream *s, mx_error *err)
{
    cuda_stream *t = stream_of(s);
    mx_status st = MX_OK;
    cuda_section_end(s);                        /* a caller that gave up half way */
    cudaError_t e = cudaSetDevice(device_of(s->dev)->ordinal);
    if (e == cudaSuccess) e = cudaStreamSynchronize(t->q);
    if (e == cudaSuccess && t->fault->kind) {
        st = fault_text(t->fault, err);
        *t->fault = (mx_cuda_fault){0, 0, 0};
        batches_forget(t);                      /* results of a turn that failed */
    } else if (e == cudaSuccess) {
        e = deliver(t);
    }
    for (int i = 0; i < SEGMENTS; i++) t->busy[i] = false;
    t->at = 0;
    if (e == cudaSuccess) return st;
    batches_forget(t);
    return fail(err, s->dev, "waiting for the device", e);
}

/* ---- marks: the downloads of a turn while the next one runs ------------------------------------------- */

static unsigned cuda_mark(mx_stream *s)
{
    cuda_stream *t = stream_of(s);
    if (s->error.code) return 0;
    cuda_batch *b = &t->batch[t->now];
    cudaError_t e = cudaSetDevice(device_of(s->dev)->ordinal);
    if (e == cudaSuccess) e = cudaEventRecord(b->passed, t->q);
    if (!mx_cuda_ok(s, e, "a mark")) return 0;
    b->mark = ++t->marks ? t->marks : ++t->marks;
    unsigned mark = b->mark;
    t->now = (t->now + 1) % BATCHES;
    b = &t->batch[t->now];
    if (b->mark || b->n) mx_cuda_ok(s, deliver(t), "a mark");       /* nobody waited for the one before */
    return mark;
}

static mx_status cuda_wait(mx_stream *s, unsigned mark, mx_error *err)
{
    cuda_stream *t = stream_of(s);
    cuda_batch *b = NULL;
    for (int i = 0; i < BATCHES; i++)
        if (mark && t->batch[i].mark == mark) b = &t->batch[i];
    if (!b) return MX_OK;                       /* a sync came before */
    cudaError_t e = cudaSetDevice(device_of(s->dev)->ordinal);
    if (e == cudaSuccess) e = cudaEventSynchronize(b->passed);
    if (e != cudaSuccess) {
        batches_forget(t);
        return fail(err, s->dev, "waiting for a turn", e);
    }
    if (!*(volatile int *)&t->fault->kind) {     /* kernels of the next turn may be at work */
        hand_over(b);
        return MX_OK;
    }
    cudaStreamSynchronize(t->q);                /* it may be the next turn's: then both fail, and nobody writes the record any more */
    mx_status st = fault_text(t->fault, err);
    *t->fault = (mx_cuda_fault){0, 0, 0};
    batches_forget(t);
    return st;
}

static bool cuda_lost(mx_device *d)
{
    return __atomic_load_n(&device_of(d)->lost, __ATOMIC_ACQUIRE) != 0;
}

static void cuda_enter(mx_device *d)
{
    cudaSetDevice(device_of(d)->ordinal);
}

/* ---- the device --------------------------------------------------------------------------------------- */

mx_stream *mx_cuda_loader(mx_device *d, mx_error *err)
{
    cuda_device *c = device_of(d);
    pthread_mutex_lock(&c->loading);
    if (c->loader.dev || !mx_stream_open(&c->loader, d, 0, err)) return &c->loader;
    pthread_mutex_unlock(&c->loading);
    return NULL;
}

void mx_cuda_loader_done(mx_device *d)
{
    pthread_mutex_unlock(&device_of(d)->loading);
}

static void cuda_close(mx_device *d)
{
    cuda_device *c = device_of(d);
    if (!c) return;
    cudaSetDevice(c->ordinal);
    for (int i = 0; i < MX_CUDA_SLOTS; i++)
        if (c->library[i].close) c->library[i].close(c->library[i].impl);
    mx_stream_close(&c->loader);
    if (c->memory) {
        cudaStreamSynchronize(c->memory);
        cudaStreamDestroy(c->memory);
    }
    cudaGetLastError();
    pthread_mutex_destroy(&c->loading);
    free(c);
    memset(d, 0, sizeof *d);
}

static const mx_device_ops cuda_ops = {
    cuda_alloc, cuda_release, cuda_stream_open, cuda_stream_close, cuda_upload, cuda_download, cuda_clear,
    cuda_section_begin, cuda_section_end, cuda_sync, cuda_mark, cuda_wait, cuda_lost,
    cuda_enter, cuda_close,
};

int mx_device_cuda_count(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) n = 0;
    cudaGetLastError();
    return n;
}

/* Freed memory stays in the pool: a server's allocations come and go with models, not with turns. */
static cudaError_t keep_pool(int ordinal)
{
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    cudaError_t e = cudaDeviceGetDefaultMemPool(&pool, ordinal);
    return e == cudaSuccess ? cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all) : e;
}

void mx_device_cuda_pci(int index, char *out, int size)
{
    if (cudaDeviceGetPCIBusId(out, size, index) != cudaSuccess) out[0] = 0;
}

mx_status mx_device_cuda_open(mx_device *d, int index, mx_error *err)
{
    memset(d, 0, sizeof *d);
    d->ops = &cuda_ops;
    d->kind = MX_CUDA;
    d->index = index;
    snprintf(d->name, sizeof d->name, "cuda:%d", index);
    cuda_device *c = (cuda_device *)calloc(1, sizeof *c);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", d->name);
    d->impl = c;
    c->ordinal = index;
    pthread_mutex_init(&c->loading, NULL);
    cudaDeviceProp prop;
    size_t unused;
    cudaError_t e = cudaSetDevice(index);
    if (e == cudaSuccess) e = cudaGetDeviceProperties(&prop, index);
    if (e == cudaSuccess) e = cudaMemGetInfo(&unused, &d->memory);
    if (e == cudaSuccess) e = cudaDeviceGetPCIBusId(d->pci, sizeof d->pci, index);
    if (e == cudaSuccess) e = keep_pool(index);
    if (e == cudaSuccess) e = cudaStreamCreateWithFlags(&c->memory, cudaStreamNonBlocking);
    if (e != cudaSuccess) {
        mx_status st = fail(err, d, "opening the device", e);
        cuda_close(d);
        return st;
    }
    c->processors = prop.multiProcessorCount;
    snprintf(d->name, sizeof d->name, "%.50s cuda:%d", prop.name, index);
    return MX_OK;
}
