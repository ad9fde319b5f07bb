/* cgroup.c - memory and CPU limits of control groups (kernel documentation,
 * admin-guide/cgroup-v2 and cgroup-v1/memory, scheduler/sched-bwc). */
#include "runtime/cgroup.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_SIZE 4200

static int read_text(const char *path, char *text, size_t size)
{
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    size_t n = fread(text, 1, size - 1, f);
    fclose(f);
    text[n] = '\0';
    return n > 0;
}

static void limit_memory(mx_cgroup *g, const char *text)
{
    char *end;
    unsigned long long v = strtoull(text, &end, 10);     /* "max" reads as no digits */
    if (end != text && v < g->memory) g->memory = (size_t)v;
}

static void limit_cpus(mx_cgroup *g, double quota, double period)
{
    if (quota <= 0 || period <= 0) return;               /* -1: no limit */
    double cpus = quota / period;
    if (g->cpus == 0 || cpus < g->cpus) g->cpus = cpus;
}

/* One folder of one hierarchy; which files are there tells what it controls. */
static void read_folder(mx_cgroup *g, const char *folder)
{
    char path[PATH_SIZE + 32], text[128], more[128];
    snprintf(path, sizeof path, "%s/memory.max", folder);
    if (read_text(path, text, sizeof text)) limit_memory(g, text);
    snprintf(path, sizeof path, "%s/memory.limit_in_bytes", folder);
    if (read_text(path, text, sizeof text)) limit_memory(g, text);
    snprintf(path, sizeof path, "%s/cpu.max", folder);
    if (read_text(path, text, sizeof text)) {
        char *end;
        double quota = strtod(text, &end);
        if (end != text) limit_cpus(g, quota, strtod(end, NULL));
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", folder);
    if (!read_text(path, text, sizeof text)) return;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
    if (read_text(path, more, sizeof more)) limit_cpus(g, strtod(text, NULL), strtod(more, NULL));
}

/* The group's own folder and its parents up to the mount point: a container
 * often sees only the latter. */
static void read_upwards(mx_cgroup *g, const char *mount, const char *group)
{
    char path[PATH_SIZE];
    int n = snprintf(path, sizeof path, "%s%s", mount, group);
    if (n < 0 || (size_t)n >= sizeof path) return;
    size_t least = strlen(mount), len = (size_t)n;
    for (;;) {
        while (len > least && path[len - 1] == '/') path[--len] = '\0';
        read_folder(g, path);
        if (len <= least) return;
        while (len > least && path[len - 1] != '/') path[--len] = '\0';
    }
}

/* controllers is "memory", "cpu,cpuacct" ...; "" is version 2. */
static int has_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = list; *at; at += strcspn(at, ",")) {
        at += *at == ',';
        if (strncmp(at, word, n) == 0 && (at[n] == ',' || at[n] == '\0')) return 1;
    }
    return 0;
}

static void read_line(mx_cgroup *g, const char *root, char *line)
{
    char mount[256];
    char *controllers = strchr(line, ':');
    char *group = controllers ? strchr(controllers + 1, ':') : NULL;
    if (!group) return;
    *group++ = '\0';
    controllers++;
    group[strcspn(group, "\n")] = '\0';
    if (!*controllers) {
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup", root);
        read_upwards(g, mount, group);
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/unified", root);
        read_upwards(g, mount, group);
        return;
    }
    static const char *const wanted[] = {"memory", "cpu"};
    for (int i = 0; i < 2; i++) {
        if (!has_word(controllers, wanted[i])) continue;
        snprintf(mount, sizeof mount, "%s/sys/fs/cgroup/%s", root, wanted[i]);
        read_upwards(g, mount, group);
    }
}

mx_cgroup mx_cgroup_read(const char *root)
{
    mx_cgroup g = {.memory = SIZE_MAX};
    char path[256], line[PATH_SIZE];
    if (strlen(root) > 200) return g;
    snprintf(path, sizeof path, "%s/proc/self/cgroup", root);
    FILE *f = fopen(path, "re");
    if (!f) return g;
    while (fgets(line, sizeof line, f)) read_line(&g, root, line);
    fclose(f);
    return g;
}
