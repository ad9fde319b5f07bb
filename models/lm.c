/* lm.c - opening a decoder to learn. */
#include "models/lm_internal.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static mx_status check(const mx_lm_options *o, mx_error *err)
{
    if (o->compute != MX_F32 && o->compute != MX_BF16) return mx_fail(err, MX_ERR_ARG, "compute: %s; it must be f32 or bf16", mx_dtype_name(o->compute));
    if (!(o->dropout >= 0 && o->dropout < 1)) return mx_fail(err, MX_ERR_ARG, "dropout is %g; it must be in [0, 1)", (double)o->dropout);
    return MX_OK;
}

static mx_status upload_frequencies(mx_lm *m, mx_error *err)
{
    int64_t n = m->config.head_dim / 2;
    mx_stream s;
    MX_TRY(mx_buffer_open(&m->freq_memory, m->dev, (size_t)n * sizeof(float), err));
    m->rope_freq = mx_tensor_of(m->freq_memory.base, MX_F32, 1, n);
    MX_TRY(mx_stream_open(&s, m->dev, 0, err));
    m->dev->ops->upload(&s, m->freq_memory.base, m->config.rope_freq, (size_t)n * sizeof(float));
    mx_status st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

static mx_status load_weights(mx_lm *m, mx_error *err)
{
    mx_checkpoint *c = NULL;
    MX_TRY(mx_checkpoint_open(&c, m->folder, err));
    mx_status st = mx_checkpoint_is_gguf(c) ? mx_fail(err, MX_ERR_ARG, "%s: a GGUF file cannot be trained; give the folder it was made from", m->folder)
                                            : mx_params_load(&m->base, c, m->config.names == MX_NAMES_HF_GPT2 ? "transformer." : "model.", err);
    mx_checkpoint_close(c);
    return st;
}

mx_status mx_lm_open(mx_lm **out, mx_device *dev, const char *folder, const mx_lm_options *opt, mx_error *err)
{
    mx_status st;
    bool lora = opt->lora.rank != 0;
    *out = NULL;
    MX_TRY(check(opt, err));
    if (strlen(folder) >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "model: the path is longer than %d bytes", MX_PATH - 1);
    mx_lm *m = calloc(1, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "a model");
    m->dev = dev;
    m->opt = *opt;
    snprintf(m->folder, sizeof m->folder, "%s", folder);
    MX_TRY_GOTO(st, mx_decoder_config_folder(&m->config, folder, err), fail);
    m->layer = calloc((size_t)m->config.layers, sizeof *m->layer);
    if (!m->layer) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%d layers", m->config.layers);
        goto fail;
    }
    MX_TRY_GOTO(st, lm_list(m, err), fail);
    MX_TRY_GOTO(st, mx_params_alloc(&m->base, dev, !lora, err), fail);
    lm_bind(m);
    MX_TRY_GOTO(st, opt->scratch_init ? lm_init(m, err) : load_weights(m, err), fail);
    if (lora) MX_TRY_GOTO(st, lm_list_adapter(m, err), fail);
    if (!m->config.learned_positions) MX_TRY_GOTO(st, upload_frequencies(m, err), fail);
    *out = m;
    return MX_OK;
fail:
    mx_lm_close(m);
    return st;
}

void mx_lm_close(mx_lm *m)
{
    if (!m) return;
    mx_buffer_close(&m->freq_memory);
    mx_params_close(&m->adapter);
    mx_params_close(&m->base);
    free(m->layer);
    free(m);
}

const mx_decoder_config *mx_lm_config(const mx_lm *m)
{
    return &m->config;
}

mx_params *mx_lm_params(mx_lm *m)
{
    return m->lora_slots ? &m->adapter : &m->base;
}

mx_learner mx_lm_learner(mx_lm *m)
{
    return (mx_learner){.network = m, .params = mx_lm_params(m), .run = lm_run, .scratch = lm_scratch, .save = lm_save, .load = lm_load};
}
