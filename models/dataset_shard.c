/* dataset_shard.c - shards: safetensors files of tokens (dataset.h). */
#include "models/dataset_internal.h"
#include "models/params.h"

#include <stdlib.h>

/* A tensor of integers of the width that n elements of `size` bytes take. */
static mx_status find(const mx_checkpoint *c, const char *path, const char *name, size_t size, bool needed, const mx_blob **out,
                      mx_error *err)
{
    const mx_blob *b = mx_checkpoint_find(c, name);
    *out = b;
    if (!b) return needed ? mx_fail(err, MX_ERR_FORMAT, "%s: no tensor \"%s\": not a shard that `merx tokenize` wrote", path, name) : MX_OK;
    if (b->n_dims != 1 || b->size != (size_t)b->cols * size || (uintptr_t)b->data % size)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu is not a list of %zu-byte integers", path, name,
                       (unsigned long long)b->offset, size);
    return MX_OK;
}

static mx_status check_begin(const char *path, const int64_t *begin, int64_t n, int64_t tokens, mx_error *err)
{
    if (n < 2 || begin[0] != 0 || begin[n - 1] != tokens)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor begin does not run from 0 to the %lld tokens", path, (long long)tokens);
    for (int64_t i = 1; i < n; i++)
        if (begin[i] < begin[i - 1]) return mx_fail(err, MX_ERR_FORMAT, "%s: tensor begin falls at document %lld", path, (long long)i);
    return MX_OK;
}

static mx_status append(mx_dataset *d, const mx_blob *ids, const mx_blob *learn, const int64_t *begin, const int32_t *label,
                        int64_t documents, mx_error *err)
{
    int64_t at = d->n;
    MX_TRY(mx_dataset_grow(d, ids->cols, err));
    memcpy(d->ids + at, ids->data, ids->size);
    if (learn) memcpy(d->learn + at, learn->data, learn->size);
    else memset(d->learn + at, 1, (size_t)ids->cols);
    for (int64_t i = 0; i < documents; i++) {
        MX_TRY(mx_dataset_grow(d, 0, err));
        d->label[d->count] = label ? label[i] : -1;
        d->begin[++d->count] = at + begin[i + 1];
    }
    d->n = at + ids->cols;
    return MX_OK;
}

/* Ids stay in the file; the short lists are copied. */
static mx_status map(mx_dataset *d, mx_checkpoint *c, const mx_blob *ids, const mx_blob *learn, const int64_t *begin,
                     const int32_t *label, int64_t documents, mx_error *err)
{
    d->begin = malloc((size_t)(documents + 1) * sizeof *d->begin);
    d->label = malloc((size_t)documents * sizeof *d->label);
    if (!d->begin || !d->label) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld documents", (long long)documents);
    memcpy(d->begin, begin, (size_t)(documents + 1) * sizeof *d->begin);
    for (int64_t i = 0; i < documents; i++) d->label[i] = label ? label[i] : -1;
    d->ids = (int32_t *)(uintptr_t)ids->data;
    d->learn = learn ? (uint8_t *)(uintptr_t)learn->data : NULL;
    d->n = ids->cols;
    d->count = documents;
    d->mapped = true;
    d->file = c;
    return MX_OK;
}

/* What is mapped cannot grow: a second file makes it memory of our own. */
mx_status mx_dataset_own(mx_dataset *d, mx_error *err)
{
    if (!d->mapped) return MX_OK;
    int32_t *ids = malloc((size_t)d->n * sizeof *ids);
    uint8_t *learn = malloc((size_t)d->n);
    if (!ids || !learn) {
        free(ids);
        free(learn);
        return mx_fail(err, MX_ERR_NO_MEMORY, "%lld tokens of data", (long long)d->n);
    }
    memcpy(ids, d->ids, (size_t)d->n * sizeof *ids);
    if (d->learn) memcpy(learn, d->learn, (size_t)d->n);
    else memset(learn, 1, (size_t)d->n);
    d->ids = ids;
    d->learn = learn;
    d->room = d->n;
    d->count_room = d->count;       /* begin has one entry more; grow() sees to both */
    d->mapped = false;
    mx_checkpoint_close(d->file);
    d->file = NULL;
    return MX_OK;
}

