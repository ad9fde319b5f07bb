/* cli.c - serve, generate, client, info. */
#include "server/cli.h"

#include "proto/merx.pb-c.h"
#include "runtime/log.h"
#include "server/rpc.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static int failed(const mx_error *err)
{
    fprintf(stderr, "merx: %s: %s\n", mx_status_name(err->code), err->text);
    return 1;
}

static mx_dtype dtype_of(const mx_config *c, const char *name)
{
    mx_dtype t = MX_F32;
    const char *text = mx_config_string(c, name);
    if (strcmp(text, "auto")) mx_dtype_parse(text, &t);
    return t;
}

static mx_generator_options options_of(const mx_config *c)
{
    mx_generator_options o = mx_generator_defaults();
    o.dtype = dtype_of(c, "dtype");
    o.kv_dtype = dtype_of(c, "kv-cache-dtype");
    o.kv_bytes = (size_t)mx_config_int(c, "kv-cache-bytes");
    o.page_tokens = (int32_t)mx_config_int(c, "page-tokens");
    o.max_model_len = (int32_t)mx_config_int(c, "max-model-len");
    o.max_num_seqs = (int32_t)mx_config_int(c, "max-num-seqs");
    o.max_batched_tokens = (int32_t)mx_config_int(c, "max-num-batched-tokens");
    o.max_queued = (int32_t)mx_config_int(c, "max-num-queued-reqs");
    o.prefix_caching = mx_config_bool(c, "prefix-caching");
    return o;
}

static mx_status open_app(mx_app *app, mx_config *c, mx_error *err)
{
    const char *const *specs;
    int n = mx_config_list(c, "model", &specs);
    if (!n) return mx_fail(err, MX_ERR_ARG, "no model: give one with --model PATH (a Hugging Face folder or a .gguf file)");
    mx_generator_options o = options_of(c);
    MX_TRY(mx_app_open(app, c, err));
    for (int i = 0; i < n; i++) {
        mx_status st = mx_app_load(app, specs[i], &o, err);
        if (st) {
            mx_app_close(app, 0);
            return st;
        }
    }
    return MX_OK;
}

/* seed as a 64-bit number; false when it is not one. */
static bool seed_of(const mx_config *c, bool *given, uint64_t *seed, mx_error *err)
{
    const char *text = mx_config_string(c, "seed");
    *given = text != NULL;
    if (!text) return true;
    char *end;
    errno = 0;
    *seed = strtoull(text, &end, 0);
    if (!errno && end != text && !*end && text[0] != '-') return true;
    mx_fail(err, MX_ERR_ARG, "seed is \"%s\"; it must be a number from 0 to 2^64-1", text);
    return false;
}

/* ---- serve ---------------------------------------------------------------------------- */

int mx_cli_serve(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_app app;
    mx_server *server = NULL;
    if (n) return mx_fail(&err, MX_ERR_ARG, "serve takes no \"%s\"", rest[0]), failed(&err);
    sigset_t stop;
    sigemptyset(&stop);
    sigaddset(&stop, SIGINT);
    sigaddset(&stop, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &stop, NULL);         /* before any thread starts: they inherit it */
    signal(SIGPIPE, SIG_IGN);
    if (open_app(&app, c, &err)) return failed(&err);
    mx_server_options o = mx_server_defaults();
    o.listen = mx_config_string(c, "listen");
    o.threads = (int32_t)mx_config_int(c, "rpc-threads");
    o.max_message_bytes = (size_t)mx_config_int(c, "max-message-bytes");
    if (mx_server_open(&server, &app, &o, &err)) {
        mx_app_close(&app, 0);
        return failed(&err);
    }
    atomic_store(&app.state, MX_APP_SERVING);
    mx_server_state_changed(server);
    mx_log(MX_LOG_INFO, "server", "serving on %s", mx_server_address(server));
    int got;
    sigwait(&stop, &got);
    uint32_t grace = (uint32_t)mx_config_int(c, "shutdown-timeout") * 1000;
    mx_log(MX_LOG_INFO, "server", "%s: draining %d calls", got == SIGTERM ? "SIGTERM" : "SIGINT", mx_server_inflight(server));
    int cut = mx_server_drain(server, grace);
    if (cut) mx_log(MX_LOG_WARN, "server", "%d calls were cut off", cut);
    mx_server_close(server);
    mx_app_close(&app, 0);
    return 0;
}

