/* generator.c - a model made ready to serve: weights, tokenizer, cache, lane. */
#include "models/generation.h"

#include "runtime/log.h"

#include <stdio.h>
#include <stdlib.h>

mx_generator_options mx_generator_defaults(void)
{
    return (mx_generator_options){.dtype = MX_F32, .kv_dtype = MX_F32, .max_num_seqs = 64, .max_batched_tokens = 512,
                                  .max_queued = 256, .page_tokens = 16, .prefix_caching = true};
}

static mx_status check_options(const mx_generator_options *o, mx_error *err)
{
    const struct { const char *name; int64_t value, least, most; } limits[] = {
        {"max-model-len", o->max_model_len, 0, 1 << 24},     {"max-num-seqs", o->max_num_seqs, 1, 65536},
        {"max-num-batched-tokens", o->max_batched_tokens, 1, 1 << 20}, {"max-num-queued-reqs", o->max_queued, 1, 1 << 24},
        {"page-tokens", o->page_tokens, 1, 1024},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (limits[i].value < limits[i].least || limits[i].value > limits[i].most)
            return mx_fail(err, MX_ERR_ARG, "%s is %lld; it must be from %lld to %lld", limits[i].name, (long long)limits[i].value,
                           (long long)limits[i].least, (long long)limits[i].most);
    return MX_OK;
}

/* ---- the turn's host memory ------------------------------------------------------------ */

static gen_pack pack_of(const mx_generator_options *o)
{
    int32_t rows = o->max_batched_tokens, logits = o->max_num_seqs < MX_MAX_CANDIDATES ? MX_MAX_CANDIDATES : o->max_num_seqs;
    return (gen_pack){.max_rows = rows, .max_seqs = rows, .max_logits = logits > 256 ? 256 : logits};
}

static mx_status pack_open(gen_pack *p, const mx_generator *g, mx_error *err)
{
    *p = pack_of(&g->opt);
    int32_t rows = p->max_rows, logits = p->max_logits, len = g->opt.max_model_len, page = g->opt.page_tokens;
    size_t n = (size_t)rows, l = (size_t)logits, best = (1 + MX_DECODER_MAX_EOS) * 16, cols = (size_t)(len + page - 1) / (size_t)page;
    p->ids = calloc(n, sizeof *p->ids);
    p->positions = calloc(n, sizeof *p->positions);
    p->slots = calloc(n, sizeof *p->slots);
    p->at = calloc(2 * n, sizeof *p->at);
    p->pages = calloc(n * cols, sizeof *p->pages);
    p->logit_rows = calloc(l, sizeof *p->logit_rows);
    p->feed = calloc(n, sizeof *p->feed);
    p->done = calloc(n, sizeof *p->done);
    p->seq = calloc(n, sizeof *p->seq);
    p->owner = calloc(n, sizeof *p->owner);
    p->want = calloc(l, sizeof *p->want);
    p->order = calloc((size_t)g->opt.max_num_seqs, sizeof *p->order);
    p->spans = calloc(n, sizeof *p->spans);
    p->copies = (mx_kv_copies){calloc(2 * n, sizeof *p->copies.from_to), 0, rows};
    p->chosen = calloc(l, sizeof *p->chosen);
    p->list_begin = calloc(l + 1, sizeof *p->list_begin);
    p->bias_begin = calloc(l + 1, sizeof *p->bias_begin);
    p->ban_begin = calloc(l + 1, sizeof *p->ban_begin);
    p->row = calloc(l, sizeof *p->row);
    p->lp = calloc(l, sizeof *p->lp);
    p->top_id = calloc(l * best, sizeof *p->top_id);
    p->top_lp = calloc(l * best, sizeof *p->top_lp);
    bool ok = p->ids && p->feed && p->done && p->positions && p->slots && p->at && p->pages && p->logit_rows && p->seq && p->owner && p->want && p->order && p->spans &&
              p->copies.from_to && p->chosen && p->list_begin && p->bias_begin && p->ban_begin && p->row && p->lp && p->top_id && p->top_lp;
    return ok ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "host memory of a turn of %d rows", rows);
}

