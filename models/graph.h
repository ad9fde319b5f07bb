/* graph.h - who is joined to whom: nodes of types, weighted edges of relations.
 *
 * All nodes share one range of numbers, 0 to nodes-1, in the order in which they
 * came; a node's type (user, item, community, shop) stands beside it, so a graph
 * grows at its end.  An edge belongs to a relation (view, buy, follow ...) and
 * lies at the node that hears: row v of a relation lists the sources of v by
 * rising number, several edges of one pair by rising weight.  So equal sets of
 * edges are equal bytes, whatever order they came in, and a sum over a row has
 * one order.
 *
 * mx_graph is a view and owns nothing: mx_graph_store fills it from edge lists,
 * and so may anybody who keeps rows elsewhere, through `row`.  Readers of one
 * graph may be many; who changes rows waits for them. */
#ifndef MX_GRAPH_H
#define MX_GRAPH_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MX_GRAPH_RELATIONS 64

/* One node's sources in one relation; weight NULL: 1 each. */
typedef struct mx_neighbours {
    const int32_t *ids;
    const float   *weight;
    int32_t        n;
} mx_neighbours;

/* One relation, compressed rows: those of node v are [begin[v], begin[v+1]). */
typedef struct mx_csr {
    const int32_t *begin;         /* [nodes+1]                         */
    const int32_t *ids;           /* [edges], each under nodes         */
    const float   *weight;        /* [edges], or NULL: 1 each          */
} mx_csr;

typedef struct mx_graph {
    int32_t        nodes, relations;
    const uint8_t *type;          /* [nodes]; NULL: all of one type    */
    const mx_csr  *csr;           /* [relations]; NULL: only row() tells */
    /* The row of one node; it stays valid as long as the graph.  NULL: csr has it. */
    void         (*row)(const void *ctx, int32_t relation, int32_t node, mx_neighbours *out);
    const void    *ctx;
} mx_graph;

static inline mx_neighbours mx_graph_row(const mx_graph *g, int32_t relation, int32_t node)
{
    mx_neighbours out = {0};
    if (g->row) {
        g->row(g->ctx, relation, node, &out);
        return out;
    }
    const mx_csr *c = &g->csr[relation];
    int32_t from = c->begin[node];
    out.n = c->begin[node + 1] - from;
    out.ids = c->ids + from;
    out.weight = c->weight ? c->weight + from : NULL;
    return out;
}

/* ---- from edge lists ------------------------------------------------------------- */

typedef struct mx_edge_list {
    const int32_t *from, *to;     /* [n]: `to` hears from `from`       */
    const float   *weight;        /* [n]; NULL: 1 each                 */
    int64_t        n;
} mx_edge_list;

typedef struct mx_graph_options {
    bool both_ways;               /* every edge also the other way     */
    bool self_loops;              /* one edge of weight 1 from every node to itself */
    bool once;                    /* edges of one pair become one: the sum of their weights, in row order; without
                                     weights: one of weight 1          */
} mx_graph_options;

/* Owns the rows of a view. */
typedef struct mx_graph_store {
    mx_graph view;
    mx_csr   csr[MX_GRAPH_RELATIONS];
    uint8_t *type;
    int64_t  edges;               /* of all relations                  */
    size_t   bytes;
} mx_graph_store;

/* Counting sort by node, then each row by source; what is given is copied.
 * Errors: MX_ERR_ARG (relation, place and number of an end that is no node;
 * a weight that is not finite; more than 2^31 - 1 edges of a relation, nodes or
 * relations out of range), MX_ERR_NO_MEMORY. */
mx_status mx_graph_build(mx_graph_store *g, int32_t nodes, const uint8_t *type, const mx_edge_list *lists, int32_t relations,
                         const mx_graph_options *opt, mx_error *err);
void      mx_graph_close(mx_graph_store *g);

/* For whoever fills a view: every row sorted, within range, finite.  Errors:
 * MX_ERR_FORMAT names relation, node and what is wrong. */
mx_status mx_graph_check(const mx_graph *g, mx_error *err);

/* Rows turned round, into the caller's memory: row u of t_begin[columns+1] lists
 * in t_ids[edges] who hears from u, by rising number, and in edge[edges] (may be
 * NULL) which of the forward edges each one is. */
void      mx_csr_transpose(const int32_t *begin, const int32_t *ids, int32_t rows, int32_t columns, int32_t *t_begin, int32_t *t_ids,
                           int32_t *edge);

/* Sources of a node in all relations. */
int64_t   mx_graph_degree(const mx_graph *g, int32_t node);

#endif
