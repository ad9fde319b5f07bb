/* plan.c - devices, workers, RPC threads and memory on the processors there are. */
#include "runtime/plan.h"

#include <stdlib.h>
#include <string.h>

#define MOST_DEVICES 256
#define MOST_THREADS 4096

/* One while it is made: who has which processor. */
typedef struct maker {
    mx_plan           *p;
    const mx_topology *t;
    const mx_processor *pu;      /* best first                                     */
    int                n_pus;
    int               *owner;    /* [n_pus] device, or -1                          */
    mx_error          *err;
} maker;

static mx_status no_memory(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "plan: out of memory");
}

static mx_status add_device(maker *m, const char *name, bool gpu, int index, mx_plan_device **out)
{
    mx_plan *p = m->p;
    if (p->n_devices == MOST_DEVICES) return mx_fail(m->err, MX_ERR_ARG, "devices: more than %d", MOST_DEVICES);
    mx_plan_device *d = &p->device[p->n_devices];
    *d = (mx_plan_device){.gpu = gpu, .index = index, .node = -1};
    snprintf(d->name, sizeof d->name, "%s", name);
    d->cpus = calloc((size_t)m->n_pus, sizeof *d->cpus);
    if (!d->cpus) return no_memory(m->err);
    p->n_devices++;
    *out = d;
    return MX_OK;
}

/* The one node that all processors of a device belong to. */
static int node_of(const maker *m, const mx_plan_device *d)
{
    int node = -1;
    for (int i = 0; i < d->n_cpus; i++)
        for (int k = 0; k < m->n_pus; k++) {
            if (m->pu[k].os != d->cpus[i]) continue;
            if (node >= 0 && node != m->pu[k].node_os) return -1;
            node = m->pu[k].node_os;
        }
    return node;
}

/* ---- the settings' words ---------------------------------------------------------------- */

/* "0-7": marks them as `device`'s. */
static mx_status take_range(maker *m, const char *text, size_t len, int device)
{
    char *end;
    char token[32];
    snprintf(token, sizeof token, "%.*s", (int)len, text);
    long first = strtol(token, &end, 10), last = first;
    bool good = end != token;
    if (good && *end == '-') {
        char *from = end + 1;
        last = strtol(from, &end, 10);
        good = end != from;
    }
    if (!good || *end || first < 0 || last < first || last > INT32_MAX - 1)
        return mx_fail(m->err, MX_ERR_ARG, "devices: \"%s\" is no range of processors such as 0-7", token);
    for (long c = first; c <= last; c++) {
        int k = 0;
        while (k < m->n_pus && m->pu[k].os != c) k++;
        if (k == m->n_pus) return mx_fail(m->err, MX_ERR_ARG, "devices: this process may not run on processor %ld", c);
        if (m->owner[k] >= 0) return mx_fail(m->err, MX_ERR_ARG, "devices: processor %ld is given twice", c);
        m->owner[k] = device;
    }
    return MX_OK;
}

/* The processors marked as the device's, one hardware thread of each core first. */
static mx_status fill_cpus(maker *m, mx_plan_device *d, int device, int threads)
{
    int cores = 0, all = 0;
    for (int k = 0; k < m->n_pus; k++)
        if (m->owner[k] == device) {
            d->cpus[all++] = m->pu[k].os;
            cores += m->pu[k].sibling == 0;
        }
    int quota = mx_topology_threads(m->t), most = cores ? cores : all;
    int n = threads ? threads : most < quota ? most : quota;
    if (n > all) {                           /* more threads than processors: they go round */
        int *more = realloc(d->cpus, (size_t)n * sizeof *more);
        if (!more) return no_memory(m->err);
        d->cpus = more;
        for (int i = all; i < n; i++) more[i] = more[i % all];
    }
    d->n_cpus = n;
    d->serves = true;
    d->node = node_of(m, d);
    return MX_OK;
}

static mx_status add_cpu(maker *m, int threads, mx_plan_device **out)
{
    char name[24] = "cpu";
    int index = m->p->n_devices;
    snprintf(name, sizeof name, "cpu:%d", index);
    MX_TRY(add_device(m, name, false, index, out));
    return fill_cpus(m, *out, index, threads);
}

