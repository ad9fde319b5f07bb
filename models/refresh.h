/* refresh.h - embeddings of a graph's nodes that stay right as edges arrive.
 *
 * The input and every layer's output of every node are kept.  What changed since the last run
 * is carried forward layer by layer: a node is computed again when its own row or input
 * changed, or the input of one whom it hears; and whose output came out the same is not
 * carried further.  Since an output row depends on its own data alone, whatever the
 * batch (kernels/ops.h), the result equals computing all nodes anew, bit for bit, which tests/test_refresh.c
 * checks event by event.
 *
 * Layers that normalise by both ends' degrees (GCN, LightGCN) say so: a node's new degree
 * reaches all who hear it, at every layer.  Layers that sample must draw from the node's number, its row
 * and a seed alone (mx_sample_neighbours does), and then are like any other.
 *
 * One thread; embeddings lie in host memory. */
#ifndef MX_REFRESH_H
#define MX_REFRESH_H

#include "models/gnn.h"
#include "models/live_graph.h"
#include "runtime/device.h"

#define MX_REFRESH_LAYERS 8

typedef struct mx_refresh_net {
    int32_t layers, width[MX_REFRESH_LAYERS + 1];     /* width[0]: of the input            */
    bool    degrees;                                  /* coefficients take both ends' degrees */
    bool    mean;                                     /* what counts is the mean of the input and all layers (LightGCN); equal widths */
    /* out[n, width[layer+1]] = the layer's outputs of nodes[n], rising; in[all nodes, width[layer]]. */
    mx_status (*run)(void *ctx, mx_stream *s, int32_t layer, const mx_graph *g, const int32_t *nodes, int32_t n, const float *in, float *out, mx_error *err);
    void    *ctx;
    int32_t  batch;                                   /* nodes of one call at most         */
} mx_refresh_net;

/* The layers of a network of gnn.h, which must outlive the refresh; its runs need no stream. */
mx_refresh_net mx_refresh_net_of(mx_gnn *m, int32_t batch);

typedef struct mx_refresh mx_refresh;

/* input[nodes, width[0]] is copied.  Nothing is computed yet: all nodes are due.
 * Errors: MX_ERR_ARG (layers, widths, batch), MX_ERR_NO_MEMORY. */
mx_status mx_refresh_open(mx_refresh **out, mx_live_graph *graph, const mx_refresh_net *net, const float *input, mx_error *err);
void      mx_refresh_close(mx_refresh *r);

/* Changes of graph and inputs go through these, so that the next run knows.  Errors as in live_graph.h. */
mx_status mx_refresh_add_node(mx_refresh *r, uint8_t type, const float *input, int32_t *node, mx_error *err);
mx_status mx_refresh_add_edge(mx_refresh *r, int32_t relation, int32_t to, int32_t from, float weight, mx_error *err);
mx_status mx_refresh_set_input(mx_refresh *r, int32_t node, const float *input, mx_error *err);
/* The node's edges and input go; what it has left is what a node of zeros without edges gets. */
mx_status mx_refresh_erase(mx_refresh *r, int32_t node, mx_error *err);

typedef struct mx_refresh_stats {
    int64_t computed[MX_REFRESH_LAYERS], changed[MX_REFRESH_LAYERS];      /* rows of each layer */
} mx_refresh_stats;

/* Carries out all that is due; stats may be NULL.  On an error it stays due. */
mx_status mx_refresh_run(mx_refresh *r, mx_stream *s, mx_refresh_stats *stats, mx_error *err);
/* Makes every node due again. */
void      mx_refresh_all(mx_refresh *r);
int64_t   mx_refresh_due(const mx_refresh *r);

/* What counts of a node as of the last run, its last layer's row or the mean; valid until the next change. */
const float *mx_refresh_embedding(const mx_refresh *r, int32_t node);
/* All nodes' rows after so many layers, 0: the input.  Who explains an embedding may change rows and puts them back. */
float       *mx_refresh_rows(mx_refresh *r, int32_t layer);
/* Nodes whose embedding changed since the last run that went well, rising. */
const int32_t *mx_refresh_changed(const mx_refresh *r, int32_t *n);

/* ---- for run(): rows side by side ---------------------------------------------------------- */

typedef struct mx_rows_of { int32_t *begin, *ids; float *weight; int64_t ids_room, begin_room, edges; } mx_rows_of;      /* zero it */
void      mx_rows_of_free(mx_rows_of *b);
/* begin[n+1], ids, weight (1 where the relation has none) of nodes[n]'s rows.  Errors: MX_ERR_NO_MEMORY, MX_ERR_ARG (2^31 edges). */
mx_status mx_rows_gather(const mx_graph *g, int32_t relation, const int32_t *nodes, int32_t n, mx_rows_of *out, mx_error *err);

#endif
