/* comm.h - processes that train one model together.
 *
 * Data parallel with a sharded optimizer (ZeRO stage 1, Rajbhandari et al.
 * 2020): gradients are summed so that each process gets the sums of its own
 * shard, it updates that shard, and the updated values are gathered.  Sums are
 * taken in the order of the ranks, whenever the parts arrive, so a run gives the
 * same bits every time.
 *
 * A program that mpirun did not launch is one process, and nothing of MPI is
 * touched.  One thread calls; the transport has its own. */
#ifndef MX_COMM_H
#define MX_COMM_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mx_comm mx_comm;
typedef struct mx_stream mx_stream;

/* Errors: MX_ERR_UNAVAILABLE (launched by mpirun, but built without MPI, or MPI
 * does not start). */
mx_status mx_comm_open(mx_comm **out, mx_error *err);
void      mx_comm_close(mx_comm *c);
int       mx_comm_rank(const mx_comm *c);
int       mx_comm_size(const mx_comm *c);

/* Which of the processes of this machine it is, from 0; 0 when nobody says. */
int       mx_comm_local_rank(const mx_comm *c);

/* From now on reduce and gather are given memory of s's device: between GPUs NCCL
 * moves it beside the work of s; without its library, or on another device, it goes
 * through host memory.  s NULL: host memory again.  All processes call it.  s must
 * outlive that.  Errors: MX_ERR_NO_MEMORY, MX_ERR_UNAVAILABLE, MX_ERR_DEVICE. */
mx_status mx_comm_device(mx_comm *c, mx_stream *s, mx_error *err);

/* Elements [*begin, *end) of `count` are this process's: cut at multiples of 16. */
void      mx_comm_shard(const mx_comm *c, size_t count, size_t *begin, size_t *end);
void      mx_comm_shard_of(int rank, int size, size_t count, size_t *begin, size_t *end);

/* Begin to sum data[count] over all processes; ready() says that a range of this
 * process's own data is final (each element once, any order, any ranges); wait()
 * returns when the shard of this process holds the sums (the rest of data is
 * then undefined).  Every call below must be made by all processes.
 * Errors of all: MX_ERR_UNAVAILABLE (another process is gone). */
mx_status mx_comm_reduce_begin(mx_comm *c, float *data, size_t count, mx_error *err);
void      mx_comm_reduce_ready(mx_comm *c, size_t first, size_t n);
mx_status mx_comm_reduce_wait(mx_comm *c, mx_error *err);
/* Every process's shard to all. */
mx_status mx_comm_gather(mx_comm *c, float *data, size_t count, mx_error *err);

mx_status mx_comm_sum_doubles(mx_comm *c, double *x, size_t n, mx_error *err);
mx_status mx_comm_broadcast(mx_comm *c, void *data, size_t bytes, int root, mx_error *err);
mx_status mx_comm_barrier(mx_comm *c, mx_error *err);
/* OK when it is OK everywhere; else the worst, with the words of the lowest rank
 * that failed.  err holds this process's own words on the way in. */
mx_status mx_comm_agree(mx_comm *c, mx_status own, mx_error *err);

/* This process cannot go on in the middle of a sum: end the run everywhere. */
void      mx_comm_give_up(mx_comm *c);

/* What a transport provides (comm_mpi.c); NULL table: one process. */
typedef struct mx_comm_ops {
    mx_status (*open)(void **impl, int *rank, int *size, mx_error *err);
    void      (*close)(void *impl);
    mx_status (*reduce_begin)(void *impl, float *data, size_t count, mx_error *err);
    void      (*reduce_ready)(void *impl, size_t first, size_t n);
    mx_status (*reduce_wait)(void *impl, mx_error *err);
    mx_status (*gather)(void *impl, float *data, size_t count, mx_error *err);
    mx_status (*sum_doubles)(void *impl, double *x, size_t n, mx_error *err);
    mx_status (*broadcast)(void *impl, void *data, size_t bytes, int root, mx_error *err);
    void      (*give_up)(void *impl);
} mx_comm_ops;

extern const mx_comm_ops mx_comm_mpi;      /* comm_mpi.c, when MPI was found */

#ifdef __cplusplus
}
#endif

#endif
