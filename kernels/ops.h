/* ops.h - every operation Merx can compute, declared once.
 *
 * N rows (tokens, nodes, states), C and O channels, V vocabulary, H heads,
 * G key/value heads, D channels of a head, F feed-forward channels; += marks
 * outputs that accumulate.  Each op is implemented once per backend under the
 * same file name, kernels/cpu/X.c and kernels/cuda/X.cu, and all must match the
 * double-precision loops in tests/reference.c.  The functions below check
 * shapes once for all backends, then call the device's table; they return
 * nothing because errors stick to the stream (runtime/device.h).
 *
 * THE INVARIANCE RULE.  An output row is the same bits whatever other rows are
 * in the batch, however many threads run, and wherever its KV pages lie: every
 * sum has an order that depends on the row's own data alone.
 *
 * Activations and norms are f32.  Weights are f32, bf16, int8 or fp8 (mx_weight);
 * embedding tables f32, f16 or bf16, KV caches those or fp8.
 *
 * TO ADD AN OP: its prototype and its name in MX_OPS here, its shape check in
 * ops.c, one function in each backend, one loop in tests/reference.c, its
 * shapes in tests/cases.c.  The build or the first test fails until all of
 * them exist. */
#ifndef MX_OPS_H
#define MX_OPS_H

#include "runtime/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- weights -------------------------------------------------------------- */

/* Where the rows of a matrix come from: read() writes rows first..first+n-1 as
 * f32, cols values each, to dst.  Called from several threads at once. */
typedef struct mx_row_source {
    void      (*read)(const void *ctx, int64_t first, int64_t n, float *dst);
    const void *ctx;
    int64_t     rows, cols;
} mx_row_source;

/* A matrix w[O,C] that linear() multiplies by, in the backend's own layout.
 * f32 and bf16 are exact or rounded copies.  int8 is symmetric for every 64 inputs
 * of an output channel, w = q * scale, scale = max|w|/127; activations are then
 * quantised per row on the fly, symmetric, all but the row's largest, which stays
 * exact; products are summed exactly over the 64, and the groups in order.
 * fp8 (E4M3) has one scale for an output channel, max|w|/448; activations are rounded
 * to bf16, products summed in f32, and the sum is scaled.  A GPU reads one byte of it
 * a weight; the CPU keeps the same numbers as bf16, for the same answers, not for memory. */
typedef struct mx_weight {
    mx_device *dev;
    int64_t    rows, cols;        /* O, C                           */
    mx_dtype   dtype;             /* MX_F32, MX_BF16, MX_I8, MX_F8  */
    size_t     bytes;             /* device memory it takes         */
    void      *impl;
} mx_weight;

/* Pack the stacked rows of parts[0..n) (equal cols): q, k, v in one product,
 * gate and up in one.  Errors: MX_ERR_ARG (shapes, dtype), MX_ERR_NO_MEMORY. */
mx_status mx_weight_open(mx_weight *w, mx_device *d, const mx_row_source *parts, int n, mx_dtype as, mx_error *err);
void      mx_weight_close(mx_weight *w);
/* Device memory that open() of rows x cols will take, or 0 where it would overflow. */
size_t    mx_weight_bytes(const mx_device *d, int64_t rows, int64_t cols, mx_dtype as);

typedef enum mx_activation {
    MX_ACT_NONE, MX_ACT_GELU_TANH, MX_ACT_GELU_ERF, MX_ACT_SILU, MX_ACT_RELU, MX_ACT_TANH,
    MX_ACT_ELU,                    /* x > 0 ? x : e^x - 1 (Clevert et al. 2015) */
    MX_ACT_COUNT
} mx_activation;

/* ---- row ops: an output row depends on its own input row ------------------ */

/* y[N,C] (+)= table[V,C] at ids[N,1] (i32); add: y += */
void mx_embed(mx_stream *s, mx_tensor y, mx_tensor table, mx_tensor ids, bool add);

