/* attribution.c - integrated gradients through a BERT. */
#include "models/attribution.h"

#include "models/bert_internal.h"
#include "models/embed_modules.h"

#include <math.h>
#include <stdlib.h>

enum { ROWS = 2048, POINTS = 16, MOST_PANELS = 64 };

struct mx_attributor {
    mx_embed_modules modules;
    mx_bert      *bert;
    mx_tokenizer *tokenizer;
    mx_stream     stream;
    int32_t       pad, unknown, longest, rows;      /* rows: of a batch                  */
};

void mx_gauss_legendre(int32_t n, double *at, double *weight)
{
    for (int32_t i = 0; i < n; i++) {
        double x = cos(3.14159265358979323846 * (i + 0.75) / (n + 0.5)), slope = 1;
        for (int round = 0; round < 100; round++) {
            double p0 = 1, p1 = x;
            for (int32_t k = 2; k <= n; k++) {
                double p2 = ((2 * k - 1) * x * p1 - (k - 1) * p0) / k;
                p0 = p1, p1 = p2;
            }
            slope = n * (x * p1 - p0) / (x * x - 1);
            double step = p1 / slope;
            x -= step;
            if (fabs(step) < 1e-15) break;
        }
        at[i] = (1 - x) / 2;
        weight[i] = 1 / ((1 - x * x) * slope * slope);
    }
}

/* ---- opening --------------------------------------------------------------------------- */

static mx_status open_stream(mx_attributor *a, mx_device *dev, mx_error *err)
{
    const mx_encoder_config *c = mx_bert_config(a->bert);
    a->longest = c->max_positions;
    if (a->modules.max_len && a->modules.max_len < a->longest) a->longest = a->modules.max_len;
    a->rows = a->longest > ROWS ? a->longest : ROWS;
    size_t pass = bert_scratch(a->bert, a->rows, a->rows, a->longest, true), all = 0;
    const size_t more[] = {pass, 4 * mx_stream_tensor_bytes(MX_F32, a->rows, c->d_model), 4 * mx_stream_tensor_bytes(MX_I32, a->rows, 1),
                           2 * mx_stream_tensor_bytes(MX_F32, a->rows, c->classes + 1)};
    if (!pass) return mx_fail(err, MX_ERR_NO_MEMORY, "attribution: %d rows", a->rows);
    for (size_t i = 0; i < sizeof more / sizeof *more; i++)
        if (!mx_add_size(all, more[i], &all)) return mx_fail(err, MX_ERR_NO_MEMORY, "attribution: %d rows", a->rows);
    return mx_stream_open(&a->stream, dev, all, err);
}

mx_status mx_attributor_open(mx_attributor **out, mx_device *dev, const char *folder, mx_error *err)
{
    mx_status st;
    mx_bert_options o = {.task = MX_BERT_CLASSIFY, .compute = MX_F32, .frozen = true, .recompute = true};
    *out = NULL;
    mx_attributor *a = calloc(1, sizeof *a);
    if (!a) return mx_fail(err, MX_ERR_NO_MEMORY, "an attributor");
    MX_TRY_GOTO(st, mx_embed_modules_read(&a->modules, folder, err), fail);
    MX_TRY_GOTO(st, mx_tokenizer_open_folder(&a->tokenizer, a->modules.folder, err), fail);
    MX_TRY_GOTO(st, mx_bert_open(&a->bert, dev, a->modules.folder, &o, err), fail);
    a->pad = mx_tokenizer_find(a->tokenizer, "[PAD]");
    if (a->pad < 0) a->pad = 0;
    a->unknown = mx_tokenizer_find(a->tokenizer, "[UNK]");
    MX_TRY_GOTO(st, open_stream(a, dev, err), fail);
    *out = a;
    return MX_OK;
fail:
    mx_attributor_close(a);
    return st;
}

void mx_attributor_close(mx_attributor *a)
{
    if (!a) return;
    if (a->stream.dev) mx_stream_close(&a->stream);
    mx_bert_close(a->bert);
    mx_tokenizer_close(a->tokenizer);
    free(a);
}

