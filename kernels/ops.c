/* ops.c - shape checks and dispatch; no math. */
#include "kernels/ops.h"
#include "kernels/worlds.h"

static const mx_kernels *const tables[MX_DEVICE_KIND_COUNT] = {
    [MX_CPU] = &mx_kernels_cpu,
#ifdef MX_WITH_CUDA
    [MX_CUDA] = &mx_kernels_cuda,
#endif
};

/* True when the op may run; otherwise the stream remembers why not. */
static bool need(mx_stream *s, bool ok, const char *op, const char *what)
{
    if (s->error.code) return false;
    if (!ok) mx_stream_fail(s, MX_ERR_ARG, "%s: %s", op, what);
    return ok;
}

static bool is(mx_tensor t, mx_dtype type)
{
    return t.dtype == type && t.rows >= 0 && t.cols > 0 && t.stride >= t.cols && (t.data || t.rows == 0);
}

/* [rows,cols] of one type; rows < 0: any number of them. */
static bool shaped(mx_tensor t, mx_dtype type, int64_t rows, int64_t cols)
{
    return is(t, type) && (rows < 0 || t.rows == rows) && t.cols == cols;
}

static bool table_type(mx_dtype t)
{
    return t == MX_F32 || t == MX_F16 || t == MX_BF16;
}

static bool same_shape(mx_tensor a, mx_tensor b)
{
    return is(a, MX_F32) && shaped(b, MX_F32, a.rows, a.cols);
}

static bool is_activation(mx_activation a)
{
    return (unsigned)a < MX_ACT_COUNT;
}

static bool is_cache(const mx_kv *kv)
{
    return kv && kv->k && kv->v && (table_type(kv->dtype) || kv->dtype == MX_F8) && kv->pages > 0 && kv->page_tokens > 0 && kv->kv_heads > 0 &&
           kv->head_dim > 0;
}

static const mx_kernels *table(const mx_stream *s)
{
    return tables[s->dev->kind];
}

/* ---- weights -------------------------------------------------------------- */

mx_status mx_weight_open(mx_weight *w, mx_device *d, const mx_row_source *parts, int n, mx_dtype as, mx_error *err)
{
    memset(w, 0, sizeof *w);
    if (n < 1) return mx_fail(err, MX_ERR_ARG, "weight: no parts");
    if (as != MX_F32 && as != MX_BF16 && as != MX_I8 && as != MX_F8)
        return mx_fail(err, MX_ERR_ARG, "weight: cannot be stored as %s", mx_dtype_name(as));
    int64_t rows = 0;
    for (int i = 0; i < n; i++) {
        if (!parts[i].read || parts[i].rows < 1 || parts[i].cols < 1 || parts[i].cols != parts[0].cols)
            return mx_fail(err, MX_ERR_ARG, "weight: part %d is %lld x %lld, part 0 has %lld columns", i,
                           (long long)parts[i].rows, (long long)parts[i].cols, (long long)parts[0].cols);
        if (parts[i].rows > INT32_MAX - rows) return mx_fail(err, MX_ERR_ARG, "weight: more than 2^31 rows");
        rows += parts[i].rows;
    }
    /* int8: 255 * 127 * cols must stay inside int32 */
    if (parts[0].cols > 65536) return mx_fail(err, MX_ERR_ARG, "weight: more than 65536 columns");
    w->dev = d;
    w->rows = rows;
    w->cols = parts[0].cols;
    w->dtype = as;
    mx_status st = tables[d->kind]->weight_open(w, d, parts, n, as, err);
    if (st) memset(w, 0, sizeof *w);
    return st;
}

size_t mx_weight_bytes(const mx_device *d, int64_t rows, int64_t cols, mx_dtype as)
{
    if (rows < 1 || rows > INT32_MAX || cols < 1 || cols > 65536 || (as != MX_F32 && as != MX_BF16 && as != MX_I8)) return 0;
    return tables[d->kind]->weight_bytes(d, rows, cols, as);
}

void mx_weight_close(mx_weight *w)
{
    if (!w || !w->dev) return;
    tables[w->dev->kind]->weight_close(w);
    memset(w, 0, sizeof *w);
}

/* ---- row ops -------------------------------------------------------------- */

void mx_embed(mx_stream *s, mx_tensor y, mx_tensor t, mx_tensor ids, bool add)
{
    if (!need(s, is(y, MX_F32), "embed", "y is f32")) return;
    if (!need(s, table_type(t.dtype) && shaped(t, t.dtype, -1, y.cols), "embed", "table[V,C]: f32, f16 or bf16")) return;
    if (!need(s, shaped(ids, MX_I32, y.rows, 1), "embed", "ids[N,1] i32")) return;
    if (y.rows) table(s)->embed(s, y, t, ids, add);
}

void mx_linear(mx_stream *s, mx_tensor y, mx_tensor x, const mx_weight *w, mx_tensor b, mx_activation act, bool add)
{
    if (!need(s, w && w->impl && mx_device_shares(w->dev, s->dev), "linear", "a weight of this device")) return;
    if (!need(s, is(x, MX_F32) && shaped(y, MX_F32, x.rows, w->rows) && x.cols == w->cols, "linear",
              "y[N,O] = x[N,C] w[O,C]^T, f32"))
        return;
    if (!need(s, !b.data || shaped(b, MX_F32, 1, y.cols), "linear", "b[1,O] f32")) return;
    if (!need(s, is_activation(act) && (!add || act == MX_ACT_NONE), "linear", "add goes without activation")) return;
    if (y.rows) table(s)->linear(s, y, x, w, b, act, add);
}