/* ---- generate --------------------------------------------------------------------------- */

typedef struct wait_one { pthread_mutex_t lock; pthread_cond_t over; bool done; mx_error err; } wait_one;

static void print_text(mx_generation *g, int index, const char *text, size_t len, const int32_t *ids, int n_ids,
                       const mx_token_logprob *lp, int n_lp, mx_finish finish)
{
    (void)g, (void)index, (void)ids, (void)n_ids, (void)lp, (void)n_lp, (void)finish;
    fwrite(text, 1, len, stdout);
    fflush(stdout);
}

static void one_done(mx_generation *g, const mx_error *err)
{
    wait_one *w = mx_generation_user(g);
    pthread_mutex_lock(&w->lock);
    w->err = *err;
    w->done = true;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

static mx_status run_one(mx_config *c, mx_generator *g, const char *prompt, mx_error *err)
{
    const mx_tokenizer *t = mx_generator_tokenizer(g);
    mx_sampling p = mx_sampling_defaults();
    mx_ids ids = {0};
    wait_one w = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
    mx_generation *r = NULL;
    mx_status st;
    p.temperature = (float)mx_config_float(c, "temperature");
    p.top_k = (int32_t)mx_config_int(c, "top-k");
    p.top_p = (float)mx_config_float(c, "top-p");
    p.repetition_penalty = (float)mx_config_float(c, "repetition-penalty");
    p.max_tokens = (int32_t)mx_config_int(c, "max-tokens");
    p.n_stops = mx_config_list(c, "stop", &p.stops);
    if (!seed_of(c, &p.seeded, &p.seed, err)) return err->code;
    if (mx_config_bool(c, "chat") && mx_tokenizer_chat_family(t) != MX_CHAT_NONE)
        st = mx_tokenizer_chat(t, &(mx_chat_message){"user", prompt}, 1, &ids, err);
    else
        st = mx_tokenizer_encode(t, prompt, strlen(prompt), true, false, &ids, err);
    mx_generation_calls calls = {print_text, one_done, &w};
    if (!st) st = mx_generation_open(&r, g, ids.id, ids.count, &p, &calls, 0, err);
    if (!st) st = mx_generation_submit(r, err);
    if (!st) {
        pthread_mutex_lock(&w.lock);
        while (!w.done) pthread_cond_wait(&w.over, &w.lock);
        pthread_mutex_unlock(&w.lock);
        if (w.err.code) *err = w.err;
        st = w.err.code;
        mx_generation_stats s;
        mx_generation_stats_get(r, &s);
        double decode = (double)s.decode_ns * 1e-9;
        fprintf(stderr, "\n[%d prompt + %d output tokens, first after %.0f ms, then %.1f tokens/s, seed %llu]\n", s.prompt_tokens,
                s.output_tokens, (double)s.first_token_ns * 1e-6, decode > 0 ? (s.output_tokens - 1) / decode : 0.0, (unsigned long long)s.seed);
    }
    mx_generation_close(r);
    mx_ids_free(&ids);
    return st;
}

int mx_cli_generate(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_app app;
    if (n != 1) return mx_fail(&err, MX_ERR_ARG, "generate takes one prompt, in quotes"), failed(&err);
    if (open_app(&app, c, &err)) return failed(&err);
    mx_status st = run_one(c, mx_app_model(&app, NULL), rest[0], &err);
    mx_app_close(&app, 0);
    return st ? failed(&err) : 0;
}

/* ---- client -------------------------------------------------------------------------------- */

static void fill_sampling(const mx_config *c, Merx__V1__Sampling *p, bool seeded, uint64_t seed)
{
    const char *const *stops;
    p->_temperature_case = MERX__V1__SAMPLING___TEMPERATURE_TEMPERATURE;
    p->temperature = (float)mx_config_float(c, "temperature");
    p->_top_p_case = MERX__V1__SAMPLING___TOP_P_TOP_P;
    p->top_p = (float)mx_config_float(c, "top-p");
    p->_repetition_penalty_case = MERX__V1__SAMPLING___REPETITION_PENALTY_REPETITION_PENALTY;
    p->repetition_penalty = (float)mx_config_float(c, "repetition-penalty");
    p->top_k = (int32_t)mx_config_int(c, "top-k");
    p->max_tokens = (int32_t)mx_config_int(c, "max-tokens");
    if (seeded) {
        p->_seed_case = MERX__V1__SAMPLING___SEED_SEED;
        p->seed = seed;
    }
    p->n_stop = (size_t)mx_config_list(c, "stop", &stops);
    p->stop = (char **)(uintptr_t)stops;
}

/* Print the stream; the last event carries the figures. */
static void print_events(mx_client_call *call)
{
    const uint8_t *msg;
    size_t len;
    while (mx_client_next(call, &msg, &len)) {
        Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, msg);
        if (!e) continue;
        fputs(e->text, stdout);
        fflush(stdout);
        if (e->last && e->usage && e->timings)
            fprintf(stderr, "\n[%s: %d prompt + %d output tokens, queue %.1f ms, first token %.0f ms, %.1f tokens/s, seed %llu]\n", e->model,
                    e->usage->prompt_tokens, e->usage->output_tokens, e->timings->queue_ms, e->timings->first_token_ms,
                    e->timings->tokens_per_second, (unsigned long long)e->seed);
        merx__v1__generate_event__free_unpacked(e, NULL);
    }
}

