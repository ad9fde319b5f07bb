/* cli_operations.c - what stands around a server: tokens, TLS, the HTTP port, and
 * files that are read again while it runs; and merx token. */
#include "server/cli_parts.h"

#include "runtime/log.h"
#include "runtime/slab.h"
#include "server/auth.h"
#include "server/explain.h"
#include "server/http.h"
#include "server/profiles.h"
#include "server/settings.h"
#include "server/spans.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LOOK_SECONDS = 2 };             /* how often files are looked at */

/* True when the file's time is another than the last one seen. */
static bool changed(const char *file, struct timespec *seen)
{
    struct stat s;
    if (!file || stat(file, &s)) return false;
    if (s.st_mtim.tv_sec == seen->tv_sec && s.st_mtim.tv_nsec == seen->tv_nsec) return false;
    *seen = s.st_mtim;
    return true;
}

/* What the server may come to hold, of what there is; models were measured before they were read (registry.h).  What is left of the
 * budget is for models that come later, training jobs and explanations: each asks before it takes. */
static mx_status plan_memory(const mx_app *app, const mx_server_options *o, mx_error *err)
{
    double mib = 1 << 20, weights = 0, kv = 0, tables = 0, calls, have = (double)mx_topology_memory(app->topology), slabs = (double)mx_slab_most();
    double profiles = app->profiles ? (double)mx_profiles_taken(app->profiles) : 0;
    size_t held, budget, explained = 0;
    if (app->explainer) mx_explainer_held(app->explainer, &explained);
    mx_served_view list[MX_MODELS];
    int n = mx_registry_list(app->registry, list);
    for (int i = 0; i < n; i++) {
        const mx_footprint *f = &list[i].served->footprint;
        weights += (double)f->weights;
        kv += (double)f->kv;
        tables += (double)f->host;
    }
    mx_registry_list_free(list, n);
    mx_registry_memory(app->registry, &held, &budget);
    calls = (double)mx_calls_bytes(o->max_calls, o->max_message_bytes);
    bool host = app->devices[app->device].kind == MX_CPU;
    mx_log(MX_LOG_INFO, "server", "memory plan, MiB: weights %.0f, KV cache %.0f, scratch %.0f, tables %.0f%s, profiles %.0f; %.0f of %.0f are held, %.0f are left for "
           "models, training jobs and explanations (at most %.0f); calls up to %.0f, their slabs %.0f; host %.0f", weights / mib, kv / mib,
           ((double)held - weights - kv - tables - profiles) / mib, tables / mib, host ? "" : " (on the GPU)", profiles / mib, (double)held / mib, (double)budget / mib,
           budget > held ? (double)(budget - held) / mib : 0, (double)explained / mib, calls / mib, slabs / mib, have / mib);
    if (calls + slabs <= have) return MX_OK;
    return mx_fail(err, MX_ERR_NO_MEMORY, "the plan needs %.0f MiB for messages (--max-message-bytes), and there are %.0f", (calls + slabs) / mib, have / mib);
}

mx_status cli_operations_open(cli_operations *p, mx_app *app, mx_config *c, mx_server_options *o, mx_error *err)
{
    const char *tokens = mx_config_string(c, "tokens");
    p->config = c;
    changed(tokens, &p->seen[0]);
    changed(mx_config_string(c, "config"), &p->seen[1]);
    o->tls_cert = mx_config_string(c, "tls-cert");
    o->tls_key = mx_config_string(c, "tls-key");
    o->tls_client_ca = mx_config_string(c, "tls-client-ca");
    o->no_reflection = !mx_config_bool(c, "reflection");
    o->log_calls = mx_config_bool(c, "log-calls");
    if (tokens) MX_TRY(mx_auth_open(&p->auth, tokens, err));
    o->auth = p->auth;
    if (mx_config_string(c, "spans")) MX_TRY(mx_spans_open(&p->spans, mx_config_string(c, "spans"), mx_config_float(c, "spans-share"), err));
    o->spans = p->spans;
    MX_TRY(plan_memory(app, o, err));
    if (tokens && !o->tls_cert) mx_log(MX_LOG_WARN, "server", "tokens without TLS: who sees the traffic sees the tokens");
    return MX_OK;
}

/* What the file says of shares, to the scheduler. */
static void tell_weights(const cli_operations *p)
{
    mx_error err = {0};
    double weight;
    const mx_tenant *t;
    for (int i = 0; p->auth && (t = mx_auth_tenant(p->auth, i, &weight)); i++)
        if (mx_scheduler_tenant(p->app->scheduler, t->number, &(mx_tenant_config){.weight = weight}, &err))
            mx_log(MX_LOG_ERROR, "server", "tenant %s: %s", t->name, err.text);
}

