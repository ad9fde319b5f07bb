/* tokenizer_chat.c - conversations in the form that a model was trained on.
 *
 * A model carries its form as a Jinja template.  Merx runs no Jinja: it knows
 * three families by their landmarks and reads from the template's text what
 * differs within a family (default system message, BOS, trimming, date lines).
 * A family's markers go out as ids and what people wrote as plain text, so that
 * nobody can forge a turn. */
#include "models/tokenizer_internal.h"

#include <stdlib.h>
#include <time.h>

const char *mx_chat_family_name(mx_chat_family f)
{
    switch (f) {
    case MX_CHAT_CHATML: return "chatml";
    case MX_CHAT_LLAMA2: return "llama2";
    case MX_CHAT_LLAMA3: return "llama3";
    default: return "none";
    }
}

mx_chat_family mx_tokenizer_chat_family(const mx_tokenizer *t)
{
    return t->chat;
}

/* ---- reading the template ---- */

/* A Jinja string's text up to stop (or its closing quote), escapes undone, malloc'ed; NULL: it is not constant up to
 * there, or out of memory. */
static char *constant(const char *s, char quote, const char *stop)
{
    const char *end = strstr(s, stop);
    if (!end) return NULL;
    char *out = malloc((size_t)(end - s) + 1);
    size_t n = 0;
    if (!out) return NULL;
    for (; s < end; s++) {
        if (*s == quote) {
            free(out);
            return NULL;
        }
        if (*s == '\\' && s + 1 < end) {
            s++;
            out[n++] = *s == 'n' ? '\n' : *s == 't' ? '\t' : *s == 'r' ? '\r' : *s;
        } else {
            out[n++] = *s;
        }
    }
    out[n] = 0;
    return out;
}

/* After marker, skip `\n` as Jinja writes it or a newline; NULL: something else stands there. */
static const char *after_newline(const char *s)
{
    if (*s == '\n') return s + 1;
    return s[0] == '\\' && s[1] == 'n' ? s + 2 : NULL;
}

/* The constant system message of a ChatML template: '<|im_start|>system\nYou are ...<|im_end|>'. */
static char *default_system(const char *text)
{
    static const char head[] = "<|im_start|>system";
    for (const char *p = text; (p = strstr(p, head)); p++) {
        const char *body = after_newline(p + sizeof head - 1);
        if (p == text || !body) continue;
        char *found = constant(body, p[-1], "<|im_end|>");
        if (found) return found;
    }
    return NULL;
}

/* True when a message's content goes through trim or strip(). */
static bool trims(const char *text)
{
    for (const char *p = text; (p = strstr(p, "content")); ) {
        p += strlen("content");
        const char *q = p + strspn(p, "'\"]) \t");
        if (!strncmp(q, ".strip()", 8)) return true;
        if (*q == '|' && !strncmp(q + 1 + strspn(q + 1, " \t"), "trim", 4)) return true;
    }
    return false;
}

/* Llama 3.1 and later put date lines before every system message. */
static mx_status read_dates(mx_tokenizer *t)
{
    static const char head[] = "Cutting Knowledge Date", set[] = "date_string = ";
    const char *p = strstr(t->template_text, head), *d = t->template_text;
    if (!p || p == t->template_text) return MX_OK;
    t->chat_system_head = constant(p, p[-1], "\\n");
    if (!t->chat_system_head) return MX_OK;
    t->chat_system_always = true;
    bool today = strstr(t->template_text, "strftime_now") != NULL;
    while (!today && !t->chat_date && (d = strstr(d, set))) {
        d += sizeof set - 1;
        if (*d == '"' || *d == '\'') t->chat_date = constant(d + 1, 0, (char[]){*d, 0});
    }
    if (!t->chat_date) t->chat_date = strdup("");
    return t->chat_date ? MX_OK : MX_ERR_NO_MEMORY;
}