const mx_encoder_config *mx_attributor_config(const mx_attributor *a) { return mx_bert_config(a->bert); }
bool mx_attributor_classes(const mx_attributor *a) { return !mx_bert_fresh(a->bert); }

/* ---- a part of a path -------------------------------------------------------------------- */

typedef struct path {
    mx_attributor *a;
    const mx_attribution_ask *ask;
    const int32_t *ids, *from;        /* [n]: the text's, and with [PAD]s                   */
    int32_t        n;
    const double  *at, *weight;       /* [points] of this part                              */
    int32_t        points;
    double        *value;             /* [points] the score there                           */
    double        *sum;               /* [n] +=; NULL: scores only                          */
    mx_tensor      step;              /* the text's embeddings less those of the [PAD]s     */
} path;

static void lists(const path *q, int32_t *begin, int32_t *positions, int32_t *span)
{
    for (int32_t k = 0; k <= q->points; k++) begin[k] = k * q->n;
    for (int32_t r = 0; r < q->points * q->n; r++) positions[r] = r % q->n, span[r] = r / q->n;
}

/* w.e: every point's embeddings, positions and types; then their norm. */
static void input(path *q, bert_pass *p, mx_tensor zeros)
{
    const mx_bert *m = p->m;
    int64_t n = q->n, C = m->config.d_model;
    mx_tensor ids = mx_stream_upload(p->s, MX_I32, n, 1, q->ids), from = mx_stream_upload(p->s, MX_I32, n, 1, q->from);
    mx_tensor start = mx_stream_tensor(p->s, MX_F32, n, C);
    q->step = mx_stream_tensor(p->s, MX_F32, n, C);
    mx_embed(p->s, q->step, m->tokens.w, from, false);
    mx_scale(p->s, q->step, q->step, -1);
    mx_embed(p->s, q->step, m->tokens.w, ids, true);
    mx_embed(p->s, start, m->tokens.w, from, false);
    for (int32_t k = 0; k < q->points; k++) {
        mx_tensor e = mx_tensor_rows(p->w.e, k * n, n);
        mx_scale(p->s, e, q->step, (float)q->at[k]);
        mx_add(p->s, e, e, start);
    }
    mx_embed(p->s, p->w.e, m->positions.w, p->w.positions, true);
    mx_embed(p->s, p->w.e, m->types.w, zeros, true);
    mx_norm(p->s, p->w.layer[0].in, p->w.e, m->norm.g, m->norm.b, m->config.norm_eps);
}

/* A class's logit less the mean of the others', and the gradient of that. */
static void class_score(path *q, bert_pass *p, float *host)
{
    int32_t K = p->m->opt.classes, S = q->points;
    bert_part t = bert_part_of(p, 0, S);
    bert_head_forward(p, &t);
    p->s->dev->ops->download(p->s, host, t.logits.data, (size_t)S * (size_t)K * sizeof *host);
    if (mx_stream_sync(p->s, &p->s->error)) return;
    for (int32_t k = 0; k < S; k++) {
        float *row = host + (size_t)k * (size_t)K;
        double others = 0;
        for (int32_t c = 0; c < K; c++) others += c == q->ask->class_index ? 0 : (double)row[c];
        q->value[k] = (double)row[q->ask->class_index] - (K > 1 ? others / (K - 1) : 0);
        for (int32_t c = 0; c < K; c++) row[c] = c == q->ask->class_index ? 1 : -1 / (float)(K - 1);
    }
    if (!q->sum) return;
    p->s->dev->ops->clear(p->s, p->w.dx.data, (size_t)(p->w.dx.rows * p->w.dx.cols) * sizeof(float));
    p->s->dev->ops->upload(p->s, t.logits.data, host, (size_t)S * (size_t)K * sizeof *host);
    bert_head_backward(p, &t);
}

