/* echo.c - a gRPC server over the C core with nothing in it, to measure Merx against:
 *
 *     echo HOST:PORT [THREADS [QUOTE_BYTES]]
 *
 * It answers grpc.health.v1.Health/Check with SERVING, which are two bytes, and
 * merx.v1.Pricing/Quote with QUOTE_BYTES zeros, in one batch each, on the thread of the
 * queue that a call came in by; a queue for each thread.  No line of Merx is in it.
 * bench/peers/echo.py runs both. */
#include <grpc/byte_buffer.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <grpc/support/time.h>
#ifdef __has_include
#if __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#endif

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { METHODS = 2, ARMED = 4, THREADS = 64 };

static const char *const paths[METHODS] = {"/grpc.health.v1.Health/Check", "/merx.v1.Pricing/Quote"};

static grpc_server *server;
static void *handles[METHODS];
static grpc_slice replies[METHODS];

typedef struct call {
    grpc_completion_queue *queue;
    int       method, cancelled;
    bool      answered;
    grpc_call *core;
    gpr_timespec deadline;
    grpc_metadata_array metadata;
    grpc_byte_buffer *payload;
} call;

static void arm(call *c)
{
    c->answered = false;
    c->payload = NULL;
    grpc_metadata_array_init(&c->metadata);
    grpc_server_request_registered_call(server, handles[c->method], &c->core, &c->deadline, &c->metadata, &c->payload, c->queue, c->queue, c);
}

static void answer(call *c)
{
    grpc_op ops[4];
    grpc_byte_buffer *b = grpc_raw_byte_buffer_create(&replies[c->method], 1);
    memset(ops, 0, sizeof ops);
    ops[0].op = GRPC_OP_SEND_INITIAL_METADATA;
    ops[1].op = GRPC_OP_SEND_MESSAGE;
    ops[1].data.send_message.send_message = b;
    ops[2].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    ops[3].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    ops[3].data.recv_close_on_server.cancelled = &c->cancelled;
    c->answered = true;
    grpc_call_start_batch(c->core, ops, 4, c, NULL);
    grpc_byte_buffer_destroy(b);
}

static call *new_call(grpc_completion_queue *queue, int method)
{
    call *c = calloc(1, sizeof *c);
    if (!c) exit(1);
    c->queue = queue;
    c->method = method;
    return c;
}

/* A call object that has its request leaves another one waiting; one that is done waits again,
 * or goes when enough do. */
static void *serve(void *arg)
{
    grpc_completion_queue *queue = arg;
    call *idle = NULL;
    for (int m = 0; m < METHODS; m++)
        for (int k = 0; k < ARMED; k++) arm(new_call(queue, m));
    for (;;) {
        grpc_event e = grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        call *c = e.tag, *next;
        if (e.type != GRPC_OP_COMPLETE) return NULL;
        if (!c->answered) {
            next = idle && idle->method == c->method ? idle : new_call(queue, c->method);
            if (next == idle) idle = NULL;
            arm(next);
            answer(c);
            continue;
        }
        grpc_metadata_array_destroy(&c->metadata);
        if (c->payload) grpc_byte_buffer_destroy(c->payload);
        grpc_call_unref(c->core);
        free(idle);
        idle = c;
    }
}

int main(int argc, char **argv)
{
    grpc_completion_queue *queues[THREADS];
    pthread_t threads[THREADS];
    int n = argc > 2 ? atoi(argv[2]) : 1, bytes = argc > 3 ? atoi(argv[3]) : 2;
    if (argc < 2 || argc > 4 || n < 1 || n > THREADS || bytes < 0 || bytes > 1 << 20)
        return fprintf(stderr, "echo HOST:PORT [THREADS [QUOTE_BYTES]]\n"), 2;
    grpc_init();
    server = grpc_server_create(NULL, NULL);
    for (int m = 0; m < METHODS; m++) handles[m] = grpc_server_register_method(server, paths[m], NULL, GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER, 0);
    replies[0] = grpc_slice_from_copied_buffer("\010\001", 2);
    replies[1] = grpc_slice_malloc((size_t)bytes);
    memset(GRPC_SLICE_START_PTR(replies[1]), 0, (size_t)bytes);
    for (int i = 0; i < n; i++) {
        queues[i] = grpc_completion_queue_create_for_next(NULL);
        grpc_server_register_completion_queue(server, queues[i], NULL);
    }
    grpc_server_credentials *plain = grpc_insecure_server_credentials_create();
    if (!grpc_server_add_http2_port(server, argv[1], plain)) return fprintf(stderr, "echo: %s cannot be bound\n", argv[1]), 1;
    grpc_server_credentials_release(plain);
    grpc_server_start(server);
    for (int i = 0; i < n; i++)
        if (pthread_create(&threads[i], NULL, serve, queues[i])) return 1;
    pause();                                /* until somebody ends it */
    return 0;
}