void mx_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, mx_tensor bias, float eps)
{
    if (!need(s, same_shape(y, x), "norm", "y[N,C], x[N,C] f32")) return;
    if (!need(s, shaped(gain, MX_F32, 1, x.cols) && (!bias.data || shaped(bias, MX_F32, 1, x.cols)), "norm",
              "gain[1,C], bias[1,C] f32"))
        return;
    if (y.rows) table(s)->norm(s, y, x, gain, bias, eps);
}

void mx_rms_norm(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor gain, float eps)
{
    if (!need(s, same_shape(y, x), "rms_norm", "y[N,C], x[N,C] f32")) return;
    if (!need(s, shaped(gain, MX_F32, 1, x.cols), "rms_norm", "gain[1,C] f32")) return;
    if (y.rows) table(s)->rms_norm(s, y, x, gain, eps);
}

void mx_add(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    if (!need(s, same_shape(y, a) && same_shape(y, b), "add", "y, a, b [N,C] f32")) return;
    if (y.rows) table(s)->add(s, y, a, b);
}

void mx_add_norm(mx_stream *s, mx_tensor y, mx_tensor sum, mx_tensor a, mx_tensor b, mx_tensor gain, mx_tensor bias, float eps, bool rms)
{
    if (!need(s, same_shape(a, b) && same_shape(a, sum) && same_shape(a, y), "add_norm", "y, sum, a, b [N,C] f32")) return;
    if (!need(s, shaped(gain, MX_F32, 1, a.cols) && (!bias.data || (!rms && shaped(bias, MX_F32, 1, a.cols))), "add_norm",
              "gain[1,C] f32, bias[1,C] f32 unless rms"))
        return;
    if (a.rows) table(s)->add_norm(s, y, sum, a, b, gain, bias, eps, rms);
}

void mx_activate(mx_stream *s, mx_tensor y, mx_tensor x, mx_activation act)
{
    if (!need(s, same_shape(y, x) && is_activation(act), "activate", "y[N,C], x[N,C] f32, a known activation")) return;
    if (y.rows) table(s)->activate(s, y, x, act);
}

void mx_gated(mx_stream *s, mx_tensor y, mx_tensor gu, mx_activation act)
{
    if (!need(s, is(y, MX_F32) && shaped(gu, MX_F32, y.rows, 2 * y.cols) && is_activation(act), "gated",
              "y[N,F], gu[N,2F] f32, a known activation"))
        return;
    if (y.rows) table(s)->gated(s, y, gu, act);
}

void mx_rope(mx_stream *s, mx_tensor x, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    if (!need(s, is(x, MX_F32) && heads > 0 && x.cols % (2 * (int64_t)heads) == 0, "rope", "x[N,heads*D] f32, D even"))
        return;
    if (!need(s, shaped(positions, MX_I32, x.rows, 1) && shaped(freq, MX_F32, 1, x.cols / heads / 2), "rope",
              "positions[N,1] i32, freq[1,D/2] f32"))
        return;
    if (x.rows) table(s)->rope(s, x, positions, freq, magnitude, heads, interleaved);
}

/* ---- the paged KV cache ---------------------------------------------------- */

void mx_kv_write(mx_stream *s, const mx_kv *kv, mx_tensor k, mx_tensor v, mx_tensor slots)
{
    if (!need(s, is_cache(kv), "kv_write", "a cache of f32, f16, bf16 or fp8")) return;
    if (!need(s, same_shape(k, v) && k.cols == (int64_t)kv->kv_heads * kv->head_dim, "kv_write", "k[N,G*D], v[N,G*D] f32"))
        return;
    if (!need(s, shaped(slots, MX_I32, k.rows, 1), "kv_write", "slots[N,1] i32")) return;
    if (k.rows) table(s)->kv_write(s, kv, k, v, slots);
}

void mx_rope_kv_write(mx_stream *s, mx_tensor qkv, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved,
                      const mx_kv *kv, mx_tensor slots)
{
    if (!need(s, is_cache(kv) && kv->head_dim % 2 == 0, "rope_kv_write", "a cache of f32, f16, bf16 or fp8, D even")) return;
    if (!need(s, heads > 0 && shaped(qkv, MX_F32, -1, (heads + 2 * (int64_t)kv->kv_heads) * kv->head_dim), "rope_kv_write", "qkv[N,(H+2G)*D] f32"))
        return;
    if (!need(s, shaped(positions, MX_I32, qkv.rows, 1) && shaped(freq, MX_F32, 1, kv->head_dim / 2) && shaped(slots, MX_I32, qkv.rows, 1),
              "rope_kv_write", "positions[N,1], slots[N,1] i32, freq[1,D/2] f32"))
        return;
    if (qkv.rows) table(s)->rope_kv_write(s, qkv, positions, freq, magnitude, heads, interleaved, kv, slots);
}

