/* stream.c - streams, events, graphs, copies.
 *
 * Eager: an operation runs when it is issued.  Lazy: it runs when somebody must
 * wait for it, other streams as late as events allow and in random order; a
 * missing cudaStreamWaitEvent() and a host buffer used again too early then give
 * wrong results.  A captured stream runs nothing; a graph is its list, arguments
 * frozen as in CUDA. */
#include "internal.h"

typedef struct op {
    void (*fn)(void *);
    void (*del)(void *);
    void *arg;
    int   always;                   /* in a dead context too: frees, so that leaks can be told */
    struct CUevent_st *wait, *record;
    unsigned long generation;
    struct op *next;
} op;

struct CUgraph_st { op *head, *tail; int users; };     /* users: the handle and what was instantiated */
struct CUgraphExec_st { struct CUgraph_st *graph; };
struct CUstream_st {
    op *head, *tail;
    struct CUgraph_st  *capture;
    struct CUstream_st *next;
    int                 priority;
};
struct CUevent_st {
    unsigned long issued, done;
    long clock;
    struct CUgraph_st *capture;
};

static struct CUstream_st null_stream, *streams = &null_stream;

static struct CUstream_st *stream_of(cudaStream_t s) { return s ? s : &null_stream; }

static void op_run(op *o)
{
    if (o->fn && (o->always || sim_sticky(cudaSuccess) == cudaSuccess)) o->fn(o->arg);
    if (o->record && o->record->done < o->generation) {
        o->record->done = o->generation;
        o->record->clock = (long)cudasim_stats.threads + cudasim_stats.library;
    }
}

static void op_free(op *o)
{
    if (o->del) o->del(o->arg);
    free(o);
}

/* Run the first of s if it may run. */
static int step(struct CUstream_st *s)
{
    op *o = s->head;
    if (!o || (o->wait && o->wait->done < o->generation)) return 0;
    s->head = o->next;
    if (!s->head) s->tail = NULL;
    op_run(o);
    op_free(o);
    return 1;
}

static void flush(struct CUstream_st *t)
{
    while (t->head) {
        if (sim_mode() == CUDASIM_RANDOM && sim_random() % 4 == 0)
            for (struct CUstream_st *s = streams; s; s = s->next)
                if (sim_random() % 2) step(s);
        if (!t->head || step(t)) continue;
        int any = 0;
        for (struct CUstream_st *s = streams; s; s = s->next)
            if (s != t) any |= step(s);
        if (any) continue;
        sim_error("streams wait for an event that is never recorded");
        return;
    }
}

void sim_flush_all(void)
{
    for (struct CUstream_st *s = streams; s; s = s->next) flush(s);
}

static void enqueue(cudaStream_t stream, op o)
{
    struct CUstream_st *s = stream_of(stream);
    op *p = malloc(sizeof *p), **tail;
    if (!p) abort();
    *p = o;
    p->next = NULL;
    if (s->capture) {
        tail = s->capture->tail ? &s->capture->tail->next : &s->capture->head;
        *tail = s->capture->tail = p;
        return;
    }
    if (s == &null_stream) sim_flush_all();
    if (!sim_lazy() && !s->head) {
        op_run(p);
        op_free(p);
        return;
    }
    tail = s->tail ? &s->tail->next : &s->head;
    *tail = s->tail = p;
    if (!sim_lazy() || s == &null_stream) flush(s);
}

int sim_capturing(cudaStream_t s) { return stream_of(s)->capture != NULL; }

void sim_enqueue(cudaStream_t s, void (*fn)(void *), void *arg, void (*del)(void *))
{
    enqueue(s, (op){.fn = fn, .arg = arg, .del = del});
}

void sim_enqueue_always(cudaStream_t s, void (*fn)(void *), void *arg)
{
    enqueue(s, (op){.fn = fn, .arg = arg, .always = 1});
}

/* ---- streams and events ----------------------------------------------------------------------- */

enum { GREATEST_PRIORITY = -5 };         /* as on a card; the least is 0 */

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest)
{
    *least = 0;
    *greatest = GREATEST_PRIORITY;
    return sim_result(cudaSuccess);
}

