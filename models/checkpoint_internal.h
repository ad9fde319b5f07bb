/* checkpoint_internal.h - what the readers of model files share.
 *
 * Only checkpoint.c, safetensors.c, gguf.c and blocks.c include it, and the
 * fuzz targets and tests for mx_checkpoint_open_memory.  A checkpoint owns its
 * mappings, the names (in an arena of chunks that never move) and the tables;
 * once open it is read-only, so any number of threads may use it. */
#ifndef MX_CHECKPOINT_INTERNAL_H
#define MX_CHECKPOINT_INTERNAL_H

#include "models/checkpoint.h"

typedef struct mx_mapping {
    char          *path;
    const uint8_t *data;
    size_t         size;
    bool           mapped;        /* false: the caller's memory */
} mx_mapping;

/* An open-addressing index over n records whose first member is the
 * NUL-terminated name.  slot holds record number + 1; 0 is free. */
typedef struct mx_name_index {
    uint32_t *slot;
    uint32_t  mask;
} mx_name_index;

typedef struct mx_gguf_value {
    const char    *key;           /* first: see mx_name_index                     */
    uint32_t       type;          /* MX_GGUF_...                                  */
    uint32_t       element;       /* of an array                                  */
    uint64_t       count;         /* of an array; bytes of a string               */
    const uint8_t *data;          /* in the mapping, any alignment                */
    uint64_t      *begin;         /* string arrays: count+1 offsets from data, each at the
                                     8-byte length that stands before its string  */
} mx_gguf_value;

typedef struct mx_name_chunk mx_name_chunk;

struct mx_checkpoint {
    mx_mapping    *files;
    int            n_files;
    mx_blob       *blobs;
    int            n_blobs, blob_room;
    mx_name_index  blob_index;
    mx_name_chunk *chunks;
    bool           gguf;
    mx_gguf_value *values;
    int            n_values;
    mx_name_index  value_index;
};

/* As mx_checkpoint_open, of bytes that are already in memory and outlive the
 * checkpoint; `name` stands for the path in errors. */
mx_status mx_checkpoint_open_memory(mx_checkpoint **out, const void *data, size_t size, const char *name,
                                    mx_error *err);

/* Each adds the tensors of one mapped file; c is closed by the caller on error. */
mx_status mx_safetensors_parse(mx_checkpoint *c, const mx_mapping *file, mx_error *err);
mx_status mx_gguf_parse(mx_checkpoint *c, const mx_mapping *file, mx_error *err);
/* Reads model.safetensors.index.json and maps the shards that it names. */
mx_status mx_safetensors_open_shards(mx_checkpoint *c, const char *folder, const char *index_path, mx_error *err);

/* Add a file to c->files.  The array may move, so a mapping is looked up again after the next one. */
mx_status mx_checkpoint_map(mx_checkpoint *c, const char *path, mx_error *err);
/* A NUL-terminated copy that lives as long as c; NULL: out of memory. */
const char *mx_checkpoint_keep(mx_checkpoint *c, const char *name, size_t len);
/* Room for one more blob, zeroed and counted; NULL: out of memory. */
mx_blob *mx_checkpoint_add(mx_checkpoint *c);
/* dims, rows and cols of b; false when the product does not fit.  More than
 * four dims are folded into the first of four. */
bool mx_blob_set_shape(mx_blob *b, const uint64_t *dims, size_t n, uint64_t *elements);
/* No two of the tensors from `first` on share a byte (they are of one file). */
mx_status mx_checkpoint_check_overlap(const mx_checkpoint *c, int first, mx_error *err);

/* *twice is the first record whose name came before, or -1.  MX_ERR_NO_MEMORY. */
mx_status mx_name_index_build(mx_name_index *index, const void *records, int n, size_t stride, int *twice);
int       mx_name_index_find(const mx_name_index *index, const void *records, size_t stride, const char *name);

void mx_gguf_free(mx_checkpoint *c);

/* A file type's block: `values` numbers in `bytes` bytes. */
typedef struct mx_block_format { int values, bytes; } mx_block_format;
mx_block_format mx_file_dtype_block(mx_file_dtype t);      /* {0,0} for MX_FILE_OTHER */

#endif
