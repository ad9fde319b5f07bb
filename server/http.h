/* http.h - the port for those who watch the server: /metrics, /healthz, /readyz.
 *
 * /metrics is Prometheus' text.  /healthz is 200 while turns are taken or jobs given
 * back whenever there are jobs, and 503 when none was for stall_ms: the scheduler's own
 * counters are asked, nothing is inferred from the process being there.  /readyz is 200 while the app serves: not while it starts or drains.
 *
 * It knows no secrets, and asks for none: it belongs on loopback or a private network. */
#ifndef MX_HTTP_H
#define MX_HTTP_H

#include "server/rpc.h"

typedef struct mx_http mx_http;

typedef struct mx_http_options {
    const char *listen;            /* "127.0.0.1:8080"; port 0: any free one                  */
    uint32_t    stall_ms;          /* jobs and no step for so long: stuck                     */
    uint32_t    idle_s;            /* a connection that is silent for so long is closed; 0: 10 */
} mx_http_options;

/* server may be NULL.  Both outlive it.  Errors: MX_ERR_ARG (address), MX_ERR_IO (it cannot be bound), MX_ERR_NO_MEMORY. */
mx_status mx_http_open(mx_http **out, mx_app *app, mx_server *server, const mx_http_options *o, mx_error *err);
int       mx_http_port(const mx_http *h);
void      mx_http_close(mx_http *h);

#endif
