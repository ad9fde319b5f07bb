/* config_fields.h - fields of a config.json, each with its range.
 *
 * Reading is sticky: after the first wrong field the rest returns fallbacks, and
 * that field, what it holds and what is allowed are in the error.  Included by
 * the readers of models' descriptions only. */
#ifndef MX_CONFIG_FIELDS_H
#define MX_CONFIG_FIELDS_H

#include "kernels/ops.h"

#include <jansson.h>

typedef struct mx_fields {
    const json_t *object;
    const char   *prefix;             /* of the names in errors: "rope_scaling." */
    const char   *file;
    mx_status    *st;                 /* the first failure                       */
    mx_error     *err;
} mx_fields;

#define MX_REFUSE(f, status, ...)                                                                                    \
    do {                                                                                                             \
        if (!*(f)->st) *(f)->st = mx_fail((f)->err, (status), __VA_ARGS__);                                          \
    } while (0)

/* NULL when absent or null, which mean the same to transformers unless said otherwise. */
const json_t *mx_field(const mx_fields *f, const char *name);
/* What stands there, for an error: at most a few words. */
const char   *mx_field_shown(const json_t *v, char *buffer, size_t room);
void          mx_field_refuse(const mx_fields *f, const char *name, const json_t *v, const char *allowed);
double        mx_field_real(const mx_fields *f, const char *name, double fallback, double least, double most);
/* Python's 4096.0 is as good as 4096. */
int32_t       mx_field_int(const mx_fields *f, const char *name, int32_t fallback, int32_t least, int32_t most);
bool          mx_field_bool(const mx_fields *f, const char *name, bool fallback);
const char   *mx_field_text(const mx_fields *f, const char *name, const char *fallback);
/* An activation by transformers' name. */
mx_activation mx_field_activation(const mx_fields *f, const char *name, const char *fallback);

#endif
