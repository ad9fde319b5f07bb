/* profiles_internal.h - what the files of the profiles share; server/profile*.c only. */
#ifndef MX_PROFILES_INTERNAL_H
#define MX_PROFILES_INTERNAL_H

#include "models/label.h"
#include "models/profile_net.h"
#include "server/messages.h"
#include "server/profiles.h"
#include "server/store.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SHARDS = 256, DOORS = 16, CHUNK = 65536, CHUNKS = 4096, EVENTS = MX_PROFILE_EVENTS, FRIENDS = 64, TEXTS = MX_PROFILE_TEXTS, TAGS = 16, SHOWN = 6, HISTORY = 16, BINS = 512,
       RANKS = 320, CATEGORIES = 4096, PUT_MOST = 4096 };
#define DAY_MS 86400000LL
#define TEXT_STRENGTH MX_TEXT_STRENGTH
#define FEATURE_SCALE 5.0f            /* of features less their prior in a fused vector: 0.2 is one unit */
#define TEXT_PART 2.0f                /* ... of the words' mean, and of the network's vector made length one */
#define NET_PART 2.0f

typedef struct snapshot {
    mx_profile_view view;             /* first: what readers hold                         */
    atomic_int refs;
    int32_t    node;
    uint8_t    data[];
} snapshot;

typedef struct text_numbers {         /* what models said of an event's text              */
    uint64_t id;                      /* hash of the event's id                           */
    bool     felt;
    float    positive;
    float   *vector;                  /* [dim], or NULL                                   */
} text_numbers;

typedef struct change { char tag[64]; int32_t version; bool in, stored, storing; float probability; int64_t ts_ms; } change;      /* storing: not committed yet */

typedef struct subject {
    snapshot *now;                    /* under its shard's lock                           */
    float    feature[MX_FEATURES];
    int16_t  bin[MX_FEATURES];        /* in the population's histograms; -1: not counted  */
    float   *text;                    /* [dim] shrunk mean of the texts' vectors; NULL: none */
    text_numbers *texts;
    change  *changes;                 /* [HISTORY], oldest first                          */
    mx_label label[TAGS];
    int32_t  n_texts, n_changes;
    int64_t  expires_ms;              /* the next label to; 0: none                       */
    bool     dirty, consent, changed; /* changed: labels, since they were stored          */
} subject;

typedef struct category {
    struct category *next;
    uint32_t total, count[RANKS];     /* purchases by logarithm of price                  */
    char     name[];                  /* category, newline, currency                      */
} category;

/* A user's newest events and what they say, newest first. */
typedef struct story {
    const mx_event *event;
    int32_t  n, texts, n_friends;
    int64_t  newest_ms;
    bool     consent;
    mx_act   act[EVENTS];
    const float *vector[EVENTS];
    mx_friend friends[FRIENDS];
    int32_t  friend_node[FRIENDS];
    float   *z;                       /* [space's dim] the network's vector, when it has one */
    bool     has_z;
} story;

/* A graph network with its thread, and the index of all users that goes with it; without a network the index alone.  One is
 * current: the profiles' thread changes which, with all doors locked, and reads that without any; others look behind any door
 * and hold it while they use it.  Another may be arriving (profile_swap.c): it follows events and users beside the current one. */
typedef struct space {
    mx_profiles    *p;
    mx_profile_net *net;              /* NULL: none, or not yet                           */
    mx_vectors     *fused;            /* of users with a profile: features, words, network, side by side; NULL: no device */
    char            name[MX_NETWORK_NAME];      /* as it was given, or its folder's                 */
    char            print[20];        /* tells its weights from others                    */
    int32_t         dim, version;     /* dim: of the network's vectors; 0: none           */
    uint64_t        serial;           /* no two have the same                             */
    pthread_mutex_t lock;             /* of the rest                                      */
    pthread_cond_t  news;
    int32_t         refs;
    int32_t        *noted, n_noted, noted_room;
    int32_t        *gone, n_gone, gone_room;      /* erased before it had a network           */
    uint64_t        upto;             /* events up to here are there to be taken in       */
    bool            current, work, stepping, moving, closing, runs;      /* moving: profiles are being made anew */
    mx_error        err;              /* why it has fallen behind                         */
    pthread_t       thread;
} space;

