/* params.c - the list of a network's weights, and the buffers behind it. */
#include "models/params.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define GROUP_ELEMENTS 16           /* 64 bytes of f32 */

int mx_params_add(mx_params *p, const char *name, int64_t rows, int64_t cols, unsigned flags, mx_error *err)
{
    size_t n, at = p->count, end;
    if (strlen(name) >= MX_PARAM_NAME) {
        mx_fail(err, MX_ERR_ARG, "parameter %s: its name is longer than %d bytes", name, MX_PARAM_NAME - 1);
        return -1;
    }
    if (rows <= 0 || cols <= 0 || !mx_mul_size((size_t)rows, (size_t)cols, &n)) {
        mx_fail(err, MX_ERR_ARG, "parameter %s: [%lld, %lld] is no shape", name, (long long)rows, (long long)cols);
        return -1;
    }
    if (mx_params_find(p, name) >= 0) {
        mx_fail(err, MX_ERR_ARG, "parameter %s is listed twice", name);
        return -1;
    }
    if (!(flags & MX_PARAM_JOIN)) at = (at + GROUP_ELEMENTS - 1) / GROUP_ELEMENTS * GROUP_ELEMENTS;
    if (!mx_add_size(at, n, &end) || end > SIZE_MAX / sizeof(float) - 64) {
        mx_fail(err, MX_ERR_ARG, "parameter %s: the parameters' sizes overflow", name);
        return -1;
    }
    if (p->n == p->room) {
        int room = p->room ? 2 * p->room : 64;
        mx_param *grown = realloc(p->param, (size_t)room * sizeof *grown);
        if (!grown) {
            mx_fail(err, MX_ERR_NO_MEMORY, "a list of %d parameters", room);
            return -1;
        }
        p->param = grown;
        p->room = room;
    }
    mx_param *q = &p->param[p->n];
    *q = (mx_param){.rows = rows, .cols = cols, .flags = flags, .offset = at};
    memcpy(q->name, name, strlen(name) + 1);
    p->count = end;
    p->elements += n;
    return p->n++;
}

mx_status mx_params_alloc(mx_params *p, mx_device *d, bool learn, mx_error *err)
{
    mx_buffer *all[] = {&p->value, &p->grad};
    p->dev = d;
    p->count = (p->count + GROUP_ELEMENTS - 1) / GROUP_ELEMENTS * GROUP_ELEMENTS;
    for (int i = 0; i < (learn ? 2 : 1); i++) MX_TRY(mx_buffer_open(all[i], d, p->count * sizeof(float), err));
    return MX_OK;
}

void mx_params_close(mx_params *p)
{
    mx_buffer_close(&p->grad);
    mx_buffer_close(&p->value);
    free(p->param);
    *p = (mx_params){0};
}

mx_tensor mx_params_view(const mx_params *p, const mx_buffer *in, int i, int n)
{
    const mx_param *q = &p->param[i];
    int64_t rows = 0;
    for (int k = i; k < i + n; k++) rows += p->param[k].flags & MX_PARAM_VECTOR ? p->param[k].cols : p->param[k].rows;
    float *at = in->base ? (float *)in->base + q->offset : NULL;
    if (q->flags & MX_PARAM_VECTOR) return mx_tensor_of(at, MX_F32, 1, rows);
    return mx_tensor_of(at, MX_F32, rows, q->cols);
}

int mx_params_find(const mx_params *p, const char *name)
{
    for (int i = 0; i < p->n; i++)
        if (!strcmp(p->param[i].name, name)) return i;
    return -1;
}

/* ---- between host and device ------------------------------------------------------ */

