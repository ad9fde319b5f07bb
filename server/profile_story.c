/* profile_story.c - a user's events, and what they, their texts and their friends say. */
#include "server/profiles_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t hash(const char *s)
{
    uint64_t h = 0xcbf29ce484222325u;                   /* FNV-1a */
    for (; *s; s++) h = (h ^ (unsigned char)*s) * 0x100000001b3u;
    return h;
}

/* ---- prices within their category ----------------------------------------------------------- */

static category *category_of(mx_profiles *p, const mx_event *e, bool make)
{
    char name[300];
    snprintf(name, sizeof name, "%.200s\n%.60s", e->category ? e->category : "", e->currency ? e->currency : "");
    category **at = &p->categories[hash(name) % CATEGORIES];
    while (*at && strcmp((*at)->name, name)) at = &(*at)->next;
    if (*at || !make) return *at;
    category *c = calloc(1, sizeof *c + strlen(name) + 1);
    if (!c) return NULL;
    memcpy(c->name, name, strlen(name) + 1);
    return *at = c;
}

static int32_t rank_bin(int64_t price)
{
    int32_t b = (int32_t)(log2((double)price + 1) * 8);
    return b < 0 ? 0 : b >= RANKS ? RANKS - 1 : b;
}

static bool is_purchase(const mx_profiles *p, const mx_event *e)
{
    return e->price_minor > 0 && (p->kinds[e->type] & MX_ACT_BUY);
}

void profile_count_purchase(mx_profiles *p, const mx_event *e, int32_t by)
{
    category *c = is_purchase(p, e) ? category_of(p, e, by > 0) : NULL;
    if (!c) return;
    c->total += (uint32_t)by;
    c->count[rank_bin(e->price_minor)] += (uint32_t)by;
}

/* The share of the category's purchases that were cheaper; a half when there are few. */
static float price_rank(mx_profiles *p, const mx_event *e)
{
    const category *c = category_of(p, e, false);
    if (!c) return 0.5f;
    int32_t b = rank_bin(e->price_minor);
    double below = 0;
    for (int32_t i = 0; i < b; i++) below += c->count[i];
    return (float)((below + 0.5 * c->count[b] + 1) / ((double)c->total + 2));
}

/* ---- texts ------------------------------------------------------------------------------------ */

typedef struct reading {              /* a text on its way through the models             */
    mx_profiles  *p;
    mx_embedding *vector, *mood;
} reading;

static void read_done(mx_embedding *m, const mx_error *err)
{
    (void)err;                        /* a text that failed has no numbers */
    mx_profiles *p = ((reading *)mx_embedding_user(m))->p;
    pthread_mutex_lock(&p->embed_lock);
    p->embedding--;
    pthread_cond_signal(&p->embed_done);
    pthread_mutex_unlock(&p->embed_lock);
}

static void wait_until(mx_profiles *p, int32_t most)
{
    pthread_mutex_lock(&p->embed_lock);
    while (p->embedding > most) pthread_cond_wait(&p->embed_done, &p->embed_lock);
    pthread_mutex_unlock(&p->embed_lock);
}

static mx_embedding *submit(mx_profiles *p, mx_embedder *e, const mx_embedding_request *q, const char *text, reading *r)
{
    mx_error err = {0};
    mx_embedding *m;
    if (mx_embedding_open(&m, e, text, strlen(text), q, read_done, r, 0, &err)) return NULL;
    for (;;) {
        pthread_mutex_lock(&p->embed_lock);
        int32_t others = p->embedding++;
        pthread_mutex_unlock(&p->embed_lock);
        mx_status st = mx_embedding_submit(m, &err);
        if (!st) return m;
        pthread_mutex_lock(&p->embed_lock);
        p->embedding--;
        pthread_mutex_unlock(&p->embed_lock);
        if (st != MX_ERR_BUSY || !others) break;
        wait_until(p, others - 1);
    }
    mx_embedding_close(m);
    return NULL;
}

static void take(mx_profiles *p, const reading *r, text_numbers *to)
{
    mx_embedder_info info;
    const float *v = r->vector ? mx_embedding_values(r->vector) : NULL, *c = r->mood ? mx_embedding_probabilities(r->mood) : NULL;
    if (v && (to->vector = malloc((size_t)p->dim * sizeof *v))) memcpy(to->vector, v, (size_t)p->dim * sizeof *v);
    if (!c) return;
    mx_embedder_info_get(p->sentiment, &info);
    to->positive = c[info.classes - 1];
    to->felt = true;
}

