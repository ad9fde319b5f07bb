/* embed.c - the Embeddings service: many texts in one call, each with its own end.
 *
 * One call is one `work`; begin, pump, cancelled and closed run on the call's RPC thread. */
#include "server/rpc.h"

#include "runtime/slab.h"
#include "server/services.h"
#include "server/texts.h"

#include <stdlib.h>
#include <string.h>

typedef struct work {
    mx_call     *call;
    mx_served   *served;          /* held */
    mx_embedder *model;           /* its encoder */
    mx_arena     decoded;         /* the request, whose texts are read one by one */
    const char  *request_id;
    mx_embedding_request q;
    mx_texts    *texts;
} work;

static void wake(void *call)
{
    mx_call_wake(call);
}

static Merx__V1__ItemStatus *status_of(mx_error *why, mx_arena *a, bool *ok)
{
    if (!why->code) return NULL;
    Merx__V1__ItemStatus *s = mx_arena_array(a, 1, sizeof *s);
    *ok = *ok && s;
    if (!s) return NULL;
    merx__v1__item_status__init(s);
    mx_text_clean(why->text);
    s->code = mx_rpc_code_of(why->code);
    s->message = why->text;
    return s;
}

/* The figures that both answers end with; the call is told its turn as well. */
static void tell_times(const work *w, double *queue_ms, double *turn_ms, double *total_ms)
{
    uint64_t accepted = mx_call_accepted_ns(w->call), from, to;
    *total_ms = (double)(mx_now_ns(&mx_clock_monotonic) - accepted) / 1e6;
    if (!mx_texts_turn(w->texts, &from, &to)) return;
    mx_call_turn(w->call, from, to);
    *queue_ms = (double)(from - accepted) / 1e6;
    *turn_ms = (double)(to - from) / 1e6;
}

static bool send_vectors(work *w, mx_arena *a)
{
    mx_embedder_info info;
    size_t n = (size_t)mx_texts_count(w->texts);
    bool ok = true;
    Merx__V1__EmbedResponse r = MERX__V1__EMBED_RESPONSE__INIT;
    Merx__V1__Embedding *m = mx_arena_array(a, n, sizeof *m);
    r.embeddings = mx_arena_array(a, n, sizeof *r.embeddings);
    if (!m || !r.embeddings) return false;
    mx_embedder_info_get(w->model, &info);
    for (size_t i = 0; i < n; i++) {
        mx_error *why;
        const mx_embedding *of = mx_texts_at(w->texts, (int)i, &why);
        merx__v1__embedding__init(&m[i]);
        m[i].status = status_of(why, a, &ok);
        if (of) {
            m[i].values = (float *)(uintptr_t)mx_embedding_values(of);
            m[i].n_values = (size_t)info.d_model;
            m[i].tokens = mx_embedding_tokens(of);
        }
        r.embeddings[i] = &m[i];
    }
    r.n_embeddings = n;
    r.model = (char *)(uintptr_t)info.name;
    r.request_id = (char *)(uintptr_t)w->request_id;
    tell_times(w, &r.queue_ms, &r.turn_ms, &r.total_ms);
    r.model_version = info.version;
    return ok && mx_call_send(w->call, &r.base, false);
}

static void fill_class(const work *w, const mx_embedder_info *info, const mx_embedding *of, Merx__V1__Classification *m)
{
    const float *p = mx_embedding_probabilities(of);
    int32_t best = 0;
    for (int32_t i = 1; i < info->classes; i++)
        if (p[i] > p[best]) best = i;
    m->class_index = best;
    m->label = (char *)(uintptr_t)mx_embedder_label(w->model, best);
    m->probability = p[best];
    m->probabilities = (float *)(uintptr_t)p;
    m->n_probabilities = (size_t)info->classes;
    m->tokens = mx_embedding_tokens(of);
}

static bool send_classes(work *w, mx_arena *a)
{
    mx_embedder_info info;
    size_t n = (size_t)mx_texts_count(w->texts);
    bool ok = true;
    Merx__V1__ClassifyResponse r = MERX__V1__CLASSIFY_RESPONSE__INIT;
    Merx__V1__Classification *m = mx_arena_array(a, n, sizeof *m);
    mx_embedder_info_get(w->model, &info);
    r.results = mx_arena_array(a, n, sizeof *r.results);
    r.labels = mx_arena_array(a, (size_t)info.classes, sizeof *r.labels);
    if (!m || !r.results || !r.labels) return false;
    for (size_t i = 0; i < n; i++) {
        mx_error *why;
        const mx_embedding *of = mx_texts_at(w->texts, (int)i, &why);
        merx__v1__classification__init(&m[i]);
        m[i].status = status_of(why, a, &ok);
        if (of) fill_class(w, &info, of, &m[i]);
        r.results[i] = &m[i];
    }
    for (int32_t i = 0; i < info.classes; i++) r.labels[i] = (char *)(uintptr_t)mx_embedder_label(w->model, i);
    r.n_labels = (size_t)info.classes;
    r.n_results = n;
    r.model = (char *)(uintptr_t)info.name;
    r.request_id = (char *)(uintptr_t)w->request_id;
    tell_times(w, &r.queue_ms, &r.turn_ms, &r.total_ms);
    r.model_version = info.version;
    return ok && mx_call_send(w->call, &r.base, false);
}

