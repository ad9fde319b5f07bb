/* bert_pass.c - an encoder's forward and backward pass over one packed batch. */
#include "models/bert_internal.h"

#include <math.h>
#include <stdlib.h>

#define HEAD_ROWS 512             /* rows whose logits exist at a time */

/* ---- the memory of a pass ---------------------------------------------------------- */

/* A tensor of the stream's scratch, or (s NULL) what it would take. */
static mx_tensor room(mx_stream *s, size_t *sum, mx_dtype t, int64_t rows, int64_t cols)
{
    if (s) return mx_stream_tensor(s, t, rows, cols);
    size_t n = mx_stream_tensor_bytes(t, rows, cols);
    if (!mx_add_size(*sum, n, sum)) *sum = SIZE_MAX;
    return (mx_tensor){0};
}

static void keep_layer(const mx_encoder_config *c, mx_stream *s, size_t *sum, bert_kept *k, int64_t N)
{
    k->qkv = room(s, sum, MX_F32, N, 3 * (int64_t)c->d_model);
    k->y = room(s, sum, MX_F32, N, c->d_model);
    k->lse = room(s, sum, MX_F32, N, c->heads);
    k->sum1 = room(s, sum, MX_F32, N, c->d_model);
    k->mid = room(s, sum, MX_F32, N, c->d_model);
    k->up = room(s, sum, MX_F32, N, c->d_ff);
    k->act = room(s, sum, MX_F32, N, c->d_ff);
    k->sum2 = room(s, sum, MX_F32, N, c->d_model);
}

static void lay_out_head(const mx_bert *m, mx_stream *s, size_t *sum, bert_work *w, int64_t counted, bool learn)
{
    int64_t C = m->config.d_model, part = counted < HEAD_ROWS ? counted : HEAD_ROWS;
    bool classify = m->opt.task == MX_BERT_CLASSIFY;
    w->last = room(s, sum, MX_F32, part, C);
    w->pre = room(s, sum, MX_F32, part, C);
    w->hidden = room(s, sum, MX_F32, part, C);
    w->normed = room(s, sum, MX_F32, part, C);
    w->logits = room(s, sum, MX_F32, part, classify ? m->opt.classes : m->config.vocab);
    w->loss = room(s, sum, MX_F32, counted, 1);
    w->sum = room(s, sum, MX_I32, 1, 2);
    if (classify) {
        w->best = room(s, sum, MX_I32, counted, 1);
        w->best_logprob = room(s, sum, MX_F32, counted, 1);
    }
    if (!learn) return;
    w->dlast = room(s, sum, MX_F32, part, C);
    w->dpre = room(s, sum, MX_F32, part, C);
    w->dnormed = room(s, sum, MX_F32, part, C);
}

void bert_lay_out(const mx_bert *m, mx_stream *s, size_t *sum, bert_work *w, int64_t N, int64_t counted, bool learn)
{
    const mx_encoder_config *c = &m->config;
    int64_t C = c->d_model;
    bool every = learn && !m->opt.recompute;
    bert_kept shared = {0}, dry = {0};
    w->e = room(s, sum, MX_F32, N, C);
    if (!every) keep_layer(c, s, sum, &shared, N);
    for (int32_t l = 0; l < c->layers; l++) {
        bert_kept *k = w->layer ? &w->layer[l] : &dry;
        if (every) keep_layer(c, s, sum, k, N);
        else *k = shared;
        if (learn || l == 0) k->in = room(s, sum, MX_F32, N, C);
        else k->in = w->layer ? w->layer[0].in : dry.in;      /* nothing is read again: one stream */
    }
    w->x = learn ? room(s, sum, MX_F32, N, C) : w->layer ? w->layer[0].in : dry.in;
    lay_out_head(m, s, sum, w, counted, learn);
    if (!learn) return;
    if (m->opt.dropout > 0) w->branch = room(s, sum, MX_F32, N, C);
    w->dx = room(s, sum, MX_F32, N, C);
    w->dh = room(s, sum, MX_F32, N, C);
    w->dqkv = room(s, sum, MX_F32, N, 3 * C);
    w->dy = room(s, sum, MX_F32, N, C);
    w->dup = room(s, sum, MX_F32, N, c->d_ff);
    w->dact = room(s, sum, MX_F32, N, c->d_ff);
}

