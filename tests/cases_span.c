/* cases_span.c - the cache, attention, and the way from logits to tokens. */
#include "tests/cases_io.h"
#include "runtime/random.h"
#include "tests/reference.h"

#include <math.h>
#include <stdlib.h>

#define IN(i)   (io->t[i].before)
#define DATA(i) case_dense(&io->t[i], IN(i))
#define T(i)    (io->t[i].t)

/* 0..n-1 in random order; malloc */
static int32_t *shuffled(case_io *io, int64_t n)
{
    int32_t *p = malloc((size_t)n * sizeof *p);
    for (int64_t i = 0; p && i < n; i++) {
        int64_t j = case_below(io, i + 1);
        p[i] = p[j];
        p[j] = (int32_t)i;
    }
    io->broken |= !p;
    return p;
}

/* The cache is one row, because its pages lie without gaps: tensors `at` and `at`+1. */
static void cache(case_io *io, int64_t pages, bool output)
{
    const mx_case *c = io->c;
    int64_t size = pages * c->groups * c->page * c->c;
    mx_tensor k = case_place(io, c->type, 1, size, FILL_UNIFORM, output);
    mx_tensor v = case_place(io, c->type, 1, size, FILL_UNIFORM, output);
    io->kv = (mx_kv){k.data, v.data, c->type, (int32_t)pages, c->page, c->groups, (int32_t)c->c};
}

static size_t slot_index(const mx_case *c, int64_t slot, int64_t g)
{
    return (size_t)(((slot / c->page * c->groups + g) * c->page + slot % c->page) * c->c);
}

static void store(char *dst, mx_dtype type, double v)
{
    float f = (float)v;
    uint16_t h = type == MX_BF16 ? mx_f32_to_bf16(f) : mx_f32_to_f16(f);
    if (type == MX_F32) memcpy(dst, &f, sizeof f);
    else if (type == MX_F8) *(uint8_t *)dst = mx_f32_to_f8(f);
    else memcpy(dst, &h, sizeof h);
}

/* ---- aggregate ---------------------------------------------------------------------- */

/* n spans of up to `context` edges into a table of o rows; page: how; flag: weights; bias: the table's own rows. */
static void aggregate_build(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *begin = malloc((size_t)(c->n + 1) * sizeof *begin), edges = 0;
    for (int64_t s = 0; begin && s <= c->n; s++) {
        begin[s] = edges;
        if (s < c->n) edges += (int32_t)(c->perf ? c->context : case_below(io, c->context + 1));
    }
    int32_t *ids = malloc((size_t)(edges + 1) * sizeof *ids);
    if (!begin || !ids) {
        io->broken = true;
        free(begin), free(ids);
        return;
    }
    for (int32_t e = 0; e < edges; e++) ids[e] = (int32_t)case_below(io, c->o);
    case_place(io, MX_F32, c->n, c->c, FILL_SENTINEL, true);
    case_place(io, MX_F32, c->bias ? edges : c->o, c->c, FILL_UNIFORM, false);
    case_place_i32(io, c->n + 1, 1, begin);
    if (!c->bias) case_place_i32(io, edges, 1, ids);
    if (c->flag) case_place(io, MX_F32, edges, 1, FILL_UNIFORM, false);
    io->tolerance = 1e-6;
    free(begin), free(ids);
}

static void aggregate_call(case_io *io)
{
    const mx_case *c = io->c;
    mx_tensor none = {0};
    io->env->kernels->aggregate(&io->s, T(0), T(1), c->bias ? none : T(3), T(2), c->flag ? T(c->bias ? 3 : 4) : none, (mx_reduce)c->page);
}

static int32_t *whole(case_io *io, int i)
{
    int64_t n = io->t[i].t.rows;
    int32_t *v = malloc((size_t)n * sizeof *v);
    for (int64_t r = 0; r < n; r++) v[r] = (int32_t)case_value(&io->t[i], IN(i), r, 0);
    return v;
}

static bool aggregate_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = DATA(1), *w = c->flag ? DATA(c->bias ? 3 : 4) : NULL;
    int32_t *begin = whole(io, 2), *ids = c->bias ? NULL : whole(io, 3);
    io->t[0].want = DATA(0);
    ref_aggregate(io->t[0].want, x, ids, begin, w, c->n, c->c, (mx_reduce)c->page);
    free(x), free(w), free(begin), free(ids);
    return case_close(io, &io->t[0], "y");
}

static void aggregate_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 2.0 * (double)c->n * (double)c->context * (double)c->c;
    *bytes = (double)c->n * ((double)c->context + 1) * (double)c->c * 4;
}