cudaError_t cudaStreamGetPriority(cudaStream_t s, int *priority)
{
    *priority = stream_of(s)->priority;
    return sim_result(cudaSuccess);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    return cudaStreamCreateWithPriority(s, flags, 0);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned flags, int priority)
{
    (void)flags;
    sim_lock();
    *s = sim_injected() ? NULL : calloc(1, sizeof **s);
    if (*s) {
        (*s)->priority = priority > 0 ? 0 : priority < GREATEST_PRIORITY ? GREATEST_PRIORITY : priority;
        (*s)->next = streams->next;
        streams->next = *s;
    }
    sim_unlock();
    return *s ? cudaSuccess : sim_result(cudaErrorMemoryAllocation);
}

cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    sim_lock();
    cudaError_t e = sim_injected() ? cudaErrorLaunchFailure : cudaSuccess;
    cudasim_stats.waits++;
    if (stream_of(s)->capture) sim_error("a stream that is being captured cannot be waited for");
    flush(stream_of(s));
    e = e != cudaSuccess ? sim_result(e) : sim_sticky(cudaSuccess);
    sim_unlock();
    return e;
}

cudaError_t cudaDeviceSynchronize(void)
{
    sim_lock();
    sim_flush_all();
    cudaError_t e = sim_sticky(cudaSuccess);
    sim_unlock();
    return e;
}

cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    if (!s) return cudaSuccess;
    sim_lock();
    flush(s);
    for (struct CUstream_st *q = streams; q; q = q->next)
        if (q->next == s) q->next = s->next;
    sim_unlock();
    free(s);
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t s)
{
    sim_lock();
    cudaError_t e = sim_sticky(cudaSuccess);
    if (e == cudaSuccess && stream_of(s)->head) e = cudaErrorNotReady;
    sim_unlock();
    return e;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    (void)flags;
    *e = calloc(1, sizeof **e);
    return *e ? cudaSuccess : sim_result(cudaErrorMemoryAllocation);
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    sim_lock();
    sim_flush_all();
    sim_unlock();
    free(e);
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    sim_lock();
    e->capture = stream_of(s)->capture;      /* recorded into the graph, as in CUDA */
    enqueue(s, (op){.record = e, .generation = ++e->issued});
    sim_unlock();
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned flags)
{
    (void)flags;
    sim_lock();
    if (e->capture) stream_of(s)->capture = e->capture;      /* a fork inside a capture: one list */
    else enqueue(s, (op){.wait = e, .generation = e->issued});
    sim_unlock();
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    sim_lock();
    for (int any = 1; e->done < e->issued && any;) {
        any = 0;
        for (struct CUstream_st *s = streams; s; s = s->next) any |= step(s);
    }
    if (e->done < e->issued) sim_error("an event that is waited for is never reached");
    sim_unlock();
    return sim_sticky(cudaSuccess);
}

cudaError_t cudaEventQuery(cudaEvent_t e) { return e->done < e->issued ? cudaErrorNotReady : cudaSuccess; }

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    *ms = (float)(b->clock - a->clock) * 1e-3f;      /* threads that ran in between: no time, but always the same */
    return cudaSuccess;
}

/* ---- graphs -------------------------------------------------------------------------------------- */

cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m)
{
    (void)m;
    sim_lock();
    cudaError_t e = sim_injected() ? sim_result(cudaErrorMemoryAllocation) : cudaSuccess;
    if (e == cudaSuccess) {
        stream_of(s)->capture = calloc(1, sizeof(struct CUgraph_st));
        if (!stream_of(s)->capture) abort();
        stream_of(s)->capture->users = 1;
    }
    sim_unlock();
    return e;
}

cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    sim_lock();
    *g = stream_of(s)->capture;
    for (struct CUstream_st *q = streams; q; q = q->next)
        if (q->capture == *g) q->capture = NULL;
    sim_unlock();
    return *g ? cudaSuccess : sim_result(cudaErrorStreamCaptureInvalidated);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *x, cudaGraph_t g, unsigned long long flags)
{
    (void)flags;
    sim_lock();
    *x = sim_injected() ? NULL : calloc(1, sizeof **x);
    if (*x) {
        (*x)->graph = g;
        g->users++;
        cudasim_stats.graphs++;
    }
    sim_unlock();
    return *x ? cudaSuccess : sim_result(cudaErrorMemoryAllocation);
}

static void graph_run(void *x)
{
    for (op *o = ((struct CUgraphExec_st *)x)->graph->head; o; o = o->next) op_run(o);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t x, cudaStream_t s)
{
    sim_lock();
    cudasim_stats.replays++;
    sim_enqueue(s, graph_run, x, NULL);
    sim_unlock();
    return sim_sticky(cudaSuccess);
}

