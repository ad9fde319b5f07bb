/* dqn.c - acting in many worlds, and learning from what came of it. */
#include "models/dqn_internal.h"

#include "runtime/clock.h"
#include "runtime/random.h"

#include <math.h>
#include <stdlib.h>

enum { DRAW_EXPLORE = 1, DRAW_ACTION, DRAW_BATCH, DRAW_NOISE };      /* what a draw is for */

static float linear(float from, float to, double part)
{
    return (float)((double)from + ((double)to - (double)from) * (part < 1 ? part : 1));
}

static double part_of(const mx_dqn *d)
{
    return (double)d->at.step / (double)d->o.steps;
}

static float epsilon_now(const mx_dqn *d)
{
    if (d->o.net.noisy || d->data) return 0;     /* the noise explores; from data nothing does */
    return d->o.epsilon_part > 0 ? linear(1, d->o.epsilon, part_of(d) / (double)d->o.epsilon_part) : d->o.epsilon;
}

static uint64_t noise_seed(const mx_dqn *d, int64_t when, uint32_t who)
{
    uint32_t c[4] = {(uint32_t)when, (uint32_t)(when >> 32), who, DRAW_NOISE};
    mx_philox(c, d->o.seed);
    return ((uint64_t)c[0] << 32 | c[1]) | 1;
}

/* ---- opening ------------------------------------------------------------------------------ */

static mx_status check(const mx_dqn_options *o, mx_error *err)
{
    const struct { const char *name; double value, least, most; } limits[] = {
        {"steps", (double)o->steps, 1, 1e15}, {"envs", o->envs, 1, 1 << 20}, {"learn-starts", (double)o->learn_starts, 0, 1e15},
        {"batch", o->batch, 1, 1 << 20}, {"train-every", o->train_every, 1, 1 << 30}, {"updates", o->updates, 0, 1 << 30},
        {"lr", (double)o->lr, 0, 100}, {"min-lr", (double)o->min_lr, 0, 100}, {"gamma", (double)o->gamma, 0, 1}, {"huber", (double)o->huber, 1e-6, 1e9},
        {"clip", (double)o->clip, 0, 1e9}, {"target-every", (double)o->target_every, 1, 1e15}, {"tau", (double)o->tau, 1e-6, 1},
        {"epsilon", (double)o->epsilon, 0, 1}, {"epsilon-part", (double)o->epsilon_part, 0, 1}, {"priority-alpha", (double)o->alpha, 0, 10},
        {"priority-beta", (double)o->beta, 0, 1}, {"eval-every", (double)o->eval_every, 0, 1e15}, {"episodes", o->episodes, 1, 1 << 20},
        {"save-every", (double)o->save_every, 0, 1e15}, {"keep", o->keep, 0, 1 << 24}, {"cql-alpha", (double)o->cql_alpha, 0, 1e6},
        {"clone-steps", (double)o->clone_steps, 0, 1e15}};
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!(limits[i].value >= limits[i].least && limits[i].value <= limits[i].most))
            return mx_fail(err, MX_ERR_ARG, "%s is %g; it must be from %g to %g", limits[i].name, limits[i].value, limits[i].least, limits[i].most);
    if (!o->data && (o->cql_alpha > 0 || o->clone_steps > 0))
        return mx_fail(err, MX_ERR_ARG, "%s: it is for learning from logged steps; give them as data", o->cql_alpha > 0 ? "cql-alpha" : "clone-steps");
    if (o->data && o->net.atoms > 1) return mx_fail(err, MX_ERR_ARG, "atoms is %d; learning from data has plain values, 1", o->net.atoms);
    return MX_OK;
}

static mx_status open_host(mx_dqn *d, mx_error *err)
{
    size_t n = (size_t)d->o.envs, D = (size_t)d->env.observation, A = (size_t)d->env.actions;
    size_t draws = n > (size_t)d->o.batch ? n : (size_t)d->o.batch;
    d->seen = malloc(n * D * sizeof(float));
    d->next = malloc(n * D * sizeof(float));
    d->reward = malloc(n * sizeof(float));
    d->uniform = malloc(draws * sizeof(float));
    d->mask = malloc(n * A);
    d->next_mask = malloc(n * A);
    d->ends = malloc(2 * n);
    d->action = malloc(n * sizeof(int32_t));
    if (!d->seen || !d->next || !d->reward || !d->uniform || !d->mask || !d->next_mask || !d->ends || !d->action)
        return mx_fail(err, MX_ERR_NO_MEMORY, "%zu worlds", n);
    return MX_OK;
}

