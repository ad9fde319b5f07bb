/* device_cpu.c - the host: memory from the kernel, order by being synchronous. */
#include "runtime/device_cpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALIGN     64
#define HUGE_PAGE ((size_t)2 << 20)
#define MOST_NODES 1024

/* Large memory begins on a huge page and asks for more of them: weights and KV
 * pages are read at random rows, and 4 KiB pages would miss the TLB on each. */
static void *map_large(size_t size, int node)
{
    size_t span;
    if (!mx_add_size(size, HUGE_PAGE, &span)) return NULL;
    char *raw = mmap(NULL, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (raw == MAP_FAILED) return NULL;
    size_t head = (HUGE_PAGE - (uintptr_t)raw % HUGE_PAGE) % HUGE_PAGE;
    if (head) munmap(raw, head);
    /* The tail is a multiple of neither page size unless size is: the kernel
     * rounds the kept part up to a page, so cut after that page. */
    size_t kept = (size + 4095) & ~(size_t)4095;
    if (span - head > kept) munmap(raw + head + kept, span - head - kept);
    madvise(raw + head, kept, MADV_HUGEPAGE);     /* advice: a kernel without it serves small pages */
    if (node >= 0 && node < MOST_NODES) {
        /* On the device's node while that has room; a wish as well: a container may forbid the call. */
        enum { PREFERRED = 1, BITS = 8 * sizeof(unsigned long) };
        unsigned long nodes[MOST_NODES / BITS] = {0};
        nodes[(size_t)node / BITS] = 1ul << (size_t)node % BITS;
        syscall(SYS_mbind, raw + head, kept, PREFERRED, nodes, (unsigned long)MOST_NODES + 1, 0u);
    }
    return raw + head;
}

static mx_status cpu_alloc(mx_device *d, size_t size, void **out, mx_error *err)
{
    size_t padded;
    *out = NULL;
    if (size >= HUGE_PAGE) {
        *out = map_large(size, d->node);
    } else if (mx_add_size(size, ALIGN - 1, &padded)) {
        padded &= ~(size_t)(ALIGN - 1);
        *out = aligned_alloc(ALIGN, padded);
        if (*out) memset(*out, 0, padded);
    }
    if (!*out) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for %zu bytes", d->name, size);
    return MX_OK;
}

static void cpu_release(mx_device *d, void *base, size_t size)
{
    (void)d;
    if (size >= HUGE_PAGE) munmap(base, size);
    else free(base);
}

static mx_status cpu_stream_open(mx_device *d, mx_stream *s, mx_error *err)
{
    (void)d, (void)s, (void)err;
    return MX_OK;
}

static void cpu_stream_close(mx_stream *s)
{
    (void)s;
}

static void cpu_copy_in(mx_stream *s, void *dst, const void *host, size_t n)
{
    if (!s->error.code && n) memcpy(dst, host, n);
}

static void cpu_copy_out(mx_stream *s, void *host, const void *src, size_t n)
{
    if (!s->error.code && n) memcpy(host, src, n);
}

static void cpu_clear(mx_stream *s, void *dst, size_t n)
{
    if (!s->error.code && n) memset(dst, 0, n);
}

/* Ops run when they are called: there is nothing to record. */
static bool cpu_section(mx_stream *s, const void *key, size_t n)
{
    (void)s, (void)key, (void)n;
    return false;
}

static void cpu_section_end(mx_stream *s)
{
    (void)s;
}

static mx_status cpu_sync(mx_stream *s, mx_error *err)
{
    (void)s, (void)err;
    return MX_OK;                       /* every op has returned before the next is called */
}

static unsigned cpu_mark(mx_stream *s)
{
    (void)s;
    return 0;
}

static mx_status cpu_wait(mx_stream *s, unsigned mark, mx_error *err)
{
    (void)mark;
    return cpu_sync(s, err);
}

static bool cpu_lost(mx_device *d)
{
    (void)d;
    return false;
}

static void cpu_enter(mx_device *d)
{
    mx_pool_bind_caller(d->pool);
}

static void cpu_close(mx_device *d)
{
    mx_pool_close(d->pool);
    *d = (mx_device){0};
}

static const mx_device_ops cpu_ops = {
    .alloc = cpu_alloc, .release = cpu_release,
    .stream_open = cpu_stream_open, .stream_close = cpu_stream_close,
    .upload = cpu_copy_in, .download = cpu_copy_out, .clear = cpu_clear,
    .section = cpu_section, .section_end = cpu_section_end, .sync = cpu_sync, .mark = cpu_mark, .wait = cpu_wait, .lost = cpu_lost, .enter = cpu_enter, .close = cpu_close,
};

/* "model name : ..." on x86; what other architectures say instead is less
 * readable than "cpu". */
static void cpu_name(char *out, size_t size)
{
    snprintf(out, size, "cpu");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) return;
    char line[256];
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, "model name", 10) != 0) continue;
        char *value = strchr(line, ':');
        if (value) {
            value += 1 + strspn(value + 1, " \t");
            value[strcspn(value, "\n")] = '\0';
            if (*value) snprintf(out, size, "%.*s", (int)size - 1, value);
        }
        break;
    }
    fclose(f);
}

mx_status mx_device_cpu_open(mx_device *d, const mx_plan_device *at, const mx_device_options *opt, mx_error *err)
{
    *d = (mx_device){.ops = &cpu_ops, .kind = MX_CPU, .index = at->index, .node = -1};
    cpu_name(d->name, sizeof d->name);
    mx_pool_config c = {.threads = at->n_cpus, .cpus = opt->bind ? at->cpus : NULL, .spin_us = opt->spin_us, .nice = opt->nice};
    mx_status st = mx_pool_open(&d->pool, &c, err);
    if (st) *d = (mx_device){0};
    return st;
}
