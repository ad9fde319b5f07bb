/* dqn_state.c - a run's checkpoints and its metrics.jsonl; what was found to work for each world. */
#include "models/dqn_internal.h"

#include "runtime/log.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#define STATE "dqn.safetensors"
#define SETTINGS "dqn.json"
#define METRICS "metrics.jsonl"

mx_dqn_options mx_dqn_defaults(const char *env)
{
    mx_dqn_options o = {.steps = 50000, .envs = 1, .buffer = 50000, .learn_starts = 1000, .batch = 64, .train_every = 4, .updates = 4, .lr = 1e-3f, .min_lr = 0,
                        .gamma = 0.99f, .huber = 1, .clip = 10, .n_step = 3, .target_every = 1, .tau = 0.005f, .epsilon = 0.05f, .epsilon_part = 0.2f, .double_q = true,
                        .alpha = 0.6f, .beta = 0.4f, .episodes = 20, .keep = 1, .seed = 1,
                        .net = {.layers = 2, .hidden = {64, 64}, .activation = MX_ACT_RELU, .atoms = 1}};
    if (!strncmp(env, "acrobot", 7)) {
        o.steps = 100000;
        o.eval_every = 5000;
    } else if (!strncmp(env, "cartpole", 8)) {
        o.eval_every = 2500;
    } else if (!strncmp(env, "gvr", 3)) {
        o = (mx_dqn_options){.steps = 6000000, .envs = 256, .buffer = 4000000, .learn_starts = 20000, .batch = 2048, .train_every = 512, .updates = 1, .lr = 1e-3f,
                             .gamma = 1, .huber = 10, .clip = 10, .n_step = 1, .target_every = 150, .tau = 1, .epsilon = 0.7f, .epsilon_part = 0.1f,
                             .double_q = true, .alpha = 0.6f, .beta = 0.4f, .episodes = 2000, .keep = 1, .seed = 1,
                             .net = {.layers = 2, .hidden = {64, 64}, .activation = MX_ACT_RELU, .atoms = 1, .dueling = true}};
    } else if (!strncmp(env, "market", 6)) {
        o = (mx_dqn_options){.steps = 600000, .envs = 256, .buffer = 400000, .learn_starts = 20000, .batch = 4096, .train_every = 1024, .updates = 1, .lr = 2e-3f,
                             .min_lr = 1e-5f, .gamma = 0.8f, .huber = 10, .clip = 10, .n_step = 3, .target_every = 200, .tau = 1, .epsilon = 0.5f, .epsilon_part = 0.2f,
                             .double_q = true, .alpha = 0.6f, .beta = 0.4f, .eval_every = 50000, .episodes = 880, .keep = 1, .seed = 1,
                             .net = {.layers = 2, .hidden = {128, 128}, .activation = MX_ACT_RELU, .atoms = 1, .dueling = true}};
    }
    return o;
}

mx_dqn_options mx_dqn_offline_defaults(const char *env)
{
    mx_dqn_options o = mx_dqn_defaults("");
    o.gamma = mx_dqn_defaults(env).gamma;
    o.n_step = 1;                     /* longer sums would be worth what the logged policy did, not the learned one */
    o.cql_alpha = 1;
    o.min_lr = 1e-5f;
    return o;
}

/* ---- what must not change between the parts of a run ---------------------------------------- */

