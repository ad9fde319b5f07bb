/* lm_pass.c - forward and backward over one packed batch. */
#include "models/lm_internal.h"

#include <stdlib.h>

#define HEAD_ROWS 512             /* rows whose logits exist at a time */

/* ---- the memory of a pass ---------------------------------------------------------- */

typedef struct kept {                 /* what a layer's backward pass reads              */
    mx_tensor in, h1, qkv, y, lse, mid, h2, up, act;
    mx_tensor lora;                   /* [N, slots*rank]: x A^T of every adapter, scaled */
} kept;

typedef struct work {
    mx_tensor ids, positions, begin, targets, rows;      /* rows: those whose loss counts */
    kept     *layer;                  /* [layers]; with recompute all but `in` are shared */
    mx_tensor x;                      /* the stream's end                                */
    mx_tensor branch;                 /* with dropout: what a branch adds                */
    mx_tensor last, normed, logits, loss, sum;           /* a part of the head           */
    mx_tensor dx, dh, dqkv, dy, dup, dact, dlora, dlast, dnormed;
} work;

/* A tensor of the stream's scratch, or (s NULL) what it would take. */
static mx_tensor room(mx_stream *s, size_t *sum, mx_dtype t, int64_t rows, int64_t cols)
{
    if (s) return mx_stream_tensor(s, t, rows, cols);
    size_t n = mx_stream_tensor_bytes(t, rows, cols);
    if (!mx_add_size(*sum, n, sum)) *sum = SIZE_MAX;
    return (mx_tensor){0};
}

static void keep_layer(const mx_lm *m, mx_stream *s, size_t *sum, kept *k, int64_t N)
{
    const mx_decoder_config *c = &m->config;
    int64_t q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim;
    k->h1 = room(s, sum, MX_F32, N, c->d_model);
    k->qkv = room(s, sum, MX_F32, N, q + 2 * g);
    k->y = room(s, sum, MX_F32, N, q);
    k->lse = room(s, sum, MX_F32, N, c->heads);
    k->mid = room(s, sum, MX_F32, N, c->d_model);
    k->h2 = room(s, sum, MX_F32, N, c->d_model);
    k->up = room(s, sum, MX_F32, N, (c->gated ? 2 : 1) * (int64_t)c->d_ff);
    k->act = room(s, sum, MX_F32, N, c->d_ff);
    if (m->lora_slots) k->lora = room(s, sum, MX_F32, N, (int64_t)m->lora_slots * m->opt.lora.rank);
}

static void lay_out(const mx_lm *m, mx_stream *s, size_t *sum, work *w, int64_t N, int64_t counted, bool learn)
{
    const mx_decoder_config *c = &m->config;
    int64_t C = c->d_model, q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim;
    int64_t part = counted < HEAD_ROWS ? counted : HEAD_ROWS, up = (c->gated ? 2 : 1) * (int64_t)c->d_ff;
    bool every = learn && !m->opt.recompute;
    kept shared = {0}, dry = {0};
    if (!every) keep_layer(m, s, sum, &shared, N);
    for (int32_t l = 0; l < c->layers; l++) {
        kept *k = w->layer ? &w->layer[l] : &dry;
        if (every) keep_layer(m, s, sum, k, N);
        else *k = shared;
        if (learn || l == 0) k->in = room(s, sum, MX_F32, N, C);
        else k->in = w->layer ? w->layer[0].in : dry.in;      /* nothing is read again: one stream */
    }
    w->x = learn ? room(s, sum, MX_F32, N, C) : w->layer ? w->layer[0].in : dry.in;
    if (m->opt.dropout > 0 || m->opt.lora.dropout > 0) w->branch = room(s, sum, MX_F32, N, C > c->d_ff ? C : c->d_ff);
    w->last = room(s, sum, MX_F32, part, C);
    w->normed = room(s, sum, MX_F32, part, C);
    w->logits = room(s, sum, MX_F32, part, c->vocab);
    w->loss = room(s, sum, MX_F32, counted, 1);
    w->sum = room(s, sum, MX_I32, 1, 2);
    if (!learn) return;
    w->dx = room(s, sum, MX_F32, N, C);
    w->dh = room(s, sum, MX_F32, N, C);
    w->dqkv = room(s, sum, MX_F32, N, q + 2 * g);
    w->dy = room(s, sum, MX_F32, N, q);
    w->dup = room(s, sum, MX_F32, N, up);
    w->dact = room(s, sum, MX_F32, N, c->d_ff);
    if (m->lora_slots) w->dlora = room(s, sum, MX_F32, N, m->opt.lora.rank);
    w->dlast = room(s, sum, MX_F32, part, C);
    w->dnormed = room(s, sum, MX_F32, part, C);
}

