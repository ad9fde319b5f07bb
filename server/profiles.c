/* profiles.c - the thread that owns what follows from events, and its readers. */
#include "server/profiles_internal.h"

#include "runtime/clock.h"
#include "runtime/log.h"
#include "runtime/slab.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define SWEEP_S 60                    /* how often labels are looked at that nothing confirms */

mx_status profile_answer(mx_profiles_op *op, const ProtobufCMessage *m)
{
    op->type = m->descriptor;
    op->size = protobuf_c_message_get_packed_size(m);
    op->answer = mx_slab_alloc(op->size + 1);
    if (!op->answer) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "no memory for an answer");
    protobuf_c_message_pack(m, op->answer);
    return MX_OK;
}

void profile_done(mx_profiles_op *op, uint64_t began_ns)
{
    op->began_ns = began_ns;
    op->ended_ns = mx_now_ns(&mx_clock_monotonic);
    op->done(op);
}

/* ---- subjects ---------------------------------------------------------------------------- */

static subject **slot_of(mx_profiles *p, int32_t node)
{
    subject **c = atomic_load_explicit(&p->chunk[node / CHUNK], memory_order_acquire);
    return c ? &c[node % CHUNK] : NULL;
}

subject *profile_subject(mx_profiles *p, int32_t node)
{
    subject **at = node >= 0 && node / CHUNK < CHUNKS ? slot_of(p, node) : NULL;
    return at ? *at : NULL;
}

static subject *make_subject(mx_profiles *p, int32_t node)
{
    if (node / CHUNK >= CHUNKS) return NULL;
    if (!slot_of(p, node)) atomic_store_explicit(&p->chunk[node / CHUNK], calloc(CHUNK, sizeof(subject *)), memory_order_release);
    subject **at = slot_of(p, node), *s = at ? calloc(1, sizeof *s) : NULL;
    if (!s) return NULL;
    for (int32_t f = 0; f < MX_FEATURES; f++) s->bin[f] = -1, s->feature[f] = (float)p->prior.mean[f];
    s->consent = true;
    p->n_subjects++;
    pthread_mutex_lock(&p->shard[node % SHARDS]);
    *at = s;
    pthread_mutex_unlock(&p->shard[node % SHARDS]);
    return s;
}

static void free_subject(subject *s)
{
    if (!s) return;
    for (int32_t i = 0; i < s->n_texts; i++) free(s->texts[i].vector);
    if (s->now) mx_profile_release(&s->now->view);
    free(s->texts), free(s->text), free(s->changes), free(s);
}

