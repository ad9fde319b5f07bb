/* user_graph_internal.h - what the files of the user graph (models/user_graph*.c) share.
 *
 * What readers see is a base, the mapped snapshot, and what came since: fresh events,
 * linked by subject and by object, and the nodes they brought.  Locks, in the order they are
 * taken: merging (one merge at a time; only a merge replaces the base), write (one writer;
 * it alone changes what came since), lock (readers share it while they copy, a writer
 * has it while it links what is on the way to the disk already). */
#ifndef MX_USER_GRAPH_INTERNAL_H
#define MX_USER_GRAPH_INTERNAL_H

#include "models/event_log.h"
#include "models/snapshot.h"
#include "models/user_graph.h"

#include <pthread.h>
#include <stdatomic.h>

#define MX_NODE_MOST ((1 << 27) - 1)      /* five bits of an edge's word are its type       */
#define MX_NO_NODE   MX_NODE_MOST
#define MX_TYPE_GONE 255u                 /* an erased node                                 */

static inline uint32_t mx_edge_word(int32_t node, int32_t type) { return (uint32_t)type << 27 | (uint32_t)node; }
static inline int32_t  mx_edge_node(uint32_t word) { return (int32_t)(word & (uint32_t)MX_NO_NODE); }
static inline int32_t  mx_edge_type(uint32_t word) { return (int32_t)(word >> 27); }
static inline uint32_t mx_second_up(int64_t ms) { return (uint32_t)((ms + 999) / 1000); }

typedef struct mx_digest { uint8_t byte[32]; } mx_digest;

/* ---- types: in the log, and in every snapshot -------------------------------------------- */

typedef struct mx_schema {
    int32_t       node_types, event_types;
    char          node_type[MX_NODE_TYPES][MX_TYPE_MOST + 1];
    mx_event_type event_type[MX_EVENT_TYPES];
} mx_schema;

/* ---- records of the log (user_graph_record.c) --------------------------------------------- */

enum { MX_RECORD_EVENT = 1, MX_RECORD_NODE_TYPE, MX_RECORD_EVENT_TYPE, MX_RECORD_ERASED, MX_RECORD_SALT };

#define MX_EVENT_RECORD_MOST (2 * MX_TEXT_MOST + 2048)

/* False: reason says which field is wrong. */
bool      mx_event_check(const mx_schema *s, const mx_event *e, int64_t now_ms, char reason[128]);
size_t    mx_event_record_size(const mx_event *e);
void      mx_event_encode(const mx_event *e, uint8_t *to);
/* Strings point into data, which ends every one with a zero.  False: no event of this schema. */
int64_t   mx_event_record_time(const void *data, size_t size);         /* -1: no event */
bool      mx_event_decode(const mx_schema *s, const void *data, size_t size, mx_event *out);

typedef struct mx_erased_record { mx_digest subject; int64_t erased_ms; } mx_erased_record;

/* ---- the base (user_graph_base.c) --------------------------------------------------------- */

typedef struct mx_base_head {             /* the snapshot's first page */
    char      magic[8];
    uint32_t  crc_head, crc_body;         /* crc_head: of what follows in this struct */
    int32_t   nodes, erased;
    uint32_t  events, edges, key_slots;   /* key_slots: a power of two */
    uint32_t  unused;
    uint64_t  key_bytes, seen, seen_range, seen_slots, size;
    uint64_t  log_at, watermark;
    int64_t   newest_ms;
    uint8_t   salt[16];
    mx_schema schema;
} mx_base_head;

typedef struct mx_base {
    mx_base_head head;
    void        *map;                     /* NULL: empty */
    size_t       mapped;
    uint64_t    *key_begin;               /* [nodes+1]: of its bytes in keys */
    char        *keys;
    uint8_t     *node_type;               /* [nodes], or MX_TYPE_GONE */
    uint32_t    *key_slot;                /* node + 1, or 0 */
    uint32_t    *out_begin, *in_begin;    /* [nodes+1] */
    uint32_t    *out_other, *out_time;    /* [events]: object and type, second; in the order of (second, at) */
    float       *out_weight;
    uint64_t    *out_at;                  /* [events]: where its record is in the log */
    uint32_t    *in_other, *in_ref;       /* [edges]: subject and type, which event; in the order of (second, at) */
    uint64_t    *seen;                    /* [seen_slots]: ids' fingerprints, rising, near where they belong */
    mx_digest   *gone;                    /* [erased] */
} mx_base;

