/* plan.h - what runs where: computed from the topology, the devices and the settings
 * alone, before anything is started; so tests ask it about machines we do not have.
 *
 * A CPU device is a set of processors with a thread on each core; several of them
 * carve the machine.  A GPU has a worker on a core near its PCI bus.  RPC threads
 * float over the processors near their device that no worker has, or over the
 * device's own where none is left.  Memory of a device comes from its NUMA node. */
#ifndef MX_PLAN_H
#define MX_PLAN_H

#include "runtime/topology.h"

#include <stdio.h>

typedef struct mx_plan_settings {
    /* Where models run: "auto" (all GPUs, else the CPU), "cpu", "cpu:numa" (a device for each
     * NUMA node), "cpu:0-7,cpu:8-15" (a device for each set), "cuda", "cuda:0,cuda:2". */
    const char *devices;
    int  threads;                /* of each CPU device; 0: its cores, within the cgroup's quota */
    int  rpc_threads;            /* 0: by the cores                                       */
} mx_plan_settings;

typedef struct mx_plan_device {
    char  name[24];              /* "cpu", "cpu:1", "cuda:0"                              */
    bool  gpu;
    int   index;                 /* among those of its kind                               */
    bool  serves;                /* models run here                                       */
    bool  near;                  /* a GPU that the topology knows                         */
    int   node;                  /* OS number of the NUMA node of its memory; -1: no one  */
    char  pci[16];
    int   n_cpus, *cpus;         /* processors of its threads, the worker's first         */
} mx_plan_device;

typedef struct mx_plan_rpc {
    int   device;                /* whose neighbour it is                                 */
    int   n_cpus, *cpus;         /* processors it floats over                             */
} mx_plan_rpc;

typedef struct mx_plan {
    int   n_devices, n_rpc;
    mx_plan_device *device;      /* CPU devices first, then the GPUs in their order       */
    mx_plan_rpc    *rpc;
} mx_plan;

/* Errors: MX_ERR_ARG in words that name the token and what there is; MX_ERR_NO_MEMORY. */
mx_status mx_plan_make(mx_plan *out, const mx_topology *t, const mx_plan_gpu *gpus, int n_gpus, const mx_plan_settings *s, mx_error *err);
void      mx_plan_free(mx_plan *p);          /* a zeroed one is fine */

/* A line for each device and what stands beside it. */
void      mx_plan_print(const mx_plan *p, FILE *out);
/* The machine as a picture: packages, nodes, cores, GPUs, in the colour of what runs there. */
mx_status mx_plan_svg(const mx_plan *p, const mx_topology *t, FILE *out, mx_error *err);
/* "0-3,8": sorted; cut when it does not fit. */
void      mx_plan_ranges(const int *cpus, int n, char *text, size_t size);

#endif