static mx_status open_device(mx_dqn *d, mx_error *err)
{
    const mx_dqn_options *o = &d->o;
    mx_replay_shape shape = {.capacity = o->buffer, .rows = o->envs, .observation = d->env.observation, .actions = d->env.actions, .n_step = o->n_step,
                             .gamma = o->gamma, .prioritized = o->prioritized};
    MX_TRY(mx_replay_open(&d->replay, d->dev, &shape, err));
    MX_TRY(mx_qnet_create(&d->online, d->dev, &o->net, true, o->seed, err));
    MX_TRY(mx_qnet_create(&d->target, d->dev, &o->net, false, o->seed, err));
    size_t bytes = mx_qnet_params(d->online)->count * sizeof(float), acting, learning, scratch;
    int64_t A = d->env.actions, D = d->env.observation;
    MX_TRY(mx_buffer_open(&d->m, d->dev, bytes, err));
    MX_TRY(mx_buffer_open(&d->v, d->dev, bytes, err));
    MX_TRY(mx_buffer_open(&d->sum, d->dev, 4 * sizeof(int32_t), err));
    acting = mx_qnet_scratch(d->online, o->envs, false) + mx_stream_tensor_bytes(MX_F32, o->envs, D) + mx_stream_tensor_bytes(MX_I8, o->envs, A);
    learning = mx_qnet_scratch(d->online, o->batch, true) + 2 * mx_qnet_scratch(d->online, o->batch, false) + mx_replay_scratch(d->replay, o->batch) +
               3 * mx_stream_tensor_bytes(MX_F32, o->batch, 1) + (d->data ? mx_stream_tensor_bytes(MX_F32, o->batch, A) : 0) + bytes;
    scratch = (acting > learning ? acting : learning) + 4096;
    if (!d->data) MX_TRY(dqn_worlds_open(d, err));
    return mx_stream_open(&d->stream, d->dev, scratch, err);
}

mx_status mx_dqn_open(mx_dqn **out, mx_device *dev, const char *env, const char *run, const mx_dqn_options *o, mx_error *err)
{
    mx_status st;
    *out = NULL;
    MX_TRY(check(o, err));
    if (run && strlen(run) >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "run: the path is longer than %d bytes", MX_PATH - 1);
    const char *judge = o->eval_env ? o->eval_env : env;
    if (strlen(judge) >= sizeof((mx_dqn *)0)->judge) return mx_fail(err, MX_ERR_ARG, "eval-env: longer than 255 bytes");
    if (strlen(env) >= sizeof((mx_dqn *)0)->name) return mx_fail(err, MX_ERR_ARG, "env: longer than 255 bytes");
    mx_dqn *d = calloc(1, sizeof *d);
    if (!d) return mx_fail(err, MX_ERR_NO_MEMORY, "a learner");
    d->dev = dev;
    d->o = *o;
    d->saved_step = d->resumed_from = -1;
    d->at.best_step = -1;
    snprintf(d->name, sizeof d->name, "%s", env);
    snprintf(d->judge, sizeof d->judge, "%s", judge);
    d->o.eval_env = NULL;             /* the caller's */
    if (run) snprintf(d->run, sizeof d->run, "%s", run);
    if (o->data) MX_TRY_GOTO(st, dqn_offline_open(d, err), fail);
    else MX_TRY_GOTO(st, mx_env_open(&d->env, env, o->envs, o->seed, err), fail);
    d->o.net.observation = d->env.observation;
    d->o.net.actions = d->env.actions;
    snprintf(d->o.net.env, sizeof d->o.net.env, "%.63s", env);
    MX_TRY_GOTO(st, open_host(d, err), fail);
    MX_TRY_GOTO(st, open_device(d, err), fail);
    if (d->data) MX_TRY_GOTO(st, dqn_offline_fill(d, err), fail);
    if (run) MX_TRY_GOTO(st, dqn_resume(d, err), fail);
    if (d->resumed_from < 0) mx_qnet_follow(d->target, d->online, &d->stream, 1);
    MX_TRY_GOTO(st, mx_stream_sync(&d->stream, err), fail);
    if (!d->data) mx_env_observe(&d->env, 0, d->env.rows, d->seen, d->mask);
    MX_TRY_GOTO(st, dqn_worlds_write(d, err), fail);
    d->began_ns = mx_now_ns(&mx_clock_monotonic);
    d->began_step = d->at.step;
    d->began_updates = d->at.updates;
    *out = d;
    return MX_OK;
fail:
    mx_dqn_close(d);
    return st;
}

