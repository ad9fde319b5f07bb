/* trainer.c - one step: gradients of a whole batch, then AdamW. */
#include "models/trainer_internal.h"

#include "runtime/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

mx_train_options mx_train_defaults(void)
{
    return (mx_train_options){.epochs = 1, .batch = 32, .micro_rows = 4096, .lr = 3e-4f, .min_lr = 3e-5f, .warmup = 100,
                              .beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .weight_decay = 0.1f, .clip = 1, .eval_every = 0,
                              .save_every = 0, .keep = 3, .seed = 1};
}

/* ---- the schedule -------------------------------------------------------------------- */

double mx_schedule_lr(const mx_train_options *o, int64_t steps, int64_t step)
{
    if (step < o->warmup) return (double)o->lr * (double)(step + 1) / (double)(o->warmup + 1);
    if (o->schedule == MX_SCHEDULE_CONSTANT || steps <= o->warmup) return o->lr;
    double at = (double)(step - o->warmup) / (double)(steps - o->warmup);
    if (at > 1) at = 1;
    double share = o->schedule == MX_SCHEDULE_COSINE ? 0.5 * (1 + cos(3.141592653589793 * at)) : 1 - at;
    return (double)o->min_lr + share * ((double)o->lr - (double)o->min_lr);
}

/* ---- opening --------------------------------------------------------------------------- */

static mx_status bad(mx_error *err, const char *name, double value, const char *must)
{
    return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be %s", name, value, must);
}

