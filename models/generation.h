/* generation.h - inside of the generator: models/generator.c (the model),
 * generation.c (a request), turn.c (one turn of the lane), seats.c (what the device
 * keeps of sequences), choose.c (from logits to tokens), banned.c (banned texts), beam.c (beam search).  Nobody else includes this. */
#ifndef MX_GENERATION_H
#define MX_GENERATION_H

#include "models/decoder.h"
#include "models/generate.h"

#define MX_MAX_TEXT_BYTES 1024         /* of a stop string or a banned text */

typedef struct gen_seq gen_seq;

/* The distinct ids of a sequence, and how often each stands in the output: for a seat to begin with. */
typedef struct gen_seen {
    int32_t *id, *count;               /* [n], in order of first sight               */
    int32_t *slot;                     /* open addressing: index into id, or -1      */
    int32_t  n, room;                  /* slot has 2 * room entries                  */
} gen_seen;

typedef struct gen_logprob { int32_t id; float logprob; } gen_logprob;   /* top-k ones lie in their own array */

struct gen_seq {                       /* one candidate, or one beam                 */
    mx_kv_seq      kv;
    int32_t       *ids;                /* prompt, then output; room for both         */
    int32_t        n_ids;
    int32_t        ahead;              /* further ids that the device has chosen and nobody has read; between turns 0 or 1 */
    uint64_t       seated;             /* the number under which it took its seat, which may have been taken from it since */
    int32_t        seat;
    int32_t        placed, last_page;  /* pages in the seat's list on the device, and the last of them; -1: it knows nothing */
    bool           active;
    mx_detokenizer detok;
    char          *text;               /* what was generated so far, prompt echo first */
    size_t         text_len, text_room, own_start;   /* own_start: where the echo ends */
    size_t         emitted;            /* bytes given to the text() callback         */
    int32_t        told;               /* output ids given to the text() callback    */
    double         logprob_sum, score;
    float         *lp;                 /* [output]     of the chosen ids             */
    int32_t       *top_id;             /* [output][k]  alternatives                  */
    float         *top_lp;
    mx_candidate   result;
};

struct mx_generation {
    mx_job         job;                /* first: mx_job * and mx_generation * are one pointer */
    mx_generator  *g;                  /* whose lane it is in: from its first turn on perhaps a replica */
    mx_scheduler  *sched;
    mx_generation *prev, *next;        /* the generator's running list, in order of arrival */
    bool           listed;
    uint64_t       arrival;            /* position in it                             */

    mx_sampling    p;                  /* own copies of everything it points to      */
    char         **stops, **banned;
    int32_t       *stop_ids, *bias_ids;
    float         *bias;
    size_t         longest_banned;
    int32_t       *banned_id, n_banned_ids;   /* tokens that hold a banned text whole   */
    bool           penalties;
    uint64_t       seed;
    int            adapter_slot;       /* of p.adapter in the decoder, held; -1: none */

    int32_t       *prompt;
    int32_t        n_prompt, limit;    /* limit: most ids of a sequence              */
    int32_t        n_seqs;             /* made so far: 1 until the prompt is in      */
    gen_seq       *seq;                /* [width]: candidates or beams               */
    int32_t        width;
    gen_seq       *best;               /* beam search: finished hypotheses, falling  */
    int32_t        n_best;
    bool           forked;             /* all candidates exist                       */

    float         *prompt_lp;          /* echo with logprobs: [n_prompt], [..][k]    */
    int32_t       *prompt_top_id;
    float         *prompt_top_lp;
    bool           scored;             /* prompt logprobs are complete               */

    mx_generation_calls calls;
    uint64_t       first_token_ns, last_token_ns, prefill_done_ns;
    int32_t        output_tokens, cached_tokens, preemptions;
    bool           matched;            /* the first look into the prefix index was made */
    mx_error       failed;             /* what ends it at its next turn              */
};

/* A row of logits that the turn makes: whose, and what for. */
typedef struct gen_want {
    mx_generation *gen;
    int32_t        seq;                /* which sequence                             */
    int32_t        prompt_position;    /* >= 0: only the logprob of the next prompt id */
} gen_want;