mx_status mx_tokenizer_set_template(mx_tokenizer *t, const char *text, size_t n)
{
    free(t->template_text);
    t->template_text = malloc(n + 1);
    if (!t->template_text) return MX_ERR_NO_MEMORY;
    memcpy(t->template_text, text, n);
    t->template_text[n] = 0;
    text = t->template_text;
    t->chat_bos = strstr(text, "bos_token") != NULL;
    t->chat_trim = trims(text);
    if (strstr(text, "<|im_start|>")) {
        t->chat = MX_CHAT_CHATML;
        t->chat_system = default_system(text);
    } else if (strstr(text, "<|start_header_id|>")) {
        t->chat = MX_CHAT_LLAMA3;
        return read_dates(t);
    } else if (strstr(text, "[INST]") && strstr(text, "<<SYS>>")) {
        t->chat = MX_CHAT_LLAMA2;
    }
    return MX_OK;
}

/* ---- writing a conversation ---- */

typedef struct writer {
    const mx_tokenizer *t;
    mx_ids   *out;
    mx_error *err;
    int32_t   before;              /* ids that were there already */
    char     *text;                /* not yet encoded             */
    size_t    n, room;
    mx_status st;                  /* sticky                      */
} writer;

static void put(writer *w, const char *s, size_t n)
{
    size_t need, room;
    if (w->st) return;
    if (!mx_add_size(w->n, n, &need) || !mx_add_size(need, need / 2 + 64, &room)) {
        w->st = mx_fail(w->err, MX_ERR_NO_MEMORY, "no memory for the conversation");
        return;
    }
    if (need > w->room) {
        char *text = realloc(w->text, room);
        if (!text) {
            w->st = mx_fail(w->err, MX_ERR_NO_MEMORY, "no memory for the conversation");
            return;
        }
        w->text = text;
        w->room = room;
    }
    memcpy(w->text + w->n, s, n);
    w->n = need;
}

static void say(writer *w, const char *s)
{
    put(w, s, strlen(s));
}

static void flush(writer *w)
{
    if (w->st || !w->n) return;
    w->st = mx_tokenizer_encode_part(w->t, w->text, w->n, w->out->count == w->before, false, w->out, w->err);
    w->n = 0;
}

static void token(writer *w, int32_t id)
{
    flush(w);
    if (!w->st && mx_ids_push(w->out, id)) w->st = mx_fail(w->err, MX_ERR_NO_MEMORY, "no memory for the conversation");
}

/* A marker of the template: its id where it is an added token, else its text. */
static void mark(writer *w, const char *name)
{
    int32_t id = mx_tokenizer_find(w->t, name);
    if (id >= 0 && (w->t->vocab.token[id].flags & MX_TOKEN_ADDED)) token(w, id);
    else say(w, name);
}

static bool trimmed(uint32_t c)                /* Python's str.strip() */
{
    return mx_is_space(c) || (c >= 0x1c && c <= 0x1f);
}

static void trim(const char **s, size_t *n)
{
    uint32_t c;
    bool cut;
    int len;
    while (*n && (len = mx_utf8_next(*s, *n, &c, &cut)) > 0 && trimmed(c)) {
        *s += len;
        *n -= (size_t)len;
    }
    while (*n) {
        size_t at = *n - 1;
        while (at > 0 && *n - at < 4 && ((uint8_t)(*s)[at] & 0xc0) == 0x80) at--;
        if (mx_utf8_next(*s + at, *n - at, &c, &cut) != (int)(*n - at) || !trimmed(c)) break;
        *n = at;
    }
}

static void content(writer *w, const char *s)
{
    size_t n = strlen(s);
    if (w->t->chat_trim) trim(&s, &n);
    put(w, s, n);
}

static bool is_role(const mx_chat_message *m, const char *role)
{
    return !strcmp(m->role, role);
}

static void chatml_turn(writer *w, const char *role, const char *text, bool constant_text)
{
    mark(w, "<|im_start|>");
    say(w, role);
    say(w, "\n");
    if (constant_text) say(w, text);
    else content(w, text);
    mark(w, "<|im_end|>");
    say(w, "\n");
}

static void chatml(writer *w, const mx_chat_message *m, int n)
{
    if (w->t->chat_bos && w->t->bos >= 0) token(w, w->t->bos);
    if (w->t->chat_system && !is_role(&m[0], "system")) chatml_turn(w, "system", w->t->chat_system, true);
    for (int i = 0; i < n; i++) chatml_turn(w, m[i].role, m[i].content, false);
    mark(w, "<|im_start|>");
    say(w, "assistant\n");
}