/* y[N,O] = act(x[N,C] w[O,C]^T + b[1,O]); add: y += (act must then be NONE);
 * b.data may be NULL */
void mx_linear(mx_stream *s, mx_tensor y, mx_tensor x, const mx_weight *w, mx_tensor b, mx_activation act, bool add);

/* y[N,C] = layernorm(x[N,C]) * gain[1,C] + bias[1,C]; y may be x.
 * (Ba, Kiros, Hinton 2016.)  bias.data may be NULL */
void mx_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps);

/* y[N,C] = x[N,C] / sqrt(mean(x^2) + eps) * gain[1,C]; y may be x.
 * (Zhang, Sennrich 2019.) */
void mx_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps);

/* y = a + b, all [N,C]; y may be a or b */
void mx_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b);

/* sum = a + b, and y = the norm of sum: mx_norm()'s, or mx_rms_norm()'s when rms
 * (bias.data NULL).  All [N,C]; sum may be a or b.  The bits of the two calls, with
 * the sum read once less. */
void mx_add_norm(mx_stream *s, mx_tensor y, mx_tensor sum, mx_tensor a, mx_tensor b, mx_tensor gain, mx_tensor bias, float eps, bool rms);

/* y[N,C] = act(x[N,C]); y may be x */
void mx_activate(mx_stream *s, mx_tensor y, mx_tensor x, mx_activation act);

/* y[N,F] = act(gu[N,0:F]) * gu[N,F:2F]; SwiGLU when act is SILU (Shazeer 2020) */
void mx_gated(mx_stream *s, mx_tensor y, mx_tensor gu, mx_activation act);

/* Rotate x[N,heads*D] in place by its position: channel pair j of a head turns
 * by at * freq[j], both scaled by `magnitude` (YaRN; 1 otherwise).  positions
 * [N,1] i32, freq[1,D/2].  Pairs are (j, j+D/2), or (2j, 2j+1) if interleaved.
 * (Su et al. 2021.)  cos and sin are those of the f32 product at*freq, rounded
 * from double, as PyTorch computes them to within an ulp. */
void mx_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved);

/* ---- the paged KV cache ---------------------------------------------------- */

/* One layer's cache: `pages` pages of page_tokens tokens, k and v each
 * [pages][G][page_tokens][D], so a head's part of a page is contiguous. */
typedef struct mx_kv {
    void    *k, *v;
    mx_dtype dtype;               /* MX_F32, MX_F16, MX_BF16; MX_F8: as they are, no scale */
    int32_t  pages, page_tokens, kv_heads, head_dim;
} mx_kv;

/* Store k[N,G*D] and v[N,G*D]: row i goes to slot[i] = page * page_tokens +
 * offset (slots[N,1] i32).  Slots of one call are distinct. */
void mx_kv_write(mx_stream *s, const mx_kv *kv, mx_tensor k, mx_tensor v, mx_tensor slots);

/* Of qkv[N,(H+2G)*D] = q, k and v side by side: q is turned in place as mx_rope()
 * does, k likewise on its way to the cache, and v goes there as mx_kv_write() does;
 * qkv's own k and v stay as they are.  The bits of the two calls. */
void mx_rope_kv_write(mx_stream *s, mx_tensor qkv, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved,
                      const mx_kv *kv, mx_tensor slots);

/* Copy whole pages inside one layer's cache: from_to[n,2] i32 (copy-on-write). */
void mx_kv_copy(mx_stream *s, const mx_kv *kv, mx_tensor from_to);

/* y[N,H*D]: row i of q[N,H*D] belongs to sequence at[i,0] and stands at position
 * at[i,1]; it attends to positions 0..at[i,1] of that sequence, whose page list
 * is pages[at[i,0], 0..] (both i32).  scores = q.k * scale, softmax, times v.
 * Head h reads KV head h / (H/G).  window > 0: only the last `window` positions
 * (sliding window, own position included).
 * The running softmax is that of Dao et al. 2022, over tiles of page_tokens
 * counted from position 0, so a row's bits do not depend on chunking. */
