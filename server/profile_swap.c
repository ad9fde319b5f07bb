/* profile_swap.c - another graph network in place of the current one, or none, while events and reads go on.
 *
 * Whoever asks for it waits on a thread of its own; what touches profiles are operations of theirs, each short.  The new space
 * arrives: it is opened beside, follows events and erasures like the current one, gets every user into its index, and heads
 * that knew the old network are learned for it.  When it has taken in all that is visible it becomes current, in
 * one exchange of a pointer; profiles are made anew behind that, and the old space goes when nobody holds it. */
#include "server/profiles_internal.h"

#include "runtime/log.h"

#include <stdlib.h>
#include <string.h>

enum { INDEXED_AT_ONCE = 1024, ANEW_AT_ONCE = 64 };

typedef struct swap {
    mx_profiles_op  op;
    mx_profiles    *p;
    space          *fresh, *old;
    space_parts     parts;            /* until it starts                                  */
    int32_t         at, n_tags;
    bool            learns, more;     /* more: of a walk in parts                         */
    float          *earlier, *z;
    int32_t         n_earlier;
    Merx__V1__TagDefinition *head[TAGS];      /* for the tag of its place; once current, what was there before */
    bool            placed[TAGS];
    pthread_mutex_t lock;
    pthread_cond_t  news;
    bool            over;
} swap;

/* ---- operations of the profiles' thread --------------------------------------------------------- */

static mx_status arrive(mx_profiles *p, mx_profiles_op *op)
{
    if (p->arriving) return mx_fail(&op->err, MX_ERR_STATE, "network: another one is on its way; try again when it has come");
    p->arriving = ((swap *)op)->fresh;
    return MX_OK;
}

static mx_status leave(mx_profiles *p, mx_profiles_op *op)
{
    (void)op;
    p->arriving = NULL;
    return MX_OK;
}

static mx_status follow(mx_profiles *p, mx_profiles_op *op)
{
    swap *w = (swap *)op;
    MX_TRY(profile_start_space(w->fresh, &w->parts, &op->err));
    profile_hand_over(p, atomic_load(&p->visible));
    return MX_OK;
}

static mx_status index_some(mx_profiles *p, mx_profiles_op *op)
{
    swap *w = (swap *)op;
    int32_t nodes = mx_user_graph_nodes(p->graph);
    for (int32_t n = 0; n < INDEXED_AT_ONCE && w->at < nodes; w->at++) {
        const subject *s = profile_subject(p, w->at);
        if (!s || !s->now || !s->consent) continue;
        MX_TRY(profile_fuse_into(w->fresh, w->at, s, &op->err));
        n++;
    }
    w->more = w->at < nodes;
    return MX_OK;
}

/* A head that reads the network of another space says nothing in this one. */
static bool needs_head(const mx_profiles *p, int32_t k, const space *s)
{
    return p->tag[k]->n_head && *p->tag[k]->head_network && strcmp(p->tag[k]->head_network, s->print) != 0;
}

static mx_status count_heads(mx_profiles *p, mx_profiles_op *op)
{
    swap *w = (swap *)op;
    w->n_tags = p->n_tags;
    w->learns = false;
    for (int32_t k = 0; k < p->n_tags; k++) w->learns |= needs_head(p, k, w->fresh);
    return MX_OK;
}

/* Of one tag.  What cannot be learned is no reason to stay: rules decide then. */
static mx_status learn_head(mx_profiles *p, mx_profiles_op *op)
{
    swap *w = (swap *)op;
    mx_error why = {0};
    int32_t k = w->at++;
    if (k >= p->n_tags || !needs_head(p, k, w->fresh)) return MX_OK;
    if (profile_learn(p, k, w->fresh, w->earlier, w->n_earlier, &w->head[k], &why)) mx_log(MX_LOG_WARN, "profiles", "%s: rules decide: %s", p->tag[k]->name, why.text);
    return MX_OK;
}

/* What is stored; the rest follows when it is committed. */
static mx_status adopt(mx_profiles *p, mx_profiles_op *op)
{
    swap *w = (swap *)op;
    space *s = w->fresh;
    profile_wait_idle(s, UINT64_MAX);                        /* nothing is handed over meanwhile */
    pthread_mutex_lock(&s->lock);
    mx_error why = s->err;
    pthread_mutex_unlock(&s->lock);
    if (why.code) return mx_fail(&op->err, why.code, "network: %s", why.text);
    w->z = calloc((size_t)s->dim + 1, sizeof *w->z);
    if (!w->z) return mx_fail(&op->err, MX_ERR_NO_MEMORY, "a network's vector");
    for (int32_t k = 0; k < p->n_tags; k++) {
        Merx__V1__TagDefinition *now = p->tag[k], *m = w->head[k];
        if (!m || strcmp(m->name, now->name) != 0 || m->version != now->version + 1) continue;      /* it was defined anew meanwhile */
        MX_TRY(profile_store_tag(p, m, &op->err));
        p->tag[k] = m, w->head[k] = now, w->placed[k] = true;
    }
    return MX_OK;
}