void mx_kv_copy(mx_stream *s, const mx_kv *kv, mx_tensor from_to)
{
    if (!need(s, is_cache(kv), "kv_copy", "a cache of f32, f16, bf16 or fp8")) return;
    if (!need(s, shaped(from_to, MX_I32, -1, 2), "kv_copy", "from_to[n,2] i32")) return;
    if (from_to.rows) table(s)->kv_copy(s, kv, from_to);
}

void mx_attention_paged(mx_stream *s, mx_tensor y, mx_tensor q, const mx_kv *kv, mx_tensor pages, mx_tensor at,
                        int heads, float scale, int window)
{
    if (!need(s, is_cache(kv), "attention_paged", "a cache of f32, f16, bf16 or fp8")) return;
    if (!need(s, heads > 0 && heads % kv->kv_heads == 0, "attention_paged", "heads a multiple of the KV heads")) return;
    if (!need(s, same_shape(y, q) && q.cols == (int64_t)heads * kv->head_dim, "attention_paged", "y[N,H*D], q[N,H*D] f32"))
        return;
    if (!need(s, is(pages, MX_I32) && shaped(at, MX_I32, q.rows, 2), "attention_paged", "pages[S,P], at[N,2] i32")) return;
    if (q.rows) table(s)->attention_paged(s, y, q, kv, pages, at, heads, scale, window);
}

/* ---- from logits to tokens -------------------------------------------------- */

static bool are_seats(const mx_seats *t)
{
    return t && t->count > 0 && t->seat && (t->seen_most == 0 || (t->seen_id && t->seen_count));
}

void mx_seat_rows(mx_stream *s, mx_tensor ids, mx_tensor positions, mx_tensor slots, mx_tensor at, mx_tensor rows, int page_tokens,
                  const mx_seats *seats, mx_tensor choices, mx_tensor picks)
{
    int64_t n = ids.rows, width = sizeof(mx_sample_row) / sizeof(int32_t);
    if (!need(s, shaped(ids, MX_I32, -1, 1) && shaped(positions, MX_I32, n, 1) && shaped(slots, MX_I32, n, 1) && shaped(at, MX_I32, n, 2) &&
                     shaped(rows, MX_I32, n, 4), "seat_rows", "ids[N,1], positions[N,1], slots[N,1], at[N,2], rows[N,4] i32") ||
        !need(s, are_seats(seats) && is(seats->pages, MX_I32) && seats->pages.rows == seats->count && page_tokens > 0, "seat_rows",
              "seats, with pages[count,P] i32, and page_tokens") ||
        !need(s, shaped(choices, MX_I32, -1, width) && choices.stride == width && shaped(picks, MX_I32, choices.rows, 4), "seat_rows",
              "choices[M,W], W the words of an mx_sample_row, and picks[M,4] i32"))
        return;
    if (n || choices.rows) table(s)->seat_rows(s, ids, positions, slots, at, rows, page_tokens, seats, choices, picks);
}

void mx_logits_process(mx_stream *s, mx_tensor logits, const mx_sample_row *rows, const mx_logit_lists *lists, const mx_seats *seats)
{
    if (!need(s, is(logits, MX_F32) && rows && lists && (!seats || are_seats(seats)), "logits_process", "logits[N,V] f32, rows, lists, seats")) return;
    if (logits.rows) table(s)->logits_process(s, logits, rows, lists, seats);
}

const mx_sample_row *mx_sample_rows(mx_stream *s, const mx_sample_row *rows, int64_t n)
{
    if (s->dev->kind == MX_CPU) return rows;
    return mx_stream_upload(s, MX_I32, n, sizeof *rows / sizeof(int32_t), rows).data;
}

void mx_sample(mx_stream *s, mx_tensor id, mx_tensor logits, const mx_sample_row *rows, const mx_seats *seats)
{
    if (!need(s, is(logits, MX_F32) && shaped(id, MX_I32, logits.rows, 1) && rows && (!seats || are_seats(seats)), "sample", "id[N,1] i32, logits[N,V] f32"))
        return;
    if (logits.rows) table(s)->sample(s, id, logits, rows, seats);
}

void mx_logprobs(mx_stream *s, mx_tensor logprob, mx_tensor chosen, mx_tensor top_id, mx_tensor top_logprob,
                 mx_tensor logits)
{
    int64_t n = logits.rows;
    if (!need(s, is(logits, MX_F32), "logprobs", "logits[N,V] f32")) return;
    if (!need(s, !logprob.data || (shaped(logprob, MX_F32, n, 1) && shaped(chosen, MX_I32, n, 1)), "logprobs",
              "logprob[N,1] f32 with chosen[N,1] i32"))
        return;
    if (!need(s, !top_id.data || (is(top_id, MX_I32) && top_id.rows == n && top_id.cols <= logits.cols), "logprobs",
              "top_id[N,k] i32, k <= V"))
        return;
    if (!need(s, !top_logprob.data || (top_id.data && shaped(top_logprob, MX_F32, n, top_id.cols)), "logprobs",
              "top_logprob[N,k] f32 with top_id[N,k]"))
        return;
    if (n) table(s)->logprobs(s, logprob, chosen, top_id, top_logprob, logits);
}

/* ---- learning ---------------------------------------------------------------- */

static bool product_type(mx_dtype t)
{
    return t == MX_F32 || t == MX_BF16;
}

/* No tensor, or one of this shape. */
static bool absent_or(mx_tensor t, int64_t rows, int64_t cols)
{
    return !t.data || shaped(t, MX_F32, rows, cols);
}