size_t bert_scratch(const void *network, int32_t rows, int32_t spans, int32_t longest, bool learn)
{
    const mx_bert *m = network;
    size_t sum = 0;
    bert_work w = {0};
    (void)longest;                    /* attention keeps nothing that grows with a sequence */
    bert_lay_out(m, NULL, &sum, &w, rows, m->opt.task == MX_BERT_CLASSIFY ? spans : rows, learn);
    for (int i = 0; i < 5; i++) room(NULL, &sum, MX_I32, rows, 1);
    room(NULL, &sum, MX_I32, (int64_t)spans + 1, 1);
    return sum == SIZE_MAX ? 0 : sum;
}

/* ---- what is asked ------------------------------------------------------------------------ */

/* Rows to judge and their right answers; for masked words also what is shown. */
typedef struct question {
    int32_t *ids, *zeros;             /* [rows]                                          */
    int32_t *rows, *targets, *best;   /* [counted]                                       */
    int32_t  counted;
} question;

/* SplitMix64 (Steele, Lea, Flood 2014). */
static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static double uniform(uint64_t x)
{
    return (double)(x >> 11) * 0x1p-53;
}

static void ask_words(const mx_bert *m, const mx_batch *b, uint64_t seed, question *q)
{
    for (int32_t r = 0; r < b->rows; r++) {
        uint64_t draw = mix(seed + (uint64_t)r * 0xd1342543de82ef95u), how = mix(draw);
        int32_t id = b->ids[r];
        if (mx_tokenizer_is_special(m->opt.tokenizer, id) || !(uniform(draw) < (double)m->opt.mask_rate)) continue;
        q->rows[q->counted] = r;
        q->targets[q->counted++] = id;
        double u = uniform(how);
        if (u < 0.8) q->ids[r] = m->mask;
        else if (u < 0.9) q->ids[r] = (int32_t)(mix(how) % (uint64_t)m->n_ids);
    }
}

static void ask_classes(const mx_bert *m, const mx_batch *b, question *q)
{
    for (int32_t i = 0; i < b->spans; i++) {
        if (b->label[i] < 0 || b->label[i] >= m->opt.classes) continue;
        q->rows[q->counted] = b->begin[i];
        q->targets[q->counted++] = b->label[i];
    }
}

static void question_close(question *q)
{
    free(q->ids);
    *q = (question){0};
}

static bool question_open(question *q, const mx_bert *m, const mx_batch *b, uint64_t seed)
{
    size_t n = (size_t)b->rows + 1;
    *q = (question){.ids = calloc(5 * n, sizeof(int32_t))};
    if (!q->ids) return false;
    q->zeros = q->ids + n;
    q->rows = q->zeros + n;
    q->targets = q->rows + n;
    q->best = q->targets + n;
    memcpy(q->ids, b->ids, (size_t)b->rows * sizeof *q->ids);
    if (m->opt.task == MX_BERT_CLASSIFY) ask_classes(m, b, q);
    else ask_words(m, b, seed, q);
    return true;
}

/* ---- pieces ----------------------------------------------------------------------------- */

/* Where randomness is drawn in a layer, so that recomputing draws the same. */
enum { DROP_EMBED, DROP_ATTENTION, DROP_MLP, DROP_HEAD, DROP_PLACES = 16 };

static uint64_t seed_of(const bert_pass *p, int place)
{
    return p->seed + (uint64_t)(p->layer * DROP_PLACES + place) * 0xd1342543de82ef95u;
}

static void norm(const bert_pass *p, mx_tensor y, mx_tensor x, const bert_gain *g)
{
    mx_norm(p->s, y, x, g->g, g->b, p->m->config.norm_eps);
}

static void norm_back(const bert_pass *p, mx_tensor dx, mx_tensor dy, mx_tensor x, const bert_gain *g)
{
    mx_norm_back(p->s, dx, g->dg, g->db, dy, x, g->g, p->m->config.norm_eps, false);
}

static void product(const bert_pass *p, mx_tensor y, mx_tensor x, const bert_product *w)
{
    mx_product(p->s, y, x, w->w, w->b, p->m->opt.compute, false);
}

