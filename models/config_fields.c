/* config_fields.c - reading fields of a config.json with their ranges. */
#include "models/config_fields.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NULL when absent or null, which mean the same to transformers unless said otherwise. */
const json_t *mx_field(const mx_fields *f, const char *name)
{
    const json_t *v = json_object_get(f->object, name);
    return json_is_null(v) ? NULL : v;
}

/* What stands there, for an error: at most a few words. */
const char *mx_field_shown(const json_t *v, char *buffer, size_t room)
{
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    snprintf(buffer, room, "%.60s", text ? text : "missing");
    free(text);
    return buffer;
}

void mx_field_refuse(const mx_fields *f, const char *name, const json_t *v, const char *allowed)
{
    char buffer[64];
    MX_REFUSE(f, MX_ERR_FORMAT, "%.250s: %s%s is %s, allowed: %s", f->file, f->prefix, name,
           mx_field_shown(v, buffer, sizeof buffer), allowed);
}

double mx_field_real(const mx_fields *f, const char *name, double fallback, double least, double most)
{
    const json_t *v = mx_field(f, name);
    if (!v) return fallback;
    double x = json_number_value(v);
    if (json_is_number(v) && x >= least && x <= most) return x;
    char allowed[96];
    snprintf(allowed, sizeof allowed, "a number from %g to %g", least, most);
    mx_field_refuse(f, name, v, allowed);
    return fallback;
}

/* Python's 4096.0 is as good as 4096. */
int32_t mx_field_int(const mx_fields *f, const char *name, int32_t fallback, int32_t least, int32_t most)
{
    const json_t *v = mx_field(f, name);
    if (!v) return fallback;
    double x = json_number_value(v);
    if (json_is_number(v) && x >= least && x <= most && x == floor(x)) return (int32_t)x;
    char allowed[96];
    snprintf(allowed, sizeof allowed, "an integer from %d to %d", least, most);
    mx_field_refuse(f, name, v, allowed);
    return fallback;
}

bool mx_field_bool(const mx_fields *f, const char *name, bool fallback)
{
    const json_t *v = mx_field(f, name);
    if (!v) return fallback;
    if (!json_is_boolean(v)) mx_field_refuse(f, name, v, "true or false");
    return json_is_true(v);
}

const char *mx_field_text(const mx_fields *f, const char *name, const char *fallback)
{
    const json_t *v = mx_field(f, name);
    if (!v) return fallback;
    if (json_is_string(v)) return json_string_value(v);
    mx_field_refuse(f, name, v, "a string");
    return fallback;
}

mx_activation mx_field_activation(const mx_fields *f, const char *name, const char *fallback)
{
    static const struct {
        const char *name;
        mx_activation act;
    } known[] = {
        {"gelu_new", MX_ACT_GELU_TANH},   {"gelu_pytorch_tanh", MX_ACT_GELU_TANH},
        {"gelu_fast", MX_ACT_GELU_TANH},  {"gelu", MX_ACT_GELU_ERF},
        {"gelu_python", MX_ACT_GELU_ERF}, {"silu", MX_ACT_SILU},
        {"swish", MX_ACT_SILU},           {"relu", MX_ACT_RELU},
    };
    const char *text = mx_field_text(f, name, fallback);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(text, known[i].name) == 0) return known[i].act;
    }
    mx_field_refuse(f, name, mx_field(f, name),
                 "gelu_new, gelu_pytorch_tanh, gelu_fast, gelu, gelu_python, silu, swish, relu");
    return MX_ACT_NONE;
}