void mx_aggregate(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor ids, mx_tensor begin, mx_tensor weight, mx_reduce how)
{
    if (!need(s, is(y, MX_F32) && shaped(x, MX_F32, -1, y.cols), "aggregate", "y[S,C], x[V,C] f32")) return;
    if (!need(s, shaped(begin, MX_I32, y.rows + 1, 1), "aggregate", "begin[S+1,1] i32")) return;
    if (!need(s, !ids.data || shaped(ids, MX_I32, -1, 1), "aggregate", "ids[E,1] i32")) return;
    int64_t edges = ids.data ? ids.rows : x.rows;
    if (!need(s, !weight.data || shaped(weight, MX_F32, edges, 1), "aggregate", "weight[E,1] f32")) return;
    if (!need(s, (unsigned)how < MX_REDUCE_COUNT && (how != MX_REDUCE_MAX || !weight.data), "aggregate", "how: a maximum takes no weights")) return;
    if (y.rows) table(s)->aggregate(s, y, x, ids, begin, weight, how);
}

void mx_product(mx_stream *s, mx_tensor y, mx_tensor x, mx_tensor w, mx_tensor b, mx_dtype as, bool add)
{
    if (!need(s, product_type(w.dtype) && shaped(w, w.dtype, -1, x.cols), "product", "w[O,C] f32 or bf16")) return;
    if (!need(s, is(x, MX_F32) && shaped(y, MX_F32, x.rows, w.rows), "product", "y[N,O] = x[N,C] w[O,C]^T, f32")) return;
    if (!need(s, absent_or(b, 1, y.cols), "product", "b[1,O] f32")) return;
    if (!need(s, product_type(as), "product", "as f32 or bf16")) return;
    if (y.rows) table(s)->product(s, y, x, w, b, as, add);
}

void mx_product_back(mx_stream *s, mx_tensor dx, mx_tensor dw, mx_tensor db, mx_tensor dy, mx_tensor x, mx_tensor w,
                     mx_dtype as, bool add)
{
    if (!need(s, product_type(w.dtype) && shaped(w, w.dtype, -1, x.cols), "product_back", "w[O,C] f32 or bf16")) return;
    if (!need(s, is(x, MX_F32) && shaped(dy, MX_F32, x.rows, w.rows), "product_back", "dy[N,O], x[N,C] f32")) return;
    if (!need(s, absent_or(dx, x.rows, x.cols) && absent_or(dw, w.rows, w.cols) && absent_or(db, 1, w.rows), "product_back",
              "dx[N,C], dw[O,C], db[1,O] f32"))
        return;
    if (!need(s, product_type(as), "product_back", "as f32 or bf16")) return;
    if (x.rows) table(s)->product_back(s, dx, dw, db, dy, x, w, as, add);
}

void mx_cast(mx_stream *s, mx_tensor y, mx_tensor x)
{
    if (!need(s, is(x, MX_F32), "cast", "x[N,C] f32")) return;
    if (!need(s, table_type(y.dtype) && shaped(y, y.dtype, x.rows, x.cols), "cast", "y[N,C] f32, f16 or bf16")) return;
    if (x.rows) table(s)->cast(s, y, x);
}

void mx_scale(mx_stream *s, mx_tensor y, mx_tensor x, float factor)
{
    if (!need(s, same_shape(y, x), "scale", "y[N,C], x[N,C] f32")) return;
    if (x.rows) table(s)->scale(s, y, x, factor);
}

void mx_embed_back(mx_stream *s, mx_tensor dtable, mx_tensor dy, mx_tensor ids)
{
    if (!need(s, is(dy, MX_F32) && shaped(dtable, MX_F32, -1, dy.cols), "embed_back", "dtable[V,C], dy[N,C] f32")) return;
    if (!need(s, shaped(ids, MX_I32, dy.rows, 1), "embed_back", "ids[N,1] i32")) return;
    if (dy.rows) table(s)->embed_back(s, dtable, dy, ids);
}

void mx_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dbias, mx_tensor dy, mx_tensor x, mx_tensor gain,
                  float eps, bool add)
{
    if (!need(s, same_shape(dy, x) && absent_or(dx, x.rows, x.cols), "norm_back", "dx, dy, x [N,C] f32")) return;
    if (!need(s, shaped(gain, MX_F32, 1, x.cols) && absent_or(dgain, 1, x.cols) && absent_or(dbias, 1, x.cols), "norm_back",
              "gain, dgain, dbias [1,C] f32"))
        return;
    if (x.rows) table(s)->norm_back(s, dx, dgain, dbias, dy, x, gain, eps, add);
}

void mx_rms_norm_back(mx_stream *s, mx_tensor dx, mx_tensor dgain, mx_tensor dy, mx_tensor x, mx_tensor gain, float eps, bool add)
{
    if (!need(s, same_shape(dy, x) && absent_or(dx, x.rows, x.cols), "rms_norm_back", "dx, dy, x [N,C] f32")) return;
    if (!need(s, shaped(gain, MX_F32, 1, x.cols) && absent_or(dgain, 1, x.cols), "rms_norm_back", "gain, dgain [1,C] f32")) return;
    if (x.rows) table(s)->rms_norm_back(s, dx, dgain, dy, x, gain, eps, add);
}

