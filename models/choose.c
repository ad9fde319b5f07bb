/* choose.c - from the logits of a turn to the next token of every sequence. */
#include "models/generation.h"

#include "runtime/random.h"

#include <stdlib.h>

/* Counter-based, so that a sequence's numbers depend on its own seed, candidate and position, and not on who else is in the batch. */
double gen_uniform(uint64_t seed, uint32_t candidate, uint32_t position)
{
    return mx_uniform(seed, position, candidate, 0, 0);
}

/* ---- the lists beside the rows -------------------------------------------------------- */

static bool grow(void **list, int32_t *room, int32_t need, size_t size)
{
    if (need <= *room) return true;
    int32_t more = *room ? *room : 256;
    while (more < need) more *= 2;
    void *grown = realloc(*list, (size_t)more * size);
    if (!grown) return false;
    *list = grown;
    *room = more;
    return true;
}

bool gen_ban(gen_pack *p, int32_t id)
{
    if (!grow((void **)&p->ban_id, &p->ban_room, p->n_ban + 1, sizeof *p->ban_id)) return false;
    p->ban_id[p->n_ban++] = id;
    return true;
}

static bool push_seen(gen_pack *p, const gen_seen *t)
{
    int32_t room = p->list_room;
    if (!grow((void **)&p->list_id, &room, p->n_seen + t->n, sizeof *p->list_id) ||
        !grow((void **)&p->list_count, &p->list_room, p->n_seen + t->n, sizeof *p->list_count))
        return false;
    if (t->n) {
        memcpy(p->list_id + p->n_seen, t->id, (size_t)t->n * sizeof *t->id);
        memcpy(p->list_count + p->n_seen, t->count, (size_t)t->n * sizeof *t->count);
    }
    p->n_seen += t->n;
    return true;
}

static bool push_bias(gen_pack *p, const mx_generation *r)
{
    int32_t room = p->bias_room, n = r->p.n_bias;
    if (!grow((void **)&p->bias_id, &room, p->n_bias + n, sizeof *p->bias_id) ||
        !grow((void **)&p->bias, &p->bias_room, p->n_bias + n, sizeof *p->bias))
        return false;
    if (n) {
        memcpy(p->bias_id + p->n_bias, r->bias_ids, (size_t)n * sizeof *p->bias_id);
        memcpy(p->bias + p->n_bias, r->bias, (size_t)n * sizeof *p->bias);
    }
    p->n_bias += n;
    return true;
}

/* Ids that would complete an n-gram that the sequence already has (as transformers' NoRepeatNGram). */
static bool ban_ngrams(gen_pack *p, const gen_seq *q, int32_t n)
{
    if (n < 1 || q->n_ids + 1 < n) return true;
    const int32_t *tail = q->ids + q->n_ids - (n - 1);
    for (int32_t i = 0; i + n <= q->n_ids; i++)
        if (!memcmp(q->ids + i, tail, (size_t)(n - 1) * sizeof *tail) && !gen_ban(p, q->ids[i + n - 1])) return false;
    return true;
}

static bool ban_ends(gen_pack *p, const mx_generation *r, const gen_seq *q)
{
    if (q->n_ids - r->n_prompt >= r->p.min_tokens) return true;
    const mx_decoder_config *c = &r->g->model.config;
    for (int32_t i = 0; !r->p.ignore_eos && i < c->n_eos; i++)
        if (c->eos[i] >= 0 && c->eos[i] < c->vocab && !gen_ban(p, c->eos[i])) return false;
    for (int32_t i = 0; i < r->p.n_stop_ids; i++)
        if (!gen_ban(p, r->stop_ids[i])) return false;
    return true;
}

/* The sequence a wanted row chooses for; before the fork every candidate looks at sequence 0. */
static gen_seq *source_of(const gen_want *w)
{
    return &w->gen->seq[w->gen->forked || w->gen->p.beams > 1 ? w->seq : 0];
}

