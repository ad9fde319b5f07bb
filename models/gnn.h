/* gnn.h - graph networks that learn and infer.
 *
 * A layer turns the rows of a node and of whom it hears from into its next row:
 *
 *   sage      W_self h_v + b + W_near mean or max of h_u      (Hamilton et al. 2017)
 *   gcn       sum of w_uv / sqrt(d_u d_v) W h_u + b, v itself among u, d the sum of a
 *             row's weights                                   (Kipf, Welling 2017)
 *   gat       attention over u and v itself, heads side by side, in the last layer
 *             their mean                                      (Velickovic et al. 2018)
 *   rgcn      W_0 h_v + b + sum over relations of W_r mean of h_u   (Schlichtkrull et al. 2018)
 *   lightgcn  sum of w_uv / sqrt(d_u d_v) h_u; what counts is the mean of all layers
 *                                                             (He et al. 2020)
 *
 * Means are weighted by the edges; all but rgcn see relations as one, in their
 * order.  A node's input is its feature row, then its row of a table that learns;
 * a node past the table's end has zeros there, so new nodes get a vector too.
 *
 * With max_degree a node hears at most so many sources of a relation, those whose hash with
 * the node is least (a bottom-k sample, Cohen and Kaplan 2007): the same ones in learning over
 * the whole graph and in inference, and one more edge at a node of degree d changes them with
 * chance max_degree/d alone, so what is popular stays cheap to keep right.
 *
 * A row of layer l+1 depends on the rows of layer l that it hears from and on
 * nothing else, bit for bit: computing some nodes again from the rows that are
 * kept gives what computing all of them would.
 *
 * Names and shapes of weights are those of PyTorch Geometric's layers under
 * "convs.L." (attention vectors [1, heads * D]; rgcn's W_r as weight.R [O,C]). */
#ifndef MX_GNN_H
#define MX_GNN_H

#include "models/graph.h"
#include "models/trainer.h"

#define MX_GNN_LAYERS 8
#define MX_GNN_DEGREE 4096          /* max_degree at most */

typedef enum mx_gnn_kind { MX_GNN_SAGE, MX_GNN_GCN, MX_GNN_GAT, MX_GNN_RGCN, MX_GNN_LIGHTGCN, MX_GNN_KINDS } mx_gnn_kind;
typedef enum mx_gnn_task { MX_GNN_CLASSES, MX_GNN_LABELS, MX_GNN_LINKS, MX_GNN_RANKING, MX_GNN_TASKS } mx_gnn_task;
const char *mx_gnn_kind_name(mx_gnn_kind k);        /* "sage", "gcn", "gat", "rgcn", "lightgcn" */
const char *mx_gnn_task_name(mx_gnn_task t);        /* "classes" (one each), "labels" (any of them), "links", "ranking" (BPR) */

typedef struct mx_gnn_config {
    mx_gnn_kind kind;
    mx_gnn_task task;
    int32_t layers;
    int32_t features;             /* columns of the given rows; 0: none          */
    int32_t id_nodes, id_cols;    /* the table that learns; 0 and 0: none        */
    int32_t hidden;               /* columns of a layer (gat: of all heads)      */
    int32_t outputs;              /* of the last layer: classes, or columns      */
    int32_t heads, out_heads;     /* gat                                         */
    int32_t relations;            /* rgcn                                        */
    int32_t max_degree;           /* sources that a node hears of a relation; 0: all of them (fanout draws from all, too) */
    bool    max;                  /* sage: the maximum instead of the mean       */
    bool    unit;                 /* sage: rows of every layer have length one   */
    mx_activation act;            /* between layers                              */
    uint64_t texts, store;        /* which encoder's vectors are among the features, whose nodes the table's rows are; 0: not told */
} mx_gnn_config;

/* Errors: MX_ERR_ARG names the field, its value and what is allowed. */
mx_status mx_gnn_config_check(const mx_gnn_config *c, mx_error *err);
int32_t   mx_gnn_width(const mx_gnn_config *c, int32_t layer);       /* columns after `layer` layers; 0: the input's */

typedef struct mx_gnn mx_gnn;