mx_base  *mx_base_empty(mx_error *err);
/* *out NULL and MX_OK: there is none, or it is damaged (which is told to the log). */
mx_status mx_base_open(mx_base **out, const char *folder, mx_error *err);
void      mx_base_close(mx_base *b);
/* A new snapshot's file of this head's sizes, to be filled. */
mx_status mx_base_create(mx_base **out, const char *folder, const mx_base_head *head, mx_error *err);
/* Sums, fsync, rename: now it is the snapshot. */
mx_status mx_base_publish(mx_base *b, const char *folder, mx_error *err);
void      mx_base_abandon(mx_base *b, const char *folder);

int32_t   mx_base_find(const mx_base *b, int32_t type, const char *key, size_t len, uint64_t hash);
bool      mx_base_seen(const mx_base *b, uint64_t print);
uint64_t  mx_seen_home(uint64_t print, uint64_t range);

/* ---- the graph -------------------------------------------------------------------------------- */

typedef struct mx_fresh {                 /* an event since the base */
    uint32_t other, time_s, subject;      /* other: node and type */
    float    weight;
    uint64_t at, print;
    uint32_t next_out, next_in;           /* index + 1 of the one before it */
} mx_fresh;

typedef struct mx_late_nodes {            /* nodes since the base; number i is base nodes + i */
    int32_t   count, room;
    uint64_t *begin;                      /* [room+1] */
    uint8_t  *type;
    char     *keys;
    size_t    keys_room;
    uint32_t *slot, slots;                /* i + 1, or 0; a power of two */
} mx_late_nodes;

typedef struct mx_prints { uint64_t *slot; size_t slots, count; } mx_prints;

struct mx_user_graph {
    char                  folder[MX_PATH];
    int                   lock_fd;
    mx_user_graph_options opt;
    mx_event_log         *log;
    pthread_mutex_t       merging, write;
    pthread_rwlock_t      lock;
    mx_schema             schema;
    uint8_t               salt[16];
    bool                  salted;
    mx_base              *base;
    mx_fresh             *fresh;
    uint32_t              n_fresh, fresh_room, fresh_edges;
    uint32_t             *out_head, *in_head;      /* [heads]: index + 1 */
    int32_t               heads;
    mx_late_nodes         late;
    mx_prints             prints;
    mx_digest            *gone;
    int32_t               n_gone, gone_room;
    bool                  erasing;                  /* replay met an erasure that may not be complete */
    uint64_t              watermark;
    int64_t               newest_ms;
    uint8_t              *encode;                   /* of one put */
    size_t                encode_room;
    pthread_t             merger;
    pthread_cond_t        wake;                     /* with write */
    bool                  merger_runs, stop;
    double                merge_s;
    int64_t               merges;
};

uint64_t  mx_key_hash(int32_t type, const char *key, size_t len);
uint64_t  mx_id_print(const mx_user_graph *g, const char *id);
void      mx_subject_digest(const mx_user_graph *g, int32_t type, const char *key, mx_digest *out);
void      mx_hex(const uint8_t *bytes, size_t n, char *to);
bool      mx_sha256(const void *data, size_t n, uint8_t out[32]);

/* user_graph_fresh.c: what came since the base.  The writer's; link needs `lock` too. */
mx_status mx_fresh_reserve(mx_user_graph *g, int32_t events, size_t key_bytes, mx_error *err);
void      mx_fresh_link(mx_user_graph *g, const mx_event *e, uint64_t at, uint64_t print, int32_t *subject, int32_t *object);
/* The first m are in the base now, and the first `nodes` late nodes. */
void      mx_fresh_drop(mx_user_graph *g, uint32_t m, int32_t nodes);
void      mx_fresh_free(mx_user_graph *g);
bool      mx_prints_add(mx_prints *p, uint64_t print);       /* false: it is there; room was reserved */
void      mx_prints_remove(mx_prints *p, uint64_t print);
int32_t   mx_node_find(const mx_user_graph *g, int32_t type, const char *key);
const char *mx_node_key(const mx_user_graph *g, int32_t node, int32_t *type, size_t *len);   /* NULL: none, or erased */
mx_status mx_gone_add(mx_user_graph *g, const mx_digest *d, mx_error *err);
bool      mx_gone_has(const mx_user_graph *g, int32_t type, const char *key);

/* user_graph_merge.c.  gone[n_gone]: nodes, rising, that are left out. */
mx_status mx_merge(mx_user_graph *g, const int32_t *gone, int32_t n_gone, mx_error *err);
/* user_graph_erase.c: what was erased according to the digests is taken out everywhere. */
mx_status mx_erase_finish(mx_user_graph *g, mx_error *err);

#endif
