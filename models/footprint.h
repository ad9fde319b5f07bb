/* footprint.h - the memory that a model will take, known before a weight of it is read. */
#ifndef MX_FOOTPRINT_H
#define MX_FOOTPRINT_H

#include <stddef.h>

typedef struct mx_footprint {       /* bytes                                                        */
    size_t weights, kv;             /* device memory; what stays in the mapped file is not counted  */
    size_t scratch;                 /* device memory of a turn: lanes of a worker share the largest */
    size_t host;                    /* tables of turns and of the cache, the tokenizer (about)      */
    size_t loading;                 /* host memory beyond these while it loads                      */
} mx_footprint;

#endif
