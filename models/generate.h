/* generate.h - text generation as jobs: one request is one mx_job.
 *
 * A generator is one model ready to serve on one device: weights, tokenizer,
 * paged KV cache and a lane of the scheduler.  A generation is one request: its
 * prompt, its sampling parameters, its n candidates (which share one prefill) or
 * beams.  Each turn of the lane computes the rows it was granted and chooses a
 * token for every sequence whose rows are all in the cache.  When pages run out
 * the youngest request gives its pages back and computes them again later; its
 * text does not change by that (kernels/ops.h, the invariance rule).
 *
 * THREADS: open, validate and submit may be called from any thread; the
 * callbacks come from the device's worker thread. */
#ifndef MX_GENERATE_H
#define MX_GENERATE_H

#include "models/footprint.h"
#include "models/tokenizer.h"
#include "runtime/metrics.h"
#include "runtime/scheduler.h"

/* ---- the model --------------------------------------------------------------- */

typedef struct mx_generator mx_generator;

typedef struct mx_generator_options {
    mx_dtype dtype;               /* of the weights: MX_F32, MX_BF16, MX_I8                */
    mx_dtype kv_dtype;            /* MX_F32, MX_F16, MX_BF16                               */
    int32_t  max_model_len;       /* tokens of prompt + output; 0: what the model was trained for */
    int32_t  max_num_seqs;        /* requests running at once                              */
    int32_t  max_batched_tokens;  /* rows of one turn                                      */
    int32_t  max_queued;          /* requests waiting; beyond it MX_ERR_BUSY               */
    int32_t  page_tokens;         /* tokens of one KV page                                 */
    size_t   kv_bytes;            /* memory of the KV cache; 0: fits the two limits above, at most a quarter of memory */
    bool     prefix_caching;
    int      ahead;               /* 1: a turn is issued before the tokens of the one before are read, -1: never,
                                     0: on a GPU.  Texts do not depend on it. */
    const char *const *adapters;  /* [n_adapters] "name=folder" of PEFT's LoRA; may be NULL */
    int32_t  n_adapters;
    int32_t  version;             /* of the name, from 1 on; 0 is 1                        */
} mx_generator_options;
mx_generator_options mx_generator_defaults(void);

typedef struct mx_generator_info {
    const char *name, *path, *architecture, *lane;
    int32_t  version;
    const char *quantization;     /* how the file stores its matrices: "F32", "Q4_1"      */
    mx_dtype dtype, kv_dtype;
    int64_t  parameters;
    int32_t  layers, d_model, heads, kv_heads, vocab, max_model_len;
    mx_chat_family chat;
    size_t   weight_bytes, kv_bytes, kv_bytes_per_token, scratch_bytes;
    int32_t  kv_pages, kv_pages_free, page_tokens;   /* free: not held by a request (may hold a reusable prefix) */
    int32_t  max_concurrent;      /* texts of max_model_len that fit the KV cache          */
    int32_t  replicas;            /* devices that serve it                                 */
    double   load_seconds;
    uint64_t prefix_hit_tokens, prompt_tokens, output_tokens, preemptions;
    uint64_t turns, turns_ahead;  /* turns issued; those of them before the tokens of the one before were read */
} mx_generator_info;

/* Load path (HF folder or .gguf) to device `device` of the scheduler and add the
 * lane "<name>.generate", of a later version "<name>@<version>.generate" (info says which).
 * metrics may be NULL; versions of a name share their series.  The scheduler, or the lane, must be
 * closed before the generator.  Errors: those of checkpoint.h, tokenizer.h and
 * decoder_config.h; MX_ERR_FORMAT (missing tensor, wrong shape or dtype, by
 * name); MX_ERR_NO_MEMORY; MX_ERR_ARG (an option out of range). */
mx_status mx_generator_open(mx_generator **out, const char *name, const char *path, mx_device *devs, int device,
                            mx_scheduler *sched, mx_metrics *metrics, const mx_generator_options *opt, mx_error *err);
