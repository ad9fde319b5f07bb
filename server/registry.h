/* registry.h - the models that are served: names, their versions, and who holds them.
 *
 * A request takes a reference on the version it is admitted with and gives it back at its end: its
 * words are that version's to the last.  A new version comes in beside the old one (begin, then
 * commit); from commit on new requests get it, and the old one drains: when its last reference is
 * gone, the registry's thread closes its lane and gives back KV cache and weights.
 *
 * MEMORY.  begin() is told what a version will take and refuses what does not fit beside all that
 * is held, draining versions too: no weight is read before that.
 *
 * THREADS: any; one mutex, never held while a model is opened or closed. */
#ifndef MX_REGISTRY_H
#define MX_REGISTRY_H

#include "models/embed.h"
#include "models/generate.h"

enum { MX_MODELS = 64 };              /* versions of all names, at most */

typedef enum mx_served_state { MX_SERVED_LOADING, MX_SERVED_SERVING, MX_SERVED_DRAINING } mx_served_state;
const char *mx_served_state_name(mx_served_state s);      /* "loading", "serving", "draining" */

typedef enum mx_served_kind { MX_SERVED_GENERATOR, MX_SERVED_ENCODER, MX_SERVED_NETWORK } mx_served_kind;
const char *mx_served_kind_name(mx_served_kind k);        /* "generator", "encoder", "network" */

typedef struct mx_registry mx_registry;

/* One version.  What stands here does not change while it serves. */
typedef struct mx_served {
    char          name[64];
    int32_t       version;            /* 1, 2, ... of its name                          */
    mx_generator *generator;          /* one of the two; neither while it loads         */
    mx_embedder  *encoder;            /* a network has neither: the profiles hold it (server/profiles.h) */
    mx_footprint  footprint;
    mx_served_kind kind;
    char         *path;               /* of a network that serves: its folder           */
    struct mx_registry *of;           /* the rest is the registry's                     */
    struct mx_served   *next;
    mx_served_state state;
    int32_t         references;
    uint64_t        serial;           /* no two have the same                           */
    bool            pinned;
    int64_t         since_ms;         /* wall clock: in this state                      */
} mx_served;

/* metrics: where the series of a name go when its last version has gone; may be NULL.  budget: bytes of the device
 * that models may take together; 0: not limited.  Errors: MX_ERR_NO_MEMORY. */
mx_status   mx_registry_open(mx_registry **out, mx_scheduler *s, mx_metrics *metrics, size_t budget, mx_error *err);
/* No version is closed from now on but by close(): before the scheduler closes. */
void        mx_registry_stop(mx_registry *r);
/* After the scheduler; nobody holds a reference. */
void        mx_registry_close(mx_registry *r);

/* ---- requests --------------------------------------------------------------------------- */

/* The version of a name that new requests get; "": the first generator, or the first encoder.
 * MX_ERR_STATE: none is loaded; MX_ERR_NOT_FOUND. */
mx_status   mx_registry_generator(mx_registry *r, const char *name, mx_served **out, mx_error *err);
mx_status   mx_registry_encoder(mx_registry *r, const char *name, mx_served **out, mx_error *err);
/* The generator beside which an adapter of this name stands; NULL: none.  *id is held as well
 * (mx_generator_adapter_release). */
mx_served  *mx_registry_adapter(mx_registry *r, const char *name, int32_t *id);
void        mx_registry_release(mx_served *s);            /* NULL is fine */
/* A server part keeps this version for good: it can be neither replaced nor unloaded. */
void        mx_registry_pin(mx_served *s);

/* ---- versions --------------------------------------------------------------------------- */

/* A place for the next version of a name, LOADING.  replace false: a name that is served is MX_ERR_ARG.
 * Errors: MX_ERR_STATE (the name is being loaded, or pinned; no room in the table), MX_ERR_NO_MEMORY (in bytes). */
mx_status   mx_registry_begin(mx_registry *r, const char *name, mx_served_kind kind, bool replace, const mx_footprint *f, mx_served **out, mx_error *err);
/* It serves; the version before it, if any, drains.  Returns that one's number, 0: there was none. */
int32_t     mx_registry_commit(mx_served *s, mx_generator *g, mx_embedder *e);
int32_t     mx_registry_commit_network(mx_served *s, char *path);      /* takes path, malloc'ed */
/* The network that serves, or comes in, held; NULL: there is none. */
mx_served  *mx_registry_network(mx_registry *r);
void        mx_registry_abort(mx_served *s);              /* what was opened is the caller's to close */
/* New requests no longer find the name; those that run have drain_ms, then they end with MX_ERR_UNAVAILABLE.
 * Returns when its memory is free.  MX_ERR_NOT_FOUND; MX_ERR_STATE: pinned; MX_ERR_DEADLINE: it drains, but
 * somebody has not taken the end of an answer: the memory is free when they have. */
mx_status   mx_registry_unload(mx_registry *r, const char *name, uint32_t drain_ms, mx_error *err);
/* MX_ERR_NO_MEMORY, in bytes, when so much more of `what` does not fit beside what is held. */
mx_status   mx_registry_room(mx_registry *r, const char *what, size_t bytes, mx_error *err);
/* So much of the budget for what is no model (a training job, explanations, profiles), until it is given back.  Errors: MX_ERR_NO_MEMORY, in bytes. */
mx_status   mx_registry_take(mx_registry *r, const char *what, size_t bytes, mx_error *err);
void        mx_registry_give(mx_registry *r, size_t bytes);
/* Waits until no version drains, at most ms.  False: some still do. */
bool        mx_registry_settle(mx_registry *r, uint32_t ms);

/* All versions, in the order in which names came, each with a reference; returns how many.  r NULL: none. */
typedef struct mx_served_view {
    mx_served      *served;
    mx_generator   *generator;        /* neither while it loads, nor of a network       */
    mx_embedder    *encoder;
    mx_served_state state;
    int32_t         references;       /* of others                                      */
    bool            pinned;
    int64_t         since_ms;
} mx_served_view;
int         mx_registry_list(mx_registry *r, mx_served_view out[MX_MODELS]);
void        mx_registry_list_free(mx_served_view *list, int n);
/* 1: a version of the name serves; 0: it is known, but does not yet, or no longer; -1: unknown. */
int         mx_registry_health(mx_registry *r, const char *name);
/* What all versions hold of the budget, and the budget. */
void        mx_registry_memory(mx_registry *r, size_t *held, size_t *budget);

#endif
