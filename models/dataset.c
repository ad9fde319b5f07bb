/* dataset.c - reading documents: shards, JSONL and plain text. */
#include "models/dataset_internal.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#define LINE_MOST ((size_t)64 << 20)
#define REPORT_BYTES ((uint64_t)1 << 20)

/* ---- what is held in memory -------------------------------------------------------- */

mx_status mx_dataset_grow(mx_dataset *d, int64_t tokens, mx_error *err)
{
    MX_TRY(mx_dataset_own(d, err));
    if (d->n + tokens > d->room) {
        int64_t room = d->room ? d->room : 65536;
        while (room < d->n + tokens) room *= 2;
        int32_t *ids = realloc(d->ids, (size_t)room * sizeof *ids);
        if (ids) d->ids = ids;
        uint8_t *learn = ids ? realloc(d->learn, (size_t)room) : NULL;
        if (learn) d->learn = learn;
        if (!ids || !learn) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld tokens of data", (long long)room);
        d->room = room;
    }
    if (d->count + 2 > d->count_room) {
        int64_t room = d->count_room ? 2 * d->count_room : 1024;
        int64_t *begin = realloc(d->begin, (size_t)room * sizeof *begin);
        if (begin) d->begin = begin;
        int32_t *label = begin ? realloc(d->label, (size_t)room * sizeof *label) : NULL;
        if (label) d->label = label;
        if (!begin || !label) return mx_fail(err, MX_ERR_NO_MEMORY, "%lld documents", (long long)room);
        d->begin[0] = 0;
        d->count_room = room;
    }
    return MX_OK;
}

static mx_status add_ids(mx_dataset *d, const int32_t *ids, int64_t n, bool learn, mx_error *err)
{
    MX_TRY(mx_dataset_grow(d, n, err));
    memcpy(d->ids + d->n, ids, (size_t)n * sizeof *ids);
    memset(d->learn + d->n, learn, (size_t)n);
    if (!learn) d->masked = true;
    d->n += n;
    return MX_OK;
}

static mx_status end_document(mx_dataset *d, int32_t label, mx_error *err)
{
    MX_TRY(mx_dataset_grow(d, 0, err));
    d->label[d->count] = label;
    d->begin[++d->count] = d->n;
    if (label >= 0) d->labelled = true;
    return MX_OK;
}

/* ---- one document --------------------------------------------------------------------- */

typedef struct reader {
    mx_dataset               *d;
    const mx_text_to_ids     *to_ids;
    const mx_dataset_options *opt;
    const char *path;
    int64_t     line;
    mx_ids      ids, more;
    mx_error   *err;
} reader;

static mx_status bad_line(reader *r, const char *what)
{
    return mx_fail(r->err, MX_ERR_FORMAT, "%s:%lld: %s", r->path, (long long)r->line, what);
}

static mx_status encode(reader *r, const char *text, size_t len, bool special, mx_ids *out)
{
    mx_error why = {0};
    out->count = 0;
    mx_status st = r->to_ids->encode(r->to_ids->tokenizer, text, len, special, out, &why);
    return st ? mx_fail(r->err, st, "%s:%lld: %s", r->path, (long long)r->line, why.text) : MX_OK;
}

static mx_status add_end(reader *r)
{
    return r->to_ids->end >= 0 ? add_ids(r->d, &r->to_ids->end, 1, true, r->err) : MX_OK;
}

static mx_status add_text(reader *r, const char *text, size_t len, int32_t label)
{
    if (!len) return bad_line(r, "the text is empty");
    MX_TRY(encode(r, text, len, r->to_ids->special, &r->ids));
    MX_TRY(add_ids(r->d, r->ids.id, r->ids.count, true, r->err));
    MX_TRY(add_end(r));
    return end_document(r->d, label, r->err);
}

static mx_status add_pair(reader *r, const json_t *prompt, const json_t *completion, int32_t label)
{
    if (!json_is_string(prompt) || !json_is_string(completion)) return bad_line(r, "\"prompt\" and \"completion\" must both be strings");
    if (!json_string_length(completion)) return bad_line(r, "the completion is empty");
    MX_TRY(encode(r, json_string_value(prompt), json_string_length(prompt), r->to_ids->special, &r->ids));
    MX_TRY(add_ids(r->d, r->ids.id, r->ids.count, r->opt->learn_prompts, r->err));
    MX_TRY(encode(r, json_string_value(completion), json_string_length(completion), false, &r->ids));
    MX_TRY(add_ids(r->d, r->ids.id, r->ids.count, true, r->err));
    MX_TRY(add_end(r));
    return end_document(r->d, label, r->err);
}

