/* replay.c - the ring, the windows of n steps before it, and the tree beside it. */
#include "models/replay.h"

#include <stdlib.h>

/* A step that has not yet been followed by n. */
typedef struct pending {
    int32_t action;
    float   reward;
} pending;

struct mx_replay {
    mx_device      *dev;
    mx_replay_shape s;
    int64_t         width;            /* f32 of a transition                             */
    mx_buffer       ring, tree;       /* [capacity, width]; [2L]                         */
    int64_t         leaves, head, count;
    /* windows: of every row up to n_step steps, first ones first */
    void           *window;           /* int32 held[rows], pending[rows][n], float state[rows][n][D] */
    size_t          window_bytes;
    int32_t        *held;
    pending        *step;
    float          *state;
    float          *wait;             /* [rows * n_step, width] complete ones            */
    int64_t         waiting;
    int32_t        *ids;              /* of those                                        */
};

static mx_status check(const mx_replay_shape *s, mx_error *err)
{
    const struct { const char *name; int64_t value, least, most; } limits[] = {
        {"buffer", s->capacity, 1, 1 << 30}, {"envs", s->rows, 1, 1 << 20}, {"observation", s->observation, 1, 1 << 20},
        {"actions", s->actions, 1, 65536}, {"n-step", s->n_step, 1, 1024}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].value < limits[i].least || limits[i].value > limits[i].most)
            return mx_fail(err, MX_ERR_ARG, "%s is %lld; it must be from %lld to %lld", limits[i].name, (long long)limits[i].value,
                           (long long)limits[i].least, (long long)limits[i].most);
    if (s->capacity < s->rows * s->n_step)
        return mx_fail(err, MX_ERR_ARG, "buffer is %lld; %lld worlds with %d steps need as much as they can add at once", (long long)s->capacity,
                       (long long)s->rows, s->n_step);
    return MX_OK;
}

static mx_status open_window(mx_replay *r, mx_error *err)
{
    size_t rows = (size_t)r->s.rows, n = rows * (size_t)r->s.n_step, d = (size_t)r->s.observation, states, waits;
    if (!mx_mul_size(n, d * sizeof(float), &states) || !mx_mul_size(n, (size_t)r->width * sizeof(float), &waits)) return mx_fail(err, MX_ERR_NO_MEMORY, "replay windows");
    r->window_bytes = rows * sizeof *r->held + n * sizeof *r->step + states;
    r->window = calloc(1, r->window_bytes);
    r->wait = malloc(waits);
    r->ids = malloc(n * sizeof *r->ids);
    if (!r->window || !r->wait || !r->ids) return mx_fail(err, MX_ERR_NO_MEMORY, "replay windows of %zu steps", n);
    r->held = r->window;
    r->step = (pending *)(r->held + rows);
    r->state = (float *)(r->step + n);
    return MX_OK;
}

mx_status mx_replay_open(mx_replay **out, mx_device *dev, const mx_replay_shape *shape, mx_error *err)
{
    mx_status st;
    size_t bytes;
    *out = NULL;
    MX_TRY(check(shape, err));
    mx_replay *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "a replay memory");
    r->dev = dev;
    r->s = *shape;
    r->width = 2 * (int64_t)shape->observation + 4 + (shape->actions + 3) / 4;
    for (r->leaves = 2; r->leaves < shape->capacity;) r->leaves *= 2;
    if (!mx_mul_size((size_t)shape->capacity, (size_t)r->width * sizeof(float), &bytes)) {
        st = mx_fail(err, MX_ERR_ARG, "buffer: %lld transitions of %lld numbers are too many", (long long)shape->capacity, (long long)r->width);
        goto fail;
    }
    MX_TRY_GOTO(st, mx_buffer_open(&r->ring, dev, bytes, err), fail);
    if (shape->prioritized) MX_TRY_GOTO(st, mx_buffer_open(&r->tree, dev, 2 * (size_t)r->leaves * sizeof(float), err), fail);
    MX_TRY_GOTO(st, open_window(r, err), fail);
    *out = r;
    return MX_OK;
fail:
    mx_replay_close(r);
    return st;
}

void mx_replay_close(mx_replay *r)
{
    if (!r) return;
    mx_buffer_close(&r->tree);
    mx_buffer_close(&r->ring);
    free(r->window);
    free(r->wait);
    free(r->ids);
    free(r);
}

