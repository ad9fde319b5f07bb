/* test.h - what every test program uses: checks that count, one closing line.
 *
 * A program is a list of TEST functions run by main through MX_TESTS.  A failed
 * CHECK prints file, line and values, marks the test failed and goes on; the
 * exit status is 1 when any failed or when no check ran at all. */
#ifndef MX_TEST_H
#define MX_TEST_H

#include "runtime/status.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_checks, test_failures, test_skips;

#define CHECK(cond)                                                                        \
    do {                                                                                   \
        test_checks++;                                                                     \
        if (!(cond)) {                                                                     \
            test_failures++;                                                               \
            fprintf(stderr, "  %s:%d: failed: %s\n", __FILE__, __LINE__, #cond);           \
        }                                                                                  \
    } while (0)

/* With words: CHECK_MSG(a == b, "a %d, b %d", a, b) */
#define CHECK_MSG(cond, ...)                                                               \
    do {                                                                                   \
        test_checks++;                                                                     \
        if (!(cond)) {                                                                     \
            test_failures++;                                                               \
            fprintf(stderr, "  %s:%d: failed: %s: ", __FILE__, __LINE__, #cond);           \
            fprintf(stderr, __VA_ARGS__);                                                  \
            fputc('\n', stderr);                                                           \
        }                                                                                  \
    } while (0)

#define CHECK_OK(call, err)                                                                \
    do {                                                                                   \
        mx_status st_ = (call);                                                            \
        CHECK_MSG(st_ == MX_OK, "%s: %s", mx_status_name(st_), (err).text);                \
    } while (0)

#define CHECK_STR(got, want)                                                               \
    do {                                                                                   \
        const char *g_ = (got), *w_ = (want);                                              \
        CHECK_MSG(g_ && strcmp(g_, w_) == 0, "got \"%s\", want \"%s\"", g_ ? g_ : "(null)", w_); \
    } while (0)

/* Visible, counted, and never for what must run in CI. */
#define TEST_SKIP(...)                                                                     \
    do {                                                                                   \
        test_skips++;                                                                      \
        printf("  skipped: ");                                                             \
        printf(__VA_ARGS__);                                                               \
        putchar('\n');                                                                     \
    } while (0)

typedef struct test_entry { const char *name; void (*run)(void); } test_entry;

/* argv[1], when given, is a substring: only tests whose name holds it run. */
static inline int test_main(const test_entry *tests, size_t n, int argc, char **argv)
{
    for (size_t i = 0; i < n; i++) {
        if (argc > 1 && !strstr(tests[i].name, argv[1])) continue;
        int before = test_failures;
        tests[i].run();
        printf("%-6s %s\n", test_failures == before ? "ok" : "FAILED", tests[i].name);
        fflush(stdout);
    }
    printf("%d checks, %d failed, %d skipped\n", test_checks, test_failures, test_skips);
    return test_failures || !test_checks;
}

#define TEST(fn) {#fn, fn}
#define MX_TESTS(...)                                                                      \
    int main(int argc, char **argv)                                                        \
    {                                                                                      \
        static const test_entry tests[] = {__VA_ARGS__};                                   \
        return test_main(tests, sizeof tests / sizeof *tests, argc, argv);                 \
    }

/* splitmix64: the tests' own generator; the seed is printed by who uses it. */
static inline uint64_t test_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
