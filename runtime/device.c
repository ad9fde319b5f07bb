/* device.c - the device table, buffers and streams; what is the same everywhere. */
#include "runtime/device.h"

#include "runtime/device_cpu.h"
#ifdef MX_WITH_CUDA
#include "runtime/device_cuda.h"
#include "runtime/log.h"
#endif

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SCRATCH_ALIGN 64      /* bytes: a cache line, and the widest vector */

#ifdef MX_WITH_CUDA
int mx_device_gpus(mx_plan_gpu *out, int most)
{
    int n = mx_device_cuda_count();
    if (n > most) n = most;
    for (int i = 0; i < n; i++) mx_device_cuda_pci(i, out[i].pci, sizeof out[i].pci);
    return n;
}

/* A GPU that cannot be opened is left out: the machine serves with the rest. */
static mx_status gpu_open(mx_device *d, const mx_plan_device *at)
{
    mx_error err = {0};
    mx_status st = mx_device_cuda_open(d, at->index, &err);
    if (st) mx_log(MX_LOG_WARN, "device", "%s", err.text);
    return st;
}
#else
int mx_device_gpus(mx_plan_gpu *out, int most)
{
    (void)out, (void)most;
    return 0;
}

static mx_status gpu_open(mx_device *d, const mx_plan_device *at)
{
    (void)d, (void)at;
    return MX_ERR_DEVICE;
}
#endif

/* Runs where the device's worker will until leave(): drivers start threads and pin memory
 * where their caller is. */
typedef struct visit {
    cpu_set_t home;
    bool      away;
} visit;

static visit go_to(const int *cpus, int n)
{
    visit v = {.away = false};
    if (n && !pthread_getaffinity_np(pthread_self(), sizeof v.home, &v.home)) {
        mx_thread_bind(cpus, n);
        v.away = true;
    }
    return v;
}

static void leave(const visit *v)
{
    if (v->away) pthread_setaffinity_np(pthread_self(), sizeof v->home, &v->home);
}

static int *copy_cpus(const mx_plan_device *at)
{
    int *cpus = malloc((size_t)at->n_cpus * sizeof *cpus);
    if (cpus) memcpy(cpus, at->cpus, (size_t)at->n_cpus * sizeof *cpus);
    return cpus;
}

static mx_status open_planned(mx_device *d, const mx_plan_device *at, const mx_device_options *opt, const mx_topology *t, size_t memory,
                              mx_error *err)
{
    visit v = go_to(at->cpus, opt->bind ? at->n_cpus : 0);
    mx_status st = at->gpu ? gpu_open(d, at) : mx_device_cpu_open(d, at, opt, err);
    leave(&v);
    if (st) return at->gpu ? MX_OK : st;     /* a GPU that cannot be opened is left out: the machine serves with the rest */
    d->serves = at->serves;
    d->node = mx_topology_numa_nodes(t) > 1 && opt->bind ? at->node : -1;
    if (!at->gpu) d->memory = memory;
    if (at->gpu && opt->bind && (d->cpus = copy_cpus(at))) d->n_cpus = at->n_cpus;
    return MX_OK;
}

static mx_status open_all(mx_device *devs, int *count, const mx_plan *p, const mx_device_options *opt, const mx_topology *t, mx_error *err)
{
    size_t cpus = 0;
    for (int i = 0; i < p->n_devices; i++) cpus += !p->device[i].gpu;
    for (int i = 0; i < p->n_devices; i++) {
        MX_TRY(open_planned(&devs[*count], &p->device[i], opt, t, mx_topology_memory(t) / cpus, err));
        *count += devs[*count].ops != NULL;
    }
    return MX_OK;
}

mx_status mx_devices_open(mx_device **out, int *count, const mx_device_options *opt, mx_error *err)
{
    *out = NULL;
    *count = 0;
    mx_topology *t = NULL;
    mx_plan own = {0};
    mx_plan_gpu gpus[64];
    mx_plan_settings s = {.devices = "auto", .threads = opt->cpu_threads};
    mx_device *devs = NULL;
    const mx_plan *plan = opt->plan ? opt->plan : &own;
    mx_status st;
    MX_TRY_GOTO(st, mx_topology_open(&t, NULL, err), out);
    if (!opt->plan) MX_TRY_GOTO(st, mx_plan_make(&own, t, gpus, mx_device_gpus(gpus, 64), &s, err), out);
    devs = calloc((size_t)plan->n_devices, sizeof *devs);
    st = devs ? open_all(devs, count, plan, opt, t, err) : mx_fail(err, MX_ERR_NO_MEMORY, "device table: out of memory");
out:
    mx_plan_free(&own);
    mx_topology_close(t);
    if (st) {
        mx_devices_close(devs, *count);
        *count = 0;
        return st;
    }
    *out = devs;
    return MX_OK;
}

