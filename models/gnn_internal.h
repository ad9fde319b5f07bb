/* gnn_internal.h - the inside of a graph network; gnn*.c only. */
#ifndef MX_GNN_INTERNAL_H
#define MX_GNN_INTERNAL_H

#include "models/gnn.h"

/* Rows that hear (the first `dst` of src) and who is heard, by local numbers. */
typedef struct gnn_edges {
    int64_t  n, room;
    int32_t *begin, *ids;         /* [dst+1] [n]                                   */
    float   *weight;              /* [n]                                           */
    int32_t *t_begin, *t_span, *t_edge;      /* turned round: [src+1] [n] [n]      */
    float   *t_weight;            /* [n]                                           */
} gnn_edges;

typedef struct gnn_block {
    int32_t    dst, src;
    int32_t   *nodes;             /* [src] numbers in the graph; NULL: all, 0 ..   */
    int32_t    nodes_room, dst_room, src_room, sets;
    gnn_edges *set;               /* one, or one a relation                        */
} gnn_block;

typedef struct gnn_drawing {
    mx_stream    *s;
    const mx_tensor *begin;       /* [relations] on the stream's device            */
    int32_t       fanout;
    mx_sample_key key;            /* layer: what is added for the relation comes on top */
} gnn_drawing;

/* Numbers of nodes become local ones: -1, or where it stands. */
typedef struct gnn_map {
    int32_t *at, size;
} gnn_map;

/* The edges of nodes[n] (NULL: all) as a network of this kind weighs them; turned:
 * the lists for the way back too; draw NULL: all edges.  Memory grows and is kept. */
mx_status gnn_block_build(gnn_block *b, gnn_map *map, const mx_graph *g, const mx_gnn_config *c, const int32_t *nodes, int32_t n, bool turned,
                          const gnn_drawing *draw, mx_error *err);
void      gnn_block_close(gnn_block *b);
void      gnn_map_close(gnn_map *m);

/* Indices of weights in the list; -1: none. */
typedef struct gnn_weights {
    int self, near, bias, src, dst;          /* near: the first of `relations`     */
} gnn_weights;

struct mx_gnn {
    mx_gnn_config  config;
    mx_params      params;
    gnn_weights    layer[MX_GNN_LAYERS];
    int            table;                    /* index, or -1                       */
    gnn_map        map;
    gnn_block      block[MX_GNN_LAYERS];
    gnn_block      asked;                    /* of inference, and its memory: kept, for new memory costs more than computing in it */
    mx_stream      stream;
    gnn_edges      sparse;                   /* features as rows of what is not zero; n 0: they are not sparse */
    /* learning */
    mx_gnn_data     data;
    mx_gnn_learning opt;
    mx_buffer       begin_memory[MX_GRAPH_RELATIONS];
    mx_tensor       begin[MX_GRAPH_RELATIONS];
    int32_t        *pool, *pool_begin;       /* negatives: nodes by type           */
    int32_t        *list, list_room;         /* a batch's nodes and pairs          */
    float          *floats;
    int64_t         floats_room;
};

/* One layer on a stream: what the way back needs is kept in scratch. */
typedef struct gnn_edge_tensors {
    mx_tensor begin, ids, weight, t_weight;
    mx_turned t;
} gnn_edge_tensors;

typedef struct gnn_step {
    mx_tensor x;                  /* [src,C], dropped already; no tensor: m->sparse has it */
    mx_tensor values;             /* [n,1] of m->sparse, dropped                   */
    float     dropout;            /* of those                                      */
    uint64_t  dropout_seed;
    mx_tensor near[MX_GRAPH_RELATIONS];      /* sage, rgcn: what was gathered      */
    mx_tensor z, e_src, e_dst, lse, heads;   /* gcn, gat                           */
    mx_tensor taken;              /* gat: z as attention takes it, dropped         */
    mx_tensor zeros;              /* [dst,1] i32                                   */
    mx_tensor pre, y;             /* before and after activation                   */
    mx_tensor raw;                /* unit: before length one                       */
    gnn_edge_tensors edges[MX_GRAPH_RELATIONS];
    uint64_t  seed;               /* of attention's dropout                        */
    float     edge_dropout, value_dropout;
} gnn_step;

void   gnn_upload(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, bool turned, gnn_step *t);
void   gnn_forward(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t);
/* dy[dst,O] is used up; returns dx[src,C], or no tensor unless `input`. */
mx_tensor gnn_backward(mx_gnn *m, mx_stream *s, int32_t layer, const gnn_block *b, gnn_step *t, mx_tensor dy, bool input);
/* More than such a layer takes; edges: of all sets. */
size_t gnn_layer_scratch(const mx_gnn *m, int32_t layer, int64_t dst, int64_t src, int64_t edges, bool learn);

/* gnn_sparse.c: m->sparse from m->data and m->opt, when they suit; then t->z = X w^T and dw += dz^T X. */
mx_status gnn_sparse_open(mx_gnn *m, mx_error *err);
void      gnn_sparse_close(mx_gnn *m);
void      gnn_sparse_forward(const mx_gnn *m, mx_stream *s, gnn_step *t, mx_tensor w);
void      gnn_sparse_backward(const mx_gnn *m, mx_stream *s, const gnn_step *t, mx_tensor dz, mx_tensor dw);
int64_t   gnn_sparse_scratch(const mx_gnn *m, int64_t outputs);          /* words */
mx_status gnn_new(mx_gnn **out, mx_device *dev, const mx_gnn_config *c, bool learn, mx_error *err);

#endif