/* What open() will take; reads the file's header and its description, no weight.  Errors: as above. */
mx_status mx_generator_footprint(mx_footprint *out, const char *path, const mx_device *dev, const mx_generator_options *opt, mx_error *err);
/* The model on a further device as well: a lane of the same name, a KV cache of its own, the weights of g where
 * the memory is the same, else loaded again.  Requests are still made of g, and go where the scheduler sends them;
 * info() sums up.  Closed with g.  Errors: as above. */
mx_status mx_generator_replicate(mx_generator *g, mx_device *devs, int device, mx_error *err);
void      mx_generator_close(mx_generator *g);
void      mx_generator_info_get(const mx_generator *g, mx_generator_info *out);     /* any thread */
/* A trial is over: what it counted is forgotten, and its series (metrics may be NULL) begin.  No request runs. */
void      mx_generator_count(mx_generator *g, mx_metrics *metrics);
/* Its gauges (running, waiting, KV) say what is now: before metrics are read; any thread. */
void      mx_generator_gauges(mx_generator *g);
const mx_tokenizer *mx_generator_tokenizer(const mx_generator *g);

/* ---- adapters beside the base: they come and go while it serves; any thread ----------- */

typedef struct mx_adapter_info {
    char    name[64], folder[512];
    int32_t id, references, rank;        /* id: for mx_sampling.adapter                    */
    size_t  bytes;
} mx_adapter_info;
/* Those that new requests find, i from 0 on; false: there are no more. */
bool      mx_generator_adapter_at(const mx_generator *g, int32_t i, mx_adapter_info *out);
/* The number of the adapter of a name, which no other will ever have; 0: none. */
int32_t   mx_generator_adapter(const mx_generator *g, const char *name);
/* The same, held until it is released: it may be made part of a request meanwhile. */
int32_t   mx_generator_adapter_take(mx_generator *g, const char *name);
void      mx_generator_adapter_release(mx_generator *g, int32_t id);
/* Beside the model; one of that name is replaced: requests that began with it keep it to their end.
 * Errors: those of mx_adapter_open (lora.h); MX_ERR_ARG (its rank; a model on several GPUs), MX_ERR_STATE
 * (no room for more). */
mx_status mx_generator_adapter_load(mx_generator *g, const char *name, const char *folder, mx_error *err);
/* The device memory that load() will take. */
mx_status mx_generator_adapter_bytes(const mx_generator *g, const char *folder, size_t *out, mx_error *err);
bool      mx_generator_adapter_unload(mx_generator *g, const char *name);      /* false: there is none */

/* ---- a request ----------------------------------------------------------------- */

#define MX_MAX_CANDIDATES 64
#define MX_MAX_TOP_LOGPROBS 20
#define MX_MAX_STOPS 64
#define MX_MAX_BANNED 1024
#define MX_MAX_BIASES 1024

/* The processors work in the order of transformers' generate(), each on what the one
 * before it left: logit bias, repetition penalty (ids of prompt and output), presence and
 * frequency penalty (output only, as OpenAI's API defines them), no_repeat_ngram (prompt
 * and output), banned texts, end tokens before min_tokens, temperature, top_k, top_p,
 * min_p, typical_p.  Two orders differ elsewhere and give other texts: biasing after the
 * penalties, and temperature last (llama.cpp).  Greedy ignores temperature and all after
 * it.  A banned text is found in the bytes that the output would have, so that no other
 * spelling by tokens slips through (transformers forbids one spelling). */
typedef struct mx_sampling {      /* all memory stays the caller's; mx_generation_open copies it */
    float    temperature;         /* 0: greedy; 0..100                                */
    int32_t  top_k;               /* <= 0: off                                        */
    float    top_p, min_p, typical_p;                  /* 1, 0, 1: off                */
    float    repetition_penalty, presence_penalty, frequency_penalty;   /* 1, 0, 0: off */
    int32_t  no_repeat_ngram;     /* 0: off                                           */
    int32_t  n;                   /* candidates, 1..MX_MAX_CANDIDATES                 */
    int32_t  beams;               /* > 1: beam search, the n best beams are returned  */
    float    length_penalty;      /* beam search: score = logprob sum / length^this; 1 as in transformers */
    int32_t  max_tokens;          /* 0: up to the context's end                       */
    int32_t  min_tokens;          /* no end-of-text, no stop id and no stop text ends before */
    bool     ignore_eos;
    bool     seeded;              /* false: a random seed is drawn, and reported      */
    uint64_t seed;
    bool     echo;                /* the prompt's text first; with logprobs >= 0 its logprobs too */
    int32_t  logprobs;            /* -1: none; 0: of the chosen token; k: and of the k best */
    const char *const *stops;     int32_t n_stops;       /* text; not part of the output       */
    const int32_t *stop_ids;      int32_t n_stop_ids;    /* beside the model's own end tokens  */
    const char *const *banned;    int32_t n_banned;      /* text that never appears in the output */
    const int32_t *bias_ids;      const float *bias;     int32_t n_bias;   /* -100..100         */
    int32_t  adapter;             /* which of the generator's adapters; 0: the base alone     */
} mx_sampling;
mx_sampling mx_sampling_defaults(void);     /* temperature 1, everything else off, n 1 */

