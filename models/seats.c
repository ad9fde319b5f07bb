/* seats.c - what the device keeps of sequences (kernels/ops.h, mx_seat).
 *
 * A sequence takes a seat when it is first packed; the device learns then how it
 * chooses, where it stands and what it has seen, and goes on by itself.  A seat is
 * lost to a newcomer when it was longest unused, and whoever comes back to none
 * begins again from what the host knows.  What lies beside the seats - the rows of a
 * turn, its picks, its lists - is sent only when it is not what was sent last, so a
 * turn of the same sequences sends nothing but new pages. */
#include "models/generation.h"

#include <stdlib.h>

/* ---- memory --------------------------------------------------------------------------- */

typedef struct sizes {
    size_t seats, seen, cols, rows, logits, bias, bans;        /* seen: of one seat; bias, bans: entries of a turn */
} sizes;

static sizes sizes_of(const mx_generator *g)
{
    const gen_pack *p = &g->pack;
    int32_t len = g->opt.max_model_len, vocab = g->model.config.vocab, page = g->opt.page_tokens;
    size_t logits = (size_t)p->max_logits, device = g->dev->kind != MX_CPU;      /* a CPU reads lists where they are */
    return (sizes){.seats = (size_t)p->max_seqs + logits, .seen = (size_t)(len < vocab ? len : vocab), .cols = (size_t)((len + page - 1) / page),
                   .rows = (size_t)p->max_rows, .logits = logits, .bias = device * logits * MX_MAX_BIASES, .bans = device * logits * (size_t)vocab};
}

/* The next part of the memory, n times `size` bytes, 256-byte aligned; base NULL: only count. */
static void *part(char *base, size_t *at, size_t n, size_t size, bool *fits)
{
    size_t begin = *at, bytes;
    *fits = *fits && mx_mul_size(n, size, &bytes) && mx_add_size(begin, bytes, at) && mx_add_size(*at, 255, at);
    *at &= ~(size_t)255;
    return base && *fits ? base + begin : NULL;
}

static gen_kept kept(char *base, size_t *at, size_t n, size_t size, bool *fits)
{
    return (gen_kept){.at = part(base, at, n, size, fits), .most = n * size};
}

/* Where all of it lies; the size, or 0 when it overflows. */
static size_t lay_out(gen_seats *t, const sizes *z, char *base)
{
    size_t at = 0, i = sizeof(int32_t);
    bool fits = true;
    t->device.seat = part(base, &at, z->seats, sizeof(mx_seat), &fits);
    t->device.seen_id = part(base, &at, z->seats * z->seen, i, &fits);
    t->device.seen_count = part(base, &at, z->seats * z->seen, i, &fits);
    t->device.pages = mx_tensor_of(part(base, &at, z->seats * z->cols, i, &fits), MX_I32, (int64_t)z->seats, (int64_t)z->cols);
    t->device.count = (int32_t)z->seats;
    t->device.seen_most = (int32_t)z->seen;
    t->rows = kept(base, &at, z->rows, 4 * i, &fits);
    t->picks = kept(base, &at, z->logits, 4 * i, &fits);
    t->wanted = kept(base, &at, z->logits, i, &fits);
    t->every = kept(base, &at, z->logits, i, &fits);
    t->bias_begin = kept(base, &at, z->logits + 1, i, &fits);
    t->ban_begin = kept(base, &at, z->logits + 1, i, &fits);
    t->bias_id = kept(base, &at, z->bias, i, &fits);
    t->bias = kept(base, &at, z->bias, i, &fits);
    t->ban_id = kept(base, &at, z->bans, i, &fits);
    return fits ? at : 0;
}

size_t gen_seats_bytes(const mx_generator *g)
{
    gen_seats t;
    sizes z = sizes_of(g);
    return lay_out(&t, &z, NULL);
}