mx_status mx_dataset_shard(mx_dataset *d, const char *path, int32_t vocab, int32_t classes, mx_error *err)
{
    mx_checkpoint *c = NULL;
    const mx_blob *ids, *begin, *learn, *label;
    mx_status st;
    MX_TRY(mx_checkpoint_open(&c, path, err));
    MX_TRY_GOTO(st, find(c, path, "ids", 4, true, &ids, err), done);
    MX_TRY_GOTO(st, find(c, path, "begin", 8, true, &begin, err), done);
    MX_TRY_GOTO(st, find(c, path, "learn", 1, false, &learn, err), done);
    MX_TRY_GOTO(st, find(c, path, "label", 4, false, &label, err), done);
    MX_TRY_GOTO(st, check_begin(path, begin->data, begin->cols, ids->cols, err), done);
    int64_t documents = begin->cols - 1;
    if ((learn && learn->cols != ids->cols) || (label && label->cols != documents)) {
        st = mx_fail(err, MX_ERR_FORMAT, "%s: learn and label do not fit %lld tokens and %lld documents", path, (long long)ids->cols,
                     (long long)documents);
        goto done;
    }
    const int32_t *classes_of = label ? label->data : NULL, *id = ids->data;
    for (int64_t i = 0; classes && i < documents; i++)
        if (!classes_of || classes_of[i] < 0 || classes_of[i] >= classes) {
            st = mx_fail(err, MX_ERR_FORMAT, "%s: document %lld: its label must be in 0..%d", path, (long long)i, classes - 1);
            goto done;
        }
    for (int64_t i = 0; i < ids->cols; i++)
        if (id[i] < 0 || id[i] >= vocab) {
            st = mx_fail(err, MX_ERR_FORMAT, "%s: token %lld has id %d; the model's vocabulary ends at %d", path, (long long)i, id[i], vocab - 1);
            goto done;
        }
    d->masked |= learn != NULL;
    d->labelled |= label != NULL;
    if (!d->n && !d->count && !d->begin) {
        st = map(d, c, ids, learn, begin->data, classes_of, documents, err);
        if (!st) c = NULL;
    } else {
        st = append(d, ids, learn, begin->data, classes_of, documents, err);
    }
done:
    mx_checkpoint_close(c);
    return st;
}

mx_status mx_dataset_write(const mx_dataset *d, int64_t first, int64_t n, const char *path, mx_error *err)
{
    if (first < 0 || n < 1 || first + n > d->count) return mx_fail(err, MX_ERR_ARG, "%s: documents %lld..%lld of %lld", path, (long long)first, (long long)(first + n), (long long)d->count);
    int64_t *begin = malloc((size_t)(n + 1) * sizeof *begin), tokens = d->begin[first + n] - d->begin[first];
    if (!begin) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld documents", (long long)n);
    for (int64_t i = 0; i <= n; i++) begin[i] = d->begin[first + i] - d->begin[first];
    mx_save save[4] = {
        {.name = "ids", .as = MX_SAVE_I32, .n_dims = 1, .dims = {tokens}, .data = d->ids + d->begin[first]},
        {.name = "begin", .as = MX_SAVE_I64, .n_dims = 1, .dims = {n + 1}, .data = begin},
    };
    int k = 2;
    if (d->masked && d->learn) save[k++] = (mx_save){.name = "learn", .as = MX_SAVE_U8, .n_dims = 1, .dims = {tokens}, .data = d->learn + d->begin[first]};
    if (d->labelled) save[k++] = (mx_save){.name = "label", .as = MX_SAVE_I32, .n_dims = 1, .dims = {n}, .data = d->label + first};
    mx_status st = mx_safetensors_write(path, save, k, (const char *[]){"format", "merx tokens 1"}, 1, err);
    free(begin);
    return st;
}
