/* profile_service.c - the service Profiling: reads from published bytes, everything else
 * one operation of server/profiles.h each. */
#include "models/label.h"

#include "runtime/slab.h"
#include "server/explain.h"
#include "server/profiles.h"
#include "server/rpc.h"
#include "server/services.h"

#include <stdlib.h>
#include <string.h>

static mx_status on(const mx_app *app, mx_error *err)
{
    return app->profiles ? MX_OK : mx_fail(err, MX_ERR_STATE, "profiles are off: start the server with --profiles");
}

/* ---- operations that answer once --------------------------------------------------------- */

typedef struct work {
    mx_explain_op op;                 /* its first part is any operation                  */
    mx_call    *call;
    mx_arena    decoded;              /* the request                                      */
    atomic_bool over;
    void      (*answer)(mx_call *call, struct work *w, mx_arena *scratch);      /* NULL: the operation's own */
    mx_app     *app;
    /* ExplainLabel: */
    Merx__V1__LabelExplanation *explained;
    mx_explain_job job[MX_EXPLAINED_TEXTS];
    float      *direction[MX_EXPLAINED_TEXTS];
    atomic_int  waiting;
    char       *folder;
} work;

static void op_done(mx_profiles_op *op)
{
    work *w = (work *)op;
    mx_call *call = w->call;
    atomic_store(&w->over, true);
    mx_call_wake(call);
}

static void op_answer(mx_call *call, work *w, mx_arena *scratch)
{
    (void)scratch;
    ProtobufCMessage *m = protobuf_c_message_unpack(w->op.op.type, NULL, w->op.op.size, w->op.op.answer);
    bool sent = m && mx_call_send(call, m, false);
    if (m) protobuf_c_message_free_unpacked(m, NULL);
    mx_call_finish(call, sent ? MX_OK : MX_ERR_NO_MEMORY, sent ? NULL : "the answer is over the server's memory budget for a message");
}

static void op_pump(mx_call *call, void *user, mx_arena *scratch)
{
    work *w = user;
    if (!atomic_load(&w->over)) return;
    mx_call_turn(call, w->op.op.began_ns, w->op.op.ended_ns);
    if (w->op.op.st) mx_call_finish(call, w->op.op.st, w->op.op.err.text);
    else if (w->answer) w->answer(call, w, scratch);
    else op_answer(call, w, scratch);
}

static void op_closed(void *user)
{
    work *w = user;
    if (w->explained) merx__v1__label_explanation__free_unpacked(w->explained, NULL);
    for (int i = 0; i < MX_EXPLAINED_TEXTS; i++) mx_attribution_free(&w->job[i].out), mx_slab_free(w->direction[i]);
    mx_slab_free(w->op.op.answer);
    mx_arena_close(&w->decoded);
    mx_slab_free(w);
}

/* Takes `decoded`. */
static mx_status submit(mx_app *app, mx_call *call, const ProtobufCMessage *m, mx_profiles_run *run, mx_arena *decoded,
                        void (*answer)(mx_call *call, work *w, mx_arena *scratch), mx_error *err)
{
    static const mx_call_handler handler = {.pump = op_pump, .closed = op_closed};
    work *w = mx_slab_zeroed(sizeof *w);
    if (!w) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the request");
    w->app = app;
    w->call = call;
    w->answer = answer;
    w->decoded = *decoded;
    *decoded = (mx_arena){0};
    w->op.op = (mx_profiles_op){.run = run, .done = op_done, .request = m};
    mx_call_attach(call, &handler, w);
    mx_profiles_submit(app->profiles, &w->op.op);
    return MX_OK;
}

static mx_status begin(mx_app *app, mx_call *call, const uint8_t *msg, size_t len, mx_arena *scratch, const ProtobufCMessageDescriptor *type,
                       mx_profiles_run *run, void (*answer)(mx_call *call, work *w, mx_arena *scratch), mx_error *err)
{
    ProtobufCMessage *m;
    mx_arena decoded;
    MX_TRY(on(app, err));
    mx_arena_open(&decoded, scratch->budget);
    mx_status st = mx_message_decode(&decoded, type, msg, len, &m, err);
    if (!st) st = submit(app, call, m, run, &decoded, answer, err);
    mx_arena_close(&decoded);
    return st;
}