typedef struct gen_choice {
    mx_tensor      ids, every, raw, lp, top_id, top_lp;      /* every: all rows, to copy logits by    */
    const mx_seats *seats;
    const mx_sample_row *row;
    mx_logit_lists lists;
    int32_t        k;                  /* alternatives of a row                      */
    bool           logprobs, process;
} gen_choice;

/* A turn: what it is packed into, and, when it was issued, what its tokens are for.  Host memory, made once. */
typedef struct gen_pack {
    int32_t  *rows, *picks, *logit_rows;   /* [rows][4], [logits][4]: as mx_seat_rows() wants them */
    int32_t   max_rows, max_seqs, max_logits;
    bool     *listed;                  /* [seqs]: the whole page list goes to the device */
    gen_seq **seq;                     /* the sequences of the turn, row order; NULL: gave its pages back since */
    int32_t  *done;                    /* how many of its ids stand in the cache after the turn */
    mx_generation **owner;
    gen_want *want;
    mx_generation **order;             /* this turn's requests, oldest first         */
    mx_kv_copies copies;
    mx_adapter_span *spans;            /* rows that go through adapters              */
    int32_t   n_spans;
    int32_t   n_rows, n_seqs, n_logits, table_cols;
    /* choosing: */
    int32_t  *chosen, *bias_begin, *bias_id, *ban_begin, *ban_id;
    float    *bias, *lp, *top_lp;
    int32_t  *top_id;
    int32_t   bias_room, ban_room;
    int32_t   n_bias, n_ban;
    /* issued: */
    gen_choice choice;
    unsigned  mark;
    bool      issued;
    bool      left;                    /* its sequences are ahead: it is read after the next is issued */
} gen_pack;

typedef struct gen_adapters gen_adapters;

/* A place of device memory, and what the host wrote there last: the same is not sent again. */
typedef struct gen_kept {
    void  *at;
    char  *last;
    size_t n, room, most;              /* bytes: known, in last, at most             */
} gen_kept;

typedef struct gen_seats {
    mx_buffer memory;
    mx_seats  device;
    struct { uint64_t holder, turn, left; } *seat;    /* whose; of the last turn it was in, and was left out */
    uint64_t  holders, turn;
    int32_t   all[256];                /* 0, 1, 2 ... */
    gen_kept  rows, picks, wanted, every, bias_begin, bias_id, bias, ban_begin, ban_id;
    gen_seen  seen;
} gen_seats;

struct mx_generator {
    mx_generator     *of, *replicas;   /* of: NULL for the first; replicas: of the first, linked by themselves */
    bool              borrows;         /* weights, tokenizer and pieces are those of `of` */
    char              name[64], lane[96], path[512];
    uint64_t          born_ns;         /* no two have the same                       */
    bool              ready;           /* its scratch has its size                   */
    gen_adapters     *adapters;        /* shared with those that borrow              */
    mx_decoder        model;
    mx_tokenizer     *tokenizer;
    int32_t          *piece, n_pieces; /* visible tokens in order of their bytes     */
    mx_kv_cache       kv;
    mx_generator_options opt;
    mx_device        *dev;
    mx_scheduler     *sched;
    const mx_clock   *clock;
    gen_pack          pack, flying;    /* flying: issued and perhaps not read        */
    bool              ahead;           /* turns are issued before the one before is read */
    gen_seats         seats;
    mx_generation    *first, *last;    /* running: they hold, or have held, pages    */
    uint64_t          arrivals;
    size_t            scratch_bytes;
    double            load_seconds;
    atomic_ullong     prefix_hit_tokens, prompt_tokens, output_tokens, preemptions, turns, turns_ahead, thrown_away;
    struct {
        mx_metric *prompt_tokens, *output_tokens, *preemptions, *prefix_hits, *running, *waiting, *kv_usage;
        mx_metric *turns, *turns_ahead, *thrown_away;
        mx_metric *ttft, *itl, *queue, *e2e, *success;
    } metric;
};

