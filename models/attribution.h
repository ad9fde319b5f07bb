/* attribution.h - which words of a text made an encoder say what it said.
 *
 * Integrated gradients (Sundararajan, Taly, Yan 2017): the way from a text of [PAD]s
 * to the text is a straight line of token embeddings; a token's weight is its part of
 * the path's integral of the gradient, by Gauss and Legendre's rule.  Weights add up to
 * the score less that of the [PAD]s.  How far they are from it is known of every part of the path,
 * for the scores at its ends are: the worst part is halved until all of them together are
 * close enough (as adaptive quadrature does, with the error itself instead of an
 * estimate).  All points of a part are sequences of one packed batch.
 *
 * An attributor holds its own f32 weights and stream; one thread uses it. */
#ifndef MX_ATTRIBUTION_H
#define MX_ATTRIBUTION_H

#include "models/encoder.h"
#include "models/tokenizer.h"

typedef struct mx_attributor mx_attributor;

/* folder: of a BERT or of sentence-transformers.  Errors: those of bert.h, tokenizer.h. */
mx_status mx_attributor_open(mx_attributor **out, mx_device *dev, const char *folder, mx_error *err);
void      mx_attributor_close(mx_attributor *a);
const mx_encoder_config *mx_attributor_config(const mx_attributor *a);
bool      mx_attributor_classes(const mx_attributor *a);      /* its file has a classification head */

/* What is explained. */
typedef struct mx_attribution_ask {
    int32_t      class_index;     /* >= 0: this class's logit less the mean of the others'   */
    const float *direction;       /* [d_model], else: its product with the text's vector,
                                     pooled and normalized as the folder says; not for poolers */
    double       tolerance;       /* of the sum; 0 means 1e-3                                */
} mx_attribution_ask;

typedef struct mx_attributed_token {
    const char *piece;            /* the bytes it stands for; a space begins a word           */
    size_t      len, begin, end;  /* the bytes of the text that its word is; 0, 0: of none, or not known */
    double      weight;
} mx_attributed_token;

typedef struct mx_attribution {
    mx_attributed_token *token;   /* [n], [CLS] and [SEP] included: their weight is 0        */
    int32_t n, points;            /* points of the path that were needed                     */
    double  score, base;          /* of the text, and of the [PAD]s                          */
    double  residual;             /* score - base - the sum of the weights                   */
} mx_attribution;

/* A text that is too long is cut.  Errors: MX_ERR_ARG (no such class; a pooler's
 * direction), MX_ERR_STATE (no head), MX_ERR_NO_MEMORY.  *out: free with the call below, on errors too. */
mx_status mx_attribute(mx_attributor *a, const char *text, size_t len, const mx_attribution_ask *ask, mx_attribution *out, mx_error *err);
void      mx_attribution_free(mx_attribution *t);

/* Points and weights of Gauss and Legendre's rule on [0,1]; n from 1 to 256. */
void      mx_gauss_legendre(int32_t n, double *at, double *weight);

#endif
