/* embed_modules.c - sentence-transformers' little files. */
#include "models/embed_modules.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define MAX_FILE (1u << 20)

/* *out NULL when the file is not there. */
static mx_status read_json(const char *folder, const char *name, json_t **out, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len;
    json_error_t why;
    *out = NULL;
    MX_TRY(mx_path_join(path, folder, name, err));
    if (access(path, F_OK)) return MX_OK;
    MX_TRY(mx_read_file(path, MAX_FILE, &text, &len, err));
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
    free(text);
    return *out ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "%s: offset %d: not JSON: %s", path, why.position, why.text);
}

static mx_status read_pooling(mx_embed_modules *m, const char *root, const char *sub, mx_error *err)
{
    char folder[MX_PATH];
    json_t *o;
    const char *key;
    json_t *value;
    MX_TRY(mx_path_join(folder, root, sub, err));
    MX_TRY(read_json(folder, "config.json", &o, err));
    if (!o) return mx_fail(err, MX_ERR_FORMAT, "%s/config.json is missing", folder);
    mx_status st = MX_OK;
    int on = 0;
    json_object_foreach(o, key, value) {
        if (strncmp(key, "pooling_mode", 12) || !json_is_true(value)) continue;
        on++;
        if (!strcmp(key, "pooling_mode_mean_tokens")) m->pooling = MX_POOL_MEAN;
        else if (!strcmp(key, "pooling_mode_cls_token")) m->pooling = MX_POOL_CLS;
        else st = mx_fail(err, MX_ERR_ARG, "%s/config.json: %s is not supported (mean and cls are)", folder, key);
    }
    if (!st && on != 1) st = mx_fail(err, MX_ERR_ARG, "%s/config.json: %d poolings are on; one is supported", folder, on);
    json_decref(o);
    return st;
}

static mx_status read_module(mx_embed_modules *m, const char *root, const json_t *module, mx_error *err)
{
    const char *type = json_string_value(json_object_get(module, "type")), *sub = json_string_value(json_object_get(module, "path"));
    if (!type || !sub || strstr(sub, "..") || *sub == '/')
        return mx_fail(err, MX_ERR_FORMAT, "%s/modules.json: a module needs a type and a path inside the folder", root);
    const char *name = strrchr(type, '.') ? strrchr(type, '.') + 1 : type;
    if (!strcmp(name, "Transformer")) return *sub ? mx_path_join(m->folder, root, sub, err) : MX_OK;
    if (!strcmp(name, "Pooling")) return read_pooling(m, root, sub, err);
    if (!strcmp(name, "Normalize")) {
        m->normalize = true;
        return MX_OK;
    }
    return mx_fail(err, MX_ERR_ARG, "%s/modules.json: module %.60s is not supported (Transformer, Pooling and Normalize are)", root, type);
}

static mx_status read_length(mx_embed_modules *m, mx_error *err)
{
    json_t *o;
    MX_TRY(read_json(m->folder, "sentence_bert_config.json", &o, err));
    if (!o) return MX_OK;
    const json_t *n = json_object_get(o, "max_seq_length");
    mx_status st = MX_OK;
    if (n && !json_is_null(n) && (!json_is_integer(n) || json_integer_value(n) < 2 || json_integer_value(n) > 1 << 20))
        st = mx_fail(err, MX_ERR_FORMAT, "%s/sentence_bert_config.json: max_seq_length must be from 2 to 1048576", m->folder);
    else m->max_len = (int32_t)json_integer_value(n);
    json_decref(o);
    return st;
}

mx_status mx_embed_modules_read(mx_embed_modules *m, const char *path, mx_error *err)
{
    json_t *modules;
    mx_status st = MX_OK;
    *m = (mx_embed_modules){.pooling = MX_POOL_MEAN};
    if (strlen(path) >= sizeof m->folder) return mx_fail(err, MX_ERR_ARG, "model: the path is longer than %d bytes", MX_PATH - 1);
    snprintf(m->folder, sizeof m->folder, "%s", path);
    MX_TRY(read_json(path, "modules.json", &modules, err));
    if (!modules) return MX_OK;
    if (!json_is_array(modules)) st = mx_fail(err, MX_ERR_FORMAT, "%s/modules.json: not a list", path);
    for (size_t i = 0; !st && i < json_array_size(modules); i++) st = read_module(m, path, json_array_get(modules, i), err);
    json_decref(modules);
    return st ? st : read_length(m, err);
}

mx_status mx_is_encoder(const char *path, bool *is, mx_error *err)
{
    json_t *o = NULL;
    *is = false;
    mx_status st = read_json(path, "modules.json", &o, err);
    if (!st && o) *is = true;
    if (!st && !o && !(st = read_json(path, "config.json", &o, err)) && o) {
        const char *type = json_string_value(json_object_get(o, "model_type"));
        *is = type && !strcmp(type, "bert");
    }
    json_decref(o);
    return st == MX_ERR_NO_MEMORY ? st : MX_OK;      /* what else is wrong with them is said by who opens it */
}
