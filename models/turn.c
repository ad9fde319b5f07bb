/* turn.c - one turn of the lane: pack rows, run them, choose tokens.
 *
 * On a GPU the host is a turn ahead: while turn k runs, turn k+1 is packed and
 * issued, and its rows take turn k's choices where the device left them
 * (seats.c); only then are the tokens of turn k read and told.  Whatever is
 * learned one turn late (a stop, an end, a cancelled request) throws away what the
 * turn after computed for it, so outputs do not depend on it.  Pages may be given
 * back and taken again at once: the device works in the order of issue. */
#include "models/generation.h"

#include <stdlib.h>

/* ---- what a request needs next --------------------------------------------------- */

void gen_plan_rows(mx_generation *r)
{
    uint32_t rows = 0;
    bool splits = false;
    for (int32_t i = 0; i < r->n_seqs; i++) {
        const gen_seq *q = &r->seq[i];
        if (!q->active) continue;
        int32_t missing = q->n_ids + q->ahead - q->kv.n_tokens;
        if (q->n_ids + q->ahead >= r->limit) continue;        /* its last id is chosen, and only waits to be read */
        rows += (uint32_t)missing;
        splits |= missing > 1;
    }
    r->job.rows = rows ? rows : 1;
    r->job.splits = splits;
}

void gen_release_pages(mx_generation *r)
{
    gen_pack *out = &r->g->flying;
    for (int32_t i = 0; out->issued && i < out->n_seqs; i++)
        if (out->owner[i] == r) out->seq[i] = NULL;
    for (int32_t i = 0; i < r->width; i++) {
        mx_kv_release(&r->g->kv, &r->seq[i].kv);
        if (r->seq[i].placed > 0) r->seq[i].placed = 0;       /* the seat stays, its list is made anew */
    }
}

void gen_forget(mx_generation *r)
{
    gen_pack *out = &r->g->flying;
    if (!r->listed) return;                  /* it had no turn, and g may be another worker's */
    gen_release_pages(r);
    for (int32_t i = 0; out->issued && i < out->n_seqs; i++)
        if (out->owner[i] == r) out->owner[i] = NULL;
    for (int32_t i = 0; out->issued && i < out->n_logits; i++)
        if (out->want[i].gen == r) out->want[i].gen = NULL;
}

static bool holds_pages(const mx_generation *r)
{
    for (int32_t i = 0; i < r->n_seqs; i++)
        if (r->seq[i].kv.n_pages) return true;
    return false;
}

/* Take the pages of the youngest request that came after r; false: there is none. */
static bool preempt_younger(mx_generator *g, const mx_generation *r)
{
    for (mx_generation *v = g->last; v && v->arrival > r->arrival; v = v->prev) {
        if (!holds_pages(v)) continue;
        gen_release_pages(v);
        gen_plan_rows(v);
        v->preemptions++;
        atomic_fetch_add(&g->preemptions, 1);
        mx_metric_inc(g->metric.preemptions, 1);
        return true;
    }
    return false;
}

/* ---- packing ----------------------------------------------------------------------- */

/* Whole pages of the beginning that are in the cache already. */
static void match_prefix(mx_generation *r, gen_seq *q)
{
    mx_generator *g = r->g;
    if (q->kv.n_pages || q->kv.n_tokens) return;
    /* Keys and values of an adapter are its own: so is the beginning of its chain of pages. */
    if (r->p.adapter) q->kv.content = UINT64_MAX - (uint64_t)r->p.adapter;
    if (!r->scored) return;
    int32_t found = mx_kv_match(&g->kv, &q->kv, q->ids, q->n_ids - 1);
    if (r->matched) return;
    r->matched = true;
    r->cached_tokens = found;
    atomic_fetch_add(&g->prefix_hit_tokens, (unsigned long long)found);
    mx_metric_inc(g->metric.prefix_hits, (uint64_t)found);
}

static void want_logits(gen_pack *p, mx_generation *r, int32_t seq, int32_t prompt_position, int32_t row)
{
    p->want[p->n_logits] = (gen_want){r, seq, prompt_position};
    p->logit_rows[p->n_logits++] = row;
}

/* The page of the list that a row brings with it, -1 when the device has it; more than that goes as a whole list. */
static int32_t new_page(const gen_seq *q, int32_t at, int32_t rows, bool *listed)
{
    *listed = q->placed < 0 || rows > 1 || (at != q->placed && at != q->placed - 1);
    return *listed || (at < q->placed && q->kv.page[at] == q->last_page) ? -1 : q->kv.page[at];
}