static void pack_close(gen_pack *p)
{
    void *all[] = {p->ids, p->feed, p->done, p->positions, p->slots, p->at, p->pages, p->logit_rows, p->seq, p->owner, p->want, p->order, p->spans,
                   p->copies.from_to, p->chosen, p->list_begin, p->bias_begin, p->ban_begin, p->row, p->lp, p->top_id, p->top_lp,
                   p->list_id, p->list_count, p->bias_id, p->bias, p->ban_id};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]);
    *p = (gen_pack){0};
}

/* ---- opening ------------------------------------------------------------------------------ */

/* The file's header and its description; g's context has its length then. */
static mx_status open_file(mx_generator *g, const char *path, mx_checkpoint **file, mx_decoder_config *config, mx_error *err)
{
    MX_TRY(mx_checkpoint_open(file, path, err));
    mx_status st = mx_checkpoint_is_gguf(*file) ? mx_decoder_config_gguf(config, *file, err) : mx_decoder_config_folder(config, path, err);
    if (!st && g->opt.max_model_len > config->max_positions)
        st = mx_fail(err, MX_ERR_ARG, "max-model-len is %d; this model was made for %d tokens", g->opt.max_model_len, config->max_positions);
    if (!st && !g->opt.max_model_len) g->opt.max_model_len = config->max_positions;
    if (st) mx_checkpoint_close(*file);
    return st;
}

static mx_status open_model(mx_generator *g, const char *path, mx_error *err)
{
    mx_checkpoint *file = NULL;
    mx_decoder_config config;
    MX_TRY(open_file(g, path, &file, &config, err));
    mx_status st = mx_checkpoint_is_gguf(file) ? mx_tokenizer_open_gguf(&g->tokenizer, file, err)
                                               : mx_tokenizer_open_folder(&g->tokenizer, path, err);
    if (st) {
        mx_checkpoint_close(file);
        return st;
    }
    return mx_decoder_open(&g->model, g->dev, file, &config, g->opt.dtype, err);      /* takes the file */
}

static mx_status open_adapters(mx_generator *g, mx_error *err)
{
    for (int32_t i = 0; i < g->opt.n_adapters; i++) {
        char name[80];
        const char *spec = g->opt.adapters[i], *eq = strchr(spec, '=');
        if (!eq || eq == spec || !eq[1] || eq - spec >= (ptrdiff_t)sizeof name)
            return mx_fail(err, MX_ERR_ARG, "lora-modules: \"%.80s\": write NAME=FOLDER", spec);
        snprintf(name, sizeof name, "%.*s", (int)(eq - spec), spec);
        if (mx_generator_adapter(g, name)) return mx_fail(err, MX_ERR_ARG, "lora-modules: \"%s\" is given twice", name);
        MX_TRY(mx_generator_adapter_load(g, name, eq + 1, err));
    }
    g->opt.adapters = NULL;              /* they were the caller's */
    return MX_OK;
}

static mx_status count_pages(const mx_generator *g, int64_t *count, mx_error *err)
{
    const mx_decoder_config *c = &g->model.config;
    int32_t page = g->opt.page_tokens;
    size_t  bytes = mx_kv_page_bytes(c->layers, page, c->kv_heads, c->head_dim, g->opt.kv_dtype);
    int64_t per_text = (g->opt.max_model_len + page - 1) / page, pages = per_text * g->opt.max_num_seqs;
    size_t  most = g->opt.kv_bytes ? g->opt.kv_bytes : g->dev->memory / 4;
    if (!bytes) return mx_fail(err, MX_ERR_ARG, "KV cache: size of a page overflows");
    if ((size_t)pages > most / bytes || g->opt.kv_bytes) pages = (int64_t)(most / bytes);
    if (pages > INT32_MAX / page) pages = INT32_MAX / page;
    if (pages < 1) return mx_fail(err, MX_ERR_ARG, "kv-cache-bytes: %zu bytes hold no page of %d tokens (%zu bytes)", most, page, bytes);
    *count = pages;
    return MX_OK;
}

