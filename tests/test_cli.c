/* test_cli.c - the program as a person meets it: batches that are killed and go on,
 * rows that are wrong, files that are not what they were, help and exit statuses.
 *
 * Runs build/merx on the tiny golden Llama; files lie below the build folder. */
#include "tests/test.h"

#include "proto/merx.pb-c.h"
#include "server/settings.h"

#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MERX   MX_BINARY_DIR "/merx"
#define MODEL  MX_SOURCE_DIR "/tests/golden/decoder/llama"
#define FOLDER MX_BINARY_DIR "/test_cli_files"
#define ROWS   180

enum { MOST_ARGS = 40 };

/* ---- files --------------------------------------------------------------------------------- */

static const char *path_of(const char *name)
{
    static char paths[8][400];
    static int next;
    char *p = paths[next++ % 8];
    mkdir(FOLDER, 0777);
    if (name[0] == '/' || name[0] == '-') snprintf(p, sizeof paths[0], "%s", name);
    else snprintf(p, sizeof paths[0], "%s/%s", FOLDER, name);
    return p;
}

static char *slurp(const char *name, size_t *len)
{
    FILE *f = fopen(path_of(name), "rb");
    char *text = malloc((size_t)1 << 24);
    *len = f && text ? fread(text, 1, ((size_t)1 << 24) - 1, f) : 0;
    if (f) fclose(f);
    text[*len] = 0;
    return text;
}

static void spill(const char *name, const char *text, size_t len)
{
    FILE *f = fopen(path_of(name), "wb");
    CHECK(f && fwrite(text, 1, len, f) == len && fclose(f) == 0);
}

static bool same(const char *a, const char *b)
{
    size_t n, m;
    char *x = slurp(a, &n), *y = slurp(b, &m);
    bool equal = n == m && n > 0 && !memcmp(x, y, n);
    free(x);
    free(y);
    return equal;
}

static bool holds(const char *file, const char *text)
{
    size_t n;
    char *x = slurp(file, &n);
    bool found = strstr(x, text) != NULL;
    if (!found) fprintf(stderr, "  %s holds: %.600s\n", file, x);
    free(x);
    return found;
}

static int rows_in(const char *file)
{
    size_t n, rows = 0;
    char *x = slurp(file, &n);
    for (size_t i = 0; i < n; i++) rows += x[i] == '\n';
    free(x);
    return (int)rows;
}

static void fresh(const char *output)
{
    char run[420];
    snprintf(run, sizeof run, "%s.run", path_of(output));
    unlink(path_of(output));
    unlink(run);
}

/* ---- running --------------------------------------------------------------------------------- */

static const char *standard_output = "out";

/* words: parted by blanks; @name is a file of the test's folder. stdin is `in`; stdout and stderr
 * go to the files standard_output and "err".  file_limit: RLIMIT_FSIZE, 0: none. */
static pid_t start(const char *in, size_t file_limit, const char *words)
{
    char copy[2000], files[8][400], *argv[MOST_ARGS] = {(char *)(uintptr_t)MERX}, *save = NULL;
    int n = 1, n_files = 0;
    snprintf(copy, sizeof copy, "%s", words);
    for (char *w = strtok_r(copy, " ", &save); w && n < MOST_ARGS - 1; w = strtok_r(NULL, " ", &save)) {
        if (*w == '@') {
            snprintf(files[n_files], sizeof files[0], "%s", path_of(w + 1));
            w = files[n_files++];
        }
        argv[n++] = w;
    }
    const char *names[3] = {path_of(in), path_of(standard_output), path_of("err")};
    fflush(stdout);
    pid_t pid = fork();
    if (pid) return pid;
    for (int i = 0; i < 3; i++) {
        int fd = open(names[i], i ? O_WRONLY | O_CREAT | O_TRUNC : O_RDONLY, 0666);
        if (fd < 0 || dup2(fd, i) < 0) _exit(99);
    }
    if (file_limit) {
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){file_limit, file_limit});
    }
    execv(MERX, argv);
    _exit(99);
}

static int wait_exit(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0) {}
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

static int merx(const char *words)
{
    return wait_exit(start("/dev/null", 0, words));
}

/* Until `file` has `rows` rows or the process is over; true: it still ran. */
static bool reached(pid_t pid, const char *file, int rows)
{
    for (int i = 0; i < 60000; i++) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == pid) return false;
        if (rows_in(file) >= rows) return true;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
    return false;
}

