/* adapters.c - the adapters beside a generator's base, which come and go while it serves.
 *
 * A slot of the decoder holds an adapter's weights until nobody names it and no request runs through
 * it.  A slot's number is used again, an adapter's is not: prefixes in the KV cache go by the latter. */
#include "models/generation.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

struct gen_adapters {
    pthread_mutex_t lock;
    int32_t last;                      /* number that was given last                       */
    struct slot {
        int32_t id, references;        /* id 0: free                                       */
        bool    named;                 /* new requests find it                             */
        char    folder[512];
    } slot[MX_ADAPTERS];
};

mx_status gen_adapters_open(gen_adapters **out, mx_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out) return mx_fail(err, MX_ERR_NO_MEMORY, "the table of adapters");
    pthread_mutex_init(&(*out)->lock, NULL);
    return MX_OK;
}

void gen_adapters_close(gen_adapters *a)
{
    if (!a) return;
    pthread_mutex_destroy(&a->lock);
    free(a);
}

/* ---- with the lock held ------------------------------------------------------------------ */

static int named(const mx_generator *g, const char *name)
{
    for (int i = 0; i < MX_ADAPTERS; i++)
        if (g->adapters->slot[i].named && !strcmp(g->model.adapter[i].name, name)) return i;
    return -1;
}

static int numbered(const mx_generator *g, int32_t id)
{
    for (int i = 0; i < MX_ADAPTERS; i++)
        if (id && g->adapters->slot[i].id == id) return i;
    return -1;
}

static void free_unused(mx_generator *g, int i)
{
    struct slot *s = &g->adapters->slot[i];
    if (s->named || s->references) return;
    mx_adapter_close(&g->model.adapter[i]);
    *s = (struct slot){0};
}

/* ---- for all threads ------------------------------------------------------------------------ */

mx_status gen_adapter_use(mx_generator *g, int32_t id, int *slot, mx_error *err)
{
    pthread_mutex_lock(&g->adapters->lock);
    *slot = numbered(g, id);
    if (*slot >= 0) g->adapters->slot[*slot].references++;
    pthread_mutex_unlock(&g->adapters->lock);
    return *slot >= 0 ? MX_OK : mx_fail(err, MX_ERR_ARG, "adapter: there is no number %d", id);
}

void mx_generator_adapter_release(mx_generator *g, int32_t id)
{
    pthread_mutex_lock(&g->adapters->lock);
    int i = numbered(g, id);
    if (i >= 0) {
        g->adapters->slot[i].references--;
        free_unused(g, i);
    }
    pthread_mutex_unlock(&g->adapters->lock);
}

int32_t mx_generator_adapter_take(mx_generator *g, const char *name)
{
    pthread_mutex_lock(&g->adapters->lock);
    int i = named(g, name);
    int32_t id = i < 0 ? 0 : g->adapters->slot[i].id;
    if (i >= 0) g->adapters->slot[i].references++;
    pthread_mutex_unlock(&g->adapters->lock);
    return id;
}

int32_t mx_generator_adapter(const mx_generator *g, const char *name)
{
    pthread_mutex_lock(&g->adapters->lock);
    int i = named(g, name);
    int32_t id = i < 0 ? 0 : g->adapters->slot[i].id;
    pthread_mutex_unlock(&g->adapters->lock);
    return id;
}

bool mx_generator_adapter_at(const mx_generator *g, int32_t i, mx_adapter_info *out)
{
    bool found = false;
    pthread_mutex_lock(&g->adapters->lock);
    for (int k = 0; k < MX_ADAPTERS && !found; k++) {
        const struct slot *s = &g->adapters->slot[k];
        if (!s->named || i--) continue;
        *out = (mx_adapter_info){.id = s->id, .references = s->references, .rank = g->model.adapter[k].rank, .bytes = g->model.adapter[k].bytes};
        snprintf(out->name, sizeof out->name, "%s", g->model.adapter[k].name);
        snprintf(out->folder, sizeof out->folder, "%s", s->folder);
        found = true;
    }
    pthread_mutex_unlock(&g->adapters->lock);
    return found;
}

size_t gen_adapters_bytes(const mx_generator *g)
{
    size_t n = 0;
    pthread_mutex_lock(&g->adapters->lock);
    for (int i = 0; i < MX_ADAPTERS; i++)
        if (g->adapters->slot[i].id) n += g->model.adapter[i].bytes;
    pthread_mutex_unlock(&g->adapters->lock);
    return n;
}

/* A slot for it, marked as taken but not yet found by anybody; -1: all are taken. */
static int reserve(gen_adapters *a)
{
    int found = -1;
    pthread_mutex_lock(&a->lock);
    for (int i = 0; i < MX_ADAPTERS && found < 0; i++)
        if (!a->slot[i].id) found = i;
    if (found >= 0) a->slot[found].id = ++a->last, a->slot[found].references = 1;
    pthread_mutex_unlock(&a->lock);
    return found;
}

mx_status mx_generator_adapter_load(mx_generator *g, const char *name, const char *folder, mx_error *err)
{
    gen_adapters *a = g->adapters;
    for (const mx_generator *r = g->replicas; r; r = r->replicas)
        if (!r->borrows) return mx_fail(err, MX_ERR_ARG, "adapter %s: the model stands on several GPUs, where adapters are not served", name);
    if (strlen(folder) >= sizeof a->slot[0].folder) return mx_fail(err, MX_ERR_ARG, "adapter %s: the path is longer than %zu bytes", name, sizeof a->slot[0].folder - 1);
    int i = reserve(a);
    if (i < 0) return mx_fail(err, MX_ERR_STATE, "adapter %s: %d stand beside the model; there is no room for more", name, MX_ADAPTERS);
    mx_adapter fresh;                      /* others look at the slot's name meanwhile */
    mx_status st = mx_adapter_open(&fresh, g->dev, &g->model.config, name, folder, err);
    if (!st && g->ready && fresh.rank > g->model.adapter_rank) {
        st = mx_fail(err, MX_ERR_ARG, "adapter %s: rank %d; a running model takes up to %d", name, fresh.rank, g->model.adapter_rank);
        mx_adapter_close(&fresh);
    }
    pthread_mutex_lock(&a->lock);
    if (!st) {
        int before = named(g, name);
        if (before >= 0) {                 /* who runs through it goes on */
            a->slot[before].named = false;
            free_unused(g, before);
        }
        g->model.adapter[i] = fresh;
        snprintf(a->slot[i].folder, sizeof a->slot[i].folder, "%s", folder);
        a->slot[i].named = true;
        if (!g->ready && fresh.rank > g->model.adapter_rank) g->model.adapter_rank = fresh.rank;
    }
    a->slot[i].references--;
    if (st) a->slot[i] = (struct slot){0};
    pthread_mutex_unlock(&a->lock);
    return st;
}

mx_status mx_generator_adapter_bytes(const mx_generator *g, const char *folder, size_t *out, mx_error *err)
{
    return mx_adapter_bytes(out, g->dev, &g->model.config, folder, err);
}

bool mx_generator_adapter_unload(mx_generator *g, const char *name)
{
    pthread_mutex_lock(&g->adapters->lock);
    int i = named(g, name);
    if (i >= 0) {
        g->adapters->slot[i].named = false;
        free_unused(g, i);
    }
    pthread_mutex_unlock(&g->adapters->lock);
    return i >= 0;
}
