/* tokenizer_internal.h - the parts that models/tokenizer*.c share.
 *
 * Nobody else includes this, but for the tokenizer's tests and fuzz targets,
 * which need the entries that parse from memory.  A text passes, in this order:
 * added tokens (a trie), normalisers, split stages (PCRE2), BPE merges, and the
 * post-processor's BOS and EOS: the pipeline of Hugging Face's `tokenizers`,
 * whose ids are the standard that ours are compared with. */
#ifndef MX_TOKENIZER_INTERNAL_H
#define MX_TOKENIZER_INTERNAL_H

#include "models/tokenizer.h"

#include <stdio.h>

#define MX_TOKENIZER_MOST_IDS   (1 << 22)      /* a larger id in a file is a lie, not a vocabulary */
#define MX_TOKENIZER_MOST_BYTES (512u << 20)   /* of one tokenizer file                            */
#define MX_TOKENIZER_MOST_SPLITS 16
#define MX_TOKENIZER_MOST_NORMS  8
#define MX_TOKENIZER_MOST_NEST   8             /* Sequence in Sequence                             */
#define MX_TOKENIZER_MOST_EXTRA  8             /* ids that a post-processor puts before or after   */

/* ---- vocabulary: strings to ids and back ------------------------------------ */

enum { MX_TOKEN_HOLE = 0, MX_TOKEN_USED = 1, MX_TOKEN_ADDED = 2, MX_TOKEN_SPECIAL = 4 };

typedef struct mx_token {
    uint32_t written, n_written;   /* as the file writes it ("Ġthe"), offset into bytes */
    uint32_t raw, n_raw;           /* the bytes it stands for (" the")                  */
    uint32_t flags;
} mx_token;

typedef struct mx_vocab {
    char     *bytes;               /* all strings, each with a NUL after it */
    size_t    n_bytes, room_bytes;
    mx_token *token;               /* by id                                 */
    int32_t   n_tokens, room_tokens, most_ids;
    int32_t  *slot;                /* by hash of the written form; -1 empty */
    uint32_t  n_slots, n_used;
} mx_vocab;

void      mx_vocab_free(mx_vocab *v);
/* Make room for so many tokens and set the largest id that a file of that many may have (holes are fine, but
 * ten tokens do not need a table of millions).  MX_ERR_NO_MEMORY. */
mx_status mx_vocab_reserve(mx_vocab *v, size_t tokens, size_t bytes);
/* Add a token; what names file and field in errors.  MX_ERR_FORMAT: an id out of
 * range or taken by another string; a string that has another id. */
mx_status mx_vocab_add(mx_vocab *v, int64_t id, const char *s, size_t n, const char *what, mx_error *err);
int32_t   mx_vocab_find(const mx_vocab *v, const char *s, size_t n);      /* -1: none */
mx_status mx_vocab_set_raw(mx_vocab *v, int32_t id, const char *s, size_t n);

/* ---- UTF-8 ------------------------------------------------------------------- */

/* The character at s[n], n > 0: its length 1..4 and *cp; or, when the bytes are
 * not one, minus the length of the longest beginning of a character there (at
 * least 1), and *cut tells that the text ended inside it. */
int  mx_utf8_next(const char *s, size_t n, uint32_t *cp, bool *cut);
int  mx_utf8_put(char *out, uint32_t cp);                /* 1..4 bytes; cp must be a character */
bool mx_is_space(uint32_t cp);                           /* Unicode White_Space                */

/* ---- added tokens: leftmost, longest match ------------------------------------ */

typedef struct mx_added {
    int32_t id;
    bool    special, lstrip, rstrip, single_word, normalized;
} mx_added;

typedef struct mx_trie_node { int32_t child, sibling, added; uint8_t byte; } mx_trie_node;
typedef struct mx_trie {
    mx_trie_node *node;            /* node 0 is the root */
    int32_t       n, room;
    bool          first[256];
} mx_trie;

mx_status mx_trie_add(mx_trie *t, const char *s, size_t n, int32_t added);
void      mx_trie_free(mx_trie *t);

/* ---- BPE ---------------------------------------------------------------------- */

typedef struct mx_pair { uint32_t left, right, rank, id; } mx_pair;       /* id UINT32_MAX: empty slot */
typedef struct mx_merges {
    mx_pair  *slot;
    uint32_t  n_slots, n_used;
    int       shift;
} mx_merges;