#define BATCH "generate -m " MODEL " -q --seed 5 "

/* Rows with ids of their own, without, with messages of sampling; ASCII, as the tiny vocabulary wants. */
static void write_input(const char *name, int rows, int changed)
{
    FILE *f = fopen(path_of(name), "wb");
    for (int i = 1; i <= rows; i++) {
        const char *noun = i == changed ? "boots" : "shoes";
        if (i % 3 == 0) fprintf(f, "{\"prompt\": \"Sell %s number %d\", \"seed\": %d}\n", noun, i, i);
        else if (i % 3 == 1) fprintf(f, "{\"id\": \"row %d\", \"prompt\": \"Sell %s %d\", \"max_tokens\": %d}\n", i, noun, i, 20 + i % 60);
        else fprintf(f, "{\"id\": %d, \"prompt\": \"%s\", \"temperature\": 0.5, \"top_k\": 20, \"logprobs\": 1}\n", 1000 - i, noun);
    }
    fclose(f);
}

static bool made_whole;

static void make_whole(void)
{
    if (made_whole) return;
    made_whole = true;
    write_input("in.jsonl", ROWS, 0);
    fresh("whole.jsonl");
    CHECK(merx(BATCH "-i @in.jsonl -o @whole.jsonl") == 0);
}

/* ---- batches ----------------------------------------------------------------------------------- */

static void answers_in_order(void)
{
    make_whole();
    CHECK(rows_in("whole.jsonl") == ROWS);
    size_t n;
    char *text = slurp("whole.jsonl", &n), *save = NULL;
    int i = 0;
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        json_t *row = json_loads(l, 0, NULL), *id = json_object_get(row, "id");
        char want[40];
        i++;
        snprintf(want, sizeof want, "row %d", i);
        if (i % 3 == 1) CHECK_STR(json_string_value(id), want);
        else CHECK(json_integer_value(id) == (i % 3 == 0 ? i : 1000 - i));
        CHECK(json_is_string(json_object_get(row, "text")) && json_is_string(json_object_get(row, "finish_reason")));
        CHECK(json_integer_value(json_object_get(row, "prompt_tokens")) > 0);
        CHECK(json_integer_value(json_object_get(row, "output_tokens")) > 0);
        if (i % 3 == 2)
            CHECK((json_int_t)json_array_size(json_object_get(row, "logprobs")) == json_integer_value(json_object_get(row, "output_tokens")));
        json_decref(row);
    }
    free(text);
}

/* The window, the turn and the pipe do not show in the answers. */
static void any_window(void)
{
    make_whole();
    fresh("small.jsonl");
    CHECK(merx(BATCH "-i @in.jsonl -o @small.jsonl --max-num-seqs 3 --max-num-queued-reqs 1 --max-num-batched-tokens 7 --page-tokens 5") == 0);
    CHECK(same("small.jsonl", "whole.jsonl"));
    CHECK(wait_exit(start("in.jsonl", 0, BATCH "-i - -o -")) == 0);
    CHECK(same("out", "whole.jsonl"));
    spill("greedy.jsonl", "{\"prompt\": \"a\"}\n{\"prompt\": \"b\"}\n", 32);        /* no seed, and none needed */
    fresh("one.jsonl");
    fresh("two.jsonl");
    CHECK(merx("generate -m " MODEL " --temperature 0 -i @greedy.jsonl -o @one.jsonl --max-num-seqs 1") == 0);
    CHECK(merx("generate -m " MODEL " --temperature 0 -i @greedy.jsonl -o @two.jsonl") == 0);
    CHECK(same("one.jsonl", "two.jsonl"));
}

