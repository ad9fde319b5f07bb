/* generate.c - the Generation service: Generate, Stream, GenerateBatch.
 *
 * One call is one `work`; it holds one item, or in a batch one per request.  An item
 * is one generation.  THREADS: begin, pump, cancelled and closed run on the call's
 * RPC thread; said() and done() on the device's worker.  They meet under work->lock,
 * where the worker only copies what is new and wakes the call. */
#include "server/rpc.h"
#include "server/services.h"

#include "runtime/log.h"
#include "runtime/slab.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH_WINDOW = 32 }; /* items of one batch in the scheduler at once: it shares the queue with others */

typedef enum item_state { WAITING, CHOOSING, RUNNING, DONE, REFUSED } item_state;

struct work;

typedef struct item {
    struct work *work;
    item_state state; /* RUNNING -> DONE under the lock; else the RPC thread's */
    mx_generation *g;
    mx_served *served; /* the version that writes it, held until the call closes */
    mx_error error;
    uint64_t submitted_ns;
    char *request_id;
    mx_style *style;  /* chosen by an experiment; NULL: none                  */
    mx_said *said; /* of each candidate, under the lock; NULL: not wanted */
    int n_said;
    bool lost; /* no memory to keep what was said                     */
} item;

typedef struct work {
    pthread_mutex_t lock;
    mx_app *app;
    mx_call *call;
    bool streams, cancelled;
    mx_said sending;  /* Stream: what is being sent; swapped with an item's  */
    mx_arena decoded; /* the requests, where they are needed after begin     */
    Merx__V1__GenerateRequest **requests, *one;
    uint64_t turn_from_ns, turn_to_ns;
    int n_items;
    item items[];
} work;

/* ---- from the worker thread ---------------------------------------------------------- */

static void said(mx_generation *g, int index, const char *text, size_t len, const int32_t *ids, int n_ids,
                 const mx_token_logprob *logprobs, int n_logprobs, mx_finish finish)
{
    item *it = mx_generation_user(g);
    work *w = it->work;
    if (index < 0 || index >= it->n_said) return;
    mx_said *s = &it->said[index];
    pthread_mutex_lock(&w->lock);
    bool kept = mx_said_logprobs(s, logprobs, n_logprobs);
    if (w->streams) {
        kept = kept && mx_said_text(s, text, len, ids, n_ids);
        s->finish = finish;
        const mx_candidate *c = finish == MX_FINISH_STOP ? mx_generation_candidate(g, index) : NULL;
        if (c && c->stop && !s->stop) s->stop = mx_slab_text(c->stop);
        mx_call_wake(w->call);
    }
    if (!kept && !it->lost) {
        it->lost = true;
        mx_generation_cancel(g);
    }
    pthread_mutex_unlock(&w->lock);
}

/* The wake is inside the lock: once the RPC thread has seen DONE the call may go. */
static void done(mx_generation *g, const mx_error *err)
{
    item *it = mx_generation_user(g);
    work *w = it->work;
    pthread_mutex_lock(&w->lock);
    if (err) it->error = *err;
    if (it->lost) mx_fail(&it->error, MX_ERR_NO_MEMORY, "no memory for the generated text");
    it->state = DONE;
    mx_call_wake(w->call);
    pthread_mutex_unlock(&w->lock);
}

/* ---- an item ---------------------------------------------------------------------------- */

/* On an error the item stays as it was. */
static mx_status run(work *w, item *it, mx_arena *arena, const Merx__V1__GenerateRequest *m, mx_error *err)
{
    mx_text_request r;
    mx_generation *g = NULL;
    uint64_t deadline = mx_call_deadline_ns(w->call);
    mx_status st;
    MX_TRY_GOTO(st, mx_text_request_read(&r, w->app, arena, m, err), out);
    int n = r.sampling.n > 0 && r.sampling.n <= MX_MAX_CANDIDATES ? r.sampling.n : 0; /* else: open refuses it */
    bool wanted = w->streams || r.sampling.logprobs >= 0;
    if (wanted && n && !it->said && !(it->said = mx_slab_zeroed((size_t)n * sizeof *it->said))) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
        goto out;
    }
    it->n_said = it->said ? n : 0;
    if (!it->request_id && !(it->request_id = mx_slab_text(r.request_id))) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
        goto out;
    }
    mx_generation_calls calls = {.text = wanted ? said : NULL, .done = done, .user = it};
    MX_TRY_GOTO(st, mx_generation_open(&g, r.model, r.prompt.id, r.prompt.count, &r.sampling, &calls, deadline, err),
                out);
    it->g = g;
    it->served = r.served;
    it->state = RUNNING;
    it->submitted_ns = mx_now_ns(&mx_clock_monotonic);
    mx_generation_job(g)->tenant = mx_call_tenant(w->call);
    st = mx_generation_submit(g, err);
    if (st) {
        it->g = NULL;
        it->served = NULL;
        it->state = WAITING;
        mx_generation_close(g);
    } else {
        r.served = NULL;       /* the item's now */
    }