void mx_devices_close(mx_device *devs, int count)
{
    for (int i = 0; i < count; i++) {
        int *cpus = devs[i].cpus;            /* close() leaves zeros */
        devs[i].ops->close(&devs[i]);
        free(cpus);
    }
    free(devs);
}

static mx_status no_such_device(const char *names, int count, mx_error *err)
{
    return mx_fail(err, MX_ERR_ARG, "device \"%.60s\": write auto, cpu, cuda:N or cuda:N,M; this machine has %d GPUs that can be used", names, count - 1);
}

/* The place of GPU number `wanted` among devs; 0: there is no such one. */
static int gpu_at(const mx_device *devs, int count, long wanted)
{
    for (int i = 0; i < count; i++)
        if (devs[i].kind == MX_CUDA && devs[i].index == wanted) return i;
    return 0;
}

mx_status mx_devices_find(const mx_device *devs, int count, const char *names, int *index, int *n, mx_error *err)
{
    bool any = !strcmp(names, "auto");
    *n = 1;
    index[0] = 0;                       /* the CPU is always there */
    if (!strcmp(names, "cpu")) return MX_OK;
    if (any || !strcmp(names, "cuda")) {
        for (int i = count - 1; i > 0; i--)
            if (devs[i].kind == MX_CUDA) index[0] = i;
        return any || index[0] ? MX_OK : no_such_device(names, count, err);
    }
    if (strncmp(names, "cuda:", 5) != 0) return no_such_device(names, count, err);
    *n = 0;
    for (const char *at = names + 5;; at++) {
        char *end;
        long wanted = *at >= '0' && *at <= '9' ? strtol(at, &end, 10) : -1;
        int found = wanted < 0 ? 0 : gpu_at(devs, count, wanted);
        if (!found || (*end && *end != ',')) return no_such_device(names, count, err);
        for (int i = 0; i < *n; i++)
            if (index[i] == found) return mx_fail(err, MX_ERR_ARG, "device \"%.60s\": GPU %ld is named twice", names, wanted);
        index[(*n)++] = found;
        if (!*end) return MX_OK;
        at = end;
    }
}

mx_status mx_device_find(const mx_device *devs, int count, const char *name, int *index, mx_error *err)
{
    int n, *all = malloc((size_t)count * sizeof *all);
    if (!all) return mx_fail(err, MX_ERR_NO_MEMORY, "device table: out of memory");
    mx_status st = mx_devices_find(devs, count, name, all, &n, err);
    *index = st ? 0 : all[0];
    free(all);
    if (!st && n > 1) return mx_fail(err, MX_ERR_ARG, "device \"%.60s\": one device is wanted here", name);
    return st;
}

void mx_device_enter(mx_device *d)
{
    if (d->n_cpus) mx_thread_bind(d->cpus, d->n_cpus);
    d->ops->enter(d);
}

mx_status mx_device_twin(mx_device *twin, mx_device *d, mx_error *err)
{
    *twin = *d;
    if (!d->pool) return MX_OK;
    mx_pool_config c = {.threads = mx_pool_threads(d->pool), .cpus = mx_pool_cpus(d->pool), .spin_us = mx_pool_spin_us(d->pool), .prompt = true};
    return mx_pool_open(&twin->pool, &c, err);
}

void mx_device_twin_close(mx_device *twin)
{
    mx_pool_close(twin->pool);
    *twin = (mx_device){0};
}

void mx_device_for(mx_device *out, mx_device *d, const mx_device_account *account)
{
    *out = *d;
    out->held = 0;
    out->account = account;
    out->whole = d;
}

size_t mx_device_held(const mx_device *d)
{
    return __atomic_load_n(&d->held, __ATOMIC_RELAXED);
}

mx_status mx_buffer_open(mx_buffer *b, mx_device *d, size_t size, mx_error *err)
{
    *b = (mx_buffer){.dev = d};
    if (!size) return MX_OK;
    if (d->account) MX_TRY(d->account->take(d->account->ctx, size, err));
    mx_status st = d->ops->alloc(d, size, &b->base, err);
    if (st) {
        if (d->account) d->account->give(d->account->ctx, size);
        return st;
    }
    b->size = size;
    __atomic_fetch_add(&d->held, size, __ATOMIC_RELAXED);
    if (d->whole) __atomic_fetch_add(&d->whole->held, size, __ATOMIC_RELAXED);
    return MX_OK;
}

