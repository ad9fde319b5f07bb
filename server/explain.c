/* explain.c - the thread of attributions. */
#include "server/explain.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FOLDERS = 8 };

struct mx_explainer {
    mx_device       dev;              /* whose memory is taken from an account            */
    mx_device_account account;
    mx_registry    *registry;         /* NULL: nobody else is asked                       */
    size_t          most;             /* 0: not limited                                   */
    atomic_size_t   held;
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  more;
    mx_explain_job *first, **last;
    bool            closing;
    char           *folder[FOLDERS];
    mx_attributor  *attributor[FOLDERS];
    uint64_t        asked[FOLDERS], serial;      /* when it was asked last                */
    int             n;
};

static mx_status take_memory(void *ctx, size_t bytes, mx_error *err)
{
    mx_explainer *x = ctx;
    size_t held = atomic_load(&x->held);
    if (x->most && (held > x->most || bytes > x->most - held))
        return mx_fail(err, MX_ERR_NO_MEMORY, "explain: the model's f32 weights and work need %zu bytes more; %zu of %zu are held (--explain-bytes)", bytes, held, x->most);
    if (x->registry) MX_TRY(mx_registry_take(x->registry, "explain", bytes, err));
    atomic_fetch_add(&x->held, bytes);
    return MX_OK;
}

static void give_memory(void *ctx, size_t bytes)
{
    mx_explainer *x = ctx;
    atomic_fetch_sub(&x->held, bytes);
    if (x->registry) mx_registry_give(x->registry, bytes);
}

/* The one that was asked longest ago. */
static void close_oldest(mx_explainer *x)
{
    int at = 0;
    for (int i = 1; i < x->n; i++)
        if (x->asked[i] < x->asked[at]) at = i;
    mx_attributor_close(x->attributor[at]);
    free(x->folder[at]);
    x->n--;
    x->attributor[at] = x->attributor[x->n], x->folder[at] = x->folder[x->n], x->asked[at] = x->asked[x->n];
}

static mx_status find(mx_explainer *x, const char *folder, mx_attributor **out, mx_error *err)
{
    for (int i = 0; i < x->n; i++)
        if (!strcmp(x->folder[i], folder)) {
            *out = x->attributor[i];
            x->asked[i] = ++x->serial;
            return MX_OK;
        }
    if (x->n == FOLDERS) close_oldest(x);
    char *own = strdup(folder);
    if (!own) return mx_fail(err, MX_ERR_NO_MEMORY, "explain");
    mx_status st = mx_attributor_open(out, &x->dev, folder, err);
    while (st == MX_ERR_NO_MEMORY && x->n) {                /* nothing has been read: memory is asked for first */
        close_oldest(x);
        st = mx_attributor_open(out, &x->dev, folder, err);
    }
    if (st) {
        free(own);
        return st;
    }
    x->folder[x->n] = own, x->attributor[x->n] = *out, x->asked[x->n++] = ++x->serial;
    return MX_OK;
}

/* The pieces of a text's tokens lie in a tokenizer that may go before the caller has read them: they come along, behind the tokens. */
static mx_status keep_pieces(mx_attribution *t, mx_error *err)
{
    size_t bytes = 0, at = (size_t)t->n * sizeof *t->token;
    for (int32_t i = 0; i < t->n; i++) bytes += t->token[i].len;
    mx_attributed_token *all = realloc(t->token, at + bytes + 1);
    if (!all) return mx_fail(err, MX_ERR_NO_MEMORY, "explain");
    t->token = all;
    for (int32_t i = 0; i < t->n; i++) {
        if (!all[i].piece) continue;
        all[i].piece = memcpy((char *)all + at, all[i].piece, all[i].len);
        at += all[i].len;
    }
    return MX_OK;
}

static void *work(void *arg)
{
    mx_explainer *x = arg;
    pthread_mutex_lock(&x->lock);
    while (x->first || !x->closing) {
        mx_explain_job *j = x->first;
        mx_attributor *a = NULL;
        if (!j) {
            pthread_cond_wait(&x->more, &x->lock);
            continue;
        }
        x->first = j->next;
        if (!x->first) x->last = &x->first;
        pthread_mutex_unlock(&x->lock);
        j->st = find(x, j->folder, &a, &j->err);
        if (!j->st) j->st = mx_attribute(a, j->text, strlen(j->text), &j->ask, &j->out, &j->err);
        if (!j->st) j->st = keep_pieces(&j->out, &j->err);
        j->done(j);
        pthread_mutex_lock(&x->lock);
    }
    pthread_mutex_unlock(&x->lock);
    return NULL;
}

