/* comm.c - one process, or whatever transport launched us. */
#include "runtime/comm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GRAIN 16              /* elements: a shard begins at a cache line */

struct mx_comm {
    const mx_comm_ops *ops;   /* NULL: alone */
    void *impl;
    int   rank, size;
};

/* mpirun, srun and mpiexec tell their children how many they are. */
static bool launched(void)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_NAMESPACE", "MV2_COMM_WORLD_SIZE"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return true;
    return false;
}

mx_status mx_comm_open(mx_comm **out, mx_error *err)
{
    mx_comm *c = calloc(1, sizeof *c);
    *out = NULL;
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "comm");
    c->size = 1;
    if (launched()) {
#ifdef MX_WITH_MPI
        c->ops = &mx_comm_mpi;
        mx_status st = c->ops->open(&c->impl, &c->rank, &c->size, err);
        if (st) {
            free(c);
            return st;
        }
#else
        free(c);
        return mx_fail(err, MX_ERR_UNAVAILABLE, "launched by mpirun, but this merx was built without MPI (libopenmpi-dev)");
#endif
    }
    *out = c;
    return MX_OK;
}

void mx_comm_close(mx_comm *c)
{
    if (!c) return;
    if (c->ops) c->ops->close(c->impl);
    free(c);
}

int mx_comm_rank(const mx_comm *c)
{
    return c ? c->rank : 0;
}

int mx_comm_size(const mx_comm *c)
{
    return c ? c->size : 1;
}

void mx_comm_shard_of(int rank, int size, size_t count, size_t *begin, size_t *end)
{
    size_t grains = (count + GRAIN - 1) / GRAIN, each = grains / (size_t)size, more = grains % (size_t)size, r = (size_t)rank;
    *begin = (each * r + (r < more ? r : more)) * GRAIN;
    *end = *begin + (each + (r < more)) * GRAIN;
    if (*begin > count) *begin = count;
    if (*end > count) *end = count;
}

void mx_comm_shard(const mx_comm *c, size_t count, size_t *begin, size_t *end)
{
    mx_comm_shard_of(mx_comm_rank(c), mx_comm_size(c), count, begin, end);
}

static bool alone(const mx_comm *c)
{
    return !c || !c->ops;
}

mx_status mx_comm_reduce_begin(mx_comm *c, float *data, size_t count, mx_error *err)
{
    return alone(c) ? MX_OK : c->ops->reduce_begin(c->impl, data, count, err);
}

void mx_comm_reduce_ready(mx_comm *c, size_t first, size_t n)
{
    if (!alone(c)) c->ops->reduce_ready(c->impl, first, n);
}

mx_status mx_comm_reduce_wait(mx_comm *c, mx_error *err)
{
    return alone(c) ? MX_OK : c->ops->reduce_wait(c->impl, err);
}

mx_status mx_comm_gather(mx_comm *c, float *data, size_t count, mx_error *err)
{
    return alone(c) ? MX_OK : c->ops->gather(c->impl, data, count, err);
}

mx_status mx_comm_sum_doubles(mx_comm *c, double *x, size_t n, mx_error *err)
{
    return alone(c) ? MX_OK : c->ops->sum_doubles(c->impl, x, n, err);
}

mx_status mx_comm_broadcast(mx_comm *c, void *data, size_t bytes, int root, mx_error *err)
{
    return alone(c) ? MX_OK : c->ops->broadcast(c->impl, data, bytes, root, err);
}

mx_status mx_comm_barrier(mx_comm *c, mx_error *err)
{
    double nothing = 0;
    return mx_comm_sum_doubles(c, &nothing, 1, err);
}

void mx_comm_give_up(mx_comm *c)
{
    if (!alone(c)) c->ops->give_up(c->impl);
}

mx_status mx_comm_agree(mx_comm *c, mx_status own, mx_error *err)
{
    enum { MOST = 4096 };
    double who[MOST] = {0};
    int size = mx_comm_size(c), rank = mx_comm_rank(c);
    if (alone(c) || size > MOST) return own;
    mx_error theirs = {0};
    who[rank] = (double)own;
    MX_TRY(mx_comm_sum_doubles(c, who, (size_t)size, err));
    for (int i = 0; i < size; i++) {
        if (who[i] == 0) continue;
        if (i == rank && err) theirs = *err;
        MX_TRY(mx_comm_broadcast(c, &theirs, sizeof theirs, i, err));
        if (i == rank) return own;
        return mx_fail(err, (mx_status)who[i], "process %d: %.480s", i, theirs.text);
    }
    return MX_OK;
}
