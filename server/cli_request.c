/* cli_request.c - settings and rows of JSON as the messages of the wire. */
#include "server/cli_parts.h"
#include "server/settings.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FIELD_SIZE 64
#define BUDGET     ((size_t)256 << 20)     /* bytes of one request */
#define PROMPT_MOST ((size_t)256 << 20)

typedef const ProtobufCFieldDescriptor field;

/* ---- fields of Sampling by their descriptor ---------------------------------------------- */

static bool is_list(field *f)
{
    return f->label == PROTOBUF_C_LABEL_REPEATED;
}

/* Where the value lies; the count or the case of `oneof _x` beside it says that it is set. */
static void *value_at(Merx__V1__Sampling *m, field *f)
{
    if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) *(uint32_t *)((char *)m + f->quantifier_offset) = f->id;
    return (char *)m + f->offset;
}

/* n zeroed entries for a list field; NULL: out of memory. */
static void *list_of(Merx__V1__Sampling *m, field *f, size_t n, size_t size, mx_arena *a)
{
    void *list = mx_arena_array(a, n, size);
    if (!list) return NULL;
    *(size_t *)((char *)m + f->quantifier_offset) = n;
    *(void **)((char *)m + f->offset) = list;
    return list;
}

static mx_status no_memory(const char *name, mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", name);
}

static bool parse_u64(const char *text, uint64_t *out)
{
    char *end;
    if (text[0] < '0' || text[0] > '9') return false;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return !errno && !*end;
}

static bool parse_id(const char *text, const char **end, int32_t *out)
{
    char *stop;
    if (text[0] < '0' || text[0] > '9') return false;
    errno = 0;
    long long v = strtoll(text, &stop, 10);
    *end = stop;
    *out = (int32_t)v;
    return !errno && v <= INT32_MAX;
}

/* ---- from settings ------------------------------------------------------------------------- */

static const mx_setting *setting_of(field *f, char name[FIELD_SIZE])
{
    snprintf(name, FIELD_SIZE, "%s", f->name);
    for (char *p = name; *p; p++)
        if (*p == '_') *p = '-';
    for (int i = 0; i < mx_settings_count; i++)
        if (!strcmp(mx_settings[i].name, name)) return &mx_settings[i];
    return NULL;
}

/* "50256=-100" */
static mx_status bias_of(const char *text, Merx__V1__LogitBias *b, mx_error *err)
{
    const char *at = text;
    char *end;
    if (parse_id(text, &at, &b->id) && *at == '=' && at[1]) {
        b->bias = strtof(at + 1, &end);
        if (!*end && b->bias >= -100 && b->bias <= 100) return MX_OK;
    }
    return mx_fail(err, MX_ERR_ARG, "--logit-bias: \"%.60s\" is not ID=X with X from -100 to 100", text);
}

static mx_status list_setting(Merx__V1__Sampling *out, field *f, const mx_config *c, const char *name, mx_arena *a,
                              mx_error *err)
{
    const char *const *items, *end;
    size_t n = (size_t)mx_config_list(c, name, &items);
    if (!n) return MX_OK;
    if (f->type == PROTOBUF_C_TYPE_STRING) {
        const char **list = list_of(out, f, n, sizeof *list, a);
        if (!list) return no_memory(name, err);
        memcpy(list, items, n * sizeof *list);
        return MX_OK;
    }
    if (f->type == PROTOBUF_C_TYPE_INT32) {
        int32_t *list = list_of(out, f, n, sizeof *list, a);
        if (!list) return no_memory(name, err);
        for (size_t i = 0; i < n; i++)
            if (!parse_id(items[i], &end, &list[i]) || *end)
                return mx_fail(err, MX_ERR_ARG, "--%s: \"%.60s\" is not a token id", name, items[i]);
        return MX_OK;
    }
    Merx__V1__LogitBias **list = list_of(out, f, n, sizeof *list, a), *all = mx_arena_array(a, n, sizeof *all);
    if (!list || !all) return no_memory(name, err);
    for (size_t i = 0; i < n; i++) {
        merx__v1__logit_bias__init(&all[i]);
        list[i] = &all[i];
        MX_TRY(bias_of(items[i], &all[i], err));
    }
    return MX_OK;
}

