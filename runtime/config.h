/* config.h - every setting of the program, in one table.
 *
 * A setting has one name ("max-num-seqs").  From it come the flag
 * (--max-num-seqs 64 or --max-num-seqs=64), the environment variable
 * (MERX_MAX_NUM_SEQS), the line in a configuration file (max-num-seqs = 64),
 * the line in --help and the page docs/settings.md.  Later wins: default, file,
 * environment, flag; that holds in whatever order they are read, so the flags
 * may be read first to learn the file.  The table itself is server/settings.c. */
#ifndef MX_CONFIG_H
#define MX_CONFIG_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef enum mx_setting_type {
    MX_SET_BOOL,        /* --flag, --no-flag, --flag=true|false             */
    MX_SET_INT,         /* with optional k/m/g suffix (1024-based)          */
    MX_SET_FLOAT,
    MX_SET_STRING,
    MX_SET_LIST,        /* repeatable string; commas part it in environment */
    MX_SET_CHOICE       /* one of `choices`, separated by |                 */
} mx_setting_type;

typedef struct mx_setting {
    const char     *name;
    char            letter;        /* -m, or 0                                */
    mx_setting_type type;
    const char     *fallback;      /* default as text; NULL: unset            */
    double          least, most;   /* INT and FLOAT, both inclusive; equal: no limits */
    const char     *choices;       /* CHOICE: "auto|f32|bf16"                 */
    uint64_t        commands;      /* bit set of commands it belongs to; bits that are none are the table's own */
    const char     *metavar;       /* "PATH", "N"                             */
    const char     *help;          /* one sentence                            */
} mx_setting;

typedef struct mx_config mx_config;

/* The table outlives the config.  Errors name the setting, the value, the
 * limit and where it was given (flag, environment, file:line): MX_ERR_ARG for
 * values and names, MX_ERR_FORMAT for a line that is not "name = value",
 * MX_ERR_IO, MX_ERR_NO_MEMORY.  After an error the config is still valid. */
mx_status mx_config_open(mx_config **out, const mx_setting *table, int n, mx_error *err);
void      mx_config_close(mx_config *c);
/* Lines are "name = value"; # begins a comment at the start of a line or after
 * a blank; a value may stand in "..." (\" and \\ inside) or '...'.  Lists take
 * one line for each item. */
mx_status mx_config_file(mx_config *c, const char *path, mx_error *err);
/* The same from memory; `origin` stands for the file name in errors. */
mx_status mx_config_text(mx_config *c, const char *text, size_t len, const char *origin, mx_error *err);
/* Reads the variables of `command`'s settings.  An empty one is as good as
 * none; a MERX_ name that is no setting is logged, not an error. */
mx_status mx_config_environment(mx_config *c, uint64_t command, mx_error *err);
/* Reads flags of `command` from argv[0..argc), which begins behind the names of
 * program and command: --name value, --name=value, -n value, -nvalue.  What is
 * not a flag is left in rest[0..*n_rest) (pointers into argv, at most argc).
 * "--" ends the flags.  A misspelt flag's error offers the nearest name. */
mx_status mx_config_flags(mx_config *c, uint64_t command, int argc, char **argv, char **rest, int *n_rest,
                          mx_error *err);
/* As strong as a flag; `where` is what errors and mx_config_where() say. */
mx_status mx_config_set(mx_config *c, const char *name, const char *value, const char *where, mx_error *err);

/* Asking for a name or type that is not in the table is a programming error:
 * the neutral value is returned and a line logged. */
bool        mx_config_bool(const mx_config *c, const char *name);
int64_t     mx_config_int(const mx_config *c, const char *name);
double      mx_config_float(const mx_config *c, const char *name);
const char *mx_config_string(const mx_config *c, const char *name);      /* STRING, CHOICE; NULL when unset */
int         mx_config_list(const mx_config *c, const char *name, const char *const **items);
bool        mx_config_given(const mx_config *c, const char *name);       /* set by file, env or flag */
const char *mx_config_where(const mx_config *c, const char *name);       /* "default", "--flag", "MERX_X", "file:3" */

/* The flags' part of --help: the settings that have one of the bits `command`
 * and, unless it is 0, one of the bits `group` of their `commands`. */
void mx_config_help(const mx_config *c, uint64_t command, uint64_t group, FILE *out, int width);
void mx_config_markdown(const mx_config *c, const char *const *command_names, FILE *out);  /* docs/settings.md */

#endif
