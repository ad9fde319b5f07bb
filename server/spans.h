/* spans.h - calls as spans of OpenTelemetry, in a file.
 *
 * Lines of OTLP/JSON (opentelemetry-proto, ExportTraceServiceRequest; ids in hex, as its JSON mapping says), which the
 * collector's otlpjsonfile receiver reads.  A call is a span of kind SERVER from its arrival to when its answer was handed to
 * gRPC; its turn (device, or transaction), where its service tells of one, is a child span.
 *
 * THREADS: any thread puts; one of its own writes, every quarter of a second.  When it does not keep up, or the disk
 * is full, spans are dropped and counted: no call waits for it. */
#ifndef MX_SPANS_H
#define MX_SPANS_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct mx_spans mx_spans;

typedef struct mx_span {
    char     trace[33], id[17], parent[17];      /* hex; parent "": none                    */
    const char *method;                          /* "merx.v1.Pricing/Quote"; stays          */
    int      code;                               /* mx_rpc_code                             */
    uint64_t from_ns, to_ns;                     /* since 1970                              */
    uint64_t turn_from_ns, turn_to_ns;           /* 0: no turn is known                     */
    char     tenant[64], request_id[65], text[128];
} mx_span;

/* Appends to the file; share: of calls that come without a trace, 0 to 1.  Errors: MX_ERR_IO (file), MX_ERR_NO_MEMORY. */
mx_status mx_spans_open(mx_spans **out, const char *file, double share, mx_error *err);
void      mx_spans_close(mx_spans *s);           /* what was put is written first */
/* chance: a number that is unlike others; whether a call without a trace gets one. */
bool      mx_spans_wanted(const mx_spans *s, uint64_t chance);
void      mx_spans_put(mx_spans *s, const mx_span *span);
/* So far. */
uint64_t  mx_spans_written(const mx_spans *s);
uint64_t  mx_spans_dropped(const mx_spans *s);

#endif
