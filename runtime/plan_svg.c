/* plan_svg.c - the plan as a picture. */
#include "runtime/plan.h"

#include <stdlib.h>

enum { CELL_W = 34, CELL_H = 22, PER_ROW = 16, PAD = 14, TITLE = 26, GPU_H = 40, GPU_W = 129, LINE_H = 20 };

static const char *const colours[] = {"#2f6db3", "#c0562b", "#3d8a55", "#7d4fa3", "#b08a1e", "#27858c", "#b23a6b", "#5d6b7a"};
enum { COLOURS = sizeof colours / sizeof *colours };

static const char *colour_of(int device)
{
    return colours[device % COLOURS];
}

/* Which device has a thread on the processor; -1: none. */
static int thread_on(const mx_plan *p, int os)
{
    for (int i = 0; i < p->n_devices; i++)
        for (int k = 0; p->device[i].serves && k < p->device[i].n_cpus; k++)
            if (p->device[i].cpus[k] == os) return i;
    return -1;
}

static int rpc_on(const mx_plan *p, int os)
{
    for (int i = 0; i < p->n_rpc; i++)
        for (int k = 0; k < p->rpc[i].n_cpus; k++)
            if (p->rpc[i].cpus[k] == os) return p->rpc[i].device;
    return -1;
}

static void draw_processor(const mx_plan *p, const mx_processor *u, int x, int y, FILE *out)
{
    int worker = thread_on(p, u->os), rpc = rpc_on(p, u->os);
    const char *fill = worker >= 0 ? colour_of(worker) : "#ffffff";
    fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"3\" fill=\"%s\" stroke=\"%s\" stroke-width=\"%s\"/>", x + 1, y + 1,
            CELL_W - 4, CELL_H - 4, fill, rpc >= 0 ? colour_of(rpc) : "#c5cbd3", rpc >= 0 ? "2.5\" stroke-dasharray=\"4 2" : "1");
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" fill=\"%s\">%d</text>\n", x + CELL_W / 2 - 1, y + 15, worker >= 0 ? "#ffffff" : "#333333", u->os);
}

/* A node's cores side by side, hardware threads of one below each other; returns its height. */
static int draw_cores(const mx_plan *p, const mx_topology *t, int node, int x, int y, FILE *out)
{
    const mx_processor *u = mx_topology_processors(t);
    int cores[4096], n = 0, deep = 1;
    for (int k = 0; k < mx_topology_pus(t); k++)
        if (u[k].node_os == node && (int)u[k].sibling + 1 > deep) deep = (int)u[k].sibling + 1;
    for (int k = 0; k < mx_topology_pus(t); k++) {
        if (u[k].node_os != node) continue;
        int c = 0;
        while (c < n && cores[c] != u[k].core) c++;
        if (c == n && n < 4096) cores[n++] = u[k].core;
        draw_processor(p, &u[k], x + c % PER_ROW * CELL_W, y + (c / PER_ROW * deep + (int)u[k].sibling) * CELL_H, out);
    }
    return (n + PER_ROW - 1) / PER_ROW * deep * CELL_H;
}

/* GPUs near the node; node -1: those whose place nobody knows.  Returns the height. */
static int draw_gpus(const mx_plan *p, int node, int x, int y, FILE *out)
{
    int n = 0, per_row = PER_ROW * CELL_W / (GPU_W + 6);
    for (int i = 0; i < p->n_devices; i++) {
        const mx_plan_device *d = &p->device[i];
        if (!d->gpu || (d->near ? d->node : -1) != node) continue;
        int gx = x + n % per_row * (GPU_W + 6), gy = y + n / per_row * (GPU_H + 6);
        n++;
        fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"4\" fill=\"%s\" stroke=\"%s\" stroke-width=\"2\"/>", gx, gy, GPU_W, GPU_H,
                d->serves ? colour_of(i) : "#ffffff", colour_of(i));
        fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"%s\">%s</text>", gx + GPU_W / 2, gy + 17,
                d->serves ? "#ffffff" : "#333333", d->name);
        fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\" fill=\"%s\">%s</text>\n", gx + GPU_W / 2, gy + 32, d->serves ? "#ffffff" : "#333333", d->pci);
    }
    return n ? (n + per_row - 1) / per_row * (GPU_H + 6) + 6 : 0;
}