static void llama3_head(writer *w, const char *role)
{
    mark(w, "<|start_header_id|>");
    say(w, role);
    mark(w, "<|end_header_id|>");
    say(w, "\n\n");
}

static void llama3_dates(writer *w)
{
    static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    char today[32] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (localtime_r(&now, &tm))
        snprintf(today, sizeof today, "%02d %s %d", tm.tm_mday, months[tm.tm_mon % 12], tm.tm_year + 1900);
    say(w, w->t->chat_system_head);
    say(w, "\nToday Date: ");
    say(w, *w->t->chat_date ? w->t->chat_date : today);
    say(w, "\n\n");
}

static void llama3(writer *w, const mx_chat_message *m, int n)
{
    if (w->t->chat_bos && w->t->bos >= 0) token(w, w->t->bos);
    if (w->t->chat_system_always) {
        llama3_head(w, "system");
        llama3_dates(w);
        if (is_role(&m[0], "system")) {
            content(w, m[0].content);
            m++, n--;
        }
        mark(w, "<|eot_id|>");
    }
    for (int i = 0; i < n; i++) {
        llama3_head(w, m[i].role);
        content(w, m[i].content);
        mark(w, "<|eot_id|>");
    }
    llama3_head(w, "assistant");
}

/* A user's turn of Llama 2: the system message stands inside the first one, and the template strips the whole. */
static void llama2_user(writer *w, const char *system, const char *text)
{
    if (w->t->chat_bos && w->t->bos >= 0) token(w, w->t->bos);
    say(w, "[INST] ");
    size_t start = w->n;
    if (system) {
        say(w, "<<SYS>>\n");
        say(w, system);
        say(w, "\n<</SYS>>\n\n");
    }
    say(w, text);
    if (w->st) return;
    const char *s = w->text + start;
    size_t n = w->n - start;
    if (w->t->chat_trim) trim(&s, &n);
    memmove(w->text + start, s, n);
    w->n = start + n;
    say(w, " [/INST]");
}

static void llama2(writer *w, const mx_chat_message *m, int n)
{
    const char *system = NULL;
    if (is_role(&m[0], "system")) {
        system = m[0].content;
        m++, n--;
    }
    if (!n) w->st = mx_fail(w->err, MX_ERR_ARG, "messages: a system message alone; the model needs a user's turn");
    for (int i = 0; i < n && !w->st; i++) {
        if (!is_role(&m[i], i % 2 ? "assistant" : "user")) {
            w->st = mx_fail(w->err, MX_ERR_ARG, "messages: the model's template wants user and assistant in turns, user "
                                                "first; \"%.40s\" stands at %d", m[i].role, i + (system != NULL));
            return;
        }
        if (i % 2 == 0) {
            llama2_user(w, i ? NULL : system, m[i].content);
        } else {
            say(w, " ");
            content(w, m[i].content);
            say(w, " ");
            if (w->t->eos >= 0) token(w, w->t->eos);
        }
    }
}

mx_status mx_tokenizer_chat(const mx_tokenizer *t, const mx_chat_message *messages, int n, mx_ids *out, mx_error *err)
{
    writer w = {.t = t, .out = out, .err = err, .before = out->count};
    if (t->chat == MX_CHAT_NONE)
        return mx_fail(err, MX_ERR_STATE, "the model has no chat template that Merx knows; give it a plain prompt");
    if (n < 1) return mx_fail(err, MX_ERR_ARG, "messages: empty");
    for (int i = 0; i < n; i++) {
        const mx_chat_message *m = &messages[i];
        if (!m->role || (!is_role(m, "system") && !is_role(m, "user") && !is_role(m, "assistant")))
            return mx_fail(err, MX_ERR_ARG, "messages[%d].role: \"%.40s\" is not system, user or assistant", i,
                           m->role ? m->role : "");
        if (!m->content) return mx_fail(err, MX_ERR_ARG, "messages[%d].content: missing", i);
    }
    switch (t->chat) {
    case MX_CHAT_CHATML: chatml(&w, messages, n); break;
    case MX_CHAT_LLAMA3: llama3(&w, messages, n); break;
    default: llama2(&w, messages, n); break;
    }
    flush(&w);
    free(w.text);
    if (w.st) out->count = w.before;
    return w.st;
}
