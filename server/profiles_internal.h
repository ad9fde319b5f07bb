/* profiles_internal.h - what the files of the profiles share; server/profile*.c only. */
#ifndef MX_PROFILES_INTERNAL_H
#define MX_PROFILES_INTERNAL_H

#include "models/label.h"
#include "models/user_graph.h"
#include "server/messages.h"
#include "server/profiles.h"
#include "server/store.h"

#include <pthread.h>
#include <stdatomic.h>

enum { SHARDS = 256, CHUNK = 65536, CHUNKS = 4096, EVENTS = 256, FRIENDS = 64, TEXTS = 16, TAGS = 16, SHOWN = 6, HISTORY = 16, BINS = 512,
       RANKS = 320, CATEGORIES = 4096, PUT_MOST = 4096 };
#define DAY_MS 86400000LL
#define TEXT_STRENGTH 2.0             /* of the prior, a vector of zeros */

typedef struct snapshot {
    mx_profile_view view;             /* first: what readers hold                         */
    atomic_int refs;
    uint8_t    data[];
} snapshot;

typedef struct text_numbers {         /* what models said of an event's text              */
    uint64_t id;                      /* hash of the event's id                           */
    bool     felt;
    float    positive;
    float   *vector;                  /* [dim], or NULL                                   */
} text_numbers;

typedef struct change { char tag[64]; int32_t version; bool in, stored; float probability; int64_t ts_ms; } change;

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
} story;

struct mx_profiles {
    mx_user_graph *graph;
    mx_store      *store;
    mx_embedder   *encoder, *sentiment;
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
};

/* profiles.c */
int64_t   profile_now_ms(void);
mx_status profile_answer(mx_profiles_op *op, const ProtobufCMessage *m);
subject  *profile_subject(mx_profiles *p, int32_t node);            /* NULL: none yet */
mx_status profile_touch(mx_profiles *p, int32_t node, mx_error *err);      /* to be computed anew */
mx_status profile_refresh(mx_profiles *p, mx_error *err);           /* all that were touched */
mx_status profile_touch_all(mx_profiles *p, mx_error *err);

/* profile_story.c */
mx_status profile_texts(mx_profiles *p, int32_t node, subject *s, mx_error *err);      /* numbers of new texts */
mx_status profile_story(mx_profiles *p, int32_t node, subject *s, bool friends, mx_error *err);      /* p->story */
void      profile_text_mean(const mx_profiles *p, const story *t, int32_t first, int32_t n, float *out);      /* out[dim] */
void      profile_count_purchase(mx_profiles *p, const mx_event *e, int32_t by);

/* profile_build.c */
mx_status profile_build(mx_profiles *p, int32_t node, subject *s, snapshot **out, mx_error *err);
void      profile_count(mx_profiles *p, subject *s);            /* in the population's histograms */
void      profile_uncount(mx_profiles *p, subject *s);
mx_status profile_store_labels(mx_profiles *p, const char *user, subject *s, mx_error *err);
mx_status profile_load_labels(mx_profiles *p, int32_t node, subject *s, mx_error *err);
bool      profile_has_head(const mx_profiles *p, const Merx__V1__TagDefinition *m);
double    profile_percentile(const mx_profiles *p, int32_t feature, double value);
bool      profile_rule_holds(const Merx__V1__TagRule *r, double value, double percentile);

/* profile_tags.c */
mx_status profile_open_tags(mx_profiles *p, mx_error *err);
void      profile_close_tags(mx_profiles *p);

#endif