/* ---- kv_write --------------------------------------------------------------------- */

static void kv_write_build(case_io *io)
{
    const mx_case *c = io->c;
    int64_t pages = c->n / c->page + 3;
    cache(io, pages, true);
    case_place(io, MX_F32, c->n, c->groups * c->c, FILL_UNIFORM, false);
    case_place(io, MX_F32, c->n, c->groups * c->c, FILL_UNIFORM, false);
    int32_t *slots = shuffled(io, pages * c->page);
    if (slots) case_place_i32(io, c->n, 1, slots);
    free(slots);
}

static void kv_write_call(case_io *io)
{
    io->env->kernels->kv_write(&io->s, &io->kv, T(2), T(3), T(4));
}

static bool same_image(case_io *io, int i, const char *want, const char *what)
{
    return !memcmp(io->t[i].after, want, io->t[i].memory.size) || case_fail(io, "%s: the cache is not what it should be", what);
}

static bool kv_write_check(case_io *io)
{
    const mx_case *c = io->c;
    bool ok = true;
    for (int i = 0; i < 2; i++) {
        placed *p = &io->t[i];
        char *want = malloc(p->memory.size);
        size_t element = mx_dtype_size(c->type);
        memcpy(want, p->before, p->memory.size);
        for (int64_t r = 0; r < c->n; r++)
            for (int64_t g = 0; g < c->groups; g++)
                for (int64_t d = 0; d < c->c; d++) {
                    size_t at = slot_index(c, (int64_t)case_value(&io->t[4], IN(4), r, 0), g) + (size_t)d;
                    store(want + p->lead + at * element, c->type, case_value(&io->t[2 + i], IN(2 + i), r, g * c->c + d));
                }
        ok = same_image(io, i, want, i ? "v" : "k") && ok;
        free(want);
    }
    return ok;
}

static void kv_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 0;
    *bytes = 2.0 * (double)c->n * c->groups * (double)c->c * (4.0 + (double)mx_dtype_size(c->type));
}

/* ---- rope_kv_write: flag: interleaved; add: another magnitude ------------------------ */

static void rope_write_build(case_io *io)
{
    const mx_case *c = io->c;
    int64_t pages = c->n / c->page + 3;
    cache(io, pages, true);
    case_place(io, MX_F32, c->n, (c->heads + 2 * c->groups) * c->c, FILL_UNIFORM, true);
    int32_t *slots = shuffled(io, pages * c->page), *at = malloc((size_t)c->n * sizeof *at);
    double *freq = malloc((size_t)c->c * sizeof *freq);
    io->broken |= !at || !freq;
    if (!io->broken) {
        for (int64_t i = 0; i < c->n; i++) at[i] = (int32_t)case_below(io, 131072);
        for (int64_t j = 0; j < c->c / 2; j++) freq[j] = (float)pow(10000, -2.0 * (double)j / (double)c->c);
        case_place_i32(io, c->n, 1, slots);
        case_place_i32(io, c->n, 1, at);
        case_place_values(io, 1, c->c / 2, freq, false);
    }
    free(slots), free(at), free(freq);
    io->tolerance = c->type == MX_F32 ? 1e-6 : c->type == MX_F16 ? 2e-3 : c->type == MX_F8 ? 0.25 : 1.6e-2;       /* the last bit of what is stored */
}

static void rope_write_call(case_io *io)
{
    const mx_case *c = io->c;
    io->env->kernels->rope_kv_write(&io->s, T(2), T(4), T(5), c->add ? 1.25f : 1.0f, c->heads, c->flag, &io->kv, T(3));
}