void mx_activate_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_activation act)
{
    if (!need(s, same_shape(dx, x) && same_shape(dy, x) && is_activation(act), "activate_back", "dx, dy, x [N,C] f32, a known activation"))
        return;
    if (x.rows) table(s)->activate_back(s, dx, dy, x, act);
}

void mx_gated_back(mx_stream *s, mx_tensor dgu, mx_tensor dy, mx_tensor gu, mx_activation act)
{
    if (!need(s, is(dy, MX_F32) && shaped(gu, MX_F32, dy.rows, 2 * dy.cols) && same_shape(dgu, gu) && is_activation(act), "gated_back",
              "dy[N,F], gu[N,2F], dgu[N,2F] f32, a known activation"))
        return;
    if (dy.rows) table(s)->gated_back(s, dgu, dy, gu, act);
}

void mx_rope_back(mx_stream *s, mx_tensor dx, mx_tensor positions, mx_tensor freq, float magnitude, int heads, bool interleaved)
{
    if (!need(s, is(dx, MX_F32) && heads > 0 && dx.cols % (2 * (int64_t)heads) == 0, "rope_back", "dx[N,heads*D] f32, D even"))
        return;
    if (!need(s, shaped(positions, MX_I32, dx.rows, 1) && shaped(freq, MX_F32, 1, dx.cols / heads / 2), "rope_back",
              "positions[N,1] i32, freq[1,D/2] f32"))
        return;
    if (dx.rows) table(s)->rope_back(s, dx, positions, freq, magnitude, heads, interleaved);
}

void mx_dropout(mx_stream *s, mx_tensor y, mx_tensor x, float rate, uint64_t seed)
{
    if (!need(s, same_shape(y, x) && rate >= 0 && rate < 1, "dropout", "y[N,C], x[N,C] f32, rate in [0,1)")) return;
    if (x.rows) table(s)->dropout(s, y, x, rate, seed);
}

static bool attends(mx_tensor q, mx_tensor k, mx_tensor v, mx_tensor begin, mx_attention_shape a)
{
    return a.heads > 0 && a.kv_heads > 0 && a.heads % a.kv_heads == 0 && a.window >= 0 && is(q, MX_F32) && q.cols % a.heads == 0 &&
           shaped(k, MX_F32, q.rows, q.cols / a.heads * a.kv_heads) && same_shape(v, k) && shaped(begin, MX_I32, -1, 1) &&
           begin.rows >= 1;
}

void mx_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor q, mx_tensor k, mx_tensor v, mx_tensor begin,
                  mx_attention_shape a)
{
    if (!need(s, attends(q, k, v, begin, a), "attention", "q[N,H*D], k and v[N,G*D] f32, begin[spans+1,1] i32")) return;
    if (!need(s, same_shape(y, q) && shaped(lse, MX_F32, q.rows, a.heads), "attention", "y[N,H*D], lse[N,H] f32")) return;
    if (q.rows) table(s)->attention(s, y, lse, q, k, v, begin, a);
}

void mx_attention_back(mx_stream *s, mx_tensor dq, mx_tensor dk, mx_tensor dv, mx_tensor dy, mx_tensor q, mx_tensor k,
                       mx_tensor v, mx_tensor y, mx_tensor lse, mx_tensor begin, mx_attention_shape a)
{
    if (!need(s, attends(q, k, v, begin, a), "attention_back", "q[N,H*D], k and v[N,G*D] f32, begin[spans+1,1] i32")) return;
    if (!need(s, same_shape(y, q) && same_shape(dy, q) && same_shape(dq, q) && same_shape(dk, k) && same_shape(dv, k) &&
                     shaped(lse, MX_F32, q.rows, a.heads), "attention_back", "y, dy, dq as q, dk and dv as k, lse[N,H] f32"))
        return;
    if (q.rows) table(s)->attention_back(s, dq, dk, dv, dy, q, k, v, y, lse, begin, a);
}

void mx_cross_entropy(mx_stream *s, mx_tensor loss, mx_tensor logits, mx_tensor target, float scale, bool learn)
{
    if (!need(s, is(logits, MX_F32) && shaped(loss, MX_F32, logits.rows, 1) && shaped(target, MX_I32, logits.rows, 1), "cross_entropy",
              "loss[N,1] f32, logits[N,V] f32, target[N,1] i32"))
        return;
    if (logits.rows) table(s)->cross_entropy(s, loss, logits, target, scale, learn);
}

void mx_sum(mx_stream *s, mx_tensor sum, mx_tensor x, bool squares)
{
    if (!need(s, is(x, MX_F32) && shaped(sum, MX_I32, 1, 2) && (uintptr_t)sum.data % 8 == 0, "sum", "sum[1,2] i32, x[N,C] f32")) return;
    table(s)->sum(s, sum, x, squares);
}

void mx_adamw(mx_stream *s, mx_tensor p, mx_tensor g, mx_tensor m, mx_tensor v, mx_adamw_step o)
{
    if (!need(s, shaped(p, MX_F32, 1, p.cols) && same_shape(g, p) && same_shape(m, p) && same_shape(v, p), "adamw", "p, g, m, v [1,n] f32"))
        return;
    table(s)->adamw(s, p, g, m, v, o);
}

/* ---- choosing by value ------------------------------------------------------- */