/* A device for each node that has processors. */
static mx_status add_nodes(maker *m, int threads)
{
    int seen[MOST_DEVICES], n = 0;
    for (int k = 0; k < m->n_pus; k++) {
        int i = 0;
        while (i < n && seen[i] != m->pu[k].node_os) i++;
        if (i == MOST_DEVICES) return mx_fail(m->err, MX_ERR_ARG, "devices: more than %d NUMA nodes", MOST_DEVICES);
        if (i == n) seen[n++] = m->pu[k].node_os;
        m->owner[k] = i;
    }
    for (int i = 0; i < n; i++) {
        mx_plan_device *d;
        MX_TRY(add_cpu(m, threads, &d));
    }
    return MX_OK;
}

/* The CPU devices that the words ask for; whole: the whole machine is one. */
static mx_status read_cpus(maker *m, const mx_plan_settings *s, bool *asked)
{
    mx_plan_device *d;
    int sets = 0;
    bool open = false;                       /* a set that further ranges may belong to */
    *asked = false;
    for (const char *at = s->devices; *at;) {
        size_t len = strcspn(at, ",");
        if (len >= 4 && !strncmp(at, "cpu:", 4) && (len != 8 || strncmp(at, "cpu:numa", 8) != 0)) {
            MX_TRY(take_range(m, at + 4, len - 4, sets++));
            open = true;
        } else if (open && *at >= '0' && *at <= '9') {
            MX_TRY(take_range(m, at, len, sets - 1));
        } else {
            bool numa = len == 8 && !strncmp(at, "cpu:numa", 8), whole = len == 3 && !strncmp(at, "cpu", 3);
            if ((numa || whole) && (sets || *asked)) return mx_fail(m->err, MX_ERR_ARG, "devices: \"%.*s\" beside other CPU devices", (int)len, at);
            if (numa) MX_TRY(add_nodes(m, s->threads));
            *asked |= numa || whole;
            open = false;
        }
        at += len;
        at += *at == ',';
    }
    if (sets && *asked) return mx_fail(m->err, MX_ERR_ARG, "devices: sets of processors beside all of the CPU");
    for (int i = 0; i < sets; i++) MX_TRY(add_cpu(m, s->threads, &d));
    *asked |= sets > 0;
    if (m->p->n_devices) return MX_OK;
    for (int k = 0; k < m->n_pus; k++) m->owner[k] = 0;
    MX_TRY(add_cpu(m, s->threads, &d));
    snprintf(d->name, sizeof d->name, "cpu");
    return MX_OK;
}

/* Which GPUs the words ask for. */
static mx_status read_gpus(const mx_plan_settings *s, int n_gpus, bool *wanted, bool *asked, mx_error *err)
{
    *asked = false;
    for (const char *at = s->devices; *at;) {
        size_t len = strcspn(at, ",");
        if (!strncmp(at, "cuda", 4)) {
            char *end = NULL;
            long i = len > 5 && at[4] == ':' ? strtol(at + 5, &end, 10) : -1;
            if (len == 4)
                for (int g = 0; g < n_gpus; g++) wanted[g] = true;
            if (len != 4 && (!end || end != at + len || i < 0 || i >= n_gpus))
                return mx_fail(err, MX_ERR_ARG, "devices: \"%.*s\": this machine has %d GPUs that can be used", (int)len, at, n_gpus);
            if (len != 4) wanted[i] = true;
            if (!n_gpus) return mx_fail(err, MX_ERR_ARG, "devices: \"%.*s\": this machine has 0 GPUs that can be used", (int)len, at);
            *asked = true;
        } else if (!(!strncmp(at, "cpu", 3) && (len == 3 || at[3] == ':')) && !(len == 4 && !strncmp(at, "auto", 4)) && !(*at >= '0' && *at <= '9')) {
            return mx_fail(err, MX_ERR_ARG, "devices: \"%.*s\": write auto, cpu, cpu:numa, cpu:0-7 or cuda:N", (int)len, at);
        }
        at += len;
        at += *at == ',';
    }
    return MX_OK;
}