static void killed_and_continued(void)
{
    make_whole();
    uint64_t seed = getenv("MX_TEST_SEED") ? strtoull(getenv("MX_TEST_SEED"), NULL, 0) : (uint64_t)time(NULL);
    printf("  MX_TEST_SEED=%llu\n", (unsigned long long)seed);
    int kills = 0;
    for (int round = 0; round < 2; round++) {
        fresh("killed.jsonl");
        for (int at = 0; at < ROWS;) {
            pid_t pid = start("/dev/null", 0, BATCH "-i @in.jsonl -o @killed.jsonl --max-num-seqs 4");
            at = rows_in("killed.jsonl") + (int)(test_random(&seed) % 60);
            bool ran = reached(pid, "killed.jsonl", at);
            kill(pid, SIGKILL);
            int status = wait_exit(pid);
            CHECK(status == 1000 + SIGKILL || status == 0);
            if (!ran) break;
            kills++;
            struct stat s;                            /* a power cut: the last row is torn anywhere */
            if (test_random(&seed) % 2 && !stat(path_of("killed.jsonl"), &s) && s.st_size > 30)
                CHECK(!truncate(path_of("killed.jsonl"), s.st_size - (off_t)(test_random(&seed) % 30)));
        }
        CHECK(merx(BATCH "-i @in.jsonl -o @killed.jsonl") == 0);
        CHECK(same("killed.jsonl", "whole.jsonl"));
    }
    printf("  %d kills\n", kills);
    CHECK(kills > 3);
    CHECK(merx(BATCH "-i @in.jsonl -o @killed.jsonl") == 0);           /* nothing is left to do */
    CHECK(same("killed.jsonl", "whole.jsonl"));
}

static void interrupted(void)
{
    make_whole();
    for (int k = 0; k < 2; k++) {
        fresh("stopped.jsonl");
        pid_t pid = start("/dev/null", 0, BATCH "-i @in.jsonl -o @stopped.jsonl --max-num-seqs 2");
        bool ran = reached(pid, "stopped.jsonl", 5);
        kill(pid, k ? SIGTERM : SIGINT);
        int status = wait_exit(pid);
        CHECK(ran && status == 130);
        CHECK(holds("err", "the same command goes on from there"));
        int rows = rows_in("stopped.jsonl");
        CHECK_MSG(rows >= 5 && rows < ROWS, "%d rows", rows);
        CHECK(merx(BATCH "-i @in.jsonl -o @stopped.jsonl") == 0);
        CHECK(same("stopped.jsonl", "whole.jsonl"));
    }
}

static void full_disk(void)
{
    make_whole();
    CHECK(merx(BATCH "-i @in.jsonl -o /dev/full") == 1);
    CHECK(holds("err", "/dev/full: No space left on device"));
    static const char *const calls[] = {"generate -m " MODEL " -n 3 x", "generate -m " MODEL " --json x", "info", "help", BATCH "-i @in.jsonl"};
    standard_output = "/dev/full";
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) CHECK_MSG(merx(calls[i]) == 1 && holds("err", "No space left"), "%s", calls[i]);
    standard_output = "out";
    fresh("full.jsonl");
    CHECK(wait_exit(start("/dev/null", 10000, BATCH "-i @in.jsonl -o @full.jsonl")) == 1);
    CHECK(holds("err", "full.jsonl: File too large") && holds("err", "goes on from there"));
    size_t n;
    char *text = slurp("full.jsonl", &n);
    CHECK(n > 0 && n <= 10000 && text[n - 1] == '\n');                 /* whole rows only */
    free(text);
    CHECK(merx(BATCH "-i @in.jsonl -o @full.jsonl") == 0);
    CHECK(same("full.jsonl", "whole.jsonl"));
}

/* ---- what must not be continued ------------------------------------------------------------------ */

static void refused(const char *words, const char *why)
{
    size_t n, m;
    char *before = slurp("half.jsonl", &n);
    CHECK(merx(words) == 1);
    CHECK(holds("err", why));
    char *after = slurp("half.jsonl", &m);
    CHECK(n == m && !memcmp(before, after, n));                        /* and not touched */
    free(before);
    free(after);
}

