/* fake_generator.c - see fake_generator.h */
#include "tests/fake_generator.h"

#include <math.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { PAGES = 1 << 20, PAGE_TOKENS = 16 };

struct mx_generator {
    char name[64], lane[96];
    mx_scheduler *scheduler;
    mx_tokenizer *tokenizer;
    mx_fake_options o;
    atomic_uint turn_us;
    atomic_int pages_used, open;
};

typedef struct voice {
    mx_candidate c;
    char *text;
    int32_t *ids;
} voice;

struct mx_generation {
    mx_job job; /* first: a job is its generation */
    mx_generator *g;
    mx_generation_calls calls;
    mx_sampling s;
    char *stop; /* the first stop string, a copy  */
    int32_t *prompt;
    int32_t n_prompt, step, max;
    int pages;
    uint64_t hash, first_ns;
    voice *voices;
};

static bool speak(mx_generation *r, int v)
{
    static const char letters[] = "etaoin shrdlu ";
    voice *c = &r->voices[v];
    uint64_t h = (r->hash + (uint64_t)v) * 0x9e3779b97f4a7c15u + (uint64_t)r->step * 0xbf58476d1ce4e5b9u;
    h ^= h >> 29;
    char letter = letters[h % (sizeof letters - 1)];
    bool stopped = r->stop && r->stop[0] == letter && !r->stop[1] && r->step >= r->s.min_tokens;
    int32_t id = (unsigned char)letter;
    c->ids[c->c.n_ids++] = id;
    size_t new_text = stopped ? 0 : 1;
    if (!stopped) c->text[c->c.text_len++] = letter;
    if (stopped) {
        c->c.finish = MX_FINISH_STOP;
        c->c.stop = r->stop;
    } else if (c->c.n_ids >= r->max) {
        c->c.finish = MX_FINISH_LENGTH;
    }
    int32_t top[MX_MAX_TOP_LOGPROBS];
    float lp[MX_MAX_TOP_LOGPROBS];
    for (int k = 0; k < r->s.logprobs; k++) {
        top[k] = (id + k) % 256;
        lp[k] = -0.5f - (float)k;
    }
    mx_token_logprob l = {.id = id, .logprob = -0.5f, .top_id = top, .top_logprob = lp, .n_top = r->s.logprobs};
    c->c.logprob_sum -= 0.5;
    if (r->calls.text)
        r->calls.text(r, v, c->text + c->c.text_len - new_text, new_text, &id, 1, &l, r->s.logprobs >= 0,
                      c->c.finish);
    return c->c.finish == MX_FINISH_NONE;
}

static void turn(mx_generation *r)
{
    if (!r->pages) {
        r->pages = (r->n_prompt + r->max * r->s.n) / PAGE_TOKENS + 1;
        atomic_fetch_add(&r->g->pages_used, r->pages);
    }
    r->job.verdict = MX_DONE;
    if (r->n_prompt == 8 && r->prompt[1] == '!') {
        mx_fail(&r->job.error, MX_ERR_DEVICE, "the fake device failed");
        return;
    }
    for (int v = 0; v < r->s.n; v++)
        if (r->voices[v].c.finish == MX_FINISH_NONE && speak(r, v)) r->job.verdict = MX_AGAIN;
    if (!r->step++) r->first_ns = mx_now_ns(&mx_clock_monotonic);
}

static void run(void *model, mx_stream *stream, mx_job **jobs, int n)
{
    mx_generator *g = model;
    (void)stream;
    uint32_t us = atomic_load(&g->turn_us);
    if (us) nanosleep(&(struct timespec){.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000}, NULL);
    for (int i = 0; i < n; i++) turn((mx_generation *)jobs[i]);
}

static void finished(mx_job *job)
{
    mx_generation *r = (mx_generation *)job;
    if (r->pages) atomic_fetch_sub(&r->g->pages_used, r->pages);
    r->pages = 0;
    r->calls.done(r, job->error.code ? &job->error : NULL);
}

