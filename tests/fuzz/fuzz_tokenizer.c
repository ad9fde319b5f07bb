/* fuzz_tokenizer.c - arbitrary bytes as a tokenizer's files, and texts through what opens.
 * The first byte says which: tokenizer.json (even), or vocab.json and merges.txt (odd);
 * a 0xff parts the first file from the second, and that from the text. */
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Up to the next 0xff; moves on behind it. */
static const char *part(const uint8_t **data, size_t *size, size_t *n)
{
    const uint8_t *start = *data, *end = memchr(start, 0xff, *size);
    *n = end ? (size_t)(end - start) : *size;
    *data += *n + (end != NULL);
    *size -= *n + (end != NULL);
    return (const char *)start;
}

static void round_trip(const mx_tokenizer *t, const char *text, size_t len)
{
    mx_error err = {.text = ""};
    mx_ids ids = {0};
    mx_detokenizer d;
    char *back = NULL;
    size_t n;
    for (int special = 0; special < 2; special++) {
        ids.count = 0;
        if (mx_tokenizer_encode(t, text, len, special, special, &ids, &err)) {
            if (!err.text[0]) abort(); /* an error without a word */
            continue;
        }
        for (int32_t i = 0; i < ids.count; i++)
            if (ids.id[i] < 0 || ids.id[i] >= mx_tokenizer_vocab(t)) abort();
        if (!mx_tokenizer_decode(t, ids.id, ids.count, special, &back, &n, &err)) free(back);
        back = NULL;
        mx_detokenizer_open(&d, t, special);
        for (int32_t i = 0; i < ids.count; i++) {
            const char *piece = mx_detokenizer_push(&d, ids.id[i], &n);
            if (piece && !mx_utf8_valid(piece, n, NULL)) abort();
        }
        mx_detokenizer_finish(&d, &n);
        mx_detokenizer_close(&d);
    }
    mx_ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!size) return 0;
    bool json = data[0] % 2 == 0;
    data++, size--;
    mx_tokenizer_files f = {.name = "fuzzed"};
    mx_tokenizer *t = NULL;
    mx_error err = {.text = ""};
    size_t len;
    if (json) {
        f.json = part(&data, &size, &f.n_json);
        f.config = part(&data, &size, &f.n_config);
        if (!f.n_config) f.config = NULL;
    } else {
        f.vocab = part(&data, &size, &f.n_vocab);
        f.merges = part(&data, &size, &f.n_merges);
    }
    const char *text = part(&data, &size, &len);
    mx_status st = mx_tokenizer_parse(&t, &f, &err);
    if (st && !err.text[0]) abort();
    if (!st) {
        static const char plain[] = "It's 123  \xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x8d\x95 e\xcc\x81\n\n<|im_end|>\x80\xff";
        round_trip(t, text, len);
        round_trip(t, plain, sizeof plain - 1);
        mx_chat_message m[] = {{"system", "a"}, {"user", "b"}};
        mx_ids ids = {0};
        mx_tokenizer_chat(t, m, 2, &ids, &err);
        mx_ids_free(&ids);
    }
    mx_tokenizer_close(t);
    return 0;
}