/* The list goes with its last user: a graph may be destroyed as soon as it is instantiated. */
static void graph_leave(struct CUgraph_st *g)
{
    if (--g->users) return;
    for (op *o = g->head, *n; o; o = n) {
        n = o->next;
        op_free(o);
    }
    free(g);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t x)
{
    sim_lock();
    sim_flush_all();
    graph_leave(x->graph);
    free(x);
    sim_unlock();
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    sim_lock();
    graph_leave(g);
    sim_unlock();
    return cudaSuccess;
}

/* ---- copies ---------------------------------------------------------------------------------------- */

typedef struct transfer {
    void       *d;
    const void *s;                  /* NULL: set to v */
    size_t      dpitch, spitch, width, height;
    int         v;
    enum cudaMemcpyKind kind;
} transfer;

static int direction_fits(const transfer *t, int to_device, int from_device)
{
    if (!t->s) return to_device;
    if (t->kind == cudaMemcpyHostToDevice) return to_device && !from_device;
    if (t->kind == cudaMemcpyDeviceToHost) return !to_device && from_device;
    if (t->kind == cudaMemcpyDeviceToDevice) return to_device && from_device;
    return 1;
}

static void transfer_run(void *arg)
{
    const transfer *t = arg;
    if (!t->width || !t->height) return;
    size_t dsize = (t->height - 1) * t->dpitch + t->width, ssize = (t->height - 1) * t->spitch + t->width;
    int to = sim_device_range(t->d, dsize), from = t->s ? sim_device_range(t->s, ssize) : 0;
    if (to < 0 || from < 0) {
        sim_result(cudaErrorInvalidValue);
        return;
    }
    if (!direction_fits(t, to, from)) sim_error("a copy or a set whose direction does not fit its pointers");
    sim_guard(0);
    for (size_t r = 0; r < t->height; r++) {
        char *d = (char *)t->d + r * t->dpitch;
        if (t->s) memmove(d, (const char *)t->s + r * t->spitch, t->width);
        else memset(d, t->v, t->width);
        if (to) HOOK(host_write, d, t->width);
    }
    sim_guard(1);
}

static cudaError_t transfer_now(cudaStream_t s, transfer t, int wait)
{
    sim_lock();
    cudaError_t e = sim_sticky(cudaSuccess);
    if (e == cudaSuccess && sim_injected()) e = sim_sticky(cudaErrorIllegalAddress);
    if (t.kind == cudaMemcpyHostToDevice) cudasim_stats.uploads++, cudasim_stats.uploaded += t.width * t.height;
    if (e == cudaSuccess) {
        transfer *p = malloc(sizeof *p);
        if (!p) abort();
        *p = t;
        /* the driver reads pageable memory before the call returns */
        int pageable = t.s && t.kind != cudaMemcpyDeviceToDevice && !sim_is_pinned(t.kind == cudaMemcpyHostToDevice ? t.s : t.d, t.width);
        sim_enqueue(s, transfer_run, p, free);
        if (wait || (pageable && !stream_of(s)->capture)) flush(stream_of(s));
        e = sim_sticky(cudaSuccess);
    }
    sim_unlock();
    return e;
}

cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st)
{
    return transfer_now(st, (transfer){d, s, n, n, n, 1, 0, k}, 0);
}

cudaError_t cudaMemcpy2DAsync(void *d, size_t dpitch, const void *s, size_t spitch, size_t width, size_t height,
                              enum cudaMemcpyKind k, cudaStream_t st)
{
    if (width > dpitch || width > spitch) return sim_result(cudaErrorInvalidValue);
    return transfer_now(st, (transfer){d, s, dpitch, spitch, width, height, 0, k}, 0);
}

cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k)
{
    cudaDeviceSynchronize();
    return transfer_now(NULL, (transfer){d, s, n, n, n, 1, 0, k}, 1);
}

cudaError_t cudaMemsetAsync(void *d, int v, size_t n, cudaStream_t st)
{
    return transfer_now(st, (transfer){d, NULL, n, n, n, 1, v, cudaMemcpyDefault}, 0);
}

cudaError_t cudaMemset(void *d, int v, size_t n)
{
    cudaDeviceSynchronize();
    return transfer_now(NULL, (transfer){d, NULL, n, n, n, 1, v, cudaMemcpyDefault}, 1);
}
