/* checkpoint.h - the tensors of a model file, mapped, not copied.
 *
 * One interface over a Hugging Face folder (model.safetensors, or sharded with
 * model.safetensors.index.json) and a GGUF file (v2, v3).  Everything that comes
 * from the file is checked when it is opened: header length, JSON, offsets,
 * overlap, shapes whose product overflows, alignment.  A tensor that the
 * checkpoint lists can be read without a further check. */
#ifndef MX_CHECKPOINT_H
#define MX_CHECKPOINT_H

#include "kernels/ops.h"

typedef enum mx_file_dtype {
    MX_FILE_F32, MX_FILE_F16, MX_FILE_BF16, MX_FILE_Q8_0, MX_FILE_Q4_0, MX_FILE_Q4_1, MX_FILE_Q4_K, MX_FILE_Q6_K,
    MX_FILE_OTHER,             /* listed, but it cannot be read as numbers: I64 masks and the like */
    MX_FILE_DTYPE_COUNT
} mx_file_dtype;

/* One tensor in the file.  A matrix is [rows, cols], row-major; a vector is one
 * row.  (GGUF's ne[0] is cols.)  Block types pack cols in blocks of 32 or 256. */
typedef struct mx_blob {
    const char   *name;
    mx_file_dtype dtype;
    int           n_dims;
    int64_t       dims[4];       /* outermost first; a fifth and more fold into [0] */
    int64_t       rows, cols;    /* product of all but the last dim, the last   */
    const void   *data;
    size_t        size;          /* bytes                                       */
    const char   *file;          /* for errors                                  */
    uint64_t      offset;        /* of data in file                             */
} mx_blob;

typedef struct mx_checkpoint mx_checkpoint;

/* path: a folder with safetensors, one .safetensors file, or a .gguf file.
 * Errors: MX_ERR_IO, MX_ERR_FORMAT (names file and offset), MX_ERR_NO_MEMORY. */
mx_status      mx_checkpoint_open(mx_checkpoint **out, const char *path, mx_error *err);
void           mx_checkpoint_close(mx_checkpoint *c);
int            mx_checkpoint_count(const mx_checkpoint *c);
const mx_blob *mx_checkpoint_at(const mx_checkpoint *c, int i);
const mx_blob *mx_checkpoint_find(const mx_checkpoint *c, const char *name);    /* NULL: none; O(1) */
bool           mx_checkpoint_is_gguf(const mx_checkpoint *c);

const char *mx_file_dtype_name(mx_file_dtype t);

/* Rows first..first+n-1 as f32 to dst[n*cols].  dtype must not be OTHER. */
void mx_blob_read(const mx_blob *b, int64_t first, int64_t n, float *dst);
/* The same of the transposed matrix (GPT-2's Conv1D holds [in, out]): rows
 * first.. of w[cols, rows].  Plain dtypes only (F32, F16, BF16). */
void mx_blob_read_transposed(const mx_blob *b, int64_t first, int64_t n, float *dst);
/* A row source over a blob; the blob must outlive it. */
mx_row_source mx_blob_rows(const mx_blob *b);
mx_row_source mx_blob_rows_transposed(const mx_blob *b);

/* ---- GGUF metadata (false / NULL when absent or of another type) ----------- */
bool        mx_gguf_int(const mx_checkpoint *c, const char *key, int64_t *out);    /* any integer type, bool */
bool        mx_gguf_float(const mx_checkpoint *c, const char *key, double *out);   /* any number type        */
const char *mx_gguf_string(const mx_checkpoint *c, const char *key, size_t *len);  /* NOT NUL-terminated      */
/* Arrays of strings, ints (any width) or floats: */
int64_t     mx_gguf_array_count(const mx_checkpoint *c, const char *key);          /* -1: no such array       */
const char *mx_gguf_array_string(const mx_checkpoint *c, const char *key, int64_t i, size_t *len);
bool        mx_gguf_array_int(const mx_checkpoint *c, const char *key, int64_t i, int64_t *out);
bool        mx_gguf_array_float(const mx_checkpoint *c, const char *key, int64_t i, double *out);
/* (array lookups are O(1) after the first touch of a key) */

/* ---- a folder's small files: bounded ---------------------------------------- */
/* Whole file into malloc'ed, NUL-terminated memory; MX_ERR_IO, MX_ERR_FORMAT when over `most` bytes. */
mx_status   mx_read_file(const char *path, size_t most, char **out, size_t *len, mx_error *err);

#endif
