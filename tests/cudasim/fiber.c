/* fiber.c - the threads of a block as fibers, barriers, and launches.
 *
 * A fiber runs one CUDA thread until it waits or ends; a thread that ends without
 * waiting hands its fiber to the next, so kernels without barriers never switch.
 * The switch is ten instructions for x86-64; ucontext would make a system call
 * at each. */
#include "internal.h"

#include <stdarg.h>

CUDASIM_CTX uint3 threadIdx, blockIdx;
CUDASIM_CTX dim3 blockDim, gridDim;
CUDASIM_CTX unsigned char *cudasim_dyn_smem;
CUDASIM_CTX sim_current sim_cur;
cudasim_stats_t cudasim_stats;
sim_hooks sim_hook;
sim_thread sim_threads[SIM_THREADS];
int sim_warp_waiting[SIM_THREADS / 32];

/* ---- options, errors, random numbers ------------------------------------------------------ */

static int mode, lazy = -1, abort_at_once = 1, failed, findings;
static unsigned chaos;
static uint32_t random_state = 1;
static long fail_in;
static int fail_stays;
static char message[1024];
static cudaError_t last, sticky;
static pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

void sim_lock(void) { pthread_mutex_lock(&lock); }
void sim_unlock(void) { pthread_mutex_unlock(&lock); }
int sim_mode(void) { return mode; }
int sim_lazy(void)
{
    if (lazy < 0) lazy = getenv("CUDASIM_LAZY") != NULL;
    return lazy;
}

const char *sim_message(void) { return message; }
void cudasim_set_lazy(int on) { lazy = on; }
void cudasim_set_chaos(unsigned n) { chaos = n; }
void cudasim_set_abort(int on) { abort_at_once = on; }

long cudasim_fail_at(long nth)
{
    long left = fail_in;
    fail_in = nth;
    fail_stays = 0;
    return left;
}

long cudasim_lose_at(long nth)
{
    long left = cudasim_fail_at(nth);
    fail_stays = 1;
    return left;
}

void cudasim_set_schedule(int m, unsigned seed)
{
    mode = m;
    random_state = seed ? seed * 2654435761u | 1u : 1u;
}

unsigned sim_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

cudaError_t sim_result(cudaError_t e)
{
    if (e != cudaSuccess) last = e;
    return e != cudaSuccess ? e : sticky;
}

cudaError_t sim_sticky(cudaError_t set)
{
    if (set != cudaSuccess) sticky = last = set;
    return sticky;
}

int sim_injected(void)
{
    int now = fail_in > 0 && --fail_in == 0;
    if (now && fail_stays) sim_sticky(cudaErrorIllegalAddress);
    return now;
}

int cudasim_errors(char *text, size_t size)
{
    int n = findings;
    if (text && size) snprintf(text, size, "%s", n ? message : "");
    findings = 0;
    sticky = last = cudaSuccess;
    return n;
}

void sim_error(const char *fmt, ...)
{
    char text[700];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    findings++;
    if (sim_cur.in_kernel)
        snprintf(message, sizeof message, "cudasim: %s [kernel %s block (%u,%u,%u) thread (%u,%u,%u)]", text, sim_cur.kernel,
                 blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x, threadIdx.y, threadIdx.z);
    else
        snprintf(message, sizeof message, "cudasim: %s", text);
    if (!abort_at_once) return;
    fprintf(stderr, "%s\n", message);
    abort();
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last;
    last = sticky;
    return e;
}

cudaError_t cudaPeekAtLastError(void) { return last; }

/* ---- fibers ----------------------------------------------------------------------------------- */

typedef struct fiber {
    void *sp, *fake;                /* fake: AddressSanitizer's */
    char *stack;
    int   thread, id;
} fiber;

static fiber host, fibers[SIM_THREADS + 1], *on = &host;
static int idle[SIM_THREADS + 1], n_idle, n_fibers;

