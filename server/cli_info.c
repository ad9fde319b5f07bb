/* cli_info.c - merx info: the machine, the models, the memory they take and what still fits. */
#include "server/cli_parts.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB ((double)(1 << 20))
#define GIB ((double)(1 << 30))

/* Bytes of a line "Name:  N kB" of a file of /proc; 0: not there. */
static size_t proc_bytes(const char *path, const char *name)
{
    char line[256];
    size_t kib = 0;
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)) && sscanf(line + strlen(name), ": %zu kB", &kib) == 1) break;
    if (f) fclose(f);
    return kib * 1024;
}

typedef struct memory { size_t taken, promised, left; } memory;

/* taken: by this process.  promised: KV caches and scratch, which take their pages as they
 * fill.  left: free memory, or what the process's limit leaves, less what is promised. */
static memory memory_of(const mx_app *app)
{
    memory m = {.taken = proc_bytes("/proc/self/status", "VmRSS")};
    mx_served_view list[MX_MODELS];
    int n = mx_registry_list(app->registry, list);
    for (int i = 0; i < n; i++)
        if (list[i].generator) m.promised += list[i].served->footprint.kv + list[i].served->footprint.scratch;
    mx_registry_list_free(list, n);
    size_t available = proc_bytes("/proc/meminfo", "MemAvailable"), limit = mx_topology_memory(app->topology);
    size_t under = limit > m.taken ? limit - m.taken : 0;
    m.left = available && available < under ? available : under;
    m.left = m.left > m.promised ? m.left - m.promised : 0;
    return m;
}

/* ---- the machine ------------------------------------------------------------------------------ */

static int threads_of(const mx_device *d)
{
    return d->pool ? mx_pool_threads(d->pool) : 0;
}

/* What the plan gave to device i; NULL: not bound. */
static const mx_plan_device *placed(const mx_app *app, int i)
{
    if (!app->bound || !mx_topology_is_this_system(app->topology) || i >= app->plan.n_devices) return NULL;
    return &app->plan.device[i];
}

static void print_devices(const mx_app *app)
{
    char list[256];
    for (int i = 0; i < app->n_devices; i++) {
        const mx_device *d = &app->devices[i];
        const mx_plan_device *at = placed(app, i);
        printf("device %d   %s, %.1f GiB", i, d->name, (double)d->memory / GIB);
        if (threads_of(d)) printf(", %d threads%s", threads_of(d), at ? " on processors " : " (not bound)");
        if (at) mx_plan_ranges(at->cpus, at->n_cpus, list, sizeof list);
        if (at && threads_of(d)) fputs(list, stdout);
        if (d->pci[0]) printf(", PCI %s", d->pci);
        fputc('\n', stdout);
    }
}

static json_t *devices_json(const mx_app *app)
{
    json_t *all = json_array();
    for (int i = 0; i < app->n_devices; i++) {
        const mx_device *d = &app->devices[i];
        const mx_plan_device *at = placed(app, i);
        json_t *j = json_pack("{s:s, s:s, s:I, s:i}", "name", d->name, "kind", d->kind == MX_CPU ? "cpu" : "cuda", "memory_bytes",
                              (json_int_t)d->memory, "threads", threads_of(d)), *bound = json_array();
        for (int k = 0; at && k < at->n_cpus; k++) json_array_append_new(bound, json_integer(at->cpus[k]));
        json_object_set_new(j, "processors", bound);
        json_array_append_new(all, j);
    }
    return all;
}

/* ---- the models -------------------------------------------------------------------------------- */

static int texts_that_fit(const mx_generator_info *i, int64_t tokens, size_t bytes)
{
    int64_t pages = (tokens + i->page_tokens - 1) / i->page_tokens;
    int64_t own = i->kv_bytes_per_token ? (int64_t)(bytes / i->kv_bytes_per_token) / i->page_tokens : 0;
    int64_t n = pages ? own / pages : 0;
    return n > INT32_MAX ? INT32_MAX : (int)n;
}

/* Lengths worth telling: short copy, a page, the whole context. */
static int lengths(const mx_generator_info *i, int64_t out[3])
{
    int n = 0;
    if (i->max_model_len > 256) out[n++] = 256;
    if (i->max_model_len > 1024) out[n++] = 1024;
    out[n++] = i->max_model_len;
    return n;
}