void mx_dqn_close(mx_dqn *d)
{
    if (!d) return;
    if (d->log) fclose(d->log);
    free(d->action), free(d->ends), free(d->next_mask), free(d->mask), free(d->uniform), free(d->reward), free(d->next), free(d->seen);
    mx_stream_close(&d->stream);
    dqn_worlds_close(d);
    mx_buffer_close(&d->ban);
    mx_buffer_close(&d->sum);
    mx_buffer_close(&d->v);
    mx_buffer_close(&d->m);
    mx_qnet_close(d->target);
    mx_qnet_close(d->online);
    mx_replay_close(d->replay);
    mx_env_close(&d->env);
    mx_transitions_close(d->data);
    free(d);
}

mx_qnet *mx_dqn_network(mx_dqn *d)
{
    return d->online;
}

int64_t mx_dqn_steps(const mx_dqn *d)
{
    return d->o.steps;
}

int64_t mx_dqn_resumed_from(const mx_dqn *d, const char **folder)
{
    *folder = d->resumed;
    return d->resumed_from;
}

/* ---- acting ---------------------------------------------------------------------------------- */

/* The k-th feasible action, k drawn. */
static int32_t any_action(const uint8_t *mask, int32_t n, double u)
{
    int32_t feasible = 0, k;
    for (int32_t a = 0; a < n; a++) feasible += mask[a];
    k = (int32_t)(u * feasible);
    for (int32_t a = 0; a < n; a++)
        if (mask[a] && k-- == 0) return a;
    return 0;
}

/* d->action: what explores, -1 for the rest; how many those are. */
static int64_t explore(mx_dqn *d)
{
    int64_t n = d->env.rows, A = d->env.actions;
    float epsilon = d->at.step < d->o.learn_starts && !d->o.net.noisy ? 1 : epsilon_now(d);
    uint32_t low = (uint32_t)d->at.turn, high = (uint32_t)(d->at.turn >> 32);
    int64_t greedy = 0;
    for (int64_t r = 0; r < n; r++) {
        bool any = mx_uniform(d->o.seed, low, high, (uint32_t)r, DRAW_EXPLORE) < (double)epsilon;
        d->action[r] = any ? any_action(d->mask + r * A, (int32_t)A, mx_uniform(d->o.seed, low, high, (uint32_t)r, DRAW_ACTION)) : -1;
        greedy += !any;
    }
    return greedy;
}

static mx_status choose(mx_dqn *d, mx_error *err)
{
    mx_stream *s = &d->stream;
    int64_t n = d->env.rows, A = d->env.actions;
    int32_t *best = (int32_t *)d->uniform;           /* [envs], of the same size */
    mx_tensor x = mx_stream_upload(s, MX_F32, n, d->env.observation, d->seen), mask = mx_stream_upload(s, MX_I8, n, A, d->mask);
    mx_tensor id = mx_qnet_best(s, mx_qnet_values(d->online, s, x), mask);
    if (!s->error.code) d->dev->ops->download(s, best, id.data, (size_t)n * sizeof *best);
    MX_TRY(mx_stream_sync(s, err));
    for (int64_t r = 0; r < n; r++) {
        if (d->action[r] < 0) d->action[r] = best[r];
        if (d->action[r] < 0) return mx_fail(err, MX_ERR_STATE, "step %lld: no value is a number; try a smaller lr", (long long)d->at.step);
    }
    return MX_OK;
}

