/* device.h - one place that computes: the host CPU, or one GPU.
 *
 * A device knows memory and order, not math: the math is kernels/ops.h.  A
 * stream is an in-order queue of work on one device.  Errors are sticky: the
 * first op that fails marks the stream, the following ops do nothing, and the
 * caller asks once at the end, with mx_stream_sync().  This is what lets a
 * forward pass be written as a plain list of ops.
 *
 * THREADS: a stream is used by one thread at a time.  A device's memory calls
 * may be made from any thread. */
#ifndef MX_DEVICE_H
#define MX_DEVICE_H

#include "runtime/plan.h"
#include "runtime/pool.h"
#include "runtime/status.h"
#include "runtime/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum mx_device_kind { MX_CPU, MX_CUDA, MX_DEVICE_KIND_COUNT } mx_device_kind;

typedef struct mx_device mx_device;
typedef struct mx_stream mx_stream;

/* One allocation on one device. The only thing that owns tensor memory. */
typedef struct mx_buffer {
    mx_device *dev;
    void      *base;          /* 64-byte aligned on the CPU, 256 on CUDA */
    size_t     size;
} mx_buffer;

/* What a backend must provide: runtime/device_cpu.c, runtime/device_cuda.cu.
 * Every entry is required; there are no optional ones to ask about. */
typedef struct mx_device_ops {
    mx_status (*alloc)(mx_device *d, size_t size, void **out, mx_error *err);
    void      (*release)(mx_device *d, void *base, size_t size);
    mx_status (*stream_open)(mx_device *d, mx_stream *s, mx_error *err);
    void      (*stream_close)(mx_stream *s);
    void      (*upload)(mx_stream *s, void *dst, const void *host, size_t n);
    void      (*download)(mx_stream *s, void *host, const void *src, size_t n);
    void      (*clear)(mx_stream *s, void *dst, size_t n);
    bool      (*section)(mx_stream *s, const void *key, size_t n);
    void      (*section_end)(mx_stream *s);
    mx_status (*sync)(mx_stream *s, mx_error *err);
    unsigned  (*mark)(mx_stream *s);
    mx_status (*wait)(mx_stream *s, unsigned mark, mx_error *err);
    bool      (*lost)(mx_device *d);      /* nothing will work on it again: an error that stays was seen */
    void      (*enter)(mx_device *d);     /* a worker thread starts to serve d: bind it */
    void      (*close)(mx_device *d);
} mx_device_ops;

/* What one holder takes of a device's memory: asked before each allocation, told when it is given back.  Any thread. */
typedef struct mx_device_account {
    mx_status (*take)(void *ctx, size_t bytes, mx_error *err);
    void      (*give)(void *ctx, size_t bytes);
    void       *ctx;
} mx_device_account;

struct mx_device {
    const mx_device_ops *ops;
    mx_device_kind kind;
    int      index;           /* among devices of this kind                     */
    char     name[64];
    char     pci[16];         /* "0000:65:00.0", "" for the CPU                 */
    size_t   memory;          /* bytes                                          */
    size_t   held;            /* of open buffers; mx_device_held() reads it     */
    mx_pool *pool;            /* the CPU device's threads; NULL on CUDA         */
    bool     serves;          /* the plan puts models here                      */
    int      node;            /* NUMA node of its host memory; -1: wherever     */
    int      n_cpus, *cpus;   /* processors of a GPU's worker; 0: not bound     */
    const mx_device_account *account;     /* NULL: nobody is asked                */
    mx_device *whole;         /* of mx_device_for: whose memory it is too; NULL: itself */
    void    *impl;
};

struct mx_stream {
    mx_device *dev;
    mx_error   error;         /* sticky: the first failure, with its op name    */
    mx_buffer  scratch;       /* bump memory, rewound by mx_stream_rewind()     */
    size_t     scratch_used, scratch_peak;
    void      *impl;
};

typedef struct mx_device_options {
    int      cpu_threads;     /* 0: one per core, no more than the CPU quota    */
    bool     bind;            /* bind threads to cores                          */
    int      nice;            /* of CPU devices' threads, mx_pool_config: RPC threads and
                                 express lanes go before                        */
    const mx_plan *plan;      /* where; NULL: one CPU device of cpu_threads, and all GPUs */
    uint32_t spin_us;         /* mx_pool_config                                 */
} mx_device_options;

/* The GPUs that can be asked for, for mx_plan_make(); their number. */
int       mx_device_gpus(mx_plan_gpu *out, int most);

