/* sentiment_service.c - AnalyzeSentiment and its stream: classes from the encoder's lane, and
 * the words behind them from the explainer's thread. */
#include "server/explain.h"
#include "server/rpc.h"
#include "server/services.h"
#include "server/texts.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_TEXTS = 256 };

/* One call; of a stream, one message of it at a time. */
typedef struct analysis {
    mx_app      *app;
    mx_call     *call;
    mx_arena     decoded;             /* the request                                      */
    const Merx__V1__AnalyzeSentimentRequest *q;      /* NULL: nothing is being analysed   */
    mx_served   *served;              /* held while a message is analysed                 */
    mx_embedder *model;               /* its encoder                                      */
    mx_texts    *texts;
    mx_explain_job *job;              /* [n] when words are asked for                     */
    atomic_int   waiting;
    bool         stream, explaining, cancelled;
} analysis;

static void wake(void *call)
{
    mx_call_wake(call);
}

static void job_done(mx_explain_job *job)
{
    analysis *w = job->ctx;
    mx_call *call = w->call;
    if (atomic_fetch_sub(&w->waiting, 1) == 1) mx_call_wake(call);
}

static int32_t likeliest(const float *p, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (p[i] > p[best]) best = i;
    return best;
}

/* ---- a message's way ---------------------------------------------------------------------- */

static void clear(analysis *w)
{
    for (size_t i = 0; w->job && i < w->q->n_texts; i++) mx_attribution_free(&w->job[i].out);
    free(w->job);
    mx_texts_close(w->texts);
    mx_registry_release(w->served);
    w->job = NULL, w->texts = NULL, w->q = NULL, w->served = NULL;
    w->explaining = false;
}

static mx_status open_message(analysis *w, const uint8_t *msg, size_t len, mx_error *err)
{
    ProtobufCMessage *m;
    mx_embedder_info info;
    mx_arena_reset(&w->decoded);
    MX_TRY(mx_message_decode(&w->decoded, &merx__v1__analyze_sentiment_request__descriptor, msg, len, &m, err));
    const Merx__V1__AnalyzeSentimentRequest *q = (const Merx__V1__AnalyzeSentimentRequest *)m;
    if (!q->n_texts || q->n_texts > MOST_TEXTS) return mx_fail(err, MX_ERR_ARG, "texts: %zu of them, 1..%d are allowed", q->n_texts, MOST_TEXTS);
    MX_TRY(mx_registry_encoder(w->app->registry, q->model, &w->served, err));      /* given back by clear or closed */
    w->model = w->served->encoder;
    mx_embedder_info_get(w->model, &info);
    if (info.classes < 2) return mx_fail(err, MX_ERR_STATE, "model: %s has no classification head", info.name);
    if (q->explain && !w->app->explainer) return mx_fail(err, MX_ERR_STATE, "explain: this server has no explainer");
    w->texts = mx_texts_open(w->model, q->texts, (int)q->n_texts, &(mx_embedding_request){.classify = true, .truncate = true}, mx_call_deadline_ns(w->call), mx_call_tenant(w->call), wake, w->call);
    if (!w->texts) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    w->q = q;
    return MX_OK;
}

/* False: every text has its end, and none is to be explained. */
static bool explain_next(analysis *w, const mx_embedder_info *info)
{
    int n = mx_texts_count(w->texts), submitted = 0;
    mx_error *why;
    w->explaining = true;
    if (!w->q->explain) return false;
    w->job = calloc((size_t)n, sizeof *w->job);
    for (int i = 0; w->job && i < n; i++) submitted += mx_texts_at(w->texts, i, &why) != NULL;
    atomic_store(&w->waiting, submitted);
    for (int i = 0; w->job && i < n; i++) {
        const mx_embedding *m = mx_texts_at(w->texts, i, &why);
        if (!m) continue;
        w->job[i] = (mx_explain_job){.folder = info->path, .text = w->q->texts[i], .done = job_done, .ctx = w,
                                     .ask = {.class_index = likeliest(mx_embedding_probabilities(m), info->classes)}};
        mx_explainer_submit(w->app->explainer, &w->job[i]);
    }
    return submitted > 0;
}

static bool write_words(mx_arena *a, const mx_explain_job *job, Merx__V1__Sentiment *m)
{
    mx_word *word;
    int32_t n = mx_attribution_words(job, a, &word);
    Merx__V1__TokenAttribution *t = n < 0 ? NULL : mx_arena_array(a, (size_t)n + 1, sizeof *t);
    m->tokens = mx_arena_array(a, (size_t)(n < 0 ? 0 : n) + 1, sizeof *m->tokens);
    if (!t || !m->tokens) return false;
    for (int32_t i = 0; i < n; i++) {
        merx__v1__token_attribution__init(&t[i]);
        t[i].text = word[i].text;
        t[i].weight = word[i].weight;
        t[i].begin = (int32_t)word[i].begin, t[i].end = (int32_t)word[i].end;
        m->tokens[m->n_tokens++] = &t[i];
    }
    m->score = job->out.score, m->base_score = job->out.base, m->residual = job->out.residual;
    return true;
}

