/* test_decoder.c - the forward pass against transformers, on seeded random
 * weights (tests/golden/make_decoder_golden.py, make_gguf_golden.py): logits, greedy continuation,
 * and the same bits for any chunking, batch and number of threads. */
#include "models/decoder.h"
#include "tests/test.h"

#ifndef MX_TEST_DEVICE                /* tests/cudasim builds this for the simulated GPU */
#define MX_TEST_DEVICE  0
#define MX_TEST_THREADS 3
#endif

enum { PAGE = 8, PAGES = 64, ROWS = 128 };

typedef struct golden { int32_t n, vocab, n_greedy; int32_t *ids, *greedy; float *logits; char *file; } golden;

typedef struct rig {
    mx_device  *devs;
    int         n_devs;
    mx_device  *dev;                  /* the one that is tested */
    mx_decoder  model;
    mx_kv_cache kv;
    mx_stream   stream;
    golden      want;
} rig;

static bool golden_open(golden *g, const char *name)
{
    char path[512];
    mx_error err = {0};
    size_t len;
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/decoder/%s/golden.bin", name);
    CHECK_OK(mx_read_file(path, 1 << 20, &g->file, &len, &err), err);
    if (!g->file) return false;
    const char *at = g->file;
    memcpy(&g->n, at, 4);
    memcpy(&g->vocab, at + 4, 4);
    g->ids = (int32_t *)(g->file + 8);
    g->logits = (float *)(g->ids + g->n);
    g->greedy = (int32_t *)(g->logits + (size_t)g->n * (size_t)g->vocab) + 1;
    g->n_greedy = g->greedy[-1];
    return true;
}

static bool rig_open(rig *r, const char *name, int threads, mx_dtype dtype)
{
    *r = (rig){0};
    char path[512];
    mx_error err = {0};
    mx_checkpoint *file = NULL;
    mx_decoder_config config;
    mx_device_options opt = {.cpu_threads = threads};
    bool gguf = strstr(name, "-gguf") != NULL;
    snprintf(path, sizeof path, MX_SOURCE_DIR "/tests/golden/decoder/%s%s", name, gguf ? "/model.gguf" : "");
    if (!golden_open(&r->want, name)) return false;
    CHECK_OK(mx_devices_open(&r->devs, &r->n_devs, &opt, &err), err);
    CHECK(r->n_devs > MX_TEST_DEVICE);
    if (r->n_devs <= MX_TEST_DEVICE) return false;
    r->dev = &r->devs[MX_TEST_DEVICE];
    CHECK_OK(mx_checkpoint_open(&file, path, &err), err);
    CHECK_OK(gguf ? mx_decoder_config_gguf(&config, file, &err) : mx_decoder_config_folder(&config, path, &err), err);
    CHECK_OK(mx_decoder_open(&r->model, r->dev, file, &config, dtype, &err), err);
    if (err.code) return false;
    CHECK_OK(mx_kv_open(&r->kv, r->dev, config.layers, PAGES, PAGE, config.kv_heads, config.head_dim, MX_F32, false, &err), err);
    CHECK_OK(mx_stream_open(&r->stream, r->dev, mx_decoder_scratch(&r->model, ROWS, ROWS, PAGES, ROWS), &err), err);
    return !err.code;
}

static void rig_close(rig *r)
{
    mx_stream_close(&r->stream);
    mx_kv_close(&r->kv);
    mx_decoder_close(&r->model);
    mx_devices_close(r->devs, r->n_devs);
    free(r->want.file);
}

/* Append ids to several sequences in one turn; logits of every row to out. */
static void run_turn(rig *r, mx_kv_seq *const *seqs, const int32_t *const *ids, const int32_t *counts, int n, float *out)
{
    int32_t id[ROWS], pos[ROWS], slot[ROWS], at[2 * ROWS], rows[ROWS], pages[ROWS * PAGES], moves[2 * ROWS];
    mx_kv_copies copies = {moves, 0, ROWS};
    int32_t N = 0;
    mx_error err = {0};
    for (int i = 0; i < n; i++) {
        int32_t done = seqs[i]->n_tokens;
        CHECK(mx_kv_reserve(&r->kv, seqs[i], done + counts[i], &copies));
        for (int32_t k = 0; k < counts[i]; k++, N++) {
            id[N] = ids[i][done + k];
            pos[N] = done + k;
            slot[N] = mx_kv_slot(&r->kv, seqs[i], done + k);
            at[2 * N] = i;
            at[2 * N + 1] = done + k;
            rows[N] = N;
        }
        for (int32_t k = 0; k < PAGES; k++) pages[i * PAGES + k] = k < seqs[i]->n_pages ? seqs[i]->page[k] : 0;
    }
    mx_decoder_batch b = {.n_rows = N, .n_seqs = n, .n_logits = N, .table_cols = PAGES, .ids = id, .positions = pos,
                          .slots = slot, .at = at, .pages = pages, .logit_rows = rows, .copies = &copies};
    mx_tensor logits = mx_decoder_forward(&r->model, &r->stream, &r->kv, &b);
    r->dev->ops->download(&r->stream, out, logits.data, (size_t)N * (size_t)r->want.vocab * sizeof *out);
    CHECK_OK(mx_stream_sync(&r->stream, &err), err);
    mx_stream_rewind(&r->stream);
}

