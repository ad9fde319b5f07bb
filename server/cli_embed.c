/* cli_embed.c - merx embed: vectors or classes of one text, or of a file's rows. */
#include "server/cli_parts.h"
#include "server/rows.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK 512                    /* rows that are on the way at once */

typedef struct one {
    struct run   *of;
    mx_embedding *m;
    json_t       *id;
    mx_error      err;
    bool          submitted;
} one;

typedef struct run {
    mx_config      *config;
    mx_app          app;
    mx_embedder    *model;
    mx_embedding_request q;
    mx_rows        *rows;
    cli_progress    progress;
    sigset_t        held;
    pthread_mutex_t lock;
    pthread_cond_t  all_done;
    int             running;         /* under the lock */
    int             n;
    uint64_t        tokens;
    one             chunk[CHUNK];
} run;

static void on_done(mx_embedding *m, const mx_error *err)
{
    one *o = mx_embedding_user(m);
    pthread_mutex_lock(&o->of->lock);
    o->err = *err;
    if (!--o->of->running) pthread_cond_signal(&o->of->all_done);
    pthread_mutex_unlock(&o->of->lock);
}

static mx_status open_model(run *r, mx_error *err)
{
    const mx_config *c = r->config;
    const char *pooling = mx_config_string(c, "pooling");
    MX_TRY(cli_open_app(&r->app, r->config, false, err));
    r->model = mx_app_encoder(&r->app);
    if (!r->model) return mx_fail(err, MX_ERR_ARG, "model: this is no encoder; merx generate runs language models");
    r->q = mx_embedding_defaults(r->model);
    r->q.classify = mx_config_bool(c, "classify");
    r->q.embed = !r->q.classify;
    r->q.truncate = mx_config_bool(c, "truncate");
    if (mx_config_given(c, "normalize")) r->q.normalize = mx_config_bool(c, "normalize");
    for (int p = 0; p < MX_POOL_COUNT; p++)
        if (!strcmp(pooling, mx_pooling_name((mx_pooling)p))) r->q.pooling = (mx_pooling)p;
    return MX_OK;
}

/* ---- answers ------------------------------------------------------------------------- */

static json_t *floats(const float *v, int32_t n)
{
    json_t *a = json_array();
    for (int32_t i = 0; i < n; i++) json_array_append_new(a, json_real((double)v[i]));
    return a;
}

static json_t *answer(const run *r, const one *o)
{
    mx_embedder_info info;
    json_t *j = json_object();
    mx_embedder_info_get(r->model, &info);
    if (o->id) json_object_set(j, "id", o->id);
    if (o->err.code) {
        char message[sizeof o->err.text];
        snprintf(message, sizeof message, "%s", o->err.text);
        mx_text_clean(message);
        json_object_set_new(j, "error", json_pack("{s:s}", "message", message));
        return j;
    }
    json_object_set_new(j, "tokens", json_integer(mx_embedding_tokens(o->m)));
    if (r->q.embed) json_object_set_new(j, "embedding", floats(mx_embedding_values(o->m), info.d_model));
    if (r->q.classify) {
        const float *p = mx_embedding_probabilities(o->m);
        int32_t best = 0;
        for (int32_t i = 1; i < info.classes; i++)
            if (p[i] > p[best]) best = i;
        json_object_set_new(j, "label", json_string(mx_embedder_label(r->model, best)));
        json_object_set_new(j, "probability", json_real((double)p[best]));
        json_object_set_new(j, "probabilities", floats(p, info.classes));
    }
    return j;
}

static void close_one(one *o)
{
    mx_embedding_close(o->m);
    json_decref(o->id);
    *o = (one){0};
}

/* ---- rows ------------------------------------------------------------------------------ */

static void read_row(run *r, one *o, const mx_row *line)
{
    json_error_t bad;
    const char *field = mx_config_string(r->config, "text-field");
    json_t *row = line->too_long ? NULL : json_loadb(line->text, line->len, JSON_REJECT_DUPLICATES, &bad);
    const json_t *text = json_object_get(row, field);
    *o = (one){.of = r, .id = mx_row_id(row, line->number)};
    if (line->too_long) mx_fail(&o->err, MX_ERR_ARG, "row: longer than %zu bytes", MX_ROW_MOST);
    else if (!row) mx_fail(&o->err, MX_ERR_ARG, "row: not JSON: %s at byte %d", bad.text, bad.position);
    else if (!json_is_string(text)) mx_fail(&o->err, MX_ERR_ARG, "%s: missing, or no text", field);
    else mx_embedding_open(&o->m, r->model, json_string_value(text), json_string_length(text), &r->q, on_done, o, 0, &o->err);
    json_decref(row);
}

static mx_status read_chunk(run *r, bool *more, mx_error *err)
{
    *more = true;
    while (*more && r->n < CHUNK) {
        mx_row line;
        MX_TRY(mx_rows_next(r->rows, &line, more, err));
        if (*more) read_row(r, &r->chunk[r->n++], &line);
    }
    return MX_OK;
}

