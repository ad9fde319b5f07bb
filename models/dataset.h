/* dataset.h - documents to learn from, as token ids.
 *
 * A dataset is read from JSONL, plain text, or shards that were tokenized
 * before (`merx tokenize`): safetensors files with `ids` I32 [n], `begin` I64
 * [documents+1] and, where parts are not to be learned or documents have a
 * class, `learn` U8 [n] and `label` I32 [documents].  Shards are mapped; what is
 * tokenized here is held in memory.
 *
 * JSONL, one object a line, gives one document by its first of these fields:
 *   "text": learned whole;  "prompt" + "completion": only the completion is
 *   learned;  "messages": a chat, only the assistant's words are learned.
 * "label" (an integer) is its class.  A document ends with the tokenizer's
 * end-of-text token where it has one.
 *
 * A dataset is read-only once open: any thread may read it. */
#ifndef MX_DATASET_H
#define MX_DATASET_H

#include "models/tokenizer.h"

typedef struct mx_dataset mx_dataset;

/* Ids of one text; `add` is what becomes of its ends: as tokenizer.h's
 * add_special.  Both families of tokenizers fit behind it. */
typedef struct mx_text_to_ids {
    mx_status (*encode)(const void *tokenizer, const char *text, size_t len, bool special, mx_ids *out, mx_error *err);
    /* NULL: chats are refused */
    mx_status (*chat)(const void *tokenizer, const mx_chat_message *m, int n, mx_ids *out, mx_error *err);
    const void *tokenizer;
    int32_t     vocab;
    int32_t     end;              /* appended to every document; -1: nothing        */
    bool        special;          /* encode each document with its special tokens   */
} mx_text_to_ids;
/* For language models: no BOS, the tokenizer's EOS at a document's end. */
mx_text_to_ids mx_text_for_lm(const mx_tokenizer *t);
/* For encoders: a document between the tokenizer's own first and last token. */
mx_text_to_ids mx_text_for_encoder(const mx_tokenizer *t);

typedef struct mx_dataset_options {
    const char *text_field;       /* of JSONL; NULL: "text"                          */
    bool    lines;                /* .txt: every line is a document                  */
    bool    skip_bad;             /* leave out lines that do not parse, and count them */
    bool    learn_prompts;        /* "prompt" and other roles' words are learned too */
    int32_t classes;              /* > 0: every document needs a label below this    */
    /* Bytes read so far of all; false stops with MX_ERR_CANCELLED.  May be NULL. */
    bool  (*progress)(void *ctx, uint64_t done, uint64_t total);
    void   *ctx;
} mx_dataset_options;

/* Errors: MX_ERR_IO; MX_ERR_FORMAT (file, line or offset, and what is wrong: not
 * JSON, no text, empty, an id outside the vocabulary); MX_ERR_ARG (an ending that
 * is none of .jsonl, .txt, .safetensors; no document at all). */
mx_status mx_dataset_open(mx_dataset **out, const char *const *paths, int n, const mx_text_to_ids *to_ids,
                          const mx_dataset_options *opt, mx_error *err);
void      mx_dataset_close(mx_dataset *d);

typedef struct mx_document {
    const int32_t *ids;
    const uint8_t *learn;         /* 0: this token is not a target; NULL: all are    */
    int64_t        n;
    int32_t        label;         /* -1: none                                        */
} mx_document;
int64_t     mx_dataset_count(const mx_dataset *d);
int64_t     mx_dataset_tokens(const mx_dataset *d);
int64_t     mx_dataset_skipped(const mx_dataset *d);       /* bad lines left out */
mx_document mx_dataset_at(const mx_dataset *d, int64_t i);
/* A fingerprint of all ids, labels and borders: a run that goes on must go on with the same data. */
uint64_t    mx_dataset_hash(const mx_dataset *d);

/* Documents [first, first+n) as one shard.  Errors: those of mx_safetensors_write. */
mx_status   mx_dataset_write(const mx_dataset *d, int64_t first, int64_t n, const char *path, mx_error *err);

#endif