void sim_switch(void **save, void *to);
__asm__(".text\n.globl sim_switch\n.type sim_switch,@function\nsim_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp,(%rdi)\n  movq %rsi,%rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".size sim_switch,.-sim_switch\n");

#ifdef SIM_ASAN
/* The host thread's own stack; which thread that is may change between launches. */
static void host_stack(const void **low, size_t *size)
{
    static __thread void *base;
    static __thread size_t bytes;
    if (!base) {
        pthread_attr_t a;
        pthread_getattr_np(pthread_self(), &a);
        pthread_attr_getstack(&a, &base, &bytes);
        pthread_attr_destroy(&a);
    }
    *low = base;
    *size = bytes;
}
#endif

static NO_ASAN void switch_to(fiber *to)
{
    fiber *from = on;
    on = to;
    cudasim_stats.switches++;
#ifdef SIM_ASAN
    const void *low = to->stack;
    size_t size = SIM_STACK;
    if (to == &host) host_stack(&low, &size);
    __sanitizer_start_switch_fiber(&from->fake, low, size);
#endif
    sim_switch(&from->sp, to->sp);
#ifdef SIM_ASAN
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}

static void fiber_main(void);

static NO_ASAN void fiber_entry(void)
{
#ifdef SIM_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    fiber_main();
}

static void fiber_reset(fiber *f)
{
    UNPOISON(f->stack, SIM_STACK);
    void **sp = (void **)(f->stack + SIM_STACK);
    *--sp = NULL;                   /* keeps the 16-byte alignment of a call */
    *--sp = (void *)(uintptr_t)fiber_entry;
    for (int i = 0; i < 6; i++) *--sp = NULL;
    f->sp = sp;
    f->fake = NULL;
    f->thread = -1;
}

static fiber *fiber_get(void)
{
    if (n_idle) return &fibers[idle[--n_idle]];
    fiber *f = &fibers[n_fibers];
    f->id = n_fibers++;
    char *m = mmap(NULL, SIM_STACK + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m == MAP_FAILED) abort();
    mprotect(m, 4096, PROT_NONE);
    f->stack = m + 4096;
    fiber_reset(f);
    return f;
}

/* ---- the scheduler ----------------------------------------------------------------------------- */

static int order[SIM_THREADS], n_threads, at, count_result;
static const sim_kernel *kernel;

int sim_block_threads(void) { return n_threads; }
int sim_self(void) { return on->thread; }

void sim_wait(int state)
{
    sim_threads[on->thread].state = state;
    switch_to(&host);
}

static void set_current(int t, const fiber *f)
{
    threadIdx = sim_threads[t].idx;
    sim_cur.tid = t;
    sim_cur.epoch = sim_threads[t].epoch;
    sim_cur.stack = f->stack;
}

void sim_die(void)
{
    failed = 1;
    switch_to(&host);               /* never resumed: the fiber is rebuilt */
    abort();
}

static void fiber_main(void)
{
    for (;;) {
        int t = order[at];
        on->thread = t;
        sim_threads[t].fiber = on->id;
        sim_threads[t].state = SIM_READY;
        set_current(t, on);
        kernel->run(kernel->pack);
        sim_threads[t].state = SIM_DONE;
        if (at + 1 < n_threads && sim_threads[order[at + 1]].state == SIM_NEW) {
            at++;
            continue;
        }
        idle[n_idle++] = on->id;
        on->thread = -1;
        switch_to(&host);
    }
}

void sim_shuffle(int *a, int n)
{
    for (int i = n - 1; i > 0; i--) {
        int j = (int)(sim_random() % (unsigned)(i + 1)), x = a[i];
        a[i] = a[j];
        a[j] = x;
    }
}

static void make_order(int *a, int n)
{
    for (int i = 0; i < n; i++) a[i] = mode == CUDASIM_REVERSE ? n - 1 - i : i;
    if (mode == CUDASIM_RANDOM) sim_shuffle(a, n);
}

static void run_thread(int position)
{
    int t = order[position];
    at = position;
    fiber *f = sim_threads[t].state == SIM_NEW ? fiber_get() : &fibers[sim_threads[t].fiber];
    if (sim_threads[t].state == SIM_READY) set_current(t, f);
    switch_to(f);
}

void sim_maybe_preempt(void)
{
    if (chaos && sim_random() % chaos == 0) sim_wait(SIM_READY);
}

/* Nobody can run, and not all are at a barrier. */
static void report_stuck(void)
{
    int in_barrier = 0, done = 0, in_warp = 0, b = 0, w = 0, d = 0;
    for (int t = n_threads - 1; t >= 0; t--) {
        if (sim_threads[t].state == SIM_BARRIER) in_barrier++, b = t;
        else if (sim_threads[t].state == SIM_DONE) done++, d = t;
        else in_warp++, w = t;
    }
    if (in_warp) {
        threadIdx = sim_threads[w].idx;
        sim_error("%s with mask %08x never completes: %d threads wait in warp calls, %d at %s, %d exited", sim_threads[w].what,
                  sim_threads[w].mask, in_warp, in_barrier, in_barrier ? sim_threads[b].site : "no barrier", done);
    } else {
        threadIdx = sim_threads[d].idx;
        sim_error("divergent __syncthreads: %d threads wait at %s, %d threads exited (first: thread %d)", in_barrier,
                  sim_threads[b].site, done, d);
    }
}

static int release_barrier(void)
{
    int sum = 0;
    const char *site = sim_threads[0].site;
    for (int t = 1; t < n_threads; t++) {
        if (sim_threads[t].site == site || !strcmp(sim_threads[t].site, site)) continue;
        threadIdx = sim_threads[t].idx;
        sim_error("divergent __syncthreads: thread 0 waits at %s, thread %d at %s", site, t, sim_threads[t].site);
        return 0;
    }
    for (int t = 0; t < n_threads; t++) {
        sum += sim_threads[t].pred;
        sim_threads[t].state = SIM_READY;
        sim_threads[t].epoch++;
    }
    count_result = sum;
    cudasim_stats.barriers++;
    HOOK(barrier);
    if (mode == CUDASIM_RANDOM) sim_shuffle(order, n_threads);
    return 1;
}

/* Every thread that can run, once round; false when none could. */
static int run_round(void)
{
    int progress = 0;
    for (int i = 0; i < n_threads && !failed; i = (at > i ? at : i) + 1) {
        at = i;
        int s = sim_threads[order[i]].state;
        if (s != SIM_NEW && s != SIM_READY) continue;
        progress = 1;
        run_thread(i);
    }
    return progress;
}

static void run_block(void)
{
    make_order(order, n_threads);
    failed = 0;
    while (!failed) {
        int done = 0, waiting = 0;
        if (run_round()) continue;
        for (int t = 0; t < n_threads; t++) {
            done += sim_threads[t].state == SIM_DONE;
            waiting += sim_threads[t].state == SIM_BARRIER;
        }
        if (done == n_threads) return;
        if (waiting == n_threads) {
            failed = !release_barrier();
        } else {
            report_stuck();
            failed = 1;
        }
    }
    sim_sticky(cudaErrorLaunchFailure);
    n_idle = 0;                     /* abandon the block: every fiber begins anew */
    for (int i = 0; i < n_fibers; i++) {
        fiber_reset(&fibers[i]);
        idle[n_idle++] = i;
    }
}

void cudasim_barrier(const char *site)
{
    sim_thread *t = &sim_threads[on->thread];
    t->site = site;
    t->pred = 0;
    sim_wait(SIM_BARRIER);
}

int cudasim_barrier_count(int pred, const char *site)
{
    sim_thread *t = &sim_threads[on->thread];
    t->site = site;
    t->pred = pred;
    sim_wait(SIM_BARRIER);
    return count_result;
}

void cudasim_fence(void) { HOOK(fence); }

/* ---- launches ------------------------------------------------------------------------------------ */

static unsigned char *window;

static NO_ASAN void fill_shared(void)
{
    for (char *c = __start_cudasim_shared; c < __stop_cudasim_shared; c++) *c = (char)0xff;
}

static void start_block(const sim_kernel *k, unsigned b)
{
    blockIdx.x = b % k->g.x;
    blockIdx.y = b / k->g.x % k->g.y;
    blockIdx.z = b / k->g.x / k->g.y;
    sim_cur.block = b;
    for (int t = 0; t < n_threads; t++) {
        sim_thread *s = &sim_threads[t];
        s->state = SIM_NEW;
        s->copies = s->group = 0;
        s->epoch = 0;
        s->idx.x = (unsigned)t % k->b.x;
        s->idx.y = (unsigned)t / k->b.x % k->b.y;
        s->idx.z = (unsigned)t / k->b.x / k->b.y;
    }
    if (__start_cudasim_shared) fill_shared();
    memset(window, 0xff, k->smem);
    memset(sim_warp_waiting, 0, sizeof sim_warp_waiting);
    HOOK(block);
}

void sim_kernel_run(void *arg)
{
    const sim_kernel *k = arg;
    int blocks = (int)(k->g.x * k->g.y * k->g.z), *block_order = malloc(sizeof *block_order * (size_t)blocks);
    if (!window) window = mmap(NULL, SIM_WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (!block_order || window == MAP_FAILED) abort();
    sim_guard(0);
    kernel = k;
    n_threads = (int)(k->b.x * k->b.y * k->b.z);
    blockDim = k->b;
    gridDim = k->g;
    cudasim_dyn_smem = window;
    sim_cur.in_kernel = 1;
    sim_cur.kernel = k->name;
    sim_cur.dyn = window;
    sim_cur.dyn_size = k->smem;
    cudasim_stats.launches++;
    cudasim_stats.blocks += (unsigned long)blocks;
    cudasim_stats.threads += (unsigned long)blocks * (unsigned long)n_threads;
    HOOK(launch, k->pack, k->pack_size);
    make_order(block_order, blocks);
    POISON(window + k->smem, SIM_WINDOW - k->smem);
    for (int i = 0; i < blocks && sim_sticky(cudaSuccess) == cudaSuccess; i++) {
        start_block(k, (unsigned)block_order[i]);
        run_block();
    }
    UNPOISON(window, SIM_WINDOW);
    sim_cur.in_kernel = 0;
    sim_guard(1);
    free(block_order);
}

void sim_kernel_free(void *arg)
{
    sim_kernel *k = arg;
    k->del(k->pack);
    free(k);
}

static struct { const void *f; size_t n; } attributes[256];
static int n_attributes;

cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute a, int v)
{
    sim_lock();
    cudaError_t e = cudaSuccess;
    int i = 0;
    while (i < n_attributes && attributes[i].f != f) i++;
    if (a != cudaFuncAttributeMaxDynamicSharedMemorySize || (size_t)v > SIM_SMEM || i == 256) {
        e = cudaErrorInvalidValue;
    } else {
        if (i == n_attributes) n_attributes++;
        attributes[i].f = f;
        attributes[i].n = (size_t)v;
    }
    sim_result(e);
    sim_unlock();
    return e;
}

/* The first word of a pack is the kernel's address. */
static size_t smem_limit(const void *pack)
{
    const void *f;
    memcpy(&f, pack, sizeof f);
    for (int i = 0; i < n_attributes; i++)
        if (attributes[i].f == f) return attributes[i].n;
    return 48 << 10;
}

void cudasim_enqueue_kernel(const char *name, dim3 g, dim3 b, size_t smem, cudaStream_t s, cudasim_run_fn run, void *pack,
                            size_t pack_size, cudasim_run_fn del)
{
    size_t threads = (size_t)b.x * b.y * b.z;
    sim_lock();
    if (!threads || threads > SIM_THREADS || b.z > 64 || !g.x || !g.y || !g.z || g.x > 0x7fffffff || g.y > 65535 ||
        g.z > 65535 || smem > smem_limit(pack)) {
        sim_result(smem > smem_limit(pack) ? cudaErrorInvalidValue : cudaErrorInvalidConfiguration);
        del(pack);
    } else if (sim_injected()) {
        sim_result(cudaErrorLaunchFailure);
        del(pack);
    } else {
        if (threads % 32) sim_error("kernel %s: %zu threads in a block are not whole warps", name, threads);
        sim_kernel *k = malloc(sizeof *k);
        if (!k) abort();
        *k = (sim_kernel){name, g, b, smem, pack_size, run, del, pack};
        sim_enqueue(s, sim_kernel_run, k, sim_kernel_free);
    }
    sim_unlock();
}