mx_status mx_fake_open(mx_generator **out, const char *name, mx_scheduler *s, const mx_fake_options *o, mx_error *err)
{
    mx_generator *g = calloc(1, sizeof *g);
    if (!g) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory");
    g->o = *o;
    g->scheduler = s;
    g->tokenizer = mx_fake_tokenizer(o->chat);
    atomic_store(&g->turn_us, o->turn_us);
    snprintf(g->name, sizeof g->name, "%s", name);
    snprintf(g->lane, sizeof g->lane, "%s.generate", name);
    mx_lane_config lane = {.name = g->lane,
                           .max_jobs = o->max_jobs,
                           .max_rows = o->max_jobs,
                           .queue_limit = o->queue_limit,
                           .run = run,
                           .model = g};
    mx_status st = mx_scheduler_lane(s, &lane, err);
    if (st) {
        mx_generator_close(g);
        return st;
    }
    *out = g;
    return MX_OK;
}

void mx_fake_set_turn_us(mx_generator *g, uint32_t turn_us)
{
    atomic_store(&g->turn_us, turn_us);
}

int mx_fake_open_generations(const mx_generator *g)
{
    return atomic_load(&((mx_generator *)(uintptr_t)g)->open);
}

void mx_generator_close(mx_generator *g)
{
    if (!g) return;
    mx_tokenizer_close(g->tokenizer);
    free(g);
}

void mx_generator_gauges(mx_generator *g)
{
    (void)g; /* it has none */
}

void mx_generator_info_get(const mx_generator *g, mx_generator_info *out)
{
    *out = (mx_generator_info){.name = g->name,
                               .path = "fake",
                               .lane = g->lane,
                               .version = 1,
                               .architecture = "fake",
                               .quantization = "F32",
                               .dtype = MX_F32,
                               .parameters = 26,
                               .layers = 1,
                               .d_model = 1,
                               .vocab = 260,
                               .max_model_len = g->o.max_model_len,
                               .chat = g->o.chat ? MX_CHAT_CHATML : MX_CHAT_NONE,
                               .kv_bytes = PAGES * PAGE_TOKENS,
                               .kv_bytes_per_token = 1,
                               .kv_pages = PAGES,
                               .page_tokens = PAGE_TOKENS,
                               .kv_pages_free = PAGES - atomic_load(&((mx_generator *)(uintptr_t)g)->pages_used)};
}

const mx_tokenizer *mx_generator_tokenizer(const mx_generator *g)
{
    return g->tokenizer;
}

mx_sampling mx_sampling_defaults(void)
{
    return (mx_sampling){.temperature = 1,
                         .top_p = 1,
                         .typical_p = 1,
                         .repetition_penalty = 1,
                         .n = 1,
                         .length_penalty = 1,
                         .logprobs = -1};
}