void mx_attention_paged(mx_stream *s, mx_tensor y, mx_tensor q, const mx_kv *kv, mx_tensor pages, mx_tensor at,
                        int heads, float scale, int window);

/* ---- spans: packed texts, a node's neighbours --------------------------------- */

typedef enum mx_reduce { MX_REDUCE_SUM, MX_REDUCE_MEAN, MX_REDUCE_MAX, MX_REDUCE_COUNT } mx_reduce;

/* y[S,C] = the sum, mean or maximum over e in [begin[s], begin[s+1]) of
 * weight[e] * x[ids[e]], in the order of e; 0 for an empty span.  x[V,C],
 * begin[S+1,1] and ids[E,1] i32, weight[E,1] f32.  ids.data NULL: the rows of x
 * themselves (E is V); weight.data NULL: 1, as it must be for the maximum.
 * (GraphSAGE's aggregators, Hamilton et al. 2017; a packed text's mean.)
 * The gradient of a sum is the sum over the spans turned round, that of a
 * maximum mx_aggregate_max_back(). */
void mx_aggregate(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how);

/* ---- from logits to tokens -------------------------------------------------- */

/* What one row's choice depends on.  Order of the processors as in
 * transformers: logit bias, repetition penalty (Keskar et al. 2019), presence
 * and frequency penalty (which it lacks; here as OpenAI's API defines them),
 * bans (no-repeat-ngram, banned words, min tokens: the caller gives ids),
 * temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024),
 * typical-p (Meister et al. 2023).  Equals at the k-th place all stay; equals
 * that top-p divides stay by rising id. */
typedef struct mx_sample_row {
    float   temperature;          /* <= 0: greedy, and the rest from top_k on is ignored */
    int32_t top_k;                /* <= 0: off   */
    float   top_p;                /* >= 1: off   */
    float   min_p;                /* <= 0: off   */
    float   typical_p;            /* >= 1: off   */
    float   repetition_penalty;   /* 1: off      */
    float   presence_penalty, frequency_penalty;     /* 0: off */
    double  uniform;              /* in [0,1): which token of the distribution */
    int64_t forced;               /* > 0: the choice is forced - 1 whatever the logits say */
    int32_t seat;                 /* >= 0: whose seen ids count (mx_seats); without seats not looked at */
    int32_t keep;                 /* >= 0: the seat that moves on by the choice */
} mx_sample_row;

/* Rows and lists are host memory for the CPU and device memory for CUDA; this puts
 * rows where s reads them, in its scratch.  NULL after marking s. */
const mx_sample_row *mx_sample_rows(mx_stream *s, const mx_sample_row *rows, int64_t n);

/* A seat is what a device keeps of a running sequence: how it chooses, where it
 * stands, what it has seen.  It moves on by itself as tokens are chosen, so the host
 * says once what a sequence is, and no turn waits for what the one before chose. */
typedef struct mx_seat {
    mx_sample_row rule;           /* up to frequency_penalty                          */
    uint64_t seed;                /* id k of the output is drawn at its counter (k, candidate) */
    int32_t  prompt, length;      /* ids of the prompt; and with the output's         */
    int32_t  last;                /* the newest of them; -1: nothing was possible     */
    int32_t  n_seen;              /* of the list beside it; -1: none is kept          */
} mx_seat;

/* Beside seat i: seen_id[i][seen_most] and seen_count, the distinct ids of prompt and
 * output, and how often each stands in the OUTPUT (0: in the prompt alone); and row i of
 * pages[count,P] i32, its page list. */
typedef struct mx_seats {
    mx_seat  *seat;               /* [count] */
    int32_t  *seen_id, *seen_count;
    int32_t   count, seen_most;
    mx_tensor pages;
} mx_seats;

