/* loadgen.c - requests, arrivals, and what is measured of each. */
#include "server/loadgen.h"

#include "proto/health.pb-c.h"
#include "proto/merx.pb-c.h"
#include "runtime/clock.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { VARIANTS = 64, LINE = 400 };   /* different messages of a kind */

/* ---- histograms --------------------------------------------------------------------------- */

static size_t bucket_of(uint64_t ns)
{
    if (ns < MX_HIST_SUB) return ns;
    int shift = 63 - __builtin_clzll(ns) - 6;                  /* 6: log2(MX_HIST_SUB) */
    size_t i = (size_t)(shift + 1) * MX_HIST_SUB + (size_t)((ns >> shift) - MX_HIST_SUB);
    return i < MX_HIST_BUCKETS ? i : MX_HIST_BUCKETS - 1;
}

static uint64_t middle_of(size_t i)
{
    if (i < MX_HIST_SUB) return i;
    int shift = (int)(i / MX_HIST_SUB) - 1;
    uint64_t low = (uint64_t)(i % MX_HIST_SUB + MX_HIST_SUB) << shift;
    return low + ((1ull << shift) >> 1);
}

void mx_hist_add(mx_hist *h, uint64_t ns)
{
    h->n++;
    h->sum += (double)ns;
    if (ns > h->most) h->most = ns;
    h->bucket[bucket_of(ns)]++;
}

void mx_hist_merge(mx_hist *to, const mx_hist *from)
{
    to->n += from->n;
    to->sum += from->sum;
    if (from->most > to->most) to->most = from->most;
    for (size_t i = 0; i < MX_HIST_BUCKETS; i++) to->bucket[i] += from->bucket[i];
}

uint64_t mx_hist_quantile(const mx_hist *h, double q)
{
    uint64_t below = 0, rank = (uint64_t)ceil(q * (double)h->n);
    if (!rank) rank = 1;
    for (size_t i = 0; i < MX_HIST_BUCKETS; i++) {
        below += h->bucket[i];
        if (below < rank) continue;
        uint64_t m = middle_of(i);
        return m < h->most ? m : h->most;
    }
    return 0;
}

/* ---- requests -------------------------------------------------------------------------------- */

static const char *const kind_names[MX_LOAD_KINDS] = {"generate", "embed", "quote", "echo"};
static const char *const methods[MX_LOAD_KINDS] = {"/merx.v1.Generation/Stream", "/merx.v1.Embeddings/Embed", "/merx.v1.Pricing/Quote",
                                                   "/grpc.health.v1.Health/Check"};

const char *mx_load_kind_name(int kind)
{
    return kind_names[kind];
}

int mx_load_kind_find(const char *name)
{
    for (int i = 0; i < MX_LOAD_KINDS; i++)
        if (!strcmp(kind_names[i], name)) return i;
    return -1;
}

static uint64_t mix(uint64_t z) /* splitmix64: Steele, Lea, Flood 2014 */
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static double uniform(uint64_t seed, uint64_t i) /* (0, 1] */
{
    return ((double)(mix(seed ^ mix(i)) >> 11) + 1) * 0x1p-53;
}

/* Words of the trade, so that tokenizers see language; no two prompts alike. */
static char *words(uint64_t seed, uint64_t i, int n)
{
    static const char *const list[] = {"light", "running", "shoes", "for", "the", "summer", "sale", "write", "a", "sentence", "that", "sells",
                                       "soft", "cotton", "shirts", "to", "young", "parents", "with", "free", "returns", "new", "season", "coffee"};
    enum { LIST = sizeof list / sizeof *list };
    char *text = malloc((size_t)n * 10 + 1), *at = text;
    if (!text) return NULL;
    *at = 0;
    for (int k = 0; k < n; k++) at += sprintf(at, "%s%s", k ? " " : "", list[mix(seed ^ mix(i * 4096 + (uint64_t)k)) % LIST]);
    return text;
}

