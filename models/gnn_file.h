/* gnn_file.h - a graph and what is to be learned from it, in one safetensors file.
 *
 *     edges     I32 [E,2]  from, to; `to` hears from `from`
 *     relation  I32 [E]    of each edge, from 0; absent: all 0
 *     weight    F32 [E]    absent: 1 each
 *     features  F32 [N,F]
 *     type      I32 [N]    0 to 255; absent: all 0
 *     label     I32 [N]    a class each, -1: not known          or
 *     labels    F32 [N,C]  0 or 1 each, under 0: not known      or
 *     pairs     I32 [P,2]  links, or what users chose
 *     train, valid, test  I32  which nodes (pairs: which rows of them) are learned,
 *                         watched and judged by
 *     both_ways I32 [1]    1: every edge also the other way
 *
 * numpy and safetensors write it; bench/graph_data.py shows how.  `nodes` I32 [1]
 * says how many nodes there are where neither features, type nor label do. */
#ifndef MX_GNN_FILE_H
#define MX_GNN_FILE_H

#include "models/gnn.h"

typedef enum mx_gnn_split { MX_GNN_TRAIN, MX_GNN_VALID, MX_GNN_TEST, MX_GNN_SPLITS } mx_gnn_split;

typedef struct mx_gnn_file {
    mx_checkpoint *file;
    mx_graph_store graph;
    mx_graph_store known;         /* pairs of train, row `from`: what is no negative and no answer */
    mx_gnn_data    data;          /* targets: those of train, then valid, then test   */
    int64_t        first[MX_GNN_SPLITS + 1];
    mx_gnn_task    task;          /* classes, labels or links (which may be ranking)  */
    int32_t        features, classes;
    uint64_t       hash;          /* of the file's bytes                              */
    int32_t       *node, *label;
    float         *labels;
} mx_gnn_file;

/* Errors: MX_ERR_IO, MX_ERR_FORMAT (tensor, what it must be), those of mx_graph_build(). */
mx_status mx_gnn_file_open(mx_gnn_file *f, const char *path, mx_error *err);
void      mx_gnn_file_close(mx_gnn_file *f);

/* recall@k and NDCG@k of the pairs of `split`: each user's k nodes of the other type
 * with the largest dot product of z[nodes, cols], those it is known to have chosen left
 * out.  Means over the users with a pair there.  (He et al. 2020, section 4.1.) */
mx_status mx_gnn_rank(const mx_gnn_file *f, mx_gnn_split split, const float *z, int32_t cols, int32_t k, double *recall, double *ndcg,
                      mx_error *err);

#endif
