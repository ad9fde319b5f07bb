/* profile_find.c - the thread that searches, and users who are alike. */
#include "server/profiles_internal.h"

#include "runtime/clock.h"

#include <stdlib.h>
#include <string.h>

enum { TOGETHER = 32 };               /* operations that share a pass over memory */

struct finder {
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  more;
    mx_profiles_op *first, **last;
    mx_stream       stream;
    bool            closing, runs;
};

/* ---- similar users: an exact scan ------------------------------------------------------------ */

typedef struct quest {                /* one operation's part of a pass                   */
    const int32_t *from;              /* [n_from] left out                                */
    size_t  n_from;
    int32_t count;
    int32_t node[PROFILE_MOST_FOUND];
} quest;

bool profile_among(const int32_t *list, size_t n, int32_t node)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == node) return true;
    return false;
}

mx_status profile_check_count(int32_t *count, mx_error *err)
{
    if (*count < 0 || *count > PROFILE_MOST_FOUND) return mx_fail(err, MX_ERR_ARG, "count is %d; it must be from 0 to %d", *count, PROFILE_MOST_FOUND);
    if (!*count) *count = 10;
    return MX_OK;
}

static mx_status answer_found(mx_profiles *p, const space *in, mx_profiles_op *op, const quest *q, const mx_hit *hit, int32_t n)
{
    Merx__V1__SimilarUsersResponse r = MERX__V1__SIMILAR_USERS_RESPONSE__INIT;
    mx_arena a;
    int32_t type;
    mx_arena_open(&a, (size_t)16 << 20);
    Merx__V1__SimilarUser *u = mx_arena_array(&a, (size_t)q->count, sizeof *u);
    char (*key)[MX_KEY_MOST + 1] = mx_arena_array(&a, (size_t)q->count, sizeof *key);
    r.users = mx_arena_array(&a, (size_t)q->count, sizeof *r.users);
    bool ok = u && key && r.users && (!in->net || (r.network = profile_network_state(in, &a)));
    for (int32_t i = 0; ok && i < n && (int32_t)r.n_users < q->count; i++) {
        size_t k = r.n_users;
        if (profile_among(q->from, q->n_from, hit[i].id) || !mx_user_graph_node(p->graph, hit[i].id, &type, key[k])) continue;
        merx__v1__similar_user__init(&u[k]);
        u[k].user = key[k];
        u[k].similarity = (double)hit[i].score;
        r.users[r.n_users++] = &u[k];
    }
    mx_status st = ok ? profile_answer(op, &r.base) : mx_fail(&op->err, MX_ERR_NO_MEMORY, "an answer");
    mx_arena_close(&a);
    return st;
}

static mx_status known(mx_profiles *p, const space *in, const char *field, const char *user, int32_t *node, float *x, mx_error *err)
{
    *node = mx_user_graph_find(p->graph, p->user, user);
    return *node >= 0 && mx_vectors_get(in->fused, *node, x) ? MX_OK : mx_fail(err, MX_ERR_NOT_FOUND, "%s: nothing is known of \"%.128s\"", field, user);
}

/* From whom, and the vector that is looked for, in x; look-alikes: in the middle of the users' directions. */
static mx_status ask(mx_profiles *p, const space *in, mx_profiles_op *op, quest *q, float *x, mx_error *err)
{
    if (op->run == mx_profiles_similar) {
        const Merx__V1__SimilarUsersRequest *m = (const Merx__V1__SimilarUsersRequest *)op->request;
        q->count = m->count, q->n_from = 1;
        MX_TRY(profile_check_count(&q->count, err));
        return known(p, in, "user", m->user, q->node, x, err);
    }
    const Merx__V1__LookAlikeRequest *m = (const Merx__V1__LookAlikeRequest *)op->request;
    q->count = m->count, q->n_from = m->n_users;
    MX_TRY(profile_check_count(&q->count, err));
    if (!m->n_users || m->n_users > PROFILE_MOST_FOUND) return mx_fail(err, MX_ERR_ARG, "users: %zu of them, 1..%d are allowed", m->n_users, PROFILE_MOST_FOUND);
    for (size_t i = 0; i < m->n_users; i++) MX_TRY(known(p, in, "users", m->users[i], &q->node[i], x, err));
    mx_status st = mx_vectors_centroid(in->fused, q->node, (int32_t)q->n_from, x, err);
    return st == MX_ERR_NOT_FOUND ? mx_fail(err, st, "users: nothing sets them apart from anybody") : st;
}

mx_status mx_profiles_similar(mx_profiles *p, mx_profiles_op *op)
{
    return p->finder ? MX_OK : mx_fail(&op->err, MX_ERR_STATE, "there is no device to search on");
}

mx_status mx_profiles_look_alike(mx_profiles *p, mx_profiles_op *op) { return mx_profiles_similar(p, op); }