typedef struct message { uint8_t *data; size_t len; } message;

static message pack(const ProtobufCMessage *m)
{
    message p = {.len = protobuf_c_message_get_packed_size(m)};
    p.data = malloc(p.len + 1);
    if (p.data) protobuf_c_message_pack(m, p.data);
    return p;
}

static message make_message(const mx_load_options *o, int kind, uint64_t i)
{
    message p = {0};
    char *text = words(o->seed, i, o->input_words);
    if (!text) return p;
    if (kind == MX_LOAD_GENERATE) {
        Merx__V1__GenerateRequest q = MERX__V1__GENERATE_REQUEST__INIT;
        Merx__V1__Sampling s = MERX__V1__SAMPLING__INIT;
        s.max_tokens = o->output_tokens;
        s.ignore_eos = true;
        s._temperature_case = MERX__V1__SAMPLING___TEMPERATURE_TEMPERATURE;
        s._seed_case = MERX__V1__SAMPLING___SEED_SEED;
        s.temperature = 1;
        s.seed = mix(o->seed + i);
        q.model = (char *)(uintptr_t)(o->model ? o->model : "");
        q.input_case = MERX__V1__GENERATE_REQUEST__INPUT_PROMPT;
        q.prompt = text;
        q.sampling = &s;
        p = pack(&q.base);
    } else if (kind == MX_LOAD_EMBED) {
        Merx__V1__EmbedRequest q = MERX__V1__EMBED_REQUEST__INIT;
        q.texts = &text;
        q.n_texts = 1;
        q.truncate = true;
        p = pack(&q.base);
    } else if (kind == MX_LOAD_QUOTE) {
        Merx__V1__QuoteRequest q = MERX__V1__QUOTE_REQUEST__INIT;
        q.sku = (char *)(uintptr_t)o->sku;
        q.channel = (char *)(uintptr_t)o->channel;
        p = pack(&q.base);
    } else {
        p = pack(&(Grpc__Health__V1__HealthCheckRequest)GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT.base);
    }
    free(text);
    return p;
}

/* ---- a run --------------------------------------------------------------------------------------- */

typedef struct arrival { double at; int kind; } arrival;   /* of a trace */

typedef struct run run;

/* What one connection's thread has seen: its own, no lock. */
typedef struct lane {
    run       *r;
    mx_client *client;
    mx_load_figures kind[MX_LOAD_KINDS];
    mx_hist    late;
    mx_load_slice slice[MX_LOAD_SLICES];
    uint64_t   last_ns;
} lane;

typedef struct request {
    lane    *l;
    int      kind;
    uint64_t due_ns, first_ns, last_ns;
    uint32_t tokens, prompt_tokens;
    bool     measured;
} request;

struct run {
    mx_load_options o;
    lane    *lanes;
    message  messages[MX_LOAD_KINDS][VARIANTS];
    arrival *trace;
    size_t   n_trace;
    uint64_t start_ns, end_ns;           /* end: no request leaves later; 0: none */
    atomic_int_least64_t issued, over, failed, under_way, peak;
    pthread_mutex_t lock;
    pthread_cond_t  news;
    mx_rpc_status first_failure;         /* under lock */
    atomic_bool stopped;
    double   total_share;
};

static uint64_t now(void)
{
    return mx_now_ns(&mx_clock_monotonic);
}

static int kind_of(const run *r, uint64_t i)
{
    double x = uniform(r->o.seed + 1, i) * r->total_share;
    int kind = 0;
    while (kind < MX_LOAD_KINDS - 1 && x > r->o.share[kind]) x -= r->o.share[kind++];
    while (kind > 0 && r->o.share[kind] <= 0) kind--;
    return kind;
}

static bool issue(lane *l, uint64_t i, int kind, uint64_t due_ns, bool measured);