static bool is_mask(mx_tensor mask, mx_tensor q)
{
    return !mask.data || shaped(mask, MX_I8, q.rows, q.cols);
}

void mx_argmax(mx_stream *s, mx_tensor id, mx_tensor q, mx_tensor mask)
{
    if (!need(s, is(q, MX_F32) && q.cols > 0 && shaped(id, MX_I32, q.rows, 1) && is_mask(mask, q), "argmax",
              "id[N,1] i32, q[N,A] f32, mask[N,A] i8"))
        return;
    if (q.rows) table(s)->argmax(s, id, q, mask);
}

void mx_world_step(mx_stream *s, mx_world w, mx_tensor state, mx_tensor at, mx_tensor action, mx_tensor reward, mx_tensor ended,
                   mx_tensor next, mx_tensor seen, uint64_t seed, int limit)
{
    int64_t n = state.rows;
    if (!need(s, (unsigned)w < MX_WORLD_COUNT && limit >= 0, "world_step", "a known world, limit >= 0")) return;
    if (!need(s, shaped(state, MX_I32, -1, 8) && shaped(at, MX_I32, n, 3) && shaped(action, MX_I32, n, 1), "world_step",
              "state[N,8], at[N,3], action[N,1] i32") ||
        !need(s, shaped(reward, MX_F32, n, 1) && shaped(ended, MX_I32, n, 1) && shaped(next, MX_F32, n, mx_world_observation(w)) &&
                     shaped(seen, MX_F32, n, mx_world_observation(w)),
              "world_step", "reward[N,1] f32, ended[N,1] i32, next[N,O] and seen[N,O] f32"))
        return;
    if (n) table(s)->world_step(s, w, state, at, action, reward, ended, next, seen, seed, limit);
}

static bool duels(mx_tensor va, mx_tensor q, int atoms)
{
    return atoms > 0 && is(q, MX_F32) && q.cols > 0 && q.cols % atoms == 0 && shaped(va, MX_F32, q.rows, q.cols + atoms);
}

void mx_dueling(mx_stream *s, mx_tensor q, mx_tensor va, int atoms)
{
    if (!need(s, duels(va, q, atoms), "dueling", "q[N,A*Z], va[N,(1+A)*Z] f32")) return;
    if (q.rows) table(s)->dueling(s, q, va, atoms);
}

void mx_dueling_back(mx_stream *s, mx_tensor dva, mx_tensor dq, int atoms)
{
    if (!need(s, duels(dva, dq, atoms), "dueling_back", "dq[N,A*Z], dva[N,(1+A)*Z] f32")) return;
    if (dq.rows) table(s)->dueling_back(s, dva, dq, atoms);
}

void mx_perceptron(mx_stream *s, mx_tensor y, mx_tensor x, const mx_perceptron_shape *p)
{
    if (!need(s, p->layers >= 1 && p->layers <= MX_PERCEPTRON_LAYERS && is_activation(p->act), "perceptron", "1 to 9 layers, a known activation")) return;
    if (!need(s, is(x, MX_F32) && x.cols <= MX_PERCEPTRON_WIDTH, "perceptron", "x[N,C] f32, C at most 256")) return;
    for (int64_t k = 0, cols = x.cols; k < p->layers; cols = p->w[k++].rows) {
        mx_tensor w = p->w[k], b = p->b[k];
        if (!need(s, shaped(w, MX_F32, -1, cols) && w.rows > 0 && w.rows <= MX_PERCEPTRON_WIDTH && shaped(b, MX_F32, 1, w.rows), "perceptron",
                  "w[O,C] of the layer before, b[1,O], f32, O at most 256"))
            return;
    }
    mx_tensor last = {.data = y.data, .dtype = MX_F32, .rows = y.rows, .cols = p->w[p->layers - 1].rows, .stride = p->w[p->layers - 1].rows};
    if (!need(s, shaped(y, MX_F32, x.rows, p->atoms ? y.cols : last.cols) && (!p->atoms || duels(last, y, p->atoms)), "perceptron",
              "y[N,O], or dueling y[N,A*Z] of (1+A)*Z outputs, f32"))
        return;
    if (y.rows) table(s)->perceptron(s, y, x, p);
}

/* The columns that both losses have. */
static bool learns_from(mx_tensor loss, mx_tensor error, mx_tensor action, mx_tensor mask, mx_tensor step, mx_tensor chooser)
{
    int64_t n = chooser.rows;
    return is(chooser, MX_F32) && chooser.cols > 0 && shaped(loss, MX_F32, n, 1) && shaped(error, MX_F32, n, 1) &&
           shaped(action, MX_I32, n, 1) && shaped(step, MX_F32, n, 3) && is_mask(mask, chooser);
}

void mx_td_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor q, mx_tensor action, mx_tensor next, mx_tensor chooser,
                mx_tensor mask, mx_tensor step, float huber, float scale)
{
    if (!need(s, learns_from(loss, error, action, mask, step, chooser), "td_loss",
              "loss[N,1], error[N,1], chooser[N,A], step[N,3] f32, action[N,1] i32, mask[N,A] i8"))
        return;
    if (!need(s, same_shape(q, chooser) && same_shape(next, chooser) && huber > 0, "td_loss", "q[N,A], next[N,A] f32, huber over 0")) return;
    if (q.rows) table(s)->td_loss(s, loss, error, q, action, next, chooser, mask, step, huber, scale);
}

