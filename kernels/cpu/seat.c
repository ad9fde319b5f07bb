/* seat.c - the rows of a turn, from what is kept of running sequences. */
#include "kernels/cpu/cpu.h"
#include "runtime/random.h"

/* The row's id and place; false: there is no such seat, or its page list has no such position. */
static bool seat_row(const mx_seats *t, int page_tokens, const int32_t row[4], int32_t *id, int32_t *position, int32_t *page)
{
    if (row[0] < 0 || row[0] >= t->count) return false;
    const mx_seat *q = &t->seat[row[0]];
    *id = row[1] >= 0 ? row[1] : q->last > 0 ? q->last : 0;
    *position = row[1] >= 0 ? row[2] : q->length - 1;
    if (*position < 0 || *position / page_tokens >= t->pages.cols) return false;
    int32_t *listed = mx_row_i32(t->pages, row[0]) + *position / page_tokens;
    if (row[3] >= 0) *listed = row[3];
    *page = *listed;
    return true;
}

/* false: there is no such seat. */
static bool seat_choice(const mx_seats *t, const int32_t pick[4], mx_sample_row *o)
{
    *o = (mx_sample_row){.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
    if (pick[0] >= t->count || pick[1] >= t->count) return false;
    if (pick[0] >= 0) {
        const mx_seat *q = &t->seat[pick[0]];
        *o = q->rule;
        o->uniform = mx_uniform(q->seed, (uint32_t)(q->length - q->prompt), (uint32_t)pick[2], 0, 0);
    }
    o->seat = pick[0], o->keep = pick[1], o->forced = pick[3];
    return true;
}

void mx_cpu_seat_rows(mx_stream *s, mx_tensor ids, mx_tensor positions, mx_tensor slots, mx_tensor at, mx_tensor rows, int page_tokens,
                      const mx_seats *seats, mx_tensor choices, mx_tensor picks)
{
    for (int64_t r = 0; r < ids.rows; r++) {
        int32_t id = -1, position = -1, page = -1, *place = mx_row_i32(at, r);
        if (!seat_row(seats, page_tokens, mx_row_i32(rows, r), &id, &position, &page)) {
            mx_stream_fail(s, MX_ERR_ARG, "seat_rows: row %lld has no place in seat %d", (long long)r, *mx_row_i32(rows, r));
            return;
        }
        *mx_row_i32(ids, r) = id;
        *mx_row_i32(positions, r) = position;
        *mx_row_i32(slots, r) = page * page_tokens + position % page_tokens;
        place[0] = *mx_row_i32(rows, r);
        place[1] = position;
    }
    for (int64_t r = 0; r < choices.rows; r++)
        if (!seat_choice(seats, mx_row_i32(picks, r), (mx_sample_row *)(void *)mx_row_i32(choices, r))) {
            mx_stream_fail(s, MX_ERR_ARG, "seat_rows: choice %lld is of seat %d", (long long)r, *mx_row_i32(picks, r));
            return;
        }
}
