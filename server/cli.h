/* cli.h - the commands of the program; main.c reads the settings and calls one. */
#ifndef MX_CLI_H
#define MX_CLI_H

#include "runtime/config.h"

/* Each returns the exit status; errors go to stderr. */
int mx_cli_serve(mx_config *c, int n, char **rest);
int mx_cli_generate(mx_config *c, int n, char **rest);
int mx_cli_client(mx_config *c, int n, char **rest);
int mx_cli_info(mx_config *c, int n, char **rest);

#endif
