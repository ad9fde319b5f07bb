/* test_server_allocations.c - what a request costs in heap allocations, once warm: none, outside gRPC and SQLite.
 *
 * malloc and its like are this program's own and see every allocation of every library.  Counted is what
 * the server's threads (all but this one and the client's) ask for, unless gRPC's libraries or SQLite ask, which cannot be told
 * otherwise.  The slabs' own growth counts: warm means that they have what they need. */
#include "tests/house.h"

#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdlib.h>

#if !SANITIZED

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);

enum { RANGES = 64, SITES = 64 };
static struct { uintptr_t from, to; } foreign[RANGES];
static int n_foreign;
static _Thread_local bool ours;              /* this test's own threads */
static atomic_bool counting;
static atomic_llong counted;
static _Atomic(uintptr_t) sites[SITES];      /* who asked, to be told when the test fails */

static void count(const void *from)
{
    uintptr_t at = (uintptr_t)from;
    if (ours || !atomic_load_explicit(&counting, memory_order_relaxed)) return;
    for (int i = 0; i < n_foreign; i++)
        if (at >= foreign[i].from && at < foreign[i].to) return;
    atomic_store(&sites[atomic_fetch_add(&counted, 1) % SITES], at);
}

void *malloc(size_t n)
{
    count(__builtin_return_address(0));
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    count(__builtin_return_address(0));
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    count(__builtin_return_address(0));
    return __libc_realloc(p, n);
}

/* gRPC, what it is made of, SQLite; and the loader, which makes a thread's own variables when it first asks. */
static int look_at(struct dl_phdr_info *info, size_t size, void *user)
{
    static const char *const names[] = {"libgrpc", "libgpr", "libabsl", "libupb", "libaddress_sorting", "libre2", "libstdc++", "libcares", "libssl", "libcrypto", "libsqlite3", "ld-linux"};
    (void)size, (void)user;
    const char *base = strrchr(info->dlpi_name, '/');
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!base || strncmp(base + 1, names[i], strlen(names[i])) != 0) continue;
        for (int k = 0; k < info->dlpi_phnum && n_foreign < RANGES; k++) {
            const ElfW(Phdr) *p = &info->dlpi_phdr[k];
            if (p->p_type != PT_LOAD || !(p->p_flags & PF_X)) continue;
            foreign[n_foreign].from = info->dlpi_addr + p->p_vaddr;
            foreign[n_foreign++].to = info->dlpi_addr + p->p_vaddr + p->p_memsz;
        }
    }
    return 0;
}

static void mine(void *user, const uint8_t *reply, size_t len)
{
    (void)user, (void)reply, (void)len;
    ours = true;                             /* the client's thread comes by here */
}

typedef struct end { atomic_int over, code; } end;

static void over(void *user, const mx_rpc_status *st)
{
    end *e = user;
    ours = true;
    atomic_store(&e->code, st->code);
    atomic_store(&e->over, 1);
}

static int send_one(house *h, const char *method, packed p)
{
    end e = {0};
    mx_client_calls calls = {.unary = strcmp(method, RPC("Stream")) && !strstr(method, "/Put"), .message = mine, .done = over, .user = &e};
    CHECK(!mx_client_start(h->client, NULL, method, p.data, p.len, 20000, &calls));
    while (!atomic_load(&e.over)) usleep(50);
    return atomic_load(&e.code);
}

static void put(house *h, const char *method, const ProtobufCMessage *m)
{
    packed p = pack(m);
    int code = send_one(h, method, p);
    CHECK_MSG(code == MX_RPC_OK, "%s: %s", method, mx_rpc_code_name(code));
    free(p.data);
}

static void fill(house *h)
{
    Merx__V1__PriceItem item = MERX__V1__PRICE_ITEM__INIT, *items = &item;
    Merx__V1__PutItemsRequest prices = MERX__V1__PUT_ITEMS_REQUEST__INIT;
    Merx__V1__Event event = MERX__V1__EVENT__INIT, *events = &event;
    Merx__V1__PutEventsRequest seen = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    item.sku = "shoe", item.currency = "EUR", item.cost = 600, item.reference_price = 1000;
    prices.items = &items, prices.n_items = 1;
    put(h, "/merx.v1.Pricing/PutItems", &prices.base);
    event.event_id = "1", event.type = "view", event.user = "anna", event.object = "shoe";
    seen.events = &events, seen.n_events = 1;
    put(h, "/merx.v1.Profiling/PutEvents", &seen.base);
}