static mx_status open_cache(mx_generator *g, mx_error *err)
{
    const mx_decoder_config *c = &g->model.config;
    int32_t page = g->opt.page_tokens;
    int64_t pages;
    MX_TRY(count_pages(g, &pages, err));
    return mx_kv_open(&g->kv, g->dev, c->layers, (int32_t)pages, page, c->kv_heads, c->head_dim, g->opt.kv_dtype,
                      g->opt.prefix_caching, err);
}

static void add_metrics(mx_generator *g, mx_metrics *m)
{
    if (!m) return;
    char l[160];
    mx_metrics_label(l, sizeof l, "model", g->name);
    g->metric.prompt_tokens = mx_metrics_add(m, MX_COUNTER, "merx_prompt_tokens_total", l, "Prompt tokens of requests that began.");
    g->metric.output_tokens = mx_metrics_add(m, MX_COUNTER, "merx_generation_tokens_total", l, "Tokens generated.");
    g->metric.preemptions = mx_metrics_add(m, MX_COUNTER, "merx_num_preemptions_total", l, "Requests whose KV pages were taken and computed again.");
    g->metric.prefix_hits = mx_metrics_add(m, MX_COUNTER, "merx_prefix_cache_hit_tokens_total", l, "Prompt tokens found in the KV cache.");
    g->metric.success = mx_metrics_add(m, MX_COUNTER, "merx_request_success_total", l, "Requests that finished.");
    g->metric.running = mx_metrics_add(m, MX_GAUGE, "merx_num_requests_running", l, "Requests that are being generated.");
    g->metric.waiting = mx_metrics_add(m, MX_GAUGE, "merx_num_requests_waiting", l, "Requests that wait for their first turn.");
    g->metric.kv_usage = mx_metrics_add(m, MX_GAUGE, "merx_kv_cache_usage_perc", l, "Share of KV pages held by requests, 0 to 1.");
    g->metric.ttft = mx_metrics_add(m, MX_HISTOGRAM, "merx_time_to_first_token_seconds", l, "From submit to the first token.");
    g->metric.itl = mx_metrics_add(m, MX_HISTOGRAM, "merx_inter_token_latency_seconds", l, "Between two tokens of a request.");
    g->metric.queue = mx_metrics_add(m, MX_HISTOGRAM, "merx_request_queue_time_seconds", l, "From submit to the first turn.");
    g->metric.e2e = mx_metrics_add(m, MX_HISTOGRAM, "merx_e2e_request_latency_seconds", l, "From submit to the end.");
}

static size_t turn_scratch(const mx_generator *g)
{
    const gen_pack *p = &g->pack;
    int32_t cols = (g->opt.max_model_len + g->opt.page_tokens - 1) / g->opt.page_tokens;
    size_t  forward = mx_decoder_scratch(&g->model, p->max_rows, p->max_seqs, cols, p->max_logits);
    size_t  choose = mx_stream_tensor_bytes(MX_F32, p->max_logits, g->model.config.vocab) +
                     2 * mx_stream_tensor_bytes(MX_F32, p->max_logits, (1 + MX_DECODER_MAX_EOS) * 16) +
                     14 * mx_stream_tensor_bytes(MX_I32, p->max_logits, 1);
    size_t total;
    if (g->dev->kind != MX_CPU) {        /* the lists of choosing: seen ids and counts, biases, bans */
        int32_t ids = g->opt.max_model_len < g->model.config.vocab ? g->opt.max_model_len : g->model.config.vocab;
        choose += 8 * mx_stream_tensor_bytes(MX_I32, p->max_logits, ids) +            /* in powers of two */
                  2 * mx_stream_tensor_bytes(MX_I32, p->max_logits, g->model.config.vocab) +
                  mx_stream_tensor_bytes(MX_I32, p->max_logits, sizeof(mx_sample_row) / sizeof(int32_t)) + 8 * 64 * sizeof(int32_t);
    }
    return forward && mx_add_size(forward, choose, &total) ? total : 0;
}