static void on_message(void *user, const uint8_t *reply, size_t len)
{
    request *q = user;
    uint64_t t = now();
    if (q->kind != MX_LOAD_GENERATE) return;
    Merx__V1__GenerateEvent *e = merx__v1__generate_event__unpack(NULL, len, reply);
    if (!e) return;
    mx_load_figures *f = &q->l->kind[q->kind];
    if (e->n_ids) {
        if (!q->first_ns) q->first_ns = t;
        else if (q->measured) mx_hist_add(&f->itl, t - q->last_ns);
        q->last_ns = t;
        q->tokens += (uint32_t)e->n_ids;
    }
    if (e->usage) q->prompt_tokens = (uint32_t)e->usage->prompt_tokens;
    merx__v1__generate_event__free_unpacked(e, NULL);
}

static void measure(request *q, uint64_t t, int code)
{
    lane *l = q->l;
    const mx_load_options *o = &l->r->o;
    mx_load_figures *f = &l->kind[q->kind];
    uint64_t second = (t - l->r->start_ns) / 1000000000u, e2e = t - q->due_ns;
    mx_load_slice *s = &l->slice[second < MX_LOAD_SLICES ? second : MX_LOAD_SLICES - 1];
    f->codes[code]++;
    l->last_ns = t;
    if (code) {
        f->failed++;
        s->failed++;
        return;
    }
    f->done++;
    s->done++;
    s->tokens += q->tokens;
    s->sum_ns += (double)e2e;
    if (e2e > s->most_ns) s->most_ns = e2e;
    f->input_tokens += q->prompt_tokens;
    f->output_tokens += q->tokens;
    mx_hist_add(&f->e2e, e2e);
    bool good = o->slo_e2e <= 0 || (double)e2e <= o->slo_e2e * 1e9;
    if (q->first_ns) {
        uint64_t ttft = q->first_ns - q->due_ns, tpot = q->tokens > 1 ? (q->last_ns - q->first_ns) / (q->tokens - 1) : 0;
        mx_hist_add(&f->ttft, ttft);
        if (q->tokens > 1) mx_hist_add(&f->tpot, tpot);
        good = good && (o->slo_ttft <= 0 || (double)ttft <= o->slo_ttft * 1e9) && (o->slo_tpot <= 0 || (double)tpot <= o->slo_tpot * 1e9);
    }
    f->good += good;
}

/* The next of a closed loop; false: there is none. */
static bool go_on(lane *l)
{
    run *r = l->r;
    uint64_t t = now();
    if (atomic_load(&r->stopped) || (r->end_ns && t >= r->end_ns)) return false;
    int64_t i = atomic_fetch_add(&r->issued, 1);
    if (r->o.requests && i >= r->o.requests) return false;
    return issue(l, (uint64_t)i, kind_of(r, (uint64_t)i), t, true);
}

static void on_done(void *user, const mx_rpc_status *st)
{
    request *q = user;
    lane *l = q->l;
    run *r = l->r;
    bool measured = q->measured;
    if (measured) measure(q, now(), st->code);
    free(q);
    if (st->code) {
        pthread_mutex_lock(&r->lock);
        if (!r->first_failure.code) r->first_failure = *st;
        pthread_mutex_unlock(&r->lock);
        atomic_fetch_add(&r->failed, 1);
    }
    atomic_fetch_add(&r->over, 1);
    if (measured && r->o.rate <= 0 && !r->n_trace) go_on(l);
    /* Last: whoever waits for nobody to be under way frees what was used above. */
    pthread_mutex_lock(&r->lock);
    atomic_fetch_sub(&r->under_way, 1);
    pthread_cond_signal(&r->news);
    pthread_mutex_unlock(&r->lock);
}