/* Rows of one sequence, at most `budget`; returns how many were packed, -1 when no page was to be had. */
static int32_t pack_seq(mx_generation *r, int32_t index, int32_t budget)
{
    mx_generator *g = r->g;
    gen_pack *p = &g->pack;
    gen_seq *q = &r->seq[index];
    if (q->n_ids + q->ahead >= r->limit) return 0;
    match_prefix(r, q);
    int32_t all = q->n_ids + q->ahead, done = q->kv.n_tokens, n = all - done, most = p->max_logits - p->n_logits;
    if (n > budget) n = budget;
    if (!r->scored && n > most) n = most;
    bool complete = done + n == all;
    int32_t choices = !complete ? 0 : r->forked || r->p.beams > 1 ? 1 : r->width;
    if (complete && choices + (r->scored ? 0 : n - 1) > most) {        /* no room for its logits: all but the last row */
        n--;
        complete = false;
    }
    if (n <= 0 || !gen_seat_take(g, q)) return 0;
    while (!mx_kv_reserve(&g->kv, &q->kv, done + n, &p->copies))
        if (!preempt_younger(g, r)) return -1;

    int32_t page = new_page(q, done / g->kv.page_tokens, n, &p->listed[p->n_seqs]);
    for (int32_t i = 0; i < n; i++) {
        int32_t row = p->n_rows + i, at = done + i;
        bool newest = at == all - 1;         /* the seat knows it, and where it stands: the row says the same in every turn */
        memcpy(p->rows + 4 * row, (int32_t[4]){q->seat, newest ? -1 : q->ids[at], newest ? 0 : at, page}, 4 * sizeof *p->rows);
        if (!r->scored && at + 1 < r->n_prompt) want_logits(p, r, index, at, row);
    }
    if (r->p.adapter) {
        mx_adapter_span *last = p->n_spans ? &p->spans[p->n_spans - 1] : NULL;
        if (last && last->adapter == r->adapter_slot && last->first + last->n == p->n_rows) last->n += n;
        else p->spans[p->n_spans++] = (mx_adapter_span){r->adapter_slot, p->n_rows, n};
    }
    p->n_rows += n;
    p->done[p->n_seqs] = done + n;
    p->seq[p->n_seqs] = q;
    p->owner[p->n_seqs++] = r;
    for (int32_t i = 0; complete && i < choices; i++) want_logits(p, r, r->forked || r->p.beams > 1 ? index : i, -1, p->n_rows - 1);
    return n;
}

/* Beams move in step: nobody's last row runs before everybody's can. */
static bool beams_ready(const mx_generation *r, int32_t budget)
{
    int32_t missing = 0;
    for (int32_t i = 0; i < r->n_seqs; i++) missing += r->seq[i].active ? r->seq[i].n_ids - r->seq[i].kv.n_tokens : 0;
    return missing <= budget && r->n_seqs <= r->g->pack.max_logits - r->g->pack.n_logits;
}

static void pack_request(mx_generation *r)
{
    gen_pack *p = &r->g->pack;
    if (r->failed.code) return;
    int32_t budget = (int32_t)r->job.granted, left = p->max_rows - p->n_rows;
    if (budget > left) budget = left;
    int32_t start_logits = p->n_logits;
    bool beams = r->p.beams > 1, ready = !beams || beams_ready(r, budget);
    for (int32_t i = 0; i < r->n_seqs && budget > 0 && p->n_seqs < p->max_seqs; i++) {
        gen_seq *q = &r->seq[i];
        if (!q->active) continue;
        int32_t most = budget, missing = q->n_ids - q->kv.n_tokens;
        if (!ready && most > missing - 1) most = missing - 1;
        int32_t n = pack_seq(r, i, most);
        if (n < 0) break;
        budget -= n;
    }
    if (beams && p->n_logits - start_logits != r->n_seqs) {
        /* Pages ran out between two beams: those that ran have their rows in the cache but
         * choose nothing, and run their last row again when all can. */
        for (int32_t i = start_logits; i < p->n_logits; i++) r->seq[p->want[i].seq].kv.n_tokens--;
        p->n_logits = start_logits;
    }
}

