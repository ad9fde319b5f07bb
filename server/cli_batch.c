/* cli_batch.c - merx generate -i rows.jsonl -o answers.jsonl.
 *
 * A window of rows is in flight at once, so that turns are full; answers wait in
 * it until those before them are written.  The window bounds the memory, however
 * long the input is. */
#include "server/cli_parts.h"
#include "server/rows.h"
#include "server/settings.h"

#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define TICK_NS 100000000            /* how often signals and the progress are looked at */

typedef struct batch batch;

typedef struct batch_row {
    batch         *of;
    uint64_t       number;
    json_t        *id;
    mx_generation *gen;              /* NULL: the row is bad, or still empty            */
    mx_generator  *model;
    mx_said       *said;             /* [candidates], when logprobs are asked for       */
    int            n_said;
    mx_error       err;              /* done() fills it under the lock                  */
    bool           submitted, done, out_of_memory;
    bool           drawn;            /* not greedy, no beams: the text depends on the seed */
} batch_row;

struct batch {
    mx_config      *config;
    mx_app          app;
    mx_rows        *rows;
    Merx__V1__Sampling defaults;
    mx_arena        arena, reply;    /* of the defaults; of one answer                  */
    cli_progress    progress;
    sigset_t        held;
    pthread_mutex_t lock;
    pthread_cond_t  some_done;
    uint64_t        in_flight;       /* submitted and not done; under the lock          */
    batch_row      *window;          /* a ring: rows first .. next-1                    */
    uint64_t        first, unsent, next, size, most_in_flight;
    bool            end, strict, interrupted;
};

static batch_row *row_at(batch *b, uint64_t i)
{
    return &b->window[i % b->size];
}

/* ---- on the device's worker thread ------------------------------------------------------ */

static void keep_logprobs(mx_generation *g, int index, const char *text, size_t len, const int32_t *ids, int n_ids,
                          const mx_token_logprob *lp, int n_lp, mx_finish finish)
{
    (void)text, (void)len, (void)ids, (void)n_ids, (void)finish;
    batch_row *r = mx_generation_user(g);
    if (index < r->n_said && !mx_said_logprobs(&r->said[index], lp, n_lp)) r->out_of_memory = true;
}

static void row_done(mx_generation *g, const mx_error *err)
{
    batch_row *r = mx_generation_user(g);
    batch *b = r->of;
    pthread_mutex_lock(&b->lock);
    r->err = *err;
    r->done = true;
    b->in_flight--;
    pthread_cond_signal(&b->some_done);
    pthread_mutex_unlock(&b->lock);
}

/* ---- a row becomes a request -------------------------------------------------------------- */

static mx_status open_row(batch *b, batch_row *r, json_t *json, mx_error *err)
{
    cli_request q;
    mx_text_request text = {0};
    cli_request_open(&q);
    mx_status st = cli_request_row(&q, b->config, &b->defaults, &b->app, json, err);
    if (!st) {
        st = mx_text_request_read(&text, &b->app, &q.arena, &q.message, err);
        /* A model without a template: the row asked for one with "messages". */
        if (st == MX_ERR_STATE) st = mx_fail(err, MX_ERR_ARG, "messages: this model has no chat template that Merx knows; give a prompt");
    }
    if (!st && text.sampling.logprobs >= 0) {
        r->n_said = text.sampling.n > 0 && text.sampling.n <= MX_MAX_CANDIDATES ? text.sampling.n : 0;
        r->said = calloc((size_t)r->n_said + 1, sizeof *r->said);
        if (!r->said) st = mx_fail(err, MX_ERR_NO_MEMORY, "logprobs: out of memory");
    }
    mx_generation_calls calls = {r->said ? keep_logprobs : NULL, row_done, r};
    if (!st) st = mx_generation_open(&r->gen, text.model, text.prompt.id, text.prompt.count, &text.sampling, &calls, 0, err);
    r->model = text.model;
    r->drawn = text.sampling.temperature > 0 && text.sampling.beams <= 1;
    mx_text_request_close(&text);
    cli_request_close(&q);
    return st;
}

