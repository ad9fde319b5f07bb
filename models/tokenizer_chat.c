/* tokenizer_chat.c - conversations as ids, for the families Merx knows by their template's landmarks. */
#include "models/tokenizer_internal.h"

#include <stdio.h>
#include <stdlib.h>

mx_chat_family mx_tokenizer_chat_family(const mx_tokenizer *t)
{
    const char *c = t->chat_template;
    if (!c) return MX_CHAT_NONE;
    if (strstr(c, "<|im_start|>")) return mx_tokenizer_find(t, "<|im_start|>") >= 0 ? MX_CHAT_CHATML : MX_CHAT_NONE;
    if (strstr(c, "<|start_header_id|>")) return mx_tokenizer_find(t, "<|start_header_id|>") >= 0 ? MX_CHAT_LLAMA3 : MX_CHAT_NONE;
    return strstr(c, "[INST]") ? MX_CHAT_LLAMA2 : MX_CHAT_NONE;
}

const char *mx_chat_family_name(mx_chat_family f)
{
    static const char *const names[] = {"none", "chatml", "llama2", "llama3"};
    return (unsigned)f < sizeof names / sizeof *names ? names[f] : "?";
}

static mx_status special(const mx_tokenizer *t, const char *token, mx_ids *out, mx_error *err)
{
    int32_t id = mx_tokenizer_find(t, token);
    if (id < 0) return mx_fail(err, MX_ERR_STATE, "the chat template uses %s, which the vocabulary lacks", token);
    return mx_ids_push(out, id) ? mx_fail(err, MX_ERR_NO_MEMORY, "ids") : MX_OK;
}

/* a, b and c are one text to the split pattern, as in the rendered template; special tokens in it are plain text. */
static mx_status joined(const mx_tokenizer *t, const char *a, const char *b, const char *c, size_t n_c, mx_ids *out, mx_error *err)
{
    size_t n_a = strlen(a), n_b = strlen(b), len;
    if (!mx_add_size(n_a + n_b, n_c, &len) || !mx_add_size(len, 1, &len)) return mx_fail(err, MX_ERR_ARG, "message too long");
    char *text = malloc(len);
    if (!text) return mx_fail(err, MX_ERR_NO_MEMORY, "a message of %zu bytes", len);
    memcpy(text, a, n_a);
    memcpy(text + n_a, b, n_b);
    if (n_c) memcpy(text + n_a + n_b, c, n_c);
    mx_status st = mx_tokenizer_encode(t, text, len - 1, false, false, out, err);
    free(text);
    return st;
}

/* The system message that a ChatML template brings when the conversation has none: the text between its
 * "<|im_start|>system" and the next "<|im_end|>", when that is a literal. */
static const char *default_system(const mx_tokenizer *t, size_t *len)
{
    const char *mark = "<|im_start|>system", *at = strstr(t->chat_template, mark);
    if (!at) return NULL;
    at += strlen(mark);
    at += *at == '\n' ? 1 : !strncmp(at, "\\n", 2) ? 2 : 0;
    const char *end = strstr(at, "<|im_end|>");
    if (!end || memchr(at, '\'', (size_t)(end - at)) || memchr(at, '{', (size_t)(end - at))) return NULL;
    *len = (size_t)(end - at);
    return at;
}

static mx_status chatml_turn(const mx_tokenizer *t, const char *role, const char *content, size_t len, mx_ids *out, mx_error *err)
{
    MX_TRY(special(t, "<|im_start|>", out, err));
    MX_TRY(joined(t, role, "\n", content, len, out, err));
    MX_TRY(special(t, "<|im_end|>", out, err));
    return joined(t, "\n", "", "", 0, out, err);
}

static mx_status chatml(const mx_tokenizer *t, const mx_chat_message *m, int n, mx_ids *out, mx_error *err)
{
    size_t len;
    const char *system = strcmp(m[0].role, "system") ? default_system(t, &len) : NULL;
    if (system) MX_TRY(chatml_turn(t, "system", system, len, out, err));
    for (int i = 0; i < n; i++) MX_TRY(chatml_turn(t, m[i].role, m[i].content, strlen(m[i].content), out, err));
    MX_TRY(special(t, "<|im_start|>", out, err));
    return joined(t, "assistant\n", "", "", 0, out, err);
}

static mx_status llama3_header(const mx_tokenizer *t, const char *role, mx_ids *out, mx_error *err)
{
    MX_TRY(special(t, "<|start_header_id|>", out, err));
    MX_TRY(joined(t, role, "", "", 0, out, err));
    return special(t, "<|end_header_id|>", out, err);
}

static mx_status llama3(const mx_tokenizer *t, const mx_chat_message *m, int n, mx_ids *out, mx_error *err)
{
    if (strstr(t->chat_template, "Cutting Knowledge Date"))
        return mx_fail(err, MX_ERR_STATE, "this Llama 3 template writes dates into the system message, which Merx does not; use a plain prompt");
    MX_TRY(special(t, "<|begin_of_text|>", out, err));
    for (int i = 0; i < n; i++) {
        const char *c = m[i].content;                     /* the template trims */
        size_t len = strlen(c);
        while (len && strchr(" \t\r\n", c[len - 1])) len--;
        while (len && strchr(" \t\r\n", *c)) c++, len--;
        MX_TRY(llama3_header(t, m[i].role, out, err));
        MX_TRY(joined(t, "\n\n", "", c, len, out, err));
        MX_TRY(special(t, "<|eot_id|>", out, err));
    }
    MX_TRY(llama3_header(t, "assistant", out, err));
    return joined(t, "\n\n", "", "", 0, out, err);
}

mx_status mx_tokenizer_chat(const mx_tokenizer *t, const mx_chat_message *m, int n, mx_ids *out, mx_error *err)
{
    if (n < 1) return mx_fail(err, MX_ERR_ARG, "chat.messages is empty");
    for (int i = 0; i < n; i++) {
        const char *r = m[i].role;
        if (strcmp(r, "system") && strcmp(r, "user") && strcmp(r, "assistant"))
            return mx_fail(err, MX_ERR_ARG, "chat.messages[%d].role is \"%.40s\"; it must be system, user or assistant", i, r);
    }
    switch (mx_tokenizer_chat_family(t)) {
    case MX_CHAT_CHATML: return chatml(t, m, n, out, err);
    case MX_CHAT_LLAMA3: return llama3(t, m, n, out, err);
    default: return mx_fail(err, MX_ERR_STATE, "this model has no chat template that Merx knows; use a plain prompt");
    }
}
