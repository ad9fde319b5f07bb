/* main.c - which command, which settings. */
#include "runtime/log.h"
#include "server/cli.h"
#include "server/settings.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { USAGE = 2 };

/* Flags are read first, to learn the file; the ranks of the sources keep the order right. */
static mx_status read_settings(mx_config *c, uint64_t bit, int argc, char **argv, char **rest, int *n, mx_error *err)
{
    mx_log_level level = bit == MX_CMD_SERVE ? MX_LOG_INFO : MX_LOG_WARN;
    MX_TRY(mx_config_flags(c, bit, argc, argv, rest, n, err));
    MX_TRY(mx_config_environment(c, bit, err));
    if (mx_config_string(c, "config")) MX_TRY(mx_config_file(c, mx_config_string(c, "config"), err));
    if (mx_config_string(c, "log-level")) mx_log_parse_level(mx_config_string(c, "log-level"), &level);
    mx_log_configure(level, bit == MX_CMD_SERVE && !strcmp(mx_config_string(c, "log-format"), "json"));
    return MX_OK;
}

static bool is_help(const char *arg)
{
    return !strcmp(arg, "--help") || !strcmp(arg, "-h");
}

/* --help anywhere before "--" */
static bool asks_help(int argc, char **argv)
{
    for (int i = 0; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (is_help(argv[i])) return true;
    return false;
}

static int no_command(const char *name)
{
    const char *near = mx_cli_nearest(name);
    fprintf(stderr, "merx: no command \"%s\"", name);
    if (near) fprintf(stderr, "; did you mean %s?", near);
    fputs("\nmerx help shows them.\n", stderr);
    return USAGE;
}

static int run(mx_config *c, const mx_cli_command *k, int argc, char **argv)
{
    mx_error err = {0};
    int n = 0, status = USAGE;
    char **rest = calloc((size_t)argc + 1, sizeof *rest);
    mx_log_configure(k->bit == MX_CMD_SERVE ? MX_LOG_INFO : MX_LOG_WARN, false);
    if (asks_help(argc, argv)) {
        mx_cli_help_command(c, k, stdout);
        status = 0;
    } else if (!rest) {
        fprintf(stderr, "merx: out of memory\n");
        status = 1;
    } else if (read_settings(c, k->bit, argc, argv, rest, &n, &err)) {
        fprintf(stderr, "merx %s: %s\nmerx help %s shows what there is.\n", k->name, err.text, k->name);
    } else {
        status = k->run(c, n, rest);
    }
    free(rest);
    return status;
}

/* merx help, merx help COMMAND, merx help --markdown */
static int help(const mx_config *c, int argc, char **argv)
{
    if (argc && !strcmp(argv[0], "--markdown")) return mx_cli_help_markdown(c, stdout), 0;
    if (!argc || is_help(argv[0])) return mx_cli_help(c, stdout), 0;
    const mx_cli_command *k = mx_cli_find(argv[0]);
    if (!k) return no_command(argv[0]);
    mx_cli_help_command(c, k, stdout);
    return 0;
}

int main(int argc, char **argv)
{
    mx_error err = {0};
    mx_config *c = NULL;
    int status;
    if (mx_config_open(&c, mx_settings, mx_settings_count, &err)) {
        fprintf(stderr, "merx: %s\n", err.text);
        return 1;
    }
    const char *name = argc > 1 ? argv[1] : "";
    const mx_cli_command *k = mx_cli_find(name);
    if (argc < 2) {
        mx_cli_help(c, stderr);
        status = USAGE;
    } else if (!strcmp(name, "help") || is_help(name)) {
        status = help(c, argc - 2, argv + 2);
    } else if (!strcmp(name, "--version") || !strcmp(name, "version")) {
        puts("merx " MERX_VERSION);
        status = 0;
    } else {
        status = k ? run(c, k, argc - 2, argv + 2) : no_command(name);
    }
    mx_config_close(c);
    if ((fflush(stdout) || ferror(stdout)) && !status) {
        fprintf(stderr, "merx: standard output: %s\n", strerror(errno));
        status = 1;
    }
    return status;
}
