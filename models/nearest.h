/* nearest.h - vectors by number, and which lie nearest to another: an exact scan.
 *
 * Rows lie packed in host memory; a search multiplies tiles of them with all queries at once
 * (op product), so its cost is one pass over memory, and a score is the same bits whatever else is
 * asked.  Ties go to the lower number.
 *
 * THREADS: any.  A search holds a lock for one tile at a time, so a change waits for microseconds and a
 * search for no more; every score is of one whole vector, those changed meanwhile before or after. */
#ifndef MX_NEAREST_H
#define MX_NEAREST_H

#include "runtime/device.h"

typedef struct mx_vectors mx_vectors;

typedef enum mx_likeness { MX_LIKE_DOT, MX_LIKE_COSINE } mx_likeness;
typedef struct mx_hit { int32_t id; float score; } mx_hit;

/* Errors: MX_ERR_ARG (dim), MX_ERR_NO_MEMORY. */
mx_status mx_vectors_open(mx_vectors **out, int32_t dim, mx_error *err);
void      mx_vectors_close(mx_vectors *v);
int32_t   mx_vectors_count(const mx_vectors *v);

/* id >= 0; a vector that is there is replaced.  Errors: MX_ERR_ARG (id; not finite), MX_ERR_NO_MEMORY. */
mx_status mx_vectors_put(mx_vectors *v, int32_t id, const float *x, mx_error *err);
void      mx_vectors_remove(mx_vectors *v, int32_t id);
bool      mx_vectors_get(const mx_vectors *v, int32_t id, float *to);           /* false: not there */

/* hit[n*k]: of each of queries[n, dim] the k best, best first; found[n]: how many.  admit (may be NULL) says who
 * counts.  s is a stream of a CPU device.  Errors: MX_ERR_ARG, MX_ERR_NO_MEMORY. */
mx_status mx_vectors_search(const mx_vectors *v, mx_stream *s, const float *queries, int32_t n, int32_t k, mx_likeness how,
                            bool (*admit)(void *ctx, int32_t id), void *ctx, mx_hit *hit, int32_t *found, mx_error *err);

/* The mean of the seeds' unit vectors, itself of length 1: what look-alikes are like.  Sums go by rising id.
 * Errors: MX_ERR_NOT_FOUND (none of them is there, or they cancel out), MX_ERR_NO_MEMORY. */
mx_status mx_vectors_centroid(const mx_vectors *v, const int32_t *ids, int32_t n, float *to, mx_error *err);

#endif
