/* fuzz_config.c - libFuzzer target: a configuration file and flags made of the
 * same bytes.  clang -fsanitize=fuzzer,address,undefined. */
#include "runtime/config.h"
#include "runtime/log.h"

#include <stdlib.h>
#include <string.h>

static const mx_setting table[] = {
    {"model", 'm', MX_SET_LIST, NULL, 0, 0, NULL, 1, NULL, NULL},
    {"max-num-seqs", 'n', MX_SET_INT, "64", 1, 4096, NULL, 1, NULL, NULL},
    {"memory", 0, MX_SET_INT, NULL, 0, 0, NULL, 1, NULL, NULL},
    {"temperature", 't', MX_SET_FLOAT, "0.7", 0, 2, NULL, 1, NULL, NULL},
    {"dtype", 0, MX_SET_CHOICE, "auto", 0, 0, "auto|f32|bf16", 1, NULL, NULL},
    {"verbose", 'v', MX_SET_BOOL, NULL, 0, 0, NULL, 1, NULL, NULL},
    {"listen", 'l', MX_SET_STRING, NULL, 0, 0, NULL, 1, NULL, NULL},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mx_config *c;
    mx_error err;
    mx_log_configure(MX_LOG_OFF, false);
    if (mx_config_open(&c, table, sizeof table / sizeof *table, &err)) return 0;
    mx_config_text(c, (const char *)data, size, "input", &err);

    char *copy = malloc(size + 1), *argv[64], *rest[64];
    int argc = 0, n;
    if (copy) {
        memcpy(copy, data, size);
        copy[size] = '\0';
        for (char *at = copy, *word; argc < 64 && (word = strsep(&at, "\n"));) argv[argc++] = word;
        mx_config_flags(c, 1, argc, argv, rest, &n, &err);
    }
    free(copy);
    mx_config_close(c);
    return 0;
}
