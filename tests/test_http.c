/* The HTTP port: what it tells, a device that stands still, malformed and many clients. */
#include "runtime/log.h"
#include "server/http.h"
#include "tests/server_fixture.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

static int dial(int port)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval wait = {.tv_sec = 5};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    if (connect(fd, (struct sockaddr *)&at, sizeof at)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Sends text[len]; the whole answer, malloc'ed, "" when the connection closes without one. */
static char *ask(int port, const char *text, size_t len)
{
    size_t n = 0, room = 1 << 20;
    char *reply = calloc(1, room);
    int fd = dial(port);
    if (fd < 0) return reply;
    if (send(fd, text, len, MSG_NOSIGNAL) == (ssize_t)len)
        for (ssize_t got; n + 1 < room && (got = recv(fd, reply + n, room - n - 1, 0)) > 0;) n += (size_t)got;
    close(fd);
    return reply;
}

static int get(int port, const char *path, char **reply)
{
    char text[200];
    int n = snprintf(text, sizeof text, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", path);
    char *r = ask(port, text, (size_t)n);
    int status = strncmp(r, "HTTP/1.1 ", 9) == 0 ? atoi(r + 9) : -1;
    if (reply) *reply = r;
    else free(r);
    return status;
}

static bool open_both(fixture *f, mx_http **h, const mx_fake_options *o, uint32_t stall_ms)
{
    mx_error err = {0};
    mx_http_options opt = {.listen = "127.0.0.1:0", .stall_ms = stall_ms, .idle_s = 1};
    if (!fixture_open(f, o, NULL)) return false;
    atomic_store(&f->app.app.state, MX_APP_SERVING);
    CHECK_OK(mx_http_open(h, &f->app.app, f->server, &opt, &err), err);
    return *h != NULL;
}

static void test_tells(void)
{
    fixture f;
    mx_http *h = NULL;
    char *text = NULL;
    if (!open_both(&f, &h, NULL, 5000)) return;
    packed p = generate_bytes("abc", 8);
    CHECK(call_bytes(f.client, RPC("Generate"), p.data, p.len, 5000, &merx__v1__generate_response__descriptor, NULL, NULL) == 0);
    CHECK(call_bytes(f.client, RPC("Nothing"), p.data, p.len, 5000, &merx__v1__generate_response__descriptor, NULL, NULL) == MX_RPC_UNIMPLEMENTED);
    free(p.data);
    fixture_quiet(&f, 2000);
    /* a call is counted once its end is on its way, which its client may see first */
    for (int i = 0; i < 200; i++) {
        free(text);
        CHECK(get(mx_http_port(h), "/metrics", &text) == 200);
        if (strstr(text, "UNIMPLEMENTED")) break;
        usleep(10000);
    }
    CHECK(strstr(text, "text/plain; version=0.0.4") != NULL);
    CHECK(strstr(text, "merx_rpc_total{method=\"merx.v1.Generation/Generate\",code=\"OK\"} 1\n") != NULL);
    CHECK(strstr(text, "merx_rpc_total{method=\"unknown\",code=\"UNIMPLEMENTED\"} 1\n") != NULL);
    CHECK(strstr(text, "merx_lane_jobs_total{lane=\"fake.generate\"} 1\n") != NULL);
    CHECK(strstr(text, "process_resident_memory_bytes ") != NULL);
    free(text);
    CHECK(get(mx_http_port(h), "/healthz", NULL) == 200);
    CHECK(get(mx_http_port(h), "/readyz", NULL) == 200);
    atomic_store(&f.app.app.state, MX_APP_DRAINING);
    CHECK(get(mx_http_port(h), "/readyz", NULL) == 503);
    CHECK(get(mx_http_port(h), "/healthz", NULL) == 200);
    atomic_store(&f.app.app.state, MX_APP_STARTING);
    CHECK(get(mx_http_port(h), "/readyz", NULL) == 503);
    CHECK(get(mx_http_port(h), "/", NULL) == 404);
    mx_http_close(h);
    fixture_close(&f);
}

/* A turn of 700 ms is a device that stands still for whoever allows 100. */
static void test_stuck_device(void)
{
    fixture f;
    mx_http *h = NULL;
    mx_fake_options o = fake_defaults();
    mx_client_call *call;
    o.turn_us = 700000;
    if (!open_both(&f, &h, &o, 100)) return;
    mx_log_configure(MX_LOG_OFF, false);
    packed p = generate_bytes("abc", 1);
    CHECK(mx_client_stream(f.client, &call, RPC("Stream"), p.data, p.len, 20000) == MX_OK);
    free(p.data);
    uint64_t start = now_ms();
    int status = 200;
    char *text = NULL;
    while (status == 200 && now_ms() - start < 20000) {
        free(text);
        status = get(mx_http_port(h), "/healthz", &text);
    }
    CHECK_MSG(status == 503, "%d", status);
    CHECK(text && strstr(text, "none has moved for") != NULL);
    free(text);
    mx_client_finish(call, NULL);
    mx_client_end(call);
    start = now_ms();
    while (get(mx_http_port(h), "/healthz", NULL) != 200 && now_ms() - start < 10000) nap_ms(10);
    CHECK(get(mx_http_port(h), "/healthz", NULL) == 200);      /* idle is not stuck */
    mx_log_configure(MX_LOG_INFO, false);
    mx_http_close(h);
    fixture_close(&f);
}

static void test_bad_clients(void)
{
    enum { SILENT = 150 };
    static const char *const bad[] = {
        "\r\n\r\n\r\n", "GET\r\n\r\n", "GET /metrics\r\n\r\n", "GET /metrics HTTP/9.9\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", "GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        "DELETE /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "GET /%00%ff HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    };
    enum { CASES = sizeof bad / sizeof *bad };
    fixture f;
    mx_http *h = NULL;
    if (!open_both(&f, &h, NULL, 5000)) return;
    int port = mx_http_port(h);
    int said[CASES];
    for (size_t i = 0; i < CASES; i++) {
        said[i] = dial(port);
        CHECK(send(said[i], bad[i], strlen(bad[i]), MSG_NOSIGNAL) > 0);
        shutdown(said[i], SHUT_WR);
    }
    for (size_t i = 0; i < CASES; i++) {     /* those that are never whole end when they have been silent for too long */
        char reply[2000] = "";
        ssize_t n = recv(said[i], reply, sizeof reply - 1, 0);
        CHECK_MSG(n >= 0 || errno == ECONNRESET, "case %zu: neither an answer nor an end", i);
        CHECK_MSG(strncmp(reply, "HTTP/1.1 200", 12) != 0, "case %zu: %.60s", i, reply);
        close(said[i]);
    }
    static const char post[] = "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    char *text = ask(port, post, sizeof post - 1);
    CHECK_MSG(strstr(text, "405") != NULL && strstr(text, "Allow: GET, HEAD") != NULL, "%s", text);
    free(text);
    size_t big = 1 << 20;
    char *flood = malloc(big);
    memset(flood, 'a', big);
    memcpy(flood, "GET /", 5);
    free(ask(port, flood, big));
    free(flood);
    /* More clients than it takes, all silent: those that speak are heard again when they are gone.  (Not so many that the
     * kernel, whose queue of 128 holds the others, leaves a client to knock again after seconds.) */
    int fd[SILENT];
    for (int i = 0; i < SILENT; i++) fd[i] = dial(port);
    for (int i = 0; i < SILENT; i++)
        if (fd[i] >= 0) close(fd[i]);
    uint64_t start = now_ms();
    int status = 0;
    while (status != 200 && now_ms() - start < 15000) status = get(port, "/healthz", NULL);
    CHECK_MSG(status == 200, "%d", status);
    mx_http_close(h);
    fixture_close(&f);
}

static void test_refused_addresses(void)
{
    static const char *const bad[] = {"8080", "127.0.0.1:notaport", "256.0.0.1:80", "192.0.2.1:8080"};
    mx_fake_app app;
    mx_error err = {0};
    mx_fake_options o = fake_defaults();
    CHECK_OK(mx_fake_app_open(&app, &o, &err), err);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_http *h = NULL;
        mx_status st = mx_http_open(&h, &app.app, NULL, &(mx_http_options){.listen = bad[i], .stall_ms = 1000}, &err);
        CHECK_MSG((st == MX_ERR_ARG || st == MX_ERR_IO) && !h && strstr(err.text, "http-listen"), "%s: %s", bad[i], err.text);
    }
    mx_fake_app_close(&app);
}

MX_TESTS(TEST(test_tells), TEST(test_stuck_device), TEST(test_bad_clients), TEST(test_refused_addresses))
