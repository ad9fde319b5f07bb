/* auth.h - who may call what, and how often: tokens of tenants, from a file.
 *
 * A line of the file is a tenant's: its name, the SHA-256 of its token (the token
 * itself is nowhere), and what it may do:
 *
 *     acme sha256:9f86d0... services=Generation,Embeddings rate=50 burst=100
 *
 * services: names of merx.v1's services, or * (also when not given).  rate: calls a
 * second, burst: calls at once (GCRA: ITU-T I.371, the virtual scheduling form of a
 * token bucket).  weight: the tenant's share of a lane that others want too, 1 when not
 * given.  A tenant may have several lines, one a token, while one token
 * replaces another; the limits are those of its last line.
 *
 * THREADS: any thread may check while another one reloads. */
#ifndef MX_AUTH_H
#define MX_AUTH_H

#include "runtime/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct mx_auth mx_auth;
/* Never freed before the auth: a call may keep a pointer to its tenant.  The number is
 * the scheduler's, from 1 on; those beyond the 255th share the last. */
typedef struct mx_tenant {
    char    name[64];
    uint8_t number;
} mx_tenant;

enum { MX_TOKEN_TEXT = 48 };

/* Errors: MX_ERR_IO (file), MX_ERR_FORMAT (file:line and what is wrong), MX_ERR_NO_MEMORY. */
mx_status mx_auth_open(mx_auth **out, const char *file, mx_error *err);
void      mx_auth_close(mx_auth *a);
/* Reads the file again; on an error all stays as it was.  *tokens may be NULL. */
mx_status mx_auth_reload(mx_auth *a, int *tokens, mx_error *err);
/* Tenant i, from 0 on, and its weight; NULL: there are no more. */
const mx_tenant *mx_auth_tenant(mx_auth *a, int i, double *weight);

/* token[len]: what followed "Bearer "; NULL: none was sent.  method: "/merx.v1.Generation/Stream".
 * *tenant (the auth's, for its whole life) is set when the token is known.
 * MX_ERR_UNKNOWN_CALLER; MX_ERR_DENIED (names the service); MX_ERR_BUSY (over its rate; err->retry_ms). */
mx_status mx_auth_check(mx_auth *a, const char *token, size_t len, const char *method, uint64_t now_ns,
                        const mx_tenant **tenant, mx_error *err);

/* A whole PEM file as a string, malloc'ed.  Errors: MX_ERR_IO, MX_ERR_FORMAT (over 1 MiB, empty), MX_ERR_NO_MEMORY. */
mx_status mx_pem_read(const char *file, char **out, mx_error *err);

/* A new token of 256 random bits, "mx_..."; its line's second word, "sha256:..." of 64 hex digits.  Errors: MX_ERR_IO. */
mx_status mx_token_make(char token[MX_TOKEN_TEXT], char hash[80], mx_error *err);

#endif
