/* rpc.h - the gRPC server and a small gRPC client.
 *
 * Neither needs gRPC's headers: only rpc*.c include them.  Signals are the
 * program's business: block them before mx_server_open(), because gRPC starts
 * threads; do not fork afterwards. */
#ifndef MX_RPC_H
#define MX_RPC_H

#include "server/app.h"

/* ---- server ------------------------------------------------------------------------ */

typedef struct mx_server mx_server;

typedef struct mx_server_options {
    const char *listen;             /* "127.0.0.1:50051"; port 0: any free one; "unix:/path"    */
    int32_t  threads;               /* RPC threads, one completion queue each; 0: by the cores  */
    size_t   max_message_bytes;     /* of a request                                             */
    size_t   decode_budget;         /* memory a request may unfold to; 0: 8 times the message   */
    int32_t  max_concurrent_streams;/* of one connection                                        */
    int32_t  max_calls;             /* of all connections; beyond it RESOURCE_EXHAUSTED         */
    int32_t  keepalive_ms;          /* a silent client is asked after this long; 0: never       */
    int32_t  keepalive_timeout_ms;  /* and dropped when it does not answer for this long        */
    const char *tls_cert, *tls_key; /* PEM files; NULL: no TLS.  Read again when they change    */
    const char *tls_client_ca;      /* PEM file: clients must show a certificate of it          */
    struct mx_auth *auth;           /* callers need a token of it; NULL: anybody may call       */
    bool     no_reflection;         /* what the server offers is nobody's business              */
    bool     log_calls;             /* a line for each call at level info                       */
    struct mx_spans *spans;         /* where calls are told as spans; NULL: nowhere             */
} mx_server_options;
mx_server_options mx_server_defaults(void);

/* Listens and answers from the moment it returns; what it answers follows
 * app->state (STARTING and DRAINING: UNAVAILABLE, health NOT_SERVING).  The app must
 * outlive the server, and its scheduler must be closed after the server.
 * Errors: MX_ERR_ARG (names the option), MX_ERR_IO (the port is taken, the address
 * is not ours), MX_ERR_NO_MEMORY. */
mx_status mx_server_open(mx_server **out, mx_app *app, const mx_server_options *opt, mx_error *err);
int       mx_server_port(const mx_server *s);
const char *mx_server_address(const mx_server *s);      /* what a client connects to */
/* What calls have ended with so far: the i-th pair of method and code that occurred, from 0 on; false: no more. */
bool      mx_server_ended(const mx_server *s, int i, const char **method, int *code, uint64_t *calls);
/* The options' spans. */
const struct mx_spans *mx_server_spans(const mx_server *s);
/* Calls that a drain would wait for. */
int       mx_server_inflight(const mx_server *s);
/* app->state has changed: tell the watchers of health now (they notice within 100 ms anyway). */
void      mx_server_state_changed(mx_server *s);
/* app->state becomes DRAINING and health says so; running calls may finish for
 * grace_ms, new ones get UNAVAILABLE; then the listener closes and what still runs
 * is cancelled.  Returns how many calls were cut off. */
int       mx_server_drain(mx_server *s, uint32_t grace_ms);
/* Drains with no grace unless that was done; waits for the last call; frees everything. */
void      mx_server_close(mx_server *s);

/* ---- client ------------------------------------------------------------------------- */

typedef struct mx_client      mx_client;       /* one connection                       */
typedef struct mx_client_call mx_client_call;

/* gRPC's codes, as they are on the wire. */
typedef enum mx_rpc_code {
    MX_RPC_OK, MX_RPC_CANCELLED, MX_RPC_UNKNOWN, MX_RPC_INVALID_ARGUMENT, MX_RPC_DEADLINE_EXCEEDED, MX_RPC_NOT_FOUND,
    MX_RPC_ALREADY_EXISTS, MX_RPC_PERMISSION_DENIED, MX_RPC_RESOURCE_EXHAUSTED, MX_RPC_FAILED_PRECONDITION,
    MX_RPC_ABORTED, MX_RPC_OUT_OF_RANGE, MX_RPC_UNIMPLEMENTED, MX_RPC_INTERNAL, MX_RPC_UNAVAILABLE, MX_RPC_DATA_LOSS,
    MX_RPC_UNAUTHENTICATED, MX_RPC_CODE_COUNT
} mx_rpc_code;
const char *mx_rpc_code_name(int code);        /* "RESOURCE_EXHAUSTED" */
int         mx_rpc_code_of(mx_status st);      /* what the server answers for an error of ours */

typedef struct mx_rpc_status {
    int      code;                  /* mx_rpc_code                                     */
    uint32_t retry_ms;              /* of RetryInfo; 0: none                           */
    char     text[500];
} mx_rpc_status;

typedef struct mx_client_options {
    size_t max_message_bytes;       /* of a reply; 0: 64 MiB                           */
    bool   wait_for_ready;          /* a call waits for the server to come up, until its deadline */
    bool   tls;                     /* with the system's roots, or those of:           */
    const char *tls_ca;             /* PEM file                                        */
    const char *tls_cert, *tls_key; /* PEM files: what the client shows                */
    const char *token;              /* "authorization: Bearer" of every call           */
    int32_t window_bytes;           /* HTTP/2 window of a stream; 0: gRPC's own choice (tests of slow readers) */
} mx_client_options;

/* Connects at the first call.  opt may be NULL.  Errors: MX_ERR_NO_MEMORY, MX_ERR_ARG. */
mx_status mx_client_open(mx_client **out, const char *target, const mx_client_options *opt, mx_error *err);
/* Cancels what runs, waits for it, and disconnects. */
void      mx_client_close(mx_client *c);

/* A method: "/merx.v1.Generation/Generate".  timeout_ms 0: no deadline. */

/* One request, one reply (malloc'ed, the caller frees; NULL unless OK).  Blocks. */
mx_status mx_client_unary(mx_client *c, const char *method, const uint8_t *msg, size_t len, uint32_t timeout_ms,
                          uint8_t **reply, size_t *reply_len, mx_rpc_status *st);

/* One request, replies one by one.  A reply that is not asked for stays on the wire. */
mx_status mx_client_stream(mx_client *c, mx_client_call **out, const char *method, const uint8_t *msg, size_t len,
                           uint32_t timeout_ms);
/* Blocks; false: no more (the status tells why).  *reply is the call's until the next call of this. */
bool      mx_client_next(mx_client_call *call, const uint8_t **reply, size_t *len);
/* Blocks until the call is over. */
void      mx_client_finish(mx_client_call *call, mx_rpc_status *st);
/* From any thread, before mx_client_end(). */
void      mx_client_cancel(mx_client_call *call);
/* Cancels if it still runs; frees. */
void      mx_client_end(mx_client_call *call);

/* The same for programs with many calls at once (load generators): callbacks come
 * from the client's thread and must not block.  message() for each reply (may be
 * NULL); done() once, last; the call is gone after it.  The returned call is for
 * mx_client_cancel() and valid until done() returns. */
typedef struct mx_client_calls {
    bool unary;                     /* the method has one reply: fewer steps           */
    void (*message)(void *user, const uint8_t *reply, size_t len);
    void (*done)(void *user, const mx_rpc_status *st);
    void *user;
} mx_client_calls;
mx_status mx_client_start(mx_client *c, mx_client_call **out, const char *method, const uint8_t *msg, size_t len,
                          uint32_t timeout_ms, const mx_client_calls *calls);

#endif
