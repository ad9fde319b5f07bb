/* qnet.h - a network that gives a value to every action: Q(state, action).
 *
 * A perceptron from observations to actions: hidden layers of one activation, then
 * a head.  Options: a dueling head (Wang et al. 2016; value and advantages from one
 * trunk), noisy layers (Fortunato et al. 2018; all but the first), and atoms (C51,
 * Bellemare et al. 2017: a distribution over Z returns in place of its mean).
 *
 * On disk a folder: config.json and model.safetensors, as mx_qnet_save() writes
 * them; or, to be read only, what Stable-Baselines3's DQN.save() writes (MlpPolicy).
 *
 * OWNERSHIP: a network owns its weights; what a pass returns lies in the stream's
 * scratch until it is rewound.  A network that serves is read only: many streams
 * may run mx_qnet_values() on it at once. */
#ifndef MX_QNET_H
#define MX_QNET_H

#include "models/params.h"
#include "models/snapshot.h"

#define MX_QNET_HIDDEN 8              /* hidden layers at most */

typedef struct mx_qnet_config {
    int32_t observation, actions;
    int32_t layers;                   /* hidden ones                                     */
    int32_t hidden[MX_QNET_HIDDEN];
    mx_activation activation;         /* MX_ACT_RELU, MX_ACT_TANH or MX_ACT_SILU         */
    bool    dueling, noisy;
    int32_t atoms;                    /* 1: plain values                                 */
    float   low, high;                /* atoms over 1: the returns of the first and last */
    char    env[64];                  /* the world it was made for, for people; "": none */
} mx_qnet_config;

typedef struct mx_qnet mx_qnet;

/* New weights, as torch.nn.Linear draws them: standard deviation 1/sqrt(3 inputs),
 * biases 0; by (seed, name).  learn: with gradients.  Errors: MX_ERR_ARG names the
 * field and its limit, MX_ERR_NO_MEMORY. */
mx_status mx_qnet_create(mx_qnet **out, mx_device *dev, const mx_qnet_config *c, bool learn, uint64_t seed, mx_error *err);
/* path: a folder, or a Stable-Baselines3 .zip.  Errors: MX_ERR_IO, MX_ERR_FORMAT
 * (names file and field), MX_ERR_NO_MEMORY. */
mx_status mx_qnet_open(mx_qnet **out, mx_device *dev, const char *path, bool learn, mx_error *err);
/* config.json and model.safetensors into a folder that is there. */
mx_status mx_qnet_save(const mx_qnet *q, const char *folder, mx_error *err);
void      mx_qnet_close(mx_qnet *q);

const mx_qnet_config *mx_qnet_config_of(const mx_qnet *q);
mx_params            *mx_qnet_params(mx_qnet *q);
mx_device            *mx_qnet_device(const mx_qnet *q);

/* Bytes of scratch that a pass over `rows` takes; learn: with its way back.  SIZE_MAX: too many. */
size_t    mx_qnet_scratch(const mx_qnet *q, int64_t rows, bool learn);
/* q[N,A] of x[N,observation] (f32, on the device); N >= 1. */
mx_tensor mx_qnet_values(const mx_qnet *q, mx_stream *s, mx_tensor x);
/* best[N,1] i32 of values[N,A] under mask[N,A] (i8; data NULL: all): mx_argmax into scratch. */
mx_tensor mx_qnet_best(mx_stream *s, mx_tensor values, mx_tensor mask);

/* ---- learning ---------------------------------------------------------------------- */

typedef struct mx_qnet_pass {
    mx_tensor x[MX_QNET_HIDDEN + 1];  /* the input of every layer                        */
    mx_tensor z[MX_QNET_HIDDEN];      /* hidden layers before their activation           */
    mx_tensor out;                    /* [N,A*atoms]: values, or logits of atoms         */
} mx_qnet_pass;
void      mx_qnet_run(const mx_qnet *q, mx_stream *s, mx_tensor x, mx_qnet_pass *p);
/* The values of a pass: its out, or the means of its atoms. */
mx_tensor mx_qnet_mean(const mx_qnet *q, mx_stream *s, const mx_qnet_pass *p);
/* Adds the gradients of the weights, from dout[N,A*atoms]. */
void      mx_qnet_back(mx_qnet *q, mx_stream *s, const mx_qnet_pass *p, mx_tensor dout);

/* Draw the noise of noisy layers anew; seed 0: none, the mean of the weights.  After
 * every change of the weights too, for noisy layers compute with a copy. */
void      mx_qnet_noise(mx_qnet *q, mx_stream *s, uint64_t seed);
/* to = to + tau * (from - to), networks of one shape; tau 1 copies.  Then to's noise must be drawn. */
void      mx_qnet_follow(mx_qnet *to, const mx_qnet *from, mx_stream *s, float tau);

#endif