/* All of them in one pass over the users. */
static void find_alike(mx_profiles *p, mx_profiles_op *const *op, int32_t n)
{
    space *in = profile_hold_space(p);
    size_t d = (size_t)(MX_FEATURES + p->dim + in->dim);
    uint32_t k = 1;
    int32_t asked = 0, at[TOGETHER], found[TOGETHER];
    mx_error err = {0};
    uint64_t began = mx_now_ns(&mx_clock_monotonic);
    quest *q = calloc((size_t)n, sizeof *q);
    float *x = malloc((size_t)n * d * sizeof *x);
    for (int32_t i = 0; q && x && i < n; i++) {
        q[i].from = q[i].node;
        op[i]->st = ask(p, in, op[i], &q[i], x + (size_t)asked * d, &op[i]->err);
        if (op[i]->st) continue;
        at[asked++] = i;
        if ((uint32_t)q[i].count + (uint32_t)q[i].n_from > k) k = (uint32_t)q[i].count + (uint32_t)q[i].n_from;
    }
    mx_hit *hit = q && x ? malloc((uint32_t)n * (size_t)k * sizeof *hit) : NULL;
    mx_status st = hit ? MX_OK : mx_fail(&err, MX_ERR_NO_MEMORY, "a search");
    if (!st && asked) st = mx_vectors_search(in->fused, &p->finder->stream, x, asked, (int32_t)k, MX_LIKE_COSINE, NULL, NULL, hit, found, &err);
    for (int32_t i = 0; st && i < n; i++)
        if (!op[i]->st) op[i]->st = mx_fail(&op[i]->err, st, "%s", err.text);
    for (int32_t i = 0; !st && i < asked; i++) op[at[i]]->st = answer_found(p, in, op[at[i]], &q[at[i]], hit + (size_t)i * (size_t)k, found[i]);
    profile_release_space(in);
    for (int32_t i = 0; i < n; i++) profile_done(op[i], began);
    free(q), free(x), free(hit);
}

/* ---- the thread -------------------------------------------------------------------------------- */

bool profile_finds(const mx_profiles *p, const mx_profiles_op *op)
{
    bool learns = op->run == mx_profiles_backfill && p->space->net && op->earlier_of != p->space->serial;      /* it needs the network's word first */
    return (learns || op->run == mx_profiles_similar || op->run == mx_profiles_look_alike || op->run == mx_profiles_recommend) && p->finder;
}

static bool compares(const mx_profiles_op *op) { return op->run == mx_profiles_similar || op->run == mx_profiles_look_alike; }

mx_stream *profile_stream(mx_profiles *p) { return &p->finder->stream; }

/* Or what another network said has come too late. */
static void find_earlier(mx_profiles *p, mx_profiles_op *op)
{
    space *s = profile_hold_space(p);
    free(op->earlier);
    op->earlier = NULL;
    op->earlier_of = s->serial;
    if (s->net) op->st = profile_earlier(s, &op->earlier, &op->n_earlier, &op->err);
    profile_release_space(s);
}

static void carry_out(mx_profiles *p, mx_profiles_op *op)
{
    mx_profiles_op *together[TOGETHER];
    int32_t n = 0;
    for (mx_profiles_op *next; op; op = next) {
        bool alike = compares(op);
        next = op->next;
        if (alike) together[n++] = op;
        if (n && (n == TOGETHER || !next || !compares(next))) find_alike(p, together, n), n = 0;      /* op may be gone */
        if (alike) continue;
        uint64_t began = mx_now_ns(&mx_clock_monotonic);
        if (op->run == mx_profiles_backfill) {                /* the rest is the profiles' thread's */
            find_earlier(p, op);
            if (op->st) profile_done(op, began);
            else mx_profiles_submit(p, op);
            continue;
        }
        op->st = op->run(p, op);
        profile_done(op, began);
    }
}

static void *work(void *arg)
{
    mx_profiles *p = arg;
    struct finder *f = p->finder;
    pthread_mutex_lock(&f->lock);
    while (f->first || !f->closing) {
        mx_profiles_op *all = f->first;
        if (!all) {
            pthread_cond_wait(&f->more, &f->lock);
            continue;
        }
        f->first = NULL, f->last = &f->first;
        pthread_mutex_unlock(&f->lock);
        carry_out(p, all);
        pthread_mutex_lock(&f->lock);
    }
    pthread_mutex_unlock(&f->lock);
    return NULL;
}

void profile_find_later(mx_profiles *p, mx_profiles_op *op)
{
    struct finder *f = p->finder;
    op->next = NULL;
    pthread_mutex_lock(&f->lock);
    *f->last = op;
    f->last = &op->next;
    pthread_cond_signal(&f->more);
    pthread_mutex_unlock(&f->lock);
}

mx_status profile_open_finder(mx_profiles *p, mx_error *err)
{
    if (!p->device) return MX_OK;
    struct finder *f = calloc(1, sizeof *f);
    if (!f) return mx_fail(err, MX_ERR_NO_MEMORY, "the thread that searches");
    mx_status st = mx_stream_open(&f->stream, p->device, 0, err);
    if (st) {
        free(f);
        return st;
    }
    f->last = &f->first;
    pthread_mutex_init(&f->lock, NULL), pthread_cond_init(&f->more, NULL);
    p->finder = f;
    if (pthread_create(&f->thread, NULL, work, p)) return mx_fail(err, MX_ERR_NO_MEMORY, "the thread that searches");
    f->runs = true;
    return MX_OK;
}

void profile_close_finder(mx_profiles *p)
{
    struct finder *f = p->finder;
    if (!f) return;
    pthread_mutex_lock(&f->lock);
    f->closing = true;
    pthread_cond_signal(&f->more);
    pthread_mutex_unlock(&f->lock);
    if (f->runs) pthread_join(f->thread, NULL);
    p->finder = NULL;
    mx_stream_close(&f->stream);
    pthread_mutex_destroy(&f->lock), pthread_cond_destroy(&f->more);
    free(f);
}