size_t lm_scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn)
{
    const mx_lm *m = network;
    size_t sum = 0;
    work w = {0};
    (void)longest;                    /* attention keeps nothing that grows with a sequence */
    lay_out(m, NULL, &sum, &w, rows, rows, learn);
    for (int i = 0; i < 4; i++) room(NULL, &sum, MX_I32, rows, 1);
    room(NULL, &sum, MX_I32, (int64_t)spans + 1, 1);
    return sum == SIZE_MAX ? 0 : sum;
}

/* ---- pieces ----------------------------------------------------------------------------- */

typedef struct pass {
    const mx_lm *m;
    mx_stream   *s;
    work         w;
    uint64_t     seed;
    bool         learn;
    int32_t      layer, longest;     /* longest: rows of a sequence */
} pass;

/* Where randomness is drawn in a layer, so that recomputing draws the same. */
enum { DROP_EMBED, DROP_ATTENTION, DROP_MLP, DROP_LORA, DROP_PLACES = 16 };

static uint64_t seed_of(const pass *p, int place)
{
    return p->seed + (uint64_t)(p->layer * DROP_PLACES + place) * 0xd1342543de82ef95u;
}

static void norm(const pass *p, mx_tensor y, mx_tensor x, const lm_gain *g)
{
    float eps = p->m->config.norm_eps;
    if (p->m->config.rms_norm) mx_rms_norm(p->s, y, x, g->g, eps);
    else mx_norm(p->s, y, x, g->g, g->b, eps);
}

static void norm_back(const pass *p, mx_tensor dx, mx_tensor dy, mx_tensor x, const lm_gain *g, bool add)
{
    float eps = p->m->config.norm_eps;
    if (p->m->config.rms_norm) mx_rms_norm_back(p->s, dx, g->dg, dy, x, g->g, eps, add);
    else mx_norm_back(p->s, dx, g->dg, g->db, dy, x, g->g, eps, add);
}

static mx_tensor slot(const pass *p, mx_tensor lora, int i)
{
    int32_t r = p->m->opt.lora.rank;
    return mx_tensor_cols(lora, (int64_t)i * r, r);
}

/* What an adapter reads: x, or x with some of it dropped. */
static mx_tensor lora_input(const pass *p, const lm_lora *a, mx_tensor x)
{
    float rate = p->m->opt.lora.dropout;
    if (rate <= 0 || !p->learn) return x;
    mx_tensor t = mx_tensor_of(p->w.branch.data, MX_F32, x.rows, x.cols);
    mx_dropout(p->s, t, x, rate, seed_of(p, DROP_LORA + a->slot));
    return t;
}

/* y (+)= x w^T + b, and what the adapters add. */
static void product(const pass *p, mx_tensor y, mx_tensor x, const lm_product *w, mx_tensor lora, bool add)
{
    const mx_lm *m = p->m;
    mx_product(p->s, y, x, w->w, w->b, m->opt.compute, add);
    for (int i = 0; i < w->n_lora; i++) {
        const lm_lora *a = &w->lora[i];
        mx_tensor t = slot(p, lora, a->slot), none = {0};
        mx_product(p->s, t, lora_input(p, a, x), a->a, none, m->opt.compute, false);
        mx_scale(p->s, t, t, m->opt.lora.alpha / (float)m->opt.lora.rank);
        mx_product(p->s, mx_tensor_cols(y, a->first, a->rows), t, a->b, none, m->opt.compute, true);
    }
}

/* dx = gradient of product() by x; weights' gradients +=. */
static void product_back(const pass *p, mx_tensor dx, mx_tensor dy, mx_tensor x, const lm_product *w, mx_tensor lora)
{
    const mx_lm *m = p->m;
    mx_product_back(p->s, dx, w->dw, w->db, dy, x, w->w, m->opt.compute, false);
    for (int i = 0; i < w->n_lora; i++) {
        const lm_lora *a = &w->lora[i];
        mx_tensor none = {0}, part = mx_tensor_cols(dy, a->first, a->rows), dt = p->w.dlora;
        mx_product_back(p->s, dt, a->db, none, part, slot(p, lora, a->slot), a->b, m->opt.compute, false);
        mx_scale(p->s, dt, dt, m->opt.lora.alpha / (float)m->opt.lora.rank);
        if (m->opt.lora.dropout <= 0) {
            mx_product_back(p->s, dx, a->da, none, dt, x, a->a, m->opt.compute, true);
            continue;
        }
        mx_tensor seen = lora_input(p, a, x);                  /* the same mask as before */
        mx_product_back(p->s, none, a->da, none, dt, seen, a->a, m->opt.compute, false);
        mx_product_back(p->s, seen, none, none, dt, x, a->a, m->opt.compute, false);
        mx_dropout(p->s, seen, seen, m->opt.lora.dropout, seed_of(p, DROP_LORA + a->slot));
        mx_add(p->s, dx, dx, seen);
    }
}

