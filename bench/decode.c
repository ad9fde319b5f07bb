/* decode.c - tokens a second of a decoder of GPT-2's size, with random weights.
 *
 *     decode [--device auto|cpu|cuda:N] [--dtype f32|bf16|int8|fp8] [--kv f32|f16|bf16|fp8] [--context T] [--layers N] [--penalties] [BATCH ...]
 *
 * A turn is what a server's turn is when nobody comes or goes: the device makes its
 * rows from what it keeps of the sequences, the network runs on the tokens that the
 * turn before chose, a token is drawn for every sequence and comes back while the
 * next turn runs (models/turn.c); nothing is uploaded.  The figure is the median of
 * the times from one turn's tokens to the next's.  Prompts are not computed: the caches
 * hold zeros, which take as long as anything else.  --penalties: every sequence has a
 * repetition penalty and has seen as many distinct ids as its context is long. */
#include "models/decoder.h"
#include "runtime/clock.h"

#include <stdio.h>
#include <stdlib.h>

enum { TURNS = 30, WARM = 3 };

typedef struct shape { int32_t layers, heads, width, ff, vocab, context, page; mx_dtype dtype, kv; bool penalties; } shape;

static void random_rows(const void *ctx, int64_t first, int64_t n, float *dst)
{
    int64_t cols = *(const int64_t *)ctx;
    uint32_t state = (uint32_t)first * 2654435761u + 1;
    for (int64_t i = 0; i < n * cols; i++) {
        state = state * 1664525u + 1013904223u;
        dst[i] = ((float)(state >> 8) * 0x1p-23f - 1) * 0.02f;
    }
}

typedef struct bench {
    shape       o;
    mx_device  *dev;
    mx_stream   s;
    mx_kv_cache kv;
    mx_decoder  m;
    mx_buffer   memory;         /* of the seats, and of what a turn wants */
    mx_seats    seats;
    mx_tensor   rows, picks, wanted;
    unsigned    out;            /* the mark of a turn that is not read    */
} bench;

static mx_status weight(bench *b, mx_weight *w, int64_t rows, int64_t cols, mx_error *err)
{
    mx_row_source src = {random_rows, &cols, rows, cols};
    return mx_weight_open(w, b->dev, &src, 1, b->o.dtype, err);
}

