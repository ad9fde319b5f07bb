/* user_graph.h - the living graph: what users did, durable, and read as of any time.
 *
 * A store is a folder: an append-only log of events (models/event_log.h), the truth;
 * and a snapshot of the graph that follows from it, mapped at start, behind which only
 * the log's tail is read.  A node is a typed key (a user, an item, a shop ...); an event
 * is something its subject did at a time, and, when its type has an object, an edge from
 * subject to object.  In memory the edges stand twice in CSR, by subject and by object,
 * with what came since beside them; a background thread merges the two.
 *
 * Numbers of nodes are dense, given in the order of arrival, and never given again.
 *
 * THREADS: all functions but open and close may be called from any thread.  Readers
 * wait for no merge and no disk; what they get is copied out and theirs. */
#ifndef MX_USER_GRAPH_H
#define MX_USER_GRAPH_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MX_KEY_MOST 128                   /* bytes of a node's key, of an event's id            */
#define MX_TYPE_MOST 32                   /* bytes of a type's name                             */
#define MX_TEXT_MOST 65536                /* bytes of an event's text, of its props             */
#define MX_TIME_MOST 4102444800000LL      /* ms; 2100-01-01                                     */
#define MX_TIME_ANY  INT64_MAX            /* as of: everything there is                         */
enum { MX_NODE_TYPES = 32, MX_EVENT_TYPES = 32 };

typedef struct mx_user_graph mx_user_graph;

typedef struct mx_user_graph_options {
    int64_t segment_bytes;                /* of the log; 64 MiB                                 */
    int64_t merge_events;                 /* merge after so many, at least a quarter of all; 1 Mi; 0: only when asked */
    int64_t late_ms;                      /* events this much older than the newest are late; 1 day */
} mx_user_graph_options;
mx_user_graph_options mx_user_graph_defaults(void);

/* Makes the folder if need be; one process at a time.  A torn end of the log, which nobody
 * was told was there, is cut off.  o NULL: defaults.  Errors: MX_ERR_IO; MX_ERR_FORMAT (the log is
 * damaged: segment and offset); MX_ERR_STATE (another process has it open); MX_ERR_NO_MEMORY. */
mx_status mx_user_graph_open(mx_user_graph **out, const char *folder, const mx_user_graph_options *o, mx_error *err);
void      mx_user_graph_close(mx_user_graph *g);

/* ---- types ------------------------------------------------------------------------- */

/* How features understand an event. */
enum { MX_TYPE_PURCHASE = 1,              /* its price was paid, price times quantity is spent  */
       MX_TYPE_SOCIAL = 2 };              /* follow, join, share: counts towards activity       */

typedef struct mx_event_type {
    char     name[MX_TYPE_MOST + 1];
    int32_t  subject, object;             /* node types; object -1: none, no edge               */
    uint32_t flags;                       /* MX_TYPE_...                                        */
} mx_event_type;

/* Declares a type, or finds it when it is declared alike.  Errors: MX_ERR_ARG (name, 33rd type,
 * declared otherwise), MX_ERR_IO. */
mx_status mx_user_graph_declare_node(mx_user_graph *g, const char *name, int32_t *type, mx_error *err);
mx_status mx_user_graph_declare_event(mx_user_graph *g, const mx_event_type *t, int32_t *type, mx_error *err);
/* The types every store of profiles begins with: nodes user, item, community, shop; events view, cart,
 * buy, rate, review and search of users about items, visit of shops, follow of users, join of communities, share. */
mx_status mx_user_graph_declare_usual(mx_user_graph *g, mx_error *err);
int32_t   mx_user_graph_node_types(const mx_user_graph *g);                             /* how many       */
int32_t   mx_user_graph_event_types(const mx_user_graph *g);
int32_t   mx_user_graph_find_node_type(const mx_user_graph *g, const char *name);       /* -1: none       */
int32_t   mx_user_graph_find_event_type(const mx_user_graph *g, const char *name);
bool      mx_user_graph_node_type(const mx_user_graph *g, int32_t type, char name[MX_TYPE_MOST + 1]);
bool      mx_user_graph_event_type(const mx_user_graph *g, int32_t type, mx_event_type *out);

/* ---- events ------------------------------------------------------------------------ */

enum { MX_EVENT_PROMO = 1 };

typedef struct mx_event {
    const char *id;                       /* the sender's; the same id twice is one event       */
    int32_t     type;
    uint32_t    flags;                    /* MX_EVENT_...                                       */
    int64_t     ts_ms;
    const char *subject, *object;         /* keys; object NULL when the type has none           */
    float       weight;                   /* of the edge: finite, >= 0                          */
    float       dwell_s;
    int64_t     price_minor;              /* of one; < 0: none                                  */
    int32_t     quantity;
    const char *currency, *category, *channel, *session, *text, *props;   /* NULL or "": none */
} mx_event;
mx_event mx_event_defaults(void);         /* weight 1, quantity 1, no price                     */

typedef enum mx_put_code {
    MX_PUT_ACCEPTED,
    MX_PUT_LATE,                          /* accepted; older than the newest event by more than late_ms */
    MX_PUT_DUPLICATE,                     /* the id is there already; nothing changed           */
    MX_PUT_MALFORMED,                     /* refused; the reason says which field               */
    MX_PUT_ERASED,                        /* refused: its subject or object was erased          */
    MX_PUT_CODES
} mx_put_code;

typedef struct mx_put_result {
    mx_put_code code;
    int32_t     subject, object;          /* nodes of an accepted event; object -1: none        */
    char        reason[128];              /* "" when accepted                                   */
} mx_put_result;

