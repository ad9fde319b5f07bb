/* nccl.c - what Merx uses of NCCL, simulated over MPI: sums in the order of the ranks,
 * as work of a stream, so that a bucket that goes too early sums what is not there yet.
 * CUDASIM_NO_NCCL: it does not start. */
#include "internal.h"

#include <mpi.h>

enum { FLOAT32 = 7, SUM = 0 };

typedef struct { char internal[128]; } ncclUniqueId;
typedef struct ncclComm { int rank, size; MPI_Comm world; } *ncclComm_t;

static int groups;

int ncclGetVersion(int *v);
int ncclGetUniqueId(ncclUniqueId *id);
int ncclCommInitRank(ncclComm_t *c, int size, ncclUniqueId id, int rank);
int ncclCommDestroy(ncclComm_t c);
int ncclGroupStart(void);
int ncclGroupEnd(void);
int ncclReduce(const void *from, void *to, size_t n, int type, int op, int root, ncclComm_t c, cudaStream_t q);
int ncclBroadcast(const void *from, void *to, size_t n, int type, int root, ncclComm_t c, cudaStream_t q);
const char *ncclGetErrorString(int code);

const char *ncclGetErrorString(int code) { return code ? "invalid usage" : "no error"; }

int ncclGetVersion(int *v)
{
    *v = 22000;
    return getenv("CUDASIM_NO_NCCL") ? 2 : 0;
}

int ncclGetUniqueId(ncclUniqueId *id)
{
    memset(id, 7, sizeof *id);
    return 0;
}

int ncclCommInitRank(ncclComm_t *c, int size, ncclUniqueId id, int rank)
{
    if (id.internal[0] != 7 || id.internal[127] != 7) return 4;
    *c = malloc(sizeof **c);
    if (!*c) return 3;
    **c = (struct ncclComm){rank, size, MPI_COMM_NULL};
    return MPI_Comm_dup(MPI_COMM_WORLD, &(*c)->world) ? 3 : 0;
}

int ncclCommDestroy(ncclComm_t c)
{
    MPI_Comm_free(&c->world);
    free(c);
    return 0;
}

int ncclGroupStart(void) { return groups++, 0; }
int ncclGroupEnd(void) { return --groups < 0 ? 5 : 0; }

typedef struct move { const float *from; float *to; size_t n; int root; int sums; ncclComm_t c; } move;

static void run_move(void *p)
{
    move *m = p;
    if (sim_device_range(m->from, 4 * m->n) < 1 || sim_device_range(m->to, 4 * m->n) < 1) {
        sim_error("NCCL: memory outside of the device");
        return;
    }
    sim_guard(0);
    if (!m->sums) {
        if (m->c->rank == m->root && m->from != m->to) memcpy(m->to, m->from, 4 * m->n);
        MPI_Bcast(m->to, (int)m->n, MPI_FLOAT, m->root, m->c->world);
    } else {
        float *all = malloc((size_t)m->c->size * m->n * sizeof *all);
        if (!all) abort();
        MPI_Gather(m->from, (int)m->n, MPI_FLOAT, all, (int)m->n, MPI_FLOAT, m->root, m->c->world);
        for (size_t i = 0; m->c->rank == m->root && i < m->n; i++) {
            float sum = all[i];
            for (int r = 1; r < m->c->size; r++) sum += all[(size_t)r * m->n + i];
            m->to[i] = sum;
        }
        free(all);
    }
    HOOK(host_write, m->to, 4 * m->n);
    sim_guard(1);
}

static int enqueue(move m, int type, cudaStream_t q)
{
    if (type != FLOAT32 || !m.c || m.root < 0 || m.root >= m.c->size || !groups) return 4;
    move *p = malloc(sizeof *p);
    if (!p) return 3;
    *p = m;
    sim_lock();
    sim_enqueue(q, run_move, p, free);
    sim_unlock();
    return 0;
}

int ncclReduce(const void *from, void *to, size_t n, int type, int op, int root, ncclComm_t c, cudaStream_t q)
{
    return op != SUM ? 4 : enqueue((move){from, to, n, root, 1, c}, type, q);
}

int ncclBroadcast(const void *from, void *to, size_t n, int type, int root, ncclComm_t c, cudaStream_t q)
{
    return enqueue((move){from, to, n, root, 0, c}, type, q);
}