static json_t *settings_of(const mx_dqn *d)
{
    const mx_dqn_options *o = &d->o;
    const mx_qnet_config *n = &o->net;
    json_t *hidden = json_array();
    for (int i = 0; hidden && i < n->layers; i++) json_array_append_new(hidden, json_integer(n->hidden[i]));
    json_t *j = json_pack("{s:s, s:I, s:i, s:I, s:I, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:f, s:i, s:I, s:f, s:f, s:f, s:b, s:b, s:f, s:f, s:b, s:b, s:i, s:f, s:f, s:o}",
                          "env", d->name, "steps", (json_int_t)o->steps, "envs", o->envs, "buffer", (json_int_t)o->buffer, "learn-starts", (json_int_t)o->learn_starts,
                          "batch", o->batch, "train-every", o->train_every, "updates", o->updates, "lr", (double)o->lr, "min-lr", (double)o->min_lr, "gamma",
                          (double)o->gamma, "huber", (double)o->huber, "clip", (double)o->clip, "n-step", o->n_step, "target-every", (json_int_t)o->target_every, "tau",
                          (double)o->tau, "epsilon", (double)o->epsilon, "epsilon-part", (double)o->epsilon_part, "double-q", o->double_q, "prioritized",
                          o->prioritized, "priority-alpha", (double)o->alpha, "priority-beta", (double)o->beta, "dueling", n->dueling, "noisy", n->noisy, "atoms",
                          n->atoms, "atoms-low", (double)n->low, "atoms-high", (double)n->high, "hidden", hidden);
    char seed[24];
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)o->seed);
    if (j) json_object_set_new(j, "seed", json_string(seed));
    if (j && strcmp(d->judge, d->name)) json_object_set_new(j, "eval-env", json_string(d->judge));
    if (j && d->data) {
        char digest[24];
        snprintf(digest, sizeof digest, "%016llx", (unsigned long long)d->data->digest);
        json_object_set_new(j, "data", json_string(digest));
        json_object_set_new(j, "cql-alpha", json_real((double)o->cql_alpha));
        json_object_set_new(j, "clone-steps", json_integer((json_int_t)o->clone_steps));
    }
    return j;
}

static mx_status same_settings(const mx_dqn *d, const char *folder, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len = 0;
    json_error_t why;
    MX_TRY(mx_path_join(path, folder, SETTINGS, err));
    MX_TRY(mx_read_file(path, (size_t)1 << 20, &text, &len, err));
    json_t *had = json_loadb(text, len, 0, &why), *now = settings_of(d), *v;
    const char *name;
    free(text);
    mx_status st = MX_OK;
    if (!json_is_object(had) || !now) st = mx_fail(err, MX_ERR_FORMAT, "%s: %s", path, had ? "no object" : why.text);
    if (!st && json_object_get(had, "data") && !d->data) st = mx_fail(err, MX_ERR_STATE, "run: %.150s learned from data; take another folder, or --restart", d->run);
    json_object_foreach(now, name, v) {
        if (st || json_equal(v, json_object_get(had, name))) continue;
        char *a = json_dumps(json_object_get(had, name), JSON_ENCODE_ANY | JSON_COMPACT), *b = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
        st = mx_fail(err, MX_ERR_STATE, "run: %.150s began with %s %.60s, not %.60s; take another folder, or --restart", d->run, name, a ? a : "missing", b ? b : "?");
        free(a);
        free(b);
    }
    json_decref(had);
    json_decref(now);
    return st;
}

/* ---- saving -------------------------------------------------------------------------------------- */

static mx_status write_state(mx_dqn *d, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    mx_replay_image r;
    MX_TRY(mx_path_join(path, folder, STATE, err));
    mx_stream_rewind(&d->stream);
    MX_TRY(dqn_worlds_read(d, err));
    MX_TRY(mx_replay_save(d->replay, &d->stream, &r, err));
    int64_t places[2] = {r.head, r.count};
    const struct { const char *name; size_t bytes; const void *data; } parts[] = {
        {"counts", sizeof d->at, &d->at}, {"places", sizeof places, places}, {"worlds", d->env.memory_bytes, d->env.memory},
        {"replay.window", r.window_bytes, r.window}, {"replay.ring", r.ring_bytes, r.ring}, {"replay.tree", r.tree_bytes, r.tree}};
    mx_save save[6];
    int n = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].bytes)
            save[n++] = (mx_save){.name = parts[i].name, .as = MX_SAVE_U8, .n_dims = 1, .dims = {(int64_t)parts[i].bytes}, .data = parts[i].data};
    mx_status st = mx_safetensors_write(path, save, n, NULL, 0, err);
    mx_replay_image_free(&r);
    return st;
}

