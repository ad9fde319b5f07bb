/* test_config.c - one table, four sources, and errors that tell where. */
#include "runtime/config.h"
#include "runtime/log.h"
#include "tests/test.h"

#include <inttypes.h>
#include <unistd.h>

enum { SERVE = 1, RUN = 2 };

static const mx_setting table[] = {
    {"model", 'm', MX_SET_LIST, NULL, 0, 0, NULL, SERVE | RUN, "NAME=PATH", "a model folder or file"},
    {"max-num-seqs", 0, MX_SET_INT, "64", 1, 4096, NULL, SERVE, "N", "most texts that run at once"},
    {"memory", 0, MX_SET_INT, "1g", 0, 9e18, NULL, SERVE, "BYTES", "memory for the cache of keys and values"},
    {"offset", 0, MX_SET_INT, NULL, 0, 0, NULL, SERVE, NULL, "any number"},
    {"temperature", 't', MX_SET_FLOAT, "0.7", 0, 2, NULL, RUN, NULL, "how bold the choice of words is"},
    {"dtype", 0, MX_SET_CHOICE, "auto", 0, 0, "auto|f32|bf16", SERVE | RUN, NULL, "type of the weights"},
    {"verbose", 'v', MX_SET_BOOL, NULL, 0, 0, NULL, SERVE | RUN, NULL, "say more"},
    {"quiet", 'q', MX_SET_BOOL, "false", 0, 0, NULL, SERVE | RUN, NULL, "say less"},
    {"bind", 0, MX_SET_BOOL, "true", 0, 0, NULL, SERVE, NULL, "leave threads where the system puts them"},
    {"listen", 'l', MX_SET_STRING, "127.0.0.1:50051", 0, 0, NULL, SERVE, "ADDRESS",
     "address and port the server listens on; port 0 takes a free one and prints it, which is what tests do"},
    {"config", 'c', MX_SET_STRING, NULL, 0, 0, NULL, SERVE | RUN, "FILE", "read settings from a file"},
};
#define N ((int)(sizeof table / sizeof *table))

static mx_config *open_config(void)
{
    mx_config *c = NULL;
    mx_error err = {0};
    CHECK_OK(mx_config_open(&c, table, N, &err), err);
    return c;
}

static mx_status flags(mx_config *c, uint64_t command, char **argv, mx_error *err)
{
    int argc = 0, n;
    while (argv[argc]) argc++;
    char *rest[32];
    mx_status st = mx_config_flags(c, command, argc, argv, rest, &n, err);
    return st;
}

#define ARGS(...) ((char *[]){__VA_ARGS__, NULL})

static void defaults(void)
{
    mx_config *c = open_config();
    const char *const *items = (const char *const *)&c;
    CHECK(mx_config_int(c, "max-num-seqs") == 64 && mx_config_int(c, "memory") == 1 << 30);
    CHECK(mx_config_float(c, "temperature") == 0.7);
    CHECK(!mx_config_bool(c, "verbose") && mx_config_bool(c, "bind"));
    CHECK_STR(mx_config_string(c, "dtype"), "auto");
    CHECK_STR(mx_config_string(c, "listen"), "127.0.0.1:50051");
    CHECK(mx_config_string(c, "config") == NULL);
    CHECK(mx_config_list(c, "model", &items) == 0);
    CHECK(!mx_config_given(c, "listen") && !mx_config_given(c, "config"));
    CHECK_STR(mx_config_where(c, "listen"), "default");
    CHECK_STR(mx_config_where(c, "config"), "default");
    /* a question the table cannot answer gets the neutral value */
    mx_log_configure(MX_LOG_OFF, false);
    CHECK(mx_config_int(c, "no-such") == 0 && mx_config_int(c, "listen") == 0 && !mx_config_string(c, "bind"));
    CHECK(mx_config_list(c, "listen", &items) == 0 && !items);
    mx_log_configure(MX_LOG_INFO, false);
    mx_config_close(c);
    mx_config_close(NULL);
}