/* 512 atoms fit everywhere; C51 has 51. */
static bool atoms(mx_tensor q, mx_tensor logits, float low, float high)
{
    return is(q, MX_F32) && q.cols > 0 && is(logits, MX_F32) && logits.rows == q.rows && logits.cols % q.cols == 0 &&
           logits.cols / q.cols >= 2 && logits.cols / q.cols <= 512 && low < high;
}

void mx_atoms_value(mx_stream *s, mx_tensor q, mx_tensor logits, float low, float high)
{
    if (!need(s, atoms(q, logits, low, high), "atoms_value", "q[N,A], logits[N,A*Z] f32, 2 to 512 atoms, low < high")) return;
    if (q.rows) table(s)->atoms_value(s, q, logits, low, high);
}

void mx_atoms_loss(mx_stream *s, mx_tensor loss, mx_tensor error, mx_tensor logits, mx_tensor action, mx_tensor next,
                   mx_tensor chooser, mx_tensor mask, mx_tensor step, float low, float high, float scale)
{
    if (!need(s, learns_from(loss, error, action, mask, step, chooser), "atoms_loss",
              "loss[N,1], error[N,1], chooser[N,A], step[N,3] f32, action[N,1] i32, mask[N,A] i8"))
        return;
    if (!need(s, atoms(chooser, logits, low, high) && same_shape(next, logits), "atoms_loss",
              "logits and next [N,A*Z] f32, 2 to 512 atoms, low < high"))
        return;
    if (logits.rows) table(s)->atoms_loss(s, loss, error, logits, action, next, chooser, mask, step, low, high, scale);
}

void mx_noisy(mx_stream *s, mx_tensor w, mx_tensor mean, mx_tensor spread, mx_tensor out, mx_tensor in)
{
    if (!need(s, same_shape(w, mean) && same_shape(spread, mean) && shaped(out, MX_F32, 1, w.rows) && shaped(in, MX_F32, 1, w.cols), "noisy",
              "w, mean, spread [O,C], out[1,O], in[1,C] f32"))
        return;
    if (w.rows) table(s)->noisy(s, w, mean, spread, out, in);
}

void mx_noisy_back(mx_stream *s, mx_tensor dmean, mx_tensor dspread, mx_tensor dw, mx_tensor out, mx_tensor in)
{
    if (!need(s, same_shape(dmean, dw) && same_shape(dspread, dw) && shaped(out, MX_F32, 1, dw.rows) && shaped(in, MX_F32, 1, dw.cols),
              "noisy_back", "dmean, dspread, dw [O,C], out[1,O], in[1,C] f32"))
        return;
    if (dw.rows) table(s)->noisy_back(s, dmean, dspread, dw, out, in);
}

static bool is_tree(mx_tensor tree)
{
    return shaped(tree, MX_F32, 1, tree.cols) && tree.cols >= 4 && tree.cols <= (int64_t)1 << 31 && (tree.cols & (tree.cols - 1)) == 0;
}

void mx_priority_set(mx_stream *s, mx_tensor tree, mx_tensor ids, mx_tensor error, float exponent)
{
    if (!need(s, is_tree(tree) && shaped(ids, MX_I32, ids.rows, 1) && (!error.data || shaped(error, MX_F32, ids.rows, 1)), "priority_set",
              "tree[1,2L] f32, L a power of two, ids[N,1] i32, error[N,1] f32"))
        return;
    if (ids.rows) table(s)->priority_set(s, tree, ids, error, exponent);
}

void mx_priority_sample(mx_stream *s, mx_tensor ids, mx_tensor weight, mx_tensor tree, mx_tensor uniform, float beta)
{
    if (!need(s, is_tree(tree) && shaped(ids, MX_I32, ids.rows, 1) && shaped(weight, MX_F32, ids.rows, 1) && shaped(uniform, MX_F32, ids.rows, 1),
              "priority_sample", "ids[N,1] i32, weight[N,1], uniform[N,1], tree[1,2L] f32, L a power of two"))
        return;
    if (ids.rows) table(s)->priority_sample(s, ids, weight, tree, uniform, beta);
}

/* ---- graphs ------------------------------------------------------------------ */

static bool turned(mx_turned t, int64_t rows, int64_t edges)
{
    return shaped(t.begin, MX_I32, rows + 1, 1) && shaped(t.span, MX_I32, edges, 1) && shaped(t.edge, MX_I32, edges, 1);
}

void mx_aggregate_max_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, mx_tensor y, mx_tensor ids, mx_tensor begin,
                           mx_turned t)
{
    if (!need(s, same_shape(dx, x) && same_shape(dy, y) && x.cols == y.cols, "aggregate_max_back", "dx, x [V,C], dy, y [S,C] f32")) return;
    if (!need(s, shaped(ids, MX_I32, -1, 1) && shaped(begin, MX_I32, y.rows + 1, 1), "aggregate_max_back", "ids[E,1], begin[S+1,1] i32")) return;
    if (!need(s, turned(t, x.rows, ids.rows), "aggregate_max_back", "turned: begin[V+1,1], span[E,1], edge[E,1] i32")) return;
    if (x.rows) table(s)->aggregate_max_back(s, dx, dy, x, y, ids, begin, t);
}

