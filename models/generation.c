/* generation.c - one request: checking it, its sequences, its text. */
#include "models/generation.h"

#include "runtime/slab.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

mx_sampling mx_sampling_defaults(void)
{
    return (mx_sampling){.temperature = 1, .top_p = 1, .typical_p = 1, .repetition_penalty = 1, .n = 1, .beams = 1,
                         .length_penalty = 1, .logprobs = -1};
}

const char *mx_finish_name(mx_finish f)
{
    static const char *const names[] = {"none", "stop", "length", "cancelled", "error"};
    return (unsigned)f < sizeof names / sizeof *names ? names[f] : "?";
}

/* ---- checking ---------------------------------------------------------------------- */

static mx_status in_range(const char *field, double v, double least, double most, mx_error *err)
{
    if (v >= least && v <= most) return MX_OK;           /* false for NaN */
    return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be from %g to %g", field, v, least, most);
}

static mx_status check_texts(const char *field, const char *const *texts, int32_t n, int32_t most, mx_error *err)
{
    if (n < 0 || n > most) return mx_fail(err, MX_ERR_ARG, "%s has %d entries; at most %d are allowed", field, n, most);
    for (int32_t i = 0; i < n; i++) {
        size_t len = strlen(texts[i]), bad;
        if (len < 1 || len > MX_MAX_TEXT_BYTES)
            return mx_fail(err, MX_ERR_ARG, "%s[%d] has %zu bytes; it must have 1 to %d", field, i, len, MX_MAX_TEXT_BYTES);
        if (!mx_utf8_valid(texts[i], len, &bad))
            return mx_fail(err, MX_ERR_ARG, "%s[%d] is not UTF-8 at byte %zu", field, i, bad);
    }
    return MX_OK;
}

static mx_status check_beams(const mx_generator *g, const mx_sampling *p, mx_error *err)
{
    const mx_decoder_config *c = &g->model.config;
    if (p->beams <= 1) return MX_OK;
    const char *with = p->n > p->beams ? "n larger than beams"
                       : p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0 ? "penalties"
                       : p->no_repeat_ngram ? "no_repeat_ngram"
                       : p->n_banned ? "banned"
                       : p->n_bias ? "logit_bias"
                       : p->n_stops ? "stop"
                       : p->min_tokens ? "min_tokens"
                       : p->logprobs >= 0 ? "logprobs"
                       : p->echo ? "echo" : NULL;
    if (with) return mx_fail(err, MX_ERR_ARG, "beams is %d; beam search cannot be combined with %s", p->beams, with);
    int32_t most = MX_DECODER_MAX_EOS - (p->ignore_eos ? 0 : c->n_eos);
    if (p->n_stop_ids > most)
        return mx_fail(err, MX_ERR_ARG, "stop_ids has %d entries; with beam search at most %d are allowed", p->n_stop_ids, most);
    if (gen_beam_width(c, p) > c->vocab)
        return mx_fail(err, MX_ERR_ARG, "beams is %d; too many for a vocabulary of %d", p->beams, c->vocab);
    return MX_OK;
}