static mx_status check_options(const mx_train_options *o, mx_error *err)
{
    const struct { const char *name; double value; bool ok; const char *must; } rules[] = {
        {"steps", (double)o->steps, o->steps >= 0, "0 or more"},
        {"epochs", o->epochs, o->steps > 0 || (o->epochs > 0 && o->epochs <= 1e6), "over 0, at most 1000000"},
        {"batch", o->batch, o->batch >= 1, "1 or more"},
        {"micro-rows", o->micro_rows, o->micro_rows >= 1, "1 or more"},
        {"lr", o->lr, o->lr >= 0 && isfinite(o->lr), "0 or more"},
        {"min-lr", o->min_lr, o->min_lr >= 0 && isfinite(o->min_lr), "0 or more"},
        {"warmup", (double)o->warmup, o->warmup >= 0, "0 or more"},
        {"beta1", o->beta1, o->beta1 >= 0 && o->beta1 < 1, "in [0, 1)"},
        {"beta2", o->beta2, o->beta2 >= 0 && o->beta2 < 1, "in [0, 1)"},
        {"eps", o->eps, o->eps > 0 && isfinite(o->eps), "over 0"},
        {"weight-decay", o->weight_decay, o->weight_decay >= 0 && isfinite(o->weight_decay), "0 or more"},
        {"clip", o->clip, o->clip >= 0 && isfinite(o->clip), "0 (never) or more"},
        {"keep", o->keep, o->keep >= 0, "0 (all) or more"},
        {"patience", o->patience, o->patience >= 0, "0 (never) or more"},
        {"eval-every", (double)o->eval_every, o->eval_every >= 0, "0 (at the end) or more"},
        {"save-every", (double)o->save_every, o->save_every >= 0, "0 (at the end) or more"},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        if (!rules[i].ok) return bad(err, rules[i].name, rules[i].value, rules[i].must);
    return MX_OK;
}

static size_t scratch_of(const mx_trainer *t, int32_t rows)
{
    int32_t longest = t->train->length < rows ? t->train->length : rows;
    return t->learner.scratch(t->learner.network, rows, rows, longest, true);
}

/* The most rows of a micro-batch that the device's memory would take. */
static int32_t most_rows(const mx_trainer *t, size_t free_bytes)
{
    int32_t low = 0, high = 1 << 24;
    while (high - low > 1) {
        int32_t middle = low + (high - low) / 2;
        size_t need = scratch_of(t, middle);
        if (need && need <= free_bytes) low = middle;
        else high = middle;
    }
    return low;
}

static mx_status open_memory(mx_trainer *t, mx_error *err)
{
    const mx_params *p = t->learner.params;
    t->rows = t->opt.micro_rows > t->train->length ? t->opt.micro_rows : t->train->length;
    if (t->eval && t->eval->length > t->rows) t->rows = t->eval->length;
    t->plan.weights = p->value.size;
    t->plan.optimizer = p->grad.size + 2 * (t->shard_end - t->shard_begin) * sizeof(float);
    t->plan.scratch = scratch_of(t, t->rows);
    t->plan.memory = p->dev->memory;
    t->plan.micro_rows = t->rows;
    size_t held = t->plan.weights + t->plan.optimizer, left = p->dev->memory > held ? p->dev->memory - held : 0;
    t->plan.most_rows = most_rows(t, left);
    if (!t->plan.scratch || t->plan.scratch > left)
        return mx_fail(err, MX_ERR_NO_MEMORY, "micro-rows: %d rows take %.1f MiB beside %.1f MiB of weights, and there are %.1f MiB for both; "
                       "at most %d rows fit (sequences are up to %d tokens)", t->rows, (double)t->plan.scratch / (1 << 20),
                       (double)held / (1 << 20), (double)p->dev->memory / (1 << 20), t->plan.most_rows, t->train->length);
    size_t moments = (t->shard_end - t->shard_begin) * sizeof(float);
    MX_TRY(mx_buffer_open(&t->m, p->dev, moments, err));
    MX_TRY(mx_buffer_open(&t->v, p->dev, moments, err));
    return mx_stream_open(&t->stream, p->dev, t->plan.scratch, err);
}

mx_status mx_trainer_open(mx_trainer **out, const char *run, const mx_learner *learner, const mx_batches *train,
                          const mx_batches *eval, const mx_train_options *opt, mx_comm *comm, mx_error *err)
{
    mx_status st;
    *out = NULL;
    MX_TRY(check_options(opt, err));
    if (opt->stop_on != MX_STOP_LOSS && !learner->metric) return mx_fail(err, MX_ERR_ARG, "stop-on: this network has no metric beside its loss");
    if (opt->patience && !eval) return mx_fail(err, MX_ERR_ARG, "patience is %d, and there is nothing to evaluate on", opt->patience);
    if (opt->batch < mx_comm_size(comm))
        return mx_fail(err, MX_ERR_ARG, "batch is %d; each of %d processes needs a sequence", opt->batch, mx_comm_size(comm));
    if (strlen(run) >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "out: the path is longer than %d bytes", MX_PATH - 1);
    mx_trainer *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "a trainer");
    t->learner = *learner;
    t->train = train;
    t->eval = eval;
    t->opt = *opt;
    t->comm = comm;
    t->best_loss = t->least_loss = INFINITY;
    t->best_extra = t->most_extra = -INFINITY;
    t->report.best_step = t->best_step = -1;
    t->saved_step = -1;
    t->plan.resumed_from = -1;
    snprintf(t->run, sizeof t->run, "%s", run);
    t->steps = opt->steps ? opt->steps : (int64_t)ceil(opt->epochs * (double)train->count / opt->batch);
    if (t->steps < 1) t->steps = 1;
    t->plan.parameters = (int64_t)learner->params->elements;
    t->plan.steps = t->steps;
    t->plan.sequences = train->count;
    t->plan.tokens = mx_batches_tokens(train);
    mx_comm_shard(comm, learner->params->count, &t->shard_begin, &t->shard_end);
    MX_TRY_GOTO(st, open_memory(t, err), fail);
    MX_TRY_GOTO(st, mx_comm_device(comm, &t->stream, err), fail);
    MX_TRY_GOTO(st, mx_trainer_resume(t, err), fail);
    *out = t;
    return MX_OK;
fail:
    mx_trainer_close(t);
    return st;
}

void mx_trainer_close(mx_trainer *t)
{
    if (!t) return;
    mx_comm_device(t->comm, NULL, NULL);
    if (t->log) fclose(t->log);
    mx_batch_free(&t->batch);
    mx_stream_close(&t->stream);
    mx_buffer_close(&t->v);
    mx_buffer_close(&t->m);
    free(t);
}

void mx_trainer_plan(const mx_trainer *t, mx_train_plan *out)
{
    *out = t->plan;
}

/* ---- passes over sequences ------------------------------------------------------------- */

static void ready(void *ctx, size_t first, size_t n)
{
    mx_comm_reduce_ready(ctx, first, n);
}

typedef struct totals {
    double  loss, extra;
    int64_t counted, rows;
} totals;

