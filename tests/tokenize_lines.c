/* tokenize_lines MODEL [nul|bench] - ids of standard input's lines, one line each.
 *
 * MODEL is a folder or a .gguf file.  Special tokens in the text are parsed and
 * none are added.  What compare_tokenizers.py holds against Hugging Face's
 * `tokenizers`.  nul: texts end in a zero byte, not in a newline, which they may
 * hold.  bench: the whole input at once and line by line, in MB/s. */
#include "models/tokenizer.h"
#include "runtime/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mx_status open_any(mx_tokenizer **out, const char *path, mx_error *err)
{
    size_t n = strlen(path);
    if (n < 5 || strcmp(path + n - 5, ".gguf")) return mx_tokenizer_open_folder(out, path, err);
    mx_checkpoint *c;
    MX_TRY(mx_checkpoint_open(&c, path, err));
    uint64_t begin = mx_now_ns(&mx_clock_monotonic);
    mx_status st = mx_tokenizer_open_gguf(out, c, err);
    fprintf(stderr, "tokenizer from the open file: %.1f ms\n", (double)(mx_now_ns(&mx_clock_monotonic) - begin) * 1e-6);
    mx_checkpoint_close(c);
    return st;
}

static mx_status bench(const mx_tokenizer *t, const char *text, size_t n, mx_error *err)
{
    mx_ids ids = {0};
    mx_status st = MX_OK;
    for (int lines = 0; lines < 2 && !st; lines++) {
        double best = 1e9;
        for (int round = 0; round < 5 && !st; round++) {
            uint64_t begin = mx_now_ns(&mx_clock_monotonic);
            ids.count = 0;
            for (size_t at = 0, len; at < n && !st; at += len) {
                const char *eol = lines ? memchr(text + at, '\n', n - at) : NULL;
                len = eol ? (size_t)(eol - text - at) + 1 : n - at;
                st = mx_tokenizer_encode(t, text + at, len, false, true, &ids, err);
            }
            double s = (double)(mx_now_ns(&mx_clock_monotonic) - begin) * 1e-9;
            if (s < best) best = s;
        }
        printf("%s: %d ids, %.1f MB/s\n", lines ? "line by line" : "at once", ids.count, (double)n / best * 1e-6);
    }
    mx_ids_free(&ids);
    return st;
}

int main(int argc, char **argv)
{
    mx_error err = {0};
    mx_tokenizer *t = NULL;
    mx_ids ids = {0};
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    if (argc < 2) {
        fprintf(stderr, "usage: tokenize_lines MODEL [nul|bench] < text\n");
        return 2;
    }
    int end = argc > 2 && !strcmp(argv[2], "nul") ? 0 : '\n';
    uint64_t begin = mx_now_ns(&mx_clock_monotonic);
    mx_status st = open_any(&t, argv[1], &err);
    if (!st) fprintf(stderr, "opened in %.1f ms\n", (double)(mx_now_ns(&mx_clock_monotonic) - begin) * 1e-6);
    if (!st && argc > 2 && !strcmp(argv[2], "bench")) {
        n = getdelim(&line, &room, -1, stdin);
        if (n > 0) st = bench(t, line, (size_t)n, &err);
    }
    while (!st && (n = getdelim(&line, &room, end, stdin)) >= 0) {
        if (n && line[n - 1] == (char)end) n--;
        ids.count = 0;
        st = mx_tokenizer_encode(t, line, (size_t)n, false, true, &ids, &err);
        for (int32_t i = 0; i < ids.count; i++) printf("%s%d", i ? " " : "", ids.id[i]);
        putchar('\n');
    }
    if (st) fprintf(stderr, "%s\n", err.text);
    mx_ids_free(&ids);
    mx_tokenizer_close(t);
    free(line);
    return st != MX_OK;
}
