/* slab.h - memory of requests: blocks that are used again.
 *
 * What a request needs comes and goes with it, many times a second, and is taken by one
 * thread and given back by another.  Blocks of like size (64 bytes to 1 MiB, four sizes
 * a doubling) that are given back wait in lists of the process for the next request; so
 * once a server is warm, requests allocate nothing.  A list keeps at most MX_SLAB_KEPT
 * bytes; larger blocks are malloc's each time.  Under sanitizers all are, so that use
 * after free is seen.
 *
 * THREADS: any. */
#ifndef MX_SLAB_H
#define MX_SLAB_H

#include <stddef.h>

#define MX_SLAB_KEPT ((size_t)1 << 20)

/* As malloc, calloc(1, n), realloc, strdup and free; 16-byte aligned; NULL: out of memory. */
void *mx_slab_alloc(size_t n);
void *mx_slab_zeroed(size_t n);
void *mx_slab_grow(void *p, size_t n);
char *mx_slab_text(const char *text);
void  mx_slab_free(void *p);
size_t mx_slab_kept(void);             /* bytes that wait in the lists */
size_t mx_slab_most(void);             /* never more than these        */

#endif