mx_status mx_explainer_open(mx_explainer **out, mx_device *dev, mx_error *err)
{
    *out = NULL;
    mx_explainer *x = calloc(1, sizeof *x);
    if (!x) return mx_fail(err, MX_ERR_NO_MEMORY, "the explainer");
    x->account = (mx_device_account){take_memory, give_memory, x};
    mx_device_for(&x->dev, dev, &x->account);
    x->last = &x->first;
    pthread_mutex_init(&x->lock, NULL);
    pthread_cond_init(&x->more, NULL);
    if (pthread_create(&x->thread, NULL, work, x)) {
        free(x);
        return mx_fail(err, MX_ERR_NO_MEMORY, "the explainer's thread");
    }
    *out = x;
    return MX_OK;
}

void mx_explainer_close(mx_explainer *x)
{
    if (!x) return;
    pthread_mutex_lock(&x->lock);
    x->closing = true;
    pthread_cond_signal(&x->more);
    pthread_mutex_unlock(&x->lock);
    pthread_join(x->thread, NULL);
    for (int i = 0; i < x->n; i++) mx_attributor_close(x->attributor[i]), free(x->folder[i]);
    pthread_mutex_destroy(&x->lock);
    pthread_cond_destroy(&x->more);
    free(x);
}

void mx_explainer_limit(mx_explainer *x, mx_registry *r, size_t bytes)
{
    x->registry = r;
    x->most = bytes;
}

size_t mx_explainer_held(const mx_explainer *x, size_t *most)
{
    *most = x->most;
    return atomic_load(&((mx_explainer *)(uintptr_t)x)->held);
}

void mx_explainer_submit(mx_explainer *x, mx_explain_job *job)
{
    job->next = NULL;
    pthread_mutex_lock(&x->lock);
    *x->last = job;
    x->last = &job->next;
    pthread_cond_signal(&x->more);
    pthread_mutex_unlock(&x->lock);
}

/* Where nobody can tell where they stand. */
static int32_t join_pieces(const mx_attribution *t, mx_arena *a, mx_word *w)
{
    size_t bytes = 0, used = 0;
    int32_t n = 0;
    for (int32_t i = 0; i < t->n; i++) bytes += t->token[i].len + 1;
    char *text = mx_arena_alloc(a, bytes + 1);
    if (!text) return -1;
    for (int32_t i = 0; i < t->n; i++) {
        const mx_attributed_token *k = &t->token[i];
        bool special = k->weight == 0 && (i == 0 || i == t->n - 1), begins = k->len && *k->piece == ' ', more = n && !begins;
        size_t skip = begins ? 1 : 0;
        if (special || !k->piece) continue;
        if (more) used--;                                   /* over the end of the word before */
        else w[n++].text = text + used;
        memcpy(text + used, k->piece + skip, k->len - skip);
        used += k->len - skip;
        text[used++] = 0;
        w[n - 1].weight += k->weight;
    }
    return n;
}

static int32_t cut_words(const mx_explain_job *job, mx_arena *a, mx_word *w)
{
    const mx_attribution *t = &job->out;
    int32_t n = 0;
    for (int32_t i = 0; i < t->n; i++) {
        const mx_attributed_token *k = &t->token[i];
        if (!k->end) continue;
        if (!n || w[n - 1].begin != k->begin || w[n - 1].end != k->end) {
            w[n].begin = k->begin, w[n].end = k->end;
            if (!(w[n].text = mx_arena_alloc(a, k->end - k->begin + 1))) return -1;
            memcpy(w[n].text, job->text + k->begin, k->end - k->begin);
            w[n++].text[k->end - k->begin] = 0;
        }
        w[n - 1].weight += k->weight;
    }
    return n;
}

int32_t mx_attribution_words(const mx_explain_job *job, mx_arena *a, mx_word **out)
{
    const mx_attribution *t = &job->out;
    mx_word *w = *out = mx_arena_array(a, (size_t)t->n + 1, sizeof *w);
    bool known = false;
    for (int32_t i = 0; i < t->n; i++) known |= t->token[i].end != 0;
    if (!w) return -1;
    int32_t n = known ? cut_words(job, a, w) : join_pieces(t, a, w);
    for (int32_t i = 0; i < n; i++) mx_text_clean(w[i].text);
    return n;
}
