/* decoder_dump.c - the forward pass from the command line, for comparisons with
 * other programs (tests/compare_llama_cpp.py).
 *
 *     decoder_dump MODEL f32|bf16|int8|fp8 N OUT [KV] < PROMPTS         KV: f32|f16|bf16|fp8
 *
 * Each line of PROMPTS is a prompt: "text " and its bytes in hexadecimal, or
 * "ids " and decimal ids.  N tokens are appended greedily.  For each prompt one
 * line is printed, "prompt ids / appended ids", and to OUT go the logits of all
 * their rows but that of the last appended id: float32 [rows][vocab]. */
#include "models/decoder.h"
#include "models/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>

enum { PAGE = 16, LONGEST = 1024, PAGES = LONGEST / PAGE, ROWS = 64 };

typedef struct dump {
    mx_device *devs;
    int n_devs;
    mx_decoder model;
    mx_tokenizer *tokenizer;
    mx_kv_cache kv;
    mx_stream stream;
    mx_ids ids;
    float *logits;
    FILE *out;
} dump;

static mx_status open_all(dump *d, const char *path, mx_dtype dtype, mx_dtype kv, mx_error *err)
{
    mx_checkpoint *file = NULL;
    mx_decoder_config config;
    mx_device_options opt = {0};
    MX_TRY(mx_devices_open(&d->devs, &d->n_devs, &opt, err));
    MX_TRY(mx_checkpoint_open(&file, path, err));
    bool gguf = mx_checkpoint_is_gguf(file);
    mx_status st = gguf ? mx_decoder_config_gguf(&config, file, err) : mx_decoder_config_folder(&config, path, err);
    if (!st)
        st = gguf ? mx_tokenizer_open_gguf(&d->tokenizer, file, err)
                  : mx_tokenizer_open_folder(&d->tokenizer, path, err);
    if (st) {
        mx_checkpoint_close(file);
        return st;
    }
    MX_TRY(mx_decoder_open(&d->model, d->devs, file, &config, dtype, err));
    MX_TRY(mx_kv_open(&d->kv, d->devs, config.layers, PAGES, PAGE, config.kv_heads, config.head_dim, kv, false,
                      err));
    d->logits = malloc((size_t)ROWS * (size_t)config.vocab * sizeof *d->logits);
    if (!d->logits) return mx_fail(err, MX_ERR_NO_MEMORY, "logits");
    return mx_stream_open(&d->stream, d->devs, mx_decoder_scratch(&d->model, ROWS, 1, PAGES, ROWS), err);
}

/* Rows s->n_tokens.. of the ids, at most ROWS; their logits into d->logits. */
static mx_status run_rows(dump *d, mx_kv_seq *s, int32_t n, mx_error *err)
{
    int32_t done = s->n_tokens, pos[ROWS], slot[ROWS], at[2 * ROWS], rows[ROWS], moves[2];
    mx_kv_copies copies = {moves, 0, 1};
    if (!mx_kv_reserve(&d->kv, s, done + n, &copies)) return mx_fail(err, MX_ERR_ARG, "over %d tokens", LONGEST);
    for (int32_t i = 0; i < n; i++) {
        pos[i] = at[2 * i + 1] = done + i;
        at[2 * i] = 0;
        slot[i] = mx_kv_slot(&d->kv, s, done + i);
        rows[i] = i;
    }
    mx_decoder_batch b = {.n_rows = n,
                          .n_seqs = 1,
                          .n_logits = n,
                          .table_cols = s->n_pages,
                          .ids = d->ids.id + done,
                          .positions = pos,
                          .slots = slot,
                          .at = at,
                          .pages = s->page,
                          .logit_rows = rows,
                          .copies = &copies};
    mx_tensor logits = mx_decoder_forward(&d->model, &d->stream, &d->kv, &b);
    size_t count = (size_t)n * (size_t)d->model.config.vocab;
    d->devs->ops->download(&d->stream, d->logits, logits.data, count * sizeof *d->logits);
    MX_TRY(mx_stream_sync(&d->stream, err));
    mx_stream_rewind(&d->stream);
    if (fwrite(d->logits, sizeof *d->logits, count, d->out) != count) return mx_fail(err, MX_ERR_IO, "output");
    return MX_OK;
}