/* The product of a direction with the pooled text, normalized or not; host: [points,C]. */
static void vector_score(path *q, bert_pass *p, float *host, mx_tensor span)
{
    int64_t C = p->m->config.d_model, S = q->points;
    const float *v = q->ask->direction;
    bool mean = q->a->modules.pooling == MX_POOL_MEAN;
    mx_tensor none = {0}, pooled = mx_stream_tensor(p->s, MX_F32, S, C);
    if (mean) mx_aggregate(p->s, pooled, p->w.x, none, p->w.begin, none, MX_REDUCE_MEAN);
    else mx_embed(p->s, pooled, p->w.x, p->w.rows, false);
    p->s->dev->ops->download(p->s, host, pooled.data, (size_t)(S * C) * sizeof *host);
    if (mx_stream_sync(p->s, &p->s->error)) return;
    for (int64_t k = 0; k < S; k++) {
        float *x = host + k * C;
        double square = 0, dot = 0;
        for (int64_t i = 0; i < C; i++) square += (double)x[i] * (double)x[i], dot += (double)x[i] * (double)v[i];
        double norm = q->a->modules.normalize ? fmax(sqrt(square), 1e-12) : 1, along = q->a->modules.normalize ? dot / (norm * norm) : 0;
        q->value[k] = dot / norm;
        for (int64_t i = 0; i < C; i++) x[i] = (float)(((double)v[i] - along * (double)x[i]) / norm / (mean ? q->n : 1));
    }
    if (!q->sum) return;
    p->s->dev->ops->upload(p->s, pooled.data, host, (size_t)(S * C) * sizeof *host);
    if (mean) {
        mx_embed(p->s, p->w.dx, pooled, span, false);
        return;
    }
    p->s->dev->ops->clear(p->s, p->w.dx.data, (size_t)(p->w.dx.rows * p->w.dx.cols) * sizeof(float));
    mx_embed_back(p->s, p->w.dx, pooled, p->w.rows);
}

static void gather(path *q, bert_pass *p, float *slope, float *step)
{
    const mx_bert *m = p->m;
    size_t n = (size_t)q->n, C = (size_t)m->config.d_model;
    bert_layers_back(p, NULL);
    mx_norm_back(p->s, p->w.dh, (mx_tensor){0}, (mx_tensor){0}, p->w.dx, p->w.e, m->norm.g, m->config.norm_eps, false);
    p->s->dev->ops->download(p->s, slope, p->w.dh.data, (size_t)q->points * n * C * sizeof *slope);
    p->s->dev->ops->download(p->s, step, q->step.data, n * C * sizeof *step);
    if (mx_stream_sync(p->s, &p->s->error)) return;
    for (size_t k = 0; k < (size_t)q->points; k++)
        for (size_t t = 0; t < n; t++) {
            const float *g = slope + (k * n + t) * C, *d = step + t * C;
            double dot = 0;
            for (size_t i = 0; i < C; i++) dot += (double)g[i] * (double)d[i];
            q->sum[t] += q->weight[k] * dot;
        }
}

static mx_status walk(path *q, mx_error *err)
{
    mx_attributor *a = q->a;
    mx_stream *s = &a->stream;
    size_t rows = (size_t)q->points * (size_t)q->n, C = (size_t)a->bert->config.d_model, K = (size_t)a->bert->opt.classes;
    bert_pass p = {.m = a->bert, .s = s, .learn = true};
    int32_t *begin = calloc(3 * rows + (size_t)q->points + 1, sizeof *begin), *positions = begin + q->points + 1, *span = positions + rows;
    float *host = calloc((rows + (size_t)q->n) * C + (size_t)q->points * (C + K), sizeof *host);
    p.w.layer = calloc((size_t)a->bert->config.layers, sizeof *p.w.layer);
    mx_status st = begin && host && p.w.layer ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a path of %d points", q->points);
    if (!st) {
        lists(q, begin, positions, span);
        p.w.positions = mx_stream_upload(s, MX_I32, (int64_t)rows, 1, positions);
        p.w.begin = mx_stream_upload(s, MX_I32, (int64_t)q->points + 1, 1, begin);
        p.w.rows = mx_tensor_rows(p.w.begin, 0, q->points);
        p.w.targets = p.w.rows;
        mx_tensor zeros = mx_stream_upload(s, MX_I32, (int64_t)rows, 1, span + rows), spans = mx_stream_upload(s, MX_I32, (int64_t)rows, 1, span);
        bert_lay_out(a->bert, s, NULL, &p.w, (int64_t)rows, q->points, true);
        input(q, &p, zeros);
        bert_layers(&p);
        float *scores = host + (rows + (size_t)q->n) * C;
        if (q->ask->class_index >= 0) class_score(q, &p, scores);
        else vector_score(q, &p, scores, spans);
        if (q->sum) gather(q, &p, host, host + rows * C);
        st = mx_stream_sync(s, err);
    }
    mx_stream_rewind(s);
    free(p.w.layer), free(host), free(begin);
    return st;
}

