/* generate_reply.c - what a generation has said, gathered and put into messages. */
#include "server/services.h"

#include "runtime/slab.h"

#include <stdlib.h>
#include <string.h>

/* ---- gathering (on a device's worker thread: no system calls but rare mallocs) ------- */

static bool grow(void *array, size_t *room, size_t need, size_t size)
{
    if (need <= *room) return true;
    size_t more = *room ? *room * 2 : 64;
    while (more < need) more *= 2;
    size_t bytes;
    if (__builtin_mul_overflow(more, size, &bytes)) return false;
    void **at = array;
    void *p = mx_slab_grow(*at, bytes);
    if (!p) return false;
    *at = p;
    *room = more;
    return true;
}

bool mx_said_text(mx_said *s, const char *text, size_t len, const int32_t *ids, int n_ids)
{
    size_t n = n_ids > 0 ? (size_t)n_ids : 0;
    if (!grow(&s->text, &s->text_room, s->text_len + len + 1, 1)) return false;
    if (!grow(&s->ids, &s->ids_room, s->n_ids + n, sizeof *s->ids)) return false;
    if (len) memcpy(s->text + s->text_len, text, len);
    s->text_len += len;
    s->text[s->text_len] = 0;
    if (n) memcpy(s->ids + s->n_ids, ids, n * sizeof *ids);
    s->n_ids += n;
    s->any = true;
    return true;
}

bool mx_said_logprobs(mx_said *s, const mx_token_logprob *lp, int n)
{
    for (int i = 0; i < n; i++) {
        size_t top = lp[i].n_top > 0 ? (size_t)lp[i].n_top : 0;
        if (!grow(&s->logprobs, &s->logprobs_room, s->n_logprobs + 1, sizeof *s->logprobs)) return false;
        if (!grow(&s->top_id, &s->top_id_room, s->n_top + top, sizeof *s->top_id)) return false;
        if (!grow(&s->top_logprob, &s->top_logprob_room, s->n_top + top, sizeof *s->top_logprob)) return false;
        s->logprobs[s->n_logprobs++] =
            (mx_said_logprob){.id = lp[i].id, .n_top = (int32_t)top, .logprob = lp[i].logprob, .first_top = s->n_top};
        if (!top) continue;
        memcpy(s->top_id + s->n_top, lp[i].top_id, top * sizeof *s->top_id);
        memcpy(s->top_logprob + s->n_top, lp[i].top_logprob, top * sizeof *s->top_logprob);
        s->n_top += top;
    }
    return true;
}

void mx_said_clear(mx_said *s)
{
    mx_slab_free(s->stop);
    s->stop = NULL;
    s->text_len = s->n_ids = s->n_logprobs = s->n_top = 0;
    s->finish = MX_FINISH_NONE;
    s->any = false;
}

void mx_said_free(mx_said *s)
{
    mx_slab_free(s->text);
    mx_slab_free(s->ids);
    mx_slab_free(s->logprobs);
    mx_slab_free(s->top_id);
    mx_slab_free(s->top_logprob);
    mx_slab_free(s->stop);
    *s = (mx_said){0};
}

/* ---- messages ---------------------------------------------------------------------------- */

static ProtobufCBinaryData piece(const mx_tokenizer *t, int32_t id)
{
    size_t len = 0;
    const char *p = mx_tokenizer_piece(t, id, &len);
    return (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)p, .len = p ? len : 0};
}

/* NULL: the arena is full (or there are none). */
static Merx__V1__TokenLogprob **build_logprobs(mx_arena *a, const mx_said *s, const mx_tokenizer *t)
{
    Merx__V1__TokenLogprob *m = mx_arena_array(a, s->n_logprobs, sizeof *m);
    Merx__V1__TokenLogprob **list = mx_arena_array(a, s->n_logprobs, sizeof *list);
    ProtobufCBinaryData *pieces = mx_arena_array(a, s->n_top, sizeof *pieces);
    if (!m || !list || !pieces) return NULL;
    for (size_t i = 0; i < s->n_top; i++) pieces[i] = piece(t, s->top_id[i]);
    for (size_t i = 0; i < s->n_logprobs; i++) {
        const mx_said_logprob *lp = &s->logprobs[i];
        size_t n = (size_t)lp->n_top;
        merx__v1__token_logprob__init(&m[i]);
        m[i].id = lp->id;
        m[i].token = piece(t, lp->id);
        m[i].logprob = lp->logprob;
        m[i].n_top_id = m[i].n_top_token = m[i].n_top_logprob = n;
        m[i].top_id = s->top_id + lp->first_top;
        m[i].top_token = pieces + lp->first_top;
        m[i].top_logprob = s->top_logprob + lp->first_top;
        list[i] = &m[i];
    }
    return list;
}