static bool issue(lane *l, uint64_t i, int kind, uint64_t due_ns, bool measured)
{
    run *r = l->r;
    request *q = calloc(1, sizeof *q);
    const message *m = &r->messages[kind][i % VARIANTS];
    if (!q) return false;
    *q = (request){.l = l, .kind = kind, .due_ns = due_ns, .measured = measured};
    mx_client_calls calls = {.unary = kind != MX_LOAD_GENERATE, .message = on_message, .done = on_done, .user = q};
    int64_t n = atomic_fetch_add(&r->under_way, 1) + 1, peak = atomic_load(&r->peak);
    while (n > peak && !atomic_compare_exchange_weak(&r->peak, &peak, n)) {}
    if (!mx_client_start(l->client, NULL, methods[kind], m->data, m->len, r->o.timeout_ms, &calls)) return true;
    atomic_fetch_sub(&r->under_way, 1);
    free(q);
    return false;
}

/* ---- arrivals --------------------------------------------------------------------------------------- */

/* Lines "seconds[,kind]"; # begins a comment. */
static mx_status read_trace(run *r, mx_error *err)
{
    char line[LINE];
    size_t room = 0;
    int number = 0;
    FILE *f = fopen(r->o.trace, "re");
    if (!f) return mx_fail(err, MX_ERR_IO, "trace %s: %s", r->o.trace, strerror(errno));
    mx_status st = MX_OK;
    while (!st && fgets(line, sizeof line, f)) {
        char *end;
        number++;
        line[strcspn(line, "\r\n#")] = 0;
        if (!line[strspn(line, " \t")]) continue;
        double at = strtod(line, &end);
        int kind = *end == ',' ? mx_load_kind_find(end + 1) : kind_of(r, r->n_trace);
        if (end == line || !(at >= 0) || (*end && *end != ',') || kind < 0 || (r->n_trace && at < r->trace[r->n_trace - 1].at))
            st = mx_fail(err, MX_ERR_FORMAT, "%s:%d: seconds that do not fall, and perhaps a comma and generate, embed, quote or echo", r->o.trace, number);
        if (!st && r->n_trace == room) {
            arrival *more = realloc(r->trace, (room = room ? 2 * room : 1024) * sizeof *more);
            if (more) r->trace = more;
            else st = mx_fail(err, MX_ERR_NO_MEMORY, "the trace");
        }
        if (!st) r->trace[r->n_trace++] = (arrival){at, kind};
    }
    fclose(f);
    if (!st && !r->n_trace) st = mx_fail(err, MX_ERR_FORMAT, "%s: no arrival", r->o.trace);
    return st;
}

static bool stopped(run *r)
{
    if (!atomic_load(&r->stopped) && r->o.stop && r->o.stop(r->o.user)) atomic_store(&r->stopped, true);
    return atomic_load(&r->stopped);
}

static void tell(run *r)
{
    if (!r->o.progress) return;
    int64_t over = atomic_load(&r->over);
    double seconds = (double)(now() - r->start_ns) * 1e-9, part = 0;
    int64_t all = r->n_trace ? (int64_t)r->n_trace : r->o.requests;
    if (all) part = (double)over / (double)all;
    if (r->o.seconds > 0 && seconds / r->o.seconds > part) part = seconds / r->o.seconds;
    r->o.progress(r->o.user, part < 1 ? part : 1, over, atomic_load(&r->failed), seconds);
}

