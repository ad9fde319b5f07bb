/* slab.c - lists of free blocks by size; the size of a block stands before it. */
#include "runtime/slab.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KEEPS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define KEEPS 0
#endif
#endif
#ifndef KEEPS
#define KEEPS 1
#endif

enum { LEAST_BITS = 6, MOST_BITS = 20, STEPS = 4, CLASSES = (MOST_BITS - LEAST_BITS) * STEPS + 1 };

typedef struct block {
    _Alignas(16) size_t room;     /* of what follows                              */
    struct block *next;           /* in its list; nothing while it is out         */
} block;

typedef struct list {
    _Alignas(64) pthread_mutex_t lock;
    block *first;
    size_t kept;                  /* bytes                                        */
} list;

static list lists[CLASSES];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void open_lists(void)
{
    for (int i = 0; i < CLASSES; i++) pthread_mutex_init(&lists[i].lock, NULL);
}

/* The smallest class that holds n bytes, and its size; -1: none does. */
static int class_of(size_t n, size_t *room)
{
    size_t least = (size_t)1 << LEAST_BITS;
    *room = n;
    if (n > (size_t)1 << MOST_BITS) return -1;
    if (n <= least) return *room = least, 0;
    int bits = 63 - __builtin_clzll((unsigned long long)(n - 1));       /* 2^bits < n <= 2^(bits + 1) */
    size_t step = ((size_t)1 << bits) / STEPS, k = (n - ((size_t)1 << bits) + step - 1) / step;
    *room = ((size_t)1 << bits) + k * step;
    return (bits - LEAST_BITS) * STEPS + (int)k;
}

void *mx_slab_alloc(size_t n)
{
    size_t room;
    int c = class_of(n, &room);
    block *b = NULL;
    if (KEEPS && c >= 0) {
        list *l = &lists[c];
        pthread_once(&once, open_lists);
        pthread_mutex_lock(&l->lock);
        b = l->first;
        if (b) {
            l->first = b->next;
            l->kept -= room;
        }
        pthread_mutex_unlock(&l->lock);
    }
    if (!b && room <= (size_t)-1 - sizeof *b) b = malloc(sizeof *b + room);
    if (!b) return NULL;
    b->room = room;
    return b + 1;
}

void *mx_slab_zeroed(size_t n)
{
    void *p = mx_slab_alloc(n);
    if (p) memset(p, 0, n);
    return p;
}

void mx_slab_free(void *p)
{
    if (!p) return;
    block *b = (block *)p - 1;
    size_t room;
    int c = class_of(b->room, &room);
    if (KEEPS && c >= 0) {
        list *l = &lists[c];
        pthread_mutex_lock(&l->lock);
        if (l->kept + room <= MX_SLAB_KEPT) {
            b->next = l->first;
            l->first = b;
            l->kept += room;
            b = NULL;
        }
        pthread_mutex_unlock(&l->lock);
    }
    free(b);
}

void *mx_slab_grow(void *p, size_t n)
{
    size_t had = p ? ((block *)p - 1)->room : 0;
    if (p && n <= had) return p;
    void *more = mx_slab_alloc(n);
    if (!more) return NULL;
    if (p) memcpy(more, p, had);
    mx_slab_free(p);
    return more;
}

char *mx_slab_text(const char *text)
{
    size_t n = strlen(text) + 1;
    char *copy = mx_slab_alloc(n);
    if (copy) memcpy(copy, text, n);
    return copy;
}

size_t mx_slab_most(void)
{
    return (size_t)CLASSES * MX_SLAB_KEPT;
}

size_t mx_slab_kept(void)
{
    size_t sum = 0;
    pthread_once(&once, open_lists);
    for (int i = 0; i < CLASSES; i++) {
        pthread_mutex_lock(&lists[i].lock);
        sum += lists[i].kept;
        pthread_mutex_unlock(&lists[i].lock);
    }
    return sum;
}
