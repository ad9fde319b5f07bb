/* qnet.c - the network: its weights, its pass and the way back. */
#include "models/qnet_internal.h"

#include "models/config_fields.h"
#include "runtime/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- the shape ------------------------------------------------------------------------- */

static mx_status check(const mx_qnet_config *c, mx_error *err)
{
    const struct { const char *name; double value, least, most; } limits[] = {
        {"observation", c->observation, 1, 1 << 20}, {"actions", c->actions, 1, 65536}, {"layers", c->layers, 1, MX_QNET_HIDDEN},
        {"atoms", c->atoms, 1, 512}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!(limits[i].value >= limits[i].least && limits[i].value <= limits[i].most))
            return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be from %g to %g", limits[i].name, limits[i].value, limits[i].least, limits[i].most);
    for (int i = 0; i < c->layers; i++)
        if (c->hidden[i] < 1 || c->hidden[i] > 65536)
            return mx_fail(err, MX_ERR_ARG, "hidden[%d] is %d; it must be from 1 to 65536", i, c->hidden[i]);
    if (c->atoms > 1 && !(c->low < c->high && isfinite(c->low) && isfinite(c->high)))
        return mx_fail(err, MX_ERR_ARG, "atoms from %g to %g; the first must be under the last", (double)c->low, (double)c->high);
    if (c->activation != MX_ACT_RELU && c->activation != MX_ACT_TANH && c->activation != MX_ACT_SILU)
        return mx_fail(err, MX_ERR_ARG, "activation: relu, tanh or silu");
    return MX_OK;
}

static mx_status list_layer(mx_qnet *q, int i, int64_t rows, int64_t cols, mx_error *err)
{
    static const char *const parts[] = {"weight", "bias", "weight_spread", "bias_spread"};
    qnet_layer *l = &q->layer[i];
    int *to[] = {&l->weight, &l->bias, &l->weight_spread, &l->bias_spread};
    bool noisy = q->c.noisy && i > 0;
    l->rows = rows;
    l->cols = cols;
    l->weight_spread = l->bias_spread = -1;
    for (int k = 0; k < (noisy ? 4 : 2); k++) {
        char name[MX_PARAM_NAME];
        bool vector = k % 2 == 1;
        if (i == q->c.layers) snprintf(name, sizeof name, "head.%s", parts[k]);
        else snprintf(name, sizeof name, "layers.%d.%s", i, parts[k]);
        *to[k] = mx_params_add(&q->p, name, vector ? 1 : rows, vector ? rows : cols, vector ? MX_PARAM_VECTOR : 0, err);
        if (*to[k] < 0) return err->code;
    }
    return MX_OK;
}

/* The parameters' views; noisy layers multiply by copies, one behind the other. */
static mx_status bind(mx_qnet *q, bool learn, mx_error *err)
{
    size_t room = 0, noise = 16, at = 0;
    for (int i = 1; i < q->n && q->c.noisy; i++) {
        const qnet_layer *l = &q->layer[i];
        room += (size_t)(l->rows * l->cols + l->rows + 31) / 16 * 16;
        noise += (size_t)(l->rows + l->cols + 31) / 16 * 16;
    }
    if (room) {
        MX_TRY(mx_buffer_open(&q->copy, q->dev, room * sizeof(float), err));
        if (learn) MX_TRY(mx_buffer_open(&q->dcopy, q->dev, room * sizeof(float), err));
        MX_TRY(mx_buffer_open(&q->noise, q->dev, noise * sizeof(float), err));
        q->noise_count = noise;
        q->host_noise = calloc(noise, sizeof *q->host_noise);
        if (!q->host_noise) return mx_fail(err, MX_ERR_NO_MEMORY, "a network's noise");
    }
    for (int i = 0; i < q->n; i++) {
        qnet_layer *l = &q->layer[i];
        l->w = mx_params_view(&q->p, &q->p.value, l->weight, 1);
        l->b = mx_params_view(&q->p, &q->p.value, l->bias, 1);
        l->dw = mx_params_view(&q->p, &q->p.grad, l->weight, 1);
        l->db = mx_params_view(&q->p, &q->p.grad, l->bias, 1);
        if (l->weight_spread < 0) continue;
        size_t size = (size_t)(l->rows * l->cols);
        l->w.data = (float *)q->copy.base + at;
        l->b.data = (float *)q->copy.base + at + size;
        l->dw.data = learn ? (float *)q->dcopy.base + at : NULL;
        l->db.data = learn ? (float *)q->dcopy.base + at + size : NULL;
        at += (size + (size_t)l->rows + 31) / 16 * 16;
    }
    return MX_OK;
}

