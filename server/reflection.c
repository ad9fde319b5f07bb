/* reflection.c - grpc.reflection v1 and v1alpha (the same bytes under two names).
 *
 * The answers come from the descriptor set that protoc wrote when the program was
 * built.  It is some 20 kB: a walk over it takes microseconds, so there is no index
 * to build and none to keep. */
#include "server/services.h"

#include "proto/reflection.pb-c.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const unsigned char mx_descriptors[]; /* FileDescriptorSet */
extern const size_t mx_descriptors_size;

typedef Grpc__Reflection__V1__ServerReflectionRequest request_message;
typedef Grpc__Reflection__V1__ServerReflectionResponse reply_message;
#define CASE(x)  GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_##x
#define REPLY(x) GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_##x

/* Field numbers of google/protobuf/descriptor.proto. */
enum {
    SET_FILE = 1,
    FILE_NAME = 1,
    FILE_PACKAGE = 2,
    FILE_MESSAGE = 4,
    FILE_ENUM = 5,
    FILE_SERVICE = 6,
    ANY_NAME = 1,
    MESSAGE_FIELD = 2,
    MESSAGE_NESTED = 3,
    MESSAGE_ENUM = 4,
    SERVICE_METHOD = 2
};

typedef struct span {
    const uint8_t *data;
    size_t len;
} span;

static bool same(span s, const char *text, size_t n)
{
    return s.len == n && memcmp(s.data, text, n) == 0;
}

static span string_field(span in, uint32_t id)
{
    mx_wire w = {.at = in.data, .end = in.data + in.len};
    mx_wire_field f;
    while (mx_wire_next(&w, &f))
        if (f.id == id && f.type == 2) return (span){f.data, f.len};
    return (span){(const uint8_t *)"", 0};
}

/* The n-th file; false when there are fewer. */
static bool file_at(int n, span *file)
{
    mx_wire w = {.at = mx_descriptors, .end = mx_descriptors + mx_descriptors_size};
    mx_wire_field f;
    while (mx_wire_next(&w, &f)) {
        if (f.id != SET_FILE || n--) continue;
        *file = (span){f.data, f.len};
        return true;
    }
    return false;
}

/* name[n] is what is left of the wanted symbol; strip this element's name from it.
 * False: it is not in here.  *n becomes 0 when the name is the element itself. */
static bool strip(span element, const char **name, size_t *n)
{
    span own = string_field(element, ANY_NAME);
    if (*n < own.len || memcmp(*name, own.data, own.len) != 0) return false;
    if (*n > own.len && (*name)[own.len] != '.') return false;
    size_t used = *n > own.len ? own.len + 1 : own.len;
    *name += used;
    *n -= used;
    return true;
}

static bool has_child(span element, uint32_t id, const char *name, size_t n)
{
    mx_wire w = {.at = element.data, .end = element.data + element.len};
    mx_wire_field f;
    while (mx_wire_next(&w, &f))
        if (f.id == id && f.type == 2 && same(string_field((span){f.data, f.len}, ANY_NAME), name, n)) return true;
    return false;
}

static bool message_has(span message, const char *name, size_t n, bool types_only)
{
    if (!strip(message, &name, &n)) return false;
    if (!n) return true;
    if (!types_only && has_child(message, MESSAGE_FIELD, name, n)) return true;
    if (!types_only && has_child(message, MESSAGE_ENUM, name, n)) return true;
    mx_wire w = {.at = message.data, .end = message.data + message.len};
    mx_wire_field f;
    while (mx_wire_next(&w, &f)) /* as deep as our own files nest */
        if (f.id == MESSAGE_NESTED && f.type == 2 && message_has((span){f.data, f.len}, name, n, types_only))
            return true;
    return false;
}