/* Of the program itself as addr2line takes it. */
static void tell_site(uintptr_t at)
{
    Dl_info info = {0};
    void *p = NULL;
    memcpy(&p, &at, sizeof p);
    if (dladdr(p, &info) && info.dli_fname) fprintf(stderr, "    by %s %#lx %s\n", info.dli_fname, (unsigned long)(at - (uintptr_t)info.dli_fbase), info.dli_sname ? info.dli_sname : "");
}

/* Calls one after the other; of one kind that must cost nothing.  On a busy machine the end of one meets the next, and more is
 * needed at once than before: that is warming up too, and ends. */
static void none(house *h, const char *method, packed p)
{
    enum { WARM = 60, CALLS = 300, ROUNDS = 8 };
    int bad = 0;
    long long n = 1;
    for (int i = 0; i < WARM; i++) bad += send_one(h, method, p) != MX_RPC_OK;
    for (int round = 0; n && round < ROUNDS; round++) {
        usleep(20000);                       /* the last one's end */
        atomic_store(&counted, 0);
        atomic_store(&counting, true);
        for (int i = 0; i < CALLS; i++) bad += send_one(h, method, p) != MX_RPC_OK;
        atomic_store(&counting, false);
        n = atomic_load(&counted);
        printf("  %-36s %lld allocations in %d calls\n", method, n, CALLS);
    }
    CHECK_MSG(!bad, "%s: %d calls failed", method, bad);
    CHECK_MSG(n == 0, "%s: %lld allocations in %d calls", method, n, CALLS);
    for (int i = 0; i < SITES && i < n; i++) tell_site(atomic_load(&sites[i]));
}

static void requests(void)
{
    house h;
    Merx__V1__QuoteRequest quote = MERX__V1__QUOTE_REQUEST__INIT;
    Merx__V1__GetProfileRequest profile = MERX__V1__GET_PROFILE_REQUEST__INIT;
    Merx__V1__EmbedRequest embed = MERX__V1__EMBED_REQUEST__INIT;
    Merx__V1__GenerateRequest text;
    Merx__V1__Sampling sampling;
    char *words = "light running shoes";
    static const char *const models[] = {"tiny=" HOUSE_MODEL("llama"), "bert=" HOUSE_BERT, NULL};
    if (!house_open(&h, &(house_options){.models = models, .stores = true})) return;
    fill(&h);
    request_init(&text, &sampling, "", 4);
    text.prompt = "abc";
    quote.sku = "shoe";
    profile.user = "anna";
    embed.texts = &words, embed.n_texts = 1;
    const struct { const char *method; packed p; } of[] = {
        {"/grpc.health.v1.Health/Check", {(uint8_t *)malloc(1), 0}}, {RPC("ListModels"), {(uint8_t *)malloc(1), 0}},
        {RPC("Generate"), pack(&text.base)}, {RPC("Stream"), pack(&text.base)}, {"/merx.v1.Embeddings/Embed", pack(&embed.base)},
        {"/merx.v1.Pricing/Quote", pack(&quote.base)}, {"/merx.v1.Profiling/GetProfile", pack(&profile.base)},
    };
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        none(&h, of[i].method, of[i].p);
        free(of[i].p.data);
    }
    house_close(&h);
}

/* A counter that sees nothing would prove nothing. */
static void counts(void)
{
    atomic_store(&counted, 0);
    atomic_store(&counting, true);
    ours = false;
    free(strdup("seen"));
    void *volatile p = malloc(10);
    free(p);
    ours = true;
    atomic_store(&counting, false);
    CHECK_MSG(atomic_load(&counted) > 0, "the counters see nothing");
}

int main(int argc, char **argv)
{
    static const test_entry tests[] = {TEST(counts), TEST(requests)};
    ours = true;
    dl_iterate_phdr(look_at, NULL);
    return test_main(tests, sizeof tests / sizeof *tests, argc, argv);
}

#else

int main(void)
{
    printf("skipped: malloc is the sanitizer's\n1 checks, 0 failed, 1 skipped\n");
    return 0;
}

#endif