typedef struct anew { mx_profiles_op op; mx_profiles *p; int32_t at; } anew;

static mx_status touch_some(mx_profiles *p, mx_profiles_op *op)
{
    anew *a = (anew *)op;
    int32_t nodes = mx_user_graph_nodes(p->graph);
    for (int32_t n = 0; n < ANEW_AT_ONCE && a->at < nodes; a->at++) {
        if (!profile_subject(p, a->at)) continue;
        MX_TRY(profile_touch(p, a->at, &op->err));
        n++;
    }
    return MX_OK;
}

/* The next some come behind what arrived meanwhile. */
static void touched(mx_profiles_op *op)
{
    anew *a = (anew *)op;
    mx_profiles *p = a->p;
    if (op->st) mx_log(MX_LOG_ERROR, "profiles", "%s", op->err.text);
    pthread_mutex_lock(&p->lock);
    bool over = op->st || p->closing;
    pthread_mutex_unlock(&p->lock);
    if (over || a->at >= mx_user_graph_nodes(p->graph)) free(a);
    else a->op = (mx_profiles_op){.run = touch_some, .done = touched}, mx_profiles_submit(p, &a->op);
}

static void adopted(swap *w)
{
    mx_profiles *p = w->p;
    if (w->op.st) {                                          /* nothing has changed */
        for (int32_t k = 0; k < TAGS; k++) {
            Merx__V1__TagDefinition *m = w->head[k];
            if (w->placed[k]) w->head[k] = p->tag[k], p->tag[k] = m;
        }
        return;
    }
    w->old = p->space;
    profile_take_space(p, w->fresh, w->z);
    w->z = NULL;
    p->arriving = NULL;
    anew *a = calloc(1, sizeof *a);
    if (!a) mx_log(MX_LOG_ERROR, "profiles", "no memory to make profiles anew: they follow at their users' next events");
    if (!a) return;
    *a = (anew){.op = {.run = touch_some, .done = touched}, .p = p};
    mx_profiles_submit(p, &a->op);
}

/* ---- who waits -------------------------------------------------------------------------------------- */

static void done(mx_profiles_op *op)
{
    swap *w = (swap *)op;
    if (op->run == adopt) adopted(w);
    pthread_mutex_lock(&w->lock);
    w->over = true;
    pthread_cond_signal(&w->news);
    pthread_mutex_unlock(&w->lock);
}

static mx_status carry_out(swap *w, mx_profiles_run *run, mx_error *err)
{
    w->over = false;
    w->op = (mx_profiles_op){.run = run, .done = done};
    mx_profiles_submit(w->p, &w->op);
    pthread_mutex_lock(&w->lock);
    while (!w->over) pthread_cond_wait(&w->news, &w->lock);
    pthread_mutex_unlock(&w->lock);
    if (w->op.st) *err = w->op.err;
    return w->op.st;
}

static mx_status bring(swap *w, const char *folder, mx_error *err)
{
    MX_TRY(profile_open_parts(w->p, folder, &w->parts, err));
    MX_TRY(carry_out(w, follow, err));
    profile_wait_idle(w->fresh, atomic_load(&w->p->visible));
    w->at = 0;
    do MX_TRY(carry_out(w, index_some, err));
    while (w->more);
    MX_TRY(carry_out(w, count_heads, err));
    if (w->learns && w->fresh->net) MX_TRY(profile_earlier(w->fresh, &w->earlier, &w->n_earlier, err));
    w->at = 0;
    while (w->learns && w->at < w->n_tags) MX_TRY(carry_out(w, learn_head, err));
    return carry_out(w, adopt, err);
}

mx_status mx_profiles_swap(mx_profiles *p, const char *name, int32_t version, const char *folder, mx_error *err)
{
    swap w = {.p = p, .lock = PTHREAD_MUTEX_INITIALIZER, .news = PTHREAD_COND_INITIALIZER};
    mx_error none;
    MX_TRY(profile_make_space(p, name, version, folder, &w.fresh, err));
    mx_status st = carry_out(&w, arrive, err);
    if (!st) {
        st = bring(&w, folder, err);
        if (st) carry_out(&w, leave, &none);
    }
    profile_close_parts(&w.parts);
    profile_close_space(st ? w.fresh : w.old);
    for (int32_t k = 0; k < TAGS; k++)
        if (w.head[k]) merx__v1__tag_definition__free_unpacked(w.head[k], NULL);
    free(w.earlier), free(w.z);
    return st;
}

bool mx_profiles_network(mx_profiles *p, char name[MX_NETWORK_NAME])
{
    space *s = profile_hold_space(p);
    bool there = s->net != NULL;
    memcpy(name, s->name, MX_NETWORK_NAME);
    profile_release_space(s);
    return there;
}
