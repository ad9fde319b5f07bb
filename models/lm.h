/* lm.h - a decoder-only language model that learns (GPT-2, Llama family).
 *
 * The same networks as models/decoder.h serves, with plain f32 weights that
 * change, over packed sequences.  What the backward pass needs of the forward
 * pass is kept, or, with `recompute`, only each layer's input is, and the rest
 * is computed again (Chen et al. 2016).  Logits exist for a few hundred rows at
 * a time: a part's loss goes back through the head before the next part comes.
 *
 * LoRA (Hu et al. 2021): the base stands still; each target product gets
 * y += alpha/rank * (x A^T) B^T with A[rank,C] and B[O,rank] that learn.  Files
 * are those of PEFT: adapter_model.safetensors and adapter_config.json. */
#ifndef MX_LM_H
#define MX_LM_H

#include "models/lora.h"
#include "models/trainer.h"

typedef struct mx_lm_options {
    mx_dtype compute;             /* MX_F32, or MX_BF16: products' inputs are rounded    */
    bool     scratch_init;        /* random weights instead of the folder's              */
    uint64_t seed;                /* of them                                             */
    bool     recompute;
    float    dropout;             /* of embeddings and of what each branch adds          */
    mx_lora_options lora;
} mx_lm_options;

typedef struct mx_lm mx_lm;

/* folder: config.json, weights (unless scratch_init), tokenizer files; the last
 * are copied to what is saved.  Errors: those of decoder_config.h and
 * checkpoint.h; MX_ERR_ARG names the option; MX_ERR_NO_MEMORY. */
mx_status mx_lm_open(mx_lm **out, mx_device *dev, const char *folder, const mx_lm_options *opt, mx_error *err);
void      mx_lm_close(mx_lm *m);
const mx_decoder_config *mx_lm_config(const mx_lm *m);
mx_params *mx_lm_params(mx_lm *m);        /* what learns: the weights, or the adapter's   */

/* For the trainer; m outlives it. */
mx_learner mx_lm_learner(mx_lm *m);

/* The base and a PEFT adapter as one: a folder like the base's, f32.  dev: a CPU.
 * Errors: MX_ERR_FORMAT, MX_ERR_ARG (an adapter of another kind, by name), MX_ERR_IO. */
mx_status mx_lm_merge(mx_device *dev, const char *base, const char *adapter, const char *out, mx_error *err);

#endif