/* All devices of this machine; CPU devices come first.  Each is opened by a thread that
 * stands where its worker will, so that what its driver starts and allocates lies there.
 * The caller closes them.  Errors: MX_ERR_ARG (cpu_threads), MX_ERR_NO_MEMORY, MX_ERR_DEVICE. */
mx_status mx_devices_open(mx_device **out, int *count, const mx_device_options *opt, mx_error *err);
void      mx_devices_close(mx_device *devs, int count);

/* d as the holder of an account has it: what is opened on it is asked for there.  Nothing is to be closed; d and
 * the account outlive it, and it outlives what was opened on it. */
void      mx_device_for(mx_device *out, mx_device *d, const mx_device_account *account);

/* Which of them `names` means: "auto" (the first GPU, else the CPU), "cpu", "cuda",
 * "cuda:N" or several GPUs, "cuda:N,M".  index has room for count of them; *n is
 * how many.  Errors: MX_ERR_ARG, in words that list what there is. */
mx_status mx_devices_find(const mx_device *devs, int count, const char *names, int *index, int *n, mx_error *err);
/* The one that `name` means; several are an error. */
mx_status mx_device_find(const mx_device *devs, int count, const char *name, int *index, mx_error *err);

/* Memory of one can be used by the ops of the other: CPU devices among each other, a device and its twin. */
static inline bool mx_device_shares(const mx_device *a, const mx_device *b)
{
    return a->kind == b->kind && (a->kind == MX_CPU || a->index == b->index);
}

/* A worker thread begins to serve d: binds it to the device's processors. */
void      mx_device_enter(mx_device *d);
/* The same device for a second worker, whose short turns do not wait for the first one's:
 * a CPU gets threads of its own on the same processors, which are prompt and not nice; a
 * GPU nothing but another stream.  d must outlive it.  Errors: MX_ERR_NO_MEMORY. */
mx_status mx_device_twin(mx_device *twin, mx_device *d, mx_error *err);
void      mx_device_twin_close(mx_device *twin);

/* Bytes of buffers that are open; any thread. */
size_t    mx_device_held(const mx_device *d);
/* Zeroed.  size 0 is a buffer with base NULL.  Errors: MX_ERR_NO_MEMORY. */
mx_status mx_buffer_open(mx_buffer *b, mx_device *d, size_t size, mx_error *err);
void      mx_buffer_close(mx_buffer *b);

mx_status mx_stream_open(mx_stream *s, mx_device *d, size_t scratch, mx_error *err);
void      mx_stream_close(mx_stream *s);

/* Scratch memory until the next rewind; contents undefined, rows contiguous.
 * When scratch is exhausted the stream fails with MX_ERR_NO_MEMORY (MX_ERR_ARG:
 * a negative shape, no such dtype) and the tensor's data is NULL: ops see the
 * sticky error and do nothing. */
mx_tensor mx_stream_tensor(mx_stream *s, mx_dtype t, int64_t rows, int64_t cols);
mx_tensor mx_stream_upload(mx_stream *s, mx_dtype t, int64_t rows, int64_t cols, const void *host);
void      mx_stream_rewind(mx_stream *s);
/* What one such call takes; SIZE_MAX when that is negative or overflows. */
size_t    mx_stream_tensor_bytes(mx_dtype t, int64_t rows, int64_t cols);

/* A section is a list of ops that comes again and again on the same memory, as a
 * turn of decoding does.  A GPU records it as a graph and issues it in one piece.
 * True: what stands under this key was issued, and the caller leaves its ops out.
 * False: the caller issues them and then calls mx_stream_section_end(); always so
 * on the CPU.  The key (at most MX_SECTION_KEY bytes) must hold all that the ops
 * depend on but the contents of device memory: shapes, addresses, settings.  What
 * is recorded is forgotten when memory of the device is released.  In a section
 * there are no uploads, downloads and syncs. */
#define MX_SECTION_KEY 256
bool      mx_stream_section(mx_stream *s, const void *key, size_t n);
void      mx_stream_section_end(mx_stream *s);

/* The downloads before a mark can be had while what was issued after it still runs.
 * wait() hands them over and says what went wrong on the device up to there, at the
 * latest; a stream's own sticky error is left to sync().  One mark stands open at a
 * time beside the newest; a sync() reaches them all.  */
unsigned  mx_stream_mark(mx_stream *s);
mx_status mx_stream_wait(mx_stream *s, unsigned mark, mx_error *err);

void      mx_stream_fail(mx_stream *s, mx_status st, const char *fmt, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 3, 4)))
#endif
    ;
mx_status mx_stream_sync(mx_stream *s, mx_error *err);   /* waits; reports and clears the sticky error */

#ifdef __cplusplus
}
#endif
#endif