static mx_status create(mx_qnet **out, mx_device *dev, const mx_qnet_config *c, bool learn, mx_error *err)
{
    mx_status st;
    *out = NULL;
    MX_TRY(check(c, err));
    mx_qnet *q = calloc(1, sizeof *q);
    if (!q) return mx_fail(err, MX_ERR_NO_MEMORY, "a network");
    q->dev = dev;
    q->c = *c;
    q->n = c->layers + 1;
    for (int i = 0; i < q->n; i++) {
        int64_t rows = i < c->layers ? c->hidden[i] : (int64_t)(c->actions + (c->dueling ? 1 : 0)) * c->atoms;
        MX_TRY_GOTO(st, list_layer(q, i, rows, i ? c->hidden[i - 1] : c->observation, err), fail);
    }
    MX_TRY_GOTO(st, mx_params_alloc(&q->p, dev, learn, err), fail);
    MX_TRY_GOTO(st, bind(q, learn, err), fail);
    *out = q;
    return MX_OK;
fail:
    mx_qnet_close(q);
    return st;
}

/* Noisy copies of weights that were just read or drawn: without noise. */
static mx_status settle(mx_qnet *q, mx_error *err)
{
    mx_stream s;
    MX_TRY(mx_stream_open(&s, q->dev, 0, err));
    mx_qnet_noise(q, &s, 0);
    mx_status st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

mx_status mx_qnet_create(mx_qnet **out, mx_device *dev, const mx_qnet_config *c, bool learn, uint64_t seed, mx_error *err)
{
    MX_TRY(create(out, dev, c, learn, err));
    mx_qnet *q = *out;
    mx_status st = MX_OK;
    for (int i = 0; !st && i < q->n; i++) {
        const qnet_layer *l = &q->layer[i];
        float spread = 0.5f / sqrtf((float)l->cols);          /* Fortunato et al. 2018, section 3.2 */
        st = mx_params_init(&q->p, l->weight, 1 / sqrtf(3 * (float)l->cols), seed, err);
        if (!st && l->weight_spread >= 0) st = mx_params_fill(&q->p, l->weight_spread, spread, err);
        if (!st && l->bias_spread >= 0) st = mx_params_fill(&q->p, l->bias_spread, spread, err);
    }
    if (!st) st = settle(q, err);
    if (st) {
        mx_qnet_close(q);
        *out = NULL;
    }
    return st;
}

void mx_qnet_close(mx_qnet *q)
{
    if (!q) return;
    free(q->host_noise);
    mx_buffer_close(&q->noise);
    mx_buffer_close(&q->dcopy);
    mx_buffer_close(&q->copy);
    mx_params_close(&q->p);
    free(q);
}

const mx_qnet_config *mx_qnet_config_of(const mx_qnet *q)
{
    return &q->c;
}

mx_params *mx_qnet_params(mx_qnet *q)
{
    return &q->p;
}

mx_device *mx_qnet_device(const mx_qnet *q)
{
    return q->dev;
}

/* ---- on disk ------------------------------------------------------------------------------ */

static const char *const activations[MX_ACT_COUNT] = {[MX_ACT_RELU] = "relu", [MX_ACT_TANH] = "tanh", [MX_ACT_SILU] = "silu"};

mx_status mx_qnet_save(const mx_qnet *q, const char *folder, mx_error *err)
{
    static const char *const metadata[] = {"format", "pt"};
    const mx_qnet_config *c = &q->c;
    char path[MX_PATH];
    json_t *hidden = json_array(), *o = json_pack("{s:s, s:i, s:i, s:s, s:b, s:b, s:i, s:f, s:f, s:s}", "model_type", "merx_qnet", "observation",
                                                  c->observation, "actions", c->actions, "activation", activations[c->activation], "dueling",
                                                  c->dueling, "noisy", c->noisy, "atoms", c->atoms, "low", (double)c->low, "high", (double)c->high, "env", c->env);
    for (int i = 0; hidden && i < c->layers; i++) json_array_append_new(hidden, json_integer(c->hidden[i]));
    if (o && hidden) json_object_set(o, "hidden", hidden);
    char *text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
    mx_status st = text ? mx_path_join(path, folder, "config.json", err) : mx_fail(err, MX_ERR_NO_MEMORY, "a network's config.json");
    if (!st) st = mx_write_file(path, text, strlen(text), err);
    if (!st) st = mx_path_join(path, folder, "model.safetensors", err);
    if (!st) st = mx_params_save_as(&q->p, &q->p.value, path, MX_SAVE_F32, false, metadata, 1, err);
    free(text);
    json_decref(o);
    json_decref(hidden);
    return st;
}

static void read_fields(const mx_fields *f, mx_qnet_config *c)
{
    const json_t *hidden = mx_field(f, "hidden");
    const char *act = mx_field_text(f, "activation", "relu");
    c->observation = mx_field_int(f, "observation", 0, 1, 1 << 20);
    c->actions = mx_field_int(f, "actions", 0, 1, 65536);
    c->dueling = mx_field_bool(f, "dueling", false);
    c->noisy = mx_field_bool(f, "noisy", false);
    c->atoms = mx_field_int(f, "atoms", 1, 1, 512);
    c->low = (float)mx_field_real(f, "low", 0, -1e30, 1e30);
    c->high = (float)mx_field_real(f, "high", 0, -1e30, 1e30);
    snprintf(c->env, sizeof c->env, "%s", mx_field_text(f, "env", ""));
    if (!json_is_array(hidden) || json_array_size(hidden) < 1 || json_array_size(hidden) > MX_QNET_HIDDEN)
        mx_field_refuse(f, "hidden", hidden, "a list of 1 to 8 widths");
    for (c->layers = 0; json_is_array(hidden) && c->layers < MX_QNET_HIDDEN && (size_t)c->layers < json_array_size(hidden); c->layers++)
        c->hidden[c->layers] = (int32_t)json_integer_value(json_array_get(hidden, (size_t)c->layers));
    c->activation = MX_ACT_COUNT;
    for (int a = 0; a < MX_ACT_COUNT; a++)
        if (activations[a] && !strcmp(activations[a], act)) c->activation = (mx_activation)a;
}

static mx_status read_config(const char *folder, mx_qnet_config *c, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len = 0;
    json_error_t why;
    mx_status st = MX_OK;
    *c = (mx_qnet_config){0};
    MX_TRY(mx_path_join(path, folder, "config.json", err));
    MX_TRY(mx_read_file(path, (size_t)1 << 20, &text, &len, err));
    json_t *o = json_loadb(text, len, 0, &why);
    free(text);
    if (!json_is_object(o)) {
        json_decref(o);
        return mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", path, o ? 1 : why.line, o ? "no object" : why.text);
    }
    mx_fields f = {o, "", path, &st, err};
    const char *type = mx_field_text(&f, "model_type", "");
    if (strcmp(type, "merx_qnet")) st = mx_fail(err, MX_ERR_FORMAT, "%s: model_type is \"%.40s\"; a Q network's is merx_qnet", path, type);
    else read_fields(&f, c);
    json_decref(o);
    if (!st && check(c, err)) {
        char what[300];
        snprintf(what, sizeof what, "%.299s", err->text);
        st = mx_fail(err, MX_ERR_FORMAT, "%.150s: %s", path, what);
    }
    return st;
}

static mx_status open_folder(mx_qnet **out, mx_device *dev, const char *path, bool learn, mx_error *err)
{
    mx_qnet_config c;
    mx_checkpoint *file = NULL;
    MX_TRY(read_config(path, &c, err));
    MX_TRY(create(out, dev, &c, learn, err));
    mx_status st = mx_checkpoint_open(&file, path, err);
    if (!st) st = mx_params_load(&(*out)->p, file, NULL, err);
    mx_checkpoint_close(file);
    return st;
}

mx_status mx_qnet_open(mx_qnet **out, mx_device *dev, const char *path, bool learn, mx_error *err)
{
    size_t len = strlen(path);
    mx_status st;
    *out = NULL;
    if (len > 4 && !strcmp(path + len - 4, ".zip")) {
        qnet_sb3 *file = NULL;
        mx_qnet_config c;
        MX_TRY(qnet_sb3_open(&file, path, &c, err));
        st = create(out, dev, &c, learn, err);
        if (!st) st = qnet_sb3_load(file, *out, err);
        qnet_sb3_close(file);
    } else {
        st = open_folder(out, dev, path, learn, err);
    }
    if (!st) st = settle(*out, err);
    if (st) {
        mx_qnet_close(*out);
        *out = NULL;
    }
    return st;
}

/* ---- the pass -------------------------------------------------------------------------------- */

size_t mx_qnet_scratch(const mx_qnet *q, int64_t rows, bool learn)
{
    size_t sum = mx_stream_tensor_bytes(MX_F32, rows, q->c.actions) + mx_stream_tensor_bytes(MX_I32, rows, 1);
    for (int i = 0; i < q->n; i++) {
        size_t part = mx_stream_tensor_bytes(MX_F32, rows, q->layer[i].rows), all;
        if (part > SIZE_MAX / 4 || !mx_mul_size(part, learn ? 4 : 2, &all) || !mx_add_size(sum, all, &sum)) return SIZE_MAX;
    }
    return sum;
}

void mx_qnet_run(const mx_qnet *q, mx_stream *s, mx_tensor x, mx_qnet_pass *p)
{
    int last = q->n - 1;
    for (int i = 0; i < q->n; i++) {
        const qnet_layer *l = &q->layer[i];
        mx_tensor z = mx_stream_tensor(s, MX_F32, x.rows, l->rows);
        p->x[i] = x;
        mx_product(s, z, x, l->w, l->b, MX_F32, false);
        if (i == last) {
            p->out = z;
            break;
        }
        p->z[i] = z;
        x = mx_stream_tensor(s, MX_F32, z.rows, z.cols);
        mx_activate(s, x, z, q->c.activation);
    }
    if (!q->c.dueling) return;
    mx_tensor va = p->out;
    p->out = mx_stream_tensor(s, MX_F32, va.rows, (int64_t)q->c.actions * q->c.atoms);
    mx_dueling(s, p->out, va, q->c.atoms);
}

mx_tensor mx_qnet_mean(const mx_qnet *q, mx_stream *s, const mx_qnet_pass *p)
{
    if (q->c.atoms == 1) return p->out;
    mx_tensor values = mx_stream_tensor(s, MX_F32, p->out.rows, q->c.actions);
    mx_atoms_value(s, values, p->out, q->c.low, q->c.high);
    return values;
}

/* In one op where the layers are narrow enough: nothing is kept for the way back. */
mx_tensor mx_qnet_values(const mx_qnet *q, mx_stream *s, mx_tensor x)
{
    mx_perceptron_shape whole = {.layers = q->n, .atoms = q->c.dueling ? q->c.atoms : 0, .act = q->c.activation};
    bool narrow = x.cols <= MX_PERCEPTRON_WIDTH;
    mx_qnet_pass p;
    for (int i = 0; i < q->n; i++) {
        whole.w[i] = q->layer[i].w;
        whole.b[i] = q->layer[i].b;
        narrow = narrow && q->layer[i].rows <= MX_PERCEPTRON_WIDTH;
    }
    if (narrow) {
        p.out = mx_stream_tensor(s, MX_F32, x.rows, (int64_t)q->c.actions * q->c.atoms);
        mx_perceptron(s, p.out, x, &whole);
    } else {
        mx_qnet_run(q, s, x, &p);
    }
    return mx_qnet_mean(q, s, &p);
}

mx_tensor mx_qnet_best(mx_stream *s, mx_tensor values, mx_tensor mask)
{
    mx_tensor best = mx_stream_tensor(s, MX_I32, values.rows, 1);
    mx_argmax(s, best, values, mask);
    return best;
}

/* Gradients of noisy copies go on to the mean and the spread. */
static void back_noise(mx_qnet *q, mx_stream *s)
{
    const float *noise = q->noise.base;
    for (int i = 1; i < q->n; i++) {
        qnet_layer *l = &q->layer[i];
        mx_tensor out = mx_tensor_of((void *)(noise + 16), MX_F32, 1, l->rows), in = mx_tensor_of((void *)(noise + 16 + l->rows), MX_F32, 1, l->cols);
        noise += (l->rows + l->cols + 31) / 16 * 16;
        mx_noisy_back(s, mx_params_view(&q->p, &q->p.grad, l->weight, 1), mx_params_view(&q->p, &q->p.grad, l->weight_spread, 1), l->dw, out, in);
        mx_noisy_back(s, mx_params_view(&q->p, &q->p.grad, l->bias, 1), mx_params_view(&q->p, &q->p.grad, l->bias_spread, 1), l->db,
                      mx_tensor_of(q->noise.base, MX_F32, 1, 1), out);
    }
}

void mx_qnet_back(mx_qnet *q, mx_stream *s, const mx_qnet_pass *p, mx_tensor dout)
{
    mx_tensor d = dout;
    if (q->c.dueling) {
        d = mx_stream_tensor(s, MX_F32, dout.rows, q->layer[q->n - 1].rows);
        mx_dueling_back(s, d, dout, q->c.atoms);
    }
    if (q->c.noisy && !s->error.code) q->dev->ops->clear(s, q->dcopy.base, q->dcopy.size);
    for (int i = q->n - 1; i >= 0; i--) {
        const qnet_layer *l = &q->layer[i];
        mx_tensor dx = {0};
        if (i) dx = mx_stream_tensor(s, MX_F32, d.rows, l->cols);
        mx_product_back(s, dx, l->dw, l->db, d, p->x[i], l->w, MX_F32, false);
        if (i) mx_activate_back(s, dx, dx, p->z[i - 1], q->c.activation);
        d = dx;
    }
    if (q->c.noisy) back_noise(q, s);
}

/* ---- noise ------------------------------------------------------------------------------------- */

/* sign(x) sqrt|x| of a normal x (Box and Muller 1958). */
static float squeezed(uint64_t seed, uint32_t layer, uint32_t i)
{
    double u = 1 - mx_uniform(seed, layer, i, 0, 0), w = mx_uniform(seed, layer, i, 1, 0);
    double x = sqrt(-2 * log(u)) * cos(6.283185307179586 * w);
    return (float)copysign(sqrt(fabs(x)), x);
}

void mx_qnet_noise(mx_qnet *q, mx_stream *s, uint64_t seed)
{
    if (!q->c.noisy || s->error.code) return;
    float *host = q->host_noise, *noise = q->noise.base;
    size_t at = 16;
    host[0] = 1;
    for (int i = 1; i < q->n; i++) {
        const qnet_layer *l = &q->layer[i];
        for (int64_t k = 0; k < l->rows + l->cols; k++) host[at + (size_t)k] = seed ? squeezed(seed, (uint32_t)i, (uint32_t)k) : 0;
        at += (size_t)(l->rows + l->cols + 31) / 16 * 16;
    }
    q->dev->ops->upload(s, noise, host, q->noise_count * sizeof *host);
    noise += 16;
    for (int i = 1; i < q->n; i++) {
        qnet_layer *l = &q->layer[i];
        mx_tensor out = mx_tensor_of(noise, MX_F32, 1, l->rows), in = mx_tensor_of(noise + l->rows, MX_F32, 1, l->cols);
        noise += (l->rows + l->cols + 31) / 16 * 16;
        mx_noisy(s, l->w, mx_params_view(&q->p, &q->p.value, l->weight, 1), mx_params_view(&q->p, &q->p.value, l->weight_spread, 1), out, in);
        mx_noisy(s, l->b, mx_params_view(&q->p, &q->p.value, l->bias, 1), mx_params_view(&q->p, &q->p.value, l->bias_spread, 1),
                 mx_tensor_of(q->noise.base, MX_F32, 1, 1), out);
    }
}

void mx_qnet_follow(mx_qnet *to, const mx_qnet *from, mx_stream *s, float tau)
{
    int64_t n = (int64_t)to->p.count;
    mx_tensor t = mx_tensor_of(to->p.value.base, MX_F32, 1, n), f = mx_tensor_of(from->p.value.base, MX_F32, 1, n);
    if (tau >= 1) {
        mx_scale(s, t, f, 1);
        return;
    }
    mx_tensor part = mx_stream_tensor(s, MX_F32, 1, n);
    mx_scale(s, part, f, tau);
    mx_scale(s, t, t, 1 - tau);
    mx_add(s, t, t, part);
}