static bool fill_lists(mx_generator *g)
{
    gen_pack *p = &g->pack;
    p->n_seen = p->n_bias = p->n_ban = 0;
    p->list_begin[0] = p->bias_begin[0] = p->ban_begin[0] = 0;
    for (int32_t i = 0; i < p->n_logits; i++) {
        const gen_want *w = &p->want[i];
        const mx_sampling *sp = &w->gen->p;
        p->row[i] = (mx_sample_row){.top_p = 1, .typical_p = 1, .repetition_penalty = 1};
        if (w->prompt_position < 0 && sp->beams <= 1) {
            const gen_seq *q = source_of(w);
            p->row[i] = (mx_sample_row){sp->temperature, sp->top_k, sp->top_p, sp->min_p, sp->typical_p, sp->repetition_penalty,
                                        sp->presence_penalty, sp->frequency_penalty,
                                        gen_uniform(w->gen->seed, (uint32_t)w->seq, (uint32_t)(q->n_ids - w->gen->n_prompt))};
            if ((w->gen->penalties && !push_seen(p, &q->seen)) || !push_bias(p, w->gen) ||
                !ban_ngrams(p, q, sp->no_repeat_ngram) || !gen_ban_texts(p, w->gen, q) || !ban_ends(p, w->gen, q))
                return false;
        }
        p->list_begin[i + 1] = p->n_seen;
        p->bias_begin[i + 1] = p->n_bias;
        p->ban_begin[i + 1] = p->n_ban;
    }
    return true;
}

/* ---- taking the answers --------------------------------------------------------------------- */

static void note_first_token(mx_generation *r)
{
    mx_generator *g = r->g;
    uint64_t now = mx_now_ns(g->clock);
    if (!r->first_token_ns) {
        r->first_token_ns = now;
        mx_metric_observe(g->metric.ttft, (double)(now - r->job.queued_ns) * 1e-9);
    } else {
        mx_metric_observe(g->metric.itl, (double)(now - r->last_token_ns) * 1e-9);
    }
    r->last_token_ns = now;
}

/* The prompt is in: the other candidates begin with what sequence 0 has. */
static mx_status fork_candidates(mx_generation *r, mx_error *err)
{
    for (int32_t k = 1; k < r->width; k++) {
        MX_TRY(gen_seq_copy(r, &r->seq[k], &r->seq[0], err));
        r->n_seqs = k + 1;
    }
    r->forked = true;
    return MX_OK;
}

static void keep_logprobs(mx_generation *r, int32_t seq, const gen_pack *p, int32_t i, int32_t k)
{
    if (r->p.logprobs < 0) return;
    gen_seq *q = &r->seq[seq];
    size_t own = (size_t)r->p.logprobs, at = (size_t)(q->n_ids - r->n_prompt);
    q->lp[at] = p->lp[i];
    q->logprob_sum += (double)p->lp[i];
    memcpy(q->top_id + at * own, p->top_id + (size_t)i * (size_t)k, own * sizeof *q->top_id);
    memcpy(q->top_lp + at * own, p->top_lp + (size_t)i * (size_t)k, own * sizeof *q->top_lp);
}

static void keep_prompt_logprob(mx_generation *r, int32_t position, const gen_pack *p, int32_t i, int32_t k)
{
    size_t own = (size_t)r->p.logprobs, at = (size_t)position + 1;       /* row t speaks of id t+1 */
    r->prompt_lp[at] = p->lp[i];
    memcpy(r->prompt_top_id + at * own, p->top_id + (size_t)i * (size_t)k, own * sizeof *r->prompt_top_id);
    memcpy(r->prompt_top_lp + at * own, p->top_lp + (size_t)i * (size_t)k, own * sizeof *r->prompt_top_lp);
}

static mx_status take_row(mx_generation *r, int32_t seq, const gen_pack *p, int32_t i, int32_t k, mx_error *err)
{
    if (p->chosen[i] < 0)
        return mx_fail(err, MX_ERR_INTERNAL, "no token is possible for candidate %d: every logit is banned or not a number", seq);
    if (!r->forked) MX_TRY(fork_candidates(r, err));
    r->scored = true;
    keep_logprobs(r, seq, p, i, k);
    return gen_accept(r, seq, p->chosen[i], err);
}

static void take_rows(mx_generator *g, int32_t k)
{
    gen_pack *p = &g->pack;
    for (int32_t i = 0; i < p->n_logits; i++) {
        mx_generation *r = p->want[i].gen;
        if (p->want[i].prompt_position >= 0) {
            keep_prompt_logprob(r, p->want[i].prompt_position, p, i, k);
            continue;
        }
        if (r->job.error.code) continue;
        int32_t first = i, before = r->output_tokens;
        mx_error err = {0};
        mx_status st = MX_OK;
        if (r->p.beams > 1) {
            while (i + 1 < p->n_logits && p->want[i + 1].gen == r) i++;
            st = gen_beam_step(r, p->top_id + (size_t)first * (size_t)k, p->top_lp + (size_t)first * (size_t)k, k, &err);
        } else {
            st = take_row(r, p->want[i].seq, p, i, k, &err);
        }
        if (st) r->job.error = err;
        if (i + 1 == p->n_logits || p->want[i + 1].gen != r) note_first_token(r);
        atomic_fetch_add(&g->output_tokens, (unsigned long long)(r->output_tokens - before));
        mx_metric_inc(g->metric.output_tokens, (uint64_t)(r->output_tokens - before));
    }
}