int mx_cli_client(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_client *client = NULL;
    mx_client_call *call = NULL;
    mx_rpc_status over = {0};
    const char *const *models;
    bool seeded;
    uint64_t seed = 0;
    if (n != 1) return mx_fail(&err, MX_ERR_ARG, "client takes one prompt, in quotes"), failed(&err);
    if (!seed_of(c, &seeded, &seed, &err)) return failed(&err);
    Merx__V1__GenerateRequest req = MERX__V1__GENERATE_REQUEST__INIT;
    Merx__V1__Sampling sampling = MERX__V1__SAMPLING__INIT;
    Merx__V1__Chat chat = MERX__V1__CHAT__INIT;
    Merx__V1__ChatMessage message = MERX__V1__CHAT_MESSAGE__INIT, *messages[] = {&message};
    fill_sampling(c, &sampling, seeded, seed);
    req.sampling = &sampling;
    if (mx_config_list(c, "model", &models)) req.model = (char *)(uintptr_t)models[0];
    if (mx_config_bool(c, "chat")) {
        message.role = (char *)(uintptr_t)"user";
        message.content = rest[0];
        chat.n_messages = 1;
        chat.messages = messages;
        req.input_case = MERX__V1__GENERATE_REQUEST__INPUT_CHAT;
        req.chat = &chat;
    } else {
        req.input_case = MERX__V1__GENERATE_REQUEST__INPUT_PROMPT;
        req.prompt = rest[0];
    }
    size_t len = merx__v1__generate_request__get_packed_size(&req);
    uint8_t *msg = malloc(len + 1);
    if (!msg) return mx_fail(&err, MX_ERR_NO_MEMORY, "a request"), failed(&err);
    merx__v1__generate_request__pack(&req, msg);
    mx_client_options o = {.wait_for_ready = true};
    mx_status st = mx_client_open(&client, mx_config_string(c, "server"), &o, &err);
    if (!st) st = mx_client_stream(client, &call, "/merx.v1.Generation/Stream", msg, len, (uint32_t)mx_config_int(c, "timeout") * 1000);
    if (!st) {
        print_events(call);
        mx_client_finish(call, &over);
        mx_client_end(call);
    } else if (!err.code) {
        mx_fail(&err, st, "the call could not start");
    }
    if (client) mx_client_close(client);
    free(msg);
    if (st) return failed(&err);
    if (over.code) fprintf(stderr, "merx: %s: %s\n", mx_rpc_code_name(over.code), over.text);
    return over.code != 0;
}

