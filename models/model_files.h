/* model_files.h - what stands beside the weights of a Hugging Face folder.
 *
 * A network that was trained is saved as a folder like the one it came from:
 * its config and its tokenizer's files are carried over. */
#ifndef MX_MODEL_FILES_H
#define MX_MODEL_FILES_H

#include "runtime/status.h"

#include <jansson.h>

/* o is taken (NULL: out of memory), written as folder/name.  Errors: MX_ERR_IO, MX_ERR_NO_MEMORY. */
mx_status mx_model_write_json(json_t *o, const char *folder, const char *name, mx_error *err);
/* config.json as it came, but for the dtype of the weights, which is float32,
 * and the fields of `set` (stays the caller's; may be NULL). */
mx_status mx_model_copy_config(const char *from, const char *to, json_t *set, mx_error *err);
mx_status mx_model_copy_tokenizer(const char *from, const char *to, mx_error *err);

#endif
