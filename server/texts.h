/* texts.h - many texts through one encoder, each with its own end.
 *
 * A window of the texts is in the scheduler at once, so that a long list shares the queue
 * with others.  THREADS: all calls come from one thread at a time (an RPC call's), ends from
 * the device's worker; they meet under the list's own lock. */
#ifndef MX_TEXTS_H
#define MX_TEXTS_H

#include "models/embed.h"

typedef struct mx_texts mx_texts;

/* tenant: of every job.  wake(ctx), from the worker: feed again.  text[n] and model outlive it.  NULL: no memory. */
mx_texts *mx_texts_open(mx_embedder *model, char **text, int n, const mx_embedding_request *q, uint64_t deadline_ns, uint8_t tenant, void (*wake)(void *ctx), void *ctx);
/* Hands over what the window and the queue allow; true when every text has its end. */
bool      mx_texts_feed(mx_texts *t);
void      mx_texts_cancel(mx_texts *t);
bool      mx_texts_cancelled(const mx_texts *t);
void      mx_texts_close(mx_texts *t);            /* when all have their end */
int       mx_texts_count(const mx_texts *t);
/* When all have their end: from the first one's turn to the last one's end (monotonic); false: none had a turn. */
bool      mx_texts_turn(const mx_texts *t, uint64_t *from_ns, uint64_t *to_ns);
/* NULL: it failed, and *why says how (valid as long as t). */
const mx_embedding *mx_texts_at(mx_texts *t, int i, mx_error **why);

#endif
