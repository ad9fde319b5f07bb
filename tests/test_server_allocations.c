/* test_server_allocations.c - what a request costs an RPC thread in heap allocations of ours, once warm.
 *
 * The linker hands our malloc, calloc and realloc to the counters (--wrap); gRPC's own do not count.  The
 * transport has none: call objects, messages and scratch come from the thread's pool and arena.  What a
 * service keeps beyond its call (a generation, a quote) is its own, and is printed. */
#include "tests/server_fixture.h"

#include <stdatomic.h>
#include <sys/prctl.h>

void *__real_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_malloc(size_t n);
void *__wrap_calloc(size_t n, size_t size);
void *__wrap_realloc(void *p, size_t n);

static atomic_llong on_rpc;

/* RPC threads by their name, asked once a thread. */
static void count(void)
{
    static _Thread_local int rpc = -1;
    if (rpc < 0) {
        char name[16] = "";
        prctl(PR_GET_NAME, name);
        rpc = !strncmp(name, "merx-rpc", 8);
    }
    if (rpc) atomic_fetch_add(&on_rpc, 1);
}

void *__wrap_malloc(size_t n)
{
    count();
    return __real_malloc(n);
}

void *__wrap_calloc(size_t n, size_t size)
{
    count();
    return __real_calloc(n, size);
}

void *__wrap_realloc(void *p, size_t n)
{
    count();
    return __real_realloc(p, n);
}

/* Allocations of a call on average; calls one after the other. */
static double per_call(fixture *f, const char *method, packed p)
{
    enum { WARM = 50, CALLS = 500 };
    long long before = 0;
    for (int i = 0; i < WARM + CALLS; i++) {
        if (i == WARM) before = atomic_load(&on_rpc);
        uint8_t *reply = NULL;
        size_t len;
        mx_rpc_status st;
        CHECK(!mx_client_unary(f->client, method, p.data, p.len, 10000, &reply, &len, &st) && st.code == MX_RPC_OK);
        free(reply);
    }
    return (double)(atomic_load(&on_rpc) - before) / CALLS;
}

static void allocations(void)
{
    fixture f;
    mx_fake_options o = fake_defaults();
    o.turn_us = 0;
    if (!fixture_open(&f, &o, NULL)) return;
    packed none = {.data = (uint8_t *)"", .len = 0}, text = generate_bytes("Hello", 1);
    double check = per_call(&f, "/grpc.health.v1.Health/Check", none), list = per_call(&f, RPC("ListModels"), none);
    double generate = per_call(&f, RPC("Generate"), text);
    printf("  allocations of ours on RPC threads a call: Health.Check %.3f, ListModels %.3f, Generate %.3f\n", check, list, generate);
    CHECK(check == 0 && list == 0);
    CHECK_MSG(generate > 0, "the counters see nothing");
    free(text.data);
    fixture_close(&f);
}

MX_TESTS(TEST(allocations))
