/* beam.c - beam search as transformers does it (early_stopping=False).
 *
 * Each step takes the best (1 + number of end tokens) * beams continuations of
 * all beams.  Those that end and stand among the first `beams` are finished
 * hypotheses, scored logprob_sum / length^length_penalty; the best others are
 * the next beams.  It is over when the best running beam cannot beat the worst
 * of `beams` finished ones, or at the length limit. */
#include "models/generation.h"

#include "runtime/slab.h"

#include <math.h>
#include <stdlib.h>

#define MAX_BEAMS 16
#define MAX_CONTINUATIONS ((1 + MX_DECODER_MAX_EOS) * MAX_BEAMS)

typedef struct continuation { int32_t beam, id; double sum; } continuation;

int32_t gen_beam_width(const mx_decoder_config *c, const mx_sampling *p)
{
    int32_t ends = (p->ignore_eos ? 0 : c->n_eos) + p->n_stop_ids;
    return (1 + (ends > 1 ? ends : 1)) * p->beams;
}

static int falling(const void *a, const void *b)
{
    const continuation *x = a, *y = b;
    if (x->sum != y->sum) return x->sum < y->sum ? 1 : -1;
    if (x->beam != y->beam) return x->beam < y->beam ? -1 : 1;
    return x->id < y->id ? -1 : x->id > y->id;
}

/* Put a hypothesis among the best, which stay sorted; the worst falls out. */
static mx_status keep_hypothesis(mx_generation *r, const gen_seq *beam, int32_t id, double sum, double score, mx_finish why, mx_error *err)
{
    if (r->n_best == r->width && score <= r->best[r->n_best - 1].score) return MX_OK;
    gen_seq fresh = {0};
    mx_status st = gen_seq_copy(r, &fresh, beam, err);
    if (st) {
        gen_seq_close(r, &fresh);
        return st;
    }
    mx_kv_release(&r->g->kv, &fresh.kv);
    fresh.ids[fresh.n_ids++] = id;
    fresh.logprob_sum = sum;
    fresh.score = score;
    fresh.result.finish = why;
    if (r->n_best == r->width) gen_seq_close(r, &r->best[--r->n_best]);
    int32_t at = r->n_best++;
    for (; at > 0 && r->best[at - 1].score < score; at--) r->best[at] = r->best[at - 1];
    r->best[at] = fresh;
    return MX_OK;
}

/* The chosen continuations become the beams; pages are shared with their parents. */
static mx_status next_beams(mx_generation *r, const continuation *c, int32_t n, mx_error *err)
{
    gen_seq fresh[MAX_BEAMS] = {0};
    mx_status st = MX_OK;
    for (int32_t i = 0; i < n && !st; i++) {
        st = gen_seq_copy(r, &fresh[i], &r->seq[c[i].beam], err);
        if (st) break;
        fresh[i].ids[fresh[i].n_ids++] = c[i].id;
        fresh[i].logprob_sum = c[i].sum;
    }
    if (st) {
        for (int32_t i = 0; i < n; i++) gen_seq_close(r, &fresh[i]);
        return st;
    }
    for (int32_t i = 0; i < r->n_seqs; i++) gen_seq_close(r, &r->seq[i]);
    memcpy(r->seq, fresh, (size_t)n * sizeof *fresh);
    r->n_seqs = n;
    return MX_OK;
}

/* Texts of the n best, told to the caller one after the other. */
static mx_status finish(mx_generation *r, mx_error *err)
{
    for (int32_t i = 0; i < r->n_seqs; i++) {
        r->seq[i].active = false;
        mx_kv_release(&r->g->kv, &r->seq[i].kv);
    }
    for (int32_t i = 0; i < r->n_best && i < r->p.n; i++) {
        gen_seq *q = &r->best[i];
        mx_finish why = q->result.finish;
        int32_t n = q->n_ids - (why == MX_FINISH_STOP);
        for (int32_t k = r->n_prompt; k < n; k++) {
            size_t len;
            const char *text = mx_detokenizer_push(&q->detok, q->ids[k], &len);
            char *grown = text ? mx_slab_grow(q->text, q->text_len + len + 1) : NULL;
            if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "text of a beam");
            memcpy(grown + q->text_len, text, len);
            q->text = grown;
            q->text_len += len;
            q->text[q->text_len] = 0;
            q->text_room = q->text_len + 1;
        }
        r->output_tokens += q->n_ids - r->n_prompt;
        MX_TRY(gen_finish_text(r, i, q, why, err));
    }
    return MX_OK;
}

mx_status gen_beam_step(mx_generation *r, const int32_t *top_id, const float *top_lp, int32_t k, mx_error *err)
{
    continuation all[MAX_BEAMS * MAX_CONTINUATIONS], next[MAX_BEAMS];
    int32_t keep = gen_beam_width(&r->g->model.config, &r->p), n = 0, n_next = 0;
    for (int32_t b = 0; b < r->n_seqs; b++)
        for (int32_t j = 0; j < keep; j++) {
            size_t at = (size_t)b * (size_t)k + (size_t)j;
            if (top_id[at] >= 0 && isfinite(top_lp[at])) all[n++] = (continuation){b, top_id[at], r->seq[b].logprob_sum + (double)top_lp[at]};
        }
    if (!n) return mx_fail(err, MX_ERR_INTERNAL, "beam search: every logit is not a number");
    qsort(all, (size_t)n, sizeof *all, falling);
    if (n > keep) n = keep;

    int32_t length = r->seq[0].n_ids + 1 - r->n_prompt;
    bool full = r->seq[0].n_ids + 1 >= r->limit;
    double norm = pow(length, (double)r->p.length_penalty);
    for (int32_t i = 0; i < n; i++) {
        bool end = gen_is_end(r, all[i].id);
        if ((end || full) && i < r->width)
            MX_TRY(keep_hypothesis(r, &r->seq[all[i].beam], all[i].id, all[i].sum, all[i].sum / norm,
                                   end ? MX_FINISH_STOP : MX_FINISH_LENGTH, err));
        if (!end && !full && n_next < r->width) next[n_next++] = all[i];
    }
    bool hopeless = n_next && r->n_best == r->width && next[0].sum / norm <= r->best[r->n_best - 1].score;
    if (!n_next || hopeless) return finish(r, err);
    return next_beams(r, next, n_next, err);
}