/* The lists where the device reads them; they are host memory already when that is the CPU. */
static mx_logit_lists place_lists(mx_stream *s, const gen_pack *p, int32_t n)
{
    mx_logit_lists l = {p->list_begin, p->list_id, p->list_count, p->bias_begin, p->bias_id, p->bias, p->ban_begin, p->ban_id};
    if (s->dev->kind == MX_CPU) return l;
    l.seen_begin = mx_stream_upload(s, MX_I32, n + 1, 1, p->list_begin).data;
    l.seen_id = mx_stream_upload(s, MX_I32, p->n_seen, 1, p->list_id).data;
    l.seen_count = mx_stream_upload(s, MX_I32, p->n_seen, 1, p->list_count).data;
    l.bias_begin = mx_stream_upload(s, MX_I32, n + 1, 1, p->bias_begin).data;
    l.bias_id = mx_stream_upload(s, MX_I32, p->n_bias, 1, p->bias_id).data;
    l.bias = mx_stream_upload(s, MX_F32, p->n_bias, 1, p->bias).data;
    l.ban_begin = mx_stream_upload(s, MX_I32, n + 1, 1, p->ban_begin).data;
    l.ban_id = mx_stream_upload(s, MX_I32, p->n_ban, 1, p->ban_id).data;
    return l;
}

mx_status gen_choose(mx_generator *g, mx_stream *s, mx_tensor logits, mx_error *err)
{
    gen_pack *p = &g->pack;
    int32_t n = p->n_logits, k = 0;
    bool logprobs = false, process = false;
    if (!fill_lists(g)) return mx_fail(err, MX_ERR_NO_MEMORY, "lists of a turn");
    for (int32_t i = 0; i < n; i++) {
        const mx_generation *r = p->want[i].gen;
        int32_t best = r->p.beams > 1 ? gen_beam_width(&g->model.config, &r->p) : r->p.logprobs;
        if (best >= 0) logprobs = true;
        if (best > k) k = best;
        process |= r->penalties;
    }
    process |= p->n_bias || p->n_ban;

    mx_tensor raw = logits, ids = mx_stream_tensor(s, MX_I32, n, 1);
    if (logprobs && process) {                /* log-probabilities are the model's own, before penalties */
        for (int32_t i = 0; i < n; i++) p->chosen[i] = i;
        raw = mx_stream_tensor(s, MX_F32, n, logits.cols);
        mx_embed(s, raw, logits, mx_stream_upload(s, MX_I32, n, 1, p->chosen), false);
    }
    if (process) {
        mx_logit_lists lists = place_lists(s, p, n);
        mx_logits_process(s, logits, p->row, &lists);
    }
    mx_sample(s, ids, logits, p->row);
    s->dev->ops->download(s, p->chosen, ids.data, (size_t)n * sizeof *p->chosen);
    MX_TRY(mx_stream_sync(s, err));
    for (int32_t i = 0; i < n; i++)
        if (p->want[i].prompt_position >= 0) p->chosen[i] = p->want[i].gen->prompt[p->want[i].prompt_position + 1];
    if (logprobs) {
        mx_tensor lp = mx_stream_tensor(s, MX_F32, n, 1), top_id = {0}, top_lp = {0};
        if (k) {
            top_id = mx_stream_tensor(s, MX_I32, n, k);
            top_lp = mx_stream_tensor(s, MX_F32, n, k);
        }
        mx_logprobs(s, lp, mx_stream_upload(s, MX_I32, n, 1, p->chosen), top_id, top_lp, raw);
        s->dev->ops->download(s, p->lp, lp.data, (size_t)n * sizeof *p->lp);
        if (k) {
            s->dev->ops->download(s, p->top_id, top_id.data, (size_t)n * (size_t)k * sizeof *p->top_id);
            s->dev->ops->download(s, p->top_lp, top_lp.data, (size_t)n * (size_t)k * sizeof *p->top_lp);
        }
        MX_TRY(mx_stream_sync(s, err));
    }
    take_rows(g, k);
    return MX_OK;
}