static mx_status check_sampling(const mx_generator *g, const mx_sampling *p, mx_error *err)
{
    int32_t vocab = g->model.config.vocab;
    MX_TRY(in_range("temperature", p->temperature, 0, 100, err));
    MX_TRY(in_range("top_p", p->top_p, 1e-6, 1, err));
    MX_TRY(in_range("min_p", p->min_p, 0, 1, err));
    MX_TRY(in_range("typical_p", p->typical_p, 1e-6, 1, err));
    MX_TRY(in_range("repetition_penalty", p->repetition_penalty, 0.01, 100, err));
    MX_TRY(in_range("presence_penalty", p->presence_penalty, -2, 2, err));
    MX_TRY(in_range("frequency_penalty", p->frequency_penalty, -2, 2, err));
    MX_TRY(in_range("no_repeat_ngram", p->no_repeat_ngram, 0, 1024, err));
    MX_TRY(in_range("n", p->n, 1, MX_MAX_CANDIDATES, err));
    MX_TRY(in_range("beams", p->beams, 1, 16, err));
    MX_TRY(in_range("length_penalty", p->length_penalty, -10, 10, err));
    MX_TRY(in_range("max_tokens", p->max_tokens, 0, INT32_MAX, err));
    MX_TRY(in_range("min_tokens", p->min_tokens, 0, p->max_tokens ? p->max_tokens : INT32_MAX, err));
    MX_TRY(in_range("logprobs", p->logprobs, -1, vocab < MX_MAX_TOP_LOGPROBS ? vocab : MX_MAX_TOP_LOGPROBS, err));
    MX_TRY(check_texts("stop", p->stops, p->n_stops, MX_MAX_STOPS, err));
    MX_TRY(check_texts("banned", p->banned, p->n_banned, MX_MAX_BANNED, err));
    MX_TRY(in_range("stop_ids", p->n_stop_ids, 0, MX_MAX_STOPS, err));
    MX_TRY(in_range("logit_bias", p->n_bias, 0, MX_MAX_BIASES, err));
    for (int32_t i = 0; i < p->n_stop_ids; i++) MX_TRY(in_range("stop_ids", p->stop_ids[i], 0, vocab - 1, err));
    for (int32_t i = 0; i < p->n_bias; i++) {
        MX_TRY(in_range("logit_bias.id", p->bias_ids[i], 0, vocab - 1, err));
        MX_TRY(in_range("logit_bias.bias", p->bias[i], -100, 100, err));
    }
    return check_beams(g, p, err);
}

static mx_status check_prompt(const mx_generator *g, const int32_t *prompt, int32_t n, const mx_sampling *p, mx_error *err)
{
    int32_t len = g->opt.max_model_len;
    if (n < 1) return mx_fail(err, MX_ERR_ARG, "prompt is empty: the model needs at least one token");
    if (n >= len) return mx_fail(err, MX_ERR_ARG, "prompt has %d tokens; the context is %d, one of them for the answer", n, len);
    for (int32_t i = 0; i < n; i++)
        if (prompt[i] < 0 || prompt[i] >= g->model.config.vocab)
            return mx_fail(err, MX_ERR_ARG, "prompt id %d at %d; the vocabulary has %d", prompt[i], i, g->model.config.vocab);
    int64_t width = p->beams > 1 ? p->beams : p->n, page = g->kv.page_tokens;
    int64_t out = p->max_tokens && p->max_tokens < len - n ? p->max_tokens : len - n;
    int64_t pages = (n + page - 1) / page + width * (out / page + 2);
    if (width == 1) pages = (n + out + page - 1) / page;
    if (pages > g->kv.pages)
        return mx_fail(err, MX_ERR_ARG, "prompt of %d, max_tokens %lld, %lld sequences: needs %lld KV pages, the cache has %d", n,
                       (long long)out, (long long)width, (long long)pages, g->kv.pages);
    if (width > g->pack.max_logits || width > g->opt.max_batched_tokens)
        return mx_fail(err, MX_ERR_ARG, "%lld sequences; a turn of this model has %d rows", (long long)width, g->opt.max_batched_tokens);
    return MX_OK;
}

/* ---- own copies ----------------------------------------------------------------------- */

static void *copy_of(const void *from, size_t n, size_t size)
{
    void *to = mx_slab_alloc(n * size + 1);
    if (to && n) memcpy(to, from, n * size);
    return to;
}

static char **copy_texts(const char *const *texts, int32_t n, size_t *longest)
{
    char **to = mx_slab_zeroed(((size_t)n + 1) * sizeof *to);
    for (int32_t i = 0; to && i < n; i++) {
        size_t len = strlen(texts[i]);
        if (longest && len > *longest) *longest = len;
        to[i] = mx_slab_text(texts[i]);
        if (!to[i]) {
            for (int32_t k = 0; k < i; k++) mx_slab_free(to[k]);
            mx_slab_free(to);
            return NULL;
        }
    }
    return to;
}

static void free_texts(char **texts, int32_t n)
{
    for (int32_t i = 0; texts && i < n; i++) mx_slab_free(texts[i]);
    mx_slab_free(texts);
}

static uint64_t random_seed(void)
{
    uint64_t seed = 0;
    if (getrandom(&seed, sizeof seed, 0) != (ssize_t)sizeof seed) seed = mx_now_ns(&mx_clock_monotonic);
    return seed;
}

