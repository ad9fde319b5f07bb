/* topology.c - the machine as hwloc sees it, ordered for placement once. */
#include "runtime/topology.h"

#include "runtime/cgroup.h"

#include <hwloc.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mx_topology {
    hwloc_topology_t hw;
    mx_processor *order;  /* n_places entries, best first */
    int       n_places, cores, nodes, threads;
    size_t    memory;
    bool      this_system;
};

static int by_place(const void *a, const void *b)
{
    const mx_processor *x = a, *y = b;
    if (x->sibling != y->sibling) return x->sibling < y->sibling ? -1 : 1;
    if (x->node != y->node) return x->node < y->node ? -1 : 1;
    return x->core < y->core ? -1 : x->core > y->core;
}

static int count(hwloc_topology_t hw, hwloc_obj_type_t type)
{
    int n = hwloc_get_nbobjs_by_type(hw, type);
    return n > 0 ? n : 0;
}

/* Rank of a hardware thread among those of its core; without cores (some
 * virtual machines, "pu:4") every one is its own core. */
static unsigned sibling_rank(hwloc_topology_t hw, hwloc_obj_t pu)
{
    hwloc_obj_t core = hwloc_get_ancestor_obj_by_type(hw, HWLOC_OBJ_CORE, pu);
    if (!core) return 0;
    unsigned rank = 0;
    hwloc_obj_t o = NULL;
    while ((o = hwloc_get_next_obj_inside_cpuset_by_type(hw, core->cpuset, HWLOC_OBJ_PU, o)) && o != pu) rank++;
    return rank;
}

/* The node whose processors hold this one: memory of accelerators and CXL is a node as well,
 * without processors of its own. */
static hwloc_obj_t node_of(hwloc_topology_t hw, hwloc_obj_t pu)
{
    hwloc_obj_t first = NULL;
    for (hwloc_obj_t n = NULL; (n = hwloc_get_next_obj_by_type(hw, HWLOC_OBJ_NUMANODE, n));) {
        if (hwloc_bitmap_isset(n->cpuset, pu->os_index)) return n;
        if (!first) first = n;
    }
    return first;
}

static mx_status order_places(mx_topology *t, mx_error *err)
{
    t->n_places = count(t->hw, HWLOC_OBJ_PU);
    if (t->n_places < 1) return mx_fail(err, MX_ERR_FORMAT, "topology: no processor in it");
    t->cores = count(t->hw, HWLOC_OBJ_CORE);
    if (!t->cores) t->cores = t->n_places;
    t->nodes = count(t->hw, HWLOC_OBJ_NUMANODE);
    t->order = calloc((size_t)t->n_places, sizeof *t->order);
    if (!t->order) return mx_fail(err, MX_ERR_NO_MEMORY, "topology: out of memory");
    for (int i = 0; i < t->n_places; i++) {
        hwloc_obj_t pu = hwloc_get_obj_by_type(t->hw, HWLOC_OBJ_PU, (unsigned)i);
        if (pu->os_index > INT_MAX / 2) return mx_fail(err, MX_ERR_FORMAT, "topology: processor %d has no number", i);
        hwloc_obj_t numa = node_of(t->hw, pu), core = hwloc_get_ancestor_obj_by_type(t->hw, HWLOC_OBJ_CORE, pu);
        hwloc_obj_t package = hwloc_get_ancestor_obj_by_type(t->hw, HWLOC_OBJ_PACKAGE, pu);
        t->order[i] = (mx_processor){
            .os = (int)pu->os_index,
            .core = core ? (int)core->logical_index : i,
            .node = numa ? (int)numa->logical_index : 0,
            .node_os = numa ? (int)numa->os_index : 0,
            .package = package ? (int)package->logical_index : 0,
            .sibling = sibling_rank(t->hw, pu),
        };
    }
    qsort(t->order, (size_t)t->n_places, sizeof *t->order, by_place);
    return MX_OK;
}

/* Loads only what placement reads.  The opencl and gl plugins would start GPU
 * drivers and take most of the loading time; libpciaccess, behind "pci", leaks,
 * and on Linux hwloc reads the same from sysfs without it. */