static bool heads_fit(mx_tensor y, mx_tensor lse, mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids, mx_tensor begin, mx_graph_heads a)
{
    return a.heads > 0 && a.rate >= 0 && a.rate < 1 && is(y, MX_F32) && y.cols % a.heads == 0 && shaped(z, MX_F32, -1, y.cols) &&
           shaped(lse, MX_F32, y.rows, a.heads) && shaped(src, MX_F32, z.rows, a.heads) && shaped(dst, MX_F32, y.rows, a.heads) &&
           shaped(ids, MX_I32, -1, 1) && shaped(begin, MX_I32, y.rows + 1, 1);
}

void mx_graph_attention(mx_stream *s, mx_tensor y, mx_tensor lse, mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids,
                        mx_tensor begin, mx_graph_heads a)
{
    if (!need(s, heads_fit(y, lse, z, src, dst, ids, begin, a), "graph_attention",
              "y[S,H*D], z[V,H*D], src[V,H], lse and dst [S,H] f32, ids[E,1], begin[S+1,1] i32, rate in [0,1)"))
        return;
    if (y.rows) table(s)->graph_attention(s, y, lse, z, src, dst, ids, begin, a);
}

void mx_graph_attention_back(mx_stream *s, mx_tensor dz, mx_tensor dsrc, mx_tensor ddst, mx_tensor dy, mx_tensor y, mx_tensor lse,
                             mx_tensor z, mx_tensor src, mx_tensor dst, mx_tensor ids, mx_tensor begin, mx_turned t, mx_graph_heads a)
{
    if (!need(s, heads_fit(y, lse, z, src, dst, ids, begin, a) && same_shape(dy, y), "graph_attention_back",
              "dy, y [S,H*D], z[V,H*D], src[V,H], lse and dst [S,H] f32, ids[E,1], begin[S+1,1] i32, rate in [0,1)"))
        return;
    if (!need(s, same_shape(dz, z) && same_shape(dsrc, src) && same_shape(ddst, dst), "graph_attention_back", "dz, dsrc, ddst as z, src, dst")) return;
    if (!need(s, turned(t, z.rows, ids.rows), "graph_attention_back", "turned: begin[V+1,1], span[E,1], edge[E,1] i32")) return;
    if (z.rows) table(s)->graph_attention_back(s, dz, dsrc, ddst, dy, y, lse, z, src, dst, ids, begin, t, a);
}

void mx_sample_neighbours(mx_stream *s, mx_tensor edge, mx_tensor nodes, mx_tensor begin, mx_sample_key key)
{
    if (!need(s, is(edge, MX_I32) && shaped(nodes, MX_I32, edge.rows, 1) && shaped(begin, MX_I32, -1, 1) && begin.rows >= 1, "sample_neighbours",
              "edge[N,F], nodes[N,1], begin[V+1,1] i32"))
        return;
    if (edge.rows) table(s)->sample_neighbours(s, edge, nodes, begin, key);
}

void mx_unit_rows(mx_stream *s, mx_tensor y, mx_tensor x, float eps)
{
    if (!need(s, same_shape(y, x), "unit_rows", "y[N,C], x[N,C] f32")) return;
    if (x.rows) table(s)->unit_rows(s, y, x, eps);
}

void mx_unit_rows_back(mx_stream *s, mx_tensor dx, mx_tensor dy, mx_tensor x, float eps)
{
    if (!need(s, same_shape(dx, x) && same_shape(dy, x), "unit_rows_back", "dx, dy, x [N,C] f32")) return;
    if (x.rows) table(s)->unit_rows_back(s, dx, dy, x, eps);
}

/* y[N,H] of a[N,H*D] and b of as many rows, or one */
static bool dots(mx_tensor y, mx_tensor a, mx_tensor b)
{
    return is(y, MX_F32) && is(a, MX_F32) && a.rows == y.rows && a.cols % y.cols == 0 && is(b, MX_F32) && b.cols == a.cols &&
           (b.rows == a.rows || b.rows == 1);
}

void mx_dot(mx_stream *s, mx_tensor y, mx_tensor a, mx_tensor b)
{
    if (!need(s, dots(y, a, b), "dot", "y[N,H], a[N,H*D], b[N,H*D] or [1,H*D] f32")) return;
    if (a.rows) table(s)->dot(s, y, a, b);
}

void mx_dot_back(mx_stream *s, mx_tensor da, mx_tensor db, mx_tensor dy, mx_tensor a, mx_tensor b, bool add)
{
    if (!need(s, dots(dy, a, b), "dot_back", "dy[N,H], a[N,H*D], b[N,H*D] or [1,H*D] f32")) return;
    if (!need(s, absent_or(da, a.rows, a.cols) && absent_or(db, b.rows, b.cols), "dot_back", "da as a, db as b")) return;
    if (a.rows) table(s)->dot_back(s, da, db, dy, a, b, add);
}

void mx_logistic(mx_stream *s, mx_tensor loss, mx_tensor x, mx_tensor target, float scale, bool learn)
{
    if (!need(s, is(x, MX_F32) && shaped(loss, MX_F32, x.rows, 1) && same_shape(target, x), "logistic", "loss[N,1], x[N,C], target[N,C] f32")) return;
    if (x.rows) table(s)->logistic(s, loss, x, target, scale, learn);
}