static mx_status read_prompt(dump *d, char *line, mx_error *err)
{
    d->ids.count = 0;
    if (!strncmp(line, "ids ", 4)) {
        for (char *at = line + 4, *end; *at && *at != '\n'; at = *end ? end + 1 : end) {
            int32_t id = (int32_t)strtol(at, &end, 10);
            if (end == at || id < 0 || id >= d->model.config.vocab)
                return mx_fail(err, MX_ERR_ARG, "not ids: %.40s", at);
            MX_TRY(mx_ids_push(&d->ids, id));
        }
        return MX_OK;
    }
    if (strncmp(line, "text ", 5)) return mx_fail(err, MX_ERR_ARG, "a line must begin with text or ids");
    size_t n = strcspn(line + 5, "\n") / 2;
    char *text = line + 5;
    for (size_t i = 0; i < n; i++) {
        char byte[3] = {text[2 * i], text[2 * i + 1], 0};
        text[i] = (char)strtol(byte, NULL, 16);
    }
    return mx_tokenizer_encode(d->tokenizer, text, n, true, false, &d->ids, err);
}

static mx_status run_prompt(dump *d, int32_t appended, mx_error *err)
{
    mx_kv_seq s = {0};
    mx_status st = MX_OK;
    int32_t vocab = d->model.config.vocab, prompt = d->ids.count;
    for (int32_t i = 0; i < prompt; i++) printf("%d ", d->ids.id[i]);
    printf("/");
    while (!st && s.n_tokens < d->ids.count) {
        int32_t n = d->ids.count - s.n_tokens;
        if (n > ROWS) n = ROWS;
        st = run_rows(d, &s, n, err);
        if (st || s.n_tokens < d->ids.count || d->ids.count == prompt + appended) continue;
        const float *row = d->logits + (size_t)(n - 1) * (size_t)vocab;
        int32_t best = 0;
        for (int32_t i = 1; i < vocab; i++)
            if (row[i] > row[best]) best = i;
        st = mx_ids_push(&d->ids, best);
        printf(" %d", best);
        if (d->ids.count == prompt + appended) break;
    }
    printf("\n");
    fflush(stdout);
    mx_kv_release(&d->kv, &s);
    return st;
}

int main(int argc, char **argv)
{
    dump d = {0};
    mx_error err = {0};
    char *line = NULL;
    size_t room = 0;
    mx_dtype dtype = MX_F32, kv = MX_F32;
    if (argc < 5 || argc > 6 || !mx_dtype_parse(argv[2], &dtype) || (argc == 6 && !mx_dtype_parse(argv[5], &kv))) {
        fprintf(stderr, "usage: decoder_dump MODEL f32|bf16|int8|fp8 N OUT [f32|f16|bf16|fp8] < PROMPTS\n");
        return 2;
    }
    d.out = fopen(argv[4], "wb");
    mx_status st =
        d.out ? open_all(&d, argv[1], dtype, kv, &err) : mx_fail(&err, MX_ERR_IO, "%s: cannot be written", argv[4]);
    while (!st && getline(&line, &room, stdin) > 0) {
        st = read_prompt(&d, line, &err);
        if (!st) st = run_prompt(&d, atoi(argv[3]), &err);
    }
    if (st) fprintf(stderr, "decoder_dump: %s\n", err.text);
    free(line);
    mx_ids_free(&d.ids);
    mx_stream_close(&d.stream);
    free(d.logits);
    mx_kv_close(&d.kv);
    if (d.model.file) mx_decoder_close(&d.model);
    mx_tokenizer_close(d.tokenizer);
    mx_devices_close(d.devs, d.n_devs);
    if (d.out) fclose(d.out);
    return st ? 1 : 0;
}