/* ---- a text -------------------------------------------------------------------------------- */

/* A part of the way, with its weights; its residual is known, for its ends' scores are. */
typedef struct panel {
    double  from, to, left, right;    /* left, right: the scores there                     */
    double  residual;
    double *sum;                      /* [n]                                               */
} panel;

/* finds: the score at p->to is not known yet, and is found on the way. */
static mx_status integrate(path *q, panel *p, bool finds, mx_error *err)
{
    double at[POINTS + 1], weight[POINTS + 1], value[POINTS + 1];
    int32_t most = q->a->rows / q->n, points = POINTS + finds;
    mx_gauss_legendre(POINTS, at, weight);
    for (int32_t k = 0; k < POINTS; k++) at[k] = p->from + (p->to - p->from) * at[k], weight[k] *= p->to - p->from;
    at[POINTS] = p->to, weight[POINTS] = 0;
    for (int32_t t = 0; t < q->n; t++) p->sum[t] = 0;
    for (int32_t k = 0; k < points; k += q->points) {
        q->points = points - k < most ? points - k : most;
        q->at = at + k, q->weight = weight + k, q->value = value + k, q->sum = p->sum;
        MX_TRY(walk(q, err));
    }
    if (finds) p->right = value[POINTS];
    p->residual = p->right - p->left;
    for (int32_t t = 0; t < q->n; t++) p->residual -= p->sum[t];
    return MX_OK;
}

static mx_status ends(path *q, mx_attribution *out, mx_error *err)
{
    static const double at[2] = {0, 1};
    double value[2];
    int32_t each = q->a->rows / q->n >= 2 ? 2 : 1;
    q->sum = NULL;
    for (int32_t k = 0; k < 2; k += each) {
        q->points = each, q->at = at + k, q->value = value + k;
        MX_TRY(walk(q, err));
    }
    out->base = value[0], out->score = value[1];
    return MX_OK;
}

static mx_status halve(path *q, panel *left, panel *right, mx_error *err)
{
    double middle = (left->from + left->to) / 2;
    *right = (panel){.from = middle, .to = left->to, .right = left->right, .sum = right->sum};
    left->to = middle;
    MX_TRY(integrate(q, left, true, err));
    right->left = left->right;
    return integrate(q, right, false, err);
}

/* The panel that is farthest off is halved until all of them together are close enough. */
static mx_status refine(path *q, panel *p, int32_t *n, double tolerance, mx_error *err)
{
    MX_TRY(integrate(q, &p[0], false, err));
    for (*n = 1; *n < MOST_PANELS; ++*n) {
        double off = 0;
        int32_t worst = 0;
        for (int32_t i = 0; i < *n; i++) {
            off += fabs(p[i].residual);
            if (fabs(p[i].residual) > fabs(p[worst].residual)) worst = i;
        }
        if (!(off > tolerance)) break;
        MX_TRY(halve(q, &p[worst], &p[*n], err));
    }
    return MX_OK;
}

static mx_status explain(path *q, mx_attribution *out, double tolerance, mx_error *err)
{
    panel p[MOST_PANELS];
    int32_t n = 0;
    MX_TRY(ends(q, out, err));
    double *sums = calloc((size_t)MOST_PANELS * (size_t)q->n, sizeof *sums);
    if (!sums) return mx_fail(err, MX_ERR_NO_MEMORY, "a path over %d tokens", q->n);
    for (int32_t i = 0; i < MOST_PANELS; i++) p[i].sum = sums + (size_t)i * (size_t)q->n;
    p[0] = (panel){.from = 0, .to = 1, .left = out->base, .right = out->score, .sum = sums};
    mx_status st = refine(q, p, &n, tolerance, err);
    out->points = POINTS * n;
    out->residual = out->score - out->base;
    for (int32_t t = 0; !st && t < q->n; t++) {
        mx_attributed_token *k = &out->token[t];
        k->piece = mx_tokenizer_piece(q->a->tokenizer, q->ids[t], &k->len);
        for (int32_t i = 0; i < n; i++) k->weight += p[i].sum[t];
        out->residual -= k->weight;
    }
    free(sums);
    return st;
}