/* adapters.c: beside mx_generator_adapter_*. */
mx_status gen_adapters_open(gen_adapters **out, mx_error *err);
void      gen_adapters_close(gen_adapters *a);
size_t    gen_adapters_bytes(const mx_generator *g);
/* A request holds adapter `id` until mx_generator_adapter_release.  MX_ERR_ARG: there is none. */
mx_status gen_adapter_use(mx_generator *g, int32_t id, int *slot, mx_error *err);

double gen_kv_usage(const mx_generator *g);        /* of all its replicas, 0 to 1 */

/* turn.c: the lane's run(). */
void gen_run(void *generator, mx_stream *s, mx_job **jobs, int n);
/* Read the turn that is still out; the lane's settle(). */
void gen_settle(void *generator, mx_stream *s);
/* r goes: nothing of it is wanted any more. */
void gen_forget(mx_generation *r);
/* Rows a request still needs before every sequence can choose a token. */
void gen_plan_rows(mx_generation *r);
/* Give back every page (preemption, end, cancel). */
void gen_release_pages(mx_generation *r);

/* choose.c: tokens for the rows of g->pack.want from logits[n_logits,V].  All of it is known before the
 * logits are, so that a turn waits for its device once: begin() uploads, run() is the ops (it may stand in a
 * section), and when the stream was waited for after download(), take() gives the tokens to their requests. */
mx_status gen_choice_prepare(mx_generator *g, mx_error *err);               /* picks and lists, before the turn begins */
void      gen_choice_begin(mx_generator *g, mx_stream *s, const mx_decoder_turn *t, gen_choice *c);
void      gen_choice_run(mx_stream *s, mx_tensor logits, const gen_choice *c);
void      gen_choice_download(mx_generator *g, mx_stream *s, const gen_choice *c);
void      gen_choice_take(mx_generator *g, gen_pack *p);

/* seats.c */
size_t    gen_seats_bytes(const mx_generator *g);                           /* device memory; 0: it overflows */
mx_status gen_seats_open(mx_generator *g, mx_error *err);
void      gen_seats_close(mx_generator *g);
/* q has a seat in the turn that is being packed; false: none is free, and it waits. */
bool      gen_seat_take(mx_generator *g, gen_seq *q);
/* What the device does not know of the pack's sequences goes there. */
mx_status gen_seats_place(mx_generator *g, mx_stream *s, mx_error *err);
void      gen_seats_forget(mx_generator *g);                                /* nobody knows what it has: all is sent again */
/* host[0..n) lies in k from now on. */
void      gen_keep(mx_stream *s, gen_kept *k, const void *host, size_t n);

/* generation.c: sequence `index` of r got the id; updates text, stop rules and finish, tells the caller. */
mx_status gen_accept(mx_generation *r, int index, int32_t id, mx_error *err);
mx_status gen_seq_open(mx_generation *r, gen_seq *q, mx_error *err);        /* holds the prompt */
mx_status gen_seq_copy(mx_generation *r, gen_seq *to, const gen_seq *from, mx_error *err);   /* pages shared */
void      gen_seq_close(mx_generation *r, gen_seq *q);
bool      gen_is_end(const mx_generation *r, int32_t id);                   /* ends the text */
mx_status gen_finish_text(mx_generation *r, int index, gen_seq *q, mx_finish why, mx_error *err);

bool      gen_ban(gen_pack *p, int32_t id);                                 /* add to the row's bans; false: no memory */

/* banned.c */
mx_status gen_pieces_sort(mx_generator *g, mx_error *err);                  /* once a model */
mx_status gen_banned_open(mx_generation *r, mx_error *err);                 /* once a request */
bool      gen_ban_texts(gen_pack *p, const mx_generation *r, const gen_seq *q);   /* false: no memory */

/* beam.c */
/* Continuations that a step looks at: with so many, `beams` are left when every end token stands in front. */
int32_t   gen_beam_width(const mx_decoder_config *c, const mx_sampling *p);
mx_status gen_beam_step(mx_generation *r, const int32_t *top_id, const float *top_lp, int32_t k, mx_error *err);

#endif
