/* isolation.c - how long a vector takes while generation saturates the device, beside how long it takes alone.
 *
 *     isolation GENERATOR ENCODER [SECONDS] [TEXTS]
 *
 * GENERATOR and ENCODER are model folders (or a .gguf).  TEXTS generations run without end; every 20 ms on average
 * (Poisson) one text comes to be embedded.  Alone and saturated alternate, three times each; the times are from the
 * text's arrival to its vector.  Then generation alone, and beside a thread on each processor that does nothing but
 * count: what is left to it when something else on the machine is busy.  All of it with generation's threads nice by
 * 10 (`merx serve --isolate`), by 5, by 19, in SCHED_IDLE, and not at all. */
#include "models/embed.h"
#include "models/generate.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MOST = 100000, ROUNDS = 3, MEAN_US = 20000, MOST_STRANGERS = 256 };

typedef struct bench {
    mx_device    *devs;
    int           n_devs;
    mx_scheduler *sched;
    mx_generator *gen;
    mx_embedder  *enc;
    atomic_bool   stop;
    atomic_int    texts;           /* generations that run */
    atomic_int    done;
    uint64_t      took_ns[MOST];
} bench;

static const char text[] = "Light running shoes for wet streets, with a sole that grips and a price that does not bite.";

static void nap_until(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static mx_status start_text(bench *b, mx_error *err);

/* The next one begins where one ends. */
static void text_done(mx_generation *g, const mx_error *err)
{
    bench *b = mx_generation_user(g);
    mx_error ignored;
    (void)err;
    mx_generation_close(g);
    if (atomic_load(&b->stop) || start_text(b, &ignored)) atomic_fetch_sub(&b->texts, 1);
}

static mx_status start_text(bench *b, mx_error *err)
{
    mx_generation *g = NULL;
    mx_generation_calls c = {.done = text_done, .user = b};
    mx_sampling p = mx_sampling_defaults();
    int32_t ids[8] = {5, 9, 23, 44, 7, 1, 2, 3};
    p.ignore_eos = true;
    p.max_tokens = 200;
    MX_TRY(mx_generation_open(&g, b->gen, ids, 8, &p, &c, 0, err));
    mx_status st = mx_generation_submit(g, err);
    if (st) mx_generation_close(g);
    return st;
}

static void vector_done(mx_embedding *m, const mx_error *err)
{
    bench *b = mx_embedding_user(m);
    (void)m, (void)err;
    atomic_store(&b->done, 1);
}

static mx_status embed_one(bench *b, mx_error *err)
{
    mx_embedding *m = NULL;
    mx_embedding_request q = mx_embedding_defaults(b->enc);
    MX_TRY(mx_embedding_open(&m, b->enc, text, sizeof text - 1, &q, vector_done, b, 0, err));
    atomic_store(&b->done, 0);
    mx_status st = mx_embedding_submit(m, err);
    while (!st && !atomic_load(&b->done)) nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
    mx_embedding_close(m);
    return st;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Open loop: a text that finds the one before it still there has waited since it should have come. */
static mx_status measure(bench *b, double seconds, double *p50_ms, double *p99_ms, mx_error *err)
{
    uint64_t state = 1, start = mx_now_ns(&mx_clock_monotonic), next = start;
    size_t n = 0;
    while (n < MOST && next < start + (uint64_t)(seconds * 1e9)) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        next += (uint64_t)(-log(((double)(state >> 11) + 1) * 0x1p-53) * MEAN_US * 1000);
        nap_until(next);
        MX_TRY(embed_one(b, err));
        b->took_ns[n++] = mx_now_ns(&mx_clock_monotonic) - next;
    }
    qsort(b->took_ns, n, sizeof *b->took_ns, by_value);
    *p50_ms = (double)b->took_ns[n / 2] / 1e6;
    *p99_ms = (double)b->took_ns[n * 99 / 100] / 1e6;
    return MX_OK;
}

static void *count_on(void *arg)
{
    volatile uint64_t n = 0;
    while (!atomic_load_explicit((atomic_bool *)arg, memory_order_relaxed)) n++;
    return NULL;
}

static double tokens_per_s(bench *b, double seconds)
{
    mx_generator_info was, now;
    uint64_t start = mx_now_ns(&mx_clock_monotonic);
    mx_generator_info_get(b->gen, &was);
    nap_until(start + (uint64_t)(seconds * 1e9));
    mx_generator_info_get(b->gen, &now);
    return (double)(now.output_tokens - was.output_tokens) / seconds;
}

/* Tokens a second, and how many of a hundred are left beside busy strangers. */
static void beside_strangers(bench *b, const char *name, double seconds)
{
    pthread_t thread[MOST_STRANGERS];
    atomic_bool stop = false;
    int n = 0, all = mx_pool_threads(b->devs->pool);
    double alone = tokens_per_s(b, seconds);
    while (n < all && n < MOST_STRANGERS && !pthread_create(&thread[n], NULL, count_on, &stop)) n++;
    double left = tokens_per_s(b, seconds);
    atomic_store(&stop, true);
    for (int i = 0; i < n; i++) pthread_join(thread[i], NULL);
    printf("%-10s %.0f tokens/s alone, %.0f beside %d busy threads: %.0f %%\n", name, alone, left, n, alone > 0 ? 100 * left / alone : 0);
}

static mx_status saturate(bench *b, int n, mx_error *err)
{
    atomic_store(&b->stop, false);
    for (int i = 0; i < n; i++) {
        MX_TRY(start_text(b, err));
        atomic_fetch_add(&b->texts, 1);
    }
    return MX_OK;
}

static mx_status run(bench *b, const char *const *path, double seconds, int n, int nice, const char *name, mx_error *err)
{
    mx_generator_options go = mx_generator_defaults();
    mx_embedder_options eo = mx_embedder_defaults();
    double alone = 0, loud = 0;
    go.max_num_seqs = n;
    MX_TRY(mx_devices_open(&b->devs, &b->n_devs, &(mx_device_options){.bind = true, .spin_us = 50, .nice = nice}, err));
    MX_TRY(mx_scheduler_open(&b->sched, b->devs, b->n_devs, NULL, err));
    MX_TRY(mx_generator_open(&b->gen, "text", path[0], b->devs, 0, b->sched, NULL, &go, err));
    MX_TRY(mx_embedder_open(&b->enc, "vector", path[1], b->devs, 0, b->sched, &eo, err));
    for (int i = 0; i < ROUNDS; i++) {
        double p50[2], p99[2];
        MX_TRY(measure(b, seconds, &p50[0], &p99[0], err));
        MX_TRY(saturate(b, n, err));
        MX_TRY(measure(b, seconds, &p50[1], &p99[1], err));
        mx_generator_info info;
        mx_generator_info_get(b->gen, &info);
        printf("%-10s alone p50 %7.2f p99 %7.2f ms   saturated p50 %7.2f p99 %7.2f ms   %d of %d texts run, %llu tokens so far\n",
               name, p50[0], p99[0], p50[1], p99[1], atomic_load(&b->texts), n,
               (unsigned long long)info.output_tokens);
        fflush(stdout);
        alone += p99[0] / ROUNDS;
        loud += p99[1] / ROUNDS;
        if (i == ROUNDS - 1) beside_strangers(b, name, seconds);
        atomic_store(&b->stop, true);
        while (atomic_load(&b->texts)) nap_until(mx_now_ns(&mx_clock_monotonic) + 1000000);
    }
    printf("%-10s p99 saturated / alone: %.2f\n", name, loud / alone);
    return MX_OK;
}

int main(int argc, char **argv)
{
    mx_error err = {0};
    double seconds = argc > 3 ? strtod(argv[3], NULL) : 5;
    int n = argc > 4 ? atoi(argv[4]) : 16;
    mx_status st = MX_OK;
    if (argc < 3 || seconds <= 0 || n < 1 || n > 256) {
        fprintf(stderr, "isolation GENERATOR ENCODER [SECONDS] [TEXTS, 1 to 256]\n");
        return 2;
    }
    mx_thread_prompt();                  /* as RPC threads are */
    static const struct { int nice; const char *name; } ways[] = {{10, "nice 10"}, {5, "nice 5"}, {19, "nice 19"}, {MX_NICE_IDLE, "idle"}, {0, "not nice"}};
    for (size_t k = 0; k < sizeof ways / sizeof *ways && !st; k++) {
        static bench b;
        memset(&b, 0, sizeof b);
        st = run(&b, (const char *const *)argv + 1, seconds, n, ways[k].nice, ways[k].name, &err);
        if (b.sched) mx_scheduler_close(b.sched, 0);
        mx_generator_close(b.gen);
        mx_embedder_close(b.enc);
        if (b.devs) mx_devices_close(b.devs, b.n_devs);
    }
    if (st) fprintf(stderr, "isolation: %s: %s\n", mx_status_name(st), err.text);
    return st != MX_OK;
}