/* The whole prompt, `chunk` tokens a turn. */
static void run_prompt(rig *r, mx_kv_seq *s, int32_t chunk, float *out)
{
    const int32_t *ids = r->want.ids;
    while (s->n_tokens < r->want.n) {
        int32_t left = r->want.n - s->n_tokens, n = chunk < left ? chunk : left;
        run_turn(r, &s, &ids, &n, 1, out + (size_t)s->n_tokens * (size_t)r->want.vocab);
    }
}

static double worst(const float *got, const float *want, size_t n)
{
    double diff = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        diff = fmax(diff, fabs((double)got[i] - (double)want[i]));
        size = fmax(size, fabs((double)want[i]));
        if (!isfinite(got[i])) return INFINITY;
    }
    return diff / size;
}

static int32_t argmax(const float *x, int32_t n)
{
    int32_t best = 0;
    for (int32_t i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

static const char *const models[] = {"gpt2", "llama", "llama3", "qwen2", "llama-gguf", "gpt2-gguf"};

static void logits_equal_transformers(void)
{
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        rig r;
        if (rig_open(&r, models[m], 2, MX_F32)) {
            size_t n = (size_t)r.want.n * (size_t)r.want.vocab;
            float *got = malloc(n * sizeof *got);
            mx_kv_seq s = {0};
            run_prompt(&r, &s, r.want.n, got);
            double e = worst(got, r.want.logits, n);
            CHECK_MSG(e <= 2e-5, "%s: relative error %g", models[m], e);
            mx_kv_release(&r.kv, &s);
            free(got);
        }
        rig_close(&r);
    }
}

static void greedy_equals_transformers(void)
{
    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        rig r;
        if (rig_open(&r, models[m], 1, MX_F32)) {
            int32_t ids[96], same = 0;
            float *got = malloc((size_t)r.want.n * (size_t)r.want.vocab * sizeof *got);
            mx_kv_seq s = {0}, *one = &s;
            const int32_t *list = ids;
            run_prompt(&r, &s, r.want.n, got);
            memcpy(ids, r.want.ids, (size_t)r.want.n * sizeof *ids);
            int32_t next = argmax(got + (size_t)(r.want.n - 1) * (size_t)r.want.vocab, r.want.vocab);
            for (int32_t i = 0; i < r.want.n_greedy; i++) {
                same += next == r.want.greedy[i];
                ids[r.want.n + i] = next;
                if (i + 1 == r.want.n_greedy) break;
                run_turn(&r, &one, &list, &(int32_t){1}, 1, got);
                next = argmax(got, r.want.vocab);
            }
            CHECK_MSG(same == 64 && r.want.n_greedy == 64, "%s: %d of 64 greedy tokens equal", models[m], same);
            mx_kv_release(&r.kv, &s);
            free(got);
        }
        rig_close(&r);
    }
}

/* Chunks, page layouts, neighbours in the batch and threads leave every bit as it is. */
static void same_bits(void)
{
    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int d = 0; d < 3; d++) {
            mx_dtype dtype = (mx_dtype[]){MX_F32, MX_BF16, MX_I8}[d];
            rig r;
            float *base = NULL;
            for (int threads = 1; threads <= MX_TEST_THREADS; threads++) {
                if (!rig_open(&r, models[m], threads, dtype)) return;
                size_t row = (size_t)r.want.vocab, n = (size_t)r.want.n * row;
                float *got = malloc(n * sizeof *got), *pair = malloc(2 * n * sizeof *pair);
                for (int32_t chunk = 1; chunk <= r.want.n; chunk += chunk < 9 ? 1 : 7) {
                    mx_kv_seq s = {0};
                    run_prompt(&r, &s, chunk, got);
                    if (!base) base = memcpy(malloc(n * sizeof *base), got, n * sizeof *base);
                    CHECK_MSG(!memcmp(base, got, n * sizeof *got), "%s %s threads %d chunk %d", models[m], mx_dtype_name(dtype), threads, chunk);
                    mx_kv_release(&r.kv, &s);
                }
                mx_kv_seq a = {0}, b = {0}, *both[] = {&a, &b};
                int32_t half[] = {r.want.n / 2, r.want.n}, rest[] = {r.want.n - r.want.n / 2};
                const int32_t *ids[] = {r.want.ids, r.want.ids};
                run_turn(&r, both, ids, half, 2, pair);
                CHECK_MSG(!memcmp(base, pair + (size_t)half[0] * row, n * sizeof *pair), "%s: beside another text", models[m]);
                run_turn(&r, both, ids, rest, 1, pair);
                CHECK_MSG(!memcmp(base + (size_t)half[0] * row, pair, (n - (size_t)half[0] * row) * sizeof *pair), "%s: second half", models[m]);
                mx_kv_release(&r.kv, &a);
                mx_kv_release(&r.kv, &b);
                free(got);
                free(pair);
                rig_close(&r);
            }
            free(base);
        }
}

MX_TESTS(TEST(logits_equal_transformers), TEST(greedy_equals_transformers), TEST(same_bits))