static void live(mx_dqn *d)
{
    int64_t n = d->env.rows, D = d->env.observation, A = d->env.actions;
    uint8_t *terminated = d->ends, *truncated = d->ends + n;
    mx_env_step(&d->env, 0, n, d->action, d->reward, terminated, truncated);
    mx_env_observe(&d->env, 0, n, d->next, d->next_mask);
    for (int64_t r = 0; r < n; r++) {
        mx_replay_step t = {d->seen + r * D, d->next + r * D, d->next_mask + r * A, d->action[r], d->reward[r], terminated[r], truncated[r]};
        mx_replay_add(d->replay, r, &t);
        if (!terminated[r] && !truncated[r]) continue;
        d->at.recent[d->at.episodes++ % DQN_RECENT] = d->env.row[r].earned;
        mx_env_begin(&d->env, r);
        mx_env_observe(&d->env, r, 1, d->next + r * D, d->next_mask + r * A);
    }
    float *seen = d->seen;
    uint8_t *mask = d->mask;
    d->seen = d->next, d->next = seen;
    d->mask = d->next_mask, d->next_mask = mask;
}

static mx_status act(mx_dqn *d, mx_error *err)
{
    int64_t greedy = explore(d);
    mx_stream_rewind(&d->stream);
    if (greedy) mx_qnet_noise(d->online, &d->stream, noise_seed(d, d->at.turn, 0));
    if (d->worlds.memory.base) {
        MX_TRY(dqn_worlds_step(d, greedy, err));
    } else {
        if (greedy) MX_TRY(choose(d, err));
        live(d);
    }
    mx_stream_rewind(&d->stream);
    mx_replay_flush(d->replay, &d->stream);
    d->at.step += d->env.rows;
    d->at.turn++;
    return mx_stream_sync(&d->stream, err);
}

/* ---- learning ---------------------------------------------------------------------------------- */

static void draw(mx_dqn *d, mx_replay_batch *b)
{
    const mx_dqn_options *o = &d->o;
    for (int32_t i = 0; i < o->batch; i++)
        d->uniform[i] = (float)mx_uniform(o->seed, (uint32_t)d->at.updates, (uint32_t)(d->at.updates >> 32), (uint32_t)i, DRAW_BATCH) * 0.9999999f;
    mx_replay_draw(d->replay, &d->stream, d->uniform, o->batch, linear(o->beta, 1, part_of(d)), b);
}

static mx_tensor go_back(mx_dqn *d, const mx_qnet_pass *now, mx_tensor gradient, mx_tensor error)
{
    mx_params *p = mx_qnet_params(d->online);
    if (!d->stream.error.code) d->dev->ops->clear(&d->stream, p->grad.base, p->grad.size);
    mx_qnet_back(d->online, &d->stream, now, gradient);
    return error;
}

static mx_tensor clone_gradients(mx_dqn *d, const mx_replay_batch *b)
{
    mx_qnet_pass now;
    mx_tensor loss;
    mx_qnet_noise(d->online, &d->stream, noise_seed(d, d->at.updates, 1));
    mx_qnet_run(d->online, &d->stream, b->state, &now);
    mx_tensor gradient = dqn_pull(d, b, now.out, 1.0f / (float)d->o.batch, 0, &loss);
    return go_back(d, &now, gradient, loss);
}

