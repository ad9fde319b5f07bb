/* cli_models.c - merx models: what a running server serves, and what it shall serve. */
#include "server/cli_parts.h"

#include <stdlib.h>
#include <string.h>

/* One call; *reply is the unpacked answer.  False: it has been said why. */
static bool ask(const mx_config *c, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type, void *reply)
{
    mx_error err = {0};
    mx_client *client = NULL;
    mx_client_options o = cli_client_options(c);
    mx_rpc_status over = {0};
    size_t len = protobuf_c_message_get_packed_size(q), n = 0;
    uint8_t *msg = malloc(len + 1), *bytes = NULL;
    ProtobufCMessage *m = NULL;
    mx_status st = msg ? mx_client_open(&client, mx_config_string(c, "server"), &o, &err) : mx_fail(&err, MX_ERR_NO_MEMORY, "a request");
    if (!st) {
        protobuf_c_message_pack(q, msg);
        st = mx_client_unary(client, method, msg, len, (uint32_t)mx_config_int(c, "timeout") * 1000, &bytes, &n, &over);
        if (st) mx_fail(&err, st, "the call could not start");
    }
    if (!st && !over.code && !(m = protobuf_c_message_unpack(type, NULL, n, bytes))) st = mx_fail(&err, MX_ERR_FORMAT, "the server's answer cannot be read");
    free(bytes);
    free(msg);
    if (client) mx_client_close(client);
    if (st) cli_failed(&err);
    else if (over.code) fprintf(stderr, "merx: %s: %s\n", mx_rpc_code_name(over.code), over.text);
    *(ProtobufCMessage **)reply = m;
    return m != NULL;
}

static int list(const mx_config *c)
{
    static const char *const states[] = {"loading", "serving", "draining"};
    const double mib = 1 << 20;
    Merx__V1__ListVersionsRequest q = MERX__V1__LIST_VERSIONS_REQUEST__INIT;
    Merx__V1__ListVersionsResponse *r;
    if (!ask(c, "/merx.v1.Models/List", &q.base, &merx__v1__list_versions_response__descriptor, &r)) return CLI_FAILED;
    printf("%-20s %7s  %-8s  %-9s %11s %11s %5s %8s %8s  %s\n", "NAME", "VERSION", "STATE", "KIND", "WEIGHTS MiB", "CACHE MiB", "HELD", "RUNNING", "WAITING", "PATH");
    for (size_t i = 0; i < r->n_versions; i++) {
        const Merx__V1__ModelVersion *v = r->versions[i];
        printf("%-20s %7d  %-8s  %-9s %11.1f %11.1f %5d %8d %8d  %s%s\n", v->name, v->version, (unsigned)v->state < 3 ? states[v->state] : "?", v->kind,
               (double)v->weight_bytes / mib, (double)v->kv_bytes / mib, v->references, v->running, v->waiting, v->path, v->pinned ? " (the profiles read with it)" : "");
        for (size_t k = 0; k < v->n_adapters; k++)
            printf("  + %-16s %7s  %-8s  %-9s %11.1f %11s %5d %8s %8s  %s\n", v->adapters[k]->name, "", "serving", "adapter", (double)v->adapters[k]->bytes / mib, "",
                   v->adapters[k]->references, "", "", v->adapters[k]->path);
    }
    printf("%.0f MiB are held", (double)r->held_bytes / mib);
    if (r->budget_bytes) printf(" of the %.0f that models may take", (double)r->budget_bytes / mib);
    putchar('\n');
    merx__v1__list_versions_response__free_unpacked(r, NULL);
    return CLI_OK;
}

static int load(const mx_config *c, char *name, char *path)
{
    Merx__V1__LoadModelRequest q = MERX__V1__LOAD_MODEL_REQUEST__INIT;
    Merx__V1__LoadModelResponse *r;
    bool job = !strchr(path, '/') && !strncmp(path, "job-", 4);
    q.name = name;
    q.source_case = job ? MERX__V1__LOAD_MODEL_REQUEST__SOURCE_TRAINING_JOB : MERX__V1__LOAD_MODEL_REQUEST__SOURCE_PATH;
    if (job) q.training_job = path;
    else q.path = path;
    if (mx_config_string(c, "adapter-of")) q.adapter_of = (char *)(uintptr_t)mx_config_string(c, "adapter-of");
    if (!ask(c, "/merx.v1.Models/Load", &q.base, &merx__v1__load_model_response__descriptor, &r)) return CLI_FAILED;
    if (!r->version) printf("%s serves beside %s (%.2f s)\n", r->name, q.adapter_of, r->seconds);
    else if (r->replaced) printf("%s: version %d serves, version %d drains (%.2f s)\n", r->name, r->version, r->replaced, r->seconds);
    else printf("%s: version %d serves (%.2f s)\n", r->name, r->version, r->seconds);
    merx__v1__load_model_response__free_unpacked(r, NULL);
    return CLI_OK;
}

static int unload(const mx_config *c, char *name)
{
    Merx__V1__UnloadModelRequest q = MERX__V1__UNLOAD_MODEL_REQUEST__INIT;
    Merx__V1__UnloadModelResponse *r;
    q.name = name;
    q._drain_seconds_case = MERX__V1__UNLOAD_MODEL_REQUEST___DRAIN_SECONDS_DRAIN_SECONDS;
    q.drain_seconds = mx_config_float(c, "drain");
    if (!ask(c, "/merx.v1.Models/Unload", &q.base, &merx__v1__unload_model_response__descriptor, &r)) return CLI_FAILED;
    printf("%s has gone (%.2f s)\n", name, r->seconds);
    merx__v1__unload_model_response__free_unpacked(r, NULL);
    return CLI_OK;
}

int mx_cli_models(mx_config *c, int n, char **rest)
{
    const char *what = n ? rest[0] : "list";
    if (!strcmp(what, "list") && n <= 1) return list(c);
    if (!strcmp(what, "load") && n == 3) return load(c, rest[1], rest[2]);
    if (!strcmp(what, "unload") && n == 2) return unload(c, rest[1]);
    return cli_usage("models takes list, load NAME PATH, or unload NAME");
}
