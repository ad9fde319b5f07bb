/* rpc_core.h - what rpc.c (the server) and rpc_call.c (its calls) share.
 *
 * Only rpc*.c include it, after <grpc/grpc.h>.  A queue has two threads: one takes its events, the other stands by.  Everything
 * about a call happens on the one that has the queue's duty, so a call needs no lock of its own.  When a service must wait
 * for something (mx_call_leave), the other thread takes the duty over: a timer wakes it a moment later, so that the call does not
 * pay for waking anybody. */
#ifndef MX_RPC_CORE_H
#define MX_RPC_CORE_H

#include "server/auth.h"
#include "server/rpc.h"
#include "server/service.h"

#include <pthread.h>
#include <stddef.h>

enum {
    MX_RPC_ARMED = 4,              /* requests waiting in one queue, of a method that has been called */
    MX_RPC_SHIFTS = 2,             /* threads of a queue                                 */
    MX_RPC_RELIEF_NS = 20000,      /* after it, the other thread takes over              */
    MX_RPC_POOLED = 512,           /* idle call objects that a thread keeps              */
    MX_RPC_WATCH_MS = 100,         /* how late a watcher may learn of a new state        */
    MX_RPC_LAST_WORDS_MS = 100     /* after a drain, until idle connections are cut      */
};

/* Not a status of ours: only gRPC knows methods that do not exist. */
#define MX_RPC_UNKNOWN_METHOD ((mx_status)MX_STATUS_COUNT)

/* What an event of a queue calls.  Set before each handing-over to gRPC, with release,
 * and read with acquire by the thread that gets the event: so what was written before is
 * seen after, by C's own rules and not only by gRPC's locks (which no checker sees). */
typedef struct mx_rpc_tag mx_rpc_tag;
typedef void (*mx_rpc_event)(mx_rpc_tag *t, bool ok);
struct mx_rpc_tag {
    _Atomic(mx_rpc_event) fn;
};

static inline mx_rpc_tag *mx_rpc_tag_set(mx_rpc_tag *t, mx_rpc_event fn)
{
    atomic_store_explicit(&t->fn, fn, memory_order_release);
    return t;
}

static inline void mx_rpc_tag_call(mx_rpc_tag *t, bool ok)
{
    atomic_load_explicit(&t->fn, memory_order_acquire)(t, ok);
}

typedef struct mx_rpc_worker {
    mx_server *server;
    grpc_completion_queue *queue;
    grpc_call *doorbell;
    mx_rpc_tag on_doorbell;
    pthread_mutex_t duty;           /* held by the thread that handles an event   */
    int        poller, standing_by; /* under duty.  poller: who takes events, -1: nobody */
    int        relief;              /* a timer that the other thread sleeps on    */
    bool       over;                /* under duty: the queue is shut              */
    struct mx_rpc_thread { struct mx_rpc_worker *w; pthread_t id; bool started; } thread[MX_RPC_SHIFTS];
    mx_arena   scratch;
    mx_call   *pool, *watchers;     /* this thread's only                         */
    bool      *called;              /* of each method, and of the unknown: this thread's only */
    int        pooled;
    int        state;               /* of the app, as the watchers know it        */
    pthread_mutex_t lock;
    mx_call   *woken, *woken_last;  /* under lock, linked by wake_next            */
    bool       rung;                /* under lock: the doorbell's event is due    */
} mx_rpc_worker;

struct mx_call {
    mx_rpc_tag on_request, on_close, on_sent, on_received;
    mx_rpc_worker *worker;
    int     method;                 /* index into mx_methods; -1: the unknown     */
    const mx_method *m;             /* NULL: the unknown                          */
    grpc_call *core;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_call_details details;
    grpc_byte_buffer *payload;
    int      close_cancelled;       /* gRPC's until on_close                      */
    atomic_int refs;
    uint64_t accepted_ns, deadline_ns;
    uint64_t turn_from_ns, turn_to_ns;     /* as its service told; 0: not known       */
    uint64_t answered_ns;           /* its last message was handed to gRPC         */
    const mx_call_handler *handler;
    void    *user;
    bool     counted, headers_sent, cancelled, watching;
    bool     close_asked;           /* on_close comes; else close_cancelled is on_sent's */
    bool     busy;                  /* a callback runs, or a send is out          */
    bool     again, inbox, half_closed, held;      /* held: nothing is read until mx_call_read() */
    /* What the running callback left for transmit(). */
    grpc_slice out;
    bool     has_out, more, end;
    mx_status status;
    uint32_t retry_ms;
    /* Of the metadata (rpc_meta.c). */
    const mx_tenant *tenant;        /* NULL: no tokens                            */
    bool     traced;                /* its span is wanted                         */
    bool     woken;                 /* under worker->lock                         */
    mx_call *wake_next, *next;      /* next: pool or watchers                     */
    /* Texts: of these only the first byte is cleared for a new call. */
    char     request_id[65];
    char     trace[56];             /* W3C traceparent, ours; "": the client sent none */
    char     parent[17];            /* the client's span                          */
    char     text[500];             /* why it ended                               */
};

/* Of a call with a turn: from its arrival to its turn, the turn, all but the turn. */
enum { MX_RPC_QUEUE, MX_RPC_TURN, MX_RPC_BESIDE, MX_RPC_TOLD };

struct mx_server {
    mx_app *app;
    struct mx_tls *tls;             /* NULL: plain                                */
    atomic_uint_least64_t *ended;   /* [methods + 1][codes]: calls; the last method is the unknown */
    mx_metric **seconds;            /* of mx_methods                              */
    _Atomic(mx_metric *) (*told)[MX_RPC_TOLD];     /* of mx_methods, made when first needed */
    mx_server_options opt;
    grpc_server *core;
    void  **handles;                /* of mx_methods                              */
    mx_rpc_worker *workers;
    int     n_workers, port;
    char    address[300];
    atomic_int inflight, live;      /* calls a drain waits for; all calls         */
    atomic_bool shut;
    mx_rpc_tag on_shutdown;
    bool    drained;
};

#define MX_RPC_OF(t, type, member) ((type *)(void *)((char *)(t) - offsetof(type, member)))

/* rpc_library.c: instead of grpc_init(), server and client. */
void mx_rpc_library_open(void);

void mx_rpc_arm(mx_rpc_worker *w, int method);       /* one more request may wait; -1: of an unknown method */
void mx_rpc_ring(mx_rpc_worker *w);                  /* with w->lock held                       */
void mx_rpc_doorbell(mx_rpc_tag *t, bool ok);
void mx_rpc_tell_watchers(mx_rpc_worker *w);
void mx_rpc_free_pool(mx_rpc_worker *w);

/* rpc_meta.c: reads the request's metadata and asks for its token; false: refused, and finished. */
bool mx_rpc_identify(mx_call *c);
/* What goes back with the initial metadata; the caller unrefs the values.  Returns how many, at most 2. */
size_t mx_rpc_headers(mx_call *c, grpc_metadata out[2]);
/* The call is over: counted, timed, logged. */
void mx_rpc_account(mx_call *c);

/* rpc_tls.c: credentials that follow their files.  Errors: MX_ERR_IO, MX_ERR_FORMAT (file), MX_ERR_NO_MEMORY. */
typedef struct mx_tls mx_tls;
mx_status mx_tls_open(mx_tls **out, grpc_server_credentials **credentials, const mx_server_options *o, mx_error *err);
void      mx_tls_close(mx_tls *t);

#endif
