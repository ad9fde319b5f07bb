/* text_store.h - what encoders said of events' texts, kept beside the store of events.
 *
 * A folder with a log (models/event_log.h) of one record a text: its event, whose it is, its
 * vector, its mood.  So a start reads numbers in place of running texts through an encoder,
 * and a graph network learns from them without one.  The first record says which encoder
 * spoke ("print": a hash of what it makes of a fixed text); another encoder's log is begun anew.
 *
 * Rows are lost when the machine stops before sync(): then the texts are encoded again.
 * THREADS: all but open and close from any. */
#ifndef MX_TEXT_STORE_H
#define MX_TEXT_STORE_H

#include "models/user_graph.h"

typedef struct mx_text_store mx_text_store;

typedef struct mx_text_row {
    uint64_t event;                   /* mx_text_event() of its id                           */
    int32_t  subject, object;         /* nodes; object -1: none                              */
    bool     has_vector, felt;
    float    positive;                /* felt: the probability that it is a good mood        */
} mx_text_row;

uint64_t  mx_text_event(const char *id);

/* Makes the folder if need be.  print 0: take what is there, dim too; else a log of another print or
 * dim is removed.  Rows of or about nodes that the graph has no more are overwritten.
 * Errors: those of event_log.h. */
mx_status mx_text_store_open(mx_text_store **out, const char *folder, uint64_t print, int32_t dim, const mx_user_graph *graph, mx_error *err);
void      mx_text_store_close(mx_text_store *t);
int32_t   mx_text_store_dim(const mx_text_store *t);          /* 0: no vectors */
uint64_t  mx_text_store_print(const mx_text_store *t);        /* 0: empty      */
int64_t   mx_text_store_rows(const mx_text_store *t);

/* The row of an event, the newest that was put.  vector[dim] may be NULL.  False: not there. */
bool      mx_text_store_get(const mx_text_store *t, uint64_t event, mx_text_row *row, float *vector);
/* vector[dim] when has_vector.  Errors: MX_ERR_IO, MX_ERR_NO_MEMORY, MX_ERR_STATE (opened with print 0). */
mx_status mx_text_store_put(mx_text_store *t, const mx_text_row *row, const float *vector, mx_error *err);
mx_status mx_text_store_sync(mx_text_store *t, mx_error *err);
/* Overwrites all rows of or about a node, durably; *rows grows by how many. */
mx_status mx_text_store_erase(mx_text_store *t, int32_t node, int64_t *rows, mx_error *err);

#endif
