/* transitions.c - a file of logged steps, checked field by field. */
#include "models/transitions.h"

#include "runtime/tensor.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDEST = 1 << 20, MOST_ACTIONS = 65536 };

typedef struct reader {
    mx_transitions *t;
    const char *path;
    long long   line;
    size_t      room;
    bool        open;                 /* the last step kept is followed by the next line */
} reader;

void mx_transitions_close(mx_transitions *t)
{
    if (!t) return;
    free(t->state), free(t->next), free(t->mask), free(t->next_mask), free(t->action), free(t->reward), free(t->first), free(t->terminated), free(t->truncated);
    free(t);
}

static mx_status wrong(const reader *r, const char *field, const char *why, mx_error *err)
{
    return mx_fail(err, MX_ERR_FORMAT, "%.200s:%lld: %s: %s", r->path, r->line, field, why);
}

static bool grow(void *array, size_t n, size_t width)
{
    size_t bytes;
    void *was, *grown;
    memcpy(&was, array, sizeof was);
    if (!mx_mul_size(n, width, &bytes) || !(grown = realloc(was, bytes))) return false;
    memcpy(array, &grown, sizeof grown);
    return true;
}

static mx_status make_room(reader *r, mx_error *err)
{
    mx_transitions *t = r->t;
    if ((size_t)t->n < r->room) return MX_OK;
    size_t n = r->room ? 2 * r->room : 1024, D = (size_t)t->observation, A = (size_t)t->actions;
    if (n > 1u << 30 || !grow(&t->state, n, D * sizeof(float)) || !grow(&t->next, n, D * sizeof(float)) || !grow(&t->mask, n, A) || !grow(&t->next_mask, n, A) ||
        !grow(&t->action, n, sizeof(int32_t)) || !grow(&t->reward, n, sizeof(float)) || !grow(&t->first, n, 1) || !grow(&t->terminated, n, 1) || !grow(&t->truncated, n, 1))
        return mx_fail(err, MX_ERR_NO_MEMORY, "%.200s: %zu steps", r->path, n);
    r->room = n;
    return MX_OK;
}

static mx_status sized(const reader *r, const json_t *o, const char *field, int32_t n, const json_t **out, mx_error *err)
{
    char why[96];
    *out = json_object_get(o, field);
    if (!json_is_array(*out)) return wrong(r, field, *out ? "must be an array of numbers" : "is missing", err);
    if (json_array_size(*out) == (size_t)n) return MX_OK;
    snprintf(why, sizeof why, "has %zu numbers; the first line has %d", json_array_size(*out), n);
    return wrong(r, field, why, err);
}

static mx_status floats(const reader *r, const json_t *o, const char *field, float *to, mx_error *err)
{
    const json_t *a;
    MX_TRY(sized(r, o, field, r->t->observation, &a, err));
    for (int32_t i = 0; i < r->t->observation; i++) {
        const json_t *x = json_array_get(a, (size_t)i);
        to[i] = (float)json_number_value(x);
        if (!json_is_number(x) || !isfinite(to[i])) return wrong(r, field, "must hold finite numbers only", err);
    }
    return MX_OK;
}

static mx_status mask(const reader *r, const json_t *o, const char *field, uint8_t *to, mx_error *err)
{
    const json_t *a;
    bool any = false;
    MX_TRY(sized(r, o, field, r->t->actions, &a, err));
    for (int32_t i = 0; i < r->t->actions; i++) {
        const json_t *x = json_array_get(a, (size_t)i);
        json_int_t v = json_integer_value(x);
        if (!json_is_integer(x) || (v != 0 && v != 1)) return wrong(r, field, "must hold 1 (feasible) and 0 only", err);
        any |= (to[i] = (uint8_t)v) != 0;
    }
    return any ? MX_OK : wrong(r, field, "leaves no action feasible", err);
}

static mx_status flag(const reader *r, const json_t *o, const char *field, bool *to, mx_error *err)
{
    const json_t *v = json_object_get(o, field);
    if (v && !json_is_boolean(v)) return wrong(r, field, "must be true or false", err);
    *to = json_is_true(v);
    return MX_OK;
}

static mx_status shape(reader *r, const json_t *o, mx_error *err)
{
    mx_transitions *t = r->t;
    size_t D = json_array_size(json_object_get(o, "state")), A = json_array_size(json_object_get(o, "mask"));
    if (t->observation) return MX_OK;
    if (!D || D > WIDEST) return wrong(r, "state", "must be an array of 1 to 1048576 numbers", err);
    if (!A || A > MOST_ACTIONS) return wrong(r, "mask", "must be an array with a 1 or 0 for each of 1 to 65536 actions", err);
    t->observation = (int32_t)D;
    t->actions = (int32_t)A;
    return MX_OK;
}

/* The episode ends with the last step kept, if it has not. */
static void cut(reader *r)
{
    if (r->open) r->t->truncated[r->t->n - 1] = 1;
    r->open = false;
}