/* The rows of a turn from the seats of its sequences.  rows[N,4] i32 = seat, id, position,
 * page: id < 0 stands for the seat's newest, at its position (a last of -1 for id 0: its
 * row will be thrown away and must not stop the others).  page >= 0 is first put into the
 * page list, where position / page_tokens says; such a seat has one row.  Written:
 * ids[N,1], positions[N,1], slots[N,1] (mx_kv_write), at[N,2] = seat, position.
 * picks[M,4] i32 = seat (-1: greedy, of nobody), keep, candidate, forced: choices[M,W] i32
 * are the mx_sample_rows for them, with the uniform number of the seat's next id. */
void mx_seat_rows(mx_stream *s, mx_tensor ids, mx_tensor positions, mx_tensor slots, mx_tensor at, mx_tensor rows, int page_tokens,
                  const mx_seats *seats, mx_tensor choices, mx_tensor picks);

/* Ragged lists beside the rows; begin arrays have N+1 entries.  NULL begin: no such list. */
typedef struct mx_logit_lists {
    const int32_t *bias_begin, *bias_id;
    const float   *bias;
    const int32_t *ban_begin, *ban_id;                  /* logit becomes -inf */
} mx_logit_lists;

/* Apply biases, penalties and bans to logits[N,V] in place.  seats NULL: nothing was
 * seen.  The repetition penalty uses all that was, presence and frequency what has a
 * count over 0. */
void mx_logits_process(mx_stream *s, mx_tensor logits, const mx_sample_row *rows, const mx_logit_lists *lists, const mx_seats *seats);

/* id[N,1] i32 = one token of each row of (processed) logits[N,V].  Ties go to
 * the lower id.  The candidates stand in order of falling probability, ties by
 * id, and the first whose cumulative probability (double) exceeds uniform times
 * their sum is taken.  If every logit is -inf or NaN the id is -1.
 * seats (NULL: none): the choice becomes the newest id of the row's `keep`, and is
 * counted in its list; a row that is forced keeps nothing. */
void mx_sample(mx_stream *s, mx_tensor id, mx_tensor logits, const mx_sample_row *rows, const mx_seats *seats);

/* Log-probabilities of logits[N,V] (log-softmax, sum in double): of chosen[N,1]
 * into logprob[N,1] when given (id < 0: skipped, -inf), and of the k best into
 * top_id[N,k], top_logprob[N,k], falling, ties by id.  Any of them may be absent. */
void mx_logprobs(mx_stream *s, mx_tensor logprob, mx_tensor chosen, mx_tensor top_id, mx_tensor top_logprob, mx_tensor logits);

/* ---- learning ---------------------------------------------------------------- */

/* Weights that change lie in plain matrices: f32, or a bf16 copy (mx_cast) of
 * f32 masters.  Gradients are f32 and named by their d; those of weights
 * accumulate (+=), so micro-batches add up.  A gradient whose data is NULL is
 * not computed.  Every sum has one order, whatever the number of threads; a
 * weight's gradient depends on the rows of the batch. */

/* y[N,O] (+)= x[N,C] w[O,C]^T + b[1,O]; w is f32 or bf16, b.data may be NULL.
 * as: MX_F32, or MX_BF16: all factors (x, w, dy) are rounded, products are
 * summed in f32. */
void mx_product(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor w, mx_tensor b, mx_dtype as, bool add);
/* dx[N,C] (+)= dy[N,O] w (add: +=);  dw[O,C] += dy^T x;  db[1,O] += sum of dy's rows */
void mx_product_back(mx_stream *s, mx_tensor dx, mx_tensor dw, mx_tensor db, mx_tensor dy, mx_tensor x, mx_tensor w,
                     mx_dtype as, bool add);

/* y[N,C] = x[N,C], rounded to y's type: f32, bf16 or f16; x is f32 */
void mx_cast(mx_stream *s, mx_tensor y, mx_tensor x);

