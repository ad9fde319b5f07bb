/* cgroup.h - what the kernel lets this process have, whatever the machine has.
 * Only runtime/topology.c and its test need this header. */
#ifndef MX_CGROUP_H
#define MX_CGROUP_H

#include <stddef.h>

typedef struct mx_cgroup {
    size_t memory;      /* bytes; SIZE_MAX: no limit                             */
    double cpus;        /* processors' worth of time per second; 0: no limit     */
} mx_cgroup;

/* The tightest limit of the process's cgroup and all its parents, version 1
 * and 2.  root: "" for this machine, or a folder that holds proc/ and sys/.
 * What cannot be read limits nothing. */
mx_cgroup mx_cgroup_read(const char *root);

#endif
