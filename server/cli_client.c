/* cli_client.c - merx client: one text from a running server. */
#include "server/cli_parts.h"

#include "server/rpc.h"

#include <stdlib.h>
#include <string.h>

typedef struct ask {
    mx_client *client;
    uint8_t   *msg;
    size_t     len;
    uint32_t   timeout_ms;
    bool       json, events, quiet, tty;
} ask;

static void show_figures(const char *model, const Merx__V1__Usage *u, const Merx__V1__Timings *t, uint64_t seed)
{
    if (!u || !t) return;
    fprintf(stderr, "[%s: %d prompt + %d output tokens, queue %.1f ms, first token %.0f ms, %.1f tokens/s, seed %llu]\n", model,
            u->prompt_tokens, u->output_tokens, t->queue_ms, t->first_token_ms, t->tokens_per_second, (unsigned long long)seed);
}

static mx_status show_event(const ask *a, const Merx__V1__GenerateEvent *e, mx_error *err)
{
    if (a->events) return cli_json_print(stdout, cli_json_event(e), err);
    cli_print_text(stdout, a->tty, e->text, strlen(e->text));
    if (e->last) cli_print_text(stdout, false, "\n", 1);
    if (e->last && !a->quiet) show_figures(e->model, e->usage, e->timings, e->seed);
    return MX_OK;
}

/* Pieces, as they come. */
static mx_status stream(const ask *a, mx_rpc_status *over, mx_error *err)
{
    mx_client_call *call;
    const uint8_t *msg;
    size_t len;
    mx_status st = mx_client_stream(a->client, &call, "/merx.v1.Generation/Stream", a->msg, a->len, a->timeout_ms);
    if (st) return mx_fail(err, st, "the call could not start");
    while (!st && mx_client_next(call, &msg, &len)) {
        Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, msg);
        st = e ? show_event(a, e, err) : mx_fail(err, MX_ERR_FORMAT, "the server's answer cannot be read");
        if (e) merx__v1__generate_event__free_unpacked(e, NULL);
    }
    if (st) mx_client_cancel(call);
    mx_client_finish(call, over);
    mx_client_end(call);
    return st;
}

static mx_status show_response(const ask *a, const Merx__V1__GenerateResponse *r, mx_error *err)
{
    for (size_t i = 0; i < r->n_candidates; i++) {
        const char *text = r->candidates[i]->text;
        if (a->json) {
            MX_TRY(cli_json_print(stdout, cli_json_candidate(r, i), err));
            continue;
        }
        if (r->n_candidates > 1) printf("%s[%zu of %zu]\n", i ? "\n" : "", i + 1, r->n_candidates);
        cli_print_text(stdout, a->tty, text, strlen(text));
        fputc('\n', stdout);
    }
    fflush(stdout);
    if (!a->json && !a->quiet) show_figures(r->model, r->usage, r->timings, r->seed);
    return MX_OK;
}

/* All at once: several candidates, or a finished object. */
static mx_status whole(const ask *a, mx_rpc_status *over, mx_error *err)
{
    uint8_t *reply = NULL;
    size_t len = 0;
    mx_status st = mx_client_unary(a->client, "/merx.v1.Generation/Generate", a->msg, a->len, a->timeout_ms, &reply, &len, over);
    if (st) return mx_fail(err, st, "the call could not start");
    if (!over->code) {
        Merx__V1__GenerateResponse *r = merx__v1__generate_response__unpack(NULL, len, reply);
        st = r ? show_response(a, r, err) : mx_fail(err, MX_ERR_FORMAT, "the server's answer cannot be read");
        if (r) merx__v1__generate_response__free_unpacked(r, NULL);
    }
    free(reply);
    return st;
}

static mx_status call_server(mx_config *c, const char *prompt, mx_rpc_status *over, mx_error *err)
{
    const char *const *models;
    cli_request r;
    ask a = {.json = mx_config_bool(c, "json"), .events = mx_config_bool(c, "stream-json"), .quiet = mx_config_bool(c, "quiet"),
             .tty = cli_term_of(stdout).tty, .timeout_ms = (uint32_t)mx_config_int(c, "timeout") * 1000};
    mx_client_options o = cli_client_options(c);
    cli_request_open(&r);
    mx_status st = cli_sampling_settings(&r.sampling, c, &r.arena, err);
    if (!st) st = cli_request_prompt(&r, c, prompt, mx_config_bool(c, "chat"), err);
    if (!st && mx_config_list(c, "model", &models)) r.message.model = (char *)(uintptr_t)models[0];
    if (!st) {
        a.len = merx__v1__generate_request__get_packed_size(&r.message);
        a.msg = malloc(a.len + 1);
        st = a.msg ? mx_client_open(&a.client, mx_config_string(c, "server"), &o, err) : mx_fail(err, MX_ERR_NO_MEMORY, "a request");
    }
    if (!st) {
        merx__v1__generate_request__pack(&r.message, a.msg);
        bool at_once = !a.events && (a.json || r.sampling.n > 1 || r.sampling.beams > 1);
        st = at_once ? whole(&a, over, err) : stream(&a, over, err);
    }
    if (a.client) mx_client_close(a.client);
    free(a.msg);
    cli_request_close(&r);
    return st;
}

int mx_cli_client(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_rpc_status over = {0};
    char *prompt = NULL;
    if (n != 1) return cli_usage("client takes one prompt in quotes, or - for standard input; %d given", n);
    mx_status st = cli_read_prompt(rest[0], &prompt, &err);
    if (!st) st = call_server(c, prompt, &over, &err);
    free(prompt);
    if (st) return cli_failed(&err);
    if (!over.code) return CLI_OK;
    fprintf(stderr, "merx: %s: %s", mx_rpc_code_name(over.code), over.text);
    if (over.retry_ms) fprintf(stderr, " (again in %.1f s)", over.retry_ms * 1e-3);
    if (over.code == MX_RPC_FAILED_PRECONDITION && mx_config_bool(c, "chat")) fputs(" (--no-chat sends it as it is)", stderr);
    if (over.code == MX_RPC_DEADLINE_EXCEEDED) fprintf(stderr, " (server %s, --timeout %lld)", mx_config_string(c, "server"), (long long)mx_config_int(c, "timeout"));
    fputc('\n', stderr);
    return CLI_FAILED;
}