typedef struct mx_put_ack {
    int64_t  accepted, late, duplicates, malformed, erased;      /* late ones are among accepted */
    uint64_t watermark;                   /* events accepted so far, these included             */
} mx_put_ack;

/* When it returns MX_OK every accepted event of the batch (and each one it is a duplicate of) is on
 * the disk and seen by every read from now on.  Calls from several threads share one flush.  now_ms:
 * events more than a day ahead of it are malformed; 0: not checked.  result[n] may be NULL.
 * Errors: MX_ERR_IO, MX_ERR_NO_MEMORY: nothing of the batch is acknowledged. */
mx_status mx_user_graph_put(mx_user_graph *g, const mx_event *e, int32_t n, int64_t now_ms, mx_put_result *result, mx_put_ack *ack,
                            mx_error *err);
uint64_t  mx_user_graph_watermark(const mx_user_graph *g);
uint64_t  mx_user_graph_print(const mx_user_graph *g);          /* tells this store from others; never 0 */
int64_t   mx_user_graph_newest_ms(const mx_user_graph *g);      /* ts of the newest event; 0: none */

/* ---- nodes and edges ------------------------------------------------------------------ */

int32_t mx_user_graph_nodes(const mx_user_graph *g);                                     /* numbers given   */
int32_t mx_user_graph_find(const mx_user_graph *g, int32_t type, const char *key);       /* -1: not there   */
/* False: no such node, or erased. */
bool    mx_user_graph_node(const mx_user_graph *g, int32_t node, int32_t *type, char key[MX_KEY_MOST + 1]);

typedef enum mx_direction { MX_EDGES_OUT = 1, MX_EDGES_IN = 2, MX_EDGES_BOTH = 3 } mx_direction;

typedef struct mx_user_edge {
    int32_t  other, type;                 /* the node at the other end; event type              */
    uint32_t time_s;                      /* the event's second, rounded up                     */
    float    weight;
    bool     in;                          /* the node is its object                             */
} mx_user_edge;

typedef struct mx_user_edges { mx_user_edge *edge; int64_t count, room; } mx_user_edges;         /* zero it */
void mx_user_edges_free(mx_user_edges *l);

/* Edges of a node that were there as of a time, in the order of (second, arrival), outgoing first.
 * Errors: MX_ERR_NO_MEMORY. */
mx_status mx_user_graph_edges(const mx_user_graph *g, int32_t node, mx_direction d, int64_t as_of_ms, mx_user_edges *out, mx_error *err);

/* weight * exp(-age/tau), the same bits everywhere; tau_s 0: the weight alone.  S1: tau is 14 days. */
#define MX_TAU_S (14 * 86400.0)
float mx_user_edge_decayed(float weight, uint32_t time_s, int64_t as_of_ms, double tau_s);

/* ---- a subject's events ------------------------------------------------------------------ */

typedef struct mx_event_list {            /* zero it; strings lie in it                         */
    mx_event *event;
    int32_t   count, room;
    char     *bytes;
    void     *found;
    size_t    bytes_room, found_room;
} mx_event_list;
void mx_event_list_free(mx_event_list *l);

/* The subject's events up to as_of, newest first, at most `limit` (0: all).
 * Errors: MX_ERR_NO_MEMORY, MX_ERR_FORMAT (a record is damaged: segment and offset). */
mx_status mx_user_graph_events(const mx_user_graph *g, int32_t subject, int64_t as_of_ms, int32_t limit, mx_event_list *out, mx_error *err);

/* Every event from *cursor on (0: the first), in the order they came, and moves the cursor behind them: so a reader
 * follows the store.  each() may read the graph, but neither merge nor erase.  Errors: MX_ERR_FORMAT, what each() returned. */
mx_status mx_user_graph_each(const mx_user_graph *g, uint64_t *cursor, mx_status (*each)(void *ctx, const mx_event *e, mx_error *err), void *ctx,
                             mx_error *err);

/* ---- erasure --------------------------------------------------------------------------------- */

typedef struct mx_erasure {
    char     subject[65];                 /* SHA-256 of the store's salt, type and key, in hex  */
    int64_t  events, edges;               /* removed, of others about the subject included      */
    int64_t  bytes;                       /* of the log overwritten                             */
    int64_t  erased_ms;
    uint64_t watermark;
    char     receipt[65];                 /* SHA-256 of all of the above                        */
} mx_erasure;

/* Removes what the subject did, and what others did about it, from memory, log and snapshot; its
 * number is never given again and later events of it are refused.  Erasing what was never there leaves
 * the mark alone.  When it returns MX_OK it is done and on the disk.  Cost: one snapshot for the whole list.
 * Errors: MX_ERR_IO, MX_ERR_NO_MEMORY: come again, a part may be done. */
mx_status mx_user_graph_erase(mx_user_graph *g, int32_t type, const char *const *keys, int32_t n, int64_t now_ms, mx_erasure *out, mx_error *err);

/* ---- upkeep ------------------------------------------------------------------------------------ */

/* Merge now and write the snapshot.  Errors: MX_ERR_IO, MX_ERR_NO_MEMORY. */
mx_status mx_user_graph_merge(mx_user_graph *g, mx_error *err);

typedef struct mx_user_graph_stats {
    uint64_t watermark, log_bytes, snapshot_bytes;
    int64_t  nodes, events, edges, pending;       /* pending: not merged yet                    */
    int64_t  erased;
    size_t   edge_bytes, event_bytes, node_bytes; /* memory: both CSRs and what stands beside; event index; keys */
    double   merge_s;                             /* the last one took                          */
    int64_t  merges;
    uint64_t cut_bytes;                           /* torn end that open cut off                 */
} mx_user_graph_stats;
void mx_user_graph_statistics(const mx_user_graph *g, mx_user_graph_stats *out);

#endif