static bool rope_write_check(case_io *io)
{
    const mx_case *c = io->c;
    int64_t q = c->heads * c->c, g = c->groups * c->c, wide = q + 2 * g;
    double *qkv = io->t[2].want = DATA(2), *turned = malloc((size_t)(c->n * (q + g)) * sizeof *turned);
    float *freq = malloc((size_t)c->c * sizeof *freq);
    int32_t *slots = whole(io, 3), *at = whole(io, 4);
    for (int i = 0; i < 2; i++) io->t[i].want = DATA(i);
    for (int64_t j = 0; j < c->c / 2; j++) freq[j] = (float)case_value(&io->t[5], IN(5), 0, j);
    for (int64_t r = 0; r < c->n; r++) memcpy(turned + r * (q + g), qkv + r * wide, (size_t)(q + g) * sizeof *turned);
    ref_rope(turned, at, freq, c->n, c->heads + c->groups, c->c, c->add ? 1.25 : 1.0, c->flag);
    for (int64_t r = 0; r < c->n; r++) {
        memcpy(qkv + r * wide, turned + r * (q + g), (size_t)q * sizeof *qkv);
        for (int64_t h = 0; h < c->groups; h++) {
            size_t to = slot_index(c, slots[r], h);
            memcpy(io->t[0].want + to, turned + r * (q + g) + q + h * c->c, (size_t)c->c * sizeof *qkv);
            memcpy(io->t[1].want + to, qkv + r * wide + q + g + h * c->c, (size_t)c->c * sizeof *qkv);
        }
    }
    free(turned), free(freq), free(slots), free(at);
    bool ok = case_close(io, &io->t[0], "k"), values = case_close(io, &io->t[1], "v");
    io->tolerance = 1e-6;
    return case_close(io, &io->t[2], "qkv") && ok && values;
}

/* ---- kv_copy ------------------------------------------------------------------------ */

static void kv_copy_build(case_io *io)
{
    const mx_case *c = io->c;
    cache(io, 2 * c->n + 1, true);
    int32_t *order = shuffled(io, 2 * c->n + 1);
    if (order) case_place_i32(io, c->n, 2, order);      /* disjoint pairs */
    free(order);
}

static void kv_copy_call(case_io *io)
{
    io->env->kernels->kv_copy(&io->s, &io->kv, T(2));
}

static bool kv_copy_check(case_io *io)
{
    const mx_case *c = io->c;
    bool ok = true;
    size_t page = (size_t)(c->groups * c->page * c->c) * mx_dtype_size(c->type);
    for (int i = 0; i < 2; i++) {
        placed *p = &io->t[i];
        char *want = malloc(p->memory.size);
        memcpy(want, p->before, p->memory.size);
        for (int64_t r = 0; r < c->n; r++) {
            size_t from = (size_t)case_value(&io->t[2], IN(2), r, 0), to = (size_t)case_value(&io->t[2], IN(2), r, 1);
            memcpy(want + p->lead + to * page, p->before + p->lead + from * page, page);
        }
        ok = same_image(io, i, want, i ? "v" : "k") && ok;
        free(want);
    }
    return ok;
}

/* ---- attention ------------------------------------------------------------------------ */

/* Slots of a sequence's last page that hold nothing yet are NaN: they must not leak. */
static void spoil(case_io *io, placed *p, const int32_t *pages, int64_t used, int64_t end)
{
    const mx_case *c = io->c;
    size_t element = mx_dtype_size(c->type);
    for (int64_t t = used; t < end; t++)
        for (int64_t g = 0; g < c->groups; g++) {
            size_t at = slot_index(c, (int64_t)pages[t / c->page] * c->page + t % c->page, g);
            for (int64_t d = 0; d < c->c; d++) store(p->before + p->lead + (at + (size_t)d) * element, c->type, NAN);
        }
    io->env->dev->ops->upload(&io->s, p->memory.base, p->before, p->memory.size);
}

static void attention_build(case_io *io)
{
    const mx_case *c = io->c;
    int64_t seqs = c->flag ? 1 : c->n, per = (c->context + c->page - 1) / c->page;
    int32_t *pages = shuffled(io, seqs * per + 3), *at = malloc((size_t)c->n * 2 * sizeof *at);
    io->broken |= !at;
    if (io->broken) goto done;
    for (int64_t r = 0; r < c->n; r++) {
        at[2 * r] = (int32_t)(c->flag ? 0 : (r + 1) % seqs);
        at[2 * r + 1] = (int32_t)(c->flag             ? c->context - c->n + r
                                  : c->perf || r == 0 ? c->context - 1
                                                      : case_below(io, c->context));
    }
    case_place(io, MX_F32, c->n, c->heads * c->c, FILL_SENTINEL, true);
    case_place(io, MX_F32, c->n, c->heads * c->c, FILL_UNIFORM, false);
    cache(io, seqs * per + 3, false);
    case_place_i32(io, seqs, per, pages);
    case_place_i32(io, c->n, 2, at);
    for (int64_t r = 0; r < c->n && !io->broken && !c->perf; r++) {
        int64_t used = c->flag ? c->context : at[2 * r + 1] + 1;
        spoil(io, &io->t[2], pages + at[2 * r] * per, used, per * c->page);
        spoil(io, &io->t[3], pages + at[2 * r] * per, used, per * c->page);
    }
done:
    free(pages);
    free(at);
}

