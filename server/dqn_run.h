/* dqn_run.h - a run of merx train dqn from its settings: for the command line, and
 * for the server's jobs.  What is not given is what is known to work for the world
 * (mx_dqn_defaults). */
#ifndef MX_DQN_RUN_H
#define MX_DQN_RUN_H

#include "models/dqn.h"
#include "runtime/config.h"

/* Errors: MX_ERR_ARG names the setting.  *env: of the settings. */
mx_status mx_dqn_run_options(const mx_config *c, const char **env, mx_dqn_options *o, mx_error *err);
mx_status mx_dqn_run_open(mx_dqn **out, const mx_config *c, mx_device *dev, const char *run, mx_error *err);

#endif