struct mx_profiles {
    mx_user_graph *graph;
    mx_store      *store;
    mx_embedder   *encoder, *sentiment;
    mx_text_store *texts;
    space         *space, *arriving;  /* arriving: NULL mostly; the thread's own          */
    pthread_mutex_t door[DOORS];      /* many, so that readers do not wait for each other */
    mx_device     *device;
    int32_t        dim;               /* of the encoder's vectors; 0: none                */
    int32_t        user, follow, consent;     /* types                                    */
    uint32_t       kinds[MX_EVENT_TYPES];     /* MX_ACT_... of event types                */
    _Atomic(subject **) chunk[CHUNKS];
    pthread_mutex_t shard[SHARDS];
    atomic_ullong  visible;
    Merx__V1__TagDefinition *tag[TAGS];
    int32_t        n_tags;
    mx_feature_prior prior;
    uint32_t       histogram[MX_FEATURES][BINS], counted;
    category      *categories[CATEGORIES];
    int32_t       *dirty, n_dirty, dirty_room;
    mx_event_list  events;            /* the thread's own memory                          */
    mx_user_edges   edges;
    story         *story;
    mx_arena       arena;
    pthread_mutex_t lock, watching;
    pthread_cond_t  more;
    mx_profiles_op *first, **last;
    mx_profile_watch *watches;
    bool           closing, thread_runs;
    pthread_t      thread;
    pthread_mutex_t embed_lock;
    pthread_cond_t  embed_done;
    int32_t        embedding;         /* texts in the scheduler                           */
    struct finder *finder;            /* profile_find.c; NULL: no device                  */
    pthread_mutex_t popular_lock;
    uint32_t      *popular;           /* [popular_room] events about each item            */
    int32_t        popular_room;
    int32_t       *storing, n_storing, storing_room;      /* whose labels the open transaction holds */
    mx_registry   *registry;          /* where memory is taken; NULL: nobody is asked     */
    atomic_size_t  taken;
    size_t         published;         /* bytes of snapshots                               */
    int32_t        n_subjects;
    mx_error       full;              /* why events are refused; code MX_OK: they are not */
};

/* profiles.c */
mx_status profile_answer(mx_profiles_op *op, const ProtobufCMessage *m);
void      profile_done(mx_profiles_op *op, uint64_t began_ns);      /* its end: op may be gone */
subject  *profile_subject(mx_profiles *p, int32_t node);            /* NULL: none yet */
mx_status profile_touch(mx_profiles *p, int32_t node, mx_error *err);      /* to be computed anew */
mx_status profile_refresh(mx_profiles *p, mx_error *err);           /* all that were touched */
mx_status profile_touch_all(mx_profiles *p, mx_error *err);

/* profile_story.c */
mx_status profile_texts(mx_profiles *p, int32_t node, subject *s, mx_error *err);      /* numbers of new texts */
mx_status profile_story(mx_profiles *p, int32_t node, subject *s, bool friends, mx_error *err);      /* p->story */
void      profile_text_mean(const mx_profiles *p, const story *t, int32_t first, int32_t n, float *out);      /* out[dim] */
void      profile_count_purchase(mx_profiles *p, const mx_event *e, int32_t by);
void      profile_count_item(mx_profiles *p, const mx_event *e, int32_t by);
/* The text store for what encoders there are; p->dim.  To be closed after the graph's readers. */
mx_status profile_open_texts(mx_profiles *p, const char *folder, mx_error *err);