/* y[N,C] = x[N,C] * factor; y may be x */
void mx_scale(mx_stream *s, mx_tensor y, mx_tensor x, float factor);

/* dtable[V,C] += rows of dy[N,C] at ids[N,1] (i32), in the order of the rows */
void mx_embed_back(mx_stream *s, mx_tensor dtable, mx_tensor dy, mx_tensor ids);

/* dx[N,C] (+)=, dgain[1,C] +=, dbias[1,C] += of mx_norm; mean and variance are
 * computed again from x */
void mx_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dbias, mx_tensor dy, mx_tensor x, mx_tensor gain,
                  float eps, bool add);
void mx_rms_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dy, mx_tensor x, mx_tensor gain, float eps, bool add);

/* dx[N,C] = dy * act'(x); dx may be dy */
void mx_activate_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_activation act);
/* dgu[N,2F] of mx_gated from dy[N,F] */
void mx_gated_back(mx_stream *s, mx_tensor dgu, mx_tensor dy, mx_tensor gu, mx_activation act);

/* Of mx_rope: turn back by the same angles, in place. */
void mx_rope_back(mx_stream *s, mx_tensor dx, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved);

/* y[N,C] = x * keep / (1-rate), keep drawn by Philox4x32-10 (Salmon et al. 2011)
 * at counter (row, col, seed); the backward pass is the same call on dy.  y may
 * be x.  rate in [0,1). */
void mx_dropout(mx_stream *s, mx_tensor y, mx_tensor x, float rate, uint64_t seed);

/* Packed sequences: begin[spans+1,1] i32, first row of each and N.
 * y[N,H*D]: row i attends to the rows of its own span, up to itself if causal,
 * the last `window` of them if window > 0.  q[N,H*D], k and v [N,G*D]; head h
 * reads k and v of head h / (H/G).  lse[N,H] = log of the softmax's sum, for
 * the backward pass.  (Dao et al. 2022, algorithms 1 and 4.) */
typedef struct mx_attention_shape {
    int     heads, kv_heads;
    float   scale;
    bool    causal;
    int     window;               /* 0: none */
    mx_dtype as;                  /* MX_F32, or MX_BF16: a device with matrix units for it may round all
                                     factors (q, k, v, dy and the weights); sums are f32 */
    int     longest;              /* rows of the longest sequence; 0: not known */
    bool    learns;               /* a pass of training: a library may do it whose rows are not known to be the
                                     same in every batch, where the device was opened so (mx_device_options.cudnn) */
} mx_attention_shape;
void mx_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor q, mx_tensor k, mx_tensor v, mx_tensor begin,
                  mx_attention_shape a);
/* dq, dk, dv are written (not added to). */
void mx_attention_back(mx_stream *s, mx_tensor dq, mx_tensor dk, mx_tensor dv, mx_tensor dy, mx_tensor q, mx_tensor k,
                       mx_tensor v, mx_tensor y, mx_tensor lse, mx_tensor begin, mx_attention_shape a);

/* loss[N,1] = -log softmax(logits[N,V]) at target[N,1] (i32; < 0: row is not
 * counted, loss 0).  learn: logits become their gradient, (softmax - onehot) * scale. */
void mx_cross_entropy(mx_stream *s, mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn);

/* sum[1,2] i32 = the bits of a double: the sum of x[N,C] (f32), or of its squares. */
void mx_sum(mx_stream *s, mx_tensor sum, mx_tensor x, bool squares);

/* One step of AdamW (Loshchilov and Hutter 2019, algorithm 2) on [1,n] f32 each:
 * g*scale is the gradient, c1 = 1 - beta1^t and c2 = 1 - beta2^t;
 * p -= lr * (decay * p + (m/c1) / (sqrt(v/c2) + eps)) */
typedef struct mx_adamw_step {
    float lr, beta1, beta2, eps, decay, c1, c2, scale;
} mx_adamw_step;
void mx_adamw(mx_stream *s, mx_tensor p, mx_tensor g, mx_tensor m, mx_tensor v, mx_adamw_step o);