static void changed_run(void)
{
    make_whole();
    size_t n;
    char *text = slurp("whole.jsonl", &n), *half = text;
    for (int i = 0; i < 100; i++) half = strchr(half, '\n') + 1;
    fresh("half.jsonl");
    CHECK(merx(BATCH "-i @in.jsonl -o @half.jsonl") == 0);
    CHECK(truncate(path_of("half.jsonl"), half - text) == 0);
    write_input("changed.jsonl", ROWS, 150);
    refused(BATCH "-i @changed.jsonl -o @half.jsonl", "changed.jsonl has changed since");
    write_input("longer.jsonl", ROWS + 1, 0);
    refused(BATCH "-i @longer.jsonl -o @half.jsonl", "180 rows in");
    refused(BATCH "-i @in.jsonl -o @half.jsonl --temperature 0.25", "temperature = 1.0, not 0.25");
    refused(BATCH "-i @in.jsonl -o @half.jsonl --stop x", "stop = unset, not [\"x\"]");
    refused("generate -q -m " MODEL " -i @in.jsonl -o @half.jsonl", "seed = \"5\", not unset");
    char *other = memmem(text, (size_t)(half - text), "row 22", 6);
    memcpy(other, "row 99", 6);
    spill("half.jsonl", text, (size_t)(half - text));
    refused(BATCH "-i @in.jsonl -o @half.jsonl", "half.jsonl:22: not the answer to");
    unlink(path_of("half.jsonl.run"));
    refused(BATCH "-i @in.jsonl -o @half.jsonl", "says what made them");
    CHECK(merx(BATCH "-i @in.jsonl -o @half.jsonl --overwrite") == 0);
    CHECK(same("half.jsonl", "whole.jsonl"));
    CHECK(merx(BATCH "-i @in.jsonl -o @in.jsonl") == 2);
    CHECK(holds("err", "--output and --input are one file"));
    CHECK(rows_in("in.jsonl") == ROWS);
    free(text);
}

/* ---- rows that are wrong --------------------------------------------------------------------------- */

static void bad_rows(void)
{
    static const struct { const char *row, *field; } rows[] = {
        {"{\"prompt\": \"fine\", \"id\": \"a\"}", NULL},
        {"{\"prompt\": \"fine\"", "row"},
        {"[1]", "row"},
        {"nonsense", "row"},
        {"{\"prompt\": \"a\", \"prompt\": \"b\"}", "row"},
        {"{\"prompt\": \"\xff\"}", "row"},
        {"{}", "prompt"},
        {"{\"prompt\": 3}", "prompt"},
        {"{\"prompt\": \"\"}", "prompt"},
        {"{\"prompt\": \"a\", \"ids\": [3]}", "prompt"},
        {"{\"prompt\": \"a\", \"id\": [1]}", "id"},
        {"{\"ids\": [3, \"x\"]}", "ids[1]"},
        {"{\"ids\": [3, 4000]}", "ids[1]"},
        {"{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}", "messages"},
        {"{\"messages\": [{\"role\": \"user\"}]}", "messages[0].content"},
        {"{\"prompt\": \"a\", \"model\": \"other\"}", "model"},
        {"{\"prompt\": \"a\", \"temprature\": 1}", "temprature"},
        {"{\"prompt\": \"a\", \"temperature\": -1}", "temperature"},
        {"{\"prompt\": \"a\", \"temperature\": \"hot\"}", "temperature"},
        {"{\"prompt\": \"a\", \"top_k\": 1.5}", "top_k"},
        {"{\"prompt\": \"a\", \"max_tokens\": 99999999999}", "max_tokens"},
        {"{\"prompt\": \"a\", \"n\": 65}", "n"},
        {"{\"prompt\": \"a\", \"seed\": -1}", "seed"},
        {"{\"prompt\": \"a\", \"stop\": [1]}", "stop"},
        {"{\"prompt\": \"a\", \"stop\": [\"\"]}", "stop[0]"},
        {"{\"prompt\": \"a\", \"stop_ids\": [131]}", "stop_ids"},
        {"{\"prompt\": \"a\", \"logit_bias\": {\"x\": 1}}", "logit_bias"},
        {"{\"prompt\": \"a\", \"logit_bias\": {\"3\": 101}}", "logit_bias.bias"},
        {"{\"prompt\": \"a\", \"echo\": 1}", "echo"},
        {"{\"prompt\": \"a\", \"beams\": 2, \"stop\": \"x\"}", "beams"},
        {"{\"prompt\": \"fine\", \"seed\": \"18446744073709551615\", \"stop\": \"zz\", \"logit_bias\": {\"3\": -100}, \"top_p\": null, \"n\": 2}", NULL},
    };
    int n = (int)(sizeof rows / sizeof *rows), bad = 0;
    FILE *f = fopen(path_of("bad.jsonl"), "wb");
    for (int i = 0; i < n; i++) fprintf(f, "%s%s\n", i ? "" : "\xef\xbb\xbf", rows[i].row);
    fprintf(f, " \t\r\n\r\n{\"prompt\": \"");                            /* blank lines; a prompt over the context; no newline */
    for (int i = 0; i < 500; i++) fputs("abc ", f);
    fputs("\"}\r\n{\"prompt\": \"the last\"}", f);
    fclose(f);
    fresh("answers.jsonl");
    CHECK(merx(BATCH "-i @bad.jsonl -o @answers.jsonl") == 1);
    size_t len;
    char *text = slurp("answers.jsonl", &len), *save = NULL;
    int i = 0;
    for (char *l = strtok_r(text, "\n", &save); l; l = strtok_r(NULL, "\n", &save), i++) {
        json_t *row = json_loads(l, 0, NULL), *error = json_object_get(row, "error");
        const char *field = i < n ? rows[i].field : i == n ? "prompt" : NULL;
        CHECK_MSG((field != NULL) == (error != NULL), "row %d: %s", i, l);
        if (field) CHECK_STR(json_string_value(json_object_get(error, "field")), field);
        if (field) CHECK(strlen(json_string_value(json_object_get(error, "message"))) > 8);
        if (i >= n) CHECK(json_integer_value(json_object_get(row, "id")) == i + 3);   /* lines, blank ones too */
        bad += error != NULL;
        json_decref(row);
    }
    CHECK_MSG(i == n + 2, "%d rows", i);
    char count[80];
    snprintf(count, sizeof count, "%d of them could not be answered", bad);
    CHECK(holds("err", count));
    free(text);
    CHECK(merx(BATCH "-i @bad.jsonl -o @answers.jsonl") == 1);           /* all were there, the count stays */
    CHECK(holds("err", count));
    fresh("strict.jsonl");
    CHECK(merx(BATCH "-i @bad.jsonl -o @strict.jsonl --strict") == 1);
    CHECK(holds("err", "row 2: ") && rows_in("strict.jsonl") == 1);
    spill("empty.jsonl", "", 0);
    CHECK(merx(BATCH "-i @empty.jsonl -o @nothing.jsonl") == 0);
    CHECK(rows_in("nothing.jsonl") == 0);
}