mx_status cli_operations_watch(cli_operations *p, mx_app *app, mx_server *server, mx_error *err)
{
    p->app = app;
    tell_weights(p);
    mx_http_options o = {.listen = mx_config_string(p->config, "http-listen"),
                         .stall_ms = (uint32_t)(mx_config_float(p->config, "stall-timeout") * 1000)};
    if (!o.listen) return MX_OK;
    MX_TRY(mx_http_open(&p->http, app, server, &o, err));
    mx_log(MX_LOG_INFO, "server", "metrics and health on port %d", mx_http_port(p->http));
    return MX_OK;
}

static void reload_tokens(const cli_operations *p)
{
    mx_error err = {0};
    int n = 0;
    if (!p->auth) return;
    if (mx_auth_reload(p->auth, &n, &err)) mx_log(MX_LOG_ERROR, "server", "%s: the tokens stay as they were", err.text);
    else {
        tell_weights(p);
        mx_log(MX_LOG_INFO, "server", "tokens read again: %d", n);
    }
}

/* Of the config file only the log level can change while the server runs. */
static void reload_level(const cli_operations *p)
{
    const char *file = mx_config_string(p->config, "config"), *now, *was = mx_config_where(p->config, "log-level");
    mx_config *c = NULL;
    mx_error err = {0};
    mx_log_level level = MX_LOG_INFO;
    if (!file || !strncmp(was, "--", 2) || !strncmp(was, "MERX_", 5)) return;
    if (mx_config_open(&c, mx_settings, mx_settings_count, &err)) return;
    if (mx_config_file(c, file, &err)) mx_log(MX_LOG_ERROR, "server", "%s: the log level stays as it was", err.text);
    else {
        now = mx_config_string(c, "log-level");
        if (now) mx_log_parse_level(now, &level);
        mx_log_configure(level, !strcmp(mx_config_string(p->config, "log-format"), "json"));
        mx_log(MX_LOG_INFO, "server", "%s read again: log level %s", file, now ? now : "info");
    }
    mx_config_close(c);
}

int cli_operations_wait(cli_operations *p, const sigset_t *stop)
{
    static const struct timespec look = {.tv_sec = LOOK_SECONDS};
    for (;;) {
        int got = sigtimedwait(stop, NULL, &look);
        if (got == SIGINT || got == SIGTERM) return got;
        bool told = got == SIGHUP;
        if (changed(mx_config_string(p->config, "tokens"), &p->seen[0]) || told) reload_tokens(p);
        if (changed(mx_config_string(p->config, "config"), &p->seen[1]) || told) reload_level(p);
    }
}

void cli_operations_close(cli_operations *p)
{
    mx_http_close(p->http);
    p->http = NULL;
}

void cli_operations_free(cli_operations *p)
{
    mx_auth_close(p->auth);
    mx_spans_close(p->spans);
    *p = (cli_operations){0};
}

mx_client_options cli_client_options(const mx_config *c)
{
    return (mx_client_options){.wait_for_ready = true, .tls = mx_config_bool(c, "tls"), .tls_ca = mx_config_string(c, "tls-ca"),
                               .tls_cert = mx_config_string(c, "tls-cert"), .tls_key = mx_config_string(c, "tls-key"),
                               .token = mx_config_string(c, "token")};
}

/* ---- merx token ------------------------------------------------------------------------- */

int mx_cli_token(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_auth *check = NULL;
    char token[MX_TOKEN_TEXT], hash[80], line[1200];
    const char *file = mx_config_string(c, "tokens");
    double rate = mx_config_float(c, "rate"), burst = mx_config_float(c, "burst");
    if (n != 1) return cli_usage("token takes the tenant's name; %d given", n);
    if (!file) return cli_usage("token: say with --tokens which file it goes to");
    if (mx_token_make(token, hash, &err)) return cli_failed(&err);
    int len = snprintf(line, sizeof line, "%s %s services=%s", rest[0], hash, mx_config_string(c, "services"));
    if (rate > 0) len += snprintf(line + len, sizeof line - (size_t)len, " rate=%g", rate);
    if (burst > 0) len += snprintf(line + len, sizeof line - (size_t)len, " burst=%g", burst);
    FILE *f = (size_t)len < sizeof line && !strpbrk(rest[0], " \t\r\n#") ? fopen(file, "ae") : NULL;
    if (!f) return cli_usage("%s: %s", file, (size_t)len < sizeof line ? strerror(errno ? errno : EINVAL) : "the line is too long");
    fseek(f, 0, SEEK_END);
    long end = ftell(f);
    bool ok = fprintf(f, "%s\n", line) > 0 && !fflush(f) && !fsync(fileno(f));
    ok = !fclose(f) && ok;
    /* The server would refuse the file as a whole: better the line goes again. */
    mx_status st = ok ? mx_auth_open(&check, file, &err) : mx_fail(&err, MX_ERR_IO, "%s: %s", file, strerror(errno));
    mx_auth_close(check);
    if (st) {
        if (truncate(file, end)) mx_log(MX_LOG_WARN, "token", "%s: its last line is not whole", file);
        return cli_failed(&err);
    }
    puts(token);
    return CLI_OK;
}
