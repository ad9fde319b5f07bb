/* explain.c - the thread of attributions. */
#include "server/explain.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FOLDERS = 8 };

struct mx_explainer {
    mx_device      *dev;
    pthread_t       thread;
    pthread_mutex_t lock;
    pthread_cond_t  more;
    mx_explain_job *first, **last;
    bool            closing;
    char           *folder[FOLDERS];
    mx_attributor  *attributor[FOLDERS];
    int             n;
};

static mx_status find(mx_explainer *x, const char *folder, mx_attributor **out, mx_error *err)
{
    for (int i = 0; i < x->n; i++)
        if (!strcmp(x->folder[i], folder)) {
            *out = x->attributor[i];
            return MX_OK;
        }
    if (x->n == FOLDERS) return mx_fail(err, MX_ERR_STATE, "explain: %d models are open; there is no room for more", FOLDERS);
    x->folder[x->n] = strdup(folder);
    if (!x->folder[x->n]) return mx_fail(err, MX_ERR_NO_MEMORY, "explain");
    mx_status st = mx_attributor_open(&x->attributor[x->n], x->dev, folder, err);
    if (st) free(x->folder[x->n]);
    else *out = x->attributor[x->n++];
    return st;
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
    x->dev = dev;
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