static bool write_result(analysis *w, int i, const mx_embedder_info *info, mx_arena *a, Merx__V1__Sentiment *m)
{
    mx_error *why;
    const mx_embedding *of = mx_texts_at(w->texts, i, &why);
    merx__v1__sentiment__init(m);
    if (w->job && of && w->job[i].st) of = NULL, why = &w->job[i].err;
    if (!of) {
        m->status = mx_arena_array(a, 1, sizeof *m->status);
        if (!m->status) return false;
        merx__v1__item_status__init(m->status);
        mx_text_clean(why->text);
        m->status->code = mx_rpc_code_of(why->code);
        m->status->message = why->text;
        return true;
    }
    const float *p = mx_embedding_probabilities(of);
    int32_t best = likeliest(p, info->classes);
    m->label = (char *)(uintptr_t)mx_embedder_label(w->model, best);
    m->probability = (double)p[best];
    m->probabilities = (float *)(uintptr_t)p;
    m->n_probabilities = (size_t)info->classes;
    m->polarity = (double)p[info->classes - 1] - (double)p[0];
    return !w->job || write_words(a, &w->job[i], m);
}

static bool send(analysis *w, const mx_embedder_info *info, mx_arena *a)
{
    size_t n = w->q->n_texts;
    Merx__V1__AnalyzeSentimentResponse r = MERX__V1__ANALYZE_SENTIMENT_RESPONSE__INIT;
    Merx__V1__Sentiment *m = mx_arena_array(a, n, sizeof *m);
    r.results = mx_arena_array(a, n, sizeof *r.results);
    r.labels = mx_arena_array(a, (size_t)info->classes, sizeof *r.labels);
    if (!m || !r.results || !r.labels || (w->q->explain && !w->job)) return false;
    for (size_t i = 0; i < n; i++) {
        if (!write_result(w, (int)i, info, a, &m[i])) return false;
        r.results[r.n_results++] = &m[i];
    }
    for (int32_t i = 0; i < info->classes; i++) r.labels[i] = (char *)(uintptr_t)mx_embedder_label(w->model, i);
    r.n_labels = (size_t)info->classes;
    r.model = (char *)(uintptr_t)info->name;
    r.model_version = info->version;
    return mx_call_send(w->call, &r.base, false);
}

static void pump(mx_call *call, void *user, mx_arena *scratch)
{
    analysis *w = user;
    mx_embedder_info info;
    if (w->q && !mx_texts_feed(w->texts)) return;
    if (w->q && w->explaining && atomic_load(&w->waiting)) return;
    if (w->cancelled) {
        mx_call_finish(call, MX_ERR_CANCELLED, "cancelled");
        return;
    }
    if (!w->q) return;
    mx_embedder_info_get(w->model, &info);
    if (!w->explaining && explain_next(w, &info)) return;
    bool sent = send(w, &info, scratch);
    uint64_t from, to;
    if (!w->stream && mx_texts_turn(w->texts, &from, &to)) mx_call_turn(call, from, w->job ? mx_now_ns(&mx_clock_monotonic) : to);      /* the words' part is of it */
    clear(w);
    if (!sent) mx_call_finish(call, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
    else if (w->stream) mx_call_read(call);
    else mx_call_finish(call, MX_OK, NULL);
}

static void message(mx_call *call, void *user, const uint8_t *msg, size_t len, mx_arena *scratch)
{
    analysis *w = user;
    mx_error err = {.code = MX_OK};
    mx_status st = msg ? open_message(w, msg, len, &err) : MX_OK;
    if (!msg || st) {
        mx_call_finish(call, st, st ? err.text : NULL);
        return;
    }
    mx_call_hold(call);                                      /* the next message comes after this one's answer */
    pump(call, w, scratch);
}

static void cancelled(mx_call *call, void *user)
{
    analysis *w = user;
    w->cancelled = true;
    if (w->texts) mx_texts_cancel(w->texts);
    mx_call_wake(call);
}

static void closed(void *user)
{
    analysis *w = user;
    if (w->q) clear(w);
    mx_texts_close(w->texts);
    mx_registry_release(w->served);
    mx_arena_close(&w->decoded);
    free(w);
}

static analysis *open_analysis(mx_app *app, mx_call *call, bool stream, size_t budget, mx_error *err)
{
    static const mx_call_handler handler = {.pump = pump, .message = message, .cancelled = cancelled, .closed = closed};
    analysis *w = calloc(1, sizeof *w);
    if (!w) {
        mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
        return NULL;
    }
    w->app = app, w->call = call, w->stream = stream;
    mx_arena_open(&w->decoded, budget);
    mx_call_attach(call, &handler, w);
    return w;
}

MX_METHOD(mx_sentiment_begin)
{
    analysis *w = open_analysis(app, call, false, scratch->budget, err);
    if (!w) return MX_ERR_NO_MEMORY;
    MX_TRY(open_message(w, msg, len, err));
    pump(call, w, scratch);
    return MX_OK;
}

MX_METHOD(mx_stream_sentiment_begin)
{
    (void)msg, (void)len;
    return open_analysis(app, call, true, scratch->budget, err) ? MX_OK : MX_ERR_NO_MEMORY;
}