/* ---- GPUs and RPC threads ------------------------------------------------------------------- */

/* A GPU's worker has a core near it that no other worker has, while there are such. */
static mx_status place_gpu(maker *m, int index, const char *pci, bool serves)
{
    char name[24];
    mx_plan_device *d;
    snprintf(name, sizeof name, "cuda:%d", index);
    MX_TRY(add_device(m, name, true, index, &d));
    snprintf(d->pci, sizeof d->pci, "%s", pci);
    d->serves = serves;
    int best = -1;
    for (int pass = 0; pass < 3 && best < 0; pass++)         /* near and free; near; any */
        for (int k = 0; k < m->n_pus && best < 0; k++)
            if ((pass == 2 || mx_topology_near(m->t, pci, m->pu[k].os)) && (pass || m->owner[k] < 0)) best = k;
    d->near = mx_topology_near(m->t, pci, m->pu[best].os);
    d->cpus[0] = m->pu[best].os;
    d->n_cpus = 1;
    d->node = d->near ? m->pu[best].node_os : -1;
    if (serves && m->owner[best] < 0) m->owner[best] = m->p->n_devices - 1;
    return MX_OK;
}

/* On this device's side of the machine. */
static bool beside(const maker *m, const mx_plan_device *d, int k)
{
    if (d->gpu && d->near) return mx_topology_near(m->t, d->pci, m->pu[k].os);
    return d->gpu || d->node < 0 || m->pu[k].node_os == d->node;
}

static void place_rpc(maker *m, mx_plan_rpc *r, int device)
{
    const mx_plan_device *d = &m->p->device[device];
    r->device = device;
    for (int own = 0; own < 2 && !r->n_cpus; own++)          /* free ones; else those it has */
        for (int k = 0; k < m->n_pus; k++)
            if (beside(m, d, k) && (own ? d->gpu || m->owner[k] == device : m->owner[k] < 0)) r->cpus[r->n_cpus++] = m->pu[k].os;
    if (!r->n_cpus) r->cpus[r->n_cpus++] = d->cpus[0];
}

/* Threads of CPU devices own what they are bound to; a second hardware thread of a core is free. */
static void claim(maker *m)
{
    for (int k = 0; k < m->n_pus; k++) m->owner[k] = -1;
    for (int i = 0; i < m->p->n_devices; i++) {
        const mx_plan_device *d = &m->p->device[i];
        for (int c = 0; d->serves && c < d->n_cpus; c++)
            for (int k = 0; k < m->n_pus; k++)
                if (m->pu[k].os == d->cpus[c]) m->owner[k] = i;
    }
}

static mx_status place_rpcs(maker *m, int wanted)
{
    int cores = mx_topology_threads(m->t), serving = 0, of[MOST_DEVICES];
    int n = wanted ? wanted : cores < 8 ? 1 : cores > 32 ? 8 : cores / 4;
    for (int i = 0; i < m->p->n_devices; i++)
        if (m->p->device[i].serves) of[serving++] = i;
    m->p->rpc = calloc((size_t)n, sizeof *m->p->rpc);
    if (!m->p->rpc) return no_memory(m->err);
    for (int i = 0; i < n; i++) {
        mx_plan_rpc *r = &m->p->rpc[i];
        r->cpus = calloc((size_t)m->n_pus, sizeof *r->cpus);
        if (!r->cpus) return no_memory(m->err);
        m->p->n_rpc++;
        place_rpc(m, r, of[i % serving]);
    }
    return MX_OK;
}

