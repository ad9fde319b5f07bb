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
                                        gen_uniform(w->gen->seed, (uint32_t)w->seq, (uint32_t)(q->n_ids + q->ahead - w->gen->n_prompt)), 0};
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

static mx_status take(mx_generation *r, const gen_pack *p, int32_t first, mx_error *err)
{
    int32_t k = p->choice.k;
    if (r->p.beams <= 1) return take_row(r, p->want[first].seq, p, first, k, err);
    return gen_beam_step(r, p->top_id + (size_t)first * (size_t)k, p->top_lp + (size_t)first * (size_t)k, k, err);
}

void gen_choice_take(mx_generator *g, gen_pack *p)
{
    mx_generation *told = NULL;              /* whose last row of the turn has not been seen yet */
    for (int32_t i = 0; i < p->n_logits; i++) {
        mx_generation *r = p->want[i].gen;
        if (!r) continue;                    /* it left while the turn ran */
        if (p->want[i].prompt_position >= 0) {
            keep_prompt_logprob(r, p->want[i].prompt_position, p, i, p->choice.k);
            continue;
        }
        gen_seq *q = &r->seq[p->want[i].seq];
        if (p->left) q->ahead--;
        if (r->failed.code || (r->forked && !q->active)) continue;     /* it ended with the token before */
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

/* n elements in room for a power of two of them, so that turns of about the same size lie in the same places. */
static const void *place_list(mx_stream *s, mx_dtype type, int32_t n, const void *host)
{
    int64_t room = 64;
    while (room < n) room *= 2;
    mx_tensor t = mx_stream_tensor(s, type, room, 1);
    s->dev->ops->upload(s, t.data, host, (size_t)n * sizeof(int32_t));
    return t.data;
}

/* The lists where the device reads them; they are host memory already when that is the CPU. */
static mx_logit_lists place_lists(mx_stream *s, const gen_pack *p, int32_t n)
{
    mx_logit_lists l = {p->list_begin, p->list_id, p->list_count, p->bias_begin, p->bias_id, p->bias, p->ban_begin, p->ban_id, NULL};
    if (s->dev->kind == MX_CPU) return l;
    l.seen_begin = place_list(s, MX_I32, n + 1, p->list_begin);
    l.bias_begin = place_list(s, MX_I32, n + 1, p->bias_begin);
    l.ban_begin = place_list(s, MX_I32, n + 1, p->ban_begin);
    l.seen_id = place_list(s, MX_I32, p->n_seen, p->list_id);
    l.seen_count = place_list(s, MX_I32, p->n_seen, p->list_count);
    l.bias_id = place_list(s, MX_I32, p->n_bias, p->bias_id);
    l.bias = place_list(s, MX_F32, p->n_bias, p->bias);
    l.ban_id = place_list(s, MX_I32, p->n_ban, p->ban_id);
    return l;
}

/* Ids that the lists of penalties lack, because the turn that chose them has not been read: they are looked up there. */
static void add_unread(mx_generator *g, mx_stream *s, gen_choice *c)
{
    gen_pack *p = &g->pack;
    int32_t n = p->n_logits;
    for (int32_t i = 0; i < n; i++) {
        const gen_want *w = &p->want[i];
        bool unread = w->prompt_position < 0 && w->gen->penalties && source_of(w)->ahead;
        p->chosen[i] = unread ? source_of(w)->fed : -1;
    }
    c->fed = mx_tensor_of(g->fed.base, MX_I32, p->max_logits, 1);
    c->last_from = mx_stream_upload(s, MX_I32, n, 1, p->chosen);
    c->last = mx_stream_tensor(s, MX_I32, n, 1);
    c->lists.last = c->last.data;
}

mx_status gen_choice_begin(mx_generator *g, mx_stream *s, mx_tensor logits, gen_choice *c, mx_error *err)
{
    gen_pack *p = &g->pack;
    int32_t n = p->n_logits;
    memset(c, 0, sizeof *c);
    if (!n) return MX_OK;
    if (!fill_lists(g)) return mx_fail(err, MX_ERR_NO_MEMORY, "lists of a turn");
    for (int32_t i = 0; i < n; i++) {
        const mx_generation *r = p->want[i].gen;
        int32_t best = r->p.beams > 1 ? gen_beam_width(&g->model.config, &r->p) : r->p.logprobs;
        if (best >= 0) c->logprobs = true;
        if (best > c->k) c->k = best;
        c->process |= r->penalties;
        if (p->want[i].prompt_position >= 0) p->row[i].forced = 1 + (int64_t)r->prompt[p->want[i].prompt_position + 1];
    }
    c->process |= p->n_bias || p->n_ban;
    c->raw = logits;
    c->ids = g->ahead ? mx_tensor_of(g->fed.base, MX_I32, n, 1) : mx_stream_tensor(s, MX_I32, n, 1);
    c->row = mx_sample_rows(s, p->row, n);
    if (c->logprobs && c->process) {          /* log-probabilities are the model's own, before penalties */
        for (int32_t i = 0; i < n; i++) p->chosen[i] = i;
        c->every = mx_stream_upload(s, MX_I32, n, 1, p->chosen);
        c->raw = mx_stream_tensor(s, MX_F32, n, logits.cols);
    }
    if (c->logprobs) c->lp = mx_stream_tensor(s, MX_F32, n, 1);
    if (c->logprobs && c->k) {
        c->top_id = mx_stream_tensor(s, MX_I32, n, c->k);
        c->top_lp = mx_stream_tensor(s, MX_F32, n, c->k);
    }
    if (c->process) c->lists = place_lists(s, p, n);
    if (c->process && g->ahead) add_unread(g, s, c);
    return MX_OK;
}

void gen_choice_run(mx_stream *s, mx_tensor logits, const gen_choice *c)
{
    if (!c->ids.rows) return;
    if (c->every.data) mx_embed(s, c->raw, logits, c->every, false);
    if (c->last.data) mx_feed_ids(s, c->last, (mx_tensor){0}, c->last_from, c->fed);
    if (c->process) mx_logits_process(s, logits, c->row, &c->lists);
    mx_sample(s, c->ids, logits, c->row);
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