/* The bytes of one parameter, to the device or from it. */
static mx_status move(const mx_params *p, const mx_buffer *b, int i, float *host, bool up, mx_error *err)
{
    mx_stream s;
    size_t bytes = (size_t)p->param[i].rows * (size_t)p->param[i].cols * sizeof(float);
    float *at = (float *)b->base + p->param[i].offset;
    MX_TRY(mx_stream_open(&s, p->dev, 0, err));
    if (up) p->dev->ops->upload(&s, at, host, bytes);
    else p->dev->ops->download(&s, host, at, bytes);
    mx_status st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

/* ---- loading ------------------------------------------------------------------------ */

static mx_status load_blob(mx_params *p, const mx_buffer *into, int i, const mx_blob *b, bool own, mx_error *err)
{
    const mx_param *q = &p->param[i];
    if (!b)
        return mx_fail(err, MX_ERR_FORMAT, "tensor %s is missing; the network asks for [%lld, %lld]", q->name,
                       (long long)q->rows, (long long)q->cols);
    bool conv1d = !own && (q->flags & MX_PARAM_CONV1D);
    int64_t rows = conv1d ? q->cols : q->rows, cols = conv1d ? q->rows : q->cols;
    if (b->dtype == MX_FILE_OTHER || (conv1d && b->dtype > MX_FILE_BF16))
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu has a dtype that cannot be trained", b->file, b->name,
                       (unsigned long long)b->offset);
    if (b->rows != rows || b->cols != cols)
        return mx_fail(err, MX_ERR_FORMAT, "%s: tensor %s at offset %llu is [%lld, %lld]; the network asks for [%lld, %lld]",
                       b->file, b->name, (unsigned long long)b->offset, (long long)b->rows, (long long)b->cols,
                       (long long)rows, (long long)cols);
    float *stage = malloc((size_t)q->rows * (size_t)q->cols * sizeof(float));
    if (!stage) return mx_fail(err, MX_ERR_NO_MEMORY, "parameter %s", q->name);
    if (conv1d) mx_blob_read_transposed(b, 0, q->rows, stage);
    else mx_blob_read(b, 0, q->rows, stage);
    mx_status st = move(p, into, i, stage, true, err);
    free(stage);
    return st;
}

mx_status mx_params_load_blob(mx_params *p, int i, const mx_blob *b, mx_error *err)
{
    return load_blob(p, &p->value, i, b, false, err);
}

static mx_status load_one(mx_params *p, const mx_buffer *into, int i, const mx_checkpoint *c, const char *prefix, bool own, mx_error *err)
{
    const mx_param *q = &p->param[i];
    size_t skip = prefix ? strlen(prefix) : 0;
    const mx_blob *b = mx_checkpoint_find(c, q->name);
    if (!b && skip && !strncmp(q->name, prefix, skip)) b = mx_checkpoint_find(c, q->name + skip);
    return load_blob(p, into, i, b, own, err);
}

mx_status mx_params_load(mx_params *p, const mx_checkpoint *c, const char *prefix, mx_error *err)
{
    for (int i = 0; i < p->n; i++) MX_TRY(load_one(p, &p->value, i, c, prefix, false, err));
    return MX_OK;
}

mx_status mx_params_load_own(mx_params *p, const mx_buffer *into, const mx_checkpoint *c, mx_error *err)
{
    for (int i = 0; i < p->n; i++) MX_TRY(load_one(p, into, i, c, NULL, true, err));
    return MX_OK;
}

/* ---- initial values ------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea, Flood 2014): a value for every counter. */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static uint64_t name_hash(const char *name)
{
    uint64_t h = 0xcbf29ce484222325u;                   /* FNV-1a */
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 0x100000001b3u;
    return h;
}

/* Box and Muller (1958). */
static float normal(uint64_t key, uint64_t i)
{
    uint64_t a = mix(key + 2 * i), b = mix(key + 2 * i + 1);
    double u = ((double)(a >> 11) + 1.0) * 0x1p-53, w = (double)(b >> 11) * 0x1p-53;
    return (float)(sqrt(-2.0 * log(u)) * cos(6.283185307179586 * w));
}

mx_status mx_params_init(mx_params *p, int i, float std, uint64_t seed, mx_error *err)
{
    const mx_param *q = &p->param[i];
    size_t n = (size_t)q->rows * (size_t)q->cols;
    float *stage = malloc(n * sizeof *stage);
    if (!stage) return mx_fail(err, MX_ERR_NO_MEMORY, "parameter %s", q->name);
    uint64_t key = mix(seed ^ name_hash(q->name));
    for (size_t k = 0; k < n; k++) stage[k] = std * normal(key, k);
    mx_status st = move(p, &p->value, i, stage, true, err);
    free(stage);
    return st;
}