/* profile_build.c */
mx_status profile_build(mx_profiles *p, int32_t node, subject *s, snapshot **out, mx_error *err);
void      profile_count(mx_profiles *p, subject *s);            /* in the population's histograms */
void      profile_uncount(mx_profiles *p, subject *s);
mx_status profile_store_labels(mx_profiles *p, const char *user, subject *s, mx_error *err);
mx_status profile_load_labels(mx_profiles *p, int32_t node, subject *s, mx_error *err);
/* What the open transaction holds is on disk, or is to be stored again. */
mx_status profile_labels_stored(mx_profiles *p, bool committed, mx_error *err);
bool      profile_has_head(const mx_profiles *p, const Merx__V1__TagDefinition *m);
double    profile_percentile(const mx_profiles *p, int32_t feature, double value);
bool      profile_rule_holds(const Merx__V1__TagRule *r, double value, double percentile);

/* profile_network.c */
mx_status profile_make_space(mx_profiles *p, const char *name, int32_t version, const char *folder, space **out, mx_error *err);      /* nothing is read yet; name NULL: the folder's */
/* Its network and index, in any thread; folder NULL: an index alone. */
typedef struct space_parts { mx_profile_net *net; mx_vectors *fused; } space_parts;
mx_status profile_open_parts(mx_profiles *p, const char *folder, space_parts *out, mx_error *err);
void      profile_close_parts(space_parts *t);             /* that no space has taken */
mx_status profile_start_space(space *s, space_parts *parts, mx_error *err);      /* takes them; it follows events from now on */
void      profile_take_space(mx_profiles *p, space *s, float *z);                 /* as the current one; z[dim + 1] becomes the story's */
void      profile_stop_space(space *s);                    /* its thread */
void      profile_close_space(space *s);                   /* waits until nobody holds it; NULL is fine */
void      profile_wait_idle(space *s, uint64_t upto);      /* until it has taken in what was handed over, or these events */
space    *profile_hold_space(mx_profiles *p);              /* the current one */
void      profile_release_space(space *s);
Merx__V1__NetworkState *profile_network_state(const space *s, mx_arena *a);      /* NULL: out of memory */
mx_status profile_note(mx_profiles *p, int32_t node, mx_error *err);      /* its input changed without an event of its own: its words were read, or others' were erased */
void      profile_hand_over(mx_profiles *p, uint64_t upto);      /* events up to here, and what was noted, are for the network */
mx_status profile_earlier(const space *s, float **z, int32_t *n, mx_error *err);      /* all nodes, as of each user's half; malloc'ed */
mx_status profile_fuse(mx_profiles *p, int32_t node, const subject *s, mx_error *err);      /* into the index */
mx_status profile_fuse_into(space *in, int32_t node, const subject *s, mx_error *err);
void      profile_unfuse(mx_profiles *p, int32_t node);
mx_status profile_erase_vectors(mx_profiles *p, int32_t node, int64_t *vectors, mx_error *err);      /* *vectors grows by how many went */

/* profile_find.c */
mx_status profile_open_finder(mx_profiles *p, mx_error *err);
void      profile_close_finder(mx_profiles *p);            /* what waits is carried out first */
bool      profile_finds(const mx_profiles *p, const mx_profiles_op *op);         /* an operation of the finder's thread */
void      profile_find_later(mx_profiles *p, mx_profiles_op *op);
mx_stream *profile_stream(mx_profiles *p);                 /* of that thread */
enum { PROFILE_MOST_FOUND = 1000 };
mx_status profile_check_count(int32_t *count, mx_error *err);      /* 0 becomes 10 */
bool      profile_among(const int32_t *list, size_t n, int32_t node);

/* profile_tags.c */
mx_status profile_open_tags(mx_profiles *p, mx_error *err);
void      profile_close_tags(mx_profiles *p);
/* A head for tag k beside the network of s (z: profile_earlier's; NULL: without a network), as the tag's next version. */
mx_status profile_learn(mx_profiles *p, int32_t k, const space *s, const float *z, int32_t n, Merx__V1__TagDefinition **out, mx_error *err);
mx_status profile_store_tag(mx_profiles *p, const Merx__V1__TagDefinition *m, mx_error *err);

#endif