static mx_status write_files(mx_dqn *d, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    mx_params *p = mx_qnet_params(d->online);
    const struct { const char *name; const mx_params *p; const mx_buffer *b; } parts[] = {
        {"target.safetensors", mx_qnet_params(d->target), &mx_qnet_params(d->target)->value}, {"m.safetensors", p, &d->m}, {"v.safetensors", p, &d->v}};
    MX_TRY(mx_qnet_save(d->online, folder, err));
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        MX_TRY(mx_path_join(path, folder, parts[i].name, err));
        MX_TRY(mx_params_save_as(parts[i].p, parts[i].b, path, MX_SAVE_F32, true, NULL, 0, err));
    }
    MX_TRY(write_state(d, folder, err));
    MX_TRY(mx_path_join(path, folder, SETTINGS, err));
    json_t *j = settings_of(d);
    char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL;
    mx_status st = text ? mx_write_file(path, text, strlen(text), err) : mx_fail(err, MX_ERR_NO_MEMORY, "%s", path);
    free(text);
    json_decref(j);
    return st;
}

/* RUN/best, whole at any time. */
static mx_status link_best(const mx_dqn *d, mx_error *err)
{
    char target[32], path[MX_PATH], beside[MX_PATH];
    if (d->at.best_step < 0) return MX_OK;
    snprintf(target, sizeof target, "checkpoint-%08lld", (long long)d->at.best_step);
    MX_TRY(mx_path_join(path, d->run, "best", err));
    MX_TRY(mx_path_join(beside, d->run, ".best", err));
    unlink(beside);
    if (symlink(target, beside) || rename(beside, path)) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    return MX_OK;
}

mx_status mx_dqn_save(mx_dqn *d, mx_error *err)
{
    mx_snapshot s;
    if (!d->run[0] || d->saved_step == d->at.step) return MX_OK;
    MX_TRY(mx_snapshot_begin(&s, d->run, d->at.step, err));
    mx_status st = write_files(d, s.folder, err);
    if (st) {
        mx_snapshot_abandon(&s);
        return st;
    }
    MX_TRY(mx_snapshot_commit(&s, d->o.keep, d->at.best_step, err));
    d->saved_step = d->at.step;
    return link_best(d, err);
}

/* ---- going on -------------------------------------------------------------------------------------- */

static mx_status read_blob(const mx_checkpoint *c, const char *name, void *to, size_t bytes, mx_error *err)
{
    const mx_blob *b = mx_checkpoint_find(c, name);
    if (!b && !bytes) return MX_OK;
    if (!b || b->size != bytes) return mx_fail(err, MX_ERR_FORMAT, STATE ": %s is missing, or of another size", name);
    memcpy(to, b->data, bytes);
    return MX_OK;
}

static mx_status read_replay(mx_dqn *d, const mx_checkpoint *c, mx_error *err)
{
    static const char *const names[] = {"replay.ring", "replay.tree", "replay.window"};
    int64_t places[2];
    const void *data[3] = {0};
    size_t bytes[3] = {0};
    MX_TRY(read_blob(c, "places", places, sizeof places, err));
    for (int i = 0; i < 3; i++) {
        const mx_blob *b = mx_checkpoint_find(c, names[i]);
        if (!b) continue;
        data[i] = b->data;
        bytes[i] = b->size;
    }
    mx_replay_image r = {.ring = (void *)data[0], .tree = (void *)data[1], .window = (void *)data[2], .ring_bytes = bytes[0], .tree_bytes = bytes[1],
                         .window_bytes = bytes[2], .head = places[0], .count = places[1]};
    return mx_replay_restore(d->replay, &d->stream, &r, err);
}

static mx_status read_params(mx_params *p, const mx_buffer *into, const char *folder, const char *name, mx_error *err)
{
    char path[MX_PATH];
    mx_checkpoint *c = NULL;
    MX_TRY(mx_path_join(path, folder, name, err));
    MX_TRY(mx_checkpoint_open(&c, path, err));
    mx_status st = mx_params_load_own(p, into, c, err);
    mx_checkpoint_close(c);
    return st;
}

