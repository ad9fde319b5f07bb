/* train_run.h - a training run from its settings.
 *
 * `merx train` and the server's Training jobs open the same parts in the same way:
 * tokenizer, data, network, batches, trainer.  The caller fills the first group of
 * fields; all it gives stays its own. */
#ifndef MX_TRAIN_RUN_H
#define MX_TRAIN_RUN_H

#include "models/bert.h"
#include "models/gnn_file.h"
#include "models/lm.h"
#include "models/profile_graph.h"
#include "runtime/config.h"

typedef struct mx_train_run {
    mx_config *config;            /* the settings of merx train                             */
    bool       encoder;           /* else a language model                                  */
    bool       graph;             /* a graph network, from server/train_graph.h             */
    const char *folder;           /* of the run; for a graph of --profiles, which is kept there */
    const mx_user_graph *events;  /* the store that a server has open; NULL: the folder --profiles */
    const mx_text_store *texts;   /* and its texts' vectors                                 */
    mx_device *dev;
    mx_comm   *comm;              /* NULL: alone                                            */
    bool     (*reading)(void *ctx, uint64_t done, uint64_t total);     /* bytes of data; false stops; may be NULL */
    void     (*note)(void *ctx, const char *text);                     /* what a person should know; may be NULL  */
    void      *ctx;

    mx_tokenizer *tokenizer;
    bool          classify;
    mx_encoder_config encoder_config;
    int32_t       classes;
    mx_dataset   *data, *eval;
    mx_lm        *lm;
    mx_bert      *bert;
    mx_batches    batches, eval_batches;
    mx_trainer   *trainer;
    mx_gnn_file     graph_file;
    mx_gnn         *gnn;
    mx_gnn_learning graph_learning;
    uint64_t        store_print, texts_print;
    mx_learner      graph_learner;
} mx_train_run;

/* All but the trainer.  learning: --data is read too, else only --eval-data.
 * Errors: MX_ERR_ARG names the setting; those of the parts. */
mx_status  mx_train_run_open(mx_train_run *t, bool learning, mx_error *err);
/* The trainer: makes or goes on with the run in `folder`. */
mx_status  mx_train_run_start(mx_train_run *t, const char *folder, mx_error *err);
void       mx_train_run_close(mx_train_run *t);          /* a zeroed one is fine */
mx_learner mx_train_run_learner(mx_train_run *t);

/* The setting "seed"; 1 when not given. */
mx_status  mx_train_run_seed(const mx_config *c, uint64_t *out, mx_error *err);

/* Parts of open, for merx tokenize. */
mx_status  mx_train_run_tokenizer(mx_train_run *t, mx_error *err);
mx_status  mx_train_run_data(mx_train_run *t, const char *setting, mx_dataset **out, mx_error *err);

#endif
