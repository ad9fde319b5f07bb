/* memory.c - device and pinned memory.
 *
 * Device memory is one reservation of addresses, handed out once and never again:
 * use after free always shows.  Between allocations lie poisoned red zones; new
 * memory is filled with NaN. */
#include "internal.h"

typedef struct allocation {
    char  *p;
    size_t n;
    int    freed;
} allocation;

struct CUmemPool_st { int unused; };

static char *arena;
static size_t used, limit = (size_t)16 << 30;
static allocation *device, *pinned;
static int n_device, room_device, n_pinned, room_pinned, guarded, devices = 1;

void cudasim_set_devices(int n) { devices = n; }
void cudasim_set_memory(size_t bytes) { limit = bytes; }

/* PROT_NONE over everything in use while host code runs. */
void sim_guard(int closed)
{
    if (guarded && arena && used) mprotect(arena, (used + 4095) & ~(size_t)4095, closed ? PROT_NONE : PROT_READ | PROT_WRITE);
}

void cudasim_set_guard(int on)
{
    sim_lock();
    if (guarded && !on) sim_guard(0);
    guarded = on;
    sim_guard(1);
    sim_unlock();
}

static void arena_open(void)
{
    if (arena) return;
    arena = mmap(NULL, SIM_ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) abort();
    sim_cur.arena = arena;
    POISON(arena, 4096);
    used = 4096;
}

int sim_find(const void *p, char **base, size_t *n, int *freed)
{
    int lo = 0, hi = n_device - 1, r = -1;
    while (lo <= hi) {
        int m = (lo + hi) / 2;
        if (device[m].p <= (const char *)p) r = m, lo = m + 1;
        else hi = m - 1;
    }
    if (r < 0) return 0;
    *base = device[r].p;
    *n = device[r].n;
    *freed = device[r].freed;
    return 1;
}

static void remember(allocation **list, int *n, int *room, allocation a)
{
    if (*n == *room) {
        *room = *room ? 2 * *room : 64;
        *list = realloc(*list, sizeof **list * (size_t)*room);
        if (!*list) abort();
    }
    (*list)[(*n)++] = a;
}

cudaError_t cudaMalloc(void **out, size_t n)
{
    sim_lock();
    cudaError_t e = sim_sticky(cudaSuccess);
    arena_open();
    size_t take = ((n ? n : 1) + 255 + 256) & ~(size_t)255;      /* a red zone of 256 bytes or more */
    if (e == cudaSuccess && (used + take > SIM_ARENA || cudasim_stats.live + n > limit || sim_injected()))
        e = sim_result(cudaErrorMemoryAllocation);
    if (e == cudaSuccess) {
        char *p = arena + used;
        sim_guard(0);
        remember(&device, &n_device, &room_device, (allocation){p, n, 0});
        used += take;
        cudasim_stats.live += n;
        if (cudasim_stats.live > cudasim_stats.peak) cudasim_stats.peak = cudasim_stats.live;
        UNPOISON(p, n);
        POISON(p + n, take - n);
        memset(p, 0xff, n);
        sim_guard(1);
        *out = p;
    }
    sim_unlock();
    return e;
}

static cudaError_t release(void *p)
{
    char *base;
    size_t n;
    int freed;
    if (!sim_find(p, &base, &n, &freed) || base != p || freed) {
        sim_error("freeing %p, which is not a live allocation", p);
        return sim_result(cudaErrorInvalidValue);
    }
    for (int i = 0; i < n_device; i++)
        if (device[i].p == p) device[i].freed = 1;
    cudasim_stats.live -= n;
    POISON(p, n);
    char *lo = (char *)(((uintptr_t)p + 4095) & ~(uintptr_t)4095), *hi = (char *)(((uintptr_t)p + n) & ~(uintptr_t)4095);
    if (hi > lo) madvise(lo, (size_t)(hi - lo), MADV_DONTNEED);   /* the pages, not the addresses, go back */
    return cudaSuccess;
}

cudaError_t cudaFree(void *p)
{
    if (!p) return cudaSuccess;
    sim_lock();
    sim_flush_all();
    cudaError_t e = release(p);
    sim_unlock();
    return e;
}

cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s)
{
    if (sim_capturing(s)) sim_error("an allocation on a stream that is being captured");
    return cudaMalloc(p, n);
}

static void release_run(void *p) { release(p); }

cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    if (!p) return cudaSuccess;
    sim_lock();
    if (sim_capturing(s)) sim_error("memory is freed on a stream that is being captured");
    sim_enqueue_always(s, release_run, p);
    cudaError_t e = sim_sticky(cudaSuccess);
    sim_unlock();
    return e;
}

cudaError_t cudaHostAlloc(void **p, size_t n, unsigned flags)
{
    (void)flags;
    sim_lock();
    *p = sim_injected() ? NULL : aligned_alloc(256, (n + 255) & ~(size_t)255);
    if (*p) {
        memset(*p, 0xff, n);
        remember(&pinned, &n_pinned, &room_pinned, (allocation){*p, n, 0});
    } else {
        sim_result(cudaErrorMemoryAllocation);
    }
    sim_unlock();
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}

cudaError_t cudaFreeHost(void *p)
{
    if (!p) return cudaSuccess;
    sim_lock();
    sim_flush_all();
    for (int i = 0; i < n_pinned; i++)
        if (pinned[i].p == p) pinned[i] = pinned[--n_pinned];
    sim_unlock();
    free(p);
    return cudaSuccess;
}

int sim_is_pinned(const void *p, size_t n)
{
    for (int i = 0; i < n_pinned; i++)
        if ((const char *)p >= pinned[i].p && (const char *)p + n <= pinned[i].p + pinned[i].n) return 1;
    return 0;
}

int sim_device_range(const void *p, size_t n)
{
    char *base;
    size_t m;
    int freed;
    if (!arena || (const char *)p < arena || (const char *)p >= arena + SIM_ARENA) return 0;
    if (!sim_find(p, &base, &m, &freed) || freed || (const char *)p + n > base + m) {
        sim_error("%zu bytes at %p are not inside a live device allocation", n, p);
        return -1;
    }
    return 1;
}

/* ---- the device --------------------------------------------------------------------------------- */

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = devices;
    return devices ? cudaSuccess : sim_result(cudaErrorInsufficientDriver);
}

cudaError_t cudaSetDevice(int d)
{
    return d >= 0 && d < devices ? sim_sticky(cudaSuccess) : sim_result(cudaErrorInvalidDevice);
}

cudaError_t cudaGetDevice(int *d)
{
    *d = 0;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int len, int d)
{
    snprintf(id, (size_t)len, "0000:%02x:00.0", 0x65 + d);
    return cudaSuccess;
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int d)
{
    static struct CUmemPool_st only;
    (void)d;
    *pool = &only;
    return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr a, void *value)
{
    (void)pool, (void)a, (void)value;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total)
{
    *total = limit;
    *free_bytes = limit - cudasim_stats.live;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d)
{
    (void)d;
    *v = a == cudaDevAttrMultiProcessorCount ? 4 : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? (int)SIM_SMEM
         : a == cudaDevAttrComputeCapabilityMajor ? 9 : 0;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d)
{
    (void)d;
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "cudasim");
    p->major = 9;
    p->warpSize = 32;
    p->multiProcessorCount = 4;
    p->maxThreadsPerBlock = SIM_THREADS;
    p->totalGlobalMem = limit;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = SIM_SMEM;
    return cudaSuccess;
}

const char *cudaGetErrorName(cudaError_t e) { return e == cudaSuccess ? "cudaSuccess" : "cudaError"; }

const char *cudaGetErrorString(cudaError_t e)
{
    switch (e) {
    case cudaSuccess: return "no error";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorLaunchFailure: return sim_message()[0] ? sim_message() : "unspecified launch failure";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInsufficientDriver: return "CUDA driver version is insufficient for CUDA runtime version";
    default: return "invalid argument";
    }
}

int cudasim_is_asan(void)
{
#ifdef SIM_ASAN
    return 1;
#else
    return 0;
#endif
}