static void read_row(batch *b, batch_row *r, const mx_row *line)
{
    json_error_t bad;
    json_t *json = line->too_long ? NULL : json_loadb(line->text, line->len, JSON_REJECT_DUPLICATES, &bad);
    *r = (batch_row){.of = b, .number = line->number, .id = mx_row_id(json, line->number)};
    json_t *id = json_object_get(json, "id");
    if (line->too_long) mx_fail(&r->err, MX_ERR_ARG, "row: longer than %zu bytes", MX_ROW_MOST);
    else if (!json) mx_fail(&r->err, MX_ERR_ARG, "row: not JSON: %s at byte %d", bad.text, bad.position);
    else if (!json_is_object(json)) mx_fail(&r->err, MX_ERR_ARG, "row: must be an object, {\"prompt\": ...}");
    else if (id && !json_is_string(id) && !json_is_integer(id)) mx_fail(&r->err, MX_ERR_ARG, "id: must be a text or a whole number");
    else open_row(b, r, json, &r->err);
    if (r->err.code) r->submitted = r->done = true;
    json_decref(json);
}

/* Read rows into the window and hand them over, as far as there is room. */
static mx_status fill_window(batch *b, mx_error *err)
{
    for (;;) {
        if (b->unsent == b->next) {
            mx_row line;
            bool more = false;
            if (b->end || b->next - b->first == b->size) return MX_OK;
            MX_TRY(mx_rows_next(b->rows, &line, &more, err));
            b->end = !more;
            if (b->end) return MX_OK;
            read_row(b, row_at(b, b->next++), &line);
        }
        batch_row *r = row_at(b, b->unsent);
        if (!r->submitted) {
            pthread_mutex_lock(&b->lock);
            bool full = b->in_flight >= b->most_in_flight;
            b->in_flight += !full;
            pthread_mutex_unlock(&b->lock);
            if (full) return MX_OK;
            mx_error refused = {0};
            mx_status st = mx_generation_submit(r->gen, &refused);
            if (st) {                                          /* BUSY: again when one is done */
                pthread_mutex_lock(&b->lock);
                b->in_flight--;
                pthread_mutex_unlock(&b->lock);
                if (st == MX_ERR_BUSY) return MX_OK;
                *err = refused;
                return st;
            }
            r->submitted = true;
        }
        b->unsent++;
    }
}

/* ---- an answer becomes a row ----------------------------------------------------------------- */

static json_t *error_json(const batch_row *r)
{
    char field[96], message[sizeof r->err.text];
    cli_error_field(r->err.text, field, sizeof field);
    snprintf(message, sizeof message, "%s", r->err.text);
    mx_text_clean(message);
    return json_pack("{s:O, s:{s:s, s:s}}", "id", r->id, "error", "field", field, "message", message);
}

static json_t *answer_json(batch *b, const batch_row *r)
{
    mx_generation_stats s;
    mx_generation_stats_get(r->gen, &s);
    mx_arena_reset(&b->reply);
    Merx__V1__GenerateResponse *m = mx_response_build(&b->reply, r->gen, r->said, mx_generator_tokenizer(r->model));
    if (!m || !(m->usage = mx_usage_build(&b->reply, &s))) return NULL;
    m->seed = s.seed;
    return cli_json_row(m, r->id, r->drawn);
}

static void close_row(batch_row *r)
{
    mx_generation_close(r->gen);
    for (int i = 0; i < r->n_said; i++) mx_said_free(&r->said[i]);
    free(r->said);
    json_decref(r->id);
    *r = (batch_row){0};
}

/* The row's own fault is an answer; a fault of ours, or of the machine, ends the run. */
static bool is_own_fault(mx_status st)
{
    return st == MX_ERR_ARG || st == MX_ERR_NOT_FOUND || st == MX_ERR_FORMAT;
}

