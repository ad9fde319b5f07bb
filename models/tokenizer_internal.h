/* tokenizer_internal.h - inside of the tokenizer: tokenizer.c (encode, decode),
 * tokenizer_load.c (files), tokenizer_chat.c.  Nobody else includes this. */
#ifndef MX_TOKENIZER_INTERNAL_H
#define MX_TOKENIZER_INTERNAL_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "models/tokenizer.h"

#define TOK_MAX_STAGES 8

typedef struct tok_piece { char *bytes; uint32_t len; bool special, present; } tok_piece;
typedef struct tok_merge { int32_t left, right, rank, id; } tok_merge;       /* left -1: empty */
typedef struct tok_added { char *text; size_t len; int32_t id; bool special; } tok_added;

struct mx_tokenizer {
    tok_piece  *piece;               /* [vocab], raw bytes                             */
    int32_t     vocab;
    int32_t    *by_bytes;            /* open addressing over piece, -1 empty           */
    uint32_t    by_bytes_size;
    tok_merge  *merge;               /* open addressing over (left,right)              */
    uint32_t    merge_size;
    int32_t     byte_id[256];        /* -1: the vocabulary lacks this byte             */
    tok_added  *added;               /* longest first, so the first match is the longest */
    int32_t     n_added, added_room;
    bool        added_first[256];    /* some added token begins with this byte         */
    pcre2_code *stage[TOK_MAX_STAGES];   /* each splits what the one before left       */
    int         n_stages;
    bool        ignore_merges, prefix_space;
    bool        add_bos, add_eos;
    int32_t     bos, eos;
    char       *chat_template;
};

extern const char *const tok_gpt2_pattern, *const tok_llama3_pattern, *const tok_qwen2_pattern;

mx_status tok_new(mx_tokenizer **out, int32_t vocab, mx_error *err);
/* text as the vocabulary spells it (GPT-2's byte alphabet), or raw; file for errors */
mx_status tok_set(mx_tokenizer *t, int32_t id, const char *text, size_t len, bool raw, const char *file, mx_error *err);
mx_status tok_add_added(mx_tokenizer *t, int32_t id, const char *text, size_t len, bool special, mx_error *err);
mx_status tok_index(mx_tokenizer *t, mx_error *err);                       /* after the last tok_set */
mx_status tok_merges_room(mx_tokenizer *t, int64_t n, mx_error *err);
mx_status tok_add_merge(mx_tokenizer *t, int32_t rank, const char *left, size_t n_left, const char *right, size_t n_right,
                        const char *file, mx_error *err);
mx_status tok_add_stage(mx_tokenizer *t, const char *pattern, size_t len, const char *file, mx_error *err);
int32_t   tok_find_bytes(const mx_tokenizer *t, const char *bytes, size_t len);
void      tok_sort_added(mx_tokenizer *t);

#endif