static void table_errors(void)
{
    static const mx_setting bad[] = {
        {"a", 0, MX_SET_INT, "many", 0, 0, NULL, 1, NULL, NULL}, {"b", 0, MX_SET_INT, "9", 1, 8, NULL, 1, NULL, NULL},
        {"c", 0, MX_SET_CHOICE, "x", 0, 0, "y|z", 1, NULL, NULL},
        {NULL, 0, MX_SET_INT, NULL, 0, 0, NULL, 1, NULL, NULL},
        {"d", 0, MX_SET_CHOICE, NULL, 0, 0, NULL, 1, NULL, NULL},
    };
    mx_config *c;
    mx_error err;
    for (int i = 0; i < 5; i++) CHECK(mx_config_open(&c, &bad[i], 1, &err) == MX_ERR_ARG && !c);
}

static void numbers(void)
{
    static const struct { const char *text; bool ok; int64_t value; } cases[] = {
        {"0", true, 0}, {"-7", true, -7}, {"+7", true, 7}, {"64k", true, 65536}, {"2M", true, 2 << 20},
        {"3g", true, 3ll << 30}, {"-1K", true, -1024}, {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN}, {"9223372036854775808", false, 0}, {"9007199254740993k", false, 0},
        {"8589934592g", false, 0}, {"", false, 0}, {" 1", false, 0}, {"1 ", false, 0}, {"1kb", false, 0},
        {"k", false, 0}, {"0x10", false, 0}, {"1.5", false, 0}, {"1e3", false, 0},
        {"--1", false, 0}, {"+-1", false, 0},
    };
    mx_config *c = open_config();
    mx_error err = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_status st = mx_config_set(c, "offset", cases[i].text, "a test", &err);
        CHECK_MSG((st == MX_OK) == cases[i].ok, "\"%s\"", cases[i].text);
        if (cases[i].ok) CHECK(mx_config_int(c, "offset") == cases[i].value);
    }
    CHECK(mx_config_set(c, "max-num-seqs", "0", "a test", &err) == MX_ERR_ARG);
    CHECK_STR(err.text, "max-num-seqs: 0 is out of range, must be 1 to 4096 (a test)");
    CHECK(mx_config_set(c, "max-num-seqs", "4k", "a test", &err) == MX_OK);
    CHECK(mx_config_set(c, "max-num-seqs", "4097", "a test", &err) == MX_ERR_ARG);
    CHECK(mx_config_int(c, "max-num-seqs") == 4096);
    static const char *const floats[] = {"nan", "inf", "-inf", "0x", "", "1,5", "1.5x", "2.0001", "-0.1", "1e999"};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++)
        CHECK_MSG(mx_config_set(c, "temperature", floats[i], "a test", &err) == MX_ERR_ARG, "%s", floats[i]);
    CHECK(!mx_config_set(c, "temperature", ".5", "x", &err) && mx_config_float(c, "temperature") == 0.5);
    CHECK(!mx_config_set(c, "temperature", "1.25e0", "x", &err) && mx_config_float(c, "temperature") == 1.25);
    CHECK(mx_config_set(c, "nothing", "1", "a test", &err) == MX_ERR_ARG);
    mx_config_close(c);
}

