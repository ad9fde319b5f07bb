/* cli_generate.c - merx generate "PROMPT": one text, here and now. */
#include "server/cli_parts.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

typedef enum show { SHOW_LIVE, SHOW_TEXTS, SHOW_JSON, SHOW_EVENTS } show;

typedef struct one {
    show            how;
    bool            tty, failed;         /* failed: of the device's thread, read after done() */
    const mx_tokenizer *tokenizer;
    mx_said        *said;                /* [n]                            */
    int             n;
    mx_arena        arena;
    pthread_mutex_t lock;
    pthread_cond_t  over;
    bool            done;
    mx_error        err;
} one;

/* ---- on the device's worker thread ------------------------------------------------------- */

static void show_event(one *w, mx_said *s, int index)
{
    mx_error err = {0};
    mx_arena_reset(&w->arena);
    Merx__V1__GenerateEvent *e = mx_event_build(&w->arena, s, index, w->tokenizer);
    if (!e || cli_json_print(stdout, cli_json_event(e), &err)) w->failed = true;
    mx_said_clear(s);
}

static void on_text(mx_generation *g, int index, const char *text, size_t len, const int32_t *ids, int n_ids,
                    const mx_token_logprob *lp, int n_lp, mx_finish finish)
{
    one *w = mx_generation_user(g);
    if (index < 0 || index >= w->n) return;
    mx_said *s = &w->said[index];
    if (w->how == SHOW_LIVE) cli_print_text(stdout, w->tty, text, len);
    if (w->how == SHOW_JSON && !mx_said_logprobs(s, lp, n_lp)) w->failed = true;
    if (w->how != SHOW_EVENTS) return;
    s->finish = finish;
    if (!mx_said_text(s, text, len, ids, n_ids) || !mx_said_logprobs(s, lp, n_lp)) w->failed = true;
    else show_event(w, s, index);
}

static void on_done(mx_generation *g, const mx_error *err)
{
    one *w = mx_generation_user(g);
    pthread_mutex_lock(&w->lock);
    w->err = *err;
    w->done = true;
    pthread_cond_signal(&w->over);
    pthread_mutex_unlock(&w->lock);
}

/* ---- the caller ------------------------------------------------------------------------------ */

static void show_texts(const one *w, const mx_generation *g)
{
    for (int i = 0; i < mx_generation_count(g); i++) {
        const mx_candidate *c = mx_generation_candidate(g, i);
        if (w->n > 1) printf("%s[%d of %d]\n", i ? "\n" : "", i + 1, w->n);
        cli_print_text(stdout, w->tty, c->text, c->text_len);
        cli_print_text(stdout, false, "\n", 1);
    }
}

static mx_status show_json(one *w, const mx_generation *g, const char *model, mx_error *err)
{
    mx_generation_stats s;
    mx_generation_stats_get(g, &s);
    uint64_t now = mx_now_ns(&mx_clock_monotonic);
    uint64_t began = now - (s.queue_ns + s.prefill_ns + s.decode_ns);
    mx_arena_reset(&w->arena);
    Merx__V1__Usage *usage = mx_usage_build(&w->arena, &s);
    Merx__V1__Timings *timings = mx_timings_build(&w->arena, &s, began, began);
    if (w->how == SHOW_EVENTS) {
        Merx__V1__GenerateEvent e = MERX__V1__GENERATE_EVENT__INIT;
        e.last = true;
        e.usage = usage;
        e.timings = timings;
        e.seed = s.seed;
        return cli_json_print(stdout, cli_json_event(&e), err);
    }
    Merx__V1__GenerateResponse *r = mx_response_build(&w->arena, g, w->said, w->tokenizer);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    r->usage = usage;
    r->timings = timings;
    r->seed = s.seed;
    r->model = (char *)(uintptr_t)model;
    for (size_t i = 0; i < r->n_candidates; i++) MX_TRY(cli_json_print(stdout, cli_json_candidate(r, i), err));
    return MX_OK;
}

static void show_figures(const mx_generation *g)
{
    mx_generation_stats s;
    mx_generation_stats_get(g, &s);
    double decode = (double)s.decode_ns * 1e-9;
    fprintf(stderr, "[%d prompt + %d output tokens, first after %.0f ms, then %.1f tokens/s, seed %llu]\n", s.prompt_tokens,
            s.output_tokens, (double)s.first_token_ns * 1e-6, decode > 0 ? (s.output_tokens - 1) / decode : 0.0,
            (unsigned long long)s.seed);
}