/* ---- one text ---------------------------------------------------------------------------------------- */

static void one_text(void)
{
    size_t n;
    spill("prompt.txt", "Sell shoes\n", 11);
    CHECK(wait_exit(start("prompt.txt", 0, "generate -m " MODEL " --temperature 0 -n 12 --json -")) == 0);
    char *a = slurp("out", &n);
    CHECK(wait_exit(start("/dev/null", 0, "generate -m " MODEL " --temperature 0 -n 12 --json Sell")) == 0);
    json_t *j = json_loads(a, 0, NULL);
    CHECK(json_integer_value(json_object_get(j, "output_tokens")) == 12 && json_integer_value(json_object_get(j, "prompt_tokens")) > 4);
    const char *text = json_string_value(json_object_get(j, "text"));
    CHECK(wait_exit(start("prompt.txt", 0, "generate -m " MODEL " --temperature 0 -n 12 -q -")) == 0);
    char *plain = slurp("out", &n);
    CHECK(text && strlen(text) + 1 == n && !strncmp(plain, text, strlen(text)) && plain[n - 1] == '\n');
    CHECK(wait_exit(start("prompt.txt", 0, "generate -m " MODEL " --temperature 0 -n 12 --stream-json -")) == 0);
    char *events = slurp("out", &n), *save = NULL, joined[4096] = "";
    bool last = false;
    for (char *l = strtok_r(events, "\n", &save); l; l = strtok_r(NULL, "\n", &save)) {
        json_t *e = json_loads(l, 0, NULL);
        CHECK(e && !last);
        strncat(joined, json_string_value(json_object_get(e, "text")), sizeof joined - strlen(joined) - 1);
        last = json_is_true(json_object_get(e, "last"));
        json_decref(e);
    }
    CHECK(last);
    CHECK_STR(joined, text);
    CHECK(merx("generate -m " MODEL " --seed 9 -n 5 --n 3 --json x") == 0 && rows_in("out") == 3);
    CHECK(merx("generate -m " MODEL " --beams 3 --n 2 -n 5 --json x") == 0 && rows_in("out") == 2);
    CHECK(merx("info --json -m " MODEL) == 0);
    char *info = slurp("out", &n);
    json_t *i = json_loads(info, 0, NULL);
    CHECK(json_array_size(json_object_get(i, "models")) == 1 && json_array_size(json_object_get(i, "devices")) >= 1);
    json_decref(i);
    json_decref(j);
    free(info);
    free(events);
    free(plain);
    free(a);
}

