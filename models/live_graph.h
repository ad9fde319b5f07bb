/* live_graph.h - a graph (models/graph.h) that edges and nodes are added to while it is used.
 *
 * What it begins with stays as it is, in compressed rows; a row that changes is copied out,
 * whole and in the same order, so a view of the live graph and one built anew from all its edges
 * are equal row by row.  Beside every row stands who hears from its node.
 *
 * One thread changes it, and readers wait meanwhile. */
#ifndef MX_LIVE_GRAPH_H
#define MX_LIVE_GRAPH_H

#include "models/graph.h"

typedef struct mx_live_graph mx_live_graph;

/* Takes what base holds and leaves it empty.  Errors: MX_ERR_NO_MEMORY. */
mx_status mx_live_graph_open(mx_live_graph **out, mx_graph_store *base, mx_error *err);
void      mx_live_graph_close(mx_live_graph *l);
/* Valid until close; its number of nodes grows. */
const mx_graph *mx_live_graph_view(const mx_live_graph *l);

/* The next number.  Errors: MX_ERR_NO_MEMORY, MX_ERR_ARG (2^31 - 1 nodes). */
mx_status mx_live_graph_add_node(mx_live_graph *l, uint8_t type, int32_t *node, mx_error *err);
/* `to` hears from `from`.  weight is 1 in a relation that began without weights.
 * Errors: MX_ERR_ARG (a relation, node or weight out of range), MX_ERR_NO_MEMORY: nothing changed. */
mx_status mx_live_graph_add(mx_live_graph *l, int32_t relation, int32_t to, int32_t from, float weight, mx_error *err);
/* All edges of a node go, both ways; who heard from it is told (may be NULL).  Errors: MX_ERR_NO_MEMORY: some may be gone. */
mx_status mx_live_graph_isolate(mx_live_graph *l, int32_t node, void (*heard)(void *ctx, int32_t who), void *ctx, mx_error *err);

/* Every node that hears from one, once for each edge. */
void      mx_live_graph_heard_by(const mx_live_graph *l, int32_t node, void (*each)(void *ctx, int32_t who), void *ctx);
size_t    mx_live_graph_bytes(const mx_live_graph *l);

#endif