static void product_back(const bert_pass *p, mx_tensor dx, mx_tensor dy, mx_tensor x, const bert_product *w, bool add)
{
    mx_product_back(p->s, dx, w->dw, w->db, dy, x, w->w, p->m->opt.compute, add);
}

/* sum = x + dropped(h w^T + b), and y is its norm when y is wanted */
static void add_branch(const bert_pass *p, mx_tensor y, mx_tensor sum, mx_tensor x, mx_tensor h, const bert_product *w, const bert_gain *g, int place)
{
    product(p, sum, h, w);
    if (p->dropout > 0) mx_dropout(p->s, sum, sum, p->dropout, seed_of(p, place));
    if (y.data) mx_add_norm(p->s, y, sum, sum, x, g->g, g->b, p->m->config.norm_eps, false);
    else mx_add(p->s, sum, sum, x);
}

/* The gradient of what the branch was before it was dropped. */
static mx_tensor undrop(const bert_pass *p, mx_tensor d, int place)
{
    if (p->dropout <= 0) return d;
    mx_dropout(p->s, p->w.branch, d, p->dropout, seed_of(p, place));
    return p->w.branch;
}

/* ---- layers ----------------------------------------------------------------------------------- */

static mx_attention_shape attention_of(const bert_pass *p)
{
    const mx_encoder_config *c = &p->m->config;
    return (mx_attention_shape){.heads = c->heads, .kv_heads = c->heads, .scale = (float)(1 / sqrt((double)c->head_dim)), .as = p->m->opt.compute,
                                .longest = p->longest, .learns = p->longest > 0};
}

/* out.data NULL: only what the backward pass reads is computed. */
static void block(const bert_pass *p, const bert_layer *w, const bert_kept *k, mx_tensor out)
{
    const mx_encoder_config *c = &p->m->config;
    int64_t C = c->d_model;
    product(p, k->qkv, k->in, &w->qkv);
    mx_attention(p->s, k->y, k->lse, mx_tensor_cols(k->qkv, 0, C), mx_tensor_cols(k->qkv, C, C), mx_tensor_cols(k->qkv, 2 * C, C),
                 p->w.begin, attention_of(p));
    add_branch(p, k->mid, k->sum1, k->in, k->y, &w->out, &w->norm1, DROP_ATTENTION);
    product(p, k->up, k->mid, &w->up);
    mx_activate(p->s, k->act, k->up, c->act);
    add_branch(p, out, k->sum2, k->mid, k->act, &w->down, &w->norm2, DROP_MLP);
}

/* dx: of the layer's output before, of its input after. */
static void block_back(const bert_pass *p, const bert_layer *w, const bert_kept *k)
{
    const mx_encoder_config *c = &p->m->config;
    const bert_work *b = &p->w;
    int64_t C = c->d_model;
    norm_back(p, b->dh, b->dx, k->sum2, &w->norm2);
    product_back(p, b->dact, undrop(p, b->dh, DROP_MLP), k->act, &w->down, false);
    mx_activate_back(p->s, b->dup, b->dact, k->up, c->act);
    product_back(p, b->dh, b->dup, k->mid, &w->up, true);
    norm_back(p, b->dx, b->dh, k->sum1, &w->norm1);
    product_back(p, b->dy, undrop(p, b->dx, DROP_ATTENTION), k->y, &w->out, false);
    mx_attention_back(p->s, mx_tensor_cols(b->dqkv, 0, C), mx_tensor_cols(b->dqkv, C, C), mx_tensor_cols(b->dqkv, 2 * C, C), b->dy,
                      mx_tensor_cols(k->qkv, 0, C), mx_tensor_cols(k->qkv, C, C), mx_tensor_cols(k->qkv, 2 * C, C), k->y, k->lse, b->begin,
                      attention_of(p));
    product_back(p, b->dx, b->dqkv, k->in, &w->qkv, true);
}

/* ---- heads ---------------------------------------------------------------------------------------- */