/* sharper than 1/sqrt(d): a flat softmax hides mistakes */
static float scale_of(const mx_case *c)
{
    return 3.0f / sqrtf((float)c->c);
}

static void attention_call(case_io *io)
{
    io->env->kernels->attention_paged(&io->s, T(0), T(1), &io->kv, T(4), T(5), io->c->heads, scale_of(io->c),
                                      (int)io->c->window);
}

static bool attention_check(case_io *io)
{
    const mx_case *c = io->c;
    int64_t wide = c->groups * c->c;
    double *q = DATA(1), *k = malloc((size_t)(c->context * wide) * sizeof *k), *v = malloc((size_t)(c->context * wide) * sizeof *v);
    io->t[0].want = DATA(0);
    for (int64_t r = 0; r < c->n; r++) {
        int64_t seq = (int64_t)case_value(&io->t[5], IN(5), r, 0), length = (int64_t)case_value(&io->t[5], IN(5), r, 1) + 1;
        for (int64_t t = 0; t < length; t++)
            for (int64_t i = 0; i < wide; i++) {
                int64_t page = (int64_t)case_value(&io->t[4], IN(4), seq, t / c->page);
                int64_t at = (int64_t)slot_index(c, page * c->page + t % c->page, i / c->c) + i % c->c;
                k[t * wide + i] = case_value(&io->t[2], IN(2), 0, at);
                v[t * wide + i] = case_value(&io->t[3], IN(3), 0, at);
            }
        ref_attention(io->t[0].want + r * c->heads * c->c, q + r * c->heads * c->c, k, v, length, c->heads, c->groups, c->c,
                      (double)scale_of(c), c->window);
    }
    free(q), free(k), free(v);
    return case_close(io, &io->t[0], "y");
}

static void attention_work(const mx_case *c, double *flop, double *bytes)
{
    double tokens = (double)c->n * (double)c->context, seqs = c->flag ? 1 : (double)c->n;
    if (c->flag) tokens -= (double)c->n * (double)(c->n - 1) / 2;
    *flop = 4.0 * tokens * c->heads * (double)c->c;
    *bytes = 2.0 * seqs * (double)c->context * c->groups * (double)c->c * (double)mx_dtype_size(c->type);
}

/* ---- seats ------------------------------------------------------------------------------- */

#define PAGES 9             /* of a seat's list */

/* Seats that stand somewhere in their page lists, with lists of seen ids below `v` of which one has room for no more. */
static void place_seats(case_io *io, int64_t count, int32_t most, int64_t v)
{
    size_t n = (size_t)count, seen = n * (size_t)most;
    mx_seat *seat = calloc(n, sizeof *seat);
    int32_t *id = calloc(seen, sizeof *id), *times = calloc(seen, sizeof *times), *pages = calloc(n * PAGES, sizeof *pages);
    io->broken |= !seat || !id || !times || !pages;
    for (int64_t k = 0; k < count && !io->broken; k++) {
        int32_t *order = shuffled(io, v), prompt = 1 + (int32_t)case_below(io, 3), all = most < v ? most : (int32_t)v;
        if (!order) break;
        seat[k] = (mx_seat){.rule = {.temperature = 0.5f * (float)(k % 3), .top_k = (int32_t)k, .top_p = 0.9f, .typical_p = 1, .repetition_penalty = 1.1f},
                            .seed = (uint64_t)k * 0x123456789u, .prompt = prompt, .length = prompt + (int32_t)(k % 7), .last = k % 4 == 3 ? -1 : (int32_t)case_below(io, v),
                            .n_seen = k % 5 == 4 ? -1 : k % 5 == 3 ? all : (int32_t)case_below(io, all)};
        for (int32_t i = 0; i < all; i++) id[k * most + i] = order[i], times[k * most + i] = i % 3;
        for (int64_t i = 0; i < PAGES; i++) pages[k * PAGES + i] = (int32_t)case_below(io, 1000);
        free(order);
    }
    if (!io->broken) {
        io->seats = (mx_seats){.seat = case_place_bytes(io, seat, n * sizeof *seat), .seen_id = case_place_bytes(io, id, seen * sizeof *id),
                               .seen_count = case_place_bytes(io, times, seen * sizeof *times), .count = (int32_t)count, .seen_most = most};
        io->seats.pages = mx_tensor_of(case_place_bytes(io, pages, n * PAGES * sizeof *pages), MX_I32, count, PAGES);
        for (int i = 1; i <= 4; i++) io->t[io->count - i].output = true;
    }
    free(seat), free(id), free(times), free(pages);
}