mx_status mx_merges_reserve(mx_merges *m, size_t count);
void      mx_merges_put(mx_merges *m, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
void      mx_merges_free(mx_merges *m);
/* Add the merge left+right; MX_ERR_FORMAT when a part or the product is unknown or empty. */
mx_status mx_merges_add(mx_tokenizer *t, const char *left, size_t n_left, const char *right, size_t n_right,
                        uint32_t rank, const char *what, mx_error *err);

typedef struct mx_heap_entry { uint32_t rank, at, left, right, id; } mx_heap_entry;
typedef struct mx_bpe_scratch {    /* one per call */
    uint32_t      *id;
    int32_t       *prev, *next;
    mx_heap_entry *heap;
    size_t         room;           /* symbols */
    size_t         n_heap, room_heap;
} mx_bpe_scratch;

void      mx_bpe_scratch_free(mx_bpe_scratch *s);
/* Merge s->id[0..n) in place as the table says; *n_out symbols are left. */
mx_status mx_bpe_reserve(mx_bpe_scratch *s, size_t n);
mx_status mx_bpe_merge(const mx_merges *m, mx_bpe_scratch *s, size_t n, size_t *n_out);

/* ---- stages ------------------------------------------------------------------- */

typedef enum mx_split_kind {
    MX_SPLIT_PATTERN,              /* a regular expression or a literal  */
    MX_SPLIT_PREFIX_SPACE,         /* ByteLevel's add_prefix_space       */
    MX_SPLIT_METASPACE,            /* spaces to U+2581, one put in front */
    MX_SPLIT_BERT                  /* at white space; punctuation alone   */
} mx_split_kind;
typedef enum mx_split_how { MX_ISOLATED, MX_REMOVED, MX_MERGED_PREVIOUS, MX_MERGED_NEXT, MX_CONTIGUOUS } mx_split_how;
typedef enum mx_prepend { MX_PREPEND_NEVER, MX_PREPEND_FIRST, MX_PREPEND_ALWAYS } mx_prepend;

typedef struct mx_split {
    mx_split_kind kind;
    mx_split_how  how;
    bool          invert, jit;
    mx_prepend    prepend;         /* METASPACE                          */
    char          space[5];        /* METASPACE: what stands for a space */
    void         *code;            /* pcre2_code                         */
} mx_split;

typedef enum mx_norm_kind {
    MX_NORM_NFC, MX_NORM_NFD, MX_NORM_NFKC, MX_NORM_NFKD, MX_NORM_PREPEND, MX_NORM_REPLACE, MX_NORM_STRIP,
    MX_NORM_BERT
} mx_norm_kind;
typedef struct mx_normalizer {
    mx_norm_kind kind;
    char        *from, *to;        /* REPLACE; PREPEND: to */
    size_t       n_from, n_to;
    bool         left, right;      /* STRIP                */
    bool         clean, cjk, accents, lowercase;   /* BERT; accents: they are stripped */
} mx_normalizer;

/* literal: pattern is plain text.  MX_ERR_FORMAT: it does not compile; MX_ERR_ARG: it uses what PCRE2 reads
 * otherwise than Oniguruma does. */
mx_status mx_split_add_pattern(mx_tokenizer *t, const char *pattern, size_t n, bool literal, mx_split_how how,
                               bool invert, const char *what, mx_error *err);
mx_status mx_split_add(mx_tokenizer *t, const mx_split *s, const char *what, mx_error *err);
void      mx_split_free_limits(mx_tokenizer *t);
void      mx_split_free(mx_split *s);
/* The patterns known by a short name ("gpt-2", "llama-bpe", "qwen2", "smollm" ...), as GGUF files
 * name them.  MX_ERR_ARG: no such name. */
mx_status mx_split_preset(mx_tokenizer *t, const char *name, size_t n, const char *what, mx_error *err);

/* Normalise text[n] (valid UTF-8) into malloc'ed *out, or leave *out NULL when nothing changes.
 * first: the text begins a stretch between added tokens, so PREPEND applies. */
mx_status mx_normalize(const mx_normalizer *norms, int n_norms, bool first, const char *text, size_t n, char **out,
                       size_t *n_out);
void      mx_normalizer_free(mx_normalizer *n);

/* Cut text[n] (valid UTF-8) by a PATTERN stage and give each piece to emit. */
typedef struct mx_split_run mx_split_run;
struct mx_split_run {
    void       *match;             /* pcre2_match_data, made by mx_split_run_open */
    mx_status (*emit)(mx_split_run *r, int stage, const char *piece, size_t n, bool at_start);
    void       *ctx;
    mx_error   *err;
};
mx_status mx_split_run_open(mx_split_run *r);
void      mx_split_run_close(mx_split_run *r);
mx_status mx_split_pattern(const mx_tokenizer *t, mx_split_run *r, int stage, const char *text, size_t n,
                           bool at_start);

/* ---- BERT ---------------------------------------------------------------------- */

#define MX_WORDPIECE_MOST_CHARS  1000
#define MX_WORDPIECE_MOST_PREFIX 16

typedef struct mx_wordpiece {
    bool    on;                    /* pieces are found, not merged       */
    int32_t most_chars;            /* longer words are unknown           */
    char    prefix[MX_WORDPIECE_MOST_PREFIX];   /* of pieces inside a word: "##" */
} mx_wordpiece;

/* What utf8proc_map() made, as a slab's block; NULL: out of memory. */
char *mx_text_of_utf8proc(unsigned char *p, size_t n);
mx_status mx_bert_normalize(const mx_normalizer *r, const char *text, size_t n, char **out, size_t *n_out);
mx_status mx_bert_words(mx_split_run *r, int stage, const char *text, size_t n, bool at_start);
/* Append the pieces of a word, or the unknown token.  MX_ERR_NO_MEMORY. */
mx_status mx_wordpiece_word(const mx_tokenizer *t, const char *s, size_t n, mx_ids *out);

/* ---- the tokenizer ------------------------------------------------------------ */

struct mx_tokenizer {
    mx_vocab  vocab;
    mx_merges merges;
    mx_wordpiece wordpiece;
    bool      byte_level;          /* else characters with byte fallback            */
    bool      ignore_merges;       /* a whole word that is a token stays one        */
    bool      byte_fallback, fuse_unknown, strip_first_space;
    int32_t   byte_id[256];        /* byte-level: its symbol; else the <0xXX> token */
    int32_t   ascii_id[128];       /* not byte-level: the symbol of a character     */
    int32_t   unknown, bos, eos;   /* -1: none                                      */
    uint32_t  longest;             /* written bytes of the longest token            */
    mx_normalizer   norm[MX_TOKENIZER_MOST_NORMS];
    int       n_norms;
    mx_split  split[MX_TOKENIZER_MOST_SPLITS];
    int       n_splits;
    void     *match_limits;        /* pcre2_match_context, read by every call       */
    mx_added *added;
    int32_t   n_added, room_added;
    mx_trie   trie, trie_normalized;
    int32_t   before[MX_TOKENIZER_MOST_EXTRA], after[MX_TOKENIZER_MOST_EXTRA];
    int       n_before, n_after;
    mx_chat_family chat;
    char     *template_text;       /* the model's Jinja template, NULL: none        */
    char     *chat_system;         /* the template's default system message or NULL */
    char     *chat_date;           /* Llama 3: the date it prints; "" is today      */
    bool      chat_bos, chat_trim, chat_system_always;
    char     *chat_system_head;    /* Llama 3.1: lines before the system message    */
};

mx_tokenizer *mx_tokenizer_new(void);                      /* NULL: out of memory */
mx_status mx_tokenizer_add_added(mx_tokenizer *t, const mx_added *a, const char *s, size_t n, const char *what,
                                 mx_error *err);
/* When vocabulary, merges, stages and added tokens are in: raw bytes, symbols, tries. */
mx_status mx_tokenizer_seal(mx_tokenizer *t, const char *what, mx_error *err);
void      mx_tokenizer_set_bos_eos(mx_tokenizer *t, const bool *add_bos, const bool *add_eos);   /* NULL: as it is */
/* Keep the template and recognise its family; any text is fine. */
mx_status mx_tokenizer_set_template(mx_tokenizer *t, const char *text, size_t n);

/* From memory; config (tokenizer_config.json) and jinja may be NULL; name is for errors. */
typedef struct mx_tokenizer_files {
    const char *name;                                      /* the folder */
    const char *json, *vocab, *merges, *config, *jinja, *pieces;   /* pieces: BERT's vocab.txt */
    size_t      n_json, n_vocab, n_merges, n_config, n_jinja, n_pieces;
} mx_tokenizer_files;
mx_status mx_tokenizer_parse(mx_tokenizer **out, const mx_tokenizer_files *f, mx_error *err);

/* Encode one stretch without BOS/EOS; at_start: it begins the text. */
mx_status mx_tokenizer_encode_part(const mx_tokenizer *t, const char *text, size_t len, bool at_start,
                                   bool parse_special, mx_ids *out, mx_error *err);

/* GPT-2's byte alphabet (Radford et al. 2019, encoder.py bytes_to_unicode): the character a byte is written as. */
uint32_t mx_byte_char(uint8_t byte);
int      mx_char_byte(uint32_t cp);                        /* -1: not in the alphabet */

#endif