/* Each answer is what chat(up to it and with it) has more than chat(up to the
 * one before it), so the template needs no inverse. */
static mx_status add_chat(reader *r, const json_t *messages, int32_t label)
{
    enum { MOST = 256 };
    mx_chat_message m[MOST];
    size_t n = json_array_size(messages);
    if (!r->to_ids->chat) return bad_line(r, "\"messages\": the tokenizer has no chat template");
    if (!json_is_array(messages) || !n || n > MOST) return bad_line(r, "\"messages\" must be a list of 1 to 256 messages");
    for (size_t i = 0; i < n; i++) {
        const json_t *role = json_object_get(json_array_get(messages, i), "role");
        const json_t *content = json_object_get(json_array_get(messages, i), "content");
        if (!json_is_string(role) || !json_is_string(content)) return bad_line(r, "a message needs the strings \"role\" and \"content\"");
        m[i] = (mx_chat_message){json_string_value(role), json_string_value(content)};
    }
    if (strcmp(m[n - 1].role, "assistant")) return bad_line(r, "the last message is not the assistant's");
    int64_t told = 0, start = r->d->n;
    for (size_t i = 0; i < n; i++) {
        if (strcmp(m[i].role, "assistant")) continue;
        mx_error why = {0};
        r->ids.count = 0;
        mx_status st = r->to_ids->chat(r->to_ids->tokenizer, m, (int)i, &r->ids, &why);
        if (st) return mx_fail(r->err, st, "%s:%lld: %s", r->path, (long long)r->line, why.text);
        if (r->ids.count < told) return bad_line(r, "the chat template does not only append");
        MX_TRY(add_ids(r->d, r->ids.id + told, r->ids.count - told, r->opt->learn_prompts, r->err));
        MX_TRY(encode(r, m[i].content, strlen(m[i].content), false, &r->more));
        MX_TRY(add_ids(r->d, r->more.id, r->more.count, true, r->err));
        MX_TRY(add_end(r));
        told = r->d->n - start;
    }
    return end_document(r->d, label, r->err);
}

static mx_status add_row(reader *r, const char *line, size_t len)
{
    json_error_t why;
    mx_status st;
    json_t *row = json_loadb(line, len, JSON_REJECT_DUPLICATES, &why);
    if (!row) return mx_fail(r->err, MX_ERR_FORMAT, "%s:%lld: column %d: %s", r->path, (long long)r->line, why.column, why.text);
    const char *field = r->opt->text_field ? r->opt->text_field : "text";
    const json_t *text = json_object_get(row, field), *prompt = json_object_get(row, "prompt");
    const json_t *messages = json_object_get(row, "messages"), *given = json_object_get(row, "label");
    int32_t label = -1, classes = r->opt->classes;
    if (given && json_is_integer(given) && json_integer_value(given) >= 0 && json_integer_value(given) <= INT32_MAX)
        label = (int32_t)json_integer_value(given);
    else if (given && !json_is_null(given)) {
        st = bad_line(r, "\"label\" is not a count from 0");
        goto done;
    }
    if (classes && (label < 0 || label >= classes)) {
        st = mx_fail(r->err, MX_ERR_FORMAT, "%s:%lld: \"label\" must be in 0..%d", r->path, (long long)r->line, classes - 1);
        goto done;
    }
    if (json_is_string(text)) st = add_text(r, json_string_value(text), json_string_length(text), label);
    else if (prompt) st = add_pair(r, prompt, json_object_get(row, "completion"), label);
    else if (messages) st = add_chat(r, messages, label);
    else st = mx_fail(r->err, MX_ERR_FORMAT, "%s:%lld: no string \"%s\", no \"prompt\" and \"completion\", no \"messages\"", r->path,
                      (long long)r->line, field);
done:
    json_decref(row);
    return st;
}