static void wrong_words(void)
{
    static const struct { const char *words, *says; int status; } calls[] = {
        {"", "Commands", 2},
        {"gnerate x", "did you mean generate?", 2},
        {"generate", "one prompt", 2},
        {"generate a b", "2 given", 2},
        {"generate hi", "no model", 2},
        {"generate --temprature 1 x", "did you mean --temperature?", 2},
        {"generate -m x --temperature 101 x", "temperature: 101 is out of range, must be 0 to 100", 2},
        {"generate -m x --top-k 1.5 x", "top-k: \"1.5\" is not a whole number", 2},
        {"generate -m " MODEL " --seed -1 x", "--seed: \"-1\" is not a number from 0 to 2^64-1", 2},
        {"generate -m " MODEL " --logit-bias 3=101 x", "--logit-bias: \"3=101\"", 2},
        {"generate -m " MODEL " --stop-ids 131 x", "stop_ids is 131; it must be from 0 to 130", 2},
        {"generate -m " MODEL " --system a x", "--system", 1},
        {"generate -m /no/such x", "/no/such: No such file", 1},
        {"generate -i /no/such.jsonl", "/no/such.jsonl: No such file", 1},
        {"generate -i a b", "and not \"b\" too", 2},
        {"generate -o a b", "give --input too", 2},
        {"info extra", "not \"extra\"", 2},
        {"serve extra", "not \"extra\"", 2},
    };
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        int status = merx(calls[i].words);
        CHECK_MSG(status == calls[i].status, "merx %s: %d", calls[i].words, status);
        CHECK(holds("err", calls[i].says));
    }
}

/* ---- help ------------------------------------------------------------------------------------------------ */

static void help_is_readable(void)
{
    static const char *const calls[] = {"help", "--help", "help serve", "help generate", "generate -m x --help", "client -h", "info --help"};
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        size_t n, wide = 0, most = 0;
        CHECK(merx(calls[i]) == 0);
        char *text = slurp("out", &n);
        CHECK(n > 200 && strstr(text, "Examples"));
        for (size_t k = 0; k < n; k++) {
            wide = text[k] == '\n' ? 0 : wide + 1;
            if (wide > most) most = wide;
            CHECK(text[k] != '\033');                                    /* a pipe is no terminal */
        }
        CHECK_MSG(most <= 100, "%s: %zu columns", calls[i], most);
        free(text);
    }
}

static void settings_page_is_fresh(void)
{
    size_t n, m;
    CHECK(merx("help --markdown") == 0);
    char *now = slurp("out", &n), *page = slurp(MX_SOURCE_DIR "/docs/settings.md", &m);
    CHECK_MSG(n == m && !memcmp(now, page, n), "docs/settings.md is stale: build/merx help --markdown > docs/settings.md");
    free(now);
    free(page);
}

/* Whatever the wire can ask for, a flag can. */
static void every_field_is_a_flag(void)
{
    const ProtobufCMessageDescriptor *d = &merx__v1__sampling__descriptor;
    CHECK(d->n_fields >= 22);
    for (unsigned i = 0; i < d->n_fields; i++) {
        char name[64];
        const mx_setting *s = NULL;
        snprintf(name, sizeof name, "%s", d->fields[i].name);
        for (char *p = name; *p; p++)
            if (*p == '_') *p = '-';
        for (int k = 0; k < mx_settings_count; k++)
            if (!strcmp(mx_settings[k].name, name)) s = &mx_settings[k];
        CHECK_MSG(s && (s->commands & MX_CMD_SAMPLE) == MX_CMD_SAMPLE, "%s", name);
        CHECK_MSG(s && (s->commands & MX_DECIDES_TEXT), "%s", name);
    }
}

static void a_name_is_one_setting(void)
{
    for (int i = 0; i < mx_settings_count; i++)
        for (int k = 0; k < i; k++) CHECK_MSG(strcmp(mx_settings[i].name, mx_settings[k].name), "%s", mx_settings[i].name);
}

MX_TESTS(TEST(every_field_is_a_flag), TEST(a_name_is_one_setting), TEST(settings_page_is_fresh), TEST(help_is_readable), TEST(wrong_words), TEST(one_text),
         TEST(answers_in_order), TEST(any_window), TEST(killed_and_continued), TEST(interrupted), TEST(full_disk), TEST(changed_run),
         TEST(bad_rows))
