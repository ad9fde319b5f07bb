/* messages.c - the arena, the wire reader, the check before decoding. */
#include "server/messages.h"

#include "runtime/slab.h"

#include "models/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- arena ---------------------------------------------------------------------- */

struct mx_arena_chunk {
    mx_arena_chunk *older;
    size_t room;
    _Alignas(16) unsigned char bytes[];
};

enum { FIRST_CHUNK = 16 << 10, MOST_CHUNK = 1 << 20 };

void mx_arena_open(mx_arena *a, size_t budget)
{
    *a = (mx_arena){.budget = budget};
}

/* Only the oldest chunk, the small one, is kept: one large request must not
 * leave every RPC thread holding its size for ever. */
static void release(mx_arena *a, bool keep_first)
{
    mx_arena_chunk *c = a->chunks;
    while (c && (c->older || !keep_first)) {
        mx_arena_chunk *older = c->older;
        mx_slab_free(c);
        c = older;
    }
    a->chunks = c;
    a->room = c ? c->room : 0;
    a->used = a->total = 0;
    a->exhausted = false;
}

void mx_arena_reset(mx_arena *a)
{
    release(a, true);
}

void mx_arena_close(mx_arena *a)
{
    release(a, false);
}

void *mx_arena_alloc(mx_arena *a, size_t size)
{
    if (size > a->budget || a->budget - size < a->total) goto full;
    size_t rounded = (size + 15) & ~(size_t)15;
    if (rounded < size) goto full;
    if (!a->chunks || a->room - a->used < rounded) {
        size_t room = a->chunks ? a->chunks->room * 2 : FIRST_CHUNK;
        if (room > MOST_CHUNK) room = MOST_CHUNK;
        if (room < rounded) room = rounded;
        if (room > SIZE_MAX - sizeof(mx_arena_chunk)) goto full;
        mx_arena_chunk *c = mx_slab_alloc(sizeof *c + room);
        if (!c) goto full;
        *c = (mx_arena_chunk){.older = a->chunks, .room = room};
        a->chunks = c;
        a->room = room;
        a->used = 0;
    }
    void *p = a->chunks->bytes + a->used;
    a->used += rounded;
    a->total += rounded;
    return p;
full:
    a->exhausted = true;
    return NULL;
}

void *mx_arena_array(mx_arena *a, size_t n, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes)) {
        a->exhausted = true;
        return NULL;
    }
    void *p = mx_arena_alloc(a, bytes);
    if (p) memset(p, 0, bytes);
    return p;
}

static void *arena_alloc(void *arena, size_t size)
{
    return mx_arena_alloc(arena, size);
}

static void arena_free(void *arena, void *p)
{
    (void)arena;
    (void)p;
}

/* ---- the wire ---------------------------------------------------------------------- */

static uint64_t varint(mx_wire *w)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        uint8_t b = *w->at++;
        v |= (uint64_t)(b & 0x7f) << shift;
        if (!(b & 0x80)) return v;
    }
    w->bad = true;
    return 0;
}

bool mx_wire_next(mx_wire *w, mx_wire_field *f)
{
    if (w->bad || w->at == w->end) return false;
    uint64_t tag = varint(w);
    if (w->bad || tag >> 32 || !(tag >> 3)) goto bad;
    *f = (mx_wire_field){.id = (uint32_t)(tag >> 3), .type = (uint32_t)(tag & 7)};
    size_t fixed = f->type == 1 ? 8 : f->type == 5 ? 4 : 0;
    switch (f->type) {
    case 0: f->value = varint(w); return !w->bad;
    case 1:
    case 5:
        if ((size_t)(w->end - w->at) < fixed) goto bad;
        for (size_t i = 0; i < fixed; i++) f->value |= (uint64_t)w->at[i] << (8 * i);
        w->at += fixed;
        return true;
    case 2: {
        uint64_t n = varint(w);
        if (w->bad || n > (uint64_t)(w->end - w->at)) goto bad;
        f->data = w->at;
        f->len = (size_t)n;
        w->at += n;
        return true;
    }
    default: goto bad; /* groups: no proto3 message has them */
    }
bad:
    w->bad = true;
    return false;
}