static void flag_forms(void)
{
    mx_config *c = open_config();
    mx_error err = {0};
    char *argv[] = {"first", "--max-num-seqs", "5", "-m", "a=x", "-mb=y", "--model=c=z", "-vq", "--no-bind", "-",
                    "--dtype=bf16", "--max_num_seqs=6", "--", "--not-a-flag", "-x"};
    char *rest[16];
    int n;
    CHECK_OK(mx_config_flags(c, SERVE, 15, argv, rest, &n, &err), err);
    CHECK(n == 4);
    CHECK_STR(rest[0], "first");
    CHECK_STR(rest[1], "-");
    CHECK_STR(rest[2], "--not-a-flag");
    CHECK_STR(rest[3], "-x");
    CHECK(mx_config_int(c, "max-num-seqs") == 6 && mx_config_bool(c, "verbose") && mx_config_bool(c, "quiet"));
    CHECK(!mx_config_bool(c, "bind"));
    const char *const *items;
    CHECK(mx_config_list(c, "model", &items) == 3);
    CHECK_STR(items[0], "a=x");
    CHECK_STR(items[1], "b=y");
    CHECK_STR(items[2], "c=z");
    CHECK_STR(mx_config_where(c, "dtype"), "--dtype");
    CHECK(mx_config_given(c, "bind"));
    CHECK_OK(flags(c, SERVE, ARGS("--bind", "--verbose=no", "-l=host:1"), &err), err);
    CHECK(mx_config_bool(c, "bind") && !mx_config_bool(c, "verbose"));
    CHECK_STR(mx_config_string(c, "listen"), "host:1");
    CHECK_OK(flags(c, RUN, ARGS("-t", "0", "--model", "-"), &err), err);
    mx_config_close(c);
}