static char *image(const case_io *io, int i, bool after)
{
    return (after ? io->t[i].after : io->t[i].before) + io->t[i].lead;
}

/* The host's copy of seats whose four parts are tensor i and the next ones. */
static mx_seats host_seats(const case_io *io, int i, bool after)
{
    mx_seats t = io->seats;
    t.seat = (mx_seat *)(void *)image(io, i, after);
    t.seen_id = (int32_t *)(void *)image(io, i + 1, after);
    t.seen_count = (int32_t *)(void *)image(io, i + 2, after);
    t.pages.data = image(io, i + 3, after);
    return t;
}

/* What they were before, changed by the check as it should be, is what they are. */
static bool seats_close(case_io *io, int i)
{
    static const char *const parts[4] = {"seats", "seen ids", "counts", "page lists"};
    bool ok = true;
    for (int k = 0; k < 4; k++)
        if (memcmp(image(io, i + k, false), image(io, i + k, true), (size_t)io->t[i + k].t.cols)) ok = case_fail(io, "%s are not what they should be", parts[k]);
    return ok;
}

/* n rows of o seats, c choices */
static void seat_rows_build(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *rows = calloc((size_t)c->n * 4, sizeof *rows), *picks = calloc((size_t)c->c * 4 + 1, sizeof *picks);
    io->broken |= !rows || !picks;
    for (int i = 0; i < 4; i++) case_place(io, MX_I32, c->n, i == 3 ? 2 : 1, FILL_SENTINEL, true);
    place_seats(io, c->o, 5, 50);
    for (int64_t r = 0; !io->broken && r < c->n; r++) {
        int32_t *row = rows + 4 * r;
        bool newest = r % 3 != 1;
        row[0] = (int32_t)(r % c->o);
        row[1] = newest ? -1 : (int32_t)case_below(io, 50);
        row[2] = newest ? 0 : (int32_t)case_below(io, PAGES * c->page);
        row[3] = c->n <= c->o && r % 2 ? (int32_t)case_below(io, 1000) : -1;
    }
    for (int64_t r = 0; !io->broken && r < c->c; r++) {
        int32_t at = (int32_t)((r + 1) % (c->o + 1)) - 1;
        memcpy(picks + 4 * r, (int32_t[4]){at, r % 3 ? at : -1, (int32_t)r, at < 0 ? 5 : 0}, 4 * sizeof *picks);
    }
    if (!io->broken) {
        char *none = calloc((size_t)c->c + 1, sizeof(mx_sample_row));
        case_place_i32(io, c->n, 4, rows);
        case_place_i32(io, c->c, 4, picks);
        io->broken |= !none;
        if (none) io->placed_rows = case_place_bytes(io, none, (size_t)c->c * sizeof(mx_sample_row));
        io->t[io->count - 1].output = true;
        free(none);
    }
    free(rows), free(picks);
    io->tolerance = 0;
}

static mx_tensor choices_of(const case_io *io)
{
    return mx_tensor_of((void *)(uintptr_t)io->placed_rows, MX_I32, io->c->c, sizeof(mx_sample_row) / sizeof(int32_t));
}

static void seat_rows_call(case_io *io)
{
    io->env->kernels->seat_rows(&io->s, T(0), T(1), T(2), T(3), T(8), io->c->page, &io->seats, choices_of(io), T(9));
}

static bool seat_rows_check(case_io *io)
{
    const mx_case *c = io->c;
    mx_seats t = host_seats(io, 4, false);
    double *rows = DATA(8), *picks = DATA(9);
    bool ok = true;
    for (int i = 0; i < 4; i++) io->t[i].want = DATA(i);
    for (int64_t r = 0; r < c->n; r++) {
        const mx_seat *q = &t.seat[(int)rows[4 * r]];
        bool newest = rows[4 * r + 1] < 0;
        int32_t position = newest ? q->length - 1 : (int32_t)rows[4 * r + 2], *page = (int32_t *)t.pages.data + (int)rows[4 * r] * PAGES + position / c->page;
        if (rows[4 * r + 3] >= 0) *page = (int32_t)rows[4 * r + 3];
        io->t[0].want[r] = newest ? fmax(q->last, 0) : rows[4 * r + 1];
        io->t[1].want[r] = position;
        io->t[2].want[r] = (double)*page * c->page + position % c->page;
        io->t[3].want[2 * r] = rows[4 * r];
        io->t[3].want[2 * r + 1] = position;
    }
    for (int64_t r = 0; r < c->c; r++) {
        mx_sample_row o = {.top_p = 1, .typical_p = 1, .repetition_penalty = 1}, got;
        int at = (int)picks[4 * r];
        if (at >= 0) {
            o = t.seat[at].rule;
            o.uniform = mx_uniform(t.seat[at].seed, (uint32_t)(t.seat[at].length - t.seat[at].prompt), (uint32_t)picks[4 * r + 2], 0, 0);
        }
        o.seat = at, o.keep = (int32_t)picks[4 * r + 1], o.forced = (int64_t)picks[4 * r + 3];
        memcpy(&got, image(io, 10, true) + (size_t)r * sizeof got, sizeof got);
        if (memcmp(&got, &o, sizeof o)) ok = case_fail(io, "choice %lld is not that of seat %d: uniform %.17g, want %.17g", (long long)r, at, got.uniform, o.uniform);
    }
    free(rows), free(picks);
    static const char *const names[4] = {"ids", "positions", "slots", "at"};
    for (int i = 0; i < 4; i++) ok = case_close(io, &io->t[i], names[i]) && ok;
    return seats_close(io, 4) && ok;
}