static mx_status copy_request(mx_generation *r, const int32_t *prompt, int32_t n_prompt, const mx_sampling *p, mx_error *err)
{
    r->p = *p;
    r->n_prompt = n_prompt;
    r->prompt = copy_of(prompt, (size_t)n_prompt, sizeof *prompt);
    r->stops = copy_texts(p->stops, p->n_stops, NULL);
    r->banned = copy_texts(p->banned, p->n_banned, &r->longest_banned);
    r->stop_ids = copy_of(p->stop_ids, (size_t)p->n_stop_ids, sizeof *p->stop_ids);
    r->bias_ids = copy_of(p->bias_ids, (size_t)p->n_bias, sizeof *p->bias_ids);
    r->bias = copy_of(p->bias, (size_t)p->n_bias, sizeof *p->bias);
    r->width = p->beams > 1 ? p->beams : p->n;
    r->seq = mx_slab_zeroed((size_t)r->width * sizeof *r->seq);
    r->best = mx_slab_zeroed((size_t)r->width * sizeof *r->best);
    if (p->echo && p->logprobs >= 0) {
        size_t k = (size_t)p->logprobs * (size_t)n_prompt;
        r->prompt_lp = mx_slab_zeroed((size_t)n_prompt * sizeof *r->prompt_lp);
        r->prompt_top_id = mx_slab_zeroed((k + 1) * sizeof *r->prompt_top_id);
        r->prompt_top_lp = mx_slab_zeroed((k + 1) * sizeof *r->prompt_top_lp);
    } else {
        r->scored = true;
    }
    bool ok = r->prompt && r->stops && r->banned && r->stop_ids && r->bias_ids && r->bias && r->seq && r->best &&
              (r->scored || (r->prompt_lp && r->prompt_top_id && r->prompt_top_lp));
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a request of %d prompt tokens", n_prompt);
}

static void job_done(mx_job *job)
{
    mx_generation *r = (mx_generation *)job;
    mx_generator *g = r->g;
    gen_forget(r);
    if (r->listed) {
        if (r->prev) r->prev->next = r->next;
        else g->first = r->next;
        if (r->next) r->next->prev = r->prev;
        else g->last = r->prev;
        r->listed = false;
    }
    uint64_t now = mx_now_ns(g->clock);
    if (!r->job.done_ns) r->job.done_ns = now;
    mx_metric_set(g->metric.kv_usage, gen_kv_usage(g));
    if (!r->job.error.code) {
        mx_metric_inc(g->metric.success, 1);
        mx_metric_observe(g->metric.e2e, (double)(now - r->job.queued_ns) * 1e-9);
    }
    r->calls.done(r, &r->job.error);
}

mx_status mx_generation_open(mx_generation **out, mx_generator *g, const int32_t *prompt, int32_t n_prompt,
                             const mx_sampling *sampling, const mx_generation_calls *calls, uint64_t deadline_ns, mx_error *err)
{
    *out = NULL;
    MX_TRY(check_sampling(g, sampling, err));
    MX_TRY(check_prompt(g, prompt, n_prompt, sampling, err));
    mx_generation *r = mx_slab_zeroed(sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "a request");
    r->g = g;
    r->sched = g->sched;
    r->calls = *calls;
    r->adapter_slot = -1;
    mx_status st;
    MX_TRY_GOTO(st, copy_request(r, prompt, n_prompt, sampling, err), fail);
    if (sampling->adapter) MX_TRY_GOTO(st, gen_adapter_use(g, sampling->adapter, &r->adapter_slot, err), fail);
    MX_TRY_GOTO(st, gen_banned_open(r, err), fail);
    r->seed = sampling->seeded ? sampling->seed : random_seed();
    r->penalties = sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 || sampling->frequency_penalty != 0;
    int32_t room = g->opt.max_model_len - n_prompt;
    r->limit = n_prompt + (sampling->max_tokens && sampling->max_tokens < room ? sampling->max_tokens : room);
    MX_TRY_GOTO(st, gen_seq_open(r, &r->seq[0], err), fail);
    r->n_seqs = 1;
    r->forked = r->width == 1;
    r->job.deadline_ns = deadline_ns;
    r->job.done = job_done;
    r->job.rows = (uint32_t)n_prompt;
    r->job.splits = true;
    *out = r;
    return MX_OK;
fail:
    mx_generation_close(r);
    return st;
}