/* With its weights there: host memory of a turn, KV cache, lane. */
static mx_status get_ready(mx_generator *g, int device, mx_error *err)
{
    g->ahead = g->opt.ahead > 0 || (g->opt.ahead == 0 && g->dev->kind != MX_CPU);
    MX_TRY(pack_open(&g->pack, g, err));
    MX_TRY(pack_open(&g->flying, g, err));
    if (g->ahead) MX_TRY(mx_buffer_open(&g->fed, g->dev, (size_t)g->pack.max_logits * sizeof(int32_t), err));
    MX_TRY(open_cache(g, err));
    g->scratch_bytes = turn_scratch(g);
    if (!g->scratch_bytes) return mx_fail(err, MX_ERR_ARG, "model %s: scratch of a turn overflows", g->name);
    mx_lane_config lane = {.name = g->lane, .device = device, .priority = 2, .max_jobs = (uint32_t)g->opt.max_num_seqs,
                           .max_rows = (uint32_t)g->opt.max_batched_tokens, .queue_limit = (uint32_t)g->opt.max_queued,
                           .run = gen_run, .settle = g->ahead ? gen_settle : NULL, .model = g, .scratch_bytes = g->scratch_bytes};
    g->ready = true;
    return mx_scheduler_lane(g->sched, &lane, err);
}

/* Of the tables beside the cache and of a turn, and of the tokenizer: about. */
static size_t host_bytes(const mx_generator *g, int64_t pages)
{
    enum { PAGE = 64, ROW = 256, TOKEN = 300 };
    size_t cols = ((size_t)g->opt.max_model_len + (size_t)g->opt.page_tokens - 1) / (size_t)g->opt.page_tokens;
    size_t turn = (size_t)g->pack.max_rows * (4 * cols + ROW) + (size_t)g->pack.max_logits * (1 + MX_DECODER_MAX_EOS) * 16 * 8;
    return turn + (size_t)pages * ((size_t)g->opt.page_tokens * 4 + PAGE) + (size_t)g->model.config.vocab * TOKEN;
}

static mx_status count_adapters(const mx_generator *g, size_t *bytes, mx_error *err)
{
    for (int32_t i = 0; i < g->opt.n_adapters; i++) {
        const char *eq = strchr(g->opt.adapters[i], '=');
        size_t n = 0;
        if (eq) MX_TRY(mx_adapter_bytes(&n, g->dev, &g->model.config, eq + 1, err));
        *bytes += n;
    }
    return MX_OK;
}

mx_status mx_generator_footprint(mx_footprint *out, const char *path, const mx_device *dev, const mx_generator_options *opt, mx_error *err)
{
    mx_checkpoint *file = NULL;
    int64_t pages;
    mx_status st;
    *out = (mx_footprint){0};
    MX_TRY(check_options(opt, err));
    mx_generator *g = calloc(1, sizeof *g);          /* only its measures count */
    if (!g) return mx_fail(err, MX_ERR_NO_MEMORY, "model %s", path);
    g->opt = *opt;
    g->dev = (mx_device *)(uintptr_t)dev;
    MX_TRY_GOTO(st, open_file(g, path, &file, &g->model.config, err), done);
    if (!mx_decoder_footprint(out, dev, file, &g->model.config, opt->dtype)) {
        st = mx_fail(err, MX_ERR_FORMAT, "%s: a table of embeddings is missing or too large", path);
        goto close;
    }
    g->pack = pack_of(opt);
    if (g->model.config.names != MX_NAMES_GGUF) g->model.adapter_rank = MX_ADAPTER_RANK;
    MX_TRY_GOTO(st, count_pages(g, &pages, err), close);
    MX_TRY_GOTO(st, count_adapters(g, &out->weights, err), close);
    out->kv = (size_t)pages * mx_kv_page_bytes(g->model.config.layers, opt->page_tokens, g->model.config.kv_heads, g->model.config.head_dim, opt->kv_dtype);
    out->scratch = turn_scratch(g);
    out->host = host_bytes(g, pages);
    if (!out->scratch) st = mx_fail(err, MX_ERR_ARG, "model %s: scratch of a turn overflows", path);
close:
    mx_checkpoint_close(file);
done:
    free(g);
    return st;
}