/* The next micro-batch of sequences [*at, last); learn: the step's gradients grow. */
static mx_status pass_next(mx_trainer *t, const mx_batches *b, int64_t *at, int64_t last, bool learn, totals *sum, mx_error *err)
{
    int64_t begun = *at;
    mx_batch_clear(&t->batch);
    while (*at < last && (*at == begun || t->batch.rows + mx_batches_length(b, *at) <= t->rows)) MX_TRY(mx_batches_take(b, (*at)++, &t->batch, err));
    mx_pass p = {.batch = &t->batch, .learn = learn, .seed = t->opt.seed ^ (uint64_t)begun * 0x9e3779b97f4a7c15u};
    if (learn && *at == last && mx_comm_size(t->comm) > 1) {          /* the last one makes gradients final */
        p.ready = ready;
        p.ctx = t->comm;
    }
    mx_stream_rewind(&t->stream);
    MX_TRY(t->learner.run(t->learner.network, &t->stream, &p, err));
    sum->loss += p.loss;
    sum->extra += p.extra;
    sum->counted += p.counted;
    sum->rows += t->batch.rows;
    return MX_OK;
}

/* This process's part of sequences [0, n): a run of neighbours. */
static void my_part(const mx_trainer *t, int64_t n, int64_t *first, int64_t *last)
{
    int64_t size = mx_comm_size(t->comm), rank = mx_comm_rank(t->comm);
    *first = n * rank / size;
    *last = n * (rank + 1) / size;
}

static mx_status share(mx_trainer *t, totals *sum, mx_error *err)
{
    double all[] = {sum->loss, sum->extra, (double)sum->counted, (double)sum->rows};
    MX_TRY(mx_comm_sum_doubles(t->comm, all, 4, err));
    *sum = (totals){all[0], all[1], (int64_t)all[2], (int64_t)all[3]};
    return MX_OK;
}

/* ---- evaluation -------------------------------------------------------------------------- */

mx_status mx_trainer_evaluate(mx_trainer *t, double *loss, double *extra, mx_error *err)
{
    int64_t first, last, n = t->eval->count;
    totals sum = {0};
    if (t->opt.eval_sequences && t->opt.eval_sequences < n) n = t->opt.eval_sequences;
    my_part(t, n, &first, &last);
    while (first < last) MX_TRY(pass_next(t, t->eval, &first, last, false, &sum, err));
    MX_TRY(share(t, &sum, err));
    if (!sum.counted) return mx_fail(err, MX_ERR_ARG, "the evaluation data has no token to predict");
    *loss = sum.loss / (double)sum.counted;
    *extra = t->learner.metric ? sum.extra / (double)sum.counted : exp(*loss);
    return MX_OK;
}

static mx_status evaluate_part(const mx_learner *l, const mx_batches *b, int64_t *at, int32_t rows, mx_stream *s, mx_batch *batch,
                               totals *sum, mx_error *err)
{
    int64_t begun = *at;
    mx_batch_clear(batch);
    while (*at < b->count && (*at == begun || batch->rows + mx_batches_length(b, *at) <= rows)) MX_TRY(mx_batches_take(b, (*at)++, batch, err));
    mx_pass p = {.batch = batch, .seed = 1 ^ (uint64_t)begun * 0x9e3779b97f4a7c15u};
    mx_stream_rewind(s);
    MX_TRY(l->run(l->network, s, &p, err));
    sum->loss += p.loss;
    sum->extra += p.extra;
    sum->counted += p.counted;
    return MX_OK;
}

mx_status mx_evaluate(const mx_learner *l, const mx_batches *b, int32_t rows, bool (*progress)(void *ctx, int64_t done, int64_t all),
                      void *ctx, double *loss, double *extra, mx_error *err)
{
    mx_stream s;
    mx_batch batch = {0};
    totals sum = {0};
    mx_status st = MX_OK;
    if (rows < b->length) rows = b->length;
    size_t scratch = l->scratch(l->network, rows, rows, b->length, false);
    if (!scratch) return mx_fail(err, MX_ERR_ARG, "micro-rows: %d rows are too many", rows);
    MX_TRY(mx_stream_open(&s, l->params->dev, scratch, err));
    for (int64_t at = 0; at < b->count && !st;) {
        st = evaluate_part(l, b, &at, rows, &s, &batch, &sum, err);
        if (!st && progress && !progress(ctx, at, b->count)) st = mx_fail(err, MX_ERR_CANCELLED, "stopped");
    }
    mx_batch_free(&batch);
    mx_stream_close(&s);
    MX_TRY(st);
    if (!sum.counted) return mx_fail(err, MX_ERR_ARG, "the evaluation data has nothing to judge");
    *loss = sum.loss / (double)sum.counted;
    *extra = l->metric ? sum.extra / (double)sum.counted : exp(*loss);
    return MX_OK;
}