/* ---- the check before decoding ------------------------------------------------------ */

enum { MOST_DEPTH = 8, MOST_FIELDS = 64 };

/* Where the walk stands; printed only when something is wrong. */
typedef struct path {
    const struct path *up;
    const ProtobufCFieldDescriptor *field;
    uint32_t index;
} path;

static int print_path(const path *p, char *out, size_t size)
{
    int n = 0;
    if (p->up) {
        n = print_path(p->up, out, size);
        if (n > 0 && (size_t)n < size) n += snprintf(out + n, size - (size_t)n, ".");
    }
    if (n < 0 || (size_t)n >= size || !p->field) return n;
    n += snprintf(out + n, size - (size_t)n, "%s", p->field->name);
    if (p->field->label == PROTOBUF_C_LABEL_REPEATED && (size_t)n < size)
        n += snprintf(out + n, size - (size_t)n, "[%" PRIu32 "]", p->index);
    return n;
}

static mx_status check_string(const path *p, const mx_wire_field *f, mx_error *err)
{
    size_t bad = 0;
    const char *what = NULL;
    const uint8_t *nul = f->len ? memchr(f->data, 0, f->len) : NULL;
    if (!mx_utf8_valid((const char *)f->data, f->len, &bad)) {
        what = "not valid UTF-8";
    } else if (nul) {
        what = "a NUL character";
        bad = (size_t)(nul - f->data);
    }
    if (!what) return MX_OK;
    char name[200];
    print_path(p, name, sizeof name);
    return mx_fail(err, MX_ERR_ARG, "%s: %s at byte %zu", name, what, bad);
}

/* Messages of merx.v1 do not contain themselves, so the depth is the schema's. */
static mx_status check(const ProtobufCMessageDescriptor *type, const uint8_t *msg, size_t len, const uint8_t *start,
                       const path *up, int depth, mx_error *err)
{
    uint32_t seen[MOST_FIELDS] = {0};
    mx_wire w = {.at = msg, .end = msg + len};
    mx_wire_field f;
    if (depth > MOST_DEPTH) return mx_fail(err, MX_ERR_ARG, "malformed %s: nested too deeply", type->name);
    while (mx_wire_next(&w, &f)) {
        const ProtobufCFieldDescriptor *d = protobuf_c_message_descriptor_get_field(type, f.id);
        if (!d || f.type != 2) continue;
        size_t slot = (size_t)(d - type->fields);
        path here = {.up = up, .field = d, .index = slot < MOST_FIELDS ? seen[slot]++ : 0};
        if (d->type == PROTOBUF_C_TYPE_STRING) MX_TRY(check_string(&here, &f, err));
        if (d->type == PROTOBUF_C_TYPE_MESSAGE)
            MX_TRY(check(d->descriptor, f.data, f.len, start, &here, depth + 1, err));
    }
    if (w.bad)
        return mx_fail(err, MX_ERR_ARG, "malformed %s: cannot be read at byte %zu", type->name,
                       (size_t)(w.at - start));
    return MX_OK;
}

void mx_message_ahead(const ProtobufCMessageDescriptor *type)
{
    enum { LINE = 64, MOST = 2048 };
    const char *fields = (const char *)type->fields;
    size_t n = type->n_fields * sizeof *type->fields;
    __builtin_prefetch(type->field_ranges);
    for (size_t at = 0; at < n && at < MOST; at += LINE) __builtin_prefetch(fields + at);
}

mx_status mx_message_decode(mx_arena *a, const ProtobufCMessageDescriptor *type, const uint8_t *msg, size_t len,
                            ProtobufCMessage **out, mx_error *err)
{
    static const uint8_t empty[1];
    if (!msg) msg = empty; /* an empty message has no bytes to point at */
    MX_TRY(check(type, msg, len, msg, NULL, 0, err));
    ProtobufCAllocator allocator = {arena_alloc, arena_free, a};
    *out = protobuf_c_message_unpack(type, &allocator, len, msg);
    if (*out) return MX_OK;
    if (a->exhausted)
        return mx_fail(err, MX_ERR_NO_MEMORY, "the request unfolds to more than %zu bytes in memory", a->budget);
    return mx_fail(err, MX_ERR_ARG, "malformed %s: a field has the wrong wire type or length", type->name);
}

