/* lora.c - adapters: their description, and their part of a forward pass. */
#include "models/lora.h"

#include "models/checkpoint.h"
#include "models/snapshot.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

const char *mx_lora_target(const mx_decoder_config *c, int i)
{
    static const char *const of_llama[] = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    static const char *const of_gpt2[] = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"};
    if (c->names == MX_NAMES_HF_GPT2) return i < 4 ? of_gpt2[i] : NULL;
    return i < 7 ? of_llama[i] : NULL;
}

mx_status mx_lora_read(const char *folder, const mx_decoder_config *model, mx_lora_options *o, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len = 0;
    json_error_t why;
    MX_TRY(mx_path_join(path, folder, "adapter_config.json", err));
    MX_TRY(mx_read_file(path, (size_t)1 << 20, &text, &len, err));
    json_t *c = json_loadb(text, len, 0, &why);
    free(text);
    const json_t *type = json_object_get(c, "peft_type"), *r = json_object_get(c, "r"), *alpha = json_object_get(c, "lora_alpha");
    const json_t *targets = json_object_get(c, "target_modules"), *bias = json_object_get(c, "bias");
    mx_status st = MX_OK;
    if (!json_is_object(c)) st = mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", path, why.line, why.text);
    else if (!json_is_string(type) || strcmp(json_string_value(type), "LORA")) st = mx_fail(err, MX_ERR_FORMAT, "%s: peft_type is not LORA", path);
    else if (!json_is_integer(r) || json_integer_value(r) < 1 || json_integer_value(r) > 1024) st = mx_fail(err, MX_ERR_FORMAT, "%s: r must be from 1 to 1024", path);
    else if (!json_is_number(alpha) || !(json_number_value(alpha) > 0)) st = mx_fail(err, MX_ERR_FORMAT, "%s: lora_alpha must be over 0", path);
    else if (json_is_string(bias) && strcmp(json_string_value(bias), "none")) st = mx_fail(err, MX_ERR_ARG, "%s: bias \"%s\": adapters with biases are not known here", path, json_string_value(bias));
    else if (json_is_true(json_object_get(c, "use_dora")) || json_is_true(json_object_get(c, "use_rslora")))
        st = mx_fail(err, MX_ERR_ARG, "%s: DoRA and rank-stabilised adapters are not known here", path);
    *o = (mx_lora_options){.rank = (int32_t)json_integer_value(r), .alpha = (float)json_number_value(alpha)};
    for (size_t i = 0; !st && i < json_array_size(targets); i++) {
        const char *name = json_string_value(json_array_get(targets, i));
        bool known = false;
        for (int t = 0; name && mx_lora_target(model, t); t++) {
            const char *own = mx_lora_target(model, t), *dot = strrchr(own, '.');
            if (strcmp(own, name) && !(dot && !strcmp(dot + 1, name))) continue;
            o->targets |= 1u << t;
            known = true;
        }
        if (!known) st = mx_fail(err, MX_ERR_FORMAT, "%s: target_modules: the model has no \"%s\"", path, name ? name : "?");
    }
    if (!st && !o->targets) st = mx_fail(err, MX_ERR_FORMAT, "%s: target_modules names nothing", path);
    json_decref(c);
    return st;
}

/* ---- served -------------------------------------------------------------------------- */

/* Where a target stands, its outputs' place in the product, its size. */
typedef struct target {
    const char      *stem;
    mx_adapter_place place;
    int64_t          first, rows, cols;
} target;

static int targets_of(const mx_decoder_config *c, target t[MX_LORA_TARGETS])
{
    int64_t C = c->d_model, q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim, F = c->d_ff;
    if (c->names == MX_NAMES_HF_GPT2) {
        t[0] = (target){"transformer.h.%d.attn.c_attn", MX_PLACE_QKV, 0, q + 2 * g, C};
        t[1] = (target){"transformer.h.%d.attn.c_proj", MX_PLACE_OUT, 0, C, q};
        t[2] = (target){"transformer.h.%d.mlp.c_fc", MX_PLACE_UP, 0, F, C};
        t[3] = (target){"transformer.h.%d.mlp.c_proj", MX_PLACE_DOWN, 0, C, F};
        return 4;
    }
    t[0] = (target){"model.layers.%d.self_attn.q_proj", MX_PLACE_QKV, 0, q, C};
    t[1] = (target){"model.layers.%d.self_attn.k_proj", MX_PLACE_QKV, q, g, C};
    t[2] = (target){"model.layers.%d.self_attn.v_proj", MX_PLACE_QKV, q + g, g, C};
    t[3] = (target){"model.layers.%d.self_attn.o_proj", MX_PLACE_OUT, 0, C, q};
    t[4] = (target){"model.layers.%d.mlp.gate_proj", MX_PLACE_UP, 0, F, C};
    t[5] = (target){"model.layers.%d.mlp.up_proj", MX_PLACE_UP, F, F, C};
    t[6] = (target){"model.layers.%d.mlp.down_proj", MX_PLACE_DOWN, 0, C, F};
    return 7;
}

typedef struct scaled { mx_row_source of; float scale; } scaled;

static void read_scaled(const void *ctx, int64_t first, int64_t n, float *dst)
{
    const scaled *s = ctx;
    s->of.read(s->of.ctx, first, n, dst);
    for (int64_t i = 0; i < n * s->of.cols; i++) dst[i] *= s->scale;
}