mx_tensor dqn_gradients(mx_dqn *d, const mx_replay_batch *b)
{
    if (dqn_cloning(d)) return clone_gradients(d, b);
    const mx_dqn_options *o = &d->o;
    mx_stream *s = &d->stream;
    mx_qnet_pass now, next, ahead;
    mx_tensor chooser, pull = {0}, gap;
    float scale = 1.0f / (float)o->batch;
    mx_qnet_noise(d->target, s, noise_seed(d, d->at.updates, 2));
    mx_qnet_run(d->target, s, b->next, &next);
    mx_qnet_noise(d->online, s, noise_seed(d, d->at.updates, 1));
    if (o->double_q) {
        mx_qnet_run(d->online, s, b->next, &ahead);
        chooser = mx_qnet_mean(d->online, s, &ahead);
    } else {
        chooser = mx_qnet_mean(d->target, s, &next);
    }
    mx_qnet_run(d->online, s, b->state, &now);
    if (d->data) pull = dqn_pull(d, b, now.out, o->cql_alpha * scale, 1, &gap);
    mx_tensor loss = mx_stream_tensor(s, MX_F32, o->batch, 1), error = mx_stream_tensor(s, MX_F32, o->batch, 1);
    if (o->net.atoms > 1) mx_atoms_loss(s, loss, error, now.out, b->action, next.out, chooser, b->mask, b->step, o->net.low, o->net.high, scale);
    else mx_td_loss(s, loss, error, now.out, b->action, next.out, chooser, b->mask, b->step, o->huber, scale);
    mx_sum(s, mx_tensor_of(d->sum.base, MX_I32, 1, 2), loss, false);
    if (d->data) mx_add(s, now.out, now.out, pull);
    return go_back(d, &now, now.out, error);
}

mx_status dqn_apply(mx_dqn *d, mx_error *err)
{
    const mx_dqn_options *o = &d->o;
    mx_stream *s = &d->stream;
    mx_params *p = mx_qnet_params(d->online);
    double sum[2] = {0}, squares = 0;
    bool cloned = dqn_cloning(d);
    if (!s->error.code) d->dev->ops->download(s, sum, d->sum.base, d->data && !cloned ? sizeof sum : sizeof *sum);
    MX_TRY(mx_params_square_norm(p, s, 0, p->count, &squares, err));
    d->at.loss = sum[0] / o->batch;
    d->gap = (cloned ? sum[0] : sum[1]) / o->batch;
    d->at.grad_norm = sqrt(squares);
    if (!isfinite(d->at.loss) || !isfinite(d->gap) || !isfinite(squares))
        return mx_fail(err, MX_ERR_STATE, "step %lld: the loss or a gradient is not a number; try a smaller lr or clip", (long long)d->at.step);
    d->at.updates++;
    mx_adamw_options adam = {.lr = linear(o->lr, o->min_lr, part_of(d)), .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f, .step = d->at.updates, .scale = 1};
    if (o->clip > 0 && d->at.grad_norm > (double)o->clip) adam.scale = (float)((double)o->clip / d->at.grad_norm);
    MX_TRY(mx_params_adamw(p, s, &d->m, &d->v, 0, p->count, &adam, err));
    mx_stream_rewind(s);
    if (o->tau < 1 && d->at.updates != o->clone_steps) mx_qnet_follow(d->target, d->online, s, o->tau);
    else if (d->at.updates == o->clone_steps || d->at.updates % o->target_every == 0) mx_qnet_follow(d->target, d->online, s, 1);
    return mx_stream_sync(s, err);
}

static mx_status update(mx_dqn *d, mx_error *err)
{
    mx_replay_batch b = {0};
    mx_stream_rewind(&d->stream);
    draw(d, &b);
    mx_replay_errors(d->replay, &d->stream, &b, dqn_gradients(d, &b), d->o.alpha);
    return dqn_apply(d, err);
}

static void fill(const mx_dqn *d, mx_dqn_report *r)
{
    int64_t n = d->at.episodes < DQN_RECENT ? d->at.episodes : DQN_RECENT;
    double sum = 0, seconds = (double)(mx_now_ns(&mx_clock_monotonic) - d->began_ns) * 1e-9 + 1e-9;
    for (int64_t i = 0; i < n; i++) sum += d->at.recent[i];
    *r = (mx_dqn_report){.step = d->at.step, .steps = d->o.steps, .updates = d->at.updates, .episodes = d->at.episodes, .mean_return = n ? sum / (double)n : NAN,
                         .loss = d->at.loss, .grad_norm = d->at.grad_norm, .lr = (double)linear(d->o.lr, d->o.min_lr, part_of(d)), .epsilon = (double)epsilon_now(d),
                         .steps_per_s = (double)(d->at.step - d->began_step) / seconds, .updates_per_s = (double)(d->at.updates - d->began_updates) / seconds,
                         .offline = d->data != NULL, .mean_value = NAN, .cloning = dqn_cloning(d), .gap = d->gap, .best_return = d->at.best_return, .best_step = d->at.best_step,
                         .memory = mx_replay_bytes(d->replay) + 2 * mx_qnet_params(d->online)->value.size + 3 * d->m.size + d->stream.scratch.size};
    r->seconds_left = r->steps_per_s > 0 ? (double)(d->o.steps - d->at.step) / r->steps_per_s : 0;
}

