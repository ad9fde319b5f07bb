/* check.c - a memory checker for kernels.
 *
 * The .cu files are compiled with -fsanitize=thread and linked WITHOUT its
 * runtime; this file supplies the __tsan_* calls, so every load and store of a
 * kernel comes here with block, thread, barrier interval and warp epoch known.
 * Found, per access: out of bounds, use after free, misalignment, host pointers,
 * reads of memory never written, and races (ordered are: a barrier between, a
 * __syncwarp between lanes of a warp, a launch between, and across blocks a
 * __threadfence handed over by an atomic on the same address).
 *
 * Shadow: one cell for each 2 bytes of device or shared memory.  A stamp says who
 * and when: interval(32) | warp epoch(16) | thread(10) << 2 | bytes of the two.
 * An interval is a stretch of one block between two barriers. */
#include "internal.h"

typedef struct cell { uint64_t w, r0, r1, a; } cell;        /* last write, two last readers, last atomic */
#define INTERVAL(s) ((uint32_t)((s) >> 32))
#define EPOCH(s)    ((unsigned)((s) >> 12) & 0xffff)
#define THREAD(s)   ((int)((s) >> 2) & 1023)
#define BYTES(s)    ((unsigned)(s) & 3)
#define HOST        1u                                      /* the interval of copies and libraries */
#define HOST_STAMP  ((uint64_t)HOST << 32 | 3)

extern char __start_cudasim_ctx[], __stop_cudasim_ctx[], __executable_start[], end[];

static cell *device_cells, *dyn_cells, *static_cells;
static uint32_t interval = HOST, launch_interval, block_interval;
static uint32_t *block_of;                                  /* of an interval */
static size_t block_room;
static const char *params;
static size_t params_size;
static long *acquired;                                      /* blocks whose fenced work this block may read */
static int n_acquired, acquired_room, n_released, released_room, fenced, reports;
static struct release { const void *p; long block; } *released;

int cudasim_is_checker(void) { return 1; }

static cell *shadow(size_t cells)
{
    void *m = mmap(NULL, cells * sizeof(cell), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) abort();
    return m;
}

static size_t static_size(void)
{
    return __start_cudasim_shared ? (size_t)(__stop_cudasim_shared - __start_cudasim_shared) : 0;
}

static void new_interval(void)
{
    if (++interval >= block_room) {
        block_room = block_room ? 2 * block_room : 4096;
        block_of = realloc(block_of, block_room * sizeof *block_of);
        if (!block_of) abort();
    }
    block_of[interval] = (uint32_t)sim_cur.block;
}

static cell *cells_of(const void *p)
{
    if (!sim_cur.arena) return NULL;
    if (!device_cells) device_cells = shadow(SIM_ARENA / 2);
    return device_cells + ((const char *)p - sim_cur.arena) / 2;
}

static void on_launch(const void *pack, size_t size)
{
    params = pack;
    params_size = size;
    launch_interval = interval + 1;
    n_released = reports = 0;
    if (!dyn_cells) dyn_cells = shadow(SIM_WINDOW / 2);
    if (!static_cells && static_size()) static_cells = shadow(static_size() / 2 + 8);
}

static void on_block(void)
{
    new_interval();
    block_interval = interval;
    n_acquired = fenced = 0;
    memset(dyn_cells, 0, (sim_cur.dyn_size + 1) / 2 * sizeof(cell));
    if (static_cells) memset(static_cells, 0, (static_size() / 2 + 1) * sizeof(cell));
}

static void on_host_write(const void *p, size_t n)
{
    cell *c = cells_of(p);
    for (size_t i = 0; c && i < (n + 1) / 2; i++) c[i] = (cell){.w = HOST_STAMP};
}

static void on_fence(void) { fenced = 1; }

/* ---- reports ------------------------------------------------------------------------------- */

static void where(char *text, size_t size, const char *p)
{
    char *base;
    size_t n;
    int freed;
    const char *dyn = (const char *)sim_cur.dyn;
    if (p >= dyn && p < dyn + SIM_WINDOW)
        snprintf(text, size, "dynamic shared memory, byte %ld of %zu", (long)(p - dyn), sim_cur.dyn_size);
    else if (__start_cudasim_shared && p >= __start_cudasim_shared && p < __stop_cudasim_shared)
        snprintf(text, size, "static shared memory, byte %ld", (long)(p - __start_cudasim_shared));
    else if (sim_find(p, &base, &n, &freed) && p < base + n + 65536)
        snprintf(text, size, "byte %ld of a %sdevice allocation of %zu bytes", (long)(p - base), freed ? "freed " : "", n);
    else
        snprintf(text, size, "address %p", (const void *)p);
}