int64_t mx_replay_count(const mx_replay *r)
{
    return r->count;
}

size_t mx_replay_bytes(const mx_replay *r)
{
    return r->ring.size + r->tree.size;
}

size_t mx_replay_scratch(const mx_replay *r, int64_t batch)
{
    return mx_stream_tensor_bytes(MX_F32, batch, r->width) + 2 * mx_stream_tensor_bytes(MX_F32, batch, 1) + mx_stream_tensor_bytes(MX_I32, batch, 1) +
           mx_stream_tensor_bytes(MX_I32, r->s.rows * r->s.n_step, 1);
}

/* ---- adding ------------------------------------------------------------------------------ */

/* The first step of a row's window, with all rewards from it on. */
static void complete(mx_replay *r, int64_t row, const mx_replay_step *t)
{
    int32_t n = r->s.n_step, held = r->held[row];
    size_t d = (size_t)r->s.observation;
    const pending *w = r->step + row * n;
    float *state = r->state + (size_t)(row * n) * d, *to = r->wait + r->waiting++ * r->width, sum = 0, factor = 1;
    for (int32_t k = 0; k < held; k++) {
        sum += factor * w[k].reward;
        factor *= r->s.gamma;
    }
    memset(to, 0, (size_t)r->width * sizeof *to);
    memcpy(to, state, d * sizeof *to);
    memcpy(to + d, t->next, d * sizeof *to);
    to[2 * d] = sum;
    to[2 * d + 1] = t->terminated ? 0 : factor;
    to[2 * d + 2] = 1;
    memcpy(to + 2 * d + 3, &w[0].action, sizeof w[0].action);
    memcpy(to + 2 * d + 4, t->mask, (size_t)r->s.actions);
    memmove(r->step + row * n, w + 1, (size_t)(held - 1) * sizeof *w);
    memmove(state, state + d, (size_t)(held - 1) * d * sizeof *state);
    r->held[row]--;
}

void mx_replay_add(mx_replay *r, int64_t row, const mx_replay_step *t)
{
    int32_t n = r->s.n_step, at = r->held[row]++;
    size_t d = (size_t)r->s.observation;
    r->step[row * n + at] = (pending){t->action, t->reward};
    memcpy(r->state + (size_t)(row * n + at) * d, t->state, d * sizeof(float));
    if (t->terminated || t->truncated) {
        while (r->held[row]) complete(r, row, t);
    } else if (r->held[row] == n) {
        complete(r, row, t);
    }
}

void mx_replay_flush(mx_replay *r, mx_stream *s)
{
    if (!r->waiting || s->error.code) return;
    for (int64_t done = 0; done < r->waiting;) {
        int64_t room = r->s.capacity - r->head, n = r->waiting - done < room ? r->waiting - done : room;
        size_t row = (size_t)r->width * sizeof(float);
        r->dev->ops->upload(s, (char *)r->ring.base + (size_t)r->head * row, r->wait + done * r->width, (size_t)n * row);
        for (int64_t i = 0; i < n; i++) r->ids[done + i] = (int32_t)(r->head + i);
        done += n;
        r->head = (r->head + n) % r->s.capacity;
    }
    r->count = r->count + r->waiting < r->s.capacity ? r->count + r->waiting : r->s.capacity;
    if (r->s.prioritized)
        mx_priority_set(s, mx_tensor_of(r->tree.base, MX_F32, 1, 2 * r->leaves), mx_stream_upload(s, MX_I32, r->waiting, 1, r->ids), (mx_tensor){0}, 1);
    r->waiting = 0;
}

/* ---- drawing ------------------------------------------------------------------------------ */

