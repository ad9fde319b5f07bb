/* encoder_config.c - an encoder's description from config.json.  Absent fields
 * take the defaults of transformers' BertConfig. */
#include "models/encoder_config.h"

#include "models/config_fields.h"
#include "models/snapshot.h"

#include <stdio.h>
#include <stdlib.h>

#define MAX_CONFIG (4u << 20)

/* id2label: {"0": "bad", "1": "good"}; holes and strange keys are wrong. */
static void read_labels(const mx_fields *f, mx_encoder_config *c)
{
    const json_t *names = mx_field(f, "id2label");
    c->classes = mx_field_int(f, "num_labels", 2, 1, MX_ENCODER_MAX_CLASSES);
    if (!names || *f->st) return;
    size_t n = json_object_size(names);
    if (!json_is_object(names) || !n || n > MX_ENCODER_MAX_CLASSES) {
        mx_field_refuse(f, "id2label", names, "an object of 1 to 4096 names");
        return;
    }
    c->label = calloc(n, sizeof *c->label);
    if (!c->label) {
        MX_REFUSE(f, MX_ERR_NO_MEMORY, "%zu labels", n);
        return;
    }
    c->classes = (int32_t)n;
    for (size_t i = 0; i < n && !*f->st; i++) {
        char key[16];
        snprintf(key, sizeof key, "%zu", i);
        const json_t *name = json_object_get(names, key);
        if (!json_is_string(name) || json_string_length(name) >= MX_ENCODER_LABEL)
            MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: id2label: \"%s\" is no name of up to %d bytes", f->file, key, MX_ENCODER_LABEL - 1);
        else snprintf(c->label[i], sizeof c->label[i], "%s", json_string_value(name));
    }
}

static int64_t count_parameters(const mx_encoder_config *c)
{
    int64_t d = c->d_model, layer = 4 * d * d + 4 * d + 2 * d * c->d_ff + c->d_ff + d + 4 * d;
    return (c->vocab + (int64_t)c->max_positions + c->types) * d + 2 * d + c->layers * layer;
}

static void read_bert(const mx_fields *f, mx_encoder_config *c)
{
    const char *type = mx_field_text(f, "model_type", NULL), *positions = mx_field_text(f, "position_embedding_type", "absolute");
    if (!type) MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: model_type is missing", f->file);
    else if (strcmp(type, "bert")) MX_REFUSE(f, MX_ERR_ARG, "%.250s: model_type %.60s is not an encoder that is supported (bert is)", f->file, type);
    if (strcmp(positions, "absolute"))
        MX_REFUSE(f, MX_ERR_ARG, "%.250s: position_embedding_type %.60s is not supported (absolute is)", f->file, positions);
    c->layers = mx_field_int(f, "num_hidden_layers", 12, 1, 1024);
    c->d_model = mx_field_int(f, "hidden_size", 768, 1, 1 << 15);
    c->heads = mx_field_int(f, "num_attention_heads", 12, 1, 1024);
    c->d_ff = mx_field_int(f, "intermediate_size", 3072, 1, 1 << 17);
    c->vocab = mx_field_int(f, "vocab_size", 30522, 1, 1 << 24);
    c->max_positions = mx_field_int(f, "max_position_embeddings", 512, 2, 1 << 20);
    c->types = mx_field_int(f, "type_vocab_size", 2, 1, 1024);
    c->norm_eps = (float)mx_field_real(f, "layer_norm_eps", 1e-12, 0, 1);
    c->init_range = (float)mx_field_real(f, "initializer_range", 0.02, 0, 10);
    c->act = mx_field_activation(f, "hidden_act", "gelu");
    read_labels(f, c);
    if (*f->st) return;
    if (c->d_model % c->heads) {
        MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: hidden_size %d is not a multiple of num_attention_heads %d", f->file, c->d_model, c->heads);
        return;
    }
    c->head_dim = c->d_model / c->heads;
    if (c->head_dim > 256) MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: heads of %d channels: more than 256", f->file, c->head_dim);
    c->parameters = count_parameters(c);
}

mx_status mx_encoder_config_json(mx_encoder_config *c, const char *json, size_t len, const char *file, mx_error *err)
{
    json_error_t why;
    mx_status st = MX_OK;
    *c = (mx_encoder_config){0};
    json_t *root = json_loadb(json, len, JSON_REJECT_DUPLICATES, &why);
    mx_fields f = {.object = root, .prefix = "", .file = file, .st = &st, .err = err};
    if (!root) st = mx_fail(err, MX_ERR_FORMAT, "%.250s: offset %d: not JSON: %s", file, why.position, why.text);
    else if (!json_is_object(root)) st = mx_fail(err, MX_ERR_FORMAT, "%.250s: offset 0: not an object", file);
    else read_bert(&f, c);
    json_decref(root);
    if (st) mx_encoder_config_close(c);
    return st;
}

mx_status mx_encoder_config_folder(mx_encoder_config *c, const char *folder, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len;
    *c = (mx_encoder_config){0};
    MX_TRY(mx_path_join(path, folder, "config.json", err));
    MX_TRY(mx_read_file(path, MAX_CONFIG, &text, &len, err));
    mx_status st = mx_encoder_config_json(c, text, len, path, err);
    free(text);
    return st;
}

void mx_encoder_config_close(mx_encoder_config *c)
{
    free(c->label);
    *c = (mx_encoder_config){0};
}