/* ---- a step --------------------------------------------------------------------------------- */

static mx_status not_a_number(const mx_trainer *t, const char *what, double value, mx_error *err)
{
    return mx_fail(err, MX_ERR_STATE, "step %lld: the %s is %g: the run has diverged; go on from its last checkpoint with a lower lr "
                   "(it is %g), a longer warm-up or a lower clip", (long long)t->step + 1, what, value, t->report.lr);
}

static mx_status begin_step(mx_trainer *t, mx_error *err)
{
    mx_params *p = t->learner.params;
    int64_t first, last, from = t->step * t->opt.batch;
    t->loss = t->extra = 0;
    t->counted = t->tokens_in = 0;
    t->step_ns = 0;
    t->report.lr = mx_schedule_lr(&t->opt, t->steps, t->step);
    p->dev->ops->clear(&t->stream, p->grad.base, p->grad.size);
    my_part(t, t->opt.batch, &first, &last);
    t->micro_at = from + first;
    t->micro_last = from + last;
    if (mx_comm_size(t->comm) > 1) MX_TRY(mx_comm_reduce_begin(t->comm, p->grad.base, p->count, err));
    t->in_step = true;
    return MX_OK;
}

static mx_status next_micro_batch(mx_trainer *t, mx_error *err)
{
    totals sum = {0};
    mx_status st = pass_next(t, t->train, &t->micro_at, t->micro_last, true, &sum, err);
    t->loss += sum.loss;
    t->extra += sum.extra;
    t->counted += sum.counted;
    t->tokens_in += sum.rows;
    if (st && mx_comm_size(t->comm) > 1) {      /* the others wait for sums that will not come */
        mx_log(MX_LOG_ERROR, "train", "process %d ends the run: %s", mx_comm_rank(t->comm), err ? err->text : mx_status_name(st));
        mx_comm_give_up(t->comm);
    }
    return st;
}

/* All gradients are there: reduced, and what they were made of counted. */
static mx_status end_gradients(mx_trainer *t, totals *sum, mx_error *err)
{
    *sum = (totals){t->loss, t->extra, t->counted, t->tokens_in};
    if (mx_comm_size(t->comm) > 1) MX_TRY(mx_comm_reduce_wait(t->comm, err));
    MX_TRY(share(t, sum, err));
    if (!sum->counted)
        return mx_fail(err, MX_ERR_ARG, "step %lld: none of its %d sequences has a token to learn", (long long)t->step + 1, t->opt.batch);
    return MX_OK;
}

static mx_status optimize(mx_trainer *t, double lr, int64_t counted, double *norm, mx_error *err)
{
    mx_params *p = t->learner.params;
    double square = 0, scale = 1.0 / (double)counted;
    MX_TRY(mx_params_square_norm(p, &t->stream, t->shard_begin, t->shard_end, &square, err));
    MX_TRY(mx_comm_sum_doubles(t->comm, &square, 1, err));
    *norm = sqrt(square) * scale;
    if (!isfinite(*norm)) return not_a_number(t, "gradients' norm", *norm, err);
    if (t->opt.clip > 0 && *norm > (double)t->opt.clip) scale *= (double)t->opt.clip / *norm;
    mx_adamw_options o = {.lr = (float)lr, .beta1 = t->opt.beta1, .beta2 = t->opt.beta2, .eps = t->opt.eps,
                          .decay = t->opt.weight_decay, .step = t->step + 1, .scale = (float)scale};
    MX_TRY(mx_params_adamw(p, &t->stream, &t->m, &t->v, t->shard_begin, t->shard_end, &o, err));
    return mx_comm_gather(t->comm, p->value.base, p->count, err);
}

static bool is_done(const mx_trainer *t)
{
    return t->step >= t->steps || (t->opt.patience && t->waited >= t->opt.patience);
}