void mx_generation_close(mx_generation *r)
{
    if (!r) return;
    for (int32_t i = 0; r->seq && i < r->width; i++) gen_seq_close(r, &r->seq[i]);
    for (int32_t i = 0; r->best && i < r->width; i++) gen_seq_close(r, &r->best[i]);
    mx_slab_free(r->prompt_top_lp);
    mx_slab_free(r->prompt_top_id);
    mx_slab_free(r->prompt_lp);
    mx_slab_free(r->best);
    mx_slab_free(r->seq);
    mx_slab_free(r->banned_id);
    mx_slab_free(r->bias);
    mx_slab_free(r->bias_ids);
    mx_slab_free(r->stop_ids);
    free_texts(r->banned, r->p.n_banned);
    free_texts(r->stops, r->p.n_stops);
    mx_slab_free(r->prompt);
    if (r->adapter_slot >= 0) mx_generator_adapter_release(r->g, r->p.adapter);
    mx_slab_free(r);
}

/* Requests that begin with the same pages share them where they are: FNV-1a of the first whole pages. */
static uint64_t beginning_of(const mx_generation *r)
{
    enum { PAGES = 4 };
    int32_t page = r->g->opt.page_tokens, n = r->n_prompt / page < PAGES ? r->n_prompt / page * page : PAGES * page;
    uint64_t h = 0xcbf29ce484222325u;
    for (int32_t i = 0; i < n; i++) h = (h ^ (uint64_t)(uint32_t)r->prompt[i]) * 0x100000001b3u;
    return n && r->g->opt.prefix_caching ? h | 1 : 0;
}

mx_status mx_generation_submit(mx_generation *r, mx_error *err)
{
    if (r->g->replicas) r->job.affinity = beginning_of(r);
    return mx_scheduler_submit(r->sched, r->g->lane, &r->job, err);
}

void mx_generation_cancel(mx_generation *r)
{
    mx_scheduler *sched = r->sched;          /* r may be gone as soon as the flag is seen */
    atomic_store(&r->job.cancelled, true);
    mx_scheduler_wake(sched);
}

mx_job *mx_generation_job(mx_generation *r) { return &r->job; }
void   *mx_generation_user(const mx_generation *r) { return r->calls.user; }
int     mx_generation_count(const mx_generation *r) { return r->p.n; }

const mx_candidate *mx_generation_candidate(const mx_generation *r, int i)
{
    return r->p.beams > 1 ? &r->best[i].result : &r->seq[i].result;
}

void mx_generation_stats_get(const mx_generation *r, mx_generation_stats *out)
{
    uint64_t started = r->job.started_ns ? r->job.started_ns : r->job.queued_ns;
    uint64_t first = r->first_token_ns ? r->first_token_ns : started;
    *out = (mx_generation_stats){
        .prompt_tokens = r->n_prompt, .cached_tokens = r->cached_tokens, .output_tokens = r->output_tokens,
        .queue_ns = started - r->job.queued_ns, .prefill_ns = first - started,
        .decode_ns = r->last_token_ns > first ? r->last_token_ns - first : 0, .first_token_ns = first - r->job.queued_ns,
        .seed = r->seed, .preemptions = r->preemptions};
}

/* ---- sequences ---------------------------------------------------------------------------- */

static mx_status seq_rooms(mx_generation *r, gen_seq *q, mx_error *err)
{
    size_t out = (size_t)(r->limit - r->n_prompt), k = r->p.logprobs > 0 ? (size_t)r->p.logprobs : 0;
    q->ids = mx_slab_alloc((size_t)r->limit * sizeof *q->ids);
    bool ok = q->ids != NULL;
    if (r->p.logprobs >= 0) {
        q->lp = mx_slab_alloc((out + 1) * sizeof *q->lp);
        q->top_id = mx_slab_alloc((out * k + 1) * sizeof *q->top_id);
        q->top_lp = mx_slab_alloc((out * k + 1) * sizeof *q->top_lp);
        ok = ok && q->lp && q->top_id && q->top_lp;
    }
    mx_detokenizer_open(&q->detok, mx_generator_tokenizer(r->g), true);
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a sequence of %d tokens", r->limit);
}

