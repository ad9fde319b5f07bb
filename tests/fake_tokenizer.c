/* fake_tokenizer.c - models/tokenizer.h with one id per byte, for tests of what
 * stands above it.  256..259 are control tokens; the chat family is ChatML unless
 * the tokenizer was opened without. */
#include "tests/fake_generator.h"
#include "runtime/slab.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct mx_tokenizer {
    bool chat;
};

enum { BOS = 256, EOS = 257, IM_START = 258, IM_END = 259, VOCAB = 260 };
static const char *const names[] = {"<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"};

mx_tokenizer *mx_fake_tokenizer(bool chat)
{
    mx_tokenizer *t = calloc(1, sizeof *t);
    if (t) t->chat = chat;
    return t;
}

void mx_tokenizer_close(mx_tokenizer *t)
{
    free(t);
}

mx_status mx_ids_push(mx_ids *ids, int32_t id)
{
    if (ids->count == ids->room) {
        int32_t room = ids->room ? ids->room * 2 : 64;
        int32_t *p = mx_slab_grow(ids->id, (size_t)room * sizeof *p);
        if (!p) return MX_ERR_NO_MEMORY;
        ids->id = p;
        ids->room = room;
    }
    ids->id[ids->count++] = id;
    return MX_OK;
}

void mx_ids_free(mx_ids *ids)
{
    mx_slab_free(ids->id);
    *ids = (mx_ids){0};
}

mx_status mx_tokenizer_encode(const mx_tokenizer *t, const char *text, size_t len, bool add_special,
                              bool parse_special, mx_ids *out, mx_error *err)
{
    (void)t, (void)err;
    if (add_special) MX_TRY(mx_ids_push(out, BOS));
    for (size_t i = 0; i < len; i++) {
        int id = (unsigned char)text[i];
        for (int k = 0; parse_special && k < 4; k++) {
            size_t n = strlen(names[k]);
            if (len - i < n || memcmp(text + i, names[k], n) != 0) continue;
            id = BOS + k;
            i += n - 1;
            break;
        }
        MX_TRY(mx_ids_push(out, id));
    }
    return MX_OK;
}

const char *mx_tokenizer_piece(const mx_tokenizer *t, int32_t id, size_t *len)
{
    static char bytes[256]; /* each holds its own index; written once by any thread, always the same */
    (void)t;
    if (id >= BOS && id < VOCAB) {
        *len = strlen(names[id - BOS]);
        return names[id - BOS];
    }
    if (id < 0 || id >= VOCAB) return NULL;
    __atomic_store_n(&bytes[id], (char)id, __ATOMIC_RELAXED);
    *len = 1;
    return &bytes[id];
}

mx_status mx_tokenizer_decode(const mx_tokenizer *t, const int32_t *ids, int32_t n, bool skip_special, char **text,
                              size_t *len, mx_error *err)
{
    char *out = malloc((size_t)n * 16 + 1);
    size_t used = 0;
    if (!out) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory");
    for (int32_t i = 0; i < n; i++) {
        size_t size = 0;
        const char *p = mx_tokenizer_piece(t, ids[i], &size);
        if (!p || (skip_special && ids[i] >= BOS)) continue;
        memcpy(out + used, p, size);
        used += size;
    }
    out[used] = 0;
    *text = out;
    *len = used;
    return MX_OK;
}

int32_t mx_tokenizer_vocab(const mx_tokenizer *t)
{
    (void)t;
    return VOCAB;
}

const char *mx_chat_family_name(mx_chat_family f)
{
    static const char *const families[] = {"none", "chatml", "llama2", "llama3"};
    return families[f];
}

static mx_status push_text(const mx_tokenizer *t, const char *text, mx_ids *out, mx_error *err)
{
    return mx_tokenizer_encode(t, text, strlen(text), false, false, out, err);
}

mx_status mx_tokenizer_chat(const mx_tokenizer *t, const mx_chat_message *messages, int n, mx_ids *out, mx_error *err)
{
    if (!t->chat) return mx_fail(err, MX_ERR_STATE, "the model has no chat template");
    for (int i = 0; i < n; i++) {
        const char *r = messages[i].role;
        if (strcmp(r, "system") && strcmp(r, "user") && strcmp(r, "assistant"))
            return mx_fail(err, MX_ERR_ARG, "chat.messages[%d].role: \"%.40s\" is none of system, user, assistant", i,
                           r);
        MX_TRY(mx_ids_push(out, IM_START));
        MX_TRY(push_text(t, r, out, err));
        MX_TRY(push_text(t, "\n", out, err));
        MX_TRY(push_text(t, messages[i].content, out, err));
        MX_TRY(mx_ids_push(out, IM_END));
        MX_TRY(push_text(t, "\n", out, err));
    }
    MX_TRY(mx_ids_push(out, IM_START));
    return push_text(t, "assistant\n", out, err);
}

/* Table 3-7 of the Unicode standard. */
bool mx_utf8_valid(const char *text, size_t len, size_t *bad)
{
    const unsigned char *s = (const unsigned char *)text;
    for (size_t i = 0; i < len;) {
        size_t n = s[i] < 0x80                   ? 1
                   : s[i] >= 0xc2 && s[i] < 0xe0 ? 2
                   : (s[i] & 0xf0) == 0xe0       ? 3
                   : s[i] >= 0xf0 && s[i] < 0xf5 ? 4
                                                 : 0;
        bool ok = n && n <= len - i;
        for (size_t k = 1; ok && k < n; k++) ok = (s[i + k] & 0xc0) == 0x80;
        if (ok && n == 3) ok = !(s[i] == 0xe0 && s[i + 1] < 0xa0) && !(s[i] == 0xed && s[i + 1] >= 0xa0);
        if (ok && n == 4) ok = !(s[i] == 0xf0 && s[i + 1] < 0x90) && !(s[i] == 0xf4 && s[i + 1] >= 0x90);
        if (!ok) {
            if (bad) *bad = i;
            return false;
        }
        i += n;
    }
    return true;
}
