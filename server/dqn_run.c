/* dqn_run.c - from settings to a learner. */
#include "server/dqn_run.h"

#include "server/train_run.h"

#include <stdlib.h>
#include <string.h>

static void whole(const mx_config *c, const char *name, int64_t *to)
{
    if (mx_config_given(c, name)) *to = mx_config_int(c, name);
}

static void whole32(const mx_config *c, const char *name, int32_t *to)
{
    if (mx_config_given(c, name)) *to = (int32_t)mx_config_int(c, name);
}

static void number(const mx_config *c, const char *name, float *to)
{
    if (mx_config_given(c, name)) *to = (float)mx_config_float(c, name);
}

static void flag(const mx_config *c, const char *name, bool *to)
{
    if (mx_config_given(c, name)) *to = mx_config_bool(c, name);
}

static mx_status hidden(const mx_config *c, mx_qnet_config *n, mx_error *err)
{
    const char *const *items;
    int k = mx_config_list(c, "hidden", &items);
    if (k > MX_QNET_HIDDEN) return mx_fail(err, MX_ERR_ARG, "hidden: %d layers; at most %d", k, MX_QNET_HIDDEN);
    if (k) n->layers = k;
    for (int i = 0; i < k; i++) {
        char *end;
        long width = strtol(items[i], &end, 10);
        if (*end || end == items[i] || width < 1 || width > 65536) return mx_fail(err, MX_ERR_ARG, "hidden: \"%.40s\" is no width from 1 to 65536", items[i]);
        n->hidden[i] = (int32_t)width;
    }
    return MX_OK;
}

mx_status mx_dqn_run_options(const mx_config *c, const char **env, mx_dqn_options *o, mx_error *err)
{
    const char *const *data;
    int files = mx_config_list(c, "data", &data);
    *env = mx_config_string(c, "env");
    if (files > 1) return mx_fail(err, MX_ERR_ARG, "data: %d files; a policy learns from one", files);
    if (!*env && !files) return mx_fail(err, MX_ERR_ARG, "env: say with --env NAME in which world to learn: cartpole, acrobot, gvr ...; or with --data FILE from which logged steps");
    if (!*env) *env = "";
    *o = files ? mx_dqn_offline_defaults(*env) : mx_dqn_defaults(*env);
    o->data = files ? data[0] : NULL;
    o->eval_env = mx_config_string(c, "eval-env");
    whole(c, "clone-steps", &o->clone_steps), number(c, "cql-alpha", &o->cql_alpha);
    whole(c, "steps", &o->steps), whole(c, "buffer", &o->buffer), whole(c, "learn-starts", &o->learn_starts), whole(c, "target-every", &o->target_every);
    whole(c, "eval-every", &o->eval_every), whole(c, "save-every", &o->save_every);
    whole32(c, "envs", &o->envs), whole32(c, "batch", &o->batch), whole32(c, "train-every", &o->train_every), whole32(c, "updates", &o->updates);
    whole32(c, "n-step", &o->n_step), whole32(c, "episodes", &o->episodes), whole32(c, "keep", &o->keep), whole32(c, "atoms", &o->net.atoms);
    number(c, "lr", &o->lr), number(c, "min-lr", &o->min_lr), number(c, "gamma", &o->gamma), number(c, "huber", &o->huber), number(c, "clip", &o->clip);
    number(c, "tau", &o->tau), number(c, "epsilon", &o->epsilon), number(c, "epsilon-part", &o->epsilon_part), number(c, "priority-alpha", &o->alpha);
    number(c, "priority-beta", &o->beta), number(c, "atoms-low", &o->net.low), number(c, "atoms-high", &o->net.high);
    flag(c, "double-q", &o->double_q), flag(c, "prioritized", &o->prioritized), flag(c, "dueling", &o->net.dueling), flag(c, "noisy", &o->net.noisy);
    o->restart = mx_config_bool(c, "restart");
    MX_TRY(mx_train_run_seed(c, &o->seed, err));
    return hidden(c, &o->net, err);
}

mx_status mx_dqn_run_open(mx_dqn **out, const mx_config *c, mx_device *dev, const char *run, mx_error *err)
{
    const char *env;
    mx_dqn_options o;
    *out = NULL;
    MX_TRY(mx_dqn_run_options(c, &env, &o, err));
    return mx_dqn_open(out, dev, env, run, &o, err);
}