#define PROFILE_METHOD(name, message, run)                                                                     \
    MX_METHOD(name)                                                                                            \
    {                                                                                                          \
        return begin(app, call, msg, len, scratch, &merx__v1__##message##__descriptor, run, NULL, err);        \
    }

PROFILE_METHOD(mx_similar_users_begin, similar_users_request, mx_profiles_similar)
PROFILE_METHOD(mx_look_alike_begin, look_alike_request, mx_profiles_look_alike)
PROFILE_METHOD(mx_recommend_begin, recommend_request, mx_profiles_recommend)
PROFILE_METHOD(mx_define_tag_begin, tag_definition, mx_profiles_define)
PROFILE_METHOD(mx_list_tags_begin, list_tags_request, mx_profiles_list)
PROFILE_METHOD(mx_backfill_tag_begin, backfill_tag_request, mx_profiles_backfill)
PROFILE_METHOD(mx_delete_subject_begin, delete_subject_request, mx_profiles_erase)

/* ---- ExplainLabel: the weightiest texts' parts shared out over their words ------------------- */

static void words_done(mx_explain_job *job)
{
    work *w = job->ctx;
    mx_call *call = w->call;
    if (atomic_fetch_sub(&w->waiting, 1) == 1) mx_call_wake(call);
}

static bool put_words(mx_arena *a, const mx_explain_job *job, Merx__V1__Tag *tag, size_t of)
{
    mx_word *word;
    int32_t n = mx_attribution_words(job, a, &word);
    Merx__V1__Evidence *e = n < 0 ? NULL : mx_arena_array(a, (size_t)n + 1, sizeof *e);
    Merx__V1__Evidence *whole = mx_arena_array(a, 1, sizeof *whole);
    if (!e || !whole) return false;
    *whole = *tag->evidence[of];
    for (int32_t i = 0; i < n; i++) {
        e[i] = *whole;
        e[i].text = word[i].text;
        e[i].weight = word[i].weight;
        tag->evidence[tag->n_evidence++] = &e[i];
        whole->weight -= word[i].weight;                    /* the text without its words */
    }
    tag->evidence[of] = whole;
    return true;
}

static void answer_words(mx_call *call, work *w, mx_arena *scratch)
{
    Merx__V1__LabelExplanation r;
    Merx__V1__Tag tag;
    size_t room;
    if (atomic_load(&w->waiting)) return;
    mx_call_turn(call, w->op.op.began_ns, mx_now_ns(&mx_clock_monotonic));      /* the words' part is of it */
    r = *w->explained;
    tag = *w->explained->tag;
    room = tag.n_evidence;
    for (int i = 0; i < w->op.n_texts; i++) room += (size_t)w->job[i].out.n;
    tag.evidence = mx_arena_array(scratch, room + 1, sizeof *tag.evidence);
    bool ok = tag.evidence != NULL;
    for (size_t i = 0; ok && i < tag.n_evidence; i++) tag.evidence[i] = w->explained->tag->evidence[i];
    for (int i = 0; ok && i < w->op.n_texts; i++)
        if (!w->job[i].st) ok = put_words(scratch, &w->job[i], &tag, w->op.text[i].evidence);
    r.tag = &tag;
    ok = ok && mx_call_send(call, &r.base, false);
    mx_call_finish(call, ok ? MX_OK : MX_ERR_NO_MEMORY, ok ? NULL : "the answer is over the server's memory budget for a message");
}

static bool ask_words(work *w, int i, const char *folder, int32_t dim)
{
    const Merx__V1__LabelExplanation *x = w->explained;
    float *v = w->direction[i] = mx_slab_zeroed((size_t)dim * sizeof *v);
    if (!v) return false;
    for (int32_t c = 0; c < dim; c++) v[c] = (float)(w->op.text[i].factor * x->definition->head[MX_FEATURES + c]);
    w->job[i] = (mx_explain_job){.folder = folder, .text = x->tag->evidence[w->op.text[i].evidence]->text, .done = words_done, .ctx = w,
                                 .ask = {.class_index = -1, .direction = v}};
    return true;
}

static void answer_explained(mx_call *call, work *w, mx_arena *scratch)
{
    mx_embedder_info info = {0};
    mx_embedder *encoder = mx_profiles_encoder(w->app->profiles);
    w->explained = merx__v1__label_explanation__unpack(NULL, w->op.op.size, w->op.op.answer);
    if (!w->explained || !encoder || !w->app->explainer || !w->op.n_texts) {
        op_answer(call, w, scratch);
        return;
    }
    mx_embedder_info_get(encoder, &info);
    for (int i = 0; i < w->op.n_texts; i++)
        if (!ask_words(w, i, info.path, info.d_model)) {
            mx_call_finish(call, MX_ERR_NO_MEMORY, "no memory for an explanation");
            return;
        }
    w->answer = answer_words;
    atomic_store(&w->waiting, w->op.n_texts);
    for (int i = 0, n = w->op.n_texts; i < n; i++) mx_explainer_submit(w->app->explainer, &w->job[i]);
}

MX_METHOD(mx_explain_label_begin)
{
    return begin(app, call, msg, len, scratch, &merx__v1__explain_label_request__descriptor, mx_profiles_explain, answer_explained, err);
}

/* ---- reading -------------------------------------------------------------------------------------- */

/* What is left out of a profile, and told. */
typedef struct mask { Merx__V1__Purpose purpose; char **exclude; size_t n; bool embedding; } mask;

static const char *const maskable[] = {"evidence", "tags", "features", "rfm", "history"};
enum { MASKABLE = sizeof maskable / sizeof *maskable };

static mx_status check_mask(const mask *m, mx_error *err)
{
    if ((unsigned)m->purpose > MERX__V1__PURPOSE__PURPOSE_PRICE) return mx_fail(err, MX_ERR_ARG, "purpose: %d is none", (int)m->purpose);
    for (size_t i = 0; i < m->n; i++) {
        int k = 0;
        while (k < MASKABLE && strcmp(maskable[k], m->exclude[i]) != 0) k++;
        if (k == MASKABLE) return mx_fail(err, MX_ERR_ARG, "exclude[%zu]: \"%.40s\" is none of evidence, tags, features, rfm, history", i, m->exclude[i]);
    }
    return MX_OK;
}

static bool hides(const mask *m, const char *field)
{
    if (m->purpose == MERX__V1__PURPOSE__PURPOSE_PRICE && (!strcmp(field, "tags") || !strcmp(field, "features") || !strcmp(field, "history"))) return true;
    for (size_t i = 0; i < m->n; i++)
        if (!strcmp(m->exclude[i], field)) return true;
    return false;
}

static bool hides_nothing(const mask *m)
{
    return !m->n && m->purpose != MERX__V1__PURPOSE__PURPOSE_PRICE;
}

/* A vector tells what features do. */
static bool hides_embedding(const mask *m)
{
    return m->embedding && m->purpose == MERX__V1__PURPOSE__PURPOSE_PRICE;
}

/* A copy without what is hidden. */
static bool mask_profile(const mask *m, Merx__V1__Profile *p, mx_arena *a)
{
    char **gone = mx_arena_array(a, p->n_suppressed_fields + MASKABLE + 2, sizeof *gone);
    Merx__V1__Tag *tag = mx_arena_array(a, p->n_tags + 1, sizeof *tag), **list = mx_arena_array(a, p->n_tags + 1, sizeof *list);
    size_t n = 0;
    if (!gone || !tag || !list) return false;
    for (; n < p->n_suppressed_fields; n++) gone[n] = p->suppressed_fields[n];
    for (int k = 0; k < MASKABLE; k++)
        if (hides(m, maskable[k])) gone[n++] = (char *)(uintptr_t)maskable[k];
    for (size_t i = 0; i < p->n_tags; i++) {
        tag[i] = *p->tags[i];
        if (hides(m, "evidence")) tag[i].n_evidence = 0;
        list[i] = &tag[i];
    }
    p->tags = list;
    if (hides(m, "tags")) p->n_tags = 0;
    if (hides(m, "features")) p->n_features = 0;
    if (hides(m, "history")) p->n_history = 0;
    if (hides(m, "rfm")) p->rfm = NULL;
    if (hides_embedding(m)) gone[n++] = (char *)(uintptr_t)"embedding";
    p->suppressed_fields = gone;
    p->n_suppressed_fields = n;
    return true;
}

/* The published bytes with fields behind them that they have not, behind the length of both. */
static bool put_behind(mx_arena *a, const mx_profile_view *v, const Merx__V1__Profile *m, ProtobufCMessageUnknownField *f)
{
    enum { PREFIX = 10 };
    size_t n = v->size + merx__v1__profile__get_packed_size(m), k = 0;
    uint8_t *bytes = mx_arena_alloc(a, PREFIX + n);
    if (!bytes) return false;
    for (size_t rest = n; rest || !k; rest >>= 7) bytes[k++] = (uint8_t)((rest & 127) | (rest > 127 ? 128 : 0));
    memcpy(bytes + k, v->bytes, v->size);
    merx__v1__profile__pack(m, bytes + k + v->size);
    f->data = bytes, f->len = k + n;
    return true;
}

/* The published bytes as they are, or a masked copy; and what is told of now. */
static bool fill(mx_profiles *profiles, mx_arena *a, const mx_profile_view *v, const mask *m, Merx__V1__ProfileAnswer *r)
{
    Merx__V1__Profile now;
    if (!mx_profiles_now(profiles, v, m->embedding && !hides_embedding(m), a, &now)) return false;
    merx__v1__profile_answer__init(r);
    if (hides_nothing(m)) {
        ProtobufCMessageUnknownField *f = mx_arena_array(a, 1, sizeof *f);
        if (!f) return false;
        *f = (ProtobufCMessageUnknownField){.tag = 2, .wire_type = PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED, .len = v->framed_size, .data = (uint8_t *)(uintptr_t)v->framed};
        r->base.unknown_fields = f;
        r->base.n_unknown_fields = 1;
        return (!now.network && !now.embedding) || put_behind(a, v, &now, f);
    }
    ProtobufCMessage *p;
    mx_error err;
    if (mx_message_decode(a, &merx__v1__profile__descriptor, v->bytes, v->size, &p, &err)) return false;
    r->profile = (Merx__V1__Profile *)p;
    r->profile->network = now.network, r->profile->embedding = now.embedding;
    return mask_profile(m, r->profile, a);
}

static bool fill_error(mx_arena *a, mx_status st, const mx_error *why, Merx__V1__ProfileAnswer *r)
{
    Merx__V1__ItemStatus *s = mx_arena_array(a, 1, sizeof *s);
    char *text = mx_arena_alloc(a, sizeof why->text);
    if (!s || !text) return false;
    merx__v1__profile_answer__init(r);
    merx__v1__item_status__init(s);
    memcpy(text, why->text, sizeof why->text);
    mx_text_clean(text);
    s->code = mx_rpc_code_of(st);
    s->message = text;
    r->status = s;
    return true;
}

static mx_status check_watermark(const mx_profiles *p, uint64_t w, mx_error *err)
{
    uint64_t newest = mx_profiles_watermark(p);
    return w <= newest ? MX_OK : mx_fail(err, MX_ERR_ARG, "min_watermark: %llu has not been told; the newest is %llu", (unsigned long long)w, (unsigned long long)newest);
}

bool mx_profile_answer(mx_profiles *p, const Merx__V1__GetProfileRequest *q, mx_arena *a, Merx__V1__ProfileAnswer *out, const mx_profile_view **hold)
{
    const mask m = {q->purpose, q->exclude, q->n_exclude, q->embedding};
    mx_error why = {0};
    *hold = NULL;
    mx_status st = check_mask(&m, &why);
    if (!st) st = check_watermark(p, q->min_watermark, &why);
    if (!st) st = mx_profiles_get(p, q->user, hold, &why);
    return st ? fill_error(a, st, &why, out) : fill(p, a, *hold, &m, out);
}

/* Unary: the answer, or the error that ends the call. */
static void answer_one(mx_call *call, mx_profiles *p, const char *user, const mask *m, mx_arena *a)
{
    const mx_profile_view *v;
    Merx__V1__ProfileAnswer r;
    mx_error err = {0};
    mx_status st = mx_profiles_get(p, user, &v, &err);
    if (!st) {
        bool sent = fill(p, a, v, m, &r) && mx_call_send(call, &r.base, false);
        mx_profile_release(v);
        if (!sent) st = mx_fail(&err, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
    }
    mx_call_finish(call, st, st ? err.text : NULL);
}

static void answer_waited(mx_call *call, work *w, mx_arena *scratch)
{
    const Merx__V1__GetProfileRequest *q = (const Merx__V1__GetProfileRequest *)w->op.op.request;
    const mask m = {q->purpose, q->exclude, q->n_exclude, q->embedding};
    answer_one(call, w->app->profiles, q->user, &m, scratch);
}

MX_METHOD(mx_get_profile_begin)
{
    ProtobufCMessage *m;
    mx_arena decoded;
    MX_TRY(on(app, err));
    mx_arena_open(&decoded, scratch->budget);
    mx_status st = mx_message_decode(&decoded, &merx__v1__get_profile_request__descriptor, msg, len, &m, err);
    if (!st) {
        const Merx__V1__GetProfileRequest *q = (const Merx__V1__GetProfileRequest *)m;
        const mask k = {q->purpose, q->exclude, q->n_exclude, q->embedding};
        st = check_mask(&k, err);
        if (!st) st = check_watermark(app->profiles, q->min_watermark, err);
        if (!st && q->min_watermark > mx_profiles_visible(app->profiles)) st = submit(app, call, m, mx_profiles_wait, &decoded, answer_waited, err);
        else if (!st) answer_one(call, app->profiles, q->user, &k, scratch);
    }
    mx_arena_close(&decoded);
    return st;
}

enum { MOST_USERS = 4096 };

static void answer_batch(mx_call *call, mx_profiles *p, const Merx__V1__BatchGetProfilesRequest *q, mx_arena *a)
{
    const mask m = {q->purpose, q->exclude, q->n_exclude, q->embedding};
    size_t n = q->n_users, held = 0;
    Merx__V1__BatchGetProfilesResponse all = MERX__V1__BATCH_GET_PROFILES_RESPONSE__INIT;
    Merx__V1__ProfileAnswer *r = mx_arena_array(a, n, sizeof *r);
    const mx_profile_view **view = mx_arena_array(a, n, sizeof *view);
    all.profiles = mx_arena_array(a, n, sizeof *all.profiles);
    bool ok = r && view && all.profiles;
    for (size_t i = 0; ok && i < n; i++) {
        mx_error why = {0};
        const mx_profile_view *v;
        mx_status st = mx_profiles_get(p, q->users[i], &v, &why);
        if (!st) view[held++] = v;
        ok = st ? fill_error(a, st, &why, &r[i]) : fill(p, a, v, &m, &r[i]);
        all.profiles[i] = &r[i];
    }
    all.n_profiles = n;
    ok = ok && mx_call_send(call, &all.base, false);
    for (size_t i = 0; i < held; i++) mx_profile_release(view[i]);
    mx_call_finish(call, ok ? MX_OK : MX_ERR_NO_MEMORY, ok ? NULL : "the answer is over the server's memory budget for a message");
}

static void answer_waited_batch(mx_call *call, work *w, mx_arena *scratch)
{
    answer_batch(call, w->app->profiles, (const Merx__V1__BatchGetProfilesRequest *)w->op.op.request, scratch);
}

MX_METHOD(mx_batch_profiles_begin)
{
    ProtobufCMessage *m;
    mx_arena decoded;
    MX_TRY(on(app, err));
    mx_arena_open(&decoded, scratch->budget);
    mx_status st = mx_message_decode(&decoded, &merx__v1__batch_get_profiles_request__descriptor, msg, len, &m, err);
    if (!st) {
        const Merx__V1__BatchGetProfilesRequest *q = (const Merx__V1__BatchGetProfilesRequest *)m;
        const mask k = {q->purpose, q->exclude, q->n_exclude, q->embedding};
        st = check_mask(&k, err);
        if (!st && (!q->n_users || q->n_users > MOST_USERS)) st = mx_fail(err, MX_ERR_ARG, "users: %zu of them, 1..%d are allowed", q->n_users, MOST_USERS);
        if (!st) st = check_watermark(app->profiles, q->min_watermark, err);
        if (!st && q->min_watermark > mx_profiles_visible(app->profiles)) st = submit(app, call, m, mx_profiles_wait, &decoded, answer_waited_batch, err);
        else if (!st) answer_batch(call, app->profiles, q, scratch);
    }
    mx_arena_close(&decoded);
    return st;
}