/* sum += x, and y is its norm. */
static void add_norm(const pass *p, mx_tensor y, mx_tensor sum, mx_tensor x, const lm_gain *g)
{
    const mx_decoder_config *c = &p->m->config;
    mx_add_norm(p->s, y, sum, sum, x, g->g, c->rms_norm ? (mx_tensor){0} : g->b, c->norm_eps, c->rms_norm);
}

/* What a branch adds to the stream: a product of h. */
static void branch(const pass *p, mx_tensor out, mx_tensor h, const lm_product *w, mx_tensor lora, int place)
{
    product(p, out, h, w, lora, false);
    if (p->learn && p->m->opt.dropout > 0) mx_dropout(p->s, out, out, p->m->opt.dropout, seed_of(p, place));
}

/* Of a branch: dh from dout, which is also the gradient of what it was added to. */
static void branch_back(const pass *p, mx_tensor dh, mx_tensor dout, mx_tensor h, const lm_product *w, mx_tensor lora, int place)
{
    if (p->m->opt.dropout <= 0) {
        product_back(p, dh, dout, h, w, lora);
        return;
    }
    mx_tensor t = mx_tensor_of(p->w.branch.data, MX_F32, dout.rows, dout.cols);
    mx_dropout(p->s, t, dout, p->m->opt.dropout, seed_of(p, place));
    product_back(p, dh, t, h, w, lora);
}

/* ---- layers ----------------------------------------------------------------------------------- */

static mx_attention_shape attention_of(const pass *p)
{
    const mx_decoder_config *c = &p->m->config;
    return (mx_attention_shape){c->heads, c->kv_heads, c->attention_scale, true, c->window, p->m->opt.compute, p->longest, true};
}

/* From k->h1, the norm of the input.  out.data NULL: only what the backward pass reads is computed.  next: the layer
 * that follows, whose h1 is made with its input. */
static void block(const pass *p, const lm_layer *w, const kept *k, mx_tensor out, const lm_layer *next, mx_tensor next_h1)
{
    const mx_decoder_config *c = &p->m->config;
    int64_t q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim;
    product(p, k->qkv, k->h1, &w->qkv, k->lora, false);
    if (!c->learned_positions)
        mx_rope(p->s, mx_tensor_cols(k->qkv, 0, q + g), p->w.positions, p->m->rope_freq, c->rope_magnitude, c->heads + c->kv_heads, false);
    mx_attention(p->s, k->y, k->lse, mx_tensor_cols(k->qkv, 0, q), mx_tensor_cols(k->qkv, q, g), mx_tensor_cols(k->qkv, q + g, g),
                 p->w.begin, attention_of(p));
    branch(p, k->mid, k->y, &w->out, k->lora, DROP_ATTENTION);
    add_norm(p, k->h2, k->mid, k->in, &w->norm2);
    product(p, k->up, k->h2, &w->up, k->lora, false);
    if (c->gated) mx_gated(p->s, k->act, k->up, c->act);
    else mx_activate(p->s, k->act, k->up, c->act);
    if (!out.data && !w->down.n_lora) return;
    if (!out.data) out = p->w.x;
    branch(p, out, k->act, &w->down, k->lora, DROP_MLP);
    if (next) add_norm(p, next_h1, out, k->mid, &next->norm1);
    else mx_add(p->s, out, out, k->mid);
}