/* Steps of `every` have passed since `before`. */
static bool due(int64_t before, int64_t now, int64_t every)
{
    return every && before / every != now / every;
}

static mx_status measure(mx_dqn *d, mx_dqn_report *r, mx_error *err)
{
    mx_dqn_score score;
    mx_stream_rewind(&d->stream);
    mx_qnet_noise(d->online, &d->stream, 0);
    MX_TRY(mx_stream_sync(&d->stream, err));
    if (d->data) MX_TRY(dqn_offline_measure(d, r, err));
    if (d->judge[0]) {
        MX_TRY(mx_dqn_evaluate(d->online, d->judge, d->o.episodes, d->o.seed + 1000003, NULL, &score, NULL, NULL, err));
        r->evaluated = true;
        r->eval_return = score.mean;
        r->eval_error = score.error;
    }
    if (!r->evaluated || (d->at.best_step >= 0 && r->eval_return < d->at.best_return)) return MX_OK;
    r->best_return = d->at.best_return = r->eval_return;
    r->best_step = d->at.best_step = d->at.step;
    return MX_OK;
}

mx_status mx_dqn_turn(mx_dqn *d, mx_dqn_report *r, bool *done, mx_error *err)
{
    const mx_dqn_options *o = &d->o;
    int64_t before = d->at.step, until = before + (d->data ? 1 : o->train_every), updates = d->data ? 1 : o->updates;
    *done = before >= o->steps;
    while (!d->data && d->at.step < until && d->at.step < o->steps) MX_TRY(act(d, err));
    if (d->data && !*done) d->at.step++;
    bool learns = d->data || (d->at.step >= o->learn_starts && mx_replay_count(d->replay) >= 1);
    for (int64_t i = 0; i < updates && learns && !*done; i++) MX_TRY(update(d, err));
    *done = d->at.step >= o->steps;
    fill(d, r);
    if (due(before, d->at.step, o->eval_every) || (*done && before < o->steps)) MX_TRY(measure(d, r, err));
    bool best = r->evaluated && d->at.best_step == d->at.step;
    if (d->run[0] && (due(before, d->at.step, o->save_every) || best || *done)) {
        MX_TRY(mx_dqn_save(d, err));
        r->saved = true;
    }
    r->logged = due(before, d->at.step, 1000) || r->evaluated;
    if (r->logged) dqn_log(d, r);
    return MX_OK;
}

/* ---- measuring --------------------------------------------------------------------------------- */

typedef struct player {
    mx_env    env;
    mx_stream s;
    float    *seen, *reward;
    uint8_t  *mask, *ends, *over;
    int32_t  *action;
} player;

static void close_player(player *p)
{
    free(p->seen), free(p->reward), free(p->mask), free(p->ends), free(p->over), free(p->action);
    mx_stream_close(&p->s);
    mx_env_close(&p->env);
}