mx_status mx_generation_open(mx_generation **out, mx_generator *g, const int32_t *prompt, int32_t n_prompt,
                             const mx_sampling *s, const mx_generation_calls *calls, uint64_t deadline_ns,
                             mx_error *err)
{
    *out = NULL;
    if (n_prompt < 1) return mx_fail(err, MX_ERR_ARG, "prompt: empty");
    if (n_prompt >= g->o.max_model_len)
        return mx_fail(err, MX_ERR_ARG, "prompt: %d tokens, the context holds %d", n_prompt, g->o.max_model_len);
    if (!(s->temperature >= 0 && s->temperature <= 100))
        return mx_fail(err, MX_ERR_ARG, "temperature: %g is not in 0..100", (double)s->temperature);
    if (s->n < 1 || s->n > MX_MAX_CANDIDATES)
        return mx_fail(err, MX_ERR_ARG, "n: %d is not in 1..%d", s->n, MX_MAX_CANDIDATES);
    if (s->logprobs > MX_MAX_TOP_LOGPROBS)
        return mx_fail(err, MX_ERR_ARG, "logprobs: %d is over %d", s->logprobs, MX_MAX_TOP_LOGPROBS);
    if (s->max_tokens < 0) return mx_fail(err, MX_ERR_ARG, "max_tokens: %d is negative", s->max_tokens);
    mx_generation *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "no memory");
    int32_t room = g->o.max_model_len - n_prompt;
    r->g = g;
    r->calls = *calls;
    r->s = *s;
    if (!s->seeded) r->s.seed = mx_now_ns(&mx_clock_monotonic);
    r->max = s->max_tokens && s->max_tokens < room ? s->max_tokens : room;
    r->stop = s->n_stops ? strdup(s->stops[0]) : NULL;
    r->prompt = malloc((size_t)n_prompt * sizeof *r->prompt);
    memcpy(r->prompt, prompt, (size_t)n_prompt * sizeof *r->prompt);
    r->n_prompt = n_prompt;
    r->hash = r->s.seed;
    for (int i = 0; i < n_prompt; i++) r->hash = r->hash * 31 + (uint64_t)prompt[i];
    r->voices = calloc((size_t)s->n, sizeof *r->voices);
    for (int v = 0; v < s->n; v++) {
        r->voices[v].text = calloc((size_t)r->max + 1, 1);
        r->voices[v].ids = calloc((size_t)r->max, sizeof(int32_t));
        r->voices[v].c.text = r->voices[v].text;
        r->voices[v].c.ids = r->voices[v].ids;
    }
    r->job.deadline_ns = deadline_ns;
    r->job.rows = 1;
    r->job.done = finished;
    atomic_fetch_add(&g->open, 1);
    *out = r;
    return MX_OK;
}

void mx_generation_close(mx_generation *r)
{
    if (!r) return;
    for (int v = 0; v < r->s.n; v++) {
        free(r->voices[v].text);
        free(r->voices[v].ids);
    }
    atomic_fetch_sub(&r->g->open, 1);
    free(r->voices);
    free(r->prompt);
    free(r->stop);
    free(r);
}

mx_status mx_generation_submit(mx_generation *r, mx_error *err)
{
    return mx_scheduler_submit(r->g->scheduler, r->g->lane, &r->job, err);
}

void mx_generation_cancel(mx_generation *r)
{
    atomic_store(&r->job.cancelled, true);
    mx_scheduler_wake(r->g->scheduler);
}

mx_job *mx_generation_job(mx_generation *g)
{
    return &g->job;
}

void *mx_generation_user(const mx_generation *r)
{
    return r->calls.user;
}

int mx_generation_count(const mx_generation *r)
{
    return r->s.n;
}

const mx_candidate *mx_generation_candidate(const mx_generation *r, int i)
{
    return &r->voices[i].c;
}

void mx_generation_stats_get(const mx_generation *r, mx_generation_stats *out)
{
    *out = (mx_generation_stats){.prompt_tokens = r->n_prompt, .seed = r->s.seed};
    for (int v = 0; v < r->s.n; v++) out->output_tokens += r->voices[v].c.n_ids;
    if (!r->job.started_ns) return;
    out->queue_ns = r->job.started_ns - r->job.queued_ns;
    if (!r->first_ns) return;
    out->prefill_ns = r->first_ns - r->job.started_ns;
    out->first_token_ns = r->first_ns - r->job.queued_ns;
    out->decode_ns = r->job.done_ns - r->first_ns;
}

/* Fakes have no adapters. */
bool mx_generator_adapter_at(const mx_generator *g, int32_t i, mx_adapter_info *out)
{
    (void)g, (void)i, (void)out;
    return false;
}

int32_t mx_generator_adapter_take(mx_generator *g, const char *name)
{
    (void)g, (void)name;
    return 0;
}

void mx_generator_adapter_release(mx_generator *g, int32_t id)
{
    (void)g, (void)id;
}