static mx_status text_add(gen_seq *q, const char *text, size_t len, mx_error *err)
{
    if (q->text_len + len + 1 > q->text_room) {
        size_t room = 2 * (q->text_len + len + 1) + 64;
        char *grown = mx_slab_grow(q->text, room);
        if (!grown) return mx_fail(err, MX_ERR_NO_MEMORY, "%zu bytes of text", room);
        q->text = grown;
        q->text_room = room;
    }
    if (len) memcpy(q->text + q->text_len, text, len);
    q->text_len += len;
    q->text[q->text_len] = 0;
    return MX_OK;
}

/* The bytes as valid UTF-8: what the streaming detokenizer does for output, for an echoed prompt. */
static mx_status echo_prompt(mx_generation *r, gen_seq *q, mx_error *err)
{
    for (int32_t i = 0; i < r->n_prompt; i++) {
        size_t len;
        const char *text = mx_detokenizer_push(&q->detok, r->prompt[i], &len);
        if (!text) return mx_fail(err, MX_ERR_NO_MEMORY, "echo of the prompt");
        MX_TRY(text_add(q, text, len, err));
    }
    return MX_OK;
}

mx_status gen_seq_open(mx_generation *r, gen_seq *q, mx_error *err)
{
    MX_TRY(seq_rooms(r, q, err));
    memcpy(q->ids, r->prompt, (size_t)r->n_prompt * sizeof *q->ids);
    q->n_ids = r->n_prompt;
    q->active = true;
    MX_TRY(text_add(q, "", 0, err));
    if (r->p.echo) MX_TRY(echo_prompt(r, q, err));
    else q->detok.started = true;            /* the output continues a text: its first space is part of it */
    q->own_start = q->text_len;
    return MX_OK;
}

mx_status gen_seq_copy(mx_generation *r, gen_seq *to, const gen_seq *from, mx_error *err)
{
    MX_TRY(seq_rooms(r, to, err));
    memcpy(to->ids, from->ids, (size_t)from->n_ids * sizeof *to->ids);
    to->n_ids = from->n_ids;
    to->active = from->active;
    to->own_start = from->own_start;
    to->logprob_sum = from->logprob_sum;
    to->detok.started = from->detok.started;
    to->detok.n_held = from->detok.n_held;
    memcpy(to->detok.held, from->detok.held, sizeof to->detok.held);
    MX_TRY(text_add(to, from->text, from->text_len, err));
    if (from->kv.n_pages && !mx_kv_fork(&r->g->kv, &to->kv, &from->kv))
        return mx_fail(err, MX_ERR_NO_MEMORY, "page list of %d pages", from->kv.n_pages);
    return MX_OK;
}

void gen_seq_close(mx_generation *r, gen_seq *q)
{
    mx_kv_release(&r->g->kv, &q->kv);
    mx_detokenizer_close(&q->detok);
    mx_slab_free(q->ids);
    mx_slab_free(q->text);
    mx_slab_free(q->lp);
    mx_slab_free(q->top_id);
    mx_slab_free(q->top_lp);
    *q = (gen_seq){0};
}

/* ---- text ------------------------------------------------------------------------------------ */

bool gen_is_end(const mx_generation *r, int32_t id)
{
    const mx_decoder_config *c = &r->g->model.config;
    for (int32_t i = 0; !r->p.ignore_eos && i < c->n_eos; i++)
        if (c->eos[i] == id) return true;
    for (int32_t i = 0; i < r->p.n_stop_ids; i++)
        if (r->stop_ids[i] == id) return true;
    return false;
}

/* The first stop string that ends behind the first `before` bytes; cuts the text there. */
static const char *find_stop(mx_generation *r, gen_seq *q, size_t before)
{
    const char *best = NULL, *which = NULL;
    for (int32_t i = 0; i < r->p.n_stops; i++) {
        size_t len = strlen(r->stops[i]), from = before > q->own_start + len - 1 ? before - (len - 1) : q->own_start;
        const char *at = memmem(q->text + from, q->text_len - from, r->stops[i], len);
        if (at && (!best || at < best)) {
            best = at;
            which = r->stops[i];
        }
    }
    if (best) {
        q->text_len = (size_t)(best - q->text);
        q->text[q->text_len] = 0;
    }
    return which;
}