static bool keep_room(gen_kept *k, size_t n)
{
    if (n <= k->room) return true;
    size_t room = 2 * n < k->most ? 2 * n : k->most;
    char *grown = realloc(k->last, room);
    if (!grown) return false;
    k->last = grown;
    k->room = room;
    return true;
}

mx_status gen_seats_open(mx_generator *g, mx_error *err)
{
    gen_seats *t = &g->seats;
    sizes z = sizes_of(g);
    MX_TRY(mx_buffer_open(&t->memory, g->dev, gen_seats_bytes(g), err));
    lay_out(t, &z, t->memory.base);
    t->seat = calloc(z.seats, sizeof *t->seat);
    t->turn = 1;
    for (int32_t i = 0; i < 256; i++) t->all[i] = i;
    gen_kept *of_turns[] = {&t->rows, &t->picks, &t->wanted, &t->every, &t->bias_begin, &t->ban_begin};
    bool ok = t->seat != NULL;
    for (size_t i = 0; i < sizeof of_turns / sizeof *of_turns; i++) ok = ok && keep_room(of_turns[i], of_turns[i]->most);
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%zu seats of sequences", z.seats);
}

void gen_seats_close(mx_generator *g)
{
    gen_seats *t = &g->seats;
    gen_kept *all[] = {&t->rows, &t->picks, &t->wanted, &t->every, &t->bias_begin, &t->bias_id, &t->bias, &t->ban_begin, &t->ban_id};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->last);
    free(t->seen.id), free(t->seen.count), free(t->seen.slot);
    free(t->seat);
    mx_buffer_close(&t->memory);
    *t = (gen_seats){0};
}

void gen_seats_forget(mx_generator *g)
{
    gen_seats *t = &g->seats;
    gen_kept *all[] = {&t->rows, &t->picks, &t->wanted, &t->every, &t->bias_begin, &t->bias_id, &t->bias, &t->ban_begin, &t->ban_id};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) all[i]->n = 0;
    for (int32_t i = 0; i < t->device.count; i++) t->seat[i].holder = 0;
}

void gen_keep(mx_stream *s, gen_kept *k, const void *host, size_t n)
{
    if (!n || (n <= k->n && !memcmp(k->last, host, n))) return;
    if (n > k->most) {
        mx_stream_fail(s, MX_ERR_NO_MEMORY, "a list of a turn has %zu bytes; there is room for %zu", n, k->most);
        return;
    }
    if (!keep_room(k, n)) {
        mx_stream_fail(s, MX_ERR_NO_MEMORY, "a list of a turn: %zu bytes", n);
        return;
    }
    s->dev->ops->upload(s, k->at, host, n);
    memcpy(k->last, host, n);
    k->n = n;
}

/* ---- who sits where ------------------------------------------------------------------------ */

bool gen_seat_take(mx_generator *g, gen_seq *q)
{
    gen_seats *t = &g->seats;
    if (q->seated && t->seat[q->seat].holder == q->seated) {
        t->seat[q->seat].turn = t->turn;
        return true;
    }
    int32_t best = -1;
    for (int32_t i = 0; i < t->device.count; i++) {
        /* not one of this turn, nor one whose newest id only the device knows */
        if (t->seat[i].turn == t->turn || t->seat[i].left + 1 == t->turn) continue;
        if (best < 0 || t->seat[i].turn < t->seat[best].turn) best = i;
    }
    if (best < 0 || q->ahead) return false;
    t->seat[best].holder = q->seated = ++t->holders;
    t->seat[best].turn = t->turn;
    q->seat = best;
    q->placed = -1;
    return true;
}