out:
    mx_text_request_close(&r);
    return st;
}

/* Run it, or first ask an experiment for its style; then this is called again when that is
 * there.  On an error the item stays as it was. */
static mx_status start(work *w, item *it, mx_arena *arena, const Merx__V1__GenerateRequest *m, mx_error *err)
{
    Merx__V1__GenerateRequest styled;
    if (!m->style) return run(w, it, arena, m, err);
    if (!it->style) {
        MX_TRY(mx_style_ask(&it->style, w->app, w->call, m->style, err));
        it->state = CHOOSING;
        return MX_OK;
    }
    MX_TRY(mx_style_apply(it->style, arena, m, &styled, err));
    return run(w, it, arena, &styled, err);
}

static item_state state_of(work *w, item *it)
{
    pthread_mutex_lock(&w->lock);
    item_state st = it->state;
    pthread_mutex_unlock(&w->lock);
    return st;
}

static void log_done(const work *w, const item *it)
{
    if (!mx_log_enabled(MX_LOG_DEBUG)) return;
    mx_generation_stats st;
    mx_generation_stats_get(it->g, &st);
    mx_log(MX_LOG_DEBUG, "generate", "request \"%s\": %s, %d prompt tokens (%d cached), %d output tokens, %.1f ms",
           it->request_id, it->error.code ? it->error.text : "done", st.prompt_tokens, st.cached_tokens,
           st.output_tokens, (double)(mx_now_ns(&mx_clock_monotonic) - mx_call_accepted_ns(w->call)) / 1e6);
}

/* ---- the call ----------------------------------------------------------------------------- */

static void work_cancelled(mx_call *call, void *user)
{
    work *w = user;
    (void)call;
    w->cancelled = true;
    /* Under the lock, so that no generation is cancelled after its done(). */
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < w->n_items; i++)
        if (w->items[i].state == RUNNING) mx_generation_cancel(w->items[i].g);
    pthread_mutex_unlock(&w->lock);
}

static void work_closed(void *user)
{
    work *w = user;
    for (int i = 0; i < w->n_items; i++) {
        item *it = &w->items[i];
        if (it->g) mx_generation_close(it->g);
        mx_registry_release(it->served);
        for (int k = 0; k < it->n_said; k++) mx_said_free(&it->said[k]);
        mx_slab_free(it->said);
        mx_slab_free(it->request_id);
        mx_style_close(it->style);
    }
    mx_said_free(&w->sending);
    mx_arena_close(&w->decoded);
    pthread_mutex_destroy(&w->lock);
    mx_slab_free(w);
}

static work *work_open(mx_app *app, mx_call *call, int n_items)
{
    work *w = mx_slab_zeroed(sizeof *w + (size_t)n_items * sizeof w->items[0]);
    if (!w) return NULL;
    pthread_mutex_init(&w->lock, NULL);
    w->app = app;
    w->call = call;
    w->n_items = n_items;
    for (int i = 0; i < n_items; i++) w->items[i].work = w;
    return w;
}

/* From the first turn to the last token, of a batch of all its items; the queue before it is not of the turn. */
static void tell_turn(work *w, const item *it, const mx_generation_stats *st)
{
    uint64_t from = it->submitted_ns + st->queue_ns, to = from + st->prefill_ns + st->decode_ns;
    if (!w->turn_from_ns || from < w->turn_from_ns) w->turn_from_ns = from;
    if (to > w->turn_to_ns) w->turn_to_ns = to;
    mx_call_turn(w->call, w->turn_from_ns, w->turn_to_ns);
}

/* The whole answer of an item; NULL: the arena is full. */
static Merx__V1__GenerateResponse *respond(work *w, item *it, mx_arena *a)
{
    mx_generation_stats st;
    mx_generation_stats_get(it->g, &st);
    tell_turn(w, it, &st);
    Merx__V1__GenerateResponse *r = mx_response_build(a, it->g, it->said, mx_generator_tokenizer(it->served->generator));
    if (!r) return NULL;
    r->model = it->served->name;
    r->model_version = it->served->version;
    r->request_id = it->request_id;
    r->usage = mx_usage_build(a, &st);
    r->timings = mx_timings_build(a, &st, mx_call_accepted_ns(w->call), it->submitted_ns);
    r->seed = st.seed;
    if (it->style && !mx_style_told(it->style, a, &r->style)) return NULL;
    return r->usage && r->timings ? r : NULL;
}