/* dx: of the layer's output before, of its input after. */
static void block_back(const pass *p, const lm_layer *w, const kept *k)
{
    const mx_decoder_config *c = &p->m->config;
    const work *b = &p->w;
    int64_t q = (int64_t)c->heads * c->head_dim, g = (int64_t)c->kv_heads * c->head_dim;
    mx_tensor dq = mx_tensor_cols(b->dqkv, 0, q), dk = mx_tensor_cols(b->dqkv, q, g), dv = mx_tensor_cols(b->dqkv, q + g, g);

    branch_back(p, b->dact, b->dx, k->act, &w->down, k->lora, DROP_MLP);
    if (c->gated) mx_gated_back(p->s, b->dup, b->dact, k->up, c->act);
    else mx_activate_back(p->s, b->dup, b->dact, k->up, c->act);
    product_back(p, b->dh, b->dup, k->h2, &w->up, k->lora);
    norm_back(p, b->dx, b->dh, k->mid, &w->norm2, true);

    branch_back(p, b->dy, b->dx, k->y, &w->out, k->lora, DROP_ATTENTION);
    mx_attention_back(p->s, dq, dk, dv, b->dy, mx_tensor_cols(k->qkv, 0, q), mx_tensor_cols(k->qkv, q, g),
                      mx_tensor_cols(k->qkv, q + g, g), k->y, k->lse, b->begin, attention_of(p));
    if (!c->learned_positions)
        mx_rope_back(p->s, mx_tensor_cols(b->dqkv, 0, q + g), b->positions, p->m->rope_freq, c->rope_magnitude, c->heads + c->kv_heads, false);
    product_back(p, b->dh, b->dqkv, k->h1, &w->qkv, k->lora);
    norm_back(p, b->dx, b->dh, k->in, &w->norm1, true);
}

/* ---- the head ------------------------------------------------------------------------------------ */

/* Loss of the counted rows, and when learning their gradient into dx and the head. */
static void head(const pass *p, int64_t counted)
{
    const work *w = &p->w;
    const mx_lm *m = p->m;
    mx_tensor none = {0};
    if (p->learn) p->s->dev->ops->clear(p->s, w->dx.data, (size_t)(w->dx.rows * w->dx.cols) * sizeof(float));
    for (int64_t at = 0; at < counted; at += HEAD_ROWS) {
        int64_t n = counted - at < HEAD_ROWS ? counted - at : HEAD_ROWS;
        mx_tensor rows = mx_tensor_rows(w->rows, at, n), targets = mx_tensor_rows(w->targets, at, n);
        mx_tensor last = mx_tensor_rows(w->last, 0, n), normed = mx_tensor_rows(w->normed, 0, n), logits = mx_tensor_rows(w->logits, 0, n);
        mx_embed(p->s, last, w->x, rows, false);               /* pick rows */
        norm(p, normed, last, &m->final);
        mx_product(p->s, logits, normed, m->head.w, none, m->opt.compute, false);
        mx_cross_entropy(p->s, mx_tensor_rows(w->loss, at, n), logits, targets, 1, p->learn);
        if (!p->learn) continue;
        mx_tensor dnormed = mx_tensor_rows(w->dnormed, 0, n), dlast = mx_tensor_rows(w->dlast, 0, n);
        mx_product_back(p->s, dnormed, m->head.dw, none, logits, normed, m->head.w, m->opt.compute, false);
        norm_back(p, dlast, dnormed, last, &m->final, false);
        mx_embed_back(p->s, w->dx, dlast, rows);               /* put back */
    }
}

static void embed(const pass *p, mx_tensor x)
{
    const mx_lm *m = p->m;
    mx_embed(p->s, x, m->tokens.w, p->w.ids, false);
    if (m->config.learned_positions) mx_embed(p->s, x, m->positions.w, p->w.positions, true);
    if (p->learn && m->opt.dropout > 0) mx_dropout(p->s, x, x, m->opt.dropout, p->seed);
}

static void embed_back(const pass *p)
{
    const mx_lm *m = p->m;
    if (!m->tokens.dw.data) return;
    if (m->opt.dropout > 0) mx_dropout(p->s, p->w.dx, p->w.dx, m->opt.dropout, p->seed);
    mx_embed_back(p->s, m->tokens.dw, p->w.dx, p->w.ids);
    if (m->config.learned_positions) mx_embed_back(p->s, m->positions.dw, p->w.dx, p->w.positions);
}

/* ---- a pass ---------------------------------------------------------------------------------------- */

/* Rows whose loss counts and their targets, one list behind the other. */
static int32_t *counted_rows(const mx_batch *b)
{
    int32_t *list = malloc(2 * (size_t)(b->counted + 1) * sizeof *list), n = 0;
    for (int32_t r = 0; list && r < b->rows; r++) {
        if (b->targets[r] < 0) continue;
        list[n] = r;
        list[b->counted + n++] = b->targets[r];
    }
    return list;
}