bert_part bert_part_of(const bert_pass *p, int64_t at, int64_t n)
{
    const bert_work *w = &p->w;
    bert_part t = {.rows = mx_tensor_rows(w->rows, at, n), .targets = mx_tensor_rows(w->targets, at, n), .loss = mx_tensor_rows(w->loss, at, n),
              .last = mx_tensor_rows(w->last, 0, n), .pre = mx_tensor_rows(w->pre, 0, n), .hidden = mx_tensor_rows(w->hidden, 0, n),
              .normed = mx_tensor_rows(w->normed, 0, n), .logits = mx_tensor_rows(w->logits, 0, n),
              .drop = seed_of(p, DROP_HEAD) + (uint64_t)at};
    if (p->m->opt.task == MX_BERT_CLASSIFY) {
        t.best = mx_tensor_rows(w->best, at, n);
        t.best_logprob = mx_tensor_rows(w->best_logprob, at, n);
    }
    if (p->learn) {
        t.dlast = mx_tensor_rows(w->dlast, 0, n);
        t.dpre = mx_tensor_rows(w->dpre, 0, n);
        t.dnormed = mx_tensor_rows(w->dnormed, 0, n);
    }
    return t;
}

void bert_head_forward(const bert_pass *p, const bert_part *t)
{
    const mx_bert *m = p->m;
    mx_embed(p->s, t->last, p->w.x, t->rows, false);           /* pick rows */
    product(p, t->pre, t->last, &m->transform);
    if (m->opt.task == MX_BERT_CLASSIFY) {
        mx_activate(p->s, t->hidden, t->pre, MX_ACT_TANH);
        mx_dropout(p->s, t->normed, t->hidden, p->dropout, t->drop);
    } else {
        mx_activate(p->s, t->hidden, t->pre, m->config.act);
        norm(p, t->normed, t->hidden, &m->head_norm);
    }
    product(p, t->logits, t->normed, &m->head);
}

void bert_head_backward(const bert_pass *p, const bert_part *t)
{
    const mx_bert *m = p->m;
    product_back(p, t->dnormed, t->logits, t->normed, &m->head, false);
    if (m->opt.task == MX_BERT_CLASSIFY) {
        mx_dropout(p->s, t->dnormed, t->dnormed, p->dropout, t->drop);
        mx_activate_back(p->s, t->dpre, t->dnormed, t->pre, MX_ACT_TANH);
    } else {
        norm_back(p, t->dlast, t->dnormed, t->hidden, &m->head_norm);
        mx_activate_back(p->s, t->dpre, t->dlast, t->pre, m->config.act);
    }
    product_back(p, t->dlast, t->dpre, t->last, &m->transform, false);
    mx_embed_back(p->s, p->w.dx, t->dlast, t->rows);           /* put back */
}

static void heads(const bert_pass *p, int64_t counted)
{
    const bert_work *w = &p->w;
    mx_tensor none = {0};
    if (p->learn) p->s->dev->ops->clear(p->s, w->dx.data, (size_t)(w->dx.rows * w->dx.cols) * sizeof(float));
    for (int64_t at = 0; at < counted; at += HEAD_ROWS) {
        bert_part t = bert_part_of(p, at, counted - at < HEAD_ROWS ? counted - at : HEAD_ROWS);
        bert_head_forward(p, &t);
        if (p->m->opt.task == MX_BERT_CLASSIFY) mx_logprobs(p->s, none, none, t.best, t.best_logprob, t.logits);
        mx_cross_entropy(p->s, t.loss, t.logits, t.targets, 1, p->learn);
        if (p->learn) bert_head_backward(p, &t);
    }
}

/* ---- a pass ---------------------------------------------------------------------------------------- */

void bert_layers(bert_pass *p)
{
    const mx_bert *m = p->m;
    bert_work *w = &p->w;
    for (int32_t l = 0; l < m->config.layers; l++) {
        p->layer = l;
        block(p, &m->layer[l], &w->layer[l], l + 1 < m->config.layers ? w->layer[l + 1].in : w->x);
    }
    p->layer = 0;
}

static void forward(bert_pass *p)
{
    const mx_bert *m = p->m;
    bert_work *w = &p->w;
    mx_tensor x = w->layer[0].in;
    p->layer = 0;
    mx_embed(p->s, w->e, m->tokens.w, w->ids, false);
    mx_embed(p->s, w->e, m->positions.w, w->positions, true);
    mx_embed(p->s, w->e, m->types.w, w->types, true);
    norm(p, x, w->e, &m->norm);
    if (p->dropout > 0) mx_dropout(p->s, x, x, p->dropout, seed_of(p, DROP_EMBED));
    bert_layers(p);
}