static void flag_errors(void)
{
    static const struct { char *arg, *next; const char *says; } cases[] = {
        {"--max-num-seq", "5", "no flag --max-num-seq; did you mean --max-num-seqs?"},
        {"--max-nmu-seqs=5", NULL, "no flag --max-nmu-seqs; did you mean --max-num-seqs?"},
        {"--max-num", "5", "no flag --max-num; did you mean --max-num-seqs?"},
        {"--modle", "x", "no flag --modle; did you mean --model?"},
        {"--no-quite", NULL, "no flag --no-quite"},
        {"--entirely-else", NULL, "no flag --entirely-else"},
        {"--temperature", "1", "--temperature is not a flag of this command"},
        {"--listen", NULL, "--listen needs a value (ADDRESS)"},
        {"--listen", "--verbose", "--listen needs a value (ADDRESS)"},
        {"-l", NULL, "--listen needs a value (ADDRESS)"},
        {"--dtype", NULL, "--dtype needs a value (auto|f32|bf16)"},
        {"--dtype", "f16", "dtype: \"f16\" is none of auto|f32|bf16 (--dtype)"},
        {"--dtype=", NULL, "dtype: \"\" is none of auto|f32|bf16 (--dtype)"},
        {"--dtype=f32|bf16", NULL, "dtype: \"f32|bf16\" is none of auto|f32|bf16 (--dtype)"},
        {"--verbose=maybe", NULL, "verbose: \"maybe\" is neither true nor false (--verbose)"},
        {"--no-listen", NULL, "no flag --no-listen"},
        {"--no-bind=true", NULL, "no flag --no-bind"},
        {"-z", NULL, "no flag -z"},
        {"-vz", NULL, "no flag -z"},
        {"--=5", NULL, "no flag --"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        mx_config *c = open_config();
        mx_error err = {0};
        char *argv[] = {cases[i].arg, cases[i].next, NULL};
        CHECK(flags(c, SERVE, argv, &err) == MX_ERR_ARG);
        CHECK_MSG(strncmp(err.text, cases[i].says, strlen(cases[i].says)) == 0, "%s", err.text);
        mx_config_close(c);
    }
    mx_config *c = open_config();
    mx_error err = {0};
    char *longest = malloc(100000);
    memset(longest, 'x', 99999);
    longest[99999] = '\0';
    memcpy(longest, "--", 2);
    CHECK(flags(c, SERVE, ARGS(longest), &err) == MX_ERR_ARG);
    CHECK(mx_config_set(c, "offset", longest, "a test", &err) == MX_ERR_ARG && strlen(err.text) < sizeof err.text);
    free(longest);
    mx_config_close(c);
}

static mx_status text(mx_config *c, const char *t, mx_error *err)
{
    return mx_config_text(c, t, strlen(t), "f", err);
}

static void file_forms(void)
{
    mx_config *c = open_config();
    mx_error err = {0};
    CHECK_OK(text(c, "\xef\xbb\xbf# a comment\n\n  max_num_seqs=7   # the rest of it\r\n"
                     "listen = \"a # b \\\" c\\\\\" # d\n"
                     "model = one=/a/b#c\n\tmodel = 'two=\\x' \nconfig =\nmodel = three", &err), err);
    CHECK(mx_config_int(c, "max-num-seqs") == 7);
    CHECK_STR(mx_config_string(c, "listen"), "a # b \" c\\");
    CHECK_STR(mx_config_string(c, "config"), "");
    CHECK_STR(mx_config_where(c, "listen"), "f:4");
    const char *const *items;
    CHECK(mx_config_list(c, "model", &items) == 3);
    CHECK_STR(items[0], "one=/a/b#c");
    CHECK_STR(items[1], "two=\\x");
    CHECK_STR(items[2], "three");
    CHECK_OK(text(c, "", &err), err);
    CHECK(mx_config_text(c, "listen = a\0b", 12, "f", &err) == MX_ERR_FORMAT && strstr(err.text, "10"));
    static const struct { const char *text; mx_status st; const char *says; } cases[] = {
        {"\nmax-num-seq = 5", MX_ERR_ARG, "f:2: no setting \"max-num-seq\"; did you mean max-num-seqs?"},
        {"qwertyuiop = 5", MX_ERR_ARG, "f:1: no setting \"qwertyuiop\""},
        {"= 5", MX_ERR_ARG, "f:1: no setting \"\""},
        {"verbose", MX_ERR_FORMAT, "f:1: \"verbose\" is not \"name = value\""},
        {"listen = \"a", MX_ERR_FORMAT, "f:1: listen: the quotes do not close"},
        {"listen = \"a\" b", MX_ERR_FORMAT, "f:1: listen: the quotes do not close"},
        {"listen = \"a\\\"", MX_ERR_FORMAT, "f:1: listen: the quotes do not close"},
        {"\n\nmax-num-seqs = 5000", MX_ERR_ARG, "max-num-seqs: 5000 is out of range, must be 1 to 4096 (f:3)"},
        {"verbose =", MX_ERR_ARG, "verbose: \"\" is neither true nor false (f:1)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(text(c, cases[i].text, &err) == cases[i].st);
        CHECK_STR(err.text, cases[i].says);
    }
    mx_config_close(c);
}

static void files(void)
{
    mx_config *c = open_config();
    mx_error err = {0};
    CHECK(mx_config_file(c, "/no/such/file", &err) == MX_ERR_IO && strstr(err.text, "/no/such/file"));
    CHECK(mx_config_file(c, "/", &err) == MX_ERR_IO);
    char path[] = MX_BINARY_DIR "/config-XXXXXX";
    int fd = mkstemp(path);
    CHECK(fd >= 0 && write(fd, "verbose = yes\nquiet = 1\n", 24) == 24);
    CHECK_OK(mx_config_file(c, path, &err), err);
    CHECK(mx_config_bool(c, "verbose") && mx_config_bool(c, "quiet"));
    char want[300];
    snprintf(want, sizeof want, "%s:2", path);
    CHECK_STR(mx_config_where(c, "quiet"), want);
    CHECK(ftruncate(fd, (2 << 20)) == 0);
    CHECK(mx_config_file(c, path, &err) == MX_ERR_FORMAT && strstr(err.text, "longer"));
    close(fd);
    unlink(path);
    mx_config_close(c);
}

/* Every order of reading gives the same winner. */
static void precedence(void)
{
    static const char orders[6][4] = {"fex", "fxe", "efx", "exf", "xfe", "xef"};
    setenv("MERX_MAX_NUM_SEQS", "20", 1);
    setenv("MERX_MODEL", "e1,,e2", 1);
    setenv("MERX_MEMORY", "2k", 1);
    setenv("MERX_VERBOSE", "", 1);
    for (int i = 0; i < 6; i++) {
        mx_config *c = open_config();
        mx_error err = {0};
        for (const char *o = orders[i]; *o; o++) {
            if (*o == 'f') CHECK_OK(text(c, "max-num-seqs = 10\nmodel = f\nmemory = 3k\nlisten = f", &err), err);
            if (*o == 'e') CHECK_OK(mx_config_environment(c, SERVE, &err), err);
            if (*o == 'x') CHECK_OK(flags(c, SERVE, ARGS("--max-num-seqs=30", "-m", "x1", "-m", "x2"), &err), err);
        }
        const char *const *items;
        CHECK(mx_config_int(c, "max-num-seqs") == 30 && mx_config_int(c, "memory") == 2048);
        CHECK_STR(mx_config_string(c, "listen"), "f");
        CHECK(mx_config_list(c, "model", &items) == 2);
        CHECK_STR(items[0], "x1");
        CHECK_STR(items[1], "x2");
        CHECK_STR(mx_config_where(c, "memory"), "MERX_MEMORY");
        CHECK(!mx_config_given(c, "verbose"));
        mx_config_close(c);
    }
    mx_config *c = open_config();
    mx_error err = {0};
    const char *const *items;
    CHECK_OK(mx_config_environment(c, RUN, &err), err);
    CHECK(mx_config_list(c, "model", &items) == 2 && mx_config_int(c, "max-num-seqs") == 64);
    CHECK_STR(items[1], "e2");
    setenv("MERX_MAX_NUM_SEQS", "no", 1);
    CHECK(mx_config_environment(c, SERVE, &err) == MX_ERR_ARG);
    CHECK_STR(err.text, "max-num-seqs: \"no\" is not a whole number (MERX_MAX_NUM_SEQS)");
    /* a bad line is told of even when a flag overrides it */
    CHECK_OK(flags(c, SERVE, ARGS("--max-num-seqs=3"), &err), err);
    CHECK(text(c, "max-num-seqs = none", &err) == MX_ERR_ARG);
    CHECK(mx_config_int(c, "max-num-seqs") == 3);
    unsetenv("MERX_MAX_NUM_SEQS");
    unsetenv("MERX_MODEL");
    unsetenv("MERX_MEMORY");
    unsetenv("MERX_VERBOSE");
    mx_config_close(c);
}

static void pages(void)
{
    mx_config *c = open_config();
    char *page = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&page, &len);
    mx_config_help(c, RUN, 0, f, 60);
    fclose(f);
    CHECK_STR(page, "  -m, --model NAME=PATH      a model folder or file\n"
                    "                             (repeatable)\n"
                    "  -t, --temperature X        how bold the choice of words is\n"
                    "                             (default 0.7, 0 to 2)\n"
                    "      --dtype auto|f32|bf16  type of the weights (default\n"
                    "                             auto)\n"
                    "  -v, --verbose              say more\n"
                    "  -q, --quiet                say less\n"
                    "  -c, --config FILE          read settings from a file\n");
    free(page);
    for (int width = 0; width < 200; width += 7) {
        f = open_memstream(&page, &len);
        mx_config_help(c, SERVE, 0, f, width);
        fclose(f);
        for (char *line = page, *next; *line; line = next) {
            next = strchr(line, '\n') + 1;
            int most = width < 50 ? 50 : width;
            CHECK_MSG(next - line - 1 <= most, "width %d: %.*s", width, (int)(next - line), line);
            CHECK(next - line < 2 || next[-2] != ' ');
        }
        CHECK(strstr(page, "--no-bind"));
        if (width > 100) CHECK(strstr(page, "(on by default)") && strstr(page, "(default 1g, at least 0)"));
        free(page);
    }
    f = open_memstream(&page, &len);
    mx_config_markdown(c, (const char *const[]){"serve", "run", NULL}, f);
    fclose(f);
    CHECK(strstr(page, "| `-m, --model NAME=PATH` | `MERX_MODEL` |  | serve, run | "
                       "a model folder or file (repeatable) |\n"));
    CHECK(strstr(page, "| `--dtype auto\\|f32\\|bf16` | `MERX_DTYPE` | `auto` | serve, run | "
                       "type of the weights |\n"));
    CHECK(strstr(page, "| `--max-num-seqs N` | `MERX_MAX_NUM_SEQS` | `64` | serve | "
                       "most texts that run at once (1 to 4096) |\n"));
    free(page);
    mx_config_close(c);
}

/* Whatever the bytes are, an answer and no crash. */
static void noise(void)
{
    const char *given = getenv("MX_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : 3, state = seed;
    printf("  MX_TEST_SEED=%" PRIu64 "\n", seed);
    static const char *const pieces[] = {"model", "max-num-seqs", "dtype", "=", "\"", "'", "\\", "#", "\n", " ", "9",
                                         "k",
                                         "auto", "verbose", "true", "\xc3", "\r", "-", "listen = \"", "\" "};
    int taken = 0;
    for (int i = 0; i < 20000; i++) {
        char line[400] = "";
        for (int k = (int)(test_random(&state) % 20); k; k--)
            strcat(line, pieces[test_random(&state) % (sizeof pieces / sizeof *pieces)]);
        mx_config *c = open_config();
        mx_error err = {0};
        taken += !text(c, line, &err);
        flags(c, SERVE, ARGS(line), &err);
        mx_config_close(c);
    }
    CHECK_MSG(taken > 100 && taken < 19900, "%d taken", taken);
}

/* ---- the log: what stderr gets is one line, whatever the message held --------- */

static char *logged(bool json, const char *message)
{
    static char line[20000];
    int ends[2], saved = dup(STDERR_FILENO);
    if (pipe(ends) || saved < 0) return NULL;
    dup2(ends[1], STDERR_FILENO);
    mx_log_configure(MX_LOG_INFO, json);
    mx_log(MX_LOG_DEBUG, "test", "not seen");
    mx_log(MX_LOG_WARN, "test", "%s", message);
    mx_log_configure(MX_LOG_INFO, false);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    ssize_t n = read(ends[0], line, sizeof line - 1);
    close(ends[0]);
    line[n > 0 ? n : 0] = '\0';
    return line;
}

static void log_lines(void)
{
    char *line = logged(false, "a\nb\x1b c");
    CHECK(line && strlen(line) > 25 && line[10] == 'T' && line[23] == 'Z');
    if (line) CHECK_STR(line + 24, " warn  test: a b  c\n");
    line = logged(true, "say \"hi\"\n\\ \x01 \xe4\xbd\xa0");
    CHECK(line && strncmp(line, "{\"time\":\"", 9) == 0);
    if (line) CHECK_STR(strstr(line, "\"level\""), "\"level\":\"warn\",\"room\":\"test\",\"message\":"
                                                   "\"say \\\"hi\\\"\\u000a\\\\ \\u0001 \xe4\xbd\xa0\"}\n");
    char longest[9001];
    for (int i = 0; i < 9000; i += 3) memcpy(longest + i, "\xe4\xbd\xa0", 3);
    longest[9000] = '\0';
    line = logged(false, longest);
    CHECK(line && strlen(line) < 2200 && strcmp(line + strlen(line) - 7, "\xe4\xbd\xa0...\n") == 0);
    memset(longest, 1, 9000);
    line = logged(true, longest);
    CHECK(line && strlen(line) > 12000 && strcmp(line + strlen(line) - 3, "\"}\n") == 0);
    mx_log_level level;
    CHECK(mx_log_parse_level("error", &level) && level == MX_LOG_ERROR);
    CHECK(mx_log_parse_level("off", &level) && level == MX_LOG_OFF && !mx_log_parse_level("loud", &level));
    mx_log_configure(MX_LOG_OFF, false);
    CHECK(!mx_log_enabled(MX_LOG_ERROR) && !mx_log_enabled(MX_LOG_OFF));
    mx_log_configure(MX_LOG_INFO, false);
    CHECK(mx_log_enabled(MX_LOG_INFO) && !mx_log_enabled(MX_LOG_DEBUG));
}

MX_TESTS(TEST(defaults), TEST(table_errors), TEST(numbers), TEST(flag_forms), TEST(flag_errors), TEST(file_forms),
         TEST(files), TEST(precedence), TEST(pages), TEST(noise), TEST(log_lines))