static int draw_legend(const mx_plan *p, int x, int y, FILE *out)
{
    char list[200], rpc[200];
    for (int i = 0; i < p->n_devices; i++, y += LINE_H) {
        const mx_plan_device *d = &p->device[i];
        int n = 0, first = -1;
        for (int k = 0; k < p->n_rpc; k++)
            if (p->rpc[k].device == i && !n++) first = k;
        mx_plan_ranges(d->cpus, d->n_cpus, list, sizeof list);
        fprintf(out, "<rect x=\"%d\" y=\"%d\" width=\"14\" height=\"14\" rx=\"3\" fill=\"%s\" stroke=\"%s\"/>", x, y - 11, d->serves ? colour_of(i) : "#ffffff", colour_of(i));
        fprintf(out, "<text x=\"%d\" y=\"%d\">%s: %s %s", x + 22, y, d->name, d->gpu ? "worker on" : "threads on", list);
        if (!d->serves) fputs(", no models", out);
        if (d->node >= 0) fprintf(out, "; memory of node %d", d->node);
        if (n) {
            mx_plan_ranges(p->rpc[first].cpus, p->rpc[first].n_cpus, rpc, sizeof rpc);
            fprintf(out, "; %d RPC thread%s over %s (dashed)", n, n == 1 ? "" : "s", rpc);
        }
        fputs("</text>\n", out);
    }
    return y;
}

mx_status mx_plan_svg(const mx_plan *p, const mx_topology *t, FILE *out, mx_error *err)
{
    const mx_processor *u = mx_topology_processors(t);
    int width = PER_ROW * CELL_W + 4 * PAD, y = TITLE + 3 * LINE_H, nodes[1024], n = 0;
    char machine[4096];
    mx_topology_describe(t, machine, sizeof machine);
    for (char *c = machine; *c; c++)
        if (*c == '\n') *c = '\0';           /* its first line */
    for (int k = 0; k < mx_topology_pus(t); k++) {
        int i = 0;
        while (i < n && nodes[i] != u[k].node_os) i++;
        if (i == n && n < 1024) nodes[n++] = u[k].node_os;
    }
    /* The height is known when all is drawn: the picture goes through memory. */
    char *text = NULL;
    size_t size = 0;
    FILE *body = open_memstream(&text, &size);
    if (!body) return mx_fail(err, MX_ERR_NO_MEMORY, "picture of the plan: out of memory");
    for (int i = 0; i < n; i++) {
        int package = 0, top = y;
        for (int k = 0; k < mx_topology_pus(t); k++)
            if (u[k].node_os == nodes[i]) package = u[k].package;
        fprintf(body, "<text x=\"%d\" y=\"%d\" font-weight=\"bold\">package %d, node %d</text>\n", 2 * PAD, y + 18, package, nodes[i]);
        y += TITLE;
        y += draw_cores(p, t, nodes[i], 2 * PAD, y, body) + 8;
        y += draw_gpus(p, nodes[i], 2 * PAD, y, body);
        fprintf(body, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"8\" fill=\"none\" stroke=\"#8a94a0\"/>\n", PAD, top, width - 2 * PAD, y - top + 4);
        y += PAD + 8;
    }
    int alone = draw_gpus(p, -1, 2 * PAD, y, body);
    y = draw_legend(p, 2 * PAD, y + alone + LINE_H, body);
    bool ok = !ferror(body);
    ok &= fclose(body) == 0;
    if (ok) {
        fprintf(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" font-size=\"12\">\n", width + 200, y + PAD);
        fprintf(out, "<rect width=\"100%%\" height=\"100%%\" fill=\"#f7f8fa\"/>\n<text x=\"%d\" y=\"26\" font-size=\"17\" font-weight=\"bold\">What runs where</text>\n", PAD);
        fprintf(out, "<text x=\"%d\" y=\"50\">%s. A number is a processor; filled: threads of a device.</text>\n", PAD, machine);
        fwrite(text, 1, size, out);
        fputs("</svg>\n", out);
    }
    free(text);
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "picture of the plan: out of memory");
}
