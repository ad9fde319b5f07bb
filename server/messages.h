/* messages.h - protobuf messages of the wire: bytes to structs and back.
 *
 * Decoding happens in an arena with a byte budget: protobuf-c frees nothing one
 * by one, and a small message that would unfold into a large one (a message of
 * empty sub-messages grows 64 times) stops at the budget.  What protobuf-c does
 * not check is checked here first, on the wire bytes and with the descriptor:
 * UTF-8 and NUL bytes of strings, nesting, lengths. */
#ifndef MX_MESSAGES_H
#define MX_MESSAGES_H

#include "runtime/status.h"

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- memory of one message ---------------------------------------------------- */

typedef struct mx_arena_chunk mx_arena_chunk;

typedef struct mx_arena {
    mx_arena_chunk *chunks;     /* newest first; the oldest survives a reset        */
    size_t used, room;          /* of the newest chunk                              */
    size_t total;               /* bytes handed out since the reset                 */
    size_t budget;              /* never more than this                             */
    bool   exhausted;           /* the budget, or memory, was not enough            */
} mx_arena;

void  mx_arena_open(mx_arena *a, size_t budget);       /* allocates nothing          */
void  mx_arena_close(mx_arena *a);
void  mx_arena_reset(mx_arena *a);                      /* everything handed out is gone */
void *mx_arena_alloc(mx_arena *a, size_t size);         /* 16-byte aligned; NULL sets exhausted */
void *mx_arena_array(mx_arena *a, size_t n, size_t size);   /* zeroed; NULL on overflow too */

/* ---- messages ------------------------------------------------------------------- */

/* Decode msg[len] into the arena.  Errors: MX_ERR_ARG (malformed, with the byte;
 * a string that is not UTF-8 or holds NUL, with the field's path, such as
 * "sampling.stop[2]"); MX_ERR_NO_MEMORY (the budget). */
mx_status mx_message_decode(mx_arena *a, const ProtobufCMessageDescriptor *type, const uint8_t *msg, size_t len,
                            ProtobufCMessage **out, mx_error *err);

/* What decoding a message of this type reads beside its bytes, asked for into the caches: a call that comes alone finds
 * nothing there, and pays for each piece in turn otherwise. */
void mx_message_ahead(const ProtobufCMessageDescriptor *type);

/* Bytes that are not UTF-8 become '?': error texts may quote anything, cut anywhere. */
void mx_text_clean(char *text);

/* ---- google.rpc.Status with RetryInfo -------------------------------------------- */

/* The value of the trailer "grpc-status-details-bin".  Writes at most size
 * bytes; returns the bytes needed, 0 when text is too long to be told. */
size_t mx_retry_encode(uint8_t *out, size_t size, int code, const char *text, uint32_t retry_ms);
/* The retry delay in it; false when there is none. */
bool   mx_retry_decode(const uint8_t *in, size_t len, uint32_t *retry_ms);

/* ---- wire writing, round messages that are packed already ------------------------- */

size_t mx_wire_put(uint8_t *out, uint64_t v);          /* a varint, up to 10 bytes; returns how many */

/* ---- wire reading, for reflection too -------------------------------------------- */

typedef struct mx_wire {            /* a reader; bad is sticky */
    const uint8_t *at, *end;
    bool bad;
} mx_wire;
typedef struct mx_wire_field {
    uint32_t id, type;              /* type: 0 varint, 1 fixed64, 2 bytes, 5 fixed32 */
    uint64_t value;                 /* types 0, 1, 5                                 */
    const uint8_t *data;            /* type 2                                        */
    size_t   len;
} mx_wire_field;
bool mx_wire_next(mx_wire *w, mx_wire_field *f);        /* false: the end, or bad    */

#endif
