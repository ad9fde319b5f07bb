/* quotes.c - how many price quotes a second a server answers, and how long one takes:
 *
 *     quotes HOST:PORT put                     1,000 items and their first sales
 *     quotes HOST:PORT unary SECONDS CALLS     CALLS quotes under way at any time
 *     quotes HOST:PORT batch SECONDS CALLS     the same of calls with 1,000 quotes
 *
 * Any server of merx.v1.Pricing will do (bench/peers/quotes.py has one in Python).
 * Prints a line of JSON. */
#include "proto/merx.pb-c.h"
#include "server/rpc.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ITEMS = 1000, MOST = 1 << 24 };

typedef struct slot { struct load *l; double began; uint32_t next; } slot;

typedef struct load {
    mx_client *client;
    bool      batch;
    double    until;
    pthread_mutex_t lock;
    pthread_cond_t  over;
    int       running;
    int64_t   calls, failed;
    float    *took;               /* of every call, ms */
    uint8_t  *message;            /* batch: packed once */
    size_t    size;
} load;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static const char *sku_of(uint32_t k, char text[24])
{
    snprintf(text, 24, "item-%u", k % ITEMS);
    return text;
}

static void done(void *user, const mx_rpc_status *st);

static void send_one(slot *s)
{
    const mx_client_calls calls = {.unary = true, .done = done, .user = s};
    load *l = s->l;
    mx_client_call *call;
    uint8_t bytes[64];
    char sku[24];
    size_t n = l->size;
    s->began = now();
    if (!l->batch) {
        Merx__V1__QuoteRequest q = MERX__V1__QUOTE_REQUEST__INIT;
        q.sku = (char *)(uintptr_t)sku_of(s->next++, sku);
        n = merx__v1__quote_request__pack(&q, bytes);
    }
    mx_client_start(l->client, &call, l->batch ? "/merx.v1.Pricing/BatchQuote" : "/merx.v1.Pricing/Quote", l->batch ? l->message : bytes, n, 60000, &calls);
}

static void done(void *user, const mx_rpc_status *st)
{
    slot *s = user;
    load *l = s->l;
    double t = now();
    pthread_mutex_lock(&l->lock);
    if (st->code) l->failed++;
    else if (l->calls < MOST) l->took[l->calls++] = (float)(1e3 * (t - s->began));
    bool again = t < l->until && l->failed < 100;
    if (!again && !--l->running) pthread_cond_signal(&l->over);
    pthread_mutex_unlock(&l->lock);
    if (again) send_one(s);
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static bool pack_batch(load *l)
{
    static char sku[ITEMS][24];
    static Merx__V1__QuoteRequest q[ITEMS], *list[ITEMS];
    Merx__V1__BatchQuoteRequest all = MERX__V1__BATCH_QUOTE_REQUEST__INIT;
    for (uint32_t k = 0; k < ITEMS; k++) {
        merx__v1__quote_request__init(&q[k]);
        q[k].sku = (char *)(uintptr_t)sku_of(k, sku[k]);
        list[k] = &q[k];
    }
    all.requests = list;
    all.n_requests = ITEMS;
    l->size = merx__v1__batch_quote_request__get_packed_size(&all);
    l->message = malloc(l->size);
    if (l->message) merx__v1__batch_quote_request__pack(&all, l->message);
    return l->message != NULL;
}

static int measure(load *l, double seconds, int calls)
{
    slot *s = calloc((size_t)calls, sizeof *s);
    l->took = malloc(MOST * sizeof *l->took);
    if (!s || !l->took || (l->batch && !pack_batch(l))) return 1;
    double began = now();
    l->until = began + seconds;
    l->running = calls;
    for (int i = 0; i < calls; i++) {
        s[i] = (slot){.l = l, .next = (uint32_t)(i * 37)};
        send_one(&s[i]);
    }
    pthread_mutex_lock(&l->lock);
    while (l->running) pthread_cond_wait(&l->over, &l->lock);
    pthread_mutex_unlock(&l->lock);
    double took = now() - began;
    if (!l->calls) return fprintf(stderr, "quotes: no call succeeded\n"), 1;
    qsort(l->took, (size_t)l->calls, sizeof *l->took, by_size);
    printf("{\"mode\": \"%s\", \"calls\": %d, \"quotes_per_s\": %.0f, \"p50_ms\": %.3f, \"p99_ms\": %.3f, \"failed\": %lld}\n", l->batch ? "batch" : "unary", calls,
           (double)l->calls * (l->batch ? ITEMS : 1) / took, (double)l->took[l->calls / 2], (double)l->took[(l->calls - 1) * 99 / 100], (long long)l->failed);
    free(s), free(l->took), free(l->message);
    return 0;
}

static int unary(mx_client *c, const char *method, const ProtobufCMessage *m)
{
    mx_rpc_status st = {0};
    size_t n = protobuf_c_message_get_packed_size(m), size;
    uint8_t *bytes = malloc(n + 1), *reply = NULL;
    if (!bytes) return 1;
    protobuf_c_message_pack(m, bytes);
    mx_status e = mx_client_unary(c, method, bytes, n, 60000, &reply, &size, &st);
    if (e || st.code) fprintf(stderr, "quotes: %s: %s\n", method, st.text);
    free(bytes), free(reply);
    return e || st.code;
}

static int put(mx_client *c)
{
    static char sku[ITEMS][24], id[ITEMS][24];
    static Merx__V1__PriceItem item[ITEMS], *items[ITEMS];
    static Merx__V1__SaleObservation sale[ITEMS], *sales[ITEMS];
    Merx__V1__PutItemsRequest p = MERX__V1__PUT_ITEMS_REQUEST__INIT;
    Merx__V1__ReportSalesRequest r = MERX__V1__REPORT_SALES_REQUEST__INIT;
    for (uint32_t k = 0; k < ITEMS; k++) {
        merx__v1__price_item__init(&item[k]);
        merx__v1__sale_observation__init(&sale[k]);
        snprintf(id[k], sizeof id[k], "first-%u", k);
        item[k].sku = sale[k].sku = (char *)(uintptr_t)sku_of(k, sku[k]);
        item[k].currency = "USD", item[k].cost = 600 + k % 100, item[k].reference_price = 1000;
        sale[k].sale_id = id[k], sale[k].price = 1000, sale[k].units = 20;
        items[k] = &item[k], sales[k] = &sale[k];
    }
    p.items = items, p.n_items = ITEMS;
    r.sales = sales, r.n_sales = ITEMS;
    return unary(c, "/merx.v1.Pricing/PutItems", &p.base) || unary(c, "/merx.v1.Pricing/ReportSales", &r.base);
}

int main(int argc, char **argv)
{
    mx_client_options o = {.wait_for_ready = true};
    mx_error err = {0};
    load l = {.lock = PTHREAD_MUTEX_INITIALIZER, .over = PTHREAD_COND_INITIALIZER};
    bool putting = argc == 3 && !strcmp(argv[2], "put");
    if (!putting && (argc != 5 || (strcmp(argv[2], "unary") && strcmp(argv[2], "batch")) || atof(argv[3]) <= 0 || atoi(argv[4]) < 1))
        return fprintf(stderr, "quotes HOST:PORT put | unary SECONDS CALLS | batch SECONDS CALLS\n"), 2;
    if (mx_client_open(&l.client, argv[1], &o, &err)) return fprintf(stderr, "quotes: %s\n", err.text), 1;
    l.batch = !putting && !strcmp(argv[2], "batch");
    int status = putting ? put(l.client) : measure(&l, atof(argv[3]), atoi(argv[4]));
    mx_client_close(l.client);
    return status;
}
