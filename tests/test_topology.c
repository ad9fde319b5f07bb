/* test_topology.c - placement on machines we do not have, limits on the one we do. */
#include "runtime/cgroup.h"
#include "runtime/topology.h"
#include "tests/test.h"

#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#define XML MX_SOURCE_DIR "/tests/topologies/two_packages_four_gpus.xml"

static mx_topology *open_topology(const char *source)
{
    mx_topology *t;
    mx_error err = {0};
    CHECK_OK(mx_topology_open(&t, source, &err), err);
    return t;
}

/* One line per machine: what is in it and the order of its processors. */
static void machines(void)
{
    static const struct {
        const char *source;
        int cores, pus, nodes, threads;
        int cpus[10];
    } cases[] = {
        {"package:1 core:2 pu:1", 2, 2, 1, 4, {0, 1, 0, 1}},
        {"pu:4", 4, 4, 1, 5, {0, 1, 2, 3, 0}},
        {"package:1 core:2 pu:2", 2, 4, 1, 6, {0, 2, 1, 3, 0, 2}},
        {"package:2 numa:1 core:2 pu:2", 4, 8, 2, 10, {0, 2, 4, 6, 1, 3, 5, 7, 0, 2}},
        {"package:2 numa:1 core:2 pu:1", 4, 4, 2, 4, {0, 1, 2, 3}},
        {"package:1 numa:2 core:1 pu:2", 2, 4, 2, 4, {0, 2, 1, 3}},
        {XML, 8, 16, 2, 10, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_topology *t = open_topology(cases[i].source);
        if (!t) continue;
        CHECK_MSG(mx_topology_cores(t) == cases[i].cores, "%s: %d cores", cases[i].source, mx_topology_cores(t));
        CHECK_MSG(mx_topology_pus(t) == cases[i].pus, "%s: %d", cases[i].source, mx_topology_pus(t));
        CHECK_MSG(mx_topology_numa_nodes(t) == cases[i].nodes, "%s: %d", cases[i].source, mx_topology_numa_nodes(t));
        CHECK(mx_topology_threads(t) == cases[i].cores);
        CHECK(!mx_topology_is_this_system(t));
        int cpus[10];
        mx_topology_place(t, cases[i].threads, cpus);
        for (int k = 0; k < cases[i].threads; k++)
            CHECK_MSG(cpus[k] == cases[i].cpus[k], "%s: thread %d on %d, want %d", cases[i].source, k, cpus[k],
                      cases[i].cpus[k]);
        mx_topology_close(t);
    }
}

static void description(void)
{
    mx_topology *t = open_topology(XML);
    if (!t) return;
    char text[1000];
    mx_topology_describe(t, text, sizeof text);
    CHECK_STR(text, "2 packages, 2 NUMA nodes, 8 cores, 16 hardware threads, 128.0 GiB\n"
                    "  node 0: processors 0-3,8-11, 64.0 GiB, PCI 0000:11:00.0 (NVIDIA Corporation), "
                    "PCI 0000:12:00.0 (NVIDIA Corporation)\n"
                    "  node 1: processors 4-7,12-15, 64.0 GiB, PCI 0000:91:00.0 (NVIDIA Corporation), "
                    "PCI 0000:92:00.0 (NVIDIA Corporation)");
    for (size_t size = 1; size < 200; size++) {
        char small[200];
        memset(small, 'x', sizeof small);
        mx_topology_describe(t, small, size);
        CHECK(strlen(small) == size - 1 && strncmp(small, text, size - 1) == 0);
        if (size < sizeof small) CHECK(small[size] == 'x');
    }
    mx_topology_close(t);
}

static void bad_sources(void)
{
    mx_topology *t;
    mx_error err = {0};
    CHECK(mx_topology_open(&t, MX_SOURCE_DIR "/no/such.xml", &err) == MX_ERR_IO && !t);
    CHECK(strstr(err.text, "such.xml") != NULL);
    CHECK(mx_topology_open(&t, "a machine", &err) == MX_ERR_FORMAT && !t);
    CHECK(mx_topology_open(&t, "package:0", &err) == MX_ERR_FORMAT && !t);
    char path[] = MX_BINARY_DIR "/bad-XXXXXX.xml";
    int fd = mkstemps(path, 4);
    if (fd < 0) {
        CHECK(fd >= 0);
        return;
    }
    CHECK(write(fd, "<topology>\n<object", 18) == 18);
    close(fd);
    fflush(stderr);
    CHECK(mx_topology_open(&t, path, &err) == MX_ERR_FORMAT && !t);
    unlink(path);
}

static void this_machine(void)
{
    cpu_set_t old, one;
    CHECK(sched_getaffinity(0, sizeof old, &old) == 0);
    mx_topology *t = open_topology(NULL);
    if (!t) return;
    CHECK(mx_topology_is_this_system(t));
    CHECK_MSG(mx_topology_pus(t) == CPU_COUNT(&old), "%d, affinity %d", mx_topology_pus(t), CPU_COUNT(&old));
    CHECK(mx_topology_cores(t) >= 1 && mx_topology_cores(t) <= mx_topology_pus(t));
    CHECK(mx_topology_threads(t) >= 1 && mx_topology_threads(t) <= mx_topology_cores(t));
    CHECK(mx_topology_memory(t) > (1u << 20));
    int cpus[64];
    mx_topology_place(t, 64, cpus);
    for (int i = 0; i < 64; i++) CHECK(CPU_ISSET(cpus[i], &old));
    char text[1000];
    mx_topology_describe(t, text, sizeof text);
    printf("  %s\n", text);
    mx_topology_close(t);

    /* What taskset takes away is not there. */
    int last = 0;
    for (int i = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &old)) last = i;
    CPU_ZERO(&one);
    CPU_SET(last, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    t = open_topology(NULL);
    if (t) {
        CHECK(mx_topology_pus(t) == 1 && mx_topology_cores(t) == 1 && mx_topology_threads(t) == 1);
        mx_topology_place(t, 2, cpus);
        CHECK(cpus[0] == last && cpus[1] == last);
        mx_topology_close(t);
    }
    CHECK(sched_setaffinity(0, sizeof old, &old) == 0);
}

/* ---- control groups, from files we write ------------------------------------ */

static char root[] = MX_BINARY_DIR "/cgroup-XXXXXX";

static void put_file(const char *path, const char *text)
{
    char full[4096];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = '\0';
        mkdir(full, 0755);
        *slash = '/';
    }
    FILE *f = fopen(full, "w");
    CHECK(f != NULL);
    if (!f) return;
    fputs(text, f);
    fclose(f);
}