mx_status cli_sampling_settings(Merx__V1__Sampling *out, const mx_config *c, mx_arena *a, mx_error *err)
{
    const ProtobufCMessageDescriptor *d = &merx__v1__sampling__descriptor;
    merx__v1__sampling__init(out);
    for (unsigned i = 0; i < d->n_fields; i++) {
        field *f = &d->fields[i];
        char name[FIELD_SIZE];
        const mx_setting *s = setting_of(f, name);
        if (!s) return mx_fail(err, MX_ERR_INTERNAL, "Sampling.%s has no setting", f->name);
        if (!s->fallback && !mx_config_given(c, name)) continue;
        if (is_list(f)) {
            MX_TRY(list_setting(out, f, c, name, a, err));
            continue;
        }
        void *at = value_at(out, f);
        if (f->type == PROTOBUF_C_TYPE_FLOAT) *(float *)at = (float)mx_config_float(c, name);
        else if (f->type == PROTOBUF_C_TYPE_INT32) *(int32_t *)at = (int32_t)mx_config_int(c, name);
        else if (f->type == PROTOBUF_C_TYPE_BOOL) *(protobuf_c_boolean *)at = mx_config_bool(c, name);
        else if (!parse_u64(mx_config_string(c, name), at))
            return mx_fail(err, MX_ERR_ARG, "--%s: \"%.60s\" is not a number from 0 to 2^64-1 (%s)", name,
                           mx_config_string(c, name), mx_config_where(c, name));
    }
    return MX_OK;
}

/* ---- from JSON -------------------------------------------------------------------------------- */

static mx_status wrong(field *f, const char *want, const json_t *v, mx_error *err)
{
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
    mx_fail(err, MX_ERR_ARG, "%s is %.60s; it must be %s", f->name, text ? text : "?", want);
    free(text);
    mx_text_clean(err->text);
    return MX_ERR_ARG;
}

static bool int32_of(const json_t *v, int32_t *out)
{
    json_int_t i = json_integer_value(v);
    *out = (int32_t)i;
    return json_is_integer(v) && i >= INT32_MIN && i <= INT32_MAX;
}

/* {"50256": -100} as elsewhere, or [{"id": 50256, "bias": -100}] as in the proto. */
static mx_status biases_json(Merx__V1__Sampling *out, field *f, json_t *v, mx_arena *a, mx_error *err)
{
    static const char want[] = "an object of token id and number";
    bool object = json_is_object(v);
    if (!object && !json_is_array(v)) return wrong(f, want, v, err);
    size_t n = object ? json_object_size(v) : json_array_size(v), i = 0;
    Merx__V1__LogitBias **list = list_of(out, f, n, sizeof *list, a), *all = mx_arena_array(a, n, sizeof *all);
    if (!list || !all) return no_memory(f->name, err);
    for (void *it = object ? json_object_iter(v) : NULL; i < n; i++) {
        json_t *entry = object ? NULL : json_array_get(v, i), *bias = object ? json_object_iter_value(it) : json_object_get(entry, "bias");
        const char *end = "x";
        merx__v1__logit_bias__init(&all[i]);
        list[i] = &all[i];
        bool ok = object ? parse_id(json_object_iter_key(it), &end, &all[i].id) && !*end
                         : int32_of(json_object_get(entry, "id"), &all[i].id);
        if (!ok || !json_is_number(bias)) return wrong(f, want, v, err);
        all[i].bias = (float)json_number_value(bias);
        if (object) it = json_object_iter_next(v, it);
    }
    return MX_OK;
}

/* A list, or one entry by itself. */
static mx_status list_json(Merx__V1__Sampling *out, field *f, json_t *v, mx_arena *a, mx_error *err)
{
    if (f->type == PROTOBUF_C_TYPE_MESSAGE) return biases_json(out, f, v, a, err);
    bool text = f->type == PROTOBUF_C_TYPE_STRING, many = json_is_array(v);
    size_t n = many ? json_array_size(v) : 1;
    void *list = list_of(out, f, n, text ? sizeof(char *) : sizeof(int32_t), a);
    if (!list) return no_memory(f->name, err);
    for (size_t i = 0; i < n; i++) {
        json_t *item = many ? json_array_get(v, i) : v;
        if (text) ((const char **)list)[i] = json_string_value(item);
        if (text ? !json_is_string(item) : !int32_of(item, &((int32_t *)list)[i]))
            return wrong(f, text ? "a text or a list of texts" : "a token id or a list of them", v, err);
    }
    return MX_OK;
}

static mx_status field_json(Merx__V1__Sampling *out, field *f, json_t *v, mx_arena *a, mx_error *err)
{
    if (is_list(f)) return list_json(out, f, v, a, err);
    void *at = value_at(out, f);
    switch (f->type) {
    case PROTOBUF_C_TYPE_FLOAT:
        if (!json_is_number(v)) return wrong(f, "a number", v, err);
        *(float *)at = (float)json_number_value(v);
        return MX_OK;
    case PROTOBUF_C_TYPE_INT32: return int32_of(v, at) ? MX_OK : wrong(f, "a whole number", v, err);
    case PROTOBUF_C_TYPE_BOOL:
        if (!json_is_boolean(v)) return wrong(f, "true or false", v, err);
        *(protobuf_c_boolean *)at = json_is_true(v);
        return MX_OK;
    default:
        if (json_is_string(v) && parse_u64(json_string_value(v), at)) return MX_OK;
        if (!json_is_integer(v) || json_integer_value(v) < 0) return wrong(f, "a number from 0 to 2^64-1", v, err);
        *(uint64_t *)at = (uint64_t)json_integer_value(v);
        return MX_OK;
    }
}

