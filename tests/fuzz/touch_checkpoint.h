/* touch_checkpoint.h - what a caller may do with a checkpoint that opened, for
 * the fuzz targets: every listed tensor and value is read. */
#ifndef MX_TOUCH_CHECKPOINT_H
#define MX_TOUCH_CHECKPOINT_H

#include "models/checkpoint_internal.h"

#include <stdlib.h>

static inline unsigned touch_bytes(const void *data, size_t n)
{
    const volatile uint8_t *p = data;
    unsigned sum = 0;
    for (size_t i = 0; i < n; i++) sum += p[i];
    return sum;
}

static inline void touch_checkpoint(const mx_checkpoint *c)
{
    for (int i = 0; i < mx_checkpoint_count(c); i++) {
        const mx_blob *b = mx_checkpoint_at(c, i);
        touch_bytes(b->data, b->size);
        if (mx_checkpoint_find(c, b->name) != b) __builtin_trap();
        if (b->dtype == MX_FILE_OTHER || b->rows * b->cols > 1 << 16) continue;
        float *f = malloc(sizeof *f * (size_t)(b->rows * b->cols + 1));
        mx_blob_read(b, 0, b->rows, f);
        if (b->dtype <= MX_FILE_BF16) mx_blob_read_transposed(b, 0, b->cols, f);
        free(f);
    }
    for (int i = 0; i < c->n_values; i++) {
        const char *key = c->values[i].key, *text;
        size_t len = 0;
        int64_t whole;
        double real;
        if ((text = mx_gguf_string(c, key, &len))) touch_bytes(text, len);
        mx_gguf_int(c, key, &whole);
        mx_gguf_float(c, key, &real);
        for (int64_t j = 0, n = mx_gguf_array_count(c, key); j < n; j++) {
            if ((text = mx_gguf_array_string(c, key, j, &len))) touch_bytes(text, len);
            mx_gguf_array_int(c, key, j, &whole);
            mx_gguf_array_float(c, key, j, &real);
        }
    }
}

#endif
