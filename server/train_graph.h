/* train_graph.h - the parts of a training run that learns a graph network: its file, network and learner. */
#ifndef MX_TRAIN_GRAPH_H
#define MX_TRAIN_GRAPH_H

#include "server/train_run.h"

/* File, network (that of --model, or a fresh one) and batches.  Errors: MX_ERR_ARG names the setting. */
mx_status mx_train_graph_open(mx_train_run *t, bool learning, mx_error *err);
/* Settings that text needs otherwise: no decay, no clipping, no warm-up, all targets at once, unless they are given. */
void      mx_train_graph_options(const mx_train_run *t, mx_train_options *o);
/* A line of JSON for each split that is there: loss and the task's metric, of rankings recall@20 and NDCG@20. */
mx_status mx_train_graph_report(mx_train_run *t, FILE *out, mx_error *err);
void      mx_train_graph_close(mx_train_run *t);

#endif
