/* comm.c - one process, or whatever transport launched us; device memory through it, or through NCCL. */
#include "runtime/comm_device.h"

#include "runtime/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GRAIN 16              /* elements: a shard begins at a cache line */

struct mx_comm {
    const mx_comm_ops *ops;   /* NULL: alone */
    void *impl;
    int   rank, size;
    mx_stream *stream;        /* of the device whose memory is given; NULL: host memory */
    const mx_comm_device_ops *device;      /* NULL: through host[] */
    void  *device_impl;
    float *host, *data;       /* host: a copy of data[count]       */
    size_t room, count;
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
    mx_comm_device(c, NULL, NULL);
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

/* ---- device memory -------------------------------------------------------------------- */

int mx_comm_local_rank(const mx_comm *c)
{
    static const char *const names[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID", "MV2_COMM_WORLD_LOCAL_RANK"};
    for (size_t i = 0; mx_comm_size(c) > 1 && i < sizeof names / sizeof *names; i++)
        if (getenv(names[i])) return atoi(getenv(names[i])) > 0 ? atoi(getenv(names[i])) : 0;
    return 0;
}

static bool alone(const mx_comm *c)
{
    return !c || !c->ops;
}

mx_status mx_comm_device(mx_comm *c, mx_stream *s, mx_error *err)
{
    if (alone(c)) return MX_OK;
    if (c->device) c->device->close(c->device_impl);
    c->device = NULL;
    free(c->host);
    c->host = NULL;
    c->room = 0;
    c->stream = s && s->dev->kind != MX_CPU ? s : NULL;
#ifdef MX_WITH_CUDA
    mx_error why = {0};
    if (!c->stream || c->stream->dev->kind != MX_CUDA) return MX_OK;
    mx_status st = mx_comm_nccl.open(&c->device_impl, c->stream, c, &why);
    if (!st) c->device = &mx_comm_nccl;
    else if (st != MX_ERR_UNAVAILABLE) return mx_fail(err, st, "%s", why.text);
    else if (c->rank == 0) mx_log(MX_LOG_WARN, "comm", "%s: gradients go through host memory", why.text);
#else
    (void)err;
#endif
    return MX_OK;
}

/* data[begin, end) between the device and its copy. */
static mx_status copy(mx_comm *c, bool up, size_t begin, size_t end, mx_error *err)
{
    const mx_device_ops *ops = c->stream->dev->ops;
    if (begin < end && up) ops->upload(c->stream, c->data + begin, c->host + begin, (end - begin) * sizeof(float));
    if (begin < end && !up) ops->download(c->stream, c->host + begin, c->data + begin, (end - begin) * sizeof(float));
    return mx_stream_sync(c->stream, err);
}

static mx_status host_room(mx_comm *c, float *data, size_t count, mx_error *err)
{
    c->data = data;
    c->count = count;
    if (count <= c->room) return MX_OK;
    free(c->host);
    c->host = malloc(count * sizeof *c->host);
    c->room = c->host ? count : 0;
    return c->host ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "comm: a host copy of %zu numbers", count);
}

static mx_status reduce_through_host(mx_comm *c, mx_error *err)
{
    size_t begin, end;
    mx_comm_shard(c, c->count, &begin, &end);
    MX_TRY(copy(c, false, 0, c->count, err));
    MX_TRY(c->ops->reduce_begin(c->impl, c->host, c->count, err));
    c->ops->reduce_ready(c->impl, 0, c->count);
    MX_TRY(c->ops->reduce_wait(c->impl, err));
    return copy(c, true, begin, end, err);
}

static mx_status gather_through_host(mx_comm *c, float *data, size_t count, mx_error *err)
{
    size_t begin, end;
    MX_TRY(host_room(c, data, count, err));
    mx_comm_shard(c, count, &begin, &end);
    MX_TRY(copy(c, false, begin, end, err));
    MX_TRY(c->ops->gather(c->impl, c->host, count, err));
    return copy(c, true, 0, count, err);
}

/* ---- sums and gathers --------------------------------------------------------------------- */

mx_status mx_comm_reduce_begin(mx_comm *c, float *data, size_t count, mx_error *err)
{
    if (alone(c)) return MX_OK;
    if (c->device) return c->device->reduce_begin(c->device_impl, data, count, err);
    return c->stream ? host_room(c, data, count, err) : c->ops->reduce_begin(c->impl, data, count, err);
}

void mx_comm_reduce_ready(mx_comm *c, size_t first, size_t n)
{
    if (alone(c)) return;
    if (c->device) c->device->reduce_ready(c->device_impl, first, n);
    else if (!c->stream) c->ops->reduce_ready(c->impl, first, n);
}

mx_status mx_comm_reduce_wait(mx_comm *c, mx_error *err)
{
    if (alone(c)) return MX_OK;
    if (c->device) return c->device->reduce_wait(c->device_impl, err);
    return c->stream ? reduce_through_host(c, err) : c->ops->reduce_wait(c->impl, err);
}

mx_status mx_comm_gather(mx_comm *c, float *data, size_t count, mx_error *err)
{
    if (alone(c)) return MX_OK;
    if (c->device) return c->device->gather(c->device_impl, data, count, err);
    return c->stream ? gather_through_host(c, data, count, err) : c->ops->gather(c->impl, data, count, err);
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