static void print_model(const mx_app *app, const mx_generator_info *i, size_t left)
{
    int64_t len[3];
    printf("\nmodel      %s (%s)\n", i->name, i->path);
    printf("           %s, %.1f M parameters: %d layers of %d, %d heads (%d KV), vocabulary %d\n", i->architecture,
           (double)i->parameters * 1e-6, i->layers, i->d_model, i->heads, i->kv_heads, i->vocab);
    printf("           context %d tokens, chat template %s\n", i->max_model_len, mx_chat_family_name(i->chat));
    printf("           stored as %s, kept as %s, loaded in %.2f s\n", i->quantization, mx_dtype_name(i->dtype), i->load_seconds);
    printf("  memory   %8.1f MiB weights\n           %8.1f MiB KV cache (%s, %zu bytes a token, %d pages of %d tokens)\n"
           "           %8.1f MiB scratch of a turn\n",
           (double)i->weight_bytes / MIB, (double)i->kv_bytes / MIB, mx_dtype_name(i->kv_dtype), i->kv_bytes_per_token, i->kv_pages,
           i->page_tokens, (double)i->scratch_bytes / MIB);
    printf("  room     ");
    for (int k = 0, n = lengths(i, len); k < n; k++)
        printf("%s%d texts of %lld tokens", k ? ", or " : "", texts_that_fit(i, len[k], i->kv_bytes), (long long)len[k]);
    printf(" in the KV cache\n           at once: %lld (--max-num-seqs)\n", (long long)mx_config_int(app->config, "max-num-seqs"));
    printf("           free memory would hold %d more of %d tokens (--kv-cache-bytes)\n", texts_that_fit(i, i->max_model_len, left),
           i->max_model_len);
}

static json_t *model_json(const mx_generator_info *i, size_t left)
{
    int64_t len[3];
    json_t *fit = json_array();
    for (int k = 0, n = lengths(i, len); k < n; k++)
        json_array_append_new(fit, json_pack("{s:I, s:i, s:i}", "tokens", (json_int_t)len[k], "texts", texts_that_fit(i, len[k], i->kv_bytes),
                                             "more_in_free_memory", texts_that_fit(i, len[k], left)));
    json_t *j = json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:i, s:i, s:i}", "name", i->name, "path", i->path, "architecture", i->architecture,
                          "parameters", (json_int_t)i->parameters, "layers", i->layers, "d_model", i->d_model, "heads", i->heads,
                          "kv_heads", i->kv_heads, "vocab", i->vocab);
    json_t *more = json_pack("{s:i, s:s, s:s, s:s, s:s, s:f, s:i, s:o}", "max_model_len", i->max_model_len, "chat_template",
                             mx_chat_family_name(i->chat), "quantization", i->quantization, "dtype", mx_dtype_name(i->dtype),
                             "kv_cache_dtype", mx_dtype_name(i->kv_dtype), "load_seconds", i->load_seconds, "max_concurrent",
                             i->max_concurrent, "fit", fit);
    json_t *sizes = json_pack("{s:I, s:I, s:I, s:I, s:i, s:i}", "weight_bytes", (json_int_t)i->weight_bytes, "kv_bytes", (json_int_t)i->kv_bytes,
                               "kv_bytes_per_token", (json_int_t)i->kv_bytes_per_token, "scratch_bytes", (json_int_t)i->scratch_bytes,
                               "kv_pages", i->kv_pages, "page_tokens", i->page_tokens);
    json_object_update(j, more);
    json_object_update(j, sizes);
    json_decref(more);
    json_decref(sizes);
    return j;
}

/* ---- both ---------------------------------------------------------------------------------------- */

static void print_info(const mx_app *app, memory m)
{
    char text[4096];
    mx_topology_describe(app->topology, text, sizeof text);
    printf("machine    %s\n", text);
    mx_topology_describe_caches(app->topology, text, sizeof text);
    if (*text) printf("caches     %s\n", text);
    print_devices(app);
    printf("memory     %.1f MiB taken, ", (double)m.taken / MIB);
    if (m.promised) printf("%.1f MiB promised to KV caches and scratch, ", (double)m.promised / MIB);
    printf("%.1f GiB left\n", (double)m.left / GIB);
    mx_served_view list[MX_MODELS];
    int n = mx_registry_list(app->registry, list);
    for (int i = 0; i < n; i++) {
        mx_generator_info info;
        if (list[i].generator) mx_generator_info_get(list[i].generator, &info), print_model(app, &info, m.left);
    }
    for (int i = 0; i < n; i++) {
        mx_embedder_info e;
        if (!list[i].encoder) continue;
        mx_embedder_info_get(list[i].encoder, &e);
        printf("\nmodel      %s (%s)\n           bert, %.1f M parameters: %d layers of %d, %d heads, vocabulary %d\n", e.name, e.path,
               (double)e.parameters * 1e-6, e.layers, e.d_model, e.heads, e.vocab);
        printf("           texts up to %d tokens, pooling %s%s, %d classes\n           stored as %s, kept as %s, loaded in %.2f s\n", e.max_len,
               mx_pooling_name(e.pooling), e.normalize ? ", normalized" : "", e.classes, e.quantization, mx_dtype_name(e.dtype), e.load_seconds);
        printf("  memory   %8.1f MiB weights\n           %8.1f MiB scratch of a turn\n", (double)e.weight_bytes / MIB, (double)e.scratch_bytes / MIB);
    }
    mx_registry_list_free(list, n);
    if (!n) printf("\nNo model: merx info --model PATH shows the memory it takes and how many texts fit.\n");
}