void mx_replay_draw(mx_replay *r, mx_stream *s, const float *uniform, int64_t batch, float beta, mx_replay_batch *out)
{
    int64_t d = r->s.observation;
    mx_tensor all = mx_stream_tensor(s, MX_F32, batch, r->width), weight = mx_stream_tensor(s, MX_F32, batch, 1);
    mx_tensor ring = mx_tensor_of(r->ring.base, MX_F32, r->s.capacity, r->width);
    if (r->s.prioritized) {
        out->ids = mx_stream_tensor(s, MX_I32, batch, 1);
        mx_priority_sample(s, out->ids, weight, mx_tensor_of(r->tree.base, MX_F32, 1, 2 * r->leaves), mx_stream_upload(s, MX_F32, batch, 1, uniform), beta);
    } else {
        int32_t *ids = malloc((size_t)batch * sizeof *ids);
        if (!ids) {
            mx_stream_fail(s, MX_ERR_NO_MEMORY, "replay: a batch of %lld", (long long)batch);
            return;
        }
        for (int64_t i = 0; i < batch; i++) {
            int64_t id = (int64_t)((double)uniform[i] * (double)r->count);
            ids[i] = (int32_t)(id < r->count ? id : r->count - 1);
        }
        out->ids = mx_stream_upload(s, MX_I32, batch, 1, ids);
        free(ids);
    }
    mx_embed(s, all, ring, out->ids, false);
    if (r->s.prioritized) mx_scale(s, mx_tensor_cols(all, 2 * d + 2, 1), weight, 1);
    out->state = mx_tensor_cols(all, 0, d);
    out->next = mx_tensor_cols(all, d, d);
    out->step = mx_tensor_cols(all, 2 * d, 3);
    out->action = mx_tensor_cols(all, 2 * d + 3, 1);
    out->action.dtype = MX_I32;
    out->mask = (mx_tensor){(float *)all.data + 2 * d + 4, batch, r->s.actions, 4 * r->width, MX_I8};
}

void mx_replay_errors(mx_replay *r, mx_stream *s, const mx_replay_batch *b, mx_tensor errors, float alpha)
{
    if (r->s.prioritized) mx_priority_set(s, mx_tensor_of(r->tree.base, MX_F32, 1, 2 * r->leaves), b->ids, errors, alpha);
}

/* ---- saving --------------------------------------------------------------------------------- */

void mx_replay_image_free(mx_replay_image *i)
{
    free(i->ring);
    free(i->tree);
    free(i->window);
    *i = (mx_replay_image){0};
}

mx_status mx_replay_save(mx_replay *r, mx_stream *s, mx_replay_image *to, mx_error *err)
{
    *to = (mx_replay_image){.ring_bytes = (size_t)(r->count * r->width) * sizeof(float), .tree_bytes = r->tree.size, .window_bytes = r->window_bytes,
                            .head = r->head, .count = r->count};
    to->ring = malloc(to->ring_bytes + 1);
    to->tree = malloc(to->tree_bytes + 1);
    to->window = malloc(to->window_bytes);
    if (!to->ring || !to->tree || !to->window) {
        mx_replay_image_free(to);
        return mx_fail(err, MX_ERR_NO_MEMORY, "a copy of the replay memory");
    }
    memcpy(to->window, r->window, r->window_bytes);
    if (to->ring_bytes) r->dev->ops->download(s, to->ring, r->ring.base, to->ring_bytes);
    if (to->tree_bytes) r->dev->ops->download(s, to->tree, r->tree.base, to->tree_bytes);
    mx_status st = mx_stream_sync(s, err);
    if (st) mx_replay_image_free(to);
    return st;
}

mx_status mx_replay_restore(mx_replay *r, mx_stream *s, const mx_replay_image *from, mx_error *err)
{
    if (from->count < 0 || from->count > r->s.capacity || from->head < 0 || from->head >= r->s.capacity ||
        from->ring_bytes != (size_t)(from->count * r->width) * sizeof(float) || from->tree_bytes != r->tree.size || from->window_bytes != r->window_bytes)
        return mx_fail(err, MX_ERR_FORMAT, "the replay memory of the checkpoint has another shape");
    memcpy(r->window, from->window, r->window_bytes);
    for (int64_t i = 0; i < r->s.rows; i++)
        if (r->held[i] < 0 || r->held[i] >= r->s.n_step) return mx_fail(err, MX_ERR_FORMAT, "the replay memory of the checkpoint is damaged");
    r->head = from->head;
    r->count = from->count;
    r->waiting = 0;
    if (from->ring_bytes) r->dev->ops->upload(s, r->ring.base, from->ring, from->ring_bytes);
    if (from->tree_bytes) r->dev->ops->upload(s, r->tree.base, from->tree, from->tree_bytes);
    return mx_stream_sync(s, err);
}
