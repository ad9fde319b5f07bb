/* device_cuda.h - a GPU as a device, and what kernels/cuda needs of its streams
 * beyond runtime/device.h.  No CUDA header is needed to include this: only
 * runtime/device.c, runtime/device_cuda.cu and kernels/cuda do.
 *
 * ORDER: all work of an mx_stream goes to one CUDA stream.  Uploads pass through a
 * ring of pinned memory and do not wait; downloads land in pinned memory and reach
 * the caller at mx_stream_sync(), or at mx_stream_wait() for a mark behind them.
 *
 * ERRORS: a failed CUDA call marks the stream.  What only a kernel can see, such
 * as an id outside a table, it writes into the stream's fault record (pinned
 * memory), which the next sync turns into an error; the kernel itself skips what
 * it must not touch. */
#ifndef MX_DEVICE_CUDA_H
#define MX_DEVICE_CUDA_H

#include "runtime/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* How many devices there are; 0 as well when there is no driver. */
int       mx_device_cuda_count(void);
/* "0000:65:00.0"; "" when it cannot be asked. */
void      mx_device_cuda_pci(int index, char *out, int size);
/* Fills d for device `index` of those.  d->ops->close(d) undoes it.
 * Errors: MX_ERR_DEVICE, MX_ERR_NO_MEMORY. */
mx_status mx_device_cuda_open(mx_device *d, int index, mx_error *err);

typedef enum mx_cuda_fault_kind {
    MX_CUDA_FINE, MX_CUDA_EMBED_ID, MX_CUDA_KV_SLOT, MX_CUDA_KV_PAGE, MX_CUDA_AT, MX_CUDA_LIST_ID, MX_CUDA_TARGET,
    MX_CUDA_SPAN, MX_CUDA_NEIGHBOUR, MX_CUDA_ACTION, MX_CUDA_TRANSITION, MX_CUDA_EMPTY_TREE, MX_CUDA_SEAT,
    MX_CUDA_FAULTS
} mx_cuda_fault_kind;

typedef struct mx_cuda_fault {
    int     kind;             /* mx_cuda_fault_kind; the first one stays */
    int     value;
    int64_t row;
} mx_cuda_fault;

/* The cudaStream_t of s; its device becomes the thread's. */
void          *mx_cuda_queue(mx_stream *s);
mx_cuda_fault *mx_cuda_faults(mx_stream *s);
/* Device memory for one op, 256-byte aligned, contents undefined; the next call
 * gives the same memory again.  NULL after marking s with MX_ERR_NO_MEMORY. */
void          *mx_cuda_work(mx_stream *s, size_t size);
/* True when the cudaError_t is no error; else s is marked, in the words of `op`. */
bool           mx_cuda_ok(mx_stream *s, int error, const char *op);
int            mx_cuda_processors(const mx_device *d);

/* The device's own stream for loading weights, held by one thread at a time:
 * done() lets it go.  NULL with err set. */
mx_stream     *mx_cuda_loader(mx_device *d, mx_error *err);
void           mx_cuda_loader_done(mx_device *d);

/* Slots of the device for libraries: matrix products, attention.  Closed with it. */
typedef enum mx_cuda_slot { MX_CUDA_PRODUCTS, MX_CUDA_ATTENTION, MX_CUDA_SLOTS } mx_cuda_slot;
typedef struct mx_cuda_library {
    void *impl;
    void (*close)(void *impl);
} mx_cuda_library;
mx_cuda_library *mx_cuda_library_of(mx_device *d, mx_cuda_slot slot);      /* touch it with the loader held */

#ifdef __cplusplus
}
#endif
#endif
