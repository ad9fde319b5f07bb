/* device_cpu.h - the host CPU as a device.  Only runtime/device.c includes it. */
#ifndef MX_DEVICE_CPU_H
#define MX_DEVICE_CPU_H

#include "runtime/device.h"

/* Fills d, starts its thread pool (placed by the topology when opt->bind) and
 * learns its name and memory.  d->ops->close(d) undoes it. */
mx_status mx_device_cpu_open(mx_device *d, const mx_plan_device *at, const mx_device_options *opt, mx_error *err);

#endif