/* Fresh weights (Glorot and Bengio 2010; the table Normal(0, 0.1)), drawn from the seed. */
mx_status mx_gnn_create(mx_gnn **out, mx_device *dev, const mx_gnn_config *c, uint64_t seed, mx_error *err);
/* A folder with config.json and model.safetensors.  Errors: MX_ERR_IO, MX_ERR_FORMAT. */
mx_status mx_gnn_open(mx_gnn **out, mx_device *dev, const char *folder, mx_error *err);
bool      mx_gnn_is(const char *folder);      /* its config.json says so; what else is wrong with it is said by who opens it */
mx_status mx_gnn_read_config(mx_gnn_config *c, const char *folder, mx_error *err);
mx_status mx_gnn_save(const mx_gnn *m, const char *folder, mx_error *err);
void      mx_gnn_close(mx_gnn *m);
const mx_gnn_config *mx_gnn_config_of(const mx_gnn *m);
mx_params *mx_gnn_params(mx_gnn *m);
/* Tells its weights, without the table's, from other networks'; on a CPU device. */
uint64_t  mx_gnn_print(const mx_gnn *m);
/* What the table learned of a node becomes zeros.  False: it has none, or is zeros already. */
bool      mx_gnn_forget(mx_gnn *m, int32_t node);

/* ---- inference: host memory in and out ------------------------------------------------ */

/* out[n, width(0)] of nodes (NULL: 0 .. n-1), whose features are features[n, c->features]. */
mx_status mx_gnn_input(mx_gnn *m, const float *features, const int32_t *nodes, int32_t n, float *out, mx_error *err);
/* out[n, width(layer+1)] of nodes (NULL: all of g, n of them) from before[g->nodes,
 * width(layer)], the rows after `layer` layers.  One call at a time for a network.
 * Errors: MX_ERR_ARG (a node out of range, relations), MX_ERR_NO_MEMORY. */
mx_status mx_gnn_layer(mx_gnn *m, const mx_graph *g, int32_t layer, const float *before, const int32_t *nodes, int32_t n, float *out,
                       mx_error *err);
/* All layers, all nodes: out[g->nodes, outputs].  progress (may be NULL): false stops with MX_ERR_CANCELLED. */
mx_status mx_gnn_infer(mx_gnn *m, const mx_graph *g, const float *features, float *out, bool (*progress)(void *ctx, int32_t layer),
                       void *ctx, mx_error *err);

/* ---- learning ------------------------------------------------------------------------------ */

/* What to learn from; all of it stays the caller's and outlives the network's run. */
typedef struct mx_gnn_data {
    const mx_graph *graph;
    const float    *features;     /* [nodes, c->features], or NULL                        */
    int64_t         targets;      /* of learning and of evaluation: the learner's ids      */
    const int32_t  *node;         /* [targets], or [targets][2]: from whom, to whom        */
    const int32_t  *label;        /* classes: [targets]                                    */
    const float    *labels;       /* labels: [targets, outputs], < 0: not known            */
    const mx_graph *known;        /* links, ranking: pairs that are no negatives; row `from`, relation 0; NULL: graph */
} mx_gnn_data;

typedef struct mx_gnn_learning {
    float    dropout;             /* of every layer's input                                */
    float    edge_dropout;        /* gat: of attention                                     */
    float    value_dropout;       /* gat: of the projected rows that attention adds up, scores come before (as the authors' program does) */
    float    l2, l2_first;        /* a gradient of l2 * w for weights of all layers, of the first alone */
    float    l2_rows;             /* ranking: l2_rows * the table's rows of a batch        */
    int32_t  fanout[MX_GNN_LAYERS];  /* sources drawn for a node and relation, the layer next to the input first; 0: all */
    int32_t  negatives;           /* links: drawn for each pair                            */
    uint64_t seed;                /* of what is drawn                                      */
} mx_gnn_learning;

/* A learner over indices of targets (models/batches.h, mx_batches_open_range).  With
 * no fanout every pass is over the whole graph.  extra: right classes; right labels;
 * pairs that stand above their negative.  Errors: MX_ERR_ARG names what does not fit. */
mx_status mx_gnn_learner(mx_gnn *m, const mx_gnn_data *data, const mx_gnn_learning *opt, mx_learner *out, mx_error *err);

#endif