static void seat_rows_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 0;
    *bytes = (double)c->n * (8 + sizeof(mx_seat)) * 4 + (double)c->c * sizeof(mx_sample_row);
}

/* ---- logits_process -------------------------------------------------------------------- */

#define SEEN 5              /* entries of each list of a row */

/* flag: nothing was seen */
static void process_build(case_io *io)
{
    const mx_case *c = io->c;
    size_t n = (size_t)c->n;
    int32_t *begin = malloc((n + 1) * sizeof *begin), *id = malloc(n * SEEN * sizeof *id), *biased = malloc(n * SEEN * sizeof *biased);
    float *bias = malloc(n * SEEN * sizeof *bias);
    io->rows = calloc(n, sizeof *io->rows);
    io->broken |= !begin || !id || !biased || !bias || !io->rows;
    case_place(io, MX_F32, c->n, c->o, FILL_NOISE_LOGITS, true);
    place_seats(io, c->n, 300, c->o);
    for (int64_t r = 0; r < c->n && !io->broken; r++) {
        int32_t *order = shuffled(io, c->o);
        if (!order) break;
        io->rows[r] = (mx_sample_row){.repetition_penalty = r % 3 ? 1.3f : 1.0f, .presence_penalty = r % 2 ? 0.5f : 0,
                                      .frequency_penalty = 0.25f * (float)(r % 4), .seat = r % 5 == 3 ? -1 : (int32_t)(c->n - 1 - r)};
        for (int i = 0; i < SEEN; i++) {
            id[r * SEEN + i] = order[i];
            bias[r * SEEN + i] = (float)case_uniform(io);
            biased[r * SEEN + i] = order[i % 3 + 1];              /* some of them twice */
        }
        free(order);
    }
    for (int64_t r = 0; r <= c->n && begin; r++) begin[r] = (int32_t)r * SEEN;
    if (!io->broken) {
        begin[c->n]--;       /* the last row's bias list ends one early, the bans take two of a row's five */
        io->lists.bias_begin = case_place_bytes(io, begin, (n + 1) * sizeof *begin);
        io->lists.bias_id = case_place_bytes(io, biased, n * SEEN * sizeof *biased);
        io->lists.bias = case_place_bytes(io, bias, n * SEEN * sizeof *bias);
        for (int64_t r = 0; r <= c->n; r++) begin[r] = (int32_t)r * 2;
        io->lists.ban_begin = case_place_bytes(io, begin, (n + 1) * sizeof *begin);
        io->lists.ban_id = case_place_bytes(io, id, n * SEEN * sizeof *id);
        io->placed_rows = case_place_bytes(io, io->rows, n * sizeof *io->rows);
    }
    io->tolerance = 1e-6;
    free(begin), free(id), free(bias), free(biased);
}

static void process_call(case_io *io)
{
    io->env->kernels->logits_process(&io->s, T(0), io->placed_rows, &io->lists, io->c->flag ? NULL : &io->seats);
}

/* The host's copy of a list that case_place_bytes() put into tensor i. */
static const void *host_of(const case_io *io, int i)
{
    return image(io, i, false);
}

static bool process_check(case_io *io)
{
    const mx_case *c = io->c;
    mx_logit_lists l = {.bias_begin = host_of(io, 5), .bias_id = host_of(io, 6), .bias = host_of(io, 7), .ban_begin = host_of(io, 8), .ban_id = host_of(io, 9)};
    mx_seats t = host_seats(io, 1, false);
    io->t[0].want = DATA(0);
    ref_logits_process(io->t[0].want, c->n, c->o, io->rows, &l, c->flag ? NULL : &t);
    return seats_close(io, 1) && case_close(io, &io->t[0], "logits");
}