/* What an evaluation means for patience and for the best checkpoint. */
static void judge(mx_trainer *t, double loss, double extra)
{
    bool best, patient;
    if (t->opt.stop_on == MX_STOP_LOSS) best = patient = loss < t->least_loss;
    else if (t->opt.stop_on == MX_STOP_METRIC) best = patient = extra > t->most_extra;
    else {
        bool low = loss <= t->least_loss, high = extra >= t->most_extra;
        best = low && high, patient = low || high;
    }
    if (loss < t->least_loss) t->least_loss = loss;
    if (extra > t->most_extra) t->most_extra = extra;
    if (best) t->best_loss = loss, t->best_extra = extra, t->best_step = t->step;
    t->waited = patient ? 0 : t->waited + 1;
}

static mx_status after_step(mx_trainer *t, mx_train_report *r, bool *done, mx_error *err)
{
    if (t->eval && (t->step >= t->steps || (t->opt.eval_every && t->step % t->opt.eval_every == 0))) {
        MX_TRY(mx_trainer_evaluate(t, &r->eval_loss, &r->eval_extra, err));
        r->evaluated = true;
        judge(t, r->eval_loss, r->eval_extra);
        r->best_loss = t->best_loss, r->best_extra = t->best_extra, r->best_step = t->best_step;
    }
    *done = is_done(t);
    mx_trainer_log(t, r);
    bool best = r->evaluated && t->best_step == t->step && (t->opt.save_every || t->opt.patience);
    if (*done || best || (t->opt.save_every && t->step % t->opt.save_every == 0)) {
        MX_TRY(mx_trainer_save(t, err));
        r->saved = true;
    }
    return MX_OK;
}

static mx_status finish_step(mx_trainer *t, uint64_t began, mx_train_report *r, bool *done, mx_error *err)
{
    totals sum;
    double norm = 0;
    MX_TRY(end_gradients(t, &sum, err));
    double loss = sum.loss / (double)sum.counted;
    if (!isfinite(loss)) return not_a_number(t, "loss", loss, err);
    MX_TRY(optimize(t, t->report.lr, sum.counted, &norm, err));
    t->step++;
    t->tokens += sum.rows;
    t->step_ns += mx_now_ns(&mx_clock_monotonic) - began;
    double seconds = (double)t->step_ns * 1e-9, rate = (double)sum.rows / seconds, before = t->report.tokens_per_s;
    t->seconds_per_step = t->seconds_per_step > 0 ? 0.95 * t->seconds_per_step + 0.05 * seconds : seconds;
    *r = (mx_train_report){.step = t->step, .steps = t->steps, .tokens = t->tokens, .sequences = t->step * t->opt.batch,
                           .epoch = (double)(t->step * t->opt.batch) / (double)t->train->count, .loss = loss, .lr = t->report.lr,
                           .grad_norm = norm, .seconds = seconds, .tokens_per_s = before > 0 ? 0.95 * before + 0.05 * rate : rate,
                           .best_loss = t->best_loss, .best_extra = t->best_extra, .best_step = t->best_step, .memory = t->plan.weights + t->plan.optimizer + t->stream.scratch.size,
                           .seconds_left = (double)(t->steps - t->step) * t->seconds_per_step};
    t->report = *r;
    return after_step(t, r, done, err);
}

mx_status mx_trainer_turn(mx_trainer *t, mx_train_report *r, bool *stepped, bool *done, mx_error *err)
{
    uint64_t began = mx_now_ns(&mx_clock_monotonic);
    *stepped = false;
    *done = is_done(t);
    *r = t->report;
    if (*done) return MX_OK;
    if (!t->in_step) MX_TRY(begin_step(t, err));
    mx_status st = t->micro_at < t->micro_last ? next_micro_batch(t, err) : MX_OK;
    if (!st && t->micro_at < t->micro_last) {
        t->step_ns += mx_now_ns(&mx_clock_monotonic) - began;
        return MX_OK;
    }
    t->in_step = false;                  /* whatever comes: the next turn begins anew */
    MX_TRY(st);
    *stepped = true;
    return finish_step(t, began, r, done, err);
}

mx_status mx_trainer_step(mx_trainer *t, mx_train_report *r, bool *done, mx_error *err)
{
    bool stepped;
    do MX_TRY(mx_trainer_turn(t, r, &stepped, done, err));
    while (!stepped && !*done);
    return MX_OK;
}