/* types_only: messages count, services, enums and fields do not. */
static bool file_has(span file, const char *name, bool types_only)
{
    span package = string_field(file, FILE_PACKAGE);
    size_t n = strlen(name);
    if (n <= package.len + 1 || memcmp(name, package.data, package.len) != 0 || name[package.len] != '.')
        return false;
    name += package.len + 1;
    n -= package.len + 1;
    mx_wire w = {.at = file.data, .end = file.data + file.len};
    mx_wire_field f;
    while (mx_wire_next(&w, &f)) {
        span element = {f.data, f.len};
        if (f.type != 2) continue;
        if (f.id == FILE_MESSAGE && message_has(element, name, n, types_only)) return true;
        if (types_only) continue;
        const char *rest = name;
        size_t left = n;
        if (f.id == FILE_ENUM && same(string_field(element, ANY_NAME), name, n)) return true;
        if (f.id == FILE_SERVICE && strip(element, &rest, &left) &&
            (!left || has_child(element, SERVICE_METHOD, rest, left)))
            return true;
    }
    return false;
}

static bool find_symbol(const char *name, bool types_only, span *file)
{
    for (int i = 0; file_at(i, file); i++)
        if (file_has(*file, name, types_only)) return true;
    return false;
}

/* The i-th service's full name, in the arena; NULL: there are fewer. */
static char *service_at(mx_arena *a, int i)
{
    span file;
    for (int k = 0; file_at(k, &file); k++) {
        span package = string_field(file, FILE_PACKAGE);
        mx_wire w = {.at = file.data, .end = file.data + file.len};
        mx_wire_field f;
        while (mx_wire_next(&w, &f)) {
            if (f.id != FILE_SERVICE || f.type != 2 || i--) continue;
            span own = string_field((span){f.data, f.len}, ANY_NAME);
            size_t size = package.len + own.len + 2;
            char *name = mx_arena_alloc(a, size);
            if (name)
                snprintf(name, size, "%.*s.%.*s", (int)package.len, (const char *)package.data, (int)own.len,
                         (const char *)own.data);
            return name;
        }
    }
    return NULL;
}

bool mx_service_known(const char *name)
{
    mx_arena a;
    bool known = false;
    mx_arena_open(&a, 1 << 16);
    for (int i = 0; !known; i++) {
        char *s = service_at(&a, i);
        if (!s) break;
        known = strcmp(s, name) == 0;
    }
    mx_arena_close(&a);
    return known;
}

/* ---- the five questions ------------------------------------------------------------- */

static void answer_error(mx_arena *a, reply_message *r, int code, const char *what, const char *name)
{
    Grpc__Reflection__V1__ErrorResponse *e = mx_arena_array(a, 1, sizeof *e);
    char *text = mx_arena_alloc(a, 200);
    if (!e || !text) return;
    grpc__reflection__v1__error_response__init(e);
    int n = snprintf(text, 200, "%s: %.120s", what, name);
    /* A name cut in the middle of a character would not be valid UTF-8. */
    for (; n > 0 && !mx_utf8_valid(text, (size_t)n, NULL); n--) text[n - 1] = 0;
    e->error_code = code;
    e->error_message = text;
    r->message_response_case = REPLY(ERROR_RESPONSE);
    r->error_response = e;
}

static void answer_file(mx_arena *a, reply_message *r, span file)
{
    Grpc__Reflection__V1__FileDescriptorResponse *f = mx_arena_array(a, 1, sizeof *f);
    ProtobufCBinaryData *bytes = mx_arena_array(a, 1, sizeof *bytes);
    if (!f || !bytes) return;
    grpc__reflection__v1__file_descriptor_response__init(f);
    *bytes = (ProtobufCBinaryData){.data = (uint8_t *)(uintptr_t)file.data, .len = file.len};
    f->n_file_descriptor_proto = 1; /* our files import nothing */
    f->file_descriptor_proto = bytes;
    r->message_response_case = REPLY(FILE_DESCRIPTOR_RESPONSE);
    r->file_descriptor_response = f;
}