/* ---- sample ------------------------------------------------------------------------------- */

static mx_sample_row choice(case_io *io, int64_t r)
{
    mx_sample_row o = {.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1,
                       .uniform = 0.5 + 0.5 * case_uniform(io)};
    if (io->c->perf) {
        o.temperature = io->c->c ? 0.8f : 0;
        o.top_k = io->c->c == 2 ? 50 : 0;
        o.top_p = io->c->c >= 2 ? 0.95f : 1;
        return o;
    }
    switch (r % 10) {
    case 0: o.temperature = 0; break;
    case 1: break;
    case 2: o.top_k = 1 + (int32_t)case_below(io, 9); break;
    case 3: o.top_p = 0.9f; break;
    case 4: o.min_p = 0.05f; break;
    case 5: o.typical_p = 0.6f; break;
    case 6: o.top_p = 0; break;
    case 7: o.top_k = 20; o.top_p = 0.7f; o.min_p = 0.02f; o.typical_p = 0.8f; break;
    case 8: o.top_k = 1 << 30; o.min_p = 1; break;
    default: o.top_p = 0.99f; o.min_p = 0.001f;
    }
    if (r % 11 == 10) o.forced = 1 + case_below(io, io->c->o);
    if (r % 3 == 1) o.temperature *= 0.7f;
    if (r % 3 == 2) o.temperature *= 1.9f;
    return o;
}

/* Rows with equal logits, without a finite one, with NaN, with an infinity. */
static void odd_row(case_io *io, placed *p, int64_t r)
{
    int64_t v = p->t.cols;
    for (int64_t i = 0; i < v; i++) {
        double x = case_value(p, p->before, r, i);
        if (r % 4 == 1) x = nearbyint(x);
        if (r % 16 == 6) x = -INFINITY;
        if (r % 16 == 10 && i % 3 == 0) x = NAN;
        if (r % 16 == 14) x = i == v / 2 || i == v - 1 ? INFINITY : i % 2 ? -INFINITY : x;
        store(p->before + p->lead + (size_t)(r * p->t.stride + i) * sizeof(float), MX_F32, x);
    }
    io->env->dev->ops->upload(&io->s, p->memory.base, p->before, p->memory.size);
}

static void sample_build(case_io *io)
{
    const mx_case *c = io->c;
    case_place(io, MX_I32, c->n, 1, FILL_SENTINEL, true);
    case_place(io, MX_F32, c->n, c->o, FILL_NOISE_LOGITS, false);
    io->rows = calloc((size_t)c->n, sizeof *io->rows);
    io->broken |= !io->rows;
    for (int64_t r = 0; r < c->n && !io->broken; r++) {
        io->rows[r] = choice(io, r);
        if (!c->perf && r % 2) odd_row(io, &io->t[1], r);
        if (!c->perf && r % 4 == 2) odd_row(io, &io->t[1], r);
    }
    if (c->flag) place_seats(io, c->n, 64, c->o);
    for (int64_t r = 0; r < c->n && !io->broken; r++) io->rows[r].keep = r % 6 == 5 ? -1 : (int32_t)(c->n - 1 - r);
    if (!io->broken) io->placed_rows = case_place_bytes(io, io->rows, (size_t)c->n * sizeof *io->rows);
}

/* flag: seats move on */
static void sample_call(case_io *io)
{
    io->env->kernels->sample(&io->s, T(0), T(1), io->placed_rows, io->c->flag ? &io->seats : NULL);
}

/* A draw may fall the other way when a bound lies within f32 rounding of it:
 * the reference is asked again with each bound moved by that much. */
static bool near_choice(const double *x, int64_t v, mx_sample_row o, int32_t got)
{
    const double step = 3e-6;
    for (int bits = 0; bits < 81; bits++) {
        mx_sample_row p = o;
        double move[4] = {(bits % 3 - 1) * step, (bits / 3 % 3 - 1) * step, (bits / 9 % 3 - 1) * step, (bits / 27 - 1) * step};
        p.uniform = fmax(0, o.uniform + move[0]);
        if (o.top_p > 0 && o.top_p < 1) p.top_p = o.top_p + (float)move[1];
        if (o.min_p > 0 && o.min_p < 1) p.min_p = o.min_p * (1 + (float)move[2]);
        if (o.typical_p < 1) p.typical_p = o.typical_p + (float)move[3];
        if (ref_sample(x, v, &p) == got) return true;
    }
    return false;
}