/* A line that fails leaves no trace; when lines may be skipped it is counted. */
static mx_status take_line(reader *r, const char *line, size_t len, bool json)
{
    int64_t n = r->d->n, count = r->d->count;
    mx_status st = json ? add_row(r, line, len) : add_text(r, line, len, -1);
    if (!st) return MX_OK;
    r->d->n = n;
    r->d->count = count;
    if (!r->opt->skip_bad || st == MX_ERR_NO_MEMORY) return st;
    r->d->skipped++;
    return MX_OK;
}

/* ---- files ------------------------------------------------------------------------------ */

static mx_status report(reader *r, uint64_t done, uint64_t total)
{
    if (r->opt->progress && !r->opt->progress(r->opt->ctx, done, total)) return mx_fail(r->err, MX_ERR_CANCELLED, "stopped while reading %s", r->path);
    return MX_OK;
}

static mx_status read_lines(reader *r, FILE *f, bool json, uint64_t before, uint64_t total)
{
    char *line = NULL;
    size_t room = 0;
    uint64_t read = 0, told = 0;
    mx_status st = MX_OK;
    ssize_t len;
    while (!st && (len = getline(&line, &room, f)) >= 0) {
        r->line++;
        read += (uint64_t)len;
        if ((size_t)len > LINE_MOST) st = bad_line(r, "longer than 64 MiB");
        while (len && (line[len - 1] == '\n' || line[len - 1] == '\r')) len--;
        if (!st && !(len == 0 && !json)) st = take_line(r, line, (size_t)len, json);
        if (!st && read - told > REPORT_BYTES) st = report(r, before + (told = read), total);
    }
    if (!st && ferror(f)) st = mx_fail(r->err, MX_ERR_IO, "%s: %s", r->path, strerror(errno));
    free(line);
    return st;
}

static mx_status read_text(reader *r, uint64_t before, uint64_t total)
{
    char *text = NULL;
    size_t len = 0;
    r->line = 1;
    mx_status st = mx_read_file(r->path, (size_t)1 << 31, &text, &len, r->err);
    if (!st) st = report(r, before, total);
    if (!st) st = take_line(r, text, len, false);
    free(text);
    return st;
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), k = strlen(end);
    return n >= k && !strcmp(s + n - k, end);
}

static mx_status read_one(reader *r, uint64_t before, uint64_t total)
{
    if (ends_with(r->path, ".safetensors")) return mx_dataset_shard(r->d, r->path, r->to_ids->vocab, r->opt->classes, r->err);
    if (ends_with(r->path, ".txt") && !r->opt->lines) return read_text(r, before, total);
    if (!ends_with(r->path, ".jsonl") && !ends_with(r->path, ".txt"))
        return mx_fail(r->err, MX_ERR_ARG, "%s: data must end in .jsonl, .txt or .safetensors", r->path);
    if (!r->to_ids->encode) return mx_fail(r->err, MX_ERR_ARG, "%s: text needs a tokenizer", r->path);
    FILE *f = fopen(r->path, "rb");
    if (!f) return mx_fail(r->err, MX_ERR_IO, "%s: %s", r->path, strerror(errno));
    r->line = 0;
    mx_status st = read_lines(r, f, ends_with(r->path, ".jsonl"), before, total);
    fclose(f);
    return st;
}

static mx_status check_ids(const mx_dataset *d, int32_t vocab, mx_error *err)
{
    for (int64_t i = 0; i < d->n; i++)
        if (d->ids[i] < 0 || d->ids[i] >= vocab)
            return mx_fail(err, MX_ERR_FORMAT, "data: token %lld has id %d; the model's vocabulary ends at %d", (long long)i, d->ids[i], vocab - 1);
    return MX_OK;
}