/* ---- choosing by value: Q-learning --------------------------------------------- */

/* N states or transitions, A actions, Z atoms of an action's distribution. */

/* id[N,1] i32 = the action with the highest q[N,A] of those that mask[N,A] (i8, 1
 * or 0; data NULL: all) allows.  Ties go to the lower id; a NaN is never chosen;
 * -1 where nothing can be. */
void mx_argmax(mx_stream *s, mx_tensor id, mx_tensor q, mx_tensor mask);

/* q[N,A*Z] = v + a - mean over actions of a, of va[N,(1+A)*Z] = v, then the
 * advantages (Wang et al. 2016, equation 9); Z is `atoms`.  Back: dva is written. */
void mx_dueling(mx_stream *s, mx_tensor q, mx_tensor va, int atoms);
void mx_dueling_back(mx_stream *s, mx_tensor dva, mx_tensor dq, int atoms);

/* A small network whole: y = h_n of x[N,C], where h_0 = x, h_k = act(h_(k-1) w_k^T + b_k)
 * and the last has no act; atoms > 0: then the dueling head of mx_dueling.  w_k[O,C] and
 * b_k[1,O] are f32; C and every O are at most MX_PERCEPTRON_WIDTH.  What lies between the
 * layers stays in the block (CPU: in the cache).  Every output is one chain that begins
 * with the bias: on a CPU the bits of mx_product, mx_activate and mx_dueling. */
enum { MX_PERCEPTRON_LAYERS = 9, MX_PERCEPTRON_WIDTH = 256 };
typedef struct mx_perceptron_shape {
    mx_tensor     w[MX_PERCEPTRON_LAYERS], b[MX_PERCEPTRON_LAYERS];
    int           layers;         /* the last one included */
    int           atoms;          /* 0: no dueling         */
    mx_activation act;
} mx_perceptron_shape;
void mx_perceptron(mx_stream *s, mx_tensor y, mx_tensor x, const mx_perceptron_shape *p);

/* The temporal difference of action[N,1] (i32):
 *     d = q[action] - (reward + discount * next[best]),  best = argmax(chooser) under mask
 * with step[N,3] = reward, discount, weight.  chooser is next (Mnih et al. 2015) or
 * the learning network's view of the next state (double Q-learning, van Hasselt et
 * al. 2016); a discount of 0 is the end of an episode, and next is not looked at.
 * loss[N,1] = weight * (d^2/2 up to |d| = huber, then huber * (|d| - huber/2));
 * error[N,1] = |d|; q[N,A] becomes its gradient times `scale`. */
void mx_td_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor q, mx_tensor action, mx_tensor next, mx_tensor chooser,
                mx_tensor mask, mx_tensor step, float huber, float scale);

/* Distributions of the return over Z atoms from low to high (C51, Bellemare et al.
 * 2017): q[N,A] = the mean of softmax(logits[N,A*Z]). */
void mx_atoms_value(mx_stream *s, mx_tensor q, mx_tensor logits, float low, float high);
/* As mx_td_loss: chooser[N,A] are values, next[N,A*Z] logits.  The target's
 * distribution, shifted by reward and discount, is projected on the atoms
 * (algorithm 1); error = its cross-entropy with softmax(logits of action), loss =
 * weight * error; logits[N,A*Z] become their gradient times `scale`. */
void mx_atoms_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor logits, mx_tensor action, mx_tensor next,
                   mx_tensor chooser, mx_tensor mask, mx_tensor step, float low, float high, float scale);

/* w[O,C] = mean + spread * out[1,O]^T in[1,C]: a weight with factorised noise
 * (Fortunato et al. 2018, equation 10).  Back: dmean += dw, dspread += dw * out^T in. */