static void read_texts(mx_profiles *p, const char *const *text, text_numbers **to, int32_t n)
{
    reading r[TEXTS] = {0};
    for (int32_t i = 0; i < n; i++) {
        r[i].p = p;
        if (p->encoder) {
            mx_embedding_request q = mx_embedding_defaults(p->encoder);
            q.truncate = true;
            r[i].vector = submit(p, p->encoder, &q, text[i], &r[i]);
        }
        if (p->sentiment) r[i].mood = submit(p, p->sentiment, &(mx_embedding_request){.classify = true, .truncate = true}, text[i], &r[i]);
    }
    wait_until(p, 0);
    for (int32_t i = 0; i < n; i++) {
        take(p, &r[i], to[i]);
        mx_embedding_close(r[i].vector), mx_embedding_close(r[i].mood);
    }
}

static bool has_text(const mx_event *e)
{
    return e->text && *e->text;
}

/* From memory, or from the log: what is there need not be read again. */
static bool remembered(mx_profiles *p, subject *s, text_numbers *to)
{
    mx_text_row row;
    for (int32_t k = 0; k < s->n_texts; k++)
        if (s->texts[k].id == to->id) {
            *to = s->texts[k];
            s->texts[k] = (text_numbers){0};
            return true;
        }
    if (p->dim && !(to->vector = malloc((size_t)p->dim * sizeof *to->vector))) return false;
    bool there = mx_text_store_get(p->texts, to->id, &row, to->vector);
    bool whole = there && (row.has_vector || !p->encoder) && (row.felt || !p->sentiment);
    if (whole) to->felt = row.felt, to->positive = row.positive;
    if (!whole || !row.has_vector) free(to->vector), to->vector = NULL;
    return whole;
}

static mx_status keep(mx_profiles *p, int32_t node, const mx_event *e, const text_numbers *t, mx_error *err)
{
    mx_text_row row = {.event = t->id, .subject = node, .object = -1, .has_vector = t->vector != NULL, .felt = t->felt, .positive = t->positive};
    mx_event_type type;
    if (!row.has_vector && !row.felt) return MX_OK;
    if (e->object && mx_user_graph_event_type(p->graph, e->type, &type) && type.object >= 0) row.object = mx_user_graph_find(p->graph, type.object, e->object);
    return mx_text_store_put(p->texts, &row, t->vector, err);
}

mx_status profile_texts(mx_profiles *p, int32_t node, subject *s, mx_error *err)
{
    const char *text[TEXTS];
    const mx_event *of[TEXTS];
    text_numbers *to[TEXTS], *fresh;
    int32_t n = 0, missing = 0;
    bool reads = p->encoder || p->sentiment;
    if (!reads && !mx_text_store_rows(p->texts)) return MX_OK;
    MX_TRY(mx_user_graph_events(p->graph, node, MX_TIME_ANY, EVENTS, &p->events, err));
    fresh = calloc(TEXTS, sizeof *fresh);
    if (!fresh) return mx_fail(err, MX_ERR_NO_MEMORY, "texts");
    for (int32_t i = 0; i < p->events.count && n < TEXTS; i++) {
        const mx_event *e = &p->events.event[i];
        if (!has_text(e)) continue;
        fresh[n].id = mx_text_event(e->id);
        if (!remembered(p, s, &fresh[n])) of[missing] = e, text[missing] = e->text, to[missing++] = &fresh[n];
        n++;
    }
    if (reads) read_texts(p, text, to, missing);
    mx_status st = MX_OK;
    for (int32_t i = 0; !st && reads && i < missing; i++) st = keep(p, node, of[i], to[i], err);
    for (int32_t k = 0; k < s->n_texts; k++) free(s->texts[k].vector);
    free(s->texts);
    s->texts = fresh;
    s->n_texts = n;
    return st || !missing ? st : profile_note(p, node, err);
}

