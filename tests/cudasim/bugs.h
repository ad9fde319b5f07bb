/* bugs.h - the planted bugs of bugs.cu. */
#ifndef CUDASIM_BUGS_H
#define CUDASIM_BUGS_H

#include "cuda_runtime.h"

typedef enum sim_bug_kind {
    BUG_right_block, BUG_right_warp, BUG_right_ticket,
    BUG_global_past_end, BUG_global_before_start, BUG_shared_past_end, BUG_dynamic_past_end, BUG_no_barrier,
    BUG_no_barrier_in_loop, BUG_no_syncwarp, BUG_return_before_barrier, BUG_two_barriers, BUG_shuffle_in_branch,
    BUG_lost_update, BUG_shared_not_written, BUG_misaligned, BUG_async_without_wait, BUG_ticket_without_fence,
    BUG_host_pointer, BUG_used_after_free, BUG_mma_bf16, BUG_mma_tf32
} sim_bug_kind;

#ifdef __cplusplus
extern "C"
#endif
void sim_bug(cudaStream_t q, sim_bug_kind which, float *y, const float *x, int n);

#endif