static mx_status load(mx_dqn *d, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    mx_checkpoint *c = NULL;
    mx_params *p = mx_qnet_params(d->online), *t = mx_qnet_params(d->target);
    MX_TRY(same_settings(d, folder, err));
    MX_TRY(read_params(p, &p->value, folder, "model.safetensors", err));
    MX_TRY(read_params(t, &t->value, folder, "target.safetensors", err));
    MX_TRY(read_params(p, &d->m, folder, "m.safetensors", err));
    MX_TRY(read_params(p, &d->v, folder, "v.safetensors", err));
    MX_TRY(mx_path_join(path, folder, STATE, err));
    MX_TRY(mx_checkpoint_open(&c, path, err));
    mx_status st = read_blob(c, "counts", &d->at, sizeof d->at, err);
    if (!st) st = read_blob(c, "worlds", d->env.memory, d->env.memory_bytes, err);
    if (!st) st = read_replay(d, c, err);
    mx_checkpoint_close(c);
    MX_TRY(st);
    d->saved_step = d->resumed_from = d->at.step;
    snprintf(d->resumed, sizeof d->resumed, "%s", folder);
    return MX_OK;
}

static void refused(void *ctx, const char *why)
{
    (void)ctx;
    mx_log(MX_LOG_WARN, "dqn", "%s", why);
}

/* Lines behind the checkpoint are of steps that are done again. */
static mx_status open_log(mx_dqn *d, mx_error *err)
{
    char path[MX_PATH], *text = NULL, *kept = NULL;
    size_t len = 0, at = 0;
    mx_status st = MX_OK;
    MX_TRY(mx_path_join(path, d->run, METRICS, err));
    if (d->resumed_from >= 0 && !mx_read_file(path, (size_t)1 << 30, &text, &len, NULL)) {
        kept = text;
        for (const char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
            long long step;
            if (sscanf(line, "{\"step\": %lld", &step) != 1 || step > d->resumed_from) continue;
            memmove(kept + at, line, (size_t)(end + 1 - line));
            at += (size_t)(end + 1 - line);
        }
    }
    st = mx_write_file(path, kept ? kept : "", at, err);
    free(text);
    MX_TRY(st);
    d->log = fopen(path, "ae");
    return d->log ? MX_OK : mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
}

mx_status dqn_resume(mx_dqn *d, mx_error *err)
{
    char folder[MX_PATH];
    int64_t step;
    if (d->o.restart) MX_TRY(mx_snapshot_clear(d->run, err));
    MX_TRY(mx_snapshot_prepare(d->run, err));
    mx_status st = mx_snapshot_latest(d->run, folder, &step, refused, NULL, err);
    if (!st) st = load(d, folder, err);
    else if (st == MX_ERR_NOT_FOUND) st = MX_OK;
    return st ? st : open_log(d, err);
}

/* ---- metrics ----------------------------------------------------------------------------------------- */

void dqn_log(mx_dqn *d, const mx_dqn_report *r)
{
    if (!d->log) return;
    fprintf(d->log, "{\"step\": %lld, \"updates\": %lld, \"episodes\": %lld, \"loss\": %.9g, \"grad_norm\": %.9g, \"lr\": %.9g, \"epsilon\": %.9g, \"steps_per_s\": %.1f",
            (long long)r->step, (long long)r->updates, (long long)r->episodes, r->loss, r->grad_norm, r->lr, r->epsilon, r->steps_per_s);
    if (isfinite(r->mean_return)) fprintf(d->log, ", \"return\": %.9g", r->mean_return);
    if (r->offline) fprintf(d->log, ", \"gap\": %.9g", r->gap);
    if (r->offline && isfinite(r->mean_value)) fprintf(d->log, ", \"mean_value\": %.9g", r->mean_value);
    if (r->evaluated) fprintf(d->log, ", \"eval_return\": %.9g, \"eval_error\": %.9g", r->eval_return, r->eval_error);
    fputs("}\n", d->log);
    fflush(d->log);
}