static void pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    if (!mx_texts_feed(w->texts)) return;
    if (mx_texts_cancelled(w->texts)) mx_call_finish(call, MX_ERR_CANCELLED, "cancelled");
    else if (w->q.classify ? send_classes(w, scratch) : send_vectors(w, scratch)) mx_call_finish(call, MX_OK, NULL);
    else mx_call_finish(call, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
}

static void cancelled(mx_call *call, void *user)
{
    mx_texts_cancel(((work *)user)->texts);
    mx_call_wake(call);
}

static void closed(void *user)
{
    work *w = user;
    mx_texts_close(w->texts);
    mx_registry_release(w->served);
    mx_arena_close(&w->decoded);
    mx_slab_free(w);
}

/* ---- begin --------------------------------------------------------------------------- */

static mx_status check(const mx_embedder *e, const mx_embedding_request *q, mx_error *err)
{
    mx_embedder_info info;
    mx_embedder_info_get(e, &info);
    if (q->classify && !info.classes) return mx_fail(err, MX_ERR_STATE, "model: %s has no classification head", info.name);
    if (q->embed && q->pooling == MX_POOL_POOLER && !info.pooler) return mx_fail(err, MX_ERR_STATE, "pooling: model %s has no pooler", info.name);
    return MX_OK;
}

/* What both requests ask for; takes `decoded`, and the reference on the model when it answers MX_OK. */
static mx_status begin(mx_call *call, mx_served *served, char **texts, size_t n, const char *request_id,
                       const mx_embedding_request *q, mx_arena *decoded, mx_arena *scratch, mx_error *err)
{
    static const mx_call_handler handler = {.pump = pump, .cancelled = cancelled, .closed = closed};
    if (!n || n > MX_MAX_TEXTS) return mx_fail(err, MX_ERR_ARG, "texts: %zu of them, 1..%d are allowed", n, MX_MAX_TEXTS);
    if (strlen(request_id) > MX_MAX_REQUEST_ID)
        return mx_fail(err, MX_ERR_ARG, "request_id: %zu bytes, at most %d", strlen(request_id), MX_MAX_REQUEST_ID);
    MX_TRY(check(served->encoder, q, err));
    work *w = mx_slab_zeroed(sizeof *w);
    if (w) w->texts = mx_texts_open(served->encoder, texts, (int)n, q, mx_call_deadline_ns(call), mx_call_tenant(call), wake, call);
    if (!w || !w->texts) {
        mx_slab_free(w);
        return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    }
    w->call = call;
    w->served = served;
    w->model = served->encoder;
    w->decoded = *decoded;
    *decoded = (mx_arena){0};
    w->request_id = request_id;
    w->q = *q;
    mx_call_attach(call, &handler, w);
    pump(call, w, scratch);
    return MX_OK;
}

static mx_status read_embed(const mx_embedder *e, const Merx__V1__EmbedRequest *m, mx_embedding_request *q, mx_error *err)
{
    static const mx_pooling of[] = {[MERX__V1__POOLING__POOLING_MEAN] = MX_POOL_MEAN, [MERX__V1__POOLING__POOLING_CLS] = MX_POOL_CLS,
                                    [MERX__V1__POOLING__POOLING_POOLER] = MX_POOL_POOLER};
    *q = mx_embedding_defaults(e);
    q->truncate = m->truncate;
    if (m->_normalize_case) q->normalize = m->normalize;
    if (m->pooling == MERX__V1__POOLING__POOLING_UNSPECIFIED) return MX_OK;
    if ((unsigned)m->pooling >= sizeof of / sizeof *of) return mx_fail(err, MX_ERR_ARG, "pooling: %d is none that is known", (int)m->pooling);
    q->pooling = of[m->pooling];
    return MX_OK;
}

MX_METHOD(mx_embed_begin)
{
    mx_arena decoded;
    mx_embedding_request q;
    mx_served *served = NULL;
    ProtobufCMessage *m;
    mx_status st;
    mx_arena_open(&decoded, scratch->budget);
    MX_TRY_GOTO(st, mx_message_decode(&decoded, &merx__v1__embed_request__descriptor, msg, len, &m, err), out);
    const Merx__V1__EmbedRequest *r = (const Merx__V1__EmbedRequest *)m;
    MX_TRY_GOTO(st, mx_registry_encoder(app->registry, r->model, &served, err), out);
    MX_TRY_GOTO(st, read_embed(served->encoder, r, &q, err), out);
    st = begin(call, served, r->texts, r->n_texts, r->request_id, &q, &decoded, scratch, err);
out:
    if (st) mx_registry_release(served);
    mx_arena_close(&decoded);
    return st;
}

MX_METHOD(mx_classify_begin)
{
    mx_arena decoded;
    mx_served *served = NULL;
    ProtobufCMessage *m;
    mx_status st;
    mx_arena_open(&decoded, scratch->budget);
    MX_TRY_GOTO(st, mx_message_decode(&decoded, &merx__v1__classify_request__descriptor, msg, len, &m, err), out);
    const Merx__V1__ClassifyRequest *r = (const Merx__V1__ClassifyRequest *)m;
    mx_embedding_request q = {.classify = true, .truncate = r->truncate};
    MX_TRY_GOTO(st, mx_registry_encoder(app->registry, r->model, &served, err), out);
    st = begin(call, served, r->texts, r->n_texts, r->request_id, &q, &decoded, scratch, err);
out:
    if (st) mx_registry_release(served);
    mx_arena_close(&decoded);
    return st;
}
