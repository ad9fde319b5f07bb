/* explain.h - one thread that finds the words behind what encoders said.
 *
 * Attribution (models/attribution.h) takes some hundred times a text's forward pass, so
 * it is kept away from the lanes and from everybody's threads.  The weights of a folder
 * are read, in f32, when it is asked for, and stay until others need their memory: who was asked longest ago goes first. */
#ifndef MX_EXPLAIN_H
#define MX_EXPLAIN_H

#include "models/attribution.h"
#include "server/messages.h"
#include "server/registry.h"

typedef struct mx_explainer mx_explainer;

typedef struct mx_explain_job {
    struct mx_explain_job *next;      /* the queue's                                      */
    const char *folder, *text;        /* stay until done                                  */
    mx_attribution_ask ask;
    mx_attribution out;               /* the caller frees it                              */
    mx_status   st;
    mx_error    err;
    void      (*done)(struct mx_explain_job *job);      /* once, from the thread          */
    void       *ctx;
} mx_explain_job;

/* Errors: MX_ERR_NO_MEMORY. */
mx_status mx_explainer_open(mx_explainer **out, mx_device *dev, mx_error *err);
void      mx_explainer_close(mx_explainer *x);        /* what waits is done first */
/* Before jobs: weights and work of all folders together take at most so many bytes, which are also asked for at `r`.  A
 * job whose folder does not fit alone fails with MX_ERR_NO_MEMORY, in bytes. */
void      mx_explainer_limit(mx_explainer *x, mx_registry *r, size_t bytes);
size_t    mx_explainer_held(const mx_explainer *x, size_t *most);      /* bytes now; most 0: not limited */
void      mx_explainer_submit(mx_explainer *x, mx_explain_job *job);

/* Tokens as words of the job's text, as they stand in it; where the tokenizer cannot tell those that do not begin with a space are
 * joined to what they go on from.  [CLS] and [SEP] are left out.  Returns how many, -1: the arena is full. */
typedef struct mx_word { char *text; double weight; size_t begin, end; } mx_word;      /* begin, end: bytes of the text; 0, 0: not known */
int32_t   mx_attribution_words(const mx_explain_job *job, mx_arena *a, mx_word **out);

#endif