mx_status mx_dataset_open(mx_dataset **out, const char *const *paths, int n, const mx_text_to_ids *to_ids,
                          const mx_dataset_options *opt, mx_error *err)
{
    mx_status st = MX_OK;
    mx_dataset *d = calloc(1, sizeof *d);
    reader r = {.d = d, .to_ids = to_ids, .opt = opt, .err = err};
    uint64_t total = 0, before = 0;
    *out = NULL;
    if (!d) return mx_fail(err, MX_ERR_NO_MEMORY, "a dataset");
    for (int i = 0; i < n; i++) {
        struct stat about;
        if (stat(paths[i], &about)) {
            st = mx_fail(err, MX_ERR_IO, "%s: %s", paths[i], strerror(errno));
            goto fail;
        }
        total += (uint64_t)about.st_size;
    }
    for (int i = 0; i < n; i++) {
        struct stat about;
        uint64_t size = stat(paths[i], &about) ? 0 : (uint64_t)about.st_size;
        r.path = paths[i];
        MX_TRY_GOTO(st, read_one(&r, before, total), fail);
        before += size;
    }
    r.path = "data";
    MX_TRY_GOTO(st, report(&r, total, total), fail);
    if (!d->count) {
        st = mx_fail(err, MX_ERR_ARG, "data: %s holds no document%s", n ? paths[0] : "nothing", d->skipped ? " that parses" : "");
        goto fail;
    }
    MX_TRY_GOTO(st, check_ids(d, to_ids->vocab, err), fail);
    mx_ids_free(&r.ids);
    mx_ids_free(&r.more);
    *out = d;
    return MX_OK;
fail:
    mx_ids_free(&r.ids);
    mx_ids_free(&r.more);
    mx_dataset_close(d);
    return st;
}

void mx_dataset_close(mx_dataset *d)
{
    if (!d) return;
    mx_checkpoint_close(d->file);
    if (!d->mapped) {
        free(d->ids);
        free(d->learn);
    }
    free(d->begin);
    free(d->label);
    free(d);
}

int64_t mx_dataset_count(const mx_dataset *d)
{
    return d->count;
}

int64_t mx_dataset_tokens(const mx_dataset *d)
{
    return d->n;
}

int64_t mx_dataset_skipped(const mx_dataset *d)
{
    return d->skipped;
}

mx_document mx_dataset_at(const mx_dataset *d, int64_t i)
{
    return (mx_document){.ids = d->ids + d->begin[i], .learn = d->masked ? d->learn + d->begin[i] : NULL,
                         .n = d->begin[i + 1] - d->begin[i], .label = d->labelled ? d->label[i] : -1};
}

static uint64_t hash_bytes(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;
    for (; n >= 8; n -= 8, p += 8) {
        uint64_t w;
        memcpy(&w, p, 8);
        h = (h ^ w) * 0x9fb21c651e98df25u;
        h ^= h >> 29;
    }
    for (; n; n--, p++) h = (h ^ *p) * 0x100000001b3u;
    return h;
}

uint64_t mx_dataset_hash(const mx_dataset *d)
{
    uint64_t h = hash_bytes(0xcbf29ce484222325u, d->ids, (size_t)d->n * sizeof *d->ids);
    h = hash_bytes(h, d->begin, (size_t)(d->count + 1) * sizeof *d->begin);
    if (d->masked) h = hash_bytes(h, d->learn, (size_t)d->n);
    if (d->labelled) h = hash_bytes(h, d->label, (size_t)d->count * sizeof *d->label);
    return h;
}

/* ---- tokenizers ------------------------------------------------------------------------ */

static mx_status lm_encode(const void *t, const char *text, size_t len, bool special, mx_ids *out, mx_error *err)
{
    return mx_tokenizer_encode(t, text, len, special, special, out, err);
}

static mx_status lm_chat(const void *t, const mx_chat_message *m, int n, mx_ids *out, mx_error *err)
{
    return mx_tokenizer_chat(t, m, n, out, err);
}

mx_text_to_ids mx_text_for_lm(const mx_tokenizer *t)
{
    return (mx_text_to_ids){.encode = lm_encode, .chat = lm_chat, .tokenizer = t, .vocab = mx_tokenizer_vocab(t), .end = mx_tokenizer_eos(t)};
}

static mx_status encode_pieces(const void *tokenizer, const char *text, size_t len, bool special, mx_ids *out, mx_error *err)
{
    return mx_tokenizer_encode(tokenizer, text, len, special, false, out, err);
}

mx_text_to_ids mx_text_for_encoder(const mx_tokenizer *t)
{
    return (mx_text_to_ids){.encode = encode_pieces, .tokenizer = t, .vocab = mx_tokenizer_vocab(t), .end = -1, .special = true};
}
