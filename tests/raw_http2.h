/* raw_http2.h - just enough HTTP/2 to be a rude client: one request on a socket of
 * its own, which is then dropped without a word.  No Huffman, no indexing. */
#ifndef MX_RAW_HTTP2_H
#define MX_RAW_HTTP2_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static inline size_t raw_frame(uint8_t *out, int type, int flags, uint32_t stream, const uint8_t *data, size_t n)
{
    uint8_t head[9] = {(uint8_t)(n >> 16),     (uint8_t)(n >> 8), (uint8_t)n, (uint8_t)type, (uint8_t)flags, 0, 0,
                       (uint8_t)(stream >> 8), (uint8_t)stream};
    memcpy(out, head, 9);
    if (n) memcpy(out + 9, data, n);
    return n + 9;
}

static inline size_t raw_header(uint8_t *out, const char *name, const char *value)
{
    size_t n = strlen(name), v = strlen(value), at = 0;
    out[at++] = 0;
    out[at++] = (uint8_t)n;
    memcpy(out + at, name, n);
    at += n;
    out[at++] = (uint8_t)v;
    memcpy(out + at, value, v);
    return at + v;
}

/* A connected socket with a request on its way; -1 on failure.  len < 2000. */
static inline int raw_call(int port, const char *path, const uint8_t *msg, size_t len)
{
    static const char preface[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    uint8_t out[4096], headers[1024], body[2048];
    size_t n = 0, h = 0;
    struct sockaddr_in to = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return -1;
    h += raw_header(headers + h, ":method", "POST");
    h += raw_header(headers + h, ":scheme", "http");
    h += raw_header(headers + h, ":path", path);
    h += raw_header(headers + h, ":authority", "localhost");
    h += raw_header(headers + h, "content-type", "application/grpc");
    h += raw_header(headers + h, "te", "trailers");
    memcpy(out, preface, 24);
    n = 24;
    n += raw_frame(out + n, 4, 0, 0, NULL, 0);
    n += raw_frame(out + n, 1, 4, 1, headers, h);
    body[0] = 0;
    for (int i = 0; i < 4; i++) body[1 + i] = (uint8_t)(len >> (24 - 8 * i));
    memcpy(body + 5, msg, len);
    n += raw_frame(out + n, 0, 1, 1, body, len + 5);
    if (connect(fd, (struct sockaddr *)&to, sizeof to) || send(fd, out, n, MSG_NOSIGNAL) != (ssize_t)n) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Gone without a farewell: RST instead of FIN. */
static inline void raw_vanish(int fd)
{
    struct linger hard = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    close(fd);
}

#endif
