/* profiles.h - users' profiles: from events on disk to labels with evidence.
 *
 * A folder holds the events (models/user_graph.h) and profiles.db (tags, and when labels
 * came and went: server/store.h).  One thread owns all that is derived: it puts the events
 * of all waiting calls with one flush, answers them, computes the profiles that follow, and
 * publishes each as packed bytes that never change.  Readers take a reference to those under
 * a lock of nanoseconds: they wait for no event and no disk.
 *
 * Operations are carried out in order, and all events put before one are visible to it.  Those that
 * search (similar users, look-alikes, recommendations) have a thread of their own, and so has the graph
 * network: it takes events in behind the answers, and tells up to where (`network.watermark`). */
#ifndef MX_PROFILES_H
#define MX_PROFILES_H

#include "models/embed.h"
#include "models/text_store.h"
#include "proto/merx.pb-c.h"
#include "server/messages.h"
#include "server/registry.h"

typedef struct mx_profiles mx_profiles;

typedef struct mx_profiles_options {
    mx_embedder *encoder;             /* texts become vectors; NULL: those that have one keep it */
    mx_embedder *sentiment;           /* an encoder with classes, the last one the best; NULL: texts have no mood */
    const char  *network;             /* a folder of models/profile_net.h; NULL: none      */
    const char  *network_name;        /* up to 63 bytes; NULL: its folder's               */
    mx_device   *device;              /* a CPU device that searches and the network run on; NULL: neither is to be had */
} mx_profiles_options;

/* Computes all profiles before it returns.  Errors: those of user_graph.h and store.h. */
mx_status mx_profiles_open(mx_profiles **out, const char *folder, const mx_profiles_options *o, mx_error *err);
void      mx_profiles_close(mx_profiles *p);            /* what waits is carried out first */
/* Their memory (events, keys, texts, published profiles; not the network's) is taken at `r` from now on, before operations.  When more is not to be
 * had, events are refused with MX_ERR_NO_MEMORY until it is.  Errors: MX_ERR_NO_MEMORY: what there is does not fit. */
mx_status mx_profiles_limit(mx_profiles *p, mx_registry *r, mx_error *err);
size_t    mx_profiles_taken(const mx_profiles *p);      /* bytes, about */

/* Another network in place of the one there is, or of none; folder NULL: none instead of it.  The caller's thread waits (seconds to minutes);
 * events, reads and searches go on, and all vectors told of one user are one network's.  When it returns the new one has taken in all
 * that is visible and is current, heads that read the old one's vectors are learned for it, and the old one's memory is
 * free; profiles are made anew behind that.  Errors: those of mx_profile_net_open(), MX_ERR_STATE (one is on
 * its way): nothing has changed then. */
mx_status mx_profiles_swap(mx_profiles *p, const char *name, int32_t version, const char *folder, mx_error *err);
enum { MX_NETWORK_NAME = 64 };
bool      mx_profiles_network(mx_profiles *p, char name[MX_NETWORK_NAME]);      /* the current one's; false: there is none */

/* ---- reading, from any thread --------------------------------------------------------- */

typedef struct mx_profile_view {      /* keep it, release it                              */
    const uint8_t *bytes;             /* a packed merx.v1.Profile                         */
    size_t   size;
    const uint8_t *framed;            /* the same behind its length, as a field of a message holds it */
    size_t   framed_size;
    uint64_t watermark;
} mx_profile_view;
/* MX_ERR_NOT_FOUND: no events of such a user, or forgotten. */
mx_status mx_profiles_get(mx_profiles *p, const char *user, const mx_profile_view **out, mx_error *err);
void      mx_profile_release(const mx_profile_view *v);
mx_embedder *mx_profiles_encoder(const mx_profiles *p);    /* NULL: none */
uint64_t  mx_profiles_visible(const mx_profiles *p);      /* events up to here are in what is read */
uint64_t  mx_profiles_watermark(const mx_profiles *p);    /* ... have been acknowledged           */

/* woke(user) from the thread after each publication of that user's profile, until unwatched. */
typedef struct mx_profile_watch {
    struct mx_profile_watch *next;
    char   user[129];
    void (*woke)(void *ctx);
    void  *ctx;
} mx_profile_watch;
void      mx_profiles_watch(mx_profiles *p, mx_profile_watch *w);
void      mx_profiles_unwatch(mx_profiles *p, mx_profile_watch *w);      /* woke() does not run afterwards */

/* What is told beside the published bytes, of now: the network's watermark and, when asked for, the user's embedding.  Into `out`, whose
 * parts lie in `a`; false: out of memory. */
bool      mx_profiles_now(mx_profiles *p, const mx_profile_view *v, bool embedding, mx_arena *a, Merx__V1__Profile *out);
/* The store of events, for who learns from it. */
const mx_user_graph *mx_profiles_graph(const mx_profiles *p);
const mx_text_store *mx_profiles_texts(const mx_profiles *p);

/* ---- operations ------------------------------------------------------------------------ */

typedef struct mx_profiles_op mx_profiles_op;
typedef mx_status mx_profiles_run(mx_profiles *p, mx_profiles_op *op);
struct mx_profiles_op {
    mx_profiles_op *next;             /* the queue's                                      */
    mx_profiles_run *run;             /* one of those below                               */
    void (*done)(mx_profiles_op *op); /* once, from the thread                            */
    const ProtobufCMessage *request;  /* stays until done                                 */
    const ProtobufCMessageDescriptor *type;      /* of the answer                         */
    uint8_t  *answer;                 /* packed, mx_slab_alloc'ed; the caller frees            */
    size_t    size;
    mx_status st;
    mx_error  err;
    uint64_t  began_ns, ended_ns;     /* when it was carried out, its commit included     */
    float    *earlier;                /* mx_profiles_backfill's: vectors of the network as of each user's half, by node */
    int32_t   n_earlier;
    uint64_t  earlier_of;             /* and which network's                              */
};
mx_profiles_run mx_profiles_put, mx_profiles_wait, mx_profiles_explain, mx_profiles_similar, mx_profiles_look_alike, mx_profiles_define, mx_profiles_list,
    mx_profiles_backfill, mx_profiles_erase, mx_profiles_recommend;
void      mx_profiles_submit(mx_profiles *p, mx_profiles_op *op);

/* mx_profiles_explain's operation: beside the answer, which of its evidence is texts whose words the
 * head weighs by the encoder's vector, so that attribution can share their parts out. */
enum { MX_EXPLAINED_TEXTS = 4 };
typedef struct mx_explain_op {
    mx_profiles_op op;
    int32_t n_texts;
    struct { size_t evidence; double factor; } text[MX_EXPLAINED_TEXTS];      /* factor: of the head's direction */
} mx_explain_op;

#endif