Merx__V1__FinishReason mx_finish_wire(mx_finish f)
{
    switch (f) {
    case MX_FINISH_STOP: return MERX__V1__FINISH_REASON__FINISH_STOP;
    case MX_FINISH_LENGTH: return MERX__V1__FINISH_REASON__FINISH_LENGTH;
    case MX_FINISH_CANCELLED: return MERX__V1__FINISH_REASON__FINISH_CANCELLED;
    default: return MERX__V1__FINISH_REASON__FINISH_UNSPECIFIED;
    }
}

Merx__V1__GenerateEvent *mx_event_build(mx_arena *a, const mx_said *s, int index, const mx_tokenizer *t)
{
    Merx__V1__GenerateEvent *e = mx_arena_array(a, 1, sizeof *e);
    if (!e) return NULL;
    merx__v1__generate_event__init(e);
    e->index = index;
    if (s->text_len) e->text = s->text;
    e->n_ids = s->n_ids;
    e->ids = s->ids;
    e->finish = mx_finish_wire(s->finish);
    if (s->stop) e->stop = s->stop;
    if (s->n_logprobs) {
        e->logprobs = build_logprobs(a, s, t);
        if (!e->logprobs) return NULL;
        e->n_logprobs = s->n_logprobs;
    }
    return e;
}

Merx__V1__Usage *mx_usage_build(mx_arena *a, const mx_generation_stats *st)
{
    Merx__V1__Usage *u = mx_arena_array(a, 1, sizeof *u);
    if (!u) return NULL;
    merx__v1__usage__init(u);
    u->prompt_tokens = st->prompt_tokens;
    u->cached_tokens = st->cached_tokens;
    u->output_tokens = st->output_tokens;
    return u;
}

Merx__V1__Timings *mx_timings_build(mx_arena *a, const mx_generation_stats *st, uint64_t accepted_ns,
                                    uint64_t submitted_ns)
{
    Merx__V1__Timings *t = mx_arena_array(a, 1, sizeof *t);
    if (!t) return NULL;
    merx__v1__timings__init(t);
    uint64_t before = submitted_ns - accepted_ns; /* decoding, tokenizing, waiting for a batch's turn */
    t->queue_ms = (double)st->queue_ns / 1e6;
    t->prefill_ms = (double)st->prefill_ns / 1e6;
    t->decode_ms = (double)st->decode_ns / 1e6;
    t->first_token_ms = st->first_token_ns ? (double)(before + st->first_token_ns) / 1e6 : 0;
    t->total_ms = (double)(mx_now_ns(&mx_clock_monotonic) - accepted_ns) / 1e6;
    t->tokens_per_second = st->decode_ns ? st->output_tokens * 1e9 / (double)st->decode_ns : 0;
    return t;
}

static bool build_candidate(mx_arena *a, Merx__V1__Candidate *m, int index, const mx_candidate *c,
                            const mx_said *said, const mx_tokenizer *t)
{
    merx__v1__candidate__init(m);
    m->index = index;
    if (c->text_len) m->text = (char *)(uintptr_t)c->text;
    m->n_ids = c->n_ids > 0 ? (size_t)c->n_ids : 0;
    m->ids = (int32_t *)(uintptr_t)c->ids;
    m->finish = mx_finish_wire(c->finish);
    if (c->stop) m->stop = (char *)(uintptr_t)c->stop;
    m->logprob_sum = c->logprob_sum;
    m->score = c->score;
    if (!said || !said->n_logprobs) return true;
    m->logprobs = build_logprobs(a, said, t);
    m->n_logprobs = m->logprobs ? said->n_logprobs : 0;
    return m->logprobs != NULL;
}

Merx__V1__GenerateResponse *mx_response_build(mx_arena *a, const mx_generation *g, const mx_said *said,
                                              const mx_tokenizer *t)
{
    size_t n = (size_t)mx_generation_count(g);
    Merx__V1__GenerateResponse *r = mx_arena_array(a, 1, sizeof *r);
    Merx__V1__Candidate *m = mx_arena_array(a, n, sizeof *m);
    Merx__V1__Candidate **list = mx_arena_array(a, n, sizeof *list);
    if (!r || !m || !list) return NULL;
    merx__v1__generate_response__init(r);
    for (size_t i = 0; i < n; i++) {
        if (!build_candidate(a, &m[i], (int)i, mx_generation_candidate(g, (int)i), said ? &said[i] : NULL, t))
            return NULL;
        list[i] = &m[i];
    }
    r->n_candidates = n;
    r->candidates = list;
    return r;
}
