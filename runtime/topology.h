/* topology.h - the shape of this machine, and who should run where.
 *
 * The only file behind this header that includes <hwloc.h> is topology.c.  It
 * respects cgroup and taskset limits (the processors hwloc says are allowed).
 * The topology is loaded once and read by anybody. */
#ifndef MX_TOPOLOGY_H
#define MX_TOPOLOGY_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct mx_topology mx_topology;

typedef struct mx_plan_gpu {
    char pci[16];             /* "0000:65:00.0" */
} mx_plan_gpu;

/* xml_or_synthetic: NULL for this machine, "*.xml" for a file, anything else
 * is an hwloc synthetic description ("package:2 core:4 pu:2").
 * Errors: MX_ERR_IO (file), MX_ERR_FORMAT (description). */
mx_status mx_topology_open(mx_topology **out, const char *xml_or_synthetic, mx_error *err);
void      mx_topology_close(mx_topology *t);

/* One hardware thread. */
typedef struct mx_processor {
    int      os;              /* the OS's number                          */
    int      core, node, package;     /* logical numbers                  */
    int      node_os;         /* the OS's number of its NUMA node         */
    unsigned sibling;         /* 0: first hardware thread of its core     */
} mx_processor;
/* [mx_topology_pus], those allowed to us, in the order in which threads are placed: one
 * hardware thread per core first, cores of one NUMA node before the next. */
const mx_processor *mx_topology_processors(const mx_topology *t);
/* PCI bus ids of NVIDIA's GPUs in it, in the order of the buses: what a fixture has for a driver. */
int    mx_topology_accelerators(const mx_topology *t, mx_plan_gpu *out, int most);
/* The processor is on the side of the machine that the PCI device `pci` is on. */
bool   mx_topology_near(const mx_topology *t, const char *pci, int os);

int    mx_topology_cores(const mx_topology *t);       /* physical cores allowed to us   */
int    mx_topology_pus(const mx_topology *t);         /* hardware threads allowed to us */
int    mx_topology_numa_nodes(const mx_topology *t);
/* Threads worth starting: the cores, but no more than the cgroup's CPU quota
 * lets run at once (a container with 2 CPUs of 64); at least 1. */
int    mx_topology_threads(const mx_topology *t);
size_t mx_topology_memory(const mx_topology *t);      /* bytes; cgroup limit respected  */

/* The processors for a CPU device with `threads` threads: one hardware thread
 * per core first, cores of one NUMA node before the next.  Fills cpus[threads]
 * with OS processor numbers; wraps round when there are fewer. */
void   mx_topology_place(const mx_topology *t, int threads, int *cpus);

/* True when binding would take effect: the real machine, not a fixture. */
bool   mx_topology_is_this_system(const mx_topology *t);

/* A few lines a person can read: "1 package, 1 NUMA node, 2 cores, 23.4 GiB";
 * with several NUMA nodes, one line for each: its processors, memory and PCI
 * accelerators.  Always terminated; cut when `size` is too small. */
void   mx_topology_describe(const mx_topology *t, char *text, size_t size);
/* "L1d 48 KiB x 2, L2 2 MiB x 2, L3 33 MiB x 1 (2 cores each)"; the first of
 * each level stands for all.  Empty when none is known; terminated and cut as above. */
void   mx_topology_describe_caches(const mx_topology *t, char *text, size_t size);

#endif