mx_status mx_params_fill(mx_params *p, int i, float value, mx_error *err)
{
    const mx_param *q = &p->param[i];
    size_t n = (size_t)q->rows * (size_t)q->cols;
    float *stage = malloc(n * sizeof *stage);
    if (!stage) return mx_fail(err, MX_ERR_NO_MEMORY, "parameter %s", q->name);
    for (size_t k = 0; k < n; k++) stage[k] = value;
    mx_status st = move(p, &p->value, i, stage, true, err);
    free(stage);
    return st;
}

/* ---- saving --------------------------------------------------------------------------- */

mx_status mx_params_save_as(const mx_params *p, const mx_buffer *which, const char *path, mx_save_type as, bool own_orientation,
                            const char *const *metadata, int n_metadata, mx_error *err)
{
    mx_status st = MX_OK;
    mx_save *save = calloc((size_t)p->n, sizeof *save);
    float *host = p->dev->kind == MX_CPU ? which->base : malloc(p->count * sizeof(float));
    if (!save || !host) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory to write it", path);
        goto done;
    }
    for (int i = 0; i < p->n; i++) {
        const mx_param *q = &p->param[i];
        if (p->dev->kind != MX_CPU) MX_TRY_GOTO(st, move(p, which, i, host + q->offset, false, err), done);
        bool vector = (q->flags & MX_PARAM_VECTOR) != 0;
        save[i] = (mx_save){.name = q->name, .as = as, .n_dims = vector ? 1 : 2, .data = host + q->offset,
                            .dims = {vector ? q->cols : q->rows, vector ? 0 : q->cols},
                            .transposed = !own_orientation && (q->flags & MX_PARAM_CONV1D)};
    }
    st = mx_safetensors_write(path, save, p->n, metadata, n_metadata, err);
done:
    if (p->dev->kind != MX_CPU) free(host);
    free(save);
    return st;
}

/* ---- learning -------------------------------------------------------------------------- */

/* One call for every run of neighbours that are decayed alike. */
mx_status mx_params_adamw(mx_params *p, mx_stream *s, const mx_buffer *m, const mx_buffer *v, size_t begin, size_t end,
                          const mx_adamw_options *o, mx_error *err)
{
    mx_adamw_step step = {.lr = o->lr, .beta1 = o->beta1, .beta2 = o->beta2, .eps = o->eps, .scale = o->scale,
                          .c1 = (float)(1 - pow((double)o->beta1, (double)o->step)), .c2 = (float)(1 - pow((double)o->beta2, (double)o->step))};
    for (int i = 0; i < p->n;) {
        bool decay = !(p->param[i].flags & (MX_PARAM_VECTOR | MX_PARAM_NO_DECAY));
        int last = i + 1;
        while (last < p->n && decay == !(p->param[last].flags & (MX_PARAM_VECTOR | MX_PARAM_NO_DECAY))) last++;
        size_t from = p->param[i].offset, to = last < p->n ? p->param[last].offset : p->count;
        if (from < begin) from = begin;
        if (to > end) to = end;
        i = last;
        if (from >= to) continue;
        int64_t n = (int64_t)(to - from);
        step.decay = decay ? o->decay : 0;
        mx_adamw(s, mx_tensor_of((float *)p->value.base + from, MX_F32, 1, n), mx_tensor_of((float *)p->grad.base + from, MX_F32, 1, n),
                 mx_tensor_of((float *)m->base + (from - begin), MX_F32, 1, n), mx_tensor_of((float *)v->base + (from - begin), MX_F32, 1, n),
                 step);
    }
    return mx_stream_sync(s, err);
}

mx_status mx_params_square_norm(const mx_params *p, mx_stream *s, size_t begin, size_t end, double *sum, mx_error *err)
{
    *sum = 0;
    if (begin >= end) return MX_OK;
    mx_stream_rewind(s);
    mx_tensor out = mx_stream_tensor(s, MX_I32, 1, 2);
    mx_sum(s, out, mx_tensor_of((float *)p->grad.base + begin, MX_F32, 1, (int64_t)(end - begin)), true);
    if (!s->error.code) s->dev->ops->download(s, sum, out.data, sizeof *sum);
    return mx_stream_sync(s, err);
}