void mx_noisy(mx_stream *s, mx_tensor w, mx_tensor mean, mx_tensor spread, mx_tensor out, mx_tensor in);
void mx_noisy_back(mx_stream *s, mx_tensor dmean, mx_tensor dspread, mx_tensor dw, mx_tensor out, mx_tensor in);

/* Proportional prioritized replay (Schaul et al. 2016).  tree[1,2L], L a power of
 * two: node i is the sum of nodes 2i and 2i+1, leaf L+j the priority of
 * transition j, tree[0] the largest priority there was.  Cleared, it is empty.
 * Set: transitions ids[N,1] (i32) get (error[N,1] + 1e-6)^exponent, or, when
 * error.data is NULL, tree[0] (1 in an empty tree).  An id that comes twice has
 * one error. */
void mx_priority_set(mx_stream *s, mx_tensor tree, mx_tensor ids, mx_tensor error, float exponent);
/* ids[N,1] = the transition under (row + uniform[N,1]) / N of the sum, one of each
 * N-th; weight[N,1] = (least of the drawn priorities / its own)^beta. */
void mx_priority_sample(mx_stream *s, mx_tensor ids, mx_tensor weight, mx_tensor tree, mx_tensor uniform, float beta);

/* One step of N worlds (kernels/worlds.h, models/env.h), and the start of the next episode
 * where one ended.  state[N,8] i32 is the bits of four doubles, at[N,3] i32 the world's
 * number, its episode and its step; both move on.  Of action[N,1] (i32): reward[N,1];
 * ended[N,1] (i32) = 0: it goes on, 1: terminated, 2: cut off after `limit` steps (0:
 * never); next[N,O] = what is seen after the step, seen[N,O] = what is seen now, the new
 * start where it ended.  Starts are drawn as mx_env_draw() does, from (seed, number,
 * episode): these are the numbers of models/env_*.c, on a GPU but for rounding. */
typedef enum mx_world { MX_WORLD_CARTPOLE, MX_WORLD_ACROBOT, MX_WORLD_COUNT } mx_world;
void mx_world_step(mx_stream *s, mx_world w, mx_tensor state, mx_tensor at, mx_tensor action, mx_tensor reward, mx_tensor ended,
                   mx_tensor next, mx_tensor seen, uint64_t seed, int limit);

/* ---- graphs ------------------------------------------------------------------ */

/* Spans of mx_aggregate turned round, for what goes back: row u of begin[V+1,1]
 * lists, by rising number, the spans[E,1] that hear from row u of the table and
 * by which edge[E,1] of the forward lists (all i32). */
typedef struct mx_turned {
    mx_tensor begin, span, edge;
} mx_turned;

/* dx[V,C] of the maximum y[S,C] = mx_aggregate(x, ids, begin): dy[S,C] goes to
 * the first edge that has it.  ids are given; dx is written. */
void mx_aggregate_max_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_tensor y, mx_tensor ids, mx_tensor begin,
                           mx_turned t);

/* GAT (Velickovic et al. 2018, eq. 1 to 6).  For each head h of span s,
 *     p[e] = softmax over the span's edges of leaky(src[ids[e],h] + dst[s,h]),
 *     y[s,h*D..] = sum of p[e] * z[ids[e],h*D..];
 * leaky(x) = x > 0 ? x : slope * x; an empty span gives 0.  z[V,H*D], src[V,H],
 * dst[S,H], y[S,H*D]; lse[S,H] is the log of the softmax's sum.  rate: p is
 * dropped as mx_dropout() drops a matrix [E,H] with this seed. */
typedef struct mx_graph_heads {
    int      heads;
    float    slope, rate;
    uint64_t seed;
} mx_graph_heads;
void mx_graph_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids,
                        mx_tensor begin, mx_graph_heads a);
/* dz, dsrc and ddst are written. */
void mx_graph_attention_back(mx_stream *s, mx_tensor dz, mx_tensor dsrc, mx_tensor ddst, mx_tensor dy, mx_tensor y, mx_tensor lse,
                             mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids, mx_tensor begin, mx_turned t, mx_graph_heads a);