static mx_status begin_one(mx_app *app, mx_call *call, const mx_call_handler *handler, bool streams,
                           const uint8_t *msg, size_t len, mx_arena *scratch, mx_error *err)
{
    ProtobufCMessage *m;
    MX_TRY(mx_message_decode(scratch, &merx__v1__generate_request__descriptor, msg, len, &m, err));
    work *w = work_open(app, call, 1);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    w->streams = streams;
    mx_call_attach(call, handler, w);
    if (((const Merx__V1__GenerateRequest *)m)->style) {       /* it is read again when the style is there */
        mx_arena_open(&w->decoded, scratch->budget);
        MX_TRY(mx_message_decode(&w->decoded, &merx__v1__generate_request__descriptor, msg, len, &m, err));
        w->one = (Merx__V1__GenerateRequest *)m;
    }
    return start(w, &w->items[0], scratch, (const Merx__V1__GenerateRequest *)m, err);
}

/* The one item, which may wait for its style.  True: it runs, or it has its end. */
static bool chosen(work *w, item *it, mx_arena *scratch)
{
    mx_error err = {.code = MX_OK};           /* not it->error: from submit on that is the worker's */
    if (state_of(w, it) != CHOOSING) return true;
    if (!mx_style_ready(it->style)) return false;
    mx_status st = w->cancelled ? mx_fail(&err, MX_ERR_CANCELLED, "cancelled") : start(w, it, scratch, w->one, &err);
    mx_arena_reset(scratch);
    if (st) {
        it->state = REFUSED;
        it->error = err;
        it->error.code = st;
    }
    return true;
}

/* ---- Generate -------------------------------------------------------------------------------- */

static void generate_pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    item *it = &w->items[0];
    if (!chosen(w, it, scratch) || state_of(w, it) == RUNNING) return;
    if (it->state == DONE) log_done(w, it);
    if (it->error.code) {
        mx_call_finish(call, it->error.code, it->error.text);
        return;
    }
    Merx__V1__GenerateResponse *r = respond(w, it, scratch);
    if (!r || !mx_call_send(call, &r->base, false)) {
        mx_call_finish(call, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
        return;
    }
    mx_call_finish(call, MX_OK, NULL);
}

MX_METHOD(mx_generate_begin)
{
    static const mx_call_handler handler = {
        .pump = generate_pump, .cancelled = work_cancelled, .closed = work_closed};
    return begin_one(app, call, &handler, false, msg, len, scratch, err);
}

/* ---- Stream ------------------------------------------------------------------------------------ */

/* Takes one candidate's news into w->sending.  Returns its index, -1 for none; *more: there
 * is more to send; *over: the generation is done. */
static int take_news(work *w, item *it, bool *more, bool *over)
{
    int index = -1;
    *more = false;
    mx_said_clear(&w->sending);
    pthread_mutex_lock(&w->lock);
    for (int i = 0; i < it->n_said; i++) {
        if (!it->said[i].any) continue;
        if (index >= 0) {
            *more = true;
            break;
        }
        mx_said t = w->sending;
        w->sending = it->said[i];
        it->said[i] = t;
        index = i;
    }
    *over = it->state == DONE || it->state == REFUSED;
    pthread_mutex_unlock(&w->lock);
    return index;
}

static bool add_totals(work *w, item *it, Merx__V1__GenerateEvent *e, mx_arena *a)
{
    mx_generation_stats st;
    mx_generation_stats_get(it->g, &st);
    tell_turn(w, it, &st);
    e->last = true;
    e->model = it->served->name;
    e->model_version = it->served->version;
    e->request_id = it->request_id;
    e->usage = mx_usage_build(a, &st);
    e->timings = mx_timings_build(a, &st, mx_call_accepted_ns(w->call), it->submitted_ns);
    e->seed = st.seed;
    if (it->style && !mx_style_told(it->style, a, &e->style)) return false;
    return e->usage && e->timings;
}

static void stream_pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    item *it = &w->items[0];
    bool more, over;
    if (!chosen(w, it, scratch)) return;
    int index = take_news(w, it, &more, &over);
    if (index < 0 && !over) return;
    bool last = over && !more;
    bool totals = last && !it->error.code;
    bool ok = true;
    if (index >= 0 || totals) {
        Merx__V1__GenerateEvent *e =
            mx_event_build(scratch, &w->sending, index < 0 ? 0 : index, mx_generator_tokenizer(it->served->generator));
        ok = e && (!totals || add_totals(w, it, e, scratch)) && mx_call_send(call, &e->base, more);
    }
    if (!last && ok) return;
    if (last && it->state == DONE) log_done(w, it);
    if (last && it->error.code)
        mx_call_finish(call, it->error.code, it->error.text);
    else if (ok)
        mx_call_finish(call, MX_OK, NULL);
    else {
        it->lost = true;
        mx_call_finish(call, MX_ERR_NO_MEMORY, "an event is over the server's memory budget for a message");
    }
}