static int by_arrival(const void *a, const void *b)
{
    const mx_generation *x = *(mx_generation *const *)a, *y = *(mx_generation *const *)b;
    return x->arrival < y->arrival ? -1 : x->arrival > y->arrival;
}

static void pack_turn(mx_generator *g, mx_job **jobs, int n)
{
    gen_pack *p = &g->pack;
    p->n_rows = p->n_seqs = p->n_logits = p->copies.n = p->n_spans = 0;
    for (int i = 0; i < n; i++) {
        mx_generation *r = (mx_generation *)jobs[i];
        p->order[i] = r;
        if (r->listed) continue;
        r->listed = true;
        r->g = g;
        r->arrival = ++g->arrivals;
        r->prev = g->last;
        r->next = NULL;
        if (g->last) g->last->next = r;
        else g->first = r;
        g->last = r;
        atomic_fetch_add(&g->prompt_tokens, (unsigned long long)r->n_prompt);
        mx_metric_inc(g->metric.prompt_tokens, (uint64_t)r->n_prompt);
        mx_metric_observe(g->metric.queue, (double)(r->job.started_ns - r->job.queued_ns) * 1e-9);
    }
    qsort(p->order, (size_t)n, sizeof *p->order, by_arrival);
    for (int i = 0; i < n; i++) pack_request(p->order[i]);
}

#define TABLE_STEP 16                    /* pages: tables grow by so many, for turns to have the same shape longer */

/* As wide as the longest page list. */
static void pack_pages(mx_generator *g)
{
    gen_pack *p = &g->pack;
    int32_t most = (g->opt.max_model_len + g->opt.page_tokens - 1) / g->opt.page_tokens;
    p->table_cols = 1;
    for (int32_t i = 0; i < p->n_seqs; i++)
        if (p->seq[i]->kv.n_pages > p->table_cols) p->table_cols = p->seq[i]->kv.n_pages;
    p->table_cols = (p->table_cols + TABLE_STEP - 1) / TABLE_STEP * TABLE_STEP;
    if (p->table_cols > most) p->table_cols = most;
}

/* ---- the turn ------------------------------------------------------------------------- */

static void settle(mx_generator *g, mx_job **jobs, int n)
{
    for (int i = 0; i < n; i++) {
        mx_generation *r = (mx_generation *)jobs[i];
        bool active = false;
        for (int32_t k = 0; k < r->n_seqs; k++) active |= r->seq[k].active;
        r->job.error = r->failed;
        r->job.verdict = active && !r->failed.code ? MX_AGAIN : MX_DONE;
        gen_plan_rows(r);
    }
    mx_metric_set(g->metric.kv_usage, gen_kv_usage(g));
    mx_lane_stats stats;
    if (mx_scheduler_stats(g->sched, g->lane, &stats)) {
        mx_metric_set(g->metric.running, stats.running);
        mx_metric_set(g->metric.waiting, stats.waiting);
    }
}

/* What the ops of a turn depend on (device.h, sections): where a decoding turn's tensors lie follows from these. */
typedef struct turn_key {
    uint64_t born;                       /* of the generator: its address may have been another's */
    const void *first, *logits, *row, *ids;
    mx_logit_lists lists;
    int32_t n_rows, n_seqs, n_logits, table_cols, k;
    bool    logprobs, process;
} turn_key;
_Static_assert(sizeof(turn_key) <= MX_SECTION_KEY, "a turn's key is too long");

/* The pass and the choices; a turn of decoding is one section, so a GPU gets it as one graph. */
static void compute(mx_generator *g, mx_stream *s, mx_decoder_turn *t, const gen_choice *c)
{
    const gen_pack *p = &g->pack;
    bool repeats = p->n_rows == p->n_logits && !p->n_spans;
    turn_key key;
    memset(&key, 0, sizeof key);         /* what lies between its fields is compared too */
    key.born = g->born_ns, key.first = t->ids.data, key.logits = t->logits.data, key.row = c->row, key.ids = c->ids.data, key.lists = c->lists;
    key.n_rows = p->n_rows, key.n_seqs = p->n_seqs, key.n_logits = p->n_logits, key.table_cols = p->table_cols, key.k = c->k;
    key.logprobs = c->logprobs, key.process = c->process;
    if (repeats && mx_stream_section(s, &key, sizeof key)) return;
    mx_decoder_run(&g->model, s, &g->kv, t);
    gen_choice_run(s, t->logits, c);
    if (repeats) mx_stream_section_end(s);
}

