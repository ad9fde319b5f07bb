/* profile_graph.h - what a graph network sees of a store of events.
 *
 * NODES have the numbers of the user graph.  Every event with an object joins its two ends both
 * ways, with the event's weight: for rgcn the object hears in relation 2 t, the subject in 2 t + 1 (t the event
 * type's number); other networks have one relation.  Events count in the order of the log: from a
 * withdrawn consent on, a user has no edges until it consents again, and what was before stays out.
 *
 * INPUT of a user: the mean of its words' vectors (the newest 16 texts of its newest 256 events, fading in 90
 * days, drawn to zero as by two texts), then its figures (models/behaviour.h) as of its newest event.  No clock and
 * nobody else's prices go in, so an event changes one input, and what is computed anew after a start is the same.
 * Other nodes have zeros there; a network's table may tell them apart. */
#ifndef MX_PROFILE_GRAPH_H
#define MX_PROFILE_GRAPH_H

#include "models/behaviour.h"
#include "models/gnn.h"
#include "models/text_store.h"

enum { MX_PROFILE_EVENTS = 256, MX_PROFILE_TEXTS = 16 };
#define MX_TEXT_STRENGTH 2.0              /* of the prior, a vector of zeros */

/* The weight of an event so much older than its user's newest. */
double    mx_event_fade(int64_t age_ms);
/* out[dim] = the sum of weight[i] vector[i] over MX_TEXT_STRENGTH + the sum of weights; of those whose vector is not NULL. */
void      mx_text_mean(const float *weight, const float *const *vector, int32_t n, int32_t dim, float *out);

int32_t   mx_profile_inputs(int32_t text_dim);       /* columns */
/* Of one node, from its events up to as_of; list is kept for the next call.  texts may be NULL when text_dim is 0. */
mx_status mx_profile_input(const mx_user_graph *g, const mx_text_store *texts, int32_t text_dim, int32_t node, int64_t as_of_ms, mx_event_list *list,
                           float *out, mx_error *err);

/* ---- edges, in the order of the log ------------------------------------------------------------ */

/* How far the log was read, and who has no edges. */
typedef struct mx_profile_follower {
    const mx_user_graph *graph;
    uint64_t  cursor;
    int64_t   sequence;               /* events so far                                       */
    int32_t   consent, nodes;         /* event type, or -1; nodes: of the lists below        */
    int64_t  *consent_ms, *dropped;   /* of each node: its newest word; edges up to this event are gone */
    uint8_t  *absent;
    /* Told in order.  edge: between two who are there.  withdrawn: all its edges go. */
    mx_status (*edge)(void *ctx, int32_t type, int32_t subject, int32_t object, float weight, int64_t ts_ms, mx_error *err);
    mx_status (*withdrawn)(void *ctx, int32_t node, mx_error *err);
    mx_status (*acted)(void *ctx, int32_t subject, mx_error *err);       /* every event's subject */
    void     *ctx;
} mx_profile_follower;

/* Reads on to the log's end.  edge, withdrawn, acted may be NULL.  Errors: those of mx_user_graph_each(), of what is called. */
mx_status mx_profile_follow(mx_profile_follower *f, mx_error *err);
void      mx_profile_follower_close(mx_profile_follower *f);

/* The graph so far: f begins at the log's start (set graph; the rest zero), and can follow on afterwards.
 * relations: 1, or rgcn's even number; `until_ms`: later events are left out (MX_TIME_ANY: none are), `without`
 * (may be NULL): says which edges are.  An empty store has one node, the next to come.  Errors: MX_ERR_NO_MEMORY. */
typedef struct mx_profile_graph_options {
    int32_t relations;
    int64_t until_ms;
    const int64_t *until;             /* [nodes], or NULL: of each subject's own events      */
    int32_t n_until;
    bool  (*without)(void *ctx, int32_t subject, int32_t object);
    void   *ctx;
} mx_profile_graph_options;
mx_status mx_profile_graph_build(mx_graph_store *out, mx_profile_follower *f, const mx_profile_graph_options *o, mx_error *err);

/* Which relation of `relations` an edge is in: to the object's row, to the subject's; false: in none. */
bool      mx_profile_relation(int32_t type, int32_t relations, int32_t *to_object, int32_t *to_subject);

/* ---- to learn from ---------------------------------------------------------------------------------- */

typedef struct mx_profile_lesson { int64_t pairs, held, edges; int32_t nodes, features; } mx_profile_lesson;

/* A graph file (models/gnn_file.h): pairs of user and item, each once.  The tenth that was joined last is held back
 * (half to watch, half to judge by): its edges, later events and later words are not in it.
 * Errors: MX_ERR_STATE (under 20 pairs), MX_ERR_IO, MX_ERR_NO_MEMORY. */
mx_status mx_profile_lesson_write(const mx_user_graph *g, const mx_text_store *texts, int32_t relations, const char *path, mx_profile_lesson *out, mx_error *err);

#endif
