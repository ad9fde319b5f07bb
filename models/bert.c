/* bert.c - opening an encoder to learn. */
#include "models/bert_internal.h"

#include <stdio.h>
#include <stdlib.h>

static mx_status check(const mx_bert_options *o, mx_error *err)
{
    if (o->compute != MX_F32 && o->compute != MX_BF16) return mx_fail(err, MX_ERR_ARG, "compute: %s; it must be f32 or bf16", mx_dtype_name(o->compute));
    if (!(o->dropout >= 0 && o->dropout < 1)) return mx_fail(err, MX_ERR_ARG, "dropout is %g; it must be in [0, 1)", (double)o->dropout);
    if (o->classes < 0 || o->classes > MX_ENCODER_MAX_CLASSES)
        return mx_fail(err, MX_ERR_ARG, "classes is %d; it must be from 1 to %d", o->classes, MX_ENCODER_MAX_CLASSES);
    if (o->task != MX_BERT_MASKED_WORDS) return MX_OK;
    if (!(o->mask_rate > 0 && o->mask_rate <= 1)) return mx_fail(err, MX_ERR_ARG, "mask-rate is %g; it must be over 0, at most 1", (double)o->mask_rate);
    if (!o->tokenizer) return mx_fail(err, MX_ERR_ARG, "tokenizer: masked words need one");
    return MX_OK;
}

static mx_status find_mask(mx_bert *m, mx_error *err)
{
    m->mask = mx_tokenizer_find(m->opt.tokenizer, "[MASK]");
    m->n_ids = mx_tokenizer_vocab(m->opt.tokenizer);
    if (m->mask < 0) return mx_fail(err, MX_ERR_ARG, "model: its tokenizer has no [MASK]");
    if (m->n_ids > m->config.vocab)
        return mx_fail(err, MX_ERR_ARG, "model: its tokenizer has %d ids, its config says vocab_size %d", m->n_ids, m->config.vocab);
    return MX_OK;
}

mx_status mx_bert_open(mx_bert **out, mx_device *dev, const char *folder, const mx_bert_options *opt, mx_error *err)
{
    mx_status st;
    *out = NULL;
    MX_TRY(check(opt, err));
    if (strlen(folder) >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "model: the path is longer than %d bytes", MX_PATH - 1);
    mx_bert *m = calloc(1, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "a model");
    m->dev = dev;
    m->opt = *opt;
    snprintf(m->folder, sizeof m->folder, "%s", folder);
    MX_TRY_GOTO(st, mx_encoder_config_folder(&m->config, folder, err), fail);
    if (!m->opt.classes) m->opt.classes = m->config.classes;
    m->layer = calloc((size_t)m->config.layers, sizeof *m->layer);
    m->layer_first = calloc((size_t)m->config.layers + 1, sizeof *m->layer_first);
    if (!m->layer || !m->layer_first) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%d layers", m->config.layers);
        goto fail;
    }
    if (opt->task == MX_BERT_MASKED_WORDS) MX_TRY_GOTO(st, find_mask(m, err), fail);
    MX_TRY_GOTO(st, bert_list(m, err), fail);
    MX_TRY_GOTO(st, mx_params_alloc(&m->params, dev, !opt->frozen, err), fail);
    bert_bind(m);
    MX_TRY_GOTO(st, bert_init(m, err), fail);
    if (!opt->scratch_init) MX_TRY_GOTO(st, bert_read(m, err), fail);
    *out = m;
    return MX_OK;
fail:
    mx_bert_close(m);
    return st;
}

void mx_bert_close(mx_bert *m)
{
    if (!m) return;
    mx_params_close(&m->params);
    free(m->layer_first);
    free(m->layer);
    mx_encoder_config_close(&m->config);
    free(m);
}

const mx_encoder_config *mx_bert_config(const mx_bert *m)
{
    return &m->config;
}

mx_params *mx_bert_params(mx_bert *m)
{
    return &m->params;
}

int mx_bert_fresh(const mx_bert *m)
{
    return m->fresh;
}

mx_learner mx_bert_learner(mx_bert *m)
{
    return (mx_learner){.network = m, .params = &m->params, .run = bert_run, .scratch = bert_scratch, .save = bert_save, .load = bert_load,
                        .metric = m->opt.task == MX_BERT_CLASSIFY ? "accuracy" : NULL};
}