static void control_groups(void)
{
    CHECK(mkdtemp(root) != NULL);
    mx_cgroup g = mx_cgroup_read(root);
    CHECK(g.memory == SIZE_MAX && g.cpus == 0);

    put_file("proc/self/cgroup", "0::/a/b\n");
    put_file("sys/fs/cgroup/a/b/memory.max", "max\n");
    put_file("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
    g = mx_cgroup_read(root);
    CHECK(g.memory == SIZE_MAX && g.cpus == 0);
    put_file("sys/fs/cgroup/a/memory.max", "1073741824\n");       /* a parent's limit binds the child */
    put_file("sys/fs/cgroup/a/cpu.max", "250000 100000\n");
    g = mx_cgroup_read(root);
    CHECK(g.memory == 1073741824 && g.cpus == 2.5);
    put_file("sys/fs/cgroup/a/b/memory.max", "1048576\n");
    put_file("sys/fs/cgroup/a/b/cpu.max", "50000 100000\n");
    g = mx_cgroup_read(root);
    CHECK(g.memory == 1048576 && g.cpus == 0.5);

    put_file("proc/self/cgroup", "9:name=systemd:/\n4:memory:/job/7\n2:cpuacct,cpu:/job/7\n0::/\n");
    put_file("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put_file("sys/fs/cgroup/memory/job/7/memory.limit_in_bytes", "2097152\n");
    put_file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "300000\n");   /* the mount point, as containers see it */
    put_file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    g = mx_cgroup_read(root);
    CHECK_MSG(g.memory == 2097152 && g.cpus == 3, "%zu, %g", g.memory, g.cpus);
    put_file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    CHECK(mx_cgroup_read(root).cpus == 0);

    put_file("proc/self/cgroup", "nonsense\n:\n::\n1:memory\n\n0::\n");
    g = mx_cgroup_read(root);
    CHECK(g.memory == SIZE_MAX && g.cpus == 0);
}

MX_TESTS(TEST(machines), TEST(description), TEST(bad_sources), TEST(this_machine),
         TEST(control_groups))