static bool sample_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = DATA(1);
    bool ok = true;
    int64_t moved = 0;
    mx_seats seats = c->flag ? host_seats(io, 2, false) : (mx_seats){0};
    for (int64_t r = 0; r < c->n; r++) {
        if (c->flag && io->rows[r].keep >= 0 && !io->rows[r].forced) ref_keep(&seats, io->rows[r].keep, (int32_t)case_value(&io->t[0], io->t[0].after, r, 0));
        int32_t got = (int32_t)case_value(&io->t[0], io->t[0].after, r, 0), want = ref_sample(x + r * c->o, c->o, &io->rows[r]);
        if (got == want) continue;
        moved++;
        if (!near_choice(x + r * c->o, c->o, io->rows[r], got)) ok = case_fail(io, "row %lld: got %d, want %d", (long long)r, got, want);
    }
    free(x);
    if (c->flag) ok = seats_close(io, 2) && ok;
    /* such bounds are rare: many of them would be a mistake of its own */
    if (moved > 1 + c->n / 10) ok = case_fail(io, "%lld of %lld draws differ", (long long)moved, (long long)c->n);
    return ok;
}

static void vocabulary_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->o;
    *bytes = (double)c->n * (double)c->o * 4;
}

/* ---- logprobs: c of the best ------------------------------------------------------------------ */

static void logprobs_build(case_io *io)
{
    const mx_case *c = io->c;
    int32_t *chosen = malloc((size_t)c->n * sizeof *chosen);
    case_place(io, MX_F32, c->n, 1, FILL_SENTINEL, true);
    case_place(io, MX_I32, c->n, c->c, FILL_SENTINEL, true);
    case_place(io, MX_F32, c->n, c->c, FILL_SENTINEL, true);
    case_place(io, MX_F32, c->n, c->o, FILL_NOISE_LOGITS, false);
    for (int64_t r = 0; chosen && r < c->n; r++) chosen[r] = r % 4 == 1 ? -1 : (int32_t)case_below(io, c->o);
    if (chosen) case_place_i32(io, c->n, 1, chosen);
    io->broken |= !chosen;
    for (int64_t r = 1; r < c->n && !io->broken && !c->perf; r += 2) odd_row(io, &io->t[3], r);
    io->tolerance = 1e-6;
    free(chosen);
}

static void logprobs_call(case_io *io)
{
    io->env->kernels->logprobs(&io->s, T(0), T(4), T(1), T(2), T(3));
}

static bool logprobs_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = DATA(3), *lp = malloc((size_t)c->o * sizeof *lp);
    int32_t *order = malloc((size_t)c->o * sizeof *order);
    for (int i = 0; i < 3; i++) io->t[i].want = DATA(i);
    for (int64_t r = 0; r < c->n; r++) {
        ref_logprobs(lp, order, x + r * c->o, c->o);
        int64_t id = (int64_t)case_value(&io->t[4], IN(4), r, 0);
        io->t[0].want[r] = id < 0 ? -INFINITY : lp[id];
        for (int64_t i = 0; i < c->c; i++) {
            io->t[1].want[r * c->c + i] = order[i];
            io->t[2].want[r * c->c + i] = lp[order[i]];
        }
    }
    free(x), free(lp), free(order);
    bool ok = case_close(io, &io->t[0], "logprob");
    ok = case_close(io, &io->t[2], "top_logprob") && ok;
    io->tolerance = 0;
    return case_close(io, &io->t[1], "top_id") && ok;
}

const case_op mx_case_span_ops[] = {
    {"aggregate", aggregate_build, aggregate_call, aggregate_check, aggregate_work},
    {"kv_write", kv_write_build, kv_write_call, kv_write_check, kv_work},
    {"rope_kv_write", rope_write_build, rope_write_call, rope_write_check, kv_work},
    {"kv_copy", kv_copy_build, kv_copy_call, kv_copy_check, kv_work},
    {"attention_paged", attention_build, attention_call, attention_check, attention_work},
    {"seat_rows", seat_rows_build, seat_rows_call, seat_rows_check, seat_rows_work},
    {"logits_process", process_build, process_call, process_check, vocabulary_work},
    {"sample", sample_build, sample_call, sample_check, vocabulary_work},
    {"logprobs", logprobs_build, logprobs_call, logprobs_check, vocabulary_work},
};
const int mx_case_span_ops_count = sizeof mx_case_span_ops / sizeof *mx_case_span_ops;