static void report(const char *what, const void *p, size_t n, uint64_t other)
{
    char place[160], who[80] = "";
    if (reports++ >= 3) return;                             /* of a launch */
    where(place, sizeof place, p);
    if (other) snprintf(who, sizeof who, ", against thread %d of block %u", THREAD(other), block_of[INTERVAL(other)]);
    sim_error("%s of %zu bytes at %s%s", what, n, place, who);
}

/* ---- order ------------------------------------------------------------------------------------ */

static int is_acquired(uint32_t iv)
{
    for (int i = 0; i < n_acquired; i++)
        if (acquired[i] == block_of[iv]) return 1;
    return 0;
}

/* Is the earlier access s unordered with this one? */
static inline int unordered(uint64_t s, uint64_t me, int shared)
{
    if (!s || !(BYTES(s) & BYTES(me))) return 0;
    if (INTERVAL(s) == INTERVAL(me))
        return THREAD(s) != THREAD(me) && !(THREAD(s) >> 5 == THREAD(me) >> 5 && EPOCH(s) != EPOCH(me));
    if (shared || INTERVAL(s) < launch_interval || INTERVAL(s) >= block_interval) return 0;
    return !is_acquired(INTERVAL(s));
}

enum { READ, WRITE, ATOMIC };

static inline void read_cell(cell *c, const void *p, size_t n, uint64_t me, int shared)
{
    if (!c->w && !c->a) {
        report("read of memory never written", p, n, 0);
        c->w = HOST_STAMP;
    }
    if (unordered(c->w, me, shared)) {
        report("RACE: read after unordered write", p, n, c->w);
        c->w = HOST_STAMP;
    }
    if (unordered(c->a, me, shared)) {
        report("RACE: plain read against atomic", p, n, c->a);
        c->a = 0;
    }
    if (INTERVAL(c->r0) != interval) {
        c->r0 = me;
        c->r1 = 0;
    } else if (THREAD(c->r0) != THREAD(me)) {
        c->r1 = me;
    } else {
        c->r0 = me;
    }
}

static inline void write_cell(cell *c, const void *p, size_t n, uint64_t me, int kind, int shared)
{
    if (unordered(c->w, me, shared))
        report(kind == ATOMIC ? "RACE: atomic against plain write" : "RACE: write after unordered write", p, n, c->w);
    if (unordered(c->r0, me, shared)) report("RACE: write after unordered read", p, n, c->r0);
    else if (unordered(c->r1, me, shared)) report("RACE: write after unordered read", p, n, c->r1);
    if (kind == ATOMIC) {
        c->a = me;
        return;
    }
    if (unordered(c->a, me, shared)) report("RACE: plain write against atomic", p, n, c->a);
    int other_byte = BYTES(c->w) != 3 && INTERVAL(c->w) == interval && THREAD(c->w) == THREAD(me);
    c->w = other_byte ? me | BYTES(c->w) : me;
}

static inline void check_cells(cell *c, const void *p, size_t n, int kind, int shared)
{
    uint64_t base = (uint64_t)interval << 32 | (uint64_t)(sim_cur.epoch & 0xffff) << 12 | (uint64_t)sim_cur.tid << 2;
    size_t odd = (uintptr_t)p & 1;
    for (size_t i = 0; i < n; c++) {
        unsigned bytes = odd ? 2 : n - i >= 2 ? 3 : 1;
        i += bytes == 3 ? 2 : 1;
        odd = 0;
        if (kind == READ) read_cell(c, p, n, base | bytes, shared);
        else write_cell(c, p, n, base | bytes, kind, shared);
    }
}

static int is_static_shared(const char *p)
{
    return __start_cudasim_shared && p >= __start_cudasim_shared && p < __stop_cudasim_shared;
}

static void check(const void *q, size_t n, int kind, int aligned)
{
    const char *p = q, *dyn = (const char *)sim_cur.dyn;
    if (!sim_cur.in_kernel || (p >= sim_cur.stack && p < sim_cur.stack + SIM_STACK)) return;     /* own locals */
    if (p >= __start_cudasim_ctx && p < __stop_cudasim_ctx) return;                               /* threadIdx  */
    cudasim_stats.checked++;
    if (aligned && (uintptr_t)p % n) report("misaligned access", p, n, 0);
    const char *bounds = kind == READ ? "OUT OF BOUNDS read" : "OUT OF BOUNDS write";
    if (p >= sim_cur.arena && p < sim_cur.arena + SIM_ARENA) {
        char *base = NULL;
        size_t size = 0;
        int freed = 0, found = sim_find(p, &base, &size, &freed);
        if (!found || p + n > base + size) report(bounds, p, n, 0);
        else if (freed) report("use after free", p, n, 0);
        else check_cells(cells_of(p), p, n, kind, 0);
    } else if (p >= dyn && p < dyn + SIM_WINDOW) {
        if (p + n > dyn + sim_cur.dyn_size) report(bounds, p, n, 0);
        else check_cells(dyn_cells + (p - dyn) / 2, p, n, kind, 1);
    } else if (is_static_shared(p)) {
        check_cells(static_cells + (p - __start_cudasim_shared) / 2, p, n, kind, 1);
    } else if (p >= params && p < params + params_size) {
        if (kind != READ) report("write to a kernel's parameters", p, n, 0);
    } else if (p >= __executable_start && p < end) {
        if (kind != READ && n > 1) report("write to a host variable", p, n, 0);    /* 1 byte: a compiler's guard */
    } else if (!sim_is_pinned(p, n)) {
        report(kind == READ ? "HOST POINTER: read in a kernel" : "HOST POINTER: write in a kernel", p, n, 0);
        return;
    }
    sim_maybe_preempt();
}

