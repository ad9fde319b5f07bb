/* main.c - which command, which settings. */
#include "runtime/log.h"
#include "server/cli.h"
#include "server/settings.h"

#include <stdlib.h>
#include <string.h>

static const struct { const char *name; unsigned bit; int (*run)(mx_config *, int, char **); const char *args, *help; } commands[] = {
    {"serve", MX_CMD_SERVE, mx_cli_serve, "", "Serve models over gRPC."},
    {"generate", MX_CMD_GENERATE, mx_cli_generate, " \"PROMPT\"", "Write a text, here and now."},
    {"client", MX_CMD_CLIENT, mx_cli_client, " \"PROMPT\"", "Ask a running server; print the answer as it comes."},
    {"info", MX_CMD_INFO, mx_cli_info, "", "Show devices, models, the memory they take."},
};
enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int usage(FILE *out)
{
    fprintf(out, "merx - inference server for marketing platforms\n\n");
    for (int i = 0; i < N_COMMANDS; i++) fprintf(out, "  merx %-10s %s\n", commands[i].name, commands[i].help);
    fprintf(out, "\nmerx COMMAND --help shows its settings. Each is a flag, an environment variable\n(MERX_MAX_NUM_SEQS) and a line in a --config file.\n");
    return out == stderr ? 2 : 0;
}

/* Flags are read first, to learn the file; the ranks of the sources keep the order right. */
static mx_status read_settings(mx_config *c, unsigned bit, int argc, char **argv, char **rest, int *n, mx_error *err)
{
    mx_log_level level;
    MX_TRY(mx_config_flags(c, bit, argc, argv, rest, n, err));
    MX_TRY(mx_config_environment(c, bit, err));
    if (mx_config_string(c, "config")) MX_TRY(mx_config_file(c, mx_config_string(c, "config"), err));
    if (mx_log_parse_level(mx_config_string(c, "log-level"), &level)) mx_log_configure(level, false);
    return MX_OK;
}

int main(int argc, char **argv)
{
    if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) return usage(argc < 2 ? stderr : stdout);
    for (int k = 0; k < N_COMMANDS; k++) {
        if (strcmp(argv[1], commands[k].name)) continue;
        mx_error err = {0};
        mx_config *config = NULL;
        int n = 0, status = 2;
        char **rest = calloc((size_t)argc, sizeof *rest);
        if (!rest || mx_config_open(&config, mx_settings, mx_settings_count, &err)) {
            fprintf(stderr, "merx: out of memory\n");
        } else if (argc > 2 && (!strcmp(argv[2], "--help") || !strcmp(argv[2], "-h"))) {
            printf("merx %s [settings]%s - %s\n\n", commands[k].name, commands[k].args, commands[k].help);
            mx_config_help(config, commands[k].bit, stdout, 100);
            status = 0;
        } else if (read_settings(config, commands[k].bit, argc - 2, argv + 2, rest, &n, &err)) {
            fprintf(stderr, "merx %s: %s\n", commands[k].name, err.text);
        } else {
            status = commands[k].run(config, n, rest);
        }
        mx_config_close(config);
        free(rest);
        return status;
    }
    fprintf(stderr, "merx: no command \"%s\"\n\n", argv[1]);
    return usage(stderr);
}
