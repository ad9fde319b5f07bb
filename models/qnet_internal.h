/* qnet_internal.h - qnet*.c only. */
#ifndef MX_QNET_INTERNAL_H
#define MX_QNET_INTERNAL_H

#include "models/qnet.h"

typedef struct qnet_layer {
    int       weight, bias;           /* of the parameters                               */
    int       weight_spread, bias_spread;     /* noisy: of the parameters; else -1       */
    int64_t   rows, cols;
    mx_tensor w, b, dw, db;           /* what is multiplied: the weights or their noisy copy */
} qnet_layer;

_Static_assert(MX_QNET_HIDDEN + 1 <= MX_PERCEPTRON_LAYERS, "a network is one mx_perceptron");

struct mx_qnet {
    mx_device     *dev;
    mx_qnet_config c;
    mx_params      p;
    qnet_layer     layer[MX_QNET_HIDDEN + 1];
    int            n;                 /* layers and head                                 */
    mx_buffer      copy, dcopy;       /* noisy: w and b of the noisy layers, gradients   */
    mx_buffer      noise;             /* noisy: out[1,rows] and in[1,cols] of each, a 1  */
    float         *host_noise;
    size_t         noise_count;
};

/* qnet_sb3.c: the shape in a Stable-Baselines3 file; its weights into q. */
typedef struct qnet_sb3 qnet_sb3;
mx_status qnet_sb3_open(qnet_sb3 **out, const char *path, mx_qnet_config *c, mx_error *err);
mx_status qnet_sb3_load(const qnet_sb3 *f, mx_qnet *q, mx_error *err);
void      qnet_sb3_close(qnet_sb3 *f);

#endif