/* ---- info -------------------------------------------------------------------------------------- */

static void print_model(const mx_generator_info *i, bool json, bool last)
{
    double mib = 1 << 20;
    if (json)
        printf("    {\"name\": \"%s\", \"architecture\": \"%s\", \"parameters\": %lld, \"quantization\": \"%s\", \"dtype\": \"%s\", \"max_model_len\": %d, "
               "\"weight_bytes\": %zu, \"kv_bytes\": %zu, \"kv_bytes_per_token\": %zu, \"scratch_bytes\": %zu, \"max_concurrent\": %d, \"load_seconds\": %.3f}%s\n",
               i->name, i->architecture, (long long)i->parameters, i->quantization, mx_dtype_name(i->dtype), i->max_model_len, i->weight_bytes,
               i->kv_bytes, i->kv_bytes_per_token, i->scratch_bytes, i->max_concurrent, i->load_seconds, last ? "" : ",");
    else
        printf("model %s: %s, %.1f M parameters, %d layers x %d, %d heads (%d KV), vocabulary %d\n"
               "  context %d, chat template %s, stored as %s, kept as %s; loaded in %.2f s\n"
               "  memory: weights %.0f MiB, KV cache %.0f MiB (%zu bytes a token), scratch %.0f MiB\n"
               "  room for %d texts of %d tokens at once\n",
               i->name, i->architecture, (double)i->parameters * 1e-6, i->layers, i->d_model, i->heads, i->kv_heads, i->vocab, i->max_model_len,
               mx_chat_family_name(i->chat), i->quantization, mx_dtype_name(i->dtype), i->load_seconds, (double)i->weight_bytes / mib,
               (double)i->kv_bytes / mib, i->kv_bytes_per_token, (double)i->scratch_bytes / mib, i->max_concurrent, i->max_model_len);
}

int mx_cli_info(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_app app;
    const char *const *specs;
    bool json = mx_config_bool(c, "json");
    if (n) return mx_fail(&err, MX_ERR_ARG, "info takes no \"%s\"", rest[0]), failed(&err);
    mx_status st = mx_config_list(c, "model", &specs) ? open_app(&app, c, &err) : mx_app_open(&app, c, &err);
    if (st) return failed(&err);
    char machine[256];
    mx_topology_describe(app.topology, machine, sizeof machine);
    if (json) printf("{\n  \"machine\": \"%s\",\n  \"devices\": [\n", machine);
    else printf("machine: %s\n", machine);
    for (int i = 0; i < app.n_devices; i++) {
        const mx_device *d = &app.devices[i];
        int threads = d->pool ? mx_pool_threads(d->pool) : 0;
        if (json) printf("    {\"name\": \"%s\", \"threads\": %d, \"memory\": %zu}%s\n", d->name, threads, d->memory, i + 1 < app.n_devices ? "," : "");
        else printf("device %d: %s, %d threads, %.1f GiB\n", i, d->name, threads, (double)d->memory / (1 << 30));
    }
    if (json) printf("  ],\n  \"models\": [\n");
    for (int i = 0; i < app.n_models; i++) {
        mx_generator_info info;
        mx_generator_info_get(app.models[i], &info);
        print_model(&info, json, i + 1 == app.n_models);
    }
    if (json) printf("  ]\n}\n");
    mx_app_close(&app, 0);
    return 0;
}