/* At most a tenth of a second at once, so that Ctrl-C is heard. */
static bool sleep_until(run *r, uint64_t due_ns)
{
    for (;;) {
        uint64_t t = now(), until = t + 100000000u < due_ns ? t + 100000000u : due_ns;
        if (t >= due_ns) return !stopped(r);
        struct timespec at = {.tv_sec = (time_t)(until / 1000000000u), .tv_nsec = (long)(until % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        if (stopped(r)) return false;
        if (until != due_ns) tell(r);
    }
}

static void wait_below(run *r, int64_t most)
{
    pthread_mutex_lock(&r->lock);
    while (atomic_load(&r->under_way) > most) {
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        t.tv_nsec += 100000000;
        if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
        pthread_cond_timedwait(&r->news, &r->lock, &t);
        pthread_mutex_unlock(&r->lock);
        stopped(r);
        tell(r);
        pthread_mutex_lock(&r->lock);
    }
    pthread_mutex_unlock(&r->lock);
}

static void open_loop(run *r)
{
    double at = 0;
    for (uint64_t i = 0; !r->n_trace ? !r->o.requests || (int64_t)i < r->o.requests : i < r->n_trace; i++) {
        int kind = r->n_trace ? r->trace[i].kind : kind_of(r, i);
        if (r->n_trace) at = r->trace[i].at;
        else at += r->o.even ? 1 / r->o.rate : -log(uniform(r->o.seed + 2, i)) / r->o.rate;
        uint64_t due = r->start_ns + (uint64_t)(at * 1e9);
        if ((r->end_ns && due >= r->end_ns) || !sleep_until(r, due)) return;
        if (r->o.concurrency) wait_below(r, r->o.concurrency - 1);
        lane *l = &r->lanes[i % (uint64_t)r->o.connections];
        uint64_t late = now() - due;
        mx_hist_add(&r->lanes[0].late, late);
        if (!issue(l, i, kind, due, true)) return;
        atomic_fetch_add(&r->issued, 1);
    }
}

static void closed_loop(run *r)
{
    for (int32_t i = 0; i < r->o.concurrency; i++)
        if (!go_on(&r->lanes[i % r->o.connections])) return;
}

/* ---- opening, closing ------------------------------------------------------------------------------- */

static mx_status check(const mx_load_options *o, mx_error *err)
{
    double all = 0;
    for (int i = 0; i < MX_LOAD_KINDS; i++) all += o->share[i];
    if (!(all > 0)) return mx_fail(err, MX_ERR_ARG, "workload: nothing is asked for");
    if (o->share[MX_LOAD_QUOTE] > 0 && (!o->sku || !*o->sku)) return mx_fail(err, MX_ERR_ARG, "sku: quotes need an item of the server's (--sku)");
    if (!o->requests && o->seconds <= 0 && !o->trace) return mx_fail(err, MX_ERR_ARG, "num-prompts, duration: one of them must end the run");
    if (o->rate <= 0 && !o->trace && o->concurrency < 1) return mx_fail(err, MX_ERR_ARG, "request-rate, max-concurrency: without a rate so many requests run at once; at least 1");
    return MX_OK;
}

static mx_status open_run(run *r, mx_error *err)
{
    r->lanes = calloc((size_t)r->o.connections, sizeof *r->lanes);
    if (!r->lanes) return mx_fail(err, MX_ERR_NO_MEMORY, "%d connections", r->o.connections);
    for (int kind = 0; kind < MX_LOAD_KINDS; kind++) {
        r->total_share += r->o.share[kind];
        for (uint64_t i = 0; i < VARIANTS; i++) {
            r->messages[kind][i] = make_message(&r->o, kind, i);
            if (!r->messages[kind][i].data) return mx_fail(err, MX_ERR_NO_MEMORY, "the requests");
        }
    }
    if (r->o.trace) MX_TRY(read_trace(r, err));
    for (int32_t i = 0; i < r->o.connections; i++) {
        r->lanes[i].r = r;
        MX_TRY(mx_client_open(&r->lanes[i].client, r->o.server, &r->o.client, err));
    }
    return MX_OK;
}

/* Each connection is up, and each kind of request has been answered, before the clock starts. */
static mx_status warm_up(run *r, mx_error *err)
{
    int n = r->o.warmups > r->o.connections ? r->o.warmups : r->o.connections;
    for (int kind = 0; kind < MX_LOAD_KINDS; kind++) {
        if (r->o.share[kind] <= 0) continue;
        for (int i = 0; i < n; i++) {
            if (!issue(&r->lanes[i % r->o.connections], (uint64_t)i, kind, now(), false)) return mx_fail(err, MX_ERR_NO_MEMORY, "a request");
            if (i == 0) wait_below(r, 0);
            if (r->first_failure.code)
                return mx_fail(err, MX_ERR_UNAVAILABLE, "%s: %s: %s", methods[kind], mx_rpc_code_name(r->first_failure.code), r->first_failure.text);
        }
        wait_below(r, 0);
    }
    atomic_store(&r->over, 0);
    atomic_store(&r->peak, 0);
    atomic_store(&r->failed, 0);
    return MX_OK;
}

static void close_run(run *r)
{
    for (int32_t i = 0; r->lanes && i < r->o.connections; i++) mx_client_close(r->lanes[i].client);
    for (int kind = 0; kind < MX_LOAD_KINDS; kind++)
        for (int i = 0; i < VARIANTS; i++) free(r->messages[kind][i].data);
    free(r->lanes);
    free(r->trace);
    pthread_cond_destroy(&r->news);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

static void add_kind(mx_load_figures *to, const mx_load_figures *from)
{
    to->done += from->done;
    to->failed += from->failed;
    to->good += from->good;
    to->input_tokens += from->input_tokens;
    to->output_tokens += from->output_tokens;
    for (int i = 0; i < MX_RPC_CODE_COUNT; i++) to->codes[i] += from->codes[i];
    mx_hist_merge(&to->ttft, &from->ttft);
    mx_hist_merge(&to->tpot, &from->tpot);
    mx_hist_merge(&to->itl, &from->itl);
    mx_hist_merge(&to->e2e, &from->e2e);
}

static mx_load_result *collect(const run *r)
{
    mx_load_result *out = calloc(1, sizeof *out);
    uint64_t last = r->start_ns;
    if (!out) return NULL;
    out->options = r->o;
    out->peak = (uint64_t)atomic_load(&((run *)(uintptr_t)r)->peak);
    for (int32_t i = 0; i < r->o.connections; i++) {
        const lane *l = &r->lanes[i];
        for (int k = 0; k < MX_LOAD_KINDS; k++) add_kind(&out->kind[k], &l->kind[k]);
        mx_hist_merge(&out->late, &l->late);
        if (l->last_ns > last) last = l->last_ns;
        for (int s = 0; s < MX_LOAD_SLICES; s++) {
            mx_load_slice *to = &out->slice[s];
            to->done += l->slice[s].done;
            to->failed += l->slice[s].failed;
            to->tokens += l->slice[s].tokens;
            to->sum_ns += l->slice[s].sum_ns;
            if (l->slice[s].most_ns > to->most_ns) to->most_ns = l->slice[s].most_ns;
            if (to->done + to->failed) out->n_slices = s + 1;
        }
    }
    for (int k = 0; k < MX_LOAD_KINDS; k++) out->kind[k].sent = out->kind[k].done + out->kind[k].failed;
    out->seconds = (double)(last - r->start_ns) * 1e-9;
    return out;
}

mx_status mx_load_run(mx_load_result **out, const mx_load_options *o, mx_error *err)
{
    *out = NULL;
    MX_TRY(check(o, err));
    run *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "the load");
    r->o = *o;
    if (r->o.connections < 1) r->o.connections = 1;
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->news, NULL);
    mx_status st = open_run(r, err);
    if (!st) st = warm_up(r, err);
    if (!st) {
        r->start_ns = now();
        if (o->seconds > 0) r->end_ns = r->start_ns + (uint64_t)(o->seconds * 1e9);
        if (o->rate > 0 || r->n_trace) open_loop(r);
        else closed_loop(r);
        wait_below(r, 0);
        *out = collect(r);
        if (!*out) st = mx_fail(err, MX_ERR_NO_MEMORY, "the figures");
    }
    wait_below(r, 0);
    close_run(r);
    return st;
}
