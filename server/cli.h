/* cli.h - the commands of the program; main.c reads the settings and calls one. */
#ifndef MX_CLI_H
#define MX_CLI_H

#include "runtime/config.h"

/* Each returns the exit status; errors go to stderr. */
int mx_cli_serve(mx_config *c, int n, char **rest);
int mx_cli_generate(mx_config *c, int n, char **rest);
int mx_cli_client(mx_config *c, int n, char **rest);
int mx_cli_info(mx_config *c, int n, char **rest);
int mx_cli_train(mx_config *c, int n, char **rest);
int mx_cli_tokenize(mx_config *c, int n, char **rest);
int mx_cli_embed(mx_config *c, int n, char **rest);
int mx_cli_plot(mx_config *c, int n, char **rest);
int mx_cli_load(mx_config *c, int n, char **rest);
int mx_cli_token(mx_config *c, int n, char **rest);
int mx_cli_bench(mx_config *c, int n, char **rest);
int mx_cli_top(mx_config *c, int n, char **rest);
int mx_cli_merge(mx_config *c, int n, char **rest);
int mx_cli_evaluate(mx_config *c, int n, char **rest);
int mx_cli_profile(mx_config *c, int n, char **rest);
int mx_cli_models(mx_config *c, int n, char **rest);

/* ---- help (cli_help.c) ------------------------------------------------------------ */

typedef struct mx_cli_command {
    const char *name;
    uint64_t    bit;                                 /* mx_command                       */
    int       (*run)(mx_config *c, int n, char **rest);
    const char *args, *help;                         /* " PROMPT"; one sentence          */
    const char *more;                                /* lines below the sentence, or NULL */
    const char *examples;                            /* lines "  command\n      what for\n" */
} mx_cli_command;

/* Ended by an entry without a name. */
extern const mx_cli_command mx_cli_commands[];
const mx_cli_command *mx_cli_find(const char *name);         /* NULL: none */
/* The command a person may have meant, or NULL. */
const char *mx_cli_nearest(const char *name);

void mx_cli_help(const mx_config *c, FILE *out);             /* all commands             */
void mx_cli_help_command(const mx_config *c, const mx_cli_command *command, FILE *out);
void mx_cli_help_markdown(const mx_config *c, FILE *out);    /* docs/settings.md         */

#endif
