/* comm_device.h - sums and gathers of device memory; between comm.c and what moves
 * it (comm_nccl.cu).  Nobody else includes this. */
#ifndef MX_COMM_DEVICE_H
#define MX_COMM_DEVICE_H

#include "runtime/comm.h"
#include "runtime/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mx_comm_device_ops {
    /* The host's transport brings the processes together.  MX_ERR_UNAVAILABLE: there is no such library. */
    mx_status (*open)(void **impl, mx_stream *s, mx_comm *host, mx_error *err);
    void      (*close)(void *impl);
    mx_status (*reduce_begin)(void *impl, float *data, size_t count, mx_error *err);
    void      (*reduce_ready)(void *impl, size_t first, size_t n);
    mx_status (*reduce_wait)(void *impl, mx_error *err);
    mx_status (*gather)(void *impl, float *data, size_t count, mx_error *err);
} mx_comm_device_ops;

extern const mx_comm_device_ops mx_comm_nccl;      /* comm_nccl.cu, in builds with CUDA */

#ifdef __cplusplus
}
#endif
#endif