static void forward(pass *p)
{
    const mx_lm *m = p->m;
    p->layer = 0;
    const kept *k = p->w.layer;
    int32_t last = m->config.layers - 1;
    embed(p, k[0].in);
    norm(p, k[0].h1, k[0].in, &m->layer[0].norm1);
    for (int32_t l = 0; l < last; l++, p->layer = l) block(p, &m->layer[l], &k[l], k[l + 1].in, &m->layer[l + 1], k[l + 1].h1);
    block(p, &m->layer[last], &k[last], p->w.x, NULL, (mx_tensor){0});
}

/* A layer's gradients are final when its backward pass is through. */
static void tell_ready(const pass *p, const mx_pass *q, int32_t l)
{
    if (!q->ready || p->m->lora_slots) return;
    const mx_params *b = &p->m->base;
    size_t first = ((const float *)p->m->layer[l].norm1.dg.data) - (const float *)b->grad.base;
    size_t end = l + 1 < p->m->config.layers ? (size_t)((const float *)p->m->layer[l + 1].norm1.dg.data - (const float *)b->grad.base)
                                             : (size_t)((const float *)p->m->final.dg.data - (const float *)b->grad.base);
    if (p->s->error.code == MX_OK) q->ready(q->ctx, first, end - first);
}

static void tell_rest(const pass *p, const mx_pass *q)
{
    const mx_lm *m = p->m;
    if (!q->ready) return;
    if (m->lora_slots) {
        q->ready(q->ctx, 0, m->adapter.count);
        return;
    }
    size_t first = (size_t)((const float *)m->layer[0].norm1.dg.data - (const float *)m->base.grad.base);
    size_t end = (size_t)((const float *)m->final.dg.data - (const float *)m->base.grad.base);
    q->ready(q->ctx, end, m->base.count - end);
    if (first) q->ready(q->ctx, 0, first);
}

static void backward(pass *p, const mx_pass *q)
{
    const mx_lm *m = p->m;
    for (int32_t l = m->config.layers - 1; l >= 0; l--) {
        p->layer = l;
        if (m->opt.recompute) {
            norm(p, p->w.layer[l].h1, p->w.layer[l].in, &m->layer[l].norm1);
            block(p, &m->layer[l], &p->w.layer[l], (mx_tensor){0}, NULL, (mx_tensor){0});
        }
        block_back(p, &m->layer[l], &p->w.layer[l]);
        tell_ready(p, q, l);
    }
    p->layer = 0;
    embed_back(p);
    tell_rest(p, q);
}

mx_status lm_run(void *network, mx_stream *s, mx_pass *q, mx_error *err)
{
    const mx_lm *m = network;
    const mx_batch *b = q->batch;
    mx_status st = MX_OK;
    double loss = 0;
    pass p = {.m = m, .s = s, .seed = q->seed, .learn = q->learn, .longest = b->longest};
    int32_t *list = counted_rows(b);
    p.w.layer = calloc((size_t)m->config.layers, sizeof *p.w.layer);
    if (!list || !p.w.layer) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "the lists of a pass");
        goto done;
    }
    if (b->longest > m->config.max_positions && m->config.learned_positions) {
        st = mx_fail(err, MX_ERR_ARG, "a sequence has %d tokens; the model has %d positions", b->longest, m->config.max_positions);
        goto done;
    }
    p.w.ids = mx_stream_upload(s, MX_I32, b->rows, 1, b->ids);
    p.w.positions = mx_stream_upload(s, MX_I32, b->rows, 1, b->positions);
    p.w.begin = mx_stream_upload(s, MX_I32, (int64_t)b->spans + 1, 1, b->begin);
    p.w.rows = mx_stream_upload(s, MX_I32, b->counted, 1, list);
    p.w.targets = mx_stream_upload(s, MX_I32, b->counted, 1, list + b->counted);
    lay_out(m, s, NULL, &p.w, b->rows, b->counted, q->learn);
    forward(&p);
    head(&p, b->counted);
    if (b->counted) mx_sum(s, p.w.sum, p.w.loss, false);
    if (b->counted) s->dev->ops->download(s, &loss, p.w.sum.data, sizeof loss);
    if (q->learn) backward(&p, q);
    st = mx_stream_sync(s, err);
    q->loss = b->counted ? loss : 0;
    q->counted = b->counted;
    q->extra = 0;
done:
    free(p.w.layer);
    free(list);
    return st;
}