static mx_status open_model(bench *b, mx_error *err)
{
    const shape *o = &b->o;
    mx_decoder *m = &b->m;
    int64_t c = o->width;
    m->dev = b->dev;
    m->config.layers = o->layers, m->config.heads = m->config.kv_heads = o->heads, m->config.head_dim = o->width / o->heads;
    m->config.d_model = o->width, m->config.d_ff = o->ff, m->config.vocab = o->vocab;
    m->config.learned_positions = true, m->config.act = MX_ACT_GELU_TANH, m->config.norm_eps = 1e-5f;
    m->config.attention_scale = 0.125f;
    m->layer = calloc((size_t)o->layers, sizeof *m->layer);
    if (!m->layer) return mx_fail(err, MX_ERR_NO_MEMORY, "layers");
    MX_TRY(mx_buffer_open(&m->vectors, b->dev, (size_t)(4 * c + o->ff) * 4, err));
    MX_TRY(mx_buffer_open(&m->token_memory, b->dev, (size_t)o->vocab * (size_t)c * 4, err));
    MX_TRY(mx_buffer_open(&m->position_memory, b->dev, (size_t)(o->context + WARM + TURNS) * (size_t)c * 4, err));
    m->tokens = mx_tensor_of(m->token_memory.base, MX_F32, o->vocab, c);
    m->positions = mx_tensor_of(m->position_memory.base, MX_F32, o->context + WARM + TURNS, c);
    mx_tensor vector = mx_tensor_of(m->vectors.base, MX_F32, 1, c), wide = mx_tensor_of(m->vectors.base, MX_F32, 1, 3 * c);
    m->final_gain = m->final_bias = vector;
    for (int l = 0; l < o->layers; l++) {
        mx_decoder_layer *y = &m->layer[l];
        y->norm1_gain = y->norm1_bias = y->norm2_gain = y->norm2_bias = y->out_bias = y->down_bias = vector;
        y->qkv_bias = wide;
        y->up_bias = mx_tensor_of(m->vectors.base, MX_F32, 1, o->ff);
        MX_TRY(weight(b, &y->qkv, 3 * c, c, err));
        MX_TRY(weight(b, &y->out, c, c, err));
        MX_TRY(weight(b, &y->up, o->ff, c, err));
        MX_TRY(weight(b, &y->down, c, o->ff, err));
    }
    return weight(b, &m->head, o->vocab, c, err);
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* One turn of n sequences. */
static mx_status turn(bench *b, int32_t n, int32_t *got, mx_error *err)
{
    mx_decoder_batch batch = {.n_rows = n, .n_seqs = n, .n_logits = n, .table_cols = (int32_t)b->seats.pages.cols, .seats = &b->seats,
                              .rows = b->rows, .picks = b->picks, .wanted = b->wanted};
    mx_logit_lists none = {0};
    mx_decoder_turn t;
    mx_decoder_begin(&b->m, &b->s, &b->kv, &batch, &t);
    mx_tensor chosen = mx_stream_tensor(&b->s, MX_I32, n, 1);
    if (!mx_stream_section(&b->s, &n, sizeof n)) {
        mx_decoder_run(&b->m, &b->s, &b->kv, &t);
        if (b->o.penalties) mx_logits_process(&b->s, t.logits, t.choices.data, &none, &b->seats);
        mx_sample(&b->s, chosen, t.logits, t.choices.data, &b->seats);
        mx_stream_section_end(&b->s);
    }
    b->dev->ops->download(&b->s, got, chosen.data, (size_t)n * sizeof *got);
    unsigned mark = mx_stream_mark(&b->s);
    mx_status st = b->s.error.code ? mx_stream_sync(&b->s, err) : b->out ? mx_stream_wait(&b->s, b->out, err) : MX_OK;
    b->out = mark;
    mx_stream_rewind(&b->s);
    return st;
}

/* n sequences that have `context` ids, and pages for those that come. */
static mx_status seat_all(bench *b, int32_t n, mx_error *err)
{
    const shape *o = &b->o;
    int32_t per = (o->context + WARM + TURNS + o->page - 1) / o->page, most = o->context + WARM + TURNS;
    size_t N = (size_t)n, seats = N * sizeof(mx_seat), ints = N * (size_t)(2 * most + per + 9);
    MX_TRY(mx_buffer_open(&b->memory, b->dev, seats + ints * sizeof(int32_t), err));
    char *host = calloc(1, b->memory.size);
    if (!host) return mx_fail(err, MX_ERR_NO_MEMORY, "%d sequences", n);
    int32_t *id = (int32_t *)(void *)(host + seats), *count = id + N * (size_t)most, *pages = count + N * (size_t)most,
            *rows = pages + N * (size_t)per, *picks = rows + 4 * N, *wanted = picks + 4 * N;
    for (int32_t i = 0; i < n; i++) {
        mx_sample_row rule = {.temperature = 1, .top_p = 0.95f, .typical_p = 1, .repetition_penalty = o->penalties ? 1.1f : 1};
        ((mx_seat *)(void *)host)[i] = (mx_seat){.rule = rule, .seed = (uint64_t)i, .prompt = 1, .length = o->context, .n_seen = o->penalties ? o->context : -1};
        for (int32_t k = 0; k < o->context; k++) id[i * most + k] = (k * 97 + i) % o->vocab;
        for (int32_t k = 0; k < per; k++) pages[i * per + k] = i * per + k;
        memcpy(rows + 4 * i, (int32_t[4]){i, -1, 0, -1}, 4 * sizeof *rows);
        memcpy(picks + 4 * i, (int32_t[4]){i, i, 0, 0}, 4 * sizeof *picks);
        wanted[i] = i;
    }
    char *base = b->memory.base;
#define THERE(p) ((int32_t *)(void *)(base + ((char *)(p) - host)))
    b->seats = (mx_seats){(mx_seat *)(void *)base, THERE(id), THERE(count), n, most, mx_tensor_of(THERE(pages), MX_I32, n, per)};
    b->rows = mx_tensor_of(THERE(rows), MX_I32, n, 4), b->picks = mx_tensor_of(THERE(picks), MX_I32, n, 4), b->wanted = mx_tensor_of(THERE(wanted), MX_I32, n, 1);
#undef THERE
    b->dev->ops->upload(&b->s, base, host, b->memory.size);
    mx_status st = mx_stream_sync(&b->s, err);
    free(host);
    return st ? st : mx_kv_open(&b->kv, b->dev, o->layers, n * per, o->page, o->heads, o->width / o->heads, o->kv, false, err);
}

static mx_status measure(bench *b, int32_t n, mx_error *err)
{
    int32_t *got = calloc((size_t)n, sizeof *got), per = (b->o.context + WARM + TURNS + b->o.page - 1) / b->o.page;
    double times[TURNS];
    mx_status st = got ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a turn of %d", n);
    MX_TRY_GOTO(st, st, done);
    MX_TRY_GOTO(st, mx_stream_open(&b->s, b->dev, mx_decoder_scratch(&b->m, n, n, per, n) + mx_stream_tensor_bytes(MX_I32, n, 1), err), done);
    MX_TRY_GOTO(st, seat_all(b, n, err), done);
    b->out = 0;
    for (int i = -WARM; i < TURNS; i++) {
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        MX_TRY_GOTO(st, turn(b, n, got, err), done);
        if (i >= 0) times[i] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9;
    }
    MX_TRY_GOTO(st, mx_stream_sync(&b->s, err), done);
    qsort(times, TURNS, sizeof *times, by_time);
    printf("decode  batch %5d  context %5d  weights %-4s  cache %-4s  penalties %-3s  %10.1f us a turn  %12.0f tokens/s\n", n, b->o.context,
           mx_dtype_name(b->o.dtype), mx_dtype_name(b->o.kv), b->o.penalties ? "yes" : "no", times[TURNS / 2] * 1e6, n / times[TURNS / 2]);
    fflush(stdout);
done:
    mx_stream_close(&b->s);
    mx_buffer_close(&b->memory);
    mx_kv_close(&b->kv);
    free(got);
    return st;
}

int main(int argc, char **argv)
{
    bench b = {.o = {12, 12, 768, 3072, 50257, 512, 16, MX_BF16, MX_BF16, false}};
    mx_device_options opt = {.bind = true, .spin_us = 50};
    mx_device *devs = NULL;
    mx_error err = {0};
    const char *device = "auto";
    int count = 0, at = 0, n_batches = 0, batches[32] = {1, 8, 64, 256, 1024};
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (argv[i][0] != '-' && n_batches < 32) batches[n_batches++] = atoi(argv[i]);
        else if (!strcmp(argv[i], "--penalties")) b.o.penalties = true;
        else if (!strcmp(argv[i], "--device")) device = value, i++;
        else if (!strcmp(argv[i], "--context")) b.o.context = atoi(value), i++;
        else if (!strcmp(argv[i], "--layers")) b.o.layers = atoi(value), i++;
        else if (!strcmp(argv[i], "--dtype") && (!strcmp(value, "int8") || mx_dtype_parse(value, &b.o.dtype))) b.o.dtype = !strcmp(value, "int8") ? MX_I8 : b.o.dtype, i++;
        else if (!strcmp(argv[i], "--kv") && mx_dtype_parse(value, &b.o.kv)) i++;
        else return fprintf(stderr, "decode: what is %s %s?\n", argv[i], value), 2;
    }
    if (!n_batches) n_batches = 5;
    mx_status st = mx_devices_open(&devs, &count, &opt, &err);
    if (!st) st = mx_device_find(devs, count, device, &at, &err);
    if (!st) {
        b.dev = &devs[at];
        printf("device  %s\n", b.dev->name);
        st = open_model(&b, &err);
    }
    for (int i = 0; i < n_batches && !st; i++) st = measure(&b, batches[i], &err);
    if (st) fprintf(stderr, "decode: %s\n", err.text);
    mx_decoder_close(&b.m);
    mx_devices_close(devs, count);
    return st != MX_OK;
}
