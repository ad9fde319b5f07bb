/* reference.h - the truth: every op of kernels/ops.h in double, naive loops.
 *
 * Matrices are dense, row-major, double; the caller has already rounded what a
 * backend rounds (bf16 inputs, cache elements).  Slow on purpose. */
#ifndef MX_REFERENCE_H
#define MX_REFERENCE_H

#include "kernels/ops.h"

void ref_embed(double *y, const double *table, const int32_t *ids, int64_t n, int64_t c, bool add);
void ref_linear(double *y, const double *x, const double *w, const double *b, int64_t n, int64_t c, int64_t o,
                mx_activation act, bool add);
void ref_norm(double *y, const double *x, const double *gain, const double *bias, int64_t n, int64_t c, double eps);
void ref_rms_norm(double *y, const double *x, const double *gain, int64_t n, int64_t c, double eps);
void ref_activate(double *y, const double *x, int64_t n, mx_activation act);
void ref_gated(double *y, const double *gu, int64_t n, int64_t f, mx_activation act);
void ref_rope(double *x, const int32_t *at, const float *freq, int64_t n, int heads, int64_t d, double magnitude,
              bool interleaved);

/* Of each span of rows; ids NULL: the rows themselves; w NULL: 1 */
void ref_aggregate(double *y, const double *x, const int32_t *ids, const int32_t *begin, const double *w, int64_t spans, int64_t c,
                   mx_reduce how);

/* One row: q[heads,d] over keys and values [length][groups][d] of its sequence. */
void ref_attention(double *y, const double *q, const double *k, const double *v, int64_t length, int heads, int groups,
                   int64_t d, double scale, int64_t window);

void ref_logits_process(double *x, int64_t n, int64_t v, const mx_sample_row *rows, const mx_logit_lists *lists, const mx_seats *seats);
void ref_keep(const mx_seats *seats, int32_t seat, int32_t id);
int32_t ref_sample(const double *x, int64_t v, const mx_sample_row *row);
/* All log-probabilities of one row, and the order of its tokens. */
void ref_logprobs(double *lp, int32_t *order, const double *x, int64_t v);

/* ---- learning: reference_learn.c; gradients are added to what is there, but for
 * activations, gates and cross-entropy, which write ------------------------------- */

void ref_product_back(double *dx, double *dw, double *db, const double *dy, const double *x, const double *w, int64_t n,
                      int64_t c, int64_t o);
void ref_embed_back(double *dtable, const double *dy, const int32_t *ids, int64_t n, int64_t c);
void ref_norm_back(double *dx, double *dgain, double *dbias, const double *dy, const double *x, const double *gain,
                   int64_t n, int64_t c, double eps);
void ref_rms_norm_back(double *dx, double *dgain, const double *dy, const double *x, const double *gain, int64_t n,
                       int64_t c, double eps);
void ref_activate_back(double *dx, const double *dy, const double *x, int64_t n, mx_activation act);
void ref_gated_back(double *dgu, const double *dy, const double *gu, int64_t n, int64_t f, mx_activation act);
void ref_rope_back(double *dx, const int32_t *at, const float *freq, int64_t n, int heads, int64_t d, double magnitude,
                   bool interleaved);
void ref_philox(uint32_t out[4], const uint32_t counter[4], const uint32_t key[2]);
void ref_dropout(double *y, const double *x, int64_t n, int64_t c, double rate, uint64_t seed);
void ref_attention_packed(double *y, double *lse, const double *q, const double *k, const double *v, const int32_t *begin,
                          int64_t spans, int64_t d, const mx_attention_shape *a);
void ref_attention_packed_back(double *dq, double *dk, double *dv, const double *dy, const double *q, const double *k,
                               const double *v, const int32_t *begin, int64_t spans, int64_t d, const mx_attention_shape *a);
void ref_cross_entropy(double *loss, double *dlogits, const double *logits, const int32_t *target, int64_t n, int64_t v,
                       double scale);
/* ---- Q-learning: reference_value.c; a mask of NULL allows all; step[n][3] ----------- */

int32_t ref_argmax(const double *q, const int8_t *mask, int64_t actions);
void ref_dueling(double *q, const double *va, int64_t n, int64_t actions, int64_t atoms);
void ref_perceptron(double *y, const double *x, const double *const *w, const double *const *b, const int64_t *width, int layers, int64_t n,
                    mx_activation act);      /* layer k: width[k] inputs, width[k+1] outputs */
/* s moves on; true: the episode terminated */
bool ref_world_step(mx_world w, double s[4], int action);
void ref_dueling_back(double *dva, const double *dq, int64_t n, int64_t actions, int64_t atoms);
/* dq is written times scale, or NULL */
void ref_td_loss(double *loss, double *error, double *dq, const double *q, const int32_t *action, const double *next, const double *chooser,
                 const int8_t *mask, const double *step, int64_t n, int64_t actions, double huber, double scale);
void ref_atoms_value(double *q, const double *logits, int64_t n, int64_t actions, int64_t atoms, double low, double high);
void ref_atoms_loss(double *loss, double *error, double *dlogits, const double *logits, const int32_t *action, const double *next,
                    const double *chooser, const int8_t *mask, const double *step, int64_t n, int64_t actions, int64_t atoms, double low,
                    double high, double scale);
void ref_noisy(double *w, const double *mean, const double *spread, const double *out, const double *in, int64_t o, int64_t c);
/* gradients are added to */
void ref_noisy_back(double *dmean, double *dspread, const double *dw, const double *out, const double *in, int64_t o, int64_t c);

void ref_adamw(double *p, double *m, double *v, const double *g, int64_t n, const mx_adamw_step *o);

/* ---- graphs: reference_graph.c; gradients are added to what is there ------------- */

void ref_aggregate_max_back(double *dx, const double *dy, const double *x, const int32_t *ids, const int32_t *begin, int64_t spans,
                            int64_t c);
/* keep[E,H]: 0 or 1/(1-rate) */
void ref_graph_attention(double *y, double *lse, const double *z, const double *src, const double *dst, const int32_t *ids,
                         const int32_t *begin, const double *keep, int64_t spans, int64_t d, const mx_graph_heads *a);
void ref_graph_attention_back(double *dz, double *dsrc, double *ddst, const double *dy, const double *z, const double *src,
                              const double *dst, const int32_t *ids, const int32_t *begin, const double *keep, int64_t spans,
                              int64_t d, const mx_graph_heads *a);
void ref_sample_neighbours(int32_t *edge, int64_t want, int32_t node, int32_t from, int32_t to, const mx_sample_key *key);
void ref_normalize(double *y, const double *x, int64_t n, int64_t c, double eps);
void ref_normalize_back(double *dx, const double *dy, const double *x, int64_t n, int64_t c, double eps);
/* b has n rows, or one for all */
void ref_dot(double *y, const double *a, const double *b, int64_t n, int64_t heads, int64_t d, bool shared);
void ref_dot_back(double *da, double *db, const double *dy, const double *a, const double *b, int64_t n, int64_t heads, int64_t d,
                  bool shared);
void ref_logistic(double *loss, double *dx, const double *x, const double *target, int64_t n, int64_t c, double scale);

#endif