static mx_status load(mx_weight *w, mx_device *dev, const mx_checkpoint *file, const target *t, int32_t layer, const char *which, int64_t rows,
                      int64_t cols, float scale, mx_error *err)
{
    char name[160];
    const char *mark = strstr(t->stem, "%d");
    snprintf(name, sizeof name, "base_model.model.%.*s%d%s.%s.weight", (int)(mark - t->stem), t->stem, layer, mark + 2, which);
    const mx_blob *b = mx_checkpoint_find(file, name);
    if (!b || b->dtype > MX_FILE_BF16 || b->rows != rows || b->cols != cols)
        return mx_fail(err, MX_ERR_FORMAT, "tensor %s is %s; the adapter's config and the base ask for [%lld, %lld]", name,
                       b ? "of another shape or dtype" : "missing", (long long)rows, (long long)cols);
    scaled s = {mx_blob_rows(b), scale};
    mx_row_source source = {read_scaled, &s, rows, cols};
    return mx_weight_open(w, dev, &source, 1, MX_F32, err);
}

static mx_status load_parts(mx_adapter *a, mx_device *dev, const mx_decoder_config *c, const mx_lora_options *o, const mx_checkpoint *file, mx_error *err)
{
    target t[MX_LORA_TARGETS];
    int n = targets_of(c, t);
    for (int i = 0; i < n; i++) {
        a->place[i] = (unsigned char)t[i].place;
        for (int32_t l = 0; (o->targets >> i & 1) && l < a->layers; l++) {
            mx_adapter_part *p = &a->part[(size_t)l * MX_LORA_TARGETS + (size_t)i];
            p->first = t[i].first;
            MX_TRY(load(&p->a, dev, file, &t[i], l, "lora_A", o->rank, t[i].cols, 1, err));
            MX_TRY(load(&p->b, dev, file, &t[i], l, "lora_B", t[i].rows, o->rank, o->alpha / (float)o->rank, err));
            a->bytes += p->a.bytes + p->b.bytes;
        }
    }
    return MX_OK;
}

mx_status mx_adapter_bytes(size_t *out, const mx_device *dev, const mx_decoder_config *c, const char *folder, mx_error *err)
{
    mx_lora_options o;
    target t[MX_LORA_TARGETS];
    int n = targets_of(c, t);
    *out = 0;
    MX_TRY(mx_lora_read(folder, c, &o, err));
    for (int i = 0; i < n; i++)
        if (o.targets >> i & 1)
            *out += (size_t)c->layers * (mx_weight_bytes(dev, o.rank, t[i].cols, MX_F32) + mx_weight_bytes(dev, t[i].rows, o.rank, MX_F32));
    return MX_OK;
}

mx_status mx_adapter_open(mx_adapter *a, mx_device *dev, const mx_decoder_config *c, const char *name, const char *folder, mx_error *err)
{
    mx_lora_options o;
    mx_checkpoint *file = NULL;
    char path[MX_PATH];
    *a = (mx_adapter){0};
    if (!*name || strlen(name) >= sizeof a->name) return mx_fail(err, MX_ERR_ARG, "lora-modules: the name \"%.80s\" must have 1 to 63 bytes", name);
    if (c->names == MX_NAMES_GGUF) return mx_fail(err, MX_ERR_ARG, "lora-modules: %s: adapters stand beside a Hugging Face folder, not a GGUF file", name);
    MX_TRY(mx_lora_read(folder, c, &o, err));
    MX_TRY(mx_path_join(path, folder, "adapter_model.safetensors", err));
    MX_TRY(mx_checkpoint_open(&file, path, err));
    snprintf(a->name, sizeof a->name, "%s", name);
    a->rank = o.rank;
    a->layers = c->layers;
    a->part = calloc((size_t)c->layers * MX_LORA_TARGETS, sizeof *a->part);
    mx_status st = a->part ? load_parts(a, dev, c, &o, file, err) : mx_fail(err, MX_ERR_NO_MEMORY, "adapter %s", name);
    mx_checkpoint_close(file);
    if (st) mx_adapter_close(a);
    return st;
}

void mx_adapter_close(mx_adapter *a)
{
    for (size_t i = 0; a->part && i < (size_t)a->layers * MX_LORA_TARGETS; i++) {
        mx_weight_close(&a->part[i].a);
        mx_weight_close(&a->part[i].b);
    }
    free(a->part);
    *a = (mx_adapter){0};
}

bool mx_adapter_at(const mx_adapter *a, int32_t layer, mx_adapter_place place)
{
    for (size_t i = 0; i < MX_LORA_TARGETS; i++)
        if (a->part[(size_t)layer * MX_LORA_TARGETS + i].a.dev && a->place[i] == place) return true;
    return false;
}

void mx_adapter_add(const mx_adapter *a, mx_stream *s, int32_t layer, mx_adapter_place place, mx_tensor y, mx_tensor x, mx_tensor low)
{
    mx_tensor none = {0}, t = mx_tensor_cols(mx_tensor_rows(low, 0, x.rows), 0, a->rank);
    for (size_t i = 0; i < MX_LORA_TARGETS; i++) {
        const mx_adapter_part *p = &a->part[(size_t)layer * MX_LORA_TARGETS + i];
        if (!p->a.dev || a->place[i] != place) continue;
        mx_linear(s, t, x, &p->a, none, MX_ACT_NONE, false);
        mx_linear(s, mx_tensor_cols(y, p->first, p->b.rows), t, &p->b, none, MX_ACT_NONE, true);
    }
}