static void answer_services(mx_arena *a, reply_message *r)
{
    enum { MOST = 32 };
    Grpc__Reflection__V1__ListServiceResponse *l = mx_arena_array(a, 1, sizeof *l);
    Grpc__Reflection__V1__ServiceResponse *s = mx_arena_array(a, MOST, sizeof *s);
    Grpc__Reflection__V1__ServiceResponse **list = mx_arena_array(a, MOST, sizeof *list);
    if (!l || !s || !list) return;
    grpc__reflection__v1__list_service_response__init(l);
    l->service = list;
    for (char *name; l->n_service < MOST && (name = service_at(a, (int)l->n_service)); l->n_service++) {
        grpc__reflection__v1__service_response__init(&s[l->n_service]);
        s[l->n_service].name = name;
        list[l->n_service] = &s[l->n_service];
    }
    r->message_response_case = REPLY(LIST_SERVICES_RESPONSE);
    r->list_services_response = l;
}

static void answer_extensions(mx_arena *a, reply_message *r, char *type)
{
    Grpc__Reflection__V1__ExtensionNumberResponse *e = mx_arena_array(a, 1, sizeof *e);
    if (!e) return;
    grpc__reflection__v1__extension_number_response__init(e);
    e->base_type_name = type;
    r->message_response_case = REPLY(ALL_EXTENSION_NUMBERS_RESPONSE);
    r->all_extension_numbers_response = e;
}

static void answer(mx_arena *a, request_message *q, reply_message *r)
{
    span file;
    switch ((int)q->message_request_case) {
    case CASE(FILE_BY_FILENAME):
        for (int i = 0; file_at(i, &file); i++) {
            if (!same(string_field(file, FILE_NAME), q->file_by_filename, strlen(q->file_by_filename))) continue;
            answer_file(a, r, file);
            return;
        }
        answer_error(a, r, 5, "no such file", q->file_by_filename);
        return;
    case CASE(FILE_CONTAINING_SYMBOL):
        if (find_symbol(q->file_containing_symbol, false, &file))
            answer_file(a, r, file);
        else
            answer_error(a, r, 5, "no such symbol", q->file_containing_symbol);
        return;
    case CASE(FILE_CONTAINING_EXTENSION):
        answer_error(a, r, 5, "no such extension of", q->file_containing_extension->containing_type);
        return;
    case CASE(ALL_EXTENSION_NUMBERS_OF_TYPE):
        if (find_symbol(q->all_extension_numbers_of_type, true, &file))
            answer_extensions(a, r, q->all_extension_numbers_of_type);
        else
            answer_error(a, r, 5, "no such message", q->all_extension_numbers_of_type);
        return;
    case CASE(LIST_SERVICES): answer_services(a, r); return;
    default: answer_error(a, r, 3, "message_request", "one of its fields is required");
    }
}

/* ---- the call --------------------------------------------------------------------------- */

static void reflection_message(mx_call *call, void *user, const uint8_t *msg, size_t len, mx_arena *scratch)
{
    (void)user;
    if (!msg) {
        mx_call_finish(call, MX_OK, NULL);
        return;
    }
    mx_error err = {.code = MX_OK};
    ProtobufCMessage *m;
    mx_status st =
        mx_message_decode(scratch, &grpc__reflection__v1__server_reflection_request__descriptor, msg, len, &m, &err);
    if (st) {
        mx_call_finish(call, st, err.text);
        return;
    }
    reply_message r = GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__INIT;
    r.original_request = (request_message *)m;
    r.valid_host = r.original_request->host;
    answer(scratch, r.original_request, &r);
    if (r.message_response_case == REPLY(_NOT_SET) || !mx_call_send(call, &r.base, false))
        mx_call_finish(call, MX_ERR_NO_MEMORY, "no memory for the answer");
}

static void reflection_pump(mx_call *call, void *user, mx_arena *scratch)
{
    (void)scratch;
    if (*(bool *)user) mx_call_finish(call, MX_ERR_CANCELLED, "cancelled");
}

static void reflection_cancelled(mx_call *call, void *user)
{
    *(bool *)user = true;
    mx_call_wake(call);
}

MX_METHOD(mx_reflection_begin)
{
    static const mx_call_handler handler = {
        .pump = reflection_pump, .message = reflection_message, .cancelled = reflection_cancelled, .closed = free};
    (void)app, (void)msg, (void)len, (void)scratch;
    bool *cancelled = calloc(1, sizeof *cancelled);
    if (!cancelled) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory for the call");
    mx_call_attach(call, &handler, cancelled);
    return MX_OK;
}