/* An atomic after a fence releases what its block did; an atomic on the same address acquires it. */
static void on_atomic(const void *p, size_t n)
{
    check(p, n, ATOMIC, 1);
    int have = 0;
    for (int i = 0; i < n_released; i++) {
        if (released[i].p != p) continue;
        if (released[i].block == sim_cur.block) {
            have = 1;
            continue;
        }
        if (n_acquired == acquired_room) {
            acquired_room = acquired_room ? 2 * acquired_room : 16;
            acquired = realloc(acquired, sizeof *acquired * (size_t)acquired_room);
            if (!acquired) abort();
        }
        acquired[n_acquired++] = released[i].block;
    }
    if (!fenced || have) return;
    if (n_released == released_room) {
        released_room = released_room ? 2 * released_room : 16;
        released = realloc(released, sizeof *released * (size_t)released_room);
        if (!released) abort();
    }
    released[n_released++] = (struct release){p, sim_cur.block};
}

static void on_read(const void *p, size_t n)
{
    if (n) check(p, n, READ, 0);
}

static void on_write(const void *p, size_t n)
{
    if (n) check(p, n, WRITE, 0);
}

__attribute__((constructor)) static void install(void)
{
    sim_hook = (sim_hooks){on_launch, on_block, new_interval, on_atomic, on_read, on_write, on_host_write, on_fence};
    new_interval();
}

/* ---- what -fsanitize=thread calls --------------------------------------------------------------- */

#define ACCESS(name, n, kind, aligned) \
    void name(void *p);                \
    void name(void *p) { check(p, n, kind, aligned); }
#define SIZED(n)                                                                                      \
    ACCESS(__tsan_read##n, n, READ, 1) ACCESS(__tsan_write##n, n, WRITE, 1)                           \
    ACCESS(__tsan_unaligned_read##n, n, READ, 0) ACCESS(__tsan_unaligned_write##n, n, WRITE, 0)
SIZED(1)
SIZED(2)
SIZED(4)
SIZED(8)
SIZED(16)
#define CALL(name, ...)     \
    void name(__VA_ARGS__); \
    void name(__VA_ARGS__)
CALL(__tsan_init, void) {}
CALL(__tsan_func_entry, void *p) { (void)p; }
CALL(__tsan_func_exit, void) {}
CALL(__tsan_vptr_update, void **p, void *v) { (void)p, (void)v; }
CALL(__tsan_vptr_read, void **p) { (void)p; }
CALL(__tsan_read_range, void *p, size_t n) { on_read(p, n); }
CALL(__tsan_write_range, void *p, size_t n) { on_write(p, n); }

void *__tsan_memcpy(void *d, const void *s, size_t n);
void *__tsan_memmove(void *d, const void *s, size_t n);
void *__tsan_memset(void *d, int v, size_t n);
void *__tsan_memcpy(void *d, const void *s, size_t n)
{
    on_read(s, n);
    on_write(d, n);
    return memcpy(d, s, n);
}
void *__tsan_memmove(void *d, const void *s, size_t n)
{
    on_read(s, n);
    on_write(d, n);
    return memmove(d, s, n);
}
void *__tsan_memset(void *d, int v, size_t n)
{
    on_write(d, n);
    return memset(d, v, n);
}

/* Atomics of the host code beside the kernels: kernels have their own (warp.c). */
uint64_t __tsan_atomic64_fetch_add(volatile uint64_t *p, uint64_t v, int order);
uint64_t __tsan_atomic64_load(const volatile uint64_t *p, int order);
uint64_t __tsan_atomic64_fetch_add(volatile uint64_t *p, uint64_t v, int order)
{
    (void)order;
    return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST);
}
uint64_t __tsan_atomic64_load(const volatile uint64_t *p, int order)
{
    (void)order;
    return __atomic_load_n(p, __ATOMIC_SEQ_CST);
}
