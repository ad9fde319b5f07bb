/* seat.cu - the rows of a turn, from what is kept of running sequences: a thread a row. */
#include "kernels/cuda/common.cuh"

typedef struct seat_args {
    mx_tensor ids, positions, slots, at, rows, choices, picks;
    mx_seats  t;
    int       page_tokens;
} seat_args;

static __device__ void seat_row(const seat_args &a, int64_t r, mx_cuda_fault *fault)
{
    const int32_t *row = mx_row_i32(a.rows, r);
    int32_t seat = row[0], id = -1, position = -1, slot = -1;
    bool there = seat >= 0 && seat < a.t.count;
    if (there) {
        const mx_seat *q = &a.t.seat[seat];
        id = row[1] >= 0 ? row[1] : q->last > 0 ? q->last : 0;
        position = row[1] >= 0 ? row[2] : q->length - 1;
        there = position >= 0 && position / a.page_tokens < a.t.pages.cols;
    }
    if (there) {
        int32_t *listed = mx_row_i32(a.t.pages, seat) + position / a.page_tokens;
        if (row[3] >= 0) *listed = row[3];
        slot = *listed * a.page_tokens + position % a.page_tokens;
    } else {
        mx_raise(fault, MX_CUDA_SEAT, r, seat);
    }
    *mx_row_i32(a.ids, r) = id;
    *mx_row_i32(a.positions, r) = position;
    *mx_row_i32(a.slots, r) = slot;
    mx_row_i32(a.at, r)[0] = there ? seat : -1;
    mx_row_i32(a.at, r)[1] = position;
}

static __device__ void seat_choice(const seat_args &a, int64_t r, mx_cuda_fault *fault)
{
    const int32_t *pick = mx_row_i32(a.picks, r);
    mx_sample_row o = {0, 0, 1, 0, 1, 1, 0, 0, 0, 0, -1, -1};
    if (pick[0] >= a.t.count || pick[1] >= a.t.count) {
        mx_raise(fault, MX_CUDA_SEAT, r, pick[0]);
    } else {
        if (pick[0] >= 0) {
            const mx_seat *q = &a.t.seat[pick[0]];
            o = q->rule;
            o.uniform = mx_uniform(q->seed, (unsigned)(q->length - q->prompt), (unsigned)pick[2], 0, 0);
        }
        o.seat = pick[0], o.keep = pick[1], o.forced = pick[3];
    }
    *(mx_sample_row *)mx_row_i32(a.choices, r) = o;
}

static __global__ void seat_rows_kernel(seat_args a, mx_cuda_fault *fault)
{
    int64_t r = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (r < a.ids.rows) seat_row(a, r, fault);
    if (r < a.choices.rows) seat_choice(a, r, fault);
}

extern "C" void mx_cuda_seat_rows(mx_stream *s, mx_tensor ids, mx_tensor positions, mx_tensor slots, mx_tensor at, mx_tensor rows, int page_tokens,
                                  const mx_seats *seats, mx_tensor choices, mx_tensor picks)
{
    seat_args a = {ids, positions, slots, at, rows, choices, picks, *seats, page_tokens};
    int64_t most = ids.rows > choices.rows ? ids.rows : choices.rows;
    MX_LAUNCH(s, "seat_rows", seat_rows_kernel, (unsigned)((most + 127) / 128), 128, 0, a, mx_cuda_faults(s));
}