/* Bytes at the end of the text that may be the start of a stop string. */
static size_t held_back(const mx_generation *r, const gen_seq *q)
{
    size_t own = q->text_len - q->own_start, most = 0;
    for (int32_t i = 0; i < r->p.n_stops; i++) {
        size_t len = strlen(r->stops[i]);
        for (size_t k = len - 1 < own ? len - 1 : own; k > most; k--)
            if (!memcmp(q->text + q->text_len - k, r->stops[i], k)) most = k;
    }
    return most;
}

/* Tell the caller what is new; logprob records are made here, on the stack, one call a token. */
static void tell(mx_generation *r, int index, gen_seq *q, size_t upto, mx_finish finish)
{
    if (!r->calls.text) return;
    int32_t k = r->p.logprobs, out = q->n_ids - r->n_prompt, fresh = out - q->told;
    bool first = q->told == 0 && r->p.echo && k >= 0;
    int32_t before = first ? r->n_prompt : 0, n = k >= 0 ? before + fresh : 0;
    mx_token_logprob few[4] = {0}, *lp = n <= 4 ? few : mx_slab_alloc((size_t)n * sizeof *lp);
    if (!lp) {
        lp = few;
        n = 0;
    }
    for (int32_t i = 0; i < n; i++) {
        bool in_prompt = i < before;
        int32_t o = in_prompt ? i : q->told + i - before;
        size_t at = (size_t)o * (size_t)(k > 0 ? k : 0);
        lp[i] = (mx_token_logprob){.id = in_prompt ? r->prompt[o] : q->ids[r->n_prompt + o],
                                   .logprob = in_prompt ? r->prompt_lp[o] : q->lp[o],
                                   .top_id = (in_prompt ? r->prompt_top_id : q->top_id) + at,
                                   .top_logprob = (in_prompt ? r->prompt_top_lp : q->top_lp) + at,
                                   .n_top = in_prompt && o == 0 ? 0 : k};
    }
    r->calls.text(r, index, q->text + q->emitted, upto - q->emitted, q->ids + r->n_prompt + q->told, fresh, lp, n, finish);
    if (lp != few) mx_slab_free(lp);
    q->emitted = upto;
    q->told = out;
}

mx_status gen_finish_text(mx_generation *r, int index, gen_seq *q, mx_finish why, mx_error *err)
{
    size_t len;
    if (why != MX_FINISH_STOP || !q->result.stop) {
        const char *rest = mx_detokenizer_finish(&q->detok, &len);
        if (!rest) return mx_fail(err, MX_ERR_NO_MEMORY, "text");
        MX_TRY(text_add(q, rest, len, err));
    }
    q->active = false;
    mx_kv_release(&r->g->kv, &q->kv);
    q->result = (mx_candidate){.text = q->text, .text_len = q->text_len, .ids = q->ids + r->n_prompt,
                               .n_ids = q->n_ids - r->n_prompt, .finish = why, .stop = q->result.stop,
                               .logprob_sum = q->logprob_sum, .score = q->score};
    tell(r, index, q, q->text_len, why);
    return MX_OK;
}

mx_status gen_accept(mx_generation *r, int index, int32_t id, mx_error *err)
{
    gen_seq *q = &r->seq[index];
    q->ids[q->n_ids++] = id;
    r->output_tokens++;
    bool end = gen_is_end(r, id), full = q->n_ids >= r->limit;
    if (!end) {
        size_t len, before = q->text_len;
        const char *text = mx_detokenizer_push(&q->detok, id, &len);
        if (!text) return mx_fail(err, MX_ERR_NO_MEMORY, "text");
        MX_TRY(text_add(q, text, len, err));
        if (r->p.n_stops && q->n_ids - r->n_prompt >= r->p.min_tokens) q->result.stop = find_stop(r, q, before);
    }
    if (end || q->result.stop) return gen_finish_text(r, index, q, MX_FINISH_STOP, err);
    if (full) return gen_finish_text(r, index, q, MX_FINISH_LENGTH, err);
    tell(r, index, q, q->text_len - held_back(r, q), MX_FINISH_NONE);
    return MX_OK;
}
