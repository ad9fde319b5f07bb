/* dataset_internal.h - a dataset's memory; dataset.c and dataset_shard.c only. */
#ifndef MX_DATASET_INTERNAL_H
#define MX_DATASET_INTERNAL_H

#include "models/dataset.h"

struct mx_dataset {
    int32_t *ids;
    uint8_t *learn;
    int64_t *begin;               /* [count+1]                                   */
    int32_t *label;               /* [count]                                     */
    int64_t  n, room;             /* tokens                                      */
    int64_t  count, count_room;   /* documents                                   */
    int64_t  skipped;
    bool     masked, labelled;    /* learn, label say something                  */
    bool     mapped;              /* ids and learn lie in `file`                 */
    mx_checkpoint *file;
};

/* Room for so many tokens more, and one document more. */
mx_status mx_dataset_grow(mx_dataset *d, int64_t tokens, mx_error *err);
/* What is mapped cannot grow: it becomes memory of our own. */
mx_status mx_dataset_own(mx_dataset *d, mx_error *err);
/* Append a shard; the first one of an empty dataset stays mapped. */
mx_status mx_dataset_shard(mx_dataset *d, const char *path, int32_t vocab, int32_t classes, mx_error *err);

#endif
