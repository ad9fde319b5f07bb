/* batches.h - which tokens go into which step.
 *
 * A dataset is seen as N sequences: either its documents (each up to `length`
 * tokens; longer ones in several), or one long text cut into blocks of `length`
 * that begin at another offset every epoch.  An epoch is a permutation of the
 * sequences that follows from the seed and the epoch's number alone (a Feistel
 * network over the indices, walked back into range: Black and Rogaway 2002), so
 * a run goes on from nothing but the count of sequences it has seen.
 *
 * For encoders (not shifted) a longer document is cut to `length`, and keeps its
 * last token ([SEP]).
 *
 * A range is the numbers first .. first+count-1, each a sequence of one row whose id it is:
 * what a graph network learns from has no text.
 *
 * A batch is packed: sequences one behind the other, no padding, spans beside. */
#ifndef MX_BATCHES_H
#define MX_BATCHES_H

#include "models/dataset.h"

typedef enum mx_packing {
    MX_PACK_DOCUMENTS,            /* a sequence is a document                        */
    MX_PACK_BLOCKS,               /* a sequence is a block of the documents' text    */
    MX_PACK_BLOCKS_MASKED         /* the same, but tokens see their own document only */
} mx_packing;

typedef struct mx_batches {
    const mx_dataset *data;       /* NULL: a range                                   */
    mx_packing packing;
    int32_t    length;            /* tokens of a sequence at most (inputs)           */
    uint64_t   seed;
    bool       shuffle;
    bool       shifted;           /* target i is token i+1 (language models); else targets are filled in by the model */
    int64_t    count;             /* sequences of an epoch                           */
    int64_t   *first;             /* DOCUMENTS: first sequence of every document     */
    int64_t    range_first;
    uint64_t   range_hash;        /* of what the range stands for                    */
} mx_batches;

/* Errors: MX_ERR_ARG (length; fewer tokens than one block), MX_ERR_NO_MEMORY. */
mx_status mx_batches_open(mx_batches *b, const mx_dataset *d, mx_packing packing, int32_t length, uint64_t seed, bool shuffle,
                          bool shifted, mx_error *err);
/* Errors: MX_ERR_ARG (a range that is empty or leaves int32). */
mx_status mx_batches_open_range(mx_batches *b, int64_t first, int64_t count, uint64_t hash, uint64_t seed, bool shuffle, mx_error *err);
void      mx_batches_close(mx_batches *b);
/* Of the data behind it: tokens in all, and what tells it from other data. */
int64_t   mx_batches_tokens(const mx_batches *b);
uint64_t  mx_batches_hash(const mx_batches *b);

/* One packed batch in host memory; grows, never shrinks; zero it, free with mx_batch_free. */
typedef struct mx_batch {
    int32_t *ids, *targets, *positions;    /* [rows]; target -1: not counted         */
    int32_t *begin;                        /* [spans+1]                              */
    int32_t *label;                        /* [spans]                                */
    int32_t  rows, spans, longest, counted;
    int32_t  rows_room, spans_room;
} mx_batch;
void      mx_batch_free(mx_batch *b);
void      mx_batch_clear(mx_batch *b);
/* Append sequence number `at` (0, 1, 2 ... over all epochs). */
mx_status mx_batches_take(const mx_batches *b, int64_t at, mx_batch *out, mx_error *err);
/* Tokens of sequence `at`, without reading it. */
int32_t   mx_batches_length(const mx_batches *b, int64_t at);

/* The permutation: where index i of n goes, for a seed and an epoch. */
int64_t   mx_permute(uint64_t seed, uint64_t epoch, int64_t n, int64_t i);

#endif
