/* loadgen.h - load on a server, and what came of it.
 *
 * OPEN LOOP: requests leave at times that were drawn before (Poisson, even, or a trace),
 * whatever the server does; all latencies count from those times, so that a server
 * which stalls cannot hide the requests that would have met the stall (coordinated
 * omission; Tene, "How not to measure latency").  CLOSED LOOP (rate 0): so many
 * requests are always under way, and the next one leaves when one ends; that measures
 * throughput, and its latencies say little.
 *
 * Latencies go into histograms of 1/64 relative width (as HdrHistogram), one for each
 * kind of request and each connection, without locks.  All chance is Philox or
 * splitmix64 of the seed: the same settings give the same requests at the same times. */
#ifndef MX_LOADGEN_H
#define MX_LOADGEN_H

#include "server/rpc.h"

#include <stdio.h>

typedef enum mx_load_kind { MX_LOAD_GENERATE, MX_LOAD_EMBED, MX_LOAD_QUOTE, MX_LOAD_ECHO, MX_LOAD_KINDS } mx_load_kind;
const char *mx_load_kind_name(int kind);            /* "generate", "embed", "quote", "echo" */
int         mx_load_kind_find(const char *name);    /* -1: none */

typedef struct mx_load_options {
    const char *server, *model, *sku, *channel, *trace;
    mx_client_options client;
    double   share[MX_LOAD_KINDS];  /* of the requests; echo is the server's Health.Check        */
    double   rate;                  /* requests a second; 0: closed loop                         */
    bool     even;                  /* arrivals at equal distances, not Poisson's                */
    int64_t  requests;              /* in all; 0: until the time is over                         */
    double   seconds;               /* 0: until the requests are done                            */
    int32_t  concurrency;           /* closed loop: under way at once; open: at most (0: no limit) */
    int32_t  connections, warmups, input_words, output_tokens;
    uint32_t timeout_ms;
    uint64_t seed;
    double   slo_ttft, slo_tpot, slo_e2e;    /* seconds; 0: not asked for                        */
    void   (*progress)(void *user, double part, int64_t done, int64_t failed, double seconds);     /* may be NULL */
    bool   (*stop)(void *user);              /* asked ten times a second; may be NULL            */
    void    *user;
} mx_load_options;

enum { MX_HIST_SUB = 64, MX_HIST_BUCKETS = 64 * MX_HIST_SUB };
typedef struct mx_hist {
    uint64_t n, most;               /* nanoseconds                                               */
    double   sum;
    uint64_t bucket[MX_HIST_BUCKETS];
} mx_hist;
void     mx_hist_add(mx_hist *h, uint64_t ns);
void     mx_hist_merge(mx_hist *to, const mx_hist *from);
uint64_t mx_hist_quantile(const mx_hist *h, double q);       /* the middle of the bucket; 0 when empty */

enum { MX_LOAD_SLICES = 3600 };     /* of a second each; what comes later counts to the last     */
typedef struct mx_load_slice { uint64_t done, failed, tokens, most_ns; double sum_ns; } mx_load_slice;

typedef struct mx_load_figures {    /* of one kind                                               */
    uint64_t sent, done, failed, good, input_tokens, output_tokens;
    uint64_t codes[MX_RPC_CODE_COUNT];
    mx_hist  ttft, tpot, itl, e2e;
} mx_load_figures;

typedef struct mx_load_result {
    mx_load_options options;
    double   seconds;               /* from the first request's time to the last answer          */
    uint64_t peak;                  /* most under way at once                                    */
    mx_hist  late;                  /* how long after its time a request left: this machine's own lateness */
    mx_load_figures kind[MX_LOAD_KINDS];
    int      n_slices;
    mx_load_slice slice[MX_LOAD_SLICES];
} mx_load_result;

/* Blocks until all is over.  *out is malloc'ed.  Errors: MX_ERR_ARG, MX_ERR_IO (the
 * trace), MX_ERR_FORMAT (its line), MX_ERR_UNAVAILABLE (the first warm-up failed: why), MX_ERR_NO_MEMORY. */
mx_status mx_load_run(mx_load_result **out, const mx_load_options *o, mx_error *err);

/* The block that `vllm bench serve` prints; JSON; a page of HTML with its pictures inside. */
void      mx_load_print(FILE *out, const mx_load_result *r);
mx_status mx_load_json(FILE *out, const mx_load_result *r, mx_error *err);
void      mx_load_html(FILE *out, const mx_load_result *r);

#endif