/* ---- requests ------------------------------------------------------------------------------------ */

void cli_request_open(cli_request *r)
{
    merx__v1__generate_request__init(&r->message);
    merx__v1__sampling__init(&r->sampling);
    merx__v1__chat__init(&r->chat);
    mx_arena_open(&r->arena, BUDGET);
    r->message.sampling = &r->sampling;
}

void cli_request_close(cli_request *r)
{
    mx_arena_close(&r->arena);
}

/* n messages to fill; NULL: out of memory. */
static Merx__V1__ChatMessage *chat_of(cli_request *r, size_t n)
{
    Merx__V1__ChatMessage *m = mx_arena_array(&r->arena, n, sizeof *m);
    r->chat.messages = mx_arena_array(&r->arena, n, sizeof *r->chat.messages);
    if (!m || !r->chat.messages) return NULL;
    for (size_t i = 0; i < n; i++) {
        merx__v1__chat_message__init(&m[i]);
        r->chat.messages[i] = &m[i];
    }
    r->chat.n_messages = n;
    r->message.input_case = MERX__V1__GENERATE_REQUEST__INPUT_CHAT;
    r->message.chat = &r->chat;
    return m;
}

mx_status cli_request_prompt(cli_request *r, const mx_config *c, const char *prompt, bool chat, mx_error *err)
{
    const char *system = mx_config_string(c, "system"), *adapter = mx_config_string(c, "adapter-name");
    if (adapter && !*r->message.model) r->message.model = (char *)(uintptr_t)adapter;
    if (!chat) {
        if (system) return mx_fail(err, MX_ERR_STATE, "--system: there is no chat template to put it into (--chat and a model that has one)");
        r->message.input_case = MERX__V1__GENERATE_REQUEST__INPUT_PROMPT;
        r->message.prompt = (char *)(uintptr_t)prompt;
        return MX_OK;
    }
    Merx__V1__ChatMessage *m = chat_of(r, system ? 2 : 1);
    if (!m) return no_memory("prompt", err);
    if (system) {
        m[0].role = (char *)(uintptr_t)"system";
        m[0].content = (char *)(uintptr_t)system;
    }
    m[system != NULL].role = (char *)(uintptr_t)"user";
    m[system != NULL].content = (char *)(uintptr_t)prompt;
    return MX_OK;
}

static mx_status messages_json(cli_request *r, json_t *v, mx_error *err)
{
    size_t n = json_array_size(v);
    Merx__V1__ChatMessage *m = n ? chat_of(r, n) : NULL;
    if (!n) return mx_fail(err, MX_ERR_ARG, "messages: a list of {\"role\", \"content\"} is required");
    if (!m) return no_memory("messages", err);
    for (size_t i = 0; i < n; i++) {
        json_t *one = json_array_get(v, i);
        m[i].role = (char *)(uintptr_t)json_string_value(json_object_get(one, "role"));
        m[i].content = (char *)(uintptr_t)json_string_value(json_object_get(one, "content"));
        if (!m[i].role) return mx_fail(err, MX_ERR_ARG, "messages[%zu].role is required: system, user or assistant", i);
        if (!m[i].content) return mx_fail(err, MX_ERR_ARG, "messages[%zu].content is required, and must be a text", i);
    }
    return MX_OK;
}

static mx_status ids_json(cli_request *r, json_t *v, mx_error *err)
{
    size_t n = json_array_size(v);
    Merx__V1__TokenIds *ids = mx_arena_array(&r->arena, 1, sizeof *ids);
    int32_t *list = mx_arena_array(&r->arena, n, sizeof *list);
    if (!ids || !list) return no_memory("ids", err);
    merx__v1__token_ids__init(ids);
    ids->n_ids = n;
    ids->ids = list;
    for (size_t i = 0; i < n; i++)
        if (!int32_of(json_array_get(v, i), &list[i])) return mx_fail(err, MX_ERR_ARG, "ids[%zu]: not a token id", i);
    if (!json_is_array(v)) return mx_fail(err, MX_ERR_ARG, "ids: a list of token ids is required");
    r->message.input_case = MERX__V1__GENERATE_REQUEST__INPUT_IDS;
    r->message.ids = ids;
    return MX_OK;
}