static mx_status print_json(const mx_app *app, memory m, mx_error *err)
{
    char machine[4096], caches[256];
    const mx_topology *t = app->topology;
    mx_topology_describe(t, machine, sizeof machine);
    mx_topology_describe_caches(t, caches, sizeof caches);
    json_t *models = json_array();
    mx_served_view list[MX_MODELS];
    int n = mx_registry_list(app->registry, list);
    for (int i = 0; i < n; i++) {
        mx_generator_info info;
        if (!list[i].generator) continue;
        mx_generator_info_get(list[i].generator, &info);
        json_array_append_new(models, model_json(&info, m.left));
    }
    for (int i = 0; i < n; i++) {
        mx_embedder_info e;
        if (!list[i].encoder) continue;
        mx_embedder_info_get(list[i].encoder, &e);
        json_array_append_new(models, json_pack("{s:s, s:s, s:s, s:I, s:i, s:i, s:i, s:i, s:i, s:s, s:I}", "name", e.name, "path", e.path,
                                                "architecture", "bert", "parameters", (json_int_t)e.parameters, "layers", e.layers, "d_model",
                                                e.d_model, "heads", e.heads, "max_model_len", e.max_len, "classes", e.classes, "pooling",
                                                mx_pooling_name(e.pooling), "weight_bytes", (json_int_t)e.weight_bytes));
    }
    mx_registry_list_free(list, n);
    json_t *j = json_pack("{s:{s:s, s:s, s:i, s:i, s:i, s:I}, s:I, s:I, s:I, s:o, s:o}", "machine", "description", machine, "caches", caches,
                          "cores", mx_topology_cores(t), "hardware_threads", mx_topology_pus(t), "numa_nodes", mx_topology_numa_nodes(t),
                          "memory_bytes", (json_int_t)mx_topology_memory(t), "taken_bytes", (json_int_t)m.taken, "promised_bytes", (json_int_t)m.promised, "left_bytes", (json_int_t)m.left,
                          "devices", devices_json(app), "models", models);
    return cli_json_print(stdout, j, err);
}

/* --topology, --svg: the plan alone, of this machine or of the one that --machine describes. */
static mx_status show_plan(const mx_config *c, mx_error *err)
{
    mx_topology *t = NULL;
    mx_plan p = {0};
    mx_plan_gpu gpus[64];
    char text[4096];
    const char *machine = mx_config_string(c, "machine"), *many = mx_config_string(c, "devices"), *svg = mx_config_string(c, "svg");
    mx_plan_settings s = {.devices = many ? many : "auto", .threads = (int)mx_config_int(c, "threads"), .rpc_threads = (int)mx_config_int(c, "rpc-threads")};
    MX_TRY(mx_topology_open(&t, machine, err));
    int n = machine ? mx_topology_accelerators(t, gpus, 64) : mx_device_gpus(gpus, 64);
    mx_status st = mx_plan_make(&p, t, gpus, n, &s, err);
    if (!st && svg) {
        FILE *f = fopen(svg, "we");
        st = f ? mx_plan_svg(&p, t, f, err) : mx_fail(err, MX_ERR_IO, "svg: %s: %s", svg, strerror(errno));
        if (f && (ferror(f) | fclose(f)) && !st) st = mx_fail(err, MX_ERR_IO, "svg: %s: %s", svg, strerror(errno));
    }
    if (!st) {
        mx_topology_describe(t, text, sizeof text);
        printf("machine  %s\n", text);
        mx_plan_print(&p, stdout);
    }
    mx_plan_free(&p);
    mx_topology_close(t);
    return st;
}

int mx_cli_info(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_app app;
    const char *const *specs;
    if (n) return cli_usage("info takes settings only, not \"%s\"", rest[0]);
    if (mx_config_bool(c, "topology") || mx_config_string(c, "svg") || mx_config_string(c, "machine"))
        return show_plan(c, &err) ? cli_failed(&err) : CLI_OK;
    mx_status st = mx_config_list(c, "model", &specs) ? cli_open_app(&app, c, false, &err) : mx_app_open(&app, c, &err);
    if (st) return cli_failed(&err);
    memory m = memory_of(&app);
    if (mx_config_bool(c, "json")) st = print_json(&app, m, &err);
    else print_info(&app, m);
    mx_app_close(&app, 0);
    return st ? cli_failed(&err) : CLI_OK;
}