static mx_status write_row(batch *b, batch_row *r, mx_error *err)
{
    if (r->err.code && !is_own_fault(r->err.code)) {
        *err = r->err;
        return err->code;
    }
    if (r->err.code && b->strict) return mx_fail(err, r->err.code, "row %" PRIu64 ": %.400s", r->number, r->err.text);
    json_t *j = r->err.code ? error_json(r) : r->out_of_memory || !r->id ? NULL : answer_json(b, r);
    char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    mx_status st = text ? mx_rows_write(b->rows, text, strlen(text), r->err.code != 0, err)
                        : mx_fail(err, MX_ERR_NO_MEMORY, "row %" PRIu64 ": out of memory", r->number);
    free(text);
    json_decref(j);
    return st;
}

static mx_status write_done(batch *b, mx_error *err)
{
    while (b->first < b->unsent) {
        batch_row *r = row_at(b, b->first);
        pthread_mutex_lock(&b->lock);
        bool done = r->done;
        pthread_mutex_unlock(&b->lock);
        if (!done) return MX_OK;
        MX_TRY(write_row(b, r, err));
        close_row(r);
        b->first++;
    }
    return MX_OK;
}

/* ---- the run ---------------------------------------------------------------------------------- */

static uint64_t tokens_of(const batch *b)
{
    uint64_t n = 0;
    mx_served_view list[MX_MODELS];
    int models = mx_registry_list(b->app.registry, list);
    for (int i = 0; i < models; i++) {
        mx_generator_info info;
        if (!list[i].generator) continue;
        mx_generator_info_get(list[i].generator, &info);
        n += info.output_tokens;
    }
    mx_registry_list_free(list, models);
    return n;
}

static void wait_a_tick(batch *b)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += TICK_NS;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    pthread_mutex_lock(&b->lock);
    batch_row *r = row_at(b, b->first);
    if (b->in_flight && !r->done) pthread_cond_timedwait(&b->some_done, &b->lock, &until);
    pthread_mutex_unlock(&b->lock);
}

static mx_status run(batch *b, mx_error *err)
{
    while (!b->interrupted) {
        MX_TRY(fill_window(b, err));
        MX_TRY(write_done(b, err));
        if (b->first == b->next && b->end) break;
        cli_progress_show(&b->progress, mx_rows_done(b->rows), mx_rows_total(b->rows), b->unsent - b->first, tokens_of(b));
        wait_a_tick(b);
        b->interrupted = cli_signal_pending(&b->held);
    }
    return MX_OK;
}

/* Whatever ended the run: nothing of it may be on the device any more. */
static void give_up_rows(batch *b)
{
    pthread_mutex_lock(&b->lock);
    for (uint64_t i = b->first; i < b->unsent; i++) {
        batch_row *r = row_at(b, i);
        if (r->submitted && !r->done) mx_generation_cancel(r->gen);     /* done() needs the lock that we hold */
    }
    while (b->in_flight) pthread_cond_wait(&b->some_done, &b->lock);
    pthread_mutex_unlock(&b->lock);
    for (uint64_t i = b->first; i < b->next; i++) close_row(row_at(b, i));
}

/* What the texts depend on, by name: a run goes on only with the same. */
static json_t *deciding_settings(const mx_config *c)
{
    json_t *all = json_object();
    for (int i = 0; i < mx_settings_count; i++) {
        const mx_setting *s = &mx_settings[i];
        const char *const *items;
        json_t *v = NULL;
        if (!(s->commands & MX_CMD_GENERATE) || !(s->commands & MX_DECIDES_TEXT)) continue;
        if (!s->fallback && !mx_config_given(c, s->name)) continue;
        switch (s->type) {
        case MX_SET_BOOL: v = json_boolean(mx_config_bool(c, s->name)); break;
        case MX_SET_INT: v = json_integer(mx_config_int(c, s->name)); break;
        case MX_SET_FLOAT: v = json_real(mx_config_float(c, s->name)); break;
        case MX_SET_STRING:
        case MX_SET_CHOICE: v = json_string(mx_config_string(c, s->name)); break;
        case MX_SET_LIST:
            v = json_array();
            for (int k = 0, n = mx_config_list(c, s->name, &items); k < n; k++) json_array_append_new(v, json_string(items[k]));
        }
        json_object_set_new(all, s->name, v);
    }
    return all;
}