void mx_text_clean(char *text)
{
    size_t n = strlen(text), bad;
    for (char *at = text; !mx_utf8_valid(at, n - (size_t)(at - text), &bad);) {
        at += bad;
        *at++ = '?';
    }
}

/* ---- google.rpc.Status ----------------------------------------------------------------
 * Status { int32 code = 1; string message = 2; repeated Any details = 3 }
 * Any { string type_url = 1; bytes value = 2 }
 * RetryInfo { Duration retry_delay = 1 }    Duration { int64 seconds = 1; int32 nanos = 2 } */

static const char retry_url[] = "type.googleapis.com/google.rpc.RetryInfo";

size_t mx_wire_put(uint8_t *out, uint64_t v)
{
    size_t n = 0;
    for (; v >= 0x80; v >>= 7) out[n++] = (uint8_t)(v | 0x80);
    out[n++] = (uint8_t)v;
    return n;
}

static size_t put_bytes(uint8_t *out, uint32_t field, const void *data, size_t len)
{
    size_t n = mx_wire_put(out, field << 3 | 2);
    n += mx_wire_put(out + n, len);
    memcpy(out + n, data, len);
    return n + len;
}

size_t mx_retry_encode(uint8_t *out, size_t size, int code, const char *text, uint32_t retry_ms)
{
    uint8_t duration[24], info[32], any[128];
    size_t text_len = strlen(text), n = 0;
    if (code < 0 || text_len > 4096 || size < text_len + sizeof any + 32) return 0;
    duration[n++] = 1 << 3;
    n += mx_wire_put(duration + n, retry_ms / 1000);
    duration[n++] = 2 << 3;
    n += mx_wire_put(duration + n, (uint64_t)(retry_ms % 1000) * 1000000u);
    size_t info_len = put_bytes(info, 1, duration, n);
    size_t any_len = put_bytes(any, 1, retry_url, sizeof retry_url - 1);
    any_len += put_bytes(any + any_len, 2, info, info_len);
    n = 0;
    out[n++] = 1 << 3;
    n += mx_wire_put(out + n, (uint64_t)code);
    n += put_bytes(out + n, 2, text, text_len);
    n += put_bytes(out + n, 3, any, any_len);
    return n;
}

/* The first field `id` of the wanted type; false when there is none. */
static bool find_field(const uint8_t *in, size_t len, uint32_t id, uint32_t type, mx_wire_field *f)
{
    mx_wire w = {.at = in, .end = in + len};
    while (mx_wire_next(&w, f))
        if (f->id == id && f->type == type) return true;
    return false;
}

bool mx_retry_decode(const uint8_t *in, size_t len, uint32_t *retry_ms)
{
    mx_wire w = {.at = in, .end = in + len};
    mx_wire_field any, url, value, delay, part;
    while (mx_wire_next(&w, &any)) {
        if (any.id != 3 || any.type != 2) continue;
        if (!find_field(any.data, any.len, 1, 2, &url) || url.len != sizeof retry_url - 1 ||
            memcmp(url.data, retry_url, url.len) != 0)
            continue;
        if (!find_field(any.data, any.len, 2, 2, &value)) continue;
        if (!find_field(value.data, value.len, 1, 2, &delay)) continue;
        uint64_t ms = 0;
        if (find_field(delay.data, delay.len, 1, 0, &part) && part.value < UINT32_MAX / 1000) ms = part.value * 1000;
        if (find_field(delay.data, delay.len, 2, 0, &part) && part.value < 1000000000u) ms += part.value / 1000000u;
        *retry_ms = (uint32_t)ms;
        return true;
    }
    return false;
}