static mx_status open_player(player *p, const mx_qnet *q, const char *env, int64_t n, uint64_t seed, mx_error *err)
{
    const mx_qnet_config *c = mx_qnet_config_of(q);
    MX_TRY(mx_env_open(&p->env, env, n, seed, err));
    if (c->observation != p->env.observation || c->actions != p->env.actions)
        return mx_fail(err, MX_ERR_ARG, "model: it sees %d numbers and has %d actions; %s has %d and %d", c->observation, c->actions, env, p->env.observation,
                       p->env.actions);
    size_t scratch = mx_qnet_scratch(q, n, false);
    if (scratch > SIZE_MAX / 2) return mx_fail(err, MX_ERR_ARG, "episodes: %lld are too many at once", (long long)n);
    scratch += mx_stream_tensor_bytes(MX_F32, n, c->observation) + mx_stream_tensor_bytes(MX_I8, n, c->actions) + 4096;
    MX_TRY(mx_stream_open(&p->s, mx_qnet_device(q), scratch, err));
    p->seen = malloc((size_t)n * (size_t)c->observation * sizeof *p->seen);
    p->reward = malloc((size_t)n * sizeof *p->reward);
    p->mask = malloc((size_t)n * (size_t)c->actions);
    p->ends = malloc(2 * (size_t)n);
    p->over = calloc((size_t)n, 1);
    p->action = malloc((size_t)n * sizeof *p->action);
    return p->seen && p->reward && p->mask && p->ends && p->over && p->action ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%lld episodes", (long long)n);
}

/* One step of all; those that are over step on, uncounted, from new beginnings. */
static mx_status play(player *p, const mx_qnet *q, double *returns, double *length, int64_t *left, mx_error *err)
{
    int64_t n = p->env.rows, D = p->env.observation, A = p->env.actions;
    mx_env_observe(&p->env, 0, n, p->seen, p->mask);
    mx_stream_rewind(&p->s);
    mx_tensor x = mx_stream_upload(&p->s, MX_F32, n, D, p->seen), mask = mx_stream_upload(&p->s, MX_I8, n, A, p->mask);
    mx_tensor best = mx_qnet_best(&p->s, mx_qnet_values(q, &p->s, x), mask);
    if (!p->s.error.code) p->s.dev->ops->download(&p->s, p->action, best.data, (size_t)n * sizeof *p->action);
    MX_TRY(mx_stream_sync(&p->s, err));
    for (int64_t r = 0; r < n; r++)
        if (p->action[r] < 0) return mx_fail(err, MX_ERR_STATE, "model: no value of row %lld is a number", (long long)r);
    mx_env_step(&p->env, 0, n, p->action, p->reward, p->ends, p->ends + n);
    for (int64_t r = 0; r < n; r++) {
        if (!p->ends[r] && !p->ends[n + r]) continue;
        if (!p->over[r]) {
            returns[r] = p->env.row[r].earned;
            *length += p->env.row[r].step;
            p->over[r] = 1;
            --*left;
        }
        mx_env_begin(&p->env, r);
    }
    return MX_OK;
}

mx_status mx_dqn_evaluate(const mx_qnet *q, const char *env, int64_t episodes, uint64_t seed, double *returns, mx_dqn_score *out,
                          bool (*progress)(void *ctx, int64_t done, int64_t all), void *ctx, mx_error *err)
{
    player p = {0};
    double *earned = returns ? returns : malloc((size_t)(episodes > 0 ? episodes : 1) * sizeof *earned), sum = 0, squares = 0;
    int64_t left = episodes;
    *out = (mx_dqn_score){.episodes = episodes, .least = INFINITY, .most = -INFINITY};
    mx_status st = earned ? open_player(&p, q, env, episodes, seed, err) : mx_fail(err, MX_ERR_NO_MEMORY, "%lld episodes", (long long)episodes);
    for (int64_t t = 0; !st && left; t++) {
        st = t < 100000 ? play(&p, q, earned, &out->length, &left, err) : mx_fail(err, MX_ERR_STATE, "env: an episode of %s does not end", env);
        if (!st && progress && !progress(ctx, episodes - left, episodes)) st = mx_fail(err, MX_ERR_CANCELLED, "stopped");
    }
    for (int64_t r = 0; !st && r < episodes; r++) {
        sum += earned[r];
        out->least = fmin(out->least, earned[r]);
        out->most = fmax(out->most, earned[r]);
    }
    out->mean = sum / (double)episodes;
    out->length /= (double)episodes;
    for (int64_t r = 0; !st && r < episodes; r++) squares += (earned[r] - out->mean) * (earned[r] - out->mean);
    out->deviation = episodes > 1 ? sqrt(squares / (double)(episodes - 1)) : 0;
    out->error = 1.96 * out->deviation / sqrt((double)episodes);
    close_player(&p);
    if (!returns) free(earned);
    return st;
}