mx_status mx_generator_replicate(mx_generator *g, mx_device *devs, int device, mx_error *err)
{
    mx_generator *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "model %s: a replica", g->name);
    mx_status st;
    r->of = g;
    r->opt = g->opt;
    r->opt.kv_bytes = g->kv.memory.size;     /* a request that fits one fits every one */
    r->dev = &devs[device];
    r->sched = g->sched;
    r->clock = g->clock;
    r->metric = g->metric;
    r->born_ns = mx_now_ns(g->clock);
    r->adapters = g->adapters;
    memcpy(r->name, g->name, sizeof r->name);
    memcpy(r->lane, g->lane, sizeof r->lane);
    memcpy(r->path, g->path, sizeof r->path);
    r->borrows = mx_device_shares(g->dev, r->dev);
    if (r->borrows) {
        r->model = g->model;
        r->model.dev = r->dev;
        r->tokenizer = g->tokenizer;
        r->piece = g->piece;
        r->n_pieces = g->n_pieces;
    } else {
        if (gen_adapters_bytes(g)) {
            st = mx_fail(err, MX_ERR_ARG, "model %s: lora-modules beside a model on several GPUs", g->name);
            goto fail;
        }
        MX_TRY_GOTO(st, open_model(r, g->path, err), fail);
        MX_TRY_GOTO(st, gen_pieces_sort(r, err), fail);
    }
    MX_TRY_GOTO(st, get_ready(r, device, err), fail);
    r->replicas = g->replicas;
    g->replicas = r;
    return MX_OK;
fail:
    mx_generator_close(r);
    return st;
}

mx_status mx_generator_open(mx_generator **out, const char *name, const char *path, mx_device *devs, int device,
                            mx_scheduler *sched, mx_metrics *metrics, const mx_generator_options *opt, mx_error *err)
{
    *out = NULL;
    MX_TRY(check_options(opt, err));
    if (!name[0] || strlen(name) >= sizeof((mx_generator *)0)->name)
        return mx_fail(err, MX_ERR_ARG, "model name \"%.80s\": must have 1 to 63 bytes", name);
    mx_generator *g = calloc(1, sizeof *g);
    if (!g) return mx_fail(err, MX_ERR_NO_MEMORY, "model %s", name);
    uint64_t start = mx_now_ns(&mx_clock_monotonic);
    mx_status st;
    g->opt = *opt;
    g->dev = &devs[device];
    g->sched = sched;
    g->clock = &mx_clock_monotonic;
    snprintf(g->name, sizeof g->name, "%s", name);
    if (opt->version < 2) snprintf(g->lane, sizeof g->lane, "%s.generate", name);
    else snprintf(g->lane, sizeof g->lane, "%s@%d.generate", name, opt->version);
    snprintf(g->path, sizeof g->path, "%s", path);
    g->born_ns = start;
    MX_TRY_GOTO(st, gen_adapters_open(&g->adapters, err), fail);
    MX_TRY_GOTO(st, open_model(g, path, err), fail);
    MX_TRY_GOTO(st, open_adapters(g, err), fail);
    MX_TRY_GOTO(st, gen_pieces_sort(g, err), fail);
    add_metrics(g, metrics);
    MX_TRY_GOTO(st, get_ready(g, device, err), fail);
    g->load_seconds = (double)(mx_now_ns(&mx_clock_monotonic) - start) * 1e-9;
    *out = g;
    return MX_OK;
fail:
    mx_generator_close(g);
    return st;
}