static mx_status open_batch(batch *b, mx_error *err)
{
    mx_config *c = b->config;
    json_t *settings = deciding_settings(c);
    MX_TRY(cli_sampling_settings(&b->defaults, c, &b->arena, err));
    mx_status st = settings ? mx_rows_open(&b->rows, mx_config_string(c, "input"), mx_config_string(c, "output"), mx_config_bool(c, "overwrite"), settings, err)
                            : mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    json_decref(settings);
    MX_TRY(st);
    uint64_t seqs = (uint64_t)mx_config_int(c, "max-num-seqs"), queue = (uint64_t)mx_config_int(c, "max-num-queued-reqs");
    b->most_in_flight = seqs + (queue < seqs ? queue : seqs);      /* the next rows wait where the turns are made */
    b->size = 2 * b->most_in_flight;
    b->strict = mx_config_bool(c, "strict");
    b->window = calloc(b->size, sizeof *b->window);
    if (!b->window) return mx_fail(err, MX_ERR_NO_MEMORY, "a window of %" PRIu64 " rows", b->size);
    bool nothing_left = mx_rows_total(b->rows) && mx_rows_done(b->rows) == mx_rows_total(b->rows);
    return nothing_left ? MX_OK : cli_open_app(&b->app, c, false, err);
}

/* How it went, on stderr, and the exit status. */
static int report(batch *b, const mx_error *err, uint64_t began_at, uint64_t tokens)
{
    uint64_t done = mx_rows_done(b->rows), failed = mx_rows_failed(b->rows), total = mx_rows_total(b->rows);
    const char *output = mx_config_string(b->config, "output");
    double seconds = cli_progress_seconds(&b->progress);
    cli_progress_clear(&b->progress);
    if (err->code) cli_failed(err);
    if (err->code || b->interrupted) {
        fprintf(stderr, "merx: stopped after %" PRIu64, done);
        if (total) fprintf(stderr, " of %" PRIu64, total);
        fprintf(stderr, " rows; %s\n", mx_rows_resumable(b->rows) ? "the same command goes on from there" : "a run without files cannot go on");
        return err->code ? CLI_FAILED : CLI_INTERRUPTED;
    }
    if (!b->progress.quiet) {
        bool file = strcmp(output, "-") != 0;
        fprintf(stderr, "merx: %" PRIu64 " rows%s%s", done, file ? " in " : "", file ? output : "");
        if (began_at && done == began_at) fprintf(stderr, " (all were there)");
        else if (began_at) fprintf(stderr, " (%" PRIu64 " were there)", began_at);
        if (done > began_at) fprintf(stderr, ", %" PRIu64 " tokens in %.1f s, %.0f tokens/s", tokens, seconds, (double)tokens / seconds);
        fputc('\n', stderr);
    }
    if (failed) fprintf(stderr, "merx: %" PRIu64 " of them could not be answered: look for \"error\"\n", failed);
    return failed ? CLI_FAILED : CLI_OK;
}

int cli_batch(mx_config *c)
{
    batch b = {.config = c, .lock = PTHREAD_MUTEX_INITIALIZER, .some_done = PTHREAD_COND_INITIALIZER};
    mx_error err = {0}, closing = {0};
    mx_arena_open(&b.arena, (size_t)64 << 20);
    mx_arena_open(&b.reply, (size_t)1 << 30);
    signal(SIGPIPE, SIG_IGN);
    cli_hold_signals(&b.held);
    int status = CLI_FAILED;
    if (open_batch(&b, &err)) {
        status = cli_failed(&err);
    } else {
        uint64_t began_at = mx_rows_done(b.rows);
        cli_progress_open(&b.progress, mx_config_bool(c, "quiet"), began_at);
        run(&b, &err);
        uint64_t tokens = tokens_of(&b);
        give_up_rows(&b);
        status = report(&b, &err, began_at, tokens);
    }
    mx_app_close(&b.app, 0);
    if (mx_rows_close(b.rows, &closing)) status = cli_failed(&closing);
    free(b.window);
    mx_arena_close(&b.reply);
    mx_arena_close(&b.arena);
    return status;
}