static mx_status make(maker *m, const mx_plan_gpu *gpus, int n_gpus, const mx_plan_settings *s)
{
    bool wanted[MOST_DEVICES] = {0}, cpu, gpu;
    if (n_gpus > MOST_DEVICES / 2) n_gpus = MOST_DEVICES / 2;
    if (s->threads < 0 || s->threads > MOST_THREADS)
        return mx_fail(m->err, MX_ERR_ARG, "threads: %d, must be 0 (one per core) to %d", s->threads, MOST_THREADS);
    if (s->rpc_threads < 0 || s->rpc_threads > 256) return mx_fail(m->err, MX_ERR_ARG, "rpc-threads: %d is not in 0..256", s->rpc_threads);
    MX_TRY(read_gpus(s, n_gpus, wanted, &gpu, m->err));
    MX_TRY(read_cpus(m, s, &cpu));
    if (!gpu && !cpu)                        /* auto */
        for (int g = 0; g < n_gpus; g++) gpu = wanted[g] = true;
    for (int i = 0; i < m->p->n_devices; i++) m->p->device[i].serves = cpu || !gpu;
    claim(m);
    for (int g = 0; g < n_gpus; g++) MX_TRY(place_gpu(m, g, gpus[g].pci, wanted[g]));
    return place_rpcs(m, s->rpc_threads);
}

mx_status mx_plan_make(mx_plan *out, const mx_topology *t, const mx_plan_gpu *gpus, int n_gpus, const mx_plan_settings *s, mx_error *err)
{
    maker m = {.p = out, .t = t, .pu = mx_topology_processors(t), .n_pus = mx_topology_pus(t), .err = err};
    *out = (mx_plan){0};
    out->device = calloc(MOST_DEVICES, sizeof *out->device);
    m.owner = malloc((size_t)m.n_pus * sizeof *m.owner);
    mx_status st = MX_OK;
    if (!out->device || !m.owner) st = no_memory(err);
    for (int k = 0; !st && k < m.n_pus; k++) m.owner[k] = -1;
    if (!st) st = make(&m, gpus, n_gpus, s);
    free(m.owner);
    if (st) mx_plan_free(out);
    return st;
}

void mx_plan_free(mx_plan *p)
{
    for (int i = 0; i < p->n_devices; i++) free(p->device[i].cpus);
    for (int i = 0; i < p->n_rpc; i++) free(p->rpc[i].cpus);
    free(p->device);
    free(p->rpc);
    *p = (mx_plan){0};
}

/* ---- for people ------------------------------------------------------------------------------- */

static int by_number(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

void mx_plan_ranges(const int *cpus, int n, char *text, size_t size)
{
    int sorted[MOST_THREADS];
    size_t at = 0;
    if (n > MOST_THREADS) n = MOST_THREADS;
    if (n) memcpy(sorted, cpus, (size_t)n * sizeof *sorted);
    qsort(sorted, (size_t)n, sizeof *sorted, by_number);
    *text = '\0';
    for (int i = 0; i < n && at + 1 < size;) {
        int last = i;
        while (last + 1 < n && sorted[last + 1] <= sorted[last] + 1) last++;
        int k = sorted[last] > sorted[i] ? snprintf(text + at, size - at, "%s%d-%d", i ? "," : "", sorted[i], sorted[last])
                                         : snprintf(text + at, size - at, "%s%d", i ? "," : "", sorted[i]);
        at += (size_t)k;
        i = last + 1;
    }
}

void mx_plan_print(const mx_plan *p, FILE *out)
{
    char list[256];
    for (int i = 0; i < p->n_devices; i++) {
        const mx_plan_device *d = &p->device[i];
        mx_plan_ranges(d->cpus, d->n_cpus, list, sizeof list);
        fprintf(out, "%-8s %s, ", d->name, d->serves ? "models" : "no models");
        if (d->gpu) fprintf(out, "PCI %s%s, worker on processor %s", d->pci, d->near ? "" : " (place unknown)", list);
        else fprintf(out, "%d threads on processors %s", d->n_cpus, list);
        if (d->node >= 0) fprintf(out, ", memory of node %d", d->node);
        fputc('\n', out);
        int n = 0, first = -1;
        for (int k = 0; k < p->n_rpc; k++)
            if (p->rpc[k].device == i && !n++) first = k;
        if (!n) continue;
        mx_plan_ranges(p->rpc[first].cpus, p->rpc[first].n_cpus, list, sizeof list);
        fprintf(out, "         %d RPC thread%s over processors %s\n", n, n == 1 ? "" : "s", list);
    }
}