static void tell(const bert_pass *p, const mx_pass *q, size_t first, size_t end)
{
    if (q->ready && first < end && p->s->error.code == MX_OK) q->ready(q->ctx, first, end - first);
}

void bert_layers_back(bert_pass *p, const mx_pass *q)
{
    const mx_bert *m = p->m;
    const bert_work *w = &p->w;
    for (int32_t l = m->config.layers - 1; l >= 0; l--) {
        p->layer = l;
        if (m->opt.recompute) block(p, &m->layer[l], &w->layer[l], (mx_tensor){0});
        block_back(p, &m->layer[l], &w->layer[l]);
        if (q) tell(p, q, m->layer_first[l], m->layer_first[l + 1]);
    }
    p->layer = 0;
}

static void backward(bert_pass *p, const mx_pass *q)
{
    const mx_bert *m = p->m;
    const bert_work *w = &p->w;
    bert_layers_back(p, q);
    if (p->dropout > 0) mx_dropout(p->s, w->dx, w->dx, p->dropout, seed_of(p, DROP_EMBED));
    norm_back(p, w->dh, w->dx, w->e, &m->norm);
    mx_embed_back(p->s, m->tokens.dw, w->dh, w->ids);
    mx_embed_back(p->s, m->positions.dw, w->dh, w->positions);
    mx_embed_back(p->s, m->types.dw, w->dh, w->types);
    tell(p, q, m->layer_first[m->config.layers], m->params.count);
    tell(p, q, 0, m->layer_first[0]);
}

static void upload(bert_pass *p, const mx_batch *b, const question *q)
{
    mx_stream *s = p->s;
    p->w.ids = mx_stream_upload(s, MX_I32, b->rows, 1, q->ids);
    p->w.positions = mx_stream_upload(s, MX_I32, b->rows, 1, b->positions);
    p->w.types = mx_stream_upload(s, MX_I32, b->rows, 1, q->zeros);
    p->w.begin = mx_stream_upload(s, MX_I32, (int64_t)b->spans + 1, 1, b->begin);
    p->w.rows = mx_stream_upload(s, MX_I32, q->counted, 1, q->rows);
    p->w.targets = mx_stream_upload(s, MX_I32, q->counted, 1, q->targets);
}

mx_status bert_run(void *network, mx_stream *s, mx_pass *q, mx_error *err)
{
    const mx_bert *m = network;
    const mx_batch *b = q->batch;
    mx_status st = MX_OK;
    question ask;
    double loss = 0;
    bert_pass p = {.m = m, .s = s, .seed = q->seed, .learn = q->learn, .dropout = q->learn ? m->opt.dropout : 0, .longest = q->batch->longest};
    q->loss = q->extra = 0;
    q->counted = 0;
    if (b->longest > m->config.max_positions)
        return mx_fail(err, MX_ERR_ARG, "a sequence has %d tokens; the model has %d positions", b->longest, m->config.max_positions);
    p.w.layer = calloc((size_t)m->config.layers, sizeof *p.w.layer);
    if (!p.w.layer || !question_open(&ask, m, b, q->seed)) {
        free(p.w.layer);
        return mx_fail(err, MX_ERR_NO_MEMORY, "the lists of a pass");
    }
    upload(&p, b, &ask);
    bert_lay_out(m, s, NULL, &p.w, b->rows, ask.counted, q->learn);
    forward(&p);
    heads(&p, ask.counted);
    if (ask.counted) {
        mx_sum(s, p.w.sum, p.w.loss, false);
        s->dev->ops->download(s, &loss, p.w.sum.data, sizeof loss);
        if (m->opt.task == MX_BERT_CLASSIFY) s->dev->ops->download(s, ask.best, p.w.best.data, (size_t)ask.counted * sizeof *ask.best);
    }
    if (q->learn) backward(&p, q);
    st = mx_stream_sync(s, err);
    q->loss = loss;
    q->counted = ask.counted;
    for (int32_t i = 0; m->opt.task == MX_BERT_CLASSIFY && i < ask.counted; i++) q->extra += ask.best[i] == ask.targets[i];
    question_close(&ask);
    free(p.w.layer);
    return st;
}
