/* profile_net.h - a trained graph network over a living store of events.
 *
 * It keeps every node's rows of every layer (models/refresh.h) over what profile_graph.h sees; step()
 * takes in the events since the last one and computes anew whom they reach, K hops and no more.
 * What comes out is a function of the log and the texts' vectors: after a start it is the same, bit for bit.
 *
 * What others read is published: vectors of users and of items, each whole, scanned while they
 * change (models/nearest.h).
 *
 * THREADS: step, erase and parts wait for each other; all else is for any thread, and waits for none of them. */
#ifndef MX_PROFILE_NET_H
#define MX_PROFILE_NET_H

#include "models/nearest.h"
#include "models/profile_graph.h"
#include "models/refresh.h"

typedef struct mx_profile_net mx_profile_net;

typedef struct mx_profile_net_info {
    const char *folder;
    mx_gnn_kind kind;
    mx_gnn_task task;
    int32_t     layers, dim, text_dim;        /* dim: of what comes out                     */
    uint64_t    print;                        /* mx_gnn_print()                             */
} mx_profile_net_info;

/* A folder of mx_gnn_save(), on a CPU device.  All nodes are computed before it returns.  texts: must outlive it, NULL: none.
 * Rows of its table that belong to users who were erased meanwhile are overwritten in the folder.
 * Errors: those of mx_gnn_open(); MX_ERR_ARG (it was made for other inputs, another encoder or another store). */
mx_status mx_profile_net_open(mx_profile_net **out, const char *folder, mx_device *dev, const mx_user_graph *g, const mx_text_store *texts, mx_error *err);
void      mx_profile_net_close(mx_profile_net *p);
/* What open() will take over g as it is now, weights and the rest, in bytes; no weight is read. */
mx_status mx_profile_net_footprint(const char *folder, const mx_user_graph *g, size_t *weights, size_t *rows, mx_error *err);
mx_profile_net_info mx_profile_net_about(const mx_profile_net *p);

/* Takes in the events since the last step; the inputs of their users and of touched[n] are read anew (their texts have
 * vectors now).  `watermark` is what as_of tells afterwards.  On an error what is due stays due. */
mx_status mx_profile_net_step(mx_profile_net *p, const int32_t *touched, int32_t n, uint64_t watermark, mx_refresh_stats *stats, mx_error *err);
/* Whose vector changed in the last step, rising; of the thread that steps. */
const int32_t *mx_profile_net_changed(const mx_profile_net *p, int32_t *n);
/* After the graph has erased it: rows, vectors and edges go, and its learned row in the folder.  *rows grows by vectors removed.
 * Whoever did something about it (its edges in, before they are gone) has other figures now and is touched in the next step. */
mx_status mx_profile_net_erase(mx_profile_net *p, int32_t node, int64_t *rows, mx_error *err);

uint64_t  mx_profile_net_watermark(const mx_profile_net *p);
bool      mx_profile_net_get(const mx_profile_net *p, int32_t user, float *to);         /* [dim]; false: not there (yet) */
const mx_vectors *mx_profile_net_users(const mx_profile_net *p);
const mx_vectors *mx_profile_net_items(const mx_profile_net *p);

/* Whom a vector comes from: neighbours' rows become zeros one after the other, the weightiest first, and what that takes away is
 * theirs; then the node's own rows.  So z = base + own + the sum of all parts, up to rounding of f32.  In sage
 * by the mean, rgcn, gcn and lightgcn a part does not depend on the order. */
enum { MX_NET_PARTS = 32 };
typedef struct mx_net_parts {
    int32_t n, node[MX_NET_PARTS + 1];        /* -1: all further ones together               */
    float  *part, *own, *base, *z;            /* [n, dim], [dim] each                        */
} mx_net_parts;
mx_status mx_profile_net_parts(mx_profile_net *p, int32_t node, mx_net_parts *out, mx_error *err);
void      mx_net_parts_free(mx_net_parts *t);

#endif