mx_status profile_touch(mx_profiles *p, int32_t node, mx_error *err)
{
    subject *s = profile_subject(p, node);
    if (!s) s = make_subject(p, node);
    if (!s) return mx_fail(err, MX_ERR_NO_MEMORY, "user number %d", node);
    if (s->dirty) return MX_OK;
    if (p->n_dirty == p->dirty_room) {
        int32_t room = p->dirty_room ? 2 * p->dirty_room : 1024;
        int32_t *grown = realloc(p->dirty, (size_t)room * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%d users", room);
        p->dirty = grown;
        p->dirty_room = room;
    }
    s->dirty = true;
    p->dirty[p->n_dirty++] = node;
    return MX_OK;
}

mx_status profile_touch_all(mx_profiles *p, mx_error *err)
{
    int32_t n = mx_user_graph_nodes(p->graph), type;
    char key[MX_KEY_MOST + 1];
    for (int32_t i = 0; i < n; i++)
        if (mx_user_graph_node(p->graph, i, &type, key) && type == p->user) MX_TRY(profile_touch(p, i, err));
    return MX_OK;
}

/* ---- publication ----------------------------------------------------------------------------- */

static void publish(mx_profiles *p, int32_t node, subject *s, snapshot *fresh, const char *key)
{
    pthread_mutex_lock(&p->shard[node % SHARDS]);
    snapshot *old = s->now;
    s->now = fresh;
    pthread_mutex_unlock(&p->shard[node % SHARDS]);
    p->published += fresh ? sizeof *fresh + fresh->view.framed_size : 0;
    p->published -= old ? sizeof *old + old->view.framed_size : 0;
    if (old) mx_profile_release(&old->view);
    pthread_mutex_lock(&p->watching);
    for (mx_profile_watch *w = p->watches; w; w = w->next)
        if (!strcmp(w->user, key)) w->woke(w->ctx);
    pthread_mutex_unlock(&p->watching);
}

/* Whoever follows someone whose own features changed. */
static mx_status touch_followers(mx_profiles *p, int32_t node, mx_error *err)
{
    MX_TRY(mx_user_graph_edges(p->graph, node, MX_EDGES_IN, MX_TIME_ANY, &p->edges, err));
    for (int64_t i = 0; i < p->edges.count; i++)
        if (p->edges.edge[i].type == p->follow) MX_TRY(profile_touch(p, p->edges.edge[i].other, err));
    return MX_OK;
}

static mx_status own_features(mx_profiles *p, int32_t node, subject *s, mx_error *err)
{
    double x[MX_FEATURES];
    bool changed = false;
    MX_TRY(profile_story(p, node, s, false, err));
    mx_features(&p->prior, p->story->act, p->story->n, NULL, 0, x);
    for (int32_t f = 0; f < MX_FEATURES; f++) {
        if (mx_feature_of_friends(f) >= 0) continue;
        changed |= s->feature[f] != (float)x[f];
        s->feature[f] = (float)x[f];
    }
    changed |= s->consent != p->story->consent;
    s->consent = p->story->consent;
    if (s->consent && p->story->newest_ms) profile_count(p, s);
    return changed ? touch_followers(p, node, err) : MX_OK;
}

static mx_status one_profile(mx_profiles *p, int32_t node, subject *s, mx_error *err)
{
    char key[MX_KEY_MOST + 1];
    int32_t type;
    snapshot *fresh = NULL;
    if (!mx_user_graph_node(p->graph, node, &type, key)) return MX_OK;
    MX_TRY(profile_build(p, node, s, &fresh, err));
    bool shown = fresh && s->consent;
    publish(p, node, s, fresh, key);
    if (shown) MX_TRY(profile_fuse(p, node, s, err));
    else profile_unfuse(p, node);
    if (!s->changed) return MX_OK;
    if (p->n_storing == p->storing_room) {
        int32_t room = p->storing_room ? 2 * p->storing_room : 256, *grown = realloc(p->storing, (size_t)room * sizeof *grown);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%d users", room);
        p->storing = grown, p->storing_room = room;
    }
    p->storing[p->n_storing++] = node;
    return profile_store_labels(p, key, s, err);
}

mx_status profile_refresh(mx_profiles *p, mx_error *err)
{
    uint64_t upto = mx_user_graph_watermark(p->graph);
    int32_t own = p->n_dirty;
    mx_status st = MX_OK;
    for (int32_t i = 0; !st && i < own; i++) st = profile_texts(p, p->dirty[i], profile_subject(p, p->dirty[i]), err);
    for (int32_t i = 0; !st && i < own; i++) st = own_features(p, p->dirty[i], profile_subject(p, p->dirty[i]), err);
    for (int32_t i = 0; !st && i < p->n_dirty; i++) st = one_profile(p, p->dirty[i], profile_subject(p, p->dirty[i]), err);
    if (st) return st;                                       /* who was due stays due */
    for (int32_t i = 0; i < p->n_dirty; i++) profile_subject(p, p->dirty[i])->dirty = false;
    p->n_dirty = 0;
    atomic_store(&p->visible, upto);
    profile_hand_over(p, upto);
    return MX_OK;
}

/* ---- memory --------------------------------------------------------------------------------------- */

static size_t index_bytes(const mx_profiles *p, const space *s)
{
    return s && s->fused ? (size_t)mx_vectors_count(s->fused) * (size_t)(MX_FEATURES + p->dim + s->dim) * sizeof(float) : 0;
}

/* Each text's vector stands in the store of texts and beside its user.  What a network holds beside its index is counted as a model's. */
static size_t memory_of(const mx_profiles *p)
{
    mx_user_graph_stats g;
    size_t row = (size_t)p->dim * sizeof(float);
    mx_user_graph_statistics(p->graph, &g);
    return g.edge_bytes + g.event_bytes + g.node_bytes + (size_t)mx_text_store_rows(p->texts) * (sizeof(mx_text_row) + sizeof(text_numbers) + 2 * row) +
           (size_t)p->n_subjects * (sizeof(subject) + sizeof(subject *) + row) + p->published + index_bytes(p, p->space) + index_bytes(p, p->arriving);
}

/* Taken in steps, so that not every event asks. */
static mx_status account(mx_profiles *p, mx_error *err)
{
    const size_t step = (size_t)1 << 20;
    size_t want = p->registry ? (memory_of(p) / step + 1) * step : 0, taken = atomic_load(&p->taken);
    if (want > taken) MX_TRY(mx_registry_take(p->registry, "profiles", want - taken, err));
    if (want + step < taken) mx_registry_give(p->registry, taken - want);
    if (want > taken || want + step < taken) atomic_store(&p->taken, want);
    return MX_OK;
}

/* Those events are there already whose memory is not to be had: the next ones are refused. */
static void account_put(mx_profiles *p)
{
    mx_error err = {0};
    mx_status before = p->full.code, st = account(p, &err);
    p->full = err;
    if (st && !before) mx_log(MX_LOG_ERROR, "profiles", "%s: events are refused", err.text);
    if (!st && before) mx_log(MX_LOG_INFO, "profiles", "there is memory again: events are taken");
}

mx_status mx_profiles_limit(mx_profiles *p, mx_registry *r, mx_error *err)
{
    p->registry = r;
    return account(p, err);
}

size_t mx_profiles_taken(const mx_profiles *p) { return atomic_load(&((mx_profiles *)(uintptr_t)p)->taken); }

/* ---- readers ------------------------------------------------------------------------------------ */

void mx_profile_release(const mx_profile_view *v)
{
    snapshot *s = (snapshot *)(uintptr_t)v;
    if (atomic_fetch_sub(&s->refs, 1) == 1) free(s);
}

mx_status mx_profiles_get(mx_profiles *p, const char *user, const mx_profile_view **out, mx_error *err)
{
    int32_t node = mx_user_graph_find(p->graph, p->user, user);
    snapshot *s = NULL;
    if (node >= 0 && node / CHUNK < CHUNKS) {
        pthread_mutex_lock(&p->shard[node % SHARDS]);
        subject *of = profile_subject(p, node);
        s = of ? of->now : NULL;
        if (s) atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
        pthread_mutex_unlock(&p->shard[node % SHARDS]);
    }
    *out = s ? &s->view : NULL;
    return s ? MX_OK : mx_fail(err, MX_ERR_NOT_FOUND, "user: nothing is known of \"%.128s\"", user);
}

mx_embedder *mx_profiles_encoder(const mx_profiles *p) { return p->encoder; }
const mx_user_graph *mx_profiles_graph(const mx_profiles *p) { return p->graph; }
const mx_text_store *mx_profiles_texts(const mx_profiles *p) { return p->texts; }
uint64_t mx_profiles_visible(const mx_profiles *p) { return atomic_load(&p->visible); }
uint64_t mx_profiles_watermark(const mx_profiles *p) { return mx_user_graph_watermark(p->graph); }

void mx_profiles_watch(mx_profiles *p, mx_profile_watch *w)
{
    pthread_mutex_lock(&p->watching);
    w->next = p->watches;
    p->watches = w;
    pthread_mutex_unlock(&p->watching);
}

void mx_profiles_unwatch(mx_profiles *p, mx_profile_watch *w)
{
    pthread_mutex_lock(&p->watching);
    for (mx_profile_watch **at = &p->watches; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    pthread_mutex_unlock(&p->watching);
}

/* ---- events ------------------------------------------------------------------------------------------ */

/* What is wrong with an event before the graph sees it; NULL: nothing. */
static const char *refuse(mx_profiles *p, const Merx__V1__Event *m, mx_event *e, int64_t now, const char **field)
{
    bool about_consent = !strcmp(m->type, "consent");
    *field = NULL;
    *e = mx_event_defaults();
    e->id = m->event_id;
    e->type = mx_user_graph_find_event_type(p->graph, m->type);
    e->flags = m->promo ? MX_EVENT_PROMO : 0;
    e->ts_ms = m->ts_ms ? m->ts_ms : now;
    e->subject = m->user;
    e->object = *m->object ? m->object : NULL;
    if (m->weight != 0) e->weight = m->weight;
    e->dwell_s = (float)m->dwell_ms * 1e-3f;
    if (m->price_minor) e->price_minor = m->price_minor;
    if (m->quantity) e->quantity = m->quantity;
    e->currency = m->currency, e->category = m->category, e->channel = m->channel, e->session = m->session, e->text = m->text;
    if (!*m->event_id || !*m->user) return *field = *m->user ? "event_id: is empty" : "user: is empty", "MALFORMED";
    if (e->type < 0) return *field = "type: there is none of this name", "MALFORMED";
    if (about_consent && !m->_consent_case) return *field = "consent: an event of type consent must say it", "MALFORMED";
    if (m->price_minor < 0) return *field = "price_minor: must not be negative", "MALFORMED";
    if (about_consent) e->weight = m->consent ? 1 : 0;
    subject *s = profile_subject(p, mx_user_graph_find(p->graph, p->user, m->user));
    if (about_consent && s) s->consent = m->consent;
    if (about_consent) return NULL;
    if (m->_consent_case && !m->consent) return *field = "consent: not given for this event", "NO_CONSENT";
    return s && !s->consent ? *field = "consent: this user's is withdrawn", "NO_CONSENT" : NULL;
}

typedef struct batch {
    mx_event      *event;
    mx_put_result *result;
    const char   **reason, **field;   /* of those that the graph never saw                */
    int32_t        n;                 /* of all operations together                       */
} batch;

static void answer_put(mx_profiles_op *op, const batch *b, int32_t first, uint64_t watermark)
{
    const Merx__V1__PutEventsRequest *q = (const Merx__V1__PutEventsRequest *)op->request;
    Merx__V1__EventsAck r = MERX__V1__EVENTS_ACK__INIT;
    Merx__V1__RejectedEvent *bad = calloc(q->n_events + 1, sizeof *bad), **list = calloc(q->n_events + 1, sizeof *list);
    if (!bad || !list) op->st = mx_fail(&op->err, MX_ERR_NO_MEMORY, "no memory for an answer");
    r.rejected = list;
    r.watermark = watermark;
    for (size_t i = 0, at = (size_t)first; !op->st && i < q->n_events; i++, at++) {
        const mx_put_result *u = &b->result[at];
        if (!b->reason[at] && (u->code == MX_PUT_ACCEPTED || u->code == MX_PUT_LATE)) {
            r.accepted++;
            r.late += u->code == MX_PUT_LATE;
            continue;
        }
        if (!b->reason[at] && u->code == MX_PUT_DUPLICATE) {
            r.duplicates++;
            continue;
        }
        Merx__V1__RejectedEvent *x = &bad[r.n_rejected];
        merx__v1__rejected_event__init(x);
        x->index = (int32_t)i;
        x->event_id = q->events[i]->event_id;
        x->reason = (char *)(uintptr_t)(b->reason[at] ? b->reason[at] : u->code == MX_PUT_ERASED ? "ERASED" : "MALFORMED");
        x->message = (char *)(uintptr_t)(b->reason[at] ? b->field[at] : u->reason);
        list[r.n_rejected++] = x;
    }
    if (!op->st) op->st = profile_answer(op, &r.base);
    free(list), free(bad);
}

/* The events that the graph is to see, side by side; then their results back in place. */
static mx_status put_batch(mx_profiles *p, batch *b, uint64_t *watermark, mx_error *err)
{
    mx_put_ack ack;
    int32_t n = 0;
    mx_event *seen = calloc((size_t)b->n + 1, sizeof *seen);
    mx_put_result *result = calloc((size_t)b->n + 1, sizeof *result);
    mx_status st = seen && result ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%d events", b->n);
    for (int32_t i = 0; !st && i < b->n; i++)
        if (!b->reason[i]) seen[n++] = b->event[i];
    *watermark = mx_user_graph_watermark(p->graph);
    if (!st && n) {
        st = mx_user_graph_put(p->graph, seen, n, mx_wall_ms(), result, &ack, err);
        if (!st) *watermark = ack.watermark;
    }
    n = 0;
    for (int32_t i = 0; !st && i < b->n; i++) {
        if (b->reason[i]) continue;
        b->result[i] = result[n++];
        int32_t known = b->event[i].type == p->consent ? mx_user_graph_find(p->graph, p->user, b->event[i].subject) : -1;
        if (known >= 0) st = profile_touch(p, known, err);         /* what was taken for said may not be what counts */
        if (st || b->result[i].code > MX_PUT_LATE) continue;
        profile_count_purchase(p, &b->event[i], 1);
        profile_count_item(p, &b->event[i], 1);
        st = profile_touch(p, b->result[i].subject, err);
    }
    free(seen), free(result);
    return st;
}

mx_status mx_profiles_put(mx_profiles *p, mx_profiles_op *op)
{
    size_t n = ((const Merx__V1__PutEventsRequest *)op->request)->n_events;
    if (p->full.code) return mx_fail(&op->err, p->full.code, "events: %s", p->full.text);
    return n <= PUT_MOST ? MX_OK : mx_fail(&op->err, MX_ERR_ARG, "events: %zu of them, up to %d are allowed", n, PUT_MOST);
}

/* All of a run of put operations with one flush; each is answered here. */
static void put_all(mx_profiles *p, mx_profiles_op *first, mx_profiles_op *end)
{
    batch b = {0};
    mx_error err = {0};
    uint64_t watermark = 0;
    int64_t now = mx_wall_ms();
    uint64_t began = mx_now_ns(&mx_clock_monotonic);
    size_t n = 0;
    if (p->full.code) account_put(p);
    for (mx_profiles_op *op = first; op != end; op = op->next) {
        op->st = mx_profiles_put(p, op);
        if (!op->st) n += ((const Merx__V1__PutEventsRequest *)op->request)->n_events;
    }
    b.event = calloc(n + 1, sizeof *b.event), b.result = calloc(n + 1, sizeof *b.result);
    b.reason = calloc(n + 1, sizeof *b.reason), b.field = calloc(n + 1, sizeof *b.field);
    mx_status st = b.event && b.result && b.reason && b.field ? MX_OK : mx_fail(&err, MX_ERR_NO_MEMORY, "%zu events", n);
    for (mx_profiles_op *op = first; !st && op != end; op = op->next) {
        const Merx__V1__PutEventsRequest *q = (const Merx__V1__PutEventsRequest *)op->request;
        for (size_t i = 0; !op->st && i < q->n_events; i++, b.n++) b.reason[b.n] = refuse(p, q->events[i], &b.event[b.n], now, &b.field[b.n]);
    }
    if (!st) st = put_batch(p, &b, &watermark, &err);
    int32_t at = 0;
    for (mx_profiles_op *op = first, *next; op != end; op = next) {
        next = op->next;
        if (st && !op->st) op->st = mx_fail(&op->err, st, "%s", err.text);
        size_t here = op->st ? 0 : ((const Merx__V1__PutEventsRequest *)op->request)->n_events;
        if (!op->st) answer_put(op, &b, at, watermark);
        at += (int32_t)here;
        profile_done(op, began);
    }
    free(b.event), free(b.result), free(b.reason), free(b.field);
}

mx_status mx_profiles_wait(mx_profiles *p, mx_profiles_op *op)
{
    (void)p, (void)op;
    return MX_OK;
}

/* ---- erasure --------------------------------------------------------------------------------------------- */

static void forget_user(mx_profiles *p, int32_t node, const char *key)
{
    subject *s = profile_subject(p, node);
    if (!s) return;
    profile_uncount(p, s);
    publish(p, node, s, NULL, key);
    profile_unfuse(p, node);
    pthread_mutex_lock(&p->shard[node % SHARDS]);
    *slot_of(p, node) = NULL;
    pthread_mutex_unlock(&p->shard[node % SHARDS]);
    p->n_subjects--;
    free_subject(s);
}

/* Whoever did something about a user that will be gone: it did not. */
static mx_status touch_whom_it_concerns(mx_profiles *p, int32_t node, mx_error *err)
{
    int32_t type;
    char key[MX_KEY_MOST + 1];
    MX_TRY(mx_user_graph_edges(p->graph, node, MX_EDGES_IN, MX_TIME_ANY, &p->edges, err));
    for (int64_t i = 0; i < p->edges.count; i++) {
        int32_t other = p->edges.edge[i].other;
        if (other == node || !mx_user_graph_node(p->graph, other, &type, key) || type != p->user) continue;
        MX_TRY(profile_touch(p, other, err));
        MX_TRY(profile_note(p, other, err));
    }
    return MX_OK;
}

/* What was made of the events that are gone. */
static mx_status erase_vectors(mx_profiles *p, int32_t node, Merx__V1__ErasureReceipt *r, mx_error *err)
{
    MX_TRY(profile_erase_vectors(p, node, &r->vectors, err));
    MX_TRY(profile_note(p, node, err));                      /* neighbours' vectors follow at once, whatever else happens */
    return mx_text_store_erase(p->texts, node, &r->text_vectors, err);
}

mx_status mx_profiles_erase(mx_profiles *p, mx_profiles_op *op)
{
    const char *key = ((const Merx__V1__DeleteSubjectRequest *)op->request)->user;
    Merx__V1__ErasureReceipt r = MERX__V1__ERASURE_RECEIPT__INIT;
    mx_erasure e;
    mx_error *err = &op->err;
    if (!*key || strlen(key) > MX_KEY_MOST) return mx_fail(err, MX_ERR_ARG, "user: 1 to %d bytes", MX_KEY_MOST);
    int32_t node = mx_user_graph_find(p->graph, p->user, key);
    if (node >= 0) {
        MX_TRY(mx_user_graph_events(p->graph, node, MX_TIME_ANY, 0, &p->events, err));
        for (int32_t i = 0; i < p->events.count; i++) profile_count_purchase(p, &p->events.event[i], -1), profile_count_item(p, &p->events.event[i], -1);
        MX_TRY(touch_whom_it_concerns(p, node, err));
    }
    MX_TRY(mx_user_graph_erase(p->graph, p->user, &key, 1, mx_wall_ms(), &e, err));
    if (node >= 0) {
        for (int32_t i = 0; i < p->n_dirty; i++)                       /* it may follow itself */
            if (p->dirty[i] == node) p->dirty[i--] = p->dirty[--p->n_dirty];
        MX_TRY(erase_vectors(p, node, &r, err));
        forget_user(p, node, key);
    }
    int64_t rows;
    MX_TRY(mx_store_erase_subject(p->store, key, e.subject, e.erased_ms, e.receipt, &rows, err));
    r.subject = e.subject, r.events = e.events, r.edges = e.edges, r.bytes_overwritten = e.bytes, r.erased_ms = e.erased_ms;
    r.watermark = e.watermark, r.receipt = e.receipt;
    return profile_answer(op, &r.base);
}

/* ---- the thread ----------------------------------------------------------------------------------------------- */

/* What is due, in a transaction of its own: an operation that fails takes nobody's labels with it. */
static mx_status refresh_stored(mx_profiles *p, mx_error *err)
{
    if (!p->n_dirty) return MX_OK;
    mx_status st = mx_store_begin(p->store, err);
    if (!st) st = profile_refresh(p, err);
    if (!st) st = mx_store_commit(p->store, err);
    if (st) mx_store_rollback(p->store);
    mx_status kept = profile_labels_stored(p, !st, st ? NULL : err);
    return st ? st : kept;
}

static mx_status run_stored(mx_profiles *p, mx_profiles_op *op, mx_error *err)
{
    MX_TRY(refresh_stored(p, err));
    mx_status st = mx_store_begin(p->store, err);
    if (!st) st = op->st = op->run(p, op);
    if (!st) st = profile_refresh(p, err);
    if (!st) st = mx_store_commit(p->store, err);
    if (st) mx_store_rollback(p->store);
    else if (op->run == mx_profiles_erase) st = mx_store_scrub(p->store, err);
    mx_status kept = profile_labels_stored(p, !st, st ? NULL : err);
    return op->st ? MX_OK : st ? st : kept;                  /* op->st: the caller is told */
}

static void carry_out(mx_profiles *p, mx_profiles_op *op)
{
    mx_error err = {0};
    while (op) {
        mx_profiles_op *end = op, *next;
        while (end && end->run == mx_profiles_put) end = end->next;
        if (end != op) {
            put_all(p, op, end);
            if (refresh_stored(p, &err)) mx_log(MX_LOG_ERROR, "profiles", "%s", err.text);
            account_put(p);
            op = end;
            continue;
        }
        next = op->next;
        if (profile_finds(p, op)) {                          /* it sees the events that came before it */
            profile_find_later(p, op);
            op = next;
            continue;
        }
        uint64_t began = mx_now_ns(&mx_clock_monotonic);
        mx_status st = run_stored(p, op, &err);
        if (st) mx_log(MX_LOG_ERROR, "profiles", "%s", err.text);
        if (st && !op->st) op->st = mx_fail(&op->err, st, "%s", err.text);
        profile_done(op, began);
        op = next;
    }
}

/* Labels whose time is over. */
static void sweep(mx_profiles *p)
{
    mx_error err = {0};
    int64_t now = mx_wall_ms();
    int32_t n = mx_user_graph_nodes(p->graph);
    for (int32_t i = 0; i < n; i++) {
        subject *s = profile_subject(p, i);
        if (s && s->expires_ms && s->expires_ms < now && profile_touch(p, i, &err)) break;
    }
    if (refresh_stored(p, &err)) mx_log(MX_LOG_ERROR, "profiles", "%s", err.text);
}

static void *work(void *arg)
{
    mx_profiles *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += SWEEP_S;
        int late = 0;
        while (!p->first && !p->closing && late != ETIMEDOUT) late = pthread_cond_timedwait(&p->more, &p->lock, &until);
        if (!p->first && p->closing) break;
        mx_profiles_op *all = p->first;
        p->first = NULL, p->last = &p->first;
        pthread_mutex_unlock(&p->lock);
        if (all) carry_out(p, all);
        else sweep(p);
        pthread_mutex_lock(&p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void mx_profiles_submit(mx_profiles *p, mx_profiles_op *op)
{
    op->next = NULL;
    pthread_mutex_lock(&p->lock);
    *p->last = op;
    p->last = &op->next;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
}

/* ---- opening ------------------------------------------------------------------------------------------------------ */

static mx_status open_graph(mx_profiles *p, const char *folder, mx_error *err)
{
    static const struct { const char *name; uint32_t what; } known[] = {
        {"view", MX_ACT_VIEW}, {"cart", MX_ACT_VIEW}, {"visit", MX_ACT_VIEW}, {"search", MX_ACT_VIEW}, {"buy", MX_ACT_BUY},
        {"follow", MX_ACT_SOCIAL}, {"join", MX_ACT_SOCIAL}, {"share", MX_ACT_SOCIAL}, {"review", MX_ACT_SOCIAL},
    };
    MX_TRY(mx_user_graph_open(&p->graph, folder, NULL, err));
    MX_TRY(mx_user_graph_declare_usual(p->graph, err));
    p->user = mx_user_graph_find_node_type(p->graph, "user");
    p->follow = mx_user_graph_find_event_type(p->graph, "follow");
    mx_event_type consent = {.name = "consent", .subject = p->user, .object = -1};
    MX_TRY(mx_user_graph_declare_event(p->graph, &consent, &p->consent, err));
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        int32_t type = mx_user_graph_find_event_type(p->graph, known[i].name);
        if (type >= 0) p->kinds[type] = known[i].what;
    }
    return MX_OK;
}

/* The network hears of everybody's words before profiles are made with what it says. */
static mx_status first_profiles(mx_profiles *p, const char *network, const char *name, mx_error *err)
{
    space_parts parts;
    MX_TRY(profile_make_space(p, name, 1, network, &p->space, err));
    MX_TRY(profile_touch_all(p, err));
    for (int32_t i = 0; i < p->n_dirty; i++) {
        MX_TRY(mx_user_graph_events(p->graph, p->dirty[i], MX_TIME_ANY, 0, &p->events, err));
        for (int32_t k = 0; k < p->events.count; k++) profile_count_purchase(p, &p->events.event[k], 1), profile_count_item(p, &p->events.event[k], 1);
        MX_TRY(profile_load_labels(p, p->dirty[i], profile_subject(p, p->dirty[i]), err));
        if (network) MX_TRY(profile_texts(p, p->dirty[i], profile_subject(p, p->dirty[i]), err));
    }
    MX_TRY(profile_open_parts(p, network, &parts, err));
    MX_TRY(profile_start_space(p->space, &parts, err));
    float *z = calloc((size_t)p->space->dim + 1, sizeof *z);
    if (!z) return mx_fail(err, MX_ERR_NO_MEMORY, "a network's vector");
    profile_take_space(p, p->space, z);
    MX_TRY(profile_open_finder(p, err));
    MX_TRY(refresh_stored(p, err));
    atomic_store(&p->visible, mx_user_graph_watermark(p->graph));
    return mx_text_store_sync(p->texts, err);
}

static mx_status open_files(mx_profiles *p, const char *folder, mx_error *err)
{
    char path[4096];
    if ((size_t)snprintf(path, sizeof path, "%s/profiles.db", folder) >= sizeof path) return mx_fail(err, MX_ERR_ARG, "profiles: the path is too long");
    if (mkdir(folder, 0777) && errno != EEXIST) return mx_fail(err, MX_ERR_IO, "%s: %s", folder, strerror(errno));
    MX_TRY(open_graph(p, folder, err));
    MX_TRY(profile_open_texts(p, folder, err));
    MX_TRY(mx_store_open(&p->store, path, err));
    return profile_open_tags(p, err);
}

mx_status mx_profiles_open(mx_profiles **out, const char *folder, const mx_profiles_options *o, mx_error *err)
{
    mx_status st;
    *out = NULL;
    mx_profiles *p = calloc(1, sizeof *p);
    if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "profiles");
    for (int i = 0; i < SHARDS; i++) pthread_mutex_init(&p->shard[i], NULL);
    for (int i = 0; i < DOORS; i++) pthread_mutex_init(&p->door[i], NULL);
    pthread_mutex_init(&p->lock, NULL), pthread_mutex_init(&p->watching, NULL), pthread_mutex_init(&p->embed_lock, NULL);
    pthread_cond_init(&p->more, NULL), pthread_cond_init(&p->embed_done, NULL);
    p->last = &p->first;
    p->prior = mx_feature_prior_default();
    p->encoder = o->encoder, p->sentiment = o->sentiment, p->device = o->device;
    pthread_mutex_init(&p->popular_lock, NULL);
    mx_arena_open(&p->arena, (size_t)64 << 20);
    p->story = calloc(1, sizeof *p->story);
    if (!p->story) MX_TRY_GOTO(st, mx_fail(err, MX_ERR_NO_MEMORY, "profiles"), fail);
    MX_TRY_GOTO(st, open_files(p, folder, err), fail);
    MX_TRY_GOTO(st, first_profiles(p, o->network, o->network_name, err), fail);
    if (pthread_create(&p->thread, NULL, work, p)) MX_TRY_GOTO(st, mx_fail(err, MX_ERR_NO_MEMORY, "the profiles' thread"), fail);
    p->thread_runs = true;
    *out = p;
    return MX_OK;
fail:
    mx_profiles_close(p);
    return st;
}

static void free_memory(mx_profiles *p)
{
    for (int32_t c = 0; c < CHUNKS; c++) {
        subject **list = atomic_load(&p->chunk[c]);
        for (int32_t i = 0; list && i < CHUNK; i++) free_subject(list[i]);
        free(list);
    }
    for (int32_t i = 0; i < CATEGORIES; i++)
        for (category *c = p->categories[i], *next; c; c = next) next = c->next, free(c);
    mx_event_list_free(&p->events), mx_user_edges_free(&p->edges);
    mx_arena_close(&p->arena);
    free(p->story ? p->story->z : NULL), free(p->story), free(p->dirty), free(p->storing), free(p->popular);
    pthread_mutex_destroy(&p->popular_lock);
    for (int i = 0; i < SHARDS; i++) pthread_mutex_destroy(&p->shard[i]);
    for (int i = 0; i < DOORS; i++) pthread_mutex_destroy(&p->door[i]);
    pthread_mutex_destroy(&p->lock), pthread_mutex_destroy(&p->watching), pthread_mutex_destroy(&p->embed_lock);
    pthread_cond_destroy(&p->more), pthread_cond_destroy(&p->embed_done);
    free(p);
}

void mx_profiles_close(mx_profiles *p)
{
    if (!p) return;
    profile_close_finder(p);
    profile_stop_space(p->space);
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
    if (p->thread_runs) pthread_join(p->thread, NULL);
    profile_close_space(p->space);
    profile_close_tags(p);
    mx_store_close(p->store);
    mx_text_store_close(p->texts);
    mx_user_graph_close(p->graph);
    if (p->registry) mx_registry_give(p->registry, atomic_load(&p->taken));
    free_memory(p);
}