static bool seen_add(gen_seen *t, int32_t id, bool output)
{
    if (t->n == t->room) {                    /* double, and file everything again */
        int32_t room = t->room ? 2 * t->room : 64;
        int32_t *ids = realloc(t->id, (size_t)room * sizeof *ids);
        if (ids) t->id = ids;
        int32_t *counts = realloc(t->count, (size_t)room * sizeof *counts);
        if (counts) t->count = counts;
        int32_t *slots = malloc(2 * (size_t)room * sizeof *slots);
        if (!ids || !counts || !slots) {
            free(slots);
            return false;
        }
        free(t->slot);
        t->slot = slots;
        t->room = room;
        for (int32_t i = 0; i < 2 * room; i++) slots[i] = -1;
        for (int32_t i = 0; i < t->n; i++) {
            uint32_t h = (uint32_t)t->id[i] * 2654435761u % (2 * (uint32_t)room);
            while (slots[h] >= 0) h = (h + 1) % (2 * (uint32_t)room);
            slots[h] = i;
        }
    }
    uint32_t size = 2 * (uint32_t)t->room, h = (uint32_t)id * 2654435761u % size;
    while (t->slot[h] >= 0 && t->id[t->slot[h]] != id) h = (h + 1) % size;
    if (t->slot[h] < 0) {
        t->slot[h] = t->n;
        t->id[t->n] = id;
        t->count[t->n++] = 0;
    }
    t->count[t->slot[h]] += output;
    return true;
}

/* ---- what a seat begins with ------------------------------------------------------------------ */

static void upload(mx_stream *s, void *to, const void *host, size_t n)
{
    s->dev->ops->upload(s, to, host, n);
}

static bool collect_seen(gen_seen *t, const mx_generation *r, const gen_seq *q)
{
    t->n = 0;
    for (int32_t i = 0; i < 2 * t->room; i++) t->slot[i] = -1;
    for (int32_t i = 0; i < q->n_ids; i++)
        if (!seen_add(t, q->ids[i], i >= r->n_prompt)) return false;
    return true;
}

static mx_status place_seat(mx_generator *g, mx_stream *s, const mx_generation *r, const gen_seq *q, mx_error *err)
{
    gen_seats *t = &g->seats;
    const mx_sampling *p = &r->p;
    mx_seat seat = {.rule = {p->temperature, p->top_k, p->top_p, p->min_p, p->typical_p, p->repetition_penalty, p->presence_penalty,
                             p->frequency_penalty, 0, 0, -1, -1},
                    .seed = r->seed, .prompt = r->n_prompt, .length = q->n_ids, .last = q->ids[q->n_ids - 1], .n_seen = -1};
    if (r->penalties) {
        if (!collect_seen(&t->seen, r, q)) return mx_fail(err, MX_ERR_NO_MEMORY, "penalties of %d tokens", q->n_ids);
        size_t first = (size_t)q->seat * (size_t)t->device.seen_most, n = (size_t)t->seen.n;
        seat.n_seen = t->seen.n;
        upload(s, t->device.seen_id + first, t->seen.id, n * sizeof *t->seen.id);
        upload(s, t->device.seen_count + first, t->seen.count, n * sizeof *t->seen.count);
    }
    upload(s, &t->device.seat[q->seat], &seat, sizeof seat);
    return MX_OK;
}

mx_status gen_seats_place(mx_generator *g, mx_stream *s, mx_error *err)
{
    gen_pack *p = &g->pack;
    gen_seats *t = &g->seats;
    for (int32_t i = 0; i < p->n_seqs; i++) {
        gen_seq *q = p->seq[i];
        if (q->placed < 0) MX_TRY(place_seat(g, s, p->owner[i], q, err));
        if (p->listed[i])
            upload(s, (int32_t *)t->device.pages.data + (int64_t)q->seat * t->device.pages.stride, q->kv.page, (size_t)q->kv.n_pages * sizeof *q->kv.page);
        q->placed = q->kv.n_pages;
        q->last_page = q->kv.page[q->kv.n_pages - 1];
    }
    gen_keep(s, &t->rows, p->rows, (size_t)p->n_rows * 4 * sizeof *p->rows);
    gen_keep(s, &t->picks, p->picks, (size_t)p->n_logits * 4 * sizeof *p->picks);
    gen_keep(s, &t->wanted, p->logit_rows, (size_t)p->n_logits * sizeof *p->logit_rows);
    return MX_OK;
}
