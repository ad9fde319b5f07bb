/* embed_modules.h - what a sentence-transformers folder says of its modules. */
#ifndef MX_EMBED_MODULES_H
#define MX_EMBED_MODULES_H

#include "models/embed.h"
#include "models/snapshot.h"

typedef struct mx_embed_modules {
    char       folder[MX_PATH];   /* of the transformer                                      */
    mx_pooling pooling;           /* mean when nothing is said                               */
    bool       normalize;
    int32_t    max_len;           /* 0: not said                                             */
} mx_embed_modules;

/* modules.json, N_Pooling/config.json, sentence_bert_config.json; a folder without
 * modules.json is the transformer's own.  Errors: MX_ERR_FORMAT (file, field);
 * MX_ERR_ARG (a module or a pooling that Merx does not have, by name); MX_ERR_IO. */
mx_status mx_embed_modules_read(mx_embed_modules *m, const char *path, mx_error *err);

#endif