/* What encoders make of a first text tells them apart. */
mx_status profile_open_texts(mx_profiles *p, const char *folder, mx_error *err)
{
    char path[4096];
    const char *text = "The quick brown fox jumps over the lazy dog.";
    mx_embedder_info info;
    text_numbers said = {0}, *to = &said;
    uint64_t print = 0;
    if (p->encoder) mx_embedder_info_get(p->encoder, &info), p->dim = info.d_model;
    if (p->encoder || p->sentiment) {
        read_texts(p, &text, &to, 1);
        if ((p->encoder && !said.vector) || (p->sentiment && !said.felt)) return mx_fail(err, MX_ERR_STATE, "profiles: the encoder has nothing to say of a first text");
        print = 0xcbf29ce484222325u;
        const unsigned char *b = (const unsigned char *)said.vector;
        for (size_t i = 0; b && i < (size_t)p->dim * sizeof *said.vector; i++) print = (print ^ b[i]) * 0x100000001b3u;
        b = (const unsigned char *)&said.positive;
        for (size_t i = 0; said.felt && i < sizeof said.positive; i++) print = (print ^ b[i]) * 0x100000001b3u;
        print |= 1;
        free(said.vector);
    }
    if ((size_t)snprintf(path, sizeof path, "%s/texts", folder) >= sizeof path) return mx_fail(err, MX_ERR_ARG, "profiles: the path is too long");
    MX_TRY(mx_text_store_open(&p->texts, path, print, p->dim, p->graph, err));
    p->dim = mx_text_store_dim(p->texts);
    return MX_OK;
}

/* ---- the story ------------------------------------------------------------------------------------ */

static void read_act(mx_profiles *p, const subject *s, const mx_event *e, mx_act *a, const float **vector)
{
    *a = (mx_act){.what = p->kinds[e->type]};
    *vector = NULL;
    if (is_purchase(p, e)) a->what |= MX_ACT_RANKED;
    if (e->price_minor > 0 && (a->what & (MX_ACT_BUY | MX_ACT_VIEW))) a->what |= MX_ACT_PRICED, a->price_rank = price_rank(p, e);
    if ((a->what & MX_ACT_BUY) && (e->flags & MX_EVENT_PROMO)) a->what |= MX_ACT_PROMO;
    if (!has_text(e)) return;
    a->what |= MX_ACT_TEXT | (mx_text_speaks_of_quality(e->text) ? MX_ACT_QUALITY : 0) | (mx_text_speaks_of_price(e->text) ? MX_ACT_PRICE : 0);
    uint64_t id = s->n_texts ? mx_text_event(e->id) : 0;
    for (int32_t i = 0; i < s->n_texts; i++) {
        if (s->texts[i].id != id) continue;
        *vector = s->texts[i].vector;
        if (s->texts[i].felt) a->what |= MX_ACT_FELT, a->positive = s->texts[i].positive;
        return;
    }
}

static mx_status read_friends(mx_profiles *p, int32_t node, story *t, mx_error *err)
{
    MX_TRY(mx_user_graph_edges(p->graph, node, MX_EDGES_OUT, MX_TIME_ANY, &p->edges, err));
    for (int64_t i = p->edges.count - 1; i >= 0 && t->n_friends < FRIENDS; i--) {      /* the newest */
        const mx_user_edge *e = &p->edges.edge[i];
        const subject *s = e->type == p->follow && e->other != node && e->weight > 0 ? profile_subject(p, e->other) : NULL;
        bool twice = false;
        for (int32_t k = 0; k < t->n_friends; k++) twice |= t->friend_node[k] == e->other;
        if (!s || !s->consent || twice) continue;
        t->friend_node[t->n_friends] = e->other;
        t->friends[t->n_friends].weight = e->weight;
        memcpy(t->friends[t->n_friends++].feature, s->feature, sizeof s->feature);
    }
    return MX_OK;
}

mx_status profile_story(mx_profiles *p, int32_t node, subject *s, bool friends, mx_error *err)
{
    story *t = p->story;
    t->n = t->texts = t->n_friends = 0;
    t->consent = true;
    MX_TRY(mx_user_graph_events(p->graph, node, MX_TIME_ANY, EVENTS, &p->events, err));
    t->event = p->events.event;
    t->newest_ms = p->events.count ? t->event[0].ts_ms : 0;
    for (int32_t i = 0; i < p->events.count; i++)
        if (t->event[i].type == p->consent) {
            t->consent = t->event[i].weight > 0;
            break;
        }
    if (!t->consent) return MX_OK;
    t->n = p->events.count;
    for (int32_t i = 0; i < t->n; i++) {
        const mx_event *e = &t->event[i];
        read_act(p, s, e, &t->act[i], &t->vector[i]);
        t->act[i].weight = (float)mx_event_fade(t->newest_ms - e->ts_ms);
        t->texts += has_text(e);
    }
    return friends ? read_friends(p, node, t, err) : MX_OK;
}

void profile_text_mean(const mx_profiles *p, const story *t, int32_t first, int32_t n, float *out)
{
    float weight[EVENTS];
    for (int32_t i = 0; i < n; i++) weight[i] = t->act[first + i].weight;
    mx_text_mean(weight, t->vector + first, n, p->dim, out);
}