/* All of the chunk through the lane; a full queue is waited for. */
static void compute_chunk(run *r)
{
    for (int i = 0; i < r->n; i++) {
        one *o = &r->chunk[i];
        if (o->err.code) continue;
        pthread_mutex_lock(&r->lock);
        r->running++;
        pthread_mutex_unlock(&r->lock);
        mx_error busy = {0};
        mx_status st = mx_embedding_submit(o->m, &busy);
        if (!st) continue;
        pthread_mutex_lock(&r->lock);
        r->running--;
        while (st == MX_ERR_BUSY && r->running) pthread_cond_wait(&r->all_done, &r->lock);
        pthread_mutex_unlock(&r->lock);
        if (st == MX_ERR_BUSY) i--;
        else o->err = busy;
    }
    pthread_mutex_lock(&r->lock);
    while (r->running) pthread_cond_wait(&r->all_done, &r->lock);
    pthread_mutex_unlock(&r->lock);
}

static mx_status write_chunk(run *r, mx_error *err)
{
    mx_status st = MX_OK;
    for (int i = 0; i < r->n; i++) {
        one *o = &r->chunk[i];
        if (!st && o->err.code && mx_config_bool(r->config, "strict")) st = mx_fail(err, o->err.code, "%.400s", o->err.text);
        json_t *j = st ? NULL : answer(r, o);
        char *text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
        if (!st && !text) st = mx_fail(err, MX_ERR_NO_MEMORY, "an answer");
        if (!st) st = mx_rows_write(r->rows, text, strlen(text), o->err.code != 0, err);
        if (!o->err.code && o->m) r->tokens += (uint64_t)mx_embedding_tokens(o->m);
        free(text);
        json_decref(j);
        close_one(o);
    }
    r->n = 0;
    return st;
}

static json_t *deciding(const mx_config *c)
{
    const char *const *models;
    int n = mx_config_list(c, "model", &models);
    return json_pack("{s:s, s:s, s:b, s:s, s:b, s:b, s:b, s:s}", "model", n ? models[0] : "", "dtype", mx_config_string(c, "dtype"), "classify",
                     mx_config_bool(c, "classify"), "pooling", mx_config_string(c, "pooling"), "normalize-given",
                     mx_config_given(c, "normalize"), "normalize", mx_config_given(c, "normalize") && mx_config_bool(c, "normalize"),
                     "truncate", mx_config_bool(c, "truncate"), "text-field", mx_config_string(c, "text-field"));
}

static mx_status embed_rows(run *r, bool *interrupted, mx_error *err)
{
    const mx_config *c = r->config;
    bool more = true;
    json_t *settings = deciding(c);
    mx_status st = settings ? mx_rows_open(&r->rows, mx_config_string(c, "input"), mx_config_string(c, "output"), mx_config_bool(c, "overwrite"), settings, err)
                            : mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    json_decref(settings);
    MX_TRY(st);
    MX_TRY(open_model(r, err));
    uint64_t began = mx_rows_done(r->rows);
    cli_progress_open(&r->progress, mx_config_bool(c, "quiet"), began);
    while (more && !*interrupted) {
        MX_TRY(read_chunk(r, &more, err));
        compute_chunk(r);
        MX_TRY(write_chunk(r, err));
        cli_progress_show(&r->progress, mx_rows_done(r->rows), mx_rows_total(r->rows), 0, r->tokens);
        *interrupted = cli_signal_pending(&r->held);
    }
    double seconds = cli_progress_seconds(&r->progress);
    cli_progress_clear(&r->progress);
    uint64_t done = mx_rows_done(r->rows);
    if (!mx_config_bool(c, "quiet"))
        fprintf(stderr, "merx: %" PRIu64 " rows, %.0f texts/s, %.0f tokens/s%s\n", done, (double)(done - began) / seconds, (double)r->tokens / seconds,
                *interrupted ? "; the same command goes on from there" : "");
    if (mx_rows_failed(r->rows)) fprintf(stderr, "merx: %" PRIu64 " of them could not be answered: look for \"error\"\n", mx_rows_failed(r->rows));
    return MX_OK;
}

static mx_status embed_text(run *r, const char *arg, mx_error *err)
{
    char *text = NULL;
    MX_TRY(open_model(r, err));
    MX_TRY(cli_read_prompt(arg, &text, err));
    one *o = &r->chunk[0];
    *o = (one){.of = r};
    r->n = 1;
    mx_status st = mx_embedding_open(&o->m, r->model, text, strlen(text), &r->q, on_done, o, 0, err);
    free(text);
    if (!st) compute_chunk(r);
    if (!st && o->err.code) {
        *err = o->err;
        st = err->code;
    }
    if (!st) st = cli_json_print(stdout, answer(r, o), err);
    close_one(o);
    return st;
}

int mx_cli_embed(mx_config *c, int n, char **rest)
{
    mx_error err = {0}, closing = {0};
    bool batch = mx_config_given(c, "input"), interrupted = false;
    if (batch ? n : n != 1) return cli_usage("embed what? merx embed -m FOLDER \"TEXT\", or -i ROWS -o ANSWERS");
    run *r = calloc(1, sizeof *r);
    if (!r) return cli_usage("out of memory");
    r->config = c;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->all_done, NULL);
    cli_hold_signals(&r->held);
    mx_status st = batch ? embed_rows(r, &interrupted, &err) : embed_text(r, rest[0], &err);
    cli_progress_clear(&r->progress);
    int status = st ? cli_failed(&err) : interrupted ? CLI_INTERRUPTED : r->rows && mx_rows_failed(r->rows) ? CLI_FAILED : CLI_OK;
    for (int i = 0; i < CHUNK; i++) close_one(&r->chunk[i]);
    mx_app_close(&r->app, 0);
    if (r->rows && mx_rows_close(r->rows, &closing)) status = cli_failed(&closing);
    free(r);
    return status;
}