/* Until the end, or until Ctrl-C, which asks once for the end. */
static void wait_for(one *w, mx_generation *g, const sigset_t *held, bool *interrupted)
{
    pthread_mutex_lock(&w->lock);
    while (!w->done) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 50000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&w->over, &w->lock, &until);
        if (w->done || *interrupted || !cli_signal_pending(held)) continue;
        *interrupted = true;
        mx_generation_cancel(g);             /* g is ours to close: it is there in any case */
    }
    pthread_mutex_unlock(&w->lock);
}

static mx_status run_text(one *w, mx_config *c, const mx_text_request *q, const sigset_t *held, bool *interrupted, mx_error *err)
{
    mx_generation *g = NULL;
    mx_generation_calls calls = {on_text, on_done, w};
    mx_status st = mx_generation_open(&g, q->model, q->prompt.id, q->prompt.count, &q->sampling, &calls, 0, err);
    if (!st) st = mx_generation_submit(g, err);
    if (!st) {
        wait_for(w, g, held, interrupted);
        if (w->how == SHOW_LIVE) fputc('\n', stdout);
        fflush(stdout);
        if (w->err.code) *err = w->err;
        st = w->err.code;
        if (!st && w->failed) st = mx_fail(err, MX_ERR_NO_MEMORY, "the answer could not be kept or printed");
        if (!st && w->how == SHOW_TEXTS) show_texts(w, g);
        if (!st && w->how >= SHOW_JSON) st = show_json(w, g, q->model_name, err);
        if (!st && w->how < SHOW_JSON && !mx_config_bool(c, "quiet")) show_figures(g);
    }
    mx_generation_close(g);
    return st;
}

static mx_status one_text(mx_config *c, mx_app *app, const char *prompt, const sigset_t *held, bool *interrupted, mx_error *err)
{
    one w = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER, .tty = cli_term_of(stdout).tty};
    cli_request r;
    mx_text_request q = {0};
    mx_generator *g = mx_app_model(app);
    bool chat = mx_config_bool(c, "chat") && mx_tokenizer_chat_family(mx_generator_tokenizer(g)) != MX_CHAT_NONE;
    cli_request_open(&r);
    mx_arena_open(&w.arena, (size_t)1 << 30);
    mx_status st = cli_sampling_settings(&r.sampling, c, &r.arena, err);
    if (!st) st = cli_request_prompt(&r, c, prompt, chat, err);
    if (!st) st = mx_text_request_read(&q, app, &r.arena, &r.message, err);
    if (!st) {
        bool several = q.sampling.n > 1 || q.sampling.beams > 1;
        w.how = mx_config_bool(c, "stream-json") ? SHOW_EVENTS : mx_config_bool(c, "json") ? SHOW_JSON : several ? SHOW_TEXTS : SHOW_LIVE;
        w.tokenizer = mx_generator_tokenizer(q.model);
        w.n = q.sampling.n;
        w.said = calloc((size_t)w.n + 1, sizeof *w.said);
        st = w.said ? run_text(&w, c, &q, held, interrupted, err) : mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    }
    for (int i = 0; w.said && i < w.n; i++) mx_said_free(&w.said[i]);
    free(w.said);
    mx_text_request_close(&q);
    mx_arena_close(&w.arena);
    cli_request_close(&r);
    return st;
}

int mx_cli_generate(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    mx_app app;
    sigset_t held;
    char *prompt = NULL;
    bool batch = mx_config_string(c, "input") != NULL, interrupted = false;
    if (batch && n) return cli_usage("generate takes its prompts from --input %s, and not \"%s\" too", mx_config_string(c, "input"), rest[0]);
    if (batch) return cli_batch(c);
    if (mx_config_given(c, "output")) return cli_usage("--output is for batches: give --input too");
    if (n != 1) return cli_usage("generate takes one prompt in quotes, - for standard input, or --input FILE; %d given", n);
    if (cli_read_prompt(rest[0], &prompt, &err)) {
        free(prompt);
        return cli_failed(&err);
    }
    cli_hold_signals(&held);
    mx_status st = cli_open_app(&app, c, false, &err);
    if (!st) {
        st = one_text(c, &app, prompt, &held, &interrupted, &err);
        mx_app_close(&app, 0);
    }
    free(prompt);
    if (interrupted && (!st || st == MX_ERR_CANCELLED)) return CLI_INTERRUPTED;
    return st ? cli_failed(&err) : CLI_OK;
}