/* [CLS], [SEP]: not what somebody wrote.  A character that the vocabulary lacks is. */
static bool is_frame(const mx_attributor *a, int32_t id) { return mx_tokenizer_is_special(a->tokenizer, id) && id != a->unknown; }

/* Which of the text's words every token is of; where the tokenizer cannot tell, none is. */
static mx_status find_words(const mx_attributor *a, const char *text, size_t len, const mx_ids *ids, mx_attributed_token *token, int32_t n, mx_error *err)
{
    mx_word_at *word = NULL;
    int32_t n_words = 0, all = 0, at = ids->count && is_frame(a, ids->id[0]);
    MX_TRY(mx_tokenizer_words(a->tokenizer, text, len, &word, &n_words, err));
    for (int32_t i = 0; i < n_words; i++) all += word[i].ids;
    if (at + all + (ids->count > 1 && is_frame(a, ids->id[ids->count - 1])) == ids->count)
        for (int32_t i = 0; i < n_words; i++)
            for (int32_t k = 0; k < word[i].ids && at < n - 1; k++, at++) token[at].begin = word[i].begin, token[at].end = word[i].end;
    free(word);
    return MX_OK;
}

static mx_status check(const mx_attributor *a, const mx_attribution_ask *ask, mx_error *err)
{
    if (ask->class_index < 0) {
        if (!ask->direction) return mx_fail(err, MX_ERR_ARG, "attribution: neither a class nor a direction");
        return a->modules.pooling == MX_POOL_POOLER ? mx_fail(err, MX_ERR_ARG, "attribution: vectors of poolers are not explained") : MX_OK;
    }
    if (!mx_attributor_classes(a)) return mx_fail(err, MX_ERR_STATE, "attribution: the model has no classification head");
    if (ask->class_index >= a->bert->opt.classes)
        return mx_fail(err, MX_ERR_ARG, "class_index is %d; the model has %d classes", ask->class_index, a->bert->opt.classes);
    return MX_OK;
}

mx_status mx_attribute(mx_attributor *a, const char *text, size_t len, const mx_attribution_ask *ask, mx_attribution *out, mx_error *err)
{
    mx_ids ids = {0};
    *out = (mx_attribution){0};
    MX_TRY(check(a, ask, err));
    mx_status st = mx_tokenizer_encode(a->tokenizer, text, len, true, false, &ids, err);
    if (!st && !ids.count) st = mx_fail(err, MX_ERR_ARG, "the text has no token");
    int32_t n = ids.count < a->longest ? ids.count : a->longest;
    int32_t *from = calloc((size_t)n + 1, sizeof *from);
    out->token = calloc((size_t)n + 1, sizeof *out->token);
    if (!st && (!from || !out->token)) st = mx_fail(err, MX_ERR_NO_MEMORY, "a text of %d tokens", ids.count);
    if (!st) st = find_words(a, text, len, &ids, out->token, n, err);
    if (!st) {
        ids.id[n - 1] = ids.id[ids.count - 1];               /* [SEP] stays the last one */
        out->n = n;
        for (int32_t t = 0; t < n; t++) from[t] = is_frame(a, ids.id[t]) ? ids.id[t] : a->pad;
        path q = {.a = a, .ask = ask, .ids = ids.id, .from = from, .n = n};
        st = explain(&q, out, ask->tolerance > 0 ? ask->tolerance : 1e-3, err);
    }
    free(from);
    mx_ids_free(&ids);
    return st;
}

void mx_attribution_free(mx_attribution *t)
{
    free(t->token);
    *t = (mx_attribution){0};
}