static mx_status load(mx_topology *t, const char *source, mx_error *err)
{
    if (hwloc_topology_init(&t->hw)) return mx_fail(err, MX_ERR_NO_MEMORY, "topology: out of memory");
    hwloc_topology_set_components(t->hw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "opencl");
    hwloc_topology_set_components(t->hw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "gl");
    hwloc_topology_set_components(t->hw, HWLOC_TOPOLOGY_COMPONENTS_FLAG_BLACKLIST, "pci");
    hwloc_topology_set_all_types_filter(t->hw, HWLOC_TYPE_FILTER_KEEP_NONE);
    hwloc_topology_set_type_filter(t->hw, HWLOC_OBJ_PACKAGE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t->hw, HWLOC_OBJ_CORE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t->hw, HWLOC_OBJ_L1CACHE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t->hw, HWLOC_OBJ_L2CACHE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t->hw, HWLOC_OBJ_L3CACHE, HWLOC_TYPE_FILTER_KEEP_ALL);
    hwloc_topology_set_type_filter(t->hw, HWLOC_OBJ_PCI_DEVICE, HWLOC_TYPE_FILTER_KEEP_IMPORTANT);
    if (!source) {
        /* taskset limits are a binding, not an allowed set: ask for both. */
        unsigned long flags = HWLOC_TOPOLOGY_FLAG_IS_THISSYSTEM | HWLOC_TOPOLOGY_FLAG_RESTRICT_TO_CPUBINDING |
                              HWLOC_TOPOLOGY_FLAG_DONT_CHANGE_BINDING;
        if (hwloc_topology_set_flags(t->hw, flags) || hwloc_topology_load(t->hw))
            return mx_fail(err, MX_ERR_DEVICE, "topology: hwloc cannot load this machine");
        t->this_system = hwloc_topology_is_thissystem(t->hw) != 0;
        return MX_OK;
    }
    size_t len = strlen(source);
    if (len > 4 && strcmp(source + len - 4, ".xml") == 0) {
        FILE *f = fopen(source, "re");
        if (!f) return mx_fail(err, MX_ERR_IO, "topology: cannot open %s", source);
        fclose(f);
        if (hwloc_topology_set_xml(t->hw, source) || hwloc_topology_load(t->hw))
            return mx_fail(err, MX_ERR_FORMAT, "topology: %s is not an hwloc XML file", source);
        return MX_OK;
    }
    if (hwloc_topology_set_synthetic(t->hw, source) || hwloc_topology_load(t->hw))
        return mx_fail(err, MX_ERR_FORMAT, "topology: \"%s\" is not an hwloc synthetic description", source);
    return MX_OK;
}

static void apply_limits(mx_topology *t)
{
    uint64_t memory = hwloc_get_root_obj(t->hw)->total_memory;
    t->memory = memory > SIZE_MAX ? SIZE_MAX : (size_t)memory;
    t->threads = t->cores;
    if (!t->this_system) return;
    mx_cgroup g = mx_cgroup_read("");
    if (g.memory < t->memory) t->memory = g.memory;
    if (g.cpus > 0 && g.cpus < (double)t->threads) t->threads = (int)(g.cpus + 0.5);
    if (t->threads < 1) t->threads = 1;
}

mx_status mx_topology_open(mx_topology **out, const char *xml_or_synthetic, mx_error *err)
{
    *out = NULL;
    mx_topology *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "topology: out of memory");
    mx_status st;
    MX_TRY_GOTO(st, load(t, xml_or_synthetic, err), fail);
    MX_TRY_GOTO(st, order_places(t, err), fail);
    apply_limits(t);
    *out = t;
    return MX_OK;
fail:
    mx_topology_close(t);
    return st;
}

void mx_topology_close(mx_topology *t)
{
    if (!t) return;
    free(t->order);
    if (t->hw) hwloc_topology_destroy(t->hw);
    free(t);
}

int mx_topology_cores(const mx_topology *t)
{
    return t->cores;
}

int mx_topology_pus(const mx_topology *t)
{
    return t->n_places;
}

int mx_topology_numa_nodes(const mx_topology *t)
{
    return t->nodes;
}

int mx_topology_threads(const mx_topology *t)
{
    return t->threads;
}

size_t mx_topology_memory(const mx_topology *t)
{
    return t->memory;
}

void mx_topology_place(const mx_topology *t, int threads, int *cpus)
{
    for (int i = 0; i < threads; i++) cpus[i] = t->order[i % t->n_places].os;
}

const mx_processor *mx_topology_processors(const mx_topology *t)
{
    return t->order;
}

bool mx_topology_near(const mx_topology *t, const char *pci, int os)
{
    hwloc_obj_t dev = pci && *pci ? hwloc_get_pcidev_by_busidstring(t->hw, pci) : NULL;
    hwloc_obj_t host = dev ? hwloc_get_non_io_ancestor_obj(t->hw, dev) : NULL;
    return host && os >= 0 && hwloc_bitmap_isset(host->cpuset, (unsigned)os);
}

bool mx_topology_is_this_system(const mx_topology *t)
{
    return t->this_system;
}

/* ---- for people ------------------------------------------------------------ */

typedef struct writer {
    char  *at;
    size_t left;
} writer;