/* Everybody in the turn is told why it failed. */
static void fail_turn(gen_pack *p, const mx_error *err)
{
    for (int32_t i = 0; i < p->n_seqs; i++)
        if (p->owner[i] && !p->owner[i]->failed.code) p->owner[i]->failed = *err;
}

/* What has been packed goes to the device; nothing is waited for. */
static void issue(mx_generator *g, mx_stream *s)
{
    gen_pack *p = &g->pack;
    gen_choice *c = &p->choice;
    gen_seats *k = &g->seats;
    mx_decoder_batch b = {.n_rows = p->n_rows, .n_seqs = p->n_seqs, .n_logits = p->n_logits, .table_cols = p->table_cols,
                          .copies = &p->copies, .spans = p->spans, .n_spans = p->n_spans,
                          .seats = &k->device, .rows = mx_tensor_of(k->rows.at, MX_I32, p->n_rows, 4),
                          .picks = mx_tensor_of(k->picks.at, MX_I32, p->n_logits, 4), .wanted = mx_tensor_of(k->wanted.at, MX_I32, p->n_logits, 1)};
    mx_decoder_turn t;
    mx_error err = {0};
    if (gen_choice_prepare(g, &err) || gen_seats_place(g, s, &err)) mx_stream_fail(s, err.code, "%s", err.text);
    mx_decoder_begin(&g->model, s, &g->kv, &b, &t);
    gen_choice_begin(g, s, &t, c);
    compute(g, s, &t, c);
    gen_choice_download(g, s, c);
    p->mark = mx_stream_mark(s);
    p->issued = !s->error.code;
    atomic_fetch_add(&g->turns, 1);
    mx_metric_inc(g->metric.turns, 1);
}

/* Wait for an issued turn, index its pages, and give its tokens to their requests. */
static void land(mx_generator *g, mx_stream *s, gen_pack *p)
{
    mx_error err = {0};
    p->issued = false;
    if (mx_stream_wait(s, p->mark, &err)) {
        fail_turn(p, &err);
        gen_seats_forget(g);
        return;
    }
    for (int32_t i = 0; i < p->n_seqs; i++)
        if (p->seq[i]) mx_kv_commit(&g->kv, &p->seq[i]->kv, p->seq[i]->ids, p->done[i]);
    gen_choice_take(g, p);
}

/* What a request's next token depends on beside the last one is only known when that has been read. */
static bool must_be_read(const mx_generation *r)
{
    return r->p.beams > 1 || !r->forked || r->p.no_repeat_ngram > 0 || r->p.n_banned > 0;
}

/* The turn that was issued may stay out: its sequences go on without their last id being known. */
static bool leave_out(mx_generator *g, gen_pack *p)
{
    for (int32_t i = 0; i < p->n_logits; i++)
        if (!g->ahead || (p->want[i].prompt_position < 0 && must_be_read(p->want[i].gen))) return false;
    for (int32_t i = 0; i < p->n_logits; i++) {
        if (p->want[i].prompt_position >= 0) continue;
        gen_seq *q = &p->want[i].gen->seq[p->want[i].seq];
        q->ahead++;
        g->seats.seat[q->seat].left = g->seats.turn;
    }
    return g->ahead;
}

void gen_settle(void *generator, mx_stream *s)
{
    mx_generator *g = generator;
    if (g->flying.issued) land(g, s, &g->flying);
}

void gen_run(void *generator, mx_stream *s, mx_job **jobs, int n)
{
    mx_generator *g = generator;
    gen_pack *p = &g->pack, issued;
    mx_error err = {0};

    g->seats.turn++;
    pack_turn(g, jobs, n);
    pack_pages(g);
    if (p->n_rows) issue(g, s);
    bool broken = s->error.code != MX_OK;
    p->left = p->issued && leave_out(g, p);
    if (g->flying.issued) {
        if (p->issued) {
            atomic_fetch_add(&g->turns_ahead, 1);
            mx_metric_inc(g->metric.turns_ahead, 1);
        }
        land(g, s, &g->flying);
    }
    if (broken) {                        /* it could not be issued whole */
        mx_stream_sync(s, &err);
        fail_turn(p, &err);
        gen_seats_forget(g);
    }
    issued = g->pack;
    g->pack = g->flying;
    g->flying = issued;
    if (issued.issued && !issued.left) land(g, s, &g->flying);
    settle(g, jobs, n);
    mx_stream_rewind(s);
}