/* edge[N,F] i32: which of the edges [begin[v], begin[v+1]) of v = nodes[N,1] are
 * drawn, by rising number, then -1: all of them where there are no more than F,
 * else F without repetition, each set alike (Floyd's algorithm; Bentley, Floyd
 * 1987).  The draws of a node are Philox4x32-10 at counter (node, draw / 4,
 * layer, epoch) under the seed, so a sample depends on neither the batch nor the
 * threads.  begin[V+1,1] i32. */
typedef struct mx_sample_key {
    uint64_t seed;
    uint32_t layer, epoch;
} mx_sample_key;
void mx_sample_neighbours(mx_stream *s, mx_tensor edge, mx_tensor nodes, mx_tensor begin, mx_sample_key key);

/* y[N,C] = x / max(|x|, eps), row by row; y may be x.  dx may be dy. */
void mx_unit_rows(mx_stream *s, mx_tensor y, mx_tensor x, float eps);
void mx_unit_rows_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, float eps);

/* y[N,H]: y[n,h] = the sum over the D channels of head h of a[N,H*D] * b, where b
 * is [N,H*D], or [1,H*D] for all rows. */
void mx_dot(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b);
/* da[N,C] (+)= dy b (add: +=).  db: [N,C] (+)= dy a; of a [1,C] always += the sum. */
void mx_dot_back(mx_stream *s, mx_tensor da, mx_tensor db, mx_tensor dy, mx_tensor a, mx_tensor b, bool add);

/* loss[N,1] = the sum over a row of log(1 + e^x) - target x, which is minus the
 * log-likelihood of target[N,C] in [0,1] under the logistic function of x[N,C]; a
 * target under 0 is not counted.  learn: x becomes its gradient times scale.
 * (Several labels at once; links; and BPR, Rendle et al. 2009, of differences.) */
void mx_logistic(mx_stream *s, mx_tensor loss, mx_tensor x, mx_tensor target, float scale, bool learn);

/* ---- the list --------------------------------------------------------------- */

#define MX_OPS(X)                                                         \
    X(embed) X(linear) X(norm) X(rms_norm) X(add) X(activate) X(gated)    \
    X(add_norm) X(rope_kv_write) X(seat_rows)                             \
    X(rope) X(kv_write) X(kv_copy) X(attention_paged) X(aggregate)        \
    X(logits_process) X(sample) X(logprobs)                               \
    X(product) X(product_back) X(cast) X(scale) X(embed_back)             \
    X(norm_back) X(rms_norm_back) X(activate_back) X(gated_back)          \
    X(rope_back) X(dropout) X(attention) X(attention_back)                \
    X(cross_entropy) X(sum) X(adamw)                                      \
    X(argmax) X(dueling) X(dueling_back) X(td_loss) X(atoms_value)        \
    X(perceptron) X(world_step)                                           \
    X(atoms_loss) X(noisy) X(noisy_back) X(priority_set) X(priority_sample)       \
    X(aggregate_max_back) X(graph_attention) X(graph_attention_back)      \
    X(sample_neighbours) X(unit_rows) X(unit_rows_back)                   \
    X(dot) X(dot_back) X(logistic)

/* A backend: one pointer per op, none of them NULL (a test asserts it), and
 * the three weight calls. */
#define X(name) __typeof__(mx_##name) *name;
typedef struct mx_kernels {
    MX_OPS(X)
    __typeof__(mx_weight_open)  *weight_open;
    __typeof__(mx_weight_close) *weight_close;
    __typeof__(mx_weight_bytes) *weight_bytes;
} mx_kernels;
#undef X

extern const mx_kernels mx_kernels_cpu;    /* kernels/cpu/backend.c   */
extern const mx_kernels mx_kernels_cuda;   /* kernels/cuda/backend.cu */

#ifdef __cplusplus
}
#endif
#endif