void mx_generator_close(mx_generator *g)
{
    if (!g) return;
    for (mx_generator *r = g->of ? NULL : g->replicas, *next; r; r = next) {
        next = r->replicas;
        mx_generator_close(r);
    }
    mx_kv_close(&g->kv);
    mx_buffer_close(&g->fed);
    pack_close(&g->pack);
    pack_close(&g->flying);
    if (!g->borrows) {
        free(g->piece);
        if (g->model.file) mx_decoder_close(&g->model);
        mx_tokenizer_close(g->tokenizer);
    }
    if (!g->of) gen_adapters_close(g->adapters);
    free(g);
}

double gen_kv_usage(const mx_generator *g)
{
    double free_pages = 0, pages = 0;
    for (const mx_generator *r = g->of ? g->of : g; r; r = r->replicas) {
        free_pages += atomic_load(&r->kv.available);
        pages += r->kv.pages;
    }
    return 1 - free_pages / pages;
}

const mx_tokenizer *mx_generator_tokenizer(const mx_generator *g) { return g->tokenizer; }

void mx_generator_count(mx_generator *g, mx_metrics *metrics)
{
    mx_scheduler_lane_forget(g->sched, g->lane);
    add_metrics(g, metrics);
    for (mx_generator *r = g; r; r = r->replicas) {
        atomic_ullong *const all[] = {&r->prefix_hit_tokens, &r->prompt_tokens, &r->output_tokens, &r->preemptions, &r->turns, &r->turns_ahead};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++) atomic_store(all[i], 0);
        r->metric = g->metric;
    }
}

void mx_generator_gauges(mx_generator *g)
{
    mx_lane_stats stats;
    mx_metric_set(g->metric.kv_usage, 1 - (double)atomic_load(&g->kv.available) / g->kv.pages);
    if (!mx_scheduler_stats(g->sched, g->lane, &stats)) return;
    mx_metric_set(g->metric.running, stats.running);
    mx_metric_set(g->metric.waiting, stats.waiting);
}

void mx_generator_info_get(const mx_generator *g, mx_generator_info *out)
{
    const mx_decoder_config *c = &g->model.config;
    int32_t per_text = (g->opt.max_model_len + g->opt.page_tokens - 1) / g->opt.page_tokens;
    *out = (mx_generator_info){
        .name = g->name, .path = g->path, .lane = g->lane, .version = g->opt.version < 1 ? 1 : g->opt.version, .architecture = c->architecture, .quantization = g->model.quantization,
        .dtype = g->opt.dtype, .kv_dtype = g->opt.kv_dtype, .parameters = c->parameters, .layers = c->layers,
        .d_model = c->d_model, .heads = c->heads, .kv_heads = c->kv_heads, .vocab = c->vocab,
        .max_model_len = g->opt.max_model_len, .chat = mx_tokenizer_chat_family(g->tokenizer),
        .weight_bytes = g->model.weight_bytes + gen_adapters_bytes(g), .kv_bytes = g->kv.memory.size,
        .kv_bytes_per_token = g->kv.page_bytes / (size_t)g->kv.page_tokens, .scratch_bytes = g->scratch_bytes,
        .kv_pages = g->kv.pages, .kv_pages_free = atomic_load(&g->kv.available), .page_tokens = g->kv.page_tokens,
        .max_concurrent = g->kv.pages / per_text, .load_seconds = g->load_seconds,
        .replicas = 0};
    for (const mx_generator *r = g; r; r = r->replicas) {
        out->replicas++;
        if (r != g) {
            out->kv_bytes += r->kv.memory.size;
            out->kv_pages += r->kv.pages;
            out->kv_pages_free += atomic_load(&r->kv.available);
            out->max_concurrent += r->kv.pages / per_text;
            out->scratch_bytes += r->scratch_bytes;
            if (!r->borrows) out->weight_bytes += r->model.weight_bytes;
        }
        out->prefix_hit_tokens += atomic_load(&r->prefix_hit_tokens);
        out->prompt_tokens += atomic_load(&r->prompt_tokens);
        out->output_tokens += atomic_load(&r->output_tokens);
        out->preemptions += atomic_load(&r->preemptions);
        out->turns += atomic_load(&r->turns);
        out->turns_ahead += atomic_load(&r->turns_ahead);
    }
}
