/* choose.c - from the logits of a turn to the next token of every sequence. */
#include "models/generation.h"

#include <stdlib.h>

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
    if (q->n_ids + q->ahead - r->n_prompt >= r->p.min_tokens) return true;
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

mx_status gen_choice_prepare(mx_generator *g, mx_error *err)
{
    gen_pack *p = &g->pack;
    p->n_bias = p->n_ban = 0;
    p->bias_begin[0] = p->ban_begin[0] = 0;
    for (int32_t i = 0; i < p->n_logits; i++) {
        const gen_want *w = &p->want[i];
        const mx_generation *r = w->gen;
        int32_t pick[4] = {-1, -1, w->seq, 0};
        if (w->prompt_position >= 0) {
            pick[3] = 1 + r->prompt[w->prompt_position + 1];
        } else if (r->p.beams <= 1) {
            const gen_seq *q = source_of(w);
            pick[0] = q->seat;
            if (r->forked || w->seq == 0) pick[1] = q->seat;       /* before the fork only the first has a seat */
            if (!push_bias(p, r) || !ban_ngrams(p, q, r->p.no_repeat_ngram) || !gen_ban_texts(p, r, q) || !ban_ends(p, r, q))
                return mx_fail(err, MX_ERR_NO_MEMORY, "lists of a turn");
        }
        memcpy(p->picks + 4 * i, pick, sizeof pick);
        p->bias_begin[i + 1] = p->n_bias;
        p->ban_begin[i + 1] = p->n_ban;
    }
    return MX_OK;
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

static mx_status take(mx_generation *r, const gen_pack *p, int32_t first, mx_error *err)
{
    int32_t k = p->choice.k;
    if (r->p.beams <= 1) return take_row(r, p->want[first].seq, p, first, k, err);
    return gen_beam_step(r, p->top_id + (size_t)first * (size_t)k, p->top_lp + (size_t)first * (size_t)k, k, err);
}

static void throw_away(mx_generator *g)
{
    atomic_fetch_add(&g->thrown_away, 1);
    mx_metric_inc(g->metric.thrown_away, 1);
}

void gen_choice_take(mx_generator *g, gen_pack *p)
{
    mx_generation *told = NULL;              /* whose last row of the turn has not been seen yet */
    for (int32_t i = 0; i < p->n_logits; i++) {
        mx_generation *r = p->want[i].gen;
        if (!r) {                            /* it left while the turn ran */
            throw_away(g);
            continue;
        }
        if (p->want[i].prompt_position >= 0) {
            keep_prompt_logprob(r, p->want[i].prompt_position, p, i, p->choice.k);
            continue;
        }
        gen_seq *q = &r->seq[p->want[i].seq];
        if (p->left) q->ahead--;
        if (r->failed.code || (r->forked && !q->active)) {             /* it ended with the token before */
            throw_away(g);
            continue;
        }
        int32_t first = i, before = r->output_tokens;
        while (r->p.beams > 1 && i + 1 < p->n_logits && p->want[i + 1].gen == r) i++;
        mx_error err = {0};
        if (take(r, p, first, &err)) r->failed = err;
        if (told && told != r) note_first_token(told);
        told = r;
        atomic_fetch_add(&g->output_tokens, (unsigned long long)(r->output_tokens - before));
        mx_metric_inc(g->metric.output_tokens, (uint64_t)(r->output_tokens - before));
    }
    if (told) note_first_token(told);
}

/* ---- a turn's choices: prepared, made, taken ----------------------------------------------------- */

/* The lists where the device reads them; they are host memory already when that is the CPU. */
static mx_logit_lists place_lists(mx_generator *g, mx_stream *s)
{
    const gen_pack *p = &g->pack;
    gen_seats *k = &g->seats;
    size_t i = sizeof(int32_t), n = (size_t)p->n_logits + 1;
    if (s->dev->kind == MX_CPU) return (mx_logit_lists){p->bias_begin, p->bias_id, p->bias, p->ban_begin, p->ban_id};
    gen_keep(s, &k->bias_begin, p->bias_begin, n * i);
    gen_keep(s, &k->ban_begin, p->ban_begin, n * i);
    gen_keep(s, &k->bias_id, p->bias_id, (size_t)p->n_bias * i);
    gen_keep(s, &k->bias, p->bias, (size_t)p->n_bias * i);
    gen_keep(s, &k->ban_id, p->ban_id, (size_t)p->n_ban * i);
    return (mx_logit_lists){k->bias_begin.at, k->bias_id.at, k->bias.at, k->ban_begin.at, k->ban_id.at};
}

void gen_choice_begin(mx_generator *g, mx_stream *s, const mx_decoder_turn *t, gen_choice *c)
{
    gen_pack *p = &g->pack;
    int32_t n = p->n_logits;
    memset(c, 0, sizeof *c);
    if (!n) return;
    for (int32_t i = 0; i < n; i++) {
        const mx_generation *r = p->want[i].gen;
        int32_t best = r->p.beams > 1 ? gen_beam_width(&g->model.config, &r->p) : r->p.logprobs;
        if (best >= 0) c->logprobs = true;
        if (best > c->k) c->k = best;
        c->process |= r->penalties;
    }
    c->process |= p->n_bias || p->n_ban;
    c->raw = t->logits;
    c->ids = mx_stream_tensor(s, MX_I32, n, 1);
    c->seats = &g->seats.device;
    c->row = t->choices.data;
    if (c->logprobs && c->process) {          /* log-probabilities are the model's own, before penalties */
        gen_keep(s, &g->seats.every, g->seats.all, (size_t)n * sizeof *g->seats.all);
        c->every = mx_tensor_of(g->seats.every.at, MX_I32, n, 1);
        c->raw = mx_stream_tensor(s, MX_F32, n, t->logits.cols);
    }
    if (c->logprobs) c->lp = mx_stream_tensor(s, MX_F32, n, 1);
    if (c->logprobs && c->k) {
        c->top_id = mx_stream_tensor(s, MX_I32, n, c->k);
        c->top_lp = mx_stream_tensor(s, MX_F32, n, c->k);
    }
    if (c->process) c->lists = place_lists(g, s);
}

void gen_choice_run(mx_stream *s, mx_tensor logits, const gen_choice *c)
{
    if (!c->ids.rows) return;
    if (c->every.data) mx_embed(s, c->raw, logits, c->every, false);
    if (c->process) mx_logits_process(s, logits, c->row, &c->lists, c->seats);
    mx_sample(s, c->ids, logits, c->row, c->seats);
    if (c->logprobs) mx_logprobs(s, c->lp, c->ids, c->top_id, c->top_lp, c->raw);
}

void gen_choice_download(mx_generator *g, mx_stream *s, const gen_choice *c)
{
    gen_pack *p = &g->pack;
    size_t n = (size_t)c->ids.rows, best = n * (size_t)c->k;
    if (!n) return;
    s->dev->ops->download(s, p->chosen, c->ids.data, n * sizeof *p->chosen);
    if (c->logprobs) s->dev->ops->download(s, p->lp, c->lp.data, n * sizeof *p->lp);
    if (!c->logprobs || !best) return;
    s->dev->ops->download(s, p->top_id, c->top_id.data, best * sizeof *p->top_id);
    s->dev->ops->download(s, p->top_lp, c->top_lp.data, best * sizeof *p->top_lp);
}