MX_METHOD(mx_stream_begin)
{
    static const mx_call_handler handler = {.pump = stream_pump, .cancelled = work_cancelled, .closed = work_closed};
    return begin_one(app, call, &handler, true, msg, len, scratch, err);
}

/* ---- GenerateBatch ------------------------------------------------------------------------------- */

/* Submit what the window and the queue allow.  An item that finds the queue full waits
 * for an earlier item of its batch; it is refused only when none of them runs.
 * Returns true when every item has its end. */
static bool feed(work *w, mx_arena *scratch)
{
    int running = 0, open = 0;
    for (int i = 0; i < w->n_items; i++) {
        item_state s = state_of(w, &w->items[i]);
        running += s == RUNNING || s == CHOOSING;
    }
    for (int i = 0; i < w->n_items; i++) {
        item *it = &w->items[i];
        item_state s = state_of(w, it);
        bool ready = s == CHOOSING && mx_style_ready(it->style);
        if (ready || (s == WAITING && (running < BATCH_WINDOW || w->cancelled))) {
            mx_error err = {.code = MX_OK}; /* not it->error: from submit on that is the worker's */
            mx_status st = w->cancelled ? mx_fail(&err, MX_ERR_CANCELLED, "cancelled")
                                        : start(w, it, scratch, w->requests[i], &err);
            mx_arena_reset(scratch);
            if (!st) {
                running += !ready;
                open++;
                continue;
            }
            if (st == MX_ERR_BUSY && running) return false; /* an item's end wakes us again */
            it->state = REFUSED;
            it->error = err;
            it->error.code = st;
        } else if (s == WAITING || s == CHOOSING || s == RUNNING) {
            open++;
        }
    }
    return open == 0;
}

static bool build_item(work *w, item *it, Merx__V1__GenerateBatchItem *m, Merx__V1__ItemStatus *status,
                       mx_arena *a)
{
    merx__v1__generate_batch_item__init(m);
    merx__v1__item_status__init(status);
    m->status = status;
    if (it->error.code) {
        status->code = mx_rpc_code_of(it->error.code);
        mx_text_clean(it->error.text);
        status->message = it->error.text;
        return true;
    }
    m->response = respond(w, it, a);
    return m->response != NULL;
}

static void batch_pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    if (!feed(w, scratch)) return;
    size_t n = (size_t)w->n_items;
    Merx__V1__GenerateBatchItem *m = mx_arena_array(scratch, n, sizeof *m);
    Merx__V1__GenerateBatchItem **list = mx_arena_array(scratch, n, sizeof *list);
    Merx__V1__ItemStatus *status = mx_arena_array(scratch, n, sizeof *status);
    bool ok = m && list && status;
    for (size_t i = 0; ok && i < n; i++) {
        ok = build_item(w, &w->items[i], &m[i], &status[i], scratch);
        list[i] = &m[i];
    }
    Merx__V1__GenerateBatchResponse r = MERX__V1__GENERATE_BATCH_RESPONSE__INIT;
    r.n_items = n;
    r.items = list;
    if (!ok || !mx_call_send(call, &r.base, false)) {
        mx_call_finish(call, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
        return;
    }
    mx_call_finish(call, MX_OK, NULL);
}

MX_METHOD(mx_batch_begin)
{
    static const mx_call_handler handler = {.pump = batch_pump, .cancelled = work_cancelled, .closed = work_closed};
    mx_arena decoded;
    mx_arena_open(&decoded, scratch->budget);
    ProtobufCMessage *m;
    mx_status st;
    MX_TRY_GOTO(st, mx_message_decode(&decoded, &merx__v1__generate_batch_request__descriptor, msg, len, &m, err),
                fail);
    const Merx__V1__GenerateBatchRequest *q = (const Merx__V1__GenerateBatchRequest *)m;
    if (!q->n_requests || q->n_requests > MX_MAX_BATCH) {
        st = mx_fail(err, MX_ERR_ARG, "requests: %zu of them, 1..%d are allowed", q->n_requests, MX_MAX_BATCH);
        goto fail;
    }
    work *w = work_open(app, call, (int)q->n_requests);
    if (!w) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
        goto fail;
    }
    w->requests = q->requests;
    w->decoded = decoded;
    mx_call_attach(call, &handler, w);
    batch_pump(call, w, scratch);
    return MX_OK;
fail:
    mx_arena_close(&decoded);
    return st;
}