/* prompt, messages or ids: exactly one. */
static mx_status input_json(cli_request *r, const mx_config *c, const mx_app *app, json_t *row, mx_error *err)
{
    json_t *prompt = json_object_get(row, "prompt"), *messages = json_object_get(row, "messages"), *ids = json_object_get(row, "ids");
    mx_served *s;
    int given = (prompt != NULL) + (messages != NULL) + (ids != NULL);
    if (given != 1) return mx_fail(err, MX_ERR_ARG, "prompt: %s of prompt, messages and ids is required", given ? "only one" : "one");
    if (messages) return messages_json(r, messages, err);
    if (ids) return ids_json(r, ids, err);
    if (!json_is_string(prompt)) return mx_fail(err, MX_ERR_ARG, "prompt: must be a text");
    MX_TRY(mx_find_model(&s, app, r->message.model, err));
    bool chat = mx_config_bool(c, "chat") && mx_tokenizer_chat_family(mx_generator_tokenizer(s->generator)) != MX_CHAT_NONE;
    mx_registry_release(s);
    return cli_request_prompt(r, c, json_string_value(prompt), chat, err);
}

mx_status cli_request_row(cli_request *r, const mx_config *c, const Merx__V1__Sampling *defaults, const mx_app *app,
                          json_t *row, mx_error *err)
{
    static const char *const others[] = {"id", "prompt", "messages", "ids", "model"};
    const char *key;
    json_t *v;
    r->sampling = *defaults;
    json_object_foreach(row, key, v) {
        size_t k = 0;
        while (k < sizeof others / sizeof *others && strcmp(key, others[k]) != 0) k++;
        if (k < sizeof others / sizeof *others) continue;
        field *f = protobuf_c_message_descriptor_get_field_by_name(&merx__v1__sampling__descriptor, key);
        if (!f) return mx_fail(err, MX_ERR_ARG, "%.60s: no such field; a row has id, model, prompt, messages or ids, and the fields of Sampling", key);
        if (!json_is_null(v)) MX_TRY(field_json(&r->sampling, f, v, &r->arena, err));
    }
    json_t *model = json_object_get(row, "model");
    if (model && !json_is_string(model)) return mx_fail(err, MX_ERR_ARG, "model: must be the name of a model");
    if (model) r->message.model = (char *)(uintptr_t)json_string_value(model);
    else if (mx_config_string(c, "adapter-name")) r->message.model = (char *)(uintptr_t)mx_config_string(c, "adapter-name");
    return input_json(r, c, app, row, err);
}

void cli_error_field(const char *text, char *out, size_t size)
{
    if (!strncmp(text, "sampling.", 9)) text += 9;
    if (!strncmp(text, "chat.", 5)) text += 5;
    size_t n = strspn(text, "abcdefghijklmnopqrstuvwxyz_0123456789.[]");
    bool named = n && n < size && (text[n] == ':' || !strncmp(text + n, " is ", 4) || !strncmp(text + n, " has ", 5));
    snprintf(out, size, "%.*s", named ? (int)n : 3, named ? text : "row");
}

/* ---- a prompt from the command line ------------------------------------------------------------------ */

static mx_status read_all(FILE *in, char **out, size_t *len, mx_error *err)
{
    size_t room = 1 << 16, n = 0;
    char *text = malloc(room);
    while (text) {
        n += fread(text + n, 1, room - n - 1, in);
        if (n < room - 1) break;
        char *more = room < PROMPT_MOST ? realloc(text, room *= 2) : NULL;
        if (!more) free(text);
        text = more;
    }
    *out = text;
    *len = n;
    if (!text) return mx_fail(err, MX_ERR_NO_MEMORY, "prompt: standard input is too long");
    text[n] = 0;
    return ferror(in) ? mx_fail(err, MX_ERR_IO, "prompt: standard input: %s", strerror(errno)) : MX_OK;
}

mx_status cli_read_prompt(const char *arg, char **out, mx_error *err)
{
    size_t len, bad = 0;
    *out = NULL;
    if (strcmp(arg, "-") != 0) {
        *out = strdup(arg);
        if (!*out) return no_memory("prompt", err);
        len = strlen(arg);
    } else {
        mx_status st = read_all(stdin, out, &len, err);
        if (st) return st;
        if (len && (*out)[len - 1] == '\n') (*out)[--len] = 0;
    }
    const char *nul = memchr(*out, 0, len);
    if (nul) return mx_fail(err, MX_ERR_ARG, "prompt: a NUL character at byte %zu", (size_t)(nul - *out));
    if (!mx_utf8_valid(*out, len, &bad)) return mx_fail(err, MX_ERR_ARG, "prompt: not valid UTF-8 at byte %zu", bad);
    return MX_OK;
}