void mx_buffer_close(mx_buffer *b)
{
    mx_device *d = b->dev;
    if (b->base) {
        d->ops->release(d, b->base, b->size);
        __atomic_fetch_sub(&d->held, b->size, __ATOMIC_RELAXED);
        if (d->whole) __atomic_fetch_sub(&d->whole->held, b->size, __ATOMIC_RELAXED);
        if (d->account) d->account->give(d->account->ctx, b->size);
    }
    *b = (mx_buffer){0};
}

mx_status mx_stream_open(mx_stream *s, mx_device *d, size_t scratch, mx_error *err)
{
    *s = (mx_stream){.dev = d};
    mx_status st;
    MX_TRY_GOTO(st, mx_buffer_open(&s->scratch, d, scratch, err), fail);
    visit v = go_to(d->cpus, d->n_cpus);     /* its pinned memory */
    st = d->ops->stream_open(d, s, err);
    leave(&v);
    if (!st) return MX_OK;
fail:
    mx_buffer_close(&s->scratch);
    s->dev = NULL;
    return st;
}

void mx_stream_close(mx_stream *s)
{
    if (!s->dev) return;
    s->dev->ops->stream_close(s);
    mx_buffer_close(&s->scratch);
    *s = (mx_stream){0};
}

size_t mx_stream_tensor_bytes(mx_dtype t, int64_t rows, int64_t cols)
{
    size_t n;
    if (rows < 0 || cols < 0 || !mx_dtype_size(t)) return SIZE_MAX;
    if (!mx_mul_size((size_t)rows, (size_t)cols, &n) || !mx_mul_size(n, mx_dtype_size(t), &n) ||
        !mx_add_size(n, SCRATCH_ALIGN - 1, &n))
        return SIZE_MAX;
    return n & ~(size_t)(SCRATCH_ALIGN - 1);
}

mx_tensor mx_stream_tensor(mx_stream *s, mx_dtype t, int64_t rows, int64_t cols)
{
    mx_tensor none = mx_tensor_of(NULL, t, rows, cols);
    if (s->error.code) return none;
    size_t bytes = mx_stream_tensor_bytes(t, rows, cols);
    if (rows < 0 || cols < 0 || !mx_dtype_size(t)) {
        mx_stream_fail(s, MX_ERR_ARG, "scratch: a %s tensor of %lld x %lld", mx_dtype_name(t),
                       (long long)rows, (long long)cols);
        return none;
    }
    size_t left = s->scratch.size - s->scratch_used;
    if (bytes > left) {
        mx_stream_fail(s, MX_ERR_NO_MEMORY, "scratch: %s %lld x %lld needs more than the %zu of %zu bytes left",
                       mx_dtype_name(t), (long long)rows, (long long)cols, left, s->scratch.size);
        return none;
    }
    if (!s->scratch.base) return none;      /* an empty tensor in a stream without scratch */
    none.data = (char *)s->scratch.base + s->scratch_used;
    s->scratch_used += bytes;
    if (s->scratch_used > s->scratch_peak) s->scratch_peak = s->scratch_used;
    return none;
}

mx_tensor mx_stream_upload(mx_stream *s, mx_dtype t, int64_t rows, int64_t cols, const void *host)
{
    mx_tensor x = mx_stream_tensor(s, t, rows, cols);
    if (x.data && rows && cols) s->dev->ops->upload(s, x.data, host, (size_t)rows * (size_t)cols * mx_dtype_size(t));
    return x;
}

void mx_stream_rewind(mx_stream *s)
{
    s->scratch_used = 0;
}

bool mx_stream_section(mx_stream *s, const void *key, size_t n)
{
    return s->dev->ops->section(s, key, n);
}

void mx_stream_section_end(mx_stream *s)
{
    s->dev->ops->section_end(s);
}

unsigned mx_stream_mark(mx_stream *s)
{
    return s->dev->ops->mark(s);
}

mx_status mx_stream_wait(mx_stream *s, unsigned mark, mx_error *err)
{
    return s->dev->ops->wait(s, mark, err);
}

void mx_stream_fail(mx_stream *s, mx_status st, const char *fmt, ...)
{
    if (s->error.code || !st) return;
    s->error.code = st;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(s->error.text, sizeof s->error.text, fmt, ap);
    va_end(ap);
}

mx_status mx_stream_sync(mx_stream *s, mx_error *err)
{
    mx_error late = {0};
    mx_status st = s->dev->ops->sync(s, &late);
    mx_error first = s->error.code && st != MX_ERR_UNAVAILABLE ? s->error : late;       /* a lost device is why all failed */
    s->error = (mx_error){0};
    if (first.code) {
        if (err) *err = first;
        return first.code;
    }
    return st;
}
