/* server_storm.h - clients by the thousand that go before they have their answer. */
#ifndef MX_SERVER_STORM_H
#define MX_SERVER_STORM_H

#include "runtime/slab.h"
#include "tests/raw_http2.h"
#include "tests/server_fixture.h"

#include <fcntl.h>
#include <malloc.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* What malloc has given out and not got back, gRPC's and ours: unlike the resident size it does not
 * depend on how threads happened to meet.  What waits in the slabs' lists is not held by a request. */
static inline long heap_kb(void)
{
    struct mallinfo2 m = mallinfo2();
    return (long)((m.uordblks + m.hblkhd - mx_slab_kept()) / 1024);
}

static inline int open_files(void)
{
    int n = 0;
    for (int fd = 0; fd < 4096; fd++) n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

/* ---- storms ------------------------------------------------------------------------------ */

typedef struct storm {
    pthread_mutex_t lock;
    pthread_cond_t room;
    int running, most, codes[MX_RPC_CODE_COUNT];
    int serial;
} storm;

typedef struct storm_call {
    storm *s;
    mx_client_call *call;
    int cancel_at, seen; /* the message at which it cancels; 0: at once */
} storm_call;

static inline void storm_message(void *user, const uint8_t *msg, size_t len)
{
    storm_call *c = user;
    (void)msg, (void)len;
    if (++c->seen == c->cancel_at) mx_client_cancel(c->call);
}

static inline void storm_done(void *user, const mx_rpc_status *st)
{
    storm_call *c = user;
    storm *s = c->s;
    pthread_mutex_lock(&s->lock);
    s->running--;
    s->codes[st->code]++;
    pthread_cond_signal(&s->room);
    pthread_mutex_unlock(&s->lock);
    free(c);
}

static inline void cancel_storm(mx_client *client, storm *s, int calls, const packed *p)
{
    for (int i = 0; i < calls; i++) {
        pthread_mutex_lock(&s->lock);
        while (s->running >= s->most) pthread_cond_wait(&s->room, &s->lock);
        s->running++;
        s->serial++;
        pthread_mutex_unlock(&s->lock);
        storm_call *c = calloc(1, sizeof *c);
        c->s = s;
        c->cancel_at = 1 + s->serial % 4;
        mx_client_calls callbacks = {.message = storm_message, .done = storm_done, .user = c};
        if (s->serial % 5) {
            mx_client_start(client, &c->call, RPC("Stream"), p->data, p->len, 60000, &callbacks);
        } else { /* cancelled before anything came; done() may come first, so the call is held */
            mx_client_call *held;
            callbacks.unary = true;
            c->cancel_at = -1;
            mx_client_start(client, &c->call, RPC("Generate"), p->data, p->len, 20, &callbacks);
            mx_client_stream(client, &held, RPC("Stream"), p->data, p->len, 0);
            mx_client_cancel(held);
            mx_client_end(held);
        }
    }
    pthread_mutex_lock(&s->lock);
    while (s->running) pthread_cond_wait(&s->room, &s->lock);
    pthread_mutex_unlock(&s->lock);
}

static inline int vanish_storm(int port, int calls, const packed *p)
{
    enum { OPEN = 32 };
    int fds[OPEN], sent = 0;
    for (int i = 0; i < OPEN; i++) fds[i] = -1;
    for (int i = 0; i < calls + OPEN; i++) {
        int *fd = &fds[i % OPEN];
        if (*fd >= 0) {
            /* Two of three are gone after the first words of the server, the others before. */
            char words[4096];
            if (i % 3) (void)!recv(*fd, words, sizeof words, 0);
            if (i % 2)
                close(*fd);
            else
                raw_vanish(*fd);
        }
        *fd = i < calls ? raw_call(port, i % 2 ? RPC("Stream") : RPC("Generate"), p->data, p->len) : -1;
        sent += *fd >= 0;
    }
    return sent;
}

static inline void storm_open(storm *s, int most)
{
    *s = (storm){.most = most};
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->room, NULL);
}

/* Nothing but the two ends that were asked for; may_finish: some were too quick to be cancelled. */
static inline void storm_close(storm *s, bool may_finish)
{
    for (int i = may_finish ? 1 : 0; i < MX_RPC_CODE_COUNT; i++)
        CHECK_MSG(!s->codes[i] || i == MX_RPC_CANCELLED || i == MX_RPC_DEADLINE_EXCEEDED, "%d times %s", s->codes[i],
                  mx_rpc_code_name(i));
    CHECK(s->codes[MX_RPC_CANCELLED] > 0 && s->codes[MX_RPC_DEADLINE_EXCEEDED] > 0);
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->room);
}

#endif