static void put(writer *w, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void put(writer *w, const char *fmt, ...)
{
    if (w->left < 2) return;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(w->at, w->left, fmt, ap);
    va_end(ap);
    if (n < 0) return;
    size_t used = (size_t)n < w->left ? (size_t)n : w->left - 1;
    w->at += used;
    w->left -= used;
}

static void put_count(writer *w, int n, const char *one, const char *many)
{
    put(w, "%d %s", n, n == 1 ? one : many);
}

static double gib(uint64_t bytes)
{
    return (double)bytes / (double)(1 << 30);
}

/* Display (03xx) and processing-accelerator (12xx) classes. */
static bool is_accelerator(hwloc_obj_t dev)
{
    unsigned class = dev->attr->pcidev.class_id >> 8;
    return class == 0x03 || class == 0x12;
}

int mx_topology_accelerators(const mx_topology *t, mx_plan_gpu *out, int most)
{
    enum { NVIDIA = 0x10de };
    int n = 0;
    for (hwloc_obj_t d = NULL; n < most && (d = hwloc_get_next_pcidev(t->hw, d));)
        if (is_accelerator(d) && d->attr->pcidev.vendor_id == NVIDIA)
            snprintf(out[n++].pci, sizeof out->pci, "%04x:%02x:%02x.%u", d->attr->pcidev.domain & 0xffffu, d->attr->pcidev.bus, d->attr->pcidev.dev,
                     d->attr->pcidev.func & 7u);
    return n;
}

static void put_accelerators(writer *w, const mx_topology *t, hwloc_obj_t node)
{
    for (hwloc_obj_t d = NULL; (d = hwloc_get_next_pcidev(t->hw, d));) {
        hwloc_obj_t host = hwloc_get_non_io_ancestor_obj(t->hw, d);
        if (!is_accelerator(d) || !host) continue;
        if (node && (!host->nodeset || hwloc_bitmap_first(host->nodeset) != (int)node->os_index)) continue;
        put(w, ", PCI %04x:%02x:%02x.%u", d->attr->pcidev.domain, d->attr->pcidev.bus, d->attr->pcidev.dev,
            d->attr->pcidev.func);
        const char *vendor = hwloc_obj_get_info_by_name(d, "PCIVendor");
        if (vendor) put(w, " (%s)", vendor);
    }
}

void mx_topology_describe(const mx_topology *t, char *text, size_t size)
{
    if (!size) return;
    *text = '\0';
    writer w = {text, size};
    int packages = count(t->hw, HWLOC_OBJ_PACKAGE);
    if (packages) {
        put_count(&w, packages, "package", "packages");
        put(&w, ", ");
    }
    put_count(&w, t->nodes, "NUMA node", "NUMA nodes");
    put(&w, ", ");
    put_count(&w, t->cores, "core", "cores");
    if (t->n_places != t->cores) put(&w, ", %d hardware threads", t->n_places);
    put(&w, ", %.1f GiB", gib(t->memory));
    if (t->nodes < 2) {
        put_accelerators(&w, t, NULL);
        return;
    }
    for (int i = 0; i < t->nodes; i++) {
        hwloc_obj_t node = hwloc_get_obj_by_type(t->hw, HWLOC_OBJ_NUMANODE, (unsigned)i);
        char *list = NULL;
        int n = hwloc_bitmap_list_asprintf(&list, node->cpuset);
        put(&w, "\n  node %u: processors %s, %.1f GiB", node->os_index, n < 0 || !list || !*list ? "none" : list,
            gib(node->attr->numanode.local_memory));
        free(list);
        put_accelerators(&w, t, node);
    }
}

static void put_size(writer *w, uint64_t bytes)
{
    if (bytes >= (uint64_t)1 << 20) put(w, "%.4g MiB", (double)bytes / (1 << 20));
    else put(w, "%.4g KiB", (double)bytes / (1 << 10));
}

void mx_topology_describe_caches(const mx_topology *t, char *text, size_t size)
{
    static const hwloc_obj_type_t kinds[] = {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE};
    static const char *const names[] = {"L1d", "L2", "L3"};
    if (!size) return;
    *text = '\0';
    writer w = {text, size};
    for (int i = 0; i < 3; i++) {
        int n = count(t->hw, kinds[i]);
        hwloc_obj_t first = n ? hwloc_get_obj_by_type(t->hw, kinds[i], 0) : NULL;
        if (!first) continue;
        int cores = hwloc_get_nbobjs_inside_cpuset_by_type(t->hw, first->cpuset, HWLOC_OBJ_CORE);
        put(&w, "%s%s ", *text ? ", " : "", names[i]);
        put_size(&w, first->attr->cache.size);
        put(&w, " x %d", n);
        if (cores > 1) put(&w, " (%d cores each)", cores);
    }
}