typedef enum mx_finish { MX_FINISH_NONE, MX_FINISH_STOP, MX_FINISH_LENGTH, MX_FINISH_CANCELLED, MX_FINISH_ERROR } mx_finish;
const char *mx_finish_name(mx_finish f);    /* "stop", "length", ... */

typedef struct mx_token_logprob {
    int32_t id;
    float   logprob;                        /* natural log, of the model's own distribution (temperature 1) */
    const int32_t *top_id;                  /* [n_top] falling */
    const float   *top_logprob;
    int32_t n_top;
} mx_token_logprob;

/* One candidate; owned by the generation, complete in done(). */
typedef struct mx_candidate {
    const char *text;                       /* valid UTF-8, NUL-terminated              */
    size_t      text_len;
    const int32_t *ids;                     /* output only, end token included          */
    int32_t     n_ids;
    mx_finish   finish;
    const char *stop;                       /* the stop string that ended it, or NULL   */
    double      logprob_sum;                /* when logprobs >= 0 or beams > 1          */
    double      score;                      /* beam search                              */
} mx_candidate;

typedef struct mx_generation mx_generation;

typedef struct mx_generation_calls {
    /* New text of candidate `index` (may be empty when only tokens are new, or when the
     * text is held back as the start of a stop string), and the tokens since the last
     * call with their logprobs (n_logprobs is 0 unless asked for).  finish is not NONE in
     * a candidate's last call.  Beam search calls once per result, at the end.  May be
     * NULL.  Pointers are valid during the call only. */
    void (*text)(mx_generation *g, int index, const char *text, size_t len, const int32_t *ids, int n_ids,
                 const mx_token_logprob *logprobs, int n_logprobs, mx_finish finish);
    /* Once, last: the generation is the caller's again; close it here or later. */
    void (*done)(mx_generation *g, const mx_error *err);
    void *user;
} mx_generation_calls;

/* Check everything and make the request.  prompt ids are copied.  Errors:
 * MX_ERR_ARG names the field, its value and its limit (NaN included; an empty
 * prompt; prompt over the context; more pages than the cache has). */
mx_status mx_generation_open(mx_generation **out, mx_generator *g, const int32_t *prompt, int32_t n_prompt,
                             const mx_sampling *sampling, const mx_generation_calls *calls, uint64_t deadline_ns, mx_error *err);
void      mx_generation_close(mx_generation *g);      /* before submit, or in or after done() */
/* As mx_scheduler_submit: on MX_OK the worker owns it until done(). */
mx_status mx_generation_submit(mx_generation *g, mx_error *err);
/* From any thread, between submit and done(): pages are free within one turn. */
void      mx_generation_cancel(mx_generation *g);

mx_job   *mx_generation_job(mx_generation *g);
void     *mx_generation_user(const mx_generation *g);
int       mx_generation_count(const mx_generation *g);              /* candidates: n */
const mx_candidate *mx_generation_candidate(const mx_generation *g, int i);

typedef struct mx_generation_stats {
    int32_t  prompt_tokens, cached_tokens, output_tokens;
    uint64_t queue_ns, prefill_ns, decode_ns, first_token_ns;   /* first_token: since submit */
    uint64_t seed;
    int32_t  preemptions;
} mx_generation_stats;
void      mx_generation_stats_get(const mx_generation *g, mx_generation_stats *out);

#endif
