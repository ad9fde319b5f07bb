/* model_files.c - config and tokenizer files, carried over to what is saved. */
#include "models/model_files.h"

#include "models/checkpoint.h"
#include "models/snapshot.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

mx_status mx_model_write_json(json_t *o, const char *folder, const char *name, mx_error *err)
{
    char path[MX_PATH];
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    mx_status st = text ? mx_path_join(path, folder, name, err) : mx_fail(err, MX_ERR_NO_MEMORY, "%s/%s", folder, name);
    if (!st) st = mx_write_file(path, text, strlen(text), err);
    free(text);
    json_decref(o);
    return st;
}

mx_status mx_model_copy_config(const char *from, const char *to, json_t *set, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len = 0;
    json_error_t why;
    MX_TRY(mx_path_join(path, from, "config.json", err));
    MX_TRY(mx_read_file(path, (size_t)16 << 20, &text, &len, err));
    json_t *o = json_loadb(text, len, 0, &why);
    free(text);
    if (!json_is_object(o)) {
        json_decref(o);
        return mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", path, why.line, why.text);
    }
    json_object_set_new(o, json_object_get(o, "dtype") ? "dtype" : "torch_dtype", json_string("float32"));
    if (set) json_object_update(o, set);
    return mx_model_write_json(o, to, "config.json", err);
}

mx_status mx_model_copy_tokenizer(const char *from, const char *to, mx_error *err)
{
    static const char *const files[] = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                        "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja", "vocab.txt"};
    char a[MX_PATH], b[MX_PATH];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        MX_TRY(mx_path_join(a, from, files[i], err));
        MX_TRY(mx_path_join(b, to, files[i], err));
        if (!access(a, R_OK)) MX_TRY(mx_copy_file(a, b, err));
    }
    return MX_OK;
}
