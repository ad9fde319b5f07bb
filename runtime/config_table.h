/* config_table.h - what config.c and config_help.c share; nobody else's. */
#ifndef MX_CONFIG_TABLE_H
#define MX_CONFIG_TABLE_H

#include "runtime/config.h"

typedef struct mx_config_value mx_config_value;

struct mx_config {
    const mx_setting *table;
    int               n;
    mx_config_value  *values;      /* n entries, in the table's order */
};

#define MX_CONFIG_ENV_SIZE 128     /* of "MERX_" and the longest name */

/* "max-num-seqs" -> "MERX_MAX_NUM_SEQS" */
void mx_config_env_name(char out[MX_CONFIG_ENV_SIZE], const char *name);

/* Names of one letter more or less, two letters swapped and the like are near
 * (Damerau 1964, restricted edit distance). */
int  mx_edit_distance(const char *a, const char *b);

/* Whether INT or FLOAT has limits, and these as text. */
static inline bool mx_setting_limited(const mx_setting *s)
{
    return (s->type == MX_SET_INT || s->type == MX_SET_FLOAT) && s->least < s->most;
}

#endif
