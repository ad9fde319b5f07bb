/* tokenizer.h - text to ids and back, exactly as the model's authors do it.
 *
 * Three families: BERT's WordPiece, byte-level BPE (GPT-2, Llama 3, Qwen2, SmolLM2: split patterns
 * run by PCRE2 with Unicode) and SentencePiece-style BPE with byte fallback
 * (Llama 2, Mistral, TinyLlama).  Read from tokenizer.json, from vocab.json +
 * merges.txt, from BERT's vocab.txt, or from GGUF metadata.  A tokenizer is read-only once open and
 * may be used from many threads at once; each call brings its own buffer.
 *
 * ANY bytes may be encoded: invalid UTF-8 becomes byte tokens and comes back as
 * it was.  decode(encode(x)) == x for every byte string (byte-level BPE without
 * normaliser, special tokens not parsed). */
#ifndef MX_TOKENIZER_H
#define MX_TOKENIZER_H

#include "models/checkpoint.h"

typedef struct mx_tokenizer mx_tokenizer;

typedef struct mx_ids {               /* caller-owned; zero it, free with mx_ids_free */
    int32_t *id;
    int32_t  count, room;
} mx_ids;
mx_status mx_ids_push(mx_ids *ids, int32_t id);          /* MX_ERR_NO_MEMORY */
void      mx_ids_free(mx_ids *ids);

/* folder: tokenizer.json if there, else vocab.json + merges.txt, else vocab.txt; with
 * tokenizer_config.json for the chat template and add_bos/add_eos.
 * Errors: MX_ERR_IO, MX_ERR_FORMAT (file, field), MX_ERR_ARG (a tokenizer type
 * that Merx does not have, by name). */
mx_status mx_tokenizer_open_folder(mx_tokenizer **out, const char *folder, mx_error *err);
mx_status mx_tokenizer_open_gguf(mx_tokenizer **out, const mx_checkpoint *gguf, mx_error *err);
void      mx_tokenizer_close(mx_tokenizer *t);

/* Append the ids of text[len].  add_special: BOS/EOS as the model's tokenizer
 * would; parse_special: "<|im_end|>" in the text becomes its id (else it is
 * plain text, so a user cannot forge a turn).  Errors: MX_ERR_NO_MEMORY,
 * MX_ERR_ARG (over 2^31-1 bytes; a piece the vocabulary has no id for). */
mx_status mx_tokenizer_encode(const mx_tokenizer *t, const char *text, size_t len, bool add_special,
                              bool parse_special, mx_ids *out, mx_error *err);

/* WordPiece: where the words of a text stand in it, malloc'ed, in order, with the number of ids that encode() has for each (no
 * special tokens).  *n is 0 for other tokenizers and for what is not UTF-8.  Errors: MX_ERR_NO_MEMORY. */
typedef struct mx_word_at { size_t begin, end; int32_t ids; } mx_word_at;
mx_status mx_tokenizer_words(const mx_tokenizer *t, const char *text, size_t len, mx_word_at **out, int32_t *n, mx_error *err);

/* The text of ids as malloc'ed bytes (NUL after the end); ids outside the
 * vocabulary are skipped.  skip_special leaves control tokens out. */
mx_status mx_tokenizer_decode(const mx_tokenizer *t, const int32_t *ids, int32_t n, bool skip_special,
                              char **text, size_t *len, mx_error *err);

/* Streaming: bytes in token order, held back while they end in half a
 * character; invalid bytes come out as U+FFFD so that what is emitted is always
 * whole, valid UTF-8.  push returns the new text (owned by the stream, until
 * the next call); finish returns what was held back. */
typedef struct mx_detokenizer {
    const mx_tokenizer *tokenizer;
    bool     skip_special, started;
    char     held[8];                 /* an unfinished character */
    int      n_held;
    char    *text;                    /* reused                  */
    size_t   room;
} mx_detokenizer;
void        mx_detokenizer_open(mx_detokenizer *d, const mx_tokenizer *t, bool skip_special);
void        mx_detokenizer_close(mx_detokenizer *d);
const char *mx_detokenizer_push(mx_detokenizer *d, int32_t id, size_t *len);   /* NULL: out of memory */
const char *mx_detokenizer_finish(mx_detokenizer *d, size_t *len);

int32_t     mx_tokenizer_vocab(const mx_tokenizer *t);                     /* ids are 0..vocab-1 (holes allowed) */
const char *mx_tokenizer_piece(const mx_tokenizer *t, int32_t id, size_t *len);   /* raw bytes it stands for; NULL: a hole */
int32_t     mx_tokenizer_find(const mx_tokenizer *t, const char *token);   /* as written in the vocabulary or added tokens; -1 */
bool        mx_tokenizer_is_special(const mx_tokenizer *t, int32_t id);
int32_t     mx_tokenizer_bos(const mx_tokenizer *t);                       /* -1: none */
int32_t     mx_tokenizer_eos(const mx_tokenizer *t);

/* ---- chat ------------------------------------------------------------------- */

typedef enum mx_chat_family { MX_CHAT_NONE, MX_CHAT_CHATML, MX_CHAT_LLAMA2, MX_CHAT_LLAMA3 } mx_chat_family;
typedef struct mx_chat_message { const char *role, *content; } mx_chat_message;   /* role: system, user, assistant */

mx_chat_family mx_tokenizer_chat_family(const mx_tokenizer *t);   /* recognised from the model's own template */
const char    *mx_chat_family_name(mx_chat_family f);
/* Ids of a conversation, ready for the assistant's answer, equal to
 * apply_chat_template(..., add_generation_prompt=True): the template's own
 * default system message included.  Special tokens inside contents are NOT
 * parsed.  Errors: MX_ERR_STATE (the model has no chat template), MX_ERR_ARG
 * (empty conversation, unknown role, order that the template refuses). */
mx_status mx_tokenizer_chat(const mx_tokenizer *t, const mx_chat_message *messages, int n, mx_ids *out, mx_error *err);

/* True when text[len] is valid UTF-8; else *bad (may be NULL) is the first bad byte's offset. */
bool mx_utf8_valid(const char *text, size_t len, size_t *bad);

#endif
