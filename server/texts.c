/* texts.c - many texts through one encoder. */
#include "server/texts.h"

#include "runtime/slab.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 128, LOW = WINDOW / 2 };

typedef enum item_state { WAITING, RUNNING, DONE, REFUSED } item_state;

typedef struct item {
    mx_texts     *of;
    mx_embedding *m;
    item_state    state;          /* RUNNING -> DONE under the lock; else the caller's */
    mx_error      error;
} item;

struct mx_texts {
    pthread_mutex_t lock;
    mx_embedder *model;
    char       **text;
    mx_embedding_request q;
    uint64_t     deadline_ns;
    uint8_t      tenant;               /* mx_job.tenant                           */
    void       (*wake)(void *ctx);
    void        *ctx;
    int          n, next, running;     /* running: under the lock               */
    bool         cancelled, refill;    /* refill: texts wait for a place, under the lock */
    item         items[];
};

mx_texts *mx_texts_open(mx_embedder *model, char **text, int n, const mx_embedding_request *q, uint64_t deadline_ns, uint8_t tenant, void (*wake)(void *ctx), void *ctx)
{
    mx_texts *t = mx_slab_zeroed(sizeof *t + (size_t)n * sizeof *t->items);
    if (!t) return NULL;
    pthread_mutex_init(&t->lock, NULL);
    t->model = model, t->text = text, t->n = n, t->q = *q, t->deadline_ns = deadline_ns, t->tenant = tenant, t->wake = wake, t->ctx = ctx;
    for (int i = 0; i < n; i++) t->items[i].of = t;
    return t;
}

static void done(mx_embedding *m, const mx_error *err)
{
    item *it = mx_embedding_user(m);
    mx_texts *t = it->of;
    pthread_mutex_lock(&t->lock);
    if (err) it->error = *err;
    it->state = DONE;
    t->running--;
    if (!t->running || (t->refill && t->running <= LOW)) t->wake(t->ctx);
    pthread_mutex_unlock(&t->lock);
}

bool mx_texts_feed(mx_texts *t)
{
    while (t->next < t->n) {
        item *it = &t->items[t->next];
        mx_error err = {.code = MX_OK};
        pthread_mutex_lock(&t->lock);
        int running = t->running;
        t->refill = true;
        pthread_mutex_unlock(&t->lock);
        if (running >= WINDOW && !t->cancelled) return false;
        mx_status st = t->cancelled ? mx_fail(&err, MX_ERR_CANCELLED, "cancelled") : MX_OK;
        if (!st && !it->m)
            st = mx_embedding_open(&it->m, t->model, t->text[t->next], strlen(t->text[t->next]), &t->q, done, it, t->deadline_ns, &err);
        if (!st) {
            pthread_mutex_lock(&t->lock);
            it->state = RUNNING;
            t->running++;
            pthread_mutex_unlock(&t->lock);
            mx_embedding_job(it->m)->tenant = t->tenant;
            st = mx_embedding_submit(it->m, &err);
            if (st) {
                pthread_mutex_lock(&t->lock);
                it->state = WAITING;
                running = --t->running;
                pthread_mutex_unlock(&t->lock);
                if (st == MX_ERR_BUSY && running) return false;      /* a text's end wakes us again */
            }
        }
        if (st) {
            it->state = REFUSED;
            it->error = err;
            it->error.code = st;
        }
        t->next++;
    }
    pthread_mutex_lock(&t->lock);
    t->refill = false;
    bool over = !t->running;
    pthread_mutex_unlock(&t->lock);
    return over;
}

void mx_texts_cancel(mx_texts *t)
{
    pthread_mutex_lock(&t->lock);
    t->cancelled = true;
    for (int i = 0; i < t->next; i++)
        if (t->items[i].state == RUNNING) mx_embedding_cancel(t->items[i].m);
    pthread_mutex_unlock(&t->lock);
}

bool mx_texts_cancelled(const mx_texts *t) { return t->cancelled; }
int  mx_texts_count(const mx_texts *t) { return t->n; }

bool mx_texts_turn(const mx_texts *t, uint64_t *from_ns, uint64_t *to_ns)
{
    *from_ns = UINT64_MAX, *to_ns = 0;
    for (int i = 0; i < t->n; i++) {
        const mx_job *j = t->items[i].state == DONE ? mx_embedding_job(t->items[i].m) : NULL;
        if (!j || !j->started_ns) continue;
        if (j->started_ns < *from_ns) *from_ns = j->started_ns;
        if (j->done_ns > *to_ns) *to_ns = j->done_ns;
    }
    return *to_ns > 0;
}

void mx_texts_close(mx_texts *t)
{
    if (!t) return;
    for (int i = 0; i < t->n; i++) mx_embedding_close(t->items[i].m);
    pthread_mutex_destroy(&t->lock);
    mx_slab_free(t);
}

const mx_embedding *mx_texts_at(mx_texts *t, int i, mx_error **why)
{
    *why = &t->items[i].error;
    return t->items[i].error.code ? NULL : t->items[i].m;
}