static mx_status take(reader *r, const json_t *o, mx_error *err)
{
    mx_transitions *t = r->t;
    bool first = false, terminated = false, truncated = false;
    if (!json_is_object(o)) return wrong(r, "step", "must be an object", err);
    MX_TRY(shape(r, o, err));
    MX_TRY(make_room(r, err));
    size_t i = (size_t)t->n, D = (size_t)t->observation, A = (size_t)t->actions;
    const json_t *action = json_object_get(o, "action"), *reward = json_object_get(o, "reward");
    MX_TRY(floats(r, o, "state", t->state + i * D, err));
    MX_TRY(mask(r, o, "mask", t->mask + i * A, err));
    MX_TRY(flag(r, o, "first", &first, err));
    MX_TRY(flag(r, o, "terminated", &terminated, err));
    MX_TRY(flag(r, o, "truncated", &truncated, err));
    json_int_t a = json_integer_value(action);
    if (!json_is_integer(action) || a < 0 || a >= t->actions) return wrong(r, "action", "must be the number of an action, from 0", err);
    if (!t->mask[i * A + (size_t)a]) return wrong(r, "action", "is not feasible by mask", err);
    t->action[i] = (int32_t)a;
    t->reward[i] = (float)json_number_value(reward);
    if (!json_is_number(reward) || !isfinite(t->reward[i])) return wrong(r, "reward", "must be a finite number", err);
    if (first) cut(r);
    bool follows = json_object_get(o, "next") != NULL;
    if (!follows && truncated) return wrong(r, "next", "is missing; a truncated step keeps the value of what it was cut off in", err);
    if (!follows && !terminated) {
        cut(r);
        return MX_OK;
    }
    memset(t->next + i * D, 0, D * sizeof(float));
    memset(t->next_mask + i * A, 1, A);
    if (!terminated) {
        MX_TRY(floats(r, o, "next", t->next + i * D, err));
        MX_TRY(mask(r, o, "next_mask", t->next_mask + i * A, err));
    }
    t->first[i] = !r->open;
    t->terminated[i] = terminated;
    t->truncated[i] = truncated && !terminated;
    t->starts += t->first[i];
    t->n++;
    r->open = !terminated && !truncated;
    return MX_OK;
}

static void digest(mx_transitions *t, const void *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) t->digest = (t->digest ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
}

static void digest_all(mx_transitions *t)
{
    size_t n = (size_t)t->n, D = (size_t)t->observation, A = (size_t)t->actions;
    t->digest = 0xcbf29ce484222325u;
    digest(t, t->state, n * D * sizeof(float)), digest(t, t->next, n * D * sizeof(float)), digest(t, t->mask, n * A), digest(t, t->next_mask, n * A);
    digest(t, t->action, n * sizeof(int32_t)), digest(t, t->reward, n * sizeof(float)), digest(t, t->terminated, n), digest(t, t->truncated, n);
}

mx_status mx_transitions_open(mx_transitions **out, const char *path, mx_error *err)
{
    reader r = {.path = path};
    char *line = NULL;
    size_t room = 0;
    ssize_t len;
    mx_status st = MX_OK;
    *out = NULL;
    FILE *f = fopen(path, "re");
    if (!f) return mx_fail(err, MX_ERR_IO, "data: %.200s: %s", path, strerror(errno));
    if (!(r.t = calloc(1, sizeof *r.t))) st = mx_fail(err, MX_ERR_NO_MEMORY, "logged steps");
    while (!st && (len = getline(&line, &room, f)) >= 0) {
        json_error_t why;
        r.line++;
        if (strspn(line, " \t\r\n") == (size_t)len) continue;
        json_t *o = json_loadb(line, (size_t)len, 0, &why);
        st = o ? take(&r, o, err) : wrong(&r, "step", why.text, err);
        json_decref(o);
    }
    if (!st && ferror(f)) st = mx_fail(err, MX_ERR_IO, "data: %.200s: %s", path, strerror(errno));
    fclose(f);
    free(line);
    if (!st && !r.t->n) st = mx_fail(err, MX_ERR_FORMAT, "%.200s: no step has a next one, or terminated: there is nothing to learn from", path);
    if (st) {
        mx_transitions_close(r.t);
        return st;
    }
    cut(&r);
    digest_all(r.t);
    *out = r.t;
    return MX_OK;
}

mx_status mx_transitions_worth(const mx_transitions *t, const int32_t *best, const int32_t *best_next, double discount, mx_fqe *out, mx_error *err)
{
    size_t n = (size_t)t->n, D = (size_t)t->observation, A = (size_t)t->actions;
    mx_logged_step *l = calloc(n, sizeof *l);
    double *one = calloc(2 * A, sizeof *one);             /* one + A - a is 1 at a, and 0 elsewhere */
    mx_status st = l && one ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%zu logged steps", n);
    if (!st) one[A] = 1;
    for (size_t i = 0; !st && i < n; i++)
        l[i] = (mx_logged_step){.seen = t->state + i * D, .next = t->terminated[i] ? NULL : t->next + i * D, .action = t->action[i], .reward = (double)t->reward[i],
                                .target = one + A - best[i], .target_next = t->terminated[i] ? NULL : one + A - best_next[i], .first = t->first[i]};
    if (!st) st = mx_fqe_linear(l, n, t->observation, t->actions, discount, out, err);
    free(l), free(one);
    return st;
}
